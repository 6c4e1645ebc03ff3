"""A connection that was given back is reset before anything else can happen to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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


@pytest.mark.parametrize("interval", [1e-320, 0.05, 20.0, 1e6])
def test_health_checks_share_turns_of_the_loop(interval: float) -> None:
    """A thousand connections used at a thousand different times do not wake the reaper for each."""
    ledger: Any = SimpleNamespace(config=SimpleNamespace(health_check_interval=interval))
    life = Lifecycle(ledger, None, lambda transport: None)  # type: ignore[arg-type]
    late = max(interval / 200, 0.001)
    for since in (0.0, 12_345.678, 1e7):
        times = [since + interval * i / 1000 for i in range(1001)]
        dues = [life._next_check(now) for now in times]
        for now, due in zip(times, dues, strict=True):
            assert now + interval - 1e-6 <= due <= now + interval + late + 1e-6
        assert len(set(dues)) <= 202
