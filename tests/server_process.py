"""A real WSGI server in a process of its own, and clients for it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATIENCE = 20.0  # for what happens elsewhere: a limit, not a delay


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without settings. Without coverage, too: its tracer knows no greenlets."""
    foreign = (
        "OPENAI_",
        "WEBSOCKET_",
        "RTPOOL_",
        "REALTIME_",
        "PROMETHEUS_",
        "COVERAGE_",
        "COV_",
        "GUNICORN_",
        "FLASK_",
        "ENV_FOR_DYNACONF",
        "TWILIO_",
        "AUDIOCODES_",
        "PUBLIC_URL",
        "SECRET_KEY",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def eventually(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """Wait until ``condition`` is true, and return what it is."""
    end = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < end, what or "it did not happen in time"
        time.sleep(0.01)
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flask_port(log: str) -> int | None:
    """The port that Flask's own server says it listens on."""
    found = re.search(r"Running on http://127\.0\.0\.1:(\d+)", log)
    return int(found[1]) if found else None


class ServerProcess:
    """A server that listens on ``port`` of this machine.

    Args:
        process: The one that was started; the workers are its descendants.
        log: What it writes.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def get(self, path: str, timeout: float = PATIENCE, **query: Any) -> tuple[int, bytes]:
        """One request on a connection of its own; the status and the body of the answer."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            client.request("GET", f"{path}?{urllib.parse.urlencode(query)}", headers={"Connection": "close"})
            response = client.getresponse()
            return response.status, response.read()
        finally:
            client.close()

    def ask(self, path: str, **query: Any) -> dict[str, Any]:
        """A request with a token of its own, which must come back; the whole answer."""
        token = uuid.uuid4().hex
        status, body = self.get(path, token=token, **query)
        assert status == 200, body.decode()
        answer: dict[str, Any] = json.loads(body)
        assert answer.get("heard", token) == token, "somebody else's answer"
        return answer

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """The exit code, which must come within ``timeout`` seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not stop:\n{self.log.read_text()}") from None


class Load:
    """Clients that ask for ``path`` all the time, or so many times, and what they met."""

    def __init__(self, server: ServerProcess, clients: int = 16, requests: int | None = None) -> None:
        self.server = server
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._left = requests
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                if self._left is not None:
                    if self._left == 0:
                        return
                    self._left -= 1
            try:
                self.answers.append(self.server.ask("/echo"))
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    def join(self) -> Load:
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            assert not thread.is_alive(), "a client hangs"
        return self

    def stop(self) -> Load:
        self._stop.set()
        return self.join()

    @property
    def pids(self) -> set[int]:
        """The processes that answered."""
        return {answer["pid"] for answer in self.answers}


class Asking(threading.Thread):
    """One request under way."""

    def __init__(self, server: ServerProcess, path: str, **query: Any) -> None:
        super().__init__(daemon=True)
        self._ask = lambda: server.ask(path, **query)
        self._answer: dict[str, Any] = {}
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._ask()
        except BaseException as error:
            self._error = error

    def answer(self) -> dict[str, Any]:
        self.join(2 * PATIENCE)
        assert not self.is_alive(), "no answer"
        if self._error is not None:
            raise self._error
        return self._answer


@contextmanager
def running(
    argv: Sequence[str | Path],
    folder: Path,
    port: int | Callable[[str], int | None],
    **environment: str,
) -> Iterator[ServerProcess]:
    """Run a server as long as the block lasts; at its end nothing of it is left.

    Args:
        folder: Working directory, and where the log goes.
        port: The one it was told; or how to find it in the log, None as long as it is not there.
    """
    log = folder / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [str(word) for word in argv],
            cwd=folder,
            env=clean_environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:

            def found() -> int | None:
                assert process.poll() is None, f"it did not start:\n{log.read_text()}"
                number = port if isinstance(port, int) else port(log.read_text())
                if number is not None:
                    try:
                        socket.create_connection(("127.0.0.1", number), 1.0).close()
                    except OSError:
                        return None
                return number

            yield ServerProcess(process, eventually(found, "no port to connect to"), log)
        except BaseException:
            print(log.read_text())  # pytest shows it
            raise
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # the workers too, whatever became of the master
            except ProcessLookupError:
                pass
