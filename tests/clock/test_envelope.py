"""What a window of constraints allows for the offset and for the rate."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.clock.envelope import BLOCK_NS, MEMORY_NS, PRIOR_RATE, WANDER_RATE, Constraint, Envelope

US, MS, S = 1_000, 1_000_000, 1_000_000_000


def test_one_constraint_allows_its_middle_and_half_its_width() -> None:
    envelope = Envelope()
    envelope.add(Constraint(50 * S, 100, 300))
    assert envelope.offset_at(50 * S) == (200, 100.0)
    offset_ns, bound_ns = envelope.offset_at(51 * S)
    assert offset_ns == 200
    assert bound_ns == pytest.approx(100 + S * PRIOR_RATE)


def test_two_constraints_allow_what_both_of_them_allow() -> None:
    envelope = Envelope()
    envelope.add(Constraint(50 * S, 0, 10 * MS))
    envelope.add(Constraint(51 * S, 8 * MS, 20 * MS))
    offset_ns, bound_ns = envelope.offset_at(51 * S)
    assert offset_ns == pytest.approx(9 * MS, abs=0.2 * MS)
    assert bound_ns <= MS + 0.2 * MS


def test_an_offset_of_fifty_years_is_exact_to_the_nanosecond() -> None:
    envelope, years_ns = Envelope(), -1_700_000_000 * S - 7
    envelope.add(Constraint(50 * S, years_ns - 3, years_ns + 3))
    assert envelope.offset_at(50 * S) == (years_ns, 3.0)


@given(
    st.integers(-150_000, 150_000),
    st.lists(st.tuples(st.integers(0, 20 * S), st.integers(0, 20 * MS), st.integers(0, 20 * MS)), min_size=1),
)
def test_the_true_rate_and_offset_are_within_their_bounds(rate_ppb: int, steps: list[tuple[int, int, int]]) -> None:
    envelope, device_ns = Envelope(), 0
    for gap_ns, below_ns, above_ns in steps:
        device_ns += gap_ns
        true_ns = 7 * S + device_ns * rate_ppb // S
        envelope.add(Constraint(device_ns, true_ns - below_ns, true_ns + above_ns))
        offset_ns, bound_ns = envelope.offset_at(device_ns)
        assert abs(offset_ns - true_ns) <= bound_ns + 2
        assert abs(envelope.rate - rate_ppb * 1e-9) <= envelope.rate_bound


def test_the_rate_bound_shrinks_to_the_wander_as_the_window_grows() -> None:
    envelope, noise = Envelope(), random.Random(1)
    bounds = []
    for second in range(121):
        true_ns = second * 50 * US
        envelope.add(Constraint(second * S, true_ns - noise.randint(0, 200 * US), true_ns + noise.randint(0, 200 * US)))
        bounds.append(envelope.rate_bound)
    assert bounds[0] == PRIOR_RATE
    assert bounds[20] < bounds[4] < PRIOR_RATE
    assert WANDER_RATE <= bounds[120] < 4e-6
    assert envelope.rate == pytest.approx(50e-6, abs=3e-6)


def test_of_each_second_the_tightest_constraint_is_kept() -> None:
    envelope = Envelope()
    envelope.add(Constraint(10 * S, -MS, MS))
    envelope.add(Constraint(10 * S + 300 * MS, -50 * US, 50 * US))
    envelope.add(Constraint(10 * S + 600 * MS, -9 * MS, 9 * MS))
    assert list(envelope.constraints) == [Constraint(10 * S + 300 * MS, -50 * US, 50 * US)]
    envelope.add(Constraint(11 * S, -9 * MS, 9 * MS))
    assert len(envelope.constraints) == 2


def test_what_is_older_than_the_memory_is_forgotten() -> None:
    envelope = Envelope()
    for second in range(500):
        envelope.add(Constraint(second * S, -MS, MS))
        assert len(envelope.constraints) <= MEMORY_NS // BLOCK_NS + 1
    assert envelope.constraints[0].device_ns == 499 * S - MEMORY_NS


def test_constraints_that_contradict_newer_ones_are_forgotten() -> None:
    envelope = Envelope()
    for second in range(20):
        envelope.add(Constraint(second * S, -10 * US, 10 * US))
    for second in range(20, 60):
        envelope.add(Constraint(second * S, 5 * MS - 10 * US, 5 * MS + 10 * US))
        offset_ns, bound_ns = envelope.offset_at(second * S)
        assert abs(offset_ns - 5 * MS) <= bound_ns + 100 * US
    assert envelope.offset_at(60 * S)[0] == pytest.approx(5 * MS, abs=100 * US)
    assert envelope.constraints[0].device_ns >= 20 * S


@given(st.lists(st.integers(0, 5 * S), min_size=1, max_size=40))
def test_device_times_in_any_order_leave_the_window_in_order(times_ns: list[int]) -> None:
    envelope = Envelope()
    for device_ns in times_ns:
        envelope.add(Constraint(device_ns, -10 * S, 10 * S))
        envelope.offset_at(device_ns)
    kept = [constraint.device_ns // BLOCK_NS for constraint in envelope.constraints]
    assert kept == sorted(set(kept))
