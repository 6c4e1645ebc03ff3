"""Decisions without side effects: when to try again, why to retire, how many to open.

Everything takes ``now`` and plain values, so every rule is tested without a
clock, a thread or a socket.
"""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["CLOSE_REASONS", "Backoff", "usable_until", "wanted"]

#: Why a connection was closed; the labels of ``rtpool_connections_closed_total``.
CLOSE_REASONS = (
    "age",  # reached max_connection_age
    "expiry",  # its remaining life is below min_session_time
    "idle",  # unused for max_idle_time
    "sessions",  # served max_sessions_per_connection
    "lost",  # the peer or the network ended it
    "health",  # a ping was not answered
    "dirty",  # data arrived on it while nobody had it, or was left unread
    "damaged",  # an operation of the borrower was cut off half-way
    "reset",  # its reset did not succeed
    "invalidated",  # the borrower asked for it
    "drained",  # RealtimePool.drain()
    "shrunk",  # RealtimePool.resize()
    "shutdown",  # the pool was closed
)


class Backoff:
    """When to try connecting again after failures.

    Delays double from ``first`` to ``longest`` seconds, each spread by a random
    quarter so that many processes do not return at the same moment.

    A permanent error has its own, lower ceiling for callers: whoever mends the
    key should not wait half a minute. Where nobody waits, and only the reserve
    would be filled, the longest delay goes on top: a wrong key must not be
    presented in a loop.
    """

    def __init__(
        self,
        *,
        first: float = 0.25,
        longest: float = 30.0,
        longest_permanent: float = 5.0,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._first = first
        self._longest = longest
        self._longest_permanent = longest_permanent
        self._random = random
        self.failures = 0
        self.retry_at = 0.0  # for callers
        self.refill_at = 0.0  # for the reserve

    def failed(self, now: float, *, permanent: bool = False, retry_after: float | None = None) -> None:
        """Note a failed attempt. ``retry_after`` is what the server asked for, in seconds."""
        ceiling = self._longest_permanent if permanent else self._longest
        delay = min(self._first * 2 ** min(self.failures, 16), ceiling)
        delay *= 0.75 + 0.5 * self._random()
        if retry_after is not None:
            delay = max(delay, retry_after)
        self.failures += 1
        self.retry_at = self.refill_at = now + delay
        if permanent:
            self.refill_at += self._longest

    def succeeded(self) -> None:
        self.failures = 0
        self.retry_at = self.refill_at = 0.0

    def next_try(self, asked: bool) -> float:
        """When to try again at the earliest. ``asked``: somebody waits for it."""
        return self.retry_at if asked else self.refill_at


def usable_until(
    now: float,
    *,
    max_age: float,
    min_session_time: float,
    server_life: float | None,
    random: Callable[[], float] = random.random,
) -> tuple[float, str]:
    """Return until when a connection opened at ``now`` may be handed out, and the reason why not later.

    Args:
        max_age: ``max_connection_age``; a random 0 to 5 % is taken off, lest
            connections that were opened together retire together.
        min_session_time: Seconds of life a session must find.
        server_life: Seconds until the server's own limit, if it announced one.
    """
    age_limit = now + max_age * (1.0 - 0.05 * random())
    # An age that leaves no room for a session cannot have been meant as the end
    # of a session's life: then it only says when to stop reusing.
    if max_age > min_session_time:
        age_limit -= min_session_time
    if server_life is not None and (expiry_limit := now + server_life - min_session_time) < age_limit:
        return expiry_limit, "expiry"
    return age_limit, "age"


def wanted(
    *,
    waiting: int,
    min_idle: int,
    idle: int,
    coming: int,
    total: int,
    max_connections: int,
    dialing: int,
    max_dialing: int,
) -> int:
    """Return how many connections to begin opening now.

    Args:
        waiting: Callers that wait.
        idle: Connections ready to be handed out.
        coming: Connections that will be ready without further ado (connecting, resetting).
        total: All connections, in whatever state.
        dialing: Of these, how many are being opened; at most ``max_dialing`` at a time.
    """
    missing = waiting + min_idle - idle - coming
    return max(0, min(missing, max_connections - total, max_dialing - dialing))
