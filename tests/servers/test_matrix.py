"""The same for every server: nobody hears another's answer, nothing fails, all is closed at the end."""

from __future__ import annotations

import collections
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from server_process import Asking, Load, ServerProcess, eventually, free_port, running
from serving import GRACEFUL, HOOKS, MAX_CONNECTIONS, SLOW, WORKERS, gunicorn, settings

from rtpool_sync.emulator import RealtimeServer

HERE = Path(__file__).parent

APACHE2 = "/usr/sbin/apache2"  # not on everybody's PATH

PATCH = "from gevent import monkey; monkey.patch_all()\n"


def uwsgi(folder: Path, environment: dict[str, str], *options: str) -> AbstractContextManager[ServerProcess]:
    port = free_port()
    argv = [Path(sys.executable).parent / "uwsgi", "--master", "--processes", str(WORKERS)]
    argv += ["--http-socket", f"127.0.0.1:{port}", "--chdir", HERE, "--module", "application", "--need-app"]
    argv += ["--hook-master-start", "unix_signal:15 gracefully_kill_them_all", "--disable-logging"]
    return running([*argv, *options], folder, port, **environment)


def waitress(folder: Path, environment: dict[str, str]) -> AbstractContextManager[ServerProcess]:
    port = free_port()
    argv = [sys.executable, HERE / "serve_waitress.py", str(port)]
    return running(argv, folder, port, **environment)


@contextmanager
def mod_wsgi(folder: Path, environment: dict[str, str]) -> Iterator[ServerProcess]:
    """Apache, with Debian's mod_wsgi and the Python that belongs to it."""
    port = free_port()
    # As root it runs its processes as somebody else, who has to be able to read all of this.
    public = Path(tempfile.mkdtemp(prefix="rtpool-mod_wsgi-"))
    try:
        public.chmod(0o755)
        shutil.copy(HERE / "application.py", public)
        for package in ("rtpool_sync", "websocket", "prometheus_client", "dynaconf"):
            (found,) = importlib.util.find_spec(package).submodule_search_locations  # type: ignore[union-attr]
            shutil.copytree(found, public / package, ignore=shutil.ignore_patterns("__pycache__"))
        # Apache passes no environment on to applications.
        lines = [f"os.environ[{name!r}] = {value!r}\n" for name, value in environment.items()]
        (public / "start.wsgi").write_text(
            "import os\n" + "".join(lines) + "from application import application\n"
        )
        user = "User www-data\nGroup www-data" if os.getuid() == 0 else ""
        conf = folder / "apache.conf"
        conf.write_text(APACHE.format(port=port, public=public, folder=folder, workers=WORKERS, user=user))
        argv = [APACHE2, "-f", conf, "-D", "FOREGROUND"]
        with running(argv, folder, port) as process:
            yield process
    finally:
        shutil.rmtree(public)


APACHE = """
ServerRoot /usr/lib/apache2
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/apache.pid
Mutex file:{public} default
ErrorLog /dev/stderr
LogLevel warn
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule wsgi_module modules/mod_wsgi.so
{user}
WSGISocketPrefix {public}/wsgi
WSGIDaemonProcess app processes={workers} threads=8 python-path={public}
WSGIScriptAlias / {public}/start.wsgi process-group=app application-group=%{{GLOBAL}}
<Directory {public}>
    Require all granted
</Directory>
"""

Start = Callable[..., AbstractContextManager[ServerProcess]]


class Server(NamedTuple):
    """How a server is started and stopped.

    Attributes:
        stop: The signal that has it finish the requests under way, and end.
        opened: Whether the pool is opened, and used, before the workers are forked.
        lost: Connections that end without a close frame: a uWSGI master's, which runs no exit functions.
    """

    start: Start
    options: tuple[str, ...] = ()
    conf: str | None = None
    workers: int = WORKERS
    stop: int = signal.SIGTERM
    opened: bool = False
    lost: int = 0


GTHREAD = ("--worker-class", "gthread", "--threads", "8")
THREADS = ("--threads", "8")
GEVENT = ("--worker-class", "gevent")
SERVERS = {
    "gunicorn-sync": Server(gunicorn),
    "gunicorn-sync-preload": Server(gunicorn, ("--preload",)),
    "gunicorn-gthread": Server(gunicorn, GTHREAD),
    "gunicorn-gthread-preload": Server(gunicorn, (*GTHREAD, "--preload")),
    "gunicorn-gthread-preload-opened": Server(gunicorn, (*GTHREAD, "--preload"), opened=True),
    "gunicorn-gevent": Server(gunicorn, GEVENT),
    "gunicorn-gevent-preload": Server(gunicorn, (*GEVENT, "--preload")),
    "gunicorn-gevent-preload-patched": Server(gunicorn, (*GEVENT, "--preload"), PATCH + HOOKS),
    "uwsgi": Server(uwsgi, THREADS),
    "uwsgi-lazy": Server(uwsgi, (*THREADS, "--lazy-apps")),
    "uwsgi-single": Server(uwsgi),
    "uwsgi-opened": Server(uwsgi, (*THREADS, "--py-call-uwsgi-fork-hooks"), opened=True, lost=2),
    "mod_wsgi": Server(mod_wsgi, stop=signal.SIGWINCH),
    "waitress": Server(waitress, workers=1),
}


CASES = [(name, "plain") for name in SERVERS] + [
    ("gunicorn-gthread-preload", "realtime"),
    ("uwsgi", "realtime"),
]


@pytest.mark.parametrize(("name", "protocol"), CASES, ids=["-".join(case) for case in CASES])
def test_matrix(name: str, protocol: str, emulator: RealtimeServer, tmp_path: Path) -> None:
    server = SERVERS[name]
    options: dict[str, Any] = {} if server.conf is None else {"conf": server.conf}
    environment = settings(emulator, protocol) | {"OPENED": "1" * server.opened}
    with server.start(tmp_path, environment, *server.options, **options) as process:
        requests = 5000 if SLOW else 200
        load = Load(process, clients=16, requests=requests).join()
        assert load.failures == []
        assert len(load.answers) == requests
        assert emulator.max_sockets <= (server.workers + server.opened) * MAX_CONNECTIONS

        # In every worker the pool's thread does its work.
        alive: set[int] = set()
        while not load.pids | alive <= alive or len(alive) < server.workers:
            asked = [Asking(process, "/reaper") for _ in range(2 * server.workers)]
            alive |= {asking.answer()["pid"] for asking in asked}
        assert len(alive) == server.workers

        spoken = {c.id: c.frames_in for c in emulator.connections}
        last = Asking(process, "/echo", seconds=0.5)
        eventually(lambda: any(c.frames_in > spoken.get(c.id, 0) for c in emulator.connections))
        began = time.monotonic()
        process.signal(server.stop)
        last.answer()
        assert process.wait(GRACEFUL) == 0
        assert time.monotonic() - began < GRACEFUL / 2
        assert "Traceback" not in process.log.read_text()
    eventually(lambda: emulator.open == 0)
    assert len(emulator.closed) == emulator.opened_total
    ends = collections.Counter((end.code, end.by) for end in emulator.closed)
    assert ends.pop((1006, "network"), 0) == server.lost
    assert set(ends) <= {(1000, "client"), (1001, "client")}
