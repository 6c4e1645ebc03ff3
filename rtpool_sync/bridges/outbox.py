"""What waits to be sent to the telephony side, and the clock of what was.

Filled by the thread that receives from the model, emptied by the one that
speaks, so that a telephone line that takes nothing never keeps the model's
events waiting: an interruption is noticed while a send is stuck, and what was
not sent yet is simply dropped.

As long as nothing waits and the line takes what comes, the first one sends by
itself: waking another thread for each piece of audio costs more than all the rest of
its way, and with many calls in a process it is what they wait for.
"""

from __future__ import annotations

import base64
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from .actions import Clear, Mark, Outbound, Reply, Speech, SpeechEnd
from .dialect import Dialect
from .playback import Cut, Playback

__all__ = ["Interruption", "Outbox"]

monotonic = time.monotonic


class Interruption:
    """What an interruption stopped.

    Attributes:
        cuts: Items of which something was not heard.
        dropped: Pieces of audio that were never sent.
    """

    __slots__ = ("cuts", "dropped")

    def __init__(self, cuts: list[Cut], dropped: int) -> None:
        self.cuts = cuts
        self.dropped = dropped


class Outbox:
    """Two lines, and whoever speaks takes from the first one first.

    Args:
        playback: The clock; used under this object's lock.
        dialect: Says in what format audio is, once there is any, and how long pieces may be.
        limit_ms: Audio that may wait at most.
        say_now: Sends actions as far as that does not block; returns the messages that are left.
    """

    def __init__(
        self,
        playback: Playback,
        dialect: Dialect,
        limit_ms: float = 900_000.0,
        say_now: Callable[[Sequence[Outbound | Reply]], Sequence[str]] | None = None,
    ) -> None:
        self._playback = playback
        self._dialect = dialect
        self._limit_ms = limit_ms
        self._say_now = say_now
        self._sending = False  # what was handed out is being sent: nobody else sends meanwhile
        self._rest: deque[str] = deque()  # of what counts as sent, and comes before everything else
        self._urgent: deque[Outbound | Reply] = deque()
        self._audio: deque[Speech | SpeechEnd] = deque()
        self._waiting_ms = 0.0
        self._closed = False
        self._ready = threading.Condition(threading.Lock())

    # -- filling

    def put(self, action: Outbound | Reply) -> bool:
        """Add something; False if there is no room for so much audio."""
        with self._ready:
            if self._closed:
                return True
            if isinstance(action, Speech):
                if self._waiting_ms > self._limit_ms:
                    return False
                self._waiting_ms += self._dialect.output_format.milliseconds(action.size)
                now = monotonic()
                if self._say_now is not None and self._passes(action, now):
                    actions = self._noted(action, now)
                    self._sending = True
                else:
                    self._audio.extend(self._pieces(action))
                    self._ready.notify()
                    return True
            else:
                if isinstance(action, SpeechEnd):
                    self._audio.append(action)
                else:
                    self._urgent.append(action)
                self._ready.notify()
                return True
        rest: Sequence[str] = ()
        try:
            rest = self._say_now(actions)
        finally:
            self.sent(rest)
        return True

    def _passes(self, speech: Speech, now: float) -> bool:
        """Whether it need not wait for anything."""
        if self._sending or self._rest or self._urgent or self._audio:
            return False
        return self._is_piece(speech) and self._playback.delay(now) <= 0.0

    def _is_piece(self, speech: Speech) -> bool:
        dialect = self._dialect
        return dialect.flushes or speech.size <= dialect.output_format.size(dialect.piece_ms)

    def _pieces(self, speech: Speech) -> Iterator[Speech]:
        if self._is_piece(speech):
            yield speech
            return
        piece = self._dialect.output_format.size(self._dialect.piece_ms)
        data = base64.b64decode(speech.payload)
        for start in range(0, len(data), piece):
            part = data[start : start + piece]
            yield Speech(base64.b64encode(part).decode(), len(part), speech.item_id, speech.content_index)

    # -- emptying

    def take(self, timeout: float) -> list[Outbound | Reply] | None:
        """Return what to send next, in order; nothing when nothing was due in time; ``None`` at the end.

        Call :meth:`sent` when it was sent.
        """
        end = monotonic() + timeout
        with self._ready:
            while True:
                now = monotonic()
                wait = end - now
                if not self._sending:
                    actions, delay = self._next(now)
                    if actions:
                        self._sending = True
                        return actions
                    if self._closed:
                        return None
                    wait = min(wait, delay)
                if wait <= 0.0:
                    return []
                self._ready.wait(wait)

    def _next(self, now: float) -> tuple[list[Outbound | Reply], float]:
        """What is due, or how long to wait for it."""
        if self._rest:
            return [Reply(self._rest.popleft())], 0.0
        if self._urgent:
            return [self._urgent.popleft()], 0.0
        if not self._audio:
            return [], math.inf
        action = self._audio[0]
        delay = self._playback.delay(now) if isinstance(action, Speech) else 0.0
        if delay > 0.0:
            return [], delay
        self._audio.popleft()
        return self._noted(action, now), 0.0

    def sent(self, rest: Sequence[str] = ()) -> None:
        """What was handed out was sent, but for these messages."""
        with self._ready:
            self._sending = False
            self._rest.extend(rest)
            if self._rest or self._urgent or self._audio or self._closed:
                self._ready.notify()

    def _noted(self, action: Speech | SpeechEnd, now: float) -> list[Outbound | Reply]:
        """Tell the clock, in the same moment, what is about to be sent."""
        if isinstance(action, SpeechEnd):
            mark = self._playback.end_item(now)
            # The mark belongs to the audio before the end.
            return [action] if mark is None else [Mark(mark), action]
        ms = self._dialect.output_format.milliseconds(action.size)
        self._waiting_ms -= ms
        mark = self._playback.sent(action.item_id, action.content_index, ms, now)
        return [action] if mark is None else [action, Mark(mark)]

    def close(self) -> None:
        """No more audio; what is urgent is still handed out."""
        with self._ready:
            self._closed = True
            self._audio.clear()
            self._waiting_ms = 0.0
            self._ready.notify_all()

    # -- the clock

    def reached(self, mark: str) -> bool:
        """Note a mark that came back; False if it is not one that is waited for."""
        with self._ready:
            return self._playback.reached(mark, monotonic())

    def finished(self) -> None:
        """Note that everything sent was played."""
        with self._ready:
            self._playback.finished(monotonic())
            self._ready.notify()

    @property
    def heard_ms(self) -> float:
        with self._ready:
            self._playback.playing(monotonic())
            return self._playback.heard_ms

    @property
    def quiet(self) -> bool:
        """Whether nothing waits to be sent and nothing sent is still being played."""
        with self._ready:
            waits = self._audio or self._urgent or self._rest
            return not waits and not self._playback.playing(monotonic())

    def interrupt(self, always: bool) -> Interruption:
        """Drop all audio; have :class:`Clear` sent if any was being played or waited (or ``always``)."""
        with self._ready:
            cuts = self._playback.interrupt(monotonic())
            known = {(cut.item_id, cut.content_index) for cut in cuts}
            dropped = 0
            for action in self._audio:
                if isinstance(action, Speech):
                    dropped += 1
                    part = (action.item_id, action.content_index)
                    if part not in known:
                        known.add(part)
                        cuts.append(Cut(*part, int(self._playback.sent_ms(*part))))
            self._audio.clear()
            self._waiting_ms = 0.0
            if cuts or always:
                self._urgent.appendleft(Clear())
                self._ready.notify()
            return Interruption(cuts, dropped)
