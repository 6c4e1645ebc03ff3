"""One question and one answer over a pooled connection."""

from __future__ import annotations

from rtpool_sync.contrib.django import connection

#: Seconds that a visitor waits: for a connection, and for every piece of the answer.
PATIENCE = 20.0


class NoAnswer(Exception):
    """The model did not answer."""


def ask(question: str) -> str:
    """Return the model's answer.

    Raises:
        NoAnswer: The model refused, or the server sent an error.
        RtpoolError: No connection could be had, or it was lost.
    """
    with connection(timeout=PATIENCE) as conn:
        content = [{"type": "input_text", "text": question}]
        item = {"type": "message", "role": "user", "content": content}
        conn.send({"type": "conversation.item.create", "item": item})
        conn.send({"type": "response.create", "response": {"output_modalities": ["text"]}})
        answer = ""
        while True:
            event = conn.recv(PATIENCE)
            if event["type"] == "response.output_text.delta":
                answer += event["delta"]
            elif event["type"] == "error":
                raise NoAnswer(event["error"]["message"])
            elif event["type"] == "response.done":
                if event["response"]["status"] != "completed":
                    raise NoAnswer(f"the response was {event['response']['status']}")
                return answer
