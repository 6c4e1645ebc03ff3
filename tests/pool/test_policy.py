"""The decisions without side effects: when to try again, until when to lend, how many to open."""

from __future__ import annotations

from typing import Any

import pytest

from rtpool_sync.policy import Backoff, usable_until, wanted

# -- back-off


def backoff(spread: float = 0.5) -> Backoff:
    """The random number 0.5 takes nothing off and adds nothing."""
    return Backoff(random=lambda: spread)


def test_the_first_attempt_may_be_made_at_once() -> None:
    assert backoff().next_try(asked=True) <= 0.0


def test_delays_double_up_to_a_ceiling() -> None:
    retry = backoff()
    delays = []
    for _ in range(9):
        retry.failed(100.0)
        delays.append(retry.retry_at - 100.0)
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert retry.failures == 9


def test_a_permanent_error_has_a_lower_ceiling() -> None:
    retry = backoff()
    delays = []
    for _ in range(7):
        retry.failed(0.0, permanent=True)
        delays.append(retry.retry_at)
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize(("drawn", "delay"), [(0.0, 0.75), (0.5, 1.0), (1.0, 1.25)])
def test_delays_are_spread_by_a_quarter(drawn: float, delay: float) -> None:
    retry = Backoff(first=1.0, random=lambda: drawn)
    retry.failed(0.0)
    assert retry.retry_at == delay


@pytest.mark.parametrize(("asked", "waited"), [(7.0, 7.0), (0.1, 0.25), (3600.0, 3600.0), (None, 0.25)])
def test_what_the_server_asks_for_is_obeyed(asked: float | None, waited: float) -> None:
    retry = backoff()
    retry.failed(0.0, retry_after=asked)
    assert retry.retry_at == waited


def test_ready_at_the_time_and_not_before() -> None:
    retry = backoff()
    retry.failed(10.0)
    assert retry.next_try(asked=True) == retry.next_try(asked=False) == 10.25


def test_success_forgets_everything() -> None:
    retry = backoff()
    for _ in range(5):
        retry.failed(0.0)
    retry.succeeded()
    assert retry.failures == 0
    assert retry.next_try(asked=True) == retry.next_try(asked=False) == 0.0
    retry.failed(0.0)
    assert retry.retry_at == 0.25


def test_ten_thousand_failures_are_no_overflow() -> None:
    retry = backoff()
    for _ in range(10_000):
        retry.failed(0.0)
    assert retry.retry_at == 30.0


# -- until when a connection may be lent


@pytest.mark.parametrize(
    ("settings", "drawn", "until"),
    [
        # max_connection_age less min_session_time, for a session must find that much life
        ({"max_age": 3600.0, "min_session_time": 600.0, "server_life": None}, 0.0, (3000.0, "age")),
        ({"max_age": 3600.0, "min_session_time": 0.0, "server_life": None}, 0.0, (3600.0, "age")),
        # minus 0 to 5 %
        ({"max_age": 1000.0, "min_session_time": 0.0, "server_life": None}, 1.0, (950.0, "age")),
        ({"max_age": 1000.0, "min_session_time": 100.0, "server_life": None}, 0.5, (875.0, "age")),
        # an age without room for a session only says when to stop reusing
        ({"max_age": 5.0, "min_session_time": 600.0, "server_life": None}, 0.0, (5.0, "age")),
        # the server's own limit wins if earlier…
        ({"max_age": 3600.0, "min_session_time": 600.0, "server_life": 1800.0}, 0.0, (1200.0, "expiry")),
        ({"max_age": 3600.0, "min_session_time": 600.0, "server_life": 500.0}, 0.0, (-100.0, "expiry")),
        # …and only then
        ({"max_age": 3600.0, "min_session_time": 600.0, "server_life": 3600.0}, 0.0, (3000.0, "age")),
        ({"max_age": 3600.0, "min_session_time": 600.0, "server_life": 9999.0}, 0.0, (3000.0, "age")),
        # the jitter can make the age the earlier one, or the server's limit
        ({"max_age": 1000.0, "min_session_time": 0.0, "server_life": 960.0}, 1.0, (950.0, "age")),
        ({"max_age": 1000.0, "min_session_time": 0.0, "server_life": 960.0}, 0.0, (960.0, "expiry")),
    ],
)
def test_usable_until(settings: dict[str, Any], drawn: float, until: tuple[float, str]) -> None:
    moment, why = usable_until(50.0, **settings, random=lambda: drawn)
    assert (moment - 50.0, why) == (pytest.approx(until[0]), until[1])


# -- how many to open

NOTHING: dict[str, int] = {
    "waiting": 0,
    "min_idle": 0,
    "idle": 0,
    "coming": 0,
    "total": 0,
    "max_connections": 10,
    "dialing": 0,
    "max_dialing": 4,
}


@pytest.mark.parametrize(
    ("state", "count"),
    [
        ({}, 0),
        ({"waiting": 1}, 1),
        ({"waiting": 3}, 3),
        ({"waiting": 9}, 4),  # so many at a time
        ({"waiting": 9, "dialing": 3, "coming": 3, "total": 3}, 1),
        ({"waiting": 9, "dialing": 4, "coming": 4, "total": 4}, 0),
        ({"waiting": 3, "coming": 2, "total": 2}, 1),  # those are for two of them
        ({"waiting": 2, "coming": 3, "total": 3}, 0),
        ({"waiting": 5, "total": 8}, 2),  # max_connections
        ({"waiting": 5, "total": 10}, 0),
        ({"waiting": 5, "total": 12}, 0),  # after resize() there may be more than that
        ({"min_idle": 3}, 3),
        ({"min_idle": 3, "idle": 2, "total": 2}, 1),
        ({"min_idle": 3, "idle": 5, "total": 5}, 0),
        ({"min_idle": 2, "total": 9}, 1),
        ({"min_idle": 2, "waiting": 1, "total": 4}, 3),  # the reserve is kept besides those who wait
        ({"waiting": 5, "max_dialing": 1}, 1),  # while connecting fails
        ({"waiting": 5, "max_dialing": 1, "dialing": 2, "coming": 2, "total": 2}, 0),
    ],
)
def test_wanted(state: dict[str, int], count: int) -> None:
    assert wanted(**{**NOTHING, **state}) == count


def test_after_a_permanent_error_the_reserve_waits_for_longer_than_a_caller() -> None:
    retry = backoff()
    retry.failed(10.0, permanent=True)
    assert retry.next_try(asked=True) == 10.25
    assert retry.next_try(asked=False) >= 10.25 + 30.0
    retry.succeeded()
    assert retry.next_try(asked=False) == 0.0
