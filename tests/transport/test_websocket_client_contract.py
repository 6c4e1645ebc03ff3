"""What we rely on in websocket-client without its promise, each pinned by a test of this module.

=====================================  =====================================================================
name or behaviour                      what we do with it
=====================================  =====================================================================
``WebSocket`` can be subclassed        ``Transport`` replaces recv, send, ping, close, abort, shutdown, fileno
``WebSocket.__init__`` keywords        ``enable_multithread=True`` makes ``readlock`` a lock;
                                       ``skip_utf8_validation=True``
``WebSocket.readlock``                 a ``threading.Lock``: held by whoever receives
``WebSocket.lock``                     theirs, for their own ``send``; never held by us, so never waited for
``WebSocket.connected``                True after ``connect``; we clear it when the connection ends
``WebSocket.sock``                     our ``Stream``, put there by ``connect``; None when closed or failed
``WebSocket.handshake_response``       ``getstatus()`` after ``connect``
``connect(socket=...)``                no name lookup, TCP, proxy or TLS: the object is used as it is
``connect(host=...)``                  the Host header, while cookies are looked up by the URL's host
``connect(suppress_origin=True)``      no Origin header
``connect(redirect_limit=0)``          no redirect is followed; a 3xx is an exception
one ``send`` for the request           whole, beginning ``GET / HTTP/1.1``, ending CRLF CRLF: ``Stream.send``
                                       puts the secret headers before the last CRLF
no headers of ours                     the library never sees them: neither its frames nor its trace
``recv(1)`` until the empty line       the answer is read byte by byte and not a byte too far
``gettimeout()``                       asked by send and recv; must not be 0; ``settimeout`` is not called
``close()`` on failure                 a failed ``connect`` closes its socket and sets ``sock`` to None
exceptions of the socket               pass through: ours as they are, ``TimeoutError`` as
                                       ``WebSocketTimeoutException``
``set-cookie`` of the answer           goes into ``_handshake.CookieJar``: hence it is not passed on
``shutdown()`` reads ``sock._closed``  an object without that attribute would never be closed
``logging.getLogger("websocket")``     where ``enableTrace`` dumps requests; our filter sits there
``ABNF.OPCODE_*``                      the same numbers as ours
``send_text``, ``send_bytes``,         call ``self.send`` and ``self.recv``, hence ours
``send_binary``, iteration
=====================================  =====================================================================
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import inspect
import logging
import re
import threading
from typing import Any

import pytest
import websocket
from transport_peers import TEXT, Link, frame
from websocket import _handshake

from rtpool_sync.transport import Transport, frames
from rtpool_sync.transport.dial import _NoRequestDumps
from rtpool_sync.transport.stream import Stream, UpgradeRefused


class Recorder:
    """A socket that notes how it is used and answers an upgrade."""

    _closed = False

    def __init__(
        self, head: str = "HTTP/1.1 101 Yes", extra: str = "", error: BaseException | None = None
    ) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.sent = b""
        self._head, self._extra, self._error = head, extra, error
        self._answer = b""

    def send(self, data: bytes) -> int:
        self.calls.append(("send", len(data)))
        self.sent += data
        found = re.search(rb"Sec-WebSocket-Key: (.*)\r\n", self.sent)
        assert found is not None
        text = found[1].decode() + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(text.encode()).digest()).decode()
        self._answer = (
            f"{self._head}\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            f"sec-websocket-accept: {accept}\r\n{self._extra}\r\n"
        ).encode() + frame(TEXT, b"not the library's")
        return len(data)

    def recv(self, size: int) -> bytes:
        self.calls.append(("recv", size))
        if self._error is not None:
            raise self._error
        piece, self._answer = self._answer[:size], self._answer[size:]
        return piece

    def gettimeout(self) -> float:
        self.calls.append(("gettimeout", None))
        return 1.0

    def close(self) -> None:
        self.calls.append(("close", None))
        self._closed = True

    @property
    def left(self) -> bytes:
        return self._answer


def connect(sock: Recorder, **options: Any) -> Any:
    made = websocket.WebSocket(enable_multithread=True, skip_utf8_validation=True)
    options = {"host": "api.test:8443", "suppress_origin": True, "redirect_limit": 0, **options}
    made.connect("ws://rtpool.invalid/", socket=sock, **options)  # type: ignore[no-untyped-call]
    return made


def test_the_version_is_one_that_was_looked_at() -> None:
    version = importlib.metadata.version("websocket-client")
    assert version.split(".")[0] == "1"
    assert tuple(int(part) for part in version.split(".")[:3]) >= (1, 9, 2)


def test_the_object() -> None:
    made = websocket.WebSocket(enable_multithread=True, skip_utf8_validation=True)
    assert isinstance(made.readlock, type(threading.Lock()))
    assert isinstance(made.lock, type(threading.Lock()))
    assert made.readlock is not made.lock
    assert made.connected is False
    assert made.sock is None
    assert made.handshake_response is None
    for name in ("recv", "send", "ping", "close", "abort", "shutdown", "fileno"):
        assert name in vars(Transport)
        assert inspect.isfunction(vars(websocket.WebSocket)[name]), "still a method, not a property"


def test_the_request_is_one_send() -> None:
    sock = Recorder()
    made = connect(sock)
    assert [call for call in sock.calls if call[0] == "send"] == [("send", len(sock.sent))]
    text = sock.sent.decode()
    assert text.startswith("GET / HTTP/1.1\r\n")
    assert text.endswith("\r\n\r\n")
    assert text.count("\r\n\r\n") == 1
    assert text.count("GET / ") == 1
    names = sorted(line.split(":")[0] for line in text.strip().split("\r\n")[1:])
    assert names == ["Connection", "Host", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Upgrade"]
    assert "\r\nHost: api.test:8443\r\n" in text
    assert made.connected is True
    assert made.sock is sock
    assert made.getstatus() == 101


def test_the_answer_is_read_byte_by_byte_and_not_too_far() -> None:
    sock = Recorder()
    connect(sock)
    assert {size for name, size in sock.calls if name == "recv"} == {1}
    assert sock.left == frame(TEXT, b"not the library's")
    assert {name for name, _ in sock.calls} == {"send", "recv", "gettimeout"}


def test_a_socket_of_ours_does_without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setattr("socket.getaddrinfo", None)
    sock = Recorder()
    assert connect(sock).sock is sock


def test_redirects() -> None:
    sock = Recorder("HTTP/1.1 302 Found", "location: ws://127.0.0.1:1/\r\n")
    with pytest.raises(websocket.WebSocketException, match="Redirect limit"):
        connect(sock)
    assert sock._closed
    assert "redirect" not in inspect.getsource(Stream), (
        "which is why ours never get that far: see UpgradeRefused"
    )


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (UpgradeRefused(401, {}, ""), UpgradeRefused),
        (TimeoutError("timed out"), websocket.WebSocketTimeoutException),
        (ConnectionResetError(104, "reset"), ConnectionResetError),
        (OSError("no errno"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_exceptions_pass_through_and_the_socket_is_closed(
    raised: BaseException, expected: type[BaseException]
) -> None:
    sock = Recorder(error=raised)
    made = websocket.WebSocket()
    with pytest.raises(expected):
        made.connect("ws://rtpool.invalid/", socket=sock, redirect_limit=0)  # type: ignore[no-untyped-call]
    assert sock.calls[-1] == ("close", None)
    assert made.sock is None
    assert made.connected is False


@pytest.mark.parametrize("answer", ["HTTP/1.1 101 Yes\r\n\r\n", "HTTP/1.1 101 Yes\r\nno colon\r\n\r\n"])
def test_a_wrong_answer_is_its_exception(answer: str) -> None:
    sock = Recorder(answer)
    with pytest.raises(websocket.WebSocketException):
        connect(sock)
    assert sock._closed


def test_cookies_go_by_the_hosts_name_in_the_url() -> None:
    """Why the URL names a host that does not exist, and why Set-Cookie is not passed on."""
    try:
        connect(Recorder(extra="set-cookie: a=1; Domain=api.test\r\n"))
        assert list(_handshake.CookieJar.jar) == [".api.test"], "stored, whatever the URL's host"
        sock = Recorder()
        connect(sock, host="api.test")
        assert b"Cookie" not in sock.sent, "looked up by the URL's host, not by the Host header"
    finally:
        _handshake.CookieJar.jar.clear()


def test_shutdown_looks_at_a_private_attribute() -> None:
    sock = Recorder()
    made = connect(sock)
    made.shutdown()
    assert sock._closed
    assert made.sock is None
    assert Stream._closed is False
    sock = Recorder()
    sock._closed = True
    made = connect(sock)
    made.shutdown()
    assert ("close", None) not in sock.calls


def test_the_trace_goes_to_the_logger_that_we_filter() -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    websocket.enableTrace(True, Keep())
    try:
        connect(Recorder())
    finally:
        websocket.enableTrace(False)
    assert {record.name for record in records} == {"websocket"}
    assert any(str(record.msg).startswith("GET / HTTP/1.1\r\n") for record in records), "unformatted, in msg"
    assert any(isinstance(item, _NoRequestDumps) for item in logging.getLogger("websocket").filters)


def test_opcodes() -> None:
    for name in ("TEXT", "BINARY", "CLOSE", "PING", "PONG"):
        assert getattr(frames, name) == getattr(websocket.ABNF, f"OPCODE_{name}")
    assert frames.CONTINUATION == websocket.ABNF.OPCODE_CONT


def test_the_librarys_other_names_for_sending_and_receiving_are_ours(link: Link) -> None:
    transport, peer = link()
    transport.send_text("a")
    transport.send_bytes(b"b")
    transport.send_binary(b"c")
    assert [peer.receive() for _ in range(3)] == [(1, b"a"), (2, b"b"), (2, b"c")]
    peer.send(TEXT, "d")
    peer.send(TEXT, "e")
    assert next(iter(transport)) == "d"
    assert next(transport) == "e"
