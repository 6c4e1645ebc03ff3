"""The errors a session answers with, and which of them name the client's event."""

from __future__ import annotations

from typing import Any

__all__ = ["Problem", "error_event", "unknown_parameter"]

#: Codes whose error carries the ``event_id`` of the client's event. The real
#: service does so for these and leaves it null for others it was seen to send.
ECHOED = frozenset(
    {
        "conversation_already_has_active_response",
        "input_audio_buffer_commit_empty",
        "item_create_invalid_previous_item_id",
        "item_delete_invalid_item_id",
        "item_retrieve_invalid_item_id",
    }
)


class Problem(Exception):
    """A client event that is refused as a whole."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def unknown_parameter(param: str) -> Problem:
    return Problem("unknown_parameter", f"Unknown parameter: '{param}'.", param)


def error_event(problem: Problem, event_id: object = None) -> dict[str, Any]:
    """Return the ``error`` event without its own id."""
    echoed = event_id if problem.code in ECHOED and isinstance(event_id, str) else None
    return {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "code": problem.code,
            "message": problem.message,
            "param": problem.param,
            "event_id": echoed,
        },
    }
