"""Fifty telephones in one process, and little of a core: one thread, raw frames, little parsed.

Each sends a frame of 20 ms every 20 ms, as Twilio or VoiceAI Connect does, answers marks when
it has played what was before them, and hangs up when it has said and heard everything. The audio of
a frame begins with a stamp in digits, which is base64 too: when it was sent, and its number.
"""

from __future__ import annotations

import base64
import heapq
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["FRAME", "STAMP", "Arrivals", "setup", "stamp", "summary", "talk"]

#: Seconds of a frame.
FRAME = 0.02
#: Digits of a stamp: 14 for microseconds of ``time.monotonic``, which all processes share, 6 for a number.
STAMP = 20
PATIENCE = 10.0
monotonic = time.monotonic


def stamp(number: int) -> str:
    return f"{int(monotonic() * 1e6):014d}{number:06d}"


class Arrivals:
    """What arrived of one direction: how long it took, and whether all of it came in order."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.wrong = 0  # frames that were not the next one

    def add(self, stamped: bytes, now: float) -> None:
        if int(stamped[14:STAMP]) != len(self.delays):
            self.wrong += 1
        self.delays.append(now - int(stamped[:14]) / 1e6)


def summary(arrivals: Sequence[Arrivals]) -> dict[str, float]:
    """How many arrived, how many of them out of order, and how many milliseconds they took."""
    delays = sorted(delay * 1000 for heard in arrivals for delay in heard.delays)
    if not delays:
        raise RuntimeError("nothing arrived")
    return {
        "frames": len(delays),
        "wrong": sum(heard.wrong for heard in arrivals),
        "p50": delays[len(delays) // 2],
        "p99": delays[int(len(delays) * 0.99)],
        "max": delays[-1],
    }


class Phone:
    """One call. Everything is done by the loop of :func:`talk`."""

    vendor = ""
    size = 0  # bytes of audio in a frame

    def __init__(self, address: tuple[str, int], number: int, frames: int) -> None:
        self.number = number
        self.frames = frames
        self.said = 0
        self.heard = Arrivals()
        self.rest = base64.b64encode(b"\xff" * self.size).decode()[STAMP:]
        self.stopped = self.closed = False
        self._buffer = b""
        self.played_until = 0.0
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(number.to_bytes(16, "big")).decode()
        self.sock.sendall(
            f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            more = self.sock.recv(4096)
            if not more:
                raise RuntimeError(f"call {number} was refused: {self._buffer!r:.200}")
            self._buffer += more
        self._buffer = self._buffer.partition(b"\r\n\r\n")[2]
        self.sock.setblocking(False)

    def send(self, text: str, first: int = 0x81) -> None:
        data = text.encode()
        size = len(data)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        # A mask of zeros is a mask; a line that is never full takes a frame as a whole.
        frame = bytes((first,)) + length + b"\0\0\0\0" + data
        try:
            if self.sock.send(frame) != len(frame):
                raise RuntimeError(f"call {self.number}: the line is full")
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def speak(self) -> None:
        """Say the next frame."""
        self.say(stamp(self.said) + self.rest)
        self.said += 1
        self.stop_if_done()

    def stop_if_done(self) -> None:
        if not self.stopped and self.said >= self.frames <= len(self.heard.delays):
            self.stopped = True
            self.stop()

    def readable(self, later: Callable[[float, str], None]) -> None:
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = monotonic()
        if not data:
            self.closed = True
            return
        data = self._buffer + data
        at = 0
        while len(data) - at >= 2:
            first, size, start = data[at], data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[start : start + 2], "big"), start + 2
            elif size == 127:
                size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
            if len(data) < start + size:
                break
            at = start + size
            if first == 0x81:
                self.take(data[start:at], now, later)
            elif first == 0x88:
                self.send("", 0x88)
            elif first == 0x89:
                self.send(data[start:at].decode(), 0x8A)
        self._buffer = data[at:]

    def play(self, payload: bytes, now: float) -> None:
        self.heard.add(payload[:STAMP], now)
        self.played_until = max(now, self.played_until) + FRAME
        self.stop_if_done()

    # -- a vendor's own

    def begin(self) -> None:
        raise NotImplementedError

    def say(self, payload: str) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def take(self, text: bytes, now: float, later: Callable[[float, str], None]) -> None:
        raise NotImplementedError


class TwilioPhone(Phone):
    vendor = "twilio"
    size = 160

    def begin(self) -> None:
        self.sid = f"MZ{self.number:032d}"
        self.send('{"event":"connected","protocol":"Call","version":"1.0.0"}')
        start = {
            "streamSid": self.sid,
            "accountSid": "AC1",
            "callSid": f"CA{self.number}",
            "tracks": ["inbound"],
            "customParameters": {},
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        }
        self.send(
            json.dumps({"event": "start", "sequenceNumber": "1", "streamSid": self.sid, "start": start})
        )

    def say(self, payload: str) -> None:
        chunk = self.said + 1
        self.send(
            f'{{"event":"media","sequenceNumber":"{chunk + 1}","media":{{"track":"inbound","chunk":"{chunk}",'
            f'"timestamp":"{self.said * 20}","payload":"{payload}"}},"streamSid":"{self.sid}"}}'
        )

    def stop(self) -> None:
        self.send(
            f'{{"event":"stop","sequenceNumber":"0","streamSid":"{self.sid}",'
            f'"stop":{{"accountSid":"AC1","callSid":"CA{self.number}"}}}}'
        )

    def take(self, text: bytes, now: float, later: Callable[[float, str], None]) -> None:
        at = text.find(b'"payload":"')
        if at > 0:
            self.play(text[at + 11 : at + 11 + STAMP], now)
            return
        message = json.loads(text)
        if message["event"] == "mark":
            del message["streamSid"]
            later(self.played_until, json.dumps({**message, "sequenceNumber": "0", "streamSid": self.sid}))


class VoiceAiPhone(Phone):
    """VoiceAI Connect, in 24 kHz."""

    vendor = "audiocodes"
    size = 960

    def begin(self) -> None:
        self.id = f"conversation-{self.number}"
        self.accepted = False
        initiate = {
            "type": "session.initiate",
            "conversationId": self.id,
            "botName": "bot",
            "caller": "+100",
            "expectAudioMessages": True,
            "supportedMediaFormats": ["raw/lpcm16_24"],
        }
        start = {"type": "event", "name": "start", "id": "1", "parameters": {"callee": "+200"}}
        self.send(json.dumps(initiate))
        self.send(json.dumps({"type": "activities", "conversationId": self.id, "activities": [start]}))
        self.send(json.dumps({"type": "userStream.start", "conversationId": self.id}))

    def say(self, payload: str) -> None:
        self.send(f'{{"type":"userStream.chunk","conversationId":"{self.id}","audioChunk":"{payload}"}}')

    def stop(self) -> None:
        self.send(
            f'{{"type":"session.end","conversationId":"{self.id}","reasonCode":"client-disconnected",'
            f'"reason":"Client Side"}}'
        )

    def take(self, text: bytes, now: float, later: Callable[[float, str], None]) -> None:
        at = text.find(b'"audioChunk":"')
        if at > 0:
            self.play(text[at + 14 : at + 14 + STAMP], now)


_kinds: dict[str, type[Phone]] = {kind.vendor: kind for kind in (TwilioPhone, VoiceAiPhone)}
_address: tuple[str, int] = ("", 0)
_kind: type[Phone] = Phone


def setup(address: list[Any], vendor: str, cores: list[int] | None = None) -> None:
    global _address, _kind
    if cores:
        os.sched_setaffinity(0, cores)
    _address, _kind = (address[0], address[1]), _kinds[vendor]


def talk(calls: int, seconds: float, spread: float) -> dict[str, Any]:
    """Make all the calls; return what arrived of what the model said.

    Args:
        seconds: Of each call.
        spread: Seconds over which they begin.
    """
    frames = round(seconds / FRAME)
    began = monotonic()
    phones: dict[int, Phone] = {}
    # Due times, so that one is one's own: (when, counter, phone, what to send; None: the next frame).
    due: list[tuple[float, int, Phone | None, str | None]] = []
    for number in range(calls):
        heapq.heappush(due, (began + spread * number / calls, number, None, None))
    counter = calls
    poll = select.epoll()
    made: list[Phone] = []
    deadline = began + spread + seconds * 1.5 + PATIENCE
    try:
        while len(made) < calls or phones:
            now = monotonic()
            if now > deadline:
                raise RuntimeError(f"{len(phones)} calls are not over: {_states(phones.values())}")
            while due and due[0][0] <= now:
                at, number, phone, text = heapq.heappop(due)
                counter += 1
                if phone is None:
                    phone = _kind(_address, number, frames)
                    made.append(phone)
                    phones[phone.sock.fileno()] = phone
                    poll.register(phone.sock, select.EPOLLIN)
                    phone.begin()
                    # Not all in the same moment of a frame, and not in a pattern of the loop's own.
                    heapq.heappush(due, (at + FRAME, counter, phone, None))
                elif text is not None:
                    if not phone.closed:
                        phone.send(text)
                elif phone.said < frames and not phone.closed:
                    phone.speak()
                    heapq.heappush(due, (at + FRAME, counter, phone, None))
            wait = due[0][0] - monotonic() if due else 0.1
            for descriptor, _ in poll.poll(max(0.0, min(wait, 0.1))):
                phone = phones[descriptor]

                def later(at: float, text: str, phone: Phone = phone) -> None:
                    nonlocal counter
                    counter += 1
                    heapq.heappush(due, (at, counter, phone, text))

                phone.readable(later)
                if phone.closed:
                    poll.unregister(descriptor)
                    del phones[descriptor]
                    phone.sock.close()
    finally:
        poll.close()
        for phone in made:
            phone.sock.close()
    cut = sum(not phone.stopped for phone in made)
    if cut:
        raise RuntimeError(f"{cut} of {calls} calls were ended by the other side")
    return {"said": sum(phone.said for phone in made), "heard": summary([phone.heard for phone in made])}


def _states(phones: Iterable[Phone]) -> str:
    return ", ".join(f"{p.number}: said {p.said}, heard {len(p.heard.delays)}" for p in phones)
