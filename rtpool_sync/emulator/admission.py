"""Who is let in. The service says no only after the upgrade: with an error and a close code."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from .problems import Problem
from .wire import Headers, Response

__all__ = ["Refusal", "http_response", "refusal"]


@dataclass
class Refusal:
    """What is sent instead of ``session.created``, and how the connection is closed then."""

    problem: Problem
    code: int
    reason: str


def _refuse(code: str, message: str, close: int) -> Refusal:
    return Refusal(Problem(code, message), close, f"invalid_request_error.{code}")


def refusal(
    headers: Headers,
    query: Mapping[str, str],
    *,
    api_keys: Collection[str] | None,
    models: Collection[str] | None,
    full: bool,
) -> Refusal | None:
    """Return why a client is not let in, or ``None``."""
    key = _key(headers)
    if not key or (api_keys is not None and key not in api_keys):
        return _refuse("invalid_api_key", "Incorrect API key provided.", 3000)
    if "realtime=v1" in headers.get("OpenAI-Beta", ""):
        message = "The Realtime Beta API is no longer supported. Please use /v1/realtime for the GA API."
        return _refuse("beta_api_shape_disabled", message, 4000)
    if query.get("intent") != "transcription":
        model = query.get("model")
        if not model:
            return _refuse("missing_model", "You must provide a model parameter.", 4000)
        if models is not None and model not in models:
            message = f"The model `{model}` does not exist or you do not have access to it."
            return _refuse("invalid_model", message, 4000)
    if full:
        message = "The limit of concurrent sessions is reached."
        return Refusal(Problem("session_limit_reached", message), 1008, message)
    return None


def _key(headers: Headers) -> str:
    """Return the key a client shows, in any of the three ways the service takes one."""
    authorization = headers.get("Authorization", "")
    if authorization[:7].lower() == "bearer ":
        return authorization[7:].strip()
    if headers.get("api-key"):
        return headers["api-key"]
    for offered in headers.get("Sec-WebSocket-Protocol", "").split(","):
        prefix, _, key = offered.strip().partition("openai-insecure-api-key.")
        if not prefix and key:
            return key
    return ""


def http_response(status: int, body: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer to a request that shall not become a WebSocket."""
    data = body.encode()
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Status"
    sent = Headers({"Connection": "close", "Content-Length": str(len(data))})
    for name, value in (headers or {}).items():
        sent[name] = value
    return Response(status, phrase, sent, data)
