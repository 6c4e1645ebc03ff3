"""What following a session costs per audio frame.

    python benchmarks/tracking.py [repeats]

Prints nanoseconds per event, the best of several runs, for the calls that
happen once per frame: with the Realtime protocol, with one that follows
nothing (the price of the call), and what handling such a frame costs anyway.
"""

from __future__ import annotations

import base64
import json
import sys
import timeit
from collections.abc import Callable
from typing import Any

from rtpool_sync.protocols.plain import PlainProtocol
from rtpool_sync.protocols.realtime import RealtimeProtocol

AUDIO = base64.b64encode(bytes(4800)).decode()  # 100 ms at 24 kHz
DELTA: dict[str, Any] = {
    "type": "response.output_audio.delta",
    "event_id": "event_BGpqBkVNnJnTb9W4QAEKs",
    "response_id": "resp_BGpqBiyCQzHzGAoMKcOGv",
    "item_id": "item_BGpqBzqkYxpmtzUaIjYqP",
    "output_index": 0,
    "content_index": 0,
    "delta": AUDIO,
}
APPEND = {"type": "input_audio_buffer.append", "audio": AUDIO}
CREATED = {"type": "session.created", "session": {"type": "realtime", "id": "sess_1"}}


def nanoseconds(call: Callable[[], object], repeats: int) -> float:
    return min(timeit.repeat(call, number=repeats, repeat=7)) / repeats * 1e9


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    realtime = RealtimeProtocol().follow(session={}, reset_timeout=5.0)
    realtime.prepare(0.0)
    realtime.feed(json.dumps(CREATED), 0.0)
    # The second session on a connection: there is something to fence off.
    realtime.received({"type": "response.created", "response": {"id": "resp_of_before"}})
    realtime.clean()
    realtime.received({"type": "response.created", "response": {"id": DELTA["response_id"]}})
    plain = PlainProtocol().follow(session={}, reset_timeout=5.0)

    delta_text = json.dumps(DELTA, separators=(",", ":"))
    append_text = json.dumps(APPEND, separators=(",", ":"))
    # A new text each time, as from a socket: a string that was hashed once is hashed for nothing after.
    deltas = [json.loads(delta_text) for _ in range(64)]
    following = iter(())

    def next_delta() -> dict[str, Any]:
        nonlocal following
        for delta in following:
            return delta  # type: ignore[no-any-return]
        following = iter(deltas)
        return next(following)  # type: ignore[no-any-return]

    rows: list[tuple[str, Callable[[], object], Callable[[], object], Callable[[], object]]] = [
        (
            "received: audio delta, decoded",
            lambda: realtime.received(next_delta()),
            lambda: plain.received(next_delta()),
            lambda: json.loads(delta_text),
        ),
        (
            "received: audio delta, text",
            lambda: realtime.received_text(delta_text),
            lambda: plain.received_text(delta_text),
            lambda: json.loads(delta_text),
        ),
        (
            "sent: append, mapping",
            lambda: realtime.sent(APPEND),
            lambda: plain.sent(APPEND),
            lambda: json.dumps(APPEND),
        ),
        (
            "sent: append, text",
            lambda: realtime.sent(append_text),
            lambda: plain.sent(append_text),
            lambda: json.dumps(APPEND),
        ),
    ]
    print(f"{'':32}{'followed':>10}{'not':>8}{'costs':>8}{'JSON':>9}{'share':>8}")
    for name, followed, unfollowed, anyway in rows:
        with_, without = nanoseconds(followed, repeats), nanoseconds(unfollowed, repeats)
        coding = nanoseconds(anyway, max(1, repeats // 10))
        cost = with_ - without
        print(f"{name:32}{with_:7.0f} ns{without:5.0f} ns{cost:5.0f} ns{coding:6.0f} ns{cost / coding:8.1%}")
    assert realtime.track.untracked is None


if __name__ == "__main__":
    main()
