"""What a request has borrowed: see :mod:`..borrowing`.

A request is over when Django says so, its streamed response included. What was
noted lives as long as the request's own ``environ`` (or ``scope``): if a server
never says that a request is over, it goes with it.
"""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from typing import Any

from asgiref.sync import SyncToAsync

from ..borrowing import Borrowed, NotingPool

__all__ = ["DjangoPool", "finished", "started"]

_KEY = "rtpool_sync.borrowed"


class _Request(Borrowed):
    """A request that is being answered.

    Attributes:
        before: The one that was being answered in the same context: a test client's caller, itself in a view.
    """

    def __init__(self, method: str, path: str, before: weakref.ref[_Request] | None) -> None:
        super().__init__(lambda: _described(method, path))
        self.before = before
        self.thread = threading.get_ident()


_current: ContextVar[weakref.ref[_Request] | None] = ContextVar("rtpool_sync_request", default=None)
#: Under ASGI the signal is sent in a task of its own, whose context is lost. What a request's synchronous
#: code has in common is this object.
_asgi: weakref.WeakKeyDictionary[Any, weakref.ref[_Request]] = weakref.WeakKeyDictionary()


class DjangoPool(NotingPool):
    """A pool whose checkouts are noted with the request in whose thread they were made."""

    def _request(self) -> Borrowed | None:
        request = _request()
        # Other threads may live longer than the request that started them, also in a copy
        # of its context: what they borrow is theirs.
        if request is None or request.thread != threading.get_ident():
            return None
        return request


def _request() -> _Request | None:
    reference = _current.get()
    if reference is None:
        context = SyncToAsync.thread_sensitive_context.get(None)
        reference = None if context is None else _asgi.get(context)
    return None if reference is None else reference()


def started(sender: Any, environ: Any = None, scope: Any = None, **kwargs: Any) -> None:
    """Receiver of ``request_started``."""
    if environ is not None:
        before = _current.get()
        if before is not None and before() is None:
            before = None
        request = _Request(environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", ""), before)
        environ[_KEY] = request
        _current.set(weakref.ref(request))
    elif scope is not None:
        context = SyncToAsync.thread_sensitive_context.get(None)
        # The asynchronous test client has none, nor anything else to know a request by.
        if context is not None:
            request = _Request(scope.get("method", ""), scope.get("path", ""), None)
            scope[_KEY] = request
            _asgi[context] = weakref.ref(request)


def finished(sender: Any, **kwargs: Any) -> None:
    """Receiver of ``request_finished``: give back what the request has not."""
    request = _request()
    if request is not None:
        _current.set(request.before)
        request.finish()


def _described(method: str, path: str) -> str:
    """The request in words. Of its path only the route: what the path holds may be private."""
    from django.urls import resolve

    try:
        match = resolve(path)
    except Exception:  # Resolver404, or whatever a converter of the application raises
        return f"a {method} request without a view"
    return f"view {match._func_path} ({method} /{match.route.lstrip('/')})"
