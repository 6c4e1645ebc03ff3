"""The monitoring application: addresses, shapes, status codes, headers."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from rtpool_sync import RealtimePool
from rtpool_sync.emulator import Faults, RealtimeServer
from rtpool_sync.web import monitoring_app

Eventually = Callable[[Callable[[], object]], None]
KEY = "sk-very-secret-0123456789"
ORIGINAL_STATS = {
    "total_connections",
    "healthy_connections",
    "active_sessions",
    "total_sessions_handled",
    "max_connections",
}
ORIGINAL_CONFIG = {
    "max_connections",
    "max_connection_age",
    "max_idle_time",
    "health_check_interval",
    "max_sessions_per_connection",
    "ping_interval",
    "ping_timeout",
    "close_timeout",
    "openai_model",
    "websocket_url",
}


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(app: Any, path: str, method: str = "GET", prefix: str = "", **headers: str) -> Response:
    """One request, with both sides of it checked against the WSGI specification."""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "SCRIPT_NAME": prefix, "PATH_INFO": path}
    environ["QUERY_STRING"] = ""
    setup_testing_defaults(environ)
    environ.update({f"HTTP_{name.upper()}": value for name, value in headers.items()})
    told: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
        told.extend((status, headers))
        return lambda data: None

    result = validator(app)(environ, start_response)
    body = b"".join(result)
    result.close()  # type: ignore[attr-defined]
    status, sent = told
    return Response(int(status[:3]), dict(sent), body)


@pytest.fixture
def pool(server: RealtimeServer) -> Iterator[RealtimePool]:
    with RealtimePool(
        base_url=server.base_url,
        api_key=KEY,
        headers={"X-Tenant": "another-secret"},
        registry=CollectorRegistry(),
        max_connections=3,
    ) as pool:
        yield pool


@pytest.fixture
def app(pool: RealtimePool) -> Any:
    return monitoring_app(pool)


def test_health(app: Any, pool: RealtimePool) -> None:
    response = ask(app, "/health")
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.json == {
        "status": "healthy",
        "websocket_manager": {"healthy_connections": 0, "total_connections": 0, "max_connections": 3},
        "message": "the pool works",
    }
    with pool.connection(timeout=10):
        assert ask(app, "/health").json["websocket_manager"]["healthy_connections"] == 1


def test_degraded_is_200_and_unhealthy_503(app: Any, pool: RealtimePool, server: RealtimeServer) -> None:
    held = [pool.acquire(timeout=10) for _ in range(2)]
    server.faults = Faults(refuse=503)
    with pytest.raises(TimeoutError):
        pool.acquire(timeout=0.2)
    response = ask(app, "/health")
    assert (response.status, response.json["status"]) == (200, "degraded")
    for conn in held:
        conn.invalidate()
        pool.release(conn)
    with pytest.raises(TimeoutError):
        pool.acquire(timeout=0.5)
    response = ask(app, "/health")
    assert (response.status, response.json["status"]) == (503, "unhealthy")
    assert "503" in response.json["message"]
    pool.close()
    response = ask(app, "/health")
    assert (response.status, response.json["message"]) == (503, "the pool is closed")


def test_stats(app: Any, pool: RealtimePool) -> None:
    with pool.connection(timeout=10):
        document = ask(app, "/stats").json
        assert document.keys() >= ORIGINAL_STATS | {"idle", "connecting", "resetting", "closing", "waiting"}
        assert {key: document[key] for key in ORIGINAL_STATS} == {
            "total_connections": 1,
            "healthy_connections": 1,
            "active_sessions": 1,
            "total_sessions_handled": 1,
            "max_connections": 3,
        }
        assert document["checkouts"]["ok"] == 1


def test_config(app: Any, pool: RealtimePool) -> None:
    document = ask(app, "/config").json
    assert document.keys() == {"websocket_manager", "note"}
    assert document["websocket_manager"].keys() >= ORIGINAL_CONFIG
    assert document["websocket_manager"] == json.loads(json.dumps(pool.config.as_dict()))


def test_several_pools(app: Any, pool: RealtimePool, server: RealtimeServer) -> None:
    with RealtimePool(
        url=server.echo_url, protocol="plain", name="other", registry=CollectorRegistry()
    ) as other:
        both = monitoring_app(pool, other)
        with pool.connection(timeout=10), other.connection(timeout=10), other.connection(timeout=10):
            document = ask(both, "/stats").json
            assert {key: document[key] for key in ORIGINAL_STATS} == {
                "total_connections": 3,
                "healthy_connections": 3,
                "active_sessions": 3,
                "total_sessions_handled": 3,
                "max_connections": 13,
            }
            assert document["checkouts"]["ok"] == 3
            assert [(p["name"], p["active_sessions"]) for p in document["pools"]] == [
                ("default", 1),
                ("other", 2),
            ]
            # Each has a registry of its own: every metric is there once, with both.
            families = list(parse(ask(both, "/metrics").body.decode()))
            assert len({f.name for f in families}) == len(families)
            sums = {
                s.labels["pool"]: s.value for f in families if f.name == "rtpool_sessions" for s in f.samples
            }
            assert sums == {"default": 1.0, "other": 2.0}
        assert [p["name"] for p in ask(both, "/config").json["pools"]] == ["default", "other"]
        assert ask(both, "/health").json["message"] == "all 2 pools work"
        other.close()
        response = ask(both, "/health")
        assert (response.status, response.json["status"]) == (503, "unhealthy")
        assert response.json["message"] == "pool 'other': the pool is closed"
        assert [p["status"] for p in response.json["pools"]] == ["healthy", "unhealthy"]


def test_two_pools_of_one_name_and_one_that_is_reopened(server: RealtimeServer) -> None:
    registry = CollectorRegistry()
    options = {"url": server.echo_url, "protocol": "plain", "name": "twin", "registry": registry}
    with RealtimePool(**options) as one, RealtimePool(**options) as other:
        app = monitoring_app(one, other)
        for pool in (one, one, other):
            with pool.connection(timeout=10):
                pass
        document = ask(app, "/stats").json
        assert [(p["name"], p["total_sessions_handled"]) for p in document["pools"]] == [
            ("twin", 2),
            ("twin", 1),
        ]
        assert document["total_sessions_handled"] == 3
        assert 'rtpool_sessions_total{pool="twin"} 3.0' in ask(app, "/metrics").body.decode()
        one.close()
        assert ask(app, "/health").status == 503
        assert ask(app, "/").status == 200
        assert 'rtpool_max_connections{pool="twin"} 10.0' in ask(app, "/metrics").body.decode()
        one.open()
        with one.connection(timeout=10):
            assert ask(app, "/health").status == 200
            text = ask(app, "/metrics").body.decode()
        assert 'rtpool_sessions_total{pool="twin"} 4.0' in text
        assert 'rtpool_max_connections{pool="twin"} 20.0' in text


def test_metrics(app: Any, pool: RealtimePool) -> None:
    response = ask(app, "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert response.headers["Vary"] == "Accept"
    assert "rtpool_checkouts" in {family.name for family in parse(response.body.decode())}


def test_metrics_in_openmetrics_if_asked_for(app: Any) -> None:
    asked = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4"
    response = ask(app, "/metrics", accept=asked)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.body.endswith(b"# EOF\n")
    assert "rtpool_checkouts" in {family.name for family in parse_openmetrics(response.body.decode())}


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/plain"),
        # Prometheus 2, then 3:
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text",
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
            "application/openmetrics-text;version=0.0.1;q=0.4,"
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "application/openmetrics-text",
        ),
        # Nonsense is no fault of ours:
        ("application/openmetrics-text;version=new", ""),
        (";;;,,,=", "text/plain"),
    ],
)
def test_the_format_is_what_was_asked_for(app: Any, accept: str, kind: str) -> None:
    response = ask(app, "/metrics", accept=accept)
    assert response.status == 200
    assert response.headers["Content-Type"].startswith(kind)
    read = parse_openmetrics if "openmetrics" in response.headers["Content-Type"] else parse
    assert "rtpool_checkouts" in {family.name for family in read(response.body.decode())}


def test_metrics_show_what_else_is_in_the_registry_and_pools_not_yet_started(server: RealtimeServer) -> None:
    registry = CollectorRegistry()
    Counter("orders", "The application's own.", registry=registry).inc()
    pool = RealtimePool(url=server.echo_url, protocol="plain", registry=registry)
    text = ask(monitoring_app(pool), "/metrics").body.decode()
    assert "orders_total 1.0" in text
    assert 'rtpool_checkouts_total{outcome="timeout",pool="default"} 0.0' in text


def test_a_pool_that_is_not_exported_is_shown_but_for_its_metrics(
    app: Any, pool: RealtimePool, server: RealtimeServer
) -> None:
    with RealtimePool(url=server.echo_url, protocol="plain", name="private", registry=False) as private:
        with private.connection(timeout=10), pool.connection(timeout=10):
            for both in (monitoring_app(private, pool), monitoring_app(pool, private)):
                response = ask(both, "/metrics")
                assert response.status == 200
                assert b'rtpool_sessions_total{pool="default"} 1.0' in response.body
                assert b"private" not in response.body
            alone = monitoring_app(private)
            response = ask(alone, "/metrics")  # what else the process has to show
            assert (response.status, b"private" in response.body) == (200, False)
            assert ask(alone, "/stats").json["active_sessions"] == 1
            assert b"private" in ask(alone, "/").body


@pytest.mark.parametrize(
    "path", ["/", "/health", "/stats", "/config", "/metrics", "/status.js", "/status.css"]
)
def test_head_and_headers(app: Any, path: str) -> None:
    response = ask(app, path)
    assert response.status == 200
    assert response.headers["Content-Length"] == str(len(response.body))
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    head = ask(app, path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers.keys() == response.headers.keys()
    assert head.headers["Content-Type"] == response.headers["Content-Type"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(app: Any, method: str) -> None:
    response = ask(app, "/health", method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/healthz", "/health/", "//", "/../health", "/stats/x", "/favicon.ico"])
def test_there_is_nothing_else(app: Any, path: str) -> None:
    response = ask(app, path)
    assert response.status == 404
    assert response.headers["Cache-Control"] == "no-store"
    assert ask(app, path, "POST").status == 404


def test_below_a_prefix(app: Any) -> None:
    assert ask(app, "/health", prefix="/ops/realtime").status == 200
    # The page's links are relative: without the slash they would lead beside the application.
    response = ask(app, "", prefix="/ops/real time")
    assert (response.status, response.headers["Location"]) == (308, "real%20time/")
    assert ask(app, "").status == 200  # at the root there is no difference


def test_no_secret_anywhere(pool: RealtimePool, app: Any, server: RealtimeServer) -> None:
    with pool.connection(timeout=10) as conn:
        conn.invalidate(f"quoted by mistake: {KEY}")
    server.faults = Faults(refuse=401, refuse_body=json.dumps({"error": {"message": f"bad key {KEY}"}}))
    with pytest.raises(ConnectionError):
        pool.acquire(timeout=5)
    for path in ("/", "/health", "/stats", "/config", "/metrics"):
        body = ask(app, path).body
        assert b"very-secret" not in body
        assert b"another-secret" not in body


def test_without_pools_it_shows_those_of_the_process(
    run_program: Callable[..., str], server: RealtimeServer
) -> None:
    out = run_program(
        f"""
import json
from wsgiref.util import setup_testing_defaults
from rtpool_sync import RealtimePool
from rtpool_sync.web import monitoring_app
app = monitoring_app()
def ask(path):
    environ = dict(PATH_INFO=path)
    setup_testing_defaults(environ)
    return b"".join(app(environ, lambda status, headers: print(status))).decode()
print(json.loads(ask("/health"))["message"])
print(json.loads(ask("/stats")))
print(json.loads(ask("/config"))["websocket_manager"])
assert "no pool" in ask("/")
b = RealtimePool(url={server.echo_url!r}, protocol="plain", name="b")
a = RealtimePool(url={server.echo_url!r}, protocol="plain", name="a")
default = RealtimePool(url={server.echo_url!r}, protocol="plain")
print([p["name"] for p in json.loads(ask("/stats"))["pools"]])
a.close()
default.close()
print(json.loads(ask("/stats"))["name"])
b.close()
print(json.loads(ask("/health"))["status"])
"""
    )
    empty = dict.fromkeys(
        ("total_connections", "healthy_connections", "active_sessions", "total_sessions_handled"), 0
    )
    assert out.splitlines() == [
        "200 OK",
        "there is no pool yet",
        "200 OK",
        str({**empty, "max_connections": 0, "pools": []}),
        "200 OK",
        "{}",
        "200 OK",
        "200 OK",
        "['default', 'a', 'b']",
        "200 OK",
        "b",
        "503 Service Unavailable",
        "unhealthy",
    ]


def test_a_fault_of_ours_is_a_500_that_tells_nothing(
    app: Any, pool: RealtimePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("internals")

    monkeypatch.setattr(pool, "health", fail)
    response = ask(app, "/health")
    assert response.status == 500
    assert b"internals" not in response.body
    assert "failed at /health" in caplog.text  # but the log does
    assert "internals" in caplog.text


def test_what_is_no_pool_is_refused_at_once() -> None:
    with pytest.raises(TypeError):
        monitoring_app("default")  # type: ignore[arg-type]


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(app: Any) -> Iterator[WSGIServer]:
    with make_server("127.0.0.1", 0, validator(app), handler_class=Quiet) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            web.shutdown()
            thread.join()


def test_over_a_real_socket_while_the_pool_works(app: Any, pool: RealtimePool) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with pool.connection(timeout=10):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    with served(app) as web:
        for path in ("/", "/health", "/stats", "/config", "/metrics") * 5:
            client = http.client.HTTPConnection("127.0.0.1", web.server_port, timeout=10)
            client.request("GET", path)
            response = client.getresponse()
            body = response.read()
            client.close()
            assert response.status == 200, body
            if path == "/stats":
                numbers = json.loads(body)
                states = ("idle", "in_use", "connecting", "resetting", "closing")
                assert sum(numbers[state] for state in states) == numbers["total_connections"] <= 3
    stop.set()
    for thread in threads:
        thread.join()


def test_metrics_of_several_processes(
    run_program: Callable[..., str], server: RealtimeServer, tmp_path: Any
) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    out = run_program(
        f"""
import os
from wsgiref.util import setup_testing_defaults
from rtpool_sync import RealtimePool
from rtpool_sync.web import monitoring_app
pool = RealtimePool(url={server.echo_url!r}, protocol="plain")
app = monitoring_app(pool)
for _ in range(2):
    pid = os.fork()
    if not pid:
        with pool.connection(): pass
        pool.close()
        os._exit(0)
    os.waitpid(pid, 0)
with pool.connection(): pass
environ = dict(PATH_INFO="/metrics")
setup_testing_defaults(environ)
text = b"".join(app(environ, lambda status, headers: None)).decode()
pool.close()
print([line for line in text.splitlines() if line.startswith("rtpool_sessions_total")])
""",
        PROMETHEUS_MULTIPROC_DIR=str(folder),
    )
    assert out == "['rtpool_sessions_total{pool=\"default\"} 3.0']\n"
