"""After every test of a pool: what its ledger counts as it goes along is what there is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rtpool_sync.connection import State
from rtpool_sync.pool import _pools


@pytest.fixture(autouse=True)
def _the_ledger_is_right() -> Iterator[None]:
    yield
    for pool in list(_pools):
        ledger = pool._ledger
        with ledger.lock:
            states = [member.state for member in ledger.members]
            counted = ledger.connecting, ledger.in_use, ledger.closing
            assert counted == tuple(map(states.count, (State.CONNECTING, State.IN_USE, State.CLOSING)))
            idle = [member.idle_since for member in ledger.idle]
            assert idle == sorted(idle)
