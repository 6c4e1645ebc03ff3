"""The Flask extension against the embedded server."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, abort, redirect, send_file, stream_with_context
from werkzeug.exceptions import Unauthorized
from werkzeug.serving import make_server

from rtpool_sync import ConfigError, ConnectionReturned
from rtpool_sync.contrib.flask import Realtime
from rtpool_sync.emulator import RealtimeServer

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "WEBSOCKET_", "RTPOOL_", "REALTIME_", "FLASK_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        yield server


@pytest.fixture
def made() -> Iterator[list[tuple[Realtime, Flask]]]:
    """Extensions and applications whose pools the test's end closes."""
    made: list[tuple[Realtime, Flask]] = []
    yield made
    for realtime, app in made:
        realtime.close(app, timeout=0.0)


def new_app(server: RealtimeServer, **config: Any) -> Flask:
    app = Flask("app")
    settings = {"REALTIME_BASE_URL": server.base_url, "REALTIME_API_KEY": SECRET, "REALTIME_CLOSE_TIMEOUT": 1}
    app.config.update({**settings, **config})
    return app


@pytest.fixture
def realtime(server: RealtimeServer, made: list[tuple[Realtime, Flask]]) -> tuple[Realtime, Flask]:
    realtime = Realtime(registry=False)
    app = new_app(server)
    realtime.init_app(app)
    made.append((realtime, app))
    return realtime, app


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def leaks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "returned for it" in record.getMessage()]


def test_nothing_opens_before_the_first_checkout(
    realtime: tuple[Realtime, Flask], server: RealtimeServer
) -> None:
    extension, app = realtime
    threads = threading.active_count()
    client = app.test_client()
    for page in ("", "health", "stats", "config", "metrics", "status.js", "status.css"):
        assert client.get(f"/realtime/{page}").status_code == 200
    assert app.test_cli_runner().invoke(args=["realtime", "status"]).exit_code == 0
    assert app.test_cli_runner().invoke(args=["realtime", "config"]).exit_code == 0
    assert (server.opened_total, threading.active_count()) == (0, threads)
    with app.app_context(), extension.connection() as conn:
        assert conn.ping() < 5
    eventually(lambda: server.opened_total == 1)


def test_each_application_has_a_pool_of_its_own(server: RealtimeServer) -> None:
    extension = Realtime(registry=False)
    apps = [new_app(server, REALTIME_MAX_CONNECTIONS=size) for size in (3, 4)]
    for app in apps:
        extension.init_app(app)
    pools = [extension.pool_of(app) for app in apps]
    assert [pool.config.max_connections for pool in pools] == [3, 4]
    for app, pool in zip(apps, pools, strict=True):
        with app.app_context():
            assert extension.pool is pool
        assert app.extensions["realtime"]["default"] is pool


def test_several_pools_of_one_application(server: RealtimeServer) -> None:
    app = new_app(server, REALTIME_POOLS={"support": {"max_connections": 2}})
    default, support = Realtime(app, registry=False), Realtime(app, name="support", registry=False)
    assert default.pool_of(app).config.max_connections == 10
    assert support.pool_of(app).config.max_connections == 2
    stats = app.test_client().get("/realtime/stats").get_json()
    assert [pool["name"] for pool in stats["pools"]] == ["default", "support"]
    with pytest.raises(RuntimeError, match="already"):
        Realtime(app)


def test_arguments_win_and_no_secret_shows(server: RealtimeServer) -> None:
    app = new_app(server)
    extension = Realtime(app, registry=False, max_connections=7, api_key=SECRET)
    pool = extension.pool_of(app)
    assert pool.config.max_connections == 7
    texts = [repr(extension), repr(vars(extension)), repr(app.extensions["realtime"])]
    for page in ("", "config", "stats", "metrics"):
        texts.append(app.test_client().get(f"/realtime/{page}").text)
    texts.append(app.test_cli_runner().invoke(args=["realtime", "config", "--json"]).output)
    assert not any(SECRET in text for text in texts)


def test_flask_dynaconf(server: RealtimeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynaconf import FlaskDynaconf

    (tmp_path / "settings.toml").write_text(
        f'[default]\nrealtime_base_url = "{server.base_url}"\nrealtime_api_key = "any"\n'
        "[development]\nrealtime_max_connections = 3\n[production]\nrealtime_max_connections = 30\n"
    )
    monkeypatch.setenv("FLASK_ENV", "production")
    monkeypatch.setenv("FLASK_REALTIME_MIN_IDLE", "2")
    app = Flask("app")
    extension = Realtime(registry=False)
    extension.init_app(app)
    FlaskDynaconf(app, settings_files=[str(tmp_path / "settings.toml")])
    config = extension.pool_of(app).config
    assert (config.max_connections, config.min_idle) == (30, 2)


def test_settings_files(server: RealtimeServer, tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text("[development]\nwebsocket_max_connections = 5\n")
    app = new_app(server, REALTIME_SETTINGS_FILES=[str(tmp_path / "pool.toml")])
    assert Realtime(app, registry=False).pool_of(app).config.max_connections == 5


def test_misuse_is_told(server: RealtimeServer) -> None:
    app = new_app(server)
    extension = Realtime(registry=False)
    with pytest.raises(RuntimeError, match="application context"):
        extension.connection()
    with app.app_context(), pytest.raises(RuntimeError, match="init_app"):
        extension.connection()
    extension.init_app(app)
    with pytest.raises(ValueError):
        extension.release(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Realtime(guard=True)  # type: ignore[arg-type]


def test_settings_that_cannot_be_used(server: RealtimeServer) -> None:
    app = new_app(server, REALTIME_MAX_CONNECTIONS="many")
    extension = Realtime(app)
    with app.app_context(), pytest.raises(ConfigError, match="REALTIME_MAX_CONNECTIONS"):
        extension.connection()
    answer = app.test_client().get("/realtime/health")
    assert (answer.status_code, answer.get_json()["status"]) == (503, "unhealthy")
    for command in ("status", "check", "config"):
        done = app.test_cli_runner().invoke(args=["realtime", command])
        assert done.exit_code == 1
        assert "REALTIME_MAX_CONNECTIONS" in done.output


@pytest.mark.parametrize("prefix", ["/internal/pool", "/internal/pool/", ""])
def test_the_pages_are_where_they_are_put(server: RealtimeServer, prefix: str) -> None:
    app = new_app(server)
    Realtime(app, prefix, registry=False)
    client = app.test_client()
    base = prefix.rstrip("/")
    assert client.get(f"{base}/health").get_json()["status"] == "healthy"
    assert client.get("/realtime/health").status_code == 404
    assert client.head(f"{base}/health").status_code == 200
    assert client.post(f"{base}/health").status_code == 405
    assert "<html" in client.get(f"{base}/").text


def test_the_pages_can_be_switched_off(server: RealtimeServer) -> None:
    app = new_app(server)
    Realtime(app, url_prefix=None, registry=False)
    assert app.test_client().get("/realtime/health").status_code == 404
    assert [rule.rule for rule in app.url_map.iter_rules()] == ["/static/<path:filename>"]


async def consent() -> bool:
    return True


async def refusal() -> bool:
    return False


@pytest.mark.parametrize(
    ("guard", "status"),
    [
        (lambda: True, 200),
        (lambda: object(), 200),
        (lambda: None, 403),
        (lambda: "", 403),
        (lambda: ("no", 401), 401),
        (lambda: redirect("/login"), 302),
        (lambda: Unauthorized(), 401),
        (lambda: abort(418), 418),
        (consent, 200),
        (refusal, 403),
    ],
)
def test_a_guard_decides(server: RealtimeServer, guard: Callable[[], Any], status: int) -> None:
    app = new_app(server)
    Realtime(app, guard=guard, registry=False)
    for page in ("", "health", "stats", "config", "metrics", "status.js", "status.css"):
        assert app.test_client().get(f"/realtime/{page}").status_code == status


def test_of_several_guards_each_has_to_agree(server: RealtimeServer) -> None:
    app = new_app(server)
    Realtime(app, guard=lambda: False, registry=False)
    Realtime(app, name="support", guard=lambda: True, registry=False)
    assert app.test_client().get("/realtime/health").status_code == 403


def test_a_leak_goes_back_at_the_end_of_the_request(
    realtime: tuple[Realtime, Flask], caplog: pytest.LogCaptureFixture
) -> None:
    extension, app = realtime
    kept: list[Any] = []

    @app.get("/leak/<secret>")
    def leaky(secret: str) -> str:
        kept.append(extension.acquire())
        return "ok"

    @app.get("/entered")
    def entered() -> str:
        checkout = extension.connection()
        kept.extend([checkout, checkout.__enter__()])
        return "ok"

    @app.get("/raises")
    def raises() -> str:
        kept.append(extension.acquire())
        raise RuntimeError("defect")

    @app.get("/lost")
    def lost() -> str:
        extension.acquire()
        return "ok"

    @app.get("/fine")
    def fine() -> str:
        with extension.connection() as conn:
            conn.ping()
        return "ok"

    client = app.test_client()
    pool = extension.pool_of(app)
    for path, words in {
        "/leak/4711": "endpoint 'leaky' (GET /leak/<secret>) did not return",
        "/entered": "endpoint 'entered' (GET /entered) did not return",
        "/raises": "endpoint 'raises' (GET /raises) did not return",
        "/lost": "endpoint 'lost' (GET /lost) lost",
    }.items():
        caplog.clear()
        client.get(path)
        assert len(leaks(caplog)) == 1
        assert leaks(caplog)[0].startswith(words)
        assert "test_flask_extension.py" in leaks(caplog)[0]
        assert "4711" not in caplog.text
        eventually(lambda: pool.stats().active_sessions == 0)
    caplog.clear()
    client.get("/fine")
    with pytest.raises(ConnectionReturned):
        kept[0].send({})
    # A test's own application context does not outlast the request's.
    with app.app_context():
        client.get("/leak/1")
        assert len(leaks(caplog)) == 1
        kept.append(extension.acquire())
    assert leaks(caplog)[1].startswith("a context outside of requests did not return")


@pytest.mark.parametrize("wrap", [stream_with_context, lambda generator: generator])
def test_a_stream_keeps_what_its_view_borrowed(
    realtime: tuple[Realtime, Flask], caplog: pytest.LogCaptureFixture, wrap: Any
) -> None:
    extension, app = realtime

    def stream(returns: bool) -> Response:
        conn = extension.acquire()

        def generate() -> Iterator[str]:
            for _ in range(3):
                yield f"{conn.ping() < 5}\n"
            if returns:
                extension.release(conn)
            kept.append(conn)

        return Response(wrap(generate()))

    kept: list[Any] = []
    app.add_url_rule("/good", "good", lambda: stream(True))
    app.add_url_rule("/bad", "bad", lambda: stream(False))
    with app.test_client().get("/good") as answer:
        assert answer.text == "True\n" * 3
    assert leaks(caplog) == []
    with app.test_client().get("/bad") as answer:
        assert answer.text == "True\n" * 3
    assert len(leaks(caplog)) == 1
    assert extension.pool_of(app).stats().active_sessions == 0
    # And one whose reader goes away.
    caplog.clear()
    answer = app.test_client().get("/bad", buffered=False)
    next(answer.iter_encoded())
    answer.close()
    del answer
    gc.collect()
    eventually(lambda: extension.pool_of(app).stats().active_sessions == 0)


def test_a_stream_that_nobody_reads(
    realtime: tuple[Realtime, Flask], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    extension, app = realtime
    kept: list[Any] = []

    @app.get("/stream")
    def stream() -> Response:
        kept.append(extension.acquire())
        return Response(iter("abc"))

    @app.get("/file")
    def file() -> Response:
        kept.append(extension.acquire())
        (tmp_path / "file").write_text("text")
        return send_file(tmp_path / "file")

    client = app.test_client()
    for ask in (lambda: client.head("/stream"), lambda: client.get("/file")):
        caplog.clear()
        ask().close()
        assert len(leaks(caplog)) == 1
        assert extension.pool_of(app).stats().active_sessions == 0


def test_a_stream_that_borrows_itself(
    realtime: tuple[Realtime, Flask], caplog: pytest.LogCaptureFixture
) -> None:
    extension, app = realtime
    kept: list[Any] = []

    @app.get("/stream")
    def stream() -> Response:
        def generate() -> Iterator[str]:
            kept.append(extension.acquire())
            yield "a"
            yield str(kept[-1].ping() < 5)

        return Response(stream_with_context(generate()))

    with app.test_client().get("/stream") as answer:
        assert answer.text == "aTrue"
    eventually(lambda: len(leaks(caplog)) == 1)
    assert leaks(caplog)[0].startswith("endpoint 'stream'")


def test_the_commands(realtime: tuple[Realtime, Flask], server: RealtimeServer) -> None:
    _, app = realtime
    runner = app.test_cli_runner()
    done = runner.invoke(args=["realtime", "check"])
    assert done.exit_code == 0, done.output
    eventually(lambda: server.opened_total == 1)
    assert "ready in" in done.output
    eventually(lambda: not server.connections)
    shown = json.loads(runner.invoke(args=["realtime", "config", "--json"]).output)
    assert {row["setting"]: row["from"] for row in shown["default"]}["base_url"].endswith("REALTIME_BASE_URL")
    app.config["REALTIME_BASE_URL"] = "http://127.0.0.1:9"
    done = runner.invoke(args=["realtime", "check", "--timeout", "1"])
    assert done.exit_code == 1
    assert "not every pool" in done.output
    told = next(line for line in done.output.splitlines() if line.startswith("  "))
    assert told.count("Connection refused") == 1
    assert SECRET not in done.output
    for nonsense in ("0", "-1", "nan", "inf"):
        done = runner.invoke(args=["realtime", "check", "--timeout", nonsense])
        assert done.exit_code == 2
        assert "is not a number of seconds" in done.output


def test_status_of_a_running_server(realtime: tuple[Realtime, Flask]) -> None:
    extension, app = realtime
    runner = app.test_cli_runner()

    @app.get("/other/health")
    def other() -> list[int]:
        return []

    with make_server("127.0.0.1", 0, app, threaded=True) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{web.server_port}"
            with app.app_context(), extension.connection():
                done = runner.invoke(args=["realtime", "status", "--url", f"{url}/realtime"])
            assert (done.exit_code, done.output.splitlines()[0].partition(":")[0]) == (0, "healthy")
            assert "default" in done.output
            extension.pool_of(app).close()
            done = runner.invoke(args=["realtime", "status", "--url", f"{url}/realtime/"])
            assert (done.exit_code, done.output.splitlines()[0].partition(":")[0]) == (1, "unhealthy")
            for wrong in (f"{url}/nowhere", f"{url}/other", "http://127.0.0.1:9", "file:///etc"):
                assert runner.invoke(args=["realtime", "status", "--url", wrong]).exit_code == 1
        finally:
            web.shutdown()
            thread.join()


def test_two_prefixes_that_look_alike(server: RealtimeServer) -> None:
    app = new_app(server)
    Realtime(app, "/a/b", registry=False)
    Realtime(app, "/a_b", name="support", guard=lambda: False, registry=False)
    client = app.test_client()
    assert [client.get(f"/{prefix}/health").status_code for prefix in ("a/b", "a_b")] == [200, 403]


def test_an_application_that_is_dropped_takes_its_pool_along(server: RealtimeServer) -> None:
    extension, app = Realtime(registry=False), new_app(server)
    extension.init_app(app)
    with app.app_context(), extension.connection():
        pass
    threads = {thread for thread in threading.enumerate() if "rtpool" in thread.name}
    assert threads
    del app
    gc.collect()
    eventually(lambda: not server.connections)


def test_close_and_use_again(realtime: tuple[Realtime, Flask], server: RealtimeServer) -> None:
    extension, app = realtime
    with app.app_context():
        with extension.connection():
            pass
        first = extension.pool
        extension.close(app)
        assert first.closed
        with extension.connection():
            pass
    eventually(lambda: server.opened_total == 2)


def test_a_forked_child_has_connections_of_its_own(
    realtime: tuple[Realtime, Flask], server: RealtimeServer
) -> None:
    extension, app = realtime
    with app.app_context(), extension.connection() as conn:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                with app.app_context(), extension.connection(10) as mine:
                    mine.ping()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert conn.ping() < 5
    eventually(lambda: server.opened_total == 2)


def test_without_flask_the_extra_is_named() -> None:
    program = "import sys; sys.modules['flask'] = None; import rtpool_sync.contrib.flask"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert "pip install 'rtpool-sync[flask]'" in done.stderr.splitlines()[-1]


def test_a_slip_in_a_keyword_is_found_at_once() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_connections'"):
        Realtime(max_conections=3, api_key=SECRET)
