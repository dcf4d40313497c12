"""The estimator for judges from outside: float seconds, events in the order in which they become known."""

from __future__ import annotations

from typing import Any

from bridge.clock.estimator import Clock, ClockSettings
from bridge.clock.origin import NS
from bridge.clock.roundtrip import Arrival, RoundTrip
from bridge.clock.watch import OFTEN

LARGEST_JUMP_S = 18e-6  # by which a correction bends the interval of two samples
LARGEST_SLEW = 0.002
AT_ONCE = 3  # stamps in doubt: of a clock that was set, so many tell by how much
ROUNDING_NS = 2.0  # of stamps to whole ns, in and out


class Estimator:
    """A ``Clock`` that takes and gives seconds.

    ``meta``: ``quantum``, s, of the device's stamps (0 when they are exact); ``ping_hz``; ``sample_hz``.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        ping_hz, sample_hz = float(meta.get("ping_hz") or 1.0), float(meta.get("sample_hz") or 100.0)
        settings = ClockSettings(
            ping_interval_ns=round(NS / ping_hz),
            largest_slew=min(LARGEST_SLEW, LARGEST_JUMP_S * sample_hz),
            pings_to_lock=1,
        )
        self._clock = Clock(settings)
        self._quantum_ns = max(1, round(float(meta.get("quantum") or 0.0) * NS))
        self._suspect_s: float | None = None  # the stamp that has just arrived, when it cannot be

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        """A round trip, when its reply has come; host times of sending and receiving."""
        trip = RoundTrip(round(t_send_local * NS), round(t_device * NS), round(t_recv_local * NS), self._quantum_ns)
        self._clock.ping(trip)

    def add_arrival(self, t_device: float, t_local: float) -> None:
        """A sample with its stamp and the host time of its arrival."""
        answer = self._clock.arrival(round(t_device * NS), round(t_local * NS))
        self._suspect_s = t_device if answer is Arrival.SUSPECT else None

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        """(host time, bound), s; None while unknown, and of a stamp that has just arrived and cannot be: unless this
        device's stamps are corrupt now and then, the device's clock was set, and the next stamps tell by how much."""
        clock = self._clock
        if t_device == self._suspect_s and clock.isolated_suspects < OFTEN and clock.pending_suspects <= AT_ONCE:
            return None
        mapped = clock.map_bound(round(t_device * NS))
        return None if mapped is None else (mapped[0] / NS, (mapped[1] + ROUNDING_NS) / NS)
