"""pytest plugin: the fixtures ``realtime_server`` and ``realtime_pool``.

pytest loads this module in every run of a project that has the package
installed. So nothing but pytest is imported here: the rest is when a test asks
for a fixture, by when coverage has begun to measure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .emulator import RealtimeServer
    from .pool import RealtimePool

__all__ = ["realtime_pool", "realtime_server"]

#: Seconds that a thread of the test has, after its end, to return what it borrowed.
GRACE = 1.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "realtime_server_tls", "whether the fixture realtime_server serves wss", type="bool", default=False
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "realtime_server(**options): what the embedded server is made with: api_keys, faults, tls…"
    )
    config.addinivalue_line(
        "markers", "realtime_pool(**settings): settings of the fixture realtime_pool, and name=, protocol=…"
    )


def _options(request: pytest.FixtureRequest, marker: str) -> dict[str, Any]:
    """The keywords of all markers of that name; those nearest to the test win."""
    options: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers(marker))):
        if mark.args:
            raise pytest.UsageError(f"the marker {marker} takes keywords only, not {mark.args[0]!r}")
        options.update(mark.kwargs)
    return options


@pytest.fixture
def realtime_server(request: pytest.FixtureRequest) -> Iterator[RealtimeServer]:
    """An embedded Realtime server on this machine, stopped after the test.

    The marker ``realtime_server(**options)`` says what it is made with, see
    :class:`rtpool_sync.emulator.RealtimeServer`; the ini option
    ``realtime_server_tls`` whether it serves wss unless a marker says otherwise.
    """
    from .emulator import RealtimeServer

    options = {"tls": request.config.getini("realtime_server_tls"), **_options(request, "realtime_server")}
    with RealtimeServer(**options) as server:
        yield server


@pytest.fixture
def realtime_pool(request: pytest.FixtureRequest, realtime_server: RealtimeServer) -> Iterator[RealtimePool]:
    """A pool on ``realtime_server``, closed after the test.

    It reads neither environment nor settings files. The marker
    ``realtime_pool(**settings)`` says what it is made with besides. The test fails
    if a connection was not returned, and the message shows where it was taken.
    """
    from .config import SETTINGS, PoolConfig
    from .pool import RealtimePool

    options = _options(request, "realtime_pool")
    settings: dict[str, Any] = {
        "base_url": realtime_server.base_url,
        "api_key": min(realtime_server.api_keys or ["a-key-for-tests"]),
        "ca_file": realtime_server.ca_file,
        "leak_threshold": 86400.0,  # it is what has the pool remember where a connection was taken
        "close_timeout": 1.0,
        **{name: options.pop(name) for name in list(options) if name in SETTINGS},
    }
    pool = RealtimePool(PoolConfig(**settings), **{"registry": False, **options})
    try:
        yield pool
        leaks = [] if pool.closed else _leaks(pool)
    finally:
        pool.close(timeout=0.0)
    if leaks:
        pytest.fail("connections were not returned to realtime_pool:\n" + "\n".join(leaks), pytrace=False)


def _leaks(pool: RealtimePool) -> list[str]:
    """A text for each connection that was not returned, after a grace."""
    end = time.monotonic() + GRACE
    while pool.stats().active_sessions and time.monotonic() < end:
        time.sleep(0.005)
    found = [event.message for event in pool.events() if event.kind == "dropped"]
    ledger = pool._ledger
    with ledger.lock:
        for member in ledger.members:
            if member.state.value == "in_use":
                found.append(
                    f"connection #{member.id}, taken by {member.borrower_stack or 'an unknown thread'}"
                )
    return found
