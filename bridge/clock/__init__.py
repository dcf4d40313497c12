"""Maps device timestamps onto the host clock from round trips, with an honest error bound. Pure maths, no I/O.

Sign, said once: an offset is what is *added to device time to get host time*. Host time is CLOCK_MONOTONIC.
"""

from bridge.clock.estimator import Clock, ClockSettings
from bridge.clock.roundtrip import Arrival, ClockState, Mapped, RoundTrip
from bridge.clock.watch import Track

__all__ = ["Arrival", "Clock", "ClockSettings", "ClockState", "Mapped", "RoundTrip", "Track"]
