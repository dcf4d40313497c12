"""The estimate: what the round trips allow, carried to now along the curve, and how far all can be trusted to agree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bridge.clock.arrivals import ArrivalFloor
from bridge.clock.changes import Changes
from bridge.clock.drift import Drift
from bridge.clock.fit import Fit
from bridge.clock.pings import Carried, Interval, PingMemory

ESTIMATE_DEVIATIONS = 1.0  # how much a constraint's age counts against it: for the estimate
BOUND_DEVIATIONS = 4.0  # and for the bound
FIRST_DEVIATIONS = 2.0  # and for the bound while there is no curve: of a rate that is anything
GAP, SUSPICIOUS_GAP = 20.0, 6.0  # see Carried.without_loners; the other where stamps have often been corrupt
SETTLED_PINGS = 3  # since a step, from which on the bound rests on them alone
FEW_MEANS = 30.0  # so many points know their own scatter half as well as they seem to
STRAINED_BY, RELAXED_BY = 1.5, 0.97  # at a contradiction, and at every estimate
LARGEST_STRAIN = 16.0


class Estimate(NamedTuple):
    """The offset at ``x_s`` and after it, relative to the base; ns and ns/s.

    ``bound_ns`` holds whatever the path's asymmetry; ``precision_ns``, 95 %, leaves it out.
    """

    x_s: float
    offset_ns: float
    rate_ns_s: float
    bound_ns: float
    precision_ns: float
    rate_deviation_ns_s: float
    floor_ns: float  # the curve at x_s: where the earliest arrivals are expected
    lowest_ns: float  # what the offset cannot be below and above
    highest_ns: float


class Agreement:
    """Between the curve and the round trips in ``pings``. ``asymmetry_ns``: of the path, to the device less back.

    Where they contradict each other the carrying is distrusted, by a strain on all its deviations that fades again, and
    then what is old is forgotten.
    """

    def __init__(self, pings: PingMemory, asymmetry_ns: int) -> None:
        self._pings = pings
        self._asymmetry_ns = asymmetry_ns
        self._strain = 1.0

    def first_estimate(self, drift: Drift, x_s: float) -> Estimate:
        """At ``x_s``, which is now, while there is no curve; from at least one round trip."""
        rate_deviation_ns_s = drift.first_rate_deviation_ns_s
        carried = self._pings.plain(x_s, rate_deviation_ns_s)
        near, far = carried.interval(0.0), carried.interval(FIRST_DEVIATIONS)
        middle_ns = self._middle_ns(near, far)
        return Estimate(
            x_s=x_s,
            offset_ns=middle_ns,
            rate_ns_s=drift.first_rate_ns_s,
            bound_ns=max(far.highest_ns - middle_ns, middle_ns - far.lowest_ns),
            precision_ns=(near.highest_ns - near.lowest_ns) / 2,
            rate_deviation_ns_s=rate_deviation_ns_s,
            floor_ns=middle_ns,
            lowest_ns=far.lowest_ns,
            highest_ns=far.highest_ns,
        )

    def estimate(
        self, fit: Fit, x_s: float, changes: Changes, arrivals: ArrivalFloor, *, often_corrupt: bool
    ) -> Estimate | None:
        """At ``x_s``, which is now. None when no round trip is left that the curve reaches."""
        curve = fit.curve
        carried = self._pings.carried(curve, x_s, fit.set_clock)
        trusted = self._agreeing(carried.without_loners(SUSPICIOUS_GAP if often_corrupt else GAP), changes)
        if not len(trusted.era):
            return None
        recent = trusted.since(changes.step_era)
        bounding = recent if len(recent.era) >= SETTLED_PINGS else trusted
        # With few points, their scatter and so all deviations are little known themselves.
        deviations = BOUND_DEVIATIONS * self._strain * (1 + FEW_MEANS / len(fit.weight))
        near, far = trusted.evenly().interval(ESTIMATE_DEVIATIONS * self._strain), bounding.interval(deviations)
        middle_ns = self._middle_ns(near, far)
        least_ns = deviations * bounding.binding_deviation_ns(deviations)
        bound_ns = max(far.highest_ns - middle_ns, middle_ns - far.lowest_ns, least_ns)
        if not len(recent.era):  # bridged by arrivals alone, all of which may have been late so far
            bound_ns += BOUND_DEVIATIONS * arrivals.late_since_ns(changes.step_era)
        lone = len(self._pings) < 2
        precision_ns = 2 * curve.deviation_ns if lone else 2 * float(np.min(trusted.deviation_ns) + 1)
        floor_ns = curve.end_at(x_s)
        return Estimate(
            x_s=x_s,
            offset_ns=floor_ns + middle_ns,
            rate_ns_s=curve.rate_ns_s,
            bound_ns=bound_ns,
            precision_ns=precision_ns,
            rate_deviation_ns_s=curve.rate_deviation_ns_s,
            floor_ns=floor_ns,
            lowest_ns=floor_ns + far.lowest_ns,
            highest_ns=floor_ns + far.highest_ns,
        )

    def _middle_ns(self, near: Interval, far: Interval) -> float:
        """The middle of ``near``, but for the asymmetry, and in any case within ``far``."""
        middle_ns = (near.lowest_ns + near.highest_ns + self._asymmetry_ns) / 2
        return min(max(middle_ns, far.lowest_ns), far.highest_ns)

    def _agreeing(self, carried: Carried, changes: Changes) -> Carried:
        """Distrusts the carrying, then forgets what is old, until all that is left allows a common offset."""
        self._strain = max(1.0, self._strain * RELAXED_BY)
        if carried.parted_at(changes.era):
            carried = self._since(carried, changes.era)
        while len(carried.era):
            interval = carried.interval(BOUND_DEVIATIONS * self._strain)
            if interval.lowest_ns <= interval.highest_ns:
                return carried
            before = carried.era < changes.step_era
            if before.any() and not before.all():
                # The path has not stayed what it was before the step.
                carried = self._since(carried, changes.step_era)
            elif self._strain < LARGEST_STRAIN:
                self._strain *= STRAINED_BY
            elif len(carried.era) < 2:
                return carried
            else:
                self._pings.forget_half()
                carried = carried.newer_half()
        return carried

    def _since(self, carried: Carried, era: int) -> Carried:
        self._pings.forget_before(era)
        return carried.since(era)
