"""What passes between a dialect and the core, in words that belong to no vendor.

A dialect turns each message of the telephony side into some of the *inbound*
actions, and each *outbound* action into messages. Audio is base64 from end to
end, as both sides want it; it is decoded only where somebody has to look inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "PCM24",
    "PCMU",
    "Activity",
    "Audio",
    "AudioFormat",
    "CallDetails",
    "CallEnded",
    "CallStarted",
    "CallerSaid",
    "CallerSpeech",
    "Clear",
    "Custom",
    "Dtmf",
    "Hangup",
    "Inbound",
    "Mark",
    "MarkReached",
    "Outbound",
    "PlaybackFinished",
    "Reply",
    "Speech",
    "SpeechEnd",
    "Violation",
]


@dataclass(frozen=True)
class AudioFormat:
    """A wire format of the Realtime side; mono.

    Attributes:
        name: ``audio/pcmu`` or ``audio/pcm``, as in the session's settings.
        rate: Samples per second.
        width: Bytes per sample.
        silence: The byte that silence is made of.
    """

    name: str
    rate: int
    width: int
    silence: int

    def milliseconds(self, size: int) -> float:
        """How long ``size`` bytes last."""
        return size * 1000 / (self.rate * self.width)

    def size(self, milliseconds: float) -> int:
        """The bytes of so many milliseconds, in whole samples."""
        return int(milliseconds * self.rate / 1000) * self.width

    @property
    def setting(self) -> dict[str, Any]:
        """What ``audio.input.format`` and ``audio.output.format`` of a session are set to."""
        return {"type": self.name} if self.name != "audio/pcm" else {"type": self.name, "rate": self.rate}


PCMU = AudioFormat("audio/pcmu", 8000, 1, 0xFF)
PCM24 = AudioFormat("audio/pcm", 24000, 2, 0)


# -- inbound: the telephony side said


@dataclass(frozen=True)
class CallStarted:
    """There is a call. Exactly one comes before everything else but replies and violations.

    Attributes:
        call_id: The vendor's id of the call.
        stream_id: The vendor's id of the audio stream, or the call's again.
        parameters: What the application put into the call (TwiML ``<Parameter>``…).
        caller, callee: Telephone numbers or SIP users, where the vendor says them here.
        details: The vendor's message, as it came.
    """

    call_id: str
    stream_id: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    caller: str = ""
    callee: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class CallDetails:
    """More is known of the call than :class:`CallStarted` said; what is empty is still not known."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    caller: str = ""
    callee: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Audio:
    """The caller's voice.

    Attributes:
        payload: Valid base64 in the dialect's ``input_format``.
        size: Bytes in it.
        at_ms: When it was said, in milliseconds since the stream began, if the vendor tells.
    """

    payload: str
    size: int
    at_ms: float | None = None


@dataclass(frozen=True)
class Dtmf:
    """Keys were pressed: one character each, of ``0123456789*#ABCD``."""

    digits: str


@dataclass(frozen=True)
class MarkReached:
    """Everything sent before that :class:`Mark` was played, or thrown away by :class:`Clear`."""

    name: str


@dataclass(frozen=True)
class PlaybackFinished:
    """Everything sent was played (where there are no marks, but this)."""


@dataclass(frozen=True)
class Activity:
    """Something of the vendor's own, that only the application may know what to do with."""

    name: str
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class CallEnded:
    """The telephony side says that the call is over.

    Attributes:
        reason: In its words.
        refused: It is the dialect that cannot take the call; the vendor was told so.
    """

    reason: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Reply:
    """A message that the protocol wants sent back, ahead of all audio that waits."""

    message: str


@dataclass(frozen=True)
class Violation:
    """Something the protocol does not allow. It is counted, reported and otherwise ignored."""

    what: str


Inbound: TypeAlias = (
    CallStarted
    | CallDetails
    | Audio
    | Dtmf
    | MarkReached
    | PlaybackFinished
    | Activity
    | CallEnded
    | Reply
    | Violation
)


# -- outbound: tell the telephony side


@dataclass(frozen=True, slots=True)
class Speech:
    """The model's voice.

    Attributes:
        payload: Base64 in the dialect's ``output_format``.
        size: Bytes in it.
        item_id: The conversation item being spoken.
        content_index: The part of that item.
    """

    payload: str
    size: int
    item_id: str
    content_index: int = 0


@dataclass(frozen=True)
class SpeechEnd:
    """All audio of this item was sent (or, after an interruption, no more will be)."""

    item_id: str


@dataclass(frozen=True)
class Mark:
    """Ask to be told when everything sent before was played."""

    name: str


@dataclass(frozen=True)
class Clear:
    """The caller interrupts: throw away what was sent and not played, and stop playing."""


@dataclass(frozen=True)
class CallerSpeech:
    """What the model's voice detection noticed: ``phase`` is ``started``, ``stopped`` or ``committed``."""

    phase: str


@dataclass(frozen=True)
class CallerSaid:
    """The transcript of what the caller said; not ``final``: as far as it is known by now."""

    text: str
    final: bool = True


@dataclass(frozen=True)
class Hangup:
    """End the call."""

    reason: str = ""


@dataclass(frozen=True)
class Custom:
    """Something only this vendor has (``transfer``, ``sendDtmf``…): see the dialect."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


Outbound: TypeAlias = Speech | SpeechEnd | Mark | Clear | CallerSpeech | CallerSaid | Hangup | Custom
