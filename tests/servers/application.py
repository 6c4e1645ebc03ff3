"""A WSGI application without a framework, as the servers under test run it. One pool, a global."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from rtpool_sync import PoolExhausted, PoolTimeout, RealtimeConnection, RealtimePool
from rtpool_sync.contrib.gunicorn import draining
from rtpool_sync.web import monitoring_app

PATIENCE = 10.0

settings: dict[str, Any] = json.loads(os.environ["POOL"])  # keywords of RealtimePool
pool = RealtimePool(**settings)


def say(conn: RealtimeConnection, token: str) -> None:
    if settings.get("protocol") == "plain":
        conn.send(token)
    else:
        content = [{"type": "input_text", "text": token}]
        item = {"type": "message", "role": "user", "content": content}
        conn.send({"type": "conversation.item.create", "item": item})


def hear(conn: RealtimeConnection) -> str:
    while True:
        event: Any = conn.recv(PATIENCE)
        if isinstance(event, str):
            return event
        if event["type"] == "conversation.item.done":
            return str(event["item"]["content"][0]["text"])


def echo(token: str, seconds: float) -> dict[str, Any]:
    """Say a token, hold the connection for a while, tell what came back."""
    with pool.connection(PATIENCE) as conn:
        say(conn, token)
        time.sleep(seconds)
        return {"heard": hear(conn)}


def listen(token: str, seconds: float) -> dict[str, Any]:
    """A conversation in which nothing more is said: it ends when the connection does."""
    with pool.connection(PATIENCE) as conn:
        say(conn, token)
        hear(conn)
        try:
            return {"heard": str(conn.recv(seconds))}
        except (ConnectionError, TimeoutError) as error:
            return {"error": type(error).__name__, "text": str(error)}


def patient(token: str, seconds: float) -> dict[str, Any]:
    """A long conversation that says goodbye when its worker was told to end."""
    with pool.connection(PATIENCE) as conn:
        say(conn, token)
        hear(conn)
        while not draining():
            with contextlib.suppress(TimeoutError):
                conn.recv(0.05)
        say(conn, "goodbye")
        return {"last": hear(conn)}


def reaper(token: str, seconds: float) -> dict[str, Any]:
    """Whether the pool's own thread is alive in this process: only it retires connections."""
    before = pool.stats().counters.closed["drained"]
    with pool.connection(PATIENCE) as conn:
        say(conn, token)
        heard = hear(conn)
    pool.drain()
    end = time.monotonic() + PATIENCE
    while pool.stats().counters.closed["drained"] == before:
        if time.monotonic() > end:
            raise AssertionError(f"nobody looks after the pool: {pool.stats()}")
        time.sleep(0.005)
    return {"heard": heard}


def outcome(work: Callable[[RealtimeConnection], bool], token: str, seconds: float) -> dict[str, Any]:
    """A short conversation, if a connection is free soon; what came of it, as the client sees it."""
    try:
        conn = pool.acquire(seconds)
    except PoolTimeout:
        return {"outcome": "timeout"}
    except PoolExhausted:
        return {"outcome": "exhausted"}
    say(conn, token)
    time.sleep(0.02)
    heard = hear(conn)
    if work(conn):
        pool.release(conn)
    return {"outcome": "ok", "heard": heard}


def hurry(token: str, seconds: float) -> dict[str, Any]:
    return outcome(lambda conn: True, token, seconds)


def discard(token: str, seconds: float) -> dict[str, Any]:
    return outcome(lambda conn: not conn.invalidate("as asked"), token, seconds)


def lose(token: str, seconds: float) -> dict[str, Any]:
    """Forget to give it back."""
    return outcome(lambda conn: False, token, seconds)


def die(token: str, seconds: float) -> dict[str, Any]:
    """The worker is killed in the midst of a conversation."""
    with pool.connection(PATIENCE) as conn:
        say(conn, token)
        hear(conn)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


if os.environ.get("OPENED"):
    handles = [pool.acquire(PATIENCE) for _ in range(2)]
    for handle in handles:
        pool.release(handle)

ROUTES = {"/echo": echo, "/listen": listen, "/patient": patient, "/reaper": reaper}
ROUTES |= {"/hurry": hurry, "/discard": discard, "/lose": lose, "/die": die}
monitoring = monitoring_app(pool)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/metrics":
        return monitoring(environ, start_response)
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    status = "200 OK"
    try:
        answer = ROUTES[environ["PATH_INFO"]](query["token"], float(query.get("seconds", "0")))
    except Exception:
        status, answer = "500 Internal Server Error", {"traceback": traceback.format_exc()}
    body = json.dumps({"pid": os.getpid(), **answer}).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
