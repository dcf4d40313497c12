"""The pupils' topic: which eye, which method, metres and the top left."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from bridge.sinks.ros2.pupil import PupilTopic
from bridge.sinks.ros2.stage import has_form
from bridge.streams import PupilLayout, Sample, StreamDescriptor, StreamKind
from tests.sinks.ros2.lab import DEVICE, MAPPED, Notes, message, now_ns, quiet_lark, realtime_ns, stamp_ns

pytestmark = quiet_lark

VALUES = (0.25, 0.75, 0.9, 40.0, 3.5, 0.8, 1.0, 2.0, 30.0, 0.0, 0.6, -0.8)


def layout(eye: str = "left", method: str = "3d") -> PupilLayout:
    return PupilLayout(eye, "eye1" if eye == "left" else "eye0", method, 0, 1, 2, 3, 4, 5, 6, 9)


def stream(of: PupilLayout) -> StreamDescriptor:
    return StreamDescriptor(DEVICE, "pupil", StreamKind.PUPIL, "Pupil", "Pupillometry", layout=of)


@pytest.mark.parametrize(("eye", "camera"), [("left", "eye1"), ("right", "eye0")])
def test_a_pupil_is_in_metres_with_y_down_in_the_frame_of_its_eye_camera(desk: Notes, eye: str, camera: str) -> None:
    kind = message("pupil_msgs/Pupil")
    made = stream(layout(eye))
    topic, host_ns = PupilTopic(desk, made, layout(eye)), now_ns()
    topic.publish(Sample(made, 5, host_ns, VALUES), MAPPED, host_ns)
    (found,) = desk["pupil"]
    assert found.header.frame_id == f"tracker_{camera}_camera_optical_frame"
    assert stamp_ns(found) == pytest.approx(realtime_ns(host_ns), abs=10**6)
    assert (found.quality.device_time, found.quality.epoch) == (5, 3)
    assert (found.eye, found.method) == (kind.LEFT if eye == "left" else kind.RIGHT, "3d")
    assert (found.normalized_x, found.normalized_y) == pytest.approx((0.25, 0.25))
    assert (found.confidence, found.model_confidence) == (0.9, 0.8)
    assert (found.diameter, found.diameter_px) == pytest.approx((0.0035, 40.0))
    center, normal = found.circle_center, found.circle_normal
    assert (center.x, center.y, center.z) == pytest.approx((0.001, 0.002, 0.03))
    assert (normal.x, normal.y, normal.z) == (0.0, 0.6, -0.8)


def test_of_a_pupil_that_was_found_in_two_dimensions_the_third_is_not_a_number(desk: Notes) -> None:
    message("pupil_msgs/Pupil")
    of = layout(method="2d")
    made = stream(of)
    PupilTopic(desk, made, of).publish(Sample(made, 5, 0, (*VALUES[:4], *[math.nan] * 8)), MAPPED, now_ns())
    (found,) = desk["pupil"]
    assert found.method == "2d"
    assert all(math.isnan(x) for x in (found.diameter, found.model_confidence, found.circle_center.z))


def test_nothing_is_filled_in_without_a_subscriber(desk: Notes) -> None:
    message("pupil_msgs/Pupil")
    made = stream(layout())
    topic = PupilTopic(desk, made, layout())
    desk.nobody_but()
    topic.publish(Sample(made, 5, 0, ()), MAPPED, 0)  # of which nothing could be filled in
    assert desk["pupil"] == []


def test_without_the_message_there_is_no_form_for_pupils(desk: Notes) -> None:
    desk.packages = frozenset()
    assert not has_form(stream(layout()), desk)
