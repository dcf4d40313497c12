"""Which time a message has in its header, by mode, and what is said of it."""

from __future__ import annotations

import math
import time

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from builtin_interfaces.msg import Time

from bridge.clock import ClockState, Mapped
from bridge.clock.host import RealtimeOffset
from bridge.sinks.ros2.stamps import Stamps, ros_time, write
from bridge.streams import Sample
from tests.sinks.ros2.lab import GAZE, message, quiet_lark

pytestmark = quiet_lark

WALL_NS = 1_700_000_000 * 10**9


def stamps(mode: str) -> Stamps:
    """CLOCK_REALTIME is host time and WALL_NS."""
    made = Stamps(mode)
    made.realtime = RealtimeOffset(lambda: time.monotonic_ns() + WALL_NS, boottime_ns=None)
    return made


@pytest.mark.parametrize("mode", ["device-corrected", "device-raw", "arrival"])
def test_a_stamp_is_the_mapped_time_the_devices_own_or_that_of_arrival(mode: str) -> None:
    host_ns = time.monotonic_ns()
    sample = Sample(GAZE, 123_456_789, host_ns + 70_000_000, (1.0, 2.0))
    found = stamps(mode).of(sample, host_ns)
    if mode == "device-raw":
        assert found == 123_456_789
    else:
        late_ns = 70_000_000 if mode == "arrival" else 0
        assert found == pytest.approx(host_ns + WALL_NS + late_ns, abs=100_000)


def test_another_mode_holds_from_the_next_sample_on() -> None:
    made = stamps("device-corrected")
    sample = Sample(GAZE, 5, time.monotonic_ns(), (1.0, 2.0))
    assert made.of(sample, time.monotonic_ns()) > WALL_NS
    made.mode = "device-raw"
    assert made.of(sample, time.monotonic_ns()) == 5


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (0, (0, 0)),
        (1_500_000_001, (1, 500_000_001)),
        (-1, (-1, 999_999_999)),
        ((2**31 - 1) * 10**9 + 999_999_999, (2**31 - 1, 999_999_999)),
        (-(2**31) * 10**9, (-(2**31), 0)),
        (2**31 * 10**9, (0, 0)),
        (-(2**31) * 10**9 - 1, (0, 0)),
        (2**63 - 1, (0, 0)),
        (-(2**63), (0, 0)),
    ],
)
def test_a_time_that_does_not_fit_is_zero_and_every_other_one_exact(ns: int, expected: tuple[int, int]) -> None:
    used = Time(sec=77, nanosec=7)
    write(used, ns)
    for found in (used, ros_time(ns)):
        assert (found.sec, found.nanosec) == expected


@pytest.mark.parametrize("state", list(ClockState))
def test_a_corrected_stamp_has_the_clocks_state_bound_and_epoch(state: ClockState) -> None:
    quality = message("pupil_msgs/StampQuality")()
    mapped = Mapped(0, 2_000_000, 500_000, state, 3)
    stamps("device-corrected").quality(quality, Sample(GAZE, -5, 0, (1.0,)), mapped)
    assert (quality.state, quality.epoch, quality.device_time) == (int(state), 3, -5)
    assert (quality.bound, quality.precision) == pytest.approx((0.002, 0.0005))


def test_the_states_of_the_message_are_those_of_the_clock() -> None:
    kind = message("pupil_msgs/StampQuality")
    assert {state.name: getattr(kind, state.name) for state in ClockState} == {s.name: int(s) for s in ClockState}


@pytest.mark.parametrize("mode", ["device-raw", "arrival"])
def test_of_other_stamps_no_bound_is_claimed(mode: str) -> None:
    kind = message("pupil_msgs/StampQuality")
    quality = kind(bound=1.0, precision=1.0)
    stamps(mode).quality(quality, Sample(GAZE, 5, 0, (1.0,)), Mapped(0, 1, 1, ClockState.LOCKED, 3))
    assert quality.state == kind.RAW
    assert math.isnan(quality.bound)
    assert math.isnan(quality.precision)
    assert (quality.epoch, quality.device_time) == (3, 5)
