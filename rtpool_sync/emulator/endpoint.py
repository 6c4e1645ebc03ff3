"""A session at the end of a wire: timers, faults and JSON between the two."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any

from . import raw
from .faults import Event, Faults, Mangler
from .problems import Problem, error_event
from .session import Session
from .wire import Wire

__all__ = ["RealtimeEndpoint", "RejectingEndpoint"]

_encode: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":")).encode


class RejectingEndpoint:
    """Says what is wrong and closes: the service refuses only after the upgrade."""

    def __init__(self, wire: Wire, problem: Problem, code: int, reason: str) -> None:
        self._wire = wire
        self._error = {**error_event(problem), "event_id": "event_refused"}
        self._close = (code, reason)

    def opened(self) -> None:
        self._wire.queue(_encode(self._error).encode())
        self._wire.close(*self._close)

    def message(self, first: int, payload: bytes) -> None:
        pass

    def closed(self) -> None:
        pass


class RealtimeEndpoint:
    """Drives one :class:`Session`."""

    def __init__(
        self,
        wire: Wire,
        session: Session,
        faults: Callable[[], Faults],
        mangler: Mangler,
        session_seconds: float,
        record: int,
    ) -> None:
        self.session = session
        self.received: deque[str] = deque(maxlen=record)
        self._wire = wire
        self._loop: asyncio.AbstractEventLoop = wire.loop
        self._faults = faults
        self._mangle = mangler
        self._sent = 0
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._expiry = self._loop.call_later(session_seconds, self.expire)

    def opened(self) -> None:
        self.session.start(self._loop.time())
        if self._faults().no_session_created:
            self.session.outgoing()
        self._pass_on()

    def message(self, first: int, payload: bytes) -> None:
        if self._over:
            return
        if first != 0x81:
            self.session.feed_binary(self._loop.time())
        else:
            try:
                text = str(payload, "utf-8")
            except UnicodeDecodeError:
                self._wire.fail(1007, "invalid UTF-8")
                return
            self.received.append(text)
            self.session.feed(text, self._loop.time())
        self._pass_on()

    def closed(self) -> None:
        self._over = True
        self._expiry.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def expire(self) -> None:
        """Reach the maximum duration now."""
        if not self._over:
            self.session.expire()
            self._pass_on()
            self._wire.flush()

    def emit(self, event: Event) -> None:
        """Send an event nobody asked for."""
        self._send({"event_id": self.session.new_id("event"), **event})
        self._wire.flush()

    def _tick(self) -> None:
        self._timer = None
        self.session.tick(self._loop.time())
        self._pass_on()
        self._wire.flush()

    def _pass_on(self) -> None:
        """Queue what the session has to say and follow its state. Flushing is the caller's part."""
        session, faults = self.session, self._faults()
        events = session.outgoing()
        if faults.mangles or faults.counts:
            for event in events:
                if not self._mangled(faults, event):
                    return
        else:
            self._sent += len(events)
            queue = self._wire.queue
            for event in events:
                queue(_encode(event).encode())
        if session.closing is not None:
            self._wire.close(*session.closing)
            return
        self._set_timer(session.wake_at)

    def _set_timer(self, due: float | None) -> None:
        timer = self._timer
        if timer is not None:
            if due is not None and timer.when() == due:
                return
            timer.cancel()
        self._timer = None if due is None or self._over else self._loop.call_at(due, self._tick)

    # -- faults -------------------------------------------------------------------

    def _mangled(self, faults: Faults, event: Event) -> bool:
        """Send ``event`` as the faults want it; tell whether the connection goes on."""
        for delay, changed in self._mangle(faults, event):
            if changed is None:
                self._loop.call_later(delay, self._release)
            elif delay > 0.0:
                self._loop.call_later(delay, self._send_late, changed)
            elif not self._counted(faults, changed):
                return False
        return True

    def _release(self) -> None:
        for event in self._mangle.release():
            self._send_late(event)

    def _send_late(self, event: Event) -> None:
        if not self._over:
            self._send(event)
            self._wire.flush()

    def _send(self, event: Event) -> None:
        self._sent += 1
        self._wire.queue(_encode(event).encode())

    def _counted(self, faults: Faults, event: Event) -> bool:
        """Send one event, or do to the connection what is due after so many messages."""
        sent, wire = self._sent, self._wire
        if faults.truncate_after is not None and sent >= faults.truncate_after:
            wire.flush()
            raw.truncate(wire, _encode(event).encode())
        elif faults.reset_after is not None and sent >= faults.reset_after:
            wire.flush()
            raw.reset(wire)
        elif faults.stall_after is not None and sent >= faults.stall_after:
            raw.stall(wire)
        elif faults.close_after is not None and sent >= faults.close_after:
            wire.close(faults.close_code, faults.close_reason)
        else:
            if faults.oversize_after is not None and sent == faults.oversize_after:
                raw.oversize(wire, faults.oversize_bytes)
            if faults.bad_utf8_after is not None and sent == faults.bad_utf8_after:
                raw.bad_utf8(wire)
            self._send(event)
            return True
        return False
