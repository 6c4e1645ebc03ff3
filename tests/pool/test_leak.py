"""Connections that are out for too long: said once, with the borrower's stack."""

from __future__ import annotations

import gc
import logging

import pytest
from pool_calls import echo
from pool_support import eventually, plain

from rtpool_sync import RealtimeConnection, RealtimePool
from rtpool_sync.emulator import RealtimeServer


def the_function_that_forgets(pool: RealtimePool) -> RealtimeConnection:
    return pool.acquire(10.0)


def the_function_that_takes_its_time(pool: RealtimePool) -> None:
    with pool.connection(10.0):
        eventually(lambda: pool.stats().counters.leaks == 1)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_warning_once_with_the_borrowers_stack(caplog: pytest.LogCaptureFixture) -> None:
    with RealtimeServer() as server, plain(server.echo_url, leak_threshold=0.2) as pool:
        conn = the_function_that_forgets(pool)
        eventually(lambda: pool.stats().counters.leaks == 1)
        eventually(lambda: warnings(caplog))
        run = pool.stats().reaper_last_run
        eventually(lambda: pool.stats().reaper_last_run > run + 0.6)  # it looks again, and again
        echo(conn)  # and leaves it alone
        assert pool.stats().counters.leaks == pool.stats().as_dict()["leaks"] == 1
        [text] = warnings(caplog)
        assert "the_function_that_forgets" in text
        assert "leak_threshold=0.2" in text
        assert "MainThread" in text
        assert f"#{conn.id}" in text
        first = conn.id
        pool.release(conn)
        eventually(lambda: len(warnings(caplog)) == 2)
        assert "leak returned" in warnings(caplog)[1]
        with pool.connection(10.0) as conn:  # it serves again, and begins with a clean slate
            assert conn.id == first
        assert len(warnings(caplog)) == 2
        kinds = [event.kind for event in pool.events()]
        assert (kinds.count("leaked"), kinds.count("leak_returned")) == (1, 1)


def test_with_a_with_the_stack_is_that_of_the_with(caplog: pytest.LogCaptureFixture) -> None:
    with RealtimeServer() as server, plain(server.echo_url, leak_threshold=0.1) as pool:
        the_function_that_takes_its_time(pool)
        eventually(lambda: len(warnings(caplog)) == 2)
        assert "the_function_that_takes_its_time" in warnings(caplog)[0]


def test_each_borrower_is_judged_alone(caplog: pytest.LogCaptureFixture) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1, leak_threshold=0.3) as pool:
        for leaks in (1, 2):
            conn = the_function_that_forgets(pool)
            eventually(lambda leaks=leaks: pool.stats().counters.leaks == leaks)
            pool.release(conn)


def test_off_by_default(caplog: pytest.LogCaptureFixture) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        with pool.connection(10.0):
            run = pool.stats().reaper_last_run
            eventually(lambda: pool.stats().reaper_last_run > run + 0.6)
        assert warnings(caplog) == []
        assert pool.stats().counters.leaks == 0


def test_a_lost_handle_is_taken_back_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        first = pool.acquire(10.0).id  # nobody holds it any more
        gc.collect()
        with pool.connection(10.0) as conn:
            assert conn.id == first
            echo(conn)
        assert pool.stats().counters.leaks == 1
        eventually(lambda: any("lost it without returning it" in text for text in warnings(caplog)))


def test_a_lost_handle_and_where_it_was_taken(caplog: pytest.LogCaptureFixture) -> None:
    """With leak_threshold the borrower's stack is known, also of what is lost long before."""
    with RealtimeServer() as server, plain(server.echo_url, leak_threshold=3600.0) as pool:
        the_function_that_forgets(pool)
        gc.collect()
        eventually(lambda: pool.stats().counters.leaks == 1)
        eventually(lambda: any("the_function_that_forgets" in text for text in warnings(caplog)))
