"""The streams of a Companion device: what each carries, and what its stamps mean."""

from __future__ import annotations

import msgspec

from bridge import shipped
from bridge.config import NdsiDevice, StreamConfig
from bridge.streams import (
    FRAME_CHANNELS,
    Camera,
    Channel,
    DeviceDescriptor,
    GazeLayout,
    ImuLayout,
    StreamDescriptor,
    StreamKind,
    VideoLayout,
)
from bridge.wire import ndsi

GAZE_CHANNELS = (
    Channel("x", "pixels", "ScreenX", coordinate_system="world"),
    Channel("y", "pixels", "ScreenY", coordinate_system="world"),
    Channel("worn", "boolean", "Worn"),
)
SCENE_PX = (ndsi.SCENE_WIDTH_PX, ndsi.SCENE_HEIGHT_PX)
IMU_CHANNELS = (
    *(Channel(f"accel_{axis}", "g", f"Acceleration{axis.upper()}", "", "imu") for axis in "xyz"),
    *(Channel(f"gyro_{axis}", "deg/s", f"AngularVelocity{axis.upper()}", "", "imu") for axis in "xyz"),
)
IMU_LAYOUT = ImuLayout(0, 3)
RELAYED = ("gaze", "event")
CAMERA_SUFFIXES = {"scene": "SceneFrames", "eye0": "Eye0Frames", "eye1": "Eye1Frames"}
_STAMPED = "stamped by the Companion app"


def streams(device: DeviceDescriptor, config: NdsiDevice) -> list[StreamDescriptor]:
    """The streams of the sensors that are chosen. Raises ConfigError when a file of intrinsics is not good.

    For those who go on with lsl-relay's, there are gaze and events alone in LSL, with its channels and types.
    """
    chosen = config.sensors
    as_relay = config.compat == "lsl-relay"
    lens = shipped.scene_camera(config.intrinsics, "pupil_invisible", *SCENE_PX)
    found = [gaze_stream(device, config.gaze, lens, as_relay)] if "gaze" in chosen else []
    found.append(event_stream(device, config.event, as_relay))
    if "imu" in chosen:
        found.append(imu_stream(device, config.imu, arrivals_bound_clock="gaze" not in chosen))
    for camera in cameras(chosen):
        scene = camera == "scene"
        known = config.scene if scene else config.eyes
        found.append(camera_stream(device, known, VideoLayout(camera, lens if scene else None)))
    if as_relay:
        return [stream if stream.name in RELAYED else msgspec.structs.replace(stream, lsl=False) for stream in found]
    return found


def cameras(sensors: tuple[str, ...]) -> list[str]:
    """The cameras of the chosen sensors."""
    return [camera for camera in CAMERA_SUFFIXES if ("scene" if camera == "scene" else "eyes") in sensors]


def camera_of(sensor_name: str) -> str | None:
    """Which camera a video sensor of this name is: "PI world v1" looks at the scene, "PI right v1" at the right eye."""
    name = sensor_name.lower()
    named = (("world", "scene"), ("right", "eye0"), ("left", "eye1"))
    return next((camera for word, camera in named if word in name), None)


def gaze_stream(
    device: DeviceDescriptor, known: StreamConfig, lens: Camera | None, as_relay: bool = False
) -> StreamDescriptor:
    return StreamDescriptor(
        device=device,
        name="gaze",
        kind=StreamKind.GAZE,
        lsl_suffix="Gaze",
        lsl_type="Gaze",
        channels=GAZE_CHANNELS[:2] if as_relay else GAZE_CHANNELS,
        expected_rate_hz=known.expected_rate_hz,
        instant=f"{_STAMPED}; the cameras' latency before that is not known",
        latency_ns=known.latency_ns,
        layout=GazeLayout(0, 1, False, *SCENE_PX, worn_index=None if as_relay else 2, intrinsics=lens),
        device_time=not as_relay,
    )


def event_stream(device: DeviceDescriptor, known: StreamConfig, as_relay: bool = False) -> StreamDescriptor:
    return StreamDescriptor(
        device=device,
        name="event",
        kind=StreamKind.EVENT,
        lsl_suffix="Event",
        # EEGLAB imports events from type Markers; lsl-relay's alignment tool looks for its own type.
        lsl_type="Event" if as_relay else "Markers",
        expected_rate_hz=known.expected_rate_hz,
        instant="the sender's time where it gave one, else arrival at the app",
        latency_ns=known.latency_ns,
        # A sender may give any time, also one before the last event's: that is what happened then.
        in_order=False,
        arrivals_bound_clock=False,
    )


def imu_stream(device: DeviceDescriptor, known: StreamConfig, arrivals_bound_clock: bool) -> StreamDescriptor:
    """Samples arrive in batches: only the last of each is young, so gaze tells the clock more where it is there."""
    return StreamDescriptor(
        device=device,
        name="imu",
        kind=StreamKind.IMU,
        lsl_suffix="IMU",
        lsl_type="IMU",
        channels=IMU_CHANNELS,
        expected_rate_hz=known.expected_rate_hz,
        instant=f"{_STAMPED}, each sample by itself; the sensor's latency before that is not known",
        latency_ns=known.latency_ns,
        arrivals_bound_clock=arrivals_bound_clock,
        layout=IMU_LAYOUT,
    )


def camera_stream(device: DeviceDescriptor, known: StreamConfig, layout: VideoLayout) -> StreamDescriptor:
    return StreamDescriptor(
        device=device,
        name=layout.camera,
        kind=StreamKind.VIDEO,
        lsl_suffix=CAMERA_SUFFIXES[layout.camera],
        lsl_type="VideoFrames",
        channels=FRAME_CHANNELS,
        expected_rate_hz=known.expected_rate_hz,
        instant=f"{_STAMPED}; which part of the exposure that is, and the camera's latency, are not known",
        latency_ns=known.latency_ns,
        # Frames are large: they wait in more places, and for longer, than what bounds a clock should.
        arrivals_bound_clock=False,
        layout=layout,
    )
