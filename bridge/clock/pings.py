"""The memory of round trips: what each says about the offset, carried to now along the curve.

Every round trip gives a lowest and a highest offset. The offset lies above all lowest and below all highest, so only
the extremes matter, and an extreme is worth keeping for as long as the curve can carry it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bridge.clock.curve import Curve, Floats

CAPACITY = 512
THINNED = 384  # the oldest of a full memory, of which the best two of each four stay
REACH_S = 10.0  # before the curve's first point
ENOUGH_FOLLOW = 5
BEST = 7  # round trips that say the most about one side
MAX_SIFTINGS = 4  # each may uncover further loners
MAX_LONERS = 6  # on one side at once: more are no loners
NEIGHBOURS = 10  # whose distances say how wide a gap is usual
LEAST_NEIGHBOURS = 5  # with fewer there is nothing to compare with
LEAST_GAP_NS = 1000.0  # narrower ones are nobody's fault
LONER_DEVIATIONS = 4.0  # of the carrying, by which a gap may only seem wide


class Interval(NamedTuple):
    """Offsets relative to the curve, ns."""

    lowest_ns: float
    highest_ns: float


class PingMemory:
    """The last 512 round trips or what is left of them, about an hour at one a second."""

    def __init__(self) -> None:
        self._x_s = np.zeros(CAPACITY)
        self._lowest_ns = np.zeros(CAPACITY)
        self._highest_ns = np.zeros(CAPACITY)
        self._era = np.zeros(CAPACITY, dtype=np.int64)
        self._follows = np.zeros(CAPACITY, dtype=bool)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(
        self,
        x_s: float,
        lowest_ns: float,
        highest_ns: float,
        era: int,
        curve: Curve | None,
        *,
        follows: bool = False,
    ) -> None:
        """A round trip whose device time is ``x_s``; whether it ``follows`` another at once. ``curve`` tells which of
        the old ones to keep."""
        if self._count == CAPACITY:
            self._thin(curve)
        i = self._count
        self._x_s[i], self._lowest_ns[i], self._highest_ns[i] = x_s, lowest_ns, highest_ns
        self._era[i], self._follows[i] = era, follows
        self._count += 1

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        count = int(kept.sum())
        for array in (self._x_s, self._lowest_ns, self._highest_ns, self._era, self._follows):
            array[:count] = array[: self._count][kept]
        self._count = count

    def _thin(self, curve: Curve | None) -> None:
        """Of each four old ones, those that say the most about either side stay."""
        old = slice(0, THINNED)
        z_ns = curve.at(self._x_s[old]) if curve is not None else 0.0
        fours = np.arange(THINNED).reshape(-1, 4)
        rows = np.arange(len(fours))
        kept = np.ones(CAPACITY, dtype=bool)
        kept[old] = False
        kept[fours[rows, np.argmin((self._highest_ns[old] - z_ns).reshape(-1, 4), axis=1)]] = True
        kept[fours[rows, np.argmax((self._lowest_ns[old] - z_ns).reshape(-1, 4), axis=1)]] = True
        self._keep(kept)

    def forget_before(self, era: int) -> None:
        """Round trips of earlier eras go."""
        self._keep(self._era[: self._count] >= era)

    def forget_half(self) -> None:
        """The older half goes: it contradicts the newer."""
        self._keep(np.arange(self._count) >= (self._count + 1) // 2)

    def carried(self, curve: Curve, now_s: float, set_clock: tuple[tuple[int, int], ...]) -> Carried:
        """Everything as seen from now, as far back as the curve reaches; what is older goes. ``set_clock``: see
        ``Fit``."""
        if self._count and self._x_s[0] < curve.x_s[0] - REACH_S:
            self._keep(self._x_s[: self._count] >= curve.x_s[0] - REACH_S)
        n = self._count
        older = {column: self._era[:n] < era for era, column in set_clock}
        z_ns, deviation_ns = curve.carried(self._x_s[:n], now_s, older)
        return Carried(
            self._lowest_ns[:n] - z_ns,
            self._highest_ns[:n] - z_ns,
            deviation_ns,
            self._era[:n].copy(),
            self._follows[:n].copy(),
        )

    def plain(self, x_s: float, rate_deviation_ns_s: float) -> Carried:
        """As ``carried`` while there is no curve: the rate is anything about zero."""
        n = self._count
        deviation_ns = np.abs(x_s - self._x_s[:n]) * rate_deviation_ns_s
        return Carried(
            self._lowest_ns[:n].copy(),
            self._highest_ns[:n].copy(),
            deviation_ns,
            self._era[:n].copy(),
            self._follows[:n].copy(),
        )


class Carried(NamedTuple):
    """Round trips relative to the curve, with how well each can be compared with one of now: arrays of one length."""

    lowest_ns: Floats
    highest_ns: Floats
    deviation_ns: Floats
    era: NDArray[np.int64]
    follows: NDArray[np.bool_]

    def evenly(self) -> Carried:
        """Those that followed another round trip at once, where there are enough: the way there and back was in the
        same state for them, while others had to wake somebody up, or to wait for their slot and their replies not."""
        return self._only(self.follows) if int(self.follows.sum()) >= ENOUGH_FOLLOW else self

    def without_loners(self, gap: float) -> Carried:
        """Leaves out round trips of which one side says more than all others by ``gap`` times the distances among
        those: corrupt stamps, or replies that were taken for those of a later request."""
        sifted = self
        for _ in range(MAX_SIFTINGS):
            slack_ns = LONER_DEVIATIONS * sifted.deviation_ns
            lonely = _loners(sifted.highest_ns, slack_ns, gap) | _loners(-sifted.lowest_ns, slack_ns, gap)
            lonely |= _loners(sifted.highest_ns - sifted.lowest_ns, 0.0 * slack_ns, gap)
            if not lonely.any() or lonely.all():
                break
            sifted = sifted._only(~lonely)
        return sifted

    def since(self, era: int) -> Carried:
        """Those of ``era`` and later ones."""
        return self._only(self.era >= era)

    def newer_half(self) -> Carried:
        return self._only(slice((len(self.era) + 1) // 2, None))

    def _only(self, kept: NDArray[np.bool_] | slice) -> Carried:
        return Carried(*(array[kept] for array in self))  # type: ignore[arg-type]

    def parted_at(self, era: int) -> bool:
        """Whether those before ``era`` cannot be compared with those since: one side says the most about the highest
        offset, the other about the lowest, which chance alone does once in thousands of times."""
        old = self.era < era
        count = int(old.sum())
        if count < BEST or len(old) - count < BEST:
            return False
        highest = int(old[np.argpartition(self.highest_ns, BEST - 1)[:BEST]].sum())
        lowest = int(old[np.argpartition(-self.lowest_ns, BEST - 1)[:BEST]].sum())
        return max(highest, lowest) >= BEST - 1 and min(highest, lowest) <= 1

    def binding_deviation_ns(self, deviations: float) -> float:
        """How well the two that leave the least open are known: when the rest is misjudged, they may all but exclude
        each other, which makes nothing better known than they are."""
        slack_ns = deviations * self.deviation_ns
        low, high = np.argmax(self.lowest_ns - slack_ns), np.argmin(self.highest_ns + slack_ns)
        return float(max(self.deviation_ns[low], self.deviation_ns[high]))

    def interval(self, deviations: float) -> Interval:
        """What all allow, each widened by so many of its standard deviations."""
        slack_ns = deviations * self.deviation_ns
        return Interval(float(np.max(self.lowest_ns - slack_ns)), float(np.min(self.highest_ns + slack_ns)))


def _loners(values: Floats, slack: Floats, gap: float) -> NDArray[np.bool_]:
    """The smallest few of ``values``, where a wide gap parts them from the rest.

    Among the smallest of many waits the distances are alike, whatever their distribution; from one neighbour to the
    next they vary like exponential variables. ``slack`` is how far each value may be off.
    """
    lonely = np.zeros(len(values), dtype=bool)
    wanted = MAX_LONERS + NEIGHBOURS + 1
    if len(values) < NEIGHBOURS:
        return lonely
    count = min(wanted, len(values))
    index = np.argpartition(values, count - 1)[:count]
    index = index[np.argsort(values[index])]
    smallest, off = values[index].tolist(), slack[index].tolist()
    for i in range(min(MAX_LONERS, count - LEAST_NEIGHBOURS - 1) - 1, -1, -1):
        last = min(i + 1 + NEIGHBOURS, count - 1)
        usual = (smallest[last] - smallest[i + 1]) / (last - i - 1)
        if smallest[i + 1] - smallest[i] > gap * usual + off[i] + off[i + 1] + LEAST_GAP_NS:
            lonely[index[: i + 1]] = True
            break
    return lonely
