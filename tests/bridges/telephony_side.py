"""The telephony side of a call, as tests play it: a server whose route runs a bridge, and Twilio's end."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import websocket
import websockets.sync.server

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


class Twilio:
    """Twilio's end of one stream. Plays what it is sent in real time, if ``play``; answers marks."""

    def __init__(self, url: str, *, parameters: dict[str, str] | None = None, start: bool = True) -> None:
        self.ws = websocket.create_connection(url, timeout=10.0)
        self.sid = "MZ0123"
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
                    "callSid": "CA1",
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
                "stop": {"accountSid": "AC1", "callSid": "CA1"},
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

    def __enter__(self) -> Twilio:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
