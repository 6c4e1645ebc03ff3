"""Many calls at once, ended in every way at random moments: nothing is left of them, no voice is crossed."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import websockets.exceptions
from telephony_side import Phone, serving, serving_wsgi
from voice_ai import FORMATS, VoiceAi, decode, silence, tone

from rtpool_sync import RealtimePool
from rtpool_sync.bridges import AudioCodesBridge, CallResult, TwilioBridge
from rtpool_sync.bridges.audiocodes import Conversations
from rtpool_sync.bridges.telephony import TelephonyClosed
from rtpool_sync.emulator import RealtimeServer

CALLS = 1000 if os.environ.get("RTPOOL_SLOW") else 40
AT_ONCE = 10
#: Far enough from each other that mu-law and a cut at any sample leave them apart.
TONES = [300.0 + 40.0 * index for index in range(AT_ONCE)]
monotonic = time.monotonic


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
    end = monotonic() + 10.0
    while left := (threads() | descriptors()) - before:
        assert monotonic() < end, left
        gc.collect()  # the server of `websockets` leaves its selector to it
        time.sleep(0.02)


class Ended(NamedTuple):
    """A call as the bridge saw it, and when :meth:`run` returned."""

    result: CallResult
    at: float


class Route:
    """Runs a bridge for each call; what a call asks for with its parameters happens to it."""

    def __init__(self, pool: RealtimePool, vendor: str) -> None:
        self.pool = pool
        self.vendor: Any = TwilioBridge if vendor == "twilio" else AudioCodesBridge
        self.answering = {} if vendor == "twilio" else {"conversations": Conversations(grace=1.5)}
        self.results: queue.Queue[Ended] = queue.Queue()

    def __call__(self, ws: Any) -> None:
        try:
            call = self.vendor.answer(ws, **self.answering)
        except TelephonyClosed:
            return  # it carried on another one
        fails = call.parameters["way"]
        session = call.session(instructions=f"call {call.parameters['seed']}")
        after = int(call.parameters["after"])
        counted = iter(range(1_000_000))

        def on_event(bridge: Any, event: Any) -> None:
            if next(counted) < after:
                return
            if fails == "callback exits":
                sys.exit(1)
            if fails == "callback raises":
                raise ValueError("a bug of the application")

        with contextlib.suppress(SystemExit):
            with self.pool.connection(30.0, session=session) as conn:
                bridge = self.vendor(
                    call,
                    conn,
                    on_event=on_event,
                    # On a busy machine callers are slow.
                    telephony_timeout=0.5 if fails == "stall" else 10.0,
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
                    self.results.put(Ended(bridge.result, monotonic()))


WAYS = {
    "stop": {"caller"},
    "close": {"telephony_closed"},
    "cut": {"telephony_lost"},
    "stall": {"telephony_silent"},  # nothing more comes, and nothing is read
    "callback exits": {"callback"},
    "callback raises": {"caller"},  # a bug of the application ends no call
    "hangup": {"hangup"},
    "stopped": {"stopped"},
    "model closes": {"realtime_lost", "caller"},  # the latter: there was no session yet
    "resume": {"caller"},  # over another WebSocket, where the vendor has that
}


class Said(NamedTuple):
    """A call as the caller saw it."""

    seed: int
    way: str
    hertz: float
    heard: list[float]  # the frequencies of all that was loud, piece by piece
    left_at: float | None  # when the caller brought the end about, if it did


def one_call(vendor: str, url: str, realtime: RealtimeServer, seed: int) -> Said:
    """Speak a tone of its own, hear it come back, and end in some way at some moment."""
    rng = random.Random(seed)
    way = rng.choice([way for way in WAYS if way != "resume" or vendor == "audiocodes"])
    hertz = TONES[seed % AT_ONCE]
    leave_at = monotonic() + rng.uniform(0.0, 1.5)
    parameters = {"way": way, "after": str(rng.randrange(20)), "seed": str(seed)}
    caller = (TwilioCaller if vendor == "twilio" else AudioCodesCaller)(url, parameters, rng)
    left_at = None
    try:
        rate, width = FORMATS[caller.format]
        # A turn, five times as fast as people speak, and then enough time to hear some of the answer.
        frames = tone(hertz, 400, caller.format) + silence(2900, caller.format)
        step = rate // 10 * width
        position = 0
        while not caller.over():
            ours = way not in ("callback exits", "hangup", "stopped")
            if ours and monotonic() > leave_at:
                left_at = monotonic()
                if way == "model closes":
                    info = next((c for c in realtime.connections if speaks(c, seed)), None)
                    if info is None:
                        caller.stop()
                    else:
                        with contextlib.suppress(KeyError):
                            realtime.close(info, 1011)
                elif way == "resume":
                    if caller.cut_and_resume():
                        leave_at, way = monotonic() + 0.3, "stop"
                        continue
                else:
                    getattr(caller, way, caller.stop)()
                break
            caller.say(frames[position : position + step])
            position = (position + step) % len(frames)
            caller.wait(0.02)
        caller.wait(10.0)
    finally:
        caller.end()
    heard = caller.heard()
    return Said(seed, parameters["way"], hertz, list(pitches(heard, rate)), left_at)


def pitches(audio: np.ndarray, rate: int) -> Iterator[float]:
    """The frequency of each tenth of a second that is loud: the server speaks in pieces of a fifth."""
    size = rate // 10
    for start in range(0, len(audio) - size, size // 2):
        piece = audio[start : start + size]
        if np.count_nonzero(np.abs(piece) > 0.05) > 0.6 * size:
            spectrum = np.abs(np.fft.rfft(piece * np.hanning(size), 1 << 15))
            yield float(np.argmax(spectrum)) * rate / (1 << 15)


def foreign(call: Said) -> list[float]:
    """What the call heard of others. A cut makes a tone impure, but moves it less than to the next one."""
    return [hertz for hertz in call.heard if abs(hertz - call.hertz) > 25.0]


class TwilioCaller:
    format = "raw/mulaw"

    def __init__(self, url: str, parameters: dict[str, str], rng: random.Random) -> None:
        self.phone = Phone(url, parameters=parameters)
        self.over = self.phone.over.is_set
        self.wait = self.phone.over.wait
        self.stop = self.phone.stop
        self.cut = self.phone.cut
        self.close = self.phone.close

    def stall(self) -> None:
        self.phone.frozen = True
        time.sleep(1.0)  # longer than telephony_timeout, and the end has to come without us
        self.phone.frozen = False

    def say(self, audio: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.phone.say(audio)

    def heard(self) -> np.ndarray:
        return decode(bytes(self.phone.heard), self.format)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.phone.close()


class AudioCodesCaller:
    def __init__(self, url: str, parameters: dict[str, str], rng: random.Random) -> None:
        formats = rng.sample(list(FORMATS), rng.randint(1, 4))
        self.ai = VoiceAi(url, formats=tuple(formats), start=parameters)
        self.format = self.ai.format
        self.cut = self.ai.cut

    def over(self) -> bool:
        return self.ai.closed

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(AssertionError):  # that it did not
            self.ai.until(lambda: self.ai.closed, "the end", seconds)

    def stop(self) -> None:
        with contextlib.suppress(OSError, websockets.exceptions.ConnectionClosed):
            self.ai.end()

    def close(self) -> None:
        self.ai.ws.close()

    def stall(self) -> None:
        time.sleep(1.0)

    def cut_and_resume(self) -> bool:
        self.ai.cut()
        try:
            return self.ai.resume()
        except (OSError, websockets.exceptions.ConnectionClosed):
            return False

    def say(self, audio: bytes) -> None:
        with contextlib.suppress(OSError, websockets.exceptions.ConnectionClosed):
            self.ai.say(audio)

    def heard(self) -> np.ndarray:
        return self.ai.heard()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.ai.close()
            self.ai.ws.socket.shutdown(socket.SHUT_RDWR)


def speaks(info: Any, seed: int) -> bool:
    return info.session is not None and info.session.get("instructions") == f"call {seed}"


@pytest.mark.timeout(60 if CALLS < 1000 else 900)
@pytest.mark.parametrize(
    ("vendor", "server"),
    [("twilio", serving), ("twilio", serving_wsgi), ("audiocodes", serving), ("audiocodes", serving_wsgi)],
    ids=["twilio-websockets", "twilio-simple", "audiocodes-websockets", "audiocodes-simple"],
)
def test_calls_end_in_every_way(vendor: str, server: Any) -> None:
    with nothing_left(), RealtimeServer() as realtime:
        with RealtimePool(base_url=realtime.base_url, api_key="k", max_connections=AT_ONCE) as pool:
            route = Route(pool, vendor)
            with server(route) as url, ThreadPoolExecutor(AT_ONCE) as callers:
                calls = list(callers.map(lambda seed: one_call(vendor, url, realtime, seed), range(CALLS)))
                ended = [route.results.get(timeout=10.0) for _ in range(CALLS)]
            by_seed = {int(one.result.parameters["seed"]): one for one in ended}
            assert len(by_seed) == CALLS
            crossed = [call for call in calls if foreign(call)]
            late = max(
                by_seed[call.seed].at - call.left_at
                for call in calls
                if call.left_at is not None and call.way != "resume"
            )
            count = Counter(one.result.ended_by for one in ended)
            told = sum(bool(call.heard) for call in calls)
            print(
                f"\n{CALLS} calls: {dict(count)}; {told} heard their tone, {len(crossed)} another one; "
                f"the last one was over {late:.2f} s after its caller had left"
            )
            assert not crossed
            wrong = [
                (call, by_seed[call.seed].result)
                for call in calls
                if by_seed[call.seed].result.ended_by not in WAYS[call.way]
            ]
            assert not wrong
            assert told > CALLS / 4
            end = monotonic() + 10.0
            while pool.stats().in_use or pool.stats().resetting or pool.stats().closing:
                assert monotonic() < end, pool.stats()
                time.sleep(0.01)
            # All of its capacity can be lent at once.
            with contextlib.ExitStack() as all_of_them:
                for _ in range(AT_ONCE):
                    all_of_them.enter_context(pool.connection(10.0))
