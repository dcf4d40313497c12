"""Fixations and blinks: seconds, metres, radians and the top left."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

import msgspec

from bridge.sinks.ros2 import Ros2Sink
from bridge.sinks.ros2.movements import BlinkTopic, FixationTopic
from bridge.sinks.ros2.stage import has_form
from bridge.streams import BlinkLayout, FixationLayout, Sample, StreamDescriptor, StreamKind
from tests.sinks.ros2.lab import (
    DEVICE,
    MAPPED,
    Hearer,
    Notes,
    discovered,
    message,
    now_ns,
    quiet_lark,
    realtime_ns,
    stamp_ns,
)

pytestmark = quiet_lark

NAN = math.nan
# id, confidence, x, y, dispersion in degrees, duration in ms, method, point in mm
VALUES = (17.0, 0.9, 0.25, 0.75, 1.5, 120.0, 3.0, 10.0, -20.0, 500.0)
WHOLE = FixationLayout(
    id_index=0,
    x_index=2,
    y_index=3,
    normalized_bottom_left=True,
    width_px=1280,
    height_px=720,
    duration_index=5,
    dispersion_index=4,
    confidence_index=1,
    method_index=6,
    point_index=7,
)
LIVE = msgspec.structs.replace(WHOLE, live=True)
ON_SURFACE = FixationLayout(0, 2, 3, True, 0, 0, 5, 4, 1, on_surface_index=6, surface="Screen 1")
BLINK = BlinkLayout(duration_index=1, confidence_index=0)


def fixations(layout: FixationLayout | None = WHOLE) -> StreamDescriptor:
    return StreamDescriptor(DEVICE, "fixations", StreamKind.FIXATION, "Fixations", "Fixations", layout=layout)


def blinks(layout: BlinkLayout | None = BLINK) -> StreamDescriptor:
    return StreamDescriptor(DEVICE, "blinks", StreamKind.BLINK, "Blinks", "Blinks", layout=layout)


def publish(desk: Notes, layout: FixationLayout, values: tuple[float, ...], slug: str = "") -> int:
    host_ns = now_ns()
    stream = fixations(layout)
    FixationTopic(desk, stream, layout, slug).publish(Sample(stream, 5, host_ns, values), MAPPED, host_ns)
    return host_ns


# --- fixations -------------------------------------------------------------------------------------------------------


def test_a_fixation_is_in_seconds_metres_radians_and_pixels_from_the_top_left(desk: Notes) -> None:
    message("pupil_msgs/Fixation")
    host_ns = publish(desk, WHOLE, VALUES)
    (found,) = desk["fixations"]
    assert list(desk.papers) == ["fixations"]
    assert found.header.frame_id == "tracker_scene_camera_optical_frame"
    assert stamp_ns(found) == pytest.approx(realtime_ns(host_ns), abs=10**6)
    assert (found.quality.device_time, found.quality.epoch) == (5, 3)
    assert (found.id, found.method, found.finished) == (17, "3d gaze", True)
    assert found.duration == pytest.approx(0.12)
    assert found.dispersion == pytest.approx(0.026179938779914945)  # pi / 120
    assert (found.pixel_x, found.pixel_y) == (320.0, 180.0)
    assert (found.normalized_x, found.normalized_y) == (0.25, 0.25)
    assert (found.point.x, found.point.y, found.point.z) == pytest.approx((0.01, -0.02, 0.5))
    assert found.confidence == 0.9


def test_a_fixation_that_goes_on_is_on_a_topic_of_its_own_and_not_finished(desk: Notes) -> None:
    message("pupil_msgs/Fixation")
    publish(desk, LIVE, VALUES)
    (found,) = desk["fixations/live"]
    assert list(desk.papers) == ["fixations/live"]
    assert (found.finished, found.id, found.duration) == (False, 17, pytest.approx(0.12))
    assert found.header.frame_id == "tracker_scene_camera_optical_frame"


def test_a_fixation_on_a_surface_is_from_its_top_left_and_has_no_pixels(desk: Notes) -> None:
    message("pupil_msgs/Fixation")
    publish(desk, ON_SURFACE, (17.0, 0.9, 0.1, 0.8, 1.5, 120.0, 1.0), "screen_1")
    (found,) = desk["surfaces/screen_1/fixations"]
    assert list(desk.papers) == ["surfaces/screen_1/fixations"]
    assert found.header.frame_id == "tracker_surface_screen_1"
    assert (found.normalized_x, found.normalized_y) == pytest.approx((0.1, 0.2))
    assert (found.finished, found.id, found.method) == (True, 17, "")
    assert found.duration == pytest.approx(0.12)
    for nothing in (found.pixel_x, found.pixel_y, found.point.x, found.point.y, found.point.z):
        assert math.isnan(nothing)


def test_beside_a_surface_it_is_beyond_0_to_1(desk: Notes) -> None:
    message("pupil_msgs/Fixation")
    publish(desk, ON_SURFACE, (17.0, 0.9, -0.5, 1.5, 1.5, 120.0, 0.0), "screen_1")
    (found,) = desk["surfaces/screen_1/fixations"]
    assert (found.normalized_x, found.normalized_y) == (-0.5, -0.5)


def test_pixels_of_a_device_that_has_pixels_stay(desk: Notes) -> None:
    message("pupil_msgs/Fixation")
    publish(desk, FixationLayout(0, 2, 3, False, 1600, 1200, 5, 4, 1), (17.0, 0.9, 400.0, 300.0, 1.5, 120.0))
    (found,) = desk["fixations"]
    assert (found.pixel_x, found.pixel_y, found.normalized_x, found.normalized_y) == (400.0, 300.0, 0.25, 0.25)
    assert math.isnan(found.point.x)


def test_what_the_device_does_not_know_is_not_a_number_and_the_next_one_is_right_again(desk: Notes) -> None:
    message("pupil_msgs/Fixation")
    stream = fixations()
    topic = FixationTopic(desk, stream, WHOLE)
    for values in ((NAN,) * 10, VALUES):
        topic.publish(Sample(stream, 5, 0, values), MAPPED, now_ns())
    nothing, something = desk["fixations"]
    assert (nothing.id, nothing.method) == (0, "")
    numbers = (nothing.duration, nothing.dispersion, nothing.confidence, nothing.pixel_x, nothing.normalized_y)
    assert all(math.isnan(number) for number in (*numbers, nothing.point.x, nothing.point.z))
    assert (something.id, something.method, something.point.z) == (17, "3d gaze", 0.5)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0.0, 0), (2.0**53, 2**53), (-1.0, 0), (2.0**64, 0), (2.0**64 - 2048, 2**64 - 2048), (math.inf, 0), (NAN, 0)],
)
def test_any_number_of_a_fixation_can_be_published(desk: Notes, number: float, expected: int) -> None:
    message("pupil_msgs/Fixation")
    publish(desk, WHOLE, (number, *VALUES[1:]))
    assert desk["fixations"][0].id == expected


@pytest.mark.parametrize(("method", "words"), [(2.0, "2d gaze"), (3.0, "3d gaze"), (4.0, ""), (NAN, "")])
def test_the_method_is_in_words(desk: Notes, method: float, words: str) -> None:
    message("pupil_msgs/Fixation")
    publish(desk, WHOLE, (*VALUES[:6], method, *VALUES[7:]))
    assert desk["fixations"][0].method == words


# --- blinks ----------------------------------------------------------------------------------------------------------


def test_a_blink_has_the_time_of_its_start_and_a_duration_in_seconds(desk: Notes) -> None:
    message("pupil_msgs/Blink")
    stream, host_ns = blinks(), now_ns()
    topic = BlinkTopic(desk, stream, BLINK)
    topic.publish(Sample(stream, 5, host_ns, (0.75, 0.15)), MAPPED, host_ns)
    topic.publish(Sample(stream, 6, host_ns, (NAN, NAN)), MAPPED, host_ns)
    first, second = desk["blinks"]
    assert (first.duration, first.confidence) == (0.15, 0.75)
    assert stamp_ns(first) == pytest.approx(realtime_ns(host_ns), abs=10**6)
    assert (first.quality.device_time, first.quality.epoch, first.quality.bound) == (5, 3, pytest.approx(0.002))
    assert math.isnan(second.duration)
    assert math.isnan(second.confidence)


# --- both ------------------------------------------------------------------------------------------------------------


def test_nothing_is_filled_in_without_a_subscriber(desk: Notes) -> None:
    message("pupil_msgs/Fixation")
    topics = FixationTopic(desk, fixations(), WHOLE), BlinkTopic(desk, blinks(), BLINK)
    desk.nobody_but()
    for topic in topics:
        topic.publish(Sample(fixations(), 5, 0, ()), MAPPED, 0)  # of which nothing could be filled in
    assert desk["fixations"] == desk["blinks"] == []


def test_without_the_messages_there_is_no_form_for_them(desk: Notes) -> None:
    desk.packages = frozenset()
    for stream in (fixations(), fixations(LIVE), fixations(ON_SURFACE), blinks()):
        assert not has_form(stream, desk)


def test_single_edges_of_blinks_have_no_form_nor_have_fixations_that_go_on_on_a_surface(desk: Notes) -> None:
    message("pupil_msgs/Blink")
    assert has_form(blinks(), desk)
    assert not has_form(blinks(None), desk)
    assert not has_form(fixations(None), desk)
    assert has_form(fixations(ON_SURFACE), desk)
    assert not has_form(fixations(msgspec.structs.replace(ON_SURFACE, live=True)), desk)


def test_a_reader_hears_fixations_and_blinks(sink: Ros2Sink) -> None:
    kinds = {name: message(f"pupil_msgs/{name}") for name in ("Fixation", "Blink")}
    for stream, topic, kind, values in (
        (fixations(), "fixations", "Fixation", VALUES),
        (fixations(LIVE), "fixations/live", "Fixation", VALUES),
        (blinks(), "blinks", "Blink", (0.75, 0.15)),
    ):
        hearer = Hearer(topic, kinds[kind])
        try:
            output = discovered(sink, hearer, stream)
            host_ns = now_ns()
            output.push(Sample(stream, 5, host_ns, values), MAPPED, host_ns)
            (found,) = hearer.hear(1)
            assert found.duration == pytest.approx(0.15 if kind == "Blink" else 0.12)
            assert output.samples_out == 1
        finally:
            hearer.close()
