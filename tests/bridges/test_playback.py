"""How much was heard: both clocks, with a time of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpool_sync.bridges.playback import Cut, MarkedPlayback, PacedPlayback


def test_marks_come_after_a_tenth_of_a_second_and_at_the_end() -> None:
    clock = MarkedPlayback()
    assert clock.sent("a", 0, 60.0, 0.0) is None
    first = clock.sent("a", 0, 60.0, 0.0)
    assert first is not None
    assert clock.sent("a", 0, 60.0, 0.0) is None
    last = clock.end_item(0.0)
    assert last not in (None, first)
    assert clock.end_item(0.0) is None


def test_heard_is_what_was_acknowledged_and_the_time_since() -> None:
    clock = MarkedPlayback()
    first, _, _ = (clock.sent("a", 0, 200.0, 0.0) for _ in range(3))
    assert first is not None
    assert clock.reached(first, 0.25)
    assert clock.interrupt(0.30) == [Cut("a", 0, 250)]
    assert not clock.playing(0.30)


def test_heard_never_exceeds_the_piece_being_played() -> None:
    clock = MarkedPlayback()
    first, _ = (clock.sent("a", 0, 200.0, 0.0) for _ in range(2))
    assert first is not None
    assert clock.reached(first, 0.2)
    assert clock.interrupt(99.0) == [Cut("a", 0, 400)]


def test_without_any_mark_the_wall_clock_counts() -> None:
    clock = MarkedPlayback()
    for _ in range(20):
        clock.sent("a", 0, 200.0, 0.0)
    assert clock.interrupt(2.5) == [Cut("a", 0, 2500)]


def test_but_not_at_once() -> None:
    clock = MarkedPlayback()
    for _ in range(20):
        clock.sent("a", 0, 200.0, 0.0)
    assert clock.interrupt(0.9) == [Cut("a", 0, 200)]


def test_nothing_is_cut_when_everything_was_heard() -> None:
    clock = MarkedPlayback()
    mark = clock.sent("a", 0, 200.0, 0.0)
    assert mark is not None
    assert clock.playing(0.1)
    assert clock.reached(mark, 0.2)
    assert not clock.playing(0.2)
    assert clock.interrupt(0.3) == []
    assert clock.heard_ms == 200.0


def test_what_waits_behind_was_not_heard_at_all() -> None:
    clock = MarkedPlayback()
    clock.sent("a", 0, 200.0, 0.0)
    clock.sent("b", 0, 200.0, 0.0)
    clock.sent("b", 0, 200.0, 0.0)
    assert clock.interrupt(0.1) == [Cut("a", 0, 100), Cut("b", 0, 0)]


def test_marks_of_what_was_cleared_mean_nothing() -> None:
    clock = MarkedPlayback()
    old = clock.sent("a", 0, 200.0, 0.0)
    assert old is not None
    clock.interrupt(0.1)
    new = clock.sent("b", 0, 200.0, 0.2)
    assert new is not None
    assert new != old
    assert not clock.reached(old, 0.2)
    assert not clock.reached("nonsense", 0.2)
    assert clock.playing(0.2)
    assert clock.reached(new, 0.4)


def test_a_lost_mark_is_made_up_for_by_the_next() -> None:
    clock = MarkedPlayback()
    clock.sent("a", 0, 200.0, 0.0)
    second = clock.sent("a", 0, 200.0, 0.0)
    assert second is not None
    assert clock.reached(second, 0.4)
    assert not clock.playing(0.4)


def test_a_second_item_begins_when_the_first_was_heard() -> None:
    clock = MarkedPlayback()
    first = clock.sent("a", 0, 200.0, 0.0)
    clock.sent("b", 0, 200.0, 0.0)
    assert first is not None
    assert clock.reached(first, 0.25)
    assert clock.interrupt(0.375) == [Cut("b", 0, 125)]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(1.0, 500.0), st.floats(0.0, 0.3), st.booleans())),
    st.booleans(),
)
def test_never_more_than_was_sent(pieces: list[tuple[str, float, float, bool]], marked: bool) -> None:
    clock = MarkedPlayback() if marked else PacedPlayback(0.3)
    now = 0.0
    total: dict[str, float] = {}
    last = ""
    for item, ms, later, acknowledged in pieces:
        now += later
        if item != last:
            total[item], last = 0.0, item
        total[item] += ms
        mark = clock.sent(item, 0, ms, now)
        if mark is not None and acknowledged:
            clock.reached(mark, now)
    cuts = clock.interrupt(now + 0.1)
    assert len({cut.item_id for cut in cuts}) == len(cuts)
    if len(cuts) == 1 and len(total) == 1:
        assert 0 <= cuts[0].heard_ms <= total[cuts[0].item_id] + 1e-6
    assert not clock.playing(now + 0.1)


# -- paced


def test_no_more_than_the_lead_is_sent_ahead() -> None:
    clock = PacedPlayback(0.25)
    now = 0.0
    while clock.delay(now) == 0.0:
        clock.sent("a", 0, 100.0, now)
    assert now + clock.delay(now) == pytest.approx(0.05)
    assert clock.sent_ms("a", 0) == 300.0  # three pieces of 100 ms, of which 250 ms may be ahead


def test_heard_is_real_time() -> None:
    clock = PacedPlayback(0.3)
    for _ in range(4):
        clock.sent("a", 0, 100.0, 0.0)
    assert clock.playing(0.25)
    assert clock.interrupt(0.25) == [Cut("a", 0, 250)]
    assert clock.delay(0.25) == 0.0
    assert clock.interrupt(0.26) == []


def test_a_pause_counts_as_a_pause() -> None:
    clock = PacedPlayback(0.3)
    clock.sent("a", 0, 100.0, 0.0)
    clock.sent("a", 0, 100.0, 5.0)
    assert clock.interrupt(5.0625) == [Cut("a", 0, 162)]


def test_told_that_all_was_played() -> None:
    clock = PacedPlayback(0.3)
    clock.sent("a", 0, 300.0, 0.0)
    clock.finished(0.2)
    assert not clock.playing(0.2)
    assert clock.delay(0.2) == 0.0
    assert clock.heard_ms == 300.0
