"""The clock of one device against simulated links whose truth is known to the nanosecond."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.clock import Arrival, Clock, ClockSettings, ClockState, Mapped, RoundTrip, Track
from bridge.clock.estimator import HOLDOVER_INTERVALS

US, MS, S = 1_000, 1_000_000, 1_000_000_000
# The simulated device clock and its inverse are rounded to whole nanoseconds, and so is the mapping.
ROUNDING_NS = 2
START_NS = 1000 * S
PINGS_TO_LOCK = ClockSettings().pings_to_lock


# --- simulated devices and links -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A device clock that runs at a constant rate. All of it in integer ns.

    ``drift_ppb`` is positive for a fast device; the device shows ``shows_ns`` when the host shows 0.
    """

    shows_ns: int = 0
    drift_ppb: int = 0
    quantum_ns: int = 1

    def device_ns(self, host_ns: int) -> int:
        return self.shows_ns + host_ns + host_ns * self.drift_ppb // S

    def stamp_ns(self, host_ns: int) -> int:
        exact_ns = self.device_ns(host_ns)
        return exact_ns - exact_ns % self.quantum_ns

    def host_ns(self, device_ns: int) -> int:
        """The truth that the estimator looks for."""
        return (device_ns - self.shows_ns) * S // (S + self.drift_ppb)

    def trip(self, sent_ns: int, out_ns: int, back_ns: int) -> RoundTrip:
        return RoundTrip(sent_ns, self.stamp_ns(sent_ns + out_ns), sent_ns + out_ns + back_ns, self.quantum_ns)

    def set_by(self, step_ns: int) -> Device:
        return replace(self, shows_ns=self.shows_ns + step_ns)


Waits = Callable[[random.Random], int]
"""Waiting times beyond the floor, ns."""
WAITS: dict[str, Waits] = {
    "none": lambda noise: 0,
    "uniform": lambda noise: noise.randint(0, MS),
    "exponential": lambda noise: round(noise.expovariate(1 / (0.5 * MS))),
    "wifi": lambda noise: round(noise.lognormvariate(13.4, 0.6)) + (noise.random() < 0.05) * noise.randint(0, 20 * MS),
}


class Sample(NamedTuple):
    """What became of one: ``true_ns`` is the host time that its stamp means."""

    stamp_ns: int
    true_ns: int
    received_ns: int
    answer: Arrival
    mapped: Mapped | None

    @property
    def error_ns(self) -> int:
        assert self.mapped is not None
        return self.mapped.host_ns - self.true_ns

    @property
    def held(self) -> bool:
        assert self.mapped is not None
        return abs(self.error_ns) <= self.mapped.bound_ns + ROUNDING_NS


class Play:
    """Plays a link to a clock: round trips when its plan wants them, samples at ``rate_hz``, as the host learns them.

    What is public may be changed between two ``run``: the device is set, pings are lost, samples wait.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        device: Device | None = None,
        *,
        seed: int = 1,
        waits: tuple[str, str, str] = ("uniform", "uniform", "uniform"),  # to the device, back, and of samples
        floors_ns: tuple[int, int, int] = (MS, MS, MS),
        rate_hz: int = 100,
        start_ns: int = START_NS,
    ) -> None:
        self.clock = clock or Clock()
        self.device = device or Device(shows_ns=5 * S, drift_ppb=20_000)
        self.floors_ns = floors_ns
        self.waits = [WAITS[name] for name in waits]
        self.interval_ns = S // rate_hz if rate_hz else 0
        self.answering = True  # whether round trips succeed
        self.sampling = bool(rate_hz)
        self.in_order = True  # as over TCP
        self.late: Callable[[int], int] = lambda made_ns: 0  # what a sample waits beyond all that
        self.garbled: Callable[[int], int] = lambda stamp_ns: stamp_ns
        self.noise = random.Random(seed)
        self.now_ns = start_ns
        self.track = Track()
        self.samples: list[Sample] = []
        self.refused = 0
        self._next_made_ns = start_ns
        self._next_ping_ns = start_ns
        self._newest_arrival_ns = start_ns
        self._on_the_way: list[tuple[int, int, RoundTrip | tuple[Device, int]]] = []
        self._count = 0

    def run(self, duration_ns: int) -> list[Sample]:
        """The samples that arrive meanwhile."""
        end_ns, first = self.now_ns + duration_ns, len(self.samples)
        while (at_ns := self._next_ns()) < end_ns:
            self.now_ns = at_ns
            if self._on_the_way and self._on_the_way[0][0] == at_ns:
                self._deliver(heapq.heappop(self._on_the_way)[2])
            elif self.sampling and self._next_made_ns <= at_ns:
                self._make()
            else:
                self._ask()
        self.now_ns = end_ns
        self._next_ping_ns = max(self._next_ping_ns, end_ns)
        return self.samples[first:]

    def _next_ns(self) -> int:
        times_ns = [max(self._next_ping_ns, self.clock.plan.next_ns())]
        if self.sampling:
            self._next_made_ns = max(self._next_made_ns, self.now_ns)
            times_ns.append(self._next_made_ns)
        if self._on_the_way:
            times_ns.append(self._on_the_way[0][0])
        return max(self.now_ns, min(times_ns))

    def _ask(self) -> None:
        self.clock.plan.sent(self.now_ns)
        self._next_ping_ns = self.now_ns + 1
        trip = self.trip()
        if self.answering:
            self._send(trip.received_ns, trip)

    def trip(self) -> RoundTrip:
        """One that begins now."""
        out_ns, back_ns = (
            floor_ns + wait(self.noise) for floor_ns, wait in zip(self.floors_ns[:2], self.waits[:2], strict=True)
        )
        return self.device.trip(self.now_ns, out_ns, back_ns)

    def _make(self) -> None:
        made_ns, self._next_made_ns = self._next_made_ns, self._next_made_ns + self.interval_ns
        there_ns = made_ns + self.floors_ns[2] + self.waits[2](self.noise) + self.late(made_ns)
        if self.in_order:
            there_ns = self._newest_arrival_ns = max(there_ns, self._newest_arrival_ns)
        self._send(there_ns, (self.device, self.device.stamp_ns(made_ns)))

    def _send(self, there_ns: int, what: RoundTrip | tuple[Device, int]) -> None:
        self._count += 1
        heapq.heappush(self._on_the_way, (there_ns, self._count, what))

    def _deliver(self, what: RoundTrip | tuple[Device, int]) -> None:
        if isinstance(what, RoundTrip):
            self.refused += not self.clock.ping(what)
            return
        device, stamp_ns = what
        self.arrive(self.garbled(stamp_ns), device.host_ns(stamp_ns), self.track)

    def arrive(self, stamp_ns: int, true_ns: int, track: Track) -> Sample:
        answer = self.clock.arrival(stamp_ns, self.now_ns, track)
        mapped = None
        if answer is not Arrival.SUSPECT:
            mapped = (self.clock.map if answer is Arrival.FITS else self.clock.map_previous)(stamp_ns)
        self.samples.append(Sample(stamp_ns, true_ns, self.now_ns, answer, mapped))
        return self.samples[-1]

    def error_ns(self, age_ns: int = 0) -> int:
        """Of the mapping of a while ago."""
        true_ns = self.now_ns - age_ns
        mapped = self.clock.map(self.device.device_ns(true_ns))
        assert mapped is not None
        return mapped.host_ns - true_ns


def locked(device: Device | None = None, *, seconds: int = 20, **options: object) -> Play:
    """A link that has been played for a while."""
    play = Play(device=device, **options)  # type: ignore[arg-type]
    play.run(seconds * S)
    assert play.clock.state(play.now_ns) is ClockState.LOCKED
    assert play.clock.epoch == 0
    return play


def knowledge(clock: Clock, around_ns: int) -> object:
    """Everything that a corrupt stamp must leave as it is."""
    mapped = [clock.map(around_ns + step * 500 * MS) for step in range(-10, 10)]
    return mapped, clock.offset_ns, clock.bound_ns, clock.precision_ns, clock.drift_ppm, clock.rtts_ns, clock.epoch


seeds = st.integers(0, 2**32)
drifts_ppb = st.integers(-100_000, 100_000)
shown_ns = st.one_of(st.integers(-(2**61), 2**62), st.integers(-100 * S, 100 * S))
quanta_ns = st.sampled_from([1, US, MS])
devices = st.builds(Device, shown_ns, drifts_ppb, quanta_ns)
starts_ns = st.sampled_from([0, START_NS, 10**15])
floors_ns = st.tuples(st.integers(MS, 4 * MS), st.integers(MS, 4 * MS), st.integers(0, 20 * MS))
waits = st.tuples(*[st.sampled_from(sorted(WAITS))] * 3)


# --- the bound -------------------------------------------------------------------------------------------------------


def count_outside(play: Play, duration_ns: int) -> tuple[int, int]:
    """How many mapped times were not within their bound, of how many: of all samples, and of times up to a second
    ago."""
    outside = judged = 0
    end_ns = play.now_ns + duration_ns
    while play.now_ns < end_ns:
        samples = [sample for sample in play.run(250 * MS) if sample.mapped is not None]
        outside += sum(not sample.held for sample in samples)
        judged += len(samples)
        for age_ns in (0, 300 * MS, S):
            true_ns = play.now_ns - age_ns
            mapped = play.clock.map(play.device.device_ns(true_ns))
            if mapped is not None and true_ns > START_NS:
                outside += abs(mapped.host_ns - true_ns) > mapped.bound_ns + ROUNDING_NS
                judged += 1
    assert judged > 20
    return outside, judged


@settings(deadline=None, max_examples=40, derandomize=True)
@given(devices, seeds, waits, floors_ns, st.sampled_from([0, 50]), starts_ns)
def test_the_true_host_time_lies_within_the_bound(
    device: Device,
    seed: int,
    waits: tuple[str, str, str],
    floors_ns: tuple[int, int, int],
    rate_hz: int,
    start_ns: int,
) -> None:
    play = Play(device=device, seed=seed, waits=waits, floors_ns=floors_ns, rate_hz=rate_hz, start_ns=start_ns)
    for _ in range(12):
        play.run(S + play.noise.randint(0, S))
        for age_ns in (0, 400 * MS, 3 * S, 15 * S, -S, -20 * S):
            true_ns = play.now_ns - age_ns
            mapped = play.clock.map(device.device_ns(true_ns))
            if mapped is not None and true_ns > start_ns:
                assert abs(mapped.host_ns - true_ns) <= mapped.bound_ns + ROUNDING_NS
    assert all(sample.held for sample in play.samples if sample.mapped is not None)
    assert {sample.answer for sample in play.samples} <= {Arrival.FITS}
    assert play.refused == play.clock.epoch == 0


@pytest.mark.parametrize("rate_hz", [0, 50])
@pytest.mark.parametrize("waits", [("uniform", "none", "uniform"), ("none", "exponential", "exponential")])
def test_the_bound_holds_where_one_direction_takes_no_time_and_the_truth_is_at_its_very_end(
    waits: tuple[str, str, str], rate_hz: int
) -> None:
    """No path is like that: there is no room at all for what is not known of the rate in the first seconds."""
    outside = judged = refused = 0
    for seed in range(8):
        play = Play(device=Device(), seed=seed, waits=waits, floors_ns=(0, 0, 0), rate_hz=rate_hz)
        of_these, these = count_outside(play, 20 * S)
        outside, judged, refused = outside + of_these, judged + these, refused + play.refused
        assert count_outside(play, 20 * S)[0] == 0
    assert outside < 0.04 * judged
    assert refused == 0


WIDE_WAITS: dict[str, Waits] = {
    "20 ms there": lambda noise: noise.randint(0, 20 * MS),
    "asleep until a beacon": lambda noise: noise.randint(0, 102 * MS) if noise.random() < 0.7 else noise.randint(0, MS),
    "0.2 s": lambda noise: noise.randint(0, 200 * MS),
}


@pytest.mark.parametrize("rate_hz", [0, 50])
@pytest.mark.parametrize("name", list(WIDE_WAITS))
def test_round_trips_that_wait_long_in_one_direction_widen_the_bound_and_are_not_doubted(
    name: str, rate_hz: int
) -> None:
    outside = refused = epochs = 0
    for seed in range(4):
        play = Play(seed=seed, rate_hz=rate_hz)
        play.waits[0] = WIDE_WAITS[name]
        outside += count_outside(play, 40 * S)[0]
        refused += play.refused
        epochs += play.clock.epoch
    assert (outside, refused, epochs) == (0, 0, 0)


@pytest.mark.parametrize("drift_ppb", [-90_000, 90_000])
@pytest.mark.parametrize("rate_hz", [0, 50])
def test_stamps_from_before_the_first_round_trip_are_within_their_bound(drift_ppb: int, rate_hz: int) -> None:
    play = Play(device=Device(5 * S, drift_ppb), rate_hz=rate_hz)
    while not play.clock.locked:
        play.run(20 * MS)
    for age_ns in (3 * S, 10 * S, 60 * S):  # a backlog, say
        mapped = play.clock.map(play.device.device_ns(play.now_ns - age_ns))
        assert mapped is not None
        assert abs(play.error_ns(age_ns)) <= mapped.bound_ns


@pytest.mark.parametrize("drift_ppb", [-150_000, 0, 150_000])
def test_a_stamp_that_was_rounded_down_by_a_whole_quantum_is_within_the_bounds_of_its_round_trip(
    drift_ppb: int,
) -> None:
    device = Device(drift_ppb=drift_ppb, quantum_ns=MS)
    sent_ns = device.host_ns(1000 * S - 1)  # the device is about to tick
    trip = device.trip(sent_ns, 0, 0)
    true_offset_ns = device.host_ns(trip.device_ns) - trip.device_ns
    assert trip.lowest_offset_ns - ROUNDING_NS <= true_offset_ns <= trip.highest_offset_ns + ROUNDING_NS


@settings(deadline=None, max_examples=20, derandomize=True)
@given(devices, seeds, st.sampled_from([0, 50]))
def test_the_bound_grows_in_silence_and_the_truth_stays_within_it(device: Device, seed: int, rate_hz: int) -> None:
    play = Play(device=device, seed=seed, rate_hz=rate_hz)
    play.run(20 * S)
    previous_ns = 0
    for silence_s in (10, 60, 600, 6000, 86_400):
        device_ns = device.device_ns(play.now_ns + silence_s * S)
        mapped = play.clock.map(device_ns)
        assert mapped is not None
        assert mapped.state is ClockState.HOLDOVER
        assert mapped.bound_ns > previous_ns
        assert abs(mapped.host_ns - device.host_ns(device_ns)) <= mapped.bound_ns + ROUNDING_NS
        previous_ns = mapped.bound_ns
    assert previous_ns > 100 * MS, "a day is long for any crystal"


def test_after_a_minute_of_jitter_the_error_is_below_0_1_ms_and_the_drift_within_1_ppm() -> None:
    play = locked(Device(1_700_000_000 * S, 50_000), seconds=60)
    assert play.clock.drift_ppm == pytest.approx(50, abs=1)
    errors_ns = [abs(sample.error_ns) for sample in play.run(30 * S)]
    assert len(errors_ns) > 2900
    assert max(errors_ns) < 100 * US
    assert play.clock.drift_ppm == pytest.approx(50, abs=1)


def test_precision_is_far_below_the_bound_when_the_path_is_steady_and_asymmetric() -> None:
    play = locked(seconds=60, waits=("none",) * 3, floors_ns=(100 * US, 4 * MS, MS))
    mapped = play.clock.map(play.device.device_ns(play.now_ns))
    assert mapped is not None
    assert mapped.precision_ns < 50 * US
    assert mapped.bound_ns > 1 * MS
    assert play.clock.rtts_ns == (4100 * US, 4100 * US)


# --- exactness -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(shown_ns, st.integers(0, 20 * MS), st.integers(0, 20 * MS), st.sampled_from([0, 50]), starts_ns)
def test_a_constant_clock_behind_a_symmetric_path_is_mapped_exactly(
    shows_ns: int, delay_ns: int, sample_delay_ns: int, rate_hz: int, start_ns: int
) -> None:
    play = Play(
        device=Device(shows_ns),
        waits=("none",) * 3,
        floors_ns=(delay_ns, delay_ns, sample_delay_ns),
        rate_hz=rate_hz,
        start_ns=start_ns,
    )
    for second in range(10):
        play.run(S)
        # At first next to nothing is known of the rate, and there are limits to what floats tell apart.
        most_ns = 5 if second >= 6 else US
        for age_ns in range(-S, 3 * S, 333 * MS):
            if second or rate_hz == 0:
                assert abs(play.error_ns(age_ns)) <= most_ns
        mapped = [sample for sample in play.samples[-rate_hz // 2 :] if sample.mapped is not None]
        assert all(abs(sample.error_ns) <= most_ns for sample in mapped)
    assert abs(play.clock.drift_ppm) < 0.01
    assert play.clock.bound_ns is not None
    assert delay_ns <= play.clock.bound_ns


@settings(deadline=None, max_examples=15)
@given(shown_ns, drifts_ppb, st.sampled_from([0, 50]))
def test_a_constant_rate_behind_a_symmetric_path_is_found_exactly(shows_ns: int, drift_ppb: int, rate_hz: int) -> None:
    play = Play(device=Device(shows_ns, drift_ppb), waits=("none",) * 3, rate_hz=rate_hz)
    play.run(30 * S)
    # Round trips alone, of which some eight make one point, take longer.
    assert play.clock.drift_ppm == pytest.approx(drift_ppb / 1000, abs=0.05 if rate_hz else 3)
    assert all(abs(play.error_ns(age_ns)) <= (10 if rate_hz else 5 * US) for age_ns in range(0, S, 100 * MS))


@pytest.mark.parametrize("rate_hz", [0, 50])
@pytest.mark.parametrize(("out_ns", "back_ns"), [(4 * MS, MS), (MS, 4 * MS)])
def test_a_measured_asymmetry_moves_the_estimate_by_half_of_it(out_ns: int, back_ns: int, rate_hz: int) -> None:
    def error_ns(asymmetry_ns: int) -> int:
        play = Play(
            Clock(ClockSettings(asymmetry_ns=asymmetry_ns)),
            Device(shows_ns=-9 * S),
            waits=("none",) * 3,
            floors_ns=(out_ns, back_ns, 2 * MS),
            rate_hz=rate_hz,
        )
        play.run(20 * S)
        return play.error_ns()

    assert error_ns(0) == pytest.approx((back_ns - out_ns) / 2, abs=US)
    assert error_ns(out_ns - back_ns) == pytest.approx(0, abs=US)
    assert error_ns(MS) - error_ns(0) == pytest.approx(MS / 2, abs=US)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seeds, st.integers(-(10**10), 10**10), st.sampled_from([0, 50]), drifts_ppb)
@example(1, 10**18, 0, 0)
@example(1, -(10**18), 50, 0)
def test_a_wrong_asymmetry_never_moves_the_estimate_out_of_the_bound(
    seed: int, asymmetry_ns: int, rate_hz: int, drift_ppb: int
) -> None:
    play = Play(
        Clock(ClockSettings(asymmetry_ns=asymmetry_ns)), Device(7, drift_ppb), seed=seed, rate_hz=rate_hz,
        waits=("wifi",) * 3,
    )  # fmt: skip
    for _ in range(10):
        play.run(S)
        mapped = play.clock.map(play.device.device_ns(play.now_ns))
        assert mapped is not None
        assert abs(mapped.host_ns - play.now_ns) <= mapped.bound_ns + ROUNDING_NS
        assert mapped.bound_ns < 100 * MS
    assert play.clock.epoch == play.refused == 0


# --- one epoch is one continuous, fixed function ---------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(devices, seeds, waits, floors_ns)
def test_mapped_times_never_go_backwards_and_never_jump_within_an_epoch(
    device: Device, seed: int, waits: tuple[str, str, str], floors_ns: tuple[int, int, int]
) -> None:
    play = Play(device=device, seed=seed, waits=waits, floors_ns=floors_ns, rate_hz=100)
    samples = [sample for sample in play.run(15 * S) if sample.mapped is not None]
    assert len(samples) > 1000
    began_ns = samples[0].received_ns
    for before, after in pairwise(samples):
        assert before.mapped is not None
        assert after.mapped is not None
        assert after.mapped.epoch == before.mapped.epoch == 0
        elapsed_ns = after.stamp_ns - before.stamp_ns
        mapped_ns = after.mapped.host_ns - before.mapped.host_ns
        assert mapped_ns > 0 if elapsed_ns > 0 else mapped_ns == 0
        if after.received_ns - began_ns > 4 * S:  # the first estimates are rough and soon corrected
            slew = play.clock.settings.largest_slew + 300e-6
            assert abs(mapped_ns - elapsed_ns) <= elapsed_ns * slew + ROUNDING_NS


@settings(deadline=None, max_examples=20)
@given(devices, seeds, waits, st.sampled_from([0, 100]))
def test_a_device_time_that_was_mapped_is_mapped_to_the_same_host_time_later(
    device: Device, seed: int, waits: tuple[str, str, str], rate_hz: int
) -> None:
    play = Play(device=device, seed=seed, waits=waits, rate_hz=rate_hz)
    given_out: dict[int, int] = {}
    for _ in range(300):
        play.run(50 * MS)
        for age_ns in (0, 20 * MS, 700 * MS):
            device_ns = device.device_ns(play.now_ns - age_ns)
            if rate_hz and age_ns == 0 and play.samples:
                device_ns = play.samples[-1].stamp_ns  # what no sample has reached yet may still be corrected
            mapped = play.clock.map(device_ns)
            if mapped is not None:
                assert given_out.setdefault(device_ns, mapped.host_ns) == mapped.host_ns
    assert len(given_out) > 500
    again = {device_ns: mapped.host_ns for device_ns in given_out if (mapped := play.clock.map(device_ns))}
    assert again == given_out


@settings(deadline=None, max_examples=30)
@given(devices, seeds, waits, st.integers(1, 20))
def test_to_device_inverts_map(device: Device, seed: int, waits: tuple[str, str, str], seconds: int) -> None:
    play = Play(device=device, seed=seed, waits=waits, rate_hz=20)
    assert play.clock.to_device(5) is None
    play.run(seconds * S)
    for _ in range(50):
        device_ns = device.device_ns(play.now_ns + play.noise.randint(-25 * S, 10 * S))
        mapped = play.clock.map(device_ns)
        assert mapped is not None
        back_ns = play.clock.to_device(mapped.host_ns)
        assert back_ns is not None
        assert abs(back_ns - device_ns) <= 2


def test_the_output_slews_to_a_better_estimate_and_its_bound_covers_what_is_left() -> None:
    play = Play(device=Device(), floors_ns=(20 * MS, 0, MS))
    play.run(20 * S)  # one-sided: 10 ms off
    assert play.error_ns() == pytest.approx(-10 * MS, abs=MS)
    play.floors_ns = (0, 0, MS)
    deadline_ns = play.now_ns + 20 * S
    while play.clock.slew_ns < 5 * MS and play.now_ns < deadline_ns:  # not one reply alone is believed so much
        play.run(S)
    assert play.clock.slew_ns >= 5 * MS
    before_ns = play.error_ns()
    samples = play.run(3 * S)
    assert before_ns + 2 * MS < play.error_ns() < -MS, "no jump"
    samples += play.run(20 * S)
    assert all(sample.held for sample in samples)
    assert abs(play.error_ns()) < 200 * US
    assert abs(play.clock.slew_ns) < 100 * US


# --- what is corrupt -------------------------------------------------------------------------------------------------

SIZES_NS = [-(10**18), -3600 * S, -S, -50 * MS, 50 * MS, S, 3600 * S, 10**18]


@pytest.mark.parametrize("rate_hz", [0, 100])
@pytest.mark.parametrize("off_ns", SIZES_NS)
def test_a_single_corrupt_round_trip_changes_nothing(off_ns: int, rate_hz: int) -> None:
    play = locked(rate_hz=rate_hz)
    now_ns = play.device.device_ns(play.now_ns)
    before = knowledge(play.clock, now_ns)
    honest = play.trip()
    assert not play.clock.ping(RoundTrip(honest.sent_ns, honest.device_ns + off_ns, honest.received_ns))
    assert knowledge(play.clock, now_ns) == before
    assert play.clock.pings_rejected == 1
    assert all(sample.answer is Arrival.FITS and sample.held for sample in play.run(15 * S))
    assert play.clock.epoch == play.refused == 0
    assert play.clock.isolated_suspects == 1


@pytest.mark.parametrize("off_ns", SIZES_NS)
def test_a_single_corrupt_arrival_changes_nothing(off_ns: int) -> None:
    play = locked()
    now_ns = play.device.device_ns(play.now_ns)
    before = knowledge(play.clock, now_ns)
    stamp_ns = play.device.device_ns(play.now_ns - MS) + off_ns
    answer = play.clock.arrival(stamp_ns, play.now_ns, play.track)
    assert (answer is Arrival.SUSPECT) or off_ns < 0, "a stamp from the future cannot be"
    assert knowledge(play.clock, now_ns) == before
    after = play.run(15 * S)
    assert all(sample.answer is Arrival.FITS and sample.held for sample in after)
    assert play.clock.epoch == play.refused == 0
    assert not play.clock.doubting


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(-(10**18), 10**18), st.booleans(), seeds)
def test_a_single_corrupt_stamp_of_any_size_moves_the_mapping_by_nothing_to_speak_of(
    off_ns: int, in_a_ping: bool, seed: int
) -> None:
    plain, garbled = locked(seed=seed), locked(seed=seed)
    if in_a_ping:
        trip = garbled.trip()
        garbled.clock.ping(RoundTrip(trip.sent_ns, trip.device_ns + off_ns, trip.received_ns))
        plain.clock.ping(plain.trip())
    else:
        for play, extra_ns in ((plain, 0), (garbled, off_ns)):
            play.clock.arrival(play.device.device_ns(play.now_ns - MS) + extra_ns, play.now_ns, play.track)
    for play in (plain, garbled):
        play.run(15 * S)
    assert garbled.clock.epoch == 0
    assert abs(garbled.error_ns() - plain.error_ns()) < 300 * US
    mapped = garbled.clock.map(garbled.device.device_ns(garbled.now_ns))
    assert mapped is not None
    assert abs(garbled.error_ns()) <= mapped.bound_ns


def test_some_corrupt_stamps_in_a_hundred_begin_no_epoch_and_move_nothing() -> None:
    play, noise = locked(), random.Random(7)

    def garbled(stamp_ns: int) -> int:
        if noise.random() > 0.01:
            return stamp_ns
        return stamp_ns + noise.choice([-1, 1]) * round(10 ** noise.uniform(6, 15))

    play.garbled = garbled
    after = play.run(60 * S)
    corrupt = [sample for sample in after if sample.stamp_ns != play.device.device_ns(sample.true_ns)]
    good = [s for s in after if abs(s.stamp_ns - play.device.device_ns(s.true_ns)) <= ROUNDING_NS]
    assert len(corrupt) > 20
    assert play.clock.epoch == play.refused == 0
    assert all(sample.answer is Arrival.FITS and sample.held for sample in good)
    assert max(abs(sample.error_ns) for sample in good) < 200 * US


def test_corrupt_round_trips_that_disagree_with_each_other_begin_no_epoch() -> None:
    play, noise = locked(rate_hz=0), random.Random(5)
    for number in range(60):
        play.run(S)
        trip = play.trip()
        off_ns = (-1) ** number * round(10 ** noise.uniform(7.5, 17))
        assert not play.clock.ping(RoundTrip(trip.sent_ns, trip.device_ns + off_ns, trip.received_ns))
        assert abs(play.error_ns()) < 500 * US
    assert play.clock.epoch == play.refused == 0
    assert play.clock.pings_rejected == 60


def test_replies_that_are_taken_for_those_of_a_later_request_do_no_harm() -> None:
    play = locked(rate_hz=0, seconds=60)
    for _ in range(6):
        play.run(10 * S)
        trip = play.trip()  # the request was sent 0.9 ms later than the one that was answered: no bound at all
        play.clock.ping(RoundTrip(trip.sent_ns + 900 * US, trip.device_ns, trip.received_ns))
    play.run(20 * S)
    mapped = play.clock.map(play.device.device_ns(play.now_ns))
    assert mapped is not None
    assert play.clock.epoch == 0
    assert abs(play.error_ns()) <= mapped.bound_ns


def test_a_reply_that_arrives_before_its_request_was_sent_is_rejected() -> None:
    for clock in (Clock(), locked().clock):
        accepted = clock.pings_accepted
        assert not clock.ping(RoundTrip(2000 * S, 2000 * S, 2000 * S - 1))
        assert clock.pings_accepted == accepted
        assert clock.pings_rejected == 1
        assert clock.epoch == 0


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 2 * S),  # host time since the last one
            st.integers(0, 3 * S),  # round trip time
            st.one_of(st.integers(0, 3 * S), st.integers(-5 * S, 5 * S), st.integers(-(10**18), 10**18)),
        ),
        max_size=40,
    )
)
def test_nothing_that_is_fed_to_it_crashes_or_reverses_the_clock(events: list[tuple[bool, int, int, int]]) -> None:
    clock, now_ns = Clock(), 1000 * S
    for is_ping, gap_ns, rtt_ns, off_ns in events:
        now_ns += gap_ns
        if is_ping:
            clock.ping(RoundTrip(now_ns, now_ns + off_ns, now_ns + rtt_ns))
            now_ns += rtt_ns
        else:
            clock.arrival(now_ns + off_ns, now_ns)
        mapped = [clock.map(now_ns + off_ns + ahead_ns) for ahead_ns in range(-S, 4 * S, 250 * MS)]
        times_ns = [one.host_ns for one in mapped if one is not None]
        assert len(times_ns) in (0, len(mapped))
        assert all(a < b for a, b in pairwise(times_ns))
        assert all(one.bound_ns >= 0 and one.epoch == clock.epoch for one in mapped if one is not None)
        assert clock.state(now_ns) in ClockState


@pytest.mark.parametrize("seed", range(0, 120, 20))
def test_no_chaos_crashes_or_reverses_the_clock(seed: int) -> None:
    for part in range(seed, seed + 20):
        cause_chaos(random.Random(part))


def cause_chaos(noise: random.Random) -> None:
    """Steps, outages, corrupt stamps, resets and suspends, one after the other, far beyond what any device does."""
    clock = Clock(ClockSettings(pings_to_lock=noise.choice([1, 5])))
    now_ns, shows_ns = START_NS, noise.choice([0, 5 * S, -(10**15)])
    for _ in range(noise.randint(5, 200)):
        now_ns += noise.choice([0, 1, noise.randint(0, 100 * MS), noise.randint(0, 2 * S), noise.randint(0, 400 * S)])
        off_ns = noise.choice([0] * 4 + [noise.randint(-size, size) for size in (10 * MS, 5 * S, 10**18)])
        if noise.random() < 0.05:
            shows_ns += off_ns
        device_ns, what = now_ns + shows_ns + off_ns, noise.random()
        if what < 0.4:
            rtt_ns = noise.choice([0, noise.randint(0, 5 * MS), noise.randint(0, 3 * S)])
            clock.ping(RoundTrip(now_ns, device_ns, now_ns + rtt_ns, noise.choice([1, MS])))
        elif what < 0.97:
            clock.arrival(device_ns, now_ns)
        elif what < 0.985:
            clock.reset()
        else:
            clock.host_suspended(noise.randint(0, 100 * S), now_ns)
        mapped = [clock.map(device_ns + ahead_ns) for ahead_ns in range(-S, 4 * S, 500 * MS)]
        times_ns = [one.host_ns for one in mapped if one is not None]
        assert all(a < b for a, b in pairwise(times_ns))
        assert all(one.bound_ns >= 0 for one in mapped if one is not None)
        assert clock.state(now_ns) in ClockState


@pytest.mark.parametrize("quantum_ns", [100 * MS, 500 * MS, S])
@pytest.mark.parametrize("rate_hz", [0, 50])
def test_a_clock_that_ticks_seldom_is_no_trouble(quantum_ns: int, rate_hz: int) -> None:
    play = Play(device=Device(5 * S, 0, quantum_ns), rate_hz=rate_hz)
    for _ in range(100):
        play.run(200 * MS)
        for age_ns in (0, S, 10 * S):
            mapped = play.clock.map(play.device.device_ns(play.now_ns - age_ns))
            if mapped is not None:
                assert abs(play.error_ns(age_ns)) <= mapped.bound_ns
    assert play.clock.locked
    assert play.clock.epoch == play.refused == 0


# --- the device's clock is set ---------------------------------------------------------------------------------------

STEPS_NS = [50 * MS, -200 * MS, 3 * 3600 * S, -50_000 * S, 1_700_000_000 * S]


def assert_stepped(play: Play, step_ns: int, bound_ns: int) -> None:
    """The epoch that a step begins: its size, and a mapping that is as good as it says."""
    assert play.clock.epoch == 1
    assert play.clock.step_ns == pytest.approx(step_ns, abs=5 * MS)
    mapped = play.clock.map(play.device.device_ns(play.now_ns))
    assert mapped is not None
    assert mapped.epoch == 1
    assert abs(mapped.host_ns - play.now_ns) <= mapped.bound_ns <= bound_ns


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_a_step_is_seen_by_three_arrivals_alone_and_bridged(step_ns: int) -> None:
    play = locked()
    play.answering = False
    play.run(100 * MS)  # samples that were on the way are here
    play.device = play.device.set_by(step_ns)
    after = [
        sample for sample in play.run(300 * MS) if sample.stamp_ns >= play.device.device_ns(play.now_ns - 301 * MS)
    ]
    answers = [sample.answer for sample in after[-20:]]
    doubted = [sample for sample in play.samples if sample.answer is Arrival.SUSPECT]
    assert len(doubted) == 2, "the third says so"
    assert answers == [Arrival.FITS] * 20
    assert_stepped(play, step_ns, 10 * MS)
    mapped = play.clock.map(play.device.device_ns(play.now_ns))
    assert mapped is not None
    assert mapped.state is play.clock.state(play.now_ns) is ClockState.BRIDGING
    assert all(sample.held for sample in play.samples if sample.mapped is not None)
    play.answering = True
    play.run(200 * MS)
    assert play.clock.state(play.now_ns) is ClockState.LOCKED, "the first round trip ends it"
    assert all(sample.held for sample in play.run(20 * S))
    assert play.clock.epoch == 1


# Late samples of a clock that was set forward by less look like late samples.
@pytest.mark.parametrize("step_ns", [step_ns for step_ns in STEPS_NS if not 0 < step_ns < 200 * MS])
def test_a_step_while_samples_are_late_is_told_by_round_trips_where_these_are_waited_for(step_ns: int) -> None:
    patient = Clock(ClockSettings(step_patience_ns=S))
    play = locked(clock=patient, rate_hz=1000, floors_ns=(5 * MS, 5 * MS, MS))  # three samples before a round trip ends
    play.run(100 * MS)
    play.device, play.late = play.device.set_by(step_ns), lambda made_ns: 200 * MS
    after = play.run(2 * S)
    assert_stepped(play, step_ns, 20 * MS)
    doubted = [sample for sample in after if sample.answer is Arrival.SUSPECT]
    assert 3 < len(doubted) < 200
    for sample in doubted:
        mapped = play.clock.map(sample.stamp_ns)
        assert mapped is not None
        assert abs(mapped.host_ns - sample.true_ns) <= mapped.bound_ns, "what has waited is mapped rightly"
    assert all(sample.held for sample in after if sample.mapped is not None)


def test_a_step_after_which_nobody_answers_is_bridged_when_patience_ends() -> None:
    play = locked(clock=Clock(ClockSettings(step_patience_ns=S)))
    play.answering = False
    play.device = play.device.set_by(-3 * S)
    play.run(900 * MS)
    assert play.clock.epoch == 0
    play.run(300 * MS)
    assert_stepped(play, -3 * S, 10 * MS)
    assert play.clock.state(play.now_ns) is ClockState.BRIDGING
    play.answering = True
    play.run(20 * S)
    assert play.clock.epoch == 1
    assert play.clock.state(play.now_ns) is ClockState.LOCKED


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_a_step_is_seen_by_two_round_trips_alone(step_ns: int) -> None:
    play = locked(rate_hz=0)
    play.device = play.device.set_by(step_ns)
    assert not play.clock.ping(play.trip())
    assert play.clock.epoch == 0
    assert play.clock.plan.next_ns() == 0, "another one is wanted at once"
    play.now_ns += 100 * MS
    assert play.clock.ping(play.trip())
    assert_stepped(play, step_ns, 10 * MS)
    assert play.clock.state(play.now_ns) is ClockState.LOCKED
    play.run(20 * S)
    assert_stepped(play, step_ns, 3 * MS)
    assert abs(play.error_ns()) < 500 * US
    assert play.refused == 0


@pytest.mark.parametrize("arrival_first", [True, False])
@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_a_step_is_seen_by_one_arrival_and_one_round_trip(step_ns: int, arrival_first: bool) -> None:
    play = locked()
    play.sampling = False
    play.run(100 * MS)
    play.device = play.device.set_by(step_ns)

    def arrive() -> Arrival:
        play.now_ns += 10 * MS
        return play.arrive(play.device.device_ns(play.now_ns - MS), play.now_ns - MS, play.track).answer

    def ping() -> bool:
        play.now_ns += 10 * MS
        return play.clock.ping(play.trip())

    if arrival_first:
        assert arrive() is Arrival.SUSPECT
        assert play.clock.epoch == 0
        assert ping()
    else:
        assert not ping()
        assert play.clock.epoch == 0
        assert arrive() is Arrival.FITS
    assert_stepped(play, step_ns, 10 * MS)
    assert arrive() is Arrival.FITS
    assert_stepped(play, step_ns, 10 * MS)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.one_of(st.integers(-(10**18), -20 * MS), st.integers(20 * MS, 10**18)),
    drifts_ppb,
    seeds,
    waits,
    st.sampled_from([0, 100]),
)
def test_a_step_of_any_size_costs_a_moment_and_the_bound_holds(
    step_ns: int, drift_ppb: int, seed: int, waits: tuple[str, str, str], rate_hz: int
) -> None:
    play = locked(Device(123 * S, drift_ppb), seed=seed, waits=waits, rate_hz=rate_hz)
    play.device = play.device.set_by(step_ns)
    play.run(2 * S)
    assert play.clock.epoch == 1
    assert play.clock.step_ns == pytest.approx(step_ns, abs=30 * MS)
    first_ns = play.now_ns
    after = play.run(10 * S)
    assert all(sample.answer is Arrival.FITS and sample.held for sample in after)
    for age_ns in range(-S, play.now_ns - first_ns, 500 * MS):
        true_ns = play.now_ns - age_ns
        mapped = play.clock.map(play.device.device_ns(true_ns))
        assert mapped is not None
        assert abs(mapped.host_ns - true_ns) <= mapped.bound_ns + ROUNDING_NS
        assert mapped.bound_ns < 30 * MS
    assert play.clock.epoch == 1


def test_two_steps_shortly_after_each_other_are_two_epochs() -> None:
    play = locked()
    for number, step_ns in enumerate((50 * MS, -3600 * S, 400 * MS), 1):
        play.device = play.device.set_by(step_ns)
        play.run(2 * S)
        assert play.clock.epoch == number
        assert play.clock.step_ns == pytest.approx(step_ns, abs=10 * MS)
        assert all(sample.held for sample in play.run(S) if sample.mapped is not None)


def test_a_restart_is_one_epoch_and_keeps_the_rate() -> None:
    play = locked(Device(50_000 * S, 80_000), seconds=60)
    play.answering = play.sampling = False
    play.run(8 * S)
    play.device = Device(-play.now_ns + 12 * S, 80_000)  # it counts from its own start
    play.answering = play.sampling = True
    play.run(S)
    assert play.clock.epoch == 1
    assert play.clock.drift_ppm == pytest.approx(80, abs=2)
    assert all(sample.held for sample in play.run(20 * S))
    assert play.clock.epoch == 1


@pytest.mark.parametrize("step_ns", [-(10**18), -3600 * S, -S, S, 3600 * S, 10**18])
@pytest.mark.parametrize("before_pings", range(1, PINGS_TO_LOCK))
@pytest.mark.parametrize("rate_hz", [0, 100])
def test_a_step_before_the_lock_leaves_no_trace_after_it(step_ns: int, before_pings: int, rate_hz: int) -> None:
    play = Play(rate_hz=rate_hz)
    while play.clock.pings_accepted < before_pings:
        play.run(20 * MS)
    play.device = play.device.set_by(step_ns)
    play.run(10 * S)
    mapped = play.clock.map(play.device.device_ns(play.now_ns))
    assert mapped is not None
    assert abs(play.error_ns()) <= mapped.bound_ns < 5 * MS
    assert abs(play.clock.drift_ppm - 20) < 200


def test_samples_of_another_stream_from_before_the_step_are_stale_and_mapped_as_before() -> None:
    play = locked()
    slow = Track()
    old = play.device
    for _ in range(20):  # the other stream is later by 30 ms
        play.run(10 * MS)
        assert play.arrive(old.device_ns(play.now_ns - 30 * MS), play.now_ns - 30 * MS, slow).answer is Arrival.FITS
    play.device = old.set_by(-200 * MS)
    stepped_ns = play.now_ns
    stale = []
    while play.now_ns < stepped_ns + 30 * MS:
        play.run(10 * MS - US)
        play.now_ns += US
        if play.clock.epoch:
            stale.append(play.arrive(old.device_ns(play.now_ns - 40 * MS), play.now_ns - 40 * MS, slow))
    while not play.clock.epoch:
        play.run(10 * MS)
    for late_ns in range(0, 50 * MS, 10 * MS):
        true_ns = stepped_ns - 50 * MS + late_ns
        play.now_ns += 10 * MS
        stale.append(play.arrive(old.device_ns(true_ns), true_ns, slow))
    assert len(stale) >= 5
    for sample in stale:
        assert sample.answer is Arrival.STALE
        assert sample.mapped is not None
        assert sample.mapped.epoch == 0
        assert sample.held
    true_ns = play.now_ns - 10 * MS
    fresh = play.arrive(play.device.device_ns(true_ns), true_ns, slow)
    assert fresh.answer is Arrival.FITS
    assert fresh.mapped is not None
    assert fresh.mapped.epoch == 1
    assert play.clock.epoch == 1
    assert all(sample.answer is Arrival.FITS for sample in play.run(5 * S))
    assert play.clock.epoch == 1


def test_what_was_still_to_be_slewed_at_a_step_is_in_the_bound_of_the_stale() -> None:
    play = Play(device=Device(5 * S), floors_ns=(20 * MS, 0, MS))
    play.run(20 * S)
    play.floors_ns = (0, 0, MS)
    while play.clock.slew_ns < 5 * MS:
        play.run(S)
        assert play.now_ns < START_NS + 60 * S
    old, stepped_ns = play.device, play.now_ns
    play.device = old.set_by(-200 * MS)
    play.run(300 * MS)
    assert play.clock.epoch == 1
    stale = play.clock.map_previous(old.device_ns(stepped_ns))
    assert stale is not None
    assert abs(stale.host_ns - stepped_ns) <= stale.bound_ns


def test_before_any_step_there_is_no_previous_epoch_to_map_by() -> None:
    assert Clock().map_previous(5) is None
    assert locked().clock.map_previous(5) is None


@pytest.mark.parametrize("suspended_ns", [S, 30 * S, 8 * 3600 * S])
def test_a_suspended_host_is_a_step_of_known_size(suspended_ns: int) -> None:
    play = locked()
    play.run(S)
    before_ns = play.clock.offset_ns
    play.device = play.device.set_by(suspended_ns)  # the host stood still meanwhile
    play.clock.host_suspended(suspended_ns, play.now_ns)
    assert play.clock.epoch == 1
    assert play.clock.step_ns == suspended_ns
    assert before_ns is not None
    assert play.clock.offset_ns == pytest.approx(before_ns - suspended_ns, abs=MS)
    assert play.clock.state(play.now_ns) is ClockState.BRIDGING
    assert play.clock.plan.next_ns() == 0
    mapped = play.clock.map(play.device.device_ns(play.now_ns))
    assert mapped is not None
    assert abs(play.error_ns()) <= mapped.bound_ns
    assert all(sample.held for sample in play.run(20 * S) if sample.answer is Arrival.FITS)
    assert play.clock.epoch == 1
    assert play.clock.state(play.now_ns) is ClockState.LOCKED


def test_a_suspended_host_matters_to_no_clock_that_knows_nothing() -> None:
    clock = Clock()
    clock.host_suspended(S, 1000 * S)
    assert clock.epoch == 0
    assert clock.state(1000 * S) is ClockState.UNLOCKED


# --- what is not a step ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10, derandomize=True)
@given(seeds, st.integers(0, 40 * MS))
def test_arrivals_that_overtake_each_other_begin_no_epoch(seed: int, by_ns: int) -> None:
    play = Play(seed=seed)
    play.in_order = False
    play.late = lambda made_ns: play.noise.randint(0, by_ns)
    samples = play.run(30 * S)
    assert play.clock.epoch == play.refused == 0
    assert {sample.answer for sample in samples} == {Arrival.FITS}
    assert all(sample.held for sample in samples if sample.mapped is not None)


@pytest.mark.parametrize("late_ns", [20 * MS, 300 * MS, 2 * S, 5 * S])
@pytest.mark.parametrize("busy_s", [1, 10])
def test_congestion_begins_no_epoch_and_moves_nothing(late_ns: int, busy_s: int) -> None:
    play = locked(seconds=30)
    busy_ns = play.now_ns + S, play.now_ns + S + busy_s * S
    play.late = lambda made_ns: late_ns if busy_ns[0] <= made_ns < busy_ns[1] else 0
    samples = play.run((busy_s + 20) * S)
    assert max(sample.received_ns - sample.true_ns for sample in samples) > late_ns
    assert play.clock.epoch == play.refused == 0
    assert all(sample.answer is Arrival.FITS and sample.held for sample in samples)
    assert max(abs(sample.error_ns) for sample in samples) < 300 * US


def test_a_backlog_after_an_outage_of_a_minute_begins_no_epoch_and_is_mapped_within_its_bound() -> None:
    play = locked(seconds=60, waits=("wifi",) * 3)
    from_ns, until_ns = play.now_ns, play.now_ns + 60 * S
    play.answering = False
    play.late = lambda made_ns: max(0, until_ns - made_ns) if made_ns >= from_ns else 0
    play.run(60 * S)
    play.answering = True
    samples = play.run(20 * S)
    backlog = [sample for sample in samples if sample.received_ns - sample.true_ns > S]
    assert len(backlog) > 5000
    assert play.clock.epoch == play.refused == 0
    assert all(sample.answer is Arrival.FITS and sample.held for sample in samples)
    assert max(abs(sample.error_ns) for sample in samples) < 2 * MS


@pytest.mark.parametrize("longer_ns", [3 * MS, 30 * MS])
def test_a_path_that_becomes_longer_and_shorter_again_moves_nothing_and_begins_no_epoch(longer_ns: int) -> None:
    play = locked(seconds=60)
    steady_ns = play.error_ns()
    for extra_ns in (longer_ns, -longer_ns):
        there_ns, back_ns, sample_ns = play.floors_ns
        play.floors_ns = there_ns, back_ns + extra_ns, sample_ns + extra_ns
        samples = play.run(60 * S)
        assert play.clock.epoch == play.refused == 0
        assert all(sample.answer is Arrival.FITS and sample.held for sample in samples)
        assert max(abs(sample.error_ns - steady_ns) for sample in samples) < 250 * US


@pytest.mark.parametrize("longer_ns", [3 * MS, 20 * MS])
def test_a_path_that_becomes_longer_one_way_keeps_the_bound_without_samples_too(longer_ns: int) -> None:
    outside = judged = 0
    for seed in range(4):
        play = locked(seconds=60, rate_hz=0, seed=seed)
        for extra_ns in (longer_ns, -longer_ns):
            there_ns, back_ns, sample_ns = play.floors_ns
            play.floors_ns = there_ns, back_ns + extra_ns, sample_ns
            of_these, these = count_outside(play, 60 * S)
            outside, judged = outside + of_these, judged + these
        assert play.clock.epoch == 0
    assert outside < 0.02 * judged


@pytest.mark.parametrize("slew_ppb", [500_000, -500_000])
@pytest.mark.parametrize("rate_hz", [0, 100])
def test_a_host_that_is_slewed_is_followed_within_one_epoch(slew_ppb: int, rate_hz: int) -> None:
    play = locked(Device(), seconds=60, rate_hz=rate_hz)
    at_ns = play.now_ns
    play.device = Device(-at_ns * slew_ppb // S, slew_ppb)  # the same as before at this moment
    play.run(20 * S)
    samples = play.run(20 * S)
    assert play.clock.epoch == 0
    assert play.clock.drift_ppm == pytest.approx(slew_ppb / 1000, abs=20)
    assert all(sample.answer is Arrival.FITS and sample.held for sample in samples)
    mapped = play.clock.map(play.device.device_ns(play.now_ns))
    assert mapped is not None
    assert abs(play.error_ns()) <= mapped.bound_ns < 10 * MS
    assert abs(play.error_ns()) < 500 * US


def test_another_stream_takes_over_when_the_first_falls_silent() -> None:
    play = locked(seconds=30)
    play.track = Track()  # another one, whose samples take 8 ms longer
    play.floors_ns = (MS, MS, 9 * MS)
    samples = play.run(60 * S)
    assert play.clock.epoch == play.refused == 0
    assert all(sample.answer is Arrival.FITS and sample.held for sample in samples)
    assert max(abs(sample.error_ns) for sample in samples) < 250 * US
    assert play.clock.drift_ppm == pytest.approx(20, abs=2)


# --- what a stamp cannot be ------------------------------------------------------------------------------------------


def test_a_stamp_after_its_own_arrival_is_ahead_by_what_the_bound_does_not_cover() -> None:
    play = locked()
    assert Clock().ahead_ns(5, 5) == float("-inf")
    at_ns = play.now_ns
    mapped = play.clock.map(play.device.device_ns(at_ns))
    assert mapped is not None
    ahead_ns = play.clock.ahead_ns(play.device.device_ns(at_ns), at_ns - 10 * MS)
    assert ahead_ns == mapped.host_ns - at_ns + 10 * MS - mapped.bound_ns
    assert play.clock.ahead_ns(play.device.device_ns(at_ns), at_ns + 10 * MS) < -9 * MS


def test_a_sample_that_arrives_before_the_lock_is_no_matter() -> None:
    clock = Clock()
    clock.arrival(10**18, 1000 * S)
    assert clock.map(10**18) is None
    assert clock.state(1000 * S) is ClockState.UNLOCKED


# --- states, lock and reset ------------------------------------------------------------------------------------------


def test_a_new_clock_is_unlocked_and_maps_nothing() -> None:
    clock = Clock()
    assert clock.map(5) is None
    assert clock.to_device(5) is None
    assert (clock.offset_ns, clock.bound_ns, clock.rtts_ns, clock.last_ping_received_ns) == (None, None, None, None)
    assert (clock.slew_ns, clock.epoch, clock.plan.next_ns(), clock.step_ns) == (0, 0, 0, None)
    assert (clock.precision_ns, clock.drift_ppm, clock.isolated_suspects) == (0.0, 0.0, 0)
    assert not clock.locked
    assert clock.estimated_at_ns is None
    assert clock.state(10**15) is ClockState.UNLOCKED


@pytest.mark.parametrize("pings_to_lock", [1, 3, 5, 8])
@pytest.mark.parametrize("gap_ns", [100 * MS, S])
@pytest.mark.parametrize("arrivals", [0, 100])
def test_the_clock_locks_at_the_round_trip_that_it_was_told_and_not_before(
    pings_to_lock: int, gap_ns: int, arrivals: int
) -> None:
    device, clock = Device(7 * S), Clock(ClockSettings(pings_to_lock=pings_to_lock))
    for number in range(arrivals):
        clock.arrival(device.device_ns(START_NS - 2 * S + number * 10 * MS), START_NS - 2 * S + number * 10 * MS + MS)
    assert not clock.locked
    pings = 0
    while not clock.locked:
        assert clock.state(START_NS) is ClockState.UNLOCKED
        assert clock.map(7 * S) is None
        assert clock.ping(device.trip(START_NS + pings * gap_ns, MS, MS))
        pings += 1
    # Fits are not made for each of a burst's.
    assert pings_to_lock <= pings <= (pings_to_lock if gap_ns == S or pings_to_lock == 1 else pings_to_lock + 4)
    assert clock.offset_ns == pytest.approx(-7 * S, abs=10)
    assert clock.bound_ns == pytest.approx(MS, abs=200 * US)
    assert clock.state(START_NS + pings * gap_ns) is ClockState.LOCKED


def test_reset_forgets_the_mapping_keeps_the_rate_and_begins_an_epoch() -> None:
    play = locked(Device(5 * S, 90_000), seconds=60)
    play.clock.reset()
    assert play.clock.epoch == 1
    assert play.clock.map(play.device.device_ns(play.now_ns)) is None
    assert play.clock.state(play.now_ns) is ClockState.UNLOCKED
    assert play.clock.plan.next_ns() == 0
    assert play.clock.step_ns is None
    assert play.clock.drift_ppm == pytest.approx(90, abs=1)
    play.device = Device(-(10**16), 90_000)
    play.run(S)
    mapped = play.clock.map(play.device.device_ns(play.now_ns))
    assert mapped is not None
    assert mapped.epoch == 1
    assert abs(play.error_ns()) <= mapped.bound_ns
    assert play.clock.drift_ppm == pytest.approx(90, abs=10)
    assert all(sample.held for sample in play.run(20 * S))
    assert play.clock.epoch == 1


def test_a_clock_that_knows_nothing_begins_no_epoch_when_it_is_reset() -> None:
    clock = Clock()
    clock.reset()
    assert clock.epoch == 0


def test_a_reset_twice_without_a_round_trip_between_keeps_the_rate() -> None:
    play = locked(Device(5 * S, 90_000), seconds=60)
    play.clock.reset()
    play.clock.reset()
    assert play.clock.drift_ppm == pytest.approx(90, abs=1)
    assert play.clock.epoch == 1


def test_the_state_is_holdover_after_five_missed_pings_and_locked_again_after_one() -> None:
    play = locked(rate_hz=0)
    play.answering = False
    play.run(S)
    last_ns = play.clock.last_ping_received_ns
    assert last_ns is not None
    silent_ns = last_ns + HOLDOVER_INTERVALS * play.clock.settings.ping_interval_ns
    assert play.clock.state(silent_ns) is ClockState.LOCKED
    assert play.clock.state(silent_ns + 1) is ClockState.HOLDOVER
    mapped = play.clock.map(play.device.device_ns(silent_ns + S))
    assert mapped is not None
    assert mapped.state is ClockState.HOLDOVER
    play.run(silent_ns + 2 * S - play.now_ns)
    play.answering = True
    play.run(2 * S)
    assert play.clock.state(play.now_ns) is ClockState.LOCKED
    mapped = play.clock.map(play.device.device_ns(play.now_ns))
    assert mapped is not None
    assert mapped.state is ClockState.LOCKED
    assert mapped.epoch == 0


def test_samples_go_on_telling_in_holdover_and_the_bound_grows_slowly() -> None:
    play = locked(seconds=60)
    play.answering = False
    before_ns = play.clock.bound_ns
    samples = play.run(60 * S)
    assert play.clock.state(play.now_ns) is ClockState.HOLDOVER
    last = samples[-1].mapped
    assert last is not None
    assert last.state is ClockState.HOLDOVER, "no round trip for a minute, though the samples go on"
    assert all(sample.held for sample in samples)
    assert before_ns is not None
    assert last.bound_ns < before_ns + 2 * MS
    assert max(abs(sample.error_ns) for sample in samples) < 500 * US


def test_a_burst_may_be_asked_for() -> None:
    play = locked()
    assert play.clock.plan.next_ns() > play.now_ns
    play.clock.request_burst()
    assert play.clock.plan.next_ns() == 0


# --- a long run ------------------------------------------------------------------------------------------------------


def test_memory_stays_bounded_and_the_bound_honest_over_a_simulated_day_of_rare_pings() -> None:
    device, noise = Device(1_700_000_000 * S, -80_000), random.Random(3)
    clock = Clock(ClockSettings(ping_interval_ns=60 * S))
    now_ns = START_NS
    while now_ns < START_NS + 86_400 * S:
        assert clock.ping(device.trip(now_ns, noise.randint(100 * US, 3 * MS), noise.randint(100 * US, 3 * MS)))
        clock.plan.sent(now_ns)
        true_ns = now_ns + noise.randint(0, 60 * S)
        mapped = clock.map(device.device_ns(true_ns))
        if mapped is not None:
            assert abs(mapped.host_ns - true_ns) <= mapped.bound_ns + ROUNDING_NS
        now_ns = max(now_ns + 10 * MS, clock.plan.next_ns())
    assert clock.epoch == 0
    assert clock.pings_accepted > 1000
    assert len(clock._model.pings) <= 512
    assert sum(len(memory) for memory in clock._model._memories) <= 200
    output = clock._epochs.output
    assert output is not None
    assert len(output._starts) == len(output._hosts) == len(output._slopes) <= 4001


def test_pings_back_to_back_find_the_middle_of_a_link_with_slots_and_single_pings_cannot() -> None:
    slot_ns, middle_ns = 15 * MS, {}
    for pairs in (False, True):
        device, noise, clock, now_ns = Device(5000 * S, 20_000), random.Random(3), Clock(), START_NS

        def next_slot(ready_ns: int, noise: random.Random = noise) -> int:
            ready_ns += noise.randint(600 * US, 900 * US)
            return -(-ready_ns // slot_ns) * slot_ns + noise.randint(600 * US, 900 * US)

        for _ in range(120):
            sent_ns = now_ns
            for _ in range(1 + pairs):
                stamped_ns = next_slot(sent_ns)
                back_ns = next_slot(stamped_ns)
                clock.ping(RoundTrip(sent_ns, device.device_ns(stamped_ns), back_ns))
                sent_ns = back_ns
            clock.plan.sent(now_ns)
            now_ns = max(back_ns, clock.plan.next_ns())
        mapped = clock.map(device.device_ns(now_ns))
        assert mapped is not None
        middle_ns[pairs] = mapped.host_ns - now_ns
        assert abs(middle_ns[pairs]) <= mapped.bound_ns
    assert abs(middle_ns[False]) > slot_ns / 3
    assert abs(middle_ns[True]) < MS
