"""The telephony WebSocket, whichever library it comes from.

:func:`adapt` chooses by what the object can do:

==================  =============================================================
``receive``         simple-websocket, which flask-sock hands to its routes
``recv_data_frame``  websocket-client
``recv(timeout)``   ``websockets.sync``, or an object of your own, see :class:`Telephony`
==================  =============================================================

One thread receives, one other sends; each library allows that. ``close`` is
called when neither does. ``abort`` may be called at any time, by any thread: it
ends the TCP connection, which is the one thing that wakes a blocked reader or
writer in every library. (Their own ``close`` waits for a lock that the reader
holds, or for an answer that may never come.)
"""

from __future__ import annotations

import contextlib
import inspect
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

__all__ = ["Telephony", "TelephonyClosed", "adapt"]

#: Seconds that closing may take: the peer's answer to the close frame, at most.
CLOSING = 0.5
#: Seconds that sending the close frame itself may take.
CLOSE_FRAME = 0.3

#: Characters of a message that a socket takes whole if it takes any.
AT_ONCE = 4096
#: Bytes that the kernel needs for a message besides its own, at most.
OVERHEAD = 2048

_CLEAN = (1000, 1001)


class TelephonyClosed(Exception):
    """The telephony WebSocket is at its end.

    Attributes:
        clean: Whether the peer closed it, rather than that it broke.
        code: The close code, if one is known.
    """

    def __init__(self, message: str, *, clean: bool, code: int | None = None) -> None:
        super().__init__(message)
        self.clean = clean
        self.code = code


@runtime_checkable
class Telephony(Protocol):
    """What the core needs. An object of your own with these methods is taken as it is.

    Two more save threads from being woken, if it has them:

    ``send_now(message) -> bool``
        sends if that does not block, and otherwise sends nothing and returns False.
    ``hand_to(hear) -> bool``
        has ``hear(message)`` called from now on, for every message in order, by the thread that receives
        it; ``recv`` then only waits for the end. Returns False if that is not possible.
    """

    def recv(self, timeout: float) -> str | bytes | None:
        """Return the next message, ``None`` when none came within ``timeout`` seconds.

        Raises:
            TelephonyClosed: There will be no more. (Any other exception ends the call too.)
        """

    def send(self, message: str) -> None:
        """Send a text message. It may block; :meth:`abort` has to end that."""

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close, in about a second at most. Called once, when no other thread uses the object."""

    def abort(self) -> None:
        """End the connection at once, so that :meth:`recv` and :meth:`send` return. Never blocks."""


def adapt(ws: Any) -> Telephony:
    """Return ``ws`` as a :class:`Telephony`.

    Raises:
        TypeError: It has not the methods of any WebSocket known here.
    """
    if callable(getattr(ws, "receive", None)):
        return _SimpleWebSocket(ws)
    if callable(getattr(ws, "recv_data_frame", None)):
        return _WebSocketClient(ws)
    if callable(getattr(ws, "recv", None)) and _takes_timeout(ws.recv):
        if isinstance(ws, Telephony):
            return ws
        return _WebSockets(ws)
    raise TypeError(
        f"a telephony WebSocket has receive(timeout) or recv(timeout), send(text) and close(), "
        f"but {type(ws).__name__} has not"
    )


def _takes_timeout(method: Any) -> bool:
    try:
        return "timeout" in inspect.signature(method).parameters
    except (TypeError, ValueError):
        return False


def _writable(sock: Any, timeout: float) -> bool:
    """Whether the kernel takes something to send, or has an error to tell."""
    try:
        if not hasattr(select, "poll"):
            return bool(select.select([], [sock], [], timeout)[1])
        poller = select.poll()  # select() knows no descriptor above 1023
        poller.register(sock, select.POLLOUT)
        return bool(poller.poll(timeout * 1000))
    except (OSError, ValueError):  # closed meanwhile
        return True


class _Room:
    """Tells whether sending would not block, asking the kernel as rarely as that can be known.

    It calls a socket writable when a third of its buffer is free: so much fits in without asking again.
    """

    def __init__(self) -> None:
        self._left = 0

    def forget(self) -> None:
        """Something else is being sent."""
        self._left = 0

    def has(self, sock: Any, message: str) -> bool:
        size = len(message) + OVERHEAD
        if size <= self._left:
            self._left -= size
            return True
        if len(message) > AT_ONCE or sock is None or not _writable(sock, 0.0):
            self._left = 0
            return False
        self._left = 0
        with contextlib.suppress(OSError):
            if sock.gettimeout() is None:  # otherwise Python asks the kernel too, and waits for a third
                room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 3
                self._left = min(65536, room) - size
        return True


def _shut(sock: Any) -> None:
    if sock is not None:
        with contextlib.suppress(OSError, ValueError):
            sock.shutdown(socket.SHUT_RDWR)


class _Bell:
    """Takes the place of simple-websocket's event: hands messages over instead of waking somebody.

    The library's own thread receives them, and another thread's waking takes longer than all that
    is done with one.
    """

    def __init__(self, ws: Any) -> None:
        self._ws = ws
        self._silent = threading.Lock()
        self._silent.acquire()
        self._turn = threading.Lock()  # who has it hands over; nobody waits for it
        self.hear: Callable[[str | bytes], None] | None = None

    def set(self) -> None:
        if self.hear is not None:
            self.hand_over(self.hear)
            if self._ws.connected:
                return
        with contextlib.suppress(RuntimeError):  # it rings already
            self._silent.release()

    def hand_over(self, hear: Callable[[str | bytes], None]) -> None:
        waiting = self._ws.input_buffer
        # Looked at again after each release: something may have come between the last look and that.
        while waiting and self._turn.acquire(False):
            try:
                while waiting:
                    hear(waiting.pop(0))
            finally:
                self._turn.release()

    def wait(self, timeout: float | None = None) -> bool:
        return self._silent.acquire(
            timeout=-1 if timeout is None else max(0.0, min(timeout, threading.TIMEOUT_MAX))
        )

    def clear(self) -> None:
        self._silent.acquire(False)


class _Whole:
    """Takes the place of simple-websocket's socket: what it is given to send is sent whole, and by itself.

    The library calls ``send()`` once and does not look at how much was taken: not all, of a socket that
    does not block, as those of gevent. And its own thread answers pings, and sends its own, in the middle
    of a message that another thread waits to get rid of. The other libraries have a lock for that.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._turn = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes, flags: int = 0) -> int:
        if flags:
            return int(self._sock.send(data, flags))
        with self._turn:
            self._sock.sendall(data)
        return len(data)


class _SimpleWebSocket:
    """``simple_websocket.Server``, and so flask-sock."""

    def __init__(self, ws: Any) -> None:
        self._ws = ws
        self._room = _Room()
        self._bell: _Bell | None = None
        sock = getattr(ws, "sock", None)
        if callable(getattr(sock, "sendall", None)) and not isinstance(sock, _Whole):
            ws.sock = _Whole(sock)  # looked up at each use, too
        event = getattr(ws, "event", None)
        if isinstance(event, _Bell):
            self._bell = event
        elif type(event) is threading.Event and type(getattr(ws, "input_buffer", None)) is list:
            # Both are looked up at each use, and who waits looks for messages first.
            self._bell = ws.event = _Bell(ws)

    def hand_to(self, hear: Callable[[str | bytes], None]) -> bool:
        bell = self._bell
        if bell is None:
            return False
        bell.hear = hear
        bell.clear()  # it has rung for what is handed over now
        bell.hand_over(hear)
        return True

    def recv(self, timeout: float) -> str | bytes | None:
        bell = self._bell
        if bell is not None and bell.hear is not None:
            if self._ws.connected and (not bell.wait(timeout) or self._ws.connected):
                return None
            bell.hand_over(bell.hear)
            timeout = 0.0
        try:
            message: str | bytes | None = self._ws.receive(timeout=timeout)
        except OSError as error:
            raise TelephonyClosed(str(error), clean=False) from error
        except Exception as error:
            raise self._closed(error) from error
        return message

    def send(self, message: str) -> None:
        self._room.forget()
        self._send(message)

    def _send(self, message: str) -> None:
        try:
            self._ws.send(message)
        except Exception as error:
            raise self._closed(error) from error

    def send_now(self, message: str) -> bool:
        if not self._room.has(getattr(self._ws, "sock", None), message):
            return False
        self._send(message)
        return True

    def _closed(self, error: Exception) -> TelephonyClosed:
        code = getattr(error, "reason", None)
        code = int(code) if isinstance(code, int) else None
        # 1005 may be a close frame without a code, or no close frame at all: the protocol's state tells.
        state = getattr(getattr(self._ws, "ws", None), "state", None)
        clean = code in _CLEAN or (code == 1005 and getattr(state, "name", "OPEN") != "OPEN")
        text = getattr(error, "message", None) or ""
        return TelephonyClosed(f"{code} {text}".strip() if code else str(error), clean=clean, code=code)

    def close(self, code: int = 1000, reason: str = "") -> None:
        ws = self._ws
        sock = getattr(ws, "sock", None)
        if getattr(ws, "connected", False):
            with contextlib.suppress(Exception):
                # Its own close() has no deadline, and a peer that reads nothing would hold it for ever.
                if sock is None or _writable(sock, CLOSE_FRAME):
                    ws.close(reason=code, message=reason or None)
        # It neither waits for the answer nor ends its reading thread.
        thread = getattr(ws, "thread", None)
        join = getattr(thread, "join", None)
        if join is not None:
            join(CLOSING)
        _shut(sock)
        if join is not None:
            join(CLOSING)

    def abort(self) -> None:
        _shut(getattr(self._ws, "sock", None))


class _WebSockets:
    """``websockets.sync``: server and client connections, and what looks like one."""

    def __init__(self, ws: Any) -> None:
        self._ws = ws
        self._room = _Room()
        if getattr(ws, "close_timeout", None) is not None:
            ws.close_timeout = CLOSING  # now: it counts from the peer's close frame, if that is the first

    def recv(self, timeout: float) -> str | bytes | None:
        try:
            message: str | bytes | None = self._ws.recv(timeout=timeout)
        except TimeoutError:
            # It says nothing of a close frame before the peer has ended the TCP connection as well.
            closed = getattr(getattr(self._ws, "protocol", None), "close_rcvd", None)
            if closed is None:
                return None
            raise TelephonyClosed(str(closed), clean=True, code=closed.code) from None
        except Exception as error:
            raise self._closed(error) from error
        return message

    def send(self, message: str) -> None:
        self._room.forget()
        self._send(message)

    def _send(self, message: str) -> None:
        try:
            self._ws.send(message)
        except Exception as error:
            raise self._closed(error) from error

    def send_now(self, message: str) -> bool:
        if not self._room.has(getattr(self._ws, "socket", None), message):
            return False
        self._send(message)
        return True

    def _closed(self, error: Exception) -> TelephonyClosed:
        if isinstance(error, TelephonyClosed):
            return error
        code = getattr(getattr(error, "rcvd", None), "code", None)
        return TelephonyClosed(str(error), clean=code in (*_CLEAN, 1005), code=code)

    def close(self, code: int = 1000, reason: str = "") -> None:
        ws = self._ws
        with contextlib.suppress(Exception):
            sock = getattr(ws, "socket", None)
            if sock is None or _writable(sock, CLOSE_FRAME):
                ws.close(code, reason) if _takes(ws.close, 2) else ws.close()
        self.abort()

    def abort(self) -> None:
        abort = getattr(self._ws, "abort", None)
        if callable(abort):
            abort()
        else:
            _shut(getattr(self._ws, "socket", None))


def _takes(method: Any, count: int) -> bool:
    try:
        inspect.signature(method).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


class _WebSocketClient:
    """``websocket.WebSocket``: its timeout is one for both directions, so waiting is done outside."""

    def __init__(self, ws: Any, patience: float = 30.0) -> None:
        self._ws = ws
        self._room = _Room()
        if ws.gettimeout() is None:
            ws.settimeout(patience)

    def recv(self, timeout: float) -> str | bytes | None:
        import websocket

        try:
            if not self._readable(timeout):
                return None
            opcode, data = self._ws.recv_data()
        except Exception as error:
            raise TelephonyClosed(str(error), clean=False) from error
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            code = int.from_bytes(data[:2], "big") if len(data) >= 2 else 1005
            text = data[2:].decode("utf-8", "replace")
            raise TelephonyClosed(f"{code} {text}".strip(), clean=code in (*_CLEAN, 1005), code=code)
        return data.decode("utf-8", "replace") if opcode == websocket.ABNF.OPCODE_TEXT else bytes(data)

    def _readable(self, timeout: float) -> bool:
        sock = self._ws.sock
        if sock is None:
            raise ConnectionError("the WebSocket is closed")
        pending = getattr(sock, "pending", None)
        if pending is not None and pending():
            return True
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    def send(self, message: str) -> None:
        self._room.forget()
        self._send(message)

    def _send(self, message: str) -> None:
        try:
            self._ws.send(message)
        except Exception as error:
            raise TelephonyClosed(str(error), clean=False) from error

    def send_now(self, message: str) -> bool:
        if not self._room.has(getattr(self._ws, "sock", None), message):
            return False
        self._send(message)
        return True

    def close(self, code: int = 1000, reason: str = "") -> None:
        ws = self._ws
        with contextlib.suppress(Exception):
            # It waits for the answer in steps of its own timeout: so that has to be short.
            ws.settimeout(CLOSE_FRAME)
            deadline = time.monotonic() + CLOSING
            if ws.connected:
                ws.close(status=code, reason=reason.encode(), timeout=max(0.0, deadline - time.monotonic()))
        self.abort()
        with contextlib.suppress(Exception):
            ws.shutdown()

    def abort(self) -> None:
        _shut(getattr(self._ws, "sock", None))
