"""The server: sockets, the thread, who is let in, and what a test can see and do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import sys
import time
import urllib.parse
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from . import raw
from .admission import http_response, refusal
from .connections import ClosedConnection, ConnectionInfo, OpenConnection
from .endpoint import RealtimeEndpoint, RejectingEndpoint
from .faults import NO_FAULTS, Event, Faults, Mangler
from .net import Listener, LoopThread, Sockets, will_reset
from .relay import DelayRelay
from .response import Pace
from .session import Session
from .tls import Certificate
from .wire import EchoEndpoint, Endpoint, Request, Wire

__all__ = ["ClosedConnection", "ConnectionInfo", "RealtimeServer"]

#: Above the largest legal event: 15 MiB of audio in base64.
_MAX_MESSAGE = 24 * 1024 * 1024


class RealtimeServer:
    """An OpenAI Realtime server on this machine, in a thread of its own.

    Args:
        host, port: Where to listen; port 0 takes any and keeps it over restarts.
        tls: ``True`` makes a certificate (see :attr:`ca_file`), or give an ``SSLContext``.
        api_keys: Keys let in; ``None`` lets any non-empty key in.
        models: Models that exist; ``None``: any.
        latency: Simulated round trip in seconds, see :mod:`.relay`.
        relay: Put the relay in front even without latency, for its faults.
        ping_interval, ping_timeout: Keepalive, in seconds; ``None`` turns it off.
        session_seconds: Maximum duration of a session.
        max_sessions: More at a time are closed with 1008; ``None``: no limit.
        created_delay: Seconds from ``response.create`` to ``response.created``.
        response_delay: Seconds from there to the first output.
        delta_delay: Seconds between two deltas.
        audio_chunk_ms: Audio in one delta.
        realtime_pacing: Send audio no faster than it plays.
        rate_limits_delay: Seconds from ``response.done`` to ``rate_limits.updated``.
        transcription_delay: Seconds from the commit of audio to its transcription.
        seed: Of the random faults.
        echo: Echo on every path; without it only on ``/echo``.
        record: How many messages of each client to remember.
        faults: What goes wrong, see :class:`Faults`. May be replaced at any time.

    All methods may be called from any thread. A forked child has no server.

    Attributes:
        opened_total, max_open: WebSocket connections opened, and most at a time.
        accepted_total, max_sockets: The same of TCP connections, from accept to close.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: bool | ssl.SSLContext = False,
        api_keys: Iterable[str] | None = None,
        models: Iterable[str] | None = None,
        latency: float = 0.0,
        relay: bool = False,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        session_seconds: float = 3600.0,
        max_sessions: int | None = None,
        created_delay: float = 0.0,
        response_delay: float = 0.02,
        delta_delay: float = 0.0,
        audio_chunk_ms: int = 200,
        realtime_pacing: bool = False,
        rate_limits_delay: float = 0.043,
        transcription_delay: float = 0.05,
        seed: int = 0,
        echo: bool = False,
        record: int = 0,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self.host = host
        self.port = port
        self.api_keys = None if api_keys is None else frozenset(api_keys)
        self.models = None if models is None else frozenset(models)
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.session_seconds = session_seconds
        self.max_sessions = max_sessions
        self.max_message = _MAX_MESSAGE
        self.pace = Pace(
            created=created_delay,
            response=response_delay,
            delta=delta_delay,
            realtime=realtime_pacing,
            audio_chunk_ms=audio_chunk_ms,
            rate_limits=rate_limits_delay,
            transcription=transcription_delay,
        )
        self.seed = seed
        self.echo = echo
        self.record = record
        self.faults = faults
        self.opened_total = 0
        self.max_open = 0
        self.accepted_total = 0
        self.max_sockets = 0
        self.relay: DelayRelay | None = None
        self._latency = latency
        self._with_relay = relay or latency > 0.0
        self._tls: ssl.SSLContext | None = tls if isinstance(tls, ssl.SSLContext) else None
        self._certificate: Certificate | None = None
        if tls is True:
            self._certificate = Certificate(host)
            self._tls = self._certificate.context
            weakref.finalize(self, _remove, self._certificate, os.getpid())
        self._thread = LoopThread("rtpool-emulator")
        self._sockets = Sockets()
        self._listener: Listener | None = None
        self._indexes = itertools.count()
        self._script: deque[Faults] = deque()
        self._pinned: dict[int, Faults] = {}
        self._wires: dict[int, Wire] = {}
        self._mute: set[socket.socket] = set()
        self._open: dict[int, OpenConnection] = {}
        self._closed: list[ClosedConnection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    # -- addresses --------------------------------------------------------------------

    def _address(self, scheme: str, path: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}{'s' if self._tls else ''}://{host}:{self.port}{path}"

    @property
    def url(self) -> str:
        """The WebSocket URL of the Realtime endpoint, without ``?model=``."""
        return self._address("ws", "/v1/realtime")

    @property
    def base_url(self) -> str:
        """What to set ``OPENAI_BASE_URL`` to."""
        return self._address("http", "/v1")

    @property
    def echo_url(self) -> str:
        """The URL of a plain WebSocket endpoint that sends everything back."""
        return self._address("ws", "/echo")

    @property
    def ca_file(self) -> str | None:
        """PEM file of the authority to trust, when ``tls=True``."""
        return self._certificate.ca_file if self._certificate else None

    # -- life ---------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._thread.running

    def start(self) -> RealtimeServer:
        """Listen: on the port of before, if there was one."""
        if self.running:
            return self
        self._thread.start()
        self.loop = self._thread.loop
        try:
            if self._with_relay:
                inner = self._thread.call(self._listen, "127.0.0.1", 0)
                self.relay = DelayRelay(
                    ("127.0.0.1", inner),
                    latency=self._latency,
                    host=self.host,
                    port=self.port,
                    thread=self._thread,
                ).start()
                self.port = self.relay.port
            else:
                self.port = self._thread.call(self._listen, self.host, self.port)
        except BaseException:
            self._end(grace=0.0)
            raise
        return self

    def _listen(self, host: str, port: int) -> int:
        self._listener = Listener(self.loop, host, port, self._sockets, self._accepted)
        return self._listener.port

    def stop(self, grace: float = 0.25) -> None:
        """Close every connection with 1001, waiting ``grace`` seconds for the clients, and stop listening."""
        if self.running:
            self._end(grace + self._latency)

    def kill(self) -> None:
        """Die: stop listening and drop every connection without a close frame."""
        if self.running:
            self._end(grace=0.0)

    def _end(self, grace: float) -> None:
        try:
            self._thread.run(self._shut(grace), grace + 30.0)
        finally:
            self._thread.stop()
            if self.relay is not None:
                self.relay.sockets.close()
            self._sockets.close()
            self._wires.clear()
            self._count = 0

    async def _shut(self, grace: float) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if grace > 0.0:
            for wire in list(self._wires.values()):
                wire.close(1001, "server shutting down")
            deadline = self.loop.time() + grace
            while self._open_sockets() and self.loop.time() < deadline:
                await asyncio.sleep(0.005)
        if self.relay is not None:
            self.relay.stop()
        for task in list(self._tasks):
            task.cancel()
        for wire in list(self._wires.values()):
            wire.abort()
        for sock in list(self._mute):
            self._forget_socket(sock)
            sock.close()
        self._mute.clear()
        for _ in range(20):  # transports are closed a few rounds of the loop after they are told
            if len(self._sockets) == 0:
                break
            await asyncio.sleep(0)

    def _open_sockets(self) -> int:
        return sum(1 for wire in self._wires.values() if wire.made and not wire.lost)

    def __enter__(self) -> RealtimeServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what a test can see ---------------------------------------------------------------

    @property
    def connections(self) -> list[ConnectionInfo]:
        """The open connections, oldest first."""
        if not self.running:
            return []
        return self._thread.call(lambda: [entry.info(self.relay) for entry in self._open.values()])

    @property
    def open(self) -> int:
        """How many WebSocket connections are open."""
        return len(self._open)

    @property
    def closed(self) -> list[ClosedConnection]:
        """How each closed connection ended, in order."""
        return list(self._closed)

    @property
    def latency(self) -> float:
        """The simulated round trip. It can be changed where there is a relay."""
        return self._latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        if self.relay is None and seconds > 0.0:
            raise ValueError("start the server with relay=True to change its latency later")
        self._latency = seconds
        if self.relay is not None:
            self.relay.latency = seconds

    # -- what a test can do ------------------------------------------------------------------

    def script(self, *steps: Faults | None) -> None:
        """Give the next connections these faults, one each; ``faults`` holds again after them."""
        self._script.extend(step or NO_FAULTS for step in steps)

    def close_all(self, code: int = 1001, reason: str = "") -> None:
        """Close every connection with a close frame."""
        self._each(None, lambda entry: entry.wire.close(code, reason))

    def close(self, connection: int | ConnectionInfo, code: int = 1000, reason: str = "") -> None:
        """Close one connection with a close frame."""
        self._each(connection, lambda entry: entry.wire.close(code, reason))

    def expire(self, connection: int | ConnectionInfo | None = None) -> None:
        """Let sessions reach their maximum duration now: one, or all."""
        self._each(connection, OpenConnection.expire)

    def emit(self, event: Event, connection: int | ConnectionInfo | None = None) -> None:
        """Send an event nobody asked for, to one or all."""
        self._each(connection, lambda entry: entry.emit(event))

    def inject(self, kind: str, connection: int | ConnectionInfo | None = None, **options: Any) -> None:
        """Do something below messages now: ``truncate``, ``reset``, ``stall``, ``oversize``, ``bad_utf8``."""
        fault = raw.KINDS[kind]
        self._each(connection, lambda entry: fault(entry.wire, **options))

    def _each(self, which: int | ConnectionInfo | None, action: Callable[[OpenConnection], object]) -> None:
        wanted = which.id if isinstance(which, ConnectionInfo) else which

        def run() -> None:
            if wanted is not None and wanted not in self._open:
                raise KeyError(f"connection {wanted} is not open")
            for entry in list(self._open.values()) if wanted is None else [self._open[wanted]]:
                action(entry)

        self._thread.call(run)

    # -- accepting -----------------------------------------------------------------------------

    def _faults_of(self, index: int) -> Faults:
        pinned = self._pinned.get(index)
        if pinned is not None:
            return pinned
        faults = self.faults
        return faults if faults is NO_FAULTS or faults.hits(index) else NO_FAULTS

    def _accepted(self, sock: socket.socket) -> None:
        index = next(self._indexes)
        self.accepted_total += 1
        self._count += 1
        self.max_sockets = max(self.max_sockets, self._count)
        with contextlib.suppress(IndexError):
            self._pinned[index] = self._script.popleft()
        faults = self._faults_of(index)
        if faults.reset == "accept":
            will_reset(sock)
            self._pinned.pop(index, None)
            self._forget_socket(sock)
            sock.close()
        elif faults.mute == "accept":
            self._mute.add(sock)
        else:
            task = self.loop.create_task(self._connect(sock, index))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket, index: int) -> None:
        wire = self._wires[index] = Wire(self, sock, index)
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"ssl": self._tls, "ssl_handshake_timeout": 15.0}
            if sys.version_info >= (3, 11):
                # Nobody is owed half a minute for a close_notify.
                options["ssl_shutdown_timeout"] = 2.0
        try:
            await self.loop.connect_accepted_socket(lambda: wire, sock, **options)
        except (OSError, asyncio.CancelledError):
            # The transport closes the socket, but tells a wire only what became one.
            self.wire_lost(wire)

    def _forget_socket(self, sock: socket.socket) -> None:
        self._sockets.discard(sock)
        self._count -= 1

    # -- the host of wires ------------------------------------------------------------------------

    def answer(self, wire: Wire, request: Request) -> None:
        faults = self._faults_of(wire.index)
        if faults.mute == "request":
            return
        if faults.reset == "request":
            raw.reset(wire)
            return
        if faults.redirect is not None:
            wire.refuse(http_response(302, headers={"Location": faults.redirect}))
            return
        if faults.refuse is not None:
            wire.refuse(http_response(faults.refuse, faults.refuse_body, faults.refuse_headers))
            return
        split = urllib.parse.urlsplit(request.path)
        query = dict(urllib.parse.parse_qsl(split.query))
        endpoint: Endpoint
        if self.echo or split.path == "/echo":
            endpoint = EchoEndpoint(wire)
        elif split.path.rstrip("/").endswith("/realtime"):
            endpoint = self._admit(wire, request, query)
        else:
            wire.refuse(http_response(404, "no such endpoint\n"))
            return
        self._open[wire.index] = OpenConnection(wire, endpoint, split.path, query)
        cookie = [("Set-Cookie", faults.set_cookie)] if faults.set_cookie is not None else []
        wire.accept(endpoint, cookie, faults.trickle)
        if wire.endpoint is None:  # not a WebSocket upgrade after all
            self._open.pop(wire.index, None)
            return
        self.opened_total += 1
        self.max_open = max(self.max_open, len(self._open))

    def _admit(self, wire: Wire, request: Request, query: dict[str, str]) -> Endpoint:
        """Return a session, or the endpoint that says why not."""
        running = sum(1 for entry in self._open.values() if entry.realtime is not None)
        refused = refusal(
            request.headers,
            query,
            api_keys=self.api_keys,
            models=self.models,
            full=self.max_sessions is not None and running >= self.max_sessions,
        )
        if refused is not None:
            return RejectingEndpoint(wire, refused.problem, refused.code, refused.reason)
        session = Session(
            model=query.get("model"),
            expires_at=time.time() + self.session_seconds,
            kind="transcription" if query.get("intent") == "transcription" else "realtime",
            pace=self.pace,
        )
        index = wire.index
        return RealtimeEndpoint(
            wire,
            session,
            lambda: self._faults_of(index),
            Mangler(self.seed, index),
            self.session_seconds,
            self.record,
        )

    def wire_closing(self, wire: Wire) -> None:
        entry = self._open.pop(wire.index, None)
        if entry is None or wire.ended is None:
            return
        by, code, reason = wire.ended
        session_id = entry.realtime.session.id if entry.realtime else None
        self._closed.append(ClosedConnection(wire.index, session_id, code, reason, by, wire.frames_in))

    def wire_lost(self, wire: Wire) -> None:
        if self._wires.pop(wire.index, None) is not None:
            self._pinned.pop(wire.index, None)
            self._forget_socket(wire.sock)


def _remove(certificate: Certificate, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not take the file away from its parent
        certificate.remove()
