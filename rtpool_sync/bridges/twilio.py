"""Twilio Media Streams: ``<Connect><Stream>``, the bidirectional kind.

Everything is mu-law at 8 kHz, on both sides, so audio passes through as it
came: what Twilio sends in base64 is what ``input_audio_buffer.append`` takes.
The session has to say so for both directions, which
``TwilioBridge.session(...)`` does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from .actions import (
    PCMU,
    Audio,
    CallEnded,
    CallStarted,
    Clear,
    Dtmf,
    Inbound,
    Mark,
    MarkReached,
    Outbound,
    Speech,
    Violation,
)
from .bridge import Bridge
from .dialect import Dialect

__all__ = ["TwilioBridge", "TwilioDialect", "verify_signature"]

_encode = json.JSONEncoder(separators=(",", ":")).encode
_b64decode = base64.b64decode


def verify_signature(
    url: str, auth_token: str, signature: str | None, parameters: Mapping[str, str] | None = None
) -> bool:
    """Whether a request carries Twilio's signature: the upgrade of a stream, or a webhook.

    Refuse the upgrade otherwise, before the WebSocket is accepted: whoever can open one speaks
    with the model at your expense.

    Args:
        url: The public address, exactly as in the TwiML or in Twilio's console: for a stream
            ``wss://…``, also where the application sees ``http://`` behind a proxy. From your
            configuration, never from headers that a proxy or a caller can choose.
        auth_token: Of the Twilio account.
        signature: The header ``X-Twilio-Signature``, or ``None`` if there is none.
        parameters: Of a webhook's form; a stream's upgrade has none.

    Raises:
        ValueError: There is no auth token: nothing could be verified.

    Source: https://www.twilio.com/docs/usage/webhooks/webhooks-security
    """
    if not auth_token:
        raise ValueError("verify_signature needs the account's auth token")
    said = url + "".join(name + value for name, value in sorted((parameters or {}).items()))
    right = base64.b64encode(hmac.digest(auth_token.encode(), said.encode(), hashlib.sha1))
    return hmac.compare_digest(right, (signature or "").encode())


class TwilioDialect(Dialect):
    """The messages of Twilio Media Streams.

    Attributes:
        stream_sid, call_sid: Twilio's ids, once the stream has started.
    """

    name: ClassVar[str] = "twilio"
    flushes: ClassVar[bool] = True
    input_format = PCMU
    output_format = PCMU

    def __init__(self) -> None:
        self.stream_sid = ""
        self.call_sid = ""
        self._quoted = '""'

    # -- Twilio says

    def decode(self, message: str | bytes, now: float) -> Iterable[Inbound]:
        if not isinstance(message, str):
            return (Violation("a binary message"),)
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            return (Violation("a message that is not JSON"),)
        if not isinstance(event, dict):
            return (Violation("a message that is not an object"),)
        kind = event.get("event")
        if kind == "media":
            return self._media(event)
        if kind == "connected":
            return ()
        if kind == "start":
            return self._start(event)
        if kind not in ("mark", "dtmf", "stop"):
            # Twilio may add events; one without a name is none.
            return () if isinstance(kind, str) else (Violation("a message without an event"),)
        wrong = self._wrong_stream(event)
        part = event.get(kind)
        if wrong is not None:
            return (wrong,)
        if not isinstance(part, dict):
            return (Violation(f"{kind} without its object"),)
        if kind == "stop":
            return (CallEnded("Twilio stopped the stream"),)
        if kind == "mark":
            return (MarkReached(str(part.get("name"))),)
        digit = part.get("digit")
        if not isinstance(digit, str) or not digit:
            return (Violation("dtmf without a digit"),)
        return (Dtmf(digit),)

    def _wrong_stream(self, event: Mapping[str, Any]) -> Violation | None:
        if not self.stream_sid:
            return Violation(f"{event['event']} before start")
        if event.get("streamSid") != self.stream_sid:
            return Violation(f"{event['event']} with another streamSid, or none")
        return None

    def _media(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        wrong = self._wrong_stream(event)
        if wrong is not None:
            return (wrong,)
        media = event.get("media")
        if not isinstance(media, dict):
            return (Violation("media without its object"),)
        if media.get("track") not in (None, "inbound"):
            return ()  # our own voice, of a stream that has both tracks
        payload = media.get("payload")
        try:
            size = len(_b64decode(payload, validate=True))  # type: ignore[arg-type]
        except (ValueError, TypeError):
            return (Violation("media whose payload is not base64"),)
        try:
            at_ms = float(media["timestamp"])
        except (KeyError, ValueError, TypeError, OverflowError):
            at_ms = None
        if at_ms is not None and not math.isfinite(at_ms):
            at_ms = None
        return (Audio(payload, size, at_ms),) if size else ()  # type: ignore[arg-type]

    def _start(self, event: Mapping[str, Any]) -> Iterable[Inbound]:
        start = event.get("start")
        if not isinstance(start, dict):
            return (Violation("start without its object"),)
        stream_sid = start.get("streamSid") or event.get("streamSid")
        if not isinstance(stream_sid, str) or not stream_sid:
            return (Violation("start without a streamSid"),)
        if self.stream_sid:
            return (Violation("a second start"),)
        media = start.get("mediaFormat")
        encoding = media.get("encoding", "audio/x-mulaw") if isinstance(media, dict) else "audio/x-mulaw"
        if encoding != "audio/x-mulaw":
            return (Violation(f"a stream of {encoding!r:.60}"),)
        self._quoted = _encode(stream_sid)
        self.stream_sid = stream_sid
        self.call_sid = str(start.get("callSid") or "")
        parameters = start.get("customParameters")
        parameters = parameters if isinstance(parameters, dict) else {}
        return (
            CallStarted(
                self.call_sid,
                stream_sid,
                parameters={str(name): str(value) for name, value in parameters.items()},
                caller=str(parameters.get("caller") or parameters.get("from") or ""),
                callee=str(parameters.get("callee") or parameters.get("to") or ""),
                details=event,
            ),
        )

    # -- to Twilio

    def encode(self, action: Outbound) -> Iterable[str]:
        sid = self.stream_sid
        if not sid:
            return ()
        if isinstance(action, Speech):
            # Base64 can be put between quotes as it is.
            media = f'{{"payload":"{action.payload}"}}'
            return (f'{{"event":"media","streamSid":{self._quoted},"media":{media}}}',)
        if isinstance(action, Mark):
            return (_encode({"event": "mark", "streamSid": sid, "mark": {"name": action.name}}),)
        if isinstance(action, Clear):
            return (_encode({"event": "clear", "streamSid": sid}),)
        return ()  # to hang up is to close the WebSocket; nothing else is said


class TwilioBridge(Bridge):
    """A call of Twilio Media Streams. See :class:`~.bridge.Bridge` for the arguments."""

    dialect_class = TwilioDialect

    @staticmethod
    def session(**settings: Any) -> dict[str, Any]:
        """Session settings for a Twilio call: what is given, with the audio formats put in.

        pool.connection(session=TwilioBridge.session(instructions="Be brief."))
        """
        return TwilioDialect().session(**settings)
