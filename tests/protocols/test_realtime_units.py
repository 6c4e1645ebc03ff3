"""The small parts: settings, and what errors say."""

from __future__ import annotations

from typing import Any

import pytest
from realtime_model import DEFAULTS

from rtpool_sync.protocols import refusals
from rtpool_sync.protocols.snapshot import (
    difference,
    mcp_tools,
    patch,
    settings_of,
    stopped,
    turn_detection,
    voice,
    words,
)


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        ({}, {}, None),
        ({"a": None}, {}, None),
        ({}, {"a": None}, None),
        ({"a": 1}, {"a": 1.0}, None),
        ({"a": {"b": [1, {"c": None}]}}, {"a": {"b": [1, {}]}}, None),
        ({"a": 1}, {"a": 2}, "a"),
        ({"a": 1}, {}, "a"),
        ({}, {"a": 1}, "a"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b"),
        ({"a": {"b": 1}}, {"a": "b"}, "a"),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "a[1].b"),
        ({"a": [1]}, {"a": [1, 2]}, "a"),
        ([1], [2], "[0]"),
    ],
)
def test_difference(one: Any, other: Any, where: str | None) -> None:
    assert difference(one, other) == where


@pytest.mark.parametrize(
    ("snapshot", "effective", "changes"),
    [
        # In full what can be changed, and nothing else but what did change.
        ({"instructions": "a"}, {"instructions": "a"}, {"instructions": "a"}),
        ({"novel": "a"}, {"novel": "a"}, {}),
        ({"novel": "a"}, {"novel": "b"}, {"novel": "a"}),
        ({"novel": {"x": 1}}, {}, {"novel": {"x": 1}}),
        ({}, {"novel": "b"}, {"novel": None}),
        # A null is only sent where there is something to unset.
        ({"reasoning": None}, {"reasoning": None}, {}),
        ({"reasoning": None}, {}, {}),
        ({"reasoning": None}, {"reasoning": {"effort": "low"}}, {"reasoning": None}),
        (
            {"audio": {"input": {"transcription": None, "noise_reduction": None}}},
            {"audio": {"input": {"transcription": {"model": "m"}}}},
            {"audio": {"input": {"transcription": None}}},
        ),
        (
            {"audio": {"input": {"transcription": {"model": "m"}}}},
            {"audio": {"input": {"transcription": {"model": "m", "language": "de"}}}},
            {"audio": {"input": {"transcription": {"model": "m", "language": None}}}},
        ),
        ({"audio": {"input": {"a": 1}}}, {"audio": None}, {"audio": {"input": {"a": 1}}}),
        # What has another type has other fields.
        (
            {"tool_choice": {"type": "function", "name": "f"}},
            {"tool_choice": {"type": "mcp", "server_label": "s"}},
            {"tool_choice": {"type": "function", "name": "f"}},
        ),
        # Tracing cannot be restored.
        ({"tracing": None}, {"tracing": "auto"}, {}),
        ({"tracing": "auto"}, {"tracing": None}, {}),
    ],
)
def test_patch(snapshot: Any, effective: Any, changes: Any) -> None:
    assert patch(snapshot, effective, keep_voice=False) == {**changes, "type": "realtime"}


@pytest.mark.parametrize(
    ("snapshot", "changes"),
    [
        ({"audio": {"output": {"voice": "a", "speed": 1}}}, {"audio": {"output": {"speed": 1}}}),
        ({"audio": {"output": {"speed": 1}}}, {"audio": {"output": {"speed": 1}}}),
        ({"audio": {"input": {"x": 1}}}, {"audio": {"input": {"x": 1}}}),
        ({"audio": "none"}, {"audio": "none"}),
        ({}, {}),
    ],
)
def test_patch_without_a_voice(snapshot: Any, changes: Any) -> None:
    found = patch({"type": "other", **snapshot}, {}, keep_voice=True)
    assert found == {**changes, "type": "other"}


def test_a_patch_leaves_the_snapshot_alone() -> None:
    before = repr(DEFAULTS)
    patch(DEFAULTS, {}, keep_voice=True)
    assert repr(DEFAULTS) == before


def test_reading_settings() -> None:
    settings = settings_of(DEFAULTS)
    assert "model" not in settings
    assert voice(settings) == "alloy"
    assert (turn_detection(settings) or {})["type"] == "server_vad"
    for odd in ({}, {"audio": None}, {"audio": {"input": 7, "output": []}}):
        assert voice(odd) is None
        assert turn_detection(odd) is None
    assert mcp_tools({"tools": [7, {"type": "mcp"}]})
    assert not mcp_tools({"tools": {"type": "mcp"}})
    assert not mcp_tools({})


@pytest.mark.parametrize(
    ("effective", "after"),
    [
        ({}, {"instructions": "x"}),
        ({"audio": None}, {"instructions": "x", "audio": None}),
        (
            {"audio": {"output": 7}},
            {"instructions": "x", "audio": {"output": 7, "input": {"turn_detection": None}}},
        ),
        (
            {"audio": {"input": {"a": 1, "turn_detection": {}}}},
            {"instructions": "x", "audio": {"input": {"a": 1, "turn_detection": None}}},
        ),
    ],
)
def test_stopped(effective: Any, after: Any) -> None:
    assert stopped(effective, "x") == after
    del after["instructions"]
    assert stopped(effective, None) == after


def test_words() -> None:
    settings = {"type": "realtime", "instructions": "Be kind.", "tools": ({"name": "f" * 40}, 7, None)}
    assert list(words(settings)) == ["Be kind.", "f" * 40]


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        ({"message": "No.", "code": "odd"}, "No. (odd)"),
        ({"message": "It is odd.", "code": "odd"}, "It is odd."),
        ({"message": "No."}, "No."),
        ({"message": 7, "code": "odd"}, "odd"),
        ({"type": "server_error"}, "server_error"),
        ({}, "no message"),
        ({"message": "x" * 600}, "x" * 500 + "…"),
        ({"message": "Bad key sk-abcdef123"}, "Bad key ***"),
    ],
)
def test_quote(error: Any, quoted: str) -> None:
    assert refusals.quote(error) == quoted
