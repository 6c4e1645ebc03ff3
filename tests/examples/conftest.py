"""The telephony sides that the tests of the bridges play with, for the examples."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "bridges"))
