"""What every dial of one pool shares: the settings as they are now, TLS context and session."""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING

from .connection import PooledConnection
from .converters.masking import Secret
from .transport import Dial, Endpoint, Transport
from .transport.dial import make_context

if TYPE_CHECKING:
    from .ledger import Ledger

__all__ = ["Dialing"]


class Dialing:
    """Makes the dials of one pool."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()  # guards making the context
        self._context: ssl.SSLContext | None = None
        self._session: ssl.SSLSession | None = None

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
        """Keep the TLS session, if one came, for the next dial. TLS 1.3 sends it after the handshake."""
        stream = transport.sock
        tls = None if stream is None else stream.tls
        if tls is not None and tls.context is self._context:
            session = tls.session
            if session is not None and session.has_ticket:
                self._session = session
