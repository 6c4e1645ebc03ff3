"""What the tests of the Django application share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

KEY = "sk-never-to-be-seen-0123456789"


def eventually(condition: Callable[[], object], timeout: float = 10.0, what: str = "") -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:g} s: {what or condition}"
        time.sleep(0.005)


def pool_threads() -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("rtpool-") and "emulator" not in thread.name
    ]
