"""The telephony side of a call, as tests play it: a server whose route runs a bridge, and Twilio's end.

:class:`Twilio` does what it is told, step by step. :class:`Phone` is a call as it really is: it plays
what it is sent in real time, answers marks when it has come to them, and throws away when told to clear.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import simple_websocket
import websocket
import websockets.sync.server
from werkzeug.serving import WSGIRequestHandler, make_server

SILENCE = base64.b64encode(b"\xff" * 160).decode()


@contextlib.contextmanager
def serving(route: Callable[[Any], object], **options: Any) -> Iterator[str]:
    """Run ``route(ws)`` for every WebSocket that connects; yield the address."""
    server = websockets.sync.server.serve(route, "127.0.0.1", 0, compression=None, **options)
    thread = threading.Thread(target=server.serve_forever, name="telephony-server", daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
        thread.join(5.0)


@contextlib.contextmanager
def serving_wsgi(route: Callable[[Any], object]) -> Iterator[str]:
    """The same with simple-websocket in a WSGI server, as flask-sock has it."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        route(simple_websocket.Server.accept(environ))
        start_response("200 OK", [])
        return []  # what the server writes then goes nowhere: the WebSocket has had the socket

    class Handler(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    server.daemon_threads = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, name="telephony-server", daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)


class Twilio:
    """Twilio's end of one stream."""

    def __init__(
        self,
        url: str,
        *,
        parameters: dict[str, str] | None = None,
        start: bool = True,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.ws = websocket.create_connection(url, timeout=10.0, header=headers)
        self.sid = "MZ0123"
        self.call_sid = "CA1"
        self.sent = 0
        self.timestamp = 0
        self.received: list[dict[str, Any]] = []
        if start:
            self.send({"event": "connected", "protocol": "Call", "version": "1.0.0"})
            self.start(parameters)

    def send(self, message: Any) -> None:
        self.ws.send(message if isinstance(message, (str, bytes)) else json.dumps(message))

    def start(self, parameters: dict[str, str] | None = None) -> None:
        self.send(
            {
                "event": "start",
                "sequenceNumber": "1",
                "streamSid": self.sid,
                "start": {
                    "streamSid": self.sid,
                    "accountSid": "AC1",
                    "callSid": self.call_sid,
                    "tracks": ["inbound"],
                    "customParameters": parameters or {},
                    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                },
            }
        )

    def media(self, payload: str = SILENCE) -> None:
        self.sent += 1
        self.send(
            {
                "event": "media",
                "sequenceNumber": str(self.sent + 1),
                "streamSid": self.sid,
                "media": {
                    "track": "inbound",
                    "chunk": str(self.sent),
                    "timestamp": str(self.timestamp),
                    "payload": payload,
                },
            }
        )
        self.timestamp += 20

    def say(self, audio: bytes) -> None:
        """Send audio in frames of 20 ms, at once."""
        for at in range(0, len(audio), 160):
            self.media(base64.b64encode(audio[at : at + 160]).decode())

    def dtmf(self, digit: str) -> None:
        self.send(
            {
                "event": "dtmf",
                "streamSid": self.sid,
                "sequenceNumber": "9",
                "dtmf": {"track": "inbound_track", "digit": digit},
            }
        )

    def mark(self, name: str) -> None:
        self.send({"event": "mark", "sequenceNumber": "9", "streamSid": self.sid, "mark": {"name": name}})

    def stop(self) -> None:
        self.send(
            {
                "event": "stop",
                "sequenceNumber": "99",
                "streamSid": self.sid,
                "stop": {"accountSid": "AC1", "callSid": self.call_sid},
            }
        )

    def receive(self, timeout: float = 5.0) -> dict[str, Any]:
        self.ws.settimeout(max(0.001, timeout))
        message: dict[str, Any] = json.loads(self.ws.recv())
        self.received.append(message)
        return message

    def until(self, event: str, timeout: float = 5.0, answer: bool = True) -> dict[str, Any]:
        """Receive until a message of that kind; answer marks on the way, as if all had been played."""
        end = time.monotonic() + timeout
        while True:
            message = self.receive(max(0.0, end - time.monotonic()))
            if message["event"] == event:
                return message
            if answer and message["event"] == "mark":
                self.mark(message["mark"]["name"])

    def close(self) -> None:
        self.ws.close(timeout=2)
        self.ws.shutdown()

    def __enter__(self) -> Twilio:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Phone(Twilio):
    """A call that goes on by itself: a thread receives, plays and answers marks.

    Attributes:
        heard: The audio that was played, mu-law.
        order: Kinds of the messages received, in order.
        marks: Whether marks are answered.
        frozen: Whether it reads nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        parameters: dict[str, str] | None = None,
        marks: bool = True,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.heard = bytearray()
        self.order: list[str] = []
        self.marks = marks
        self.frozen = False  # it neither reads nor answers
        self.over = threading.Event()
        self.closed_with: int | None = None
        self._buffer: deque[bytes | str] = deque()  # audio, or the name of a mark
        self._played_until = time.monotonic()
        self._lock = threading.Lock()  # guards what is sent: the test's thread sends as well
        super().__init__(url, parameters=parameters, headers=headers)
        self._thread = threading.Thread(target=self._follow, name="phone", daemon=True)
        self._thread.start()

    def send(self, message: Any) -> None:
        with self._lock:
            super().send(message)

    def _follow(self) -> None:
        ws = self.ws
        try:
            while True:
                while self.frozen:
                    time.sleep(0.005)
                ws.settimeout(0.005)
                try:
                    opcode, data = ws.recv_data()
                except websocket.WebSocketTimeoutException:
                    self._play()
                    continue
                finally:
                    ws.settimeout(10.0)
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    self.closed_with = int.from_bytes(data[:2], "big") if data else 1005
                    return
                self._take(json.loads(data))
                self._play()
        except (OSError, websocket.WebSocketException):
            return
        finally:
            self.over.set()

    def _take(self, message: dict[str, Any]) -> None:
        event = message["event"]
        assert message["streamSid"] == self.sid
        self.received.append(message)
        self.order.append(event)
        if event == "media":
            audio = base64.b64decode(message["media"]["payload"], validate=True)
            if not self._buffer:
                self._played_until = time.monotonic()
            # In small pieces: what is played is what has been heard.
            self._buffer.extend(audio[at : at + 80] for at in range(0, len(audio), 80))
        elif event == "mark":
            self._buffer.append(message["mark"]["name"])
        elif event == "clear":
            names = [entry for entry in self._buffer if isinstance(entry, str)]
            self._buffer.clear()
            for name in names if self.marks else ():
                self.mark(name)
        else:
            raise AssertionError(f"Twilio does not know {event}")

    def _play(self) -> None:
        now = time.monotonic()
        while self._buffer:
            entry = self._buffer[0]
            if isinstance(entry, str):
                if self.marks:
                    self.mark(entry)
            elif self._played_until + len(entry) / 8000 > now:
                return
            else:
                self._played_until += len(entry) / 8000
                self.heard += entry
            self._buffer.popleft()

    def wait(self, condition: Callable[[], Any], what: str, timeout: float = 10.0) -> Any:
        """Wait until a condition holds; return what it returned."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < end, f"{what} not within {timeout} s: {self.order[-20:]}"
            time.sleep(0.005)
        return value

    @property
    def heard_ms(self) -> float:
        return len(self.heard) / 8

    def of(self, event: str) -> list[dict[str, Any]]:
        return [message for message in self.received if message["event"] == event]

    def cut(self) -> None:
        """The line is dead: no close frame, nothing."""
        sock = self.ws.sock
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.frozen = False
        if not self.over.is_set():
            with contextlib.suppress(OSError, websocket.WebSocketException), self._lock:
                self.ws.send_close(1000)
        if not self.over.wait(5.0):
            self.cut()
        self._thread.join(5.0)
        self.ws.shutdown()
