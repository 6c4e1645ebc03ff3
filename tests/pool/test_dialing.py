"""What the dials of one pool share: the TLS session."""

from __future__ import annotations

import ssl
from types import SimpleNamespace
from typing import Any

import pytest
from pool_support import eventually, plain

from rtpool_sync import RealtimePool
from rtpool_sync import dialing as dialing_module
from rtpool_sync.dialing import LOOK, Dialing
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.transport import Transport
from rtpool_sync.transport.stream import Stream


class Looks:
    """Counts how often a TLS session is looked for: CPython up to 3.12.7 loses 6 KB each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = ssl.SSLObject.session

        def session(tls: ssl.SSLObject) -> Any:
            self.count += 1
            return original.__get__(tls)

        monkeypatch.setattr(ssl.SSLObject, "session", property(session, original.fset))


def tls_of(pool: RealtimePool) -> ssl.SSLObject:
    with pool.connection(10.0) as conn:
        conn.send("x")
        conn.recv(10.0)
        stream = conn._borrowed()[1].sock
        assert isinstance(stream, Stream)
        assert stream.tls is not None
        return stream.tls


def test_one_tls_session_serves_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    with (
        RealtimeServer(tls=True) as server,
        plain(
            server.echo_url, ca_file=server.ca_file, max_connections=1, max_sessions_per_connection=1
        ) as pool,
    ):
        assert not tls_of(pool).session_reused
        eventually(lambda: pool.stats().counters.closed["sessions"] == 1)
        assert all(tls_of(pool).session_reused for _ in range(10))
    assert looks.count <= 3


class TLS:
    """As much of a TLS object as is looked at."""

    def __init__(self, context: object, *, reused: bool = False, ticket: bool = True) -> None:
        self.context, self.session_reused = context, reused
        self.session = self
        self.has_ticket = ticket
        self.timeout = 7200


def test_when_a_tls_session_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(dialing_module, "time", SimpleNamespace(monotonic=lambda: now))
    context = object()
    dialing = Dialing(None)  # type: ignore[arg-type]
    dialing._context = context  # type: ignore[assignment]

    def kept(tls: TLS) -> bool:
        dialing.remember(SimpleNamespace(sock=SimpleNamespace(tls=tls)))  # type: ignore[arg-type]
        return dialing._session is tls  # type: ignore[comparison-overlap]

    assert not kept(TLS(object())), "of another context"
    assert not kept(TLS(context, ticket=False))
    assert not kept(TLS(context)), "a moment after one came without a ticket"
    now += 0.1
    first = TLS(context)
    assert kept(first)
    now += LOOK - 1
    assert not kept(TLS(context)), "one that was dialed before there was one to resume"
    now += LOOK
    assert not kept(TLS(context, reused=True)), "the one there is does its work"
    assert kept(TLS(context)), "it was not accepted any more"
    now += 3600 + 1
    assert kept(TLS(context, reused=True)), "it has had half of its time"
    for _ in range(20):
        now += LOOK
        assert not kept(TLS(context, ticket=False))
    now += LOOK
    assert kept(TLS(context)), "however long none came"


def test_nothing_is_kept_of_a_connection_without_tls() -> None:
    dialing = Dialing(None)  # type: ignore[arg-type]
    transport = Transport()
    dialing.remember(transport)
    assert dialing._session is None
