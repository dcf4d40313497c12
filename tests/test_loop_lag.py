"""How late the loop is: the worst of a second, of a minute and since the start."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.loop_lag import LoopLag

# What the daemon's task notes: how long after the last note, and how late that is.
NOTES = st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 100.0)), min_size=1, max_size=200)
STEADY = [(0.1, float(number % 7)) for number in range(700)]


def test_at_the_start_nothing_was_late() -> None:
    lag = LoopLag()
    assert lag.worst_s == 0.0
    assert lag.worst_since_s(1000.0, 60.0) == 0.0


def test_the_worst_since_the_start_stays_and_that_of_the_last_second_goes() -> None:
    lag = LoopLag()
    lag.note(1000.0, 0.5)
    assert (lag.worst_s, lag.worst_since_s(1000.0, 1.0)) == (0.5, 0.5)
    for tenth in range(1, 40):
        lag.note(1000.0 + tenth / 10, 0.01)
    assert (lag.worst_s, lag.worst_since_s(1003.9, 1.0)) == (0.5, 0.01)
    assert lag.worst_since_s(1003.9, 60.0) == 0.5
    assert lag.worst_since_s(1064.0, 60.0) == 0.0


@pytest.mark.parametrize("seconds", [1.0, 5.0, 60.0])
@given(notes=NOTES, start_s=st.floats(0.0, 1e6), later_s=st.floats(0.0, 90.0))
@example(notes=[(0.0, 9.0), *[(0.1, 0.0)] * 599], start_s=40.6, later_s=0.0)
@example(notes=STEADY, start_s=0.95, later_s=0.0)
def test_no_lag_of_the_time_is_missed_and_none_is_older_by_more_than_a_second(
    seconds: float, notes: list[tuple[float, float]], start_s: float, later_s: float
) -> None:
    lag, said, at_s = LoopLag(), list[tuple[float, float]](), start_s
    for after_s, late_s in notes:
        at_s += after_s
        lag.note(at_s, late_s)
        said.append((at_s, late_s))
    now_s = at_s + later_s
    slack_s = 1e-6  # of floats
    at_least = max((late_s for at_s, late_s in said if at_s >= now_s - seconds + slack_s), default=0.0)
    at_most = max((late_s for at_s, late_s in said if at_s > now_s - seconds - 1.0 - slack_s), default=0.0)
    assert at_least <= lag.worst_since_s(now_s, seconds) <= at_most
    assert lag.worst_s == max(late_s for _, late_s in said)


@given(NOTES)
def test_what_is_kept_is_bounded(notes: list[tuple[float, float]]) -> None:
    lag, at_s = LoopLag(), 0.0
    for after_s, late_s in notes * 5:
        at_s += after_s
        lag.note(at_s, late_s)
    assert len(lag._seconds) <= 62
