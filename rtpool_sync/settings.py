"""Where the settings of a pool come from: files, environment, the application, keyword arguments.

The last source that names a setting wins:

1. the defaults,
2. ``settings.toml`` and ``.secrets.toml`` in the working directory, or the
   files named by ``RTPOOL_SETTINGS_FILES`` (read with dynaconf),
3. environment variables,
4. the application's own settings, if they are passed in,
5. keyword arguments.

For the pool named ``default`` that is all. For any other name the table
``realtime_pools.NAME``, in a file or in the application's settings, comes
before the general settings of 2 to 4, because it is more specific.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from .config import (
    RETIRED_MODELS,
    SETTINGS,
    PoolConfig,
    PoolOptions,
    Secret,
    Setting,
    config_error,
    hide_secrets,
    plain_secrets,
    unknown_field,
)
from .errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["load", "load_with_sources", "places", "pool_names"]

logger = logging.getLogger("rtpool_sync")

#: Read from the working directory, and from nowhere else, when no files are named.
DEFAULT_FILES = ("settings.toml", ".secrets.toml")
FILES_VARIABLE = "RTPOOL_SETTINGS_FILES"
POOLS_KEY = "REALTIME_POOLS"

#: Key in files and in an application's settings, in capitals → setting. A later key of a setting is stronger.
KEYS: Mapping[str, Setting] = {key: setting for setting in SETTINGS.values() for key in setting.keys}

Files = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def load(
    name: str = "default",
    *,
    settings: Any = None,
    files: Files | None = None,
    **overrides: Unpack[PoolOptions],
) -> PoolConfig:
    """Read the settings of one pool.

    Args:
        name: The pool. Without a table of that name the general settings apply.
        settings: The application's own settings: a mapping (Flask's
            ``app.config``), a Dynaconf object, or an object with attributes
            (Django's ``settings``).
        files: TOML files to read instead of the default ones; ``()`` for none.
        **overrides: Any field of :class:`PoolConfig`. Wins over everything.

    Raises:
        ConfigError: A value is not allowed, a keyword or a field of the pool's
            table is unknown, a named file is missing, or a file cannot be
            read. Everything found is in the one message.
    """
    outcome = _resolve(name, settings, files, cast("dict[str, Any]", overrides))
    if isinstance(outcome, ConfigError):
        # Error reporters print the variables of every frame: leave no value behind in this one.
        settings = None
        overrides.clear()  # type: ignore[attr-defined]
        raise outcome
    return outcome[0]


def load_with_sources(
    name: str = "default",
    *,
    settings: Any = None,
    files: Files | None = None,
    **overrides: Unpack[PoolOptions],
) -> tuple[PoolConfig, dict[str, str]]:
    """Do the same as :func:`load`, and say for every field where its value comes from.

    Returns:
        The config, and field → source: ``"default"``, ``"argument min_idle"``,
        ``"environment variable OPENAI_API_KEY"``,
        ``"settings.toml [production] websocket_url"`` and the like.

    Raises:
        ConfigError: As :func:`load` does.
    """
    outcome = _resolve(name, settings, files, cast("dict[str, Any]", overrides))
    if isinstance(outcome, ConfigError):
        settings = None
        overrides.clear()  # type: ignore[attr-defined]
        raise outcome
    return outcome


def pool_names(*, settings: Any = None, files: Files | None = None) -> list[str]:
    """Return ``default`` and the pools that have a table of their own, in files or in ``settings``.

    Args and what is read are as for :func:`load`; faults are its business too, and pass in silence here.
    """
    names = {"default": None}
    tables = [
        section[key]
        for path in _paths(files, [])
        for document in _parsed(path, [])
        for _, section in _sections(path, document)
        for key in section
        if key.upper() == POOLS_KEY
    ]
    if settings is not None:
        tables.append(_lookup(settings, POOLS_KEY))
    for table in tables:
        if isinstance(table, Mapping):
            names.update(
                (name, None) for name in table if isinstance(name, str) and not name.startswith("dynaconf_")
            )
    return list(names)


def places(files: Files | None = None) -> list[str]:
    """Return what :func:`load` reads of files: ``settings.toml``, ``settings.toml [default]`` and so on."""
    return [
        place
        for path in _paths(files, [])
        for document in _parsed(path, [])
        for place, _ in _sections(path, document)
    ]


# -- layers -------------------------------------------------------------------


@dataclass
class _Layer:
    """What one source says.

    Attributes:
        specific: Whether it was said for this one pool.
        values: Field → value.
        sources: Field → where exactly.
    """

    specific: bool = False
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    sources: dict[str, str] = field(default_factory=dict)

    def put(self, setting: Setting, value: Any, source: str) -> None:
        if setting.secret and isinstance(value, str):
            value = Secret(str.__str__(value))
        self.values[setting.name] = value
        self.sources[setting.name] = source


def _resolve(
    name: str, settings: Any, files: Files | None, overrides: dict[str, Any]
) -> tuple[PoolConfig, dict[str, str]] | ConfigError:
    """Read everything. Returns the error, does not raise it: no frame below shall be in its traceback."""
    problems: list[str] = []
    hide_secrets(overrides)
    from_files, table_in_files = _read_files(files, name, problems)
    environment = _read_environment()
    host, table_in_host = _read_host(settings, name, problems)
    keywords = _Layer(specific=True, values=overrides, sources={key: f"argument {key}" for key in overrides})
    if name == "default":
        layers = [from_files, table_in_files, environment, host, table_in_host, keywords]
    else:
        layers = [from_files, environment, host, table_in_files, table_in_host, keywords]

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    rank: dict[str, int] = {}
    for level, layer in enumerate(layers):
        values.update(layer.values)
        sources.update(layer.sources)
        rank.update(dict.fromkeys(layer.values, level))
    # A general url must not hide the base_url that was set for this pool.
    if "base_url" in rank and layers[rank["base_url"]].specific and rank.get("url", 99) < rank["base_url"]:
        records: tuple[dict[str, Any], ...] = (values, sources, rank)
        for record in records:
            record.pop("url", None)

    if name != "default" and not table_in_files.values and not table_in_host.values:
        _warn_of_name(name, pool_names(settings=settings, files=files))
    ambient = {key for key, level in rank.items() if not layers[level].specific}
    config, faults = PoolConfig.check(
        values, sources, ambient, plain_secrets(*(layer.values for layer in layers))
    )
    if config is None or problems:
        return config_error(problems + faults)
    if config.model in RETIRED_MODELS:
        day, instead = RETIRED_MODELS[config.model]
        logger.warning(
            "%s: the model %s was shut down on %s; use %s",
            sources.get("model", "model"),
            config.model,
            day,
            instead,
        )
    told = {key: sources.get(key, "default") for key in SETTINGS}
    if (
        told["min_session_time"] == "default"
        and config.min_session_time < SETTINGS["min_session_time"].default
    ):
        told["min_session_time"] = "default, at most half of max_connection_age"
    return config, told


# -- environment --------------------------------------------------------------


def _read_environment() -> _Layer:
    """The environment, as text: dynaconf would make numbers of keys and evaluate ``@format``."""
    layer = _Layer()
    for setting in SETTINGS.values():
        text = os.environ.get(setting.env) if setting.env else None
        if text is None or (setting.kind.text and not text):
            continue  # a text that is set but empty (FOO= in a compose file) counts as not set
        layer.put(setting, text, f"environment variable {setting.env}")
    for key in os.environ:
        if key.startswith("WEBSOCKET_"):
            _warn_of_slip("environment variable", key)
    return layer


def _warn_of_slip(place: str, key: str) -> None:
    """Log a name that is nearly one of ours. It may be another program's, so it is no error."""
    if key.upper() not in KEYS and key.upper() != POOLS_KEY:
        close = difflib.get_close_matches(key.upper(), [*KEYS, POOLS_KEY], n=1, cutoff=0.93)
        if close:
            logger.warning("%s %s is not a setting of rtpool_sync; did you mean %s?", place, key, close[0])


def _warn_of_name(name: str, tables: list[str]) -> None:
    """Log the name of a pool that is nearly that of a table. To have none is no error: see :func:`load`."""
    close = difflib.get_close_matches(name, tables, n=1, cutoff=0.8)
    if close and name not in tables and close[0].strip("0123456789") != name.strip("0123456789"):
        logger.warning("pool %r has no table of its own; did you mean %r?", name, close[0])


# -- files --------------------------------------------------------------------


def _read_files(files: Files | None, name: str, problems: list[str]) -> tuple[_Layer, _Layer]:
    """The general settings in the files, and the table of the pool called ``name``."""
    documents = [
        (path, document)
        for path in _paths(files, problems)
        for document in _parsed(path, problems)
        if document
    ]
    if not documents:
        return _Layer(), _Layer(specific=True)
    general = _Merged()
    table = _Merged(specific=True)
    for path, document in documents:
        for place, section in _sections(path, document):
            merge = section.get("dynaconf_merge")
            for key in sorted(section, key=_strength):
                if key.upper() in KEYS:
                    general.feed(KEYS[key.upper()], section[key], f"{place} {key}".strip(), merge, problems)
                elif key.upper() == POOLS_KEY:
                    where = f"{path} [{key}" if place == path else f"{place[:-1]}.{key}"
                    for pool_key, setting, value in _table_of(section[key], name, where + "]", problems):
                        table.feed(setting, value, f"{where}.{name}] {pool_key}", merge, problems)
                elif place != path or not isinstance(section[key], dict):
                    _warn_of_slip(place, key)
    return general.layer(problems), table.layer(problems)


def _paths(files: Files | None, problems: list[str]) -> list[str]:
    if files is None:
        named = os.environ.get(FILES_VARIABLE)
        if not named:
            # By relative name: not looked for in the directories above, and no fault if there is none.
            return [path for path in DEFAULT_FILES if os.path.isfile(path)]
        files = [part.strip() for part in re.split(f"[,{re.escape(os.pathsep)}]", named) if part.strip()]
        source = f"environment variable {FILES_VARIABLE}"
    else:
        files = [files] if isinstance(files, (str, os.PathLike)) else list(files)
        source = "argument files"
    paths = []
    for path in (os.path.expanduser(os.fspath(file)) for file in files):
        if not path.endswith(".toml"):
            problems.append(f"{source}: {path} is not a .toml file")
        elif not os.path.isfile(path):
            problems.append(f"{source}: there is no file {path}")
        else:
            paths.append(path)
    return paths


def _parsed(path: str, problems: list[str]) -> list[dict[str, Any]]:
    """The content of a TOML file, or nothing and a problem."""
    # The parser that dynaconf uses, called here because dynaconf's own errors do not name the file.
    from dynaconf.vendor import tomllib  # type: ignore[import-untyped]

    try:
        with open(path, "rb") as file:
            return [tomllib.load(file)]
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: not TOML: {error}")
    except UnicodeDecodeError:
        problems.append(f"{path}: not UTF-8 text")
    except OSError as error:
        problems.append(f"{path}: {error.strerror or type(error).__name__}")
    return []


def _sections(path: str, document: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """The parts of a file that apply, weakest first: keys outside tables, then dynaconf's environments."""
    yield path, document
    tables = {key.lower(): (key, value) for key, value in document.items() if isinstance(value, dict)}
    current = os.environ.get("ENV_FOR_DYNACONF") or "development"
    names = ["default", *(part.strip().lower() for part in current.split(",")), "global"]
    for name in dict.fromkeys(names):
        if name in tables:
            key, table = tables[name]
            yield f"{path} [{key}]", {"dynaconf_merge": document.get("dynaconf_merge"), **table}


def _strength(key: str) -> int:
    """Sorts the names of one setting, the strongest last."""
    setting = KEYS.get(key.upper())
    return setting.keys.index(key.upper()) if setting else 0


def _table_of(tables: Any, name: str, where: str, problems: list[str]) -> Iterable[tuple[str, Setting, Any]]:
    """The entries of one pool in ``realtime_pools``: key as written, setting, value."""
    if not isinstance(tables, Mapping):
        problems.append(f"{where}: must be a table of pools, each a table of settings")
        return
    table = tables.get(name)
    if table is None:
        return
    if not isinstance(table, Mapping):
        problems.append(f"{where} {name}: must be a table of settings")
        return
    for key in table:
        field_name = str(key).lower()
        if field_name in SETTINGS:
            yield str(key), SETTINGS[field_name], table[key]
        elif not field_name.startswith("dynaconf_"):
            problems.append(unknown_field(key, f"{where} {name}"))


class _Merged:
    """The settings of several files, one on top of the other: by dynaconf, with all it can do in files.

    ``@format`` and its kin, ``dynaconf_merge``. The object reads nothing itself:
    its loaders would obey a dozen environment variables that are meant for the
    application's own (SETTINGS_FILE_FOR_DYNACONF, PRELOAD_FOR_DYNACONF…).
    """

    def __init__(self, *, specific: bool = False) -> None:
        from dynaconf import Dynaconf  # type: ignore[import-untyped]

        self._specific = specific
        self._sources: dict[str, str] = {}
        self._dynaconf = Dynaconf(
            dynaconf_skip_loaders=True, dynaconf_skip_validators=True, load_dotenv=False
        )

    def feed(self, setting: Setting, value: Any, source: str, merge: Any, problems: list[str]) -> None:
        """Put a value on top of what earlier files say."""
        earlier = self._leaves(setting.name) - set(_leaves(value))  # dynaconf will write into value
        try:
            self._dynaconf.set(setting.name, value, merge=bool(merge), dotted_lookup=False, validate=False)
        except Exception as error:  # a converter of dynaconf refused it: "@int twenty"
            problems.append(f"{source}: dynaconf cannot read it ({type(error).__name__})")
        else:
            merged = earlier & self._leaves(setting.name)
            self._sources[setting.name] = f"{self._sources[setting.name]} and {source}" if merged else source

    def _leaves(self, name: str) -> set[tuple[str, ...]]:
        try:
            return set(_leaves(self._dynaconf.get(name)))
        except Exception:  # what cannot be evaluated is told of later
            return set()

    def layer(self, problems: list[str]) -> _Layer:
        layer = _Layer(specific=self._specific)
        for name, source in self._sources.items():
            try:
                value = _without_boxes(self._dynaconf.get(name))
            except Exception as error:  # "@format {env[MISSING]}" is evaluated only here
                problems.append(f"{source}: dynaconf cannot evaluate it ({type(error).__name__})")
            else:
                layer.put(SETTINGS[name], _as_text(SETTINGS[name], value), source)
        return layer


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    """The paths of the entries of a table that are no tables."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], (*path, str(key)))
    elif path:
        yield path


def _without_boxes(value: Any) -> Any:
    """A value of dynaconf as plain dicts and lists, without its instructions."""
    if isinstance(value, Mapping):
        # By key: items() of a box gives "@format …" unevaluated.
        return {
            key: _without_boxes(value[key])
            for key in value
            if key not in ("dynaconf_merge", "dynaconf_merge_unique")
        }
    if isinstance(value, (list, tuple)):
        return [_without_boxes(value[index]) for index in range(len(value))]
    return value


def _as_text(setting: Setting, value: Any) -> Any:
    """Turn a number back into the text it was, where text is wanted: a key may well consist of digits."""
    return str(value) if setting.kind.text and type(value) is int else value


# -- the application's settings -----------------------------------------------


def _read_host(settings: Any, name: str, problems: list[str]) -> tuple[_Layer, _Layer]:
    general, table = _Layer(), _Layer(specific=True)
    if settings is None:
        return general, table
    if isinstance(settings, (str, bytes, os.PathLike, int, float, list, tuple, set)):
        problems.append(
            f"argument settings: must be a mapping, a Dynaconf object or an object with attributes, "
            f"not a {type(settings).__name__}; files are named by files="
        )
        return general, table
    for key, setting in KEYS.items():
        value = _lookup(settings, key)
        if value is None or (setting.kind.text and value == ""):
            continue  # os.environ.get("…") in a settings module: not set
        value = _as_text(setting, _before_cast(settings, key, setting, value))
        general.put(setting, _without_boxes(value), f"application setting {key}")
    if isinstance(settings, Mapping):
        for key in [key for key in settings if str(key).startswith(("REALTIME_", "WEBSOCKET_"))]:
            _warn_of_slip("application setting", key)
    pools = _lookup(settings, POOLS_KEY)
    if pools is not None:
        where = f"application setting {POOLS_KEY}"
        for key, setting, value in _table_of(pools, name, where, problems):
            table.put(setting, _as_text(setting, _without_boxes(value)), f"{where} {name} {key}")
    return general, table


def _lookup(settings: Any, key: str) -> Any:
    """The value of ``key``, in capitals or not, or ``None``."""
    get = getattr(settings, "get", None)
    if not callable(get):
        return getattr(settings, key, None)
    value = get(key)
    if value is None:
        value = get(key.lower())
    return value


def _before_cast(settings: Any, key: str, setting: Setting, value: Any) -> Any:
    """The text from which an application's Dynaconf made a number, if it was in the environment."""
    if not setting.kind.text or not isinstance(value, (int, float)):
        return value
    prefixes = _lookup(settings, "ENVVAR_PREFIX_FOR_DYNACONF")
    for prefix in str(prefixes or "").split(","):
        text = os.environ.get(f"{prefix.strip().upper()}_{key}" if prefix.strip() else key)
        if text is not None:
            return text
    return value
