"""From the options to a simulated Companion: its sockets, clock, path, sensors, and the line that announces it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path as FilePath
from random import Random
from typing import Any

import zmq

from bridge.simulators import companion_wire as wire
from bridge.simulators.companion_app import CompanionApp, Path
from bridge.simulators.companion_clock import DeviceClock, Grid, utc_at
from bridge.simulators.companion_samples import World
from bridge.simulators.companion_scene import Scene
from bridge.simulators.companion_sensor import SCENE_PX, Control, HeadMotion, Scanpath, SimulatedSensor
from bridge.simulators.network import DelayLine, Loss
from bridge.simulators.truth import TruthWriter
from bridge.simulators.zre_peer import ZrePeer

_SENSOR_NAMESPACE = uuid.UUID("6f2b7f0e-6a52-4c1a-9a3c-6f0d5f1f7c11")


@dataclass(frozen=True)
class CompanionOptions:
    """What to simulate; the defaults are a phone with a perfect clock on a perfect network."""

    # Each is described at its option in `companion.command`.

    name: str = "Simulated Companion"
    interface: str = "127.0.0.1"
    beacon_port: int = 5670
    gaze_rate: float = 120.0
    event_rate: float = 1.0
    imu_rate: float = 200.0
    imu_batch: int = 10
    scene_rate: float = 30.0
    refuse_recording: str | None = None
    offset_s: float = 0.0
    drift_ppm: float = 0.0
    restart_step_s: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    asymmetry_ms: float = 0.0
    loss: float = 0.0
    truth: FilePath | None = None
    seed: int = 0
    zre_uuid: uuid.UUID | None = None
    sensor_uuid_seed: str | None = None
    clock_origin_ns: int | None = None
    utc_at_origin_ns: int | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CompanionSockets:
    """What hosts connect to. Data have an endpoint a sensor, notifications and commands are shared."""

    gaze: zmq.Socket[bytes]
    event: zmq.Socket[bytes]
    imu: zmq.Socket[bytes]
    scene: zmq.Socket[bytes]
    notifications: zmq.Socket[bytes]
    commands: zmq.Socket[bytes]


@contextmanager
def bind(context: zmq.Context[Any], options: CompanionOptions) -> Iterator[CompanionSockets]:
    """Bound sockets, closed at the end. Raises `zmq.ZMQError` when the address is not this machine's."""
    sockets = [context.socket(kind) for kind in (zmq.PUB, zmq.PUB, zmq.PUB, zmq.PUB, zmq.PUB, zmq.PULL)]
    try:
        for each in sockets:
            each.bind(f"tcp://{options.interface}:*")
        yield CompanionSockets(*sockets)
    finally:
        for each in sockets:
            each.close(linger=0)


def _endpoint(bound: zmq.Socket[bytes]) -> str:
    return bound.getsockopt_string(zmq.LAST_ENDPOINT)


def make_clock(options: CompanionOptions, started_ns: int) -> DeviceClock:
    """The app's clock; raises `ValueError` when it would begin in the future."""
    origin_ns = started_ns if options.clock_origin_ns is None else options.clock_origin_ns
    if origin_ns > started_ns:
        raise ValueError("the clock's origin lies in the future")
    utc_ns = utc_at(origin_ns) if options.utc_at_origin_ns is None else options.utc_at_origin_ns
    return DeviceClock(origin_ns, utc_ns, round(options.offset_s * 1e9), options.drift_ppm)


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


def build(
    options: CompanionOptions, sockets: CompanionSockets, peer: ZrePeer, clock: DeviceClock, truth: TruthWriter
) -> tuple[CompanionApp, dict[str, Any]]:
    """The app, and the line that tells the world that it is ready."""

    def streaming() -> dict[str, Control]:
        return {"streaming": Control("Streaming", default=False)}

    def sensor(name: str, kind: str, data: zmq.Socket[bytes] | None, controls: dict[str, Control]) -> SimulatedSensor:
        seed = options.name if options.sensor_uuid_seed is None else options.sensor_uuid_seed
        attach = wire.Attach(
            sensor_name=name,
            sensor_uuid=str(uuid.uuid5(_SENSOR_NAMESPACE, f"{seed}/{name}")),
            sensor_type=kind,
            notify_endpoint=_endpoint(sockets.notifications),
            command_endpoint=_endpoint(sockets.commands),
            data_endpoint=None if data is None else _endpoint(data),
        )
        return SimulatedSensor(attach, data, controls)

    gaze = sensor("Gaze", "gaze", sockets.gaze, streaming())
    event = sensor("Event", "event", sockets.event, streaming())
    imu = sensor("IMU", "imu", sockets.imu, streaming())
    scene = sensor("PI world v1", "video", sockets.scene, streaming())
    with_grids = [
        (gaze, _grid(clock.origin_ns, options.gaze_rate)),
        (event, _grid(clock.origin_ns, options.event_rate)),
        *((imu, grid) for grid in (_grid(clock.origin_ns, options.imu_rate),) if grid is not None),
        *((scene, grid) for grid in (_grid(clock.origin_ns, options.scene_rate),) if grid is not None),
    ]
    recording = {
        "local_capture": Control("Local capture", default=False),
        "capture_session_name": Control("Session name", default=""),
    }
    hardware = sensor("Hardware", "hardware", None, recording)
    app = CompanionApp(
        peer=peer,
        commands=sockets.commands,
        notifications=sockets.notifications,
        sensors=with_grids,
        hardware=hardware,
        refusal=options.refuse_recording,
        clock=clock,
        restart_step_ns=round(options.restart_step_s * 1e9),
        world=World(
            scanpath=Scanpath(Random(f"{options.seed}/scanpath")),
            motion=HeadMotion(Random(f"{options.seed}/head")),
            imu_batch=options.imu_batch,
            scene=Scene(*SCENE_PX, f"{options.seed}/room"),
        ),
        path=_path(options),
        truth=truth,
    )
    ready = {
        "ready": True,
        "kind": "companion",
        "name": options.name,
        "zre_uuid": str(peer.identity),
        "sensors": {sensor.attach.sensor_type: sensor.uuid for sensor in app.sensors},
        "streams": {
            "gaze": options.gaze_rate,
            "event": options.event_rate,
            "imu": options.imu_rate,
            "scene": options.scene_rate,
        },
        "clock": {
            "origin_ns": clock.origin_ns,
            "utc_at_origin_ns": clock.utc_at_origin_ns,
            "offset_ns": clock.offset_ns,
            "drift_ppm": clock.drift_ppm,
        },
    }
    return app, ready
