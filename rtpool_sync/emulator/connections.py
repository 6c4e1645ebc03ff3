"""What a test can see of a connection."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from .endpoint import RealtimeEndpoint
from .faults import Event
from .relay import DelayRelay
from .wire import Endpoint, Wire

__all__ = ["ClosedConnection", "ConnectionInfo", "OpenConnection"]


@dataclass(frozen=True)
class ConnectionInfo:
    """A connection as it was when asked.

    Attributes:
        id: Its number, counted from 0 as connections were accepted.
        session_id: ``None`` on the echo endpoint.
        opened_at: Unix time of the upgrade.
        path, query, model: What was asked for.
        headers: The upgrade request's, names in lower case. Not in the repr: the key is among them.
        remote_port: The client's port.
        frames_in, frames_out: Data messages received and sent.
        items: The conversation's items, in order.
        session: The effective session configuration.
        active_responses: Ids of responses under way.
        received: The client's latest messages, as many as the server was told to ``record``.
    """

    id: int
    session_id: str | None
    opened_at: float
    path: str
    query: dict[str, str]
    model: str | None
    headers: dict[str, str] = field(repr=False)
    remote_port: int
    frames_in: int
    frames_out: int
    items: tuple[dict[str, Any], ...]
    session: dict[str, Any] | None
    active_responses: tuple[str, ...]
    received: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class ClosedConnection:
    """How a connection ended.

    Attributes:
        code: The close code; 1006 when there was no close frame.
        by: ``"client"``, ``"server"`` or ``"network"``: who ended it.
        frames_in: Frames that the client has sent: none, where it was still opening the connection.
    """

    id: int
    session_id: str | None
    code: int
    reason: str
    by: str
    frames_in: int


class OpenConnection:
    """Bookkeeping of one open connection."""

    def __init__(self, wire: Wire, endpoint: Endpoint, path: str, query: dict[str, str]) -> None:
        self.wire = wire
        self.realtime = endpoint if isinstance(endpoint, RealtimeEndpoint) else None
        self.path = path
        self.query = query
        self.opened_at = time.time()

    def expire(self) -> None:
        if self.realtime is not None:
            self.realtime.expire()

    def emit(self, event: Event) -> None:
        if self.realtime is not None:
            self.realtime.emit(event)

    def info(self, relay: DelayRelay | None) -> ConnectionInfo:
        wire = self.wire
        session = self.realtime.session if self.realtime else None
        peer = wire.transport.get_extra_info("peername")
        port: int = peer[1] if peer else 0
        headers = wire.request.headers.raw_items() if wire.request else ()
        return ConnectionInfo(
            id=wire.index,
            session_id=session.id if session else None,
            opened_at=self.opened_at,
            path=self.path,
            query=dict(self.query),
            model=self.query.get("model"),
            headers={name.lower(): value for name, value in headers},
            remote_port=relay.ports.get(port, port) if relay else port,
            frames_in=wire.frames_in,
            frames_out=wire.frames_out,
            items=tuple(item.shown() for item in session.conversation.items()) if session else (),
            session=session.settings.snapshot() if session else None,
            active_responses=tuple(session.active_responses) if session else (),
            received=tuple(self.realtime.received) if self.realtime else (),
        )
