"""The streams of one Pupil Capture as the rest of the bridge sees them."""

from __future__ import annotations

import msgspec

from bridge import shipped
from bridge.config import PupilCoreSource, StreamConfig
from bridge.streams import (
    FRAME_CHANNELS,
    BlinkLayout,
    Camera,
    Channel,
    DeviceDescriptor,
    StreamDescriptor,
    StreamKind,
    VideoLayout,
)
from bridge.wire import pupil_core_channels as channels

# What Pupil Labs document of the cameras' latencies (docs.pupil-labs.com, "Network API"). Never subtracted by itself.
DOCUMENTED = "documented are 0.005 s of eye cameras on Linux, -0.015 s (eyes) and -0.070 s (scene) on Windows"
EYE_INSTANT = f"exposure of the eye image as Capture estimates it, a constant camera latency apart; {DOCUMENTED}"
INSTANT = f"exposure of the image as Capture estimates it, a constant camera latency apart; {DOCUMENTED}"
PLUGIN_FIXATION_CHANNELS = 7
CAMERA_SUFFIXES = {"scene": "SceneFrames", "eye0": "Eye0Frames", "eye1": "Eye1Frames"}


def scene_camera(config: PupilCoreSource) -> Camera | None:
    """The scene camera's intrinsics, as far as the configuration lets them be known."""
    return shipped.scene_camera(config.intrinsics, "pupil_core", *config.scene_size)


def _put_in_order(stream: StreamDescriptor, config: PupilCoreSource) -> StreamDescriptor:
    """For what goes back in time: the matcher pairs two eyes, whose cameras run free."""
    window_ns = config.reorder_window_ns
    return msgspec.structs.replace(
        stream, reorder_window_ns=window_ns, in_order=window_ns > 0, keep_late=config.late == "keep"
    )


def gaze_stream(device: DeviceDescriptor, config: PupilCoreSource) -> StreamDescriptor:
    """Gaze datums of all mappings, in the channels of the Capture plugin's `pupil_capture` stream."""
    width_px, height_px = config.scene_size
    stream = StreamDescriptor(
        device=device,
        name="gaze",
        kind=StreamKind.GAZE,
        lsl_suffix="",
        lsl_type="Gaze",
        channels=channels.GAZE_CHANNELS,
        expected_rate_hz=config.gaze.expected_rate_hz,
        instant=EYE_INSTANT,
        latency_ns=config.gaze.latency_ns,
        device_time=config.compat != "capture",
        # The matcher holds gaze back for 12 to 120 ms and more.
        arrivals_bound_clock=False,
        layout=msgspec.structs.replace(channels.gaze_layout(width_px, height_px), intrinsics=scene_camera(config)),
    )
    return _put_in_order(stream, config)


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
        lsl=config.compat != "capture",
        layout=channels.pupil_layout(eye, method),
    )


def pupillometry_stream(device: DeviceDescriptor, config: PupilCoreSource) -> StreamDescriptor:
    """Pupil datums of both eyes and all methods, as Pupil Labs' plugin has them. For LSL alone."""
    stream = StreamDescriptor(
        device=device,
        name="pupillometry",
        kind=StreamKind.PUPIL,
        lsl_suffix="pupillometry_only",
        lsl_type="Gaze",
        channels=channels.PUPILLOMETRY_CHANNELS,
        instant=EYE_INSTANT,
        latency_ns=config.pupil.latency_ns,
        device_time=config.compat != "capture",
        arrivals_bound_clock=False,  # the streams of each eye and method do
    )
    return _put_in_order(stream, config)


def fixation_stream(device: DeviceDescriptor, config: PupilCoreSource, *, live: bool) -> StreamDescriptor:
    """Whole fixations or, ``live``, the windows that Capture makes them known by."""
    width_px, height_px = config.scene_size
    as_plugin = live and config.compat == "capture"
    layout = channels.fixation_layout(width_px, height_px, live=live, point=not as_plugin)
    return StreamDescriptor(
        device=device,
        name="fixations_live" if live else "fixations",
        kind=StreamKind.FIXATION,
        lsl_suffix="fixations_live" if live and not as_plugin else "fixations",
        lsl_type="Fixations",
        channels=channels.FIXATION_CHANNELS[: PLUGIN_FIXATION_CHANNELS if as_plugin else None],
        instant=f"start of {'the window' if live else 'the fixation'}: {EYE_INSTANT}",
        latency_ns=config.gaze.latency_ns,
        lsl=as_plugin or config.compat != "capture",
        device_time=config.compat != "capture",
        arrivals_bound_clock=False,  # its start is long over
        layout=layout,
    )


def blink_stream(device: DeviceDescriptor, config: PupilCoreSource) -> StreamDescriptor:
    """Whole blinks."""
    return _events_of_eyes(
        device,
        config,
        "blinks",
        "Blinks",
        channels.BLINK_CHANNELS,
        f"start of the blink, as the middle of the filter's window at its steepest: {EYE_INSTANT}",
        channels.blink_layout(),
    )


def blink_edge_stream(device: DeviceDescriptor, config: PupilCoreSource) -> StreamDescriptor:
    """What Capture's filter finds, onsets and offsets, several of each blink."""
    instant = f"middle of the filter's window: {EYE_INSTANT}"
    return _events_of_eyes(device, config, "blinks_live", "Blinks_live", channels.BLINK_EDGE_CHANNELS, instant)


def _events_of_eyes(
    device: DeviceDescriptor,
    config: PupilCoreSource,
    name: str,
    suffix: str,
    of: tuple[Channel, ...],
    instant: str,
    layout: BlinkLayout | None = None,
) -> StreamDescriptor:
    return StreamDescriptor(
        device=device,
        name=name,
        kind=StreamKind.BLINK,
        lsl_suffix=suffix,
        lsl_type="Blinks",
        channels=of,
        instant=instant,
        latency_ns=config.pupil.latency_ns,
        lsl=config.compat != "capture",
        arrivals_bound_clock=False,
        layout=layout,
    )


def surface_stream(device: DeviceDescriptor, config: PupilCoreSource, surface: str, slug: str) -> StreamDescriptor:
    """Gaze on one surface."""
    stream = StreamDescriptor(
        device=device,
        name=f"surface_{slug}",
        kind=StreamKind.SURFACE,
        lsl_suffix=f"Surface_{slug}",
        lsl_type="Gaze",
        channels=channels.SURFACE_CHANNELS,
        instant=EYE_INSTANT,
        latency_ns=config.gaze.latency_ns,
        lsl=config.compat != "capture",
        arrivals_bound_clock=False,
        layout=channels.surface_layout(surface),
    )
    return _put_in_order(stream, config)


def surface_fixation_stream(
    device: DeviceDescriptor, config: PupilCoreSource, surface: str, slug: str
) -> StreamDescriptor:
    """Whole fixations, where they are on one surface."""
    return StreamDescriptor(
        device=device,
        name=f"surface_{slug}_fixations",
        kind=StreamKind.FIXATION,
        lsl_suffix=f"Surface_{slug}_fixations",
        lsl_type="Fixations",
        channels=channels.SURFACE_FIXATION_CHANNELS,
        instant=f"start of the fixation: {EYE_INSTANT}",
        latency_ns=config.gaze.latency_ns,
        lsl=config.compat != "capture",
        arrivals_bound_clock=False,
        layout=channels.surface_fixation_layout(surface),
    )


def annotation_stream(device: DeviceDescriptor, config: PupilCoreSource) -> StreamDescriptor:
    """What is marked in recordings, by whomever: at any time, and of any time."""
    return _markers(device, config, "annotations", "Annotations", "as whoever sent the annotation stamped it")


def notification_stream(device: DeviceDescriptor, config: PupilCoreSource) -> StreamDescriptor:
    """What happens in Capture."""
    instant = "as Capture stamped it; where the text says so, its arrival at the bridge instead"
    return _markers(device, config, "notifications", "Notifications", instant)


def _markers(
    device: DeviceDescriptor, config: PupilCoreSource, name: str, suffix: str, instant: str
) -> StreamDescriptor:
    return StreamDescriptor(
        device=device,
        name=name,
        kind=StreamKind.EVENT,
        lsl_suffix=suffix,
        lsl_type="Markers",
        instant=instant,
        in_order=False,
        lsl=config.compat != "capture",
        arrivals_bound_clock=False,
    )


def video_stream(device: DeviceDescriptor, config: PupilCoreSource, camera: str) -> StreamDescriptor:
    """The images of "scene", "eye0" or "eye1"."""
    known: StreamConfig = config.scene if camera == "scene" else config.eyes
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
        lsl=config.compat != "capture",
        # They are long on their way, and wait in queues where a computer is slow.
        arrivals_bound_clock=False,
        layout=VideoLayout(camera, scene_camera(config) if camera == "scene" else None),
    )
