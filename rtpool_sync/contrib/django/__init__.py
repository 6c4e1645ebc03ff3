"""The pool at home in Django: ``INSTALLED_APPS = [..., "rtpool_sync.contrib.django"]``.

    from rtpool_sync.contrib.django import connection, pools

    with connection() as conn:                    # of the pool "default"
        ...
    with pools["support"].connection() as conn:
        ...

The pools are described by ``REALTIME_POOLS``, by settings files and by the
environment. Nothing is opened and no thread is started before the first checkout.
"""

from __future__ import annotations

try:
    import django as _django  # noqa: F401
except ImportError as error:
    raise ImportError("rtpool_sync.contrib.django needs Django: pip install 'rtpool-sync[django]'") from error

from .conf import UnknownPool
from .handler import Pools, connection, pools

__all__ = ["Pools", "UnknownPool", "connection", "pools"]
