"""The key is in nothing that can be read: repr, log records, exceptions, tracebacks with variables."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websocket
from pool_calls import realtime
from pool_support import eventually

from rtpool_sync import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    ConnectionLost,
    PoolConfig,
    PoolTimeout,
    RealtimePool,
)
from rtpool_sync.emulator import Faults, RealtimeServer

#: One like OpenAI's, and one like those of other vendors, which no pattern recognizes.
KEYS = ["sk-proj-Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2", "7f3c9d1be5a84602b91c0d4e6f8a7b35"]


class Everything(logging.Handler):
    """Every record as it could be formatted, its arguments and its traceback included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "rtpool_sync.emulator":
            return  # that is the server's: it was shown the key
        self.texts += [self.format(record), repr(record.args), repr(record.__dict__)]
        if record.exc_info and record.exc_info[1] is not None:
            self.texts.append(shown(record.exc_info[1]))


def shown(error: BaseException) -> str:
    """An exception as error reporters show it: with the variables of every frame."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(report.format()) + repr(error) + repr(error.args) + repr(vars(error))


@pytest.fixture(name="logged")
def _logged() -> Iterator[list[str]]:
    handler = Everything()
    root = logging.getLogger()
    before = {logger: logger.level for logger in (root, logging.getLogger("rtpool_sync"))}
    root.addHandler(handler)
    for logger in before:
        logger.setLevel(logging.DEBUG)
    trace = io.StringIO()
    websocket.enableTrace(True, handler=logging.StreamHandler(trace))
    try:
        yield handler.texts
    finally:
        websocket.enableTrace(False)
        for library in ("websocket", "websocket-client"):
            logging.getLogger(library).handlers.clear()
        root.removeHandler(handler)
        for logger, level in before.items():
            logger.setLevel(level)
        handler.texts.append(trace.getvalue())


def public(pool: RealtimePool) -> list[str]:
    """Everything a pool says of itself."""
    return [
        *(repr(thing) for thing in (pool, pool.config, pool.stats(), pool.health(), pool.__dict__)),
        str(pool.config),
        repr(pool.config.as_dict()),
        repr(pool.config.describe()),
        repr(pool.stats().as_dict()),
        repr(pool.health().as_dict()),
        repr([(event, event.as_dict(), str(event)) for event in pool.events()]),
        repr(pool.connections()),
        repr(vars(pool._ledger)),
        *(repr(member) for member in pool._ledger.members),
    ]


def bad_key(key: str) -> tuple[BaseException, list[str]]:
    with RealtimeServer(api_keys=["another"]) as server, realtime(server, api_key=key) as pool:
        with pytest.raises(AuthenticationError) as caught:
            pool.acquire(10.0)
        return caught.value, public(pool)


def refused_upgrade_that_echoes_the_key(key: str) -> tuple[BaseException, list[str]]:
    body = f'{{"error": "Incorrect API key provided: {key}"}} Authorization: Bearer {key}'
    with RealtimeServer(faults=Faults(refuse=401, refuse_body=body)) as server:
        with realtime(server, api_key=key) as pool:
            with pytest.raises(AuthenticationError) as caught:
                pool.acquire(10.0)
            return caught.value, public(pool)


def refused_upgrade_that_echoes_a_header(key: str) -> tuple[BaseException, list[str]]:
    with RealtimeServer(faults=Faults(refuse=403, refuse_body=f"bad api-key {key}")) as server:
        with realtime(server, api_key=None, headers={"api-key": key}) as pool:
            with pytest.raises(AuthenticationError) as caught:
                pool.acquire(10.0)
            return caught.value, public(pool)


def a_callable_for_the_key(key: str) -> tuple[BaseException, list[str]]:
    with RealtimeServer(faults=Faults(refuse=401, refuse_body=f"bad key {key}")) as server:
        with realtime(server, api_key=lambda: key) as pool:
            with pytest.raises(AuthenticationError) as caught:
                pool.acquire(10.0)
            return caught.value, public(pool)


def a_close_frame_that_echoes_the_key(key: str) -> tuple[BaseException, list[str]]:
    faults = Faults(close_after=0, close_code=3000, close_reason=f"invalid_api_key {key}")
    with RealtimeServer(faults=faults) as server, realtime(server, api_key=key) as pool:
        with pytest.raises((ConnectError, PoolTimeout)) as caught:
            pool.acquire(0.5)
        return caught.value, public(pool)


def bad_settings(key: str) -> tuple[BaseException, list[str]]:
    with pytest.raises(ConfigError) as caught:
        RealtimePool(api_key=key, max_connections=-1, model=key, nonsense=key)  # type: ignore[call-arg]
    return caught.value, []


def bad_settings_of_a_config(key: str) -> tuple[BaseException, list[str]]:
    config = PoolConfig(api_key=key, headers={"api-key": key})
    with pytest.raises(ConfigError) as caught:
        RealtimePool(config, min_idle=99, headers={"api-key": key, "x\n": key})
    return caught.value, [repr(config)]


def timeout(key: str) -> tuple[BaseException, list[str]]:
    faults = Faults(refuse=503, refuse_body=f"key {key} is over its limit")
    with RealtimeServer(faults=faults) as server, realtime(server, api_key=key) as pool:
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(0.3)
        assert caught.value.__cause__ is not None
        return caught.value, public(pool)


def connection_lost(key: str) -> tuple[BaseException, list[str]]:
    with RealtimeServer() as server, realtime(server, api_key=key) as pool:
        with pytest.raises(ConnectionLost) as caught, pool.connection(10.0) as conn:
            conn.send({"type": "input_audio_buffer.clear"})
            conn.recv(10.0)
            texts = [repr(conn), repr(conn._transport), repr(vars(conn._transport)), *public(pool)]
            server.inject("reset")
            conn.recv(10.0)
        eventually(lambda: pool.stats().total_connections == 0)
        return caught.value, [*texts, *public(pool)]


def nothing_there(key: str) -> tuple[BaseException, list[str]]:
    server = RealtimeServer()
    with server:
        pool = realtime(server, api_key=key)
    with pool, pytest.raises(PoolTimeout) as caught:
        pool.acquire(0.1)
    return caught.value, public(pool)


SCENES: list[Callable[[str], tuple[BaseException, list[str]]]] = [
    bad_key,
    refused_upgrade_that_echoes_the_key,
    refused_upgrade_that_echoes_a_header,
    a_callable_for_the_key,
    a_close_frame_that_echoes_the_key,
    bad_settings,
    bad_settings_of_a_config,
    timeout,
    connection_lost,
    nothing_there,
]


@pytest.mark.parametrize("key", KEYS, ids=["openai", "other"])
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_the_key_is_nowhere(scene: Callable[[str], Any], key: str, logged: list[str]) -> None:
    error, texts = scene(key)
    # The frames of this file hold the key, by the nature of the thing: begin behind them.
    texts += [shown(step.with_traceback(ours(step))) for step in chain(error)]
    texts += logged
    for text in texts:
        where = text.find(key)
        assert where < 0, text[max(0, where - 300) : where + len(key)]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        following = error.__cause__ or error.__context__
        error.__cause__ = error.__context__ = None
        yield error
        error = following


def ours(error: BaseException) -> Any:
    """The traceback of an exception without the frames of this file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


@pytest.mark.parametrize("key", KEYS, ids=["openai", "other"])
def test_nor_half_of_it_where_a_long_answer_is_cut_short(key: str) -> None:
    body = "The given key is not known here. " * 8 + "It is: "
    with RealtimeServer(faults=Faults(refuse=401, refuse_body=body.ljust(288, ".") + key)) as server:
        with realtime(server, api_key=key) as pool:
            with pytest.raises(AuthenticationError) as caught:
                pool.acquire(10.0)
    assert "not known here" in str(caught.value)
    assert key[:6] not in str(caught.value)


def test_this_file_would_notice(logged: list[str]) -> None:
    """What it looks through does show secrets that are there."""

    def fail(hidden: str) -> None:
        logging.getLogger("rtpool_sync").debug("a key: %s", hidden)
        raise KeyError(len(hidden))

    with pytest.raises(KeyError) as caught:
        fail(KEYS[0])
    assert KEYS[0] in shown(caught.value)
    assert any(KEYS[0] in text for text in logged)
