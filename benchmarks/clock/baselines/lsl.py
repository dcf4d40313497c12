"""LSL's own time correction, as every inlet of liblsl has it."""

from __future__ import annotations

from collections import deque
from typing import Any

from benchmarks.clock.baselines.ping import Ping


class LslBurst:
    """Of each burst of probes the one of the smallest round trip; its middle holds until the next burst.

    Source: liblsl, ``src/time_receiver.cpp``; settings in ``src/api_config.cpp``. There a burst is 8 probes 64 ms apart
    every 2 s, evaluated 128 ms after the last one if 6 have come. Here the probes are the
    pings of the last 5 s and one is enough, for at 1 Hz there are no 6. Where none came the last offset stays, as in
    liblsl. Nothing is smoothed or followed in rate: ``proc_dejitter`` is an option of the inlet and concerns regular
    sampling, not the clock. pyxdf's line through all offsets is made after the recording and is no online method.
    liblsl reports the round trip as ``uncertainty``; half of it is the bound. A step is taken over with the first burst
    whose fastest probe came after it.
    """

    INTERVAL_S = 5.0
    FIRST_S = 8 * 0.064 + 0.128

    def __init__(self, meta: dict[str, Any]) -> None:
        self._pings: deque[Ping] = deque()
        self._due_s: float | None = None
        self._best: Ping | None = None

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        self._pings.append(Ping(t_send_local, t_device, t_recv_local))
        if self._due_s is None:
            self._due_s = t_recv_local + self.FIRST_S
        self._evaluate(t_recv_local)

    def add_arrival(self, t_device: float, t_local: float) -> None:
        self._evaluate(t_local)

    def _evaluate(self, now_s: float) -> None:
        if self._due_s is None or now_s < self._due_s:
            return
        self._due_s = now_s + self.INTERVAL_S
        while self._pings and self._pings[0].received_s < now_s - self.INTERVAL_S:
            self._pings.popleft()
        if self._pings:
            self._best = min(self._pings, key=lambda ping: ping.rtt_s)

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        if self._best is None:
            return None
        return t_device + self._best.offset_s, self._best.rtt_s / 2
