"""Host time on a steady clock and back. Pure maths: the readings of the two clocks are given to it.

Host time is what stamps are made of, but NTP slews it, and a slew must not be read as the drift of a device. So devices
are compared with a steady clock that nobody slews, and the result is carried back. The relation between the two is a
continuous, increasing, piecewise-linear function. What it has answered for an instant it answers for ever: a reading
that disagrees bends the function from the newest instant that was asked for, never before it.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

REFRESH_NS = 100_000_000
HISTORY_NS = 600_000_000_000
RECENT_READINGS = 16
MAX_BEND = 0.5  # of a slope from 1: chrony slews by up to 0.083, and with more than this order would not be certain


class Reading(NamedTuple):
    """Another clock showed ``other_ns`` at host time ``host_ns``, plus or minus ``bound_ns``."""

    host_ns: int
    other_ns: int
    bound_ns: int


class SteadyScale:
    """Host time to steady time and back, in integer ns. For one thread.

    ``read`` reads both clocks; ``now_ns`` is host time. Without ``read`` host time is steady itself, and both
    directions are the identity. Reads are made when an instant is asked for that lies more than ``refresh_ns`` after
    the newest one, so the common call reads no clock, and nothing that is past is extrapolated by more than that.
    """

    def __init__(
        self,
        read: Callable[[], Reading] | None,
        now_ns: Callable[[], int],
        refresh_ns: int = REFRESH_NS,
        history_ns: int = HISTORY_NS,
    ) -> None:
        self._read = read
        self._now_ns = now_ns
        self._refresh_ns = refresh_ns
        self._history_ns = history_ns
        first = read() if read is not None else Reading(0, 0, 0)
        self._recent = deque([first], maxlen=RECENT_READINGS)
        # Where pieces begin, and each one's steady time per host time, less 1. The last is kept apart as well.
        self._hosts_ns = [first.host_ns]
        self._steadies_ns = [first.other_ns]
        self._bends = [0.0]
        self._bend_before = 0.0  # of all that lies before the first piece
        self._host_ns, self._steady_ns, self._bend, self._inverse_bend = first.host_ns, first.other_ns, 0.0, 0.0
        self._asked_ns = first.host_ns  # the newest host time that was converted
        self._due_ns = first.host_ns + refresh_ns if read is not None else sys.maxsize

    def to_steady(self, host_ns: int) -> int:
        """Steady time of a host time. Never decreasing, and the same for ever for what is not in the future."""
        if host_ns > self._asked_ns:
            if host_ns > self._due_ns:
                self._ask_beyond(host_ns)
            else:
                self._asked_ns = host_ns
        elapsed_ns = host_ns - self._host_ns
        if elapsed_ns >= 0:
            return self._steady_ns + elapsed_ns + round(elapsed_ns * self._bend)
        return self._past_to_steady(host_ns)

    def to_host(self, steady_ns: int) -> int:
        """The inverse, to the 2 ns that rounding allows while host time is slewed by less than half."""
        elapsed_ns = steady_ns - self._steady_ns
        if elapsed_ns >= 0:
            host_ns = self._host_ns + elapsed_ns + round(elapsed_ns * self._inverse_bend)
        else:
            host_ns = self._past_to_host(steady_ns)
        if host_ns > self._asked_ns:
            if host_ns <= self._due_ns:
                self._asked_ns = host_ns
            elif self._ask_beyond(host_ns):
                return self.to_host(steady_ns)
        return host_ns

    def read(self) -> bool:
        """Reads both clocks, unless they were read less than half of ``refresh_ns`` ago. Whether it did."""
        newest = self._recent[-1]
        if self._read is None or self._now_ns() - newest.host_ns < self._refresh_ns // 2:
            return False
        reading = self._read()
        if reading.host_ns > newest.host_ns:
            self._take(reading)
        return True

    @property
    def bound_ns(self) -> int:
        """How far the function may be from the two clocks at the newest reading. A round trip through it is exact.

        The half width of that reading, and what is still to be glided out after a change of the host's rate. After it,
        a change that no reading has shown yet adds its size times at most ``refresh_ns``: 50 us for 500 ppm.
        """
        newest = self._recent[-1]
        elapsed_ns = newest.host_ns - self._host_ns
        if elapsed_ns < 0:
            return newest.bound_ns + abs(newest.other_ns - self._past_to_steady(newest.host_ns))
        return newest.bound_ns + abs(newest.other_ns - self._steady_ns - elapsed_ns - round(elapsed_ns * self._bend))

    @property
    def rate_ppm(self) -> float:
        """By how much host time runs fast against steady time: what NTP does to it."""
        return 1e6 * _inverse(_rate(self._recent))

    @property
    def pieces(self) -> int:
        """How many pieces are kept."""
        return len(self._hosts_ns)

    # --- inside --------------------------------------------------------------------------------------------------

    def _ask_beyond(self, host_ns: int) -> bool:
        """An instant after ``_due_ns``. Whether there is a new reading."""
        read = self.read()
        # No further: one stamp from the future must not keep the instants before it from causing readings.
        self._asked_ns = max(self._asked_ns, min(host_ns, self._due_ns))
        return read

    def _past_to_steady(self, host_ns: int) -> int:
        index = bisect_right(self._hosts_ns, host_ns) - 1
        bend = self._bends[index] if index >= 0 else self._bend_before
        index = max(0, index)
        elapsed_ns = host_ns - self._hosts_ns[index]
        return self._steadies_ns[index] + elapsed_ns + round(elapsed_ns * bend)

    def _past_to_host(self, steady_ns: int) -> int:
        index = bisect_right(self._steadies_ns, steady_ns) - 1
        bend = self._bends[index] if index >= 0 else self._bend_before
        index = max(0, index)
        elapsed_ns = steady_ns - self._steadies_ns[index]
        return self._hosts_ns[index] + elapsed_ns + round(elapsed_ns * _inverse(bend))

    def _take(self, reading: Reading) -> None:
        previous_ns = self._recent[-1].host_ns
        self._recent.append(reading)
        at_ns = reading.host_ns
        self._due_ns = at_ns + self._refresh_ns
        rate = _clamped(_rate(self._recent))
        if len(self._recent) == 2:
            self._bend_before = rate
        elapsed_ns = at_ns - self._host_ns  # less than 0 where the newest piece, the end of a glide, is yet to begin
        if abs(reading.other_ns - self._steady_ns - elapsed_ns - elapsed_ns * self._bend) <= reading.bound_ns:
            return
        # Not before what was asked for, nor before what the last reading has settled: a glide may end after it.
        from_ns = min(max(self._asked_ns, previous_ns, self._hosts_ns[-1]), at_ns)
        while len(self._hosts_ns) > 1 and self._hosts_ns[-1] > from_ns:
            self._hosts_ns.pop()
            self._steadies_ns.pop()
            self._bends.pop()
        start_ns, until_ns, until_steady_ns = self._end_of(from_ns), at_ns, reading.other_ns
        if at_ns - self._asked_ns < self._refresh_ns:
            # In use: meet the clock where the next reading is due. A sharper bend would be a jump in what leaves.
            until_ns += self._refresh_ns
            until_steady_ns += self._refresh_ns + round(self._refresh_ns * rate)
        self._append(from_ns, start_ns, _clamped((until_steady_ns - start_ns) / (until_ns - from_ns) - 1.0))
        self._append(until_ns, self._end_of(until_ns), rate)
        self._forget(at_ns - self._history_ns)

    def _end_of(self, host_ns: int) -> int:
        """Steady time where the newest piece that is listed ends at ``host_ns``."""
        elapsed_ns = host_ns - self._hosts_ns[-1]
        return self._steadies_ns[-1] + elapsed_ns + round(elapsed_ns * self._bends[-1])

    def _append(self, host_ns: int, steady_ns: int, bend: float) -> None:
        if host_ns == self._hosts_ns[-1]:
            self._bends[-1] = bend
        else:
            self._hosts_ns.append(host_ns)
            self._steadies_ns.append(steady_ns)
            self._bends.append(bend)
        self._host_ns, self._steady_ns, self._bend, self._inverse_bend = host_ns, steady_ns, bend, _inverse(bend)

    def _forget(self, horizon_ns: int) -> None:
        """Drops the pieces that end before ``horizon_ns``."""
        surplus = bisect_right(self._hosts_ns, horizon_ns) - 1
        if surplus > 0:
            self._bend_before = self._bends[surplus - 1]
            del self._hosts_ns[:surplus], self._steadies_ns[:surplus], self._bends[:surplus]


def _inverse(bend: float) -> float:
    return -bend / (1.0 + bend)


def _clamped(bend: float) -> float:
    return max(-MAX_BEND, min(MAX_BEND, bend))


def _rate(readings: deque[Reading]) -> float:
    """Steady time per host time, less 1: the middle of what the newest readings allow, as far back as they agree."""
    if len(readings) < 2:
        return 0.0
    newest = readings[-1]
    lowest, highest = float("-inf"), float("inf")
    for index in range(len(readings) - 2, -1, -1):
        reading = readings[index]
        elapsed_ns = newest.host_ns - reading.host_ns
        change_ns = newest.other_ns - reading.other_ns - elapsed_ns
        room_ns = newest.bound_ns + reading.bound_ns
        low, high = (change_ns - room_ns) / elapsed_ns, (change_ns + room_ns) / elapsed_ns
        if low > highest or high < lowest:
            break
        lowest, highest = max(lowest, low), min(highest, high)
    return (lowest + highest) / 2
