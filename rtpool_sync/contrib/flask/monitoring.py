"""The monitoring pages as a blueprint: rtpool_sync.web behind Flask's requests and responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Response, abort, current_app, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from ...errors import ConfigError
from ...web import monitoring_app

__all__ = ["mount"]

PAGES = ("/", "/health", "/stats", "/config", "/metrics", "/status.js", "/status.css")

Guard = Callable[[], Any]


def mount(app: Flask, url_prefix: str, guard: Guard | None) -> None:
    """Show all pools of ``app`` below ``url_prefix``. If that was done before, one more guard has a say."""
    prefix = url_prefix.rstrip("/")
    mounted = [pages for pages in app.blueprints.values() if isinstance(pages, _Pages)]
    for pages in mounted:
        if pages.prefix == prefix:
            pages.guards += [guard] if guard is not None else []
            return
    name = f"realtime_{len(mounted) + 1}" if mounted else "realtime"
    app.register_blueprint(_Pages(name, prefix, guard))


class _Pages(Blueprint):
    """Answers alike for everyone the guards let in."""

    def __init__(self, name: str, prefix: str, guard: Guard | None) -> None:
        super().__init__(name, __name__, url_prefix=prefix or None)
        self.prefix = prefix
        self.guards = [guard] if guard is not None else []
        self.before_request(self._admit)
        for page in PAGES:
            endpoint = page.strip("/").replace(".", "_") or "status"
            self.add_url_rule(page, endpoint, lambda page=page: _answer(page), methods=["GET"])

    def _admit(self) -> Any:
        for guard in self.guards:
            verdict = current_app.ensure_sync(guard)()
            if isinstance(verdict, HTTPException):
                raise verdict
            # What Flask would take for a response is one: ("no", 401) is true, and yet no consent.
            if isinstance(verdict, (AnyResponse, str, bytes, dict, list, tuple)):
                return verdict or abort(403)
            if not verdict:
                abort(403)
        return None


def _answer(page: str) -> AnyResponse:
    pools = current_app.extensions["realtime"]
    try:
        application = monitoring_app(*pools.values())
    except ConfigError as error:
        # Nobody will get a connection, and load balancers should know.
        numbers = {"healthy_connections": 0, "total_connections": 0, "max_connections": 0}
        response = jsonify(status="unhealthy", websocket_manager=numbers, message=str(error))
        response.status_code = 503
        response.headers["Cache-Control"] = "no-store"
        return response
    # The prefix is Flask's business.
    environ = {**request.environ, "SCRIPT_NAME": "", "PATH_INFO": page}
    return Response.from_app(application, environ)
