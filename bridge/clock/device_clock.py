"""A device's clock in host time, estimated in steady time.

NTP slews the host's clock, by up to 500 ppm and whenever it likes; to an estimator the device would seem to drift. So
round trips and arrivals are converted to the host's steady clock (CLOCK_MONOTONIC_RAW) on their way in, mapped times
back on their way out.
"""

from __future__ import annotations

from typing import Protocol

from bridge.clock.estimator import Clock
from bridge.clock.plan import PingPlan
from bridge.clock.roundtrip import Arrival, ClockState, Mapped, RoundTrip
from bridge.clock.watch import Track


class Scale(Protocol):
    """How host time and steady time are related; ``bridge.clock.host_scale`` has it."""

    @property
    def bound_ns(self) -> int: ...

    def to_steady(self, host_ns: int) -> int: ...

    def to_host(self, steady_ns: int) -> int: ...


class Identity:
    """For tests, and where the host has no steadier clock."""

    bound_ns = 0

    def to_steady(self, host_ns: int) -> int:
        return host_ns

    def to_host(self, steady_ns: int) -> int:
        return steady_ns


class DeviceClock:
    """What ``Clock`` is, with every host time in CLOCK_MONOTONIC."""

    def __init__(self, clock: Clock, scale: Scale | None = None) -> None:
        self.estimator = clock
        self._scale = scale or Identity()

    # --- in -----------------------------------------------------------------------------------------------------

    def ping(self, trip: RoundTrip) -> bool:
        to_steady, slack_ns = self._scale.to_steady, self._scale.bound_ns
        steady = RoundTrip(
            to_steady(trip.sent_ns) - slack_ns, trip.device_ns, to_steady(trip.received_ns) + slack_ns, trip.quantum_ns
        )
        return self.estimator.ping(steady)

    def arrival(self, device_ns: int, received_ns: int, track: Track) -> Arrival:
        return self.estimator.arrival(device_ns, self._scale.to_steady(received_ns), track)

    def host_suspended(self, suspended_ns: int, now_ns: int) -> None:
        self.estimator.host_suspended(suspended_ns, self._scale.to_steady(now_ns))

    def reset(self) -> None:
        self.estimator.reset()

    def request_burst(self) -> None:
        self.estimator.request_burst()

    # --- out ----------------------------------------------------------------------------------------------------

    def map(self, device_ns: int) -> Mapped | None:
        mapped = self.estimator.map(device_ns)
        return None if mapped is None else self._on_host(mapped)

    def _on_host(self, mapped: Mapped) -> Mapped:
        slack_ns = self._scale.bound_ns
        return Mapped(
            self._scale.to_host(mapped.host_ns),
            mapped.bound_ns + slack_ns,
            mapped.precision_ns + slack_ns,
            mapped.state,
            mapped.epoch,
        )

    def map_previous(self, device_ns: int) -> Mapped | None:
        mapped = self.estimator.map_previous(device_ns)
        return None if mapped is None else self._on_host(mapped)

    def to_device(self, host_ns: int) -> int | None:
        return self.estimator.to_device(self._scale.to_steady(host_ns))

    def ahead_ns(self, device_ns: int, received_ns: int) -> float:
        return self.estimator.ahead_ns(device_ns, self._scale.to_steady(received_ns))

    def state(self, now_ns: int) -> ClockState:
        return self.estimator.state(self._scale.to_steady(now_ns))

    @property
    def plan(self) -> PingPlan:
        """When to ask next, in host time: no matter of microseconds."""
        return self.estimator.plan

    @property
    def locked(self) -> bool:
        return self.estimator.locked

    @property
    def doubting(self) -> bool:
        """Whether suspect samples still wait for what comes next."""
        return self.estimator.doubting

    @property
    def epoch(self) -> int:
        return self.estimator.epoch

    @property
    def step_ns(self) -> int | None:
        """By how much the device's clock was set at the beginning of this epoch; None when it was not that."""
        return self.estimator.step_ns

    @property
    def offset_ns(self) -> int | None:
        """The newest estimate: add it to device time to get host time."""
        at = self.estimator.estimated_at_ns
        offset_ns = self.estimator.offset_ns
        return None if at is None or offset_ns is None else self._scale.to_host(at + offset_ns) - at

    @property
    def bound_ns(self) -> int | None:
        return self.estimator.bound_ns

    def widest_bound_ns(self, host_ns: int) -> int | None:
        bound_ns = self.estimator.widest_bound_ns(self._scale.to_steady(host_ns))
        return None if bound_ns is None else bound_ns + self._scale.bound_ns

    def told(self) -> None:
        self.estimator.told()

    @property
    def precision_ns(self) -> float:
        return self.estimator.precision_ns

    @property
    def drift_ppm(self) -> float:
        """How fast the device's clock runs against the host's steady one."""
        return self.estimator.drift_ppm

    @property
    def slew_ns(self) -> int:
        return self.estimator.slew_ns

    @property
    def rtts_ns(self) -> tuple[int, int] | None:
        return self.estimator.rtts_ns

    @property
    def last_ping_received_ns(self) -> int | None:
        last = self.estimator.last_ping_received_ns
        return None if last is None else self._scale.to_host(last)

    @property
    def pings_accepted(self) -> int:
        return self.estimator.pings_accepted

    @property
    def pings_rejected(self) -> int:
        return self.estimator.pings_rejected
