"""The monitoring pages as Django views: rtpool_sync.web behind Django's requests and responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from ...errors import ConfigError
from ...web import monitoring_app
from . import conf
from .handler import pools

__all__ = ["config", "health", "metrics", "stats", "status", "status_script", "status_style"]


def _view(path: str, summary: str) -> Callable[[HttpRequest], HttpResponse]:
    # Exempt, because the pages change nothing: a POST shall be told 405, not that its token is missing.
    @csrf_exempt
    def view(request: HttpRequest) -> HttpResponse:
        answer = conf.guard()
        if answer is not None:
            answer = answer(request)
            if isinstance(answer, HttpResponse):
                return answer
            if not answer:
                raise PermissionDenied(f"{conf.GUARD_KEY} says no")
        return _answer(request, path)

    view.__name__ = view.__qualname__ = path.strip("/").replace(".", "_") or "status"
    view.__doc__ = summary
    return view  # type: ignore[no-any-return]


def _answer(request: HttpRequest, path: str) -> HttpResponse:
    response = HttpResponse()
    try:
        application = monitoring_app(*pools.all())
    except ConfigError as error:
        return _cannot(str(error))

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
        code, _, reason = status.partition(" ")
        response.status_code, response.reason_phrase = int(code), reason
        for name, value in headers:
            response[name] = value

    # The prefix is Django's business; META is the environ, or what ASGI makes look like it.
    environ = {**request.META, "SCRIPT_NAME": "", "PATH_INFO": path, "REQUEST_METHOD": request.method}
    response.content = b"".join(application(environ, start_response))
    return response


def _cannot(why: str) -> HttpResponse:
    """The settings cannot be used: nobody will get a connection, and load balancers should know."""
    document = {
        "status": "unhealthy",
        "websocket_manager": {"healthy_connections": 0, "total_connections": 0, "max_connections": 0},
        "message": why,
    }
    response = HttpResponse(json.dumps(document, indent=2) + "\n", "application/json", 503)
    response["Cache-Control"] = "no-store"
    return response


status = _view("/", "The status page, for people.")
health = _view("/health", "For load balancers: 200, or 503 if a pool is unhealthy.")
stats = _view("/stats", "Numbers as JSON.")
config = _view("/config", "Settings in force as JSON, without secrets.")
metrics = _view("/metrics", "For Prometheus.")
status_script = _view("/status.js", "The script of the status page.")
status_style = _view("/status.css", "The style of the status page.")
