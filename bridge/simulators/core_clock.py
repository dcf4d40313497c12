"""The clock of the simulated Pupil Capture. No sockets."""

from __future__ import annotations

from dataclasses import dataclass

# The drift is kept as an integer in 1e-12, so that the clock is exact at any age.
_DRIFT_PER_PPM = 1_000_000
_DRIFT_UNIT = 10**12


@dataclass(frozen=True, slots=True)
class Step:
    """When, in ns of CLOCK_MONOTONIC, what the clock read just before, and by how much it went on."""

    host_ns: int
    before_ns: int
    change_ns: int


class PupilClock:
    """Pupil time as a function of the host's CLOCK_MONOTONIC, both in integer ns; a step begins a new piece.

    An instant before a step keeps the time it had: what was captured then is stamped by the clock of then, which is
    why Capture still sends gaze in the old timebase for a while after a step.
    """

    def __init__(self, origin_ns: int, offset_ns: int, drift_ppm: float) -> None:
        self._drift = round(drift_ppm * _DRIFT_PER_PPM)
        self._pieces = [(origin_ns, origin_ns + offset_ns)]
        self.last_step: Step | None = None

    def device_ns(self, host_ns: int) -> int:
        """The clock's reading at a host instant; instants before the start belong to the first piece."""
        pieces = self._pieces
        index = len(pieces) - 1
        while index > 0 and host_ns < pieces[index][0]:
            index -= 1
        since_ns, device_ns = pieces[index]
        elapsed_ns = host_ns - since_ns
        return device_ns + elapsed_ns + elapsed_ns * self._drift // _DRIFT_UNIT

    def seconds(self, host_ns: int) -> float:
        """The same as Capture sends it: float64 seconds."""
        return self.device_ns(host_ns) / 1e9

    def host_ns(self, device_ns: int) -> int:
        """The host instant at which the clock of now reads so."""
        since_ns, start_ns = self._pieces[-1]
        return since_ns + (device_ns - start_ns) * _DRIFT_UNIT // (_DRIFT_UNIT + self._drift)

    def step(self, host_ns: int, device_ns: int) -> Step:
        """From ``host_ns`` on, which is not before the last step, the clock counts from ``device_ns``."""
        before_ns = self.device_ns(host_ns)
        self._pieces.append((host_ns, device_ns))
        self.last_step = Step(host_ns, before_ns, device_ns - before_ns)
        return self.last_step
