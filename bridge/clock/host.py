"""The host's clocks. The only module of this package that reads any.

Host time is CLOCK_MONOTONIC, which is what ``pylsl.local_clock()`` reads on Linux. ROS time is host time plus an offset
that is read by sandwich and followed, never estimated on: a step of CLOCK_REALTIME reaches ROS stamps as it should and
LSL stamps not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SANDWICHES = 5
REFRESH_NS = 100_000_000


def monotonic_ns() -> int:
    """Host time: CLOCK_MONOTONIC in ns on Linux, Python's monotonic clock elsewhere."""
    return time.monotonic_ns()


def sandwich(
    other_ns: Callable[[], int],
    host_ns: Callable[[], int] = time.monotonic_ns,
) -> tuple[int, int]:
    """(offset, bound) in ns of another clock: add the offset to host time to get it. Narrowest of five readings."""
    best: tuple[int, int] | None = None
    for _ in range(SANDWICHES):
        before = host_ns()
        other = other_ns()
        after = host_ns()
        width = after - before
        if best is None or width < best[0]:
            best = (width, other - (before + after) // 2)
    assert best is not None
    return best[1], best[0] // 2 + 1


class RealtimeOffset:
    """CLOCK_REALTIME minus host time, read again when a reading is older than 100 ms."""

    def __init__(
        self,
        realtime_ns: Callable[[], int] = time.time_ns,
        host_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._realtime_ns = realtime_ns
        self._host_ns = host_ns
        self._read_at_ns = host_ns()
        self._offset_ns, self._bound_ns = sandwich(realtime_ns, host_ns)

    def to_realtime(self, host_ns: int) -> int:
        """CLOCK_REALTIME, ns since 1970, of a host time, by the offset as it is now."""
        now_ns = self._host_ns()
        if now_ns - self._read_at_ns > REFRESH_NS:
            self._read_at_ns = now_ns
            self._offset_ns, self._bound_ns = sandwich(self._realtime_ns, self._host_ns)
        return host_ns + self._offset_ns
