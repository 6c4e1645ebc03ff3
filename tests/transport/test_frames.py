"""Building frames."""

from __future__ import annotations

import builtins
import importlib
import os
import struct
from typing import Any

import pytest

from rtpool_sync.transport import frames
from rtpool_sync.transport.frames import BINARY, CLOSE, PING, TEXT, build_frame, close_payload

KEY = b"\x01\x02\x03\x04"


def unmask(data: bytes, key: bytes) -> bytes:
    """As RFC 6455, 5.3, says it, byte by byte."""
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


@pytest.fixture(params=["c", "python"])
def _mask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(frames, "apply_mask", frames._mask_in_python)


@pytest.mark.usefixtures("_mask")
@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x81\x80"),
        (1, b"\x81\x81"),
        (2, b"\x81\x82"),
        (3, b"\x81\x83"),
        (5, b"\x81\x85"),
        (125, b"\x81\xfd"),
        (126, b"\x81\xfe\x00\x7e"),
        (65535, b"\x81\xfe\xff\xff"),
        (65536, b"\x81\xff" + struct.pack("!Q", 65536)),
    ],
)
def test_a_frame(size: int, header: bytes) -> None:
    data = os.urandom(size)
    frame = build_frame(TEXT, data, key=KEY)
    assert frame == header + KEY + unmask(data, KEY)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
def test_every_frame_is_final_and_has_a_key_of_its_own(opcode: int) -> None:
    made = [build_frame(opcode, b"abcd") for _ in range(300)]  # more than are fetched at a time
    assert {frame[0] for frame in made} == {0x80 | opcode}
    assert len({frame[2:6] for frame in made}) > 298
    assert {unmask(frame[6:], frame[2:6]) for frame in made} == {b"abcd"}


def test_without_the_library_that_masks_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("websockets"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "__import__", missing)
            importlib.reload(frames)
        assert frames.apply_mask is frames._mask_in_python
    finally:
        importlib.reload(frames)


def test_close_payload() -> None:
    assert close_payload(1000) == b"\x03\xe8"
    assert close_payload(4999, "grüß") == b"\x13\x87" + "grüß".encode()
    assert close_payload(1000, "x" * 200) == b"\x03\xe8" + b"x" * 123
    cut = close_payload(1000, "ü" * 100)  # 123 bytes would end in the middle of a character
    assert cut[2:].decode() == "ü" * 61
