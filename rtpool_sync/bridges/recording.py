"""Both sides of a call in one WAV file: the caller on the left, the model on the right, as heard."""

from __future__ import annotations

import base64
import os
import queue
import tempfile
import threading
import wave
from collections.abc import Callable
from functools import cache
from typing import IO

from .actions import AudioFormat

__all__ = ["Recorder"]

#: Milliseconds that audio may come late without being taken for a gap.
_TOLERANCE_MS = 100.0
_CHUNK = 1 << 18  # bytes of one side that are put together at a time


@cache
def _mu_law() -> tuple[bytes, bytes]:
    """The low and the high byte of each mu-law code's sample, as tables for ``bytes.translate``."""
    low, high = bytearray(256), bytearray(256)
    for code in range(256):
        bits = ~code & 0xFF
        magnitude = (((bits & 0x0F) << 3) + 0x84 << (bits >> 4 & 7)) - 0x84
        sample = (-magnitude if bits & 0x80 else magnitude) & 0xFFFF
        low[code], high[code] = sample & 0xFF, sample >> 8
    return bytes(low), bytes(high)


class _Side:
    """The audio of one side, as linear samples of 16 bits, in a file that goes away by itself."""

    def __init__(self, format: AudioFormat) -> None:
        self._format = format
        self._rest = b""  # half a sample
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the recorder
        self.samples = 0

    def _position(self, ms: float) -> int:
        return max(0, int(ms * self._format.rate / 1000))

    def add(self, audio: bytes, at_ms: float) -> None:
        gap = self._position(at_ms) - self.samples
        if gap > self._position(_TOLERANCE_MS):
            self.fill(self.samples + gap)
        if self._format.width == 1:
            low, high = _mu_law()
            linear = bytearray(2 * len(audio))
            linear[0::2] = audio.translate(low)
            linear[1::2] = audio.translate(high)
        else:
            linear = bytearray(self._rest + audio)
            self._rest = bytes(linear[len(linear) & ~1 :])
            del linear[len(linear) & ~1 :]
        self.file.write(linear)
        self.samples += len(linear) // 2

    def fill(self, samples: int) -> None:
        """Go on with silence up to that length."""
        missing = samples - self.samples
        while missing > 0:
            part = min(missing, _CHUNK)
            self.file.write(bytes(2 * part))
            missing -= part
            self.samples += part

    def cut(self, at_ms: float) -> None:
        """Throw away what is behind that moment."""
        keep = self._position(at_ms)
        if keep < self.samples:
            self.file.seek(2 * keep)
            self.file.truncate()
            self.samples = keep
            self._rest = b""


class Recorder:
    """Records a call. Nothing here waits for a disk but a thread of its own.

    Args:
        path: The file to write, when the call is over.
        failed: Told in a sentence if it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], failed: Callable[[str], None]) -> None:
        self._path = path
        self._failed = failed
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._sides: tuple[_Side, _Side] | None = None
        self._rate = 0
        self._broken = False
        self._thread = threading.Thread(target=self._work, name="rtpool-recorder", daemon=True)

    def start(self, caller: AudioFormat, model: AudioFormat) -> None:
        """Begin, now that the formats are known."""
        if caller.rate != model.rate:
            self._failed(f"not recorded: one side has {caller.rate} samples a second, the other {model.rate}")
            return
        self._rate = caller.rate
        self._thread.start()
        self._jobs.put(lambda: self._open(caller, model))

    def _open(self, caller: AudioFormat, model: AudioFormat) -> None:
        self._sides = (_Side(caller), _Side(model))

    def caller(self, payload: str, at_ms: float) -> None:
        """Record what the caller said: base64, and when, in milliseconds since the start."""
        self._jobs.put(lambda: self._add(0, payload, at_ms))

    def model(self, payload: str, at_ms: float) -> None:
        """Record what the model says: base64, and when it was sent."""
        self._jobs.put(lambda: self._add(1, payload, at_ms))

    def _add(self, side: int, payload: str, at_ms: float) -> None:
        if self._sides is not None:
            self._sides[side].add(base64.b64decode(payload), at_ms)

    def cut(self, at_ms: float) -> None:
        """The caller interrupted: what the model would have said after that moment was not heard."""
        self._jobs.put(lambda: self._sides[1].cut(at_ms) if self._sides is not None else None)

    def close(self, timeout: float) -> None:
        """Write the file; waits ``timeout`` seconds for it."""
        if self._thread.ident is None:
            return
        self._jobs.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._failed(f"the recording was not written within {timeout:g} s")

    def _work(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                if not self._broken:
                    self._attempt(job)
            if not self._broken:
                self._attempt(self._write)
        finally:
            for side in self._sides or ():
                side.file.close()

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            job()
        except (OSError, ValueError, wave.Error) as error:
            self._broken = True
            self._failed(f"not recorded: {type(error).__name__}: {error}")

    def _write(self) -> None:
        if self._sides is None:
            return
        length = max(side.samples for side in self._sides)
        for side in self._sides:
            side.fill(length)
            side.file.seek(0)
        left, right = (side.file for side in self._sides)
        with wave.open(os.fspath(self._path), "wb") as out:
            out.setnchannels(2)
            out.setsampwidth(2)
            out.setframerate(self._rate)
            while data := left.read(_CHUNK):
                other = right.read(len(data))
                both = bytearray(2 * len(data))
                both[0::4], both[1::4] = data[0::2], data[1::2]
                both[2::4], both[3::4] = other[0::2], other[1::2]
                out.writeframesraw(both)
