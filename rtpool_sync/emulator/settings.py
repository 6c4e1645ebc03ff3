"""The configuration of a session: what it starts with, and how ``session.update`` changes it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from . import check
from .problems import Problem

__all__ = [
    "SessionSettings",
    "audio_format",
    "max_output_tokens",
    "modalities",
    "prompt",
    "reasoning",
    "tool_choice",
    "tools",
    "voice",
    "voice_is_locked",
]

VOICES = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar")
PCM = {"type": "audio/pcm", "rate": 24000}
SERVER_VAD: dict[str, Any] = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 200,
    "idle_timeout_ms": None,
    "create_response": True,
    "interrupt_response": True,
}
SEMANTIC_VAD: dict[str, Any] = {
    "type": "semantic_vad",
    "eagerness": "auto",
    "create_response": True,
    "interrupt_response": True,
}
#: Models that know ``reasoning`` and ``parallel_tool_calls``.
_REASONING = ("gpt-realtime-2",)


_FORMAT = check.fields(
    {"type": check.one_of("audio/pcm", "audio/pcmu", "audio/pcma"), "rate": check.whole(24000, 24000)}, "type"
)
_VOICE = check.fields({"id": check.string}, "id")


def audio_format(value: Any, param: str) -> dict[str, Any]:
    value = _FORMAT(value, param)
    return dict(PCM) if value["type"] == "audio/pcm" else {"type": value["type"]}


def voice(value: Any, param: str) -> Any:
    return _VOICE(value, param) if isinstance(value, dict) else check.one_of(*VOICES)(value, param)


_TOOLS = {
    "function": check.fields(
        {
            "type": check.string,
            "name": check.string,
            "description": check.maybe(check.string),
            "parameters": check.maybe(check.mapping),
        },
        "name",
    ),
    # Taken note of, never called.
    "mcp": check.fields(
        {
            "type": check.string,
            "server_label": check.string,
            "server_url": check.maybe(check.string),
            "server_description": check.maybe(check.string),
            "authorization": check.maybe(check.string),
            "allowed_tools": check.maybe(check.list_of(check.string)),
            "require_approval": check.maybe(check.one_of("always", "never")),
        },
        "server_label",
    ),
}


def _tool(value: Any, param: str) -> dict[str, Any]:
    value = check.mapping(value, param)
    kind = check.one_of(*_TOOLS)(value.get("type", "function"), f"{param}.type")
    return {**_TOOLS[kind](value, param), "type": kind}


tools = check.list_of(_tool)

_CHOICES = {
    "function": check.fields({"type": check.string, "name": check.string}, "name"),
    "mcp": check.fields(
        {"type": check.string, "server_label": check.string, "name": check.maybe(check.string)},
        "server_label",
    ),
}


def tool_choice(value: Any, param: str) -> Any:
    if isinstance(value, dict):
        check.required(value, ("type",), param)
        return _CHOICES[check.one_of(*_CHOICES)(value["type"], f"{param}.type")](value, param)
    return check.one_of("none", "auto", "required")(value, param)


def max_output_tokens(value: Any, param: str) -> Any:
    return value if value == "inf" else check.whole(1, 4096)(value, param)


_RATIO = check.fields(
    {
        "type": check.one_of("retention_ratio"),
        "retention_ratio": check.number(0.0, 1.0),
        "token_limits": check.maybe(
            check.fields({"post_instructions": check.maybe(check.whole(0, 1 << 20))})
        ),
    },
    "type",
    "retention_ratio",
)


def _truncation(value: Any, param: str) -> Any:
    return _RATIO(value, param) if isinstance(value, dict) else check.one_of("auto", "disabled")(value, param)


_TRACE = check.fields({"workflow_name": check.string, "group_id": check.string, "metadata": check.mapping})


def _tracing(value: Any, param: str) -> Any:
    return _TRACE(value, param) if isinstance(value, dict) else check.one_of("auto")(value, param)


def modalities(value: Any, param: str) -> list[str]:
    value = check.list_of(check.one_of("text", "audio"))(value, param)
    if value not in (["text"], ["audio"]):
        raise Problem(
            "invalid_value",
            f"Invalid modalities: {value}. Supported combinations are: ['text'] and ['audio'].",
            param,
        )
    return list(value)


prompt = check.maybe(
    check.fields(
        {
            "id": check.string,
            "version": check.maybe(check.string),
            "variables": check.maybe(check.mapping_of(check.string)),
        },
        "id",
    )
)
reasoning = check.maybe(
    check.fields({"effort": check.maybe(check.one_of("minimal", "low", "medium", "high", "xhigh"))})
)
_NOISE_REDUCTION = check.fields(
    {"type": check.one_of("near_field", "far_field"), "strength": check.maybe(check.number(0.0, 1.0))}
)
_TRANSCRIPTION = check.fields(
    {
        "model": check.string,
        "language": check.maybe(check.string),
        "languages": check.maybe(check.list_of(check.string)),
        "prompt": check.maybe(check.string),
        "keywords": check.maybe(check.list_of(check.string)),
        "delay": check.maybe(check.one_of("minimal", "low", "medium", "high", "xhigh")),
    }
)
_VAD: dict[str, check.Checker] = {
    "server_vad": check.fields(
        {
            "type": check.string,
            "threshold": check.number(0.0, 1.0),
            "prefix_padding_ms": check.whole(0, 10_000),
            "silence_duration_ms": check.whole(0, 10_000),
            "idle_timeout_ms": check.maybe(check.whole(1, 600_000)),
            "create_response": check.boolean,
            "interrupt_response": check.boolean,
        }
    ),
    "semantic_vad": check.fields(
        {
            "type": check.string,
            "eagerness": check.one_of("low", "medium", "high", "auto"),
            "create_response": check.boolean,
            "interrupt_response": check.boolean,
        }
    ),
}


def _turn_detection(value: Any, param: str) -> dict[str, Any]:
    value = check.mapping(value, param)
    kind = check.one_of(*_VAD)(value.get("type", "server_vad"), f"{param}.type")
    return dict(_VAD[kind](value, param))


_AUDIO_INPUT = {
    "format": audio_format,
    "noise_reduction": check.maybe(_NOISE_REDUCTION),
    "transcription": check.maybe(_TRANSCRIPTION),
    "turn_detection": check.maybe(_turn_detection),
}
_AUDIO_OUTPUT = check.fields({"format": audio_format, "voice": voice, "speed": check.number(0.25, 1.5)})
_INCLUDE = check.maybe(check.list_of(check.one_of("item.input_audio_transcription.logprobs")))

_REALTIME = check.fields(
    {
        "type": check.string,
        "model": check.string,
        "instructions": check.string,
        "output_modalities": modalities,
        "audio": check.fields({"input": check.fields(_AUDIO_INPUT), "output": _AUDIO_OUTPUT}),
        "tools": tools,
        "tool_choice": tool_choice,
        "parallel_tool_calls": check.boolean,
        "reasoning": reasoning,
        "max_output_tokens": max_output_tokens,
        "tracing": check.maybe(_tracing),
        "truncation": _truncation,
        "prompt": prompt,
        "include": _INCLUDE,
    }
)
_TRANSCRIPTION_SESSION = check.fields(
    {
        "type": check.string,
        "audio": check.fields({"input": check.fields(_AUDIO_INPUT)}),
        "include": _INCLUDE,
    }
)


def voice_is_locked(param: str) -> Problem:
    message = "Cannot update a conversation's voice if assistant audio is present."
    return Problem("cannot_update_voice", message, param)


class SessionSettings:
    """The effective configuration of one session."""

    def __init__(self, kind: str, session_id: str, model: str | None, expires_at: int) -> None:
        self.kind = kind
        audio_in: dict[str, Any] = {
            "format": dict(PCM),
            "transcription": None,
            "noise_reduction": None,
            "turn_detection": dict(SERVER_VAD),
        }
        self.public: dict[str, Any]
        if kind == "transcription":
            self.public = {
                "type": "transcription",
                "object": "realtime.transcription_session",
                "id": session_id,
                "expires_at": expires_at,
                "audio": {"input": audio_in},
                "include": None,
            }
            return
        self.public = {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "",
            "audio": {
                "input": audio_in,
                "output": {"format": dict(PCM), "voice": "alloy", "speed": 1.0},
            },
            "max_output_tokens": "inf",
            "truncation": "auto",
            "tools": [],
            "tool_choice": "auto",
            "tracing": None,
            "prompt": None,
            "expires_at": expires_at,
        }

    def shown(self) -> dict[str, Any]:
        """Return what events show. Updates replace the values below ``audio.input``: they can be shared."""
        audio = {direction: dict(values) for direction, values in self.public["audio"].items()}
        return {**self.public, "audio": audio}

    def snapshot(self) -> dict[str, Any]:
        """Return a copy to do anything with."""
        return copy.deepcopy(self.public)

    @property
    def audio_input(self) -> dict[str, Any]:
        return self.public["audio"]["input"]  # type: ignore[no-any-return]

    def update(self, change: Any, *, voice_locked: bool, responding: bool) -> None:
        """Merge ``change`` in, or raise :class:`Problem` and leave everything as it was."""
        change = check.mapping(change, "session")
        check.required(change, ("type",), "session")
        check.one_of("realtime", "transcription")(change["type"], "session.type")
        if change["type"] != self.kind:
            message = f"Passing a {change['type']} session update to a {self.kind} session."
            raise Problem("invalid_value", message, "session.type")
        if self.kind == "transcription":
            change = _TRANSCRIPTION_SESSION(change, "session")
        else:
            change = _REALTIME(change, "session")
            self._guard(change, voice_locked, responding)
        # Nothing can be refused from here on.
        for key, value in change.items():
            if key == "audio":
                self._merge_audio(value)
            else:
                self.public[key] = value

    def _guard(self, change: Mapping[str, Any], voice_locked: bool, responding: bool) -> None:
        """Refuse what is valid but cannot be changed any more."""
        public = self.public
        if change.get("model", public["model"]) != public["model"]:
            raise Problem("invalid_value", "Cannot update a session's model.", "session.model")
        if public["tracing"] is not None and change.get("tracing", public["tracing"]) != public["tracing"]:
            raise Problem(
                "invalid_value", "Tracing configuration cannot be changed once enabled.", "session.tracing"
            )
        if not str(public["model"]).startswith(_REASONING):
            for key in ("reasoning", "parallel_tool_calls"):
                if change.get(key) is not None:
                    raise Problem(
                        "invalid_value", f"'{key}' is not supported by this model.", f"session.{key}"
                    )
        speaks = public["audio"]["output"]
        wanted = change.get("audio", {}).get("output", {})
        if voice_locked and wanted.get("voice", speaks["voice"]) != speaks["voice"]:
            raise voice_is_locked("session.audio.output.voice")
        if responding and wanted.get("speed", speaks["speed"]) != speaks["speed"]:
            raise Problem(
                "invalid_value", "Speed can only be changed between turns.", "session.audio.output.speed"
            )

    def _merge_audio(self, change: Mapping[str, Any]) -> None:
        self.public["audio"].get("output", {}).update(change.get("output", {}))
        current = self.audio_input
        for key, value in change.get("input", {}).items():
            if key == "turn_detection" and value is not None:
                current[key] = self._merged_vad(current[key], value)
            elif key == "transcription" and value is not None:
                known = current[key] or {"model": None, "language": None, "prompt": None}
                current[key] = {**known, **value}
            elif key == "noise_reduction" and value is not None:
                current[key] = {**(current[key] or {}), **value}
            else:
                current[key] = value

    @staticmethod
    def _merged_vad(current: Mapping[str, Any] | None, change: Mapping[str, Any]) -> dict[str, Any]:
        # Fields of the other kind of VAD mean nothing: changing the kind starts from its defaults.
        kind = change.get("type", "server_vad")
        if current is None or current["type"] != kind:
            current = SERVER_VAD if kind == "server_vad" else SEMANTIC_VAD
        return {**current, **change}
