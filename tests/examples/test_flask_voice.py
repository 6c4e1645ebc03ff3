"""The example docs/examples/flask_voice, started as its README says: over HTTP, and in a browser."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import signal
import sys
import wave
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import Browser
from server_process import ServerProcess, eventually, flask_port, free_port, running

from rtpool_sync.emulator import RealtimeServer

FOLDER = Path(__file__).parent.parent.parent / "docs/examples/flask_voice"
HELLO = resources.files("rtpool_sync").joinpath("data/hello.wav")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with running([sys.executable, FOLDER / "app.py"], tmp_path, flask_port, PORT="0") as server:
        yield server


def post(server: ServerProcess, body: bytes) -> tuple[int, str, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    client.request("POST", "/talk", body, {"Content-Type": "audio/wav", "Connection": "close"})
    response = client.getresponse()
    result = response.status, unquote(response.headers.get("X-Said", "")), response.read()
    client.close()
    return result


def test_over_http(server: ServerProcess) -> None:
    assert server.get("/")[0] == 200
    question = HELLO.read_bytes()
    assert server.get("/hello.wav") == (200, question)
    for _ in range(2):
        status, said, answer = post(server, question)
        assert (status, bool(said)) == (200, True), answer
        with wave.open(io.BytesIO(answer)) as wav:
            assert wav.getframerate() == 24_000
            assert wav.getnframes() > 2_400
    assert [post(server, bad)[0] for bad in (b"", b"RIFF", question[:44])] == [400, 400, 400]
    assert b"rtpool_checkouts_total" in server.get("/metrics")[1]
    for page in ("", "health", "stats", "config", "metrics"):
        assert server.get(f"/realtime/{page}")[0] == 200
    assert "returned for it" not in server.log.read_text()


def test_in_production_it_needs_the_real_key(tmp_path: Path) -> None:
    with running(
        [sys.executable, FOLDER / "app.py"], tmp_path, flask_port, PORT="0", ENV_FOR_DYNACONF="production"
    ) as server:
        status, body = server.get("/realtime/health")
        assert status == 503
        assert b"OPENAI_API_KEY" in body


def test_behind_gunicorn_with_the_settings_of_production(tmp_path: Path) -> None:
    number = free_port()
    with RealtimeServer(api_keys=["sk-production"]) as api:
        command = [sys.executable, "-m", "gunicorn", "--chdir", FOLDER, "--bind", f"127.0.0.1:{number}"]
        command += ["--worker-class", "gthread", "--threads", "4", "app:create_app()"]
        with running(
            command,
            tmp_path,
            number,
            ENV_FOR_DYNACONF="production",
            OPENAI_API_KEY="sk-production",
            FLASK_REALTIME_BASE_URL=api.base_url,
        ) as server:
            assert post(server, HELLO.read_bytes())[0] == 200
            config = json.loads(server.get("/realtime/config")[1])["websocket_manager"]
            assert (config["max_connections"], config["min_idle"]) == (10, 2)
            server.signal(signal.SIGTERM)
            assert server.wait(20) == 0
            assert "sk-production" not in server.log.read_text()
        eventually(lambda: not api.connections, "a connection is left at the server")


@pytest.mark.timeout(120)
def test_in_a_browser(server: ServerProcess, tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    voice.write_bytes(HELLO.read_bytes())
    browser = Browser(
        tmp_path / "profile",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={voice}",
        "--autoplay-policy=no-user-gesture-required",
        "--mute-audio",
    )
    try:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        eventually(lambda: browser.value("document.getElementById('canned')?.onclick && 1"))

        def state() -> str:
            return str(browser.value("document.getElementById('state').textContent"))

        def heard() -> bool:
            assert "failed" not in state(), state()
            return bool(browser.value("document.getElementById('answer').currentTime > 0.1"))

        browser.value("document.getElementById('canned').click()")
        eventually(heard, "the answer is not played")
        assert browser.value("document.getElementById('said').textContent")

        browser.value("document.getElementById('answer').pause()")
        browser.value("document.getElementById('answer').currentTime = 0")
        browser.value("const plain = fetch;"
                      "window.fetch = (url, options) => {"
                      " if (options) options.body.arrayBuffer().then(b => window.loudest ="
                      " Math.max(...new Int16Array(b, 44).map(Math.abs)));"
                      " return plain(url, options) }")  # fmt: skip
        browser.value("document.getElementById('record').click()")
        eventually(lambda: float((re.findall(r"Recording: ([\d.]+)", state()) or ["0"])[0]) > 1.5, state())
        browser.value("document.getElementById('record').click()")
        eventually(lambda: browser.value("window.loudest || 0") > 1000, "silence was recorded")
        eventually(heard, "the answer to the recorded question is not played")
        assert browser.complaints == []
    finally:
        browser.close()
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
