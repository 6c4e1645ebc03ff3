"""One pooled connection, and the handle a borrower holds for one session.

:class:`PooledConnection` lives as long as its socket. :class:`RealtimeConnection`
lives as long as one checkout: it shows its lease to the transport with every
call, so that nothing done through it after its return can reach a later session.
"""

from __future__ import annotations

import enum
import json
import math
import time
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from .converters.masking import Secret
from .errors import (
    ConnectError,
    ConnectionLost,
    ConnectionReturned,
    PoolTimeout,
    RecvTimeout,
    SessionExpired,
    redact,
)
from .protocols.base import Protocol, SessionProtocol
from .transport.frames import BINARY, TEXT

if TYPE_CHECKING:
    from .ledger import Ledger
    from .transport import Transport
    from .view import WebSocketView

__all__ = ["Claim", "Lender", "PooledConnection", "RealtimeConnection", "State", "claim_of"]

monotonic = time.monotonic
NEVER = -math.inf
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class State(enum.Enum):
    """Who may touch the socket of a connection. Changed under the pool's lock only."""

    CONNECTING = "connecting"  # a connector, then the reaper (waiting for the session)
    IDLE = "idle"  # nobody; the reaper once it has reserved it
    IN_USE = "in_use"  # the borrower; the reaper sends keepalive pings
    RESETTING = "resetting"  # the reaper
    CLOSING = "closing"  # the reaper
    GONE = "gone"  # no socket any more


class PooledConnection:
    """A connection as the pool sees it. All fields are guarded by the pool's lock, except as noted."""

    __slots__ = (
        "borrower_stack",
        "busy_since",
        "close_by",
        "close_reason",
        "direct",
        "due",
        "failures_before",
        "generation",
        "half_closed",
        "id",
        "idle_since",
        "incomplete",
        "last_error",
        "leak_reported",
        "ledger",
        "max_sessions",
        "next_ping_at",
        "opened_at",
        "ping_sent",
        "pinged_at",
        "protocol",
        "received_back",
        "reset_started",
        "secrets",
        "session_count",
        "stall_timeout",
        "state",
        "text_only",
        "transparent",
        "transport",
        "usable_until",
        "usable_why",
        "watched",
    )

    def __init__(
        self, id: int, ledger: Ledger, protocol: SessionProtocol, kind: Protocol, generation: int, now: float
    ) -> None:
        self.id = id
        self.ledger = ledger
        self.protocol = protocol
        self.transparent = kind.transparent
        self.direct = kind.transparent  # goes on as it comes back, if it is clean: the reaper need not see it
        self.text_only = kind.text_only
        self.generation = generation
        self.state = State.CONNECTING
        self.transport: Transport | None = None
        self.session_count = 0  # the number of the present, or last, session: a borrower's right to this
        self.max_sessions = ledger.config.max_sessions_per_connection
        self.stall_timeout = ledger.config.ping_timeout
        self.opened_at = self.idle_since = self.busy_since = now
        self.usable_until, self.usable_why = 0.0, "age"
        self.close_reason: str | None = None  # set by condemn()
        self.last_error = ""
        self.secrets: list[Secret] = []  # what was shown to the server, and what it may quote
        self.failures_before = 0  # attempts that had failed in a row when this one succeeded
        self.borrower_stack: str | None = None
        self.leak_reported = False
        # The reaper's own, not guarded:
        self.due = 0.0  # when to look at it next; entries of the timer heap that differ are stale
        self.watched = False  # registered with the selector
        self.close_by = 0.0
        self.half_closed = False  # said everything, waiting for the peer to end the stream too
        self.received_back = False  # the reaper has begun with what the last borrower left
        self.next_ping_at = 0.0
        self.ping_sent = False  # a health check, not answered yet
        self.pinged_at = 0.0  # when
        self.incomplete = False  # reserved while idle: half a message has arrived
        self.reset_started = 0.0

    def condemn(self, reason: str) -> None:
        """Have the connection closed as soon as nobody uses it."""
        self.close_reason = reason
        self.usable_until = NEVER

    def masked(self, error: ConnectError) -> ConnectError:
        """The error, without the secrets that the server has put into what it said."""
        error.args = tuple(self.mask(str(arg)) for arg in error.args)
        if error.code is not None:
            error.code = self.mask(error.code)
        return error

    def mask(self, text: str) -> str:
        """The text without the secrets that this connection was opened with."""
        return redact(text, *(secret.reveal() for secret in self.secrets if len(secret) > 5))

    def __repr__(self) -> str:
        return f"<PooledConnection #{self.id} {self.state.value}, {self.session_count} sessions>"


class Lender(typing.Protocol):
    """What a handle needs of its pool."""

    name: str

    def _dropped(self, handle: RealtimeConnection, mistake: bool = True) -> None: ...
    def _park_at_exit(self) -> None: ...


class Claim:
    """The right to give a connection back: a handle's, or what is left of one that was dropped."""

    __slots__ = ("_lease", "_member", "_transport", "id")

    _member: PooledConnection | None
    _transport: Transport
    _lease: int
    #: Number of the connection in its pool.
    id: int


def claim_of(handle: Claim) -> Claim:
    """What outlives a handle that is being finalized."""
    claim = Claim()
    claim._member, claim._transport = handle._member, handle._transport
    claim._lease, claim.id = handle._lease, handle.id
    return claim


class RealtimeConnection(Claim):
    """A live session, lent by a pool. Made by ``pool.connection()`` and ``pool.acquire()``.

    One thread may :meth:`send` while another receives. After the connection has
    been returned every use raises :class:`ConnectionReturned`.
    """

    __slots__ = ("__weakref__", "_pool", "_sent", "_view")

    # Made and filled in by Ledger.lend(): a constructor would take longer than all that.
    _pool: Lender
    _sent: bool  # whether anything was, in this session
    _view: WebSocketView  # not there before it is asked for

    def _borrowed(self) -> tuple[PooledConnection, Transport]:
        member, transport = self._member, self._transport
        if member is None or transport.owner is not self._lease:
            raise ConnectionReturned(f"connection #{self.id} was returned to pool {self._pool.name!r}")
        if not member.ledger.birthplace[0]:
            raise ConnectionLost(f"connection #{self.id} belongs to the parent process", reason="forked")
        return member, transport

    def __del__(self) -> None:
        # Dropped without being returned. Nothing may block here, so the reaper takes it back.
        try:
            if self._member is not None:
                self._pool._dropped(self)
        except AttributeError:  # an exception has struck before it was filled in
            pass

    def __reduce__(self) -> NoReturn:
        # A copy would be a second claim to the same session, and end it when it is dropped.
        raise TypeError("a connection cannot be copied or pickled")

    def __repr__(self) -> str:
        member = self._member
        if member is None:
            return f"<RealtimeConnection #{self.id} of pool {self._pool.name!r}, returned>"
        return (
            f"<RealtimeConnection #{self.id} of pool {self._pool.name!r}, session {member.session_count}, "
            f"{monotonic() - member.opened_at:.1f} s old>"
        )

    # -- sending

    def send(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Send an event.

        Args:
            event: A mapping is encoded as JSON; text is sent as it is. Bytes are
                sent as a binary frame, or as text where the protocol has only text.

        Raises:
            TypeError, ValueError: It cannot be encoded. Nothing was sent.
            ConnectionLost: The connection ended, or the peer has not taken a byte
                for ``ping_timeout`` seconds.
            ConnectionReturned: The connection was returned.
        """
        member = self._member
        transport = self._transport
        if member is None or not member.ledger.birthplace[0]:
            self._borrowed()
            raise AssertionError("unreachable")
        opcode = TEXT
        payload: str | bytes
        if isinstance(event, str):
            payload = event.encode()  # here: what cannot be encoded must not count as sent
        elif isinstance(event, (bytes, bytearray, memoryview)):
            if member.text_only:
                payload = event = bytes(event).decode()
            else:
                payload, opcode = bytes(event), BINARY
        elif isinstance(event, Mapping):
            payload = _encode(event if isinstance(event, dict) else dict(event))
        else:
            raise TypeError(f"an event is a mapping, str or bytes, not {type(event).__name__}")
        if not member.transparent:
            if transport.owner is not self._lease:
                self._borrowed()
            member.protocol.sent(event)
        messages, before = transport.messages_sent, self._sent  # in this order: others may send too
        self._sent = True
        try:
            transport.send(payload, opcode, member.stall_timeout, self._lease)
            return
        except ConnectionLost as error:
            if transport.messages_sent == messages:  # it had ended before: not a byte was written
                self._sent = before
            lost = self._explain(error)
        except TimeoutError:
            lost = ConnectionLost(
                f"the peer has not taken a byte for {member.stall_timeout:g} s",
                reason="send stalled",
                sent=True,
            )
            transport.lose("send stalled")
        self._raise(lost)

    # -- receiving

    def recv(self, timeout: float | None = None) -> Any:
        """Return the next server event.

        Args:
            timeout: Seconds to wait at most. ``None`` waits until the connection
                ends; a peer that answers no ping is found out by the keepalive.

        Returns:
            The decoded JSON object. Under a protocol without events (``"plain"``),
            a frame that holds no JSON object is returned as it is.

        Raises:
            RecvTimeout: Nothing came in time. Nothing is lost.
            ConnectionLost: The connection ended; :class:`SessionExpired` when the server's limit was reached.
            ConnectionReturned: The connection was returned.
            ValueError: The server sent something that is not JSON.
        """
        end = None if timeout is None else monotonic() + timeout
        while True:
            text = self._receive(None if end is None else max(0.0, end - monotonic()))
            member = self._member
            if member is None:
                self._borrowed()
                raise AssertionError("unreachable")
            if member.transparent:
                return _decode_object(text)
            try:
                event = json.loads(text)
            except ValueError:
                member.protocol.received_text(text)
                raise
            if member.protocol.received(event):
                return event

    def recv_text(self, timeout: float | None = None) -> Any:
        """Return the next message undecoded, ``str`` (or ``bytes`` of a binary frame). As :meth:`recv`."""
        end = None if timeout is None else monotonic() + timeout
        while True:
            text = self._receive(None if end is None else max(0.0, end - monotonic()))
            member = self._member
            if member is None:
                self._borrowed()
                raise AssertionError("unreachable")
            if member.transparent or member.protocol.received_text(text):
                return text

    def _receive(self, timeout: float | None) -> str | bytes:
        member, transport = self._member, self._transport
        ours = member is not None and member.ledger.birthplace[0]
        if not ours or transport.owner is not self._lease:
            self._borrowed()  # now: not in line behind the receiver of a later session
            raise AssertionError("unreachable")
        try:
            return transport.recv(timeout, self._lease)
        except ConnectionLost as error:
            lost = self._explain(error)
        self._raise(lost)

    def _explain(self, error: ConnectionLost) -> ConnectionLost:
        """The exception that says best why the connection ended."""
        member = self._member
        if member is not None and not isinstance(error, SessionExpired):
            known = member.protocol.closed(error.code, error.reason)
            if isinstance(known, ConnectionLost):
                known.code, known.reason = error.code, error.reason
                error = known
        error.sent = self._sent
        return error

    def _raise(self, lost: ConnectionLost) -> NoReturn:
        self._pool._park_at_exit()
        self._borrowed()  # returned meanwhile: that is the news, not that the pool closed it then
        raise lost

    def __iter__(self) -> Iterator[Any]:
        """Yield events until the server closes with 1000; any other end raises :class:`ConnectionLost`."""
        while True:
            try:
                event = self.recv()
            except ConnectionLost as lost:
                if lost.code == 1000 and not isinstance(lost, SessionExpired):
                    return
                raise
            yield event

    # -- state

    def ping(self, timeout: float = 5.0) -> float:
        """Send a ping and return the seconds until its answer.

        Raises:
            RecvTimeout: No answer in time.
            ConnectionLost, ConnectionReturned: As for :meth:`recv`.
        """
        _, transport = self._borrowed()
        try:
            return transport.ping(timeout, self._lease)
        except TimeoutError as error:
            raise RecvTimeout(str(error)) from None
        except ConnectionLost as error:
            lost = self._explain(error)
        self._raise(lost)

    def invalidate(self, reason: str = "invalidated by the borrower") -> None:
        """Have the connection closed, not reused, when it is returned."""
        member, _ = self._borrowed()
        member.condemn("invalidated")
        member.last_error = reason

    def abort(self, reason: str = "aborted by the borrower") -> None:
        """End the connection now: a thread that waits in :meth:`send` or :meth:`recv` gets ConnectionLost.

        Never blocks. For a watchdog, when the peer takes nothing or says nothing; the connection
        still has to be returned.
        """
        _, transport = self._borrowed()
        transport.lose(redact(reason))

    @property
    def websocket(self) -> WebSocketView:
        """The same connection in websocket-client's style, for existing code."""
        self._borrowed()
        try:
            return self._view
        except AttributeError:
            from .view import WebSocketView

            self._view = WebSocketView(self)
            return self._view

    @property
    def session_id(self) -> str | None:
        """The server's id of the session, if the protocol has one."""
        return self._borrowed()[0].protocol.session_id

    @property
    def expires_at(self) -> float | None:
        """When the server will end the connection, in Unix time, if it said so."""
        return self._borrowed()[0].protocol.expires_at

    @property
    def age_seconds(self) -> float:
        """Seconds since the connection became ready."""
        return monotonic() - self._borrowed()[0].opened_at

    @property
    def idle_seconds(self) -> float:
        """Seconds since anything was received."""
        return max(0.0, monotonic() - self._borrowed()[1].last_heard)

    @property
    def session_count(self) -> int:
        """How many sessions the connection has served, this one included."""
        return self._borrowed()[0].session_count

    @property
    def is_healthy(self) -> bool:
        """Whether the connection is open, sound, and answers pings within half of ``ping_timeout``."""
        member, transport = self._borrowed()
        answers = transport.silence(monotonic()) <= member.stall_timeout / 2
        return answers and not transport.ended and not transport.damaged

    @property
    def rtt_seconds(self) -> float | None:
        """Round trip of the last answered ping, in seconds; ``None`` before the first."""
        return self._borrowed()[1].rtt

    @property
    def closed(self) -> bool:
        """Whether the connection ended or was returned."""
        return self._member is None or self._transport.ended or self._is_inherited

    # -- the pool's side

    @property
    def _is_inherited(self) -> bool:
        """Whether this is a forked child, and the connection its parent's."""
        member = self._member
        return member is not None and not member.ledger.birthplace[0]

    def _configure(self, session: Mapping[str, Any], end: float, patience: float) -> None:
        """Apply ``session`` and wait for its acknowledgement, in the borrower's thread.

        Args:
            end: When the caller's time is over.
            patience: Seconds the server has for the acknowledgement.

        Raises:
            SessionRejected: The server refused the settings.
            PoolTimeout: ``end`` came first.
            ConnectionLost: It is the connection's fault, not the caller's: another one may serve.
        """
        member, transport = self._borrowed()
        protocol = member.protocol
        now = monotonic()
        silent_at = min(end, now + patience)
        if not isinstance(session, Mapping):
            raise TypeError(f"session must be a mapping of session settings, not {type(session).__name__}")
        protocol.configure(session, now)
        while protocol.pending:
            try:
                for message in protocol.outgoing():
                    transport.send(message, TEXT, max(0.0, silent_at - monotonic()), self._lease)
                until = silent_at if protocol.wake_at is None else min(silent_at, protocol.wake_at)
                answer = transport.recv(max(0.0, until - monotonic()), self._lease)
                protocol.feed(answer, monotonic())
            except TimeoutError:
                now = monotonic()
                if now < silent_at:
                    protocol.tick(now)
                    continue
                text = "the session settings were not acknowledged in time"
                self.invalidate(text)
                if now >= end:
                    raise PoolTimeout(text) from None
                raise ConnectionLost(text, reason=text) from None
        failure = protocol.failure
        if failure is not None:
            if failure.error is not None:
                raise failure.error
            self.invalidate(failure.message)
            raise ConnectionLost(failure.message, reason=failure.message)


def _decode_object(text: str | bytes) -> Any:
    if text[:1] in ("{", b"{"):
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text
