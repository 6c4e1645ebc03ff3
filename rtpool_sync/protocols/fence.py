"""What must not reach a later session on the same connection.

``response.done`` is not the last word of a session: ``rate_limits.updated`` was
seen 43 ms after it, and a transcription may be completed after the response it
belongs to (API reference, ``input_audio_transcription.completed``). Whatever
such an event is about, a response or an item, has an id that the earlier
session used; these ids are kept, and an event that names one is not delivered.

It is a list of what is refused, not of what is allowed: a server that announces
its items late, or not at all, would otherwise lose events that belong to the
session. What can be told apart without an id is:

* an answer to a question that this session did not ask,
* settings with words that an earlier session chose and this one did not,
* rate limits before the first response of this session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from .events import error_of, ids_of, kind_of_error, name_of, named_in
from .snapshot import words
from .tracking import Track

__all__ = ["Fence"]

T = TypeVar("T")

#: Names kept of each kind. An hour of conversation makes a few hundred.
_LIMIT = 10_000


class _Recent(Generic[T]):
    """A set that forgets its oldest members."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._members: dict[T, None] = {}  # a dict keeps their order

    def __contains__(self, member: T) -> bool:
        return member in self._members

    def __len__(self) -> int:
        return len(self._members)

    def update(self, members: Iterable[T]) -> None:
        for member in members:
            self._members.pop(member, None)  # used again: the newest
            self._members[member] = None
        for member in list(self._members)[: max(0, len(self._members) - self._limit)]:
            del self._members[member]


class Fence:
    """Knows what belonged to the earlier sessions of one connection.

    Args:
        prefix: How the ``event_id`` of every event of our own begins.
        limit: How many names of each kind are kept.
    """

    def __init__(self, prefix: str, limit: int = _LIMIT) -> None:
        self.prefix = prefix
        self.sessions = 0
        self._ids: _Recent[str] = _Recent(limit)
        self._events: _Recent[str] = _Recent(limit)
        self._words: _Recent[int] = _Recent(limit)

    def retire(self, track: Track) -> None:
        """Note that a session is over."""
        self.sessions += 1
        self._ids.update(track.ids)
        self._events.update(track.events)
        self._words.update(track.words)

    def foreign(self, kind: str, event: Mapping[str, Any], track: Track) -> bool:
        """Whether an event belongs to an earlier session, or to a step of ours that is over."""
        if any(name in self._ids and name not in track.ids for name in ids_of(event)):
            return True
        if kind == "error":
            return self._foreign_error(event, track)
        if kind == "rate_limits.updated":
            return self.sessions > 0 and not track.responded
        if kind == "session.updated" and len(self._words):
            said = {hash(text) for text in words(event.get("session"))}
            if any(text in self._words for text in said - track.words):
                track.lose("settings of an earlier session were received")
                return True
        return False

    def _foreign_error(self, event: Mapping[str, Any], track: Track) -> bool:
        error = error_of(event)
        event_id = name_of(error, "event_id")
        kind = kind_of_error(error)
        if event_id is not None:
            if event_id in track.events or any(event_id == request.event_id for request in track.requests):
                return False
            if event_id.startswith(self.prefix):
                if kind in (None, "update", "clear"):
                    # The step was acknowledged, or there would have been no later session.
                    track.lose("a step of the reset was refused after it had been acknowledged")
                return True
            if event_id in self._events:
                return True
        if any(name in self._ids for name in named_in(error) - track.ids - track.named):
            return True
        if self.sessions == 0 or kind is None or kind in track.kinds:
            return False
        # Only a session that cancelled can be told that there was nothing to cancel. Responses,
        # however, are also asked for by the server itself, once it hears speech.
        return not (kind == "respond" and track.audio_in)
