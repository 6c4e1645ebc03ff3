"""The official SDK over the pool: openai's own typed ``RealtimeConnection``, on a pooled connection.

    from rtpool_sync.contrib.openai import openai_connection

    with openai_connection(pool) as rt:
        rt.response.create()
        for event in rt:
            ...

The SDK asks three methods of its WebSocket, ``recv``, ``send`` and ``close``, and
knows an end by the exceptions of `websockets`. Both are provided here; what is
sent and received passes through the pool's bookkeeping like everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ConnectionLost, ConnectionReturned, MessageTooBig

try:
    from openai.resources.realtime.realtime import RealtimeConnection
    from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
    from websockets.frames import Close
except ImportError as error:
    missing = (error.name or "one of them").partition(".")[0]
    raise ImportError(
        f"rtpool_sync.contrib.openai needs the packages openai (2.0 or later) and websockets "
        f"({missing} is missing): pip install 'rtpool-sync[openai]'"
    ) from error

if TYPE_CHECKING:
    from ..connection import RealtimeConnection as PooledConnection
    from ..pool import RealtimePool

__all__ = ["openai_connection"]

#: Close codes that `websockets`, and so the SDK's iteration, takes for an end without an error.
_FINE = frozenset({1000, 1001, 1005})


@contextmanager
def openai_connection(
    pool: RealtimePool, timeout: float | None = None, *, session: Mapping[str, Any] | None = None
) -> Iterator[RealtimeConnection]:
    """Lend a connection of ``pool`` as the SDK's own ``RealtimeConnection``.

    Its ``close()`` gives the connection back to the pool, as the end of the
    ``with`` block does. ``session.created`` was received by the pool and does not
    come again. The SDK never reconnects by itself here: take another connection.

    Args:
        pool: The pool.
        timeout: Seconds to wait for a connection; the pool's ``checkout_timeout`` when omitted.
        session: Session settings, applied and acknowledged before the block begins.

    Raises:
        PoolTimeout, PoolExhausted, PoolClosed, ConnectError, SessionRejected: As ``pool.connection()`` does.

    Inside the block the SDK raises what it always does: ``ConnectionClosedOK`` or
    ``ConnectionClosedError`` of `websockets` when the connection ends, with the
    pool's :class:`ConnectionLost` as ``__cause__``. After the return it raises
    :class:`ConnectionReturned`, which is a ``ConnectionClosedOK`` here.
    """
    with pool.connection(timeout, session=session) as connection:
        wire: Any = _Wire(pool, connection)
        yield RealtimeConnection(wire)


class _Returned(ConnectionReturned, ConnectionClosedOK):
    """Given back: for the pool's users, and for the SDK an end like any that it asked for."""

    def __init__(self, text: str) -> None:
        frame = Close(1000, "returned to the pool")
        ConnectionClosedOK.__init__(self, frame, frame, rcvd_then_sent=False)
        self.args = (text,)

    def __str__(self) -> str:
        return str(self.args[0])


class _Wire:
    """What the SDK takes for a ``ClientConnection`` of `websockets`."""

    def __init__(self, pool: RealtimePool, connection: PooledConnection) -> None:
        self._pool = pool
        self._connection = connection

    def __repr__(self) -> str:
        return f"<{self._connection!r} for openai>"

    def recv(self, timeout: float | None = None, decode: bool | None = None) -> str | bytes:
        """Return the next message: of text, ``bytes`` if ``decode`` is False."""
        try:
            message: str | bytes = self._connection.recv_text(timeout)
        except ConnectionReturned as returned:
            end: ConnectionClosed = _Returned(str(returned))
        except ConnectionLost as lost:
            end = _closed(lost)
        else:
            return message.encode() if decode is False and isinstance(message, str) else message
        raise end

    def send(self, message: str | bytes) -> None:
        try:
            self._connection.send(message)
            return
        except ConnectionReturned as returned:
            end: ConnectionClosed = _Returned(str(returned))
        except ConnectionLost as lost:
            end = _closed(lost)
        raise end

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Give the connection back. Code and reason reach nobody: the socket stays open."""
        self._pool.release(self._connection)


def _closed(lost: ConnectionLost) -> ConnectionClosed:
    """The exception of `websockets` for the end of a connection."""
    received = sent = None
    frame = Close(lost.code, lost.reason)
    if isinstance(lost, MessageTooBig):
        sent = frame  # the only close that is ours
    elif lost.code != 1006:
        received = frame
    if received is not None and lost.code in _FINE:
        end: ConnectionClosed = ConnectionClosedOK(received, received, True)
    else:
        end = ConnectionClosedError(received, sent)
    end.__cause__ = lost
    return end
