"""The simulated app's clock and the exact grid of instants on which its sensors sample.

All integer nanoseconds. Host times are CLOCK_MONOTONIC. The real app takes its clock from the phone's UTC when its
first sensor begins to stream, and lets it run until none streams any more. The simulated one does so where that is
asked for; otherwise it starts at its ``origin_ns`` and a restart only gives it another offset: it is known beforehand.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from fractions import Fraction

# A drift is kept as an integer in 1e-12, so that the clock function is exact at any age.
_DRIFT_PER_PPM = 1_000_000
_DRIFT_UNIT = 10**12


@dataclass(frozen=True, slots=True)
class DeviceClock:
    """``device = utc_at_origin + offset + (1 + drift) * (host - origin)``, exact and rounded down."""

    origin_ns: int
    utc_at_origin_ns: int
    offset_ns: int
    drift_ppm: float
    _drift: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_drift", round(self.drift_ppm * _DRIFT_PER_PPM))

    def device_ns(self, host_ns: int) -> int:
        """The clock's reading at a host instant."""
        elapsed_ns = host_ns - self.origin_ns
        return self.utc_at_origin_ns + self.offset_ns + elapsed_ns + elapsed_ns * self._drift // _DRIFT_UNIT

    def describe(self) -> dict[str, int | float]:
        """All of it, for the ready line and the truth."""
        return {
            "origin_ns": self.origin_ns,
            "utc_at_origin_ns": self.utc_at_origin_ns,
            "offset_ns": self.offset_ns,
            "drift_ppm": self.drift_ppm,
        }

    def host_ns(self, device_ns: int) -> int:
        """The host instant at which the clock reads ``device_ns``, within a nanosecond or two."""
        elapsed_ns = device_ns - self.utc_at_origin_ns - self.offset_ns
        return self.origin_ns + elapsed_ns * _DRIFT_UNIT // (_DRIFT_UNIT + self._drift)


class AppClock:
    """The app's clock through its restarts; ``now`` is the one that it has.

    ``follows_streaming``: it is taken anew from the phone's UTC, which has the offset but not the drift of ``first``,
    whenever a first sensor begins to stream. ``restart_step_ns`` is added whenever the last one has stopped.
    """

    def __init__(self, first: DeviceClock, *, follows_streaming: bool, restart_step_ns: int) -> None:
        self.now = first
        self._first = first
        self._follows_streaming = follows_streaming
        self._restart_step_ns = restart_step_ns
        self._steps_ns = 0

    def begin(self, host_ns: int) -> None:
        """The first sensor begins to stream."""
        if self._follows_streaming:
            self._take(host_ns)

    def end(self) -> None:
        """The last sensor has stopped."""
        self._steps_ns += self._restart_step_ns
        if not self._follows_streaming:
            self.now = replace(self.now, offset_ns=self.now.offset_ns + self._restart_step_ns)

    def restart(self, host_ns: int) -> None:
        """The app is started again."""
        self._steps_ns += self._restart_step_ns
        self._take(host_ns)

    def step(self, by_ns: int) -> None:
        """Somebody sets the phone's clock, and the app's goes along."""
        self._steps_ns += by_ns
        self.now = replace(self.now, offset_ns=self.now.offset_ns + by_ns)

    def _take(self, host_ns: int) -> None:
        utc_ns = self._first.utc_at_origin_ns + host_ns - self._first.origin_ns
        self.now = DeviceClock(host_ns, utc_ns, self._first.offset_ns + self._steps_ns, self._first.drift_ppm)


@dataclass(frozen=True, slots=True)
class Grid:
    """Instants ``origin + n / rate``, n = 0, 1, 2 ..., without accumulated error."""

    origin_ns: int
    rate_hz: Fraction

    def instant_ns(self, sequence: int) -> int:
        """The host instant of a sequence number, rounded down."""
        return self.origin_ns + sequence * 1_000_000_000 * self.rate_hz.denominator // self.rate_hz.numerator

    def first_from(self, host_ns: int) -> int:
        """The smallest sequence number whose instant is not before ``host_ns``."""
        elapsed_ns = max(0, host_ns - self.origin_ns)
        sequence = max(0, elapsed_ns * self.rate_hz.numerator // (1_000_000_000 * self.rate_hz.denominator))
        while self.instant_ns(sequence) < host_ns:
            sequence += 1
        return sequence


def utc_at(host_ns: int) -> int:
    """The host's UTC at a past or present CLOCK_MONOTONIC instant, from the narrowest of five sandwich readings."""
    width_ns, offset_ns = min(_sandwich() for _ in range(5))
    del width_ns
    return host_ns + offset_ns


def _sandwich() -> tuple[int, int]:
    before_ns = time.monotonic_ns()
    utc_ns = time.time_ns()
    after_ns = time.monotonic_ns()
    return after_ns - before_ns, utc_ns - (before_ns + after_ns) // 2
