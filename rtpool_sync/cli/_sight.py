"""What the processes of a watched application have told: added up, with what happened in between."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from ._remote import Application, NotWatched, Snapshot

__all__ = ["STATES", "Sight", "failed", "labels", "number", "span"]

STATES = ("in_use", "idle", "connecting", "resetting", "closing")
SEVERITY = ("healthy", "unknown", "degraded", "unhealthy")
#: Looks whose figures are kept, to be drawn.
HISTORY = 60

Pools = dict[str, dict[str, Any]]


class Sight:
    """The newest numbers of every process that has answered, added up, and what they were before.

    An application with several workers answers through one of them by chance.
    """

    def __init__(self, application: Application, interval: float) -> None:
        self._application = application
        self._keep = max(30.0, 30 * interval)
        self._seen: dict[str, tuple[Snapshot, Mapping[str, dict[str, float]]]] = {}
        self._last = -math.inf
        #: Name of a pool → connections in use, at each of the last looks.
        self.history: dict[str, deque[float]] = {}
        #: Why the last look saw nothing; None when it did.
        self.trouble: NotWatched | None = None

    def look(self) -> None:
        """Ask once. What goes wrong is in :attr:`trouble`."""
        try:
            snapshot = self._application.read()
        except NotWatched as error:
            self.trouble = error
            return
        self.trouble, self._last = None, snapshot.time
        before = self._seen.pop(snapshot.process, None)
        self._seen[snapshot.process] = (snapshot, _rates(before[0], snapshot) if before else {})
        self._seen = {
            process: seen
            for process, seen in self._seen.items()
            if snapshot.time - seen[0].time <= self._keep
        }
        pools = self.pools()
        self.history = {name: self.history.get(name) or deque(maxlen=HISTORY) for name in pools}
        for name, pool in pools.items():
            self.history[name].append(pool["active_sessions"])

    @property
    def age(self) -> float:
        """Seconds since the last answer."""
        return time.monotonic() - self._last

    @property
    def processes(self) -> int:
        return len(self._seen)

    @property
    def state(self) -> tuple[str, str]:
        """The status and the message of the application: those of the worst process."""
        states = ((snapshot.status, snapshot.message) for snapshot, _ in self._seen.values())
        return max(states, key=lambda state: SEVERITY.index(state[0]), default=("unknown", ""))

    def state_of(self, pool: str) -> tuple[str, str]:
        states = (
            snapshot.states.get(pool, (snapshot.status, snapshot.message))
            for snapshot, _ in self._seen.values()
            if pool in snapshot.pools
        )
        return max(states, key=lambda state: SEVERITY.index(state[0]), default=("unknown", ""))

    def pools(self) -> Pools:
        total: Pools = {}
        for snapshot, rates in self._seen.values():
            for name, numbers in snapshot.pools.items():
                pool = total.setdefault(name, {})
                _add(pool, numbers)
                if name in rates:
                    _add(pool.setdefault("per_second", {}), rates[name])
        return total

    def as_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"time": round(time.time(), 3), "url": self._application.address.shown}
        if self.trouble is not None:
            return {**document, "error": str(self.trouble)}
        status, message = self.state
        pools = [
            {"name": name, "status": self.state_of(name)[0], "message": self.state_of(name)[1], **pool}
            for name, pool in self.pools().items()
        ]
        return {**document, "status": status, "message": message, "processes": self.processes, "pools": pools}


def _add(total: dict[str, Any], numbers: Mapping[str, Any]) -> None:
    for key, value in numbers.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(key, {}), value)
        elif key.startswith("oldest_"):
            total[key] = max(total.get(key, 0), value)
        else:
            total[key] = total.get(key, 0) + value


def _rates(before: Snapshot, now: Snapshot) -> dict[str, dict[str, float]]:
    """What happened to each pool, per second; nothing for one that began anew in between."""
    rates = {}
    for name, numbers in now.pools.items():
        earlier = _counts(before.pools.get(name, {}))
        counts = _counts(numbers)
        if earlier and now.time > before.time and all(counts[key] >= earlier[key] for key in counts):
            passed = now.time - before.time
            rates[name] = {key: round((counts[key] - earlier[key]) / passed, 3) for key in counts}
    return rates


def _counts(pool: Mapping[str, Any]) -> dict[str, float]:
    if not pool:
        return {}
    return {
        "sessions": pool["total_sessions_handled"],
        "failed": failed(pool),
        "opened": number(pool, "connections_opened"),
        "connect_errors": sum(labels(pool, "connect_errors").values()),
    }


def failed(pool: Mapping[str, Any]) -> float:
    return sum(count for outcome, count in labels(pool, "checkouts").items() if outcome != "ok")


def labels(pool: Mapping[str, Any], key: str) -> Mapping[str, float]:
    found = pool.get(key)
    return found if isinstance(found, Mapping) else {}


def number(pool: Mapping[str, Any], key: str) -> float:
    value = pool.get("active_sessions" if key == "in_use" else key, 0)
    return value if isinstance(value, (int, float)) else 0


def span(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} m"
    if seconds >= 60:
        return f"{seconds // 60:.0f} m {int(seconds % 60):02d} s"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.3g} ms" if seconds > 0 else "0 s"
