"""What the simulated Companion's sensors send: each sample is made at its instant, sent, and written to the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bridge.simulators import companion_wire as wire
from bridge.simulators.companion_clock import DeviceClock
from bridge.simulators.companion_scene import Scene
from bridge.simulators.companion_sensor import SCENE_PX, HeadMotion, Scanpath, SimulatedSensor
from bridge.simulators.truth import TruthWriter

Send = Callable[[SimulatedSensor, tuple[bytes, bytes], int], bool]  # header and body at a host time; False: it is lost
Publish = Callable[[SimulatedSensor, int, int], None]  # sequence and host time of the sample


@dataclass(frozen=True, slots=True)
class World:
    """What there is to be measured. ``imu_batch``: samples that the IMU puts into one message."""

    scanpath: Scanpath
    motion: HeadMotion
    imu_batch: int
    scene: Scene


class Samples:
    """Makes samples of every kind; ``clock`` gives the device's clock as it is now."""

    def __init__(self, world: World, clock: Callable[[], DeviceClock], send: Send, truth: TruthWriter) -> None:
        self._world = world
        self._clock = clock
        self._send = send
        self._truth = truth
        self._batch: list[tuple[int, int, int, tuple[float, ...]]] = []  # sequence, device and host time, values
        self._batches = 0

    def of_kind(self, sensor_type: str) -> Publish:
        """What publishes a sample of a sensor of this type."""
        return {"gaze": self._gaze, "event": self._event, "imu": self._imu, "video": self._frame}[sensor_type]

    def paused(self, sensor_type: str) -> None:
        """A sensor of this type does not stream any more: a batch that was begun is never sent."""
        if sensor_type == "imu":
            self._batch.clear()

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

    def _frame(self, sensor: SimulatedSensor, sequence: int, instant_ns: int) -> None:
        """The target is where the gaze is at the instant of the frame; the truth's payload is that position."""
        device_ns, position = self._clock().device_ns(instant_ns), self._position(instant_ns)
        message = wire.encode_jpeg(device_ns, sequence, SCENE_PX, self._world.scene.frame(*position))
        sent = self._send(sensor, message, instant_ns)
        self._truth.record("scene", sequence, device_ns=device_ns, host_ns=instant_ns, sent=sent, payload=position)

    def _position(self, instant_ns: int) -> tuple[float, float]:
        return self._world.scanpath.at(self._elapsed_s(instant_ns))

    def _elapsed_s(self, instant_ns: int) -> float:
        return (instant_ns - self._clock().origin_ns) / 1e9
