"""The host's clocks, read through clocks that the test moves, and once as they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.clock.host import (
    BOOTTIME_NS,
    GLANCE_NS,
    KEPT_OFFSETS,
    SANDWICHES,
    RealtimeOffset,
    SuspendWatch,
    monotonic_ns,
    read_beside,
    sandwich,
    steady_scale,
)
from bridge.clock.host_scale import REFRESH_NS
from tests.clock.host_machine import MS, US, Machine, S

SCHEDULING_NS = 50 * MS  # between two lines of a test on a busy computer
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux' clocks")


def readings(values: Iterable[int]) -> Callable[[], int]:
    """A clock that shows these values, one a reading."""
    return iter(values).__next__


def realtime_of(machine: Machine) -> RealtimeOffset:
    return RealtimeOffset(machine.realtime_ns, machine.host_ns, machine.boottime_ns, tick_ns=2)


def test_host_time_is_the_monotonic_clock() -> None:
    before = time.monotonic_ns()
    assert before <= monotonic_ns() <= time.monotonic_ns()


# --- sandwiches ------------------------------------------------------------------------------------------------------


def test_a_sandwich_takes_the_narrowest_of_five_readings() -> None:
    widths = [900, 400, 60, 500, 700]
    assert len(widths) == SANDWICHES
    host, other = [], []
    for number, width in enumerate(widths):
        host += [number * 10_000, number * 10_000 + width]
        other.append(number * 10_000 + 5_000_000 + number)  # a different answer each time
    offset_ns, bound_ns = sandwich(readings(other), readings(host))
    assert (offset_ns, bound_ns) == (5_000_000 + 2 - 30, 31)


def test_the_true_offset_is_within_the_bound_of_a_sandwich_wherever_the_reading_fell() -> None:
    for at_ns in range(101):
        offset_ns, bound_ns = sandwich(readings([7 * S + at_ns] * SANDWICHES), readings([0, 100] * SANDWICHES))
        assert abs(offset_ns - 7 * S) <= bound_ns


def test_a_reading_has_the_host_time_of_the_sandwich_that_it_comes_from() -> None:
    host = [0, 900, 1000, 1400, 2000, 2060, 3000, 3500, 4000, 4700]
    assert read_beside(readings([1, 2, 3, 4, 5]), readings(host)) == (2030, 3, 31)


# --- suspends --------------------------------------------------------------------------------------------------------


def test_a_suspend_is_reported_once_and_with_its_length() -> None:
    machine = Machine(slew_ppm=500)
    watch = SuspendWatch(machine.boottime_ns, machine.host_ns)
    for slept_ns in (5 * MS, 3600 * S, 2 * S):
        machine.run(7 * S)
        assert watch.poll() == 0
        machine.sleep(slept_ns)
        assert abs(watch.poll() - slept_ns) <= 102
        assert watch.poll() == 0


def test_less_than_a_millisecond_is_noise_until_it_adds_up() -> None:
    machine = Machine()
    watch = SuspendWatch(machine.boottime_ns, machine.host_ns)
    machine.sleep(700 * US)
    assert watch.poll() == 0
    machine.sleep(700 * US)
    assert abs(watch.poll() - 1400 * US) <= 102


def test_a_computer_without_boottime_never_sleeps() -> None:
    machine = Machine()
    watch = SuspendWatch(None, machine.host_ns)
    machine.sleep(3600 * S)
    assert watch.poll() == 0


# --- CLOCK_REALTIME --------------------------------------------------------------------------------------------------


def test_realtime_is_host_time_plus_the_offset() -> None:
    machine = Machine()
    offset = realtime_of(machine)
    assert abs(offset.to_realtime(5 * S + machine.host) - 5 * S - machine.realtime) <= offset.bound_ns + 100
    assert abs(offset.offset_ns - machine.realtime_offset_ns) <= offset.bound_ns <= 51


@pytest.mark.parametrize("step_ns", [3600 * S, -7200 * S, 1_500_000, -200 * US])
def test_a_step_of_realtime_is_followed_by_the_next_conversion(step_ns: int) -> None:
    machine = Machine()
    offset = realtime_of(machine)
    machine.run(40 * MS)
    offset.to_realtime(machine.host)
    machine.realtime_offset_ns += step_ns
    machine.run(5 * MS)
    now_ns, truth_ns = machine.host, machine.realtime
    assert abs(offset.to_realtime(now_ns) - truth_ns) <= 51
    assert offset.steps == 1
    assert abs(offset.step_ns - step_ns) <= 102


def test_a_small_step_of_realtime_is_followed_within_100_ms() -> None:
    machine = Machine()
    offset = realtime_of(machine)
    machine.realtime_offset_ns += GLANCE_NS - 10 * US
    machine.run(REFRESH_NS + 1)
    now_ns, truth_ns = machine.host, machine.realtime
    assert abs(offset.to_realtime(now_ns) - truth_ns) <= 51
    assert offset.steps == 1


def test_a_moment_before_a_step_keeps_its_stamp_and_a_later_one_has_the_new_offset() -> None:
    machine = Machine()
    offset = realtime_of(machine)
    moments: list[tuple[int, int]] = []
    for step_ns in (5 * S, -3600 * S, 2 * MS, 1 * S):
        for _ in range(100):
            machine.run(5 * MS)
            moments.append((machine.host, machine.realtime))
            offset.to_realtime(machine.host)
        machine.realtime_offset_ns += step_ns
    assert offset.steps == 3  # the fourth has not been looked at
    for host_ns, realtime_ns in moments:
        assert abs(offset.to_realtime(host_ns) - realtime_ns) <= 102
    assert offset.steps == 4


def test_a_step_lies_in_the_middle_between_the_two_looks_around_it() -> None:
    machine = Machine(reading_ns=0)
    offset = realtime_of(machine)
    machine.run(10 * MS)
    held_at_ns = machine.host
    before_ns = offset.offset_ns
    offset.to_realtime(held_at_ns)
    machine.realtime_offset_ns += S
    machine.run(8 * MS)
    offset.to_realtime(machine.host)
    assert offset.to_realtime(held_at_ns + 4 * MS - 1) == held_at_ns + 4 * MS - 1 + before_ns
    assert offset.to_realtime(held_at_ns + 4 * MS) == held_at_ns + 4 * MS + before_ns + S


def test_a_moment_before_the_first_reading_has_the_first_offset() -> None:
    machine = Machine()
    offset = realtime_of(machine)
    first_ns = offset.offset_ns
    machine.realtime_offset_ns += S
    offset.to_realtime(machine.host)
    assert offset.to_realtime(5 * S) == 5 * S + first_ns


def test_a_suspend_moves_later_stamps_and_no_earlier_one_and_is_no_step() -> None:
    machine = Machine()
    offset = realtime_of(machine)
    machine.run(30 * MS)
    before = machine.host, machine.realtime
    offset.to_realtime(machine.host)
    machine.sleep(8 * 3600 * S)
    machine.run(30 * MS)
    after = machine.host, machine.realtime
    for host_ns, realtime_ns in (after, before):
        assert abs(offset.to_realtime(host_ns) - realtime_ns) <= 51
    assert offset.steps == 0


def test_a_suspend_that_is_poorly_measured_is_no_step() -> None:
    machine = Machine()
    stalls = iter([40 * US] * SANDWICHES)

    def boottime_ns() -> int:
        machine.run(next(stalls, 0))
        return machine.boottime_ns()

    offset = RealtimeOffset(machine.realtime_ns, machine.host_ns, boottime_ns, tick_ns=2)
    machine.sleep(3600 * S)
    machine.run(MS)
    assert not offset.read()
    assert offset.steps == 0


def test_a_step_during_a_suspend_is_told_from_it() -> None:
    machine = Machine()
    offset = realtime_of(machine)
    machine.sleep(3600 * S)
    machine.realtime_offset_ns -= 2 * S
    assert offset.read()
    assert abs(offset.step_ns + 2 * S) <= 500


def test_a_slew_by_ntp_is_no_step_and_leaves_the_offset_as_it_is() -> None:
    machine = Machine()
    offset = realtime_of(machine)
    first_ns = offset.offset_ns
    for slew_ppm in (500, -500, 80_000):
        machine.slew_ppm = slew_ppm
        for _ in range(100):
            machine.run(33 * MS)
            offset.to_realtime(machine.host)
    assert (offset.steps, offset.offset_ns) == (0, first_ns)


def test_a_realtime_that_is_slewed_against_host_time_is_followed_and_not_called_stepped() -> None:
    """macOS: its monotonic clock is not slewed, its realtime is."""
    machine = Machine()
    offset = realtime_of(machine)
    for _ in range(2000):
        machine.run(5 * MS)
        machine.realtime_offset_ns += 2500  # 500 ppm
        assert abs(offset.to_realtime(machine.host) - machine.realtime) <= 51 * US
    assert offset.steps == 0


def test_readings_that_agree_leave_no_noise_in_the_stamps() -> None:
    machine = Machine(reading_ns=30)
    number = 0

    def lopsided_realtime_ns() -> int:
        machine.run(number * 7 % 40)
        return machine.realtime_ns()

    offset = RealtimeOffset(lopsided_realtime_ns, machine.host_ns, machine.boottime_ns, tick_ns=2)
    first_ns = offset.offset_ns
    offsets_ns = set()
    for number in range(1, 200):  # noqa: B007, the clock uses it
        machine.run(33 * MS)
        offsets_ns.add(sandwich(lopsided_realtime_ns, machine.host_ns)[0])
        host_ns = machine.host
        assert offset.to_realtime(host_ns) == host_ns + first_ns
    assert len(offsets_ns) > 10


def test_a_poor_first_reading_gives_way_to_a_good_one() -> None:
    machine = Machine(reading_ns=40 * US)
    offset = realtime_of(machine)
    assert offset.bound_ns > 30 * US
    machine.reading_ns = 50
    machine.run(REFRESH_NS + 1)
    offset.to_realtime(machine.host)
    assert offset.bound_ns <= 51
    assert offset.steps == 0


def test_a_stall_between_two_looks_is_no_step() -> None:
    machine = Machine()
    stalls = iter([30 * MS])
    looked = False

    def stalled_realtime_ns() -> int:
        if looked:
            machine.run(next(stalls, 0))
        return machine.realtime_ns()

    offset = RealtimeOffset(stalled_realtime_ns, machine.host_ns, machine.boottime_ns, tick_ns=2)
    looked = True
    host_ns = machine.host
    assert abs(offset.to_realtime(host_ns) - (host_ns + machine.realtime_offset_ns)) <= 51
    assert offset.steps == 0
    assert next(stalls, None) is None


def test_coarse_ticks_of_a_clock_are_no_steps() -> None:
    machine = Machine()
    tick_ns = 16 * MS
    machine.realtime_offset_ns += 5 * MS  # the clocks do not tick together
    offset = RealtimeOffset(
        lambda: machine.realtime_ns() // tick_ns * tick_ns,
        lambda: machine.host_ns() // tick_ns * tick_ns,
        None,
        tick_ns=2 * tick_ns,
    )
    for _ in range(2000):
        machine.run(7 * MS)
        assert abs(offset.to_realtime(machine.host) - machine.realtime) <= 3 * tick_ns
    assert offset.steps == 0


def test_the_history_of_offsets_is_bounded() -> None:
    machine = Machine()
    offset = realtime_of(machine)
    hosts_ns = []
    for _ in range(KEPT_OFFSETS + 500):
        machine.run(S)
        machine.realtime_offset_ns += S
        offset.to_realtime(machine.host)
        machine.run(100 * MS)
        hosts_ns.append(machine.host)
    assert len(offset._all_offsets_ns) == KEPT_OFFSETS
    newest_ns = offset.offset_ns
    assert abs(offset.to_realtime(hosts_ns[-2]) - hosts_ns[-2] - (newest_ns - S)) <= 102
    oldest_kept_ns = newest_ns - (KEPT_OFFSETS - 1) * S
    assert abs(offset.to_realtime(hosts_ns[0]) - hosts_ns[0] - oldest_kept_ns) <= 102


# --- all together ----------------------------------------------------------------------------------------------------

events = st.lists(
    st.tuples(
        st.sampled_from(["run", "step", "sleep", "slew"]),
        st.integers(min_value=-(10**12), max_value=10**12),
    ),
    max_size=30,
)


@given(events)
def test_steps_slews_and_suspends_reach_ros_stamps_and_never_host_time(happenings: list[tuple[str, int]]) -> None:
    machine = Machine()
    scale = steady_scale(machine.steady_ns, machine.host_ns)
    offset = realtime_of(machine)
    watch = SuspendWatch(machine.boottime_ns, machine.host_ns)
    slept_ns = seen_asleep_ns = 0
    stamps: list[tuple[int, int, int]] = []
    for what, amount in happenings:
        if what == "run":
            machine.run(abs(amount) % (20 * S))
        elif what == "step":
            machine.realtime_offset_ns += amount
        elif what == "sleep":
            machine.sleep(abs(amount))
            slept_ns += abs(amount)
        else:
            machine.slew_ppm = amount % 1001 - 500
        machine.run(6 * MS)  # more than what passed between the last look and the event
        host_ns, realtime_ns = machine.host, machine.realtime
        lsl_ns = scale.to_host(scale.to_steady(host_ns))
        assert abs(lsl_ns - host_ns) <= 2
        offset.read()
        ros_ns = offset.to_realtime(host_ns)
        seen_asleep_ns += watch.poll()
        # A step of less than what a slew could have done since the last reading counts as one: from the reading on.
        assert abs(ros_ns - realtime_ns) <= 200 or abs(amount) <= 6 * US
        stamps.append((host_ns, lsl_ns, ros_ns))
        machine.run(5 * MS)
        offset.to_realtime(machine.host)
    assert seen_asleep_ns - slept_ns <= 102 * len(happenings)
    assert slept_ns - seen_asleep_ns <= 2 * MS + 102 * len(happenings)
    for host_ns, lsl_ns, ros_ns in stamps:
        assert abs(scale.to_host(scale.to_steady(host_ns)) - lsl_ns) <= 2
        assert offset.to_realtime(host_ns) == ros_ns


# --- the clocks of this computer -------------------------------------------------------------------------------------


def test_the_realtime_offset_agrees_with_the_clocks_of_this_computer() -> None:
    offset = RealtimeOffset()
    for _ in range(1000):
        before_ns = time.time_ns()
        stamp_ns = offset.to_realtime(monotonic_ns())
        after_ns = time.time_ns()
        assert before_ns - SCHEDULING_NS <= stamp_ns <= after_ns + SCHEDULING_NS


@on_linux
def test_this_computer_does_not_sleep_during_a_test() -> None:
    assert BOOTTIME_NS is not None
    watch = SuspendWatch()
    assert watch.poll() == 0
    direct_ns = BOOTTIME_NS() - time.monotonic_ns()
    assert abs(sandwich(BOOTTIME_NS)[0] - direct_ns) <= SCHEDULING_NS


@on_linux
def test_the_steady_scale_agrees_with_the_clocks_of_this_computer() -> None:
    scale = steady_scale()
    deadline_ns = monotonic_ns() + 350 * MS
    last_ns = 0
    while (host_ns := monotonic_ns()) < deadline_ns:
        before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        steady_ns = scale.to_steady(monotonic_ns())
        after_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        assert before_ns - scale.bound_ns - SCHEDULING_NS <= steady_ns <= after_ns + scale.bound_ns + SCHEDULING_NS
        assert last_ns <= steady_ns
        last_ns = steady_ns
        assert abs(scale.to_host(scale.to_steady(host_ns)) - host_ns) <= 2
    reading = read_beside(lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW))
    assert abs(scale.to_steady(reading.host_ns) - reading.other_ns) <= scale.bound_ns + SCHEDULING_NS
