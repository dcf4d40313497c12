"""The IMU's topic in SI units, as REP-145 has it."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from bridge.sinks.ros2.imu import ImuTopic
from bridge.streams import ImuLayout, Sample, StreamDescriptor, StreamKind
from tests.sinks.ros2.lab import DEVICE, MAPPED, Notes, now_ns, quiet_lark, realtime_ns, stamp_ns

pytestmark = quiet_lark

LAYOUT = ImuLayout(acceleration_index=3, angular_velocity_index=0)
IMU = StreamDescriptor(DEVICE, "imu", StreamKind.IMU, "IMU", "IMU", layout=LAYOUT)


def test_g_become_metres_a_second_squared_and_degrees_radians(desk: Notes) -> None:
    topic, host_ns = ImuTopic(desk, IMU, LAYOUT), now_ns()
    topic.publish(Sample(IMU, 5, host_ns, (180.0, -90.0, 0.5, 0.0, -1.0, 2.0)), MAPPED, host_ns)
    (found,) = desk["imu/data_raw"]
    turn, push = found.angular_velocity, found.linear_acceleration
    assert (turn.x, turn.y, turn.z) == pytest.approx((math.pi, -math.pi / 2, 0.5 * math.pi / 180))
    assert (push.x, push.y, push.z) == pytest.approx((0.0, -9.80665, 19.6133))
    assert found.header.frame_id == "tracker_imu_link"
    assert stamp_ns(found) == pytest.approx(realtime_ns(host_ns), abs=10**6)


def test_that_there_is_no_orientation_and_no_known_covariance_is_said_as_rep_145_wants_it(desk: Notes) -> None:
    ImuTopic(desk, IMU, LAYOUT).publish(Sample(IMU, 5, 0, (0.0,) * 6), MAPPED, now_ns())
    (found,) = desk["imu/data_raw"]
    assert found.orientation_covariance[0] == -1.0
    assert list(found.angular_velocity_covariance) == list(found.linear_acceleration_covariance) == [0.0] * 9


def test_nothing_is_filled_in_without_a_subscriber(desk: Notes) -> None:
    topic = ImuTopic(desk, IMU, LAYOUT)
    desk.nobody_but()
    topic.publish(Sample(IMU, 5, 0, ()), MAPPED, 0)
    assert desk["imu/data_raw"] == []
