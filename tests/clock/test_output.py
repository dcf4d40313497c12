"""The slewed output by itself: continuous, increasing, invertible, and fixed behind its newest correction."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.clock.output import FAST_SLEW, FAST_SLEW_TIME_NS, SLEW_TIME_NS, SlewedOutput

US, MS, S = 1_000, 1_000_000, 1_000_000_000
LARGEST_SLEW = 0.001

rates = st.floats(-200e-6, 200e-6)
# Device time from one correction to the next (a correction may come at the same time again), offset, rate.
corrections = st.lists(st.tuples(st.integers(0, 3 * S), st.integers(-50 * MS, 50 * MS), rates), max_size=30)


def steered(rate: float, steps: list[tuple[int, int, float]], start_ns: int = 0) -> tuple[SlewedOutput, list[int]]:
    output, at_ns = SlewedOutput(start_ns, 0, rate, LARGEST_SLEW), start_ns
    times_ns = [start_ns]
    for gap_ns, offset_ns, new_rate in steps:
        at_ns += gap_ns
        output.steer(at_ns, offset_ns, new_rate)
        times_ns += at_ns - 1, at_ns, at_ns + 1, at_ns + SLEW_TIME_NS
    return output, sorted(times_ns)


def test_before_any_correction_the_output_is_one_line_in_both_directions() -> None:
    output = SlewedOutput(100 * S, 7, 10e-6)
    assert output.to_host(100 * S) == 100 * S + 7
    assert output.to_host(101 * S) == 101 * S + 7 + 10 * US
    assert output.to_host(99 * S) == 99 * S + 7 - 10 * US


@pytest.mark.parametrize("error_ns", [-100 * MS, -MS, MS, 100 * MS])
def test_a_correction_begins_where_the_output_was_and_ends_at_the_estimate(error_ns: int) -> None:
    output = SlewedOutput(0, 0, 0.0)
    output.steer(10 * S, error_ns, 0.0)
    assert output.to_host(10 * S) == 10 * S
    glide_ns = max(SLEW_TIME_NS, round(abs(error_ns) / LARGEST_SLEW))
    half = output.to_host(10 * S + glide_ns // 2) - (10 * S + glide_ns // 2)
    assert half == pytest.approx(error_ns / 2, abs=2)
    for after_ns in (0, S, 1000 * S):
        device_ns = 10 * S + glide_ns + after_ns
        assert output.to_host(device_ns) == pytest.approx(device_ns + error_ns, abs=2)


@given(rates, corrections)
def test_the_output_never_goes_backwards_and_never_jumps(rate: float, steps: list[tuple[int, int, float]]) -> None:
    output, times_ns = steered(rate, steps)
    grid_ns = sorted({*times_ns, *range(times_ns[0] - S, times_ns[-1] + 2 * S, 97 * MS)})
    for before_ns, after_ns in itertools.pairwise(grid_ns):
        elapsed_ns, host_ns = after_ns - before_ns, output.to_host(after_ns) - output.to_host(before_ns)
        assert host_ns >= 0
        assert abs(host_ns - elapsed_ns) <= elapsed_ns * (LARGEST_SLEW + 400e-6) + 3


@given(rates, corrections, st.integers(0, 3 * S), st.integers(-50 * MS, 50 * MS), rates)
def test_a_correction_changes_nothing_before_it(
    rate: float, steps: list[tuple[int, int, float]], gap_ns: int, offset_ns: int, new_rate: float
) -> None:
    output, times_ns = steered(rate, steps)
    at_ns = max([0, *(time_ns - SLEW_TIME_NS for time_ns in times_ns)]) + gap_ns
    earlier_ns = [time_ns for time_ns in [*times_ns, *range(-S, at_ns, 211 * MS)] if time_ns <= at_ns]
    before = [output.to_host(time_ns) for time_ns in earlier_ns]
    output.steer(at_ns, offset_ns, new_rate)
    assert [output.to_host(time_ns) for time_ns in earlier_ns] == before


def test_a_correction_before_the_first_knot_keeps_what_lies_before_it() -> None:
    output = SlewedOutput(10 * S, 0, 100e-6)
    before = [output.to_host(device_ns) for device_ns in (5 * S, 8 * S, 9 * S)]
    output.steer(9 * S, 20 * MS, 0.0)
    assert [output.to_host(device_ns) for device_ns in (5 * S, 8 * S, 9 * S)] == pytest.approx(before, abs=1)
    assert output.to_host(30 * S) == 30 * S + 20 * MS


@given(rates, corrections, st.lists(st.integers(-10 * S, 100 * S), min_size=1))
def test_to_device_inverts_to_host(rate: float, steps: list[tuple[int, int, float]], times_ns: list[int]) -> None:
    output, more_ns = steered(rate, steps)
    for device_ns in times_ns + more_ns:
        assert abs(output.to_device(output.to_host(device_ns)) - device_ns) <= 2


@given(st.floats(0.0001, 0.005), st.integers(MS, 100 * MS))
def test_a_correction_takes_as_long_as_the_largest_slew_asks_for(largest_slew: float, error_ns: int) -> None:
    output = SlewedOutput(0, 0, 0.0, largest_slew)
    output.steer(0, error_ns, 0.0)
    glide_ns = max(SLEW_TIME_NS, round(error_ns / largest_slew))
    for before_ns, after_ns in itertools.pairwise(range(0, glide_ns + glide_ns // 10, glide_ns // 10)):
        gained_ns = output.to_host(after_ns) - output.to_host(before_ns) - (after_ns - before_ns)
        assert gained_ns <= largest_slew * (after_ns - before_ns) + 2
    assert output.to_host(glide_ns) == pytest.approx(glide_ns + error_ns, abs=2)


@pytest.mark.parametrize("error_ns", [-30 * MS, -MS, MS, 30 * MS])
def test_a_fast_correction_is_over_sooner_and_still_never_goes_backwards(error_ns: int) -> None:
    output = SlewedOutput(0, 0, 0.0, LARGEST_SLEW)
    output.steer(10 * S, error_ns, 0.0, fast=True)
    glide_ns = max(FAST_SLEW_TIME_NS, round(abs(error_ns) / FAST_SLEW))
    assert glide_ns < round(abs(error_ns) / LARGEST_SLEW) or glide_ns < SLEW_TIME_NS
    times_ns = [output.to_host(10 * S + elapsed_ns) for elapsed_ns in range(0, 2 * glide_ns, 5 * MS)]
    assert all(before_ns < after_ns for before_ns, after_ns in itertools.pairwise(times_ns))
    assert output.to_host(10 * S + glide_ns) == pytest.approx(10 * S + glide_ns + error_ns, abs=2)
    assert output.to_host(10 * S) == 10 * S


def test_only_so_many_corrections_are_kept_and_the_newest_ones() -> None:
    output = SlewedOutput(0, 0, 0.0)
    sizes = []
    for number in range(1, 10_000):
        output.steer(number * 2 * S, (number % 3) * MS, 0.0)
        sizes.append(len(output._starts))
    assert max(sizes) == max(sizes[:5000]), "no more with time"
    assert len(output._starts) == len(output._hosts) == len(output._slopes)
    assert output.to_host(19_998 * S + 4 * SLEW_TIME_NS) == 19_998 * S + 4 * SLEW_TIME_NS + (9999 % 3) * MS
    # A minute ago is still as it was.
    assert output.to_host(19_938 * S) == 19_938 * S + (9968 % 3) * MS
