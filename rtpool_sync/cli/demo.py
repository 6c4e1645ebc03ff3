"""``rtpool demo``: the same spoken calls, first with a connection for each, then with the pool.

A call is what a voice application does for one question of a caller: it sends
recorded speech, asks for an answer and takes the spoken answer in. Both sides
send and receive the very same messages; only where the connection comes from
differs.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import queue
import sys
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..config import PoolConfig
from ..pool import RealtimePool
from ._arguments import real, whole
from ._report import progress, table

__all__ = ["add_arguments", "run"]

RATE = 24_000
#: Longest time without a single event of the server before a call counts as failed.
PATIENCE = 30.0
#: The turn ends when we say so, not when the server thinks that the caller stopped speaking: so that both
#: sides do the same work. The limit bounds what a call to the real API can cost.
SESSION: dict[str, Any] = {
    "type": "realtime",
    "output_modalities": ["audio"],
    "instructions": "You answer the telephone of a small shop. Answer in one short sentence.",
    "max_output_tokens": 400,
    "audio": {"input": {"turn_detection": None}},
}


class CallFailed(Exception):
    """The server answered a call with an error."""


@dataclass
class Call:
    """How one call went; times are seconds since the caller wanted to talk."""

    first_event: float = 0.0
    whole: float = 0.0
    audio: bytes = b""
    error: str = ""


@dataclass
class Phase:
    """One way of getting a connection, tried with all the calls."""

    calls: list[Call] = field(default_factory=list)
    opened: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> list[Call]:
        return [call for call in self.calls if not call.error]

    def percentile(self, which: int, value: Callable[[Call], float]) -> float | None:
        """The nearest-rank percentile of the calls that succeeded, or None if none did."""
        values = sorted(value(call) for call in self.good)
        return values[max(0, -(-len(values) * which // 100) - 1)] if values else None


@dataclass
class Target:
    """The server that is called, and what has to be said to it."""

    config: PoolConfig
    #: Connections that the server has accepted so far; None where nobody can be asked.
    accepted: Callable[[], int] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--real", action="store_true", help="call the OpenAI API, with OPENAI_API_KEY; this costs money"
    )
    parser.add_argument(
        "--calls", type=whole(1, 100_000), metavar="N", help="calls on each side (40, real 6)"
    )
    parser.add_argument("--threads", type=whole(1, 1000), metavar="N", help="callers at a time (8, real 3)")
    parser.add_argument(
        "--connections", type=whole(1, 1000), metavar="N", help="of the pool, at most (as many as threads)"
    )
    parser.add_argument(
        "--latency",
        type=real(0, 10_000, "a number of milliseconds"),
        default=60.0,
        metavar="MS",
        help="the embedded server's round trip (60)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="for the replies (demo-output)",
    )


def run(options: argparse.Namespace) -> int:
    if options.real and not os.environ.get("OPENAI_API_KEY"):
        print(
            "rtpool demo --real needs an API key: set OPENAI_API_KEY. "
            "Without --real the demo needs none and costs nothing.",
            file=sys.stderr,
        )
        return 2
    calls = options.calls or (6 if options.real else 40)
    threads = min(calls, options.threads or (3 if options.real else 8))
    messages = _speech()
    size = options.connections or threads
    with _real(size) if options.real else _embedded(size, options.latency / 1000) as target:
        print(f"{calls} spoken calls through {threads} threads, by hand and then with the pool.", flush=True)
        by_hand = _by_hand(target, messages, calls, threads)
        pooled = _with_pool(target, messages, calls, threads)
    _show(by_hand, pooled)
    if size <= threads < calls:
        print("These callers come back without a pause, while their connection is being reset.")
        print(
            f"With some to spare (--connections {threads + (threads + 1) // 2}) they find one that is ready."
        )
    files = _write_replies(pooled.good, options.output)
    if files:
        print(f"The replies, as they were heard: {options.output}/reply-*.wav ({files} files)")
    failed = [call.error for call in (*by_hand.calls, *pooled.calls) if call.error]
    for error, times in Counter(failed).most_common():
        print(f"failed {times} time{'s' if times > 1 else ''}: {error}", file=sys.stderr)
    return 1 if failed else 0


# -- who is called


@contextmanager
def _embedded(size: int, latency: float) -> Iterator[Target]:
    from ..emulator import RealtimeServer

    with RealtimeServer(tls=True, latency=latency) as server:
        print(f"Embedded Realtime server at {server.url}, TLS, {latency * 1000:.0f} ms round trip.")
        # Not from the environment: a demo is the same for everybody.
        config = PoolConfig(
            base_url=server.base_url,
            api_key="demo",
            ca_file=server.ca_file,
            session=SESSION,
            max_connections=size,
            min_idle=size,
        )
        yield Target(config, lambda: server.opened_total)


@contextmanager
def _real(size: int) -> Iterator[Target]:
    from ..settings import load

    config = load(session=SESSION, max_connections=size, min_idle=size)
    print(
        f"The real API, model {config.model}. This costs money: each call sends and is answered with speech."
    )
    yield Target(config, None)


# -- the two ways


def _by_hand(target: Target, messages: list[str], calls: int, threads: int) -> Phase:
    """A connection for each call, as one writes it with websocket-client."""
    import websocket

    config = target.config
    url = config.connect_url
    headers = [f"{name}: {value}" for name, value in config.upgrade_headers(True)]
    update = json.dumps({"type": "session.update", "session": SESSION})
    sslopt = {"ca_certs": config.ca_file} if config.ca_file else {}
    opened = [0] * calls

    def one(index: int) -> Call:
        start = time.perf_counter()
        ws = websocket.create_connection(url, header=headers, sslopt=sslopt, timeout=PATIENCE)
        try:
            opened[index] = 1

            def receive() -> dict[str, Any]:
                event: dict[str, Any] = json.loads(ws.recv())
                return event

            _await(receive, "session.created")
            ws.send(update)
            _await(receive, "session.updated")
            call = _talk(messages, ws.send, receive, start)
        finally:
            ws.close()
        call.whole = time.perf_counter() - start
        return call

    before = target.accepted() if target.accepted else 0
    phase = _phase("a connection per call", one, calls, threads)
    phase.opened = target.accepted() - before if target.accepted else sum(opened)
    return phase


def _with_pool(target: Target, messages: list[str], calls: int, threads: int) -> Phase:
    """``with pool.connection()`` and nothing else."""
    before = target.accepted() if target.accepted else 0
    pool = RealtimePool(target.config, name="demo")
    try:
        start = time.perf_counter()
        pool.open(wait=True)
        took = time.perf_counter() - start
        print(
            f"The pool opened {target.config.min_idle} connections in advance, in {took:.2f} s.", flush=True
        )

        def one(index: int) -> Call:
            start = time.perf_counter()
            with pool.connection() as connection:
                call = _talk(messages, connection.send, lambda: connection.recv(PATIENCE), start)
            call.whole = time.perf_counter() - start
            return call

        phase = _phase("with the pool        ", one, calls, threads)
        phase.opened = target.accepted() - before if target.accepted else pool.stats().counters.opened
        return phase
    finally:
        # After Ctrl-C calls may be under way; nobody wants to hear how they end.
        pool.close(timeout=1.0)


def _phase(title: str, one: Callable[[int], Call], calls: int, threads: int) -> Phase:
    """Make the calls, ``threads`` at a time, and show how it goes."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(calls):
        waiting.put(index)
    ended: queue.SimpleQueue[Call] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                call = one(index)
            except Exception as error:
                call = Call(error=f"{type(error).__name__}: {error}")
            ended.put(call)

    phase = Phase()
    start = time.perf_counter()
    # Daemons: Ctrl-C must not wait for a call that waits for its server.
    for number in range(threads):
        threading.Thread(target=work, name=f"caller-{number}", daemon=True).start()
    try:
        with progress(title, calls) as shown:
            while len(phase.calls) < calls:
                phase.calls.append(ended.get())
                shown.step(_so_far(phase))
    finally:
        stop.set()
    phase.seconds = time.perf_counter() - start
    return phase


def _talk(
    messages: list[str], send: Callable[[str], object], receive: Callable[[], Mapping[str, Any]], start: float
) -> Call:
    """Speak, ask for the answer, and listen to its end."""
    call = Call()
    for message in messages:
        send(message)
    audio = []
    while True:
        event = receive()
        kind = event["type"]
        if kind == "error":
            raise CallFailed(f"the server says: {event['error'].get('message')}")
        if not kind.startswith("response."):
            continue
        if not call.first_event:
            call.first_event = time.perf_counter() - start
        if kind == "response.output_audio.delta":
            audio.append(base64.b64decode(event["delta"]))
        elif kind == "response.done":
            status = event["response"]["status"]
            # Incomplete: the answer reached the limit that SESSION sets.
            if status not in ("completed", "incomplete"):
                raise CallFailed(f"the response ended as {status}: {event['response'].get('status_details')}")
            call.audio = b"".join(audio)
            return call


def _await(receive: Callable[[], Mapping[str, Any]], kind: str) -> None:
    while True:
        event = receive()
        if event["type"] == "error":
            raise CallFailed(f"the server says: {event['error'].get('message')}")
        if event["type"] == kind:
            return


# -- what goes in and what comes out


def _speech() -> list[str]:
    """The messages of one call: the recording in chunks of 0.2 s, its end, and the wish for an answer."""
    data = resources.files("rtpool_sync").joinpath("data/hello.wav")
    with data.open("rb") as file, wave.open(file) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (RATE, 1, 2)
        pcm = wav.readframes(wav.getnframes())
    size = RATE * 2 // 5
    chunks = [base64.b64encode(pcm[at : at + size]).decode() for at in range(0, len(pcm), size)]
    events = [{"type": "input_audio_buffer.append", "audio": chunk} for chunk in chunks]
    events += [{"type": "input_audio_buffer.commit"}, {"type": "response.create"}]
    return [json.dumps(event) for event in events]


def _write_replies(calls: list[Call], folder: Path) -> int:
    """Write what was heard with the pool, and remove what an earlier run left; returns how many files."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("reply-*.wav"):
        old.unlink()
    spoken = [call.audio for call in calls if call.audio]
    for number, audio in enumerate(spoken, 1):
        with wave.open(str(folder / f"reply-{number:02}.wav"), "wb") as wav:
            wav.setnchannels(1)
            wav.setsampwidth(2)
            wav.setframerate(RATE)
            wav.writeframes(audio)
    return len(spoken)


def _so_far(phase: Phase) -> str:
    median = phase.percentile(50, lambda call: call.first_event)
    failed = len(phase.calls) - len(phase.good)
    notes = [] if median is None else [f"first event after {median * 1000:.0f} ms"]
    return ", ".join([*notes, f"{failed} failed"] if failed else notes)


def _show(by_hand: Phase, pooled: Phase) -> None:
    def row(title: str, which: int, value: Callable[[Call], float]) -> tuple[str, str, str, str]:
        old, new = by_hand.percentile(which, value), pooled.percentile(which, value)
        if old is None or new is None:
            return title, _ms(old), _ms(new), "-"
        return title, _ms(old), _ms(new), f"{old / new:.1f} x"

    failed = [str(len(phase.calls) - len(phase.good)) for phase in (by_hand, pooled)]
    table(
        ('from "I want to talk" to', "by hand", "with the pool", "ratio"),
        [
            row("first event of the answer, p50", 50, lambda call: call.first_event),
            row("first event of the answer, p95", 95, lambda call: call.first_event),
            row("end of the call, p50", 50, lambda call: call.whole),
            (
                "connections opened",
                str(by_hand.opened),
                str(pooled.opened),
                f"{by_hand.opened / pooled.opened:.1f} x" if pooled.opened else "-",
            ),
            ("calls that failed", *failed, ""),
        ],
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
