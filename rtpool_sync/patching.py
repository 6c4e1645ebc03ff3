"""Whether gevent has replaced the parts of the standard library that a pool waits with.

Under gevent a thread is a greenlet, and what it waits for has to be made of
gevent's parts: a lock or a poll object from before stops every greenlet of the
process, also the one that would end the wait.
"""

from __future__ import annotations

import queue
import select
import selectors
import threading

__all__ = ["half_patched", "patched"]


def patched() -> bool:
    """Whether polling is gevent's."""
    return select.poll.__module__.startswith("gevent")


def half_patched() -> str | None:
    """Say what is wrong if some of the parts are gevent's and some are not; None if nothing is.

    Such a mixture hangs, or crashes: each of gevent's parts belongs to one thread.
    """
    parts = {
        "threading": threading.Lock,
        "select": select.poll,
        "selectors": selectors.DefaultSelector,
        "queue": queue.SimpleQueue,
    }
    patched = [name for name, part in parts.items() if part.__module__.startswith("gevent")]
    missing = [name for name in parts if name not in patched]
    if not patched or not missing:
        return None
    return (
        f"gevent has patched {', '.join(patched)} but not {', '.join(missing)}: "
        "call gevent.monkey.patch_all() without exceptions, or do not patch at all"
    )
