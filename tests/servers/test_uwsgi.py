"""uWSGI: a reload under load, one worker after the other."""

from __future__ import annotations

import signal
from pathlib import Path

from server_process import Load, eventually
from serving import GRACEFUL, MAX_CONNECTIONS, POLITE, SLOW, WORKERS, ends, settings
from test_matrix import uwsgi

from rtpool_sync.emulator import RealtimeServer


def test_a_chain_reload_under_load(emulator: RealtimeServer, tmp_path: Path) -> None:
    """No request fails, every worker is new, and each old one has closed its connections."""
    fifo = tmp_path / "fifo"
    options = ("--threads", "8", "--lazy-apps", "--master-fifo", str(fifo))
    with uwsgi(tmp_path, settings(emulator, "plain"), *options) as process:
        load = Load(process)
        for reloads in range(1, 5 if SLOW else 2):
            eventually(lambda n=reloads: len(load.pids) >= n * WORKERS)
            fifo.write_bytes(b"c")
            eventually(lambda n=reloads: process.log.read_text().count("chain reloading complete") == n)
        eventually(lambda: len(load.pids) >= (reloads + 1) * WORKERS)
        load.stop()
        assert load.failures == []
        assert emulator.max_sockets <= WORKERS * MAX_CONNECTIONS
        process.signal(signal.SIGTERM)
        assert process.wait(GRACEFUL) == 0
    eventually(lambda: emulator.open == 0)
    assert len(emulator.closed) == emulator.opened_total
    assert ends(emulator) <= POLITE
