"""The application under waitress, which by itself would end at SIGTERM without closing anything."""

from __future__ import annotations

import signal
import sys
from typing import Any

import application
import waitress


def end(number: int, frame: Any) -> None:
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
waitress.serve(application.application, host="127.0.0.1", port=int(sys.argv[1]), threads=8)
