"""What every dial of one pool shares: the settings as they are now, TLS context and session."""

from __future__ import annotations

import ssl
import threading
import time
from typing import TYPE_CHECKING

from .connection import PooledConnection
from .converters.masking import Secret
from .transport import Dial, Endpoint, Transport
from .transport.dial import make_context

if TYPE_CHECKING:
    from .ledger import Ledger

__all__ = ["Dialing"]

LOOK = 60.0  # seconds between looks for another TLS session, at least, once there was one


class Dialing:
    """Makes the dials of one pool."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()  # guards making the context
        self._context: ssl.SSLContext | None = None
        self._session: ssl.SSLSession | None = None
        self._look_at = 0.0  # when to look for another one at the earliest
        self._renew_at = 0.0  # when the one there is has had half of its time
        self._misses = 0  # looks in vain

    def dial(self, member: PooledConnection) -> Dial:
        """Return the attempt to open a connection. Called in a connector's thread.

        Raises ConfigError when the CA file cannot be read.
        """
        config, needs_key = self._ledger.config, self._ledger.protocol.needs_key
        endpoint = Endpoint.from_url(config.connect_url)
        context = None
        if endpoint.secure:
            with self._lock:  # held while files are read, by connector threads only: one context, made once
                if self._context is None:
                    self._context = make_context(config.ca_file)
                context = self._context

        def headers() -> list[tuple[str, str]]:
            pairs = config.upgrade_headers(needs_key)
            member.secrets = [
                Secret(value.removeprefix("Bearer "))
                for name, value in pairs
                if not name.startswith("OpenAI-")
            ]
            return pairs

        return Dial(
            endpoint,
            headers,
            context=context,
            session=self._session,
            timeout=config.connect_timeout,
            max_size=config.max_message_size,
            mask=member.mask,
        )

    def remember(self, transport: Transport) -> None:
        """Keep a TLS session for the next dials, if one has come: TLS 1.3 sends it after the handshake.

        One serves many dials. It is looked for no more often than needed: up to
        CPython 3.12.7 and 3.13.0 each look costs 6 KB that nobody ever frees (gh-116810).
        """
        stream = transport.sock
        tls = None if stream is None else stream.tls
        now = time.monotonic()
        if tls is None or tls.context is not self._context or now < self._look_at:
            return
        if self._session is not None and tls.session_reused and now < self._renew_at:
            return
        session = tls.session
        if session is not None and session.has_ticket:
            self._session, self._misses = session, 0
            self._look_at, self._renew_at = now + LOOK, now + session.timeout / 2
        else:
            self._misses += 1
            self._look_at = now + min(LOOK, 0.01 * 4 ** min(self._misses, 9))
