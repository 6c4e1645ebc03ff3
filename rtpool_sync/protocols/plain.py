"""Any WebSocket server: no handshake event, no reset, frames passed as they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import SessionRejected
from .base import Failure, Protocol, SessionProtocol

__all__ = ["PlainProtocol"]


class _PlainSession(SessionProtocol):
    """Nothing to say and nothing to remember: one object can serve every connection."""

    def prepare(self, now: float) -> None:
        pass

    def configure(self, session: Mapping[str, Any], now: float) -> None:
        message = "session= needs a protocol that has sessions; this pool speaks 'plain'"
        self.failure = Failure("refused", message, SessionRejected(message))

    def reset(self, now: float) -> None:
        pass

    def feed(self, message: str | bytes, now: float) -> None:
        raise AssertionError("the plain protocol has no task")  # pragma: no cover


class PlainProtocol(Protocol):
    """Frames are passed as they are. The application sees to it that a session leaves nothing behind."""

    name = "plain"
    transparent = True

    def follow(
        self,
        *,
        session: Mapping[str, Any],
        reset_timeout: float,
        time: Callable[[], float] = time.time,
    ) -> SessionProtocol:
        return _PlainSession()
