"""The server's certificate: who issued it, until when it holds, whether a proxy has put it there.

A proxy that reads TLS shows a certificate of its own making. Its issuer tells:
it is none of the authorities that the API's operators use.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, ConnectError
from ..transport import Dial, Endpoint

__all__ = ["SOON", "Certificate", "fetch", "intercepted", "watch", "why_untrusted"]

#: Days before a certificate's end from which that is worth a warning.
SOON = 7

#: Words in the issuer of certificates that products for reading TLS make.
_PRODUCTS = (
    "Avast",
    "AVG",
    "Barracuda",
    "Bitdefender",
    "Blue Coat",
    "Cato Networks",
    "Charles Proxy",
    "Check Point",
    "Cisco Umbrella",
    "DO_NOT_TRUST_FiddlerRoot",
    "ESET",
    "Fiddler",
    "Forcepoint",
    "FortiGate",
    "Fortinet",
    "iboss",
    "Kaspersky",
    "McAfee",
    "Menlo Security",
    "mitmproxy",
    "Netskope",
    "Palo Alto",
    "PortSwigger",
    "Skyhigh",
    "SonicWall",
    "Sophos",
    "Squid",
    "Trend Micro",
    "Untangle",
    "WatchGuard",
    "Zscaler",
)
#: Hosts whose operators take certificates from public authorities only.
_PUBLIC_HOSTS = (".openai.com", ".azure.com", ".microsoft.com", ".googleapis.com", ".amazonaws.com")
#: Words in the issuer of those authorities' certificates.
_AUTHORITIES = (
    "Amazon",
    "Baltimore",
    "Cloudflare",
    "Comodo",
    "DigiCert",
    "Entrust",
    "GlobalSign",
    "Google Trust Services",
    "GTS",
    "Internet Security Research Group",
    "Let's Encrypt",
    "Microsoft",
    "Sectigo",
    "SSL Corp",
    "Starfield",
    "USERTRUST",
    "ZeroSSL",
)
#: OpenSSL's flags for "the leaf itself is trusted" and "never mind the time".
_PARTIAL_CHAIN, _NO_CHECK_TIME = 0x80000, 0x200000


@dataclass(frozen=True)
class Certificate:
    """The parts of a certificate that explain something."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: float
    ends: float

    @classmethod
    def of(cls, parts: dict[str, Any]) -> Certificate:
        """Read what ``SSLObject.getpeercert()`` returns."""
        return cls(
            _name(parts.get("subject", ())),
            _name(parts.get("issuer", ())),
            tuple(value for _, value in parts.get("subjectAltName", ())),
            ssl.cert_time_to_seconds(parts["notBefore"]),
            ssl.cert_time_to_seconds(parts["notAfter"]),
        )

    @property
    def days_left(self) -> float:
        return (self.ends - time.time()) / 86400

    @property
    def is_self_signed(self) -> bool:
        return self.subject == self.issuer

    def __str__(self) -> str:
        names = ", ".join(self.names[:3]) + (
            f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        )
        return (
            f"certificate of {names or self.subject}, issued by {self.issuer}, "
            f"valid {_day(self.begins)} to {_day(self.ends)}"
        )


def _name(pairs: Any) -> str:
    """Organization and common name of a distinguished name."""
    parts = dict(pair for group in pairs for pair in group)
    words = [parts[key] for key in ("organizationName", "commonName") if parts.get(key)]
    return " ".join(words) or ", ".join(parts.values()) or "nobody"


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def intercepted(host: str, issuer: str) -> str | None:
    """Say why a certificate looks as if a proxy had made it, or ``None``."""
    for product in _PRODUCTS:
        if product.lower() in issuer.lower():
            return f"the issuer is {product}, which reads TLS on its way"
    if f".{host}".endswith(_PUBLIC_HOSTS) and not any(
        name.lower() in issuer.lower() for name in _AUTHORITIES
    ):
        return f"{host} has its certificates from public authorities, and {issuer!r} is none that is known"
    return None


def fetch(endpoint: Endpoint, timeout: float) -> Certificate | None:
    """Return the certificate that a server shows, trusted or not. Nothing is asked of the server.

    What cannot be verified Python does not parse. So it is taken unseen first,
    and then shown to a context that trusts exactly this one.
    """
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    shown = _handshake(endpoint, blind, timeout)
    raw = None if shown is None else shown.getpeercert(binary_form=True)
    if not raw:
        return None
    reading = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    reading.check_hostname = False
    try:
        reading.verify_flags |= ssl.VerifyFlags(_PARTIAL_CHAIN | _NO_CHECK_TIME)
        reading.load_verify_locations(cadata=raw)
        shown = _handshake(endpoint, reading, timeout)
        parts = None if shown is None else shown.getpeercert()
        return Certificate.of(parts) if parts else None
    except (ssl.SSLError, ValueError, KeyError):  # too odd to be read
        return None


def watch(context: ssl.SSLContext) -> list[ssl.SSLObject]:
    """Return a list that will hold what finishes a handshake with this context."""
    done: list[ssl.SSLObject] = []

    class Watched(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            done.append(self)

    context.sslobject_class = Watched
    return done


def _handshake(endpoint: Endpoint, context: ssl.SSLContext, timeout: float) -> ssl.SSLObject | None:
    """Do a TLS handshake, by way of the proxy if there is one, and hang up without sending a request."""
    done = watch(context)

    def nothing_more() -> list[tuple[str, str]]:
        raise ConfigError("only the certificate is wanted")

    bare = Endpoint(endpoint.secure, endpoint.host, endpoint.port, "/")
    try:
        Dial(bare, nothing_more, context=context, timeout=timeout).run().abort()
    except ConnectError:
        pass
    return done[0] if done else None


def why_untrusted(host: str, problem: str, shown: Certificate | None) -> str:
    """What to do about a certificate that was not accepted, ``problem`` being OpenSSL's words."""
    found = problem.lower()
    if "expired" in found:
        when = f" on {_day(shown.ends)}" if shown else ""
        return (
            f"The server's certificate has expired{when}: whoever runs the server has to renew it. "
            "If it has not, this machine's clock is wrong."
        )
    if "not yet valid" in found:
        return "The certificate is not valid yet: this machine's clock is probably wrong."
    if "mismatch" in found or "not valid for" in found:
        for_whom = f" It is for {', '.join(shown.names[:5]) or shown.subject}." if shown else ""
        return f"The server that answered is not {host}.{for_whom} Check the host in the URL, and DNS."
    reason = intercepted(host, shown.issuer) if shown else None
    if reason:
        return (
            f"A proxy in this network reads the traffic: {reason}. Have it leave {host} alone, or get its "
            "certificate authority as a PEM file and set WEBSOCKET_CA_FILE to it."
        )
    if "self-signed" in found or "self signed" in found:
        return (
            "The certificate was signed by nobody this machine trusts. If that is intended, "
            "set WEBSOCKET_CA_FILE to a PEM file with the certificate, or its authority's."
        )
    return (
        "The authority that issued it is not trusted here. If it is your company's, set WEBSOCKET_CA_FILE to "
        "a PEM file with it; if it is a public one, install the system's authorities (Debian: apt-get "
        "install ca-certificates)."
    )
