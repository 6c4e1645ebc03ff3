"""The loop's instruments: sockets to watch, times to keep, a way to be woken."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
from collections.abc import Iterator

from .connection import PooledConnection, State

__all__ = ["Loop"]


class Loop:
    """A selector and a heap of times over connections. One thread's, except for :meth:`wake`."""

    def __init__(self) -> None:
        self._woken = False
        # Sockets, not a pipe: writing to a closed one fails instead of reaching
        # whoever has got its number since.
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._receiver, selectors.EVENT_READ, None)
        # Of the entries of one connection only the one that equals its ``due`` counts.
        self._heap: list[tuple[float, int, PooledConnection]] = []
        self._sequence = itertools.count()

    def wake(self) -> None:
        """Have :meth:`wait` return soon. From any thread; takes no lock: finalizers call it."""
        if not self._woken:
            try:
                self._woken = True
                self._sender.send(b"\0")
            except OSError:  # full, or closed
                pass
            except BaseException:  # struck between the two: nobody else would write
                self._woken = False
                raise

    def wait(self, timeout: float) -> list[PooledConnection]:
        """Wait until something happens, at most ``timeout`` seconds; return the readable connections."""
        events = self._selector.select(min(timeout, 3600.0))  # epoll counts milliseconds in 32 bits
        readable: list[PooledConnection] = [key.data for key, _ in events if key.data is not None]
        if len(readable) < len(events):
            with contextlib.suppress(BlockingIOError):
                while len(self._receiver.recv(4096)) == 4096:
                    pass
        return readable

    def awake(self) -> None:
        """Note that everything is looked at from now on: the next :meth:`wake` counts again."""
        # A wake() that comes earlier may be swallowed, for what it announces is
        # seen in this turn; one that comes later writes again.
        self._woken = False

    # -- sockets

    def watch(self, member: PooledConnection) -> None:
        """Report the connection when its socket is readable."""
        transport = member.transport
        if not member.watched and transport is not None:
            fd = transport.fileno()
            if fd >= 0:
                self._selector.register(fd, selectors.EVENT_READ, member)
                member.watched = True

    def unwatch(self, member: PooledConnection) -> None:
        transport = member.transport
        if member.watched and transport is not None:
            member.watched = False
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(transport.fileno())

    # -- times

    def at(self, member: PooledConnection, due: float) -> None:
        """Report the connection at ``due``; replaces what was arranged before."""
        member.due = due
        heapq.heappush(self._heap, (due, next(self._sequence), member))

    def due(self, now: float) -> Iterator[PooledConnection]:
        """Yield the connections whose time has come."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            due, _, member = heapq.heappop(heap)
            if due == member.due and member.state is not State.GONE:
                yield member

    def next_due(self) -> float:
        """When the next entry is due; infinity if there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    # -- the end

    def close(self) -> None:
        """Close the descriptors; what is watched is not touched. Also right in a forked child."""
        self._selector.close()
        self._receiver.close()
        self._sender.close()
