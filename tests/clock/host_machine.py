"""A computer with four clocks that a test slews, steps and puts to sleep."""

from __future__ import annotations

US, MS, S = 1_000, 1_000_000, 1_000_000_000


class Machine:
    """Reading any clock takes ``reading_ns``. Host time and CLOCK_REALTIME run fast by ``slew_ppm``, as on Linux."""

    def __init__(self, slew_ppm: int = 0, reading_ns: int = 50) -> None:
        self.slew_ppm = slew_ppm
        self.reading_ns = reading_ns
        self.steady = 900 * S  # CLOCK_MONOTONIC_RAW
        self._host_fs = 1000 * S * 1_000_000
        self.realtime_offset_ns = 1_700_000_000 * S
        self.asleep_ns = 33 * S

    def run(self, elapsed_ns: int) -> None:
        """Lets steady time pass."""
        self.steady += elapsed_ns
        self._host_fs += elapsed_ns * (1_000_000 + self.slew_ppm)

    def sleep(self, elapsed_ns: int) -> None:
        """CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW stand still; the others go on."""
        self.realtime_offset_ns += elapsed_ns
        self.asleep_ns += elapsed_ns

    @property
    def host(self) -> int:
        return self._host_fs // 1_000_000

    @property
    def realtime(self) -> int:
        return self.host + self.realtime_offset_ns

    # --- what is given to the bridge ---------------------------------------------------------------------------------

    def host_ns(self) -> int:
        self.run(self.reading_ns)
        return self.host

    def steady_ns(self) -> int:
        self.run(self.reading_ns)
        return self.steady

    def realtime_ns(self) -> int:
        self.run(self.reading_ns)
        return self.realtime

    def boottime_ns(self) -> int:
        self.run(self.reading_ns)
        return self.host + self.asleep_ns
