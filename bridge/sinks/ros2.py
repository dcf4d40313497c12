"""ROS 2 topics, stamped in CLOCK_REALTIME from the same mapped time that LSL gets.

rclpy comes from PyPI wheels or from a sourced ROS (Jazzy, Kilted); it is imported by this module alone. Publishing can
block for tens of ms, so one named thread does it, behind a bounded queue that drops the oldest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PointStamped
from rclpy._rclpy_pybind11 import RCLError  # rclpy.exceptions does not have it
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import TimeReference

from bridge.clock import ClockState, Mapped
from bridge.clock.host import RealtimeOffset
from bridge.errors import BridgeError
from bridge.pipeline import ClockEvent, ClockStatus
from bridge.streams import DeviceDescriptor, GazeLayout, Sample, StreamDescriptor, StreamKind

log = logging.getLogger(__name__)

DEPTH = 50
JOIN_TIMEOUT_S = 2.0
MAX_DOMAIN_ID = 232  # beyond it a port number is too high, and Fast DDS ends the whole process without a word to Python
SECONDS_RANGE = range(-(2**31), 2**31)  # builtin_interfaces/Time counts seconds in 32 bits


class Ros2Output:
    """One stream's topics. ``push`` is called on the loop, ``publish`` on the sink's thread."""

    def __init__(self, sink: Ros2Sink, publish: Callable[[Sample, int], None]) -> None:
        self.samples_out = 0
        self.dropped: Counter[str] = Counter()
        self.publish = publish
        self._put = sink.put

    def push(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        self._put(self, sample, host_ns)


class Ros2Sink:
    """One node for all devices, in a context of its own, without signal handlers."""

    name = "ros2"

    def __init__(self, namespace: str, node_name: str, queue_size: int, when_full: str = "drop_oldest") -> None:
        """Joins the ROS network. ``when_full``: drop_oldest or drop_newest. Raises BridgeError where the environment
        does not let it."""
        self._context = Context()
        self._node = _join(self._context, namespace, node_name)
        self._realtime = RealtimeOffset()
        self._qos = QoSProfile(depth=DEPTH)
        self._diagnostics = self._node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._time_references: dict[str, Any] = {}
        self._clock_events: dict[str, Any] = {}
        self._realtime_steps = 0
        self._queue: queue.SimpleQueue[tuple[Ros2Output, Sample, int] | Callable[[], None] | None] = queue.SimpleQueue()
        self._queue_size = queue_size
        self._drop_newest = when_full == "drop_newest"
        self._publishers: dict[str, list[Any]] = {}  # by device
        self._thread = threading.Thread(target=self._publish_all, name="ros2 publisher", daemon=True)
        self._thread.start()

    # --- on the loop ---------------------------------------------------------------------------------------------

    def open_device(self, device: DeviceDescriptor) -> None:
        self._time_references[device.name] = self._publisher(device, TimeReference, "time_reference")
        self._clock_events[device.name] = self._publisher(device, TimeReference, "clock_events")

    def _publisher(self, device: DeviceDescriptor, message_type: Any, topic: str) -> Any:
        made = self._node.create_publisher(message_type, f"{device.name}/{topic}", self._qos)
        self._publishers.setdefault(device.name, []).append(made)
        return made

    def open_stream(self, stream: StreamDescriptor) -> Ros2Output | None:
        if stream.kind is StreamKind.GAZE and isinstance(stream.layout, GazeLayout):
            return Ros2Output(self, self._gaze_publisher(stream, stream.layout))
        if stream.kind is StreamKind.EVENT:
            return Ros2Output(self, self._event_publisher(stream))
        return None

    def clock_status(self, device: DeviceDescriptor, status: ClockStatus) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("the thread that publishes to ROS 2 has died of the exception above")
        if self._queue.qsize() < self._queue_size:  # else the next one, a second later, is as good
            self._queue.put(lambda: self._publish_status(device, status))

    def clock_event(self, device: DeviceDescriptor, event: ClockEvent) -> None:
        if self._queue.qsize() < 2 * self._queue_size:  # there is always room for what is rare
            self._queue.put(lambda: self._publish_event(device, event))

    def put(self, output: Ros2Output, sample: Sample, host_ns: int) -> None:
        if self._queue.qsize() >= self._queue_size and not self._make_room():
            output.dropped["queue_full"] += 1
            return
        self._queue.put((output, sample, host_ns))

    def _make_room(self) -> bool:
        """Drops the oldest sample, if that is the policy; False when the newest has to go."""
        if self._drop_newest:
            return False
        with contextlib.suppress(queue.Empty):
            oldest = self._queue.get_nowait()
            if not isinstance(oldest, tuple):  # no sample: it is not to be lost, only late
                self._queue.put(oldest)
                return False
            oldest[0].dropped["queue_full"] += 1
        return True

    async def close_device(self, device: DeviceDescriptor) -> None:
        closed = asyncio.get_running_loop().create_future()
        publishers = self._publishers.pop(device.name)

        def close() -> None:
            for known in (self._time_references, self._clock_events):
                if known.get(device.name) in publishers:  # else the device was opened anew meanwhile
                    del known[device.name]
            for publisher in publishers:
                self._node.destroy_publisher(publisher)
            closed.get_loop().call_soon_threadsafe(closed.set_result, None)

        self._queue.put(close)  # after what waits
        await asyncio.wait([closed], timeout=JOIN_TIMEOUT_S)
        if not closed.done():
            log.error("ROS 2: the topics of %s are closed later: publishing takes too long", device.name)

    def status(self) -> dict[str, object]:
        return {"queued": self._queue.qsize(), "queue_size": self._queue_size}

    def close(self) -> bool:
        """Publishes what is queued, for at most two seconds, then takes the node off the network."""
        self._queue.put(None)
        self._thread.join(JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("ROS 2: the publishing thread did not end in time")
        self._node.destroy_node()
        self._context.try_shutdown()
        return True

    # --- on the thread -------------------------------------------------------------------------------------------

    def _publish_all(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, tuple):
                output, sample, host_ns = item
                output.publish(sample, host_ns)
                output.samples_out += 1
            else:
                item()

    def _gaze_publisher(self, stream: StreamDescriptor, layout: GazeLayout) -> Callable[[Sample, int], None]:
        pixel_topic = self._publisher(stream.device, PointStamped, "gaze/pixel")
        normalized_topic = self._publisher(stream.device, PointStamped, "gaze/normalized")
        publish_pixel, publish_normalized = pixel_topic.publish, normalized_topic.publish
        # One message for both topics, used again for every sample: making messages costs more than filling them.
        message = PointStamped()
        message.header.frame_id = f"{stream.device.name}_scene_camera_optical_frame"
        stamp, point = message.header.stamp, message.point
        x_index, y_index = layout.x_index, layout.y_index
        width_px, height_px = layout.width_px, layout.height_px
        flip = layout.normalized_bottom_left
        to_realtime = self._realtime.to_realtime

        def publish(sample: Sample, host_ns: int) -> None:
            sec, nanosec = divmod(to_realtime(host_ns), 1_000_000_000)
            stamp.sec, stamp.nanosec = (sec, nanosec) if sec in SECONDS_RANGE else (0, 0)
            assert isinstance(sample.payload, tuple)
            x, y = sample.payload[x_index], sample.payload[y_index]
            assert isinstance(x, float)
            assert isinstance(y, float)
            if flip:
                x, y = x * width_px, (1.0 - y) * height_px
            point.x, point.y = x, y
            publish_pixel(message)
            point.x, point.y = x / width_px, y / height_px
            publish_normalized(message)

        return publish

    def _event_publisher(self, stream: StreamDescriptor) -> Callable[[Sample, int], None]:
        topic = self._publisher(stream.device, TimeReference, "events")

        def publish(sample: Sample, host_ns: int) -> None:
            message = TimeReference()
            message.header.stamp = _time(self._realtime.to_realtime(host_ns))
            message.time_ref = _time(sample.device_ns)
            message.source = str(sample.payload)
            topic.publish(message)

        return publish

    def _publish_event(self, device: DeviceDescriptor, event: ClockEvent) -> None:
        message = TimeReference()
        message.header.stamp = _time(self._realtime.to_realtime(event.host_ns))
        if event.device_ns is not None:
            message.time_ref = _time(event.device_ns)
        message.source = event.text
        if (topic := self._clock_events.get(device.name)) is not None:  # else it was closed while this waited
            topic.publish(message)

    def _publish_status(self, device: DeviceDescriptor, status: ClockStatus) -> None:
        stamp = _time(self._realtime.to_realtime(status.host_ns))
        if self._realtime.steps != self._realtime_steps:
            self._realtime_steps = self._realtime.steps
            log.warning("CLOCK_REALTIME was set by %+.6f s: ROS stamps follow it", self._realtime.step_ns / 1e9)
        if (topic := self._time_references.get(device.name)) is None:
            return  # the device was closed while this waited
        if status.device_ns is not None:
            reference = TimeReference()
            reference.header.stamp = stamp
            reference.time_ref = _time(status.device_ns)
            reference.source = device.name
            topic.publish(reference)
        level, text = {
            ClockState.LOCKED: (DiagnosticStatus.OK, "clock locked"),
            ClockState.BRIDGING: (DiagnosticStatus.WARN, "the device's clock was set; bridged until it answers"),
            ClockState.HOLDOVER: (DiagnosticStatus.STALE, "the device does not answer; its clock is extrapolated"),
        }.get(status.state, (DiagnosticStatus.WARN, "clock not locked; samples wait"))
        values = [
            ("offset_s", _seconds(status.offset_ns)),
            ("bound_s", _seconds(status.bound_ns)),
            ("precision_s", _seconds(status.precision_ns)),
            ("slew_s", _seconds(status.slew_ns)),  # stamps are off by this much more, and glide to the estimate
            ("rtt_min_s", _seconds(status.rtt_min_ns)),
            ("drift_ppm", f"{status.drift_ppm:.3f}"),
            ("epoch", str(status.epoch)),
            ("samples_dropped", str(status.samples_dropped)),
        ]
        array = DiagnosticArray()
        array.header.stamp = stamp
        array.status = [
            DiagnosticStatus(
                level=level,
                name=f"pupil_bridge: {device.name}",
                message=text,
                hardware_id=device.name,
                values=[KeyValue(key=key, value=value) for key, value in values],
            )
        ]
        self._diagnostics.publish(array)


def _join(context: Context, namespace: str, node_name: str) -> Node:
    """The node, on the network. Raises BridgeError with what ROS says, in one line."""
    domain_id = os.environ.get("ROS_DOMAIN_ID", "")
    with contextlib.suppress(ValueError):  # of what is no number, ROS says so itself
        if not 0 <= int(domain_id) <= MAX_DOMAIN_ID:
            raise BridgeError(f"ROS_DOMAIN_ID is {domain_id}: it must be from 0 to {MAX_DOMAIN_ID}")
    try:
        rclpy.init(
            # ROS would write a log file for every run, and not start where it cannot (a service has no HOME).
            args=[*sys.argv, "--ros-args", "--disable-external-lib-logs"],
            context=context,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        return Node(
            node_name,
            context=context,
            namespace=namespace,
            # Nobody spins this node yet: services that never answer would only mislead.
            start_parameter_services=False,
            parameter_overrides=[Parameter("start_type_description_service", value=False)],
            enable_rosout=False,
        )
    except RCLError as error:
        context.try_shutdown()
        raise BridgeError(" ".join(str(error).split())) from error


def _time(ns: int) -> Time:
    """A ROS time. One that does not fit (a device can have any time) is zero, which ROS reads as unknown."""
    sec, nanosec = divmod(ns, 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec) if sec in SECONDS_RANGE else Time()


def _seconds(ns: int | None) -> str:
    return "unknown" if ns is None else f"{ns / 1e9:.9f}"
