"""``pools``: the pools of the process by name, each made on first use."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from ...connection import RealtimeConnection
from ...pool import RealtimePool
from . import conf
from .borrowed import DjangoPool

__all__ = ["Pools", "connection", "pools"]


class Pools(Mapping[str, RealtimePool]):
    """The pools that the settings describe, by name. For use by any thread, and in any forked process.

    Like ``django.db.connections``, but one pool serves all threads. A pool is made
    when it is first asked for, which opens nothing yet; one that was closed is
    replaced by a new one.
    """

    def __init__(self) -> None:
        self._pools: dict[str, RealtimePool] = {}
        self._lock = threading.Lock()  # guards entering and removing
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork_in_child)

    def __getitem__(self, name: str) -> RealtimePool:
        """Return the pool ``name``.

        Raises:
            UnknownPool: The settings know none of that name.
            ConfigError: The settings cannot be used; all faults are named at once.
        """
        pool = self._pools.get(name)
        if pool is not None and not pool.closed:
            return pool
        made = self._make(name)
        with self._lock:
            pool = self._pools.get(name)
            if pool is None or pool.closed:
                pool = self._pools[name] = made
        return pool

    def _make(self, name: str) -> RealtimePool:
        config, _ = conf.read(name)
        return DjangoPool(config, name=name, protocol=conf.protocol(name))

    def __contains__(self, name: object) -> bool:
        return name in conf.names()

    def __iter__(self) -> Iterator[str]:
        return iter(conf.names())

    def __len__(self) -> int:
        return len(conf.names())

    def __repr__(self) -> str:
        return f"<Pools in use: {', '.join(map(repr, list(self._pools))) or 'none'}>"

    def all(self, initialized_only: bool = False) -> list[RealtimePool]:
        """Return every pool, or every one that was used, in the order of their names in the settings.

        Raises:
            ConfigError: The settings of one cannot be used.
        """
        if initialized_only:
            return list(self._pools.values())
        return [self[name] for name in self]

    def close_all(self, timeout: float = 10.0) -> None:
        """Close every pool that was used: see ``RealtimePool.close``. The next use makes new ones."""
        with self._lock:
            closing = list(self._pools.values())
            self._pools = {}
        for pool in closing:
            pool.close(timeout)

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()  # a thread that does not exist here may have held it


pools = Pools()


def connection(
    name: str = "default", timeout: float | None = None, *, session: Mapping[str, Any] | None = None
) -> AbstractContextManager[RealtimeConnection]:
    """Return a context manager that lends a connection: ``with connection() as conn: ...``.

    Args:
        name: The pool.
        timeout: Seconds to wait at most; the setting ``checkout_timeout`` when omitted.
        session: Session settings, applied and acknowledged before the block begins.

    Raises:
        UnknownPool, ConfigError: As ``pools[name]`` does.
        PoolTimeout, PoolExhausted, PoolClosed, ConnectError, SessionRejected: When the block is entered,
            as by ``RealtimePool.connection()``.
    """
    return pools[name].connection(timeout, session=session)
