"""The statistics that chrony keeps of a source: a weighted line through as many offsets as look like a line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_SAMPLES = 64
MIN_SAMPLES = 6
MIN_FOR_REGRESSION = 3
RUNS_RATIO = 2  # samples that the runs test may look at, per sample in the regression
WORST_RATE = 2000e-6
MAX_CLOCK_ERROR = 1e-6
MAX_DELAY_S = 3.0
MAX_DELAY_DEVIATIONS = 10.0
DEVIATION_TO_DISTANCE = 0.7
PRECISION_S = 1e-7
MAX_DISTANCE_S = 3.0
MAX_JITTER_S = 1.0
MAX_UPDATE_SKEW = 1000e-6
MAX_ASYMMETRY = 0.5
MIN_ASYMMETRY = 0.45
MIN_ASYMMETRY_RUN = 10


class Chrony:
    """chrony's statistics of a source, and its reference that follows them; offsets are taken over at once, not slewed.

    Source: chrony, ``sourcestats.c`` (``SST_DoNewRegression``), ``regress.c`` (``RGR_FindBestRegression``),
    ``ntp_core.c`` (``check_delay_dev_ratio``), ``sources.c`` (``max_distance``, ``max_jitter``) and ``reference.c``
    (``get_clock_estimates``), with its defaults. Up to 64 offsets, weighed by how far their distance
    lies above the smallest; old ones are dropped while the residuals have too few runs of one sign; offsets are
    corrected for waiting on one way only when that has shown ten times in a row; a slow ping whose offset is nothing
    new is not taken. The bound is the one of chrony's tracking: half the delay and the dispersion of the best sample,
    skew by its age, and the deviation of the offset. A step makes the runs test fail and so drops what is older,
    down to six samples; a line through both sides of it has a skew that the reference does not follow in rate, and a
    deviation above 1 s, or a distance above 3 s, that it does not follow at all.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        self._dispersion_s = max(PRECISION_S, meta["quantum"])
        self._rows = np.empty((0, 3))  # time, offset, delay; old ones that only the runs test sees come first
        self._extra = 0  # how many those are
        self._asymmetry_run = 0
        self._offset_s: float | None = None
        self._offset_deviation_s = 0.0
        self._rate = 0.0
        self._skew = WORST_RATE
        self._deviation_s = 4.0
        self._at_s = 0.0
        self._reference: Reference | None = None
        self._now_s = 0.0

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        self._now_s = t_recv_local
        at_s = (t_send_local + t_recv_local) / 2
        offset_s = at_s - t_device
        delay_s = max(t_recv_local - t_send_local, PRECISION_S)
        if delay_s > MAX_DELAY_S or not self._is_welcome(at_s, offset_s, delay_s):
            return
        if len(self._rows) and at_s <= self._rows[-1, 0]:  # chrony discards its history then, too
            self._rows, self._extra = np.empty((0, 3)), 0
        if len(self._rows) - self._extra == MAX_SAMPLES:
            self._prune(1)
        self._rows = np.vstack((self._rows, (at_s, offset_s, delay_s)))
        self._regress()

    def _prune(self, dropped: int) -> None:
        kept = len(self._rows) - self._extra - dropped
        self._extra = min(self._extra + dropped, kept * (RUNS_RATIO - 1))
        self._rows = self._rows[len(self._rows) - kept - self._extra :]

    def _is_welcome(self, at_s: float, offset_s: float, delay_s: float) -> bool:
        if len(self._rows) - self._extra < MIN_SAMPLES or self._offset_s is None:
            return True
        since_s = at_s - self._at_s
        allowed_s = self._deviation_s * MAX_DELAY_DEVIATIONS + since_s * (self._skew + MAX_CLOCK_ERROR)
        excess_s = (delay_s - float(self._rows[:, 2].min())) / 2
        error_s = abs(offset_s - (self._offset_s + since_s * self._rate))
        return excess_s <= allowed_s or error_s - excess_s > allowed_s

    def _regress(self) -> None:
        at, offset, delay = self._rows[:, 0] - self._rows[-1, 0], self._rows[:, 1], self._rows[:, 2]
        base_s = float(offset[-1])
        extra, n = self._extra, len(at) - self._extra
        y = self._straightened(at, offset - base_s, delay)
        if n < MIN_FOR_REGRESSION:
            self._rate, self._skew = 0.0, WORST_RATE
            self._offset_s, self._at_s = base_s, float(self._rows[-1, 0])
            self._offset_deviation_s, self._deviation_s = 4.0, 4.0
        else:
            weights = 1 / _spreads(delay[extra:] / 2 + self._dispersion_s) ** 2
            line = _best_regression(at, y, weights, extra)
            self._rate, self._offset_s, self._at_s = line.rate, base_s + line.offset_s, float(self._rows[-1, 0])
            self._offset_deviation_s, self._deviation_s = line.offset_deviation_s, max(1e-9, line.deviation_s)
            self._skew = min(max(line.rate_deviation * t_coefficient(n - line.start - 2), 1e-12), 1.0)
            self._prune(line.start)
        kept = self._rows[self._extra :]
        distances = self._dispersion_s + (kept[-1, 0] - kept[:, 0]) * self._skew + kept[:, 2] / 2
        best = int(distances.argmin())
        if n < MIN_FOR_REGRESSION or distances[best] > MAX_DISTANCE_S or self._deviation_s > MAX_JITTER_S:
            return
        rate, skew = self._followed()
        bound_s = float(kept[best, 2]) / 2 + self._dispersion_s + self._offset_deviation_s
        self._reference = Reference(self._offset_s, self._at_s, rate, skew, bound_s, float(kept[best, 0]))

    def _followed(self) -> tuple[float, float]:
        """(rate, skew) of the reference from now on: its own and the measured ones, each by how well it is known."""
        rate, skew = (self._reference.rate, self._reference.skew) if self._reference else (0.0, 1.0)
        gain = 0.0
        if self._skew <= MAX_UPDATE_SKEW:
            gain = 3 * skew**2 / (3 * skew**2 + self._skew**2)
        change = gain * (self._rate - rate)
        left = self._rate - rate - change
        return rate + change, skew + gain * (self._skew - skew) + math.sqrt(change**2 * (1 - gain) + left**2 * gain)

    def _straightened(self, at: Floats, offset: Floats, delay: Floats) -> Floats:
        """Offsets without what delay adds to them, where all of the waiting is on one way."""
        waits = delay - delay.min()
        slope = _slope_on_delay(at, waits, offset)
        if slope is None or slope * self._asymmetry_run < 0:
            self._asymmetry_run = 0
            return offset
        if abs(slope) >= MIN_ASYMMETRY:
            self._asymmetry_run += 1 if slope > 0 else -1
        if abs(self._asymmetry_run) < MIN_ASYMMETRY_RUN:
            return offset
        return offset - min(max(slope, -MAX_ASYMMETRY), MAX_ASYMMETRY) * waits

    def add_arrival(self, t_device: float, t_local: float) -> None:
        self._now_s = t_local

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        reference = self._reference
        if reference is None:
            return None
        offset_s = reference.offset_s + reference.rate * (t_device + reference.offset_s - reference.at_s)
        age_s = max(0.0, self._now_s - reference.best_at_s)
        return t_device + offset_s, reference.bound_s + (reference.skew + MAX_CLOCK_ERROR) * age_s


@dataclass(frozen=True, slots=True)
class Reference:
    """What the clock follows: an offset at a host time, and its rate. The bound is that at the best sample's time."""

    offset_s: float
    at_s: float
    rate: float
    skew: float
    bound_s: float
    best_at_s: float


class Line:
    """A weighted line through the samples from ``start`` on, and how well it is known."""

    __slots__ = ("deviation_s", "offset_deviation_s", "offset_s", "rate", "rate_deviation", "start")

    def __init__(self, x: Floats, y: Floats, weights: Floats, start: int) -> None:
        self.start = start
        x, y, w = x[start:], y[start:], weights[start:]
        total = w.sum()
        mean = (x * w).sum() / total
        centred = x - mean
        spread = (centred * centred * w).sum()
        self.rate = float((y * centred * w).sum() / spread)
        self.offset_s = float((y * w).sum() / total - self.rate * mean)
        residuals = y - self.offset_s - self.rate * x
        variance = float((residuals * residuals * w).sum()) / max(1, len(x) - 2)
        self.rate_deviation = math.sqrt(variance / spread)
        self.offset_deviation_s = math.sqrt(variance / total + (mean * self.rate_deviation) ** 2)
        self.deviation_s = math.sqrt(variance * len(x) / total)


def _best_regression(x: Floats, y: Floats, weights: Floats, extra: int) -> Line:
    """The line through the most samples whose residuals change sign often enough. The first ``extra`` of ``x`` and
    ``y`` have no weight and serve the runs test alone."""
    n = len(weights)
    start = 0
    while True:
        line = Line(x[extra:], y[extra:], weights, start)
        seen = max(0, len(x) - (n - start) * RUNS_RATIO)
        signs = np.sign(y[seen:] - line.offset_s - line.rate * x[seen:])
        runs = 1 + int(np.count_nonzero((signs[1:] != signs[:-1]) | (signs[1:] == 0)))
        if runs > critical_runs(len(signs)) or n - start <= MIN_SAMPLES:
            return line
        start += 1


def _spreads(distances: Floats) -> Floats:
    """How uncertain samples are relative to the best one, from their distances."""
    smallest = float(distances.min())
    deviation = (float(np.median(distances)) - smallest) / DEVIATION_TO_DISTANCE
    deviation = min(max(deviation, PRECISION_S), smallest)
    return np.asarray(1 + np.maximum(0, distances - smallest - PRECISION_S) / deviation)


def _slope_on_delay(at: Floats, waits: Floats, offset: Floats) -> float | None:
    """By how much an offset grows with the delay, in a plane through time and delay; None if nothing tells."""
    if len(at) < 4:
        return None
    x, w, y = at - at.mean(), waits - waits.mean(), offset - offset.mean()
    xx, ww, xw = float(x @ x), float(w @ w), float(x @ w)
    determinant = xx * ww - xw * xw
    if determinant <= 1e-10 * xx * ww:
        return None
    return (xx * float(w @ y) - xw * float(x @ y)) / determinant


def critical_runs(samples: int) -> int:
    """So few runs of one sign or fewer come by chance in one of twenty cases (Wald and Wolfowitz, normal form).

    chrony has a table of these; it needs eight samples to reject any.
    """
    if samples < 8:
        return 0
    return int(samples / 2 + 1 - 1.645 * math.sqrt(samples - 1) / 2)


def t_coefficient(degrees: int) -> float:
    """The 99.95 % quantile of Student's t (Cornish-Fisher from six degrees on, exact below)."""
    exact = {1: 636.6, 2: 31.6, 3: 12.92, 4: 8.61, 5: 6.869}
    if degrees <= 5:
        return exact[max(1, degrees)]
    z = 3.2905
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees ** (i + 1) for i, term in enumerate(terms))
