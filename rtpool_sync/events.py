"""What happens in a pool, told to people: events, and the log.

Every event is kept for a while, written to the log, and passed to the
application's callbacks, each in a thread of its own: one that blocks or raises
holds up neither the pool nor the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["EVENT_KINDS", "KEPT", "Events", "PoolEvent"]

log = logging.getLogger("rtpool_sync")

#: What can happen, as ``PoolEvent.kind``.
EVENT_KINDS = (
    "opened",  # a connection became ready
    "closed",  # one was retired; `reason` as in rtpool_connections_closed_total
    "connect_failed",  # an attempt to connect failed; `reason` as in rtpool_connect_errors_total
    "reset_failed",  # a reset did not succeed; `reason` as in rtpool_resets_total
    "checkout_failed",  # a caller got none; `reason` as in rtpool_checkouts_total
    "leaked",  # one is out for longer than leak_threshold; `message` has the borrower's stack
    "leak_returned",  # such a one came back
    "dropped",  # a borrower lost its connection without returning it
)

#: Events kept for those who come later.
KEPT = 50
#: Events that wait for a callback; if there are more, the oldest are left out.
BACKLOG = 1000
#: Seconds in which a warning of one cause is written once.
QUIET = 60.0
#: Causes told apart; beyond, the oldest is forgotten.
CAUSES = 200


@dataclass(frozen=True)
class PoolEvent:
    """Something that happened in a pool.

    Attributes:
        time: Unix time.
        pool: The pool's name.
        kind: One of :data:`EVENT_KINDS`.
        reason: Why, as a word out of a fixed set that depends on ``kind``; may be empty.
        message: The same for people. No secret is in it.
        connection: The connection's number in its pool, if it is about one.
        count: In :meth:`RealtimePool.events`, how many of the same in a row this one stands for.
    """

    time: float
    pool: str
    kind: str
    reason: str = ""
    message: str = ""
    connection: int | None = None
    count: int = 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        subject = f"connection #{self.connection} " if self.connection is not None else ""
        reason = f" ({self.reason})" if self.reason else ""
        message = f": {self.message}" if self.message else ""
        return f"pool {self.pool!r}: {subject}{self.kind.replace('_', ' ')}{reason}{message}"


class _Cause:
    """A warning that may come again and again."""

    __slots__ = ("event", "more", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.more = 0
        self.event: PoolEvent | None = None


class Events:
    """The events of one pool in one process. Any thread may call its methods, without the pool's lock."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._lock = threading.Lock()  # guards everything below
        self._kept: deque[PoolEvent] = deque(maxlen=KEPT)
        self._causes: dict[object, _Cause] = {}
        self._subscribers: tuple[_Subscriber, ...] = ()

    def anew(self) -> Events:
        """The same for a forked child: its callbacks, not what happened to the parent."""
        twin = Events(self._pool)
        twin._subscribers = tuple(_Subscriber(old.callback, old.key) for old in self._subscribers)
        return twin

    def recent(self) -> list[PoolEvent]:
        """The last events, oldest first."""
        with self._lock:
            return list(self._kept)

    def subscribe(self, callback: Callable[[PoolEvent], object]) -> object:
        """Have a callback told of every event; return what :meth:`unsubscribe` wants."""
        if not callable(callback):
            raise TypeError(f"a callback must be callable, not {type(callback).__name__}")
        subscriber = _Subscriber(callback, object())
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)
        return subscriber.key

    def unsubscribe(self, key: object) -> None:
        with self._lock:
            ended = [s for s in self._subscribers if s.key is key]
            self._subscribers = tuple(s for s in self._subscribers if s.key is not key)
        for subscriber in ended:
            subscriber.end()

    def emit(
        self,
        kind: str,
        reason: str = "",
        message: str = "",
        *,
        connection: int | None = None,
        warn: bool = False,
        cause: object = None,
    ) -> None:
        """Say what happened.

        Args:
            warn: Whether somebody should act on it: a warning in the log, once a minute for each cause.
            cause: What makes it the same again, besides ``kind`` and ``reason``.
        """
        event = PoolEvent(time.time(), self._pool, kind, reason, message, connection)
        loud = False
        with self._lock:
            last = self._kept[-1] if self._kept else None
            if last is not None and connection is None and (last.kind, last.reason) == (kind, reason):
                self._kept[-1] = replace(event, count=last.count + 1)
            else:
                self._kept.append(event)
            if warn:
                loud = self._is_news((kind, reason, cause), event)
            subscribers = self._subscribers
        log.log(logging.WARNING if loud else logging.DEBUG, "%s", event, extra=_fields(event))
        for subscriber in subscribers:
            subscriber.put(event)

    def _is_news(self, cause: object, event: PoolEvent) -> bool:
        known = self._causes.get(cause)
        if known is not None:
            known.more += 1
            known.event = event
            return False
        while len(self._causes) >= CAUSES:
            del self._causes[next(iter(self._causes))]
        self._causes[cause] = _Cause(time.monotonic())
        return True

    def summarize(self, now: float) -> None:
        """Write how often the warnings of the last minute came again. For the reaper, now and then."""
        with self._lock:
            over = [cause for cause, known in self._causes.items() if now - known.since >= QUIET]
            ended = [self._causes.pop(cause) for cause in over]
            for cause, known in zip(over, ended, strict=True):
                if known.more:
                    self._causes[cause] = _Cause(now)  # it goes on: the next word of it in a minute
        for known in ended:
            if known.event is not None:
                log.warning(
                    "%s [%d more within %.0f s, this is the last]",
                    known.event,
                    known.more,
                    now - known.since,
                    extra=_fields(known.event, known.more),
                )


def _fields(event: PoolEvent, count: int = 1) -> dict[str, Any]:
    """The event as attributes of a log record."""
    return {
        "pool": event.pool,
        "event": event.kind,
        "reason": event.reason,
        "connection": event.connection,
        "count": count,
    }


class _Subscriber:
    """A callback, and the thread that runs it as long as there is something to tell."""

    def __init__(self, callback: Callable[[PoolEvent], object], key: object) -> None:
        self.callback = callback
        self.key = key  # the same in a forked child
        self._lock = threading.Lock()  # guards the fields below
        self._queue: deque[PoolEvent] = deque(maxlen=BACKLOG)
        self._running = False
        self._ended = False
        self._complained_at = 0.0

    def put(self, event: PoolEvent) -> None:
        with self._lock:
            if self._ended:
                return
            self._queue.append(event)
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._run, name="rtpool-events", daemon=True).start()
        except RuntimeError:  # no more threads on this machine, or the interpreter is exiting
            with self._lock:
                self._running = False

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._queue.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._running = False
                    return
                event = self._queue.popleft()
            try:
                self.callback(event)
            except BaseException:  # SystemExit too: it must not end the thread and leave it marked as running
                now = time.monotonic()
                if now - self._complained_at >= QUIET or not self._complained_at:
                    self._complained_at = now
                    log.warning("an event callback failed: %r", self.callback, exc_info=True)
