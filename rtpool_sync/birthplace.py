"""Whether this is still the process in which something was made, without a system call.

Every use of a pool asks, for uWSGI forks without running Python's hooks. The process id
would tell, but asking the system for it takes as long as six calls of Python's do.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Protocol

__all__ = ["Birthplace", "birthplace"]

MADV_WIPEONFORK = 18  # of Linux 4.14; the module mmap has no name for it


class Birthplace(Protocol):
    """``[0]`` is true in the process that made it, and in no child of that."""

    def __getitem__(self, index: int, /) -> int: ...


class _ByNumber:
    """Where the kernel has no such memory, the process id tells."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int, /) -> int:
        return self._pid == os.getpid()


def birthplace() -> Birthplace:
    """Return what tells this process from its children: memory that the kernel empties when it forks."""
    if sys.platform != "linux":
        return _ByNumber()
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(MADV_WIPEONFORK)
    except OSError:
        return _ByNumber()
    try:
        page.madvise(-1)
    except OSError:
        page[0] = 1
        return page
    return _ByNumber()  # an emulator, which agrees to whatever it does not know
