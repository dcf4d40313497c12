"""The topics of what eyes do: fixations, in the scene image or on a surface, and blinks. All need pupil_msgs."""

from __future__ import annotations

import math
from typing import Any, Final

from std_msgs.msg import Header

from bridge.clock import Mapped
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.stamps import write
from bridge.streams import BlinkLayout, FixationLayout, Sample, StreamDescriptor

MM: Final = 1e-3
MS: Final = 1e-3
METHODS: Final = {2.0: "2d gaze", 3.0: "3d gaze"}
ID_END: Final = 2.0**64


class FixationTopic:
    """fixations, fixations/live or, with the name ``slug`` of a surface, surfaces/<slug>/fixations."""

    def __init__(self, desk: Desk, stream: StreamDescriptor, layout: FixationLayout, slug: str = "") -> None:
        device = stream.device.name
        topic = "fixations/live" if layout.live else "fixations"
        if layout.surface:
            topic = "surfaces/{surface}/fixations"
        self._publisher = desk.publisher(device, topic, surface=slug)
        self.publishers: list[Any] = [self._publisher]
        self._layout = layout
        self._stamps = desk.stamps
        # What this stream never has is NaN once for all.
        self._message = message = desk.type("pupil_msgs/msg/Fixation")(
            header=Header(frame_id=desk.frame(topic, device, surface=slug)),
            finished=not layout.live,
            pixel_x=math.nan,
            pixel_y=math.nan,
        )
        message.point.x = message.point.y = message.point.z = math.nan

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        if not self._publisher.get_subscription_count():
            return
        values, layout, message = sample.payload, self._layout, self._message
        assert isinstance(values, tuple)
        write(message.header.stamp, self._stamps.of(sample, host_ns))
        self._stamps.quality(message.quality, sample, mapped)
        number = values[layout.id_index]
        message.id = int(number) if 0.0 <= number < ID_END else 0  # NaN, too
        if layout.method_index is not None:
            message.method = METHODS.get(values[layout.method_index], "")
        message.duration = values[layout.duration_index] * MS
        message.dispersion = math.radians(values[layout.dispersion_index])
        message.confidence = values[layout.confidence_index]
        self._place(values[layout.x_index], values[layout.y_index])
        if layout.point_index is not None:
            x, y, z = values[layout.point_index : layout.point_index + 3]
            message.point.x, message.point.y, message.point.z = x * MM, y * MM, z * MM
        self._publisher.publish(message)

    def _place(self, x: float, y: float) -> None:
        """On a surface there are no pixels."""
        layout, message = self._layout, self._message
        if layout.surface:
            message.normalized_x, message.normalized_y = x, 1.0 - y
            return
        if layout.normalized_bottom_left:
            x, y = x * layout.width_px, (1.0 - y) * layout.height_px
        message.pixel_x, message.pixel_y = x, y
        message.normalized_x, message.normalized_y = x / layout.width_px, y / layout.height_px


class BlinkTopic:
    """blinks."""

    def __init__(self, desk: Desk, stream: StreamDescriptor, layout: BlinkLayout) -> None:
        self._publisher = desk.publisher(stream.device.name, "blinks")
        self.publishers: list[Any] = [self._publisher]
        self._layout = layout
        self._stamps = desk.stamps
        self._message = desk.type("pupil_msgs/msg/Blink")()

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        if not self._publisher.get_subscription_count():
            return
        values, message = sample.payload, self._message
        assert isinstance(values, tuple)
        write(message.header.stamp, self._stamps.of(sample, host_ns))
        self._stamps.quality(message.quality, sample, mapped)
        message.duration = values[self._layout.duration_index]
        message.confidence = values[self._layout.confidence_index]
        self._publisher.publish(message)
