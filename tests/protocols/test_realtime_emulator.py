"""The protocol against the emulator's session, which was written apart from it, in virtual time.

Borrowers do anything that is allowed, and some things that are not. The server
behaves, so every reset has to succeed, and to leave nothing behind.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import json
import random
from collections.abc import Callable
from typing import Any

from rtpool_sync.emulator.response import Pace
from rtpool_sync.emulator.session import Session
from rtpool_sync.protocols.realtime import RealtimeProtocol, RealtimeSession
from rtpool_sync.protocols.snapshot import difference

LOUD = base64.b64encode(b"\x10\x27\xf0\xd8" * 6000).decode()
SILENCE = base64.b64encode(bytes(48000)).decode()
RTT = 0.060


class Wire:
    """A connection between the two, 60 ms there and back."""

    def __init__(self, protocol: RealtimeSession, server: Session) -> None:
        self.protocol, self.server = protocol, server
        self.now = 0.0
        self.inbox: list[str] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        server.start(self.now)
        self._flush()

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), action))

    def _flush(self) -> None:
        for event in self.server.outgoing():
            text = json.dumps(event)
            self._at(self.now + RTT / 2, lambda text=text: self.inbox.append(text))  # type: ignore[misc]

    def send(self, message: str) -> None:
        self._at(self.now + RTT / 2, lambda: self.server.feed(message, self.now))

    def step(self, until: float) -> bool:
        arrives = self._due[0][0] if self._due else float("inf")
        wakes = float("inf") if self.server.wake_at is None else self.server.wake_at
        if min(arrives, wakes) > until:
            return False
        if wakes < arrives:
            self.now = max(self.now, wakes)
            self.server.tick(self.now)
        else:
            self.now, _, action = heapq.heappop(self._due)
            action()
        self._flush()
        return True

    def settle(self, seconds: float) -> None:
        until = self.now + seconds
        while self.step(until):
            pass
        self.now = until

    def run(self) -> float:
        start = self.now
        while self.protocol.pending:
            for message in self.protocol.outgoing():
                self.send(message)
            wake = self.protocol.wake_at
            if self.inbox:
                self.protocol.feed(self.inbox.pop(0), self.now)
            elif not self.step(float("inf") if wake is None else wake):
                assert wake is not None
                self.now = wake
                self.protocol.tick(self.now)
        assert self.protocol.failure is None
        return self.now - start


class Borrower:
    def __init__(self, wire: Wire, kind: str, chance: random.Random) -> None:
        self.wire, self.kind, self.chance = wire, kind, chance
        self.items: list[str] = []

    def send(self, type: str, **event: Any) -> None:
        event["type"] = type
        if self.chance.random() < 0.5:
            event["event_id"] = f"event_{self.chance.randrange(10**6)}"
        text = json.dumps(event)
        self.wire.protocol.sent(text if self.chance.random() < 0.5 else event)
        self.wire.send(text)

    def settings(self, **settings: Any) -> None:
        self.send("session.update", session={"type": self.kind, **settings})

    def listen(self, seconds: float) -> None:
        self.wire.settle(seconds)
        while self.wire.inbox:
            text = self.wire.inbox.pop(0)
            event = json.loads(text)
            protocol = self.wire.protocol
            undecoded = self.chance.random() < 0.3
            if (protocol.received_text(text) if undecoded else protocol.received(event)) and "item" in event:
                self.items.append(event["item"]["id"])

    def act(self) -> None:
        chance, send = self.chance, self.send
        content = [{"type": "input_text", "text": "hello"}]
        item: dict[str, Any] = {"type": "message", "role": "user", "content": content}
        choice = chance.randrange(16)
        if choice == 0:
            send("conversation.item.create", item=item)
        elif choice == 1:
            send("conversation.item.create", item={**item, "id": f"mine_{chance.randrange(10)}"})
        elif choice == 2:
            send("response.cancel")
        elif choice in (3, 4) and self.kind == "realtime":
            send("response.create")
        elif choice == 5 and self.kind == "realtime":
            send("response.create", response={"conversation": "none", "output_modalities": ["text"]})
        elif choice == 6:
            send("input_audio_buffer.append", audio=LOUD)
        elif choice == 7:
            send("input_audio_buffer.append", audio=LOUD)
            send("input_audio_buffer.append", audio=SILENCE)
        elif choice == 8:
            send("input_audio_buffer.commit")
        elif choice == 9:
            send("input_audio_buffer.clear")
        elif choice == 10:
            self.settings(instructions="Be kind to everybody.")
        elif choice == 11:
            kinds = (None, {"type": "server_vad", "interrupt_response": False}, {"type": "semantic_vad"})
            self.settings(audio={"input": {"turn_detection": chance.choice(kinds)}})
        elif choice == 12:
            self.settings(output_modalities=["text"], tools=[{"type": "function", "name": "f"}])
        elif choice == 13 and self.items:
            send(
                f"conversation.item.{chance.choice(('delete', 'retrieve'))}",
                item_id=chance.choice(self.items),
            )
        else:
            self.listen(chance.choice((0.01, 0.1, 1.0, 8.0)))


CHECKOUTS = [
    {"audio": {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}}}},
    {"audio": {"input": {"transcription": {"model": "whisper-1"}}}},
    {},
    {},
]


def life(seed: int) -> None:
    chance = random.Random(seed)
    kind = chance.choice(("realtime", "realtime", "transcription"))
    pace = Pace(
        created=chance.choice((0.0, 0.05, 0.3)),
        response=chance.choice((0.0, 0.02, 0.5)),
        delta=chance.choice((0.0, 0.01, 0.1)),
        transcription=chance.choice((0.05, 1.0)),
    )
    server = Session(model="m" if kind == "realtime" else None, expires_at=1e10, kind=kind, pace=pace)
    protocol = RealtimeProtocol().follow(session={}, reset_timeout=5.0)
    wire = Wire(protocol, server)
    protocol.prepare(wire.now)
    wire.run()
    pristine = server.settings.snapshot()
    for _ in range(6):
        protocol.configure(chance.choice(CHECKOUTS), wire.now)
        wire.run()
        borrower = Borrower(wire, kind, chance)
        for _ in range(chance.randrange(14)):
            borrower.act()
        protocol.reset(wire.now)
        assert wire.run() < 3 * RTT + pace.created + 1e-6
        assert not server.conversation.items()
        assert not server.active_responses
        assert difference(server.settings.snapshot(), pristine) is None
        wire.settle(chance.choice((0.0, 0.5, 5.0)))
        while wire.inbox:
            assert protocol.stray(wire.inbox.pop(0))


def test_a_server_that_behaves_is_never_given_up() -> None:
    for seed in range(200):
        life(seed)
