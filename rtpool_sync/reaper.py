"""The reaper: one daemon thread per pool that looks after every connection nobody is using.

A loop over a selector and a heap of times. It reads idle sockets as soon as
they become readable (answering pings, noticing ends), drives the session
protocols of connections that are being made ready or reset, pings, retires,
closes, and decides what to open. It never blocks: opening is done by the
connectors, and everything it writes goes out as far as the kernel takes it.

It is also the only thread that changes the set of connections, so those steps
need no care for exceptions out of nowhere: nobody kills this thread.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .connection import PooledConnection, State
from .connector import Connectors
from .errors import ConnectError
from .policy import usable_until
from .transport import Dial, Endpoint, Transport
from .transport.dial import make_context

if TYPE_CHECKING:
    import ssl

    from .pool import RealtimePool

__all__ = ["Reaper"]

log = logging.getLogger("rtpool_sync")

#: Seconds a returned connection may stay unwatched. Connections that come and go
#: faster than this cost no call to the selector at all.
TICK = 0.05

#: Seconds between looks at a connection in use: its server's pings are answered
#: and its keepalives read even while its borrower receives nothing.
LOOK_IN_USE = 0.25

HOUSEKEEPING = 1.0  # seconds between checks of the pool as a whole
CLOSING_RETRY = 0.01  # seconds until the next try to close a descriptor somebody is using


class Reaper:
    """Looks after one pool, until that is closed or nobody refers to it any more."""

    def __init__(self, pool: RealtimePool) -> None:
        self._pool = weakref.ref(pool, lambda _: self.wake())
        self.finished = threading.Event()
        #: Whether the loop turns by itself at least every LOOK_IN_USE seconds, so
        #: that borrowers need not wake it. Guarded by the pool's lock.
        self.will_tick = False
        self._woken = False
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._receiver, selectors.EVENT_READ, None)
        self._heap: list[tuple[float, int, PooledConnection]] = []
        self._sequence = itertools.count()
        self._dialed: deque[tuple[PooledConnection, Transport | ConnectError]] = deque()
        self._housekeeping_at = 0.0
        self._tick_at = 0.0  # when to register idle connections
        self._look_at = 0.0  # when to look at connections in use
        self._members: set[PooledConnection] = pool._members
        self._tls: tuple[str | None, ssl.SSLContext] | None = None
        self._tls_session: tuple[ssl.SSLContext, ssl.SSLSession] | None = None
        self.last_run = 0.0  # Unix time
        self._thread = threading.Thread(target=self._run, name=f"rtpool-{pool.name}-reaper", daemon=True)
        self._connectors = Connectors(pool.name, self._make_dial, self._report_dialed)

    # -- from other threads

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Make the loop turn once, soon. Takes no lock: finalizers call it."""
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):
                self._sender.send(b"\0")

    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def join(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._connectors.join(max(0.0, end - time.monotonic()))

    def forget(self) -> None:
        """Let go of everything inherited, in a forked child. The thread does not exist there."""
        self._selector.close()
        self._receiver.close()
        self._sender.close()

    def _report_dialed(self, member: PooledConnection, result: Transport | ConnectError) -> None:
        self._dialed.append((member, result))
        self.wake()

    def _make_dial(self, member: PooledConnection) -> Dial:
        """Called in a connector thread."""
        pool = self._pool()
        if pool is None:
            raise ConnectError("the pool is gone", kind="tcp")
        config, needs_key = pool._config, pool._protocol.needs_key
        del pool
        endpoint = Endpoint.from_url(config.connect_url)
        context = session = None
        if endpoint.secure:
            if self._tls is None or self._tls[0] != config.ca_file:
                self._tls = config.ca_file, make_context(config.ca_file)
            context = self._tls[1]
            if self._tls_session is not None and self._tls_session[0] is context:
                session = self._tls_session[1]
        return Dial(
            endpoint,
            lambda: config.upgrade_headers(needs_key),
            context=context,
            session=session,
            timeout=config.connect_timeout,
            max_size=config.max_message_size,
        )

    # -- the loop

    def _run(self) -> None:
        try:
            events: list[tuple[selectors.SelectorKey, int]] = []
            while True:
                pool = self._pool()
                if pool is None:
                    break
                try:
                    timeout = self._turn(pool, events)
                except Exception:
                    log.exception("pool %r: error in the reaper; it goes on", pool.name)
                    timeout = 0.1
                if timeout is None:
                    break
                del pool  # while it waits, the reaper must not keep the pool alive
                events = self._selector.select(timeout)
        finally:
            self._end()

    def _end(self) -> None:
        self._connectors.stop()
        for member in list(self._members):
            transport = member.transport
            if transport is not None:
                transport.start_close(1001, "going away")
                transport.abort()
                transport.release()
        while self._dialed:
            _, result = self._dialed.popleft()
            if isinstance(result, Transport):
                result.abort()
                result.release()
        self._selector.close()
        self._receiver.close()
        self._sender.close()
        self.finished.set()

    def _turn(self, pool: RealtimePool, events: list[tuple[selectors.SelectorKey, int]]) -> float | None:
        """Do what there is to do; return seconds to wait at most, or None at the end."""
        self.last_run = time.time()
        now = time.monotonic()
        self._woken = False
        with contextlib.suppress(BlockingIOError):
            while len(self._receiver.recv(4096)) == 4096:
                pass
        for key, _ in events:
            if key.data is not None:
                self._guarded(pool, key.data, self._readable, now)
        while self._dialed:
            member, result = self._dialed.popleft()
            self._guarded(pool, member, self._arrived, now, result)
        while pool._orphans:
            self._reclaim(pool, pool._orphans.popleft())
        while pool._inbox:
            self._guarded(pool, pool._inbox.popleft(), self._received_back, now)
        if now >= self._tick_at:
            self._watch_idle(pool, now)
        if now >= self._look_at:
            self._look_at = now + LOOK_IN_USE
            self._sweep_in_use(pool, now)
        while self._heap and self._heap[0][0] <= now:
            due, _, member = heapq.heappop(self._heap)
            if due == member.due and member.state is not State.GONE:
                self._guarded(pool, member, self._attend, now)
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING
            self._keep_house(pool, now)
        self._apply_limits(pool, now)
        with pool._lock:
            new = pool._plan(now)
            retry_at = pool._backoff.retry_at
            want = bool(pool._waiters) or pool._config.min_idle > 0 or pool._prewarm > 0
            if pool._closed and not pool._members and not pool._inbox and not self._dialed:
                return None
            # A connection that is out, or was given back a moment ago, has us turn
            # again by ourselves: on that way borrowers need not wake us.
            unwatched = any(not m.watched for m in pool._idle)
            in_use = any(m.state is State.IN_USE for m in pool._members)
            self.will_tick = unwatched or in_use
        for member in new:
            self._connectors.submit(member)
        wait = self._housekeeping_at if pool._members or want else now + 3600.0
        if unwatched:
            wait = min(wait, max(self._tick_at, now + 0.001))
        if in_use:
            wait = min(wait, self._look_at)
        if want and retry_at > now:
            wait = min(wait, retry_at)
        if self._heap:
            wait = min(wait, self._heap[0][0])
        return max(0.0, wait - time.monotonic())

    def _guarded(
        self,
        pool: RealtimePool,
        member: PooledConnection,
        step: Callable[..., None],
        now: float,
        *args: object,
    ) -> None:
        """Run one step for one connection; a defect there costs that connection only."""
        try:
            step(pool, member, now, *args)
        except Exception:
            log.exception("pool %r: error while looking after %r; it is closed", pool.name, member)
            if member.state is not State.GONE:
                self._begin_close(pool, member, now, "damaged")

    def _at(self, member: PooledConnection, due: float) -> None:
        """Look at the connection at ``due``; replaces what was arranged before."""
        member.due = due
        heapq.heappush(self._heap, (due, next(self._sequence), member))

    def _watch(self, member: PooledConnection) -> None:
        transport = member.transport
        if not member.watched and transport is not None:
            fd = transport.fileno()
            if fd >= 0:
                self._selector.register(fd, selectors.EVENT_READ, member)
                member.watched = True

    def _unwatch(self, member: PooledConnection) -> None:
        transport = member.transport
        if member.watched and transport is not None:
            member.watched = False
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(transport.fileno())

    # -- events

    def _readable(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        with pool._lock:
            state = member.state
            if state is State.IDLE:
                # Reserve it: while it is read here, nobody may borrow it.
                if member not in pool._idle:
                    return  # in the inbox, to be looked at in this turn
                pool._idle.remove(member)
        if state is State.IDLE:
            self._examine(pool, member, now)
        elif state is State.IN_USE or state is State.GONE:
            self._unwatch(member)  # the borrower reads; one wake-up was the price of not asking at checkout
        else:
            self._attend(pool, member, now)

    def _attend(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        """Do what the state of the connection asks for at this time."""
        state = member.state
        if state is State.CONNECTING:
            self._drive_prepare(pool, member, now)
        elif state is State.RESETTING:
            self._drive_reset(pool, member, now)
        elif state is State.CLOSING:
            self._drive_close(pool, member, now)
        elif state is State.IN_USE:
            self._at(member, now + HOUSEKEEPING)  # kept by _sweep_in_use; here only the time is carried on
        elif state is State.IDLE:
            self._look_idle(pool, member, now)

    # -- connecting

    def _arrived(
        self, pool: RealtimePool, member: PooledConnection, now: float, result: Transport | ConnectError
    ) -> None:
        if isinstance(result, ConnectError):
            self._connect_failed(pool, member, now, result)
            return
        with pool._lock:
            member.transport = result
            closed = pool._closed
        tls = result.stream.tls
        if closed:
            self._begin_close(pool, member, now, "shutdown")
            return
        self._watch(member)
        member.close_by = member.opened_at + pool._config.connect_timeout
        member.protocol.prepare(now)
        self._drive_prepare(pool, member, now)
        if tls is not None and tls.session is not None and self._tls is not None:
            self._tls_session = self._tls[1], tls.session

    def _drive_prepare(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        transport, protocol = member.transport, member.protocol
        if transport is None:  # still dialing; the dial has its own deadline
            return
        is_open = self._drive(member, now)
        failure = protocol.failure
        if failure is not None or (protocol.pending and (not is_open or now >= member.close_by)):
            self._connect_failed(pool, member, now, self._prepare_error(pool, member, is_open))
        elif protocol.pending:
            self._at(member, min(member.close_by, protocol.wake_at or member.close_by))
        else:
            self._ready(pool, member, now)

    def _prepare_error(self, pool: RealtimePool, member: PooledConnection, is_open: bool) -> ConnectError:
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
            f"the session did not begin within {pool._config.connect_timeout:g} s", kind="timeout"
        )

    def _connect_failed(
        self, pool: RealtimePool, member: PooledConnection, now: float, error: ConnectError
    ) -> None:
        log.debug("pool %r: connection #%d failed: %s", pool.name, member.id, error)
        with pool._lock:
            if not pool._closed:
                pool._connect_failed(error, now)
        self._begin_close(pool, member, now, None)

    def _ready(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        config = pool._config
        life = None if member.protocol.expires_at is None else member.protocol.expires_at - time.time()
        member.usable_until, member.usable_why = usable_until(
            now, max_age=config.max_connection_age, min_session_time=config.min_session_time, server_life=life
        )
        if life is not None and now >= member.usable_until:
            text = f"the server grants {life:.0f} s, less than min_session_time={config.min_session_time:g}"
            self._connect_failed(pool, member, now, ConnectError(text, kind="session"))
            return
        took = now - member.opened_at
        member.next_ping_at = now + config.health_check_interval
        with pool._lock:
            pool._counters.opened += 1
            pool._counters.connect.observe(took)
            pool._backoff.succeeded()
            member.opened_at = member.proved_at = member.idle_since = now
            pool._offer(member, now)
        self._at(member, now)

    def _drive(self, member: PooledConnection, now: float) -> bool:
        """Carry messages between the socket and the protocol's task; return whether the socket is open."""
        transport, protocol = member.transport, member.protocol
        assert transport is not None
        is_open = transport.drain()
        for message in transport.take_unread():
            if protocol.pending:
                protocol.feed(message, now)
            elif protocol.failure is None and not protocol.stray(message):
                member.close_reason = "dirty"
        if protocol.pending and protocol.wake_at is not None and now >= protocol.wake_at:
            protocol.tick(now)
        for message in protocol.outgoing():
            transport.post(message)
        transport.flush()
        return is_open and not transport.ended

    # -- coming back

    def _received_back(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        """Look at what a borrower, or a checkout that did not like it, has left to us."""
        if member.state is State.IDLE:
            self._examine(pool, member, now)
            return
        if member.state is not State.RESETTING:
            return
        transport = member.transport
        assert transport is not None
        if member.leak_reported:
            log.warning("pool %r: connection #%d, reported as leaked, was returned", pool.name, member.id)
        member.borrower_stack, member.leak_reported = None, False
        self._unwatch(member)
        is_open = transport.drain()
        reason: str | None
        if not is_open or transport.ended:
            reason = "lost"
        elif transport.damaged or transport.stream.unsent or transport.busy:
            reason = "damaged"
        else:
            with pool._lock:
                reason = pool._retire_reason(member, now)
        if reason is not None:
            self._begin_close(pool, member, now, reason)
            return
        if member.transparent:
            if transport.has_unread:
                self._begin_close(pool, member, now, "dirty")
            else:
                self._reoffer(pool, member, now)
            return
        member.reset_started = now
        member.protocol.reset(now)
        self._watch(member)
        self._drive_reset(pool, member, now)

    def _drive_reset(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        protocol = member.protocol
        is_open = self._drive(member, now)
        failure = protocol.failure
        if protocol.pending and is_open and failure is None:
            self._at(member, protocol.wake_at or now + pool._config.reset_timeout)
            return
        outcome = failure.outcome if failure is not None else "ok" if is_open else "lost"
        if member.close_reason == "dirty" and outcome == "ok":
            outcome = "mismatch"
        with pool._lock:
            pool._counters.resets[outcome] += 1
            if outcome == "ok":
                pool._counters.reset.observe(now - member.reset_started)
            reason = None if outcome == "ok" else "lost" if outcome == "lost" else "reset"
            reason = reason or pool._retire_reason(member, now)
        if reason is not None:
            if failure is not None:
                member.last_error = failure.message
                log.debug("pool %r: reset of #%d: %s", pool.name, member.id, failure.message)
            self._begin_close(pool, member, now, reason)
        else:
            self._reoffer(pool, member, now)

    def _reoffer(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        member.next_ping_at = now + pool._config.health_check_interval
        member.ping_sent = False
        with pool._lock:
            reason = pool._retire_reason(member, now)
            if reason is None:
                member.proved_at = member.idle_since = now
                pool._offer(member, now)
        if reason is not None:
            self._begin_close(pool, member, now, reason)
        else:
            self._at(member, now + TICK)

    def _reclaim(self, pool: RealtimePool, remains: object) -> None:
        """Take back a connection whose handle was dropped without being returned."""
        with pool._lock:
            pool._counters.leaks += 1
        log.warning(
            "pool %r: connection #%s was dropped without being returned; it is taken back. "
            "Use `with pool.connection()`, or release() in a finally block.",
            pool.name,
            getattr(remains, "id", "?"),
        )
        pool._give_back(remains)  # type: ignore[arg-type]

    # -- idle

    def _examine(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        """Read an idle connection that is reserved for us: what arrived decides whether it stays."""
        transport = member.transport
        assert transport is not None
        is_open = transport.drain()
        strays = [member.protocol.stray(message) for message in transport.take_unread()]
        with pool._lock:
            reason = pool._retire_reason(member, now)
        if not is_open or transport.ended:
            reason = "lost"
        elif not all(strays) or (transport.has_unread and member.transparent):
            reason = reason or "dirty"
        if reason is not None:
            self._begin_close(pool, member, now, reason)
            return
        if member.ping_sent and transport.silence(now) <= 0 and transport.rtt is not None:
            member.ping_sent = False
            with pool._lock:
                pool._counters.health_checks["ok"] += 1
                pool._counters.ping_rtt.observe(transport.rtt)
        with pool._lock:
            member.proved_at = now
            pool._offer(member, now)

    def _look_idle(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        """An idle connection's time has come: retire it, ping it, or note when to look again."""
        transport, config = member.transport, pool._config
        assert transport is not None
        idle_until = member.idle_since + config.max_idle_time
        with pool._lock:
            reason = pool._retire_reason(member, now)
            spare = len(pool._idle) > config.min_idle
            if reason is None and now >= idle_until and spare:
                reason = "idle"
            if reason is None and member.ping_sent and transport.silence(now) >= config.ping_timeout:
                reason = "health"
                pool._counters.health_checks["failed"] += 1
            if member.state is not State.IDLE or (reason is not None and member not in pool._idle):
                self._at(member, now + TICK)  # borrowed this very moment
                return
            if reason is not None:
                pool._idle.remove(member)
        if reason is not None:
            self._begin_close(pool, member, now, reason)
            return
        if not member.ping_sent and now >= member.next_ping_at:
            member.ping_sent = True
            member.next_ping_at = now + config.health_check_interval
            transport.send_keepalive()
        due = now + config.ping_timeout - transport.silence(now) if member.ping_sent else member.next_ping_at
        due = min(due, member.usable_until)
        if spare:
            due = min(due, max(idle_until, now + HOUSEKEEPING))
        self._at(member, max(due, now + 0.001))

    def _watch_idle(self, pool: RealtimePool, now: float) -> None:
        """Register the connections that have been idle for a tick."""
        self._tick_at = now + TICK
        with pool._lock:
            fresh = [m for m in pool._idle if not m.watched]
        for member in fresh:
            if now - member.idle_since >= TICK / 2:
                self._watch(member)

    # -- in use

    def _sweep_in_use(self, pool: RealtimePool, now: float) -> None:
        with pool._lock:
            in_use = [m for m in pool._members if m.state is State.IN_USE]
        for member in in_use:
            self._guarded(pool, member, self._look_in_use, now)

    def _look_in_use(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        """Keep a borrowed connection alive, whether or not its borrower receives. Never closes it."""
        transport, config = member.transport, pool._config
        assert transport is not None
        if transport.ended:
            return  # the borrower will find out
        if not transport.readlock.locked() and transport.has_bytes():
            transport.drain()
        if transport.silence(now) >= config.ping_timeout and not transport.has_bytes():
            transport.lose(f"no answer to a ping within {config.ping_timeout:g} s")
        elif now >= member.next_ping_at and transport.silence(now) <= 0:
            member.next_ping_at = now + config.ping_interval
            transport.send_keepalive()
        threshold = config.leak_threshold
        if threshold and not member.leak_reported and now - member.busy_since >= threshold:
            member.leak_reported = True
            with pool._lock:
                pool._counters.leaks += 1
            log.warning(
                "pool %r: connection #%d has been in use for %.1f s (leak_threshold=%g); borrowed by %s",
                pool.name,
                member.id,
                now - member.busy_since,
                threshold,
                member.borrower_stack or "an unknown borrower",
            )

    # -- closing

    def _begin_close(
        self, pool: RealtimePool, member: PooledConnection, now: float, reason: str | None
    ) -> None:
        """Retire a connection that nobody uses. ``reason`` None: it never became ready, so is not counted."""
        with pool._lock:
            if member.state in (State.CLOSING, State.GONE):
                return
            if member in pool._idle:
                pool._idle.remove(member)
            member.state = State.CLOSING
            transport = member.transport
            if reason is not None and reason in pool._counters.closed:
                pool._counters.closed[reason] += 1
        if reason is not None:
            log.debug("pool %r: closing connection #%d: %s", pool.name, member.id, reason)
        member.close_reason = reason
        if transport is None:
            self._gone(pool, member)
            return
        code = {"expiry": 1000, "shutdown": 1001}.get(reason or "", 1000)
        if not transport.ended:
            transport.start_close(code)
            self._watch(member)
        member.close_by = now + pool._config.close_timeout
        if transport.damaged or reason in ("health", None):
            member.close_by = min(member.close_by, now + 1.0)  # nothing to be polite about
        self._drive_close(pool, member, now)

    def _drive_close(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        transport = member.transport
        assert transport is not None
        is_open = transport.drain()
        transport.take_unread()
        transport.flush()
        if is_open and not transport.ended and now < member.close_by:
            self._at(member, member.close_by)
            return
        self._unwatch(member)
        transport.abort()
        if transport.release():
            self._gone(pool, member)
        else:
            self._at(member, now + CLOSING_RETRY)  # abort() has woken whoever is inside

    def _gone(self, pool: RealtimePool, member: PooledConnection) -> None:
        transport = member.transport
        with pool._lock:
            member.state = State.GONE
            pool._members.discard(member)
            if transport is not None:
                counters = pool._counters
                counters.messages_sent += transport.messages_sent
                counters.messages_received += transport.messages_received
                counters.bytes_sent += transport.bytes_sent
                counters.bytes_received += transport.bytes_received
            member.transport = None

    # -- the pool as a whole

    def _apply_limits(self, pool: RealtimePool, now: float) -> None:
        """Retire what drain(), resize() and close() have made superfluous."""
        with pool._lock:
            config = pool._config
            if pool._closed:
                doomed = [m for m in pool._members if m.state is not State.IN_USE or pool._kill]
                reason = "shutdown"
            else:
                surplus = len(pool._members) - config.max_connections
                doomed = [m for m in pool._idle if m.generation != pool._generation]
                reason = "drained"
                if surplus > 0 and not doomed:
                    doomed, reason = pool._idle[:surplus], "shrunk"
            doomed = [m for m in doomed if m.state is not State.CLOSING]
        if not doomed:
            return
        if pool._closed:
            self._connectors.stop()
        for member in doomed:
            if member.state is State.IN_USE:
                self._kill(pool, member, now)
            elif member.state is State.CONNECTING and member.transport is None:
                continue  # its dial was aborted and reports soon
            else:
                self._begin_close(pool, member, now, reason)

    def _kill(self, pool: RealtimePool, member: PooledConnection, now: float) -> None:
        """close()'s deadline has passed: end a connection in use."""
        transport = member.transport
        assert transport is not None
        transport.start_close(1001, "the pool was closed")
        if not pool._exiting:
            transport.lose("the pool was closed")
        self._begin_close(pool, member, now, "shutdown")

    def _keep_house(self, pool: RealtimePool, now: float) -> None:
        """Reconcile the idle stack with the states, should an exception ever have split them."""
        with pool._lock:
            known = set(pool._idle)
            lost = [m for m in pool._members if m.state is State.IDLE and m not in known]
            if lost:
                pending = set(pool._inbox)
                for member in lost:
                    if member not in pending:
                        pool._inbox.append(member)
