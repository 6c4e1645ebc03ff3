"""The project that the tests send requests to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import include, path

from rtpool_sync.contrib.django import connection, pools

#: What views leave behind, so that no finalizer returns it for them.
kept: list[Any] = []
waiting = threading.Event()


def well(request: HttpRequest) -> HttpResponse:
    with connection() as conn:
        conn.ping()
        return HttpResponse(str(conn.id))


def keeps(request: HttpRequest, token: str) -> HttpResponse:
    kept.append(pools["default"].acquire())
    return HttpResponse(str(kept[-1].id))


def drops(request: HttpRequest) -> HttpResponse:
    pools["default"].acquire()
    return HttpResponse("dropped")


def fails(request: HttpRequest) -> HttpResponse:
    kept.append(pools["default"].acquire())
    raise LookupError("a fault of the view")


def streams(request: HttpRequest) -> StreamingHttpResponse:
    """Borrows while its body is sent, and does not return."""

    def body() -> Iterator[bytes]:
        conn = pools["default"].acquire()
        kept.append(conn)
        for _ in range(3):
            conn.ping()  # it must not be taken away before the end
            yield b"x" * 10

    return StreamingHttpResponse(body())


def streams_well(request: HttpRequest) -> StreamingHttpResponse:
    """As it should be done; ends early if the client goes away."""

    def body() -> Iterator[bytes]:
        with connection() as conn:
            while True:
                conn.ping()
                yield b"x" * 65536

    return StreamingHttpResponse(body())


def nested(request: HttpRequest) -> HttpResponse:
    """Takes a connection, calls itself another view of the project, goes on using it."""
    with connection() as conn:
        inner = Client().get("/keeps/inner")
        conn.ping()
        return HttpResponse(inner.content)


def background(request: HttpRequest) -> HttpResponse:
    """Starts work that outlives the request, in a copy of its context."""
    import contextvars

    ready = threading.Event()

    def work() -> None:
        with connection() as conn:
            ready.set()
            waiting.wait(20.0)
            kept.append(conn.ping())

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name="background")
    thread.start()
    kept.append(thread)
    assert ready.wait(10.0)
    return HttpResponse("started")


def misconfigured(request: HttpRequest) -> HttpResponse:
    pools["default"].acquire()
    return HttpResponse("")


urlpatterns = [
    path("well", well),
    path("keeps/<str:token>", keeps),
    path("drops", drops),
    path("fails", fails),
    path("streams", streams),
    path("streams-well", streams_well),
    path("nested", nested),
    path("background", background),
    path("misconfigured", misconfigured),
    path("realtime/", include("rtpool_sync.contrib.django.urls")),
]
