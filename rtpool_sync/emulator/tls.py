"""A certificate authority and a server certificate, made on the fly."""

from __future__ import annotations

import os
import ssl
import tempfile

__all__ = ["Certificate"]


class Certificate:
    """A server context for localhost, 127.0.0.1 and ::1, and the PEM file that vouches for it.

    Attributes:
        context: The server's ``SSLContext``.
        ca_file: What a client must trust.
    """

    def __init__(self, *names: str) -> None:
        try:
            import trustme
        except ImportError as exc:
            raise ImportError(
                "TLS with a certificate made on the fly needs trustme: pip install 'rtpool-sync[emulator]'"
            ) from exc
        authority = trustme.CA()
        identities = dict.fromkeys(("localhost", "127.0.0.1", "::1", *names))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*identities).configure_cert(self.context)
        handle, self.ca_file = tempfile.mkstemp(prefix="rtpool-ca-", suffix=".pem")
        with os.fdopen(handle, "wb") as file:
            file.write(authority.cert_pem.bytes())

    def remove(self) -> None:
        """Delete the CA file."""
        try:
            os.unlink(self.ca_file)
        except FileNotFoundError:
            pass
