"""The seam between the core of a bridge and a telephony vendor's protocol.

A :class:`Dialect` does no input or output and starts no thread. One object
serves one call. The core's part is always the same::

    for action in dialect.decode(message, now): ...      # the listening thread
    for message in dialect.encode(action): send it       # the speaking thread

``decode`` and ``encode`` are called by different threads at the same time:
what one writes and the other reads has to be a single assignment.

What was sent and is not yet played is handled in one of two ways, and the
dialect says which (:attr:`Dialect.flushes`):

``True``
    The vendor buffers everything and plays it in order, throws the rest away
    when told (:class:`~.actions.Clear`), and says how far it got
    (:class:`~.actions.Mark`, :class:`~.actions.MarkReached`). Audio is sent at
    once.

``False``
    What was sent cannot be taken back. The core sends pieces of at most
    :attr:`Dialect.piece_ms`, no more than :attr:`Dialect.lead` seconds ahead of
    real time, and drops what it has not sent when the caller interrupts. It
    sends no :class:`~.actions.Mark`; :class:`~.actions.Clear` is still passed
    to ``encode``, first of all, when something is being played.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from .actions import AudioFormat, Inbound, Outbound

__all__ = ["Dialect"]


class Dialect(abc.ABC):
    """One vendor's protocol, for one call."""

    #: Short name, for logs, thread names and ``repr``.
    name: ClassVar[str]
    #: Whether what was sent and not played can be thrown away, see above.
    flushes: ClassVar[bool]
    #: Seconds that audio may be sent ahead of real time, where it cannot be flushed.
    lead: float = 0.3
    #: Milliseconds of audio in one message at most, where it cannot be flushed.
    piece_ms: int = 100
    #: Longest message taken from the telephony side, in characters. Longer ones are violations.
    max_message: int = 65536
    #: Seconds to wait for :class:`~.actions.CallEnded` after :class:`~.actions.Hangup` was
    #: sent, before the socket is closed. 0: closing the socket is how to hang up.
    hangup_grace: float = 0.0
    #: Waiting for the telephony side counts from this ``time.monotonic()`` at the earliest: set to
    #: infinity while it is known to be away, and to the time when it came back.
    counts_from: float = 0.0

    #: Formats of the Realtime session. Fixed once :class:`~.actions.CallStarted` was returned.
    input_format: AudioFormat
    output_format: AudioFormat

    @property
    def continuous(self) -> bool:
        """Whether the telephony side sends all the time now, so that silence means it is dead."""
        return True

    @abc.abstractmethod
    def decode(self, message: str | bytes, now: float) -> Iterable[Inbound]:
        """Return what a message of the telephony side means.

        What is not in the protocol is a :class:`~.actions.Violation`, never an
        exception. Unknown messages that the protocol allows for mean nothing.

        Args:
            message: As it came: text, or the bytes of a binary frame.
            now: ``time.monotonic()``.
        """

    @abc.abstractmethod
    def encode(self, action: Outbound) -> Iterable[str]:
        """Return the messages for an action; none for one that this vendor has no word for."""

    def session(self, **settings: Any) -> dict[str, Any]:
        """Session settings with the audio formats of this call put in.

        Args:
            settings: Any of the Realtime session's settings. ``audio`` is kept but for
                its two formats.

        Returns:
            What ``pool.connection(session=...)`` takes.
        """
        audio: Mapping[str, Any] = settings.pop("audio", None) or {}
        heard = {**(audio.get("input") or {}), "format": self.input_format.setting}
        spoken = {**(audio.get("output") or {}), "format": self.output_format.setting}
        return {"output_modalities": ["audio"], **settings, "audio": {"input": heard, "output": spoken}}
