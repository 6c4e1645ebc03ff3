"""Calls of AudioCodes VoiceAI Connect, over the WebSocket mode of its Bot API.

:mod:`.audiocodes_protocol` has the messages, :mod:`.audiocodes_resume` what
happens when the WebSocket of a call breaks and another one takes its place.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from .actions import CallDetails, Custom
from .audiocodes_protocol import MEDIA_FORMATS, AudioCodesDialect
from .audiocodes_resume import Conversations, Held
from .bridge import Bridge
from .dialect import Dialect
from .incoming import Incoming
from .telephony import TelephonyClosed, adapt

__all__ = ["AudioCodesBridge", "AudioCodesDialect", "Conversations", "verify_bearer"]

monotonic = time.monotonic

#: The formats for which the model speaks its own, linear one.
_LINEAR = tuple(name for name, rate in MEDIA_FORMATS.items() if rate is not None)
_KEYS = frozenset("0123456789*#ABCD")
#: Seconds that a transfer may take.
_TRANSFER = 60.0


def verify_bearer(authorization: str | None, *tokens: str) -> bool:
    """Whether the ``Authorization`` header of an upgrade carries one of the tokens.

    Refuse the upgrade with HTTP 401 otherwise, before the WebSocket is accepted: whoever can
    open one speaks with the model at your expense.

    Args:
        authorization: The header, as it came, or ``None``.
        tokens: What VoiceAI Connect was configured with; several while one is being replaced.

    Raises:
        ValueError: There is no token, or an empty one: nothing could be verified.
    """
    if not tokens or not all(tokens):
        raise ValueError("verify_bearer needs a token that is not empty")
    scheme, _, given = (authorization or "").partition(" ")
    ok = False
    for token in tokens:  # every one, so that the time says nothing
        ok |= hmac.compare_digest(given.strip().encode(), token.encode())
    return ok and scheme.lower() == "bearer"


class AudioCodesBridge(Bridge):
    """A call of AudioCodes VoiceAI Connect. See :class:`~.bridge.Bridge` for the arguments.

    With :meth:`answer` every media format is possible, since the session is set up after it was
    chosen. Given a WebSocket itself, the bridge speaks linear audio, for a session that does:
    ``pool.connection(session=AudioCodesBridge.session(...))``.
    """

    dialect_class = AudioCodesDialect

    def __init__(self, ws: Any, conn: Any, *, dialect: Dialect | None = None, **options: Any) -> None:
        if dialect is None and not isinstance(ws, Incoming):
            dialect = AudioCodesDialect(formats=_LINEAR)
        super().__init__(ws, conn, dialect=dialect, **options)
        if isinstance(self._telephony, Held):
            self._telephony.report = self._failed

    @classmethod
    def answer(
        cls,
        ws: Any,
        *,
        timeout: float = 10.0,
        dialect: Dialect | None = None,
        conversations: Conversations | None = None,
        details_timeout: float = 1.0,
    ) -> Incoming:
        """Wait for the call to begin, before a Realtime connection is checked out for it.

        Args:
            ws: The telephony WebSocket.
            timeout: Seconds to wait for ``session.initiate``.
            dialect: ``AudioCodesDialect(formats=...)``, if not every format will do.
            conversations: So that a call can go on over another WebSocket when its own breaks.
            details_timeout: Seconds to wait for the activity ``start`` after that: it has the
                callee and the call's parameters.

        Raises:
            TelephonyClosed: There is no call (any more) for this thread: the telephony side is
                gone, only had the connection validated, asked for what this side cannot do, or
                this WebSocket carried on another call, which is over now. It was closed.
            TimeoutError: No call began in time; the WebSocket was closed.
        """
        spoken = dialect or AudioCodesDialect()
        if not isinstance(spoken, AudioCodesDialect):
            raise TypeError(f"dialect is an AudioCodesDialect, not a {type(spoken).__name__}")
        telephony = adapt(ws)
        held = Held(telephony)
        end = monotonic() + timeout
        if conversations is not None:
            try:
                first = telephony.recv(timeout)
                if first is not None:
                    held.push(first)
                    conversations.resume(first, telephony)
            except BaseException:
                telephony.close(1000, "")
                raise
        incoming = super().answer(held, timeout=max(0.0, end - monotonic()), dialect=spoken)
        if conversations is not None:
            conversations.add(incoming.call_id, held, spoken)
        try:
            _wait_for_details(incoming, held, details_timeout)
        except BaseException:
            held.close(1000, "")
            raise
        return incoming

    @staticmethod
    def session(**settings: Any) -> dict[str, Any]:
        """Session settings for a call in linear audio: what is given, with the formats put in."""
        return AudioCodesDialect(formats=_LINEAR).session(**settings)

    def transfer(self, target: str, *, reason: str = "", headers: Iterable[Mapping[str, str]] = ()) -> None:
        """Pass the caller on when the model has said what it has to say; the bridge's part ends there.

        Args:
            target: Where to: ``tel:+123456789``, ``sip:agent@example.com``.
            reason: ``handoverReason``.
            headers: SIP headers: ``{"name": ..., "value": ...}`` each.

        Raises:
            TypeError, ValueError: It cannot be encoded.
        """
        parameters: dict[str, Any] = {"transferTarget": target}
        if reason:
            parameters["handoverReason"] = reason
        if listed := [dict(header) for header in headers]:
            parameters["transferSipHeaders"] = listed
        json.dumps(parameters)  # here, as in tell()
        # If the WebSocket were closed while it goes on, the caller would be cut off.
        self.dialect.hangup_grace = _TRANSFER
        self._part(Custom("transfer", parameters), f"transferred to {target}")

    def send_dtmf(self, digits: str) -> None:
        """Press keys on the caller's side of the line.

        Raises:
            ValueError: Not 1 to 20 of ``0123456789*#ABCD``.
        """
        if not 1 <= len(digits) <= 20 or not _KEYS.issuperset(digits):
            raise ValueError(f"digits are 1 to 20 of 0123456789*#ABCD, not {digits!r}")
        self.tell("sendDtmf", dtmfDigits=digits)


def _wait_for_details(incoming: Incoming, held: Held, timeout: float) -> None:
    """Look at the next messages for the call's details; leave them all to the bridge."""
    end = monotonic() + timeout
    seen: list[str | bytes] = []
    try:
        while (left := end - monotonic()) > 0:
            message = held.recv(left)
            if message is None:
                continue
            seen.append(message)
            details = _details(message)
            if details is None:
                return  # it goes on with something else, which has to be answered
            if details:
                started = incoming.started
                incoming.started = replace(
                    started,
                    parameters={**started.parameters, **details[0].parameters},
                    caller=details[0].caller or started.caller,
                    callee=details[0].callee,
                )
                return
    except TelephonyClosed:
        # The bridge will see it too, if anything that came before does not end the call.
        if not seen:
            raise
    finally:
        for message in seen:
            held.push(message)


def _details(message: str | bytes) -> list[CallDetails] | None:
    """The details of the call in a message; none in one without; ``None`` if it is about something else."""
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or event.get("type") != "activities":
        return None
    activities = event.get("activities")
    return [
        AudioCodesDialect.details(activity)
        for activity in (activities if isinstance(activities, list) else ())
        if isinstance(activity, dict) and str(activity.get("name")).lower() == "start"
    ]
