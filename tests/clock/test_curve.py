"""The fit of the offset's curve: what it finds, what it does not believe, and how sure it says it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.clock.curve import ARRIVALS, REPLIES, Break, Floats, Shift
from bridge.clock.fit import Fit, Points, Prior, Problem

SCATTER_NS = 1000.0


def fit(
    x_s: Sequence[float] | Floats,
    y_ns: Sequence[float] | Floats,
    *,
    family: int | Sequence[int] = ARRIVALS,
    era: int | Sequence[int] = 0,
    shifts: tuple[Shift, ...] = (),
    breaks: tuple[Break, ...] = (),
    wander: float = 10.0,
    end_s: float | None = None,
) -> Fit:
    return problem(x_s, y_ns, family, era, shifts, breaks, wander, end_s).solve()


def problem(
    x_s: Sequence[float] | Floats,
    y_ns: Sequence[float] | Floats,
    family: int | Sequence[int] = ARRIVALS,
    era: int | Sequence[int] = 0,
    shifts: tuple[Shift, ...] = (),
    breaks: tuple[Break, ...] = (),
    wander: float = 10.0,
    end_s: float | None = None,
) -> Problem:
    x, y = np.asarray(x_s, dtype=float), np.asarray(y_ns, dtype=float)
    ones = np.ones(len(x))
    points = Points(
        x,
        y,
        ones,
        ones,
        np.broadcast_to(family, len(x)).astype(np.int64),
        np.broadcast_to(era, len(x)).astype(np.int64),
    )
    prior = Prior((SCATTER_NS, SCATTER_NS), wander, 0.0, 100_000.0, shifts, breaks)
    return Problem(points, prior, float(x[-1]) + 1.0 if end_s is None else end_s)


X_S = np.arange(60.0)


@settings(deadline=None, max_examples=40)
@given(st.floats(-1e5, 1e5), st.floats(-1e9, 1e9), st.floats(0.0, 5.0))
def test_a_line_is_found_and_carried_on(rate_ns_s: float, level_ns: float, ahead_s: float) -> None:
    curve = fit(X_S, level_ns + rate_ns_s * X_S, end_s=59.0 + 1.0 + ahead_s).curve
    assert curve.rate_ns_s == pytest.approx(rate_ns_s, abs=1, rel=1e-5)
    asked_s = np.array([-3.0, 0.0, 7.5, 59.0, 59.7, 64.0])
    assert curve.at(asked_s) == pytest.approx(level_ns + rate_ns_s * asked_s, abs=20)
    assert curve.end_at(62.0) == pytest.approx(level_ns + rate_ns_s * 62.0, abs=20)


def test_how_sure_it_says_it_is_of_the_rate_is_true() -> None:
    noise = np.random.default_rng(1)
    errors = []
    for _ in range(200):
        curve = fit(X_S, 20_000 * X_S + noise.normal(0, SCATTER_NS, len(X_S)), wander=3.0).curve
        errors.append((curve.rate_ns_s - 20_000) / curve.rate_deviation_ns_s)
    # It allows for a wander that is not there, so it may be a little more certain than it says; never much less.
    assert 0.3 < float(np.std(errors)) < 1.3
    assert float(np.abs(errors).max()) < 4


def test_the_rate_of_a_clock_that_wanders_is_followed_as_sure_as_it_says() -> None:
    noise, x_s, wander = np.random.default_rng(2), np.arange(60.0), 100.0
    errors = []
    for _ in range(100):
        rate = np.cumsum(noise.normal(0, wander, len(x_s)))
        truth = np.concatenate(([0.0], np.cumsum(rate[:-1])))
        curve = fit(x_s, truth + noise.normal(0, SCATTER_NS, len(x_s)), wander=wander).curve
        errors.append((curve.rate_ns_s - rate[-1]) / curve.rate_deviation_ns_s)
    assert 0.5 < float(np.std(errors)) < 1.6


def test_late_points_hardly_count() -> None:
    noise = np.random.default_rng(3)
    y_ns = 20_000 * X_S + noise.normal(0, SCATTER_NS, len(X_S))
    plain = fit(X_S, y_ns).curve
    late = y_ns.copy()
    late[[5, 17, 18, 40, 55]] += 1e6
    found = fit(X_S, late)
    assert found.curve.at(X_S) == pytest.approx(plain.at(X_S), abs=SCATTER_NS)
    assert found.weight[[5, 17, 18, 40, 55]].max() < 0.01
    assert np.median(found.weight) > 0.5


def test_one_point_far_too_early_does_not_pull_the_curve_down() -> None:
    y_ns = 20_000 * X_S
    early = y_ns.copy()
    early[30] -= 1e8
    found = fit(X_S, early)
    assert found.weight[30] < 0.01
    assert abs(found.curve.at(np.array([30.0]))[0] - y_ns[30]) < 20 * SCATTER_NS


def test_the_floors_of_arrivals_and_of_round_trips_share_a_shape_but_not_a_height() -> None:
    x_s = np.arange(0.0, 60.0, 0.5)
    family = [ARRIVALS, REPLIES] * 60
    y_ns = np.where(np.array(family) == REPLIES, -3e6, 2e6) + 20_000 * x_s
    curve = fit(x_s, y_ns, family=family).curve
    assert curve.rate_ns_s == pytest.approx(20_000, abs=1)
    assert curve.at(x_s) == pytest.approx(2e6 + 20_000 * x_s, abs=20), "it is the arrivals'"


@pytest.mark.parametrize("shift_ns", [-4e7, -1000.0, 0.0, 4e7])
def test_a_clock_that_was_set_is_compared_across_the_step(shift_ns: float) -> None:
    era = (X_S >= 40).astype(int)
    y_ns = 20_000 * X_S + np.where(era == 0, shift_ns, 0.0)
    found = fit(X_S, y_ns, era=list(era), shifts=(Shift(1, True, 5e7),))
    assert found.curve.rate_ns_s == pytest.approx(20_000, abs=5)
    ((shift_era, column),) = found.set_clock
    assert shift_era == 1
    assert found.curve.shifts_ns[column] == pytest.approx(shift_ns, abs=50)
    old_s = np.array([10.0, 39.0])
    older = {column: np.array([True, True])}
    taken_ns, deviation_ns = found.curve.carried(old_s, 59.0, older)
    assert taken_ns == pytest.approx(20_000 * old_s + shift_ns, abs=50)
    unbroken, _ = found.curve.carried(np.array([45.0]), 59.0, {column: np.array([False])})
    assert unbroken == pytest.approx([20_000 * 45.0], abs=50)
    assert deviation_ns.min() > 0


@pytest.mark.parametrize("moved_ns", [-3e6, 3e6])
def test_a_floor_that_moved_changes_neither_the_curve_nor_what_round_trips_are_compared_with(moved_ns: float) -> None:
    x_s = np.arange(0.0, 60.0, 0.5)
    family = np.array([ARRIVALS, REPLIES] * 60)
    era = (x_s >= 40).astype(int)
    y_ns = 20_000 * x_s + np.where((era == 1) & (family == ARRIVALS), moved_ns, 0.0)
    found = fit(x_s, y_ns, family=list(family), era=list(era), shifts=(Shift(1, False, 1e9),))
    assert found.curve.rate_ns_s == pytest.approx(20_000, abs=5)
    assert found.set_clock == ()
    assert np.diff(found.curve.at(x_s)) == pytest.approx(np.full(len(x_s) - 1, 10_000.0), abs=20)
    assert found.weight.min() > 0.9


@pytest.mark.parametrize("change_ns_s", [-500_000.0, 500_000.0])
def test_a_rate_that_changes_at_once_is_followed_where_it_was_declared(change_ns_s: float) -> None:
    y_ns = change_ns_s * np.maximum(X_S - 40, 0.0)
    era = list((X_S >= 40).astype(int))
    found = fit(X_S, y_ns, era=era, breaks=(Break(40.0, change_ns_s),))
    assert found.curve.rate_ns_s == pytest.approx(change_ns_s, rel=0.001)
    assert found.curve.at(np.array([10.0, 55.0])) == pytest.approx([0.0, 15 * change_ns_s], abs=3 * SCATTER_NS)
    # Where in the gap it bends is not known, and carrying says so.
    _, deviation_ns = found.curve.carried(np.array([10.0, 40.5, 55.0]), 59.0, {})
    assert deviation_ns[1] > 10 * deviation_ns[2]


def test_the_older_the_less_certain_it_is_carried() -> None:
    noise = np.random.default_rng(4)
    curve = fit(X_S, noise.normal(0, SCATTER_NS, len(X_S)), wander=30.0).curve
    _, deviation_ns = curve.carried(np.array([5.0, 20.0, 40.0, 58.0]), 59.0, {})
    assert deviation_ns[3] < 0.7 * min(deviation_ns[:3])
    assert deviation_ns[3] < SCATTER_NS


def test_what_lies_between_two_points_is_carried_no_better_than_the_line_through_them() -> None:
    curve = fit([0.0, 1.0, 2.0], [0.0, 0.0, 0.0]).curve
    # Three points, 1 us each: the rate after the last is known to within 1 us/s, so what was half a second before it
    # is known against it to within half of that.
    _, deviation_ns = curve.carried(np.array([1.0, 1.5, 1.99, 2.0, 2.5]), 2.0, {})
    assert deviation_ns[0] > 0.5 * SCATTER_NS
    assert deviation_ns[1] == pytest.approx(deviation_ns[0] / 2, rel=0.2)
    assert deviation_ns[2] == pytest.approx(deviation_ns[0] / 100, rel=0.2)
    assert deviation_ns[3] == pytest.approx(0, abs=1)
    assert deviation_ns[4] == pytest.approx(curve.rate_deviation_ns_s / 2, rel=0.01)


def test_what_precedes_all_points_is_carried_as_badly_as_the_first_rate_is_known() -> None:
    curve = fit([0.0, 1.0, 2.0], [0.0, 0.0, 0.0]).curve
    _, deviation_ns = curve.carried(np.array([-10.0, -1.0, 0.0]), 2.0, {})
    assert deviation_ns[0] > 9 * curve.first_rate_deviation_ns_s
    assert deviation_ns[1] > 1.3 * deviation_ns[2]


def test_points_of_the_same_moment_are_no_trouble() -> None:
    x_s = np.sort(np.concatenate((X_S, X_S, X_S)))
    family = [ARRIVALS, REPLIES, ARRIVALS] * 60
    found = fit(x_s, 20_000 * x_s, family=family)
    assert np.isfinite(found.curve.covariance).all()
    # They are taken to be a thousandth of a second apart.
    assert found.curve.rate_ns_s == pytest.approx(20_000, rel=0.005)


def test_the_curve_is_carried_back_from_two_oldest_points_of_the_same_moment() -> None:
    curve = fit([0.0, 0.0, 1.0, 2.0, 3.0], [0.0, 100.0, 20_000.0, 40_000.0, 60_000.0]).curve
    assert curve.at(np.array([-1.0]))[0] == pytest.approx(-20_000, abs=1000)


@pytest.mark.parametrize("seed", range(3))
def test_the_evidence_is_for_the_wander_that_there_is(seed: int) -> None:
    noise, x_s = np.random.default_rng(seed), np.arange(120.0)
    steady = 20_000 * x_s + noise.normal(0, SCATTER_NS, len(x_s))
    walk = np.cumsum(np.cumsum(noise.normal(0, 500.0, len(x_s)))) + noise.normal(0, SCATTER_NS, len(x_s))
    for y_ns, better, worse in ((steady, 5.0, 300.0), (walk, 500.0, 10.0)):
        asked = problem(x_s, y_ns, wander=better)
        asked.solve()
        assert asked.cost(better) < asked.cost(worse) - 5
