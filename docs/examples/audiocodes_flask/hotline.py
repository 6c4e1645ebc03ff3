"""What is talked about: instructions, the functions that the model may call, and what keys do."""

from __future__ import annotations

import logging
from typing import Any

from rtpool_sync.bridges import AudioCodesBridge, CallResult, Incoming

INSTRUCTIONS = """\
You answer the telephone of a bicycle shop. Speak in short sentences, as on the telephone.
For opening hours, call opening_hours; do not guess. When the caller says goodbye, call hang_up.
If the caller wants to speak with a person, call transfer.
"""
GREETING = "Say hello, name the shop, and ask what you can do. Keys: 1 opening hours, 9 a person, 0 hangs up."

HOURS = {"monday to friday": "9:00 to 18:30", "saturday": "10:00 to 14:00", "sunday": "closed"}
#: A key has the model call a function, as if it had been asked for it.
KEYS = {"1": "opening_hours", "9": "transfer", "0": "hang_up"}
TOOLS = [
    {
        "type": "function",
        "name": "opening_hours",
        "description": "When the shop is open, by day.",
        "parameters": {"type": "object", "properties": {}},
    },
    {
        "type": "function",
        "name": "transfer",
        "description": "Connect the caller with a person.",
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
        transfer_to: Where a person answers, ``tel:+…`` or ``sip:…``; empty: nowhere.
    """

    def __init__(self, log: logging.Logger, *, transcripts: bool, transfer_to: str = "") -> None:
        self._log = log
        self._transcripts = transcripts
        self._transfer_to = transfer_to

    def function(self, call: AudioCodesBridge, name: str, arguments: dict[str, Any]) -> Any:
        """The model calls a function; what is returned, it knows when it goes on."""
        self._log.info("%s: function %s", call.result.call_id, name)
        if name == "opening_hours":
            return HOURS
        if name == "hang_up":
            call.hangup("they said goodbye")  # when the goodbye has been heard
            return "Say goodbye in a few words."
        if name == "transfer":
            if not self._transfer_to:
                return {"error": "nobody is there"}
            call.transfer(self._transfer_to, reason="asked for a person")  # after the next words
            return "Tell the caller that a person will answer."
        return {"error": f"there is no function {name}"}

    def keys(self, call: AudioCodesBridge, digits: str) -> None:
        """The caller pressed keys."""
        self._log.info("%s: keys %s", call.result.call_id, digits)
        for digit in digits:
            if digit in KEYS:
                call.respond({"tool_choice": {"type": "function", "name": KEYS[digit]}})

    def said(self, call: AudioCodesBridge, who: str, text: str) -> None:
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
