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
_DELTA = rf'\{{{_ID}"type": ?"(response\.[a-z_]+\.delta)", ?{_ID}"response_id": ?"([^"\\]*)"'
_DELTA_TEXT = re.compile(_DELTA, re.ASCII).match
_DELTA_BYTES = re.compile(_DELTA.encode()).match
_APPEND = rf'\{{{_ID}"type": ?"{re.escape(APPEND)}"'
_APPEND_TEXT = re.compile(_APPEND, re.ASCII).match
_APPEND_BYTES = re.compile(_APPEND.encode()).match
_USUAL = ('{"type":"' + APPEND + '"', '{"type": "' + APPEND + '"')

# Where an error does not say which event it answers, the field it names or its code may.
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
    if isinstance(message, str):
        return message.startswith(_USUAL) or _APPEND_TEXT(message) is not None
    return _APPEND_BYTES(message) is not None


def delta_in(message: str | bytes) -> tuple[str, str] | None:
    """Type and response of a delta. ``None``: to be decoded for an answer."""
    if isinstance(message, str):
        text = _DELTA_TEXT(message)
        return None if text is None else (text[1], text[2])
    data = _DELTA_BYTES(message)
    return None if data is None else (data[1].decode(), data[2].decode(errors="replace"))


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
    """The kind of request that an error answers, if the field it names or its code tells."""
    kind = _PARAMS.get((name_of(error, "param") or "").partition(".")[0])
    if kind is not None:
        return kind
    code = name_of(error, "code") or ""
    return next((kind for prefix, kind in _CODES if code.startswith(prefix)), None)


def named_in(error: Mapping[str, Any]) -> set[str]:
    """Every word of an error's message, so as to find ids in it."""
    return set(re.findall(r"[\w-]+", name_of(error, "message") or ""))
