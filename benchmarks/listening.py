"""The embedded server in a process of its own, which notes when it sends and receives each frame of audio.

It is the whole server: what comes is decoded, checked and kept as ever. Only the audio that it
says has a stamp in front (see :mod:`.phones`), put there at the last moment.
"""

from __future__ import annotations

import os
from typing import Any

from rtpool_sync.emulator import RealtimeServer, server
from rtpool_sync.emulator.endpoint import RealtimeEndpoint
from rtpool_sync.emulator.wire import Wire

from .phones import STAMP, Arrivals, monotonic, stamp, summary

__all__ = ["collect", "setup"]

_APPEND = b'{"type":"input_audio_buffer.append","audio":"'
_server: RealtimeServer
_endpoints: list[_Endpoint] = []
_wires: set[_Wire] = set()


class _Endpoint(RealtimeEndpoint):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.heard = Arrivals()
        _endpoints.append(self)

    def message(self, first: int, payload: bytes) -> None:
        if payload.startswith(_APPEND):
            self.heard.add(bytes(payload[len(_APPEND) : len(_APPEND) + STAMP]), monotonic())
        super().message(first, payload)


class _Wire(Wire):
    said = 0

    def queue(self, payload: bytes, first: int = 0x81) -> None:
        if b'"response.output_audio.delta"' in payload:
            at = payload.index(b'"delta":"') + 9
            payload = payload[:at] + stamp(self.said).encode() + payload[at + STAMP :]
            self.said += 1
            _wires.add(self)
        super().queue(payload, first)


def setup(cores: list[int] | None = None) -> None:
    global _server
    if cores:
        os.sched_setaffinity(0, cores)
    server.Wire, server.RealtimeEndpoint = _Wire, _Endpoint  # type: ignore[misc]
    _server = RealtimeServer(audio_chunk_ms=20, realtime_pacing=True).start()


def address() -> str:
    return _server.base_url


def collect() -> dict[str, Any]:
    """How many frames were said since the last time, and what was heard."""
    said, heard = sum(wire.said for wire in _wires), [endpoint.heard for endpoint in _endpoints]
    for wire in _wires:
        wire.said = 0
    for endpoint in _endpoints:
        endpoint.heard = Arrivals()
    return {"said": said, "heard": summary(heard)}
