"""The settings of one pool: frozen, validated as a whole, and silent about secrets.

Every setting is declared once, as a field of :class:`PoolConfig`. :data:`SETTINGS`
is the table made from those declarations: the settings reader, ``rtpool config``
and the reference in docs/settings.md all go by it.
"""

# ruff: noqa: RUF009  (_setting() is dataclasses.field() with a name of ours)

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote, urlsplit, urlunsplit

from . import converters as convert
from .converters import FrozenDict, Kind, Refused, Secret
from .errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["RETIRED_MODELS", "SETTINGS", "PoolConfig", "PoolOptions", "Secret", "Setting"]

#: Models that no longer answer → what was said about them: the day they were shut down, what to use now.
RETIRED_MODELS: Mapping[str, tuple[str, str]] = {
    "gpt-4o-realtime-preview": ("2026-05-07", "gpt-realtime-2.1"),
    "gpt-4o-realtime-preview-2024-10-01": ("2025-10-10", "gpt-realtime-2.1"),
    "gpt-4o-realtime-preview-2024-12-17": ("2026-05-07", "gpt-realtime-2.1"),
    "gpt-4o-realtime-preview-2025-06-03": ("2026-05-07", "gpt-realtime-2.1"),
    "gpt-4o-mini-realtime-preview": ("2026-05-07", "gpt-realtime-2.1-mini"),
    "gpt-4o-mini-realtime-preview-2024-12-17": ("2026-05-07", "gpt-realtime-2.1-mini"),
}


@dataclass(frozen=True)
class Setting:
    """What is known about one field of :class:`PoolConfig`.

    Attributes:
        name: The field.
        env: Its environment variable, which is also its key in settings files; ``None`` for a table.
        default: The value when nothing is set.
        kind: Converts and checks values; ``kind.allowed`` says what it takes.
        doc: The meaning, one or two sentences.
        secret: Whether the value must never be shown.
    """

    name: str
    env: str | None
    default: Any
    kind: Kind
    doc: str
    secret: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the setting in files and in an application's settings, the strongest last."""
        own = f"REALTIME_{self.name.upper()}"
        return (own,) if self.env is None else (self.env, own)


def _setting(env: str | None, default: Any, kind: Kind, doc: str, *, secret: bool = False) -> Any:
    return field(
        default_factory=lambda: default,
        metadata={"env": env, "default": default, "kind": kind, "doc": doc, "secret": secret},
    )


class PoolOptions(TypedDict, total=False):
    """Every setting as a keyword argument: what :class:`PoolConfig` and ``RealtimePool`` accept."""

    api_key: str | Callable[[], str] | None
    model: str
    base_url: str
    url: str | None
    organization: str | None
    project: str | None
    headers: Mapping[str, str]
    session: Mapping[str, Any]
    ca_file: str | None
    max_connections: int
    min_idle: int
    max_connection_age: float
    min_session_time: float
    max_idle_time: float
    health_check_interval: float
    max_sessions_per_connection: int
    ping_interval: float
    ping_timeout: float
    close_timeout: float
    checkout_timeout: float
    connect_timeout: float
    reset_timeout: float
    max_waiting: int
    max_message_size: int
    leak_threshold: float


# Order: what to connect to, how many, how long a connection lives, how long to wait, limits.
@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class PoolConfig:
    """The settings of one pool.

    ``PoolConfig(max_connections=5, …)`` takes any of the fields below as a
    keyword and reads nothing else: neither the environment nor a file
    (:func:`rtpool_sync.settings.load` does). Times are in seconds, sizes in
    bytes. Texts are converted to the numbers they spell.

    Raises:
        ConfigError: A keyword is unknown or a value is not allowed; all faults
            are in the one message.
    """

    api_key: Secret | Callable[[], str] | None = _setting(
        "OPENAI_API_KEY",
        None,
        convert.API_KEY,
        "API key, sent as `Authorization: Bearer`. A callable is asked for it whenever a connection is "
        "opened. Required, but for a plain protocol or where `headers` holds the credential.",
        secret=True,
    )
    model: str = _setting(
        "OPENAI_REALTIME_MODEL", "gpt-realtime-2.1", convert.word("the name of a model"), "Model to talk to."
    )
    base_url: str = _setting(
        "OPENAI_BASE_URL",
        "https://api.openai.com/v1",
        convert.url(optional=False),
        "Where the API is; `/realtime` and the model are added.",
    )
    url: str | None = _setting(
        "WEBSOCKET_URL",
        None,
        convert.url(optional=True),
        "The whole URL instead of `base_url` and `model` (Azure, gateways, tests).",
    )
    organization: str | None = _setting(
        "OPENAI_ORG_ID",
        None,
        convert.header_text("the id of an organization"),
        "Sent as header `OpenAI-Organization`.",
    )
    project: str | None = _setting(
        "OPENAI_PROJECT_ID",
        None,
        convert.header_text("the id of a project"),
        "Sent as header `OpenAI-Project`.",
    )
    headers: Mapping[str, str] = _setting(
        None,
        FrozenDict(),
        convert.HEADERS,
        "More headers of the upgrade request, e.g. Azure's `api-key`. One of the same name wins over the "
        "pool's own. Values are never shown.",
        secret=True,
    )
    session: Mapping[str, Any] = _setting(
        None, FrozenDict(), convert.SESSION, "Session settings applied to every session."
    )
    ca_file: str | None = _setting(
        "WEBSOCKET_CA_FILE",
        None,
        convert.CA_FILE,
        "Certificate authorities to trust instead of the system's.",
    )
    max_connections: int = _setting(
        "WEBSOCKET_MAX_CONNECTIONS",
        10,
        convert.whole(1, 10_000),
        "Sockets that exist at most, whatever their state.",
    )
    min_idle: int = _setting(
        "WEBSOCKET_MIN_IDLE",
        0,
        convert.whole(0),
        "Ready connections kept in reserve; not more than `max_connections`.",
    )
    max_connection_age: float = _setting(
        "WEBSOCKET_MAX_CONNECTION_AGE",
        3600.0,
        convert.seconds(),
        "Age at which a connection is replaced, less a random 0 to 5 %. The server's own limit wins if "
        "earlier.",
    )
    min_session_time: float = _setting(
        "WEBSOCKET_MIN_SESSION_TIME",
        600.0,
        convert.seconds(zero=True),
        "Life that a connection must still have before it to be handed out. Less than `max_connection_age`; "
        "if only that one is set, at most half of it.",
    )
    max_idle_time: float = _setting(
        "WEBSOCKET_MAX_IDLE_TIME",
        300.0,
        convert.seconds(),
        "Idle time after which a connection is closed, down to `min_idle`.",
    )
    health_check_interval: float = _setting(
        "WEBSOCKET_HEALTH_CHECK_INTERVAL",
        30.0,
        convert.seconds(),
        "Time between checks of an idle connection (a ping that must be answered).",
    )
    max_sessions_per_connection: int = _setting(
        "WEBSOCKET_MAX_SESSIONS_PER_CONNECTION",
        10,
        convert.whole(1),
        "Sessions that a connection serves, one after another; 1 = never reused.",
    )
    ping_interval: float = _setting(
        "WEBSOCKET_PING_INTERVAL", 20.0, convert.seconds(), "Time between pings while a connection is in use."
    )
    ping_timeout: float = _setting(
        "WEBSOCKET_PING_TIMEOUT", 30.0, convert.seconds(), "Time within which a ping must be answered."
    )
    close_timeout: float = _setting(
        "WEBSOCKET_CLOSE_TIMEOUT", 10.0, convert.seconds(), "Time for the closing handshake of a connection."
    )
    checkout_timeout: float = _setting(
        "WEBSOCKET_CHECKOUT_TIMEOUT",
        30.0,
        convert.seconds(zero=True),
        "Time that a caller waits for a connection unless it says otherwise; 0 = take only what is ready.",
    )
    connect_timeout: float = _setting(
        "WEBSOCKET_CONNECT_TIMEOUT",
        10.0,
        convert.seconds(),
        "Time to open a connection, from the DNS look-up to `session.created`.",
    )
    reset_timeout: float = _setting(
        "WEBSOCKET_RESET_TIMEOUT",
        5.0,
        convert.seconds(),
        "Time within which each step of a reset must be acknowledged.",
    )
    max_waiting: int = _setting(
        "WEBSOCKET_MAX_WAITING", 0, convert.whole(0), "Callers that may wait at the same time; 0 = no limit."
    )
    max_message_size: int = _setting(
        "WEBSOCKET_MAX_MESSAGE_SIZE",
        16 * 1024 * 1024,
        convert.whole(1024),
        "Bytes of the largest message accepted; a larger one closes the connection with 1009.",
    )
    leak_threshold: float = _setting(
        "WEBSOCKET_LEAK_THRESHOLD",
        0.0,
        convert.seconds(zero=True),
        "Time in use after which a warning shows where the connection was taken; 0 = off.",
    )

    def __init__(self, **values: Unpack[PoolOptions]) -> None:
        problems = self._fill(values, {}, (), ())
        if problems:
            # Error reporters print the variables of every frame: leave no value behind in this one.
            values.clear()  # type: ignore[attr-defined]
            raise config_error(problems)

    @classmethod
    def check(
        cls,
        values: Mapping[str, Any],
        sources: Mapping[str, str] | None = None,
        ambient: Collection[str] = (),
        secrets: Collection[str] = (),
    ) -> tuple[PoolConfig | None, list[str]]:
        """Make a config of ``values``, or say what is wrong with them, without raising.

        Args:
            values: Field → value, as the constructor takes them.
            sources: Field → where its value comes from, to begin a message with; default: the field's name.
            ambient: Fields set by the surroundings, not for this pool (see :attr:`ambient`).
            secrets: Plain texts to mask in the messages, besides the secrets among ``values``.

        Returns:
            The config, or ``None``; and one line per fault, no secret in any.
        """
        config = cls.__new__(cls)
        problems = config._fill(values, sources or {}, ambient, secrets)
        return (None if problems else config), problems

    def _fill(
        self,
        values: Mapping[str, Any],
        sources: Mapping[str, str],
        ambient: Collection[str],
        secrets: Collection[str],
    ) -> list[str]:
        def where(name: str) -> str:
            return sources.get(name, name)

        secrets = [*secrets, *plain_secrets(values)]
        problems = [unknown_field(name, sources.get(name)) for name in values if name not in SETTINGS]
        good: dict[str, Any] = {}
        for name, setting in SETTINGS.items():
            if name not in values:
                good[name] = setting.default
                continue
            try:
                good[name] = setting.kind.convert(values[name])
            except Refused as refused:
                problems.append(f"{where(name)}: {refused.text(secrets)}")

        # Checks of one field against another, where both are good by themselves.
        if {"min_idle", "max_connections"} <= good.keys() and good["min_idle"] > good["max_connections"]:
            problems.append(
                f"{where('min_idle')}: {good['min_idle']} is more than max_connections "
                f"({good['max_connections']}{_from(sources, 'max_connections')})"
            )
        age = good.get("max_connection_age")
        if age is not None and "min_session_time" in good:
            if "min_session_time" not in values:
                # A pool with a short age only must still be able to hand something out.
                good["min_session_time"] = min(good["min_session_time"], age / 2)
            elif good["min_session_time"] >= age:
                problems.append(
                    f"{where('min_session_time')}: {good['min_session_time']:g} s is not less than "
                    f"max_connection_age ({age:g} s{_from(sources, 'max_connection_age')}): "
                    "no connection could ever be handed out"
                )
        if not problems:
            state = {
                **good,
                "_given": frozenset(values),
                "_ambient": frozenset(ambient) & frozenset(values),
            }
            for name, value in state.items():
                object.__setattr__(self, name, value)
        return problems

    @property
    def ambient(self) -> frozenset[str]:
        """The fields set for everybody, by environment or general settings, and not for this pool."""
        result: frozenset[str] = self.__dict__["_ambient"]
        return result

    def replace(self, **overrides: Unpack[PoolOptions]) -> PoolConfig:
        """Return a copy with some fields changed, validated like a new one.

        A new ``base_url`` does away with the ``url`` that would hide it.

        Raises:
            ConfigError: As the constructor does.
        """
        values = {name: getattr(self, name) for name in self.__dict__["_given"]}
        if "base_url" in overrides:
            values.pop("url", None)
        values.update(overrides)
        config, problems = self.check(values, ambient=self.ambient - overrides.keys())
        if config is None:
            values.clear()
            overrides.clear()  # type: ignore[attr-defined]
            raise config_error(problems)
        return config

    # -- the key

    @property
    def _credential_in_headers(self) -> bool:
        return any(name.lower() in ("authorization", "api-key") for name in self.headers)

    def require_key(self) -> None:
        """Check that there is a credential to connect with.

        Raises:
            ConfigError: Neither ``api_key`` nor a header ``Authorization`` or ``api-key`` is set.
        """
        if self.api_key is None and not self._credential_in_headers:
            raise ConfigError(
                "no API key: set the environment variable OPENAI_API_KEY, put OPENAI_API_KEY into "
                ".secrets.toml, or pass api_key="
            )

    def reveal_key(self) -> str:
        """Return the API key in plain text, asking the callable if it is one.

        Raises:
            ConfigError: There is none, the callable failed, or it returned something that is no key.
        """
        if self.api_key is None:
            self.require_key()
            raise ConfigError("no API key: the credential is in the headers")
        if isinstance(self.api_key, Secret):
            return self.api_key.reveal()
        ask: Callable[[], object] = self.api_key  # nothing makes it keep its promise to return text
        result = None
        try:
            result = ask()
            if isinstance(result, str):
                return convert.check_key(str.__str__(result)).reveal()
            problem = f"returned a value of type {type(result).__name__}, not text"
        except Refused as refused:
            problem = refused.reason
        except Exception as error:
            # Its text may quote a request, and with it a credential.
            problem = f"raised {type(error).__name__}"
        result = None  # a refused key must not stay among the variables of this frame
        # Raised here and not above: an exception keeps the one it was raised in, and that one its variables.
        raise ConfigError(f"the api_key callable: {problem}")

    # -- what to connect to

    @property
    def connect_url(self) -> str:
        """The ``ws``/``wss`` URL to connect to. It may hold credentials: see :attr:`redacted_url`."""
        parts = urlsplit(self.url or self.base_url)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        path, query = parts.path, parts.query
        if not self.url:
            path = path.rstrip("/") + "/realtime"
            if not any(pair.partition("=")[0] == "model" for pair in query.split("&")):
                query = f"{query}&" if query else ""
                query += f"model={quote(self.model, safe='')}"
        return urlunsplit((scheme, parts.netloc, path, query, ""))

    @property
    def redacted_url(self) -> str:
        """:attr:`connect_url` without user name and password, with masked query values."""
        return convert.masked_url(self.connect_url)

    def upgrade_headers(self, protocol_needs_key: bool) -> list[tuple[str, str]]:
        """Return the headers of the upgrade request, in plain text: not for logs.

        A protocol that needs no key gets the key, organization and project only
        if they were set for this pool: what happens to be in the environment is
        OpenAI's business, not that of any WebSocket server.

        Args:
            protocol_needs_key: Whether the pool's protocol requires a key.

        Raises:
            ConfigError: A key is required and there is none, or its callable failed.
        """
        if protocol_needs_key:
            self.require_key()

        def wanted(name: str) -> bool:
            return getattr(self, name) is not None and (protocol_needs_key or name not in self.ambient)

        headers: list[tuple[str, str]] = []
        if wanted("api_key") and not self._credential_in_headers:
            headers.append(("Authorization", f"Bearer {self.reveal_key()}"))
        if self.organization is not None and wanted("organization"):
            headers.append(("OpenAI-Organization", self.organization))
        if self.project is not None and wanted("project"):
            headers.append(("OpenAI-Project", self.project))
        own = {name.lower() for name in self.headers}
        headers = [(name, value) for name, value in headers if name.lower() not in own]
        return headers + [(name, str.__str__(value)) for name, value in self.headers.items()]

    # -- showing it

    def as_dict(self) -> dict[str, Any]:
        """Return the settings for ``/config``: JSON types only, never a secret."""
        shown: dict[str, Any] = {}
        for name in SETTINGS:
            value = getattr(self, name)
            if name == "model":
                shown["openai_model"] = value
            elif name == "url":
                shown["websocket_url"] = self.redacted_url
            elif name == "headers":
                shown["header_names"] = sorted(value)
            elif name == "session":
                shown["session"] = convert.masked_session(value)
            elif name not in ("api_key", "base_url"):
                # 3600, not 3600.0: the numbers as people write them.
                shown[name] = int(value) if isinstance(value, float) and value.is_integer() else value
        return shown

    def describe(self) -> dict[str, str]:
        """Return every field as text that is safe to show, as ``repr`` and ``rtpool config`` do."""
        return {name: self._described(name) for name in SETTINGS}

    def _described(self, name: str) -> str:
        value = self.__dict__.get(name)
        if name == "api_key" and value is not None:
            return "'***'" if isinstance(value, Secret) else "<callable>"
        if name in ("url", "base_url") and value is not None:
            return repr(convert.masked_url(value))
        if name == "session":
            return repr(convert.masked_session(value or {}))
        return f"{value:g}" if isinstance(value, float) else repr(value)

    def __repr__(self) -> str:
        changed = (
            f"{name}={self._described(name)}"
            for name, setting in SETTINGS.items()
            if name in self.__dict__ and self.__dict__[name] != setting.default
        )
        return f"PoolConfig({', '.join(changed)})"


#: Field → its :class:`Setting`, in the order of the fields.
SETTINGS: Mapping[str, Setting] = {f.name: Setting(name=f.name, **f.metadata) for f in fields(PoolConfig)}


# -- messages -----------------------------------------------------------------


def config_error(problems: list[str]) -> ConfigError:
    """The one error that reports all ``problems``."""
    if len(problems) == 1:
        return ConfigError(problems[0])
    text = "\n  - ".join([f"{len(problems)} settings cannot be used:", *problems])
    return ConfigError(text, problems=problems)


def unknown_field(name: object, source: str | None = None) -> str:
    """Say that there is no such field, and which one was meant perhaps."""
    shown = convert.show(name, limit=60)
    text = f"{source}: there is no setting {shown}" if source else f"there is no setting {shown}"
    meant = nearest(str(name))
    return f"{text}; did you mean {meant!r}?" if meant else f"{text}; there are {', '.join(SETTINGS)}"


#: What as_dict(), and other pools, call a setting.
_ELSEWHERE = {
    "OPENAI_MODEL": "model",
    "TIMEOUT": "checkout_timeout",
    "MAX_SIZE": "max_connections",
    "POOL_SIZE": "max_connections",
    "MIN_SIZE": "min_idle",
}


def nearest(name: str) -> str | None:
    """The field that ``name`` is most like, also by its environment variable."""
    names = {
        key: setting.name for setting in SETTINGS.values() for key in (setting.name.upper(), *setting.keys)
    }
    names.update(_ELSEWHERE)
    close = difflib.get_close_matches(name.upper()[:80], names, n=1, cutoff=0.6)
    return names[close[0]] if close else None


def _from(sources: Mapping[str, str], name: str) -> str:
    return f", {sources[name]}" if name in sources else ""


# -- secrets ------------------------------------------------------------------


def plain_secrets(*sources: Mapping[str, Any]) -> list[str]:
    """The secrets among raw values in plain text, to be masked should another value hold them as well."""
    found: list[Any] = []
    for values in sources:
        found.append(values.get("api_key"))
        if isinstance(values.get("headers"), Mapping):
            found.extend(values["headers"].values())
    plain = [str.__str__(text).strip() for text in found if isinstance(text, str)]
    # Masking very short ones would garble the messages and hide nothing.
    return [text for text in plain if len(text) > 5]


def hide_secrets(values: dict[str, Any]) -> None:
    """Wrap the secrets among raw ``values`` in place, against tracebacks that show variables."""
    if isinstance(values.get("api_key"), str):
        values["api_key"] = Secret(str.__str__(values["api_key"]))
    if isinstance(values.get("headers"), Mapping):
        values["headers"] = {
            name: Secret(str.__str__(text)) if isinstance(text, str) else text
            for name, text in values["headers"].items()
        }
