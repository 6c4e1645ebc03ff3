"""The telephony WebSocket: three libraries, one face. Real sockets, and peers that freeze."""

from __future__ import annotations

import contextlib
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import simple_websocket
import websocket
import websockets.sync.server
from werkzeug.serving import make_server

from rtpool_sync.bridges.telephony import Telephony, TelephonyClosed, adapt


class Peer:
    """The other end: it can speak, close as it should, and break off."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.sock = ws.sock if isinstance(ws, websocket.WebSocket) else ws.socket

    def send(self, text: str) -> None:
        self.ws.send(text)

    def recv(self) -> Any:
        return self.ws.recv()

    def close(self) -> None:
        """Send a close frame, and wait for nothing."""
        if isinstance(self.ws, websocket.WebSocket):
            self.ws.send_close(1000)
        else:
            threading.Thread(target=self.ws.close, args=(1000,), daemon=True).start()

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class Ends:
    """A connection: the bridge's end, as its library has it, and the peer."""

    def __init__(self) -> None:
        self.arrived: queue.Queue[Any] = queue.Queue()
        self.over = threading.Event()

    def route(self, ws: Any) -> None:
        self.arrived.put(ws)
        self.over.wait(30.0)


@contextlib.contextmanager
def wsgi(ends: Ends) -> Iterator[str]:
    """simple-websocket in a WSGI server, as flask-sock has it."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ends.route(simple_websocket.Server.accept(environ))
        start_response("200 OK", [])
        return []  # what the server writes then goes nowhere: the WebSocket has had the socket

    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)


@contextlib.contextmanager
def threaded(ends: Ends) -> Iterator[str]:
    server = websockets.sync.server.serve(ends.route, "127.0.0.1", 0, compression=None)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
        thread.join(5.0)


@pytest.fixture(params=["simple-websocket", "websockets.sync", "websocket-client"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Telephony, Peer]]:
    """The adapted WebSocket, and its peer; afterwards no thread of the library may be left."""
    before = set(threading.enumerate())
    made = Ends()
    with (wsgi if request.param == "simple-websocket" else threaded)(made) as url:
        dialled = websocket.create_connection(url, timeout=10.0)
        arrived = made.arrived.get(timeout=10.0)
        ours, theirs = (dialled, arrived) if request.param == "websocket-client" else (arrived, dialled)
        peer = Peer(theirs)
        telephony = adapt(ours)
        try:
            yield telephony, peer
        finally:
            telephony.close()
            made.over.set()
            peer.cut()
            dialled.shutdown()
    end = time.monotonic() + 5.0
    while (left := set(threading.enumerate()) - before) and time.monotonic() < end:
        time.sleep(0.005)
    assert not left


def in_thread(function: Callable[..., Any], *args: Any) -> queue.Queue[Any]:
    """Call it in a thread; the queue gets what it returns or raises."""
    outcome: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            outcome.put(function(*args))
        except BaseException as error:
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def flood(telephony: Telephony) -> None:
    for _ in range(2000):
        telephony.send("x" * 65536)


def test_messages_both_ways(ends: tuple[Telephony, Peer]) -> None:
    telephony, peer = ends
    for number in range(3):
        peer.send(f"from the peer {number}")
        assert telephony.recv(5.0) == f"from the peer {number}"
        telephony.send(f"to the peer {number}")
        assert peer.recv() == f"to the peer {number}"


def test_nothing_in_time_is_none_and_loses_nothing(ends: tuple[Telephony, Peer]) -> None:
    telephony, peer = ends
    since = time.monotonic()
    assert telephony.recv(0.1) is None
    assert 0.05 < time.monotonic() - since < 2.0
    peer.send("later")
    assert telephony.recv(5.0) == "later"


@pytest.mark.parametrize("clean", [True, False])
def test_the_end_is_told_apart_and_comes_after_the_last_words(
    ends: tuple[Telephony, Peer], clean: bool
) -> None:
    telephony, peer = ends
    peer.send("last words")
    if clean:
        peer.close()
    else:
        peer.cut()
    assert telephony.recv(5.0) == "last words"
    with pytest.raises(TelephonyClosed) as caught:
        telephony.recv(0.5)
    assert caught.value.clean is clean


def test_what_is_sent_now_is_sent_or_it_is_not(ends: tuple[Any, Peer]) -> None:
    telephony, peer = ends
    assert telephony.send_now("at once")
    assert peer.recv() == "at once"
    assert not telephony.send_now("x" * 100_000)  # that might block
    taken = 0
    while telephony.send_now("x" * 500):  # the peer reads nothing: the last one must not block either
        taken += 1
        assert taken < 100_000
    stuck = in_thread(flood, telephony)
    with pytest.raises(queue.Empty):
        stuck.get(timeout=0.3)
    outcome = in_thread(telephony.send_now, "no room")
    assert outcome.get(timeout=0.5) is False
    telephony.abort()
    assert isinstance(stuck.get(timeout=1.0), TelephonyClosed)


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_a_message_is_sent_whole(ends: tuple[Any, Peer], timeout: float | None) -> None:
    """A socket that does not block, as a greenlet's or one with a timeout, takes what fits only.

    And the library's own thread answers pings meanwhile.
    """
    telephony, peer = ends
    ours = getattr(telephony._ws, "sock", None) or telephony._ws.socket
    ours.settimeout(timeout)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    texts = [f"{number} {'x' * 300_000}" for number in range(40)]
    outcome = in_thread(lambda: [telephony.send(text) for text in texts])
    with pytest.raises(queue.Empty):
        outcome.get(timeout=0.3)  # the peer reads nothing yet
    for _ in range(5):
        peer.ws.ping()
    time.sleep(0.3)  # for the answers to be where they do not belong
    for text in texts:
        assert peer.recv() == text
    assert outcome.get(timeout=5.0) == [None] * len(texts)


def test_what_cannot_be_sent_any_more_is_told(ends: tuple[Any, Peer]) -> None:
    telephony, peer = ends
    peer.cut()

    def send() -> None:
        end = time.monotonic() + 5.0
        while time.monotonic() < end:  # until the kernel knows
            telephony.send_now("x")

    assert isinstance(in_thread(send).get(timeout=5.0), TelephonyClosed)


@pytest.mark.parametrize("clean", [True, False])
def test_messages_are_handed_over_in_order(ends: tuple[Any, Peer], clean: bool) -> None:
    """By the thread that receives them. Nobody else is woken, and the end comes after the last one."""
    telephony, peer = ends
    if not hasattr(telephony, "hand_to"):
        assert (
            type(telephony).__name__ != "_SimpleWebSocket"
        )  # the one library that has such a thread of its own
        return
    peer.send("0")
    heard: list[tuple[str, threading.Thread]] = []
    assert telephony.recv(5.0) == "0"
    peer.send("1")
    end = time.monotonic() + 5.0
    while not telephony._ws.input_buffer and time.monotonic() < end:
        time.sleep(0.005)
    assert telephony.hand_to(lambda message: heard.append((message, threading.current_thread())))
    assert heard == [("1", threading.current_thread())]  # it was there already
    waiting = in_thread(telephony.recv, 30.0)
    for number in range(2, 200):
        peer.send(str(number))
    while len(heard) < 199 and time.monotonic() < end:
        time.sleep(0.005)
    assert [message for message, _ in heard] == [str(number) for number in range(1, 200)]
    assert {thread for _, thread in heard[1:]} == {telephony._ws.thread}
    assert waiting.empty()
    peer.send("last words")
    peer.close() if clean else peer.cut()
    closed = waiting.get(timeout=5.0)
    assert isinstance(closed, TelephonyClosed)
    assert closed.clean is clean
    assert heard[-1][0] == "last words"


def test_abort_wakes_a_receiver(ends: tuple[Telephony, Peer]) -> None:
    telephony, _ = ends
    outcome = in_thread(telephony.recv, 30.0)
    time.sleep(0.1)
    telephony.abort()
    assert isinstance(outcome.get(timeout=0.5), TelephonyClosed)


def test_abort_wakes_a_sender_whose_peer_takes_nothing(ends: tuple[Telephony, Peer]) -> None:
    telephony, _ = ends
    outcome = in_thread(flood, telephony)
    with pytest.raises(queue.Empty):
        outcome.get(timeout=0.5)
    telephony.abort()
    assert isinstance(outcome.get(timeout=0.5), TelephonyClosed)


@pytest.mark.parametrize("stuffed", [False, True])
def test_closing_is_bounded_when_the_peer_is_frozen(ends: tuple[Telephony, Peer], stuffed: bool) -> None:
    telephony, _ = ends
    if stuffed:  # not even the close frame goes out
        stuff(telephony)
    since = time.monotonic()
    telephony.close(1000, "bye")
    assert time.monotonic() - since < 1.5


def stuff(telephony: Any) -> None:
    """Fill the kernel's buffers, and whatever the peer takes in, below the library."""
    ws = telephony._ws
    sock = getattr(ws, "sock", None) or ws.socket
    frame = websocket.ABNF.create_frame("x" * 65536, websocket.ABNF.OPCODE_TEXT)
    frame.mask_value = 1 if isinstance(ws, websocket.WebSocket) else 0
    data = frame.format()
    patience = sock.gettimeout()
    if patience is not None:
        sock.settimeout(0.01)  # Python waits that long, whatever the flag says
    end = time.monotonic() + 10.0
    full_since, rest = math.inf, b""
    while time.monotonic() - full_since < 0.2:
        assert time.monotonic() < end
        try:
            rest = rest or data
            rest = rest[sock.send(rest, socket.MSG_DONTWAIT) :]
            full_since = math.inf
        except (BlockingIOError, TimeoutError):
            full_since = min(full_since, time.monotonic())
            time.sleep(0.01)
    sock.settimeout(patience)


def test_a_close_frame_is_sent(ends: tuple[Telephony, Peer]) -> None:
    telephony, peer = ends
    outcome = in_thread(telephony.close, 1000, "bye")
    if isinstance(peer.ws, websocket.WebSocket):
        opcode, data = peer.ws.recv_data()
        assert (opcode, data[:2]) == (websocket.ABNF.OPCODE_CLOSE, b"\x03\xe8")
    else:
        with pytest.raises(websockets.exceptions.ConnectionClosedOK):
            peer.recv()
    assert outcome.get(timeout=3.0) is None


def test_closing_twice_and_using_it_afterwards(ends: tuple[Telephony, Peer]) -> None:
    telephony, _ = ends
    telephony.close()
    telephony.close()
    telephony.abort()
    with pytest.raises(TelephonyClosed):
        telephony.send("x")
    with pytest.raises(TelephonyClosed):
        telephony.recv(1.0)


def test_an_object_of_ones_own() -> None:
    class Own:
        def recv(self, timeout: float) -> str | None:
            return None

        def send(self, message: str) -> None: ...

        def close(self, code: int = 1000, reason: str = "") -> None: ...

        def abort(self) -> None: ...

    own = Own()
    assert adapt(own) is own


def test_what_is_no_websocket() -> None:
    with pytest.raises(TypeError, match="recv"):
        adapt(object())
