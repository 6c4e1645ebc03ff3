"""Whole calls: Twilio's end, the bridge, a pool, the embedded server. Real sockets throughout."""

from __future__ import annotations

import base64
import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from telephony_side import Twilio, serving

from rtpool_sync import RealtimePool
from rtpool_sync.bridges import CallResult, TwilioBridge
from rtpool_sync.emulator import RealtimeServer


@pytest.fixture
def realtime() -> Iterator[RealtimeServer]:
    with RealtimeServer(record=1000) as server:
        yield server


@pytest.fixture
def pool(realtime: RealtimeServer) -> Iterator[RealtimePool]:
    with RealtimePool(base_url=realtime.base_url, api_key="k", max_connections=4) as pool:
        yield pool


class Calls:
    """A route that runs a bridge, and the results of its calls."""

    def __init__(self, pool: RealtimePool, **options: Any) -> None:
        self.pool = pool
        self.options = options
        self.results: queue.Queue[CallResult] = queue.Queue()

    def __call__(self, ws: Any) -> None:
        call = TwilioBridge.answer(ws)
        with self.pool.connection(10.0, session=call.session()) as conn:
            bridge = TwilioBridge(call, conn, **self.options)
            try:
                bridge.run()
            finally:
                self.results.put(bridge.result)

    def result(self) -> CallResult:
        return self.results.get(timeout=10.0)


def seconds(message: dict[str, Any]) -> float:
    """Seconds of audio in a message."""
    return len(base64.b64decode(message["media"]["payload"])) / 8000 if "media" in message else 0.0


Start = Callable[..., tuple[str, Calls]]


@pytest.fixture
def start(pool: RealtimePool) -> Iterator[Start]:
    import contextlib

    with contextlib.ExitStack() as stack:

        def begin(**options: Any) -> tuple[str, Calls]:
            calls = Calls(pool, **options)
            return stack.enter_context(serving(calls)), calls

        yield begin


def test_a_greeting_and_a_stop(start: Start) -> None:
    url, calls = start(greeting="Say hello.")
    with Twilio(url, parameters={"tenant": "42"}) as twilio:
        media = twilio.until("media")
        assert media["streamSid"] == twilio.sid
        while (
            sum(seconds(message) for message in twilio.received) < 0.4
        ):  # the greeting; a mark may come earlier
            twilio.until("media")
        twilio.stop()
        result = calls.result()
    assert result.ended_by == "caller", result
    assert result.ok
    assert result.parameters == {"tenant": "42"}
    assert result.audio_out_ms == 400.0
