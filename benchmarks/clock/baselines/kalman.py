"""A Kalman filter on the middles of pings."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from benchmarks.clock.baselines.ping import Ping

WINDOW_S = 300.0
RATE_DEVIATION = 100e-6  # of a crystal not seen yet
OFFSET_NOISE = 1e-14  # s^2 a second: a microsecond in 100 s
RATE_NOISE = 1e-16  # (s/s)^2 a second: 0.1 ppm in 100 s
FLOOR_S = 5e-6
GATE = 4.0
REJECTED_TO_RESET = 5
DEVIATIONS = 2.0


class Kalman:
    """Offset and rate, with a measurement as noisy as its round trip is longer than the shortest.

    Source: the two-state clock model as in A. Bletsas, "Evaluation of Kalman filtering for network time keeping" (IEEE
    Trans. UFFC 52(9), 2005), with what an implementation in use needs besides: noise from the delay, a
    gate on the innovation, and a new start after a step. Noise of a measurement: half of the time
    that its round trip took longer than the shortest of the last 300 s, never below a tenth of the usual excess. A
    ping farther off than four deviations is not taken; five of them in a row restart the filter at the fastest of
    them. The bound is two deviations and half the shortest round trip, as no filter can see asymmetry. Waiting on one
    way is no noise of mean 0: it biases the filter, and the gate then holds the few fast pings for outliers.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        self._floor_s = FLOOR_S + meta["quantum"] / 12**0.5
        self._pings: deque[Ping] = deque()
        self._rejected: list[Ping] = []
        self._base_s = 0.0
        self._offset_s = 0.0  # beyond the base, at the time of the last ping
        self._rate = 0.0
        self._p00 = self._p01 = self._p11 = 0.0
        self._at_s: float | None = None
        self._smallest_rtt_s = 0.0
        self._usual_rtt_s = 0.0
        self._now_s = 0.0

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        self._now_s = t_recv_local
        ping = Ping(t_send_local, t_device, t_recv_local)
        self._pings.append(ping)
        while self._pings[0].received_s < t_recv_local - WINDOW_S:
            self._pings.popleft()
        rtts_s = np.array([p.rtt_s for p in self._pings])
        self._smallest_rtt_s, self._usual_rtt_s = float(rtts_s.min()), float(np.median(rtts_s))
        if self._at_s is None:
            self._start(ping)
            return
        self._predict(ping.middle_s)
        noise_s = self._noise_s(ping)
        innovation_s = ping.offset_s - self._base_s - self._offset_s
        variance = self._p00 + noise_s * noise_s
        if innovation_s * innovation_s > GATE * GATE * variance:
            self._rejected.append(ping)
            if len(self._rejected) == REJECTED_TO_RESET:
                self._start(min(self._rejected, key=lambda p: p.rtt_s), rate=self._rate)
            return
        self._rejected.clear()
        k0, k1 = self._p00 / variance, self._p01 / variance
        self._offset_s += k0 * innovation_s
        self._rate += k1 * innovation_s
        self._p11 -= k1 * self._p01
        self._p01 *= 1 - k0
        self._p00 *= 1 - k0

    def _start(self, ping: Ping, rate: float = 0.0) -> None:
        self._rejected.clear()
        self._base_s, self._offset_s, self._rate, self._at_s = ping.offset_s, 0.0, rate, ping.middle_s
        self._p00, self._p01, self._p11 = (ping.rtt_s / 2) ** 2 + self._floor_s**2, 0.0, RATE_DEVIATION**2

    def _noise_s(self, ping: Ping) -> float:
        excess_s, usual_s = ping.rtt_s - self._smallest_rtt_s, self._usual_rtt_s - self._smallest_rtt_s
        return self._floor_s + max(excess_s, 0.1 * usual_s) / 2

    def _predict(self, at_s: float) -> None:
        assert self._at_s is not None
        dt = at_s - self._at_s
        if dt <= 0:  # overtaken by a later one
            return
        self._at_s = at_s
        self._offset_s += self._rate * dt
        self._p00 += 2 * dt * self._p01 + dt * dt * self._p11 + OFFSET_NOISE * dt + RATE_NOISE * dt**3 / 3
        self._p01 += dt * self._p11 + RATE_NOISE * dt * dt / 2
        self._p11 += RATE_NOISE * dt

    def add_arrival(self, t_device: float, t_local: float) -> None:
        self._now_s = t_local

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        if self._at_s is None:
            return None
        offset_s = self._base_s + self._offset_s
        ahead_s = t_device + offset_s - self._at_s
        age_s = max(0.0, self._now_s - self._at_s)
        variance = self._p00 + 2 * age_s * self._p01 + age_s * age_s * self._p11 + OFFSET_NOISE * age_s
        return t_device + offset_s + self._rate * ahead_s, self._smallest_rtt_s / 2 + DEVIATIONS * variance**0.5
