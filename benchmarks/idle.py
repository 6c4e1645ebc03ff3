"""Connections that wait for their next session: memory, threads, descriptors, processor time, latency."""

from __future__ import annotations

import gc
import os
import resource
import statistics
import time
from typing import Any

from rtpool_sync import RealtimePool

from . import clients
from .harness import OURS, Bench, Goal, Row, Worker, cpu_seconds, figure, interleave
from .servers import Server, Servers

PING_EVERY = 20.0
WSC, WSS = "websocket-client", "websockets.sync"
_name = ""
_server: Server
_kept: list[Any] = []
_pool: RealtimePool


def setup(client: str, server: list[Any]) -> None:
    global _name, _server
    _name, _server = client, Server(*server)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients.connect(client, _server).close()  # imports, contexts: not what a connection costs


def _usage() -> tuple[int, int, int]:
    """KiB of memory, threads, descriptors."""
    gc.collect()
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(os.listdir("/proc/self/fd"))


def open_many(count: int) -> dict[str, float]:
    """Open connections and use each once; return what one costs, and how many threads all of them."""
    global _pool
    before = _usage()
    if _name == OURS:
        _pool = RealtimePool(
            url=_server.url,
            ca_file=_server.ca_file,
            protocol="plain",
            max_connections=count + 1,
            min_idle=count,
            health_check_interval=PING_EVERY,
            max_sessions_per_connection=10**9,
        )
        _pool.open(wait=True, timeout=120.0)
        held = [_pool.acquire() for _ in range(count)]
        for conn in held:
            conn.send("push 1 4096 1")
            conn.recv_text(30.0)
        for conn in held:
            _pool.release(conn)
        held.clear()
        time.sleep(1.5)  # until the threads that connected have gone, and all of it is watched
    else:
        for _ in range(count):
            conn = clients.connect(_name, _server)
            conn.send("push 1 4096 1")
            conn.recv()
            _kept.append(conn)
        time.sleep(0.3)
    after = _usage()
    return {
        "KiB": (after[0] - before[0]) / count,
        "threads": float(after[1] - before[1]),
        "descriptors": (after[2] - before[2]) / count,
    }


def watching(seconds: float) -> float:
    """Percent of a core that they take by themselves."""
    since, used = time.perf_counter(), cpu_seconds()
    time.sleep(seconds)
    return (cpu_seconds() - used) / (time.perf_counter() - since) * 100


def echo(count: int) -> list[float]:
    """The median and the 99th percentile of a round trip of 200 bytes, in microseconds."""
    if _name == OURS:
        conn = _pool.acquire()
        send, recv = conn.send, conn.recv_text
    else:
        conn = clients.connect(_name, _server)
        send, recv = conn.send, conn.recv
    send("echo 200")
    text = "m" * 200
    took = []
    for _ in range(count + 20):
        since = time.perf_counter()
        send(text)
        recv()
        took.append((time.perf_counter() - since) * 1e6)
    if _name == OURS:
        send("echo 0")
        _pool.release(conn)
    else:
        conn.close()
    took = sorted(took[20:])
    return [statistics.median(took), took[int(len(took) * 0.99)]]


def run(bench: Bench, servers: Servers) -> None:
    if not os.path.exists("/proc/self/status"):
        return
    count = 50 if bench.quick else 1000
    seconds = 1.0 if bench.quick else 2 * PING_EVERY
    workers = {name: Worker("benchmarks.idle", client=name, server=list(servers.tls)) for name in (OURS, WSS)}
    try:
        costs = {name: worker.call("open_many", count=count) for name, worker in workers.items()}
        what = f"{figure(count)} idle TLS connections"
        goals = {
            "KiB": ("memory of each", "KiB", [Goal(at_most=40.0)]),
            "descriptors": ("descriptors of each", "", [Goal(at_most=1.1)]),
            "threads": ("threads in all", "", [Goal(at_most=1.0)]),
        }
        for key, (title, unit, goal) in goals.items():
            samples = {name: [cost[key]] for name, cost in costs.items()}
            bench.add(Row("idle", f"{what}: {title}", unit, samples, goal))
        shares = {name: [worker.call("watching", seconds=seconds)] for name, worker in workers.items()}
        bench.add(Row("idle", f"{what}: CPU, a ping each 20 s", "% of a core", shares, [Goal(at_most=0.5)]))
    finally:
        for worker in workers.values():
            worker.close()
    _latency(bench, servers)


def _latency(bench: Bench, servers: Servers) -> None:
    watched = 20 if bench.quick else 200
    turns = 200 if bench.quick else 3000
    workers = {name: Worker("benchmarks.idle", client=name, server=list(servers.tls)) for name in (OURS, WSC)}
    taken: dict[str, list[list[float]]] = {name: [] for name in workers}
    try:
        workers[OURS].call("open_many", count=watched)

        def measure(name: str) -> float:
            taken[name].append(workers[name].call("echo", count=turns))
            return 0.0

        interleave(bench.rounds, {name: lambda n=name: measure(n) for name in workers})
    finally:
        for worker in workers.values():
            worker.close()
    for at, (title, limit) in enumerate((("median", 1.1), ("99th percentile", 1.5))):
        samples = {name: [pair[at] for pair in pairs] for name, pairs in taken.items()}
        what = f"echo while {watched} idle connections are watched (the peer: alone): {title}"
        bench.add(Row("idle", what, "µs", samples, [Goal(WSC, at_most=limit)]))
