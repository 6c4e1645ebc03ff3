"""System checks: what is wrong with the settings, before anybody waits for a connection.

====================  =====================================================================
rtpool.E001           REALTIME_POOLS, or a pool in it, is no dict
rtpool.E002           a pool's name cannot be used
rtpool.E003           a pool has a setting that does not exist
rtpool.E004           a value cannot be used, wherever it comes from
rtpool.E005           a pool's PROTOCOL cannot be used
rtpool.E006           REALTIME_MONITORING_GUARD cannot be used
rtpool.E007           REALTIME_SETTINGS_FILES cannot be used
rtpool.W001           there is no API key
rtpool.W002           REALTIME_POOLS has no pool "default"
rtpool.W003           the connection, and the key with it, is not encrypted
rtpool.W004           the model has been shut down
rtpool.W005           a setting whose name is nearly one of ours
rtpool.W006           anybody can see the monitoring pages (``check --deploy``)
====================  =====================================================================

That there is no key is a warning: ``migrate``, and whatever else a build runs,
shall work where no key is. No message holds a key.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from django.core import checks

from ...config import RETIRED_MODELS, SETTINGS, PoolConfig, unknown_field
from ...errors import ConfigError
from ...settings import KEYS, POOLS_KEY
from . import conf

__all__ = ["TAG", "check_deployment", "check_settings", "register"]

TAG = "realtime"

_WHERE = "`manage.py realtime config` shows every setting in force and where it comes from."


def register() -> None:
    """Have Django run the checks."""
    checks.register(check_settings, TAG)
    checks.register(check_deployment, TAG, checks.Tags.security, deploy=True)


def check_settings(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Everything that can be said without opening anything."""
    found = [*_misspelled(), *_guard(), *_files()]
    tables, unusable = _tables(found)
    if any(message.id == "rtpool.E007" for message in found):
        return found
    names = [name for name in conf.names() if _name_fault(name) is None]
    if tables and "default" not in tables and "default" not in _from_files():
        found.append(
            checks.Warning(
                f"{POOLS_KEY} has no pool 'default'",
                hint="Until it has, connection() and pools['default'] have only the general settings "
                "(environment, settings files). Call the pool that most of your code uses 'default'.",
                id="rtpool.W002",
            )
        )
    problems: dict[str, None] = {}
    for name in names:
        try:
            protocol = conf.protocol(name)
        except ConfigError as error:
            found.append(
                checks.Error(
                    str(error),
                    hint="Without it the protocol is 'realtime'. For another vendor give the "
                    "dotted path of a subclass of rtpool_sync.protocols.base.Protocol.",
                    id="rtpool.E005",
                )
            )
            continue
        try:
            config, sources = conf.read(name, conf.Values(without=unusable))
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))  # what is general is wrong for each pool
            continue
        found += _of_pool(
            name, config, sources, needs_key=getattr(protocol, "needs_key", protocol == "realtime")
        )
    found += [checks.Error(problem, hint=_WHERE, id="rtpool.E004") for problem in problems]
    return found


def check_deployment(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """What matters in production only."""
    from django.urls import NoReverseMatch, reverse

    try:
        place = reverse("realtime:status")
    except NoReverseMatch:
        return []
    except Exception:  # an URLconf that cannot be imported has a check of its own
        return []
    if conf.lookup(conf.GUARD_KEY) is not None:
        return []
    return [
        checks.Warning(
            f"Anybody can see the monitoring pages at {place}",
            hint=f"Set {conf.GUARD_KEY} to a function that takes a request and says whether it may, such as "
            '"rtpool_sync.contrib.django.guards.staff"; or silence this if a proxy keeps strangers out.',
            id="rtpool.W006",
        )
    ]


# -- the shape of the settings


def _tables(found: list[checks.CheckMessage]) -> tuple[dict[Any, Any], dict[str, set[str]]]:
    """The tables of REALTIME_POOLS; and pool → keys that were reported and are not to be reported again."""
    pools = conf.lookup(POOLS_KEY)
    if pools is None:
        return {}, {}
    shape = f'It looks like DATABASES: {POOLS_KEY} = {{"default": {{"MAX_CONNECTIONS": 20}}}}.'
    if not isinstance(pools, Mapping):
        text = f"{POOLS_KEY} must be a dict of pools, not a {type(pools).__name__}"
        found.append(checks.Error(text, hint=shape, id="rtpool.E001"))
        return {}, {}
    unusable: dict[str, set[str]] = {}
    for name, table in pools.items():
        fault = _name_fault(name)
        if fault is not None:
            hint = "A pool's name appears in metrics and logs; use letters, digits, '_', '-', '.'."
            found.append(checks.Error(f"{POOLS_KEY}: {fault}", hint=hint, id="rtpool.E002"))
            continue
        where = f"{POOLS_KEY}[{name!r}]"
        if not isinstance(table, Mapping):
            text = f"{where} must be a dict of settings, not a {type(table).__name__}"
            found.append(checks.Error(text, hint=shape, id="rtpool.E001"))
            unusable[name] = set()
            continue
        for key in table:
            known = str(key).lower() in SETTINGS or str(key).upper() == conf.PROTOCOL
            if known or str(key).lower().startswith("dynaconf_"):
                continue
            text = unknown_field(key, where)
            names = ", ".join([*(field.upper() for field in SETTINGS), conf.PROTOCOL])
            found.append(checks.Error(text, hint=f"The settings of a pool: {names}.", id="rtpool.E003"))
            unusable.setdefault(name, set()).add(key)
    return dict(pools), unusable


def _name_fault(name: object) -> str | None:
    if not isinstance(name, str):
        return f"the name of a pool must be text, not a {type(name).__name__}"
    if (
        not name
        or len(name) > 60
        or not name.isprintable()
        or any(c.isspace() or c in "/\\\"'" for c in name)
    ):
        return f"{name[:60]!r} cannot be the name of a pool"
    return None


def _from_files() -> list[str]:
    from ...settings import pool_names

    return [name for name in pool_names(files=conf.files()) if name != "default"]


def _files() -> Iterator[checks.CheckMessage]:
    hint = f"{conf.FILES_KEY} is a list of TOML files, for example [BASE_DIR / 'settings.toml']."
    try:
        files = conf.files()
    except ConfigError as error:
        yield checks.Error(str(error), hint=hint, id="rtpool.E007")
        return
    if conf.lookup(conf.FILES_KEY) is None:
        return
    for path in files or ():
        if not os.path.isfile(path):
            yield checks.Error(f"{conf.FILES_KEY}: there is no file {path}", hint=hint, id="rtpool.E007")


def _guard() -> Iterator[checks.CheckMessage]:
    try:
        conf.guard()
    except ConfigError as error:
        hint = "It is called with the request: True lets it in, False refuses, a response is sent as it is."
        yield checks.Error(str(error), hint=hint, id="rtpool.E006")


def _misspelled() -> Iterator[checks.CheckMessage]:
    from django.conf import settings

    ours = {*KEYS, *conf.OWN_KEYS}
    for name in sorted(set(dir(settings))):
        if name.isupper() and name not in ours and name.startswith(("REALTIME_", "WEBSOCKET_", "OPENAI_")):
            close = difflib.get_close_matches(name, ours, n=1, cutoff=0.9)
            if close:
                yield checks.Warning(
                    f"{name} is not a setting of rtpool_sync",
                    hint=f"Did you mean {close[0]}?",
                    id="rtpool.W005",
                )


# -- one pool


def _of_pool(
    name: str, config: PoolConfig, sources: Mapping[str, str], *, needs_key: bool
) -> Iterator[checks.CheckMessage]:
    if needs_key:
        try:
            config.require_key()
        except ConfigError:
            yield checks.Warning(
                f"Pool {name!r} has no API key: every checkout will fail",
                hint="Set the variable OPENAI_API_KEY, or the setting of that name, or API_KEY of "
                f"{POOLS_KEY}[{name!r}]; a callable is asked whenever a connection is opened.",
                id="rtpool.W001",
            )
    parts = urlsplit(config.connect_url)
    if parts.scheme == "ws" and not _is_here(parts.hostname or ""):
        source = sources["url" if config.url else "base_url"]
        yield checks.Warning(
            f"Pool {name!r} connects without encryption to {config.redacted_url} ({source})",
            hint="Use a wss:// or https:// URL: on the way anybody can read the API key and what is said.",
            id="rtpool.W003",
        )
    if not config.url and config.model in RETIRED_MODELS:
        day, instead = RETIRED_MODELS[config.model]
        yield checks.Warning(
            f"Pool {name!r} asks for a model shut down on {day}: {config.model} ({sources['model']})",
            hint=f"Use {instead}.",
            id="rtpool.W004",
        )


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
