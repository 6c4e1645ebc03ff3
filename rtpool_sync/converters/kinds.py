"""Settings that are one number or one text: strict converters, one per kind.

A converter raises :class:`Refused` with a reason that is safe to print. The
offending value travels beside the reason, because only the caller knows every
secret that has to be masked in it.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from .masking import Secret, Shown, masked_url, show

__all__ = [
    "API_KEY",
    "CA_FILE",
    "Kind",
    "Refused",
    "check_key",
    "header_text",
    "seconds",
    "url",
    "whole",
    "word",
]


_NO_VALUE = object()


class Refused(ValueError):
    """A value cannot be used.

    Attributes:
        reason: Why, without the value: "must be …".
        value: The value, if it may be shown (see :func:`show`).
        note: More about the value, without quoting it.
    """

    def __init__(self, reason: str, value: Any = _NO_VALUE, note: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.value = value
        self.note = note

    def text(self, secrets: Iterable[str] = ()) -> str:
        """The reason, and the value with all ``secrets`` masked."""
        text = self.reason if self.value is _NO_VALUE else f"{self.reason}, not {show(self.value, secrets)}"
        return f"{text} ({self.note})" if self.note else text


@dataclass(frozen=True)
class Kind:
    """A kind of setting.

    Attributes:
        allowed: What is allowed, as words for messages and documentation.
        convert: Takes anything, returns the value or raises :class:`Refused`.
        text: Whether the value is text: then a number that a settings reader made of it is turned back.
    """

    allowed: str
    convert: Callable[[Any], Any]
    text: bool = False


# -- numbers ------------------------------------------------------------------

# int() and float() alone would take "1_000", "infinity" and digits of other scripts.
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?")

#: Largest number where no other limit is set: what JSON numbers hold everywhere.
LARGEST = 2**53 - 1
#: Longest time that can be set, in seconds: lock and socket waits overflow not far above.
LONGEST = 1_000_000_000


def whole(low: int, high: int | None = None) -> Kind:
    """A whole number, or text that is one."""
    allowed = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"
    limit = LARGEST if high is None else high

    def convert(value: Any) -> int:
        number: int | None = None
        if isinstance(value, str):
            if _WHOLE.fullmatch(value.strip()):
                number = int(value.strip())
        elif not isinstance(value, bool):
            try:
                number = operator.index(value)
            except TypeError:
                pass
        if number is None or not low <= number <= limit:
            raise Refused(f"must be {allowed}", value)
        return number

    return Kind(allowed, convert)


def seconds(*, zero: bool = False) -> Kind:
    """A time in seconds, or text that is one; 0 only where it has a meaning."""
    allowed = f"a number of seconds, {'0 or more' if zero else 'more than 0'}, at most {LONGEST}"

    def convert(value: Any) -> float:
        number = math.nan
        if isinstance(value, str):
            if _NUMBER.fullmatch(value.strip()):
                number = float(value.strip())
        elif not isinstance(value, bool) and isinstance(value, (numbers.Real, Decimal)):
            try:
                number = float(value)
            except (OverflowError, ValueError):
                pass
        if not (0 <= number <= LONGEST) or (number == 0 and not zero):  # nan compares false
            raise Refused(f"must be {allowed}", value)
        return number

    return Kind(allowed, convert)


# -- texts --------------------------------------------------------------------


def plain_text(value: Any, allowed: str) -> str:
    """Return a text of whatever class as a plain ``str``; refuse all else."""
    if not isinstance(value, str):
        raise Refused(f"must be {allowed}", value)
    return str.__str__(value)  # plain, also of a Secret or an Enum


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value)


def _control(text: str) -> bool:
    return any(char < " " or char == "\x7f" for char in text)


def word(what: str) -> Kind:
    """A text without spaces, never empty."""

    def convert(value: Any) -> str:
        text = plain_text(value, what)
        if not text or text.split() != [text] or not text.isprintable():
            raise Refused(f"must be {what}, without spaces", value)
        return text

    return Kind(what, convert, text=True)


def header_value(text: str, what: str) -> str:
    # The value is never shown: what carries a forged header may carry a key as well.
    if _control(text):
        raise Refused(f"{what} must not contain line breaks or other control characters (value not shown)")
    if text != text.strip():
        raise Refused(f"{what} must not begin or end with spaces (value not shown)")
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        pass
    else:
        return text
    raise Refused(f"{what} must be Latin-1 text, as HTTP headers are (value not shown)")


def header_text(what: str) -> Kind:
    """A text that is sent as the value of an HTTP header; empty means none."""

    def convert(value: Any) -> str | None:
        if _absent(value):
            return None
        return header_value(plain_text(value, what), what)

    return Kind(f"{what}, or none", convert, text=True)


def check_key(text: str) -> Secret:
    """Return the API key ``text`` as a secret, or refuse it without showing it."""
    if text[:7].lower() == "bearer ":
        raise Refused("the key must be given without 'Bearer' before it (value not shown)")
    header_value(text, "the key")
    if not text or " " in text:
        raise Refused("the key must not be empty or contain spaces (value not shown)")
    return Secret(text)


def _api_key(value: Any) -> Any:
    if _absent(value):
        return None
    if isinstance(value, str):
        return check_key(plain_text(value, "text"))
    if callable(value):
        return value
    raise Refused(f"must be {API_KEY.allowed} (value of type {type(value).__name__} not shown)")


API_KEY = Kind("the key as text, or a callable without arguments that returns it", _api_key, text=True)


def _ca_file(value: Any) -> str | None:
    if _absent(value):
        return None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    path = plain_text(value, CA_FILE.allowed)
    if "\0" in path or not os.path.isfile(path):
        raise Refused("must be the path of an existing file", value)
    return path


CA_FILE = Kind("the path of a file of PEM certificates, or none", _ca_file, text=True)

# -- URLs ---------------------------------------------------------------------

_URL_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]*")
_SCHEMES = ("ws", "wss", "http", "https")


def url(*, optional: bool) -> Kind:
    """An absolute ``ws``, ``wss``, ``http`` or ``https`` URL."""
    allowed = "a ws://, wss://, http:// or https:// URL" + (", or none" if optional else "")

    def convert(value: Any) -> str | None:
        if optional and _absent(value):
            return None
        text = plain_text(value, allowed)
        reason = _fault_of_url(text)
        if reason is None:
            return text
        # What does not look like a URL is shown only if it is short: it may be a key in the wrong place.
        shown = masked_url(text)
        if "://" in shown and shown.isprintable():
            shown = Shown(shown)
        raise Refused(f"must be {allowed}", shown, reason)

    return Kind(allowed, convert, text=True)


def _fault_of_url(text: str) -> str | None:
    if not text:
        return "it is empty"
    if not _URL_CHARACTERS.fullmatch(text):
        return "it has characters that must be percent-encoded (a host name beyond ASCII: in its xn-- form)"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "its host or port is malformed"
    if parts.scheme not in _SCHEMES:
        return "it has another scheme, or none"
    if not host:
        return "it has no host"
    if port == 0:
        return "its port is 0"
    if "#" in text:
        return "it has a fragment (#)"
    return None
