"""The parts of a simulated sensor: its controls, its samples' instants, and what it makes up: gaze and head motion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import zmq

from bridge.simulators.companion_clock import Grid
from bridge.simulators.companion_wire import Attach, as_float32

SCENE_PX = (1088, 1080)
EYE_PX = (192, 192)


@dataclass(slots=True)
class Control:
    """A sensor's setting; its value's type is that of its default, with which it begins."""

    caption: str
    default: bool | str
    value: bool | str = field(init=False)

    def __post_init__(self) -> None:
        self.value = self.default

    def describe(self) -> dict[str, Any]:
        """All that an update may say, as the answer to refresh_controls."""
        return {
            "value": self.value,
            "dtype": "bool" if isinstance(self.default, bool) else "string",
            "min": None,
            "max": None,
            "res": None,
            "def": self.default,
            "caption": self.caption,
            "readonly": False,
            "map": None,
        }


class SimulatedSensor:
    """One sensor with its sockets' endpoints, its controls and the counter of its notifications.

    ``stream`` is its name here and in the truth: gaze, event, imu, scene, eye0 (the right one), eye1, hardware.
    """

    def __init__(
        self, stream: str, attach: Attach, data: zmq.Socket[bytes] | None, controls: dict[str, Control]
    ) -> None:
        self.stream = stream
        self.attach = attach
        self.data = data
        self.controls = controls
        self.attached = True
        self._notified = 0

    @property
    def uuid(self) -> str:
        return self.attach.sensor_uuid

    @property
    def key(self) -> bytes:
        """What is before each of its messages."""
        return self.attach.sensor_uuid.encode()

    @property
    def streaming(self) -> bool:
        return "streaming" in self.controls and self.controls["streaming"].value is True

    def next_notification(self) -> int:
        """A u32 that counts this sensor's notifications from 0."""
        self._notified += 1
        return self._notified - 1

    def become(self, sensor_uuid: str) -> None:
        """Have another UUID, as one that is plugged in again."""
        self.attach = replace(self.attach, sensor_uuid=sensor_uuid)


class Producer:
    """Makes a sensor's samples on its grid while the sensor streams."""

    def __init__(self, sensor: SimulatedSensor, grid: Grid, publish: Callable[[int, int], None]) -> None:
        self.sensor = sensor
        self._grid = grid
        self._publish = publish
        self._sequence = 0
        self.next_ns: int | None = None

    def follow(self, now_ns: int) -> None:
        """Start with the first instant from ``now_ns`` on, or stop, as the sensor's control says."""
        if not self.sensor.streaming:
            self.next_ns = None
        elif self.next_ns is None:
            self._sequence = max(self._sequence, self._grid.first_from(now_ns))
            self.next_ns = self._grid.instant_ns(self._sequence)

    def skip_to(self, now_ns: int) -> None:
        """Leave out what was not made before ``now_ns``."""
        self.next_ns = None
        self.follow(now_ns)

    def publish_next(self) -> None:
        """Publish the sample of ``next_ns``."""
        assert self.next_ns is not None
        sequence, instant_ns = self._sequence, self.next_ns
        self._sequence += 1
        self.next_ns = self._grid.instant_ns(self._sequence)
        self._publish(sequence, instant_ns)


class Scanpath:
    """A smooth gaze path inside the scene image: sums of slow sines, different for each seed."""

    def __init__(self, random: Random) -> None:
        self._phases = [random.uniform(0, math.tau) for _ in range(4)]

    def at(self, time_s: float) -> tuple[float, float]:
        """The position in pixels, at least 40 from every edge, as float32 values."""
        slow_x, fast_x, slow_y, fast_y = self._phases
        width, height = SCENE_PX
        turns = math.tau * time_s
        x = width / 2 + 400 * math.sin(0.31 * turns + slow_x) + 90 * math.sin(1.9 * turns + fast_x)
        y = height / 2 + 400 * math.sin(0.23 * turns + slow_y) + 90 * math.sin(1.3 * turns + fast_y)
        x, y = as_float32(x, y)
        return x, y


class HeadMotion:
    """A head that nods and turns, in the IMU's own axes: acceleration x, y, z in g, angular velocity in deg/s."""

    def __init__(self, random: Random) -> None:
        self._phases = [random.uniform(0, math.tau) for _ in range(6)]

    def at(self, time_s: float) -> tuple[float, ...]:
        """Float32 values. The head is upright but for a few degrees: gravity is on y."""
        turns = math.tau * time_s
        a, b, c, d, e, f = (
            math.sin(rate_hz * turns + phase)
            for rate_hz, phase in zip((0.7, 1.1, 0.9, 0.5, 0.3, 0.8), self._phases, strict=True)
        )
        return as_float32(0.08 * a, -1.0 + 0.03 * b, 0.1 * c, 20 * d, 35 * e, 8 * f)
