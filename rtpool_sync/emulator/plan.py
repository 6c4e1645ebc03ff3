"""What a response was asked for: ``response.create`` checked, and put over the session's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import check, settings
from .conversation import Item
from .problems import Problem

__all__ = ["Plan", "asked_of"]


def _metadata(value: Any, param: str) -> dict[str, str]:
    pairs = check.mapping_of(check.string)(value, param)
    if len(pairs) > 16:
        raise Problem("invalid_value", f"Invalid '{param}': more than 16 pairs.", param)
    for key, text in pairs.items():
        if len(key) > 64 or len(text) > 512:
            raise Problem("invalid_value", f"Invalid '{param}.{key}': too long.", f"{param}.{key}")
    return dict(pairs)


_RESPONSE = check.fields(
    {
        "conversation": check.one_of("auto", "none"),
        "metadata": check.maybe(_metadata),
        "input": check.list_of(check.mapping),
        "instructions": check.string,
        "output_modalities": settings.modalities,
        "audio": check.fields(
            {"output": check.fields({"format": settings.audio_format, "voice": settings.voice})}
        ),
        "tools": settings.tools,
        "tool_choice": settings.tool_choice,
        "parallel_tool_calls": check.boolean,
        "reasoning": settings.reasoning,
        "max_output_tokens": settings.max_output_tokens,
        "prompt": settings.prompt,
    }
)


def asked_of(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a ``response.create`` asks for, or raise :class:`Problem`."""
    asked = event.get("response")
    return {} if asked is None else _RESPONSE(asked, "response")


@dataclass
class Plan:
    """Everything a response goes by.

    Attributes:
        in_conversation: Its output becomes part of the default conversation.
        input: Its context, if that is not the default conversation.
    """

    instructions: str
    tools: Sequence[dict[str, Any]]
    tool_choice: Any
    modalities: list[str]
    max_output_tokens: Any
    voice: Any
    format: dict[str, Any]
    prompt: Any
    metadata: dict[str, str] | None
    in_conversation: bool
    input: Sequence[Item] | None

    @classmethod
    def make(
        cls,
        asked: Mapping[str, Any],
        public: Mapping[str, Any],
        make_item: Callable[[Mapping[str, Any], str], Item],
        *,
        voice_locked: bool,
    ) -> Plan:
        """Put what was asked for over a session's settings (``public``)."""
        speaks = public["audio"]["output"]
        wanted = {**speaks, **asked.get("audio", {}).get("output", {})}
        in_conversation = asked.get("conversation", "auto") == "auto"
        if voice_locked and in_conversation and wanted["voice"] != speaks["voice"]:
            raise settings.voice_is_locked("response.audio.output.voice")
        given: Sequence[Item] | None = None
        if "input" in asked:
            given = [make_item(raw, f"response.input[{index}]") for index, raw in enumerate(asked["input"])]
        return cls(
            instructions=asked.get("instructions", public["instructions"]),
            tools=asked.get("tools", public["tools"]),
            tool_choice=asked.get("tool_choice", public["tool_choice"]),
            modalities=asked.get("output_modalities", public["output_modalities"]),
            max_output_tokens=asked.get("max_output_tokens", public["max_output_tokens"]),
            voice=wanted["voice"],
            format=wanted["format"],
            prompt=asked.get("prompt", public["prompt"]),
            metadata=asked.get("metadata"),
            in_conversation=in_conversation,
            input=given,
        )
