"""The status page in a real browser: drawn, refreshed in place, and its policy obeyed."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
import websocket

from rtpool_sync import RealtimePool
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.web import monitoring_app

Eventually = Callable[[Callable[[], object]], None]
WIDTH, HEIGHT = 1000, 900


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Browser:
    """Headless Chromium, told what to do over its debugging protocol."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium")
        assert program, "the system package chromium is missing: make test installs it"
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
        self._process = subprocess.Popen(
            [
                program,
                *options,
                f"--user-data-dir={folder}",
                "--remote-debugging-port=0",
                "--remote-allow-origins=*",
                f"--window-size={WIDTH},{HEIGHT}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        announced = folder / "DevToolsActivePort"
        end = time.monotonic() + 30
        while not (announced.exists() and announced.read_text().count("\n")):
            assert time.monotonic() < end, "the browser did not start"
            time.sleep(0.02)
        port, path = announced.read_text().split()
        self._socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=30)
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("method") == "Log.entryAdded":
                entry = answer["params"]["entry"]
                self.complaints.append(f"{entry['level']}: {entry['text']}")
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(answer["params"]))
            elif answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self) -> list[bytes]:
        """The window's pixels: rows of RGB."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return pixels(base64.b64decode(data))

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        self._socket.close()
        self._process.wait(20)


def pixels(png: bytes) -> list[bytes]:
    """Decode a PNG of 8-bit RGB or RGBA, as screenshots are."""
    at, width, depth, data = 8, 0, 0, b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, _, colour = struct.unpack(">IIBB", body[:10])
            depth = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            data += body
        at += length + 12
    raw = zlib.decompress(data)
    rows, above, stride = [], bytearray(width * depth), width * depth + 1
    for start in range(0, len(raw), stride):
        method, row = raw[start], bytearray(raw[start + 1 : start + stride])
        for i in range(len(row)):
            left = row[i - depth] if i >= depth else 0
            up, corner = above[i], above[i - depth] if i >= depth else 0
            if method == 4:
                guess = left + up - corner
                near = min(
                    (abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner)
                )
                row[i] = (row[i] + near[2]) & 255
            elif method:
                row[i] = (row[i] + (left, up, (left + up) // 2)[method - 1]) & 255
        rows.append(b"".join(bytes(row[i : i + 3]) for i in range(0, len(row), depth)))
        above = row
    return rows


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture
def pool(server: RealtimeServer) -> Iterator[RealtimePool]:
    with RealtimePool(url=server.echo_url, protocol="plain", max_connections=4, registry=False) as pool:
        yield pool


@pytest.fixture
def web(pool: RealtimePool) -> Iterator[WSGIServer]:
    with make_server("127.0.0.1", 0, monitoring_app(pool), handler_class=Quiet) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield web
        web.shutdown()
        thread.join()


@pytest.mark.timeout(120)
def test_the_page_is_drawn_and_refreshed_in_place(
    browser: Browser, web: WSGIServer, pool: RealtimePool, eventually: Eventually
) -> None:
    held = [pool.acquire(timeout=10) for _ in range(2)]
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.call("Page.navigate", url=f"http://127.0.0.1:{web.server_port}/")
    rows = "document.querySelectorAll('.connections tbody tr').length"
    eventually(lambda: browser.value(f"document.readyState === 'complete' && {rows}") == 2)

    # Half of the bar is in use: by its geometry, and to the eye.
    box = browser.value("(() => { const r = document.querySelector('.bar').getBoundingClientRect();"
                        " return [r.left, r.top, r.width, r.height] })()")  # fmt: skip
    shown = browser.picture()

    def colour(share: float) -> tuple[int, ...]:
        x, y = int(box[0] + box[2] * share), int(box[1] + box[3] / 2)
        return tuple(shown[y][x * 3 : x * 3 + 3])

    assert colour(0.1) == colour(0.4) == (0x2F, 0x6F, 0xDB)
    assert colour(0.6) == colour(0.9) == (0xEC, 0xEF, 0xF2)
    assert tuple(shown[2][6:9]) == (255, 255, 255)

    # While load runs the figures follow, in the same document.
    browser.value("window.mark = 'still the same page'")
    sessions = "Number([...document.querySelectorAll('dt')].find(e => e.textContent === 'sessions')" \
               ".nextElementSibling.textContent.replace(',', ''))"  # fmt: skip
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.001):
            with pool.connection(timeout=10) as conn:
                conn.send("x")
                conn.recv(timeout=10)

    worker = threading.Thread(target=work)
    worker.start()
    eventually(lambda: browser.value(sessions) > 2)
    first = browser.value(sessions)
    eventually(lambda: browser.value(sessions) > first)
    stop.set()
    worker.join()
    for conn in held:
        pool.release(conn)
    eventually(lambda: browser.value("document.querySelectorAll('rect.in_use').length") == 0)
    eventually(lambda: browser.value(sessions) == pool.stats().total_sessions_handled)
    assert browser.value("window.mark") == "still the same page"

    # Dark, if the reader likes it so.
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 26)"
    assert browser.complaints == []  # of the policy, of scripts, of what is missing

    # And when the application is gone, the page says so.
    web.RequestHandlerClass = Gone
    eventually(lambda: browser.value("!document.getElementById('trouble').hidden"))
    assert browser.value(rows) > 0


class Gone(Quiet):
    def handle(self) -> None:
        pass
