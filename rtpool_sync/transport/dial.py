"""Opening a connection: names, TCP, proxy, TLS, upgrade, all before one deadline."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment
from urllib.request import proxy_bypass_environment as bypassed  # type: ignore[attr-defined]  # public, not in typeshed

import websocket

from ..errors import AuthenticationError, ConfigError, ConnectError, ModelError, RateLimited, redact
from .resolve import connect_tcp, resolve
from .stream import Stream, UpgradeRefused
from .websocket import Transport

__all__ = ["Dial", "Endpoint", "make_context"]

Headers = Callable[[], list[tuple[str, str]]]


class _NoRequestDumps(logging.Filter):
    """Drop websocket-client's dumps of whole requests (``enableTrace``), whoever turned them on.

    Ours hold no key, since the library never sees it; this is for the case that
    the same process also uses the library directly with the same key.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        return "uthorization:" not in text and "api-key:" not in text.lower()


logging.getLogger("websocket").addFilter(_NoRequestDumps())


def make_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Return the TLS settings of one pool: made once, because reading the system's CAs costs 40 ms.

    Raises :class:`ConfigError` when ``ca_file`` cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        problem = str(error)
    else:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A server of TLS 1.2 that renegotiates would have writing wait for reading.
        context.options |= ssl.OP_NO_RENEGOTIATION
        return context
    raise ConfigError(f"ca_file: {ca_file!r} is not a readable PEM file of certificates ({problem})")


@dataclass(frozen=True)
class Endpoint:
    """Where to connect to. Holds no credential.

    Attributes:
        secure: Whether to use TLS.
        host, port: Of the server, not of a proxy.
        resource: Path and query of the request line. Not shown: gateways take keys there.
    """

    secure: bool
    host: str
    port: int
    resource: str = field(repr=False)

    @classmethod
    def from_url(cls, url: str) -> Endpoint:
        parts = urlsplit(url)
        assert parts.scheme in ("ws", "wss"), "the configuration checks URLs"
        assert parts.hostname, "the configuration checks URLs"
        secure = parts.scheme == "wss"
        resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(secure, parts.hostname, parts.port or (443 if secure else 80), resource)

    @property
    def netloc(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class Dial:
    """One attempt to open a connection; can be aborted from another thread.

    Args:
        endpoint: Where to.
        headers: Called once, at the last moment, for the headers of the upgrade.
            They go from there to the wire: no variable of a frame that an
            exception could carry ever holds them.
        context: TLS settings; needed when the endpoint is secure.
        timeout: Seconds for everything, names and a trickling answer included.
        session: TLS session to resume, from an earlier connection with ``context``.
        max_size: Bytes of the largest message the connection will accept.
        mask: Takes the secrets out of what the server says, before that is cut short:
            half a key is a secret too.

    Attributes:
        began: Phase (``dns``, ``tcp``, ``proxy``, ``tls``, ``handshake``) → when it began, in monotonic time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        headers: Headers,
        *,
        context: ssl.SSLContext | None,
        timeout: float,
        session: ssl.SSLSession | None = None,
        max_size: int = 1 << 24,
        mask: Callable[[str], str] = redact,
    ) -> None:
        self._endpoint = endpoint
        self._headers = headers
        self._context = context
        self._timeout = timeout
        self._session = session
        self._max_size = max_size
        self._mask = mask
        self._stream: Stream | None = None
        self._phase = "dns"
        self.began: dict[str, float] = {}
        self._aborted = threading.Event()

    def abort(self) -> None:
        """Make :meth:`run` fail soon. Never blocks."""
        self._aborted.set()
        stream = self._stream
        if stream is not None:
            stream.abort()

    def run(self) -> Transport:
        """Open the connection.

        Raises:
            ConnectError: It failed; ``kind`` says at what. Made new, outside of
                what it reports, so that it drags no frame of the attempt along.
        """
        end = time.monotonic() + self._timeout
        try:
            transport = self._open(end)
        except UpgradeRefused as refused:
            problem = self._refusal(refused)
        except ConfigError as error:
            problem = ConnectError(str(error), permanent=True, kind="auth")
        except ConnectError as error:
            problem = error.with_traceback(None)
        except (TimeoutError, websocket.WebSocketTimeoutException):
            problem = ConnectError(
                f"no connection to {self._endpoint.netloc} within {self._timeout:.2f} s ({self._doing()})",
                kind="timeout",
            )
        except ssl.SSLCertVerificationError as error:
            problem = ConnectError(
                f"the certificate of {self._endpoint.netloc} is not trusted: {error.verify_message}",
                kind="tls",
                permanent=True,
            )
        except (OSError, ssl.SSLError, websocket.WebSocketException, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if self._aborted.is_set():
                text = "the attempt was aborted"
            problem = ConnectError(
                redact(f"cannot connect to {self._endpoint.netloc} ({self._doing()}): {text}"),
                kind=self._phase,
            )
        except BaseException:
            self._discard()
            raise
        else:
            return transport
        self._discard()
        raise problem

    def _discard(self) -> None:
        if self._stream is not None:
            self._stream.abort()
            self._stream.close()

    def _doing(self) -> str:
        return {
            "dns": "resolving the name",
            "tcp": "opening TCP",
            "proxy": "asking the proxy",
            "tls": "TLS handshake",
            "handshake": "WebSocket upgrade",
        }[self._phase]

    def _begin(self, phase: str) -> None:
        self._phase = phase
        self.began[phase] = time.monotonic()

    def _open(self, end: float) -> Transport:
        endpoint = self._endpoint
        self._begin("dns")
        proxy = self.proxy()
        host, port = (proxy.hostname or "", proxy.port or 80) if proxy else (endpoint.host, endpoint.port)
        addresses = resolve(host, port, end, self._aborted)
        self._begin("tcp")
        self._stream = stream = Stream(connect_tcp(addresses, end, self._aborted))
        if self._aborted.is_set():  # before the stream existed
            raise ConnectionAbortedError("aborted")
        if proxy:
            self._begin("proxy")
            self._tunnel(stream, proxy, end)
        if endpoint.secure:
            self._begin("tls")
            assert self._context is not None
            stream.start_tls(self._context, endpoint.host, self._session, end)
        self._begin("handshake")
        stream.begin_upgrade(end, self._headers, endpoint.resource)
        transport = Transport(max_size=self._max_size, enable_multithread=True, skip_utf8_validation=True)
        # The URL's host is not ours on purpose: the library looks cookies up by
        # it, in a jar shared by the whole process, and has no option against it.
        transport.connect(  # type: ignore[no-untyped-call]
            "ws://rtpool.invalid/",
            socket=stream,
            host=endpoint.netloc,
            suppress_origin=True,
            redirect_limit=0,
        )
        return transport

    # -- proxies

    def proxy(self) -> SplitResult | None:
        """The proxy that the environment names for this endpoint (as urllib reads it), if any."""
        proxies = getproxies_environment()
        url = proxies.get("https" if self._endpoint.secure else "http")
        host = self._endpoint.host
        if not url or bypassed(
            f"{host}:{self._endpoint.port}", proxies
        ):  # looks at both, with and without port
            return None
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        if parts.scheme != "http" or not parts.hostname:
            problem = f"a {parts.scheme}:// proxy is not supported, only http://host:port"
            raise ConnectError(
                f"cannot connect to {self._endpoint.netloc}: {problem}", kind="proxy", permanent=True
            )
        return parts

    def _tunnel(self, stream: Stream, proxy: SplitResult, end: float) -> None:
        target = f"{self._endpoint.host}:{self._endpoint.port}"
        if ":" in self._endpoint.host:
            target = f"[{self._endpoint.host}]:{self._endpoint.port}"

        def credentials() -> list[tuple[str, str]]:
            if proxy.username is None:
                return []
            pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
            return [("Proxy-Authorization", "Basic " + base64.b64encode(pair).decode())]

        stream.begin_upgrade(end, credentials)
        stream.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        try:
            stream.read_answer(end, accept=200)
            return
        except UpgradeRefused as refused:
            status = refused.status
        raise OSError(f"the proxy answered {status} to CONNECT {target}")

    # -- refusals

    def _refusal(self, refused: UpgradeRefused) -> ConnectError:
        """The exception for an HTTP answer that is not 101."""
        status = refused.status
        body = self._mask(" ".join(refused.body.split()))[:300]
        text = f"{self._endpoint.netloc} refused the upgrade with HTTP {status}" + (
            f": {body}" if body else ""
        )
        wait = _retry_after(refused.headers.get("retry-after"))
        if status in (401, 403):
            return AuthenticationError(text, status=status, kind="auth")
        if status == 404:
            return ModelError(text, status=status, kind="model")
        if status == 429:
            return RateLimited(text, status=status, kind="rate_limit", retry_after=wait)
        if 300 <= status < 400:
            text += " (redirects are not followed: the API key must not go elsewhere)"
            return ConnectError(text, status=status, permanent=True)
        permanent = 400 <= status < 500 and status not in (408, 425)
        return ConnectError(text, status=status, permanent=permanent, retry_after=wait)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), at most an hour; ``None`` if it has none."""
    if not value:
        return None
    with contextlib.suppress(ValueError):
        return min(max(0.0, float(value)), 3600.0)
    with contextlib.suppress(ValueError, TypeError):
        when = email.utils.parsedate_to_datetime(value).timestamp()
        return min(max(0.0, when - time.time()), 3600.0)
    return None
