"""The steps that make a Realtime connection as good as new.

One *round* puts this on the wire, in this order:

1. **stop**: voice activity detection off, so that the server starts nothing by
   itself any more; every active response cancelled, by id; the input audio
   cleared.
2. **restore**: every item deleted; the settings put back to the snapshot; the
   newest deleted item asked for, which must fail.

Between the two it waits until every response has ended, also those that were
asked for and not created yet: a cancel sent before ``response.created`` is
lost, and the server then creates the response anyway. When the session is
quiet, nothing of it being under way, there is nothing to wait for, and both
parts are sent at once: the server handles them in order. In either case every
answer is checked by itself, and if anything turned up meanwhile another round
follows.

The first ``session.update`` sets instructions that name this very step. An
acknowledgement carries no correlation key, so this is what tells it from a late
or a repeated one: it has to show these words.

Nothing here tolerates an answer that is missing, out of place or different. A
connection costs 0.3 seconds; a leak costs more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .events import error_of, kind_of_error, name_of
from .refusals import quote
from .snapshot import difference, patch, stopped, turn_detection
from .tracking import Request

if TYPE_CHECKING:
    from .realtime import RealtimeSession

__all__ = ["Reset"]

#: Rounds after which a connection that does not come to rest is given up.
ROUNDS = 3
#: Bounds the whole reset, in units of ``reset_timeout``: a step begins anew when it sends a cancel.
PATIENCE = 4

#: What says that there is nothing left to do, by kind of request.
_BENIGN = {
    "cancel": "response_cancel_not_active",
    "delete": "item_delete_invalid_item_id",
    "retrieve": "item_retrieve_invalid_item_id",
}

#: What no step asks for, and what was over before it could be cancelled.
_THEIRS = frozenset({"cancel", "commit", "create", "respond", "truncate"})


class Reset:
    """One reset under way."""

    def __init__(self, link: RealtimeSession, timeout: float, now: float) -> None:
        self._link = link
        self._track = link.track
        self._timeout = timeout
        self._until = now + PATIENCE * timeout
        self._rounds = 0
        self._mark: str | None = None
        self._cancelled: set[str] = set()
        self._restoring = False
        self._begin(now)

    # -- the steps

    def _begin(self, now: float) -> None:
        if self._refusing():
            return
        link, track = self._link, self._track
        self._rounds += 1
        self._restoring = False
        quiet = track.quiet
        kind = link.snapshot.get("type") or "realtime"
        stop: dict[str, Any] = {"type": kind, "audio": {"input": {"turn_detection": None}}}
        self._mark = None
        if kind != "transcription":  # those have no instructions
            # Harmless to a response that is created in this moment.
            stop["instructions"] = self._mark = f"Say nothing. [{link.next_event_id()}]"
        link.ask({"type": "session.update", "session": stop}, "stop")
        self._cancel()
        link.ask({"type": "input_audio_buffer.clear"}, "clear")
        self._wait(now)
        if quiet:
            self._restore(now)

    def _cancel(self) -> bool:
        """Cancel what is active and was not cancelled yet."""
        found = [name for name in self._track.active if name not in self._cancelled]
        for name in found:
            # Without the id it would hit whatever is active in the conversation, and
            # never a response outside it (API reference, `response.cancel`).
            self._link.ask({"type": "response.cancel", "response_id": name}, "cancel")
        self._cancelled.update(found)
        return bool(found)

    def _restore(self, now: float) -> None:
        link, track = self._link, self._track
        self._restoring = True
        items = list(track.items)
        for name in items:
            link.ask({"type": "conversation.item.delete", "item_id": name}, "delete")
        # Of a quiet session the acknowledgement of `stop` is still to come.
        current = stopped(link.effective, self._mark)
        settings = patch(link.snapshot, current, keep_voice=link.spoken)
        link.ask({"type": "session.update", "session": settings}, "restore")
        if items:
            link.ask({"type": "conversation.item.retrieve", "item_id": items[-1]}, "proof")
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._link.wake_at = min(now + self._timeout, self._until)

    def _advance(self, now: float) -> None:
        """Go on as soon as everything was answered."""
        track = self._track
        if self._cancel():
            self._wait(now)
        if track.blocked:
            return
        if not self._restoring:
            self._restore(now)
        elif not track.items:
            self._link.clean()
        elif self._rounds < ROUNDS:
            self._begin(now)
        else:
            self._link.give_up("mismatch", f"items kept turning up after {ROUNDS} rounds of deleting them")

    # -- the answers

    def heard(self, kind: str, event: Mapping[str, Any], request: Request | None, now: float) -> None:
        """Judge an event that the track has noted, ``request`` being what it answered."""
        if self._refusing():  # it may be the event that went too far
            return
        if kind == "error":
            self._refused(error_of(event), request)
        elif request is not None and request.step:
            self._answered(request)
        if self._link.pending:
            self._advance(now)

    def _answered(self, request: Request) -> None:
        link = self._link
        if request.step == "proof":
            link.give_up("mismatch", f"deleted item {request.key} still exists")
        elif request.step == "stop":
            if turn_detection(link.effective) is not None:
                link.give_up("mismatch", "voice activity detection is still on")
            elif self._mark is not None and link.effective.get("instructions") != self._mark:
                link.give_up("mismatch", "an acknowledgement of settings belongs to another update")
        elif request.step == "clear":
            self._track.audio_in = False
        elif request.step == "restore":
            where = difference(link.snapshot, link.effective)
            if where is not None:
                link.give_up("mismatch", f"{where} is not what it was when the connection was opened")

    def _refused(self, error: Mapping[str, Any], request: Request | None) -> None:
        code = name_of(error, "code")
        if request is None:
            if name_of(error, "event_id") is None and kind_of_error(error) not in _THEIRS:
                # It may be about one of the steps: not every error says what it answers.
                self._link.give_up("refused", f"an unexpected error: {quote(error)}")
        elif request.step:
            if code is None or code != _BENIGN.get(request.kind):
                self._link.give_up("refused", f"{request.step}: {quote(error)}")
            elif request.kind == "delete" and request.key is not None:
                if self._track.items.get(request.key) is False:
                    # Announced, not there yet: it would appear behind our back.
                    self._link.give_up("mismatch", f"item {request.key} could not be deleted")
                self._track.forget(request.key)

    def _refusing(self) -> bool:
        """Give up if no reset could undo what the session did."""
        found = self._link.beyond_reset()
        if found is not None:
            self._link.give_up(*found)
        return found is not None

    def silent(self) -> None:
        """Give up because an answer did not come in time."""
        self._link.give_up("silent", f"no answer in time: {self._track.missing()}")
