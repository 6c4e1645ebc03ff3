"""The monitoring pages inside of a Django project."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.test import AsyncClient, Client, override_settings
from django.urls import reverse
from django_support import KEY

from rtpool_sync.contrib.django import connection, pools
from rtpool_sync.emulator import RealtimeServer

Configure = Callable[..., None]
PAGES = ("", "health", "stats", "config", "metrics", "status.js", "status.css")


@pytest.fixture(autouse=True)
def two_pools(configure: Configure) -> None:
    configure({"default": {"MAX_CONNECTIONS": 4}, "support": {"HEADERS": {"X-Team": KEY}}})


@pytest.mark.parametrize("page", PAGES)
def test_every_page(page: str, emulator: RealtimeServer) -> None:
    opened = emulator.opened_total
    answer = Client().get("/realtime/" + page)
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert KEY not in answer.content.decode()
    head = Client().head("/realtime/" + page)
    assert (head.status_code, head.content) == (200, b"")
    assert head["Content-Type"] == answer["Content-Type"]
    assert emulator.opened_total == opened  # looking opens nothing


def test_what_the_pages_say() -> None:
    with connection() as conn:
        conn.ping()
        stats = Client().get("/realtime/stats").json()
        assert [pool["name"] for pool in stats["pools"]] == ["default", "support"]
        assert stats["active_sessions"] == 1
    health = Client().get("/realtime/health").json()
    assert health["status"] == "healthy"
    assert health["websocket_manager"]["max_connections"] == 14
    metrics = Client().get("/realtime/metrics").content.decode()
    assert re.search(r'^rtpool_max_connections\{pool="default"\} 4\.0$', metrics, re.MULTILINE)
    assert 'rtpool_max_connections{pool="support"} 10.0' in metrics
    page = Client().get("/realtime/").content.decode()
    for link in re.findall(r'(?:href|src)="([a-z][\w.]*)"', page):
        assert Client().get("/realtime/" + link).status_code == 200, link


def test_openmetrics_when_asked_for() -> None:
    answer = Client().get(
        "/realtime/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert answer["Content-Type"].startswith("application/openmetrics-text")
    assert answer.content.endswith(b"# EOF\n")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_other_methods(page: str, method: str) -> None:
    answer = getattr(Client(enforce_csrf_checks=True), method)("/realtime/" + page)
    assert answer.status_code == 405
    assert answer["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("append", [True, False])
def test_slashes(append: bool) -> None:
    with override_settings(APPEND_SLASH=append):
        for page in ("health", "stats", "config", "metrics"):
            for slash in ("", "/"):
                assert Client().get(f"/realtime/{page}{slash}").status_code == 200
        missing = Client().get("/realtime")
        assert missing.status_code == (301 if append else 404)
    assert reverse("realtime:health") == "/realtime/health"
    assert reverse("realtime:status") == "/realtime/"


@pytest.mark.parametrize("path", ["nothing", "health/x", "healthy", "status.js/", "../health", "//"])
def test_what_is_not_there(path: str) -> None:
    assert Client().get("/realtime/" + path).status_code == 404


def test_below_a_prefix() -> None:
    answer = Client().get("/realtime/health", SCRIPT_NAME="/app")
    assert answer.status_code == 200


def test_under_asgi() -> None:
    import asyncio

    async def visit() -> None:
        for page in PAGES:
            answer = await AsyncClient().get("/realtime/" + page)
            assert answer.status_code == 200
            assert (await AsyncClient().post("/realtime/" + page)).status_code == 405

    asyncio.run(visit())


# -- the guard


def allows(request: HttpRequest) -> bool:
    return request.META.get("HTTP_X_OPS") == "yes"


def redirects(request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect("/login")


def fails(request: HttpRequest) -> bool:
    raise LookupError("a fault of the guard")


def refuses(request: HttpRequest) -> bool:
    raise PermissionDenied


@pytest.mark.parametrize(
    ("guard", "status"),
    [
        (allows, 403),
        ("test_django_web.allows", 403),
        (lambda request: None, 403),
        (refuses, 403),
        (redirects, 302),
        (fails, 500),
        ("no.such.guard", 500),
        ("nonsense", 500),
        (3, 500),
        ("", 500),
    ],
)
@pytest.mark.parametrize("page", ["", "metrics"])
def test_a_guard_keeps_out(guard: Any, status: int, page: str) -> None:
    with override_settings(REALTIME_MONITORING_GUARD=guard):
        answer = Client(raise_request_exception=False).get("/realtime/" + page)
    assert answer.status_code == status
    assert b"rtpool" not in answer.content


def test_a_guard_lets_in() -> None:
    with override_settings(REALTIME_MONITORING_GUARD="test_django_web.allows"):
        for page in PAGES:
            assert Client().get("/realtime/" + page, headers={"x-ops": "yes"}).status_code == 200
            assert Client().post("/realtime/" + page).status_code == 403


def test_the_guard_for_staff() -> None:
    from types import SimpleNamespace

    from rtpool_sync.contrib.django import guards

    def request(name: str, **user: Any) -> Any:
        match = SimpleNamespace(view_name=name)
        return SimpleNamespace(resolver_match=match, **({"user": SimpleNamespace(**user)} if user else {}))

    assert guards.staff(request("realtime:health"))
    assert not guards.staff(request("realtime:status"))
    assert not guards.staff(request("realtime:status", is_active=True, is_staff=False))
    assert not guards.staff(request("realtime:status", is_active=False, is_staff=True))
    assert guards.staff(request("realtime:status", is_active=True, is_staff=True))
    with override_settings(REALTIME_MONITORING_GUARD="rtpool_sync.contrib.django.guards.staff"):
        assert Client().get("/realtime/health").status_code == 200
        assert Client().get("/realtime/stats").status_code == 403


# -- what cannot work


@pytest.mark.parametrize("page", ["", "health", "stats", "metrics"])
def test_with_wrong_settings_it_is_unhealthy(page: str) -> None:
    with override_settings(REALTIME_POOLS={"default": {"API_KEY": KEY, "MAX_CONNECTIONS": 0}}):
        answer = Client().get("/realtime/" + page)
    assert answer.status_code == 503
    document = json.loads(answer.content)
    assert document["status"] == "unhealthy"
    assert "MAX_CONNECTIONS" in document["message"]
    assert KEY not in answer.content.decode()


def test_an_unreachable_server_is_unhealthy(configure: Configure) -> None:
    configure({"default": {"URL": "ws://127.0.0.1:1", "CHECKOUT_TIMEOUT": 0.2}})
    with pytest.raises(TimeoutError), connection():
        pass
    answer = Client().get("/realtime/health")
    assert answer.status_code == 503
    assert answer.json()["status"] == "unhealthy"
    pools.close_all(timeout=0.0)
