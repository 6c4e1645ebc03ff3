"""What a checkout and its return cost, alone and when many threads want few connections.

The other pools lend objects that do nothing, so they are measured at their
best. Ours lends real, open connections: it has no other kind.
"""

from __future__ import annotations

import logging
import os
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rtpool_sync import RealtimePool

from .harness import OURS, Bench, Goal, Row, interleave, no_gc
from .servers import Server

SIZE = 4
TIMEOUT = 60.0
FLOOR = "deque + lock"
LIFO = "queue.LifoQueue"


class Pool(Protocol):
    """What is measured: ``put(get())``."""

    get: Callable[[], Any]
    put: Callable[[Any], Any]

    def close(self) -> None: ...


# -- ours


def open_pool(server: Server, size: int = SIZE, **settings: Any) -> RealtimePool:
    """A pool of ours with ``size`` connections open, and no reason to close any."""
    pool = RealtimePool(
        url=server.url,
        ca_file=server.ca_file,
        protocol="plain",
        max_connections=size,
        min_idle=size,
        max_sessions_per_connection=10**12,
        **settings,
    )
    pool.open()
    held = [pool.acquire(TIMEOUT) for _ in range(size)]
    for conn in held:
        pool.release(conn)
    return pool


class Ours:
    """``acquire`` and ``release``, metrics and all."""

    def __init__(self, server: Server) -> None:
        self.pool = open_pool(server)
        self.get = self.pool.acquire
        self.put = self.pool.release

    def close(self) -> None:
        self.pool.close()


# -- floors


class Handoff:
    """The least a fair pool can do: a deque, a lock, waiters who are handed what is returned."""

    class Waiter:
        __slots__ = ("gate", "item")

        def __init__(self) -> None:
            self.item: object = None
            self.gate = threading.Lock()
            self.gate.acquire()

    def __init__(self) -> None:
        self.idle = deque(object() for _ in range(SIZE))
        self.waiters: deque[Handoff.Waiter] = deque()
        self.lock = threading.Lock()

    def get(self) -> object:
        with self.lock:
            if self.idle:
                return self.idle.pop()
            waiter = self.Waiter()
            self.waiters.append(waiter)
        if not waiter.gate.acquire(True, TIMEOUT):
            raise TimeoutError
        return waiter.item

    def put(self, item: object) -> None:
        with self.lock:
            if self.waiters:
                waiter = self.waiters.popleft()
                waiter.item = item
                waiter.gate.release()
            else:
                self.idle.append(item)

    def close(self) -> None:
        pass


class LifoQueue:
    """The whole of many home-made pools."""

    def __init__(self) -> None:
        self.items: queue.LifoQueue[object] = queue.LifoQueue(SIZE)
        for _ in range(SIZE):
            self.items.put(object())
        self.put = self.items.put

    def get(self) -> object:
        return self.items.get(True, TIMEOUT)

    def close(self) -> None:
        pass


# -- kept libraries


class Psycopg:
    def __init__(self) -> None:
        from psycopg.pq import TransactionStatus
        from psycopg_pool import ConnectionPool

        class PGConn:
            transaction_status = TransactionStatus.IDLE

        class Conn:
            _pool = None
            _created_at = _expire_at = 0.0

            def __init__(self) -> None:
                self.pgconn = PGConn()

            @classmethod
            def connect(cls, conninfo: str = "", **_: Any) -> Conn:
                return cls()

            def __enter__(self) -> Conn:
                return self

            def __exit__(self, *_: object) -> None: ...

            def close(self) -> None: ...

        self.pool: Any = ConnectionPool(
            connection_class=Conn,  # type: ignore[type-var]
            min_size=SIZE,
            max_size=SIZE,
            timeout=TIMEOUT,
            open=True,
        )
        self.pool.wait(5)
        self.get = self.pool.getconn
        self.put = self.pool.putconn

    def close(self) -> None:
        self.pool.close()


class SQLAlchemy:
    def __init__(self) -> None:
        from sqlalchemy.pool import QueuePool

        class Conn:
            def rollback(self) -> None: ...
            def close(self) -> None: ...

        self.pool: Any = QueuePool(Conn, pool_size=SIZE, max_overflow=0, timeout=TIMEOUT)  # type: ignore[arg-type]
        self.get = self.pool.connect

    def put(self, conn: Any) -> None:
        conn.close()

    def close(self) -> None:
        self.pool.dispose()


class Redis:
    def __init__(self) -> None:
        from redis import BlockingConnectionPool

        class Conn:
            def __init__(self, **_: Any) -> None:
                self.pid = os.getpid()

            def connect(self) -> None: ...

            def can_read(self, timeout: float = 0) -> bool:
                return False

            def should_reconnect(self) -> bool:
                return False

            def disconnect(self, *_: object) -> None: ...

        self.pool: Any = BlockingConnectionPool(SIZE, TIMEOUT, connection_class=Conn)
        self.get = self.pool.get_connection
        self.put = self.pool.release

    def close(self) -> None:
        self.pool.disconnect()


class DBUtils:
    def __init__(self) -> None:
        from dbutils.pooled_db import PooledDB

        class Conn:
            def cursor(self) -> None: ...
            def rollback(self) -> None: ...
            def commit(self) -> None: ...
            def close(self) -> None: ...

        class Module:
            threadsafety = 2
            connect = Conn
            OperationalError = InterfaceError = InternalError = OSError

        self.pool: Any = PooledDB(
            Module, mincached=SIZE, maxcached=SIZE, maxconnections=SIZE, blocking=True, ping=0
        )

    def get(self) -> Any:
        return self.pool.connection(shareable=False)

    def put(self, conn: Any) -> None:
        conn.close()

    def close(self) -> None:
        self.pool.close()


class Urllib3:
    def __init__(self) -> None:
        from urllib3.connectionpool import HTTPConnectionPool

        class Conn:
            is_connected = True

            def __init__(self, **_: Any) -> None: ...
            def close(self) -> None: ...

        class Pool(HTTPConnectionPool):
            ConnectionCls = Conn  # type: ignore[assignment]

        self.pool = Pool("localhost", maxsize=SIZE, block=True)
        self.put = self.pool._put_conn

    def get(self) -> Any:
        return self.pool._get_conn(TIMEOUT)

    def close(self) -> None:
        self.pool.close()


class HTTPCore:
    """It has no checkout: a request takes a connection, closing the response returns it."""

    def __init__(self) -> None:
        import httpcore

        class Conn(httpcore.ConnectionInterface):
            busy = False

            def handle_request(self, request: Any) -> Any:
                if self.busy:
                    raise httpcore._exceptions.ConnectionNotAvailable()
                self.busy = True
                return httpcore.Response(200, content=Stream(self))

            def can_handle_request(self, origin: Any) -> bool:
                return True

            def is_available(self) -> bool:
                return not self.busy

            def has_expired(self) -> bool:
                return False

            def is_idle(self) -> bool:
                return not self.busy

            def is_closed(self) -> bool:
                return False

            def close(self) -> None: ...

        class Stream:
            def __init__(self, conn: Conn) -> None:
                self.conn = conn

            def __iter__(self) -> Iterator[bytes]:
                return iter(())

            def close(self) -> None:
                self.conn.busy = False

        class ConnectionPool(httpcore.ConnectionPool):
            def create_connection(self, origin: Any) -> Any:
                return Conn()

        self.pool: Any = ConnectionPool(max_connections=SIZE)
        self.request = httpcore.Request("GET", "http://localhost/", extensions={"timeout": {"pool": TIMEOUT}})

    def get(self) -> Any:
        return self.pool.handle_request(self.request)

    def put(self, response: Any) -> None:
        response.close()

    def close(self) -> None:
        self.pool.close()


PEERS: dict[str, Callable[[], Any]] = {
    "urllib3": Urllib3,
    "DBUtils": DBUtils,
    "psycopg_pool": Psycopg,
    "SQLAlchemy": SQLAlchemy,
    "redis": Redis,
    "httpcore": HTTPCore,
}


# -- measuring


def alone(pool: Pool, operations: int) -> float:
    """Microseconds for one checkout and its return, in one thread."""
    get, put = pool.get, pool.put
    for _ in range(20):
        put(get())
    with no_gc():
        since = time.perf_counter_ns()
        for _ in range(operations):
            put(get())
        return (time.perf_counter_ns() - since) / operations / 1000


def alone_with(pool: RealtimePool, operations: int) -> float:
    """The same by ``with pool.connection()``."""
    for _ in range(20):
        with pool.connection():
            pass
    with no_gc():
        since = time.perf_counter_ns()
        for _ in range(operations):
            with pool.connection():
                pass
        return (time.perf_counter_ns() - since) / operations / 1000


def crowd(pool: Pool, threads: int, hold: float, seconds: float) -> tuple[float, float, float]:
    """Checkouts a second, the least-served thread's share of the fair share, the longest wait in ms."""
    get, put = pool.get, pool.put
    start = threading.Barrier(threads + 1)
    stop = threading.Event()
    waits: list[list[float]] = [[] for _ in range(threads)]

    def work(mine: list[float]) -> None:
        clock, sleep, stopped = time.perf_counter, time.sleep, stop.is_set
        start.wait()
        while not stopped():
            since = clock()
            conn = get()
            mine.append(clock() - since)
            sleep(hold)
            put(conn)

    workers = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in waits]
    for worker in workers:
        worker.start()
    with no_gc():
        start.wait()
        since = time.perf_counter()
        time.sleep(seconds)
        stop.set()
        took = time.perf_counter() - since
        for worker in workers:
            worker.join(TIMEOUT)
    counts = [len(mine) for mine in waits]
    total = sum(counts)
    longest = max(max(mine, default=seconds) for mine in waits)
    return total / took, min(counts) * threads / total, longest * 1000


def run(bench: Bench, server: Server) -> None:
    logging.disable(logging.CRITICAL)
    pools: dict[str, Any] = {OURS: Ours(server), FLOOR: Handoff(), LIFO: LifoQueue()}
    pools.update(bench.contestants(PEERS))
    peers = [name for name in pools if name not in (OURS, FLOOR)]
    try:
        operations = 1_000 if bench.quick else 10_000
        for name, call in (("acquire, release", alone), ("with", alone_with)):
            calls = {OURS: lambda c=call: c(pools[OURS] if c is alone else pools[OURS].pool, operations)}
            calls |= {n: lambda p=p: alone(p, operations) for n, p in pools.items() if n != OURS}
            goals = [Goal(FLOOR, at_most=3.0), *(Goal(peer, at_least=1.0) for peer in peers)]
            samples = interleave(bench.rounds * 3, calls)
            bench.add(Row("pools", f"checkout and return: {name}", "µs", samples, goals, floors=[FLOOR]))
        for threads in (8, 32):
            contend(bench, pools, peers, threads)
    finally:
        for pool in pools.values():
            pool.close()
        logging.disable(logging.NOTSET)


def contend(bench: Bench, pools: dict[str, Any], peers: list[str], threads: int) -> None:
    seconds = 0.05 if bench.quick else 0.5
    figures: list[dict[str, list[float]]] = [{name: [] for name in pools} for _ in range(3)]

    def measure(name: str) -> float:
        for kind, value in zip(figures, crowd(pools[name], threads, 0.001, seconds), strict=True):
            kind[name].append(value)
        return 0.0

    interleave(bench.rounds, {name: lambda n=name: measure(n) for name in pools})
    rate, share, longest = figures
    best = max(peers, key=lambda name: statistics.median(rate[name]))
    what = f"{threads} threads over {SIZE} connections, 1 ms hold"
    goals = [Goal(best, at_least=1.0)]
    bench.add(Row("pools", f"{what}: checkouts", "/s", rate, goals, more_is_better=True, floors=[FLOOR]))
    share_row = Row("pools", f"{what}: least share", "of fair", share, [Goal(at_least=0.95)], True, [FLOOR])
    bench.add(share_row)
    goals = [Goal("psycopg_pool", at_most=1.2)]
    bench.add(Row("pools", f"{what}: longest wait", "ms", longest, goals, floors=[FLOOR]))
