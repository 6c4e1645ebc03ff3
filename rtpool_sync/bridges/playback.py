"""How much of the model's audio the caller has heard.

Two clocks with one face. Neither does I/O or holds a lock: the owner does.

:class:`MarkedPlayback`
    for vendors that say how far they have played: a mark is sent after every
    piece of audio, and comes back when it was reached. It trusts no wall clock
    beyond the piece that is being played, so the milliseconds it states never
    exceed the audio that was sent.

:class:`PacedPlayback`
    for vendors that do not: what is played is what was sent, in real time, and
    so as little as possible is sent ahead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Cut", "MarkedPlayback", "PacedPlayback", "Playback"]


@dataclass(frozen=True)
class Cut:
    """An item whose playback was cut short, and how much of it was heard."""

    item_id: str
    content_index: int
    heard_ms: int


@dataclass
class _Segment:
    """Audio of one item between two marks."""

    item_id: str
    content_index: int
    start_ms: float  # within the item
    ms: float
    since: float  # when it was sent; for a paced one, when it begins to be played
    mark: str | None = None


class Playback(Protocol):
    """What the core asks of either clock."""

    heard_ms: float  # of all items so far

    def sent(self, item_id: str, content_index: int, ms: float, now: float) -> str | None:
        """Note audio that is about to be sent; return the name of a mark to send behind it, if any."""

    def end_item(self, now: float) -> str | None:
        """Note that all of an item was sent; return the name of a mark to send, if any."""

    def reached(self, name: str, now: float) -> bool:
        """Note a mark that came back; False if it belongs to something interrupted."""

    def finished(self, now: float) -> None:
        """Note that everything sent was played."""

    def playing(self, now: float) -> bool:
        """Whether something sent is still being played."""

    def delay(self, now: float) -> float:
        """Seconds until the next audio may be sent."""

    def sent_ms(self, item_id: str, content_index: int) -> float:
        """How much of an item was sent, if it is the last one of which anything was."""

    def interrupt(self, now: float) -> list[Cut]:
        """Stop: return what was being played and what was waiting behind it; forget it all."""


def _add(cuts: list[Cut], segment: _Segment, heard: float) -> None:
    # Of an item only the first segment says how much was heard: what is behind it was not begun.
    known = any(cut.item_id == segment.item_id and cut.content_index == segment.content_index for cut in cuts)
    if not known:
        cuts.append(Cut(segment.item_id, segment.content_index, int(segment.start_ms + heard)))


class MarkedPlayback:
    """See above.

    Args:
        every_ms: Audio between two marks, at least.
    """

    def __init__(self, every_ms: float = 100.0) -> None:
        self.heard_ms = 0.0
        self._every_ms = every_ms
        self._pending: deque[_Segment] = deque()
        self._open: _Segment | None = None  # the last one, as long as it has no mark
        self._item: tuple[str, int] = ("", 0)
        self._item_ms = 0.0  # sent of that item
        self._generation = 0
        self._count = 0
        self._acked_at = 0.0
        self._echoes = False  # whether any mark ever came back

    def sent(self, item_id: str, content_index: int, ms: float, now: float) -> str | None:
        if (item_id, content_index) != self._item:
            self._item, self._item_ms = (item_id, content_index), 0.0
            self._open = None
        segment = self._open
        if segment is None:
            segment = self._open = _Segment(item_id, content_index, self._item_ms, 0.0, now)
            self._pending.append(segment)
        segment.ms += ms
        self._item_ms += ms
        return self._mark() if segment.ms >= self._every_ms else None

    def end_item(self, now: float) -> str | None:
        return self._mark() if self._open is not None else None

    def _mark(self) -> str:
        assert self._open is not None
        self._count += 1
        self._open.mark = name = f"rt{self._generation}-{self._count}"
        self._open = None
        return name

    def reached(self, name: str, now: float) -> bool:
        if not any(segment.mark == name for segment in self._pending):
            return False
        self._echoes = True
        while True:  # what was sent before it has been played as well
            segment = self._pending.popleft()
            self.heard_ms += segment.ms
            if segment is self._open:
                self._open = None
            if segment.mark == name:
                break
        self._acked_at = now
        return True

    def finished(self, now: float) -> None:
        self.heard_ms += sum(segment.ms for segment in self._pending)
        self._pending.clear()
        self._open = None
        self._acked_at = now

    def playing(self, now: float) -> bool:
        return bool(self._pending)

    def delay(self, now: float) -> float:
        return 0.0

    def sent_ms(self, item_id: str, content_index: int) -> float:
        return self._item_ms if (item_id, content_index) == self._item else 0.0

    def interrupt(self, now: float) -> list[Cut]:
        cuts: list[Cut] = []
        left = 0.0
        if self._pending:
            first = self._pending[0]
            left = max(0.0, now - max(first.since, self._acked_at)) * 1000
            # Some simulators send no mark back, ever: then the wall clock is all there is.
            if self._echoes or left < first.ms + 1000.0:
                left = min(left, first.ms)
        for segment in self._pending:
            heard = min(left, segment.ms)
            left -= heard
            self.heard_ms += heard
            if heard < segment.ms or segment is self._pending[-1]:
                _add(cuts, segment, heard)
        self._pending.clear()
        self._open = None
        self._generation += 1
        return cuts


class PacedPlayback:
    """See above.

    Args:
        lead: Seconds that audio is sent ahead of real time, at most.
    """

    def __init__(self, lead: float) -> None:
        self.heard_ms = 0.0
        self._lead = lead
        self._until = 0.0  # when everything sent will have been played
        self._pending: deque[_Segment] = deque()
        self._item: tuple[str, int] = ("", 0)
        self._item_ms = 0.0

    def sent(self, item_id: str, content_index: int, ms: float, now: float) -> str | None:
        self._forget_played(now)
        if (item_id, content_index) != self._item:
            self._item, self._item_ms = (item_id, content_index), 0.0
        begins = max(now, self._until)
        self._pending.append(_Segment(item_id, content_index, self._item_ms, ms, begins))
        self._item_ms += ms
        self._until = begins + ms / 1000
        return None

    def end_item(self, now: float) -> str | None:
        return None

    def reached(self, name: str, now: float) -> bool:
        return False

    def finished(self, now: float) -> None:
        self._until = min(self._until, now)
        self.heard_ms += sum(segment.ms for segment in self._pending)
        self._pending.clear()

    def _forget_played(self, now: float) -> None:
        while self._pending and self._pending[0].since + self._pending[0].ms / 1000 <= now:
            self.heard_ms += self._pending.popleft().ms

    def playing(self, now: float) -> bool:
        self._forget_played(now)
        return bool(self._pending)

    def delay(self, now: float) -> float:
        return max(0.0, self._until - now - self._lead)

    def sent_ms(self, item_id: str, content_index: int) -> float:
        return self._item_ms if (item_id, content_index) == self._item else 0.0

    def interrupt(self, now: float) -> list[Cut]:
        self._forget_played(now)
        cuts: list[Cut] = []
        for segment in self._pending:
            heard = min(segment.ms, max(0.0, now - segment.since) * 1000)
            self.heard_ms += heard
            _add(cuts, segment, heard)
        self._pending.clear()
        self._until = min(self._until, now)
        return cuts
