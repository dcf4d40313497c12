"""Where a clock's times and offsets are counted from, so that floats of seconds and ns stay small and exact."""

from __future__ import annotations

from typing import NamedTuple

NS = 1e9  # in a second


class Origin(NamedTuple):
    """``reference_ns`` is a device time, ``base_ns`` an offset. ``x_s`` is device time since the reference."""

    reference_ns: int
    base_ns: int

    def x_s(self, device_ns: int) -> float:
        return (device_ns - self.reference_ns) / NS

    def device_ns(self, x_s: float) -> int:
        return self.reference_ns + round(x_s * NS)

    def moved(self, shift_ns: int) -> Origin:
        """The device's clock was set, which adds ``shift_ns`` to the offset: what is remembered stays where it is."""
        return Origin(self.reference_ns - shift_ns, self.base_ns + shift_ns)
