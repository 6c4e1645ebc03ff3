"""The connection: receiving, sending, control frames, liveness and the end, over real sockets."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transport_peers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Authority,
    Background,
    Link,
    Listener,
    Peer,
    dial,
    discard,
    eventually,
    frame,
    within,
)

from rtpool_sync.errors import ConnectionLost, ConnectionReturned, MessageTooBig, RecvTimeout
from rtpool_sync.transport import Transport
from rtpool_sync.transport.websocket import BUFFER, FIRST_BUFFER, MAX_QUEUED, READ_AHEAD, ROOM

Pair = tuple[Transport, Peer]

#: Around every change of the header's form and of how a frame is read.
SIZES = [0, 1, 125, 126, 4096, BUFFER - 11, BUFFER - 10, BUFFER - 4, BUFFER - 1, BUFFER, BUFFER + 1, 300_000]


def receiving(transport: Transport, timeout: float | None = None, owner: object = None) -> Background[Any]:
    """Have a thread wait in recv()."""
    waiting = Background(lambda: transport.recv(timeout, owner))
    eventually(transport.readlock.locked)
    return waiting


def arrived(transport: Transport) -> None:
    """Wait until the kernel has something for the connection."""
    eventually(transport.has_bytes)


def stall(transport: Transport, *, size: int = 3_000_000, timeout: float = 0.05) -> str:
    """Send until the peer's window is full; return the message that is stuck."""
    message = "s" * size
    assert transport.sock is not None
    transport.sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with pytest.raises(TimeoutError):
        transport.send(message, timeout=timeout)
    return message


@pytest.fixture(params=["plain", "tls"])
def narrow(request: pytest.FixtureRequest, link: Link) -> Pair:
    """An open connection whose peer takes little at once."""
    return link(tls=request.param == "tls", receive_buffer=4096)


# -- receiving


@pytest.mark.parametrize("size", SIZES)
def test_messages_of_every_size_pass_both_ways(pair: Pair, size: int) -> None:
    transport, peer = pair
    text, binary = "x" * size, os.urandom(size)
    sending = Background(lambda: (peer.send(TEXT, text), peer.send(BINARY, binary)))
    assert transport.recv(5) == text
    assert transport.recv(5) == binary
    sending.result()
    taking = Background(lambda: (peer.receive(), peer.receive()))
    frame_size = transport.send(text)
    transport.send(binary, BINARY)
    assert taking.result() == ((TEXT, text.encode()), (BINARY, binary))
    assert frame_size == size + 4 + (2 if size < 126 else 4 if size < 65536 else 10)
    assert (transport.messages_received, transport.bytes_received) == (2, 2 * size)
    assert (transport.messages_sent, transport.bytes_sent) == (2, 2 * size)
    assert transport.is_clean()


def test_text_beyond_ascii(pair: Pair) -> None:
    transport, peer = pair
    peer.send(TEXT, "grüß 🎉")
    assert transport.recv(5) == "grüß 🎉"
    transport.send("日本")
    assert peer.receive() == (TEXT, "日本".encode())


def test_many_frames_in_one_write(pair: Pair) -> None:
    transport, peer = pair
    peer.raw(b"".join(frame(TEXT, str(i).encode()) for i in range(1000)))
    assert [transport.recv(5) for _ in range(1000)] == [str(i) for i in range(1000)]


def test_fragments_are_joined_with_control_frames_between(pair: Pair) -> None:
    transport, peer = pair
    peer.raw(
        frame(TEXT, b"Gr\xc3", final=False)
        + frame(PING, b"1")
        + frame(CONTINUATION, b"", final=False)
        + frame(PONG, b"unasked")
        + frame(CONTINUATION, b"\xbc\xc3\x9fe")
        + frame(BINARY, b"\x00", final=False)
        + frame(CONTINUATION, b"\x01")
        + frame(TEXT, b"next")
    )
    assert transport.recv(5) == "Grüße"
    assert transport.recv(5) == b"\0\1"
    assert transport.recv(5) == "next"
    assert transport.messages_received == 3
    assert peer.receive() == (PONG, b"1")


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (frame(TEXT, b"drip by drip"), "drip by drip"),
        (frame(TEXT, b"y" * 130), "y" * 130),
        (
            frame(TEXT, b"a", final=False) + frame(PING, b"p") + frame(CONTINUATION, b"b"),
            "ab",
        ),
    ],
    ids=["short", "extended", "fragments"],
)
def test_a_deadline_loses_no_byte(pair: Pair, wire: bytes, message: str) -> None:
    transport, peer = pair
    for i in range(len(wire) - 1):
        peer.raw(wire[i : i + 1])
        arrived(transport)
        with pytest.raises(RecvTimeout):
            transport.recv(0 if i % 2 else 0.001)
    peer.raw(wire[-1:])
    assert transport.recv(5) == message
    assert transport.is_clean()


def test_a_deadline_loses_no_byte_of_a_large_message(pair: Pair) -> None:
    transport, peer = pair
    text = "".join(str(i % 10) for i in range(3 * BUFFER))
    wire = frame(TEXT, text.encode())
    for i in range(0, len(wire) - 1, 9999):
        peer.raw(wire[i : min(i + 9999, len(wire) - 1)])
        arrived(transport)
        end = time.monotonic() + 10.0
        while transport.has_bytes():  # on a busy machine the time may be over before anything was read
            assert time.monotonic() < end
            with pytest.raises(RecvTimeout):
                transport.recv(0.001)
        assert transport.has_unread
    peer.raw(wire[-1:])
    assert transport.recv(5) == text


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_frames_cut_anywhere_arrive_whole_and_in_order(link: Link, tls: bool) -> None:
    """Random sizes, random cuts, read in every way there is."""
    chance = random.Random(5)
    transport, peer = link(tls=tls)
    messages = [
        "".join(chance.choices("abc", k=chance.choice([0, 3, 200, 9000, 60000, 66000]))) for _ in range(120)
    ]
    wire = b"".join(frame(TEXT, m.encode()) for m in messages)

    def feed() -> None:
        at = 0
        while at < len(wire):
            size = chance.choice([1, 2, 100, 5000, 40000, 200000])
            peer.raw(wire[at : at + size])
            at += size

    feeding = Background(feed)
    got: list[Any] = []
    for turn in itertools.cycle(range(4)):
        if len(got) == len(messages):
            break
        with contextlib.suppress(RecvTimeout):
            if turn == 0:
                assert transport.drain()
            elif turn == 1:
                got += transport.take_unread()
            else:
                got.append(transport.recv(0 if turn == 2 else 0.001))
    feeding.result()
    assert got == messages
    assert transport.is_clean()


@pytest.mark.parametrize("timeout", [0, 0.0, -1])
def test_no_time_at_all_is_enough_for_what_has_arrived(pair: Pair, timeout: float) -> None:
    transport, peer = pair
    with pytest.raises(RecvTimeout):
        transport.recv(timeout)
    peer.raw(frame(TEXT, b"one") + frame(TEXT, b"two"))
    arrived(transport)
    assert eventually(lambda: _try_recv(transport, timeout)) == "one"
    assert eventually(lambda: _try_recv(transport, timeout)) == "two"
    with pytest.raises(RecvTimeout):
        transport.recv(timeout)
    assert not transport.damaged


def _try_recv(transport: Transport, timeout: float) -> Any:
    try:
        return transport.recv(timeout)
    except RecvTimeout:
        return None


def test_endless_timeouts(pair: Pair) -> None:
    transport, peer = pair
    peer.send(TEXT, "a")
    assert transport.recv(float("inf")) == "a"
    transport.send("b", timeout=float("inf"))
    waiting = receiving(transport, 1e12)
    second = Background(lambda: transport.recv(float("inf")))
    peer.send(TEXT, "c")
    peer.send(TEXT, "d")
    assert {waiting.result(), second.result()} == {"c", "d"}
    with transport._write_lock:
        sending = Background(lambda: transport.send("e", timeout=float("inf")))
    sending.result()
    pinging = Background(lambda: transport.ping(float("inf")))
    assert [peer.receive()[1] for _ in range(2)] == [b"b", b"e"]
    peer.send(PONG, peer.receive()[1])
    pinging.result()


def test_a_second_receiver_waits_its_turn(pair: Pair) -> None:
    transport, peer = pair
    first = receiving(transport)
    with within(1, at_least=0.05), pytest.raises(RecvTimeout, match="another thread"):
        transport.recv(0.05)
    peer.send(TEXT, "a")
    assert first.result() == "a"


def test_an_idle_connection_keeps_no_buffer(pair: Pair) -> None:
    transport, peer = pair
    peer.send(TEXT, "a")
    assert transport.recv(5) == "a"
    assert transport.drain()
    assert not transport._view
    peer.send(TEXT, "b")
    assert transport.recv(5) == "b"


def test_the_greeting_may_come_with_the_answer(link: Link) -> None:
    for tls in (False, True):
        transport, _ = link(tls=tls, after=frame(TEXT, b"session.created") + frame(TEXT, b"more"))
        assert transport.recv(5) == "session.created"
        assert transport.recv(5) == "more"


def test_a_dead_network_is_not_a_deadline(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's ETIMEDOUT is a TimeoutError as well, but means that the connection is gone."""
    transport, peer = pair
    stream = transport.stream
    monkeypatch.setattr(
        stream, "sock", Faulty(stream.sock, TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    )
    peer.send(TEXT, "unreadable")
    with pytest.raises(ConnectionLost, match="Connection timed out"):
        transport.recv(5)


def test_what_came_before_a_reset_is_received(pair: Pair) -> None:
    """Also what TLS has not decrypted yet, when the one read that brought it was filled to the last byte."""
    transport, peer = pair
    size = BUFFER // 4 - 22  # of a record, without what TLS 1.3 adds to it
    texts = [letter * (size - 4) for letter in "abcd"]
    for text in texts:
        peer.send(TEXT, text)
    transport.stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * BUFFER)
    total = 4 * (size + 22 if isinstance(peer.sock, ssl.SSLSocket) else size)
    eventually(lambda: len(transport.stream.sock.recv(2 * BUFFER, socket.MSG_PEEK)) == total)
    assert transport.recv(5) == texts[0]
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sock.close()
    assert [transport.recv(5) for _ in texts[1:]] == texts[1:]
    with pytest.raises(ConnectionLost):
        transport.recv(5)


def test_a_dead_network_is_found_by_a_sender(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    transport, _ = pair
    stream = transport.stream
    monkeypatch.setattr(
        stream, "sock", Faulty(stream.sock, TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    )
    with pytest.raises(ConnectionLost, match="Connection timed out"):
        transport.send("x")
    assert transport.ended


def test_a_false_alarm_of_poll_does_not_end_the_wait(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    transport, peer = pair
    stream = transport.stream
    monkeypatch.setattr(stream, "sock", Faulty(stream.sock, BlockingIOError(), times=2))
    peer.send(TEXT, "a")
    assert transport.recv(None) == "a"


class Faulty:
    """A socket that fails a few times."""

    def __init__(self, sock: socket.socket, error: OSError, times: int = 1 << 30) -> None:
        self._sock, self._error, self._left = sock, error, times

    def _maybe(self) -> None:
        self._left -= 1
        if self._left >= 0:
            raise self._error

    def recv_into(self, view: memoryview) -> int:
        self._maybe()
        return self._sock.recv_into(view)

    def send(self, data: bytes) -> int:
        self._maybe()
        return self._sock.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


# -- what a server must not send


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(TEXT, b"a", masked=True), 1002),
        (frame(TEXT, b"a" * 200, masked=True), 1002),
        (frame(0x3, b"a"), 1002),
        (frame(0x7, b"a"), 1002),
        (frame(0xB, b"a"), 1002),
        (frame(TEXT, b"a", rsv=4), 1002),
        (frame(BINARY, b"a", rsv=1), 1002),
        (frame(PING, b"a", final=False), 1002),
        (frame(PONG, b"a" * 126), 1002),
        (frame(CLOSE, b"\x03\xe8" + b"a" * 124), 1002),
        (frame(CONTINUATION, b"a"), 1002),
        (frame(CONTINUATION, b"a", final=False), 1002),
        (frame(TEXT, b"a", final=False) + frame(TEXT, b"b"), 1002),
        (frame(BINARY, b"", final=False) + frame(BINARY, b"b"), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xc3", final=False) + frame(CONTINUATION, b"("), 1007),
        (frame(TEXT, b"x" * BUFFER + b"\xed\xa0\x80"), 1007),
    ],
)
def test_a_violation_is_answered_with_its_close_code(pair: Pair, wire: bytes, code: int) -> None:
    transport, peer = pair
    peer.raw(wire + frame(TEXT, b"never"))
    with pytest.raises(ConnectionLost) as caught:
        transport.recv(5)
    assert caught.value.code == code
    assert type(caught.value) is ConnectionLost
    assert transport.ended
    assert not transport.connected
    assert peer.receive_close()[0] == code
    for use in (lambda: transport.recv(5), lambda: transport.send("x"), lambda: transport.ping(5)):
        with pytest.raises(ConnectionLost) as again:
            use()
        assert again.value.code == code
    assert not transport.drain()
    assert not transport.is_clean()


@pytest.mark.parametrize(
    "wire",
    [
        frame(TEXT, b"a" * 1001),
        b"\x81\x7f" + struct.pack("!Q", 1 << 40),
        b"\x82\x7f" + b"\xff" * 8,
        frame(TEXT, b"a" * 600, final=False) + frame(CONTINUATION, b"a" * 401),
    ],
    ids=["frame", "2^40", "2^64-1", "fragments"],
)
def test_a_message_above_the_limit(link: Link, wire: bytes) -> None:
    transport, peer = link(max_size=1000)
    peer.raw(wire)
    with pytest.raises(MessageTooBig) as caught:
        transport.recv(5)
    assert caught.value.code == 1009
    assert peer.receive_close()[0] == 1009
    with pytest.raises(MessageTooBig):
        transport.recv(5)


def test_the_limit_itself_is_allowed_and_control_frames_do_not_count(link: Link) -> None:
    transport, peer = link(max_size=1000)
    peer.send(TEXT, "a" * 1000)
    assert transport.recv(5) == "a" * 1000
    peer.send(BINARY, b"a" * 500, final=False)
    peer.send(CONTINUATION, b"a" * 480, final=False)
    peer.send(PING, b"p" * 125)
    peer.send(CONTINUATION, b"a" * 20)
    assert transport.recv(5) == b"a" * 1000
    assert peer.receive() == (PONG, b"p" * 125)


def test_empty_fragments_cost_no_memory(link: Link) -> None:
    transport, peer = link()
    peer.send(TEXT, b"a", final=False)
    feeding = Background(lambda: peer.raw(frame(CONTINUATION, final=False) * 50_000))

    def taken() -> bool:
        with contextlib.suppress(RecvTimeout):
            transport.recv(0)
        return feeding.done and not transport.has_bytes() and transport._stop == transport._pos

    eventually(taken)
    assert transport._parts is not None
    assert len(transport._parts) == 1
    assert transport.has_unread
    peer.send(CONTINUATION, b"b")
    assert transport.recv(5) == "ab"
    assert transport.is_clean()


# -- full duplex


def echo(size: int, reply: bytes) -> Callable[[Peer], None]:
    """A server that answers every frame of ``size`` bytes with ``reply``; one thread, hence safe with TLS."""

    def script(peer: Peer) -> None:
        peer.upgrade()
        have = len(peer.buffer)
        while True:
            peer.raw(reply * (have // size))
            have %= size
            data = peer.sock.recv(1 << 18)
            if not data:
                return
            have += len(data)

    return script


def exchange(transport: Transport, count: int, message: str, expected: str) -> None:
    """Send from this thread while another receives."""

    def receive() -> None:
        for _ in range(count):
            assert transport.recv(20) == expected

    receiver = Background(receive)
    for _ in range(count):
        transport.send(message, timeout=20)
    receiver.result(30)
    assert transport.is_clean()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_one_thread_sends_while_another_receives(authority: Authority, tls: bool) -> None:
    """What connections on an SSLSocket survive by luck only."""
    message, expected = "m" * 2000, "e" * 4096
    script = echo(len(message) + 8, frame(TEXT, expected.encode()))
    context = authority.client if tls else None
    with Listener(script, tls=authority.server if tls else None) as server:
        for _ in range(20):
            transport = dial(server.port, context=context).run()
            try:
                exchange(transport, 500, message, expected)
            finally:
                discard(transport)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_directions_at_once_on_a_fresh_connection(authority: Authority, version: ssl.TLSVersion) -> None:
    """Where session tickets arrive while the first messages are sent."""
    message, expected = "x" * 1000, "y" * 1000
    context = ssl.create_default_context(cafile=authority.file)
    context.minimum_version = context.maximum_version = version
    with Listener(echo(len(message) + 8, frame(TEXT, expected.encode())), tls=authority.server) as server:
        for _ in range(200):
            transport = dial(server.port, context=context).run()
            try:
                exchange(transport, 5, message, expected)
            finally:
                discard(transport)


# -- draining


def test_drain_answers_pings_and_keeps_messages_in_order(pair: Pair) -> None:
    transport, peer = pair
    assert transport.drain()
    peer.raw(frame(TEXT, b"1") + frame(PING, b"p") + frame(BINARY, b"2"))
    eventually(lambda: transport.drain() and len(transport._inbox) == 2)
    assert peer.receive() == (PONG, b"p")
    assert transport.has_unread
    assert not transport.is_clean()
    peer.send(TEXT, "3")
    assert [transport.recv(5) for _ in range(3)] == ["1", b"2", "3"]
    peer.send(TEXT, "4")
    eventually(lambda: transport.drain() and transport.has_unread)
    assert transport.take_unread() == ["4"]
    assert transport.take_unread() == []
    transport.keep("5")
    assert transport.recv(0) == "5"


def test_drain_leaves_a_peer_that_sends_too_much_waiting(pair: Pair) -> None:
    transport, peer = pair
    count, message = 80, "x" * 50_000
    feeding = Background(lambda: [peer.send(TEXT, message) for _ in range(count)])

    def full() -> bool:
        assert transport.drain()
        return transport._inbox_bytes >= READ_AHEAD

    eventually(full)
    held = len(transport._inbox)
    assert transport.drain()
    assert len(transport._inbox) == held <= READ_AHEAD // len(message) + 1
    assert [transport.recv(5) for _ in range(count)] == [message] * count
    feeding.result()


def test_unread_messages_are_all_taken_however_many(pair: Pair) -> None:
    """What stays parsed half-way wakes no selector: nobody would come back for it."""
    transport, peer = pair
    message = "x" * 20_000
    peer.raw(b"")
    count = READ_AHEAD // len(message) + 4
    feeding = Background(lambda: [peer.send(TEXT, message) for _ in range(count)])
    got: list[Any] = []

    def settled() -> bool:
        transport.drain()
        if transport._inbox_bytes >= READ_AHEAD:
            feeding.result()
            got.extend(transport.take_unread())
            return True
        return False

    eventually(settled)
    assert not transport.stream.holds_bytes()
    assert not (transport._stop > transport._pos and not transport.has_bytes() and len(got) < count)


def test_a_peer_that_never_pauses_does_not_capture_take_unread(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtpool_sync.transport.websocket.READ_AHEAD", 1000)
    transport, peer = link()
    feeding = Background(lambda: peer.raw(frame(TEXT, b"x" * 100) * 100_000))
    eventually(lambda: transport.drain() and transport._inbox_bytes >= 1000)
    with within(1):
        taken = len(transport.take_unread())
    assert 16 * 6 <= taken <= 16 * 7
    for _ in range(100_000 - taken):
        assert transport.recv(5) == "x" * 100
    feeding.result()


def test_draining_while_another_receives_is_that_ones_business(pair: Pair) -> None:
    transport, peer = pair
    waiting = receiving(transport)
    with within(0.5):
        assert transport.drain()
        assert transport.take_unread() == []
    peer.send(TEXT, "a")
    assert waiting.result() == "a"


def test_drain_reports_the_end(pair: Pair) -> None:
    transport, peer = pair
    peer.send(TEXT, "last")
    peer.close()
    eventually(lambda: not transport.drain())
    assert transport.ended
    assert transport.recv(5) == "last"
    with pytest.raises(ConnectionLost, match="without a close frame") as caught:
        transport.recv(5)
    assert caught.value.code == 1006
    assert transport.peer_closed


def test_a_flood_of_pings_does_not_capture_drain(link: Link) -> None:
    transport, peer = link()
    stop = threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                peer.raw(frame(PING, b"") * 5000)

    flooding = Background(flood)
    arrived(transport)
    try:
        with within(2):
            for _ in range(3):
                assert transport.drain()
            with pytest.raises(RecvTimeout):
                transport.recv(0)
    finally:
        stop.set()
        transport.abort()
        flooding.result()
    assert len(transport._control) <= 1000


def test_a_flood_of_empty_messages_is_held_back(link: Link) -> None:
    transport, peer = link()
    feeding = Background(lambda: peer.raw(frame(TEXT) * 200_000))
    held = 0
    while (now := len(transport._inbox)) != held or not now:
        held = now
        assert transport.drain()
        time.sleep(0.01)
    assert held <= READ_AHEAD // 32
    assert [transport.recv(5) for _ in range(200_000)] == [""] * 200_000
    feeding.result()
    assert transport.is_clean()


# -- sending


def test_a_timed_out_message_stays_first_in_line(narrow: Pair) -> None:
    transport, peer = narrow
    message = stall(transport)
    assert (transport.is_clean(), transport.ended) == (False, False)
    taking = Background(lambda: [peer.receive() for _ in range(3)])
    transport.send("second", timeout=5)
    transport.send("third", timeout=5)
    assert taking.result() == [(TEXT, message.encode()), (TEXT, b"second"), (TEXT, b"third")]
    assert transport.is_clean()
    assert transport.messages_sent == 3


def test_a_timed_out_message_may_have_been_sent(narrow: Pair) -> None:
    transport, peer = narrow
    stall(transport)
    peer.close()
    with pytest.raises(ConnectionLost) as caught:
        transport.recv(5)
    assert caught.value.sent


@pytest.mark.parametrize("timeout", [0, -1])
def test_sending_without_waiting(pair: Pair, timeout: float) -> None:
    transport, peer = pair
    transport.send("at once", timeout=timeout)
    assert peer.receive() == (TEXT, b"at once")
    with transport._write_lock, pytest.raises(TimeoutError, match="another thread"):
        transport.send("no", timeout=timeout)


def test_another_sender_waits_within_its_own_deadline(narrow: Pair) -> None:
    transport, _ = narrow
    assert transport.sock is not None
    transport.sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    slow = Background(lambda: transport.send("s" * 3_000_000, timeout=20))
    eventually(transport._write_lock.locked)
    with within(1, at_least=0.05), pytest.raises(TimeoutError, match="another thread"):
        transport.send("x", timeout=0.05)
    with within(0.5):
        transport.abort()
        assert isinstance(slow.error(), ConnectionLost)


def test_what_cannot_be_encoded_is_not_sent(pair: Pair) -> None:
    transport, peer = pair
    with pytest.raises(UnicodeEncodeError):
        transport.send("\ud800")
    transport.send("fine")
    assert peer.receive() == (TEXT, b"fine")
    assert not transport.damaged


def test_a_sender_learns_why_the_peer_closed(pair: Pair) -> None:
    transport, peer = pair
    peer.send(TEXT, "parting words")
    peer.send_close(1008, "policy")
    peer.close()
    with pytest.raises(ConnectionLost) as caught:
        for _ in range(1000):
            transport.send("x" * 10000)
    assert (caught.value.code, caught.value.reason, caught.value.sent) == (1008, "policy", True)
    assert transport.recv(5) == "parting words"


def test_a_failed_sender_takes_nothing_from_the_receiver(link: Link) -> None:
    """The peer said something, then broke off. Whoever receives must still get it, not the sender's EPIPE."""
    transport, peer = link()
    stream = transport.stream
    original, reached, go_on = stream.fill, threading.Event(), threading.Event()

    def late_fill(*args: Any) -> int:
        if threading.current_thread() is waiting_thread[0]:
            reached.set()
            assert go_on.wait(5)
        return original(*args)

    waiting_thread: list[threading.Thread] = []

    def receive() -> list[Any]:
        waiting_thread.append(threading.current_thread())
        return [transport.recv(5), transport.recv(5)]

    stream.fill = late_fill  # type: ignore[method-assign]
    waiting = Background(receive)
    assert reached.wait(5)
    peer.raw(frame(TEXT, b"one") + frame(TEXT, b"two") + frame(CLOSE, struct.pack("!H", 4001) + b"why"))
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    arrived(transport)
    peer.sock.shutdown(socket.SHUT_RDWR)
    stream.sock.shutdown(socket.SHUT_WR)  # EPIPE from here on
    with pytest.raises(ConnectionLost, match="Broken pipe"):
        transport.send("x")
    assert not transport.ended, "that is for the one who reads to find out"
    go_on.set()
    assert waiting.result() == ["one", "two"]
    with pytest.raises(ConnectionLost) as caught:
        transport.recv(5)
    assert caught.value.code == 4001


def test_a_failed_sender_leaves_more_than_the_inbox_holds_to_be_read(link: Link) -> None:
    transport, peer = link()
    message = "x" * 50_000
    count = READ_AHEAD // len(message) + 2
    feeding = Background(lambda: [peer.send(TEXT, message) for _ in range(count)])
    eventually(lambda: transport.drain() and transport._inbox_bytes >= READ_AHEAD)
    feeding.result()
    transport.stream.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLost, match="Broken pipe"):
        transport.send("x")
    assert [transport.recv(5) for _ in range(count)] == [message] * count


def test_a_sender_alone_ends_a_connection_it_cannot_use(pair: Pair) -> None:
    transport, _ = pair
    transport.stream.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLost, match="Broken pipe") as caught:
        transport.send("x")
    assert caught.value.code == 1006
    assert transport.ended
    with pytest.raises(ConnectionLost, match="Broken pipe"):
        transport.recv(5)


# -- borrowers


def test_every_call_shows_the_borrowers_token(pair: Pair) -> None:
    transport, peer = pair
    mine, others = object(), object()
    transport.owner = mine
    peer.send(TEXT, "mine")
    for use in (
        lambda: transport.recv(5, others),
        lambda: transport.recv(0, others),
        lambda: transport.send("x", owner=others),
        lambda: transport.ping(5, others),
    ):
        with within(0.5), pytest.raises(ConnectionReturned):
            use()
    assert transport.recv(5, mine) == "mine"
    transport.send("y", owner=mine)
    assert peer.receive() == (TEXT, b"y")
    assert transport.is_clean()


def test_a_message_that_comes_after_the_return_is_not_given_away(pair: Pair) -> None:
    transport, peer = pair
    transport.owner = "first"
    waiting = receiving(transport, 5, "first")
    transport.owner = None
    assert not transport.is_clean(), "somebody is in it"
    peer.send(TEXT, "too late")
    assert isinstance(waiting.error(), ConnectionReturned)
    assert transport.damaged


def test_those_who_wait_for_their_turn_are_turned_away_after_the_return(pair: Pair) -> None:
    transport, peer = pair
    transport.owner = "first"
    with transport._write_lock, transport.readlock:
        sending = Background(lambda: transport.send("x", owner="first"))
        receiver = Background(lambda: transport.recv(5, "first"))
        eventually(lambda: transport._receivers)
        transport.owner = "second"
        peer.send(TEXT, "for the second")
    assert isinstance(sending.error(), ConnectionReturned)
    assert isinstance(receiver.error(), ConnectionReturned)
    assert transport.recv(5, "second") == "for the second"
    transport.send("from the second", owner="second")
    assert peer.receive() == (TEXT, b"from the second")


def test_a_ping_under_way_ends_with_the_loan(pair: Pair) -> None:
    transport, peer = pair
    transport.owner = "first"
    pinging = Background(lambda: transport.ping(30, "first"))
    _, payload = peer.receive()
    transport.owner = "second"
    peer.send(TEXT, "for the second")
    with within(1):
        assert isinstance(pinging.error(), ConnectionReturned)
    assert transport.recv(5, "second") == "for the second"
    peer.send(PONG, payload)
    peer.send(TEXT, "more")
    assert transport.recv(5, "second") == "more"


def test_nothing_hides_between_two_sessions(pair: Pair) -> None:
    """A message in a TLS record that was read from the kernel and not looked at is still a message."""
    transport, peer = pair
    wire = frame(TEXT, b"answer")
    peer.raw(wire)
    arrived(transport)
    peer.raw(frame(TEXT, b"straggler"))  # a record of its own

    def has_both() -> bool:
        size = len(transport.stream.sock.recv(65536, socket.MSG_PEEK))
        return size >= 2 * len(wire) + (40 if transport.stream.tls else 3)

    eventually(has_both)
    assert transport.recv(5) == "answer"
    assert transport.has_unread
    assert not transport.is_clean()
    assert transport.has_bytes() or transport._stop > transport._pos


def test_bytes_that_came_with_the_upgrade_are_unread(link: Link) -> None:
    transport, _ = link(after=frame(TEXT, b"hello"))
    assert transport.has_unread
    assert not transport.is_clean()
    assert transport.has_bytes()
    assert transport.recv(0) == "hello"
    assert transport.is_clean()


# -- control frames


def test_pings_are_answered_while_receiving(pair: Pair) -> None:
    transport, peer = pair
    waiting = receiving(transport)
    for i in range(3):
        peer.send(PING, str(i))
        assert peer.receive() == (PONG, str(i).encode())
    peer.send(TEXT, "done")
    assert waiting.result() == "done"


def test_a_receiver_is_not_held_up_by_a_stalled_sender(narrow: Pair) -> None:
    transport, peer = narrow
    assert transport.sock is not None
    transport.sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    message = "s" * 3_000_000
    slow = Background(lambda: transport.send(message, timeout=20))
    eventually(transport._write_lock.locked)
    peer.send(PING, b"p")
    peer.send(TEXT, "through")
    with within(1):
        assert transport.recv(5) == "through"
    assert transport._control
    assert not slow.done
    assert peer.receive() == (TEXT, message.encode())
    slow.result()
    eventually(transport.flush)
    assert peer.receive() == (PONG, b"p")
    assert transport.is_clean()


def test_a_pong_that_waits_in_line_does_not_wait_for_ever(pair: Pair) -> None:
    """It is queued while a sender holds the lock; the sender, on leaving, looks at the queue."""
    transport, peer = pair
    for i in range(50):
        threads = [Background(lambda: transport.send("x")) for _ in range(2)]
        peer.send(PING, str(i))
        transport.drain()
        for thread in threads:
            thread.result()
        eventually(lambda: transport.drain() and not transport.has_bytes())
        assert sorted(peer.receive()[0] for _ in range(3)) == [TEXT, TEXT, PONG]
        assert transport.is_clean()


def test_a_stalled_sender_learns_that_the_connection_ended_meanwhile(narrow: Pair) -> None:
    transport, peer = narrow
    assert transport.sock is not None
    transport.sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    slow = Background(lambda: transport.send("s" * 3_000_000, timeout=0.3))
    eventually(transport._write_lock.locked)
    peer.send_close(4001, "enough")
    with pytest.raises(ConnectionLost):
        transport.recv(5)
    error = slow.error()
    assert isinstance(error, ConnectionLost)
    assert error.code == 4001


def test_post_and_flush_never_wait(narrow: Pair) -> None:
    transport, peer = narrow
    message = stall(transport)
    with within(1):
        transport.post("posted")
        transport.post("and again")
        transport.send_keepalive()
        assert not transport.flush()
    assert transport.messages_sent == 3
    taking = Background(lambda: [peer.receive() for _ in range(4)])
    eventually(transport.flush)
    first, second, third, fourth = taking.result()
    assert (first, second, third) == ((TEXT, message.encode()), (TEXT, b"posted"), (TEXT, b"and again"))
    assert fourth[0] == PING
    assert transport.flush()
    assert transport.bytes_sent == len(message) + len("posted") + len("and again")


def test_what_is_in_line_goes_before_what_is_sent_later(pair: Pair) -> None:
    transport, peer = pair
    with transport._write_lock:
        transport.post("first")
        transport._send_control(PONG, b"second")
        sending = Background(lambda: transport.send("third"))
        eventually(lambda: len(transport._control) == 2)
    sending.result()
    assert [peer.receive() for _ in range(3)] == [(TEXT, b"first"), (PONG, b"second"), (TEXT, b"third")]
    assert transport.is_clean()


def test_drain_writes_what_is_left_over(narrow: Pair) -> None:
    transport, peer = narrow
    stall(transport, size=200_000)
    transport.post("posted")
    taking = Background(lambda: [peer.receive() for _ in range(2)])
    eventually(lambda: transport.drain() and not transport.stream.unsent)
    assert taking.result()[1] == (TEXT, b"posted")


def test_flush_while_somebody_writes_and_after_the_end(pair: Pair) -> None:
    transport, _ = pair
    with transport._write_lock:
        transport._send_control(PONG, b"x")
        assert not transport.flush()
    assert transport.flush()
    stream = transport.stream
    stream.unsent = b"rest"
    stream.sock.shutdown(socket.SHUT_WR)
    assert not transport.flush()
    transport.abort()
    assert transport.release()
    assert transport.flush()
    transport.post("into the void")
    transport.send_keepalive()
    assert not transport._control


def test_a_peer_that_pings_and_never_reads_costs_no_memory(narrow: Pair) -> None:
    transport, peer = narrow
    stall(transport)
    feeding = Background(lambda: [peer.raw(frame(PING, b"p" * 125) * 100) for _ in range(100)])
    before = len(transport.stream.unsent)
    eventually(lambda: transport.drain() and feeding.done and not transport.has_bytes())
    assert 0 < len(transport._control) <= MAX_QUEUED
    assert len(transport.stream.unsent) <= before


# -- liveness


def test_ping_measures_the_round_trip(pair: Pair) -> None:
    transport, peer = pair

    def answer() -> None:
        _, payload = peer.receive()
        time.sleep(0.05)
        peer.send(TEXT, "meanwhile")
        peer.send(PONG, payload)

    answering = Background(answer)
    took = transport.ping(5)
    assert 0.05 <= took < 2
    assert transport.rtt is not None
    assert 0.05 <= transport.rtt <= took
    answering.result()
    assert transport.recv(0) == "meanwhile"


def test_ping_while_another_thread_receives(pair: Pair) -> None:
    transport, peer = pair
    waiting = receiving(transport)
    pinging = Background(lambda: transport.ping(5))
    _, payload = peer.receive()
    peer.send(PONG, payload)
    assert pinging.result() < 2
    assert not waiting.done
    peer.send(TEXT, "still there")
    assert waiting.result() == "still there"


def test_ping_goes_on_reading_when_the_receiver_leaves(pair: Pair) -> None:
    transport, peer = pair
    waiting = receiving(transport)
    pinging = Background(lambda: transport.ping(5))
    _, payload = peer.receive()
    peer.send(TEXT, "go")
    assert waiting.result() == "go"
    peer.send(PONG, payload)
    with within(1):
        assert pinging.result() < 3


def test_ping_goes_on_when_another_ping_gives_up(pair: Pair) -> None:
    transport, peer = pair
    first = Background(lambda: transport.ping(0.3))
    peer.receive()
    eventually(transport.readlock.locked)
    second = Background(lambda: transport.ping(5))
    _, payload = peer.receive()
    assert isinstance(first.error(), TimeoutError)
    peer.send(PONG, payload)
    with within(1):
        assert second.result() < 3


def test_a_pong_answers_earlier_pings_too(pair: Pair) -> None:
    transport, peer = pair
    pings = []
    for _ in range(3):
        pings.append(Background(lambda: transport.ping(5)))
        pings_sent = peer.receive()[1]
    peer.send(PONG, pings_sent)
    for ping in pings:
        ping.result()
    assert not transport._pings


def test_a_pong_does_not_answer_later_pings(pair: Pair) -> None:
    transport, peer = pair
    transport.send_keepalive()
    transport.send_keepalive()
    first, second = peer.receive()[1], peer.receive()[1]
    peer.send(PONG, first)
    peer.send(TEXT, "a")
    assert transport.recv(5) == "a"
    assert list(transport._pings) == [second]


def test_ping_returns_in_the_middle_of_a_message(pair: Pair) -> None:
    transport, peer = pair
    pinging = Background(lambda: transport.ping(5))
    _, payload = peer.receive()
    peer.send(TEXT, "begun", final=False)
    peer.send(PONG, payload)
    with within(1):
        assert pinging.result() < 1
    peer.send(CONTINUATION, " and done")
    assert transport.recv(5) == "begun and done"


def test_ping_does_not_keep_a_receiver_from_its_messages(pair: Pair) -> None:
    transport, peer = pair
    pinging = Background(lambda: transport.ping(5))
    _, payload = peer.receive()
    eventually(transport.readlock.locked)
    waiting = Background(lambda: transport.recv(5))
    eventually(lambda: transport._receivers)
    peer.send(TEXT, "in time")
    with within(1):
        assert waiting.result() == "in time"
    assert not pinging.done
    peer.send(PONG, payload)
    assert pinging.result() < 3


def test_ping_without_answer(pair: Pair) -> None:
    transport, peer = pair
    with within(1, at_least=0.05), pytest.raises(TimeoutError, match="no answer to a ping"):
        transport.ping(0.05)
    with within(0.5), pytest.raises(TimeoutError):
        transport.ping(0)
    assert not transport._pings
    assert not transport.ended
    peer.send(PONG, b"nobody asked")
    peer.send(TEXT, "a")
    assert transport.recv(5) == "a"


def test_ping_on_a_connection_that_ends(pair: Pair) -> None:
    transport, peer = pair
    pinging = Background(lambda: transport.ping(5))
    peer.receive()
    peer.send_close(1001, "bye")
    assert isinstance(error := pinging.error(), ConnectionLost)
    assert error.code == 1001
    with pytest.raises(ConnectionLost):
        transport.ping(5)


def test_ping_while_the_receiver_finds_the_end(pair: Pair) -> None:
    transport, peer = pair
    waiting = receiving(transport)
    pinging = Background(lambda: transport.ping(5))
    peer.receive()
    peer.close()
    assert isinstance(waiting.error(), ConnectionLost)
    assert isinstance(pinging.error(), ConnectionLost)


def test_keepalive_and_silence(pair: Pair) -> None:
    transport, peer = pair
    now = time.monotonic()
    assert transport.silence(now + 100) == 0
    transport.send_keepalive()
    transport.send_keepalive()
    assert transport.silence(now + 100) > 99
    payloads = [peer.receive()[1] for _ in range(2)]
    peer.send(TEXT, "a sign of life")
    arrived(transport)
    assert transport.recv(5) == "a sign of life"
    assert 90 < transport.silence(transport.last_heard + 100) < 101
    peer.send(PONG, payloads[1])
    eventually(lambda: transport.drain() and not transport._pings)
    assert transport.silence(now + 100) == 0
    assert transport.rtt is not None


def test_a_borrower_that_does_not_read_is_not_a_silent_peer(link: Link) -> None:
    """Behind a full inbox the answer may have arrived and not been looked at."""
    transport, peer = link()
    transport.send_keepalive()
    _, payload = peer.receive()
    message = "x" * (READ_AHEAD // 2)
    tail = frame(TEXT, b"tail") + frame(PONG, payload)
    feeding = Background(lambda: peer.raw(frame(TEXT, message.encode()) * 2 + tail))
    feeding_done = False
    while not feeding_done or transport.has_bytes():
        feeding_done = feeding.done
        transport.drain()
        if transport._inbox_bytes >= READ_AHEAD:
            break
    feeding.result()
    if transport._stop == transport._pos:
        assert transport.has_bytes()
    else:
        assert transport.silence(time.monotonic() + 1000) == 0
    assert [transport.recv(5) for _ in range(3)] == [message, message, "tail"]
    eventually(lambda: transport.drain() and not transport._pings)


def test_a_ping_sent_while_an_answer_is_noted_is_not_forgotten(pair: Pair) -> None:
    transport, peer = pair

    class Busy(dict[bytes, float]):
        """Another thread's ping comes in while the answered ones are sorted out."""

        def items(self) -> Any:
            before = list(super().items())
            self[b"from another thread"] = time.monotonic()
            return before

    transport.send_keepalive()
    transport._pings = Busy(transport._pings)
    peer.send(PONG, peer.receive()[1])
    peer.send(TEXT, "a")
    assert transport.recv(5) == "a"
    assert list(transport._pings) == [b"from another thread"]


# -- exceptions out of nowhere


class Struck(BaseException):
    """Stands for KeyboardInterrupt, or a greenlet's timeout."""


def struck(*args: object) -> Any:
    raise Struck


@pytest.mark.parametrize(
    ("where", "use"),
    [
        ("fill", lambda transport: transport.recv(5)),
        ("write", lambda transport: transport.send("x")),
        ("fill", lambda transport: transport.ping(5)),
        ("write", lambda transport: transport.ping(5)),
        ("write", lambda transport: transport.post("x")),
        ("fill", lambda transport: transport.drain()),
    ],
    ids=["recv", "send", "ping reads", "ping writes", "post", "drain"],
)
def test_what_is_interrupted_is_damaged(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, where: str, use: Callable[[Transport], object]
) -> None:
    transport, _ = pair
    monkeypatch.setattr(transport.stream, where, struck)
    with pytest.raises(Struck):
        use(transport)
    assert transport.damaged
    assert not transport.is_clean()
    assert not transport.busy, "no lock is left behind"


def test_an_interrupted_flush_is_damage(narrow: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    transport, _ = narrow
    stall(transport)
    monkeypatch.setattr(transport.stream, "write", struck)
    with pytest.raises(Struck):
        transport.flush()
    assert transport.damaged
    assert not transport.busy


def test_an_interrupted_flush_after_sending_is_damage_too(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, _ = pair
    stream = transport.stream
    write = stream.write

    def queue_a_pong(data: bytes, end: float | None) -> None:
        write(data, end)
        transport._send_control(PONG, b"")
        monkeypatch.setattr(stream, "write", struck)

    monkeypatch.setattr(stream, "write", queue_a_pong)
    with pytest.raises(Struck):
        transport.send("x")
    assert transport.damaged


@pytest.mark.parametrize("lock", ["readlock", "_write_lock"])
def test_a_lock_lost_to_an_exception_does_not_keep_the_connection(link: Link, lock: str) -> None:
    """An exception between acquire() and try leaves a lock that nobody will ever release."""
    transport, peer = link()
    getattr(transport, lock).acquire()
    with within(0.5):
        assert transport.drain()
        assert transport.take_unread() == []
        transport.start_close()
        transport.abort()
        assert not transport.release()
    with within(2):
        eventually(transport.release)
    assert transport.sock is None
    peer.at_end()


def test_a_thread_that_stays_inside_keeps_the_descriptor_open(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, _ = link()
    stream = transport.stream
    leave = threading.Event()
    fill, number = stream.fill, stream.fileno()

    def slow_fill(*args: Any) -> int:
        size = fill(*args)
        assert leave.wait(5)
        return size

    monkeypatch.setattr(stream, "fill", slow_fill)
    waiting = receiving(transport)
    transport.abort()
    eventually(transport.release)
    assert stream.fileno() == number, "its number is not given to another connection"
    leave.set()
    assert isinstance(waiting.error(), ConnectionLost)
    stream.close()


def test_the_buffer_grows_when_it_is_full_and_goes_when_nothing_is_in_it(link: Link) -> None:
    transport, peer = link()
    assert not transport._view
    peer.send(TEXT, "short")
    assert transport.recv(5) == "short"
    assert len(transport._view) == FIRST_BUFFER
    count = 2 * FIRST_BUFFER // 100
    peer.raw(frame(TEXT, b"x" * 98) * count)
    arrived(transport)
    assert [transport.recv(5) for _ in range(count)] == ["x" * 98] * count
    assert len(transport._view) == ROOM, "more than the small one held came at once"
    peer.raw(frame(TEXT, b"whole") + frame(TEXT, b"half a message")[:9])
    assert transport.recv(5) == "whole"
    transport.rest()
    assert transport._view, "something is in it"
    peer.raw(frame(TEXT, b"half a message")[9:])
    assert transport.recv(5) == "half a message"
    transport.rest()
    assert not transport._view
    peer.send(TEXT, "y" * FIRST_BUFFER)
    assert transport.recv(5) == "y" * FIRST_BUFFER
    assert len(transport._view) == ROOM, "a message above the small one"
    transport.drain()
    assert not transport._view


def test_the_buffer_stays_while_somebody_receives(link: Link) -> None:
    transport, peer = link()
    peer.send(TEXT, "one")
    assert transport.recv(5) == "one"
    waiting = receiving(transport)
    transport.rest()
    peer.send(TEXT, "two")
    assert waiting.result() == "two"


@pytest.mark.parametrize("size", [100, 300, 70_000])
@pytest.mark.parametrize("cut", range(1, 12))
def test_the_small_buffer_ends_anywhere_in_a_frame(link: Link, size: int, cut: int) -> None:
    transport, peer = link()
    first = "x" * (FIRST_BUFFER - cut - 4)
    text = "".join(str(i % 10) for i in range(size))
    peer.raw(frame(TEXT, first.encode()) + frame(TEXT, text.encode()) + frame(TEXT, b"last"))
    assert transport.recv(5) == first
    assert transport.recv(5) == text
    assert transport.recv(5) == "last"


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [BUFFER - 4, BUFFER - 3, BUFFER - 2, BUFFER - 1])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_one_read_brings_more_than_a_frame_that_is_too_long_for_the_buffer(
    link: Link, opcode: int, size: int, cut: int
) -> None:
    """The first bytes of its header came with the read before, so there is room for what is behind it."""
    transport, peer = link()
    transport.stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * BUFFER)
    peer.send(TEXT, "x" * FIRST_BUFFER)
    assert transport.recv(5) == "x" * FIRST_BUFFER  # the large buffer is there, and empty
    body = b"y" * size
    wire = frame(opcode, body) + frame(TEXT, b"behind it")
    peer.raw(wire[:cut])
    with pytest.raises(RecvTimeout):
        transport.recv(0.05)
    peer.raw(wire[cut:])
    eventually(lambda: len(transport.stream.sock.recv(BUFFER, socket.MSG_PEEK)) == BUFFER)
    assert transport.recv(5) == (body if opcode == BINARY else body.decode())
    assert transport.recv(5) == "behind it"


@pytest.mark.parametrize("size", [1, 7, 100, FIRST_BUFFER - 4, FIRST_BUFFER - 3, FIRST_BUFFER, 20_000])
def test_a_buffer_of_any_size_tears_no_frame(link: Link, size: int) -> None:
    """Whatever the pieces are that the frames come in."""
    transport, peer = link()
    texts = [str(i % 10) * size for i in range(max(3, 80_000 // size // 4))]
    data = b"".join(frame(TEXT, text.encode()) for text in texts)
    chance = random.Random(size)

    def feed() -> None:
        at = 0
        while at < len(data):
            piece = chance.choice((1, 3, 500, FIRST_BUFFER, 30_000))
            peer.raw(data[at : at + piece])
            at += piece

    feeding = Background(feed)
    assert [transport.recv(5) for _ in texts] == texts
    feeding.result()


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_interrupted_at_random_it_is_whole_or_damaged(link: Link, tls: bool) -> None:
    """A signal handler that raises, thousands of places to strike at."""
    chance = random.Random(7)
    armed = threading.Event()
    main = threading.get_ident()
    stop = threading.Event()

    def handler(*args: object) -> None:
        if armed.is_set():
            armed.clear()
            raise Struck

    def strike() -> None:
        while not stop.is_set():
            time.sleep(chance.random() * 0.002)
            if armed.is_set():
                signal.pthread_kill(main, signal.SIGUSR1)

    def echo(peer: Peer) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, AssertionError, struct.error):
            while True:
                opcode, payload = peer.receive()
                if opcode == TEXT:
                    peer.send(TEXT, payload)

    before = signal.signal(signal.SIGUSR1, handler)
    striking = Background(strike)
    struck_times = damaged_times = 0
    try:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            transport, peer = link(tls=tls)
            echoing = Background(lambda peer=peer: echo(peer))  # type: ignore[misc]
            sent = got = 0
            while struck_times < 500 and not (transport.damaged or transport.busy) and time.monotonic() < end:
                try:
                    armed.set()
                    for _ in range(50):
                        sent += 1
                        transport.send(f"{sent:05d}" + "x" * 500, timeout=5)
                        text = transport.recv(5)
                        assert isinstance(text, str)
                        number = int(text[:5])
                        assert number >= got, "out of order"
                        assert text == f"{number:05d}" + "x" * 500
                        got = number + 1
                    armed.clear()
                except Struck:
                    struck_times += 1
            armed.clear()
            damaged_times += transport.damaged
            transport.abort()
            with within(2):
                eventually(transport.release)
            peer.close()
            echoing.result()
    finally:
        armed.clear()
        stop.set()
        striking.result()
        signal.signal(signal.SIGUSR1, before)
    assert struck_times


# -- the end


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1000, ""), (1001, "going away"), (1008, "nope"), (3000, "ä" * 50), (4999, "x" * 123)],
)
def test_the_servers_close_surfaces_and_is_answered(pair: Pair, code: int, reason: str) -> None:
    transport, peer = pair
    transport.send("x")
    peer.receive()
    peer.send_close(code, reason)
    with pytest.raises(ConnectionLost) as caught:
        transport.recv(5)
    error = caught.value
    assert (error.code, error.reason, error.sent) == (code, reason, True)
    assert str(code) in str(error)
    assert reason in str(error)
    assert peer.receive_close() == (code, "")
    assert transport.peer_closed
    end = transport.end_error
    assert end is not None
    assert end is not error
    assert (end.code, end.reason) == (code, reason)


def test_a_close_without_code(pair: Pair) -> None:
    transport, peer = pair
    assert transport.end_error is None
    assert not transport.peer_closed
    peer.send(CLOSE)
    with pytest.raises(ConnectionLost) as caught:
        transport.recv(5)
    assert (caught.value.code, caught.value.sent) == (1005, False)
    assert peer.receive() == (CLOSE, b"")


@pytest.mark.parametrize(
    "payload", [b"\x03", *(struct.pack("!H", c) for c in (0, 999, 1004, 1005, 1006, 1015, 5000))]
)
def test_a_close_code_that_must_not_be_sent_is_not_sent_back(link: Link, payload: bytes) -> None:
    transport, peer = link()
    peer.send(CLOSE, payload)
    with pytest.raises(ConnectionLost):
        transport.recv(5)
    assert peer.receive_close() == (1002, "")


def test_a_reason_that_is_not_text(pair: Pair) -> None:
    transport, peer = pair
    peer.send(CLOSE, b"\x03\xe8ab\xff")
    with pytest.raises(ConnectionLost) as caught:
        transport.recv(5)
    assert caught.value.reason == "ab\ufffd"


@pytest.mark.parametrize(
    "wire", [b"", b"\x81", b"\x81\x7e\x01", b"\x81\x05he", b"\x81\x7f" + struct.pack("!Q", 70_000) + b"x"]
)
def test_an_end_in_the_middle(pair: Pair, wire: bytes) -> None:
    transport, peer = pair
    peer.raw(wire)
    peer.close()
    with pytest.raises(ConnectionLost) as caught:
        transport.recv(5)
    assert caught.value.code == 1006
    assert transport.peer_closed


def test_one_close_frame_only(pair: Pair) -> None:
    transport, peer = pair
    transport.start_close(4000, "enough")
    transport.start_close(4001, "again")
    with pytest.raises(ConnectionLost):
        transport.send("x")
    peer.send(0x3)
    with pytest.raises(ConnectionLost) as caught:
        transport.recv(5)
    assert caught.value.code == 1002
    assert peer.receive_close() == (4000, "enough")
    transport.abort()
    assert peer.at_end()


def test_closing_without_waiting(pair: Pair) -> None:
    transport, peer = pair
    transport.start_close(1001)
    assert transport.drain()
    assert peer.receive_close() == (1001, "")
    peer.send_close(1001)
    eventually(lambda: not transport.drain())
    assert transport.end_error is not None
    assert transport.end_error.code == 1001
    assert transport.release()
    transport.start_close()


def test_close_does_the_handshake(pair: Pair) -> None:
    transport, peer = pair

    def answer() -> None:
        assert peer.receive_close() == (4002, "done")
        peer.send(TEXT, "nobody wants this")
        peer.send_close(4002)

    answering = Background(answer)
    with within(1):
        transport.close(4002, "done")
    answering.result()
    assert transport.sock is None
    assert transport.fileno() == -1
    assert transport.has_bytes()
    transport.close()
    transport.abort()
    assert transport.release()
    with pytest.raises(ConnectionLost):
        transport.recv(1)
    with pytest.raises(ConnectionLost):
        transport.send("x")
    with pytest.raises(ConnectionLost):
        _ = transport.stream


@pytest.mark.parametrize("timeout", [-1, 0, 0.2])
@pytest.mark.parametrize("reader", [False, True], ids=["alone", "reader"])
def test_close_is_bounded_by_its_timeout(pair: Pair, timeout: float, reader: bool) -> None:
    transport, _ = pair
    waiting = receiving(transport) if reader else None
    with within(max(0.0, timeout) + 0.4):
        transport.close(timeout=timeout)
    assert transport.sock is None
    if waiting is not None:
        assert isinstance(waiting.error(), ConnectionLost)


@pytest.mark.parametrize("wire", [b"x", frame(TEXT, b"x" * 1000) * 20], ids=["drip", "flood"])
@pytest.mark.parametrize("reader", [False, True], ids=["alone", "reader"])
def test_close_is_bounded_whatever_the_peer_sends(pair: Pair, wire: bytes, reader: bool) -> None:
    transport, peer = pair
    stop = threading.Event()
    if len(wire) == 1:
        peer.raw(b"\x81\x7f" + struct.pack("!Q", 10_000_000))

    def go_on() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                peer.raw(wire)
                if len(wire) == 1:
                    time.sleep(0.01)

    sending = Background(go_on)

    def consume() -> None:
        while True:
            transport.recv()

    waiting = Background(consume) if reader else None
    try:
        with within(0.8):
            transport.close(timeout=0.2)
    finally:
        stop.set()
        sending.result()
    if waiting is not None:
        assert isinstance(waiting.error(), ConnectionLost)
    eventually(transport.release)


def test_close_is_bounded_with_a_stalled_sender(narrow: Pair) -> None:
    transport, _ = narrow
    assert transport.sock is not None
    transport.sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    slow = Background(lambda: transport.send("s" * 3_000_000, timeout=20))
    eventually(transport._write_lock.locked)
    with within(0.8):
        transport.close(timeout=0.1)
    assert isinstance(slow.error(), ConnectionLost)


def test_abort_wakes_a_reader_and_a_writer_at_once(narrow: Pair) -> None:
    transport, _ = narrow
    waiting = receiving(transport)
    assert transport.sock is not None
    transport.sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    slow = Background(lambda: transport.send("s" * 3_000_000, timeout=20))
    eventually(transport._write_lock.locked)
    with within(0.5):
        transport.abort()
        assert isinstance(waiting.error(), ConnectionLost)
        assert isinstance(slow.error(), ConnectionLost)


def test_half_closing(pair: Pair) -> None:
    transport, peer = pair
    peer.send(TEXT, "nobody wants this")
    arrived(transport)
    with transport._write_lock:
        transport.end_sending()  # not into what somebody else is writing
    transport.send("still open")
    assert peer.receive() == (TEXT, b"still open")
    transport.end_sending()
    if isinstance(peer.sock, ssl.SSLSocket):  # then an end without close_notify is an exception
        peer.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    assert peer.sock.recv(10) == b""
    assert not transport.at_end()
    peer.close()
    eventually(transport.at_end)
    transport.abort()
    assert transport.release()
    transport.end_sending()
    assert transport.at_end()


def test_waiting_for_the_end_of_a_peer_that_never_pauses(pair: Pair) -> None:
    transport, peer = pair
    stop = threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                peer.raw(b"x" * 1_000_000)

    flooding = Background(flood)
    transport.end_sending()
    with within(1):
        for _ in range(3):
            assert not transport.at_end()
    stop.set()
    transport.abort()
    flooding.result()
    assert transport.at_end()


def test_lose_says_why(pair: Pair) -> None:
    transport, peer = pair
    waiting = receiving(transport)
    with within(0.5):
        transport.lose("no answer to a ping")
        assert isinstance(error := waiting.error(), ConnectionLost)
    assert error.reason == "no answer to a ping"
    with pytest.raises(ConnectionLost, match="no answer to a ping"):
        transport.send("x")
    assert peer.at_end()


def test_close_after_the_peer_has_closed(pair: Pair) -> None:
    transport, peer = pair
    peer.send_close(1001)
    eventually(lambda: not transport.drain())
    with within(0.5):
        transport.close()
    assert transport.sock is None
    assert transport.end_error is not None
    assert transport.end_error.code == 1001


def test_release_from_two_threads(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    transport, _ = pair
    stream = transport.stream

    class Late:
        """A lock that another thread, which let go of the stream, had a moment ago."""

        def acquire(self, blocking: bool) -> bool:
            transport.sock = None
            return True

        def release(self) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(transport, "readlock", Late())
        assert transport.release()
    stream.close()


def test_release_waits_for_whoever_is_inside(narrow: Pair) -> None:
    transport, _ = narrow
    waiting = receiving(transport)
    assert not transport.release()
    assert transport.busy
    transport.abort()
    assert isinstance(waiting.error(), ConnectionLost)
    with transport._write_lock:
        assert not transport.release()
    assert transport.release()
    assert transport.release()
    assert transport.ended


def test_shutdown_is_immediate(pair: Pair) -> None:
    transport, peer = pair
    with within(0.5):
        transport.shutdown()
    assert transport.sock is None
    assert peer.at_end()


def test_looking_at_a_connection_that_is_being_closed(pair: Pair) -> None:
    transport, _ = pair
    stream = transport.stream
    stream.close()
    assert transport.has_bytes(), "the end is something to be read"
    assert transport.fileno() == -1
    transport.abort()


def test_forget_sends_nothing(pair: Pair) -> None:
    """As in a forked child: the parent's copy of the descriptor goes on."""
    transport, peer = pair
    stream = transport.stream
    copy = socket.socket(fileno=os.dup(stream.fileno()))
    try:
        transport.forget()
        transport.forget()
        with pytest.raises(ConnectionLost, match="parent process"):
            transport.recv(1)
        with pytest.raises(ConnectionLost, match="parent process"):
            transport.send("x")
        assert not transport.connected
        peer.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            peer.receive()
    finally:
        copy.close()
    peer.sock.settimeout(5)
    assert peer.at_end()


def test_a_forked_child_forgets_and_the_parent_goes_on(pair: Pair) -> None:
    transport, peer = pair
    with transport.readlock, transport._write_lock, transport.stream._end_lock:
        child = os.fork()  # whoever held these locks does not exist in the child
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                transport.forget()
                code = 0
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    peer.send(TEXT, "to the parent")
    assert transport.recv(5) == "to the parent"
    transport.send("from the parent")
    assert peer.receive() == (TEXT, b"from the parent")


@pytest.fixture(autouse=True)
def _quick_switches() -> Iterator[None]:
    """Threads take turns often: what can go wrong between two of them does so sooner."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)
