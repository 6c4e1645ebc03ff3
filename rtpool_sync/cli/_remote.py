"""The numbers of a running application, from its monitoring pages. No wait is longer than allowed."""

from __future__ import annotations

import base64
import http.client
import json
import queue
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from .. import __version__
from ..errors import RtpoolError, redact

__all__ = ["Address", "Application", "NotWatched", "Snapshot", "printable"]

#: Bytes of an answer at most: what is longer is something else.
LIMIT = 8 << 20
#: What every version of the page says, and the program that it is the successor of.
NEEDED = (
    "total_connections",
    "healthy_connections",
    "active_sessions",
    "total_sessions_handled",
    "max_connections",
)
PAGES = ("stats", "health", "config", "metrics")
STATUSES = ("healthy", "degraded", "unhealthy")


class NotWatched(RtpoolError):
    """The application did not give its numbers. The message says why, and what to do."""


def printable(text: object, length: int = 200) -> str:
    """Text from elsewhere as one line that a terminal shows and does not obey, without keys."""
    line = "".join(c if c.isprintable() else "�" for c in redact(str(text)).partition("\n")[0])
    return line if len(line) <= length else line[: length - 1] + "…"


@dataclass(frozen=True)
class Address:
    """Where the pages are; what is secret in it is apart.

    Attributes:
        shown: For people: without user, password and query.
        base: The address of the status page, with a slash at its end.
        query: To be sent with every request.
        authorization: From ``user:password@``, or None.
    """

    shown: str
    base: str = field(repr=False)
    query: str = field(repr=False)
    authorization: str | None = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address as people give it: with or without scheme, of the status page or one beside it.

        Raises:
            ValueError: It is none; the message repeats nothing of it that could be secret.
        """
        if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
            text = "http://" + text
        if not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("spaces, letters that are not ASCII and control characters have to be escaped")
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"it has to begin with http:// or https://, not {parts.scheme}://")
        try:
            port = parts.port
        except ValueError:
            raise ValueError("the port is not a number from 1 to 65535") from None
        host = parts.hostname or ""
        if not host or port == 0:
            raise ValueError("there is no host" if not host else "the port is not a number from 1 to 65535")
        if ":" not in host and any(not 0 < len(label) < 64 for label in host.rstrip(".").split(".")):
            raise ValueError("the host is not a name")
        where = f"[{host}]" if ":" in host else host
        where += f":{port}" if port else ""
        folders = parts.path.rstrip("/").split("/")
        if folders[-1] in PAGES:
            folders.pop()
        base = urlunsplit((parts.scheme, where, "/".join(folders) + "/", "", ""))
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(base, base, parts.query, authorization)


@dataclass(frozen=True)
class Snapshot:
    """What one process of the application said.

    Attributes:
        process: Tells this process from others; empty when the application does not say.
        time: When, in seconds of the monotonic clock.
        status, message: Of the application.
        pools: Name → its numbers, as in ``/stats``.
        states: Name → its status and message, where the application tells them apart.
    """

    process: str
    time: float
    status: str
    message: str
    pools: Mapping[str, Mapping[str, Any]]
    states: Mapping[str, tuple[str, str]]


class Application:
    """A running application.

    Args:
        address: Of its status page.
        headers: For every request. They are never shown, and sent to no other host.
        timeout: Seconds for one :meth:`read`, at most.
    """

    def __init__(self, address: Address, headers: Sequence[tuple[str, str]], timeout: float) -> None:
        self.address = address
        self._timeout = timeout
        self._headers = {"Accept": "application/json", "User-Agent": f"rtpool_sync/{__version__}"}
        if address.authorization is not None:
            self._headers["Authorization"] = address.authorization
        self._headers |= dict(headers)
        # To this machine no proxy of the environment's leads.
        here = urlsplit(address.base).hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [urllib.request.ProxyHandler({})] if here else []
        self._opener = urllib.request.build_opener(_Stay, *proxies)
        self._asking: threading.Thread | None = None

    def read(self) -> Snapshot:
        """Ask for the numbers.

        Raises:
            NotWatched: There was no answer in time, or not the right one.
        """
        # In a thread, for what has no deadline of its own: looking up a name, an answer that comes in drops.
        end = time.monotonic() + self._timeout
        if self._asking is not None:
            self._asking.join(self._timeout)
            if self._asking.is_alive():
                raise self._late()
        answer: queue.SimpleQueue[Snapshot | NotWatched] = queue.SimpleQueue()
        self._asking = threading.Thread(target=self._ask, args=(answer, end), daemon=True)
        self._asking.start()
        try:
            outcome = answer.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise self._late() from None
        if isinstance(outcome, NotWatched):
            raise outcome
        return outcome

    def _late(self) -> NotWatched:
        return NotWatched(f"{self.address.shown}: no answer within {self._timeout:g} s")

    def _ask(self, answer: queue.SimpleQueue[Snapshot | NotWatched], end: float) -> None:
        try:
            stats, process = self._get("stats", end)
            health, _ = self._get("health", end)
            snapshot = _snapshot(stats, health, process)
            if snapshot is None:
                raise NotWatched(
                    f"{self.address.shown}stats answers, but not with the numbers of rtpool_sync"
                )
            answer.put(snapshot)
        except NotWatched as error:
            answer.put(error)
        except Exception as error:  # a defect; whoever waits is told all the same
            answer.put(NotWatched(f"{self.address.shown}: {type(error).__name__}: {printable(error)}"))

    def _get(self, page: str, end: float) -> tuple[dict[str, Any], str]:
        """The document of a page, and which process it is from."""
        url = self.address.base + page
        request = urllib.request.Request(url + "?" * bool(self.address.query) + self.address.query)
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        try:
            try:
                response = self._opener.open(request, timeout=max(0.001, end - time.monotonic()))
            except urllib.error.HTTPError as error:
                response = error
            with response:
                body, status = _read(response, end), response.status
                headers = response.headers
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise NotWatched(f"{url}: {self._explain(error)}") from None
        document = _document(body)
        if status == 200 or (status == 503 and page == "health"):
            if document is not None:
                return document, printable(headers.get("Rtpool-Process", ""), 64)
            raise NotWatched(f"{url} is not a monitoring page of rtpool_sync: it does not answer with JSON")
        raise NotWatched(f"{url}: {_refusal(status, headers.get('Location', ''), document)}")

    def _explain(self, error: Exception) -> str:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ConnectionRefusedError):
            return "nothing listens there"
        if isinstance(reason, socket.gaierror):
            return f"the name of the host is not known: {reason.strerror}"
        if isinstance(reason, TimeoutError):
            return f"no answer within {self._timeout:g} s"
        if isinstance(reason, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted: {reason.verify_message}. "
                "SSL_CERT_FILE names a PEM file with the authority to trust."
            )
        if isinstance(reason, ssl.SSLError):
            return f"TLS fails ({reason.reason or type(reason).__name__}): does it speak http:// there?"
        if isinstance(reason, http.client.HTTPException):
            return f"what answers there is not HTTP ({type(reason).__name__}): does it speak https://?"
        return printable(reason) or type(reason).__name__


class _Stay(urllib.request.HTTPRedirectHandler):
    """No redirect is followed: the pages need none, and whoever is led to should not get the headers."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _read(response: Any, end: float) -> bytes:
    body = b""
    while chunk := response.read1(65536):
        body += chunk
        if time.monotonic() > end:
            raise TimeoutError
        if len(body) > LIMIT:
            raise OSError(f"the answer is longer than {LIMIT >> 20} MiB")
    return body


def _document(body: bytes) -> dict[str, Any] | None:
    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        document = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _refusal(status: int, location: str, document: dict[str, Any] | None) -> str:
    try:
        phrase = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    if status == 404:
        return f"{phrase}. There are no monitoring pages; give the address of the status page."
    said = next((document[key] for key in ("message", "detail") if key in document), "") if document else ""
    phrase += f": {printable(said)}" if said else ""
    if status in (401, 403, 407):
        return f"{phrase}. It wants to know who asks: user:password@ in the address, or --header."
    if 300 <= status < 400:
        target = printable(urlunsplit(urlsplit(location)._replace(query="", fragment=""))) if location else ""
        target = re.sub(r"//[^/@]*@", "//", target)
        return f"{phrase}. It leads to {target or 'nowhere'}, perhaps a login page; that is not followed."
    return phrase


def _snapshot(stats: dict[str, Any], health: dict[str, Any], process: str) -> Snapshot | None:
    each = stats.get("pools")
    listed = each if isinstance(each, list) else [stats]
    pools: dict[str, Mapping[str, Any]] = {}
    for numbers in listed:
        if not isinstance(numbers, dict) or not all(_is_number(numbers.get(key)) for key in NEEDED):
            return None
        name = printable(numbers.get("name", "default"))
        while name in pools:
            name += "'"  # two pools of one name are two pools
        pools[name] = _cleaned(numbers)
    told = health.get("pools")
    parts = [part for part in told if isinstance(part, dict)] if isinstance(told, list) else []
    states = {printable(part.get("name", "")): _state(part) for part in parts}
    status, message = _state(health)
    return Snapshot(process, time.monotonic(), status, message, pools, states)


def _state(document: Mapping[str, Any]) -> tuple[str, str]:
    status = document.get("status")
    return status if status in STATUSES else "unknown", printable(document.get("message", ""))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _cleaned(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, and tables of numbers by label; nothing else."""
    found: dict[str, Any] = {}
    for key, value in numbers.items():
        if _is_number(value):
            found[printable(key)] = value
        elif isinstance(value, dict):
            found[printable(key)] = {printable(k): v for k, v in value.items() if _is_number(v)}
    return found
