"""How long a reset takes: round trips, with a server that behaves and a delay of 60 ms."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from realtime_model import DEFAULTS, TRANSCRIPTION, Link, Model

from rtpool_sync.protocols.realtime import RealtimeProtocol, RealtimeSession
from rtpool_sync.protocols.snapshot import difference


class Borrower:
    """What an application does with the connection, through the protocol's two ends."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.heard: list[dict[str, Any]] = []

    def send(self, **event: Any) -> None:
        self.link.protocol.sent(event)
        self.link.send(json.dumps(event))

    def listen(self, seconds: float = 1.0) -> None:
        self.link.settle(seconds)
        while self.link.inbox:
            event = json.loads(self.link.inbox.pop(0))
            if self.link.protocol.received(event):
                self.heard.append(event)

    def say(self, text: str, **item: Any) -> None:
        content = [{"type": "input_text", "text": text}]
        self.send(type="conversation.item.create", item={"type": "message", "content": content, **item})

    def turn(self) -> None:
        self.say("hello")
        self.send(type="response.create")
        self.listen()
        self.link.say(self.link.model.speak())
        self.listen()


def connect(model: Model, busy: float = 0.0, session: Any = None) -> tuple[Link, RealtimeSession, Borrower]:
    protocol = RealtimeProtocol().follow(session=session or {}, reset_timeout=5.0)
    link = Link(protocol, model, busy=busy)
    link.say(model.greeting())
    protocol.prepare(link.now)
    link.run()
    assert protocol.failure is None
    model.pristine = {**model.session}
    return link, protocol, Borrower(link)


def nothing(borrower: Borrower) -> None:
    pass


def text_turns(borrower: Borrower) -> None:
    for _ in range(20):
        borrower.turn()


def settings(borrower: Borrower) -> None:
    borrower.send(type="session.update", session={"type": "realtime", "instructions": "Be kind."})
    borrower.listen()
    borrower.turn()


def push_to_talk(borrower: Borrower) -> None:
    off = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    borrower.send(type="session.update", session=off)
    borrower.send(type="input_audio_buffer.append", audio="AAAA")
    borrower.send(type="input_audio_buffer.commit")
    borrower.turn()


def voice_turn(borrower: Borrower) -> None:
    borrower.send(type="input_audio_buffer.append", audio="END")
    borrower.listen()
    borrower.link.say(borrower.link.model.speak())
    borrower.listen()


def half_a_sentence(borrower: Borrower) -> None:
    borrower.turn()
    borrower.send(type="input_audio_buffer.append", audio="AAAA")


def active_response(borrower: Borrower) -> None:
    borrower.turn()
    borrower.send(type="response.create")
    borrower.listen()


def out_of_band(borrower: Borrower) -> None:
    for _ in range(3):
        borrower.send(type="response.create", response={"conversation": "none"})
    borrower.listen()


def response_just_asked_for(borrower: Borrower) -> None:
    borrower.say("hello")
    borrower.send(type="response.create")


def item_just_sent(borrower: Borrower) -> None:
    borrower.say("hello")


def settings_just_sent(borrower: Borrower) -> None:
    borrower.send(type="session.update", session={"type": "realtime", "instructions": "Be kind."})


@pytest.mark.parametrize(
    ("session", "trips"),
    [
        (nothing, 1),
        (text_turns, 1),
        (settings, 1),
        (push_to_talk, 1),
        (voice_turn, 2),
        (half_a_sentence, 2),
        (active_response, 2),
        (out_of_band, 2),
        (item_just_sent, 2),
        (settings_just_sent, 2),
        (response_just_asked_for, 3),
    ],
)
def test_round_trips(session: Callable[[Borrower], None], trips: int) -> None:
    model = Model()
    link, protocol, borrower = connect(model)
    session(borrower)
    protocol.reset(link.now)
    took = link.run()
    assert protocol.failure is None
    assert model.unclean() is None
    assert took == pytest.approx(trips * Link.RTT)


def test_a_response_that_the_server_takes_its_time_to_create() -> None:
    model = Model(manners={"late_responses"})
    link, protocol, borrower = connect(model, busy=0.5)
    response_just_asked_for(borrower)
    protocol.reset(link.now)
    took = link.run()
    assert protocol.failure is None
    assert model.unclean() is None
    assert took == pytest.approx(0.5 + 3 * Link.RTT)


def test_a_transcription_session() -> None:
    model = Model(TRANSCRIPTION)
    link, protocol, borrower = connect(model, session={"audio": {"input": {"transcription": {"model": "m"}}}})
    assert model.session["type"] == "transcription"
    borrower.send(type="input_audio_buffer.append", audio="END")
    model.create = lambda: model.waiting.clear() or []  # type: ignore[method-assign,func-returns-value]
    borrower.listen()
    protocol.reset(link.now)
    assert link.run() == pytest.approx(2 * Link.RTT)
    assert protocol.failure is None
    assert model.unclean() is None


def test_settings_of_a_checkout_take_one_round_trip_and_are_undone() -> None:
    model = Model()
    link, protocol, _ = connect(model)
    protocol.configure({"instructions": "Be brief.", "tools": [{"type": "function", "name": "f"}]}, link.now)
    assert link.run() == pytest.approx(Link.RTT)
    assert protocol.failure is None
    assert model.session["instructions"] == "Be brief."
    protocol.reset(link.now)
    assert link.run() == pytest.approx(Link.RTT)
    assert protocol.failure is None
    assert model.unclean() is None
    assert difference(model.session, DEFAULTS) is None


@pytest.mark.parametrize(
    ("manners", "outcome"),
    [
        ({"legacy"}, None),
        ({"no_event_ids"}, None),
        ({"deaf"}, "mismatch"),
        ({"deaf", "mute"}, "silent"),
        ({"odd_delete_error"}, "refused"),
        ({"no_clear"}, "refused"),
        ({"no_clear", "no_event_ids"}, "refused"),
    ],
)
def test_servers_that_deviate(manners: set[str], outcome: str | None) -> None:
    model = Model(manners=manners)
    link, protocol, borrower = connect(model)
    borrower.turn()
    active_response(borrower)
    protocol.reset(link.now)
    link.run()
    assert (protocol.failure and protocol.failure.outcome) == outcome
    if outcome is None:
        assert model.unclean() is None
