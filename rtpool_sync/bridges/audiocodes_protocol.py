"""The AudioCodes Bot API in its WebSocket ("streaming") mode, without input or output.

VoiceAI Connect opens the WebSocket; one carries one call::

    session.initiate  →                     who calls, and the media formats it can do
                      ←  session.accepted   the one chosen (or session.error: it disconnects)
    activities        →                     "start": all that is known of the call
    userStream.start  →
                      ←  userStream.started
    userStream.chunk  →  …                  the caller
                      ←  playStream.start, .chunk …, .stop     the model: one stream at a time
                      ←  userStream.speech.started …           what the model hears
    activities        ⇄                     DTMF; hangup, transfer …
    session.end       →

Nothing that was sent can be taken back: ``playStream.stop`` only says that no
more comes. So the core sends in real time, and VoiceAI Connect is told of the
caller's speech, which is what it stops playing for (if its ``bargeIn`` is on).
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from . import resampling
from .actions import (
    PCM24,
    PCMU,
    Activity,
    Audio,
    CallDetails,
    CallEnded,
    CallerSaid,
    CallerSpeech,
    CallStarted,
    Clear,
    Custom,
    Dtmf,
    Hangup,
    Inbound,
    Outbound,
    PlaybackFinished,
    Reply,
    Speech,
    SpeechEnd,
    Violation,
)
from .dialect import Dialect

__all__ = ["MEDIA_FORMATS", "AudioCodesDialect"]

logger = logging.getLogger("rtpool_sync.bridges")

_encode = json.JSONEncoder(separators=(",", ":")).encode
_b64decode = base64.b64decode

#: Formats that we can speak, the best one first, with the rate of those that are linear.
MEDIA_FORMATS: dict[str, int | None] = {
    "raw/lpcm16_24": 24000,  # the model's own
    "raw/mulaw": None,  # also the model's own; telephone quality
    "raw/lpcm16": 16000,
    "raw/lpcm16_8": 8000,
}
#: What VoiceAI Connect can always do, for one that does not say.
_UNSAID = ("raw/lpcm16",)
_DIGITS = frozenset("0123456789*#ABCD")
#: Longest reason passed on.
_REASON = 200


class AudioCodesDialect(Dialect):
    """The messages of the AudioCodes Bot API.

    Args:
        formats: Media formats to accept, the best one first; names of :data:`MEDIA_FORMATS`.
        abort_prompts: Also send the activity ``abortPrompts`` when the caller interrupts.

    Raises:
        ValueError: A format is none of ours.

    Attributes:
        conversation_id: AudioCodes' id of the call, once it has begun.
        media_format: The format that was chosen.
    """

    name: ClassVar[str] = "audiocodes"
    flushes: ClassVar[bool] = False
    #: A second of linear audio fits, of which some send all at once.
    max_message: int = 1 << 20
    #: VoiceAI Connect answers a hangup with ``session.end``.
    hangup_grace: float = 3.0
    input_format = PCM24
    output_format = PCM24

    def __init__(self, *, formats: Iterable[str] | None = None, abort_prompts: bool = False) -> None:
        self.formats = tuple(MEDIA_FORMATS if formats is None else formats)
        for name in self.formats:
            if name not in MEDIA_FORMATS:
                raise ValueError(f"formats are some of {', '.join(MEDIA_FORMATS)}, not {name!r}")
        self.abort_prompts = abort_prompts
        self.conversation_id = ""
        self.media_format = ""
        #: Whether the caller's audio is being sent.
        self.streaming = False
        #: Set when the call goes on over another WebSocket.
        self.resumed = False
        self._participant: str | None = None
        self._from_caller: resampling.Pcm | None = None
        self._to_caller: resampling.Pcm | None = None
        self._stream: str | None = None  # the play stream that is open
        self._speaking: str | None = None  # the item it speaks
        self._streams = 0
        self._played = 0

    @property
    def continuous(self) -> bool:
        return self.streaming

    # -- VoiceAI Connect says

    def decode(self, message: str | bytes, now: float) -> Iterable[Inbound]:
        if not isinstance(message, str):
            return (Violation("a binary message"),)
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            return (Violation("a message that is not JSON"),)
        if not isinstance(event, dict):
            return (Violation("a message that is not an object"),)
        kind = event.get("type")
        if not isinstance(kind, str):
            return (Violation("a message without a type"),)
        handler = _HANDLERS.get(kind)
        if handler is None:
            return ()  # the protocol grows
        if kind not in _WITHOUT_SESSION:
            if not self.conversation_id:
                return (Violation(f"{kind} before session.initiate"),)
            if event.get("conversationId", self.conversation_id) != self.conversation_id:
                return (Violation(f"{kind} with another conversationId"),)
        return handler(self, event)

    def _validate(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        return (Reply(_encode({"type": "connection.validated", "success": True})),)

    def _initiate(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        conversation = event.get("conversationId")
        if self.conversation_id:
            return (Violation("a second session.initiate"),)
        if not isinstance(conversation, str) or not conversation:
            return self._refuse("session.initiate without a conversationId")
        if event.get("expectAudioMessages") is False:
            return self._refuse("this bot speaks: directTTS and directSTT have to be on")
        offered = event.get("supportedMediaFormats")
        problem = self._choose(offered if isinstance(offered, list) and offered else _UNSAID)
        if problem is not None:
            return self._refuse(problem)
        self.conversation_id = conversation
        caller, bot = event.get("caller"), event.get("botName")
        accepted = {"type": "session.accepted", "mediaFormat": self.media_format}
        return (
            Reply(_encode(accepted)),
            CallStarted(
                conversation,
                conversation,
                parameters={"botName": bot} if isinstance(bot, str) else {},
                caller=caller if isinstance(caller, str) else "",
                details=event,
            ),
        )

    def _choose(self, offered: Iterable[Any]) -> str | None:
        """Choose the media format; return why there is none."""
        offered = [name for name in offered if isinstance(name, str)]
        common = [name for name in self.formats if name in offered]
        if not common:
            return f"no common media format: {', '.join(offered)} offered, {', '.join(self.formats)} accepted"
        missing = None
        for name in common:
            rate = MEDIA_FORMATS[name]
            if rate not in (None, PCM24.rate):
                missing = missing or resampling.available()
                if missing:
                    continue
            self.media_format = name
            if rate is None:
                self.input_format = self.output_format = PCMU
            else:
                self._from_caller = resampling.converter(rate, PCM24.rate)
                self._to_caller = resampling.converter(PCM24.rate, rate)
            return None
        logger.error("a call was refused: %s", missing)
        return f"no common media format: {', '.join(common)}: {missing}"

    def _refuse(self, reason: str) -> Iterable[Inbound]:
        return (Reply(self._error(reason)), CallEnded(reason, refused=True))

    @staticmethod
    def _error(reason: str, **more: Any) -> str:
        return _encode({"type": "session.error", **more, "reason": reason[:_REASON]})

    def _resume(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        conversation = event.get("conversationId")
        if self.conversation_id and conversation == self.conversation_id:
            return ()  # it was answered by who brought the new WebSocket in
        more = {"conversationId": conversation} if isinstance(conversation, str) else {}
        reply = Reply(self._error("conversation not found", **more))
        if self.conversation_id:
            return (reply, Violation("session.resume of another conversation"))
        return (reply, CallEnded("there is no conversation to resume", refused=True))

    def _user_start(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        participant = event.get("participant")
        started = self._answer("userStream.started", participant)
        if self.streaming and participant != self._participant:
            return (started,)  # somebody else in an agent-assist call: heard by nobody here
        self._participant = participant
        self.streaming = True
        return (started,)

    @staticmethod
    def _answer(kind: str, participant: Any) -> Reply:
        more = {} if participant is None else {"participant": participant}
        return Reply(_encode({"type": kind, **more}))

    def _user_chunk(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        if not self.streaming:
            return (Violation("userStream.chunk outside of a stream"),)
        if event.get("participant", self._participant) != self._participant:
            return ()
        payload = event.get("audioChunk")
        try:
            data = _b64decode(payload, validate=True)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            return (Violation("userStream.chunk whose audioChunk is not base64"),)
        if self._from_caller is not None:
            heard = self._from_caller.process(data)
            if heard is not data:
                return self._audio(heard)
        return (Audio(payload, len(data)),) if data else ()  # type: ignore[arg-type]

    @staticmethod
    def _audio(data: bytes) -> Iterable[Inbound]:
        return (Audio(base64.b64encode(data).decode(), len(data)),) if data else ()

    def _user_stop(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        participant = event.get("participant")
        stopped = self._answer("userStream.stopped", participant)
        if not self.streaming:
            return (stopped, Violation("userStream.stop outside of a stream"))
        if participant is not None and participant != self._participant:
            return (stopped,)
        self.streaming = False
        rest = b"" if self._from_caller is None else self._from_caller.flush()
        return (*self._audio(rest), stopped)

    def _activities(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        activities = event.get("activities")
        if not isinstance(activities, list):
            return (Violation("activities without a list of them"),)
        return [action for activity in activities for action in self._activity(activity)]

    def _activity(self, activity: Any) -> Iterable[Inbound]:
        if not isinstance(activity, dict):
            return (Violation("an activity that is not an object"),)
        name = activity.get("name") if activity.get("type", "event") == "event" else activity.get("type")
        if not isinstance(name, str):
            return (Violation("an activity without a name"),)
        told = Activity(name, activity)
        match name.lower():
            case "start":
                return (self.details(activity), told)
            case "dtmf":
                value = activity.get("value")
                # Some send a number for a digit.
                digits = str(value).upper() if isinstance(value, (str, int)) else ""
                if not digits or not _DIGITS.issuperset(digits):
                    return (Violation("a DTMF activity without keys"),)
                return (Dtmf(digits),)
            case "playfinished":
                self._played += 1
                # It may be late, and something else may be playing by now.
                over = self._stream is None and self._played >= self._streams
                return (PlaybackFinished(), told) if over else (told,)
        return (told,)

    @staticmethod
    def details(activity: Mapping[str, Any]) -> CallDetails:
        """What the activity ``start`` says of the call."""
        given = activity.get("parameters")
        given = given if isinstance(given, dict) else {}
        parameters = {
            str(name): value if isinstance(value, str) else _encode(value) for name, value in given.items()
        }
        return CallDetails(
            parameters,
            caller=parameters.get("caller", ""),
            callee=parameters.get("callee", ""),
            details=activity,
        )

    def _end(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        self.streaming = False
        said = [str(event[name]) for name in ("reasonCode", "reason") if event.get(name)]
        return (CallEnded(": ".join(said) or "VoiceAI Connect ended the session"),)

    # -- to VoiceAI Connect

    def encode(self, action: Outbound) -> Iterable[str]:
        if not self.conversation_id:
            return ()
        match action:
            case Speech():
                return self._speak(action)
            case SpeechEnd():
                return self._stop(whole=True) if action.item_id == self._speaking else ()
            case Clear():
                messages = self._stop(whole=False)
                return [*messages, _event("abortPrompts")] if self.abort_prompts else messages
            case CallerSpeech():
                return (_encode({"type": f"userStream.speech.{action.phase}", **self._whose()}),)
            case CallerSaid():
                return self._said(action)
            case Hangup():
                reason = {"hangupReason": action.reason[:_REASON]} if action.reason else {}
                return [*self._stop(whole=False), _event("hangup", reason)]
            case Custom():
                return (_event(action.name, action.parameters),)
        return ()

    def _whose(self) -> dict[str, str]:
        return {} if self._participant is None else {"participant": self._participant}

    def _said(self, action: CallerSaid) -> Iterable[str]:
        if not action.text.strip():
            return ()
        kind = "recognition" if action.final else "hypothesis"
        alternative: dict[str, Any] = {"text": action.text}
        if action.final:
            alternative["confidence"] = 1.0  # asked for; the model says nothing of it
        return (
            _encode({"type": f"userStream.speech.{kind}", **self._whose(), "alternatives": [alternative]}),
        )

    def _speak(self, speech: Speech) -> Iterable[str]:
        payload, messages = speech.payload, []
        again, self.resumed = self.resumed, False
        if self._stream is None or speech.item_id != self._speaking or again:
            # Over a new WebSocket nobody says whether the stream is still open: so it is opened again.
            messages += self._stop(whole=True)
            messages.append(self._open(speech.item_id))
        if self._to_caller is not None:
            data = _b64decode(payload)
            spoken = self._to_caller.process(data)
            if spoken is not data:
                payload = base64.b64encode(spoken).decode()
        if payload:
            messages.append(self._chunk(payload))
        return messages

    def _open(self, item_id: str) -> str:
        self._streams += 1
        self._stream, self._speaking = str(self._streams), item_id
        return _encode(
            {"type": "playStream.start", "streamId": self._stream, "mediaFormat": self.media_format}
        )

    def _chunk(self, payload: str) -> str:
        # Base64 can be put between quotes as it is.
        return f'{{"type":"playStream.chunk","streamId":"{self._stream}","audioChunk":"{payload}"}}'

    def _stop(self, *, whole: bool) -> list[str]:
        """Close the play stream, with the end of the audio if ``whole``."""
        messages: list[str] = []
        if self._stream is None:
            return messages
        if self._to_caller is not None:
            rest = self._to_caller.flush()
            if whole and rest:
                messages.append(self._chunk(base64.b64encode(rest).decode()))
        messages.append(_encode({"type": "playStream.stop", "streamId": self._stream}))
        self._stream = self._speaking = None
        return messages


def _event(name: str, parameters: Mapping[str, Any] | None = None) -> str:
    activity: dict[str, Any] = {"type": "event", "name": name}
    if parameters:
        # The one activity whose parameters are the session's.
        activity["sessionParams" if name == "config" else "activityParams"] = dict(parameters)
    return _encode({"type": "activities", "activities": [activity]})


_WITHOUT_SESSION = frozenset({"connection.validate", "session.initiate", "session.resume"})
_HANDLERS = {
    "connection.validate": AudioCodesDialect._validate,
    "session.initiate": AudioCodesDialect._initiate,
    "session.resume": AudioCodesDialect._resume,
    "session.end": AudioCodesDialect._end,
    "userStream.start": AudioCodesDialect._user_start,
    "userStream.chunk": AudioCodesDialect._user_chunk,
    "userStream.stop": AudioCodesDialect._user_stop,
    "activities": AudioCodesDialect._activities,
}
