"""What the pool's tests share: waiting for a condition, and counting what must be conserved."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from rtpool_sync import RealtimePool


def eventually(condition: Callable[[], object], timeout: float = 10.0, what: str = "") -> None:
    """Wait until ``condition`` holds; fail after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:g} s: {what or condition}"
        time.sleep(0.002)


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def pool_threads() -> list[str]:
    """Threads of pools that are alive."""
    return [
        t.name
        for t in threading.enumerate()
        if t.is_alive() and t.name.startswith("rtpool-") and "emulator" not in t.name
    ]


def plain(url: str, **overrides: object) -> RealtimePool:
    """A pool of plain connections that are not worn out by the number of sessions."""
    settings: dict[str, object] = {"max_sessions_per_connection": 10**9, "close_timeout": 2.0, **overrides}
    return RealtimePool(url=url, protocol="plain", **settings)
