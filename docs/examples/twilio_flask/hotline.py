"""What is talked about: instructions, the functions that the model may call, and what keys do."""

from __future__ import annotations

import logging
from typing import Any

from rtpool_sync.bridges import Bridge, CallResult, Incoming

INSTRUCTIONS = """\
You answer the telephone of a bicycle shop. Speak in short sentences, as on the telephone.
For opening hours, call opening_hours; do not guess. When the caller says goodbye, call hang_up.
"""
GREETING = "Say hello, name the shop, and ask what you can do. Key 1 tells the opening hours, key 0 hangs up."

HOURS = {"monday to friday": "9:00 to 18:30", "saturday": "10:00 to 14:00", "sunday": "closed"}
#: A key has the model call a function, as if it had been asked for it.
KEYS = {"1": "opening_hours", "0": "hang_up"}
TOOLS = [
    {
        "type": "function",
        "name": "opening_hours",
        "description": "When the shop is open, by day.",
        "parameters": {"type": "object", "properties": {}},
    },
    {
        "type": "function",
        "name": "hang_up",
        "description": "End the call, after the caller has said goodbye.",
        "parameters": {"type": "object", "properties": {}},
    },
]


def session(call: Incoming) -> dict[str, Any]:
    """The session's settings for a call; the audio formats are the bridge's affair."""
    return call.session(
        instructions=INSTRUCTIONS,
        tools=TOOLS,
        audio={
            "input": {
                # People pause longer than that within a sentence only to think.
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 500},
                "transcription": {"model": "gpt-4o-mini-transcribe"},
            }
        },
    )


class Conversation:
    """What one call needs: the bridge calls these methods, in threads that carry no audio.

    Args:
        log: Is told what happens.
        transcripts: Also what was said.
    """

    def __init__(self, log: logging.Logger, *, transcripts: bool) -> None:
        self._log = log
        self._transcripts = transcripts

    def function(self, call: Bridge, name: str, arguments: dict[str, Any]) -> Any:
        """The model calls a function; what is returned, it knows when it goes on."""
        self._log.info("%s: function %s", call.result.call_id, name)
        if name == "opening_hours":
            return HOURS
        if name == "hang_up":
            call.hangup("they said goodbye")  # when the goodbye has been heard
            return "Say goodbye in a few words."
        return {"error": f"there is no function {name}"}

    def keys(self, call: Bridge, digits: str) -> None:
        """The caller pressed keys."""
        self._log.info("%s: keys %s", call.result.call_id, digits)
        for digit in digits:
            if digit in KEYS:
                call.respond({"tool_choice": {"type": "function", "name": KEYS[digit]}})

    def said(self, call: Bridge, who: str, text: str) -> None:
        if self._transcripts:
            self._log.info("%s: %s: %s", call.result.call_id, who, text)

    def over(self, result: CallResult) -> None:
        self._log.info(
            "%s: ended after %.1f s: %s (%s); heard %.1f s, said %.1f s, %d interruptions, %d violations",
            result.call_id,
            result.seconds,
            result.ended_by,
            result.detail,
            result.audio_in_ms / 1000,
            result.heard_ms / 1000,
            result.barge_ins,
            result.violations,
        )
        for error in result.errors:
            self._log.warning("%s: %s", result.call_id, error)
