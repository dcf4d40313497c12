"""A gaze stream's topics: pixel, normalized, ray, point, marker, annotation, TF, and the message that has it all.

What nobody subscribes to is not even filled in. Messages are made once and used again: making them costs more than
filling them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from geometry_msgs.msg import Point, Vector3
from std_msgs.msg import Header

from bridge.clock import Mapped
from bridge.lens import unprojection
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.stamps import write
from bridge.streams import GazeLayout, Sample, StreamDescriptor

MARKER_M: Final = 1.0  # how far a ray without an end is drawn
MARKER_LIFETIME_NS: Final = 300_000_000
MM: Final = 1e-3
NOTHING: Final = (math.nan,) * 3
Ray = tuple[float, float, float, float, float, float]  # origin in m, unit vector


class GazeTopics:
    """All topics of one gaze stream."""

    def __init__(self, desk: Desk, stream: StreamDescriptor, layout: GazeLayout) -> None:
        self._desk = desk
        self._layout = layout
        self._values: tuple[float, ...] = ()
        self._xy = (0.0, 0.0)
        self.header = Header(frame_id=desk.frame("gaze/pixel", stream.device.name))
        self._unproject = None if layout.intrinsics is None else unprojection(layout.intrinsics)
        self._device = stream.device.name
        self.publishers: list[Any] = []
        self._topics: list[tuple[Callable[[], int], Callable[[Sample, Mapped], None]]] = []
        self._offer("gaze/pixel", self._pixel)
        self._offer("gaze/normalized", self._normalized)
        if layout.point_index is not None:
            self._offer("gaze/point_3d", self._point_3d)
        if layout.point_index is not None or self._unproject is not None:
            self._offer("gaze/ray", self._ray)
            self._offer("gaze/marker", self._marker)
            if desk.settings.tf_gaze and desk.has("/tf"):
                self._offer("/tf", self._transform)
        if desk.has("scene/annotations"):
            self._offer("scene/annotations", self._annotation)
        if desk.has("gaze"):
            self._offer("gaze", self._whole)

    def _offer(self, topic: str, make: Callable[[Any], Callable[[Sample, Mapped], None]]) -> None:
        publisher = self._desk.publisher(self._device, topic)
        self.publishers.append(publisher)
        self._topics.append((publisher.get_subscription_count, make(publisher)))

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        """To every topic that somebody subscribes to."""
        wanted = [fill for count, fill in self._topics if count()]
        if not wanted:
            return
        assert isinstance(sample.payload, tuple)
        self._values = values = sample.payload
        write(self.header.stamp, self._desk.stamps.of(sample, host_ns))
        layout = self._layout
        x, y = values[layout.x_index], values[layout.y_index]
        if layout.normalized_bottom_left:
            x, y = x * layout.width_px, (1.0 - y) * layout.height_px
        self._xy = x, y
        for fill in wanted:
            fill(sample, mapped)

    # --- what can be known of a sample ----------------------------------------------------------------------------

    def _vector(self, index: int | None, scale: float = 1.0) -> tuple[float, float, float]:
        if index is None:
            return math.nan, math.nan, math.nan
        x, y, z = self._values[index : index + 3]
        return x * scale, y * scale, z * scale

    def ray(self) -> Ray | None:
        """From between the eyes that are known to the gaze point; else from the camera through the pixel, if its
        intrinsics are known. Half lines have no length."""
        layout = self._layout
        px, py, pz = self._vector(layout.point_index, MM)
        if px == px and layout.eye_center_indexes is not None:  # no NaN
            centers = [self._vector(index, MM) for index in layout.eye_center_indexes]
            known = [center for center in centers if center[0] == center[0]]
            if known:
                ox, oy, oz = (sum(axis) / len(known) for axis in zip(*known, strict=True))
                return _unit((ox, oy, oz), (px - ox, py - oy, pz - oz))
        if self._unproject is not None and math.isfinite(self._xy[0]) and math.isfinite(self._xy[1]):
            direction = self._unproject(*self._xy)
            # Where a lens model was not fitted, it can point backwards.
            return _unit((0.0, 0.0, 0.0), direction) if direction[2] > 0.0 else None
        return None

    # --- one function a topic, made with its message ----------------------------------------------------------------

    def _pixel(self, publisher: Any) -> Callable[[Sample, Mapped], None]:
        message = self._desk.type("geometry_msgs/msg/PointStamped")(header=self.header)
        publish, point = publisher.publish, message.point

        def fill(_: Sample, __: Mapped) -> None:
            point.x, point.y = self._xy
            publish(message)

        return fill

    def _normalized(self, publisher: Any) -> Callable[[Sample, Mapped], None]:
        message = self._desk.type("geometry_msgs/msg/PointStamped")(header=self.header)
        publish, point = publisher.publish, message.point
        width_px, height_px = self._layout.width_px, self._layout.height_px

        def fill(_: Sample, __: Mapped) -> None:
            point.x, point.y = self._xy[0] / width_px, self._xy[1] / height_px
            publish(message)

        return fill

    def _point_3d(self, publisher: Any) -> Callable[[Sample, Mapped], None]:
        message = self._desk.type("geometry_msgs/msg/PointStamped")(header=self.header)
        publish, point = publisher.publish, message.point

        def fill(_: Sample, __: Mapped) -> None:
            point.x, point.y, point.z = self._vector(self._layout.point_index, MM)
            if point.x == point.x:
                publish(message)

        return fill

    def _ray(self, publisher: Any) -> Callable[[Sample, Mapped], None]:
        message = self._desk.type("geometry_msgs/msg/PoseStamped")(header=self.header)
        publish, position, orientation = publisher.publish, message.pose.position, message.pose.orientation

        def fill(_: Sample, __: Mapped) -> None:
            if (ray := self.ray()) is not None:
                position.x, position.y, position.z = ray[:3]
                orientation.x, orientation.y, orientation.z, orientation.w = rotation(*ray[3:])
                publish(message)

        return fill

    def _transform(self, publisher: Any) -> Callable[[Sample, Mapped], None]:
        transform = self._desk.type("geometry_msgs/msg/TransformStamped")(header=self.header)
        transform.child_frame_id = f"{self._desk.settings.frame_prefix}{self._device}_gaze"
        message = self._desk.type("tf2_msgs/msg/TFMessage")(transforms=[transform])
        publish, origin, turn = publisher.publish, transform.transform.translation, transform.transform.rotation

        def fill(_: Sample, __: Mapped) -> None:
            if (ray := self.ray()) is not None:
                origin.x, origin.y, origin.z = ray[:3]
                turn.x, turn.y, turn.z, turn.w = rotation(*ray[3:])
                publish(message)

        return fill

    def _marker(self, publisher: Any) -> Callable[[Sample, Mapped], None]:
        kind = self._desk.type("visualization_msgs/msg/Marker")
        start, end = Point(), Point()
        message = kind(header=self.header, ns=self._device, type=kind.ARROW, points=[start, end])
        message.scale.x, message.scale.y, message.scale.z = 0.01, 0.03, 0.05  # m: shaft, head, head's length
        message.color.r, message.color.g, message.color.b, message.color.a = 1.0, 0.35, 0.1, 1.0
        message.pose.orientation.w = 1.0
        message.lifetime.nanosec = MARKER_LIFETIME_NS
        publish, index = publisher.publish, self._layout.confidence_index

        def fill(_: Sample, __: Mapped) -> None:
            if (ray := self.ray()) is None:
                return
            ox, oy, oz, dx, dy, dz = ray
            px, py, pz = self._vector(self._layout.point_index, MM)
            if px != px:
                px, py, pz = ox + MARKER_M * dx, oy + MARKER_M * dy, oz + MARKER_M * dz
            start.x, start.y, start.z = ox, oy, oz
            end.x, end.y, end.z = px, py, pz
            if index is not None:
                message.color.a = min(1.0, max(0.15, self._values[index]))
            publish(message)

        return fill

    def _annotation(self, publisher: Any) -> Callable[[Sample, Mapped], None]:
        circle = self._desk.type("foxglove_msgs/msg/CircleAnnotation")(diameter=40.0, thickness=4.0)
        circle.timestamp = self.header.stamp
        for name, value in (("r", 1.0), ("g", 0.35), ("b", 0.1), ("a", 1.0)):
            setattr(circle.outline_color, name, value)
        message = self._desk.type("foxglove_msgs/msg/ImageAnnotations")(circles=[circle])
        publish, position = publisher.publish, circle.position

        def fill(_: Sample, __: Mapped) -> None:
            position.x, position.y = self._xy
            publish(message)

        return fill

    def _whole(self, publisher: Any) -> Callable[[Sample, Mapped], None]:
        layout, desk = self._layout, self._desk
        message = desk.type("pupil_msgs/msg/Gaze")(
            header=self.header, image_width=layout.width_px, image_height=layout.height_px
        )
        publish, quality = publisher.publish, desk.stamps.quality
        # What this stream never has is NaN once for all: setting a field takes a microsecond where there are many.
        eyes = (message.right, message.left)
        for eye in eyes:
            eye.eyelid_aperture = eye.eyelid_angle_top = eye.eyelid_angle_bottom = math.nan
        for vector in (message.point, message.ray_origin, message.ray_direction, *(eye.center for eye in eyes)):
            _set(vector, NOTHING)
        for eye in eyes:
            _set(eye.optical_axis, NOTHING)
            eye.pupil_diameter = eye.pupil_diameter_px = math.nan
        message.confidence = math.nan
        has_eyes = any((layout.eye_center_indexes, layout.diameter_mm_indexes, layout.diameter_px_indexes))

        def fill(sample: Sample, mapped: Mapped) -> None:
            quality(message.quality, sample, mapped)
            x, y = self._xy
            message.pixel_x, message.pixel_y = x, y
            message.normalized_x, message.normalized_y = x / layout.width_px, y / layout.height_px
            ray = self.ray()
            _set(message.ray_origin, NOTHING if ray is None else ray[:3])
            _set(message.ray_direction, NOTHING if ray is None else ray[3:])
            if layout.point_index is not None:
                _set(message.point, self._vector(layout.point_index, MM))
            if has_eyes:
                self._eye(message.right, 0)
                self._eye(message.left, 1)
            if layout.confidence_index is not None:
                message.confidence = self._values[layout.confidence_index]
            worn = self._value(layout.worn_index)
            message.worn = 0 if worn != worn else 2 if worn > 0.5 else 1
            publish(message)

        return fill

    def _value(self, index: int | None) -> float:
        return math.nan if index is None else self._values[index]

    def _eye(self, eye: Any, which: int) -> None:
        layout = self._layout
        _set(eye.center, self._vector(None if (i := layout.eye_center_indexes) is None else i[which], MM))
        _set(eye.optical_axis, self._vector(None if (i := layout.eye_axis_indexes) is None else i[which]))
        eye.pupil_diameter = MM * self._value(None if (i := layout.diameter_mm_indexes) is None else i[which])
        eye.pupil_diameter_px = self._value(None if (i := layout.diameter_px_indexes) is None else i[which])


def rotation(x: float, y: float, z: float) -> tuple[float, float, float, float]:
    """The quaternion (x, y, z, w) that turns +z to the unit vector (x, y, z), by the shortest way."""
    if z < -0.999_999_999:
        return 1.0, 0.0, 0.0, 0.0
    w = 1.0 + z
    length = math.sqrt(y * y + x * x + w * w)
    return -y / length, x / length, 0.0, w / length


def _unit(origin: tuple[float, float, float], direction: tuple[float, float, float]) -> Ray | None:
    length = math.hypot(*direction)
    if not 0.0 < length < math.inf:
        return None
    return *origin, direction[0] / length, direction[1] / length, direction[2] / length


def _set(vector: Point | Vector3, values: tuple[float, ...]) -> None:
    vector.x, vector.y, vector.z = values
