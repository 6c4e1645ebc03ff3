"""The example docs/examples/audiocodes_flask, started as its README says; VoiceAI Connect's end calls it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import websocket
from server_process import ServerProcess, clean_environment, eventually, flask_port, free_port, running
from voice_ai import VoiceAi

from rtpool_sync.emulator import RealtimeServer

FOLDER = Path(__file__).parent.parent.parent / "docs/examples/audiocodes_flask"
TOKENS = ("0123456789e0123456789", "the one before")
PRODUCTION = {
    "ENV_FOR_DYNACONF": "production",
    "OPENAI_API_KEY": "sk-production",
    "AUDIOCODES_TOKEN": ", ".join(TOKENS),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with running([sys.executable, FOLDER / "app.py"], tmp_path, flask_port, PORT="0") as server:
        yield server


def bot(server: ServerProcess) -> str:
    return f"ws://127.0.0.1:{server.port}/bot"


def through_a_proxy(server: ServerProcess, path: str) -> int:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    client.request("GET", path, headers={"X-Forwarded-For": "192.0.2.1", "Connection": "close"})
    status = client.getresponse().status
    client.close()
    return status


def ending(server: ServerProcess, call: VoiceAi) -> str:
    """What the log says of the end of a call."""
    pattern = re.compile(rf"{call.id}: ended after [\d.]+ s: (.*)")
    found = eventually(lambda: pattern.search(server.log.read_text()), "the log tells of no end")
    return str(found[1])


def free(server: ServerProcess) -> None:
    def all_free() -> bool:
        stats = server.get("/realtime/stats")[1].decode()
        return set(re.findall(r'"(?:in_use|waiting)": (\d+)', stats)) == {"0"}

    eventually(all_free, "a line is still in use")


def speak(call: VoiceAi, milliseconds: int = 600) -> None:
    """A turn: longer silence than the helper's own, as the example waits for it."""
    call.speak(440.0, milliseconds)
    call.say(bytes(48 * 300) if call.format == "raw/lpcm16_24" else b"\xff" * 2400)


def greeted(call: VoiceAi) -> None:
    call.until(lambda: call.played_ms() >= 400 and call.plays[-1].stopped, "the greeting")


def conversation(server: ServerProcess, call: VoiceAi) -> None:
    """Hear the greeting, say something, hear the answer, hang up."""
    greeted(call)
    speak(call)
    call.until(lambda: call.played_ms() > 400 + 600, "an answer")
    call.end()
    call.until_closed()
    assert ending(server, call).startswith("caller"), server.log.read_text()


@pytest.mark.parametrize("name", ["raw/lpcm16_24", "raw/mulaw", "raw/lpcm16"])
def test_a_call(server: ServerProcess, name: str) -> None:
    with VoiceAi(bot(server), formats=(name,)) as call:
        conversation(server, call)
        assert call.of("userStream.speech.recognition")
    log = server.log.read_text()
    assert f"{call.id}: caller: " in log
    assert f"{call.id}: assistant: Hello." in log
    assert "Traceback" not in log
    assert "returned for it" not in log
    assert b"rtpool_checkouts_total" in server.get("/realtime/metrics")[1]
    for page in ("", "health", "stats", "config", "metrics"):
        assert server.get(f"/realtime/{page}")[0] == 200
        assert through_a_proxy(server, f"/realtime/{page}") == 403
    free(server)


def test_keys_transfer_and_goodbye(server: ServerProcess) -> None:
    for last, name, reason in (
        ("0", "hang_up", "hangup (bot-disconnected: hangup)"),
        ("9", "transfer", "hangup (transferred: transfer)"),
    ):
        with VoiceAi(bot(server)) as call:
            greeted(call)
            for key in "1" + last:
                before = call.heard_ms()
                call.activity("DTMF", value=key)
                call.until(lambda before=before: call.heard_ms() >= before + 400, "words after it")
            call.until_closed(20.0)
            assert call.events("transfer" if name == "transfer" else "hangup")
        assert ending(server, call).startswith(reason)
        functions = re.findall(rf"{call.id}: function (\w+)", server.log.read_text())
        assert functions == ["opening_hours", name]


def test_the_caller_interrupts(server: ServerProcess) -> None:
    with VoiceAi(bot(server)) as call:
        greeted(call)
        speak(call, 3000)
        call.until(lambda: call.played_ms() > 400 + 300, "an answer")
        call.speak(660.0, 600)
        call.until(lambda: any(play.stopped and play.ms < 3000 for play in call.plays[1:]), "its end")
        call.end()
        call.until_closed()
    assert ", 1 interruptions, 0 violations" in ending(server, call)


def test_a_call_goes_on_over_another_websocket(server: ServerProcess) -> None:
    with VoiceAi(bot(server)) as call:
        greeted(call)
        call.cut()
        assert call.resume()
        call.stream()
        speak(call)
        call.until(lambda: call.heard_ms() > 400 + 600, "an answer")
        call.end()
        call.until_closed()
    assert ending(server, call).startswith("caller")
    eventually(lambda: "the session was resumed after" in server.log.read_text())
    free(server)


def test_validation_takes_no_line(server: ServerProcess) -> None:
    with VoiceAi(bot(server), initiate=False) as call:
        call.send("connection.validate")
        call.until(lambda: call.of("connection.validated"), "an answer")
        call.close()
    eventually(lambda: "no call for this thread" in server.log.read_text())
    assert "Traceback" not in server.log.read_text()
    assert '"total_sessions_handled": 0' in server.get("/realtime/stats")[1].decode()


@pytest.mark.timeout(120)
def test_the_script_of_the_readme(server: ServerProcess, tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "call.py", "--interrupt", "--break", "--keys", "10"]
    done = subprocess.run(
        list(map(str, command)),
        cwd=tmp_path,
        env=clean_environment(PORT=str(server.port)),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "(it was interrupted)" in done.stdout
    assert "(hangup " in done.stdout
    assert "it hung up" in done.stdout
    with wave.open(str(tmp_path / "reply.wav")) as wav:
        assert wav.getframerate() == 24000
        samples = np.frombuffer(wav.readframes(wav.getnframes()), "<i2")
    assert len(samples) > 6 * 24000
    assert np.abs(samples).max() > 3000
    eventually(lambda: "the session was resumed after" in server.log.read_text())
    log = server.log.read_text()
    assert log.index("function opening_hours") < log.index("function hang_up")


def test_all_lines_are_busy(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "app.py"]
    with running(command, tmp_path, flask_port, PORT="0", FLASK_REALTIME_MAX_CONNECTIONS="1") as server:
        with VoiceAi(bot(server)) as call:
            greeted(call)
            with VoiceAi(bot(server), stream=False) as refused:
                refused.until_closed(30.0)  # it waits as long as the example lets callers wait
                (hangup,) = refused.events("hangup")
                assert hangup["activityParams"] == {"hangupReason": "all lines are busy"}
            call.end()
            call.until_closed()
        assert "no line for it" in server.log.read_text()
        free(server)


def test_without_a_token_production_does_not_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "app.py"],
        cwd=tmp_path,
        env=clean_environment(**{**PRODUCTION, "AUDIOCODES_TOKEN": " , "}),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert "set AUDIOCODES_TOKEN: see README.md" in done.stderr


def test_behind_gunicorn_with_the_settings_of_production(tmp_path: Path) -> None:
    number = free_port()
    with RealtimeServer(api_keys=["sk-production"]) as api:
        command = [sys.executable, "-m", "gunicorn", "--chdir", FOLDER, "-c", FOLDER / "gunicorn.conf.py"]
        command += ["--bind", f"127.0.0.1:{number}", "app:create_app()"]
        environment = {**PRODUCTION, "FLASK_REALTIME_BASE_URL": api.base_url}
        with running(command, tmp_path, number, **environment) as server:
            good = f"Bearer {TOKENS[0]}"
            for shown in (None, "", "Bearer", "Bearer x", TOKENS[0], f"Basic {TOKENS[0]}", f"{good}x"):
                headers = {} if shown is None else {"Authorization": shown}
                with pytest.raises(websocket.WebSocketBadStatusException) as caught:
                    websocket.create_connection(bot(server), timeout=10, header=headers)
                assert caught.value.status_code == 401
            for token in TOKENS:
                with VoiceAi(bot(server), token=token) as call:
                    conversation(server, call)
            with VoiceAi(bot(server), token=TOKENS[0]) as call:
                greeted(call)
                call.cut()
                assert call.resume()
                call.stream()
                speak(call)
                call.until(lambda: call.heard_ms() > 400 + 600, "an answer")
                call.end()
                call.until_closed()
            config = json.loads(server.get("/realtime/config")[1])["websocket_manager"]
            assert (config["max_connections"], config["min_idle"]) == (10, 2)
            server.signal(signal.SIGTERM)
            assert server.wait(20) == 0
            log = server.log.read_text()
            assert "Traceback" not in log
            assert ": caller: " not in log, "transcripts in production"
            for secret in ("sk-production", *TOKENS):
                assert secret not in log
        eventually(lambda: not api.connections, "a connection is left at the server")
