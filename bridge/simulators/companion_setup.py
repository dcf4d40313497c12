"""From the options to a simulated Companion: its sockets, clock, path, cameras, sensors and app."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from fractions import Fraction
from random import Random
from typing import Any

import zmq

from bridge.simulators import companion_wire as wire
from bridge.simulators.companion_app import CompanionApp
from bridge.simulators.companion_cameras import Camera, H264Camera, JpegCamera
from bridge.simulators.companion_clock import AppClock, DeviceClock, Grid, utc_at
from bridge.simulators.companion_options import CompanionOptions
from bridge.simulators.companion_path import Path
from bridge.simulators.companion_samples import World
from bridge.simulators.companion_sensor import EYE_PX, SCENE_PX, Control, HeadMotion, Scanpath, SimulatedSensor
from bridge.simulators.network import DelayLine, Loss
from bridge.simulators.truth import TruthWriter

_SENSOR_NAMESPACE = uuid.UUID("6f2b7f0e-6a52-4c1a-9a3c-6f0d5f1f7c11")
# What a stream's sensor is called and of which type it is, in the order in which they are announced.
_SENSORS = {
    "gaze": ("Gaze", "gaze"),
    "event": ("Event", "event"),
    "imu": ("IMU", "imu"),
    "scene": ("PI world v1", "video"),
    "eye1": ("PI left v1", "video"),
    "eye0": ("PI right v1", "video"),
    "hardware": ("Hardware", "hardware"),
}
# Devices sample out of step with each other, as those of a lab do: each begins this part of a second earlier.
_GOLDEN = 0.6180339887


def make_clock(options: CompanionOptions, started_ns: int, number: int = 1) -> DeviceClock:
    """The app's first clock; raises `ValueError` when it would begin in the future."""
    phase_ns = round((number - 1) * _GOLDEN % 1 * 1e9)
    origin_ns = started_ns - phase_ns if options.clock_origin_ns is None else options.clock_origin_ns
    if origin_ns > started_ns:
        raise ValueError("the clock's origin lies in the future")
    utc_ns = utc_at(origin_ns) if options.utc_at_origin_ns is None else options.utc_at_origin_ns
    return DeviceClock(origin_ns, utc_ns, round(options.offset_s * 1e9), options.drift_ppm)


def make_world(options: CompanionOptions, origin_ns: int) -> World:
    """What the device measures. Raises `ValueError` for pictures that cannot be."""
    cameras: dict[str, Camera] = {}
    if options.scene_rate > 0:
        cameras["scene"] = _camera(options, SCENE_PX, options.scene_format, "room", options.scene_bytes)
    if options.eyes_rate > 0:
        for stream in ("eye1", "eye0"):
            cameras[stream] = _camera(options, EYE_PX, options.eyes_format, stream, None)
    return World(
        origin_ns=origin_ns,
        scanpath=Scanpath(Random(f"{options.seed}/scanpath")),
        motion=HeadMotion(Random(f"{options.seed}/head")),
        imu_batch=options.imu_batch,
        cameras=cameras,
    )


def _camera(
    options: CompanionOptions, size_px: tuple[int, int], form: str, name: str, size_bytes: int | None
) -> Camera:
    seed = f"{options.seed}/{name}"
    if form == "jpeg":
        return JpegCamera(size_px, seed, size_bytes)
    if size_bytes is not None:
        raise ValueError("only JPEGs can be given a size")
    return H264Camera(size_px, seed, options.key_interval, options.h264_start == "middle")


def sensor_uuids(options: CompanionOptions, *, fresh: bool = False) -> dict[str, str]:
    """A UUID for each stream's sensor: always the same ones for the seed, or ``fresh`` ones."""
    seed = options.name if options.sensor_uuid_seed is None else options.sensor_uuid_seed
    return {
        stream: str(uuid.uuid4() if fresh else uuid.uuid5(_SENSOR_NAMESPACE, f"{seed}/{name}"))
        for stream, (name, _) in _all_sensors(options).items()
    }


def _all_sensors(options: CompanionOptions) -> dict[str, tuple[str, str]]:
    """Name and type of the sensors that the device has, by stream."""
    rates = {"imu": options.imu_rate, "scene": options.scene_rate, "eye0": options.eyes_rate, "eye1": options.eyes_rate}
    return {stream: names for stream, names in _SENSORS.items() if rates.get(stream, 1) > 0} | {
        kind: (kind.capitalize(), kind) for kind in options.other_sensor
    }


class CompanionSockets:
    """What hosts connect to, bound: each sensor's data have their own, notifications and commands are shared.

    Raises `zmq.ZMQError` when the address is not this machine's.
    """

    def __init__(self, context: zmq.Context[Any], options: CompanionOptions) -> None:
        self._all: list[zmq.Socket[bytes]] = []
        try:
            self.notifications = self._bound(context, zmq.PUB, options.interface)
            self.commands = self._bound(context, zmq.PULL, options.interface)
            self.data = {
                stream: self._bound(context, zmq.PUB, options.interface)
                for stream in _all_sensors(options)
                if stream in _SENSORS and stream != "hardware"
            }
        except zmq.ZMQError:
            self.close()
            raise

    def _bound(self, context: zmq.Context[Any], kind: int, interface: str) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = context.socket(kind)
        self._all.append(made)
        made.bind(f"tcp://{interface}:*")
        return made

    def close(self) -> None:
        """What is on its way is dropped."""
        for each in self._all:
            each.close(linger=0)


def make_app(
    options: CompanionOptions,
    sockets: CompanionSockets,
    uuids: Mapping[str, str],
    clock: AppClock,
    world: World,
    truth: TruthWriter,
) -> CompanionApp:
    """The app as it is when it has just been started: nothing streams, nothing is recorded."""
    rates = {
        "gaze": options.gaze_rate,
        "event": options.event_rate,
        "imu": options.imu_rate,
        "scene": options.scene_rate,
        "eye0": options.eyes_rate,
        "eye1": options.eyes_rate,
    }
    sensors = []
    for stream, (name, kind) in _all_sensors(options).items():
        data = sockets.data.get(stream)
        controls = {"streaming": Control("Streaming", default=False)}
        if stream == "hardware":
            controls = {
                "local_capture": Control("Local capture", default=False),
                "capture_session_name": Control("Session name", default=""),
            }
        attach = wire.Attach(
            sensor_name=name,
            sensor_uuid=uuids[stream],
            sensor_type=kind,
            notify_endpoint=_endpoint(sockets.notifications),
            command_endpoint=_endpoint(sockets.commands),
            data_endpoint=None if data is None else _endpoint(data),
        )
        grid = _grid(world.origin_ns, rates.get(stream, 0.0))
        sensors.append((SimulatedSensor(stream, attach, data, controls), grid))
    return CompanionApp(
        commands=sockets.commands,
        notifications=sockets.notifications,
        sensors=sensors,
        refusal=options.refuse_recording,
        clock=clock,
        world=world,
        path=_path(options),
        truth=truth,
    )


def _endpoint(bound: zmq.Socket[bytes]) -> str:
    return bound.getsockopt_string(zmq.LAST_ENDPOINT)


def _grid(origin_ns: int, rate_hz: float) -> Grid | None:
    rate = Fraction(rate_hz).limit_denominator(1_000_000)
    return Grid(origin_ns, rate) if rate > 0 else None


def _path(options: CompanionOptions) -> Path:
    """Each line has dice of its own, so that a seed gives the same losses whatever the jitter."""

    def line(name: str, extra_ms: float = 0.0) -> DelayLine[Any]:
        delay_ns = round((options.delay_ms + extra_ms) * 1e6)
        return DelayLine(delay_ns, round(options.jitter_ms * 1e6), Random(f"{options.seed}/{name}"))

    return Path(
        whispers_up=line("whispers"),
        commands_up=line("commands"),
        notifications_down=line("notifications", options.asymmetry_ms),
        data_down=line("data", options.asymmetry_ms),
        loss=Loss(options.loss, Random(f"{options.seed}/loss")),
    )
