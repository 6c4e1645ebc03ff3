"""The pytest plugin, in pytest runs of its own: what it loads, what its fixtures do, what they find."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

#: What a project that happens to have the package installed must not pay for.
HEAVY = ("rtpool_sync.", "websocket", "openai", "dynaconf", "prometheus_client", "trustme", "ssl")
SETTINGS = ("OPENAI_", "WEBSOCKET_", "RTPOOL_", "REALTIME_")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs inside know nothing of this one: no coverage, no settings, and not that a robot reads them.

    pytest repeats every message in full under its summary when CI or BUILD_NUMBER is set.
    """
    for name in list(os.environ):
        if name.startswith(("COV_", "COVERAGE_", "PYTEST_", *SETTINGS)) or name in {"CI", "BUILD_NUMBER"}:
            monkeypatch.delenv(name)
    monkeypatch.delenv("PYTHONPATH", raising=False)


def test_loading_it_is_light(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeconftest(
        f"""
        import sys

        def pytest_unconfigure():
            loaded = [name for name in sys.modules if name.startswith({HEAVY!r})]
            print("loaded:", loaded)
        """
    )
    pytester.makepyfile("def test_nothing(): pass")
    # What the plugins of others load is not of interest.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "rtpool_sync.pytest_plugin")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["loaded: *'rtpool_sync.pytest_plugin'*"])
    [line] = [line for line in done.outlines if line.startswith("loaded:")]
    assert "rtpool_sync.pool" not in line
    assert line == "loaded: ['rtpool_sync.pytest_plugin']"


def test_coverage_sees_what_is_imported_later(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "def test_it(realtime_pool): realtime_pool.acquire().websocket; realtime_pool.close(0)"
    )
    done = pytester.runpytest_subprocess(
        "--cov=rtpool_sync", "--cov-report=json:cov.json", "-p", "no:cacheprovider"
    )
    done.assert_outcomes(passed=1)
    files = json.loads((pytester.path / "cov.json").read_text())["files"]
    seen = {Path(name).name: each["summary"]["percent_covered"] for name, each in files.items()}
    # Classes and constants are most of these: without their first lines next to nothing would be left.
    assert seen["errors.py"] > 60
    assert seen["stats.py"] > 50


FIXTURES = """
import os
import threading
import pytest
from rtpool_sync import RealtimePool

pytestmark = pytest.mark.realtime_pool(max_connections=3)

def turn(pool):
    with pool.connection(session={"type": "realtime", "output_modalities": ["text"]}) as conn:
        conn.send({"type": "response.create"})
        for event in conn:
            if event["type"] == "response.done":
                return event["response"]["status"]

def test_a_server_and_a_pool(realtime_server, realtime_pool):
    assert type(realtime_pool) is RealtimePool
    assert realtime_server.url.startswith("ws://127.0.0.1:")
    assert not realtime_server.opened_total  # nothing opens by itself
    assert turn(realtime_pool) == "completed"
    assert realtime_server.opened_total == 1

def test_the_environment_is_not_read(realtime_pool):
    assert os.environ["OPENAI_API_KEY"] == "sk-real-key-of-the-developer"
    assert turn(realtime_pool) == "completed"
    assert "real-key" not in realtime_pool.config.reveal_key()

@pytest.mark.realtime_pool(min_idle=2, name="support")
class TestMarkers:
    def test_all_count(self, realtime_pool):
        assert realtime_pool.name == "support"
        assert (realtime_pool.config.max_connections, realtime_pool.config.min_idle) == (3, 2)

    @pytest.mark.realtime_pool(max_connections=5)
    def test_the_nearest_wins(self, realtime_pool):
        assert (realtime_pool.config.max_connections, realtime_pool.config.min_idle) == (5, 2)

@pytest.mark.realtime_server(tls=True, api_keys=["let-me-in"], models=["one"])
@pytest.mark.realtime_pool(model="one")
def test_tls_and_a_key(realtime_server, realtime_pool):
    assert realtime_server.url.startswith("wss://")
    assert turn(realtime_pool) == "completed"

@pytest.mark.realtime_pool(protocol="plain")
def test_another_protocol(realtime_server, realtime_pool):
    with realtime_pool.connection() as conn:
        assert "session.created" in conn.recv_text(5)

def test_who_returns_a_little_late_does_not_leak(realtime_pool):
    conn = realtime_pool.acquire()
    threading.Timer(0.1, realtime_pool.release, [conn]).start()

def test_a_pool_that_the_test_closes(realtime_pool):
    assert turn(realtime_pool) == "completed"
    realtime_pool.close()
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_fixtures(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: tuple[str, ...]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real-key-of-the-developer")
    monkeypatch.setenv("WEBSOCKET_URL", "wss://api.example/v1/realtime")
    pytester.makefile(".toml", settings="websocket_max_connections = 77")
    pytester.makepyfile(FIXTURES)
    pytester.makeconftest(
        """
        import threading

        def pytest_unconfigure():
            left = [t.name for t in threading.enumerate() if t.name.startswith("rtpool")]
            assert left == []
        """
    )
    done = pytester.runpytest_subprocess("-W", "error", "--strict-markers", *workers)
    done.assert_outcomes(passed=8)
    assert done.ret == 0


def test_tls_for_all_by_an_ini_option(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nrealtime_server_tls = true")
    pytester.makepyfile(
        """
        import pytest

        def test_tls(realtime_server, realtime_pool):
            assert realtime_server.url.startswith("wss://")
            with realtime_pool.connection() as conn:
                assert conn.session_id

        @pytest.mark.realtime_server(tls=False)
        def test_not_this_one(realtime_server):
            assert realtime_server.url.startswith("ws://")
        """
    )
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=2)


def test_leaks_are_errors_that_say_where(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        kept = []

        def the_function_that_keeps(pool):
            kept.append(pool.acquire())

        def the_function_that_forgets(pool):
            pool.acquire()

        def test_kept(realtime_pool):
            the_function_that_keeps(realtime_pool)

        def test_forgotten(realtime_pool):
            the_function_that_forgets(realtime_pool)

        def test_fails_by_itself(realtime_pool):
            with realtime_pool.connection():
                assert "this" == "that"

        def test_good(realtime_pool):
            with realtime_pool.connection():
                pass
        """
    )
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(passed=3, failed=1, errors=2)
    text = done.stdout.str()
    assert text.count("connections were not returned to realtime_pool:\n") == 2
    done.stdout.fnmatch_lines_random(
        [
            "connection #*, taken by thread 'MainThread':",
            "*in the_function_that_keeps",
            "*lost it without returning it*",
            "*in the_function_that_forgets",
        ]
    )
    assert "a-key-for-tests" not in text


def test_a_marker_that_is_wrong(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.realtime_server("wss")
        def test_positional(realtime_server): pass

        @pytest.mark.realtime_pool(max_conections=3)
        def test_misspelt(realtime_pool): pass
        """
    )
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(errors=2)
    done.stdout.fnmatch_lines_random(
        ["*realtime_server takes keywords only, not 'wss'*", "*did you mean 'max_connections'*"]
    )


def test_without_the_extra(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import sys\nsys.modules['websockets'] = None")
    pytester.makepyfile("def test_it(realtime_pool): pass")
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*ImportError: *pip install 'rtpool-sync?emulator?'*"])


def test_what_the_documents_show(pytester: pytest.Pytester) -> None:
    page = (Path(__file__).parents[1] / "docs/howto/testing.md").read_text()
    pytester.makepyfile(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)
