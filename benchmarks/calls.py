"""Telephone calls: 50 at once, a frame of 20 ms every 20 ms in both directions, through one process of the application.

Four processes, as in production but for the network: telephones (:mod:`.phones`), the application with its
pool and a bridge for each call (here), and the Realtime server (:mod:`.listening`). The delay of a frame is the time from
its sending by the one to its arrival at the other, so that everything in between counts: two
sockets, the WebSocket library of the telephony side, every thread that it has to pass, and the bridge.
"""

from __future__ import annotations

import base64
import os
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rtpool_sync import RealtimePool
from rtpool_sync.bridges import AudioCodesBridge, CallResult, TwilioBridge

from .harness import OURS, Bench, Goal, Row, Worker, cpu_seconds, figure, wait_until

_BRIDGES = {"twilio": TwilioBridge, "audiocodes": AudioCodesBridge}
_pool: RealtimePool
_bridge: type[Any]
_seconds: float
_listener: socket.socket
_results: list[CallResult] = []
_failures: list[str] = []


# -- the application


def setup(base_url: str, vendor: str, library: str, calls: int, seconds: float) -> None:
    global _pool, _bridge, _seconds, _listener
    _bridge, _seconds = _BRIDGES[vendor], seconds
    _pool = RealtimePool(
        base_url=base_url, api_key="none", max_connections=calls, min_idle=calls, max_sessions_per_connection=10**9
    )
    _pool.open(wait=True, timeout=60.0)
    _listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    serve = {"simple-websocket": _simple_websocket, "websockets.sync": _websockets}[library]
    threading.Thread(target=serve, args=(_listener,), daemon=True).start()


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


def _simple_websocket(listener: socket.socket) -> None:
    """A thread for each connection, and simple-websocket: flask-sock under a threaded server, less Flask."""
    import simple_websocket

    def route(sock: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)  # what follows is the WebSocket's
        lines = head.decode().split("\r\n")[1:-2]
        headers = {name.upper().replace("-", "_"): value for name, value in (line.split(": ") for line in lines)}
        environ = {f"HTTP_{name}": value for name, value in headers.items()}
        environ |= {"werkzeug.socket": sock, "PATH_INFO": "/", "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
        try:
            _answer(simple_websocket.Server(environ))
        finally:
            sock.close()

    while True:
        sock = listener.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=route, args=(sock,), daemon=True).start()


def _websockets(listener: socket.socket) -> None:
    import websockets.sync.server

    websockets.sync.server.serve(_answer, sock=listener, compression=None).serve_forever()


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


def run(bench: Bench) -> None:
    calls, seconds = (10, 2.0) if bench.quick else (50, 20.0)
    for vendor, library in (("twilio", "simple-websocket"), ("audiocodes", "simple-websocket")):
        _measure(bench, vendor, library, calls, seconds)


def _measure(bench: Bench, vendor: str, library: str, calls: int, seconds: float) -> None:
    taken = []
    workers: list[Worker] = []

    def worker(module: str, **arguments: Any) -> Worker:
        workers.append(Worker(f"benchmarks.{module}", pinned=False, **arguments))
        return workers[-1]

    try:
        model = worker("listening")
        url = model.call("address")
        application = worker(
            "calls", base_url=url, vendor=vendor, library=library, calls=calls, seconds=seconds
        )
        phones = worker("phones", address=application.call("address"), vendor=vendor)
        for _ in range(min(bench.rounds, 3)):
            application.call("begin")
            heard = phones.call("talk", calls=calls, seconds=seconds, spread=seconds / 10)
            rest = application.call("end", calls=calls)
            taken.append({"phones": heard, "model": model.call("collect"), **rest})
            _say(bench, taken[-1])
    finally:
        for one in workers:
            one.close()
    _rows(bench, f"{calls} {_NAMES[vendor]} calls of {figure(seconds)} s", taken)


_NAMES = {"twilio": "Twilio", "audiocodes": "AudioCodes"}


def _say(bench: Bench, taken: dict[str, Any]) -> None:
    for name, there, here in (("caller to model", "phones", "model"), ("model to caller", "model", "phones")):
        heard = taken[here]["heard"]
        bench.say(
            f"  {name}: {taken[there]['said']} frames, {heard['frames']} arrived, {heard['wrong']} out of order; "
            f"median {heard['p50']:.2f} ms, 99 % {heard['p99']:.2f} ms, longest {heard['max']:.1f} ms"
        )
    bench.say(
        f"  left: {taken['threads']} threads, {taken['descriptors']} descriptors; {taken['missing']} connections "
        f"missing, {taken['replaced']} replaced; CPU of a call {taken['cpu'] * 100:.2f} % of a core; "
        f"ended by {taken['ended']}; load {os.getloadavg()[0]:.1f}"
    )
    for error in taken["errors"][:5]:
        bench.say(f"  {error}")


def _rows(bench: Bench, what: str, taken: list[dict[str, Any]]) -> None:
    def add(title: str, unit: str, figures: list[float], goal: float, note: str = "") -> None:
        row = Row("calls", f"{what}: {title}", unit, {OURS: figures}, [Goal(at_most=goal)], note=note)
        bench.add(row)

    ways = (("caller to model", "phones", "model"), ("model to caller", "model", "phones"))
    for name, there, here in ways:
        heard = [one[here]["heard"] for one in taken]
        median, longest = (statistics.median(one[key] for one in heard) for key in ("p50", "max"))
        note = f"median {figure(median)} ms, longest {figure(longest)} ms"
        add(f"{name}, 99th percentile", "ms", [one["p99"] for one in heard], 20.0, note)
        lost = [one[there]["said"] - one[here]["heard"]["frames"] + one[here]["heard"]["wrong"] for one in taken]
        add(f"{name}, frames lost or out of order", "", lost, 0.0)
    for key, title in (
        ("threads", "threads left"),
        ("descriptors", "descriptors left"),
        ("missing", "connections missing in the pool"),
        ("replaced", "connections that had to be replaced"),
    ):
        add(title, "", [float(one[key]) for one in taken], 0.0)
    add("the application's CPU for each", "% of a core", [one["cpu"] * 100 for one in taken], 2.0)
