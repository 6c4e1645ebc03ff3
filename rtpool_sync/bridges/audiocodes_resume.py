"""A call outlives its WebSocket: AudioCodes' ``session.resume``.

When the WebSocket of a call breaks, VoiceAI Connect opens another one and says
``session.resume`` with the same conversationId. That one is served by another
thread of the application, often while the first one still waits for the broken
one. :class:`Conversations` brings the two together, and :class:`Held` is the
telephony side that a bridge keeps over the change: it looks like one WebSocket
that said nothing and took nothing for a while.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from .audiocodes_protocol import AudioCodesDialect
from .telephony import Telephony, TelephonyClosed

__all__ = ["Conversations", "Held"]

monotonic = time.monotonic

#: Seconds after which a thread that waits for the end of a call sees whether there is still one.
POLL = 1.0
#: A close code that asks the peer to come again: a proxy or a server that restarts.
_GOING_AWAY = 1001


class Held:
    """One telephony side over several WebSockets, a :class:`~.telephony.Telephony`.

    Until :meth:`hold` it passes everything through. After that, a WebSocket that breaks is
    waited for: :meth:`recv` has nothing meanwhile, :meth:`send` waits.
    """

    def __init__(self, telephony: Telephony) -> None:
        self._current: Telephony | None = telephony
        self._before: list[Telephony] = []
        self._broken: Telephony | None = None  # the last one, as long as not all that came over it was heard
        self._pushed: deque[str | bytes] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._dialect: AudioCodesDialect | None = None
        self._grace = 0.0
        self._until = 0.0
        self._cause: TelephonyClosed | None = None
        self._over = False  # aborted or closed
        self._hear: Callable[[str | bytes], None] | None = None
        self._handed: Telephony | None = None  # the WebSocket that was told of it
        self._arrived: deque[tuple[Telephony, str | bytes]] = deque()
        self._turn = threading.Lock()  # who has it hands over what arrived; nobody waits for it
        self._leave: Callable[[], None] = lambda: None
        #: Told of every break that was survived.
        self.report: Callable[[str], None] = lambda what: None

    def hold(self, dialect: AudioCodesDialect, grace: float, leave: Callable[[], None]) -> None:
        """From now on wait ``grace`` seconds for another WebSocket; call ``leave`` at the end."""
        self._dialect, self._grace, self._leave = dialect, grace, leave

    # -- what the core sees

    def push(self, message: str | bytes) -> None:
        """Have a message received (again) before all others."""
        self._pushed.append(message)

    def recv(self, timeout: float) -> str | bytes | None:
        if self._pushed:
            return self._pushed.popleft()
        # The sender may notice a break before what came before it was received: the call's end, perhaps.
        current = self._current or self._broken or self._wait(timeout)
        if current is None:
            return None
        if self._hear is not None and self._handed is not current:
            self._handed = current
            hand_to = getattr(current, "hand_to", None)
            if hand_to is not None:
                hand_to(functools.partial(self._heard, current))
        try:
            return current.recv(timeout)
        except TelephonyClosed as error:
            self._lost(current, error)
            with self._changed:
                if current is self._broken:
                    self._broken = None
                    self._changed.notify_all()
            return None

    def hand_to(self, hear: Callable[[str | bytes], None]) -> bool:
        while self._pushed:
            hear(self._pushed.popleft())
        self._hear = hear
        return True

    def _heard(self, telephony: Telephony, message: str | bytes) -> None:
        # At a change two of them may bring something at once.
        self._arrived.append((telephony, message))
        while self._arrived and self._turn.acquire(False):
            try:
                while self._arrived:
                    origin, message = self._arrived.popleft()
                    if self._hear is not None and origin is (self._current or self._broken):
                        self._hear(message)
            finally:
                self._turn.release()

    def send(self, message: str) -> None:
        while True:
            current = self._wait(math.inf)
            assert current is not None
            try:
                current.send(message)
                return
            except TelephonyClosed as error:
                self._lost(current, error)

    def send_now(self, message: str) -> bool:
        current = self._current
        send_now = getattr(current, "send_now", None)
        if current is None or send_now is None:
            return False
        try:
            return bool(send_now(message))
        except TelephonyClosed as error:
            self._lost(current, error)
            return False

    def _wait(self, timeout: float) -> Telephony | None:
        """Return the WebSocket there is; ``None`` if there was none in time."""
        end = monotonic() + timeout
        with self._changed:
            while self._current is None:
                now = monotonic()
                if self._over or now >= self._until:
                    raise self._cause or TelephonyClosed("the call is over", clean=True)
                if now >= end:
                    return None
                self._changed.wait(min(end, self._until) - now)
            return self._current

    def _lost(self, telephony: Telephony, error: TelephonyClosed) -> None:
        with self._changed:
            if telephony is not (self._current or self._broken):
                return  # it was replaced
            said_goodbye = error.clean and error.code != _GOING_AWAY
            if self._over or said_goodbye or self._dialect is None or self._grace <= 0.0:
                raise error
            if self._current is None:
                return  # the other thread has noticed
            self._cause = error
            self._until = monotonic() + self._grace
            self._dialect.counts_from = math.inf
            self._before.append(telephony)
            self._current, self._broken = None, telephony
            self._changed.notify_all()
        telephony.abort()

    def close(self, code: int = 1000, reason: str = "") -> None:
        self._leave()
        with self._changed:
            self._over = True
            current, before = self._current, self._before
            self._before = []
        for telephony in before:
            telephony.abort()
        try:
            if current is not None:
                current.close(code, reason)
            for telephony in before:
                telephony.close(code, reason)
        finally:
            with self._changed:
                self._current = self._broken = None
                self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            self._over = True
            current = self._current
            self._changed.notify_all()
        if current is not None:
            current.abort()

    # -- what brings the other one

    def take(self, telephony: Telephony, greeting: str) -> bool:
        """Go on with another WebSocket, after ``greeting`` was sent over it; False if the call is over.

        Raises:
            TelephonyClosed: It broke as well.
        """
        if not self._alive():
            return False
        telephony.send(greeting)
        with self._changed:
            if not self._alive():
                return False
            old, self._current = self._current, telephony
            if old is not None:  # VoiceAI Connect knew before us
                self._before.append(old)
            away = 0.0 if old is not None else monotonic() - (self._until - self._grace)
            dialect = self._dialect
            if dialect is not None:
                dialect.resumed = True
                dialect.counts_from = monotonic()
            self._changed.notify_all()
        if old is not None:
            old.abort()
        self.report(f"the telephony WebSocket broke; the session was resumed after {away:.1f} s")
        return True

    def _alive(self) -> bool:
        return not self._over and (self._current is not None or monotonic() < self._until)

    def carries(self, telephony: Telephony, timeout: float) -> bool:
        """Whether the call still goes over that WebSocket, after waiting for another answer."""
        with self._changed:
            if telephony is (self._current or self._broken):
                self._changed.wait(timeout)
            return telephony is (self._current or self._broken)


class Conversations:
    """The calls of this process, so that ``session.resume`` finds its own.

    One for each process that answers calls, given to every :meth:`AudioCodesBridge.answer`.

    Args:
        grace: Seconds that a call whose WebSocket broke waits for another one.
    """

    def __init__(self, grace: float = 10.0) -> None:
        self.grace = grace
        self._lock = threading.Lock()
        # Weak: a call that was answered and never run is not kept.
        self._calls: weakref.WeakValueDictionary[str, Held] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, conversation_id: str, held: Held, dialect: AudioCodesDialect) -> None:
        """Remember a call, until it is over."""
        with self._lock:
            self._calls[conversation_id] = held
        own = weakref.ref(held)
        held.hold(dialect, self.grace, lambda: self._forget(conversation_id, own))

    def _forget(self, conversation_id: str, own: Callable[[], Held | None]) -> None:
        with self._lock:
            if self._calls.get(conversation_id) is own():
                self._calls.pop(conversation_id, None)

    def resume(self, message: str | bytes, telephony: Telephony) -> bool:
        """If a WebSocket's first message resumes a call, carry that on over it, to its end.

        Returns:
            False at once if it is not a ``session.resume``, or not of a call known here.

        Raises:
            TelephonyClosed: The call, or its time over this WebSocket, has ended.
        """
        event = None
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(message)
        if not isinstance(event, dict) or event.get("type") != "session.resume":
            return False
        conversation_id = event.get("conversationId")
        with self._lock:
            held = self._calls.get(conversation_id) if isinstance(conversation_id, str) else None
        if held is None or not held.take(telephony, '{"type":"session.accepted"}'):
            return False
        # Not kept by this thread: a call whose application has dropped it is over.
        own = weakref.ref(held)
        del held
        while (still := own()) is not None and still.carries(telephony, POLL):
            del still
        raise TelephonyClosed("this WebSocket carried on a call that was answered before", clean=True)
