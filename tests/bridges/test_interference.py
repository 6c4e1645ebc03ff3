"""Threads of a call that meet where they had better not, and interruptions at the worst moment."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import voice_ai
from telephony_side import Phone, serving, serving_wsgi

from rtpool_sync import RealtimePool
from rtpool_sync.bridges import AudioCodesBridge, CallResult, TwilioBridge
from rtpool_sync.bridges.audiocodes import AudioCodesDialect, Conversations
from rtpool_sync.bridges.audiocodes_resume import Held
from rtpool_sync.bridges.outbox import Outbox
from rtpool_sync.bridges.telephony import TelephonyClosed, adapt
from rtpool_sync.emulator import RealtimeServer


@pytest.fixture
def pool() -> Iterator[RealtimePool]:
    with RealtimeServer() as realtime:
        with RealtimePool(base_url=realtime.base_url, api_key="k", max_connections=2) as pool:
            yield pool


class Call:
    """One call, carried by a thread of the server; what became of it is kept."""

    def __init__(self, pool: RealtimePool, vendor: Any = TwilioBridge, **options: Any) -> None:
        self.pool, self.vendor, self.options = pool, vendor, options
        self.bridge: Any = None
        self.raised: BaseException | None = None
        self.there = threading.Event()
        self.over = threading.Event()

    def __call__(self, ws: Any) -> None:
        call = self.vendor.answer(ws)
        try:
            with self.pool.connection(10.0, session=call.session()) as conn:
                self.bridge = self.vendor(call, conn, **self.options)
                self.there.set()
                self.bridge.run()
        except BaseException as error:
            self.raised = error
        finally:
            self.over.set()


def no_thread(name: str) -> None:
    end = time.monotonic() + 5.0
    while left := [thread for thread in threading.enumerate() if name in thread.name]:
        assert time.monotonic() < end, left
        time.sleep(0.005)


@pytest.mark.parametrize("moment", ["redact", "set"])
def test_an_interruption_while_the_call_is_being_ended(
    pool: RealtimePool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that ends a call may be interrupted in the middle of that: somebody has to finish it."""
    call = Call(pool)
    once = iter([True])

    def interrupted(*args: Any) -> None:
        if next(once, False):
            raise KeyboardInterrupt

    with serving(call) as url:
        phone = Phone(url)
        try:
            assert call.there.wait(10.0)
            phone.wait(lambda: call.bridge._started, "the start")
            if moment == "redact":
                monkeypatch.setattr("rtpool_sync.bridges.bridge.redact", lambda text: interrupted() or text)
            else:
                event = call.bridge._ended
                normal = event.set
                monkeypatch.setattr(event, "set", lambda: (interrupted(), normal()))
            phone.stop()
            assert call.over.wait(5.0)
            assert isinstance(call.raised, KeyboardInterrupt)
            assert call.bridge.result.ended_by in ("caller", "interrupted")
            assert call.bridge.ended
            no_thread("twilio-")
        finally:
            phone.close()
    end = time.monotonic() + 5.0
    while pool.stats().in_use or pool.stats().resetting:
        assert time.monotonic() < end, pool.stats()
        time.sleep(0.005)


def test_what_cannot_be_encoded_is_its_senders_mistake(pool: RealtimePool) -> None:
    """Whoever sends meanwhile sends for others too, and must not pay for their mistakes."""
    call = Call(pool)
    with serving(call) as url:
        phone = Phone(url)
        try:
            assert call.there.wait(10.0)
            line = call.bridge._line
            assert line._turn.acquire(timeout=5.0)  # somebody is sending
            try:
                with pytest.raises(TypeError):
                    call.bridge.respond({"instructions": object()})
            finally:
                line._turn.release()
            assert call.bridge._model.quiet
            phone.say(b"\xff" * 1600)
            phone.stop()
            assert call.over.wait(5.0)
            assert call.bridge.result.ended_by == "caller"
            assert call.bridge.result.errors == []
        finally:
            phone.close()


def test_what_the_telephony_side_cannot_be_told_is_its_senders_mistake(pool: RealtimePool) -> None:
    """Otherwise the speaker would find out, and take it for the end of the line."""
    call = Call(pool, AudioCodesBridge)
    with serving(call) as url, voice_ai.VoiceAi(url) as caller:
        assert call.there.wait(10.0)
        with pytest.raises(TypeError):
            call.bridge.tell("sendMetaData", value=object())
        with pytest.raises(TypeError):
            call.bridge.transfer("tel:+15550123", headers=[{"name": "X-Id", "value": object()}])
        caller.until(lambda: caller.of("userStream.started"), "the stream")
        caller.end()
        assert call.over.wait(5.0)
        assert call.bridge.result.ended_by == "caller"


def test_the_goodbye_is_said_once(pool: RealtimePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads look at the deadlines."""
    both = threading.Barrier(2)

    def quiet(outbox: Outbox) -> bool:
        try:
            both.wait(0.5)
        except threading.BrokenBarrierError:
            pass
        return True

    monkeypatch.setattr(Outbox, "quiet", property(quiet))
    call = Call(pool, AudioCodesBridge)
    with serving(call) as url, voice_ai.VoiceAi(url) as caller:
        assert call.there.wait(10.0)
        caller.wants_more = False
        call.bridge.dialect.hangup_grace = 0.5
        call.bridge._goodbye = (time.monotonic() + 10.0, *_hangup())
        now = time.monotonic()
        looking = [threading.Thread(target=call.bridge._check, args=(now + ahead,)) for ahead in (0.5, 1.0)]
        for thread in looking:
            thread.start()
        for thread in looking:
            thread.join()
        caller.until(lambda: caller.events("hangup"), "the hangup")
        caller.until_closed()
        assert len(caller.events("hangup")) == 1


def _hangup() -> tuple[Any, str]:
    from rtpool_sync.bridges.actions import Hangup

    return Hangup("bye"), "bye"


def test_a_call_that_nobody_carries_holds_no_thread_that_resumed_it() -> None:
    """An application that drops a call has dropped it for the thread of its next WebSocket too."""
    conversations = Conversations(grace=30.0)
    answered: list[Any] = []
    ends: list[BaseException] = []

    def route(ws: Any) -> None:
        try:
            answered.append(AudioCodesBridge.answer(ws, conversations=conversations))
            kept.wait(10.0)
        except BaseException as error:
            ends.append(error)

    kept = threading.Event()
    with serving_wsgi(route) as url:
        caller = voice_ai.VoiceAi(url, stream=False)
        old, reader = caller.ws, caller._reader
        try:
            assert caller.resume()
            answered.clear()  # no bridge ever ran
            kept.set()
            caller.until_closed(5.0)
            wait_for(lambda: ends)  # it is raised when that is closed
            assert [type(error) for error in ends] == [TelephonyClosed]
        finally:
            caller.close()
            reader.join(5.0)
            old.close()


def test_a_library_thread_that_brings_messages_gets_none_of_our_mistakes(
    pool: RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Call(pool)
    with serving_wsgi(call) as url:
        phone = Phone(url)
        try:
            assert call.there.wait(10.0)
            phone.wait(lambda: call.bridge._started, "the start")

            def wrong(message: object, now: float) -> object:
                raise SystemExit(1)

            monkeypatch.setattr(call.bridge.dialect, "decode", wrong)
            phone.media()
            assert call.over.wait(5.0)
            assert call.raised is None
            assert call.bridge.result.ended_by == "failed"
        finally:
            phone.close()


def test_an_interruption_in_a_message_that_was_there_already_goes_on(
    pool: RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handed over by the thread of run(), and what interrupts that one is no mistake of ours."""
    call = Call(pool, AudioCodesBridge)
    hand_to = Held.hand_to

    def interrupted(held: Any, hear: Any) -> bool:
        def wrong(message: object, now: float) -> object:
            raise KeyboardInterrupt

        held.push("a message")
        call.bridge.dialect.decode = wrong
        return hand_to(held, hear)

    monkeypatch.setattr(Held, "hand_to", interrupted)
    with serving_wsgi(call) as url, voice_ai.VoiceAi(url, stream=False) as caller:
        assert call.over.wait(10.0)
        assert isinstance(call.raised, KeyboardInterrupt)
        assert call.bridge.result.ended_by == "interrupted"
        caller.until_closed()


def test_a_handed_over_message_that_hangs_in_a_stalled_model_ends_with_the_call(
    pool: RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's thread sends to the model; whoever ends the call has to get it out of there."""
    call = Call(pool)
    stuck, seen = threading.Event(), threading.Event()
    with serving_wsgi(call) as url:
        phone = Phone(url)
        try:
            assert call.there.wait(10.0)
            phone.wait(lambda: call.bridge._started, "the start")
            line, conn = call.bridge._line, call.bridge._line._conn
            send = type(conn).send

            def stalled(self: Any, event: Any) -> None:
                if self is conn and threading.current_thread() is not threading.main_thread():
                    stuck.set()
                    while not self._transport.ended:  # as a send that nobody takes: until it is aborted
                        time.sleep(0.005)
                    seen.set()
                send(self, event)

            monkeypatch.setattr(type(conn), "send", stalled)
            phone.media()
            assert stuck.wait(5.0)
            since = time.monotonic()
            call.bridge.stop()
            assert call.over.wait(5.0)
            assert seen.is_set()
            assert time.monotonic() - since < 3.0
            assert not line.sending_since
        finally:
            monkeypatch.undo()
            phone.close()


def test_what_came_before_a_break_is_heard_though_the_sender_notices_it_first() -> None:
    """Or a call that is over would wait for another WebSocket."""
    heard: list[Any] = []
    carried: list[bool] = []
    first, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def hear(message: str | bytes) -> None:
        first.set()
        go_on.wait(10.0)  # as one that waits for its turn on a busy machine
        heard.append(message)

    def route(ws: Any) -> None:
        telephony = adapt(ws)
        held = Held(telephony)
        held.hold(AudioCodesDialect(), 5.0, lambda: None)
        held.hand_to(hear)
        listening = threading.Thread(target=receive, args=(held,))
        listening.start()
        assert first.wait(10.0)
        while held.send_now("audio"):
            time.sleep(0.005)
        carried.append(held.carries(telephony, 0.0))  # whoever brought it leaves it open until then
        go_on.set()
        wait_for(lambda: len(heard) == 2)
        wait_for(lambda: not held.carries(telephony, 0.0))
        carried.append(held.carries(telephony, 0.0))
        held.abort()
        listening.join(5.0)
        held.close()
        over.set()

    def receive(held: Held) -> None:
        with contextlib.suppress(TelephonyClosed):
            while True:
                held.recv(0.1)

    with serving_wsgi(route) as url:
        import websocket

        ws = websocket.create_connection(url, timeout=5.0)
        ws.send("audio")
        assert first.wait(10.0)
        ws.send("session.end")
        ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ws.shutdown()  # with a reset
        assert over.wait(10.0)
    assert heard == ["audio", "session.end"]
    assert carried == [True, False]


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 5.0
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


class Request:
    """Something that an application holds while a call goes on."""


@pytest.mark.parametrize("how", ["cut", "model"])
def test_a_result_that_is_kept_keeps_nothing_of_the_call(how: str) -> None:
    """Its exception would hold the stack on which it was raised: the application's, and the server's."""
    held: list[weakref.ref[Request]] = []
    results: list[CallResult] = []
    over = threading.Event()
    with RealtimeServer() as realtime:
        with RealtimePool(base_url=realtime.base_url, api_key="k", max_connections=1) as pool:

            def route(ws: Any) -> None:
                request = Request()
                held.append(weakref.ref(request))
                call = TwilioBridge.answer(ws)
                with pool.connection(10.0, session=call.session()) as conn:
                    results.append(TwilioBridge(call, conn, on_event=lambda *_: request).run())

            def answering(ws: Any) -> None:
                route(ws)
                over.set()

            with serving_wsgi(answering) as url:
                phone = Phone(url)
                phone.wait(lambda: pool.stats().in_use, "the checkout")
                if how == "cut":
                    phone.cut()
                else:
                    realtime.close_all(1011)
                assert over.wait(5.0)
                phone.close()
    assert results[0].ended_by == {"cut": "telephony_lost", "model": "realtime_lost"}[how]
    assert results[0].error is not None
    end = time.monotonic() + 5.0
    while held[0]() is not None:
        assert time.monotonic() < end
        gc.collect()
        time.sleep(0.01)


def test_adapting_twice_is_harmless() -> None:
    """``answer`` adapts, and so does a bridge that is given the same WebSocket."""
    done = threading.Event()
    heard: list[Any] = []

    def route(ws: Any) -> None:
        first = adapt(ws)
        heard.append(first.recv(5.0))
        second = adapt(ws)
        heard.append(second.recv(5.0))
        done.set()
        second.close()

    with serving_wsgi(route) as url:
        import websocket

        ws = websocket.create_connection(url, timeout=5.0)
        ws.send("1")
        ws.send("2")
        assert done.wait(5.0)
        assert heard == ["1", "2"]
        ws.close(timeout=1)
