"""The topic of a pupil stream. All streams of a device share it: the message names eye and method."""

from __future__ import annotations

from typing import Any, Final

from std_msgs.msg import Header

from bridge.clock import Mapped
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.stamps import write
from bridge.streams import PupilLayout, Sample, StreamDescriptor

MM: Final = 1e-3


class PupilTopic:
    """Needs pupil_msgs."""

    def __init__(self, desk: Desk, stream: StreamDescriptor, layout: PupilLayout) -> None:
        device = stream.device.name
        kind = desk.type("pupil_msgs/msg/Pupil")
        self._publisher = desk.publisher(device, "pupil")
        self.publishers: list[Any] = [self._publisher]
        self._layout = layout
        self._stamps = desk.stamps
        self._message = kind(
            header=Header(frame_id=desk.frame("pupil", device, camera=layout.camera)),
            eye=kind.LEFT if layout.eye == "left" else kind.RIGHT,
            method=layout.method,
        )

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        if not self._publisher.get_subscription_count():
            return
        values, layout, message = sample.payload, self._layout, self._message
        assert isinstance(values, tuple)
        write(message.header.stamp, self._stamps.of(sample, host_ns))
        self._stamps.quality(message.quality, sample, mapped)
        message.confidence = values[layout.confidence_index]
        message.normalized_x = values[layout.x_index]
        message.normalized_y = 1.0 - values[layout.y_index]
        message.diameter_px = values[layout.diameter_px_index]
        message.diameter = values[layout.diameter_mm_index] * MM
        message.model_confidence = values[layout.model_confidence_index]
        for vector, index, scale in (
            (message.circle_center, layout.center_index, MM),
            (message.circle_normal, layout.normal_index, 1.0),
        ):
            x, y, z = values[index : index + 3]
            vector.x, vector.y, vector.z = x * scale, y * scale, z * scale
        self._publisher.publish(message)
