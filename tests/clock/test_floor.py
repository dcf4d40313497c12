"""The memory of a delay floor: bounded, in order, and without a bias that grows with age."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.clock.arrivals import ArrivalFloor
from bridge.clock.floor import FloorMemory, FloorPoint

MOST_POINTS = 120

points = st.builds(
    FloorPoint,
    x_s=st.just(0.0),
    y_ns=st.floats(-1e9, 1e9),
    blocks=st.floats(0.02, 1.0),
    weight=st.floats(0.0, 1.0),
    era=st.just(0),
)


def fresh() -> FloorMemory:
    """As a clock has it."""
    return ArrivalFloor().memory


def filled(count: int, *, rate_ns_s: float = 0.0, era_of: dict[int, int] | None = None) -> FloorMemory:
    memory, era = fresh(), 0
    for i in range(count):
        era = (era_of or {}).get(i, era)
        memory.add(FloorPoint(float(i), rate_ns_s * i, 1.0, 1.0, era))
    return memory


@settings(deadline=None, max_examples=30)
@given(st.lists(points, max_size=400))
def test_points_stay_in_order_few_and_within_what_was_added(added: list[FloorPoint]) -> None:
    memory = fresh()
    for i, point in enumerate(added):
        memory.add(point._replace(x_s=float(i)))
        assert len(memory) == len(memory.points()) <= MOST_POINTS
    kept = memory.points()
    assert all(a.x_s < b.x_s for a, b in pairwise(kept))
    for point in kept:
        assert min(p.y_ns for p in added) - 1e-6 <= point.y_ns <= max(p.y_ns for p in added) + 1e-6
        assert 0.0 <= point.weight <= 1.0


def test_new_points_stay_as_they_are_and_old_ones_are_averaged() -> None:
    memory = filled(200)
    newest = memory.newest()
    assert len(newest) >= 8, "no fewer than what the rate of now is made of"
    assert [point.x_s for point in newest] == [float(i) for i in range(200 - len(newest), 200)]
    assert all(point.blocks == 1.0 for point in newest)
    blocks = [point.blocks for point in memory.points()]
    assert blocks == sorted(blocks, reverse=True), "the older, the more"
    assert blocks[0] >= 4
    assert sum(blocks) == pytest.approx(200), "none is lost while there is room"


def test_ten_minutes_are_remembered_by_no_more_than_some_dozens_of_points() -> None:
    memory = filled(5000)
    oldest = memory.points()[0]
    assert 4999 - oldest.x_s > 500
    assert len(memory) <= MOST_POINTS


@given(st.floats(-1e5, 1e5))
def test_averages_lie_on_the_line_of_a_drifting_clock(rate_ns_s: float) -> None:
    for point in filled(500, rate_ns_s=rate_ns_s).points():
        assert point.y_ns == pytest.approx(rate_ns_s * point.x_s, abs=1e-3, rel=1e-9)


def test_the_excess_of_a_point_over_the_true_floor_does_not_depend_on_its_age() -> None:
    old, new = [], []
    for seed in range(60):
        noise, memory = random.Random(seed), fresh()
        for i in range(300):
            memory.add(FloorPoint(float(i), noise.expovariate(1e-3), 1.0, 1.0, 0))
        kept = memory.points()
        old += [point.y_ns for point in kept if point.blocks >= 4]
        new += [point.y_ns for point in kept if point.blocks == 1]
    assert len(old) > 300
    assert sum(old) / len(old) == pytest.approx(1000, rel=0.1)
    assert sum(new) / len(new) == pytest.approx(1000, rel=0.1)


def test_what_was_not_believed_does_not_count_in_an_average() -> None:
    memory = fresh()
    for i in range(300):
        late = i % 7 == 3
        memory.add(FloorPoint(float(i), 1e9 if late else 100.0, 1.0, 0.0 if late else 1.0, 0))
    averaged = [point for point in memory.points() if point.blocks > 1]
    assert len(averaged) > 20
    assert all(point.y_ns == pytest.approx(100.0) for point in averaged)


def test_points_of_two_eras_are_never_averaged() -> None:
    memory = filled(300, era_of={101: 1, 202: 2})
    eras = [point.era for point in memory.points()]
    assert eras == sorted(eras)
    assert set(eras) == {0, 1, 2}
    for point in memory.points():
        first, last = point.x_s - (point.blocks - 1) / 2, point.x_s + (point.blocks - 1) / 2
        assert (first >= 202, first >= 101) == (last >= 202, last >= 101)


def test_an_era_may_begin_in_the_past_and_what_precedes_one_may_be_forgotten() -> None:
    memory = filled(40)
    memory.begin_era(35.0, 7)
    assert [point.x_s for point in memory.points() if point.era == 7] == [35.0, 36.0, 37.0, 38.0, 39.0]
    memory.forget_before(7)
    assert [point.x_s for point in memory.points()] == [35.0, 36.0, 37.0, 38.0, 39.0]
    memory.add(FloorPoint(40.0, 0.0, 1.0, 1.0, 7))
    assert len(memory) == 6


def test_weights_are_set_oldest_first_and_the_newest_are_believed_again() -> None:
    memory = filled(100)
    weights = [i / 1000 for i in range(len(memory))]
    memory.believe(iter(weights))
    assert [point.weight for point in memory.points()] == weights
    memory.renew(3)
    assert [point.weight for point in memory.points()] == [*weights[:-3], 1.0, 1.0, 1.0]
    memory.renew(1000)
    assert all(point.weight == 1.0 for point in memory.newest())
