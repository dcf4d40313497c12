"""Log lines that strangers on the network can cause, as many as they like: a few now, the others not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

BURST = 30
REFILL_S = 20.0


class LineBudget:
    """Thirty lines at once and three a minute after that, whatever happens. The others come out at DEBUG."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lines = float(BURST)
        self._at_s = now_s()

    def level(self, wanted: int) -> int:
        """The level for the next line: ``wanted`` while there are lines left."""
        now_s = self._now_s()
        self._lines = min(float(BURST), self._lines + (now_s - self._at_s) / REFILL_S)
        self._at_s = now_s
        if self._lines < 1:
            return logging.DEBUG
        self._lines -= 1
        return wanted
