"""What a reset takes, by the way the session ended, and what opening a connection takes beside it.

python benchmarks/reset_cost.py
"""

from __future__ import annotations

import base64
import statistics
import time
from collections.abc import Callable

from rtpool_sync import RealtimeConnection, RealtimePool
from rtpool_sync.emulator import RealtimeServer

ROUNDS = 15
ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
TEXT = {"output_modalities": ["text"]}


def until(conn: RealtimeConnection, kind: str) -> None:
    while conn.recv(10.0)["type"] != kind:
        pass


def unused(conn: RealtimeConnection) -> None:
    pass


def text(conn: RealtimeConnection) -> None:
    conn.send({"type": "conversation.item.create", "item": ITEM})
    conn.send({"type": "response.create", "response": TEXT})
    until(conn, "response.done")


def spoken(conn: RealtimeConnection) -> None:
    """Audio in with voice activity detection on, audio out."""
    loud = base64.b64encode(b"\x00\x40\x00\xc0" * 6000).decode()
    conn.send({"type": "input_audio_buffer.append", "audio": loud})
    conn.send({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(24000)).decode()})
    until(conn, "response.done")


def interrupted(conn: RealtimeConnection) -> None:
    conn.send({"type": "conversation.item.create", "item": ITEM})
    conn.send({"type": "response.create", "response": TEXT})
    until(conn, "response.created")


def just_asked(conn: RealtimeConnection) -> None:
    conn.send({"type": "response.create", "response": TEXT})


KINDS: dict[str, Callable[[RealtimeConnection], None]] = {
    "unused": unused,
    "text turn, finished": text,
    "spoken turn, finished": spoken,
    "response interrupted": interrupted,
    "response just asked for": just_asked,
}


def measure(latency: float) -> None:
    print(f"\nround trip {latency * 1000:.0f} ms{', TLS' if latency else ''}: medians of {ROUNDS}")
    with RealtimeServer(tls=latency > 0, latency=latency, response_delay=0.0) as server:
        settings = {"base_url": server.base_url, "api_key": "sk-x", "max_connections": 1}
        with RealtimePool(ca_file=server.ca_file, max_sessions_per_connection=1000, **settings) as pool:
            with pool.connection(10.0):
                pass
            for name, session in KINDS.items():
                resets, returns = [], []
                for _ in range(ROUNDS):
                    with pool.connection(10.0) as conn:
                        session(conn)
                        began = time.perf_counter()
                    returns.append(time.perf_counter() - began)
                    with pool.connection(10.0):  # handed over as soon as the reset is done
                        resets.append(time.perf_counter() - began)
                print(
                    f"  {name:26} reset {statistics.median(resets) * 1000:7.1f} ms"
                    f"   return {statistics.median(returns) * 1e6:5.0f} us"
                )
            failed = {k: v for k, v in pool.stats().counters.resets.items() if v and k != "ok"}
            print(f"  resets that did not succeed: {failed or 'none'}")
        opening = []
        for _ in range(ROUNDS):
            with RealtimePool(ca_file=server.ca_file, **settings) as pool:
                began = time.perf_counter()
                with pool.connection(10.0):
                    opening.append(time.perf_counter() - began)
        print(f"  {'opening a connection':26}       {statistics.median(opening) * 1000:7.1f} ms")


if __name__ == "__main__":
    measure(0.0)
    measure(0.06)
