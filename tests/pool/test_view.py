"""conn.websocket: a pooled connection for code that was written for websocket-client."""

from __future__ import annotations

import threading

import pytest
import websocket
from pool_calls import Call, realtime
from pool_support import eventually, plain

from rtpool_sync import ConnectionReturned
from rtpool_sync.emulator import RealtimeServer


def test_send_and_recv_as_websocket_client_does() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        ws = conn.websocket
        ws.settimeout(10)
        assert ws.send("grüße") == 7
        assert ws.recv() == "grüße"
        assert ws.send(b"text") == 4  # websocket-client sends bytes as text unless told otherwise
        assert ws.recv() == "text"
        assert ws.send(b"\xff\x00", websocket.ABNF.OPCODE_BINARY) == 2
        assert ws.recv() == b"\xff\x00"
        assert ws.send("abc", websocket.ABNF.OPCODE_BINARY) == 3
        assert ws.recv() == b"abc"
        for send in (ws.send_bytes, ws.send_binary):
            send(bytearray(b"\x01"))
            assert ws.recv() == b"\x01"
        ws.send_text("x")
        assert ws.recv_data() == (websocket.ABNF.OPCODE_TEXT, b"x")
        ws.send_bytes(b"y")
        assert ws.recv_data() == (websocket.ABNF.OPCODE_BINARY, b"y")
        ws.send("{}")
        assert ws.recv() == "{}"  # never decoded
        assert conn.websocket is ws
        with pytest.raises(ValueError, match="opcode 9"):
            ws.send("x", websocket.ABNF.OPCODE_PING)


def test_a_realtime_session_through_it() -> None:
    with RealtimeServer() as server, realtime(server) as pool:
        with pool.connection(10.0) as conn:
            conn.websocket.settimeout(10)
            conn.websocket.send('{"type":"input_audio_buffer.clear"}')
            assert '"input_audio_buffer.cleared"' in conn.websocket.recv()
        with pool.connection(10.0) as conn:
            assert conn.session_count == 2


def test_timeouts() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        ws = conn.websocket
        assert ws.gettimeout() is None
        assert ws.timeout is None
        ws.settimeout(0.02)
        assert ws.gettimeout() == ws.timeout == 0.02
        with pytest.raises(websocket.WebSocketTimeoutException):
            ws.recv()
        ws.timeout = 10
        ws.send("late")
        assert ws.recv() == "late"  # nothing is lost
        ws.settimeout(None)
        reading = Call(ws.recv)
        ws.send("no limit")
        assert reading.result() == "no limit"


def test_ping_and_pong() -> None:
    with RealtimeServer(relay=True) as server, plain(server.echo_url) as pool:
        with pool.connection(10.0) as conn:
            ws = conn.websocket
            ws.ping()
            ws.ping("payload")
            ws.pong()
            assert conn.rtt_seconds is not None
            ws.settimeout(0.05)
            assert server.relay is not None
            server.relay.cut()
            with pytest.raises(websocket.WebSocketTimeoutException):
                ws.ping()


@pytest.mark.parametrize("how", ["close", "shutdown", "abort", "with"])
def test_close_ends_the_view_and_the_connection_is_not_reused(how: str) -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool:
        with pool.connection(10.0) as conn:
            first, ws = conn.id, conn.websocket
            assert ws.connected
            if how == "with":
                with ws:
                    pass
            else:
                getattr(ws, how)()
            ws.close()
            assert not ws.connected
            assert server.open == 1  # it belongs to the pool, which closes it on return
            for call in (ws.recv, ws.ping, ws.pong, lambda: ws.send("x"), ws.recv_data):
                with pytest.raises(websocket.WebSocketConnectionClosedException):
                    call()
        eventually(lambda: pool.stats().counters.closed["invalidated"] == 1)
        with pool.connection(10.0) as conn:
            assert conn.id != first


def test_a_lost_connection_is_websocket_clients_exception() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        ws = conn.websocket
        assert ws.connected
        server.close_all(1011, "broken")
        with pytest.raises(websocket.WebSocketConnectionClosedException, match=r"1011 .broken"):
            ws.recv()
        assert not ws.connected
        for call in (ws.ping, lambda: ws.send("x")):
            with pytest.raises(websocket.WebSocketConnectionClosedException):
                call()
        ws.close()


def test_iteration_goes_on_until_the_connection_ends() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        conn.send("a")
        conn.send("b")
        messages = iter(conn.websocket)
        assert [next(messages), next(messages)] == ["a", "b"]
        server.close_all(1000)
        with pytest.raises(websocket.WebSocketConnectionClosedException):
            next(messages)


def test_after_the_return_it_says_so() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        with pool.connection(10.0) as conn:
            ws = conn.websocket
        with pool.connection(10.0) as other:
            assert not ws.connected
            for call in (ws.recv, ws.ping, lambda: ws.send("x"), lambda: conn.websocket):
                with pytest.raises(ConnectionReturned):
                    call()
            ws.close()  # harmless: it does not reach the other one
            assert other.websocket.connected
        with pool.connection(10.0) as again:
            assert again.session_count == 3


def test_one_thread_sends_while_another_receives() -> None:
    with RealtimeServer() as server, plain(server.echo_url) as pool, pool.connection(10.0) as conn:
        ws = conn.websocket
        ws.settimeout(10)
        reading = Call(lambda: [ws.recv() for _ in range(500)])
        sender = threading.Thread(target=lambda: [ws.send(str(number)) for number in range(500)])
        sender.start()
        assert reading.result() == [str(number) for number in range(500)]
        sender.join(10.0)
