"""The line to the model: a pooled connection, shared by all threads of a call."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConnectionLost, ConnectionReturned, RecvTimeout, SessionExpired

if TYPE_CHECKING:
    from ..connection import RealtimeConnection

__all__ = ["Line"]

monotonic = time.monotonic
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Line:
    """Sends for every thread of a call, and tells what became of the connection.

    Args:
        conn: The pooled connection.
        ended: Set when the call is over: nothing more is sent then.
        end: Ends the call: why (see :data:`~.result.ENDINGS`), a sentence, the exception.
        timeout: Seconds that the server may leave pings unanswered.

    Attributes:
        sending_since: When the send that is under way began; 0 when there is none.
    """

    def __init__(
        self,
        conn: RealtimeConnection,
        ended: threading.Event,
        end: Callable[[str, str, BaseException | None], None],
        timeout: float,
    ) -> None:
        self.sending_since = 0.0
        self._conn = conn
        self._ended = ended
        self._end = end
        self._timeout = timeout
        self._waiting: deque[str] = deque()
        self._turn = threading.Lock()  # who has it sends for everybody; nobody waits for it

    def send(self, event: Mapping[str, Any] | str) -> None:
        """Send an event. Any thread; in the order of their coming.

        Who comes while another thread is sending leaves the event to that one
        and goes on: so a stalled server holds up one thread only.

        Raises:
            TypeError, ValueError: It cannot be encoded.
        """
        if not isinstance(event, str):
            event = _encode(event)  # here: the one that sends it may be another thread
        waiting, turn, ended = self._waiting, self._turn, self._ended
        waiting.append(event)
        # Looked at again after each release: somebody may have come between the last look and that.
        while waiting and not ended.is_set() and turn.acquire(False):
            try:
                while waiting and not ended.is_set():
                    self.sending_since = monotonic()
                    self._conn.send(waiting.popleft())
            except (ConnectionLost, ConnectionReturned) as error:
                self._lost(error)
            finally:
                self.sending_since = 0.0
                turn.release()

    def receive(self, timeout: float) -> Any:
        """Return the next event; ``None`` when there was none in time, or the connection is lost.

        Raises:
            ValueError: The server sent something that is not JSON.
        """
        try:
            try:
                return self._conn.recv(timeout)
            except RecvTimeout:
                self._still_there(timeout)
        except (ConnectionLost, ConnectionReturned) as error:
            self._lost(error)
        return None

    def _still_there(self, patience: float) -> None:
        """Nothing came for a moment: ask whether somebody is there, now and then."""
        idle = self._conn.idle_seconds
        if idle > self._timeout:
            self._end("realtime_silent", f"nothing came for {idle:.1f} s, not even answers to pings", None)
            self.abort("no answer to pings")
        elif idle > self._timeout / 2:
            with contextlib.suppress(TimeoutError):  # whatever arrives counts, at the next look
                self._conn.ping(patience)

    def _lost(self, error: ConnectionLost | ConnectionReturned) -> None:
        if isinstance(error, ConnectionReturned):
            self._end("realtime_lost", "the connection was returned to its pool during the call", error)
        elif error.code == 1000 and not isinstance(error, SessionExpired):
            self._end("realtime_closed", str(error), error)
        else:
            self._end("realtime_lost", str(error), error)

    def abort(self, reason: str) -> None:
        """End the connection, which wakes every thread that waits in it. Never blocks."""
        with contextlib.suppress(ConnectionReturned, ConnectionLost):
            self._conn.abort(reason)
