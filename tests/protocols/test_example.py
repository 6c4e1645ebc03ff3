"""The example of docs/protocols.md, and what a protocol has without writing it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from rtpool_sync.errors import ConnectError, SessionRejected
from rtpool_sync.protocols.base import Protocol, SessionProtocol
from rtpool_sync.protocols.plain import PlainProtocol

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "protocols.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything the page's program defines, after it ran."""
    blocks = DOCUMENT.read_text(encoding="utf-8").split("<!-- run -->\n```python\n")[1:]
    program = tmp_path_factory.mktemp("page") / "program.py"
    program.write_text("".join(block.partition("\n```\n")[0] + "\n" for block in blocks), encoding="utf-8")
    return runpy.run_path(str(program))


@pytest.fixture
def protocol(page: dict[str, Any]) -> SessionProtocol:
    found: SessionProtocol = page["Parrot"]().follow(session={}, reset_timeout=5.0)
    return found


def test_the_example_is_a_protocol(page: dict[str, Any]) -> None:
    parrot = page["Parrot"]()
    assert isinstance(parrot, Protocol)
    assert (parrot.name, parrot.needs_key, parrot.transparent) == ("parrot", False, False)


def test_the_example_needs_no_settings(protocol: SessionProtocol) -> None:
    protocol.prepare(0.0)
    protocol.feed('{"event": "hello", "id": "polly", "conversation": 7}', 0.0)
    assert not protocol.pending
    assert not protocol.stray('{"event": "said", "conversation": 7}')
    assert protocol.stray('{"event": "said", "conversation": 6}')


def test_the_example_refuses(protocol: SessionProtocol) -> None:
    refused = '{"event": "refused", "why": "no"}'
    protocol.prepare(0.0)
    protocol.feed(refused, 0.0)
    assert protocol.failure is not None
    assert isinstance(protocol.failure.error, ConnectError)
    protocol.configure({"language": "xx"}, 0.0)
    protocol.feed(refused, 0.0)
    assert protocol.failure is not None
    assert isinstance(protocol.failure.error, SessionRejected)


@pytest.mark.parametrize("message", ["no json", "[]", "{}"])
def test_the_example_meets_something_else(protocol: SessionProtocol, message: str) -> None:
    protocol.prepare(0.0)
    protocol.feed(message, 0.0)
    assert protocol.failure is not None
    assert protocol.failure.outcome == "untracked"


def test_what_a_protocol_has_without_writing_it() -> None:
    class Least(SessionProtocol):
        def prepare(self, now: float) -> None: ...
        def configure(self, session: Any, now: float) -> None: ...
        def reset(self, now: float) -> None: ...
        def feed(self, message: str | bytes, now: float) -> None: ...

    least = Least()
    assert (least.pending, least.failure, least.wake_at) == (False, None, None)
    assert (least.session_id, least.expires_at) == (None, None)
    assert least.outgoing() == []
    assert least.tick(0.0) is None  # type: ignore[func-returns-value]
    assert least.sent({}) is None  # type: ignore[func-returns-value]
    assert least.received({})
    assert least.received_text("")
    assert not least.stray("")
    assert least.closed(1000, "") is None


def test_plain_has_nothing_to_do() -> None:
    assert (PlainProtocol.name, PlainProtocol.needs_key, PlainProtocol.transparent) == ("plain", False, True)
    plain = PlainProtocol().follow(session={}, reset_timeout=5.0)
    plain.prepare(0.0)
    plain.reset(0.0)
    assert not plain.pending
    assert plain.failure is None
    plain.configure({"instructions": "x"}, 0.0)
    assert not plain.pending
    assert plain.failure is not None
    assert isinstance(plain.failure.error, SessionRejected)
