"""Whatever a server does with its answers: no reset succeeds that was none, and nobody hears another's words.

Every session leaves marks in all it does. Chaos delays, repeats, swaps and drops what the server
answers; a seed makes each run the same again.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import Any

import pytest
from realtime_model import Link, Model

from rtpool_sync.protocols.base import RESET_OUTCOMES
from rtpool_sync.protocols.realtime import RealtimeProtocol, RealtimeSession

MARK = re.compile(r"mark of session (\d+)")


class Session:
    """A borrower who does anything, and checks everything."""

    def __init__(self, link: Link, number: int, chance: random.Random) -> None:
        self.link, self.protocol, self.number, self.chance = link, link.protocol, number, chance
        self.mark = f"mark of session {number}"
        self.items: list[str] = []

    def send(self, **event: Any) -> None:
        if self.chance.random() < 0.5:
            event["event_id"] = f"event_{self.number}_{self.chance.randrange(10**6)}"
        text = json.dumps(event)
        self.protocol.sent(text if self.chance.random() < 0.5 else event)
        self.link.send(text)

    def listen(self, seconds: float) -> None:
        self.link.settle(seconds)
        inbox, self.link.inbox[:] = list(self.link.inbox), []
        for text in inbox:
            event = json.loads(text)
            undecoded = self.chance.random() < 0.3
            delivered = self.protocol.received_text(text) if undecoded else self.protocol.received(event)
            if delivered:
                assert set(MARK.findall(text)) <= {str(self.number)}, text
                item = event.get("item", {}).get("id")
                if item is not None:
                    self.items.append(item)

    def act(self) -> None:
        chance = self.chance
        content = [{"type": "input_text", "text": self.mark}]
        item: dict[str, Any] = {"type": "message", "role": "user", "content": content}
        match chance.randrange(15):
            case 0:
                self.send(type="conversation.item.create", item=item)
            case 1:
                item["id"] = f"mine_{self.number}_{chance.randrange(10**6)}"
                self.send(type="conversation.item.create", item=item)
            case 2:
                self.send(type="response.create", response={"metadata": {"text": self.mark}})
            case 3:
                asked = {"conversation": "none", "metadata": {"text": self.mark}}
                self.send(type="response.create", response=asked)
            case 4:
                self.send(type="response.cancel")
            case 5:
                self.send(type="input_audio_buffer.append", audio=self.mark + chance.choice(("", "END")))
            case 6:
                self.send(type="input_audio_buffer.commit")
            case 7:
                settings = {"type": "realtime", "instructions": self.mark}
                self.send(type="session.update", session=settings)
            case 8:
                audio = {"input": {"turn_detection": None}}
                self.send(type="session.update", session={"type": "realtime", "audio": audio})
            case 9:
                self.send(type="session.update", session={"type": "realtime", "instructions": "refuse me"})
            case 10 if self.items:
                kind = chance.choice(("delete", "retrieve", "truncate"))
                self.send(type=f"conversation.item.{kind}", item_id=chance.choice(self.items))
            case 11:
                self.send(type="input_audio_buffer.clear")
            case 12:
                voice = {"output": {"voice": chance.choice(("alloy", "marin"))}}
                self.send(type="session.update", session={"type": "realtime", "audio": voice})
            case 13 if self.link.model.active:
                self.link.say(self.link.model.speak())
            case _:
                self.listen(chance.choice((0.01, 0.1, 1.0)))


def life(seed: int, chaos: float) -> list[str]:
    """Sessions on one connection until it must be given up; the outcome of each."""
    chance = random.Random(seed)
    deviations = ("no_event_ids", "late_responses", "legacy", "speaks")
    manners = {manner for manner in deviations if chance.random() < 0.3}
    model = Model(manners=manners)
    protocol: RealtimeSession = RealtimeProtocol().follow(session={}, reset_timeout=5.0)
    link = Link(protocol, model, chaos=chaos, seed=seed, busy=chance.choice((0.0, 0.05, 0.5)))
    link.say(model.greeting())
    protocol.prepare(link.now)
    link.run()
    outcomes: list[str] = []
    for number in range(1, 9):
        session = Session(link, number, chance)
        if chance.random() < 0.3:
            protocol.configure({"instructions": f"mark of session {number}"}, link.now)
            link.run(until=link.now + 30.0)
            if protocol.pending:
                return [*outcomes, "configure: silent"]
            if protocol.failure is not None:
                return [*outcomes, f"configure: {protocol.failure.outcome}"]
        for _ in range(chance.randrange(12)):
            session.act()
        protocol.reset(link.now)
        took = link.run()
        assert took <= 4 * 5.0 + 1e-9
        if protocol.failure is not None:
            return [*outcomes, protocol.failure.outcome]
        link.settle(Link.RTT / 2)  # what is on its way to the server
        assert model.unclean() is None
        outcomes.append("ok")
        link.settle(chance.choice((0.0, 0.0, 0.5, 5.0)))
        while link.inbox:
            if not protocol.stray(link.inbox.pop(0)):
                return [*outcomes, "dirty"]
    return outcomes


@pytest.mark.parametrize("chaos", [0.02, 0.3])
def test_chaos(chaos: float) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(150):
        outcomes.update(life(seed, chaos))
    assert set(outcomes) <= {*RESET_OUTCOMES, "dirty", *(f"configure: {name}" for name in RESET_OUTCOMES)}
    assert outcomes["ok"] > 50
    assert outcomes["silent"] > 10


def test_without_chaos_only_a_locked_voice_costs_a_connection() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(200):
        outcomes.update(life(seed, 0.0))
    assert set(outcomes) <= {"ok", "locked"}
