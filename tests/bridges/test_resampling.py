"""Resampling piece by piece: as good as in one go, at any size of the pieces."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from voice_ai import encode, purity

from rtpool_sync.bridges import resampling

RATES = [(16000, 24000), (24000, 16000), (8000, 24000), (24000, 8000)]


def sine(hertz: float, seconds: float, rate: int, level: float = 0.5) -> bytes:
    return encode(level * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate), "raw/lpcm16")


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    found, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return found


def convert(data: bytes, source: int, target: int, sizes: list[int]) -> bytes:
    converter = resampling.converter(source, target)
    result = b"".join([converter.process(piece) for piece in pieces(data, sizes)])
    return result + converter.flush()


@pytest.mark.parametrize(("source", "target"), RATES)
@pytest.mark.parametrize("hertz", [300.0, 997.0, 3000.0])
def test_a_tone_stays_a_tone(source: int, target: int, hertz: float) -> None:
    # 997 Hz has no whole number of periods in 20 ms: a click at every border would show.
    audio = convert(sine(hertz, 3.0, source), source, target, [source // 50 * 2])
    assert len(audio) == 3 * target * 2
    samples = np.frombuffer(audio, "<i2") / 32767
    ratio, level = purity(samples[target // 10 : -target // 10], hertz, target)
    assert ratio > 80
    assert level == pytest.approx(0.5, rel=0.002)


@pytest.mark.parametrize(("source", "target"), RATES)
def test_the_borders_of_the_pieces_cannot_be_heard(source: int, target: int) -> None:
    audio = sine(997.0, 2.0, source)
    chance = random.Random(7)
    whole = convert(audio, source, target, [len(audio)])
    for sizes in ([source // 50 * 2], [2], [3, 1, 640], [chance.randrange(1, 3000) for _ in range(50)]):
        assert convert(audio, source, target, sizes) == whole
    # Nor is any step between two samples larger than the tone's steepest.
    steps = np.diff(np.frombuffer(whole, "<i2").astype(int)[target // 50 : -target // 50])
    assert np.abs(steps).max() <= 0.5 * 32767 * 2 * np.pi * 997 / target + 2


@pytest.mark.parametrize(("source", "target"), RATES)
def test_each_piece_is_as_long_as_it_was(source: int, target: int) -> None:
    converter = resampling.converter(source, target)
    sizes = [len(converter.process(bytes(source // 50 * 2))) for _ in range(500)]
    assert set(sizes[1:]) == {target // 50 * 2}
    assert target // 50 * 2 - sizes[0] <= target * 2 * 0.006  # held back: 6 ms at most


def test_what_is_above_the_band_is_gone() -> None:
    audio = convert(sine(9500.0, 1.0, 24000), 24000, 16000, [960])
    assert np.abs(np.frombuffer(audio, "<i2")[800:-800]).max() < 4


def test_speech_band_is_kept() -> None:
    there = convert(sine(7000.0, 1.0, 16000), 16000, 24000, [640])
    back = convert(there, 24000, 16000, [4800])
    _, level = purity((np.frombuffer(back, "<i2") / 32767)[1600:-1600], 7000.0, 16000)
    assert level == pytest.approx(0.5, rel=0.1)


def test_too_loud_is_clipped_and_does_not_wrap() -> None:
    square = np.where(np.arange(16000) // 40 % 2, 32767, -32768).astype("<i2").tobytes()
    samples = np.frombuffer(convert(square, 16000, 24000, [640]), "<i2").astype(int)
    middle = samples.reshape(-1, 60)[5:-5, 25:35]
    assert np.all(np.abs(middle) > 30000)


def test_after_a_flush_or_a_reset_something_new_begins() -> None:
    audio = sine(440.0, 0.5, 24000)
    converter = resampling.converter(24000, 16000)
    first = converter.process(audio) + converter.flush()
    assert converter.process(audio) + converter.flush() == first
    converter.process(audio[:4801])
    converter.reset()
    assert converter.process(audio) + converter.flush() == first
    assert converter.flush() == b""


def test_the_same_rate_only_keeps_samples_whole() -> None:
    converter = resampling.converter(24000, 24000)
    assert converter.process(b"abc") == b"ab"
    assert converter.process(b"d") == b"cd"
    assert converter.process(b"e") == b""
    assert converter.process(b"") == b""
    assert converter.process(b"fgh") == b"efgh"
    same = b"abcd"
    assert converter.process(same) is same


@pytest.mark.parametrize("missing", ["samplerate", "numpy"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'rtpool-sync\[audio\]'"):
        resampling.converter(16000, 24000)
    assert "pip install 'rtpool-sync[audio]'" in (resampling.available() or "")
    assert type(resampling.converter(24000, 24000)) is resampling.Pcm
    monkeypatch.undo()
    assert resampling.available() is None
