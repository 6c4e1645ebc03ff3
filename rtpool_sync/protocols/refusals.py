"""What the server's errors and close codes mean to a caller.

Fatal and harmless errors have the same shape; only the close that follows tells
them apart. A bad key or model is refused *after* the upgrade succeeded: an
``error`` event comes in place of ``session.created``, then a close with 3000
(credentials), 4000 (request) or 4004 (model), its reason ending in the error's
code (seen on the wire). None of the three is worth a second try.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import AuthenticationError, ConnectError, ModelError, RateLimited, SessionRejected, redact
from .events import name_of

__all__ = [
    "expired",
    "from_close",
    "from_error",
    "quote",
    "refused_connection",
    "refused_session",
    "rejected_session",
]

_CREDENTIALS = frozenset(
    {
        "account_deactivated",
        "authentication_error",
        "expired_api_key",
        "incorrect_api_key",
        "invalid_api_key",
        "invalid_authentication",
        "invalid_organization",
        "invalid_project",
        "missing_api_key",
        "permission_denied",
        "permission_error",
        "token_expired",
        "unauthorized",
    }
)
_MODEL = frozenset({"invalid_model", "missing_model", "model_not_found", "model_not_supported"})
_BUSY = frozenset({"rate_limit_error", "rate_limit_exceeded", "session_limit_reached", "too_many_requests"})
_MONEY = frozenset(
    {
        "billing_hard_limit_reached",
        "billing_not_active",
        "credit_balance_exhausted",
        "insufficient_quota",
    }
)
_GONE = frozenset({"beta_api_shape_disabled"})


def quote(error: Mapping[str, Any]) -> str:
    """The server's own words, for a message."""
    text = name_of(error, "message") or name_of(error, "code") or name_of(error, "type") or "no message"
    code = name_of(error, "code")
    found = redact(text if len(text) <= 500 else text[:500] + "…")
    return f"{found} ({code})" if code and code not in found else found


def expired(error: Mapping[str, Any]) -> bool:
    """Whether an error announces the end of the session's time."""
    return error.get("code") == "session_expired"


def from_error(error: Mapping[str, Any], close_code: int | None = None) -> ConnectError | None:
    """The exception for an error that comes in place of ``session.created``; ``None``: not a known one."""
    code = name_of(error, "code")
    known = {code, name_of(error, "type")}
    message = f"the server refused the connection: {quote(error)}"
    if known & _CREDENTIALS:
        return AuthenticationError(message, close_code=close_code, code=code, kind="auth")
    if known & _MODEL:
        return ModelError(message, close_code=close_code, code=code, kind="model")
    if known & _MONEY:
        return RateLimited(message, permanent=True, close_code=close_code, code=code, kind="rate_limit")
    if known & _BUSY:
        return RateLimited(message, close_code=close_code, code=code, kind="rate_limit")
    if known & _GONE:
        return ConnectError(message, permanent=True, close_code=close_code, code=code, kind="session")
    return None


def from_close(code: int, reason: str, error: Mapping[str, Any] | None) -> ConnectError | None:
    """The exception for a close before the session was ready.

    ``error`` is the ``error`` event that was seen, which says more than the close.
    """
    said = error or {"code": reason.rpartition(".")[2], "message": reason}
    found = from_error(said, code) or from_error({"code": reason.rpartition(".")[2]}, code)
    if found is not None:
        return found
    message = f"the server refused the connection with {code}: {quote(said)}"
    own = name_of(said, "code") if error else None
    if code == 3000:
        return AuthenticationError(message, close_code=code, code=own, kind="auth")
    if code == 4004:
        return ModelError(message, close_code=code, code=own, kind="model")
    if code == 4000:
        return ConnectError(message, permanent=True, close_code=code, code=own, kind="session")
    if code == 1008 or error:
        return ConnectError(message, close_code=code, code=own, kind="session")
    return None


def refused_connection(error: Mapping[str, Any]) -> ConnectError:
    """The exception for an error that nothing followed, neither a session nor a close."""
    return from_error(error) or ConnectError(
        f"the server opened no session: {quote(error)}", code=name_of(error, "code"), kind="session"
    )


def refused_session(error: Mapping[str, Any]) -> ConnectError:
    """The exception for pool-wide settings that the server refused."""
    return from_error(error) or ConnectError(
        f"the server refused the pool's session settings: {quote(error)}",
        permanent=error.get("type") != "server_error",
        code=name_of(error, "code"),
        kind="session",
    )


def rejected_session(error: Mapping[str, Any]) -> SessionRejected:
    """The exception for the settings of one checkout that the server refused."""
    return SessionRejected(
        f"the server refused the session settings: {quote(error)}",
        code=name_of(error, "code"),
        param=name_of(error, "param"),
    )
