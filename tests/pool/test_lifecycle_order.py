"""A connection that was given back is reset before anything else can happen to it."""

from __future__ import annotations

import pytest

from rtpool_sync import RealtimePool
from rtpool_sync.connection import State
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.lifecycle import Lifecycle


@pytest.mark.parametrize("early", ["attend", "readable"])
def test_a_connection_is_not_offered_before_its_reset_has_begun(
    early: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server says in that moment (rate limits follow every response) must not skip the reset."""
    reset_begun = []
    original = Lifecycle.received_back

    def received_back(self: Lifecycle, member: object, now: float) -> None:
        # The reaper comes by the other way first: its timer, or the readable socket.
        self.attend(member, now)  # type: ignore[arg-type]
        if early == "readable":
            self.attend(member, now)  # type: ignore[arg-type]
        assert member.state is State.RESETTING, "offered without a reset"  # type: ignore[attr-defined]
        reset_begun.append(member)
        original(self, member, now)  # type: ignore[arg-type]

    monkeypatch.setattr(Lifecycle, "received_back", received_back)
    with RealtimeServer() as server:
        with RealtimePool(base_url=server.base_url, api_key="sk-x", max_connections=1) as pool:
            for _ in range(3):
                with pool.connection(timeout=10) as conn:
                    conn.send({"type": "input_audio_buffer.clear"})
            with pool.connection(timeout=10) as conn:
                assert conn.session_count == 4
            assert len(reset_begun) >= 3
            assert pool.stats().counters.closed["damaged"] == 0


def test_an_idle_connection_in_the_inbox_is_not_offered_twice() -> None:
    with RealtimeServer() as server:
        with RealtimePool(url=server.echo_url, protocol="plain", max_connections=1) as pool:
            with pool.connection(timeout=10) as conn:
                member = conn._member
            assert member is not None
            ledger = pool._ledger
            with ledger.lock:
                ledger.inbox.append(member)  # idle, on the stack, and in the inbox by mistake
            pool._wake()
            with pool.connection(timeout=10), pytest.raises(TimeoutError):
                pool.acquire(timeout=0.2)
