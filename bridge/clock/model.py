"""What is known of one device's clock: memories of floors and round trips, and the estimate that follows from them.

Times are relative: ``x_s`` is device time since a reference, ``y_ns`` an offset less a base. When a device's clock is
set, reference and base are moved by the step, so that what is remembered stays where it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bridge.clock.curve import ARRIVALS, REPLIES, REQUESTS, Break, Curve, Fit, Floats, Points, Prior, Problem, Shift
from bridge.clock.floor import FloorMemory, FloorPoint
from bridge.clock.pings import Carried, PingMemory

NS = 1e9
PRIOR_RATE_NS_S = 100_000.0  # 100 ppm: crystals of phones and PCs are within 50 ppm of each other
KEPT_RATE_NS_S = 5_000.0  # how far a crystal's rate may have moved while its device was away
LEAST_WANDER, FIRST_WANDER, MOST_WANDER = 3.0, 50.0, 1000.0  # ns/s per root s
LEAST_SCATTER_NS = 300.0
COARSE_PINGS = 0.2  # of the quantum: dithered pings meet all phases
FIRST_SCATTER_NS = 1_000_000.0
PING_BLOCKS = (2, 2, 4, 4, 8)  # round trips in the first points of their floor, then 8 in each at most
PING_BLOCK_S = 4.0
PAIR_S = 0.2
HALF = 0.5
MILD_FIRST = (16.0, 4.0, 1.0, 1.0)
FEW_POINTS = 24  # so few are weighted anew at every fit: a wrong beginning must not last
FEW = 6
FEW_MEANS = 30.0  # so many points know their own scatter half as well as they seem to
MEAN_TO_DEVIATION = 0.8  # of a normal variable's size
HALF_LEAST = 0.1  # of half of what a block of round trips leaves open: its middle is never known better
ESTIMATE_DEVIATIONS = 1.0  # how much a constraint's age counts against it: for the estimate
BOUND_DEVIATIONS = 4.0  # and for the bound
GAP, SUSPICIOUS_GAP = 20.0, 6.0
SETTLED_PINGS = 3  # of a new era, from which on its bound rests on them alone
LARGEST_STRAIN = 16.0
MOST_SHIFTS = 5
LONGEST_RUN = 12
TIGHT, LOOSE = 1.5, 2.5  # scatter about a line, in the usual one
STEEP = 6.0  # standard deviations of a slope
MOST_BREAKS = 6
OFF = 5.0  # standard deviations
FASTEST_CHANGE_NS_S = 1_500_000.0  # no clock's rate changes by more: 500 ppm either way, and a margin


class Run(NamedTuple):
    """How many consecutive points off the curve make a change of the rate, and of the path."""

    to_break: int
    to_shift: int


LATE_RUN, EARLY_RUN = Run(4, 8), Run(3, 8)  # what is early cannot be congestion


class Estimate(NamedTuple):
    """The offset at ``x_s`` and after it, relative to the base. Rates in ns/s; ``strain``: how far the floors had to
    be distrusted to agree with the round trips."""

    x_s: float
    offset_ns: float
    rate_ns_s: float
    bound_ns: float
    precision_ns: float
    rate_deviation_ns_s: float
    floor_ns: float  # the curve at x_s: where the earliest arrivals are expected
    floor_deviation_ns: float
    lowest_ns: float  # what the offset cannot be below and above
    highest_ns: float


class Model:
    """Feed it floor points and round trips, then ask for an ``estimate``."""

    def __init__(self, asymmetry_ns: int = 0) -> None:
        self._asymmetry_ns = asymmetry_ns
        self.arrivals = FloorMemory(fine=12, coarse=5, old=30)
        self._memories = [self.arrivals, FloorMemory(fine=4, coarse=2, old=10), FloorMemory(fine=4, coarse=2, old=10)]
        self.pings = PingMemory()
        self.curve: Curve | None = None
        self.era = 0
        self.corrupt_seen = 0
        self.quantum_ns = 1
        self.wander = FIRST_WANDER
        self._rate_ns_s = 0.0
        self._rate_deviation_ns_s = PRIOR_RATE_NS_S
        self._shifts: list[Shift] = []
        self._breaks: list[Break] = []
        self._scatter_ns = [FIRST_SCATTER_NS] * 3
        self._scatters_seen = [0, 0, 0]
        self._first_off_ns = [0.0, 0.0, 0.0]
        self._block_late_ns = 0.0  # how late whole blocks are on average
        self._coarse_ns = 0.0
        self._least_echo_ns = 0.0
        self._open_ns = 0.0  # half of what the first blocks of round trips leave open, on average
        self._echoes_lead = False  # round trips tell more of the shape than arrivals do
        self._strain = 1.0
        self._try_more = True
        self._fits = 0
        self._fit: Fit | None = None
        self._ping_block: list[tuple[float, float, float]] = []
        self._ping_blocks = 0
        self._estimate: Estimate | None = None
        self._stale = False  # something has changed since the curve was fitted
        self._shift_era = 0  # the last in which anything was shifted
        self._step_era = 0  # era in which the device's clock was set

    @property
    def rate_ns_s(self) -> float:
        return self._rate_ns_s if self.curve is None else self.curve.rate_ns_s

    def keep_rate(self, rate_ns_s: float) -> None:
        """The rate that this device had when it was last here."""
        self._rate_ns_s = rate_ns_s
        self._rate_deviation_ns_s = KEPT_RATE_NS_S

    @property
    def scatter_ns(self) -> float:
        """Of the floor of arrivals."""
        return self._scatter_ns[ARRIVALS]

    def spread_ns(self, age_s: float) -> float:
        """How far the offset may have run from the estimate after so long, one standard deviation."""
        deviation = self._rate_deviation_ns_s if self.curve is None else self.curve.rate_deviation_ns_s
        return float(np.hypot(deviation * age_s, self.wander * age_s**1.5 / 1.7))

    def offset_ns(self, x_s: float) -> float:
        """The offset at a time long ago, by the curve as it is seen now."""
        estimate = self._estimate
        assert estimate is not None
        if self.curve is None:
            return estimate.offset_ns + (x_s - estimate.x_s) * estimate.rate_ns_s
        return float(self.curve.at(np.array([x_s]))[0]) + estimate.offset_ns - estimate.floor_ns

    def before_all_s(self, x_s: float) -> float:
        """How long before everything that is remembered a time lies."""
        estimate = self._estimate
        assert estimate is not None
        return max(0.0, float(estimate.x_s if self.curve is None else self.curve.x_s[0]) - x_s)

    @property
    def first_growth_ns_s(self) -> float:
        """How fast the bound grows before everything that is remembered: the rate of then is known as it was then."""
        deviation = self._rate_deviation_ns_s if self.curve is None else self.curve.first_rate_deviation_ns_s
        return BOUND_DEVIATIONS * deviation

    @property
    def known_rate_ns_s(self) -> float | None:
        """The rate, once it has been measured, now or when the device was last here."""
        if self.curve is not None:
            return self.curve.rate_ns_s
        return self._rate_ns_s if self._rate_deviation_ns_s < PRIOR_RATE_NS_S else None

    # --- in -----------------------------------------------------------------------------------------------------

    def add_arrivals(self, x_s: float, y_ns: float, share: float, late_ns: float, coarse_ns: float) -> bool:
        """The earliest arrival of a block of time, ``share`` of a whole block long, which may be later than that of a
        whole one by about ``late_ns``. ``coarse_ns`` is how far their stamps are off at least.

        True when they show that something has changed, and an estimate is wanted at once.
        """
        self._coarse_ns = coarse_ns
        self._scatter_ns[ARRIVALS] = max(self._scatter_ns[ARRIVALS], self._coarse_ns)
        share = 1 / (1 / share + (late_ns / self._scatter_ns[ARRIVALS]) ** 2)
        self.arrivals.add(FloorPoint(x_s, y_ns, share, self._belief(x_s, y_ns, share), self.era))
        self._learn_scatter(ARRIVALS)
        return self._look_for_change()

    def _belief(self, x_s: float, y_ns: float, share: float) -> float:
        """How far a new point is believed before it is fitted: one that is far too late changes nothing at first."""
        curve = self.curve
        if curve is None:
            return 1.0
        scale_ns = np.hypot(self._scatter_ns[ARRIVALS] / np.sqrt(share), curve.deviation_ns)
        late_ns = y_ns - curve.end_at(x_s)
        if share > HALF:
            self._block_late_ns += 0.05 * (max(late_ns, 0.0) - self._block_late_ns)
        return float(1 / (1 + (max(late_ns / scale_ns - 1.0, 0.0) / 2) ** 2))

    def add_ping(self, x_s: float, lowest_ns: float, highest_ns: float) -> None:
        self.pings.add(x_s, lowest_ns, highest_ns, self.era, self.curve)
        block = self._ping_block
        if block and x_s - block[0][0] > PING_BLOCK_S:
            self._close_ping_block(1.0)
        self._ping_block.append((x_s, lowest_ns, highest_ns))
        full = PING_BLOCKS[min(self._ping_blocks, len(PING_BLOCKS) - 1)]
        paired = len(self._ping_block) > 1 and x_s - self._ping_block[-2][0] < PAIR_S
        if len(self._ping_block) >= full or (paired and self._echoes_lead):
            self._close_ping_block(len(self._ping_block) / PING_BLOCKS[-1])

    def _close_ping_block(self, share: float) -> None:
        """The best of each direction is a point, too: all there is where no samples bound the clock."""
        block, self._ping_block = self._ping_block, []
        self._ping_blocks += 1
        rate, x_s = self.rate_ns_s, sum(x for x, _, _ in block) / len(block)
        highest = min(high - rate * (x - x_s) for x, _, high in block)
        lowest = max(low - rate * (x - x_s) for x, low, _ in block)
        for family, y_ns in ((REPLIES, highest), (REQUESTS, lowest)):
            self._memories[family].add(FloorPoint(x_s, y_ns, share, 1.0, self.era))
            self._learn_scatter(family)
        half_ns = max((highest - lowest) / 2, LEAST_SCATTER_NS)
        self._least_echo_ns = max(HALF_LEAST * half_ns, COARSE_PINGS * self.quantum_ns)
        self._echoes_lead = half_ns < self._scatter_ns[ARRIVALS]
        if self._scatters_seen[REPLIES] < FEW / 2:
            # At first, by what the blocks leave open on average.
            self._open_ns += (half_ns - self._open_ns) / self._ping_blocks
            for family in (REPLIES, REQUESTS):
                self._scatter_ns[family] = max(self._open_ns / 2, self._least_echo_ns)

    # --- what changes -------------------------------------------------------------------------------------------

    def clock_set(self, deviation_ns: float) -> None:
        """The device's clock was set. The caller has moved reference and base; ``deviation_ns`` is how well it knows
        by how much."""
        self._shift(everything=True, deviation_ns=deviation_ns)
        self._step_era = self.era
        self._ping_block.clear()

    def _shift(self, *, everything: bool, deviation_ns: float) -> None:
        self.era += 1
        self._shift_era = self.era
        self._shifts.append(Shift(self.era, everything, deviation_ns))
        if len(self._shifts) > MOST_SHIFTS:
            gone = self._shifts.pop(0)
            for memory in self._memories if gone.everything else (self.arrivals,):
                memory.forget_before(gone.era)
            if gone.everything:
                self.pings.forget_before(gone.era)

    def floor_moved(self) -> None:
        """Arrivals come from elsewhere now, with another floor."""
        self._shift(everything=False, deviation_ns=NS)

    def _look_for_change(self) -> bool:
        """Consecutive points off the curve by much, and in line among themselves: the rate has changed at once, or the
        path of arrivals has."""
        curve = self.curve
        if curve is None or self._stale or self._scatters_seen[ARRIVALS] < FEW:
            return False
        off = [
            (p.x_s, p.y_ns - curve.end_at(p.x_s))
            for p in self.arrivals.newest()[-LONGEST_RUN:]
            if p.blocks >= 1 and p.era >= self._shift_era
        ]
        limit_ns = OFF * float(np.hypot(self._scatter_ns[ARRIVALS], curve.deviation_ns))
        late = bool(off) and off[-1][1] > 0
        run = 0
        while run < len(off) and (off[-1 - run][1] if late else -off[-1 - run][1]) > limit_ns:
            run += 1
        least = LATE_RUN if late else EARLY_RUN
        if run < least.to_break:
            return False
        x_s, y_ns = (np.array(column) for column in zip(*off[-run:], strict=True))
        line = _Line(x_s - x_s[-1], y_ns, self._scatter_ns[ARRIVALS])
        if line.slope != 0 and line.steep and 0 < line.level / line.slope < LONGEST_RUN:
            if abs(line.slope) > FASTEST_CHANGE_NS_S or line.apart > LOOSE:
                return False  # no clock is that fast, and congestion never that even
            self._break_rate(float(x_s[-1]) - line.level / line.slope, line.slope)
        elif run >= least.to_shift and line.apart < TIGHT and not line.steep:
            self._shift(everything=False, deviation_ns=NS)
            self.arrivals.begin_era(float(x_s[0]), self.era)
        else:
            return False
        self.arrivals.renew(run + 2)
        self._stale = True
        return True

    def _break_rate(self, x_s: float, rate_ns_s: float) -> None:
        """A bend of the curve, over which nothing may be averaged."""
        self._breaks = [*self._breaks[-MOST_BREAKS + 1 :], Break(x_s, rate_ns_s)]
        self.era += 1
        for memory in self._memories:
            memory.begin_era(x_s, self.era)
        self._ping_block.clear()

    def rate_changed(self, x_s: float) -> None:
        """Round trips disagree a little with what was known before ``x_s``: the rate must have changed since."""
        self._break_rate(x_s - 2.0, FASTEST_CHANGE_NS_S / 3)
        self.arrivals.renew(EARLY_RUN.to_break)
        self._stale = True

    # --- out ----------------------------------------------------------------------------------------------------

    def estimate(self, x_s: float) -> Estimate | None:
        """The offset at ``x_s``, which is now. None without round trips."""
        estimate = self._estimate_at(x_s) if len(self.pings) else None
        self._estimate = estimate or self._estimate
        return estimate

    def _estimate_at(self, x_s: float) -> Estimate | None:
        fit = self._fit_curve(x_s)
        if fit is None:
            return self._first_estimate(x_s)
        curve = fit.curve
        carried = self.pings.carried(curve, x_s, fit.set_clock)
        gap = SUSPICIOUS_GAP if self.corrupt_seen >= 3 else GAP
        trusted = carried.without_loners(gap)
        trusted = self._agreeing(trusted)
        recent = trusted.since(self._step_era)
        if not len(trusted.era):
            return self._first_estimate(x_s)
        near = trusted.interval(ESTIMATE_DEVIATIONS * self._strain)
        bounding = recent if len(recent.era) >= SETTLED_PINGS else trusted
        # With few points, their scatter and so all deviations are little known themselves.
        few = 1 + FEW_MEANS / len(fit.weight)
        far = bounding.interval(BOUND_DEVIATIONS * self._strain * few)
        middle = (near.lowest_ns + near.highest_ns + self._asymmetry_ns) / 2
        middle = min(max(middle, far.lowest_ns), far.highest_ns)
        floor_ns = curve.end_at(x_s)
        deviations = BOUND_DEVIATIONS * self._strain * few
        least_ns = deviations * bounding.binding_deviation_ns(deviations)
        bound_ns = max(far.highest_ns - middle, middle - far.lowest_ns, least_ns)
        if not len(recent.era):  # bridged by arrivals alone, all of which may have been late so far
            witnesses = sum(point.era >= self._step_era for point in self.arrivals.newest())
            bound_ns += BOUND_DEVIATIONS * self._block_late_ns / max(1, witnesses)
        precision_ns = 2 * curve.deviation_ns if len(self.pings) < 2 else 2 * float(np.min(trusted.deviation_ns) + 1)
        return Estimate(
            x_s=x_s,
            offset_ns=floor_ns + middle,
            rate_ns_s=curve.rate_ns_s,
            bound_ns=bound_ns,
            precision_ns=precision_ns,
            rate_deviation_ns_s=curve.rate_deviation_ns_s,
            floor_ns=floor_ns,
            floor_deviation_ns=float(np.hypot(self._scatter_ns[ARRIVALS], curve.deviation_ns)),
            lowest_ns=floor_ns + far.lowest_ns,
            highest_ns=floor_ns + far.highest_ns,
        )

    def _agreeing(self, carried: Carried) -> Carried:
        """Distrusts the carrying, then forgets what is old, until all that is left allows a common offset."""
        self._strain = max(1.0, self._strain * 0.97)
        if carried.parted_at(self.era):
            self.pings.forget_before(self.era)
            carried = carried.since(self.era)
        while len(carried.era):
            interval = carried.interval(BOUND_DEVIATIONS * self._strain)
            if interval.lowest_ns <= interval.highest_ns:
                return carried
            if (carried.era < self._step_era).any() and (carried.era >= self._step_era).any():
                # The path has not stayed what it was before the step.
                self.pings.forget_before(self._step_era)
                carried = carried.since(self._step_era)
            elif self._strain < LARGEST_STRAIN:
                self._strain *= 1.5
            elif len(carried.era) < 2:
                return carried
            else:
                self.pings.forget_half()
                half = (len(carried.era) + 1) // 2
                carried = Carried(*(array[half:] for array in carried))  # type: ignore[arg-type]
        return carried

    def _first_estimate(self, x_s: float) -> Estimate | None:
        if not len(self.pings):
            return None
        carried = self.pings.plain(x_s, self._rate_deviation_ns_s)
        near, far = carried.interval(0.0), carried.interval(2.0)
        middle = (near.lowest_ns + near.highest_ns + self._asymmetry_ns) / 2
        middle = min(max(middle, far.lowest_ns), far.highest_ns)
        return Estimate(
            x_s=x_s,
            offset_ns=middle,
            rate_ns_s=self._rate_ns_s,
            bound_ns=max(far.highest_ns - middle, middle - far.lowest_ns),
            precision_ns=(near.highest_ns - near.lowest_ns) / 2,
            rate_deviation_ns_s=self._rate_deviation_ns_s,
            floor_ns=middle,
            floor_deviation_ns=far.highest_ns - far.lowest_ns,
            lowest_ns=far.lowest_ns,
            highest_ns=far.highest_ns,
        )

    def _fit_curve(self, x_s: float) -> Fit | None:
        remembered = [memory.points() for memory in self._memories]
        counts = [len(points) for points in remembered]
        if counts[ARRIVALS] + counts[REPLIES] < 3:
            return None
        points, order = _sorted(remembered)
        prior = Prior(
            scatter_ns=(self._scatter_ns[0], self._scatter_ns[1], self._scatter_ns[2]),
            wander=self.wander,
            rate_ns_s=self._rate_ns_s,
            rate_deviation_ns_s=self._rate_deviation_ns_s,
            shifts=tuple(self._shifts),
            breaks=tuple(self._breaks),
        )
        if counts[ARRIVALS] + counts[REPLIES] < FEW_POINTS:
            points.weight[:] = 1.0
        problem = Problem(points, prior, x_s + 1.0)
        fit = self._fit = problem.solve(MILD_FIRST if counts[ARRIVALS] + counts[REPLIES] < FEW_POINTS else (1.0,) * 3)
        self.curve = fit.curve
        self._stale = False
        weight = np.empty(len(order))
        weight[order] = fit.weight
        given = iter(weight.tolist())
        for memory in self._memories:
            memory.believe(given)
        self._fits += 1
        if counts[ARRIVALS] + counts[REPLIES] >= 8 and (self._fits % 4 == 0 or self._fits < 40):
            self._learn_wander(problem)
        return fit

    def _learn_wander(self, problem: Problem) -> None:
        """One step up or down, in turns, where the evidence for it is clear."""
        self._try_more = not self._try_more
        other = self.wander * (2.0 if self._try_more else 0.5)
        if LEAST_WANDER <= other <= MOST_WANDER and problem.cost(other) < problem.cost(self.wander) - 1.0:
            self.wander = other

    def _learn_scatter(self, family: int) -> None:
        """From how far the last point but one lies from the line through its neighbours, which knows of no curve."""
        newest = self._memories[family].newest()[-3:]
        if len(newest) < 3 or any(p.blocks < HALF or p.weight < 0.2 or p.era != self.era for p in newest):
            return
        (x0, y0, *_), (x1, y1, *_), (x2, y2, *_) = newest
        part = (x1 - x0) / (x2 - x0)
        off_ns = abs(y1 - (1 - part) * y0 - part * y2) / np.sqrt(1 + (1 - part) ** 2 + part**2)
        seen = self._scatters_seen[family] = self._scatters_seen[family] + 1
        scatter_ns = self._scatter_ns[family]
        if seen <= FEW:  # some points are in line by chance
            self._first_off_ns[family] = max(self._first_off_ns[family], off_ns)
            if seen < FEW / 2:
                return
            scatter_ns = self._first_off_ns[family]
        else:
            scatter_ns += max(0.04, 1 / seen) * (min(off_ns, 4 * scatter_ns) / MEAN_TO_DEVIATION - scatter_ns)
        least_ns = max(LEAST_SCATTER_NS, self._coarse_ns if family == ARRIVALS else self._least_echo_ns)
        self._scatter_ns[family] = max(least_ns, float(scatter_ns))


class _Line:
    """A line through points, against their usual scatter. ``x_s`` ends with 0."""

    def __init__(self, x_s: Floats, y_ns: Floats, scatter_ns: float) -> None:
        slope, level = (float(value) for value in np.polyfit(x_s, y_ns, 1))
        self.slope, self.level = slope, level
        residual = y_ns - level - slope * x_s
        apart_ns = float(np.sqrt(np.sum(np.square(residual)) / max(1, len(x_s) - 2)))
        spread_s = float(np.sqrt(np.sum(np.square(x_s - np.mean(x_s)))))
        self.apart = apart_ns / scatter_ns
        self.steep = abs(slope) * spread_s > STEEP * max(apart_ns, scatter_ns)


def _sorted(remembered: list[list[FloorPoint]]) -> tuple[Points, NDArray[np.int64]]:
    """All points in the order of time, and where each comes from."""
    columns = np.array([point for points in remembered for point in points])
    family = np.repeat(np.arange(len(remembered)), [len(points) for points in remembered])
    order = np.argsort(columns[:, 0], kind="stable")
    x_s, y_ns, blocks, weight, era = columns[order].T
    return Points(x_s, y_ns, blocks, weight, family[order], era.astype(np.int64)), order
