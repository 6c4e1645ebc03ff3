"""VoiceAI Connect's end of calls, as tests play it: strict about every rule of the Bot API.

It keeps a conversation over several WebSockets, plays what it is sent in real time, and notes each
breach of the protocol in :attr:`VoiceAi.breaches`, which has to be empty in the end.
"""

from __future__ import annotations

import base64
import json
import math
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import websockets.exceptions
import websockets.sync.client

#: Samples per second and bytes per sample.
FORMATS = {
    "raw/lpcm16_24": (24000, 2),
    "raw/lpcm16": (16000, 2),
    "raw/lpcm16_8": (8000, 2),
    "raw/mulaw": (8000, 1),
}
TO_BOT_ONLY = {"session.end", "session.initiate", "session.resume", "userStream.start", "userStream.chunk"}
PHASES = {"userStream.speech.started", "userStream.speech.stopped", "userStream.speech.committed"}
EVENTS = {
    "hangup": {"hangupReason"},
    "transfer": {"transferTarget", "handoverReason", "transferSipHeaders"},
    "sendDtmf": {"dtmfDigits"},
    "abortPrompts": set(),
    "config": set(),
    "sendMetaData": None,
}
monotonic = time.monotonic


def _ulaw() -> tuple[np.ndarray, np.ndarray]:
    codes = ~np.arange(256) & 0xFF
    magnitude = ((((codes & 0x0F) << 3) + 0x84) << ((codes & 0x70) >> 4)) - 0x84
    levels = np.where(codes & 0x80, -magnitude, magnitude).astype(np.int32)
    order = np.argsort(levels, kind="stable")
    return levels, order


_LEVELS, _ORDER = _ulaw()


def encode(samples: np.ndarray, name: str) -> bytes:
    """Samples of -1 to 1 in a media format."""
    linear = np.rint(samples * 32767).astype(np.int32)
    if FORMATS[name][1] == 2:
        return linear.astype("<i2").tobytes()
    ordered = _LEVELS[_ORDER]
    at = np.clip(np.searchsorted(ordered, linear), 1, 255)
    nearer = np.where(linear - ordered[at - 1] < ordered[at] - linear, at - 1, at)
    return _ORDER[nearer].astype(np.uint8).tobytes()


def decode(data: bytes, name: str) -> np.ndarray:
    if FORMATS[name][1] == 2:
        return np.frombuffer(data, "<i2") / 32767
    return _LEVELS[np.frombuffer(data, np.uint8)] / 32767


def tone(hertz: float, milliseconds: int, name: str, level: float = 0.3) -> bytes:
    rate = FORMATS[name][0]
    count = rate * milliseconds // 1000
    return encode(level * np.sin(2 * np.pi * hertz * np.arange(count) / rate), name)


def silence(milliseconds: int, name: str) -> bytes:
    rate, width = FORMATS[name]
    return (b"\xff" if width == 1 else b"\0\0") * (rate * milliseconds // 1000)


def purity(audio: np.ndarray, hertz: float, rate: int) -> tuple[float, float]:
    """Signal to noise in dB of audio that should be that tone, and its level."""
    at = 2 * np.pi * hertz * np.arange(len(audio)) / rate
    basis = np.stack([np.sin(at), np.cos(at)], 1)
    found, *_ = np.linalg.lstsq(basis, audio, rcond=None)
    rest = audio - basis @ found
    power = max(float(np.mean(rest**2)), 1e-30)
    return 10 * math.log10(max(float(np.mean((basis @ found) ** 2)), 1e-30) / power), float(np.hypot(*found))


def pitch(audio: np.ndarray, rate: int) -> float:
    """The loudest frequency, of the loud part."""
    loud = np.flatnonzero(np.abs(audio) > 0.05)
    if len(loud) < rate // 50:
        return 0.0
    part = audio[loud[0] : loud[-1] + 1]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 18))
    return float(np.argmax(spectrum)) * rate / (1 << 18)


class Play:
    """One play stream."""

    def __init__(self, stream_id: str, name: str) -> None:
        self.id = stream_id
        self.format = name
        self.audio = b""
        self.stopped = False

    @property
    def ms(self) -> float:
        rate, width = FORMATS[self.format]
        return len(self.audio) * 1000 / (rate * width)


class VoiceAi:
    """One call.

    Args:
        url: The bot's.
        token: Sent as the bearer token, if given.
        formats: ``supportedMediaFormats``.
        initiate: Begin a session, and wait until it was accepted.
        start: Send the activity ``start`` after that; a mapping: with these parameters.
        stream: And start the caller's stream.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        formats: tuple[str, ...] = tuple(FORMATS),
        initiate: bool = True,
        start: bool | dict[str, Any] = True,
        stream: bool = True,
        **more: Any,
    ) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.id = str(uuid.uuid4())
        self.formats = formats
        self.breaches: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self.plays: list[Play] = []
        self.format = ""
        self.most_ahead = 0.0  # seconds of audio that waited here at most
        self.longest_ms = 0.0  # of a chunk
        self.closed = False
        self.ended = False
        self.wants_more = True  # answer hangup with session.end
        self._lenient = False  # just after a resume
        self._open: Play | None = None
        self._initiated = self._resuming = self._accepted = False
        self._asked: list[str] = []  # userStream answers that are due
        self._streaming = self._speaking = False
        self._until = 0.0  # when everything will have been played
        self._changed = threading.Condition()
        self._connect()
        try:
            if initiate:
                self.initiate(**more)
                self.until(lambda: self._accepted or self.closed, "session.accepted")
                if start and not self.closed:
                    self.begin(start if isinstance(start, dict) else {"callee": "+200", "caller": "+100"})
                if stream and not self.closed:
                    self.stream()
        except BaseException:
            self.cut()
            raise

    def _connect(self) -> None:
        connecting = websockets.sync.client.connect(
            self.url, additional_headers=self.headers, compression=None, close_timeout=1.0, ping_interval=None
        )
        self.ws = connecting.__enter__()  # newer versions want a `with`, which a method cannot have
        self.closed = False
        self._reader = threading.Thread(target=self._read, args=(self.ws,), name="voice-ai", daemon=True)
        self._reader.start()

    # -- to the bot

    def send(self, kind: str, **fields: Any) -> None:
        self.raw(json.dumps({"type": kind, "conversationId": self.id, **fields}))

    def raw(self, message: str | bytes) -> None:
        self.ws.send(message)

    def initiate(self, **more: Any) -> None:
        self._initiated = True
        fields = {"botName": "bot", "caller": "+100", "expectAudioMessages": True, **more}
        self.send("session.initiate", supportedMediaFormats=list(self.formats), **fields)

    def begin(self, parameters: dict[str, Any]) -> None:
        self.activity("start", id="1", language="en-US", parameters=parameters)

    def activity(self, name: str, **fields: Any) -> None:
        self.send("activities", activities=[{"type": "event", "name": name, **fields}])

    def stream(self) -> None:
        self._asked.append("userStream.started")
        self.send("userStream.start")
        self.until(lambda: self._streaming or self.closed, "userStream.started")

    def stop_stream(self) -> None:
        self._asked.append("userStream.stopped")
        self.send("userStream.stop")
        self.until(lambda: not self._streaming or self.closed, "userStream.stopped")

    def chunk(self, audio: bytes) -> None:
        self.send("userStream.chunk", audioChunk=base64.b64encode(audio).decode())

    def say(self, audio: bytes, *, chunk_ms: int = 20, pace: float = 0.0) -> None:
        """Send audio in chunks; ``pace`` times real time, 0: at once."""
        rate, width = FORMATS[self.format]
        size = rate * chunk_ms // 1000 * width
        began = monotonic()
        for number, at in enumerate(range(0, len(audio), size), 1):
            self.chunk(audio[at : at + size])
            if pace:
                time.sleep(max(0.0, began + number * chunk_ms / 1000 / pace - monotonic()))

    def speak(self, hertz: float = 440.0, milliseconds: int = 400, **options: Any) -> None:
        """A turn: a tone, and the silence that ends it."""
        self.say(tone(hertz, milliseconds, self.format) + silence(700, self.format), **options)

    def end(self, code: str = "client-disconnected", reason: str = "Client Side") -> None:
        self.ended = True
        self.send("session.end", reasonCode=code, reason=reason)

    def cut(self) -> None:
        """The cable, not a closing handshake."""
        import socket

        try:
            self.ws.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._reader.join(5.0)

    def resume(self) -> bool:
        """Connect again and resume the conversation; tell whether that was accepted."""
        with self._changed:
            self._accepted, self._resuming, self._lenient = False, True, True
        self._connect()
        self.send("session.resume")
        self.until(lambda: not self._resuming or self.closed, "an answer to session.resume")
        return self._accepted

    def close(self) -> None:
        self.ws.close()
        self._reader.join(5.0)

    # -- from the bot

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 10.0) -> Any:
        """Wait for a condition, which is looked at whenever something came."""
        end = monotonic() + timeout
        with self._changed:
            while not (found := condition()):
                left = end - monotonic()
                if left <= 0:
                    kinds = [message["type"] for message in self.messages]
                    raise AssertionError(f"{what}: not within {timeout} s; {kinds[-20:]} {self.breaches}")
                self._changed.wait(min(left, 0.05))
        return found

    def until_closed(self, timeout: float = 10.0) -> None:
        self.until(lambda: self.closed, "closing", timeout)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in list(self.messages) if message["type"] == kind]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [
            activity
            for message in self.of("activities")
            for activity in message["activities"]
            if activity.get("name") == name
        ]

    def heard(self) -> np.ndarray:
        """All audio, as samples."""
        return decode(b"".join(play.audio for play in self.plays), self.format)

    def heard_ms(self) -> float:
        return sum(play.ms for play in self.plays)

    def played_ms(self) -> float:
        """What has been played by now, had VoiceAI Connect not stopped."""
        return self.heard_ms() - max(0.0, self._until - monotonic()) * 1000

    def _read(self, ws: Any) -> None:
        try:
            for text in ws:
                with self._changed:
                    self._got(text)
                    self._changed.notify_all()
        except (websockets.exceptions.ConnectionClosed, OSError):
            pass
        finally:
            with self._changed:
                if ws is self.ws:
                    self.closed = True
                self._changed.notify_all()

    def _breach(self, what: str) -> None:
        self.breaches.append(what)

    def _got(self, text: str | bytes) -> None:
        try:
            message = json.loads(text)
            kind = message["type"]
        except (ValueError, TypeError, KeyError):
            return self._breach(f"not a message: {text!r:.80}")
        self.messages.append(message)
        if not isinstance(text, str):
            self._breach("a binary message")
        if any(value is None for value in message.values()):
            self._breach(f"null in {message}")
        if kind not in ("session.accepted", "session.error", "connection.validated") and not self._accepted:
            self._breach(f"{kind} before session.accepted")
        handler = getattr(self, "_on_" + kind.replace(".", "_").lower(), None)
        if handler is not None:
            handler(message)
        elif kind in PHASES:
            self._on_phase(kind.rsplit(".", 1)[1])
        else:
            self._breach(f"unknown message {kind}")

    def _on_connection_validated(self, message: dict[str, Any]) -> None:
        if message.get("success") is not True:
            self._breach(f"{message}")

    def _on_session_accepted(self, message: dict[str, Any]) -> None:
        if self._resuming:
            self._resuming = False
        elif self._accepted or not self._initiated:
            self._breach("session.accepted that nobody asked for")
        elif message.get("mediaFormat") not in self.formats:
            self._breach(f"session.accepted with {message.get('mediaFormat')}")
        else:
            self.format = message["mediaFormat"]
        self._accepted = True

    def _on_session_error(self, message: dict[str, Any]) -> None:
        self._resuming = False
        if not isinstance(message.get("reason"), str) or not message["reason"]:
            self._breach("session.error without a reason")

    def _on_userstream_started(self, message: dict[str, Any]) -> None:
        self._answered("userStream.started", True)

    def _on_userstream_stopped(self, message: dict[str, Any]) -> None:
        self._answered("userStream.stopped", False)

    def _answered(self, kind: str, streaming: bool) -> None:
        if not self._asked or self._asked.pop(0) != kind:
            self._breach(f"{kind} that nobody asked for")
        self._streaming = streaming

    def _on_phase(self, phase: str) -> None:
        if phase == "committed":
            return
        if (phase == "started") == self._speaking:
            self._breach(f"speech.{phase} twice")
        self._speaking = phase == "started"

    def _on_userstream_speech_hypothesis(self, message: dict[str, Any]) -> None:
        self._alternatives(message, False)

    def _on_userstream_speech_recognition(self, message: dict[str, Any]) -> None:
        self._alternatives(message, True)

    def _alternatives(self, message: dict[str, Any], confident: bool) -> None:
        for one in message.get("alternatives") or [{}]:
            confidence = one.get("confidence")
            if not isinstance(one.get("text"), str) or not one["text"]:
                self._breach(f"no text in {message}")
            if confident != isinstance(confidence, (int, float)):
                self._breach(f"confidence {confidence!r} in {message['type']}")

    def _on_playstream_start(self, message: dict[str, Any]) -> None:
        stream_id, name = message.get("streamId"), message.get("mediaFormat")
        if self._open is not None:
            self._breach(f"playStream.start of {stream_id} while {self._open.id} is open")
        if not isinstance(stream_id, str) or any(play.id == stream_id for play in self.plays):
            self._breach(f"streamId {stream_id!r} is not a new string")
        if name not in self.formats:
            self._breach(f"playStream.start with {name}")
        if self.events("hangup"):
            self._breach("a play stream after the hangup")
        self._open = Play(str(stream_id), name if name in self.formats else "raw/lpcm16")
        self.plays.append(self._open)
        self._lenient = False

    def _on_playstream_chunk(self, message: dict[str, Any]) -> None:
        play = self._open
        if play is None or message.get("streamId") != play.id:
            return self._breach(f"playStream.chunk of {message.get('streamId')!r}, which is not open")
        try:
            audio = base64.b64decode(message["audioChunk"], validate=True)
        except (KeyError, ValueError, TypeError):
            return self._breach("playStream.chunk without base64")
        rate, width = FORMATS[play.format]
        if not audio or len(audio) % width:
            self._breach(f"a chunk of {len(audio)} bytes")
        play.audio += audio
        seconds = len(audio) / (rate * width)
        now = monotonic()
        self._until = max(now, self._until) + seconds
        self.most_ahead = max(self.most_ahead, self._until - now)
        self.longest_ms = max(self.longest_ms, seconds * 1000)
        return None

    def _on_playstream_stop(self, message: dict[str, Any]) -> None:
        play = self._open
        if play is None or message.get("streamId") != play.id:
            if not self._lenient:
                self._breach(f"playStream.stop of {message.get('streamId')!r}, which is not open")
            return
        play.stopped = True
        self._open = None

    def _on_activities(self, message: dict[str, Any]) -> None:
        activities = message.get("activities")
        if not isinstance(activities, list) or not activities:
            return self._breach("activities without activities")
        for activity in activities:
            name, given = activity.get("name"), activity.get("activityParams", {})
            if activity.get("type") != "event" or name not in EVENTS:
                self._breach(f"unknown activity {activity}")
                continue
            allowed = EVENTS[name]
            if allowed is not None and not set(given) <= allowed:
                self._breach(f"{name} with {sorted(given)}")
            if name == "transfer" and not given.get("transferTarget"):
                self._breach("transfer to nowhere")
            if name == "sendDtmf" and not 1 <= len(given.get("dtmfDigits", "")) <= 20:
                self._breach(f"sendDtmf with {given}")
            if name in ("hangup", "transfer") and self.wants_more and not self.ended:
                self.ended = True
                code = "bot-disconnected" if name == "hangup" else "transferred"
                try:
                    self.send("session.end", reasonCode=code, reason=name)
                except (websockets.exceptions.ConnectionClosed, OSError):
                    pass
        return None

    def __enter__(self) -> VoiceAi:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close()
        if kind is None:
            assert self.breaches == []
