"""PoolConfig by itself: conversion, checks, what it connects to, and that it never tells a secret."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import traceback
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rtpool_sync.config import RETIRED_MODELS, SETTINGS, PoolConfig, PoolOptions, Secret
from rtpool_sync.errors import ConfigError

# Global, so that they are no local variable of a frame whose variables a test looks at.
KEY = "sk-proj-Zq81hT0vLw"
PLAIN_KEY = "0f3c9a7be1d24c58b6a1"  # looks like nothing in particular, as Azure's do
PEM = str(Path(__file__))  # any existing file

WHOLE = [name for name, setting in SETTINGS.items() if type(setting.default) is int]
SECONDS = [name for name, setting in SETTINGS.items() if type(setting.default) is float]
ZERO_ALLOWED = {"min_session_time", "checkout_timeout", "leak_threshold"}


def refused(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        PoolConfig(**values)
    return str(caught.value)


def report_of(call: Callable[[], object]) -> str:
    """Everything a thorough error reporter would print of what ``call`` raises."""
    with pytest.raises(ConfigError) as caught:
        call()
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    lines = traceback.TracebackException.from_exception(error, capture_locals=True).format()
    return "".join(lines) + repr(error) + repr(vars(error))


# -- the table ----------------------------------------------------------------


def test_the_declarations_agree() -> None:
    fields = [field.name for field in dataclasses.fields(PoolConfig)]
    assert fields == list(SETTINGS) == list(PoolOptions.__annotations__)
    for name, setting in SETTINGS.items():
        assert setting.name == name
        assert setting.doc.endswith(".")
        assert setting.kind.convert(setting.default) == setting.default
        assert getattr(PoolConfig(), name) == setting.default
    assert [name for name in SETTINGS if SETTINGS[name].secret] == ["api_key", "headers"]


def test_defaults_of_the_contract() -> None:
    config = PoolConfig()
    assert config.api_key is None
    assert config.model == "gpt-realtime-2.1"
    assert config.base_url == "https://api.openai.com/v1"
    assert (config.max_connections, config.min_idle, config.max_sessions_per_connection) == (10, 0, 10)
    assert (config.max_connection_age, config.min_session_time, config.max_idle_time) == (3600, 600, 300)
    assert (config.health_check_interval, config.ping_interval, config.ping_timeout) == (30, 20, 30)
    assert (config.close_timeout, config.checkout_timeout) == (10, 30)
    assert (config.connect_timeout, config.reset_timeout) == (10, 5)
    assert (config.max_waiting, config.max_message_size, config.leak_threshold) == (0, 16777216, 0)
    assert config.model not in RETIRED_MODELS


# -- numbers ------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [2048, "2048", " 2048\n", "+2048"])
def test_whole_numbers(name: str, value: Any) -> None:
    config = PoolConfig(**{"max_connections": 5000, name: value})
    assert getattr(config, name) == 2048
    assert type(getattr(config, name)) is int


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    "value",
    [True, False, 2.7, 2.0, math.nan, math.inf, None, "", " ", "twenty", "2.7", "1e3", "1_000", "0x10", "٣"]
    + ["nan", "inf", "--1", -1, "-1", 10**30, "9" * 40, 10**5000, b"20", [20], {"a": 1}, object()],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) or abs(value) < 10**31 else "huge",
)
def test_not_a_whole_number(name: str, value: Any) -> None:
    text = refused(**{name: value})
    assert text.startswith(f"{name}: must be a whole number")
    assert ", not " in text
    assert len(text) < 200


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("max_connections", 1, 10_000),
        ("min_idle", 0, None),
        ("max_sessions_per_connection", 1, None),
        ("max_waiting", 0, None),
        ("max_message_size", 1024, None),
    ],
)
def test_bounds(name: str, low: int, high: int | None) -> None:
    assert getattr(PoolConfig(**{name: low}), name) == low  # type: ignore[arg-type]
    assert f"not {low - 1}" in refused(**{name: low - 1})
    if high is not None:
        assert getattr(PoolConfig(**{name: high}), name) == high  # type: ignore[arg-type]
        assert f"from {low} to {high}, not {high + 1}" in refused(**{name: high + 1})


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [2.5, "2.5", " 2.5 ", "25e-1", Decimal("2.5"), Fraction(5, 2)])
def test_seconds(name: str, value: Any) -> None:
    config = PoolConfig(**{name: value})
    assert getattr(config, name) == 2.5
    assert type(getattr(config, name)) is float


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    "value",
    [True, -1, -0.5, "-1", math.nan, math.inf, -math.inf, "nan", "inf", "1e999", 10**400, 2e9]
    + [None, "", "30s", "thirty", "1_0", Decimal("NaN"), Decimal("sNaN"), [1], object()],
    ids=lambda value: repr(value)[:20],
)
def test_not_seconds(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"{name}: must be a number of seconds, ")


@pytest.mark.parametrize("name", SECONDS)
def test_zero_seconds_only_where_it_has_a_meaning(name: str) -> None:
    if name in ZERO_ALLOWED:
        assert getattr(PoolConfig(**{name: 0}), name) == 0  # type: ignore[arg-type]
    else:
        assert "more than 0" in refused(**{name: 0})


# -- texts --------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " ", "a b", "a\n", "a\0b", None, 5, b"gpt"])
def test_bad_model(value: Any) -> None:
    assert refused(model=value).startswith("model: must be the name of a model")


@pytest.mark.parametrize("name", ["organization", "project"])
def test_ids(name: str) -> None:
    assert getattr(PoolConfig(**{name: "org-1"}), name) == "org-1"  # type: ignore[arg-type]
    assert getattr(PoolConfig(**{name: ""}), name) is None  # type: ignore[arg-type]
    assert getattr(PoolConfig(**{name: None}), name) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["organization", "project", "api_key"])
@pytest.mark.parametrize("bad", ["{}\r\nHost: evil", "{}\n", "{}\0", " {}", "{} ", "{}€", "{}\x7f"])
def test_header_texts_are_refused_without_showing_them(name: str, bad: str) -> None:
    text = refused(**{name: bad.format("value1234")})
    assert text.startswith(f"{name}: ")
    assert "value1234" not in text
    assert "evil" not in text


@pytest.mark.parametrize(
    "bad", [5, True, b"sk-abcdefgh", ["sk-abcdefgh"], "Bearer sk-abcdefgh", "sk abcdefgh"]
)
def test_bad_api_key(bad: Any) -> None:
    text = refused(api_key=bad)
    assert text.startswith("api_key: ")
    assert "abcdefgh" not in text


def test_ca_file(tmp_path: Path) -> None:
    assert PoolConfig(ca_file=PEM).ca_file == PEM
    assert PoolConfig(ca_file=Path(PEM)).ca_file == PEM  # type: ignore[arg-type]
    assert PoolConfig(ca_file="").ca_file is None
    assert "ca_file: must be the path of an existing file" in refused(ca_file=str(tmp_path / "no"))
    assert "ca_file: " in refused(ca_file=str(tmp_path))
    assert "ca_file: " in refused(ca_file=b"x")
    assert "ca_file: " in refused(ca_file="a\0b")


# -- URLs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "wss://api.openai.com/v1/realtime?model=gpt-realtime-2.1"),
        ({"model": "a/b&c ü".replace(" ", "+")}, "wss://api.openai.com/v1/realtime?model=a%2Fb%26c%2B%C3%BC"),
        ({"base_url": "http://localhost:8080"}, "ws://localhost:8080/realtime?model=m"),
        ({"base_url": "http://localhost:8080/v1/"}, "ws://localhost:8080/v1/realtime?model=m"),
        ({"base_url": "ws://[::1]:80/v1"}, "ws://[::1]:80/v1/realtime?model=m"),
        ({"base_url": "WSS://h/v1?a=1&b=%20"}, "wss://h/v1/realtime?a=1&b=%20&model=m"),
        ({"base_url": "https://h/v1?model=x"}, "wss://h/v1/realtime?model=x"),
        ({"url": "wss://h/path?deployment=d&api-version=v"}, "wss://h/path?deployment=d&api-version=v"),
        ({"url": "https://h/path", "base_url": "http://other"}, "wss://h/path"),
        ({"url": "http://h"}, "ws://h"),
    ],
)
def test_connect_url(values: dict[str, Any], url: str) -> None:
    if values and "model" not in values:
        values = {**values, "model": "m"}
    assert PoolConfig(**values).connect_url == url


@pytest.mark.parametrize("name", ["url", "base_url"])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("localhost:8080", "another scheme, or none"),
        ("ftp://h/", "another scheme"),
        ("//h/path", "another scheme"),
        ("wss:///path", "no host"),
        ("wss://", "no host"),
        ("wss://:80/", "no host"),
        ("wss://h:99999/", "malformed"),
        ("wss://h:port/", "malformed"),
        ("wss://[::1/", "malformed"),
        ("wss://h:0/", "port is 0"),
        ("wss://h/#frag", "fragment"),
        ("wss://h/#", "fragment"),
        ("wss://h/a b", "percent-encoded"),
        ("wss://h/a\r\nHost: x", "percent-encoded"),
        ("wss://h\\@x/", "percent-encoded"),
        ("wss://müller.example/", "xn--"),
        (5, "must be a ws://"),
        (b"wss://h", "must be a ws://"),
    ],
)
def test_bad_urls(name: str, bad: Any, reason: str) -> None:
    text = refused(**{name: bad})
    assert text.startswith(f"{name}: must be a ws://, wss://, http:// or https:// URL")
    assert reason in text


def test_an_empty_url_is_none_and_an_empty_base_url_is_a_fault() -> None:
    assert PoolConfig(url="").url is None
    assert "it is empty" in refused(base_url="")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("wss://user:hunter2@h:8080/p?model=m&token=hunter2", "wss://h:8080/p?model=m&token=***"),
        ("wss://h/p?intent=i&api-version=v&deployment=d&call_id=c", None),
        ("wss://h/p?hunter2", "wss://h/p?***"),
        ("wss://h/p?model=m;token=hunter2&x=", "wss://h/p?model=m;token=***&x=***"),
        ("wss://h:80/@scope/p", None),
        ("wss://[::1]:80/a@b", None),
        ("wss://h/sk-abcdefgh", "wss://h/***"),
    ],
)
def test_redacted_url(url: str, shown: str | None) -> None:
    config = PoolConfig(url=url)
    assert config.connect_url == url
    assert config.redacted_url == (shown or url)
    assert "hunter2" not in repr(config) + repr(config.as_dict()) + repr(config.describe())


@pytest.mark.parametrize(
    "url",
    [
        "wss://user:hunter2@h:99999/",
        "wss://user:hun/hunter2@h/#x",
        "user:hunter2@h/path",
        "wss://h:x/?token=hunter2",
        "wss://h/#hunter2",
        "ftp://h/?a=1&hunter2",
        "hunter2hunter2hunter2hunter2",
    ],
)
def test_a_bad_url_is_quoted_without_its_credentials(url: str) -> None:
    assert "hunter2" not in refused(url=url)


# -- headers and session ------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"": "x"}, "the name of header 1 is not an HTTP token"),
        ({"a b": "x"}, "not an HTTP token"),
        ({"a": "1", "api-key: hunter2": "x"}, "the name of header 2 is not"),
        ({"a\r\nb": "x"}, "not an HTTP token"),
        ({5: "x"}, "not an HTTP token"),
        ({"a": "hunter2\r\nb: c"}, "the value of a must not contain line breaks"),
        ({"a": "hunter2\0"}, "the value of a must not"),
        ({"a": "hunter2€"}, "Latin-1"),
        ({"a": 5}, "the value of a must be text"),
        ({"a": None}, "the value of a must be text"),
        ({"a": "x", "A": "y"}, "given twice"),
        ({"Upgrade": "x"}, "handshake itself"),
        ({"sec-websocket-key": "x"}, "handshake itself"),
        (["a: hunter2"], "must be a table of header names"),
        ("a: hunter2", "must be a table of header names"),
    ],
)
def test_bad_headers(headers: Any, reason: str) -> None:
    text = refused(headers=headers)
    assert text.startswith("headers: ")
    assert reason in text
    assert "hunter2" not in text


def test_headers_are_a_hidden_unchangeable_copy() -> None:
    mine = {"api-key": KEY}
    config = PoolConfig(headers=mine)
    mine["api-key"] = "other"
    assert config.headers == {"api-key": KEY}
    assert isinstance(config.headers["api-key"], Secret)
    changes: list[Callable[[Any], object]] = [
        lambda h: h.update(a="b"),
        lambda h: h.__setitem__("a", "b"),
        lambda h: h.pop("api-key"),
        lambda h: h.clear(),
        lambda h: h.setdefault("a", "b"),
        lambda h: h.__ior__({"a": "b"}),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="replace"):
            change(config.headers)
    assert PoolConfig(headers=None).headers == {}  # type: ignore[arg-type]


def test_session_is_a_copy_of_json_types() -> None:
    mine: dict[str, Any] = {
        "audio": {"input": {"turn_detection": None}},
        "tools": [{"name": "f"}],
        "n": (1, 2.5),
    }
    config = PoolConfig(session=mine)
    mine["audio"]["input"]["turn_detection"] = "changed"
    mine["tools"].append("changed")
    assert config.session == {
        "audio": {"input": {"turn_detection": None}},
        "tools": [{"name": "f"}],
        "n": [1, 2.5],
    }
    assert json.loads(json.dumps(config.session)) == config.session
    with pytest.raises(TypeError):
        config.session["audio"]["x"] = 1
    assert PoolConfig(session=None).session == {}  # type: ignore[arg-type]


def endless() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a"] = value
    return value


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        ([], "must be a table of session settings"),
        ("{}", "must be a table of session settings"),
        ({"a": object()}, "session.a must be of a JSON type"),
        ({"a": {"b": [0, {1, 2}]}}, "session.a.b[1] must be of a JSON type"),
        ({"a": math.nan}, "session.a must be a finite number"),
        ({1: 2}, "the names in session must be text"),
        ({"sk-abcdefgh hunter2": b""}, "session.… must be of a JSON type"),
        (endless(), "nested more than 64 deep"),
    ],
    ids=range(8),
)
def test_bad_session(session: Any, reason: str) -> None:
    text = refused(session=session)
    assert text.startswith("session: ")
    assert reason in text
    assert "hunter2" not in text


# -- faults of the whole ------------------------------------------------------


def test_all_faults_are_reported_at_once() -> None:
    text = refused(
        max_connections="twenty",
        min_idle=-1,
        api_key="a\nb",
        url="nowhere",
        ping_interval=0,
        max_conections=5,
    )
    first, *lines = text.split("\n")
    assert first == "6 settings cannot be used:"
    assert [line.split(":")[0] for line in lines] == [
        "  - there is no setting 'max_conections'; did you mean 'max_connections'?",
        "  - api_key",
        "  - url",
        "  - max_connections",
        "  - min_idle",
        "  - ping_interval",
    ]
    assert "'twenty'" in text


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_conns", "max_connections"),
        ("apikey", "api_key"),
        ("OPENAI_API_KEY", "api_key"),
        ("openai_model", "model"),
        ("websocket_url", "url"),
        ("WEBSOCKET_MAX_WAITING", "max_waiting"),
        ("timeout", "checkout_timeout"),
    ],
)
def test_unknown_keyword(name: str, meant: str) -> None:
    assert refused(**{name: 1}) == f"there is no setting {name!r}; did you mean {meant!r}?"


def test_unknown_keyword_like_nothing_lists_all() -> None:
    text = refused(foo=1)
    assert text.startswith("there is no setting 'foo'; there are api_key, model, ")


def test_min_idle_against_max_connections() -> None:
    assert PoolConfig(min_idle=3, max_connections=3).min_idle == 3
    assert refused(min_idle=4, max_connections=3) == "min_idle: 4 is more than max_connections (3)"
    assert "min_idle: 11 is more than max_connections (10)" in refused(min_idle=11)


def test_min_session_time_leaves_something_to_hand_out() -> None:
    # A short age alone must not make a pool that never hands anything out.
    assert PoolConfig(max_connection_age=2).min_session_time == 1
    assert PoolConfig(max_connection_age=2).replace(max_connection_age=4).min_session_time == 2
    assert PoolConfig(max_connection_age=2, min_session_time=1.5).min_session_time == 1.5
    assert "no connection could ever be handed out" in refused(max_connection_age=60, min_session_time=60)


def test_sources_begin_the_messages() -> None:
    config, problems = PoolConfig.check(
        {"min_idle": "5", "max_connections": "3", "foo": 1},
        {"min_idle": "environment variable WEBSOCKET_MIN_IDLE", "max_connections": "settings.toml x"},
    )
    assert config is None
    assert problems[1] == (
        "environment variable WEBSOCKET_MIN_IDLE: 5 is more than max_connections (3, settings.toml x)"
    )


# -- the key ------------------------------------------------------------------


def test_no_key_is_needed_until_it_is() -> None:
    config = PoolConfig()
    for ask in (config.require_key, config.reveal_key, lambda: config.upgrade_headers(True)):
        with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
            ask()
    assert config.upgrade_headers(False) == []
    assert PoolConfig(api_key="").api_key is None
    PoolConfig(api_key=KEY).require_key()
    PoolConfig(headers={"Api-Key": "x"}).require_key()
    with pytest.raises(ConfigError, match="in the headers"):
        PoolConfig(headers={"Api-Key": "x"}).reveal_key()


def test_a_callable_is_asked_every_time() -> None:
    keys = iter(["key-1", Secret("key-2")])
    config = PoolConfig(api_key=lambda: next(keys))
    config.require_key()
    assert config.reveal_key() == "key-1"
    second = config.reveal_key()
    assert (second, type(second)) == ("key-2", str)
    assert "api_key=<callable>" in repr(config)


def fails() -> str:
    raise RuntimeError(f"request with {KEY} failed")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (fails, "raised RuntimeError"),
        (lambda: None, "returned a value of type NoneType, not text"),
        (lambda: KEY.encode(), "returned a value of type bytes"),
        (lambda: "", "must not be empty"),
        (lambda: KEY + "\n", "line breaks"),
        (lambda: "Bearer " + KEY, "without 'Bearer'"),
        (lambda: KEY + "€", "Latin-1"),
    ],
)
def test_a_callable_that_fails(call: Callable[[], Any], reason: str) -> None:
    report = report_of(PoolConfig(api_key=call).reveal_key)
    assert "ConfigError: the api_key callable: " in report
    assert reason in report
    assert "Zq81" not in report


def test_what_interrupts_the_callable_passes() -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PoolConfig(api_key=interrupted).reveal_key()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"api_key": "k"}, [("Authorization", "Bearer k")]),
        (
            {"api_key": "k", "organization": "o", "project": "p", "headers": {"X": "y"}},
            [
                ("Authorization", "Bearer k"),
                ("OpenAI-Organization", "o"),
                ("OpenAI-Project", "p"),
                ("X", "y"),
            ],
        ),
        ({"api_key": "k", "headers": {"API-Key": "h"}}, [("API-Key", "h")]),
        ({"api_key": "k", "headers": {"authorization": "Basic h"}}, [("authorization", "Basic h")]),
        ({"headers": {"api-key": "h"}}, [("api-key", "h")]),
        (
            {"api_key": "k", "organization": "o", "headers": {"openai-organization": "mine"}},
            [("Authorization", "Bearer k"), ("openai-organization", "mine")],
        ),
    ],
)
@pytest.mark.parametrize("needs_key", [True, False])
def test_upgrade_headers(values: dict[str, Any], expected: list[tuple[str, str]], needs_key: bool) -> None:
    headers = PoolConfig(**values).upgrade_headers(needs_key)
    assert headers == expected
    assert {type(text) for header in headers for text in header} == {str}


def test_the_surrounding_key_is_not_sent_to_any_server() -> None:
    values = {"api_key": KEY, "organization": "o", "headers": {"X": "y"}}
    config, _ = PoolConfig.check(values, ambient={"api_key", "organization", "headers", "model"})
    assert config is not None
    assert config.ambient == {"api_key", "organization", "headers"}
    assert config.upgrade_headers(False) == [("X", "y")]
    assert len(config.upgrade_headers(True)) == 3
    changed = config.replace(max_connections=3)
    assert changed.upgrade_headers(False) == [("X", "y")]
    assert ("Authorization", "Bearer k2") in config.replace(api_key="k2").upgrade_headers(False)
    assert pickle.loads(pickle.dumps(config)).ambient == config.ambient  # noqa: S301


# -- replace, copy, compare ---------------------------------------------------


def test_replace() -> None:
    config = PoolConfig(api_key=KEY, max_connections=5, session={"a": 1})
    changed = config.replace(max_connections="7")  # type: ignore[arg-type]
    assert (changed.max_connections, config.max_connections) == (7, 5)
    assert changed.reveal_key() == KEY
    assert changed == PoolConfig(api_key=KEY, max_connections=7, session={"a": 1})
    assert dataclasses.replace(config, max_connections=7) == changed
    with pytest.raises(ConfigError, match="did you mean 'min_idle'"):
        config.replace(min_idel=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="min_idle: 6 is more"):
        config.replace(min_idle=6)


def test_replacing_the_base_url_uncovers_it() -> None:
    config = PoolConfig(url="wss://h/path", model="m")
    assert config.replace(base_url="ws://other").connect_url == "ws://other/realtime?model=m"
    assert config.replace(base_url="ws://other", url="ws://third").connect_url == "ws://third"


def test_frozen() -> None:
    config = PoolConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_connections = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        PoolConfig(5)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_copies_stay_secret(protocol: int) -> None:
    config = PoolConfig(api_key=KEY, headers={"api-key": PLAIN_KEY}, session={"a": {"b": [1]}})
    again = pickle.loads(pickle.dumps(config, protocol))  # noqa: S301
    for other in (again, copy.copy(config), copy.deepcopy(config), config.replace()):
        assert other == config
        assert other.reveal_key() == KEY
        assert isinstance(other.api_key, Secret)
        assert isinstance(other.headers["api-key"], Secret)
        assert "Zq81" not in repr(other)
        assert PLAIN_KEY not in repr(other)
    shown = repr(dataclasses.asdict(config)) + repr(vars(config))
    assert "Zq81" not in shown
    assert PLAIN_KEY not in shown


# -- secrets ------------------------------------------------------------------


def test_secret() -> None:
    secret = Secret(KEY)
    assert (str(secret), repr(secret), f"{secret}", f"{secret!s:>5}", f"{secret:>5}") == (
        "***",
        "'***'",
        "***",
        "  ***",
        "  ***",
    )
    assert "%s %r %s" % (secret, secret, [secret]) == "*** '***' ['***']"  # noqa: UP031
    assert (secret.reveal(), type(secret.reveal())) == (KEY, str)
    assert secret == KEY
    assert hash(secret) == hash(KEY)
    assert len(secret) == len(KEY)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(secret, protocol))  # noqa: S301
        assert (again, type(again)) == (KEY, Secret)
    for again in (copy.copy(secret), copy.deepcopy(secret), copy.deepcopy([secret])[0]):
        assert (again.reveal(), type(again)) == (KEY, Secret)


def test_showing_a_config() -> None:
    config = PoolConfig(
        api_key=KEY,
        url=f"wss://u:{PLAIN_KEY}@h/p?key={PLAIN_KEY}",
        headers={"api-key": PLAIN_KEY},
        session={
            "instructions": f"be kind, {KEY}",
            "max_output_tokens": 5,
            "tools": [
                {"type": "mcp", "authorization": PLAIN_KEY, "headers": {"x": PLAIN_KEY}},
                {
                    "server_url": f"https://u:{PLAIN_KEY}@mcp.example/sse?t={PLAIN_KEY}",
                    "note": Secret(PLAIN_KEY),
                },
            ],
        },
        ping_interval=2.5,
    )
    shown = config.as_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert shown["websocket_url"] == "wss://h/p?key=***"
    assert shown["openai_model"] == "gpt-realtime-2.1"
    assert shown["header_names"] == ["api-key"]
    assert shown["session"]["max_output_tokens"] == 5
    assert shown["session"]["tools"][1]["server_url"] == "https://mcp.example/sse?t=***"
    assert (json.dumps(shown["max_connection_age"]), shown["ping_interval"]) == ("3600", 2.5)
    assert {"max_connections", "max_connection_age", "max_idle_time", "health_check_interval"} <= shown.keys()
    assert {"max_sessions_per_connection", "ping_timeout", "close_timeout", "min_idle"} <= shown.keys()
    assert {"min_session_time", "checkout_timeout", "connect_timeout", "reset_timeout"} <= shown.keys()
    assert {"max_waiting", "max_message_size", "leak_threshold"} <= shown.keys()
    assert list(config.describe()) == list(SETTINGS)
    assert "max_connections" not in repr(config)  # only what differs from the default
    for text in (json.dumps(shown), repr(config), str(config), f"{config}", repr(config.describe())):
        assert "Zq81" not in text
        assert PLAIN_KEY not in text


@pytest.mark.parametrize(
    "call",
    [
        lambda: PoolConfig(api_key=KEY + "\r\nX: y"),
        lambda: PoolConfig(api_key=PLAIN_KEY, max_connections=0),
        lambda: PoolConfig(max_connections=KEY),  # type: ignore[arg-type]
        lambda: PoolConfig(max_connections=PLAIN_KEY * 2),  # type: ignore[arg-type]
        lambda: PoolConfig(api_key=PLAIN_KEY, max_connections=PLAIN_KEY),  # type: ignore[arg-type]
        lambda: PoolConfig(api_key=PLAIN_KEY, url=f"wss://h/{PLAIN_KEY}#x"),
        lambda: PoolConfig(headers={"api-key": PLAIN_KEY}, model=f"m {PLAIN_KEY}"),
        lambda: PoolConfig(headers={"api-key: " + PLAIN_KEY: PLAIN_KEY}),
        lambda: PoolConfig(headers=[("api-key", PLAIN_KEY)]),  # type: ignore[arg-type]
        lambda: PoolConfig(url=KEY),
        lambda: PoolConfig(url=PLAIN_KEY * 2),
        lambda: PoolConfig(base_url=f"https://{KEY}@h:x"),
        lambda: PoolConfig(ca_file=KEY),
        lambda: PoolConfig(session={"a": PLAIN_KEY, "b": b""}),
        lambda: PoolConfig(session=KEY),  # type: ignore[arg-type]
        lambda: PoolConfig(**{KEY: 1}),  # type: ignore[arg-type]
        lambda: PoolConfig(api_kye=PLAIN_KEY),  # type: ignore[call-arg]
        lambda: PoolConfig(api_key=PLAIN_KEY).replace(ping_interval=-1),
        lambda: PoolConfig().replace(api_key=PLAIN_KEY + "\n"),
    ],
)
def test_no_report_of_a_fault_holds_a_secret(call: Callable[[], object]) -> None:
    report = report_of(call)
    assert "Zq81" not in report
    assert PLAIN_KEY not in report
