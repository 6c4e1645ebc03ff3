"""Events and the log: what is told, how often, and that listeners harm nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from rtpool_sync import PoolClosed, PoolTimeout, RealtimePool
from rtpool_sync.emulator import Faults, RealtimeServer
from rtpool_sync.events import BACKLOG, EVENT_KINDS, KEPT, QUIET, Events, PoolEvent

Eventually = Callable[[Callable[[], object]], None]


def plain(server: RealtimeServer, **options: object) -> RealtimePool:
    return RealtimePool(url=server.echo_url, protocol="plain", registry=False, **options)


def told(pool: RealtimePool) -> list[tuple[str, str]]:
    return [(event.kind, event.reason) for event in pool.events()]


def test_the_life_of_a_connection(server: RealtimeServer, eventually: Eventually) -> None:
    pool = plain(server)
    with pool.connection(timeout=10) as conn:
        row = pool.connections()[0]
        assert (row.id, row.state, row.sessions, row.max_sessions) == (conn.id, "in_use", 1, 10)
        assert row.in_use is not None
        assert 0 <= row.in_use <= row.age
        assert row.remaining is not None
        assert 0 < row.remaining < 3600
        conn.invalidate("enough of it")
    eventually(lambda: not pool.connections())
    first, last = pool.events()
    assert (first.kind, first.connection, first.pool) == ("opened", 1, "default")
    assert (last.kind, last.reason, last.message) == ("closed", "invalidated", "enough of it")
    assert first.time <= last.time <= time.time()
    assert last.as_dict()["connection"] == 1
    pool.close()
    with pytest.raises(PoolClosed):
        pool.acquire()
    assert told(pool)[-1] == ("checkout_failed", "closed")
    pool.open()
    with pool.connection(timeout=10):
        assert len(told(pool)) == 4  # what happened before is kept
    pool.close()


def test_failures_are_told(server: RealtimeServer, eventually: Eventually) -> None:
    server.faults = Faults(refuse=503)
    with plain(server) as pool:
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.1)
        eventually(lambda: "connect_failed" in dict(told(pool)))
        kinds = dict(told(pool))
        assert kinds["checkout_failed"] == "timeout"
        assert kinds["connect_failed"] == "handshake"
        assert kinds.keys() <= set(EVENT_KINDS)


def test_many_of_the_same_are_one_in_the_list(server: RealtimeServer) -> None:
    with plain(server, max_connections=1) as pool, pool.connection(timeout=10):
        for _ in range(KEPT * 2):
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=0)
        last = pool.events()[-1]
        assert (last.kind, last.count) == ("checkout_failed", KEPT * 2)
        assert told(pool)[0] == ("opened", "")  # not crowded out


def test_only_so_many_are_kept() -> None:
    events = Events("p")
    for number in range(KEPT + 7):
        events.emit("opened", connection=number)
    assert [event.connection for event in events.recent()] == list(range(7, KEPT + 7))


def test_a_callback_gets_every_event_in_a_thread_of_its_own(
    server: RealtimeServer, eventually: Eventually
) -> None:
    seen: list[PoolEvent] = []
    threads = set()

    def callback(event: PoolEvent) -> None:
        threads.add(threading.current_thread().name)
        seen.append(event)

    pool = plain(server)
    end = pool.on_event(callback)
    with pool, pool.connection(timeout=10):
        pass
    eventually(lambda: len(seen) == 2)
    assert [event.kind for event in seen] == ["opened", "closed"]
    assert threads == {"rtpool-events"}
    end()
    end()  # twice is harmless
    with pool, pool.connection(timeout=10):
        pass
    assert len(seen) == 2
    with pytest.raises(TypeError):
        pool.on_event("not a function")  # type: ignore[arg-type]


def test_who_leaves_leaves_the_others(server: RealtimeServer, eventually: Eventually) -> None:
    stays: list[str] = []
    gate, called = threading.Event(), threading.Event()
    leaves: list[str] = []

    def slow(event: PoolEvent) -> None:
        leaves.append(event.kind)
        called.set()
        gate.wait(20)

    pool = plain(server)
    pool.on_event(lambda event: stays.append(event.kind))
    end = pool.on_event(slow)
    with pool, pool.connection(timeout=10):
        assert called.wait(20)
    end()  # the end of the connection is waiting for it: it is not told of that any more
    gate.set()
    with pool, pool.connection(timeout=10):
        pass
    eventually(lambda: stays == ["opened", "closed"] * 2)
    assert leaves == ["opened"]


def test_callbacks_that_raise_or_block_harm_nothing(
    server: RealtimeServer, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    seen: list[str] = []

    def raises(event: PoolEvent) -> None:
        raise SystemExit if event.kind == "opened" else ValueError("a fault of the application's")

    pool = plain(server)
    pool.on_event(raises)
    pool.on_event(lambda event: gate.wait(30))
    pool.on_event(lambda event: seen.append(event.kind))
    with caplog.at_level(logging.WARNING, "rtpool_sync"):
        for _ in range(3):
            with pool, pool.connection(timeout=10) as conn:
                conn.send("x")
                assert conn.recv(timeout=10) == "x"
        eventually(lambda: seen == ["opened", "closed"] * 3)
    gate.set()
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once a minute
    assert "callback failed" in caplog.text


def test_a_callback_that_blocks_misses_the_oldest(eventually: Eventually) -> None:
    events = Events("p")
    gate, called = threading.Event(), threading.Event()
    seen: list[int | None] = []

    def slow(event: PoolEvent) -> None:
        called.set()
        gate.wait(20)
        seen.append(event.connection)

    events.subscribe(slow)
    events.emit("opened", connection=-1)
    assert called.wait(20)
    for number in range(BACKLOG + 5):
        events.emit("opened", connection=number)
    gate.set()
    eventually(lambda: len(seen) == BACKLOG + 1)
    assert seen == [-1, *range(5, BACKLOG + 5)]


def test_a_callback_may_use_the_pool(server: RealtimeServer, eventually: Eventually) -> None:
    done = threading.Event()
    with plain(server, max_connections=2) as pool:

        def callback(event: PoolEvent) -> None:
            if event.kind == "opened" and not done.is_set():
                done.set()
                with pool.connection(timeout=10):
                    pool.stats()

        pool.on_event(callback)
        with pool.connection(timeout=10):
            eventually(done.is_set)


def test_a_child_has_the_callbacks_and_not_the_history(
    run_program: Callable[..., str], server: RealtimeServer
) -> None:
    out = run_program(
        f"""
import os, sys, time
from rtpool_sync import RealtimePool
pool = RealtimePool(url={server.echo_url!r}, protocol="plain")
seen = []
end = pool.on_event(lambda event: seen.append(event.kind))
def until(count):
    limit = time.monotonic() + 20
    while len(seen) < count and time.monotonic() < limit: time.sleep(0.01)
with pool.connection(): pass
until(1)
pid = os.fork()
if not pid:
    print(pool.events())
    with pool.connection(): pass
    until(2)
    end()
    pool.close()
    print(seen, len(pool.events()))
    sys.stdout.flush()
    os._exit(0)
os.waitpid(pid, 0)
pool.close()
until(2)
print(seen)
"""
    )
    assert out.splitlines() == ["[]", "['opened', 'opened'] 2", "['opened', 'closed']"]


# -- the log


def test_warnings_come_once_a_minute_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    events = Events("p")
    with caplog.at_level(logging.DEBUG, "rtpool_sync"):
        for number in range(5):
            events.emit("connect_failed", "auth", f"no {number}", connection=number, warn=True)
        events.emit("connect_failed", "tls", "another cause", warn=True)
        warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert [r.getMessage() for r in warnings] == [
            "pool 'p': connection #0 connect failed (auth): no 0",
            "pool 'p': connect failed (tls): another cause",
        ]
        assert len(caplog.records) == 6  # the others are there for who wants to see them
        caplog.clear()
        now = time.monotonic()
        events.summarize(now)
        assert not caplog.records
        events.summarize(now + QUIET)
        (summary,) = caplog.records
        assert summary.levelno == logging.WARNING
        assert "no 4 [4 more within 60 s, this is the last]" in summary.getMessage()
        assert (summary.pool, summary.event, summary.reason, summary.count) == (  # type: ignore[attr-defined]
            "p",
            "connect_failed",
            "auth",
            4,
        )
        caplog.clear()
        events.emit("connect_failed", "auth", "again", warn=True)  # it goes on: counted, not told
        events.emit("connect_failed", "tls", "again", warn=True)  # it had ended: news
        assert [r.reason for r in caplog.records if r.levelno == logging.WARNING] == ["tls"]  # type: ignore[attr-defined]


def test_the_life_of_a_connection_is_at_debug_only(
    server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "rtpool_sync"):
        with plain(server) as pool:
            for _ in range(3):
                with pool.connection(timeout=10):
                    pass
    records = [record for record in caplog.records if not record.name.startswith("rtpool_sync.emulator")]
    assert {record.levelno for record in records} == {logging.DEBUG}
    assert {record.name for record in records} == {"rtpool_sync"}
    assert [record.event for record in records] == ["opened", "closed"]  # type: ignore[attr-defined]


def test_a_pool_that_is_too_small_says_so_once(
    server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rtpool_sync"):
        with plain(server, max_connections=1) as pool, pool.connection(timeout=10):
            for _ in range(3):
                with pytest.raises(PoolTimeout):
                    pool.acquire(timeout=0)
    assert len(caplog.records) == 1
    assert "checkout failed (timeout): no connection within" in caplog.text


def test_leaks_are_told_for_each_borrower(
    server: RealtimeServer, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    with caplog.at_level(logging.WARNING, "rtpool_sync"):
        with plain(server, leak_threshold=0.05) as pool:
            held = [pool.acquire(timeout=10) for _ in range(2)]
            other = pool.acquire(timeout=10)
            eventually(lambda: told(pool).count(("leaked", "")) == 3)
            for conn in [*held, other]:
                pool.release(conn)
            eventually(lambda: ("leak_returned", "") in told(pool))
    leaked = [r for r in caplog.records if r.event == "leaked"]  # type: ignore[attr-defined]
    assert len(leaked) == 2  # two places in the source
    assert "test_leaks_are_told_for_each_borrower" in leaked[0].getMessage()
