"""The fit of the offset's curve to delay floors: the rate wanders, and not every point is believed.

The offset at the times of the points is unknown, and so is how far each floor lies above it. The rate between two
points follows a random walk of ``wander`` (ns/s per root of a second); a point's scatter is that of its family. All of
it is one linear least-squares problem, solved a few times with weights: what lies above the curve is late and hardly
counts, what lies far below it is a wrong stamp or a change that somebody else has to declare.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bridge.clock.curve import ARRIVALS, FREE_NS, REPLIES, REQUESTS, Break, Curve, Floats, Shift, knots_about

SHORTEST_S = 1e-3  # points closer than this share a knot
LATE_FROM, LATE_SCALE = 1.0, 2.0  # standard deviations late: full weight until the one, half at the sum of both
EARLY_FROM, WRONG_FROM = 3.0, 10.0  # standard deviations early: less weight, and hardly any
SETTLED = 0.05  # weights that change by less need no further round


class Points(NamedTuple):
    """What a curve is fitted to, in the order of ``x_s``; arrays of one length. See ``FloorPoint``."""

    x_s: Floats
    y_ns: Floats
    blocks: Floats
    weight: Floats
    family: NDArray[np.int64]
    era: NDArray[np.int64]


class Prior(NamedTuple):
    """What is known beforehand: scatter of each family, ns; the rate's wander, ns/s per root s; the first rate."""

    scatter_ns: tuple[float, float, float]
    wander: float
    rate_ns_s: float
    rate_deviation_ns_s: float
    shifts: tuple[Shift, ...]
    breaks: tuple[Break, ...]


class Fit(NamedTuple):
    """What a solved problem tells."""

    curve: Curve
    weight: Floats  # of each point
    late: Floats  # how far each point lies on its late side, in its standard deviations
    set_clock: tuple[tuple[int, int], ...]  # (era, column of the covariance) of each shift of everything


class Problem:
    """The least-squares problem of one moment. ``solve`` it, then ask what another wander would have ``cost``."""

    def __init__(self, points: Points, prior: Prior, end_s: float) -> None:
        self._points = points
        self._prior = prior
        # Points that all but coincide share a knot.
        begins = np.append(True, np.diff(points.x_s) > SHORTEST_S)
        self._knot = np.cumsum(begins) - 1
        x_s = points.x_s[begins]
        self._knots = knots = len(x_s) + 1
        self._x_s = np.append(x_s, max(end_s, float(x_s[-1]) + 1.0))
        self._step_s = np.diff(self._x_s)
        self._base_ns = float(points.y_ns[-1])
        self._y_ns = points.y_ns - self._base_ns
        self._deviation_ns = np.asarray(prior.scatter_ns)[points.family] / np.sqrt(points.blocks)
        self._sign = np.where(points.family == REQUESTS, -1.0, 1.0)
        columns = [points.family == REPLIES, points.family == REQUESTS]
        loose = [FREE_NS, FREE_NS]
        for shift in prior.shifts:
            older = points.era < shift.era
            columns.append(older if shift.everything else older & (points.family == ARRIVALS))
            loose.append(shift.deviation_ns)
        self._group = np.column_stack(columns).astype(np.float64)
        self._loose = 1.0 / np.square(loose)
        self._broken = np.zeros(knots - 2)
        for at in prior.breaks:
            first, last = knots_about(self._x_s, at.x_s)
            self._broken[max(0, first - 1) : last] += at.rate_ns_s**2
        self._information = np.zeros(len(points.x_s))
        self._lower = np.tri(knots - 1, dtype=bool)

    def _variance(self, wander: float) -> Floats:
        """Of the change of the rate at each inner knot, and of the first rate."""
        walked = wander * wander * (self._step_s[:-1] + self._step_s[1:]) / 2 + self._broken
        return np.append(walked, self._prior.rate_deviation_ns_s**2)

    def _normal(self, wander: float) -> tuple[Floats, Floats]:
        """(normal matrix, right-hand side) of the unknowns: the level at the end, the slope of each piece, the
        constants. In slopes, because a curve is stiff: in levels, what little a few late points say of all levels at
        once would drown in the rounding of how alike neighbours are."""
        knots, information, knot, group, step = self._knots, self._information, self._knot, self._group, self._step_s
        constants = slice(knots, knots + group.shape[1])
        slopes = slice(1, knots)
        weighted = information[:, None] * group
        # A knot lies below the end by all pieces after it.
        per_knot = [np.bincount(knot, column, knots) for column in (information, *weighted.T, information * self._y_ns)]
        sums = np.cumsum(np.array(per_knot), axis=1)
        of_slopes = -step * sums[:, :-1]
        size = knots + group.shape[1]
        matrix = np.empty((size, size))
        matrix[0, 0] = sums[0, -1]
        matrix[0, slopes] = matrix[slopes, 0] = of_slopes[0]
        matrix[0, constants] = matrix[constants, 0] = sums[1:-1, -1]
        matrix[slopes, constants] = of_slopes[1:-1].T
        matrix[constants, slopes] = of_slopes[1:-1]
        matrix[constants, constants] = group.T @ weighted + np.diag(self._loose)
        until = sums[0, :-1]
        matrix[slopes, slopes] = np.where(self._lower, until, until[:, None]) * np.outer(step, step)
        # The change of the slope at each inner knot, and the first slope.
        stiffness = 1 / self._variance(wander)
        diagonal = matrix.ravel()[size + 1 :: size + 1][: knots - 1]
        diagonal[:-1] += stiffness[:-1]
        diagonal[1:] += stiffness[:-1]
        diagonal[0] += stiffness[-1]
        matrix.ravel()[size + 2 :: size + 1][: knots - 2] -= stiffness[:-1]
        matrix.ravel()[2 * size + 1 :: size + 1][: knots - 2] -= stiffness[:-1]
        right = np.empty(size)
        right[0] = sums[-1, -1]
        right[slopes] = of_slopes[-1]
        right[1] += self._prior.rate_ns_s * stiffness[-1]
        right[constants] = weighted.T @ self._y_ns
        return matrix, right

    def _levels(self, solution: Floats) -> Floats:
        """The curve at the knots, and after it the constants; of the columns of a matrix, too."""
        knots = self._knots
        step = self._step_s if solution.ndim == 1 else self._step_s[:, None]
        below = np.cumsum((step * solution[1:knots])[::-1], axis=0)[::-1]
        levels = solution.copy()
        levels[: knots - 1] = solution[0] - below
        levels[knots - 1] = solution[0]
        return levels

    def _off_ns(self, solution: Floats) -> Floats:
        """How far each point lies from the curve."""
        return np.asarray(self._y_ns - solution[self._knot] - self._group @ solution[self._knots :])

    def solve(self, leniency: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Fit:
        """Fits and weighs as often as ``leniency`` says, in which points' scatter is taken so many times as wide."""
        points, knots = self._points, self._knots
        weight = points.weight
        for lenient in leniency:
            self._information = weight / np.square(self._deviation_ns)
            matrix, right = self._normal(self._prior.wander)
            solution = self._levels(np.linalg.solve(matrix, right))
            late = self._sign * self._off_ns(solution) / self._deviation_ns / lenient
            early = np.maximum(-late, 1e-9)
            before = weight
            weight = np.where(
                late > 0,
                1 / (1 + np.square(np.maximum(late - LATE_FROM, 0.0) / LATE_SCALE)),
                np.minimum(1.0, EARLY_FROM / early) * np.square(np.minimum(1.0, WRONG_FROM / early)),
            )
            if lenient == 1.0 and np.max(np.abs(weight - before)) < SETTLED:
                break
        shifts: dict[int, float] = {}
        set_clock: list[tuple[int, int]] = []
        for i, shift in enumerate(self._prior.shifts):
            if shift.everything:
                column = knots + 2 + i
                shifts[column] = float(solution[column])
                set_clock.append((shift.era, column))
        covariance = self._levels(self._levels(np.linalg.inv(matrix)).T)
        curve = Curve(self._x_s, solution[:knots] + self._base_ns, covariance, shifts, self._prior.breaks, knots)
        return Fit(curve, weight, late * lenient, tuple(set_clock))

    def cost(self, wander: float) -> float:
        """Minus twice the logarithm of the evidence for a wander, but for a constant, at the weights of ``solve``."""
        matrix, right = self._normal(wander)
        solved = np.linalg.solve(matrix, right)
        solution, slopes = self._levels(solved), solved[1 : self._knots]
        variance = self._variance(wander)
        change = np.append(np.diff(slopes), slopes[0] - self._prior.rate_ns_s)
        misfit = np.sum(self._information * np.square(self._off_ns(solution))) + np.sum(np.square(change) / variance)
        return float(misfit + np.linalg.slogdet(matrix)[1] + np.sum(np.log(variance)))
