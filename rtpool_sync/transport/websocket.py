"""The WebSocket itself: websocket-client's class with its receiving, sending and closing replaced.

What stays the library's: URL and request of the opening handshake, the check of
the answer, the object's identity for existing code. What is ours, and why:

- receiving: a buffer per connection instead of several system calls per frame,
  UTF-8 checked at C speed, a size limit, deadlines that lose nothing;
- sending: a deadline, and a timed-out frame that keeps its tail;
- control frames: answered by whoever reads, never behind a stalled sender;
- closing: bounded whoever is reading.

Threads: one may receive while one sends. ``readlock`` is held by the one that
receives, also while it waits; ``_write_lock`` by the one that writes. Nobody
waits for either without a deadline.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import websocket

from ..errors import ConnectionLost, ConnectionReturned, MessageTooBig, RecvTimeout, redact
from .frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, build_frame, close_payload
from .stream import RECORD, Stream

__all__ = ["Transport"]

BUFFER = 65536  # frames up to this size are parsed in place; also the read size
ROOM = 2 * BUFFER  # so that behind what one read has brought, the last frame of it can be completed
NO_BUFFER = memoryview(b"")
FIRST_BUFFER = 4096  # enough for pings and short answers; the other comes when this one was full
READ_AHEAD = 1 << 20  # bytes drain() keeps for a borrower that is not receiving
OVERHEAD = 64  # bytes that keeping a message costs besides its length
AT_ONCE = 2000  # control frames and fragments that one call takes which must not wait
MAX_QUEUED = 100  # frames in line behind a stalled sender; beyond that, pings stay unanswered
LETTING_GO = 0.5  # seconds after abort() in which everybody should have left the connection

monotonic = time.monotonic


class _End:
    """Why a connection ended: enough to raise a new exception for each caller."""

    def __init__(self, kind: type[ConnectionLost], message: str, code: int, reason: str) -> None:
        self.kind, self.message, self.code, self.reason = kind, message, code, reason

    def error(self, sent: bool) -> ConnectionLost:
        return self.kind(self.message, code=self.code, reason=self.reason, sent=sent)


def _is_deadline(error: OSError) -> bool:
    """Whether a call of ours ran out of time; the kernel's ETIMEDOUT means that the connection is dead."""
    return isinstance(error, TimeoutError) and error.errno is None


def _lock_timeout(timeout: float | None) -> float:
    """``timeout`` as ``Lock.acquire`` takes it."""
    return -1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)


def _after(count: int) -> Callable[[], bool]:
    """Return a function that says True from its ``count``-th call on."""
    calls = iter(range(count - 1))
    return lambda: next(calls, None) is None


class Transport(websocket.WebSocket):
    """A client WebSocket with deadlines, made by :class:`~rtpool_sync.transport.Dial`.

    Public attributes, besides those of ``websocket.WebSocket``:

    Attributes:
        owner: The token that :meth:`recv` and :meth:`send` must show. The pool
            changes it when the connection changes hands, so that a call of an
            earlier borrower can never reach into a later session.
        damaged: An operation was interrupted half-way: the stream cannot be trusted.
        ended: Whether either side closed or lost the connection.
        rtt: Seconds the last answered ping took, or ``None``.
        last_heard: ``time.monotonic()`` when bytes last arrived.
    """

    sock: Stream | None  # type: ignore[assignment]

    __slots__ = (  # faster than the dictionary that the library's own attributes are in, and a kilobyte less
        "_aborted_at",
        "_close_code",
        "_close_sent",
        "_control",
        "_end_reason",
        "_inbox",
        "_inbox_bytes",
        "_large",
        "_parts",
        "_parts_opcode",
        "_parts_size",
        "_ping_due",
        "_pings",
        "_pong_waiters",
        "_pos",
        "_receivers",
        "_stop",
        "_view",
        "_write_lock",
        "bytes_received",
        "bytes_sent",
        "damaged",
        "last_heard",
        "max_size",
        "messages_received",
        "messages_sent",
        "owner",
        "rtt",
    )

    def __init__(self, *args: Any, max_size: int = 1 << 24, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_size = max_size
        self.owner: object = None
        self.damaged = False
        self.rtt: float | None = None
        self.last_heard = monotonic()
        self.messages_received = self.bytes_received = 0  # written under readlock
        self.messages_sent = self.bytes_sent = 0  # written under _write_lock
        self._write_lock = threading.Lock()  # guards writing to the stream, and the send counters
        self._end_reason: _End | None = None
        self._close_sent = False
        self._close_code: int | None = None  # of the peer's close frame
        self._inbox: deque[str | bytes] = deque()  # received while nobody was in recv(), oldest first
        self._inbox_bytes = 0  # what they take up; written under readlock
        self._receivers: list[object] = []  # one entry for each thread that waits for its turn in recv()
        self._control: list[bytes] = []  # frames to write as soon as the write lock is free; mostly none
        self._pings: dict[bytes, float] = {}  # payload -> when it was sent
        self._ping_due: float | None = None  # when the oldest unanswered keepalive was sent
        self._pong_waiters: list[threading.Event] = []
        self._view = NO_BUFFER
        self._pos = self._stop = 0  # the unparsed bytes are _view[_pos:_stop]
        self._large: tuple[int, memoryview, int] | None = None  # a frame above BUFFER: first byte, room, fill
        self._parts: bytearray | None = None  # of a fragmented message that is not complete
        self._parts_size = 0
        self._parts_opcode = 0
        self._aborted_at: float | None = None

    # -- state

    @property
    def stream(self) -> Stream:
        stream = self.sock
        if stream is None:
            self._raise_ended()
        return stream

    @property
    def ended(self) -> bool:
        return self._end_reason is not None

    @property
    def peer_closed(self) -> bool:
        """Whether the peer's close frame arrived, or its end of the stream."""
        return self._close_code is not None or (
            self._end_reason is not None and self._end_reason.code == 1006
        )

    @property
    def end_error(self) -> ConnectionLost | None:
        """A new exception that says how the connection ended; ``None`` while it is open."""
        end = self._end_reason
        return None if end is None else end.error(self.messages_sent > 0)

    @property
    def has_unread(self) -> bool:
        """Whether received bytes wait in this object, whole messages or not, decrypted or not."""
        if self._inbox or self._stop > self._pos or self._large is not None or self._parts is not None:
            return True
        stream = self.sock
        return stream is not None and stream.holds_bytes()

    @property
    def busy(self) -> bool:
        """Whether some thread is receiving or sending right now."""
        return self.readlock.locked() or self._write_lock.locked()

    def is_clean(self) -> bool:
        """Whether nothing of the last session is left in this object: not a byte either way.

        To be asked when it has no :attr:`owner` any more: then nobody begins anything.
        """
        # First of all who is still inside: what they leave behind is found by the rest.
        if self.readlock.locked() or self._write_lock.locked():
            return False
        stream = self.sock
        if stream is None or self.damaged or self._end_reason is not None or self._control:
            return False
        if self._inbox or self._stop > self._pos or self._large is not None or self._parts is not None:
            return False
        return not (stream.unsent or stream.holds_bytes())

    def is_quiet(self) -> bool:
        """Whether nothing has arrived since it was clean, nor its end, and nobody is receiving.

        It is the owner's to ask, who knows that nobody has read from it since.
        """
        stream = self.sock
        return stream is not None and not stream.has_arrived() and not self.readlock.locked()

    def has_bytes(self) -> bool:
        """Whether the kernel holds something for this connection: data, its end, or an error."""
        stream = self.sock
        return stream is None or stream.has_bytes()

    def fileno(self) -> int:
        stream = self.sock
        return -1 if stream is None else stream.fileno()

    def silence(self, now: float) -> float:
        """Seconds for which a sent keepalive ping has gone without any sign of life; 0 if none is due."""
        due = self._ping_due
        if due is None or (self._inbox_bytes >= READ_AHEAD and self._stop > self._pos):
            return 0.0  # the latter: behind what nobody takes, its answer may have arrived
        return now - max(due, self.last_heard)

    def _raise_ended(self) -> NoReturn:
        end = self._end_reason or _End(ConnectionLost, "the connection is closed", 1006, "")
        raise end.error(self.messages_sent > 0)

    # -- receiving

    def recv(self, timeout: float | None = None, owner: object = None) -> str | bytes:
        """Return the next message.

        Args:
            timeout: Seconds to wait at most, 0 for what has arrived; ``None`` for no limit of this call.
            owner: The token of the borrower, compared with :attr:`owner`.

        Raises:
            RecvTimeout: Nothing whole arrived in time. Nothing is lost.
            ConnectionLost: The connection ended (also :class:`MessageTooBig`).
            ConnectionReturned: It is someone else's by now.
        """
        if timeout is None:
            end, enough = None, None
        elif timeout > 0:
            end, enough = monotonic() + timeout, None
        else:
            end, enough = 0.0, _after(AT_ONCE)
        lock = self.readlock
        if not lock.acquire(False) and not self._wait_for_turn(timeout):
            raise RecvTimeout(f"nothing received within {timeout:.2f} s: another thread is receiving")
        try:
            if owner is not self.owner:
                raise ConnectionReturned("the connection was returned to its pool")
            if self._inbox:
                message = self._inbox.popleft()
                self._inbox_bytes -= len(message) + OVERHEAD
            else:
                message = self._message(end, enough)
            if owner is not self.owner:  # returned while we waited: the message is not ours to give
                self.damaged = True
                raise ConnectionReturned("the connection was returned to its pool")
            return message
        except (TimeoutError, BlockingIOError):
            pass
        except (ConnectionLost, ConnectionReturned):
            raise
        except BaseException:
            self.damaged = True  # interrupted anywhere: a message may be lost
            raise
        finally:
            lock.release()
            if self._pong_waiters:
                self._wake_pong_waiters()
        raise RecvTimeout(f"nothing received within {timeout:.2f} s")

    def _wait_for_turn(self, timeout: float | None) -> bool:
        """Wait for the readlock; a thread that only waits for a pong makes room meanwhile."""
        self._receivers.append(None)
        try:
            return self.readlock.acquire(timeout=_lock_timeout(timeout))
        finally:
            self._receivers.pop()

    def _fill(self, view: memoryview, end: float | None) -> int:
        try:
            size = self.stream.fill(view, end)
        except BlockingIOError:
            raise
        except OSError as error:
            if _is_deadline(error):
                raise
            problem = error.strerror or type(error).__name__
        else:
            if size:
                self.last_heard = monotonic()
                return size
            problem = "end of stream without a close frame"
        self._lost(problem)

    def _need(self, size: int, end: float | None) -> None:
        """Have ``size`` bytes in a row at ``_pos``; ``size`` is at most BUFFER."""
        while (have := self._stop - self._pos) < size:
            room = len(self._view)
            if room < size or self._stop == room < ROOM:
                self._make_room(ROOM if room or size > FIRST_BUFFER else FIRST_BUFFER)
            elif not have:
                self._pos = self._stop = 0
            elif room - self._pos < size or room - self._stop < 512:
                self._make_room(room)
            # A long frame is read to its end: what came behind it would have to be moved for the next.
            most = size - have if size > RECORD else BUFFER
            self._stop += self._fill(self._view[self._stop : self._stop + most], end)

    def _make_room(self, size: int) -> None:
        """Have what is unparsed at the front of a buffer of ``size`` bytes."""
        rest = self._view[self._pos : self._stop]
        if len(self._view) != size:
            # Mapped, the large one goes back to the system and leaves no hole in the heap.
            small = size == FIRST_BUFFER
            room = bytearray(size) if small else mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
            self._view = memoryview(room)
        self._view[: len(rest)] = rest  # may overlap
        self._pos, self._stop = 0, len(rest)

    def rest(self) -> None:
        """Keep no buffer, as long as nothing is in it. Does nothing while somebody is receiving."""
        if self._view and self.readlock.acquire(False):
            try:
                self._drop_buffer()
            finally:
                self._stop_reading()

    def _drop_buffer(self) -> None:
        if self._pos == self._stop:
            self._view, self._pos, self._stop = NO_BUFFER, 0, 0

    def _frame(self, end: float | None) -> tuple[int, int, memoryview]:
        """Return first byte's opcode and FIN, and the payload: valid until the next read."""
        if self._end_reason is not None:
            self._raise_ended()
        if self._large is not None:
            return self._large_frame(end)
        pos = self._pos
        if self._stop - pos < 2:
            self._need(2, end)
            pos = self._pos
        view = self._view
        first, size, header = view[pos], view[pos + 1], 2
        if size > 125:
            if size > 127:
                self.fail(1002, "the server sent a masked frame")
            header = 4 if size == 126 else 10
            if self._stop - pos < header:
                self._need(header, end)
                view, pos = self._view, self._pos
            if size == 126:
                size = view[pos + 2] << 8 | view[pos + 3]
            else:
                size = int.from_bytes(view[pos + 2 : pos + 10], "big")
        if first != 0x81:  # anything but a whole text message
            opcode = first & 0x0F
            if first & 0x70 or 0x3 <= opcode <= 0x7 or opcode > PONG:
                self.fail(1002, f"a frame begins with 0x{first:02x}")
            if opcode & 0x8 and (size > 125 or not first & 0x80):
                self.fail(1002, "a control frame is fragmented or too long")
        if size + self._parts_size > self.max_size and not first & 0x8:
            self.fail(1009, f"a message above {self.max_size} bytes", MessageTooBig)
        if header + size > BUFFER and self._stop - pos < header + size:
            room = memoryview(bytearray(size))
            have = self._stop - pos - header
            room[:have] = self._view[pos + header : self._stop]
            self._pos = self._stop = 0
            self._large = first, room, have
            return self._large_frame(end)
        if self._stop - pos < header + size:
            self._need(header + size, end)
            pos = self._pos
        start = pos + header
        self._pos = start + size
        return first & 0x0F, first & 0x80, self._view[start : start + size]

    def _large_frame(self, end: float | None) -> tuple[int, int, memoryview]:
        # Read straight into its own room; kept between calls, so a timeout loses nothing.
        assert self._large is not None
        first, room, have = self._large
        while have < len(room):
            have += self._fill(room[have:], end)
            self._large = first, room, have
        self._large = None
        return first & 0x0F, first & 0x80, room

    def _message(self, end: float | None, enough: Callable[[], bool] | None = None) -> str | bytes:
        """Return the next message, handling control frames on the way.

        ``enough`` is asked after each frame that completes no message; if it
        says so, ``BlockingIOError`` is raised, and nothing is lost.
        """
        while True:
            # Nearly always: a whole text message below 64 KiB that is here already. What follows would
            # come to the same, in half as much time again as a short message takes.
            view, pos = self._view, self._pos
            have = self._stop - pos
            if self._end_reason is None and have > 3 and view[pos] == 0x81 and self._parts is None:
                size = view[pos + 1]
                start = pos + 2
                if size > 125:
                    size = view[start] << 8 | view[start + 1] if size == 126 else have
                    start = pos + 4
                pos = start + size
                if pos <= self._stop and size <= self.max_size:
                    self._pos = pos
                    self.messages_received += 1
                    self.bytes_received += size
                    return self._text(view[start:pos])
            opcode, final, payload = self._frame(end)
            if opcode == TEXT and final and self._parts is None:
                self.messages_received += 1
                self.bytes_received += len(payload)
                return self._text(payload)
            if opcode & 0x8:
                self._control_frame(opcode, bytes(payload))
                if enough is not None and enough():
                    raise BlockingIOError
                continue
            if (opcode == CONTINUATION) != (self._parts is not None):
                self.fail(1002, "a continuation frame is missing or out of place")
            if self._parts is None:
                self._parts, self._parts_opcode = bytearray(), opcode
            self._parts += payload
            self._parts_size = len(self._parts)
            if final:
                body = bytes(self._parts)
                self._parts, self._parts_size = None, 0
                self.messages_received += 1
                self.bytes_received += len(body)
                return body if self._parts_opcode == BINARY else self._text(body)
            if enough is not None and enough():
                raise BlockingIOError

    def _text(self, payload: memoryview | bytes) -> str:
        try:
            return str(payload, "utf-8")  # validation and decoding in one pass, in C
        except UnicodeDecodeError:
            pass
        self.fail(1007, "a text message is not UTF-8")

    def _control_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            if len(self._control) < MAX_QUEUED:  # one that pings and never reads must not fill our memory
                self._send_control(PONG, payload)
        elif opcode == PONG:
            sent_at = self._pings.pop(payload, None)
            if sent_at is not None:
                self.rtt = monotonic() - sent_at
                # RFC 6455, 5.5.3: an answer to a later ping answers the earlier ones too.
                # One by one: other threads add theirs meanwhile.
                for earlier, when in list(self._pings.items()):
                    if when <= sent_at:
                        self._pings.pop(earlier, None)
                self._ping_due = None
                self._wake_pong_waiters()
        else:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            reason = redact(payload[2:].decode("utf-8", "replace"))
            self._close_code = code
            if not self._close_sent:
                self._close_sent = True
                allowed = not payload or (1000 <= code < 5000 and code not in (1004, 1005, 1006, 1015))
                self._send_control(CLOSE, payload[:2] if allowed else close_payload(1002))
            text = f"the server closed the connection: {code}" + (f" ({reason})" if reason else "")
            self._finish(_End(ConnectionLost, text, code, reason))
            self._raise_ended()

    def drain(self, owner: object = None) -> bool:
        """Take in what has arrived, without ever waiting; return whether the connection is still open.

        Control frames are answered, messages kept in order for the next
        :meth:`recv`, up to 1 MiB beyond which the peer is left to wait. Does
        nothing when a thread is receiving: that one does the same.

        Args:
            owner: Do nothing if this borrower has returned it meanwhile; ``None`` takes it as it is.
        """
        if not self.readlock.acquire(False):
            return self._end_reason is None
        enough = _after(AT_ONCE)
        try:
            if owner is not None and owner is not self.owner:
                return self._end_reason is None
            while self._inbox_bytes < READ_AHEAD:
                self._append(self._message(0, enough))
        except BlockingIOError:
            self._drop_buffer()
        except ConnectionLost:
            return False
        except BaseException:
            self.damaged = True
            raise
        finally:
            self._stop_reading()
        self.flush()
        return True

    def take_unread(self) -> list[str | bytes]:
        """Take all messages that :meth:`drain` kept. For the owner of an idle or resetting connection.

        When :meth:`drain` has stopped at its limit this goes on where it did:
        what was read and not parsed wakes no selector. Like :meth:`drain`, it
        leaves everything to a thread that is receiving.
        """
        messages: list[str | bytes] = []
        for _ in range(16):  # and then the peer has to wait, whatever it goes on sending
            if not self.readlock.acquire(False):
                break
            try:
                stopped = self._inbox_bytes >= READ_AHEAD
                messages += self._inbox
                self._inbox.clear()
                self._inbox_bytes = 0
            finally:
                self._stop_reading()
            if not stopped:
                break
            self.drain()
        return messages

    def keep(self, message: str | bytes) -> None:
        """Keep a message, already taken, for the next :meth:`recv`."""
        with self.readlock:
            self._append(message)

    def _append(self, message: str | bytes) -> None:
        self._inbox.append(message)
        self._inbox_bytes += len(message) + OVERHEAD

    def _stop_reading(self) -> None:
        self.readlock.release()
        if self._pong_waiters:  # one of them goes on reading
            self._wake_pong_waiters()

    # -- sending

    def send(
        self, payload: str | bytes, opcode: int = TEXT, timeout: float = 30.0, owner: object = None
    ) -> int:
        """Send one message; return the number of bytes of its frame.

        Args:
            payload: Text is encoded as UTF-8.
            opcode: ``TEXT`` or ``BINARY``.
            timeout: Seconds until the kernel must have taken all of it.
            owner: The token of the borrower, compared with :attr:`owner`.

        Raises:
            TimeoutError: The peer does not read. What was begun stays first in line.
            ConnectionLost, ConnectionReturned: As for :meth:`recv`.
        """
        body = payload.encode() if isinstance(payload, str) else payload
        frame = build_frame(opcode, body)
        size = len(frame)
        end = monotonic() + timeout
        lock = self._write_lock
        if not lock.acquire(False) and not lock.acquire(timeout=_lock_timeout(timeout)):
            raise TimeoutError(f"not sent within {timeout:.2f} s: another thread is sending")
        try:
            if owner is not self.owner:
                raise ConnectionReturned("the connection was returned to its pool")
            if self._end_reason is not None or self._close_sent:
                self._raise_ended()
            self.messages_sent += 1  # also if it times out: its tail stays in line
            self.bytes_sent += len(body)  # of messages, not of frames: as they are received
            if self._control:
                frame = self._take_control() + frame
            self.stream.write(frame, end)
            return size
        except (ConnectionLost, ConnectionReturned):
            raise
        except OSError as error:
            problem = None if _is_deadline(error) else error.strerror or type(error).__name__
        except BaseException:
            self.damaged = True  # interrupted anywhere: part of the frame may be written
            raise
        finally:
            lock.release()
            if self._control:
                self._flush_control()
        if problem is not None:
            self._writing_failed(problem)
        if self._end_reason is not None:
            self._raise_ended()
        raise TimeoutError(f"the peer did not take {size} bytes within {timeout:.2f} s")

    def _writing_failed(self, problem: str) -> NoReturn:
        """Raise why. What the peer said before it closed is the better reason, if it can be read.

        And it stays readable: the connection has not ended while there is
        something that a receiver would still get.
        """
        self.drain()
        if self._end_reason is not None:
            self._raise_ended()
        if not (self.readlock.locked() or self.has_bytes()):
            self._lost(problem)
        raise ConnectionLost(f"the connection was lost: {problem}", reason=problem, sent=True)

    def _send_control(self, opcode: int, payload: bytes) -> None:
        self._control.append(build_frame(opcode, payload))
        self._flush_control()

    def post(self, payload: str | bytes) -> None:
        """Send a text message without waiting; what the kernel does not take is left to :meth:`flush`."""
        body = payload.encode() if isinstance(payload, str) else payload
        self.messages_sent += 1
        self.bytes_sent += len(body)
        self._send_control(TEXT, body)

    def _take_control(self) -> bytes:
        # Not join and clear: other threads append meanwhile.
        frames = []
        while self._control:
            frames.append(self._control.pop(0))
        return b"".join(frames)

    def _flush_control(self) -> None:
        # Whoever holds the write lock writes them; nobody waits for it. The second
        # look closes the gap between the holder's last look and its release.
        while self._control and self._write_lock.acquire(False):
            try:
                stream = self.sock
                if stream is None:
                    self._control.clear()
                    return
                if stream.unsent:
                    stream.write(b"", 0)  # as long as that is stuck, the line stays here, where it is bounded
                stream.write(self._take_control(), 0)  # what the kernel does not take stays in stream.unsent
            except OSError:
                return
            except BaseException:
                self.damaged = True  # part of a frame may be written
                raise
            finally:
                self._write_lock.release()

    def flush(self) -> bool:
        """Try to write what is left over, without waiting; return whether nothing is."""
        stream = self.sock
        if stream is None:
            return True
        if (self._control or stream.unsent) and self._write_lock.acquire(False):
            try:
                stream.write(b"", 0)
            except OSError:
                return False
            except BaseException:
                self.damaged = True
                raise
            finally:
                self._write_lock.release()
            self._flush_control()
        return not (self._control or stream.unsent)

    # -- liveness

    def send_keepalive(self) -> None:
        """Send a ping without waiting for its answer; :meth:`silence` tells how long none came."""
        payload = os.urandom(8)
        now = monotonic()
        self._pings[payload] = now
        if self._ping_due is None:
            self._ping_due = now
        self._send_control(PING, payload)

    def ping(self, timeout: float = 5.0, owner: object = None) -> float:  # type: ignore[override]
        """Send a ping and wait for its answer; return the round trip in seconds.

        Messages that arrive meanwhile are kept for :meth:`recv`, also when
        another thread is receiving.

        Raises:
            TimeoutError: No answer in time.
            ConnectionLost, ConnectionReturned: As for :meth:`recv`.
        """
        end = monotonic() + timeout
        payload = os.urandom(8)
        woken = threading.Event()
        self._check(owner)
        self._pong_waiters.append(woken)
        try:
            self._pings[payload] = sent_at = monotonic()
            self._send_control(PING, payload)
            while payload in self._pings:
                self._check(owner)
                left = end - monotonic()
                if left <= 0:
                    raise TimeoutError(f"no answer to a ping within {timeout:.2f} s")
                woken.clear()
                if not self._read_until_pong(payload, end, owner):
                    woken.wait(min(left, 60.0))  # by whoever is receiving: at the answer, or when leaving
                elif self._receivers:
                    woken.wait(min(left, 0.05))  # one of them takes over
            return monotonic() - sent_at
        finally:
            self._pings.pop(payload, None)
            self._pong_waiters.remove(woken)

    def _check(self, owner: object) -> None:
        if owner is not self.owner:
            raise ConnectionReturned("the connection was returned to its pool")
        if self._end_reason is not None:
            self._raise_ended()

    def _read_until_pong(self, payload: bytes, end: float, owner: object) -> bool:
        """Receive until the ping is answered, time is up or another thread wants to; False if one does."""
        if not self.readlock.acquire(False):
            return False

        def enough() -> bool:
            return payload not in self._pings or bool(self._receivers) or owner is not self.owner

        try:
            while not enough():
                self._append(self._message(end, enough))
        except ConnectionLost:
            raise
        except (TimeoutError, BlockingIOError):
            pass
        except BaseException:
            self.damaged = True  # a message may be lost
            raise
        finally:
            self._stop_reading()
        return True

    def _wake_pong_waiters(self) -> None:
        for waiter in list(self._pong_waiters):
            waiter.set()

    # -- the end

    def _finish(self, end: _End) -> None:
        if self._end_reason is None:
            self._end_reason = end
        self.connected = False
        self._wake_pong_waiters()

    def _lost(self, problem: str) -> NoReturn:
        self._finish(_End(ConnectionLost, f"the connection was lost: {problem}", 1006, problem))
        self._raise_ended()

    def fail(self, code: int, reason: str, kind: type[ConnectionLost] = ConnectionLost) -> NoReturn:
        """Close because of what the peer did (RFC 6455, 7.1.7). Raises the reason."""
        self.start_close(code, reason)
        self._finish(_End(kind, f"closed with {code}: {reason}", code, reason))
        self._raise_ended()

    def start_close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame, without waiting. The answer is found by :meth:`drain`."""
        if not self._close_sent and self.sock is not None:
            self._close_sent = True
            self._send_control(CLOSE, close_payload(code, reason))

    def end_sending(self) -> None:
        """Half-close the stream, when everything is said. Does nothing while somebody is sending."""
        stream = self.sock
        if stream is not None and self._write_lock.acquire(False):
            try:
                stream.end_sending()
            finally:
                self._write_lock.release()

    def at_end(self) -> bool:
        """Whether the peer has ended the stream too; what still arrives is thrown away."""
        stream = self.sock
        return stream is None or stream.at_end()

    def lose(self, problem: str) -> None:
        """Declare the connection dead: whoever waits in it gets :class:`ConnectionLost` at once."""
        self._finish(_End(ConnectionLost, f"the connection was lost: {problem}", 1006, problem))
        self.abort()

    def abort(self) -> None:
        """End the stream in both directions. Wakes a blocked reader and writer; never blocks."""
        stream = self.sock
        if stream is not None:
            stream.abort()
            if self._aborted_at is None:
                self._aborted_at = monotonic()

    def release(self) -> bool:
        """Close the descriptor if nobody is using it; return whether this object has let go of it.

        A descriptor that is closed while another thread waits on it can come
        back under the same number as someone else's connection, so this waits
        its turn: call :meth:`abort` first, and again later when False.

        A lock that is still held a while after :meth:`abort` has most likely no
        holder any more: an exception struck between its acquisition and the
        ``try`` behind it. Then the stream is dropped and closes by itself, when
        the last thread that might be inside has left.
        """
        if self.sock is None:
            return True
        if not self.readlock.acquire(False):
            return self._let_go()
        try:
            if not self._write_lock.acquire(False):
                return self._let_go()
            try:
                self._finish(_End(ConnectionLost, "the connection is closed", 1006, "closed by the pool"))
                stream, self.sock = self.sock, None
                if stream is not None:
                    stream.close()
                self._view, self._large = NO_BUFFER, None
                self._control.clear()
                return True
            finally:
                self._write_lock.release()
        finally:
            self.readlock.release()

    def _let_go(self) -> bool:
        if self._aborted_at is None or monotonic() - self._aborted_at < LETTING_GO:
            return False
        self._finish(_End(ConnectionLost, "the connection is closed", 1006, "closed by the pool"))
        self.sock = None
        return True

    def close(self, status: int = 1000, reason: str = "", timeout: float = 10.0) -> None:  # type: ignore[override]
        """Do the closing handshake within ``timeout`` seconds, whoever is receiving; close the descriptor."""
        end = monotonic() + max(0.0, timeout)
        if self.sock is None:
            return
        self.start_close(status, reason)
        if self.readlock.acquire(timeout=_lock_timeout(timeout)):
            try:
                with contextlib.suppress(ConnectionLost, TimeoutError):
                    while self._end_reason is None:
                        self._message(end)  # what still arrives is nobody's any more
            finally:
                self.readlock.release()
        self._finish(_End(ConnectionLost, "the connection is closed", status, reason))
        self.abort()
        while not self.release() and monotonic() < end + 1.0:
            time.sleep(0.001)  # a reader or writer that abort() has just woken is on its way out

    def shutdown(self) -> None:
        """websocket-client's name for closing the descriptor at once."""
        self.abort()
        self.release()

    def forget(self) -> None:
        """Let go of an inherited connection in a forked child: nothing reaches the wire."""
        stream, self.sock = self.sock, None
        if stream is not None:
            stream.forget()
        message = "the connection belongs to the parent process"
        self._end_reason = _End(ConnectionLost, message, 1006, "forked")
        self.connected = False
