"""The command `rtpool`: what it prints, where, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import rtpool_sync
from rtpool_sync.cli import COMMANDS, _report, demo, main

KEY = "sk-secret-of-the-tests-123456"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings but those of the test, and a directory of its own for what is written."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "WEBSOCKET_", "RTPOOL_", "REALTIME_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(Path(rtpool_sync.__file__).parent.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- the command itself


def test_help_lists_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert name in shown
        assert summary.split()[0] in shown
    program = (
        "import sys\nfrom rtpool_sync.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = ['rich', 'websockets.frames', 'dynaconf', 'rtpool_sync.cli.demo']\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    assert f"rtpool {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"rtpool_sync {rtpool_sync.__version__}\n"


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: rtpool" in capsys.readouterr().out


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rtpool_sync", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"rtpool_sync {rtpool_sync.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (rtpool_sync.ConfigError("no key"), 2, "no key"),
        (rtpool_sync.PoolTimeout("too long"), 1, "too long"),
        (ImportError("pip install 'rtpool-sync[emulator]'"), 1, "rtpool-sync[emulator]"),
        (OSError("address in use"), 1, "address in use"),
    ],
)
def test_errors_become_a_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    shown: str,
) -> None:
    def fail(options: Any) -> int:
        raise error

    monkeypatch.setattr(demo, "run", fail)
    assert main(["demo"]) == code
    assert shown in capsys.readouterr().err


def test_interrupted_while_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("rtpool_sync.cli.importlib.import_module", load)
    assert main(["config"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_reader_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    program = "import sys, rtpool_sync.cli as cli; sys.exit(cli.main(['config', '--json']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(writing)
    assert (done.stderr, done.returncode) == (b"", 1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_without_our_characters(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "WEBSOCKET_URL": "ws://127.0.0.1:9"}
    argv = [sys.executable, "-m", "rtpool_sync", "doctor"]
    done = subprocess.run(
        argv, env={**environment, "OPENAI_API_KEY": KEY}, capture_output=True, encoding=encoding, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "? Nothing listens there" in done.stdout


def test_no_standard_output_at_all() -> None:
    """`rtpool config >&-`, and services that are started without."""
    argv = ["sh", "-c", 'exec "$0" -m rtpool_sync config >&-', sys.executable]
    done = subprocess.run(argv, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# -- config


def test_config_shows_values_sources_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("WEBSOCKET_MAX_CONNECTIONS", "7")
    (elsewhere / "settings.toml").write_text("websocket_min_idle = 3\n")
    assert main(["config", "--json"]) == 0
    out = capsys.readouterr().out
    assert KEY not in out
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["max_connections"]["value"] == "7"
    assert "WEBSOCKET_MAX_CONNECTIONS" in rows["max_connections"]["source"]
    assert rows["min_idle"]["value"] == "3"
    assert "settings.toml" in rows["min_idle"]["source"]
    assert rows["max_waiting"]["source"] == "default"
    assert "***" in rows["api_key"]["value"]

    assert main(["config"]) == 0
    out = capsys.readouterr().out
    assert KEY not in out
    assert "wss://api.openai.com/v1/realtime" in out
    line = next(line for line in out.splitlines() if line.split()[:1] == ["max_connections"])
    assert line.split()[1] == "7"


def test_config_shows_every_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    """Each kind of place a value can come from, the strongest of them named; nothing secret."""
    (elsewhere / "settings.toml").write_text(
        """
        websocket_close_timeout = 4
        [default]
        websocket_max_connections = 5
        websocket_max_waiting = 6
        websocket_ping_interval = 7
        realtime_headers = {X-Team = "team-secret-0123"}
        realtime_session = {instructions = "kindly"}
        [production]
        websocket_max_waiting = 60
        websocket_url = "wss://gateway/v1?api-key=query-secret-0123"
        realtime_session = {temperature = 1, dynaconf_merge = true}
        [production.realtime_pools.voice]
        max_connections = 8
        [staging]
        websocket_max_waiting = 600
        """
    )
    (elsewhere / ".secrets.toml").write_text(f'[default]\nopenai_api_key = "{KEY}"\n')
    monkeypatch.setenv("ENV_FOR_DYNACONF", "production")
    monkeypatch.setenv("WEBSOCKET_PING_INTERVAL", "70")
    monkeypatch.setenv("WEBSOCKET_MAX_CONNECTION_AGE", "100")

    def shown(*arguments: str) -> dict[str, tuple[str, str]]:
        assert main(["config", "--json", *arguments]) == 0
        out = capsys.readouterr().out
        assert KEY not in out
        assert "secret-0123" not in out
        return {row["name"]: (row["value"], row["source"]) for row in json.loads(out)}

    general = {
        "close_timeout": ("4", "settings.toml websocket_close_timeout"),
        "max_connections": ("5", "settings.toml [default] websocket_max_connections"),
        "max_waiting": ("60", "settings.toml [production] websocket_max_waiting"),
        "ping_interval": ("70", "environment variable WEBSOCKET_PING_INTERVAL"),
        "api_key": ("'***'", ".secrets.toml [default] openai_api_key"),
        "headers": ("{'X-Team': '***'}", "settings.toml [default] realtime_headers"),
        "url": ("'wss://gateway/v1?api-key=***'", "settings.toml [production] websocket_url"),
        "session": (
            "{'instructions': 'kindly', 'temperature': 1}",
            "settings.toml [default] realtime_session and settings.toml [production] realtime_session",
        ),
        "min_session_time": ("50", "default, at most half of max_connection_age"),
        "connect_timeout": ("10", "default"),
    }
    found = shown()
    assert {name: found[name] for name in general} == general
    found = shown("--pool", "voice")
    voice = ("8", "settings.toml [production.realtime_pools.voice] max_connections")
    assert found.pop("max_connections") == voice
    assert found["max_waiting"] == general["max_waiting"]

    assert main(["config"]) == 0
    assert (
        "Read: settings.toml, settings.toml [default], settings.toml [production], .secrets.toml, "
        ".secrets.toml [default] (ENV_FOR_DYNACONF=production)\n"
    ) in capsys.readouterr().out
    assert main(["config", "--pool", "vocie"]) == 0
    out = capsys.readouterr().out
    assert "No table realtime_pools.vocie: these are the general settings. Pools with one: voice" in out


def test_config_where_nothing_is_set(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"Read: no file (there is no settings.toml and no .secrets.toml in {elsewhere})"
    assert lines[2].startswith("Missing: no API key: set the environment variable OPENAI_API_KEY")


def test_config_reports_every_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WEBSOCKET_MAX_CONNECTIONS", "many")
    monkeypatch.setenv("WEBSOCKET_PING_TIMEOUT", "-1")
    assert main(["config"]) == 2
    err = capsys.readouterr().err
    assert "WEBSOCKET_MAX_CONNECTIONS" in err
    assert "WEBSOCKET_PING_TIMEOUT" in err


# -- demo


def test_demo(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    (elsewhere / "demo-output").mkdir()
    (elsewhere / "demo-output" / "reply-99.wav").write_bytes(b"of an earlier run")
    assert main(["demo", "--calls", "8", "--threads", "2", "--latency", "20"]) == 0
    out = capsys.readouterr().out
    assert "\r" not in out
    assert "\x1b" not in out
    assert "8/8" in out
    rows = {
        line.strip().split("  ")[0]: line.split("  ") for line in out.splitlines() if line.startswith("  ")
    }
    opened = [cell.strip() for cell in rows["connections opened"] if cell.strip()]
    assert opened == ["connections opened", "8", "2", "4.0 x"]
    assert any("p95" in title for title in rows)
    replies = sorted((elsewhere / "demo-output").glob("*.wav"))
    assert [reply.name for reply in replies] == [f"reply-{number:02}.wav" for number in range(1, 9)]
    for reply in replies:
        with wave.open(str(reply)) as wav:
            assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (24000, 1, 2)
            assert wav.getnframes() > 24000  # it is the question, spoken back
    assert "demo-output/reply-*.wav" in out


def test_demo_with_connections_to_spare(capsys: pytest.CaptureFixture[str]) -> None:
    """What arrives late for one call (rate limits, after `response.done`) does not disturb the next."""
    assert main(["demo", "--calls", "60", "--threads", "8", "--connections", "12", "--latency", "60"]) == 0
    assert "failed " not in capsys.readouterr().err


def test_demo_calls_are_the_same_on_both_sides_and_failures_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_speech", lambda: [json.dumps({"type": "input_audio_buffer.commit"})])
    assert main(["demo", "--calls", "2", "--threads", "1", "--latency", "0"]) == 1
    shown = capsys.readouterr()
    assert "failed 4 times: CallFailed: the server says:" in shown.err
    assert "calls that failed" in shown.out


def test_demo_real_without_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--real"]) == 2
    shown = capsys.readouterr()
    assert "OPENAI_API_KEY" in shown.err
    assert shown.out == ""


def test_demo_real_is_the_same_demo_with_the_users_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtpool_sync.emulator import RealtimeServer

    with RealtimeServer() as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        assert main(["demo", "--real", "--calls", "3", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "costs money" in out
    opened = next(line for line in out.splitlines() if "connections opened" in line)
    assert opened.split()[-3:] == ["1", "3.0", "x"]
    assert KEY not in out


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "1e9"])
@pytest.mark.parametrize("option", ["--calls", "--threads", "--connections"])
def test_demo_refuses_nonsense(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["demo", option, value])
    assert exit.value.code == 2
    assert f"{value!r} is not a whole number from 1 to" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1", "x", "nan", "inf"])
def test_demo_refuses_a_latency(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["demo", f"--latency={value}"])
    assert exit.value.code == 2
    assert f"{value!r} is not a number of milliseconds" in capsys.readouterr().err


@contextmanager
def rtpool(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own, gone at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "rtpool_sync", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_demo_interrupted() -> None:
    with rtpool("demo", "--calls", "400", "--threads", "2") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "spoken calls" in line:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip() == "interrupted"


# -- emulator


def test_emulator_serves_until_it_is_told_to_stop() -> None:
    with rtpool("emulator", "--port", "0", "--tls", "--api-key", "let-me-in") as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(4)]
        exports = dict(word.split("=", 1) for line in said for word in line.split() if "=" in word)
        with rtpool_sync.RealtimePool(
            base_url=exports["OPENAI_BASE_URL"], ca_file=exports["WEBSOCKET_CA_FILE"], api_key="let-me-in"
        ) as pool:
            with pool.connection() as connection:
                assert connection.session_id
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert out == "1 connections were opened, at most 1 at a time.\n"


@pytest.mark.parametrize(
    "argument",
    [
        "--port=99999",
        "--port=-1",
        "--port=x",
        "--latency=nan",
        "--latency=-1",
        "--session-seconds=0",
        "--max-sessions=1.5",
    ],
)
def test_emulator_refuses_nonsense(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["emulator", argument])
    assert exit.value.code == 2
    assert f"{argument.partition('=')[2]!r} is not a" in capsys.readouterr().err


def test_emulator_cannot_listen(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["emulator", "--port", str(port)]) == 1
    err = capsys.readouterr().err
    assert err == f"rtpool: cannot listen on 127.0.0.1, port {port}: Address already in use\n"


# -- how it is shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("rich", [True, False])
def test_a_terminal(monkeypatch: pytest.MonkeyPatch, rich: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    if not rich:
        for name in ("rich", "rich.progress", "rich.table", "rich.console", "rich.text"):
            monkeypatch.setitem(sys.modules, name, None)
    with _report.progress("calling", 2) as shown:
        shown.step("first event after 1000 ms")
        shown.step("well")
    _report.table(("", "by hand"), [("figures [1]", "512 ms")])
    text = terminal.getvalue()
    for part in ("calling", "2/2", "well", "figures [1]", "512 ms"):
        assert part in text
    if not rich:
        assert text.count("\r") == 3
        last = text.split("\r")[-1].splitlines()[0]
        assert last == "calling  2/2  well".ljust(len("calling  1/2  first event after 1000 ms"))


def test_percentiles() -> None:
    phase = demo.Phase(calls=[demo.Call(whole=float(number)) for number in range(1, 21)])
    phase.calls.append(demo.Call(error="no answer"))
    assert phase.percentile(50, lambda call: call.whole) == 10
    assert phase.percentile(95, lambda call: call.whole) == 19
    assert demo.Phase().percentile(50, lambda call: call.whole) is None


def test_a_table_without_a_single_success(capsys: pytest.CaptureFixture[str]) -> None:
    failed = demo.Phase(calls=[demo.Call(error="refused")])
    demo._show(failed, failed)
    out = capsys.readouterr().out
    assert out.count(" - ") >= 3
    assert demo._so_far(failed) == "1 failed"


def test_the_server_ends_a_call_badly() -> None:
    events = iter([{"type": "response.done", "response": {"status": "failed", "status_details": "why"}}])
    with pytest.raises(demo.CallFailed, match="failed: why"):
        demo._talk([], lambda message: None, lambda: next(events), 0.0)
