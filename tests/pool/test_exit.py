"""A process that exits with a pool in any state: right exit code, 3 seconds at most, silent, close frames."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from pool_peers import TEXT, Peer, frame, peers
from pool_support import eventually

from rtpool_sync.emulator import Faults, RealtimeServer

HEAD = """
import sys, threading, time
from rtpool_sync import RealtimePool
url = sys.argv[1]
pool = RealtimePool(url=url, protocol="plain", max_connections=2, max_sessions_per_connection=1000)
"""

PROGRAMS = {
    "built, never used": "",
    "idle connections": """
for _ in range(3):
    with pool.connection() as conn:
        conn.send("x"); conn.recv()
""",
    "a connection out, by mistake": "conn = pool.acquire(); conn.send('x'); conn.recv()",
    "connections out in daemon threads that receive": """
out = threading.Semaphore(0)
def hold():
    with pool.connection() as conn:
        out.release()
        conn.recv()
for _ in range(2): threading.Thread(target=hold, daemon=True).start()
out.acquire(); out.acquire()
""",
    "waiters": """
held = [pool.acquire(), pool.acquire()]
def wait():
    with pool.connection(): pass
for _ in range(5): threading.Thread(target=wait, daemon=True).start()
while pool.stats().waiting < 5: time.sleep(0.001)
""",
    "busy daemon threads": """
def work():
    while True:
        with pool.connection() as conn:
            conn.send("x"); conn.recv()
for _ in range(6): threading.Thread(target=work, daemon=True).start()
while pool.stats().total_sessions_handled < 100: time.sleep(0.001)
""",
    "an exception": """
with pool.connection() as conn:
    sys.exit(7)
""",
    "closed": """
with pool.connection() as conn: pass
pool.close()
""",
}


def run(program: str, *urls: str) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program + "\nprint(time.monotonic())", *urls],
        capture_output=True,
        text=True,
        timeout=60,
    )
    ended = time.monotonic()
    last = done.stdout.split()
    return done, ended - (float(last[-1]) if last else began)


@pytest.mark.parametrize("state", PROGRAMS)
def test_exit(state: str) -> None:
    with RealtimeServer() as server:
        done, took = run(PROGRAMS[state], server.echo_url)
        assert done.stderr == ""
        assert done.returncode == (7 if state == "an exception" else 0)
        if state != "an exception":
            assert took < 3.0
        eventually(lambda: not server.connections, what="gone at the server")
        # Each with a close frame, none by a mere end of the stream.
        assert [c.code for c in server.closed if c.code == 1006] == []


def test_exit_during_a_connect() -> None:
    program = """
threading.Thread(target=pool.acquire, daemon=True).start()
while not pool.stats().connecting: time.sleep(0.001)
"""
    with RealtimeServer(faults=Faults(mute="request")) as server:
        done, took = run(program, server.echo_url)
        assert (done.stderr, done.returncode) == ("", 0)
        assert took < 3.0


def test_exit_when_the_server_does_not_answer_the_close() -> None:
    with RealtimeServer(faults=Faults(stall_after=1)) as server:
        done, took = run(
            "conn = pool.acquire(); conn.send('x'); conn.recv(); pool.release(conn)", server.echo_url
        )
        assert (done.stderr, done.returncode) == ("", 0)
        assert took < 3.0


def test_exit_with_several_pools_some_of_which_hang() -> None:
    """All are closed at the same time: none has to wait for another one's server."""
    program = """
deaf = [RealtimePool(name=f"deaf {i}", url=sys.argv[2], protocol="plain") for i in range(6)]
for each in (*deaf[:3], pool, *deaf[3:]):
    with each.connection() as conn:
        conn.send("x"); conn.recv()
"""

    def never_closes(peer: Peer) -> None:
        while True:
            opcode, payload = peer.frame()
            if opcode == TEXT:
                peer.send(frame(TEXT, payload))

    with peers(never_closes) as deaf, RealtimeServer() as server:
        done, took = run(program, server.echo_url, deaf)
        assert (done.stderr, done.returncode) == ("", 0)
        assert took < 3.0
        eventually(lambda: len(server.closed) == 1)
        assert [(c.by, c.code) for c in server.closed] == [("client", 1001)]


def test_exit_with_a_pool_that_nobody_refers_to_any_more() -> None:
    program = """
def main():
    mine = RealtimePool(url=url, protocol="plain", min_idle=4, max_connections=4)
    mine.wait()
    while mine.stats().idle < 4: time.sleep(0.001)
main()
"""
    with RealtimeServer() as server:
        done, took = run(program, server.echo_url)
        assert (done.stderr, done.returncode) == ("", 0)
        assert took < 3.0
        eventually(lambda: len(server.closed) == 4)
        assert [(c.by, c.code) for c in server.closed] == [("client", 1001)] * 4


def test_exit_does_not_wait_for_a_connect() -> None:
    program = """
threading.Thread(target=pool.acquire, daemon=True).start()
while not pool.stats().connecting: time.sleep(0.001)
"""
    with RealtimeServer(faults=Faults(mute="request")) as server:
        done, took = run(program, server.echo_url)
        assert (done.stderr, done.returncode) == ("", 0)
        assert took < 1.0
