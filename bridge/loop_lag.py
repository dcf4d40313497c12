"""How late the event loop is: what a computer that is too busy, or a long callback, does to all streams."""

from __future__ import annotations

from collections import deque

MINUTE_S = 60.0


class LoopLag:
    """Fed by a task that sleeps and says how much longer it slept than it wanted to. Times in s of any steady clock."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._seconds: deque[tuple[int, float]] = deque(maxlen=round(MINUTE_S) + 1)  # (second, worst lag in it)

    def note(self, now_s: float, lag_s: float) -> None:
        self.worst_s = max(self.worst_s, lag_s)
        second = int(now_s)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, max(self._seconds[-1][1], lag_s))
        else:
            self._seconds.append((second, lag_s))

    def worst_since_s(self, now_s: float, seconds: float) -> float:
        """The worst lag of the last ``seconds``, at most a minute."""
        return max((lag_s for second, lag_s in self._seconds if second > now_s - seconds - 1), default=0.0)
