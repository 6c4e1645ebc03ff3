"""An embedded server that speaks the OpenAI Realtime protocol, and breaks it on request.

    from rtpool_sync.emulator import RealtimeServer

    with RealtimeServer() as server:
        pool = RealtimePool(url=server.url, api_key="anything")

It needs ``pip install 'rtpool-sync[emulator]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connections import ClosedConnection, ConnectionInfo
    from .faults import Faults
    from .relay import DelayRelay
    from .server import RealtimeServer

__all__ = ["ClosedConnection", "ConnectionInfo", "DelayRelay", "Faults", "RealtimeServer"]

_HOME = {
    "ClosedConnection": "connections",
    "ConnectionInfo": "connections",
    "DelayRelay": "relay",
    "Faults": "faults",
    "RealtimeServer": "server",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `rtpool --help` and the relay do not need the extra.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
