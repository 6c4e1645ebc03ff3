"""What a borrower holds: sending, receiving, and what is left of it after the return."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import pickle
import threading
import time
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from pool_calls import Call, echo, realtime
from pool_support import eventually, plain

from rtpool_sync import (
    ConnectionLost,
    ConnectionReturned,
    MessageTooBig,
    RealtimeConnection,
    RecvTimeout,
    RtpoolError,
    SessionExpired,
)
from rtpool_sync.emulator import RealtimeServer

CLEAR = {"type": "input_audio_buffer.clear"}

#: Every use there is.
USES: dict[str, Callable[[RealtimeConnection], Any]] = {
    "send": lambda conn: conn.send("x"),
    "send a mapping": lambda conn: conn.send({"type": "x"}),
    "recv": lambda conn: conn.recv(),
    "recv with timeout": lambda conn: conn.recv(0),
    "recv_text": lambda conn: conn.recv_text(5.0),
    "iterate": lambda conn: next(iter(conn)),
    "ping": lambda conn: conn.ping(),
    "invalidate": lambda conn: conn.invalidate("x"),
    "abort": lambda conn: conn.abort(),
    "websocket": lambda conn: conn.websocket,
    "session_id": lambda conn: conn.session_id,
    "expires_at": lambda conn: conn.expires_at,
    "age_seconds": lambda conn: conn.age_seconds,
    "idle_seconds": lambda conn: conn.idle_seconds,
    "session_count": lambda conn: conn.session_count,
    "is_healthy": lambda conn: conn.is_healthy,
    "rtt_seconds": lambda conn: conn.rtt_seconds,
}


def test_no_use_is_forgotten_here() -> None:
    names = {name for name in dir(RealtimeConnection) if not name.startswith("_")}
    assert names - {"id", "closed"} == {use.partition(" ")[0] for use in USES} - {"iterate"}


# -- after the return


@pytest.mark.parametrize("protocol", ["plain", "realtime"])
@pytest.mark.parametrize("served", [False, True])
def test_after_the_return_every_use_says_so(protocol: str, served: bool) -> None:
    """Also while the socket underneath serves someone else, who notices nothing."""
    with RealtimeServer() as server:
        make = realtime if protocol == "realtime" else lambda s, **o: plain(s.echo_url, **o)
        with make(server, max_connections=1) as pool:
            with pool.connection(10.0) as old:
                first = old.id
            new = pool.acquire(10.0) if served else None
            for use in USES.values():
                with pytest.raises(ConnectionReturned, match="was returned") as caught:
                    use(old)
                assert isinstance(caught.value, RtpoolError)
            assert old.closed
            assert old.id == first
            assert "returned" in repr(old)
            if new is not None:
                assert new.id == first
                assert new.session_count == 2
                new.ping()
                if protocol == "plain":
                    echo(new)
                pool.release(new)
                with pool.connection(10.0) as again:
                    assert again.id == first  # not invalidated either


@pytest.mark.parametrize("use", USES)
def test_it_says_so_at_once_though_the_next_borrower_is_busy(use: str) -> None:
    """A returned handle does not queue up behind those who receive and send now."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(10.0) as old:
            pass
        with pool.connection(10.0) as new:
            transport = new._transport
            assert transport is not None
            reading = Call(new.recv)
            eventually(transport.readlock.locked)
            with transport._write_lock:  # what a sender holds whose peer does not read
                call = Call(USES[use], old)
                with pytest.raises(ConnectionReturned):
                    call.result(5.0)
            new.send("x")
            assert reading.result() == "x"


@pytest.mark.parametrize("use", ["recv", "recv_text", "iterate"])
def test_a_thread_blocked_in_recv_is_told_when_another_returns_it(use: str) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        conn = pool.acquire(10.0)
        calls = {"recv": conn.recv, "recv_text": conn.recv_text, "iterate": lambda: next(iter(conn))}
        reading = Call(calls[use])
        eventually(lambda: conn._transport.readlock.locked())  # type: ignore[union-attr]
        pool.release(conn)
        with pytest.raises(ConnectionReturned):
            reading.result(10.0)
        with pool.connection(10.0) as other:  # one with a reader inside cannot serve again
            assert other.id != conn.id
            echo(other)


def test_a_late_user_never_reaches_into_the_next_session() -> None:
    """Threads that go on using what was returned: the next borrower hears its own words only."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        stop = threading.Event()
        handles: list[RealtimeConnection] = []
        wrong: list[object] = []

        def misuse() -> None:
            while not stop.is_set():
                if not handles:
                    continue
                try:
                    handles[-1].send("intruder")
                    wrong.append("sent")
                except (ConnectionReturned, ConnectionLost):
                    pass
                try:
                    wrong.append(handles[-1].recv(0.0))
                except (ConnectionReturned, ConnectionLost):
                    pass
                time.sleep(0.0005)

        calls = [Call(misuse) for _ in range(2)]
        for turn in range(100):
            with pool.connection(10.0) as conn:
                echo(conn, f"mine {turn}")
            handles.append(conn)  # from here on it is returned
        stop.set()
        for call in calls:
            call.result()
        assert wrong == []


def test_returning_twice_is_harmless() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=2) as pool:
        conn = pool.acquire(10.0)
        for _ in range(3):
            pool.release(conn)
        assert (pool.stats().idle, pool.stats().total_connections) == (1, 1)
        with pool.connection(10.0) as other, pool.connection(10.0) as third:
            pool.release(conn)  # also while it serves somebody else
            assert {other.id, third.id} >= {conn.id}
            assert other.id != third.id
            assert pool.stats().in_use == 2
            echo(other)
        with pool.connection(10.0) as conn:
            pool.release(conn)  # and inside its own with
        calls = [Call(pool.release, one) for one in [pool.acquire(10.0)] * 8]
        for call in calls:
            call.result()
        assert pool.stats().idle == pool.stats().total_connections == 2


def test_returning_to_another_pool() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        other = plain("ws://127.0.0.1:9/")
        with pool.connection(10.0) as conn:
            with pytest.raises(ValueError, match=r"belongs to pool 'default'"):
                other.release(conn)
            for thing in (None, 1, "x", conn.websocket):
                with pytest.raises(ValueError, match="not a connection of a pool"):
                    pool.release(thing)  # type: ignore[arg-type]
            echo(conn)
            assert pool.stats().in_use == 1


def test_a_dropped_handle_is_taken_back() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        for _ in range(20):
            pool.acquire(10.0)
        gc.collect()
        eventually(lambda: pool.stats().in_use == 0)
        eventually(lambda: pool.stats().counters.leaks == 20)
        assert server.opened_total == 1


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_a_handle_has_no_twin(twin: Callable[[Any], Any]) -> None:
    """Dropped, it would take the connection from its borrower."""
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection() as conn:
        with pytest.raises(TypeError, match="cannot be copied"):
            twin(conn)
        gc.collect()
        echo(conn)
        assert pool.stats().counters.leaks == 0


# -- sending


@pytest.mark.parametrize(
    ("event", "heard"),
    [
        ({"type": "x", "n": 1}, {"type": "x", "n": 1}),
        (MappingProxyType({"type": "x"}), {"type": "x"}),
        ({"a": "ü\ud800"}, {"a": "ü\ud800"}),
        ("plain text", "plain text"),
        ("{broken", "{broken"),
        ('{"a": 1}', {"a": 1}),
        ("", ""),
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"\x01"), b"\x01"),
        (memoryview(b"\x02"), b"\x02"),
    ],
)
def test_what_can_be_sent(event: Any, heard: Any) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        conn.send(event)
        assert conn.recv(10.0) == heard


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (1, TypeError),
        (None, TypeError),
        ([{"type": "x"}], TypeError),
        ({"x": object()}, TypeError),
        ({"x": b"bytes"}, TypeError),
        ({"x": math.nan}, ValueError),
        ({"x": math.inf}, ValueError),
        ("\ud800", ValueError),
    ],
)
@pytest.mark.parametrize("protocol", ["plain", "realtime"])
def test_what_cannot_be_sent_is_not_sent(event: Any, error: type[Exception], protocol: str) -> None:
    with RealtimeServer(record=9) as server:
        with plain(server.echo_url) if protocol == "plain" else realtime(server) as pool:
            with pool.connection(10.0) as conn:
                with pytest.raises(error):
                    conn.send(event)
                conn.ping()
                [shown] = server.connections
                assert shown.frames_in == 0
                server.close_all(1011)
                with pytest.raises(ConnectionLost) as caught:
                    conn.recv(10.0)
                assert not caught.value.sent


def test_bytes_are_text_where_the_protocol_has_only_text() -> None:
    with RealtimeServer() as server, realtime(server) as pool, pool.connection(10.0) as conn:
        conn.send(b'{"type":"input_audio_buffer.clear"}')
        assert conn.recv(10.0)["type"] == "input_audio_buffer.cleared"
        with pytest.raises(ValueError):
            conn.send(b"\xff")


def test_one_thread_sends_while_another_receives() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        reading = Call(lambda: [conn.recv(10.0) for _ in range(1000)])
        sending = Call(lambda: [conn.send(str(number)) for number in range(1000)])
        assert reading.result() == [str(number) for number in range(1000)]
        sending.result()


# -- receiving


def test_recv_decodes_and_recv_text_does_not() -> None:
    with RealtimeServer() as server, realtime(server) as pool, pool.connection(10.0) as conn:
        conn.send(CLEAR)
        event = conn.recv(10.0)
        assert isinstance(event, dict)
        assert event["type"] == "input_audio_buffer.cleared"
        conn.send(CLEAR)
        text = conn.recv_text(10.0)
        assert isinstance(text, str)
        assert '"input_audio_buffer.cleared"' in text


@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_a_timeout_loses_nothing(timeout: float) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        for receive in (conn.recv, conn.recv_text):
            with pytest.raises(RecvTimeout) as caught:
                receive(timeout)
            assert isinstance(caught.value, (TimeoutError, RtpoolError))
        # Whole messages and halves of large ones, whatever the moment it gives up.
        numbers = range(60)
        for number in numbers:
            conn.send(f"{number}:" + "x" * (number * 5000))
        heard: list[str] = []
        end = time.monotonic() + 20
        while len(heard) < len(numbers):
            assert time.monotonic() < end
            try:
                heard.append(conn.recv(timeout / 10 if timeout > 0 else timeout))
            except RecvTimeout:
                continue
        assert [(int(text.partition(":")[0]), len(text.partition(":")[2])) for text in heard] == [
            (number, number * 5000) for number in numbers
        ]


def test_recv_waits_as_long_as_it_takes() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        for timeout in (None, math.inf, 1e12):
            reading = Call(conn.recv, timeout)
            eventually(lambda: conn._transport.readlock.locked())  # type: ignore[union-attr]
            conn.send("at last")
            assert reading.result() == "at last"


def test_what_is_no_json_is_a_value_error() -> None:
    with RealtimeServer() as server, realtime(server) as pool, pool.connection(10.0) as conn:
        server._each(None, lambda entry: entry.wire.send(b"not json"))
        with pytest.raises(ValueError):
            conn.recv(10.0)
        conn.send(CLEAR)
        assert conn.recv(10.0)["type"] == "input_audio_buffer.cleared"


# -- the end of a connection


def test_iteration_ends_with_1000() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        conn.send("a")
        conn.send("b")
        heard = []
        for text in conn:
            heard.append(text)
            if text == "b":
                server.close_all(1000)
        assert heard == ["a", "b"]


@pytest.mark.parametrize("code", [1001, 1011, 1005, 4000])
def test_every_other_close_is_raised(code: int) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        if code == 1005:
            server._each(None, lambda entry: entry.wire.write(b"\x88\x00"))  # a close frame without a code
        else:
            server.close_all(code, "as told")
        with pytest.raises(ConnectionLost) as caught:
            list(conn)
        assert caught.value.code == code
        assert caught.value.reason == ("" if code == 1005 else "as told")
        assert isinstance(caught.value, (ConnectionError, RtpoolError))


@pytest.mark.parametrize("kind", ["reset", "truncate"])
def test_without_a_close_frame_the_code_is_1006(kind: str) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        server.inject(kind)
        with pytest.raises(ConnectionLost) as caught:
            conn.recv(10.0)
        assert caught.value.code == 1006
        assert caught.value.reason
        assert conn.closed
        assert not conn.is_healthy
        with pytest.raises(ConnectionLost):
            conn.ping()


@pytest.mark.parametrize("sent", [True, False])
def test_sent_says_whether_this_session_may_have_reached_the_server(sent: bool) -> None:
    with RealtimeServer() as server, realtime(server) as pool:
        with pool.connection(10.0) as conn:
            conn.send(CLEAR)  # of another session: does not count
        with pool.connection(10.0) as conn:
            if sent:
                conn.send(CLEAR)
                conn.recv(10.0)
            server.close_all(1011)
            with pytest.raises(ConnectionLost) as caught:
                conn.recv(10.0)
            assert caught.value.sent is sent


def test_what_was_sent_into_the_void_did_not_reach_the_server() -> None:
    with RealtimeServer() as server, realtime(server) as pool, pool.connection(10.0) as conn:
        server.close_all(1011)
        eventually(lambda: conn.closed)
        for use in (lambda: conn.send(CLEAR), conn.recv):
            with pytest.raises(ConnectionLost) as caught:
                use()
            assert not caught.value.sent


def test_a_message_too_big() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_message_size=1024) as pool:
        with pool.connection(10.0) as conn:
            echo(conn, "x" * 1024)
            server.inject("oversize", size=1025)
            with pytest.raises(MessageTooBig) as caught:
                conn.recv(10.0)
            assert caught.value.code == 1009
            eventually(lambda: server.closed and server.closed[0].code == 1009)


@pytest.mark.parametrize("use", ["recv", "iterate", "ping"])
def test_the_servers_limit_is_an_exception_of_its_own(use: str) -> None:
    with RealtimeServer() as server, realtime(server) as pool, pool.connection(10.0) as conn:
        server.expire()
        if use == "ping":
            eventually(lambda: conn.closed)
        with pytest.raises(SessionExpired) as caught:
            for _ in itertools.repeat(None, 5):  # what it announces first can be read
                {"recv": lambda: conn.recv(10.0), "iterate": lambda: list(conn), "ping": conn.ping}[use]()
        assert isinstance(caught.value, ConnectionLost)
        assert caught.value.code == 1001


# -- ping, invalidate, properties


def test_ping_measures_the_round_trip() -> None:
    with RealtimeServer(latency=0.05) as server, plain(server.echo_url) as pool:
        with pool.connection(10.0) as conn:
            assert conn.rtt_seconds is None
            rtt = conn.ping()
            assert 0.045 <= rtt < 5.0
            assert conn.rtt_seconds == pytest.approx(rtt, abs=0.02)


def test_ping_takes_no_message_away() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        for number in range(5):
            conn.send(str(number))
        conn.ping()
        assert [conn.recv(5.0) for _ in range(5)] == list("01234")
        reading = Call(conn.recv)
        conn.ping()  # also while another thread receives
        conn.send("x")
        assert reading.result() == "x"


def test_ping_without_an_answer() -> None:
    with RealtimeServer(relay=True) as server, plain(server.echo_url) as pool:
        with pool.connection(10.0) as conn:
            assert server.relay is not None
            server.relay.cut()
            with pytest.raises(TimeoutError, match="no answer to a ping"):
                conn.ping(0.05)


@pytest.mark.parametrize("protocol", ["plain", "realtime"])
def test_an_invalidated_connection_is_not_reused(protocol: str) -> None:
    with RealtimeServer() as server:
        make = realtime if protocol == "realtime" else lambda s, **o: plain(s.echo_url, **o)
        with make(server, max_connections=1) as pool:
            with pool.connection(10.0) as conn:
                first = conn.id
                conn.invalidate("it talks nonsense")
                conn.ping()  # still ours
            with pool.connection(10.0) as conn:
                assert conn.id != first
            assert pool.stats().counters.closed["invalidated"] == 1
            assert any("it talks nonsense" in event.message for event in pool.events())


def test_properties_of_a_session() -> None:
    with RealtimeServer(session_seconds=1800) as server, realtime(server) as pool:
        with pool.connection(10.0) as conn:
            [shown] = server.connections
            assert conn.session_id == shown.session_id
            assert conn.expires_at == pytest.approx(time.time() + 1800, abs=30)
            assert 0 <= conn.age_seconds < 30
            assert 0 <= conn.idle_seconds < 30
            assert conn.session_count == 1
            assert conn.is_healthy is True
            assert conn.closed is False
            assert f"#{conn.id}" in repr(conn)
            age, idle = conn.age_seconds, conn.idle_seconds
            eventually(lambda: conn.age_seconds > age + 0.02)
            assert conn.idle_seconds > idle
            conn.ping()
            assert conn.idle_seconds < conn.age_seconds


def test_a_plain_connection_has_no_session() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        assert (conn.session_id, conn.expires_at) == (None, None)


def test_a_ping_without_an_answer_is_one_of_our_errors_and_a_timeout() -> None:
    with RealtimeServer(relay=True) as server, plain(server.echo_url) as pool:
        with pool.connection(10.0) as conn:
            assert server.relay is not None
            server.relay.cut()
            with pytest.raises(RecvTimeout) as caught:
                conn.ping(0.1)
            assert isinstance(caught.value, TimeoutError)
            assert isinstance(caught.value, RtpoolError)


def test_a_ping_under_way_is_no_sign_of_bad_health() -> None:
    with RealtimeServer(relay=True) as server, plain(server.echo_url, ping_interval=0.1) as pool:
        with pool.connection(10.0) as conn:
            assert server.relay is not None
            transport = conn._transport
            assert transport is not None
            server.relay.cut()
            eventually(lambda: transport.silence(time.monotonic()) > 0)
            assert conn.is_healthy


# -- abort


@pytest.mark.parametrize("waits_in", ["recv", "send"])
def test_abort_wakes_who_waits_and_costs_nobody_else(waits_in: str) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(10.0) as conn:
            if waits_in == "send":
                server.inject("stall")

            def wait() -> None:
                while True:
                    if waits_in == "recv":
                        conn.recv(30.0)
                    else:
                        conn.send("x" * 1_000_000)

            call = Call(wait)
            time.sleep(0.3)
            since = time.monotonic()
            conn.abort("enough of it")
            with pytest.raises(ConnectionLost, match="enough of it"):
                call.result(5.0)
            assert time.monotonic() - since < 1.0
            assert conn.closed
        with pool.connection(10.0) as other:  # the place is free again
            assert other.id != conn.id
