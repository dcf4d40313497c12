"""The host's clocks, read through clocks that the test moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from bridge.clock.host import REFRESH_NS, SANDWICHES, RealtimeOffset, monotonic_ns, sandwich

MS, S = 1_000_000, 1_000_000_000


def readings(values: Iterable[int]) -> Callable[[], int]:
    """A clock that shows these values, one a reading."""
    return iter(values).__next__


class Machine:
    """Two clocks of one host: each reading takes 100 ns, and the realtime one can be stepped."""

    def __init__(self) -> None:
        self.now_ns = 1000 * S
        self.offset_ns = 1_700_000_000 * S

    def host_ns(self) -> int:
        self.now_ns += 100
        return self.now_ns

    def realtime_ns(self) -> int:
        self.now_ns += 100
        return self.now_ns + self.offset_ns


def test_host_time_is_the_monotonic_clock() -> None:
    before = time.monotonic_ns()
    assert before <= monotonic_ns() <= time.monotonic_ns()


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


def test_realtime_is_host_time_plus_the_offset() -> None:
    machine = Machine()
    offset = RealtimeOffset(machine.realtime_ns, machine.host_ns)
    assert abs(offset.to_realtime(5 * S) - (5 * S + machine.offset_ns)) <= 101


def test_a_step_of_realtime_is_followed_within_100_ms() -> None:
    machine = Machine()
    offset = RealtimeOffset(machine.realtime_ns, machine.host_ns)
    before = offset.to_realtime(5 * S)
    for step_ns in (3600 * S, -7200 * S, 1_500_000):
        machine.offset_ns += step_ns
        machine.now_ns += REFRESH_NS
        after = offset.to_realtime(5 * S)
        assert abs(after - before - step_ns) <= 202
        before = after


def test_between_two_readings_the_offset_is_constant() -> None:
    machine = Machine()
    offset = RealtimeOffset(machine.realtime_ns, machine.host_ns)
    started_ns = machine.now_ns
    first = offset.to_realtime(5 * S)
    machine.offset_ns += 77 * MS
    while machine.now_ns < started_ns + REFRESH_NS - 1000:
        assert offset.to_realtime(5 * S) == first
        machine.now_ns += 10 * MS


def test_a_step_of_realtime_never_touches_host_time() -> None:
    machine = Machine()
    offset = RealtimeOffset(machine.realtime_ns, machine.host_ns)
    hosts_ns = []
    for number in range(50):
        machine.offset_ns += (-1) ** number * number * S
        machine.now_ns += 70 * MS
        offset.to_realtime(machine.now_ns)
        hosts_ns.append(machine.host_ns())
    assert hosts_ns == sorted(hosts_ns)
    assert hosts_ns[-1] - hosts_ns[0] < 49 * 71 * MS
