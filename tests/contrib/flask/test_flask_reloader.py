"""``flask run --debug``: the application is imported twice; only the process that serves opens anything."""

from __future__ import annotations

import sys
from pathlib import Path

from server_process import ServerProcess, eventually, flask_port, running

from rtpool_sync.emulator import RealtimeServer

APPLICATION = """
from flask import Flask
from rtpool_sync.contrib.flask import Realtime

app = Flask(__name__)
app.config.from_prefixed_env()
realtime = Realtime(app)

@app.get("/ping")
def ping():
    with realtime.connection(10) as conn:
        conn.ping()
    return "VERSION"
"""


def test_the_parent_opens_nothing(tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(APPLICATION.replace("VERSION", "one"))
    with RealtimeServer() as api:
        command = [sys.executable, "-m", "flask", "--app", program, "run", "--debug", "--port", "0"]
        settings = {"FLASK_REALTIME_BASE_URL": api.base_url, "FLASK_REALTIME_API_KEY": "any"}
        settings |= {"FLASK_REALTIME_MAX_CONNECTIONS": "1"}
        settings |= {"FLASK_REALTIME_MAX_SESSIONS_PER_CONNECTION": "100000"}
        with running(command, tmp_path, flask_port, **settings) as server:
            assert api.opened_total == 0
            assert server.get("/ping") == (200, b"one")
            eventually(lambda: api.opened_total == 1)
            # Changed, it is loaded again in a new process, which has connections of its own.
            program.write_text(APPLICATION.replace("VERSION", "another"))
            eventually(lambda: answer(server) == b"another", server.log.read_text())
            eventually(lambda: api.opened_total == 2)


def answer(server: ServerProcess) -> bytes:
    try:
        return server.get("/ping")[1]
    except OSError:  # it is being restarted
        return b""
