"""The delaying relay: distance, order, throughput, and breaking."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from rtpool_sync.emulator import DelayRelay, RealtimeServer


class EchoServer:
    """A blocking TCP echo server; ``held`` keeps the server's ends."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.held: list[socket.socket] = []
        self.accepted_at: list[float] = []
        self.errors: list[OSError | None] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.accepted_at.append(time.perf_counter())
                self.held.append(sock)
                thread = threading.Thread(target=self._echo, args=(sock,))
                thread.start()
                self.threads.append(thread)

    def _echo(self, sock: socket.socket) -> None:
        error = None
        try:
            while data := sock.recv(1 << 16):
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            error = exc
        self.errors.append(error)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.held:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)
        for sock in self.held:
            sock.close()


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


def connect(relay: DelayRelay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=10)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        assert chunk, f"the connection ended after {len(data)} bytes"
        data += chunk
    return data


def ended(sock: socket.socket) -> bool:
    """Tell whether the peer's end arrives."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_connection_costs_what_it_costs(echo: EchoServer) -> None:
    with DelayRelay(echo.address, latency=0.08) as relay:
        start = time.perf_counter()
        with connect(relay) as sock:
            sock.sendall(b"x")
            assert sock.recv(10) == b"x"
            first = time.perf_counter() - start
            start = time.perf_counter()
            sock.sendall(b"y")
            assert sock.recv(10) == b"y"
            second = time.perf_counter() - start
        # One round trip for the TCP handshake and one for the echo; then one each.
        assert 0.158 < first < 0.3
        assert 0.078 < second < 0.2


def test_order_and_throughput(echo: EchoServer) -> None:
    data = os.urandom(1 << 20) * 8
    with DelayRelay(echo.address, latency=0.05) as relay, connect(relay) as sock:
        start = time.perf_counter()
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        received = bytearray()
        while len(received) < len(data):
            received += sock.recv(1 << 20)
        sender.join()
        assert received == data
        # Stop-and-wait with 64 KiB would take 6 seconds.
        assert time.perf_counter() - start < 3


def test_latency_may_change_and_order_stays(echo: EchoServer) -> None:
    with DelayRelay(echo.address, latency=0.2) as relay, connect(relay) as sock:
        sock.sendall(b"a")
        relay.latency = 0.0
        sock.sendall(b"b")
        assert exactly(sock, 2) == b"ab"


def test_a_half_close_passes(echo: EchoServer) -> None:
    with DelayRelay(echo.address, latency=0.01) as relay, connect(relay) as sock:
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        assert exactly(sock, 10) == b"last words"
        assert sock.recv(1) == b""
        deadline = time.monotonic() + 10
        while len(relay.sockets) > 1:  # but for the one it listens on
            assert time.monotonic() < deadline
            time.sleep(0.002)


def test_a_reset_passes(echo: EchoServer) -> None:
    with DelayRelay(echo.address, latency=0.01) as relay:
        with connect(relay) as sock:
            sock.sendall(b"x")
            exactly(sock, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        deadline = time.monotonic() + 10
        while not echo.errors:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert isinstance(echo.errors[0], ConnectionResetError)


def test_nobody_at_home() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with DelayRelay(address, latency=0.02) as relay, connect(relay) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_reset(echo: EchoServer) -> None:
    with DelayRelay(echo.address) as relay, connect(relay) as sock:
        sock.sendall(b"x")
        exactly(sock, 1)
        relay.reset()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_stall_and_resume_lose_nothing(echo: EchoServer) -> None:
    with DelayRelay(echo.address) as relay, connect(relay) as sock:
        sock.sendall(b"x")
        exactly(sock, 1)
        relay.stall()
        sock.sendall(b"y")
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        with connect(relay) as newcomer:
            newcomer.sendall(b"new")
            relay.resume()
            assert exactly(newcomer, 3) == b"new"
        assert exactly(sock, 1) == b"y"


def test_cut_is_silent_and_for_good(echo: EchoServer) -> None:
    with DelayRelay(echo.address, latency=0.002) as relay, connect(relay) as sock, connect(relay) as other:
        for opened in (sock, other):
            opened.sendall(b"x")
            exactly(opened, 1)
        relay.cut()
        for opened in (sock, connect(relay)):
            opened.sendall(b"y")
            opened.settimeout(0.05)
            with pytest.raises(TimeoutError):
                opened.recv(1)
            opened.close()
        relay.restore()
        other.settimeout(0.05)
        with pytest.raises(TimeoutError):
            other.recv(1)
        with connect(relay) as after:
            after.sendall(b"z")
            assert exactly(after, 1) == b"z"
        # The target never heard of the end either.
        assert echo.errors.count(None) <= 1


def test_stop_ends_everything(echo: EchoServer) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    relay = DelayRelay(echo.address, latency=0.01).start()
    opened = [connect(relay) for _ in range(5)]
    opened[0].sendall(b"x")
    exactly(opened[0], 1)
    relay.stop()
    relay.stop()
    for sock in opened:
        assert ended(sock)
        sock.close()
    assert "rtpool-relay" not in {thread.name for thread in threading.enumerate()}
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) != descriptors + len(echo.held):  # the target's own ends remain
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_relay_of_a_server() -> None:
    with RealtimeServer(relay=True) as server:
        assert server.relay is not None
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
            sock.sendall(b"GET /echo HTTP/1.1\r\n")
            server.latency = 0.02
            assert server.relay.latency == 0.02
            while server.relay.opened_total == 0:
                time.sleep(0.001)
            server.relay.reset()
            assert ended(sock)
    with RealtimeServer() as server, pytest.raises(ValueError):
        server.latency = 0.1
