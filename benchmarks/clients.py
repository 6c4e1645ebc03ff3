"""The WebSocket clients, all with ``send(text)``, ``recv()`` and ``close()``, used as they are meant."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable
from typing import Any

from rtpool_sync import RealtimePool

from .harness import OURS
from .servers import Server

__all__ = ["CLIENTS", "RAW", "Raw", "connect"]

RAW = "raw socket"
_contexts: dict[str, ssl.SSLContext] = {}


def context_for(server: Server) -> ssl.SSLContext | None:
    """One context per authority: making one costs more than a connection."""
    if server.ca_file is None:
        return None
    if server.ca_file not in _contexts:
        _contexts[server.ca_file] = ssl.create_default_context(cafile=server.ca_file)
    return _contexts[server.ca_file]


class Raw:
    """The floor: a blocking socket that knows how many bytes will come and writes frames built beforehand."""

    def __init__(self, server: Server) -> None:
        sock = socket.create_connection((server.host, server.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = context_for(server)
        self.sock = sock if context is None else context.wrap_socket(sock, server_hostname=server.host)
        self.sock.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.sock.recv(1)
        self._frames: dict[int, bytes] = {}
        self.expect(2)

    def expect(self, size: int) -> None:
        """From now on messages have ``size`` bytes."""
        self._view = memoryview(bytearray(size + (2 if size < 126 else 4 if size < 65536 else 10)))

    def send(self, text: str) -> None:
        # By its length alone: the text need not even be encoded. Commands are short and not kept.
        frame = self._frames.get(len(text))
        if frame is None:
            data = text.encode()
            size = len(data)
            length = bytes((128 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
            if size > 65535:
                length = b"\xff" + size.to_bytes(8, "big")
            frame = b"\x81" + length + bytes(4) + data
            if size > 125:
                self._frames[size] = frame
        self.sock.sendall(frame)

    def recv(self) -> memoryview:
        view, have = self._view, 0
        while have < len(view):
            have += self.sock.recv_into(view[have:])
        return view

    def close(self) -> None:
        self.sock.close()


class Ours:
    """A connection lent by a pool, used as an application does."""

    def __init__(self, server: Server) -> None:
        self._pool = RealtimePool(url=server.url, ca_file=server.ca_file, protocol="plain", max_connections=1)
        self.conn = self._pool.acquire()
        self.send = self.conn.send
        self.recv = self.conn.recv_text

    def close(self) -> None:
        self._pool.release(self.conn)
        self._pool.close()


class OursWithoutC(Ours):
    """Without the extra ``speed``: masked in Python."""

    def __init__(self, server: Server) -> None:
        from rtpool_sync.transport import frames

        frames.apply_mask = frames._mask_in_python
        super().__init__(server)


class OursTracked(Ours):
    """The Realtime protocol: every event decoded, followed for the reset, checked against the fence."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        from rtpool_sync.protocols.realtime import RealtimeProtocol

        # The cheap server sends no session.created, so the protocol is put in afterwards, in mid-session.
        follow = RealtimeProtocol().follow(session={}, reset_timeout=5.0)
        follow.prepare(0.0)
        follow.feed('{"type":"session.created","session":{"type":"realtime","id":"sess_1"}}', 0.0)
        follow.received({"type": "response.created", "response": {"id": "resp_of_before"}})
        follow.clean()
        follow.received({"type": "response.created", "response": {"id": "resp_1"}})
        self.member = self.conn._borrowed()[0]
        self.member.protocol = follow
        self.recv = self.conn.recv
        self._command = self.conn.send

    def expect(self, size: int) -> None:
        # Commands to the server and its answers are no events; what it pushes is.
        self.member.transparent = self.member.text_only = size < 200

    def close(self) -> None:
        self.expect(0)
        super().close()


class WebSocketClient:
    options: dict[str, Any] = {}

    def __init__(self, server: Server) -> None:
        import websocket

        sslopt = {"context": context_for(server)} if server.ca_file else {}
        self.ws = websocket.create_connection(server.url, sslopt=sslopt, **self.options)
        self.send, self.recv, self.close = self.ws.send, self.ws.recv, self.ws.close


class WebSocketClientUnchecked(WebSocketClient):
    """With UTF-8 validation, its most expensive part, switched off."""

    options = {"skip_utf8_validation": True}


class Websockets:
    def __init__(self, server: Server) -> None:
        from websockets.sync.client import connect

        self.ws = connect(server.url, ssl=context_for(server), compression=None, max_size=None)
        self.send, self.recv, self.close = self.ws.send, self.ws.recv, self.ws.close


class WebsocketsJson(Websockets):
    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.recv = lambda: json.loads(self.ws.recv())


class OpenAI:
    """openai-python's connection, messages undecoded."""

    def __init__(self, server: Server) -> None:
        from openai import OpenAI as Client

        client = Client(
            api_key="none", base_url=server.url.replace("ws", "http", 1).removesuffix("/realtime")
        )
        context = context_for(server)
        self.manager = client.realtime.connect(
            model="none", websocket_connection_options={"ssl": context} if context else {}
        )
        self.conn = self.manager.enter()
        raw: Any = self.conn._connection
        self.send: Callable[[str], Any] = raw.send
        self.recv: Callable[[], Any] = self.conn.recv_bytes

    def close(self) -> None:
        self.conn.close()


class OpenAITyped(OpenAI):
    """And with its typed events."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.recv = self.conn.recv

    def expect(self, size: int) -> None:
        self.recv = self.conn.recv if size >= 200 else self.conn.recv_bytes


class SimpleWebSocket:
    def __init__(self, server: Server) -> None:
        from simple_websocket import Client

        self.ws = Client(server.url, ssl_context=context_for(server))
        self.send, self.recv, self.close = self.ws.send, self.ws.receive, self.ws.close


class Asynchronous:
    """What the asyncio clients have in common: a loop of their own that is run until each call is done.

    For reference only; ``many`` lets them loop inside, as an asynchronous program would.
    """

    def __init__(self, server: Server) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.open(server))

    async def open(self, server: Server) -> None:
        raise NotImplementedError

    async def asend(self, text: str) -> None:
        raise NotImplementedError

    async def arecv(self) -> Any:
        raise NotImplementedError

    def send(self, text: str) -> None:
        self.loop.run_until_complete(self.asend(text))

    def recv(self) -> Any:
        return self.loop.run_until_complete(self.arecv())

    def many(self, count: int, send: str | None, receive: bool) -> None:
        async def loop() -> None:
            for _ in range(count):
                if send is not None:
                    await self.asend(send)
                if receive:
                    await self.arecv()

        self.loop.run_until_complete(loop())

    def close(self) -> None:
        pass  # the process ends soon


class Aiohttp(Asynchronous):
    async def open(self, server: Server) -> None:
        import aiohttp

        self.session = aiohttp.ClientSession()
        self.ws = await self.session.ws_connect(
            server.url, ssl=context_for(server) or True, max_msg_size=0, compress=0
        )

    async def asend(self, text: str) -> None:
        await self.ws.send_str(text)

    async def arecv(self) -> Any:
        return (await self.ws.receive()).data


class Picows(Asynchronous):
    async def open(self, server: Server) -> None:
        import picows

        received: asyncio.Queue[str] = asyncio.Queue()

        class Listener(picows.WSListener):
            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                received.put_nowait(frame.get_payload_as_utf8_text())

            def pause_writing(self) -> None:  # by default it logs a warning at each
                pass

            def resume_writing(self) -> None:
                pass

        self.received = received
        self.text = picows.WSMsgType.TEXT
        self.transport, _ = await picows.ws_connect(Listener, server.url, ssl_context=context_for(server))

    async def asend(self, text: str) -> None:
        self.transport.send(self.text, text.encode())
        await asyncio.sleep(0)

    async def arecv(self) -> Any:
        return await self.received.get()


CLIENTS: dict[str, Callable[[Server], Any]] = {
    OURS: Ours,
    RAW: Raw,
    "websocket-client": WebSocketClient,
    "websocket-client, UTF-8 unchecked": WebSocketClientUnchecked,
    "websockets.sync": Websockets,
    "openai, raw": OpenAI,
    "simple-websocket": SimpleWebSocket,
    "aiohttp": Aiohttp,
    "picows": Picows,
    f"{OURS}, masked in Python": OursWithoutC,
    f"{OURS}, events": OursTracked,
    "openai, typed events": OpenAITyped,
    "websockets.sync + json.loads": WebsocketsJson,
}


def connect(name: str, server: Server) -> Any:
    return CLIENTS[name](server)
