"""Exceptions, kills and disconnects in the middle of every step: nothing is lost, nobody waits for ever."""

from __future__ import annotations

import ctypes
import random
import threading
import time

import pytest

from rtpool_sync import ConnectError, ConnectionLost, PoolTimeout, RealtimePool, RecvTimeout
from rtpool_sync.emulator import Faults, RealtimeServer

EXPECTED = (ConnectError, ConnectionLost, PoolTimeout, RecvTimeout)
SIZE = 2


def make_pool(server: RealtimeServer, **overrides: object) -> RealtimePool:
    settings = {
        "base_url": server.base_url,
        "api_key": "sk-x",
        "session": {"instructions": "Be brief."},
        "max_connections": SIZE,
        "connect_timeout": 0.4,
        "reset_timeout": 0.1,
        "close_timeout": 0.2,
        "ping_interval": 0.2,
        "ping_timeout": 0.3,
        "min_session_time": 0,
        **overrides,
    }
    return RealtimePool(name="interrupted", **settings)


def one_session(pool: RealtimePool, timeout: float) -> None:
    with pool.connection(timeout, session={"instructions": "Count."}) as conn:
        content = [{"type": "input_text", "text": "recite"}]
        item = {"type": "message", "role": "user", "content": content}
        conn.send({"type": "conversation.item.create", "item": item})
        conn.send({"type": "response.create", "response": {"output_modalities": ["text"]}})
        end = time.monotonic() + timeout
        while conn.recv(max(0.0, end - time.monotonic()))["type"] != "response.done":
            pass


def assert_full(pool: RealtimePool, server: RealtimeServer) -> None:
    """All connections can be had at the same time, each works, and there are no others."""
    handles = []
    try:
        for _ in range(SIZE):
            handles.append(pool.acquire(20.0))
        for handle in handles:
            assert handle.ping() < 5.0
        stats = pool.stats()
        assert stats.in_use == stats.total_connections == SIZE
    finally:
        for handle in handles:
            pool.release(handle)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["close_after", "reset_after", "stall_after", "truncate_after"])
def test_a_connection_that_breaks_after_any_number_of_messages_costs_nothing_but_itself(fault: str) -> None:
    with RealtimeServer(response_delay=0.0, rate_limits_delay=0.0) as server, make_pool(server) as pool:
        outcomes = []
        for count in range(28):  # from the greeting to the middle of the reset
            server.faults = Faults(**{fault: count})
            began = time.monotonic()
            try:
                one_session(pool, timeout=0.6)
                outcomes.append("ok")
            except EXPECTED as error:
                outcomes.append(type(error).__name__)
            assert time.monotonic() - began < 5.0
            pool.drain()  # what is idle was made under other faults
        server.faults = Faults()
        pool.drain()
        assert "ok" in outcomes
        assert len(set(outcomes)) > 1, outcomes  # the fault did strike
        assert_full(pool, server)
        if fault != "stall_after":  # a server that does not read does not see that its client left
            assert server.max_sockets <= SIZE


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("untraced")
def test_borrowers_killed_at_any_moment_of_a_session_cost_nothing() -> None:
    """KeyboardInterrupt, delivered between two bytecodes, 300 times."""
    kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
    rng = random.Random(7)
    with RealtimeServer(response_delay=0.0, rate_limits_delay=0.0) as server, make_pool(server) as pool:
        killed = 0
        while killed < 300:
            started, shot = threading.Barrier(5), threading.Event()

            def borrow(started: threading.Barrier = started, shot: threading.Event = shot) -> None:
                nonlocal killed
                over = False
                try:
                    try:
                        started.wait(5.0)
                        one_session(pool, timeout=5.0)
                    except EXPECTED:
                        pass
                    over = True
                    shot.wait(30.0)  # or a thread of the pool's has our number when it is shot at
                except KeyboardInterrupt:
                    killed += not over

            threads = [threading.Thread(target=borrow, daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            started.wait(5.0)
            for thread in threads:
                threading.Event().wait(rng.random() * 0.004)
                assert thread.ident is not None
                kill(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
            shot.set()
            for thread in threads:
                thread.join(30.0)
                assert not thread.is_alive(), f"a killed borrower hangs: {pool!r}"
        assert_full(pool, server)
        assert server.max_sockets <= SIZE
