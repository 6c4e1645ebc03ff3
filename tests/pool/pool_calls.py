"""Calls in threads of their own, and taking connections away from a pool's peer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pool_support import eventually

from rtpool_sync import RealtimeConnection, RealtimePool
from rtpool_sync.emulator import RealtimeServer


class Call:
    """A call in a thread of its own. ``result()`` waits for it and returns, or raises, what it did."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        self._value: Any = None
        self.error: BaseException | None = None
        self.took = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._value = self._function(*self._args, **self._kwargs)
        except BaseException as error:
            self.error = error
        self.took = time.monotonic() - began

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait until it is done, or so long."""
        self._thread.join(seconds)

    def result(self, timeout: float = 20.0) -> Any:
        self._thread.join(timeout)
        assert self.done, "the call did not return"
        if self.error is not None:
            raise self.error
        return self._value


def waiting(pool: RealtimePool, count: int) -> None:
    """Wait until so many callers are in line."""
    eventually(lambda: pool.stats().waiting == count, what=repr(pool))


def in_line(pool: RealtimePool, function: Callable[..., Any], *args: Any) -> Call:
    """Start a call that has to wait for a connection; return when it does."""
    before = pool.stats().waiting
    call = Call(function, *args)
    waiting(pool, before + 1)
    return call


def echo(conn: RealtimeConnection, text: str = "hello") -> None:
    """It is alive, and nobody else's words are in it."""
    conn.send(text)
    assert conn.recv(10.0) == text


def realtime(server: RealtimeServer, **overrides: Any) -> RealtimePool:
    """A pool of Realtime sessions."""
    settings: dict[str, Any] = {"api_key": "sk-test", "close_timeout": 2.0, "max_connections": 1, **overrides}
    return RealtimePool(base_url=server.base_url, **settings)


def closed_with(server: RealtimeServer) -> list[tuple[str, int]]:
    """Who ended each connection that is closed, and the close code."""
    return [(closed.by, closed.code) for closed in server.closed]
