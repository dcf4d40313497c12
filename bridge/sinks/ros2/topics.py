"""Every topic that the bridge offers, as one table: what publishes, and what the documentation shows. No rclpy here.

Names are relative to ``<node namespace>/<device name>/``; in names and frames ``{surface}``, ``{camera}`` and so on
stand for what a device has; a surface's name is made of a to z, 0 to 9 and _ (bridge/sinks/ros2/surfaces.py). Units are
those of REP-103, the IMU's frame that of REP-145.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SCENE_FRAME: Final = "{device}_scene_camera_optical_frame"
CAMERA_FRAME: Final = "{device}_{camera}_camera_optical_frame"
IMU_FRAME: Final = "{device}_imu_link"
SURFACE_FRAME: Final = "{device}_surface_{surface}"  # origin at its top left corner, x right, y down
SMALL, VIDEO, ONE = 50, 5, 1


class Topic(NamedTuple):
    """``type`` is published if its package can be imported; ``optional`` says where it cannot be taken for granted.

    ``depth`` is that of KEEP_LAST; all topics offer RELIABLE; ``latched`` is TRANSIENT_LOCAL, else VOLATILE.
    """

    name: str
    type: str
    frame: str
    rate: str
    unit: str
    origin: str
    depth: int = SMALL
    latched: bool = False
    optional: bool = False


TOPICS: Final = (
    Topic(
        "gaze/pixel",
        "geometry_msgs/msg/PointStamped",
        SCENE_FRAME,
        "each gaze sample",
        "x, y in pixels from the top left of the scene image; z = 0",
        "NDSI gaze; Core gaze.* (norm_pos, with `scene_size`)",
    ),
    Topic(
        "gaze/normalized",
        "geometry_msgs/msg/PointStamped",
        SCENE_FRAME,
        "each gaze sample",
        "x, y from 0 to 1, from the top left of the scene image, y down; z = 0",
        "as gaze/pixel",
    ),
    Topic(
        "gaze/ray",
        "geometry_msgs/msg/PoseStamped",
        SCENE_FRAME,
        "each gaze sample that has a direction",
        "position in m; +z of the orientation along the gaze",
        "Core 3d: from the middle of the eyes to gaze_point_3d; else through the pixel, by the camera's intrinsics",
    ),
    Topic(
        "gaze/point_3d",
        "geometry_msgs/msg/PointStamped",
        SCENE_FRAME,
        "each gaze sample that has one",
        "m (the device's mm / 1000)",
        "Core 3d: gaze_point_3d",
    ),
    Topic(
        "gaze/marker",
        "visualization_msgs/msg/Marker",
        SCENE_FRAME,
        "each gaze sample that has a direction",
        "an arrow, m; paler with less confidence",
        "as gaze/ray",
    ),
    Topic(
        "gaze",
        "pupil_msgs/msg/Gaze",
        SCENE_FRAME,
        "each gaze sample",
        "all of the above and both eyes, confidence, worn; bound and state of the stamp",
        "NDSI gaze; Core gaze.*",
        optional=True,
    ),
    Topic(
        "pupil",
        "pupil_msgs/msg/Pupil",
        CAMERA_FRAME,
        "each pupil datum of each eye and method",
        "m, pixels of the eye image, 0 to 1 from its top left",
        "Core pupil.*",
        optional=True,
    ),
    Topic(
        "fixations",
        "pupil_msgs/msg/Fixation",
        SCENE_FRAME,
        "each fixation, once it is over",
        "header.stamp: its start; s, m, rad, pixels and 0 to 1 from the top left of the scene image; finished = true",
        "Core fixations",
        optional=True,
    ),
    Topic(
        "fixations/live",
        "pupil_msgs/msg/Fixation",
        SCENE_FRAME,
        "each window in which one is found, with `live = true`",
        "as fixations; finished = false, and one fixation comes several times",
        "Core fixations",
        optional=True,
    ),
    Topic(
        "blinks",
        "pupil_msgs/msg/Blink",
        "",
        "each blink, once it is over",
        "header.stamp: its start; s",
        "Core blinks",
        optional=True,
    ),
    Topic(
        "surfaces/{surface}/gaze",
        "pupil_msgs/msg/SurfaceGaze",
        SURFACE_FRAME,
        "each gaze sample while the surface is seen",
        "0 to 1 from the top left of the surface, y down; its name on the device; whether it is on it",
        "Core surfaces.*",
        optional=True,
    ),
    Topic(
        "surfaces/{surface}/gaze/normalized",
        "geometry_msgs/msg/PointStamped",
        SURFACE_FRAME,
        "each gaze sample while the surface is seen",
        "x, y from 0 to 1 from the top left of the surface, y down, beyond them beside it; z = 0",
        "Core surfaces.*",
    ),
    Topic(
        "surfaces/{surface}/fixations",
        "pupil_msgs/msg/Fixation",
        SURFACE_FRAME,
        "each fixation, once it is over",
        "as fixations, but 0 to 1 from the top left of the surface, beyond them beside it; no pixels, no point",
        "Core surfaces.*",
        optional=True,
    ),
    Topic(
        "imu/data_raw",
        "sensor_msgs/msg/Imu",
        IMU_FRAME,
        "each IMU sample",
        "m/s^2, rad/s; orientation_covariance[0] = -1: there is no orientation",
        "NDSI imu (g, degrees a second)",
    ),
    Topic(
        "{camera}/image_raw/compressed",
        "sensor_msgs/msg/CompressedImage",
        CAMERA_FRAME,
        "each frame that is a JPEG",
        "the device's own bytes",
        "NDSI video; Core frame.*",
        depth=VIDEO,
    ),
    Topic(
        "{camera}/image_raw",
        "sensor_msgs/msg/Image",
        CAMERA_FRAME,
        "each frame, while somebody subscribes",
        "rgb8 (decoded JPEG, or planes of YUV), bgr8, mono8",
        "NDSI video; Core frame.*",
        depth=VIDEO,
    ),
    Topic(
        "{camera}/camera_info",
        "sensor_msgs/msg/CameraInfo",
        CAMERA_FRAME,
        "with each image, if intrinsics are known",
        "pixels",
        "`intrinsics` of the configuration, or the shipped ones",
        depth=VIDEO,
    ),
    Topic(
        "{camera}/video",
        "foxglove_msgs/msg/CompressedVideo",
        CAMERA_FRAME,
        "each frame that is H.264",
        "the device's own bytes (Annex B); without foxglove_msgs a CompressedImage of format h264",
        "NDSI video",
        depth=VIDEO,
    ),
    Topic(
        "scene/annotations",
        "foxglove_msgs/msg/ImageAnnotations",
        SCENE_FRAME,
        "each gaze sample",
        "a circle at the gaze, pixels",
        "as gaze/pixel",
        optional=True,
    ),
    Topic(
        "events",
        "sensor_msgs/msg/TimeReference",
        "",
        "each event",
        "header.stamp: when it was; time_ref: the device's time; source: the text",
        "NDSI event; Core annotation",
    ),
    Topic(
        "events_detail",
        "pupil_msgs/msg/Event",
        "",
        "each event",
        "the text; bound and state of the stamp",
        "NDSI event; Core annotation",
        optional=True,
    ),
    Topic(
        "notifications",
        "sensor_msgs/msg/TimeReference",
        "",
        "each notification of those chosen",
        "header.stamp: when it was; time_ref: the device's time; source: the notification as JSON",
        "Core notify.*",
    ),
    Topic(
        "clock_events",
        "sensor_msgs/msg/TimeReference",
        "",
        "each beginning of an epoch of the device's clock",
        "header.stamp: when it was noticed; time_ref: the device's time; source: why",
        "the bridge",
    ),
    Topic(
        "time_reference",
        "sensor_msgs/msg/TimeReference",
        "",
        "1 Hz and at changes",
        "header.stamp: this computer's time; time_ref: the device's at that moment",
        "the bridge",
    ),
    Topic(
        "clock_status",
        "pupil_msgs/msg/ClockStatus",
        "",
        "1 Hz and at changes",
        "s; offset in ns",
        "the bridge",
        optional=True,
    ),
    Topic(
        "device_info",
        "pupil_msgs/msg/DeviceInfo",
        "",
        "at changes",
        "what the device is, has and can be asked for",
        "the bridge",
        depth=ONE,
        latched=True,
        optional=True,
    ),
    Topic(
        "/diagnostics",
        "diagnostic_msgs/msg/DiagnosticArray",
        "",
        "1 Hz",
        "a status for the bridge and one for each device: OK, WARN, STALE; s",
        "the bridge",
        depth=10,
    ),
    Topic(
        "/tf_static",
        "tf2_msgs/msg/TFMessage",
        "{device}_link",
        "at changes",
        "from {device}_link (x forward, z up) to the scene camera's optical frame (z forward)",
        "the bridge, unless `tf = false`",
        depth=ONE,
        latched=True,
        optional=True,
    ),
    Topic(
        "/tf",
        "tf2_msgs/msg/TFMessage",
        SCENE_FRAME,
        "each gaze sample that has a direction, if `tf_gaze = true`",
        "to {device}_gaze: m; +z along the gaze",
        "as gaze/ray",
        depth=100,
        optional=True,
    ),
)

BY_NAME: Final = {topic.name: topic for topic in TOPICS}
CUSTOM_PACKAGES: Final = ("pupil_msgs", "tf2_msgs", "foxglove_msgs")


def table() -> str:
    """The table as Markdown, for docs/ros2-topics.md."""
    rows = ["| topic | type | frame | rate | QoS | unit, content | origin |", "|---|---|---|---|---|---|---|"]
    for topic in TOPICS:
        qos = f"reliable, last {topic.depth}{', transient local' if topic.latched else ''}"
        kind = f"{topic.type}{' (if importable)' if topic.optional else ''}"
        frame = f"`{topic.frame}`" if topic.frame else ""
        rows.append(f"| `{topic.name}` | {kind} | {frame} | {topic.rate} | {qos} | {topic.unit} | {topic.origin} |")
    return "\n".join(rows) + "\n"
