"""What a request, or another application context, has borrowed: see :mod:`..borrowing`.

A response that is streamed is the end of its request: what its view borrowed goes
back when the response is closed.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, has_app_context, has_request_context, request
from flask.globals import app_ctx, request_ctx

from ..borrowing import Borrowed, NotingPool

__all__ = ["FlaskPool", "watch"]

_KEY = "_rtpool_sync_borrowed"


class _Context(Borrowed):
    """What one context has borrowed.

    Attributes:
        deferred: Whether the response, when it is closed, looks after it.
    """

    def __init__(self, borrower: str) -> None:
        super().__init__(lambda: borrower)
        self.deferred = False


class FlaskPool(NotingPool):
    """A pool whose checkouts are noted with the context in which they were made."""

    def _request(self) -> Borrowed | None:
        context = _context()
        if context is None:
            return None
        borrowed: Borrowed | None = context.get(_KEY)
        if borrowed is None:
            borrowed = context[_KEY] = _Context(_borrower())
        return borrowed


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


def watch(app: Flask) -> None:
    """Look at the end of each of the application's contexts."""
    app.after_request(_responding)
    app.teardown_request(_request_ends)
    app.teardown_appcontext(_context_ends)


def _responding(response: Response) -> Response:
    borrowed = (_context() or {}).get(_KEY)
    # What is passed through directly, a file, is closed without a word.
    streams = response.is_streamed and not response.direct_passthrough
    if borrowed is not None and streams and borrowed.is_out:
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


def _borrower() -> str:
    """Who borrows, in words. Of a path only the rule: what the path holds may be private."""
    if not has_request_context():
        return "a context outside of requests"
    if request.url_rule is None:
        return f"a {request.method} request without an endpoint"
    return f"endpoint {request.endpoint!r} ({request.method} {request.url_rule.rule})"
