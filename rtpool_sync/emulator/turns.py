"""The input audio buffer and voice activity detection by loudness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .audio import Format

__all__ = ["InputAudio", "Speech"]

_FRAME_MS = 20
#: Frames in a row that must be loud: a click is not speech.
_ONSET = 3
#: RMS that ``threshold`` 1.0 asks for; the default of 0.5 asks for 500, soft speech on a telephone.
_LOUDEST = 1000.0
#: What is kept of audio in which nobody speaks.
_KEPT_MS = 60_000
_SEMANTIC_SILENCE = {"high": 300, "medium": 600, "auto": 600, "low": 1200}


@dataclass
class Speech:
    """Speech began or ended. Times count from the first audio of the session."""

    started: bool
    ms: int


class InputAudio:
    """Audio appended and not yet committed.

    Attributes:
        item_id: The item this audio will become, once speech announced it.
    """

    def __init__(self, format_: Format) -> None:
        self.format = format_
        self.item_id: str | None = None
        self.speaking = False
        self._data = bytearray()
        self._origin_ms = 0.0  # session time of the buffer's first byte
        self._scanned = 0
        self._loud = 0
        self._quiet_ms = 0
        self._start_ms = 0.0  # where the item in the making begins, padding included
        self._end_ms = 0.0

    @property
    def milliseconds(self) -> float:
        return self.format.milliseconds(len(self._data))

    @property
    def end_ms(self) -> int:
        """Session time of the end of the audio received so far."""
        return round(self._origin_ms + self.milliseconds)

    def use_format(self, format_: Format) -> None:
        """Change the format of what comes; what is there was said in the old one and is dropped."""
        if format_ is not self.format:
            self._drop(len(self._data))
            self.format = format_

    def append(self, data: bytes, vad: Mapping[str, Any] | None) -> list[Speech]:
        """Add audio; return where speech began or ended in it."""
        self._data += data
        if vad is None:
            self._scanned = len(self._data)
            return []
        found: list[Speech] = []
        frame = self.format.size(_FRAME_MS)
        threshold = vad.get("threshold", 0.5) * _LOUDEST
        silence = vad.get("silence_duration_ms") or _SEMANTIC_SILENCE.get(vad.get("eagerness", ""), 200)
        while len(self._data) - self._scanned >= frame:
            start = self._scanned
            self._scanned += frame
            loud = self.format.level(bytes(self._data[start : self._scanned])) > threshold
            if not self.speaking:
                self._loud = self._loud + 1 if loud else 0
                if self._loud >= _ONSET:
                    self.speaking, self._quiet_ms = True, 0
                    onset = self._time(self._scanned) - _ONSET * _FRAME_MS
                    self._start_ms = max(self._origin_ms, onset - vad.get("prefix_padding_ms", 300))
                    found.append(Speech(True, round(self._start_ms)))
            else:
                self._quiet_ms = 0 if loud else self._quiet_ms + _FRAME_MS
                if self._quiet_ms >= silence:
                    self.speaking, self._loud = False, 0
                    self._end_ms = self._time(self._scanned)
                    found.append(Speech(False, round(self._end_ms)))
                    # The rest is scanned after this turn was committed.
                    return found
        if not self.speaking and self.milliseconds > _KEPT_MS:
            self._drop(len(self._data) - self.format.size(_KEPT_MS))
        return found

    def _time(self, position: int) -> float:
        return self._origin_ms + self.format.milliseconds(position)

    def _drop(self, size: int) -> None:
        self._origin_ms += self.format.milliseconds(size)
        del self._data[:size]
        self._scanned = max(0, self._scanned - size)

    def take_turn(self) -> bytes:
        """Take the speech that just ended, padding included, and forget what is before it."""
        start = self.format.size(self._start_ms - self._origin_ms)
        end = self._scanned
        data = bytes(self._data[start:end])
        self._drop(end)
        self._forget()
        return data

    def take_all(self) -> bytes:
        """Take everything."""
        data = bytes(self._data)
        self._drop(len(self._data))
        self._forget()
        return data

    def _forget(self) -> None:
        self.item_id = None
        self.speaking = False
        self._loud = self._quiet_ms = 0
