"""An IMU stream's topic, in SI units."""

from __future__ import annotations

import math
from typing import Any, Final

from sensor_msgs.msg import Imu
from std_msgs.msg import Header

from bridge.clock import Mapped
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.stamps import write
from bridge.streams import ImuLayout, Sample, StreamDescriptor

STANDARD_GRAVITY: Final = 9.80665  # m/s^2
NO_ORIENTATION: Final = -1.0  # REP-145, in the first element of its covariance


class ImuTopic:
    """imu/data_raw: acceleration and angular velocity, without an orientation; their covariances are not known."""

    def __init__(self, desk: Desk, stream: StreamDescriptor, layout: ImuLayout) -> None:
        device = stream.device.name
        self._publisher = desk.publisher(device, "imu/data_raw")
        self.publishers: list[Any] = [self._publisher]
        self._stamps = desk.stamps
        self._layout = layout
        self._message = Imu(header=Header(frame_id=desk.frame("imu/data_raw", device)))
        self._message.orientation_covariance[0] = NO_ORIENTATION

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        if not self._publisher.get_subscription_count():
            return
        values, message = sample.payload, self._message
        assert isinstance(values, tuple)
        write(message.header.stamp, self._stamps.of(sample, host_ns))
        for vector, index, scale in (
            (message.linear_acceleration, self._layout.acceleration_index, STANDARD_GRAVITY),
            (message.angular_velocity, self._layout.angular_velocity_index, math.pi / 180.0),
        ):
            x, y, z = values[index : index + 3]
            vector.x, vector.y, vector.z = x * scale, y * scale, z * scale
        self._publisher.publish(message)
