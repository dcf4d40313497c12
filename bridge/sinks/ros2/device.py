"""A device's own topics: its clock against this computer's, what happened to it, what the device is."""

from __future__ import annotations

from math import nan
from typing import Any, Final

from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import TimeReference

from bridge.pipeline import ClockEvent, ClockStatus
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.stamps import int64, ros_time
from bridge.streams import DeviceDescriptor

RECORDING: Final = {None: 0, False: 1, True: 2}  # pupil_msgs/DeviceInfo
# From a body's frame (x forward, y left, z up) to an optical one (x right, y down, z forward).
OPTICAL: Final = (-0.5, 0.5, -0.5, 0.5)


class DeviceTopics:
    """Of one device, for as long as the sink has it and the node is configured."""

    def __init__(self, desk: Desk, device: DeviceDescriptor) -> None:
        self._desk = desk
        self._device = device
        self._time_reference = desk.publisher(device.name, "time_reference")
        self._clock_events = desk.publisher(device.name, "clock_events")
        self.publishers: list[Any] = [self._time_reference, self._clock_events]
        self._clock_status: Any = None
        self._info: Any = None
        self._told: Any = None
        if desk.has("clock_status"):
            self._clock_status = desk.publisher(device.name, "clock_status")
            self._status_message = desk.type("pupil_msgs/msg/ClockStatus")()
            self._info = desk.publisher(device.name, "device_info")
            self.publishers += [self._clock_status, self._info]

    def clock_event(self, event: ClockEvent) -> None:
        message = TimeReference()
        message.header.stamp = self._desk.stamps.at(event.host_ns)
        if event.device_ns is not None:
            message.time_ref = ros_time(event.device_ns)
        message.source = event.text
        self._clock_events.publish(message)

    def clock_status(self, status: ClockStatus) -> None:
        stamp = self._desk.stamps.at(status.host_ns)
        if status.device_ns is not None:
            reference = TimeReference()
            reference.header.stamp = stamp
            reference.time_ref = ros_time(status.device_ns)
            reference.source = self._device.name
            self._time_reference.publish(reference)
        if self._clock_status is None:
            return
        message = self._status_message
        message.header.stamp = stamp
        quality = message.quality
        quality.state, quality.epoch = int(status.state), status.epoch
        quality.bound, quality.precision = _seconds(status.bound_ns), _seconds(status.precision_ns)
        quality.device_time = int64(status.device_ns)
        message.offset = int64(status.offset_ns)
        message.slew = status.slew_ns * 1e-9
        message.rtt_min, message.rtt_median = _seconds(status.rtt_min_ns), _seconds(status.rtt_median_ns)
        message.drift_ppm, message.age = status.drift_ppm, _seconds(status.age_ns)
        message.pings_accepted = min(status.pings_accepted, 2**32 - 1)
        message.samples_dropped = min(status.samples_dropped, 2**32 - 1)
        self._clock_status.publish(message)

    def status(self, status: dict[str, Any], host_ns: int) -> None:
        """Publishes what the device is, if that has changed. ``status``: of the device, as `pupil-bridge status`."""
        if self._info is None:
            return
        streams, functions = [stream["name"] for stream in status["streams"]], status["functions"]
        told = (status["connected"], status["recording"], streams, functions)
        if told == self._told:
            return
        self._told = told
        device = self._device
        message = self._desk.type("pupil_msgs/msg/DeviceInfo")(
            name=device.name,
            kind=device.kind,
            manufacturer=device.manufacturer,
            model=device.model,
            transport=device.transport,
            connected=status["connected"],
            recording=RECORDING[status["recording"]],
            streams=streams,
            functions=functions,
        )
        message.header.stamp = self._desk.stamps.at(host_ns)
        self._info.publish(message)


class StaticTransforms:
    """/tf_static of all devices. A reader that comes late gets the last message alone, so each has them all."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._publisher: Any = None
        self.publishers: list[Any] = []

    def tell(self, devices: list[str]) -> None:
        """Where the scene cameras are: at the origin of ``<device>_link``, turned into the optical convention."""
        desk = self._desk
        if not (desk.settings.tf and desk.has("/tf_static")):
            return
        if self._publisher is None:
            self._publisher = desk.publisher("", "/tf_static")
            self.publishers.append(self._publisher)
        transforms = []
        for device in devices:
            transform = TransformStamped(child_frame_id=desk.frame("gaze/pixel", device))
            transform.header.frame_id = desk.settings.frame_prefix + desk_link(device)
            turn = transform.transform.rotation
            turn.x, turn.y, turn.z, turn.w = OPTICAL
            transforms.append(transform)
        self._publisher.publish(desk.type("tf2_msgs/msg/TFMessage")(transforms=transforms))


def desk_link(device: str) -> str:
    """The frame of a device's body."""
    return f"{device}_link"


def _seconds(ns: int | None) -> float:
    return nan if ns is None else ns * 1e-9
