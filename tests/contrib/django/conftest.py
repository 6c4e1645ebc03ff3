"""Django, set up once in this process for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest
from django.conf import settings
from django.test import override_settings
from django_support import KEY, eventually, pool_threads

from rtpool_sync.emulator import RealtimeServer

if not settings.configured:
    settings.configure(
        SECRET_KEY="for tests only",
        ROOT_URLCONF="django_urls",
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "rtpool_sync.contrib.django",
        ],
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
        ],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        USE_TZ=True,
    )
    django.setup()

Configure = Callable[..., None]


@pytest.fixture(scope="session")
def _server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        yield server


@pytest.fixture
def emulator(_server: RealtimeServer) -> RealtimeServer:
    return _server


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    """No settings from outside, no pool from the test before, no thread for the one after."""
    from rtpool_sync.contrib.django import pools

    for name in os.environ:
        if name.startswith(("OPENAI_", "WEBSOCKET_", "REALTIME_", "RTPOOL_", "ENV_FOR_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield
    pools.close_all(timeout=0.0)
    eventually(lambda: not pool_threads(), what="pools' threads end")


@pytest.fixture
def configure(emulator: RealtimeServer) -> Iterator[Configure]:
    """Describe pools on the emulator for the rest of the test."""
    enabled = []

    def configure(pools: dict[str, dict[str, Any]] | None = None, **more: Any) -> None:
        base = {"API_KEY": KEY, "BASE_URL": emulator.base_url, "CLOSE_TIMEOUT": 1.0}
        tables = {name: {**base, **table} for name, table in (pools or {"default": {}}).items()}
        override = override_settings(REALTIME_POOLS=tables, **more)
        override.enable()
        enabled.append(override)

    yield configure
    for override in reversed(enabled):
        override.disable()
