"""The model's side of a call: what its events mean for the telephone."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from .actions import CallerSaid, CallerSpeech, Speech, SpeechEnd
from .dialect import Dialect
from .functions import Functions
from .outbox import Outbox
from .result import CallResult

__all__ = ["Model"]

Event = Mapping[str, Any]
monotonic = time.monotonic

#: Errors that tell of a race which both sides survive.
_HARMLESS = ("response_cancel_not_active",)
_COLLISION = "conversation_already_has_active_response"
#: Seconds after an interruption in which the model may still send what was under way.
_STILL_COMING = 0.5


class Model:
    """Understands the events of the Realtime session. Used by one thread, but for :meth:`respond`.

    Args:
        outbox: Where audio goes.
        send: Sends an event to the model.
        notify: Tells the application: the callback's name, and its arguments.
        failed: Notes an error that does not end the call.
        end: Ends the call: why (see :data:`~.result.ENDINGS`), and a sentence.
        result: Is filled in.
        functions: Runs functions; ``None``: they are the application's own affair.
        dialect: Says what the model has to speak.
        barge_in: Whether the caller can interrupt.
    """

    def __init__(
        self,
        *,
        outbox: Outbox,
        send: Callable[[Event], None],
        notify: Callable[..., None],
        failed: Callable[[str], None],
        end: Callable[[str, str], None],
        result: CallResult,
        functions: Functions | None,
        dialect: Dialect,
        barge_in: bool,
        cut: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._send = send
        self._notify = notify
        self._failed = failed
        self._end = end
        self._result = result
        self._functions = functions
        self._dialect = dialect
        self._barge_in = barge_in
        self._cut = cut
        self._active: dict[str, None] = {}  # responses under way
        self._numbers = itertools.count(1)
        self._asked: dict[str, Event | None] = {}  # responses asked for and not yet created, by event_id
        self._presumed: dict[str, Event | None] = {}  # taken for one that was created; it may be refused yet
        self._again: deque[Event | None] = deque()  # refused, because another one was under way
        self._speaking: str | None = None  # the item whose audio is coming in
        self._muted: dict[str, float] = {}  # interrupted items, and when
        self._cancelled: set[str] = set()
        self._hearing: dict[str, str] = {}  # transcripts in the making, by item
        self._truncations: deque[Event] = deque()  # not acknowledged
        self._too_early: list[Event] = []  # refused while the item was not complete

    @property
    def quiet(self) -> bool:
        """Whether the model has nothing to say, as far as is known: no response runs or was asked for."""
        busy = self._functions is not None and self._functions.busy
        return not (self._active or self._asked or self._again or busy)

    def respond(self, response: Event | None = None) -> None:
        """Ask the model for a response. Any thread."""
        event: dict[str, Any] = {"type": "response.create", "event_id": f"bridge_{next(self._numbers)}"}
        self._asked[event["event_id"]] = response
        if response is not None:
            event["response"] = response
        try:
            self._send(event)
        except BaseException:  # it was not asked for, and nobody waits for it
            self._asked.pop(event["event_id"], None)
            raise

    def understand(self, event: Event) -> None:
        """Do what an event asks for."""
        handler = _HANDLERS.get(event.get("type", ""))
        if handler is not None:
            handler(self, event)

    # -- the model speaks

    def _created(self, event: Event) -> None:
        response = event["response"]
        self._active[response["id"]] = None
        for event_id in list(self._asked)[:1]:
            self._presumed[event_id] = self._asked.pop(event_id)
        spoken = ((response.get("audio") or {}).get("output") or {}).get("format")
        name = spoken.get("type") if isinstance(spoken, Mapping) else None
        if name is not None and name != self._dialect.output_format.name:
            self._end(
                "format",
                f"the session speaks {name}, the telephony side {self._dialect.output_format.name}: "
                f"check out with pool.connection(session=bridge.session(...))",
            )

    def _refused(self, event_id: object) -> bool:
        """A response that was asked for (``None``: the first one) is refused, and asked for again later."""
        for waiting in (self._asked, self._presumed):
            for known in list(waiting):
                if event_id is None or event_id == known:
                    response = waiting.pop(known)
                    # Several without wishes of their own would say the same thing twice.
                    if response is not None or None not in self._again:
                        self._again.append(response)
                    return True
        return False

    def _delta(self, event: Event) -> None:
        item_id, payload = event["item_id"], event["delta"]
        since = self._muted.get(item_id)
        if since is not None:
            self._result.late_out += 1
            self._cancel(event.get("response_id"), since)
            return
        self._speaking = item_id
        size = len(payload) * 3 // 4 - payload.endswith("=") - payload.endswith("==")
        if not self._outbox.put(Speech(payload, size, item_id, event.get("content_index", 0))):
            self._end("telephony_stalled", "too much audio waits to be sent to the telephony side")

    def _cancel(self, response_id: Any, since: float) -> None:
        """Stop a response that the server did not stop by itself (``interrupt_response`` off)."""
        if (
            isinstance(response_id, str)
            and response_id not in self._cancelled
            and monotonic() - since > _STILL_COMING
        ):
            self._cancelled.add(response_id)
            self._send({"type": "response.cancel", "response_id": response_id})

    def _spoken(self, event: Event) -> None:
        item_id = event["item_id"]
        if self._speaking == item_id:
            self._speaking = None
        if item_id not in self._muted:
            self._outbox.put(SpeechEnd(item_id))

    def _item_done(self, event: Event) -> None:
        item = event["item"]
        if (
            self._functions is not None
            and item.get("type") == "function_call"
            and item.get("status", "completed") == "completed"
        ):
            self._result.function_calls.append(str(item.get("name")))
            self._functions.called(event["response_id"], item)

    def _response_done(self, event: Event) -> None:
        response = event["response"]
        self._active.pop(response["id"], None)
        self._speaking = None
        if response.get("status") == "failed":
            error = (response.get("status_details") or {}).get("error") or {}
            self._failed(f"a response failed: {error.get('code')} {error.get('message') or ''}".strip())
        if self._functions is not None:
            self._functions.response_over(response["id"])
        if not self._active:
            too_early, self._too_early = self._too_early, []
            for truncation in too_early:
                self._truncate(truncation)
            self._presumed.clear()
            if self._again:
                self.respond(self._again.popleft())

    def _said(self, event: Event) -> None:
        self._notify("on_transcript", "assistant", event.get("transcript") or "")

    # -- the caller speaks

    def _speech_started(self, event: Event) -> None:
        started = CallerSpeech("started")
        if not self._barge_in:
            self._outbox.put(started)
            return
        now = monotonic()
        stopped = self._outbox.interrupt(always=self._speaking is not None)
        self._outbox.put(started)  # now that no more audio comes behind it
        for item_id in {cut.item_id for cut in stopped.cuts} | {self._speaking}:
            if item_id is not None:
                self._muted[item_id] = now
        self._speaking = None
        self._result.dropped_out += stopped.dropped
        if not stopped.cuts:
            return
        self._result.barge_ins += 1
        self._cut()
        for cut in stopped.cuts:
            self._truncate(
                {
                    "type": "conversation.item.truncate",
                    "item_id": cut.item_id,
                    "content_index": cut.content_index,
                    "audio_end_ms": cut.heard_ms,
                }
            )

    def _truncate(self, truncation: Event) -> None:
        self._truncations.append(truncation)
        self._send(truncation)

    def _truncated(self, event: Event) -> None:
        if self._truncations:  # they are answered in order
            self._truncations.popleft()

    def _speech_stopped(self, event: Event) -> None:
        self._outbox.put(CallerSpeech("stopped"))

    def _committed(self, event: Event) -> None:
        self._outbox.put(CallerSpeech("committed"))

    def _hears(self, event: Event) -> None:
        item_id = event["item_id"]
        text = self._hearing[item_id] = self._hearing.get(item_id, "") + (event.get("delta") or "")
        self._outbox.put(CallerSaid(text, final=False))

    def _heard(self, event: Event) -> None:
        self._hearing.pop(event.get("item_id", ""), None)
        text = event.get("transcript") or ""
        self._outbox.put(CallerSaid(text))
        self._notify("on_transcript", "caller", text)

    # -- what goes wrong

    def _error(self, event: Event) -> None:
        error = event.get("error") or {}
        code = error.get("code")
        event_id = error.get("event_id")
        # The model has begun to answer by itself meanwhile. What was asked for comes after that.
        if code == _COLLISION and self._refused(event_id):  # not every server says which one it refuses
            return
        self._asked.pop(str(event_id), None)
        # The errors of a truncation have no code and no event_id of their own.
        if self._truncations and "truncat" in str(error.get("message")).lower():
            truncation = self._truncations.popleft()
            if self._active:  # of an item that is not complete: again when it is
                self._too_early.append(truncation)
                return
        if code not in _HARMLESS:
            self._failed(f"the Realtime server: {code} {error.get('message') or ''}".strip())


_HANDLERS: dict[str, Callable[[Model, Event], None]] = {
    "response.created": Model._created,
    "response.output_audio.delta": Model._delta,
    "response.output_audio.done": Model._spoken,
    "response.output_audio_transcript.done": Model._said,
    "response.output_item.done": Model._item_done,
    "response.done": Model._response_done,
    "input_audio_buffer.speech_started": Model._speech_started,
    "input_audio_buffer.speech_stopped": Model._speech_stopped,
    "input_audio_buffer.committed": Model._committed,
    "conversation.item.truncated": Model._truncated,
    "conversation.item.input_audio_transcription.delta": Model._hears,
    "conversation.item.input_audio_transcription.completed": Model._heard,
    "error": Model._error,
}
