"""A server that does exactly what a test tells it, byte by byte."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """A short frame as a server sends it."""
    assert len(payload) < 126
    return bytes((0x80 | opcode, len(payload))) + payload


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, after_upgrade: bytes = b"") -> None:
        sock.settimeout(20.0)
        self.sock = sock
        self._buffer = b""
        head = self._until(b"\r\n\r\n")
        key = next(x[18:].strip() for x in head.split(b"\r\n") if x.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.send(answer + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + after_upgrade)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def frame(self) -> tuple[int, bytes]:
        """Receive one short frame: opcode and payload. Raises EOFError at the end."""
        first, second = self._take(2)
        key, masked = self._take(4), self._take(second & 0x7F)
        return first & 0x0F, bytes(byte ^ key[i % 4] for i, byte in enumerate(masked))

    def until_end(self, *, pong: bool = True) -> None:
        """Echo text, answer pings if ``pong``, and the close frame, until the client is gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                opcode, payload = self.frame()
                if opcode == PING and pong:
                    self.send(frame(PONG, payload))
                elif opcode in (TEXT, CLOSE):
                    self.send(frame(opcode, payload))
                if opcode == CLOSE:
                    return

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self._buffer += data

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(end)
        return head


@contextlib.contextmanager
def peers(script: Callable[[Peer], None], after_upgrade: bytes = b"") -> Iterator[str]:
    """Serve every connection by ``script``, in a thread of its own; yields the URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    socks: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(EOFError, OSError):
            script(Peer(sock, after_upgrade))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock = listener.accept()[0]
                socks.append(sock)
                threads.append(threading.Thread(target=serve, args=(sock,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(10.0)
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10.0)
