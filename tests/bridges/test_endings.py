"""Many calls at once, ended in every way at random moments: nothing is left of them, no voice is crossed."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from telephony_side import Phone, serving
from voice_ai import decode, pitch, silence, tone

from rtpool_sync import RealtimePool
from rtpool_sync.bridges import CallResult, TwilioBridge
from rtpool_sync.emulator import RealtimeServer

CALLS = 1000 if os.environ.get("RTPOOL_SLOW") else 60
AT_ONCE = 10
#: Far enough from each other that mu-law and a cut at any sample leave them apart.
TONES = [300.0 + 40.0 * index for index in range(AT_ONCE)]


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """No thread and no descriptor may be left."""

    def threads() -> set[threading.Thread]:
        return set(threading.enumerate())

    def descriptors() -> set[str]:
        found = set()
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        return found

    before = threads() | descriptors()
    yield
    end = time.monotonic() + 10.0
    while left := (threads() | descriptors()) - before:
        assert time.monotonic() < end, left
        gc.collect()  # the server of `websockets` leaves its selector to it
        time.sleep(0.02)


class Route:
    """Runs a bridge for each call; what a call asks for with its parameters happens to it."""

    def __init__(self, pool: RealtimePool) -> None:
        self.pool = pool
        self.results: queue.Queue[tuple[CallResult, float]] = queue.Queue()

    def __call__(self, ws: Any) -> None:
        call = TwilioBridge.answer(ws)
        fails = call.parameters["way"]
        session = call.session(instructions=f"call {call.parameters['seed']}")
        after = int(call.parameters["after"])
        counted = iter(range(1_000_000))

        def on_event(bridge: TwilioBridge, event: Any) -> None:
            if next(counted) < after:
                return
            if fails == "callback exits":
                sys.exit(1)
            if fails == "callback raises":
                raise ValueError("a bug of the application")

        with contextlib.suppress(SystemExit):
            with self.pool.connection(30.0, session=session) as conn:
                bridge = TwilioBridge(
                    call,
                    conn,
                    on_event=on_event,
                    telephony_timeout=0.5,
                    send_timeout=1.0,
                    realtime_timeout=2.0,
                )
                if fails == "hangup":
                    threading.Timer(after / 40, bridge.hangup).start()
                elif fails == "stopped":
                    threading.Timer(after / 40, bridge.stop).start()
                try:
                    bridge.run()
                finally:
                    self.results.put((bridge.result, after))


WAYS = {
    "stop": {"caller"},
    "close": {"telephony_closed"},
    "cut": {"telephony_lost"},
    "stall": {"telephony_silent"},  # nothing more comes, and nothing is read
    "callback exits": {"callback"},
    "callback raises": {"caller"},  # a bug of the application ends no call
    "hangup": {"hangup"},
    "stopped": {"stopped"},
    "model closes": {"realtime_lost"},
}


def one_call(url: str, realtime: RealtimeServer, seed: int) -> tuple[str, float]:
    """Speak a tone of its own, hear it come back, and end in some way at some moment."""
    rng = random.Random(seed)
    way = rng.choice(list(WAYS))
    hertz = TONES[seed % AT_ONCE]
    leave_at = time.monotonic() + rng.uniform(0.0, 1.0)
    phone = Phone(url, parameters={"way": way, "after": str(rng.randrange(20)), "seed": str(seed)})
    try:
        frames = tone(hertz, 400, "raw/mulaw") + silence(400, "raw/mulaw")
        position = 0
        while not phone.over.is_set():
            if way == "stall" and time.monotonic() > leave_at:
                phone.frozen = True
                time.sleep(1.0)  # longer than telephony_timeout, and the end has to come without us
                break
            ours = way in ("stop", "close", "cut", "callback raises", "model closes")
            if ours and time.monotonic() > leave_at:
                if way in ("stop", "callback raises"):
                    phone.stop()
                elif way == "cut":
                    phone.cut()
                elif way == "model closes":
                    info = next((c for c in realtime.connections if speaks(c, seed)), None)
                    if info is None:
                        phone.stop()
                    else:
                        realtime.close(info, 1011)
                else:
                    phone.close()
                break
            with contextlib.suppress(OSError, ValueError):
                phone.say(frames[position : position + 800])
            position = (position + 800) % len(frames)
            phone.over.wait(0.02)  # five times as fast as people speak
        phone.over.wait(10.0)
    finally:
        with contextlib.suppress(OSError):
            phone.close()
    heard = decode(bytes(phone.heard), "raw/mulaw")
    return way, pitch(heard, 8000) - hertz if len(heard) > 1600 else 0.0


def speaks(info: Any, seed: int) -> bool:
    return info.session is not None and info.session.get("instructions") == f"call {seed}"


@pytest.mark.timeout(60 if CALLS == 60 else 600)
def test_calls_end_in_every_way() -> None:
    with nothing_left(), RealtimeServer() as realtime:
        with RealtimePool(base_url=realtime.base_url, api_key="k", max_connections=AT_ONCE) as pool:
            route = Route(pool)
            with serving(route) as url, ThreadPoolExecutor(AT_ONCE) as callers:
                outcomes = list(callers.map(lambda seed: one_call(url, realtime, seed), range(CALLS)))
                results = [route.results.get(timeout=10.0)[0] for _ in range(CALLS)]
            crossed = [outcome for outcome in outcomes if abs(outcome[1]) > 15.0]
            ended = Counter(result.ended_by for result in results)
            heard = sum(result.heard_ms > 0 for result in results)
            print(f"\n{CALLS} calls: {dict(ended)}; {heard} heard something; {len(crossed)} crossed")
            assert not crossed
            assert ended.keys() <= set().union(*WAYS.values()) | {"telephony_closed", "telephony_lost"}
            assert heard > CALLS / 3
            end = time.monotonic() + 10.0
            while pool.stats().in_use or pool.stats().resetting or pool.stats().closing:
                assert time.monotonic() < end, pool.stats()
                time.sleep(0.01)
            # All of its capacity can be lent at once.
            with contextlib.ExitStack() as all_of_them:
                for _ in range(AT_ONCE):
                    all_of_them.enter_context(pool.connection(10.0))
