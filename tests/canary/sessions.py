"""Sessions that tell the server a secret by every channel, and look for everybody else's.

A secret is a token of the session's own. Whatever a session receives is searched
for tokens: one that is not its own is a leak. Each session also asks: it has the
server recite all it knows, and retrieve items that earlier sessions made.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter, deque
from typing import Any

from rtpool_sync import ConnectionLost, PoolTimeout, RealtimeConnection, RealtimePool, RecvTimeout

TOKEN = re.compile(r"S\d{5}-[0-9a-f]{8}")
SHA = re.compile(r"#([0-9a-f]{8})\b")

#: How a session ends. ``ask`` and ``update`` leave something under way on purpose.
ENDINGS = ("clean", "clean", "half", "ask", "update", "audio", "raise", "text")


class Planned(Exception):
    """Raised inside the ``with`` block by sessions that end so."""


class Canary:
    """Runs the sessions and keeps the book. All fields may be read when :meth:`run` is over.

    Args:
        patience: Seconds a session waits for an answer before it gives up its plan
            (not its search): a server that drops answers must not stop the run.
        speaks: Whether the server handles audio.
        recites: Whether the server answers "recite" with all it knows.
    """

    def __init__(
        self,
        pool: RealtimePool,
        *,
        seed: int = 1,
        patience: float = 10.0,
        speaks: bool = True,
        recites: bool = True,
    ) -> None:
        self.pool = pool
        self.seed = seed
        self.patience = patience
        self.speaks = speaks
        self.recites = recites
        self.leaks: list[str] = []
        self.problems: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.served: Counter[int] = Counter()
        self.old_items: deque[str] = deque(maxlen=200)
        self.return_times: list[float] = []
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()

    def run(self, sessions: int, threads: int, timeout: float) -> None:
        """Run so many sessions in so many threads; ``timeout`` seconds for everything."""
        end = time.monotonic() + timeout
        workers = [
            threading.Thread(target=self._work, args=(sessions, end), daemon=True) for _ in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, end - time.monotonic()) + 5.0)
            assert not worker.is_alive(), f"a session hangs: {self.outcomes}, {self.pool!r}"

    def _work(self, sessions: int, end: float) -> None:
        while True:
            with self._lock:
                number = next(self._numbers)
            if number >= sessions:
                return
            if time.monotonic() > end:
                self.problems.append(f"session {number} was not begun in time")
                return
            session = _Session(self, number)
            try:
                session.run()
                self.outcomes["completed"] += 1
            except Planned:
                self.outcomes["raised"] += 1
            except (ConnectionLost, PoolTimeout, RecvTimeout) as error:
                self.outcomes[type(error).__name__] += 1
                self.problems.append(f"{session.token}: {error!r}")
            except Exception as error:
                self.problems.append(f"{session.token}: {error!r}")


class _Session:
    def __init__(self, canary: Canary, number: int) -> None:
        self.canary = canary
        self.random = random.Random(f"{canary.seed}/{number}")
        self.token = f"S{number:05d}-{self.random.getrandbits(32):08x}"
        self.own = {self.token}
        self.events: list[dict[str, Any]] = []
        self.spoken = b""

    # -- talking

    def send(self, conn: RealtimeConnection, kind: str, **fields: Any) -> None:
        event = {"type": kind, **fields}
        how = self.random.random()
        if how < 0.5:
            conn.send(event)
        elif how < 0.8:
            conn.send(json.dumps(event))
        else:
            conn.websocket.send(json.dumps(event))

    def receive(self, conn: RealtimeConnection, timeout: float) -> dict[str, Any]:
        how = self.random.random()
        if how < 0.6:
            event: dict[str, Any] = conn.recv(timeout)
            text = json.dumps(event)
        else:
            text = conn.recv_text(timeout)
            event = json.loads(text)
        self.search(text)
        self.events.append(event)
        if event["type"] == "response.output_audio.delta":
            self.spoken += base64.b64decode(event["delta"])
        item = event.get("item") or {}
        if item.get("id"):
            self.items.append(item["id"])
        return event

    def search(self, text: str) -> None:
        foreign = (set(TOKEN.findall(text)) | set(SHA.findall(text))) - self.own
        if foreign:
            self.canary.leaks.append(f"{self.token} received {foreign}: {text[:300]}")

    def until(
        self, conn: RealtimeConnection, *kinds: str, timeout: float | None = None
    ) -> dict[str, Any] | None:
        """Receive until an event of one of these types; None when none came."""
        end = time.monotonic() + (self.canary.patience if timeout is None else timeout)
        while True:
            try:
                event = self.receive(conn, max(0.0, end - time.monotonic()))
            except RecvTimeout:
                return None
            if event["type"] in kinds:
                return event

    # -- the plan

    def run(self) -> None:
        self.items: list[str] = []
        settings = None
        if self.random.random() < 0.5:
            settings = {"instructions": f"Keep {self.token} to yourself."}
            if self.random.random() < 0.5:
                settings["output_modalities"] = ["text"]
        began = None
        try:
            with self.canary.pool.connection(timeout=60.0, session=settings) as conn:
                self.canary.served[conn.id] += 1
                self.talk(conn)
                began = time.perf_counter()
        finally:
            if began is not None:
                self.canary.return_times.append(time.perf_counter() - began)
            self.canary.old_items.extend(self.items[:3])

    def talk(self, conn: RealtimeConnection) -> None:
        token, rng = self.token, self.random
        self.ask_for_old_items(conn)
        if self.canary.recites:
            self.recite(conn)
        else:
            self.item(conn, f"hello, {self.token}")
        for channel in rng.sample(("instructions", "tools", "item", "audio", "metadata", "apart", "id"), k=3):
            getattr(self, f"tell_{channel}")(conn)
        ending = rng.choice(ENDINGS)
        if ending == "half":
            self.send(conn, "response.create", response={"instructions": f"Say {token} slowly."})
            self.until(conn, "response.created", "error")
        elif ending == "ask":
            self.send(conn, "response.create", response={"metadata": {"who": token}})
        elif ending == "update":
            self.send(
                conn, "session.update", session={"type": "realtime", "instructions": f"Remember {token}."}
            )
        elif ending == "audio" and self.canary.speaks:
            self.send(conn, "input_audio_buffer.append", audio=base64.b64encode(self.noise()).decode())
        elif ending == "raise":
            raise Planned(token)
        elif ending == "text":
            self.item(conn, f"{token} was here", wait=False)

    def ask_for_old_items(self, conn: RealtimeConnection) -> None:
        old = list(self.canary.old_items)
        for item in self.random.sample(old, k=min(2, len(old))):
            self.send(conn, "conversation.item.retrieve", item_id=item)
            if self.canary.recites:
                answer = self.until(conn, "error", "conversation.item.retrieved")
                if answer is not None and answer["type"] == "conversation.item.retrieved":
                    self.canary.leaks.append(f"{self.token} retrieved {item}: {answer}")

    def item(self, conn: RealtimeConnection, text: str, wait: bool = True) -> None:
        content = [{"type": "input_text", "text": text}]
        self.send(
            conn, "conversation.item.create", item={"type": "message", "role": "user", "content": content}
        )
        if wait:
            self.until(conn, "conversation.item.done", "conversation.item.added", "error")

    def recite(self, conn: RealtimeConnection) -> None:
        self.item(conn, f"recite, {self.token}")
        self.send(conn, "response.create", response={"output_modalities": ["text"]})
        done = self.until(conn, "response.done", "error")
        if done is not None and done["type"] == "response.done" and self.token not in json.dumps(done):
            self.canary.problems.append(f"{self.token}: not recited: {done}")

    # -- channels

    def tell_instructions(self, conn: RealtimeConnection) -> None:
        self.send(
            conn,
            "session.update",
            session={"type": "realtime", "instructions": f"The secret is {self.token}."},
        )
        if self.random.random() < 0.7:
            self.until(conn, "session.updated", "error")

    def tell_tools(self, conn: RealtimeConnection) -> None:
        tool = {"type": "function", "name": f"f_{self.token}", "parameters": {"type": "object"}}
        self.send(conn, "session.update", session={"type": "realtime", "tools": [tool]})

    def tell_item(self, conn: RealtimeConnection) -> None:
        self.item(conn, f"My name is {self.token}", wait=self.random.random() < 0.5)

    def tell_id(self, conn: RealtimeConnection) -> None:
        content = [{"type": "input_text", "text": self.token}]
        item = {"id": f"i_{self.token}", "type": "message", "role": "user", "content": content}
        self.send(conn, "conversation.item.create", item=item)

    def noise(self) -> bytes:
        noise = self.random.randbytes(24000 * 2 * 3 // 10)  # 0.3 s, loud
        self.own.add(hashlib.sha1(noise).hexdigest()[:8])
        return noise

    def tell_audio(self, conn: RealtimeConnection) -> None:
        if not self.canary.speaks:
            return
        noise = self.noise()
        self.send(
            conn, "session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        )
        self.until(conn, "session.updated", "error")
        self.send(conn, "input_audio_buffer.clear")
        self.send(conn, "input_audio_buffer.append", audio=base64.b64encode(noise).decode())
        self.send(conn, "input_audio_buffer.commit")
        self.send(conn, "response.create", response={"output_modalities": ["audio"]})
        done = self.until(conn, "response.done", "error")
        if done is not None and done["type"] == "response.done" and len(self.spoken) >= 200:
            if self.spoken[:200] not in noise:
                self.canary.leaks.append(f"{self.token} heard audio that is not its own")

    def tell_metadata(self, conn: RealtimeConnection) -> None:
        response = {"metadata": {"secret": self.token}, "output_modalities": ["text"]}
        self.send(conn, "response.create", response=response)
        if self.random.random() < 0.5:
            self.until(conn, "response.done", "error")

    def tell_apart(self, conn: RealtimeConnection) -> None:
        content = [{"type": "input_text", "text": f"Apart: {self.token}"}]
        response = {
            "conversation": "none",
            "output_modalities": ["text"],
            "metadata": {"apart": self.token},
            "input": [{"type": "message", "role": "user", "content": content}],
        }
        self.send(conn, "response.create", response=response)
