"""Headless Chromium, told what to do over its debugging protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import websocket


class Browser:
    """One window of it; its profile is kept in ``folder``, ``more`` are further options."""

    def __init__(self, folder: Path, *more: str, width: int = 1000, height: int = 900) -> None:
        program = shutil.which("chromium")
        assert program, "the system package chromium is missing: make test installs it"
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
        self._process = subprocess.Popen(
            [
                program,
                *options,
                *more,
                f"--user-data-dir={folder}",
                "--remote-debugging-port=0",
                "--remote-allow-origins=*",
                f"--window-size={width},{height}",
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

    def picture(self) -> bytes:
        """The window, as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        self._socket.close()
        self._process.wait(20)


def pixels(png: bytes) -> list[bytes]:
    """Decode a PNG of 8-bit RGB or RGBA, as screenshots are: rows of RGB."""
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
