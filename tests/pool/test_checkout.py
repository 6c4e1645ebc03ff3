"""Taking a connection out: at once, in turn, or not at all, and what those are told who get none."""

from __future__ import annotations

import gc
import math
import threading
import time
from typing import Any

import pytest
from pool_calls import Call, echo, in_line, realtime, waiting
from pool_support import descriptors, eventually, plain, pool_threads

from rtpool_sync import (
    AuthenticationError,
    ConnectError,
    ModelError,
    PoolClosed,
    PoolExhausted,
    PoolTimeout,
    RateLimited,
    RealtimePool,
    RtpoolError,
    SessionRejected,
)
from rtpool_sync.emulator import Faults, RealtimeServer
from rtpool_sync.policy import Backoff
from rtpool_sync.transport import Transport

# -- lazy


def test_building_a_pool_opens_nothing_and_starts_nothing() -> None:
    with RealtimeServer() as server:
        threads, files = threading.active_count(), descriptors()
        pools = [plain(server.echo_url, min_idle=3), realtime(server)]
        for pool in pools:
            assert pool.stats().total_connections == 0
            assert pool.health().status == "healthy"
            assert (pool.closed, pool.name) == (False, "default")
            assert "no connection" in repr(pool)
        assert (threading.active_count(), descriptors()) == (threads, files)
        assert server.accepted_total == 0


def test_the_first_checkout_starts_it() -> None:
    with RealtimeServer() as server:
        pool = plain(server.echo_url)
        with pool.connection(10.0) as conn:
            echo(conn)
            assert "1 in_use" in repr(pool)
        assert server.opened_total == 1
        pool.close()


def test_open_starts_it_and_fills_the_reserve() -> None:
    with RealtimeServer() as server:
        pool = plain(server.echo_url, min_idle=3)
        pool.open()
        eventually(lambda: pool.stats().idle == 3)
        pool.close()
        assert server.opened_total == 3


def test_open_and_wait() -> None:
    with RealtimeServer() as server:
        for min_idle in (0, 3):
            pool = plain(server.echo_url, min_idle=min_idle)
            pool.open(wait=True)
            assert pool.stats().idle == max(1, min_idle)
            pool.close()


def test_waiting_for_a_server_that_is_down() -> None:
    with RealtimeServer(faults=Faults(refuse=503)) as server, plain(server.echo_url) as pool:
        with pytest.raises(PoolTimeout) as caught:
            pool.wait(0.1)
        assert isinstance(caught.value.__cause__, ConnectError)
        patient = Call(pool.wait, 20.0)
        with pytest.raises(PoolTimeout):
            pool.wait(0.1)  # the other one's wish for a connection stays
        server.faults = Faults()
        patient.result()
        assert pool.stats().idle == 1


def test_waiting_in_vain_for_good() -> None:
    with RealtimeServer(api_keys=["sk-other"]) as server, realtime(server) as pool:
        with pytest.raises(AuthenticationError):
            pool.wait(20.0)
        with pytest.raises(AuthenticationError):
            pool.wait(0.1)  # the next attempt comes too late for it
        closed = Call(pool.wait, 20.0)
        pool.close()
        with pytest.raises((PoolClosed, AuthenticationError)):
            closed.result()
        with pytest.raises(PoolClosed):
            pool.wait(1.0)


# -- at once


def test_an_idle_connection_is_taken_at_once_in_the_callers_thread() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        with pool.connection(10.0) as conn:
            first = conn.id
        for _ in range(20):
            with pool.connection(0.0) as conn:  # no time to wait at all
                assert conn.id == first
                echo(conn)
        assert server.opened_total == 1


def test_with_no_time_and_nothing_ready_there_is_none() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        with pytest.raises(PoolTimeout):
            pool.acquire(0.0)


def test_the_most_recently_used_is_taken_first() -> None:
    """So that the others can reach their idle time."""
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        conns = [pool.acquire(10.0) for _ in range(3)]
        for index in (1, 2, 0):
            pool.release(conns[index])
        ids = [conns[0].id, conns[2].id, conns[1].id]
        with pool.connection(0.0) as a, pool.connection(0.0) as b, pool.connection(0.0) as c:
            assert [a.id, b.id, c.id] == ids


def test_also_when_the_very_last_one_is_not_fit() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        conns = [pool.acquire(10.0) for _ in range(3)]
        members = [conn._member for conn in conns]
        for conn in conns:
            pool.release(conn)
        assert members[2] is not None
        with pool._ledger.lock:
            members[2].usable_until = 0.0
        with pool.connection(0.0) as conn:
            assert conn.id == conns[1].id


def test_nested_checkouts_get_connections_of_their_own() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=3) as pool:
        with pool.connection(10.0) as a, pool.connection(10.0) as b, pool.connection(10.0) as c:
            assert len({a.id, b.id, c.id}) == 3
            for conn in (a, b, c):
                conn.send(str(conn.id))
            for conn in (c, a, b):
                assert conn.recv(5.0) == str(conn.id)
            with pytest.raises(PoolTimeout):  # a fourth would wait for ourselves
                pool.acquire(0.05)
        assert server.max_sockets == 3


def test_one_checkout_can_be_entered_again_but_not_twice_at_a_time() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        checkout = pool.connection(10.0)
        for _ in range(2):
            with checkout as conn:
                echo(conn)
                with pytest.raises(RuntimeError, match="twice"), checkout:
                    pass
        assert pool.stats().in_use == 0


# -- in turn


def test_first_come_first_served() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        order: list[int] = []

        def borrow(me: int) -> None:
            with pool.connection(30.0):
                order.append(me)

        with pool.connection(10.0):
            calls = [in_line(pool, borrow, me) for me in range(8)]
        for call in calls:
            call.result()
        assert order == list(range(8))


def test_a_freed_connection_is_handed_straight_to_the_first_in_line() -> None:
    """Who comes later cannot snatch it, not even the one that gives it back."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        conn = pool.acquire(10.0)
        first = in_line(pool, pool.acquire, 30.0)
        pool.release(conn)
        assert pool.stats().in_use == 1  # it is the first one's before release() has returned
        assert pool.stats().idle == pool.stats().waiting == 0
        with pytest.raises(PoolTimeout):
            pool.acquire(0.0)
        got = first.result()
        assert got.id == conn.id
        pool.release(got)


def test_a_new_connection_is_handed_straight_to_the_first_in_line() -> None:
    with RealtimeServer(faults=Faults(trickle=0.001)) as server:
        with plain(server.echo_url, max_connections=1) as pool:
            first = in_line(pool, pool.acquire, 30.0)
            second = in_line(pool, pool.acquire, 30.0)
            pool.release(first.result())
            pool.release(second.result())


def test_a_returned_connection_serves_before_one_under_way() -> None:
    """Connecting runs off the caller's thread."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=2) as pool:
        conn = pool.acquire(10.0)
        server.script(Faults(mute="request"))  # the next one never gets ready
        waiter = in_line(pool, pool.acquire, 30.0)
        eventually(lambda: pool.stats().connecting == 1)
        pool.release(conn)
        got = waiter.result()
        assert got.id == conn.id
        assert waiter.took < 5.0
        assert pool.stats().connecting == 1
        pool.release(got)


def test_the_connection_under_way_serves_the_next() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=2) as pool:
        conn = pool.acquire(10.0)
        server.script(Faults(trickle=0.002))
        waiter = in_line(pool, pool.acquire, 30.0)
        eventually(lambda: pool.stats().connecting == 1)
        pool.release(conn)
        pool.release(waiter.result())
        eventually(lambda: pool.stats().idle == 2)
        assert server.opened_total == 2


def test_never_more_than_max_connections_whatever_their_state() -> None:
    """Sockets are counted where they end: connecting, resetting and closing ones are among them."""
    with RealtimeServer() as server:
        with realtime(server, max_connections=2, max_sessions_per_connection=2) as pool:
            stop = threading.Event()

            def work() -> None:
                while not stop.is_set():
                    with pool.connection(30.0) as conn:
                        conn.send({"type": "input_audio_buffer.clear"})

            calls = [Call(work) for _ in range(5)]
            eventually(lambda: pool.stats().total_sessions_handled >= 40, 20.0, repr(pool))
            stop.set()
            for call in calls:
                call.result()
        assert server.opened_total > 10
        assert server.max_sockets <= 2


# -- who leaves leaves nothing behind


def test_a_waiter_that_times_out_leaves_nothing_behind() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(10.0) as conn:
            for _ in range(5):
                with pytest.raises(PoolTimeout):
                    pool.acquire(0.005)
            assert pool.stats().waiting == 0
            first = conn.id
        assert pool.stats().idle == 1  # nobody is served who has left
        with pool.connection(0.0) as conn:
            assert conn.id == first
        assert pool.stats().counters.leaks == 0


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit, MemoryError])
def test_a_waiter_that_is_killed_leaves_nothing_behind(
    leaving: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        conn = pool.acquire(10.0)

        class Gate:
            """Is opened, and the thread killed, in the same moment."""

            def __init__(self, served: bool) -> None:
                self.served = served

            def acquire(self, timeout: float = 0.0) -> bool:
                if timeout:
                    if self.served:
                        pool.release(conn)
                    raise leaving
                return True

            def release(self) -> None:
                pass

        for served in (False, True):
            monkeypatch.setattr("rtpool_sync.ledger.threading.Lock", lambda served=served: Gate(served))
            with pytest.raises(leaving):
                pool.acquire(30.0)
            monkeypatch.undo()
            assert pool.stats().waiting == 0
            assert pool.stats().in_use == (0 if served else 1)
        with pool.connection(10.0) as again:
            assert again.id == conn.id
        assert pool.stats().counters.leaks == 0


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("way", ["idle", "waiting"])
def test_a_connection_that_broke_while_the_pool_was_closed(
    way: str, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks at what he was handed, and does not like it, finds nobody who gives him another."""
    closing: list[Call] = []
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:

        def is_quiet(transport: Transport) -> bool:
            closing.append(Call(pool.close, 0.0 if killed else 20.0))
            eventually(lambda: pool.closed)
            if killed:
                closing[0].result()  # the connection is gone
            return False

        conn = pool.acquire(10.0)
        if way == "idle":
            pool.release(conn)
        waiter = in_line(pool, pool.acquire, 30.0) if way == "waiting" else None
        monkeypatch.setattr(Transport, "is_quiet", is_quiet)
        if waiter is None:
            waiter = Call(pool.acquire, 30.0)
        else:
            pool.release(conn)
        with pytest.raises(PoolClosed):
            waiter.result()
        closing[0].result()
        stats = pool.stats()
        assert (stats.in_use, stats.total_connections) == (0, 0)
        assert (stats.counters.checkouts_ok, stats.counters.checkouts_failed["closed"]) == (1, 1)


# -- not in time


def test_the_message_of_a_timeout_has_the_numbers() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=2) as pool:
        with pool.connection(10.0), pool.connection(10.0):
            other = in_line(pool, pool.acquire, 30.0)
            with pytest.raises(PoolTimeout) as caught:
                pool.acquire(0.12)
            text = str(caught.value)
            assert "within 0.12 s" in text
            assert "waited 0.1" in text
            for number in ("in use 2", "idle 0", "connecting 0", "resetting 0", "waiting 1", "max 2"):
                assert number in text
            assert caught.value.__cause__ is None  # connecting is not what failed
            assert isinstance(caught.value, (TimeoutError, RtpoolError))
        pool.release(other.result())


def test_the_cause_of_a_timeout_is_the_last_connect_error() -> None:
    with RealtimeServer(faults=Faults(refuse=503, refuse_body="overloaded")) as server:
        with plain(server.echo_url) as pool:
            with pytest.raises(PoolTimeout) as caught:
                pool.acquire(0.3)
            cause = caught.value.__cause__
            assert isinstance(cause, ConnectError)
            assert isinstance(cause, ConnectionError)
            assert (cause.status, cause.permanent, cause.kind) == (503, False, "handshake")
            assert "overloaded" in str(cause)
            assert str(cause) in str(caught.value)
            # Connecting works again, and all are out: that is another cause.
            server.faults = Faults()
            pool.resize(max_connections=1)
            with pool.connection(20.0), pytest.raises(PoolTimeout) as caught:
                pool.acquire(0.01)
            assert caught.value.__cause__ is None


def test_the_setting_holds_where_no_timeout_is_given() -> None:
    with RealtimeServer() as server:
        with plain(server.echo_url, max_connections=1, checkout_timeout=0.05) as pool:
            with pool.connection(10.0):
                for attempt in (pool.acquire, lambda: pool.connection().__enter__()):
                    with pytest.raises(PoolTimeout, match=r"within 0\.05 s"):
                        attempt()


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(math.nan, ValueError), ("5", TypeError), (True, TypeError), ([], TypeError), (1j, TypeError)],
)
def test_a_bad_timeout_is_refused_whatever_the_pool_has(timeout: Any, error: type[Exception]) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        calls = [
            pool.acquire,
            lambda t: pool.connection(t).__enter__(),
            lambda t: pool.acquire(t, session={}),
        ]
        for _ in ("nothing open", "idle"):
            for call in calls:
                with pytest.raises(error, match="timeout must be a number of seconds"):
                    call(timeout)
            pool.wait(10.0)
        for other in (pool.wait, pool.close):
            with pytest.raises(error, match="timeout must be a number of seconds"):
                other(timeout)
        stats = pool.stats()
        assert (stats.in_use, stats.waiting, stats.counters.leaks) == (0, 0, 0)


@pytest.mark.parametrize("timeout", [-1, -math.inf, 0])
def test_no_time_means_now_or_not(timeout: float) -> None:
    refusing = Faults(refuse=503)  # otherwise one may be opened while this thread does not run
    with RealtimeServer(faults=refusing) as server, plain(server.echo_url, max_connections=1) as pool:
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout)
        server.faults = Faults()
        pool.wait(10.0)
        with pool.connection(timeout), pytest.raises(PoolTimeout):
            pool.acquire(timeout)


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 10**400])
def test_any_time(timeout: float) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(timeout) as conn:
            waiter = in_line(pool, pool.acquire, timeout)
            first = conn.id
        got = waiter.result()
        assert got.id == first
        pool.release(got)


# -- not at all


def test_max_waiting_callers_wait_and_no_more() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1, max_waiting=2) as pool:
        with pool.connection(10.0):
            calls = [in_line(pool, pool.acquire, 30.0) for _ in range(2)]
            began = time.monotonic()
            with pytest.raises(PoolExhausted, match=r"2 callers .*in use 1.*waiting 2, max 1"):
                pool.acquire(30.0)
            assert time.monotonic() - began < 5.0
            waiting(pool, 2)
        for call in calls:
            pool.release(call.result())
        with pool.connection(0.0):
            pass


def test_a_closed_pool_says_so() -> None:
    with RealtimeServer() as server:
        never_started = plain(server.echo_url)
        never_started.close()
        used = plain(server.echo_url)
        with used.connection(10.0):
            pass
        used.close()
        for pool in (never_started, used):
            assert pool.closed
            with pytest.raises(PoolClosed, match="closed"):
                pool.acquire(5.0)
            with pytest.raises(PoolClosed), pool.connection(5.0):
                pass
        assert server.opened_total == 1


# -- connecting that cannot succeed


@pytest.mark.parametrize(
    ("server_settings", "expected", "code", "status", "close_code"),
    [
        ({"api_keys": ["sk-right"]}, AuthenticationError, "invalid_api_key", None, 3000),
        ({"models": ["another"]}, ModelError, "invalid_model", None, 4000),
        ({"faults": Faults(refuse=401)}, AuthenticationError, None, 401, None),
    ],
)
def test_a_permanent_error_reaches_every_waiter_at_once(
    server_settings: dict[str, Any],
    expected: type[ConnectError],
    code: str | None,
    status: int | None,
    close_code: int | None,
) -> None:
    with RealtimeServer(**server_settings) as server, realtime(server, max_connections=5) as pool:
        calls = [Call(pool.acquire, 30.0) for _ in range(6)]
        for call in calls:
            with pytest.raises(expected) as caught:
                call.result(10.0)
            assert caught.value.permanent
            assert (caught.value.code, caught.value.status, caught.value.close_code) == (
                code,
                status,
                close_code,
            )
        assert len({id(call.error) for call in calls}) == 6  # tracebacks must not mix
        assert pool.stats().waiting == 0
        assert pool.stats().counters.checkouts_failed["error"] == 6


def test_a_permanent_error_is_not_retried_in_a_loop() -> None:
    with RealtimeServer(api_keys=["sk-right"]) as server, realtime(server, min_idle=1) as pool:
        refused = 0
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            with pytest.raises((AuthenticationError, PoolTimeout)) as caught:  # the latter while one is made
                pool.acquire(0.05)
            refused += caught.type is AuthenticationError
            assert pool.stats().counters.connect_errors["auth"] >= 1
            threading.Event().wait(0.002)
        assert refused > 3
        # 0.25, 0.5, 1 s, less a quarter: that makes three attempts in the first second.
        assert server.accepted_total <= 3
        assert server.opened_total <= 3


def test_who_mends_the_key_is_served() -> None:
    keys = ["sk-wrong"]
    with RealtimeServer(api_keys=["sk-right"]) as server:
        with realtime(server, api_key=lambda: keys[-1]) as pool:
            with pytest.raises(AuthenticationError):
                pool.acquire(10.0)
            keys.append("sk-right")
            with pool.connection(10.0) as conn:
                assert conn.session_id


def test_retry_after_is_obeyed() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        server.script(Faults(refuse=429, refuse_headers={"Retry-After": "1"}))
        began = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(0.5)
        assert isinstance(caught.value.__cause__, RateLimited)
        assert caught.value.__cause__.retry_after == 1.0
        assert server.accepted_total == 1
        with pool.connection(20.0):
            assert time.monotonic() - began >= 1.0
        assert server.accepted_total == 2


def test_while_the_server_is_down_attempts_get_rarer_and_come_one_at_a_time() -> None:
    with RealtimeServer(faults=Faults(refuse=503)) as server:
        with plain(server.echo_url, max_connections=10) as pool:
            calls = [Call(pool.acquire, 0.6) for _ in range(10)]
            for call in calls:
                with pytest.raises(PoolTimeout):
                    call.result()
            # Up to four at once at first, then after 0.25 and 0.5 s, less a quarter.
            assert server.accepted_total <= 4 + 2
            assert pool.stats().counters.connect_errors["handshake"] == server.accepted_total
            server.faults = Faults()
            with pool.connection(20.0) as conn:
                echo(conn)


def test_a_server_that_is_not_there_yet() -> None:
    server = RealtimeServer()
    with server:
        url = server.echo_url
    with plain(url, connect_timeout=2.0) as pool:
        call = Call(pool.acquire, 20.0)
        eventually(lambda: pool.stats().counters.connect_errors["tcp"] > 0)
        with server:
            conn = call.result()
            echo(conn)
            pool.release(conn)
            pool.close()


def test_after_a_success_delays_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        server.script(*[Faults(refuse=503)] * 2)
        pool._ledger.backoff = Backoff(first=0.01)
        with pool.connection(20.0):
            assert pool._ledger.backoff.failures == 0
        assert pool.health().status == "healthy"


# -- exceptions of the borrower


class OwnError(Exception):
    pass


def test_an_exception_inside_propagates_unchanged_and_the_connection_lives_on() -> None:
    with RealtimeServer() as server, realtime(server) as pool:
        error = OwnError("mine")
        with pytest.raises(OwnError) as caught, pool.connection(10.0) as conn:
            first = conn.id
            raise error
        assert caught.value is error
        assert error.__context__ is None
        assert error.__cause__ is None
        with pool.connection(10.0) as conn:
            assert (conn.id, conn.session_count) == (first, 2)
        assert pool.stats().counters.resets["ok"] >= 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_also_one_that_is_no_exception(kind: type[BaseException]) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        with pytest.raises(kind), pool.connection(10.0):
            raise kind
        assert pool.stats().idle == 1


def test_a_connection_with_a_damaged_stream_is_discarded() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        with pytest.raises(OwnError), pool.connection(10.0) as conn:
            first = conn.id
            assert conn._transport is not None
            conn._transport.damaged = True  # what an interrupted operation leaves
            raise OwnError
        with pool.connection(10.0) as conn:
            assert conn.id != first
        assert pool.stats().counters.closed["damaged"] == 1


# -- session settings of one checkout


def test_session_settings_are_in_force_when_the_connection_is_handed_over() -> None:
    with RealtimeServer() as server, realtime(server, session={"instructions": "all"}) as pool:
        with pool.connection(10.0, session={"instructions": "mine"}):
            [shown] = server.connections
            assert shown.session is not None
            assert shown.session["instructions"] == "mine"
        with pool.connection(10.0) as conn:
            [shown] = server.connections
            assert shown.session is not None
            assert shown.session["instructions"] == "all"  # the pool's, after the reset
            assert conn.session_count == 2


def test_session_settings_that_are_refused() -> None:
    with RealtimeServer() as server, realtime(server) as pool:
        with pytest.raises(SessionRejected):
            pool.acquire(10.0, session={"output_modalities": ["smell"]})
        with pool.connection(10.0):  # nothing is lost
            assert pool.stats().in_use == 1
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        with pytest.raises(SessionRejected, match="plain"):
            pool.acquire(10.0, session={})
        assert pool.stats().in_use == 0


@pytest.mark.parametrize(
    ("session", "error", "said"),
    [
        ("kindly", TypeError, "session must be a mapping of session settings, not str"),
        ([], TypeError, "not list"),
        ({"instructions": object()}, TypeError, "session settings are no JSON: a value of type object"),
        ({"tools": set()}, TypeError, "a value of type set"),
        ({"temperature": float("nan")}, ValueError, "session settings are no JSON: "),
    ],
)
def test_session_settings_that_are_none(session: Any, error: type[Exception], said: str) -> None:
    with RealtimeServer() as server, realtime(server, max_connections=1) as pool:
        with pytest.raises(error, match=said):
            pool.acquire(10.0, session=session)
        with pool.connection(10.0):  # nothing is lost
            assert pool.stats().in_use == 1


def test_a_pool_with_waiters_is_not_forgotten() -> None:
    with RealtimeServer() as server:
        pool: RealtimePool | None = plain(server.echo_url, max_connections=1)
        assert pool is not None
        conn = pool.acquire(10.0)
        waiter = in_line(pool, pool.acquire, 30.0)
        other = pool
        pool = None
        gc.collect()
        other.release(conn)
        other.release(waiter.result())
        other.close()
        assert not [name for name in pool_threads() if "reaper" in name]


def test_who_has_no_patience_has_one_opened_for_the_next() -> None:
    """Asking again and again without waiting must come to something."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        server.script(Faults(trickle=0.005))  # it takes a while, also if this thread does not run
        with pytest.raises(PoolTimeout):
            pool.acquire(0)
        eventually(lambda: pool.stats().idle == 1)
        with pool.connection(0):
            with pytest.raises(PoolTimeout):
                pool.acquire(0)
        assert server.max_sockets == 1


def test_a_wrong_key_is_not_presented_over_and_over_to_fill_the_reserve() -> None:
    with RealtimeServer(api_keys=["sk-right"]) as server, realtime(server, min_idle=1) as pool:
        eventually(lambda: pool.stats().counters.connect_errors["auth"] >= 1)
        threading.Event().wait(1.5)
        assert server.accepted_total == 1
        with pytest.raises(AuthenticationError):  # it is, when somebody asks
            pool.acquire(10.0)
        assert server.accepted_total == 2


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), RuntimeError("no vault")])
def test_whatever_the_keys_function_raises_costs_no_place(error: BaseException) -> None:
    def key() -> str:
        if broken:
            raise error
        return "sk-x"

    broken = True
    with RealtimeServer() as server, realtime(server, api_key=key) as pool:
        with pytest.raises((ConnectError, PoolTimeout)):
            pool.acquire(0.1)
        eventually(lambda: sum(pool.stats().counters.connect_errors.values()) >= 1)
        broken = False
        with pool.connection(10.0):
            assert pool.stats().total_connections == 1


def test_settings_not_acknowledged_in_time_say_the_numbers_too() -> None:
    with RealtimeServer() as server, realtime(server) as pool:
        pool.wait(10.0)
        server.faults = Faults(drop={"session.updated": 1.0})
        with pytest.raises(PoolTimeout, match=r"not acknowledged in time \(pool 'default': in use 0"):
            pool.acquire(0.3, session={"instructions": "Be brief."})
