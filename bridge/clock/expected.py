"""What the newest estimate leads to expect of stamps, arrivals and round trips to come."""

from __future__ import annotations

from bridge.clock.estimate import BOUND_DEVIATIONS, Estimate
from bridge.clock.model import Model
from bridge.clock.origin import NS, Origin
from bridge.clock.roundtrip import RoundTrip

FASTEST = 0.005  # what is handed out never runs off by more, whatever has been measured
ROOM_NS = 20_000.0  # beyond the bound, before anything is called impossible
ROOM_BOUNDS = 0.25  # and that of round trips, in bounds
GROSS_BOUNDS, GROSS_NS = 3.0, 1_500_000.0  # a contradiction by more is a step or a corrupt stamp, by less another rate
LONG_AGO_NS = 2_000_000_000  # from the estimate, until which the bound grows in a line, near enough


class Expectation:
    """One estimate in device and host time. ``model`` is asked of times far from the estimate.

    ``device_ns``: its time. ``offset_ns``: the estimate itself. ``floor_ns``: the offset that the earliest arrivals
    seem to have, by their delay larger. ``rate``: by which both change, ns per ns. ``gross_ns``: see GROSS_NS.
    ``least_late_ns``: what arrives earlier than that after the floor is impossible.
    """

    __slots__ = (
        "_growth", "_model", "_origin", "bound_ns", "device_ns", "estimate", "floor_ns", "gross_ns", "least_late_ns",
        "offset_ns", "rate",
    )  # fmt: skip

    def __init__(self, estimate: Estimate, origin: Origin, model: Model) -> None:
        self.estimate = estimate
        self._origin = origin
        self._model = model
        self.device_ns = origin.device_ns(estimate.x_s)
        self.offset_ns = origin.base_ns + round(estimate.offset_ns)
        self.floor_ns = origin.base_ns + round(estimate.floor_ns)
        self.rate = min(max(estimate.rate_ns_s / NS, -FASTEST), FASTEST)
        self.bound_ns = estimate.bound_ns
        self._growth = BOUND_DEVIATIONS * estimate.rate_deviation_ns_s / NS
        self.gross_ns = max(GROSS_BOUNDS * estimate.bound_ns, GROSS_NS)
        self.least_late_ns = estimate.lowest_ns - estimate.floor_ns - ROOM_NS - self.gross_ns

    def beyond_ns(self, device_ns: int, host_ns: int) -> float:
        """What the bound of ``host_ns``, handed out for ``device_ns``, is larger by: how far that is from the estimate,
        and the estimate perhaps from what becomes of it."""
        age_ns = device_ns - self.device_ns
        if -LONG_AGO_NS < age_ns < LONG_AGO_NS:
            return abs(host_ns - device_ns - self.offset_ns - age_ns * self.rate) + abs(age_ns) * self._growth
        if age_ns > 0:
            behind_ns = abs(host_ns - device_ns - self.offset_ns - age_ns * self.rate)
            return behind_ns + BOUND_DEVIATIONS * self._model.spread_ns(age_ns / NS)
        x_s = self._origin.x_s(device_ns)
        behind_ns = abs(host_ns - device_ns - self._origin.base_ns - self._model.past_offset_ns(x_s))
        return behind_ns + self._model.forgotten_ns(x_s)

    def late_ns(self, device_ns: int, received_ns: int) -> float:
        """How much later than the floor an arrival is, by the host's clock: the device's may have jumped by hours."""
        elapsed_ns = received_ns - self.floor_ns - self.device_ns
        return received_ns - device_ns - self.floor_ns - elapsed_ns * self.rate

    def x_s(self, host_ns: int) -> float:
        """The device time of a host time, since the reference."""
        return (host_ns - self._origin.base_ns - self._origin.reference_ns - self.estimate.offset_ns) / NS

    def contradiction_ns(self, trip: RoundTrip) -> float:
        """By how much a round trip contradicts what is known; not more than 0 when it does not."""
        estimate = self.estimate
        age_s = self.x_s(trip.received_ns) - estimate.x_s
        offset_ns = self._origin.base_ns + age_s * estimate.rate_ns_s
        spread_ns = BOUND_DEVIATIONS * self._model.spread_ns(abs(age_s))
        room_ns = ROOM_NS + ROOM_BOUNDS * estimate.bound_ns + spread_ns
        above_ns = trip.lowest_offset_ns - offset_ns - estimate.highest_ns
        below_ns = estimate.lowest_ns - trip.highest_offset_ns + offset_ns
        return max(above_ns, below_ns) - room_ns

    def shift_and_reach_ns(self, trip: RoundTrip) -> tuple[float, float]:
        """What would have to be added to the offset for a round trip to be in the middle, and how far that may be
        off."""
        estimate = self.estimate
        middle_ns = (trip.lowest_offset_ns + trip.highest_offset_ns) / 2 - self._origin.base_ns
        age_s = self.x_s(trip.received_ns) - estimate.x_s
        shift_ns = middle_ns - estimate.offset_ns - age_s * estimate.rate_ns_s
        return shift_ns, (trip.highest_offset_ns - trip.lowest_offset_ns) / 2 + estimate.bound_ns

    def narrowed_by(self, trip: RoundTrip) -> bool:
        """Whether a round trip of now leaves less open than all before."""
        estimate, base_ns = self.estimate, self._origin.base_ns
        return (
            trip.lowest_offset_ns - base_ns > estimate.lowest_ns
            or trip.highest_offset_ns - base_ns < estimate.highest_ns
        )
