"""One device's clock: round trips in, mapped times with a bound out.

The offset is the middle of the interval that the round trips of the last two minutes allow; the output follows it by
slewing and steps only between epochs. A round trip that contradicts the bound is set aside; two that agree with each
other against it are a step of the device's clock, and begin a new epoch.
"""

from __future__ import annotations

from collections import deque

import msgspec

from bridge.clock.envelope import PRIOR_RATE, Constraint, Envelope
from bridge.clock.output import SlewedOutput
from bridge.clock.roundtrip import ClockState, Mapped, RoundTrip

BURST_INTERVAL_NS = 100_000_000
BURST_PINGS = 10
PINGS_TO_LOCK = 5
HOLDOVER_INTERVALS = 5  # pings missed before the state says so
STEP_MARGIN_NS = 100_000  # beyond the bound: room for the rate's wander over a long silence
PRECISION_WINDOW = 64
NEWEST_AHEAD_NS = 100_000_000  # a sample may be this much newer than the end of the newest round trip


class ClockSettings(msgspec.Struct, frozen=True):
    """How often a device is asked once its clock is locked."""

    ping_interval_ns: int = 1_000_000_000


def _constraint(trip: RoundTrip) -> Constraint:
    return Constraint(trip.device_ns, trip.lowest_offset_ns, trip.highest_offset_ns)


def _agree(one: RoundTrip, two: RoundTrip) -> bool:
    """Two round trips that allow one common offset."""
    drift_ns = abs(two.device_ns - one.device_ns) * PRIOR_RATE
    a, b = _constraint(one), _constraint(two)
    return a.lowest_ns <= b.highest_ns + drift_ns and b.lowest_ns <= a.highest_ns + drift_ns


class Clock:
    """Knows no protocol and reads no clock: every time is given to it, in integer ns."""

    def __init__(self, settings: ClockSettings | None = None) -> None:
        self.ping_interval_ns = (settings or ClockSettings()).ping_interval_ns
        self.epoch = 0
        self.pings_accepted = 0
        self.pings_rejected = 0
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._envelope = Envelope()
        self._output: SlewedOutput | None = None
        self._suspect: RoundTrip | None = None  # contradicts the bound, waits for another that agrees with it
        self._recent_rtts_ns: deque[int] = deque(maxlen=PRECISION_WINDOW)
        self._residuals_ns: deque[float] = deque(maxlen=PRECISION_WINDOW)
        self._pings_in_epoch = 0
        self._reference_ns = 0  # device time of the newest accepted round trip
        self._last_received_ns: int | None = None
        self._offset_ns = 0  # the estimate at _reference_ns
        self._bound_ns = 0.0
        self._precision_ns = 0.0
        self._newest_mapped_ns: int | None = None
        self._burst_left = BURST_PINGS
        self._next_ping_ns = 0

    def reset(self) -> None:
        """Forgets the mapping: the device's app has restarted, or its clock is known to have changed."""
        if self._last_received_ns is not None or self._suspect is not None:
            self.epoch += 1
        self._start_epoch()

    # --- in -----------------------------------------------------------------------------------------------------

    def ping(self, trip: RoundTrip) -> bool:
        """Takes a round trip. False when it was set aside: impossible in itself, or against the bound."""
        if trip.received_ns < trip.sent_ns:
            self.pings_rejected += 1
            return False
        if self._pings_in_epoch and self._contradicts(trip):
            self.pings_rejected += 1
            suspect, self._suspect = self._suspect, trip
            if suspect is None or not _agree(suspect, trip):
                self.request_burst()
                return False
            rate, rate_bound = self._envelope.rate, self._envelope.rate_bound
            locked = self.locked
            self.epoch += 1
            self._start_epoch()
            self._envelope.rate, self._envelope.rate_bound = rate, rate_bound
            self._accept(suspect)
            self._accept(trip)
            if locked:  # else there is time to lock as always
                self._lock()
            return True
        self._suspect = None
        self._accept(trip)
        if self._output is not None:
            self._steer()
        elif self._pings_in_epoch >= PINGS_TO_LOCK:
            self._lock()
        return True

    def arrival(self, device_ns: int, received_ns: int) -> float:
        """Takes a sample's arrival: one from the future means that the device's clock has stepped, so ask at once.

        Returns ``ahead_ns``.
        """
        ahead_ns = self.ahead_ns(device_ns, received_ns)
        if ahead_ns > STEP_MARGIN_NS:
            self.request_burst()
        return ahead_ns

    def request_burst(self) -> None:
        """Something is not as expected: ask for round trips at once. Does nothing while a burst is under way."""
        if self._burst_left == 0:
            self._burst_left = BURST_PINGS
            self._next_ping_ns = 0

    # --- out ----------------------------------------------------------------------------------------------------

    @property
    def locked(self) -> bool:
        """Whether ``map`` has an answer."""
        return self._output is not None

    def ahead_ns(self, device_ns: int, received_ns: int) -> float:
        """More than 0: so far beyond the bound a stamp lies after its own arrival, which no clock that holds can do.

        Minus infinity until the clock is locked.
        """
        if self._output is None:
            return float("-inf")
        ahead_ns = self._output.to_host(device_ns) - received_ns
        return ahead_ns if ahead_ns <= 0 else ahead_ns - self._bound_at(device_ns)

    def map(self, device_ns: int) -> Mapped | None:
        """Host time of a device time; None until the clock is locked."""
        output = self._output
        if output is None:
            return None
        if self._newest_mapped_ns is None or device_ns > self._newest_mapped_ns:
            self._newest_mapped_ns = device_ns
        host_ns = output.to_host(device_ns)
        elapsed_ns = device_ns - self._reference_ns
        behind_ns = abs(device_ns + self._offset_ns - host_ns + elapsed_ns * self._envelope.rate)
        state = ClockState.LOCKED
        if elapsed_ns > HOLDOVER_INTERVALS * self.ping_interval_ns:
            state = ClockState.HOLDOVER
        bound_ns = self._bound_ns + abs(elapsed_ns) * self._envelope.rate_bound + behind_ns
        return Mapped(host_ns, int(bound_ns) + 1, round(self.precision_ns + behind_ns), state, self.epoch)

    def to_device(self, host_ns: int) -> int | None:
        """Device time of a host time (for events sent at a host time); None until the clock is locked."""
        return None if self._output is None else self._output.to_device(host_ns)

    def state(self, now_ns: int) -> ClockState:
        """The state at host time ``now_ns``."""
        if self._output is None or self._last_received_ns is None:
            return ClockState.UNLOCKED
        if now_ns - self._last_received_ns > HOLDOVER_INTERVALS * self.ping_interval_ns:
            return ClockState.HOLDOVER
        return ClockState.LOCKED

    def next_ping_ns(self) -> int:
        """Host time from which on the next round trip is wanted; 0 for at once."""
        return self._next_ping_ns

    def ping_sent(self, now_ns: int) -> None:
        """The source has sent a ping: the burst or the regular interval goes on from here."""
        if self._burst_left > 0:
            self._burst_left -= 1
        interval_ns = BURST_INTERVAL_NS if self._burst_left > 0 else self.ping_interval_ns
        self._next_ping_ns = now_ns + interval_ns

    @property
    def offset_ns(self) -> int | None:
        """The estimate at the newest round trip: add it to device time to get host time."""
        return None if self._output is None else self._offset_ns

    @property
    def bound_ns(self) -> int | None:
        return None if self._output is None else round(self._bound_ns)

    @property
    def drift_ppm(self) -> float:
        """How fast the device's clock runs against the host's: positive when it is fast."""
        return -self._envelope.rate * 1e6

    @property
    def last_ping_received_ns(self) -> int | None:
        return self._last_received_ns

    @property
    def slew_ns(self) -> int:
        """What the output still lacks to the estimate, at the newest round trip."""
        if self._output is None:
            return 0
        return self._reference_ns - self._output.to_host(self._reference_ns) + self._offset_ns

    @property
    def rtts_ns(self) -> tuple[int, int] | None:
        """Smallest and median round trip time of the last 64."""
        if not self._recent_rtts_ns:
            return None
        ordered = sorted(self._recent_rtts_ns)
        return ordered[0], ordered[len(ordered) // 2]

    @property
    def precision_ns(self) -> float:
        """95 % of how far the estimate lately moved, beyond its rate, from one round trip to the next."""
        return self._precision_ns

    # --- inside -------------------------------------------------------------------------------------------------

    def _bound_at(self, device_ns: int) -> float:
        return self._bound_ns + abs(device_ns - self._reference_ns) * self._envelope.rate_bound

    def _contradicts(self, trip: RoundTrip) -> bool:
        drift_ns = (trip.device_ns - self._reference_ns) * self._envelope.rate
        room_ns = self._bound_at(trip.device_ns) + STEP_MARGIN_NS
        lowest_ns, highest_ns = trip.lowest_offset_ns - self._offset_ns, trip.highest_offset_ns - self._offset_ns
        return lowest_ns > drift_ns + room_ns or highest_ns < drift_ns - room_ns

    def _accept(self, trip: RoundTrip) -> None:
        first = self._pings_in_epoch == 0
        self._pings_in_epoch += 1
        self.pings_accepted += 1
        self._recent_rtts_ns.append(trip.rtt_ns)
        self._last_received_ns = trip.received_ns
        reference_ns = trip.device_ns if first else max(trip.device_ns, self._reference_ns)
        drift_ns = (reference_ns - self._reference_ns) * self._envelope.rate
        previous_ns = self._offset_ns
        self._envelope.add(_constraint(trip))
        self._reference_ns = reference_ns
        self._offset_ns, self._bound_ns = self._envelope.offset_at(reference_ns)
        if first:
            self._precision_ns = self._bound_ns
        else:
            self._residuals_ns.append(abs(self._offset_ns - previous_ns - drift_ns))
            ordered = sorted(self._residuals_ns)
            self._precision_ns = ordered[int(0.95 * (len(ordered) - 1))]

    def _lock(self) -> None:
        self._output = SlewedOutput(self._reference_ns, self._offset_ns, self._envelope.rate)

    def _steer(self) -> None:
        assert self._output is not None
        at_ns = self._reference_ns
        if self._newest_mapped_ns is not None:
            # What was mapped stays as it was; but one stamp from the future must not keep corrections from the present.
            ahead_ns = self._recent_rtts_ns[-1] + NEWEST_AHEAD_NS
            at_ns = max(at_ns, min(self._newest_mapped_ns + 1, at_ns + ahead_ns))
        rate = self._envelope.rate
        self._output.steer(at_ns, self._offset_ns + round((at_ns - self._reference_ns) * rate), rate)
