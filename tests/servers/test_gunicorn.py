"""gunicorn: restarts under load, conversations when it stops, workers that hang."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from server_process import PATIENCE, Asking, Load, ServerProcess, eventually
from serving import GRACEFUL, MAX_CONNECTIONS, POLITE, SLOW, WORKERS, ends, gunicorn, settings

from rtpool_sync.emulator import RealtimeServer

SYNC = ("--worker-class", "sync")
GTHREAD = ("--worker-class", "gthread", "--threads", "8")
GEVENT = ("--worker-class", "gevent")
CLASSES = pytest.mark.parametrize("options", [SYNC, GTHREAD, GEVENT], ids=["sync", "gthread", "gevent"])
MANY = pytest.mark.parametrize("options", [GTHREAD, GEVENT], ids=["gthread", "gevent"])


@CLASSES
def test_restarts_under_load(options: tuple[str, ...], emulator: RealtimeServer, tmp_path: Path) -> None:
    """HUP: new workers, then the old ones end. No request fails, and no socket is left."""
    with gunicorn(tmp_path, settings(emulator, "plain"), *options) as process:
        load = Load(process)
        for restarts in range(1, 10 if SLOW else 3):
            eventually(lambda n=restarts: len(load.pids) >= n * WORKERS)
            process.signal(signal.SIGHUP)
        eventually(lambda: len(load.pids) >= (restarts + 1) * WORKERS)
        load.stop()
        assert load.failures == []
        # Those of the two generations before are gone.
        eventually(lambda: emulator.open <= WORKERS * MAX_CONNECTIONS)
        eventually(lambda: len(workers(process)) == WORKERS)
        assert emulator.max_sockets <= 2 * WORKERS * MAX_CONNECTIONS
        eventually(lambda: up(process))
        process.signal(signal.SIGTERM)
        assert process.wait(GRACEFUL) == 0
    eventually(lambda: emulator.open == 0)
    assert len(emulator.closed) == emulator.opened_total
    assert ends(emulator) <= POLITE


@CLASSES
def test_workers_that_retire(options: tuple[str, ...], emulator: RealtimeServer, tmp_path: Path) -> None:
    """--max-requests: each ends after so many, in the middle of the load."""
    often = ("--max-requests", "40", "--max-requests-jitter", "10")
    with gunicorn(tmp_path, settings(emulator, "plain"), *options, *often) as process:
        load = Load(process, requests=3000 if SLOW else 300).join()
        assert load.failures == []
        eventually(lambda: up(process))
        process.signal(signal.SIGTERM)
        assert process.wait(GRACEFUL) == 0
    eventually(lambda: emulator.open == 0)
    assert len(emulator.closed) == emulator.opened_total
    assert ends(emulator) <= POLITE


def up(process: ServerProcess) -> bool:
    """Whether every worker has come up, and none is about to retire: before that, SIGTERM goes unnoticed."""
    log = process.log.read_text()
    retiring = set(re.findall(r"\[(\d+)\] \[INFO\] Autorestarting", log))
    gone = set(re.findall(r"Worker exiting \(pid: (\d+)\)", log))
    begun, ready = log.count("Booting worker"), log.count("Worker ready")
    return begun == ready and retiring <= gone and len(workers(process)) == WORKERS


def workers(process: ServerProcess) -> set[int]:
    """The processes that the server has forked."""
    pid = process.process.pid
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@MANY
def test_conversations_are_closed_before_the_worker_is_killed(
    options: tuple[str, ...], emulator: RealtimeServer, tmp_path: Path
) -> None:
    """At SIGTERM idle connections are closed, those in use when their time is up: with a close frame."""
    graceful = ("--graceful-timeout", "4")
    with gunicorn(tmp_path, settings(emulator, "plain"), *options, *graceful, workers=1) as process:
        talking = [Asking(process, "/listen", seconds=60) for _ in range(3)]
        eventually(lambda: sum(c.frames_out for c in emulator.connections) == 3)
        process.ask("/echo")
        eventually(lambda: emulator.open == 4)
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        eventually(lambda: emulator.open == 3)
        assert time.monotonic() - began < 2
        for asking in talking:
            answer = asking.answer()
            assert answer["error"] == "ConnectionLost"
            assert "closed" in answer["text"]
        assert 2.9 < time.monotonic() - began < 4
        assert process.wait(2) == 0
        assert "still in use are closed: 3 (graceful_timeout=4)" in process.log.read_text()
    eventually(lambda: emulator.open == 0)
    assert len(emulator.closed) == 4
    assert ends(emulator) <= POLITE


@MANY
def test_who_waits_in_line_is_told_before_the_worker_is_killed(
    options: tuple[str, ...], emulator: RealtimeServer, tmp_path: Path
) -> None:
    graceful = ("--graceful-timeout", "4")
    with gunicorn(tmp_path, settings(emulator, "plain"), *options, *graceful, workers=1) as process:
        talking = [Asking(process, "/listen", seconds=60) for _ in range(MAX_CONNECTIONS)]
        eventually(lambda: sum(c.frames_out for c in emulator.connections) == MAX_CONNECTIONS)
        waiting = [Asking(process, "/hurry", seconds=60) for _ in range(3)]
        eventually(lambda: b'rtpool_waiting_checkouts{pool="default"} 3.0' in process.get("/metrics")[1])
        process.signal(signal.SIGTERM)
        for asking in waiting:
            with pytest.raises(AssertionError, match=r"PoolClosed.*closed while waiting"):
                asking.answer()
        for asking in talking:
            assert asking.answer()["error"] == "ConnectionLost"
        assert process.wait(GRACEFUL) == 0
    eventually(lambda: emulator.open == 0)
    assert ends(emulator) <= POLITE


@MANY
def test_conversations_can_say_goodbye(
    options: tuple[str, ...], emulator: RealtimeServer, tmp_path: Path
) -> None:
    hooks = "from rtpool_sync.contrib.gunicorn import child_exit, post_worker_init\n"
    environment = settings(emulator, "realtime")
    with gunicorn(tmp_path, environment, *options, conf=hooks, workers=1) as process:
        talking = [Asking(process, "/patient") for _ in range(4)]
        eventually(lambda: sum(len(c.items) for c in emulator.connections) == 4)
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        assert [asking.answer()["last"] for asking in talking] == ["goodbye"] * 4
        assert process.wait(5) == 0
        assert time.monotonic() - began < 5
    eventually(lambda: emulator.open == 0)
    assert ends(emulator) <= POLITE


@CLASSES
def test_a_worker_that_hangs_is_replaced(
    options: tuple[str, ...], emulator: RealtimeServer, tmp_path: Path
) -> None:
    """In mid-request: its client is told, its sockets are closed, and the capacity is what it was."""
    with gunicorn(tmp_path, settings(emulator, "plain"), *options, "--timeout", "3") as process:
        Load(process, requests=40).join()
        frames = sum(c.frames_out for c in emulator.connections)
        lost = Asking(process, "/listen", seconds=60)
        eventually(lambda: sum(c.frames_out for c in emulator.connections) > frames)
        before = workers(process)
        if options is not SYNC:  # a sync worker hangs while it serves; the others have to be stopped
            for pid in before:
                os.kill(pid, signal.SIGSTOP)
        with pytest.raises((ConnectionError, AssertionError)) as failure:
            lost.answer()
        assert isinstance(failure.value, ConnectionError) or "Internal Server Error" in str(failure.value)
        replaced = WORKERS if options is not SYNC else 1
        eventually(lambda: len(workers(process)) == WORKERS and len(workers(process) - before) == replaced)
        load = Load(process, requests=200).join()
        assert load.failures == []
        assert emulator.open <= WORKERS * MAX_CONNECTIONS
        assert emulator.max_sockets <= 2 * WORKERS * MAX_CONNECTIONS
        eventually(lambda: up(process))
        process.signal(signal.SIGTERM)
        assert process.wait(GRACEFUL) == 0
    eventually(lambda: emulator.open == 0)
    found = collections.Counter((end.code, end.by) for end in emulator.closed)
    if options is SYNC:  # it is told by a signal, raises SystemExit in the handler, and exits
        assert set(found) <= POLITE
    else:
        assert set(found) <= {*POLITE, (1006, "network")}


def test_a_worker_that_hangs_while_it_connects(emulator: RealtimeServer, tmp_path: Path) -> None:
    """Its caller is in the middle of a checkout when gunicorn's signal raises SystemExit there."""
    reached: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as mute:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    reached.put(mute.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        url = f"ws://127.0.0.1:{mute.getsockname()[1]}/"
        environment = {"POOL": json.dumps({"protocol": "plain", "url": url, "connect_timeout": 60})}
        with gunicorn(tmp_path, environment, *SYNC, "--timeout", "2") as process:
            before = workers(process)
            asking = Asking(process, "/echo")
            with reached.get(timeout=PATIENCE) as peer:
                with pytest.raises((ConnectionError, AssertionError)):
                    asking.answer()
                eventually(lambda: len(workers(process)) == WORKERS and len(workers(process) - before) == 1)
                peer.settimeout(PATIENCE)
                while peer.recv(65536):  # the request for an upgrade, then the end
                    pass
            eventually(lambda: up(process))
            process.signal(signal.SIGTERM)
            assert process.wait(GRACEFUL) == 0
        mute.shutdown(socket.SHUT_RDWR)
