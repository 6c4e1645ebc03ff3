"""A thread-safe pool of OpenAI Realtime connections for synchronous Python.

>>> from rtpool_sync import RealtimePool
>>> pool = RealtimePool()                   # settings: environment, settings.toml
>>> with pool.connection() as conn:         # a live, clean Realtime session
...     conn.send({"type": "response.create"})
...     for event in conn:
...         ...
"""

from __future__ import annotations

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
