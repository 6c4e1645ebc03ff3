"""A web application at work, through load and faults, as a real Prometheus sees it."""

from __future__ import annotations

import collections
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import QUERIES, ROOT, plain
from prometheus_server import Prometheus, scraping

from rtpool_sync.emulator import Faults, RealtimeServer

Eventually = Callable[[Callable[[], object]], None]

#: Flask in a threaded server that people deploy, monitored below a prefix as docs/howto/monitoring.md says.
APPLICATION = """
import signal
import sys
import time

import flask
import waitress
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from rtpool_sync import PoolTimeout, RealtimePool
from rtpool_sync.web import monitoring_app

pool = RealtimePool()
app = flask.Flask(__name__)


@app.get("/talk")
def talk():
    try:
        with pool.connection(timeout=0.3) as conn:
            conn.send({"type": "response.create", "response": {"output_modalities": ["text"]}})
            while conn.recv(timeout=10)["type"] != "response.done":
                pass
            time.sleep(float(flask.request.args["seconds"]))
    except PoolTimeout:
        return "nobody is free", 503
    except ConnectionError:
        return "cut off", 502
    return "said"


app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/realtime": monitoring_app(pool)})
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = waitress.create_server(app, listen="127.0.0.1:0", threads=12)
print(server.effective_port, flush=True)
server.run()
"""


@pytest.fixture
def port(server: RealtimeServer, tmp_path: Path) -> Iterator[int]:
    """Where the application listens, in a process of its own."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "WEBSOCKET_", "RTPOOL_", "REALTIME_", "PROMETHEUS_"))
    }
    settings = {
        "PYTHONPATH": str(ROOT),
        "OPENAI_API_KEY": "sk-x",
        "OPENAI_BASE_URL": server.base_url,
        "WEBSOCKET_MAX_CONNECTIONS": "3",
        "WEBSOCKET_MIN_IDLE": "2",
        "WEBSOCKET_MAX_SESSIONS_PER_CONNECTION": "5",
        "WEBSOCKET_HEALTH_CHECK_INTERVAL": "1",
        "WEBSOCKET_RESET_TIMEOUT": "0.3",
    }
    (tmp_path / "application").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", APPLICATION],
        env={**inherited, **settings},
        cwd=tmp_path / "application",
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()
            assert process.wait(20) == 0


class Callers:
    """Threads that ask the application for conversations, and count the answers."""

    def __init__(self, port: int, number: int, *, pause: float = 0.0, seconds: float = 0.0) -> None:
        self._port = port
        self._pause = pause
        self._path = f"/talk?seconds={seconds}"
        self._stop = threading.Event()
        self._counts: list[collections.Counter[int]] = [collections.Counter() for _ in range(number)]
        self._threads = [threading.Thread(target=self._call, args=(counts,)) for counts in self._counts]
        for thread in self._threads:
            thread.start()

    def _call(self, counts: collections.Counter[int]) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._stop.wait(self._pause):
            client.request("GET", self._path)
            response = client.getresponse()
            response.read()
            counts[response.status] += 1
        client.close()

    def counted(self) -> collections.Counter[int]:
        return sum(self._counts, collections.Counter())

    def stop(self) -> collections.Counter[int]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.counted()


@pytest.mark.timeout(150)
def test_every_query_and_rule_agrees_with_the_application(
    port: int, server: RealtimeServer, tmp_path: Path, eventually: Eventually
) -> None:
    (tmp_path / "prometheus").mkdir()
    unanswered = {plain(query) for query in QUERIES}
    with scraping(tmp_path / "prometheus", f"127.0.0.1:{port}", path="/realtime/metrics") as prometheus:
        callers = Callers(port, 1, pause=0.02)
        try:
            eventually(prometheus.up)
            go_through_faults(server, callers, eventually)
            crowd = Callers(port, 10, seconds=0.2)
            try:
                eventually(lambda: crowd.counted()[503] > 5 and crowd.counted()[200] > 20)
                eventually(lambda: {"RtpoolSaturated", "RtpoolCheckoutsFailing"} <= prometheus.alarmed())
            finally:
                counted = crowd.stop()
            # One caller again, so that connections are idle long enough to be pinged.
            try:
                eventually(lambda: all_answered(prometheus, unanswered))
            except AssertionError:
                raise AssertionError(f"no data: {sorted(unanswered)}") from None
        finally:
            few = callers.stop()
        counted += few
        agrees_at_rest(port, prometheus, counted, eventually)


def all_answered(prometheus: Prometheus, queries: set[str]) -> bool:
    for query in list(queries):
        if any(series["value"][1] != "NaN" for series in prometheus.query(query)):
            queries.discard(query)
    return not queries


def go_through_faults(server: RealtimeServer, callers: Callers, eventually: Eventually) -> None:
    """No new connections for a while; connections cut in the middle; resets that are not acknowledged."""

    def until_more(status: int, count: int) -> None:
        known = callers.counted()[status]
        eventually(lambda: callers.counted()[status] > known + count)

    until_more(200, 20)
    server.faults = Faults(refuse=503)
    server.close_all(1001, "restarting")
    until_more(503, 2)
    server.faults = Faults(reset_after=3)
    until_more(502, 2)
    server.faults = Faults(drop={"conversation.item.deleted": 1.0})
    until_more(200, 5)
    server.faults = Faults()


def agrees_at_rest(
    port: int, prometheus: Prometheus, counted: collections.Counter[int], eventually: Eventually
) -> None:
    """What is in Prometheus is what ``pool.stats()`` says, and what the callers saw."""

    def stats() -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/realtime/stats", timeout=10) as response:
            return json.load(response)

    eventually(lambda: (s := stats())["in_use"] == s["connecting"] == s["resetting"] == s["closing"] == 0)
    expected = stats()
    assert expected["checkouts"]["ok"] == counted[200] + counted[502]
    assert expected["checkouts"]["timeout"] + expected["checkouts"]["error"] == counted[503]
    assert expected["connect_errors"]["handshake"] > 0
    assert expected["connections_closed"]["lost"] > 0
    assert expected["resets"]["silent"] > 0

    def agrees() -> bool:
        now = stats()
        return (
            prometheus.values("rtpool_checkouts_total", "outcome") == now["checkouts"]
            and prometheus.values("rtpool_connections_closed_total", "reason") == now["connections_closed"]
            and prometheus.values("rtpool_connect_errors_total", "kind") == now["connect_errors"]
            and prometheus.values("rtpool_resets_total", "outcome") == now["resets"]
            and prometheus.value("rtpool_connections_opened_total") == now["connections_opened"]
            and prometheus.values("rtpool_connections", "state")
            == {state: now[state] for state in ("idle", "in_use", "connecting", "resetting", "closing")}
        )

    eventually(agrees)
    # Pings of idle connections go on, so these have changed by now: never less than before.
    assert prometheus.value('rtpool_health_checks_total{outcome="ok"}') >= expected["health_checks"]["ok"]
    assert prometheus.value('rtpool_messages_total{direction="sent"}') == expected["messages"]["sent"]
    assert (
        prometheus.value('rtpool_message_bytes_total{direction="sent"}') == expected["message_bytes"]["sent"]
    )
    assert prometheus.value("rtpool_sessions_total") == expected["checkouts"]["ok"]
    assert prometheus.value("rtpool_checkout_wait_seconds_count") == expected["checkouts"]["ok"]
    assert prometheus.value("rtpool_max_connections") == expected["max_connections"] == 3
    assert prometheus.value("rtpool_healthy_connections") == expected["healthy_connections"]
    assert abs(prometheus.value("rtpool_reaper_last_run_timestamp_seconds") - time.time()) < 30
    eventually(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()))
    recorded = [rule["name"] for rule in prometheus.rules() if rule["type"] == "recording"]
    assert len(recorded) == 4
    for name in recorded:
        assert prometheus.query(f"last_over_time({name}[1m])"), name
