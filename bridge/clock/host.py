"""The host's clocks. The only module of this package that reads any.

Host time is CLOCK_MONOTONIC, which is what ``pylsl.local_clock()`` reads on Linux. It is never stepped, but NTP slews
it, and it stands still while the computer sleeps. Around it: a steady clock that nobody slews, what the computer slept,
and CLOCK_REALTIME, which is followed for ROS and never estimated on. docs/host-clocks.md says who sees what.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_right
from collections.abc import Callable

from bridge.clock.host_scale import HISTORY_NS, REFRESH_NS, Reading, SteadyScale

SANDWICHES = 5
SUSPEND_NOISE_NS = 1_000_000
MAX_SLEW = 500e-6  # of CLOCK_REALTIME against host time; on Linux NTP slews both alike
GLANCE_NS = 100_000  # a single look at CLOCK_REALTIME that is off by more asks for a reading: a step, or a stall
KEPT_OFFSETS = 1024


def _linux_clock(name: str) -> Callable[[], int] | None:
    """A clock that only Linux has, or has with this meaning: macOS' CLOCK_MONOTONIC_RAW runs on in sleep."""
    clock_id: int | None = getattr(time, name, None) if sys.platform.startswith("linux") else None
    if clock_id is None:
        return None
    known_id = clock_id

    def clock_ns() -> int:
        return time.clock_gettime_ns(known_id)

    try:
        clock_ns()
    except OSError:  # a sandbox without it
        return None
    return clock_ns


STEADY_CLOCK_NS = _linux_clock("CLOCK_MONOTONIC_RAW")
BOOTTIME_NS = _linux_clock("CLOCK_BOOTTIME")
# 2 ns on Linux, 16 ms and more on Windows
REALTIME_TICK_NS = round(1e9 * (time.get_clock_info("time").resolution + time.get_clock_info("monotonic").resolution))


def monotonic_ns() -> int:
    """Host time: CLOCK_MONOTONIC in ns on Linux, Python's monotonic clock elsewhere."""
    return time.monotonic_ns()


def read_beside(
    other_ns: Callable[[], int],
    host_ns: Callable[[], int] = time.monotonic_ns,
) -> Reading:
    """What another clock shows at which host time, and the bound of that, in ns. Narrowest of five sandwiches."""
    best: tuple[int, int, int] | None = None
    for _ in range(SANDWICHES):
        before = host_ns()
        other = other_ns()
        after = host_ns()
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, other)
    assert best is not None
    return Reading(best[1], best[2], best[0] // 2 + 1)


def sandwich(
    other_ns: Callable[[], int],
    host_ns: Callable[[], int] = time.monotonic_ns,
) -> tuple[int, int]:
    """(offset, bound) in ns of another clock: add the offset to host time to get it. Narrowest of five readings."""
    reading = read_beside(other_ns, host_ns)
    return reading.other_ns - reading.host_ns, reading.bound_ns


def steady_scale(
    steady_ns: Callable[[], int] | None = STEADY_CLOCK_NS,
    host_ns: Callable[[], int] = time.monotonic_ns,
    *,
    refresh_ns: int = REFRESH_NS,
    history_ns: int = HISTORY_NS,
) -> SteadyScale:
    """Host time to CLOCK_MONOTONIC_RAW and back; the identity where there is no such clock."""
    read = None if steady_ns is None else lambda: read_beside(steady_ns, host_ns)
    return SteadyScale(read, host_ns, refresh_ns, history_ns)


class SuspendWatch:
    """What the computer slept, from CLOCK_BOOTTIME minus host time. Without such a clock, always 0."""

    def __init__(
        self,
        boottime_ns: Callable[[], int] | None = BOOTTIME_NS,
        host_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._boottime_ns = boottime_ns
        self._host_ns = host_ns
        self._asleep_ns, self._bound_ns = (0, 0) if boottime_ns is None else sandwich(boottime_ns, host_ns)

    def poll(self) -> int:
        """ns slept since the last poll. 0 for less than 1 ms, which would be noise; nothing is lost, it adds up."""
        if self._boottime_ns is None:
            return 0
        asleep_ns, bound_ns = sandwich(self._boottime_ns, self._host_ns)
        slept_ns = asleep_ns - self._asleep_ns
        if slept_ns < SUSPEND_NOISE_NS + bound_ns + self._bound_ns:
            return 0
        self._asleep_ns, self._bound_ns = asleep_ns, bound_ns
        return slept_ns


class RealtimeOffset:
    """CLOCK_REALTIME minus host time, as it is and as it was. For one thread.

    Every conversion glances at both clocks; they are read properly when the glance is off by more than 0.1 ms, and when
    a reading is older than 100 ms. An offset that the reading confirms is kept, so stamps have no noise of readings.
    """

    def __init__(
        self,
        realtime_ns: Callable[[], int] = time.time_ns,
        host_ns: Callable[[], int] = time.monotonic_ns,
        boottime_ns: Callable[[], int] | None = BOOTTIME_NS,
        tick_ns: int = REALTIME_TICK_NS,
    ) -> None:
        self.steps = 0
        self.step_ns = 0
        self._realtime_ns = realtime_ns
        self._host_ns = host_ns
        self._tick_ns = tick_ns
        self._suspends = SuspendWatch(boottime_ns, host_ns)
        first = read_beside(realtime_ns, host_ns)
        self._offset_ns, self._bound_ns = first.other_ns - first.host_ns, first.bound_ns
        self._read_at_ns = self._held_at_ns = first.host_ns  # the offset was still true at _held_at_ns
        self._since_ns = first.host_ns
        self._all_since_ns = [first.host_ns]
        self._all_offsets_ns = [self._offset_ns]

    def to_realtime(self, host_ns: int) -> int:
        """CLOCK_REALTIME, ns since 1970, as it was at a host time. Instants before the first offset get that one."""
        now_ns = self._host_ns()
        off_ns = self._realtime_ns() - now_ns - self._offset_ns
        if now_ns - self._read_at_ns > REFRESH_NS or not -GLANCE_NS < off_ns < GLANCE_NS:
            self.read()
        else:
            self._held_at_ns = now_ns
        if host_ns >= self._since_ns:
            return host_ns + self._offset_ns
        return host_ns + self._all_offsets_ns[max(0, bisect_right(self._all_since_ns, host_ns) - 1)]

    def read(self) -> bool:
        """Reads both clocks. True when CLOCK_REALTIME has been stepped: ``steps`` counts, ``step_ns`` is the newest.

        Conversions read too, so who wants to know of every step looks at ``steps``. A suspend changes the offset as
        well, but is no step. Nor is less than what a slew of 500 ppm could have done since the last reading.
        """
        reading = read_beside(self._realtime_ns, self._host_ns)
        at_ns, offset_ns = reading.host_ns, reading.other_ns - reading.host_ns
        elapsed_ns, held_at_ns = at_ns - self._read_at_ns, self._held_at_ns
        self._read_at_ns = self._held_at_ns = at_ns
        change_ns = offset_ns - self._offset_ns
        noise_ns = reading.bound_ns + self._bound_ns + self._tick_ns
        if abs(change_ns) <= noise_ns:
            if reading.bound_ns < self._bound_ns // 2:
                self._begin(at_ns, offset_ns, reading.bound_ns)
            return False
        room_ns = 2 * noise_ns + elapsed_ns * MAX_SLEW
        if abs(change_ns) <= room_ns:
            self._begin(at_ns, offset_ns, reading.bound_ns)
            return False
        # When it was between the two looks is not known: the middle errs least.
        self._begin((held_at_ns + at_ns) // 2, offset_ns, reading.bound_ns)
        slept_ns = self._suspends.poll()
        step_ns = change_ns - slept_ns
        if abs(step_ns) <= (GLANCE_NS if slept_ns else room_ns):
            return False
        self.steps += 1
        self.step_ns = step_ns
        return True

    @property
    def offset_ns(self) -> int:
        """As of the newest reading: add it to host time to get CLOCK_REALTIME."""
        return self._offset_ns

    @property
    def bound_ns(self) -> int:
        """Of ``offset_ns``: the half width of the reading that it comes from."""
        return self._bound_ns

    def _begin(self, since_ns: int, offset_ns: int, bound_ns: int) -> None:
        self._since_ns, self._offset_ns, self._bound_ns = since_ns, offset_ns, bound_ns
        self._all_since_ns.append(since_ns)
        self._all_offsets_ns.append(offset_ns)
        del self._all_since_ns[:-KEPT_OFFSETS], self._all_offsets_ns[:-KEPT_OFFSETS]
