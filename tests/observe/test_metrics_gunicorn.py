"""Three gunicorn workers, a real Prometheus: the sums are what the clients counted; the dead are gone."""

from __future__ import annotations

import collections
import http.client
import json
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from boards import QUERIES, plain
from prometheus_server import Prometheus, scraping
from server_process import ROOT, Asking, ServerProcess, eventually, running

from rtpool_sync.emulator import Faults, RealtimeServer

WORKERS = 3
MAX_CONNECTIONS = 2
TOKEN = 32  # its length

CONF = """
from rtpool_sync.contrib import gunicorn
from rtpool_sync.contrib.gunicorn import child_exit

def post_worker_init(worker):
    from application import pool
    pool.open()
    gunicorn.post_worker_init(worker)
    worker.log.info("Worker ready")
"""


def ready(process: ServerProcess) -> int:
    """How many workers have come up so far."""
    return process.log.read_text().count("Worker ready")


class Clients:
    """What they asked for, and how it ended."""

    def __init__(self, process: ServerProcess) -> None:
        self._process = process
        self._lock = threading.Lock()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.discarded = self.lost = 0

    def _ask(self, plan: list[tuple[str, float]]) -> None:
        for path, seconds in plan:
            try:
                outcome = self._process.ask(path, seconds=seconds).get("outcome", "ok")
            except Exception as error:
                outcome = str(error)
            with self._lock:
                self.outcomes[outcome] += 1
                self.discarded += (path, outcome) == ("/discard", "ok")
                self.lost += (path, outcome) == ("/lose", "ok")

    def run(self, requests: int) -> None:
        """Sixteen at a time, so many each."""
        chance = random.Random(requests)
        threads = []
        for _ in range(16):
            paths = chance.choices(["/hurry", "/discard", "/lose"], [6, 1, 1], k=requests)
            waits = chance.choices([0.0, 0.01, 5.0], k=requests)
            plan = list(zip(paths, waits, strict=True))
            threads.append(threading.Thread(target=self._ask, args=(plan,), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
            assert not thread.is_alive()


def agree(prometheus: Prometheus, clients: Clients, server: RealtimeServer, killed: int) -> list[str]:
    """The metrics that do not say what the clients and the server have counted.

    Args:
        killed: Conversations that were under way when their worker was killed.
    """
    ok = clients.outcomes["ok"]
    value = prometheus.value
    closed = prometheus.values("rtpool_connections_closed_total", "reason")
    wrong = {
        "checkouts": prometheus.values("rtpool_checkouts_total", "outcome")
        != {**dict.fromkeys(("ok", "timeout", "exhausted", "closed", "error"), 0), **clients.outcomes},
        "sessions": value("rtpool_sessions_total") != ok,
        "waits": value("rtpool_checkout_wait_seconds_count") != ok,
        "durations": value("rtpool_session_duration_seconds_count") != ok - killed,
        "leaks": value("rtpool_leaks_total") != clients.lost,
        "discarded": closed["invalidated"] != clients.discarded,
        "closed": sum(closed.values()) != sum(end.by == "client" for end in server.closed),
        "opened": value("rtpool_connections_opened_total") != server.opened_total,
        "connect": value("rtpool_connect_seconds_count") != server.opened_total,
        "errors": value('rtpool_connect_errors_total{kind="handshake"}') != 2,
        "sent": value('rtpool_messages_total{direction="sent"}') != ok,
        "received": value('rtpool_messages_total{direction="received"}') != ok,
        "bytes sent": value('rtpool_message_bytes_total{direction="sent"}') != TOKEN * ok,
        "bytes received": value('rtpool_message_bytes_total{direction="received"}') != TOKEN * ok,
        "in use": value('rtpool_connections{state="in_use"}') != 0,
        "connections": value("sum(rtpool_connections)") != server.open,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def test_three_workers_and_one_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(CONF)
    files = tmp_path / "metrics"
    files.mkdir()
    (tmp_path / "prometheus").mkdir()
    argv = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", str(WORKERS)]
    argv += ["--worker-class", "gthread", "--threads", "8", "--no-control-socket", "application"]
    argv += ["--chdir", str(ROOT / "tests/servers"), "-c", str(tmp_path / "gunicorn.conf.py")]

    def port(log: str) -> int | None:
        found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log)
        return int(found[1]) if found and log.count("Worker ready") >= WORKERS else None

    with RealtimeServer() as server:
        pool: dict[str, Any] = {
            "protocol": "plain",
            "url": server.echo_url,
            "max_sessions_per_connection": 10**6,
        }
        pool |= {"max_connections": MAX_CONNECTIONS, "max_waiting": 2}
        environment = {"POOL": json.dumps(pool), "PROMETHEUS_MULTIPROC_DIR": str(files)}
        server.script(Faults(refuse=503), Faults(refuse=503))
        with (
            running(argv, tmp_path, port, **environment) as process,
            scraping(tmp_path / "prometheus", f"127.0.0.1:{process.port}") as prometheus,
        ):
            clients = Clients(process)
            clients.run(30)
            assert min(clients.outcomes[outcome] for outcome in ("ok", "timeout", "exhausted")) > 5
            assert clients.discarded
            assert clients.lost
            eventually(prometheus.up)
            in_agreement(prometheus, clients, server)
            assert prometheus.value("rtpool_max_connections") == WORKERS * MAX_CONNECTIONS

            # A worker is killed in the midst of a conversation: the figures that say what is forget it.
            dying = Asking(process, "/die", seconds=2.5)
            eventually(lambda: prometheus.value('rtpool_connections{state="in_use"}') == 1)
            with pytest.raises(http.client.RemoteDisconnected):
                dying.answer()
            eventually(lambda: ready(process) == WORKERS + 1)
            replaced = time.time()
            eventually(lambda: prometheus.value("timestamp(rtpool_max_connections)") > replaced)
            assert prometheus.value('rtpool_connections{state="in_use"}') == 0
            assert prometheus.value("rtpool_max_connections") == WORKERS * MAX_CONNECTIONS
            assert prometheus.value("sum(rtpool_connections)") == server.open
            assert prometheus.value("rtpool_oldest_checkout_seconds") == 0
            assert time.time() - prometheus.value("rtpool_reaper_last_run_timestamp_seconds") < 15

            # What it has counted is not forgotten, and the counting goes on.
            clients.outcomes["ok"] += 1
            clients.run(8)
            in_agreement(prometheus, clients, server, killed=1)

            # And the dashboards and rules are as good for several processes as for one.
            assert [query for query in map(plain, QUERIES) if not prometheus.query(query)] == []
            eventually(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"})

            process.signal(signal.SIGTERM)
            assert process.wait(10) == 0


def in_agreement(prometheus: Prometheus, clients: Clients, server: RealtimeServer, killed: int = 0) -> None:
    wrong: list[str] = []

    def agreed() -> bool:
        wrong[:] = agree(prometheus, clients, server, killed)
        return not wrong

    try:
        eventually(agreed)
    except AssertionError:
        raise AssertionError(f"not as counted: {wrong}, {clients.outcomes}") from None
