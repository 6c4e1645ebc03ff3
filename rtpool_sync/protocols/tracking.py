"""What one session asks for, makes and leaves behind on a Realtime connection.

A :class:`Track` is fed every event that matters in either direction. It keeps
two lists: the *requests* that the server has not answered yet, and what exists
on the server because of the session: items, responses, buffered audio.

Answers are matched to requests by what they have in common, best first: the
``event_id`` in an error, an item or response id, and only then the order of the
socket. ``error.event_id`` alone will not do: it is documented as echoed, and
seen to be null for half of the error codes. ``session.updated`` has no
correlation key at all (API reference, ``session.update``), so updates are
counted.

Where two readings are possible the one is taken that leaves a request open: an
open request costs a connection at the reset, a forgotten one may cost a leak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .events import error_of, kind_of_error, name_of, named_in, part_of
from .snapshot import mcp_tools, turn_detection, voice, words

__all__ = ["Request", "Track"]

#: What client events ask for, an append excepted. One that is not listed may do anything to the session.
_KINDS = {
    "session.update": "update",
    "input_audio_buffer.commit": "commit",
    "input_audio_buffer.clear": "clear",
    "conversation.item.create": "create",
    "conversation.item.delete": "delete",
    "conversation.item.retrieve": "retrieve",
    "conversation.item.truncate": "truncate",
    "response.create": "respond",
    "response.cancel": "cancel",
    "output_audio_buffer.clear": "flush",  # refused on a WebSocket, and does nothing there
}

#: The answer that ends each kind of request; to say what was missing.
ANSWERS = {
    "update": "session.updated",
    "commit": "input_audio_buffer.committed",
    "clear": "input_audio_buffer.cleared",
    "create": "conversation.item.added",
    "delete": "conversation.item.deleted",
    "retrieve": "the error that an item is gone",
    "respond": "response.created",
}

#: Requests of the borrower that a reset waits for: they change what exists on the server.
#: It deletes and retrieves for itself, so what became of the borrower's does not matter.
_WEIGHTY = frozenset({"update", "commit", "clear", "create", "respond"})

#: Open requests that can be kept apart. Whoever has more open speaks to a server that answers nothing.
_LIMIT = 10_000


@dataclass(slots=True, eq=False)
class Request:
    """A client event that the server has yet to answer.

    Attributes:
        kind: What was asked for, a value of ``_KINDS``.
        event_id: Its ``event_id``, if it had one.
        key: The item or response it is about. For a response asked for: ``default``, ``apart``
            (out of band: ``conversation: none``) or ``vad`` (the server asked itself).
        step: The step of ours that sent it; empty for the borrower's.
    """

    kind: str
    event_id: str | None = None
    key: str | None = None
    step: str = ""

    @property
    def weighty(self) -> bool:
        """Whether a reset has to wait for the answer. A response is over when it is done, not when
        its cancel was answered."""
        return self.kind in _WEIGHTY or (self.step != "" and self.kind != "cancel")


class Track:
    """One session, from its checkout to the end of its reset.

    Attributes:
        ids: Every response and item id that belongs to this session.
        named: Those it asked something about, whether they are its own or not.
        events: The ``event_id`` of everything it sent, audio excepted.
        words: Hashes of the free texts it put into session settings.
        voices: Voices it asked for in single responses.
        kinds: The kinds of requests it made.
        requests: Those not answered yet, oldest first.
        items: What may exist in the conversation. False: only announced.
        gone: Items that existed and were deleted.
        active: Responses that were created and are not done.
        apart: Responses outside the conversation.
        audio_in: Whether input audio was sent.
        audible: Whether assistant audio was received.
        responded: Whether a response of this session was created.
        mcp: Whether MCP servers were among its tools.
        untracked: Why it can no longer be followed, or ``None``.
    """

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.named: set[str] = set()
        self.events: set[str] = set()
        self.words: set[int] = set()
        self.voices: list[Any] = []
        self.kinds: set[str] = set()
        self.requests: list[Request] = []
        self.items: dict[str, bool] = {}
        self.gone: set[str] = set()
        self.active: dict[str, None] = {}
        self.apart: set[str] = set()
        self.audio_in = False
        self.audible = False
        self.responded = False
        self.mcp = False
        self.untracked: str | None = None
        # Items that voice activity detection is about to commit. True: for want of any speech, which
        # always makes it respond.
        self._speech: dict[str, bool] = {}
        self._listens = False  # voice activity detection is on…
        self._answers = False  # …and starts responses…
        self._initiative = False  # …even in silence

    # -- state

    def lose(self, reason: str) -> None:
        """Note that the session can no longer be followed. The first reason is kept."""
        if self.untracked is None:
            self.untracked = reason

    def settled(self, settings: Mapping[str, Any]) -> None:
        """Note the effective settings."""
        detection = turn_detection(settings)
        self._listens = detection is not None
        self._answers = (
            detection is not None
            and detection.get("create_response") is not False
            and settings.get("type") != "transcription"
        )
        # With an idle timeout the server speaks although nobody spoke to it.
        self._initiative = detection is not None and detection.get("idle_timeout_ms") is not None
        self.mcp = self.mcp or mcp_tools(settings)

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way: what exists now is all that will exist."""
        expecting = self._listens and (self.audio_in or self._initiative)
        return not self.requests and not self.active and not expecting

    @property
    def blocked(self) -> bool:
        """Whether a reset has to wait for an answer or for the end of a response."""
        return bool(self.active) or any(request.weighty for request in self.requests)

    def missing(self) -> str:
        """What a reset is waiting for, for people."""
        found = {f"response.done of {name}": None for name in self.active}
        for request in self.requests:
            if request.weighty:
                found[ANSWERS[request.kind]] = None
        names = list(found)
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    # -- requests

    def asked(self, event: Mapping[str, Any], step: str = "") -> None:
        """Note a client event, other than an append, before it is written."""
        type_ = event.get("type")
        kind = _KINDS.get(type_) if isinstance(type_, str) else None
        if kind is None:
            self.lose(f"an event of unknown type {type_!r:.60} was sent")
            return
        event_id = name_of(event, "event_id")
        if event_id is not None and (not step or step == "configure"):
            self.events.add(event_id)
        self.kinds.add(kind)
        key = None
        if kind == "update":
            settings = part_of(event, "session")
            self.words.update(map(hash, words(settings)))
            self.mcp = self.mcp or mcp_tools(settings)
        elif kind == "create":
            key = name_of(part_of(event, "item"), "id")
            if key is not None:
                self.ids.add(key)
        elif kind == "respond":
            key = self._asked_response(part_of(event, "response"))
        else:
            key = name_of(event, "item_id") or name_of(event, "response_id")
            if key is not None:
                self.named.add(key)
        if len(self.requests) >= _LIMIT:
            self.lose(f"the server left {_LIMIT} requests unanswered")
            return
        self.requests.append(Request(kind, event_id, key, step))

    def _asked_response(self, response: Mapping[str, Any]) -> str:
        self.mcp = self.mcp or mcp_tools(response)
        own_voice = voice(response)
        if own_voice is not None:
            self.voices.append(own_voice)
        return "apart" if response.get("conversation") == "none" else "default"

    def settle(self, kind: str, *keys: str | None) -> Request | None:
        """Take the request that was answered: the oldest with the first of these keys that any has."""
        for key in keys:
            for index, request in enumerate(self.requests):
                if request.kind == kind and request.key == key:
                    return self.requests.pop(index)
        return None

    def settle_oldest(self, kind: str) -> Request | None:
        """The same where nothing but the order tells."""
        for index, request in enumerate(self.requests):
            if request.kind == kind:
                return self.requests.pop(index)
        return None

    def _refused(self, event: Mapping[str, Any]) -> Request | None:
        error = error_of(event)
        event_id = name_of(error, "event_id")
        if event_id is not None:
            for index, request in enumerate(self.requests):
                if request.event_id == event_id:
                    return self.requests.pop(index)
            if event_id in self.events:
                return None  # about a request that was answered before
        kind = kind_of_error(error)
        named = named_in(error)
        open_ = [request for request in self.requests if request.kind == kind]
        if kind == "respond":
            # A voice turn has no field that could be wrong, and one apart cannot be in the way.
            keys = ("default", "apart") if name_of(error, "param") else ("default", "vad")
            open_ = [request for request in open_ if request.key in keys]
            named = set()
        # Best the one it names; then one that had no event_id, or it would have been shown; the oldest.
        found = min(open_, key=lambda one: (one.key not in named, one.event_id is not None), default=None)
        if found is not None:
            self.requests.remove(found)
        return found

    # -- what the server says

    def noted(self, kind: str, event: Mapping[str, Any]) -> Request | None:
        """Note a server event; return the request it answered."""
        note = _NOTES.get(kind)
        if note is not None:
            return note(self, event)
        response, item = name_of(event, "response_id"), name_of(event, "item_id")
        if response is not None:
            self._alive(response)
            if "audio" in kind:
                self.audible = True
        if item is not None:
            self.ids.add(item)
            if kind.startswith("conversation.item.") and item not in self.gone:
                self.items[item] = True
        return None

    def _item(self, event: Mapping[str, Any]) -> Request | None:
        item = part_of(event, "item")
        name = name_of(item, "id")
        if name is None:
            self.lose("an item without an id was announced")
            return None
        # An unannounced item without a request of its own is the one that was created without an id.
        answered = self.settle("create", name) or (None if name in self.ids else self.settle("create", None))
        self.ids.add(name)
        if answered is not None:
            self.gone.discard(name)  # deleted, and created again with the same id
        if name not in self.gone:
            self.items[name] = True
        if item.get("role") == "assistant":
            self._heard(item.get("content"))
        return answered

    def _retrieved(self, event: Mapping[str, Any]) -> Request | None:
        name = name_of(part_of(event, "item"), "id")
        if name is None:
            return None
        self.ids.add(name)
        if name not in self.gone:
            self.items[name] = True
        return self.settle("retrieve", name)

    def _deleted(self, event: Mapping[str, Any]) -> Request | None:
        name = name_of(event, "item_id")
        if name is None:
            return None
        self.forget(name)
        return self.settle("delete", name)

    def forget(self, item: str) -> None:
        """Note that an item is gone."""
        self.ids.add(item)
        self.gone.add(item)
        self.items.pop(item, None)

    def _truncated(self, event: Mapping[str, Any]) -> Request | None:
        return self.settle("truncate", name_of(event, "item_id"))

    def _committed(self, event: Mapping[str, Any]) -> Request | None:
        name = name_of(event, "item_id")
        if name is None:
            self.lose("input audio became an item without an id")
            return self.settle_oldest("commit")
        if name in self.items or name in self.gone:
            return None  # said before
        self.ids.add(name)
        self.items[name] = False
        # An item announced by voice activity detection, or that nobody asked for, is committed by
        # the server, which now asks itself for a response.
        answered = None if name in self._speech else self.settle_oldest("commit")
        if answered is None and (self._answers or self._speech.get(name)):
            self.requests.append(Request("respond", key="vad"))
        return answered

    def _speech_ended(self, event: Mapping[str, Any]) -> None:
        name = name_of(event, "item_id")
        if name is not None:
            self.ids.add(name)
            self._speech[name] = event.get("type") == "input_audio_buffer.timeout_triggered"

    def _cleared(self, event: Mapping[str, Any]) -> Request | None:
        answered = self.settle_oldest("clear")
        if answered is None:
            self.lose("input_audio_buffer.cleared came without a request")
        return answered

    def _created(self, event: Mapping[str, Any]) -> Request | None:
        response = part_of(event, "response")
        name = name_of(response, "id")
        if name is None:
            self.lose("a response without an id was created")
            return None
        return self._alive(name, response)

    def _alive(self, name: str, response: Mapping[str, Any] | None = None) -> Request | None:
        """Note a response under way. It counts as created at the first mention of its id."""
        if name in self.ids:
            return None
        self.ids.add(name)
        self.active[name] = None
        self.responded = True
        if response is None or "conversation_id" not in response:
            return self.settle("respond", "vad", "default", "apart")
        if response["conversation_id"] is None:
            self.apart.add(name)
            return self.settle("respond", "apart", "vad", "default")
        # One that the server started by itself may overtake one that was asked for. Which of
        # the two this is cannot be seen; counting it as the server's leaves the other open.
        return self.settle("respond", "vad", "default")

    def _done(self, event: Mapping[str, Any]) -> Request | None:
        response = part_of(event, "response")
        name = name_of(response, "id")
        if name is None:
            self.lose("a response without an id was done")
            return None
        answered = self._alive(name, response)
        self.active.pop(name, None)
        self.settle("cancel", name, None)
        output = response.get("output")
        for item in output if isinstance(output, list) else ():
            if isinstance(item, Mapping):
                self._output(name, item)
        return answered

    def _output_item(self, event: Mapping[str, Any]) -> Request | None:
        response = name_of(event, "response_id") or ""
        answered = self._alive(response) if response else None
        self._output(response, part_of(event, "item"))
        return answered

    def _output(self, response: str, item: Mapping[str, Any]) -> None:
        name = name_of(item, "id")
        if name is not None:
            self.ids.add(name)
            # The output of a response outside the conversation is no item of it.
            if response not in self.apart and name not in self.gone:
                self.items[name] = True
        self._heard(item.get("content"))

    def _part(self, event: Mapping[str, Any]) -> Request | None:
        self._heard([event.get("part")])
        return self._output_item(event)

    def _heard(self, content: Any) -> None:
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") in ("audio", "output_audio"):
                self.audible = True


_NOTES: dict[str, Callable[[Track, Mapping[str, Any]], Request | None]] = {
    "conversation.item.added": Track._item,
    "conversation.item.created": Track._item,  # the same, as it was called before 2025-08
    "conversation.item.done": Track._item,
    "conversation.item.retrieved": Track._retrieved,
    "conversation.item.deleted": Track._deleted,
    "conversation.item.truncated": Track._truncated,
    "input_audio_buffer.committed": Track._committed,
    "input_audio_buffer.cleared": Track._cleared,
    "input_audio_buffer.speech_stopped": Track._speech_ended,
    "input_audio_buffer.timeout_triggered": Track._speech_ended,
    "response.created": Track._created,
    "response.done": Track._done,
    "response.output_item.added": Track._output_item,
    "response.output_item.done": Track._output_item,
    "response.content_part.added": Track._part,
    "response.content_part.done": Track._part,
    "error": Track._refused,
}
