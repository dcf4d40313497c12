"""A round trip, as most baselines see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ping:
    """Sent and received on the host's clock, ``device_s`` on the device's."""

    sent_s: float
    device_s: float
    received_s: float

    @property
    def rtt_s(self) -> float:
        return self.received_s - self.sent_s

    @property
    def middle_s(self) -> float:
        """Host time at which the device answered, if both ways took equally long."""
        return (self.sent_s + self.received_s) / 2

    @property
    def offset_s(self) -> float:
        """To be added to device time, if both ways took equally long. The stamp's resolution is not thought of."""
        return self.middle_s - self.device_s
