"""Telephone calls: 50 at once, a frame of 20 ms every 20 ms in both directions, through one process.

Three processes, as in production but for the network: telephones (:mod:`.phones`), the application
with its pool and a bridge for each call (here), and the Realtime server (:mod:`.listening`). The delay of a
frame is the time from its sending by the one to its arrival at the other, so that everything in
between counts: two sockets, the telephony side's WebSocket library, the bridge, and every wake-up.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import operator
import os
import socket
import statistics
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from rtpool_sync import RealtimePool
from rtpool_sync.bridges import AudioCodesBridge, CallResult, TwilioBridge

from .harness import CORE, OURS, Bench, Goal, Row, Worker, cpu_seconds, figure, interleave, wait_until

__all__ = ["run"]

_BRIDGES = {"twilio": TwilioBridge, "audiocodes": AudioCodesBridge}
_pool: RealtimePool
_bridge: type[Any]
_seconds: float
_listener: socket.socket
_results: list[CallResult] = []
_failures: list[str] = []


# -- the application


def setup(base_url: str, vendor: str, calls: int, seconds: float) -> None:
    global _pool, _bridge, _seconds, _listener
    _bridge, _seconds = _BRIDGES[vendor], seconds
    _pool = RealtimePool(
        base_url=base_url,
        api_key="none",
        max_connections=calls,
        min_idle=calls,
        max_sessions_per_connection=10**9,
    )
    _pool.open(wait=True, timeout=60.0)
    _listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    threading.Thread(target=_serve, args=(_listener,), daemon=True).start()


def address() -> list[Any]:
    return list(_listener.getsockname())


def _answer(ws: Any) -> None:
    """What an application's route does."""
    try:
        call = _bridge.answer(ws)
        fmt = call.dialect.output_format
        # The model says the caller's last words again. These are as many frames as the caller says.
        words = base64.b64encode(bytes([fmt.silence]) * fmt.size(_seconds * 1000)).decode()
        said = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": words}]}
        with _pool.connection(10.0, session=call.session(audio={"input": {"turn_detection": None}})) as conn:
            _results.append(_bridge(call, conn, greeting={"input": [said]}).run())
    except Exception as error:
        _failures.append(f"{type(error).__name__}: {error}")


def _serve(listener: socket.socket) -> None:
    """A thread for each connection, and simple-websocket: flask-sock under a threaded server, less Flask."""
    while True:
        sock = listener.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_route, args=(sock,), daemon=True).start()


def _route(sock: socket.socket) -> None:
    import simple_websocket

    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1)  # what follows is the WebSocket's
    lines = (line.split(": ") for line in head.decode().split("\r\n")[1:-2])
    environ: dict[str, Any] = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in lines}
    environ |= {"werkzeug.socket": sock, "PATH_INFO": "/", "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
    try:
        _answer(simple_websocket.Server(environ))
    finally:
        sock.close()


def _left() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


_before: tuple[int, int] = (0, 0)
_opened = 0
_cpu = 0.0


def begin() -> None:
    global _before, _opened, _cpu
    # The threads that opened the connections linger: left are this one, the pool's, and the server's.
    wait_until(lambda: threading.active_count() <= 3, 10.0, "the pool has nothing to do any more")
    _before, _opened, _cpu = _left(), _pool.stats().counters.opened, cpu_seconds()


def end(calls: int) -> dict[str, Any]:
    """What is left after the calls, and what they took."""
    wait_until(lambda: len(_results) + len(_failures) >= calls, 10.0, "all calls are over")
    cpu = cpu_seconds() - _cpu
    try:
        wait_until(lambda: _left() <= _before and _pool.stats().idle == calls, 10.0, "nothing is left")
    except RuntimeError:
        pass  # the rows say what it is
    stats, left = _pool.stats(), _left()
    answer = {
        "cpu": cpu / sum(result.seconds for result in _results),
        "threads": left[0] - _before[0],
        "descriptors": left[1] - _before[1],
        "missing": calls - stats.idle,
        "replaced": stats.counters.opened - _opened,
        "ended": dict(Counter(result.ended_by for result in _results)),
        "errors": _failures + [error for result in _results for error in result.errors],
    }
    _results.clear()
    _failures.clear()
    return answer


# -- the figures

FREE = "on both cores"
_NAMES = {"twilio": "Twilio", "audiocodes": "AudioCodes"}
_WAYS = (("caller to model", "phones", "model"), ("model to caller", "model", "phones"))


def run(bench: Bench) -> None:
    calls, seconds = (10, 2.0) if bench.quick else (50, 20.0)
    for vendor in _NAMES:
        with contextlib.ExitStack() as stack:
            # One process of a Python application uses one core, and threads that wake each other on
            # two take half as much again. So it has a core of its own; and once it has not.
            names = (OURS, FREE) if vendor == "twilio" else (OURS,)
            made = {name: _made(stack, vendor, calls, seconds, pinned=name == OURS) for name in names}
            taken: dict[str, list[dict[str, Any]]] = {name: [] for name in made}

            def measure(name: str, taken: Any = taken, made: Any = made) -> float:
                bench.say(f"  {_NAMES[vendor]}, {'a core of its own' if name == OURS else name}:")  # noqa: B023
                taken[name].append(_round(bench, made[name], calls, seconds))
                return 0.0

            interleave(min(bench.rounds, 3), {name: functools.partial(measure, name) for name in made})
        _rows(bench, f"{calls} {_NAMES[vendor]} calls of {figure(seconds)} s", taken)


def _made(
    stack: contextlib.ExitStack, vendor: str, calls: int, seconds: float, *, pinned: bool
) -> dict[str, Worker]:
    """The three processes."""

    def worker(module: str, **arguments: Any) -> Worker:
        one = Worker(f"benchmarks.{module}", **arguments)
        stack.callback(one.close)
        return one

    others = set() if CORE is None else os.sched_getaffinity(0) - {CORE}
    elsewhere = others if pinned and others else None
    model = worker("listening", pinned=False, cores=elsewhere and sorted(elsewhere))
    application = worker(
        "calls", pinned=pinned, base_url=model.call("address"), vendor=vendor, calls=calls, seconds=seconds
    )
    phones = worker(
        "phones",
        pinned=False,
        cores=elsewhere and sorted(elsewhere),
        address=application.call("address"),
        vendor=vendor,
    )
    return {"model": model, "application": application, "phones": phones}


def _round(bench: Bench, made: dict[str, Worker], calls: int, seconds: float) -> dict[str, Any]:
    made["application"].call("begin")
    phones = made["phones"].call("talk", calls=calls, seconds=seconds, spread=seconds / 10)
    rest = made["application"].call("end", calls=calls)
    taken = {"phones": phones, "model": made["model"].call("collect"), **rest}
    for name, there, here in _WAYS:
        heard = taken[here]["heard"]
        bench.say(
            f"    {name}: {taken[there]['said']} frames, {heard['frames']} arrived, {heard['wrong']} out of "
            f"order; median {heard['p50']:.2f} ms, 99 % {heard['p99']:.1f} ms, longest {heard['max']:.1f} ms"
        )
    bench.say(
        f"    left: {taken['threads']} threads, {taken['descriptors']} descriptors; {taken['missing']} of "
        f"{calls} connections missing, {taken['replaced']} replaced; CPU of a call "
        f"{taken['cpu'] * 100:.2f} % of a core; ended by {taken['ended']}; load {os.getloadavg()[0]:.1f}"
    )
    for error in taken["errors"][:5]:
        bench.say(f"    {error}")
    return taken


def _rows(bench: Bench, what: str, taken: dict[str, list[dict[str, Any]]]) -> None:
    def add(
        title: str, unit: str, goal: float, of: Callable[[dict[str, Any]], float], note: str = ""
    ) -> None:
        samples = {name: [float(of(one)) for one in rounds] for name, rounds in taken.items()}
        bench.add(Row("calls", f"{what}: {title}", unit, samples, [Goal(at_most=goal)], note=note))

    for name, there, here in _WAYS:

        def heard(one: dict[str, Any], key: str, here: str = here) -> float:
            return float(one[here]["heard"][key])

        def lost(one: dict[str, Any], there: str = there, here: str = here) -> float:
            return float(one[there]["said"] - one[here]["heard"]["frames"] + one[here]["heard"]["wrong"])

        median, longest = (
            figure(statistics.median(heard(one, key) for one in taken[OURS])) for key in ("p50", "max")
        )
        note = f"median {median} ms, longest {longest} ms, of {figure(taken[OURS][0][there]['said'])} frames"
        add(f"{name}, 99th percentile", "ms", 20.0, functools.partial(heard, key="p99"), note)
        add(f"{name}, lost or out of order", "frames", 0.0, lost)
    for key, title in (
        ("threads", "threads left"),
        ("descriptors", "descriptors left"),
        ("missing", "connections missing in the pool"),
        ("replaced", "connections that had to be replaced"),
    ):
        add(title, "", 0.0, operator.itemgetter(key))
    add("the application's CPU for each", "% of a core", 2.0, lambda one: one["cpu"] * 100)
