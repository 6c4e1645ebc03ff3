"""Dashboards, rules and alerts: generated, complete, understood by Prometheus, and true of a pool at work."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from prometheus_client import CollectorRegistry

from rtpool_sync import PoolTimeout, RealtimePool
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.metrics import FAMILIES, INFO_NAME
from rtpool_sync.web import monitoring_app

ROOT = Path(__file__).parent.parent.parent
GRAFANA = ROOT / "grafana"
RULES = GRAFANA / "prometheus"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
Eventually = Callable[[Callable[[], object]], None]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_dashboards", GRAFANA / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BOARDS = [json.loads(text) for text in generator().files().values()]
PANELS = [(board, panel) for board in BOARDS for panel in board["panels"] if panel["type"] != "row"]
NAMES = [f"{board['uid']}: {panel['title']}" for board, panel in PANELS]
QUERIES = [target["expr"] for _, panel in PANELS for target in panel["targets"]]
KNOWN = {INFO_NAME} | {
    name
    for family in FAMILIES
    for name in {
        "gauge": [family.name],
        "counter": [f"{family.name}_total"],
        "histogram": [f"{family.name}_{part}" for part in ("bucket", "sum", "count")],
    }[family.kind]
}


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} of the system package prometheus is missing: make test installs it"
    return path


def plain(query: str) -> str:
    """A query as Grafana sends it, with everything chosen."""
    query = re.sub(r"\$__rate_interval", "10s", query)
    return re.sub(r"\$(job|instance|pool)", ".+", query)


def test_what_is_committed_is_what_is_generated() -> None:
    for path, text in generator().files().items():
        assert path.read_text(encoding="utf-8") == text, "run: python grafana/generate.py"


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=NAMES)
def test_panels_keep_the_conventions(board: dict[str, Any], panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == SOURCE
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    assert defaults["thresholds"]["steps"][0]["value"] is None
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= 24
    assert panel["targets"]
    for target in panel["targets"]:
        query = target["expr"]
        assert target["datasource"] == SOURCE
        assert target["legendFormat"]
        for metric, selector in re.findall(r"(rtpool_\w+)\{([^}]*)\}", query):
            assert metric in KNOWN
            assert 'job=~"$job"' in selector
            assert 'instance=~"$instance"' in selector
            if metric.endswith(("_total", "_bucket")):
                assert re.search(rf"(rate|increase)\({metric}\{{[^}}]*\}}\[\$__rate_interval\]\)", query)
        assert len(re.findall(r"\brtpool_\w+", query)) == len(re.findall(r"\brtpool_\w+\{", query))


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board["uid"])
def test_boards_keep_the_conventions(board: dict[str, Any]) -> None:
    assert "id" not in board
    assert "__inputs" not in board  # only the import dialog would resolve them
    assert board["editable"] is False
    assert board["graphTooltip"] == 1
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "pool"]
    assert variables["datasource"]["type"] == "datasource"
    assert all(v["refresh"] == 2 for name, v in variables.items() if name != "datasource")
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} overlaps"
        taken |= cells


def test_every_metric_is_on_a_board() -> None:
    shown = set(re.findall(r"\brtpool_\w+", " ".join(QUERIES)))
    missing = {f.name for f in FAMILIES if not any(name.startswith(f.name) for name in shown)}
    assert missing == set()


def test_rules_are_valid_and_every_alert_fires_when_it_should() -> None:
    promtool = tool("promtool")
    for command in (
        ["check", "rules", "rules.yml", "alerts.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        done = subprocess.run([promtool, *command], cwd=RULES, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways_and_explained() -> None:
    alerts = re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text())
    assert len(alerts) == len(set(alerts)) == 10
    tests = (RULES / "alerts_test.yml").read_text()
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    for alert in alerts:
        assert f"alertname: {alert}, exp_alerts: []" in tests
        assert re.search(rf"alertname: {alert}\n +exp_alerts:\n +- exp_labels", tests)
        section = runbook.partition(f"## {alert}\n")[2].partition("\n## ")[0]
        assert all(f"**{part}.**" in section for part in ("Symptom", "Meaning", "Look at", "Cure")), alert
        assert all(f"{number}. " in section for number in (1, 2, 3)), alert
        assert f"runbook_url: docs/runbook.md#{alert.lower()}" in (RULES / "alerts.yml").read_text()


def test_rules_and_alerts_name_what_there_is() -> None:
    text = (RULES / "rules.yml").read_text() + (RULES / "alerts.yml").read_text()
    recorded = set(re.findall(r"record: (\S+)", text))
    expressions = " ".join(re.findall(r"expr: (.*)", text))
    assert set(re.findall(r"job_pool\w*:\S+?:\w+", expressions)) <= recorded
    assert set(re.findall(r"(?<![:\w])rtpool_\w+", expressions)) <= KNOWN


# -- a real Prometheus


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1/"

    def _get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(
            f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=10
        ) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self._get("query", query=expression)["result"]
        return result

    def value(self, expression: str) -> float:
        (series,) = self.query(expression)
        return float(series["value"][1])

    def up(self) -> bool:
        try:
            return bool(self.query("up == 1"))
        except OSError:
            return False

    def rules(self) -> list[Any]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]


@pytest.fixture
def watched(server: RealtimeServer) -> Iterator[tuple[RealtimePool, int]]:
    """A pool, and the port on which it is scraped."""
    with RealtimePool(
        base_url=server.base_url,
        api_key="sk-x",
        registry=CollectorRegistry(),
        max_connections=2,
        max_sessions_per_connection=3,
        health_check_interval=1,
    ) as pool:
        with make_server("127.0.0.1", 0, monitoring_app(pool), handler_class=Quiet) as web:
            thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield pool, web.server_port
            web.shutdown()
            thread.join()


@pytest.fixture
def prometheus(watched: tuple[RealtimePool, int], tmp_path: Path) -> Iterator[Prometheus]:
    config = (RULES / "prometheus.yml").read_text()
    config = config.replace("15s", "1s").replace("host.docker.internal:8081", f"127.0.0.1:{watched[1]}")
    (tmp_path / "prometheus.yml").write_text(config)
    for name in ("rules.yml", "alerts.yml"):
        shutil.copy(RULES / name, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [
            tool("prometheus"),
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        yield Prometheus(port)
        process.terminate()


@pytest.mark.timeout(120)
def test_every_query_and_rule_has_an_answer_that_agrees_with_the_pool(
    watched: tuple[RealtimePool, int], prometheus: Prometheus, eventually: Eventually
) -> None:
    pool, _ = watched
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            with pool.connection(timeout=20) as conn:
                conn.send({"type": "input_audio_buffer.clear"})

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    eventually(prometheus.up)

    unanswered = {plain(query) for query in QUERIES}

    def all_answered() -> bool:
        for query in list(unanswered):
            if prometheus.query(query):
                unanswered.discard(query)
        return not unanswered

    try:
        eventually(all_answered)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        assert unanswered == set()

    # At rest, what is in Prometheus is what the pool says.
    expected = pool.stats()

    def agrees() -> bool:
        query = "sum by (outcome) (rtpool_checkouts_total)"
        counted = {s["metric"]["outcome"]: int(s["value"][1]) for s in prometheus.query(query)}
        return counted == {"ok": expected.counters.checkouts_ok, **expected.counters.checkouts_failed}

    eventually(agrees)
    eventually(lambda: prometheus.value('sum(rtpool_connections{state="idle"})') == pool.stats().idle)
    assert prometheus.value("rtpool_max_connections") == 2
    assert prometheus.value("rtpool_checkout_wait_seconds_count") == expected.counters.checkouts_ok
    assert prometheus.value("rtpool_connections_opened_total") >= 2
    assert abs(prometheus.value("rtpool_reaper_last_run_timestamp_seconds") - time.time()) < 30
    eventually(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()))
    assert len(prometheus.rules()) == 14
    assert prometheus.query("job_pool:rtpool_in_use:ratio")
