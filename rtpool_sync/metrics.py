"""Metrics for Prometheus, made of the pools' own counters when they are asked for.

No metric object is touched on the way of a checkout: that would cost more than
the checkout. With one process, a collector in the registry reads the counters
at each scrape. Under ``PROMETHEUS_MULTIPROC_DIR`` no collector is asked, so the
reapers write what has changed into prometheus-client's files about once a
second. Names, labels and meaning are the same, because both are made of the one
table :data:`FAMILIES`.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import prometheus_client
from prometheus_client import values
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from . import __version__, observers
from .stats import Histogram, PoolStats

if TYPE_CHECKING:
    from .ledger import Ledger
    from .pool import RealtimePool

__all__ = ["FAMILIES", "export", "is_multiprocess", "publish", "registries"]


class Family(NamedTuple):
    """One metric: the table's row.

    Attributes:
        label: The label besides ``pool``; empty if there is none.
        mode: How a gauge is combined over pools of one name, and over processes.
        read: Gives the value for each value of the label, or the histogram.
    """

    kind: str
    name: str
    help: str
    label: str
    mode: str
    read: Callable[[PoolStats], Mapping[str, float] | Histogram]

    @property
    def labels(self) -> tuple[str, ...]:
        return ("pool", self.label) if self.label else ("pool",)


def _gauge(
    name: str, help: str, read: Callable[[PoolStats], float], mode: Callable[[Iterable[float]], float] = sum
) -> Family:
    return Family("gauge", name, help, "", f"live{mode.__name__}", lambda s: {"": read(s)})


def _count(name: str, help: str, read: Callable[[PoolStats], float]) -> Family:
    return Family("counter", name, help, "", "", lambda s: {"": read(s)})


def _counts(name: str, label: str, help: str, read: Callable[[PoolStats], Mapping[str, float]]) -> Family:
    return Family("counter", name, help, label, "", read)


def _times(name: str, help: str, read: Callable[[PoolStats], Histogram]) -> Family:
    return Family("histogram", name, help, "", "", read)


def _states(stats: PoolStats) -> Mapping[str, float]:
    return {
        state: getattr(stats, state) for state in ("idle", "in_use", "connecting", "resetting", "closing")
    }


def _ok(stats: PoolStats) -> int:
    # Not counters.checkouts_ok: that counts the connections lent, also one that turns out to be
    # broken before its borrower has seen it.
    return sum(stats.counters.checkout_wait.counts)


def _last_run(stats: PoolStats) -> float:
    # Infinity is "no reaper, and none is missing": it is no minimum, and no age of it is too old.
    return math.inf if stats.closed or not stats.reaper_last_run else stats.reaper_last_run


FAMILIES: tuple[Family, ...] = (
    Family(
        "gauge",
        "rtpool_connections",
        "Connections by state; together they are what counts against the maximum.",
        "state",
        "livesum",
        _states,
    ),
    _gauge(
        "rtpool_max_connections",
        "Most connections the pool may have; 0 when it is closed.",
        lambda s: 0 if s.closed and not s.total_connections else s.max_connections,
    ),
    _gauge(
        "rtpool_healthy_connections",
        "Connections that are ready or in use and gave a sign of life recently.",
        lambda s: s.healthy_connections,
    ),
    _gauge("rtpool_waiting_checkouts", "Callers waiting for a connection.", lambda s: s.waiting),
    _gauge(
        "rtpool_oldest_wait_seconds",
        "How long the first caller in line has been waiting; 0 if nobody is.",
        lambda s: s.oldest_wait_seconds,
        max,
    ),
    _gauge(
        "rtpool_oldest_checkout_seconds",
        "How long the connection that has been out longest is in use; 0 if none is.",
        lambda s: s.oldest_checkout_seconds,
        max,
    ),
    _counts(
        "rtpool_checkouts",
        "outcome",
        "Calls for a connection, by how they ended.",
        lambda s: {"ok": _ok(s), **s.counters.checkouts_failed},
    ),
    _count("rtpool_sessions", "Sessions begun, one for each connection handed out.", _ok),
    _count("rtpool_connections_opened", "Connections that became ready.", lambda s: s.counters.opened),
    _counts("rtpool_connections_closed", "reason", "Connections retired.", lambda s: s.counters.closed),
    _counts(
        "rtpool_connect_errors",
        "kind",
        "Attempts to connect that failed, by what failed.",
        lambda s: s.counters.connect_errors,
    ),
    _counts("rtpool_resets", "outcome", "Resets between two sessions.", lambda s: s.counters.resets),
    _counts(
        "rtpool_health_checks", "outcome", "Pings of idle connections.", lambda s: s.counters.health_checks
    ),
    _count(
        "rtpool_leaks",
        "Connections dropped without being returned, or out for longer than leak_threshold.",
        lambda s: s.counters.leaks,
    ),
    _counts(
        "rtpool_messages",
        "direction",
        "WebSocket messages, the pool's own included.",
        lambda s: {"sent": s.counters.messages_sent, "received": s.counters.messages_received},
    ),
    _counts(
        "rtpool_message_bytes",
        "direction",
        "Bytes of these messages.",
        lambda s: {"sent": s.counters.bytes_sent, "received": s.counters.bytes_received},
    ),
    _times(
        "rtpool_checkout_wait_seconds",
        "From the call to the connection, of checkouts that got one.",
        lambda s: s.counters.checkout_wait,
    ),
    _times(
        "rtpool_session_duration_seconds", "From checkout to return.", lambda s: s.counters.session_duration
    ),
    _times(
        "rtpool_connect_seconds",
        "From the decision to connect until the connection was ready.",
        lambda s: s.counters.connect,
    ),
    _times("rtpool_reset_seconds", "How long the resets took that succeeded.", lambda s: s.counters.reset),
    _times("rtpool_ping_rtt_seconds", "Round trip of answered pings.", lambda s: s.counters.ping_rtt),
    _gauge(
        "rtpool_reaper_last_run_timestamp_seconds",
        "When the pool's own thread last turned, in Unix time; +Inf when it has none and needs none.",
        _last_run,
        min,
    ),
)

INFO_NAME = "rtpool_build_info"
INFO_HELP = "The version of rtpool_sync; always 1."

_COMBINE: Mapping[str, Callable[[Iterable[float]], float]] = {
    "": sum,
    "livesum": sum,
    "livemax": max,
    "livemin": min,
}


def _combined(family: Family, readings: list[PoolStats]) -> Mapping[str, float] | Histogram:
    """The values of pools that share a name."""
    parts = [family.read(reading) for reading in readings]
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Histogram):
        total = first.copy()
        for part in parts[1:]:
            assert isinstance(part, Histogram)
            total.add(part)
        return total
    combine = _COMBINE[family.mode]
    return {value: combine(part[value] for part in parts) for value in first}  # type: ignore[index]


class _Entry(NamedTuple):
    """A pool that was started here. Its ledger outlives it until the last connection is closed."""

    pool: weakref.ref[object]
    ledger: Ledger
    shown: list[int]  # its counts of checkouts as they were shown last

    def read(self, now: float) -> PoolStats:
        """The numbers. A checkout is taken back when its connection turns out to be broken.

        A counter that goes down looks like a restart to Prometheus, and the whole
        of it like an increase: so it stands still until the number is reached again.
        """
        stats = self.ledger.stats(now)
        wait = stats.counters.checkout_wait
        self.shown[:] = wait.counts = [*map(max, wait.counts, self.shown or wait.counts)]
        return stats


class _Exports:
    """The pools that one registry shows. Guarded by the module's lock."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        # By the identity of the counters: a pool that is opened again has a new ledger, and goes on counting.
        self._entries: dict[int, _Entry] = {}
        # What pools have counted that are gone, by name: a counter must neither vanish nor go down.
        self._past: dict[str, PoolStats] = {}

    def track(self, pool: object, ledger: Ledger) -> None:
        self._check_process()
        known = self._entries.get(id(ledger.counters))
        shown = known.shown if known is not None else []
        self._entries[id(ledger.counters)] = _Entry(weakref.ref(pool), ledger, shown)

    def _check_process(self) -> None:
        """In a forked child, leave what was inherited to the parent."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._entries.clear()
        self._past.clear()

    def readings(self) -> dict[str, list[PoolStats]]:
        """The numbers of every pool, by name."""
        self._check_process()
        now = time.monotonic()
        found: dict[str, list[PoolStats]] = {}
        for key, entry in list(self._entries.items()):
            stats = entry.read(now)
            over = stats.closed or not stats.reaper_last_run
            if entry.pool() is None and over and not stats.total_connections:
                del self._entries[key]
                past = self._past.get(stats.name)
                if past is not None:
                    stats.counters.add(past.counters)
                self._past[stats.name] = replace(stats, closed=True)
            else:
                found.setdefault(stats.name, []).append(stats)
        for name, stats in self._past.items():
            found.setdefault(name, []).append(stats)
        return found


class _Collector(_Exports, Collector):
    """Reads the pools at each scrape."""

    def describe(self) -> list[Metric]:
        # Without it, registering would scrape.
        return [*map(_metric, FAMILIES), _info()]

    def collect(self) -> Iterator[Metric]:
        with _guard():
            pools = self.readings()
        for family in FAMILIES:
            metric = _metric(family)
            for name, readings in pools.items():
                _fill(metric, name, _combined(family, readings))
            yield metric
        info = _info()
        info.add_metric([__version__], 1)
        yield info


def _metric(family: Family) -> Any:
    kinds = {
        "gauge": GaugeMetricFamily,
        "counter": CounterMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    return kinds[family.kind](family.name, family.help, labels=family.labels)


def _le(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def _info() -> GaugeMetricFamily:
    return GaugeMetricFamily(INFO_NAME, INFO_HELP, labels=["version"])


def _fill(metric: Any, name: str, found: Mapping[str, float] | Histogram) -> None:
    if isinstance(found, Histogram):
        buckets, total = [], 0
        for bound, count in found.buckets():
            total += count
            buckets.append((_le(bound), total))
        metric.add_metric([name], buckets, found.sum)
    else:
        for value, number in found.items():
            metric.add_metric([name, value] if value else [name], number)


class _Files(_Exports):
    """Writes what has changed into prometheus-client's files: the way of multiprocess mode.

    The cells are those that its own instruments are made of: a histogram has one
    for each bucket, not cumulative, and one for the sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cells: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._written: dict[tuple[str, tuple[str, ...]], float] = {}

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._written.clear()  # a child has files of its own, with zeros in the inherited cells

    def publish(self) -> None:
        for name, readings in self.readings().items():
            for family in FAMILIES:
                self._write(family, name, _combined(family, readings))
        key = (INFO_NAME, (__version__,))
        self._set(key, ("gauge", INFO_NAME, INFO_NAME, ("version",), key[1], INFO_HELP), "livemax", 1.0)
        for inherited in self._cells.keys() - self._written.keys():
            # A pool of the parent that was never started here: a zero would be the oldest time of all.
            if inherited[0] == FAMILIES[-1].name:
                self._cells[inherited].set(math.inf)
                self._written[inherited] = math.inf

    def _write(self, family: Family, pool: str, found: Mapping[str, float] | Histogram) -> None:
        kind, name, text, names = family.kind, family.name, family.help, family.labels
        if isinstance(found, Histogram):
            for bound, count in found.buckets():
                bucket = (f"{name}_bucket", (pool, _le(bound)))
                self._add(bucket, (kind, name, bucket[0], (*names, "le"), bucket[1], text), count)
            self._add((f"{name}_sum", (pool,)), (kind, name, f"{name}_sum", names, (pool,), text), found.sum)
            return
        for value, number in found.items():
            labels: tuple[str, ...] = (pool, value) if value else (pool,)
            if kind == "gauge":
                self._set((name, labels), (kind, name, name, names, labels, text), family.mode, number)
            else:
                total = f"{name}_total"
                self._add((total, labels), (kind, name, total, names, labels, text), number)

    def _cell(self, key: tuple[str, tuple[str, ...]], what: tuple[Any, ...], mode: str = "") -> Any:
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = values.ValueClass(*what, multiprocess_mode=mode)
        return cell

    def _set(self, key: tuple[str, tuple[str, ...]], what: tuple[Any, ...], mode: str, number: float) -> None:
        if self._written.get(key) != number:
            self._cell(key, what, mode).set(number)
            self._written[key] = number

    def _add(self, key: tuple[str, tuple[str, ...]], what: tuple[Any, ...], total: float) -> None:
        written = self._written.get(key)
        if written is None:
            # Also at zero: a series that begins with its first event hides that event from rate().
            self._cell(key, what)
            written = self._written[key] = 0.0
        if total > written:
            self._cell(key, what).inc(total - written)
            self._written[key] = total


# -- the process

_collectors: weakref.WeakKeyDictionary[CollectorRegistry, _Collector] = weakref.WeakKeyDictionary()
_files: _Files | None = None

# Guards all of the above and every write to prometheus-client's files. A child forked while a
# thread of ours holds prometheus-client's own lock would wait for it forever, so none may be
# forked then. Reentrant, because a signal handler may fork, or scrape.
_lock = threading.RLock()
_lock_pid = os.getpid()


def _guard() -> threading.RLock:
    global _lock, _lock_pid
    if _lock_pid != os.getpid():  # uWSGI forks without telling Python
        _lock, _lock_pid = threading.RLock(), os.getpid()
    return _lock


def _before_fork() -> None:
    _guard().acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    # A new one, not released: with py-call-osafterfork, uWSGI runs this hook and not the first.
    global _lock, _lock_pid
    _lock, _lock_pid = threading.RLock(), os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )


def is_multiprocess() -> bool:
    """Whether prometheus-client keeps its values in files; it decides that when it is imported."""
    return bool(getattr(values.ValueClass, "_multiprocess", False))


def track(pool: object, ledger: Ledger, registry: CollectorRegistry | None) -> None:
    """Export a pool from now on; every series of it exists from here. Called when a pool starts."""
    global _files
    with _guard():
        if is_multiprocess():
            if _files is None:
                _files = _Files()
            if publish not in observers.publishers:
                observers.publishers.append(publish)
            _files.track(pool, ledger)
            _files.publish()
            return
        registry = prometheus_client.REGISTRY if registry is None else registry
        collector = _collectors.get(registry)
        if collector is None:
            collector = _Collector()
            registry.register(collector)
            _collectors[registry] = collector
        collector.track(pool, ledger)


def publish() -> None:
    """In multiprocess mode, write what has changed. The reapers do that about once a second."""
    with _guard():
        if _files is not None:
            _files.publish()


def export(pool: RealtimePool) -> None:
    """Export a pool before it starts."""
    pool._check_process()
    if pool._registry is not False:
        track(pool, pool._ledger, pool._registry)


def registries(pools: Iterable[RealtimePool]) -> list[CollectorRegistry]:
    """The registries that show these pools, each once; for none, the default one."""
    found: list[CollectorRegistry] = []
    for pool in pools:
        registry = prometheus_client.REGISTRY if pool._registry is None else pool._registry
        if registry is not False and not any(registry is other for other in found):
            found.append(registry)
    return found or [prometheus_client.REGISTRY]
