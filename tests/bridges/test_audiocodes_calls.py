"""Whole calls: VoiceAI Connect, the bridge, a pool, the embedded server. Real sockets throughout."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from telephony_side import serving
from voice_ai import FORMATS, VoiceAi, pitch, purity, tone

from rtpool_sync import RealtimePool
from rtpool_sync.bridges import AudioCodesBridge, CallResult, TelephonyClosed
from rtpool_sync.bridges.audiocodes import AudioCodesDialect, Conversations
from rtpool_sync.bridges.outbox import Interruption, Outbox
from rtpool_sync.emulator import RealtimeServer


@pytest.fixture
def realtime() -> Iterator[RealtimeServer]:
    with RealtimeServer(record=1000) as server:
        yield server


@pytest.fixture
def pool(realtime: RealtimeServer) -> Iterator[RealtimePool]:
    with RealtimePool(base_url=realtime.base_url, api_key="k", max_connections=4) as pool:
        yield pool


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while left := [t for t in threading.enumerate() if t not in before and "audiocodes" in t.name]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


class Calls:
    """A route that runs a bridge, and the results of its calls."""

    def __init__(self, pool: RealtimePool, answer: dict[str, Any], session: dict[str, Any], **options: Any):
        self.pool = pool
        self.answer = answer
        self.session = session
        self.options = options
        self.bridges: queue.Queue[AudioCodesBridge] = queue.Queue()
        self.results: queue.Queue[CallResult | TelephonyClosed] = queue.Queue()

    def __call__(self, ws: Any) -> None:
        try:
            call = AudioCodesBridge.answer(ws, **self.answer)
        except TelephonyClosed as error:
            self.results.put(error)
            return
        with self.pool.connection(10.0, session=call.session(**self.session)) as conn:
            bridge = AudioCodesBridge(call, conn, **self.options)
            self.bridges.put(bridge)
            try:
                bridge.run()
            finally:
                self.results.put(bridge.result)

    def result(self) -> CallResult:
        result = self.results.get(timeout=15.0)
        assert isinstance(result, CallResult), result
        return result

    def refusal(self) -> TelephonyClosed:
        refusal = self.results.get(timeout=15.0)
        assert isinstance(refusal, TelephonyClosed), refusal
        return refusal


Start = Callable[..., tuple[str, Calls]]


@pytest.fixture
def start(pool: RealtimePool) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(
            answer: dict[str, Any] | None = None, session: dict[str, Any] | None = None, **options: Any
        ) -> tuple[str, Calls]:
            calls = Calls(pool, answer or {}, session or {}, **options)
            return stack.enter_context(serving(calls)), calls

        yield begin


def full(pool: RealtimePool) -> bool:
    deadline = time.monotonic() + 10
    while pool.stats().in_use or pool.stats().resetting:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def truncations(realtime: RealtimeServer) -> list[dict[str, Any]]:
    received = [json.loads(text) for connection in realtime.connections for text in connection.received]
    return [event for event in received if event.get("type") == "conversation.item.truncate"]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (tuple(FORMATS), "raw/lpcm16_24"),
        (("raw/lpcm16", "wav/lpcm16_24", "raw/mulaw"), "raw/mulaw"),
        (("raw/lpcm16", "raw/lpcm16_8"), "raw/lpcm16"),
        (("raw/lpcm16_8",), "raw/lpcm16_8"),
    ],
)
def test_a_turn_in_every_format(start: Start, offered: tuple[str, ...], chosen: str) -> None:
    url, calls = start()
    with VoiceAi(url, formats=offered) as caller:
        assert caller.format == chosen
        caller.speak(997.0, 600)
        play = caller.until(lambda: caller.plays and caller.plays[-1].stopped and caller.plays[-1], "a reply")
        assert play.format == chosen
        rate = FORMATS[chosen][0]
        audio = caller.heard()
        assert abs(pitch(audio, rate) - 997) < 2
        # The emulator changes the rate of nothing here: what comes back is what was said.
        loud = np.flatnonzero(np.abs(audio) > 0.05)
        ratio, level = purity(audio[loud[0] + rate // 50 : loud[-1] - rate // 50], 997.0, rate)
        assert ratio > (30 if chosen == "raw/mulaw" else 75)
        assert level == pytest.approx(0.3, rel=0.03)
        assert caller.longest_ms <= 101
        assert caller.most_ahead < 0.3 + 0.1 + 0.1
        caller.end()
        result = calls.result()
    assert result.ended_by == "caller", result
    assert result.detail == "client-disconnected: Client Side"
    assert result.audio_out_ms == pytest.approx(caller.heard_ms(), abs=1)
    assert result.violations == 0
    assert result.errors == []


def test_the_call_is_known_before_the_session_is_made(start: Start) -> None:
    url, calls = start(greeting="Say hello.")
    with VoiceAi(url, start={"callee": "+200", "caller": "+101", "tenant": "42", "n": 3}) as caller:
        bridge = calls.bridges.get(timeout=5)
        caller.until(lambda: caller.plays and caller.plays[0].stopped, "the greeting")
        assert caller.heard_ms() == 400
        caller.end()
        result = calls.result()
    assert bridge.result is result
    assert result.call_id == result.stream_id == caller.id
    assert (result.caller, result.callee) == ("+101", "+200")
    assert result.parameters["tenant"] == "42"
    assert result.parameters["n"] == "3"
    assert result.parameters["botName"] == "bot"


def test_a_call_without_the_start_activity(start: Start) -> None:
    url, calls = start(greeting="Say hello.", answer={"details_timeout": 0.2})
    with VoiceAi(url, start=False, stream=False) as caller:
        caller.until(lambda: caller.plays and caller.plays[0].stopped, "the greeting")
        caller.end()
        assert calls.result().caller == "+100"


def test_barge_in(start: Start, realtime: RealtimeServer) -> None:
    url, calls = start()
    with VoiceAi(url) as caller:
        caller.speak(440.0, 3000)
        caller.until(lambda: caller.plays and caller.plays[0].ms > 900, "some of the reply")
        caller.say(tone(600.0, 200, caller.format))
        caller.until(lambda: caller.plays[0].stopped, "the end of the stream")
        played = caller.played_ms()
        sent = caller.plays[0].ms
        assert sent < 2000
        assert sent - played <= 410  # 0.3 s ahead, and a piece
        caller.until(lambda: len(caller.of("userStream.speech.started")) == 2, "speech.started")
        deadline = time.monotonic() + 5
        while not truncations(realtime):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (truncation,) = truncations(realtime)
        # What is said to have been heard is what was played, not what was sent.
        assert truncation["audio_end_ms"] == pytest.approx(played, abs=120)
        assert truncation["audio_end_ms"] < sent
        caller.say(b"\0" * 48 * 600)
        caller.until(lambda: len(caller.plays) > 1 and caller.plays[1].stopped, "the next reply")
        assert abs(pitch(np.frombuffer(caller.plays[1].audio, "<i2") / 32767, 24000) - 600) < 5
        caller.end()
        result = calls.result()
    assert result.barge_ins == 1
    assert result.dropped_out > 0
    assert result.errors == []
    assert result.heard_ms < result.audio_out_ms


def test_nothing_of_the_stream_comes_after_the_callers_speech_was_told(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is what VoiceAI Connect stops playing for: what came then would be a word out of nowhere."""
    interrupt = Outbox.interrupt

    def slow(outbox: Outbox, always: bool) -> Interruption:
        time.sleep(0.3)  # the speaker goes on meanwhile
        return interrupt(outbox, always)

    monkeypatch.setattr(Outbox, "interrupt", slow)
    url, calls = start()
    with VoiceAi(url) as caller:
        caller.speak(440.0, 3000)
        caller.until(lambda: caller.plays and caller.plays[0].ms > 900, "some of the reply")
        caller.say(tone(600.0, 200, caller.format))
        caller.until(lambda: len(caller.of("userStream.speech.started")) == 2, "speech.started")
        caller.until(lambda: caller.plays[0].stopped, "the end of the stream")
        said = [message["type"] for message in caller.messages]
        last = max(at for at, kind in enumerate(said) if kind == "userStream.speech.started")
        assert not [kind for kind in said[last:] if kind.startswith("playStream")]
        caller.end()
        assert calls.result().barge_ins == 1


def test_late_deltas_are_muted(start: Start, realtime: RealtimeServer) -> None:
    realtime.pace = type(realtime.pace)(delta=0.05, audio_chunk_ms=100)
    url, calls = start(
        session={"audio": {"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}}}
    )
    with VoiceAi(url) as caller:
        caller.speak(440.0, 2000)
        caller.until(lambda: caller.plays and caller.plays[0].ms > 300, "some of the reply")
        caller.say(tone(600.0, 200, caller.format))
        caller.until(lambda: caller.plays[0].stopped, "the end of the stream")
        bridge = calls.bridges.get(timeout=5)
        caller.until(lambda: bridge.result.late_out > 2, "late deltas")
        assert len(caller.plays) == 1
        caller.end()
        calls.result()


def test_abort_prompts_when_asked_for(start: Start) -> None:
    url, calls = start(answer={"dialect": AudioCodesDialect(abort_prompts=True)})
    with VoiceAi(url) as caller:
        caller.speak(440.0, 2000)
        caller.until(lambda: caller.plays and caller.plays[0].ms > 300, "some of the reply")
        caller.say(tone(600.0, 200, caller.format))
        caller.until(lambda: caller.events("abortPrompts"), "abortPrompts")
        caller.end()
        calls.result()


def test_keys_and_activities(start: Start) -> None:
    pressed: queue.Queue[str] = queue.Queue()
    told: queue.Queue[tuple[str, Any]] = queue.Queue()
    url, calls = start(
        on_dtmf=lambda call, digits: pressed.put(digits),
        on_activity=lambda call, name, details: told.put((name, details)),
    )
    with VoiceAi(url) as caller:
        assert told.get(timeout=5)[1]["parameters"]["callee"] == "+200"
        caller.activity("DTMF", value="123")
        caller.activity("dtmf", value="4#")
        caller.activity("DTMF", value=5)
        assert [pressed.get(timeout=5) for _ in range(3)] == ["123", "4#", "5"]
        caller.activity("noUserInput", value=1)
        name, details = told.get(timeout=5)
        assert (name, details["value"]) == ("noUserInput", 1)
        bridge = calls.bridges.get(timeout=5)
        bridge.send_dtmf("12*#")
        sent = caller.until(lambda: caller.events("sendDtmf"), "sendDtmf")
        assert sent[0]["activityParams"] == {"dtmfDigits": "12*#"}
        bridge.tell("config", bargeIn=True)
        assert caller.until(lambda: caller.events("config"), "config")[0]["sessionParams"] == {
            "bargeIn": True
        }
        for bad in ("", "1" * 21, "x"):
            with pytest.raises(ValueError, match="digits are 1 to 20"):
                bridge.send_dtmf(bad)
        caller.end()
        assert calls.result().dtmf == "1234#5"


def test_transcripts_are_told(start: Start, realtime: RealtimeServer) -> None:
    url, calls = start(session={"audio": {"input": {"transcription": {"model": "whisper-1"}}}})
    with VoiceAi(url) as caller:
        caller.speak()
        caller.until(lambda: caller.of("userStream.speech.recognition"), "recognition")
        assert caller.of("userStream.speech.hypothesis")
        assert caller.of("userStream.speech.committed")
        caller.end()
        calls.result()


@pytest.mark.parametrize("answered", [True, False])
def test_hangup_after_the_goodbye(start: Start, answered: bool) -> None:
    url, calls = start(greeting="Say goodbye.", on_start=lambda call: call.hangup("that is all"))
    with VoiceAi(url) as caller:
        caller.wants_more = answered
        (hangup,) = caller.until(lambda: caller.events("hangup"), "hangup")
        assert hangup == {
            "type": "event",
            "name": "hangup",
            "activityParams": {"hangupReason": "that is all"},
        }
        assert caller.plays[0].stopped
        assert caller.heard_ms() == 400
        assert caller.played_ms() >= 395
        result = calls.result()
        caller.until_closed()
    assert result.ended_by == "hangup"
    assert result.ok
    assert result.heard_ms == 400


def test_transfer(start: Start) -> None:
    url, calls = start(greeting="One moment.")
    with VoiceAi(url) as caller:
        caller.until(lambda: caller.plays, "the greeting")
        headers = [{"name": "X-Id", "value": "7"}]
        calls.bridges.get(timeout=5).transfer("tel:+300", reason="asked for", headers=headers)
        (transfer,) = caller.until(lambda: caller.events("transfer"), "transfer")
        assert transfer["activityParams"] == {
            "transferTarget": "tel:+300",
            "handoverReason": "asked for",
            "transferSipHeaders": headers,
        }
        assert caller.heard_ms() == 400
        result = calls.result()
    assert result.ended_by == "hangup"
    assert result.ok
    assert "transferred" in result.detail


def test_stop_hangs_up(start: Start) -> None:
    url, calls = start()
    with VoiceAi(url) as caller:
        caller.wants_more = False
        calls.bridges.get(timeout=5).stop("closing time")
        caller.until_closed()
        assert caller.events("hangup")[0]["activityParams"] == {"hangupReason": "closing time"}
        assert calls.result().ended_by == "stopped"


def test_the_realtime_side_dies(start: Start, realtime: RealtimeServer, pool: RealtimePool) -> None:
    url, calls = start()
    with VoiceAi(url) as caller:
        calls.bridges.get(timeout=5)
        began = time.monotonic()
        realtime.close_all(1011)
        result = calls.result()
        assert time.monotonic() - began < 1.0
        caller.until_closed()
        assert caller.events("hangup")
    assert result.ended_by == "realtime_lost"
    assert full(pool)


def test_validation_of_the_connection(start: Start) -> None:
    url, calls = start()
    with VoiceAi(url, initiate=False) as caller:
        caller.send("connection.validate")
        caller.until(lambda: caller.of("connection.validated"), "connection.validated")
    assert calls.refusal().clean


@pytest.mark.parametrize(
    ("formats", "more", "reason"),
    [
        (("wav/lpcm16", "raw/opus"), {}, "no common media format: wav/lpcm16, raw/opus offered"),
        (("raw/lpcm16",), {"expectAudioMessages": False}, "directTTS"),
        (("raw/lpcm16",), {"conversationId": ""}, "without a conversationId"),
    ],
)
def test_calls_that_are_refused(
    start: Start, pool: RealtimePool, formats: tuple[str, ...], more: dict[str, Any], reason: str
) -> None:
    url, calls = start()
    with VoiceAi(url, formats=formats, **more) as caller:
        caller.until(lambda: caller.closed, "closing")
        (error,) = caller.of("session.error")
        assert reason in error["reason"]
    assert reason in str(calls.refusal())
    assert pool.stats().total_sessions_handled == 0


def test_without_the_extra_a_call_that_needs_it_is_refused_and_told_why(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "samplerate", None)
    url, calls = start()
    with VoiceAi(url, formats=("raw/lpcm16",)) as caller:
        caller.until_closed()
        assert "pip install 'rtpool-sync[audio]'" in caller.of("session.error")[0]["reason"]
    assert "pip install 'rtpool-sync[audio]'" in str(calls.refusal())
    assert "pip install 'rtpool-sync[audio]'" in caplog.text
    with VoiceAi(url, formats=("raw/lpcm16", "raw/mulaw")) as caller:
        assert caller.format == "raw/mulaw"
        caller.end()
        calls.result()


def test_run_without_answer_speaks_linear_audio(pool: RealtimePool) -> None:
    results: queue.Queue[CallResult] = queue.Queue()

    def route(ws: Any) -> None:
        with pool.connection(session=AudioCodesBridge.session()) as conn:
            results.put(AudioCodesBridge(ws, conn, greeting="Hello.").run())

    with serving(route) as url:
        with VoiceAi(url, formats=("raw/mulaw", "raw/lpcm16")) as caller:
            assert caller.format == "raw/lpcm16"
            caller.until(lambda: caller.plays and caller.plays[0].stopped, "the greeting")
            caller.end()
        assert results.get(timeout=5).ended_by == "caller"
        with VoiceAi(url, formats=("raw/mulaw",)) as caller:
            caller.until_closed()
            assert caller.of("session.error")
        result = results.get(timeout=5)
    assert result.ended_by == "refused"
    assert not result.ok
    assert "raw/mulaw offered" in result.detail


def test_the_caller_is_silent_for_too_long(start: Start) -> None:
    url, calls = start(telephony_timeout=0.5)
    with VoiceAi(url) as caller:
        result = calls.result()
        assert result.ended_by == "telephony_silent"
        caller.until_closed()


def test_silence_outside_of_the_callers_stream_is_none(start: Start) -> None:
    url, calls = start(telephony_timeout=0.3)
    with VoiceAi(url) as caller:
        caller.stop_stream()
        bridge = calls.bridges.get(timeout=5)
        time.sleep(0.8)
        assert not bridge.ended
        caller.stream()
        caller.chunk(b"\0" * 960)
        caller.end()
        assert calls.result().ended_by == "caller"


# -- resumption


def test_a_call_goes_on_over_another_websocket(start: Start, realtime: RealtimeServer) -> None:
    conversations = Conversations(grace=5.0)
    url, calls = start(answer={"conversations": conversations})
    with VoiceAi(url) as caller:
        caller.speak(500.0, 2000)
        caller.until(lambda: caller.plays and caller.plays[0].ms > 500, "some of the reply")
        assert len(conversations) == 1
        caller.cut()
        time.sleep(0.5)  # the reply waits meanwhile
        before = caller.heard_ms()
        assert caller.resume()
        caller.until(lambda: len(caller.plays) == 2 and caller.plays[1].stopped, "the rest of the reply")
        # What was on its way when the cable was cut is lost, and no more than that.
        assert caller.heard_ms() > 2000 - 410
        assert caller.heard_ms() - before > 500
        caller._asked.append("userStream.started")
        caller.send("userStream.start")
        caller.until(lambda: caller.of("userStream.started")[1:], "userStream.started")
        plays = len(caller.plays)
        caller.speak(700.0, 400)
        caller.until(lambda: len(caller.plays) > plays and caller.plays[-1].stopped, "the next reply")
        caller.end()
        results = [calls.results.get(timeout=10) for _ in range(2)]
    assert len(conversations) == 0
    (result,) = (one for one in results if isinstance(one, CallResult))
    (carried,) = (one for one in results if isinstance(one, TelephonyClosed))
    assert carried.clean
    assert "carried on" in str(carried)
    assert result.ended_by == "caller", result
    assert len(result.errors) == 1
    assert "resumed after 0." in result.errors[0]


def test_a_resume_before_the_break_was_noticed(start: Start) -> None:
    url, calls = start(answer={"conversations": Conversations(grace=5.0)}, telephony_timeout=1.0)
    with VoiceAi(url) as caller:
        old, reader = caller.ws, caller._reader
        assert caller.resume()
        caller.speak()
        caller.until(lambda: caller.plays and caller.plays[0].stopped, "a reply")
        caller.end()
        assert {type(calls.results.get(timeout=10)) for _ in range(2)} == {CallResult, TelephonyClosed}
        reader.join(5)
        old.close()


def test_nobody_resumes(start: Start, pool: RealtimePool) -> None:
    conversations = Conversations(grace=0.4)
    url, calls = start(answer={"conversations": conversations}, greeting="Hello.")
    with VoiceAi(url) as caller:
        caller.until(lambda: caller.plays, "the greeting")
        began = time.monotonic()
        caller.cut()
        result = calls.result()
        assert 0.3 < time.monotonic() - began < 1.4
        assert result.ended_by == "telephony_lost"
        assert not caller.resume()
        assert caller.of("session.error")[0]["reason"] == "conversation not found"
        assert isinstance(calls.results.get(timeout=5), TelephonyClosed)
    assert full(pool)


def test_a_resume_without_a_registry_is_refused(start: Start) -> None:
    url, calls = start()
    with VoiceAi(url, initiate=False) as caller:
        caller._resuming = True
        caller.send("session.resume")
        caller.until(lambda: caller.of("session.error"), "session.error")
        assert caller.of("session.error")[0]["conversationId"] == caller.id
    assert "no conversation to resume" in str(calls.refusal())


def test_a_call_that_waits_for_its_websocket_can_be_stopped(start: Start) -> None:
    url, calls = start(answer={"conversations": Conversations(grace=30.0)}, greeting="Hello.")
    with VoiceAi(url) as caller:
        caller.until(lambda: caller.plays, "the greeting")
        bridge = calls.bridges.get(timeout=5)
        caller.cut()
        time.sleep(0.3)
        began = time.monotonic()
        bridge.stop()
        assert calls.result().ended_by == "stopped"
        assert time.monotonic() - began < 1.5
