"""The process-wide pools, by name."""

from __future__ import annotations

import os
import threading

from .pool import RealtimePool

__all__ = ["get_pool"]

_pools: dict[str, RealtimePool] = {}
_lock = threading.Lock()  # guards entering a pool


def get_pool(name: str = "default") -> RealtimePool:
    """Return the process-wide pool ``name``, made from the settings on first use.

    A pool that was closed is replaced by a new one.

    Raises:
        ConfigError: The settings are missing or wrong.
    """
    pool = _pools.get(name)
    if pool is not None and not pool.closed:
        return pool
    made = RealtimePool(name=name)  # reads files: not under the lock
    with _lock:
        pool = _pools.get(name)
        if pool is None or pool.closed:
            pool = _pools[name] = made
    return pool


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that does not exist here may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
