"""Call the application as VoiceAI Connect would: no telephone, no account. `python call.py --help`"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
import wave
from collections.abc import Callable
from importlib import resources
from typing import Any

import websocket

RATE = 24000
FRAME = RATE // 50 * 2  # bytes: 20 ms of 16-bit samples
SILENCE = bytes(FRAME)
#: Seconds to wait for an answer, and seconds of silence after which it is over.
PATIENCE, PAUSE = 20.0, 0.7


def read_wav(path: str) -> bytes:
    with wave.open(path) as wav:
        if (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) != (1, 2, RATE):
            raise SystemExit(f"{path}: a WAV of 24 kHz, mono, 16 bits is needed")
        return wav.readframes(wav.getnframes())


def write_wav(path: str, audio: bytes) -> None:
    with wave.open(path, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(RATE)
        wav.writeframes(audio)


class Call:
    """VoiceAI Connect's end of one call, in real time: the caller's audio goes out, what comes is played."""

    def __init__(self, url: str, token: str, caller: str) -> None:
        self.heard = bytearray()
        self.over = threading.Event()
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._id = str(uuid.uuid4())
        self._got: set[str] = set()  # kinds of messages
        self._answered_at = 0.0  # when audio last came
        self._before = 0.0  # the same, when the caller last said something
        self._played_until = 0.0
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._connect()
        formats = ["raw/lpcm16_24"]
        initiate = {"botName": "hotline", "caller": caller, "expectAudioMessages": True}
        self._send("session.initiate", supportedMediaFormats=formats, **initiate)
        self._wait_for("session.accepted")
        parameters = {"caller": caller, "callee": "+15550199"}
        self._activity("start", id=str(uuid.uuid4()), language="en-US", parameters=parameters)
        self._stream()

    def _connect(self) -> None:
        self._ws = websocket.create_connection(self._url, timeout=PATIENCE, header=self._headers)
        self._reader = threading.Thread(target=self._read, args=(self._ws,), daemon=True)
        self._reader.start()

    def _stream(self) -> None:
        self._send("userStream.start")
        self._wait_for("userStream.started")
        self._next = time.monotonic()

    def _wait_for(self, kind: str) -> None:
        end = time.monotonic() + PATIENCE
        while kind not in self._got:
            if self.over.is_set() or time.monotonic() > end:
                raise SystemExit(f"no {kind} came")
            time.sleep(0.005)
        self._got.discard(kind)

    def _send(self, kind: str, **fields: Any) -> None:
        with contextlib.suppress(OSError, websocket.WebSocketException):
            self._ws.send(json.dumps({"type": kind, "conversationId": self._id, **fields}))

    def _activity(self, name: str, **fields: Any) -> None:
        self._send("activities", activities=[{"type": "event", "name": name, **fields}])

    def _read(self, ws: websocket.WebSocket) -> None:
        with contextlib.suppress(OSError, websocket.WebSocketException):
            while text := ws.recv():
                message = json.loads(text)
                with self._lock:
                    self._understand(message, time.monotonic())
                self._got.add(message["type"])
        if ws is self._ws:
            self.over.set()

    def _understand(self, message: dict[str, Any], now: float) -> None:
        kind = message["type"]
        self._played_until = max(now, self._played_until)
        if kind == "playStream.chunk":
            audio = base64.b64decode(message["audioChunk"])
            self.heard += audio
            self._played_until += len(audio) / RATE / 2
            self._answered_at = now
        elif kind == "userStream.speech.started" and self._played_until > now:
            # What VoiceAI Connect stops playing for, if bargeIn is on.
            unplayed = int((self._played_until - now) * RATE) * 2
            del self.heard[max(0, len(self.heard) - unplayed) :]
            self._played_until = now
            self._before = self._answered_at
            print("  (it was interrupted)")
        elif kind == "session.error":
            print(f"  (session.error: {message.get('reason')})")
        elif kind == "activities":
            for activity in message["activities"]:
                print(f"  ({activity['name']} {activity.get('activityParams', '')})")
                if activity["name"] in ("hangup", "transfer"):
                    self._send("session.end", reasonCode="bot-disconnected", reason=activity["name"])

    def frame(self, audio: bytes = SILENCE) -> None:
        """20 ms of the call."""
        self._send("userStream.chunk", audioChunk=base64.b64encode(audio).decode())
        self._next += 0.02
        self.over.wait(max(0.0, self._next - time.monotonic()))

    def say(self, audio: bytes) -> None:
        self._before = self._answered_at
        for at in range(0, len(audio), FRAME):
            if self.over.is_set():
                return
            self.frame(audio[at : at + FRAME])

    def press(self, digit: str) -> None:
        self._before = self._answered_at
        self._activity("DTMF", value=digit)

    def listen(self, seconds: float | None = None) -> None:
        """Until the answer to what was said is over, or for so many seconds."""
        since = time.monotonic()
        while not self.over.is_set():
            self.frame()
            now = time.monotonic()
            if seconds is not None:
                if now - since >= seconds:
                    return
            elif self._answered_at > self._before and now - self._played_until > PAUSE:
                return
            elif now - max(since, self._played_until) > PATIENCE:
                raise SystemExit("no answer came")

    def reconnect(self) -> None:
        """The cable is cut, and the call goes on over another WebSocket."""
        broken, reader = self._ws, self._reader
        self._connect()
        broken.sock.shutdown(socket.SHUT_RDWR)
        reader.join(5.0)
        broken.shutdown()
        self._send("session.resume")
        self._wait_for("session.accepted")
        self._stream()

    def hang_up(self) -> None:
        if not self.over.is_set():
            self._send("session.end", reasonCode="client-disconnected", reason="Client Side")
            self.over.wait(5.0)
        self._ws.close(timeout=2)
        self._reader.join(5.0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


def main() -> int:
    port = os.environ.get("PORT", "5000")
    hello = str(resources.files("rtpool_sync").joinpath("data/hello.wav"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=f"ws://127.0.0.1:{port}/bot", help="the bot's URL (%(default)s)")
    parser.add_argument("--say", default=hello, metavar="WAV", help="what the caller says (%(default)s)")
    parser.add_argument("--keys", default="", help="keys pressed after that, one after another: 1, 9, 0")
    parser.add_argument("--interrupt", action="store_true", help="say it again into the answer")
    parser.add_argument("--break", dest="cut", action="store_true", help="break the connection, and resume")
    parser.add_argument("--out", default="reply.wav", metavar="WAV", help="what was heard (%(default)s)")
    parser.add_argument("--caller", default="+15550100", help="the caller's number (%(default)s)")
    arguments = parser.parse_args()
    if not set(arguments.keys) <= set("0123456789*#"):
        parser.error("keys are 0 to 9, * and #")
    speech = read_wav(arguments.say)

    # An application that asks for a token has it in its environment as well.
    token = os.environ.get("AUDIOCODES_TOKEN", "").split(",")[0].strip()
    try:
        call = Call(arguments.url, token, arguments.caller)
    except (OSError, websocket.WebSocketException) as error:
        message = f"no connection with {arguments.url}: {error}. Is `make audiocodes-flask` running?"
        raise SystemExit(message) from None

    def step(what: str, *actions: Callable[[], None]) -> None:
        if not call.over.is_set():
            print(f"{call.seconds:5.1f} s  {what}")
            for action in actions:
                action()

    try:
        step("the greeting", call.listen)
        step("speaking", lambda: call.say(speech))
        if arguments.interrupt:
            call.listen(1.5)  # it has begun to answer
            step("interrupting", lambda: call.say(speech))
        step("listening", call.listen)
        if arguments.cut:
            step("the connection breaks", call.reconnect)
            step("speaking again", lambda: call.say(speech), call.listen)
        for digit in arguments.keys:
            step(f"key {digit}", lambda digit=digit: call.press(digit), call.listen)
        print(f"{call.seconds:5.1f} s  {'it hung up' if call.over.is_set() else 'hanging up'}")
    finally:
        call.hang_up()
    write_wav(arguments.out, bytes(call.heard))
    print(f"heard {len(call.heard) / RATE / 2:.1f} s: {arguments.out}")
    return 0 if call.heard else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
