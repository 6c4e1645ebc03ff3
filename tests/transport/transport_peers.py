"""The other end, for tests of the transport: servers that do exactly what a test tells them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import pytest
import trustme

from rtpool_sync.transport import Dial, Endpoint, Transport

T = TypeVar("T")
L = TypeVar("L", bound="Listener")

PATIENCE = 10.0  # seconds after which whatever a test waits for has failed
SLACK = 1.0  # seconds that a busy machine may add to what takes no time

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def eventually(condition: Callable[[], T], timeout: float = PATIENCE) -> T:
    """Wait until ``condition`` holds and return its value."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)
    return value


@contextlib.contextmanager
def within(seconds: float, at_least: float = 0.0) -> Iterator[None]:
    """Assert that the block takes ``seconds`` at most, give or take SLACK, whether it raises or not."""
    start = time.monotonic()
    try:
        yield
    finally:
        took = time.monotonic() - start
        assert at_least <= took <= seconds + SLACK, f"took {took:.3f} s, not {at_least:g} to {seconds:g} s"


class Background(Generic[T]):
    """A function running in a thread; :meth:`result` returns or raises what it did."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="test-background", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self, timeout: float = PATIENCE) -> T:
        self.thread.join(timeout)
        assert self.done, "still running"
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def error(self, timeout: float = PATIENCE) -> BaseException:
        """The exception that the function ended with."""
        self.thread.join(timeout)
        assert self.done, "still running"
        assert self._error is not None, f"returned {self._value!r}"
        return self._error


def frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, rsv: int = 0, masked: bool = False
) -> bytes:
    """A frame as a server sends it, or as it must not."""
    first = opcode | (0x80 if final else 0) | rsv << 4
    mask = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        header = struct.pack("!BB", first, mask | size)
    elif size < 65536:
        header = struct.pack("!BBH", first, mask | 126, size)
    else:
        header = struct.pack("!BBQ", first, mask | 127, size)
    return header + (b"\0\0\0\0" if masked else b"") + payload


class Peer:
    """The server's end of one connection. Every wait is over after PATIENCE seconds."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.buffer = bytearray()

    def start_tls(self, context: ssl.SSLContext) -> Peer:
        self.sock = context.wrap_socket(self.sock, server_side=True)
        return self

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError("the client closed")
        self.buffer += data

    def head(self) -> str:
        """Read a request up to and with the empty line."""
        while (stop := self.buffer.find(b"\r\n\r\n")) < 0:
            self._more()
        head = bytes(self.buffer[: stop + 4]).decode()
        del self.buffer[: stop + 4]
        return head

    def answer(self, head: str, headers: str = "", after: bytes = b"") -> str:
        """Accept the upgrade that ``head`` asks for; ``after`` goes out in the same write."""
        key = next(x for x in head.split("\r\n") if x.lower().startswith("sec-websocket-key:"))
        text = key.split(":", 1)[1].strip() + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(text.encode()).digest()).decode()
        self.raw(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Accept: {accept}\r\n{headers}\r\n".encode()
            + after
        )
        return head

    def upgrade(self, headers: str = "", after: bytes = b"") -> str:
        """Accept the upgrade; return the request."""
        return self.answer(self.head(), headers, after)

    def raw(self, data: bytes) -> Peer:
        self.sock.sendall(data)
        return self

    def send(self, opcode: int, payload: bytes | str = b"", **kind: Any) -> Peer:
        return self.raw(frame(opcode, payload.encode() if isinstance(payload, str) else payload, **kind))

    def send_close(self, code: int, reason: str = "") -> None:
        self.send(CLOSE, struct.pack("!H", code) + reason.encode())

    def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def receive(self) -> tuple[int, bytes]:
        """Read one frame; check that it is final and masked; return opcode and payload."""
        first, second = self._take(2)
        assert first & 0xF0 == 0x80, f"first byte 0x{first:02x}"
        assert second & 0x80, "a client must mask"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        key = self._take(4)
        data = self._take(size)
        number = int.from_bytes(data, "little") ^ int.from_bytes((key * (size // 4 + 1))[:size], "little")
        return first & 0x0F, number.to_bytes(size, "little")

    def receive_close(self) -> tuple[int, str]:
        """Read frames up to the close frame; return its code and reason."""
        while True:
            opcode, payload = self.receive()
            if opcode == CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                return code, payload[2:].decode()

    def at_end(self) -> bool:
        """Wait until the client has ended the stream; whether it sent nothing before that."""
        silent = not self.buffer
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
            while data := self.sock.recv(65536):
                silent = False
                del data
        return silent

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Listener:
    """A listening socket whose connections are served by one function, each in a thread."""

    def __init__(
        self,
        script: Callable[[Peer], object] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        backlog: int = 64,
        receive_buffer: int | None = None,
    ) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(backlog)
        self.port: int = self.sock.getsockname()[1]
        self._tls = tls
        self._script = script
        self._closing = False
        self.peers: list[Peer] = []
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        if script is not None:
            self._start(self._serve)

    def _start(self, function: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, name="test-server", daemon=True)
        self._threads.append(thread)
        thread.start()

    def accept(self) -> Peer:
        """Accept one connection, TLS included."""
        self.sock.settimeout(PATIENCE)
        sock, _ = self.sock.accept()
        peer = Peer(sock)
        self.peers.append(peer)
        if self._tls is not None:
            peer.start_tls(self._tls)
        return peer

    def _serve(self) -> None:
        while not self._closing:
            try:
                self.sock.settimeout(None)
                sock, _ = self.sock.accept()
            except OSError:
                return
            self._start(self._run, sock)

    def _run(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        self.peers.append(peer)
        try:
            if self._tls is not None:
                peer.start_tls(self._tls)
            assert self._script is not None
            self._script(peer)
        except (OSError, EOFError):
            pass  # a client that leaves is what many tests are about
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self: L) -> L:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self.sock.close()
        for peer in list(self.peers):
            peer.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a server's script hangs"
        for peer in self.peers:  # also those that were accepted in the last moment
            peer.close()
        if self.errors:
            raise self.errors[0]


def dial(port: int, path: str = "/", *, host: str = "127.0.0.1", **options: Any) -> Dial:
    """A dial to a server of this machine; ``context`` makes it TLS."""
    context = options.pop("context", None)
    headers = options.pop("headers", list)
    endpoint = Endpoint(context is not None, host, port, path)
    return Dial(endpoint, headers, context=context, timeout=options.pop("timeout", PATIENCE), **options)


class Blackhole:
    """An address that does not answer a TCP connect: its queue is full and nobody accepts."""

    def __init__(self) -> None:
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(0)
        self.port: int = self.sock.getsockname()[1]
        self._fillers: list[socket.socket] = []

    def __enter__(self) -> Blackhole:
        while True:
            filler = socket.socket()
            self._fillers.append(filler)
            filler.setblocking(False)
            filler.connect_ex(self.sock.getsockname())
            if not select.select([], [filler], [], 0.05)[1]:
                return self
            assert len(self._fillers) < 50, "the queue never fills up"

    def __exit__(self, *exc_info: object) -> None:
        for sock in (*self._fillers, self.sock):
            sock.close()


class Names:
    """A name service: what getaddrinfo answers for names that exist only here.

    A value is the list of addresses, an exception to raise, or an event to wait for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, list[tuple[str, int]] | OSError | UnicodeError | threading.Event] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, port: int, *args: Any) -> Any:
        if host not in self.known:
            return self._real(host, port, *args)
        if len(args) > 3 and args[3] & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.asked.append(host)
        answer = self.known[host]
        if isinstance(answer, threading.Event):
            answer.wait(PATIENCE)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in answer]


def discard(transport: Transport) -> None:
    transport.abort()
    eventually(transport.release)


Link = Callable[..., tuple[Transport, Peer]]


class Authority(NamedTuple):
    """A certificate authority, and the settings of a server and of a client that trust it."""

    ca: trustme.CA
    file: str
    server: ssl.SSLContext
    client: ssl.SSLContext

    def server_for(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context
