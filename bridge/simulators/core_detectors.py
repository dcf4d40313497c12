"""What Pupil Capture's plugins would find in synthesised gaze and pupils: fixations, blinks, gaze on surfaces.

Source: the behaviour of Pupil Capture 3.6.14 (fixation_detector.py, blink_detection.py, surface_tracker). Each looks
once a world frame at what has come since the frame before: a fixation is sent again as a window of 300 ms that moves
on, with the same id until it breaks; a blink is several onsets and then several offsets, which may be doubled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import msgspec

MIN_CONFIDENCE: Final = 0.6
WINDOW_S: Final = 0.3
MAX_DISPERSION_DEG: Final = 3.0
FILTER_S: Final = 0.2
FILTER_THRESHOLD: Final = 0.5
SCENE_PX: Final = (1280.0, 720.0)
# Name, and the rectangle in norm_pos that it covers: left, bottom, width, height.
SURFACES: Final = (("Surface 1", (0.2, 0.2, 0.6, 0.5)), ("Screen left", (0.05, 0.3, 0.4, 0.45)))

_Matrix = list[list[float]]


@dataclass(frozen=True, slots=True)
class Look:
    """A gaze datum as the plugins see it. ``point_3d`` is None where the gaze was mapped in 2d."""

    topic: str
    stamp_s: float
    x: float
    y: float
    confidence: float
    point_3d: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class Eye:
    """A 2d pupil datum as the blink detector sees it."""

    stamp_s: float
    confidence: float
    payload: msgspec.Raw


class Fixations:
    """The fixation detector; ``created`` counts the ids that it gave."""

    def __init__(self) -> None:
        self.created = 0
        self._history: list[Look] = []
        self._recent: int | None = None

    def see(self, looks: Iterable[Look]) -> dict[str, Any] | None:
        """The window that it sends for this frame, None where there is no fixation."""
        self._history += [look for look in looks if look.confidence >= MIN_CONFIDENCE]
        self._history.sort(key=lambda look: look.stamp_s)
        history = self._history
        if history:
            oldest_s = history[-1].stamp_s - WINDOW_S
            # One that is older stays, so that a window lasts a little longer than it must.
            while len(history) > 1 and history[1].stamp_s < oldest_s:
                del history[0]
        if len(history) <= 2 or history[-1].stamp_s - history[0].stamp_s < WINDOW_S:
            self._recent = None
            return None
        dispersion_deg = _dispersion_deg(history)
        if dispersion_deg >= MAX_DISPERSION_DEG:
            self._recent = None
            return None
        if self._recent is None:
            self._recent, self.created = self.created, self.created + 1
        return self._window(dispersion_deg, self._recent)

    def _window(self, dispersion_deg: float, identity: int) -> dict[str, Any]:
        history, points = self._history, [look.point_3d for look in self._history if look.point_3d]
        start_s, count = history[0].stamp_s, len(history)
        window: dict[str, Any] = {
            "topic": "fixations",
            "norm_pos": [sum(look.x for look in history) / count, sum(look.y for look in history) / count],
            "dispersion": dispersion_deg,
            "method": "3d gaze" if points else "2d gaze",
            "base_data": [(look.topic, look.stamp_s) for look in history],
            "timestamp": start_s,
            "duration": (history[-1].stamp_s - start_s) * 1000,
            "confidence": sum(look.confidence for look in history) / count,
        }
        if points:
            window["gaze_point_3d"] = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
        return window | {"id": identity}


def _dispersion_deg(looks: Sequence[Look]) -> float:
    """The widest angle between any two of some of the directions, the first and the last among them."""
    few = [*looks[:: max(1, len(looks) // 8)], looks[-1]]
    directions = []
    for look in few:
        x, y = (look.x - 0.5) * 0.9, (look.y - 0.5) * 0.7
        directions.append((x, y, math.sqrt(1 - x * x - y * y)))
    widest = min(sum(a * b for a, b in zip(one, other, strict=True)) for one, other in combinations(directions, 2))
    return math.degrees(math.acos(min(1.0, widest)))


class Blinks:
    """The blink detector: a filter over the confidence of both eyes' 2d pupils."""

    def __init__(self) -> None:
        self._history: deque[Eye] = deque()

    def see(self, eyes: Iterable[Eye]) -> dict[str, Any] | None:
        """The onset or offset that it sends for this frame, None where there is none."""
        history = self._history
        history.extend(eyes)
        if len(history) < 2:
            return None
        newest_s, oldest_s = history[-1].stamp_s, history[0].stamp_s
        while len(history) > 1 and history[1].stamp_s < newest_s - FILTER_S:
            history.popleft()
        size = len(history)
        if size < 2 or newest_s - oldest_s < FILTER_S:
            return None
        half = size // 2
        confidences = [eye.confidence for eye in history]
        # With an odd number the middle one does not count.
        response = (sum(confidences[:half]) - sum(confidences[size - half :])) / size / 0.45
        if abs(response) <= FILTER_THRESHOLD:
            return None
        return {
            "topic": "blinks",
            "type": "onset" if response > 0 else "offset",
            "confidence": min(abs(response), 1.0),
            "base_data": [eye.payload for eye in history],
            "timestamp": history[half].stamp_s,
            "record": True,
        }


def on_surface(
    surface: tuple[str, tuple[float, float, float, float]],
    frame_s: float,
    looks: Iterable[Look],
    fixation: dict[str, Any] | None,
) -> dict[str, Any]:
    """What the surface tracker sends of one surface for the frame of that stamp."""
    name, (left, bottom, width, height) = surface

    def datum(topic: str, stamp_s: float, x: float, y: float, confidence: float) -> dict[str, Any]:
        u, v = (x - left) / width, (y - bottom) / height
        return {
            "topic": f"{topic}_on_surface",
            "norm_pos": [u, v],
            "confidence": confidence,
            "on_surf": 0 <= u <= 1 and 0 <= v <= 1,
            "base_data": (topic, stamp_s),
            "timestamp": stamp_s,
        }

    fixations = []
    if fixation is not None:
        x, y = fixation["norm_pos"]
        about = datum("fixations", fixation["timestamp"], x, y, fixation["confidence"])
        fixations.append(about | {key: fixation[key] for key in ("id", "duration", "dispersion")})
    to_image, to_surface = _homographies(left, bottom, width, height)
    return {
        "topic": f"surfaces.{name}",
        "name": name,
        "surf_to_img_trans": to_image,
        "img_to_surf_trans": to_surface,
        "surf_to_dist_img_trans": to_image,
        "dist_img_to_surf_trans": to_surface,
        "gaze_on_surfaces": [datum(each.topic, each.stamp_s, each.x, each.y, each.confidence) for each in looks],
        "fixations_on_surfaces": fixations,
        "timestamp": frame_s,
    }


def _homographies(left: float, bottom: float, width: float, height: float) -> tuple[_Matrix, _Matrix]:
    """Between the surface (y up) and pixels of the image (y down), there and back."""
    width_px, height_px = SCENE_PX
    a, b, c, d = width * width_px, left * width_px, -height * height_px, (1 - bottom) * height_px
    there = [[a, 0.0, b], [0.0, c, d], [0.0, 0.0, 1.0]]
    back = [[1 / a, 0.0, -b / a], [0.0, 1 / c, -d / c], [0.0, 0.0, 1.0]]
    return there, back
