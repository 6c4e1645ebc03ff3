"""`rtpool watch`: a running application's pools, over HTTP, in a terminal, as lines, as documents."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from server_process import clean_environment, eventually

from rtpool_sync import RealtimePool
from rtpool_sync.cli import main
from rtpool_sync.cli._remote import Address, Application, NotWatched
from rtpool_sync.cli._sight import Sight
from rtpool_sync.cli.watch import _Lines
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.emulator.tls import Certificate
from rtpool_sync.web import monitoring_app

PASSWORD = "open-sesame-0123456789"


class _Silent(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(app: Any) -> Iterator[str]:
    with make_server("127.0.0.1", 0, app, handler_class=_Silent) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def raw(answer: Callable[[socket.socket, threading.Event], object]) -> Iterator[str]:
    """A server that does with each connection as told, until the event."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    try:
                        peer.recv(65536)
                        answer(peer, over)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def document(status: str, body: object, *headers: tuple[str, str]) -> Any:
    """An application that answers everything alike."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Type", "application/json"), *headers])
        return [body if isinstance(body, bytes) else json.dumps(body).encode()]

    return app


@pytest.fixture
def emulator() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        yield server


@pytest.fixture
def pool(emulator: RealtimeServer) -> Iterator[RealtimePool]:
    with RealtimePool(base_url=emulator.base_url, api_key="sk-x", max_connections=3) as pool:
        yield pool


def once(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(["watch", "--once", *arguments])
    except SystemExit as exit:
        code = int(exit.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


# -- one look


def test_one_look(pool: RealtimePool, capsys: pytest.CaptureFixture[str]) -> None:
    with served(monitoring_app(pool)) as url, pool.connection():
        code, out, err = once(capsys, url)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{url}/ is healthy: the pool works"
    head, _, figures = (line.split() for line in lines[2:5])
    assert head[:2] == ["pool", "status"]
    assert figures == ["default", "healthy", "1", "0", "0", "0", "0", "3", "0", "0", "s", "1", "0", "0", "0"]


def test_one_look_for_programs(pool: RealtimePool, capsys: pytest.CaptureFixture[str]) -> None:
    with served(monitoring_app(pool)) as url, pool.connection():
        code, out, err = once(capsys, "--json", url)
        stats = pool.stats().as_dict()
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["url"] == f"{url}/"
    assert (told["status"], told["message"], told["processes"]) == ("healthy", "the pool works", 1)
    (shown,) = told["pools"]
    assert shown.pop("name") == "default"
    assert (shown.pop("status"), shown.pop("message")) == ("healthy", "the pool works")
    assert shown.pop("oldest_checkout_seconds") <= stats.pop("oldest_checkout_seconds")
    assert shown == stats


def test_several_pools_each_with_its_state(
    emulator: RealtimeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    one = RealtimePool(base_url=emulator.base_url, api_key="sk-x", name="one")
    two = RealtimePool(base_url=emulator.base_url, api_key="sk-x", name="two", max_connections=4)
    two.close()
    with served(monitoring_app(one, two)) as url:
        code, out, _ = once(capsys, url)
        assert code == 1  # one that is closed is unhealthy
        rows = {line.split()[0]: line.split() for line in out.splitlines()[4:6]}
        assert rows["one"][1] == "healthy"
        assert rows["two"][1] == "unhealthy"
        assert rows["two"][7] == "4"
        code, out, _ = once(capsys, "--json", url)
        assert code == 1
        assert {p["name"]: p["status"] for p in json.loads(out)["pools"]} == {
            "one": "healthy",
            "two": "unhealthy",
        }


def test_no_pool_yet(capsys: pytest.CaptureFixture[str]) -> None:
    empty = document("200 OK", {"status": "healthy", "message": "there is no pool yet", "pools": []})
    with served(empty) as url:
        code, out, _ = once(capsys, url)
    assert code == 0
    assert "there is no pool yet" in out


def test_below_a_prefix_however_it_is_given(pool: RealtimePool, capsys: pytest.CaptureFixture[str]) -> None:
    monitoring = monitoring_app(pool)

    def app(environ: Any, start_response: Any) -> Any:
        assert environ["PATH_INFO"].startswith("/realtime/")
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/realtime", environ["PATH_INFO"][len("/realtime") :]
        return monitoring(environ, start_response)

    with served(app) as url:
        for path in ("/realtime", "/realtime/", "/realtime/stats", "/realtime/health", "/realtime/?a=b"):
            for scheme in (url, url.removeprefix("http://")):
                code, out, err = once(capsys, scheme + path)
                assert (code, err) == (0, ""), path
                assert out.startswith(f"{url}/realtime/ is healthy")


# -- what goes wrong


SSO = ("Location", "https://u:pw@sso/login?next=secret")
BROKEN = {"detail": "see the log"}
CONFIG = {"message": "OPENAI_API_KEY: required"}


@pytest.mark.parametrize(
    ("app", "said"),
    [
        (document("401 Unauthorized", b"no"), "401 Unauthorized. It wants to know who asks"),
        (document("403 Forbidden", b"no"), "403 Forbidden. It wants to know who asks"),
        (document("404 Not Found", {"detail": "there is /"}), "404 Not Found. There are no monitoring pages"),
        (document("302 Found", b"", SSO), "leads to https://sso/login,"),
        (document("500 Internal Server Error", BROKEN), "500 Internal Server Error: see the log"),
        (document("503 Service Unavailable", CONFIG), "OPENAI_API_KEY: required"),
        (document("200 OK", b"<!doctype html>"), "is not a monitoring page of rtpool_sync"),
        (document("200 OK", b"[" * 100_000), "is not a monitoring page of rtpool_sync"),
        (document("200 OK", b'{"total_connections": NaN}'), "is not a monitoring page of rtpool_sync"),
        (document("200 OK", ["total_connections"]), "is not a monitoring page of rtpool_sync"),
        (document("200 OK", {"status": "UP"}), "but not with the numbers of rtpool_sync"),
        (document("200 OK", {"pools": [1]}), "but not with the numbers of rtpool_sync"),
        (document("200 OK", {"pools": [{"total_connections": "1"}]}), "but not with the numbers"),
        (document("200 OK", b" " * (9 << 20)), "longer than 8 MiB"),
    ],
)
def test_it_is_not_what_it_should_be(app: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with served(app) as url:
        code, out, err = once(capsys, url)
        assert (code, out) == (1, "")
        assert err.startswith("rtpool: http://127.0.0.1:")
        assert said in err
        assert err.count("\n") == 1
        assert "pw" not in err
        assert "secret" not in err
        code, out, err = once(capsys, "--json", url)
        assert (code, err) == (1, "")
        assert said in json.loads(out)["error"]
        # Live it says so at once, and does not go on.
        assert main(["watch", url]) == 1
        assert said in capsys.readouterr().err


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, out, err = once(capsys, f"user:{PASSWORD}@127.0.0.1:{port}/realtime?token={PASSWORD}")
    assert (code, out) == (1, "")
    assert err == f"rtpool: http://127.0.0.1:{port}/realtime/stats: nothing listens there\n"
    code, _, err = once(capsys, "http://nobody.invalid/")
    assert code == 1
    assert "the name of the host is not known" in err


def hang(peer: socket.socket, over: threading.Event) -> None:
    over.wait(60.0)


def drip(peer: socket.socket, over: threading.Event) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\nX-Drops: ")
    while not over.wait(0.05):
        peer.sendall(b".")


def drip_body(peer: socket.socket, over: threading.Event) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not over.wait(0.05):
        peer.sendall(b" ")


@pytest.mark.parametrize("answer", [hang, drip, drip_body])
def test_it_does_not_answer(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with raw(answer) as url:
        began = time.monotonic()
        code, _, err = once(capsys, "--timeout", "0.4", url)
        assert time.monotonic() - began < 10
    assert code == 1
    assert "no answer within 0.4 s" in err


def test_one_that_hangs_is_not_asked_by_more_and_more_threads() -> None:
    with raw(drip) as url:
        application = Application(Address.parse(url), (), 0.2)
        before = threading.active_count()
        for _ in range(4):
            with pytest.raises(NotWatched, match="no answer within"):
                application.read()
        assert threading.active_count() <= before + 1


def test_it_does_not_speak_http(capsys: pytest.CaptureFixture[str]) -> None:
    with raw(lambda peer, over: peer.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")) as url:
        code, _, err = once(capsys, url)
        assert code == 1
        assert "is not HTTP (BadStatusLine)" in err
        code, _, err = once(capsys, url.replace("http:", "https:"))
        assert code == 1
        assert "TLS fails" in err


def test_tls(pool: RealtimePool) -> None:
    """An authority of one's own is named by SSL_CERT_FILE, as to every program that uses OpenSSL."""
    certificate = Certificate()
    monitoring = monitoring_app(pool)
    with make_server("127.0.0.1", 0, monitoring, handler_class=_Silent) as server:
        server.socket = certificate.context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            url = f"https://127.0.0.1:{server.server_port}/"
            argv = [sys.executable, "-m", "rtpool_sync", "watch", "--once", url]
            done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, timeout=30)
            assert done.returncode == 1
            assert "its certificate is not trusted" in done.stderr
            assert "SSL_CERT_FILE" in done.stderr
            environment = clean_environment(SSL_CERT_FILE=certificate.ca_file)
            done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30)
            assert (done.returncode, done.stderr) == (0, "")
        finally:
            server.shutdown()
            certificate.remove()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "there is no host"),
        ("http://", "there is no host"),
        ("ftp://host/", "not ftp://"),
        (f"http://u:{PASSWORD}@host:port/", "the port is not a number"),
        (f"http://u:{PASSWORD}@host:99999/", "the port is not a number"),
        ("http://host:0/", "the port is not a number"),
        ("http://a b/", "have to be escaped"),
        ("http://host/\r\nX: y", "have to be escaped"),
        ("http://höst/", "have to be escaped"),
        ("http://a..b/", "the host is not a name"),
        ("http://[::1/", "not an address"),
        ("http://" + "a" * 64 + "/", "the host is not a name"),
    ],
)
def test_no_address(url: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = once(capsys, url)
    assert code == 2
    assert said in err
    assert PASSWORD not in err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "x", ""])
@pytest.mark.parametrize("option", ["--interval", "--timeout"])
def test_no_time(option: str, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = once(capsys, f"{option}={seconds}", "host")
    assert code == 2
    assert "is not a number of seconds" in err


# -- who asks


def guarded(app: Any, authorization: str) -> Any:
    def guard(environ: Any, start_response: Any) -> Any:
        if environ.get("HTTP_AUTHORIZATION") != authorization:
            start_response("401 Unauthorized", [])
            return []
        return app(environ, start_response)

    return guard


def test_credentials(pool: RealtimePool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    basic = "Basic " + base64.b64encode(f"user:{PASSWORD}@/ü".encode()).decode()
    with served(guarded(monitoring_app(pool), basic)) as url:
        assert once(capsys, url)[0] == 1
        inside = url.replace("//", f"//user:{PASSWORD}%40%2F%C3%BC@")
        code, out, err = once(capsys, inside)
        assert (code, err) == (0, "")
        assert PASSWORD not in out
    with served(guarded(monitoring_app(pool), f"Bearer {PASSWORD}")) as url:
        header = f"Authorization: Bearer {PASSWORD}"
        assert once(capsys, "--header", header, url)[0] == 0
        file = tmp_path / "headers"
        file.write_text(f"\nX-Other: 1\n{header}\n")
        assert once(capsys, "--header", f"@{file}", url)[0] == 0


@pytest.mark.parametrize(
    "header",
    [PASSWORD, f"no name: {PASSWORD}", f"Name: a\x00{PASSWORD}", f"Name: é{PASSWORD}", f": {PASSWORD}"],
)
def test_no_header(header: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = once(capsys, "--header", header, "host")
    assert code == 2
    assert "argument --header" in err
    assert PASSWORD not in err
    file = tmp_path / "headers"
    file.write_text(f"Fine: 1\n{header}\n")
    code, _, err = once(capsys, "--header", f"@{file}", "host")
    assert code == 2
    assert "line 2" in err
    assert PASSWORD not in err
    code, _, err = once(capsys, "--header", "@no-such-file", "host")
    assert code == 2
    assert "no-such-file: No such file" in err


def test_whoever_it_is_led_to_gets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[object] = []

    def elsewhere(environ: Any, start_response: Any) -> list[bytes]:
        asked.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return []

    with (
        served(elsewhere) as target,
        served(document("307 Temporary Redirect", b"", ("Location", target))) as url,
    ):
        assert once(capsys, "--header", f"Authorization: {PASSWORD}", url)[0] == 1
    assert asked == []


def test_what_it_says_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x07\u202e sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"
    numbers = dict.fromkeys(
        ("total_connections", "healthy_connections", "active_sessions", "total_sessions_handled"), 1
    )
    lies = {"name": evil, **numbers, "max_connections": -1e14, "idle": "many", "resets": {evil: 1}, evil: [1]}
    with served(document("200 OK", {**lies, "status": evil, "message": evil})) as url:
        for arguments in ((url,), ("--json", url)):
            code, out, _ = once(capsys, *arguments)
            assert code == 0
            assert all(c.isprintable() or c == "\n" for c in json.dumps(out, ensure_ascii=False))
            assert "\x1b" not in out
            assert "abcdefghijklmnop" not in out
        sight = Sight(Application(Address.parse(url), (), 5.0), 1.0)
        sight.look()
        from rich.console import Console

        from rtpool_sync.cli._picture import picture

        with open(os.devnull, "w") as nowhere:
            Console(file=nowhere, force_terminal=True).print(picture(url, sight))


# -- again and again


def test_several_processes_are_added_up(emulator: RealtimeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """And what happened in between is counted for each by itself."""
    pools = [RealtimePool(base_url=emulator.base_url, api_key="sk-x", max_connections=n) for n in (2, 3)]
    apps = [monitoring_app(pool) for pool in pools]
    turn = [0, 1]

    def app(environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]]) -> Any:
            others = [header for header in headers if header[0] != "Rtpool-Process"]
            return start_response(status, [*others, ("Rtpool-Process", f"worker {turn[0]}")])

        return apps[turn[0]](environ, start)

    with pools[0], pools[1], served(app) as url:
        sight = Sight(Application(Address.parse(url), (), 5.0), 1.0)
        for _ in range(4):
            with pools[turn[0]].connection():
                sight.look()
            turn.reverse()
        assert sight.processes == 2
        (pool,) = sight.pools().values()
        assert (pool["max_connections"], pool["active_sessions"], pool["total_sessions_handled"]) == (5, 2, 4)
        assert pool["per_second"]["sessions"] > 0
        assert pool["per_second"]["failed"] == 0
        assert list(sight.history["default"]) == [1, 2, 2, 2]
        lines = _Lines()
        lines.show(sight)
        lines.show(sight)
        shown = capsys.readouterr().out
        assert shown.count("answers from 2 processes, added up from here on") == 1
        assert shown.count("default      healthy") == 2
        # A process that began anew has no rate to tell.
        pools[0].close()
        apps[0] = monitoring_app(RealtimePool(base_url=emulator.base_url, api_key="sk-x", max_connections=2))
        turn[:] = [0, 1]
        sight.look()
        (pool,) = sight.pools().values()
        assert pool["total_sessions_handled"] == 2


def test_figures_that_are_old(pool: RealtimePool) -> None:
    """They stay where they are, below why there are no newer ones."""
    from rich.console import Console

    from rtpool_sync.cli._picture import picture

    def drawn() -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(picture("here", sight))
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    with served(monitoring_app(pool)) as url:
        sight = Sight(Application(Address.parse(url), (), 5.0), 1.0)
        assert sight.state == ("unknown", "")
        with pool.connection():
            sight.look()
        assert "1 in use" in drawn()
        assert "These figures are" not in drawn()
    sight.look()
    assert "1 in use" in drawn()
    assert "These figures are" in drawn()
    assert "nothing listens there" in drawn()
    empty = document("200 OK", {"status": "healthy", "message": "there is no pool yet", "pools": []})
    with served(empty) as url:
        sight = Sight(Application(Address.parse(url), (), 5.0), 1.0)
        sight.look()
    assert "there is no pool yet" in drawn()


@contextmanager
def watching(
    *arguments: str, terminal: str = "xterm-256color", **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-u", "-m", "rtpool_sync", "watch", "--interval", "0.1", *arguments]
    # xdist sets the width; rich prefers that to the terminal's.
    environment = clean_environment(TERM=terminal, COLUMNS="120", LINES="40")
    with subprocess.Popen(argv, env=environment, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_lines_through_a_restart_of_the_application(pool: RealtimePool) -> None:
    down = threading.Event()
    monitoring = monitoring_app(pool)

    def app(environ: Any, start_response: Any) -> Any:
        if down.is_set():
            return document("502 Bad Gateway", b"")(environ, start_response)
        return monitoring(environ, start_response)

    with served(app) as url, watching(url, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None

        def line() -> list[str]:
            assert process.stdout is not None
            return process.stdout.readline().decode().split()

        assert line()[:3] == ["time", "pool", "status"]
        assert line()[1:3] == ["default", "healthy"]
        with pool.connection():
            while line()[3] != "1":
                pass
        down.set()
        while "502" not in line():
            pass
        down.clear()
        while line()[1] != "default":
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


def test_documents_go_on_without_an_answer(pool: RealtimePool) -> None:
    with raw(lambda peer, over: None) as url, watching("--json", url, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert "error" in json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
    with served(monitoring_app(pool)) as url, watching("--json", url, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert "per_second" not in json.loads(process.stdout.readline())["pools"][0]
        assert json.loads(process.stdout.readline())["pools"][0]["per_second"]["sessions"] == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal(ending: signal.Signals, pool: RealtimePool) -> None:
    """Drawn in place, and the terminal is left as it was."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    seen = b""

    def shows(*words: str) -> bool:
        nonlocal seen
        while select.select([parent], [], [], 0)[0]:
            try:
                seen += os.read(parent, 65536)
            except OSError:
                break
        return all(word.encode() in seen for word in words)

    try:
        with served(monitoring_app(pool)) as url:
            with watching(url, stdin=child, stdout=child, stderr=child) as process:
                eventually(lambda: shows("\x1b[?1049h", url, "healthy", "0 in use", "of at most 3"))
                with pool.connection():
                    eventually(lambda: shows("1 in use", "█"))
                eventually(lambda: shows("1 idle", "sessions 1", "checkouts: ", "ok 1"))
                process.send_signal(ending)
                code = process.wait(10)
        assert code == (0 if ending is signal.SIGINT else 143)
        assert shows("\x1b[?1049l", "\x1b[?25h")
        assert b"Traceback" not in seen
    finally:
        os.close(parent)
        os.close(child)


def test_a_dumb_terminal(pool: RealtimePool) -> None:
    """Such as Emacs' shell: nothing can be drawn in place, so it writes lines."""
    parent, child = pty.openpty()
    try:
        with served(monitoring_app(pool)) as url:
            with watching(url, terminal="dumb", stdin=child, stdout=child, stderr=child) as process:
                seen = b""
                while seen.count(b"default      healthy") < 2:
                    assert select.select([parent], [], [], 20.0)[0]
                    seen += os.read(parent, 65536)
                process.send_signal(signal.SIGINT)
                assert process.wait(10) == 0
        assert b"\x1b" not in seen
    finally:
        os.close(parent)
        os.close(child)


def test_a_terminal_without_rich(pool: RealtimePool, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for name in ("rich", "rich.live", "rich.text", "rtpool_sync.cli._picture"):
        monkeypatch.setitem(sys.modules, name, None)
    looked: list[float] = []

    def sleep(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("rtpool_sync.cli.watch.time.sleep", sleep)
    with served(monitoring_app(pool)) as url:
        assert main(["watch", url]) == 0
    shown = capsys.readouterr()
    assert "rtpool-sync[cli]" in shown.err
    assert shown.out.count("default      healthy") == 3
