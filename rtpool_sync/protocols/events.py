"""Reading events of the Realtime API, and recognising the frequent ones without decoding them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "APPEND",
    "DELTAS",
    "delta_in",
    "error_of",
    "ids_of",
    "is_append",
    "kind_of_error",
    "name_of",
    "named_in",
    "parse",
    "part_of",
]

#: The one client event that is sent often: never answered, never recorded.
APPEND = "input_audio_buffer.append"

#: Events that come by the hundred, and whether they mean that audio was spoken. All have a ``response_id``.
DELTAS = {
    "response.output_audio.delta": True,
    "response.output_audio_transcript.delta": True,
    "response.output_text.delta": False,
    "response.function_call_arguments.delta": False,
    "response.mcp_call_arguments.delta": False,
}

# The same, and the append, recognised in undecoded text. Only the beginning is looked at, where
# every known peer writes these fields; what looks different is decoded.
_ID = r'(?:"event_id": ?"[^"\\]*", ?)?'
_DELTA_TEXT = re.compile(
    rf'\{{{_ID}"type": ?"(response\.[a-z_]+\.delta)", ?{_ID}"response_id": ?"([^"\\]*)"', re.ASCII
)
_DELTA_BYTES = re.compile(_DELTA_TEXT.pattern.encode())
_APPEND_TEXT = re.compile(rf'\{{{_ID}"type": ?"{re.escape(APPEND)}"', re.ASCII)
_APPEND_BYTES = re.compile(_APPEND_TEXT.pattern.encode())

# Where an error does not say which event it answers, its code or the field it names may.
_CODES = (
    ("conversation_already_has_active_response", "respond"),
    ("response_cancel", "cancel"),
    ("cannot_update_voice", "update"),
    ("input_audio_buffer_commit", "commit"),
    ("input_audio_buffer_clear", "clear"),
    ("item_create", "create"),
    ("item_delete", "delete"),
    ("item_retrieve", "retrieve"),
    ("item_truncate", "truncate"),
)
_PARAMS = {"session": "update", "item": "create", "previous_item_id": "create", "response": "respond"}


def parse(message: str | bytes) -> dict[str, Any] | None:
    """The event in a message, or ``None`` if it holds none."""
    try:
        event = json.loads(message)
    except (ValueError, TypeError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def is_append(message: str | bytes) -> bool:
    """Whether a message is an ``input_audio_buffer.append``. False: to be decoded for an answer."""
    pattern: Any = _APPEND_TEXT if isinstance(message, str) else _APPEND_BYTES
    return pattern.match(message) is not None


def delta_in(message: str | bytes) -> dict[str, str] | None:
    """What matters of a delta of a response. ``None``: to be decoded for an answer."""
    if isinstance(message, str):
        found = _DELTA_TEXT.match(message)
        return None if found is None else {"type": found[1], "response_id": found[2]}
    head = _DELTA_BYTES.match(message)
    if head is None:
        return None
    return {"type": head[1].decode(), "response_id": head[2].decode(errors="replace")}


def name_of(event: Mapping[str, Any], field: str) -> str | None:
    """An id in an event."""
    value = event.get(field)
    return value if isinstance(value, str) and value else None


def part_of(event: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """An object in an event; empty when it has none."""
    value = event.get(field)
    return value if isinstance(value, Mapping) else {}


def ids_of(event: Mapping[str, Any]) -> list[str]:
    """Every response and item id that an event is about."""
    found = (
        name_of(event, "response_id"),
        name_of(event, "item_id"),
        name_of(part_of(event, "item"), "id"),
        name_of(part_of(event, "response"), "id"),
    )
    return [name for name in found if name is not None]


def error_of(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error in an ``error`` event."""
    return part_of(event, "error")


def kind_of_error(error: Mapping[str, Any]) -> str | None:
    """The kind of request that an error answers, if its code or ``param`` tells."""
    code = name_of(error, "code") or ""
    for prefix, kind in _CODES:
        if code.startswith(prefix):
            return kind
    return _PARAMS.get((name_of(error, "param") or "").partition(".")[0])


def named_in(error: Mapping[str, Any]) -> set[str]:
    """Every word of an error's message, so as to find ids in it."""
    return set(re.findall(r"[\w-]+", name_of(error, "message") or ""))
