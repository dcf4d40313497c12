"""When round trips are wanted."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.clock.plan import BURST_INTERVAL_NS, BURST_PINGS, PingPlan

MS, S = 1_000_000, 1_000_000_000


def follow(plan: PingPlan, pings: int, now_ns: int = 50 * S) -> list[int]:
    """Sends each round trip when it is due; the host times of that."""
    sent_ns = []
    for _ in range(pings):
        now_ns = max(now_ns, plan.next_ns())
        plan.sent(now_ns)
        sent_ns.append(now_ns)
    return sent_ns


def gaps(times_ns: list[int]) -> list[int]:
    return [after_ns - before_ns for before_ns, after_ns in pairwise(times_ns)]


def test_the_first_round_trip_is_wanted_at_once_and_begins_a_burst() -> None:
    plan = PingPlan(S)
    assert plan.next_ns() == 0
    assert gaps(follow(plan, BURST_PINGS)) == [BURST_INTERVAL_NS] * (BURST_PINGS - 1)


def settled(plan: PingPlan, pings: int, now_ns: int = 50 * S) -> list[int]:
    """As ``follow``, for so many after the burst and what slows down after it."""
    return follow(plan, BURST_PINGS + 20 + pings, now_ns)[-pings:]


@pytest.mark.parametrize("interval_ns", [500 * MS, S, 10 * S])
def test_after_the_burst_round_trips_become_rarer_until_it_is_one_an_interval(interval_ns: int) -> None:
    gaps_ns = gaps(follow(PingPlan(interval_ns), BURST_PINGS + 40))[BURST_PINGS - 1 :]
    reached = next(i for i, gap_ns in enumerate(gaps_ns) if gap_ns >= 0.75 * interval_ns)
    assert reached < 20
    assert gaps_ns[:reached] == sorted(gaps_ns[:reached])
    assert all(gap_ns >= BURST_INTERVAL_NS for gap_ns in gaps_ns)
    assert all(0.75 * interval_ns <= gap_ns <= 1.25 * interval_ns for gap_ns in gaps_ns[reached:])


@given(st.integers(200 * MS, 60 * S), st.integers(0, 2**62))
def test_the_interval_is_dithered_within_limits_and_right_on_average(interval_ns: int, now_ns: int) -> None:
    plan = PingPlan(interval_ns)
    assert plan.interval_ns == interval_ns
    gaps_ns = gaps(settled(plan, 201, now_ns))
    assert all(0.75 * interval_ns <= gap_ns <= 1.25 * interval_ns for gap_ns in gaps_ns)
    assert sum(gaps_ns) / 200 == pytest.approx(interval_ns, rel=0.02)
    assert max(gaps_ns) - min(gaps_ns) > 0.3 * interval_ns


@pytest.mark.parametrize("interval_ns", [S, 2 * S, 5 * S])
@pytest.mark.parametrize("period_ns", [20 * MS, 100 * MS, 102_400_000, S])
def test_round_trips_do_not_beat_with_anything_periodic(interval_ns: int, period_ns: int) -> None:
    parts = [0] * 5  # of the period in which a round trip was sent
    for time_ns in settled(PingPlan(interval_ns), 400):
        parts[time_ns % period_ns * 5 // period_ns] += 1
    assert min(parts) >= 20, "every phase is seen"


def test_a_burst_is_asked_for_at_once_and_ends_by_itself() -> None:
    plan = PingPlan(S)
    now_ns = settled(plan, 1)[-1]
    assert plan.next_ns() > now_ns + 5 * BURST_INTERVAL_NS
    plan.burst()
    assert plan.next_ns() == 0
    sent_ns = follow(plan, BURST_PINGS + 20, now_ns + 7)
    assert sent_ns[0] == now_ns + 7
    gaps_ns = gaps(sent_ns)
    assert gaps_ns[: BURST_PINGS - 1] == [BURST_INTERVAL_NS] * (BURST_PINGS - 1)
    assert gaps_ns[BURST_PINGS] > BURST_INTERVAL_NS
    assert gaps_ns[-1] >= 0.75 * S


def test_a_burst_that_is_asked_for_during_a_burst_does_not_prolong_or_hasten_it() -> None:
    plan, now_ns = PingPlan(S), 50 * S
    for number in range(BURST_PINGS):
        plan.burst()
        assert plan.next_ns() == (now_ns if number else 0)
        plan.sent(max(now_ns, plan.next_ns()))
        now_ns += BURST_INTERVAL_NS
    assert plan.next_ns() >= now_ns, "the burst is over"
    assert max(gaps(follow(plan, 20, now_ns))) >= 0.75 * S
