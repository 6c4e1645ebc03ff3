"""The seam between the pool and a vendor's session protocol.

Two objects: a :class:`Protocol` is what ``RealtimePool(protocol=...)`` takes,
one per pool, without state; its :meth:`Protocol.follow` makes one
:class:`SessionProtocol` for each connection.

A :class:`SessionProtocol` carries out *tasks*: get ready (:meth:`~SessionProtocol.prepare`),
apply the settings of one checkout (:meth:`~SessionProtocol.configure`), make the
connection as good as new (:meth:`~SessionProtocol.reset`). The driver's part is
always the same::

    protocol.reset(now)
    while protocol.pending:
        send everything in protocol.outgoing()
        wait for a message, at most until protocol.wake_at
        protocol.feed(message, now)   or   protocol.tick(now)
    look at protocol.failure

Between tasks, while a borrower has the connection, the driver only reports
what passes: ``sent`` before a message is written, ``received`` after one was
read. They are called from different threads at the same time (one may send
while another receives); tasks are never run at the same time as either.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import RtpoolError

__all__ = ["RESET_OUTCOMES", "Failure", "Protocol", "SessionProtocol"]

#: How a reset can end; the labels of ``rtpool_resets_total``.
RESET_OUTCOMES = (
    "ok",  # proved clean
    "refused",  # the server answered a step with an error
    "silent",  # a step was not acknowledged within reset_timeout
    "mismatch",  # the effective settings differ from the snapshot
    "locked",  # voice locked by audio, and it differs from the snapshot
    "traced",  # tracing was turned on: it cannot be turned off
    "untracked",  # the borrower sent or received what could not be followed
    "lost",  # the connection ended during the reset
)


@dataclass(frozen=True)
class Failure:
    """Why a task did not succeed.

    Attributes:
        outcome: One of :data:`RESET_OUTCOMES` (never ``ok``).
        message: One sentence for logs and errors. No secret.
        error: The exception a caller should see, when the failure is its own
            doing or the server's (bad key, refused settings); else ``None``.
    """

    outcome: str
    message: str
    error: RtpoolError | None = None


class SessionProtocol(abc.ABC):
    """Follows one connection from its opening to its end.

    Every ``now`` is the driver's monotonic clock, in seconds.
    """

    #: The server's name for the session, once known.
    session_id: str | None = None
    #: When the server will end the session, in Unix time, once known.
    expires_at: float | None = None
    #: Why the last task failed; ``None`` while it runs and when it succeeded.
    failure: Failure | None = None
    #: Whether a task is under way.
    pending: bool = False
    #: When :meth:`tick` wants to be called if nothing is received before; ``None``: never.
    wake_at: float | None = None

    # -- tasks

    @abc.abstractmethod
    def prepare(self, now: float) -> None:
        """Begin to make a newly opened connection ready. The driver limits its whole time."""

    @abc.abstractmethod
    def configure(self, session: Mapping[str, Any], now: float) -> None:
        """Begin to apply the settings of one checkout. The driver limits its whole time."""

    @abc.abstractmethod
    def reset(self, now: float) -> None:
        """Begin to undo everything the last session did. Each step must be answered in time."""

    @abc.abstractmethod
    def feed(self, message: str | bytes, now: float) -> None:
        """Take a message received while a task is under way."""

    def tick(self, now: float) -> None:
        """Note that ``now`` has reached :attr:`wake_at`."""

    def outgoing(self) -> list[str]:
        """Take the messages to send now, in order."""
        return []

    # -- while a borrower has the connection

    def sent(self, message: str | bytes | Mapping[str, Any]) -> None:
        """Note a message of the borrower, before it is written."""

    def received(self, event: Mapping[str, Any]) -> bool:
        """Note a decoded message. False: it belongs to an earlier session, do not deliver it."""
        return True

    def received_text(self, message: str | bytes) -> bool:
        """The same for a message that the borrower reads undecoded."""
        return True

    # -- while nobody has it

    def stray(self, message: str | bytes) -> bool:
        """Whether a message received on an idle connection leaves it as clean as it was."""
        return False

    # -- the end

    def closed(self, code: int, reason: str) -> RtpoolError | None:
        """The exception that says best why the server closed the connection, if it is known."""
        return None


class Protocol(abc.ABC):
    """What ``RealtimePool(protocol=...)`` takes: makes a :class:`SessionProtocol` per connection."""

    #: Short name, for logs and ``repr``.
    name: ClassVar[str] = "custom"
    #: Whether ``api_key`` is required and sent as ``Authorization: Bearer``.
    needs_key: ClassVar[bool] = False
    #: Whether the pool may skip everything below: no task, nothing to follow.
    transparent: ClassVar[bool] = False
    #: Whether every message is text: bytes given to send() are then sent as text.
    text_only: ClassVar[bool] = False

    @abc.abstractmethod
    def follow(
        self,
        *,
        session: Mapping[str, Any],
        reset_timeout: float,
        time: Callable[[], float] = time.time,
    ) -> SessionProtocol:
        """Return the protocol object of one new connection.

        Args:
            session: The pool-wide session settings, applied by ``prepare`` and restored by ``reset``.
            reset_timeout: Seconds within which each step of a reset must be acknowledged.
            time: Unix time; only to read ``expires_at``.
        """
