"""The core: one call, whoever the telephony vendor is.

Three threads have one thing to wait for each::

    listener    the thread that called run()    telephony receive → decode → Realtime send
    model       ...-model                       Realtime receive → what it means → outbox
    speaker     ...-speaker                     outbox → encode → telephony send

so that none of the three can keep another one waiting: a telephone line that
takes nothing blocks the speaker, and the model's events are still understood
(an interruption drops what was not sent); a Realtime server that takes nothing
blocks the listener, and both others notice. Callbacks run in further threads,
see :mod:`.callbacks`.

Waking a thread costs more than all that is done with a frame of audio, so it is
not done for each: what the line takes at once is sent by the model's thread
itself (:mod:`.outbox`), and where the telephony side's library has a thread that
receives, that one does what the listener would (``hand_to`` of :mod:`.telephony`);
the listener then only looks at the deadlines.

The first one to come to an end says why (:meth:`Bridge._end`), and the others
leave within :data:`LEAVING`. A send that takes longer than its deadline, a
side that is silent, a peer that does not even answer pings: each is an end too,
and the leg that hangs is aborted, which is what wakes a thread out of it.

No lock is held over a send or a receive, except the one over sends that
simple-websocket lacks, see :mod:`.telephony`; aborting frees it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConnectionReturned, redact
from .actions import (
    Activity,
    Audio,
    CallDetails,
    CallEnded,
    CallStarted,
    Custom,
    Dtmf,
    Hangup,
    Inbound,
    Mark,
    MarkReached,
    Outbound,
    PlaybackFinished,
    Reply,
    Speech,
    Violation,
)
from .callbacks import Callbacks
from .dialect import Dialect
from .functions import Functions
from .incoming import Incoming, answer
from .line import Line
from .model import Model
from .outbox import Outbox
from .playback import MarkedPlayback, PacedPlayback, Playback
from .recording import Recorder
from .result import ENDINGS, CallResult
from .telephony import Telephony, TelephonyClosed, adapt

if TYPE_CHECKING:
    from ..connection import RealtimeConnection

__all__ = ["Bridge"]

logger = logging.getLogger("rtpool_sync.bridges")
monotonic = time.monotonic

#: Seconds that a receive waits at most, so that every thread looks up.
POLL = 0.25
#: Seconds that the others have to leave by themselves after the end, before their leg is aborted.
LEAVING = 0.5
#: Errors kept in the result.
ERRORS = 100
#: Violations of the telephony protocol before the call is ended.
VIOLATIONS = 100


class Bridge:
    """Connects a telephone call with a Realtime session. Vendors' bridges derive from it.

    Args:
        ws: The telephony WebSocket, see :func:`~.telephony.adapt`, or what :meth:`answer` returned.
        conn: A connection checked out of a pool for this call, with the session's settings:
            ``pool.connection(session=...)``. It stays the caller's: return it after :meth:`run`.
        dialect: The vendor's protocol; made by the class if not given.
        greeting: Have the model speak first: instructions for that response, or the whole
            ``response`` object. ``None``: it waits for the caller.
        on_start: ``on_start(call)`` when the call began (:attr:`result` says who calls).
        on_function: ``on_function(call, name, arguments)`` when the model calls a function. What it
            returns is sent back (text, or anything JSON can say, or :class:`Output`), and the
            model goes on. An exception is answered with an error. Without it, function calls
            are only seen by ``on_event``.
        on_dtmf: ``on_dtmf(call, digits)`` when keys were pressed.
        on_transcript: ``on_transcript(call, who, text)`` with ``"caller"`` or ``"assistant"``.
        on_activity: ``on_activity(call, name, details)`` with what the telephony side says beyond all
            this, in the vendor's own words.
        on_event: ``on_event(call, event)`` with every event of the session.
        barge_in: Whether the caller can interrupt the model.
        record: Path of a WAV file to write: the caller on the left, the model, as heard, on the right.
        max_duration: Seconds after which the call is ended; ``None``: no limit.
        start_timeout: Seconds within which the call has to begin.
        telephony_timeout: Seconds without anything from a telephony side that should be sending.
        realtime_timeout: Seconds that the Realtime server may leave pings unanswered.
        send_timeout: Seconds that one send may take, on either side. A telephone line that
            takes nothing for so long ends the call; the model's events are never held up by it.
        max_lag: Seconds by which the caller's audio may be late; what is later is dropped.
        goodbye_timeout: Seconds that :meth:`hangup` waits for the goodbye to be played.
        callback_timeout: Seconds that callbacks have to end after the call.

    Callbacks run one after another in a thread of their own, functions in one
    thread each. Their exceptions are logged and counted, and the call goes on;
    only what is not an ``Exception`` (``SystemExit``) ends it.
    """

    #: Makes the dialect of a call.
    dialect_class: ClassVar[Callable[[], Dialect]]

    def __init__(
        self,
        ws: Any,
        conn: RealtimeConnection,
        *,
        dialect: Dialect | None = None,
        greeting: str | Mapping[str, Any] | None = None,
        on_start: Callable[[Any], object] | None = None,
        on_function: Callable[[Any, str, dict[str, Any]], Any] | None = None,
        on_dtmf: Callable[[Any, str], object] | None = None,
        on_transcript: Callable[[Any, str, str], object] | None = None,
        on_activity: Callable[[Any, str, Mapping[str, Any]], object] | None = None,
        on_event: Callable[[Any, Mapping[str, Any]], object] | None = None,
        barge_in: bool = True,
        record: str | os.PathLike[str] | None = None,
        max_duration: float | None = None,
        start_timeout: float = 10.0,
        telephony_timeout: float = 10.0,
        realtime_timeout: float = 10.0,
        send_timeout: float = 5.0,
        max_lag: float = 5.0,
        goodbye_timeout: float = 20.0,
        callback_timeout: float = 5.0,
    ) -> None:
        incoming = ws if isinstance(ws, Incoming) else None
        self.dialect: Dialect = incoming.dialect if incoming else dialect or type(self).dialect_class()
        #: What is known of the call so far; returned by :meth:`run`.
        self.result = CallResult()
        self._telephony: Telephony = incoming.telephony if incoming else adapt(ws)
        self._greeting = greeting
        self._callbacks_of: dict[str, Callable[..., object] | None] = {
            "on_start": on_start,
            "on_dtmf": on_dtmf,
            "on_transcript": on_transcript,
            "on_activity": on_activity,
            "on_event": on_event,
        }
        self._max_duration = max_duration
        self._start_timeout = start_timeout
        self._telephony_timeout = telephony_timeout
        self._send_timeout = send_timeout
        self._max_lag = max_lag
        self._goodbye_timeout = goodbye_timeout
        self._callback_timeout = callback_timeout

        self._ran = False
        self._runner = 0  # the thread that called run()
        self._began = 0.0
        self._start = incoming.started if incoming else None
        self._started = False
        self._ending = threading.Lock()  # taken once, by whoever ends the call
        self._ended = threading.Event()
        self._listener_left = threading.Event()
        self._heard_at = 0.0  # when the telephony side last sent anything
        self._offset: float | None = None  # wall clock minus the caller's audio clock, at its least
        self._checked_at = 0.0
        self._checking = threading.Lock()  # taken by whoever looks; nobody waits for it
        self._speaking_since = 0.0  # when the speaker's current send began; 0: none
        self._goodbye: tuple[float, Outbound, str] | None = None
        self._hangup_sent: float | None = None
        self._line = Line(conn, self._ended, self._end, realtime_timeout)

        name = self.dialect.name
        self._callbacks = Callbacks(name, self._callback_failed, self._callback_dropped)
        self._recorder = Recorder(record, self._failed) if record is not None else None
        self._functions: Functions | None = None
        if on_function is not None:
            self._functions = Functions(
                lambda called, arguments: on_function(self, called, arguments),
                self._callbacks.task,
                self._line.send,
                self.respond,
            )
        playback: Playback = MarkedPlayback() if self.dialect.flushes else PacedPlayback(self.dialect.lead)
        self._send_now: Callable[[str], bool] | None = getattr(self._telephony, "send_now", None)
        self._outbox = Outbox(playback, self.dialect, say_now=self._say_now if self._send_now else None)
        self._model = Model(
            outbox=self._outbox,
            send=self._line.send,
            notify=self._notify,
            failed=self._failed,
            end=self._end,
            result=self.result,
            functions=self._functions,
            dialect=self.dialect,
            barge_in=barge_in,
            cut=self._cut_recording,
        )

    def __repr__(self) -> str:
        state = self.result.ended_by or ("talking" if self._started else "waiting")
        return f"<{type(self).__name__} {self.result.call_id or 'without a call'}, {state}>"

    # -- for the application

    @classmethod
    def answer(cls, ws: Any, *, timeout: float = 10.0, dialect: Dialect | None = None) -> Incoming:
        """Wait for the call to begin, before a Realtime connection is checked out for it.

        So that the application can look at the caller and at the custom parameters (a token,
        a tenant) first, and choose the session's settings by them::

            call = TwilioBridge.answer(ws)
            with pool.connection(session=call.session(instructions=...)) as conn:
                result = TwilioBridge(call, conn).run()

        Args:
            ws: The telephony WebSocket.
            timeout: Seconds to wait.

        Raises:
            TelephonyClosed: The telephony side is gone; its WebSocket was closed.
            TimeoutError: No call began in time; the WebSocket was closed.
        """
        return answer(ws, dialect or cls.dialect_class(), timeout)

    def send(self, event: Mapping[str, Any]) -> None:
        """Send an event to the model. Any thread, also a callback's; it never waits for another sender.

        Raises:
            TypeError, ValueError: It cannot be encoded.
            ConnectionReturned: The call is over.
        """
        if self._ended.is_set():
            raise ConnectionReturned("the call is over")
        self._line.send(json.dumps(event))

    def respond(self, response: Mapping[str, Any] | None = None) -> None:
        """Have the model speak now: ``response.create``, with that ``response`` object if given."""
        self._model.respond(response)

    def tell(self, name: str, **parameters: Any) -> None:
        """Tell the telephony side something of its own: see the dialect for the names it knows.

        Raises:
            TypeError, ValueError: It cannot be encoded.
        """
        json.dumps(parameters)  # here: the one that encodes it is another thread, which the call needs
        self._outbox.put(Custom(name, parameters))

    def hangup(self, reason: str = "") -> None:
        """End the call when the model has said what it has to say, and the caller has heard it.

        Returns at once. Called in a function (``on_function``), the answer of the model to that
        function's output is waited for as well.
        """
        self._part(Hangup(reason), reason)

    def _part(self, action: Outbound, reason: str) -> None:
        """Have something sent that ends the call, after the goodbye."""
        self._goodbye = self._goodbye or (monotonic() + self._goodbye_timeout, action, reason)

    def stop(self, reason: str = "") -> None:
        """End the call now. Any thread; returns at once."""
        self._end("stopped", reason)

    @property
    def ended(self) -> bool:
        """Whether the call is over, or about to be."""
        return self._ended.is_set()

    # -- the life of a call

    def run(self) -> CallResult:
        """Carry the call to its end; return what happened.

        The thread that calls this listens to the telephony side. When it returns, no thread of
        the bridge runs any more, the telephony WebSocket is closed, and the connection is the
        caller's again. Whatever ends the call does not raise; only what interrupts this thread
        (``KeyboardInterrupt``, a greenlet's timeout) goes on, after the same cleaning up, and
        :attr:`result` is complete then too.

        Raises:
            RuntimeError: It was called before.
        """
        if self._ran:
            raise RuntimeError("a bridge carries one call")
        self._ran = True
        self._runner = threading.get_ident()
        self._began = self._heard_at = monotonic()
        threads = [
            threading.Thread(
                target=self._guarded, args=(work,), name=f"{self.dialect.name}-{name}", daemon=True
            )
            for name, work in (("model", self._follow_model), ("speaker", self._speak))
        ]
        try:
            for thread in threads:
                thread.start()
            if self._start is not None:
                self._hear(self._start, self._began)
            self._listen()
        except Exception as error:
            self._end("failed", f"{type(error).__name__}: {error}", error)
            logger.exception("a bridge failed")
        except BaseException as error:
            self._end("interrupted", type(error).__name__, error)
            raise
        finally:
            self._wind_up(*threads)
        return self.result

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._end("failed", f"{type(error).__name__}: {error}", error)
            logger.exception("a bridge failed")

    def _end(self, why: str, detail: str = "", error: BaseException | None = None) -> None:
        """End the call. The first one to say so is the reason."""
        if not self._ending.acquire(False):
            return
        result = self.result
        try:
            result.error = error
            result.ended_by = why
            result.detail = ENDINGS[why]
            result.detail = redact(detail) or result.detail
        finally:  # also when interrupted: the others wait for it
            self._ended.set()
            self._outbox.close()

    def _wind_up(self, model: threading.Thread, speaker: threading.Thread) -> None:
        """Have everybody leave, and close. Each step is taken, whatever happens in another."""
        with contextlib.ExitStack() as steps:  # the last one first
            steps.callback(self._finish)
            if self._recorder is not None:
                steps.callback(self._recorder.close, self._callback_timeout)
            steps.callback(self._close_callbacks)
            steps.callback(self._telephony.close, 1000, "")
            steps.callback(self._leave, model, speaker)
            self._end("failed", "run() ended without a reason")
            if not self.result.ended_by:
                self.result.ended_by, self.result.detail = "interrupted", ENDINGS["interrupted"]
            # Once more: what ended the call may itself have been interrupted.
            self._ended.set()
            self._outbox.close()
            self._listener_left.set()

    def _leave(self, model: threading.Thread, speaker: threading.Thread) -> None:
        """Wait for both threads; abort the leg of one that hangs."""
        end = monotonic() + LEAVING
        self._join(speaker, end - monotonic())
        if speaker.is_alive():
            self._telephony.abort()
        self._join(model, end - monotonic())
        if model.is_alive():
            self._line.abort("the call is over")
        # Another one may still be sending: a function, or the thread of a library that brought a message.
        while self._line.sending_since and monotonic() < end:
            time.sleep(0.005)
        if self._line.sending_since:
            self._line.abort("the call is over")
        for thread in (model, speaker):
            self._join(thread, 1.0)
            if thread.is_alive():
                self._failed(f"thread {thread.name} did not end")

    @staticmethod
    def _join(thread: threading.Thread, timeout: float) -> None:
        if thread.ident is not None:  # it may never have been started
            thread.join(max(0.0, timeout))

    def _close_callbacks(self) -> None:
        for what in self._callbacks.close(self._callback_timeout):
            self._failed(f"{what} is still running {self._callback_timeout:g} s after the call")

    def _finish(self) -> None:
        result = self.result
        if result.ended_by != "interrupted":  # that one goes on, with its traceback
            _let_go(result.error)
        result.seconds = monotonic() - self._began
        result.heard_ms = self._outbox.heard_ms
        result.audio_in_ms = self.dialect.input_format.milliseconds(result.audio_in_bytes)
        result.audio_out_ms = self.dialect.output_format.milliseconds(result.audio_out_bytes)

    def _check(self, now: float) -> None:
        """Look at every deadline. Called by two threads, so that each sees the other one hang."""
        if now - self._checked_at < 0.05 or not self._checking.acquire(False):
            return
        try:
            self._checked_at = now
            self._check_all(now)
        finally:
            self._checking.release()

    def _check_all(self, now: float) -> None:
        since = self._speaking_since
        counts_from = self.dialect.counts_from
        if since and now - max(since, counts_from) > self._send_timeout:
            self._end("telephony_stalled", f"a send to the telephony side took {now - since:.1f} s")
            self._telephony.abort()
        since = self._line.sending_since
        if since and now - since > self._send_timeout:
            self._end("realtime_stalled", f"a send to the Realtime server took {now - since:.1f} s")
            self._line.abort("send stalled")
        if not self._started:
            if now - self._began > self._start_timeout:
                self._end("no_start", f"no call began within {self._start_timeout:g} s")
        elif now - max(self._heard_at, counts_from) > self._telephony_timeout:
            if self.dialect.continuous and not self._line.sending_since:
                self._end("telephony_silent", f"nothing came for {now - self._heard_at:.1f} s")
        if self._max_duration is not None and now - self._began > self._max_duration:
            self._end("max_duration", f"the call lasted {self._max_duration:g} s")
        if self._goodbye is not None:
            self._say_goodbye(now, *self._goodbye)

    def _say_goodbye(self, now: float, deadline: float, action: Outbound, reason: str) -> None:
        if self._hangup_sent is not None:
            if now - self._hangup_sent >= self.dialect.hangup_grace:
                self._end("hangup", reason)
        elif now > deadline or (self._model.quiet and self._outbox.quiet):
            self._outbox.put(action)
            self._hangup_sent = now

    # -- the listener: telephony → model

    def _listen(self) -> None:
        telephony, ended = self._telephony, self._ended
        hand_to: Callable[..., bool] | None = getattr(telephony, "hand_to", None)
        if hand_to is not None:
            hand_to(self._hear_handed)
        while not ended.is_set():
            try:
                message = telephony.recv(POLL)
            except TelephonyClosed as error:
                why = "telephony_closed" if error.clean else "telephony_lost"
                self._end(why, str(error), error)
                return
            except Exception as error:  # of an object that we do not know
                self._end("telephony_lost", f"{type(error).__name__}: {error}", error)
                return
            if message is not None:
                self._hear_message(message)
            self._check(monotonic())

    def _hear_handed(self, message: str | bytes) -> None:
        """The same, called by the thread of a library, whose business our mistakes are not."""
        if not self._ended.is_set():
            try:
                self._hear_message(message)
            except BaseException as error:
                if not isinstance(error, Exception) and threading.get_ident() == self._runner:
                    raise  # it was there before, and is handed over by the listener: run() was interrupted
                self._end("failed", f"{type(error).__name__}: {error}", error)
                logger.exception("a bridge failed")

    def _hear_message(self, message: str | bytes) -> None:
        self._heard_at = now = monotonic()
        if len(message) > self.dialect.max_message:
            self._violated(f"a message of {len(message)} characters")
        else:
            for action in self.dialect.decode(message, now):
                self._hear(action, now)

    def _hear(self, action: Inbound, now: float) -> None:
        result = self.result
        match action:
            case Audio():
                self._hear_audio(action, now)
            case MarkReached():
                result.marks_reached += self._outbox.reached(action.name)
            case Reply():
                self._outbox.put(action)
            case Dtmf():
                result.dtmf += action.digits
                self._notify("on_dtmf", action.digits)
            case PlaybackFinished():
                self._outbox.finished()
            case CallStarted():
                self._begin(action)
            case CallDetails():
                result.parameters = {**result.parameters, **action.parameters}
                result.caller, result.callee = action.caller or result.caller, action.callee or result.callee
            case Activity():
                self._notify("on_activity", action.name, action.details)
            case CallEnded():
                # After a goodbye it is our doing, though they say it.
                why = "caller" if self._hangup_sent is None else "hangup"
                self._end("refused" if action.refused else why, action.reason)
            case Violation():
                self._violated(action.what)

    def _begin(self, start: CallStarted) -> None:
        if self._started:
            self._violated("a second start")
            return
        result = self.result
        result.call_id, result.stream_id = start.call_id, start.stream_id
        result.caller, result.callee = start.caller, start.callee
        result.parameters = dict(start.parameters)
        if self._recorder is not None:
            self._recorder.start(self.dialect.input_format, self.dialect.output_format)
        self._started = True
        self._notify("on_start")
        greeting = self._greeting
        if greeting is not None:
            self.respond({"instructions": greeting} if isinstance(greeting, str) else greeting)

    def _hear_audio(self, audio: Audio, now: float) -> None:
        result = self.result
        if not self._started:
            self._violated("audio before the start")
            return
        if audio.at_ms is not None:
            offset = now - audio.at_ms / 1000
            if self._offset is None or offset < self._offset:
                self._offset = offset
            elif offset - self._offset > self._max_lag:
                result.dropped_in += 1
                return
        result.frames_in += 1
        result.audio_in_bytes += audio.size
        if self._recorder is not None:
            said_ms = audio.at_ms if audio.at_ms is not None else self._recording_ms()
            self._recorder.caller(audio.payload, said_ms)
        # What a dialect calls audio is base64: it can be put between quotes as it is.
        self._line.send(f'{{"type":"input_audio_buffer.append","audio":"{audio.payload}"}}')

    def _violated(self, what: str) -> None:
        self.result.violations += 1
        self._failed(f"the telephony side: {what}")
        if self.result.violations > VIOLATIONS:
            self._end("protocol", f"{self.result.violations} violations, the last one: {what}")

    # -- the model: its events, and what it is sent

    def _follow_model(self) -> None:
        receive, understand, ended = self._line.receive, self._model.understand, self._ended
        wanted = self._callbacks_of["on_event"] is not None
        try:
            while not ended.is_set():
                try:
                    event = receive(POLL)
                except ValueError as error:
                    self._failed(f"the Realtime server sent what is not JSON: {error}")
                    continue
                if isinstance(event, dict):
                    understand(event)
                    if wanted:
                        self._notify("on_event", event)
                self._check(monotonic())
        finally:
            # The listener may hang in a receive that keeps no time, or in a send.
            if not self._listener_left.wait(LEAVING):
                self._telephony.abort()
                if self._line.sending_since:
                    self._line.abort("the call is over")

    # -- the speaker: outbox → telephony

    def _speak(self) -> None:
        take, say, sent = self._outbox.take, self._say, self._outbox.sent
        try:
            while (actions := take(POLL)) is not None:
                for action in actions:
                    say(action)
                if actions:
                    sent()
            if self._hangup_sent is None and self.result.ended_by not in _GONE:
                say(Hangup(self.result.detail))
        except Exception as error:
            self._sending_failed(error)

    def _sending_failed(self, error: Exception) -> None:
        if isinstance(error, TelephonyClosed):
            why = "telephony_closed" if error.clean else "telephony_lost"
            self._end(why, f"sending failed: {error}", error)
        else:
            self._end("telephony_lost", f"sending failed: {type(error).__name__}: {error}", error)

    def _say(self, action: Outbound | Reply) -> None:
        messages = (action.message,) if isinstance(action, Reply) else self.dialect.encode(action)
        for message in messages:
            self._speaking_since = monotonic()
            try:
                self._telephony.send(message)
            finally:
                self._speaking_since = 0.0
        self._said(action)

    def _say_now(self, actions: Sequence[Outbound | Reply]) -> Sequence[str]:
        """Send what can be sent without waiting; return the messages that are left to the speaker."""
        send_now = self._send_now
        assert send_now is not None
        messages: list[str] = []
        for action in actions:
            messages += (action.message,) if isinstance(action, Reply) else self.dialect.encode(action)
            self._said(action)
        try:
            for at, message in enumerate(messages):
                self._speaking_since = monotonic()
                if not send_now(message):
                    return messages[at:]
        except Exception as error:
            self._sending_failed(error)
        finally:
            self._speaking_since = 0.0
        return ()

    def _said(self, action: Outbound | Reply) -> None:
        if isinstance(action, Speech):
            self.result.frames_out += 1
            self.result.audio_out_bytes += action.size
            if self._recorder is not None:
                self._recorder.model(action.payload, self._recording_ms())
        elif isinstance(action, Mark):
            self.result.marks_sent += 1

    def _recording_ms(self) -> float:
        """The time of the recording: the caller's own clock, if there is one, as the wall clock shows it."""
        return (monotonic() - (self._offset if self._offset is not None else self._began)) * 1000

    def _cut_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.cut(self._recording_ms())

    # -- telling the application

    def _notify(self, name: str, *args: Any) -> None:
        callback = self._callbacks_of[name]
        if callback is not None:
            self._callbacks.notify(name, callback, self, *args)

    def _callback_failed(self, what: str, error: BaseException) -> None:
        self._failed(f"{what}: {type(error).__name__}: {error}")
        if not isinstance(error, Exception):
            self._end("callback", f"{what} raised {type(error).__name__}", error)

    def _callback_dropped(self) -> None:
        self.result.callbacks_dropped += 1

    def _failed(self, what: str) -> None:
        if len(self.result.errors) < ERRORS:
            self.result.errors.append(redact(what))


def _let_go(error: BaseException | None) -> None:
    """Drop the tracebacks: an application that keeps its results would keep everything its stack held."""
    chain, known = [error], set()
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in known:
            known.add(id(one))
            one.__traceback__ = None
            chain += (one.__cause__, one.__context__)


#: Endings after which there is nobody to say goodbye to.
_GONE = frozenset({"caller", "telephony_closed", "telephony_lost", "telephony_stalled"})
