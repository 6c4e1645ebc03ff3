"""Every row of the benchmarks can be measured. How fast anything is, is not a matter of tests."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from rtpool_sync.cli import bench

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.harness import OURS, Goal, Row  # noqa: E402

#: Names that must be among the titles of a group's rows: what the group is about.
ABOUT = {
    "pools": ["acquire, release", "with", "8 threads", "32 threads"],
    "transport": ["receive, plain, 200 B", "receive dict events, TLS, 4 KB", "send, TLS, 32 KB", "echo, TLS"],
    "connect": ["connect and close over TLS"],
    "race": ["one TLS connection", "a fresh TLS connection"],
    "idle": ["memory", "descriptors", "threads", "CPU", "99th percentile"],
    "sessions": ["first event", "until all are ready"],
    "scale": ["checkout and return", "receive", "send"],
    "metrics": ["metrics, one process", "metrics, multiprocess mode", "scrape"],
    "calls": ["caller to model, 99th", "model to caller, 99th", "lost", "threads left", "missing", "CPU"],
}


def measure(group: str, out: Path, **environment: str) -> list[Row]:
    command = [sys.executable, "-m", "benchmarks", group, "--quick", "--rounds", "1", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    about, rows = report.read(out / "results.json")
    assert about["quick"] is True
    for row in rows:
        assert row.name in done.stdout
    return rows


def test_no_group_is_forgotten() -> None:
    assert list(ABOUT) == list(bench.GROUPS) == list(report.GROUPS)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("group", ABOUT)
def test_every_row_yields_finite_ratios(group: str, tmp_path: Path) -> None:
    rows = measure(group, tmp_path)
    assert {row.group for row in rows} == {group}
    for part in ABOUT[group]:
        assert any(part in row.name for row in rows), part
    for row in rows:
        assert len(row.samples) > 1 or row.goals
        for name in row.samples:
            ratio = row.ratio(name)
            assert all(map(math.isfinite, (ratio.median, ratio.low, ratio.high))), (row.name, name)
    ET.parse(tmp_path / f"{group}.svg")


@pytest.mark.timeout(180)
def test_without_a_compiler_the_server_is_python(tmp_path: Path) -> None:
    measure("connect", tmp_path, BENCH_SERVER="python")
    assert json.loads((tmp_path / "results.json").read_text())["about"]["server"] == "Python"


# -- the arithmetic


def row(**more: object) -> Row:
    samples = {OURS: [1.0, 2.0, 4.0], "peer": [3.0, 4.0, 12.0]}
    return Row("pools", "a thing", "µs", samples, **more)  # type: ignore[arg-type]


def test_ratios_are_taken_round_by_round() -> None:
    ours = row(
        goals=[
            Goal("peer", at_most=0.5),
            Goal("peer", at_least=2.5),
            Goal("peer", less_by=2.0),
            Goal("peer", more_by=-3.0),
        ]
    )
    reached = [(ratio.median, ratio.low, ratio.high, enough) for _, ratio, enough in ours.judged()]
    assert reached == [
        (1 / 3, 1 / 3, 0.5, True),
        (3.0, 2.0, 3.0, True),
        (2.0, 2.0, 8.0, True),
        (-2.0, -8.0, -2.0, False),
    ]


def test_more_may_be_better() -> None:
    ours = row(goals=[Goal("peer", at_least=1.0), Goal(at_least=2.0)], more_is_better=True)
    assert [enough for *_, enough in ours.judged()] == [False, True]


def test_a_peer_that_is_not_there_is_no_goal() -> None:
    assert list(row(goals=[Goal("nobody", at_least=1.0)]).judged()) == []


def test_the_tables_go_between_the_marks(tmp_path: Path) -> None:
    about = {
        "python": "CPython",
        "openssl": "OpenSSL",
        "system": "Linux",
        "cores": 2,
        "rounds": 3,
        "load": 0.1,
        "packages": {"peer": "1.0"},
    }
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps({"about": about, "rows": [row(goals=[Goal("peer", at_least=2.0)]).as_dict()]})
    )
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        assert report.main([str(results), str(document)]) == 0
        text = document.read_text()
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
        assert "old" not in text
        assert "| a thing | 2 µs | peer | at least 2x | 3x (2 to 3) | yes |" in text
    document.write_text("no marks")
    assert report.main([str(results), str(document)]) == 1


def test_an_installed_package_has_no_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtpool_sync.cli import main

    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert main(["bench", "--quick"]) == 1
