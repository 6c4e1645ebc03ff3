"""Code written against the original manager, with `async` and `await` removed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import websocket

from rtpool_sync import ConnectionReturned, PoolClosed, PoolTimeout, RealtimePool, compat
from rtpool_sync.emulator import RealtimeServer

STATS_KEYS = {
    "total_connections",
    "healthy_connections",
    "active_sessions",
    "total_sessions_handled",
    "max_connections",
    "use_mock",
}


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        yield server


@pytest.fixture
def manager(server: RealtimeServer) -> Iterator[compat.WebSocketManager]:
    manager = compat.WebSocketManager(base_url=server.base_url, api_key="test", max_connections=2)
    yield manager
    manager.shutdown(timeout=2)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, server: RealtimeServer) -> Iterator[pytest.MonkeyPatch]:
    """Settings for the process-wide manager, which is unmade before and after."""
    for name in ("OPUSAGENT_USE_MOCK", "OPUSAGENT_MOCK_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setattr(compat, "_manager", None)
    yield monkeypatch
    compat.websocket_manager.shutdown(timeout=2)


def test_a_conversation(manager: compat.WebSocketManager) -> None:
    with manager.connection_context() as connection:
        connection.websocket.settimeout(10)
        connection.websocket.send(
            json.dumps(
                {
                    "type": "conversation.item.create",
                    "item": {
                        "type": "message",
                        "role": "user",
                        "content": [{"type": "input_text", "text": "hello"}],
                    },
                }
            )
        )
        connection.websocket.send(
            json.dumps({"type": "response.create", "response": {"output_modalities": ["text"]}})
        )
        kinds = []
        for message in connection.websocket:
            kinds.append(json.loads(message)["type"])
            if kinds[-1] == "response.done":
                break
    assert "response.output_text.delta" in kinds


def test_the_attributes_of_a_connection(manager: compat.WebSocketManager) -> None:
    with manager.connection_context() as connection:
        assert isinstance(connection.connection_id, str)
        assert connection.session_count == 1
        assert connection.is_healthy
        assert 0 <= connection.age_seconds < 60
        assert 0 <= connection.idle_seconds < 60
        assert connection.websocket.connected
        assert connection.connection_id in repr(connection)
        # …and all that a pooled connection has:
        connection.send({"type": "response.create", "response": {"output_modalities": ["text"]}})
        assert next(iter(connection))["type"].startswith("response.")
        with pytest.raises(AttributeError):
            connection.no_such_thing  # noqa: B018
    with pytest.raises(ConnectionReturned):
        connection.recv()


def test_a_connection_belongs_to_one_caller(manager: compat.WebSocketManager) -> None:
    with manager.connection_context() as one, manager.connection_context() as other:
        assert one.connection_id != other.connection_id
        with pytest.raises(PoolTimeout):
            manager.get_connection(timeout=0.05)


def test_get_and_release(manager: compat.WebSocketManager) -> None:
    connection = manager.get_connection()
    assert manager.get_stats()["active_sessions"] == 1
    manager.release_connection(connection)
    assert manager.get_stats()["active_sessions"] == 0
    with pytest.raises(ConnectionReturned):
        connection.websocket.send("{}")


@pytest.mark.parametrize("how", ["close", "unhealthy", "websocket"])
def test_what_was_closed_is_not_used_again(manager: compat.WebSocketManager, how: str) -> None:
    connection = manager.get_connection()
    name = connection.connection_id
    if how == "close":
        connection.close()
        connection.close()
    else:
        if how == "unhealthy":
            connection.is_healthy = True  # says nothing
            connection.is_healthy = False
        else:
            connection.websocket.close()
        manager.release_connection(connection)
    with manager.connection_context() as first, manager.connection_context() as second:
        assert name not in (first.connection_id, second.connection_id)


def test_an_exception_of_the_caller_passes_through(manager: compat.WebSocketManager) -> None:
    with pytest.raises(KeyError):
        with manager.connection_context():
            raise KeyError("mine")
    assert manager.get_stats()["active_sessions"] == 0


def test_statistics_and_settings(manager: compat.WebSocketManager) -> None:
    before = manager.get_stats()
    assert set(before) == STATS_KEYS
    assert before["total_connections"] == before["total_sessions_handled"] == 0
    for _ in range(3):
        with manager.connection_context():
            inside = manager.get_stats()
    assert inside["active_sessions"] == 1
    assert inside["total_sessions_handled"] == 3
    assert inside["max_connections"] == manager.max_connections == 2
    assert inside["use_mock"] is False
    assert manager.max_connection_age == 3600
    assert manager.max_idle_time == 300
    assert manager.health_check_interval == 30
    assert "WebSocketManager" in repr(manager)


def test_close_all_leaves_calls_alone(manager: compat.WebSocketManager) -> None:
    with manager.connection_context() as connection:
        name = connection.connection_id
        manager.close_all_connections()
        assert connection.ping() >= 0
    with manager.connection_context() as connection:
        assert connection.connection_id != name


def test_shutdown_is_final(manager: compat.WebSocketManager) -> None:
    with manager.connection_context():
        pass
    manager.shutdown()
    assert manager.get_stats()["total_connections"] == 0
    with pytest.raises(PoolClosed):
        manager.get_connection()


def test_a_shutdown_ends_a_forgotten_call(manager: compat.WebSocketManager) -> None:
    connection = manager.get_connection()
    ended = threading.Event()

    def listen() -> None:
        with pytest.raises(websocket.WebSocketConnectionClosedException):
            connection.websocket.recv()
        ended.set()

    thread = threading.Thread(target=listen)
    thread.start()
    manager.shutdown(timeout=0.1)
    assert ended.wait(5)
    thread.join()


def test_the_process_wide_manager(environment: pytest.MonkeyPatch) -> None:
    from rtpool_sync import get_pool

    manager = compat.websocket_manager
    assert manager is compat.websocket_manager is compat.get_websocket_manager()
    assert manager.pool is get_pool()
    assert manager.get_stats()["total_connections"] == 0
    with manager.connection_context() as connection:
        assert connection.is_healthy
    manager.shutdown()
    with pytest.raises(PoolClosed):
        manager.get_connection()
    assert compat.websocket_manager is not manager
    with compat.websocket_manager.connection_context() as connection:
        assert connection.is_healthy


def test_mock_mode(environment: pytest.MonkeyPatch, server: RealtimeServer) -> None:
    environment.delenv("OPENAI_API_KEY")
    environment.setenv("OPENAI_BASE_URL", "ws://127.0.0.1:9/nobody")
    url = server.url + "?model=mock"
    environment.setenv("OPUSAGENT_USE_MOCK", "true")
    environment.setenv("OPUSAGENT_MOCK_SERVER_URL", url)
    assert compat.websocket_manager.use_mock
    with compat.websocket_manager.connection_context() as connection:
        assert connection.is_healthy
    for manager in (
        compat.create_mock_websocket_manager(url),
        compat.create_websocket_manager(use_mock=True, mock_server_url=url),
    ):
        with manager.connection_context() as connection:
            assert connection.is_healthy
        assert manager.get_stats()["use_mock"] is True
        manager.shutdown()


@pytest.mark.parametrize("path", ["", "/"])
def test_a_stand_in_that_is_named_as_the_originals_was(
    environment: pytest.MonkeyPatch, server: RealtimeServer, path: str
) -> None:
    """Its default is ws://localhost:8080, which is where `rtpool emulator` listens."""
    environment.setenv("WEBSOCKET_URL", "ws://127.0.0.1:9/nobody")
    manager = compat.WebSocketManager(
        use_mock=True, mock_server_url=f"ws://{server.host}:{server.port}{path}"
    )
    with manager.connection_context() as connection:
        assert connection.session_id
    manager.shutdown()


def test_a_pool_of_ones_own(server: RealtimeServer) -> None:
    with RealtimePool(base_url=server.base_url, api_key="test", name="own") as pool:
        manager = compat.WebSocketManager(pool=pool)
        with manager.connection_context() as connection:
            assert connection.connection_id.startswith("own_")
        with pytest.raises(TypeError):
            compat.WebSocketManager(pool=pool, max_connections=3)


def test_importing_and_naming_open_nothing(server: RealtimeServer) -> None:
    program = (
        "import threading\n"
        "import rtpool_sync.compat as compat\n"
        "compat.websocket_manager\n"
        "assert threading.active_count() == 1\n"
        "try: compat.nothing\n"
        "except AttributeError: print('fine')\n"
    )
    before = server.opened_total
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "test", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)
    assert server.opened_total == before
