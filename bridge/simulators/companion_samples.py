"""What the simulated Companion's sensors send: each sample is made at its instant, sent, and written to the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bridge.simulators import companion_wire as wire
from bridge.simulators.companion_cameras import Camera
from bridge.simulators.companion_clock import DeviceClock
from bridge.simulators.companion_sensor import SCENE_PX, HeadMotion, Scanpath, SimulatedSensor
from bridge.simulators.truth import TruthWriter

Send = Callable[[SimulatedSensor, tuple[bytes, bytes], int], bool]  # header and body at a host time; False: it is lost
Publish = Callable[[int, int], None]  # sequence and host time of the sample


@dataclass(frozen=True, slots=True)
class World:
    """What there is to be measured, counted from ``origin_ns``, and with what cameras, by stream.

    ``imu_batch``: samples that the IMU puts into one message.
    """

    origin_ns: int
    scanpath: Scanpath
    motion: HeadMotion
    imu_batch: int
    cameras: Mapping[str, Camera]


class Samples:
    """Makes samples of every kind; ``clock`` gives the device's clock as it is now."""

    def __init__(self, world: World, clock: Callable[[], DeviceClock], send: Send, truth: TruthWriter) -> None:
        self._world = world
        self._clock = clock
        self._send = send
        self._truth = truth
        self._batch: list[tuple[int, int, int, tuple[float, ...]]] = []  # sequence, device and host time, values
        self._batches = 0

    def of(self, sensor: SimulatedSensor) -> Publish:
        """What publishes a sample of this sensor."""
        if sensor.stream in self._world.cameras:
            return partial(self._frame, self._world.cameras[sensor.stream], sensor)
        return partial({"gaze": self._gaze, "event": self._event, "imu": self._imu}[sensor.stream], sensor)

    def pause(self, stream: str) -> None:
        """A sensor does not stream any more: a batch that was begun is never sent, and video starts afresh."""
        if stream == "imu":
            self._batch.clear()
        if stream in self._world.cameras:
            self._world.cameras[stream].pause()

    def _gaze(self, sensor: SimulatedSensor, sequence: int, instant_ns: int) -> None:
        device_ns, position = self._clock().device_ns(instant_ns), self._position(instant_ns)
        sent = self._send(sensor, wire.encode_gaze(device_ns, *position), instant_ns)
        self._truth.record("gaze", sequence, device_ns=device_ns, host_ns=instant_ns, sent=sent, payload=position)

    def _event(self, sensor: SimulatedSensor, sequence: int, instant_ns: int) -> None:
        device_ns, text = self._clock().device_ns(instant_ns), f"sim.{sequence}"
        sent = self._send(sensor, wire.encode_event(device_ns, text), instant_ns)
        self._truth.record("event", sequence, device_ns=device_ns, host_ns=instant_ns, sent=sent, payload=text)

    def _imu(self, sensor: SimulatedSensor, sequence: int, instant_ns: int) -> None:
        """A batch leaves with the last of its samples."""
        values = self._world.motion.at(self._elapsed_s(instant_ns))
        self._batch.append((sequence, self._clock().device_ns(instant_ns), instant_ns, values))
        if len(self._batch) < self._world.imu_batch:
            return
        batch, self._batch = self._batch, []
        message = wire.encode_imu(self._batches, [(device_ns, values) for _, device_ns, _, values in batch])
        self._batches += 1
        sent = self._send(sensor, message, instant_ns)
        for number, device_ns, host_ns, values in batch:
            self._truth.record("imu", number, device_ns=device_ns, host_ns=host_ns, sent=sent, payload=values)

    def _frame(self, camera: Camera, sensor: SimulatedSensor, sequence: int, instant_ns: int) -> None:
        """The target is where the gaze is at the instant of the frame; the truth's payload is its place in it."""
        device_ns, (x, y) = self._clock().device_ns(instant_ns), self._position(instant_ns)
        width_px, height_px = camera.size_px
        position = (x * width_px / SCENE_PX[0], y * height_px / SCENE_PX[1])
        picture = camera.picture(sequence, *position)
        message = wire.encode_video(camera.format_code, device_ns, sequence, camera.size_px, picture)
        sent = self._send(sensor, message, instant_ns)
        self._truth.record(
            sensor.stream, sequence, device_ns=device_ns, host_ns=instant_ns, sent=sent, payload=position
        )

    def _position(self, instant_ns: int) -> tuple[float, float]:
        return self._world.scanpath.at(self._elapsed_s(instant_ns))

    def _elapsed_s(self, instant_ns: int) -> float:
        return (instant_ns - self._world.origin_ns) / 1e9
