"""Twilio's messages, both ways, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio.request_validator import RequestValidator

from rtpool_sync.bridges import TwilioBridge
from rtpool_sync.bridges.actions import (
    Audio,
    CallEnded,
    CallerSaid,
    CallerSpeech,
    CallStarted,
    Clear,
    Custom,
    Dtmf,
    Hangup,
    Inbound,
    Mark,
    MarkReached,
    Speech,
    SpeechEnd,
    Violation,
)
from rtpool_sync.bridges.twilio import TwilioDialect, verify_signature

START = {
    "event": "start",
    "sequenceNumber": "1",
    "streamSid": "MZ1",
    "start": {
        "streamSid": "MZ1",
        "accountSid": "AC1",
        "callSid": "CA1",
        "tracks": ["inbound"],
        "customParameters": {"tenant": "42", "caller": "+15550100"},
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
    },
}


def decode(dialect: TwilioDialect, message: Any) -> list[Inbound]:
    text = message if isinstance(message, (str, bytes)) else json.dumps(message)
    return list(dialect.decode(text, 0.0))


@pytest.fixture
def dialect() -> TwilioDialect:
    dialect = TwilioDialect()
    assert decode(dialect, {"event": "connected", "protocol": "Call", "version": "1.0.0"}) == []
    decode(dialect, START)
    return dialect


def test_start() -> None:
    (started,) = decode(TwilioDialect(), START)
    assert isinstance(started, CallStarted)
    assert (started.call_id, started.stream_id, started.caller) == ("CA1", "MZ1", "+15550100")
    assert started.parameters == {"tenant": "42", "caller": "+15550100"}
    assert started.details == START


def test_media_passes_untouched(dialect: TwilioDialect) -> None:
    media = {"track": "inbound", "chunk": "2", "timestamp": "45", "payload": "//79/Pv6+Q=="}
    message = {"event": "media", "sequenceNumber": "4", "streamSid": "MZ1", "media": media}
    assert decode(dialect, message) == [Audio("//79/Pv6+Q==", 7, 45.0)]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"event": "dtmf", "dtmf": {"track": "inbound_track", "digit": "1"}}, Dtmf("1")),
        ({"event": "mark", "mark": {"name": "my label"}}, MarkReached("my label")),
        ({"event": "stop", "stop": {"callSid": "CA1"}}, CallEnded("Twilio stopped the stream")),
    ],
)
def test_the_other_messages(dialect: TwilioDialect, message: dict[str, Any], expected: Inbound) -> None:
    assert decode(dialect, {**message, "streamSid": "MZ1", "sequenceNumber": "5"}) == [expected]


@pytest.mark.parametrize(
    "message",
    [
        {"event": "something new", "streamSid": "MZ1"},
        {"event": "media", "streamSid": "MZ1", "media": {"track": "outbound", "payload": "/w=="}},
        {"event": "media", "streamSid": "MZ1", "media": {"track": "inbound", "payload": ""}},
        {"event": "connected"},
    ],
)
def test_what_means_nothing(dialect: TwilioDialect, message: dict[str, Any]) -> None:
    assert decode(dialect, message) == []


@pytest.mark.parametrize(
    "message",
    [
        b"\x00\x01",
        "",
        "nonsense",
        "[]",
        "[" * 100_000,
        "{}",
        {"event": 7},
        {"event": "media", "streamSid": "MZ2", "media": {"payload": "/w=="}},
        {"event": "media", "media": {"payload": "/w=="}},
        {"event": "media", "streamSid": "MZ1"},
        {"event": "media", "streamSid": "MZ1", "media": {"payload": "***"}},
        {"event": "media", "streamSid": "MZ1", "media": {"payload": '/w=="}, "x": "'}},
        {"event": "media", "streamSid": "MZ1", "media": {"payload": None}},
        {"event": "dtmf", "streamSid": "MZ1", "dtmf": {}},
        {"event": "mark", "streamSid": "MZ1"},
        {"event": "stop", "streamSid": "MZ2", "stop": {}},
        START,
    ],
)
def test_violations(dialect: TwilioDialect, message: Any) -> None:
    (violation,) = decode(dialect, message)
    assert isinstance(violation, Violation)


@pytest.mark.parametrize("event", ["media", "dtmf", "mark", "stop"])
def test_nothing_counts_before_the_start(event: str) -> None:
    (violation,) = decode(TwilioDialect(), {"event": event, "streamSid": "MZ1", event: {}})
    assert violation == Violation(f"{event} before start")


@pytest.mark.parametrize(
    "start",
    [
        {"event": "start"},
        {"event": "start", "start": {}},
        {"event": "start", "streamSid": "MZ1", "start": {"mediaFormat": {"encoding": "audio/opus"}}},
    ],
)
def test_starts_that_are_none(start: dict[str, Any]) -> None:
    dialect = TwilioDialect()
    (violation,) = decode(dialect, start)
    assert isinstance(violation, Violation)
    assert isinstance(decode(dialect, START)[0], CallStarted)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.text()
    | st.binary()
    | st.fixed_dictionaries(
        {"event": st.sampled_from(["connected", "start", "media", "mark", "dtmf", "stop"])},
        optional={
            "streamSid": st.just("MZ1") | values,
            "start": st.fixed_dictionaries({}, optional=dict.fromkeys(START["start"], values)) | values,  # type: ignore[call-overload]
            "media": st.fixed_dictionaries(
                {}, optional=dict.fromkeys(("payload", "timestamp", "track"), values)
            ),
            "mark": values,
            "dtmf": values,
            "stop": values,
        },
    )
)
def test_nothing_raises(message: Any) -> None:
    for fresh in (True, False):
        dialect = TwilioDialect()
        if not fresh:
            decode(dialect, START)
        decode(dialect, message)


# -- to Twilio


def encode(dialect: TwilioDialect, action: Any) -> list[dict[str, Any]]:
    return [json.loads(message) for message in dialect.encode(action)]


def test_what_twilio_is_told(dialect: TwilioDialect) -> None:
    assert encode(dialect, Speech("//8=", 2, "item_1")) == [
        {"event": "media", "streamSid": "MZ1", "media": {"payload": "//8="}}
    ]
    assert encode(dialect, Mark("rt0-1")) == [
        {"event": "mark", "streamSid": "MZ1", "mark": {"name": "rt0-1"}}
    ]
    assert encode(dialect, Clear()) == [{"event": "clear", "streamSid": "MZ1"}]


@pytest.mark.parametrize(
    "action",
    [
        SpeechEnd("item_1"),
        CallerSpeech("started"),
        CallerSaid("hello"),
        Hangup("bye"),
        Custom("transfer", {}),
    ],
)
def test_what_twilio_has_no_word_for(dialect: TwilioDialect, action: Any) -> None:
    assert encode(dialect, action) == []


def test_nothing_is_said_before_the_start() -> None:
    assert encode(TwilioDialect(), Clear()) == []


def test_the_session_speaks_mu_law_both_ways() -> None:
    settings = TwilioBridge.session(
        instructions="Be brief.",
        audio={"input": {"turn_detection": {"type": "server_vad"}}, "output": {"voice": "marin"}},
    )
    assert settings == {
        "instructions": "Be brief.",
        "output_modalities": ["audio"],
        "audio": {
            "input": {"format": {"type": "audio/pcmu"}, "turn_detection": {"type": "server_vad"}},
            "output": {"format": {"type": "audio/pcmu"}, "voice": "marin"},
        },
    }


def test_signatures_are_those_of_twilios_own_package() -> None:
    url, token = "wss://voice.example.com/stream", "12345"
    signature = RequestValidator(token).compute_signature(url, {})
    assert verify_signature(url, token, signature)
    assert RequestValidator(token).validate(url, {}, signature)
    for wrong in (url + "/", url.replace("wss", "https"), "wss://evil.example.com/stream"):
        assert not verify_signature(wrong, token, signature)
    assert not verify_signature(url, "other", signature)
    for header in (None, "", "x", "ü", signature[:-1]):
        assert not verify_signature(url, token, header)
    with pytest.raises(ValueError, match="auth token"):
        verify_signature(url, "", signature)


def test_signatures_of_webhooks() -> None:
    url, form = "https://voice.example.com/incoming", {"To": "+1", "CallSid": "CA1", "From": "+2"}
    signature = RequestValidator("12345").compute_signature(url, form)
    assert verify_signature(url, "12345", signature, form)
    assert not verify_signature(url, "12345", signature, {**form, "From": "+3"})
    assert not verify_signature(url, "12345", signature)


@pytest.mark.parametrize("timestamp", ["nan", "inf", "-inf", "x", "", None, [], 10**400])
def test_timestamps_that_are_none(dialect: TwilioDialect, timestamp: Any) -> None:
    media = {"track": "inbound", "timestamp": timestamp, "payload": "/////w=="}
    (audio,) = dialect.decode(json.dumps({"event": "media", "streamSid": "MZ1", "media": media}), 0.0)
    assert isinstance(audio, Audio)
    assert audio.at_ms is None
