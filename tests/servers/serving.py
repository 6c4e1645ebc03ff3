"""The application under gunicorn, and its settings."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from server_process import ServerProcess, running

from rtpool_sync.emulator import RealtimeServer

HERE = Path(__file__).parent
WORKERS = 2
MAX_CONNECTIONS = 4  # of each worker, for up to 8 threads: there is a line
GRACEFUL = 10.0
SLOW = bool(os.environ.get("RTPOOL_SLOW"))
#: A worker that is told to end, or stopped, before it has come up goes unnoticed by gunicorn.
HOOKS = """
from rtpool_sync.contrib import gunicorn
from rtpool_sync.contrib.gunicorn import child_exit

def post_worker_init(worker):
    gunicorn.post_worker_init(worker)
    worker.log.info("Worker ready")
"""


def gunicorn(
    folder: Path, environment: dict[str, str], *options: str, conf: str = HOOKS, workers: int = WORKERS
) -> AbstractContextManager[ServerProcess]:
    """Start it, wait until all workers are ready."""
    (folder / "gunicorn.conf.py").write_text(conf)
    argv = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", str(workers)]
    argv += ["--graceful-timeout", f"{GRACEFUL:g}", "--no-control-socket", "--chdir", str(HERE), *options]
    argv += ["-c", str(folder / "gunicorn.conf.py"), "application"]

    def listening(log: str) -> int | None:
        found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log)
        ready = log.count("Worker ready") >= conf.count("Worker ready") * workers
        return int(found[1]) if found and ready else None

    return running(argv, folder, listening, **environment)


POLITE = {(1000, "client"), (1001, "client")}


def ends(emulator: RealtimeServer) -> set[tuple[int, str]]:
    """How the connections ended, as (code, by)."""
    # What a worker is still opening when it ends is dropped: there is nothing yet to say goodbye with.
    return {(end.code, end.by) for end in emulator.closed if end.frames_in}


def settings(emulator: RealtimeServer, protocol: str) -> dict[str, str]:
    """The pool's settings, for the application."""
    pool: dict[str, Any] = {"protocol": protocol, "max_connections": MAX_CONNECTIONS}
    if protocol == "plain":
        pool |= {"url": emulator.echo_url, "max_sessions_per_connection": 1_000_000}
    else:
        pool |= {"base_url": emulator.base_url, "api_key": "sk-none"}
    return {"POOL": json.dumps(pool)}
