"""Changing a running pool: its limits, and every connection it has."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
from pool_calls import Call, closed_with, echo, in_line, realtime, waiting
from pool_support import eventually, plain

from rtpool_sync import ConfigError, PoolConfig, PoolTimeout, RealtimeConnection, RealtimePool
from rtpool_sync.emulator import Faults, RealtimeServer
from rtpool_sync.lifecycle import Lifecycle

# -- resize


def filled(pool: RealtimePool, count: int) -> None:
    """Leave so many connections idle."""
    for conn in [pool.acquire(10.0) for _ in range(count)]:
        pool.release(conn)


def test_a_larger_pool_serves_those_who_wait() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(10.0):
            waiter = in_line(pool, pool.acquire, 30.0)
            pool.resize(max_connections=2)
            pool.release(waiter.result())
        assert pool.config.max_connections == pool.stats().max_connections == 2


@pytest.mark.parametrize("left", [1, 3])
def test_a_smaller_pool_closes_what_is_idle_and_no_more(left: int) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=4) as pool:
        filled(pool, 4)
        pool.resize(max_connections=left)
        eventually(lambda: pool.stats().total_connections == left)
        with pool.connection(0.0) as conn:
            echo(conn)
        stats = pool.stats()
        assert (stats.idle, stats.closing) == (left, 0)
        assert stats.counters.closed["shrunk"] == 4 - left
        assert server.opened_total == 4
        assert closed_with(server) == [("client", 1000)] * (4 - left)


@pytest.mark.parametrize("protocol", ["plain", "realtime"])
def test_those_in_use_stay_until_they_are_returned(protocol: str) -> None:
    with RealtimeServer() as server:
        make = realtime if protocol == "realtime" else lambda s, **o: plain(s.echo_url, **o)
        with make(server, max_connections=3) as pool:
            conns = [pool.acquire(10.0) for _ in range(3)]
            pool.resize(max_connections=1)
            assert pool.stats().in_use == 3
            for conn in conns:
                conn.ping()
                pool.release(conn)
            eventually(lambda: pool.stats().idle == pool.stats().total_connections == 1)
            assert pool.stats().counters.closed["shrunk"] == 2


def test_what_is_to_be_closed_cannot_be_borrowed_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=4) as pool:
        filled(pool, 4)
        borrowed: list[RealtimeConnection] = []
        original = Lifecycle.begin_close

        def begin_close(*args: Any) -> None:
            if not borrowed:  # just before the first one is closed
                with contextlib.suppress(PoolTimeout):
                    while True:
                        borrowed.append(pool.acquire(0.0))
            original(*args)

        monkeypatch.setattr(Lifecycle, "begin_close", begin_close)
        pool.resize(max_connections=2)
        eventually(lambda: pool.stats().total_connections == 2)
        assert len(borrowed) == 2
        for conn in borrowed:
            echo(conn)
            pool.release(conn)
        assert pool.stats().counters.closed["shrunk"] == 2


def test_a_pool_shrinks_though_there_is_always_somebody_waiting() -> None:
    """Handing on straight to the next one would keep too many connections for good."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=3) as pool:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                with pool.connection(30.0) as conn:
                    echo(conn)

        calls = [Call(work) for _ in range(8)]
        eventually(lambda: pool.stats().total_connections == 3)
        pool.resize(max_connections=1)
        eventually(lambda: pool.stats().total_connections == 1, what=repr(pool))
        served = pool.stats().total_sessions_handled
        eventually(lambda: pool.stats().total_sessions_handled > served + 20)
        assert pool.stats().counters.closed["shrunk"] == 2
        stop.set()
        for call in calls:
            call.result()


def test_min_idle_is_filled_up_and_let_go() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=4, max_idle_time=0.1) as pool:
        assert pool.stats().total_connections == 0
        pool.resize(min_idle=3)
        eventually(lambda: pool.stats().idle == 3)
        assert pool.config.min_idle == 3
        pool.resize(min_idle=1, max_connections=2)
        eventually(lambda: pool.stats().total_connections <= 2)


@pytest.mark.parametrize(
    "bad", [{"max_connections": 0}, {"min_idle": -1}, {"min_idle": 5}, {"max_connections": 2, "min_idle": 3}]
)
def test_a_value_out_of_range_changes_nothing(bad: dict[str, int]) -> None:
    pool = plain("ws://127.0.0.1:9/", max_connections=4, min_idle=1)
    before = pool.config
    with pytest.raises(ConfigError):
        pool.resize(**bad)
    assert pool.config is before


def test_of_two_changes_at_the_same_time_both_count(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = plain("ws://127.0.0.1:9/")
    original = PoolConfig.replace
    others: list[Call] = []

    def replace(config: PoolConfig, **changes: Any) -> PoolConfig:
        changed = original(config, **changes)
        if not others:  # another thread comes by just now; it may have to wait for us
            others.append(Call(pool.resize, min_idle=3))
            others[0].wait(0.2)
        return changed

    monkeypatch.setattr(PoolConfig, "replace", replace)
    pool.resize(max_connections=7)
    others[0].result()
    assert (pool.config.max_connections, pool.config.min_idle) == (7, 3)


# -- drain


def test_idle_connections_are_retired_now() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=3) as pool:
        filled(pool, 3)
        pool.drain()
        eventually(lambda: pool.stats().total_connections == 0)
        assert pool.stats().counters.closed["drained"] == 3
        assert closed_with(server) == [("client", 1000)] * 3


def test_none_of_before_is_handed_out_though_the_reaper_is_late() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=2) as pool:
        with pool.connection(10.0) as conn:
            first = conn.id
        with pool._ledger.lock:
            pool._ledger.drain()  # the reaper is not woken
        with pool.connection(10.0) as conn:
            assert conn.id != first


def test_those_in_use_are_retired_on_return() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=2) as pool:
        conn = pool.acquire(10.0)
        pool.drain()
        echo(conn)
        pool.release(conn)
        with pool.connection(10.0) as other:
            assert other.id != conn.id
        assert pool.stats().counters.closed["drained"] == 1


def test_a_waiter_gets_a_new_one_not_the_one_that_is_returned() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        conn = pool.acquire(10.0)
        waiter = in_line(pool, pool.acquire, 30.0)
        pool.drain()
        pool.release(conn)
        got = waiter.result()
        assert got.id != conn.id
        pool.release(got)
        assert server.max_sockets == 1


def test_connections_under_way_are_retired_too() -> None:
    """They show the old key: the caller who waits gets one that was begun after drain()."""
    keys = ["sk-old"]
    with RealtimeServer() as server:
        with realtime(server, api_key=lambda: keys[-1], max_connections=2) as pool:
            server.script(Faults(trickle=0.003))
            waiter = Call(pool.acquire, 30.0)
            eventually(lambda: server.accepted_total == 1)
            waiting(pool, 1)
            keys.append("sk-new")
            pool.drain()
            conn = waiter.result()
            shown = {info.id: info.headers["authorization"] for info in server.connections}
            assert shown[max(shown)] == "Bearer sk-new"
            assert conn.session_id == next(i.session_id for i in server.connections if i.id == max(shown))
            pool.release(conn)
            eventually(lambda: pool.stats().counters.closed["drained"] == 1)


def test_the_reserve_is_renewed_with_the_new_key() -> None:
    keys = ["sk-old"]
    with RealtimeServer() as server:
        settings = {"max_connections": 4, "min_idle": 2}
        with realtime(server, api_key=lambda: keys[-1], **settings) as pool:
            pool.wait(10.0)
            keys.append("sk-new")
            pool.drain()
            eventually(lambda: pool.stats().counters.closed["drained"] == 2)
            eventually(lambda: pool.stats().idle == pool.stats().total_connections == 2)
            assert {info.headers["authorization"] for info in server.connections} == {"Bearer sk-new"}
            pool.drain()
            eventually(lambda: pool.stats().counters.closed["drained"] == 4)
            eventually(lambda: pool.stats().idle == 2)


def test_draining_nothing() -> None:
    pool = plain("ws://127.0.0.1:9/")
    pool.drain()
    pool.close()
    pool.drain()
    assert pool.closed
