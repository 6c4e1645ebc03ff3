"""The same operations in a pool of few and of many connections: the cost of one must not grow."""

from __future__ import annotations

from typing import Any

from rtpool_sync import RealtimePool

from . import pools, streaming
from .harness import OURS, Bench, Goal, Row, Worker, figure, interleave
from .servers import Server, Servers

_pool: RealtimePool


def setup(server: list[Any], connections: int) -> None:
    global _pool
    _pool = pools.open_pool(Server(*server), connections, health_check_interval=20.0)


def checkout(operations: int) -> float:
    return pools.alone_with(_pool, operations)


def stream(work: str, count: int) -> float:
    with _pool.connection() as conn:

        class Conn:
            send, recv = conn.send, conn.recv_text

        return streaming.run_once(Conn, work, 4096, count)["cpu"]


def run(bench: Bench, servers: Servers) -> None:
    sizes = (5, 20, 50) if bench.quick else (10, 100, 1000)
    workers: dict[int, Worker] = {}
    try:
        for size in sizes:
            workers[size] = Worker("benchmarks.scale", server=list(servers.tls), connections=size)
        for title, call, arguments in (
            ("checkout and return", "checkout", {"operations": 1000 if bench.quick else 10_000}),
            ("receive 4 KB over TLS", "stream", {"work": "push", "count": 500 if bench.quick else 5000}),
            ("send 4 KB over TLS", "stream", {"work": "send", "count": 500 if bench.quick else 5000}),
        ):
            taken = interleave(
                bench.rounds,
                {
                    str(size): lambda w=worker, c=call, a=arguments: w.call(c, **a)
                    for size, worker in workers.items()
                },
            )
            most = str(sizes[-1])
            samples = {OURS: taken[most]}
            samples |= {f"{size} connections": figures for size, figures in taken.items() if size != most}
            goals = [Goal(name, at_most=1.3) for name in samples if name != OURS]
            what = f"{title}, {figure(sizes[-1])} connections in the pool"
            bench.add(Row("scale", what, "µs", samples, goals))
    finally:
        for worker in workers.values():
            worker.close()
