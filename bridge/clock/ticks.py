"""How coarse the stamps of samples are, where those of round trips have a large quantum.

Samples may have finer stamps than round trips: that shows in stamps that are no multiples of the quantum. Where they
have not, samples at a steady rate beat with the ticks of the device's clock; if their interval is whole quanta, they
stay in one phase for minutes, and all of them are off by the same.
"""

from __future__ import annotations

LEAST_QUANTUM_NS = 10_000  # finer quanta drown in the rest
COARSE, COARSE_IN_STEP = 0.2, 10.0  # how far stamps are off at least, in quanta: while they beat, and in step
BLOCK_SHARE = 0.2  # of a block in what is known so far
IN_STEP = 0.03  # of a quantum: how near to whole quanta the interval of samples is, on average
FINE_FROM, IN_STEP_FROM = 0.5, 0.3  # shares of blocks


class Ticks:
    """Learns from the earliest sample of each block."""

    def __init__(self) -> None:
        self._fine = 0.5  # share of samples whose stamps are finer than those of round trips
        self._in_step = 0.5  # share of blocks whose samples came at whole quanta

    def coarse_ns(self, device_ns: int, interval_ns: float | None, quantum_ns: int) -> float:
        """Learns from a sample's stamp, and from the mean interval of its block if there is one. Returns how far stamps
        are off at least. ``quantum_ns`` is that of the round trips."""
        if quantum_ns < LEAST_QUANTUM_NS:
            return 0.0
        self._fine += BLOCK_SHARE * ((device_ns % quantum_ns != 0) - self._fine)
        if interval_ns is not None:
            quanta = interval_ns / quantum_ns
            self._in_step += BLOCK_SHARE * ((abs(quanta - round(quanta)) < IN_STEP) - self._in_step)
        if self._fine > FINE_FROM:
            return 0.0
        return quantum_ns * (COARSE_IN_STEP if self._in_step > IN_STEP_FROM else COARSE)
