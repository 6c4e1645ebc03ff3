"""The byte stream under a WebSocket: a non-blocking socket, TLS through memory buffers.

Why not ``SSLSocket``: OpenSSL forbids one thread to read an SSL object while
another writes it, and a lock around a blocking ``SSL_read`` would make the
writer wait for the peer. Here OpenSSL only ever works on memory
(:class:`ssl.MemoryBIO`), under a lock that is never held across a system call;
the waiting is done on the descriptor, to a deadline, outside every lock.

The object also plays the part of the socket that websocket-client is given for
its opening handshake (``socket=``): it reads the answer whole, with bounds the
library does not have, and writes the headers that carry secrets itself, so
that the library never sees them.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import cast

__all__ = ["Stream", "UpgradeRefused"]

MAX_HEAD = 32 * 1024  # bytes of an HTTP answer's head; real ones have 1 to 2 KiB
MAX_BODY = 4 * 1024  # bytes kept of the body that explains a refusal
SCRATCH = 64 * 1024
RECORD = 16384  # bytes that TLS encrypts at a time, at most
ENCRYPTED = RECORD + 256 + 5  # and what becomes of them (RFC 8446, 5.2)
LONGEST_WAIT = 1e6  # seconds; poll(2) takes no more than 24 days at once, and no infinity

#: What websocket-client checks in the answer. Nothing else is passed on to it,
#: above all no Set-Cookie, which would enter its process-wide cookie jar.
_PASSED_ON = (b"upgrade", b"connection", b"sec-websocket-accept", b"sec-websocket-protocol")


class UpgradeRefused(Exception):
    """The server answered the upgrade with something other than 101."""

    def __init__(self, status: int, headers: dict[str, str], body: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers
        self.body = body


def _unchunked(body: bytes) -> bytes:
    """What chunks (RFC 9112, 7.1) hold, as far as they go."""
    text = b""
    while body:
        line, _, body = body.partition(b"\r\n")
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            size = 0
        if size <= 0:
            break
        text, body = text + body[:size], body[size + 2 :]
    return text


class _Scratch(threading.local):
    """Room for ciphertext, one per receiving thread rather than one per connection."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(SCRATCH))


_scratch = _Scratch()


class Stream:
    """A connected socket, with or without TLS.

    ``end`` is everywhere a time of ``time.monotonic`` by which the call must be
    over; ``None`` waits for ever, 0 not at all (``BlockingIOError``).

    One thread may be in :meth:`fill` and one in :meth:`write` at the same time;
    the caller sees to it that there are not two of either.
    """

    #: websocket-client's ``shutdown()`` reads this attribute of its socket.
    _closed = False

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.tls: ssl.SSLObject | None = None
        #: Bytes accepted by write() that the kernel did not take before the deadline.
        #: They stay first in line: the stream is never torn inside a frame.
        self.unsent: bytes | memoryview = b""
        self._ahead = b""  # bytes read past the head of an HTTP answer
        self._more = False  # OpenSSL holds decrypted bytes
        self._flowing = False  # the last read was filled
        self._tls_lock = threading.Lock()  # guards the SSL object and its two buffers
        # Guards the descriptor's number between abort() in one thread and close() in
        # another. Reentrant: a signal handler may abort what its thread is closing.
        self._end_lock = threading.RLock()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._look = select.poll()  # for has_arrived(), which a thread in fill() must not disturb
        self._look.register(sock, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)
        self._exchange: io.BytesIO | None = None
        self._exchange_end: float | None = None
        self._secret_headers: Callable[[], list[tuple[str, str]]] | None = None
        self._resource = ""

    def __del__(self) -> None:
        # The owner lets go without closing when it cannot know whether somebody is
        # still inside: see Transport.release. Now nobody is.
        with contextlib.suppress(AttributeError):  # the constructor failed
            self.sock.close()

    # -- TLS

    def start_tls(
        self,
        context: ssl.SSLContext,
        server_hostname: str,
        session: ssl.SSLSession | None,
        end: float | None,
    ) -> None:
        """Do the TLS handshake. Raises ``ssl.SSLError``, ``OSError`` or ``TimeoutError``."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        # What came right behind a proxy's answer came through the tunnel: it is
        # ciphertext like the rest, and must not pass for something decrypted.
        self._incoming.write(self._ahead)
        self._ahead = b""
        tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_hostname, session=session
        )
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._push(self._outgoing.read(), end)
                self._read_ciphertext(end)  # at EOF, the next do_handshake raises SSLEOFError
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # the alert tells the peer why
                    self._push(self._outgoing.read(), 0)
                raise
        self._push(self._outgoing.read(), end)
        self.tls = tls

    # -- waiting

    def _wait(self, poll: select.poll, end: float | None) -> None:
        if end is None:
            poll.poll()
            return
        left = end - time.monotonic()
        if left < 0 or not poll.poll(min(left, LONGEST_WAIT) * 1000):
            raise TimeoutError("timed out")

    def holds_bytes(self) -> bool:
        """Whether bytes that have left the kernel wait in this object, decrypted or not."""
        if self._ahead or self._more:
            return True
        return self.tls is not None and self._incoming.pending > 0

    def has_bytes(self) -> bool:
        """Whether reading would not block: bytes, the peer's end, or an error are waiting."""
        # The kernel first: what another thread takes from it meanwhile is found here.
        return self.has_arrived() or self.holds_bytes()

    def has_arrived(self) -> bool:
        """Whether the kernel holds something of this stream: bytes, the peer's end, or an error."""
        if self._closed:
            return True
        try:
            return bool(self._look.poll(0))
        except RuntimeError:  # a poll object serves one thread at a time, and another is looking
            poll = select.poll()
            try:
                poll.register(self.sock, select.POLLIN)
            except ValueError:  # closed at this moment
                return True
            return bool(poll.poll(0))

    # -- reading

    def fill(self, view: memoryview, end: float | None) -> int:
        """Read what has arrived into ``view``, waiting for the first byte; return how much, 0 at the end."""
        if self._ahead:
            size = min(len(view), len(self._ahead))
            view[:size] = self._ahead[:size]
            self._ahead = self._ahead[size:]
            return size
        tls = self.tls
        if tls is None:
            return self._receive(view, end)
        incoming = self._incoming
        while True:
            # Asking OpenSSL when there is no whole record for it costs an exception, as much as to
            # decrypt a long one. So as long as more arrives, there is always one.
            if incoming.pending < ENCRYPTED and self._in_flow(end):
                try:
                    self._read_ciphertext(0)
                except BlockingIOError:
                    pass
                except OSError:
                    if not (self._more or incoming.pending):
                        raise
                    # What came before is given first, as the kernel does; then the end of the stream.
            if self._more or incoming.pending or incoming.eof:
                size, room = 0, len(view)
                least = ENCRYPTED if self._flowing else 1
                try:
                    with self._tls_lock:
                        size = got = cast(int, tls.read(room, view))  # with a buffer, it returns the size
                        while got and size < room and incoming.pending >= least:
                            # A record at a time, as OpenSSL gives them: small ones come in crowds.
                            got = cast(int, tls.read(room - size, view[size:]))
                            size += got
                        self._more = not got or (size == room and tls.pending() > 0)
                    return size
                except ssl.SSLError as error:
                    if size:  # the end, or what is wrong, is told at the next call
                        self._more = not isinstance(error, ssl.SSLWantReadError)
                        return size
                    if isinstance(error, (ssl.SSLZeroReturnError, ssl.SSLEOFError)):
                        return 0
                    if not isinstance(error, ssl.SSLWantReadError):
                        raise
                    self._more = False
            self._read_ciphertext(end)

    def _receive(self, view: memoryview, end: float | None) -> int:
        wait = end != 0 and not self._in_flow(end)
        while True:
            if wait:
                self._wait(self._readable, end)
            try:
                size = self.sock.recv_into(view)
            except BlockingIOError:  # also after poll(2), which may report what recv(2) does not find
                self._flowing = False
                if end == 0:
                    raise
                wait = True
            else:
                self._flowing = size == len(view)
                return size

    def _in_flow(self, end: float | None) -> bool:
        """Whether to read without asking first whether there is something: one system call less.

        Where the last read was filled there most likely is. But a peer that never
        pauses must not keep us beyond the deadline, which is looked at while asking.
        """
        return self._flowing and (not end or time.monotonic() < end)

    def _read_ciphertext(self, end: float | None) -> None:
        # What it once held stays with OpenSSL's memory for good: never more than SCRATCH.
        scratch = _scratch.view[: SCRATCH - self._incoming.pending]
        size = self._receive(scratch, end)
        with self._tls_lock:
            if size:
                self._incoming.write(scratch[:size])
            else:
                self._incoming.write_eof()

    # -- writing

    def write(self, data: bytes | memoryview, end: float | None) -> None:
        """Write ``data`` after whatever an earlier call left over.

        Raises:
            TimeoutError: The kernel did not take all of it; the rest goes first next time.
            BlockingIOError: The same, for ``end=0``.
            OSError: The connection is broken.
        """
        tls = self.tls
        if tls is not None and data:
            # `with`, although it takes longer than acquire and release: between those and their `try`
            # an exception may strike, and nobody would get the lock any more.
            with self._tls_lock:
                size = tls.write(data)  # all of it, unless OpenSSL is told to return after each record
                while size < len(data):
                    size += tls.write(data[size : size + 65536])
                data = self._outgoing.read()
        if data and not self.unsent:  # nearly always the kernel takes all of it
            try:
                size = self.sock.send(data)
            except OSError:  # whatever it is, it comes again, where the rest is kept
                size = 0
            if size == len(data):
                return
            data = memoryview(data)[size:]
        self._push(data, end)

    def _push(self, data: bytes | memoryview, end: float | None) -> None:
        if self.unsent:
            data = bytes(self.unsent) + data
        try:
            while data:
                try:
                    size = self.sock.send(data)
                except BlockingIOError:
                    if end == 0:
                        raise
                    self._wait(self._writable, end)
                    continue
                data = memoryview(data)[size:] if size < len(data) else b""
        finally:
            self.unsent = data

    # -- the end

    def end_sending(self) -> None:
        """Tell the peer that nothing more will come, without waiting. Counts as writing."""
        with contextlib.suppress(OSError):
            if self.tls is not None:
                with self._tls_lock:
                    with contextlib.suppress(ssl.SSLError):  # it would go on to read the peer's close_notify
                        self.tls.unwrap()
                    alert = self._outgoing.read()
                self._push(alert, 0)
        with self._end_lock, contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def at_end(self) -> bool:
        """Throw away what has arrived, without waiting; return whether the peer has ended the stream."""
        try:
            for _ in range(64):  # a peer that never pauses does not keep us here
                if not self.sock.recv(65536):
                    return True
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    def abort(self) -> None:
        """End the connection in both directions: whoever waits in it wakes at once. Never blocks."""
        with self._end_lock, contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor. Nobody may be inside :meth:`fill` or :meth:`write`."""
        with self._end_lock:
            self._closed = True
            self.sock.close()

    def forget(self) -> None:
        """Close this process's copy of the descriptor, with no effect on the wire (after a fork)."""
        self._closed = True  # no lock: a thread that does not exist here may have held it
        self.sock.close()  # close(2) of one of two copies sends nothing

    def fileno(self) -> int:
        return self.sock.fileno()

    # -- the socket that websocket-client's opening handshake uses

    def begin_upgrade(
        self,
        end: float | None,
        secret_headers: Callable[[], list[tuple[str, str]]],
        resource: str = "/",
    ) -> None:
        """Arm :meth:`send` and :meth:`recv` for one HTTP exchange that must be over at ``end``.

        The library asks for "/"; ``resource`` goes out instead, since a query may hold a key.
        """
        self._exchange = None
        self._exchange_end = end
        self._secret_headers = secret_headers
        self._resource = resource

    def send(self, data: bytes) -> int:
        """Write the library's request, with our headers put in before the empty line at its end."""
        problem = self._send_request(data)
        if problem is not None:
            raise problem  # from here: no frame of its traceback has held a secret
        return len(data)

    def _send_request(self, data: bytes) -> BaseException | None:
        take, self._secret_headers = self._secret_headers, None
        resource, self._resource = self._resource, ""
        try:
            assert take is not None, "websocket-client sends its request in one call"
            assert data.endswith(b"\r\n\r\n"), "websocket-client sends its request in one call"
            data = data.replace(b"GET / ", f"GET {resource} ".encode(), 1)
            lines = "".join(f"{name}: {value}\r\n" for name, value in take())
            self.write(data[:-2] + lines.encode("latin-1") + b"\r\n", self._exchange_end)
        except UnicodeEncodeError:  # which holds the text itself
            return ValueError("a header has a character that HTTP cannot carry")
        except BaseException as error:
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)
        return None

    def recv(self, size: int) -> bytes:
        """Give the library the part of the answer that it checks, read whole beforehand."""
        if self._exchange is None:
            self._exchange = io.BytesIO(self.read_answer(self._exchange_end, accept=101))
        if size != 1:
            return self._exchange.read(size)
        # It reads byte by byte, to the end of a line: what is before that may come at once,
        # as it only compares each piece with a newline. A tenth of the time a connection takes.
        line = self._exchange.readline()
        if len(line) < 2 or not line.endswith(b"\n"):
            return line
        self._exchange.seek(-1, io.SEEK_CUR)
        return line[:-1]

    def read_answer(self, end: float | None, *, accept: int) -> bytes:
        """Read the head of an HTTP answer; return its status line and the few headers that matter.

        Raises:
            UpgradeRefused: The status is not ``accept``. Its body is read, up to 4 KiB.
            OSError: The peer ended the connection, or its answer is not HTTP or has no end.
        """
        status = 0
        while status != accept and (status == 0 or 100 <= status < 200):  # 103 Early Hints and the like
            first, *lines = self._read_head(end).split(b"\r\n")
            try:
                version, code = first.split(b" ", 2)[:2]
                status = int(code)
            except ValueError:
                version = b""
            if not version.startswith(b"HTTP/1."):
                raise OSError("the answer is not HTTP/1.1")
        pairs = [
            (name.strip().lower(), value.strip()) for name, _, value in (x.partition(b":") for x in lines)
        ]
        if status != accept:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
            raise UpgradeRefused(status, headers, self._read_body(headers, end))
        kept = [name + b": " + value for name, value in pairs if name in _PASSED_ON]
        return b"\r\n".join([first, *kept, b"", b""])

    def _read_head(self, end: float | None) -> bytes:
        head = bytearray()
        while (stop := head.find(b"\r\n\r\n")) < 0:
            if len(head) > MAX_HEAD:
                raise OSError(f"the head of the answer is above {MAX_HEAD} bytes")
            if not self._append(head, end):
                raise OSError("the connection was closed before an answer came")
        self._ahead = bytes(head[stop + 4 :])
        return bytes(head[:stop])

    def _read_body(self, headers: dict[str, str], end: float | None) -> str:
        # Best effort: it only explains. A peer that trickles must not hold us for long.
        chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length", "")
        want = min(int(length), MAX_BODY) if length.isascii() and length.isdigit() else MAX_BODY
        soon = time.monotonic() + 1.0
        end = soon if end is None else min(end, soon)
        body = bytearray(self._ahead)
        self._ahead = b""
        with contextlib.suppress(OSError):
            while len(body) < want and not (chunked and body.endswith(b"0\r\n\r\n")):
                if not self._append(body, end):
                    break
        text = bytes(body[:want])
        return (_unchunked(text) if chunked else text).decode("utf-8", "replace")

    def _append(self, data: bytearray, end: float | None) -> int:
        chunk = memoryview(bytearray(4096))
        size = self.fill(chunk, end)
        data += chunk[:size]
        return size

    def gettimeout(self) -> float:
        return 1.0  # only asked whether it is zero; the deadline is ours

    def settimeout(self, timeout: float | None) -> None:
        """Ignored: every call here has its own deadline."""

    def shutdown(self, how: int) -> None:
        self.abort()
