"""The memory of round trips: what all of them allow, and which of them are not believed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.clock.pings import CAPACITY, Carried, PingMemory

US, MS = 1e3, 1e6


def carried(lowest_ns: list[float], highest_ns: list[float], deviation_ns: float = 0.0) -> Carried:
    count = len(lowest_ns)
    return Carried(
        np.array(lowest_ns),
        np.array(highest_ns),
        np.full(count, deviation_ns),
        np.zeros(count, dtype=np.int64),
        np.zeros(count, dtype=bool),
    )


def waits(count: int, seed: int = 1, scale_ns: float = 0.3 * MS) -> tuple[list[float], list[float]]:
    """The lowest and highest offsets of round trips whose true offset is 0."""
    noise = np.random.default_rng(seed)
    lowest, highest = -MS - noise.exponential(scale_ns, count), MS + noise.exponential(scale_ns, count)
    return lowest.tolist(), highest.tolist()


# --- what all allow --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), min_size=1, max_size=50))
def test_what_all_allow_is_between_the_highest_lowest_and_the_lowest_highest(sides: list[tuple[float, float]]) -> None:
    interval = carried([-low for low, _ in sides], [high for _, high in sides]).interval(4.0)
    assert interval.lowest_ns == -min(low for low, _ in sides)
    assert interval.highest_ns == min(high for _, high in sides)


def test_each_is_widened_by_how_badly_it_was_carried() -> None:
    memory = Carried(
        np.array([-2 * MS, -MS]),
        np.array([2 * MS, 3 * MS]),
        np.array([0.0, 0.5 * MS]),
        np.zeros(2, dtype=np.int64),
        np.zeros(2, dtype=bool),
    )
    assert memory.interval(0.0) == (-MS, 2 * MS)
    assert memory.interval(1.0) == (-1.5 * MS, 2 * MS)
    assert memory.interval(4.0) == (-2 * MS, 2 * MS)


def test_without_a_curve_the_rate_is_anything_about_zero() -> None:
    memory = PingMemory()
    memory.add(10.0, -MS, MS, 0, None)
    memory.add(12.0, -0.5 * MS, 0.5 * MS, 0, None)
    plain = memory.plain(12.0, 100_000.0)
    assert list(plain.deviation_ns) == [200_000.0, 0.0]
    assert plain.interval(2.0) == (-0.5 * MS, 0.5 * MS)


def test_those_that_followed_another_at_once_are_even_and_tell_the_middle_once_there_are_enough() -> None:
    """On a link with slots a ping may catch its slot, but its reply never does; second pings wait as long as theirs."""
    memory, slot_ns = PingMemory(), 15 * MS
    for i in range(4):
        memory.add(2.0 * i, -0.1 * MS, slot_ns, 0, None)
        memory.add(2.0 * i + 0.03, -slot_ns, slot_ns, 0, None, follows=True)
    assert memory.plain(8.0, 0.0).evenly().interval(0.0) == (-0.1 * MS, slot_ns), "too few to go by"
    memory.add(8.0, -slot_ns, slot_ns, 0, None, follows=True)
    plain = memory.plain(8.0, 0.0)
    assert plain.evenly().interval(0.0) == (-slot_ns, slot_ns)
    assert plain.interval(0.0) == (-0.1 * MS, slot_ns), "the bound rests on all"


def test_what_precedes_an_era_can_be_left_out_or_forgotten() -> None:
    memory = PingMemory()
    for i in range(10):
        memory.add(float(i), -MS - i, MS + i, i // 5, None)
    assert len(memory.plain(9.0, 0.0).since(1).era) == 5
    memory.forget_before(1)
    assert len(memory) == 5
    assert memory.plain(9.0, 0.0).interval(0.0) == (-MS - 5, MS + 5)
    memory.forget_half()
    assert len(memory) == 2
    assert memory.plain(9.0, 0.0).interval(0.0) == (-MS - 8, MS + 8)
    for _ in range(5):
        memory.forget_half()
    assert len(memory) >= 0


# --- capacity --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32), st.integers(1, 5 * CAPACITY))
def test_the_memory_is_bounded_and_keeps_the_best_of_each_direction(seed: int, count: int) -> None:
    lowest, highest = waits(count, seed)
    memory = PingMemory()
    for i, (low, high) in enumerate(zip(lowest, highest, strict=True)):
        memory.add(float(i), low, high, 0, None)
        assert len(memory) <= CAPACITY
    assert len(memory) >= min(count, CAPACITY // 2)
    kept = memory.plain(float(count), 0.0)
    assert kept.interval(0.0) == (max(lowest), min(highest))


def test_the_newest_are_kept_as_they_are() -> None:
    lowest, highest = waits(3 * CAPACITY)
    memory = PingMemory()
    for i, (low, high) in enumerate(zip(lowest, highest, strict=True)):
        memory.add(float(i), low, high, 0, None)
    kept = memory.plain(0.0, 1.0)  # the deviation is the age
    newest = {float(i) for i in range(3 * CAPACITY - 100, 3 * CAPACITY)}
    assert newest <= set(kept.deviation_ns)


# --- loners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("scale_ns", [10 * US, 0.3 * MS, 20 * MS])
def test_honest_round_trips_are_all_believed(seed: int, scale_ns: float) -> None:
    lowest, highest = waits(100, seed, scale_ns)
    honest = carried(lowest, highest)
    assert honest.without_loners(20.0).interval(0.0) == honest.interval(0.0)


@pytest.mark.parametrize("corrupt", [1, 2, 4])
@pytest.mark.parametrize("off_ns", [5 * MS, 50 * MS, 1e12])
@pytest.mark.parametrize("side", [1, -1])
def test_a_few_that_say_much_more_than_all_others_are_left_out(corrupt: int, off_ns: float, side: int) -> None:
    lowest, highest = waits(100)
    honest = carried(lowest, highest).interval(0.0)
    for i in range(corrupt):
        shift_ns = side * off_ns * (1 + i / 50)
        lowest[10 + i] += shift_ns
        highest[10 + i] += shift_ns
    sifted = carried(lowest, highest).without_loners(20.0)
    assert sifted.interval(0.0).lowest_ns <= 0 <= sifted.interval(0.0).highest_ns
    assert sifted.interval(0.0).lowest_ns == pytest.approx(honest.lowest_ns, abs=50 * US)
    assert sifted.interval(0.0).highest_ns == pytest.approx(honest.highest_ns, abs=50 * US)
    assert len(sifted.era) >= 100 - corrupt


def test_a_reply_that_was_taken_for_that_of_a_later_request_is_left_out() -> None:
    lowest, highest = waits(100)
    lowest[50] = highest[50] - 0.05 * MS  # a round trip of next to no time
    sifted = carried(lowest, highest).without_loners(20.0)
    assert len(sifted.era) == 99
    assert sifted.interval(0.0).lowest_ns < 0


def test_what_may_be_off_because_of_its_age_is_no_loner() -> None:
    lowest, highest = waits(100)
    lowest[3], highest[3] = lowest[3] + 3 * MS, highest[3] + 3 * MS
    assert len(carried(lowest, highest, deviation_ns=MS).without_loners(20.0).era) == 100
    assert len(carried(lowest, highest).without_loners(20.0).era) == 99


@given(st.integers(1, 30), st.floats(-1e9, 1e9))
def test_there_are_always_some_left(count: int, value_ns: float) -> None:
    memory = carried([value_ns - 1e12 * i for i in range(count)], [value_ns + 1e12 * i for i in range(count)])
    assert len(memory.without_loners(20.0).era) >= max(1, count - 24)
