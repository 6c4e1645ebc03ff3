"""The example docs/examples/django_text, started as its README says: over HTTP, and in a browser."""

from __future__ import annotations

import html
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from browser import Browser
from server_process import ServerProcess, eventually, free_port, running

from rtpool_sync.emulator import RealtimeServer

FOLDER = Path(__file__).parent.parent.parent / "docs/examples/django_text"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    number = free_port()
    with running([sys.executable, FOLDER / "run.py"], tmp_path, number, PORT=str(number)) as server:
        yield server


def ask(server: ServerProcess, question: str, token: bool = True) -> tuple[int, str]:
    """Fill in the form, as a browser does."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    client.request("GET", "/")
    response = client.getresponse()
    cookie = (response.headers["Set-Cookie"] or "").split(";")[0]
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', response.read().decode())
    assert found
    form = {"question": question} | ({"csrfmiddlewaretoken": found[1]} if token else {})
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": cookie, "Connection": "close"}
    client.request("POST", "/", urlencode(form), headers)
    response = client.getresponse()
    result = response.status, html.unescape(response.read().decode())
    client.close()
    return result


def answer(page: str) -> str:
    found = re.search(r'id="answer">(.*?)</blockquote>', page, re.DOTALL)
    return found[1] if found else ""


def test_over_http(server: ServerProcess) -> None:
    for number in range(3):
        status, page = ask(server, f"Recite <everything> number {number}")
        assert status == 200
        # Its own question, and nobody else's.
        assert f"Recite <everything> number {number}" in answer(page)
        assert all(f"number {other}" not in answer(page) for other in range(3) if other != number)
    assert ask(server, "   ")[0] == 400
    assert ask(server, "x" * 2001)[0] == 400
    assert ask(server, "hello", token=False)[0] == 403
    assert b"rtpool_checkouts_total" in server.get("/metrics")[1]
    for page in ("", "health", "stats", "config", "metrics"):
        assert server.get(f"/realtime/{page}")[0] == 200
    assert "returned for it" not in server.log.read_text()


def test_behind_gunicorn_with_the_settings_of_production(tmp_path: Path) -> None:
    number = free_port()
    with RealtimeServer(api_keys=["sk-production"]) as api:
        command = [sys.executable, "-m", "gunicorn", "--chdir", FOLDER, "--bind", f"127.0.0.1:{number}"]
        command += ["--worker-class", "gthread", "--threads", "4", "text.wsgi"]
        with running(
            command,
            tmp_path,
            number,
            ENV_FOR_DYNACONF="production",
            SECRET_KEY="of production",
            OPENAI_API_KEY="sk-production",
            OPENAI_BASE_URL=api.base_url,
        ) as server:
            assert ask(server, "Recite everything")[0] == 200
            config = json.loads(server.get("/realtime/config")[1])["websocket_manager"]
            assert (config["max_connections"], config["min_idle"]) == (10, 2)
            server.signal(signal.SIGTERM)
            assert server.wait(20) == 0
            assert "sk-production" not in server.log.read_text()
        eventually(lambda: not api.connections, "a connection is left at the server")


def test_in_production_without_a_key(tmp_path: Path) -> None:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "WEBSOCKET_", "RTPOOL_"))
    }
    done = subprocess.run(
        [sys.executable, FOLDER / "manage.py", "check"],
        env={**environment, "ENV_FOR_DYNACONF": "production", "SECRET_KEY": "x"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "rtpool.W001" in done.stderr


@pytest.mark.timeout(120)
def test_in_a_browser(server: ServerProcess, tmp_path: Path) -> None:
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        eventually(lambda: browser.value("document.getElementById('ask') && 1"))
        browser.value("document.getElementById('question').value = 'Recite what I said'")
        browser.value("document.getElementById('ask').click()")
        said = "(document.getElementById('answer') || {}).textContent || ''"
        eventually(lambda: "Recite what I said" in str(browser.value(said)), "the answer is not shown")
        assert browser.complaints == []
    finally:
        browser.close()
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
