"""The life of one connection outside a borrower's hands: made ready, reset, idle, closed.

Every step is taken in the reaper's thread and never waits. A step looks at what
has arrived, does what follows from it, and arranges when to be called again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .connection import PooledConnection, State
from .errors import ConnectError
from .policy import usable_until
from .transport import Transport

if TYPE_CHECKING:
    from .ledger import Ledger
    from .loop import Loop

__all__ = ["Lifecycle"]

TICK = 0.05  # seconds after which a connection that came back is watched again
HOUSEKEEPING = 1.0  # seconds between looks at a connection for which nothing is due
LINGER = 1.0  # seconds the peer has to end the stream after the closing handshake
CHECK_STEPS = 200  # parts of health_check_interval at which checks are due
GREETING = 16  # messages that a server without sessions may send unasked before its first one
CLOSING_RETRY = 0.01  # seconds until the next try to close a descriptor somebody is using


class Lifecycle:
    """The steps. ``ledger`` says who owns the connection, ``loop`` when to come back."""

    def __init__(self, ledger: Ledger, loop: Loop, remember: Callable[[Transport], None]) -> None:
        self._ledger = ledger
        self._loop = loop
        self._remember = remember  # told of connections that may hold a TLS session worth resuming

    def attend(self, member: PooledConnection, now: float) -> None:
        """Do what the state of the connection asks for at this time."""
        state = member.state
        if state is State.CONNECTING:
            self._drive_prepare(member, now)
        elif state is State.RESETTING:
            self._drive_reset(member, now)
        elif state is State.CLOSING:
            self._drive_close(member, now)
        elif state is State.IN_USE:
            self._loop.at(member, now + HOUSEKEEPING)  # the reaper's looks keep it; only the time goes on
        elif state is State.IDLE:
            self._look_idle(member, now)

    # -- connecting

    def arrived(self, member: PooledConnection, now: float, result: Transport | ConnectError) -> None:
        if isinstance(result, ConnectError):
            self._connect_failed(member, now, result)
            return
        with self._ledger.lock:
            member.transport = result
            closed = self._ledger.closed
        if closed:
            self.begin_close(member, now, "shutdown")
            return
        self._loop.watch(member)
        member.close_by = member.opened_at + self._ledger.config.connect_timeout
        member.protocol.prepare(now)
        self._drive_prepare(member, now)

    def _drive_prepare(self, member: PooledConnection, now: float) -> None:
        transport, protocol = member.transport, member.protocol
        if transport is None:  # still dialing; the dial has its own deadline
            return
        is_open = self._drive(member, now)
        late = protocol.pending and now >= member.close_by
        if protocol.failure is not None or late or not is_open:
            self._connect_failed(member, now, self._prepare_error(member, is_open))
        elif protocol.pending:
            self._loop.at(member, min(member.close_by, protocol.wake_at or member.close_by))
        else:
            self._ready(member, now)

    def _prepare_error(self, member: PooledConnection, is_open: bool) -> ConnectError:
        transport, failure = member.transport, member.protocol.failure
        assert transport is not None
        if failure is not None and isinstance(failure.error, ConnectError):
            return failure.error
        if failure is not None:
            return ConnectError(failure.message, kind="session")
        end = transport.end_error
        if not is_open and end is not None:
            known = member.protocol.closed(end.code, end.reason)
            if isinstance(known, ConnectError):
                return known
            return ConnectError(f"the session did not begin: {end}", close_code=end.code, kind="session")
        return ConnectError(
            f"the session did not begin within {self._ledger.config.connect_timeout:g} s", kind="timeout"
        )

    def _connect_failed(self, member: PooledConnection, now: float, error: ConnectError) -> None:
        error = member.masked(error)
        with self._ledger.lock:
            closed = self._ledger.closed
            if not closed:
                self._ledger.connect_failed(error, now)
        if not closed:
            self._tell_connect_failed(member, error)
        self.begin_close(member, now, None)

    def _tell_connect_failed(self, member: PooledConnection, error: ConnectError) -> None:
        self._ledger.events.emit("connect_failed", error.kind, str(error), connection=member.id, warn=True)

    def _ready(self, member: PooledConnection, now: float) -> None:
        config = self._ledger.config
        life = None if member.protocol.expires_at is None else member.protocol.expires_at - time.time()
        member.usable_until, member.usable_why = usable_until(
            now, max_age=config.max_connection_age, min_session_time=config.min_session_time, server_life=life
        )
        if life is not None and now >= member.usable_until:
            text = f"the server grants {life:.0f} s, less than min_session_time={config.min_session_time:g}"
            self._connect_failed(member, now, ConnectError(text, kind="session"))
            return
        took = now - member.opened_at
        member.next_ping_at = self._next_check(now)
        assert member.transport is not None
        self._remember(member.transport)
        with self._ledger.lock:
            reason = self._ledger.connect_succeeded(member, now, took)
        self._ledger.events.emit("opened", message=f"ready after {took:.3f} s", connection=member.id)
        if reason is not None:
            self.begin_close(member, now, reason)
        else:
            self._loop.at(member, now)

    def _drive(self, member: PooledConnection, now: float) -> bool:
        """Carry messages between the socket and the protocol's task; return whether the socket is open."""
        transport, protocol = member.transport, member.protocol
        assert transport is not None
        is_open = transport.drain()
        for message in transport.take_unread():
            if protocol.pending:
                protocol.feed(message, now)
            elif member.state is State.CONNECTING:
                transport.keep(message)  # said right after the greeting: the first borrower's to read
            elif protocol.failure is None and not protocol.stray(message):
                member.condemn("dirty")
        if protocol.pending and protocol.wake_at is not None and now >= protocol.wake_at:
            protocol.tick(now)
        for message in protocol.outgoing():
            transport.post(message)
        transport.flush()
        return is_open and not transport.ended

    # -- coming back

    def received_back(self, member: PooledConnection, now: float) -> None:
        """Look at what a borrower, or a checkout that did not like it, has left to us."""
        if member.state is State.IDLE:
            with self._ledger.lock:
                reserved = not self._ledger.is_idle(member)
            if reserved:
                self.examine(member, now)
            return
        if member.state is not State.RESETTING or member.received_back:
            return
        transport = member.transport
        assert transport is not None
        member.received_back = True
        if member.leak_reported:
            self._ledger.events.emit("leak_returned", connection=member.id, warn=True)
        member.borrower_stack, member.leak_reported, member.direct = None, False, member.transparent
        self._loop.unwatch(member)
        is_open = transport.drain()
        reason: str | None
        if not is_open or transport.ended:
            reason = "lost"
        elif transport.damaged or transport.stream.unsent or transport.busy:
            reason = "damaged"
        else:
            with self._ledger.lock:
                reason = self._ledger.retire_reason(member, now)
        if reason is not None:
            self.begin_close(member, now, reason)
            return
        if member.transparent:
            if transport.has_unread:
                self.begin_close(member, now, "dirty")
            else:
                self._reoffer(member, now)
            return
        member.reset_started = now
        member.protocol.reset(now)
        self._loop.watch(member)
        self._drive_reset(member, now)

    def _drive_reset(self, member: PooledConnection, now: float) -> None:
        if not member.received_back:
            return  # given back a moment ago: its reset has not begun, whatever its socket says
        protocol = member.protocol
        is_open = self._drive(member, now)
        failure = protocol.failure
        if protocol.pending and is_open and failure is None:
            self._loop.at(member, protocol.wake_at or now + self._ledger.config.reset_timeout)
            return
        outcome = failure.outcome if failure is not None else "ok" if is_open else "lost"
        if member.close_reason == "dirty" and outcome == "ok":
            outcome = "mismatch"
        with self._ledger.lock:
            self._ledger.counters.resets[outcome] += 1
            if outcome == "ok":
                self._ledger.counters.reset.observe(now - member.reset_started)
            reason = None if outcome == "ok" else "lost" if outcome == "lost" else "reset"
            reason = reason or self._ledger.retire_reason(member, now)
        if outcome != "ok":
            text = failure.message if failure is not None else ""
            # What else there is comes from what the borrower did, or from the network.
            warn = outcome in ("refused", "silent", "mismatch")
            self._ledger.events.emit("reset_failed", outcome, text, connection=member.id, warn=warn)
        if reason is not None:
            if failure is not None:
                member.last_error = failure.message
            self.begin_close(member, now, reason)
        else:
            self._reoffer(member, now)

    def _reoffer(self, member: PooledConnection, now: float) -> None:
        transport = member.transport
        assert transport is not None
        incomplete = transport.has_unread
        member.next_ping_at = self._next_check(now)
        member.ping_sent = False
        with self._ledger.lock:
            reason = self._ledger.retire_reason(member, now)
            if reason is None:
                member.idle_since = now
                if incomplete:
                    member.state = State.IDLE  # and reserved for us
                else:
                    self._ledger.offer(member, now)
        if reason is not None:
            self.begin_close(member, now, reason)
        elif incomplete:
            self.examine(member, now)
        else:
            self._loop.at(member, now + TICK)

    # -- idle

    def examine(self, member: PooledConnection, now: float) -> None:
        """Read an idle connection that is reserved for us: what arrived decides whether it stays."""
        transport = member.transport
        assert transport is not None
        is_open = transport.drain()
        unread = transport.take_unread()
        # Before anybody had it, what a plain server says is a greeting: the first borrower's to read.
        greeting = member.transparent and member.session_count == 0 and len(unread) <= GREETING
        if greeting:
            for message in unread:
                transport.keep(message)
        strays = [greeting or member.protocol.stray(message) for message in unread]
        with self._ledger.lock:
            reason = self._ledger.retire_reason(member, now)
        if not is_open or transport.ended:
            reason = "lost"
        elif not all(strays) or (transport.has_unread and member.transparent and not greeting):
            reason = reason or "dirty"
        if reason is not None:
            self.begin_close(member, now, reason)
            return
        answered = self._note_pong(member, now)
        member.incomplete = transport.has_unread and not greeting
        if member.incomplete:  # half a message: the rest decides
            member.close_by = now + self._ledger.config.reset_timeout
            self._loop.at(member, member.close_by)
            self._loop.watch(member)
            return
        self._loop.watch(member)  # a borrower it was taken from may have kept it from being watched
        if answered:
            self._arrange_look(member, now)  # what was arranged was the end of our patience
        with self._ledger.lock:
            self._ledger.offer(member, now)

    def _note_pong(self, member: PooledConnection, now: float) -> bool:
        """Count a health check that was answered, if one was due; return whether it was."""
        transport = member.transport
        assert transport is not None
        answered = transport.silence(math.inf) <= 0  # infinite as long as an answer is owed
        if member.ping_sent and answered and transport.rtt is not None:
            member.ping_sent = False
            with self._ledger.lock:
                self._ledger.counters.health_checks["ok"] += 1
                self._ledger.counters.ping_rtt.observe(transport.rtt)
            return True
        return False

    def _look_idle(self, member: PooledConnection, now: float) -> None:
        """An idle connection's time has come: retire it, ping it, or note when to look again."""
        transport, config = member.transport, self._ledger.config
        assert transport is not None
        self._note_pong(member, now)  # also one that a borrower received by the way
        idle_until = member.idle_since + config.max_idle_time
        # What the kernel holds may be the answer: this process was stopped for a while.
        silent = member.ping_sent and now >= self._answer_by(member) and not transport.has_bytes()
        with self._ledger.lock:
            reason = self._ledger.retire_reason(member, now)
            spare = len(self._ledger.idle) > config.min_idle
            if reason is None and now >= idle_until and spare:
                reason = "idle"
            if reason is None and silent:
                reason = "health"
                self._ledger.counters.health_checks["failed"] += 1
            if member.incomplete and now >= member.close_by:
                reason = "dirty"
            elif member.state is not State.IDLE or (reason is not None and not self._ledger.reserve(member)):
                self._loop.at(member, now + TICK)  # borrowed this very moment
                return
        if reason is not None:
            self.begin_close(member, now, reason)
            return
        if not member.ping_sent and now >= member.next_ping_at:
            member.ping_sent = True
            member.pinged_at = now
            member.next_ping_at = self._next_check(now)
            transport.send_keepalive()
        self._arrange_look(member, now)

    def _arrange_look(self, member: PooledConnection, now: float) -> None:
        """Note when to look at an idle connection again."""
        # What a borrower's keepalive has arranged may be later than a check is due.
        member.next_ping_at = min(member.next_ping_at, self._next_check(now))
        due = self._answer_by(member) if member.ping_sent else member.next_ping_at
        due = min(due, member.usable_until, member.close_by if member.incomplete else math.inf)
        self._loop.at(member, max(due, now + 0.001))

    def _next_check(self, now: float) -> float:
        """When the health check after this one is due: a half percent late at most.

        On common steps, so that those of many connections share a turn of the loop, and their
        answers another: waking up costs as much as a check.
        """
        interval = self._ledger.config.health_check_interval
        step = max(interval / CHECK_STEPS, 0.001)
        return math.ceil((now + interval) / step) * step

    def _answer_by(self, member: PooledConnection) -> float:
        """When the answer to the last health check is overdue."""
        return max(member.pinged_at, member.idle_since) + self._ledger.config.ping_timeout

    # -- in use

    def look_in_use(self, member: PooledConnection, now: float, session: int) -> None:
        """Keep a borrowed connection alive, whether or not its borrower receives. Never closes it.

        Should it be returned at this moment, nothing is read from it any more: then that
        is for those who own an idle connection, and a checkout asks the kernel only.
        """
        transport, config = member.transport, self._ledger.config
        assert transport is not None
        if transport.ended:
            return  # the borrower will find out
        # The last health check may have arranged the next ping for long after a keepalive is due.
        member.next_ping_at = min(member.next_ping_at, now + config.ping_interval)
        if not transport.readlock.locked() and transport.has_bytes():
            transport.drain(session)
        transport.flush()  # what the kernel had no room for, an answer to a ping among it
        self._note_pong(member, now)
        if transport.silence(now) >= config.ping_timeout and not transport.has_bytes():
            transport.lose(f"no answer to a ping within {config.ping_timeout:g} s")
        elif now >= member.next_ping_at and transport.silence(now) <= 0:
            member.next_ping_at = now + config.ping_interval
            transport.send_keepalive()
        threshold = config.leak_threshold
        if threshold and not member.leak_reported and now - member.busy_since >= threshold:
            member.leak_reported, member.direct = True, False
            with self._ledger.lock:
                self._ledger.counters.leaks += 1
            stack = member.borrower_stack or "an unknown borrower"
            since = f"in use for {now - member.busy_since:.1f} s (leak_threshold={threshold:g})"
            # Who leaks elsewhere is another cause.
            self._ledger.events.emit(
                "leaked",
                message=f"{since}; borrowed by {stack}",
                connection=member.id,
                warn=True,
                cause=stack,
            )

    # -- closing

    def begin_close(self, member: PooledConnection, now: float, reason: str | None) -> None:
        """Retire a connection that nobody uses. One that never became ready is not counted."""
        with self._ledger.lock:
            if member.state in (State.CLOSING, State.GONE):
                return
            was_ready = self._ledger.begin_close(member)
            transport = member.transport
            errors = self._ledger.errors_seen
            if was_ready and reason is not None:
                self._ledger.retired(member, reason, now)
            failed = self._ledger.last_error if self._ledger.errors_seen != errors else None
        if was_ready and reason is not None:
            end = transport.end_error if transport is not None else None
            text = member.last_error or (str(end) if end is not None and reason == "lost" else "")
            self._ledger.events.emit("closed", reason, text, connection=member.id)
        if failed is not None:  # it broke before anybody could use it
            self._tell_connect_failed(member, failed)
        member.close_reason = reason
        if transport is None:
            with self._ledger.lock:
                self._ledger.gone(member)
            return
        code = 1001 if reason == "shutdown" else 1000
        if not transport.ended:
            self._remember(transport)
            transport.start_close(code)
            self._loop.watch(member)
        member.close_by = now + self._ledger.config.close_timeout
        if transport.damaged or reason in ("health", None):
            member.close_by = min(member.close_by, now + 1.0)  # nothing to be polite about
        self._drive_close(member, now)

    def _drive_close(self, member: PooledConnection, now: float) -> None:
        transport = member.transport
        assert transport is not None
        is_open = transport.drain()
        transport.take_unread()
        transport.flush()
        if is_open and not transport.ended and now < member.close_by:
            self._loop.at(member, member.close_by)
            return
        if not member.half_closed:
            # Our end of the stream is closed; the place is free when the peer's is too.
            # Otherwise it would count one socket more than there may be.
            member.half_closed = True
            member.close_by = min(max(member.close_by, now), now + LINGER)
            transport.end_sending()
        if not transport.at_end() and now < member.close_by:
            self._loop.at(member, member.close_by)
            return
        self._loop.unwatch(member)
        transport.abort()
        if transport.release():
            with self._ledger.lock:
                self._ledger.gone(member)
        else:
            self._loop.at(member, now + CLOSING_RETRY)  # abort() has woken whoever is inside

    def kill(self, member: PooledConnection, now: float) -> None:
        """End a connection in use: only close() does that, and only after its deadline."""
        transport = member.transport
        assert transport is not None
        transport.start_close(1001, "the pool was closed")
        if not self._ledger.exiting:  # then its borrower is left asleep, not woken to an error
            transport.lose("the pool was closed")
        self.begin_close(member, now, "shutdown")
