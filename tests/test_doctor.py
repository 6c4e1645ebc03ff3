"""`rtpool doctor`: every failure is found in its phase, in time, with advice, and without the key."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import rtpool_sync
from rtpool_sync.cli import main
from rtpool_sync.diagnosis import PHASES, certificate
from rtpool_sync.emulator import Faults, RealtimeServer

KEY = "sk-secret-of-the-tests-123456"
QUICK = "0.4"

Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings but those of the test."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "WEBSOCKET_", "RTPOOL_", "REALTIME_")) or name.lower().endswith(
            "_proxy"
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(Path(rtpool_sync.__file__).parent.parent))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 5.0
    while left := [t for t in threading.enumerate() if t not in before and t.name.startswith("rtpool")]:
        assert time.monotonic() < end, left
        time.sleep(0.005)


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command with these settings; give the document, and check what holds for all."""

    def run(*arguments: str, code: int, within: float = 8.0, **settings: str) -> dict[str, Any]:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        assert main(["doctor", "--json", *arguments]) == code
        assert time.monotonic() - began < within
        shown = capsys.readouterr()
        assert KEY not in shown.out + shown.err
        assert KEY[:12] not in shown.out + shown.err
        assert shown.err == ""
        document: dict[str, Any] = json.loads(shown.out)
        phases = [finding["phase"] for finding in document["findings"]]
        assert phases == [phase for phase in PHASES if phase in phases]
        assert document["ok"] == (code == 0)
        statuses = {finding["phase"]: finding["status"] for finding in document["findings"]}
        assert document["failed"] == next((p for p, status in statuses.items() if status == "failed"), None)
        for finding in document["findings"]:
            # Who is told that something is wrong is told what to do.
            assert bool(finding["advice"]) == (finding["status"] in ("warning", "failed"))
        return {**document, **{finding["phase"]: finding for finding in document["findings"]}}

    return run


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1].partition("/")[0])


@contextlib.contextmanager
def listening(script: Callable[[socket.socket], object]) -> Iterator[int]:
    """A TCP server; each connection is served by ``script`` in a thread."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def one(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(10.0)
            script(sock)
            stop.wait(10.0)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one, args=(sock,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        yield listener.getsockname()[1]
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
    for thread in list(threads):
        thread.join(10.0)


def names(monkeypatch: pytest.MonkeyPatch, known: dict[str, object]) -> None:
    """A name service of our own: an address, an error, or a function to wait in."""
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host not in known:
            return real(host, port, *args, **options)
        if len(args) > 3 and args[3] & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answer = known[host]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (answer, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


# -- when all is well


@pytest.mark.parametrize("tls", [False, True])
def test_everything_works(doctor: Run, tls: bool) -> None:
    with RealtimeServer(tls=tls) as server:
        settings = {"OPENAI_BASE_URL": server.base_url, "WEBSOCKET_CA_FILE": server.ca_file or ""}
        found = doctor(code=0, **settings)
        closed = {entry.code for entry in server.closed}
        assert server.opened_total == 2
    assert [finding["phase"] for finding in found["findings"]] == list(PHASES)
    skipped = {finding["phase"] for finding in found["findings"] if finding["status"] == "skipped"}
    assert skipped == {"proxy"} | (set() if tls else {"tls"})
    timed = {finding["phase"] for finding in found["findings"] if finding["seconds"] is not None}
    assert timed == set(PHASES) - skipped
    assert server.base_url.split("//")[1] in found["settings"]["detail"]
    assert "OPENAI_BASE_URL" in found["settings"]["detail"]
    assert "api_key = '***', from environment variable OPENAI_API_KEY" in found["settings"]["detail"]
    if tls:
        assert "TLSv1.3" in found["tls"]["detail"]
        assert "issued by trustme" in found["tls"]["detail"]
        assert "valid 2000-01-01 to 3000-01-01" in found["tls"]["detail"]
    assert "for 60 minutes" in found["session"]["detail"]
    assert "Answer with the one word" in found["turn"]["detail"]  # the emulator repeats what it is told
    assert "the same connection" in found["reuse"]["detail"]
    assert closed == {1000, 1001}  # the pool's own says that it goes away


def test_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with RealtimeServer(models=["another"]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        assert main(["doctor"]) == 1
        shown = capsys.readouterr().out
        monkeypatch.setenv("OPENAI_REALTIME_MODEL", "another")
        assert main(["doctor", "--no-turn"]) == 0
    lines = [line.split()[:2] for line in shown.splitlines() if line[:1].strip()]
    assert lines[:7] == [
        ["ok", "settings"],
        ["ok", "dns"],
        ["ok", "tcp"],
        ["-", "proxy"],
        ["-", "tls"],
        ["ok", "upgrade"],
        ["FAILED", "session"],
    ]
    assert " → There is no such model" in shown
    assert shown.endswith("\nIt does not work: session.\n")
    assert max(map(len, shown.splitlines())) <= 120
    again = capsys.readouterr().out
    assert again.endswith("\nEverything works.\n")
    assert KEY not in shown + again


def test_without_a_turn_nothing_is_asked_of_the_model(doctor: Run) -> None:
    with RealtimeServer(record=100) as server:
        seen: list[str] = []
        server.faults = Faults(rewrite=lambda event: (seen.append(event["type"]), event)[1])
        found = doctor("--no-turn", code=0, OPENAI_BASE_URL=server.base_url)
    assert found["turn"]["status"] == "skipped"
    assert found["reuse"]["status"] == "ok"
    assert not any(kind.startswith("response.") for kind in seen)


def test_connections_that_are_never_reused(doctor: Run) -> None:
    with RealtimeServer() as server:
        found = doctor(code=0, OPENAI_BASE_URL=server.base_url, WEBSOCKET_MAX_SESSIONS_PER_CONNECTION="1")
    assert (found["reset"]["status"], found["reuse"]["status"]) == ("skipped", "skipped")


def test_transcription_has_no_turns(doctor: Run, elsewhere: Path) -> None:
    with RealtimeServer() as server:
        found = doctor(code=0, WEBSOCKET_URL=f"{server.url}?intent=transcription")
    assert found["turn"]["status"] == "skipped"
    assert found["reuse"]["status"] == "ok"


def test_settings_of_a_named_pool(doctor: Run, elsewhere: Path) -> None:
    with RealtimeServer(models=["mini"]) as server:
        (elsewhere / "settings.toml").write_text(
            f'[default.realtime_pools.support]\nmodel = "mini"\nbase_url = "{server.base_url}"\n'
            'session = {instructions = "Be brief."}\n'
        )
        found = doctor("--pool", "support", code=0)
    assert found["pool"] == "support"
    assert "model = 'mini', from settings.toml" in found["settings"]["detail"]
    assert "session settings were accepted" in found["session"]["detail"]
    assert "no table" not in found["settings"]["detail"]


def test_a_pool_that_no_table_is_about(doctor: Run) -> None:
    """It is made of the general settings; and if that was a slip, one should know."""
    with RealtimeServer() as server:
        found = doctor("--pool", "suport", code=0, OPENAI_BASE_URL=server.base_url)
    assert "there is no table realtime_pools.suport" in found["settings"]["detail"]


# -- settings


def test_no_key(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    found = doctor(code=2)
    assert found["failed"] == "settings"
    assert "OPENAI_API_KEY" in found["settings"]["detail"]


def test_bad_settings(doctor: Run) -> None:
    found = doctor(code=2, WEBSOCKET_MAX_CONNECTIONS="many", OPENAI_BASE_URL="ftp://x")
    assert "WEBSOCKET_MAX_CONNECTIONS" in found["settings"]["detail"]
    assert "OPENAI_BASE_URL" in found["settings"]["detail"]


def test_a_ca_file_that_is_none(doctor: Run, elsewhere: Path) -> None:
    (elsewhere / "ca.pem").write_text("nothing of the kind")
    found = doctor(code=2, OPENAI_BASE_URL="https://127.0.0.1:1/v1", WEBSOCKET_CA_FILE="ca.pem")
    assert "ca.pem" in found["settings"]["detail"]


def test_warnings_of_the_settings_are_findings(doctor: Run) -> None:
    with RealtimeServer() as server:
        found = doctor(
            "--no-turn",
            code=0,
            OPENAI_BASE_URL=server.base_url,
            OPENAI_REALTIME_MODEL="gpt-4o-realtime-preview-2024-12-17",
            WEBSOCKET_MAX_CONECTIONS="5",
        )
    assert found["settings"]["status"] == "warning"
    assert "2026-05-07" in found["settings"]["advice"]
    assert "did you mean WEBSOCKET_MAX_CONNECTIONS" in found["settings"]["advice"]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_nonsense(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["doctor", "--timeout", value])
    assert exit.value.code == 2
    assert "is not a number of seconds from" in capsys.readouterr().err


# -- name and TCP


def test_no_such_name(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"api.exmaple": socket.gaierror(socket.EAI_NONAME, "Name or service not known")})
    found = doctor(code=1, OPENAI_BASE_URL="https://api.exmaple/v1")
    assert found["failed"] == "dns"
    assert "Name or service not known" in found["dns"]["detail"]
    assert "OPENAI_BASE_URL" in found["dns"]["advice"]


def test_a_name_server_that_does_not_answer(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    names(monkeypatch, {"api.example": lambda: done.wait(10)})
    try:
        found = doctor(code=1, OPENAI_BASE_URL="https://api.example/v1", WEBSOCKET_CONNECT_TIMEOUT=QUICK)
    finally:
        done.set()
    assert found["failed"] == "dns"
    assert "DNS server does not answer" in found["dns"]["advice"]


def test_a_port_where_nobody_listens(doctor: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    found = doctor(code=1, WEBSOCKET_URL=f"ws://127.0.0.1:{port}/")
    assert found["failed"] == "tcp"
    assert "refused" in found["tcp"]["detail"]
    assert "environment variable WEBSOCKET_URL" in found["tcp"]["advice"]


def test_a_host_that_does_not_answer(doctor: Run) -> None:
    fillers = []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        while True:  # until its queue is full
            fillers.append(socket.socket())
            fillers[-1].setblocking(False)
            fillers[-1].connect_ex(sock.getsockname())
            if not select.select([], [fillers[-1]], [], 0.05)[1]:
                break
        url = f"ws://127.0.0.1:{sock.getsockname()[1]}/"
        found = doctor(code=1, WEBSOCKET_URL=url, WEBSOCKET_CONNECT_TIMEOUT=QUICK)
        for filler in fillers:
            filler.close()
    assert found["failed"] == "tcp"
    assert "firewalls" in found["tcp"]["advice"]


# -- proxy


def proxy(answer: bytes, target: int | None = None) -> Callable[[socket.socket], None]:
    """A proxy that reads one CONNECT, answers, and leads to a port of this machine."""

    def serve(sock: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        sock.sendall(answer)
        if target is None:
            return
        with socket.create_connection(("127.0.0.1", target)) as there:
            while True:
                for side in select.select([sock, there], [], [], 10.0)[0]:
                    data = side.recv(65536)
                    if not data:
                        return
                    (there if side is sock else sock).sendall(data)

    return serve


def test_a_proxy_that_leads_there(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with RealtimeServer() as server:
        with listening(proxy(b"HTTP/1.1 200 OK\r\n\r\n", server.port)) as port:
            found = doctor(
                code=0, OPENAI_BASE_URL=server.base_url, http_proxy=f"http://me:hidden-word@127.0.0.1:{port}"
            )
    assert found["proxy"]["status"] == "ok"
    assert str(port) in found["proxy"]["detail"]
    assert "hidden-word" not in json.dumps(found)


def test_a_proxy_that_refuses(doctor: Run) -> None:
    with listening(proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")) as port:
        found = doctor(
            code=1, OPENAI_BASE_URL="https://api.example/v1", https_proxy=f"http://127.0.0.1:{port}"
        )
    assert found["failed"] == "proxy"
    assert "407" in found["proxy"]["detail"]
    assert "no_proxy=api.example" in found["proxy"]["advice"]


def test_a_proxy_that_is_silent(doctor: Run) -> None:
    with listening(lambda sock: None) as port:
        found = doctor(
            code=1,
            OPENAI_BASE_URL="https://api.example/v1",
            https_proxy=f"http://127.0.0.1:{port}",
            WEBSOCKET_CONNECT_TIMEOUT=QUICK,
        )
    assert found["failed"] == "proxy"


def test_a_proxy_of_another_kind(doctor: Run) -> None:
    found = doctor(code=1, OPENAI_BASE_URL="https://api.example/v1", https_proxy="socks5://127.0.0.1:1080")
    assert found["failed"] == "proxy"
    assert "socks5" in found["proxy"]["detail"]


# -- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, str]:
    ca = trustme.CA(organization_name="Zscaler Inc.")
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return ca, str(path)


def served_with(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def day(offset: int) -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=offset)


def test_an_expired_certificate(doctor: Run, authority: tuple[trustme.CA, str]) -> None:
    ca, file = authority
    leaf = ca.issue_cert("127.0.0.1", not_before=day(-90), not_after=day(-3))
    with RealtimeServer(tls=served_with(leaf)) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_CA_FILE=file)
        assert server.opened_total == 0
    assert found["failed"] == "tls"
    assert "expired" in found["tls"]["detail"]
    assert f"to {day(-3):%Y-%m-%d}" in found["tls"]["detail"]
    assert f"has expired on {day(-3):%Y-%m-%d}" in found["tls"]["advice"]


def test_a_certificate_that_is_not_valid_yet(doctor: Run, authority: tuple[trustme.CA, str]) -> None:
    ca, file = authority
    leaf = ca.issue_cert("127.0.0.1", not_before=day(3), not_after=day(9))
    with RealtimeServer(tls=served_with(leaf)) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_CA_FILE=file)
    assert found["failed"] == "tls"
    assert "clock" in found["tls"]["advice"]


def test_a_certificate_that_ends_soon(doctor: Run) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path("ca.pem")
    leaf = ca.issue_cert("127.0.0.1", not_before=day(-30), not_after=day(2))
    with RealtimeServer(tls=served_with(leaf)) as server:
        found = doctor("--no-turn", code=0, OPENAI_BASE_URL=server.base_url, WEBSOCKET_CA_FILE="ca.pem")
    assert found["tls"]["status"] == "warning"
    assert "ends in 2.0 days" in found["tls"]["advice"]


def test_a_certificate_of_another_host(doctor: Run, authority: tuple[trustme.CA, str]) -> None:
    ca, file = authority
    with RealtimeServer(tls=served_with(ca.issue_cert("login.hotel.example"))) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_CA_FILE=file)
    assert found["failed"] == "tls"
    assert "It is for login.hotel.example" in found["tls"]["advice"]


def test_an_unknown_authority(doctor: Run) -> None:
    with RealtimeServer(tls=True) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url)
        assert server.opened_total == 0
    assert found["failed"] == "tls"
    assert "issued by trustme" in found["tls"]["detail"]
    assert "WEBSOCKET_CA_FILE" in found["tls"]["advice"]


def test_a_self_signed_certificate(doctor: Run, tmp_path: Path) -> None:
    ca = trustme.CA()  # its own certificate is signed by itself
    pem = tmp_path / "self.pem"
    pem.write_bytes(ca.cert_pem.bytes() + ca.private_key_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with RealtimeServer(tls=context) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url)
    assert found["failed"] == "tls"
    assert "signed by nobody" in found["tls"]["advice"]


def test_a_proxy_that_reads_tls(
    doctor: Run, monkeypatch: pytest.MonkeyPatch, authority: tuple[trustme.CA, str]
) -> None:
    """Trusted by this machine or not: the issuer gives it away."""
    ca, file = authority
    names(monkeypatch, {"api.openai.com": "127.0.0.1"})
    with RealtimeServer(tls=served_with(ca.issue_cert("api.openai.com"))) as server:
        url = f"https://api.openai.com:{server.port}/v1"
        found = doctor(code=1, OPENAI_BASE_URL=url)
        assert found["failed"] == "tls"
        assert "Zscaler" in found["tls"]["advice"]
        assert "certificate authority as a PEM file" in found["tls"]["advice"]
        found = doctor("--no-turn", code=0, OPENAI_BASE_URL=url, WEBSOCKET_CA_FILE=file)
        assert found["tls"]["status"] == "warning"
        assert "Zscaler, which reads TLS" in found["tls"]["advice"]
    other = trustme.CA(organization_name="Example Corp IT")
    other.cert_pem.write_to_path("corp.pem")
    with RealtimeServer(tls=served_with(other.issue_cert("api.openai.com"))) as server:
        url = f"https://api.openai.com:{server.port}/v1"
        found = doctor("--no-turn", code=0, OPENAI_BASE_URL=url, WEBSOCKET_CA_FILE="corp.pem")
    assert "none that is known" in found["tls"]["advice"]


def test_public_authorities_are_no_interception() -> None:
    for issuer in (
        "Google Trust Services WE1",
        "Let's Encrypt E7",
        "DigiCert Inc DigiCert TLS G2",
        "Microsoft",
    ):
        assert certificate.intercepted("api.openai.com", issuer) is None
    assert certificate.intercepted("notopenai.com", "Example Corp IT") is None
    assert certificate.intercepted("me.openai.azure.com", "Example Corp IT") is not None


def test_plain_text_where_tls_was_expected(doctor: Run) -> None:
    with RealtimeServer() as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url.replace("http:", "https:"))
    assert found["failed"] == "tls"
    assert "does not speak TLS" in found["tls"]["advice"]


def test_a_tls_handshake_that_trickles(doctor: Run) -> None:
    def trickle(sock: socket.socket) -> None:
        sock.recv(4096)
        for byte in b"\x16\x03\x03\x40\x00" + bytes(200):
            sock.sendall(bytes([byte]))
            time.sleep(0.02)

    with listening(trickle) as port:
        found = doctor(
            code=1, OPENAI_BASE_URL=f"https://127.0.0.1:{port}/v1", WEBSOCKET_CONNECT_TIMEOUT=QUICK
        )
    assert found["failed"] == "tls"
    assert "swallows it" in found["tls"]["advice"]


def test_plain_text_to_another_machine(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"gateway.example": "127.0.0.1"})
    with RealtimeServer() as server:
        found = doctor("--no-turn", code=0, OPENAI_BASE_URL=f"http://gateway.example:{server.port}/v1")
    assert found["tls"]["status"] == "warning"
    assert "plain text" in found["tls"]["advice"]


# -- upgrade


@pytest.mark.parametrize(
    ("faults", "detail", "advice"),
    [
        (
            Faults(refuse=401, refuse_body=f"no such key: {KEY}"),
            "no such key: ***",
            "environment variable OPENAI_API_KEY",
        ),
        (Faults(refuse=403), "HTTP 403", "permissions"),
        (Faults(refuse=404, refuse_body="no deployment"), "no deployment", "OPENAI_REALTIME_MODEL"),
        (Faults(refuse=429, refuse_headers={"Retry-After": "7"}), "HTTP 429", "asks to wait 7 s"),
        (Faults(refuse=500), "HTTP 500", "status page"),
        (Faults(refuse=503), "HTTP 503", "try again"),
        (
            Faults(refuse=400, refuse_body="OperationNotSupported"),
            "OperationNotSupported",
            "not a WebSocket endpoint",
        ),
        (Faults(refuse=200, refuse_body="<html>"), "HTTP 200", "not a WebSocket endpoint"),
        (Faults(redirect="https://elsewhere.example/"), "HTTP 302", "redirects"),
        (Faults(reset="request"), "reset", "no WebSocket"),
        (Faults(mute="request"), "within 0.40 s", "does not answer"),
        (Faults(trickle=0.1), "within 0.40 s", "does not answer"),
    ],
    ids=["401", "403", "404", "429", "500", "503", "400", "200", "302", "reset", "mute", "trickle"],
)
def test_the_upgrade_is_refused(doctor: Run, faults: Faults, detail: str, advice: str) -> None:
    with RealtimeServer(faults=faults) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_CONNECT_TIMEOUT=QUICK)
    assert found["failed"] == "upgrade"
    assert detail in found["upgrade"]["detail"].lower() or detail in found["upgrade"]["detail"]
    assert advice in found["upgrade"]["advice"]


def test_a_server_that_is_no_web_server(doctor: Run) -> None:
    with listening(lambda sock: sock.sendall(b"220 mail.example ESMTP\r\n\r\n")) as port:
        found = doctor(code=1, OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")
    assert found["failed"] == "upgrade"


def test_a_server_that_hides_the_secret_in_its_words(doctor: Run) -> None:
    """Whatever form it has: keys of gateways look like nothing."""
    with RealtimeServer(faults=Faults(refuse=404, refuse_body="/v1/realtime?api-key=gateway-word")) as server:
        found = doctor(code=1, WEBSOCKET_URL=f"{server.url}?api-key=gateway-word")
    assert "gateway-word" not in json.dumps(found)


# -- session


@pytest.mark.parametrize(
    ("options", "detail", "advice"),
    [
        ({"api_keys": ["another"]}, "invalid_api_key", "environment variable OPENAI_API_KEY"),
        ({"models": ["another"]}, "invalid_model", "OPENAI_REALTIME_MODEL"),
        ({"max_sessions": 0}, "limit of concurrent sessions", "Too many"),
        ({"faults": Faults(no_session_created=True)}, "within 0.4 s", 'protocol="plain"'),
        ({"faults": Faults(close_after=0, close_code=1013)}, "1013", "status page"),
        ({"faults": Faults(reset_after=0)}, "lost", "status page"),
        ({"session_seconds": 30.0}, "min_session_time=600", "WEBSOCKET_MIN_SESSION_TIME"),
    ],
    ids=["key", "model", "sessions", "silent", "1013", "reset", "short"],
)
def test_the_session_does_not_begin(doctor: Run, options: dict[str, Any], detail: str, advice: str) -> None:
    with RealtimeServer(**options) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_CONNECT_TIMEOUT=QUICK)
    assert found["failed"] == "session"
    assert detail in found["session"]["detail"]
    assert advice in found["session"]["advice"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("insufficient_quota", "no credit"),
        ("rate_limit_exceeded", "Too many requests"),
        ("invalid_api_key", "does not accept the key"),
        ("server_error", "status page"),
    ],
)
def test_an_error_in_place_of_the_session(doctor: Run, code: str, advice: str) -> None:
    said = {"type": "error", "error": {"type": code, "code": code, "message": f"because of {KEY}"}}
    faults = Faults(rewrite=lambda event: said if event["type"] == "session.created" else event)
    with RealtimeServer(faults=faults) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_CONNECT_TIMEOUT="2")
    assert found["failed"] == "session"
    assert "because of ***" in found["session"]["detail"]
    assert advice in found["session"]["advice"]


def test_a_websocket_that_speaks_something_else(doctor: Run) -> None:
    said = {"type": "x"}
    with RealtimeServer(faults=Faults(rewrite=lambda event: said)) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_CONNECT_TIMEOUT=QUICK)
    assert found["failed"] == "session"
    assert 'protocol="plain"' in found["session"]["advice"]


def test_session_settings_that_are_refused(doctor: Run, elsewhere: Path) -> None:
    with RealtimeServer() as server:
        (elsewhere / "settings.toml").write_text(
            '[default.realtime_session]\noutput_modalities = ["smell"]\n'
        )
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url)
    assert found["failed"] == "session"
    assert "REALTIME_SESSION" in found["session"]["advice"]


# -- turn, reset, reuse


def failed_response(code: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def rewrite(event: dict[str, Any]) -> dict[str, Any]:
        if event["type"] != "response.done":
            return event
        error = {"type": "invalid_request_error", "code": code, "message": f"You have none, {KEY}."}
        details = {"type": "failed", "error": error}
        return {**event, "response": {**event["response"], "status": "failed", "status_details": details}}

    return rewrite


def error_instead(code: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    error = {"type": "invalid_request_error", "code": code, "message": "No."}
    said = {"type": "error", "event_id": "event_x", "error": error}
    return lambda event: said if event["type"] == "response.created" else event


@pytest.mark.parametrize(
    ("rewrite", "detail", "advice"),
    [
        (failed_response("insufficient_quota"), "You have none, ***. (insufficient_quota)", "no credit"),
        (error_instead("rate_limit_exceeded"), "No. (rate_limit_exceeded)", "Too many requests"),
        (error_instead("model_not_found"), "model_not_found", "OPENAI_REALTIME_MODEL"),
        (error_instead("server_error"), "server_error", "status page"),
        (error_instead("who_knows"), "who_knows", "see its words"),
        (lambda e: None if e["type"].startswith("response.") else e, "no answer within 0.5 s", "silent"),
    ],
    ids=["quota", "rate", "model", "server", "unknown", "silence"],
)
def test_no_answer(
    doctor: Run, rewrite: Callable[[dict[str, Any]], dict[str, Any] | None], detail: str, advice: str
) -> None:
    with RealtimeServer(faults=Faults(rewrite=rewrite)) as server:
        found = doctor("--timeout", "0.5", code=1, OPENAI_BASE_URL=server.base_url)
    assert found["failed"] == "turn"
    assert detail in found["turn"]["detail"]
    assert advice in found["turn"]["advice"]


def test_the_connection_breaks_in_the_turn(doctor: Run) -> None:
    faults = Faults(reset_after=4)
    with RealtimeServer(faults=faults) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url)
    assert found["failed"] == "turn"
    assert "lost" in found["turn"]["detail"]


def test_a_second_connection_is_refused(doctor: Run) -> None:
    """The first one was looked at; the second is the pool's."""
    with RealtimeServer(faults=Faults(refuse=403, only=lambda index: index > 0)) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url)
    assert found["failed"] == "turn"
    assert "HTTP 403" in found["turn"]["detail"]


def test_a_second_connection_is_refused_for_a_while(doctor: Run) -> None:
    with RealtimeServer(faults=Faults(refuse=503, only=lambda index: index > 0)) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_CONNECT_TIMEOUT="0.3")
    assert found["failed"] == "turn"
    assert "HTTP 503" in found["turn"]["detail"]  # the reason, not only that it took too long


def test_a_server_that_cannot_reset(doctor: Run) -> None:
    faults = Faults(rewrite=lambda event: None if event["type"] == "conversation.item.deleted" else event)
    with RealtimeServer(faults=faults) as server:
        found = doctor(code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_RESET_TIMEOUT="0.3")
    assert found["failed"] == "reset"
    assert "WEBSOCKET_MAX_SESSIONS_PER_CONNECTION=1" in found["reset"]["advice"]


def test_a_reset_without_an_end(doctor: Run) -> None:
    faults = Faults(rewrite=lambda event: None if event["type"] == "conversation.item.deleted" else event)
    with RealtimeServer(faults=faults) as server:
        found = doctor(
            "--timeout", "0.5", code=1, OPENAI_BASE_URL=server.base_url, WEBSOCKET_RESET_TIMEOUT="60"
        )
    assert found["failed"] == "reset"
    assert "within 0.5 s" in found["reset"]["detail"]


# -- the command


def test_interrupted() -> None:
    with listening(lambda sock: None) as port:
        environment = {**os.environ, "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}
        with subprocess.Popen(
            [sys.executable, "-u", "-m", "rtpool_sync", "doctor"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if " dns " in line:
                    break
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
    assert (process.returncode, err.strip()) == (130, "interrupted")


def test_it_needs_no_extra() -> None:
    program = (
        "import sys\n"
        "for name in ('rich', 'websockets', 'openai', 'trustme', 'cryptography'): sys.modules[name] = None\n"
        "from rtpool_sync.cli import main\nsys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "WEBSOCKET_URL": "ws://127.0.0.1:1/"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["failed"] == "tcp"
