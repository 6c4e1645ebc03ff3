"""Faults below WebSocket messages: bytes no correct server writes.

All functions take a :class:`~rtpool_sync.emulator.wire.Wire` and run in the
server's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .net import will_reset
from .wire import frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from .wire import Wire

__all__ = ["KINDS", "bad_utf8", "oversize", "reset", "stall", "truncate"]


def truncate(wire: Wire, payload: bytes = b'{"type":"rate_limits.updated"}') -> None:
    """Send half of a text message, then FIN."""
    data = frame(0x81, payload)
    wire.write(data[: len(data) // 2 + 1])
    wire.hang_up()


def reset(wire: Wire) -> None:
    """Reset the TCP connection, as a crashed host or an eager middlebox does."""
    will_reset(wire.sock)
    wire.abort()


def stall(wire: Wire) -> None:
    """Stop reading and writing, as a frozen process does."""
    wire.stall()


def oversize(wire: Wire, size: int = 17 * 1024 * 1024) -> None:
    """Send one valid text message of ``size`` bytes."""
    wire.send(b'{"type":"error","padding":"' + b"x" * max(0, size - 29) + b'"}')


def bad_utf8(wire: Wire) -> None:
    """Send a text message that is not UTF-8."""
    wire.send(b'{"type":"error","message":"\xff\xfe"}')


#: What ``RealtimeServer.inject`` knows.
KINDS: dict[str, Callable[..., None]] = {
    "truncate": truncate,
    "reset": reset,
    "stall": stall,
    "oversize": oversize,
    "bad_utf8": bad_utf8,
}
