"""How a device's clock drifts: what is known of its rate beforehand, and the curve that is fitted to all floors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bridge.clock.changes import Changes
from bridge.clock.curve import ARRIVALS, REPLIES, REQUESTS, Curve
from bridge.clock.fit import Fit, Points, Prior, Problem
from bridge.clock.floor import FloorMemory, FloorPoint

UNKNOWN_RATE_NS_S = 100_000.0  # 100 ppm: crystals of phones and PCs are within 50 ppm of each other
KEPT_RATE_NS_S = 5_000.0  # how far a crystal's rate may have moved while its device was away
LEAST_WANDER, FIRST_WANDER, MOST_WANDER = 3.0, 50.0, 1000.0  # ns/s per root s
ROOT_3 = 1.7  # near enough: a rate that walks at random for a time t adds up to wander * t**1.5 / root of 3
CLEARLY = 1.0  # by how much another wander's cost must be less
FIRST_FITS, RARELY = 40, 4  # the wander is learned at each of the first fits, then at every fourth
LEAST_POINTS, LEAST_TO_LEARN = 3, 8  # for a curve, and for its wander
FEW_POINTS = 24  # so few are weighted anew at every fit: a wrong beginning must not last
MILD_FIRST = (16.0, 4.0, 1.0, 1.0)  # the leniency with few points: none may be condemned by a rough first curve
GROUP = 4  # blocks of round trips that are looked at together
ASTRAY_SHARE = 0.04  # of the newest, in what is remembered of it
CLIPPED = 3.0  # standard deviations: nothing alone shows much
ASTRAY, STRAIGHT = 2.8, 1.5  # squares of standard deviations
MORE, LESS = 1.3, 0.998  # a fit: fast where it is wrong, and slowly back
MOST_DISTRUST = 100.0
AHEAD_S = 1.0  # the curve reaches so far beyond now


class Drift:
    """Holds the newest ``curve``, None until there is one, and the rate's ``wander``, ns/s per root s."""

    def __init__(self) -> None:
        self.curve: Curve | None = None
        self.wander = FIRST_WANDER
        self.first_rate_ns_s = 0.0  # known beforehand, and how well
        self.first_rate_deviation_ns_s = UNKNOWN_RATE_NS_S
        self._fits = 0
        self._try_more = True
        self._astray = 1.0  # how early round trips have been lately; about 1 where all is chance
        self._distrust = 1.0  # by how much the arrivals' scatter understates how far their floor wanders

    def keep_rate(self, rate_ns_s: float) -> None:
        """The rate that this device had when it was last here."""
        self.first_rate_ns_s = rate_ns_s
        self.first_rate_deviation_ns_s = KEPT_RATE_NS_S

    @property
    def rate_ns_s(self) -> float:
        return self.first_rate_ns_s if self.curve is None else self.curve.rate_ns_s

    @property
    def known_rate_ns_s(self) -> float | None:
        """The rate, once it has been measured, now or when the device was last here."""
        if self.curve is not None:
            return self.curve.rate_ns_s
        return self.first_rate_ns_s if self.first_rate_deviation_ns_s < UNKNOWN_RATE_NS_S else None

    @property
    def oldest_deviation_ns_s(self) -> float:
        """How well the rate before everything that is remembered is known, one standard deviation."""
        return self.first_rate_deviation_ns_s if self.curve is None else self.curve.first_rate_deviation_ns_s

    def spread_ns(self, age_s: float) -> float:
        """How far the offset may have run from the estimate after so long, one standard deviation."""
        deviation = self.first_rate_deviation_ns_s if self.curve is None else self.curve.rate_deviation_ns_s
        return float(np.hypot(deviation * age_s, self.wander * age_s**1.5 / ROOT_3))

    def fit(
        self, floors: Sequence[FloorMemory], scatter_ns: tuple[float, float, float], changes: Changes, x_s: float
    ) -> Fit | None:
        """A new curve at ``x_s``, which is now; None with too few points. ``floors`` and ``scatter_ns`` are in the
        order of the families, arrivals, replies and requests. The floors are told how far each point is believed."""
        remembered = [floor.points() for floor in floors]
        count = len(remembered[0]) + len(remembered[1])  # there are as many requests as replies
        if count < LEAST_POINTS:
            return None
        points, order = _sorted(remembered)
        leniency: tuple[float, ...] = (1.0, 1.0, 1.0)
        if count < FEW_POINTS:
            points.weight[:] = 1.0
            leniency = MILD_FIRST
        prior = Prior(
            scatter_ns=(self._distrust * scatter_ns[ARRIVALS], scatter_ns[REPLIES], scatter_ns[REQUESTS]),
            wander=self.wander,
            rate_ns_s=self.first_rate_ns_s,
            rate_deviation_ns_s=self.first_rate_deviation_ns_s,
            shifts=tuple(changes.shifts),
            breaks=tuple(changes.breaks),
        )
        problem = Problem(points, prior, x_s + AHEAD_S)
        fit = problem.solve(leniency)
        self.curve = fit.curve
        weight = np.empty(len(order))
        weight[order] = fit.weight
        given = iter(weight.tolist())
        for floor in floors:
            floor.believe(given)
        self._learn_distrust(points, fit)
        self._fits += 1
        if count >= LEAST_TO_LEARN and (self._fits % RARELY == 0 or self._fits < FIRST_FITS):
            self._learn_wander(problem)
        return fit

    def _learn_distrust(self, points: Points, fit: Fit) -> None:
        """Where the replies or the requests of some blocks in a row are early, which no traffic can make them, the
        floor of arrivals has led the curve astray: it wanders itself, as on a computer that is busy now and then."""
        early = 0.0
        for family in (REPLIES, REQUESTS):
            late = fit.late[points.family == family][-GROUP:]
            if len(late) < GROUP:
                return
            together = float(np.clip(late, -CLIPPED, CLIPPED).sum()) / GROUP**0.5
            early += min(together, 0.0) ** 2
        self._astray += ASTRAY_SHARE * (early - self._astray)
        if self._astray > ASTRAY:
            self._distrust = min(MOST_DISTRUST, self._distrust * MORE)
        elif self._astray < STRAIGHT:
            self._distrust = max(1.0, self._distrust * LESS)

    def _learn_wander(self, problem: Problem) -> None:
        """One step up or down, in turns, where the evidence for it is clear."""
        self._try_more = not self._try_more
        other = self.wander * (2.0 if self._try_more else 0.5)
        if LEAST_WANDER <= other <= MOST_WANDER and problem.cost(other) < problem.cost(self.wander) - CLEARLY:
            self.wander = other


def _sorted(remembered: list[list[FloorPoint]]) -> tuple[Points, NDArray[np.int64]]:
    """All points in the order of time, and where each comes from."""
    columns = np.array([point for points in remembered for point in points])
    family = np.repeat(np.arange(len(remembered)), [len(points) for points in remembered])
    order = np.argsort(columns[:, 0], kind="stable")
    x_s, y_ns, blocks, weight, era = columns[order].T
    return Points(x_s, y_ns, blocks, weight, family[order], era.astype(np.int64)), order
