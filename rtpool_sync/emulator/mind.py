"""What the model says. It understands three things: recite, call tool, and everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .audio import Format
from .conversation import Item

__all__ = ["Context", "Reply", "reply"]

_CALL = re.compile(r"\bcall tool ([\w.-]+)(?:\s+with\s+(\{.*\}))?", re.DOTALL)


@dataclass
class Context:
    """All the model knows when it answers."""

    instructions: str
    tools: Sequence[Mapping[str, Any]]
    tool_choice: Any
    items: Sequence[Item]
    metadata: Mapping[str, str] | None
    prompt: Mapping[str, Any] | None


@dataclass
class Reply:
    """Either text, or a call of a tool."""

    text: str = ""
    tool: str | None = None
    arguments: str = ""


def _last_user_text(items: Sequence[Item]) -> str:
    for item in reversed(items):
        if item.role == "user":
            return item.heard
    return ""


def last_audio(items: Sequence[Item]) -> tuple[bytes, Format] | None:
    """Return the caller's last audio."""
    for item in reversed(items):
        if item.role == "user" and item.audio:
            return item.audio[max(item.audio)]
    return None


def _recital(context: Context) -> str:
    """Return everything known, so that a test can look for what should not be."""
    lines = [f"instructions: {context.instructions}"]
    lines += [f"tool: {tool.get('name') or tool.get('server_label')}" for tool in context.tools]
    if context.prompt:
        lines.append(f"prompt: {json.dumps(context.prompt, sort_keys=True)}")
    lines += [f"{item.role or item.data['type']}: {item.heard}" for item in context.items]
    if context.metadata:
        lines += [f"metadata: {key}={value}" for key, value in context.metadata.items()]
    return "\n".join(lines)


def reply(context: Context) -> Reply:
    """Answer the conversation."""
    said = _last_user_text(context.items)
    names = [tool["name"] for tool in context.tools if tool.get("type") == "function"]
    if isinstance(context.tool_choice, dict) and context.tool_choice.get("name") in names:
        return Reply(tool=context.tool_choice["name"], arguments=json.dumps({"request": said}))
    if context.items and context.items[-1].data["type"] == "function_call_output":
        return Reply(f"The tool said: {context.items[-1].heard}")
    if names and context.tool_choice != "none":
        call = _CALL.search(said)
        if call is not None and call[1] in names:
            return Reply(tool=call[1], arguments=call[2] or json.dumps({"request": said}))
        if context.tool_choice == "required":
            return Reply(tool=names[0], arguments=json.dumps({"request": said}))
    if "recite" in said.lower():
        return Reply(_recital(context))
    return Reply(f"You said: {said}" if said else "Hello.")
