"""In the process of one client: messages in a stream, one way, the other, and back and forth."""

from __future__ import annotations

import time
from typing import Any

from . import clients
from .harness import cpu_seconds, no_gc
from .servers import Server

clock = time.perf_counter
_name = ""
_servers: dict[str, Server] = {}
_open: dict[str, Any] = {}
_per_message: dict[tuple[str, str, int], float] = {}  # seconds, to know how many fit into the budget


def setup(client: str, servers: dict[str, list[Any]]) -> None:
    global _name
    _name = client
    _servers.update({kind: Server(*server) for kind, server in servers.items()})
    _connection(next(iter(_servers)))


def _connection(kind: str) -> Any:
    if kind not in _open:
        _open[kind] = clients.connect(_name, _servers[kind])
    return _open[kind]


def measure(kind: str, work: str, size: int, budget: float) -> dict[str, float]:
    """Microseconds per message: of the clock (``wall``) and of this process's processor time (``cpu``)."""
    conn = _connection(kind)
    key = kind, work, size
    if key not in _per_message:
        _per_message[key] = run_once(conn, work, size, 50)["wall"] / 1e6
    count = int(budget / max(_per_message[key], 1e-7))
    return run_once(conn, work, size, max(50, min(count, 60_000)))


def run_once(conn: Any, work: str, size: int, count: int) -> dict[str, float]:
    expect = getattr(conn, "expect", lambda size: None)
    many = getattr(conn, "many", None)
    text = '{"type":"input_audio_buffer.append","audio":"' + "A" * (size - 47) + '"}'
    batch = 1
    if work == "push, batched":
        work, batch = "push", max(1, 65536 // size)
    with no_gc():
        if work == "push":
            conn.send(f"push {count} {size} {batch}")
            expect(size)
            since, cpu = clock(), cpu_seconds()
            if many:
                many(count, None, True)
            else:
                recv = conn.recv
                for _ in range(count):
                    recv()
        elif work == "send":
            conn.send("echo 0")
            expect(2)
            since, cpu = clock(), cpu_seconds()
            if many:
                many(count, text, False)
            else:
                send = conn.send
                for _ in range(count):
                    send(text)
            conn.send("sync")
            conn.recv()
        else:
            conn.send(f"echo {size}")
            expect(size)
            since, cpu = clock(), cpu_seconds()
            if many:
                many(count, text, True)
            else:
                send, recv = conn.send, conn.recv
                for _ in range(count):
                    send(text)
                    recv()
        wall, used = clock() - since, cpu_seconds() - cpu
        expect(2)
    return {"wall": wall / count * 1e6, "cpu": used / count * 1e6}
