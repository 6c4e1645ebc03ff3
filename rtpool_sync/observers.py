"""Where those who watch pools plug in, so that the core need not know them.

The exporter is named here and imported when the first pool starts: importing
the package stays light, and a process that never starts a pool exports nothing.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ledger import Ledger

__all__ = ["EXPORTER", "publish", "publishers", "started"]

log = logging.getLogger("rtpool_sync")

#: The module whose ``track(pool, ledger, registry)`` is told of every pool that starts.
EXPORTER = "rtpool_sync.metrics"

#: Called by every reaper about once a second, when its pool was closed, and when a
#: checkout from a closed pool failed. Empty unless somebody has to be told the numbers.
publishers: list[Callable[[], None]] = []

_broken: set[str] = set()  # faults that were reported


def started(pool: object, ledger: Ledger, registry: Any) -> None:
    """Have a pool that starts in this process exported. ``registry`` False: it does not want to be."""
    if registry is False:
        return
    try:
        importlib.import_module(EXPORTER).track(pool, ledger, registry)
    except Exception as error:  # no metric is worth a checkout
        _report(error)


def publish() -> None:
    """Have the numbers published where nobody comes to ask for them."""
    for publisher in list(publishers):
        try:
            publisher()
        except Exception as error:
            _report(error)


def _report(error: Exception) -> None:
    text = f"{type(error).__name__}: {error}"
    if text not in _broken and len(_broken) < 100:
        _broken.add(text)
        log.warning("metrics are not exported: %s", text)
