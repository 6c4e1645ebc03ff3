"""Fixtures for servers and libraries that applications run under, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_process import clean_environment

from rtpool_sync.emulator import RealtimeServer

RunProgram = Callable[..., str]


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
