"""Pupil Time Sync's follower in the simulated Pupil Capture: it adjusts the clock now and then, and says so in the log.

Source: network_time_sync.py and time_sync.py of Pupil Capture 3.6.14. What is 10 ms or more is a jump, not made while
it records; less is slewed by half a millisecond at a time, ten times a second.
"""

from __future__ import annotations

from typing import Final

from bridge.simulators.core_clock import PupilClock
from bridge.simulators.core_world import World

_MIN_JUMP_NS: Final = 10_000_000
_MAX_SLEW_NS: Final = 500_000
_SLEW_EVERY_NS: Final = 100_000_000
_RETRY_NS: Final = 1_000_000_000


class Follower:
    """Every ``every_ns`` the master's clock is found to be ahead by ``gain_ns``, behind when that is negative."""

    def __init__(self, clock: PupilClock, world: World, gain_ns: int, every_ns: int, begin_ns: int) -> None:
        self._clock = clock
        self._world = world
        self._gain_ns = gain_ns
        self._every_ns = every_ns
        self._left_ns = 0
        self._round_ns = begin_ns + every_ns
        self.next_due_ns: int | None = self._round_ns if gain_ns and every_ns > 0 else None

    def turn(self, now_ns: int) -> None:
        """What is to be done at ``next_due_ns``."""
        if now_ns >= self._round_ns:
            self._left_ns = self._gain_ns
            self._round_ns = now_ns + self._every_ns
            if abs(self._gain_ns) >= _MIN_JUMP_NS:
                self._jump(now_ns)
        elif self._left_ns:
            self._slew(now_ns)
        more = self._left_ns and abs(self._gain_ns) < _MIN_JUMP_NS
        self.next_due_ns = min(self._round_ns, now_ns + _SLEW_EVERY_NS) if more else self._round_ns

    def _jump(self, now_ns: int) -> None:
        # The log has the offset of this clock from the master's, so its sign is the other way round.
        self._left_ns = 0
        offset_s = -self._gain_ns / 1e9
        if self._world.recording:
            text = "Request to change timebase during recording ignored. Turn off recording first."
            self._world.log("ERROR", "time_sync", text)
            self._round_ns = now_ns + _RETRY_NS
            return
        self._world.step_clock(now_ns, self._clock.device_ns(now_ns) + self._gain_ns)
        self._world.log("INFO", "time_sync", f"Pupil Sync has adjusted the clock by {offset_s}s")
        self._world.log("DEBUG", "network_time_sync", f"Time adjusted by {offset_s * 1000}ms.")

    def _slew(self, now_ns: int) -> None:
        change_ns = max(-_MAX_SLEW_NS, min(_MAX_SLEW_NS, self._left_ns))
        self._left_ns -= change_ns
        self._world.step_clock(now_ns, self._clock.device_ns(now_ns) + change_ns)
        self._world.log("DEBUG", "network_time_sync", f"Time slewed by: {-change_ns / 1e6}ms")
