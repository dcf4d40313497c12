"""What cannot be, until something else says the same: corrupt stamps stay alone, a step of the clock does not.

A shift is what would have to be added to the offset for a suspect to be right.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from bridge.clock.roundtrip import RoundTrip

PING_EVIDENCE, BLOCK_EVIDENCE = 2, 3  # in arrivals
ENOUGH_EVIDENCE, MUCH_EVIDENCE = 3, 6  # in arrivals; the other where stamps have often been corrupt
OFTEN = 3  # suspects that nothing agreed with, from which on there may be more
KEPT_ARRIVALS, KEPT_PINGS = 8, 4  # the newest
FITS_TO_CLEAR = 3  # punctual arrivals since the newest suspect, and all suspects are corrupt
LATEST_OUT_OF_ORDER_NS = 500_000_000  # no network shuffles what is further apart
FORGOTTEN_NS = 10_000_000_000
LEAST_REACH_NS = 1_000_000.0  # arrivals agree that are closer than this and
REACH = 6.0  # times the usual lateness
LEAST_JUMP_NS = 5_000_000.0  # less is no sign that a stream has not come to the new epoch yet
FOLLOWS_INTERVALS = 3  # between two stamps of one clock, and some frames are lost
OTHER_EPOCH_NS = 5_000_000_000  # so long after a step, streams may still deliver stamps from before


class Track:
    """One stream's arrivals: what tells that its stamps run backwards, or still belong to an earlier epoch.

    ``usual_ns``: how far its stamps are apart, for its owner to tell; 0 while that is not known.
    """

    __slots__ = ("epoch", "newest_device_ns", "newest_received_ns", "usual_ns")

    def __init__(self) -> None:
        self.epoch = -1
        self.newest_device_ns = -(2**62)
        self.newest_received_ns = 0
        self.usual_ns = 0

    @property
    def is_new(self) -> bool:
        """Whether it belongs to no epoch yet."""
        return self.epoch < 0

    def meet(self, device_ns: int, received_ns: int, epoch: int) -> None:
        """A stamp that is taken as it is: nothing is known to judge it by, or all has been."""
        self.epoch, self.newest_device_ns, self.newest_received_ns = epoch, device_ns, received_ns

    def begin(self, epoch: int) -> None:
        """Whatever comes next may be older than what came before."""
        self.epoch = epoch
        self.newest_device_ns = -(2**62)

    def goes_on(self, device_ns: int, received_ns: int, late_ns: float, step_ns: int) -> bool:
        """Whether a stamp goes on where the last one was, rather than on the new clock, which was set by ``step_ns``
        and where it is off by ``late_ns``."""
        if follows(device_ns - self.newest_device_ns, self.usual_ns, 0, step_ns):
            return True
        lapse_ns = (received_ns - self.newest_received_ns) - (device_ns - self.newest_device_ns)
        return abs(late_ns) > LEAST_JUMP_NS and abs(lapse_ns) < abs(late_ns) / 2

    def enter(
        self, epoch: int, began_ns: int | None, device_ns: int, received_ns: int, late_ns: float, step_ns: int
    ) -> bool:
        """Takes part in ``epoch``, which began at host time ``began_ns`` by a step of ``step_ns``. False, and stays
        where it is, as long as its stamps are still from before that."""
        if self.is_new:
            self.epoch = epoch
        elif began_ns is None or not self.goes_on(device_ns, received_ns, late_ns, step_ns):
            self.begin(epoch)
        elif received_ns - began_ns < OTHER_EPOCH_NS:
            self.newest_device_ns, self.newest_received_ns = device_ns, received_ns
            return False
        else:
            self.epoch = epoch
        return True


def follows(gap_ns: int, usual_ns: int, back_ns: int, step_ns: int) -> bool:
    """Whether a stamp so long after the one before it is of the same clock, which may have been set by ``step_ns`` in
    between: of a stream whose stamps are ``usual_ns`` apart, 0 while that is not known, and run back by ``back_ns`` at
    most. However late it is: what is late is late together."""
    at_most_ns = FOLLOWS_INTERVALS * usual_ns
    return 0 < at_most_ns < abs(step_ns) // 2 - back_ns and -back_ns <= gap_ns <= at_most_ns


class DoubtedPing(NamedTuple):
    trip: RoundTrip
    shift_ns: float
    reach_ns: float


class DoubtedArrival(NamedTuple):
    device_ns: int
    received_ns: int
    late_ns: float
    reach_ns: float
    backwards: bool  # possible by itself, but for the order of the stamps


class Suspects:
    """Collects them. ``isolated`` counts those that could not be and that nothing agreed with; ``out_of_order_ns`` is
    how late samples have come that were out of order and nothing more."""

    def __init__(self) -> None:
        self.isolated = 0
        self.out_of_order_ns = 0.0
        self.watching = False  # arrivals wait to be agreed with
        self.shift_ns = 0.0  # what the last ``agreed`` agreed on
        self.since_ns = 0  # when the first of the arrivals that wait was received
        self._pings: list[DoubtedPing] = []
        self._arrivals: list[DoubtedArrival] = []
        self._agreeing: list[DoubtedPing] = []  # in the last ``agreed``
        self._newest: tuple[float, float] | None = None  # shift and reach of the newest suspect
        self._fits = 0

    @property
    def pinged(self) -> bool:
        """Whether a round trip was among those that agreed."""
        return bool(self._agreeing)

    @property
    def often(self) -> bool:
        """Whether this device's stamps are corrupt now and then."""
        return self.isolated >= OFTEN

    def doubt_ping(self, trip: RoundTrip, shift_ns: float, reach_ns: float) -> None:
        """A round trip that cannot be. ``shift_ns`` is known to within ``reach_ns``."""
        recent = [p for p in self._pings if trip.received_ns - p.trip.received_ns < FORGOTTEN_NS]
        self._pings = [*recent, DoubtedPing(trip, shift_ns, reach_ns)][-KEPT_PINGS:]
        self._newest = (shift_ns, reach_ns)

    @property
    def pending(self) -> int:
        """Arrivals in doubt of which the next ones will tell."""
        return len(self._arrivals)

    def doubt_arrival(
        self, device_ns: int, received_ns: int, late_ns: float, typical_ns: float, *, backwards: bool = False
    ) -> None:
        """An arrival that cannot be. ``typical_ns``: how late arrivals usually are."""
        recent = [a for a in self._arrivals if received_ns - a.received_ns < FORGOTTEN_NS]
        reach_ns = LEAST_REACH_NS + REACH * typical_ns
        doubted = DoubtedArrival(device_ns, received_ns, late_ns, reach_ns, backwards)
        self._arrivals = [*recent, doubted][-KEPT_ARRIVALS:]
        self._newest = (late_ns, reach_ns)
        if not self.watching:
            self.since_ns = received_ns
        self.watching = True
        self._fits = 0

    def ping_fitted(self) -> None:
        """A possible round trip: those that were suspected are corrupt."""
        self.isolated += len(self._pings)
        self._pings.clear()

    def arrival_fitted(self, punctual: bool) -> None:
        """A possible arrival. Some of them, as punctual as usual, show that the clock is the old one."""
        self._fits += punctual
        if self._fits >= FITS_TO_CLEAR:
            for arrival in self._arrivals:
                if not arrival.backwards:
                    self.isolated += 1
                elif arrival.late_ns < LATEST_OUT_OF_ORDER_NS:
                    self.out_of_order_ns = max(self.out_of_order_ns, arrival.late_ns)
            self._arrivals.clear()
            self.watching = False

    def agreed(self, block_late_ns: float | None) -> bool:
        """Whether enough says the same as the newest suspect: two pings, three arrivals, or one of each; twice as much
        where stamps have been corrupt before.

        ``block_late_ns``: how late the earliest of the newest arrivals was, all of them possible.
        """
        arrivals = self._arrivals
        if arrivals and any(a.device_ns > b.device_ns for a, b in pairwise(arrivals)):
            arrivals = arrivals[-1:]  # a clock that was set goes on from there
        newest = self._newest
        if newest is None:
            return False
        shift_ns, reach_ns = newest
        pings = [p for p in self._pings if abs(p.shift_ns - shift_ns) <= p.reach_ns + reach_ns]
        arrivals = [a for a in arrivals if abs(a.late_ns - shift_ns) <= a.reach_ns + (reach_ns if pings else 0.0)]
        evidence = PING_EVIDENCE * len(pings) + len(arrivals)
        block = block_late_ns is not None and abs(block_late_ns - shift_ns) <= reach_ns
        evidence += BLOCK_EVIDENCE * block
        if evidence < (MUCH_EVIDENCE if self.often else ENOUGH_EVIDENCE):
            return False
        self._agreeing = pings
        # Arrivals may all be late by the same, but by no more than what makes them agree with a slow round trip.
        best = min(pings, key=lambda p: p.reach_ns, default=None)
        if best is not None and best.reach_ns < min((a.reach_ns for a in arrivals), default=LEAST_REACH_NS):
            self.shift_ns = best.shift_ns
        elif arrivals:
            self.shift_ns = min(a.late_ns for a in arrivals)
        elif block and block_late_ns is not None:
            self.shift_ns = block_late_ns
        elif best is not None:
            self.shift_ns = best.shift_ns
        return True

    def witnesses(self) -> tuple[list[tuple[int, int]], list[RoundTrip]]:
        """(device and receive times of arrivals, round trips) that are for the shift that was agreed on."""
        arrivals = [
            (a.device_ns, a.received_ns) for a in self._arrivals if abs(a.late_ns - self.shift_ns) <= a.reach_ns
        ]
        return arrivals, [ping.trip for ping in self._agreeing]

    def clear(self) -> None:
        """They were right."""
        self._pings.clear()
        self._agreeing = []
        self._arrivals.clear()
        self.watching = False
        self._fits = 0
