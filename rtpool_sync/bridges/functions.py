"""Functions that the model calls: run off the pumps, answered, and then the model goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Functions", "Output"]

_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode


class Output:
    """What a function returns when the model is not to speak next.

    Args:
        value: Text, or something that can be encoded as JSON.
        respond: Whether the model is asked to go on. It is, by default.
    """

    def __init__(self, value: Any = "", *, respond: bool = True) -> None:
        self.value = value
        self.respond = respond


class _Round:
    """The functions that one response called."""

    def __init__(self) -> None:
        self.running = 0
        self.response_over = False
        self.respond = False
        self.any = False


class Functions:
    """Runs the functions that responses call.

    Args:
        function: Called with the name and the decoded arguments.
        start: Runs ``callable(*args)`` in a thread of its own; the first argument says what it is.
        send: Sends an event to the model.
        respond: Asks the model for a response.
    """

    def __init__(
        self,
        function: Callable[[str, dict[str, Any]], Any],
        start: Callable[..., None],
        send: Callable[[Mapping[str, Any]], None],
        respond: Callable[[], None],
    ) -> None:
        self._function = function
        self._start = start
        self._send = send
        self._respond = respond
        self._lock = threading.Lock()
        self._rounds: dict[str, _Round] = {}

    @property
    def busy(self) -> bool:
        """Whether a function runs, or the response that called it goes on."""
        return bool(self._rounds)

    def called(self, response_id: str, item: Mapping[str, Any]) -> None:
        """The model has called a function: ``item`` is complete."""
        with self._lock:
            turn = self._rounds.setdefault(response_id, _Round())
            turn.running += 1
            turn.any = True
        name = str(item.get("name"))
        self._start(f"function {name}", self._run, response_id, turn, name, item)

    def response_over(self, response_id: str) -> None:
        """That response calls no more functions."""
        self._settle(response_id, over=True)

    def _run(self, response_id: str, turn: _Round, name: str, item: Mapping[str, Any]) -> None:
        respond, result = True, _encode({"error": "the function failed"})
        try:
            arguments = json.loads(item.get("arguments") or "{}")
            if not isinstance(arguments, dict):
                raise ValueError(f"the arguments of {name} are not an object")
            value = self._function(name, arguments)
            output = value if isinstance(value, Output) else Output(value)
            result = output.value if isinstance(output.value, str) else _encode(output.value)
            respond = output.respond
        finally:  # also when it failed: the model waits for an answer
            self._send(
                {
                    "type": "conversation.item.create",
                    "item": {
                        "type": "function_call_output",
                        "call_id": item.get("call_id"),
                        "output": result,
                    },
                }
            )
            self._settle(response_id, finished=True, respond=respond)

    def _settle(
        self, response_id: str, *, over: bool = False, finished: bool = False, respond: bool = False
    ) -> None:
        with self._lock:
            turn = self._rounds.get(response_id)
            if turn is None:
                return
            turn.response_over = turn.response_over or over
            turn.running -= finished
            turn.respond = turn.respond or respond
            done = turn.response_over and turn.running == 0
            go_on = done and turn.respond
        if go_on:
            self._respond()  # before it counts as over: a goodbye waits for what it leads to
        if done:
            with self._lock:
                self._rounds.pop(response_id, None)
