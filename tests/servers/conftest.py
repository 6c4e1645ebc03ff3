"""Fixtures for servers and libraries that applications run under, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rtpool_sync.emulator import RealtimeServer

ROOT = Path(__file__).parent.parent.parent
RunProgram = Callable[..., str]


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without settings. Without coverage, too: its tracer knows no greenlets."""
    foreign = ("OPENAI_", "WEBSOCKET_", "RTPOOL_", "REALTIME_", "PROMETHEUS_", "COVERAGE_", "COV_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


@pytest.fixture
def emulator() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        yield server


@pytest.fixture
def run_program(tmp_path: Path) -> RunProgram:
    """Run a program in a process of its own, return what it printed; nothing may be on stderr."""

    def run(source: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", source],
            env=clean_environment(**environment),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=40,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run
