"""When a device is to be asked next: ten times in a second when something is new, then less and less often until it is
once an interval, dithered. As a rule in pairs: the second ping leaves the moment the first is answered, while nobody
on the way has gone back to sleep, and takes a shorter and more even way there and back.
"""

from __future__ import annotations

BURST_INTERVAL_NS = 100_000_000
BURST_PINGS = 10
SLOWER = 1.5  # from one interval to the next after a burst: the rate is not known yet
DITHER = 0.4  # of the interval, from the shortest to the longest
EARLY = 0.54  # a little more often than asked for, so that pings go through every phase of a period of one interval
GOLDEN = 0.6180339887498949  # its multiples fill the unit interval evenly, in no period that a network has


class PingPlan:
    """Given the time, says when; host times in ns. ``pairs``: whether two are to be sent where one is due."""

    def __init__(self, interval_ns: int) -> None:
        self.interval_ns = interval_ns
        self.pairs = True
        self._burst_left = BURST_PINGS
        self._step_ns = BURST_INTERVAL_NS
        self._next_ns = 0
        self._sent = 0

    def burst(self) -> None:
        """Asks for round trips at once. Does nothing while a burst is under way."""
        if self._burst_left == 0:
            self._burst_left = BURST_PINGS
            self._next_ns = 0

    def next_ns(self) -> int:
        """Host time from which on the next ping or pair is wanted; 0 for at once."""
        return self._next_ns

    def sent(self, now_ns: int) -> None:
        """A ping or a pair has been sent: the burst or the regular interval goes on from here."""
        self._sent += 1
        if self._burst_left > 0:
            self._burst_left -= 1
            self._step_ns = BURST_INTERVAL_NS
        else:
            self._step_ns = min(self.interval_ns, round(self._step_ns * SLOWER))
        dither = 1.0
        if self._step_ns >= self.interval_ns:
            dither += DITHER * (self._sent * GOLDEN % 1.0 - EARLY)
        self._next_ns = now_ns + round(self._step_ns * dither)
