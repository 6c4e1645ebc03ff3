"""What a request, or another application context, has borrowed and forgot to give back.

A note is made of every checkout inside of a context. At its end what is still out
goes back, and a warning names the endpoint. A response that is streamed is the end
of its request: what its view borrowed goes back when the response is closed.

Notes do not keep a handle alive: one that nobody holds any more goes back at once,
as it does everywhere; the warning comes all the same.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Mapping
from types import FrameType
from typing import Any

from flask import Flask, Response, has_app_context, has_request_context, request
from flask.globals import app_ctx, request_ctx

from ...connection import RealtimeConnection
from ...errors import RtpoolError
from ...pool import RealtimePool

__all__ = ["NotingPool", "watch"]

log = logging.getLogger("rtpool_sync")

_KEY = "_rtpool_sync_borrowed"
#: Frames in these packages are not where somebody borrowed.
_OURS = ("rtpool_sync.", "contextlib")


class NotingPool(RealtimePool):
    """A pool whose checkouts are noted with the context in which they were made."""

    def acquire(
        self, timeout: float | None = None, *, session: Mapping[str, Any] | None = None
    ) -> RealtimeConnection:
        handle = super().acquire(timeout, session=session)
        try:
            _note(self, handle, sys._getframe(1))
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


class _Borrowed:
    """The notes of one context.

    Attributes:
        deferred: Whether the response, when it is closed, looks after them.
    """

    def __init__(self, borrower: str) -> None:
        self.borrower = borrower
        self.notes: list[_Note] = []
        self.deferred = False
        self._tidy_at = 16

    def add(self, note: _Note) -> None:
        if len(self.notes) >= self._tidy_at:  # a long conversation of many checkouts
            self.notes = [known for known in self.notes if known.dropped or known.is_out]
            self._tidy_at = 2 * len(self.notes) + 16
        self.notes.append(note)

    def finish(self) -> None:
        """Give back what is out, and tell of it."""
        notes, self.notes = self.notes, []
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
                self.borrower,
                how,
                note.id,
                note.pool.name,
                note.where,
            )


#: id of a handle → its note. A handle that is being finalized can be found in no other way.
_notes: weakref.WeakValueDictionary[int, _Note] = weakref.WeakValueDictionary()


def _context() -> dict[str, Any] | None:
    """The attributes of the innermost context.

    Of the context, not of the request or ``g``: a copy for another thread
    (``copy_current_request_context``) shares the request, and a test's own application
    context shares ``g`` with every request made inside of it.
    """
    if has_request_context():
        return request_ctx._get_current_object().__dict__  # type: ignore[attr-defined, no-any-return]
    if has_app_context():
        return app_ctx._get_current_object().__dict__  # type: ignore[attr-defined, no-any-return]
    return None


def _note(pool: RealtimePool, handle: RealtimeConnection, frame: FrameType) -> None:
    context = _context()
    if context is None:
        return
    borrowed = context.get(_KEY)
    if borrowed is None:
        borrowed = context[_KEY] = _Borrowed(_borrower())
    note = _Note(pool, handle, _place(frame))
    _notes[id(handle)] = note
    borrowed.add(note)


def watch(app: Flask) -> None:
    """Look at the end of each of the application's contexts."""
    app.after_request(_responding)
    app.teardown_request(_request_ends)
    app.teardown_appcontext(_context_ends)


def _responding(response: Response) -> Response:
    borrowed = (_context() or {}).get(_KEY)
    # What is passed through directly, a file, is closed without a word.
    streams = response.is_streamed and not response.direct_passthrough
    if borrowed is not None and streams and any(note.is_out for note in borrowed.notes):
        borrowed.deferred = True
        response.call_on_close(borrowed.finish)
    return response


def _request_ends(error: BaseException | None) -> None:
    borrowed = (_context() or {}).get(_KEY)
    if borrowed is not None and not (borrowed.deferred and error is None):
        borrowed.finish()


def _context_ends(error: BaseException | None) -> None:
    if has_app_context():
        borrowed = vars(app_ctx._get_current_object()).get(_KEY)  # type: ignore[attr-defined]
        if borrowed is not None and not borrowed.deferred:
            borrowed.finish()


def _is_out(handle: RealtimeConnection) -> bool:
    try:
        return handle.age_seconds >= 0
    except RtpoolError:
        return False


def _borrower() -> str:
    """Who borrows, in words. Of a path only the rule: what the path holds may be private."""
    if not has_request_context():
        return "a context outside of requests"
    if request.url_rule is None:
        return f"a {request.method} request without an endpoint"
    return f"endpoint {request.endpoint!r} ({request.method} {request.url_rule.rule})"


def _place(frame: FrameType | None) -> str:
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"
