"""Gaze on surfaces, and what surfaces are called in ROS."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from geometry_msgs.msg import PointStamped
from hypothesis import given
from hypothesis import strategies as st
from rclpy.validate_full_topic_name import validate_full_topic_name

from bridge.sinks.ros2 import Ros2Sink
from bridge.sinks.ros2.stage import has_form
from bridge.sinks.ros2.surfaces import SLUG_MAX, SurfaceNames, SurfaceTopics
from bridge.streams import DeviceDescriptor, FixationLayout, Sample, StreamDescriptor, StreamKind, SurfaceLayout
from tests.sinks.ros2.lab import (
    DEVICE,
    MAPPED,
    OTHER,
    Hearer,
    Notes,
    discovered,
    drained,
    is_there,
    message,
    now_ns,
    open_sink,
    quiet_lark,
    realtime_ns,
    stamp_ns,
    topics,
)

pytestmark = quiet_lark

NAN = math.nan
VALUES = (0.9, 0.25, 0.7, 1.0)  # confidence, x, y, on it
GAZE, PLAIN = "surfaces/screen_1/gaze", "surfaces/screen_1/gaze/normalized"


def layout(surface: str = "Screen 1") -> SurfaceLayout:
    return SurfaceLayout(surface, x_index=1, y_index=2, on_surface_index=3, confidence_index=0)


def stream(surface: str = "Screen 1", device: DeviceDescriptor = DEVICE) -> StreamDescriptor:
    suffix = f"Surface_{surface}"
    return StreamDescriptor(device, suffix, StreamKind.SURFACE, suffix, "Gaze", layout=layout(surface))


def fixations(surface: str = "Screen 1") -> StreamDescriptor:
    on = FixationLayout(0, 1, 2, True, 0, 0, 3, 4, 5, surface=surface)
    return StreamDescriptor(DEVICE, f"{surface} f", StreamKind.FIXATION, f"{surface}_f", "Fixations", layout=on)


def publish(desk: Notes, *payloads: tuple[float, ...]) -> int:
    topic, host_ns = SurfaceTopics(desk, stream(), layout(), "screen_1"), now_ns()
    for values in payloads:
        topic.publish(Sample(stream(), 5, host_ns, values), MAPPED, host_ns)
    return host_ns


# --- gaze ------------------------------------------------------------------------------------------------------------


def test_gaze_on_a_surface_is_from_its_top_left_in_its_frame_and_under_its_own_name(desk: Notes) -> None:
    message("pupil_msgs/SurfaceGaze")
    host_ns = publish(desk, VALUES)
    (found,) = desk[GAZE]
    assert (found.header.frame_id, found.surface) == ("tracker_surface_screen_1", "Screen 1")
    assert stamp_ns(found) == pytest.approx(realtime_ns(host_ns), abs=10**6)
    assert (found.quality.device_time, found.quality.epoch) == (5, 3)
    assert (found.normalized_x, found.normalized_y) == pytest.approx((0.25, 0.3))
    assert (found.on_surface, found.confidence) == (True, 0.9)
    assert math.isnan(found.x)
    assert math.isnan(found.y)


def test_the_standard_form_has_the_same_place_and_time(desk: Notes) -> None:
    host_ns = publish(desk, VALUES)
    (found,) = desk[PLAIN]
    assert (found.point.x, found.point.y, found.point.z) == pytest.approx((0.25, 0.3, 0.0))
    assert found.header.frame_id == "tracker_surface_screen_1"
    assert stamp_ns(found) == pytest.approx(realtime_ns(host_ns), abs=10**6)


@pytest.mark.parametrize(("value", "on_surface"), [(1.0, True), (0.0, False), (NAN, False)])
def test_beside_a_surface_the_place_is_beyond_it_and_that_is_said(desk: Notes, value: float, on_surface: bool) -> None:
    message("pupil_msgs/SurfaceGaze")
    publish(desk, (0.9, -0.5, 1.25, value))
    (found,), (plain,) = desk[GAZE], desk[PLAIN]
    assert found.on_surface is on_surface
    assert (found.normalized_x, found.normalized_y) == (plain.point.x, plain.point.y) == (-0.5, -0.25)


def test_what_is_not_known_is_not_a_number(desk: Notes) -> None:
    message("pupil_msgs/SurfaceGaze")
    publish(desk, (NAN,) * 4, VALUES)
    first, second = desk[GAZE]
    assert all(math.isnan(number) for number in (first.normalized_x, first.normalized_y, first.confidence))
    assert (first.on_surface, second.on_surface) == (False, True)


@pytest.mark.parametrize("wanted", [(), (GAZE,), (PLAIN,)])
def test_only_what_somebody_subscribes_to_is_filled_in(desk: Notes, wanted: tuple[str, ...]) -> None:
    message("pupil_msgs/SurfaceGaze")
    topic = SurfaceTopics(desk, stream(), layout(), "screen_1")
    desk.nobody_but(*wanted)
    # Of the empty one nothing could be filled in.
    topic.publish(Sample(stream(), 5, 0, VALUES if wanted else ()), MAPPED, now_ns())
    assert [name for name in (GAZE, PLAIN) if desk[name]] == list(wanted)


def test_without_the_message_the_standard_form_is_there(desk: Notes) -> None:
    desk.packages = frozenset()
    assert has_form(stream(), desk)
    publish(desk, VALUES)
    assert list(desk.papers) == [PLAIN]
    assert len(desk[PLAIN]) == 1


def test_a_frame_has_the_prefix_of_the_others(plain_node: Any) -> None:
    desk = Notes(plain_node, frame_prefix="robot/")
    publish(desk, VALUES)
    assert desk[PLAIN][0].header.frame_id == "robot/tracker_surface_screen_1"


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("surface", "expected"),
    [
        ("Surface 1", "surface_1"),
        ("screen", "screen"),
        ("Größe: Tür/links", "groe_tur_links"),
        ("__a__b__", "a_b"),
        ("2nd screen", "surface_2nd_screen"),
        ("テーブル", "surface"),
        ("", "surface"),
        ("../../etc", "etc"),
        ("{camera}", "camera"),
        ("x" * 10_000, "x" * SLUG_MAX),
        ("\ud800", "surface"),
    ],
)
def test_a_surface_may_be_called_anything(surface: str, expected: str) -> None:
    assert SurfaceNames().of(surface) == expected


def test_two_surfaces_never_have_one_name_and_each_keeps_its_own() -> None:
    names = SurfaceNames()
    assert [names.of(each) for each in ("A b", "a-b", "a b 2", "A B", "A b")] == [
        "a_b",
        "a_b_2",
        "a_b_2_2",
        "a_b_3",
        "a_b",
    ]
    assert names.of("a-b") == "a_b_2"


@given(st.lists(st.text(max_size=50), unique=True, max_size=20))
def test_every_name_is_valid_in_a_topic_and_its_own(surfaces: list[str]) -> None:
    names = SurfaceNames()
    made = [names.of(surface) for surface in surfaces]
    assert len(set(made)) == len(made)
    assert made == [names.of(surface) for surface in surfaces]
    for name in made:
        assert re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
        assert validate_full_topic_name(f"/pupil_bridge/tracker/surfaces/{name}/gaze")


# --- in the sink -----------------------------------------------------------------------------------------------------


def of_surfaces(sink: Ros2Sink, device: DeviceDescriptor = DEVICE) -> list[str]:
    """The topics of surfaces that there are, each as often as it has a publisher."""
    drained(sink)
    prefix = f"/sink_test/{device.name}/"
    found = [publisher.topic_name.removeprefix(prefix) for publisher in sink._node.publishers]
    return sorted(name for name in found if name.startswith("surfaces/"))


def expected(*slugs: str) -> list[str]:
    forms = ["gaze/normalized", *(["gaze"] if is_there("pupil_msgs/SurfaceGaze") else [])]
    return sorted(f"surfaces/{slug}/{form}" for slug in slugs for form in forms)


def test_a_surface_has_one_name_for_its_gaze_and_its_fixations(sink: Ros2Sink) -> None:
    message("pupil_msgs/Fixation")
    for each in (fixations("a b"), stream("A-B"), stream("a b"), fixations("A-B")):
        assert sink.open_stream(each) is not None
    both = sorted([*expected("a_b", "a_b_2"), "surfaces/a_b/fixations", "surfaces/a_b_2/fixations"])
    assert of_surfaces(sink) == both


def test_surfaces_keep_their_names_when_topics_are_made_anew_and_have_them_in_each_device_apart() -> None:
    with open_sink() as sink:
        for device in (DEVICE, OTHER):
            sink.open_device(device)
        for surface in ("Screen", "screen"):
            sink.open_stream(stream(surface))
        sink.open_stream(stream("screen", OTHER))
        for _ in range(2):
            assert of_surfaces(sink) == expected("screen", "screen_2")
            assert {name for name in topics(sink, OTHER) if "surfaces" in name} == set(expected("screen"))
            sink.worker.put_always(sink._stage.rebuild)
        drained(sink)
        assert sink._stage._surfaces["tracker"].of("screen") == "screen_2"


async def test_a_device_that_is_closed_takes_its_surfaces_along(sink: Ros2Sink) -> None:
    sink.open_stream(stream("Screen"))
    assert of_surfaces(sink) == expected("screen")
    await sink.close_device(DEVICE)
    assert of_surfaces(sink) == []
    sink.open_device(DEVICE)
    sink.open_stream(stream("screen"))
    assert of_surfaces(sink) == expected("screen")


@pytest.mark.parametrize("form", ["normalized", "whole"])
def test_a_reader_hears_gaze_on_a_surface(sink: Ros2Sink, form: str) -> None:
    whole = form == "whole"
    hearer = Hearer(GAZE if whole else PLAIN, message("pupil_msgs/SurfaceGaze") if whole else PointStamped)
    try:
        output = discovered(sink, hearer, stream())
        host_ns = now_ns()
        output.push(Sample(stream(), 5, host_ns, VALUES), MAPPED, host_ns)
        (found,) = hearer.hear(1)
        assert found.header.frame_id == "tracker_surface_screen_1"
        y = found.normalized_y if whole else found.point.y
        assert y == pytest.approx(0.3)
    finally:
        hearer.close()
