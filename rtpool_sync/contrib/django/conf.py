"""What Django's settings say about the pools.

``settings`` is looked up when it is needed, not when this module is imported:
dynaconf's extension replaces the object while the settings module is being read.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from ...config import PoolConfig
from ...errors import ConfigError
from ...protocols.base import Protocol
from ...settings import FILES_VARIABLE, POOLS_KEY, load_with_sources, pool_names

__all__ = [
    "FILES_KEY",
    "GUARD_KEY",
    "OWN_KEYS",
    "PROTOCOL",
    "UnknownPool",
    "Values",
    "files",
    "guard",
    "lookup",
    "names",
    "protocol",
    "read",
]

FILES_KEY = "REALTIME_SETTINGS_FILES"
GUARD_KEY = "REALTIME_MONITORING_GUARD"
#: The settings of this application, besides those that every pool knows.
OWN_KEYS = (POOLS_KEY, FILES_KEY, GUARD_KEY)
#: What a pool's table may hold that is no field of PoolConfig.
PROTOCOL = "PROTOCOL"


class UnknownPool(ConfigError, KeyError):
    """There is no pool of this name in the settings."""

    __str__ = Exception.__str__  # a KeyError would print the text in quotes


class Values:
    """Django's settings in the form that :func:`rtpool_sync.settings.load` reads.

    Args:
        without: Pool → keys of its table to leave out, and of anything but a dict all of it. For the
            checks, which have reported it.
    """

    def __init__(self, without: Mapping[str, set[str]] | None = None) -> None:
        self._without = without

    def get(self, key: str) -> Any:
        value = lookup(key)
        if key != POOLS_KEY:
            return value
        if not isinstance(value, Mapping):
            return value if self._without is None else None
        return {name: self._table(name, table) for name, table in value.items()}

    def _table(self, name: str, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table if self._without is None else {}
        left_out = (self._without or {}).get(name, ())
        return {key: table[key] for key in table if str(key).upper() != PROTOCOL and key not in left_out}


def names() -> list[str]:
    """The names of the pools, ``default`` first."""
    return pool_names(settings=Values(), files=files())


def read(name: str, values: Values | None = None) -> tuple[PoolConfig, dict[str, str]]:
    """The settings of a pool, and where each comes from.

    Raises:
        UnknownPool: No table has that name.
        ConfigError: A setting cannot be used.
    """
    if name != "default":
        known = names()
        if name not in known:
            raise UnknownPool(_unknown(name, known))
    return load_with_sources(name, settings=values or Values(), files=files())


def _unknown(name: object, known: list[str]) -> str:
    shown = repr(name) if isinstance(name, str) and len(name) <= 60 else f"of type {type(name).__name__}"
    close = difflib.get_close_matches(str(name), known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no pool {shown} in {POOLS_KEY}{meant}; there are: {', '.join(known)}"


def files() -> list[str] | tuple[()] | None:
    """The settings files to read, ``None`` for the usual ones.

    Raises:
        ConfigError: The setting is no list of paths.
    """
    named = lookup(FILES_KEY)
    if named is not None:
        paths = [named] if isinstance(named, (str, os.PathLike)) else named
        if not isinstance(paths, (list, tuple)) or not all(isinstance(p, (str, os.PathLike)) for p in paths):
            raise ConfigError(f"{FILES_KEY} must be a path or a list of paths, not {type(named).__name__}")
        return [os.fspath(path) for path in paths]
    if os.environ.get(FILES_VARIABLE) or not _is_dynaconf():
        return None
    # Dynaconf has read settings.toml for Django already, for an environment that it chooses its own way
    # (DJANGO_ENV): to read it once more might add the settings of another one.
    return ()


def protocol(name: str) -> str | Protocol:
    """The protocol of a pool: ``"realtime"``, ``"plain"``, or what a dotted path leads to.

    Raises:
        ConfigError: It is none of these.
    """
    pools = lookup(POOLS_KEY)
    table = pools.get(name) if isinstance(pools, Mapping) else None
    value = None
    if isinstance(table, Mapping):
        value = next((table[key] for key in table if str(key).upper() == PROTOCOL), None)
    if value is None:
        return "realtime"
    where = f"{POOLS_KEY}[{name!r}][{PROTOCOL!r}]"
    if isinstance(value, str) and "." in value:
        value = imported(value, where)
    if inspect.isclass(value) and issubclass(value, Protocol):
        value = value()
    if isinstance(value, Protocol) or value in ("realtime", "plain"):
        return value
    raise ConfigError(
        f"{where} must be 'realtime', 'plain', or the dotted path of a Protocol, not {_shown(value)}"
    )


def guard() -> Any:
    """Who may see the monitoring: a callable, or ``None`` for everybody.

    Raises:
        ConfigError: It is neither a callable nor the dotted path of one.
    """
    value = lookup(GUARD_KEY)
    if isinstance(value, str):
        value = imported(value, GUARD_KEY)
    if value is not None and not callable(value):
        raise ConfigError(f"{GUARD_KEY} must be a callable or the dotted path of one, not {_shown(value)}")
    return value


def imported(path: str, where: str) -> Any:
    """What a dotted path leads to.

    Raises:
        ConfigError: It leads nowhere.
    """
    from django.utils.module_loading import import_string

    try:
        return import_string(path)
    except ImportError as error:
        raise ConfigError(f"{where}: {error}") from error


def lookup(key: str) -> Any:
    """One of Django's settings, ``None`` if it is not set."""
    from django.conf import settings

    return getattr(settings, key, None)


def _is_dynaconf() -> bool:
    from django.conf import settings

    return type(settings).__module__.partition(".")[0] == "dynaconf"


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) and len(value) <= 60 else f"a {type(value).__name__}"
