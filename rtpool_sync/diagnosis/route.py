"""The way to the service: name, TCP, proxy, TLS, upgrade, and the session that begins there."""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..config import PoolConfig
from ..errors import ConnectError, ConnectionLost
from ..protocols.events import parse
from ..protocols.realtime import RealtimeProtocol
from ..protocols.refusals import refused_connection
from ..transport import Dial, Endpoint, Transport
from ..transport.frames import TEXT
from ..transport.resolve import resolve
from . import advice, certificate
from .findings import Finding

__all__ = ["explore"]

monotonic = time.monotonic

#: Seconds to look at a certificate that was not accepted.
LOOK = 5.0
#: What the transport calls a phase → what it is called here.
_PHASE = {"tcp": "tcp", "proxy": "proxy", "tls": "tls", "handshake": "upgrade"}


def explore(
    config: PoolConfig,
    context: ssl.SSLContext | None,
    sources: Mapping[str, str],
    mask: Callable[[str], str],
) -> Iterator[Finding]:
    """Open one connection as the pool would, and tell of each step. Ends with the first that failed.

    Args:
        context: TLS settings, for a URL that needs them.
        sources: Field → where its value comes from.
        mask: Takes secrets out of a text.
    """
    endpoint = Endpoint.from_url(config.connect_url)
    key_from = sources["headers"] if config.api_key is None else sources["api_key"]
    url_from = sources["base_url" if config.url is None else "url"]

    def failed(phase: str, error: ConnectError, seconds: float) -> Finding:
        text = advice.of_connecting(phase, error, endpoint.host, key_from=key_from, url_from=url_from)
        return Finding(phase, "failed", str(error), text, seconds)

    shaken = certificate.watch(context) if context is not None else []
    dial = Dial(
        endpoint,
        lambda: config.upgrade_headers(True),
        context=context,
        timeout=config.connect_timeout,
        max_size=config.max_message_size,
        mask=mask,
    )

    try:
        proxy = dial.proxy()
    except ConnectError as unusable:
        yield failed("proxy", unusable, 0.0)
        return
    host, port = (proxy.hostname or "", proxy.port or 80) if proxy else (endpoint.host, endpoint.port)
    yield (finding := _name(host, port, config.connect_timeout, failed))
    if finding.status == "failed":
        return

    began = monotonic()
    transport, error = _run(dial)
    begun = [(_PHASE[phase], since) for phase, since in dial.began.items() if phase in _PHASE]
    ends = [since for _, since in begun[1:]] + [monotonic()]
    took = {phase: end - since for (phase, since), end in zip(begun, ends, strict=True)}
    if not begun:  # not even a name, at the second time of asking
        assert error is not None
        yield failed("dns", error, monotonic() - began)
        return
    last = begun[-1][0]
    for phase in ("tcp", "proxy", "tls", "upgrade"):
        if error is not None and phase == last:
            yield _untrusted(endpoint, error, took[phase]) or failed(phase, error, took[phase])
            return
        if phase == "tcp":
            yield Finding("tcp", "ok", f"connected to {host}, port {port}", "", took[phase])
        elif phase == "proxy" and proxy is None:
            yield Finding("proxy", "skipped", "the environment names none for this address")
        elif phase == "proxy":
            yield Finding("proxy", "ok", f"{host}:{port} leads to {endpoint.netloc}", "", took[phase])
        elif phase == "tls":
            yield _tls(endpoint, shaken, took.get("tls"))
        else:
            yield Finding("upgrade", "ok", "it is a WebSocket", "", took[phase])
    assert transport is not None
    try:
        began = monotonic()
        problem, detail = _begin_session(transport, config)
        if problem is not None:
            yield failed("session", problem, monotonic() - began)
        else:
            yield Finding("session", "ok", detail, "", monotonic() - began)
    finally:
        transport.close(timeout=min(config.close_timeout, 2.0))


def _name(
    host: str, port: int, timeout: float, failed: Callable[[str, ConnectError, float], Finding]
) -> Finding:
    began = monotonic()
    try:
        addresses = resolve(host, port, began + timeout)
    except TimeoutError as error:
        problem = ConnectError(f"{error} within {timeout:g} s", kind="timeout")
    except OSError as error:
        problem = ConnectError(f"{host} cannot be resolved: {error.strerror or error}", kind="dns")
    else:
        found = list(dict.fromkeys(str(address[4][0]) for address in addresses))
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        detail = "" if found == [host] else f"{host} is "
        return Finding("dns", "ok", f"{detail}{', '.join(found[:4])}{more}", "", monotonic() - began)
    return failed("dns", problem, monotonic() - began)


def _run(dial: Dial) -> tuple[Transport | None, ConnectError | None]:
    try:
        return dial.run(), None
    except ConnectError as error:
        return None, error


def _tls(endpoint: Endpoint, shaken: list[ssl.SSLObject], seconds: float | None) -> Finding:
    if not endpoint.secure:
        if _is_here(endpoint.host):
            return Finding("tls", "skipped", "not encrypted, on this machine")
        text = "The key and every word go over the network in plain text: use https (wss) in the URL."
        return Finding("tls", "warning", "not encrypted", text)
    seen = shaken[0]
    shown = certificate.Certificate.of(seen.getpeercert() or {})
    detail = f"{seen.version()}, {shown}"
    reason = certificate.intercepted(endpoint.host, shown.issuer)
    if reason:
        text = (
            f"It looks as if a proxy in this network reads the traffic, key included: {reason}. "
            "If that is known and allowed, all is well."
        )
        return Finding("tls", "warning", detail, text, seconds)
    if shown.days_left < certificate.SOON:
        text = f"The certificate ends in {max(0.0, shown.days_left):.1f} days: see that it is renewed."
        return Finding("tls", "warning", detail, text, seconds)
    return Finding("tls", "ok", detail, "", seconds)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _untrusted(endpoint: Endpoint, error: ConnectError, seconds: float) -> Finding | None:
    """The finding about a certificate that was not accepted; ``None``: that is not what failed."""
    if error.kind != "tls" or not error.permanent:
        return None
    shown = certificate.fetch(endpoint, LOOK)
    detail = f"{error}\nshown was a {shown}" if shown else str(error)
    return Finding(
        "tls", "failed", detail, certificate.why_untrusted(endpoint.host, str(error), shown), seconds
    )


def _error_in(message: str | bytes) -> Mapping[str, Any] | None:
    """The server's own words, if this is an ``error`` event."""
    event = parse(message)
    error = event.get("error") if event is not None and event.get("type") == "error" else None
    return error if isinstance(error, Mapping) else None


def _begin_session(transport: Transport, config: PoolConfig) -> tuple[ConnectError | None, str]:
    """Wait until the session is ready, settings included; return what went wrong, or what was seen."""
    protocol = RealtimeProtocol().follow(session=config.session, reset_timeout=config.reset_timeout)
    end = monotonic() + config.connect_timeout
    said: Mapping[str, Any] | None = None
    protocol.prepare(monotonic())
    try:
        while protocol.pending:
            for message in protocol.outgoing():
                transport.send(message, TEXT, max(0.0, end - monotonic()))
            until = end if protocol.wake_at is None else min(end, protocol.wake_at)
            try:
                message_in = transport.recv(max(0.0, until - monotonic()))
            except TimeoutError:
                if monotonic() >= end and said is not None:
                    return refused_connection(said), ""
                if monotonic() >= end:
                    text = f"the session did not begin within {config.connect_timeout:g} s"
                    return ConnectError(text, kind="timeout"), ""
                protocol.tick(monotonic())
            else:
                said = _error_in(message_in) or said
                protocol.feed(message_in, monotonic())
    except (ConnectionLost, TimeoutError) as error:
        known = protocol.closed(error.code, error.reason) if isinstance(error, ConnectionLost) else None
        if isinstance(known, ConnectError):
            return known, ""
        return ConnectError(f"the session did not begin: {error}", kind="session"), ""
    if protocol.failure is not None:
        known = protocol.failure.error
        if isinstance(known, ConnectError):
            return known, ""
        return ConnectError(protocol.failure.message, kind="session"), ""
    detail = f"session.created, {protocol.session_id}"
    if config.session:
        detail += ", and the pool's session settings were accepted"
    if protocol.expires_at is not None:
        life = protocol.expires_at - time.time()
        if life <= config.min_session_time:
            text = f"the server grants {life:.0f} s, less than min_session_time={config.min_session_time:g}"
            return ConnectError(text, kind="session"), ""
        detail += f", for {life / 60:.0f} minutes"
    return None, detail
