"""For code written against the asynchronous ``websocket_manager`` that this package grew out of.

The names are the same, the calls are synchronous: drop ``async`` and ``await``.
Underneath is a :class:`~rtpool_sync.RealtimePool`, so a connection belongs to
one caller at a time and has to be given back. docs/migration.md goes through
the differences. New code uses the pool itself.

Importing this module opens nothing; neither does naming ``websocket_manager``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import get_pool
from .pool import RealtimePool

if TYPE_CHECKING:
    from .connection import RealtimeConnection as PooledConnection

__all__ = [
    "RealtimeConnection",
    "WebSocketManager",
    "create_mock_websocket_manager",
    "create_websocket_manager",
    "get_websocket_manager",
    "websocket_manager",
]

websocket_manager: WebSocketManager  # made by __getattr__ when it is first asked for


class RealtimeConnection:
    """A checked-out connection, with the attributes that the original's has.

    Everything else that a pooled connection can do is there as well
    (``send``, ``recv``, iteration…).
    """

    def __init__(self, connection: PooledConnection, pool: RealtimePool) -> None:
        self._connection = connection
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._connection, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._connection)

    def __repr__(self) -> str:
        return f"<compat.RealtimeConnection {self.connection_id}>"

    @property
    def connection_id(self) -> str:
        """Name of the connection in logs; unique in the process."""
        return f"{self._pool.name}_{self._connection.id}"

    @property
    def websocket(self) -> Any:
        """The WebSocket, with ``send`` and ``recv``; closing it means that it is not used again."""
        return self._connection.websocket

    @property
    def created_at(self) -> float:
        """When the connection was opened, in Unix time."""
        return time.time() - self._connection.age_seconds

    @property
    def is_healthy(self) -> bool:
        """Whether the connection can go on being used. Setting it to False says that it must not be."""
        return self._connection.is_healthy

    @is_healthy.setter
    def is_healthy(self, value: bool) -> None:
        if not value:
            self._connection.invalidate("marked unhealthy by the application")

    def close(self) -> None:
        """End the use of this connection and do not use it for anybody else. Closing twice is harmless."""
        if not self._connection.closed:
            self._connection.invalidate("closed by the application")
        self._pool.release(self._connection)


class WebSocketManager:
    """The original's manager, over a pool.

    Args:
        use_mock: Talk to ``mock_server_url`` instead of the OpenAI API, without a key. Default:
            what ``OPUSAGENT_USE_MOCK`` says.
        mock_server_url: URL of the stand-in; ``/v1/realtime?model=…`` is added to one without a path.
            Default: ``OPUSAGENT_MOCK_SERVER_URL``, or ``ws://localhost:8080``, the original's.
        pool: Use this pool instead of making one from the settings.
        overrides: Any field of :class:`~rtpool_sync.PoolConfig`.
    """

    def __init__(
        self,
        use_mock: bool | None = None,
        mock_server_url: str | None = None,
        *,
        pool: RealtimePool | None = None,
        **overrides: Any,
    ) -> None:
        self.use_mock = use_mock = _mock_wanted() if use_mock is None else use_mock
        self.mock_server_url = mock_server_url or os.environ.get(
            "OPUSAGENT_MOCK_SERVER_URL", "ws://localhost:8080"
        )
        if pool is not None and overrides:
            raise TypeError("give either a pool or settings for one, not both")
        if pool is None:
            if use_mock:
                overrides = {**_stand_in(self.mock_server_url), "api_key": "mock", **overrides}
            pool = RealtimePool(name="websocket_manager", **overrides)
        self.pool = pool

    def __repr__(self) -> str:
        return f"<WebSocketManager over {self.pool!r}>"

    @property
    def max_connections(self) -> int:
        return self.pool.config.max_connections

    @property
    def max_connection_age(self) -> float:
        return self.pool.config.max_connection_age

    @property
    def max_idle_time(self) -> float:
        return self.pool.config.max_idle_time

    @property
    def health_check_interval(self) -> float:
        return self.pool.config.health_check_interval

    @contextmanager
    def connection_context(self, timeout: float | None = None) -> Iterator[RealtimeConnection]:
        """Lend a connection for the duration of a ``with`` block. It is the block's alone.

        Unlike the original's, the block must contain the whole conversation: at its end the
        connection goes back and can no longer be used.
        """
        with self.pool.connection(timeout) as connection:
            yield RealtimeConnection(connection, self.pool)

    def get_connection(self, timeout: float | None = None) -> RealtimeConnection:
        """Check a connection out. Every one has to be given to :meth:`release_connection` in the end.

        The original had no way of giving back. Where you can, use :meth:`connection_context`.
        """
        return RealtimeConnection(self.pool.acquire(timeout), self.pool)

    def release_connection(self, connection: RealtimeConnection) -> None:
        """Give a connection of :meth:`get_connection` back."""
        self.pool.release(connection._connection)

    def close_all_connections(self) -> None:
        """Close every connection: now if it is idle, when it is returned if it is in use."""
        self.pool.drain()

    def shutdown(self, timeout: float = 10.0) -> None:
        """Close the pool. Connections in use have ``timeout`` seconds to be returned."""
        self.pool.close(timeout)

    def get_stats(self) -> dict[str, Any]:
        """The original's statistics, with figures that mean what their names say."""
        stats = self.pool.stats().as_dict()
        keys = (
            "total_connections",
            "healthy_connections",
            "active_sessions",
            "total_sessions_handled",
            "max_connections",
        )
        return {**{key: stats[key] for key in keys}, "use_mock": self.use_mock}


def _mock_wanted() -> bool:
    return os.environ.get("OPUSAGENT_USE_MOCK", "").strip().lower() in ("1", "true", "yes", "on")


def _stand_in(url: str) -> dict[str, Any]:
    """Where the stand-in is. The original names only its host; there it is addressed as the API is."""
    host = url.partition("://")[2].rstrip("/")
    if "/" in host or "?" in host:
        return {"url": url}
    return {"base_url": f"{url.rstrip('/')}/v1"}


def create_websocket_manager(use_mock: bool = False, mock_server_url: str | None = None) -> WebSocketManager:
    """A manager of its own, next to the process-wide one."""
    return WebSocketManager(use_mock=use_mock, mock_server_url=mock_server_url)


def create_mock_websocket_manager(mock_server_url: str = "ws://localhost:8080") -> WebSocketManager:
    """A manager that talks to a stand-in for the OpenAI API, for example ``rtpool emulator``."""
    return WebSocketManager(use_mock=True, mock_server_url=mock_server_url)


_lock = threading.Lock()  # guards _manager
_manager: WebSocketManager | None = None


def get_websocket_manager() -> WebSocketManager:
    """The process-wide manager, over ``rtpool_sync.get_pool()``, made on first use.

    One that was shut down stays so; asked for again, there is a new one.
    """
    global _manager
    manager = _manager
    if manager is None or manager.pool.closed:
        made = WebSocketManager() if _mock_wanted() else WebSocketManager(pool=get_pool())
        with _lock:
            # Another thread may have been faster. What was made in vain has opened nothing.
            if _manager is None or _manager.pool.closed:
                _manager = made
            manager = _manager
    return manager


def __getattr__(name: str) -> Any:
    if name == "websocket_manager":
        return get_websocket_manager()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
