"""An event stream's topics. Events are rare: each has messages of its own."""

from __future__ import annotations

from typing import Any, Final

from sensor_msgs.msg import TimeReference

from bridge.clock import Mapped
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.stamps import ros_time
from bridge.streams import Sample, StreamDescriptor

NOTIFICATIONS: Final = "notifications"


class EventTopics:
    """events, and events_detail where pupil_msgs is there; notifications for the stream of that name."""

    def __init__(self, desk: Desk, stream: StreamDescriptor) -> None:
        self._desk = desk
        device, topic = stream.device.name, NOTIFICATIONS if stream.name == NOTIFICATIONS else "events"
        self._plain = desk.publisher(device, topic)
        self.publishers: list[Any] = [self._plain]
        self._detail: Any = None
        if topic == "events" and desk.has("events_detail"):
            self._detail = desk.publisher(device, "events_detail")
            self.publishers.append(self._detail)

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        plain = self._plain.get_subscription_count()
        detailed = self._detail is not None and self._detail.get_subscription_count()
        if not (plain or detailed):
            return
        stamps = self._desk.stamps
        message = TimeReference()
        message.header.stamp = ros_time(stamps.of(sample, host_ns))
        message.time_ref = ros_time(sample.device_ns)
        message.source = str(sample.payload)
        if plain:
            self._plain.publish(message)
        if detailed:
            detail = self._desk.type("pupil_msgs/msg/Event")(header=message.header, text=message.source)
            stamps.quality(detail.quality, sample, mapped)
            self._detail.publish(detail)
