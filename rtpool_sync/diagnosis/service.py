"""The service itself, through a pool of one connection: an answer, a reset, the same connection again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ..config import PoolConfig
from ..connection import RealtimeConnection
from ..errors import ConnectError, RtpoolError, redact
from ..pool import RealtimePool
from . import advice
from .findings import Finding

__all__ = ["try_out"]

monotonic = time.monotonic

QUESTION = "Answer with the one word: ready."
LOOK = 0.005  # seconds between looks at the pool's counters


def try_out(config: PoolConfig, *, turn: bool, timeout: float) -> Iterator[Finding]:
    """Have a question answered, and the connection reset and used again.

    Args:
        turn: Whether to ask; a session of transcription is never asked.
        timeout: Seconds for the answer, and for the reset.
    """
    small = config.replace(
        max_connections=1, min_idle=0, leak_threshold=0.0, close_timeout=min(config.close_timeout, 2.0)
    )
    patience = config.connect_timeout + 1.0
    with RealtimePool(small, name="doctor", registry=False) as pool:
        phase, began = "turn", monotonic()
        try:
            with pool.connection(patience) as conn:
                first = conn.id
                opened = monotonic() - began
                finding = _turn(conn, config, timeout) if turn else None
            yield finding or Finding("turn", "skipped", "not asked for")
            if finding is not None and finding.status == "failed":
                return
            if config.max_sessions_per_connection == 1:
                for phase in ("reset", "reuse"):
                    yield Finding(phase, "skipped", "max_sessions_per_connection is 1: never reused")
                return
            phase, began = "reset", monotonic()
            yield (finding := _reset(pool, timeout))
            if finding.status == "failed":
                return
            phase, began = "reuse", monotonic()
            with pool.connection(patience) as conn:
                yield _reuse(conn, first, monotonic() - began, opened)
        except (RtpoolError, OSError) as error:
            cause = error.__cause__
            told = f"{error} ({cause})" if isinstance(cause, ConnectError) else str(error)
            text = (
                "A connection opened a moment ago, and this one did not serve: try again, and see the words."
            )
            yield Finding(phase, "failed", redact(told), text, monotonic() - began)


def _turn(conn: RealtimeConnection, config: PoolConfig, timeout: float) -> Finding:
    if config.session.get("type") == "transcription" or "intent=transcription" in config.connect_url:
        return Finding("turn", "skipped", "a transcription session does not answer")
    began = monotonic()
    content = [{"type": "input_text", "text": QUESTION}]
    conn.send(
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}
    )
    conn.send(
        {"type": "response.create", "response": {"output_modalities": ["text"], "max_output_tokens": 256}}
    )
    first: float | None = None
    words = ""
    while True:
        try:
            event = conn.recv(max(0.0, began + timeout - monotonic()))
        except TimeoutError:
            text = (
                "The session is open and the model is silent: the service is overloaded, or this is not it."
            )
            return Finding("turn", "failed", f"no answer within {timeout:g} s", text, monotonic() - began)
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "response.output_text.delta":
            first = monotonic() - began if first is None else first
            words += str(event.get("delta", ""))
        elif kind == "error":
            return _refused(event.get("error"), monotonic() - began)
        elif kind == "response.done":
            response = event.get("response") or {}
            if response.get("status") not in ("completed", "incomplete"):
                details = response.get("status_details") or {}
                return _refused(details.get("error") or details, monotonic() - began)
            detail = f"answered {' '.join(words.split())[:60]!r}"
            if first is not None:
                detail += f", the first word after {first * 1000:.0f} ms"
            return Finding("turn", "ok", detail, "", monotonic() - began)


def _refused(error: Any, seconds: float) -> Finding:
    said = error if isinstance(error, dict) else {}
    code = str(said.get("code") or said.get("type") or "")
    message = " ".join(str(said.get("message") or said.get("reason") or "no reason given").split())
    shown = f"{message} ({code})" if code and code not in message else message
    text = f"the server does not answer: {redact(shown)}"
    return Finding("turn", "failed", text, advice.of_answer(code, message), seconds)


def _reset(pool: RealtimePool, timeout: float) -> Finding:
    began = monotonic()
    while monotonic() < began + timeout:
        stats = pool.stats()
        resets = stats.counters.resets
        if resets["ok"]:
            text = "everything the session left was cleared, and that was proved"
            return Finding("reset", "ok", text, "", stats.counters.reset.sum)
        outcome = next((outcome for outcome, count in resets.items() if count), None)
        if outcome is not None:
            said = [event.message for event in pool.events() if event.kind == "reset_failed"]
            detail = said[0] if said else outcome
            return Finding("reset", "failed", detail, advice.of_reset(outcome), monotonic() - began)
        if not stats.active_sessions and not stats.resetting and not stats.idle:
            reasons = [event.reason for event in pool.events() if event.kind == "closed"]
            detail = f"the connection was closed instead: {reasons[-1] if reasons else 'lost'}"
            return Finding("reset", "failed", detail, advice.of_reset("lost"), monotonic() - began)
        time.sleep(LOOK)
    text = f"no end of it within {timeout:g} s"
    return Finding("reset", "failed", text, advice.of_reset("silent"), monotonic() - began)


def _reuse(conn: RealtimeConnection, first: int, seconds: float, opened: float) -> Finding:
    if conn.id != first:
        text = "The pool opened another connection: see its log for why it retired the first."
        return Finding("reuse", "failed", "the connection did not serve again", text, seconds)
    detail = f"the same connection, ready in {seconds * 1000:.1f} ms instead of {opened * 1000:.0f} ms"
    return Finding("reuse", "ok", detail, "", seconds)
