"""What to do about what went wrong: one text for each cause, by the phase and the server's words."""

from __future__ import annotations

from ..errors import AuthenticationError, ConnectError, ModelError

__all__ = ["of_answer", "of_connecting", "of_reset"]

_MONEY = (
    "insufficient_quota",
    "credit_balance_exhausted",
    "billing_hard_limit_reached",
    "billing_not_active",
)
_STATUS_PAGE = "If it lasts, look at the service's status page (OpenAI: https://status.openai.com)."
_ACCOUNT = (
    "The account has no credit or has reached its limit: see its billing page. Trying again does not help."
)
_SLOW_DOWN = (
    "Too many requests or sessions for this key: wait, open fewer connections, or ask for a higher limit."
)


def of_connecting(phase: str, error: ConnectError, host: str, *, key_from: str, url_from: str) -> str:
    """Advice for a connection that could not be opened.

    Args:
        phase: Where it failed, one of :data:`~.findings.PHASES`.
        host: Of the server.
        key_from, url_from: Where these settings come from.
    """
    if phase in _NETWORK and error.kind not in ("auth", "model", "rate_limit"):
        text = _NETWORK[phase]["timeout" if error.kind == "timeout" else "refused"]
        return text.format(host=host, url=url_from)
    if error.code in _MONEY:
        return _ACCOUNT
    if error.status == 403:
        return (
            f"The key ({key_from}) is known but may not do this: check its permissions, its project, "
            "the model's access, and whether the service allows this country or address."
        )
    if isinstance(error, AuthenticationError) or error.kind == "auth":
        return (
            f"The server does not accept the key ({key_from}): is it whole, of the right account or project, "
            "and not revoked? `rtpool config` shows where each setting comes from."
        )
    if isinstance(error, ModelError) or error.kind == "model":
        return (
            "There is no such model, deployment or path, or this key may not use it: check "
            f"OPENAI_REALTIME_MODEL and the URL ({url_from}). For OpenAI it ends in /v1; for Azure see the "
            "documentation."
        )
    if error.kind == "rate_limit":
        wait = f" The server asks to wait {error.retry_after:g} s." if error.retry_after else ""
        return _SLOW_DOWN + wait
    if error.code == "beta_api_shape_disabled":
        return "A header OpenAI-Beta is set (REALTIME_HEADERS): remove it, the beta interface was shut down."
    if error.code == "session_limit_reached":
        return _SLOW_DOWN
    status = error.status or 0
    if 300 <= status < 400:
        return f"The server redirects. Set the URL ({url_from}) to where it points, if you trust that."
    if status >= 500 or status in (408, 425):
        return f"The service, or a gateway before it, has trouble: try again. {_STATUS_PAGE}"
    if status:
        return f"This is not a WebSocket endpoint, or it wants something else: check the URL ({url_from})."
    if phase == "upgrade":
        if error.kind == "timeout":
            return f"The server took the request and does not answer. {_STATUS_PAGE}"
        return f"Something is there, but it speaks no WebSocket: check scheme, port and path ({url_from})."
    if error.kind == "timeout":
        return (
            "The WebSocket is open but no session.created came. A server that never sends it is no Realtime "
            'API (for any other WebSocket server there is RealtimePool(protocol="plain")); otherwise it is '
            f"overloaded. {_STATUS_PAGE}"
        )
    if "is no event" in str(error):
        return (
            'This is no Realtime API. For any other WebSocket server there is RealtimePool(protocol="plain").'
        )
    if "min_session_time" in str(error):
        return "Set WEBSOCKET_MIN_SESSION_TIME below the life that the server grants."
    if "session settings" in str(error):
        return "Correct the setting REALTIME_SESSION: the server names what it does not take."
    return f"The server ended the session before it began: see its words. {_STATUS_PAGE}"


_NETWORK = {
    "proxy": {
        "refused": "The proxy does not let us through: check https_proxy (address, user, password), "
        "and whether it allows CONNECT to {host}. no_proxy={host} goes without it.",
        "timeout": "The proxy does not answer: check https_proxy. no_proxy={host} goes without it.",
    },
    "dns": {
        "refused": "The name is not known here: check its spelling in the URL ({url}), and this machine's "
        "DNS (`getent hosts {host}`). In a network that only goes out through a proxy, set https_proxy.",
        "timeout": "The DNS server does not answer: check /etc/resolv.conf (in a container, its "
        "network settings).",
    },
    "tcp": {
        "refused": "Nothing listens there: check host and port in the URL ({url}), and that the server runs.",
        "timeout": "No answer at all, as firewalls do it: allow this machine to go out to {host}, or set "
        "https_proxy if this network has a proxy.",
    },
    "tls": {
        "refused": "What answers does not speak TLS as it should: is https (wss) right, and the port? "
        "A firewall that cuts TLS to unknown hosts looks like this too.",
        "timeout": "The TLS handshake does not come to its end: a firewall or proxy on the way swallows it, "
        "or the network loses large packets (MTU).",
    },
}


def of_answer(code: str, message: str) -> str:
    """Advice for an error instead of an answer of the model."""
    if code in _MONEY:
        return _ACCOUNT
    if "rate_limit" in code:
        return _SLOW_DOWN
    if "model" in code or "model" in message.lower():
        return "Check OPENAI_REALTIME_MODEL: is it a realtime model that this key may use?"
    if code in ("server_error", "internal_error"):
        return f"The service has trouble: try again. {_STATUS_PAGE}"
    return "The server opened a session but does not answer in it: see its words."


def of_reset(outcome: str) -> str:
    """Advice for a connection that could not be made clean after use."""
    if outcome in ("locked", "traced"):
        return (
            "Sessions that use other voices, or tracing, cost a new connection each: that is as it must be."
        )
    if outcome == "lost":
        return "The connection ended during the reset: look at the network, and try again."
    return (
        "This server cannot clear a session the way the Realtime API does. The pool stays safe and discards "
        "each connection after one use; WEBSOCKET_MAX_SESSIONS_PER_CONNECTION=1 spares it the attempt."
    )
