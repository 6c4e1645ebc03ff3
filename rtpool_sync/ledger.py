"""The ledger: who has which connection, and who is in line for one.

One lock, held for bookkeeping only; one function per passage of a connection
from one owner to another. A ledger belongs to one process and to one opening
of its pool: a forked child and a pool that is opened again begin a new one, so
nothing of the old can be mistaken for the new.

What borrowers' threads do here is written so that an exception that strikes
between two bytecodes (KeyboardInterrupt, a greenlet's timeout) leaves the state
whole: what changes together is assigned by statements with no call between
them, because the interpreter delivers such exceptions at calls and loops. What
is lost even so, a handle that never reached its ``with``, is found by its
finalizer and taken back by the reaper.
"""

from __future__ import annotations

import copy
import select
import threading
import time
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import attrgetter

from .birthplace import birthplace
from .config import PoolConfig
from .connection import NEVER, Claim, Lender, PooledConnection, RealtimeConnection, State
from .connector import MAX_DIALING
from .errors import ConnectError, PoolClosed, PoolExhausted, PoolTimeout
from .events import Events
from .patching import patched
from .policy import Backoff, wanted
from .protocols.base import Protocol
from .stats import ConnectionStats, Counters, PoolStats

__all__ = ["Ledger", "Waiter", "again"]

#: On the way of every checkout: a member of the class takes three times as long to find.
IDLE, IN_USE, RESETTING = State.IDLE, State.IN_USE, State.RESETTING
_idle_since = attrgetter("idle_since")


def guard() -> AbstractContextManager[object]:
    """A new lock, for ``with`` only: its methods are bound already, which saves a third of the time."""
    lock = threading.Lock()
    methods = {"__slots__": (), "__enter__": lock.__enter__, "__exit__": lock.__exit__}
    made: AbstractContextManager[object] = type("Guard", (), methods)()
    return made


class Waiter:
    """A caller in line. Guarded by the ledger's lock until it has left the line.

    Whoever serves it sets ``handle`` or ``error`` and then opens the gate. A
    plain lock is the gate: it is the cheapest thing that can be waited for.
    """

    __slots__ = ("error", "gate", "handle", "lender", "since")

    def __init__(self, lender: Lender, since: float) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.lender = lender
        self.since = since
        self.handle: RealtimeConnection | None = None
        self.error: Exception | None = None

    def outcome(self) -> RealtimeConnection:
        """What the caller was given, or raise why it was given nothing. Once it has left the line."""
        if self.handle is not None:
            return self.handle
        assert self.error is not None
        raise self.error


class Ledger:
    """The state of one pool in one process. Methods want the lock held unless they say otherwise."""

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        protocol: Protocol,
        counters: Counters,
        events: Events | None = None,
    ) -> None:
        self.name = name
        self.events = Events(name) if events is None else events  # never called with the lock held
        self.birthplace = birthplace()
        self.protocol = protocol
        self.poll_type = select.poll  # another one once gevent has patched the standard library
        self.unpatched_poll = None if patched() else select.poll  # None: each checkout is to be checked
        self.thread: int | None = None  # under gevent: whose greenlets may borrow
        self.lock = guard()  # guards everything below, and every PooledConnection's fields
        self.config = config
        self.counters = counters
        self.members: set[PooledConnection] = set()  # all that are not GONE: this is what capacity counts
        # How many of them are in a state, so that nobody has to count; the rest are idle or resetting.
        self.connecting = self.in_use = self.closing = 0
        self.idle: list[PooledConnection] = []  # ready to lend, by ``idle_since``: most recently used last
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()  # first come first served
        self.inbox: deque[PooledConnection] = deque()  # for the reaper to look at
        # Lost handles, and whether that was the borrower's mistake; appended to without the lock.
        self.dropped: deque[tuple[Claim, bool]] = deque()
        self.generation = 0  # raised by drain(): older connections are retired
        self.backoff = Backoff()
        self.last_error: ConnectError | None = None
        self.errors_seen = 0  # connect errors so far, to tell a new one from an old one
        self.watchers: set[threading.Lock] = set()  # gates of the threads in wait()
        self.unmet = False  # a caller went away empty-handed since the last plan
        self.overfull = False  # resize() has left more connections than there may be
        self.closed = False
        self.kill = False  # close()'s deadline has passed: connections in use are closed too
        self.exiting = False  # the interpreter exits: daemon threads are left asleep
        #: Whether the reaper turns by itself soon enough for a connection that is lent, or
        #: comes back: then borrowers need not wake it.
        self.will_turn = False
        self.last_run = 0.0  # Unix time of the reaper's last turn; 0 before it was started
        self._next_id = 1

    # -- lending

    def lend(self, now: float, lender: Lender) -> RealtimeConnection | None:
        """Pass the connection that was used last to a borrower, if it is fit.

        The one place where that happens: what goes straight to the first in line lay on the stack as well.
        The transport has no owner before the borrower has asked the kernel: or the reaper's look
        could read what is left of an earlier session just before.
        """
        idle = self.idle
        if not idle or self.closed:
            return None
        member = idle[-1]
        transport, lease = member.transport, member.session_count + 1
        if now >= member.usable_until or transport is None:
            return None
        handle = RealtimeConnection()
        # From here to the end there is no call: see the module's docstring.
        handle._pool = lender
        handle._member = member
        handle._transport = transport
        handle._lease = lease
        handle._sent = False
        handle.id = member.id
        del idle[-1]
        self.in_use += 1
        member.state = IN_USE
        member.busy_since = now
        member.session_count = lease
        return handle

    def take_idle(self, now: float, lender: Lender) -> RealtimeConnection | None:
        """The same; the unfit are left to the reaper."""
        idle = self.idle
        while True:
            handle = self.lend(now, lender)
            if handle is not None or not idle or self.closed:
                return handle
            member = idle[-1]
            del idle[-1]
            self.inbox.append(member)

    def join_line(self, lender: Lender, since: float, end: float, old: Waiter | None = None) -> Waiter:
        """Queue a waiter, or raise why waiting is no use.

        Args:
            old: The caller's waiter, if it was given what the reaper had to look at: the new one goes first.
        """
        failed = self.counters.checkouts_failed
        if self.closed:
            failed["closed"] += 1
            raise PoolClosed(f"pool {self.name!r} is closed")
        limit = self.config.max_waiting
        if limit and len(self.waiters) >= limit and old is None:
            failed["exhausted"] += 1
            who = f"{limit} callers are" if limit > 1 else "one caller is"
            raise PoolExhausted(f"{who} waiting already {self.numbers()}")
        error = self.hopeless(end)
        if error is not None:
            failed["error"] += 1
            raise again(error)
        waiter = Waiter(lender, since)
        self.waiters[waiter] = None
        if old is not None:
            self.waiters.move_to_end(waiter, last=False)
        return waiter

    def hopeless(self, end: float) -> ConnectError | None:
        """The permanent error that is all a caller with this deadline can get: no attempt comes before it."""
        error = self.last_error
        return error if error is not None and error.permanent and self.backoff.retry_at > end else None

    def leave_line(self, waiter: Waiter, limit: float) -> None:
        """Take a waiter out of the line whose time is over, unless it was served at this very moment."""
        if waiter.handle is None and waiter.error is None:
            self.waiters.pop(waiter, None)
            self.unmet = True
            self.counters.checkouts_failed["timeout"] += 1
            waiter.error = self.timeout_error(limit, waiter.since)

    def serve_line(self, now: float) -> None:
        """Pass the connection that was used last to the first in line, if there are both."""
        if self.waiters and self.idle:
            waiter = next(iter(self.waiters))
            handle = self.lend(now, waiter.lender)
            if handle is not None:
                waiter.handle = handle
                del self.waiters[waiter]
                waiter.gate.release()

    def fail_line(self, error: Callable[[], Exception], outcome: str) -> None:
        """Send everybody in line away, each with an exception of their own."""
        while self.waiters:
            waiter = next(iter(self.waiters))
            waiter.error = error()
            del self.waiters[waiter]
            waiter.gate.release()
            self.counters.checkouts_failed[outcome] += 1

    # -- taking back

    def give_back(self, claim: Claim, now: float) -> bool:
        """Take a connection back from its borrower; return whether the reaper has to be woken.

        Called again after an exception has struck half-way, this goes on where it was.
        """
        member, transport = claim._member, claim._transport
        if member is None or member.session_count is not claim._lease or member.state is not IN_USE:
            # Somebody was faster: another thread, close() after its deadline, or we before we were struck.
            claim._member = None
            self.serve_line(now)
            return False
        if transport.owner is not None:
            transport.owner = None  # from here on every call through the handle fails
            self.counters.session_duration.observe(now - member.busy_since)
        if self.overfull and self.surplus() > 0 and not member.close_reason:
            member.condemn("shrunk")  # whoever waits gets another: this is how a busy pool shrinks
        # A connection without a reset can go on at once. Whether its socket is quiet is
        # looked at when it is lent: that is late enough, and once for every checkout.
        fit = member.direct and now < member.usable_until and claim._lease < member.max_sessions
        if fit and transport.is_clean():
            member.idle_since = now
            member.state = IDLE
            self.in_use -= 1
            self.idle.append(member)
            claim._member = None
            if self.waiters:
                self.serve_line(now)
            return not self.will_turn
        member.received_back = False
        member.state = RESETTING
        self.in_use -= 1
        self.inbox.append(member)
        claim._member = None
        return True

    def take_back_unseen(self, handle: RealtimeConnection) -> None:
        """Undo a loan whose socket turned out to have something to say: the reaper looks at it."""
        member, handle._member = handle._member, None
        if member is not None and member.session_count is handle._lease and member.state is IN_USE:
            assert member.transport is not None
            member.transport.owner = None
            member.session_count -= 1
            member.state = IDLE
            self.in_use -= 1
            self.inbox.append(member)
        else:  # close() was faster, after its deadline
            self.counters.checkouts_ok -= 1

    def offer(self, member: PooledConnection, now: float) -> None:
        """Pass a connection that is ready to the first in line, or to the idle ones."""
        member.state = IDLE
        # Where its last use puts it: a health check does not make it recently used.
        insort(self.idle, member, key=_idle_since)
        self.serve_line(now)
        self.tell_watchers()

    def is_idle(self, member: PooledConnection) -> bool:
        """Whether a connection can be lent: it is idle, and the reaper has not reserved it."""
        return self._place(member) is not None

    def reserve(self, member: PooledConnection) -> bool:
        """Take an idle connection off the stack, so that nobody borrows it; return whether it was there."""
        place = self._place(member)
        if place is None:
            return False
        del self.idle[place]
        return True

    def _place(self, member: PooledConnection) -> int | None:
        idle, since = self.idle, member.idle_since
        for place in range(bisect_left(idle, since, key=_idle_since), len(idle)):
            if idle[place] is member:
                return place
            if idle[place].idle_since > since:
                break
        return None

    def tell_watchers(self) -> None:
        """Have the threads in wait() look: a connection became ready or failed, or the pool was closed."""
        for gate in self.watchers:
            if gate.locked():
                gate.release()

    def surplus(self) -> int:
        """How many connections more there are than there may be, those on their way out not counted."""
        limit = self.config.max_connections
        if len(self.members) <= limit:
            return 0
        return sum(m.state is not State.CLOSING and m.close_reason is None for m in self.members) - limit

    def configure(self, config: PoolConfig) -> None:
        """Change the limits."""
        self.config = config
        self.overfull = len(self.members) > config.max_connections

    def drain(self) -> None:
        """Have every connection retired that there is now."""
        self.generation += 1
        self._end_use()

    def close(self) -> None:
        """Lend nothing any more, and have every connection retired."""
        self.closed = True
        self._end_use()

    def _end_use(self) -> None:
        """From now on :meth:`retire_reason` has one for each connection, and borrowers look no further."""
        for member in self.members:
            member.usable_until = NEVER

    def retire_reason(self, member: PooledConnection, now: float) -> str | None:
        """Why a connection must not be lent again; None while it may."""
        if member.close_reason is not None:
            return member.close_reason
        if self.closed:
            return "shutdown"
        if member.generation != self.generation:
            return "drained"
        if now >= member.usable_until:
            return member.usable_why
        if member.session_count >= member.max_sessions:
            return "sessions"
        return None

    # -- opening

    def plan(self, now: float) -> list[PooledConnection]:
        """Reserve room for the connections to be opened now, and return them."""
        if self.closed or now < self.next_try():
            return []
        config, live = self.config, self.count_live()
        unmet, self.unmet = self.unmet, False
        count = wanted(
            waiting=max(len(self.waiters), unmet),  # the next caller finds what the last one did not
            min_idle=max(config.min_idle, 1 - live if self.watchers else 0),
            idle=live - self.in_use,  # or will be, without connecting
            coming=self.connecting,
            total=len(self.members),
            max_connections=config.max_connections,
            dialing=self.connecting,
            # While connecting fails, one attempt at a time finds out whether it works again.
            max_dialing=1 if self.backoff.failures else MAX_DIALING,
        )
        return [self._add_member(now) for _ in range(count)]

    def next_try(self) -> float:
        """When a connection may be opened at the earliest."""
        return self.backoff.next_try(asked=bool(self.waiters or self.watchers or self.unmet))

    def _add_member(self, now: float) -> PooledConnection:
        config, kind = self.config, self.protocol
        protocol = kind.follow(session=config.session, reset_timeout=config.reset_timeout)
        member = PooledConnection(self._next_id, self, protocol, kind, self.generation, now)
        self._next_id += 1
        self.members.add(member)
        self.connecting += 1
        return member

    def connect_succeeded(self, member: PooledConnection, now: float, took: float) -> str | None:
        """Offer a connection that has become ready; return why not, if it is superfluous by now."""
        self.counters.opened += 1
        self.counters.connect.observe(took)
        member.failures_before = self.backoff.failures
        self.backoff.succeeded()
        member.state = IDLE
        self.connecting -= 1
        member.opened_at = member.idle_since = now
        reason = self.retire_reason(member, now)  # e.g. it was opened with the key of before drain()
        if reason is None:
            self.offer(member, now)
        return reason

    def connect_failed(self, error: ConnectError, now: float) -> None:
        """Note a failed attempt, and tell those whom it concerns."""
        self.counters.connect_errors[error.kind] += 1
        self.last_error = error
        self.errors_seen += 1
        self.backoff.failed(now, permanent=error.permanent, retry_after=error.retry_after)
        if error.permanent:
            self.fail_line(lambda: again(error), "error")
        self.tell_watchers()

    def begin_close(self, member: PooledConnection) -> bool:
        """Take a connection from whoever had it; return whether it ever was ready."""
        was = member.state
        self.reserve(member)
        member.state = State.CLOSING
        self.closing += 1
        self.connecting -= was is State.CONNECTING
        self.in_use -= was is IN_USE
        return was is not State.CONNECTING

    def retired(self, member: PooledConnection, reason: str, now: float) -> None:
        """Count a retirement. One that broke before anybody used it was a failed attempt after all."""
        self.counters.closed[reason] += 1
        unused = member.session_count == 0 and reason in ("lost", "dirty", "health", "damaged")
        if unused and not self.closed and now - member.opened_at < self.config.connect_timeout:
            end = member.transport and member.transport.end_error
            text = str(end or "the server sent data before anything was asked of it")
            self.backoff.failures = (
                member.failures_before
            )  # opening it proved nothing: keep the delays growing
            error = ConnectError(f"a new connection did not last: {text}", kind="session")
            self.connect_failed(member.masked(error), now)

    def gone(self, member: PooledConnection) -> None:
        """The connection has no socket any more: its place is free."""
        transport = member.transport
        member.state = State.GONE
        self.closing -= 1
        self.members.discard(member)
        self.overfull = len(self.members) > self.config.max_connections
        self.counters.checkouts_ok += member.session_count
        if transport is not None:
            _add_traffic(self.counters, member)
        member.transport = None

    # -- telling

    def count_live(self) -> int:
        """Connections that are ready, or will be without connecting."""
        return len(self.members) - self.connecting - self.closing

    def recount(self) -> None:
        """Count what is counted by the way otherwise."""
        states = [m.state for m in self.members]
        counted = (State.CONNECTING, State.IN_USE, State.CLOSING)
        self.connecting, self.in_use, self.closing = map(states.count, counted)

    def numbers(self) -> str:
        """The states in words, for error messages."""
        states = [m.state for m in self.members]
        return (
            f"(pool {self.name!r}: in use {states.count(State.IN_USE)}, idle {states.count(State.IDLE)}, "
            f"connecting {states.count(State.CONNECTING)}, resetting {states.count(State.RESETTING)}, "
            f"closing {states.count(State.CLOSING)}, waiting {len(self.waiters)}, "
            f"max {self.config.max_connections})"
        )

    def timeout_error(self, limit: float, since: float) -> PoolTimeout:
        """What a caller is told who waited in vain; its cause is the reason, if connecting fails."""
        waited = time.monotonic() - since
        text = f"no connection within {limit:.2f} s, waited {waited:.2f} s {self.numbers()}"
        cause = None
        if self.last_error is not None and self.backoff.failures:
            cause = again(self.last_error)
            text += f"; last connect error: {cause}"
        error = PoolTimeout(text)
        error.__cause__ = cause
        return error

    def stats(self, now: float) -> PoolStats:
        """A consistent copy of all numbers. Takes the lock itself."""
        grace = max(self.config.health_check_interval, self.config.ping_interval) + self.config.ping_timeout
        states = dict.fromkeys(State, 0)
        healthy = 0
        oldest_checkout = 0.0
        with self.lock:
            counters = self.counters.copy()
            for member in self.members:
                states[member.state] += 1
                counters.checkouts_ok += member.session_count
                transport = member.transport
                if transport is None:
                    continue
                _add_traffic(counters, member)
                if member.state in (State.IDLE, State.IN_USE, State.RESETTING):
                    alive = now - transport.last_heard <= grace
                    healthy += alive and not transport.ended and not transport.damaged
                if member.state is State.IN_USE:
                    oldest_checkout = max(oldest_checkout, now - member.busy_since)
            oldest_wait = now - next(iter(self.waiters)).since if self.waiters else 0.0
            return PoolStats(
                name=self.name,
                max_connections=self.config.max_connections,
                min_idle=self.config.min_idle,
                total_connections=len(self.members),
                healthy_connections=healthy,
                active_sessions=states[State.IN_USE],
                idle=states[State.IDLE],
                connecting=states[State.CONNECTING],
                resetting=states[State.RESETTING],
                closing=states[State.CLOSING],
                waiting=len(self.waiters),
                oldest_wait_seconds=max(0.0, oldest_wait),
                oldest_checkout_seconds=oldest_checkout,
                counters=counters,
                closed=self.closed,
                reaper_last_run=self.last_run,
            )

    def connections(self, now: float) -> list[ConnectionStats]:
        """Every connection as it is now, oldest first. Takes the lock itself."""
        with self.lock:
            return [
                ConnectionStats(
                    id=member.id,
                    state=member.state.value,
                    age=now - member.opened_at,
                    remaining=max(0.0, member.usable_until - now) if member.usable_until else None,
                    sessions=member.session_count,
                    max_sessions=self.config.max_sessions_per_connection,
                    rtt=member.transport.rtt if member.transport is not None else None,
                    in_use=now - member.busy_since if member.state is State.IN_USE else None,
                    last_error=member.last_error,
                )
                for member in sorted(self.members, key=lambda m: m.id)
            ]


def _add_traffic(counters: Counters, member: PooledConnection) -> None:
    transport = member.transport
    assert transport is not None
    counters.messages_sent += transport.messages_sent
    counters.messages_received += transport.messages_received
    counters.bytes_sent += transport.bytes_sent
    counters.bytes_received += transport.bytes_received


def again(error: ConnectError) -> ConnectError:
    """A new exception that says the same: one object raised in many threads would mix their tracebacks."""
    try:
        return copy.copy(error)
    except Exception:  # a protocol's own kind, which cannot be made of what it holds
        twin = ConnectError(str(error), kind=error.kind)
        twin.__dict__.update(error.__dict__)
        return twin
