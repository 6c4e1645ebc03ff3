"""The server as a command, and without what it needs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from realtime_types import Client

from rtpool_sync.emulator.command import main

ROOT = str(Path(__file__).parent.parent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_how_to_reach_it_and_ends_when_told(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rtpool_sync.emulator", "--port", "0", "--tls", "--api-key", "let-me-in"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert "let-me-in" not in "".join(lines)
    exported = dict(line.split()[1].split("=", 1) for line in lines[1:])
    assert set(exported) == {"OPENAI_BASE_URL", "OPENAI_API_KEY", "WEBSOCKET_CA_FILE"}
    url = exported["OPENAI_BASE_URL"].replace("https", "wss") + "/realtime?model=m"
    with Client(url, key="let-me-in", sslopt={"ca_certs": exported["WEBSOCKET_CA_FILE"]}) as talking:
        talking.expect("session.created")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert out == "1 connections were opened, at most 1 at a time.\n"
    assert not Path(exported["WEBSOCKET_CA_FILE"]).exists()


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 1
    assert capsys.readouterr().err.startswith("rtpool emulator: ")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize(
    ("missing", "program"),
    [
        ("websockets", "from rtpool_sync.emulator import RealtimeServer"),
        ("websockets", "import rtpool_sync.emulator.server"),
        ("trustme", "from rtpool_sync.emulator import RealtimeServer; RealtimeServer(tls=True)"),
    ],
)
def test_a_missing_extra_names_its_cure(missing: str, program: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; {program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "pip install 'rtpool-sync[emulator]'" in done.stderr.splitlines()[-1]


def test_the_package_itself_needs_no_extra() -> None:
    program = (
        "import sys; sys.modules['websockets'] = None; from rtpool_sync.emulator import Faults, DelayRelay"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_unknown_names() -> None:
    import rtpool_sync.emulator as emulator

    assert "RealtimeServer" in dir(emulator)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = emulator.Nonsense
