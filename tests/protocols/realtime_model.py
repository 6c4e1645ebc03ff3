"""A small Realtime server without I/O: it takes events and returns events, and time is a number.

It is honest about its state and configurable about its manners: ``manners`` names
the ways in which servers in the field deviate.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import json
import random
from collections.abc import Callable
from typing import Any

from rtpool_sync.protocols.realtime import RealtimeSession
from rtpool_sync.protocols.snapshot import difference

Event = dict[str, Any]

DEFAULTS: Event = {
    "type": "realtime",
    "object": "realtime.session",
    "id": "sess_1",
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
    "expires_at": 1_800_000_000,
}
TRANSCRIPTION: Event = {
    "type": "transcription",
    "object": "realtime.transcription_session",
    "id": "sess_1",
    "expires_at": 1_800_000_000,
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "transcription": None,
            "noise_reduction": None,
            "turn_detection": {"type": "server_vad", "threshold": 0.5},
        }
    },
    "include": None,
}

#: Answers to requests: what chaos may delay, repeat, reorder and drop. Other events keep their order:
#: no client can know of what a server does by itself and never tells.
ACKS = {
    "session.updated",
    "conversation.item.added",
    "conversation.item.done",
    "response.created",
    "response.done",
    "input_audio_buffer.cleared",
    "conversation.item.deleted",
    "conversation.item.retrieved",
    "conversation.item.truncated",
    "error",
}


class Model:
    """The server's side of one connection.

    Args:
        settings: The session it begins with.
        manners: Any of ``deaf`` (ignores deletes), ``mute`` (retrieves as well), ``odd_delete_error``,
            ``no_clear``, ``legacy``, ``no_event_ids``, ``late_responses``, ``speaks`` (responses have audio).
    """

    def __init__(self, settings: Event = DEFAULTS, manners: set[str] | None = None) -> None:
        self.session = copy.deepcopy(settings)
        self.pristine = copy.deepcopy(settings)
        self.manners = manners or set()
        self.items: dict[str, str] = {}  # id → text
        self.used_ids: set[str] = set()
        self.buffer = ""
        self.active: dict[str, Event] = {}
        self.waiting: list[Event] = []  # responses asked for and not created
        self.spoke = False
        self._numbers = itertools.count(1)

    # -- what a test asks

    def name(self, kind: str) -> str:
        return f"{kind}_{next(self._numbers)}"

    def unclean(self) -> str | None:
        """What is left of the last session, or None."""
        if self.items:
            return f"items {list(self.items)}"
        if self.active or self.waiting:
            return "responses"
        if self.buffer:
            return "input audio"
        return difference(self.pristine, self.session)

    def greeting(self) -> list[Event]:
        return [{"type": "session.created", "session": copy.deepcopy(self.session)}]

    # -- events

    def take(self, message: str) -> list[Event]:
        event = json.loads(message)
        handler = getattr(self, "_" + event["type"].replace(".", "_"))
        answers: list[Event] = handler(event)
        return answers

    def _error(self, event: Event, code: str | None, message: str = "", **more: Any) -> list[Event]:
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": None, **more}
        error["event_id"] = None if "no_event_ids" in self.manners else event.get("event_id")
        return [{"type": "error", "event_id": self.name("event"), "error": error}]

    def _session_update(self, event: Event) -> list[Event]:
        change = event["session"]
        if change.get("instructions") == "refuse me":
            return self._error(event, "invalid_value", "I refuse", param="session.instructions")
        old_voice = self.session.get("audio", {}).get("output", {}).get("voice")
        merged = _merge(self.session, change)
        if self.spoke and merged["audio"]["output"]["voice"] != old_voice:
            return self._error(event, "cannot_update_voice", param="session.audio.output.voice")
        self.session = merged
        return [{"type": "session.updated", "session": copy.deepcopy(merged)}]

    def _conversation_item_create(self, event: Event) -> list[Event]:
        item = event["item"]
        name = item.get("id") or self.name("item")
        if name in self.used_ids:
            return self._error(event, "item_create_duplicate_item_id", f"{name} exists")
        text = item["content"][0]["text"]
        self.items[name] = text
        self.used_ids.add(name)
        return self._added(name, text, item.get("role", "user"))

    def _added(self, name: str, text: str, role: str) -> list[Event]:
        item = {"id": name, "type": "message", "role": role, "content": [{"type": "text", "text": text}]}
        if "legacy" in self.manners:
            return [{"type": "conversation.item.created", "item": item}]
        return [
            {"type": "conversation.item.added", "item": item},
            {"type": "conversation.item.done", "item": item},
        ]

    def _conversation_item_delete(self, event: Event) -> list[Event]:
        name = event["item_id"]
        if "deaf" in self.manners:
            return []
        if "odd_delete_error" in self.manners:
            return self._error(event, None, "not found", type="conversation_item_not_found")
        if name not in self.items:
            return self._error(event, "item_delete_invalid_item_id", f"no item {name}")
        del self.items[name]
        return [{"type": "conversation.item.deleted", "item_id": name}]

    def _conversation_item_retrieve(self, event: Event) -> list[Event]:
        name = event["item_id"]
        if "mute" in self.manners:
            return []
        if name not in self.items:
            return self._error(event, "item_retrieve_invalid_item_id", f"no item {name}")
        return [{"type": "conversation.item.retrieved", "item": {"id": name, "content": self.items[name]}}]

    def _conversation_item_truncate(self, event: Event) -> list[Event]:
        return [{"type": "conversation.item.truncated", "item_id": event["item_id"]}]

    def _input_audio_buffer_append(self, event: Event) -> list[Event]:
        self.buffer += event["audio"]
        if self.session["audio"]["input"]["turn_detection"] and "END" in self.buffer:
            name = self.name("item")
            return [
                {"type": "input_audio_buffer.speech_started", "item_id": name},
                {"type": "input_audio_buffer.speech_stopped", "item_id": name},
                *self._commit(name),
                *self._ask({}),
            ]
        return []

    def _input_audio_buffer_commit(self, event: Event) -> list[Event]:
        if not self.buffer:
            return self._error(event, "input_audio_buffer_commit_empty", "buffer is empty")
        return self._commit(self.name("item"))

    def _commit(self, name: str) -> list[Event]:
        text, self.buffer = self.buffer, ""
        self.items[name] = text
        return [{"type": "input_audio_buffer.committed", "item_id": name}, *self._added(name, text, "user")]

    def _input_audio_buffer_clear(self, event: Event) -> list[Event]:
        if "no_clear" in self.manners:
            return self._error(event, "unknown_or_invalid_event", "unknown event")
        self.buffer = ""
        return [{"type": "input_audio_buffer.cleared"}]

    def _response_create(self, event: Event) -> list[Event]:
        asked = event.get("response", {})
        if asked.get("conversation") != "none" and any(
            other["conversation_id"] for other in (*self.active.values(), *self.waiting)
        ):
            return self._error(event, "conversation_already_has_active_response", "busy")
        return self._ask(asked)

    def _ask(self, asked: Event) -> list[Event]:
        response = {
            "id": self.name("resp"),
            "conversation_id": None if asked.get("conversation") == "none" else "conv_1",
            "text": asked.get("metadata", {}).get("text", "…"),
        }
        self.waiting.append(response)
        return [] if "late_responses" in self.manners else self.create()

    def create(self) -> list[Event]:
        """Create every response that was asked for."""
        events: list[Event] = []
        for response in self.waiting:
            self.active[response["id"]] = response
            events.append({"type": "response.created", "response": _public(response, [])})
        self.waiting.clear()
        return events

    def speak(self) -> list[Event]:
        """Some output, and the end of every active response."""
        events: list[Event] = []
        for response in list(self.active.values()):
            name = self.name("item")
            item = {"id": name, "type": "message", "role": "assistant"}
            text = response["text"]
            about = {"response_id": response["id"], "item_id": name}
            events.append({"type": "response.output_item.added", "response_id": response["id"], "item": item})
            if response["conversation_id"]:
                self.items[name] = text
                events += self._added(name, text, "assistant")
            if "speaks" in self.manners:
                self.spoke = True
                events.append({"type": "response.output_audio.delta", **about, "delta": text})
            else:
                events.append({"type": "response.output_text.delta", **about, "delta": text})
            events += self._end(response["id"], "completed", [item])
        return events

    def _end(self, name: str, status: str, output: list[Event]) -> list[Event]:
        response = self.active.pop(name)
        return [
            {"type": "response.done", "response": {**_public(response, output), "status": status}},
            {"type": "rate_limits.updated", "rate_limits": []},
        ]

    def _response_cancel(self, event: Event) -> list[Event]:
        name = event.get("response_id")
        if name is None:
            name = next((r["id"] for r in self.active.values() if r["conversation_id"]), None)
        if name not in self.active:
            return self._error(event, "response_cancel_not_active", "no active response found")
        return self._end(name, "cancelled", [])


def _public(response: Event, output: list[Event]) -> Event:
    return {"id": response["id"], "conversation_id": response["conversation_id"], "output": output}


def _merge(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return copy.deepcopy(new)
    merged = dict(old)
    for name, value in new.items():
        merged[name] = _merge(old.get(name), value)
    return merged


class Link:
    """A network with a delay between a protocol object and a model, in virtual time.

    With ``chaos`` the server's acknowledgements are delayed, repeated, swapped or dropped,
    each with that probability.
    """

    RTT = 0.060

    def __init__(
        self, protocol: RealtimeSession, model: Model, *, chaos: float = 0.0, seed: int = 0, busy: float = 0.0
    ) -> None:
        self.protocol, self.model = protocol, model
        self.now = 0.0
        self.busy = busy  # seconds the server takes to create a response
        self._chaos, self._random = chaos, random.Random(seed)
        self._order = itertools.count()
        self._wire: list[tuple[float, int, Callable[[], None]]] = []
        self._latest = 0.0  # what keeps its order arrives no earlier than this
        self.inbox: list[str] = []
        self.log: list[str] = []

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._wire, (when, next(self._order), action))

    def send(self, message: str) -> None:
        self.at(self.now + self.RTT / 2, lambda: self._arrive(message))

    def _arrive(self, message: str) -> None:
        self.log.append(json.loads(message)["type"])
        self.say(self.model.take(message))
        if self.model.waiting:
            self.at(self.now + self.busy, lambda: self.say(self.model.create()))

    def say(self, events: list[Event]) -> None:
        """The server sends these."""
        for event in events:
            copies, delay = 1, 0.0
            if event["type"] in ACKS and self._random.random() < self._chaos:
                copies = self._random.choice((0, 1, 1, 2, 2))
                delay = self._random.choice((0.0, 0.001, 0.1, 1.0, 10.0))
            for number in range(copies):
                late = delay if number + 1 == copies else 0.0
                when = self.now + self.RTT / 2
                if not late:
                    self._latest = when = max(when, self._latest)
                text = json.dumps(event)
                self.at(when + late, lambda text=text: self.inbox.append(text))  # type: ignore[misc]

    def step(self, until: float = float("inf")) -> bool:
        """Let the next thing happen; False: nothing does before ``until``."""
        if not self._wire or self._wire[0][0] > until:
            return False
        self.now, _, action = heapq.heappop(self._wire)
        action()
        return True

    def run(self, until: float = float("inf")) -> float:
        """Drive the task under way to its end, as the pool does; return the seconds it took."""
        protocol, start = self.protocol, self.now
        while protocol.pending and self.now < until:
            for message in protocol.outgoing():
                self.send(message)
            if self.inbox:
                protocol.feed(self.inbox.pop(0), self.now)
            elif not self.step(wake := min(until, protocol.wake_at or until)):
                assert wake < float("inf"), "waits for ever"
                self.now = wake
                protocol.tick(self.now)
        return self.now - start

    def settle(self, seconds: float = 1.0) -> None:
        """Let time pass with nobody reading."""
        until = self.now + seconds
        while self.step(until):
            pass
        self.now = until
