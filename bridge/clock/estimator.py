"""One device's clock: round trips and arrivals in, mapped times with a bound out.

Here it is decided what is believed and when to estimate anew. What is known of the clock is in ``model``, what follows
from it for stamps to come in ``expected``, what is handed out in ``epochs``. See docs/clock.md for the reasons.
"""

from __future__ import annotations

import math

import msgspec

from bridge.clock.blocks import ArrivalBlocks, Block
from bridge.clock.epochs import Epochs
from bridge.clock.expected import Expectation
from bridge.clock.model import Model
from bridge.clock.origin import Origin
from bridge.clock.plan import PingPlan
from bridge.clock.roundtrip import Arrival, ClockState, Mapped, RoundTrip
from bridge.clock.rtts import RecentRtts
from bridge.clock.watch import Suspects, Track

HOLDOVER_INTERVALS = 5  # pings missed before the state says so
FOLLOWS_NS = 2_000_000  # a ping that leaves so soon after a reply finds the way still awake
FIT_INTERVAL_NS = 400_000_000  # round trips in quick succession are fitted together
FIT_AT_LEAST_NS = 5_000_000_000  # also without pings: the floor of arrivals goes on telling
SUSPEND_ALIKE_NS = 1_000_000_000  # a step that differs by less from how long the host slept is that sleep
STEP_UNKNOWN_NS = 50_000_000.0  # how well a step's size is known from the first samples after it
MILD_TO_AGREE = 2  # round trips in a row that contradict a little, and the rate has changed
BACK_LATE, BACK_LATE_NS = 8.0, 2_000_000.0  # usual latenesses, and ns: later than streams out of order ever are
DISORDER = 2.0  # times the latest that came out of order before
PUNCTUAL = 4.0  # usual latenesses, up to which an arrival shows that the clock is the old one


class ClockSettings(msgspec.Struct, frozen=True):
    """How a device is asked, and what is known of the path to it.

    ``asymmetry_ns``: a measured difference of the path's delays, to the device less back from it. ``largest_slew``:
    the most by which corrections bend the clock that is handed out. ``pings_to_lock``: round trips before it is.
    ``step_patience_ns``: how long arrivals that agree on a step wait for a round trip that tells its size, where round
    trips are answered: they may all be late by the same. ``steps_at_once``: one clock stamps all streams, so none goes
    on with that of before a step.
    """

    ping_interval_ns: int = 1_000_000_000
    asymmetry_ns: int = 0
    largest_slew: float = 0.001
    pings_to_lock: int = 5
    step_patience_ns: int = 0
    steps_at_once: bool = False


class Clock:
    """Knows no protocol and reads no clock: every time is given to it, in integer ns."""

    def __init__(self, settings: ClockSettings | None = None) -> None:
        self.settings = settings or ClockSettings()
        self.pings_accepted = 0
        self.pings_rejected = 0
        self.plan = PingPlan(self.settings.ping_interval_ns)
        self._rtts = RecentRtts()
        self._track = Track()  # for who tells no streams apart
        self._start(epoch=0)

    def _start(self, epoch: int) -> None:
        self._model = Model(self.settings.asymmetry_ns)
        self._blocks = ArrivalBlocks(self._model.floor_moved)
        self._suspects = Suspects()
        self._epochs = Epochs(epoch, self.settings.pings_to_lock, self.settings.largest_slew)
        self._origin: Origin | None = None  # set by the first round trip
        self._expected: Expectation | None = None  # from the first estimate on, which follows at once
        self._fitted_ns = 0
        self._mild = 0  # contradictions in a row
        self._quantum_ns = 1  # of the stamps of round trips
        self._last_received_ns: int | None = None  # of a round trip
        self._pinged_device_ns = 0
        self._widest_ns = 0  # bound at the end of an estimate's time

    def reset(self) -> None:
        """Forgets the mapping, not the crystal's rate: the device has restarted, or its clock is another one now."""
        rate_ns_s = self._model.known_rate_ns_s
        self._start(self.epoch if self._origin is None else self.epoch + 1)
        if rate_ns_s is not None:
            self._model.keep_rate(rate_ns_s)
        self.plan.burst()

    # --- in -----------------------------------------------------------------------------------------------------

    def ping(self, trip: RoundTrip) -> bool:
        """Takes a round trip. False when it was set aside: impossible in itself, or against all that is known."""
        if trip.received_ns < trip.sent_ns:
            self.pings_rejected += 1
            return False
        expected = self._expected
        if expected is not None:
            contradiction_ns = expected.contradiction_ns(trip)
            if contradiction_ns > expected.gross_ns:
                return self._doubt_ping(trip, expected)
            if contradiction_ns > 0:
                self._mild += 1
                self.plan.burst()
                if self._mild < MILD_TO_AGREE:
                    self.pings_rejected += 1
                    return False
                self._model.rate_changed(expected.x_s(trip.received_ns))
        self._mild = 0
        self._suspects.ping_fitted()
        self._accept(trip)
        return True

    def arrival(self, device_ns: int, received_ns: int, track: Track | None = None) -> Arrival:
        """Takes the arrival of a sample on a stream that keeps its order and delivers at once.

        ``track`` is the stream's own; one stream alone needs none. See ``Arrival`` for the answers.
        """
        # This and map_bound are called for every sample: no call that can be done without.
        track = track or self._track
        expected = self._expected
        if expected is None:  # nothing to judge it by
            track.meet(device_ns, received_ns, self._epochs.number)
            return Arrival.FITS
        late_ns = (
            received_ns
            - device_ns
            - expected.floor_ns
            - (device_ns - expected.device_ns) * expected.rate
        )  # fmt: skip
        if (
            late_ns < expected.least_late_ns
            or device_ns < track.newest_device_ns
            or self._suspects.watching
            or track.epoch != self._epochs.number
        ):
            return self._look_closer(device_ns, received_ns, late_ns, track, expected)
        if self._blocks.take(device_ns, received_ns, late_ns, track):
            self._close_block(late_ns, received_ns)
        return Arrival.FITS

    def host_suspended(self, suspended_ns: int, now_ns: int) -> None:
        """The host slept for so long, and its clock stood still while the device's ran on."""
        if self._expected is None:
            return
        if self._epochs.young(now_ns) and self.step_ns and abs(self.step_ns - suspended_ns) < SUSPEND_ALIKE_NS:
            return  # arrivals have told already
        self._set_clock(-suspended_ns, now_ns)
        self._refit(now_ns)

    def request_burst(self) -> None:
        """Something is not as expected: ask for round trips at once. Does nothing while a burst is under way."""
        self.plan.burst()

    # --- out ----------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Counts how often the mapping began anew: at steps of the device's clock, resets and jumps."""
        return self._epochs.number

    @property
    def step_ns(self) -> int | None:
        """By how much the device's clock was set at the beginning of this epoch; None when it was not that."""
        return self._epochs.step_ns

    @property
    def locked(self) -> bool:
        """Whether ``map`` has an answer."""
        return self._epochs.output is not None

    def map(self, device_ns: int) -> Mapped | None:
        """Host time of a device time; None until the clock is locked."""
        expected, epochs = self._expected, self._epochs
        output = epochs.output
        if output is None or expected is None:
            return None
        if device_ns > epochs.newest_mapped_ns:
            epochs.newest_mapped_ns = device_ns
        host_ns = output.to_host(device_ns)
        beyond_ns = expected.beyond_ns(device_ns, host_ns)
        state = ClockState.LOCKED
        if epochs.pings == 0:
            state = ClockState.BRIDGING
        elif device_ns - self._pinged_device_ns > HOLDOVER_INTERVALS * self.plan.interval_ns:
            state = ClockState.HOLDOVER
        bound_ns, precision_ns = expected.bound_ns + beyond_ns, expected.estimate.precision_ns + beyond_ns
        return Mapped(host_ns, int(bound_ns) + 1, int(precision_ns) + 1, state, epochs.number)

    def map_bound(self, device_ns: int) -> tuple[int, float] | None:
        """(host time, bound) of a device time in ns, as ``map`` gives them; None until the clock is locked."""
        expected, epochs = self._expected, self._epochs
        output = epochs.output
        if output is None or expected is None:
            return None
        if device_ns > epochs.newest_mapped_ns:
            epochs.newest_mapped_ns = device_ns
        host_ns = output.to_host(device_ns)
        return host_ns, expected.bound_ns + expected.beyond_ns(device_ns, host_ns)

    def map_previous(self, device_ns: int) -> Mapped | None:
        """Host time of a stamp from before the last step (an arrival that was STALE)."""
        return self._epochs.map_previous(device_ns)

    def to_device(self, host_ns: int) -> int | None:
        """Device time of a host time (for events sent at a host time); None until the clock is locked."""
        output = self._epochs.output
        return None if output is None else output.to_device(host_ns)

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
        if not self.locked:
            return ClockState.UNLOCKED
        if self._epochs.pings == 0:
            return ClockState.BRIDGING
        assert self._last_received_ns is not None
        if now_ns - self._last_received_ns > HOLDOVER_INTERVALS * self.plan.interval_ns:
            return ClockState.HOLDOVER
        return ClockState.LOCKED

    @property
    def offset_ns(self) -> int | None:
        """The newest estimate: add it to device time to get host time."""
        return None if self._expected is None or not self.locked else self._expected.offset_ns

    @property
    def estimated_at_ns(self) -> int | None:
        """Device time of the newest estimate."""
        return None if self._expected is None or not self.locked else self._expected.device_ns

    @property
    def doubting(self) -> bool:
        """Whether suspect arrivals still wait for what comes next."""
        return self._suspects.watching

    @property
    def bound_ns(self) -> int | None:
        """Of the newest estimate, whatever the path's asymmetry."""
        return None if self._expected is None or not self.locked else round(self._expected.bound_ns)

    def widest_bound_ns(self, host_ns: int) -> int | None:
        """The widest bound, as ``map`` gives it, of stamps from the last call of ``told`` until ``host_ns``, which is
        now; None until the clock is locked."""
        bound_ns = self._bound_at_ns(host_ns)
        return None if bound_ns is None else max(bound_ns, self._widest_ns)

    def told(self) -> None:
        """``widest_bound_ns`` begins anew."""
        self._widest_ns = 0

    @property
    def precision_ns(self) -> float:
        """95 % of the error, the path's asymmetry left out."""
        return 0.0 if self._expected is None else self._expected.estimate.precision_ns

    @property
    def pending_suspects(self) -> int:
        """Arrivals in doubt of which the next ones will tell."""
        return self._suspects.pending

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
        """Host time at which the last round trip that was accepted came back."""
        return self._last_received_ns

    @property
    def slew_ns(self) -> int:
        """What the output still lacks to the newest estimate."""
        return 0 if self._expected is None else self._epochs.slew_ns(self._expected)

    @property
    def rtts_ns(self) -> tuple[int, int] | None:
        """Smallest and median round trip time of the last 64."""
        return self._rtts.smallest_and_median_ns()

    # --- round trips --------------------------------------------------------------------------------------------

    def _accept(self, trip: RoundTrip) -> None:
        origin, expected = self._origin, self._expected
        if origin is None:
            offset_ns = (trip.lowest_offset_ns + trip.highest_offset_ns) // 2
            origin = self._origin = Origin(trip.device_ns, offset_ns)
        self._quantum_ns = trip.quantum_ns
        lowest_ns, highest_ns = trip.lowest_offset_ns - origin.base_ns, trip.highest_offset_ns - origin.base_ns
        follows = self._last_received_ns is not None and 0 <= trip.sent_ns - self._last_received_ns < FOLLOWS_NS
        self._model.add_ping(origin.x_s(trip.device_ns), lowest_ns, highest_ns, trip.quantum_ns, follows=follows)
        self._rtts.add(trip.rtt_ns)
        self.pings_accepted += 1
        self._epochs.pings += 1
        self._last_received_ns = trip.received_ns
        self._pinged_device_ns = trip.device_ns
        due = self._epochs.young(trip.received_ns) or trip.received_ns - self._fitted_ns >= FIT_INTERVAL_NS
        if due or expected is None or expected.narrowed_by(trip):
            self._refit(trip.received_ns)

    def _doubt_ping(self, trip: RoundTrip, expected: Expectation) -> bool:
        """A round trip that cannot be: a step if something else says the same, else a corrupt one."""
        shift_ns, reach_ns = expected.shift_and_reach_ns(trip)
        self._suspects.doubt_ping(trip, shift_ns, reach_ns)
        self.plan.burst()
        # Arrivals say the same when all of the block so far are late by as much.
        late_ns = self._blocks.earliest_late_ns
        if late_ns is not None and abs(late_ns) < expected.gross_ns:
            late_ns = None
        if not self._suspects.agreed(late_ns):
            self.pings_rejected += 1
            return False
        self._step(self._suspects.shift_ns, trip.received_ns)
        return True

    # --- arrivals -----------------------------------------------------------------------------------------------

    def _look_closer(
        self, device_ns: int, received_ns: int, late_ns: float, track: Track, expected: Expectation
    ) -> Arrival:
        """An arrival that is not quite as expected: ``late_ns`` after the floor, or out of order, or at a time when
        something is suspected already."""
        epochs = self._epochs
        if track.epoch != epochs.number:
            began_ns = epochs.began_ns
            if self.settings.steps_at_once and not epochs.before_began(device_ns):
                began_ns = None
            if not track.enter(epochs.number, began_ns, device_ns, received_ns, late_ns, epochs.step_ns or 0):
                return Arrival.STALE
        typical_ns = self._blocks.typical_ns
        impossible = late_ns < expected.least_late_ns
        # Stamps that run backwards, and later than this stream out of order has been.
        in_disorder_ns = max(BACK_LATE_NS + BACK_LATE * typical_ns, DISORDER * self._suspects.out_of_order_ns)
        backwards = device_ns < track.newest_device_ns and late_ns > in_disorder_ns
        if backwards:
            newest_late_ns = expected.late_ns(track.newest_device_ns, track.newest_received_ns)
            if newest_late_ns < expected.least_late_ns:  # it was the stamp before that could not be
                backwards = False
                track.newest_device_ns = device_ns
            else:  # of a backlog, all are late
                backwards = late_ns - newest_late_ns > in_disorder_ns
        if not impossible and not backwards:
            if self._suspects.watching:
                self._suspects.arrival_fitted(late_ns < PUNCTUAL * typical_ns)
            if self._blocks.take(device_ns, received_ns, late_ns, track):
                self._close_block(late_ns, received_ns)
            return Arrival.FITS
        self.plan.burst()
        late_ns = expected.late_ns(device_ns, received_ns)
        self._suspects.doubt_arrival(device_ns, received_ns, late_ns, typical_ns, backwards=not impossible)
        if not self._suspects.agreed(None) or self._round_trip_tells(received_ns):
            return Arrival.SUSPECT
        self._step(self._suspects.shift_ns, received_ns)
        track.meet(device_ns, received_ns, self.epoch)
        return Arrival.FITS

    def _round_trip_tells(self, now_ns: int) -> bool:
        """Whether there is one to wait for, before arrivals alone begin an epoch."""
        if self._suspects.pinged or self._last_received_ns is None:
            return False
        answers = now_ns - self._last_received_ns < HOLDOVER_INTERVALS * self.plan.interval_ns
        return answers and now_ns - self._suspects.since_ns < self.settings.step_patience_ns

    def _close_block(self, late_ns: float, now_ns: int) -> None:
        block = self._blocks.close(late_ns, now_ns, self._model.arrival_scatter_ns, self._quantum_ns)
        changed = block is not None and self._add_block(block)
        due_ns = 0 if changed or self._epochs.young(now_ns) else FIT_AT_LEAST_NS
        if now_ns - self._fitted_ns >= due_ns:
            self._refit(now_ns)

    def _add_block(self, block: Block) -> bool:
        """As ``Model.add_arrivals``."""
        origin = self._origin
        assert origin is not None
        y_ns = float(block.received_ns - block.device_ns - origin.base_ns)
        return self._model.add_arrivals(origin.x_s(block.device_ns), y_ns, block.share, block.late_ns, block.coarse_ns)

    # --- steps --------------------------------------------------------------------------------------------------

    def _step(self, shift_ns: float, now_ns: int) -> None:
        """Begins an epoch with those who said so as its first witnesses."""
        arrivals, trips = self._suspects.witnesses()
        self._suspects.clear()
        self._set_clock(round(shift_ns), now_ns)
        if arrivals:
            device_ns, received_ns = min(arrivals, key=lambda a: a[1] - a[0])
            self._add_block(self._blocks.witness(device_ns, received_ns, self._quantum_ns))
        for trip in trips:
            self._accept(trip)
        self._refit(now_ns)

    def _set_clock(self, shift_ns: int, now_ns: int) -> None:
        """The offset is larger by ``shift_ns`` from now on."""
        assert self._origin is not None
        assert self._expected is not None
        self._epochs.step(shift_ns, self._expected, now_ns)
        self._model.clock_set(STEP_UNKNOWN_NS)
        self._origin = self._origin.moved(shift_ns)
        self._expected = Expectation(self._expected.estimate, self._origin, self._model)
        self._blocks.begin_anew()
        self.plan.burst()

    # --- estimate -----------------------------------------------------------------------------------------------

    def _bound_at_ns(self, host_ns: int) -> int | None:
        expected, output = self._expected, self._epochs.output
        if output is None or expected is None:
            return None
        return int(expected.bound_ns + expected.beyond_ns(output.to_device(host_ns), host_ns)) + 1

    def _note_bound(self, host_ns: int) -> None:
        self._widest_ns = max(self._widest_ns, self._bound_at_ns(host_ns) or 0)

    def _refit(self, now_ns: int) -> None:
        origin = self._origin
        if origin is None:  # a reset on the way here
            return
        self._note_bound(now_ns)
        self._fitted_ns = now_ns
        x_s = origin.x_s(now_ns - origin.base_ns) if self._expected is None else self._expected.x_s(now_ns)
        estimate = self._model.estimate(x_s, often_corrupt=self._suspects.often)
        if estimate is None:
            return
        if not math.isfinite(estimate.offset_ns + estimate.bound_ns + estimate.rate_ns_s):
            self.reset()  # nothing that was remembered makes sense
            return
        self._expected = Expectation(estimate, origin, self._model)
        self._epochs.follow(self._expected, now_ns)
        self._note_bound(now_ns)  # what is handed out is farthest from the estimate now
