"""Building client frames (RFC 6455, section 5). Masking is the only cost that matters here."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

__all__ = ["BINARY", "CLOSE", "CONTINUATION", "PING", "PONG", "TEXT", "build_frame", "close_payload"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def _mask_in_python(data: bytes, key: bytes) -> bytes:
    # One big integer exclusive-or: 2 ns a byte, the best there is without C.
    size = len(data)
    words = (size + 3) >> 2
    number = int.from_bytes(data, "little") ^ int.from_bytes(key * words, "little")
    return number.to_bytes(words << 2, "little")[:size]


apply_mask: Callable[[bytes, bytes], bytes]
try:  # a kept library's C function, thirty times faster; comes with the extra "speed"
    from websockets.speedups import apply_mask
except ImportError:
    apply_mask = _mask_in_python


_keys: list[bytes] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keys.clear)


_short = struct.Struct("!BB4s").pack
_medium = struct.Struct("!BBH4s").pack
_long = struct.Struct("!BBQ4s").pack


def _fetch_keys() -> bytes:
    # From the kernel many at a time: asking it for each is a tenth of what a short message takes.
    random = os.urandom(1024)
    _keys.extend(random[at : at + 4] for at in range(0, 1020, 4))
    return random[1020:]


def build_frame(opcode: int, data: bytes, *, key: bytes | None = None) -> bytes:
    """Return one final frame, masked with four bytes that nobody can guess."""
    if key is None:
        try:
            key = _keys.pop()
        except IndexError:
            key = _fetch_keys()
    size = len(data)
    if size < 126:
        header = _short(0x80 | opcode, 0x80 | size, key)
    elif size < 65536:
        header = _medium(0x80 | opcode, 0xFE, size, key)
    else:
        header = _long(0x80 | opcode, 0xFF, size, key)
    return header + apply_mask(data, key)


def close_payload(code: int, reason: str = "") -> bytes:
    """Return the payload of a close frame; a reason above 123 bytes is cut at a character."""
    return struct.pack("!H", code) + reason.encode()[:123].decode(errors="ignore").encode()
