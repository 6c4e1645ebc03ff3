"""The session of the embedded server: protocol only, no sockets, a clock of our own."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from realtime_types import Event, message, validate_client_event, validate_server_event

from rtpool_sync.emulator.audio import FORMATS, fingerprint, tone
from rtpool_sync.emulator.response import Pace
from rtpool_sync.emulator.session import MAX_APPEND, Session

TEXT = {"type": "realtime", "output_modalities": ["text"]}
SILENCE = bytes(48)  # a millisecond of it


class Driver:
    """Feeds a session and takes out its events, each checked."""

    def __init__(self, model: str = "gpt-realtime-2.1", kind: str = "realtime", **pace: Any) -> None:
        pace = {"response": 0.0, **pace}
        self.session = Session(model=model, expires_at=1e9, kind=kind, pace=Pace(**pace))
        self.now = 0.0
        self.session.start(self.now)
        self.created = self.take()[0]

    def take(self) -> list[Event]:
        events = self.session.outgoing()
        for event in events:
            validate_server_event(event)
        return events

    def __call__(self, type_: str, **fields: Any) -> list[Event]:
        event = {"type": type_, **fields}
        validate_client_event(event)
        return self.raw(event)

    def raw(self, event: Any) -> list[Event]:
        self.session.feed(event if isinstance(event, str) else json.dumps(event), self.now)
        return self.take()

    def refused(self, event: Any) -> Event:
        """Send what must be answered with one error and nothing else."""
        (answer,) = self.raw(event)
        assert answer["type"] == "error"
        assert answer["error"]["type"] == "invalid_request_error"
        return answer["error"]  # type: ignore[no-any-return]

    def wait(self, seconds: float) -> list[Event]:
        """Let time pass, step by step as a loop would."""
        end = self.now + seconds
        events = []
        while self.session.wake_at is not None and self.session.wake_at <= end:
            self.now = max(self.now, self.session.wake_at)
            self.session.tick(self.now)
            events += self.take()
        self.now = end
        return events

    def say(self, text: str, **fields: Any) -> list[Event]:
        """One text turn of the default conversation."""
        self("conversation.item.create", item=message(text))
        return self("response.create", **fields) + self.wait(5)

    def append(self, audio: bytes) -> list[Event]:
        return self("input_audio_buffer.append", audio=base64.b64encode(audio).decode())

    def turn(self, audio: bytes) -> list[Event]:
        """Commit audio by hand."""
        return self.append(audio) + self("input_audio_buffer.commit")

    def update(self, **session: Any) -> list[Event]:
        return self("session.update", session={"type": "realtime", **session})


@pytest.fixture
def drive() -> Driver:
    return Driver()


@pytest.fixture
def texting() -> Driver:
    driver = Driver()
    driver("session.update", session=TEXT)
    return driver


def types(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


def only(events: list[Event], type_: str) -> Event:
    (event,) = [event for event in events if event["type"] == type_]
    return event


def answer(events: list[Event]) -> str:
    return only(events, "response.output_text.done")["text"]  # type: ignore[no-any-return]


def speech(seconds: float, seed: int = 1) -> bytes:
    """Loud noise: speech as far as a loudness detector is concerned."""
    noise = random.Random(seed)
    step = b"".join(noise.randint(-9000, 9000).to_bytes(2, "little", signed=True) for _ in range(2400))
    return step * round(seconds * 10)


# -- the configuration


def test_a_session_starts_as_the_service_does(drive: Driver) -> None:
    assert drive.created["type"] == "session.created"
    session = drive.created["session"]
    assert session.pop("id") == drive.session.id
    assert session == {
        "type": "realtime",
        "object": "realtime.session",
        "model": "gpt-realtime-2.1",
        "output_modalities": ["audio"],
        "instructions": "",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.5,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 200,
                    "idle_timeout_ms": None,
                    "create_response": True,
                    "interrupt_response": True,
                },
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "alloy", "speed": 1.0},
        },
        "max_output_tokens": "inf",
        "truncation": "auto",
        "tools": [],
        "tool_choice": "auto",
        "tracing": None,
        "prompt": None,
        "expires_at": 1_000_000_000,
    }


def test_ids_are_unique() -> None:
    ids = {event["event_id"] for _ in range(20) for event in [Driver().created]}
    assert len(ids) == 20


def test_update_changes_what_is_named_and_shows_everything(drive: Driver) -> None:
    (updated,) = drive(
        "session.update",
        event_id="mine",
        session={
            "type": "realtime",
            "instructions": "Be brief.",
            "audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 0.9}}},
        },
    )
    assert updated["type"] == "session.updated"
    assert updated["event_id"] != "mine"
    expected = json.loads(json.dumps(drive.created["session"]))
    expected["instructions"] = "Be brief."
    expected["audio"]["input"]["turn_detection"]["threshold"] = 0.9
    assert updated["session"] == expected


def test_events_show_the_moment_they_were_sent(drive: Driver) -> None:
    (first,) = drive.update(audio={"output": {"speed": 1.25}})
    drive.update(audio={"output": {"speed": 1.0}, "input": {"turn_detection": None}})
    assert first["session"]["audio"]["output"]["speed"] == 1.25
    assert first["session"]["audio"]["input"]["turn_detection"] is not None


def test_null_clears(drive: Driver) -> None:
    drive.update(
        audio={"input": {"noise_reduction": {"type": "near_field"}, "transcription": {"model": "whisper-1"}}},
        tools=[{"type": "function", "name": "look", "parameters": {}}],
        instructions="x",
    )
    (updated,) = drive.update(
        audio={"input": {"noise_reduction": None, "transcription": None, "turn_detection": None}},
        tools=[],
        instructions="",
    )
    session = updated["session"]
    assert session["audio"]["input"]["turn_detection"] is None
    session["audio"]["input"]["turn_detection"] = drive.created["session"]["audio"]["input"]["turn_detection"]
    assert session == drive.created["session"]


def test_another_kind_of_vad_starts_from_its_defaults(drive: Driver) -> None:
    (updated,) = drive.update(
        audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}}
    )
    assert updated["session"]["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": "low",
        "create_response": True,
        "interrupt_response": True,
    }
    (updated,) = drive.update(audio={"input": {"turn_detection": {"type": "server_vad"}}})
    start = drive.created["session"]["audio"]["input"]["turn_detection"]
    assert updated["session"]["audio"]["input"]["turn_detection"] == start


def test_the_snapshot_of_the_start_restores_everything(drive: Driver) -> None:
    drive.update(
        instructions="x",
        output_modalities=["text"],
        max_output_tokens=10,
        truncation="disabled",
        tool_choice="none",
        tools=[{"type": "function", "name": "f"}],
        audio={
            "input": {"format": {"type": "audio/pcmu"}, "turn_detection": {"type": "semantic_vad"}},
            "output": {"format": {"type": "audio/pcma"}, "voice": "marin", "speed": 1.5},
        },
    )
    snapshot = drive.created["session"]
    mutable = {key: snapshot[key] for key in snapshot if key not in ("id", "object", "expires_at")}
    (updated,) = drive("session.update", session=mutable)
    assert updated["session"] == snapshot


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({}, "missing_required_parameter", "session.type"),
        ({"type": "transcription"}, "invalid_value", "session.type"),
        ({"type": "nonsense"}, "invalid_value", "session.type"),
        ({"type": "realtime", "temperature": 0.8}, "unknown_parameter", "session.temperature"),
        ({"type": "realtime", "id": "sess_1"}, "unknown_parameter", "session.id"),
        (
            {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", "x": 1}}}},
            "unknown_parameter",
            "session.audio.input.turn_detection.x",
        ),
        ({"type": "realtime", "instructions": 7}, "invalid_value", "session.instructions"),
        ({"type": "realtime", "instructions": None}, "invalid_value", "session.instructions"),
        ({"type": "realtime", "model": "gpt-realtime"}, "invalid_value", "session.model"),
        (
            {"type": "realtime", "output_modalities": ["text", "audio"]},
            "invalid_value",
            "session.output_modalities",
        ),
        ({"type": "realtime", "max_output_tokens": 5000}, "invalid_value", "session.max_output_tokens"),
        ({"type": "realtime", "max_output_tokens": True}, "invalid_value", "session.max_output_tokens"),
        ({"type": "realtime", "tools": [{"type": "x"}]}, "invalid_value", "session.tools[0].type"),
        (
            {"type": "realtime", "tools": [{"type": "function"}]},
            "missing_required_parameter",
            "session.tools[0].name",
        ),
        (
            {"type": "realtime", "audio": {"output": {"voice": "darth"}}},
            "invalid_value",
            "session.audio.output.voice",
        ),
        (
            {"type": "realtime", "audio": {"output": {"speed": 9}}},
            "invalid_value",
            "session.audio.output.speed",
        ),
        (
            {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            {"type": "realtime", "audio": {"input": {"format": "pcm16"}}},
            "invalid_value",
            "session.audio.input.format",
        ),
        ({"type": "realtime", "truncation": {"type": "x"}}, "invalid_value", "session.truncation.type"),
        ([], "invalid_value", "session"),
    ],
)
def test_a_bad_update_is_refused_as_a_whole(drive: Driver, change: Any, code: str, param: str) -> None:
    if isinstance(change, dict):
        change = {"truncation": "disabled", **change}
    error = drive.refused({"type": "session.update", "event_id": "mine", "session": change})
    assert (error["code"], error["param"], error["event_id"]) == (code, param, None)
    (updated,) = drive.update()
    assert updated["session"] == drive.created["session"]


def test_tracing_stays_as_it_was_once_enabled(drive: Driver) -> None:
    drive.update(tracing="auto")
    assert drive.refused({"type": "session.update", "session": {"type": "realtime", "tracing": None}})
    (updated,) = drive.update(tracing="auto", instructions="x")
    assert updated["session"]["tracing"] == "auto"


def test_the_voice_is_locked_by_audio(drive: Driver) -> None:
    drive.update(audio={"output": {"voice": "marin"}})
    drive.say("hello")
    change = {"type": "realtime", "instructions": "x", "audio": {"output": {"voice": "alloy"}}}
    error = drive.refused({"type": "session.update", "session": change})
    assert error["code"] == "cannot_update_voice"
    assert error["message"] == "Cannot update a conversation's voice if assistant audio is present."
    (updated,) = drive.update(audio={"output": {"voice": "marin"}})
    assert updated["session"]["instructions"] == ""
    voice = {"audio": {"output": {"voice": "cedar"}}}
    assert drive.refused({"type": "response.create", "response": voice})["code"] == "cannot_update_voice"


def test_speed_changes_between_turns_only() -> None:
    drive = Driver(response=1.0)
    drive("response.create")
    change = {"type": "realtime", "audio": {"output": {"speed": 1.25}}}
    error = drive.refused({"type": "session.update", "session": change})
    assert error["param"] == "session.audio.output.speed"
    drive.wait(2)
    assert types(drive("session.update", session=change)) == ["session.updated"]


def test_reasoning_is_for_models_that_reason() -> None:
    change = {"type": "realtime", "reasoning": {"effort": "low"}, "parallel_tool_calls": False}
    (updated,) = Driver()("session.update", session=change)
    assert updated["session"]["reasoning"] == {"effort": "low"}
    error = Driver(model="gpt-realtime-1.5").refused({"type": "session.update", "session": change})
    assert error["param"] == "session.reasoning"
    assert error["event_id"] is None


# -- what is no event


def test_what_is_no_event_is_answered_without_its_id(drive: Driver) -> None:
    cases: list[tuple[Any, str, str | None]] = [
        ("{", "invalid_json", None),
        ("[1]", "invalid_json", None),
        ("[" * 100_000, "invalid_json", None),
        ({"event_id": "e"}, "missing_required_parameter", "type"),
        ({"type": "nope", "event_id": "e"}, "invalid_value", "type"),
        ({"type": ["nope"], "event_id": "e"}, "invalid_value", "type"),
        ({"type": "input_audio_buffer.clear", "event_id": "e", "x": 1}, "unknown_parameter", "x"),
        ({"type": "conversation.item.delete", "event_id": "e"}, "missing_required_parameter", "item_id"),
        ({"type": "output_audio_buffer.clear", "event_id": "e"}, "invalid_event", "type"),
    ]
    for event, code, param in cases:
        error = drive.refused(event)
        assert (error["code"], error["param"], error["event_id"]) == (code, param, None)
    drive.session.feed_binary(0.0)
    assert drive.take()[0]["error"]["code"] == "invalid_event"


JUNK: list[Any] = [
    None,
    True,
    -1,
    1.5,
    10**30,
    "",
    "x",
    [],
    ["x"],
    {},
    {"type": "x"},
    {"type": {}},
    {"id": 1},
]
WELL_FORMED: list[Event] = [
    {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "output_modalities": ["text"],
            "max_output_tokens": "inf",
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
            "tool_choice": "auto",
            "truncation": {"type": "retention_ratio", "retention_ratio": 0.5},
            "tracing": {"workflow_name": "x"},
            "prompt": {"id": "x", "variables": {}},
            "include": ["item.input_audio_transcription.logprobs"],
            "reasoning": {"effort": "low"},
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "noise_reduction": {"type": "near_field"},
                    "transcription": {"model": "whisper-1", "language": "en"},
                    "turn_detection": {"type": "server_vad", "threshold": 0.5, "idle_timeout_ms": None},
                },
                "output": {"format": {"type": "audio/pcmu"}, "voice": {"id": "x"}, "speed": 1.0},
            },
        },
    },
    {"type": "conversation.item.create", "item": message("x"), "previous_item_id": "root"},
    {
        "type": "conversation.item.create",
        "item": {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_audio", "audio": "AAAA", "transcript": "x"}],
        },
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "mcp_approval_response", "id": "m", "approval_request_id": "r", "approve": True},
    },
    {"type": "conversation.item.delete", "item_id": "x"},
    {"type": "conversation.item.retrieve", "item_id": "x"},
    {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 0},
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
    {"type": "input_audio_buffer.commit"},
    {
        "type": "response.create",
        "response": {
            "conversation": "none",
            "metadata": {"k": "v"},
            "input": [message("recite"), {"type": "item_reference", "id": "x"}],
            "instructions": "x",
            "tools": [{"type": "function", "name": "f"}],
            "tool_choice": {"type": "function", "name": "f"},
            "output_modalities": ["text"],
            "max_output_tokens": 3,
            "audio": {"output": {"voice": "marin", "format": {"type": "audio/pcm"}}},
        },
    },
    {"type": "response.cancel", "response_id": "x"},
]


def spoilt(event: Any) -> Iterator[Any]:
    """Every variant of ``event`` with one value replaced by junk, left out, or one added."""
    yield from JUNK
    if isinstance(event, dict):
        yield {**event, "surplus": 1}
        for key in event:
            yield {other: event[other] for other in event if other != key}
            for variant in spoilt(event[key]):
                yield {**event, key: variant}
    elif isinstance(event, list):
        for index in range(len(event)):
            for variant in spoilt(event[index]):
                yield [*event[:index], variant, *event[index + 1 :]]


@pytest.mark.parametrize("event", WELL_FORMED, ids=lambda event: event["type"])
def test_no_junk_breaks_a_session(event: Event) -> None:
    """Whatever is sent is answered, by events the openai package's types accept."""
    drive = Driver()
    for variant in spoilt(event):
        assert isinstance(drive.raw(variant), list)
    drive.wait(10)
    (answer,) = drive("session.update", session=TEXT)
    assert answer["type"] == "session.updated"


# -- items


def create(drive: Driver, text: str, item_id: str | None = None, after: str | None = None) -> Event:
    fields: Event = {"item": message(text, **({"id": item_id} if item_id else {}))}
    if after:
        fields["previous_item_id"] = after
    added, done = drive("conversation.item.create", **fields)
    assert (added["type"], done["type"]) == ("conversation.item.added", "conversation.item.done")
    assert {**added, "type": 0, "event_id": 0} == {**done, "type": 0, "event_id": 0}
    return added


def test_items_are_added_in_order(drive: Driver) -> None:
    first = create(drive, "one", "item_a")
    assert first["previous_item_id"] is None
    assert first["item"] == {
        "id": "item_a",
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_text", "text": "one"}],
    }
    second = create(drive, "three")
    assert second["previous_item_id"] == "item_a"
    assert create(drive, "two", after="item_a")["previous_item_id"] == "item_a"
    assert create(drive, "zero", after="root")["previous_item_id"] is None
    assert [item.heard for item in drive.session.conversation.items()] == ["zero", "one", "two", "three"]


def test_item_errors_name_the_event_but_for_duplicates(drive: Driver) -> None:
    create(drive, "one", "item_a")
    cases: list[tuple[Event, str, str | None]] = [
        (
            {"type": "conversation.item.create", "item": message("x", id="item_a")},
            "item_create_duplicate_item_id",
            None,
        ),
        (
            {"type": "conversation.item.create", "item": message("x"), "previous_item_id": "gone"},
            "item_create_invalid_previous_item_id",
            "mine",
        ),
        ({"type": "conversation.item.delete", "item_id": "gone"}, "item_delete_invalid_item_id", "mine"),
        ({"type": "conversation.item.retrieve", "item_id": "gone"}, "item_retrieve_invalid_item_id", "mine"),
        (
            {
                "type": "conversation.item.truncate",
                "item_id": "gone",
                "content_index": 0,
                "audio_end_ms": 0,
            },
            "item_truncate_invalid_item_id",
            None,
        ),
        (
            {
                "type": "conversation.item.create",
                "item": {"type": "function_call_output", "call_id": "call_x", "output": "1"},
            },
            "invalid_tool_call_id",
            None,
        ),
    ]
    for event, code, echoed in cases:
        error = drive.refused({**event, "event_id": "mine"})
        assert (error["code"], error["event_id"]) == (code, echoed)
    assert len(drive.session.conversation) == 1


def test_delete_and_retrieve(drive: Driver) -> None:
    create(drive, "one", "item_a")
    (retrieved,) = drive("conversation.item.retrieve", item_id="item_a")
    assert retrieved["item"]["content"] == [{"type": "input_text", "text": "one"}]
    (deleted,) = drive("conversation.item.delete", item_id="item_a")
    assert (deleted["type"], deleted["item_id"]) == ("conversation.item.deleted", "item_a")
    gone = drive.refused({"type": "conversation.item.retrieve", "item_id": "item_a"})
    assert gone["code"] == "item_retrieve_invalid_item_id"


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        ({}, "missing_required_parameter", "item.type"),
        ({"type": "x"}, "invalid_value", "item.type"),
        ({"type": "message", "content": []}, "missing_required_parameter", "item.role"),
        ({"type": "message", "role": "user"}, "missing_required_parameter", "item.content"),
        ({"type": "message", "role": "tool", "content": []}, "invalid_value", "item.role"),
        (
            {"type": "message", "role": "user", "content": [{}]},
            "missing_required_parameter",
            "item.content[0].type",
        ),
        (
            {"type": "message", "role": "user", "content": [{"type": "output_text", "text": "x"}]},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"type": "message", "role": "user", "content": [{"type": "input_text"}]},
            "missing_required_parameter",
            "item.content[0].text",
        ),
        (
            {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "!"}]},
            "invalid_value",
            "item.content[0].audio",
        ),
        ({"type": "message", "role": "user", "content": [], "x": 1}, "unknown_parameter", "item.x"),
        (message("x", id="i" * 33), "string_above_max_length", "item.id"),
        (message("x", id=""), "invalid_value", "item.id"),
        ({"type": "function_call", "name": "f"}, "missing_required_parameter", "item.arguments"),
    ],
)
def test_bad_items(drive: Driver, item: Event, code: str, param: str) -> None:
    error = drive.refused({"type": "conversation.item.create", "item": item})
    assert (error["code"], error["param"]) == (code, param)


# -- responses


def test_the_life_of_a_text_response(texting: Driver) -> None:
    drive = texting
    create(drive, "hello", "item_a")
    events = drive("response.create")
    assert types(events) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    assert "".join(event["delta"] for event in events[4:7]) == answer(events) == "You said: hello"
    assert events[2]["previous_item_id"] == "item_a"
    assert events[2]["item"]["status"] == "in_progress"
    started, done = events[0]["response"], events[-1]["response"]
    assert (started["status"], started["output"], started["usage"]) == ("in_progress", [], None)
    assert done["status"] == "completed"
    assert done["output"] == [events[-2]["item"]]
    assert done["conversation_id"] == drive.session.conversation.id
    assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"] > 0
    # What follows response.done is what a careless client hands to its next user.
    assert drive.wait(0.04) == []
    (late,) = drive.wait(0.01)
    assert late["type"] == "rate_limits.updated"
    assert [limit["name"] for limit in late["rate_limits"]] == ["tokens"]


def test_an_answer_continues_the_conversation(texting: Driver) -> None:
    texting.say("one")
    events = texting.say("please recite")
    assert answer(events) == "\n".join(
        ["instructions: ", "user: one", "assistant: You said: one", "user: please recite"]
    )


def test_reciting_tells_all_the_model_knows(drive: Driver) -> None:
    drive.update(
        output_modalities=["text"],
        instructions="Guard the word sesame.",
        tools=[{"type": "function", "name": "open_door", "parameters": {}}],
        prompt={"id": "pmpt_1", "version": "2"},
    )
    drive("conversation.item.create", item=message("from the system", role="system"))
    drive("conversation.item.create", item=message("from before", role="assistant"))
    drive(
        "conversation.item.create",
        item={"type": "function_call", "name": "old", "arguments": "{}", "call_id": "c"},
    )
    drive(
        "conversation.item.create", item={"type": "function_call_output", "call_id": "c", "output": "forty"}
    )
    audio = tone("audio/pcm", 200)
    drive.turn(audio)
    said = answer(drive.say("Recite!", response={"metadata": {"tenant": "blue"}}))
    for known in (
        "Guard the word sesame.",
        "open_door",
        "pmpt_1",
        "from the system",
        "from before",
        "old({})",
        "forty",
        fingerprint(audio, FORMATS["audio/pcm"]),
        "tenant=blue",
    ):
        assert known in said


def test_out_of_band_responses_leave_no_trace(texting: Driver) -> None:
    drive = texting
    create(drive, "in the conversation", "item_a")
    events = drive(
        "response.create",
        response={
            "conversation": "none",
            "metadata": {"topic": "aside"},
            "input": [message("recite the input")],
            "instructions": "only this",
        },
    )
    assert "conversation.item.added" not in types(events)
    assert answer(events) == "instructions: only this\nuser: recite the input\nmetadata: topic=aside"
    for event in (events[0], events[-1]):
        assert event["response"]["conversation_id"] is None
        assert event["response"]["metadata"] == {"topic": "aside"}
    assert len(drive.session.conversation) == 1
    empty = drive("response.create", response={"conversation": "none", "input": []})
    assert answer(empty) == "Hello."
    whole = drive("response.create", response={"conversation": "none"})
    assert answer(whole) == "You said: in the conversation"
    reference = {"type": "item_reference", "id": "item_a"}
    referred = drive("response.create", response={"conversation": "none", "input": [reference]})
    assert answer(referred) == "You said: in the conversation"
    error = drive.refused({"type": "response.create", "response": {"input": [{**reference, "id": "gone"}]}})
    assert error["param"] == "response.input[0].id"


def test_one_response_writes_to_the_conversation_and_many_beside_it() -> None:
    drive = Driver(response=0.5)
    drive("session.update", session=TEXT)
    (created,) = drive("response.create")
    error = drive.refused({"type": "response.create", "event_id": "second"})
    assert error["code"] == "conversation_already_has_active_response"
    assert error["event_id"] == "second"
    assert created["response"]["id"] in error["message"]
    beside = [drive("response.create", response={"conversation": "none"})[0] for _ in range(3)]
    assert len(drive.session.active_responses) == 4
    done = [event["response"]["id"] for event in drive.wait(1) if event["type"] == "response.done"]
    assert done == [event["response"]["id"] for event in (created, *beside)]


def test_cancel() -> None:
    drive = Driver(delta=0.1)
    drive("session.update", session=TEXT)
    assert drive.refused({"type": "response.cancel"})["code"] == "response_cancel_not_active"
    create(drive, "a b c d e f")
    begun = drive("response.create") + drive.wait(0.25)
    assert types(begun)[-1] == "response.output_text.delta"
    events = drive("response.cancel")
    assert types(events) == [
        "response.output_text.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    response = events[-1]["response"]
    assert response["status"] == "cancelled"
    assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert response["output"][0]["status"] == "incomplete"
    assert answer(events) == "You said: a"
    assert drive.refused({"type": "response.cancel"})["code"] == "response_cancel_not_active"
    assert types(drive.wait(5)) == ["rate_limits.updated"]
    # What was said remains in the conversation.
    assert len(drive.session.conversation) == 2


def test_cancel_before_any_output() -> None:
    drive = Driver(response=0.5)
    (created,) = drive("response.create")
    (done,) = drive("response.cancel", response_id=created["response"]["id"])
    assert done["response"]["output"] == []
    assert types(drive.wait(5)) == ["rate_limits.updated"]


def test_cancel_by_id_is_needed_beside_the_conversation() -> None:
    drive = Driver(response=0.5)
    (created,) = drive("response.create", response={"conversation": "none"})
    assert drive.refused({"type": "response.cancel"})["code"] == "response_cancel_not_active"
    (done,) = drive("response.cancel", response_id=created["response"]["id"])
    assert done["response"]["status"] == "cancelled"
    error = drive.refused({"type": "response.cancel", "response_id": created["response"]["id"]})
    assert error["code"] == "response_cancel_not_active"


def test_a_response_not_yet_created_cannot_be_cancelled_and_comes_anyway() -> None:
    drive = Driver(created=0.2)
    drive("session.update", session=TEXT)
    assert drive("response.create") == []
    assert drive.refused({"type": "response.cancel"})["code"] == "response_cancel_not_active"
    error = drive.refused({"type": "response.create"})
    assert error["code"] == "conversation_already_has_active_response"
    events = drive.wait(1)
    assert types(events)[0] == "response.created"
    assert only(events, "response.done")["response"]["status"] == "completed"


def test_an_item_deleted_while_it_is_made_does_not_come_back() -> None:
    drive = Driver(delta=0.1)
    drive("session.update", session=TEXT)
    added = only(drive("response.create"), "conversation.item.added")
    drive("conversation.item.delete", item_id=added["item"]["id"])
    rest = drive.wait(5)
    assert "conversation.item.done" not in types(rest)
    assert "response.done" in types(rest)
    assert len(drive.session.conversation) == 0


def test_output_can_be_too_long(texting: Driver) -> None:
    events = texting.say("one two three four", response={"max_output_tokens": 3})
    assert answer(events) == "You said: one"
    response = only(events, "response.done")["response"]
    assert (response["status"], response["status_details"]["reason"]) == ("incomplete", "max_output_tokens")


def test_tools_are_called(texting: Driver) -> None:
    drive = texting
    drive.update(tools=[{"type": "function", "name": "weather", "parameters": {"type": "object"}}])
    events = drive.say('call tool weather with {"city": "Oslo"}')
    assert types(events)[:3] == ["response.created", "response.output_item.added", "conversation.item.added"]
    done = only(events, "response.function_call_arguments.done")
    assert done["arguments"] == '{"city": "Oslo"}'
    deltas = [e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == done["arguments"]
    (item,) = only(events, "response.done")["response"]["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "weather", "completed")
    assert item["call_id"] == done["call_id"]
    drive(
        "conversation.item.create",
        item={"type": "function_call_output", "call_id": item["call_id"], "output": "rain"},
    )
    assert answer(drive("response.create")) == "The tool said: rain"


@pytest.mark.parametrize(
    ("choice", "text", "called"),
    [
        ("auto", "call tool weather", "weather"),
        ("auto", "call tool nothing", None),
        ("none", "call tool weather", None),
        ("required", "hello", "clock"),
        ({"type": "function", "name": "weather"}, "hello", "weather"),
    ],
)
def test_tool_choice(texting: Driver, choice: Any, text: str, called: str | None) -> None:
    tools = [{"type": "function", "name": name} for name in ("clock", "weather")]
    events = texting.say(text, response={"tools": tools, "tool_choice": choice})
    (item,) = only(events, "response.done")["response"]["output"]
    assert item.get("name") == called


def test_a_tool_that_has_to_be_called_is_called_after_another_ones_output(texting: Driver) -> None:
    drive = texting
    drive.update(tools=[{"type": "function", "name": name} for name in ("weather", "clock")])
    (item,) = only(drive.say("call tool weather"), "response.done")["response"]["output"]
    output = {"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}
    drive("conversation.item.create", item=output)
    events = drive("response.create", response={"tool_choice": {"type": "function", "name": "clock"}})
    (item,) = only(events, "response.done")["response"]["output"]
    assert item.get("name") == "clock"


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"model": "x"}, "unknown_parameter", "response.model"),
        ({"conversation": "conv_1"}, "invalid_value", "response.conversation"),
        ({"metadata": {"k": 1}}, "invalid_value", "response.metadata.k"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_value", "response.metadata"),
        ({"metadata": {"k": "x" * 513}}, "invalid_value", "response.metadata.k"),
        ({"max_output_tokens": 0}, "invalid_value", "response.max_output_tokens"),
        ({"input": [{"type": "message"}]}, "missing_required_parameter", "response.input[0].role"),
        ("x", "invalid_value", "response"),
    ],
)
def test_bad_responses(drive: Driver, asked: Any, code: str, param: str) -> None:
    error = drive.refused({"type": "response.create", "response": asked})
    assert (error["code"], error["param"]) == (code, param)
    assert drive.session.active_responses == []


# -- audio


def test_the_life_of_an_audio_response(drive: Driver) -> None:
    drive.update(audio={"input": {"turn_detection": None}})
    audio = speech(0.5)
    committed, added, done = drive.turn(audio)
    assert committed["type"] == "input_audio_buffer.committed"
    assert committed["item_id"] == added["item"]["id"]
    assert added["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    assert done["type"] == "conversation.item.done"
    events = drive("response.create")
    assert types(events) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        *["response.output_audio_transcript.delta", "response.output_audio.delta"] * 3,
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_audio.delta"]
    # The caller hears himself.
    assert b"".join(map(base64.b64decode, deltas)) == audio
    transcript = only(events, "response.output_audio_transcript.done")["transcript"]
    assert transcript == f"You said: {fingerprint(audio, FORMATS['audio/pcm'])}"
    pieces = [e["delta"] for e in events if e["type"] == "response.output_audio_transcript.delta"]
    assert "".join(pieces) == transcript
    usage = only(events, "response.done")["response"]["usage"]
    assert usage["input_token_details"]["audio_tokens"] == 5
    assert usage["output_token_details"]["audio_tokens"] == 10
    (retrieved,) = drive("conversation.item.retrieve", item_id=committed["item_id"])
    assert base64.b64decode(retrieved["item"]["content"][0]["audio"]) == audio


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_audio_in_every_format(source: str, target: str) -> None:
    drive = Driver()
    drive.update(
        audio={
            "input": {"turn_detection": None, "format": {"type": source}},
            "output": {"format": {"type": target}},
        }
    )
    drive.turn(tone(source, 300))
    events = drive("response.create")
    deltas = [event["delta"] for event in events if event["type"] == "response.output_audio.delta"]
    heard = b"".join(map(base64.b64decode, deltas))
    assert FORMATS[target].milliseconds(len(heard)) == pytest.approx(300, abs=1)
    assert FORMATS[target].level(heard) == pytest.approx(6000 / 2**0.5, rel=0.1)


def test_without_a_caller_it_is_a_tone(drive: Driver) -> None:
    events = drive.say("hello")
    deltas = [event["delta"] for event in events if event["type"] == "response.output_audio.delta"]
    assert b"".join(map(base64.b64decode, deltas)) == tone("audio/pcm", 400)


def test_audio_at_the_speed_of_sound() -> None:
    drive = Driver(realtime=True, audio_chunk_ms=100)
    drive.update(audio={"input": {"turn_detection": None}})
    drive.turn(speech(1.0))
    events = drive("response.create")
    assert types(events).count("response.output_audio.delta") == 1
    assert types(drive.wait(0.45)).count("response.output_audio.delta") == 4
    done = only(drive("response.cancel"), "response.done")
    assert done["response"]["status"] == "cancelled"


def test_commit_needs_a_tenth_of_a_second(drive: Driver) -> None:
    drive.append(SILENCE * 99)
    error = drive.refused({"type": "input_audio_buffer.commit", "event_id": "mine"})
    assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
    assert "99.00ms" in error["message"]
    drive.append(SILENCE)
    assert types(drive("input_audio_buffer.commit"))[0] == "input_audio_buffer.committed"
    drive.append(SILENCE * 200)
    assert types(drive("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert drive.refused({"type": "input_audio_buffer.commit"})["code"] == "input_audio_buffer_commit_empty"


def test_bad_audio(drive: Driver) -> None:
    error = drive.refused({"type": "input_audio_buffer.append", "audio": "no base64!"})
    assert (error["code"], error["param"]) == ("invalid_value", "audio")
    too_long = base64.b64encode(bytes(MAX_APPEND + 3)).decode()
    assert drive.refused({"type": "input_audio_buffer.append", "audio": too_long})["param"] == "audio"
    assert drive.append(bytes(MAX_APPEND)) == []


def test_transcription_comes_late_and_even_for_a_deleted_item(drive: Driver) -> None:
    drive.update(
        audio={"input": {"turn_detection": None, "transcription": {"model": "gpt-4o-transcribe"}}},
        output_modalities=["text"],
    )
    audio = speech(0.2)
    committed = drive.turn(audio)[0]
    assert "response.done" in types(drive("response.create"))
    drive("conversation.item.delete", item_id=committed["item_id"])
    events = drive.wait(0.06)
    assert types(events) == [
        "rate_limits.updated",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
    ]
    assert events[-1]["item_id"] == committed["item_id"]
    assert events[-1]["transcript"] == fingerprint(audio, FORMATS["audio/pcm"])
    assert events[-1]["usage"]["type"] == "tokens"


def test_whisper_is_billed_by_duration(drive: Driver) -> None:
    drive.update(audio={"input": {"turn_detection": None, "transcription": {"model": "whisper-1"}}})
    drive.turn(speech(0.5))
    assert drive.wait(1)[-1]["usage"] == {"type": "duration", "seconds": 0.5}


def test_truncate(drive: Driver) -> None:
    drive.update(audio={"input": {"turn_detection": None}})
    drive.turn(speech(0.5))
    item_id = only(drive("response.create"), "conversation.item.added")["item"]["id"]
    fields: Event = {"item_id": item_id, "content_index": 0}
    truncate = {"type": "conversation.item.truncate", **fields}
    error = drive.refused({**truncate, "audio_end_ms": 501})
    assert error["message"] == "Audio content of 500ms is already shorter than 501ms."
    assert drive.refused({**truncate, "audio_end_ms": -1})["param"] == "audio_end_ms"
    assert drive.refused({**truncate, "content_index": 1, "audio_end_ms": 1})["param"] == "item_id"
    (truncated,) = drive("conversation.item.truncate", **fields, audio_end_ms=100)
    assert truncated["audio_end_ms"] == 100
    (retrieved,) = drive("conversation.item.retrieve", item_id=item_id)
    (part,) = retrieved["item"]["content"]
    assert part["transcript"] == ""
    assert len(base64.b64decode(part["audio"])) == 4800
    user = drive.session.conversation.items()[0].id
    assert drive.refused({**truncate, "item_id": user, "audio_end_ms": 1})["param"] == "item_id"


# -- voice activity


def test_speech_is_a_turn(drive: Driver) -> None:
    assert drive.append(SILENCE * 1000) == []
    assert types(drive.append(speech(0.5))) == ["input_audio_buffer.speech_started"]
    assert drive.append(SILENCE * 100) == []
    events = drive.append(SILENCE * 200)
    assert types(events)[:6] == [
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "response.output_item.added",
    ]
    assert events[0]["audio_end_ms"] == 1700
    item = drive.session.conversation.items()[0]
    # 300 ms of padding, 500 of speech, 200 of silence.
    assert item.heard.startswith("<audio 1000 ms #")
    assert item.id == events[0]["item_id"] == events[1]["item_id"]


def test_speech_times_count_from_the_first_audio_of_the_session(drive: Driver) -> None:
    drive.update(output_modalities=["text"])
    for turn in range(3):
        events = drive.append(SILENCE * 1000 + speech(0.5) + SILENCE * 500)
        assert events[0]["audio_start_ms"] == turn * 2000 + 700
        assert only(events, "input_audio_buffer.speech_stopped")["audio_end_ms"] == turn * 2000 + 1700
        drive.wait(1)


def test_several_turns_in_one_event(drive: Driver) -> None:
    drive.update(
        audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}},
    )
    events = drive.append((speech(0.3) + SILENCE * 400) * 3)
    assert types(events).count("input_audio_buffer.committed") == 3
    assert "response.created" not in types(events)


def test_a_click_is_not_speech(drive: Driver) -> None:
    assert drive.append(SILENCE * 500 + speech(0.1)[: 48 * 40] + SILENCE * 500) == []


def test_speech_interrupts() -> None:
    drive = Driver(realtime=True)
    drive.append(speech(1.0) + SILENCE * 300)
    beside = drive("response.create", response={"conversation": "none"})[0]["response"]["id"]
    events = drive.append(speech(0.2))
    assert types(events)[0] == "input_audio_buffer.speech_started"
    response = only(events, "response.done")["response"]
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    # A response outside the conversation talks on.
    assert drive.session.active_responses == [beside]


def test_speech_need_not_interrupt() -> None:
    drive = Driver(realtime=True)
    drive.update(
        audio={"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}},
    )
    drive.append(speech(1.0) + SILENCE * 300)
    events = drive.append(speech(0.2) + SILENCE * 300)
    assert "response.done" not in types(events)
    assert only(events, "error")["error"]["code"] == "conversation_already_has_active_response"


def test_the_threshold_counts(drive: Driver) -> None:
    soft = tone("audio/pcm", 500)  # RMS 4243
    quiet = bytes(b for s in memoryview(soft).cast("h") for b in (s // 8).to_bytes(2, "little", signed=True))
    assert drive.append(quiet)[0]["type"] == "input_audio_buffer.speech_started"
    drive("input_audio_buffer.clear")
    drive.update(audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 0.9}}})
    assert drive.append(quiet) == []


def test_no_detection_no_turns(drive: Driver) -> None:
    drive.update(audio={"input": {"turn_detection": None}})
    assert drive.append(speech(1.0) + SILENCE * 1000) == []
    drive.update(audio={"input": {"turn_detection": {"type": "server_vad"}}})
    # What came before is not looked at again, but is still there.
    assert drive.append(SILENCE * 300) == []
    assert drive("input_audio_buffer.commit")[0]["type"] == "input_audio_buffer.committed"


def test_a_new_format_drops_what_was_said_in_the_old_one(drive: Driver) -> None:
    drive.append(SILENCE * 500)
    drive.update(audio={"input": {"format": {"type": "audio/pcmu"}}})
    assert drive.refused({"type": "input_audio_buffer.commit"})["code"] == "input_audio_buffer_commit_empty"


def test_hours_of_silence_are_not_kept(drive: Driver) -> None:
    for _ in range(13):
        drive.append(SILENCE * 5000)
    assert drive.session._input.milliseconds <= 60_000
    started = drive.append(speech(0.2))[0]
    assert started["audio_start_ms"] == 65_000 - 300


def test_a_silent_caller_is_asked() -> None:
    drive = Driver()
    vad = {"type": "server_vad", "idle_timeout_ms": 6000}
    drive.update(output_modalities=["text"], audio={"input": {"turn_detection": vad}})
    assert drive.wait(100) == []  # counts from a response
    create(drive, "hello")
    drive("response.create")
    drive.append(SILENCE * 50)
    assert "input_audio_buffer.timeout_triggered" not in types(drive.wait(5.9))
    events = drive.wait(0.2)
    assert types(events)[:4] == [
        "input_audio_buffer.timeout_triggered",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    assert (events[0]["audio_start_ms"], events[0]["audio_end_ms"]) == (0, 50)
    assert "response.done" in types(events)
    # And again and again, until the detection is off.
    assert types(drive.wait(30)).count("input_audio_buffer.timeout_triggered") == 5
    drive.update(audio={"input": {"turn_detection": None}})
    assert "input_audio_buffer.timeout_triggered" not in types(drive.wait(100))


# -- transcription sessions, and the end


def test_a_transcription_session() -> None:
    drive = Driver(kind="transcription")
    session = drive.created["session"]
    assert (session["type"], session["object"]) == ("transcription", "realtime.transcription_session")
    assert "model" not in session
    audio = {"input": {"transcription": {"model": "gpt-4o-transcribe", "language": "en"}}}
    (updated,) = drive("session.update", session={"type": "transcription", "audio": audio})
    assert updated["session"]["audio"]["input"]["transcription"]["language"] == "en"
    events = drive.append(speech(0.5) + SILENCE * 400) + drive.wait(1)
    assert types(events)[-1] == "conversation.item.input_audio_transcription.completed"
    assert "response.created" not in types(events)
    assert drive.refused({"type": "response.create"})["code"] == "invalid_value"
    change = {"type": "transcription", "instructions": "x"}
    assert drive.refused({"type": "session.update", "session": change})["code"] == "unknown_parameter"


def test_expiry(drive: Driver) -> None:
    drive.session.expire()
    (error,) = drive.take()
    assert error["error"] == {
        "type": "invalid_request_error",
        "code": "session_expired",
        "message": "Your session hit the maximum duration of 60 minutes.",
        "param": None,
        "event_id": None,
    }
    assert drive.session.closing == (1001, error["error"]["message"])
    assert drive.session.wake_at is None
