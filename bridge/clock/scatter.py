"""How far the points of a floor lie apart by chance: learned from points next to each other, without any curve."""

from __future__ import annotations

import numpy as np

from bridge.clock.floor import WHOLE, FloorPoint

FIRST_NS = 1_000_000.0  # before anything has been seen
LEAST_NS = 300.0  # no host stamps any better
BUSY_NS = 30_000.0  # what a busy computer makes of a floor from second to second, on a path that is not shorter
FEW = 6  # points seen: some of so few are in line by chance, so the largest of them counts
STEADY = 12  # points seen that, when in line, show that a floor wanders by no more than its path is long
AT_MOST = 4.0  # of the scatter so far: what a single point adds at most
SLOWEST = 0.04  # a point's share of the mean, however many have been seen
MEAN_TO_DEVIATION = 0.8  # of a normal variable's size
BELIEVED = 0.2  # weight from which on a point tells something


class Scatter:
    """Of one floor, ``ns``: one standard deviation of a point of a whole block."""

    def __init__(self) -> None:
        self.ns = FIRST_NS
        self.least_ns = 0.0  # never smaller, whatever is seen
        self.path_ns = 0.0  # half of the fastest round trip, once there are some
        self._learned_ns = FIRST_NS
        self._seen = 0
        self._largest_ns = 0.0  # of the first few

    @property
    def known(self) -> bool:
        return self._seen >= FEW

    @property
    def guessed(self) -> bool:
        """Whether nothing has been learned yet."""
        return self._seen < FEW / 2

    def learn(self, newest: list[FloorPoint], era: int) -> None:
        """From how far the last point but one lies from the line through its neighbours. ``newest``: oldest first."""
        last = newest[-3:]
        if len(last) < 3 or any(p.blocks < WHOLE or p.weight < BELIEVED or p.era != era for p in last):
            return
        (x0, y0, *_), (x1, y1, *_), (x2, y2, *_) = last
        part = (x1 - x0) / (x2 - x0)
        off_ns = abs(y1 - (1 - part) * y0 - part * y2) / np.sqrt(1 + (1 - part) ** 2 + part**2)
        self._seen += 1
        scatter_ns = self._learned_ns
        if self._seen <= FEW:
            self._largest_ns = max(self._largest_ns, off_ns)
            if self.guessed:
                return
            scatter_ns = self._largest_ns
        else:
            share = max(SLOWEST, 1 / self._seen)
            scatter_ns += share * (min(off_ns, AT_MOST * scatter_ns) / MEAN_TO_DEVIATION - scatter_ns)
        self._learned_ns = max(LEAST_NS, self.least_ns, float(scatter_ns))
        # Few points may be in line by chance, and while the floor wanders evenly.
        self.ns = max(self._learned_ns, min(self.path_ns, BUSY_NS) * float(np.sqrt(STEADY / self._seen)))
