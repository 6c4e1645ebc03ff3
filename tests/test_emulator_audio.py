"""Audio without numpy and without audioop: against known values, and against audioop where it lives."""

from __future__ import annotations

import hashlib
import importlib
import math
import warnings
from array import array
from typing import Any

import pytest

from rtpool_sync.emulator.audio import FORMATS, convert, fingerprint, tone

PCM, PCMU, PCMA = FORMATS["audio/pcm"], FORMATS["audio/pcmu"], FORMATS["audio/pcma"]


def test_lengths() -> None:
    assert PCM.milliseconds(48) == 1.0
    assert PCMU.milliseconds(8) == 1.0
    assert PCM.size(20) == 960
    assert PCM.size(0.99) == 46  # whole samples
    assert PCMA.size(20) == 160


@pytest.mark.parametrize("name", FORMATS)
def test_silence_is_silent_and_a_tone_is_not(name: str) -> None:
    audio = FORMATS[name]
    assert audio.level(bytes([audio.silence]) * audio.size(20)) == 0.0
    assert abs(audio.decode(bytes([audio.silence]) * 2)[0]) <= 8
    assert audio.level(tone(name, 100)) == pytest.approx(6000 / math.sqrt(2), rel=0.05)
    assert audio.level(b"") == 0.0


def test_g711_against_audioop() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            audioop: Any = importlib.import_module("audioop")
        except ImportError:
            pytest.skip("audioop left the standard library")
    codes = bytes(range(256))
    assert PCMU.decode(codes).tobytes() == audioop.ulaw2lin(codes, 2)
    assert PCMA.decode(codes).tobytes() == audioop.alaw2lin(codes, 2)


@pytest.mark.parametrize("audio", [PCMU, PCMA])
def test_g711_keeps_its_own_values(audio: Any) -> None:
    codes = bytes(range(256))
    values = audio.decode(codes)
    assert audio.decode(audio.encode(values)) == values
    extreme = audio.encode(array("h", [-32768, 32767]))
    assert [abs(value) > 30000 for value in audio.decode(extreme)] == [True, True]


def test_conversion_keeps_length_and_loudness() -> None:
    for source in FORMATS.values():
        for target in FORMATS.values():
            heard = convert(tone(source.name, 200), source, target)
            assert target.milliseconds(len(heard)) == pytest.approx(200, abs=1)
            assert target.level(heard) == pytest.approx(6000 / math.sqrt(2), rel=0.05)
    assert convert(b"", PCMU, PCM) == convert(b"", PCM, PCMU) == b""
    assert convert(b"\1", PCM, PCMU) == b""


def test_a_fingerprint_tells_audio_apart() -> None:
    digest = hashlib.sha1(bytes(48), usedforsecurity=False).hexdigest()[:8]
    assert fingerprint(bytes(48), PCM) == f"<audio 1 ms #{digest}>"
    assert fingerprint(bytes(48), PCM) != fingerprint(bytes(47) + b"\1", PCM)
