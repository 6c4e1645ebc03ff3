"""Fixtures that tests of several folders share."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator

import pytest

# Of a shell's background job SIGINT is ignored, and so it would be of every process these tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def untraced() -> Iterator[None]:
    """Switch line tracing (coverage) off for this test and the threads it starts.

    CPython 3.11 enters a function that is traced again and again for as long as
    an asynchronous exception waits for a thread that is blocked, so a test that
    throws them would hang the interpreter, not the code under test. And one that
    strikes inside of the tracer itself (it has a lock) leaves that locked for good.
    """
    tracer = sys.gettrace()
    thread_tracer = threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(thread_tracer)
    sys.settrace(tracer)
