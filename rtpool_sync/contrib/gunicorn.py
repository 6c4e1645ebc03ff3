"""Hooks for gunicorn: conversations end before their worker is killed, metrics when it is dead.

In ``gunicorn.conf.py``::

    from rtpool_sync.contrib.gunicorn import child_exit, post_worker_init

A worker that is told to end takes no new requests and waits for those under
way, ``graceful_timeout`` seconds at most; then it is killed, without ``finally``
and without a close frame. A handler that holds a conversation knows nothing of
it. With these hooks it can ask :func:`draining`, and what it holds is closed in
time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any, Protocol

__all__ = ["child_exit", "draining", "post_worker_init"]

log = logging.getLogger("rtpool_sync")

#: Seconds between looks at whether the worker was told to end, and at its pools from then on.
LOOK = 0.2
#: Seconds before the worker's end at which conversations are closed, so that their handlers
#: can end too; a quarter of the time there is, if that is less.
MARGIN = 5.0

_draining = False


class Worker(Protocol):
    """What is needed of a gunicorn worker."""

    pid: int
    alive: bool
    cfg: Any


def draining() -> bool:
    """Whether this worker was told to end: time to say goodbye in a long conversation."""
    return _draining


def post_worker_init(worker: Worker) -> None:
    """Hook: watch for the end of this worker, in a thread.

    Requests under way may still check connections out. Idle connections are
    closed, and no reserve is kept. Conversations that have not ended
    ``graceful_timeout`` less 5 seconds later are closed, with a close frame; their
    borrowers get :class:`~rtpool_sync.ConnectionLost`.
    """
    threading.Thread(target=_watch, args=(worker,), name="rtpool-gunicorn", daemon=True).start()


def child_exit(server: object, worker: Worker) -> None:
    """Hook: have a worker that is dead leave the gauges, under ``PROMETHEUS_MULTIPROC_DIR``."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def _watch(worker: Worker) -> None:
    global _draining
    while worker.alive:
        time.sleep(LOOK)
    from ..pool import live_pools  # not in the master, where gevent has not patched anything yet

    _draining = True
    patience = float(worker.cfg.graceful_timeout)
    end = time.monotonic() + patience - min(MARGIN, patience / 4)
    while time.monotonic() < end:
        for pool in live_pools():
            stats = pool.stats()
            if stats.min_idle and not stats.closed:
                pool.resize(min_idle=0)
            elif stats.idle and not stats.waiting:
                pool.drain()
        time.sleep(min(LOOK, max(0.0, end - time.monotonic())))
    for pool in live_pools():
        if count := pool.stats().active_sessions:
            log.warning(
                "pool %r: worker %d is about to be killed, connections still in use are closed: %d "
                "(graceful_timeout=%g)",
                pool.name,
                worker.pid,
                count,
                patience,
            )
        # One slow peer must not keep the others' close frames back.
        threading.Thread(target=pool.close, args=(0.0,), name="rtpool-gunicorn", daemon=True).start()
