"""What a window of round trips allows: an interval for the offset at a moment, and one for the rate.

Each round trip says ``lowest <= offset <= highest`` at its device time. The best of each second is kept. Carried to
another moment, a constraint widens by what is not known about the rate.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

BLOCK_NS = 1_000_000_000
MEMORY_NS = 120_000_000_000
PRIOR_RATE = 200e-6  # crystals of phones and PCs are within 50 ppm of each other; a disciplined host adds some
WANDER_RATE = 1e-6  # a crystal's rate is taken as constant over MEMORY_NS to within this
RATE_SAMPLES = 8  # round trips taken at each end of the window for the rate


class Constraint(NamedTuple):
    """``lowest_ns <= offset <= highest_ns`` at ``device_ns``."""

    device_ns: int
    lowest_ns: int
    highest_ns: int


def _width_ns(constraint: Constraint) -> int:
    return constraint.highest_ns - constraint.lowest_ns


class Envelope:
    """The constraints of the last two minutes, one a second."""

    def __init__(self) -> None:
        self.constraints: deque[Constraint] = deque()
        self.rate = 0.0
        self.rate_bound = PRIOR_RATE

    def add(self, new: Constraint) -> None:
        """Keeps ``new`` if it is the tightest of its second, and estimates the rate again.

        One of a second before the newest is left out: what is kept stays in the order of device time.
        """
        kept = self.constraints
        block = new.device_ns // BLOCK_NS
        newest_block = kept[-1].device_ns // BLOCK_NS if kept else block - 1
        if block < newest_block:
            return
        if block == newest_block:
            # The older one has widened by the rate's prior on its way to now.
            if _width_ns(new) <= _width_ns(kept[-1]) + 2 * PRIOR_RATE * (new.device_ns - kept[-1].device_ns):
                kept[-1] = new
        else:
            kept.append(new)
        while kept[0].device_ns < new.device_ns - MEMORY_NS:
            kept.popleft()
        self._estimate_rate()

    def _estimate_rate(self) -> None:
        kept = self.constraints
        third = len(kept) // 3
        if third < 1:
            return
        window = list(kept)
        early = sorted(window[:third], key=_width_ns)[:RATE_SAMPLES]
        late = sorted(window[-third:], key=_width_ns)[:RATE_SAMPLES]
        highest = min((b.highest_ns - a.lowest_ns) / (b.device_ns - a.device_ns) for a in early for b in late)
        lowest = max((b.lowest_ns - a.highest_ns) / (b.device_ns - a.device_ns) for a in early for b in late)
        if lowest > highest:
            # The rate was not constant: what is left is the middle, and the disagreement as uncertainty.
            lowest, highest = highest, lowest
        if highest > -PRIOR_RATE and lowest < PRIOR_RATE:
            lowest, highest = max(lowest, -PRIOR_RATE), min(highest, PRIOR_RATE)
        self.rate = (lowest + highest) / 2
        self.rate_bound = (highest - lowest) / 2 + WANDER_RATE

    def offset_at(self, device_ns: int) -> tuple[int, float]:
        """The offset at ``device_ns`` and its bound, ns. The offset is an integer: as a float, one of 50 years is
        only good to 256 ns.

        The estimate is the middle of what a quarter of the rate bound allows (the rate is usually known far better
        than its bound says); the bound is what all of it allows. Constraints that contradict newer ones are forgotten:
        the path or the rate has changed since.
        """
        while True:
            lowest, highest = self._interval(device_ns, self.rate_bound)
            if lowest <= highest:
                break
            for _ in range((len(self.constraints) + 1) // 2):
                self.constraints.popleft()
        near_lowest, near_highest = self._interval(device_ns, self.rate_bound / 4)
        middle = (near_lowest + near_highest) / 2
        offset = round(min(max(middle, lowest), highest))
        return self._base_ns + offset, max(highest - offset, offset - lowest)

    @property
    def _base_ns(self) -> int:
        """What intervals are relative to, so that their floats are small and exact."""
        return self.constraints[-1].lowest_ns

    def _interval(self, device_ns: int, rate_bound: float) -> tuple[float, float]:
        """The lowest and the highest offset that all constraints allow, relative to ``_base_ns``."""
        rate, base = self.rate, self._base_ns
        lowest, highest = float("-inf"), float("inf")
        for at, low, high in self.constraints:
            age = device_ns - at
            drift = rate * age
            widening = abs(age) * rate_bound
            lowest = max(lowest, low - base + drift - widening)
            highest = min(highest, high - base + drift + widening)
        return lowest, highest
