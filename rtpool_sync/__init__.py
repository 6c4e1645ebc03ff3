"""A thread-safe pool of OpenAI Realtime connections for synchronous Python.

>>> from rtpool_sync import RealtimePool
>>> pool = RealtimePool()                   # settings: environment, settings.toml
>>> with pool.connection() as conn:         # a live, clean Realtime session
...     conn.send({"type": "response.create"})
...     for event in conn:
...         ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import PoolConfig
    from .connection import RealtimeConnection
    from .errors import (
        AuthenticationError,
        ConfigError,
        ConnectError,
        ConnectionLost,
        ConnectionReturned,
        MessageTooBig,
        ModelError,
        PoolClosed,
        PoolExhausted,
        PoolTimeout,
        RateLimited,
        RecvTimeout,
        RtpoolError,
        SessionExpired,
        SessionRejected,
    )
    from .pool import RealtimePool
    from .registry import get_pool
    from .stats import HealthReport, PoolStats

__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "ConfigError",
    "ConnectError",
    "ConnectionLost",
    "ConnectionReturned",
    "HealthReport",
    "MessageTooBig",
    "ModelError",
    "PoolClosed",
    "PoolConfig",
    "PoolExhausted",
    "PoolStats",
    "PoolTimeout",
    "RateLimited",
    "RealtimeConnection",
    "RealtimePool",
    "RecvTimeout",
    "RtpoolError",
    "SessionExpired",
    "SessionRejected",
    "__version__",
    "get_pool",
]

#: Name → the module it lives in; the others are in errors.
_HOME = {
    "HealthReport": "stats",
    "PoolConfig": "config",
    "PoolStats": "stats",
    "RealtimeConnection": "connection",
    "RealtimePool": "pool",
    "get_pool": "registry",
}
#: `rtpool_sync.errors.PoolTimeout` works after `import rtpool_sync` as well.
_MODULES = ("config", "connection", "errors", "pool", "registry", "stats")


def __getattr__(name: str) -> Any:
    # Lazy: pytest imports the package to find its plugin, in every run of a project that has it installed,
    # and before coverage begins to measure.
    from importlib import import_module

    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
