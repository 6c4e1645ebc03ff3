"""What ``rtpool doctor`` finds out: every step from the settings to a connection used twice, and what to do.

for finding in diagnose("default"):
    print(finding.phase, finding.status, finding.advice)
"""

from __future__ import annotations

from .examination import diagnose
from .findings import PHASES, Finding

__all__ = ["PHASES", "Finding", "diagnose"]
