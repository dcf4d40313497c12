"""The round trip times of late, for people to look at."""

from __future__ import annotations

from collections import deque

KEPT = 64


class RecentRtts:
    """The last 64, in ns."""

    def __init__(self) -> None:
        self._recent_ns: deque[int] = deque(maxlen=KEPT)

    def add(self, rtt_ns: int) -> None:
        self._recent_ns.append(rtt_ns)

    def smallest_and_median_ns(self) -> tuple[int, int] | None:
        """None while there are none."""
        if not self._recent_ns:
            return None
        ordered = sorted(self._recent_ns)
        return ordered[0], ordered[len(ordered) // 2]
