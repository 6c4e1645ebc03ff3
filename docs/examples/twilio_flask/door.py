"""Who may come in: requests that Twilio signed, and streams whose token the webhook gave out."""

from __future__ import annotations

import os
import secrets
import threading
import time

from flask import Flask, Request
from itsdangerous import BadSignature, URLSafeTimedSerializer

from rtpool_sync.bridges.twilio import verify_signature

#: Seconds between the webhook's answer and the beginning of its stream.
TOKEN_SECONDS = 60


class Door:
    """Knows Twilio, and its own tokens.

    Args:
        base_url: Where Twilio reaches this application, ``https://…``; empty: wherever it was asked.
        auth_token: Of the Twilio account; empty: nobody's signature is asked for.
        secret_key: Signs the tokens. All processes need the same one.
    """

    def __init__(self, base_url: str, auth_token: str, secret_key: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._auth_token = auth_token
        self._tokens = URLSafeTimedSerializer(secret_key, salt="stream")
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, app: Flask) -> Door:
        """From the application's settings.

        Raises:
            RuntimeError: Something is missing, without which anybody could come in.
        """
        # From the environment as it is: what begins with FLASK_ is parsed, and a token of digits is a number.
        names = ("PUBLIC_URL", "TWILIO_AUTH_TOKEN", "SECRET_KEY")
        values = {name: os.environ.get(name) or str(app.config.get(name) or "") for name in names}
        if app.config["OPEN_TO_ANYBODY"] and not values["TWILIO_AUTH_TOKEN"]:
            values["SECRET_KEY"] = values["SECRET_KEY"] or secrets.token_hex()
        elif missing := [name for name, value in values.items() if not value]:
            raise RuntimeError(f"set {', '.join(missing)}: see README.md")
        return cls(values["PUBLIC_URL"], values["TWILIO_AUTH_TOKEN"], values["SECRET_KEY"])

    def public_url(self, request: Request, path: str) -> str:
        """The address of a stream as Twilio has to know it."""
        base = self._base_url or request.host_url.rstrip("/")
        return "ws" + base.removeprefix("http") + path

    def signed_by_twilio(self, request: Request) -> bool:
        if not self._auth_token:
            return True
        base = self._base_url
        if "websocket" in request.headers.get("Upgrade", "").lower():
            base = "ws" + base.removeprefix("http")
        # Twilio signed the address that it knows, not what a proxy made of it; a query, too.
        path = request.full_path if request.query_string else request.path
        signature = request.headers.get("X-Twilio-Signature")
        return verify_signature(base + path, self._auth_token, signature, request.form)

    def token(self, call_sid: str) -> str:
        """What the stream of this call has to show."""
        return str(self._tokens.dumps([call_sid, secrets.token_hex(8)]))

    def admits(self, token: str, call_sid: str) -> bool:
        """Whether the webhook gave this token to that call a moment ago. It is good for one stream."""
        try:
            meant_for, nonce = self._tokens.loads(token, max_age=TOKEN_SECONDS)
        except BadSignature:
            return False
        now = time.monotonic()
        with self._lock:
            self._used = {used: until for used, until in self._used.items() if until > now}
            if nonce in self._used:
                return False
            # Of this process: another one would take it once more, from that same call.
            self._used[nonce] = now + 2 * TOKEN_SECONDS
        return meant_for in ("", call_sid)
