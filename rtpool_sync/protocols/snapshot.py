"""Session settings of the Realtime API: what to keep, how to put it back, whether it is back.

Settings are compared as the *server* states them: ``session.created`` and
``session.updated`` hold the full effective configuration (API reference,
``session.updated``), while a ``session.update`` is a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = [
    "difference",
    "mcp_tools",
    "patch",
    "settings_of",
    "stopped",
    "turn_detection",
    "voice",
    "words",
]

#: Facts about the connection, not settings of the session. The model cannot be changed by
#: ``session.update``, and servers name it now by its alias, now by its snapshot.
_FACTS = frozenset({"id", "object", "expires_at", "model", "client_secret"})

#: What ``session.update`` documents as changeable. Sent back in full: the server's own words
#: are the safest thing to send. Any other field is sent only when it changed, because a field the
#: server shows but does not take would have the whole event refused.
_CHANGEABLE = frozenset(
    {
        "audio",
        "instructions",
        "max_output_tokens",
        "output_modalities",
        "tool_choice",
        "tools",
        "truncation",
    }
)


def settings_of(session: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the ``session`` object of a server event."""
    return {name: value for name, value in session.items() if name not in _FACTS}


def difference(one: Any, other: Any, path: str = "") -> str | None:
    """Where two settings differ: a dotted path, or ``None`` when they are the same.

    An absent field and ``null`` are the same: servers differ in whether they show unset fields.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in (*one, *(name for name in other if name not in one)):
            found = difference(one.get(name), other.get(name), f"{path}.{name}" if path else name)
            if found is not None:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            found = difference(left, right, f"{path}[{index}]")
            if found is not None:
                return found
        return None
    return None if one == other else path


def patch(snapshot: Mapping[str, Any], effective: Mapping[str, Any], *, keep_voice: bool) -> dict[str, Any]:
    """The ``session`` of a ``session.update`` that turns ``effective`` into ``snapshot``.

    ``tracing`` is never part of it: it cannot be modified once it is on (API reference,
    ``session.tracing``), so it is either unchanged or the connection is lost to reuse.
    ``keep_voice`` leaves the voice out as well: it is locked by the first audio.
    """
    changes = {
        name: value
        for name, value in _patch(snapshot, effective).items()
        if name in _CHANGEABLE or difference(snapshot.get(name), effective.get(name)) is not None
    }
    changes.pop("tracing", None)
    if keep_voice and isinstance(changes.get("audio"), Mapping):
        audio = changes["audio"]
        if isinstance(audio.get("output"), Mapping):
            audio["output"].pop("voice", None)
    changes["type"] = snapshot.get("type") or "realtime"
    return changes


def _patch(snapshot: Mapping[str, Any], effective: Mapping[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in snapshot.items():
        current = effective.get(name)
        if isinstance(value, Mapping):
            # One of another type has other fields, which need not be unset.
            if not isinstance(current, Mapping) or current.get("type") != value.get("type"):
                current = {}
            changes[name] = _patch(value, current)
        elif value is not None or current is not None:
            # A null that is null already says nothing, and some fields are shown as null by
            # servers that refuse to be sent them (`reasoning` of gpt-realtime-1.5).
            changes[name] = value
    for name, current in effective.items():
        if name not in snapshot and current is not None:
            changes[name] = None
    return changes


def stopped(effective: Mapping[str, Any], instructions: str | None) -> dict[str, Any]:
    """``effective`` without voice activity detection, and with these instructions, if any."""
    stopped = dict(effective)
    if instructions is not None:
        stopped["instructions"] = instructions
    audio = effective.get("audio")
    if isinstance(audio, Mapping):
        stopped["audio"] = {**audio, "input": {**_audio(effective, "input"), "turn_detection": None}}
    return stopped


def _audio(settings: Mapping[str, Any], direction: str) -> Mapping[str, Any]:
    audio = settings.get("audio")
    part = audio.get(direction) if isinstance(audio, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def voice(settings: Mapping[str, Any]) -> Any:
    """The voice: a name, an object for a custom one, or ``None``."""
    return _audio(settings, "output").get("voice")


def turn_detection(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings of voice activity detection, or ``None`` when it is off."""
    found = _audio(settings, "input").get("turn_detection")
    return found if isinstance(found, Mapping) else None


def mcp_tools(settings: Mapping[str, Any]) -> bool:
    """Whether the settings name MCP servers as tools."""
    tools = settings.get("tools")
    return isinstance(tools, list) and any(
        isinstance(tool, Mapping) and tool.get("type") == "mcp" for tool in tools
    )


def words(value: Any) -> Iterator[str]:
    """Every free text in settings: what is long or has a blank is no keyword of the protocol."""
    if isinstance(value, str):
        if len(value) > 32 or " " in value:
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from words(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from words(part)
