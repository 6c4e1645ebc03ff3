"""Where settings come from, which one wins, and what is said about a bad one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rtpool_sync.config import RETIRED_MODELS, SETTINGS, Secret, Setting
from rtpool_sync.errors import ConfigError
from rtpool_sync.settings import load, load_with_sources, pool_names

ROOT = Path(__file__).parent.parent
# Global, so that they are no local variable of a frame whose variables a test looks at.
KEY = "sk-proj-Zq81hT0vLw"
PLAIN_KEY = "0f3c9a7be1d24c58b6a1"

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and an environment without anything of ours or dynaconf's."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "WEBSOCKET_", "RTPOOL_", "REALTIME_")) or name.endswith(
            "_FOR_DYNACONF"
        ):
            monkeypatch.delenv(name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "settings.toml") -> str:
        (tmp_path / "work" / name).write_text(text, encoding="utf-8")
        return name

    return write


def refused(name: str = "default", **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(name, **values)
    return str(caught.value)


# -- defaults and environment -------------------------------------------------


def test_nothing_set() -> None:
    config, sources = load_with_sources()
    assert sources == dict.fromkeys(SETTINGS, "default")
    assert repr(config) == "PoolConfig()"
    assert load().connect_url == "wss://api.openai.com/v1/realtime?model=gpt-realtime-2.1"


EXAMPLES = {"headers": {"a": "b"}, "session": {"voice": "marin"}, "base_url": "ws://h", "url": "ws://h/x"}


def example(setting: Setting) -> Any:
    if setting.name in EXAMPLES:
        return EXAMPLES[setting.name]
    if setting.name == "ca_file":
        return __file__
    if setting.kind.text:
        return "4711"
    return {"max_message_size": 4096, "min_idle": 2}.get(setting.name, 17)


@pytest.mark.parametrize("name", [name for name in SETTINGS if SETTINGS[name].env])
def test_every_environment_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS[name]
    assert setting.env
    monkeypatch.setenv(setting.env, str(example(setting)))
    config, sources = load_with_sources()
    assert getattr(config, name) == example(setting)
    assert sources[name] == f"environment variable {setting.env}"


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.title])
def test_every_file_key_in_any_case(name: str, spelled: Callable[[str], str], write: Write) -> None:
    setting = SETTINGS[name]
    value = example(setting)
    for number, key in enumerate(setting.keys):
        text = (
            "".join(f'\n[default.{spelled(key)}]\n{k} = "{v}"' for k, v in value.items())
            if isinstance(value, dict)
            else f"[default]\n{spelled(key)} = {value!r}"
        )
        write(text, f"{number}.toml")
        config, sources = load_with_sources(files=f"{number}.toml")
        assert getattr(config, name) == value
        assert sources[name] == f"{number}.toml [default] {spelled(key)}"


@pytest.mark.parametrize("text", ["12345", "true", "1e5", "0x10", "[1]", "{a=1}", "2026-01-01", "'quoted'"])
def test_a_key_that_dynaconf_would_cast_stays_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", text)
    assert load().reveal_key() == text


@pytest.mark.parametrize("text", ["@format-{env[HOME]}", "@jinja{{1}}", "@int5", "@none", "@env"])
def test_environment_values_are_not_evaluated(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", text)
    monkeypatch.setenv("OPENAI_PROJECT_ID", "@format {env[HOME]}")
    config = load()
    assert config.reveal_key() == text
    assert config.project == "@format {env[HOME]}"


def test_an_empty_variable_counts_as_not_set_where_text_is_wanted(
    monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    write('[default]\nopenai_api_key = "from-file"')
    for setting in SETTINGS.values():
        if setting.env and setting.kind.text:
            monkeypatch.setenv(setting.env, "")
    config, sources = load_with_sources()
    assert config.reveal_key() == "from-file"
    assert {source for name, source in sources.items() if name != "api_key"} == {"default"}
    monkeypatch.setenv("WEBSOCKET_MIN_IDLE", "")
    assert refused() == "environment variable WEBSOCKET_MIN_IDLE: must be a whole number, 0 or more, not ''"


@pytest.mark.parametrize("text", ["twenty", "2.7", "true", "nan", "inf", "-1", "@int 5", "0", "10001", "1_0"])
def test_bad_variables_are_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBSOCKET_MAX_CONNECTIONS", text)
    name, _, rest = refused().partition(": ")
    assert name == "environment variable WEBSOCKET_MAX_CONNECTIONS"
    assert rest == f"must be a whole number from 1 to 10000, not {text!r}"


def test_the_environment_of_dynaconf_itself_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path
) -> None:
    write(
        "[default]\nwebsocket_max_connections = 1\nwebsocket_min_idle = 1\n[default.realtime_session]\na = 1"
    )
    write("[default.realtime_session]\nb = 1", ".secrets.toml")
    other = tmp_path / "other.toml"
    other.write_text("[default]\nwebsocket_max_connections = 99\nwebsocket_url = 'ws://other'")
    for name, value in {
        "SETTINGS_FILE_FOR_DYNACONF": str(other),
        "SETTINGS_FILES_FOR_DYNACONF": f'["{other}"]',
        "PRELOAD_FOR_DYNACONF": f'["{other}"]',
        "INCLUDES_FOR_DYNACONF": f'["{other}"]',
        "SECRETS_FOR_DYNACONF": str(other),
        "ENVVAR_PREFIX_FOR_DYNACONF": "WEBSOCKET",
        "ROOT_PATH_FOR_DYNACONF": str(tmp_path),
        "ENVIRONMENTS_FOR_DYNACONF": "false",
        "DEFAULT_ENV_FOR_DYNACONF": "other",
        "MERGE_ENABLED_FOR_DYNACONF": "true",
        "NESTED_SEPARATOR_FOR_DYNACONF": "_",
        "CORE_LOADERS_FOR_DYNACONF": "[]",
        "LOWERCASE_READ_FOR_DYNACONF": "false",
        "WEBSOCKET_REALTIME_URL": "ws://prefixed",
    }.items():
        monkeypatch.setenv(name, value)
    assert repr(load()) == "PoolConfig(session={'b': 1}, max_connections=1, min_idle=1)"


# -- files --------------------------------------------------------------------


def test_environments_of_a_file(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    write(
        """
        websocket_min_idle = 1          # outside tables: weakest
        websocket_max_waiting = 1
        [default]
        websocket_max_waiting = 2
        websocket_max_connections = 2
        websocket_ping_interval = 2
        [Development]
        websocket_max_connections = 3
        [production]
        websocket_max_connections = 4
        websocket_ping_interval = 4
        [eu]
        websocket_ping_interval = 5
        [global]
        websocket_leak_threshold = 6
        """
    )

    def read() -> tuple[float, ...]:
        config = load()
        return (
            config.min_idle,
            config.max_waiting,
            config.max_connections,
            config.ping_interval,
            config.leak_threshold,
        )

    assert read() == (1, 2, 3, 2, 6)
    monkeypatch.setenv("ENV_FOR_DYNACONF", "PRODUCTION")
    assert read() == (1, 2, 4, 4, 6)
    monkeypatch.setenv("ENV_FOR_DYNACONF", "production, eu")
    assert read() == (1, 2, 4, 5, 6)
    monkeypatch.setenv("ENV_FOR_DYNACONF", "nowhere")
    assert read() == (1, 2, 2, 2, 6)
    assert load_with_sources()[1]["min_idle"] == "settings.toml websocket_min_idle"
    assert load_with_sources()[1]["leak_threshold"] == "settings.toml [global] websocket_leak_threshold"


def test_flat_files(write: Write) -> None:
    write('websocket_max_connections = 4\n[realtime_session]\nvoice = "x"\n[realtime_pools.a]\nmin_idle = 3')
    write('OPENAI_API_KEY = "k"', ".secrets.toml")
    assert load().max_connections == 4
    assert load().session == {"voice": "x"}
    assert load("a").min_idle == 3
    assert load("a").reveal_key() == "k"


def test_secrets_come_after_settings_and_an_own_name_is_the_stronger(write: Write) -> None:
    write("[default]\nrealtime_url = 'ws://a'\nwebsocket_url = 'ws://b'\nrealtime_model = 'a'")
    assert load().url == "ws://a"
    write("[default]\nwebsocket_url = 'ws://c'\nopenai_api_key = 'k'", ".secrets.toml")
    config, sources = load_with_sources()
    assert config.url == "ws://c"
    assert sources["url"] == ".secrets.toml [default] websocket_url"
    assert config.model == "a"


def test_no_search_above_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[default]\nwebsocket_min_idle = 3")
    (tmp_path / "work" / "settings.local.toml").write_text("[default]\nwebsocket_min_idle = 3")
    (tmp_path / "work" / ".env").write_text("WEBSOCKET_MIN_IDLE=3")
    (tmp_path / "work" / "settings.toml").mkdir()
    assert load().min_idle == 0


@pytest.mark.parametrize("separator", [",", os.pathsep, " , "])
def test_named_files(separator: str, monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path) -> None:
    write("[default]\nwebsocket_min_idle = 9")
    (tmp_path / "a.toml").write_text("[default]\nwebsocket_min_idle = 1\nwebsocket_max_waiting = 1")
    write("[default]\nwebsocket_min_idle = 2", "b.toml")
    monkeypatch.setenv("RTPOOL_SETTINGS_FILES", separator.join([str(tmp_path / "a.toml"), "b.toml"]))
    config, sources = load_with_sources()
    assert (config.min_idle, config.max_waiting) == (2, 1)
    assert sources["min_idle"] == "b.toml [default] websocket_min_idle"
    assert load(files=()).min_idle == 0
    assert load(files="settings.toml").min_idle == 9
    assert load(files=[Path("settings.toml"), "b.toml"]).min_idle == 2
    monkeypatch.setenv("RTPOOL_SETTINGS_FILES", "")
    assert load().min_idle == 9
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(files="~/a.toml").min_idle == 1


def test_files_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    write("[default]\nwebsocket_min_idle = 1\nopenai_api_key = sk-abcdefgh\n", "broken.toml")
    Path("latin.toml").write_bytes(b'[default]\nopenai_org_id = "\xe9"')
    write("[default]", "settings.yaml")
    monkeypatch.setenv("RTPOOL_SETTINGS_FILES", "no.toml,broken.toml,latin.toml,settings.yaml")
    monkeypatch.setenv("WEBSOCKET_MIN_IDLE", "x")
    lines = refused().split("\n  - ")
    assert lines[0] == "5 settings cannot be used:"
    assert sorted(lines[1:]) == [
        "broken.toml: not TOML: Invalid value (at line 3, column 18)",
        "environment variable RTPOOL_SETTINGS_FILES: settings.yaml is not a .toml file",
        "environment variable RTPOOL_SETTINGS_FILES: there is no file no.toml",
        "environment variable WEBSOCKET_MIN_IDLE: must be a whole number, 0 or more, not 'x'",
        "latin.toml: not UTF-8 text",
    ]
    monkeypatch.delenv("WEBSOCKET_MIN_IDLE")
    assert refused(files="no.toml") == "argument files: there is no file no.toml"


def test_a_file_without_permission(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a = 1")

    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("rtpool_sync.settings.open", refuse, raising=False)
    assert refused() == "settings.toml: Permission denied"


def test_what_dynaconf_can_do_in_files(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    monkeypatch.setenv("ENV_FOR_DYNACONF", "production")
    write(
        """
        [default]
        openai_api_key = "@format {env[THE_KEY]}"
        websocket_min_idle = "@int 3"
        openai_project_id = 4711
        [default.realtime_session]
        voice = "marin"
        [default.realtime_session.audio.output]
        speed = 1.5
        [default.realtime_headers]
        X-Tenant = "a"
        [default.realtime_pools.a]
        api_key = 123456
        session = {voice = "cedar"}
        [production.realtime_session]
        dynaconf_merge = true
        instructions = "kindly"
        [production.realtime_headers]
        X-Region = "@format {env[THE_KEY]}"
        """
    )
    config, sources = load_with_sources()
    assert config.reveal_key() == KEY
    assert (config.min_idle, config.project) == (3, "4711")
    assert config.session == {
        "voice": "marin",
        "audio": {"output": {"speed": 1.5}},
        "instructions": "kindly",
    }
    assert type(config.session["audio"]["output"]).__module__.startswith("rtpool_sync")
    # Two tables have made the one and the last of them the other, and each is named.
    assert sources["session"] == (
        "settings.toml [default] realtime_session and settings.toml [production] realtime_session"
    )
    assert sources["headers"] == "settings.toml [production] realtime_headers"
    assert config.headers == {"X-Region": KEY}
    assert load("a").reveal_key() == "123456"
    assert load("a").session == {"voice": "cedar"}


def test_what_dynaconf_cannot_do(write: Write) -> None:
    write(
        '[default]\nwebsocket_min_idle = "@int three"\nopenai_api_key = "@format {env[NO_SUCH_VARIABLE]}"\n'
        'websocket_max_waiting = "@int 5"\nwebsocket_url = "ws://h"'
    )
    first, *lines = refused().split("\n  - ")
    assert first == "2 settings cannot be used:"
    assert lines[0].startswith("settings.toml [default] websocket_min_idle: dynaconf cannot read it (")
    assert lines[1].startswith("settings.toml [default] openai_api_key: dynaconf cannot evaluate it (")


def test_settings_of_others_are_left_alone(write: Write) -> None:
    write(
        """
        debug = "@int no"
        dynaconf_merge = true
        [default]
        broken = "@int no"
        lazy = "@jinja {{ 1 / 0 }}"
        websocket_secret = "x"
        [database]
        url = "postgres://"
        """
    )
    assert repr(load()) == "PoolConfig()"


def test_without_files_dynaconf_is_not_even_imported() -> None:
    program = "import sys; from rtpool_sync.settings import load; load(); print('dynaconf' in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# -- who wins -----------------------------------------------------------------


def test_precedence(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    write("[default]\nwebsocket_min_idle = 1\nwebsocket_max_waiting = 1\nwebsocket_ping_timeout = 1")
    monkeypatch.setenv("WEBSOCKET_MIN_IDLE", "2")
    monkeypatch.setenv("WEBSOCKET_MAX_WAITING", "2")
    monkeypatch.setenv("WEBSOCKET_PING_INTERVAL", "2")
    host = {"WEBSOCKET_MIN_IDLE": 3, "WEBSOCKET_PING_INTERVAL": 3, "WEBSOCKET_CLOSE_TIMEOUT": 3}
    config, sources = load_with_sources(settings=host, min_idle=4)
    assert (config.min_idle, sources["min_idle"]) == (4, "argument min_idle")
    assert config.close_timeout == 3
    assert (config.ping_interval, sources["ping_interval"]) == (
        3,
        "application setting WEBSOCKET_PING_INTERVAL",
    )
    assert (config.max_waiting, sources["max_waiting"]) == (2, "environment variable WEBSOCKET_MAX_WAITING")
    assert (config.ping_timeout, sources["ping_timeout"]) == (
        1,
        "settings.toml [default] websocket_ping_timeout",
    )
    assert (config.reset_timeout, sources["reset_timeout"]) == (5, "default")


POOLS = """
[default]
websocket_max_connections = 20
websocket_ping_timeout = 20
websocket_max_waiting = 20
[default.realtime_pools.default]
max_connections = 30
ping_timeout = 31
[default.realtime_pools.support]
max_connections = 5
api_key = "support-key"
[default.realtime_pools.support.headers]
X-Tenant = "support"
[production.realtime_pools.support]
MAX_CONNECTIONS = 6
"""


def test_named_pools(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    write(POOLS)
    write('[default.realtime_pools.support]\nsession = {voice = "x"}', ".secrets.toml")
    monkeypatch.setenv("WEBSOCKET_MAX_CONNECTIONS", "15")
    monkeypatch.setenv("WEBSOCKET_MAX_WAITING", "15")
    monkeypatch.setenv("OPENAI_API_KEY", "general-key")

    # The environment beats every file for the default pool…
    config = load()
    assert (config.max_connections, config.ping_timeout, config.max_waiting) == (15, 31, 15)
    # …and only the general settings for any other.
    config, sources = load_with_sources("support")
    assert (config.max_connections, config.ping_timeout, config.max_waiting) == (5, 20, 15)
    assert config.reveal_key() == "support-key"
    assert config.headers == {"X-Tenant": "support"}
    assert config.session == {"voice": "x"}  # the two files' tables of one pool are one
    assert sources["max_connections"] == "settings.toml [default.realtime_pools.support] max_connections"
    assert sources["session"] == ".secrets.toml [default.realtime_pools.support] session"
    # A pool nobody described has the general settings.
    assert load("other").max_connections == 15
    assert load("other").reveal_key() == "general-key"

    monkeypatch.setenv("ENV_FOR_DYNACONF", "production")
    assert load("support").max_connections == 6
    host = {"WEBSOCKET_MAX_CONNECTIONS": 7, "REALTIME_POOLS": {"support": {"ping_timeout": 7}}}
    assert load("support", settings=host).max_connections == 6
    assert load("support", settings=host).ping_timeout == 7
    assert load("support", settings=host, ping_timeout=8).ping_timeout == 8
    assert load(settings=host).max_connections == 7


def test_bad_tables(write: Write) -> None:
    write('[default]\nrealtime_pools = 5\n[production.realtime_pools]\na = "x"')
    assert (
        refused("a")
        == "settings.toml [default.realtime_pools]: must be a table of pools, each a table of settings"
    )
    write('[default.realtime_pools]\na = "x"\n[default.realtime_pools.b]\nmax_conections = 5\nmin_idle = -1')
    assert refused("a") == "settings.toml [default.realtime_pools] a: must be a table of settings"
    assert refused("b") == (
        "2 settings cannot be used:\n"
        "  - settings.toml [default.realtime_pools] b: there is no setting 'max_conections'; "
        "did you mean 'max_connections'?\n"
        "  - settings.toml [default.realtime_pools.b] min_idle: must be a whole number, 0 or more, not -1"
    )
    assert load("c").min_idle == 0
    assert (
        refused("b", settings={"REALTIME_POOLS": {"b": {"OPENAI_API_KEY": KEY}}}).count("did you mean") == 2
    )
    assert "application setting REALTIME_POOLS: must be a table" in refused(
        settings={"REALTIME_POOLS": ["a"]}
    )


def test_a_general_url_does_not_hide_the_base_url_of_a_pool(
    monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    monkeypatch.setenv("WEBSOCKET_URL", "ws://general/x")
    write('[default.realtime_pools.a]\nbase_url = "ws://own"\nmodel = "m"')
    assert load("a").connect_url == "ws://own/realtime?model=m"
    assert load(base_url="ws://own", model="m").connect_url == "ws://own/realtime?model=m"
    assert load(base_url="ws://own", url="ws://own/y").connect_url == "ws://own/y"
    # The OpenAI SDK's variable is general too.
    monkeypatch.setenv("OPENAI_BASE_URL", "https://gateway/v1")
    assert load().connect_url == "ws://general/x"


def test_what_is_general_is_not_sent_to_any_server(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "general-key")
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    write('[default.realtime_pools.a]\napi_key = "own-key"')
    assert load().upgrade_headers(False) == []
    assert load().upgrade_headers(True) == [
        ("Authorization", "Bearer general-key"),
        ("OpenAI-Organization", "org"),
    ]
    assert load("a").upgrade_headers(False) == [("Authorization", "Bearer own-key")]
    assert load(api_key="mine").upgrade_headers(False) == [("Authorization", "Bearer mine")]
    assert load(settings={"OPENAI_API_KEY": "host"}).upgrade_headers(False) == []


def test_the_name_of_a_pool_that_is_nearly_one(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """Any name will do, with the general settings; but a slip should not go unnoticed."""
    write(
        "[default.realtime_pools.support]\nmax_connections = 3\n[default.realtime_pools.line1]\nmin_idle = 1"
    )
    for name in ("support", "default", "sales", "line2"):
        load(name)
    assert caplog.messages == []
    assert load("suport").min_idle == 0
    assert load("helpdsk", settings={"REALTIME_POOLS": {"helpdesk": {"min_idle": 1}}}).min_idle == 0
    assert caplog.messages == [
        "pool 'suport' has no table of its own; did you mean 'support'?",
        "pool 'helpdsk' has no table of its own; did you mean 'helpdesk'?",
    ]


def test_an_application_setting_that_is_nearly_one(caplog: pytest.LogCaptureFixture) -> None:
    load(settings={"REALTIME_MAX_CONECTIONS": 3, "REALTIME_CURRENCY": "EUR", "DEBUG": True, 5: 6})
    assert caplog.messages == [
        "application setting REALTIME_MAX_CONECTIONS is not a setting of rtpool_sync; "
        "did you mean REALTIME_MAX_CONNECTIONS?"
    ]


# -- the application's settings -----------------------------------------------


def hosts(values: dict[str, Any]) -> dict[str, Any]:
    from dynaconf import Dynaconf

    return {
        "dict": values,
        "lower case": {key.lower(): value for key, value in values.items()},
        "attributes": SimpleNamespace(**values),
        "class": type("Settings", (), values),
        "dynaconf": Dynaconf(**values),
    }


@pytest.mark.parametrize("kind", ["dict", "lower case", "attributes", "class", "dynaconf"])
def test_settings_of_the_application(kind: str) -> None:
    host = hosts(
        {
            "WEBSOCKET_MAX_CONNECTIONS": "20",
            "OPENAI_API_KEY": KEY,
            "OPENAI_PROJECT_ID": 4711,
            "WEBSOCKET_URL": None,
            "OPENAI_ORG_ID": "",
            "REALTIME_SESSION": {"audio": {"voice": "x"}},
            "REALTIME_HEADERS": {"X-Tenant": "a"},
            "REALTIME_MIN_IDLE": 2,
            "REALTIME_POOLS": {"default": {"ping_timeout": 3}, "a": {"min_idle": 3, "session": {"b": 1}}},
        }
    )[kind]
    config, sources = load_with_sources(settings=host)
    assert (config.max_connections, config.min_idle, config.ping_timeout) == (20, 2, 3)
    assert (config.reveal_key(), config.project, config.organization, config.url) == (KEY, "4711", None, None)
    assert (config.session, config.headers) == ({"audio": {"voice": "x"}}, {"X-Tenant": "a"})
    assert sources["ping_timeout"] == "application setting REALTIME_POOLS default ping_timeout"
    assert sources["min_idle"] == "application setting REALTIME_MIN_IDLE"
    assert load("a", settings=host).min_idle == 3
    assert load("a", settings=host).session == {"b": 1}


def test_a_callable_key_in_the_application_settings() -> None:
    assert load(settings={"OPENAI_API_KEY": lambda: "rotated"}).reveal_key() == "rotated"


@pytest.mark.parametrize("prefix", ["MYAPP", "OTHER,MYAPP", False])
@pytest.mark.parametrize("text", ["12345", "1e5", "0x1F", "true", "1_000"])
def test_a_key_that_the_applications_dynaconf_has_cast(
    prefix: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynaconf import Dynaconf

    monkeypatch.setenv("MYAPP_OPENAI_API_KEY" if prefix else "OPENAI_API_KEY", text)
    host = Dynaconf(envvar_prefix=prefix, load_dotenv=False)
    if host.get("OPENAI_API_KEY") is None:
        pytest.skip("this version of dynaconf takes one prefix only")
    assert load(settings=host).reveal_key() == text


@pytest.mark.parametrize("bad", ["settings.toml", b"x", Path("x"), 5, ["a"], {"a"}])
def test_what_is_no_settings_object(bad: Any) -> None:
    assert refused(settings=bad).startswith("argument settings: must be a mapping, a Dynaconf object or ")


def test_flask(tmp_path: Path) -> None:
    flask = pytest.importorskip("flask")
    app = flask.Flask("app", root_path=str(tmp_path))
    app.config.update(WEBSOCKET_MAX_CONNECTIONS=3, REALTIME_POOLS={"a": {"min_idle": 2}})
    assert load(settings=app.config).max_connections == 3
    assert load("a", settings=app.config).min_idle == 2


def test_flask_with_dynaconf(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    flask = pytest.importorskip("flask")
    from dynaconf import FlaskDynaconf

    (tmp_path / "settings.toml").write_text(
        "[default]\nwebsocket_max_connections = 3\n[default.realtime_pools.a]\nmin_idle = 2"
    )
    monkeypatch.setenv("FLASK_OPENAI_API_KEY", "1e5")
    app = flask.Flask("app", root_path=str(tmp_path))
    FlaskDynaconf(app, root_path=str(tmp_path), settings_files=["settings.toml"])
    app.config["WEBSOCKET_MAX_WAITING"] = 7
    config = load(settings=app.config)
    assert (config.max_connections, config.max_waiting, config.reveal_key()) == (3, 7, "1e5")
    assert load("a", settings=app.config).min_idle == 2


def test_django() -> None:
    conf = pytest.importorskip("django.conf")
    settings = conf.LazySettings()
    settings.configure(
        WEBSOCKET_MAX_CONNECTIONS=3, OPENAI_API_KEY=None, REALTIME_POOLS={"a": {"min_idle": 2}}
    )
    assert load(settings=settings).max_connections == 3
    assert load("a", settings=settings).min_idle == 2


# -- messages -----------------------------------------------------------------


def test_all_faults_of_all_sources_at_once(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    write("[default]\nwebsocket_min_idle = -1\nwebsocket_max_waiting = true")
    monkeypatch.setenv("WEBSOCKET_MAX_CONNECTIONS", "twenty")
    monkeypatch.setenv("OPENAI_ORG_ID", "a\nb")
    text = refused(settings={"WEBSOCKET_PING_TIMEOUT": "soon"}, ping_interval=0, foo=1)
    assert text.startswith(
        "7 settings cannot be used:\n  - argument foo: there is no setting 'foo'; there are api_key,"
    )
    for start in (
        "argument ping_interval: must be a number of seconds, more than 0, at most 1000000000, not 0",
        "application setting WEBSOCKET_PING_TIMEOUT: must be a number of seconds, ",
        "environment variable WEBSOCKET_MAX_CONNECTIONS: must be a whole number from ",
        "environment variable OPENAI_ORG_ID: the id of an organization must not contain line breaks",
        "settings.toml [default] websocket_min_idle: must be a whole number, 0 or more, not -1",
        "settings.toml [default] websocket_max_waiting: must be a whole number, 0 or more, not True",
    ):
        assert f"\n  - {start}" in text


def test_faults_between_fields_name_both_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBSOCKET_MIN_IDLE", "5")
    name, _, rest = refused(max_connections=3).partition(": ")
    assert name == "environment variable WEBSOCKET_MIN_IDLE"
    assert rest == "5 is more than max_connections (3, argument max_connections)"


@pytest.mark.parametrize("model", sorted(RETIRED_MODELS))
def test_a_model_that_was_shut_down(
    model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_REALTIME_MODEL", model)
    with caplog.at_level(logging.WARNING, "rtpool_sync"):
        assert load().model == model
    assert [(record.name, record.levelname) for record in caplog.records] == [("rtpool_sync", "WARNING")]
    day, instead = RETIRED_MODELS[model]
    assert caplog.messages == [
        f"environment variable OPENAI_REALTIME_MODEL: the model {model} was shut down on {day}; use {instead}"
    ]
    assert SETTINGS["model"].default not in RETIRED_MODELS


def test_slips_of_the_pen_are_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    monkeypatch.setenv("WEBSOCKET_MAX_CONECTIONS", KEY)
    monkeypatch.setenv("WEBSOCKET_TIMEOUT", "1")
    monkeypatch.setenv("WEBSOCKET_SECRET", "1")
    write("[default]\nwebsocket_pingtimeout = 5\nwebsocket_keepalive = 1\n[default.realtime_pool.a]\nb = 1")
    load()
    assert caplog.messages == [
        f"{name} is not a setting of rtpool_sync; did you mean {meant}?"
        for name, meant in {
            "settings.toml [default] websocket_pingtimeout": "WEBSOCKET_PING_TIMEOUT",
            "settings.toml [default] realtime_pool": "REALTIME_POOLS",
            "environment variable WEBSOCKET_MAX_CONECTIONS": "WEBSOCKET_MAX_CONNECTIONS",
        }.items()
    ]


# -- secrets ------------------------------------------------------------------

BAD_HOST = {
    "OPENAI_API_KEY": PLAIN_KEY + "\n",
    "WEBSOCKET_MIN_IDLE": PLAIN_KEY,
    "REALTIME_HEADERS": PLAIN_KEY,
}


@pytest.mark.parametrize("read", [load, load_with_sources])
@pytest.mark.parametrize(
    "arguments",
    [
        lambda: {"api_key": KEY + "\n"},
        lambda: {"api_key": PLAIN_KEY, "min_idle": -1},
        lambda: {"min_idle": KEY},
        lambda: {"apikey": PLAIN_KEY},
        lambda: {"headers": {"a": PLAIN_KEY, "b": 5}},
        lambda: {"api_key": PLAIN_KEY, "model": f"a {PLAIN_KEY}"},
        lambda: {"settings": BAD_HOST},
        lambda: {"settings": SimpleNamespace(**BAD_HOST)},
        lambda: {"settings": {"REALTIME_POOLS": {"default": {"api_key": PLAIN_KEY, "min_idle": -1}}}},
        lambda: {"settings": {"REALTIME_POOLS": {"default": PLAIN_KEY}}},
        lambda: {"settings": KEY},
    ],
)
def test_no_report_of_a_fault_holds_a_secret(
    read: Callable[..., object],
    arguments: Callable[[], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    write: Write,
) -> None:
    monkeypatch.setenv("WEBSOCKET_MAX_WAITING", PLAIN_KEY)
    monkeypatch.setenv("OPENAI_PROJECT_ID", KEY + "\r\n")
    write(f'[default]\nwebsocket_ping_timeout = "{PLAIN_KEY}{PLAIN_KEY}"\nrealtime_session = "{KEY}"')
    write(
        f'[default]\nopenai_api_key = "{PLAIN_KEY}"\nwebsocket_url = "ws://u:{PLAIN_KEY}@h:x"',
        ".secrets.toml",
    )
    with pytest.raises(ConfigError) as caught:
        read(**arguments())
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    # From load() on: the frames above are the caller's own.
    inner = error.__traceback__.tb_next if error.__traceback__ else None
    report = traceback.TracebackException(type(error), error, inner, capture_locals=True).format()
    text = "".join(report) + repr(error) + repr(vars(error))
    assert "in load" in text
    assert "Zq81" not in text
    assert PLAIN_KEY not in text


def test_secrets_of_a_good_config_stay_hidden(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write(f'[default.realtime_headers]\napi-key = "{PLAIN_KEY}"')
    config, sources = load_with_sources()
    assert isinstance(config.api_key, Secret)
    shown = repr(config) + repr(sources) + repr(config.as_dict()) + repr(vars(config))
    assert "Zq81" not in shown
    assert PLAIN_KEY not in shown


# -- docs/settings.md ---------------------------------------------------------


def row_of(setting: Setting) -> str:
    default = (
        "none" if setting.default is None else "empty" if setting.default == {} else f"`{setting.default}`"
    )
    if isinstance(setting.default, float):
        default = f"{setting.default:g}"
    elif isinstance(setting.default, int):
        default = str(setting.default)
    env = f"`{setting.env}`" if setting.env else f"none; in files `{setting.keys[0].lower()}`"
    return f"| `{setting.name}` | {env} | {default} | {setting.kind.allowed} | {setting.doc} |"


def test_the_reference_is_complete() -> None:
    expected = [row_of(setting) for setting in SETTINGS.values()]
    lines = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| `")] == expected, "\n" + "\n".join(expected)


def toml_examples() -> list[tuple[str, str]]:
    """The TOML examples of the documentation: the file named above each, and its text."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    found = []
    for block in text.split("```toml\n")[1:]:
        source = block.split("```")[0]
        found.append((source.splitlines()[0].lstrip("# "), source))
    return found


def test_the_examples_in_the_documentation_work(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = toml_examples()
    assert len(examples) >= 4
    monkeypatch.setenv("AZURE_KEY", "azure-key")
    monkeypatch.setenv("KEY_FROM_THE_VAULT", "sk-production")
    for environment in ("development", "production"):
        monkeypatch.setenv("ENV_FOR_DYNACONF", environment)
        for first_line, source in examples:
            name = first_line.split()[0]
            assert name in ("settings.toml", ".secrets.toml"), first_line
            write(source, name)
            config, sources = load_with_sources(files=[name])
            assert set(sources.values()) != {"default"} or "realtime_pools" in source
            load("support", files=[name])
            assert config.connect_url


def test_names_of_the_pools(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    assert pool_names() == ["default"]
    write(
        "[default.realtime_pools]\ndynaconf_merge = true\n[default.realtime_pools.support]\nmin_idle = 1\n"
        "[production.REALTIME_POOLS.sales]\nmin_idle = 1\n",
    )
    assert pool_names() == ["default", "support"]
    monkeypatch.setenv("ENV_FOR_DYNACONF", "production")
    host = {"REALTIME_POOLS": {"own": {}, "default": {}, 3: {}}}
    assert pool_names(settings=host) == ["default", "support", "sales", "own"]
    assert pool_names(settings={"REALTIME_POOLS": "wrong"}, files=()) == ["default"]


def test_every_problem_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as one:
        load(min_idle=-1)
    assert one.value.problems == (str(one.value),)
    monkeypatch.setenv("WEBSOCKET_PING_TIMEOUT", "30s")
    with pytest.raises(ConfigError) as two:
        load(min_idle=-1)
    assert len(two.value.problems) == 2
    assert all(problem in str(two.value) for problem in two.value.problems)
