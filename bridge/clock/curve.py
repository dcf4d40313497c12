"""The shape of the offset over time: a smooth curve through knots, and what it knows of itself.

Shifts are unknown constants that all older points have: a device's clock was set, and everything before is off by the
same; or a path has become longer or shorter, and only the floor of arrivals is off. Breaks are where the rate has
changed at once. How a curve is found is in ``fit``.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

ARRIVALS, REPLIES, REQUESTS = 0, 1, 2  # families of points: what comes from the device, and what goes to it
FREE_NS = 1e9  # how far a constant of which nothing is known may be off
BREAK_REACH_S = 2.5  # on either side: when exactly the rate changed is not known


class Shift(NamedTuple):
    """From ``era`` on, points are off by a constant against the older ones.

    ``everything``: the device's clock was set; else only the floor of arrivals moved. ``deviation_ns``: how well the
    constant is known to be zero beforehand.
    """

    era: int
    everything: bool
    deviation_ns: float


class Break(NamedTuple):
    """At ``x_s`` the rate has changed by about ``rate_ns_s`` at once."""

    x_s: float
    rate_ns_s: float


class Curve:
    """A fit: ``z_ns`` at the knots ``x_s``, of which the last is the end that was asked for, the last but one the
    newest point. The unknowns of ``covariance``, ns^2, are the knots and then the constants.

    ``rate_ns_s``: after the newest point. ``deviation_ns``: one standard deviation of the newest point's knot.
    """

    def __init__(
        self,
        x_s: Floats,
        z_ns: Floats,
        covariance: Floats,
        shifts: dict[int, float],
        breaks: tuple[Break, ...],
        knots: int,
    ) -> None:
        self.x_s = x_s
        self._listed: tuple[list[float], list[float]] | None = None  # for quickly_at
        self.z_ns = z_ns
        self.covariance = covariance
        self.shifts_ns = shifts  # by column of the covariance: constants of the shifts of everything
        self._breaks = breaks
        self._knots = knots
        last_s = x_s[-1] - x_s[-2]
        self._rates = _rates_at(x_s, z_ns)
        self.rate_ns_s = float((z_ns[-1] - z_ns[-2]) / last_s)
        variance = covariance[knots - 1, knots - 1] + covariance[knots - 2, knots - 2]
        variance -= 2 * covariance[knots - 1, knots - 2]
        self.rate_deviation_ns_s = float(np.sqrt(max(variance, 0.0)) / last_s)
        variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        self.first_rate_deviation_ns_s = float(np.sqrt(max(variance, 0.0)) / (x_s[1] - x_s[0]))
        self.deviation_ns = float(np.sqrt(max(covariance[knots - 2, knots - 2], 0.0)))

    def at(self, x_s: Floats) -> Floats:
        """The curve, carried on by its first and last rate."""
        z_ns = self._between(x_s)
        before = x_s < self.x_s[0]
        if before.any():
            rate = (self.z_ns[1] - self.z_ns[0]) / (self.x_s[1] - self.x_s[0])
            z_ns[before] = self.z_ns[0] + (x_s[before] - self.x_s[0]) * rate
        after = x_s > self.x_s[-1]
        if after.any():
            z_ns[after] = self.z_ns[-1] + (x_s[after] - self.x_s[-1]) * self.rate_ns_s
        return z_ns

    def _between(self, x_s: Floats) -> Floats:
        """A cubic from knot to knot, which is what a rate that walks at random takes on average."""
        x, z, rates = self.x_s, self.z_ns, self._rates
        i = np.clip(np.searchsorted(x, x_s) - 1, 0, len(x) - 2)
        step = x[i + 1] - x[i]
        t = np.clip((x_s - x[i]) / step, 0.0, 1.0)
        rise = z[i + 1] - z[i]
        first, last = rates[i] * step - rise, rise - rates[i + 1] * step
        return np.asarray(z[i] + t * rise + t * (1 - t) * ((1 - t) * first + t * last))

    def quickly_at(self, x_s: float) -> float:
        """The curve at one time, in straight lines from knot to knot: for the samples of a backlog."""
        if self._listed is None:
            self._listed = self.x_s.tolist(), self.z_ns.tolist()
        x, z = self._listed
        i = min(max(bisect_right(x, x_s) - 1, 0), len(x) - 2)
        return float(z[i] + (x_s - x[i]) * (z[i + 1] - z[i]) / (x[i + 1] - x[i]))

    def end_at(self, x_s: float) -> float:
        """The curve near its end, by its last rate."""
        return float(self.z_ns[-1] + (x_s - self.x_s[-1]) * self.rate_ns_s)

    def carried(self, x_s: Floats, now_s: float, older: dict[int, NDArray[np.bool_]]) -> tuple[Floats, Floats]:
        """(what to subtract from an offset at ``x_s`` to compare it with one at ``now_s``, the standard deviation of
        that against the curve at ``now_s``), ns. ``older`` tells for each column of ``shifts_ns`` who precedes that
        shift."""
        c, newest, end = self.covariance, self._knots - 2, self._knots - 1
        z_ns = self.at(x_s)
        # Now lies between the newest point and the end; what is newer than all points does, too.
        ahead = (now_s - self.x_s[newest]) / (self.x_s[end] - self.x_s[newest])
        to_now = (1 - ahead) * c[newest] + ahead * c[end]
        variance_now = (1 - ahead) * to_now[newest] + ahead * to_now[end]
        # What lies between two knots is known as the line through both is.
        i = np.clip(np.searchsorted(self.x_s, x_s) - 1, 0, newest)
        j, later = i + 1, (x_s - self.x_s[i]) / (self.x_s[i + 1] - self.x_s[i])
        sooner = 1 - later
        variance = sooner * sooner * c[i, i] + 2 * sooner * later * c[i, j] + later * later * c[j, j]
        variance += variance_now - 2 * (sooner * to_now[i] + later * to_now[j])
        taken: list[tuple[int, NDArray[np.bool_]]] = []
        for column, before in older.items():
            z_ns = z_ns + np.where(before, self.shifts_ns[column], 0.0)
            extra = c[column, column] + 2 * (sooner * c[i, column] + later * c[j, column]) - 2 * to_now[column]
            for other, too in taken:
                extra = extra + np.where(too, 2 * c[column, other], 0.0)
            variance = variance + np.where(before, extra, 0.0)
            taken.append((column, before))
        deviation_ns = np.sqrt(np.maximum(variance, 0.0))
        for at in self._breaks:  # between two knots the curve bends somewhere
            first, last = knots_about(self.x_s, at.x_s)
            from_knot_s = np.minimum(x_s - self.x_s[first], self.x_s[last] - x_s)
            deviation_ns = deviation_ns + np.maximum(from_knot_s, 0.0) * abs(at.rate_ns_s)
        return z_ns, deviation_ns


def _rates_at(x_s: Floats, z_ns: Floats) -> Floats:
    """The rate at each knot: between those of the pieces beside it, nearer to that of the shorter one."""
    step = np.diff(x_s)
    pieces = np.diff(z_ns) / step
    rates = np.empty(len(x_s))
    rates[0], rates[-1] = pieces[0], pieces[-1]
    rates[1:-1] = (pieces[:-1] * step[1:] + pieces[1:] * step[:-1]) / (step[:-1] + step[1:])
    return rates


def knots_about(x_s: Floats, at_s: float) -> tuple[int, int]:
    """The knots between which a break at ``at_s`` may lie."""
    first = int(np.searchsorted(x_s, at_s - BREAK_REACH_S)) - 1
    last = int(np.searchsorted(x_s, at_s + BREAK_REACH_S))
    return max(first, 0), min(last, len(x_s) - 1)
