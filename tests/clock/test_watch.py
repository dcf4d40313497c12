"""When suspects are alone, and when enough of them say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.clock.roundtrip import RoundTrip
from bridge.clock.watch import Suspects, Track, follows

US, MS, S = 1_000, 1_000_000, 1_000_000_000
TYPICAL_NS = 500_000.0
SHIFTS_NS = [-3.6e12, -2e8, 5e7, 1e9]


def trip(received_ns: int) -> RoundTrip:
    return RoundTrip(received_ns - 2 * MS, 7, received_ns)


class Watch(Suspects):
    """Suspects that come one after another, a while apart."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1000 * S

    def arrive(self, shift_ns: float, after_ns: int = 10 * MS) -> bool:
        self.now_ns += after_ns
        self.doubt_arrival(self.now_ns - round(shift_ns), self.now_ns, shift_ns, TYPICAL_NS)
        return self.agreed(None)

    def ping(self, shift_ns: float, after_ns: int = 100 * MS, reach_ns: float = 2e6) -> bool:
        self.now_ns += after_ns
        self.doubt_ping(trip(self.now_ns), shift_ns, reach_ns)
        return self.agreed(None)


@pytest.mark.parametrize("shift_ns", SHIFTS_NS)
def test_three_arrivals_agree_and_two_do_not(shift_ns: float) -> None:
    watch = Watch()
    assert not watch.agreed(None)
    assert [watch.arrive(shift_ns), watch.arrive(shift_ns + 1e5), watch.arrive(shift_ns + 2e5)] == [False, False, True]
    assert watch.shift_ns == shift_ns, "the earliest arrival"


@pytest.mark.parametrize("shift_ns", SHIFTS_NS)
def test_two_round_trips_agree_and_the_narrower_tells_the_shift(shift_ns: float) -> None:
    watch = Watch()
    assert not watch.ping(shift_ns, reach_ns=1e6)
    assert watch.ping(shift_ns + 2e6, reach_ns=5e6)
    assert watch.shift_ns == shift_ns


@pytest.mark.parametrize("shift_ns", SHIFTS_NS)
@pytest.mark.parametrize("ping_first", [True, False])
def test_a_round_trip_and_an_arrival_agree(shift_ns: float, ping_first: bool) -> None:
    watch = Watch()
    if ping_first:
        assert not watch.ping(shift_ns)
        assert watch.arrive(shift_ns + 1e6)
    else:
        assert not watch.arrive(shift_ns + 1e6)
        assert watch.ping(shift_ns)
    assert watch.shift_ns == shift_ns, "an arrival may be late"
    assert len(watch.witnesses()[1]) == 1


@pytest.mark.parametrize("shift_ns", SHIFTS_NS)
def test_where_round_trips_are_slow_an_arrival_tells_more(shift_ns: float) -> None:
    watch = Watch()
    assert not watch.ping(shift_ns + 30e6, reach_ns=40e6)
    assert watch.arrive(shift_ns)
    assert watch.shift_ns == shift_ns
    assert [len(each) for each in watch.witnesses()] == [1, 1]


@given(st.lists(st.integers(-60, 60), min_size=1, max_size=12, unique=True), st.booleans())
def test_suspects_of_which_each_says_something_else_never_agree(sizes: list[int], pings: bool) -> None:
    watch = Watch()
    for size in sizes:
        shift_ns = size * 100e6 + 50e6
        assert not (watch.ping(shift_ns) if pings else watch.arrive(shift_ns))


def test_arrivals_whose_stamps_run_backwards_do_not_agree() -> None:
    watch = Watch()
    for number in range(6):  # each is later by what the one before was, less
        watch.doubt_arrival(1000 * S - number * 10 * MS, 1005 * S - number * 10 * MS, 5e9, TYPICAL_NS)
        assert not watch.agreed(None)


def test_what_is_long_ago_agrees_with_nothing_of_now() -> None:
    watch = Watch()
    assert not watch.ping(1e9)
    assert not watch.ping(1e9, after_ns=60 * S)
    assert not Watch().arrive(1e9)
    watch = Watch()
    watch.arrive(1e9)
    watch.arrive(1e9)
    assert not watch.arrive(1e9, after_ns=60 * S)


def test_arrivals_that_were_late_by_as_much_agree_with_a_round_trip() -> None:
    watch = Watch()
    watch.doubt_ping(trip(5 * S), 50e6, 2e6)
    assert not watch.agreed(20e6)
    assert not watch.agreed(None)
    assert watch.agreed(51e6)
    assert watch.shift_ns == 51e6


def test_punctual_arrivals_clear_the_suspicion_and_count_what_was_alone() -> None:
    watch = Watch()
    watch.arrive(1e9)
    assert watch.watching
    watch.arrival_fitted(punctual=False)
    fits = 0
    while watch.watching:
        assert watch.isolated == 0
        watch.arrival_fitted(punctual=True)
        fits += 1
        assert fits <= 10
    assert fits > 1
    assert watch.isolated == 1
    assert not watch.arrive(1e9)
    assert not watch.arrive(1e9), "the first one is forgotten"


def test_late_arrivals_do_not_clear_a_suspicion() -> None:
    watch = Watch()
    watch.arrive(1e9)
    for _ in range(50):
        watch.arrival_fitted(punctual=False)
    assert watch.watching


def test_a_round_trip_that_fits_clears_those_that_did_not() -> None:
    watch = Watch()
    watch.ping(1e9)
    watch.ping_fitted()
    assert watch.isolated == 1
    assert not watch.ping(1e9)


def test_where_stamps_are_corrupt_now_and_then_a_coincidence_is_no_step() -> None:
    def corrupt_before(count: int) -> Watch:
        watch = Watch()
        for number in range(count):
            watch.ping((number + 1) * 1e9)
            watch.ping_fitted()
        return watch

    careful = corrupt_before(10)
    assert careful.isolated == 10
    assert not careful.ping(5e8)
    assert not careful.ping(5e8)
    assert any(careful.ping(5e8) for _ in range(5)), "but it is one in the end"
    plain = corrupt_before(1)
    assert [plain.ping(5e8), plain.ping(5e8)] == [False, True]


def test_the_witnesses_are_those_that_are_for_the_shift() -> None:
    watch = Watch()
    watch.arrive(-7e9)
    watch.ping(3e10)
    assert not watch.ping(1e9)
    assert watch.arrive(1e9)
    arrivals, trips = watch.witnesses()
    assert [received_ns - device_ns for device_ns, received_ns in arrivals] == [1_000_000_000]
    assert len(trips) == 1
    watch.clear()
    assert watch.witnesses() == ([], [])
    assert not watch.watching
    assert watch.isolated == 0


# --- tracks ----------------------------------------------------------------------------------------------------------


def test_a_track_is_new_until_it_belongs_to_an_epoch() -> None:
    track = Track()
    assert track.is_new
    track.newest_device_ns = 5
    track.begin(3)
    assert not track.is_new
    assert track.epoch == 3
    assert track.newest_device_ns < 0


@pytest.mark.parametrize("step_ns", [50 * MS, -200 * MS, 3600 * S, -3600 * S])
def test_a_stream_goes_on_until_its_own_stamps_jump(step_ns: int) -> None:
    track = Track()
    track.begin(0)
    track.newest_device_ns, track.newest_received_ns = 100 * S, 200 * S
    # A device that was set by so much stamps earlier by it: what it stamped before is off by that.
    for elapsed_ns, late_ns in ((10 * MS, 0), (10 * MS, 5 * MS), (S, 0)):
        assert track.goes_on(100 * S + elapsed_ns, 200 * S + elapsed_ns + late_ns, float(step_ns), step_ns)
    assert not track.goes_on(100 * S + 10 * MS + step_ns, 200 * S + 10 * MS, 0.0, step_ns)
    assert not track.goes_on(100 * S + 10 * MS + step_ns, 200 * S + 10 * MS, 2e6, step_ns)


def test_what_follows_its_predecessor_as_usual_goes_on_however_late_it_is() -> None:
    track = Track()
    track.begin(0)
    track.newest_device_ns, track.newest_received_ns = 100 * S, 200 * S
    late = (100 * S + 10 * MS, 200 * S + 190 * MS, -20e6, -200 * MS)  # by nearly as much as the clock was set
    assert not track.goes_on(*late)
    track.usual_ns = 10 * MS
    assert track.goes_on(*late)


@pytest.mark.parametrize(
    ("gap_ms", "usual_ms", "back_ms", "step_ms", "same"),
    [
        (8, 8, 0, -200, True),
        (24, 8, 0, 200, True),
        (25, 8, 0, 200, False),
        (0, 8, 0, -3_600_000, True),
        (-1, 8, 0, -200, False),
        (-20, 8, 20, -200, True),
        (-21, 8, 20, -200, False),
        (8, 8, 20, -88, False),  # the other clock's could be there, too
        (8, 8, 20, -90, True),
        (8, 0, 0, -200, False),  # not known
    ],
)
def test_what_is_close_to_its_predecessor_is_of_the_same_clock(
    gap_ms: int, usual_ms: int, back_ms: int, step_ms: int, same: bool
) -> None:
    assert follows(gap_ms * MS, usual_ms * MS, back_ms * MS, step_ms * MS) is same


def test_samples_that_were_out_of_order_and_nothing_more_are_no_corrupt_stamps() -> None:
    watch = Watch()
    for late_ns in (30e6, 90e6):
        watch.doubt_arrival(watch.now_ns, watch.now_ns, late_ns, TYPICAL_NS, backwards=True)
        for _ in range(5):
            watch.arrival_fitted(True)
    assert (watch.isolated, watch.out_of_order_ns) == (0, 90e6)
    watch.doubt_arrival(watch.now_ns, watch.now_ns, 9e9, TYPICAL_NS, backwards=True)
    for _ in range(5):
        watch.arrival_fitted(True)
    assert watch.out_of_order_ns == 90e6, "no network shuffles what is seconds apart"
    assert watch.pending == 0
