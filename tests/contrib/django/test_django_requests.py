"""What a request borrows and does not return is back at its end, and a warning says which view it was."""

from __future__ import annotations

import asyncio
import http.client
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import django_urls
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import AsyncClient, Client, override_settings
from django_support import KEY, eventually
from waitress.server import create_server

from rtpool_sync import ConnectionReturned
from rtpool_sync.contrib import borrowing
from rtpool_sync.contrib.django import borrowed, pools

Configure = Callable[..., None]


@pytest.fixture(autouse=True)
def pool(configure: Configure) -> Iterator[None]:
    configure({"default": {"MAX_CONNECTIONS": 4}})
    yield
    django_urls.kept.clear()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING)

    def texts() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "rtpool_sync"]

    return texts


Warnings = Callable[[], list[str]]


def in_use() -> int:
    return pools["default"].stats().active_sessions


def test_a_view_that_returns_what_it_takes(warnings: Warnings) -> None:
    for _ in range(3):
        assert Client().get("/well").status_code == 200
    assert in_use() == 0
    assert warnings() == []


def test_a_view_that_keeps_one(warnings: Warnings) -> None:
    answer = Client().get("/keeps/secret-token-of-a-caller?k=v")
    assert in_use() == 0
    with pytest.raises(ConnectionReturned):
        django_urls.kept[0].ping()
    [text] = warnings()
    assert text.startswith(
        "view django_urls.keeps (GET /keeps/<str:token>) did not return "
        f"connection #{answer.content.decode()} of pool 'default', taken at {django_urls.__file__}:"
    )
    assert "in keeps: it was returned for it" in text
    assert "secret-token" not in text


def test_a_view_that_loses_one(warnings: Warnings) -> None:
    Client().get("/drops")
    eventually(lambda: in_use() == 0)
    [text] = [text for text in warnings() if text.startswith("view ")]
    assert text.startswith("view django_urls.drops (GET /drops) lost connection #")


def test_a_view_that_fails(warnings: Warnings) -> None:
    answer = Client(raise_request_exception=False).get("/fails")
    assert answer.status_code == 500
    assert in_use() == 0
    assert [text.partition(" did not")[0] for text in warnings()] == ["view django_urls.fails (GET /fails)"]


def test_the_body_may_go_on_using_it(warnings: Warnings) -> None:
    answer = Client().get("/streams")
    assert b"".join(answer.streaming_content) == b"x" * 30  # pings before each part
    assert in_use() == 0
    assert [text.partition(" did not")[0] for text in warnings()] == [
        "view django_urls.streams (GET /streams)"
    ]


def test_a_request_inside_of_a_request(warnings: Warnings) -> None:
    Client().get("/nested")
    assert in_use() == 0
    assert [text.partition(" did not")[0] for text in warnings()] == [
        "view django_urls.keeps (GET /keeps/<str:token>)"
    ]


def test_work_in_the_background_keeps_what_it_has(warnings: Warnings) -> None:
    django_urls.waiting.clear()
    Client().get("/background")
    assert in_use() == 1
    django_urls.waiting.set()
    thread = django_urls.kept[0]
    thread.join(10.0)
    assert django_urls.kept[1] > 0  # it could be used after the request
    assert in_use() == 0
    assert warnings() == []


def test_under_asgi(warnings: Warnings) -> None:
    handler = ASGIHandler()

    async def visit(path: str) -> None:
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        sent: list[dict[str, Any]] = []
        over = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if scope.setdefault("asked", False):
                await over.wait()
                return {"type": "http.disconnect"}
            scope["asked"] = True
            return {"type": "http.request", "body": b""}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await handler(scope, receive, send)
        assert sent[0]["status"] == 200

    async def visits() -> None:
        await asyncio.gather(*(visit(f"/keeps/{number}") for number in range(4)), visit("/well"))
        await asyncio.gather(*(visit("/well") for _ in range(8)))

    asyncio.run(visits())
    assert in_use() == 0
    assert [text.partition(" did not")[0] for text in warnings()] == [
        "view django_urls.keeps (GET /keeps/<str:token>)"
    ] * 4


def test_with_the_asynchronous_test_client() -> None:
    """It gives nothing to know a request by: nobody's connection is touched."""

    async def visits() -> None:
        client = AsyncClient()
        assert (await client.get("/keeps/1")).status_code == 200
        assert (await client.get("/well")).status_code == 200

    asyncio.run(visits())
    assert django_urls.kept[0].ping() > 0
    pools["default"].release(django_urls.kept[0])


def test_outside_of_requests_nothing_is_returned(warnings: Warnings) -> None:
    Client().get("/well")
    conn = pools["default"].acquire()
    Client().get("/well")
    assert conn.ping() > 0
    pools["default"].release(conn)
    assert warnings() == []


def test_many_checkouts_in_one_request_leave_no_notes() -> None:
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/long"}
    borrowed.started(None, environ=environ)
    kept = pools["default"].acquire()
    for _ in range(200):
        with pools["default"].connection() as conn:
            conn.invalidate() if conn.session_count > 5 else None
    request = environ["rtpool_sync.borrowed"]
    assert len(request._notes) < 20
    assert any(entry.handle() is kept for entry in request._notes)
    borrowed.finished(None)
    assert in_use() == 0
    assert len(borrowing._notes) == 0


def test_a_request_that_never_ends_is_forgotten_with_its_environ(warnings: Warnings) -> None:
    """As when SystemExit (a worker's abort) goes through the handler: no signal is sent."""
    for _ in range(5):
        environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/well"}
        borrowed.started(None, environ=environ)
        handle = pools["default"].acquire()
        del environ, handle
        eventually(lambda: in_use() == 0)
    Client().get("/well")
    assert borrowed._request() is None


class _Server:
    def __init__(self, threads: int) -> None:
        self._server = create_server(WSGIHandler(), host="127.0.0.1", port=0, threads=threads)
        self.port = self._server.effective_port
        self._thread = threading.Thread(target=self._server.run, name="waitress")
        self._thread.start()

    def get(self, path: str) -> tuple[int, bytes]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20.0)
        try:
            client.request("GET", path)
            answer = client.getresponse()
            return answer.status, answer.read()
        finally:
            client.close()

    def close(self) -> None:
        # In its own thread: it may be waiting for the very descriptors that are closed.
        self._server.trigger.pull_trigger(self._server.close)
        self._server.task_dispatcher.shutdown()
        self._thread.join(10.0)
        assert not self._thread.is_alive()


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(threads=4)
    yield server
    server.close()


def test_in_a_real_server_with_threads(server: _Server, warnings: Warnings) -> None:
    """Careless and careful views at the same time: everybody is answered, nothing is taken from another."""
    statuses: list[int] = []

    def visit(number: int) -> None:
        for turn in range(8):
            path = ("/well", f"/keeps/{number}-{turn}", "/streams", "/drops")[(number + turn) % 4]
            status, _ = server.get(path)
            statuses.append(status)

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(6)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(40.0)
    assert statuses == [200] * 48
    eventually(lambda: in_use() == 0)

    def told() -> list[str]:
        return [text.split(" (")[0] for text in warnings() if text.startswith("view ")]

    eventually(lambda: len(told()) >= 36)  # what is back may not have been told of yet
    assert len(told()) == 36
    assert sorted(set(told())) == [
        "view django_urls.drops",
        "view django_urls.keeps",
        "view django_urls.streams",
    ]


def test_a_client_that_goes_away_in_the_middle_of_a_stream(server: _Server, warnings: Warnings) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20.0)
    client.request("GET", "/streams-well")
    answer = client.getresponse()
    assert answer.read(100_000)
    assert in_use() == 1
    answer.close()
    client.close()
    eventually(lambda: in_use() == 0)
    assert [text for text in warnings() if text.startswith("view ")] == []


@pytest.mark.parametrize("fault", [{"MAX_CONNECTIONS": 0}, {"MAX_CONECTIONS": 1}])
def test_no_key_on_the_page_of_an_error(fault: dict[str, int]) -> None:
    """DEBUG's page shows settings, and the variables of every frame."""
    table = {"API_KEY": KEY, "HEADERS": {"api-key": KEY + "x"}, **fault}
    with override_settings(DEBUG=True, REALTIME_POOLS={"default": table}):
        answer = Client(raise_request_exception=False).get("/misconfigured")
    page = answer.content.decode()
    assert answer.status_code == 500
    assert "ConfigError" in page
    assert "REALTIME_POOLS" in page
    assert KEY not in page
