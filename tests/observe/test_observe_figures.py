"""Quantiles and sums of the counters, and what a scrape of a big pool costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rtpool_sync.stats import Counters, Histogram


def test_quantiles_are_estimated_as_prometheus_does() -> None:
    times = Histogram((1.0, 2.0, 4.0))
    assert times.quantile(0.5) is None
    for value in (0.5, 1.5, 1.6, 3.0):
        times.observe(value)
    assert times.quantile(0.25) == 1.0
    assert times.quantile(0.5) == 1.5
    assert times.quantile(0.75) == 2.0
    assert times.quantile(1.0) == 4.0
    gap = Histogram((1.0, 2.0, 4.0))
    for value in (0.5, 3.0):
        gap.observe(value)
    assert gap.quantile(0.5) == 1.0  # the end of the bucket that is enough, not the beginning of the next
    times.observe(100.0)
    assert times.quantile(1.0) == 4.0  # nothing is known above the last bound


def test_counters_can_be_added() -> None:
    one, other = Counters(), Counters()
    for number, counters in enumerate((one, other), 1):
        counters.opened = number
        counters.closed["lost"] = number
        counters.connect.observe(0.001 * number)
    one.add(other)
    assert (one.opened, one.closed["lost"], one.closed["idle"]) == (3, 3, 0)
    assert sum(one.connect.counts) == 2
    assert one.connect.sum == pytest.approx(0.003)
    assert other.opened == 2


@pytest.mark.timeout(120)
def test_a_scrape_of_1_000_connections_takes_less_than_20_ms(
    run_program: Callable[..., str],
) -> None:
    out = run_program(
        """
import resource, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 8192, hard))
from prometheus_client import CollectorRegistry, generate_latest
from rtpool_sync import RealtimePool
from rtpool_sync.emulator import RealtimeServer
registry = CollectorRegistry()
with RealtimeServer() as server:
    options = dict(max_connections=1000, min_idle=1000, max_idle_time=3600)
    with RealtimePool(url=server.echo_url, protocol="plain", registry=registry, **options) as pool:
        pool.wait(40)
        took = []
        for _ in range(10):
            since = time.perf_counter()
            text = generate_latest(registry)
            took.append(time.perf_counter() - since)
        assert b'rtpool_connections{pool="default",state="idle"} 1000.0' in text
        print(min(took))
"""
    )
    assert float(out) < 0.020
