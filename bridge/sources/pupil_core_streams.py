"""The streams of one Pupil Capture as the rest of the bridge sees them."""

from __future__ import annotations

import msgspec

from bridge import shipped
from bridge.config import PupilCoreSource
from bridge.streams import FRAME_CHANNELS, Camera, DeviceDescriptor, StreamDescriptor, StreamKind, VideoLayout
from bridge.wire import pupil_core_channels as channels

EYE_INSTANT = "exposure of the eye image as Capture estimates it, a constant camera latency apart"
INSTANT = "exposure of the image as Capture estimates it, a constant camera latency apart"
CAMERA_SUFFIXES = {"scene": "SceneFrames", "eye0": "Eye0Frames", "eye1": "Eye1Frames"}


def scene_camera(config: PupilCoreSource) -> Camera | None:
    """The scene camera's intrinsics, as far as the configuration lets them be known."""
    return shipped.scene_camera(config.intrinsics, "pupil_core", *config.scene_size)


def gaze_stream(device: DeviceDescriptor, config: PupilCoreSource) -> StreamDescriptor:
    """Gaze datums of all mappings, in the channels of the Capture plugin's `pupil_capture` stream."""
    width_px, height_px = config.scene_size
    return StreamDescriptor(
        device=device,
        name="gaze",
        kind=StreamKind.GAZE,
        lsl_suffix="",
        lsl_type="Gaze",
        channels=channels.GAZE_CHANNELS,
        expected_rate_hz=config.gaze.expected_rate_hz,
        instant=EYE_INSTANT,
        latency_ns=config.gaze.latency_ns,
        reorder_window_ns=config.reorder_window_ns,
        in_order=config.reorder_window_ns > 0,
        # The matcher holds gaze back for 12 to 120 ms and more.
        arrivals_bound_clock=False,
        layout=msgspec.structs.replace(channels.gaze_layout(width_px, height_px), intrinsics=scene_camera(config)),
    )


def pupil_stream(device: DeviceDescriptor, config: PupilCoreSource, eye: int, method: str) -> StreamDescriptor:
    """Pupil datums of one eye (0 is the right one) and one method."""
    return StreamDescriptor(
        device=device,
        name=f"pupil_{eye}_{method}",
        kind=StreamKind.PUPIL,
        lsl_suffix=f"Pupil{eye}_{method}",
        lsl_type="Pupillometry",
        channels=tuple(msgspec.structs.replace(c, eye="left" if eye else "right") for c in channels.PUPIL_CHANNELS),
        expected_rate_hz=config.pupil.expected_rate_hz,
        instant=EYE_INSTANT,
        latency_ns=config.pupil.latency_ns,
        layout=channels.pupil_layout(eye, method),
    )


def video_stream(device: DeviceDescriptor, config: PupilCoreSource, camera: str) -> StreamDescriptor:
    """The images of "scene", "eye0" or "eye1"."""
    known = config.scene if camera == "scene" else config.eyes
    return StreamDescriptor(
        device=device,
        name=camera,
        kind=StreamKind.VIDEO,
        lsl_suffix=CAMERA_SUFFIXES[camera],
        lsl_type="VideoFrames",
        channels=FRAME_CHANNELS,
        expected_rate_hz=known.expected_rate_hz,
        instant=INSTANT,
        latency_ns=known.latency_ns,
        # They are long on their way, and wait in queues where a computer is slow.
        arrivals_bound_clock=False,
        layout=VideoLayout(camera, scene_camera(config) if camera == "scene" else None),
    )
