"""Whole calls: Twilio's end, the bridge, a pool, the embedded server. Real sockets throughout."""

from __future__ import annotations

import base64
import ctypes
import dataclasses
import json
import queue
import socket
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websocket
from telephony_side import Phone, Twilio, serving, serving_wsgi
from voice_ai import decode, pitch, silence, tone

from rtpool_sync import RealtimePool
from rtpool_sync.bridges import CallResult, Output, TwilioBridge
from rtpool_sync.bridges.actions import Speech
from rtpool_sync.bridges.model import Model
from rtpool_sync.emulator import Faults, RealtimeServer


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 5.0
    while left := [t for t in threading.enumerate() if t not in before and "twilio" in t.name]:
        assert time.monotonic() < end, left
        time.sleep(0.005)


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
        self.bridges: queue.Queue[TwilioBridge] = queue.Queue()
        self.results: queue.Queue[CallResult] = queue.Queue()

    def __call__(self, ws: Any) -> None:
        call = TwilioBridge.answer(ws)
        with self.pool.connection(10.0, session=call.session()) as conn:
            bridge = TwilioBridge(call, conn, **self.options)
            self.bridges.put(bridge)
            try:
                bridge.run()
            finally:
                self.results.put(bridge.result)

    def bridge(self) -> TwilioBridge:
        return self.bridges.get(timeout=10.0)

    def result(self) -> CallResult:
        return self.results.get(timeout=10.0)


def seconds(message: dict[str, Any]) -> float:
    """Seconds of audio in a message."""
    return len(base64.b64decode(message["media"]["payload"])) / 8000 if "media" in message else 0.0


Start = Callable[..., tuple[str, Calls]]


@pytest.fixture(params=[serving, serving_wsgi], ids=["websockets", "simple"])
def start(pool: RealtimePool, request: pytest.FixtureRequest) -> Iterator[Start]:
    import contextlib

    with contextlib.ExitStack() as stack:

        def begin(**options: Any) -> tuple[str, Calls]:
            calls = Calls(pool, **options)
            return stack.enter_context(request.param(calls)), calls

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


def said(hertz: float, milliseconds: int) -> bytes:
    """A tone, and the silence after which the server takes it for a whole sentence."""
    return tone(hertz, milliseconds, "raw/mulaw") + silence(600, "raw/mulaw")


def heard_pitch(audio: bytes) -> float:
    return pitch(decode(bytes(audio), "raw/mulaw"), 8000)


def received(realtime: RealtimeServer, kind: str) -> list[dict[str, Any]]:
    """What the Realtime server was sent of that kind."""
    events = [json.loads(text) for connection in realtime.connections for text in connection.received]
    return [event for event in events if event.get("type") == kind]


def full(pool: RealtimePool) -> None:
    """The pool has everything back."""
    end = time.monotonic() + 10.0
    while pool.stats().in_use or pool.stats().resetting:
        assert time.monotonic() < end, pool.stats()
        time.sleep(0.005)


def test_a_turn(start: Start, realtime: RealtimeServer) -> None:
    url, calls = start()
    with Phone(url) as phone:
        phone.say(said(997.0, 600))
        phone.wait(lambda: phone.heard_ms > 780, "a reply")
        phone.stop()
        result = calls.result()
    assert abs(heard_pitch(phone.heard) - 997.0) < 2.0
    assert result.ended_by == "caller"
    assert result.errors == []
    assert result.violations == 0
    assert result.audio_in_ms == 1200.0
    assert result.frames_in == 60
    # Untouched: what came in is what went out, byte for byte.
    assert [event["audio"] for event in received(realtime, "input_audio_buffer.append")] == [
        base64.b64encode(said(997.0, 600)[at : at + 160]).decode() for at in range(0, 9600, 160)
    ]


def test_barge_in(start: Start, realtime: RealtimeServer) -> None:
    url, calls = start()
    with Phone(url) as phone:
        phone.say(said(440.0, 3000))
        phone.wait(lambda: phone.heard_ms > 900, "some of the reply")
        phone.say(tone(600.0, 200, "raw/mulaw"))
        phone.wait(lambda: phone.of("clear"), "clear")
        played = phone.heard_ms
        (truncation,) = phone.wait(lambda: received(realtime, "conversation.item.truncate"), "truncate")
        assert truncation["audio_end_ms"] == pytest.approx(played, abs=120)
        assert truncation["audio_end_ms"] <= played + 60
        assert phone.order[phone.order.index("clear") :].count("media") == 0
        before = len(phone.heard)
        phone.say(silence(600, "raw/mulaw"))
        phone.wait(lambda: phone.heard_ms > before / 8 + 550, "the next reply")
        assert abs(heard_pitch(phone.heard[before:]) - 600.0) < 6.0
        phone.stop()
        result = calls.result()
    assert result.barge_ins == 1
    assert result.errors == []
    assert result.heard_ms < result.audio_out_ms


@pytest.mark.parametrize("interrupt_response", [True, False])
def test_what_an_interrupted_reply_still_says_is_not_heard(
    pool: RealtimePool, realtime: RealtimeServer, interrupt_response: bool
) -> None:
    realtime.pace = dataclasses.replace(realtime.pace, delta=0.05, audio_chunk_ms=100)
    detection = {"type": "server_vad", "interrupt_response": interrupt_response}
    results: queue.Queue[CallResult] = queue.Queue()

    def route(ws: Any) -> None:
        session = TwilioBridge.session(audio={"input": {"turn_detection": detection}})
        with pool.connection(10.0, session=session) as conn:
            results.put(TwilioBridge(ws, conn).run())

    with serving(route) as url, Phone(url) as phone:
        phone.say(said(440.0, 2000))
        phone.wait(lambda: phone.heard_ms > 300, "some of the reply")
        phone.say(tone(600.0, 200, "raw/mulaw"))
        phone.wait(lambda: phone.of("clear"), "clear")
        if not interrupt_response:  # the server goes on until it is told to stop
            phone.wait(lambda: received(realtime, "response.cancel"), "cancel")
        phone.stop()
        result = results.get(timeout=10.0)
    assert phone.order[phone.order.index("clear") :].count("media") == 0
    assert (result.late_out > 0) is not interrupt_response or interrupt_response
    assert result.errors == []


def test_nothing_is_interrupted_when_everything_was_heard(start: Start, realtime: RealtimeServer) -> None:
    url, calls = start()
    with Phone(url) as phone:
        phone.say(said(440.0, 200))
        phone.wait(lambda: len(phone.of("media")) and not phone._buffer, "the reply")
        phone.say(said(600.0, 200))
        phone.wait(lambda: len(received(realtime, "input_audio_buffer.append")) == 80, "the second sentence")
        phone.wait(lambda: phone.heard_ms >= 1100, "the second reply")
        phone.wait(lambda: not phone._buffer, "the last mark")
        phone.stop()
        result = calls.result()
    assert result.barge_ins == 0
    assert phone.of("clear") == []
    assert received(realtime, "conversation.item.truncate") == []
    assert result.heard_ms == result.audio_out_ms


def test_a_caller_who_may_not_interrupt(start: Start, realtime: RealtimeServer) -> None:
    url, calls = start(barge_in=False)
    with Phone(url) as phone:
        phone.say(said(440.0, 1000))
        phone.wait(lambda: phone.heard_ms > 300, "some of the reply")
        phone.say(said(600.0, 200))
        phone.wait(lambda: phone.heard_ms > 1000, "the rest of it")
        phone.stop()
        assert calls.result().barge_ins == 0
    assert phone.of("clear") == []


def test_keys(start: Start) -> None:
    pressed: queue.Queue[str] = queue.Queue()
    url, calls = start(on_dtmf=lambda call, digits: pressed.put(digits))
    with Phone(url) as phone:
        for digit in "12#":
            phone.dtmf(digit)
        assert [pressed.get(timeout=5.0) for _ in range(3)] == ["1", "2", "#"]
        phone.stop()
        assert calls.result().dtmf == "12#"


@pytest.mark.parametrize("marks", [True, False])
def test_hanging_up_waits_for_the_goodbye(start: Start, marks: bool) -> None:
    url, calls = start(
        greeting="Say goodbye.", on_start=lambda call: call.hangup("done"), goodbye_timeout=2.0
    )
    began = time.monotonic()
    with Phone(url, marks=marks) as phone:
        assert phone.over.wait(10.0)
        assert phone.heard_ms >= 390.0  # all of it, and only then
        result = calls.result()
    assert (result.ended_by, result.detail, result.ok) == ("hangup", "done", True)
    assert phone.closed_with == 1000
    # A simulator that answers no mark keeps the line for as long as a goodbye may take.
    assert (time.monotonic() - began < 1.8) is marks


def test_functions(start: Start, realtime: RealtimeServer) -> None:
    calling = threading.Event()
    seen: list[Any] = []

    def on_function(call: TwilioBridge, name: str, arguments: dict[str, Any]) -> Any:
        seen.append((name, arguments))
        calling.set()
        if name == "fails":
            raise RuntimeError("no such order")
        if name == "odd":
            return {(1, 2): "no JSON has such a key"}
        return {"status": "shipped"} if name == "status" else Output("noted", respond=False)

    url, calls = start(
        on_function=on_function,
        on_start=lambda call: call.send(
            {
                "type": "session.update",
                "session": {
                    "type": "realtime",
                    "tools": [
                        {"type": "function", "name": name, "parameters": {"type": "object"}}
                        for name in ("status", "fails", "odd", "note")
                    ],
                },
            }
        ),
    )

    def ask(bridge: TwilioBridge, name: str) -> None:
        content = [{"type": "input_text", "text": f'call tool {name} with {{"order": 7}}'}]
        bridge.send(
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": "user", "content": content},
            }
        )
        bridge.respond()

    def outputs() -> list[str]:
        items = [event["item"] for event in received(realtime, "conversation.item.create")]
        return [item["output"] for item in items if item["type"] == "function_call_output"]

    with Phone(url) as phone:
        bridge = calls.bridge()
        phone.wait(lambda: "tools" in str(received(realtime, "session.update")), "the tools")
        for count, name in enumerate(("status", "fails", "odd", "note"), 1):
            ask(bridge, name)
            phone.wait(lambda count=count: len(outputs()) == count, name)
            phone.wait(lambda: bridge._model.quiet, "the model to be done")
        phone.stop()
        result = calls.result()
    assert len(received(realtime, "response.create")) == 4 + 3  # the last one was not to be followed by words
    assert seen == [(name, {"order": 7}) for name in ("status", "fails", "odd", "note")]
    assert json.loads(outputs()[0]) == {"status": "shipped"}
    assert "error" in json.loads(outputs()[1])
    assert "error" in json.loads(outputs()[2])
    assert outputs()[3] == "noted"
    assert result.function_calls == ["status", "fails", "odd", "note"]
    assert any("no such order" in error for error in result.errors)


def test_a_response_that_has_to_wait_keeps_what_it_was_asked_for(start: Start) -> None:
    """A key is pressed while the model speaks: the server refuses, and is asked again, for the same."""
    begun: queue.Queue[Any] = queue.Queue()

    def event(call: Any, event: Any) -> None:
        if event["type"] == "response.created":
            begun.put(event["response"]["metadata"])

    url, calls = start(on_event=event)
    with Phone(url) as phone:
        bridge = calls.bridge()
        phone.wait(lambda: bridge._started, "the call to begin")
        bridge.respond()  # under way when the server gets the next ones
        bridge.respond()
        for number in ("1", "2"):
            bridge.respond({"metadata": {"wanted": number}})
        assert [begun.get(timeout=10.0) for _ in range(4)] == [None, None, {"wanted": "1"}, {"wanted": "2"}]
        phone.wait(lambda: bridge._model.quiet, "the model to be done")
        phone.stop()
        assert calls.result().errors == []


def test_a_response_of_the_models_own_is_not_taken_for_one_that_was_asked_for(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for crosses the answer to the caller's turn on the wire, and is refused only then."""
    begun: queue.Queue[Any] = queue.Queue()
    understand = Model.understand

    def late(model: Model, event: Any) -> None:
        if event["type"] == "response.created":
            if begun.empty():
                model.respond({"metadata": {"wanted": "1"}})
            begun.put(event["response"]["metadata"])
        understand(model, event)

    monkeypatch.setattr(Model, "understand", late)
    url, calls = start()
    with Phone(url) as phone:
        bridge = calls.bridge()
        phone.say(said(440.0, 300))
        phone.wait(lambda: begun.qsize() == 2, "both responses")
        assert [begun.get(), begun.get()] == [None, {"wanted": "1"}]
        phone.wait(lambda: bridge._model.quiet, "the model to be done")
        phone.stop()
        assert calls.result().errors == []


def test_transcripts_and_events(pool: RealtimePool) -> None:
    lines: queue.Queue[tuple[str, str]] = queue.Queue()
    kinds: set[str] = set()
    results: queue.Queue[CallResult] = queue.Queue()

    def route(ws: Any) -> None:
        session = TwilioBridge.session(audio={"input": {"transcription": {"model": "whisper-1"}}})
        with pool.connection(10.0, session=session) as conn:
            bridge = TwilioBridge(
                ws,
                conn,
                on_transcript=lambda call, who, text: lines.put((who, text)),
                on_event=lambda call, event: kinds.add(event["type"]),
            )
            results.put(bridge.run())

    with serving(route) as url, Phone(url) as phone:
        phone.say(said(440.0, 300))
        assert {lines.get(timeout=5.0)[0] for _ in range(2)} == {"caller", "assistant"}
        phone.stop()
        assert results.get(timeout=10.0).callbacks_dropped == 0
    assert {"response.created", "response.output_audio.delta"} <= kinds


def test_a_recording_has_both_sides(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    url, calls = start(record=path)
    with Phone(url) as phone:
        phone.say(said(997.0, 600))
        phone.wait(lambda: phone.heard_ms > 780, "a reply")
        phone.stop()
        result = calls.result()
    assert result.errors == []
    with wave.open(str(path)) as recording:
        assert (recording.getnchannels(), recording.getsampwidth(), recording.getframerate()) == (2, 2, 8000)
        both = np.frombuffer(recording.readframes(recording.getnframes()), "<i2").reshape(-1, 2) / 32767
    for side in (0, 1):
        assert abs(pitch(both[:, side], 8000) - 997.0) < 2.0


def test_the_call_is_known_before_a_connection_is_taken(pool: RealtimePool) -> None:
    seen: queue.Queue[Any] = queue.Queue()

    def route(ws: Any) -> None:
        call = TwilioBridge.answer(ws)
        seen.put((call.call_id, dict(call.parameters), pool.stats().in_use))
        call.reject("not you")

    with serving(route) as url, Phone(url, parameters={"token": "wrong"}) as phone:
        assert seen.get(timeout=5.0) == ("CA1", {"token": "wrong"}, 0)
        assert phone.over.wait(5.0)
        assert phone.closed_with == 1000
    assert pool.stats().total_sessions_handled == 0


def test_nobody_begins_a_call(pool: RealtimePool) -> None:
    seen: queue.Queue[BaseException] = queue.Queue()

    def route(ws: Any) -> None:
        try:
            TwilioBridge.answer(ws, timeout=0.2)
        except TimeoutError as error:
            seen.put(error)

    with serving(route) as url, Twilio(url, start=False) as twilio:
        assert "no call began within 0.2 s" in str(seen.get(timeout=5.0))
        assert twilio.ws.recv_data()[0] == websocket.ABNF.OPCODE_CLOSE


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_duration": 0.2}, "max_duration"),
        ({"telephony_timeout": 0.3}, "telephony_silent"),
        ({"on_start": lambda call: call.stop("closing time")}, "stopped"),
        ({"on_start": lambda call: sys.exit(3)}, "callback"),
    ],
)
def test_calls_that_we_end(start: Start, pool: RealtimePool, options: dict[str, Any], why: str) -> None:
    url, calls = start(**options)
    with Phone(url) as phone:
        result = calls.result()
        assert phone.over.wait(2.0)
    assert result.ended_by == why, result
    assert result.seconds < 1.5
    full(pool)


def test_too_many_violations_end_the_call(start: Start) -> None:
    url, calls = start()
    with Phone(url) as phone:
        for _ in range(101):
            phone.send("{}")
        result = calls.result()
    assert (result.ended_by, result.violations) == ("protocol", 101)
    assert len(result.errors) <= 100


def test_a_session_in_another_format_is_said(pool: RealtimePool) -> None:
    results: queue.Queue[CallResult] = queue.Queue()

    def route(ws: Any) -> None:
        with pool.connection(10.0) as conn:
            results.put(TwilioBridge(ws, conn, greeting="Hello.").run())

    with serving(route) as url, Phone(url):
        result = results.get(timeout=10.0)
    assert result.ended_by == "format"
    assert "audio/pcm" in result.detail


@pytest.mark.parametrize("how", ["close", "kill"])
def test_the_model_dies(start: Start, realtime: RealtimeServer, pool: RealtimePool, how: str) -> None:
    url, calls = start()
    with Phone(url) as phone:
        calls.bridge()
        began = time.monotonic()
        realtime.close_all(1011) if how == "close" else realtime.kill()
        result = calls.result()
        assert time.monotonic() - began < 1.0
        assert phone.over.wait(2.0)
    assert result.ended_by == "realtime_lost"
    assert not result.ok
    full(pool)


def test_the_model_is_silent_and_answers_no_ping(realtime: RealtimeServer) -> None:
    with RealtimePool(base_url=realtime.base_url, api_key="k", max_connections=1, ping_interval=60) as pool:
        results: queue.Queue[CallResult] = queue.Queue()

        def route(ws: Any) -> None:
            with pool.connection(10.0, session=TwilioBridge.session()) as conn:
                realtime.faults = Faults(stall_after=0)
                results.put(TwilioBridge(ws, conn, realtime_timeout=1.0, greeting="Hello.").run())

        with serving(route) as url, Phone(url) as phone:
            result = results.get(timeout=10.0)
            assert phone.over.wait(2.0)
        assert result.ended_by == "realtime_silent", result
        realtime.faults = Faults()
        full(pool)


@pytest.mark.parametrize("how", ["close", "cut"])
def test_the_caller_is_gone(start: Start, pool: RealtimePool, how: str) -> None:
    url, calls = start()
    with Phone(url) as phone:
        calls.bridge()
        began = time.monotonic()
        phone.close() if how == "close" else phone.cut()
        result = calls.result()
        assert time.monotonic() - began < 1.0
    assert result.ended_by == ("telephony_closed" if how == "close" else "telephony_lost")
    full(pool)


def test_a_line_that_takes_nothing_never_holds_up_the_model(
    start: Start, realtime: RealtimeServer, pool: RealtimePool
) -> None:
    """The caller's side reads nothing: the model's events go on being understood, and the call is ended."""
    events: queue.Queue[str] = queue.Queue()
    url, calls = start(send_timeout=1.5, on_event=lambda call, event: events.put(event["type"]))
    with Twilio(url) as twilio:  # never receives
        bridge = calls.bridge()
        twilio.ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        payload = "x" * 400_000
        began = time.monotonic()
        while not bridge._speaking_since and time.monotonic() - began < 10.0:
            bridge._outbox.put(Speech(payload, 300_000, "item"))
        stalled = time.monotonic()
        bridge.send({"type": "input_audio_buffer.clear"})
        seen = ""
        while seen != "input_audio_buffer.cleared":
            seen = events.get(timeout=1.0)
        assert time.monotonic() - stalled < 1.0
        result = calls.result()
        assert time.monotonic() - stalled < 1.5 + 1.0
    assert result.ended_by == "telephony_stalled", result
    full(pool)


def test_what_interrupts_run_goes_on_after_everything_is_clean(pool: RealtimePool) -> None:
    outcome: queue.Queue[Any] = queue.Queue()

    def route(ws: Any) -> None:
        with pool.connection(10.0, session=TwilioBridge.session()) as conn:
            bridge = TwilioBridge(ws, conn)
            outcome.put(bridge)
            try:
                bridge.run()
            except KeyboardInterrupt:
                outcome.put(bridge.result)

    with serving(route) as url, Phone(url) as phone:
        bridge = outcome.get(timeout=5.0)
        phone.wait(lambda: bridge._started, "the start")
        (listener,) = [
            ident for ident, frame in sys._current_frames().items() if within(frame, TwilioBridge.run)
        ]
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(listener), ctypes.py_object(KeyboardInterrupt)
        )
        result = outcome.get(timeout=5.0)
        assert phone.over.wait(2.0)
    assert result.ended_by == "interrupted"
    full(pool)
    with pytest.raises(RuntimeError, match="carries one call"):
        bridge.run()


def within(frame: Any, function: Any) -> bool:
    while frame is not None:
        if frame.f_code is function.__code__:
            return True
        frame = frame.f_back
    return False


def test_callbacks_that_fail_or_hang_harm_no_call(start: Start) -> None:
    hang = threading.Event()

    def on_event(call: TwilioBridge, event: Any) -> None:
        if event["type"] == "response.created":
            raise ValueError("a bug of the application")
        if event["type"] == "response.done":
            hang.wait(20.0)

    url, calls = start(on_event=on_event, callback_timeout=0.3)
    try:
        with Phone(url) as phone:
            phone.say(said(440.0, 300))
            phone.wait(lambda: phone.heard_ms > 480, "the first reply")
            phone.say(said(600.0, 300))
            phone.wait(lambda: phone.heard_ms > 980, "the second reply")
            phone.stop()
            result = calls.result()
    finally:
        hang.set()
    assert result.ok
    assert any("a bug of the application" in error for error in result.errors)
    assert any("still running" in error for error in result.errors)
