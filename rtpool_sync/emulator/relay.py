"""A TCP relay that is as far away as it is told to be, and that can break.

Bytes are delivered half a round trip after they arrived, in order, however
many they are. What a connection costs is delayed too: the first byte reaches
the target one and a half round trips after the connect, as it would if the
TCP handshake had crossed the same distance. So TCP + TLS 1.3 + upgrade cost
three round trips through the relay, as on a real network.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from types import TracebackType

from .net import Listener, LoopThread, Sockets, will_reset, without_delay

__all__ = ["DelayRelay"]

_FIN = b""


class _Pipe(asyncio.Protocol):
    """One end of a relayed connection: what it reads is written by its peer, later."""

    transport: asyncio.Transport

    def __init__(self, link: _Link, sock: socket.socket) -> None:
        self.link = link
        self.sock = sock
        self.peer: _Pipe | None = None
        self.lost = False
        self._queue: deque[tuple[float, bytes]] = deque()  # to be written by the peer
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._heard_fin = False
        self._said_fin = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        if self.link.relay.stalled:
            self.pause()

    def data_received(self, data: bytes) -> None:
        if not self.link.cut:
            self._push(data)

    def eof_received(self) -> bool:
        self._heard_fin = True
        if not self.link.cut:
            self._push(_FIN)
            self._close_if_done()
        return True  # the other direction may live on

    def say_fin(self) -> None:
        self._said_fin = True
        with contextlib.suppress(OSError, NotImplementedError):
            self.transport.write_eof()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._heard_fin and self._said_fin:
            self.transport.close()

    def _push(self, data: bytes) -> None:
        loop = self.link.loop
        due = max(loop.time() + self.link.relay.latency / 2, self._not_before)
        self._not_before = due  # order survives a change of latency
        self._queue.append((due, data))
        if self._timer is None and self.peer is not None:
            self._timer = loop.call_at(due, self._deliver)

    def not_before(self, when: float) -> None:
        """Let nothing that is read here arrive earlier."""
        self._not_before = when

    def connect_to(self, peer: _Pipe) -> None:
        self.peer = peer
        if self._queue:
            self._deliver()

    def _deliver(self) -> None:
        self._timer = None
        loop, queue, peer = self.link.loop, self._queue, self.peer
        if self.link.cut or peer is None or peer.transport.is_closing():
            queue.clear()
            return
        now = loop.time() + 0.0005  # rather half a millisecond early than a timer per segment
        ready: list[bytes] = []
        fin = False
        while queue and queue[0][0] <= now:
            data = queue.popleft()[1]
            if data:
                ready.append(data)
            else:
                fin = True
        if ready:
            peer.transport.write(ready[0] if len(ready) == 1 else b"".join(ready))
        if fin:
            peer.say_fin()
        if queue:
            self._timer = loop.call_at(queue[0][0], self._deliver)

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.pause()

    def resume_writing(self) -> None:
        if self.peer is not None and not self.link.relay.stalled:
            self.peer.resume()

    def pause(self) -> None:
        with contextlib.suppress(RuntimeError, AttributeError):
            self.transport.pause_reading()

    def resume(self) -> None:
        with contextlib.suppress(RuntimeError, AttributeError):
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.link.relay.forget(self.sock)
        self.link.end_lost(self, exc)

    def drain(self) -> float:
        """Return when the last byte read here is due at the peer."""
        return self._queue[-1][0] if self._queue else 0.0

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._queue.clear()


class _Link:
    """Two pipes back to back."""

    def __init__(self, relay: DelayRelay, client: socket.socket) -> None:
        self.relay = relay
        self.loop = relay.thread.loop
        self.cut = relay.blackhole
        self.client = _Pipe(self, client)
        self.target: _Pipe | None = None
        self.task: asyncio.Task[None] | None = None
        self._target_port = 0

    async def run(self) -> None:
        loop, relay = self.loop, self.relay
        # The client believes it is connected at once: what it says now it would have said
        # a round trip later, and that would have taken half a round trip to get here.
        ready = loop.time() + relay.latency * 1.5
        self.client.not_before(ready)
        await loop.connect_accepted_socket(lambda: self.client, self.client.sock)
        if self.cut:
            return
        await asyncio.sleep(ready - loop.time())
        if self._client_left():
            return
        family = socket.AF_INET6 if ":" in relay.target[0] else socket.AF_INET
        upstream = socket.socket(family, socket.SOCK_STREAM)
        upstream.setblocking(False)
        without_delay(upstream)
        relay.sockets.add(upstream)
        target = _Pipe(self, upstream)
        try:
            await loop.sock_connect(upstream, relay.target)
            self._target_port = upstream.getsockname()[1]
            relay.ports[self._target_port] = self.client.sock.getpeername()[1]
            await loop.create_connection(lambda: target, sock=upstream)
        except BaseException as exc:
            relay.forget(upstream)
            upstream.close()
            if not isinstance(exc, OSError):
                raise
            self.drop(reset=True)  # what a refused or vanished target looks like from here
            return
        self.target = target
        if self._client_left():
            self.drop(reset=True)
            return
        self.client.connect_to(target)
        target.connect_to(self.client)

    def _client_left(self) -> bool:
        return self.client.lost

    def end_lost(self, pipe: _Pipe, exc: Exception | None) -> None:
        """One end is gone: the other follows, after what was under way, by FIN or RST as it came."""
        self.relay.ports.pop(self._target_port, None)
        other = self.target if pipe is self.client else self.client
        if other is None or other.lost:
            pipe.stop()
            self.relay.links.discard(self)
            return
        if self.cut:
            return
        if exc is not None:
            will_reset(other.sock)
        delay = max(0.0, pipe.drain() - self.loop.time(), self.relay.latency / 2)
        finish = other.transport.abort if exc is not None else other.transport.close
        self.loop.call_later(delay, finish)

    def drop(self, *, reset: bool) -> None:
        for pipe in (self.client, self.target):
            if pipe is None or pipe.lost:
                continue
            pipe.stop()
            if reset:
                will_reset(pipe.sock)
            if hasattr(pipe, "transport"):
                pipe.transport.abort()
            elif self.task is not None:  # asyncio is about to make a transport of it: then it ends it
                self.task.cancel()


class DelayRelay:
    """Relays TCP connections to ``target`` over a simulated distance.

    Args:
        target: Host (a numeric address) and port to relay to.
        latency: Round trip in seconds. May be changed at any time.
        host, port: Where to listen; port 0 takes any.

    Used as a context manager it runs in a thread of its own. All methods may be
    called from any thread.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        latency: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
        thread: LoopThread | None = None,
    ) -> None:
        self.target = target
        self.latency = latency
        self.host = host
        self.port = port
        self.sockets = Sockets()
        self.links: set[_Link] = set()
        #: Port the target sees to port of the client.
        self.ports: dict[int, int] = {}
        self.stalled = False
        self.blackhole = False
        self.opened_total = 0
        self.thread = thread or LoopThread("rtpool-relay")
        self._own_thread = thread is None
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> DelayRelay:
        if self._own_thread:
            self.thread.start()
        try:
            self.thread.call(self._listen)
        except BaseException:
            if self._own_thread:
                self.thread.stop()
            raise
        return self

    def _listen(self) -> None:
        self._listener = Listener(self.thread.loop, self.host, self.port, self.sockets, self._accepted)
        self.port = self._listener.port

    def stop(self) -> None:
        """Stop listening and drop every connection."""
        if not self.thread.running:
            return
        self.thread.call(self._shut)
        if self._own_thread:
            self.thread.stop()
            self.sockets.close()

    def _shut(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for task in self._tasks:
            task.cancel()
        self._drop(reset=False)

    def __enter__(self) -> DelayRelay:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accepted(self, sock: socket.socket) -> None:
        self.opened_total += 1
        link = _Link(self, sock)
        self.links.add(link)
        link.task = task = self.thread.loop.create_task(link.run())
        self._tasks.add(task)
        task.add_done_callback(self._run_done)

    def _run_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: a connection that failed to open is an everyday matter

    def forget(self, sock: socket.socket) -> None:
        self.sockets.discard(sock)

    # -- faults -----------------------------------------------------------------

    def cut(self) -> None:
        """Blackhole: bytes and FINs of either side vanish. Connections of now never recover."""
        self.thread.call(self._cut)

    def _cut(self) -> None:
        self.blackhole = True
        for link in self.links:
            link.cut = True

    def restore(self) -> None:
        """End :meth:`cut` for connections to come."""
        self.blackhole = False

    def reset(self) -> None:
        """Send RST to both ends of every connection."""
        self.thread.call(lambda: self._drop(reset=True))

    def _drop(self, *, reset: bool) -> None:
        for link in list(self.links):
            link.drop(reset=reset)

    def stall(self) -> None:
        """Hold everything back, without loss, until :meth:`resume`."""
        self.thread.call(self._stall)

    def _stall(self) -> None:
        self.stalled = True
        for link in self.links:
            link.client.pause()
            if link.target is not None:
                link.target.pause()

    def resume(self) -> None:
        """End :meth:`stall`."""
        self.thread.call(self._resume)

    def _resume(self) -> None:
        self.stalled = False
        for link in self.links:
            link.client.resume()
            if link.target is not None:
                link.target.resume()
