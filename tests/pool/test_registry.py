"""The process-wide pools, by name; and what a pool is made of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pool_calls import echo
from pool_support import plain

from rtpool_sync import ConfigError, PoolConfig, RealtimePool, get_pool, registry
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.protocols.plain import PlainProtocol


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    monkeypatch.setattr(registry, "_pools", {})
    yield
    for pool in registry._pools.values():
        pool.close()


def test_one_pool_for_each_name() -> None:
    pool = get_pool()
    assert pool is get_pool("default")
    assert get_pool("other") is get_pool("other") is not pool
    assert (pool.name, get_pool("other").name) == ("default", "other")


def test_a_pool_that_was_closed_is_replaced() -> None:
    pool = get_pool()
    pool.close()
    assert get_pool() is not pool
    assert not get_pool().closed


def test_threads_that_ask_at_the_same_time_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)
    made = RealtimePool

    def slowly(**options: Any) -> RealtimePool:
        both.wait(10.0)
        return made(**options)

    monkeypatch.setattr(registry, "RealtimePool", slowly)
    found: list[RealtimePool] = []
    threads = [threading.Thread(target=lambda: found.append(get_pool("raced"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert found[0] is found[1]


def test_missing_settings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        get_pool()


def test_a_pool_of_a_protocol_object() -> None:
    with RealtimeServer() as server:
        with RealtimePool(url=server.echo_url, protocol=PlainProtocol()) as pool:
            with pool.connection(10.0) as conn:
                echo(conn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "smoke signals"}, "'realtime', 'plain' or a Protocol object"),
        ({"config": {"max_connections": 1}}, "must be a PoolConfig"),
        ({"max_conections": 1}, "max_connections"),
        ({"max_connections": 0}, "max_connections"),
        ({"name": 5}, "name must be text on one line, not 5"),
        ({"name": "a\nb"}, "name must be text on one line"),
        ({"registry": "mine"}, "registry must be a prometheus_client registry, .* not str"),
    ],
)
def test_what_a_pool_cannot_be_made_of(arguments: dict[str, Any], message: str) -> None:
    config = arguments.pop("config", None)
    with pytest.raises(ConfigError, match=message):
        RealtimePool(config, **arguments)


def test_a_config_has_its_place_and_no_name() -> None:
    with pytest.raises(ConfigError, match=r"without a name: RealtimePool\(config, "):
        RealtimePool(config=PoolConfig(api_key="sk-test"))  # type: ignore[call-arg]


def test_a_config_and_what_overrides_it() -> None:
    config = PoolConfig(url="ws://127.0.0.1:9/", max_connections=3)
    pool = RealtimePool(config, protocol="plain", max_connections=5)
    assert (pool.config.max_connections, config.max_connections) == (5, 3)
    assert plain("ws://127.0.0.1:9/").config.max_connections == 10
