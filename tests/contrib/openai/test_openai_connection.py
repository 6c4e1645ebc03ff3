"""The official SDK over the pool: its own class, its own types, its own ends; the pool's promises."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest
from openai import OpenAI
from openai.resources.realtime.realtime import RealtimeConnection
from openai.types import realtime as types
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK

from rtpool_sync import (
    ConnectionLost,
    ConnectionReturned,
    MessageTooBig,
    PoolTimeout,
    RealtimePool,
    RecvTimeout,
    SessionExpired,
    SessionRejected,
)
from rtpool_sync.contrib.openai import openai_connection
from rtpool_sync.emulator import Faults, RealtimeServer

# How the SDK dials is its own business; the newest `websockets` has an opinion on it.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")

MODEL = "gpt-realtime-2.1"
TEXT: Any = {"type": "realtime", "output_modalities": ["text"], "audio": {"input": {"turn_detection": None}}}


@pytest.fixture
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer(record=100, response_delay=0.0, rate_limits_delay=0.01) as server:
        yield server


@pytest.fixture
def pool(server: RealtimeServer) -> Iterator[RealtimePool]:
    with RealtimePool(base_url=server.base_url, api_key="any", model=MODEL, max_connections=1) as pool:
        yield pool


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < end, "not within 10 s"
        time.sleep(0.002)


def ask(rt: RealtimeConnection, text: str) -> str:
    """One turn, as the SDK's own examples write it."""
    rt.conversation.item.create(
        item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    )
    rt.response.create()
    answer = ""
    for event in rt:
        if event.type == "response.output_text.delta":
            answer += event.delta
        elif event.type == "response.done":
            assert isinstance(event, types.ResponseDoneEvent)
            assert event.response.status == "completed"
            return answer
    raise AssertionError("the connection ended")


# -- what it is


def test_it_is_the_sdks_own_class_with_its_own_types(pool: RealtimePool) -> None:
    with openai_connection(pool) as rt:
        assert type(rt) is RealtimeConnection
        rt.session.update(session=TEXT)
        event = rt.recv()
        assert isinstance(event, types.SessionUpdatedEvent)
        assert isinstance(event.session, types.RealtimeSessionCreateRequest)
        assert event.session.output_modalities == ["text"]
        assert ask(rt, "ping") == "You said: ping"


def test_recv_bytes_and_parse_event(pool: RealtimePool) -> None:
    with openai_connection(pool) as rt:
        rt.input_audio_buffer.clear()
        data = rt.recv_bytes()
        assert type(data) is bytes
        assert isinstance(rt.parse_event(data), types.InputAudioBufferClearedEvent)
        assert isinstance(rt.parse_event(data.decode()), types.InputAudioBufferClearedEvent)


def test_send_takes_dictionaries_and_models(pool: RealtimePool) -> None:
    with openai_connection(pool) as rt:
        rt.send({"type": "input_audio_buffer.clear"})
        assert rt.recv().type == "input_audio_buffer.cleared"
        rt.send(types.InputAudioBufferClearEvent(type="input_audio_buffer.clear"))
        assert rt.recv().type == "input_audio_buffer.cleared"
        if hasattr(rt, "send_raw"):  # not in the oldest
            rt.send_raw(b'{"type": "input_audio_buffer.clear"}')
            assert rt.recv().type == "input_audio_buffer.cleared"


def test_every_resource_reaches_the_server(server: RealtimeServer, pool: RealtimePool) -> None:
    audio = base64.b64encode(bytes(4800)).decode()
    calls: list[tuple[Callable[[RealtimeConnection], None], dict[str, Any]]] = [
        (lambda rt: rt.session.update(session=TEXT), {"type": "session.update", "session": TEXT}),
        (
            lambda rt: rt.response.create(response={"conversation": "none", "input": []}),
            {"type": "response.create", "response": {"conversation": "none", "input": []}},
        ),
        (
            lambda rt: rt.response.cancel(response_id="resp_1"),
            {"type": "response.cancel", "response_id": "resp_1"},
        ),
        (
            lambda rt: rt.input_audio_buffer.append(audio=audio),
            {"type": "input_audio_buffer.append", "audio": audio},
        ),
        (lambda rt: rt.input_audio_buffer.commit(), {"type": "input_audio_buffer.commit"}),
        (
            lambda rt: rt.input_audio_buffer.clear(event_id="mine"),
            {"type": "input_audio_buffer.clear", "event_id": "mine"},
        ),
        (
            lambda rt: rt.conversation.item.create(
                item={
                    "id": "item_1",
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "x"}],
                },
                previous_item_id="root",
            ),
            {
                "type": "conversation.item.create",
                "previous_item_id": "root",
                "item": {
                    "id": "item_1",
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "x"}],
                },
            },
        ),
        (
            lambda rt: rt.conversation.item.retrieve(item_id="item_1"),
            {"type": "conversation.item.retrieve", "item_id": "item_1"},
        ),
        (
            lambda rt: rt.conversation.item.truncate(item_id="item_1", content_index=0, audio_end_ms=0),
            {
                "type": "conversation.item.truncate",
                "item_id": "item_1",
                "content_index": 0,
                "audio_end_ms": 0,
            },
        ),
        (
            lambda rt: rt.conversation.item.delete(item_id="item_1"),
            {"type": "conversation.item.delete", "item_id": "item_1"},
        ),
        (lambda rt: rt.output_audio_buffer.clear(), {"type": "output_audio_buffer.clear"}),
    ]
    with openai_connection(pool) as rt:
        for call, _ in calls:
            call(rt)
        eventually(lambda: len(server.connections[0].received) >= len(calls))
        received = [json.loads(text) for text in server.connections[0].received]
    assert received == [event for _, event in calls]
    with openai_connection(pool, session=TEXT) as rt:
        assert ask(rt, "recite").splitlines()[1:] == ["user: recite"]


def test_session_settings_are_in_force_when_the_block_begins(pool: RealtimePool) -> None:
    with openai_connection(pool, session={**TEXT, "instructions": "Be brief."}) as rt:
        assert "instructions: Be brief." in ask(rt, "recite")
    with pytest.raises(SessionRejected), openai_connection(pool, session={"output_modalities": ["smell"]}):
        pass


def test_handlers(pool: RealtimePool) -> None:
    if not hasattr(RealtimeConnection, "dispatch_events"):
        return  # the oldest has no handlers
    seen = []
    with openai_connection(pool, session=TEXT) as rt:

        @rt.on("response.done")
        def done(event: Any) -> None:
            seen.append(event.response.status)
            rt.close()

        rt.response.create()
        rt.dispatch_events()
    assert seen == ["completed"]


# -- how it ends: as with the SDK's own connection


#: The SDK of 2.0 cannot receive by itself over the oldest `websockets` it asks for.
BOTH = ["pool"] if version("websockets").startswith("13.") else ["sdk", "pool"]


@pytest.fixture(params=BOTH)
def connect(request: pytest.FixtureRequest, server: RealtimeServer) -> Iterator[RealtimeConnection]:
    """The same server, reached by the SDK itself and over the pool."""
    if request.param == "sdk":
        client = OpenAI(
            api_key="any", base_url=server.base_url, websocket_base_url=server.base_url.replace("http", "ws")
        )
        with client, client.realtime.connect(model=MODEL) as rt:
            assert rt.recv().type == "session.created"
            yield rt
    else:
        with RealtimePool(
            base_url=server.base_url, api_key="any", ping_timeout=2.0, close_timeout=1.0
        ) as pool:
            with openai_connection(pool) as rt:
                yield rt


@pytest.mark.parametrize("code", [1000, 1001])
def test_iteration_ends_with_a_good_close(
    server: RealtimeServer, connect: RealtimeConnection, code: int
) -> None:
    server.close_all(code, "enough")
    assert list(connect) == []
    with pytest.raises(ConnectionClosedOK) as caught:
        connect.recv()
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (code, "enough")
    with pytest.raises(ConnectionClosed):
        for _ in range(1000):
            connect.input_audio_buffer.clear()


@pytest.mark.parametrize("code", [1008, 1011, 1012, 3000, 4000])
def test_iteration_raises_on_a_bad_close(
    server: RealtimeServer, connect: RealtimeConnection, code: int
) -> None:
    server.close_all(code, "oh no")
    with pytest.raises(ConnectionClosedError) as caught:
        list(connect)
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (code, "oh no")


@pytest.mark.parametrize("how", ["reset", "truncate"])
def test_iteration_raises_on_a_connection_that_breaks(
    server: RealtimeServer, connect: RealtimeConnection, how: str
) -> None:
    server.inject(how)
    with pytest.raises(ConnectionClosedError) as caught:
        list(connect)
    assert caught.value.rcvd is None


def test_iteration_ends_after_close(connect: RealtimeConnection) -> None:
    connect.close()
    connect.close(code=1011, reason="twice")
    assert list(connect) == []
    with pytest.raises(ConnectionClosedOK):
        connect.recv()
    with pytest.raises(ConnectionClosed):
        connect.response.create()


def test_close_in_another_thread_ends_the_iteration(connect: RealtimeConnection) -> None:
    threading.Timer(0.1, connect.close).start()
    since = time.monotonic()
    assert list(connect) == []
    assert time.monotonic() - since < 5.0


# -- what the pool adds


def test_the_pools_own_error_is_the_cause(server: RealtimeServer, pool: RealtimePool) -> None:
    with openai_connection(pool) as rt:
        server.close_all(1011, "oh no")
        with pytest.raises(ConnectionClosedError, match=r"1011 .* oh no") as caught:
            rt.recv()
        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert caught.value.__cause__.code == 1011
        with pytest.raises(ConnectionClosedError) as caught:
            for _ in range(1000):
                rt.input_audio_buffer.clear()
        assert isinstance(caught.value.__cause__, ConnectionLost)


def test_the_end_of_the_hour_can_be_told_from_a_shutdown(server: RealtimeServer, pool: RealtimePool) -> None:
    with openai_connection(pool) as rt:
        server.expire()
        codes = [event.error.code for event in rt if event.type == "error"]  # ends, as with the SDK
        assert codes == ["session_expired"]
        with pytest.raises(ConnectionClosedOK) as caught:
            rt.recv()
        assert isinstance(caught.value.__cause__, SessionExpired)


def test_a_message_that_is_too_big(server: RealtimeServer) -> None:
    with RealtimePool(base_url=server.base_url, api_key="any", max_message_size=100_000) as pool:
        with openai_connection(pool) as rt:
            server.inject("oversize", size=200_000)
            with pytest.raises(ConnectionClosedError) as caught:
                rt.recv()
            assert isinstance(caught.value.__cause__, MessageTooBig)
            assert caught.value.sent is not None
            assert (caught.value.rcvd, caught.value.sent.code) == (None, 1009)


def test_close_returns_the_connection(server: RealtimeServer, pool: RealtimePool) -> None:
    with openai_connection(pool) as first:
        first.close()
        eventually(lambda: pool.stats().idle == 1)
        with openai_connection(pool, timeout=5.0) as second:  # inside the block of the first
            for use in (first.recv, first.recv_bytes, first.response.create):
                with pytest.raises(ConnectionReturned, match="returned to pool 'default'"):
                    use()
            assert list(first) == []
            second.input_audio_buffer.clear()
            assert second.recv().type == "input_audio_buffer.cleared"
            first.close()
            assert pool.stats().active_sessions == 1  # the return of the first is not that of the second
    eventually(lambda: pool.stats().idle == 1)
    assert server.opened_total == 1


def test_nothing_of_one_session_reaches_the_next(server: RealtimeServer, pool: RealtimePool) -> None:
    """Left in the middle of everything: audio, items, a response asked for, settings changed."""
    for turn in range(4):
        with openai_connection(pool) as rt:
            rt.session.update(session={**TEXT, "instructions": f"secret of {turn}"})
            rt.input_audio_buffer.append(audio=base64.b64encode(bytes(48000)).decode())
            assert ask(rt, f"I am {turn}, recite").splitlines() == [
                f"instructions: secret of {turn}",
                f"user: I am {turn}, recite",
            ]
            rt.response.create()
    assert server.opened_total == 1
    assert pool.stats().counters.resets["ok"] >= 3


def test_an_exception_passes_and_the_connection_comes_back(pool: RealtimePool) -> None:
    with pytest.raises(KeyboardInterrupt), openai_connection(pool) as rt:
        rt.response.create()
        raise KeyboardInterrupt
    eventually(lambda: pool.stats().idle == 1)


def test_errors_of_the_checkout_are_the_pools(pool: RealtimePool) -> None:
    with openai_connection(pool):
        with pytest.raises(PoolTimeout, match="in use"), openai_connection(pool, 0.05):
            pass


def test_recv_of_the_wire_knows_a_deadline(pool: RealtimePool) -> None:
    """`websockets` has one, and code that reaches for it below the SDK gets it."""
    with openai_connection(pool) as rt:
        with pytest.raises(RecvTimeout):
            rt._connection.recv(timeout=0.01)
        rt.input_audio_buffer.clear()
        assert '"input_audio_buffer.cleared"' in str(rt._connection.recv(timeout=5.0))
        assert repr(rt._connection).endswith("for openai>")


def test_many_threads(server: RealtimeServer) -> None:
    failures: list[object] = []

    def work(who: int) -> None:
        try:
            for turn in range(10):
                token = f"thread {who} turn {turn}"
                with openai_connection(pool, session=TEXT) as rt:
                    if ask(rt, token) != f"You said: {token}":
                        failures.append(token)
        except BaseException as error:
            failures.append(error)

    with RealtimePool(base_url=server.base_url, api_key="any", max_connections=4) as pool:
        threads = [threading.Thread(target=work, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert server.max_open <= 4


def test_a_silent_server_is_found_out(server: RealtimeServer) -> None:
    """The SDK's recv has no deadline: the pool's keepalive is what ends it."""
    with RealtimePool(base_url=server.base_url, api_key="any", ping_interval=0.2, ping_timeout=0.5) as pool:
        with openai_connection(pool) as rt:
            server.faults = Faults(stall_after=0)
            server.inject("stall")
            with pytest.raises(ConnectionClosedError):
                rt.recv()


@pytest.mark.parametrize("missing", ["openai", "websockets"])
def test_without_the_library_the_error_says_what_to_install(missing: str) -> None:
    program = (
        f"import sys\nsys.modules[{missing!r}] = None\n"
        "try: import rtpool_sync.contrib.openai\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'rtpool-sync[openai]'" in done.stdout
    assert f"({missing} is missing)" in done.stdout
