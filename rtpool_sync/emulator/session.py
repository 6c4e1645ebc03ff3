"""One Realtime session without any I/O.

The owner passes in what the client sends and the time, and takes out what the
client is to get::

    session.feed(text, now)            # or session.tick(now) when wake_at is reached
    for event in session.outgoing(): ...
    if session.closing: close the connection with that code and reason
"""

from __future__ import annotations

import heapq
import itertools
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from . import check, settings
from .audio import FORMATS, Format, fingerprint
from .conversation import Conversation, Item, decode_base64, make_item
from .plan import Plan, asked_of
from .problems import Problem, error_event, unknown_parameter
from .response import Pace, Response
from .turns import InputAudio, Speech

__all__ = ["Session"]

Event = dict[str, Any]

MAX_APPEND = 15 * 1024 * 1024
_TOKEN_LIMIT = 400_000


class Session:
    """A session and its default conversation.

    Attributes:
        id: The session's id.
        settings: The effective configuration.
        conversation: The default conversation.
        wake_at: When :meth:`tick` is to be called, or ``None``.
        closing: Close code and reason, once the session is over.
    """

    def __init__(
        self,
        *,
        model: str | None,
        expires_at: float,
        kind: str = "realtime",
        pace: Pace | None = None,
    ) -> None:
        # Ids are unique in the world and cheap: one random part a session, and a count.
        self._unique = secrets.token_hex(7)
        self._count = itertools.count(1)
        self.id = self.new_id("sess")
        self.pace = pace or Pace()
        self.settings = settings.SessionSettings(kind, self.id, model, int(expires_at))
        self.conversation = Conversation(self.new_id("conv"))
        self.closing: tuple[int, str] | None = None
        self._kind = kind
        self._now = 0.0
        self._out: list[Event] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._responses: dict[str, Response] = {}
        self._voice_locked = False
        self._tokens_left = _TOKEN_LIMIT
        self._input = InputAudio(FORMATS["audio/pcm"])
        self._idle_generation = 0

    # -- for the owner -----------------------------------------------------------------

    def start(self, now: float) -> None:
        """Greet the client."""
        self._now = now
        self.emit("session.created", session=self.settings.shown())

    def feed(self, text: str, now: float) -> None:
        """Take a text message from the client."""
        self._now = now
        event_id: object = None
        try:
            try:
                event = json.loads(text)
            except (ValueError, RecursionError):
                raise Problem("invalid_json", "We could not parse the JSON body of your event.") from None
            if not isinstance(event, dict):
                raise Problem("invalid_json", "An event must be a JSON object.")
            event_id = event.get("event_id")
            self._dispatch(event)
        except Problem as problem:
            self._refuse(problem, event_id)

    def feed_binary(self, now: float) -> None:
        """Take a binary message from the client."""
        self._now = now
        self._refuse(Problem("invalid_event", "Binary frames are not supported: send JSON text."))

    def tick(self, now: float) -> None:
        """Do what is due."""
        self._now = now
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    @property
    def wake_at(self) -> float | None:
        return self._timers[0][0] if self._timers else None

    def outgoing(self) -> list[Event]:
        """Take the events to send."""
        out, self._out = self._out, []
        return out

    def expire(self) -> None:
        """End the session because it reached its maximum duration."""
        message = "Your session hit the maximum duration of 60 minutes."
        self.end(Problem("session_expired", message), 1001, message)

    def end(self, problem: Problem, code: int, reason: str) -> None:
        """Send an error and close."""
        self._refuse(problem)
        self.closing = (code, reason)
        self._timers.clear()

    @property
    def active_responses(self) -> list[str]:
        return list(self._responses)

    # -- for responses ------------------------------------------------------------------

    def emit(self, type_: str, /, **fields: Any) -> None:
        self._out.append({"type": type_, "event_id": self.new_id("event"), **fields})

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{self._unique}{next(self._count):06x}"

    def audio_sent(self) -> None:
        self._voice_locked = True

    def response_over(self, response: Response) -> None:
        self._responses.pop(response.id, None)
        self._tokens_left = max(0, self._tokens_left - 10)
        self._later(self.pace.rate_limits, self._report_rate_limits)
        if response.plan.in_conversation:
            self._watch_silence(response.playback)

    # -- within ---------------------------------------------------------------------------

    def _refuse(self, problem: Problem, event_id: object = None) -> None:
        error = error_event(problem, event_id)
        self.emit(error["type"], error=error["error"])

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        if delay <= 0.0:
            action()
        else:
            heapq.heappush(self._timers, (self._now + delay, next(self._count), action))

    def _report_rate_limits(self) -> None:
        limit = {"name": "tokens", "limit": _TOKEN_LIMIT, "remaining": self._tokens_left}
        self.emit("rate_limits.updated", rate_limits=[{**limit, "reset_seconds": 0.002}])

    def _dispatch(self, event: Mapping[str, Any]) -> None:
        check.required(event, ("type",))
        type_ = event["type"]
        entry = _HANDLERS.get(type_) if isinstance(type_, str) else None
        if entry is None:
            names = ", ".join(f"'{name}'" for name in _HANDLERS)
            message = f"Invalid value: '{type_}'. Supported values are: {names}."
            raise Problem("invalid_value", message, "type")
        handler, needed, optional = entry
        for key in event:
            if key not in needed and key not in optional and key not in ("type", "event_id"):
                raise unknown_parameter(key)
        check.required(event, needed)
        handler(self, event)

    @property
    def _input_format(self) -> Format:
        return FORMATS[self.settings.audio_input["format"]["type"]]

    @property
    def _turn_detection(self) -> dict[str, Any] | None:
        return self.settings.audio_input["turn_detection"]  # type: ignore[no-any-return]

    def _active(self) -> Response | None:
        """Return the response that writes to the default conversation."""
        for response in self._responses.values():
            if response.plan.in_conversation:
                return response
        return None

    # -- session ----------------------------------------------------------------------------

    def _session_update(self, event: Mapping[str, Any]) -> None:
        self.settings.update(
            event["session"], voice_locked=self._voice_locked, responding=self._active() is not None
        )
        self._input.use_format(self._input_format)
        self.emit("session.updated", session=self.settings.shown())

    # -- items ------------------------------------------------------------------------------

    def _item_create(self, event: Mapping[str, Any]) -> None:
        item = make_item(event["item"], self.new_id("item"), self.new_id("call"), self._input_format)
        if item.id in self.conversation:
            raise Problem(
                "item_create_duplicate_item_id",
                f"Error adding item: an item with id '{item.id}' already exists.",
                "item.id",
            )
        after = check.maybe(check.string)(event.get("previous_item_id"), "previous_item_id")
        if after is not None and after != "root" and after not in self.conversation:
            raise Problem(
                "item_create_invalid_previous_item_id",
                f"Error adding item: the previous item with id '{after}' does not exist.",
                "previous_item_id",
            )
        if item.data["type"] == "function_call_output":
            call_id = item.data["call_id"]
            if not any(
                other.data["type"] == "function_call" and other.data["call_id"] == call_id
                for other in self.conversation.items()
            ):
                message = f"Tool call ID '{call_id}' not found in conversation."
                raise Problem("invalid_tool_call_id", message)
        self._add_item(item, after)

    def _add_item(self, item: Item, after: str | None = None) -> None:
        before = self.conversation.insert(item, after)
        shown = item.shown()
        self.emit("conversation.item.added", previous_item_id=before, item=shown)
        self.emit("conversation.item.done", previous_item_id=before, item=shown)

    def _item_delete(self, event: Mapping[str, Any]) -> None:
        item_id = check.string(event["item_id"], "item_id")
        if self.conversation.delete(item_id) is None:
            raise Problem(
                "item_delete_invalid_item_id",
                f"Error deleting item: the item with id '{item_id}' does not exist.",
                "item_id",
            )
        self.emit("conversation.item.deleted", item_id=item_id)

    def _item_retrieve(self, event: Mapping[str, Any]) -> None:
        item = self.conversation.get(check.string(event["item_id"], "item_id"))
        if item is None:
            raise Problem(
                "item_retrieve_invalid_item_id",
                f"Error retrieving item: the item with id '{event['item_id']}' does not exist.",
                "item_id",
            )
        self.emit("conversation.item.retrieved", item=item.whole())

    def _item_truncate(self, event: Mapping[str, Any]) -> None:
        item = self.conversation.get(check.string(event["item_id"], "item_id"))
        index = check.whole(0, 1000)(event["content_index"], "content_index")
        end = check.whole(0, 1 << 40)(event["audio_end_ms"], "audio_end_ms")
        if item is None:
            raise Problem(
                "item_truncate_invalid_item_id",
                f"Error truncating item: the item with id '{event['item_id']}' does not exist.",
                "item_id",
            )
        if item.role != "assistant" or index not in item.audio:
            raise Problem("invalid_value", "Only model output audio messages can be truncated.", "item_id")
        audio, format_ = item.audio[index]
        length = format_.milliseconds(len(audio))
        if end > length:
            message = f"Audio content of {round(length)}ms is already shorter than {end}ms."
            raise Problem("invalid_value", message, "audio_end_ms")
        item.audio[index] = (audio[: format_.size(end)], format_)
        # The text of what was not heard must not stay in the context: it all goes.
        item.data["content"][index]["transcript"] = ""
        item.heard = ""
        self.emit("conversation.item.truncated", item_id=item.id, content_index=index, audio_end_ms=end)

    # -- input audio ----------------------------------------------------------------------

    def _audio_append(self, event: Mapping[str, Any]) -> None:
        data = decode_base64(check.string(event["audio"], "audio"), "audio")
        if len(data) > MAX_APPEND:
            raise Problem(
                "string_above_max_length",
                f"Invalid 'audio': {len(data)} bytes of audio, but an event may have at most {MAX_APPEND}.",
                "audio",
            )
        while True:
            heard = self._input.append(data, self._turn_detection)
            for speech in heard:
                self._speech(speech)
            if not heard or heard[-1].started:
                return
            data = b""  # a turn ended: scan what came after it

    def _speech(self, speech: Speech) -> None:
        vad = self._turn_detection or {}
        if speech.started:
            self._idle_generation += 1
            self._input.item_id = self.new_id("item")
            self.emit(
                "input_audio_buffer.speech_started", audio_start_ms=speech.ms, item_id=self._input.item_id
            )
            active = self._active()
            if active is not None and active.created and vad.get("interrupt_response", True):
                active.cancel("turn_detected")
            return
        item_id = self._input.item_id or self.new_id("item")
        self.emit("input_audio_buffer.speech_stopped", audio_end_ms=speech.ms, item_id=item_id)
        self._commit(item_id, self._input.take_turn())
        if vad.get("create_response", True) and self._kind == "realtime":
            try:
                self._create_response(self._plan({}))
            except Problem as problem:
                self._refuse(problem)

    def _audio_commit(self, event: Mapping[str, Any]) -> None:
        length = self._input.milliseconds
        if length < 100:
            raise Problem(
                "input_audio_buffer_commit_empty",
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, "
                f"but buffer only has {length:.2f}ms of audio.",
            )
        item_id = self._input.item_id or self.new_id("item")
        self._commit(item_id, self._input.take_all())

    def _commit(self, item_id: str, audio: bytes) -> None:
        format_ = self._input_format
        self.emit("input_audio_buffer.committed", previous_item_id=self.conversation.last_id, item_id=item_id)
        item = Item(
            {
                "id": item_id,
                "object": "realtime.item",
                "type": "message",
                "status": "completed",
                "role": "user",
                "content": [{"type": "input_audio", "transcript": None}],
            },
            fingerprint(audio, format_),
        )
        item.audio[0] = (audio, format_)
        self._add_item(item)
        if self.settings.audio_input["transcription"] is not None:
            model = self.settings.audio_input["transcription"]["model"]
            self._later(self.pace.transcription, lambda: self._transcribed(item, model))

    def _transcribed(self, item: Item, model: str | None) -> None:
        """Report the transcript: also of an item that was deleted meanwhile, as the service does."""
        transcript = item.heard
        audio, format_ = item.audio[0]
        seconds = format_.milliseconds(len(audio)) / 1000
        usage: dict[str, Any] = {"type": "duration", "seconds": seconds}
        if model != "whisper-1":
            heard, said = int(seconds * 10), len(transcript.split())
            usage = {
                "type": "tokens",
                "total_tokens": heard + said,
                "input_tokens": heard,
                "input_token_details": {"text_tokens": 0, "audio_tokens": heard},
                "output_tokens": said,
            }
        item.data["content"][0]["transcript"] = transcript
        prefix = "conversation.item.input_audio_transcription"
        self.emit(f"{prefix}.delta", item_id=item.id, content_index=0, delta=transcript)
        self.emit(f"{prefix}.completed", item_id=item.id, content_index=0, transcript=transcript, usage=usage)

    def _audio_clear(self, event: Mapping[str, Any]) -> None:
        self._input.take_all()
        self.emit("input_audio_buffer.cleared")

    def _output_clear(self, event: Mapping[str, Any]) -> None:
        raise Problem("invalid_event", "output_audio_buffer.clear is for WebRTC and SIP connections.", "type")

    def _watch_silence(self, playback: float) -> None:
        """After a response was heard, wait for the caller as long as ``idle_timeout_ms`` says."""
        self._idle_generation += 1
        vad = self._turn_detection
        if vad is None or not vad.get("idle_timeout_ms"):
            return
        generation, since = self._idle_generation, self._input.end_ms

        def timeout() -> None:
            # Asked again: the client may have turned it off meanwhile.
            vad = self._turn_detection
            wanted = vad is not None and vad.get("idle_timeout_ms")
            if wanted and generation == self._idle_generation and self._active() is None:
                self._caller_silent(since)

        self._later(playback + vad["idle_timeout_ms"] / 1000, timeout)

    def _caller_silent(self, since: int) -> None:
        item_id = self.new_id("item")
        self.emit(
            "input_audio_buffer.timeout_triggered",
            audio_start_ms=since,
            audio_end_ms=self._input.end_ms,
            item_id=item_id,
        )
        self._commit(item_id, self._input.take_all())
        self._create_response(self._plan({}))

    # -- responses -----------------------------------------------------------------------------

    def _plan(self, asked: Mapping[str, Any]) -> Plan:
        return Plan.make(asked, self.settings.public, self._input_item, voice_locked=self._voice_locked)

    def _input_item(self, raw: Mapping[str, Any], param: str) -> Item:
        if raw.get("type") != "item_reference":
            return make_item(raw, self.new_id("item"), self.new_id("call"), self._input_format, param)
        check.required(raw, ("id",), param)
        item = self.conversation.get(check.string(raw["id"], f"{param}.id"))
        if item is None:
            raise Problem("invalid_value", f"Item with id '{raw['id']}' does not exist.", f"{param}.id")
        return item

    def _response_create(self, event: Mapping[str, Any]) -> None:
        if self._kind != "realtime":
            raise Problem("invalid_value", "A transcription session has no responses.", "type")
        self._create_response(self._plan(asked_of(event)))

    def _create_response(self, plan: Plan) -> None:
        active = self._active() if plan.in_conversation else None
        if active is not None:
            raise Problem(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {active.id}. "
                "Wait until the response is finished before creating a new one.",
            )
        self._idle_generation += 1
        response = Response(self, plan)
        self._responses[response.id] = response
        self._advance(response)

    def _advance(self, response: Response) -> None:
        if response.over:
            return
        delay = response.step()
        if delay is not None:
            self._later(delay, lambda: self._advance(response))

    def _response_cancel(self, event: Mapping[str, Any]) -> None:
        wanted = event.get("response_id")
        if wanted is None:
            response = self._active()
        else:
            response = self._responses.get(check.string(wanted, "response_id"))
        # One that was asked for but not yet created cannot be cancelled, and will be created.
        if response is None or not response.created:
            raise Problem("response_cancel_not_active", "Cancellation failed: no active response found")
        response.cancel("client_cancelled")


_Handler = Callable[[Session, Mapping[str, Any]], None]

#: Event type: handler, fields it must have, fields it may have.
_HANDLERS: dict[str, tuple[_Handler, tuple[str, ...], tuple[str, ...]]] = {
    "session.update": (Session._session_update, ("session",), ()),
    "input_audio_buffer.append": (Session._audio_append, ("audio",), ()),
    "input_audio_buffer.commit": (Session._audio_commit, (), ()),
    "input_audio_buffer.clear": (Session._audio_clear, (), ()),
    "conversation.item.create": (Session._item_create, ("item",), ("previous_item_id",)),
    "conversation.item.delete": (Session._item_delete, ("item_id",), ()),
    "conversation.item.retrieve": (Session._item_retrieve, ("item_id",), ()),
    "conversation.item.truncate": (
        Session._item_truncate,
        ("item_id", "content_index", "audio_end_ms"),
        (),
    ),
    "response.create": (Session._response_create, (), ("response",)),
    "response.cancel": (Session._response_cancel, (), ("response_id",)),
    "output_audio_buffer.clear": (Session._output_clear, (), ()),
}
