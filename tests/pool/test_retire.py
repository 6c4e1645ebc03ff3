"""What is never handed out: the old, the worn, the dead, the dirty; and what takes its place."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pool_calls import closed_with, echo, in_line, realtime
from pool_peers import CLOSE, PING, TEXT, Peer, frame, peers
from pool_support import eventually, plain
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from rtpool_sync import ConnectError, PoolTimeout, RealtimePool
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.lifecycle import Lifecycle
from rtpool_sync.lifecycle import usable_until as original_usable_until


def closed_for(pool: RealtimePool) -> dict[str, int]:
    """Why connections were closed, and how many."""
    return {reason: count for reason, count in pool.stats().counters.closed.items() if count}


def use(pool: RealtimePool) -> int:
    """Borrow a connection; return which it was."""
    with pool.connection(10.0) as conn:
        echo(conn)
        return conn.id


# -- age


def test_at_its_age_a_connection_is_closed_and_replaced() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connection_age=0.3) as pool:
        first = use(pool)
        assert use(pool) == first
        eventually(lambda: pool.stats().total_connections == 0)
        assert closed_for(pool) == {"age": 1}
        assert use(pool) != first
        assert closed_with(server)[0] == ("client", 1000)


def test_it_is_not_handed_out_past_its_age_though_nobody_has_closed_it_yet() -> None:
    """The reaper may be late; whoever borrows looks for himself."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=2) as pool:
        with pool.connection(10.0) as conn:
            first, member = conn.id, conn._member
        assert member is not None
        with pool._ledger.lock:
            member.usable_until = time.monotonic()
        assert use(pool) != first
        eventually(lambda: closed_for(pool) == {"age": 1})


def test_connections_opened_together_do_not_retire_together(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def usable_until(now: float, **settings: Any) -> tuple[float, str]:
        until = original_usable_until(now, **settings)
        limits.append((until[0] - now) / settings["max_age"])
        return until

    monkeypatch.setattr("rtpool_sync.lifecycle.usable_until", usable_until)
    with RealtimeServer() as server:
        with plain(server.echo_url, min_idle=10, max_connection_age=100, min_session_time=0) as pool:
            pool.wait(10.0)
    assert len(limits) == 10
    assert len(set(limits)) == 10
    assert all(0.95 <= limit <= 1.0 for limit in limits)


def test_min_session_time_is_kept_free_before_the_age() -> None:
    settings = {"max_connection_age": 60.4, "min_session_time": 57.38}  # 60.4 less 5 % is 57.38
    with RealtimeServer() as server, plain(server.echo_url, **settings) as pool:
        use(pool)
        eventually(lambda: closed_for(pool) == {"age": 1})


def test_min_session_time_is_kept_free_before_the_servers_limit() -> None:
    with RealtimeServer(session_seconds=61.5) as server:  # the server says whole seconds
        with realtime(server, min_session_time=60) as pool:
            with pool.connection(10.0) as conn:
                first, expires_at = conn.id, conn.expires_at
                assert expires_at is not None
                assert 0 < expires_at - time.time() <= 61.5
                # Time passes while it is in use: not closed, but never handed out again.
                eventually(lambda: expires_at - time.time() < 60)
                conn.ping()
            with pool.connection(10.0) as conn:
                assert conn.id != first
            assert closed_for(pool)["expiry"] >= 1


def test_a_server_that_grants_too_little_is_an_error_not_a_loop() -> None:
    with RealtimeServer(session_seconds=30) as server, realtime(server, min_session_time=60) as pool:
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(0.4)
        assert isinstance(caught.value.__cause__, ConnectError)
        assert "min_session_time=60" in str(caught.value.__cause__)
        assert server.opened_total <= 3


# -- sessions


@pytest.mark.parametrize("protocol", ["plain", "realtime"])
@pytest.mark.parametrize("most", [1, 3])
def test_a_connection_serves_so_many_sessions_and_no_more(protocol: str, most: int) -> None:
    with RealtimeServer() as server:
        make = realtime if protocol == "realtime" else lambda s, **o: plain(s.echo_url, **o)
        with make(server, max_connections=1, max_sessions_per_connection=most) as pool:
            served = []
            for _ in range(3 * most):
                with pool.connection(10.0) as conn:
                    served.append((conn.id, conn.session_count))
            ids = [served[most * index][0] for index in range(3)]
            assert len(set(ids)) == 3
            assert served == list(itertools.product(ids, range(1, most + 1)))
            eventually(lambda: closed_for(pool) == {"sessions": 3})
        assert server.max_sockets == 1


# -- idle


def test_after_max_idle_time_it_is_closed() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_idle_time=0.2) as pool:
        use(pool)
        began = time.monotonic()
        eventually(lambda: pool.stats().total_connections == 0)
        assert 0.1 < time.monotonic() - began < 5.0
        assert closed_for(pool) == {"idle": 1}


def test_down_to_min_idle_and_the_most_recently_used_stay() -> None:
    with RealtimeServer() as server:
        with plain(server.echo_url, max_idle_time=0.2, min_idle=2, max_connections=5) as pool:
            conns = [pool.acquire(10.0) for _ in range(5)]
            for conn in conns:
                pool.release(conn)
            eventually(lambda: pool.stats().total_connections == 2)
            assert closed_for(pool) == {"idle": 3}
            opened = server.opened_total
            looks = iter(range(40))
            eventually(lambda: next(looks, None) is None)  # the reaper comes by several times
            assert pool.stats().idle == 2
            assert closed_for(pool) == {"idle": 3}
            assert server.opened_total == opened  # not closed and opened again and again


def test_a_reserve_that_is_no_longer_asked_for_goes_when_its_time_has_come() -> None:
    """Looked at while it was the reserve, and not due again for a minute."""
    with RealtimeServer() as server:
        with plain(
            server.echo_url, max_idle_time=0.2, min_idle=4, max_connections=5, health_check_interval=60.0
        ) as pool:
            pool.wait(10.0)
            looks = iter(range(40))
            eventually(lambda: next(looks, None) is None)  # the reaper comes by several times
            pool.resize(5, min_idle=1)
            eventually(lambda: pool.stats().total_connections == 1)
            assert closed_for(pool) == {"idle": 3}


def test_the_reserve_is_refilled() -> None:
    with RealtimeServer() as server, plain(server.echo_url, min_idle=2, max_connections=4) as pool:
        pool.wait(10.0)
        with pool.connection(0.0), pool.connection(0.0):
            eventually(lambda: pool.stats().idle == 2)  # besides those in use
            assert pool.stats().total_connections == 4
        server.close_all(1001)
        eventually(lambda: pool.stats().counters.closed["lost"] == 4)
        eventually(lambda: pool.stats().idle == 2)


# -- health


def test_an_idle_connection_is_pinged_and_answers() -> None:
    with RealtimeServer() as server, plain(server.echo_url, health_check_interval=0.05) as pool:
        first = use(pool)
        eventually(lambda: pool.stats().counters.health_checks["ok"] >= 3)
        stats = pool.stats()
        assert stats.counters.health_checks["failed"] == 0
        assert sum(stats.counters.ping_rtt.counts) >= 3
        assert stats.healthy_connections == 1
        assert use(pool) == first


def test_checks_come_no_more_often_than_asked() -> None:
    with RealtimeServer() as server, plain(server.echo_url, health_check_interval=0.2) as pool:
        use(pool)
        began = time.monotonic()
        eventually(lambda: pool.stats().counters.health_checks["ok"] >= 2)
        assert time.monotonic() - began >= 0.3


def test_a_check_takes_one_look_at_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer says when the next one is due: a thousand idle connections feel the difference."""
    looks = 0
    look = Lifecycle._look_idle

    def counted(*args: Any) -> None:
        nonlocal looks
        looks += 1
        look(*args)

    with RealtimeServer() as server, plain(server.echo_url, health_check_interval=0.1) as pool:
        use(pool)
        eventually(lambda: pool.stats().counters.health_checks["ok"] >= 1)
        before = pool.stats().counters.health_checks["ok"]
        monkeypatch.setattr(Lifecycle, "_look_idle", counted)
        eventually(lambda: pool.stats().counters.health_checks["ok"] >= before + 5)
        assert looks <= pool.stats().counters.health_checks["ok"] - before + 2


def test_a_check_is_due_in_time_also_after_a_session() -> None:
    """The keepalive of a connection in use has an interval of its own."""
    with RealtimeServer() as server:
        with plain(server.echo_url, health_check_interval=0.3, ping_interval=3600) as pool:
            with pool.connection(10.0) as conn:
                member = conn._member
                assert member is not None
                eventually(lambda: member.next_ping_at - time.monotonic() < 0)
                eventually(lambda: conn.rtt_seconds is not None)  # that was the keepalive
            eventually(lambda: pool.stats().counters.health_checks["ok"] >= 1)


def test_a_half_open_connection_fails_its_check() -> None:
    """The peer is gone and the kernel knows nothing: no FIN, no RST."""
    with RealtimeServer(relay=True) as server:
        settings = {"health_check_interval": 0.1, "ping_timeout": 0.3}
        with plain(server.echo_url, **settings) as pool:
            first = use(pool)
            assert server.relay is not None
            server.relay.cut()
            eventually(lambda: pool.stats().counters.health_checks["failed"] == 1)
            eventually(lambda: closed_for(pool).get("health") == 1)
            server.relay.restore()
            assert use(pool) != first


def test_what_shows_no_sign_of_life_is_not_called_healthy() -> None:
    with RealtimeServer(relay=True) as server:
        settings = {"health_check_interval": 0.1, "ping_timeout": 0.5}
        with plain(server.echo_url, **settings) as pool:
            use(pool)
            assert pool.stats().healthy_connections == 1
            assert server.relay is not None
            server.relay.cut()
            eventually(lambda: pool.stats().healthy_connections == 0)


@contextlib.contextmanager
def greeter(serve_one: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A server without faults to inject, that does with each connection what it is told."""
    with serve(serve_one, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        finally:
            server.shutdown()
            thread.join(10.0)


# -- ended, or no longer clean


@pytest.mark.parametrize("code", [1000, 1001, 1011])
def test_what_the_peer_closed_is_noticed_and_not_handed_out(code: int) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        first = use(pool)
        server.close_all(code)
        eventually(lambda: pool.stats().total_connections == 0)
        assert closed_for(pool) == {"lost": 1}
        assert use(pool) != first


@pytest.mark.parametrize("kind", ["reset", "truncate"])
def test_what_broke_is_noticed_and_not_handed_out(kind: str) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        first = use(pool)
        server.inject(kind)
        eventually(lambda: pool.stats().total_connections == 0)
        assert use(pool) != first


def test_data_on_an_idle_connection_makes_it_unfit() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        first = use(pool)
        server.inject("oversize", size=100)  # a whole message nobody asked for
        eventually(lambda: closed_for(pool) == {"dirty": 1})
        assert use(pool) != first


def test_an_event_on_an_idle_session_makes_it_unfit() -> None:
    with RealtimeServer() as server, realtime(server) as pool:
        with pool.connection(10.0) as conn:
            first = conn.id
        eventually(lambda: pool.stats().idle == 1)
        server.emit({"type": "conversation.item.added", "item": {"id": "x", "type": "message"}})
        eventually(lambda: closed_for(pool) == {"dirty": 1})
        with pool.connection(10.0) as conn:
            assert conn.id != first


def test_what_the_borrower_left_unread_makes_it_unfit() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(10.0) as conn:
            first = conn.id
            conn.send("an answer comes")
            eventually(conn._transport.has_bytes)
        with pool.connection(10.0) as conn:
            assert conn.id != first
            echo(conn)
        assert closed_for(pool) == {"dirty": 1}


def test_an_answer_on_its_way_never_reaches_the_next_borrower() -> None:
    """It arrives after the return, at any moment: the next one hears its own words only."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        for turn in range(200):
            with pool.connection(10.0) as conn:
                conn.send(f"late {turn}")
            with pool.connection(10.0) as conn:
                if conn.session_count == 1:
                    echo(conn, f"own {turn}")


@pytest.mark.parametrize("delay", [0.0, 0.05])
@pytest.mark.parametrize("prepared", [True, False])
def test_what_a_server_says_first_is_the_first_borrowers(delay: float, prepared: bool) -> None:
    """Some greet, at once or a little later: that is not dirt, whenever it arrives."""

    def serve_one(ws: ServerConnection) -> None:
        threading.Event().wait(delay)
        for text in ("welcome", "what can I do for you?"):
            ws.send(text)
        for message in ws:
            ws.send(message)

    with greeter(serve_one) as url, plain(url, max_connections=1) as pool:
        if prepared:
            pool.wait(10.0)
            eventually(lambda: pool.stats().counters.messages_received == 2)
        with pool.connection(10.0) as conn:
            assert [conn.recv(5.0), conn.recv(5.0)] == ["welcome", "what can I do for you?"]
            first = conn.id
        with pool.connection(10.0) as conn:
            assert conn.id == first
            echo(conn)
        assert pool.stats().counters.connect_errors["session"] == 0


def test_a_server_that_does_not_stop_talking_is_no_greeting() -> None:
    def serve_one(ws: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                ws.send("and another thing")

    with greeter(serve_one) as url, plain(url, max_connections=1) as pool:
        pool.open()
        pool.wait(10.0)
        eventually(lambda: pool.stats().counters.connect_errors["session"] == 1)
        assert pool.stats().counters.closed["dirty"] == 1


def test_a_greeting_left_unread_is_not_the_second_borrowers() -> None:
    def serve_one(ws: ServerConnection) -> None:
        ws.send("welcome")
        for message in ws:
            ws.send(message)

    with greeter(serve_one) as url, plain(url, max_connections=1) as pool:
        pool.wait(10.0)
        eventually(lambda: pool.stats().counters.messages_received == 1)
        with pool.connection(10.0) as conn:
            first = conn.id
        with pool.connection(10.0) as conn:
            assert conn.id != first


def test_an_early_death_backs_off_like_a_failed_attempt() -> None:
    """A server that accepts and closes at once must not be asked a thousand times a second."""
    with RealtimeServer() as server, plain(server.echo_url, min_idle=1) as pool:
        counters = lambda: pool.stats().counters  # noqa: E731
        pool.wait(10.0)
        for failures in (1, 2, 3):
            server.close_all(1013)
            eventually(lambda failures=failures: counters().closed["lost"] == failures)
            assert pool._ledger.backoff.failures == failures
            assert counters().connect_errors["session"] == failures
            eventually(lambda: pool.stats().idle == 1)
        assert "did not last" in str(pool._ledger.last_error)
        pool.resize(min_idle=0, max_connections=1)
        use(pool)
        server.close_all(1001)  # one that has served is no failed attempt
        eventually(lambda: pool.stats().counters.closed["lost"] == 4)
        assert counters().connect_errors["session"] == 3
        assert pool._ledger.backoff.failures == 0


# -- a second reading


def test_what_the_reaper_takes_in_after_the_return_is_not_the_next_borrowers() -> None:
    """Its look at a connection in use may come a moment late."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(10.0) as conn:
            conn.send("one who does not wait for the answer")
            member, transport = conn._borrowed()
            eventually(transport.has_bytes)
        assert pool._reaper is not None
        pool._reaper._life.look_in_use(member, time.monotonic(), member.session_count)  # it saw it in use
        with pool.connection(10.0) as conn:
            echo(conn)


def test_a_connection_that_is_closed_at_once_was_never_ready() -> None:
    """The kernel has nothing to say about it: the close frame came with the upgrade."""
    close = frame(CLOSE, (1013).to_bytes(2, "big"))
    with peers(lambda peer: peer.until_end(), after_upgrade=close) as url:
        with plain(url, max_connections=1) as pool:
            with pytest.raises(PoolTimeout) as caught:
                pool.acquire(0.5)
            assert isinstance(caught.value.__cause__, ConnectError)
            assert caught.value.__cause__.close_code == 1013
            assert pool.stats().counters.opened == 0


def test_a_sign_of_life_is_no_answer_to_a_health_check() -> None:
    """A peer that pings and does not answer pings: its other half may be dead."""

    def ping_without_end(peer: Peer) -> None:
        reader = threading.Thread(target=peer.until_end, kwargs={"pong": False}, daemon=True)
        reader.start()
        while reader.is_alive():
            peer.send(frame(PING))
            reader.join(0.02)

    with peers(ping_without_end) as url:
        with plain(url, health_check_interval=0.1, ping_timeout=0.5, min_idle=1, max_connections=1) as pool:
            pool.wait(10.0)
            eventually(lambda: closed_for(pool) == {"health": 1}, 5.0, what=repr(pool))
            assert pool.stats().counters.health_checks == {"ok": 0, "failed": 1}


def test_a_process_that_was_stopped_looks_for_answers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with RealtimeServer() as server:
        with plain(server.echo_url, health_check_interval=0.1, ping_timeout=0.5, max_connections=1) as pool:
            with pool.connection(10.0) as conn:
                member, transport = conn._borrowed()
            reaper = pool._reaper
            assert reaper is not None
            stopped, go_on = threading.Event(), threading.Event()
            original = reaper._loop.wait

            def wait(timeout: float) -> list[Any]:
                if member.ping_sent and not go_on.is_set():
                    stopped.set()
                    go_on.wait(10.0)
                    return []  # it was not the socket that ended the waiting
                return original(timeout)

            monkeypatch.setattr(reaper._loop, "wait", wait)
            assert stopped.wait(10.0)
            eventually(transport.has_bytes)  # the answer
            threading.Event().wait(0.6)  # longer than ping_timeout
            go_on.set()
            eventually(lambda: pool.stats().counters.health_checks["ok"] >= 1)
            assert closed_for(pool) == {}


def test_half_a_message_on_an_idle_session_is_waited_for() -> None:
    """What arrives in two pieces is judged when it is whole, and nobody gets the second."""
    whole = frame(TEXT, b'{"type":"rate_limits.updated","event_id":"e","rate_limits":[]}')
    with RealtimeServer() as server, realtime(server) as pool:
        with pool.connection(10.0) as conn:
            first = conn.id
        for half, rest in ((whole[:30], whole[30:]), (whole[:1], whole[1:])):
            eventually(lambda: pool.stats().idle == 1)
            server._each(None, lambda entry, half=half: entry.wire.write(half))
            caught = in_line(pool, pool.acquire, 10.0) if half == whole[:30] else None
            server._each(None, lambda entry, rest=rest: entry.wire.write(rest))
            conn = pool.acquire(10.0) if caught is None else caught.result()
            assert conn.id == first
            pool.release(conn)


def test_half_a_message_that_stays_alone_ends_it() -> None:
    with RealtimeServer() as server, realtime(server, reset_timeout=0.2) as pool:
        with pool.connection(10.0):
            pass
        eventually(lambda: pool.stats().idle == 1)
        server._each(None, lambda entry: entry.wire.write(frame(TEXT, b"x" * 30)[:20]))
        eventually(lambda: closed_for(pool) == {"dirty": 1})
