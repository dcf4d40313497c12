"""Pupil Time Sync, with which Capture and Pupil Service follow a clock in the network."""

from __future__ import annotations

from collections import deque
from typing import Any

from benchmarks.clock.baselines.ping import Ping


class PupilSync:
    """The mean of the middles of the faster 69 % of 60 pings, slewed to when near and jumped to when far.

    Source: pupil-labs/pupil, ``pupil_src/shared_modules/network_time_sync.py``, ``Clock_Sync_Follower``. A round every
    10 s; the clock is left alone when it is off by no more than the mean deviation of the middles (at least 0.1 ms);
    off by more than 10 ms it jumps; otherwise it is slewed by at most 0.5 ms every 0.1 s for at most 20 times. There
    the 60 pings of a round follow each other at once, which the pings of a link here do not. So there are two: with
    ``fresh`` a round has the pings since the last one (10 at 1 Hz), which is as prompt as the original and noisier;
    without, it has the last 60, which is as smooth as the original and lags by half a minute at 1 Hz, also after a
    step. There is no bound; half of the smallest round trip of those used is taken.
    """

    PINGS = 60
    FASTER = 0.69
    ROUND_S = 10.0
    TOLERANCE_S = 1e-4
    JUMP_S = 10e-3
    SLEW_S = 0.5e-3
    SLEW_INTERVAL_S = 0.1
    SLEWS = 20

    def __init__(self, meta: dict[str, Any], *, fresh: bool = False) -> None:
        self._fresh = fresh
        self._pings: deque[Ping] = deque(maxlen=self.PINGS)
        self._offset_s: float | None = None
        self._bound_s = 0.0
        self._remaining_s = 0.0
        self._slews = 0
        self._due_s = 0.0

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        self._pings.append(Ping(t_send_local, t_device, t_recv_local))
        self._advance(t_recv_local)

    def add_arrival(self, t_device: float, t_local: float) -> None:
        self._advance(t_local)

    def _advance(self, now_s: float) -> None:
        if not self._pings:
            return
        if self._offset_s is None:
            self._offset_s, _ = self._measure()
            self._due_s = now_s + self.ROUND_S
        if now_s < self._due_s:
            return
        if self._slews:
            self._slew(now_s)
            return
        offset_s, jitter_s = self._measure()
        off_s = offset_s - self._offset_s
        self._due_s = now_s + self.ROUND_S
        if abs(off_s) <= max(jitter_s, self.TOLERANCE_S):
            return
        if abs(off_s) > self.JUMP_S:
            self._offset_s = offset_s
            return
        self._remaining_s, self._slews = off_s, self.SLEWS
        self._slew(now_s)

    def _slew(self, now_s: float) -> None:
        assert self._offset_s is not None
        by_s = max(-self.SLEW_S, min(self.SLEW_S, self._remaining_s))
        self._offset_s += by_s
        self._remaining_s -= by_s
        self._slews = self._slews - 1 if self._remaining_s else 0
        self._due_s = now_s + (self.SLEW_INTERVAL_S if self._slews else self.ROUND_S)

    def _measure(self) -> tuple[float, float]:
        """(offset, mean deviation from it), s."""
        pings = sorted(self._pings, key=lambda ping: ping.rtt_s)
        faster = pings[: max(1, int(len(pings) * self.FASTER))]
        self._bound_s = faster[0].rtt_s / 2
        if self._fresh:
            self._pings.clear()
        mean_s = sum(ping.offset_s for ping in faster) / len(faster)
        return mean_s, sum(abs(ping.offset_s - mean_s) for ping in faster) / len(faster)

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        return None if self._offset_s is None else (t_device + self._offset_s, self._bound_s)
