"""The application's callbacks, in threads that carry no audio.

What a callback does, and how long it takes, is not the bridge's: so it never
runs in a thread that somebody's voice waits for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Callbacks"]

logger = logging.getLogger("rtpool_sync.bridges")
monotonic = time.monotonic

#: Notifications that may wait for a slow callback.
WAITING = 2000


class Callbacks:
    """Runs callbacks: notifications one after another, tasks each on its own.

    Threads are started when there is something to do, and are daemons: a
    callback that never returns does not keep the process from ending.

    Args:
        name: Of the threads.
        failed: Told of every exception: what was called, and the exception.
        dropped: Told of every notification that there was no room for.
    """

    def __init__(
        self, name: str, failed: Callable[[str, BaseException], None], dropped: Callable[[], None]
    ) -> None:
        self._name = name
        self._failed = failed
        self._dropped = dropped
        self._line: deque[tuple[str, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._ready = threading.Condition(threading.Lock())
        self._worker: threading.Thread | None = None
        self._running: dict[threading.Thread, str] = {}
        self._closed = False
        self._logged: set[str] = set()

    def notify(self, what: str, callback: Callable[..., Any], *args: Any) -> None:
        """Have ``callback(*args)`` called after all notifications before it."""
        with self._ready:
            if self._closed:
                return
            full = len(self._line) >= WAITING
            if not full:
                self._line.append((what, callback, args))
                if self._worker is None:
                    self._worker = self._start(what, self._deliver)
                self._ready.notify()
        if full:
            self._dropped()

    def task(self, what: str, callback: Callable[..., Any], *args: Any) -> None:
        """Have ``callback(*args)`` called in a thread of its own."""
        with self._ready:
            if not self._closed:
                self._start(what, lambda: self._call(what, callback, args))

    def _start(self, what: str, target: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                target()
            finally:
                with self._ready:
                    self._running.pop(threading.current_thread(), None)

        thread = threading.Thread(target=run, name=f"{self._name}-callbacks", daemon=True)
        self._running[thread] = what
        try:
            thread.start()
        except BaseException:
            self._running.pop(thread, None)
            raise
        return thread

    def _deliver(self) -> None:
        while True:
            with self._ready:
                while not self._line:
                    if self._closed:
                        return
                    self._ready.wait()
                what, callback, args = self._line.popleft()
                self._running[threading.current_thread()] = what
            self._call(what, callback, args)

    def _call(self, what: str, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except BaseException as error:
            first = what not in self._logged
            self._logged.add(what)  # one that fails would most often fail at every event
            level = logging.WARNING if first else logging.DEBUG
            logger.log(level, "%s failed in a call of %s", what, self._name, exc_info=error)
            self._failed(what, error)

    def close(self, timeout: float) -> list[str]:
        """Deliver what waits, for ``timeout`` seconds; return what is still running then."""
        end = monotonic() + timeout
        with self._ready:
            self._closed = True
            threads = dict(self._running)
            self._ready.notify_all()
        for thread in threads:
            thread.join(max(0.0, end - monotonic()))
        with self._ready:
            self._line.clear()
            return [self._running.get(thread, what) for thread, what in threads.items() if thread.is_alive()]
