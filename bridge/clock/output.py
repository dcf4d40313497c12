"""The clock that is handed out: continuous, strictly increasing, corrected by slewing.

Every correction becomes a knot of a piecewise-linear function that is kept, so that a sample that comes late is mapped
by the piece that its neighbours were mapped by.
"""

from __future__ import annotations

from bisect import bisect_right

SLEW_TIME_NS = 500_000_000  # for small corrections; large ones take as long as the largest slew wants
FAST_SLEW_TIME_NS, FAST_SLEW = 200_000_000, 0.02  # in a new epoch, whose first estimates are rough
KEPT_KNOTS = 2000  # a quarter of an hour of corrections at one a second


class SlewedOutput:
    """Maps device to host time within one epoch, and back.

    From ``starts[i]`` on (device time, ns), host time is ``hosts[i]`` plus elapsed device time times
    ``1 + slopes[i]``. ``rate``: by which the offset changes, ns per ns. ``largest_slew``: how much steeper than that
    a correction may be.
    """

    def __init__(self, device_ns: int, offset_ns: int, rate: float, largest_slew: float = 0.001) -> None:
        self._largest_slew = largest_slew
        self._starts = [device_ns]
        self._hosts = [device_ns + offset_ns]
        self._slopes = [rate]

    def to_host(self, device_ns: int) -> int:
        """Host time of a device time; before the first knot that is kept, its piece is extended backwards."""
        starts = self._starts
        if device_ns >= starts[-1]:
            i = -1
        else:  # a new correction's last knot lies ahead, so this is the common case
            i = -2 if len(starts) > 1 and device_ns >= starts[-2] else max(0, bisect_right(starts, device_ns) - 1)
        elapsed_ns = device_ns - starts[i]
        return self._hosts[i] + elapsed_ns + round(elapsed_ns * self._slopes[i])

    def to_device(self, host_ns: int) -> int:
        """The inverse, to the nanosecond that rounding allows."""
        i = max(0, bisect_right(self._hosts, host_ns) - 1)
        return self._starts[i] + round((host_ns - self._hosts[i]) / (1.0 + self._slopes[i]))

    def steer(self, device_ns: int, offset_ns: int, rate: float, *, fast: bool = False) -> None:
        """From ``device_ns`` on, glide to ``device_ns + offset_ns`` and then run at ``rate``.

        ``device_ns`` must not precede a time that was already mapped, else that mapping would change.
        """
        starts, hosts, slopes = self._starts, self._hosts, self._slopes
        start_ns = self.to_host(device_ns)
        while len(starts) > 1 and starts[-1] >= device_ns:
            for knots in (starts, hosts, slopes):
                knots.pop()
        if starts[-1] > device_ns:  # the first: its piece still holds for everything before
            starts[-1], hosts[-1] = device_ns, start_ns
        error_ns = device_ns - start_ns + offset_ns
        slew, least_ns = (FAST_SLEW, FAST_SLEW_TIME_NS) if fast else (self._largest_slew, SLEW_TIME_NS)
        glide_ns = max(least_ns, round(abs(error_ns) / slew))
        slope = rate + error_ns / glide_ns
        starts += device_ns, device_ns + glide_ns
        hosts += start_ns, start_ns + glide_ns + round(glide_ns * slope)
        slopes += slope, rate
        if len(starts) > 2 * KEPT_KNOTS:
            for gone in (starts, hosts, slopes):
                del gone[:-KEPT_KNOTS]
