"""Call the application as Twilio would: no telephone, no account. `python call.py --help`"""

from __future__ import annotations

import argparse
import base64
import bisect
import contextlib
import hashlib
import hmac
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import wave
from array import array
from importlib import resources
from xml.etree import ElementTree as ET

import websocket

RATE = 8000
FRAME = 160  # bytes: 20 ms of mu-law
SILENCE = b"\xff" * FRAME
#: Seconds to wait for an answer, and seconds of silence after which it is over.
PATIENCE, PAUSE = 20.0, 0.7


def ulaw_sample(code: int) -> int:
    code = ~code & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << ((code & 0x70) >> 4)) - 0x84
    return -magnitude if code & 0x80 else magnitude


SAMPLES = [ulaw_sample(code) for code in range(256)]
LEVELS = sorted((sample, code) for code, sample in enumerate(SAMPLES))
STARTS = [level for level, _ in LEVELS]


def ulaw(samples: array[int]) -> bytes:
    """The next of the 256 levels, for each sample."""
    return bytes(LEVELS[min(255, bisect.bisect_left(STARTS, sample))][1] for sample in samples)


def read_wav(path: str) -> bytes:
    """Mu-law of a WAV of 8, 16, 24 or 48 kHz, mono, 16 bits."""
    with wave.open(path) as wav:
        step = wav.getframerate() // RATE
        if (wav.getnchannels(), wav.getsampwidth(), step * RATE) != (1, 2, wav.getframerate()):
            raise SystemExit(f"{path}: a WAV of 8, 16, 24 or 48 kHz, mono, 16 bits is needed")
        samples = array("h", wav.readframes(wav.getnframes()))
    # The mean of neighbours is filter enough to try things with.
    means = (sum(samples[at : at + step]) // step for at in range(0, len(samples) - step + 1, step))
    return ulaw(array("h", means))


def write_wav(path: str, audio: bytes) -> None:
    with wave.open(path, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(RATE)
        wav.writeframes(array("h", (SAMPLES[code] for code in audio)).tobytes())


class Call:
    """Twilio's end of one call, in real time: the caller's frames go out, what comes is played and marked."""

    def __init__(self, url: str, call_sid: str, parameters: dict[str, str], headers: dict[str, str]) -> None:
        self.heard = bytearray()
        self.over = threading.Event()
        self._answered_at = 0.0  # when audio last came
        self._before = 0.0  # the same, when the caller last said something
        self._sid = "MZ" + uuid.uuid4().hex
        self._chunk = 0
        self._played_until = 0.0
        self._marks: list[tuple[float, str]] = []
        self._lock = threading.Lock()
        self._ws = websocket.create_connection(url, timeout=PATIENCE, header=headers)
        self._send({"event": "connected", "protocol": "Call", "version": "1.0.0"})
        start = {
            "streamSid": self._sid,
            "accountSid": "AC" + uuid.uuid4().hex,
            "callSid": call_sid,
            "tracks": ["inbound"],
            "customParameters": parameters,
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": RATE, "channels": 1},
        }
        self._send({"event": "start", "sequenceNumber": "1", "streamSid": self._sid, "start": start})
        self._began = self._next = time.monotonic()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _send(self, message: dict[str, object]) -> None:
        try:
            self._ws.send(json.dumps(message))
        except (OSError, websocket.WebSocketException):
            self.over.set()

    def _read(self) -> None:
        with contextlib.suppress(OSError, websocket.WebSocketException):
            while text := self._ws.recv():
                message = json.loads(text)
                with self._lock:
                    now = time.monotonic()
                    self._played_until = max(now, self._played_until)
                    if message["event"] == "media":
                        audio = base64.b64decode(message["media"]["payload"])
                        self.heard += audio
                        self._played_until += len(audio) / RATE
                        self._answered_at = now
                    elif message["event"] == "mark":
                        self._marks.append((self._played_until, message["mark"]["name"]))
                    elif message["event"] == "clear":
                        unplayed = int((self._played_until - now) * RATE)
                        del self.heard[max(0, len(self.heard) - unplayed) :]
                        self._played_until = now
                        self._before = self._answered_at
                        self._marks = [(now, name) for _, name in self._marks]
                        print("  (it was interrupted)")
        self.over.set()

    def frame(self, audio: bytes = SILENCE) -> None:
        """20 ms of the call: send a frame, and the marks that were reached meanwhile."""
        self._chunk += 1
        media = {
            "track": "inbound",
            "chunk": str(self._chunk),
            "timestamp": str((self._chunk - 1) * 20),
            "payload": base64.b64encode(audio).decode(),
        }
        self._send({"event": "media", "sequenceNumber": "2", "streamSid": self._sid, "media": media})
        with self._lock:
            now = time.monotonic()
            reached = [name for due, name in self._marks if due <= now]
            self._marks = [(due, name) for due, name in self._marks if due > now]
        for name in reached:
            self._send(
                {"event": "mark", "sequenceNumber": "2", "streamSid": self._sid, "mark": {"name": name}}
            )
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
        dtmf = {"track": "inbound_track", "digit": digit}
        self._send({"event": "dtmf", "sequenceNumber": "2", "streamSid": self._sid, "dtmf": dtmf})

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

    def hang_up(self) -> None:
        if not self.over.is_set():
            stop = {"accountSid": "AC", "callSid": "CA"}
            self._send({"event": "stop", "sequenceNumber": "3", "streamSid": self._sid, "stop": stop})
        self._ws.close(timeout=2)
        self._reader.join(5.0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


def sign(url: str, auth_token: str, form: dict[str, str]) -> dict[str, str]:
    """What Twilio puts into the headers of its requests."""
    if not auth_token:
        return {}
    said = url + "".join(name + form[name] for name in sorted(form))
    signature = base64.b64encode(hmac.digest(auth_token.encode(), said.encode(), hashlib.sha1))
    return {"X-Twilio-Signature": signature.decode()}


def answer(url: str, form: dict[str, str], headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Have the webhook answered: the address of the stream, and its parameters."""
    request = urllib.request.Request(url, urllib.parse.urlencode(form).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            twiml = ET.fromstring(response.read())
    except urllib.error.HTTPError as error:
        raise SystemExit(f"the webhook answers {error.code} {error.reason}") from None
    except OSError as error:
        raise SystemExit(f"nobody answers at {url}: {error}. Is `make twilio-flask` running?") from None
    stream = twiml.find("Connect/Stream")
    if stream is None:
        raise SystemExit(f"the webhook connects no stream: {ET.tostring(twiml).decode()}")
    parameters = {entry.get("name", ""): entry.get("value", "") for entry in stream.findall("Parameter")}
    return stream.get("url", ""), parameters


def main() -> int:
    port = os.environ.get("PORT", "5000")
    hello = str(resources.files("rtpool_sync").joinpath("data/hello.wav"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=f"http://127.0.0.1:{port}", help="where the application listens")
    parser.add_argument("--say", default=hello, metavar="WAV", help="what the caller says (%(default)s)")
    parser.add_argument("--keys", default="", help="keys pressed after that, one after another: 1, 0")
    parser.add_argument("--interrupt", action="store_true", help="say it again into the answer")
    parser.add_argument("--out", default="reply.wav", metavar="WAV", help="what was heard (%(default)s)")
    parser.add_argument("--caller", default="+15550100", help="the caller's number (%(default)s)")
    arguments = parser.parse_args()
    if not set(arguments.keys) <= set("0123456789*#"):
        parser.error("keys are 0 to 9, * and #")
    speech = read_wav(arguments.say)

    # An application that asks for signatures has these two in its environment as well.
    auth_token = os.environ.get("TWILIO_AUTH_TOKEN", "")
    public_url = os.environ.get("PUBLIC_URL", arguments.url).rstrip("/")
    call_sid = "CA" + uuid.uuid4().hex
    form = {"CallSid": call_sid, "From": arguments.caller, "To": "+15550199", "CallStatus": "ringing"}
    stream, parameters = answer(f"{arguments.url}/voice", form, sign(f"{public_url}/voice", auth_token, form))
    here = "ws" + arguments.url.removeprefix("http") + urllib.parse.urlsplit(stream).path
    try:
        call = Call(here, call_sid, parameters, sign(stream, auth_token, {}))
    except (OSError, websocket.WebSocketException) as error:
        raise SystemExit(f"the stream was refused: {error}") from None
    try:
        print(f"{call.seconds:5.1f} s  the greeting")
        call.listen()
        print(f"{call.seconds:5.1f} s  speaking")
        call.say(speech)
        if arguments.interrupt:
            call.listen(1.5)  # it has begun to answer
            print(f"{call.seconds:5.1f} s  interrupting")
            call.say(speech)
        call.listen()
        for digit in arguments.keys:
            if not call.over.is_set():
                print(f"{call.seconds:5.1f} s  key {digit}")
                call.press(digit)
                call.listen()
        print(f"{call.seconds:5.1f} s  {'it hung up' if call.over.is_set() else 'hanging up'}")
    finally:
        call.hang_up()
    write_wav(arguments.out, bytes(call.heard))
    print(f"heard {len(call.heard) / RATE:.1f} s: {arguments.out}")
    return 0 if call.heard else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
