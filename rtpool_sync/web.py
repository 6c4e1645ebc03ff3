"""The monitoring application: ``/health``, ``/stats``, ``/config``, ``/metrics``, and a status page at ``/``.

Plain WSGI, so that it runs in every server and inside every framework. It needs
no session, writes nothing, and shows no secret; who may see it is the business
of whoever mounts it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from . import status
from .pool import RealtimePool, live_pools

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["monitoring_app"]

log = logging.getLogger("rtpool_sync")

JSON = "application/json"
HTML = "text/html; charset=utf-8"

#: Nothing from anywhere else, nothing inline, in nobody's frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_STARTED = time.time_ns()
_SEVERITY = ("healthy", "degraded", "unhealthy")
_NOTE = "Settings in force. The API key and the values of headers are never shown."


class Answer(NamedTuple):
    status: str
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def monitoring_app(*pools: RealtimePool) -> WSGIApplication:
    """Return a WSGI application that shows these pools, or all of the process if none is given.

    ====================  ==============================================================================
    ``/``                 a status page for people, refreshed in place
    ``/health``           for load balancers: 200 if ``healthy`` or ``degraded``, 503 if ``unhealthy``
    ``/stats``            numbers as JSON; with several pools their sums, and each pool's in ``pools``
    ``/config``           settings in force as JSON, without secrets
    ``/metrics``          for Prometheus, in the OpenMetrics format when asked for
    ====================  ==============================================================================

    It may be mounted below any prefix.
    """
    for pool in pools:
        if not isinstance(pool, RealtimePool):
            raise TypeError(f"monitoring_app() shows pools, not {type(pool).__name__}")

    def chosen() -> list[RealtimePool]:
        return list(pools) or sorted(live_pools(), key=lambda pool: (pool.name != "default", pool.name))

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        try:
            answer = _answer(environ, method, chosen)
        except Exception:
            log.exception("the monitoring application failed at %s", environ.get("PATH_INFO"))
            answer = _error("500 Internal Server Error", "see the log of the application")
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Rtpool-Process", _process()),
            *answer.headers,
        ]
        start_response(answer.status, headers)
        return [] if method == "HEAD" else [answer.body]

    return application


def _process() -> str:
    """Tells the processes of an application apart, for those who compare two answers; names neither."""
    return hashlib.sha256(f"{_STARTED} {os.getpid()} {socket.gethostname()}".encode()).hexdigest()[:12]


def _answer(environ: WSGIEnvironment, method: str, chosen: Callable[[], list[RealtimePool]]) -> Answer:
    prefix, path = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
    if not path and prefix:
        # The page's links are relative, so that they hold behind any proxy: they need the slash.
        target = quote(posixpath.basename(prefix).encode("latin-1")) + "/"
        return Answer("308 Permanent Redirect", "text/plain", b"", (("Location", target),))
    route = _ROUTES.get(path or "/")
    if route is None:
        return _error("404 Not Found", f"there is {', '.join(_ROUTES)}")
    if method not in ("GET", "HEAD"):
        return _error("405 Method Not Allowed", "only GET and HEAD", (("Allow", "GET, HEAD"),))
    return route(chosen(), environ)


def _error(status: str, detail: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return _json({"error": status, "detail": detail}, status, headers)


def _json(document: object, status: str = "200 OK", headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, JSON, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n", headers)


def _health(pools: list[RealtimePool], environ: WSGIEnvironment) -> Answer:
    document: dict[str, Any]
    reports = [pool.health() for pool in pools]
    if len(reports) == 1:
        document = reports[0].as_dict()
    else:
        # Of several pools, the worst decides: somebody needs each of them.
        worst = max(reports, key=lambda report: _SEVERITY.index(report.status), default=None)
        each = [{"name": pool.name, **report.as_dict()} for pool, report in zip(pools, reports, strict=True)]
        parts = [report["websocket_manager"] for report in each]
        if worst is None:
            message = "there is no pool yet"
        elif worst.status == "healthy":
            message = f"all {len(reports)} pools work"
        else:
            message = f"pool {pools[reports.index(worst)].name!r}: {worst.message}"
        keys = ("healthy_connections", "total_connections", "max_connections")
        document = {
            "status": worst.status if worst is not None else "healthy",
            "websocket_manager": {key: sum(part[key] for part in parts) for key in keys},
            "message": message,
            "pools": each,
        }
    return _json(document, "503 Service Unavailable" if document["status"] == "unhealthy" else "200 OK")


def _stats(pools: list[RealtimePool], environ: WSGIEnvironment) -> Answer:
    each = [{"name": pool.name, **pool.stats().as_dict()} for pool in pools]
    if len(each) == 1:
        return _json(each[0])
    keys = ("total_connections", "healthy_connections", "active_sessions", "total_sessions_handled")
    total: dict[str, Any] = dict.fromkeys((*keys, "max_connections"), 0)
    for numbers in each:
        total = _sum(total, numbers)
    return _json({**total, "pools": each})


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    total = dict(one)
    for key, value in other.items():
        if isinstance(value, dict):
            total[key] = _sum(total.get(key, {}), value)
        elif key.startswith("oldest_"):
            total[key] = max(total.get(key, 0.0), value)
        elif isinstance(value, (int, float)):
            total[key] = total.get(key, 0) + value
    return total


def _config(pools: list[RealtimePool], environ: WSGIEnvironment) -> Answer:
    shown = pools[0].config.as_dict() if pools else {}
    document: dict[str, Any] = {"websocket_manager": shown, "note": _NOTE}
    if len(pools) != 1:
        document["pools"] = [{"name": pool.name, **pool.config.as_dict()} for pool in pools]
    return _json(document)


def _metrics(pools: list[RealtimePool], environ: WSGIEnvironment) -> Answer:
    # Here and not above: a process that is never scraped need not load prometheus-client for it.
    from prometheus_client import CollectorRegistry, multiprocess
    from prometheus_client.exposition import choose_encoder

    from . import metrics

    for pool in pools:
        metrics.export(pool)
    source: Any
    if metrics.is_multiprocess():
        metrics.publish()  # of this process, the newest
        source = CollectorRegistry()
        multiprocess.MultiProcessCollector(source)  # type: ignore[no-untyped-call]
    else:
        found = metrics.registries(pools)
        source = found[0] if len(found) == 1 else _Union(found)
    try:
        encode, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
    except (TypeError, ValueError):  # a version that is no number is compared with numbers
        encode, content_type = choose_encoder("")
    return Answer("200 OK", content_type, encode(source), (("Vary", "Accept"),))


class _Union:
    """Several registries as one: a format allows each metric to appear once only."""

    def __init__(self, registries: list[Any]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Any]:
        families: dict[str, Any] = {}
        for registry in self._registries:
            for family in registry.collect():
                known = families.setdefault(family.name, family)
                if known is not family:
                    seen = {(sample.name, tuple(sample.labels.items())) for sample in known.samples}
                    known.samples += [
                        sample
                        for sample in family.samples
                        if (sample.name, tuple(sample.labels.items())) not in seen
                    ]
        yield from families.values()


def _page(pools: list[RealtimePool], environ: WSGIEnvironment) -> Answer:
    return Answer(
        "200 OK",
        HTML,
        status.render(pools).encode(),
        (("Content-Security-Policy", POLICY), ("Referrer-Policy", "no-referrer")),
    )


def _script(pools: list[RealtimePool], environ: WSGIEnvironment) -> Answer:
    return Answer("200 OK", "text/javascript; charset=utf-8", status.SCRIPT.encode())


def _style(pools: list[RealtimePool], environ: WSGIEnvironment) -> Answer:
    return Answer("200 OK", "text/css; charset=utf-8", status.STYLE.encode())


_ROUTES: Mapping[str, Callable[[list[RealtimePool], WSGIEnvironment], Answer]] = {
    "/": _page,
    "/health": _health,
    "/stats": _stats,
    "/config": _config,
    "/metrics": _metrics,
    "/status.js": _script,
    "/status.css": _style,
}
