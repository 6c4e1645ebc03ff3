"""Realtime events checked against the openai package's own types, and a client that checks all it sees.

The package's union is no discriminated one: a model for each ``type`` is faster and says what is wrong.
Its models allow unknown fields; here they are errors, but for those the live service is known to send.
"""

from __future__ import annotations

import copy
import json
import time
import typing
from types import TracebackType
from typing import Any

import websocket
from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from pydantic import BaseModel

Event = dict[str, Any]


def _models(union: Any) -> dict[str, type[BaseModel]]:
    models = typing.get_args(typing.get_args(union)[0])
    return {typing.get_args(model.model_fields["type"].annotation)[0]: model for model in models}


SERVER_EVENTS = _models(RealtimeServerEvent)
CLIENT_EVENTS = _models(RealtimeClientEvent)

#: Fields the service sends that the package does not declare.
UNDECLARED = {"session.id", "session.object", "session.expires_at"}


def _unknown_fields(model: BaseModel, path: str = "") -> list[str]:
    found = [f"{path}{name}" for name in model.model_extra or ()]
    for name in type(model).model_fields:
        value = getattr(model, name)
        for index, element in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(element, BaseModel):
                at = f"{path}{name}[{index}]." if isinstance(value, list) else f"{path}{name}."
                found += _unknown_fields(element, at)
    return found


def _validate(event: Event, models: dict[str, type[BaseModel]]) -> BaseModel:
    model = models.get(event.get("type", ""))
    assert model is not None, f"unknown event type: {event.get('type')!r}"
    parsed = model.model_validate(event, strict=True)
    unknown = [name for name in _unknown_fields(parsed) if name not in UNDECLARED]
    assert not unknown, f"{event['type']} has fields the openai package does not know: {unknown}"
    return parsed


def validate_server_event(event: Event) -> BaseModel:
    """Return the event as the package's model, or raise."""
    return _validate(event, SERVER_EVENTS)


def validate_client_event(event: Event) -> BaseModel:
    """The same for what a client sends."""
    response = event.get("response")
    if event["type"] == "response.create" and response and "input" in response:
        # Item references are missing from the package's model, though not from its documentation.
        event = copy.deepcopy(event)
        items = event["response"]["input"]
        event["response"]["input"] = [item for item in items if item["type"] != "item_reference"]
    return _validate(event, CLIENT_EVENTS)


class Closed(Exception):
    """The server closed the connection."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Client:
    """A plain client of the Realtime protocol.

    Every event is checked, in both directions; ``raw`` sends what is wrong on purpose.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = "a-key",
        headers: tuple[str, ...] = (),
        timeout: float = 10.0,
        **options: Any,
    ) -> None:
        if key is not None:
            headers = (*headers, f"Authorization: Bearer {key}")
        self.ws = websocket.create_connection(
            url,
            timeout=timeout,
            header=list(headers),
            redirect_limit=0,
            skip_utf8_validation=True,
            http_no_proxy=["*"],
            **options,
        )
        self.seen: list[Event] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.ws.close(timeout=0.2)
        self.ws.shutdown()  # close() does not free the socket when the peer closed first

    def send(self, type_: str, **fields: Any) -> None:
        event = {"type": type_, **fields}
        validate_client_event(event)
        self.raw(event)

    def raw(self, event: Any) -> None:
        self.ws.send(event if isinstance(event, str) else json.dumps(event))

    def recv(self) -> Event:
        opcode, data = self.ws.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise Closed(int.from_bytes(data[:2], "big") if data else 1005, data[2:].decode())
        assert opcode == websocket.ABNF.OPCODE_TEXT
        event: Event = json.loads(data.decode())
        validate_server_event(event)
        self.seen.append(event)
        return event

    def until(self, type_: str, timeout: float = 10.0) -> list[Event]:
        """Receive up to and with the next event of that type."""
        deadline = time.monotonic() + timeout
        events = [self.recv()]
        while events[-1]["type"] != type_:
            assert time.monotonic() < deadline, f"no {type_} among {[event['type'] for event in events]}"
            events.append(self.recv())
        return events

    def expect(self, type_: str) -> Event:
        """Receive one event, which must be of that type."""
        event = self.recv()
        assert event["type"] == type_, event
        return event

    def drained(self) -> Closed:
        """Receive until the server closes; return how it did."""
        try:
            while True:
                self.recv()
        except Closed as closed:
            return closed


def message(text: str, role: str = "user", **fields: Any) -> Event:
    """Return a message item."""
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **fields}
