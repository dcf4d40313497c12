"""The values that go into and come out of a device clock."""

from __future__ import annotations

from enum import IntEnum

import msgspec


class ClockState(IntEnum):
    """How far a mapping can be trusted. The numbers are those of the LSL Sync stream."""

    UNLOCKED = 0
    LOCKED = 1
    BRIDGING = 2
    HOLDOVER = 3


class Arrival(IntEnum):
    """What the clock thinks of a sample's stamp, seen when it arrived.

    FITS: it can be. SUSPECT: it cannot, and what comes next will tell whether the stamp is corrupt or the device's
    clock was set; hold it. STALE: it belongs to the epoch before.
    """

    FITS = 0
    SUSPECT = 1
    STALE = 2


class RoundTrip(msgspec.Struct, frozen=True, gc=False):
    """One exchange with a device.

    ``sent_ns`` and ``received_ns`` are host times (CLOCK_MONOTONIC), ``sent_ns`` taken where the socket sends.
    ``device_ns`` is the device's clock at some instant in between, rounded down to ``quantum_ns``.
    """

    sent_ns: int
    device_ns: int
    received_ns: int
    quantum_ns: int = 1

    @property
    def rtt_ns(self) -> int:
        return self.received_ns - self.sent_ns

    @property
    def lowest_offset_ns(self) -> int:
        """No true offset is below this: the device cannot have stamped before the request was sent."""
        # The quantum is the device's; on a slow device it lasts longer. A thousandth covers every crystal.
        return self.sent_ns - self.device_ns - self.quantum_ns - self.quantum_ns // 1000

    @property
    def highest_offset_ns(self) -> int:
        """No true offset is above this: the device cannot have stamped after the reply arrived."""
        return self.received_ns - self.device_ns


class Mapped(msgspec.Struct, frozen=True, gc=False):
    """A device time on the host clock.

    The true host time lies within ``host_ns`` plus or minus ``bound_ns``, whatever the path's asymmetry.
    ``precision_ns`` is the 95 % repeatability, which leaves a constant asymmetry out.
    """

    host_ns: int
    bound_ns: int
    precision_ns: int
    state: ClockState
    epoch: int
