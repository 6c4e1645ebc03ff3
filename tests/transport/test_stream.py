"""The byte stream: TLS in memory, waiting on the descriptor, the HTTP exchange."""

from __future__ import annotations

import contextlib
import dis
import errno
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

import pytest
from transport_peers import PATIENCE, Authority, Background, Listener, Peer, eventually, within

from rtpool_sync.transport import stream as stream_module
from rtpool_sync.transport.dial import make_context
from rtpool_sync.transport.stream import MAX_BODY, MAX_HEAD, Stream, UpgradeRefused

Make = Callable[..., tuple[Stream, Peer]]


def soon(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


def read(stream: Stream, size: int, end: float | None = None) -> bytes:
    """Read exactly ``size`` bytes."""
    data = bytearray(size)
    view, have = memoryview(data), 0
    while have < size:
        got = stream.fill(view[have:], soon() if end is None else end)
        assert got, "the end came first"
        have += got
    return bytes(data)


@pytest.fixture
def make(authority: Authority) -> Iterator[Make]:
    """Make connected streams without any HTTP."""
    with contextlib.ExitStack() as stack:

        def connect(
            tls: bool, *, client: ssl.SSLContext | None = None, server: ssl.SSLContext | None = None
        ) -> tuple[Stream, Peer]:
            listener = stack.enter_context(Listener(tls=(server or authority.server) if tls else None))
            accepted = Background(listener.accept)
            stream = Stream(socket.create_connection(("127.0.0.1", listener.port)))
            stack.callback(stream.close)
            if tls:
                stream.start_tls(client or authority.client, "127.0.0.1", None, soon())
            return stream, accepted.result()

        yield connect


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, make: Make) -> tuple[Stream, Peer]:
    return make(request.param == "tls")


# -- reading and writing


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 65536, 1_000_000])
def test_bytes_pass_both_ways(pair: tuple[Stream, Peer], size: int) -> None:
    stream, peer = pair
    data = os.urandom(size)
    sending = Background(lambda: peer.raw(data))
    assert read(stream, size) == data
    sending.result()
    taking = Background(lambda: peer._take(size))
    stream.write(data, soon())
    assert taking.result() == data
    assert stream.unsent == b""
    assert not stream.has_bytes()


def test_a_write_of_one_record_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenSSL does under SSL_MODE_ENABLE_PARTIAL_WRITE."""
    stream, peer = make(True)
    tls = stream.tls

    class Partial:
        def write(self, data: bytes) -> int:
            assert tls is not None
            return tls.write(data[:16384])

    monkeypatch.setattr(stream, "tls", Partial())
    data = os.urandom(100_000)
    taking = Background(lambda: peer._take(len(data)))
    stream.write(data, soon())
    assert taking.result() == data


def test_without_waiting(pair: tuple[Stream, Peer]) -> None:
    stream, peer = pair
    room = memoryview(bytearray(10))
    with pytest.raises(BlockingIOError):
        stream.fill(room, 0)
    assert not stream.has_bytes()
    peer.raw(b"ab")
    eventually(stream.has_bytes)
    assert stream.fill(room, 0) == 2
    with pytest.raises(BlockingIOError):
        stream.fill(room, 0)


def test_deadlines(pair: tuple[Stream, Peer]) -> None:
    stream, peer = pair
    room = memoryview(bytearray(10))
    with within(0.5, at_least=0.05), pytest.raises(TimeoutError):
        stream.fill(room, soon(0.05))
    with pytest.raises(TimeoutError):
        stream.fill(room, soon(-1))
    waiting = Background(lambda: stream.fill(room, None))
    endless = float("inf")
    peer.raw(b"a")
    assert waiting.result() == 1
    waiting = Background(lambda: stream.fill(room, endless))
    peer.raw(b"b")
    assert waiting.result() == 1


def test_a_write_that_times_out_keeps_its_tail(pair: tuple[Stream, Peer]) -> None:
    stream, peer = pair
    data = os.urandom(8_000_000)
    stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    with within(1, at_least=0.05), pytest.raises(TimeoutError):
        stream.write(data, soon(0.05))
    assert stream.unsent
    with pytest.raises(BlockingIOError):
        stream.write(b"second", 0)
    assert stream.unsent
    taking = Background(lambda: peer._take(len(data) + 11))
    stream.write(b"third", soon())
    assert taking.result() == data + b"secondthird"
    assert stream.unsent == b""


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_write_that_fails_for_a_moment_leaves_no_gap(
    make: Make, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    stream, peer = make(tls)

    class Short:
        """A kernel that has no memory left for what it is to send, twice."""

        def __init__(self, sock: socket.socket) -> None:
            self._sock, self._refusals = sock, 2

        def send(self, data: bytes | memoryview) -> int:
            if self._refusals:
                self._refusals -= 1
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            return self._sock.send(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self._sock, name)

    monkeypatch.setattr(stream, "sock", Short(stream.sock))
    with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
        stream.write(b"first", soon())
    assert stream.unsent
    stream.write(b"second", soon())
    assert peer._take(11) == b"firstsecond"


def test_small_reads_of_large_records(make: Make) -> None:
    """OpenSSL holds what was decrypted and did not fit; no poll tells of it."""
    stream, peer = make(True)
    data = os.urandom(16384)
    peer.raw(data)
    assert read(stream, 1) == data[:1]
    assert stream.holds_bytes()
    assert stream.has_bytes()
    assert stream.fill(memoryview(bytearray(10)), 0) == 10
    rest = bytearray(16384 - 11)
    assert stream.fill(memoryview(rest), 0) == len(rest)
    assert bytes(rest) == data[11:]
    assert not select.select([stream.sock], [], [], 0)[0]
    with pytest.raises(BlockingIOError):
        stream.fill(memoryview(rest), 0)


def test_several_records_in_one_read(make: Make) -> None:
    stream, peer = make(True)
    for i in range(5):
        peer.raw(bytes([i]) * 100)
    eventually(lambda: len(stream.sock.recv(65536, socket.MSG_PEEK)) >= 5 * 122)
    assert read(stream, 100) == bytes(100)
    assert not select.select([stream.sock], [], [], 0)[0], "the kernel has nothing left"
    assert stream.has_bytes()
    for i in range(1, 5):
        assert read(stream, 100, end=0) == bytes([i]) * 100
    assert not stream.has_bytes()


def queued(stream: Stream, size: int) -> None:
    """Wait until the kernel holds ``size`` bytes."""
    eventually(lambda: len(stream.sock.recv(65536, socket.MSG_PEEK)) >= size)


def test_small_records_come_in_crowds(make: Make) -> None:
    stream, peer = make(True)
    peer.raw(b"first")
    assert read(stream, 5) == b"first"
    for i in range(250):
        peer.raw(bytes([i]) * 100)
    queued(stream, 250 * 122)
    room = memoryview(bytearray(65536))
    assert stream.fill(room[:300], soon()) == 300
    assert stream.has_bytes()
    assert stream.fill(room[300:], 0) == 250 * 100 - 300, "all the others at once"
    assert room[:25000] == b"".join(bytes([i]) * 100 for i in range(250))
    with pytest.raises(BlockingIOError):
        stream.fill(room, 0)


@pytest.mark.parametrize("message", [100, 4100, 32772, 65536])
def test_in_a_flow_openssl_is_only_asked_for_whole_records(
    make: Make, monkeypatch: pytest.MonkeyPatch, message: int
) -> None:
    """One that is not whole is told by an exception, as expensive as a record."""
    stream, peer = make(True)
    peer.raw(b"first")
    assert read(stream, 5) == b"first"
    data = bytes(range(256)) * 1024
    asked: list[bool] = []

    class Counting:
        def read(self, size: int, view: memoryview) -> int:
            try:
                got = tls.read(size, view)
            except ssl.SSLWantReadError:
                asked.append(False)
                raise
            asked.append(True)
            return cast(int, got)

        pending = staticmethod(lambda: tls.pending())

    class Flowing:
        """A kernel that always has as much as is asked for."""

        def recv_into(self, view: memoryview) -> int:
            size = 0
            while size < len(view) and (got := sock.recv_into(view[size:])):
                size += got
            return size

    assert stream.tls is not None
    tls, sock = stream.tls, stream.sock

    def send() -> None:
        for at in range(0, len(data), message):
            peer.raw(data[at : at + message])
        peer.close()

    sending = Background(send)
    sock.setblocking(True)
    monkeypatch.setattr(stream, "tls", Counting())
    monkeypatch.setattr(stream, "sock", Flowing())
    received, view = b"", memoryview(bytearray(65536))
    while got := stream.fill(view, soon()):
        received += view[:got]
    sending.result()
    monkeypatch.undo()
    assert received == data
    assert asked.count(False) <= 2, "at the beginning, and where the flow ends"
    assert asked.count(True) >= len(data) // min(message, 16384)


@pytest.mark.parametrize("room", [1, 99, 100, 101, 250])
def test_a_crowd_that_does_not_fit(make: Make, room: int) -> None:
    stream, peer = make(True)
    peer.raw(b"first")
    assert read(stream, 5) == b"first"
    for i in range(5):
        peer.raw(bytes([i]) * 100)
    queued(stream, 5 * 122)
    data, view = b"", memoryview(bytearray(room))
    while len(data) < 500:
        data += view[: stream.fill(view, 0)]
    assert data == b"".join(bytes([i]) * 100 for i in range(5))
    assert not stream.has_bytes()


def after_calls(code: CodeType) -> set[int]:
    """Where an asynchronous exception may strike: the interpreter looks for one when a call is over.

    Entering a ``with`` is none, or, from 3.14 on, one of a method that LOAD_SPECIAL has found.
    """
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PRECALL")]
    return {
        following.offset
        for before, call, following in zip(steps, steps[1:], steps[2:], strict=False)
        if call.opname.startswith("CALL") and before.opname != "LOAD_SPECIAL"
    }


@pytest.mark.usefixtures("untraced")
def test_an_exception_out_of_nowhere_leaves_openssl_to_the_next(make: Make) -> None:
    """Wherever it strikes: nobody waits for this lock with a deadline, the reaper least of all."""
    stream, peer = make(True)
    for _ in range(200):
        peer.raw(b"x" * 10)
    queued(stream, 200 * 32)
    view = memoryview(bytearray(1))
    assert stream.fill(view, soon()), "what follows is in memory: none of it can be lost on the way"
    ours = {call.__code__: after_calls(call.__code__) for call in (Stream.write, Stream.fill)}

    class Struck(BaseException): ...

    def struck_at(count: int, call: Callable[[], object]) -> bool:
        left = count

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            frame.f_trace_opcodes = frame.f_code in ours
            if event == "opcode" and frame.f_lasti in ours[frame.f_code]:
                left -= 1
                if left < 0:
                    raise Struck
            return trace

        sys.settrace(trace)
        try:
            call()
        except Struck:
            return True
        finally:
            sys.settrace(None)
        return False

    for call in (lambda: stream.write(b"abc", soon()), lambda: stream.fill(view, soon())):
        count = 0
        while struck_at(count, call):
            assert not stream._tls_lock.locked(), f"struck after call {count}"
            count += 1
        assert count > 2


def test_what_came_before_the_end_is_read_before_it(make: Make) -> None:
    """In one read of the kernel's: records, and the peer's close_notify behind them."""
    stream, peer = make(True)
    assert isinstance(peer.sock, ssl.SSLSocket)
    peer.raw(b"first")
    assert read(stream, 5) == b"first"  # and what TLS itself sends at the beginning
    peer.raw(b"one")
    peer.raw(b"two")
    unwrapping = Background(peer.sock.unwrap)
    queued(stream, 2 * 25 + 24)
    room = memoryview(bytearray(100))
    assert stream.fill(room, 0) == 6
    assert room[:6] == b"onetwo"
    assert stream.has_bytes(), "nothing is left in the kernel, which would tell"
    assert stream.fill(room, soon()) == 0
    stream.abort()
    with contextlib.suppress(OSError):
        unwrapping.result()


def test_what_came_before_something_wrong_is_read_before_it(make: Make) -> None:
    stream, peer = make(True)
    peer.raw(b"first")
    assert read(stream, 5) == b"first"
    peer.raw(b"one")
    with socket.socket(fileno=os.dup(peer.sock.fileno())) as raw:
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    queued(stream, 25 + 37)
    room = memoryview(bytearray(100))
    assert stream.fill(room, 0) == 3
    assert stream.has_bytes()
    for _ in range(2):
        with contextlib.suppress(ssl.SSLError):
            assert stream.fill(room, soon()) == 0


def test_a_record_that_comes_in_pieces(authority: Authority, make: Make) -> None:
    stream, peer = make(False)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.server.wrap_bio(incoming, outgoing, server_side=True)

    def handshake() -> None:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                peer.raw(outgoing.read())
                incoming.write(peer.sock.recv(65536))
        peer.raw(outgoing.read())

    shaking = Background(handshake)
    stream.start_tls(authority.client, "127.0.0.1", None, soon())
    shaking.result()
    tls.write(b"whole")
    record = outgoing.read()
    room = memoryview(bytearray(10))
    for i in range(len(record) - 1):
        peer.raw(record[i : i + 1])
        eventually(stream.has_bytes)
        with pytest.raises(BlockingIOError):
            stream.fill(room, 0)
    peer.raw(record[-1:])
    assert read(stream, 5) == b"whole"
    tls.write(b"never whole")
    peer.raw(outgoing.read()[:-1])
    peer.close()
    assert stream.fill(room, soon()) == 0, "an end in the middle of a record is an end"
    assert stream.fill(room, soon()) == 0


def test_a_record_that_was_tampered_with(make: Make) -> None:
    stream, peer = make(True)
    raw = socket.socket(fileno=os.dup(peer.sock.fileno()))
    with raw:
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        stream.fill(memoryview(bytearray(10)), soon())


def test_the_end_of_the_stream(pair: tuple[Stream, Peer]) -> None:
    stream, peer = pair
    peer.raw(b"last")
    peer.close()
    assert read(stream, 4) == b"last"
    room = memoryview(bytearray(10))
    assert stream.fill(room, soon()) == 0
    assert stream.fill(room, 0) == 0
    assert stream.has_bytes()


def test_close_notify_is_an_end_and_writing_goes_on(make: Make) -> None:
    stream, peer = make(True)
    peer.raw(b"last")
    assert isinstance(peer.sock, ssl.SSLSocket)
    unwrapping = Background(peer.sock.unwrap)
    assert read(stream, 4) == b"last"
    assert stream.fill(memoryview(bytearray(10)), soon()) == 0
    stream.write(b"still allowed", soon())
    stream.abort()
    with contextlib.suppress(OSError):  # application data where it waits for our close_notify
        unwrapping.result()


def test_the_end_of_sending_is_not_waited_for(pair: tuple[Stream, Peer]) -> None:
    """With its window full, the peer gets what it gets."""
    stream, _ = pair
    stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with pytest.raises(TimeoutError):
        stream.write(bytes(10_000_000), soon(0.05))
    with within(0.5):
        stream.end_sending()
        stream.end_sending()


def test_looking_for_the_end_of_an_endless_stream(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, peer = make(False)

    class Endless:
        def recv(self, size: int) -> bytes:
            return b"x"

    with monkeypatch.context() as patch:
        patch.setattr(stream, "sock", Endless())
        assert not stream.at_end()
    assert not stream.at_end()
    peer.close()
    eventually(stream.at_end)


def test_several_threads_may_look(pair: tuple[Stream, Peer]) -> None:
    """A poll object serves one thread at a time."""
    stream, peer = pair

    class Busy:
        def poll(self, timeout: float) -> list[Any]:
            raise RuntimeError("concurrent poll() invocation")

    with contextlib.suppress(BlockingIOError):  # session tickets
        stream.fill(memoryview(bytearray(1)), 0)
    stream._look = Busy()  # type: ignore[assignment]
    assert not stream.has_bytes()
    peer.raw(b"x")
    eventually(stream.has_bytes)
    stream.sock.close()
    assert stream.has_bytes()


def test_abort_wakes_whoever_waits(pair: tuple[Stream, Peer]) -> None:
    stream, _ = pair
    reading = Background(lambda: stream.fill(memoryview(bytearray(10)), soon()))
    writing = Background(lambda: stream.write(bytes(30_000_000), soon()))
    eventually(lambda: not select.select([], [stream.sock], [], 0)[1])
    with within(0.5):
        stream.abort()
        stream.abort()
        assert reading.result() == 0
        assert isinstance(writing.error(), OSError)


def test_after_the_end(pair: tuple[Stream, Peer]) -> None:
    stream, _ = pair
    assert stream.fileno() >= 0
    stream.shutdown(socket.SHUT_RDWR)
    stream.close()
    stream.abort()
    assert stream.fileno() == -1
    assert stream._closed
    assert stream.has_bytes()
    with pytest.raises(OSError):
        stream.fill(memoryview(bytearray(10)), 0)
    with pytest.raises(OSError):
        stream.write(b"x", 0)


def test_a_stream_that_is_let_go_closes_its_descriptor(make: Make) -> None:
    stream, peer = make(False)
    socks = stream.sock
    copy = Stream(socks.dup())
    number = copy.fileno()
    del copy
    with pytest.raises(OSError):
        os.fstat(number)
    assert not stream.has_bytes()
    del peer
    with pytest.raises(AttributeError):
        Stream(None)  # type: ignore[arg-type]


def test_abort_and_close_from_two_threads(make: Make) -> None:
    """A number that is closed here may belong to another connection an instant later."""
    stream, _ = make(False)
    in_shutdown, go_on = threading.Event(), threading.Event()
    sock = stream.sock

    class Slow:
        def shutdown(self, how: int) -> None:
            in_shutdown.set()
            assert go_on.wait(5)
            assert sock.fileno() >= 0, "closed meanwhile"
            sock.shutdown(how)

        def close(self) -> None:
            sock.close()

    stream.sock = Slow()  # type: ignore[assignment]
    aborting = Background(stream.abort)
    assert in_shutdown.wait(5)
    closing = Background(stream.close)
    go_on.set()
    aborting.result()
    closing.result()


# -- full duplex


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_one_thread_reads_while_another_writes(make: Make, tls: bool) -> None:
    stream, peer = make(tls)
    size = 3_000_000
    up, down = os.urandom(size), os.urandom(size)
    ours = Background(lambda: read(stream, size))

    def write() -> None:
        for i in range(0, size, 5000):
            stream.write(up[i : i + 5000], soon())

    writing = Background(write)
    incoming = bytearray()
    sent = 0
    peer.sock.settimeout(None)
    while len(incoming) < size or sent < size:  # one thread: a Python SSLSocket bears no more
        if sent < size:
            peer.raw(down[sent : sent + 4096])
            sent += 4096
        if len(incoming) < size and select.select([peer.sock], [], [], 0 if sent < size else 5)[0]:
            incoming += peer.sock.recv(65536)
    writing.result()
    assert ours.result() == down
    assert bytes(incoming) == up


# -- TLS handshake


def test_a_handshake_that_trickles(authority: Authority, make: Make) -> None:
    stream, peer = make(False)
    stop = threading.Event()

    def trickle() -> None:
        peer.sock.recv(65536)
        with contextlib.suppress(OSError):
            for byte in b"\x16\x03\x03\x10\x00" + bytes(4096):
                if stop.wait(0.02):
                    return
                peer.raw(bytes([byte]))

    trickling = Background(trickle)
    with within(0.6, at_least=0.2), pytest.raises(TimeoutError):
        stream.start_tls(authority.client, "127.0.0.1", None, soon(0.25))
    stop.set()
    trickling.result()
    assert stream.tls is None


def test_a_handshake_that_is_cut_off(authority: Authority, make: Make) -> None:
    stream, peer = make(False)
    peer.close()
    with pytest.raises(OSError):
        stream.start_tls(authority.client, "127.0.0.1", None, soon())


def test_the_peer_learns_why_the_handshake_failed(authority: Authority, make: Make) -> None:
    stream, peer = make(False)
    shaking = Background(lambda: peer.start_tls(authority.server))
    with pytest.raises(ssl.SSLCertVerificationError):
        stream.start_tls(ssl.create_default_context(), "127.0.0.1", None, soon())
    assert "ALERT_UNKNOWN_CA" in str(shaking.error()).upper().replace(" ", "_")


def test_ciphertext_that_came_with_the_proxys_answer_is_ciphertext(authority: Authority, make: Make) -> None:
    """Otherwise whoever sits between us and the proxy could put words into the server's mouth."""
    stream, peer = make(False)
    stream.begin_upgrade(soon(), list)
    stream.send(b"CONNECT x HTTP/1.1\r\n\r\n")
    peer.head()
    peer.raw(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 401 Injected\r\n\r\n")
    assert stream.read_answer(soon(), accept=200)
    with pytest.raises(ssl.SSLError):
        stream.start_tls(authority.client, "127.0.0.1", None, soon())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_and_resumption(authority: Authority, make: Make, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=authority.file)
    context.minimum_version = context.maximum_version = version
    stream, peer = make(True, client=context)
    assert stream.tls is not None
    assert stream.tls.version() == {0x303: "TLSv1.2", 0x304: "TLSv1.3"}[version]
    peer.raw(b"x")
    read(stream, 1)  # TLS 1.3 sends the ticket with the first bytes
    session = stream.tls.session
    assert session is not None
    listener = Listener(tls=authority.server)
    with listener:
        accepted = Background(listener.accept)
        again = Stream(socket.create_connection(("127.0.0.1", listener.port)))
        again.start_tls(context, "127.0.0.1", session, soon())
        accepted.result()
        assert again.tls is not None
        assert again.tls.session_reused
        again.close()


@contextlib.contextmanager
def openssl_server(
    authority: Authority, path: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], Stream, list[tuple[str, str]]]]:
    """A server that takes commands, a stream to it, and the TLS messages that pass."""
    pem = str(path / "server.pem")
    authority.ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    server = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{address[1]}", "-cert", pem, "-key", pem, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    )
    seen: list[tuple[str, str]] = []
    context = make_context(authority.file)
    context._msg_callback = (  # type: ignore[attr-defined]
        lambda connection, direction, version, kind, message, data: seen.append((direction, message.name))
    )
    stream = None
    try:
        until(server, b"ACCEPT")
        stream = Stream(socket.create_connection(address))
        stream.start_tls(context, "127.0.0.1", None, soon())
        yield server, stream, seen
    finally:
        if stream is not None:
            stream.close()
        server.kill()
        server.communicate()


def look_until(stream: Stream, condition: Callable[[], bool]) -> None:
    """Look for what has arrived until something has that is no data."""

    def looked() -> bool:
        with contextlib.suppress(BlockingIOError):
            stream.fill(memoryview(bytearray(10)), 0)
        return condition()

    eventually(looked)


def until(server: subprocess.Popen[bytes], text: bytes) -> None:
    """Read the server's output until ``text`` appears."""
    assert server.stdout is not None
    seen = b""
    while text not in seen:
        assert select.select([server.stdout], [], [], PATIENCE)[0], seen
        piece = os.read(server.stdout.fileno(), 4096)
        assert piece, seen
        seen += piece


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("command", [b"K", b"k"], ids=["wanted back", "one-sided"])
def test_new_keys_in_between(authority: Authority, tmp_path: Path, command: bytes) -> None:
    with openssl_server(authority, tmp_path, "-tls1_3") as (server, stream, seen):
        assert server.stdin is not None
        stream.write(b"one\n", soon())
        until(server, b"one")
        server.stdin.write(command + b"\n")
        look_until(stream, lambda: ("read", "KEY_UPDATE") in seen)
        server.stdin.write(b"with new keys\n")
        assert read(stream, 14) == b"with new keys\n"
        stream.write(b"two\n", soon())
        until(server, b"two")
        assert (("write", "KEY_UPDATE") in seen) == (command == b"K")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_a_server_that_wants_to_renegotiate_is_refused(authority: Authority, tmp_path: Path) -> None:
    """Otherwise writing would have to wait until the server has answered the new handshake."""
    with openssl_server(authority, tmp_path, "-tls1_2") as (server, stream, seen):
        assert server.stdin is not None
        stream.write(b"one\n", soon())
        until(server, b"one")
        server.stdin.write(b"R\n")
        look_until(stream, lambda: ("read", "HELLO_REQUEST") in seen)
        stream.write(b"two\n", soon())
        assert ("write", "NO_RENEGOTIATION") in seen
        assert seen.count(("write", "CLIENT_HELLO")) == 1


# -- the HTTP exchange


def exchange(make: Make, answer: bytes, *, seconds: float = 5.0, accept: int = 101) -> tuple[Any, Stream]:
    """What read_answer makes of ``answer``: its result or its exception."""
    stream, peer = make(False)
    stream.begin_upgrade(soon(), list)
    stream.send(b"GET / HTTP/1.1\r\n\r\n")
    peer.raw(answer)
    peer.sock.shutdown(socket.SHUT_WR)
    try:
        return stream.read_answer(soon(seconds), accept=accept), stream
    except Exception as error:
        return error, stream


def test_only_what_the_library_checks_is_passed_on(make: Make) -> None:
    answer = (
        b"HTTP/1.1 101 Switching Protocols\r\nUPGRADE:  websocket \r\nSet-Cookie: a=1; Domain=example.com\r\n"
        b"Connection: upgrade\r\nSec-WebSocket-Accept: x\r\nX: y\r\n\r\nrest"
    )
    head, stream = exchange(make, answer)
    assert head == (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-accept: x\r\n\r\n"
    )
    assert stream.has_bytes()
    assert read(stream, 2) == b"re"
    assert read(stream, 2) == b"st"


def test_interim_answers_are_skipped(make: Make) -> None:
    head, stream = exchange(
        make,
        b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Yes\r\n\r\nrest",
    )
    assert head == b"HTTP/1.1 101 Yes\r\n\r\n"
    assert read(stream, 4) == b"rest"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "closed before an answer"),
        (b"HTTP/1.1 101 Swi", "closed before an answer"),
        (b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\n", "closed before an answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not HTTP"),
        (b"HTTP/2 101 Yes\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 abc Yes\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 101 Yes\r\nX: " + b"y" * (2 * MAX_HEAD), "above 32768 bytes"),
        (b"HTTP/1.1 101 Yes\r\n" + b"X: y\r\n" * MAX_HEAD, "above 32768 bytes"),
    ],
)
def test_what_is_no_answer(make: Make, answer: bytes, problem: str) -> None:
    error, _ = exchange(make, answer)
    assert isinstance(error, OSError)
    assert problem in str(error)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 401 No\r\nContent-Length: 3\r\n\r\nbadly", 401, "bad"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""),
        (b"HTTP/1.1 500 Oh\r\n\r\nto the end", 500, "to the end"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: many\r\n\r\nx", 500, "x"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: \xb2\r\n\r\nx", 500, "x"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 9999, 500, "x" * MAX_BODY),
        (b"HTTP/1.1 500 Oh\r\n\r\n\xff", 500, "\ufffd"),
        (b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nWrong\r\n0\r\n\r\n", 401, "Wrong"),
        (b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\nWrong\r\n0\r\n\r\n", 401, ""),
        (
            b"HTTP/1.1 401 No\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nWrong\r\n2\r\n k\r\n0\r\n\r\n",
            401,
            "Wrong k",
        ),
        (b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nWron", 401, "Wron"),
        (b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nWrong", 401, ""),
    ],
)
def test_a_refusal(make: Make, answer: bytes, status: int, body: str) -> None:
    error, _ = exchange(make, answer)
    assert isinstance(error, UpgradeRefused)
    assert (error.status, error.body) == (status, body)


def test_the_body_of_a_refusal_is_not_waited_for(make: Make) -> None:
    stream, peer = make(False)
    peer.raw(b"HTTP/1.1 503 Later\r\nRetry-After: 7\r\n\r\nwait")
    with within(1.6, at_least=0.9), pytest.raises(UpgradeRefused) as caught:
        stream.read_answer(None, accept=101)
    assert caught.value.body == "wait"
    assert caught.value.headers == {"retry-after": "7"}
    peer.raw(b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n")
    with within(0.5), pytest.raises(UpgradeRefused):
        stream.read_answer(soon(), accept=101)


def test_the_library_gets_its_answer_in_pieces(make: Make) -> None:
    stream, peer = make(False)
    stream.begin_upgrade(soon(), lambda: [("Authorization", "Bearer x"), ("B", "ü")], "/path?q=1")
    assert stream.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == 27
    request = b"GET /path?q=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nB: \xfc\r\n\r\n"
    assert peer._take(len(request)) == request
    peer.raw(b"HTTP/1.1 101 Yes\r\nUpgrade: x\r\nSet-Cookie: a=1\r\nConnection: y\r\n\r\nmore")
    # Whoever reads byte by byte looks for the end of a line.
    assert [stream.recv(1) for _ in range(4)] == [b"HTTP/1.1 101 Yes\r", b"\n", b"upgrade: x\r", b"\n"]
    assert stream.recv(5) == b"conne"
    assert stream.recv(100) == b"ction: y\r\n\r\n"
    assert stream.recv(1) == b""
    assert stream.holds_bytes(), "the rest belongs to the WebSocket"
    assert stream.gettimeout() > 0
    stream.settimeout(0)
    assert stream.gettimeout() > 0


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        (lambda: [("Authorization", "Bearer sk-\u20ac")], ValueError),
        (lambda: 1 / 0, ZeroDivisionError),
        (lambda: [("Authorization",)], ValueError),
    ],
)
def test_headers_that_cannot_be_sent(make: Make, headers: Any, problem: type[Exception]) -> None:
    stream, _ = make(False)
    stream.begin_upgrade(soon(), headers)
    with pytest.raises(problem) as caught:
        stream.send(b"GET / HTTP/1.1\r\n\r\n")
    error = caught.value
    assert error.__cause__ is error.__context__ is None
    assert "sk-" not in repr(error.args)
    frames = []
    trace = error.__traceback__
    while trace:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames[-1] == "send"


def test_a_request_in_two_calls_would_tear_the_headers_apart(make: Make) -> None:
    stream, _ = make(False)
    stream.begin_upgrade(soon(), list)
    with pytest.raises(AssertionError, match="in one call"):
        stream.send(b"GET / HTTP/1.1\r\n")
    with pytest.raises(AssertionError, match="in one call"):
        stream.send(b"Host: x\r\n\r\n")


def test_room_for_ciphertext_belongs_to_the_thread() -> None:
    mine = stream_module._scratch.view
    assert mine is stream_module._scratch.view
    assert Background(lambda: stream_module._scratch.view).result() is not mine
