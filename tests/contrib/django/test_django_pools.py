"""``pools`` and ``connection()``: made when asked for, one for all threads, as the settings say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from django_support import KEY, pool_threads

from rtpool_sync import ConfigError
from rtpool_sync.contrib.django import UnknownPool, connection, pools
from rtpool_sync.emulator import RealtimeServer

Configure = Callable[..., None]
ROOT = Path(__file__).parents[3]


def test_a_pool_is_made_when_asked_for_and_opens_nothing(
    configure: Configure, emulator: RealtimeServer
) -> None:
    configure({"default": {"MAX_CONNECTIONS": 3, "min_idle": 2}, "support": {"MODEL": "other"}})
    before = emulator.opened_total
    assert pools.all(initialized_only=True) == []
    pool = pools["default"]
    assert pools["default"] is pool
    assert (pool.name, pool.config.max_connections, pool.config.min_idle) == ("default", 3, 2)
    assert pools["support"].config.model == "other"
    assert pools["support"].config.max_connections == 10
    assert emulator.opened_total == before
    assert pool_threads() == []


def test_a_mapping(configure: Configure) -> None:
    configure({"support": {}, "default": {}})
    assert list(pools) == ["default", "support"]
    assert len(pools) == 2
    assert "support" in pools
    assert "sales" not in pools
    assert 3 not in pools
    assert pools.all(initialized_only=True) == []  # none of that makes one
    assert pools.get("sales") is None
    assert [pool.name for pool in pools.all()] == ["default", "support"]
    assert repr(pools) == "<Pools in use: 'default', 'support'>"


def test_connections(configure: Configure) -> None:
    configure({"default": {}, "support": {}})
    with connection() as conn:
        assert conn.ping() > 0
        assert pools["default"].stats().active_sessions == 1
    with connection("support", timeout=5.0, session={"instructions": "Be brief."}) as conn:
        assert "'support'" in repr(conn)
    with pools["support"].connection() as conn:
        assert conn.ping() > 0


@pytest.mark.parametrize("name", ["suport", "", None, 3, KEY * 5])
def test_an_unknown_pool(configure: Configure, name: Any) -> None:
    configure({"default": {}, "support": {}})
    with pytest.raises(UnknownPool) as info:
        pools[name]
    assert isinstance(info.value, KeyError)
    assert isinstance(info.value, ConfigError)
    text = str(info.value)
    assert text.startswith("there is no pool ")
    assert text.endswith("there are: default, support")
    assert KEY not in text
    if name == "suport":
        assert "did you mean 'support'?" in text


def test_without_any_setting_there_is_the_pool_of_the_environment(
    emulator: RealtimeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no API key"):
        connection()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
    with connection() as conn:
        assert conn.ping() > 0
    assert list(pools) == ["default"]


def test_all_faults_at_once() -> None:
    with override_settings(REALTIME_POOLS={"default": {"MAX_CONECTIONS": 3, "MIN_IDLE": -1, "API_KEY": KEY}}):
        with pytest.raises(ConfigError) as info:
            pools["default"]
    assert len(info.value.problems) == 2
    assert "did you mean 'max_connections'?" in str(info.value)
    assert KEY not in str(info.value)


def test_general_settings_and_those_of_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBSOCKET_MAX_CONNECTIONS", "7")
    monkeypatch.setenv("WEBSOCKET_MIN_IDLE", "2")
    with override_settings(
        OPENAI_API_KEY=KEY, WEBSOCKET_MIN_IDLE=3, REALTIME_POOLS={"support": {"PING_TIMEOUT": 4}}
    ):
        assert pools["default"].config.max_connections == 7
        assert pools["default"].config.min_idle == 3
        assert pools["support"].config.ping_timeout == 4
        assert pools["support"].config.min_idle == 3


def test_settings_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "elsewhere" / "pools.toml"
    file.parent.mkdir()
    file.write_text(
        f'[default]\nopenai_api_key = "{KEY}"\n[default.realtime_pools.support]\nmax_connections = 4\n'
        "[production]\nwebsocket_max_connections = 40\n"
    )
    with override_settings(REALTIME_SETTINGS_FILES=[file]):
        assert list(pools) == ["default", "support"]
        assert pools["default"].config.max_connections == 10
        assert pools["support"].config.max_connections == 4
        pools.close_all()
        monkeypatch.setenv("ENV_FOR_DYNACONF", "production")
        assert pools["default"].config.max_connections == 40
    with (
        override_settings(REALTIME_SETTINGS_FILES=3),
        pytest.raises(ConfigError, match="a list of paths, not int"),
    ):
        pools["default"]


def test_one_pool_for_all_threads(configure: Configure) -> None:
    configure()
    barrier = threading.Barrier(16)
    found = []

    def ask() -> None:
        barrier.wait(10.0)
        found.append(pools["default"])

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert len(found) == 16
    assert len(set(map(id, found))) == 1


def test_a_closed_pool_is_replaced(configure: Configure) -> None:
    configure()
    first = pools["default"]
    first.close()
    assert pools["default"] is not first
    with connection() as conn:
        assert conn.ping() > 0


def test_override_settings_makes_new_pools(configure: Configure, emulator: RealtimeServer) -> None:
    configure({"default": {"MAX_CONNECTIONS": 5}})
    outer = pools["default"]
    with connection() as conn:
        conn.ping()
    with override_settings(WEBSOCKET_PING_TIMEOUT=12):
        assert outer.closed
        assert pools["default"].config.ping_timeout == 12
        inner = pools["default"]
        with connection() as conn:
            conn.ping()
    assert inner.closed
    assert pools["default"].config.ping_timeout == 30
    again = pools["default"]
    with override_settings(LANGUAGE_CODE="de"):  # none of its business
        assert pools["default"] is again


def test_protocols() -> None:
    from rtpool_sync.protocols.plain import PlainProtocol

    url = "ws://127.0.0.1:1"
    dotted = "rtpool_sync.protocols.plain.PlainProtocol"
    tables = {
        "plain": {"PROTOCOL": "plain", "URL": url},
        "dotted": {"protocol": dotted, "URL": url},
        "object": {"PROTOCOL": PlainProtocol(), "URL": url},
        "wrong": {"PROTOCOL": "websocket", "URL": url},
        "nowhere": {"PROTOCOL": "no.such.thing", "URL": url},
        "default": {"API_KEY": KEY},
    }
    with override_settings(REALTIME_POOLS=tables):
        for name in ("plain", "dotted", "object", "default"):
            assert pools[name].name == name
        with pytest.raises(ConfigError, match=r"REALTIME_POOLS\['wrong'\]\['PROTOCOL'\] must be 'realtime'"):
            pools["wrong"]
        with pytest.raises(ConfigError, match="No module named 'no'"):
            pools["nowhere"]


def test_a_forked_child_has_pools_of_its_own(configure: Configure) -> None:
    configure()
    with connection() as conn:
        parent = conn.session_id
    pools._lock.acquire()  # as if another thread were about to enter a pool
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with connection() as conn:
                code = 0 if conn.session_id != parent and conn.ping() > 0 else 2
            pools["default"].close()
            code = code or (0 if pools["default"] is not None else 3)
        finally:
            os._exit(code)
    pools._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with connection() as conn:
        assert conn.ping() > 0


DYNACONF = """
import os, sys
SECRET_KEY = "x"
INSTALLED_APPS = ["rtpool_sync.contrib.django"]
DEBUG = False
import dynaconf
settings = dynaconf.DjangoDynaconf(__name__)
"""
DYNACONF_TOML = """
[default]
websocket_max_connections = 11
[default.realtime_pools.support]
max_connections = 4
[development]
websocket_url = "ws://localhost:1"
openai_api_key = "sk-development"
[production]
websocket_min_idle = 2
openai_api_key = "sk-production"
"""
DYNACONF_PROGRAM = """
import django
django.setup()
from django.core.checks import run_checks
from rtpool_sync.contrib.django import pools
config = pools["default"].config
print(list(pools), config.max_connections, config.min_idle, config.url, config.reveal_key())
print(pools["support"].config.max_connections, [message.id for message in run_checks()])
"""


def test_django_settings_from_dynaconf(tmp_path: Path) -> None:
    """Its environment (DJANGO_ENV) decides, also where settings.toml lies in the working directory."""
    (tmp_path / "host_settings.py").write_text(DYNACONF)
    (tmp_path / "settings.toml").write_text(DYNACONF_TOML)

    def run(**environment: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", DYNACONF_PROGRAM],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
                "DJANGO_SETTINGS_MODULE": "host_settings",
                **environment,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=40,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert run() == ["['default', 'support'] 11 0 ws://localhost:1 sk-development", "4 ['rtpool.W002']"]
    assert run(DJANGO_ENV="production") == [
        "['default', 'support'] 11 2 None sk-production",
        "4 ['rtpool.W002']",
    ]
    variables = {
        "DJANGO_WEBSOCKET_MAX_CONNECTIONS": "6",
        "DJANGO_REALTIME_POOLS__SUPPORT__MAX_CONNECTIONS": "5",
    }
    assert run(DJANGO_ENV="production", **variables)[0].startswith("['default', 'support'] 6 ")


def test_without_django_the_error_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['django'] = None\n"
        "try:\n    import rtpool_sync.contrib.django\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert "pip install 'rtpool-sync[django]'" in done.stdout
