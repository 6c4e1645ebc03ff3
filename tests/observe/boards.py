"""The dashboards as they are generated, taken apart for the tests."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
GRAFANA = ROOT / "grafana"
RULES = GRAFANA / "prometheus"


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_dashboards", GRAFANA / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES: dict[Path, str] = generator().files()
BOARDS = [json.loads(text) for text in FILES.values()]
PANELS = [(board, panel) for board in BOARDS for panel in board["panels"] if panel["type"] != "row"]
NAMES = [f"{board['uid']}: {panel['title']}" for board, panel in PANELS]
QUERIES = [target["expr"] for _, panel in PANELS for target in panel["targets"]]


def plain(query: str) -> str:
    """A query as Grafana sends it, with everything chosen."""
    query = re.sub(r"\$__rate_interval", "10s", query)
    return re.sub(r"\$(job|instance|pool)", ".+", query)
