"""Fixtures for what watches pools: metrics, the monitoring application, events."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rtpool_sync.emulator import RealtimeServer

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 20.0  # of a test, for what happens in another thread: a limit, not a delay

Eventually = Callable[[Callable[[], object]], None]
RunProgram = Callable[..., str]


@pytest.fixture
def eventually() -> Eventually:
    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.005)

    return wait


@pytest.fixture
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        yield server


@pytest.fixture
def run_program(tmp_path: Path) -> RunProgram:
    """Run a program in a process of its own, and return what it printed; nothing may be on stderr."""

    def run(source: str, **environment: str) -> str:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OPENAI_", "WEBSOCKET_", "RTPOOL_", "REALTIME_", "PROMETHEUS_"))
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source],
            env={**inherited, "PYTHONPATH": str(ROOT), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run
