"""Getting ready, the settings of a checkout, and the end: every answer to each of their steps."""

from __future__ import annotations

import copy
import json
from types import MappingProxyType
from typing import Any

import pytest
from realtime_model import DEFAULTS, TRANSCRIPTION

from rtpool_sync.errors import (
    AuthenticationError,
    ConnectError,
    ModelError,
    RateLimited,
    RtpoolError,
    SessionExpired,
    SessionRejected,
)
from rtpool_sync.protocols.base import RESET_OUTCOMES, Failure
from rtpool_sync.protocols.realtime import RealtimeProtocol, RealtimeSession

CREATED = {"type": "session.created", "session": DEFAULTS}


def follow(session: Any = None, time: float = 0.0) -> RealtimeSession:
    return RealtimeProtocol().follow(session=session or {}, reset_timeout=5.0, time=lambda: time)


def feed(protocol: RealtimeSession, *events: Any, now: float = 0.0) -> None:
    for event in events:
        protocol.feed(event if isinstance(event, (str, bytes)) else json.dumps(event), now)


def sent(protocol: RealtimeSession) -> list[Any]:
    return [json.loads(message) for message in protocol.outgoing()]


def updated(**changes: Any) -> dict[str, Any]:
    return {"type": "session.updated", "session": {**copy.deepcopy(DEFAULTS), **changes}}


def error(code: str | None = None, message: str = "no", **more: Any) -> dict[str, Any]:
    return {
        "type": "error",
        "error": {"type": "invalid_request_error", "code": code, "message": message, **more},
    }


def ready(session: Any = None, time: float = 0.0) -> RealtimeSession:
    protocol = follow(time=time)
    protocol.prepare(0.0)
    feed(protocol, CREATED if session is None else {"type": "session.created", "session": session})
    assert not protocol.pending
    return protocol


def failed(protocol: RealtimeSession) -> Failure:
    assert not protocol.pending
    assert protocol.wake_at is None
    assert protocol.failure is not None
    assert protocol.failure.outcome in RESET_OUTCOMES
    assert protocol.outgoing() == []
    return protocol.failure


# -- the protocol object


def test_what_the_pool_asks_of_the_protocol() -> None:
    assert (RealtimeProtocol.name, RealtimeProtocol.needs_key, RealtimeProtocol.transparent) == (
        "realtime",
        True,
        False,
    )
    protocol = RealtimeProtocol().follow(session={}, reset_timeout=1.0)
    assert (protocol.session_id, protocol.expires_at, protocol.pending) == (None, None, False)


# -- prepare


def test_ready_is_session_created() -> None:
    protocol = follow()
    protocol.prepare(0.0)
    assert protocol.pending
    assert protocol.wake_at is None  # its whole time is limited by the driver
    assert sent(protocol) == []
    feed(protocol, {"type": "conversation.created"}, CREATED)
    assert not protocol.pending
    assert protocol.failure is None
    assert protocol.session_id == "sess_1"
    assert protocol.expires_at == 1_800_000_000
    assert protocol.snapshot["instructions"] == ""
    assert not {"id", "object", "model", "expires_at"} & protocol.snapshot.keys()


@pytest.mark.parametrize(
    ("created", "wanted", "asked"),
    [
        (DEFAULTS, {"instructions": "Be kind."}, {"type": "realtime", "instructions": "Be kind."}),
        (DEFAULTS, {"type": "realtime", "speed": 2}, {"type": "realtime", "speed": 2}),
        (TRANSCRIPTION, {"include": []}, {"type": "transcription", "include": []}),
        ({"id": "sess_1"}, {"include": []}, {"type": "realtime", "include": []}),
    ],
)
def test_the_pools_settings_are_applied_and_become_the_snapshot(
    created: Any, wanted: Any, asked: Any
) -> None:
    protocol = follow(wanted)
    protocol.prepare(0.0)
    feed(protocol, {"type": "session.created", "session": created})
    assert protocol.pending
    (update,) = sent(protocol)
    assert update.pop("event_id").startswith("rtpool_")
    assert update == {"type": "session.update", "session": asked}
    feed(protocol, {"type": "session.created", "session": created}, {"type": "conversation.created"})
    assert protocol.pending
    feed(protocol, updated(instructions="Be kind.", expires_at=7))
    assert not protocol.pending
    assert protocol.failure is None
    assert protocol.snapshot["instructions"] == "Be kind."
    assert protocol.expires_at == 7


def test_answers_before_there_was_a_question_are_no_answers() -> None:
    protocol = follow({"instructions": "Be kind."})
    protocol.prepare(0.0)
    feed(protocol, updated(), CREATED)
    assert protocol.pending
    feed(protocol, updated(instructions="Be kind."))
    assert not protocol.pending
    assert protocol.snapshot["instructions"] == "Be kind."


def test_silence_is_the_drivers_to_limit() -> None:
    protocol = follow({"instructions": "Be kind."})
    protocol.prepare(0.0)
    protocol.tick(1e9)
    assert protocol.pending
    feed(protocol, CREATED)
    protocol.tick(1e9)
    assert protocol.pending


@pytest.mark.parametrize(
    ("kind", "permanent"), [("invalid_request_error", True), ("server_error", False), (None, True)]
)
def test_refused_settings_of_the_pool_quote_the_server(kind: str | None, permanent: bool) -> None:
    protocol = follow({"instructions": 7})
    protocol.prepare(0.0)
    feed(protocol, CREATED, error("invalid_type", "instructions: not a string", type=kind))
    failure = failed(protocol)
    assert failure.outcome == "refused"
    assert isinstance(failure.error, ConnectError)
    assert (failure.error.kind, failure.error.permanent, failure.error.code) == (
        "session",
        permanent,
        "invalid_type",
    )
    assert "instructions: not a string" in str(failure.error)


ERRORS: list[tuple[dict[str, Any], type[ConnectError], str, bool]] = [
    (error("invalid_api_key", "Incorrect API key: sk-secret123"), AuthenticationError, "auth", True),
    (error(None, type="authentication_error"), AuthenticationError, "auth", True),
    (error("missing_model"), ModelError, "model", True),
    (error("invalid_model"), ModelError, "model", True),
    (error("model_not_found"), ModelError, "model", True),
    (error("rate_limit_exceeded"), RateLimited, "rate_limit", False),
    (error("session_limit_reached"), RateLimited, "rate_limit", False),
    (error("insufficient_quota"), RateLimited, "rate_limit", True),
    (error("credit_balance_exhausted"), RateLimited, "rate_limit", True),
    (error("beta_api_shape_disabled"), ConnectError, "session", True),
]


@pytest.mark.parametrize(("event", "type_", "kind", "permanent"), ERRORS)
def test_errors_in_place_of_session_created(event: Any, type_: Any, kind: str, permanent: bool) -> None:
    for close_code in (4000, None):  # the close that follows, or none
        protocol = follow()
        protocol.prepare(0.0)
        feed(protocol, event, now=1.0)
        assert protocol.pending  # for the close
        assert protocol.wake_at is not None
        assert protocol.wake_at <= 1.25
        if close_code is None:
            protocol.tick(protocol.wake_at)
        else:
            protocol.closed(close_code, "invalid_request_error.whatever")
        found: Any = failed(protocol).error
        assert type(found) is type_
        assert (found.kind, found.permanent, found.code) == (kind, permanent, event["error"]["code"])
        assert found.close_code == close_code
        assert "sk-secret" not in str(found)


@pytest.mark.parametrize(
    ("seen", "code", "reason", "type_", "permanent", "said"),
    [
        (None, 3000, "invalid_request_error.invalid_api_key", AuthenticationError, True, "invalid_api_key"),
        (None, 3000, "", AuthenticationError, True, None),
        (error(None, "Invalid realtime token"), 3000, "x", AuthenticationError, True, None),
        (None, 4000, "invalid_request_error.missing_model", ModelError, True, "missing_model"),
        (None, 4000, "invalid_request_error", ConnectError, True, None),
        (
            error("odd", "Odd."),
            4000,
            "invalid_request_error.invalid_model",
            ModelError,
            True,
            "invalid_model",
        ),
        (error("odd", "Odd."), 4000, "", ConnectError, True, "odd"),
        (None, 4004, "", ModelError, True, None),
        (None, 1008, "session_limit_reached", RateLimited, False, "session_limit_reached"),
        (None, 1008, "policy", ConnectError, False, None),
        (error("odd", "Odd."), 1011, "", ConnectError, False, "odd"),
        (None, 1011, "", type(None), None, None),
        (None, 1001, "your session hit the maximum duration", type(None), None, None),
    ],
)
def test_closes_in_place_of_session_created(
    seen: Any, code: int, reason: str, type_: Any, permanent: Any, said: Any
) -> None:
    protocol = follow()
    protocol.prepare(0.0)
    if seen is not None:
        feed(protocol, seen)
    found: Any = protocol.closed(code, reason)
    assert type(found) is type_
    failure = failed(protocol)
    assert (failure.outcome, failure.error) == ("lost", found)
    if found is not None:
        assert (found.permanent, found.code, found.close_code) == (permanent, said, code)


def test_an_unknown_error_is_fatal_only_if_no_session_follows() -> None:
    protocol = follow()
    protocol.prepare(0.0)
    feed(protocol, error("odd", "Odd."), now=1.0)
    assert protocol.wake_at == 6.0
    protocol.tick(5.0)
    assert protocol.pending
    protocol.tick(6.0)
    found: Any = failed(protocol).error
    assert (type(found), found.permanent, found.code, found.kind) == (ConnectError, False, "odd", "session")
    assert "Odd." in str(found)

    protocol = follow()
    protocol.prepare(0.0)
    feed(protocol, error("odd"), CREATED, now=1.0)
    assert not protocol.pending
    assert protocol.failure is None


@pytest.mark.parametrize("message", ["no json", "[]", "1", b"\xff", '{"a":' * 100_000])
def test_what_is_no_event(message: Any) -> None:
    protocol = follow()
    protocol.prepare(0.0)
    feed(protocol, message)
    failure = failed(protocol)
    assert failure.outcome == "untracked"
    assert isinstance(failure.error, ConnectError)


def test_a_pool_does_not_speak_by_itself() -> None:
    settings = copy.deepcopy(DEFAULTS)
    settings["audio"]["input"]["turn_detection"]["idle_timeout_ms"] = 6000
    protocol = follow()
    protocol.prepare(0.0)
    feed(protocol, {"type": "session.created", "session": settings})
    found: Any = failed(protocol).error
    assert (found.kind, found.permanent) == ("session", True)
    assert "idle_timeout_ms" in str(found)


def test_nothing_is_pending_any_more() -> None:
    protocol = ready()
    feed(protocol, "no json")  # not ours to judge: nothing is under way
    protocol.tick(0.0)
    assert protocol.failure is None


# -- configure


def test_no_settings_take_no_time() -> None:
    protocol = ready()
    protocol.configure({}, 0.0)
    assert not protocol.pending
    assert protocol.failure is None
    assert sent(protocol) == []


def configuring() -> RealtimeSession:
    protocol = ready()
    protocol.configure({"instructions": "Be brief."}, 0.0)
    assert protocol.pending
    assert protocol.wake_at is None
    return protocol


def test_settings_of_a_checkout() -> None:
    protocol = configuring()
    (update,) = sent(protocol)
    del update["event_id"]
    assert update == {"type": "session.update", "session": {"type": "realtime", "instructions": "Be brief."}}
    feed(protocol, {"type": "rate_limits.updated"}, {"type": "conversation.created"}, CREATED)
    assert protocol.pending
    feed(protocol, updated(instructions="Be brief."))
    assert not protocol.pending
    assert protocol.failure is None
    assert protocol.effective["instructions"] == "Be brief."
    assert protocol.snapshot["instructions"] == ""


@pytest.mark.parametrize("event_id", [None, "ours", "event_of_the_server"])
def test_refused_settings_of_a_checkout_quote_the_server(event_id: str | None) -> None:
    protocol = configuring()
    (update,) = sent(protocol)
    name = update["event_id"] if event_id == "ours" else event_id
    feed(protocol, error("invalid_value", "Brief is bad.", param="session.instructions", event_id=name))
    failure = failed(protocol)
    found: Any = failure.error
    assert failure.outcome == "refused"
    assert isinstance(found, SessionRejected)
    assert (found.code, found.param) == ("invalid_value", "session.instructions")
    assert "Brief is bad." in str(found)
    assert protocol.track.requests == []


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        (["no json"], "untracked"),
        ([{"no": "type"}], "untracked"),
        ([{"type": "session.created", "session": {"id": "sess_2"}}], "untracked"),
        ([{"type": "input_audio_buffer.cleared"}], "untracked"),
        ([{"type": "conversation.item.added", "item": {"id": "a"}}], "mismatch"),
        ([error("session_expired")], "lost"),
        ([error(None, "odd")], "refused"),
    ],
)
def test_settings_of_a_checkout_that_cannot_be_trusted(events: Any, outcome: str) -> None:
    protocol = configuring()
    feed(protocol, *events)
    assert failed(protocol).outcome == outcome


def test_settings_that_no_server_can_be_asked_for() -> None:
    for bad in ({"instructions": object()}, {"speed": float("nan")}):
        protocol = ready()
        with pytest.raises((TypeError, ValueError)):
            protocol.configure(bad, 0.0)
        assert not protocol.pending
        assert sent(protocol) == []
        protocol = follow(bad)
        protocol.prepare(0.0)
        feed(protocol, CREATED)
        found: Any = failed(protocol).error
        assert (found.kind, found.permanent) == ("session", True)


def test_settings_may_be_any_mapping() -> None:
    protocol = ready()
    protocol.configure(MappingProxyType({"audio": MappingProxyType({"output": {"speed": 2}})}), 0.0)
    (update,) = sent(protocol)
    assert update["session"] == {"type": "realtime", "audio": {"output": {"speed": 2}}}


def test_another_voice_needs_a_connection_that_has_not_spoken() -> None:
    wanted = {"audio": {"output": {"voice": "marin"}}}
    protocol = ready()
    protocol.received({"type": "response.output_audio.delta", "response_id": "r", "item_id": "i"})
    protocol.configure(wanted, 0.0)
    failure = failed(protocol)
    assert (failure.outcome, failure.error) == ("locked", None)
    assert protocol.track.requests == []
    protocol.configure({"audio": {"output": {"voice": "alloy"}}}, 0.0)
    assert protocol.pending


def test_lost_meanwhile() -> None:
    protocol = configuring()
    assert protocol.closed(1006, "sk-abcdefgh broke") is None
    failure = failed(protocol)
    assert failure.outcome == "lost"
    assert failure.message == "the server closed the connection with 1006 *** broke"


# -- the end

EXPIRED = error("session_expired", "Your session hit the maximum duration of 60 minutes.")


@pytest.mark.parametrize(
    ("seen", "code", "reason", "time", "type_"),
    [
        (EXPIRED, 1001, "", 0.0, SessionExpired),
        (EXPIRED, 1006, "", 0.0, SessionExpired),
        (None, 1001, "Your session hit the maximum duration of 60 minutes.", 0.0, SessionExpired),
        (None, 1001, "invalid_request_error.session_expired", 0.0, SessionExpired),
        (None, 1001, "", 1_800_000_000.0, SessionExpired),
        (None, 1001, "", 1_799_999_000.0, type(None)),
        (None, 1000, "", 1_800_000_000.0, type(None)),
        (None, 1011, "keepalive ping timeout", 0.0, type(None)),
        (None, 3000, "", 0.0, type(None)),
    ],
)
@pytest.mark.parametrize("undecoded", [False, True])
def test_the_end_of_a_session(
    seen: Any, code: int, reason: str, time: float, type_: Any, undecoded: bool
) -> None:
    protocol = ready(time=time)
    if seen is not None:
        assert protocol.received_text(json.dumps(seen)) if undecoded else protocol.received(seen)
    found: Any = protocol.closed(code, reason)
    assert type(found) is type_
    if found is not None:
        assert isinstance(found, RtpoolError)
        assert (found.code, found.reason) == (code, reason)


def test_without_an_expiry_1001_is_any_close() -> None:
    protocol = ready({"id": "sess_1", "expires_at": None}, time=1e12)
    assert protocol.expires_at is None
    assert protocol.closed(1001, "") is None


def test_expired_while_idle() -> None:
    protocol = ready()
    assert not protocol.stray(json.dumps(EXPIRED))
    assert isinstance(protocol.closed(1001, ""), SessionExpired)
