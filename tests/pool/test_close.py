"""The end of a pool, and its new beginnings."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
from pool_calls import Call, closed_with, echo, in_line, realtime
from pool_support import descriptors, eventually, plain, pool_threads

from rtpool_sync import ConnectionLost, ConnectionReturned, PoolClosed, RealtimePool
from rtpool_sync.emulator import Faults, RealtimeServer


def at_rest(pool: RealtimePool) -> None:
    """Nothing of it is left but its numbers."""
    assert pool.closed
    assert pool.stats().total_connections == 0
    assert not [name for name in pool_threads() if f"rtpool-{pool.name}-" in name]


@pytest.mark.parametrize("protocol", ["plain", "realtime"])
def test_idle_connections_are_closed_at_once_with_a_close_frame(protocol: str) -> None:
    with RealtimeServer() as server:
        settings = {"max_connections": 3, "min_idle": 3, "name": "ends"}
        pool = plain(server.echo_url, **settings) if protocol == "plain" else realtime(server, **settings)
        pool.open(wait=True)
        began = time.monotonic()
        pool.close()
        assert time.monotonic() - began < 2.0
        at_rest(pool)
        eventually(lambda: len(server.closed) == 3)
        assert closed_with(server) == [("client", 1001)] * 3
        assert pool.stats().counters.closed["shutdown"] == 3


def test_one_in_use_is_left_alone_until_it_is_returned() -> None:
    with RealtimeServer() as server:
        pool = plain(server.echo_url, max_connections=2, name="waits")
        conn, other = pool.acquire(10.0), pool.acquire(10.0)
        pool.release(other)
        closing = Call(pool.close, 20.0)
        eventually(lambda: server.open == 1)  # the idle one has gone meanwhile
        echo(conn)
        assert not closing.done
        pool.release(conn)
        closing.result()
        assert closing.took < 10.0
        at_rest(pool)
        eventually(lambda: closed_with(server) == [("client", 1001)] * 2)


def test_after_the_deadline_it_is_closed_and_its_borrower_told() -> None:
    with RealtimeServer() as server:
        pool = plain(server.echo_url, name="late")
        conn = pool.acquire(10.0)
        reading = Call(conn.recv)
        began = time.monotonic()
        pool.close(0.2)
        assert 0.2 <= time.monotonic() - began < 4.0
        with pytest.raises(ConnectionLost):
            reading.result()
        with pytest.raises(ConnectionLost, match="the pool was closed"):
            conn.send("x")
        at_rest(pool)
        eventually(lambda: closed_with(server) == [("client", 1001)])
        pool.release(conn)  # harmless
        at_rest(pool)


def test_who_waits_is_told_at_once() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(10.0):
            calls = [in_line(pool, pool.acquire, 30.0) for _ in range(3)]
            closing = Call(pool.close, 20.0)
            for call in calls:
                with pytest.raises(PoolClosed, match="while waiting"):
                    call.result(5.0)
            assert len({id(call.error) for call in calls}) == 3
            with pytest.raises(PoolClosed):
                pool.acquire(5.0)
        closing.result()


def test_closing_twice_and_from_two_threads_is_harmless() -> None:
    with RealtimeServer() as server:
        pool = plain(server.echo_url)
        pool.open(wait=True)
        calls = [Call(pool.close) for _ in range(2)]
        for call in calls:
            call.result()
        pool.close()
        at_rest(pool)
        assert len(server.closed) == 1


@pytest.mark.parametrize("phase", ["accept", "request"])
def test_closing_while_connecting(phase: str) -> None:
    with RealtimeServer(faults=Faults(mute=phase)) as server:
        files = descriptors()
        pool = plain(server.echo_url, connect_timeout=60, max_connections=3)
        calls = [in_line(pool, pool.acquire, 30.0) for _ in range(3)]
        eventually(lambda: server.accepted_total == 3)
        began = time.monotonic()
        pool.close()
        assert time.monotonic() - began < 5.0
        for call in calls:
            with pytest.raises(PoolClosed):
                call.result()
        at_rest(pool)
        eventually(lambda: descriptors() <= files + 3)  # the server's own ends may stay
        assert pool.health().status == "unhealthy"


def test_closing_while_a_session_is_being_made_ready_or_reset() -> None:
    with RealtimeServer(faults=Faults(no_session_created=True)) as server:
        pool = realtime(server, connect_timeout=60)
        call = in_line(pool, pool.acquire, 30.0)
        eventually(lambda: server.opened_total == 1)
        pool.close()
        with pytest.raises(PoolClosed):
            call.result()
        at_rest(pool)
    with RealtimeServer() as server:
        pool = realtime(server, reset_timeout=60)
        with pool.connection(10.0):
            server.faults = Faults(drop={"*": 1.0})  # its reset is never acknowledged
        eventually(lambda: pool.stats().resetting == 1)
        pool.close()
        at_rest(pool)
        eventually(lambda: closed_with(server) == [("client", 1001)])


def test_a_peer_that_does_not_answer_the_close_frame_is_given_close_timeout() -> None:
    with RealtimeServer(relay=True) as server:
        pool = plain(server.echo_url, close_timeout=0.3)
        pool.open(wait=True)
        assert server.relay is not None
        server.relay.stall()
        began = time.monotonic()
        pool.close()
        assert 0.25 < time.monotonic() - began < 4.0
        at_rest(pool)
        server.relay.resume()


def test_a_pool_that_was_never_used_is_closed_too() -> None:
    pool = plain("ws://127.0.0.1:9/")
    pool.close()
    at_rest(pool)


def test_open_begins_anew_and_keeps_counting() -> None:
    with RealtimeServer() as server:
        pool = plain(server.echo_url, max_connections=3)
        for turn in range(1, 4):
            with pool.connection(10.0) as conn:
                echo(conn)
            pool.resize(max_connections=3 + turn)
            pool.close()
            assert pool.closed
            with pytest.raises(PoolClosed):
                pool.wait(1.0)
            pool.open()
            assert not pool.closed
            assert pool.config.max_connections == 3 + turn
            assert pool.stats().total_sessions_handled == turn
        pool.close()
        at_rest(pool)


def test_a_handle_of_before_cannot_disturb_the_pool_of_after() -> None:
    with RealtimeServer() as server:
        pool = plain(server.echo_url, max_connections=1)
        old = pool.acquire(10.0)
        pool.close(0.0)
        pool.open()
        with pool.connection(10.0) as new:
            with pytest.raises(ConnectionLost):
                old.send("x")
            pool.release(old)
            with pytest.raises(ConnectionReturned):
                old.send("x")
            echo(new)
            assert pool.stats().in_use == 1
        pool.close()


def test_a_pool_that_is_still_being_closed_cannot_be_opened() -> None:
    with RealtimeServer() as server:
        pool = plain(server.echo_url)
        conn = pool.acquire(10.0)
        closing = Call(pool.close, 20.0)
        eventually(lambda: pool.closed)
        with pytest.raises(PoolClosed, match="still being closed"):
            pool.open()
        pool.release(conn)
        closing.result()
        pool.open()
        pool.close()


def test_with_opens_and_closes() -> None:
    with RealtimeServer() as server:
        with plain(server.echo_url, min_idle=1) as pool:
            eventually(lambda: pool.stats().idle == 1)  # nobody has asked yet
        at_rest(pool)
        with pytest.raises(KeyError), plain(server.echo_url) as pool:
            raise KeyError
        at_rest(pool)
        with pool:  # a closed one opens again
            with pool.connection(10.0) as conn:
                echo(conn)
        at_rest(pool)


def test_a_callback_of_the_pool_may_close_it() -> None:
    with RealtimeServer() as server:
        pool = plain(server.echo_url)
        unsubscribe = pool.on_event(lambda event: pool.close())
        with pytest.raises(PoolClosed), pool.connection(10.0):
            eventually(lambda: pool.closed)
            pool.acquire(5.0)
        unsubscribe()
        eventually(lambda: pool.stats().total_connections == 0)
        pool.close()


# -- forgotten


def test_a_pool_nobody_refers_to_any_more_ends() -> None:
    with RealtimeServer() as server:
        files = descriptors()
        pool = plain(server.echo_url, min_idle=2, max_connections=2, name="forgotten")
        pool.open(wait=True)
        with pool.connection(10.0) as conn:
            echo(conn)
        forgotten = weakref.ref(pool)
        del pool, conn
        gc.collect()
        assert forgotten() is None
        eventually(lambda: not [name for name in pool_threads() if "-forgotten-" in name])
        eventually(lambda: server.open == 0)
        assert set(closed_with(server)) == {("client", 1001)}
        eventually(lambda: descriptors() <= files)


def test_a_connection_that_is_out_keeps_its_pool() -> None:
    with RealtimeServer() as server:
        conn = plain(server.echo_url, name="held").acquire(10.0)
        gc.collect()
        echo(conn)
        assert [name for name in pool_threads() if "-held-" in name]
        del conn
        gc.collect()
        eventually(lambda: not [name for name in pool_threads() if "-held-" in name])
        eventually(lambda: server.open == 0)


def test_a_pool_that_was_never_used_leaves_nothing() -> None:
    pool = plain("ws://127.0.0.1:9/")
    forgotten = weakref.ref(pool)
    del pool
    gc.collect()
    assert forgotten() is None
