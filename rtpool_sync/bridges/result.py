"""What is left of a call when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ENDINGS", "CallResult"]

#: Why a call can end: the values of ``CallResult.ended_by``.
ENDINGS = {
    "caller": "the telephony side said that the call is over",
    "hangup": "hangup() was called",
    "stopped": "stop() was called",
    "telephony_closed": "the telephony side closed its WebSocket",
    "telephony_lost": "the telephony WebSocket broke",
    "telephony_silent": "the telephony side sent nothing for too long",
    "telephony_stalled": "the telephony side did not take what was sent to it",
    "no_start": "the telephony side did not begin a call in time",
    "refused": "the telephony side asked for what this side cannot do",
    "protocol": "the telephony side broke its protocol too often",
    "realtime_closed": "the Realtime server closed the session with 1000",
    "realtime_lost": "the Realtime connection broke, or its session expired",
    "realtime_silent": "the Realtime server answered no ping",
    "realtime_stalled": "the Realtime server did not take what was sent to it",
    "format": "the session speaks another audio format than the telephony side",
    "max_duration": "the call reached max_duration",
    "callback": "a callback raised something that is not an Exception (SystemExit…)",
    "interrupted": "run() was interrupted (KeyboardInterrupt, a greenlet's timeout…)",
    "failed": "the bridge itself failed: a bug, please report it",
}


@dataclass
class CallResult:
    """What happened in a call. Returned by ``run()``; while the call goes on, it fills up.

    Attributes:
        ended_by: Why it ended, one of :data:`ENDINGS`; empty while it goes on.
        detail: The same in a sentence, with the vendor's own reason.
        error: The exception behind it, if there was one, without its traceback: that would keep the
            whole stack. The log has it where it matters.
        call_id, stream_id, caller, callee, parameters: As the telephony side said at the start.
        seconds: From ``run()`` to the end.
        audio_in_bytes, audio_in_ms: The caller's audio, passed on to the model.
        audio_out_bytes, audio_out_ms: The model's audio, sent to the telephony side.
        frames_in, frames_out: In how many pieces.
        heard_ms: How much of the model's audio was played, as far as is known.
        dropped_in: Pieces of the caller's audio that were too late to be of use.
        dropped_out: Pieces of the model's audio that were not sent, because the caller interrupted.
        late_out: Pieces of an interrupted item that the model still sent, and that were muted.
        barge_ins: How often the caller interrupted audio that was being played.
        marks_sent, marks_reached: Marks of the playback clock.
        dtmf: All keys pressed.
        function_calls: Names of the functions that the model called, in order.
        violations: How often the telephony side broke its protocol.
        callbacks_dropped: Notifications that were not delivered, because a callback was too slow.
        errors: What went wrong without ending the call, in sentences, the first 100.
    """

    ended_by: str = ""
    detail: str = ""
    error: BaseException | None = None
    call_id: str = ""
    stream_id: str = ""
    caller: str = ""
    callee: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    audio_in_bytes: int = 0
    audio_in_ms: float = 0.0
    audio_out_bytes: int = 0
    audio_out_ms: float = 0.0
    frames_in: int = 0
    frames_out: int = 0
    heard_ms: float = 0.0
    dropped_in: int = 0
    dropped_out: int = 0
    late_out: int = 0
    barge_ins: int = 0
    marks_sent: int = 0
    marks_reached: int = 0
    dtmf: str = ""
    function_calls: list[str] = field(default_factory=list)
    violations: int = 0
    callbacks_dropped: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it ended as calls should: by the caller, by hanging up, or by ``stop()``."""
        return self.ended_by in ("caller", "hangup", "stopped", "telephony_closed")

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for logs and JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["error"] = None if self.error is None else f"{type(self.error).__name__}: {self.error}"
        values["parameters"] = dict(self.parameters)
        values["ok"] = self.ok
        return values
