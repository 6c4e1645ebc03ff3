"""Messages over one connection: received, sent, and there and back.

Client and server share one core, so the clock counts the work of both, and the
processor time that of the client alone.
"""

from __future__ import annotations

from typing import Any

from .clients import CLIENTS, RAW
from .harness import OURS, Bench, Goal, Row, Worker, interleave
from .servers import Servers

SIZES = {200: "200 B", 4096: "4 KB", 32768: "32 KB"}
EVENTS = f"{OURS}, events"
TYPED, JSON = "openai, typed events", "websockets.sync + json.loads"
MASKED = f"{OURS}, masked in Python"
WSC = "websocket-client"
WSS = "websockets.sync"
#: How many times websocket-client's default costs, by size.
AS_SLOW = {200: 10.0, 4096: 80.0, 32768: 150.0}


def run(bench: Bench, servers: Servers) -> None:
    where = {"plain": list(servers.plain), "TLS": list(servers.tls)}
    workers: dict[str, Any] = {}
    try:
        for name in CLIENTS:
            try:
                workers[name] = Worker("benchmarks.streaming", client=name, servers=where)
            except ImportError:
                bench.missing.add(name.partition(",")[0])
        for kind in where:
            for size in SIZES:
                _rows(bench, workers, kind, size)
    finally:
        for worker in workers.values():
            worker.close()


def _rows(bench: Bench, workers: dict[str, Any], kind: str, size: int) -> None:
    raw = 1.2 if kind == "TLS" else 1.9
    plain_names = [n for n in workers if n not in (MASKED, EVENTS, TYPED, JSON)]
    label = f"{kind}, {SIZES[size]}"

    goals = [Goal(RAW, at_most=raw), Goal(WSS, at_least=2.0), Goal(WSC, at_least=AS_SLOW[size])]
    _row(bench, workers, plain_names, kind, size, "push", f"receive, {label}", goals)

    events = [n for n in (EVENTS, TYPED, JSON) if n in workers]
    goals = [Goal(TYPED, at_least=5.0), Goal(JSON, at_least=1.5)]
    _row(bench, workers, events, kind, size, "push", f"receive dict events, {label}", goals)

    goals = [Goal(WSS, at_least=1.6)]
    if kind == "TLS":
        goals.insert(0, Goal(RAW, at_most=1.6))
    _row(bench, workers, plain_names, kind, size, "send", f"send, {label}", goals)
    names = [n for n in (MASKED, WSC) if n in workers]
    goals = [Goal(WSC, at_least=1.0)]
    _row(bench, workers, names, kind, size, "send", f"send without the extra speed, {label}", goals)

    goals = [Goal(RAW, at_most=1.6), Goal(WSS, at_least=1.5)] if kind == "TLS" else []
    _row(bench, workers, plain_names, kind, size, "echo", f"echo, {label}", goals, figures=("wall",))


def _row(
    bench: Bench,
    workers: dict[str, Any],
    names: list[str],
    kind: str,
    size: int,
    work: str,
    title: str,
    goals: list[Goal],
    figures: tuple[str, ...] = ("cpu", "wall"),
) -> None:
    broken: set[str] = set()
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}

    def measure(name: str) -> float:
        if name not in broken:
            try:
                got = workers[name].call("measure", kind=kind, work=work, size=size, budget=bench.budget)
                taken[name].append(got)
            except RuntimeError as error:
                broken.add(name)
                bench.say(f"  {name}, {title}: {error}")
        return 0.0

    interleave(bench.rounds, {name: lambda n=name: measure(n) for name in names})
    for what in figures:
        # The first of the names is ours, whatever it is called.
        samples = {
            OURS if name == names[0] else name: [figure[what] for figure in taken[name]]
            for name in names
            if name not in broken
        }
        if OURS not in samples:
            continue
        text = "client's CPU" if what == "cpu" else "wall"
        bench.add(
            Row("transport", f"{title}: {text}", "µs", samples, goals, floors=[RAW] if RAW in samples else [])
        )
