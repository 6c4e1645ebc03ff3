"""Audio formats, loudness, and conversion between formats. Standard library only."""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from functools import cache, lru_cache
from operator import mul

__all__ = ["FORMATS", "Format", "convert", "fingerprint", "tone"]


class Format:
    """One of the three wire formats; all are mono.

    Attributes:
        name: As in the protocol, ``audio/pcm`` …
        rate: Samples per second.
        width: Bytes per sample.
    """

    def __init__(self, name: str, rate: int, width: int, silence: int) -> None:
        self.name = name
        self.rate = rate
        self.width = width
        self.silence = silence

    def milliseconds(self, size: int) -> float:
        return size * 1000 / (self.rate * self.width)

    def size(self, milliseconds: float) -> int:
        """Return the bytes of so many milliseconds, in whole samples."""
        return int(milliseconds * self.rate / 1000) * self.width

    def decode(self, data: bytes) -> array[int]:
        """Return signed 16-bit samples."""
        if self.width == 2:
            samples = array("h")
            samples.frombytes(data[: len(data) & ~1])
            if sys.byteorder == "big":
                samples.byteswap()
            return samples
        table = _decoder(self.name)
        return array("h", map(table.__getitem__, data))

    def encode(self, samples: array[int]) -> bytes:
        if self.width == 2:
            if sys.byteorder == "big":
                samples = array("h", samples)
                samples.byteswap()
            return samples.tobytes()
        table = _encoder(self.name)
        return bytes([table[(sample + 32768) >> 2] for sample in samples])

    def level(self, data: bytes) -> float:
        """Return the root mean square of the samples, 0 to 32767."""
        if data.count(self.silence) == len(data):  # digital silence is common and this is fast
            return 0.0
        samples = self.decode(data)
        if self.rate > 8000:
            samples = samples[::3]  # aliasing does not change the energy that matters here
        return math.sqrt(sum(map(mul, samples, samples)) / len(samples)) if samples else 0.0


FORMATS = {
    "audio/pcm": Format("audio/pcm", 24000, 2, 0),
    "audio/pcmu": Format("audio/pcmu", 8000, 1, 0xFF),
    "audio/pcma": Format("audio/pcma", 8000, 1, 0xD5),
}


def _ulaw_sample(code: int) -> int:
    code = ~code & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << ((code & 0x70) >> 4)) - 0x84
    return -magnitude if code & 0x80 else magnitude


def _alaw_sample(code: int) -> int:
    code ^= 0x55
    segment = (code & 0x70) >> 4
    magnitude = (code & 0x0F) << 4
    magnitude = magnitude + 8 if segment == 0 else (magnitude + 0x108) << (segment - 1)
    return magnitude if code & 0x80 else -magnitude


@cache
def _decoder(name: str) -> tuple[int, ...]:
    sample = _ulaw_sample if name == "audio/pcmu" else _alaw_sample
    return tuple(sample(code) for code in range(256))


@cache
def _encoder(name: str) -> bytes:
    """Return the code of every sample divided by four: the nearest of the 256 levels."""
    levels = sorted((sample, code) for code, sample in enumerate(_decoder(name)))
    table = bytearray()
    position = 0
    for sample in range(-32768, 32768, 4):
        while position + 1 < len(levels) and abs(levels[position + 1][0] - sample) <= abs(
            levels[position][0] - sample
        ):
            position += 1
        table.append(levels[position][1])
    return bytes(table)


def convert(data: bytes, source: Format, target: Format) -> bytes:
    """Convert audio from one wire format to another."""
    if source is target:
        return data
    samples = source.decode(data)
    if source.rate < target.rate:  # 8 kHz to 24 kHz: two interpolated samples between each pair
        tripled = array("h", bytes(6 * len(samples)))
        pairs = list(zip(samples, samples[1:] + samples[-1:], strict=True))
        tripled[0::3] = samples
        tripled[1::3] = array("h", [(2 * a + b) // 3 for a, b in pairs])
        tripled[2::3] = array("h", [(a + 2 * b) // 3 for a, b in pairs])
        samples = tripled
    elif source.rate > target.rate:  # 24 kHz to 8 kHz: the mean of three
        threes = zip(samples[0::3], samples[1::3], samples[2::3], strict=False)
        samples = array("h", [(a + b + c) // 3 for a, b, c in threes])
    return target.encode(samples)


@lru_cache(maxsize=16)
def tone(name: str, milliseconds: int) -> bytes:
    """Return a quiet 440 Hz tone."""
    target = FORMATS[name]
    step = 2 * math.pi * 440 / target.rate
    count = target.rate * milliseconds // 1000
    return target.encode(array("h", [int(6000 * math.sin(step * index)) for index in range(count)]))


def fingerprint(data: bytes, source: Format) -> str:
    """Return the deterministic transcript of audio: its length and a digest."""
    digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()[:8]
    return f"<audio {round(source.milliseconds(len(data)))} ms #{digest}>"
