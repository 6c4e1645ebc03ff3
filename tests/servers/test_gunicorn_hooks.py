"""The hooks by themselves; with the real server: test_gunicorn.py."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from server_process import eventually
from serving import POLITE, ends

from rtpool_sync import ConnectionLost, RealtimePool
from rtpool_sync.contrib import gunicorn
from rtpool_sync.emulator import RealtimeServer


def worker(graceful_timeout: float) -> SimpleNamespace:
    return SimpleNamespace(pid=4711, alive=True, cfg=SimpleNamespace(graceful_timeout=graceful_timeout))


def test_at_the_end_of_a_worker(
    emulator: RealtimeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gunicorn, "_draining", False)
    ending = worker(2.0)
    with RealtimePool(url=emulator.echo_url, protocol="plain", max_connections=3, min_idle=2) as pool:
        pool.wait()
        conn = pool.acquire()
        eventually(lambda: pool.stats().idle == 2)
        gunicorn.post_worker_init(ending)
        assert not gunicorn.draining()
        ending.alive = False
        eventually(gunicorn.draining)
        eventually(lambda: pool.stats().total_connections == 1)  # and no reserve is opened again
        with pool.connection(5.0) as late:  # a request that was accepted before
            late.send("late")
            assert late.recv(5.0) == "late"
        with caplog.at_level(logging.WARNING), pytest.raises(ConnectionLost, match="closed"):
            conn.recv(5.0)
        eventually(lambda: pool.closed)
        assert (
            "worker 4711 is about to be killed, connections still in use are closed: 1 (grac" in caplog.text
        )
    assert ends(emulator) <= POLITE


def test_a_worker_without_conversations_is_closed_in_silence(
    emulator: RealtimeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gunicorn, "_draining", False)
    with RealtimePool(url=emulator.echo_url, protocol="plain") as pool:
        pool.wait()
        ending = worker(0.0)
        ending.alive = False
        gunicorn.post_worker_init(ending)
        eventually(lambda: pool.closed)
    assert caplog.text == ""


def test_the_dead_leave_the_gauges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ["gauge_livesum_4711.db", "gauge_livesum_4712.db", "counter_4711.db"]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    gunicorn.child_exit(object(), worker(1.0))
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    gunicorn.child_exit(object(), worker(1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter_4711.db", "gauge_livesum_4712.db"]
