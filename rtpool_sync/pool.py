"""The pool: what applications use.

A pool owns a ledger (who has which connection), a reaper (the thread that
looks after connections nobody uses) and nothing else. Lending and giving back
happen in the borrowers' threads, everything else in the reaper's; both meet
under the ledger's lock.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from . import observers
from .config import PoolConfig, PoolOptions
from .connection import Claim, RealtimeConnection, claim_of
from .errors import ConfigError, ConnectionLost, PoolClosed, PoolExhausted, PoolTimeout, RtpoolError
from .events import PoolEvent
from .ledger import Ledger, Waiter, again
from .patching import half_patched, patched
from .protocols.base import Protocol
from .protocols.plain import PlainProtocol
from .reaper import Reaper
from .stats import ConnectionStats, Counters, HealthReport, PoolStats

__all__ = ["RealtimePool"]

monotonic = time.monotonic


class _Checkout:
    """The context manager that ``pool.connection()`` returns."""

    __slots__ = ("_handle", "_pool", "_session", "_timeout")

    # Filled in by RealtimePool.connection(): a constructor would take longer than all that.
    _pool: RealtimePool
    _timeout: float | None
    _session: Mapping[str, Any] | None
    _handle: RealtimeConnection | None

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

    def __del__(self) -> None:
        # An exception has struck (KeyboardInterrupt) before __exit__ could do anything.
        # The variable behind "as" may live on, but the block it was for is over.
        try:
            if self._handle is not None:
                self._pool._dropped(self._handle, mistake=False)
        except AttributeError:  # an exception has struck before it was filled in
            pass


class RealtimePool:
    """A thread-safe pool of Realtime connections.

    Building a pool opens nothing and starts nothing; the first checkout, or
    :meth:`open`, does.

    Args:
        config: Settings; read from environment and settings files when omitted.
        name: Of the pool, in messages and metrics, and in the settings files.
        protocol: ``"realtime"``, ``"plain"`` (any WebSocket server, frames passed
            as they are), or an object of :class:`rtpool_sync.protocols.base.Protocol`.
        registry: prometheus-client registry to export to, instead of the default one; False: to none.
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
        kind = _protocol(protocol)
        _check_names(name, registry)
        if config is not None and not isinstance(config, PoolConfig):
            raise ConfigError(f"config must be a PoolConfig, not {type(config).__name__}")
        try:
            if "config" in overrides:
                raise ConfigError("a PoolConfig comes first, without a name: RealtimePool(config, ...)")
            if config is None:
                from .settings import load

                config = load(name, **overrides)
            elif overrides:
                config = config.replace(**overrides)
        finally:
            overrides.clear()  # the key may be among them, and an error's traceback holds this frame
        if kind.needs_key:
            config.require_key()
        self.name = name
        self._registry = registry
        self._ledger = Ledger(name, config, kind, Counters())
        self._reaper: Reaper | None = None
        self._poll_type = select.poll  # another one once gevent has patched the standard library
        self._start_lock = threading.Lock()  # guards starting, opening and closing
        _pools.add(self)

    @property
    def config(self) -> PoolConfig:
        """The settings in force. Its ``repr`` holds no secret."""
        return self._ledger.config

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called, and :meth:`open` not since."""
        return self._ledger.closed

    def __repr__(self) -> str:
        if not hasattr(self, "_ledger"):  # in the traceback of a ConfigError, with variables
            return "<RealtimePool, not made>"
        stats = self.stats()
        states = ("in_use", "idle", "connecting", "resetting", "closing")
        parts = [f"{count} {state}" for state in states if (count := getattr(stats, state))]
        return (
            f"<RealtimePool {self.name!r}{' closed' if self.closed else ''}: "
            f"{', '.join(parts) or 'no connection'}, {stats.waiting} waiting, "
            f"at most {stats.max_connections}>"
        )

    # -- opening and closing

    def open(self, *, wait: bool = False, timeout: float = 30.0) -> None:
        """Start the pool, and begin to open ``min_idle`` connections. A closed pool opens again.

        Args:
            wait: Whether to :meth:`wait` until it is ready.
            timeout: Seconds, for ``wait``.
        """
        self._check_process()
        with self._start_lock:
            old = self._ledger
            if not old.closed:
                self._check_patched()
            else:
                if old.members:
                    raise PoolClosed(f"pool {self.name!r} is still being closed")
                self._ledger = Ledger(self.name, old.config, old.protocol, old.counters, old.events)
                self._reaper = None
        self._start()
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until ``min_idle`` connections are open, or one if ``min_idle`` is 0.

        Raises:
            PoolTimeout: They are not within ``timeout`` seconds; ``__cause__`` says why.
            ConnectError: Connecting cannot succeed with these settings.
        """
        self._check_process()
        self._check_patched()
        since = monotonic()
        end = since + _seconds(timeout)
        self._start()
        ledger = self._ledger
        gate = threading.Lock()
        seen: int | None = None
        try:
            while True:
                with ledger.lock:
                    if ledger.count_live() >= max(1, ledger.config.min_idle):
                        return
                    if ledger.closed:
                        raise PoolClosed(f"pool {self.name!r} is closed")
                    if seen is None:
                        seen = ledger.errors_seen
                    error = ledger.hopeless(end) if ledger.errors_seen == seen else ledger.last_error
                    if error is not None and error.permanent:
                        raise again(error)
                    if monotonic() >= end:
                        raise ledger.timeout_error(timeout, since)
                    gate.acquire(False)
                    ledger.watchers.add(gate)
                self._wake()
                gate.acquire(timeout=max(0.0, end - monotonic()))
        finally:
            with ledger.lock:
                ledger.watchers.discard(gate)

    def close(self, timeout: float = 10.0) -> None:
        """Close the pool: nobody gets a connection any more, idle ones are closed at once.

        Connections in use are left alone until they are returned or ``timeout``
        seconds have passed; then they are closed, and their borrowers get
        :class:`ConnectionLost`. Callers that wait get :class:`PoolClosed`.
        """
        self._check_process()
        end = monotonic() + _seconds(timeout)
        with self._start_lock:
            ledger, reaper = self._ledger, self._reaper
            with ledger.lock:
                ledger.close()
                text = f"pool {self.name!r} was closed while waiting for a connection"
                ledger.fail_line(lambda: PoolClosed(text), "closed")
                ledger.tell_watchers()
        if reaper is None or reaper.is_current_thread():
            return
        reaper.wake()
        if not reaper.started and reaper.abandon():
            return
        if not reaper.finished.wait(max(0.0, end - monotonic())):
            ledger.kill = True
            reaper.wake()
            reaper.finished.wait(ledger.config.close_timeout + 1.0)
        reaper.join(1.0)

    def __enter__(self) -> RealtimePool:
        self.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self) -> None:
        reaper = self._reaper
        if reaper is not None and reaper.started and not self._ledger.closed:
            return
        with self._start_lock:
            if self._ledger.closed:
                raise PoolClosed(f"pool {self.name!r} is closed")
            if self._reaper is None:
                problem = half_patched()
                if problem is not None:
                    raise RtpoolError(f"pool {self.name!r} cannot start: {problem}")
                if patched():
                    self._ledger.thread = threading.get_native_id()
                self._reaper = Reaper(self._ledger)
            reaper = self._reaper
            if not reaper.started:
                reaper.start(weakref.ref(self, lambda _: reaper.wake()))
                observers.started(self, self._ledger, self._registry)

    def _wake(self) -> None:
        reaper = self._reaper
        if reaper is not None:
            reaper.wake()

    # -- lending

    def connection(
        self, timeout: float | None = None, *, session: Mapping[str, Any] | None = None
    ) -> _Checkout:
        """Return a context manager that lends a connection: ``with pool.connection() as conn: ...``.

        Args and errors as for :meth:`acquire`. An exception inside propagates unchanged.
        """
        checkout = _Checkout()
        checkout._pool = self
        checkout._timeout = timeout
        checkout._session = session
        checkout._handle = None
        return checkout

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
        ledger = self._ledger
        if not ledger.birthplace[0] or ledger.unpatched_poll is not select.poll:
            self._check_process()
            self._check_patched()
            ledger = self._ledger
        now = monotonic()
        if timeout is not None:
            timeout = _seconds(timeout)
        handle: RealtimeConnection | None = None
        try:
            with ledger.lock:
                handle = ledger.lend(now, self)
                if handle is not None:
                    ledger.counters.checkout_wait.counts[0] += 1
            if handle is None:
                handle = self._checkout(ledger, now, timeout)
            elif not handle._transport.is_quiet():  # asks the kernel, hence outside the lock
                with ledger.lock:
                    ledger.take_back_unseen(handle)
                    ledger.counters.checkout_wait.counts[0] -= 1
                handle = self._checkout(ledger, now, timeout)
            else:
                handle._transport.owner = handle._lease
                if not ledger.will_turn:
                    self._wake()
            if session is not None or ledger.config.leak_threshold:
                handle = self._furnish(handle, session, now, timeout)
            return handle
        except BaseException:
            if handle is not None:  # whatever struck, wherever: it must not wait for a finalizer
                self._give_back(handle)
            raise

    def release(self, conn: RealtimeConnection) -> None:
        """Give a connection back. Doing it twice is harmless.

        Raises:
            ValueError: It is not a connection of this pool.
        """
        if not isinstance(conn, RealtimeConnection):
            raise ValueError(f"not a connection of a pool: {type(conn).__name__}")
        if conn._pool is not self:
            raise ValueError(
                f"connection #{conn.id} belongs to pool {conn._pool.name!r}, not to {self.name!r}"
            )
        self._give_back(conn)

    def _checkout(self, ledger: Ledger, since: float, timeout: float | None) -> RealtimeConnection:
        """The way of a checkout when there is no fresh connection on top of the stack.

        Whatever strikes here, wherever (KeyboardInterrupt, a greenlet's timeout),
        leaves nothing behind: neither a place in the line nor a connection that
        was handed over in the same moment.
        """
        handle: RealtimeConnection | None = None
        waiter: Waiter | None = None
        limit = _seconds(ledger.config.checkout_timeout if timeout is None else timeout)
        try:
            try:
                self._start()
            except PoolClosed:  # join_line() says so too, and counts it
                pass
            while True:
                with ledger.lock:
                    handle = ledger.take_idle(monotonic(), self)
                    if handle is None:
                        waiter = ledger.join_line(self, since, since + limit, waiter)
                        # Otherwise it has nothing to do but what it is doing already.
                        for_reaper = ledger.inbox or len(ledger.members) < ledger.config.max_connections
                if handle is None:
                    assert waiter is not None
                    if for_reaper:
                        self._wake()
                    if not waiter.gate.acquire(timeout=max(0.0, since + limit - monotonic())):
                        with ledger.lock:
                            ledger.leave_line(waiter, limit)
                    handle = waiter.outcome()
                if handle._transport.is_quiet():
                    handle._transport.owner = handle._lease
                    with ledger.lock:
                        ledger.counters.checkout_wait.observe(monotonic() - since)
                    if ledger.inbox or not ledger.will_turn:
                        self._wake()
                    return handle
                with ledger.lock:
                    ledger.take_back_unseen(handle)
                handle = None
        except BaseException as error:
            if waiter is not None:
                with ledger.lock:
                    ledger.waiters.pop(waiter, None)
                handle = handle or waiter.handle
            if handle is not None:
                self._give_back(handle)
            self._wake()
            self._park_at_exit()
            if isinstance(error, RtpoolError):
                _tell_failed(ledger, error)
            raise

    def _furnish(
        self,
        handle: RealtimeConnection,
        session: Mapping[str, Any] | None,
        since: float,
        timeout: float | None,
    ) -> RealtimeConnection:
        """What some checkouts need besides: the borrower's stack, settings of their own."""
        end = since + _seconds(self.config.checkout_timeout if timeout is None else timeout)
        while True:
            try:
                if self.config.leak_threshold:
                    stack = "".join(traceback.format_stack(sys._getframe(2), limit=12))
                    member = handle._borrowed()[0]
                    member.borrower_stack = f"thread {threading.current_thread().name!r}:\n{stack}"
                if session is not None:
                    handle._configure(session, end, self.config.reset_timeout)
                return handle
            except ConnectionLost:
                # It died under our hands: the caller has not seen it, so another one may serve.
                self._give_back(handle)
                if monotonic() >= end:
                    raise
            except PoolTimeout as error:
                self._give_back(handle)
                with self._ledger.lock:
                    text = f"{error} {self._ledger.numbers()}"
                raise PoolTimeout(text) from None
            except BaseException as error:
                if not isinstance(error, Exception):
                    handle._transport.damaged = True  # nobody knows what the server was told
                self._give_back(handle)
                raise
            handle = self._checkout(self._ledger, since, timeout)

    # -- taking back

    def _give_back(self, claim: Claim, again: bool = False) -> None:
        try:
            member = claim._member
            if member is None:
                return
            ledger = member.ledger
            if not ledger.birthplace[0]:
                claim._member = None  # lent by the parent process
                return
            with ledger.lock:
                to_wake = ledger.give_back(claim, monotonic())
            if to_wake:
                self._wake()
        except BaseException:
            if not again:  # struck half-way
                self._give_back(claim, again=True)
                self._wake()
            raise

    def _dropped(self, handle: RealtimeConnection, mistake: bool = True) -> None:
        # Called by finalizers, anywhere: no lock, nothing that blocks.
        member = handle._member
        if member is None or member.session_count is not handle._lease:
            return
        if member.ledger is self._ledger and not member.ledger.exiting:
            member.ledger.dropped.append((claim_of(handle), mistake))
            self._wake()

    # -- changing

    def drain(self) -> None:
        """Retire every connection: idle ones now, those in use when they are returned.

        For a new key, model or server: connections opened from now on use it.
        """
        self._check_process()
        with self._ledger.lock:
            self._ledger.drain()
        self._wake()

    def resize(self, max_connections: int | None = None, min_idle: int | None = None) -> None:
        """Change the limits of a running pool. Connections in use stay until they are returned.

        Raises:
            ConfigError: A value is out of range; nothing was changed.
        """
        self._check_process()
        changes: PoolOptions = {}
        if max_connections is not None:
            changes["max_connections"] = max_connections
        if min_idle is not None:
            changes["min_idle"] = min_idle
        with self._start_lock:  # of two at the same time each changes what it was asked to
            config = self.config.replace(**changes)
            with self._ledger.lock:
                self._ledger.configure(config)
        self._wake()

    # -- telling

    def stats(self) -> PoolStats:
        """Return the pool's numbers at one moment, taken under its lock."""
        self._check_process()
        return self._ledger.stats(monotonic())

    def health(self) -> HealthReport:
        """Return a verdict: an idle pool that never had to connect is healthy."""
        stats = self.stats()
        ledger = self._ledger
        with ledger.lock:
            failures, error = ledger.backoff.failures, ledger.last_error
        return HealthReport.of(stats, ledger.closed, failures, error)

    def connections(self) -> list[ConnectionStats]:
        """Return every connection as it is now, oldest first."""
        self._check_process()
        return self._ledger.connections(monotonic())

    def events(self) -> list[PoolEvent]:
        """Return the last 50 events, oldest first: connections opened and retired, failures."""
        self._check_process()
        return self._ledger.events.recent()

    def on_event(self, callback: Callable[[PoolEvent], object]) -> Callable[[], None]:
        """Have ``callback`` called with every event from now on; call what is returned to end that.

        It runs in a thread of its own, one event after another. If it raises, that
        is logged; if it blocks, it misses the oldest of more than 1,000 events.
        """
        self._check_process()
        key = self._ledger.events.subscribe(callback)

        def unsubscribe() -> None:
            self._check_process()
            self._ledger.events.unsubscribe(key)

        return unsubscribe

    # -- fork, gevent and exit

    def _check_process(self) -> None:
        if not self._ledger.birthplace[0]:
            self._after_fork()
        if self._ledger.poll_type is not select.poll:
            self._after_patch()

    def _after_fork(self) -> None:
        """Start empty in a forked child. Nothing that belongs to the parent is used or waited for."""
        with _fork_lock:
            old, reaper = self._ledger, self._reaper
            if old.birthplace[0]:
                return
            self._start_lock = threading.Lock()
            self._reaper = None
            self._ledger = Ledger(self.name, old.config, old.protocol, Counters(), old.events.anew())
            self._ledger.closed = old.closed
        for member in old.members:
            transport = member.transport
            if transport is not None:
                transport.forget()
        if reaper is not None:
            reaper.forget()

    def _after_patch(self) -> None:
        """Use gevent's locks from now on, where nothing is under way with those of before."""
        if self._poll_type is select.poll:
            return
        # It is held while threads are started, which lets other greenlets run.
        self._poll_type, self._start_lock = select.poll, threading.Lock()
        if self._reaper is None:
            old = self._ledger
            self._ledger = Ledger(self.name, old.config, old.protocol, old.counters, old.events)
            self._ledger.closed = old.closed

    def _check_patched(self) -> None:
        """Under gevent, refuse to lend what would stop every greenlet, or crash, in the caller's hands."""
        ledger = self._ledger
        if ledger.closed:
            return
        if ledger.poll_type is not select.poll:
            raise RtpoolError(
                f"pool {self.name!r} was opened before gevent patched the standard library. Call "
                "gevent.monkey.patch_all() first of all (with gunicorn: at the top of gunicorn.conf.py), "
                "or close() the pool and open() it again"
            )
        if ledger.thread is not None and ledger.thread != threading.get_native_id():
            raise RtpoolError(
                f"pool {self.name!r} belongs to another thread. Under gevent only the greenlets of the "
                "thread that opened a pool can use it: not what runs in gevent's thread pool"
            )

    def _park_at_exit(self) -> None:
        """Let a daemon thread sleep for good instead of raising while the interpreter exits."""
        if self._ledger.exiting and threading.current_thread().daemon:
            threading.Event().wait()


def _tell_failed(ledger: Ledger, error: Exception) -> None:
    kinds = {PoolTimeout: "timeout", PoolExhausted: "exhausted", PoolClosed: "closed"}
    reason = kinds.get(type(error), "error")  # type: ignore[arg-type]
    # That of a pool which is being closed is as it should be; an error has been told by its attempt.
    ledger.events.emit("checkout_failed", reason, str(error), warn=reason in ("timeout", "exhausted"))
    if reason == "closed":
        observers.publish()  # no reaper will


def _protocol(protocol: str | Protocol) -> Protocol:
    if isinstance(protocol, Protocol):
        return protocol
    if protocol == "plain":
        return PlainProtocol()
    if protocol == "realtime":
        from .protocols.realtime import RealtimeProtocol

        return RealtimeProtocol()
    raise ConfigError(f"protocol must be 'realtime', 'plain' or a Protocol object, not {protocol!r}")


def _check_names(name: object, registry: object) -> None:
    if not isinstance(name, str) or not name.isprintable():
        raise ConfigError(f"name must be text on one line, not {name!r}")
    if registry not in (None, False) and not callable(getattr(registry, "register", None)):
        raise ConfigError(
            f"registry must be a prometheus_client registry, None for its default one, or False for none, "
            f"not {type(registry).__name__}"
        )


def _seconds(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {type(value).__name__}")
    if value != value:
        raise ValueError("timeout must be a number of seconds, not NaN")
    return min(max(0.0, value), threading.TIMEOUT_MAX)


_pools: weakref.WeakSet[RealtimePool] = weakref.WeakSet()


def live_pools() -> list[RealtimePool]:
    """The pools of this process that are not closed; if all are, those."""
    while True:
        try:
            pools = list(_pools)
            break
        except RuntimeError:  # one was made meanwhile
            continue
    return [pool for pool in pools if not pool.closed] or pools


_fork_lock = threading.Lock()  # held while one pool starts anew in a child


def _after_fork_in_child() -> None:
    global _fork_lock
    _fork_lock = threading.Lock()
    for pool in list(_pools):
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    # uWSGI forks without running these: each checkout looks whether this is still the same process.
    os.register_at_fork(after_in_child=_after_fork_in_child)
