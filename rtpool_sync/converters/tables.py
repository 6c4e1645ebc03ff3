"""Settings that are tables: headers and session settings, as copies that nobody can change."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from .kinds import Kind, Refused, header_value, plain_text
from .masking import Secret

__all__ = ["HEADERS", "SESSION", "FrozenDict"]


class FrozenDict(dict[str, Any]):
    """A dict that cannot be changed. Still a ``dict``, so that ``json`` and comparisons take it as one."""

    __slots__ = ()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("the settings of a pool cannot be changed; use PoolConfig.replace()")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    # pickle and copy would fill an empty dict item by item
    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)

    def __copy__(self) -> FrozenDict:
        return self


_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HANDSHAKE = frozenset(
    {"connection", "upgrade", "sec-websocket-accept", "sec-websocket-extensions"}
    | {"sec-websocket-key", "sec-websocket-version"}
)


def _headers(value: Any) -> FrozenDict:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise Refused(f"must be {HEADERS.allowed} (value of type {type(value).__name__} not shown)")
    headers: dict[str, Secret] = {}
    faults: list[str] = []
    for place, (name, text) in enumerate(value.items(), start=1):
        # A bad name is not shown either: it may be a whole line, "api-key: …".
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            faults.append(f"the name of header {place} is not an HTTP token (letters, digits, -)")
        elif name.lower() in _HANDSHAKE:
            faults.append(f"{name} is set by the WebSocket handshake itself")
        elif any(name.lower() == other.lower() for other in headers):
            faults.append(f"{name} is given twice")
        elif not isinstance(text, str):
            faults.append(f"the value of {name} must be text (value of type {type(text).__name__} not shown)")
        else:
            try:
                headers[name] = Secret(header_value(plain_text(text, ""), f"the value of {name}"))
            except Refused as refused:
                faults.append(refused.reason)
    if faults:
        raise Refused("; ".join(faults))
    return FrozenDict(headers)


HEADERS = Kind("a table of header names and their values", _headers)


def _json(value: Any, path: str, depth: int = 0) -> Any:
    """A copy of ``value`` that its owner can no longer change, of JSON types only."""
    if depth > 64:
        raise Refused(f"{path[:40]}… is nested more than 64 deep (or contains itself)")
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, float)):
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused(f"{path} must be a finite number", value)
        return value
    if isinstance(value, Mapping):
        copy: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise Refused(f"the names in {path} must be text", key)
            # A name that is no identifier is not quoted: it may be anything, also a credential.
            step = key if key.isidentifier() and len(key) <= 40 else "…"
            copy[str.__str__(key)] = _json(item, f"{path}.{step}", depth + 1)
        return FrozenDict(copy)
    if isinstance(value, (list, tuple)):
        return [_json(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise Refused(f"{path} must be of a JSON type", value)


def _session(value: Any) -> FrozenDict:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise Refused(f"must be {SESSION.allowed}", value)
    copy = _json(value, "session")
    assert isinstance(copy, FrozenDict)
    return copy


SESSION = Kind("a table of session settings, as the server takes them in session.update", _session)
