"""What a request has borrowed and forgot to give back: the part that every framework shares.

A framework says which checkouts belong together (one request, one context) and
when that is over. Then what is still out goes back, and a warning names who it was.

Notes do not keep a handle alive: one that nobody holds any more goes back at once,
as it does everywhere; the warning comes all the same.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from ..connection import RealtimeConnection
from ..errors import RtpoolError
from ..pool import RealtimePool

__all__ = ["Borrowed", "NotingPool"]

log = logging.getLogger("rtpool_sync")

#: Frames in these packages are not where somebody borrowed.
_OURS = ("rtpool_sync.", "contextlib")


class _Note:
    """One checkout."""

    __slots__ = ("__weakref__", "dropped", "handle", "id", "pool", "where")

    def __init__(self, pool: RealtimePool, handle: RealtimeConnection, where: str) -> None:
        self.pool = pool
        self.handle = weakref.ref(handle)
        self.id = handle.id
        self.where = where
        self.dropped = False

    @property
    def is_out(self) -> bool:
        handle = self.handle()
        return handle is not None and _is_out(handle)


class Borrowed:
    """The checkouts of one request. Used by one thread at a time.

    Args:
        borrower: Tells who borrows, in words; called at the end, if there is something to tell.
    """

    def __init__(self, borrower: Callable[[], str]) -> None:
        self._borrower = borrower
        self._notes: list[_Note] = []
        self._tidy_at = 16

    @property
    def is_out(self) -> bool:
        """Whether something has not been returned."""
        return any(note.is_out for note in self._notes)

    def _add(self, note: _Note) -> None:
        if len(self._notes) >= self._tidy_at:  # a long conversation of many checkouts
            self._notes = [known for known in self._notes if known.dropped or known.is_out]
            self._tidy_at = 2 * len(self._notes) + 16
        self._notes.append(note)

    def finish(self) -> None:
        """Give back what is out, and tell of it."""
        notes, self._notes = self._notes, []
        for note in notes:
            handle = note.handle()
            if note.dropped:
                how = "lost"
            elif handle is not None and _is_out(handle):
                note.pool.release(handle)
                how = "did not return"
            else:
                continue
            log.warning(
                "%s %s connection #%d of pool %r, taken at %s: it was returned for it. "
                "Take connections in a `with` block",
                self._borrower(),
                how,
                note.id,
                note.pool.name,
                note.where,
            )


#: id of a handle → its note. A handle that is being finalized can be found in no other way.
_notes: weakref.WeakValueDictionary[int, _Note] = weakref.WeakValueDictionary()


class NotingPool(RealtimePool):
    """A pool whose checkouts are noted with the request in which they were made."""

    def _request(self) -> Borrowed | None:
        """The request that the calling thread is answering."""
        raise NotImplementedError

    def acquire(
        self, timeout: float | None = None, *, session: Mapping[str, Any] | None = None
    ) -> RealtimeConnection:
        handle = super().acquire(timeout, session=session)
        try:
            borrowed = self._request()
            if borrowed is not None:
                note = _Note(self, handle, _place(sys._getframe(1)))
                _notes[id(handle)] = note
                borrowed._add(note)
        except BaseException:  # struck in here, where nobody else knows of the handle
            self.release(handle)
            raise
        return handle

    def _dropped(self, handle: RealtimeConnection, mistake: bool = True) -> None:
        if mistake:
            note = _notes.get(id(handle))
            if note is not None and _is_out(handle):
                note.dropped = True
        super()._dropped(handle, mistake)


def _is_out(handle: RealtimeConnection) -> bool:
    try:
        return handle.age_seconds >= 0
    except RtpoolError:
        return False


def _place(frame: FrameType | None) -> str:
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"
