"""The example docs/examples/twilio_flask, started as its README says, and called as Twilio calls."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.parse
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import websocket
from server_process import ServerProcess, clean_environment, eventually, flask_port, free_port, running
from telephony_side import Phone, Twilio
from twilio.request_validator import RequestValidator
from voice_ai import silence, tone

from rtpool_sync.emulator import RealtimeServer

FOLDER = Path(__file__).parent.parent.parent / "docs/examples/twilio_flask"
PUBLIC = "https://hotline.example.com"
AUTH_TOKEN = "0123456789e0123456789"  # a number, for whoever guesses types
PRODUCTION = {
    "ENV_FOR_DYNACONF": "production",
    "OPENAI_API_KEY": "sk-production",
    "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
    "SECRET_KEY": "of production",
    "PUBLIC_URL": PUBLIC,
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with running([sys.executable, FOLDER / "app.py"], tmp_path, flask_port, PORT="0") as server:
        yield server


def sign(url: str, form: dict[str, str]) -> dict[str, str]:
    """By Twilio's own code."""
    return {"X-Twilio-Signature": RequestValidator(AUTH_TOKEN).compute_signature(url, form)}


def post(
    server: ServerProcess, form: dict[str, str], headers: dict[str, str] | None = None, query: str = ""
) -> tuple[int, str]:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Connection": "close", **(headers or {})}
    client.request("POST", f"/voice{query}", urllib.parse.urlencode(form), headers)
    response = client.getresponse()
    result = response.status, response.read().decode()
    client.close()
    return result


def ask(
    server: ServerProcess, call_sid: str = "CA1", headers: dict[str, str] | None = None
) -> tuple[str, dict[str, str]]:
    """What the webhook wants to be connected with: the address, and the parameters."""
    status, text = post(server, {"CallSid": call_sid, "From": "+100 <&>", "To": "+200"}, headers)
    assert status == 200, text
    stream = ET.fromstring(text).find("Connect/Stream")
    assert stream is not None, text
    parameters = {entry.attrib["name"]: entry.attrib["value"] for entry in stream.findall("Parameter")}
    return stream.attrib["url"], parameters


def said(hertz: float, milliseconds: int) -> bytes:
    """A tone, and the silence that ends a turn."""
    return tone(hertz, milliseconds, "raw/mulaw") + silence(900, "raw/mulaw")


def in_use(server: ServerProcess) -> int:
    found = re.findall(r'"in_use": (\d+)', server.get("/realtime/stats")[1].decode())
    return sum(map(int, found))


def through_a_proxy(server: ServerProcess, path: str) -> int:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    client.request("GET", path, headers={"X-Forwarded-For": "192.0.2.1", "Connection": "close"})
    status = client.getresponse().status
    client.close()
    return status


def ending(server: ServerProcess, call_sid: str = "CA1") -> str:
    """What the log says of the end of a call."""
    pattern = re.compile(rf"{call_sid}: ended after [\d.]+ s: (.*)")
    found = eventually(lambda: pattern.search(server.log.read_text()), "the log tells of no end")
    return str(found[1])


def conversation(server: ServerProcess, url: str, parameters: dict[str, str], **phone: Any) -> None:
    """Hear the greeting, say something, hear the answer, hang up."""
    with Phone(url, parameters=parameters, **phone) as call:
        call.wait(lambda: call.heard_ms >= 400, "the greeting")
        call.say(said(440.0, 600))
        call.wait(lambda: call.heard_ms > 400 + 600, "an answer")
        call.stop()
        call.wait(call.over.is_set, "the end")
    assert ending(server).startswith("caller"), server.log.read_text()


def test_a_call(server: ServerProcess) -> None:
    url, parameters = ask(server)
    assert url == f"ws://127.0.0.1:{server.port}/stream"
    assert parameters == {"token": parameters["token"], "caller": "+100 <&>", "callee": "+200"}
    assert len(parameters["token"]) < 450  # Twilio takes 500 characters, the name included
    conversation(server, url, parameters)
    log = server.log.read_text()
    assert "CA1: caller: " in log
    assert "CA1: assistant: Hello." in log
    assert "Traceback" not in log
    assert "returned for it" not in log
    assert b"rtpool_checkouts_total" in server.get("/realtime/metrics")[1]
    for page in ("", "health", "stats", "config", "metrics"):
        assert server.get(f"/realtime/{page}")[0] == 200
        assert through_a_proxy(server, f"/realtime/{page}") == 403
    eventually(lambda: in_use(server) == 0, "the line is not free")


def test_keys_call_functions_and_the_goodbye_is_heard(server: ServerProcess) -> None:
    url, parameters = ask(server)
    with Phone(url, parameters=parameters) as call:
        call.wait(lambda: call.heard_ms >= 400, "the greeting")
        for key, name in (("1", "opening_hours"), ("5", ""), ("0", "hang_up")):
            before = call.heard_ms
            call.dtmf(key)
            if name:
                eventually(lambda name=name: f"CA1: function {name}" in server.log.read_text(), name)
                call.wait(lambda before=before: call.heard_ms >= before + 400, "words after it")
        call.wait(call.over.is_set, "the end")
        assert call.closed_with == 1000
    assert ending(server).startswith("hangup (they said goodbye)")
    assert "9:00 to 18:30" in server.log.read_text()


@pytest.mark.timeout(120)
def test_the_script_of_the_readme(server: ServerProcess, tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "call.py", "--interrupt", "--keys", "10", "--out", tmp_path / "r.wav"]
    environment = clean_environment(PORT=str(server.port))
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "(it was interrupted)" in done.stdout
    assert "it hung up" in done.stdout
    with wave.open(str(tmp_path / "r.wav")) as wav:
        assert wav.getframerate() == 8000
        assert wav.getnframes() > 4 * 8000  # two answers of 3 s, of one of which most was thrown away
    eventually(lambda: "1 interruptions, 0 violations" in server.log.read_text())
    log = server.log.read_text()
    assert log.index("function opening_hours") < log.index("function hang_up")


def test_streams_that_the_webhook_did_not_ask_for(server: ServerProcess) -> None:
    url, parameters = ask(server)
    good = parameters["token"]
    body, _, signature = good.rpartition(".")
    wrong = (
        f"{body}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"  # (not all bits of the last one count)
    )
    for given in ({}, {"token": ""}, {"token": wrong}, {"token": good, "_call": "CA2"}):
        call_sid = given.pop("_call", "CA1")
        with Twilio(url, start=False) as twilio:
            twilio.send({"event": "connected", "protocol": "Call", "version": "1.0.0"})
            twilio.call_sid = call_sid
            twilio.start(given)
            opcode, data = twilio.ws.recv_data()  # not a word is said to it
            assert (opcode, data[:2]) == (websocket.ABNF.OPCODE_CLOSE, b"\x03\xe8")
    assert server.log.read_text().count("a stream that the webhook did not ask for") == 4
    # The last one used it up, although it was another call's.
    with Twilio(url, parameters=parameters) as twilio:
        assert twilio.ws.recv_data()[0] == websocket.ABNF.OPCODE_CLOSE
    url, parameters = ask(server)
    conversation(server, url, parameters)
    with Twilio(url, parameters=parameters) as twilio:
        assert twilio.ws.recv_data()[0] == websocket.ABNF.OPCODE_CLOSE
    assert in_use(server) == 0


def test_a_stream_that_never_begins_a_call(server: ServerProcess) -> None:
    url, _ = ask(server)
    websocket.create_connection(url, timeout=5).shutdown()
    eventually(lambda: "no call came about" in server.log.read_text())
    assert "Traceback" not in server.log.read_text()


def test_all_lines_are_busy(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "app.py"]
    with running(command, tmp_path, flask_port, PORT="0", FLASK_REALTIME_MAX_CONNECTIONS="1") as server:
        url, parameters = ask(server)
        with Phone(url, parameters=parameters) as call:
            call.wait(lambda: call.heard_ms > 0, "the greeting")
            status, text = post(server, {"CallSid": "CA2"})
            assert (status, ET.fromstring(text).find("Reject") is not None) == (200, True), text
            call.stop()
            call.wait(call.over.is_set, "the end")
        eventually(lambda: ET.fromstring(post(server, {})[1]).find("Connect") is not None, "still busy")


def test_without_its_secrets_production_does_not_start(tmp_path: Path) -> None:
    environment = {**PRODUCTION, "TWILIO_AUTH_TOKEN": "", "SECRET_KEY": ""}
    done = subprocess.run(
        [sys.executable, FOLDER / "app.py"],
        cwd=tmp_path,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert "set TWILIO_AUTH_TOKEN, SECRET_KEY: see README.md" in done.stderr


def test_an_auth_token_needs_the_public_address(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "app.py"],
        cwd=tmp_path,
        env=clean_environment(TWILIO_AUTH_TOKEN=AUTH_TOKEN),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "set PUBLIC_URL, SECRET_KEY: see README.md" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_behind_gunicorn_with_the_settings_of_production(tmp_path: Path, workers: str) -> None:
    number = free_port()
    voice, stream = f"{PUBLIC}/voice", f"wss{PUBLIC[5:]}/stream"
    with RealtimeServer(api_keys=["sk-production"]) as api:
        command = [sys.executable, "-m", "gunicorn", "--chdir", FOLDER, "-c", FOLDER / "gunicorn.conf.py"]
        command += ["--bind", f"127.0.0.1:{number}", "--workers", workers, "app:create_app()"]
        environment = {**PRODUCTION, "FLASK_REALTIME_BASE_URL": api.base_url}
        with running(command, tmp_path, number, **environment) as server:
            here = f"ws://127.0.0.1:{number}/stream"
            form = {"CallSid": "CA1", "From": "+100 <&>", "To": "+200"}
            # The webhook: no signature, a wrong one, for another address, another form, without the query.
            assert post(server, form)[0] == 403
            assert post(server, form, {"X-Twilio-Signature": "x"})[0] == 403
            assert post(server, form, sign(f"http://127.0.0.1:{number}/voice", form))[0] == 403
            assert post(server, {**form, "From": "+1"}, sign(voice, form))[0] == 403
            assert post(server, form, sign(voice, form), query="?a=1")[0] == 403
            assert post(server, form, sign(f"{voice}?a=1", form), query="?a=1")[0] == 200
            url, parameters = ask(server, headers=sign(voice, form))
            assert url == stream
            # The upgrade: before it is accepted.
            for headers in ({}, {"X-Twilio-Signature": "x"}, sign(f"{PUBLIC}/stream", {}), sign(here, {})):
                with pytest.raises(websocket.WebSocketBadStatusException) as caught:
                    websocket.create_connection(here, timeout=10, header=headers)
                assert caught.value.status_code == 403
            conversation(server, here, parameters, headers=sign(stream, {}))
            config = json.loads(server.get("/realtime/config")[1])["websocket_manager"]
            assert (config["max_connections"], config["min_idle"]) == (10, 2)
            server.signal(signal.SIGTERM)
            assert server.wait(20) == 0
            log = server.log.read_text()
            assert "Traceback" not in log
            assert "CA1: caller: " not in log, "transcripts in production"
            for secret in ("sk-production", AUTH_TOKEN, "of production", parameters["token"]):
                assert secret not in log
        eventually(lambda: not api.connections, "a connection is left at the server")


def test_a_server_that_stops_ends_its_calls(tmp_path: Path) -> None:
    number = free_port()
    with RealtimeServer() as api:
        command = [sys.executable, "-m", "gunicorn", "--chdir", FOLDER, "-c", FOLDER / "gunicorn.conf.py"]
        command += ["--bind", f"127.0.0.1:{number}", "--graceful-timeout", "4", "app:create_app()"]
        with running(command, tmp_path, number, FLASK_REALTIME_BASE_URL=api.base_url) as server:
            url, parameters = ask(server)
            with Phone(url, parameters=parameters) as call:
                call.wait(lambda: call.heard_ms >= 400, "the greeting")
                stop, spoken = threading.Event(), silence(20, "raw/mulaw")

                def speak() -> None:
                    while not stop.wait(0.02) and not call.over.is_set():
                        call.say(spoken)

                thread = threading.Thread(target=speak, daemon=True)
                thread.start()
                try:
                    server.signal(signal.SIGTERM)
                    call.wait(call.over.is_set, "the end")
                finally:
                    stop.set()
                    thread.join(5.0)
                assert call.closed_with == 1000
            assert ending(server).startswith("realtime_"), server.log.read_text()
            assert server.wait(20) == 0
