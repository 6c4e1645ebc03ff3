"""Conversation items, and the ordered list of them that is a conversation."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from . import check
from .audio import Format, fingerprint
from .problems import Problem, unknown_parameter

__all__ = ["Conversation", "Item", "make_item"]

_TEXT: dict[str, dict[str, check.Checker]] = {"input_text": {"type": check.string, "text": check.string}}
_CONTENT: dict[str, dict[str, dict[str, check.Checker]]] = {
    "user": {
        **_TEXT,
        "input_audio": {
            "type": check.string,
            "audio": check.string,
            "transcript": check.maybe(check.string),
        },
        "input_image": {"type": check.string, "image_url": check.string, "detail": check.maybe(check.string)},
    },
    "system": _TEXT,
    "assistant": {
        "output_text": {"type": check.string, "text": check.string},
        "output_audio": {
            "type": check.string,
            "transcript": check.maybe(check.string),
            "audio": check.maybe(check.string),
        },
    },
}
_NEEDED = {
    "input_text": ("text",),
    "output_text": ("text",),
    "input_audio": ("audio",),
    "input_image": ("image_url",),
}
_COMMON = ("id", "object", "type", "status")
_OTHER: dict[str, dict[str, check.Checker]] = {
    "function_call": {"name": check.string, "arguments": check.string, "call_id": check.string},
    "function_call_output": {"call_id": check.string, "output": check.string},
    "mcp_approval_response": {
        "approval_request_id": check.string,
        "approve": check.boolean,
        "reason": check.maybe(check.string),
    },
}
_OTHER_NEEDED = {
    "function_call": ("name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "mcp_approval_response": ("approval_request_id", "approve"),
}


class Item:
    """One item. ``data`` is what events show of it; audio is kept apart.

    Attributes:
        audio: Per content index: the audio and its format.
        heard: What the model understood of the item, as text.
    """

    __slots__ = ("audio", "data", "heard")

    def __init__(self, data: dict[str, Any], heard: str = "") -> None:
        self.data = data
        self.audio: dict[int, tuple[bytes, Format]] = {}
        self.heard = heard

    @property
    def id(self) -> str:
        return self.data["id"]  # type: ignore[no-any-return]

    @property
    def role(self) -> str:
        return self.data.get("role", "")  # type: ignore[no-any-return]

    def shown(self) -> dict[str, Any]:
        """Return what added, done and output events show: no audio."""
        shown = dict(self.data)
        if "content" in shown:
            shown["content"] = [dict(part) for part in shown["content"]]
        return shown

    def whole(self) -> dict[str, Any]:
        """Return what ``conversation.item.retrieved`` shows: with audio."""
        whole = self.shown()
        for index, (audio, _) in self.audio.items():
            whole["content"][index]["audio"] = base64.b64encode(audio).decode()
        return whole


def _content(raw: Any, role: str, param: str) -> list[dict[str, Any]]:
    kinds = _CONTENT[role]
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(check.list_of(check.mapping)(raw, param)):
        name = f"{param}[{index}]"
        check.required(part, ("type",), name)
        kind = check.one_of(*kinds)(part["type"], f"{name}.type")
        parts.append(check.fields(kinds[kind])(part, name))
        check.required(part, _NEEDED.get(kind, ()), name)
    return parts


def decode_base64(value: str, param: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(
            "invalid_value",
            f"Invalid '{param}'. Expected base64-encoded audio bytes but got an invalid value.",
            param,
        ) from None


def make_item(raw: Any, new_id: str, new_call_id: str, audio_format: Format, param: str = "item") -> Item:
    """Check what a client calls an item, and make it one."""
    raw = check.mapping(raw, param)
    check.required(raw, ("type",), param)
    kind = check.one_of("message", *_OTHER)(raw["type"], f"{param}.type")
    item_id = raw.get("id")
    item_id = new_id if item_id is None else check.identifier(item_id, f"{param}.id")
    data: dict[str, Any] = {"id": item_id, "object": "realtime.item", "type": kind, "status": "completed"}
    if kind == "message":
        return _message(raw, data, audio_format, param)
    spec = _OTHER[kind]
    for key in raw:
        if key in _COMMON:
            continue
        if key not in spec:
            raise unknown_parameter(f"{param}.{key}")
        data[key] = spec[key](raw[key], f"{param}.{key}")
    check.required(raw, _OTHER_NEEDED[kind], param)
    if kind == "function_call":
        data.setdefault("call_id", new_call_id)
    elif kind == "mcp_approval_response":
        for key in ("object", "status"):
            del data[key]
    heard = data.get("output") or f"{data.get('name', '')}({data.get('arguments', '')})"
    return Item(data, heard)


def _message(raw: dict[str, Any], data: dict[str, Any], audio_format: Format, param: str) -> Item:
    for key in raw:
        if key not in _COMMON and key not in ("role", "content"):
            raise unknown_parameter(f"{param}.{key}")
    check.required(raw, ("role", "content"), param)
    data["role"] = check.one_of(*_CONTENT)(raw["role"], f"{param}.role")
    data["content"] = _content(raw["content"], data["role"], f"{param}.content")
    item = Item(data)
    heard: list[str] = []
    for index, part in enumerate(data["content"]):
        encoded = part.pop("audio", None)
        if encoded is not None:
            audio = decode_base64(encoded, f"{param}.content[{index}].audio")
            item.audio[index] = (audio, audio_format)
            heard.append(part.get("transcript") or fingerprint(audio, audio_format))
        elif part["type"] == "input_image":
            heard.append("<image>")
        else:
            heard.append(part.get("text") or part.get("transcript") or "")
        if part["type"] in ("input_audio", "output_audio"):
            part.setdefault("transcript", None)
    item.heard = " ".join(heard)
    return item


class Conversation:
    """Items in order."""

    def __init__(self, conversation_id: str) -> None:
        self.id = conversation_id
        self._items: dict[str, Item] = {}
        self._order: list[str] = []

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._items

    def items(self) -> list[Item]:
        return [self._items[item_id] for item_id in self._order]

    def get(self, item_id: str) -> Item | None:
        return self._items.get(item_id)

    @property
    def last_id(self) -> str | None:
        return self._order[-1] if self._order else None

    def before(self, item_id: str) -> str | None:
        """Return the id of the item before that one."""
        # Asked for the newest nearly always.
        position = len(self._order) - 1 if self.last_id == item_id else self._order.index(item_id)
        return self._order[position - 1] if position > 0 else None

    def insert(self, item: Item, after: str | None = None) -> str | None:
        """Add ``item``; return the id before it. ``after``: an id, ``"root"``, or ``None`` for the end."""
        if after is None or after == self.last_id:
            before = self.last_id
            self._order.append(item.id)
        elif after == "root":
            before = None
            self._order.insert(0, item.id)
        else:
            before = after
            self._order.insert(self._order.index(after) + 1, item.id)
        self._items[item.id] = item
        return before

    def delete(self, item_id: str) -> Item | None:
        item = self._items.pop(item_id, None)
        if item is not None:
            self._order.remove(item_id)
        return item
