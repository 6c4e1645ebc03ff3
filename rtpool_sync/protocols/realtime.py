"""The session protocol of the OpenAI Realtime API.

One connection is one session to the server; here it serves several borrowers,
one after another. :class:`RealtimeSession` makes it ready, follows what each of
them does, and undoes it (:mod:`.reset`), or says that it cannot be undone:

* a voice that was changed, once audio was spoken: it is locked from then on;
* tracing that was turned on: it cannot be modified any more;
* MCP tools: the server lists them in items, whenever it gets to it;
* whatever could not be followed: a binary frame, an event type not known here.

``docs/reset.md`` explains each step, and what a reset cannot hide.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConnectError, RtpoolError, SessionExpired, redact
from . import refusals
from .base import Failure, Protocol, SessionProtocol
from .events import APPEND, DELTAS, delta_in, error_of, is_append, name_of, parse, part_of
from .fence import Fence
from .reset import Reset
from .snapshot import difference, mcp_tools, settings_of, turn_detection, voice, words
from .tracking import Request, Track

__all__ = ["RealtimeProtocol", "RealtimeSession"]

CLOSE_FOLLOWS = 0.25  # seconds from an error that refuses the connection to the close frame, at most

_serial = itertools.count(1)


def _plain(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value of type {type(value).__name__}")


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain).encode


class RealtimeSession(SessionProtocol):
    """One connection to the Realtime API, from its opening to its end.

    Attributes:
        snapshot: The settings every session starts with: those of ``session.created``, after the
            pool's own were applied, as the server stated them.
        effective: The settings as the server stated them last.
        spoken: Whether assistant audio was ever received, which locks the voice.
        track: What the current session did.
        fence: What the earlier ones did.
    """

    def __init__(self, session: Mapping[str, Any], reset_timeout: float, time: Callable[[], float]) -> None:
        self.snapshot: dict[str, Any] = {}
        self.effective: dict[str, Any] = {}
        self.spoken = False
        self.track = Track()
        self._wanted = session
        self._reset_timeout = reset_timeout
        self._time = time
        # Unique in the process, so that no borrower's event_id is taken for one of ours.
        self._prefix = f"rtpool_{next(_serial)}_"
        self._events = itertools.count(1)
        self.fence = Fence(self._prefix)
        self._ids = self.track.ids
        self._ready = False
        self._expired = False
        self._error: Mapping[str, Any] | None = None  # seen before the session was ready
        self._task: Callable[[dict[str, Any], float], None] = self._opening
        self._reset: Reset | None = None
        self._outgoing: list[str] = []
        # Of sent() and received(), which two threads may call at the same time. What comes by
        # the hundred does not take it.
        self._lock = threading.Lock()

    # -- tasks

    def prepare(self, now: float) -> None:
        """Wait for ``session.created``, then apply the pool's settings."""
        self._start(self._opening)

    def configure(self, session: Mapping[str, Any], now: float) -> None:
        """Apply the settings of one checkout.

        If it fails with outcome ``locked`` nothing was sent: the connection is as clean as it was,
        and only cannot speak with another voice any more.
        """
        if not session:
            self.failure = None
            return
        wanted = voice(session)
        if self.spoken and wanted is not None and wanted != voice(self.effective):
            self.failure = Failure("locked", "the voice was locked by the audio of an earlier session")
            return
        update = {"type": "session.update", "session": {"type": self._type, **session}}
        try:
            self.ask(update, "configure")
        except (TypeError, ValueError) as error:
            raise type(error)(f"the session settings are no JSON: {error}") from None
        self._start(self._configuring)

    def reset(self, now: float) -> None:
        """Undo what the session did."""
        self._start(self._resetting)
        self._reset = Reset(self, self._reset_timeout, now)

    def _start(self, task: Callable[[dict[str, Any], float], None]) -> None:
        self._task = task
        self._reset = None
        self.failure = None
        self.pending = True
        self.wake_at = None

    def feed(self, message: str | bytes, now: float) -> None:
        """Take a message received while a task is under way."""
        if not self.pending:
            return
        if self.wake_at is not None and now >= self.wake_at:
            # A server that never stops talking must not put off the end.
            self.tick(now)
            return
        event = parse(message)
        if event is None:
            problem = "the server sent something that is no event"
            self.give_up("untracked", problem, None if self._ready else ConnectError(problem, kind="session"))
            return
        self._task(event, now)

    def tick(self, now: float) -> None:
        """Note that ``now`` has reached :attr:`wake_at`."""
        if not self.pending or self.wake_at is None or now < self.wake_at:
            return
        if self._reset is not None:
            self._reset.silent()
        else:
            self._refuse(refusals.refused_connection(self._error or {}))

    def outgoing(self) -> list[str]:
        """Take the messages to send now, in order."""
        messages, self._outgoing = self._outgoing, []
        return messages

    # -- prepare

    @property
    def _type(self) -> str:
        return self.effective.get("type") or "realtime"

    def _opening(self, event: dict[str, Any], now: float) -> None:
        kind = event.get("type")
        if kind == "error":
            self._error = error_of(event)
            # The close that follows has the code. Of an unknown error, only it says whether it was fatal.
            known = refusals.from_error(self._error) is not None
            self.wake_at = now + (CLOSE_FOLLOWS if known else self._reset_timeout)
        elif kind == "session.created":
            session = part_of(event, "session")
            self.session_id = name_of(session, "id")
            self._stated(session)
            self.wake_at = None
            if not self._wanted:
                self._opened()
                return
            update = {"type": "session.update", "session": {"type": self._type, **self._wanted}}
            try:
                self.ask(update, "prepare")
            except (TypeError, ValueError) as error:
                problem = f"the pool's session settings are no JSON: {error}"
                self._refuse(ConnectError(problem, permanent=True, kind="session"))
            self._task = self._applying

    def _applying(self, event: dict[str, Any], now: float) -> None:
        kind = event.get("type")
        if kind == "error":
            self._refuse(refusals.refused_session(error_of(event)))
        elif kind == "session.updated":
            self._stated(part_of(event, "session"))
            self._opened()

    def _opened(self) -> None:
        detection = turn_detection(self.effective)
        if detection is not None and detection.get("idle_timeout_ms") is not None:
            # The server then starts responses by itself, and bills them, on a connection that
            # nobody uses. Switching it off for every idle time would cost every checkout a
            # round trip; whoever wants it can pay that, with the settings of a checkout.
            self._refuse(
                ConnectError(
                    "turn_detection.idle_timeout_ms makes idle connections speak; it cannot be a setting "
                    "of the pool: pass it with session= at the checkout",
                    permanent=True,
                    kind="session",
                )
            )
            return
        self.snapshot = self.effective
        self._ready = True
        self._next_session()

    def _refuse(self, error: ConnectError) -> None:
        self.give_up("refused", str(error), error)

    def _stated(self, session: Mapping[str, Any]) -> None:
        """Note what the server says of the session."""
        expires_at = session.get("expires_at")
        if isinstance(expires_at, (int, float)):
            self.expires_at = float(expires_at)
        self.effective = settings_of(session)

    # -- configure

    def _configuring(self, event: dict[str, Any], now: float) -> None:
        delivered, request = self._follow(event)
        broken = self._broken()
        if broken is not None:
            self.give_up(*broken)
        elif event.get("type") == "error" and delivered:
            # Nothing else was asked for: it answers the settings, even if it does not say so.
            self.track.settle_oldest("update")
            error = refusals.rejected_session(error_of(event))
            self.give_up("refused", str(error), error)
        elif request is not None:
            self._finish()
        elif delivered and not self._harmless(event):
            self.give_up("mismatch", f"{event.get('type')} came before the session had begun")

    # -- reset

    def _resetting(self, event: dict[str, Any], now: float) -> None:
        delivered, request = self._follow(event)
        if self._reset is not None and (delivered or self.track.untracked is not None):
            self._reset.heard(str(event.get("type")), event, request, now)

    def beyond_reset(self) -> tuple[str, str] | None:
        """What the session did that no reset can undo: an outcome and a sentence."""
        track, before, after = self.track, self.snapshot, self.effective
        broken = self._broken()
        if broken is not None:
            return broken
        if track.mcp:
            # The server lists their tools in items of the conversation, whenever it gets to it.
            return "untracked", "MCP tools were in use"
        if difference(before.get("tracing"), after.get("tracing")) is not None:
            return "traced", "tracing was turned on, which cannot be undone"
        if self.spoken and any(used != voice(before) for used in (voice(after), *track.voices)):
            return "locked", "another voice has spoken, which locks it"
        return None

    def _broken(self) -> tuple[str, str] | None:
        """Why nothing can be done with the connection any more."""
        if self._expired:
            return "lost", "the session has reached its maximum duration"
        if self.track.untracked is not None:
            return "untracked", self.track.untracked
        return None

    def next_event_id(self) -> str:
        """A name for an event of ours."""
        return f"{self._prefix}{next(self._events)}"

    def ask(self, event: dict[str, Any], step: str) -> None:
        """Send an event of ours."""
        event["event_id"] = self.next_event_id()
        message = _encode(event)
        self.track.asked(event, step)
        self._outgoing.append(message)

    def clean(self) -> None:
        """End the reset: the connection is as good as new."""
        self.fence.retire(self.track)
        self._next_session()

    def _next_session(self) -> None:
        self.track = Track()
        self._ids = self.track.ids
        self.track.words.update(map(hash, words(self.snapshot)))
        self.track.settled(self.effective)
        self._finish()

    def _finish(self) -> None:
        self.pending = False
        self.wake_at = None

    def give_up(self, outcome: str, message: str, error: RtpoolError | None = None) -> None:
        """End the task: it failed."""
        self.failure = Failure(outcome, message, error)
        self._outgoing = []
        self._finish()

    # -- while a borrower has the connection

    def sent(self, message: str | bytes | Mapping[str, Any]) -> None:
        """Note a message of the borrower, before it is written."""
        event: Any = message
        if isinstance(message, dict):
            if message.get("type") == APPEND:
                self.track.audio_in = True
                return
        elif isinstance(message, (str, bytes, bytearray)):
            if is_append(message):
                self.track.audio_in = True
                return
            event = parse(message)
        with self._lock:
            if not isinstance(event, Mapping):
                self.track.lose("a message that is no event was sent")
            elif event.get("type") == APPEND:
                self.track.audio_in = True
            else:
                self.track.asked(event)

    def received(self, event: Mapping[str, Any]) -> bool:
        """Note a decoded message. False: it belongs to an earlier session, do not deliver it."""
        try:
            audible = DELTAS.get(event["type"])
            if audible is not None and event["response_id"] in self._ids:
                if audible:
                    self.spoken = True
                return True
        except (KeyError, TypeError):
            pass
        return self._received(event)

    def received_text(self, message: str | bytes) -> bool:
        """The same for a message that the borrower reads undecoded."""
        delta = delta_in(message)
        if delta is not None:
            audible = DELTAS.get(delta[0])
            if audible is not None:
                if delta[1] in self._ids:
                    if audible:
                        self.spoken = True
                    return True
                return self._received({"type": delta[0], "response_id": delta[1]})
        return self._received(parse(message))

    def _received(self, event: Any) -> bool:
        with self._lock:
            if not isinstance(event, Mapping):
                self.track.lose("a message that is no event was received")
                return True
            return self._follow(event)[0]

    def _follow(self, event: Mapping[str, Any]) -> tuple[bool, Request | None]:
        """Note a server event: whether it belongs to this session, and what it answered."""
        track = self.track
        kind = event.get("type")
        if not isinstance(kind, str):
            track.lose("an event without a type was received")
            return True, None
        if kind == "error" and refusals.expired(error_of(event)):
            self._expired = True
            return True, None
        if self.fence.foreign(kind, event, track):
            return False, None
        if kind == "session.updated":
            return self._updated(event)
        if kind in ("session.created", "conversation.created"):
            # Of the opening, seen late or twice.
            if kind == "session.created" and name_of(part_of(event, "session"), "id") != self.session_id:
                track.lose("the server began another session")
            return False, None
        request = track.noted(kind, event)
        if track.audible:
            self.spoken = True
        if kind == "input_audio_buffer.cleared" and request is None:
            return False, None
        return True, request

    def _updated(self, event: Mapping[str, Any]) -> tuple[bool, Request | None]:
        request = self.track.settle_oldest("update")
        if request is None:
            # Whose it is nobody can tell, and it may show the instructions of somebody else.
            # Nor can the next acknowledgement be told any more: they are only counted.
            self.track.lose("session.updated came without a request")
            return False, None
        self._stated(part_of(event, "session"))
        self.track.settled(self.effective)
        return True, request

    # -- while nobody has it

    def stray(self, message: str | bytes) -> bool:
        """Whether a message received on an idle connection leaves it as clean as it was."""
        event = parse(message)
        if event is None:
            return False
        delivered, _ = self._follow(event)
        return self._broken() is None and (not delivered or self._harmless(event))

    def _harmless(self, event: Mapping[str, Any]) -> bool:
        """Whether an event says nothing about a session, though none has begun."""
        kind = str(event.get("type"))
        if kind == "rate_limits.updated":
            return True
        # The pool's own MCP tools are listed in every session, some time after its start.
        return mcp_tools(self.snapshot) and (
            kind.startswith("mcp_list_tools.") or part_of(event, "item").get("type") == "mcp_list_tools"
        )

    # -- the end

    def closed(self, code: int, reason: str) -> RtpoolError | None:
        """The exception that says best why the server closed the connection, if it is known."""
        error: RtpoolError | None = None
        if not self._ready:
            error = refusals.from_close(code, reason, self._error)
        elif self._timed_out(code, reason):
            error = SessionExpired("the session has reached its maximum duration", code=code, reason=reason)
        if self.pending:
            self.give_up(
                "lost", f"the server closed the connection with {code} {redact(reason)}".rstrip(), error
            )
        return error

    def _timed_out(self, code: int, reason: str) -> bool:
        if self._expired or "session_expired" in reason or "maximum duration" in reason:
            return True
        # 1001 also says that the server goes away for other reasons.
        return code == 1001 and self.expires_at is not None and self._time() >= self.expires_at - 1


class RealtimeProtocol(Protocol):
    """The OpenAI Realtime API: conversations and transcriptions."""

    name = "realtime"
    needs_key = True
    text_only = True  # the server refuses binary frames

    def follow(
        self,
        *,
        session: Mapping[str, Any],
        reset_timeout: float,
        time: Callable[[], float] = time.time,
    ) -> RealtimeSession:
        """Return the protocol object of one new connection."""
        return RealtimeSession(session, reset_timeout, time)
