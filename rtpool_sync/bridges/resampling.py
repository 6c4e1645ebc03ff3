"""From one sampling rate to another, piece by piece, without a seam between the pieces.

Each object carries what one direction of one call has to remember: the
filter's history, and the half sample at the end of a piece that was cut in the
middle of one. A resampler that begins anew with each piece puts a click at
every border, fifty a second.

The filter is libsamplerate's (``pip install 'rtpool-sync[audio]'``): band-limited,
2 to 6 ms of delay, the first piece is shorter by that and :meth:`Pcm.flush`
brings it back. Only what really changes the rate needs it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Pcm", "Resampler", "available", "converter"]

#: libsamplerate's second best: flat to 90 % of the band, what is above it 120 dB down.
FILTER = "sinc_medium"


def _libraries() -> tuple[Any, Any]:
    try:
        import numpy as np
        import samplerate
    except ImportError as error:
        raise ImportError(
            f"audio at another rate than the model's has to be resampled, and that needs "
            f"pip install 'rtpool-sync[audio]' ({error})",
            name=error.name,
        ) from error
    return np, samplerate


def available() -> str | None:
    """Return ``None`` if audio can be resampled, otherwise why not, and what to install."""
    try:
        _libraries()
    except ImportError as error:
        return str(error)
    return None


class Pcm:
    """16-bit audio as it is, but in whole samples."""

    def __init__(self) -> None:
        self._half = b""

    def process(self, data: bytes) -> bytes:
        """Return the audio of a piece, as far as it can be told by now."""
        if self._half:
            data = self._half + data
        if len(data) & 1:
            self._half = data[-1:]
            return data[:-1]
        self._half = b""
        return data

    def flush(self) -> bytes:
        """Return what was held back; the next piece begins something new."""
        self._half = b""
        return b""

    def reset(self) -> None:
        """Forget what was held back."""
        self._half = b""


class Resampler(Pcm):
    """16-bit audio at another rate.

    Args:
        source, target: Samples per second.

    Raises:
        ImportError: The extra ``audio`` is not installed; the message says so.
    """

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self._np, library = _libraries()
        self._filter = library.Resampler(FILTER, 1)
        self._ratio = target / source
        self._source, self._target = source, target
        self._taken = 0  # samples in
        self._given = 0  # samples out

    def process(self, data: bytes) -> bytes:
        data = super().process(data)
        if not data:
            return b""
        samples = self._np.frombuffer(data, "<i2")
        self._taken += len(samples)
        result = self._convert(samples)
        self._given += len(result)
        return self._bytes(result)

    def flush(self) -> bytes:
        missing = round(self._taken * self._ratio) - self._given
        if missing <= 0:
            self.reset()
            return b""
        # The library keeps the last milliseconds back: silence drives them out.
        count = int((missing + 512) / self._ratio) + 1
        result = self._convert(self._np.zeros(count, "<i2"))[:missing]
        self.reset()
        return self._bytes(result)

    def reset(self) -> None:
        super().reset()
        self._filter.reset()
        self._taken = self._given = 0

    def _convert(self, samples: Any) -> Any:
        return self._filter.process(samples.astype(self._np.float32), self._ratio, False)

    def _bytes(self, samples: Any) -> bytes:
        # Filtered audio may overshoot: it is clipped, it must not wrap.
        np = self._np
        result: bytes = np.clip(np.rint(samples), -32768, 32767).astype("<i2").tobytes()
        return result


def converter(source: int, target: int) -> Pcm:
    """Return what takes 16-bit audio from one rate to the other.

    Raises:
        ImportError: The rates differ, and the extra ``audio`` is not installed.
    """
    return Pcm() if source == target else Resampler(source, target)
