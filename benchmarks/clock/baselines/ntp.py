"""The clock filter of NTP."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

STAGES = 8
TOLERANCE = 15e-6  # PHI: how fast a clock may wander
MAX_DISPERSION_S = 16.0
MIN_DISPERSION_S = 0.005
SPIKE_GATE = 3.0
PRECISION_S = 2.0**-20


@dataclass(frozen=True, slots=True)
class Stage:
    """One measurement, or the nothing that a register starts with (``at_s`` is None)."""

    offset_s: float
    delay_s: float
    dispersion_s: float
    at_s: float | None

    def dispersion_at(self, now_s: float) -> float:
        age_s = 0.0 if self.at_s is None else now_s - self.at_s
        return min(MAX_DISPERSION_S, self.dispersion_s + TOLERANCE * age_s)


EMPTY = Stage(0.0, MAX_DISPERSION_S, MAX_DISPERSION_S, None)


class NtpFilter:
    """Of the last 8 pings the one of the smallest delay, if it is newer than the last one used and no spike.

    Source: RFC 5905, section 10 and appendix A.5.2 (``clock_filter``), A.5.5.2 (``root_dist``). The bound is the root
    distance: half the delay (of at least MINDISP, 5 ms) and dispersion and jitter, which grow by 15 ppm with age. The
    jitter is that of section 10 (divided by n - 1). The loop that disciplines a clock by these offsets is left out:
    the offset is used as it is. A step comes through with the first ping after it that is the fastest of eight: the
    spike gate compares with a jitter that already has the spike in it and so seldom closes.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        self._stages: deque[Stage] = deque([EMPTY] * STAGES, maxlen=STAGES)
        self._poll_s = 1 / meta["ping_hz"]
        self._precision_s = PRECISION_S + max(PRECISION_S, meta["quantum"])
        self._peer_offset_s = 0.0
        self._used: Stage | None = None
        self._distance_s = MAX_DISPERSION_S
        self._now_s = 0.0

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        self._now_s = t_recv_local
        offset_s = (t_send_local + t_recv_local) / 2 - t_device
        delay_s = max(t_recv_local - t_send_local, PRECISION_S)
        self._stages.appendleft(Stage(offset_s, delay_s, self._precision_s + TOLERANCE * delay_s, t_recv_local))
        self._filter(t_recv_local)

    def _filter(self, now_s: float) -> None:
        ordered = sorted(self._stages, key=lambda stage: stage.delay_s)
        best = ordered[0]
        assert best.at_s is not None
        before_s, self._peer_offset_s = self._peer_offset_s, best.offset_s
        dispersion_s = sum(stage.dispersion_at(now_s) / 2 ** (i + 1) for i, stage in enumerate(ordered))
        others = [stage.offset_s - best.offset_s for stage in ordered[1:] if stage.at_s is not None]
        jitter_s = math.sqrt(sum(x * x for x in others) / len(others)) if others else 0.0
        jitter_s = max(jitter_s, PRECISION_S)
        if self._used is not None:
            since_s = best.at_s - (self._used.at_s or 0.0)
            if since_s <= 0:
                return
            if abs(best.offset_s - before_s) > SPIKE_GATE * jitter_s and since_s < 2 * self._poll_s:
                return
        self._used = best
        self._distance_s = max(MIN_DISPERSION_S, best.delay_s) / 2 + dispersion_s + jitter_s

    def add_arrival(self, t_device: float, t_local: float) -> None:
        self._now_s = t_local

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        if self._used is None or self._used.at_s is None:
            return None
        return t_device + self._used.offset_s, self._distance_s + TOLERANCE * (self._now_s - self._used.at_s)
