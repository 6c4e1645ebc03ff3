"""A connection in use: kept alive and proved whether or not its borrower receives, and never closed."""

from __future__ import annotations

import struct
import threading
import time

import pytest
from pool_calls import Call, echo, in_line, realtime
from pool_peers import CLOSE, TEXT, Peer, frame, peers
from pool_support import eventually, plain

from rtpool_sync import ConnectionLost
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.lifecycle import Lifecycle
from rtpool_sync.transport import Transport


def idle_for(seconds: float) -> None:
    """Be busy with something else than the connection."""
    threading.Event().wait(seconds)


@pytest.mark.parametrize("protocol", ["plain", "realtime"])
def test_a_server_that_pings_is_answered_while_the_borrower_does_not_receive(protocol: str) -> None:
    with RealtimeServer(ping_interval=0.5, ping_timeout=0.5) as server:
        with plain(server.echo_url) if protocol == "plain" else realtime(server) as pool:
            with pool.connection(10.0) as conn:
                idle_for(2.2)  # four pings; unanswered, the second would be the end
                assert conn.is_healthy
                assert conn.ping() < 5.0
            assert server.closed == []


def test_also_on_an_idle_connection() -> None:
    with RealtimeServer(ping_interval=0.2, ping_timeout=0.2) as server, plain(server.echo_url) as pool:
        with pool.connection(10.0) as conn:
            first = conn.id
        idle_for(1.0)
        with pool.connection(0.0) as conn:
            assert conn.id == first
            echo(conn)


def test_pings_prove_it_though_the_last_health_check_was_long_ago() -> None:
    """health_check_interval is for idle connections: it must not put the keepalive off."""
    with RealtimeServer() as server:
        with plain(server.echo_url, ping_interval=0.2, health_check_interval=3600) as pool:
            with pool.connection(10.0) as conn:
                eventually(lambda: conn.rtt_seconds is not None, 5.0)
                heard = conn._transport.last_heard  # type: ignore[union-attr]
                eventually(lambda: conn._transport.last_heard > heard, 5.0)  # type: ignore[union-attr]


def test_pings_are_no_more_frequent_than_asked() -> None:
    with RealtimeServer() as server, plain(server.echo_url, ping_interval=3600) as pool:
        with pool.connection(10.0) as conn:
            idle_for(0.7)
            assert conn.rtt_seconds is None


@pytest.mark.parametrize("reading", [True, False])
def test_a_peer_that_answers_nothing_is_found_out(reading: bool) -> None:
    """Within ping_interval + ping_timeout, by the reaper's looks; a blocked recv() ends then."""
    with RealtimeServer(relay=True) as server:
        with plain(server.echo_url, ping_interval=0.3, ping_timeout=0.3) as pool:
            conn = pool.acquire(10.0)
            echo(conn)
            assert server.relay is not None
            server.relay.cut()
            began = time.monotonic()
            call = Call(conn.recv) if reading else None
            if call is None:
                eventually(lambda: conn.closed)
                assert not conn.is_healthy
                call = Call(conn.recv)
            with pytest.raises(ConnectionLost, match="no answer to a ping") as caught:
                call.result()
            # Half a second for each look that may come too early.
            assert time.monotonic() - began < 0.3 + 0.3 + 2 * 0.5 + 0.5
            assert caught.value.code == 1006
            with pytest.raises(ConnectionLost):
                conn.send("x")
            pool.release(conn)
            server.relay.restore()
            with pool.connection(10.0) as other:
                echo(other)


def test_a_peer_that_stops_reading_is_found_out_by_send() -> None:
    with RealtimeServer() as server, plain(server.echo_url, ping_interval=3600, ping_timeout=0.3) as pool:
        with pool.connection(10.0) as conn:
            server.inject("stall")
            with pytest.raises(ConnectionLost) as caught:
                for _ in range(1000):
                    conn.send("x" * 100_000)
            assert caught.value.sent
        assert pool.stats().in_use == 0


# -- never closed while in use


@pytest.mark.parametrize("protocol", ["plain", "realtime"])
def test_neither_age_nor_idleness_nor_the_number_of_sessions_ends_it(protocol: str) -> None:
    settings = {
        "max_connection_age": 0.1,
        "max_idle_time": 0.1,
        "health_check_interval": 0.1,
        "max_sessions_per_connection": 1,
    }
    with RealtimeServer() as server:
        with (
            plain(server.echo_url, **settings)
            if protocol == "plain"
            else realtime(server, **settings) as pool
        ):
            with pool.connection(10.0) as conn:
                idle_for(1.2)  # longer than the reaper's housekeeping takes
                assert not conn.closed
                conn.ping()
                assert server.open == 1
            eventually(lambda: pool.stats().total_connections == 0)


def test_neither_drain_nor_resize_ends_it() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=3) as pool:
        conns = [pool.acquire(10.0) for _ in range(3)]
        pool.drain()
        pool.resize(max_connections=1)
        turned = pool.stats().reaper_last_run
        eventually(lambda: pool.stats().reaper_last_run > turned)
        for conn in conns:
            echo(conn)
        assert pool.stats().in_use == 3
        for conn in conns:
            pool.release(conn)
        eventually(lambda: pool.stats().total_connections == 0)


def test_nor_do_those_who_wait_for_it() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        conn = pool.acquire(10.0)
        waiter = in_line(pool, pool.acquire, 0.2)
        with pytest.raises(TimeoutError):
            waiter.result()
        echo(conn)
        pool.release(conn)


def test_a_defect_of_ours_does_not_end_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed, but not before it comes back."""

    def broken(*_: object) -> None:
        looked.set()
        raise ZeroDivisionError

    looked = threading.Event()
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        with pool.connection(10.0) as conn:
            monkeypatch.setattr(Lifecycle, "look_in_use", broken)
            assert looked.wait(10.0)
            turned = pool.stats().reaper_last_run
            eventually(lambda: pool.stats().reaper_last_run > turned)
            echo(conn)
        eventually(lambda: pool.stats().counters.closed["damaged"] == 1)


@pytest.mark.parametrize(
    "late", [frame(TEXT, b"late"), frame(CLOSE, struct.pack("!H", 1001))], ids=["text", "end"]
)
@pytest.mark.parametrize("way", ["idle", "waiting"])
def test_what_comes_late_is_not_read_before_the_next_borrower_has_looked(
    way: str, late: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither words meant for the last session nor the end, though the reaper looks at this very moment."""
    is_quiet, tested = Transport.is_quiet, threading.Event()
    accepted: list[Peer] = []
    looked: list[int] = []

    def script(peer: Peer) -> None:
        accepted.append(peer)
        peer.send(frame(*peer.frame()))
        tested.wait(20.0)  # and says nothing else of its own
        peer.until_end()

    with peers(script) as url, plain(url, max_connections=1) as pool:

        def looking(transport: Transport) -> bool:
            if not looked:
                accepted[0].send(late)
                eventually(transport.has_bytes)
                (member,) = pool._ledger.members
                reaper = pool._reaper
                assert reaper is not None
                reaper._life.look_in_use(member, time.monotonic(), member.session_count)
                looked.append(member.id)
            return is_quiet(transport)

        conn = pool.acquire(10.0)
        echo(conn)
        waiter = in_line(pool, pool.acquire, 20.0) if way == "waiting" else None
        monkeypatch.setattr(Transport, "is_quiet", looking)
        pool.release(conn)
        conn = waiter.result() if waiter is not None else pool.acquire(10.0)
        tested.set()
        assert looked == [1]
        assert conn.id == 2
        echo(conn)
        pool.release(conn)
