"""A real Prometheus, with the repository's configuration, rules and alerts."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boards import RULES

TARGET = '"host.docker.internal:8081"'  # the application in prometheus.yml


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} of the system package prometheus is missing: make test installs it"
    return path


class Prometheus:
    """What its HTTP interface says."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def _get(self, path: str, **query: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self._get("query", query=expression)["result"]
        return result

    def value(self, expression: str) -> float:
        (series,) = self.query(expression)
        return float(series["value"][1])

    def values(self, expression: str, label: str) -> dict[str, float]:
        return {s["metric"].get(label, ""): float(s["value"][1]) for s in self.query(expression)}

    def up(self, targets: int = 1) -> bool:
        """Whether it runs, and has scraped so many targets."""
        try:
            return len(self.query("up == 1")) >= targets
        except OSError:
            return False

    def alarmed(self) -> set[str]:
        """The alerts whose condition holds: they fire if it goes on to hold."""
        return {rule["name"] for rule in self.rules() if rule.get("state") in ("pending", "firing")}

    def rules(self) -> list[Any]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]


@contextmanager
def scraping(folder: Path, *targets: str, path: str = "/metrics") -> Iterator[Prometheus]:
    """Run a Prometheus in ``folder`` that scrapes ``targets`` (``host:port``) every second."""
    config = (RULES / "prometheus.yml").read_text()
    assert TARGET in config
    config = config.replace(TARGET, ", ".join(f'"{target}"' for target in targets)).replace("15s", "1s")
    config = config.replace("static_configs", f"metrics_path: {path}\n    static_configs")
    (folder / "prometheus.yml").write_text(config)
    for name in ("rules.yml", "alerts.yml"):
        shutil.copy(RULES / name, folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [
            tool("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield Prometheus(port)
        finally:
            process.terminate()
