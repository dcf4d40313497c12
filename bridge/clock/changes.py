"""What has changed at once: eras, and how a change is seen in the points of the floor of arrivals.

A device's clock is set, its rate breaks, or the path of arrivals becomes longer or shorter. Each change begins an era;
points remember theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bridge.clock.curve import Break, Floats, Shift

MOST_SHIFTS = 5  # each is an unknown more, so what is older than the oldest is forgotten
MOST_BREAKS = 6
OFF = 5.0  # standard deviations from the curve that make a point stand out
LONGEST_RUN = 12  # points, as many as are kept in full
TIGHT = 1.5  # usual scatters from a line: a floor that has moved scatters as before
LOOSE = 2.5  # congestion that happens to rise, more than this
STEEP = 6.0  # standard deviations of a slope
FASTEST_CHANGE_NS_S = 1_500_000.0  # no clock's rate changes by more: 500 ppm either way, and a margin


class Run(NamedTuple):
    """How many consecutive points off the curve make a break of the rate, and a move of the floor."""

    to_break: int
    to_move: int


LATE_RUN, EARLY_RUN = Run(4, 8), Run(3, 8)  # what is early cannot be congestion


class Change(NamedTuple):
    """From ``x_s`` on the rate differs by ``rate_ns_s``, or the floor lies elsewhere when that is None. Seen in the
    newest ``points``."""

    x_s: float
    rate_ns_s: float | None
    points: int


class Changes:
    """Those that are remembered. ``era`` is that of now."""

    def __init__(self) -> None:
        self.era = 0
        self.shift_era = 0  # the last in which anything was shifted
        self.step_era = 0  # the last in which the device's clock was set
        self.shifts: list[Shift] = []
        self.breaks: list[Break] = []

    def shift(self, *, everything: bool, deviation_ns: float) -> Shift | None:
        """Begins an era; see ``Shift``. Returns the shift that is one too many now, if there is one."""
        self.era += 1
        self.shift_era = self.era
        if everything:
            self.step_era = self.era
        self.shifts.append(Shift(self.era, everything, deviation_ns))
        return self.shifts.pop(0) if len(self.shifts) > MOST_SHIFTS else None

    def rate_broke(self, x_s: float, rate_ns_s: float) -> None:
        """Begins an era; see ``Break``."""
        self.era += 1
        self.breaks = [*self.breaks[1 - MOST_BREAKS :], Break(x_s, rate_ns_s)]


def seen_change(off: list[tuple[float, float]], scatter_ns: float, deviation_ns: float) -> Change | None:
    """What the newest points show, if anything: those in a row that lie far off the curve, to one side, and in line.

    ``off``: time in s and distance from the curve in ns of each, oldest first. ``deviation_ns``: the curve's own.
    """
    limit_ns = OFF * float(np.hypot(scatter_ns, deviation_ns))
    late = bool(off) and off[-1][1] > 0
    run = 0
    while run < len(off) and (off[-1 - run][1] if late else -off[-1 - run][1]) > limit_ns:
        run += 1
    least = LATE_RUN if late else EARLY_RUN
    if run < least.to_break:
        return None
    x_s, y_ns = (np.array(column) for column in zip(*off[-run:], strict=True))
    line = _Line(x_s - x_s[-1], y_ns, scatter_ns)
    if line.slope != 0 and line.steep and 0 < line.level / line.slope < LONGEST_RUN:  # it left the curve of late
        if abs(line.slope) > FASTEST_CHANGE_NS_S or line.apart > LOOSE:
            return None  # no clock is that fast, and congestion never that even
        return Change(float(x_s[-1]) - line.level / line.slope, line.slope, run)
    if run >= least.to_move and line.apart < TIGHT and not line.steep:
        return Change(float(x_s[0]), None, run)
    return None


class _Line:
    """A line through points, ns and ns/s. ``x_s`` ends with 0, where it has its ``level``.

    ``apart``: how far the points lie from it, in their usual scatter. ``steep``: whether its slope is none by chance.
    """

    def __init__(self, x_s: Floats, y_ns: Floats, scatter_ns: float) -> None:
        slope, level = (float(value) for value in np.polyfit(x_s, y_ns, 1))
        self.slope, self.level = slope, level
        residual_ns = y_ns - level - slope * x_s
        apart_ns = float(np.sqrt(np.sum(np.square(residual_ns)) / max(1, len(x_s) - 2)))
        spread_s = float(np.sqrt(np.sum(np.square(x_s - np.mean(x_s)))))
        self.apart = apart_ns / scatter_ns
        self.steep = abs(slope) * spread_s > STEEP * max(apart_ns, scatter_ns)
