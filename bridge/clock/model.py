"""What is known of one device's clock: floors and round trips are remembered, and an estimate follows from them.

Times are relative: ``x_s`` is device time since a reference, ``y_ns`` an offset less a base. When a device's clock is
set, reference and base are moved by the step (``Origin``), so that what is remembered stays where it is.
"""

from __future__ import annotations

from bridge.clock.arrivals import ArrivalFloor
from bridge.clock.changes import EARLY_RUN, FASTEST_CHANGE_NS_S, LONGEST_RUN, Changes, seen_change
from bridge.clock.curve import FREE_NS
from bridge.clock.drift import Drift
from bridge.clock.echoes import EchoFloors
from bridge.clock.estimate import BOUND_DEVIATIONS, Agreement, Estimate
from bridge.clock.pings import PingMemory

CHANGED_AGO_S = 2.0  # before the first round trip that disagrees
CHANGED_BY_NS_S = FASTEST_CHANGE_NS_S / 3  # when only round trips say that the rate has changed, and not by how much


class Model:
    """Feed it floor points and round trips, then ask for an ``estimate``.

    ``asymmetry_ns``: a measured difference of the path's delays, to the device less back from it.
    """

    def __init__(self, asymmetry_ns: int = 0) -> None:
        self.pings = PingMemory()
        self._arrivals = ArrivalFloor()
        self._echoes = EchoFloors(self._arrivals.scatter)
        self._memories = (self._arrivals.memory, self._echoes.replies, self._echoes.requests)
        self._changes = Changes()
        self._drift = Drift()
        self._agreement = Agreement(self.pings, asymmetry_ns)
        self._estimate: Estimate | None = None
        self._stale = False  # something has changed since the curve was fitted

    # --- in -----------------------------------------------------------------------------------------------------

    def keep_rate(self, rate_ns_s: float) -> None:
        """The rate that this device had when it was last here."""
        self._drift.keep_rate(rate_ns_s)

    def add_arrivals(self, x_s: float, y_ns: float, share: float, late_ns: float, coarse_ns: float) -> bool:
        """The earliest arrival of a block of time, ``share`` of a whole block long, which may be later than that of a
        whole one by about ``late_ns``. ``coarse_ns`` is how far their stamps are off at least.

        True when they show that something has changed, and an estimate is wanted at once.
        """
        self._arrivals.add(x_s, y_ns, share, late_ns, coarse_ns, self._changes.era, self._drift.curve)
        return self._look_for_change()

    def add_ping(self, x_s: float, lowest_ns: float, highest_ns: float, quantum_ns: int, *, follows: bool) -> None:
        """A round trip: the offset lies between ``lowest_ns`` and ``highest_ns``. Its stamp has ``quantum_ns``. One
        that ``follows`` left the moment the one before was answered."""
        era = self._changes.era
        self.pings.add(x_s, lowest_ns, highest_ns, era, self._drift.curve, follows=follows)
        self._echoes.add(x_s, lowest_ns, highest_ns, quantum_ns, era, self._drift.rate_ns_s)

    # --- what changes -------------------------------------------------------------------------------------------

    def clock_set(self, deviation_ns: float) -> None:
        """The device's clock was set. The caller has moved reference and base; ``deviation_ns`` is how well it knows
        by how much."""
        self._shift(everything=True, deviation_ns=deviation_ns)
        self._echoes.drop_block()

    def floor_moved(self) -> None:
        """Arrivals come from elsewhere now, with another floor."""
        self._shift(everything=False, deviation_ns=FREE_NS)

    def rate_changed(self, x_s: float) -> None:
        """Round trips disagree a little with what was known before ``x_s``: the rate must have changed since."""
        self._break_rate(x_s - CHANGED_AGO_S, CHANGED_BY_NS_S)
        self._arrivals.memory.renew(EARLY_RUN.to_break)
        self._stale = True

    def _look_for_change(self) -> bool:
        curve, scatter, memory = self._drift.curve, self._arrivals.scatter, self._arrivals.memory
        if curve is None or self._stale or not scatter.known:
            return False
        off = [
            (p.x_s, p.y_ns - curve.end_at(p.x_s))
            for p in memory.newest()[-LONGEST_RUN:]
            if p.blocks >= 1 and p.era >= self._changes.shift_era
        ]
        change = seen_change(off, scatter.ns, curve.deviation_ns)
        if change is None:
            return False
        if change.rate_ns_s is not None:
            self._break_rate(change.x_s, change.rate_ns_s)
        else:
            self._shift(everything=False, deviation_ns=FREE_NS)
            memory.begin_era(change.x_s, self._changes.era)
        memory.renew(change.points + 2)  # also what came just before, and was doubted for it
        self._stale = True
        return True

    def _shift(self, *, everything: bool, deviation_ns: float) -> None:
        gone = self._changes.shift(everything=everything, deviation_ns=deviation_ns)
        if gone is None:
            return
        for memory in self._memories if gone.everything else (self._arrivals.memory,):
            memory.forget_before(gone.era)
        if gone.everything:
            self.pings.forget_before(gone.era)

    def _break_rate(self, x_s: float, rate_ns_s: float) -> None:
        """A bend of the curve, over which nothing may be averaged."""
        self._changes.rate_broke(x_s, rate_ns_s)
        for memory in self._memories:
            memory.begin_era(x_s, self._changes.era)
        self._echoes.drop_block()

    # --- out ----------------------------------------------------------------------------------------------------

    def estimate(self, x_s: float, *, often_corrupt: bool = False) -> Estimate | None:
        """The offset at ``x_s``, which is now. None without round trips."""
        if not len(self.pings):
            return None
        echoes = self._echoes
        scatter_ns = (self._arrivals.scatter.ns, echoes.replies_scatter.ns, echoes.requests_scatter.ns)
        fit = self._drift.fit(self._memories, scatter_ns, self._changes, x_s)
        estimate = None
        if fit is not None:
            self._stale = False
            estimate = self._agreement.estimate(fit, x_s, self._changes, self._arrivals, often_corrupt=often_corrupt)
        if estimate is None and len(self.pings):
            estimate = self._agreement.first_estimate(self._drift, x_s)
        self._estimate = estimate or self._estimate
        return estimate

    @property
    def arrival_scatter_ns(self) -> float:
        """How far the earliest arrivals of blocks lie apart, one standard deviation."""
        return self._arrivals.scatter.ns

    @property
    def rate_ns_s(self) -> float:
        """How fast the offset changes."""
        return self._drift.rate_ns_s

    @property
    def known_rate_ns_s(self) -> float | None:
        """The rate, once it has been measured, now or when the device was last here."""
        return self._drift.known_rate_ns_s

    def spread_ns(self, age_s: float) -> float:
        """How far the offset may have run from the estimate after so long, one standard deviation."""
        return self._drift.spread_ns(age_s)

    def past_offset_ns(self, x_s: float) -> float:
        """The offset at a time long ago, by the curve as it is seen now."""
        estimate, curve = self._estimate, self._drift.curve
        assert estimate is not None
        if curve is None:
            return estimate.offset_ns + (x_s - estimate.x_s) * estimate.rate_ns_s
        return curve.quickly_at(x_s) + estimate.offset_ns - estimate.floor_ns

    def forgotten_ns(self, x_s: float) -> float:
        """How far the bound has grown at a time before everything that is remembered, whose rate is known as it was at
        the beginning of that; 0 for later times."""
        estimate, curve = self._estimate, self._drift.curve
        assert estimate is not None
        before_s = max(0.0, float(estimate.x_s if curve is None else curve.x_s[0]) - x_s)
        return before_s * (BOUND_DEVIATIONS * self._drift.oldest_deviation_ns_s)
