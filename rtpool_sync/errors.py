"""Every exception of rtpool_sync, on one page.

All derive from :class:`RtpoolError`. Where a builtin exception says the same
thing (``TimeoutError``, ``ConnectionError``, ``ValueError``) ours derives from
it too, so code that knows nothing of this package handles it correctly.

No message holds the API key: texts that come from a server pass through
:func:`redact` before they get here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "AuthenticationError",
    "ConfigError",
    "ConnectError",
    "ConnectionLost",
    "ConnectionReturned",
    "MessageTooBig",
    "ModelError",
    "PoolClosed",
    "PoolExhausted",
    "PoolTimeout",
    "RateLimited",
    "RecvTimeout",
    "RtpoolError",
    "SessionExpired",
    "SessionRejected",
]


class RtpoolError(Exception):
    """Base of every exception raised by rtpool_sync."""


class ConfigError(RtpoolError, ValueError):
    """A setting is missing, unknown or out of range. All faults are reported at once.

    Attributes:
        problems: One text for each fault; they are what the message consists of.
    """

    def __init__(self, message: str = "", *, problems: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.problems: tuple[str, ...] = tuple(problems) or ((message,) if message else ())


# -- checking a connection out ------------------------------------------------


class PoolTimeout(RtpoolError, TimeoutError):
    """No connection became available in time.

    The message says how long the caller waited and what the pool's capacity
    was doing meanwhile. ``__cause__`` is the last connect error, if connecting
    was what failed.
    """


class PoolExhausted(RtpoolError):
    """``max_waiting`` callers are waiting already: refused without waiting."""


class PoolClosed(RtpoolError):
    """The pool is closed, or was closed while the caller waited."""


# -- opening a connection -----------------------------------------------------


class ConnectError(RtpoolError, ConnectionError):
    """A connection could not be opened and made ready.

    Attributes:
        permanent: Trying again with the same settings cannot help.
        status: HTTP status of a refused upgrade, or ``None``.
        close_code: WebSocket close code that ended the attempt, or ``None``.
        code: The server's own error code (``invalid_api_key``…), or ``None``.
        kind: What failed, one of :data:`CONNECT_ERROR_KINDS`.
        retry_after: Seconds the server asked to wait, or ``None``.
    """

    permanent = False

    def __init__(
        self,
        message: str,
        *,
        permanent: bool | None = None,
        status: int | None = None,
        close_code: int | None = None,
        code: str | None = None,
        kind: str = "handshake",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        if permanent is not None:
            self.permanent = permanent
        self.status = status
        self.close_code = close_code
        self.code = code
        self.kind = kind
        self.retry_after = retry_after


#: Values of ``ConnectError.kind``; the labels of ``rtpool_connect_errors_total``.
CONNECT_ERROR_KINDS = (
    "dns",
    "tcp",
    "proxy",
    "tls",
    "handshake",
    "auth",
    "model",
    "rate_limit",
    "session",
    "timeout",
)


class AuthenticationError(ConnectError):
    """The server refused the credentials."""

    permanent = True


class ModelError(ConnectError):
    """The server does not know the model, or does not let this key use it."""

    permanent = True


class RateLimited(ConnectError):
    """The server asks for fewer connections or requests; ``retry_after`` says for how long."""


class SessionRejected(RtpoolError, ValueError):
    """The server refused the ``session`` settings of a checkout; its message is quoted.

    Attributes:
        code: The server's error code, or ``None``.
        param: The setting it names, or ``None``.
    """

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


# -- using a connection -------------------------------------------------------


class ConnectionLost(RtpoolError, ConnectionError):
    """The connection ended while it was in use.

    Attributes:
        code: WebSocket close code; 1006 when the peer sent none.
        reason: The close reason, or what broke the connection.
        sent: True when something of this session may have reached the server,
            so that repeating the session elsewhere may repeat its work.
    """

    def __init__(self, message: str, *, code: int = 1006, reason: str = "", sent: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.sent = sent


class SessionExpired(ConnectionLost):
    """The server ended the session because it reached its maximum duration."""


class MessageTooBig(ConnectionLost):
    """The peer sent a message above ``max_message_size``; the connection was closed with 1009."""


class ConnectionReturned(RtpoolError):
    """The connection was given back to its pool: this handle can no longer be used."""


class RecvTimeout(RtpoolError, TimeoutError):
    """Nothing was received in time. Nothing is lost: a later ``recv`` continues."""


# -- secrets ------------------------------------------------------------------

_KEY_LIKE = re.compile(r"\b(sk|ek|sess)-[A-Za-z0-9_\-*]{4,}|(?i:bearer)\s+\S+")


def redact(text: str, *secrets: str) -> str:
    """Return ``text`` with every given secret, and all that looks like a key, masked."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _KEY_LIKE.sub("***", text)
