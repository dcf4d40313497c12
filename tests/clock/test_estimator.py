"""The clock estimator against simulated links whose truth is known to the nanosecond."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.clock import Clock, ClockSettings, ClockState, RoundTrip
from bridge.clock.estimator import BURST_INTERVAL_NS, BURST_PINGS, HOLDOVER_INTERVALS, PINGS_TO_LOCK
from bridge.clock.output import MAX_SLEW, SLEW_TIME_NS

US, MS, S = 1_000, 1_000_000, 1_000_000_000
# The simulated device clock and its inverse are rounded to whole nanoseconds, and so is the mapping.
ROUNDING_NS = 2


@dataclass
class Link:
    """A device clock that runs at a constant rate, behind a path with any delays. All of it in integer ns.

    ``drift_ppb`` is positive for a fast device; the device shows ``offset_ns`` when the host shows 0.
    """

    offset_ns: int = 0
    drift_ppb: int = 0
    quantum_ns: int = 1

    def device_ns(self, host_ns: int) -> int:
        return self.offset_ns + host_ns + host_ns * self.drift_ppb // S

    def host_ns(self, device_ns: int) -> int:
        """The truth that the estimator looks for."""
        return (device_ns - self.offset_ns) * S // (S + self.drift_ppb)

    def trip(self, sent_ns: int, out_ns: int, back_ns: int) -> RoundTrip:
        stamp_ns = self.device_ns(sent_ns + out_ns)
        return RoundTrip(
            sent_ns, stamp_ns - stamp_ns % self.quantum_ns, sent_ns + out_ns + back_ns, quantum_ns=self.quantum_ns
        )


def locked_clock(link: Link, *, pings: int = 10, delay_ns: int = MS, start_ns: int = 1000 * S) -> tuple[Clock, int]:
    """A clock after ``pings`` symmetric round trips, one a second, and the host time of the last one's end."""
    clock = Clock()
    now_ns = start_ns
    for number in range(pings):
        now_ns = start_ns + number * S
        assert clock.ping(link.trip(now_ns, delay_ns, delay_ns))
    return clock, now_ns + 2 * delay_ns


drifts_ppb = st.integers(-150_000, 150_000)
offsets_ns = st.integers(-(2**62), 2**62)
links = st.builds(Link, offsets_ns, drifts_ppb, st.sampled_from([1, US, MS]))
delays_ns = st.one_of(st.just(0), st.integers(0, MS), st.integers(0, 2 * S))
# From the end of one exchange to the start of the next, the way there, the way back, and whether it arrives at all.
exchanges = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 200 * MS), st.integers(0, 3 * S), st.integers(0, 300 * S)),
        delays_ns,
        delays_ns,
        st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=40,
)


# --- the bound -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(links, st.integers(0, 10**15), exchanges, st.lists(st.integers(-5 * S, 600 * S), min_size=1, max_size=4))
def test_the_true_host_time_lies_within_the_bound_whatever_the_delays(
    link: Link, start_ns: int, steps: list[tuple[int, int, int, bool]], ages_ns: list[int]
) -> None:
    clock, now_ns = Clock(), start_ns
    for gap_ns, out_ns, back_ns, arrives in steps:
        trip = link.trip(now_ns + gap_ns, out_ns, back_ns)
        now_ns = trip.received_ns
        if arrives:
            assert clock.ping(trip), "a true round trip was set aside"
        for age_ns in ages_ns:
            device_ns = link.device_ns(now_ns - age_ns)
            mapped = clock.map(device_ns)
            if mapped is not None:
                error_ns = abs(mapped.host_ns - link.host_ns(device_ns))
                assert error_ns <= mapped.bound_ns + ROUNDING_NS
                assert mapped.epoch == 0


@pytest.mark.parametrize("drift_ppb", [-150_000, 0, 150_000])
def test_a_stamp_that_was_rounded_down_by_a_whole_quantum_is_within_the_bounds_of_its_round_trip(
    drift_ppb: int,
) -> None:
    link = Link(drift_ppb=drift_ppb, quantum_ns=MS)
    sent_ns = link.host_ns(1000 * S - 1)  # the device is about to tick
    trip = link.trip(sent_ns, 0, 0)
    true_offset_ns = link.host_ns(trip.device_ns) - trip.device_ns
    assert trip.lowest_offset_ns - ROUNDING_NS <= true_offset_ns <= trip.highest_offset_ns + ROUNDING_NS


@settings(deadline=None, max_examples=100)
@given(links, exchanges)
def test_the_offset_and_its_bound_hold_the_truth_at_every_round_trip(
    link: Link, steps: list[tuple[int, int, int, bool]]
) -> None:
    clock, now_ns, newest_ns = Clock(), 5000 * S, None
    for gap_ns, out_ns, back_ns, arrives in steps:
        trip = link.trip(now_ns + gap_ns, out_ns, back_ns)
        now_ns = trip.received_ns
        if arrives:
            clock.ping(trip)
            newest_ns = trip.device_ns
        if clock.offset_ns is None or newest_ns is None:
            continue
        assert clock.bound_ns is not None
        assert abs(newest_ns + clock.offset_ns - link.host_ns(newest_ns)) <= clock.bound_ns + ROUNDING_NS


@settings(deadline=None, max_examples=60)
@given(links, st.integers(0, 5 * MS), st.integers(0, 5 * MS))
def test_the_bound_grows_without_pings_and_the_truth_stays_within_it(link: Link, out_ns: int, back_ns: int) -> None:
    clock = Clock()
    for number in range(30):
        clock.ping(link.trip(number * S, out_ns, back_ns))
    previous_ns = 0
    for silence_s in (6, 60, 600, 6000, 86_400):
        device_ns = link.device_ns(30 * S + silence_s * S)
        mapped = clock.map(device_ns)
        assert mapped is not None
        assert mapped.state is ClockState.HOLDOVER
        assert mapped.bound_ns > previous_ns
        assert abs(mapped.host_ns - link.host_ns(device_ns)) <= mapped.bound_ns + ROUNDING_NS
        previous_ns = mapped.bound_ns


# --- exactness -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(offsets_ns, st.integers(0, 2 * MS), st.integers(PINGS_TO_LOCK, 40))
def test_a_constant_clock_behind_a_symmetric_path_is_mapped_exactly(offset_ns: int, delay_ns: int, pings: int) -> None:
    link = Link(offset_ns)
    clock, now_ns = locked_clock(link, pings=pings, delay_ns=delay_ns)
    for age_ns in range(-S, 5 * S, 333 * MS):
        device_ns = link.device_ns(now_ns - age_ns)
        mapped = clock.map(device_ns)
        assert mapped is not None
        assert abs(mapped.host_ns - (now_ns - age_ns)) <= 5
        # Half of the round trip, and what the rate may do between the newest round trip and the sample.
        assert mapped.bound_ns <= delay_ns + abs(age_ns - delay_ns) * 201e-6 + 10


def test_after_a_minute_of_jitter_the_error_is_below_0_2_ms_and_the_drift_within_5_ppm() -> None:
    link = Link(offset_ns=1_700_000_000 * S, drift_ppb=50_000)
    noise = random.Random(20_240_501)
    clock = Clock()
    start_ns = now_ns = 4321 * S
    clock_errors_ns = []
    while now_ns < start_ns + 90 * S:
        clock.ping(link.trip(now_ns, noise.randint(200 * US, 600 * US), noise.randint(200 * US, 600 * US)))
        clock.ping_sent(now_ns)
        if now_ns > start_ns + 60 * S:
            assert clock.drift_ppm == pytest.approx(50, abs=5)
            for age_ns in range(0, S, 100 * MS):
                device_ns = link.device_ns(now_ns + age_ns)
                mapped = clock.map(device_ns)
                assert mapped is not None
                assert mapped.state is ClockState.LOCKED
                clock_errors_ns.append(abs(mapped.host_ns - link.host_ns(device_ns)))
        now_ns = clock.next_ping_ns()
    assert len(clock_errors_ns) > 200
    assert max(clock_errors_ns) < 200 * US


def test_precision_is_far_below_the_bound_when_the_path_is_steady_and_asymmetric() -> None:
    link = Link(offset_ns=-77 * S, drift_ppb=-20_000)
    clock = Clock()
    for number in range(120):
        clock.ping(link.trip(number * S, 100 * US, 4 * MS))
    mapped = clock.map(link.device_ns(120 * S))
    assert mapped is not None
    assert mapped.precision_ns < 50 * US
    assert mapped.bound_ns > 1 * MS
    assert clock.rtts_ns == (4100 * US, 4100 * US)


# --- one epoch is one continuous, fixed function ---------------------------------------------------------------------


def samples_and_pings(link: Link, seed: int, seconds: int) -> Iterator[tuple[int, RoundTrip | None]]:
    """Sample times at 200 Hz as the device stamps them, a round trip after every 200th: honest jitter, some losses."""
    noise = random.Random(seed)
    for number in range(seconds * 200):
        now_ns = 100 * S + number * 5 * MS
        trip = None
        if number % 200 == 199 and noise.random() < 0.8:
            trip = link.trip(now_ns, noise.randint(0, 20 * MS), noise.randint(0, 20 * MS))
        yield link.device_ns(now_ns), trip


@settings(deadline=None, max_examples=15)
@given(drifts_ppb, offsets_ns, st.integers(0, 2**32), st.sampled_from([1, MS]))
def test_mapped_times_never_go_backwards_and_never_jump_within_an_epoch(
    drift_ppb: int, offset_ns: int, seed: int, quantum_ns: int
) -> None:
    link, clock = Link(offset_ns, drift_ppb, quantum_ns), Clock()
    before: tuple[int, int] | None = None
    for device_ns, trip in samples_and_pings(link, seed, seconds=30):
        mapped = clock.map(device_ns)
        if mapped is not None:
            assert mapped.epoch == 0
            if before is not None:
                elapsed_ns, mapped_elapsed_ns = device_ns - before[0], mapped.host_ns - before[1]
                assert mapped_elapsed_ns > 0
                # At most the slew and the rate's prior beyond elapsed time: 26 us in the 5 ms between samples.
                assert abs(mapped_elapsed_ns - elapsed_ns) <= elapsed_ns * (MAX_SLEW + 200e-6) + ROUNDING_NS
            before = (device_ns, mapped.host_ns)
        if trip is not None:
            clock.ping(trip)
    assert before is not None


@settings(deadline=None, max_examples=15)
@given(drifts_ppb, offsets_ns, st.integers(0, 2**32), st.sampled_from([1, MS]))
def test_a_device_time_that_was_mapped_is_mapped_to_the_same_host_time_later(
    drift_ppb: int, offset_ns: int, seed: int, quantum_ns: int
) -> None:
    link, clock = Link(offset_ns, drift_ppb, quantum_ns), Clock()
    given_out: dict[int, int] = {}
    for number, (device_ns, trip) in enumerate(samples_and_pings(link, seed, seconds=30)):
        # Now and then a stamp that is older or a little newer than the newest round trip: late and early samples.
        for age_ns in (0, (number % 7) * 150 * MS, -(number % 3) * 2 * MS):
            mapped = clock.map(device_ns - age_ns)
            if mapped is not None:
                assert given_out.setdefault(device_ns - age_ns, mapped.host_ns) == mapped.host_ns
        if trip is not None:
            clock.ping(trip)
    assert given_out
    for device_ns, host_ns in given_out.items():
        again = clock.map(device_ns)
        assert again is not None
        assert again.host_ns == host_ns


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_samples_that_arrive_during_a_slow_round_trip_are_mapped_for_good_and_in_order(seed: int) -> None:
    link, clock, noise = Link(40 * S, 30_000), Clock(), random.Random(seed)
    given_out: dict[int, int] = {}
    now_ns, before_ns, trip = 0, 0, link.trip(0, 0, 0)
    for _ in range(20 * 200):
        now_ns += 5 * MS
        if trip.received_ns <= now_ns:
            clock.ping(trip)
            way_ns = noise.choice([10 * MS, 1500 * MS])
            trip = link.trip(now_ns, noise.randint(0, way_ns), noise.randint(0, way_ns))
        device_ns = link.device_ns(now_ns)
        mapped = clock.map(device_ns)
        if mapped is not None:
            assert mapped.host_ns > before_ns
            before_ns = given_out[device_ns] = mapped.host_ns
    again = {device_ns: mapped.host_ns for device_ns in given_out if (mapped := clock.map(device_ns))}
    assert again == given_out


def test_a_round_trip_with_the_same_device_stamp_as_the_one_before_changes_no_mapped_time() -> None:
    # A coarse clock in a burst: the first lock's reference is stamped twice, and a sample before it was mapped.
    clock = Clock()
    for number in range(PINGS_TO_LOCK):
        clock.ping(RoundTrip(number * 100 * MS, number * 100 * MS, number * 100 * MS + 10 * MS))
    early = clock.map(300 * MS)
    assert early is not None
    reference_ns = (PINGS_TO_LOCK - 1) * 100 * MS
    clock.ping(RoundTrip(reference_ns + 5 * MS, reference_ns, reference_ns + 6 * MS, quantum_ns=10 * MS))
    again = clock.map(300 * MS)
    assert again is not None
    assert again.host_ns == early.host_ns


@settings(deadline=None, max_examples=50)
@given(links, st.integers(0, 2**32), st.integers(1, 60))
def test_to_device_inverts_map(link: Link, seed: int, pings: int) -> None:
    noise, clock = random.Random(seed), Clock()
    for number in range(pings):
        clock.ping(link.trip(number * S, noise.randint(0, 20 * MS), noise.randint(0, 20 * MS)))
    for _ in range(50):
        device_ns = link.device_ns(noise.randint(-5 * S, (pings + 10) * S))
        mapped = clock.map(device_ns)
        if mapped is None:
            assert clock.to_device(5) is None
        else:
            back_ns = clock.to_device(mapped.host_ns)
            assert back_ns is not None
            assert abs(back_ns - device_ns) <= 2


def test_the_output_slews_to_a_better_estimate_and_says_how_far_it_still_is() -> None:
    link, clock = Link(), Clock()
    for number in range(PINGS_TO_LOCK):  # 20 ms of one-sided delay: the middle is 10 ms off
        clock.ping(link.trip(number * 100 * MS, 20 * MS, 0))
    first = clock.map(link.device_ns(S))
    assert first is not None
    assert first.host_ns - S == pytest.approx(-10 * MS, abs=MS)
    clock.ping(link.trip(S, 0, 0))
    assert clock.slew_ns == pytest.approx(10 * MS, abs=MS)
    now = clock.map(link.device_ns(S + 100 * MS))
    later = clock.map(link.device_ns(S + 4 * SLEW_TIME_NS))
    assert now is not None
    assert later is not None
    assert now.bound_ns > 9 * MS, "the bound covers what is still to be slewed"
    assert later.host_ns == pytest.approx(S + 4 * SLEW_TIME_NS, abs=MS)
    assert later.bound_ns < 2 * MS


# --- what contradicts the bound --------------------------------------------------------------------------------------


def mapping(clock: Clock, around_ns: int) -> list[object]:
    return [clock.map(around_ns + step * 500 * MS) for step in range(-10, 10)]


@pytest.mark.parametrize("off_ns", [-(10**18), -S, -50 * MS, 50 * MS, S, 10**18])
def test_a_single_corrupt_round_trip_is_set_aside_and_changes_nothing(off_ns: int) -> None:
    link = Link(offset_ns=5 * S, drift_ppb=30_000)
    clock, now_ns = locked_clock(link, pings=30)
    device_ns = link.device_ns(now_ns)
    before = mapping(clock, device_ns), clock.offset_ns, clock.bound_ns, clock.drift_ppm, clock.rtts_ns, clock.epoch
    honest = link.trip(now_ns + S, MS, MS)
    assert not clock.ping(RoundTrip(honest.sent_ns, honest.device_ns + off_ns, honest.received_ns))
    after = mapping(clock, device_ns), clock.offset_ns, clock.bound_ns, clock.drift_ppm, clock.rtts_ns, clock.epoch
    assert after == before
    assert clock.pings_rejected == 1
    assert clock.ping(link.trip(now_ns + 2 * S, MS, MS))
    assert clock.epoch == 0
    assert clock.map(device_ns) is not None


def test_a_corrupt_round_trip_now_and_then_never_begins_an_epoch() -> None:
    link, noise = Link(drift_ppb=-40_000), random.Random(7)
    clock, now_ns = locked_clock(link)
    for number in range(300):
        trip = link.trip(now_ns + (number + 1) * S, MS, MS)
        if number % 2:
            off_ns = noise.choice([-1, 1]) * noise.randint(20 * MS, 10**15)
            assert not clock.ping(RoundTrip(trip.sent_ns, trip.device_ns + off_ns, trip.received_ns))
        else:
            assert clock.ping(trip)
    assert clock.epoch == 0
    assert clock.pings_rejected == 150


def test_a_reply_that_arrives_before_its_request_was_sent_is_rejected() -> None:
    link = Link()
    for clock in (Clock(), locked_clock(link)[0]):
        accepted = clock.pings_accepted
        assert not clock.ping(RoundTrip(2000 * S, 2000 * S, 2000 * S - 1))
        assert clock.pings_accepted == accepted
        assert clock.pings_rejected == 1
        assert clock.epoch == 0


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(st.integers(20 * MS, 10**18), st.integers(-(10**18), -20 * MS)),
    drifts_ppb,
    st.integers(0, 5 * MS),
    st.integers(0, 5 * MS),
)
def test_two_round_trips_that_agree_against_the_bound_begin_an_epoch_with_the_right_offset(
    step_ns: int, drift_ppb: int, out_ns: int, back_ns: int
) -> None:
    link = Link(123 * S, drift_ppb)
    clock, now_ns = locked_clock(link, pings=40)
    stepped = Link(link.offset_ns + step_ns, drift_ppb)
    assert not clock.ping(stepped.trip(now_ns + S, out_ns, back_ns))
    assert clock.epoch == 0
    assert clock.next_ping_ns() == 0 or clock._burst_left, "more round trips are wanted at once"
    assert clock.ping(stepped.trip(now_ns + S + 100 * MS, out_ns, back_ns))
    assert clock.epoch == 1
    device_ns = stepped.device_ns(now_ns + 2 * S)
    mapped = clock.map(device_ns)
    assert mapped is not None
    assert mapped.epoch == 1
    assert mapped.state is ClockState.LOCKED
    assert abs(mapped.host_ns - stepped.host_ns(device_ns)) <= mapped.bound_ns + ROUNDING_NS
    assert mapped.bound_ns <= (out_ns + back_ns) // 2 + 2 * S * 3e-4
    for number in range(20):
        assert clock.ping(stepped.trip(now_ns + (3 + number) * S, out_ns, back_ns))
    assert clock.epoch == 1


def test_two_corrupt_round_trips_that_contradict_each_other_begin_no_epoch() -> None:
    link = Link()
    clock, now_ns = locked_clock(link)
    for off_ns in (10 * S, -10 * S, 20 * S):
        trip = link.trip(now_ns + S, MS, MS)
        assert not clock.ping(RoundTrip(trip.sent_ns, trip.device_ns + off_ns, trip.received_ns))
    assert clock.epoch == 0


@pytest.mark.parametrize("step_ns", [-(10**18), -3600 * S, -S, S, 3600 * S, 10**18])
@pytest.mark.parametrize("before_pings", range(1, PINGS_TO_LOCK))
def test_a_step_before_the_lock_leaves_no_trace_after_it(step_ns: int, before_pings: int) -> None:
    link, clock = Link(), Clock()
    for number in range(before_pings):
        clock.ping(link.trip(1000 * S + number * S, MS, MS))
    stepped = Link(step_ns)
    for number in range(20):
        clock.ping(stepped.trip(1010 * S + number * S, MS, MS))
    device_ns = stepped.device_ns(1030 * S)
    mapped = clock.map(device_ns)
    assert mapped is not None
    assert abs(mapped.host_ns - 1030 * S) <= 5 * US
    assert mapped.bound_ns < 2 * MS
    assert abs(clock.drift_ppm) < 200


# --- hostile round trips ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2 * S),  # host time since the last one
            st.integers(0, 3 * S),  # round trip time
            st.one_of(st.integers(0, 3 * S), st.integers(-5 * S, 5 * S), st.integers(-(10**18), 10**18)),
        ),
        max_size=30,
    )
)
def test_no_sequence_of_round_trips_crashes_or_reverses_the_clock(trips: list[tuple[int, int, int]]) -> None:
    clock, now_ns = Clock(), 0
    for gap_ns, rtt_ns, device_ns in trips:
        now_ns += gap_ns
        clock.ping(RoundTrip(now_ns, device_ns, now_ns + rtt_ns))
        mapped = [clock.map(device_ns + step * 10 * MS) for step in range(-3, 4)]
        hosts_ns = [m.host_ns for m in mapped if m is not None]
        assert hosts_ns == sorted(hosts_ns)
        assert all(m.bound_ns > 0 and m.precision_ns >= 0 for m in mapped if m is not None)
        clock.to_device(now_ns)
        assert clock.state(now_ns) in ClockState
        clock.slew_ns, clock.drift_ppm, clock.rtts_ns  # noqa: B018


def test_device_stamps_that_go_backwards_and_come_again_do_not_crash() -> None:
    clock = Clock()
    for device_ns in (1500 * MS, 900 * MS, 1500 * MS, 900 * MS, 1500 * MS, 900 * MS):
        clock.ping(RoundTrip(0, device_ns, 3 * S))
    assert clock.map(S) is not None


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_from_the_future_asks_for_a_burst_and_an_ordinary_one_does_not() -> None:
    link = Link(offset_ns=3 * S)
    clock, now_ns = locked_clock(link)
    for number in range(BURST_PINGS):
        clock.ping_sent(now_ns + number)
    due_ns = clock.next_ping_ns()
    assert due_ns > now_ns
    for late_ns in (0, MS, S, 3600 * S):
        clock.arrival(link.device_ns(now_ns), now_ns + late_ns)
        assert clock.next_ping_ns() == due_ns
    clock.arrival(link.device_ns(now_ns) + 10 * MS, now_ns)
    assert clock.next_ping_ns() == 0


def test_a_sample_that_arrives_before_the_lock_is_no_matter() -> None:
    clock = Clock()
    clock.arrival(10**18, 0)
    assert clock.map(10**18) is None
    assert clock.state(0) is ClockState.UNLOCKED


def test_one_absurd_stamp_does_not_stop_the_output_from_being_corrected() -> None:
    link, clock = Link(), Clock()
    for number in range(PINGS_TO_LOCK):  # one-sided: 5 ms off
        clock.ping(link.trip(number * 100 * MS, 10 * MS, 0))
    assert clock.map(10**18) is not None  # a corrupt stamp that its source could not know
    for number in range(1, 30):
        clock.ping(link.trip(number * S, 0, 0))
    mapped = clock.map(link.device_ns(30 * S))
    assert mapped is not None
    assert abs(mapped.host_ns - 30 * S) <= 20 * US
    assert mapped.bound_ns < 100 * US


# --- states and the schedule -----------------------------------------------------------------------------------------


def test_a_new_clock_is_unlocked_and_maps_nothing() -> None:
    clock = Clock()
    assert clock.map(5) is None
    assert clock.to_device(5) is None
    assert (clock.offset_ns, clock.bound_ns, clock.rtts_ns, clock.last_ping_received_ns) == (None, None, None, None)
    assert (clock.slew_ns, clock.epoch, clock.next_ping_ns()) == (0, 0, 0)
    assert clock.state(10**15) is ClockState.UNLOCKED


def test_the_clock_locks_at_the_fifth_round_trip() -> None:
    link, clock = Link(7 * S), Clock()
    for number in range(PINGS_TO_LOCK):
        assert clock.map(7 * S) is None
        clock.ping(link.trip(number * BURST_INTERVAL_NS, MS, MS))
    assert clock.map(7 * S) is not None
    assert clock.offset_ns == pytest.approx(-7 * S, abs=10)
    assert clock.bound_ns == pytest.approx(MS, abs=200 * US)
    assert clock.state(S) is ClockState.LOCKED


def test_reset_unlocks_and_begins_an_epoch_unless_nothing_was_known() -> None:
    clock = Clock()
    clock.reset()
    assert clock.epoch == 0
    link = Link()
    clock, now_ns = locked_clock(link)
    clock.ping_sent(now_ns)
    clock.reset()
    assert clock.epoch == 1
    assert clock.map(now_ns) is None
    assert clock.state(now_ns) is ClockState.UNLOCKED
    assert clock.next_ping_ns() == 0
    for number in range(PINGS_TO_LOCK):
        clock.ping(Link(9 * S).trip(now_ns + number * S, MS, MS))
    mapped = clock.map(now_ns + 9 * S)
    assert mapped is not None
    assert mapped.epoch == 1
    assert abs(mapped.host_ns - now_ns) <= 5


def test_pings_are_asked_for_in_a_burst_and_then_at_the_interval() -> None:
    clock = Clock(ClockSettings(ping_interval_ns=2 * S))
    now_ns = 50 * S
    sent_ns: list[int] = []
    assert clock.next_ping_ns() == 0
    while len(sent_ns) < BURST_PINGS + 5:
        now_ns = max(now_ns, clock.next_ping_ns())
        clock.ping_sent(now_ns)
        sent_ns.append(now_ns)
    gaps_ns = [b - a for a, b in pairwise(sent_ns)]
    assert gaps_ns == [BURST_INTERVAL_NS] * (BURST_PINGS - 1) + [2 * S] * 5


def test_a_burst_that_is_asked_for_during_a_burst_does_not_prolong_it() -> None:
    clock = Clock()
    for number in range(BURST_PINGS):
        clock.request_burst()
        clock.ping_sent(number * BURST_INTERVAL_NS)
    assert clock.next_ping_ns() == (BURST_PINGS - 1) * BURST_INTERVAL_NS + S
    clock.request_burst()
    assert clock.next_ping_ns() == 0
    clock.ping_sent(S * 5)
    assert clock.next_ping_ns() == S * 5 + BURST_INTERVAL_NS


def test_the_state_is_holdover_after_five_missed_pings_and_locked_again_after_one() -> None:
    link = Link(offset_ns=11 * S, drift_ppb=10_000)
    clock, now_ns = locked_clock(link)
    silent_ns = now_ns + HOLDOVER_INTERVALS * clock.ping_interval_ns
    assert clock.state(silent_ns) is ClockState.LOCKED
    assert clock.state(silent_ns + 1) is ClockState.HOLDOVER
    mapped = clock.map(link.device_ns(silent_ns + S))
    assert mapped is not None
    assert mapped.state is ClockState.HOLDOVER
    assert clock.ping(link.trip(silent_ns + 2 * S, MS, MS))
    assert clock.state(silent_ns + 3 * S) is ClockState.LOCKED
    mapped = clock.map(link.device_ns(silent_ns + 3 * S))
    assert mapped is not None
    assert mapped.state is ClockState.LOCKED
    assert mapped.epoch == 0


# --- a long run ------------------------------------------------------------------------------------------------------


def test_memory_stays_bounded_and_the_bound_honest_over_a_simulated_week() -> None:
    link, noise = Link(offset_ns=1_700_000_000 * S, drift_ppb=-80_000), random.Random(3)
    clock = Clock(ClockSettings(ping_interval_ns=60 * S))
    now_ns, week_ns = 0, 7 * 86_400 * S
    while now_ns < week_ns:
        assert clock.ping(link.trip(now_ns, noise.randint(100 * US, 3 * MS), noise.randint(100 * US, 3 * MS)))
        clock.ping_sent(now_ns)
        device_ns = link.device_ns(now_ns + noise.randint(0, 60 * S))
        mapped = clock.map(device_ns)
        if mapped is not None:
            assert abs(mapped.host_ns - link.host_ns(device_ns)) <= mapped.bound_ns + ROUNDING_NS
        now_ns = clock.next_ping_ns()
    assert clock.epoch == 0
    assert clock.pings_accepted > 10_000
    assert len(clock._envelope.constraints) <= 125
    assert clock._output is not None
    assert len(clock._output._knots) <= 128
    assert len(clock._output._starts) == len(clock._output._knots)
    assert len(clock._residuals_ns) <= 64
    assert len(clock._recent_rtts_ns) <= 64


def test_memory_stays_bounded_with_ten_round_trips_a_second() -> None:
    link, noise, clock = Link(), random.Random(4), Clock()
    for number in range(3000):
        clock.ping(link.trip(number * 100 * MS, noise.randint(0, MS), noise.randint(0, MS)))
        clock.map(link.device_ns(number * 100 * MS))
    assert len(clock._envelope.constraints) <= 125
    assert clock._output is not None
    assert len(clock._output._knots) <= 128
