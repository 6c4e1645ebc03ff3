"""The reset: every step, and every answer to it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from realtime_model import DEFAULTS, TRANSCRIPTION

from rtpool_sync.protocols.base import RESET_OUTCOMES
from rtpool_sync.protocols.realtime import RealtimeProtocol, RealtimeSession

Event = dict[str, Any]


class Desk:
    """A protocol object, and the answers of a server that the test chooses one by one."""

    def __init__(self, settings: Event = DEFAULTS) -> None:
        self.protocol: RealtimeSession = RealtimeProtocol().follow(session={}, reset_timeout=5.0)
        self.settings = copy.deepcopy(settings)
        self.current = copy.deepcopy(settings)
        self.now = 100.0
        self.protocol.prepare(self.now)
        self.feed({"type": "session.created", "session": settings})
        assert not self.protocol.pending

    # the borrower

    def sends(self, *events: Event) -> None:
        for event in events:
            self.protocol.sent(event)

    def hears(self, *events: Event) -> None:
        for event in events:
            assert self.protocol.received(event)

    # the driver

    def reset(self) -> list[Event]:
        self.protocol.reset(self.now)
        return self.asked()

    def asked(self) -> list[Event]:
        return [json.loads(message) for message in self.protocol.outgoing()]

    def feed(self, *events: Any) -> None:
        for event in events:
            self.protocol.feed(event if isinstance(event, str) else json.dumps(event), self.now)

    @property
    def outcome(self) -> str | None:
        """None while it runs."""
        if self.protocol.pending:
            assert self.protocol.wake_at is not None
            return None
        assert self.protocol.wake_at is None
        assert self.protocol.outgoing() == []
        outcome = "ok" if self.protocol.failure is None else self.protocol.failure.outcome
        assert outcome in RESET_OUTCOMES
        return outcome

    # the server

    def answer(self, event: Event) -> Event:
        """The answer of a server that behaves. Voice activity detection is the only nested setting used."""
        kind = event["type"]
        if kind == "session.update":
            change = event["session"]
            self.current = copy.deepcopy(self.current)
            self.current.update({name: value for name, value in change.items() if name != "audio"})
            if "turn_detection" in change.get("audio", {}).get("input", {}):
                self.current["audio"]["input"]["turn_detection"] = change["audio"]["input"]["turn_detection"]
            return {"type": "session.updated", "session": self.current}
        if kind == "input_audio_buffer.clear":
            return {"type": "input_audio_buffer.cleared"}
        if kind == "conversation.item.delete":
            return {"type": "conversation.item.deleted", "item_id": event["item_id"]}
        if kind == "response.cancel":
            return done(event["response_id"])
        assert kind == "conversation.item.retrieve"
        return error("item_retrieve_invalid_item_id", event["event_id"])

    def answers(self, events: list[Event]) -> None:
        for event in events:
            self.feed(self.answer(event))


def error(code: str | None, event_id: str | None = None, message: str = "no", **more: Any) -> Event:
    about = {"type": "invalid_request_error", "code": code, "message": message, "event_id": event_id, **more}
    return {"type": "error", "error": about}


def item(name: str, kind: str = "conversation.item.added") -> Event:
    return {"type": kind, "item": {"id": name}}


def created(name: str, **more: Any) -> Event:
    return {"type": "response.created", "response": {"id": name, "conversation_id": "conv", **more}}


def done(name: str, *output: str) -> Event:
    items = [{"id": one} for one in output]
    return {"type": "response.done", "response": {"id": name, "conversation_id": "conv", "output": items}}


def kinds(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


STOP = ["session.update", "input_audio_buffer.clear"]
UPDATE: Event = {"type": "session.update", "session": {"type": "realtime"}}
CREATE: Event = {"type": "conversation.item.create", "item": {"type": "message"}}
RESPOND: Event = {"type": "response.create"}
APPEND: Event = {"type": "input_audio_buffer.append", "audio": "AAAA"}
COMMIT: Event = {"type": "input_audio_buffer.commit"}


# -- the steps


def test_a_quiet_session_is_undone_in_one_go() -> None:
    desk = Desk()
    desk.sends(CREATE)
    desk.hears(item("item_1"), item("item_1", "conversation.item.done"), item("item_2"))
    asked = desk.reset()
    assert kinds(asked) == [
        *STOP,
        "conversation.item.delete",
        "conversation.item.delete",
        "session.update",
        "conversation.item.retrieve",
    ]
    assert desk.protocol.wake_at == desk.now + 5.0
    stop, _, first, second, restore, proof = asked
    assert stop["session"]["audio"] == {"input": {"turn_detection": None}}
    assert (first["item_id"], second["item_id"], proof["item_id"]) == ("item_1", "item_2", "item_2")
    names = [event["event_id"] for event in asked]
    assert len(set(names)) == len(names)
    assert all(name.startswith("rtpool_") for name in names)
    settings = restore["session"]
    # In full, but for what is null anyway and what cannot be set: model, id, tracing.
    assert settings["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert settings["instructions"] == ""
    assert settings["tools"] == []
    assert settings["audio"]["output"]["voice"] == "alloy"
    assert not {"model", "id", "object", "tracing", "prompt", "expires_at"} & settings.keys()
    desk.answers(asked[:-1])
    assert desk.outcome is None
    desk.answers(asked[-1:])
    assert desk.outcome == "ok"
    assert desk.protocol.track.items == {}


def test_an_unused_session_is_proved_by_the_order_of_the_socket() -> None:
    desk = Desk()
    asked = desk.reset()
    assert kinds(asked) == [*STOP, "session.update"]
    desk.answers(asked)
    assert desk.outcome == "ok"


def test_a_transcription_has_no_instructions() -> None:
    desk = Desk(TRANSCRIPTION)
    stop, _, restore = asked = desk.reset()
    assert stop["session"] == {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
    assert restore["session"]["type"] == "transcription"
    assert "include" not in restore["session"]
    desk.answers(asked)
    assert desk.outcome == "ok"


def test_a_server_that_shows_no_instructions_gets_none_back() -> None:
    bare = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    desk = Desk(bare)
    asked = desk.reset()
    assert asked[2]["session"]["instructions"] is None
    desk.answers(asked)
    assert desk.outcome == "ok"


def test_speech_under_way_has_to_stop_before_anything_is_deleted() -> None:
    desk = Desk()
    desk.sends(APPEND)
    asked = desk.reset()
    assert kinds(asked) == STOP
    desk.now += 1
    desk.answers(asked[:1])
    assert desk.asked() == []
    desk.feed({"type": "input_audio_buffer.committed", "item_id": "item_1"}, created("resp_1"))
    (cancel,) = asked_ = desk.asked()
    assert (cancel["type"], cancel["response_id"]) == ("response.cancel", "resp_1")
    assert desk.protocol.wake_at == desk.now + 5.0
    desk.answers(asked[1:])
    assert desk.asked() == []
    desk.answers(asked_)
    asked = desk.asked()
    assert kinds(asked) == ["conversation.item.delete", "session.update", "conversation.item.retrieve"]
    desk.answers(asked)
    assert desk.outcome == "ok"


def test_speech_that_was_sent_is_over_once_the_input_is_cleared() -> None:
    desk = Desk()
    desk.sends(APPEND)
    desk.answers(desk.reset())
    asked = desk.asked()
    desk.feed(item("item_9"))
    desk.answers(asked)
    # The second round has nothing to wait for.
    assert kinds(desk.asked()) == [
        *STOP,
        "conversation.item.delete",
        "session.update",
        "conversation.item.retrieve",
    ]


def test_an_idle_timeout_speaks_without_being_spoken_to() -> None:
    desk = Desk()
    desk.sends(UPDATE)
    desk.current["audio"]["input"]["turn_detection"] = {"type": "server_vad", "idle_timeout_ms": 6000}
    desk.hears({"type": "session.updated", "session": desk.current})
    assert kinds(desk.reset()) == STOP


def test_active_responses_are_cancelled_by_id_also_out_of_band() -> None:
    desk = Desk()
    desk.sends(RESPOND, {"type": "response.create", "response": {"conversation": "none"}})
    desk.hears(created("resp_1"), created("resp_2", conversation_id=None))
    stop, first, second, clear = asked = desk.reset()
    assert kinds(asked) == [
        "session.update",
        "response.cancel",
        "response.cancel",
        "input_audio_buffer.clear",
    ]
    assert (first["response_id"], second["response_id"]) == ("resp_1", "resp_2")
    desk.answers([stop, clear, first])
    assert desk.asked() == []
    desk.answers([second])
    desk.answers(desk.asked())
    assert desk.outcome == "ok"


def test_a_response_asked_for_is_awaited_then_cancelled() -> None:
    desk = Desk()
    desk.sends(RESPOND)
    asked = desk.reset()
    assert kinds(asked) == STOP
    desk.answers(asked)
    assert desk.outcome is None
    assert desk.asked() == []
    desk.now += 4.9
    desk.feed(created("resp_1"))
    cancel = desk.asked()
    assert kinds(cancel) == ["response.cancel"]
    desk.answers(cancel)
    desk.answers(desk.asked())
    assert desk.outcome == "ok"


def test_a_response_that_was_refused_is_not_awaited() -> None:
    desk = Desk()
    desk.sends(RESPOND)
    desk.answers(desk.reset())
    desk.feed(error("conversation_already_has_active_response"))
    desk.answers(desk.asked())
    assert desk.outcome == "ok"


def test_a_response_that_ended_before_it_could_be_cancelled() -> None:
    desk = Desk()
    desk.sends(RESPOND)
    desk.hears(created("resp_1"))
    stop, cancel, clear = desk.reset()
    desk.feed(done("resp_1", "item_1"))
    desk.answers([stop])
    desk.feed(error("response_cancel_not_active", cancel["event_id"]), error("response_cancel_not_active"))
    desk.answers([clear])
    asked = desk.asked()
    assert asked[0]["item_id"] == "item_1"
    desk.answers(asked)
    assert desk.outcome == "ok"


def test_a_cancel_may_be_answered_before_the_end_of_its_response() -> None:
    desk = Desk()
    desk.sends(RESPOND)
    desk.hears(created("resp_1"))
    stop, cancel, clear = desk.reset()
    desk.feed(error("response_cancel_not_active", cancel["event_id"]))
    desk.answers([stop, clear])
    assert desk.asked() == []
    desk.feed(done("resp_1"))
    desk.answers(desk.asked())
    assert desk.outcome == "ok"


@pytest.mark.parametrize(
    ("request_", "answers"),
    [
        (UPDATE, [{"type": "session.updated", "session": DEFAULTS}]),
        (CREATE, [item("item_1")]),
        (CREATE, [error("item_create_invalid")]),
        (CREATE, [error("invalid_value", param="item.content")]),
        ({**CREATE, "item": {"id": "mine"}}, [item("mine", "conversation.item.created")]),
        ({**CREATE, "event_id": "e"}, [error(None, "e")]),
        (COMMIT, [{"type": "input_audio_buffer.committed", "item_id": "item_1"}, item("item_1")]),
        (COMMIT, [error("input_audio_buffer_commit_empty")]),
        ({"type": "input_audio_buffer.clear"}, [{"type": "input_audio_buffer.cleared"}]),
    ],
)
def test_what_the_borrower_asked_last_is_awaited(request_: Event, answers: list[Event]) -> None:
    desk = Desk()
    desk.sends(request_)
    asked = desk.reset()
    assert kinds(asked) == STOP
    if request_ is not UPDATE and request_["type"] != "input_audio_buffer.clear":
        desk.answers(asked)
        asked = []
        assert desk.asked() == []
    desk.feed(*answers)
    desk.answers(asked)
    desk.answers(desk.asked())
    assert desk.outcome == "ok"


@pytest.mark.parametrize("request_", [UPDATE, CREATE, COMMIT, RESPOND])
def test_what_the_borrower_asked_last_is_never_answered(request_: Event) -> None:
    desk = Desk()
    desk.sends(request_)
    asked = desk.reset()
    if request_ is UPDATE:
        asked = asked[1:]  # its answer would be taken for the borrower's
    desk.answers(asked)
    assert desk.outcome is None
    assert desk.asked() == []
    assert desk.protocol.wake_at is not None
    desk.protocol.tick(desk.protocol.wake_at - 0.1)
    assert desk.outcome is None
    desk.protocol.tick(desk.protocol.wake_at)
    assert desk.outcome == "silent"


@pytest.mark.parametrize(
    "request_",
    [
        {"type": "response.cancel"},
        {"type": "conversation.item.delete", "item_id": "item_2"},
        {"type": "conversation.item.retrieve", "item_id": "item_2"},
        {"type": "conversation.item.truncate", "item_id": "item_2"},
        {"type": "output_audio_buffer.clear"},
    ],
)
def test_what_leaves_nothing_behind_is_not_awaited(request_: Event) -> None:
    desk = Desk()
    desk.hears(item("item_1"))
    desk.sends(request_)
    desk.answers(desk.reset())
    desk.answers(desk.asked())
    assert desk.outcome == "ok"


def test_what_turns_up_meanwhile_takes_another_round() -> None:
    desk = Desk()
    asked = desk.reset()
    desk.answers(asked[:2])
    desk.feed(item("late_1"))
    desk.answers(asked[2:])
    asked = desk.asked()
    assert kinds(asked)[2:] == ["conversation.item.delete", "session.update", "conversation.item.retrieve"]
    desk.feed(created("resp_1"))
    cancel = desk.asked()
    desk.answers(asked)
    assert desk.outcome is None
    desk.answers(cancel)
    assert desk.outcome == "ok"


def test_it_does_not_go_round_for_ever() -> None:
    desk = Desk()
    asked = desk.reset()
    for number in range(3):
        desk.feed(item(f"late_{number}"))
        desk.answers(asked)
        asked = desk.asked()
    assert desk.outcome == "mismatch"
    assert "3 rounds" in str(desk.protocol.failure)


def test_responses_without_end_do_not_keep_it_from_ending() -> None:
    desk = Desk()
    asked = desk.reset()
    start = desk.now
    for number in range(1000):
        desk.feed(created(f"resp_{number}"))
        desk.now += 1
        if not desk.protocol.pending:
            break
    desk.answers(asked)
    assert desk.outcome == "silent"
    assert desk.now - start <= 21


def test_deleted_and_created_again_with_the_same_id() -> None:
    desk = Desk()
    mine = {"type": "conversation.item.create", "item": {"id": "mine"}}
    desk.sends(mine)
    desk.hears(item("mine"))
    desk.sends({"type": "conversation.item.delete", "item_id": "mine"}, mine)
    desk.hears({"type": "conversation.item.deleted", "item_id": "mine"}, item("mine"))
    asked = desk.reset()
    assert asked[2]["item_id"] == "mine"


# -- every step, every answer

#: Of a session with one item and one active response, in the order in which they are asked for.
STEPS = ["stop", "cancel", "clear", "delete", "restore", "proof"]


class Walk:
    """A reset up to one step, every earlier one answered."""

    def __init__(self, step: str) -> None:
        self.desk = Desk()
        self.desk.sends(CREATE)
        self.desk.hears(item("item_1"))
        self.desk.sends(RESPOND)
        self.desk.hears(created("resp_1"))
        asked = self.desk.reset()
        for name in STEPS:
            if not asked:
                asked = self.desk.asked()
            self.question = asked.pop(0)
            self.rest = asked
            if name == step:
                return
            self.desk.answers([self.question])

    def finish(self) -> str | None:
        """Answer all that is left, as it should be."""
        desk = self.desk
        while desk.protocol.pending and self.rest:
            desk.answers(self.rest)
            self.rest = desk.asked()
        return desk.outcome


@pytest.mark.parametrize("step", STEPS)
def test_acknowledged(step: str) -> None:
    walk = Walk(step)
    walk.desk.answers([walk.question])
    walk.rest = walk.rest or walk.desk.asked()
    assert walk.finish() == "ok"


@pytest.mark.parametrize("step", STEPS)
def test_silent(step: str) -> None:
    walk = Walk(step)
    if step in ("stop", "restore"):
        walk.rest = [event for event in walk.rest if event["type"] != "session.update"]
    walk.finish()
    assert walk.desk.outcome is None
    wake = walk.desk.protocol.wake_at
    assert wake is not None
    walk.desk.protocol.tick(wake)
    assert walk.desk.outcome == "silent"
    assert walk.desk.protocol.failure is not None
    awaited = {
        "stop": "session.updated",
        "cancel": "response.done of resp_1",
        "clear": "input_audio_buffer.cleared",
        "delete": "conversation.item.deleted",
        "restore": "session.updated",
        "proof": "the error that an item is gone",
    }
    assert walk.desk.protocol.failure.message == f"no answer in time: {awaited[step]}"


@pytest.mark.parametrize("step", STEPS)
def test_too_late(step: str) -> None:
    walk = Walk(step)
    walk.desk.now += 5.0
    walk.desk.answers([walk.question])
    assert walk.desk.outcome == "silent"


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("code", ["invalid_value", "unknown_or_invalid_event", None])
@pytest.mark.parametrize("step", STEPS)
def test_refused(step: str, code: str | None, named: bool) -> None:
    walk = Walk(step)
    walk.desk.feed(error(code, walk.question["event_id"] if named else None, "I do not like it"))
    assert walk.desk.outcome == "refused"
    assert "I do not like it" in str(walk.desk.protocol.failure)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("stop", "cannot_update_voice"),
        ("restore", "cannot_update_voice"),
        ("clear", "input_audio_buffer_clear_failed"),
        ("cancel", "response_cancel_no_such_response"),
        ("delete", "item_delete_failed"),
        ("proof", "item_retrieve_failed"),
    ],
)
def test_refused_with_a_code_of_its_kind(step: str, code: str, named: bool) -> None:
    walk = Walk(step)
    walk.desk.feed(error(code, walk.question["event_id"] if named else None))
    assert walk.desk.outcome == "refused"


@pytest.mark.parametrize("named", ["event", "message", "order"])
@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("cancel", "response_cancel_not_active"),
        ("delete", "item_delete_invalid_item_id"),
        ("proof", "item_retrieve_invalid_item_id"),
    ],
)
def test_nothing_left_to_do(step: str, code: str, named: str) -> None:
    walk = Walk(step)
    key = walk.question.get("item_id") or walk.question["response_id"]
    message = f"{key} does not exist" if named == "message" else "It does not exist."
    walk.desk.feed(error(code, walk.question["event_id"] if named == "event" else None, message))
    if step == "cancel":
        walk.desk.feed(done("resp_1"))
    assert walk.finish() == "ok"


@pytest.mark.parametrize("step", ["cancel", "delete", "proof"])
def test_answered_twice(step: str) -> None:
    walk = Walk(step)
    answer = walk.desk.answer(walk.question)
    walk.desk.feed(answer)
    if walk.desk.protocol.pending:
        walk.desk.feed(answer)
        walk.rest = walk.rest or walk.desk.asked()
    assert walk.finish() == "ok"
    assert walk.desk.protocol.stray(json.dumps(answer))
    assert not walk.desk.protocol.received(answer)
    assert walk.desk.reset() != []


@pytest.mark.parametrize("step", ["stop", "clear", "restore"])
def test_answered_twice_and_only_counted(step: str) -> None:
    walk = Walk(step)
    answer = walk.desk.answer(walk.question)
    walk.desk.feed(answer, answer)
    walk.rest = walk.rest or walk.desk.asked()
    assert walk.finish() == "untracked"


@pytest.mark.parametrize("step", ["stop", "clear", "restore"])
@pytest.mark.parametrize("idle", [True, False])
def test_answered_again_after_the_reset(step: str, idle: bool) -> None:
    walk = Walk(step)
    answer = walk.desk.answer(walk.question)
    walk.desk.feed(answer)
    walk.rest = walk.rest or walk.desk.asked()
    assert walk.finish() == "ok"
    if idle:
        assert not walk.desk.protocol.stray(json.dumps(answer))
    else:
        assert not walk.desk.protocol.received(answer)
    assert walk.desk.reset() == []
    assert walk.desk.outcome == "untracked"


def test_the_first_acknowledgement_again_in_place_of_the_last() -> None:
    desk = Desk()
    stop, *_ = desk.reset()
    again = desk.answer(stop)
    desk.feed(again, again)
    assert desk.outcome == "mismatch"


def test_out_of_order() -> None:
    desk = Desk()
    desk.sends(CREATE)
    desk.hears(item("item_1"))
    stop, clear, delete, restore, proof = desk.reset()
    answers = [desk.answer(event) for event in (stop, clear, delete, restore, proof)]
    desk.feed(answers[4], answers[2], answers[1], answers[0], answers[3])
    assert desk.outcome == "ok"
    desk.sends(CREATE)
    desk.hears(item("item_2"))
    stop, clear, delete, restore, proof = desk.reset()
    answers = [desk.answer(event) for event in (stop, clear, delete, restore, proof)]
    desk.feed(answers[3])  # before the other one
    assert desk.outcome == "mismatch"


def test_the_retrieved_item_exists() -> None:
    walk = Walk("proof")
    walk.desk.feed({"type": "conversation.item.retrieved", "item": {"id": walk.question["item_id"]}})
    assert walk.desk.outcome == "mismatch"


def test_an_item_that_is_announced_but_cannot_be_deleted_yet() -> None:
    desk = Desk()
    desk.sends(COMMIT)
    desk.hears({"type": "input_audio_buffer.committed", "item_id": "item_1"})
    asked = desk.reset()
    desk.answers(asked[:2])
    desk.feed(error("item_delete_invalid_item_id", asked[2]["event_id"]))
    assert desk.outcome == "mismatch"


def test_an_acknowledgement_of_somebody_elses_settings() -> None:
    desk = Desk()
    stop, *_ = desk.reset()
    desk.answer(stop)
    desk.current["instructions"] = "Something else."
    desk.feed({"type": "session.updated", "session": desk.current})
    assert desk.outcome == "mismatch"
    assert "another update" in str(desk.protocol.failure)


def test_voice_activity_detection_that_does_not_stop() -> None:
    desk = Desk()
    desk.reset()
    desk.feed({"type": "session.updated", "session": desk.settings})
    assert desk.outcome == "mismatch"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"instructions": "x"}, "instructions"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"include": ["x"]}, "include"),
        ({"audio": None}, "audio"),
        ({"audio": {"input": {"turn_detection": None}}}, "audio.input.format"),
    ],
)
def test_settings_that_do_not_come_back(change: Event, where: str) -> None:
    walk = Walk("restore")
    walk.desk.answer(walk.question)
    walk.desk.feed({"type": "session.updated", "session": {**walk.desk.current, **change}})
    assert walk.desk.outcome == "mismatch"
    assert str(walk.desk.protocol.failure).count(where) == 1


@pytest.mark.parametrize("change", [{"include": None}, {"model": "alias"}, {"id": None}, {"expires_at": 1}])
def test_settings_that_mean_the_same(change: Event) -> None:
    walk = Walk("restore")
    walk.desk.answer(walk.question)
    walk.desk.feed({"type": "session.updated", "session": {**walk.desk.current, **change}})
    assert walk.finish() == "ok"


# -- errors that are not about the reset


@pytest.mark.parametrize(
    "event",
    [
        error("item_truncate_invalid_item_id"),
        error("input_audio_buffer_commit_empty"),
        error("item_create_duplicate_item_id"),
        error("conversation_already_has_active_response"),
        error("response_cancel_not_active"),
        error("invalid_value", "event_of_the_borrower"),
    ],
)
def test_errors_about_something_else(event: Event) -> None:
    desk = Desk()
    asked = desk.reset()
    desk.feed(event)
    desk.answers(asked)
    assert desk.outcome == "ok"


def test_an_update_of_the_borrower_may_be_refused_meanwhile() -> None:
    desk = Desk()
    desk.sends(UPDATE)
    asked = desk.reset()
    desk.feed(error("invalid_value", param="session.voice"))
    desk.answers(asked)
    desk.answers(desk.asked())
    assert desk.outcome == "ok"


# -- what cannot be undone

AUDIO: Event = {
    "type": "response.output_audio.delta",
    "response_id": "resp_1",
    "item_id": "i",
    "delta": "AAAA",
}
MARIN: Event = {"audio": {"output": {"voice": "marin"}}}


def with_voice(voice: str) -> Event:
    settings = copy.deepcopy(DEFAULTS)
    settings["audio"]["output"]["voice"] = voice
    return {"type": "session.updated", "session": settings}


def test_a_voice_that_has_not_spoken_can_be_changed_back() -> None:
    desk = Desk()
    desk.sends({"type": "session.update", "session": {"type": "realtime", **MARIN}})
    desk.hears(with_voice("marin"))
    restore = desk.reset()[-1]
    assert restore["session"]["audio"]["output"]["voice"] == "alloy"


def test_a_voice_that_has_spoken_is_left_alone() -> None:
    desk = Desk()
    desk.hears(AUDIO, done("resp_1"))
    restore = desk.reset()[-1]
    assert "voice" not in restore["session"]["audio"]["output"]
    assert restore["session"]["audio"]["output"]["speed"] == 1.0


@pytest.mark.parametrize("undecoded", [False, True])
def test_another_voice_has_spoken(undecoded: bool) -> None:
    desk = Desk()
    desk.sends({"type": "session.update", "session": {"type": "realtime", **MARIN}})
    desk.hears(with_voice("marin"))
    if undecoded:
        assert desk.protocol.received_text(json.dumps(AUDIO))
    else:
        desk.hears(AUDIO)
    assert desk.reset() == []
    assert desk.outcome == "locked"


def test_another_voice_has_spoken_in_one_response() -> None:
    desk = Desk()
    desk.sends({"type": "response.create", "response": MARIN})
    desk.hears(AUDIO)
    assert desk.reset() == []
    assert desk.outcome == "locked"


def test_another_voice_speaks_while_the_reset_is_under_way() -> None:
    desk = Desk()
    desk.sends({"type": "response.create", "response": MARIN})
    desk.hears(created("resp_1"))
    desk.reset()
    desk.feed(AUDIO)
    assert desk.outcome == "locked"


def test_tracing() -> None:
    desk = Desk()
    desk.sends(UPDATE)
    desk.hears({"type": "session.updated", "session": {**DEFAULTS, "tracing": "auto"}})
    assert desk.reset() == []
    assert desk.outcome == "traced"


def test_tracing_that_was_not_acknowledged_yet() -> None:
    desk = Desk()
    desk.sends(UPDATE)
    desk.reset()
    desk.feed({"type": "session.updated", "session": {**DEFAULTS, "tracing": "auto"}})
    assert desk.outcome == "traced"


@pytest.mark.parametrize(
    "sent",
    [
        {"type": "session.update", "session": {"tools": [{"type": "mcp"}]}},
        {"type": "response.create", "response": {"tools": [{"type": "function"}, {"type": "mcp"}]}},
    ],
)
def test_tools_of_mcp_servers(sent: Event) -> None:
    desk = Desk()
    desk.sends(sent)
    desk.reset()
    assert desk.outcome == "untracked"


def test_tools_of_mcp_servers_in_the_settings_of_the_pool() -> None:
    desk = Desk({**DEFAULTS, "tools": [{"type": "mcp"}]})
    listed = {"type": "mcp_list_tools.completed", "item_id": "item_1"}
    added = {"type": "conversation.item.added", "item": {"id": "item_1", "type": "mcp_list_tools"}}
    assert desk.protocol.stray(json.dumps(listed))
    assert desk.protocol.stray(json.dumps(added))
    assert not desk.protocol.stray(json.dumps(item("item_2")))
    desk.protocol.configure({"instructions": "Be brief."}, desk.now)
    desk.feed(listed, {"type": "session.updated", "session": DEFAULTS})
    assert desk.protocol.failure is None
    desk.reset()
    assert desk.outcome == "untracked"


@pytest.mark.parametrize(
    "message", ["no json", b"\x00\x01", "[1]", '{"type":"session.close"}', "{}", '{"type":[]}', {"type": 1}]
)
def test_messages_that_cannot_be_followed(message: Any) -> None:
    desk = Desk()
    desk.protocol.sent(message)
    assert desk.reset() == []
    assert desk.outcome == "untracked"


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        b"\x00\x01",
        "[1]",
        "{}",
        '{"type":[]}',
        '{"type":"conversation.item.added","item":{}}',
        '{"type":"input_audio_buffer.committed"}',
        '{"type":"response.created"}',
        '{"type":"response.done","response":7}',
    ],
)
def test_events_that_cannot_be_followed(message: Any) -> None:
    desk = Desk()
    assert desk.protocol.received_text(message)
    assert desk.reset() == []
    assert desk.outcome == "untracked"


def test_what_is_decoded_and_no_event() -> None:
    desk = Desk()
    assert desk.protocol.received([1])  # type: ignore[arg-type]
    desk.reset()
    assert desk.outcome == "untracked"


@pytest.mark.parametrize("message", ["no json", "7"])
def test_no_event_while_the_reset_is_under_way(message: str) -> None:
    desk = Desk()
    desk.reset()
    desk.feed(message)
    assert desk.outcome == "untracked"
    assert desk.protocol.failure is not None
    assert desk.protocol.failure.error is None


def test_the_time_is_up() -> None:
    desk = Desk()
    desk.hears(error("session_expired"))
    assert desk.reset() == []
    assert desk.outcome == "lost"
    desk = Desk()
    desk.reset()
    desk.feed(error("session_expired"))
    assert desk.outcome == "lost"


def test_the_connection_is_lost() -> None:
    desk = Desk()
    desk.reset()
    assert desk.protocol.closed(1006, "") is None
    assert desk.outcome == "lost"


def test_a_server_that_never_stops_talking() -> None:
    desk = Desk()
    desk.reset()
    for _ in range(100):
        desk.now += 0.1
        desk.feed({"type": "rate_limits.updated"})
    assert desk.outcome == "silent"


def test_settings_of_a_checkout_that_were_never_acknowledged() -> None:
    desk = Desk()
    desk.protocol.configure({"instructions": "Be brief."}, desk.now)
    configure = desk.asked()
    asked = desk.reset()
    desk.answers(configure + asked)
    desk.answers(desk.asked())
    assert desk.outcome == "ok"


def test_thousands_of_unanswered_questions() -> None:
    desk = Desk()
    for _ in range(10_001):
        desk.sends({"type": "conversation.item.retrieve", "item_id": "x"})
    desk.reset()
    assert desk.outcome == "untracked"


def test_a_long_list_of_what_is_missing_is_cut() -> None:
    desk = Desk()
    desk.sends(*[RESPOND] * 7)
    for number in range(7):
        desk.hears(created(f"resp_{number}"))
    desk.reset()
    assert desk.protocol.wake_at is not None
    desk.protocol.tick(desk.protocol.wake_at)
    assert str(desk.protocol.failure).count("response.done") == 4
    assert "and 5 more" in str(desk.protocol.failure)
