"""Metrics in one process: names, values, registries, pools that come and go."""

from __future__ import annotations

import gc
import logging
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from rtpool_sync import PoolClosed, PoolTimeout, RealtimePool, __version__, metrics, observers
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.errors import CONNECT_ERROR_KINDS
from rtpool_sync.metrics import FAMILIES, export
from rtpool_sync.policy import CLOSE_REASONS
from rtpool_sync.protocols.base import RESET_OUTCOMES

ROOT = Path(__file__).parent.parent.parent
Eventually = Callable[[Callable[[], object]], None]

#: The contract: metric → its kind and the values of its label.
CONTRACT: dict[str, tuple[str, tuple[str, tuple[str, ...]] | None]] = {
    "connections": ("gauge", ("state", ("idle", "in_use", "connecting", "resetting", "closing"))),
    "max_connections": ("gauge", None),
    "healthy_connections": ("gauge", None),
    "waiting_checkouts": ("gauge", None),
    "oldest_wait_seconds": ("gauge", None),
    "oldest_checkout_seconds": ("gauge", None),
    "checkouts_total": ("counter", ("outcome", ("ok", "timeout", "exhausted", "closed", "error"))),
    "sessions_total": ("counter", None),
    "connections_opened_total": ("counter", None),
    "connections_closed_total": ("counter", ("reason", CLOSE_REASONS)),
    "connect_errors_total": ("counter", ("kind", CONNECT_ERROR_KINDS)),
    "resets_total": ("counter", ("outcome", tuple(RESET_OUTCOMES))),
    "health_checks_total": ("counter", ("outcome", ("ok", "failed"))),
    "leaks_total": ("counter", None),
    "messages_total": ("counter", ("direction", ("sent", "received"))),
    "message_bytes_total": ("counter", ("direction", ("sent", "received"))),
    "checkout_wait_seconds": ("histogram", None),
    "session_duration_seconds": ("histogram", None),
    "connect_seconds": ("histogram", None),
    "reset_seconds": ("histogram", None),
    "ping_rtt_seconds": ("histogram", None),
    "reaper_last_run_timestamp_seconds": ("gauge", None),
}


def plain(server: RealtimeServer, registry: CollectorRegistry | None, **options: object) -> RealtimePool:
    return RealtimePool(url=server.echo_url, protocol="plain", registry=registry, **options)


def value(registry: CollectorRegistry, name: str, pool: str = "default", **labels: str) -> float | None:
    return registry.get_sample_value(f"rtpool_{name}", {"pool": pool, **labels})


def test_every_metric_of_the_contract_is_there_from_the_start(server: RealtimeServer) -> None:
    registry = CollectorRegistry()
    with plain(server, registry):
        text = generate_latest(registry).decode()
        types = dict(re.findall(r"# TYPE rtpool_(\S+) (\S+)", text))
        assert types == {**{name: kind for name, (kind, _) in CONTRACT.items()}, "build_info": "gauge"}
        for name, (kind, label) in CONTRACT.items():
            if kind == "counter":
                values = [(label[0], v) for v in label[1]] if label else [()]
                for labels in values:
                    assert value(registry, name, **dict([labels] if labels else [])) == 0.0
                found = re.findall(rf"^rtpool_{name}{{", text, re.MULTILINE)
                assert len(found) == len(values)
            elif kind == "histogram":
                assert value(registry, f"{name}_count") == 0.0
        assert registry.get_sample_value("rtpool_build_info", {"version": __version__}) == 1.0


def test_names_and_help_please_promtool(server: RealtimeServer) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "the system package prometheus is missing: make test installs it"
    registry = CollectorRegistry()
    with plain(server, registry) as pool:
        with pool.connection(timeout=10) as conn:
            conn.send("x")
        done = subprocess.run(
            [promtool, "check", "metrics"], input=generate_latest(registry), capture_output=True
        )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_openmetrics_can_be_parsed(server: RealtimeServer) -> None:
    registry = CollectorRegistry()
    with plain(server, registry):
        families = {
            f.name: f for f in text_string_to_metric_families(generate_openmetrics(registry).decode())
        }
    assert {family.name for family in FAMILIES} <= families.keys()


def test_values_agree_with_the_statistics(server: RealtimeServer, eventually: Eventually) -> None:
    registry = CollectorRegistry()
    with plain(server, registry, max_connections=2, min_session_time=1) as pool:
        for _ in range(3):
            with pool.connection(timeout=10) as conn:
                conn.send("12345")
                assert conn.recv(timeout=10) == "12345"
        with pool.connection(timeout=10) as conn:
            conn.invalidate("enough")
        with pool.connection(timeout=10), pool.connection(timeout=10):
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=0)
            assert value(registry, "connections", state="in_use") == 2.0
            assert (value(registry, "oldest_checkout_seconds") or 0) > 0
        eventually(lambda: value(registry, "connections", state="idle") == 2.0)
        assert value(registry, "checkouts_total", outcome="ok") == 6.0
        assert value(registry, "sessions_total") == 6.0
        assert value(registry, "checkouts_total", outcome="timeout") == 1.0
        assert value(registry, "checkout_wait_seconds_count") == 6.0
        assert value(registry, "session_duration_seconds_count") == 6.0
        assert value(registry, "connections_opened_total") == 3.0
        assert value(registry, "connections_closed_total", reason="invalidated") == 1.0
        assert value(registry, "messages_total", direction="sent") == 3.0
        assert value(registry, "max_connections") == 2.0
        assert value(registry, "healthy_connections") == 2.0
        stats = pool.stats()
        assert value(registry, "reaper_last_run_timestamp_seconds") == pytest.approx(
            stats.reaper_last_run, abs=10
        )


def test_a_waiter_is_seen(server: RealtimeServer, eventually: Eventually) -> None:
    registry = CollectorRegistry()
    with plain(server, registry, max_connections=1) as pool:
        with pool.connection(timeout=10):
            waiter = threading.Thread(target=lambda: pool.release(pool.acquire(timeout=10)))
            waiter.start()
            eventually(lambda: value(registry, "waiting_checkouts") == 1.0)
            assert (value(registry, "oldest_wait_seconds") or 0) > 0
        waiter.join(10)
        assert value(registry, "waiting_checkouts") == 0.0
        assert value(registry, "oldest_wait_seconds") == 0.0


def test_nothing_is_exported_before_a_pool_starts(server: RealtimeServer) -> None:
    registry = CollectorRegistry()
    pool = plain(server, registry)
    assert generate_latest(registry) == b""
    export(pool)  # unless asked for
    assert value(registry, "max_connections") == 10.0
    assert value(registry, "reaper_last_run_timestamp_seconds") == float("inf")
    with pool:
        assert value(registry, "max_connections") == 10.0


def test_the_default_registry_is_used_unless_another_is_given(server: RealtimeServer) -> None:
    with plain(server, None, name="in-default"):
        assert value(REGISTRY, "max_connections", "in-default") == 10.0
        own = CollectorRegistry()
        with plain(server, own, name="in-own"):
            assert value(own, "max_connections", "in-own") == 10.0
            assert value(own, "max_connections", "in-default") is None
            assert value(REGISTRY, "max_connections", "in-own") is None


def test_a_pool_can_stay_out_of_it(server: RealtimeServer) -> None:
    with RealtimePool(url=server.echo_url, protocol="plain", name="private", registry=False) as pool:
        with pool.connection(timeout=10):
            pass
        assert value(REGISTRY, "max_connections", "private") is None


def test_pools_of_one_name_are_added_up(server: RealtimeServer) -> None:
    registry = CollectorRegistry()
    with plain(server, registry, max_connections=3) as one, plain(server, registry) as other:
        with plain(server, registry, name="third"):
            for pool in (one, one, other):
                with pool.connection(timeout=10):
                    pass
            assert value(registry, "checkouts_total", outcome="ok") == 3.0
            assert value(registry, "checkout_wait_seconds_count") == 3.0
            assert value(registry, "max_connections") == 13.0
            assert value(registry, "checkouts_total", "third", outcome="ok") == 0.0
            text = generate_latest(registry).decode()
            lines = [line.split(" ")[0] for line in text.splitlines() if not line.startswith("#")]
            assert len(lines) == len(set(lines))


def test_a_closed_pool_goes_on_counting_when_it_is_opened_again(server: RealtimeServer) -> None:
    registry = CollectorRegistry()
    pool = plain(server, registry)
    for count in (1, 2):
        pool.open()
        with pool.connection(timeout=10):
            pass
        pool.close()
        assert value(registry, "checkouts_total", outcome="ok") == count
        assert value(registry, "connections_closed_total", reason="shutdown") == count
        assert value(registry, "max_connections") == 0.0
        assert value(registry, "connections", state="idle") == 0.0
        assert value(registry, "reaper_last_run_timestamp_seconds") == float("inf")
    with pytest.raises(PoolClosed):
        pool.acquire()
    assert value(registry, "checkouts_total", outcome="closed") == 1.0


def test_counters_outlive_their_pool(server: RealtimeServer, eventually: Eventually) -> None:
    """What a pool counted must not vanish with it: the sum over pools of its name would go down."""
    registry = CollectorRegistry()
    for count in (1, 2, 3):
        pool = plain(server, registry)
        with pool.connection(timeout=10):
            pass
        if count == 2:
            pool.close()
        del pool  # the others are found by their reaper to be nobody's
        gc.collect()
        eventually(lambda: value(registry, "max_connections") == 0.0)
        assert value(registry, "checkouts_total", outcome="ok") == count
        assert value(registry, "connections_closed_total", reason="shutdown") == count
        assert value(registry, "connections", state="idle") == 0.0
        assert not metrics._collectors[registry]._entries  # their sums are kept, not they


def test_a_checkout_undone_does_not_count_down(server: RealtimeServer) -> None:
    """A counter that goes down looks like a restart to Prometheus, and the whole of it like an increase."""
    registry = CollectorRegistry()
    with plain(server, registry) as pool:
        with pool.connection(timeout=10):
            pass
        counters = pool._ledger.counters
        for moment in (1, 0, 1):  # lent; its socket had something to say; and another one instead
            counters.checkout_wait.counts[0] += moment or -1
            assert value(registry, "checkouts_total", outcome="ok") == 2.0
            assert value(registry, "checkout_wait_seconds_count") == 2.0
        counters.checkout_wait.counts[0] += 1
        assert value(registry, "checkouts_total", outcome="ok") == 3.0


def test_a_name_taken_by_somebody_else_costs_the_metrics_only(
    server: RealtimeServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "_broken", set())
    registry = CollectorRegistry()
    Counter("rtpool_sessions", "not ours", registry=registry)
    with caplog.at_level(logging.WARNING, "rtpool_sync"):
        for _ in range(2):
            with plain(server, registry) as pool, pool.connection(timeout=10) as conn:
                conn.send("x")
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "Duplicated timeseries" in caplog.text


def test_a_forked_child_begins_at_zero(run_program: Callable[..., str], server: RealtimeServer) -> None:
    out = run_program(
        f"""
import os, sys
from prometheus_client import REGISTRY
from rtpool_sync import RealtimePool
def ok():
    return REGISTRY.get_sample_value("rtpool_checkouts_total", dict(pool="default", outcome="ok"))
pool = RealtimePool(url={server.echo_url!r}, protocol="plain")
with pool.connection(): pass
pid = os.fork()
if not pid:
    print(ok())
    with pool.connection(): pass
    print(ok())
    sys.stdout.flush()
    pool.close()
    os._exit(0)
os.waitpid(pid, 0)
with pool.connection(): pass
print(ok())
pool.close()
"""
    )
    assert out.split() == ["None", "1", "2"]


def test_the_documentation_lists_them_all() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = {row[1]: row[2] for row in re.finditer(r"^\| `rtpool_(\w+)` \| ([^|]*) \|", text, re.MULTILINE)}
    assert rows.keys() == CONTRACT.keys()
    for name, (_, label) in CONTRACT.items():
        assert re.findall(r"`(\w+)`", rows[name]) == ([label[0], *label[1]] if label else [])
