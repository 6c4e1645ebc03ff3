"""What a phase of the examination found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["PHASES", "Finding"]

#: In the order they are gone through; a failure ends the examination.
PHASES = (
    "settings",
    "dns",
    "tcp",
    "proxy",
    "tls",
    "upgrade",
    "session",
    "turn",
    "reset",
    "reuse",
)


@dataclass(frozen=True)
class Finding:
    """One phase.

    Attributes:
        phase: One of :data:`PHASES`.
        status: ``ok``, ``warning`` (works, but look at it), ``failed`` or ``skipped``.
        detail: What was seen. No secret.
        advice: What to do about it; empty if all is well.
        seconds: How long it took, or ``None`` where there is nothing to time.
    """

    phase: str
    status: str
    detail: str
    advice: str = ""
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
