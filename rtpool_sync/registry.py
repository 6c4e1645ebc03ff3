"""The process-wide pools, by name."""

from __future__ import annotations

import threading

from .pool import RealtimePool

__all__ = ["get_pool"]

_pools: dict[str, RealtimePool] = {}
_lock = threading.Lock()  # guards _pools


def get_pool(name: str = "default") -> RealtimePool:
    """Return the process-wide pool ``name``, made from the settings on first use.

    A pool that was closed is replaced by a new one.

    Raises:
        ConfigError: The settings are missing or wrong.
    """
    with _lock:
        pool = _pools.get(name)
    if pool is not None and not pool.closed:
        return pool
    made = RealtimePool(name=name)  # reads files: not under the lock
    with _lock:
        pool = _pools.get(name)
        if pool is None or pool.closed:
            pool = _pools[name] = made
    return pool
