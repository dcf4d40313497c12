"""A gaze stream's topics: units, frames, the flip of Pupil Core's coordinates, directions, and what is left out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from bridge.sinks.ros2.gaze import MARKER_M, GazeTopics, rotation
from bridge.streams import Camera, GazeLayout, Sample, StreamDescriptor, StreamKind
from tests.sinks.ros2.lab import DEVICE, MAPPED, Notes, is_there, message, now_ns, quiet_lark, realtime_ns, stamp_ns

pytestmark = quiet_lark

NAN = math.nan
FRAME = "tracker_scene_camera_optical_frame"
# A camera of 100 x 50 without distortion: 100 px are 45 degrees.
CAMERA = Camera(
    "ideal",
    100,
    50,
    "plumb_bob",
    (0.0,) * 5,
    (100.0, 0.0, 50.0, 0.0, 100.0, 25.0, 0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    (100.0, 0.0, 50.0, 0.0, 0.0, 100.0, 25.0, 0.0, 0.0, 0.0, 1.0, 0.0),
)
PLAIN = GazeLayout(0, 1, False, 100, 50)
SEEN = GazeLayout(0, 1, False, 100, 50, intrinsics=CAMERA)
# As Pupil Core's: x, y, confidence, point, right and left centre, right and left axis, diameters in mm, in pixels
FULL = GazeLayout(
    0,
    1,
    True,
    1280,
    720,
    confidence_index=2,
    point_index=3,
    eye_center_indexes=(6, 9),
    eye_axis_indexes=(12, 15),
    diameter_mm_indexes=(18, 19),
    diameter_px_indexes=(20, 21),
    worn_index=22,
)
RIGHT, LEFT = (-30.0, 20.0, -10.0), (30.0, 20.0, -10.0)
POINT = (100.0, -50.0, 800.0)


def full(
    xy: tuple[float, float] = (0.25, 0.75),
    point: tuple[float, float, float] = POINT,
    right: tuple[float, float, float] = RIGHT,
    left: tuple[float, float, float] = LEFT,
    confidence: float = 0.9,
    worn: float = 1.0,
) -> tuple[float, ...]:
    axes = (0.0, 0.0, 1.0, 0.6, 0.0, 0.8)
    return (*xy, confidence, *point, *right, *left, *axes, 3.5, 4.5, 35.0, 45.0, worn)


class Case:
    """A gaze stream on paper."""

    def __init__(self, desk: Notes, layout: GazeLayout) -> None:
        self.desk = desk
        self.stream = StreamDescriptor(DEVICE, "gaze", StreamKind.GAZE, "Gaze", "Gaze", layout=layout)
        self.topics = GazeTopics(desk, self.stream, layout)

    def publish(self, *values: float, device_ns: int = 7) -> Case:
        self.host_ns = now_ns()
        self.topics.publish(Sample(self.stream, device_ns, self.host_ns, values), MAPPED, self.host_ns)
        return self

    def one(self, topic: str) -> Any:
        """The only message of a topic."""
        (found,) = self.desk[topic]
        return found


def xyz(vector: Any) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z


def turned(quaternion: Any) -> tuple[float, float, float]:
    """Where a quaternion turns +z to, by the matrix of the textbook."""
    x, y, z, w = quaternion.x, quaternion.y, quaternion.z, quaternion.w
    return 2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)


def unit(*vector: float) -> tuple[float, ...]:
    length = math.hypot(*vector)
    return tuple(value / length for value in vector)


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_pixels_go_out_as_they_are_and_normalized_divided_by_the_size(desk: Notes) -> None:
    case = Case(desk, PLAIN).publish(25.0, 40.0)
    for topic, expected in (("gaze/pixel", (25.0, 40.0, 0.0)), ("gaze/normalized", (0.25, 0.8, 0.0))):
        found = case.one(topic)
        assert xyz(found.point) == pytest.approx(expected)
        assert found.header.frame_id == FRAME
        assert stamp_ns(found) == pytest.approx(realtime_ns(case.host_ns), abs=10**6)


def test_cores_coordinates_begin_at_the_bottom_left_and_are_turned_upside_down(desk: Notes) -> None:
    case = Case(desk, FULL).publish(*full(xy=(0.25, 0.75)))
    assert xyz(case.one("gaze/pixel").point) == pytest.approx((320.0, 180.0, 0.0))
    assert xyz(case.one("gaze/normalized").point) == pytest.approx((0.25, 0.25, 0.0))


def test_gaze_beyond_the_image_is_gaze(desk: Notes) -> None:
    assert xyz(Case(desk, PLAIN).publish(-50.0, 500.0).one("gaze/normalized").point) == pytest.approx((-0.5, 10.0, 0.0))


def test_a_layout_without_depth_and_intrinsics_has_no_topics_of_directions(desk: Notes) -> None:
    Case(desk, PLAIN)
    depth = {"gaze/ray", "gaze/point_3d", "gaze/marker", "/tf"}
    assert not depth & desk.papers.keys()


def test_frames_have_the_configured_prefix(plain_node: Any) -> None:
    desk = Notes(plain_node, frame_prefix="robot1/")
    assert Case(desk, PLAIN).publish(1.0, 2.0).one("gaze/pixel").header.frame_id == f"robot1/{FRAME}"


# --- directions ------------------------------------------------------------------------------------------------------


def test_a_ray_goes_from_between_the_eyes_to_the_gaze_point_in_metres(desk: Notes) -> None:
    case = Case(desk, FULL).publish(*full())
    ray = case.one("gaze/ray")
    assert ray.header.frame_id == FRAME
    assert xyz(ray.pose.position) == pytest.approx((0.0, 0.02, -0.01))
    assert turned(ray.pose.orientation) == pytest.approx(unit(100.0, -70.0, 810.0))
    assert xyz(case.one("gaze/point_3d").point) == pytest.approx((0.1, -0.05, 0.8))


def test_of_one_eye_alone_the_ray_begins_at_it(desk: Notes) -> None:
    ray = Case(desk, FULL).publish(*full(left=(NAN, NAN, NAN))).one("gaze/ray")
    assert xyz(ray.pose.position) == pytest.approx((-0.03, 0.02, -0.01))
    assert turned(ray.pose.orientation) == pytest.approx(unit(130.0, -70.0, 810.0))


def test_without_a_gaze_point_there_is_neither_ray_nor_point(desk: Notes) -> None:
    case = Case(desk, FULL).publish(*full(point=(NAN, NAN, NAN)))
    assert desk["gaze/ray"] == desk["gaze/point_3d"] == desk["gaze/marker"] == []
    assert len(desk["gaze/pixel"]) == 1
    case.publish(*full())
    assert len(desk["gaze/ray"]) == len(desk["gaze/point_3d"]) == 1


@pytest.mark.parametrize(
    ("values", "direction"),
    [
        ((50.0, 25.0), (0, 0, 1)),
        ((150.0, 25.0), (1, 0, 1)),
        ((50.0, -75.0), (0, -1, 1)),
        ((0.0, 0.0), (-0.5, -0.25, 1)),
    ],
)
def test_with_intrinsics_a_ray_goes_through_the_pixel(
    desk: Notes, values: tuple[float, float], direction: tuple[float, float, float]
) -> None:
    ray = Case(desk, SEEN).publish(*values).one("gaze/ray")
    assert xyz(ray.pose.position) == (0.0, 0.0, 0.0)
    assert turned(ray.pose.orientation) == pytest.approx(unit(*direction))


@pytest.mark.parametrize("x", [NAN, math.inf, -math.inf, 1e308, -1e308, 1e200])
def test_numbers_that_are_no_places_make_no_ray_and_no_error(desk: Notes, x: float) -> None:
    case = Case(desk, SEEN).publish(x, 3.0).publish(3.0, x).publish(x, x)
    for ray in desk["gaze/ray"]:
        assert math.hypot(*turned(ray.pose.orientation)) == pytest.approx(1.0)
    case.publish(50.0, 25.0)
    assert turned(desk["gaze/ray"][-1].pose.orientation) == pytest.approx((0, 0, 1))
    assert len(desk["gaze/pixel"]) == 4


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: math.hypot(*v) > 1e-3))
def test_the_rotation_turns_z_to_the_direction_by_the_shortest_way(vector: tuple[float, float, float]) -> None:
    direction = unit(*vector)
    x, y, z, w = rotation(*direction)
    assert math.hypot(x, y, z, w) == pytest.approx(1.0)
    found = 2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)
    assert found == pytest.approx(direction, abs=1e-4)
    assert z == 0.0  # no turn about the direction itself


def test_the_opposite_of_z_can_be_reached() -> None:
    x, y, z, w = rotation(0.0, 0.0, -1.0)
    assert 1 - 2 * (x * x + y * y) == pytest.approx(-1.0)
    assert math.hypot(x, y, z, w) == pytest.approx(1.0)


# --- to look at ------------------------------------------------------------------------------------------------------


def test_the_marker_is_an_arrow_from_the_eyes_to_the_gaze_point_and_paler_with_less_confidence(desk: Notes) -> None:
    case = Case(desk, FULL).publish(*full()).publish(*full(confidence=0.0)).publish(*full(confidence=NAN))
    first, pale, unknown = case.desk["gaze/marker"]
    assert first.type == first.ARROW
    assert first.action == first.ADD
    assert first.ns == "tracker"
    assert [xyz(point) for point in first.points] == [
        pytest.approx((0.0, 0.02, -0.01)),
        pytest.approx((0.1, -0.05, 0.8)),
    ]
    assert xyz(first.pose.orientation) == (0.0, 0.0, 0.0)
    assert first.pose.orientation.w == 1.0
    assert 0 < first.lifetime.nanosec < 10**9
    assert first.color.a == pytest.approx(0.9, abs=1e-6)
    assert 0 < pale.color.a < 0.5
    assert 0 < unknown.color.a < 0.5
    assert min(xyz(first.scale)) > 0


def test_a_ray_without_an_end_is_drawn_for_a_metre(desk: Notes) -> None:
    start, end = Case(desk, SEEN).publish(150.0, 25.0).one("gaze/marker").points
    assert xyz(start) == (0.0, 0.0, 0.0)
    assert xyz(end) == pytest.approx(unit(1, 0, 1))
    assert math.dist(xyz(start), xyz(end)) == pytest.approx(MARKER_M)


def test_the_annotation_is_a_circle_at_the_pixel(desk: Notes) -> None:
    message("foxglove_msgs/ImageAnnotations")
    (circle,) = Case(desk, PLAIN).publish(25.0, 40.0).one("scene/annotations").circles
    assert (circle.position.x, circle.position.y) == (25.0, 40.0)
    assert circle.diameter > 0
    assert circle.outline_color.a == 1.0
    assert circle.timestamp == desk["gaze/pixel"][0].header.stamp


def test_the_gaze_is_a_transform_where_that_is_wanted(plain_node: Any) -> None:
    message("tf2_msgs/TFMessage")
    desk = Notes(plain_node, tf_gaze=True, frame_prefix="r/")
    case = Case(desk, FULL).publish(*full()).publish(*full(point=(NAN, NAN, NAN)))
    (transform,) = case.one("/tf").transforms
    assert (transform.header.frame_id, transform.child_frame_id) == (f"r/{FRAME}", "r/tracker_gaze")
    assert xyz(transform.transform.translation) == pytest.approx((0.0, 0.02, -0.01))
    assert turned(transform.transform.rotation) == pytest.approx(unit(100.0, -70.0, 810.0))
    assert "/tf" not in Notes(plain_node).papers


# --- the message that has it all -------------------------------------------------------------------------------------


def test_the_whole_message_has_everything_in_si_units_with_both_eyes_named(desk: Notes) -> None:
    kind = message("pupil_msgs/Gaze")
    found = Case(desk, FULL).publish(*full(), device_ns=77).one("gaze")
    assert found.header.frame_id == FRAME
    assert (found.quality.device_time, found.quality.epoch, found.quality.state) == (77, 3, found.quality.LOCKED)
    assert (found.quality.bound, found.quality.precision) == pytest.approx((0.002, 0.001))
    assert (found.pixel_x, found.pixel_y) == pytest.approx((320.0, 180.0))
    assert (found.normalized_x, found.normalized_y) == pytest.approx((0.25, 0.25))
    assert (found.image_width, found.image_height) == (1280, 720)
    assert xyz(found.ray_origin) == pytest.approx((0.0, 0.02, -0.01))
    assert xyz(found.ray_direction) == pytest.approx(unit(100.0, -70.0, 810.0))
    assert xyz(found.point) == pytest.approx((0.1, -0.05, 0.8))
    assert xyz(found.right.center) == pytest.approx((-0.03, 0.02, -0.01))
    assert xyz(found.left.center) == pytest.approx((0.03, 0.02, -0.01))
    assert xyz(found.right.optical_axis) == (0.0, 0.0, 1.0)
    assert xyz(found.left.optical_axis) == (0.6, 0.0, 0.8)
    assert (found.right.pupil_diameter, found.left.pupil_diameter) == pytest.approx((0.0035, 0.0045))
    assert (found.right.pupil_diameter_px, found.left.pupil_diameter_px) == (35.0, 45.0)
    assert (found.confidence, found.worn) == (0.9, kind.WORN)
    assert all(math.isnan(eye.eyelid_aperture) for eye in (found.right, found.left))


@pytest.mark.parametrize(("worn", "expected"), [(0.0, "NOT_WORN"), (1.0, "WORN"), (NAN, "WORN_UNKNOWN")])
def test_whether_it_is_worn_is_yes_no_or_unknown(desk: Notes, worn: float, expected: str) -> None:
    kind = message("pupil_msgs/Gaze")
    assert Case(desk, FULL).publish(*full(worn=worn)).one("gaze").worn == getattr(kind, expected)


def test_what_a_device_does_not_say_is_not_a_number_and_never_zero(desk: Notes) -> None:
    kind = message("pupil_msgs/Gaze")
    found = Case(desk, PLAIN).publish(25.0, 40.0).one("gaze")
    vectors = [found.ray_origin, found.ray_direction, found.point]
    for eye in (found.right, found.left):
        vectors += [eye.center, eye.optical_axis]
        assert math.isnan(eye.pupil_diameter)
        assert math.isnan(eye.pupil_diameter_px)
    assert all(math.isnan(value) for vector in vectors for value in xyz(vector))
    assert math.isnan(found.confidence)
    assert found.worn == kind.WORN_UNKNOWN


def test_what_was_known_of_one_sample_does_not_stay_for_the_next(desk: Notes) -> None:
    message("pupil_msgs/Gaze")
    case = Case(desk, FULL).publish(*full()).publish(*[NAN] * 23)
    second = case.desk["gaze"][1]
    values = [second.pixel_x, second.normalized_y, second.confidence, second.left.pupil_diameter, second.point.z]
    assert all(math.isnan(value) for value in (*values, second.ray_direction.x, second.right.center.y))


# --- cost ------------------------------------------------------------------------------------------------------------


def test_nothing_is_filled_in_without_a_subscriber(desk: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(desk, FULL)
    desk.nobody_but()
    monkeypatch.setattr(desk.stamps, "of", lambda *_: pytest.fail("a stamp was made for nobody"))
    case.publish(*full())
    assert not any(paper.messages for paper in desk.papers.values())


@pytest.mark.parametrize("topic", ["gaze/pixel", "gaze/normalized", "gaze/point_3d", "gaze/ray", "gaze/marker", "gaze"])
def test_each_topic_is_right_when_it_is_the_only_one_that_is_heard(desk: Notes, plain_node: Any, topic: str) -> None:
    if topic == "gaze" and not is_there("pupil_msgs/Gaze"):
        pytest.skip("pupil_msgs is not installed")
    alone, among = Case(desk, FULL), Case(Notes(plain_node), FULL)
    desk.nobody_but(topic)
    found, expected = alone.publish(*full()).one(topic), among.publish(*full()).one(topic)
    assert [name for name, paper in desk.papers.items() if paper.messages] == [topic]
    found.header.stamp = expected.header.stamp
    if topic == "gaze":  # NaN is not NaN
        for each in (found, expected):
            for eye in (each.right, each.left):
                eye.eyelid_aperture = eye.eyelid_angle_top = eye.eyelid_angle_bottom = 0.0
    assert found == expected
