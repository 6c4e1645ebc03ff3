"""What keeps secrets out of messages: a text that hides itself, and masks for all other values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import redact

__all__ = ["Secret", "Shown", "masked_session", "masked_url", "show"]


class Secret(str):
    """A text that does not print itself: ``str``, ``repr`` and ``format`` give ``***``.

    It compares, hashes, pickles and copies like the text it holds;
    :meth:`reveal` returns that text.
    """

    __slots__ = ()

    def reveal(self) -> str:
        """Return the plain text."""
        return str.__str__(self)

    # The default of the oldest pickle protocols goes through str() and would keep the stars only.
    def __reduce__(self) -> tuple[Any, ...]:
        return Secret, (str.__str__(self),)

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "'***'"

    def __format__(self, spec: str) -> str:
        return format("***", spec)


class Shown(str):
    """A text made safe already, to be quoted as it is."""

    __slots__ = ()


# A mistyped number or name is short. What is longer may be a key in the wrong place.
_SHOWN_LENGTH = 24


def show(value: Any, secrets: Iterable[str] = (), *, limit: int = _SHOWN_LENGTH) -> str:
    """``repr`` of a refused value, shortened, never a secret."""
    if isinstance(value, Shown):
        return f"'{redact(str(value), *secrets)}'"
    if isinstance(value, Secret):
        return "a value that is not shown"
    if isinstance(value, str):
        text = redact(value, *secrets)
        return repr(text) if len(text) <= limit else f"a text of {len(value)} characters"
    if value is None or isinstance(value, (bool, int, float)):
        try:
            return redact(repr(value), *secrets)[:60]
        except ValueError:  # int too long for repr
            return "a huge number"
    return f"a value of type {type(value).__name__}"


# -- URLs and sessions --------------------------------------------------------

#: Query parameters that say what a URL is for; every other may be a credential.
VISIBLE_PARAMETERS = frozenset({"model", "intent", "api-version", "deployment", "call_id"})

_AUTHORITY = re.compile(r"[^/]*//(\[[0-9A-Fa-f:.]*\]|[^/:@\[\]]*)(:[0-9]*)?(/.*)?", re.DOTALL)


def masked_url(text: str) -> str:
    """Return a URL, valid or not, without user name and password and with masked query values."""
    head, mark, query = text.partition("#")[0].partition("?")
    head = re.sub(r"//[^/]*@", "//", head, count=1)
    if not _AUTHORITY.fullmatch(head):
        # Malformed: a password with a slash in it, or no scheme. Nobody knows what precedes the last @.
        head = re.sub(r"//.*@", "//", head, flags=re.DOTALL) if "//" in head else head.rpartition("@")[2]
    return redact(head + mark + re.sub(r"[^&;]+", _masked_pair, query))


def _masked_pair(match: re.Match[str]) -> str:
    name, equals, _ = match[0].partition("=")
    if not equals:
        return "***"
    return match[0] if name.lower() in VISIBLE_PARAMETERS else f"{name}=***"


_URL = re.compile(r"[A-Za-z]+://\S+\Z")
_SECRET_NAMES = ("authorization", "headers", "password", "secret", "api_key", "api-key", "apikey", "token")


def masked_session(value: Any) -> Any:
    """A session's settings without the credentials of its tools (MCP servers need them)."""
    if isinstance(value, Mapping):
        return {
            name: "***" if item and name.lower().endswith(_SECRET_NAMES) else masked_session(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [masked_session(item) for item in value]
    if isinstance(value, Secret):
        return "***"
    if isinstance(value, str):
        return masked_url(value) if _URL.match(value) else redact(value)
    return value
