"""Fixtures for the transport's tests."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from transport_peers import (
    PATIENCE,
    Authority,
    Background,
    Link,
    Listener,
    Names,
    Peer,
    dial,
    discard,
    eventually,
)

from rtpool_sync.transport import Transport


def open_sockets() -> set[str]:
    """The sockets of this process, by the kernel's names."""
    found = set()
    if os.path.isdir("/proc/self/fd"):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                name = os.readlink(f"/proc/self/fd/{number}")
                if name.startswith("socket:"):
                    found.add(name)
    return found


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test leaves a thread or a socket behind."""
    threads, sockets = set(threading.enumerate()), open_sockets()
    yield
    eventually(lambda: not set(threading.enumerate()) - threads, 5.0)
    eventually(lambda: not open_sockets() - sockets, 5.0)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own environment has no say."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    path: Path = tmp_path_factory.mktemp("tls") / "ca.pem"
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(path))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1", "localhost").configure_cert(server)
    return Authority(ca, str(path), server, ssl.create_default_context(cafile=str(path)))


@pytest.fixture
def link(authority: Authority) -> Iterator[Link]:
    """Make open connections: a transport, and the peer to drive it with."""
    with contextlib.ExitStack() as stack:

        def connect(
            *, tls: bool = False, after: bytes = b"", receive_buffer: int | None = None, **options: Any
        ) -> tuple[Transport, Peer]:
            server = authority.server if tls else None
            listener = stack.enter_context(Listener(tls=server, receive_buffer=receive_buffer))

            def accept() -> Peer:
                peer = listener.accept()
                peer.upgrade(after=after)
                return peer

            accepted = Background(accept)
            if tls:
                options.setdefault("context", authority.client)
            transport = dial(listener.port, **options).run()
            stack.callback(discard, transport)
            return transport, accepted.result(PATIENCE)

        yield connect


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, link: Link) -> tuple[Transport, Peer]:
    """An open connection, once plain and once TLS."""
    return link(tls=request.param == "tls")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)
