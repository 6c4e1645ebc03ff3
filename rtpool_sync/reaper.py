"""The reaper: one daemon thread per pool that looks after every connection nobody is using.

It reads idle sockets as soon as they become readable (answering pings, noticing
ends), drives the session protocols of connections that are being made ready or
reset, pings, retires, closes, and decides what to open. It never blocks:
opening is done by the connectors, and what it writes goes out as far as the
kernel takes it.

It is also the only thread that changes the set of connections, so those steps
need no care for exceptions out of nowhere: nobody kills this thread.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING

from . import observers
from .connection import Claim, PooledConnection, State
from .connector import Connectors
from .dialing import Dialing
from .errors import ConnectError
from .events import QUIET
from .lifecycle import HOUSEKEEPING, TICK, Lifecycle
from .loop import Loop
from .transport import Transport

if TYPE_CHECKING:
    from .ledger import Ledger

__all__ = ["Reaper"]

log = logging.getLogger("rtpool_sync")

#: Seconds between looks at a connection in use: its server's pings are answered
#: and its keepalives read even while its borrower receives nothing.
LOOK_IN_USE = 0.25
#: Seconds between turns at most, so that whoever watches can tell a reaper that has
#: nothing to do from one that is no more.
HEARTBEAT = 5.0
#: Seconds between publications of the pool's numbers, if anybody has to be told them.
PUBLISHING = 1.0
#: Seconds the interpreter's exit may take for the closing handshakes.
EXIT_TIMEOUT = 2.0


class Reaper:
    """Looks after one pool, until that is closed or nobody refers to it any more."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._owner: weakref.ref[object] | None = None
        self._thread: threading.Thread | None = None
        self._claim = threading.Lock()  # taken once and for all by the thread that runs the loop
        self.started = False
        self.finished = threading.Event()
        ledger.last_run = time.time()
        self._loop = Loop()
        self._dialing = Dialing(ledger)
        self._connectors = Connectors(ledger.name, self._dialing.dial, self._report_dialed)
        self._dialed: deque[tuple[PooledConnection, Transport | ConnectError]] = deque()
        self._life = Lifecycle(ledger, self._loop, self._dialing.remember)
        self._house_at = 0.0  # when to look at the pool as a whole
        self._tick_at = 0.0  # when to watch idle connections that came back
        self._watched_until = 0.0  # those that came back up to then are watched
        self._drained = 0  # the generation up to which the idle ones have been retired
        self._look_at = 0.0  # when to look at connections in use
        self._publish_at = 0.0
        self._complain_at: dict[str, float] = {}
        self._stopping = False

    # -- from other threads

    def start(self, owner: weakref.ref[object]) -> None:
        """Start the thread; it also ends when ``owner`` is gone: then nothing is lent, nobody waits.

        To be called again after an exception has struck here (KeyboardInterrupt):
        should there be two threads then, the second finds the loop claimed.
        """
        self._owner = owner
        name = f"rtpool-{self._ledger.name}-reaper"
        threading.Thread(target=self._run, name=name, daemon=True).start()
        self.started = True

    def abandon(self) -> bool:
        """Let go of everything if no thread runs the loop; return whether that is so."""
        if not self._claim.acquire(False):
            return False
        self._loop.close()
        self.finished.set()
        return True

    def wake(self) -> None:
        """Have the loop turn once, soon. Takes no lock: finalizers call it."""
        self._loop.wake()

    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def join(self, timeout: float) -> None:
        """Wait for all threads to end, ``timeout`` seconds at most."""
        end = time.monotonic() + timeout
        if self._thread is not None:
            self._thread.join(timeout)
        self._connectors.join(max(0.0, end - time.monotonic()))

    def forget(self) -> None:
        """Let go of everything inherited, in a forked child. The thread does not exist there."""
        self._loop.close()

    def _report_dialed(self, member: PooledConnection, result: Transport | ConnectError) -> None:
        self._dialed.append((member, result))
        self._loop.wake()

    # -- the loop

    def _run(self) -> None:
        if not self._claim.acquire(False):
            return
        self._thread = threading.current_thread()
        _running.add(self)
        readable: list[PooledConnection] = []
        try:
            while True:
                try:
                    timeout = self._turn(readable)
                except Exception:
                    self._complain("pool %r: error in the reaper; it goes on", self._ledger.name)
                    timeout = 0.1
                if timeout is None:
                    break
                readable = self._loop.wait(timeout)
        finally:
            self._connectors.stop()
            self._loop.close()
            observers.publish()
            _running.discard(self)
            self.finished.set()

    def _turn(self, readable: list[PooledConnection]) -> float | None:
        """Do what there is to do; return seconds to wait at most, or None at the end."""
        ledger, life = self._ledger, self._life
        ledger.last_run = time.time()
        now = time.monotonic()
        self._loop.awake()
        for member in readable:
            self._guarded(member, self._readable, now)
        while self._dialed:
            member, result = self._dialed.popleft()
            self._guarded(member, life.arrived, now, result)
        while ledger.dropped:
            self._reclaim(*ledger.dropped.popleft())
        while ledger.inbox:
            self._guarded(ledger.inbox.popleft(), life.received_back, now)
        if now >= self._tick_at:
            self._tick_at = now + TICK
            self._watch_idle(now)
        if now >= self._look_at:
            self._look_at = now + LOOK_IN_USE
            self._look_in_use(now)
        for member in self._loop.due(now):
            self._guarded(member, life.attend, now)
        if now >= self._house_at:
            self._house_at = now + HOUSEKEEPING
            self._keep_house(now)
        if now >= self._publish_at:
            self._publish_at = now + PUBLISHING
            observers.publish()
        self._apply_limits(now)
        return self._plan(now)

    def _plan(self, now: float) -> float | None:
        """Begin to open what is wanted; return seconds until the next turn, None at the end."""
        ledger = self._ledger
        with ledger.lock:
            if ledger.closed and not self._dialed:
                # At exit nobody waits for attempts that have been aborted already.
                if not ledger.members or (ledger.exiting and not any(m.transport for m in ledger.members)):
                    return None
            new = ledger.plan(now)
            # A connection that is out, or came back a moment ago, has us turn by
            # ourselves: on that way borrowers need not wake us.
            unwatched = bool(ledger.idle) and ledger.idle[-1].idle_since > self._watched_until
            in_use = ledger.in_use > 0
            ledger.will_turn = unwatched or in_use or self._is_calm()
            wanting = bool(ledger.waiters or ledger.config.min_idle or ledger.watchers or ledger.unmet)
            due = [self._loop.next_due(), self._house_at if ledger.members or wanting else now + HEARTBEAT]
            if unwatched:
                due.append(max(self._tick_at, now + 0.001))
            if in_use:
                due.append(self._look_at)
            if wanting and ledger.next_try() > now:
                due.append(ledger.next_try())
        for member in new:
            self._connectors.submit(member)
        return max(0.0, min(due) - time.monotonic())

    def _is_calm(self) -> bool:
        """Whether the house's own turns are soon enough, should a connection be lent meanwhile.

        Waking the thread costs the borrower a tenth of a millisecond: the first thing it does is
        take the interpreter's lock.
        """
        ledger = self._ledger
        config, idle, total = ledger.config, len(ledger.idle), len(ledger.members)
        patience = min(config.ping_interval, config.leak_threshold or math.inf)
        in_reserve = not config.min_idle or idle > config.min_idle or total >= config.max_connections
        return total > 0 and in_reserve and patience >= 2 * HOUSEKEEPING

    def _guarded(
        self, member: PooledConnection, step: Callable[..., None], now: float, *args: object
    ) -> None:
        """Take one step for one connection; a defect there costs that connection only."""
        try:
            step(member, now, *args)
        except Exception:
            self._complain("pool %r: error while looking after %r; it is closed", self._ledger.name, member)
            with self._ledger.lock:
                in_use = member.state is State.IN_USE
                member.condemn("damaged")  # if it is out: when it comes back
            if not in_use:
                self._life.begin_close(member, now, "damaged")

    def _complain(self, text: str, *args: object) -> None:
        """Log a defect of our own, where it is caught; once a minute, as it may be there at every turn."""
        now = time.monotonic()
        if now >= self._complain_at.get(text, 0.0):
            self._complain_at[text] = now + QUIET
            log.exception(text, *args)

    # -- connections that have something to say

    def _readable(self, member: PooledConnection, now: float) -> None:
        ledger = self._ledger
        with ledger.lock:
            state = member.state
            # While we read it, nobody may borrow it.
            if state is State.IDLE and not ledger.reserve(member) and not member.incomplete:
                return  # in the inbox: it is looked at in this turn
        if state is State.IDLE:
            self._life.examine(member, now)
        elif state is State.IN_USE:
            # Its borrower reads. One needless wake-up is the price of not telling the
            # selector at every checkout.
            self._loop.unwatch(member)
        else:
            self._life.attend(member, now)

    def _watch_idle(self, now: float) -> None:
        """Watch the connections that came back a while ago: those in brisk use cost no system call."""
        since, self._watched_until = self._watched_until, now - TICK / 2
        with self._ledger.lock:
            recent = takewhile(lambda m: m.idle_since > since, reversed(self._ledger.idle))
            back = [m for m in recent if m.idle_since <= self._watched_until]
        for member in back:
            self._guarded(member, self._watch, now)

    def _watch(self, member: PooledConnection, now: float) -> None:
        self._loop.watch(member)
        self._loop.at(member, now)  # its times have changed while it was out
        if member.transport is not None:
            member.transport.rest()

    def _look_in_use(self, now: float) -> None:
        if not self._ledger.in_use:
            return
        with self._ledger.lock:
            in_use = [(m, m.session_count) for m in self._ledger.members if m.state is State.IN_USE]
        for member, session in in_use:
            self._guarded(member, self._life.look_in_use, now, session)

    def _reclaim(self, claim: Claim, mistake: bool) -> None:
        """Take back a connection whose handle was dropped without being returned."""
        ledger = self._ledger
        with ledger.lock:
            member = claim._member
            if member is None or member.session_count is not claim._lease or member.state is not State.IN_USE:
                return
            ledger.counters.leaks += mistake
            stack = member.borrower_stack
            ledger.give_back(claim, time.monotonic())  # the idle ones are in order of time
        if mistake:
            ledger.events.emit(
                "dropped",
                message="its borrower lost it without returning it; it is taken back. "
                "Use `with pool.connection()`, or release() in a finally block"
                + (f"; borrowed by {stack}" if stack else ""),
                connection=claim.id,
                warn=True,
            )

    # -- the pool as a whole

    def _apply_limits(self, now: float) -> None:
        """Retire what drain(), resize() and close() have made superfluous, or the end of the pool itself."""
        ledger = self._ledger
        if self._owner is not None and self._owner() is None:
            ledger.closed = ledger.kill = True  # no handle can exist any more: each holds its pool
        with ledger.lock:
            generation = ledger.generation
            if ledger.closed:
                reason = "shutdown"
                doomed = [m for m in ledger.members if m.state is not State.IN_USE or ledger.kill]
            elif generation != self._drained:
                reason = "drained"
                doomed = [m for m in ledger.idle if m.generation != generation]
            else:
                reason = "shrunk"
                doomed = ledger.idle[: max(0, ledger.surplus())]
            if not ledger.closed:
                for member in doomed:
                    ledger.reserve(member)  # or somebody borrows it before it is closed
        if ledger.closed and not self._stopping:
            self._stopping = True
            self._connectors.stop()
        for member in doomed:
            if member.state is State.IN_USE:
                self._life.kill(member, now)
            elif member.state is not State.CLOSING and member.transport is not None:
                self._life.begin_close(member, now, reason)
            # else: its dial was aborted and reports soon
        self._drained = generation

    def _keep_house(self, now: float) -> None:
        """Retire what nobody has used for long; find whoever is in no list or counted wrong, should
        an exception ever have struck in between."""
        ledger = self._ledger
        with ledger.lock:
            ledger.recount()
            ledger.serve_line(now)
            # The longest unused come first. Which of them are spare depends on the others:
            # a time arranged for each alone would be wrong as soon as one is lent.
            spare = max(0, len(ledger.idle) - ledger.config.min_idle)
            unused_since = now - ledger.config.max_idle_time
            unused = list(takewhile(lambda m: m.idle_since <= unused_since, ledger.idle[:spare]))
            for member in ledger.members.difference(ledger.idle, ledger.inbox):
                returned = member.state is State.RESETTING and not member.received_back
                if returned or (member.state is State.IDLE and not member.incomplete):
                    ledger.inbox.append(member)
                elif member.state is State.CLOSING and now > member.close_by + HOUSEKEEPING:
                    self._loop.at(member, now)
        for member in unused:
            self._guarded(member, self._life.attend, now)
        ledger.events.summarize(now)

    # -- at the end of the process

    def stop_at_exit(self) -> None:
        """Close everything now. Daemon threads that still borrow or wait are left asleep."""
        ledger = self._ledger
        ledger.exiting = True
        ledger.closed = ledger.kill = True
        self.wake()

    @staticmethod
    def stop_all() -> None:
        """Close all pools of this process at the interpreter's exit: bounded, silent, all at once."""
        here = [reaper for reaper in list(_running) if reaper._ledger.birthplace[0]]
        for reaper in here:
            reaper.stop_at_exit()
        began = time.monotonic()
        for reaper in here:
            patience = min(EXIT_TIMEOUT, reaper._ledger.config.close_timeout)
            reaper.finished.wait(max(0.0, began + patience - time.monotonic()))


#: All that have not finished: also those whose pool nobody refers to any more.
_running: set[Reaper] = set()

atexit.register(Reaper.stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)
