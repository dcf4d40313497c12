"""What is sent: the same values for both publishers, and how a minimal one fills its message with them.

Each message carries its index where a reader can find it, so that the two ends of its way can be put together.
"""

from __future__ import annotations

import array
import math
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NamedTuple

from bridge.sinks.ros2.topics import BY_NAME
from bridge.streams import Frame, Payload

DEVICE: Final = "companion"
FRAME_BYTES: Final = 80_000
STANDARD_GRAVITY: Final = 9.80665  # m/s^2
WIDTH_PX, HEIGHT_PX = 1088, 1080
_JPEG: Final = bytes(range(256)) * (FRAME_BYTES // 256) + bytes(FRAME_BYTES % 256)


class Content(NamedTuple):
    """One topic. ``stream`` is that of the bridge's device, ``entry`` the topic's in the bridge's table.

    ``payload`` of an index is what a source gives to the stream; ``fill`` puts it into a message that is used again;
    ``index_of`` a received message is the index.
    """

    name: str
    stream: str
    entry: str
    rate_hz: float
    payload: Callable[[int], Payload]
    fill: Callable[[Any, Any], None]
    index_of: Callable[[Any], int]

    @property
    def type(self) -> Any:
        """The message's class. Raises ImportError or AttributeError where its package is not installed."""
        package, _, kind = BY_NAME[self.entry].type.split("/")
        return getattr(import_module(f"{package}.msg"), kind)

    @property
    def depth(self) -> int:
        """Of KEEP_LAST, at both ends; all is RELIABLE."""
        return BY_NAME[self.entry].depth

    def topic(self, namespace: str) -> str:
        return f"/{namespace}/{DEVICE}/{BY_NAME[self.entry].name.format(camera=self.stream)}"


def _stamp(message: Any) -> None:
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 1_000_000_000)


def _gaze(index: int) -> Payload:
    return float(index), 540.5, 1.0


def _fill_point(message: Any, payload: tuple[float, ...]) -> None:
    _stamp(message)
    message.point.x, message.point.y = payload[0], payload[1]


def _fill_gaze(message: Any, payload: tuple[float, ...]) -> None:
    """What changes from sample to sample; NaN and sizes stay as they are in the message."""
    x, y, worn = payload
    _stamp(message)
    message.quality.device_time = time.monotonic_ns()
    message.quality.bound = message.quality.precision = 1e-4
    message.pixel_x, message.pixel_y = x, y
    message.normalized_x, message.normalized_y = x / WIDTH_PX, y / HEIGHT_PX
    message.worn = 2 if worn > 0.5 else 1


def _imu(index: int) -> Payload:
    return float(index), 0.01, -0.98, 12.5, -3.25, 0.5


def _fill_imu(message: Any, payload: tuple[float, ...]) -> None:
    _stamp(message)
    force, turn = message.linear_acceleration, message.angular_velocity
    force.x, force.y, force.z = (value * STANDARD_GRAVITY for value in payload[:3])
    turn.x, turn.y, turn.z = (value * math.pi / 180.0 for value in payload[3:])


def _frame(index: int) -> Payload:
    return Frame("jpeg", WIDTH_PX, HEIGHT_PX, index, index.to_bytes(8, "little") + _JPEG[8:])


def _fill_image(message: Any, payload: Frame) -> None:
    _stamp(message)
    message.format = payload.format
    message.data = array.array("B", payload.data)


CONTENTS: Final = {
    content.name: content
    for content in (
        Content("point", "gaze", "gaze/pixel", 200.0, _gaze, _fill_point, lambda message: round(message.point.x)),
        Content("gaze", "gaze", "gaze", 200.0, _gaze, _fill_gaze, lambda message: round(message.pixel_x)),
        Content(
            "imu",
            "imu",
            "imu/data_raw",
            200.0,
            _imu,
            _fill_imu,
            lambda message: round(message.linear_acceleration.x / STANDARD_GRAVITY),
        ),
        Content(
            "jpeg",
            "scene",
            "{camera}/image_raw/compressed",
            30.0,
            _frame,
            _fill_image,
            lambda message: int.from_bytes(bytes(message.data[:8]), "little"),
        ),
    )
}
