"""What being watched costs: checkout and return with metrics and without, and one scrape of a big pool."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from typing import Any
from wsgiref.util import setup_testing_defaults

from rtpool_sync import RealtimePool
from rtpool_sync.web import monitoring_app

from . import pools
from .harness import OURS, Bench, Goal, Row, Worker, figure, interleave, no_gc
from .servers import Server, Servers

OFF = "metrics off"
MODES = ("one process", "multiprocess mode")

_server: Server
_pools: dict[str, RealtimePool]


def setup(server: list[Any], folder: str) -> None:
    global _server, _pools
    _server = Server(*server)
    if folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # prometheus-client looks when it is imported
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _pools = {OURS: pools.open_pool(_server), OFF: pools.open_pool(_server, registry=False)}


def checkout(which: str, operations: int) -> float:
    return pools.alone_with(_pools[which], operations)


def open_many(connections: int) -> None:
    _pools["many"] = pools.open_pool(_server, connections, name="many")


def scrape(times: int) -> float:
    """Milliseconds for one answer of the monitoring application, as a server calls it."""
    application = monitoring_app(_pools["many"])
    took = []
    for _ in range(times):
        environ: dict[str, Any] = {"PATH_INFO": "/metrics"}
        setup_testing_defaults(environ)
        with no_gc():
            since = time.perf_counter_ns()
            page = b"".join(application(environ, lambda *_: lambda _: None))
            took.append((time.perf_counter_ns() - since) / 1e6)
        assert b'rtpool_connections{pool="many",state="idle"}' in page
    return statistics.median(took)


def run(bench: Bench, servers: Servers) -> None:
    operations = 1_000 if bench.quick else 10_000
    connections = 50 if bench.quick else 1000
    scrapes = {}
    for mode in MODES:
        with tempfile.TemporaryDirectory() as folder:
            where = folder if mode == MODES[1] else ""
            worker = Worker("benchmarks.metrics", server=list(servers.plain), folder=where)
            try:
                calls = {
                    name: lambda n=name, w=worker: w.call("checkout", which=n, operations=operations)
                    for name in (OURS, OFF)
                }
                samples = interleave(bench.rounds * 3, calls)
                goals = [Goal(OFF, more_by=1.5)]
                bench.add(Row("metrics", f"checkout and return with metrics, {mode}", "µs", samples, goals))
                worker.call("open_many", connections=connections)
                scrapes[mode] = [worker.call("scrape", times=10) for _ in range(bench.rounds)]
            finally:
                worker.close()
    for mode, taken in scrapes.items():
        what = f"scrape of a pool with {figure(connections)} connections, {mode}"
        bench.add(Row("metrics", what, "ms", {OURS: taken}, [Goal(at_most=20.0)]))
