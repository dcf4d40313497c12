"""The simulated app's clock and the exact grid of instants on which its sensors sample.

All integer nanoseconds. Host times are CLOCK_MONOTONIC. The real app's clock starts with its first streaming sensor;
the simulated one starts at its ``origin_ns``, and a restart only gives it another offset.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
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

    def device_ns(self, host_ns: int) -> int:
        """The clock's reading at a host instant."""
        elapsed_ns = host_ns - self.origin_ns
        drift = round(self.drift_ppm * _DRIFT_PER_PPM)
        return self.utc_at_origin_ns + self.offset_ns + elapsed_ns + elapsed_ns * drift // _DRIFT_UNIT

    def host_ns(self, device_ns: int) -> int:
        """The host instant at which the clock reads ``device_ns``, within a nanosecond or two."""
        elapsed_ns = device_ns - self.utc_at_origin_ns - self.offset_ns
        drift = round(self.drift_ppm * _DRIFT_PER_PPM)
        return self.origin_ns + elapsed_ns * _DRIFT_UNIT // (_DRIFT_UNIT + drift)


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
