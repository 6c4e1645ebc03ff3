"""Statistics and health: they add up, and say what is the case."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from pool_calls import Call, in_line, realtime
from pool_support import eventually, plain

from rtpool_sync import PoolClosed, PoolExhausted, PoolTimeout, RealtimePool
from rtpool_sync.emulator import Faults, RealtimeServer
from rtpool_sync.policy import CLOSE_REASONS
from rtpool_sync.stats import Counters, HealthReport, PoolStats

ORIGINAL_KEYS = {
    "total_connections",
    "healthy_connections",
    "active_sessions",
    "total_sessions_handled",
    "max_connections",
}
PARTS = {"idle", "connecting", "resetting", "closing", "waiting"}


def parts(stats: PoolStats) -> int:
    return stats.idle + stats.in_use + stats.connecting + stats.resetting + stats.closing


def test_an_idle_pool_in_numbers() -> None:
    pool = plain("ws://127.0.0.1:9/", max_connections=7, min_idle=2)
    stats = pool.stats().as_dict()
    assert stats.keys() >= ORIGINAL_KEYS | PARTS
    assert stats["max_connections"] == 7
    assert stats["min_idle"] == 2
    zero = {
        key
        for key, value in stats.items()
        if value == 0 or (isinstance(value, dict) and not any(value.values()))
    }
    assert zero == stats.keys() - {"max_connections", "min_idle"}


def test_as_dict_is_json_and_counts_everything() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=2) as pool:
        with pool.connection(10.0) as first, pool.connection(10.0):
            first.send("four")
            assert first.recv(5.0) == "four"
            stats = json.loads(json.dumps(pool.stats().as_dict()))
            assert (stats["active_sessions"], stats["in_use"], stats["idle"]) == (2, 2, 0)
            assert stats["oldest_checkout_seconds"] > 0
        with pool.connection(10.0) as conn:
            conn.invalidate("enough")
        eventually(lambda: pool.stats().total_connections == 1)
        stats = pool.stats().as_dict()
        assert stats["total_connections"] == stats["healthy_connections"] == stats["idle"] == 1
        assert stats["total_sessions_handled"] == 3
        assert stats["checkouts"] == {"ok": 3, "timeout": 0, "exhausted": 0, "closed": 0, "error": 0}
        assert stats["connections_opened"] == 2
        assert stats["connections_closed"] == {**dict.fromkeys(CLOSE_REASONS, 0), "invalidated": 1}
        assert stats["messages"] == {"sent": 1, "received": 1}  # also of a connection that is gone
        assert stats["message_bytes"] == {"sent": 4, "received": 4}
        assert stats["oldest_checkout_seconds"] == 0


def test_a_reset_is_counted() -> None:
    with RealtimeServer() as server:
        with RealtimePool(base_url=server.base_url, api_key="sk-test", max_connections=1) as pool:
            with pool.connection(10.0):
                pass
            eventually(lambda: pool.stats().idle == 1)
            stats = pool.stats()
            assert stats.as_dict()["resets"]["ok"] == 1
            assert sum(stats.counters.reset.counts) == 1


@pytest.mark.parametrize(
    ("outcome", "expected"), [("timeout", PoolTimeout), ("exhausted", PoolExhausted), ("closed", PoolClosed)]
)
def test_a_checkout_that_fails_is_counted_once(outcome: str, expected: type[Exception]) -> None:
    none = {"ok": 1, "timeout": 0, "exhausted": 0, "closed": 0, "error": 0}
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1, max_waiting=1) as pool:
        with pool.connection(10.0):
            if outcome == "exhausted":
                waiter = in_line(pool, pool.acquire, 30.0)
            if outcome == "closed":
                pool.close(0.0)
            with pytest.raises(expected):
                pool.acquire(0.01)
            assert pool.stats().as_dict()["checkouts"] == {**none, outcome: 1}
            pool.close(0.0)
        if outcome == "exhausted":
            with pytest.raises(PoolClosed):
                waiter.result()
            assert pool.stats().as_dict()["checkouts"] == {**none, "exhausted": 1, "closed": 1}


def test_the_parts_add_up_at_every_moment() -> None:
    """Whatever happens meanwhile: a snapshot is taken under the lock."""
    with RealtimeServer() as server:
        with RealtimePool(
            base_url=server.base_url, api_key="sk-test", max_connections=3, max_sessions_per_connection=3
        ) as pool:
            stop = threading.Event()

            def work() -> None:
                while not stop.is_set():
                    with pool.connection(30.0):
                        pass

            workers = [threading.Thread(target=work) for _ in range(6)]
            for worker in workers:
                worker.start()
            seen = []
            while not seen or pool.stats().total_sessions_handled < 60:
                stats = pool.stats()
                seen.append(stats)
            stop.set()
            for worker in workers:
                worker.join(30.0)
        for stats in seen:
            assert parts(stats) == stats.total_connections <= stats.max_connections == 3
            assert stats.healthy_connections <= stats.idle + stats.in_use + stats.resetting
            assert stats.waiting <= 6
            counters = stats.counters
            ended = sum(counters.session_duration.counts)
            assert ended + stats.active_sessions == stats.total_sessions_handled
            gone = counters.opened - sum(counters.closed.values())
            assert gone == stats.idle + stats.in_use + stats.resetting
        assert any(stats.resetting for stats in seen)
        assert any(stats.waiting for stats in seen)


def test_a_snapshot_does_not_change() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        before = pool.stats()
        with pool.connection(10.0):
            pass
        assert before.total_sessions_handled == before.total_connections == before.counters.opened == 0
        assert pool.stats().total_sessions_handled == 1


def test_who_waits_longest() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        conn = pool.acquire(10.0)
        waiter = threading.Thread(target=lambda: pool.release(pool.acquire(30.0)))
        waiter.start()
        eventually(lambda: pool.stats().oldest_wait_seconds > 0.02)
        assert pool.stats().waiting == 1
        pool.release(conn)
        waiter.join(10.0)
        assert pool.stats().oldest_wait_seconds == 0


def test_each_connection_in_numbers() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connection_age=1000) as pool:
        assert pool.connections() == []
        with pool.connection(10.0) as conn:
            rtt = conn.ping()
            [shown] = pool.connections()
            assert (shown.id, shown.state, shown.sessions) == (conn.id, "in_use", 1)
            assert 0 <= shown.in_use <= shown.age < 60  # type: ignore[operator]
            assert shown.remaining is not None
            assert 0 < shown.remaining <= 1000
            assert shown.rtt == pytest.approx(rtt, abs=1.0)
            assert json.dumps(shown.as_dict())
        [shown] = pool.connections()
        assert (shown.state, shown.in_use) == ("idle", None)


# -- health


def snapshot(**changes: Any) -> PoolStats:
    values: dict[str, Any] = {
        "name": "x",
        "max_connections": 4,
        "min_idle": 0,
        "total_connections": 0,
        "healthy_connections": 0,
        "active_sessions": 0,
        "idle": 0,
        "connecting": 0,
        "resetting": 0,
        "closing": 0,
        "waiting": 0,
        "oldest_wait_seconds": 0.0,
        "oldest_checkout_seconds": 0.0,
        "counters": Counters(),
    }
    return PoolStats(**{**values, **changes})


@pytest.mark.parametrize(
    ("state", "closed", "failures", "status", "says"),
    [
        ({}, False, 0, "healthy", "works"),  # never had to connect
        ({"idle": 1, "healthy_connections": 1}, False, 0, "healthy", "works"),
        ({"connecting": 2}, False, 0, "healthy", "works"),
        ({}, True, 0, "unhealthy", "closed"),
        ({"idle": 1, "healthy_connections": 1}, True, 0, "unhealthy", "closed"),
        ({}, False, 3, "unhealthy", "3 failed attempts: the reason"),
        ({"connecting": 1, "closing": 1}, False, 1, "unhealthy", "1 failed attempts"),
        ({"idle": 1, "healthy_connections": 1}, False, 2, "degraded", "connecting fails (2 attempts)"),
        ({"active_sessions": 1, "healthy_connections": 1}, False, 2, "degraded", "the reason"),
        ({"resetting": 1, "healthy_connections": 1}, False, 2, "degraded", "the reason"),
        ({"idle": 2, "active_sessions": 1, "healthy_connections": 2}, False, 0, "degraded", "1 of 3"),
        (
            {"active_sessions": 4, "healthy_connections": 4, "waiting": 2},
            False,
            0,
            "degraded",
            "all 4 connections are in use, callers waiting: 2",
        ),
        ({"active_sessions": 4, "healthy_connections": 4}, False, 0, "healthy", "works"),
        ({"waiting": 2}, False, 0, "healthy", "works"),
    ],
)
def test_verdicts(state: dict[str, int], closed: bool, failures: int, status: str, says: str) -> None:
    report = HealthReport.of(snapshot(**state), closed, failures, "the reason")
    assert report.status == status
    assert says in report.message


def test_a_report_in_the_words_of_the_original() -> None:
    report = HealthReport.of(snapshot(idle=1, healthy_connections=1, total_connections=2), False, 0, None)
    assert report.as_dict() == {
        "status": "healthy",
        "websocket_manager": {"healthy_connections": 1, "total_connections": 2, "max_connections": 4},
        "message": "the pool works",
    }


def test_health_from_the_cradle_to_the_grave() -> None:
    server = RealtimeServer()
    pool = plain("ws://127.0.0.1:9/", connect_timeout=2.0)
    assert pool.health().status == "healthy"  # never had to connect
    with server:
        pool = plain(server.echo_url, max_connections=2)
        with pool.connection(10.0):
            assert pool.health().status == "healthy"
            server.faults = Faults(refuse=503)
            with pytest.raises(PoolTimeout):
                pool.acquire(0.2)
            assert pool.health().status == "degraded"
        server.close_all(1001)
        eventually(lambda: pool.stats().total_connections == 0)
        with pytest.raises(PoolTimeout):
            pool.acquire(0.1)
        report = pool.health()
        assert report.status == "unhealthy"
        assert "HTTP 503" in report.message
        server.faults = Faults()
        with pool.connection(10.0):
            assert pool.health().status == "healthy"
        pool.close()
        assert pool.health().status == "unhealthy"
        pool.open(wait=True)
        assert pool.health().status == "healthy"
        pool.close()


def test_all_in_use_and_somebody_waits() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        conn = pool.acquire(10.0)
        waiter = threading.Thread(target=lambda: pool.release(pool.acquire(30.0)))
        waiter.start()
        eventually(lambda: pool.health().status == "degraded")
        pool.release(conn)
        waiter.join(10.0)
        assert pool.health().status == "healthy"


def test_what_never_became_ready_is_neither_opened_nor_closed() -> None:
    """Also when close() ends the attempt: opened less closed is what there is."""
    with RealtimeServer(faults=Faults(no_session_created=True)) as server:
        pool = realtime(server, connect_timeout=5.0)
        call = Call(pool.acquire, 10.0)
        eventually(lambda: server.open == 1)
        pool.close(0.0)
        with pytest.raises(PoolClosed):
            call.result()
        counters = pool.stats().counters
        assert counters.opened == sum(counters.closed.values()) == 0
