"""What flows through the bridge: devices, streams, samples. Values only, no behaviour.

Times are integer nanoseconds: ``device_ns`` on the device's own clock, every ``*_host_ns`` and ``received_ns`` on the
host's CLOCK_MONOTONIC.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class StreamKind(StrEnum):
    """What a stream carries; sinks choose their form by it."""

    GAZE = "gaze"
    EVENT = "event"
    PUPIL = "pupil"
    FIXATION = "fixation"
    BLINK = "blink"
    SURFACE = "surface"
    IMU = "imu"
    VIDEO = "video"


class Channel(msgspec.Struct, frozen=True):
    """One column of a numeric stream, in the terms of the XDF gaze metadata specification."""

    label: str
    unit: str
    type: str
    eye: str = "both"
    coordinate_system: str = ""


class Camera(msgspec.Struct, frozen=True):
    """A camera's intrinsics, in the terms of ROS' CameraInfo and camera_calibration's YAML files.

    ``model`` is plumb_bob, rational_polynomial or equidistant (a fisheye lens), ``d`` its 5, 8 or 4 coefficients in
    OpenCV's order. ``k`` is the 3 x 3 camera matrix in pixels, ``r`` the 3 x 3 rectification, ``p`` the 3 x 4
    projection in pixels of the rectified image, each row after row.
    """

    name: str
    width_px: int
    height_px: int
    model: str
    d: tuple[float, ...]
    k: tuple[float, ...]
    r: tuple[float, ...]
    p: tuple[float, ...]


class GazeLayout(msgspec.Struct, frozen=True):
    """Where a gaze stream's payload holds what. An index is that of its first channel, None where there is none.

    ``normalized_bottom_left`` is Pupil Core's norm_pos (0 to 1, y up); otherwise x, y are pixels from the top left.
    ``width_px``/``height_px`` is the scene camera's size. Points and vectors are three channels, in mm and as unit
    vectors of the scene camera (x right, y down, z forward); pairs are (right eye, left eye).
    """

    x_index: int
    y_index: int
    normalized_bottom_left: bool
    width_px: int
    height_px: int
    confidence_index: int | None = None
    worn_index: int | None = None  # above 0.5: it is worn; NaN: not known
    point_index: int | None = None
    eye_center_indexes: tuple[int, int] | None = None
    eye_axis_indexes: tuple[int, int] | None = None
    diameter_mm_indexes: tuple[int, int] | None = None
    diameter_px_indexes: tuple[int, int] | None = None
    intrinsics: Camera | None = None  # of the scene camera


class PupilLayout(msgspec.Struct, frozen=True):
    """Where a pupil stream's payload holds what, as in GazeLayout, in the eye camera's image and frame.

    ``eye`` is "right" or "left", ``camera`` its camera's name, ``method`` how the pupil was found.
    """

    eye: str
    camera: str
    method: str
    x_index: int  # normalized, y up
    y_index: int
    confidence_index: int
    diameter_px_index: int
    diameter_mm_index: int
    model_confidence_index: int
    center_index: int
    normal_index: int


class FixationLayout(msgspec.Struct, frozen=True):
    """Where a fixation stream's payload holds what, as in GazeLayout; stamps are the starts of fixations.

    ``surface`` is that on which the positions are (normalized, y up), "" for the scene image. ``duration_index``: ms,
    ``dispersion_index``: degrees, ``method_index``: 2 or 3 as the gaze was. ``live``: the fixations still go on.
    """

    id_index: int
    x_index: int
    y_index: int
    normalized_bottom_left: bool
    width_px: int
    height_px: int
    duration_index: int
    dispersion_index: int
    confidence_index: int
    method_index: int | None = None
    point_index: int | None = None
    on_surface_index: int | None = None  # above 0.5: on it
    surface: str = ""
    live: bool = False


class BlinkLayout(msgspec.Struct, frozen=True):
    """Where a blink stream's payload holds what; stamps are the starts of blinks. ``duration_index``: seconds, NaN
    where its end was not seen."""

    duration_index: int
    confidence_index: int


class SurfaceLayout(msgspec.Struct, frozen=True):
    """Where a stream of gaze on the surface ``surface`` holds what: normalized, y up, from its bottom left corner."""

    surface: str
    x_index: int
    y_index: int
    on_surface_index: int  # above 0.5: on it
    confidence_index: int


class ImuLayout(msgspec.Struct, frozen=True):
    """Where an IMU stream's payload has its three axes: acceleration in g, angular velocity in degrees a second."""

    acceleration_index: int
    angular_velocity_index: int


class VideoLayout(msgspec.Struct, frozen=True):
    """``camera``: "scene", "eye0" (the right eye's), "eye1"; unique in the device. ``intrinsics`` None: not known."""

    camera: str
    intrinsics: Camera | None = None


Layout = GazeLayout | PupilLayout | FixationLayout | BlinkLayout | SurfaceLayout | ImuLayout | VideoLayout


class DeviceDescriptor(msgspec.Struct, frozen=True):
    """One eye tracker. ``name`` is unique in the daemon and stable over restarts; everything is named after it.

    ``session_id`` is that of its time-sync events in this run, "" where it has none.
    """

    name: str
    kind: str
    lsl_prefix: str
    manufacturer: str = "Pupil Labs"
    model: str = ""
    transport: str = ""
    session_id: str = ""


class StreamDescriptor(msgspec.Struct, frozen=True):
    """One stream of a device, fixed for the life of the daemon.

    ``name`` is unique in the device. ``lsl_suffix`` is appended to the device's LSL prefix ("" for the prefix alone).
    ``channels`` is empty for text streams, and what stands for a frame in video streams. ``instant`` says which moment
    a device stamp means; ``latency_ns`` is a known constant that is subtracted from it. A device whose stamps go
    backwards has them put in order within ``reorder_window_ns``; ``in_order`` False lets them leave as they come, and
    ``keep_late`` has those that are later than the window leave with the stamp of the last one, where they would be
    dropped. ``lsl`` False: not for LSL. ``device_time`` False: there without the channel of the device's own stamps.
    ``arrivals_bound_clock`` is False where samples are too old on arrival to say anything about the device's clock.
    """

    device: DeviceDescriptor
    name: str
    kind: StreamKind
    lsl_suffix: str
    lsl_type: str
    channels: tuple[Channel, ...] = ()
    expected_rate_hz: float | None = None
    instant: str = ""
    latency_ns: int = 0
    reorder_window_ns: int = 0
    in_order: bool = True
    keep_late: bool = False
    lsl: bool = True
    device_time: bool = True
    arrivals_bound_clock: bool = True
    layout: Layout | None = None

    @property
    def source_id(self) -> str:
        """Restart-stable identity for LSL recorders."""
        return f"{self.device.name}_{self.lsl_suffix or 'Gaze'}"

    @property
    def lsl_name(self) -> str:
        return f"{self.device.lsl_prefix}_{self.lsl_suffix}" if self.lsl_suffix else self.device.lsl_prefix


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One image of a camera, as the device sent it.

    ``format``: "jpeg", "h264" (Annex B), "gray" (8 bit), "bgr" (8 bit each),
    "yuv" (planar; its length tells how the colours are subsampled). ``index`` is the device's own count.
    """

    format: str
    width_px: int
    height_px: int
    index: int
    data: bytes


Payload = tuple[float, ...] | str | Frame

# What stands for a frame where images cannot go.
FRAME_CHANNELS = (Channel("frame_index", "none", "FrameIndex"),)


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One datum: numbers in the order of the stream's channels, a text, or an image."""

    stream: StreamDescriptor
    device_ns: int
    received_ns: int
    payload: Payload
