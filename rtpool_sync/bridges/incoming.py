"""A call that has begun, before a Realtime connection is checked out for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from .actions import CallEnded, CallStarted, Hangup, Reply
from .dialect import Dialect
from .telephony import Telephony, TelephonyClosed, adapt

__all__ = ["Incoming", "answer"]

monotonic = time.monotonic


class Incoming:
    """A call that has begun and has no Realtime session yet: made by ``Bridge.answer``.

    Attributes:
        started: What the telephony side said, with its custom parameters.
        telephony, dialect: What the bridge goes on with.
    """

    def __init__(self, telephony: Telephony, dialect: Dialect, started: CallStarted) -> None:
        self.telephony = telephony
        self.dialect = dialect
        self.started = started

    @property
    def call_id(self) -> str:
        return self.started.call_id

    @property
    def caller(self) -> str:
        return self.started.caller

    @property
    def callee(self) -> str:
        return self.started.callee

    @property
    def parameters(self) -> Mapping[str, str]:
        """What the application put into the call (TwiML ``<Parameter>``…). Not to be trusted unchecked."""
        return self.started.parameters

    def session(self, **settings: Any) -> dict[str, Any]:
        """Session settings for this call: see :meth:`.dialect.Dialect.session`."""
        return self.dialect.session(**settings)

    def reject(self, reason: str = "") -> None:
        """Do not take the call: hang up and close the WebSocket. Takes a second at most."""
        with contextlib.suppress(Exception):
            for message in self.dialect.encode(Hangup(reason)):
                self.telephony.send(message)
        self.telephony.close(1000, reason)


def answer(ws: Any, dialect: Dialect, timeout: float) -> Incoming:
    """Wait for the call to begin: see ``Bridge.answer``."""
    telephony = adapt(ws)
    end = monotonic() + timeout
    try:
        while True:
            left = end - monotonic()
            if left <= 0:
                raise TimeoutError(f"no call began within {timeout:g} s")
            message = telephony.recv(left)
            if message is None or len(message) > dialect.max_message:
                continue
            for action in dialect.decode(message, monotonic()):
                if isinstance(action, Reply):
                    telephony.send(action.message)
                elif isinstance(action, CallEnded):
                    raise TelephonyClosed(action.reason or "the call is over", clean=True)
                elif isinstance(action, CallStarted):
                    return Incoming(telephony, dialect, action)
    except BaseException:
        telephony.close(1000, "")
        raise
