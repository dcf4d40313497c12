"""Epochs, and what is handed out in them: an output that glides after the estimates, or begins anew where it must not.

An epoch lasts as long as nothing happens that a clock does not do by itself.
"""

from __future__ import annotations

from bridge.clock.expected import Expectation
from bridge.clock.output import SlewedOutput
from bridge.clock.roundtrip import ClockState, Mapped

YOUNG_NS = 3_000_000_000  # so long after its beginning an epoch's output follows fast
YOUNG_JUMP_NS = 2_000_000  # in an epoch that has just begun, more is not glided over
JUMP_NS, JUMP_BOUNDS = 50_000_000, 10.0  # later, more than both begins an epoch
AHEAD_NS = 10_000_000  # a stamp that lies further ahead of now than the bound and this is corrupt
NEVER_NS = -(2**62)  # before every device time


class Epochs:
    """``number`` is that of now, ``pings`` its round trips so far. ``output`` is None until there is one.

    ``step_ns``: by how much the device's clock was set at its beginning, None when it began otherwise.
    ``newest_mapped_ns``: the newest device time that was handed out; who maps by ``output`` keeps it.
    """

    def __init__(self, number: int, pings_to_lock: int, largest_slew: float) -> None:
        self.number = number
        self.pings = 0
        self.step_ns: int | None = None
        self.output: SlewedOutput | None = None
        self.newest_mapped_ns = NEVER_NS
        self._pings_to_lock = pings_to_lock
        self._largest_slew = largest_slew
        self._began_ns: int | None = None
        self._previous: tuple[SlewedOutput, int, int] | None = None  # the last epoch's, its bound and precision

    @property
    def began_ns(self) -> int | None:
        """Host time; None before the first output."""
        return self._began_ns

    def young(self, now_ns: int) -> bool:
        """Whether this one began a moment ago."""
        return self._began_ns is not None and now_ns - self._began_ns < YOUNG_NS

    def step(self, shift_ns: int, expected: Expectation, now_ns: int) -> None:
        """Begins an epoch in which the offset is larger by ``shift_ns``. ``expected``: of the time before."""
        self._keep_previous(expected)
        self.output = None
        self.newest_mapped_ns = NEVER_NS
        self.number += 1
        self.pings = 0
        self.step_ns = -shift_ns
        self._began_ns = now_ns

    def _keep_previous(self, expected: Expectation) -> None:
        if self.output is not None:
            behind_ns = abs(self.slew_ns(expected)) + 1
            estimate = expected.estimate
            bound_ns, precision_ns = round(estimate.bound_ns) + behind_ns, round(estimate.precision_ns) + behind_ns
            self._previous = (self.output, bound_ns, precision_ns)

    def follow(self, expected: Expectation, now_ns: int) -> None:
        """Turns the output towards a new estimate, or begins it."""
        bound_ns = expected.bound_ns
        # Not before what was mapped already, unless that was a corrupt stamp.
        from_ns = max(expected.device_ns, min(self.newest_mapped_ns, expected.device_ns + round(bound_ns) + AHEAD_NS))
        offset_ns = expected.offset_ns + round((from_ns - expected.device_ns) * expected.rate)
        young = self.young(now_ns)
        if self.output is None:
            if self._previous is None and self.pings < self._pings_to_lock:
                return
            if self._began_ns is None:
                self._began_ns = now_ns
        else:
            off_ns = abs(self.output.to_host(from_ns) - from_ns - offset_ns)
            if off_ns <= (YOUNG_JUMP_NS if young else max(JUMP_NS, JUMP_BOUNDS * bound_ns)):
                self.output.steer(from_ns, offset_ns, expected.rate, fast=young)
                return
            # Gliding there would take longer than anybody should get such stamps.
            if not young:
                self._keep_previous(expected)
                self.number += 1
                self.step_ns = 0
                self._began_ns = now_ns
        self.output = SlewedOutput(from_ns, offset_ns, expected.rate, self._largest_slew)

    def slew_ns(self, expected: Expectation) -> int:
        """What the output still lacks to an estimate."""
        if self.output is None:
            return 0
        at_ns = expected.device_ns
        return at_ns - self.output.to_host(at_ns) + expected.offset_ns

    def before_began(self, device_ns: int) -> bool:
        """Whether a stamp may be from before the last step: what it meant then lies before that was noticed."""
        before, began_ns = self.map_previous(device_ns), self._began_ns
        return before is not None and began_ns is not None and before.host_ns - before.bound_ns <= began_ns

    def map_previous(self, device_ns: int) -> Mapped | None:
        """Host time of a stamp from before the last step; None when there was none."""
        if self._previous is None:
            return None
        output, bound_ns, precision_ns = self._previous
        return Mapped(output.to_host(device_ns), bound_ns, precision_ns, ClockState.HOLDOVER, self.number - 1)
