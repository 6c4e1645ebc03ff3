"""One WebSocket connection, server side, on an asyncio transport.

``websockets`` does the handshake, control frames, fragments and everything
malformed. Whole data frames, which is what nearly all traffic is, are taken
apart here: that is several times cheaper than a general parser, and this server
often shares two cores with the client whose speed it helps to measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

try:
    from websockets.datastructures import Headers
    from websockets.frames import Frame, Opcode
    from websockets.http11 import Request, Response
    from websockets.protocol import State
    from websockets.server import ServerProtocol
    from websockets.typing import Subprotocol
except ImportError as exc:
    raise ImportError(
        "the embedded server needs the websockets package: pip install 'rtpool-sync[emulator]'"
    ) from exc

if TYPE_CHECKING:
    from collections.abc import Callable

    apply_mask: Callable[[bytes | bytearray, bytes | bytearray], bytes]
else:
    try:
        from websockets.speedups import apply_mask
    except ImportError:  # pure-Python wheel
        from websockets.utils import apply_mask

__all__ = ["EchoEndpoint", "Endpoint", "Headers", "Host", "Request", "Response", "Wire", "frame"]

_TEXT = 0x81
_BINARY = 0x82
_WHOLE = (_TEXT, _BINARY)
_CLOSE_TIMEOUT = 5.0
_log = logging.getLogger("rtpool_sync.emulator")


def _mask_credentials(record: logging.LogRecord) -> bool:
    """Hide the keys among the request headers, which `websockets` logs one by one at DEBUG."""
    args = record.args
    if isinstance(args, tuple) and len(args) == 2:
        if str(args[0]).lower() in ("authorization", "api-key", "sec-websocket-protocol"):
            record.args = (args[0], "***")
    return True


_log.addFilter(_mask_credentials)


def frame(first: int, payload: bytes) -> bytes:
    """Return an unmasked frame; ``first`` is the byte with FIN and opcode."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


class Endpoint(Protocol):
    """What lives at the end of a wire once the upgrade is done."""

    def opened(self) -> None: ...

    def message(self, first: int, payload: bytes) -> None:
        """Take a message; ``first`` is 0x81 for text, 0x82 for binary. Text is not checked."""

    def closed(self) -> None: ...


class Host(Protocol):
    """What a wire needs from the server."""

    loop: asyncio.AbstractEventLoop
    ping_interval: float | None
    ping_timeout: float | None
    max_message: int

    def answer(self, wire: Wire, request: Request) -> None:
        """Answer an upgrade request: ``wire.accept``, ``wire.refuse`` or a fault."""

    def wire_closing(self, wire: Wire) -> None:
        """The closing handshake began, or the connection is gone. Called once."""

    def wire_lost(self, wire: Wire) -> None:
        """The socket is closed. Called once."""


def _choose_subprotocol(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    # Browsers authenticate by subprotocol; "realtime" is the one the service confirms.
    return Subprotocol("realtime") if "realtime" in offered else None


class Wire(asyncio.Protocol):
    """The transport side of one connection. Lives in the server's thread."""

    transport: asyncio.Transport

    def __init__(self, host: Host, sock: socket.socket, index: int) -> None:
        self.host = host
        self.loop = host.loop
        self.sock = sock
        self.index = index
        self.request: Request | None = None
        self.endpoint: Endpoint | None = None
        self.frames_in = 0
        self.frames_out = 0
        self.made = False
        self.lost = False
        #: Who ended the connection, its close code and reason.
        self.ended: tuple[str, int, str] | None = None
        self._protocol = ServerProtocol(
            max_size=host.max_message, select_subprotocol=_choose_subprotocol, logger=_log
        )
        self._buffer = bytearray()
        self._fragments: list[bytes] = []
        self._fragments_first = 0
        self._fragmented = False
        self._out: list[bytes] = []
        self._held: list[bytes] | None = None  # writes wait here while stalled or trickling
        self._stalled = False
        self._hang_up_later = False
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pong_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        return self._protocol.state is State.OPEN

    # -- asyncio's side -------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.made = True
        self.transport.set_write_buffer_limits(high=1 << 20)

    def data_received(self, data: bytes) -> None:
        if self.endpoint is None:
            self._request(data)
            return
        if self._stalled:
            return
        buffer = self._buffer
        view: bytes | bytearray = data
        if buffer:
            buffer += data
            view = buffer
        position = 0
        size = len(view)
        while size - position >= 2:
            first = view[position]
            second = view[position + 1]
            if not second & 0x80:
                self._feed(bytes(view[position:]))  # a client must mask: it fails the connection
                return
            length = second & 0x7F
            start = position + 6
            if length == 126:
                if size - position < 8:
                    break
                length = (view[position + 2] << 8) | view[position + 3]
                start += 2
            elif length == 127:
                if size - position < 14:
                    break
                length = int.from_bytes(view[position + 2 : position + 10], "big")
                start += 8
            end = start + length
            if length > self.host.max_message:
                self._feed(bytes(view[position:]))  # too big: it fails the connection
                return
            if end > size:
                break
            if first in _WHOLE and not self._fragmented:
                self.frames_in += 1
                self.endpoint.message(first, apply_mask(view[start:end], view[start - 4 : start]))
            else:
                # Everything unusual goes to websockets, one frame at a time.
                if not first & 0x08:
                    self._fragmented = not first & 0x80
                self._feed(bytes(view[position:end]))
                if self.transport.is_closing():
                    buffer.clear()
                    return
            position = end
        if view is data:
            if position < size:
                buffer += data[position:] if position else data
        elif position:
            del buffer[:position]
        if self._out:
            self.flush()

    def _request(self, data: bytes) -> None:
        """Feed the upgrade request, and only that: frames that came with it are taken apart above."""
        before = len(self._buffer)
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        del self._buffer[:-3]  # enough to find the end if it is split
        if end < 0:
            self._feed(data)
            return
        self._buffer.clear()
        end += 4 - before
        self._feed(data[:end])
        if end < len(data) and self.endpoint is not None:
            self.data_received(data[end:])

    def eof_received(self) -> bool:
        with contextlib.suppress(EOFError):
            self._protocol.receive_eof()
        self._end("client" if self._protocol.close_rcvd else "network", 1006, "")
        return False

    def pause_writing(self) -> None:
        # A client that does not read is not read from either.
        with contextlib.suppress(RuntimeError):
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._stalled:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.transport.close()  # Python 3.10 takes a TLS transport that was not told for forgotten
        self._end("network", 1006, str(exc) if exc else "")
        for timer in (self._ping_timer, self._pong_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self._buffer.clear()
        self._held = None
        self.host.wire_lost(self)

    # -- the handshake and the unusual, by websockets ----------------------------

    def _feed(self, data: bytes) -> None:
        protocol = self._protocol
        self.flush()
        try:
            protocol.receive_data(data)
        except EOFError:
            return
        for event in protocol.events_received():
            if isinstance(event, Request):
                self.request = event
                self.host.answer(self, event)
            elif isinstance(event, Frame):
                self._frame(event)
        self._settle()

    def _frame(self, event: Frame) -> None:
        opcode = event.opcode
        if opcode is Opcode.PONG:
            if self._pong_timer is not None:
                self._pong_timer.cancel()
                self._pong_timer = None
        elif opcode is Opcode.CLOSE:
            received = self._protocol.close_rcvd
            if received is not None:
                self._end("client", received.code, received.reason)
        elif opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if opcode is not Opcode.CONT:
                self._fragments_first = _TEXT if opcode is Opcode.TEXT else _BINARY
            self._fragments.append(bytes(event.data))
            if event.fin:
                payload, self._fragments = b"".join(self._fragments), []
                self.frames_in += 1
                if self.endpoint is not None:
                    self.endpoint.message(self._fragments_first, payload)

    def _settle(self) -> None:
        """Write what websockets wants written, and follow its state."""
        protocol = self._protocol
        if protocol.state in (State.CLOSING, State.CLOSED) and self.ended is None:
            sent = protocol.close_sent
            self._end("server", sent.code if sent else 1006, sent.reason if sent else "")
        for data in protocol.data_to_send():
            if data:
                self.write(data)
            else:
                self.hang_up()

    def accept(
        self, endpoint: Endpoint, headers: Sequence[tuple[str, str]] = (), trickle: float = 0.0
    ) -> None:
        """Answer the upgrade request with 101, or with what is wrong with it."""
        assert self.request is not None
        response = self._protocol.accept(self.request)
        for name, value in headers:
            response.headers[name] = value
        self._protocol.send_response(response)
        data = b"".join(self._protocol.data_to_send())
        if response.status_code != 101:
            self.write(data)
            self.hang_up()
            return
        if trickle > 0.0:
            self._trickle(data, trickle)
        else:
            self._out.append(data)  # leaves together with the first event
        self.endpoint = endpoint
        if self.host.ping_interval is not None:
            self._ping_timer = self.loop.call_later(self.host.ping_interval, self._ping)
        endpoint.opened()
        self.flush()

    def _trickle(self, data: bytes, interval: float, position: int = 0) -> None:
        """Write ``data`` one byte every ``interval`` seconds; what is written meanwhile queues behind it."""
        self.hold()
        if self.lost:
            return
        if position < len(data):
            self.write_past_hold(data[position : position + 1])
            self.loop.call_later(interval, self._trickle, data, interval, position + 1)
        else:
            self.let_go()

    def refuse(self, response: Response) -> None:
        """Answer the upgrade request with another status than 101."""
        self._protocol.send_response(response)

    # -- sending ----------------------------------------------------------------

    def send(self, payload: bytes, first: int = _TEXT) -> None:
        """Send one message now."""
        self.queue(payload, first)
        self.flush()

    def queue(self, payload: bytes, first: int = _TEXT) -> None:
        """Send one message with the next flush, which comes at the latest when the input is used up."""
        if self._protocol.state is State.OPEN:
            self.frames_out += 1
            self._out.append(frame(first, payload))

    def flush(self) -> None:
        out = self._out
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self.write(data)

    def write(self, data: bytes) -> None:
        """Write bytes, whatever they are."""
        if self._held is not None:
            self._held.append(data)
        else:
            self.write_past_hold(data)

    def write_past_hold(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def hold(self) -> None:
        """Keep back what is written until :meth:`let_go`."""
        if self._held is None:
            self._held = []

    def let_go(self) -> None:
        if self._stalled:
            return
        held, self._held = self._held, None
        for data in held or ():
            self.write(data)
        if self._hang_up_later:
            self.hang_up()

    def stall(self) -> None:
        """Neither read nor write any more."""
        self.flush()
        self._stalled = True
        self.hold()
        with contextlib.suppress(RuntimeError):
            self.transport.pause_reading()

    # -- keepalive and the end -----------------------------------------------------

    def _ping(self) -> None:
        self._ping_timer = None
        if not self.open or self._stalled:
            return
        self._protocol.send_ping(b"keepalive")
        self._settle()
        if self.host.ping_timeout is not None and self._pong_timer is None:
            self._pong_timer = self.loop.call_later(self.host.ping_timeout, self._no_pong)
        if self.host.ping_interval is not None:
            self._ping_timer = self.loop.call_later(self.host.ping_interval, self._ping)

    def _no_pong(self) -> None:
        self._pong_timer = None
        self.close(1011, "keepalive ping timeout")

    def fail(self, code: int, reason: str) -> None:
        """End the connection because of what the client sent."""
        self.flush()
        self._protocol.fail(code, reason)
        self._settle()

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; the TCP connection follows within a few seconds."""
        if not self.open:
            return
        self.flush()
        while len(reason.encode()) > 123:
            reason = reason[:-1]
        self._protocol.send_close(code, reason)
        self._settle()
        if not self._stalled:  # a frozen process does not do that either
            self._close_timer = self.loop.call_later(_CLOSE_TIMEOUT, self.abort)

    def hang_up(self) -> None:
        """Close the TCP connection (FIN) once everything is written."""
        self._end("server", 1006, "")
        if self._held is not None:
            self._hang_up_later = True
        elif not self.lost:
            self.transport.close()

    def abort(self) -> None:
        """Drop the TCP connection now."""
        if self.made and not self.lost:
            self._end("server", 1006, "")
            self.transport.abort()

    def _end(self, by: str, code: int, reason: str) -> None:
        if self.ended is None:
            self.ended = (by, code, reason)
            if self.endpoint is not None:
                self.endpoint.closed()
            self.host.wire_closing(self)


class EchoEndpoint:
    """Sends every message back."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._queue: Any = wire.queue

    def opened(self) -> None:
        pass

    def message(self, first: int, payload: bytes) -> None:
        if first == _TEXT:
            try:
                str(payload, "utf-8")
            except UnicodeDecodeError:
                self._wire.fail(1007, "invalid UTF-8")
                return
        self._queue(payload, first)

    def closed(self) -> None:
        pass
