"""The clock that is handed out: continuous, strictly increasing, corrected by slewing.

Every correction becomes a knot of a piecewise-linear function that is kept, so that a sample that comes late is mapped
by the piece that its neighbours were mapped by.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

SLEW_TIME_NS = 1_000_000_000
MAX_SLEW = 0.005  # 5 ms a second: fast enough after a lock on a bad link, far from reversing time
KEPT_KNOTS = 128


class Knot(NamedTuple):
    """From ``device_ns`` on, host time is ``host_ns`` plus elapsed device time times ``1 + slope``."""

    device_ns: int
    host_ns: int
    slope: float


def _host_ns(knot: Knot, device_ns: int) -> int:
    elapsed_ns = device_ns - knot.device_ns
    return knot.host_ns + elapsed_ns + round(elapsed_ns * knot.slope)


class SlewedOutput:
    """Maps device to host time within one epoch, and back."""

    def __init__(self, device_ns: int, offset_ns: int, rate: float) -> None:
        self._knots = [Knot(device_ns, device_ns + offset_ns, rate)]
        self._starts = [device_ns]

    def to_host(self, device_ns: int) -> int:
        """Host time of a device time; before the first knot that is kept, its piece is extended backwards."""
        knot = self._knots[-1]
        if device_ns < knot.device_ns:
            knot = self._knots[max(0, bisect_right(self._starts, device_ns) - 1)]
        return _host_ns(knot, device_ns)

    def to_device(self, host_ns: int) -> int:
        """The inverse, to the nanosecond that rounding allows."""
        knot = next((k for k in reversed(self._knots) if k.host_ns <= host_ns), self._knots[0])
        return knot.device_ns + round((host_ns - knot.host_ns) / (1.0 + knot.slope))

    def steer(self, device_ns: int, offset_ns: int, rate: float) -> None:
        """From ``device_ns`` on, glide to ``device_ns + offset_ns`` and then run at ``rate``.

        ``device_ns`` must not precede a time that was already mapped, else that mapping would change.
        """
        knots = self._knots
        while len(knots) > 1 and knots[-1].device_ns >= device_ns:
            knots.pop()
        start_ns = _host_ns(knots[-1], device_ns)
        if knots[-1].device_ns > device_ns:  # the first: its piece still holds for everything before
            knots[-1] = Knot(device_ns, start_ns, knots[-1].slope)
        error_ns = device_ns - start_ns + offset_ns
        glide_ns = max(SLEW_TIME_NS, round(abs(error_ns) / MAX_SLEW))
        glide = Knot(device_ns, start_ns, rate + error_ns / glide_ns)
        knots += glide, Knot(device_ns + glide_ns, _host_ns(glide, device_ns + glide_ns), rate)
        del knots[:-KEPT_KNOTS]
        self._starts = [knot.device_ns for knot in knots]
