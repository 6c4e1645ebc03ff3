"""Metrics under PROMETHEUS_MULTIPROC_DIR, with real processes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.metrics import FAMILIES

RunProgram = Callable[..., str]

COMMON = """
import os, sys, time, threading, signal
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from rtpool_sync import PoolClosed, RealtimePool, metrics
from rtpool_sync.stats import PoolStats

def scrape():
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return registry

def value(name, pool="default", **labels):
    return scrape().get_sample_value("rtpool_" + name, dict(pool=pool, **labels))

def eventually(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, generate_latest(scrape()).decode()
        time.sleep(0.01)

def pool(**options):
    return RealtimePool(url=os.environ["SERVER"], protocol="plain", **options)
"""


@pytest.fixture
def multiprocess(run_program: RunProgram, server: RealtimeServer, tmp_path: Path) -> RunProgram:
    folder = tmp_path / "metrics"
    folder.mkdir()

    def run(source: str, **environment: str) -> str:
        settings = {"PROMETHEUS_MULTIPROC_DIR": str(folder), "SERVER": server.echo_url}
        return run_program(COMMON + source, **{**settings, **environment})

    return run


def test_both_modes_show_the_same(multiprocess: RunProgram) -> None:
    """One set of counters, shown by the collector and written to the files: sample for sample the same."""
    multiprocess(
        """
p = pool()
with p:
    for _ in range(3):
        with p.connection() as conn:
            conn.send("x"), conn.recv()
metrics.publish()
collector = metrics._Collector()
collector.track(p, p._ledger)

def samples(source):
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in source.collect() for s in family.samples
    }

one, other = samples(collector), samples(scrape())
assert one == other, set(one.items()) ^ set(other.items())
assert len(one) > 120
kinds = lambda source: {f.name: (f.type, f.documentation != "") for f in source.collect()}
assert kinds(collector) == kinds(scrape())
"""
    )


def test_every_series_is_there_from_the_start(multiprocess: RunProgram) -> None:
    """As with one process: an alert on the first failure of a kind must see it."""
    multiprocess(
        """
with pool() as p:  # it starts, and opens nothing
    one = {
        (s.name, tuple(sorted(s.labels.items()))) for family in scrape().collect() for s in family.samples
    }
    collector = metrics._Collector()
    collector.track(p, p._ledger)
    other = {
        (s.name, tuple(sorted(s.labels.items()))) for family in collector.collect() for s in family.samples
    }
assert one == other, one ^ other
for family in metrics.FAMILIES:
    if family.kind == "counter":
        values = family.read(p.stats())
        assert values, family.name
        for label in values:
            found = value(family.name[7:] + "_total", **({family.label: label} if label else {}))
            assert found == 0, (family.name, label, found)
"""
    )


def test_pools_of_one_name_are_added_up_and_what_they_counted_stays(multiprocess: RunProgram) -> None:
    multiprocess(
        """
import gc
one, other, third = pool(max_connections=3), pool(), pool(name="third")
for p in (one, one, other):
    with p.connection(): pass
third.open()
metrics.publish()
assert value("checkouts_total", outcome="ok") == 3
assert value("checkout_wait_seconds_count") == 3
assert value("max_connections") == 13
assert value("checkouts_total", "third", outcome="ok") == 0
assert value("max_connections", "third") == 10
one.close()
assert value("max_connections") == 10
del one
gc.collect()
with other.connection(): pass
metrics.publish()
assert value("checkouts_total", outcome="ok") == 4
other.close()
third.close()
assert value("max_connections") == 0
other.open()
with other.connection(): pass
other.close()
assert value("checkouts_total", outcome="ok") == 5
assert value("connections_closed_total", reason="shutdown") == 3
"""
    )


def test_the_page_pleases_promtool_and_openmetrics(multiprocess: RunProgram) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "the system package prometheus is missing: make test installs it"
    pages = multiprocess(
        """
from wsgiref.util import setup_testing_defaults
from rtpool_sync.web import monitoring_app
p = pool()
with p.connection() as conn: conn.send("x"), conn.recv()
for accept in ("", "application/openmetrics-text; version=1.0.0"):
    environ = dict(PATH_INFO="/metrics", HTTP_ACCEPT=accept)
    setup_testing_defaults(environ)
    told = []
    text = b"".join(monitoring_app(p)(environ, lambda status, headers: told.extend((status, dict(headers)))))
    print(told[1]["Content-Type"], text.decode(), sep="\\n", end="\\0")
p.close()
"""
    )
    (text_type, _, text), (open_type, _, openmetrics) = (
        page.partition("\n") for page in pages.split("\0")[:2]
    )
    assert text_type.startswith("text/plain; version=0.0.4")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert open_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in text_string_to_metric_families(openmetrics)}
    assert {family.name: family.kind for family in FAMILIES}.items() <= {
        name: family.type for name, family in families.items()
    }.items()


def test_workers_add_up(multiprocess: RunProgram) -> None:
    out = multiprocess(
        """
children = []
for count in (1, 2, 3):
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        p = pool(max_connections=4)
        for _ in range(count):
            with p.connection() as conn:
                conn.send("x"), conn.recv()
        conn = p.acquire()
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        p.release(conn)
        p.close()
        os._exit(0)
    os.read(ready[0], 1)
    children.append((pid, go))
eventually(lambda: value("checkouts_total", outcome="ok") == 9)
eventually(lambda: value("connections", state="in_use") == 3)
assert value("max_connections") == 12
assert value("checkout_wait_seconds_count") == 9
assert value("checkouts_total", outcome="timeout") == 0
assert 0 < value("oldest_checkout_seconds") < 20
last = value("reaper_last_run_timestamp_seconds")
assert abs(time.time() - last) < 20, last
for name in os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"]):
    assert str(os.getpid()) not in name, "the parent has nothing to say"

# One is killed: its gauges leave with it when the server's hook says so, its counters stay.
pid, _ = children.pop()
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
multiprocess.mark_process_dead(pid)
assert value("connections", state="in_use") == 2
assert value("max_connections") == 8
assert value("checkouts_total", outcome="ok") == 9

# The others close their pools: zero, without any hook.
for pid, go in children:
    os.write(go[1], b"x")
    os.waitpid(pid, 0)
assert value("max_connections") == 0
assert value("connections", state="in_use") == 0
assert value("connections_closed_total", reason="shutdown") == 2
assert value("reaper_last_run_timestamp_seconds") == float("inf")
print("done")
"""
    )
    assert out == "done\n"


def test_a_child_of_a_parent_that_counts_begins_at_zero(multiprocess: RunProgram) -> None:
    multiprocess(
        """
p = pool()
other = pool(name="other")
other.open()
with p.connection(): pass
eventually(lambda: value("checkouts_total", outcome="ok") == 1)
for told_by in ("the pool", "its reaper"):
    pid = os.fork()
    if not pid:
        if told_by == "its reaper":  # who is first to notice the new process must not matter
            metrics.publish()
        with p.connection(): pass
        p.close()
        os._exit(0)
    os.waitpid(pid, 0)
# A pool that the child never started: its cells, inherited, must not pretend a reaper that stands still.
assert abs(time.time() - value("reaper_last_run_timestamp_seconds", "other")) < 20
with p.connection(): pass
p.close()
assert value("checkouts_total", outcome="ok") == 4
other.close()
"""
    )


def test_forking_while_the_pools_publish_hangs_nobody(multiprocess: RunProgram) -> None:
    multiprocess(
        """
p = pool()
p.open()
with p.connection(): pass
stop = threading.Event()
def hammer():
    # With a pause: a lock is not fair, and three threads that take it again at once may keep it for good.
    while not stop.wait(0.001):
        p._ledger.counters.leaks += 1  # something to write each time
        metrics.publish()
threads = [threading.Thread(target=hammer, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(40):
    pid = os.fork()
    if not pid:
        signal.alarm(10)
        metrics.publish()
        with p.connection(): pass
        p.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads: thread.join()
p.close()
assert value("checkouts_total", outcome="ok") == 41
"""
    )


def test_failures_after_the_close_are_published_too(multiprocess: RunProgram) -> None:
    multiprocess(
        """
p = pool()
p.open()
p.close()
for _ in range(2):
    try: p.acquire()
    except PoolClosed: pass
assert value("checkouts_total", outcome="closed") == 2
p.open()
with p.connection(): pass
p.close()
assert value("checkouts_total", outcome="ok") == 1
assert value("checkouts_total", outcome="closed") == 2
assert value("max_connections") == 0
"""
    )


def test_a_pool_can_stay_out_of_it(multiprocess: RunProgram) -> None:
    out = multiprocess(
        """
with pool(registry=False) as p:
    with p.connection(): pass
print(os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
"""
    )
    assert out == "[]\n"


def test_a_missing_folder_costs_the_metrics_only(multiprocess: RunProgram, tmp_path: Path) -> None:
    out = multiprocess(
        """
import logging
logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
with pool() as p:
    for _ in range(3):
        with p.connection() as conn:
            conn.send("x")
            assert conn.recv() == "x"
""",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "missing"),
    )
    lines = [line for line in out.splitlines() if "metrics" in line]
    assert len(lines) == 1
    assert re.search("not exported: FileNotFoundError.*missing", lines[0])


def test_a_child_whose_parent_ran_no_hook_before_the_fork(multiprocess: RunProgram) -> None:
    """uWSGI with py-call-osafterfork: only the child's half is run, whoever held the lock."""
    multiprocess(
        """
p = pool()
with p.connection(): pass
holding, done = threading.Event(), threading.Event()
def hold():
    with metrics._guard():
        holding.set()
        done.wait(20)
threading.Thread(target=hold).start()
holding.wait(20)
metrics._after_fork_in_child()
metrics.publish()
with p.connection(): pass
done.set()
p.close()
assert value("checkouts_total", outcome="ok") == 2
"""
    )
