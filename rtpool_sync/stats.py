"""Counters and buckets: plain numbers, bumped where the pool's lock is already held.

No metric object is touched on the way of a checkout: the exporter reads a
snapshot of these when it is asked.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import CONNECT_ERROR_KINDS
from .policy import CLOSE_REASONS
from .protocols.base import RESET_OUTCOMES

__all__ = [
    "CHECKOUT_OUTCOMES",
    "HEALTH_OUTCOMES",
    "ConnectionStats",
    "Counters",
    "HealthReport",
    "Histogram",
    "PoolStats",
]

CHECKOUT_OUTCOMES = ("ok", "timeout", "exhausted", "closed", "error")
HEALTH_OUTCOMES = ("ok", "failed")

WAIT_BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
NETWORK_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
SESSION_BUCKETS = (0.01, 0.1, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)


class Histogram:
    """Counts per bucket (not cumulative; the last is above every bound) and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        # Where there are so many that it counts, they are of the shortest kind.
        self.counts[0 if value <= self.bounds[0] else bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: Histogram) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Upper bound and count of each bucket, infinity last."""
        return zip((*self.bounds, math.inf), self.counts, strict=True)

    def quantile(self, q: float) -> float | None:
        """Estimate a quantile as Prometheus does: evenly spread within its bucket. None without a value.

        What lies above the last bound counts as the last bound.
        """
        rank = q * sum(self.counts)
        if not rank:
            return None
        below, lower = 0, 0.0
        for bound, count in self.buckets():
            if below + count >= rank and bound != math.inf:
                return lower + (bound - lower) * (rank - below) / count
            below, lower = below + count, min(bound, self.bounds[-1])
        return lower

    def copy(self) -> Histogram:
        twin = Histogram(self.bounds)
        twin.counts, twin.sum = list(self.counts), self.sum
        return twin


class Counters:
    """Everything one pool counts. Guarded by the pool's lock."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "checkout_wait",
        "checkouts_failed",
        "checkouts_ok",
        "closed",
        "connect",
        "connect_errors",
        "health_checks",
        "leaks",
        "messages_received",
        "messages_sent",
        "opened",
        "ping_rtt",
        "reset",
        "resets",
        "session_duration",
    )

    def __init__(self) -> None:
        # The sessions of connections that are gone; those of the others are added when a snapshot is taken.
        self.checkouts_ok = 0
        self.checkouts_failed = dict.fromkeys(CHECKOUT_OUTCOMES[1:], 0)
        self.opened = 0
        self.closed = dict.fromkeys(CLOSE_REASONS, 0)
        self.connect_errors = dict.fromkeys(CONNECT_ERROR_KINDS, 0)
        self.resets = dict.fromkeys(RESET_OUTCOMES, 0)
        self.health_checks = dict.fromkeys(HEALTH_OUTCOMES, 0)
        self.leaks = 0
        # The same.
        self.messages_sent = self.messages_received = 0
        self.bytes_sent = self.bytes_received = 0
        self.checkout_wait = Histogram(WAIT_BUCKETS)
        self.session_duration = Histogram(SESSION_BUCKETS)
        self.connect = Histogram(NETWORK_BUCKETS)
        self.reset = Histogram(NETWORK_BUCKETS)
        self.ping_rtt = Histogram(NETWORK_BUCKETS)

    def copy(self) -> Counters:
        twin = Counters.__new__(Counters)
        for name in self.__slots__:
            value = getattr(self, name)
            setattr(twin, name, value.copy() if isinstance(value, (dict, Histogram)) else value)
        return twin

    def add(self, other: Counters) -> None:
        """Add what another pool has counted."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Histogram):
                mine.add(theirs)
            elif isinstance(mine, dict):
                for label, count in theirs.items():
                    mine[label] += count
            else:
                setattr(self, name, mine + theirs)


@dataclass(frozen=True)
class PoolStats:
    """The pool at one moment, taken under its lock: the states add up to ``total_connections``.

    Attributes:
        total_connections: Sockets in whatever state.
        healthy_connections: Those that are open and have said something, or answered, recently.
        active_sessions: Connections in use.
        total_sessions_handled: Sessions ever begun.
        oldest_wait_seconds, oldest_checkout_seconds: 0 when nobody waits, nothing is out.
        counters: Everything counted since the pool was made.
        reaper_last_run: When the pool's own thread last turned, in Unix time; 0 before its first start.
    """

    name: str
    max_connections: int
    min_idle: int
    total_connections: int
    healthy_connections: int
    active_sessions: int
    idle: int
    connecting: int
    resetting: int
    closing: int
    waiting: int
    oldest_wait_seconds: float
    oldest_checkout_seconds: float
    counters: Counters = field(repr=False)
    closed: bool = False
    reaper_last_run: float = 0.0

    @property
    def in_use(self) -> int:
        return self.active_sessions

    @property
    def total_sessions_handled(self) -> int:
        return self.counters.checkouts_ok

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; nested dictionaries are counters by label."""
        c = self.counters
        return {
            "total_connections": self.total_connections,
            "healthy_connections": self.healthy_connections,
            "active_sessions": self.active_sessions,
            "total_sessions_handled": self.total_sessions_handled,
            "max_connections": self.max_connections,
            "min_idle": self.min_idle,
            "idle": self.idle,
            "in_use": self.active_sessions,
            "connecting": self.connecting,
            "resetting": self.resetting,
            "closing": self.closing,
            "waiting": self.waiting,
            "oldest_wait_seconds": self.oldest_wait_seconds,
            "oldest_checkout_seconds": self.oldest_checkout_seconds,
            "checkouts": {"ok": c.checkouts_ok, **c.checkouts_failed},
            "connections_opened": c.opened,
            "connections_closed": dict(c.closed),
            "connect_errors": dict(c.connect_errors),
            "resets": dict(c.resets),
            "health_checks": dict(c.health_checks),
            "leaks": c.leaks,
            "messages": {"sent": c.messages_sent, "received": c.messages_received},
            "message_bytes": {"sent": c.bytes_sent, "received": c.bytes_received},
        }


@dataclass(frozen=True)
class ConnectionStats:
    """One connection at one moment. Times are in seconds.

    Attributes:
        state: ``connecting``, ``idle``, ``in_use``, ``resetting`` or ``closing``.
        age: Since it was ready; while connecting, since that began.
        remaining: Until it will not be handed out any more; None before it is ready.
        sessions: Served so far, the present one included.
        rtt: Of the last answered ping, or None.
        in_use: Since it was borrowed, or None.
        last_error: What went wrong with it last, or empty.
    """

    id: int
    state: str
    age: float
    remaining: float | None
    sessions: int
    max_sessions: int
    rtt: float | None
    in_use: float | None
    last_error: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class HealthReport:
    """What a load balancer or a person wants to know.

    Attributes:
        status: ``healthy``; ``degraded`` (works, but not as it should);
            ``unhealthy`` (closed, or no live connection and connecting fails).
        message: One sentence that says why.
    """

    status: str
    message: str
    healthy_connections: int
    total_connections: int
    max_connections: int

    @classmethod
    def of(cls, stats: PoolStats, closed: bool, failures: int, error: object) -> HealthReport:
        """Judge. ``failures`` counts the attempts to connect that failed in a row, ``error`` is the last."""
        live = stats.idle + stats.active_sessions + stats.resetting
        if closed:
            status, message = "unhealthy", "the pool is closed"
        elif failures and not live:
            status, message = "unhealthy", f"no live connection, {failures} failed attempts: {error}"
        elif failures:
            status, message = "degraded", f"connecting fails ({failures} attempts): {error}"
        elif stats.healthy_connections < live:
            status = "degraded"
            message = f"{live - stats.healthy_connections} of {live} connections show no sign of life"
        elif stats.waiting and stats.active_sessions >= stats.max_connections:
            status = "degraded"
            message = f"all {stats.max_connections} connections are in use, callers waiting: {stats.waiting}"
        else:
            status, message = "healthy", "the pool works"
        return cls(status, message, stats.healthy_connections, stats.total_connections, stats.max_connections)

    def as_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "websocket_manager": {
                "healthy_connections": self.healthy_connections,
                "total_connections": self.total_connections,
                "max_connections": self.max_connections,
            },
            "message": self.message,
        }
