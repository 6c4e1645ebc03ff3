"""The messages of the Bot API, one by one, without a socket."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import pytest
from voice_ai import tone

from rtpool_sync.bridges import actions
from rtpool_sync.bridges.audiocodes import AudioCodesDialect, verify_bearer

ID = "1b5c"


def told(dialect: AudioCodesDialect, kind: str, **fields: Any) -> list[actions.Inbound]:
    message = {"type": kind, "conversationId": ID, **fields}
    return list(dialect.decode(json.dumps(message), 0.0))


def say(dialect: AudioCodesDialect, action: actions.Outbound) -> list[dict[str, Any]]:
    return [json.loads(message) for message in dialect.encode(action)]


def reply(action: actions.Inbound) -> dict[str, Any]:
    assert isinstance(action, actions.Reply)
    answer: dict[str, Any] = json.loads(action.message)
    return answer


def begun(*formats: str, **options: Any) -> AudioCodesDialect:
    dialect = AudioCodesDialect(**options)
    told(dialect, "session.initiate", supportedMediaFormats=list(formats or ("raw/lpcm16_24",)))
    assert dialect.conversation_id == ID
    return dialect


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def speech(data: bytes, item: str = "item") -> actions.Speech:
    return actions.Speech(b64(data), len(data), item)


def audio_of(found: Iterable[actions.Inbound]) -> bytes:
    return b"".join(base64.b64decode(one.payload) for one in found if isinstance(one, actions.Audio))


def test_initiate() -> None:
    dialect = AudioCodesDialect()
    first, started = told(
        dialect,
        "session.initiate",
        caller="+1",
        botName="b",
        expectAudioMessages=True,
        supportedMediaFormats=["raw/lpcm16", "raw/mulaw"],
    )
    assert reply(first) == {"type": "session.accepted", "mediaFormat": "raw/mulaw"}
    assert isinstance(started, actions.CallStarted)
    assert (started.call_id, started.stream_id, started.caller) == (ID, ID, "+1")
    assert dialect.input_format is dialect.output_format is actions.PCMU
    assert dialect.session(voice="x")["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    (second,) = told(dialect, "session.initiate")
    assert second == actions.Violation("a second session.initiate")


@pytest.mark.parametrize("offered", [None, [], "raw/mulaw"])
def test_formats_that_are_not_said(offered: Any) -> None:
    dialect = AudioCodesDialect()
    told(dialect, "session.initiate", supportedMediaFormats=offered)
    assert dialect.media_format == "raw/lpcm16"


def test_our_order_of_formats_counts_and_unknown_ones_are_refused() -> None:
    dialect = AudioCodesDialect(formats=("raw/mulaw", "raw/lpcm16"))
    told(dialect, "session.initiate", supportedMediaFormats=["raw/lpcm16_24", "raw/lpcm16", "raw/mulaw", 7])
    assert dialect.media_format == "raw/mulaw"
    with pytest.raises(ValueError, match="not 'wav/lpcm16'"):
        AudioCodesDialect(formats=("wav/lpcm16",))


def test_a_refusal() -> None:
    dialect = AudioCodesDialect()
    error, ended = told(dialect, "session.initiate", supportedMediaFormats=["wav/lpcm16"] * 100)
    assert reply(error)["type"] == "session.error"
    assert len(reply(error)["reason"]) == 200
    assert isinstance(ended, actions.CallEnded)
    assert ended.refused
    assert say(dialect, actions.Hangup("x")) == []


def test_the_callers_stream_passes_through() -> None:
    dialect = begun()
    assert not dialect.continuous
    (started,) = told(dialect, "userStream.start")
    assert reply(started) == {"type": "userStream.started"}
    assert dialect.continuous
    chunk = b64(bytes(range(240)) * 4)
    assert told(dialect, "userStream.chunk", audioChunk=chunk) == [actions.Audio(chunk, 960)]
    assert told(dialect, "userStream.chunk", audioChunk="") == []
    # Half a sample waits for its other half.
    halves = [told(dialect, "userStream.chunk", audioChunk=b64(part)) for part in (b"abc", b"d", b"ef")]
    assert [audio_of(found) for found in halves] == [b"ab", b"cd", b"ef"]
    (stopped,) = told(dialect, "userStream.stop")
    assert reply(stopped) == {"type": "userStream.stopped"}
    assert not dialect.continuous


def test_resampling_comes_and_goes_with_a_turn() -> None:
    dialect = begun("raw/lpcm16")
    told(dialect, "userStream.start")
    said = tone(500, 200, "raw/lpcm16")
    heard = [
        told(dialect, "userStream.chunk", audioChunk=b64(said[at : at + 640])) for at in range(0, 6400, 640)
    ]
    heard.append(told(dialect, "userStream.stop"))
    assert sum(len(audio_of(found)) for found in heard) == 200 * 48
    spoken = tone(500, 200, "raw/lpcm16_24")
    messages = say(dialect, speech(spoken)) + say(dialect, actions.SpeechEnd("item"))
    kinds = [message["type"].removeprefix("playStream.") for message in messages]
    assert kinds == ["start", "chunk", "chunk", "stop"]
    assert sum(len(base64.b64decode(m["audioChunk"])) for m in messages[1:3]) == 200 * 32


def test_participants() -> None:
    dialect = begun()
    (started,) = told(dialect, "userStream.start", participant="caller")
    assert reply(started) == {"type": "userStream.started", "participant": "caller"}
    (other,) = told(dialect, "userStream.start", participant="agent")
    assert reply(other) == {"type": "userStream.started", "participant": "agent"}
    assert told(dialect, "userStream.chunk", participant="agent", audioChunk="AAAA") == []
    assert len(told(dialect, "userStream.chunk", participant="caller", audioChunk="AAAAAAAA")) == 1
    assert reply(told(dialect, "userStream.stop", participant="agent")[0])["participant"] == "agent"
    assert dialect.continuous
    assert say(dialect, actions.CallerSpeech("started")) == [
        {"type": "userStream.speech.started", "participant": "caller"}
    ]


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (b"{}", "binary"),
        ("nonsense", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object"),
        ("{}", "without a type"),
        ('{"type":"userStream.start"}', "before session.initiate"),
        ('{"type":"session.end"}', "before session.initiate"),
    ],
)
def test_violations_before_the_session(message: str | bytes, what: str) -> None:
    (violation,) = AudioCodesDialect().decode(message, 0.0)
    assert isinstance(violation, actions.Violation)
    assert what in violation.what


@pytest.mark.parametrize(
    ("kind", "fields", "what"),
    [
        ("userStream.start", {"conversationId": "other"}, "another conversationId"),
        ("userStream.chunk", {"audioChunk": "AAAA"}, "outside of a stream"),
        ("userStream.stop", {}, "outside of a stream"),
        ("activities", {}, "without a list"),
        ("activities", {"activities": ["x"]}, "not an object"),
        ("activities", {"activities": [{"type": "event"}]}, "without a name"),
        ("activities", {"activities": [{"type": "event", "name": "DTMF"}]}, "without keys"),
        ("activities", {"activities": [{"type": "event", "name": "DTMF", "value": "1x"}]}, "without keys"),
    ],
)
def test_violations_within_the_session(kind: str, fields: dict[str, Any], what: str) -> None:
    found = told(begun(), kind, **fields)
    assert isinstance(found[-1], actions.Violation)
    assert what in found[-1].what


@pytest.mark.parametrize("payload", ["*", "AAA", None, 7, "AA AA"])
def test_audio_that_is_not_base64(payload: Any) -> None:
    dialect = begun()
    told(dialect, "userStream.start")
    (violation,) = told(dialect, "userStream.chunk", audioChunk=payload)
    assert violation == actions.Violation("userStream.chunk whose audioChunk is not base64")


def test_what_is_not_known_is_ignored_and_a_conversation_id_may_be_missing() -> None:
    dialect = begun()
    assert told(dialect, "something.new") == []
    assert len(list(dialect.decode('{"type":"userStream.start"}', 0.0))) == 1


def test_activities() -> None:
    dialect = begun()
    found = told(
        dialect,
        "activities",
        activities=[
            {"type": "event", "name": "start", "parameters": {"callee": "7", "sip": {"a": 1}}},
            {"type": "event", "name": "dtmf", "value": "1*#a"},
            {"type": "message", "text": "hello"},
        ],
    )
    assert isinstance(found[0], actions.CallDetails)
    assert (found[0].callee, found[0].parameters["sip"]) == ("7", '{"a":1}')
    assert [one.name for one in found if isinstance(one, actions.Activity)] == ["start", "message"]
    assert actions.Dtmf("1*#A") in found


def test_the_end() -> None:
    dialect = begun()
    told(dialect, "userStream.start")
    assert told(dialect, "session.end", reasonCode="busy", reason="Line") == [actions.CallEnded("busy: Line")]
    assert told(dialect, "session.end") == [actions.CallEnded("VoiceAI Connect ended the session")]
    assert not dialect.continuous


def test_resume_and_validate() -> None:
    dialect = AudioCodesDialect()
    assert reply(told(dialect, "connection.validate")[0]) == {"type": "connection.validated", "success": True}
    error, ended = told(dialect, "session.resume")
    assert reply(error) == {"type": "session.error", "conversationId": ID, "reason": "conversation not found"}
    assert isinstance(ended, actions.CallEnded)
    dialect = begun()
    assert told(dialect, "session.resume") == []
    error, violation = told(dialect, "session.resume", conversationId="other")
    assert reply(error)["conversationId"] == "other"
    assert isinstance(violation, actions.Violation)


def test_one_play_stream_at_a_time_and_every_id_once() -> None:
    dialect = begun()
    pcm = bytes(960)
    first = say(dialect, speech(pcm, "a"))
    assert first == [
        {"type": "playStream.start", "streamId": "1", "mediaFormat": "raw/lpcm16_24"},
        {"type": "playStream.chunk", "streamId": "1", "audioChunk": b64(pcm)},
    ]
    assert [m["type"] for m in say(dialect, speech(pcm, "a"))] == ["playStream.chunk"]
    # Another item without an end of the first.
    second = say(dialect, speech(pcm, "b"))
    assert [(m["type"], m["streamId"]) for m in second] == [
        ("playStream.stop", "1"),
        ("playStream.start", "2"),
        ("playStream.chunk", "2"),
    ]
    assert say(dialect, actions.SpeechEnd("a")) == []
    assert say(dialect, actions.SpeechEnd("b")) == [{"type": "playStream.stop", "streamId": "2"}]
    assert say(dialect, actions.SpeechEnd("b")) == []
    assert say(dialect, actions.Clear()) == []
    assert say(dialect, speech(pcm, "b"))[0]["streamId"] == "3"
    assert say(dialect, actions.Clear()) == [{"type": "playStream.stop", "streamId": "3"}]


def test_after_a_resume_the_stream_is_opened_again() -> None:
    dialect = begun()
    say(dialect, speech(bytes(960)))
    dialect.resumed = True
    again = say(dialect, speech(bytes(960)))
    assert [m["streamId"] for m in again] == ["1", "2", "2"]
    assert [m["type"] for m in say(dialect, speech(bytes(960)))] == ["playStream.chunk"]


def test_words_to_voice_ai_connect() -> None:
    dialect = begun(abort_prompts=True)
    assert say(dialect, actions.CallerSpeech("committed")) == [{"type": "userStream.speech.committed"}]
    assert say(dialect, actions.CallerSaid("how", final=False)) == [
        {"type": "userStream.speech.hypothesis", "alternatives": [{"text": "how"}]}
    ]
    assert say(dialect, actions.CallerSaid("How?")) == [
        {"type": "userStream.speech.recognition", "alternatives": [{"text": "How?", "confidence": 1.0}]}
    ]
    assert say(dialect, actions.CallerSaid(" ")) == []
    assert say(dialect, actions.Mark("m")) == []
    assert say(dialect, actions.Clear())[0]["activities"] == [{"type": "event", "name": "abortPrompts"}]
    assert say(dialect, actions.Hangup()) == [
        {"type": "activities", "activities": [{"type": "event", "name": "hangup"}]}
    ]
    say(dialect, speech(bytes(960)))
    assert [m["type"] for m in say(dialect, actions.Hangup("x" * 999))] == ["playStream.stop", "activities"]
    assert say(dialect, actions.Custom("config", {"a": 1}))[0]["activities"][0]["sessionParams"] == {"a": 1}


def test_play_finished_counts_only_when_it_can_be_the_last_one() -> None:
    dialect = begun()
    for item in ("a", "b"):
        say(dialect, speech(bytes(960), item))
        say(dialect, actions.SpeechEnd(item))
    finished = {"type": "event", "name": "playFinished"}
    kinds = [type(one) for one in told(dialect, "activities", activities=[finished, finished])]
    assert kinds == [actions.Activity, actions.PlaybackFinished, actions.Activity]
    say(dialect, speech(bytes(960), "c"))
    assert [type(one) for one in told(dialect, "activities", activities=[finished])] == [actions.Activity]


@pytest.mark.parametrize(
    ("header", "ok"),
    [
        ("Bearer secret", True),
        ("bearer  secret ", True),
        ("Bearer new", True),
        ("Bearer secre", False),
        ("Basic secret", False),
        ("secret", False),
        ("Bearer", False),
        ("Bearer sécret", False),
        ("", False),
        (None, False),
    ],
)
def test_bearer(header: str | None, ok: bool) -> None:
    assert verify_bearer(header, "secret", "new") is ok


def test_nothing_is_verified_without_a_token() -> None:
    for tokens in ((), ("",), ("a", "")):
        with pytest.raises(ValueError, match="needs a token"):
            verify_bearer("Bearer ", *tokens)
