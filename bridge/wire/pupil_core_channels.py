"""The channels of Pupil Core's streams: their names, where each value is, and the values of a datum. No I/O.

Source: Pupil Labs' LSL plugin for Pupil Capture and the XDF gaze metadata specification.
"""

from __future__ import annotations

from math import nan

import msgspec

from bridge.streams import BlinkLayout, Channel, FixationLayout, GazeLayout, PupilLayout, SurfaceLayout
from bridge.wire.pupil_core import Gaze, Pupil
from bridge.wire.pupil_core_movements import BlinkEdge, Fixation, WholeBlink, WholeFixation
from bridge.wire.pupil_core_surfaces import SurfaceGaze

_NO_VECTOR = (nan, nan, nan)


def _xyz(label: str, unit: str, kind: str, eye: str, system: str) -> tuple[Channel, ...]:
    return tuple(Channel(f"{label}_{axis}", unit, kind + axis.upper(), eye, system) for axis in "xyz")


def _norm_pos(system: str) -> tuple[Channel, ...]:
    return tuple(Channel(f"norm_pos_{axis}", "normalized", f"Screen{axis.upper()}", "both", system) for axis in "xy")


# Labels and order are those of Pupil Labs' LSL plugin for Capture, so that scripts go on working. So are units and
# types, but for two slips of the plugin, where the XDF specification decides: it calls the gaze point a direction,
# and the unit vectors of the gaze a position in mm.
GAZE_CHANNELS: tuple[Channel, ...] = (
    Channel("confidence", "normalized", "Confidence"),
    *_norm_pos("world"),
    *_xyz("gaze_point_3d", "mm", "Intersection", "both", "world"),
    *_xyz("eye_center0_3d", "mm", "Position", "right", "world"),
    *_xyz("eye_center1_3d", "mm", "Position", "left", "world"),
    *_xyz("gaze_normal0", "normalized", "Direction", "right", "world"),
    *_xyz("gaze_normal1", "normalized", "Direction", "left", "world"),
    Channel("diameter0_2d", "pixels", "Diameter", "right", "eye0"),
    Channel("diameter1_2d", "pixels", "Diameter", "left", "eye1"),
    Channel("diameter0_3d", "mm", "Diameter", "right", "eye0"),
    Channel("diameter1_3d", "mm", "Diameter", "left", "eye1"),
)

# One stream carries one eye, which its descriptor names.
PUPIL_CHANNELS: tuple[Channel, ...] = (
    Channel("confidence", "normalized", "Confidence"),
    *_norm_pos("eye"),
    Channel("diameter_2d", "pixels", "Diameter", "both", "eye"),
    Channel("diameter_3d", "mm", "Diameter", "both", "eye"),
    Channel("model_confidence", "normalized", "Confidence"),
    *_xyz("circle_3d_center", "mm", "Pupil", "both", "eye"),
    *_xyz("circle_3d_normal", "normalized", "Direction", "both", "eye"),
)

# Both eyes and all methods in one stream: labels, order, units and types are those of the plugin.
PUPILLOMETRY_CHANNELS: tuple[Channel, ...] = (
    Channel("confidence", "normalized", "Confidence"),
    *_norm_pos("eye"),
    *GAZE_CHANNELS[18:],
)

_FIXATION = "com.pupil-labs.fixation."
_DURATION_S = Channel("duration_s", "seconds", f"{_FIXATION}duration_s")
# The first seven are the plugin's, units and types too: it has none for an id and a method.
FIXATION_CHANNELS: tuple[Channel, ...] = (
    Channel("fixation id", "", f"{_FIXATION}id"),
    Channel("confidence", "normalized", "Confidence"),
    *_norm_pos("world"),
    Channel("dispersion", "degree", f"{_FIXATION}dispersion"),
    Channel("duration", "milliseconds", f"{_FIXATION}duration"),
    Channel("method", "", f"{_FIXATION}method"),
    *_xyz("gaze_point_3d", "mm", "Intersection", "both", "world"),
    _DURATION_S,
)

_ON_SURFACE = Channel("on_surf", "none", "com.pupil-labs.surface.on_surf", "both", "surface")
SURFACE_CHANNELS: tuple[Channel, ...] = (
    *_norm_pos("surface"),
    _ON_SURFACE,
    Channel("confidence", "normalized", "Confidence"),
)
SURFACE_FIXATION_CHANNELS: tuple[Channel, ...] = (
    *FIXATION_CHANNELS[:2],
    *_norm_pos("surface"),
    *FIXATION_CHANNELS[4:6],
    _DURATION_S,
    _ON_SURFACE,
)

BLINK_CHANNELS: tuple[Channel, ...] = (
    Channel("duration", "seconds", "com.pupil-labs.blink.duration"),
    Channel("confidence", "normalized", "Confidence"),
    Channel("onset_confidence", "normalized", "Confidence"),
    Channel("offset_confidence", "normalized", "Confidence"),
)
BLINK_EDGE_CHANNELS: tuple[Channel, ...] = (
    Channel("onset", "none", "com.pupil-labs.blink.onset"),
    Channel("confidence", "normalized", "Confidence"),
)


def gaze_layout(width_px: int, height_px: int) -> GazeLayout:
    """Where `GAZE_CHANNELS` have what, for a scene camera of that size."""
    return GazeLayout(
        x_index=1,
        y_index=2,
        normalized_bottom_left=True,
        width_px=width_px,
        height_px=height_px,
        confidence_index=0,
        point_index=3,
        eye_center_indexes=(6, 9),
        eye_axis_indexes=(12, 15),
        diameter_px_indexes=(18, 19),
        diameter_mm_indexes=(20, 21),
    )


def pupil_layout(eye: int, method: str) -> PupilLayout:
    """Where `PUPIL_CHANNELS` have what. Eye 0 is the right one."""
    return PupilLayout(
        eye="left" if eye else "right",
        camera=f"eye{eye}",
        method=method,
        confidence_index=0,
        x_index=1,
        y_index=2,
        diameter_px_index=3,
        diameter_mm_index=4,
        model_confidence_index=5,
        center_index=6,
        normal_index=9,
    )


def fixation_layout(width_px: int, height_px: int, *, live: bool, point: bool = True) -> FixationLayout:
    """Where `FIXATION_CHANNELS` have what; without ``point`` the plugin's seven alone."""
    return FixationLayout(
        id_index=0,
        x_index=2,
        y_index=3,
        normalized_bottom_left=True,
        width_px=width_px,
        height_px=height_px,
        duration_index=5,
        dispersion_index=4,
        confidence_index=1,
        method_index=6,
        point_index=7 if point else None,
        live=live,
    )


def surface_fixation_layout(surface: str) -> FixationLayout:
    """Where `SURFACE_FIXATION_CHANNELS` have what. A surface has no size in pixels: 0 by 0."""
    on_scene = fixation_layout(0, 0, live=False, point=False)
    return msgspec.structs.replace(on_scene, method_index=None, on_surface_index=7, surface=surface)


def surface_layout(surface: str) -> SurfaceLayout:
    """Where `SURFACE_CHANNELS` have what."""
    return SurfaceLayout(surface, x_index=0, y_index=1, on_surface_index=2, confidence_index=3)


def blink_layout() -> BlinkLayout:
    """Where `BLINK_CHANNELS` have what."""
    return BlinkLayout(duration_index=0, confidence_index=1)


def gaze_channels(gaze: Gaze) -> tuple[float, ...]:
    """The values of `GAZE_CHANNELS`, NaN where the datum has none. Of several pupils of an eye the first counts."""
    diameter0_px = diameter1_px = diameter0_mm = diameter1_mm = nan
    for pupil in reversed(gaze.base):
        px, mm = pupil.diameter_px, pupil.diameter_mm
        if pupil.id == 0:
            diameter0_px = diameter0_px if px is None else px
            diameter0_mm = diameter0_mm if mm is None else mm
        elif pupil.id == 1:
            diameter1_px = diameter1_px if px is None else px
            diameter1_mm = diameter1_mm if mm is None else mm
    return (
        gaze.confidence,
        *gaze.norm_pos,
        *(gaze.gaze_point_3d or _NO_VECTOR),
        *(gaze.eye_centers[0] or _NO_VECTOR),
        *(gaze.eye_centers[1] or _NO_VECTOR),
        *(gaze.gaze_normals[0] or _NO_VECTOR),
        *(gaze.gaze_normals[1] or _NO_VECTOR),
        diameter0_px,
        diameter1_px,
        diameter0_mm,
        diameter1_mm,
    )


def pupil_channels(pupil: Pupil) -> tuple[float, ...]:
    """The values of `PUPIL_CHANNELS`, NaN where the datum has none."""
    return (
        pupil.confidence,
        *pupil.norm_pos,
        pupil.diameter_px,
        nan if pupil.diameter_mm is None else pupil.diameter_mm,
        nan if pupil.model_confidence is None else pupil.model_confidence,
        *(pupil.circle_center or _NO_VECTOR),
        *(pupil.circle_normal or _NO_VECTOR),
    )


def pupillometry_channels(pupil: Pupil) -> tuple[float, ...]:
    """The values of `PUPILLOMETRY_CHANNELS`, NaN for the other eye and what the datum has not."""
    px, mm = pupil.diameter_px, nan if pupil.diameter_mm is None else pupil.diameter_mm
    diameters = (nan, px, nan, mm) if pupil.eye_id else (px, nan, mm, nan)
    return (pupil.confidence, *pupil.norm_pos, *diameters)


def fixation_window_channels(window: Fixation) -> tuple[float, ...]:
    """The values of `FIXATION_CHANNELS` of one window: its own start, duration and mean."""
    return _fixation(window)


def fixation_channels(whole: WholeFixation) -> tuple[float, ...]:
    """The values of `FIXATION_CHANNELS`, NaN where it has none."""
    return _fixation(whole)


def _fixation(fixation: Fixation | WholeFixation) -> tuple[float, ...]:
    return (
        float(fixation.id),
        fixation.confidence,
        *fixation.norm_pos,
        fixation.dispersion_deg,
        fixation.duration_ms,
        nan if fixation.method is None else float(fixation.method[0]),
        *(fixation.gaze_point_3d or _NO_VECTOR),
        fixation.duration_ms / 1000.0,
    )


def surface_fixation_channels(fixation: WholeFixation) -> tuple[float, ...]:
    """The values of `SURFACE_FIXATION_CHANNELS`."""
    return (
        float(fixation.id),
        fixation.confidence,
        *fixation.norm_pos,
        fixation.dispersion_deg,
        fixation.duration_ms,
        fixation.duration_ms / 1000.0,
        nan if fixation.on_surface is None else float(fixation.on_surface),
    )


def surface_channels(gaze: SurfaceGaze) -> tuple[float, ...]:
    """The values of `SURFACE_CHANNELS`."""
    return (*gaze.norm_pos, float(gaze.on_surface), gaze.confidence)


def blink_channels(blink: WholeBlink) -> tuple[float, ...]:
    """The values of `BLINK_CHANNELS`."""
    return (blink.duration_s, blink.confidence, blink.onset_confidence, blink.offset_confidence)


def blink_edge_channels(edge: BlinkEdge) -> tuple[float, ...]:
    """The values of `BLINK_EDGE_CHANNELS`: the first is 1 for an onset and 0 for an offset."""
    return (float(edge.onset), edge.confidence)
