"""The thread that looks after everything: defects of ours, resets that fail, sessions that do not begin."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from pool_calls import Call, echo, in_line, realtime
from pool_support import eventually, plain

from rtpool_sync import ConnectError, ConnectionLost, PoolTimeout, RealtimePool
from rtpool_sync.connection import State
from rtpool_sync.emulator import Faults, RealtimeServer
from rtpool_sync.ledger import again
from rtpool_sync.lifecycle import Lifecycle
from rtpool_sync.loop import Loop
from rtpool_sync.reaper import Reaper


def once(monkeypatch: pytest.MonkeyPatch, where: type, name: str) -> threading.Event:
    """Have a method raise the next time it is called; return what tells that it did."""
    struck = threading.Event()
    original = getattr(where, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        if not struck.is_set():
            struck.set()
            raise ZeroDivisionError(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, method)
    return struck


# -- defects of ours


@pytest.mark.parametrize("step", ["_apply_limits", "_plan", "_watch_idle", "_look_in_use", "_keep_house"])
def test_a_defect_in_a_turn_does_not_end_the_turning(
    step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(10.0) as conn:
            struck = once(monkeypatch, Reaper, step)
            pool._wake()
            assert struck.wait(10.0)
            echo(conn)
        with pool.connection(10.0) as conn:
            echo(conn)
        eventually(lambda: "error in the reaper; it goes on" in caplog.text)
        pool.drain()
        eventually(lambda: pool.stats().total_connections == 0)


@pytest.mark.parametrize("step", ["examine", "_look_idle", "received_back", "_drive_close"])
def test_a_defect_in_a_step_costs_one_connection_at_most(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RealtimeServer(ping_interval=0.05) as server:
        with plain(server.echo_url, max_connections=1, health_check_interval=0.05) as pool:
            with pool.connection(10.0) as conn:
                struck = once(monkeypatch, Lifecycle, step)
                if step in ("received_back", "_drive_close"):
                    conn.invalidate()
            assert struck.wait(10.0)
            eventually(lambda: pool.stats().closing == 0)
            for _ in range(3):
                with pool.connection(10.0) as conn:
                    echo(conn)
            assert server.max_sockets == 1


def test_who_is_in_no_list_is_found_again() -> None:
    """Should an exception ever strike between two lists."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=3) as pool:
        handles = [pool.acquire(10.0) for _ in range(3)]
        idle, resetting, closing = (handle._member for handle in handles)
        assert idle is not None
        assert resetting is not None
        assert closing is not None
        ledger = pool._ledger
        with ledger.lock:
            for member in (idle, resetting, closing):
                member.session_count += 1
                assert member.transport is not None
                member.transport.owner = None
            idle.state, resetting.state, closing.state = State.IDLE, State.RESETTING, State.CLOSING
        eventually(lambda: pool.stats().idle == 2, 10.0, repr(pool))
        eventually(lambda: (ledger.in_use, ledger.closing) == (0, 1))
        eventually(lambda: pool.stats().total_connections == 2, 10.0, repr(pool))
        assert (ledger.in_use, ledger.closing) == (0, 0)


def test_who_is_in_line_beside_an_idle_connection_is_served() -> None:
    """Should exceptions ever strike whoever gives back twice, before and after the line is looked at."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        handle = pool.acquire(10.0)
        waiter = in_line(pool, pool.acquire, 10.0)
        member, transport = handle._borrowed()
        ledger = pool._ledger
        with ledger.lock:
            transport.owner = None
            member.state, member.idle_since = State.IDLE, time.monotonic()
            ledger.in_use -= 1
            ledger.idle.append(member)
        served = waiter.result(5.0)
        assert served.id == handle.id
        pool.release(handle)  # harmless
        echo(served)
        pool.release(served)


def test_an_error_of_a_protocols_own_kind_reaches_every_waiter() -> None:
    """Though nobody knows how to make a second one of it."""

    class Odd(ConnectError):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}", kind="session", permanent=True)
            self.first = first

    error = Odd(1, 2)
    twin = again(error)
    assert twin is not error
    assert isinstance(twin, ConnectError)
    assert (str(twin), twin.kind, twin.permanent) == ("1 and 2", "session", True)


# -- sessions that do not begin


def test_a_session_that_does_not_begin_in_time() -> None:
    with RealtimeServer(faults=Faults(no_session_created=True)) as server:
        with realtime(server, connect_timeout=0.2) as pool:
            with pytest.raises(PoolTimeout) as caught:
                pool.acquire(0.6)
            cause = caught.value.__cause__
            assert isinstance(cause, ConnectError)
            assert (cause.kind, cause.permanent) == ("timeout", False)
            assert "did not begin within 0.2 s" in str(cause)
            server.faults = Faults()
            with pool.connection(10.0):
                assert pool.stats().counters.opened == 1


def test_a_session_that_is_refused_because_of_the_pools_own_settings() -> None:
    with RealtimeServer() as server, realtime(server, session={"max_output_tokens": -5}) as pool:
        with pytest.raises((ConnectError, PoolTimeout)) as caught:
            pool.acquire(1.0)
        error = caught.value if isinstance(caught.value, ConnectError) else caught.value.__cause__
        assert isinstance(error, ConnectError)
        assert error.kind == "session"
        eventually(lambda: pool.stats().total_connections == 0)


# -- resets that fail


@pytest.mark.parametrize(
    ("faults", "outcome"),
    [
        (Faults(drop={"session.updated": 1.0, "input_audio_buffer.cleared": 1.0}), "silent"),
        (Faults(close_after=2), "lost"),
    ],
)
def test_a_reset_that_fails_costs_the_connection_and_nothing_else(faults: Faults, outcome: str) -> None:
    with RealtimeServer() as server, realtime(server, reset_timeout=0.3) as pool:
        with pool.connection(10.0) as conn:
            first = conn.id
            server.faults = faults
            conn.send({"type": "session.update", "session": {"type": "realtime", "instructions": "x"}})
        eventually(lambda: sum(pool.stats().counters.closed.values()) == 1)
        server.faults = Faults()
        stats = pool.stats()
        assert stats.counters.resets[outcome] == 1, stats.counters.resets
        assert stats.counters.closed["lost" if outcome == "lost" else "reset"] == 1
        with pool.connection(10.0) as conn:
            assert conn.id != first


def test_a_connection_that_is_silent_to_settings_is_replaced_for_the_same_caller() -> None:
    with RealtimeServer() as server, realtime(server, reset_timeout=0.3, max_connections=2) as pool:
        pool.wait(10.0)
        server.faults = Faults(drop={"session.updated": 1.0}, only=lambda index: index == 0)
        with pool.connection(10.0, session={"instructions": "Be brief."}) as conn:
            assert conn.id == 2
        eventually(lambda: pool.stats().counters.closed["invalidated"] == 1)


def test_one_that_dies_amid_its_settings_too() -> None:
    with RealtimeServer() as server, realtime(server, max_connections=2) as pool:
        pool.wait(10.0)
        server.faults = Faults(reset_after=1, only=lambda index: index == 0)
        with pool.connection(10.0, session={"instructions": "Be brief."}) as conn:
            assert conn.id == 2


def test_drained_amid_its_reset_it_is_not_offered_again() -> None:
    with RealtimeServer(faults=Faults(late={"session.updated": 0.2})) as server:
        with realtime(server, max_connections=1) as pool:
            conn = pool.acquire(10.0)
            waiter = in_line(pool, pool.acquire, 10.0)
            conn.send({"type": "session.update", "session": {"type": "realtime", "instructions": "x"}})
            pool.release(conn)
            pool.drain()
            other = waiter.result()
            assert other.id != conn.id
            pool.release(other)


def test_what_ends_while_it_is_in_use_is_the_borrowers_to_find_out() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        with pool.connection(10.0) as conn:
            server.close_all(1001)
            eventually(lambda: conn.closed)
            turned = pool.stats().reaper_last_run
            eventually(lambda: pool.stats().reaper_last_run > turned + 0.3)
            assert pool.stats().in_use == 1
            with pytest.raises(ConnectionLost) as caught:
                conn.recv(5.0)
            assert caught.value.code == 1001
        eventually(lambda: pool.stats().counters.closed["lost"] == 1)


def test_many_calls_while_the_reaper_sleeps_wake_it_once() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        pool.wait(10.0)
        loop = pool._reaper._loop  # type: ignore[union-attr]
        for _ in range(10_000):
            loop.wake()
        calls = [Call(lambda: pool.release(pool.acquire(10.0))) for _ in range(20)]
        for call in calls:
            call.result()


def test_waking_a_loop_that_is_closed_or_choked_is_harmless() -> None:
    pool = RealtimePool(url="ws://127.0.0.1:9/", protocol="plain")
    pool.open()
    reaper = pool._reaper
    assert reaper is not None
    pool.close()
    reaper.wake()
    reaper.wake()


# -- left asleep


def test_a_borrower_does_not_wake_it_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[Loop] = []
    original = Loop.wake

    def wake(loop: Loop) -> None:
        woken.append(loop)
        original(loop)

    monkeypatch.setattr(Loop, "wake", wake)
    with RealtimeServer() as server, plain(server.echo_url, max_connections=2) as pool:
        for conn in [pool.acquire(10.0), pool.acquire(10.0)]:
            pool.release(conn)
        turned = pool.stats().reaper_last_run
        eventually(lambda: pool.stats().reaper_last_run > turned + 0.5)
        woken.clear()
        with pool.connection(10.0) as conn, pool.connection(10.0) as other:
            echo(conn)
            echo(other)
            waiter = in_line(pool, pool.acquire, 10.0)  # nothing can be opened for it
            pool.release(other)
            assert waiter.result().id == other.id
            pool.release(waiter.result())
        assert woken == []
        # Nothing is missed for it: what comes back is watched again, and its end is noticed.
        server.close_all(1001)
        eventually(lambda: pool.stats().counters.closed["lost"] == 2)


@pytest.mark.parametrize("settings", [{"ping_interval": 0.5}, {"leak_threshold": 0.5}, {"min_idle": 2}])
def test_a_borrower_wakes_it_when_it_would_come_too_late(settings: dict[str, Any]) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=3, **settings) as pool:
        pool.wait(10.0)
        eventually(lambda: not pool._ledger.will_turn)
        with pool.connection(10.0):
            eventually(lambda: pool._ledger.will_turn, 0.9)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_what_comes_back_keeps_no_buffer(tls: bool) -> None:
    with RealtimeServer(tls=tls) as server, plain(server.echo_url, ca_file=server.ca_file) as pool:
        with pool.connection(10.0) as conn:
            transport = conn._borrowed()[1]
        for _ in range(2):  # also when it was watched all the time
            with pool.connection(10.0) as conn:
                conn.send("x" * 20_000)
                assert len(conn.recv(10.0)) == 20_000
                assert transport._view
            eventually(lambda: not transport._view)
        assert pool.stats().counters.health_checks["ok"] == 0
