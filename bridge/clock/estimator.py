"""One device's clock: round trips and arrivals in, mapped times with a bound out.

Here live the plan of pings, the watch for steps of the device's clock and what is handed out; what is known of the
clock is in ``model``. See docs/clock.md for the reasons.
"""

from __future__ import annotations

import math

import msgspec

from bridge.clock.model import BOUND_DEVIATIONS, NS, Estimate, Model
from bridge.clock.output import SlewedOutput
from bridge.clock.plan import PingPlan
from bridge.clock.roundtrip import Arrival, ClockState, Mapped, RoundTrip
from bridge.clock.rtts import RecentRtts
from bridge.clock.watch import Suspects, Track

FASTEST = 0.005  # what is handed out never runs off by more, whatever has been measured
HOLDOVER_INTERVALS = 5  # pings missed before the state says so
FIT_INTERVAL_NS = 400_000_000
FIT_AT_LEAST_NS = 5_000_000_000  # also without pings: the floor of arrivals goes on telling
BLOCKS_NS = (100_000_000, 100_000_000, 200_000_000, 400_000_000)  # after a beginning, then:
BLOCK_NS = 1_000_000_000
COARSE_NS = 10_000  # finer quanta drown in the rest
COARSE_SHARE = 0.2
COARSE, COARSE_IN_STEP = 0.2, 10.0  # quanta
IN_STEP = 0.03  # of a quantum, on average
ROBUST_COUNT = 20  # arrivals in a block from which on its second earliest is taken
FEW_LATE = 2.0  # of the usual lateness: how much later the earliest of a few is than that of many
STALE_NS = 50_000_000  # a block whose earliest arrival is this late is a backlog
YOUNG_NS = 3_000_000_000  # so long after its beginning an epoch's output follows fast
YOUNG_JUMP_NS = 2_000_000  # in an epoch that has just begun, more is not glided over
JUMP_NS, JUMP_BOUNDS = 50_000_000, 10.0  # later, more begins an epoch
SUSPEND_ALIKE_NS = 1_000_000_000
STEP_UNKNOWN_NS = 50_000_000.0  # how well a step's size is known from the first samples after it
ROOM_NS = 20_000.0  # beyond the bound, before anything is called impossible
GROSS_BOUNDS, GROSS_NS = 3.0, 1_500_000.0
MILD_TO_AGREE = 2
UNLOCKED_ROOM_NS = 20_000_000.0
OTHER_EPOCH_NS = 5_000_000_000  # so long after a step, streams may still deliver stamps from before
AHEAD_NS = 10_000_000
LONG_AGO_NS = 2_000_000_000
BACK_LATE, BACK_LATE_NS = 8.0, 2_000_000.0


class ClockSettings(msgspec.Struct, frozen=True):
    """How a device is asked, and what is known of the path to it.

    ``asymmetry_ns``: a measured difference of the path's delays, to the device less back from it. ``largest_slew``:
    the most by which corrections bend the clock that is handed out. ``pings_to_lock``: round trips before it is.
    """

    ping_interval_ns: int = 1_000_000_000
    asymmetry_ns: int = 0
    largest_slew: float = 0.001
    pings_to_lock: int = 5


class Clock:
    """Knows no protocol and reads no clock: every time is given to it, in integer ns."""

    def __init__(self, settings: ClockSettings | None = None) -> None:
        self.settings = settings or ClockSettings()
        self.epoch = 0
        self.pings_accepted = 0
        self.pings_rejected = 0
        self.plan = PingPlan(self.settings.ping_interval_ns)
        self._rtts = RecentRtts()
        self._track = Track()  # for who tells no streams apart
        self._start()

    def _start(self) -> None:
        self._model = Model(self.settings.asymmetry_ns)
        self._known = False  # whether reference and base are set
        self._reference_ns = 0  # device time
        self._base_ns = 0  # offset
        self._estimate: Estimate | None = None
        self._estimate_device_ns = 0
        self._estimate_offset_ns = 0
        self._bound_ns = 0.0
        self._growth = 0.0  # of the bound, ns per ns
        self._line_device_ns = 0
        self._line_offset_ns = 0
        self._line_rate = 0.0
        self._low_limit_ns = -UNLOCKED_ROOM_NS
        self._gross_ns = 0.0  # a contradiction by more is a step or a corrupt stamp, by less another rate
        self._mild = 0
        self._output: SlewedOutput | None = None
        self._previous: tuple[SlewedOutput, int, int] | None = None  # and its bound and precision, of the epoch before
        self.step_ns: int | None = None  # by which the device's clock was set at the beginning of this epoch
        self._epoch_began_ns: int | None = None
        self._last_received_ns: int | None = None  # of a round trip
        self._pinged_device_ns = 0
        self._newest_mapped_ns = -(2**62)
        self._fitted_ns = 0
        self._pings_in_epoch = 0
        self._suspects = Suspects()
        self._typical_ns = 1_000_000.0  # how late arrivals usually are
        self._primary: Track | None = None
        self._fineness = 0.5  # share of samples whose stamps are finer than those of round trips
        self._in_step = 0.5  # share of blocks whose samples came at whole quanta
        self._begin_blocks()

    def _begin_blocks(self) -> None:
        self._blocks = 0
        self._begin_block(None)

    def _begin_block(self, now_ns: int | None) -> None:
        length_ns = BLOCKS_NS[self._blocks] if self._blocks < len(BLOCKS_NS) else BLOCK_NS
        self._block_length_ns = length_ns
        self._block_end_ns = 0 if now_ns is None else now_ns + length_ns
        self._block_count = 0
        self._block_first_ns = self._primary.newest_device_ns if self._primary is not None else 0
        self._earliest: list[tuple[float, int, int]] = []  # (lateness, device time, received), the three earliest
        self._third_ns = float("inf")

    def reset(self) -> None:
        """Forgets the mapping, not the crystal's rate: the device has restarted, or its clock is another one now."""
        if self._known:
            self.epoch += 1
        rate_ns_s = self._model.known_rate_ns_s
        self._start()
        if rate_ns_s is not None:
            self._model.keep_rate(rate_ns_s)
        self.plan.burst()

    # --- in -----------------------------------------------------------------------------------------------------

    def ping(self, trip: RoundTrip) -> bool:
        """Takes a round trip. False when it was set aside: impossible in itself, or against all that is known."""
        if trip.received_ns < trip.sent_ns:
            self.pings_rejected += 1
            return False
        if not self._known:
            self._set_base(trip.device_ns, (trip.lowest_offset_ns + trip.highest_offset_ns) // 2)
        against_ns = self._against_ns(trip)
        if against_ns > self._gross_ns:
            return self._doubt_ping(trip)
        if against_ns > 0:
            self._mild += 1
            self.plan.burst()
            if self._mild < MILD_TO_AGREE:
                self.pings_rejected += 1
                return False
            self._model.rate_changed(self._x_s(trip.received_ns))
        self._mild = 0
        self._suspects.ping_fitted()
        self._accept(trip)
        return True

    def arrival(self, device_ns: int, received_ns: int, track: Track | None = None) -> Arrival:
        """Takes the arrival of a sample on a stream that keeps its order and delivers at once.

        ``track`` is the stream's own; one stream alone needs none. See ``Arrival`` for the answers.
        """
        track = track or self._track
        if self._estimate is None:  # nothing to judge it by
            track.meet(device_ns, received_ns, self.epoch)
            return Arrival.FITS
        late_ns = (
            received_ns
            - device_ns
            - self._line_offset_ns
            - (device_ns - self._line_device_ns) * self._line_rate
        )  # fmt: skip
        if (
            late_ns < self._low_limit_ns
            or device_ns < track.newest_device_ns
            or self._suspects.watching
            or track.epoch != self.epoch
        ):
            return self._look_closer(device_ns, received_ns, late_ns, track)
        self._take(device_ns, received_ns, late_ns, track)
        return Arrival.FITS

    def host_suspended(self, suspended_ns: int, now_ns: int) -> None:
        """The host slept for so long, and its clock stood still while the device's ran on."""
        if not self._known:
            return
        if self._young(now_ns) and self.step_ns and abs(self.step_ns - suspended_ns) < SUSPEND_ALIKE_NS:
            return  # arrivals have told already
        self._set_clock(-suspended_ns, now_ns)
        self._refit(now_ns)

    def request_burst(self) -> None:
        """Something is not as expected: ask for round trips at once. Does nothing while a burst is under way."""
        self.plan.burst()

    # --- out ----------------------------------------------------------------------------------------------------

    @property
    def locked(self) -> bool:
        """Whether ``map`` has an answer."""
        return self._output is not None

    def map(self, device_ns: int) -> Mapped | None:
        """Host time of a device time; None until the clock is locked."""
        estimate = self._estimate
        if self._output is None or estimate is None:
            return None
        if device_ns > self._newest_mapped_ns:
            self._newest_mapped_ns = device_ns
        host_ns = self._output.to_host(device_ns)
        extra_ns = self._extra_ns(device_ns, host_ns)
        state = ClockState.LOCKED
        if self._pings_in_epoch == 0:
            state = ClockState.BRIDGING
        elif device_ns - self._pinged_device_ns > HOLDOVER_INTERVALS * self.plan.interval_ns:
            state = ClockState.HOLDOVER
        return Mapped(
            host_ns, int(estimate.bound_ns + extra_ns) + 1, int(estimate.precision_ns + extra_ns) + 1, state, self.epoch
        )

    def map_bound(self, device_ns: int) -> tuple[int, float] | None:
        """(host time, bound) of a device time in ns, as ``map`` gives them; None until the clock is locked."""
        if self._output is None:
            return None
        if device_ns > self._newest_mapped_ns:
            self._newest_mapped_ns = device_ns
        host_ns = self._output.to_host(device_ns)
        return host_ns, self._bound_ns + self._extra_ns(device_ns, host_ns)

    def _extra_ns(self, device_ns: int, host_ns: int) -> float:
        """How far the output still is from the estimate, and the estimate perhaps from what has become of it since."""
        age_ns = device_ns - self._estimate_device_ns
        if -LONG_AGO_NS < age_ns < LONG_AGO_NS:
            behind_ns = abs(host_ns - device_ns - self._estimate_offset_ns - age_ns * self._line_rate)
            return behind_ns + abs(age_ns) * self._growth
        if age_ns > 0:
            behind_ns = abs(host_ns - device_ns - self._estimate_offset_ns - age_ns * self._line_rate)
            return behind_ns + BOUND_DEVIATIONS * self._model.spread_ns(age_ns / NS)
        x_s = (device_ns - self._reference_ns) / NS
        behind_ns = abs(host_ns - device_ns - self._base_ns - self._model.offset_ns(x_s))
        return behind_ns + self._model.before_all_s(x_s) * self._model.first_growth_ns_s

    def map_previous(self, device_ns: int) -> Mapped | None:
        """Host time of a stamp from before the last step (an arrival that was STALE)."""
        if self._previous is None:
            return None
        output, bound_ns, precision_ns = self._previous
        return Mapped(output.to_host(device_ns), bound_ns, precision_ns, ClockState.HOLDOVER, self.epoch - 1)

    def to_device(self, host_ns: int) -> int | None:
        """Device time of a host time (for events sent at a host time); None until the clock is locked."""
        return None if self._output is None else self._output.to_device(host_ns)

    def ahead_ns(self, device_ns: int, received_ns: int) -> float:
        """More than 0: so far beyond the bound a stamp lies after its own arrival, which no clock that holds can do.

        Minus infinity until the clock is locked.
        """
        mapped = self.map(device_ns)
        if mapped is None:
            return float("-inf")
        ahead_ns = mapped.host_ns - received_ns
        return ahead_ns if ahead_ns <= 0 else ahead_ns - mapped.bound_ns

    def state(self, now_ns: int) -> ClockState:
        """The state at host time ``now_ns``."""
        if self._output is None:
            return ClockState.UNLOCKED
        if self._pings_in_epoch == 0:
            return ClockState.BRIDGING
        assert self._last_received_ns is not None
        if now_ns - self._last_received_ns > HOLDOVER_INTERVALS * self.plan.interval_ns:
            return ClockState.HOLDOVER
        return ClockState.LOCKED

    @property
    def offset_ns(self) -> int | None:
        """The newest estimate: add it to device time to get host time."""
        return None if self._output is None else self._estimate_offset_ns

    @property
    def estimated_at_ns(self) -> int | None:
        """Device time of the newest estimate."""
        return None if self._output is None else self._estimate_device_ns

    @property
    def doubting(self) -> bool:
        """Whether suspect arrivals still wait for what comes next."""
        return self._suspects.watching

    @property
    def bound_ns(self) -> int | None:
        return None if self._output is None or self._estimate is None else round(self._estimate.bound_ns)

    @property
    def precision_ns(self) -> float:
        """95 % of the error, the path's asymmetry left out."""
        return 0.0 if self._estimate is None else self._estimate.precision_ns

    @property
    def isolated_suspects(self) -> int:
        """Stamps and round trips so far that could not be and that nothing agreed with."""
        return self._suspects.isolated

    @property
    def drift_ppm(self) -> float:
        """How fast the device's clock runs against the host's: positive when it is fast."""
        return -self._model.rate_ns_s / 1e3

    @property
    def last_ping_received_ns(self) -> int | None:
        return self._last_received_ns

    @property
    def slew_ns(self) -> int:
        """What the output still lacks to the newest estimate."""
        if self._output is None:
            return 0
        at_ns = self._estimate_device_ns
        return at_ns - self._output.to_host(at_ns) + self._estimate_offset_ns

    @property
    def rtts_ns(self) -> tuple[int, int] | None:
        """Smallest and median round trip time of the last 64."""
        return self._rtts.smallest_and_median_ns()

    # --- round trips --------------------------------------------------------------------------------------------

    def _set_base(self, device_ns: int, offset_ns: int) -> None:
        self._known = True
        self._reference_ns = self._line_device_ns = device_ns
        self._base_ns = self._line_offset_ns = offset_ns

    def _x_s(self, host_ns: int) -> float:
        """The device time of now, since the reference."""
        offset_ns = self._estimate.offset_ns if self._estimate is not None else 0.0
        return (host_ns - self._base_ns - self._reference_ns - offset_ns) / NS

    def _against_ns(self, trip: RoundTrip) -> float:
        """By how much a round trip contradicts what is known; not more than 0 when it does not."""
        estimate = self._estimate
        if estimate is None:
            return 0.0
        age_s = self._x_s(trip.received_ns) - estimate.x_s
        offset_ns = self._base_ns + age_s * estimate.rate_ns_s
        room_ns = ROOM_NS + 0.25 * estimate.bound_ns + BOUND_DEVIATIONS * self._model.spread_ns(abs(age_s))
        above_ns = trip.lowest_offset_ns - offset_ns - estimate.highest_ns
        below_ns = estimate.lowest_ns - trip.highest_offset_ns + offset_ns
        return max(above_ns, below_ns) - room_ns

    def _accept(self, trip: RoundTrip) -> None:
        x_s = (trip.device_ns - self._reference_ns) / NS
        self._model.quantum_ns = trip.quantum_ns
        lowest_ns, highest_ns = trip.lowest_offset_ns - self._base_ns, trip.highest_offset_ns - self._base_ns
        self._model.add_ping(x_s, lowest_ns, highest_ns)
        self._rtts.add(trip.rtt_ns)
        self.pings_accepted += 1
        self._pings_in_epoch += 1
        self._last_received_ns = trip.received_ns
        self._pinged_device_ns = trip.device_ns
        due = self._young(trip.received_ns) or trip.received_ns - self._fitted_ns >= FIT_INTERVAL_NS
        if due or self._narrows(lowest_ns, highest_ns):
            self._refit(trip.received_ns)

    def _narrows(self, lowest_ns: float, highest_ns: float) -> bool:
        """Whether a round trip of now leaves less open than all before."""
        estimate = self._estimate
        return estimate is None or lowest_ns > estimate.lowest_ns or highest_ns < estimate.highest_ns

    def _doubt_ping(self, trip: RoundTrip) -> bool:
        """A round trip that cannot be: a step if something else says the same, else a corrupt one."""
        estimate = self._estimate
        assert estimate is not None
        middle_ns = (trip.lowest_offset_ns + trip.highest_offset_ns) / 2 - self._base_ns
        shift_ns = middle_ns - estimate.offset_ns - (self._x_s(trip.received_ns) - estimate.x_s) * estimate.rate_ns_s
        reach_ns = (trip.highest_offset_ns - trip.lowest_offset_ns) / 2 + estimate.bound_ns
        self._suspects.doubt_ping(trip, shift_ns, reach_ns)
        self.plan.burst()
        # Arrivals say the same when all of the block so far are late by as much.
        late_ns = self._earliest[0][0] if self._block_count >= 5 and self._earliest else None
        if late_ns is not None and abs(late_ns) < self._gross_ns:
            late_ns = None
        if not self._suspects.agreed(late_ns):
            self.pings_rejected += 1
            return False
        self._step(self._suspects.shift_ns, trip.received_ns)
        return True

    # --- arrivals -----------------------------------------------------------------------------------------------

    def _take(self, device_ns: int, received_ns: int, late_ns: float, track: Track) -> None:
        if device_ns > track.newest_device_ns:
            track.newest_device_ns = device_ns
        track.newest_received_ns = received_ns
        if track is not self._primary:
            self._other_track(track, received_ns)
            return
        self._block_count += 1
        if late_ns < self._third_ns:
            self._note(late_ns, device_ns, received_ns)
        if received_ns >= self._block_end_ns:
            self._close_block(late_ns, received_ns)

    def _note(self, late_ns: float, device_ns: int, received_ns: int) -> None:
        earliest = self._earliest
        earliest.append((late_ns, device_ns, received_ns))
        earliest.sort()
        del earliest[3:]
        if len(earliest) == 3:
            self._third_ns = earliest[2][0]

    def _other_track(self, track: Track, received_ns: int) -> None:
        """Only one stream makes the floor: the first, and another once that one has been silent."""
        primary = self._primary
        if primary is None:
            self._primary = track
        elif received_ns - primary.newest_received_ns > FIT_AT_LEAST_NS:
            self._primary = track
            self._model.floor_moved()
            self._begin_blocks()

    def _close_block(self, late_ns: float, received_ns: int) -> None:
        changed = False
        if self._block_end_ns and self._earliest:
            share = max(0.1, 1 / (1 + self._blocks))
            self._typical_ns += share * (min(abs(late_ns), 20 * self._typical_ns) - self._typical_ns)
            earliest = self._earliest
            chosen = earliest[0]
            if self._block_count >= ROBUST_COUNT:
                wide_ns = 8 * self._model.scatter_ns
                chosen = earliest[2] if earliest[2][0] - earliest[1][0] > wide_ns else earliest[1]
            if not self._known:
                self._set_base(chosen[1], chosen[2] - chosen[1])
            if chosen[0] < STALE_NS or self._estimate is None:
                x_s = (chosen[1] - self._reference_ns) / NS
                y_ns = float(chosen[2] - chosen[1] - self._base_ns)
                whole = self._block_length_ns == BLOCK_NS
                late_ns = 0.0 if whole else FEW_LATE * self._typical_ns / self._block_count
                share = self._block_length_ns / BLOCK_NS
                changed = self._model.add_arrivals(x_s, y_ns, share, late_ns, self._coarse_ns(chosen[1]))
            self._blocks += 1
        self._begin_block(received_ns)
        if self._estimate is not None:
            due_ns = 0 if changed or self._young(received_ns) else FIT_AT_LEAST_NS
            if received_ns - self._fitted_ns >= due_ns:
                self._refit(received_ns)

    def _coarse_ns(self, device_ns: int) -> float:
        """How far stamps are off at least, that have the quantum of the round trips. Samples at a steady rate beat with
        the ticks of a coarse clock: where their interval is whole quanta, they stay in one phase for minutes."""
        quantum_ns, track = self._model.quantum_ns, self._primary
        if quantum_ns < COARSE_NS or track is None:
            return 0.0
        self._fineness += COARSE_SHARE * ((device_ns % quantum_ns != 0) - self._fineness)
        if self._block_count:
            quanta = (track.newest_device_ns - self._block_first_ns) / self._block_count / quantum_ns
            self._in_step += COARSE_SHARE * ((abs(quanta - round(quanta)) < IN_STEP) - self._in_step)
        if self._fineness > 0.5:
            return 0.0
        return quantum_ns * (COARSE_IN_STEP if self._in_step > 0.3 else COARSE)

    def _late_ns(self, device_ns: int, received_ns: int) -> float:
        """How late an arrival is, by the host's clock: the device's may have jumped by hours."""
        elapsed_ns = received_ns - self._line_offset_ns - self._line_device_ns
        return received_ns - device_ns - self._line_offset_ns - elapsed_ns * self._line_rate

    def _look_closer(self, device_ns: int, received_ns: int, late_ns: float, track: Track) -> Arrival:
        if track.epoch != self.epoch:
            if track.is_new:
                track.epoch = self.epoch
            elif self._epoch_began_ns is not None and track.goes_on(device_ns, received_ns, late_ns):
                if received_ns - self._epoch_began_ns < OTHER_EPOCH_NS:
                    track.newest_device_ns, track.newest_received_ns = device_ns, received_ns
                    return Arrival.STALE
                track.epoch = self.epoch
            else:
                track.begin(self.epoch)
        if not self._known:
            self._set_base(device_ns, received_ns - device_ns)
            late_ns = 0.0
        impossible = late_ns < self._low_limit_ns
        # Stamps that run backwards, and later than streams out of order ever are.
        backwards = device_ns < track.newest_device_ns and late_ns > BACK_LATE_NS + BACK_LATE * self._typical_ns
        if backwards and self._late_ns(track.newest_device_ns, track.newest_received_ns) < self._low_limit_ns:
            backwards = False  # it was the stamp before that could not be
            track.newest_device_ns = device_ns
        if not impossible and not backwards:
            if self._suspects.watching:
                self._suspects.arrival_fitted(late_ns < 4 * self._typical_ns)
            self._take(device_ns, received_ns, late_ns, track)
            return Arrival.FITS
        self.plan.burst()
        late_ns = self._late_ns(device_ns, received_ns)
        self._suspects.doubt_arrival(device_ns, received_ns, late_ns, self._typical_ns)
        if not self._suspects.agreed(None):
            return Arrival.SUSPECT
        self._step(self._suspects.shift_ns, received_ns)
        track.begin(self.epoch)
        track.newest_device_ns, track.newest_received_ns = device_ns, received_ns
        return Arrival.FITS

    # --- steps --------------------------------------------------------------------------------------------------

    def _step(self, shift_ns: float, now_ns: int) -> None:
        """Begins an epoch with those who said so as its first witnesses."""
        arrivals, trips = self._suspects.witnesses()
        self._suspects.clear()
        self._set_clock(round(shift_ns), now_ns)
        if arrivals:
            device_ns, received_ns = min(arrivals, key=lambda a: a[1] - a[0])
            x_s = (device_ns - self._reference_ns) / NS
            y_ns = float(received_ns - device_ns - self._base_ns)
            self._model.add_arrivals(x_s, y_ns, 0.02, FEW_LATE * self._typical_ns, self._coarse_ns(device_ns))
        for trip in trips:
            self._accept(trip)
        self._refit(now_ns)

    def _set_clock(self, shift_ns: int, now_ns: int) -> None:
        self.epoch += 1
        self._base_ns += shift_ns
        self._reference_ns -= shift_ns
        self._line_device_ns -= shift_ns
        self._line_offset_ns += shift_ns
        self._estimate_device_ns -= shift_ns
        self._newest_mapped_ns = -(2**62)
        self._estimate_offset_ns += shift_ns
        self._model.clock_set(STEP_UNKNOWN_NS)
        if self._output is not None and self._estimate is not None:
            behind_ns = abs(self.slew_ns) + 1
            estimate = self._estimate
            bound_ns, precision_ns = round(estimate.bound_ns) + behind_ns, round(estimate.precision_ns) + behind_ns
            self._previous = (self._output, bound_ns, precision_ns)
        self._output = None
        self.step_ns = -shift_ns
        self._epoch_began_ns = now_ns
        self._pings_in_epoch = 0
        self._begin_blocks()
        self.plan.burst()

    def _young(self, now_ns: int) -> bool:
        return self._epoch_began_ns is not None and now_ns - self._epoch_began_ns < YOUNG_NS

    # --- estimate -----------------------------------------------------------------------------------------------

    def _refit(self, now_ns: int) -> None:
        self._fitted_ns = now_ns
        x_s = self._x_s(now_ns)
        self._model.corrupt_seen = self._suspects.isolated
        estimate = self._model.estimate(x_s)
        if estimate is None:
            return
        if not math.isfinite(estimate.offset_ns + estimate.bound_ns + estimate.rate_ns_s):
            self.reset()  # nothing that was remembered makes sense
            return
        self._estimate = estimate
        device_ns = self._reference_ns + round(x_s * NS)
        self._estimate_device_ns = self._line_device_ns = device_ns
        self._estimate_offset_ns = self._base_ns + round(estimate.offset_ns)
        self._line_offset_ns = self._base_ns + round(estimate.floor_ns)
        self._line_rate = min(max(estimate.rate_ns_s / NS, -FASTEST), FASTEST)
        self._bound_ns = estimate.bound_ns
        self._growth = BOUND_DEVIATIONS * estimate.rate_deviation_ns_s / NS
        self._gross_ns = max(GROSS_BOUNDS * estimate.bound_ns, GROSS_NS)
        self._low_limit_ns = estimate.lowest_ns - estimate.floor_ns - ROOM_NS - self._gross_ns
        # Not before what was mapped already, unless that was a corrupt stamp.
        from_ns = max(device_ns, min(self._newest_mapped_ns, device_ns + round(estimate.bound_ns) + AHEAD_NS))
        offset_ns = self._estimate_offset_ns + round((from_ns - device_ns) * self._line_rate)
        if self._output is None:
            if self._previous is None and self._pings_in_epoch < self.settings.pings_to_lock:
                return
            if self._epoch_began_ns is None:
                self._epoch_began_ns = now_ns
            self._output = SlewedOutput(from_ns, offset_ns, self._line_rate, self.settings.largest_slew)
            return
        young = self._young(now_ns)
        off_ns = abs(self._output.to_host(from_ns) - from_ns - offset_ns)
        if off_ns > (YOUNG_JUMP_NS if young else max(JUMP_NS, JUMP_BOUNDS * estimate.bound_ns)):
            # Gliding there would take longer than anybody should get such stamps.
            self._output = SlewedOutput(from_ns, offset_ns, self._line_rate, self.settings.largest_slew)
            if not young:
                self.epoch += 1
                self.step_ns = 0
                self._epoch_began_ns = now_ns
            return
        self._output.steer(from_ns, offset_ns, self._line_rate, fast=young)
