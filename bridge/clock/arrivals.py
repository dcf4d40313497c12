"""The floor of arrivals: the earliest sample of each block of time, as far as each is believed."""

from __future__ import annotations

import numpy as np

from bridge.clock.curve import Curve
from bridge.clock.floor import WHOLE, FloorMemory, FloorPoint
from bridge.clock.scatter import Scatter

FINE, COARSE, OLD = 12, 5, 30  # points of one block, of each larger size, of the largest
LATE_SHARE = 0.05  # of a block in the mean lateness
DOUBT_FROM, DOUBT_SCALE = 1.0, 2.0  # standard deviations late: nothing is doubted before, half is at three


class ArrivalFloor:
    """Takes points, keeps them in ``memory`` and learns their ``scatter``."""

    def __init__(self) -> None:
        self.memory = FloorMemory(FINE, COARSE, OLD)
        self.scatter = Scatter()
        self._late_ns = 0.0  # whole blocks are so late on average

    def add(
        self, x_s: float, y_ns: float, share: float, late_ns: float, coarse_ns: float, era: int, curve: Curve | None
    ) -> None:
        """As ``Model.add_arrivals``. ``curve`` is the last fit."""
        self.scatter.least_ns = coarse_ns
        self.scatter.ns = max(self.scatter.ns, coarse_ns)
        blocks = 1 / (1 / share + (late_ns / self.scatter.ns) ** 2)
        weight = 1.0
        if curve is not None:
            off_ns = y_ns - curve.end_at(x_s)
            if blocks > WHOLE:
                self._late_ns += LATE_SHARE * (max(off_ns, 0.0) - self._late_ns)
            weight = self._belief(off_ns, blocks, curve)
        self.memory.add(FloorPoint(x_s, y_ns, blocks, weight, era))
        self.scatter.learn(self.memory.newest(), era)

    def _belief(self, off_ns: float, blocks: float, curve: Curve) -> float:
        """The weight of a new point until it is fitted: one that is far too late must change nothing at first."""
        scale_ns = np.hypot(self.scatter.ns / np.sqrt(blocks), curve.deviation_ns)
        return float(1 / (1 + (max(off_ns / scale_ns - DOUBT_FROM, 0.0) / DOUBT_SCALE) ** 2))

    def late_since_ns(self, era: int) -> float:
        """How late all points since ``era`` may have been, ns: the fewer, the more."""
        witnesses = sum(point.era >= era for point in self.memory.newest())
        return self._late_ns / max(1, witnesses)
