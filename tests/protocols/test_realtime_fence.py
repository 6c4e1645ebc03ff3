"""The fence: what an earlier session left on the way reaches nobody."""

from __future__ import annotations

import json
from typing import Any

import pytest
from realtime_model import DEFAULTS
from test_realtime_reset import AUDIO, CREATE, RESPOND, UPDATE, Desk, created, done, error, item

from rtpool_sync.protocols.fence import Fence
from rtpool_sync.protocols.tracking import Track

OLD = "instructions of the earlier session"


def second_session() -> Desk:
    """A connection whose first session used item_1, mine_1, resp_1, event_1 and settings of its own."""
    desk = Desk()
    desk.sends(
        CREATE,
        {"type": "conversation.item.create", "event_id": "event_1", "item": {"id": "mine_1"}},
        {"type": "session.update", "session": {"type": "realtime", "instructions": OLD}},
        RESPOND,
    )
    desk.hears(
        item("item_1"),
        item("mine_1"),
        {"type": "session.updated", "session": {**DEFAULTS, "instructions": OLD}},
        created("resp_1"),
        {"type": "rate_limits.updated"},
        done("resp_1", "item_2"),
    )
    desk.answers(desk.reset())
    desk.answers(desk.asked())
    assert desk.outcome == "ok"
    return desk


STRAGGLERS: list[dict[str, Any]] = [
    AUDIO,
    {"type": "response.output_text.delta", "response_id": "resp_1", "delta": "secret"},
    {"type": "response.some_future.event", "response_id": "resp_1"},
    created("resp_1"),
    done("resp_1"),
    item("item_1"),
    item("item_1", "conversation.item.done"),
    item("item_1", "conversation.item.retrieved"),
    {"type": "conversation.item.deleted", "item_id": "item_1"},
    {"type": "conversation.item.truncated", "item_id": "mine_1"},
    {
        "type": "conversation.item.input_audio_transcription.completed",
        "item_id": "item_1",
        "transcript": "secret",
    },
    {"type": "input_audio_buffer.speech_stopped", "item_id": "item_2"},
    {"type": "rate_limits.updated"},
    {"type": "conversation.created"},
    {"type": "session.created", "session": {"id": "sess_1"}},
    error("invalid_value", "event_1"),
    error("response_cancel_not_active"),
    error(None, None, "Item item_1 has no audio"),
    error("item_delete_invalid_item_id", "rtpool_…", "item_1"),
]


@pytest.mark.parametrize("event", STRAGGLERS, ids=lambda event: event["type"])
@pytest.mark.parametrize("how", ["received", "received_text", "bytes", "stray", "reset", "configure"])
def test_stragglers(event: dict[str, Any], how: str) -> None:
    desk = second_session()
    protocol = desk.protocol
    if event["type"] == "error" and event["error"]["event_id"] == "rtpool_…":
        event = error("item_delete_invalid_item_id", protocol.fence.prefix + "3")
    text = json.dumps(event)
    if how == "stray":
        assert protocol.stray(text)
    elif how == "received":
        assert not protocol.received(event)
    elif how == "received_text":
        assert not protocol.received_text(text)
    elif how == "bytes":
        assert not protocol.received_text(text.encode())
    elif how == "configure":
        protocol.configure({"instructions": "Be brief."}, desk.now)
        (asked,) = desk.asked()
        desk.feed(event)
        assert protocol.pending
        desk.feed(desk.answer(asked))
        assert protocol.failure is None
    asked_ = desk.reset()
    if how == "reset":
        desk.feed(event)
    desk.answers(asked_)
    assert desk.outcome == "ok"


def test_a_late_answer_with_the_words_of_the_earlier_session() -> None:
    desk = second_session()
    desk.sends(UPDATE)
    assert not desk.protocol.received(
        {"type": "session.updated", "session": {**DEFAULTS, "instructions": OLD}}
    )
    assert desk.protocol.effective["instructions"] == ""
    desk.reset()
    assert desk.outcome == "untracked"


def test_the_same_words_may_be_chosen_again() -> None:
    desk = second_session()
    desk.sends({"type": "session.update", "session": {"type": "realtime", "instructions": OLD}})
    desk.hears({"type": "session.updated", "session": {**DEFAULTS, "instructions": OLD}})


def test_a_question_about_an_old_id_is_answered() -> None:
    desk = second_session()
    desk.sends({"type": "conversation.item.delete", "item_id": "mine_1"})
    desk.hears(error("item_delete_invalid_item_id", None, "Item mine_1 does not exist."))
    assert desk.protocol.track.requests == []
    assert not desk.protocol.received(item("mine_1"))


def test_the_words_of_the_pool_belong_to_every_session() -> None:
    settings = {**DEFAULTS, "instructions": "instructions of the whole pool"}
    desk = Desk(settings)
    for _ in range(2):
        desk.sends({"type": "session.update", "session": {"instructions": settings["instructions"]}})
        desk.hears({"type": "session.updated", "session": settings})
        desk.answers(desk.reset())
        assert desk.outcome == "ok"


def test_the_same_ids_may_be_chosen_again() -> None:
    desk = second_session()
    desk.sends({"type": "conversation.item.create", "event_id": "event_1", "item": {"id": "mine_1"}})
    desk.hears(error("invalid_value", "event_1"), item("mine_1"))
    assert desk.reset()[2]["item_id"] == "mine_1"


@pytest.mark.parametrize(
    "event",
    [
        created("resp_2"),
        item("item_3"),
        error(None, "event_2"),
        error(None, None, "The server had an error"),
        error("item_delete_invalid_item_id", None, "mine_2"),
        {"type": "response.output_text.delta", "response_id": "resp_2"},
        {"type": "response.some_future.delta", "response_id": "resp_2"},
        {"type": "response.output_text.delta"},
        {"type": "some.future.event"},
        {"type": "input_audio_buffer.speech_started", "item_id": "item_3"},
        {"type": "input_audio_buffer.speech_stopped"},
        {"type": "conversation.item.deleted"},
        {"type": "conversation.item.retrieved"},
    ],
)
@pytest.mark.parametrize("undecoded", [False, True])
def test_what_belongs_to_this_session(event: dict[str, Any], undecoded: bool) -> None:
    desk = second_session()
    desk.sends({"type": "conversation.item.delete", "item_id": "x"})
    if undecoded:
        assert desk.protocol.received_text(json.dumps(event))
        assert desk.protocol.received_text(json.dumps(event, separators=(",", ":")).encode())
    else:
        desk.hears(event, event)


def test_rate_limits_belong_to_the_session_that_had_a_response() -> None:
    limits = {"type": "rate_limits.updated"}
    desk = Desk()
    desk.hears(limits)  # there was nobody before
    desk = second_session()
    assert not desk.protocol.received(limits)
    desk.hears(created("resp_2"), limits)


def test_the_server_asks_for_responses_itself_once_it_hears_speech() -> None:
    busy = error("conversation_already_has_active_response")
    desk = second_session()
    assert not desk.protocol.received(busy)
    desk.sends({"type": "input_audio_buffer.append"})
    desk.hears(busy)


@pytest.mark.parametrize(
    "code", [None, "invalid_value", "cannot_update_voice", "input_audio_buffer_clear_failed"]
)
def test_a_step_that_is_refused_after_all(code: str | None) -> None:
    desk = second_session()
    late = error(code, desk.protocol.fence.prefix + "7")
    assert not desk.protocol.received(late)
    desk.reset()
    assert desk.outcome == "untracked"
    desk = second_session()
    late = error(code, desk.protocol.fence.prefix + "7")
    assert not desk.protocol.stray(json.dumps(late))


def test_settings_of_the_checkout_refused_after_all_is_this_sessions_news() -> None:
    desk = second_session()
    desk.protocol.configure({"instructions": "Be brief."}, desk.now)
    (asked,) = desk.asked()
    desk.feed(desk.answer(asked))
    desk.hears(error("invalid_value", asked["event_id"]))


def test_an_answer_to_no_question() -> None:
    for event in ({"type": "session.updated", "session": DEFAULTS}, {"type": "input_audio_buffer.cleared"}):
        desk = Desk()
        assert not desk.protocol.received(event)
        desk.reset()
        assert desk.outcome == "untracked"


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        b"\xff",
        "[]",
        "{}",
        json.dumps(created("resp_9")),
        json.dumps(item("item_9")),
        json.dumps({"type": "session.updated", "session": DEFAULTS}),
        json.dumps({"type": "session.created", "session": {"id": "sess_2"}}),
        json.dumps({"type": "some.future.event"}),
        json.dumps(error(None, None, "The server had an error")),
        json.dumps(error("session_expired")),
    ],
)
def test_news_on_an_idle_connection(message: Any) -> None:
    assert not second_session().protocol.stray(message)


def test_what_is_kept_is_bounded_and_the_newest() -> None:
    fence = Fence("p_", limit=100)
    for number in range(30):
        track = Track()
        track.ids.update(f"{number}.{index}" for index in range(10))
        track.ids.add("again")
        fence.retire(track)
    assert len(fence._ids) == 100
    new = Track()

    def foreign(name: str) -> bool:
        return fence.foreign("x", {"item_id": name}, new)

    assert foreign("29.0")
    assert foreign("again")
    assert not foreign("0.0")
    assert fence.sessions == 30
