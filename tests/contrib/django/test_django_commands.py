"""``manage.py``: nothing opens by itself, in no command; and what ``realtime`` tells."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import CommandError, call_command
from django.test import override_settings
from django_support import KEY, eventually, pool_threads

from rtpool_sync.contrib.django import connection, pools
from rtpool_sync.emulator import RealtimeServer

Configure = Callable[..., None]
ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("realtime", *arguments, stdout=out, stderr=out, no_color=True)
    text = out.getvalue()
    assert KEY not in text
    return text


# -- manage.py realtime


def test_config(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure({"default": {}, "support": {"MIN_IDLE": 1}})
    monkeypatch.setenv("WEBSOCKET_PING_TIMEOUT", "12")
    text = run("config")
    assert "Settings of pool 'default', which connects to ws://127.0.0.1:" in text
    assert re.search(r"^ *ping_timeout +12 +environment variable WEBSOCKET_PING_TIMEOUT", text, re.MULTILINE)
    assert re.search(
        r"^ *min_idle +1 +application setting REALTIME_POOLS support MIN_IDLE", text, re.MULTILINE
    )
    assert re.search(r"^ *api_key +'\*\*\*'", text, re.MULTILINE)
    document = json.loads(run("config", "support", "--json"))
    assert list(document) == ["support"]
    assert {"setting", "value", "from", "variable"} == set(document["support"][0])


def test_check(configure: Configure, emulator: RealtimeServer) -> None:
    configure({"default": {"MIN_IDLE": 3}, "support": {}})
    opened = emulator.opened_total
    text = run("check")
    assert "no issues" in text
    assert len(re.findall(r"^  ready in \d+ ms, ping [\d.]+ ms$", text, re.MULTILINE)) == 2
    assert emulator.opened_total == opened + 2  # one each, whatever is kept in reserve
    assert pool_threads() == []
    run("check", "support")
    assert emulator.opened_total == opened + 3
    run("check", "--settings-only")
    assert emulator.opened_total == opened + 3


def test_check_of_what_cannot_work(configure: Configure) -> None:
    configure({"default": {"URL": "ws://127.0.0.1:1"}})
    out = io.StringIO()
    with pytest.raises(CommandError, match="not every pool can connect"):
        call_command("realtime", "check", "--timeout", "0.5", stdout=out, stderr=out)
    assert out.getvalue().count("Connection refused") == 1
    for nonsense in ("0", "-1", "nan", "inf", "x"):
        with pytest.raises(CommandError, match="is not a number of seconds"):
            run("check", "--timeout", nonsense)
    with override_settings(REALTIME_POOLS={"default": {"API_KEY": KEY, "MAX_CONNECTIONS": 0}}):
        with pytest.raises(CommandError) as info:
            run("check")
        assert "rtpool.E004" in str(info.value)
        assert KEY not in str(info.value)
        with pytest.raises(CommandError, match="MAX_CONNECTIONS: must be"):
            run("config")
    with pytest.raises(CommandError, match=r"there is no pool 'suport'"):
        run("check", "suport")


def test_check_with_a_wrong_key() -> None:
    with RealtimeServer(api_keys=["another"]) as server:
        table = {"API_KEY": KEY, "BASE_URL": server.base_url}
        out = io.StringIO()
        with override_settings(REALTIME_POOLS={"default": table}), pytest.raises(CommandError):
            call_command("realtime", "check", stdout=out, stderr=out)
    assert "401" in out.getvalue() or "API key" in out.getvalue()
    assert KEY not in out.getvalue()


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """This project, served over HTTP."""
    server = make_server("127.0.0.1", 0, WSGIHandler(), handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="site")
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(10.0)
    server.server_close()


def test_status(configure: Configure, site: str) -> None:
    configure({"default": {"MAX_CONNECTIONS": 4}, "support": {}})
    text = run("status")
    assert re.search(r"^ *default +ws://127\.0\.0\.1:\S+ +4 +0$", text, re.MULTILINE)
    assert pools.all(initialized_only=True) == []
    with connection():
        for url in (f"{site}/realtime", f"{site}/realtime/"):
            text = run("status", "--url", url)
            assert text.startswith("healthy: ")
            assert re.search(r"^ *default +1 +0 +0 +0 +0 +4 +1$", text, re.MULTILINE)
    for wrong, text in (
        ("file:///etc/passwd", "must be an http"),
        ("http://127.0.0.1:1/", "refused"),
        (site, "404"),
    ):
        with pytest.raises(CommandError, match=text):
            run("status", "--url", wrong)


def test_status_of_one_that_is_unhealthy(configure: Configure, site: str) -> None:
    configure({"default": {"URL": "ws://127.0.0.1:1"}})
    with pytest.raises(TimeoutError), connection(timeout=0.2):
        pass
    out = io.StringIO()
    with pytest.raises(CommandError, match="unhealthy"):
        call_command("realtime", "status", "--url", f"{site}/realtime/", stdout=out)
    assert out.getvalue().startswith("unhealthy: no live connection")


def test_usage() -> None:
    for arguments in ((), ("nonsense",)):
        with pytest.raises(CommandError):
            run(*arguments)


# -- a project of its own, with its manage.py

MANAGE = """
import os, sys, threading

#: What is opened and started: told by the interpreter itself, whoever does it.
seen = []

def hook(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo"):
        seen.append(event)

def start(thread, start=threading.Thread.start):
    seen.append("thread")
    start(thread)

sys.addaudithook(hook)
threading.Thread.start = start

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
    print("seen:", sorted(set(seen)))
    print("threads:", [t.name for t in threading.enumerate() if t.name.startswith("rtpool")])
"""
SETTINGS = """
import os
SECRET_KEY = "x"
DEBUG = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "site_urls"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "rtpool_sync.contrib.django"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3"}}
REALTIME_POOLS = {"default": {"MIN_IDLE": 2, "MAX_CONNECTIONS": 4}}
"""
URLS = """
from django.http import HttpResponse
from django.urls import include, path
from rtpool_sync.contrib.django import connection

VERSION = 1

def ask(request):
    with connection() as conn:
        conn.ping()
        return HttpResponse(f"{VERSION} {conn.id}")

urlpatterns = [path("ask", ask), path("realtime/", include("rtpool_sync.contrib.django.urls"))]
"""


class Project:
    def __init__(self, folder: Path, emulator: RealtimeServer) -> None:
        self.folder = folder
        for name, text in (("manage", MANAGE), ("site_settings", SETTINGS), ("site_urls", URLS)):
            (folder / f"{name}.py").write_text(text)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE_", "COV_", "DJANGO_"))},
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": emulator.base_url,
        }

    def manage(self, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "manage.py", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert KEY not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with RealtimeServer() as server:
        project = Project(tmp_path, server)
        project.emulator = server  # type: ignore[attr-defined]
        yield project


@pytest.mark.parametrize(
    "arguments",
    [
        ("check",),
        ("check", "--deploy"),
        ("migrate",),
        (
            "shell",
            "-c",
            "from rtpool_sync.contrib.django import pools; print(pools['default'], len(pools.all()))",
        ),
        ("realtime", "config"),
        ("realtime", "status"),
        ("realtime", "check", "--settings-only"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_nothing_opens_by_itself(project: Any, arguments: tuple[str, ...]) -> None:
    out = project.manage(*arguments)
    assert "seen: []\nthreads: []\n" in out
    assert project.emulator.opened_total == 0


def test_the_test_sees_what_opens(project: Any) -> None:
    out = project.manage("realtime", "check")
    assert "'socket.connect'" in out
    assert "'thread'" in out


def test_without_a_key_everything_but_checkouts_works(project: Any) -> None:
    project.environment.pop("OPENAI_API_KEY")
    assert "seen: []" in project.manage("migrate")
    assert "seen: []" in project.manage("check")


def test_an_error_stops_a_command_with_its_id(project: Any) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=project.folder,
        env={**project.environment, "WEBSOCKET_PING_TIMEOUT": "-3"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert (
        "(rtpool.E004) environment variable WEBSOCKET_PING_TIMEOUT: must be a number of seconds"
        in done.stderr
    )
    assert "HINT: `manage.py realtime config`" in done.stderr


class Running:
    """``manage.py runserver`` with its reloader, on a port of its own choice."""

    def __init__(self, project: Any, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "runserver", "127.0.0.1:0", *options],
            cwd=project.folder,
            env=project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, name="output of runserver")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def ports(self) -> list[int]:
        return [int(port) for port in re.findall(r"at http://127\.0\.0\.1:(\d+)/", "".join(self.lines))]

    def get(self, path: str) -> str:
        client = http.client.HTTPConnection("127.0.0.1", self.ports[-1], timeout=20.0)
        try:
            client.request("GET", path)
            return client.getresponse().read().decode()
        finally:
            client.close()

    def reserve_is_open(self) -> bool:
        """What is being opened when the process ends is dropped, without a close frame."""
        stats = json.loads(self.get("/realtime/stats"))
        return bool(stats["idle"] >= 2 and stats["connecting"] == 0)

    def _alive(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(15.0)
            eventually(lambda: not self._alive(), what="the reloader's child ends as well")
        finally:
            if self._alive():
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5.0)
            self._reader.join(5.0)
            assert self.process.stdout is not None
            self.process.stdout.close()


def test_runserver_and_its_reloader(project: Any) -> None:
    """It imports everything twice, and again after each change: nothing is opened before a request,
    and what an old process had open is closed with a close frame."""
    emulator = project.emulator
    running = Running(project)
    try:
        eventually(lambda: running.ports, 20.0, "it listens")
        assert "healthy" in running.get("/realtime/health")
        assert emulator.opened_total == 0
        assert running.get("/ask").startswith("1 ")
        eventually(running.reserve_is_open, what="the reserve")

        urls = project.folder / "site_urls.py"
        urls.write_text(URLS.replace("VERSION = 1", "VERSION = 22"))

        touches = itertools.count(1)

        def noticed() -> bool:
            # The first look of the reloader, each second, is what it compares with: it may have come late.
            later = time.time() + 10 * next(touches)
            os.utime(urls, (later, later))
            time.sleep(1.2)
            return "site_urls.py changed, reloading" in "".join(running.lines)

        eventually(noticed, 20.0, "the change is noticed")
        eventually(lambda: len(running.ports) == 2, 20.0, "it was reloaded")
        eventually(
            lambda: len(emulator.closed) == emulator.opened_total, what="the old process has closed its own"
        )
        before = emulator.opened_total
        assert "healthy" in running.get("/realtime/health")
        assert emulator.opened_total == before
        assert running.get("/ask").startswith("22 ")
        eventually(running.reserve_is_open, what="the reserve of the new process")
    finally:
        running.stop()
    eventually(lambda: len(emulator.closed) == emulator.opened_total, what="all are closed")
    assert {closed.code for closed in emulator.closed} == {1001}
    assert "Traceback" not in "".join(running.lines)
