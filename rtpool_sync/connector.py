"""Threads that open connections: the one thing the reaper cannot do without blocking.

Started on demand, a few at most, gone again after a second without work.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import ConnectError

if TYPE_CHECKING:
    from .connection import PooledConnection
    from .transport import Dial, Transport

__all__ = ["MAX_DIALING", "Connectors"]

#: Connections opened at the same time by one pool: enough to fill it quickly,
#: few enough not to be a storm on the server or on the machine's threads.
MAX_DIALING = 4
LINGER = 1.0  # seconds a thread waits for more work

Result = Callable[["PooledConnection", "Transport | ConnectError"], None]


class Connectors:
    """Runs dials and reports each result exactly once.

    Args:
        dial: Makes the attempt for a connection; runs in a connector thread,
            because it may ask the application for the key.
        result: Called in a connector thread with the transport or the error. Must not block.
    """

    def __init__(self, name: str, dial: Callable[[PooledConnection], Dial], result: Result) -> None:
        self._name = name
        self._dial = dial
        self._result = result
        self._jobs: queue.SimpleQueue[PooledConnection | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the fields below
        self._threads: set[threading.Thread] = set()
        self._unclaimed = 0  # jobs put and not yet taken
        self._waiting = 0  # threads waiting for a job
        self._active: dict[PooledConnection, Dial] = {}
        self._stopped = False

    def submit(self, member: PooledConnection) -> None:
        """Open the connection soon. For the reaper only."""
        with self._lock:
            self._unclaimed += 1
            more = self._unclaimed > self._waiting and len(self._threads) < MAX_DIALING
            if more:
                name = f"rtpool-{self._name}-connector"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.add(thread)
        self._jobs.put(member)
        if more:
            try:
                thread.start()
            except RuntimeError:  # no more threads on this machine, or the interpreter is exiting
                with self._lock:
                    self._threads.discard(thread)
                    alone = not self._threads
                    self._unclaimed -= alone
                job = self._jobs.get_nowait() if alone else None
                if job is not None:
                    self._result(job, ConnectError("no thread could be started", kind="tcp"))

    def _run(self) -> None:
        thread = threading.current_thread()
        while True:
            with self._lock:
                self._waiting += 1
            tired = False
            try:
                member = self._jobs.get(timeout=LINGER)
            except queue.Empty:
                member, tired = None, True
            with self._lock:
                self._waiting -= 1
                if member is None:
                    if tired and self._unclaimed:
                        continue  # put in the moment we gave up waiting
                    self._threads.discard(thread)
                    return
                self._unclaimed -= 1
            self._result(member, self._attempt(member))

    def _attempt(self, member: PooledConnection) -> Transport | ConnectError:
        try:
            dial = self._dial(member)
            with self._lock:
                if self._stopped:
                    return ConnectError("the pool was closed", kind="tcp")
                self._active[member] = dial
            return dial.run()
        except ConnectError as error:
            return error.with_traceback(None)
        except BaseException as error:
            # A defect, or the application's key function, SystemExit included: better a failed
            # attempt than a connection of which nobody ever hears again.
            return ConnectError(f"connecting failed: {type(error).__name__}: {error}", kind="tcp")
        finally:
            with self._lock:
                self._active.pop(member, None)

    def stop(self) -> None:
        """Abort what is under way and end the threads. Never blocks."""
        with self._lock:
            self._stopped = True
            dials = list(self._active.values())
            threads = len(self._threads)
        for dial in dials:
            dial.abort()
        for _ in range(threads):
            self._jobs.put(None)

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, all together ``timeout`` seconds at most."""
        end = time.monotonic() + timeout
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
