"""Every misconfiguration has a system check with an id, a hint, and no key in its text."""

from __future__ import annotations

import functools
import logging
import operator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import CheckMessage, run_checks
from django.test import override_settings
from django_support import KEY, pool_threads

from rtpool_sync.contrib.django import checks, pools
from rtpool_sync.protocols.plain import PlainProtocol


def found(deploy: bool = False, **values: Any) -> list[CheckMessage]:
    with override_settings(**values):
        messages = run_checks(tags=[checks.TAG], include_deployment_checks=deploy)
    assert pools.all(initialized_only=True) == []
    assert pool_threads() == []
    for message in messages:
        assert message.id.startswith("rtpool.")
        assert message.id in checks.__doc__
        assert message.hint
        assert KEY not in str(message) + str(message.hint)
        assert "\n" not in message.msg
    return messages


def ids(**values: Any) -> list[str]:
    return sorted(message.id.removeprefix("rtpool.") for message in found(**values))


GOOD = {"API_KEY": KEY}


def of(**table: Any) -> dict[str, Any]:
    return {"REALTIME_POOLS": {"default": {**GOOD, **table}}}


@pytest.mark.parametrize(
    "values",
    [
        of(),
        of(MAX_CONNECTIONS=20, min_idle="2", Session={"instructions": "Be brief."}, PROTOCOL="realtime"),
        {"OPENAI_API_KEY": KEY},
        {"REALTIME_POOLS": {}, "OPENAI_API_KEY": KEY},
        {"REALTIME_POOLS": {"default": {}}, "OPENAI_API_KEY": KEY},
        of(API_KEY=lambda: KEY),
        of(API_KEY=None, HEADERS={"api-key": KEY}),
        of(API_KEY=None, URL="wss://example.org/plain", PROTOCOL="plain"),
        of(API_KEY=None, URL="wss://example.org/plain", PROTOCOL=PlainProtocol()),
        of(BASE_URL="http://localhost:8080/v1"),
        of(URL="ws://127.0.0.1:9/x"),
        of(URL="ws://[::1]:9/x"),
        of(BASE_URL="https://gateway.internal/v1"),
        {**of(), "REALTIME_MONITORING_GUARD": "rtpool_sync.contrib.django.guards.staff"},
        {**of(), "REALTIME_MONITORING_GUARD": lambda request: True},
        {**of(), "REALTIME_THEME_COLOUR": "another application's"},
        # What was shut down is not asked for: the URL names another.
        of(URL="wss://example.org/x?model=mine", MODEL="gpt-4o-realtime-preview"),
    ],
)
def test_nothing_to_say(values: dict[str, Any]) -> None:
    assert found(**values) == []


@pytest.mark.parametrize(
    ("values", "expected", "text"),
    [
        ({"REALTIME_POOLS": [GOOD], "OPENAI_API_KEY": KEY}, ["E001"], "must be a dict of pools, not a list"),
        ({"REALTIME_POOLS": KEY, "OPENAI_API_KEY": KEY}, ["E001"], "must be a dict of pools, not a str"),
        (
            {"REALTIME_POOLS": {"default": KEY}, "OPENAI_API_KEY": KEY},
            ["E001"],
            "REALTIME_POOLS['default'] must be a dict of settings, not a str",
        ),
        ({"REALTIME_POOLS": {"default": GOOD, 3: {}}}, ["E002"], "must be text, not a int"),
        ({"REALTIME_POOLS": {"default": GOOD, "a b": GOOD}}, ["E002"], "'a b' cannot be the name"),
        ({"REALTIME_POOLS": {"default": GOOD, "": GOOD}}, ["E002"], "'' cannot be the name"),
        ({"REALTIME_POOLS": {"default": GOOD, "a\nb": GOOD}}, ["E002"], r"'a\nb' cannot be the name"),
        (of(MAX_CONECTIONS=3), ["E003"], "no setting 'MAX_CONECTIONS'; did you mean 'max_connections'?"),
        (of(OPTIONS={}), ["E003"], "REALTIME_POOLS['default']: there is no setting 'OPTIONS'"),
        ({"REALTIME_POOLS": {"default": {**GOOD, 7: 1}}}, ["E003"], "there is no setting 7"),
        (
            of(MAX_CONNECTIONS="twenty"),
            ["E004"],
            "REALTIME_POOLS default MAX_CONNECTIONS: must be a whole number",
        ),
        (of(MAX_CONNECTIONS=0), ["E004"], "not 0"),
        (of(MIN_IDLE=True), ["E004"], "MIN_IDLE: must be"),
        (of(PING_TIMEOUT="30s"), ["E004"], "not '30s'"),
        (of(MIN_IDLE=30), ["E004"], "is more than max_connections"),
        (of(SESSION="be brief"), ["E004"], "must be a table of session settings"),
        (of(HEADERS=["X"]), ["E004"], "must be a table of header names"),
        (of(CA_FILE="/no/such/file"), ["E004"], "/no/such/file"),
        (of(API_KEY=f"Bearer {KEY} x"), ["E004"], "API_KEY"),
        (of(API_KEY=3.5), ["E004"], "API_KEY"),
        (of(URL="ftp://example.org"), ["E004"], "must be a ws://, wss://, http:// or https:// URL"),
        (of(URL="example.org"), ["E004"], "URL"),
        (of(PROTOCOL="websocket"), ["E005"], "['PROTOCOL'] must be 'realtime', 'plain'"),
        (of(PROTOCOL="no.such.Protocol"), ["E005"], "No module named 'no'"),
        (of(PROTOCOL=3), ["E005"], "not a int"),
        (
            {**of(), "REALTIME_MONITORING_GUARD": "no.such.guard"},
            ["E006"],
            "REALTIME_MONITORING_GUARD: No module",
        ),
        ({**of(), "REALTIME_MONITORING_GUARD": True}, ["E006"], "must be a callable"),
        ({**of(), "REALTIME_SETTINGS_FILES": 3}, ["E007"], "must be a path or a list of paths, not int"),
        ({**of(), "REALTIME_SETTINGS_FILES": ["/no.toml"]}, ["E007"], "there is no file /no.toml"),
        ({**of(), "REALTIME_SETTINGS_FILES": "/no.toml"}, ["E007"], "there is no file /no.toml"),
        ({}, ["W001"], "Pool 'default' has no API key"),
        ({"REALTIME_POOLS": {"default": {"API_KEY": ""}}}, ["W001"], "Pool 'default' has no API key"),
        ({"REALTIME_POOLS": {"default": GOOD, "support": {}}}, ["W001"], "Pool 'support' has no API key"),
        ({"REALTIME_POOLS": {"support": {}}, "OPENAI_API_KEY": KEY}, ["W002"], "has no pool 'default'"),
        ({"REALTIME_POOLS": {"support": GOOD}}, ["W001", "W002"], "has no pool 'default'"),
        (
            of(BASE_URL="http://gateway.internal/v1"),
            ["W003"],
            "without encryption to ws://gateway.internal/v1",
        ),
        (of(URL=f"ws://user:{KEY}@example.org/?key={KEY}"), ["W003"], "without encryption to ws://"),
        (of(MODEL="gpt-4o-realtime-preview-2024-12-17"), ["W004"], "shut down on 2026-05-07"),
        ({**of(), "REALTIME_POOL": {}}, ["W005"], "REALTIME_POOL is not a setting"),
        ({**of(), "REALTIME_MONITORING_GARD": {}}, ["W005"], "REALTIME_MONITORING_GARD is not a setting"),
        ({**of(), "WEBSOCKET_MAX_CONECTIONS": 3}, ["W005"], "WEBSOCKET_MAX_CONECTIONS"),
        (
            {
                "REALTIME_POOLS": {
                    "default": {"MIN_IDLE": -1, "SIZE": 3, "PING_TIMEOUT": 0},
                    "support": {**GOOD, "PROTOCOL": 1},
                    "x y": {},
                },
                "REALTIME_MONITORING_GUARD": 3,
            },
            ["E002", "E003", "E004", "E004", "E005", "E006"],
            "there is no setting 'SIZE'",
        ),
    ],
)
def test_a_fault_is_told(
    values: dict[str, Any], expected: list[str], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "rtpool_sync")
    assert ids(**values) == expected
    assert any(text in message.msg for message in found(**values)), [m.msg for m in found(**values)]


def test_faults_from_environment_and_files_are_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WEBSOCKET_MIN_IDLE", "many")
    (tmp_path / "settings.toml").write_text("[default]\nwebsocket_ping_timeout = -1\n")
    three = {"REALTIME_POOLS": {"default": GOOD, "support": GOOD, "sales": GOOD}}
    messages = found(**three)
    assert [message.id for message in messages] == ["rtpool.E004"] * 2
    assert messages[0].msg.startswith("environment variable WEBSOCKET_MIN_IDLE: ")
    assert messages[1].msg.startswith("settings.toml [default] websocket_ping_timeout: ")
    (tmp_path / "settings.toml").write_text("not TOML")
    assert ids(**three) == ["E004", "E004"]


def test_what_the_checks_accept_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other way round: what cannot be made is told, whatever is wrong."""
    cases = functools.reduce(
        operator.iadd,
        ([mark.args[1]] for mark in test_a_fault_is_told.pytestmark),  # type: ignore[attr-defined]
        [],
    )[0]
    for values, expected, _ in cases:
        serious = [number for number in expected if number.startswith("E")]
        with override_settings(**values):
            try:
                made = bool(pools.all())
            except ValueError:
                made = False
            if expected == ["W001"] or "W001" in expected or set(serious) - {"E002", "E006"}:
                assert not made, values
            elif not serious:
                assert made, values
            pools.close_all(timeout=0.0)


def test_deployment() -> None:
    assert found(deploy=True, **of())[0].id == "rtpool.W006"
    assert "/realtime/" in found(deploy=True, **of())[0].msg
    guarded = {**of(), "REALTIME_MONITORING_GUARD": "rtpool_sync.contrib.django.guards.staff"}
    assert found(deploy=True, **guarded) == []
    assert found(deploy=True, ROOT_URLCONF="django_support", **of()) == []  # not included


def test_it_can_be_silenced() -> None:
    with override_settings(SILENCED_SYSTEM_CHECKS=["rtpool.W001"]):
        assert all(message.is_silenced() for message in run_checks(tags=[checks.TAG]))


def test_the_callable_for_the_key_is_not_asked() -> None:
    def key() -> str:
        raise AssertionError("asked")

    assert found(**of(API_KEY=key)) == []


def test_they_are_among_all_checks() -> None:
    assert settings.INSTALLED_APPS
    with override_settings(**of(MAX_CONNECTIONS=0)):
        assert "rtpool.E004" in [message.id for message in run_checks()]
