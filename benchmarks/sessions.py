"""Whole Realtime sessions over a round trip of 60 ms: the first event of an answer, ready for the next.

The server is the emulator over TLS. What each client does in between is what
its documentation says: connect, wait for the session, configure it, ask.
"""

from __future__ import annotations

import json
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rtpool_sync import RealtimePool

from .harness import OURS, Bench, Goal, Row, Worker, interleave, wait_until
from .servers import Emulator

LATENCY = 0.060
WSC, WSS, OPENAI = "websocket-client", "websockets.sync", "openai"
SESSION = {"type": "realtime", "instructions": "Answer in one word.", "output_modalities": ["text"]}
UPDATE = {"type": "session.update", "session": SESSION}
ITEM = {
    "type": "conversation.item.create",
    "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello!"}]},
}
ASK = {"type": "response.create"}
_name = ""
_where: dict[str, str] = {}
_context: ssl.SSLContext
_pool: RealtimePool


def setup(client: str, where: dict[str, str], connections: int) -> None:
    global _name, _context, _pool
    _name, _context = client, ssl.create_default_context(cafile=where["ca_file"])
    _where.update(where)
    if client == OURS:
        _pool = _open_pool(connections)
    else:
        _connect()[2]()


def _open_pool(connections: int) -> RealtimePool:
    pool = RealtimePool(
        url=_where["url"],
        ca_file=_where["ca_file"],
        api_key="none",
        session=SESSION,
        max_connections=connections,
        min_idle=connections,
        max_sessions_per_connection=10**9,
        reset_timeout=30.0,
        connect_timeout=60.0,
    )
    pool.open(wait=True, timeout=120.0)
    return pool


def _connect() -> Any:
    """Send, receive, close, of a new connection of a peer."""
    header = {"Authorization": "Bearer none"}
    if _name == WSC:
        import websocket

        ws: Any = websocket.create_connection(
            _where["url"], header=header, sslopt={"context": _context}, skip_utf8_validation=True
        )
        return (lambda event: ws.send(json.dumps(event))), (lambda: json.loads(ws.recv())), ws.close
    if _name == WSS:
        from websockets.sync.client import connect

        ws = connect(_where["url"], additional_headers=header, ssl=_context)
        return (lambda event: ws.send(json.dumps(event))), (lambda: json.loads(ws.recv())), ws.close
    from openai import OpenAI

    client = OpenAI(api_key="none", base_url=_where["base_url"])
    conn = client.realtime.connect(
        model="gpt-realtime", websocket_connection_options={"ssl": _context}
    ).enter()
    return conn.send, (lambda: conn.recv().to_dict()), conn.close


def first_event() -> dict[str, float]:
    """Seconds from wanting a session to the first event of its answer, and of these until it was there."""
    if _name == OURS:
        wait_until(lambda: _pool.stats().idle > 0, 10.0, "a connection is ready")
        time.sleep(0.1)  # as in real life: the connection has lain idle for a while
        since = time.perf_counter()
        with _pool.connection() as conn:
            ready = time.perf_counter() - since
            conn.send(ITEM)
            conn.send(ASK)
            while not conn.recv(10.0)["type"].startswith("response."):
                pass
            return {"first": time.perf_counter() - since, "ready": ready}
    since = time.perf_counter()
    send, recv, close = _connect()
    _until(recv, "session.created")
    send(UPDATE)
    _until(recv, "session.updated")
    ready = time.perf_counter() - since
    send(ITEM)
    send(ASK)
    _until(recv, "response.")
    first = time.perf_counter() - since
    close()
    return {"first": first, "ready": ready}


def _until(recv: Any, kind: str) -> None:
    while not recv()["type"].startswith(kind):
        pass


def reset_all(count: int) -> float:
    """Seconds until ``count`` used sessions, all given back at once, are ready for others."""
    held = [_pool.acquire(60.0) for _ in range(count)]
    for conn in held:
        conn.send(ITEM)
    for conn in held:
        while conn.recv(30.0)["type"] != "conversation.item.added":
            pass
    since = time.perf_counter()
    for conn in held:
        _pool.release(conn)
    wait_until(lambda: _pool.stats().idle == count, 60.0, "all are reset")
    return time.perf_counter() - since


def connect_all(count: int) -> float:
    """Seconds until ``count`` new connections are configured, each in a thread of its own."""
    opened: list[Any] = []

    def one(_: int) -> None:
        send, recv, close = _connect()
        _until(recv, "session.created")
        send(UPDATE)
        _until(recv, "session.updated")
        opened.append(close)

    with ThreadPoolExecutor(count) as threads:
        since = time.perf_counter()
        list(threads.map(one, range(count)))
        took = time.perf_counter() - since
        list(threads.map(lambda close: close(), opened))
    return took


def run(bench: Bench) -> None:
    rounds = min(bench.rounds, 3)
    with Emulator(LATENCY * 1000) as emulator:
        where = {"url": emulator.url, "base_url": emulator.base_url, "ca_file": emulator.ca_file}
        workers: dict[str, Worker] = {}
        taken: dict[str, list[dict[str, float]]] = {}
        try:
            for name in (OURS, WSC, WSS, OPENAI):
                workers[name] = Worker(
                    "benchmarks.sessions", pinned=False, client=name, where=where, connections=1
                )
                taken[name] = []

            def measure(name: str) -> float:
                taken[name].append(workers[name].call("first_event"))
                return 0.0

            interleave(rounds, {name: lambda n=name: measure(n) for name in workers})
        finally:
            for worker in workers.values():
                worker.close()
        samples = {name: [one["first"] / LATENCY for one in all_] for name, all_ in taken.items()}
        goals = [Goal(name, less_by=4.0) for name in samples if name != OURS]
        what = "from wanting a session to the first event of its answer"
        bench.add(Row("sessions", what, "round trips of 60 ms", samples, goals))
        samples = {name: [one["ready"] * 1e6 for one in all_] for name, all_ in taken.items()}
        what = "of these, until there is a configured session"
        bench.add(Row("sessions", what, "µs", samples, [Goal(at_most=50.0)]))
        _resets(bench, where, rounds)


def _resets(bench: Bench, where: dict[str, str], rounds: int) -> None:
    count = 10 if bench.quick else 200
    workers: dict[str, Worker] = {}
    try:
        for name, size in ((OURS, count), (WSC, 0), (WSS, 0)):
            workers[name] = Worker(
                "benchmarks.sessions", pinned=False, client=name, where=where, connections=size
            )
        calls = {
            name: lambda n=name, w=worker: w.call("reset_all" if n == OURS else "connect_all", count=count)
            for name, worker in workers.items()
        }
        samples = interleave(rounds, calls)
    finally:
        for worker in workers.values():
            worker.close()
    what = f"{count} used sessions given back at once, until all are ready (the peers: {count} new ones)"
    goals = [Goal(name, at_least=3.0) for name in samples if name != OURS]
    bench.add(Row("sessions", what, "s", samples, goals))
