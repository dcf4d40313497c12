"""A device's own topics: what its clock is, what happened to it, what it is and where its camera is."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from bridge.clock import ClockState
from bridge.pipeline import ClockEvent
from bridge.sinks.ros2.device import DeviceTopics, StaticTransforms
from tests.sinks.ros2.lab import DEVICE, STATUS, Notes, message, now_ns, quiet_lark, realtime_ns, stamp_ns

pytestmark = quiet_lark

LOCKED = msgspec.structs.replace(
    STATUS,
    host_ns=5_000_000_000,
    device_ns=1_500_000_001,
    offset_ns=3_499_999_999,
    bound_ns=2_000_000,
    precision_ns=500_000,
    rtt_min_ns=1_000_000,
    rtt_median_ns=1_500_000,
    drift_ppm=-12.5,
    age_ns=700_000_000,
    slew_ns=-250_000,
    state=ClockState.LOCKED,
    epoch=3,
    pings_accepted=17,
    samples_dropped=4,
)


def status(**changes: Any) -> dict[str, Any]:
    return {
        "connected": True,
        "recording": None,
        "streams": [{"name": "gaze"}, {"name": "event"}],
        "functions": ["event", "record"],
        **changes,
    }


# --- time references -------------------------------------------------------------------------------------------------


def test_a_time_reference_pairs_this_computers_time_with_the_devices(desk: Notes) -> None:
    DeviceTopics(desk, DEVICE).clock_status(LOCKED)
    (found,) = desk["time_reference"]
    assert (found.time_ref.sec, found.time_ref.nanosec, found.source) == (1, 500_000_001, "tracker")
    assert stamp_ns(found) == pytest.approx(realtime_ns(5_000_000_000), abs=10**6)


def test_there_is_none_while_the_devices_time_is_not_known(desk: Notes) -> None:
    DeviceTopics(desk, DEVICE).clock_status(STATUS)
    assert desk["time_reference"] == []


def test_the_beginning_of_an_epoch_is_a_time_reference_that_says_why(desk: Notes) -> None:
    made, host_ns = DeviceTopics(desk, DEVICE), now_ns() - 2 * 10**9
    made.clock_event(ClockEvent(host_ns, 1_500_000_001, 3, "step -0.200000 s"))
    made.clock_event(ClockEvent(host_ns, None, 4, "restart"))
    step, restart = desk["clock_events"]
    assert (step.source, restart.source) == ("epoch 3 step -0.200000 s", "epoch 4 restart")
    assert (step.time_ref.sec, step.time_ref.nanosec) == (1, 500_000_001)
    assert (restart.time_ref.sec, restart.time_ref.nanosec) == (0, 0)
    assert stamp_ns(step) == pytest.approx(realtime_ns(host_ns), abs=10**6)


# --- clock_status ----------------------------------------------------------------------------------------------------


def test_clock_status_has_seconds_and_the_offset_in_nanoseconds(desk: Notes) -> None:
    message("pupil_msgs/ClockStatus")
    DeviceTopics(desk, DEVICE).clock_status(LOCKED)
    (found,) = desk["clock_status"]
    quality = found.quality
    assert (quality.state, quality.epoch, quality.device_time) == (quality.LOCKED, 3, 1_500_000_001)
    assert (quality.bound, quality.precision) == pytest.approx((0.002, 0.0005))
    assert found.offset == 3_499_999_999
    assert (found.slew, found.rtt_min, found.rtt_median, found.age) == pytest.approx((-0.00025, 0.001, 0.0015, 0.7))
    assert (found.drift_ppm, found.pings_accepted, found.samples_dropped) == (-12.5, 17, 4)
    assert stamp_ns(found) == pytest.approx(realtime_ns(5_000_000_000), abs=10**6)


def test_what_is_not_known_of_a_clock_is_not_a_number_also_after_it_was_known(desk: Notes) -> None:
    message("pupil_msgs/ClockStatus")
    made = DeviceTopics(desk, DEVICE)
    made.clock_status(LOCKED)
    made.clock_status(STATUS)
    found = desk["clock_status"][1]
    values = [found.quality.bound, found.quality.precision, found.rtt_min, found.rtt_median, found.age]
    assert all(math.isnan(value) for value in values)
    assert (found.quality.state, found.offset, found.quality.device_time) == (found.quality.UNLOCKED, 0, 0)


@pytest.mark.parametrize("far_ns", [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**70])
def test_any_time_that_a_device_may_have_can_be_told(desk: Notes, far_ns: int) -> None:
    """An offset to a device at the end of 64 bits is beyond them; no device may end the publishing by it."""
    far = msgspec.structs.replace(
        LOCKED, device_ns=far_ns, offset_ns=-far_ns, pings_accepted=2**40, samples_dropped=2**40
    )
    DeviceTopics(desk, DEVICE).clock_status(far)
    assert len(desk["time_reference"]) == 1
    if desk.has("clock_status"):
        (found,) = desk["clock_status"]
        assert found.pings_accepted == found.samples_dropped == 2**32 - 1
        if -(2**63) <= far_ns < 2**63:
            assert found.quality.device_time == far_ns


# --- device_info -----------------------------------------------------------------------------------------------------


def test_device_info_says_what_the_device_is_has_and_can(desk: Notes) -> None:
    kind = message("pupil_msgs/DeviceInfo")
    made, host_ns = DeviceTopics(desk, DEVICE), now_ns()
    made.status(status(), host_ns)
    (found,) = desk["device_info"]
    assert (found.name, found.kind, found.manufacturer, found.model, found.transport) == (
        *("tracker", "test", "Somebody", "T1", "test"),
    )
    assert (found.connected, found.recording) == (True, kind.RECORDING_UNKNOWN)
    assert (list(found.streams), list(found.functions)) == (["gaze", "event"], ["event", "record"])
    assert stamp_ns(found) == pytest.approx(realtime_ns(host_ns), abs=10**6)


def test_device_info_is_published_when_it_changes_and_only_then(desk: Notes) -> None:
    kind = message("pupil_msgs/DeviceInfo")
    made = DeviceTopics(desk, DEVICE)
    for changes in ({}, {}, {"recording": True}, {"recording": True}, {"connected": False}, {"functions": []}):
        made.status(status(**changes), now_ns())
    found = desk["device_info"]
    assert [each.recording for each in found] == [0, kind.RECORDING, 0, 0]
    assert [each.connected for each in found] == [True, True, False, True]
    assert list(found[-1].functions) == []


def test_without_the_messages_the_standard_topics_are_there_and_nothing_fails(desk: Notes) -> None:
    desk.packages = frozenset()
    made = DeviceTopics(desk, DEVICE)
    made.clock_status(LOCKED)
    made.status(status(), now_ns())
    assert set(desk.papers) == {"time_reference", "clock_events"}


# --- /tf_static ------------------------------------------------------------------------------------------------------


def rotated(q: Any, v: tuple[float, float, float]) -> tuple[float, ...]:
    """A vector turned by a quaternion, by the matrix of the textbook."""
    x, y, z, w = q.x, q.y, q.z, q.w
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return tuple(sum(a * b for a, b in zip(row, v, strict=True)) for row in rows)


def test_every_scene_camera_has_its_place_and_the_last_message_has_them_all(desk: Notes) -> None:
    message("tf2_msgs/TFMessage")
    made = StaticTransforms(desk)
    made.tell(["a"])
    made.tell(["a", "b"])
    first, last = desk["/tf_static"]
    assert len(first.transforms) == 1
    frames = [(each.header.frame_id, each.child_frame_id) for each in last.transforms]
    assert frames == [(f"{name}_link", f"{name}_scene_camera_optical_frame") for name in "ab"]


def test_the_optical_frame_looks_along_x_of_the_body_with_y_down(desk: Notes) -> None:
    """REP-103: a body's x is forward, y left, z up; a camera's z is forward, x right, y down."""
    message("tf2_msgs/TFMessage")
    StaticTransforms(desk).tell(["a"])
    turn = desk["/tf_static"][0].transforms[0].transform.rotation
    assert rotated(turn, (0.0, 0.0, 1.0)) == pytest.approx((1.0, 0.0, 0.0))
    assert rotated(turn, (1.0, 0.0, 0.0)) == pytest.approx((0.0, -1.0, 0.0))
    assert rotated(turn, (0.0, 1.0, 0.0)) == pytest.approx((0.0, 0.0, -1.0))


@pytest.mark.parametrize("why", ["switched off", "not installed"])
def test_without_transforms_there_is_no_topic_for_them(plain_node: Any, why: str) -> None:
    desk = Notes(plain_node, tf=why != "switched off")
    if why == "not installed":
        desk.packages = frozenset()
    StaticTransforms(desk).tell(["a"])
    assert desk.papers == {}
