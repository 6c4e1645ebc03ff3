"""The embedded server over real sockets: letting in, keeping alive, ending, and what it tells of itself."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from realtime_types import Client, Closed, message

from rtpool_sync.emulator import ConnectionInfo, RealtimeServer
from rtpool_sync.emulator.audio import tone

MODEL = "gpt-realtime-2.1"


def eventually(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """Wait until ``condition`` holds and return its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)
    return value


def client(server: RealtimeServer, query: str = f"?model={MODEL}", **options: Any) -> Client:
    if server.ca_file:
        options["sslopt"] = {"context": ssl.create_default_context(cafile=server.ca_file)}
    return Client(server.url + query, **options)


def connected(server: RealtimeServer, **options: Any) -> Client:
    opened = client(server, **options)
    opened.expect("session.created")
    return opened


@pytest.fixture(scope="module")
def shared() -> Iterator[RealtimeServer]:
    """A server for tests that leave no trace in it."""
    with RealtimeServer(response_delay=0.0, models=[MODEL], api_keys=["a-key", "b-key"]) as server:
        yield server


# -- letting in


@pytest.mark.parametrize(
    ("query", "options", "code", "close"),
    [
        (f"?model={MODEL}", {"key": "wrong"}, "invalid_api_key", 3000),
        (f"?model={MODEL}", {"key": None}, "invalid_api_key", 3000),
        ("", {}, "missing_model", 4000),
        ("?model=gpt-none", {}, "invalid_model", 4000),
        (f"?model={MODEL}", {"headers": ("OpenAI-Beta: realtime=v1",)}, "beta_api_shape_disabled", 4000),
    ],
)
def test_refusals_come_after_the_upgrade(
    shared: RealtimeServer, query: str, options: dict[str, Any], code: str, close: int
) -> None:
    with client(shared, query, **options) as refused:
        error = refused.expect("error")["error"]
        assert (error["type"], error["code"], error["event_id"]) == ("invalid_request_error", code, None)
        closed = refused.drained()
        assert (closed.code, closed.reason) == (close, f"invalid_request_error.{code}")


@pytest.mark.parametrize(
    "options",
    [
        {"key": "b-key"},
        {"key": None, "headers": ("api-key: b-key",)},
        {"key": None, "subprotocols": ["realtime", "openai-insecure-api-key.b-key"]},
    ],
)
def test_every_way_to_show_a_key(shared: RealtimeServer, options: dict[str, Any]) -> None:
    with connected(shared, **options) as let_in:
        assert let_in.ws.subprotocol == ("realtime" if "subprotocols" in options else None)


def test_any_key_and_any_model_if_none_are_named() -> None:
    with RealtimeServer() as server:
        with connected(server, query="?model=whatever", key="whoever") as let_in:
            assert let_in.seen[0]["session"]["model"] == "whatever"
        with client(server, key="") as refused:
            assert refused.expect("error")["error"]["code"] == "invalid_api_key"


def test_a_cap_on_sessions() -> None:
    with RealtimeServer(max_sessions=1) as server, connected(server) as first:
        with client(server) as second:
            assert second.expect("error")["error"]["code"] == "session_limit_reached"
            assert second.drained().code == 1008
        first.close()
        eventually(lambda: not server.connections)
        connected(server).close()


def test_a_session_to_transcribe_needs_no_model(shared: RealtimeServer) -> None:
    with connected(shared, query="?intent=transcription") as transcribing:
        assert transcribing.seen[0]["session"]["object"] == "realtime.transcription_session"


def test_azure_paths_work_and_others_do_not(shared: RealtimeServer) -> None:
    for path, status in (("/openai/v1/realtime", 101), ("/v1/responses", 404)):
        url = shared.url.replace("/v1/realtime", path) + f"?model={MODEL}"
        if status == 101:
            with Client(url) as let_in:
                let_in.expect("session.created")
        else:
            with pytest.raises(websocket.WebSocketBadStatusException) as caught:
                Client(url)
            assert caught.value.status_code == status


def test_expires_at_is_in_an_hour(shared: RealtimeServer) -> None:
    with connected(shared) as let_in:
        assert let_in.seen[0]["session"]["expires_at"] == pytest.approx(time.time() + 3600, abs=5)


# -- frames


def raw_upgrade(server: RealtimeServer, path: str = "/echo") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        "Authorization: Bearer a-key\r\n\r\n".encode()
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return sock


def masked(first: int, payload: bytes, mask: bytes = b"\1\2\3\4") -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def read_frame(sock: socket.socket) -> tuple[int, bytes]:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = sock.recv(size - len(data))
            assert chunk, "the connection ended"
            data += chunk
        return data

    first, size = exactly(2)
    if size == 126:
        size = int.from_bytes(exactly(2), "big")
    elif size == 127:
        size = int.from_bytes(exactly(8), "big")
    return first, exactly(size)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 1_000_000])
def test_echo(shared: RealtimeServer, size: int) -> None:
    with Client(shared.echo_url) as echo:
        for opcode in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
            echo.ws.send(b"x" * size, opcode)
            assert echo.ws.recv_data() == (opcode, b"x" * size)


def test_bytes_may_come_one_at_a_time_or_all_at_once(shared: RealtimeServer) -> None:
    messages = [masked(0x81, b"a" * 300), masked(0x89, b"ping"), masked(0x82, b"b"), masked(0x81, b"")]
    expected = [(0x81, b"a" * 300), (0x8A, b"ping"), (0x82, b"b"), (0x81, b"")]
    with raw_upgrade(shared) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"".join(messages):
            sock.sendall(bytes((byte,)))
        assert [read_frame(sock) for _ in expected] == expected
        sock.sendall(b"".join(messages))
        assert [read_frame(sock) for _ in expected] == expected


def test_a_message_right_behind_the_request(shared: RealtimeServer) -> None:
    request = (
        b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    data = request + masked(0x81, b"early")
    for cut in (len(request) - 2, len(request) + 4, len(data)):
        with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in (data[:cut], data[cut:]):
                sock.sendall(part)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += sock.recv(1)
            assert read_frame(sock) == (0x81, b"early")


@pytest.mark.parametrize("relay", [False, True])
def test_small_frames_leave_at_once(relay: bool) -> None:
    """Nagle's algorithm would hold an event back until the one before it is acknowledged."""
    with RealtimeServer(relay=relay) as server, connected(server):
        socks = list(server._sockets._held) + (list(server.relay.sockets._held) if server.relay else [])
        flags = [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in socks]
        # All but those that listen: one, and with the relay one more and three ends instead of one.
        assert sorted(map(bool, flags)) == ([False] * 2 + [True] * 3 if relay else [False, True])


def test_fragments_with_a_ping_between(shared: RealtimeServer) -> None:
    with raw_upgrade(shared) as sock:
        sock.sendall(masked(0x01, b"on") + masked(0x89, b"p") + masked(0x00, b"") + masked(0x80, b"e"))
        assert read_frame(sock) == (0x8A, b"p")
        assert read_frame(sock) == (0x81, b"one")
        sock.sendall(masked(0x02, b"t") + masked(0x80, b"wo") + masked(0x81, b"three"))
        assert read_frame(sock) == (0x82, b"two")
        assert read_frame(sock) == (0x81, b"three")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x01a", 1002),  # not masked
        (b"\x88\x02\x03\xe8", 1002),
        (masked(0x83, b"x"), 1002),  # reserved opcode
        (masked(0xC1, b"x"), 1002),  # reserved bit
        (masked(0x80, b"x"), 1002),  # continues nothing
        (masked(0x01, b"x") + masked(0x81, b"y"), 1002),  # inside a message
        (masked(0x09, b"x"), 1002),  # fragmented control frame
        (masked(0x89, b"x" * 126), 1002),  # long control frame
        (masked(0x81, b"\xff"), 1007),
        (masked(0x01, b"\xff") + masked(0x80, b""), 1007),
        (masked(0x88, b"x"), 1002),
        (b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0", 1009),
    ],
)
@pytest.mark.parametrize("path", ["/echo", f"/v1/realtime?model={MODEL}"])
def test_what_is_malformed_ends_the_connection(
    shared: RealtimeServer, data: bytes, code: int, path: str
) -> None:
    with raw_upgrade(shared, path) as sock:
        sock.sendall(data)
        while (frame := read_frame(sock))[0] != 0x88:
            pass
        assert int.from_bytes(frame[1][:2], "big") == code
        assert sock.recv(1) == b""


def test_binary_is_an_error_and_no_end(shared: RealtimeServer) -> None:
    with connected(shared) as talking:
        talking.ws.send_binary(b"{}")
        assert talking.expect("error")["error"]["code"] == "invalid_event"
        talking.send("input_audio_buffer.clear")
        talking.expect("input_audio_buffer.cleared")


def test_closing_is_answered_with_the_same_code(shared: RealtimeServer) -> None:
    before = len(shared.closed)
    with raw_upgrade(shared) as sock:
        sock.sendall(masked(0x88, (4321).to_bytes(2, "big") + b"bye"))
        assert read_frame(sock) == (0x88, (4321).to_bytes(2, "big") + b"bye")
        assert sock.recv(1) == b""
    closed = eventually(lambda: shared.closed[before:])[-1]
    assert (closed.code, closed.reason, closed.by) == (4321, "bye", "client")


def test_messages_on_their_way_to_a_closing_server_are_swallowed(shared: RealtimeServer) -> None:
    with raw_upgrade(shared) as sock:
        port = sock.getsockname()[1]
        info = eventually(lambda: [c for c in shared.connections if c.remote_port == port])[0]
        shared.close(info, 4000, "enough")
        sock.sendall(masked(0x81, b"x") + masked(0x89, b"") + masked(0x88, (4000).to_bytes(2, "big")))
        assert read_frame(sock)[1][2:] == b"enough"
        assert read_frame(sock) == (0x8A, b"")
        assert sock.recv(1) == b""


def test_plain_http_is_told_to_upgrade(shared: RealtimeServer) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as sock:
        sock.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.makefile("rb").readline().startswith(b"HTTP/1.1 426 ")
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as sock:
        sock.sendall(b"\x16\x03\x01 a client that expects TLS\r\n\r\n")
        while sock.recv(100):
            pass


# -- a turn over the wire


def test_a_text_turn_and_an_audio_turn(shared: RealtimeServer) -> None:
    with connected(shared) as talking:
        talking.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
        talking.until("session.updated")
        talking.send("conversation.item.create", item=message("hello"))
        talking.send("response.create")
        events = talking.until("rate_limits.updated")
        texts = [event["text"] for event in events if event["type"] == "response.output_text.done"]
        assert texts == ["You said: hello"]
        audio = tone("audio/pcm", 500)
        talking.send("session.update", session={"type": "realtime", "output_modalities": ["audio"]})
        talking.send("input_audio_buffer.append", audio=base64.b64encode(audio).decode())
        talking.send("input_audio_buffer.commit")
        talking.send("response.create")
        events = talking.until("response.done")
        deltas = [event["delta"] for event in events if event["type"] == "response.output_audio.delta"]
        assert b"".join(map(base64.b64decode, deltas)) == audio


# openai calls websockets in a way that websockets 17 deprecates.
@pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")
def test_the_sdk_completes_a_text_turn_and_an_audio_turn(shared: RealtimeServer) -> None:
    from openai import OpenAI

    with OpenAI(
        api_key="a-key", base_url=shared.base_url, websocket_base_url=shared.url.removesuffix("/realtime")
    ) as openai:
        with openai.realtime.connect(model=MODEL) as connection:
            assert connection.recv().type == "session.created"
            connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
            connection.conversation.item.create(
                item={
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "hello"}],
                }
            )
            connection.response.create()
            text = ""
            for event in connection:
                if event.type == "response.output_text.delta":
                    text += event.delta
                elif event.type == "response.done":
                    assert event.response.status == "completed"
                    break
            assert text == "You said: hello"
            connection.session.update(session={"type": "realtime", "output_modalities": ["audio"]})
            audio = tone("audio/pcm", 300)
            connection.input_audio_buffer.append(audio=base64.b64encode(audio).decode())
            connection.input_audio_buffer.commit()
            connection.response.create()
            heard = b""
            for event in connection:
                if event.type == "response.output_audio.delta":
                    heard += base64.b64decode(event.delta)
                elif event.type == "response.done":
                    break
            assert heard == audio


# -- time


def test_the_server_pings_and_hangs_up_on_silence() -> None:
    with RealtimeServer(ping_interval=0.05, ping_timeout=0.1) as server:
        with connected(server) as listening, connected(server) as deaf:
            # websocket-client answers pings while it receives: one does, the other not.
            while not server.closed:
                opcode, _ = listening.ws.recv_data_frame(control_frame=True)
                assert opcode == websocket.ABNF.OPCODE_PING
            assert [info.id for info in server.connections] == [0]
            assert deaf.ws.connected
            closed = deaf.drained()
            assert (closed.code, closed.reason) == (1011, "keepalive ping timeout")
            ended = server.closed[0]
            assert (ended.id, ended.code, ended.by) == (1, 1011, "server")


def test_a_session_expires() -> None:
    with RealtimeServer(session_seconds=0.05) as server, connected(server) as talking:
        error = talking.expect("error")["error"]
        assert error["code"] == "session_expired"
        closed = talking.drained()
        assert (closed.code, closed.reason) == (1001, error["message"])


def test_sessions_can_be_made_to_expire() -> None:
    with RealtimeServer() as server:
        with connected(server) as first, connected(server) as second:
            server.expire(0)
            assert first.expect("error")["error"]["code"] == "session_expired"
            assert first.drained().code == 1001
            second.send("input_audio_buffer.clear")
            second.expect("input_audio_buffer.cleared")
            server.expire()
            assert second.expect("error")["error"]["code"] == "session_expired"
            with pytest.raises(KeyError):
                server.expire(99)


def test_latency_is_that_of_a_real_network() -> None:
    with RealtimeServer(latency=0.06, tls=True, response_delay=0.0) as server:
        start = time.perf_counter()
        with connected(server) as talking:
            opened = time.perf_counter() - start
            start = time.perf_counter()
            talking.send("input_audio_buffer.clear")
            talking.expect("input_audio_buffer.cleared")
            trip = time.perf_counter() - start
            assert server.connections[0].remote_port == talking.ws.sock.getsockname()[1]
    # Three round trips: TCP, TLS, upgrade. Above: what a busy machine adds.
    assert 0.178 < opened < 0.4
    assert 0.058 < trip < 0.2


# -- what it tells


def test_snapshots() -> None:
    with RealtimeServer(record=10) as server:
        assert server.connections == []
        before = time.time()
        with connected(server) as talking, Client(server.echo_url) as echo:
            talking.send("conversation.item.create", item=message("hello", id="item_1"))
            talking.until("conversation.item.done")
            echo.ws.send("x")
            echo.ws.recv()
            session, plain = server.connections
            assert isinstance(session, ConnectionInfo)
            assert (session.id, plain.id) == (0, 1)
            assert session.session_id == talking.seen[0]["session"]["id"]
            assert before - 1 < session.opened_at < time.time() + 1
            assert (session.path, session.model) == ("/v1/realtime", MODEL)
            assert session.remote_port == talking.ws.sock.getsockname()[1]
            assert (session.frames_in, session.frames_out) == (1, 3)
            assert [item["id"] for item in session.items] == ["item_1"]
            assert session.session == talking.seen[0]["session"]
            assert session.query == {"model": MODEL}
            assert session.headers["authorization"] == "Bearer a-key"
            assert "a-key" not in repr(session)
            assert [json.loads(text)["type"] for text in session.received] == ["conversation.item.create"]
            assert (plain.session_id, plain.items, plain.frames_in, plain.frames_out) == (None, (), 1, 1)
            assert (server.open, server.opened_total, server.max_open) == (2, 2, 2)
        eventually(lambda: server.open == 0)
        assert [(closed.code, closed.by) for closed in server.closed] == [(1000, "client")] * 2
        connected(server).close()
        assert (server.opened_total, server.max_open) == (3, 2)
        assert (server.accepted_total, server.max_sockets) == (3, 2)


def test_a_client_that_vanishes() -> None:
    with RealtimeServer() as server:
        talking = connected(server)
        talking.ws.sock.close()
        talking.ws.shutdown()
        closed = eventually(lambda: server.closed)[0]
        assert (closed.code, closed.by) == (1006, "network")


def test_events_nobody_asked_for(shared: RealtimeServer) -> None:
    with connected(shared) as talking:
        port = talking.ws.sock.getsockname()[1]
        (info,) = [info for info in shared.connections if info.remote_port == port]
        shared.emit({"type": "input_audio_buffer.cleared"}, info)
        talking.expect("input_audio_buffer.cleared")


def test_high_water_counts_no_successors() -> None:
    """A client that opens the next connection once the last one is closed is one client."""
    with RealtimeServer() as server:
        for number in range(30):
            opened = connected(server)
            if number % 2:
                opened.close()
            else:
                opened.ws.shutdown()
        assert (server.opened_total, server.max_open) == (30, 1)


# -- the end and another beginning


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("rtpool-")}


def descriptors() -> set[str]:
    return {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("options", [{}, {"tls": True}, {"latency": 0.01}])
def test_the_end_leaves_nothing(end: str, options: dict[str, Any]) -> None:
    mine = threading.active_count()
    before = len(os.listdir("/proc/self/fd"))
    server = RealtimeServer(**options).start()
    assert threading.active_count() == mine + 1
    with connected(server), connected(server), Client(server.echo_url, **trusting(server)):
        getattr(server, end)()
        assert threading.active_count() == mine
        assert server.connections == []
        assert not server.running
        # The three clients' own sockets are left.
        assert len(os.listdir("/proc/self/fd")) == before + 3
    getattr(server, end)()
    assert {closed.by for closed in server.closed} == {"server"}


def trusting(server: RealtimeServer) -> dict[str, Any]:
    if not server.ca_file:
        return {}
    return {"sslopt": {"context": ssl.create_default_context(cafile=server.ca_file)}}


def test_stop_says_goodbye_and_kill_does_not() -> None:
    server = RealtimeServer().start()
    with connected(server) as first:
        stopper = threading.Thread(target=server.stop, args=(5.0,))
        stopper.start()
        closed = first.drained()
        assert (closed.code, closed.reason) == (1001, "server shutting down")
        first.close()
        stopper.join()
    server.start()
    with connected(server) as second:
        server.kill()
        with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
            second.recv()


@pytest.mark.parametrize("options", [{}, {"latency": 0.002}])
def test_restart_on_the_same_port_under_load(options: dict[str, Any]) -> None:
    server = RealtimeServer(**options).start()
    port = server.port
    over = threading.Event()
    worked = [0] * 4

    def hammer(number: int) -> None:
        while not over.is_set():
            try:
                with connected(server, timeout=2.0) as talking:
                    for _ in range(20):
                        talking.send("input_audio_buffer.clear")
                        talking.expect("input_audio_buffer.cleared")
                worked[number] += 1
            except (OSError, Closed, websocket.WebSocketException):
                pass

    hammers = [threading.Thread(target=hammer, args=(number,)) for number in range(len(worked))]
    for thread in hammers:
        thread.start()
    try:
        for end in (server.kill, server.stop, server.kill):
            goal = sum(worked) + 5
            eventually(lambda goal=goal: sum(worked) > goal)
            end()
            server.start()
            assert server.port == port
        goal = sum(worked) + 5
        eventually(lambda: sum(worked) > goal)
    finally:
        over.set()
        for thread in hammers:
            thread.join()
        server.stop()


def test_a_port_in_use_is_an_error_and_leaves_no_thread(shared: RealtimeServer) -> None:
    before = threads()
    with pytest.raises(OSError):
        RealtimeServer(port=shared.port).start()
    assert threads() == before


def test_killed_in_the_middle_of_handshakes() -> None:
    """Connections half way through TLS when the server dies leave nothing in it."""
    server = RealtimeServer(tls=True).start()
    before = len(os.listdir("/proc/self/fd"))
    opened = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(20)]
    for sock in opened[::2]:
        sock.sendall(b"\x16\x03\x01")
    eventually(lambda: server.accepted_total == 20)
    server.kill()
    # The event loop's own three are gone, and so is the one that listened.
    assert len(os.listdir("/proc/self/fd")) == before + 20 - 4
    for sock in opened:
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        sock.close()


def test_a_client_that_does_not_read_is_not_read_from(shared: RealtimeServer) -> None:
    with raw_upgrade(shared) as sock:
        chunk = masked(0x82, bytes(1 << 20), b"\0\0\0\0")
        sock.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256:
                sock.sendall(chunk)
                sent += 1
        # It all comes once it is read.
        sock.settimeout(10)
        for _ in range(sent):
            assert len(read_frame(sock)[1]) == 1 << 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_no_server_and_keeps_nothing_open() -> None:
    with RealtimeServer() as server, connected(server) as talking:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover  (in the child)
            status = 1
            try:
                server.stop()
                status = 0 if not server.running and server.connections == [] else 2
                os.write(write, b"x")
                os.close(write)
                time.sleep(30)  # outlives the server
            finally:
                os._exit(status)
        try:
            assert os.read(read, 1) == b"x"
            talking.send("input_audio_buffer.clear")
            talking.expect("input_audio_buffer.cleared")
            server.kill()
            with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
                talking.recv()
            server.start()
            connected(server).close()
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
            os.close(read)
            os.close(write)


# -- TLS


def test_tls_names() -> None:
    with RealtimeServer("localhost", tls=True) as server:
        assert server.url.startswith("wss://localhost:")
        assert server.base_url.startswith("https://localhost:")
        connected(server).close()
        assert server.ca_file
        port = server.port
        untrusting = ssl.create_default_context()
        with pytest.raises(ssl.SSLError):
            Client(f"wss://localhost:{port}/v1/realtime?model=m", sslopt={"context": untrusting})
        connected(server).close()
        assert eventually(lambda: server.max_sockets)


def test_the_certificate_file_goes_with_the_server() -> None:
    server = RealtimeServer(tls=True)
    path = server.ca_file
    assert path
    assert Path(path).read_text().startswith("-----BEGIN CERTIFICATE-----")
    del server
    eventually(lambda: not Path(path).exists())


def test_a_context_of_ones_own() -> None:
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    with RealtimeServer(tls=context) as server:
        assert server.ca_file is None
        with Client(f"{server.url}?model={MODEL}", sslopt={"context": trust}) as talking:
            talking.expect("session.created")


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6() -> None:
    try:
        server = RealtimeServer("::1", tls=True).start()
    except OSError:
        pytest.skip("no IPv6 loopback")
    with server:
        assert f"[::1]:{server.port}" in server.url
        connected(server).close()
