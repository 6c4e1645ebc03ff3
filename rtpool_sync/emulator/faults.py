"""What can be made to go wrong, and the part of it that works on events.

:class:`Faults` says what a connection suffers; :class:`Mangler` applies the
faults that drop, delay, double, swap or rewrite events. Faults below the level
of events are in :mod:`.raw`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Event", "Faults", "Mangler"]

Event = dict[str, Any]

#: How long a held-back event waits for another one to overtake it.
_HOLD = 0.05


@dataclass(frozen=True)
class Faults:
    """Faults of a connection. The default has none.

    Those of the opening are decided when a connection is accepted, the others
    are looked up for every message, so that ``server.faults = Faults(...)``
    works on connections that exist. A probability is drawn from the server's
    ``seed`` and the connection's index.

    Attributes:
        only: Which connections suffer: called with the connection's index
            (counted from 0 as they are accepted); ``None`` means all.

        refuse: Answer the upgrade with this HTTP status.
        refuse_headers: Headers of the refusal (``{"Retry-After": "3"}``).
        refuse_body: Body of the refusal.
        redirect: Answer the upgrade with 302 and this location.
        reset: Reset the TCP connection: ``"accept"`` at once, ``"request"``
            when the upgrade request was read.
        mute: Never answer: ``"accept"`` nothing at all (TLS included),
            ``"request"`` not the upgrade.
        trickle: Seconds between two bytes of the upgrade's answer.
        set_cookie: A ``Set-Cookie`` header in the upgrade's answer.
        no_session_created: Upgrade, then keep silent instead of ``session.created``.

        truncate_after: After so many messages send half of the next one, then FIN.
        reset_after: After so many messages reset the TCP connection.
        stall_after: After so many messages stop reading and writing.
        close_after: After so many messages close with ``close_code`` and ``close_reason``.
        oversize_after: After so many messages announce and send one of ``oversize_bytes``.
        bad_utf8_after: After so many messages send a text message that is not UTF-8.

        drop: Event type to the probability that such an event is not sent.
            ``"*"`` stands for every type, here and below.
        duplicate: Event type to the probability that it is sent twice.
        reorder: Event type to the probability that the next event overtakes it.
        late: Event type to the seconds it is sent late; what follows overtakes it.
        rewrite: Called with every event; what it returns is sent instead
            (``None``: nothing).
    """

    only: Callable[[int], bool] | None = None

    refuse: int | None = None
    refuse_headers: Mapping[str, str] = field(default_factory=dict)
    refuse_body: str = ""
    redirect: str | None = None
    reset: str | None = None
    mute: str | None = None
    trickle: float = 0.0
    set_cookie: str | None = None
    no_session_created: bool = False

    truncate_after: int | None = None
    reset_after: int | None = None
    stall_after: int | None = None
    close_after: int | None = None
    close_code: int = 1011
    close_reason: str = ""
    oversize_after: int | None = None
    oversize_bytes: int = 17 * 1024 * 1024
    bad_utf8_after: int | None = None

    drop: Mapping[str, float] = field(default_factory=dict)
    duplicate: Mapping[str, float] = field(default_factory=dict)
    reorder: Mapping[str, float] = field(default_factory=dict)
    late: Mapping[str, float] = field(default_factory=dict)
    rewrite: Callable[[Event], Event | None] | None = None

    def __post_init__(self) -> None:
        for name in ("reset", "mute"):
            if getattr(self, name) not in (None, "accept", "request"):
                raise ValueError(f'{name} must be None, "accept" or "request", not {getattr(self, name)!r}')
        if self.refuse is not None and not 200 <= self.refuse <= 599:
            raise ValueError(f"refuse must be an HTTP status, not {self.refuse!r}")

    def hits(self, index: int) -> bool:
        """Tell whether the connection of that index suffers."""
        return self.only is None or self.only(index)

    @property
    def mangles(self) -> bool:
        """Whether any fault works on single events."""
        return bool(self.drop or self.duplicate or self.reorder or self.late or self.rewrite)

    @property
    def counts(self) -> bool:
        """Whether any fault waits for a number of messages."""
        return not (
            self.truncate_after is None
            and self.reset_after is None
            and self.stall_after is None
            and self.close_after is None
            and self.oversize_after is None
            and self.bad_utf8_after is None
        )


NO_FAULTS = Faults()


class Mangler:
    """Applies the event faults of one connection. No I/O: delays are returned, not waited."""

    def __init__(self, seed: int, index: int) -> None:
        self._random = random.Random(f"{seed}:{index}")
        self._held: list[Event] = []

    def _draw(self, odds: Mapping[str, float], type_: str) -> bool:
        if not odds:
            return False
        odd = odds.get(type_)
        if odd is None:
            odd = odds.get("*", 0.0)
        return odd > 0.0 and self._random.random() < odd

    def __call__(self, faults: Faults, event: Event) -> list[tuple[float, Event | None]]:
        """Return what to send instead of ``event``, each with the seconds to wait before.

        ``None`` in place of an event means: call :meth:`release` then.
        """
        type_ = event["type"]
        if faults.rewrite is not None:
            changed = faults.rewrite(event)
            if changed is None:
                return []
            event = changed
        if self._draw(faults.drop, type_):
            return []
        delay = faults.late.get(type_, faults.late.get("*", 0.0)) if faults.late else 0.0
        if delay > 0.0:
            return [(delay, event)]
        sent: list[tuple[float, Event | None]] = [(0.0, event)]
        if self._draw(faults.duplicate, type_):
            sent.append((0.0, event))
        if self._held:
            sent.extend((0.0, held) for held in self.release())
        elif self._draw(faults.reorder, type_):
            self._held = [event for _, event in sent if event is not None]
            return [(_HOLD, None)]
        return sent

    def release(self) -> list[Event]:
        """Return the events that were held back to be overtaken, and were not."""
        held, self._held = self._held, []
        return held
