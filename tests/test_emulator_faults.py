"""Every way the embedded server can misbehave, as a client sees it."""

from __future__ import annotations

import json
import socket
import ssl
import time
from typing import Any

import pytest
import websocket
from realtime_types import Client, Closed, message

from rtpool_sync.emulator import Faults, RealtimeServer
from rtpool_sync.emulator.faults import Mangler

MODEL = "gpt-realtime-2.1"
CLEAR = "input_audio_buffer.clear"
CLEARED = "input_audio_buffer.cleared"
ENDED = (websocket.WebSocketConnectionClosedException, ConnectionError)


def client(server: RealtimeServer, **options: Any) -> Client:
    if server.ca_file:
        options["sslopt"] = {"context": ssl.create_default_context(cafile=server.ca_file)}
    return Client(f"{server.url}?model={MODEL}", **options)


def connected(server: RealtimeServer, **options: Any) -> Client:
    opened = client(server, **options)
    opened.expect("session.created")
    return opened


# -- the opening


def test_a_refused_upgrade() -> None:
    faults = Faults(refuse=429, refuse_headers={"Retry-After": "3"}, refuse_body='{"error":{}}')
    with RealtimeServer(faults=faults) as server:
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            client(server)
        assert caught.value.status_code == 429
        assert caught.value.resp_headers["retry-after"] == "3"
        assert caught.value.resp_body == b'{"error":{}}'
        assert (server.opened_total, server.accepted_total) == (0, 1)
        server.faults = Faults(refuse=599)
        with pytest.raises(websocket.WebSocketBadStatusException):
            client(server)
        server.faults = Faults()
        connected(server).close()


def test_a_redirect() -> None:
    with RealtimeServer(faults=Faults(redirect="ws://elsewhere.invalid/")) as server:
        with pytest.raises(websocket.WebSocketException, match="Redirect"):
            client(server)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
            sock.sendall(b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while data := sock.recv(1000):
                answer += data
        assert answer.startswith(b"HTTP/1.1 302 Found\r\n")
        assert b"\r\nLocation: ws://elsewhere.invalid/\r\n" in answer


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("when", ["accept", "request"])
def test_a_reset_while_opening(when: str, tls: bool) -> None:
    with RealtimeServer(tls=tls, faults=Faults(reset=when)) as server:
        with pytest.raises((*ENDED, ssl.SSLError)):
            client(server)
        server.faults = Faults()
        connected(server).close()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("when", ["accept", "request"])
def test_no_answer_to_the_opening(when: str, tls: bool) -> None:
    with RealtimeServer(tls=tls, faults=Faults(mute=when)) as server:
        with pytest.raises((websocket.WebSocketTimeoutException, TimeoutError)):
            client(server, timeout=0.1)
        assert server.opened_total == 0


def test_an_answer_byte_by_byte() -> None:
    with RealtimeServer(faults=Faults(trickle=0.001)) as server:
        start = time.perf_counter()
        with connected(server) as talking:
            assert time.perf_counter() - start > 0.1
            talking.send(CLEAR)
            talking.expect(CLEARED)


def test_a_cookie() -> None:
    with RealtimeServer(faults=Faults(set_cookie="__cf_bm=x; path=/")) as server:
        with connected(server) as talking:
            assert talking.ws.getheaders()["set-cookie"] == "__cf_bm=x; path=/"


def test_no_greeting() -> None:
    with RealtimeServer(faults=Faults(no_session_created=True)) as server, client(server) as talking:
        talking.send(CLEAR)
        talking.expect(CLEARED)


# -- who suffers


def test_faults_for_some() -> None:
    with RealtimeServer(faults=Faults(only=lambda index: index % 2 == 1, refuse=503)) as server:
        for index in range(4):
            if index % 2:
                with pytest.raises(websocket.WebSocketBadStatusException):
                    client(server)
            else:
                connected(server).close()


def test_a_script_for_the_connections_to_come() -> None:
    with RealtimeServer() as server:
        server.script(
            Faults(refuse=503), None, Faults(close_after=1, close_code=1012, close_reason="restart")
        )
        with pytest.raises(websocket.WebSocketBadStatusException):
            client(server)
        with connected(server) as untouched, connected(server) as restarted:
            for talking in (untouched, restarted):
                talking.send(CLEAR)
            untouched.expect(CLEARED)
            closed = restarted.drained()
            assert (closed.code, closed.reason) == (1012, "restart")
        with connected(server) as after:
            after.send(CLEAR)
            after.expect(CLEARED)


@pytest.mark.parametrize("bad", [{"reset": "later"}, {"mute": "x"}, {"refuse": 42}])
def test_bad_faults(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Faults(**bad)


# -- between messages


@pytest.mark.parametrize("tls", [False, True])
def test_a_message_cut_short(tls: bool) -> None:
    with RealtimeServer(tls=tls, faults=Faults(truncate_after=1)) as server, connected(server) as talking:
        talking.send(CLEAR)
        with pytest.raises(ENDED):
            talking.recv()
        assert [closed.code for closed in server.closed] == [1006]


def test_half_a_message_is_really_sent() -> None:
    with RealtimeServer(faults=Faults(truncate_after=1)) as server, connected(server) as talking:
        talking.send(CLEAR)
        received = b""
        while chunk := talking.ws.sock.recv(1000):
            received += chunk
        assert received[0] == 0x81
        assert 10 < len(received) < received[1] + 2


def test_a_reset_in_the_middle() -> None:
    with RealtimeServer(faults=Faults(reset_after=2)) as server, connected(server) as talking:
        talking.send(CLEAR)
        talking.expect(CLEARED)
        talking.send(CLEAR)
        with pytest.raises(ConnectionResetError):
            talking.ws.sock.recv(1)


def test_a_stall_reads_and_writes_nothing() -> None:
    faults = Faults(stall_after=1)
    with RealtimeServer(faults=faults, ping_interval=0.02, ping_timeout=0.02) as server:
        with connected(server, timeout=0.2) as talking:
            talking.send(CLEAR)
            with pytest.raises(websocket.WebSocketTimeoutException):
                talking.recv()
            # The window closes in the end: nobody reads.
            with pytest.raises((websocket.WebSocketTimeoutException, TimeoutError)):
                for _ in range(200):
                    talking.ws.send("x" * 100_000)


def test_a_close_in_the_middle() -> None:
    with RealtimeServer(faults=Faults(close_after=1)) as server, connected(server) as talking:
        talking.send(CLEAR)
        assert talking.drained().code == 1011


def test_a_message_too_big() -> None:
    faults = Faults(oversize_after=1, oversize_bytes=100_000)
    with RealtimeServer(faults=faults) as server, connected(server) as talking:
        talking.send(CLEAR)
        big = talking.ws.recv()
        assert len(big) == 100_000
        assert json.loads(big)["type"] == "error"
        talking.expect(CLEARED)
        talking.send(CLEAR)
        talking.expect(CLEARED)


def test_text_that_is_none() -> None:
    with RealtimeServer(faults=Faults(bad_utf8_after=1)) as server, connected(server) as talking:
        talking.send(CLEAR)
        opcode, data = talking.ws.recv_data()
        assert opcode == websocket.ABNF.OPCODE_TEXT
        with pytest.raises(UnicodeDecodeError):
            data.decode()
        talking.expect(CLEARED)


@pytest.mark.parametrize("kind", ["truncate", "reset", "stall", "oversize", "bad_utf8"])
def test_faults_on_an_idle_connection(kind: str) -> None:
    with RealtimeServer() as server, connected(server, timeout=0.2) as hit, connected(server) as spared:
        server.inject(kind, server.connections[0])
        if kind in ("truncate", "reset"):
            with pytest.raises(ENDED):
                hit.recv()
        elif kind == "stall":
            hit.send(CLEAR)
            with pytest.raises(websocket.WebSocketTimeoutException):
                hit.recv()
        else:
            assert len(hit.ws.recv_data()[1]) == {"oversize": 17 * 1024 * 1024, "bad_utf8": 31}[kind]
        spared.send(CLEAR)
        spared.expect(CLEARED)


def test_close_all() -> None:
    with RealtimeServer() as server, connected(server) as first, connected(server) as second:
        server.close_all(4999, "é" * 100)  # a reason has at most 123 bytes
        for talking in (first, second):
            closed = talking.drained()
            assert (closed.code, closed.reason) == (4999, "é" * 61)
        assert {(closed.code, closed.by) for closed in server.closed} == {(4999, "server")}


# -- events


def test_acknowledgements_are_lost_late_doubled_and_rewritten() -> None:
    with RealtimeServer() as server, connected(server) as talking:
        server.faults = Faults(drop={CLEARED: 1.0})
        talking.send(CLEAR)
        talking.send("conversation.item.create", item=message("x", id="a"))
        talking.expect("conversation.item.added")
        talking.expect("conversation.item.done")

        server.faults = Faults(duplicate={CLEARED: 1.0})
        talking.send(CLEAR)
        assert talking.expect(CLEARED) == talking.expect(CLEARED)

        server.faults = Faults(late={CLEARED: 0.05})
        start = time.perf_counter()
        talking.send(CLEAR)
        talking.send("conversation.item.delete", item_id="a")
        talking.expect("conversation.item.deleted")
        talking.expect(CLEARED)
        assert time.perf_counter() - start > 0.045

        def rewrite(event: dict[str, Any]) -> dict[str, Any] | None:
            return None if event["type"] == "conversation.item.done" else {**event, "event_id": "rewritten"}

        server.faults = Faults(rewrite=rewrite)
        talking.send("conversation.item.create", item=message("y"))
        talking.send(CLEAR)
        assert talking.expect("conversation.item.added")["event_id"] == "rewritten"
        talking.expect(CLEARED)


def test_acknowledgements_overtake_each_other() -> None:
    with RealtimeServer(faults=Faults(reorder={"conversation.item.added": 1.0, CLEARED: 1.0})) as server:
        with connected(server) as talking:
            talking.send("conversation.item.create", item=message("x"))
            talking.expect("conversation.item.done")
            talking.expect("conversation.item.added")
            # Without a successor it comes all the same.
            talking.send(CLEAR)
            talking.expect(CLEARED)


def test_late_events_end_with_the_connection() -> None:
    with RealtimeServer(faults=Faults(late={CLEARED: 0.02}, reorder={"*": 1.0})) as server:
        with client(server) as talking:
            talking.expect("session.created")
            talking.send(CLEAR)
        with client(server) as other:
            other.expect("session.created")
            time.sleep(0.05)
            other.send("session.update", session={"type": "realtime"})
            other.expect("session.updated")


def test_chance_is_seeded() -> None:
    def draws(seed: int, index: int) -> list[int]:
        mangle = Mangler(seed, index)
        faults = Faults(drop={"*": 0.5})
        return [len(mangle(faults, {"type": "error"})) for _ in range(64)]

    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(2, 0)
    assert draws(1, 0) != draws(1, 1)
    assert 16 < sum(draws(1, 0)) < 48


def test_faults_need_no_session() -> None:
    with RealtimeServer() as server, Client(server.echo_url) as echo:
        server.expire()
        server.emit({"type": CLEARED})
        echo.ws.send("x")
        assert echo.ws.recv() == "x"
        server.inject("reset")
        with pytest.raises(ENDED):
            echo.ws.recv()


def test_stop_ends_what_hangs() -> None:
    with RealtimeServer(faults=Faults(mute="accept")) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
            while server.accepted_total == 0:
                time.sleep(0.001)
            server.stop()
            assert sock.recv(1) == b""


def test_closed_is_seen() -> None:
    with RealtimeServer() as server, connected(server) as talking:
        server.close_all(1013)
        with pytest.raises(Closed) as caught:
            talking.recv()
        assert caught.value.code == 1013
