"""The event loop's thread and the listening socket: what the server and the relay share."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["Listener", "LoopThread", "Sockets", "will_reset"]

T = TypeVar("T")


class LoopThread:
    """An asyncio event loop in a daemon thread of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop

    @property
    def running(self) -> bool:
        # A forked child inherits the objects, not the thread.
        return self._thread is not None and self._pid == os.getpid()

    def start(self) -> None:
        # The selector loop everywhere: the listener uses add_reader().
        self.loop = asyncio.SelectorEventLoop()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self.loop.run_forever, name=self._name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function`` in the loop's thread and return what it returns."""
        if not self.running:
            raise RuntimeError("the server is not running")
        if self._thread is threading.current_thread():
            return function(*args)
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as exc:  # handed to the caller's thread
                future.set_exception(exc)

        self.loop.call_soon_threadsafe(run)
        return future.result(60)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        """Run a coroutine in the loop's thread and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def stop(self) -> None:
        """End the thread and free the loop. Tasks still running are cancelled."""
        thread, self._thread = self._thread, None
        if thread is None or self._pid != os.getpid():
            return
        with contextlib.suppress(concurrent.futures.TimeoutError):
            self.run(_cancel_tasks(), timeout=5.0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        thread.join()
        self.loop.close()


async def _cancel_tasks() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=2.0)
    # Transports close their sockets one round of the loop after they are told to.
    for _ in range(10):
        await asyncio.sleep(0)


class Sockets:
    """Every socket of one server, so that a forked child can let go of them.

    A child that kept its copies would keep the connections open on the wire
    after the server closed them, and the port in use.
    """

    def __init__(self) -> None:
        self._held: set[socket.socket] = set()
        _families.add(self)

    def __len__(self) -> int:
        return len(self._held)

    def add(self, sock: socket.socket) -> None:
        self._held.add(sock)

    def discard(self, sock: socket.socket) -> None:
        self._held.discard(sock)

    def close(self) -> None:
        """Close what nobody closed: sockets whose way into the loop was cut short by its end."""
        for sock in self._held:
            sock.close()
        self._held.clear()

    def abandon(self) -> None:
        """Let go without a trace on the wire."""
        for sock in list(self._held):
            # detach() first: the object must not close a number that is somebody else's by then.
            with contextlib.suppress(OSError):
                os.close(sock.detach())
        self._held.clear()


_families: weakref.WeakSet[Sockets] = weakref.WeakSet()


def _abandon_all() -> None:
    for family in list(_families):
        family.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


class Listener:
    """A listening socket in a loop; ``on_accept(sock)`` owns each accepted socket."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        sockets: Sockets,
        on_accept: Callable[[socket.socket], None],
    ) -> None:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self._loop = loop
        self._sockets = sockets
        self._on_accept = on_accept
        self._retry: asyncio.TimerHandle | None = None
        self.sock = socket.socket(info[0], info[1])
        try:
            if os.name == "posix":
                # Restart on the same port while old connections are in TIME_WAIT.
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.setblocking(False)
            self.sock.bind(info[4])
            self.sock.listen(4096)
        except BaseException:
            self.sock.close()
            raise
        self.port: int = self.sock.getsockname()[1]
        sockets.add(self.sock)
        loop.add_reader(self.sock, self._ready)

    def _ready(self) -> None:
        for _ in range(100):  # leave the loop some air during a storm of connects
            try:
                sock, _peer = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # out of descriptors: the backlog waits
                self._loop.remove_reader(self.sock)
                self._retry = self._loop.call_later(0.1, self._again)
                return
            sock.setblocking(False)
            without_delay(sock)
            self._sockets.add(sock)
            self._on_accept(sock)

    def _again(self) -> None:
        self._loop.add_reader(self.sock, self._ready)

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self.sock)
        self._sockets.discard(self.sock)
        # Ends listening even where a forked child still holds the descriptor.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def without_delay(sock: socket.socket) -> None:
    """Send small frames at once: asyncio sees to it only for sockets made with a protocol number."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def will_reset(sock: socket.socket) -> None:
    """Make the coming close() of ``sock`` send RST instead of FIN."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
