"""Opening a connection: one deadline, clear errors, and the key on the wire only."""

from __future__ import annotations

import contextlib
import email.utils
import io
import logging
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from transport_peers import (
    CLOSE,
    PATIENCE,
    TEXT,
    Authority,
    Background,
    Blackhole,
    Listener,
    Names,
    Peer,
    dial,
    discard,
    eventually,
    frame,
    within,
)
from websocket import _handshake

from rtpool_sync.errors import AuthenticationError, ConfigError, ConnectError, ModelError, RateLimited
from rtpool_sync.transport import Dial, Endpoint, Transport
from rtpool_sync.transport.dial import _retry_after, make_context
from rtpool_sync.transport.resolve import connect_tcp

KEY = "sk-SECRET0123456789"


def headers() -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {KEY}"), ("OpenAI-Project", "p")]


def failure(attempt: Dial) -> ConnectError:
    """The error of an attempt that must fail."""
    with pytest.raises(ConnectError) as caught:
        attempt.run()
    assert caught.value.__cause__ is caught.value.__context__ is None
    return caught.value


def says(answer: bytes) -> Callable[[Peer], object]:
    """A server that answers every request with this, and waits."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.raw(answer)
        peer.at_end()

    return script


def accepts(peer: Peer) -> None:
    """A server that accepts, says hello, and answers a close."""
    peer.upgrade(after=frame(TEXT, b"hello"))
    while True:
        opcode, payload = peer.receive()
        peer.send(opcode, payload)
        if opcode == CLOSE:
            return


@contextlib.contextmanager
def opened(attempt: Dial) -> Iterator[Transport]:
    transport = attempt.run()
    try:
        yield transport
    finally:
        discard(transport)


def refused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# -- where to


@pytest.mark.parametrize(
    ("url", "endpoint", "netloc"),
    [
        (
            "wss://api.openai.com/v1/realtime?model=x",
            (True, "api.openai.com", 443, "/v1/realtime?model=x"),
            "api.openai.com",
        ),
        ("ws://localhost", (False, "localhost", 80, "/"), "localhost"),
        ("ws://h:80/", (False, "h", 80, "/"), "h"),
        ("wss://h:80/a", (True, "h", 80, "/a"), "h:80"),
        ("ws://[::1]:8080/a?b", (False, "::1", 8080, "/a?b"), "[::1]:8080"),
        ("wss://user:password@h?q", (True, "h", 443, "/?q"), "h"),
    ],
)
def test_an_endpoint_from_a_url(url: str, endpoint: tuple[Any, ...], netloc: str) -> None:
    made = Endpoint.from_url(url)
    assert (made.secure, made.host, made.port, made.resource) == endpoint
    assert made.netloc == netloc
    assert "?" not in repr(made)


# -- the request


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_request(authority: Authority, tls: bool) -> None:
    asked = 0

    def once() -> list[tuple[str, str]]:
        nonlocal asked
        asked += 1
        return headers()

    requests: list[str] = []
    with Listener(
        lambda peer: requests.append(peer.upgrade()), tls=authority.server if tls else None
    ) as server:
        context = authority.client if tls else None
        with opened(dial(server.port, "/v1/realtime?model=m", headers=once, context=context)) as transport:
            assert transport.connected
            assert not transport.ended
            assert transport.owner is None
            assert isinstance(transport, websocket.WebSocket)
            assert transport.getstatus() == 101
    assert asked == 1
    first, *rest = requests[0].split("\r\n")
    assert first == "GET /v1/realtime?model=m HTTP/1.1"
    fields = dict(line.split(": ", 1) for line in rest if line)
    assert len(fields["Sec-WebSocket-Key"]) == 24
    del fields["Sec-WebSocket-Key"]
    assert fields == {
        "Host": f"127.0.0.1:{server.port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Authorization": f"Bearer {KEY}",
        "OpenAI-Project": "p",
    }


def test_a_real_server(authority: Authority) -> None:
    """Not only our own scripts: another implementation."""
    from websockets.sync.server import ServerConnection, serve

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with contextlib.ExitStack() as stack:
        for context, client in ((None, None), (authority.server, authority.client)):
            server = stack.enter_context(serve(echo, "127.0.0.1", 0, ssl=context))
            serving = threading.Thread(target=server.serve_forever)
            serving.start()
            stack.callback(serving.join, PATIENCE)
            stack.callback(server.shutdown)
            transport = dial(server.socket.getsockname()[1], context=client).run()
            for size in (0, 1, 125, 126, 65536, 300_000):
                transport.send("x" * size)
                assert transport.recv(5) == "x" * size
            assert transport.ping(5) < 5
            transport.close(timeout=5)
            assert transport.end_error is not None
            assert transport.end_error.code == 1000


def test_cookies_are_neither_stored_nor_sent(names: Names) -> None:
    requests: list[str] = []
    cookie = "Set-Cookie: sess=1; Domain=api.test; Path=/\r\nSet-Cookie: [bad]=1; Domain=rtpool.invalid\r\n"
    with Listener(lambda peer: requests.append(peer.upgrade(cookie))) as server:
        names.known["api.test"] = [("127.0.0.1", server.port)]
        for _ in range(2):
            with opened(dial(server.port, host="api.test")):
                pass
        _handshake.CookieJar.add("other=1; Domain=api.test")
        _handshake.CookieJar.add("other=1; Domain=rtpool.test")
        try:
            with opened(dial(server.port, host="api.test")):
                pass
            assert set(_handshake.CookieJar.jar) == {".api.test", ".rtpool.test"}
        finally:
            _handshake.CookieJar.jar.clear()
    assert len(requests) == 3
    assert not any("cookie" in request.lower() for request in requests)


def test_session_is_resumed(authority: Authority) -> None:
    context = make_context(authority.file)
    with Listener(accepts, tls=authority.server) as server:
        with opened(dial(server.port, context=context)) as first:
            assert first.recv(5) == "hello"
            assert first.stream.tls is not None
            session = first.stream.tls.session
        with opened(dial(server.port, context=context, session=session)) as second:
            assert second.recv(5) == "hello"
            assert second.stream.tls is not None
            assert second.stream.tls.session_reused


# -- refusals


@pytest.mark.parametrize(
    ("status", "kind", "permanent", "label"),
    [
        ("401 Unauthorized", AuthenticationError, True, "auth"),
        ("403 Forbidden", AuthenticationError, True, "auth"),
        ("404 Not Found", ModelError, True, "model"),
        ("429 Too Many", RateLimited, False, "rate_limit"),
        ("500 Oh", ConnectError, False, "handshake"),
        ("503 Later", ConnectError, False, "handshake"),
        ("302 Found", ConnectError, True, "handshake"),
        ("308 Moved", ConnectError, True, "handshake"),
        ("400 Bad", ConnectError, True, "handshake"),
        ("408 Slow", ConnectError, False, "handshake"),
        ("425 Early", ConnectError, False, "handshake"),
        ("200 OK", ConnectError, False, "handshake"),
    ],
)
def test_a_refusal_by_status(status: str, kind: type[ConnectError], permanent: bool, label: str) -> None:
    answer = f"HTTP/1.1 {status}\r\nRetry-After: 7\r\nContent-Length: 9\r\n\r\nBecause.\n"
    with Listener(says(answer.encode())) as server:
        error = failure(dial(server.port))
    assert type(error) is kind
    assert (error.permanent, error.kind, error.status) == (permanent, label, int(status[:3]))
    assert f"127.0.0.1:{server.port} refused the upgrade with HTTP {status[:3]}: Because." in str(error)
    if status[:3] in ("429", "500", "503"):
        assert error.retry_after == 7


def test_a_refusal_without_body() -> None:
    with Listener(says(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")) as server:
        error = failure(dial(server.port))
    assert str(error).endswith("HTTP 500")
    assert error.retry_after is None


def test_redirects_are_not_followed() -> None:
    with Listener(accepts) as other:
        answer = f"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:{other.port}/\r\nContent-Length: 0\r\n\r\n"
        with Listener(says(answer.encode())) as server:
            error = failure(dial(server.port, headers=headers))
        assert not other.peers
    assert "redirects are not followed" in str(error)


def test_retry_after() -> None:
    assert _retry_after(None) is None
    assert _retry_after("") is None
    assert _retry_after("1.5") == 1.5
    assert _retry_after("-3") == 0
    assert _retry_after("99999") == 3600
    assert _retry_after("inf") == 3600
    assert _retry_after("nan") == 0
    assert _retry_after("soon") is None
    later = _retry_after(email.utils.formatdate(time.time() + 60, usegmt=True))
    assert later is not None
    assert 55 < later <= 60
    assert _retry_after("Mon, 01 Jan 2001 00:00:00 GMT") == 0
    assert _retry_after("Mon, 01 Jan 0001 00:00:00 -0000") in (0, None)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Yes\r\n\r\n",
        b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
        b"HTTP/1.1 101 Yes\r\nUpgrade: \xff\r\n\r\n",
        b"garbage\r\n\r\n",
        b"",
    ],
)
def test_an_answer_that_is_no_upgrade(answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.raw(answer)
        peer.close()

    with Listener(script) as server:
        error = failure(dial(server.port))
    assert (error.kind, error.permanent, error.status) == ("handshake", False, None)
    assert "WebSocket upgrade" in str(error)


def test_a_reset_connection() -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.sock.close()

    with Listener(script) as server:
        error = failure(dial(server.port))
    assert "Connection reset by peer" in str(error)


def test_nobody_listens() -> None:
    error = failure(dial(refused_port()))
    assert error.kind == "tcp"
    assert "opening TCP" in str(error)
    assert "refused" in str(error)


def test_an_unknown_name(names: Names) -> None:
    names.known["api.test"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    error = failure(dial(443, host="api.test"))
    assert error.kind == "dns"
    assert "api.test" in str(error)
    assert "Name or service not known" in str(error)


# -- one deadline over everything


def trickling(data: bytes, pause: float) -> Callable[[Peer], object]:
    def script(peer: Peer) -> None:
        peer.sock.recv(65536)
        for byte in data:
            peer.raw(bytes([byte]))
            time.sleep(pause)

    return script


def endless(start: bytes, piece: bytes) -> Callable[[Peer], object]:
    def script(peer: Peer) -> None:
        peer.head()
        peer.raw(start)
        while True:
            peer.raw(piece)
            time.sleep(0.01)

    return script


def test_deadline_with_a_name_server_that_hangs(names: Names) -> None:
    names.known["api.test"] = answer = threading.Event()
    with within(0.7, at_least=0.3):
        error = failure(dial(443, host="api.test", timeout=0.3))
    answer.set()
    assert error.kind == "timeout"
    assert "resolving the name" in str(error)
    assert "within 0.30 s" in str(error)


def test_deadline_with_an_address_that_swallows_everything() -> None:
    with Blackhole() as hole, within(0.7, at_least=0.3):
        error = failure(dial(hole.port, timeout=0.3))
    assert error.kind == "timeout"
    assert "opening TCP" in str(error)


def test_deadline_with_a_tls_handshake_that_trickles(authority: Authority) -> None:
    script = trickling(b"\x16\x03\x03\x10\x00" + bytes(100), 0.05)
    with Listener(script) as server, within(0.8, at_least=0.3):
        error = failure(dial(server.port, timeout=0.3, context=authority.client))
    assert error.kind == "timeout"
    assert "TLS handshake" in str(error)


def test_deadline_with_an_answer_that_trickles() -> None:
    script = trickling(b"HTTP/1.1 101 Switching Protocols\r\nX: yyyyyyyyyyyyyyyyyyy", 0.2)
    with Listener(script) as server, within(1.25, at_least=1):
        error = failure(dial(server.port, timeout=1.0))
    assert error.kind == "timeout"
    assert "WebSocket upgrade" in str(error)


def test_deadline_with_a_mute_server(authority: Authority) -> None:
    with Listener(lambda peer: peer.at_end()) as server, within(0.7, at_least=0.3):
        assert failure(dial(server.port, timeout=0.3)).kind == "timeout"
    with Listener(lambda peer: peer.at_end()) as server, within(0.7, at_least=0.3):
        assert failure(dial(server.port, timeout=0.3, context=authority.client)).kind == "timeout"


def test_an_endless_head() -> None:
    with Listener(endless(b"HTTP/1.1 101 Yes\r\n", b"X: y\r\n" * 500)) as server, within(2):
        error = failure(dial(server.port))
    assert "above 32768 bytes" in str(error)


def test_an_endless_head_in_drops() -> None:
    with Listener(endless(b"HTTP/1.1 101 Yes\r\n", b"X: y\r\n")) as server, within(0.7, at_least=0.3):
        assert failure(dial(server.port, timeout=0.3)).kind == "timeout"


def test_the_endless_body_of_a_refusal() -> None:
    with Listener(endless(b"HTTP/1.1 401 No\r\n\r\n", b"no " * 1000)) as server, within(1.5):
        error = failure(dial(server.port))
    assert isinstance(error, AuthenticationError)
    assert len(str(error)) < 400


def test_the_trickling_body_of_a_refusal() -> None:
    script = endless(b"HTTP/1.1 503 No\r\nContent-Length: 4000\r\n\r\n", b"n")
    with Listener(script) as server:
        with within(1.5, at_least=0.9):
            assert failure(dial(server.port)).status == 503
        with within(0.7, at_least=0.3):
            assert failure(dial(server.port, timeout=0.3)).status == 503


def test_several_addresses(names: Names) -> None:
    with Listener(accepts) as server, Blackhole() as hole:
        names.known["refused.test"] = [("127.0.0.1", refused_port()), ("127.0.0.1", server.port)]
        names.known["silent.test"] = [("127.0.0.1", hole.port), ("127.0.0.1", server.port)]
        with within(0.4), opened(dial(80, host="refused.test")) as transport:
            assert transport.recv(5) == "hello"
        with within(0.8), opened(dial(80, host="silent.test")) as transport:
            assert transport.recv(5) == "hello"


# -- being aborted


@pytest.mark.parametrize("phase", ["dns", "tcp", "tls", "handshake"])
def test_abort(authority: Authority, names: Names, phase: str) -> None:
    names.known["hangs.test"] = answer = threading.Event()
    with Blackhole() as hole, Listener(lambda peer: peer.at_end()) as mute:
        attempt = {
            "dns": dial(443, host="hangs.test"),
            "tcp": dial(hole.port),
            "tls": dial(mute.port, context=authority.client),
            "handshake": dial(mute.port),
        }[phase]
        running = Background(attempt.run)
        eventually(lambda: attempt._phase == phase)
        with within(0.5):
            attempt.abort()
            error = running.error()
        answer.set()
    assert isinstance(error, ConnectError)
    assert "aborted" in str(error)


def test_abort_before_it_began_and_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener(accepts) as server:
        attempt = dial(server.port)
        attempt.abort()
        assert "aborted" in str(failure(attempt))
        attempt = dial(server.port)
        connect = connect_tcp

        def aborted_meanwhile(*args: Any) -> socket.socket:
            attempt.abort()
            attempt._aborted.clear()
            sock = connect(*args)
            attempt._aborted.set()
            return sock

        monkeypatch.setattr("rtpool_sync.transport.dial.connect_tcp", aborted_meanwhile)
        assert "aborted" in str(failure(attempt))


def test_an_unexpected_exception_closes_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture that looks for sockets left behind is what fails here."""

    class Unexpected(BaseException): ...

    def strike(*args: object) -> None:
        raise Unexpected

    with Listener(accepts) as server:
        attempt = dial(server.port, headers=lambda: strike())
        with pytest.raises(Unexpected):
            attempt.run()
        assert attempt._stream is not None
        assert attempt._stream.fileno() == -1
        names_gone = dial(server.port)
        monkeypatch.setattr("rtpool_sync.transport.dial.resolve", strike)
        with pytest.raises(Unexpected):
            names_gone.run()


# -- certificates


def test_an_untrusted_certificate(authority: Authority) -> None:
    with Listener(accepts, tls=authority.server) as server:
        error = failure(dial(server.port, context=make_context()))
    assert (error.kind, error.permanent) == ("tls", True)
    assert "is not trusted" in str(error)


def test_a_certificate_for_someone_else(authority: Authority) -> None:
    with Listener(accepts, tls=authority.server_for("other.test")) as server:
        error = failure(dial(server.port, context=authority.client))
    assert error.permanent
    assert "IP address mismatch" in str(error)
    with Listener(accepts, tls=authority.server_for("127.0.0.1")) as server:
        error = failure(dial(server.port, host="localhost", context=authority.client))
    assert "Hostname mismatch" in str(error)


def test_a_ca_file(authority: Authority) -> None:
    with Listener(accepts, tls=authority.server) as server:
        with opened(dial(server.port, context=make_context(authority.file))) as transport:
            assert transport.recv(5) == "hello"


def test_the_systems_environment_names_the_cas(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority.file)
    with Listener(accepts, tls=authority.server) as server:
        with opened(dial(server.port, host="localhost", context=make_context())) as transport:
            assert transport.recv(5) == "hello"


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("not a certificate")
    for path in (tmp_path / "missing.pem", bad):
        with pytest.raises(ConfigError, match="ca_file") as caught:
            make_context(str(path))
        assert caught.value.__context__ is None


def test_old_tls_is_refused(authority: Authority) -> None:
    context = make_context(authority.file)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_a_server_without_tls(authority: Authority) -> None:
    def script(peer: Peer) -> None:
        peer.sock.recv(65536)
        peer.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Listener(script) as server:
        error = failure(dial(server.port, context=authority.client))
    assert error.kind == "tls"
    assert "TLS handshake" in str(error)


# -- proxies


class Proxy(Listener):
    """An HTTP proxy for CONNECT; notes what it was asked."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n", port: int = 0) -> None:
        self.requests: list[str] = []
        self._answer = answer
        self._to = port
        super().__init__(self._tunnel)

    def _tunnel(self, peer: Peer) -> None:
        request = peer.head()
        self.requests.append(request)
        peer.raw(self._answer)
        if b" 200 " not in self._answer:
            peer.at_end()
            return
        with socket.create_connection(("127.0.0.1", self._to)) as onward:
            back = threading.Thread(target=self._copy, args=(onward, peer.sock))
            back.start()
            self._copy(peer.sock, onward)
            back.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("user", ["", "us%20er:p%40ss@", "user@"])
def test_through_a_proxy(authority: Authority, monkeypatch: pytest.MonkeyPatch, tls: bool, user: str) -> None:
    context = authority.server_for("api.test") if tls else None
    with Listener(accepts, tls=context) as server, Proxy(port=server.port) as proxy:
        monkeypatch.setenv("https_proxy" if tls else "HTTP_PROXY", f"http://{user}127.0.0.1:{proxy.port}")
        client = authority.client if tls else None
        with opened(dial(4433, host="api.test", context=client, headers=headers)) as transport:
            assert transport.recv(5) == "hello"
            transport.send("through")
            assert transport.recv(5) == "through"
    (request,) = proxy.requests
    assert request.startswith("CONNECT api.test:4433 HTTP/1.1\r\nHost: api.test:4433\r\n")
    sent = {"": None, "us%20er:p%40ss@": "dXMgZXI6cEBzcw==", "user@": "dXNlcjo="}[user]
    assert (f"Proxy-Authorization: Basic {sent}\r\n" in request) == (sent is not None)
    assert KEY not in request


def test_a_proxy_is_named_without_scheme_and_with_an_ipv6_target(monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener(accepts) as server, Proxy(port=server.port) as proxy:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
        with opened(dial(80, host="::1")) as transport:
            assert transport.recv(5) == "hello"
    assert proxy.requests[0].startswith("CONNECT [::1]:80 HTTP/1.1\r\nHost: [::1]:80\r\n")


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        (".openai.com", "api.openai.com", True),
        ("openai.com", "api.openai.com", True),
        (".openai.com", "evilopenai.com", False),
        ("openai.com", "evilopenai.com", False),
        ("openai.com", "openai.com.evil.test", False),
        ("other.test, api.openai.com", "api.openai.com", True),
        ("api.openai.com:80", "api.openai.com", True),
        ("api.openai.com:81", "api.openai.com", False),
        ("*", "api.openai.com", True),
        ("", "api.openai.com", False),
    ],
)
def test_no_proxy_goes_by_the_dots(
    names: Names, monkeypatch: pytest.MonkeyPatch, no_proxy: str, host: str, direct: bool
) -> None:
    with Listener(accepts) as server, Proxy(port=server.port) as proxy:
        names.known[host] = [("127.0.0.1", server.port)]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", no_proxy)
        with opened(dial(80, host=host)) as transport:
            assert transport.recv(5) == "hello"
    assert bool(proxy.requests) != direct


def test_a_proxy_for_the_other_scheme_is_not_asked(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{refused_port()}")
    with Listener(accepts, tls=authority.server) as server:
        with opened(dial(server.port, context=authority.client)) as transport:
            assert transport.recv(5) == "hello"


def test_a_proxy_that_refuses(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno"
    with Proxy(answer) as proxy:
        monkeypatch.setenv("https_proxy", f"http://user:pa55word@127.0.0.1:{proxy.port}")
        error = failure(dial(443, host="api.test", context=authority.client, headers=headers))
    assert error.kind == "proxy"
    assert "407" in str(error)
    assert "asking the proxy" in str(error)
    assert "pa55word" not in str(error)


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{refused_port()}")
    assert failure(dial(80, host="api.test")).kind == "tcp"


@pytest.mark.parametrize(
    "url", ["socks5://127.0.0.1:1080", "socks5h://u:pa55word@h:1", "https://127.0.0.1:3128"]
)
def test_a_proxy_of_another_kind_is_refused_clearly(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("http_proxy", url)
    error = failure(dial(80, host="api.test"))
    assert (error.kind, error.permanent) == ("proxy", True)
    assert f"a {url.split(':')[0]}:// proxy is not supported" in str(error)
    assert "pa55word" not in str(error)


@pytest.mark.parametrize("url", ["http://", "http://:3128", "http://h:99999"])
def test_a_proxy_url_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("http_proxy", url)
    failure(dial(80, host="api.test"))


def test_what_a_proxy_adds_to_its_answer_is_not_the_servers_word(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    injected = b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 401 Injected\r\nContent-Length: 0\r\n\r\n"
    with (
        Listener(accepts, tls=authority.server_for("api.test")) as server,
        Proxy(injected, server.port) as proxy,
    ):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        error = failure(dial(443, host="api.test", context=authority.client))
    assert error.kind == "tls"


# -- the key


def shown(error: BaseException) -> str:
    """All that an error reporter could show of it: texts, frames, and their variables."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(report.format()) + str(error) + repr(error) + repr(vars(error))


SECRET_PATH = f"/realtime?api-key={KEY}"
ECHO = f'{{"error": {{"message": "Incorrect API key provided: {KEY}"}}}}'


@pytest.mark.parametrize(
    "script",
    [
        says(f"HTTP/1.1 401 No\r\nContent-Length: {len(ECHO)}\r\n\r\n{ECHO}".encode()),
        says(b"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
        says(b"HTTP/1.1 101 Yes\r\nUpgrade: \xff\r\n\r\n"),
        says(b"HTTP/1.1 101 Yes\r\n\r\n"),
        says(b"garbage\r\n\r\n"),
        lambda peer: peer.head(),
        lambda peer: peer.at_end(),
        lambda peer: peer.close(),
    ],
)
def test_the_key_is_in_no_error_and_in_no_log(script: Any, caplog: pytest.LogCaptureFixture) -> None:
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    caplog.set_level(logging.DEBUG)
    websocket.enableTrace(True, handler)
    try:
        with Listener(script) as server:
            for make in (headers, lambda: [*headers(), ("X", "\u20ac")], lambda: [*headers(), ("Y",)]):
                with pytest.raises(ConnectError) as caught:
                    dial(server.port, SECRET_PATH, headers=make, timeout=0.3).run()
                assert KEY not in shown(caught.value)
    finally:
        websocket.enableTrace(False)
    assert KEY not in log.getvalue()
    assert KEY not in caplog.text


@pytest.mark.parametrize("where", ["take", "write", "answer"])
def test_the_key_is_in_no_frame_of_an_exception_out_of_nowhere(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Not even of one that nobody can foresee: a signal handler's, for instance."""
    from rtpool_sync.transport.stream import Stream

    class Unforeseen(BaseException): ...

    def strike(self: object, data: object, *args: object) -> None:
        try:
            raise KeyError(data)
        except KeyError:
            raise Unforeseen from None

    def take() -> list[tuple[str, str]]:
        secret = KEY
        if where == "take":
            raise Unforeseen
        return [("Authorization", secret)]

    if where == "write":
        monkeypatch.setattr(Stream, "write", strike)
    elif where == "answer":
        monkeypatch.setattr(Stream, "fill", strike)
    with Listener(lambda peer: peer.at_end()) as server:
        with pytest.raises(Unforeseen) as caught:
            dial(server.port, SECRET_PATH, headers=take).run()
    assert KEY not in shown(caught.value).replace("secret = KEY", "")


def test_the_key_is_in_no_log_of_an_open_connection(authority: Authority) -> None:
    log = io.StringIO()
    websocket.enableTrace(True, logging.StreamHandler(log))
    try:
        with Listener(accepts, tls=authority.server) as server:
            context = authority.client
            with opened(dial(server.port, SECRET_PATH, headers=headers, context=context)) as transport:
                assert transport.recv(5) == "hello"
                assert KEY not in shown_state(transport)
    finally:
        websocket.enableTrace(False)
    assert "GET / HTTP/1.1" in log.getvalue(), "the trace was on"
    assert KEY not in log.getvalue()


def shown_state(transport: Transport) -> str:
    return repr(transport) + repr(vars(transport)) + repr(vars(transport.stream))


def test_the_librarys_own_dump_of_a_key_is_dropped() -> None:
    """Of a connection that the same process opens without us, with tracing on."""
    log = io.StringIO()
    websocket.enableTrace(True, logging.StreamHandler(log))
    try:
        with Listener(accepts) as server:
            for own in (f"Authorization: Bearer {KEY}", f"api-key: {KEY}"):
                url = f"ws://127.0.0.1:{server.port}/"
                websocket.create_connection(url, header=[own], timeout=5).shutdown()  # type: ignore[no-untyped-call]
    finally:
        websocket.enableTrace(False)
    assert "request header" in log.getvalue()
    assert KEY not in log.getvalue()


def test_a_key_that_cannot_be_had() -> None:
    def broken() -> list[tuple[str, str]]:
        secret = KEY
        raise ConfigError(f"the api_key callable raised for {len(secret)} characters")

    with Listener(accepts) as server:
        error = failure(dial(server.port, headers=broken))
    assert (error.permanent, error.kind) == (True, "auth")
    assert "the api_key callable raised" in str(error)
    assert KEY not in shown(error)
