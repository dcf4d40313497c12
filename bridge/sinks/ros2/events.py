"""An event stream's topics. Events are rare: each has messages of its own."""

from __future__ import annotations

from typing import Any

from sensor_msgs.msg import TimeReference

from bridge.clock import Mapped
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.stamps import ros_time
from bridge.streams import Sample, StreamDescriptor


class EventTopics:
    """events, and events_detail where pupil_msgs is there."""

    def __init__(self, desk: Desk, stream: StreamDescriptor) -> None:
        self._desk = desk
        self._plain = desk.publisher(stream.device.name, "events")
        self._detail = desk.publisher(stream.device.name, "events_detail") if desk.has("events_detail") else None
        self.publishers: list[Any] = [self._plain, *([self._detail] if self._detail else [])]

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        stamps = self._desk.stamps
        message = TimeReference()
        message.header.stamp = ros_time(stamps.of(sample, host_ns))
        message.time_ref = ros_time(sample.device_ns)
        message.source = str(sample.payload)
        self._plain.publish(message)
        if self._detail is not None:
            detail = self._desk.type("pupil_msgs/msg/Event")(header=message.header, text=message.source)
            stamps.quality(detail.quality, sample, mapped)
            self._detail.publish(detail)
