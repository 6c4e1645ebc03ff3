"""One thread sends while another receives, on one TLS connection: what breaks, and what hangs.

OpenSSL forbids two threads inside one connection. Nothing here is slow: the row
says whether a voice application, which sends the microphone while it plays the
answer, can trust the client.
"""

from __future__ import annotations

import threading
from typing import Any

from . import clients
from .harness import OURS, Bench, Goal, Row, Worker, figure
from .servers import Server, Servers

SIZE = 4096
PATIENCE = 10.0
_name = ""
_server: Server


def setup(client: str, server: list[Any]) -> None:
    global _name, _server
    _name, _server = client, Server(*server)
    clients.connect(_name, _server).close()


def duplex(connections: int, messages: int) -> list[str]:
    """Use ``connections`` one after another; return what went wrong, at most once for each."""
    return [problem for _ in range(connections) if (problem := _one(messages))]


def _one(messages: int) -> str:
    problems: list[str] = []
    text = "m" * SIZE
    try:
        conn = clients.connect(_name, _server)
        conn.send(f"echo {SIZE}")
    except Exception as error:
        return f"connect: {type(error).__name__}"
    together = threading.Barrier(2)

    def send() -> None:
        together.wait()
        try:
            for _ in range(messages):
                conn.send(text)
        except Exception as error:
            problems.append(f"send: {type(error).__name__}: {error}"[:80])

    def receive() -> None:
        together.wait()
        try:
            for _ in range(messages):
                if len(conn.recv()) != SIZE:
                    raise ValueError("a message of another length")
        except Exception as error:
            problems.append(f"recv: {type(error).__name__}: {error}"[:80])

    threads = [threading.Thread(target=call, daemon=True) for call in (send, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE if not problems else 1.0)
        if thread.is_alive() and not problems:
            problems.append("hangs")
    if not problems:
        try:
            conn.close()
        except Exception as error:
            problems.append(f"close: {type(error).__name__}")
    return problems[0] if problems else ""


def run(bench: Bench, servers: Servers) -> None:
    for title, connections, messages in (
        ("two threads on one TLS connection", 2 if bench.quick else 60, 200 if bench.quick else 2000),
        ("two threads on a fresh TLS connection", 10 if bench.quick else 3000, 5),
    ):
        failures: dict[str, list[float]] = {}
        notes = []
        for name in (OURS, "websocket-client, UTF-8 unchecked", "websockets.sync"):
            problems, done = _failures(name, servers.tls, connections, messages)
            failures[name] = [float(len(problems))]
            if problems:
                notes.append(f"{name}, of {done} tried: {max(set(problems), key=problems.count)}")
        bench.add(
            Row(
                "race",
                f"{title}, {figure(connections)} times {figure(messages)} messages each way: failures",
                "connections",
                failures,
                [Goal(at_most=0.0)],
                note="; ".join(notes),
            )
        )


def _failures(name: str, server: Server, connections: int, messages: int) -> tuple[list[str], int]:
    """In processes of their own, begun anew when one crashes or hangs; the fifth time is the last.

    Returns what went wrong, and how many connections were tried.
    """
    problems: list[str] = []
    done, begun, step = 0, 0, max(1, min(50, connections // 10))
    worker: Worker | None = None
    try:
        while done < connections:
            now = min(step, connections - done)
            try:
                if worker is None:
                    begun += 1
                    worker = Worker("benchmarks.race", pinned=False, client=name, server=list(server))
                problems += worker.call("duplex", connections=now, messages=messages, patience=60.0)
            except RuntimeError as error:
                problems.append(str(error))
                if worker is not None:
                    worker.close()
                worker = None
            done += now
            if begun >= 5 or problems.count("hangs") >= 5:
                break
    finally:
        if worker is not None:
            worker.close()
    return problems, done
