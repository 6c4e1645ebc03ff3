"""What a session leaves behind, however it is used: decoded or not, in order or not."""

from __future__ import annotations

import json
import sys
import threading
from types import MappingProxyType
from typing import Any

import pytest
from test_realtime_reset import APPEND, COMMIT, CREATE, RESPOND, UPDATE, Desk, created, done, error, item

from rtpool_sync.protocols import events
from rtpool_sync.protocols.tracking import Track

Event = dict[str, Any]
APART: Event = {"type": "response.create", "response": {"conversation": "none"}}
COMMITTED: Event = {"type": "input_audio_buffer.committed", "item_id": "item_1"}
STOPPED: Event = {"type": "input_audio_buffer.speech_stopped", "item_id": "item_1"}
TRANSCRIBED: Event = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "item_1"}
DELETED: Event = {"type": "conversation.item.deleted", "item_id": "item_1"}


def output(response: str, name: str, **more: Any) -> Event:
    return {"type": "response.output_item.added", "response_id": response, "item": {"id": name, **more}}


#: What passes, in order; what exists then; what is active; what is still open (kind and key).
TABLE: list[tuple[list[Event], list[str], list[str], list[tuple[str, str | None]]]] = [
    # items
    ([CREATE], [], [], [("create", None)]),
    ([CREATE, item("item_1")], ["item_1"], [], []),
    ([CREATE, item("item_1"), item("item_1", "conversation.item.done")], ["item_1"], [], []),
    ([CREATE, item("item_1", "conversation.item.created")], ["item_1"], [], []),
    ([CREATE, item("item_1", "conversation.item.done"), item("item_1")], ["item_1"], [], []),
    ([CREATE, CREATE, item("item_1"), item("item_1")], ["item_1"], [], [("create", None)]),
    ([CREATE, output("resp_1", "item_1"), item("item_1")], ["item_1"], ["resp_1"], [("create", None)]),
    ([CREATE, COMMIT, COMMITTED, item("item_1")], ["item_1"], [], [("create", None)]),
    ([CREATE, error("invalid_value", None, param="item.role")], [], [], []),
    ([CREATE, error("invalid_value", None, param="items")], [], [], [("create", None)]),
    ([CREATE, error(None)], [], [], [("create", None)]),
    ([item("item_1"), DELETED], [], [], []),
    ([item("item_1"), DELETED, item("item_1", "conversation.item.done"), TRANSCRIBED], [], [], []),
    ([item("item_1"), DELETED, item("item_1", "conversation.item.retrieved")], [], [], []),
    ([{"type": "conversation.item.retrieve", "item_id": "item_1"}], [], [], [("retrieve", "item_1")]),
    (
        [{"type": "conversation.item.retrieve", "item_id": "i"}, item("i", "conversation.item.retrieved")],
        ["i"],
        [],
        [],
    ),
    ([{"type": "conversation.item.truncate", "item_id": "i"}], [], [], [("truncate", "i")]),
    (
        [
            {"type": "conversation.item.truncate", "item_id": "i"},
            {"type": "conversation.item.truncated", "item_id": "i"},
        ],
        [],
        [],
        [],
    ),
    # errors, by what they name
    (
        [
            {"type": "conversation.item.delete", "item_id": "a", "event_id": "1"},
            {"type": "conversation.item.delete", "item_id": "b", "event_id": "2"},
            error("item_delete_invalid_item_id", "2"),
            error("item_delete_invalid_item_id", "2"),
        ],
        [],
        [],
        [("delete", "a")],
    ),
    (
        [
            {"type": "conversation.item.delete", "item_id": "a-1"},
            {"type": "conversation.item.delete", "item_id": "a-2"},
            error("item_delete_invalid_item_id", None, "There is no item 'a-2'."),
        ],
        [],
        [],
        [("delete", "a-1")],
    ),
    (
        [
            {"type": "conversation.item.delete", "item_id": "a"},
            {"type": "conversation.item.delete", "item_id": "b"},
            error("item_delete_invalid_item_id", None, "No such item"),
        ],
        [],
        [],
        [("delete", "b")],
    ),
    # audio
    ([APPEND], [], [], []),
    ([COMMIT, COMMITTED], ["item_1"], [], []),
    ([COMMIT, COMMITTED, COMMITTED], ["item_1"], [], []),
    ([APPEND, STOPPED], [], [], []),
    ([APPEND, STOPPED, COMMITTED], ["item_1"], [], [("respond", "vad")]),
    ([APPEND, COMMITTED], ["item_1"], [], [("respond", "vad")]),
    ([APPEND, COMMIT, STOPPED, COMMITTED], ["item_1"], [], [("commit", None), ("respond", "vad")]),
    ([APPEND, STOPPED, COMMITTED, created("resp_1")], ["item_1"], ["resp_1"], []),
    ([TRANSCRIBED], ["item_1"], [], []),
    # responses
    ([RESPOND], [], [], [("respond", "default")]),
    ([RESPOND, created("resp_1")], [], ["resp_1"], []),
    ([RESPOND, RESPOND, created("resp_1"), created("resp_1")], [], ["resp_1"], [("respond", "default")]),
    ([RESPOND, created("resp_1"), done("resp_1")], [], [], []),
    ([RESPOND, done("resp_1", "item_1"), created("resp_1")], ["item_1"], [], []),
    ([RESPOND, {"type": "response.output_text.delta", "response_id": "resp_1"}], [], ["resp_1"], []),
    ([RESPOND, output("resp_1", "item_1")], ["item_1"], ["resp_1"], []),
    ([RESPOND, {"type": "response.content_part.added", "response_id": "resp_1"}], [], ["resp_1"], []),
    ([RESPOND, {"type": "response.content_part.added"}], [], [], [("respond", "default")]),
    ([RESPOND, error("conversation_already_has_active_response")], [], [], []),
    ([RESPOND, error("cannot_update_voice", param="response.audio.output.voice")], [], [], []),
    ([APART, error("invalid_value", param="response.input")], [], [], []),
    ([APART, error("conversation_already_has_active_response")], [], [], [("respond", "apart")]),
    ([APPEND, COMMITTED, error("conversation_already_has_active_response")], ["item_1"], [], []),
    # …which of the two is it that was created?
    ([RESPOND, APART, created("resp_1", conversation_id=None)], [], ["resp_1"], [("respond", "default")]),
    ([RESPOND, APART, created("resp_1")], [], ["resp_1"], [("respond", "apart")]),
    ([APART, created("resp_1")], [], ["resp_1"], [("respond", "apart")]),
    ([RESPOND, created("resp_1", conversation_id=None)], [], ["resp_1"], []),
    ([APART, {"type": "response.created", "response": {"id": "resp_1"}}], [], ["resp_1"], []),
    ([RESPOND, APPEND, COMMITTED, created("resp_1")], ["item_1"], ["resp_1"], [("respond", "default")]),
    # …and output outside the conversation is no item of it
    ([APART, created("r", conversation_id=None), output("r", "item_1")], [], ["r"], []),
    (
        [
            APART,
            created("r", conversation_id=None),
            {"type": "response.done", "response": {"id": "r", "output": [{"id": "item_1"}, 7, {}]}},
        ],
        [],
        [],
        [],
    ),
    # cancelling
    ([{"type": "response.cancel"}, error("response_cancel_not_active")], [], [], []),
    ([{"type": "response.cancel"}, done("resp_1")], [], [], []),
    ([{"type": "response.cancel", "response_id": "r"}, done("q")], [], [], [("cancel", "r")]),
    # settings
    ([UPDATE, UPDATE, {"type": "session.updated", "session": {}}], [], [], [("update", None)]),
    ([UPDATE, error("cannot_update_voice")], [], [], []),
    ([UPDATE, error("unknown_parameter", param="session.modalities")], [], [], []),
]
CLIENT = {
    "session.update",
    "conversation.item.create",
    "conversation.item.delete",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "response.create",
    "response.cancel",
}


@pytest.mark.parametrize("form", ["mapping", "text", "compact", "bytes"])
@pytest.mark.parametrize(("passing", "items", "active", "open_"), TABLE)
def test_what_is_left(
    passing: list[Event], items: list[str], active: list[str], open_: list[Any], form: str
) -> None:
    protocol = Desk().protocol
    for event in passing:
        message: Any = event
        if form == "text":
            message = json.dumps(event, indent=1)
        elif form == "compact":
            message = json.dumps(event, separators=(",", ":"))
        elif form == "bytes":
            message = json.dumps(event).encode()
        if event["type"] in CLIENT:
            protocol.sent(message)
        elif form == "mapping":
            protocol.received(message)
        else:
            protocol.received_text(message)
    track = protocol.track
    assert track.untracked is None
    assert list(track.items) == items
    assert list(track.active) == active
    assert [(request.kind, request.key) for request in track.requests] == open_


def test_voice_activity_detection_without_responses() -> None:
    desk = Desk()
    desk.sends(UPDATE)
    desk.current["audio"]["input"]["turn_detection"] = {"type": "server_vad", "create_response": False}
    desk.hears({"type": "session.updated", "session": desk.current}, COMMITTED)
    assert desk.protocol.track.requests == []
    silence = {"type": "input_audio_buffer.timeout_triggered", "item_id": "item_2"}
    desk.hears(silence, {"type": "input_audio_buffer.committed", "item_id": "item_2"})
    assert [request.key for request in desk.protocol.track.requests] == ["vad"]


AUDIBLE: list[Event] = [
    {"type": "response.output_audio.delta", "response_id": "r"},
    {"type": "response.output_audio_transcript.delta", "response_id": "r"},
    {"type": "response.output_audio.done", "response_id": "r"},
    {"type": "response.content_part.added", "response_id": "r", "part": {"type": "audio"}},
    output("r", "i", content=[{"type": "output_audio"}]),
    {
        "type": "conversation.item.added",
        "item": {"id": "i", "role": "assistant", "content": [{"type": "audio"}]},
    },
    {"type": "response.done", "response": {"id": "r", "output": [{"content": [{"type": "output_audio"}]}]}},
]
INAUDIBLE: list[Event] = [
    {"type": "response.output_text.delta", "response_id": "r"},
    {"type": "response.content_part.added", "response_id": "r", "part": {"type": "text"}},
    {"type": "response.content_part.added", "response_id": "r", "part": None},
    {"type": "conversation.item.added", "item": {"id": "i", "role": "user", "content": [{"type": "audio"}]}},
    {"type": "conversation.item.added", "item": {"id": "i", "role": "assistant", "content": "audio"}},
    {"type": "conversation.item.input_audio_transcription.delta", "item_id": "i"},
]


@pytest.mark.parametrize(
    ("event", "audible"), [*((event, True) for event in AUDIBLE), *((event, False) for event in INAUDIBLE)]
)
@pytest.mark.parametrize("known", [True, False])
def test_audio_that_locks_the_voice(event: Event, audible: bool, known: bool) -> None:
    for undecoded in (False, True):
        desk = Desk()
        if known:
            desk.hears(created("r"))
        if undecoded:
            assert desk.protocol.received_text(json.dumps(event))
        else:
            desk.hears(event)
        assert desk.protocol.spoken is audible
        desk.protocol.track = Track()
        assert desk.protocol.spoken is audible  # for the life of the connection


@pytest.mark.parametrize(
    "message",
    [
        '{"type":"input_audio_buffer.append","audio":"AAAA"}',
        '{"type": "input_audio_buffer.append", "audio": "AAAA"}',
        '{"event_id":"x","type":"input_audio_buffer.append","audio":"AAAA"}',
        '{"event_id": "x", "type": "input_audio_buffer.append", "audio": "AAAA"}',
    ],
)
def test_appends_are_not_decoded(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    monkeypatch.setattr(events.json, "loads", None)
    for form in (message, message.encode(), bytearray(message.encode())):
        desk.protocol.track.audio_in = False
        desk.protocol.sent(form)  # type: ignore[arg-type]
        assert desk.protocol.track.audio_in
    desk.protocol.track.audio_in = False
    desk.protocol.sent({"type": "input_audio_buffer.append"})
    assert desk.protocol.track.audio_in


@pytest.mark.parametrize(
    "message",
    ['{"audio":"AAAA","type":"input_audio_buffer.append"}', ' {"type":"input_audio_buffer.append"}'],
)
def test_appends_that_look_different(message: str) -> None:
    desk = Desk()
    desk.protocol.sent(message)
    assert desk.protocol.track.audio_in
    assert desk.protocol.track.untracked is None


@pytest.mark.parametrize(
    "message",
    [
        '{"type":"response.output_audio.delta","event_id":"e","response_id":"r","item_id":"i","delta":"AA"}',
        '{"type": "response.output_audio.delta", "response_id": "r", "delta": "AA"}',
        '{"event_id": "e", "type": "response.output_audio.delta", "response_id": "r", "delta": "AA"}',
    ],
)
def test_deltas_are_not_decoded(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    monkeypatch.setattr(events.json, "loads", None)
    for form in (message, message.encode()):
        assert desk.protocol.received_text(form)
        assert list(desk.protocol.track.active) == ["r"]
        assert desk.protocol.spoken
        desk.protocol.spoken = False
        assert desk.protocol.received_text(form.replace(*one_of(form, "audio", "text")))
        assert not desk.protocol.spoken


def one_of(form: Any, *words: str) -> list[Any]:
    return [word.encode() if isinstance(form, bytes) else word for word in words]


def test_deltas_of_a_type_yet_to_come() -> None:
    desk = Desk()
    assert desk.protocol.received_text('{"type":"response.output_video.delta","response_id":"r"}')
    assert list(desk.protocol.track.active) == ["r"]


def test_a_mapping_that_is_no_dict() -> None:
    desk = Desk()
    desk.protocol.sent(MappingProxyType({"type": "input_audio_buffer.append"}))
    assert desk.protocol.track.audio_in
    desk.protocol.sent(MappingProxyType(CREATE))
    assert len(desk.protocol.track.requests) == 1


def test_ids_that_are_no_text() -> None:
    desk = Desk()
    assert desk.protocol.received_text(b'{"type":"response.output_audio.delta","response_id":"\xff"}')
    assert desk.protocol.received({"type": "response.output_audio.delta", "response_id": []})
    assert desk.protocol.received({"type": "response.output_audio.delta", "response_id": ""})
    assert desk.protocol.track.untracked is None


def test_two_threads() -> None:
    desk = Desk()
    protocol = desk.protocol
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def send() -> None:
        for number in range(3000):
            protocol.sent({"type": "conversation.item.create", "item": {"id": f"i{number}"}})

    thread = threading.Thread(target=send)
    try:
        thread.start()
        for number in range(3000):
            while not any(f"i{number}" == request.key for request in list(protocol.track.requests)):
                pass
            assert protocol.received(item(f"i{number}"))
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert protocol.track.requests == []
    assert len(protocol.track.items) == 3000
