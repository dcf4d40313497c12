"""The channels of fixations, blinks, surfaces and pupillometry, and that layouts point at what they name.

Those of gaze and pupils are tested in test_pupil_core.py.
"""

from __future__ import annotations

import math

import msgspec
import pytest

from bridge.streams import Channel, FixationLayout
from bridge.wire import pupil_core_channels as channels
from bridge.wire.pupil_core import Pupil
from bridge.wire.pupil_core_movements import BlinkEdge, Fixation, WholeBlink, WholeFixation
from bridge.wire.pupil_core_surfaces import SurfaceGaze
from tests.wire.test_pupil_core import the_same

WINDOW = Fixation(280, 5_000_000_000, 300.0, 0.75, (0.25, 0.5), 1.5, "3d gaze", (-97.0, -54.0, 178.0))
WHOLE = WholeFixation(280, 5_000_000_000, 9, 900.0, 0.75, (0.25, 0.5), 1.5, "2d gaze", None)
ON_SURFACE = WholeFixation(280, 5_000_000_000, 9, 900.0, 0.75, (0.25, 0.5), 1.5, on_surface=True)


def labels(of: tuple[Channel, ...]) -> list[str]:
    return [channel.label for channel in of]


def at(of: tuple[Channel, ...], index: int | None) -> str:
    assert index is not None
    return of[index].label


class TestPlugin:
    """What Pupil Labs' LSL plugin for Capture has: label, unit, type, eye, coordinate system, in its order."""

    def test_the_first_seven_channels_of_fixations_are_its_own(self) -> None:
        assert [msgspec.structs.astuple(channel) for channel in channels.FIXATION_CHANNELS[:7]] == [
            ("fixation id", "", "com.pupil-labs.fixation.id", "both", ""),
            ("confidence", "normalized", "Confidence", "both", ""),
            ("norm_pos_x", "normalized", "ScreenX", "both", "world"),
            ("norm_pos_y", "normalized", "ScreenY", "both", "world"),
            ("dispersion", "degree", "com.pupil-labs.fixation.dispersion", "both", ""),
            ("duration", "milliseconds", "com.pupil-labs.fixation.duration", "both", ""),
            ("method", "", "com.pupil-labs.fixation.method", "both", ""),
        ]
        assert labels(channels.FIXATION_CHANNELS[7:]) == [
            *("gaze_point_3d_x", "gaze_point_3d_y", "gaze_point_3d_z"),
            "duration_s",
        ]

    def test_the_channels_of_pupillometry_are_its_own(self) -> None:
        assert [msgspec.structs.astuple(channel) for channel in channels.PUPILLOMETRY_CHANNELS] == [
            ("confidence", "normalized", "Confidence", "both", ""),
            ("norm_pos_x", "normalized", "ScreenX", "both", "eye"),
            ("norm_pos_y", "normalized", "ScreenY", "both", "eye"),
            ("diameter0_2d", "pixels", "Diameter", "right", "eye0"),
            ("diameter1_2d", "pixels", "Diameter", "left", "eye1"),
            ("diameter0_3d", "mm", "Diameter", "right", "eye0"),
            ("diameter1_3d", "mm", "Diameter", "left", "eye1"),
        ]


class TestValues:
    def test_a_window_of_a_fixation_fills_every_channel(self) -> None:
        values = channels.fixation_window_channels(WINDOW)
        assert values == (280.0, 0.75, 0.25, 0.5, 1.5, 300.0, 3.0, -97.0, -54.0, 178.0, 0.3)
        assert all(type(value) is float for value in values)
        assert len(values) == len(channels.FIXATION_CHANNELS)

    def test_a_fixation_in_2d_has_no_point(self) -> None:
        expected = (280.0, 0.75, 0.25, 0.5, 1.5, 900.0, 2.0, *[math.nan] * 3, 0.9)
        assert the_same(channels.fixation_channels(WHOLE), expected)

    @pytest.mark.parametrize(("on", "value"), [(True, 1.0), (False, 0.0), (None, math.nan)])
    def test_a_fixation_on_a_surface_says_whether_it_is(self, on: bool | None, value: float) -> None:
        values = channels.surface_fixation_channels(msgspec.structs.replace(ON_SURFACE, on_surface=on))
        assert the_same(values, (280.0, 0.75, 0.25, 0.5, 1.5, 900.0, 0.9, value))
        assert len(values) == len(channels.SURFACE_FIXATION_CHANNELS)

    def test_gaze_on_a_surface_fills_every_channel(self) -> None:
        assert channels.surface_channels(SurfaceGaze(1, (0.25, 1.5), 0.75, False)) == (0.25, 1.5, 0.0, 0.75)
        assert len(channels.SURFACE_CHANNELS) == 4

    def test_blinks_and_their_edges_fill_every_channel(self) -> None:
        assert channels.blink_channels(WholeBlink(1, 2, 0.2, 0.75, 1.0, 0.75)) == (0.2, 0.75, 1.0, 0.75)
        assert len(channels.BLINK_CHANNELS) == 4
        assert channels.blink_edge_channels(BlinkEdge(True, 1, 0.75)) == (1.0, 0.75)
        assert channels.blink_edge_channels(BlinkEdge(False, 1, 0.75)) == (0.0, 0.75)
        assert len(channels.BLINK_EDGE_CHANNELS) == 2

    def test_pupillometry_is_nan_for_the_other_eye_and_for_mm_in_2d(self) -> None:
        right = Pupil("pupil.0.3d", 1, 0, "3d", 0.5, (0.25, 1.0), 40.0, 3.0, 0.9, None, None)
        left = Pupil("pupil.1.2d", 1, 1, "2d", 0.5, (0.25, 1.0), 41.0, None, None, None, None)
        nan = math.nan
        assert the_same(channels.pupillometry_channels(right), (0.5, 0.25, 1.0, 40.0, nan, 3.0, nan))
        assert the_same(channels.pupillometry_channels(left), (0.5, 0.25, 1.0, nan, 41.0, nan, nan))


class TestLayouts:
    @pytest.mark.parametrize(
        ("of", "layout"),
        [
            (channels.FIXATION_CHANNELS, channels.fixation_layout(1280, 720, live=False)),
            (channels.FIXATION_CHANNELS[:7], channels.fixation_layout(1280, 720, live=True, point=False)),
            (channels.SURFACE_FIXATION_CHANNELS, channels.surface_fixation_layout("Surface 1")),
        ],
    )
    def test_those_of_fixations_point_at_what_they_name(self, of: tuple[Channel, ...], layout: FixationLayout) -> None:
        assert [at(of, index) for index in (layout.id_index, layout.x_index, layout.y_index)] == [
            *("fixation id", "norm_pos_x", "norm_pos_y")
        ]
        assert at(of, layout.duration_index) == "duration"
        assert of[layout.duration_index].unit == "milliseconds"
        assert (at(of, layout.dispersion_index), of[layout.dispersion_index].unit) == ("dispersion", "degree")
        assert at(of, layout.confidence_index) == "confidence"
        assert layout.normalized_bottom_left

    def test_fixations_of_the_scene_have_its_size_a_method_and_a_point(self) -> None:
        layout = channels.fixation_layout(1280, 720, live=True)
        assert (layout.width_px, layout.height_px, layout.live, layout.surface) == (1280, 720, True, "")
        assert at(channels.FIXATION_CHANNELS, layout.method_index) == "method"
        assert at(channels.FIXATION_CHANNELS, layout.point_index) == "gaze_point_3d_x"
        assert channels.fixation_layout(1280, 720, live=True, point=False).point_index is None

    def test_fixations_on_a_surface_have_its_name_and_neither_method_nor_point(self) -> None:
        layout = channels.surface_fixation_layout("Surface 1")
        assert (layout.surface, layout.live, layout.method_index, layout.point_index) == (
            "Surface 1",
            False,
            None,
            None,
        )
        assert at(channels.SURFACE_FIXATION_CHANNELS, layout.on_surface_index) == "on_surf"

    def test_those_of_surfaces_and_blinks_point_at_what_they_name(self) -> None:
        layout, of = channels.surface_layout("Surface 1"), channels.SURFACE_CHANNELS
        assert layout.surface == "Surface 1"
        indexes = (layout.x_index, layout.y_index, layout.on_surface_index, layout.confidence_index)
        assert [at(of, index) for index in indexes] == ["norm_pos_x", "norm_pos_y", "on_surf", "confidence"]
        blink = channels.blink_layout()
        assert at(channels.BLINK_CHANNELS, blink.duration_index) == "duration"
        assert channels.BLINK_CHANNELS[blink.duration_index].unit == "seconds"
        assert at(channels.BLINK_CHANNELS, blink.confidence_index) == "confidence"


def test_labels_are_unique_in_every_stream() -> None:
    for of in (
        channels.FIXATION_CHANNELS,
        channels.SURFACE_FIXATION_CHANNELS,
        channels.SURFACE_CHANNELS,
        channels.BLINK_CHANNELS,
        channels.BLINK_EDGE_CHANNELS,
        channels.PUPILLOMETRY_CHANNELS,
    ):
        assert len(set(labels(of))) == len(of)
