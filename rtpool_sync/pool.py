"""The pool: capacity, the stack of idle connections, the line of waiters, the hand-off.

Borrowers' threads do two things here, lend and give back; everything else that
happens to a connection is done by the reaper's thread (``reaper.py``). Both
meet under one lock, which is held for bookkeeping only.

The two critical sections of the borrowers are written so that an exception
that strikes between two bytecodes (KeyboardInterrupt, a greenlet's timeout)
leaves the state whole: what changes together is assigned by statements with no
call between them, because the interpreter delivers such exceptions at calls
and loops. What is lost even so (a handle that never reached its ``with``) is
found by its finalizer and taken back by the reaper.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import traceback
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from .config import PoolConfig
from .connection import PooledConnection, RealtimeConnection, State, current_thread_is_daemon
from .connector import MAX_DIALING
from .errors import ConfigError, ConnectError, ConnectionLost, PoolClosed, PoolExhausted, PoolTimeout
from .policy import Backoff, wanted
from .protocols.base import Protocol
from .protocols.plain import PlainProtocol
from .reaper import Reaper
from .stats import Counters, HealthReport, PoolStats

__all__ = ["RealtimePool"]

#: A connection proved alive less than this many seconds ago is lent without another look at its socket.
FRESH = 0.002

#: Seconds the interpreter's exit may take for the closing handshakes.
EXIT_TIMEOUT = 2.0


class _Waiter:
    """A caller in line. Guarded by the pool's lock; only ``gate`` is used outside it.

    Whoever serves it sets ``handle`` or ``error`` and then opens the gate. A
    plain lock is the gate: it is the cheapest thing that can be waited for.
    """

    __slots__ = ("error", "gate", "handle", "since")

    def __init__(self, since: float) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.handle: RealtimeConnection | None = None
        self.error: Exception | None = None
        self.since = since


class _Checkout:
    """The context manager that ``pool.connection()`` returns."""

    __slots__ = ("_handle", "_pool", "_session", "_timeout")

    def __init__(self, pool: RealtimePool, timeout: float | None, session: Mapping[str, Any] | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._session = session
        self._handle: RealtimeConnection | None = None

    def __enter__(self) -> RealtimeConnection:
        if self._handle is not None:
            raise RuntimeError("a checkout cannot be entered twice at the same time")
        self._handle = handle = self._pool.acquire(self._timeout, session=self._session)
        return handle

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        handle = self._handle
        if handle is not None:
            self._pool._give_back(handle)
            self._handle = None


class RealtimePool:
    """A thread-safe pool of Realtime connections.

    Building a pool opens nothing and starts nothing; the first checkout, or
    :meth:`open`, does.

    Args:
        config: Settings; read from environment and settings files when omitted.
        name: Of the pool, in messages and metrics, and in the settings files.
        protocol: ``"realtime"``, ``"plain"`` (any WebSocket server, frames passed
            as they are), or an object of :class:`rtpool_sync.protocols.base.Protocol`.
        registry: prometheus-client registry to export to, instead of the default one.
        overrides: Any :class:`PoolConfig` field; wins over everything else.

    Raises:
        ConfigError: Settings are missing or wrong; all faults are named at once.
    """

    def __init__(
        self,
        config: PoolConfig | None = None,
        /,
        *,
        name: str = "default",
        protocol: str | Protocol = "realtime",
        registry: Any = None,
        **overrides: Any,
    ) -> None:
        if config is None:
            from .settings import load

            config = load(name, **overrides)
        elif not isinstance(config, PoolConfig):
            raise ConfigError(f"config must be a PoolConfig, not {type(config).__name__}")
        elif overrides:
            config = config.replace(**overrides)
        self._protocol = _protocol(protocol)
        if self._protocol.needs_key:
            config.require_key()
        self.name = name
        self._registry = registry
        self._config = config
        self._fresh_state()
        self._counters = Counters()
        self._start_lock = threading.Lock()  # guards starting the reaper
        self._closed = False
        _pools.add(self)

    def _fresh_state(self) -> None:
        """Everything that a forked child must not share with its parent."""
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards every field below, and all PooledConnection fields
        self._members: set[PooledConnection] = set()  # all that are not GONE: this is what capacity counts
        self._idle: list[PooledConnection] = []  # ready to lend, most recently used last
        self._waiters: OrderedDict[_Waiter, None] = OrderedDict()  # first come first served
        self._inbox: deque[PooledConnection] = deque()  # given back, for the reaper to look at
        self._orphans: deque[_Remains] = deque()  # dropped handles; appended to without the lock
        self._next_id = 1
        self._generation = 0  # raised by drain(): older connections are retired
        self._epoch = getattr(self, "_epoch", 0) + 1
        self._backoff = Backoff()
        self._last_error: ConnectError | None = None
        self._last_error_at = 0.0
        self._reaper: Reaper | None = None
        self._ready = threading.Condition(self._lock)  # notified when a connection becomes ready or fails
        self._prewarm = 0  # connections that wait() asks for
        self._exiting = False
        self._kill = False  # close(): the deadline has passed, connections in use are closed too

    # -- opening and closing

    @property
    def config(self) -> PoolConfig:
        """The settings in force. Its ``repr`` holds no secret."""
        return self._config

    @property
    def closed(self) -> bool:
        return self._closed

    def open(self, *, wait: bool = False, timeout: float = 30.0) -> None:
        """Start the pool, and begin to open ``min_idle`` connections. A closed pool opens again.

        Args:
            wait: Whether to :meth:`wait` until it is ready.
            timeout: Seconds, for ``wait``.
        """
        if self._pid != os.getpid():
            self._after_fork()
        with self._start_lock:
            with self._lock:
                if self._closed:
                    if self._members:
                        raise PoolClosed(f"pool {self.name!r} is still being closed")
                    self._closed = self._kill = False
                    self._reaper = None
                    self._epoch += 1
                    self._backoff = Backoff()
        self._start()
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until ``min_idle`` connections are ready, or one if ``min_idle`` is 0.

        Raises:
            PoolTimeout: They are not within ``timeout`` seconds; ``__cause__`` says why.
            ConnectError: Connecting cannot succeed with these settings.
        """
        end = time.monotonic() + timeout
        self._start()
        waiter = _Waiter(time.monotonic())  # not in line: only shows the reaper that one is wanted
        with self._lock:
            wanted_ready = max(1, self._config.min_idle)
            since = self._last_error_at
            self._prewarm = wanted_ready
        self._wake()
        try:
            with self._lock:
                while self._count_ready() < wanted_ready:
                    if self._closed:
                        raise PoolClosed(f"pool {self.name!r} is closed")
                    error = self._last_error
                    if error is not None and error.permanent and self._last_error_at > since:
                        raise _again(error)
                    left = end - time.monotonic()
                    if left <= 0:
                        raise self._timeout_error(timeout, waiter.since) from self._cause()
                    self._ready.wait(left)
        finally:
            with self._lock:
                self._prewarm = 0

    def _count_ready(self) -> int:
        return sum(m.state in (State.IDLE, State.IN_USE, State.RESETTING) for m in self._members)

    def _start(self) -> Reaper:
        reaper = self._reaper
        if reaper is not None:
            return reaper
        with self._start_lock:
            if self._closed:
                raise PoolClosed(f"pool {self.name!r} is closed")
            if self._reaper is None:
                reaper = Reaper(self)
                reaper.start()
                self._reaper = reaper
            return self._reaper

    def _wake(self) -> None:
        reaper = self._reaper
        if reaper is not None:
            reaper.wake()

    def close(self, timeout: float = 10.0) -> None:
        """Close the pool: nobody gets a connection any more, idle ones are closed at once.

        Connections in use are left alone until they are returned or ``timeout``
        seconds have passed; then they are closed, and their borrowers get
        :class:`ConnectionLost`. Callers that wait get :class:`PoolClosed`.
        """
        if self._pid != os.getpid():
            self._after_fork()
        end = time.monotonic() + timeout
        with self._start_lock, self._lock:
            self._closed = True
            reaper = self._reaper
            while self._waiters:
                waiter = next(iter(self._waiters))
                waiter.error = PoolClosed(f"pool {self.name!r} was closed while waiting for a connection")
                del self._waiters[waiter]
                waiter.gate.release()
                self._counters.checkouts_failed["closed"] += 1
            self._ready.notify_all()
        if reaper is None or reaper.is_current_thread():
            return
        reaper.wake()
        if not reaper.finished.wait(max(0.0, end - time.monotonic())):
            self._kill = True
            reaper.wake()
            reaper.finished.wait(self._config.close_timeout + 1.0)
        reaper.join(1.0)

    def __enter__(self) -> RealtimePool:
        self.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._lock.acquire(timeout=1.0):  # never hang a debugger
            try:
                states = [m.state.value for m in self._members]
                waiting = len(self._waiters)
            finally:
                self._lock.release()
            parts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states))) or "no connection"
            return (
                f"<RealtimePool {self.name!r}{' closed' if self._closed else ''}: {parts}, "
                f"{waiting} waiting, at most {self._config.max_connections}>"
            )
        return f"<RealtimePool {self.name!r}>"

    # -- lending

    def connection(
        self, timeout: float | None = None, *, session: Mapping[str, Any] | None = None
    ) -> _Checkout:
        """Return a context manager that lends a connection: ``with pool.connection() as conn: ...``.

        Args and errors as for :meth:`acquire`. An exception inside propagates unchanged.
        """
        return _Checkout(self, timeout, session)

    def acquire(
        self, timeout: float | None = None, *, session: Mapping[str, Any] | None = None
    ) -> RealtimeConnection:
        """Lend a connection, to be given back by :meth:`release`.

        Args:
            timeout: Seconds to wait at most; the setting ``checkout_timeout`` when omitted.
            session: Session settings, applied and acknowledged before this returns.

        Raises:
            PoolTimeout: None became available in time.
            PoolExhausted: ``max_waiting`` callers wait already.
            PoolClosed: The pool is closed, or was while waiting.
            ConnectError: Connecting cannot succeed with these settings (bad key, no such model).
            SessionRejected: The server refused ``session``.
        """
        if self._pid != os.getpid():
            self._after_fork()
        now = time.monotonic()
        handle = None
        with self._lock:
            idle = self._idle
            if idle and not self._closed:
                member = idle[-1]
                if now < member.usable_until and now - member.proved_at < FRESH:
                    handle = self._lend(member, now)
                    self._counters.checkout_wait.counts[0] += 1
        if handle is not None:
            if not self._reaper.will_tick:  # type: ignore[union-attr]
                self._wake()
        else:
            limit = _seconds(self._config.checkout_timeout if timeout is None else timeout)
            handle = self._checkout(now, now + limit, limit)
        if session is not None or self._config.leak_threshold:
            return self._furnish(handle, session, now, timeout)
        return handle

    def release(self, conn: RealtimeConnection) -> None:
        """Give a connection back. Doing it twice is harmless.

        Raises:
            ValueError: It is not a connection of this pool.
        """
        if not isinstance(conn, RealtimeConnection):
            raise ValueError(f"not a connection of a pool: {type(conn).__name__}")
        if conn._pool is not self:
            raise ValueError(f"connection #{conn.id} belongs to pool {conn._pool.name!r}, not to {self.name!r}")
        self._give_back(conn)

    def _lend(self, member: PooledConnection, now: float) -> RealtimeConnection:
        """Pass a ready connection to a borrower: the one place where that happens. Lock held."""
        lease = member.lease + 1
        handle = RealtimeConnection(self, member, lease, self._config.ping_timeout)
        idle = self._idle
        transport = member.transport
        assert transport is not None
        # From here to the end there is no call: see the module's docstring.
        if idle and idle[-1] is member:
            del idle[-1]
        member.state = State.IN_USE
        member.busy_since = now
        member.session_count += 1
        member.lease = lease
        transport.owner = lease
        self._counters.checkouts_ok += 1
        return handle

    def _checkout(self, since: float, end: float, limit: float) -> RealtimeConnection:
        try:
            self._start()
        except PoolClosed:
            self._park_at_exit()
            with self._lock:
                self._counters.checkouts_failed["closed"] += 1
            raise
        while True:
            waiter = None
            with self._lock:
                now = time.monotonic()
                handle = self._take_idle(now)
                if handle is None:
                    waiter = self._join_line(since, end)
            if handle is None:
                self._wake()
                assert waiter is not None
                return self._await(waiter, end, limit)
            # The look at the socket is a system call, hence outside the lock.
            member, transport = handle._borrowed()
            if not transport.has_bytes():
                member.proved_at = now
                with self._lock:
                    self._counters.checkout_wait.observe(now - since)
                    reaper = self._reaper
                if reaper is not None and not reaper.will_tick:
                    reaper.wake()
                return handle
            self._take_back_unseen(handle)

    def _take_idle(self, now: float) -> RealtimeConnection | None:
        """Lend the most recently used connection that is fit; have the unfit ones looked at. Lock held."""
        while self._idle and not self._closed:
            member = self._idle[-1]
            if self._retire_reason(member, now) is None:
                return self._lend(member, now)
            del self._idle[-1]
            self._inbox.append(member)
        return None

    def _take_back_unseen(self, handle: RealtimeConnection) -> None:
        """Undo a loan whose socket turned out to have something to say: the reaper looks at it."""
        member, transport = handle._borrowed()
        with self._lock:
            transport.owner = None
            member.session_count -= 1
            self._counters.checkouts_ok -= 1
            member.state = State.IDLE
            self._inbox.append(member)
            handle._member = None
        self._wake()

    def _join_line(self, since: float, end: float) -> _Waiter:
        """Queue a waiter, or raise why waiting is no use. Lock held."""
        failed = self._counters.checkouts_failed
        if self._closed:
            failed["closed"] += 1
            raise PoolClosed(f"pool {self.name!r} is closed")
        limit = self._config.max_waiting
        if limit and len(self._waiters) >= limit:
            failed["exhausted"] += 1
            raise PoolExhausted(f"{limit} callers are waiting already {self._numbers()}")
        error = self._last_error
        if error is not None and error.permanent and self._backoff.retry_at > end:
            failed["error"] += 1
            raise _again(error)  # no other attempt will be made before the caller's deadline
        waiter = _Waiter(since)
        self._waiters[waiter] = None
        return waiter

    def _await(self, waiter: _Waiter, end: float, limit: float) -> RealtimeConnection:
        try:
            waiter.gate.acquire(timeout=max(0.0, end - time.monotonic()))
        except BaseException:
            # Killed in line: leave nothing behind, neither the place nor a
            # connection that was handed over in the same moment.
            with self._lock:
                self._waiters.pop(waiter, None)
                handle = waiter.handle
            if handle is not None:
                self._give_back(handle)
            raise
        with self._lock:
            handle, error = waiter.handle, waiter.error
            if handle is None and error is None:  # timed out
                del self._waiters[waiter]
                self._counters.checkouts_failed["timeout"] += 1
                error = self._timeout_error(limit, waiter.since)
                cause = self._cause()
            else:
                cause = None
        if handle is not None:
            return handle
        assert error is not None
        self._park_at_exit()
        raise error from cause

    def _furnish(
        self, handle: RealtimeConnection, session: Mapping[str, Any] | None, since: float, timeout: float | None
    ) -> RealtimeConnection:
        """Do what some checkouts need besides: note the borrower's stack, apply session settings."""
        limit = self._config.checkout_timeout if timeout is None else timeout
        end = since + limit
        while True:
            try:
                if self._config.leak_threshold:
                    stack = "".join(traceback.format_stack(sys._getframe(2), limit=12))
                    member = handle._borrowed()[0]
                    member.borrower_stack = f"thread {threading.current_thread().name}\n{stack}"
                    member.leak_reported = False
                if session is not None:
                    handle._configure(session, end)
                return handle
            except ConnectionLost:
                # It died under our hands: the caller has not seen it, so another one may serve.
                self._give_back(handle)
                if time.monotonic() >= end:
                    raise
            except BaseException:
                self._give_back(handle)
                raise
            handle = self._checkout(since, end, limit)

    # -- taking back

    def _give_back(self, handle: RealtimeConnection) -> None:
        member = handle._member
        if member is None:
            return
        if member.epoch != self._epoch or self._pid != os.getpid():
            handle._member = None  # lent by the parent process, or before the pool was reopened
            return
        transport = member.transport
        assert transport is not None
        now = time.monotonic()
        quick = False
        if member.transparent:
            proved = max(member.proved_at, transport.last_heard)
            if now - proved >= FRESH:
                quick = not transport.has_bytes()
                proved = now
            else:
                quick = True
        with self._lock:
            if handle._member is None or member.lease is not handle._lease:
                return
            self._counters.session_duration.observe(now - member.busy_since)
            transport.owner = None  # from here on every call through the handle fails
            if quick and self._retire_reason(member, now) is None and transport.is_clean:
                member.proved_at = proved
                if self._waiters:
                    self._hand_over(member, now)
                else:
                    member.idle_since = now
                    idle = self._idle
                    member.state = State.IDLE
                    idle += [member]
                handle._member = None
                reaper = self._reaper
                wake = reaper is not None and not reaper.will_tick
            else:
                member.state = State.RESETTING
                self._inbox.append(member)
                handle._member = None
                wake = True
        if wake:
            self._wake()

    def _hand_over(self, member: PooledConnection, now: float) -> None:
        """Give a ready connection straight to the first in line. Lock held."""
        waiter = next(iter(self._waiters))
        handle = self._lend(member, now)
        waiter.handle = handle
        del self._waiters[waiter]
        waiter.gate.release()
        self._counters.checkout_wait.observe(now - waiter.since)

    def _offer(self, member: PooledConnection, now: float) -> None:
        """Pass a connection that is ready to the first in line, or to the idle ones. Lock held."""
        if self._waiters:
            self._hand_over(member, now)
        else:
            member.state = State.IDLE
            self._idle += [member]
        self._ready.notify_all()

    def _orphaned(self, handle: RealtimeConnection) -> None:
        # Called by a finalizer, anywhere: no lock, nothing that blocks.
        member = handle._member
        if member is not None and member.epoch == self._epoch and self._pid == os.getpid():
            self._orphans.append(_Remains(handle))
            reaper = self._reaper
            if reaper is not None:
                reaper.wake()

    def _retire_reason(self, member: PooledConnection, now: float) -> str | None:
        """Why a connection must not be lent again; None while it may. Lock held."""
        if member.close_reason is not None:
            return member.close_reason
        if self._closed:
            return "shutdown"
        if member.generation != self._generation:
            return "drained"
        if now >= member.usable_until:
            return member.usable_why
        if member.session_count >= self._config.max_sessions_per_connection:
            return "sessions"
        return None

    # -- changing

    def drain(self) -> None:
        """Retire every connection: idle ones now, those in use when they are returned.

        For a new key, model or server: connections opened from now on use it.
        """
        with self._lock:
            self._generation += 1
        self._wake()

    def resize(self, max_connections: int | None = None, min_idle: int | None = None) -> None:
        """Change the limits of a running pool. Connections in use stay until they are returned.

        Raises:
            ConfigError: A value is out of range; nothing was changed.
        """
        changes = {"max_connections": max_connections, "min_idle": min_idle}
        config = self._config.replace(**{k: v for k, v in changes.items() if v is not None})
        with self._lock:
            self._config = config
        self._wake()

    # -- telling

    def stats(self) -> PoolStats:
        """Return the pool's numbers at one moment, taken under its lock."""
        now = time.monotonic()
        grace = self._config.health_check_interval + self._config.ping_timeout
        states = dict.fromkeys(State, 0)
        healthy = 0
        oldest_checkout = 0.0
        with self._lock:
            counters = self._counters.copy()
            for member in self._members:
                states[member.state] += 1
                transport = member.transport
                if transport is None:
                    continue
                counters.messages_sent += transport.messages_sent
                counters.messages_received += transport.messages_received
                counters.bytes_sent += transport.bytes_sent
                counters.bytes_received += transport.bytes_received
                if member.state in (State.IDLE, State.IN_USE, State.RESETTING):
                    alive = now - max(transport.last_heard, member.proved_at) <= grace
                    healthy += alive and not transport.ended and not transport.damaged
                if member.state is State.IN_USE:
                    oldest_checkout = max(oldest_checkout, now - member.busy_since)
            waiting = len(self._waiters)
            oldest_wait = now - next(iter(self._waiters)).since if waiting else 0.0
            return PoolStats(
                name=self.name,
                max_connections=self._config.max_connections,
                min_idle=self._config.min_idle,
                total_connections=len(self._members),
                healthy_connections=healthy,
                active_sessions=states[State.IN_USE],
                idle=states[State.IDLE],
                connecting=states[State.CONNECTING],
                resetting=states[State.RESETTING],
                closing=states[State.CLOSING],
                waiting=waiting,
                oldest_wait_seconds=max(0.0, oldest_wait),
                oldest_checkout_seconds=oldest_checkout,
                counters=counters,
            )

    def health(self) -> HealthReport:
        """Return a verdict: an idle pool that never had to connect is healthy."""
        stats = self.stats()
        with self._lock:
            failures, error = self._backoff.failures, self._last_error
        live = stats.idle + stats.active_sessions + stats.resetting
        if self._closed:
            status, message = "unhealthy", "the pool is closed"
        elif failures and not live:
            status, message = "unhealthy", f"no live connection, {failures} failed attempts: {error}"
        elif failures:
            status, message = "degraded", f"connecting fails ({failures} attempts): {error}"
        elif stats.healthy_connections < live:
            status = "degraded"
            message = f"{live - stats.healthy_connections} of {live} connections show no sign of life"
        elif stats.waiting and stats.active_sessions >= stats.max_connections:
            status = "degraded"
            message = f"all {stats.max_connections} connections are in use, {stats.waiting} callers wait"
        else:
            status, message = "healthy", "the pool works"
        return HealthReport(
            status, message, stats.healthy_connections, stats.total_connections, stats.max_connections
        )

    def _numbers(self) -> str:
        states = [m.state for m in self._members]
        return (
            f"(pool {self.name!r}: in use {states.count(State.IN_USE)}, idle {states.count(State.IDLE)}, "
            f"connecting {states.count(State.CONNECTING)}, resetting {states.count(State.RESETTING)}, "
            f"closing {states.count(State.CLOSING)}, waiting {len(self._waiters)}, "
            f"max {self._config.max_connections})"
        )

    def _timeout_error(self, limit: float, since: float) -> PoolTimeout:
        waited = time.monotonic() - since
        text = f"no connection within {limit:.2f} s, waited {waited:.2f} s {self._numbers()}"
        error = self._last_error
        if error is not None and self._backoff.failures:
            text += f"; last connect error: {error}"
        return PoolTimeout(text)

    def _cause(self) -> ConnectError | None:
        error = self._last_error
        return None if error is None or not self._backoff.failures else _again(error)

    # -- for the reaper

    def _plan(self, now: float) -> list[PooledConnection]:
        """Make room for the connections to be opened now, and return them. Lock held."""
        if self._closed or not self._backoff.ready(now):
            return []
        states = [m.state for m in self._members]
        dialing = states.count(State.CONNECTING)
        config = self._config
        live = len(states) - dialing - states.count(State.CLOSING)
        count = wanted(
            waiting=len(self._waiters),
            min_idle=max(config.min_idle, self._prewarm - live),
            idle=states.count(State.IDLE),
            coming=dialing + states.count(State.RESETTING),
            total=len(states),
            max_connections=config.max_connections,
            dialing=dialing,
            # While connecting fails, one attempt at a time finds out whether it works again.
            max_dialing=1 if self._backoff.failures else MAX_DIALING,
        )
        members = []
        for _ in range(count):
            protocol = self._protocol.follow(session=config.session, reset_timeout=config.reset_timeout)
            member = PooledConnection(
                self._next_id, protocol, generation=self._generation, epoch=self._epoch, now=now
            )
            member.transparent = self._protocol.transparent
            member.text_only = self._protocol.text_only
            self._next_id += 1
            self._members.add(member)
            members.append(member)
        return members

    def _connect_failed(self, error: ConnectError, now: float) -> None:
        """Note a failed attempt, and tell those whom it concerns. Lock held."""
        self._counters.connect_errors[error.kind] += 1
        self._last_error, self._last_error_at = error, now
        self._backoff.failed(now, permanent=error.permanent, retry_after=error.retry_after)
        if error.permanent:
            while self._waiters:
                waiter = next(iter(self._waiters))
                waiter.error = _again(error)
                del self._waiters[waiter]
                waiter.gate.release()
                self._counters.checkouts_failed["error"] += 1
        self._ready.notify_all()

    # -- fork and exit

    def _after_fork(self) -> None:
        """Start empty in a forked child. Nothing that belongs to the parent is used or waited for."""
        with _fork_lock:
            if self._pid == os.getpid():
                return
            members, reaper = self._members, self._reaper
            self._start_lock = threading.Lock()
            self._fresh_state()
            self._counters = Counters()
        for member in members:
            transport = member.transport
            if transport is not None:
                transport.forget()
        if reaper is not None:
            reaper.forget()

    def _park_at_exit(self) -> None:
        """Let a daemon thread sleep for good instead of raising while the interpreter exits."""
        if self._exiting and current_thread_is_daemon():
            threading.Event().wait()

    def _exit(self, end: float) -> None:
        """Close at interpreter exit: bounded, silent, and without starting threads."""
        reaper = self._reaper
        if reaper is None or self._pid != os.getpid():
            return
        self._exiting = True  # daemon threads that still borrow or wait are left asleep
        with self._start_lock:
            self._closed = True
        self._kill = True
        reaper.wake()
        reaper.finished.wait(max(0.0, end - time.monotonic()))


class _Remains:
    """A dropped handle's claim on its connection, for the reaper: a handle cannot be revived."""

    def __init__(self, handle: RealtimeConnection) -> None:
        self._member: PooledConnection | None = handle._member
        self._lease = handle._lease
        self.id = handle.id


def _protocol(protocol: str | Protocol) -> Protocol:
    if isinstance(protocol, Protocol):
        return protocol
    if protocol == "plain":
        return PlainProtocol()
    if protocol == "realtime":
        from .protocols.realtime import RealtimeProtocol

        return RealtimeProtocol()
    raise ConfigError(f"protocol must be 'realtime', 'plain' or a Protocol object, not {protocol!r}")


def _seconds(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {type(value).__name__}")
    if value != value:
        raise ValueError("timeout must be a number of seconds, not NaN")
    return min(max(0.0, value), threading.TIMEOUT_MAX)


def _again(error: ConnectError) -> ConnectError:
    """A new exception that says the same: one object raised in many threads would mix their tracebacks."""
    return type(error)(
        str(error),
        permanent=error.permanent,
        status=error.status,
        close_code=error.close_code,
        code=error.code,
        kind=error.kind,
        retry_after=error.retry_after,
    )


_pools: weakref.WeakSet[RealtimePool] = weakref.WeakSet()
_fork_lock = threading.Lock()  # held while one pool starts anew in a child


def _after_fork_in_child() -> None:
    global _fork_lock
    _fork_lock = threading.Lock()
    for pool in list(_pools):
        pool._after_fork()


def _at_exit() -> None:
    end = time.monotonic() + EXIT_TIMEOUT
    pools = list(_pools)
    for pool in pools:
        with contextlib.suppress(Exception):
            pool._exit(min(end, time.monotonic() + pool.config.close_timeout))


if hasattr(os, "register_at_fork"):
    # uWSGI forks without running these: the process id is compared at checkout too.
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
