"""Dashboards, rules and alerts: generated, valid for Grafana, complete, and understood by Prometheus."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from boards import BOARDS, FILES, GRAFANA, NAMES, PANELS, QUERIES, ROOT, RULES
from jsonschema import Draft7Validator
from prometheus_server import tool

from rtpool_sync.metrics import FAMILIES, INFO_NAME

SCHEMAS = Path(__file__).parent / "grafana_schema"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
KNOWN = {INFO_NAME} | {
    name
    for family in FAMILIES
    for name in {
        "gauge": [family.name],
        "counter": [f"{family.name}_total"],
        "histogram": [f"{family.name}_{part}" for part in ("bucket", "sum", "count")],
    }[family.kind]
}


def test_what_is_committed_is_what_is_generated() -> None:
    for path, text in FILES.items():
        assert path.read_text(encoding="utf-8") == text, "run: python grafana/generate.py"


# -- Grafana's own schema


def schema(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))


def lenient(part: Any) -> Any:
    """A schema that asks for nothing: of a panel's settings, Grafana fills in what is left out."""
    if isinstance(part, dict):
        return {key: lenient(value) for key, value in part.items() if key != "required"}
    return [lenient(value) for value in part] if isinstance(part, list) else part


def invalid(board: dict[str, Any]) -> list[str]:
    """What Grafana's schema has against a dashboard."""
    found = [(["dashboard"], error) for error in Draft7Validator(schema("dashboard")).iter_errors(board)]
    for panel in board["panels"]:
        if panel["type"] != "row":
            settings = panel["fieldConfig"]["defaults"].get("custom", {})
            for part, value in (("Options", panel["options"]), ("FieldConfig", settings)):
                validator = Draft7Validator(lenient(schema(f"{panel['type']}-{part}")))
                found += [([panel["title"], part], error) for error in validator.iter_errors(value)]
    return [
        "/".join(map(str, [*where, *error.absolute_path])) + f": {error.message[:200]}"
        for where, error in found
    ]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board["uid"])
def test_grafanas_schema_has_nothing_against_them(board: dict[str, Any]) -> None:
    assert invalid(board) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda board: board.update(graphTooltip=7),
        lambda board: board.pop("schemaVersion"),
        lambda board: board["panels"][1].update(gridPos={"x": 0}),
        lambda board: board["panels"][1].update(optoins={}),
        lambda board: board["panels"][1]["options"].update(colorMode="loud"),
        lambda board: board["panels"][1]["fieldConfig"]["defaults"].update(unit=5),
        lambda board: board["panels"][-1]["options"]["legend"].update(displayMode="heap"),
        lambda board: board["panels"][-1]["fieldConfig"]["defaults"]["custom"].update(drawStyle="wiggle"),
        lambda board: board["templating"]["list"][1].update(hide=9),
        lambda board: board["links"][0].update(asDropdown="no"),
    ],
)
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board["uid"])
def test_the_schema_sees(board: dict[str, Any], damage: Callable[[dict[str, Any]], object]) -> None:
    board = copy.deepcopy(board)
    damage(board)
    assert invalid(board) != []


# -- our conventions


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


def test_the_picture_can_be_drawn() -> None:
    """Grafana publishes the components of some panels only: see grafana/picture/page.jsx."""
    kinds = re.search(r"const KINDS = \{(.*?)\}", (GRAFANA / "picture" / "page.jsx").read_text())
    assert kinds is not None
    overview = next(board for board in BOARDS if board["uid"] == "rtpool-overview")
    assert {panel["type"] for panel in overview["panels"]} - {"row"} <= set(re.findall(r"(\w+):", kinds[1]))


def test_every_metric_is_on_a_board() -> None:
    shown = set(re.findall(r"\brtpool_\w+", " ".join(QUERIES)))
    missing = {f.name for f in FAMILIES if not any(name.startswith(f.name) for name in shown)}
    assert missing == set()


# -- rules and alerts


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


def test_the_runbook_can_be_linked_where_it_is_published(tmp_path: Path) -> None:
    commands = re.findall(
        r"^ *sed -i ('s\|.*') alerts.yml$", (GRAFANA / "README.md").read_text(), re.MULTILINE
    )
    assert len(commands) == 2
    for command in commands:
        shutil.copy(RULES / "alerts.yml", tmp_path)
        subprocess.run(["sed", "-i", *shlex.split(command), "alerts.yml"], cwd=tmp_path, check=True)
        alerts = yaml.safe_load((tmp_path / "alerts.yml").read_text())["groups"][0]["rules"]
        for alert in alerts:
            address, _, anchor = alert["annotations"]["runbook_url"].partition("#")
            assert re.fullmatch(r"https://\S+/runbook\.(md|html)", address)
            assert anchor == alert["alert"].lower()
        subprocess.run([tool("promtool"), "check", "rules", "alerts.yml"], cwd=tmp_path, check=True)


def test_rules_and_alerts_name_what_there_is() -> None:
    text = (RULES / "rules.yml").read_text() + (RULES / "alerts.yml").read_text()
    recorded = set(re.findall(r"record: (\S+)", text))
    expressions = " ".join(re.findall(r"expr: (.*)", text))
    assert set(re.findall(r"job_pool\w*:\S+?:\w+", expressions)) <= recorded
    assert set(re.findall(r"(?<![:\w])rtpool_\w+", expressions)) <= KNOWN


# -- what is put up beside them


def test_the_compose_file_brings_up_all_of_it() -> None:
    services = yaml.safe_load((GRAFANA / "compose.yaml").read_text())["services"]
    assert services.keys() == {"prometheus", "grafana"}
    mounts = {}
    for service in services.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), "a version, so that it works tomorrow"
        for volume in service["volumes"]:
            source, target, mode = volume.split(":")
            assert (GRAFANA / source).is_dir()
            assert mode == "ro"
            mounts[target] = GRAFANA / source
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert mounts["/etc/prometheus"] == RULES
    assert mounts["/etc/grafana/provisioning"] == GRAFANA / "provisioning"

    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/rtpool.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert sorted(mounts[provider["options"]["path"]].glob("*.json")) == sorted(FILES)
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    port = services["prometheus"]["ports"][0].split(":")[-1]
    assert (source["type"], source["url"]) == ("prometheus", f"http://prometheus:{port}")
    rules = yaml.safe_load((RULES / "prometheus.yml").read_text())["rule_files"]
    assert all((RULES / name).is_file() for name in rules)
