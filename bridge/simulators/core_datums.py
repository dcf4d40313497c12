"""Pupil and gaze datums of one turn of a synthesised loop, as Capture would have made them.

Layout and types are those of `core_short.msgpack.xz`, so a synthesised message has as many bytes as a recorded one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bridge.simulators.core_movements import Movements

# Any Pupil time will do, it is replaced; far from zero, because the first datums are stamped before the loop begins.
EPOCH_S: Final = 1000.0
GAZE_MAPPINGS: Final = ("3d", "2d", "mono", "mono-2d")
_SHUT_CONFIDENCE: Final = 0.02
_EYE_CENTRES: Final = ((19.93, 14.93, -20.06), (-39.99, 15.02, -19.94))
_DEPTH_MM: Final = 500.0


@dataclass(frozen=True, slots=True)
class Datums:
    """So many datums of gaze and of each eye's pupils in a turn. Numbers below 0 are those of the turn before.

    ``gaze_mapping``: one of GAZE_MAPPINGS; a monocular one gives the gaze of the two eyes in turn.
    """

    movements: Movements
    loop_s: float
    gazes: int
    pupils: int
    gaze_mapping: str = "3d"
    integer_keys: bool = False

    @property
    def flat(self) -> bool:
        """Whether gaze is mapped in 2d."""
        return "2d" in self.gaze_mapping

    def gaze_stamp_s(self, number: int) -> float:
        return EPOCH_S + number * self.loop_s / self.gazes

    def pupil_stamp_s(self, eye: int, number: int) -> float:
        """The two cameras run free: the second one a quarter of a frame after the first."""
        return EPOCH_S + (number + eye / 4) * self.loop_s / self.pupils

    def last_pupil_s(self, eye: int, stamp_s: float) -> float:
        """The matcher pairs one datum of each eye: here the last ones that were stamped before the gaze."""
        if self.pupils == 0:
            return stamp_s
        number = math.floor((stamp_s - EPOCH_S) / (self.loop_s / self.pupils) - eye / 4 + 1e-9)
        return self.pupil_stamp_s(eye, number)

    def _swing(self, stamp_s: float, turns: int, centre: float, reach: float) -> float:
        """A value that swings ``turns`` times in a loop, so that the loop has no seam."""
        return centre + reach * math.sin(2 * math.pi * turns * (stamp_s - EPOCH_S) / self.loop_s + turns)

    def confidence(self, stamp_s: float) -> float:
        return _SHUT_CONFIDENCE if self.movements.shut_at(stamp_s - EPOCH_S) else self._swing(stamp_s, 7, 0.9, 0.099)

    def gaze_position(self, stamp_s: float) -> tuple[float, float]:
        return self.movements.gaze_at(stamp_s - EPOCH_S)

    def gaze_topic(self, number: int) -> tuple[str, tuple[int, ...]]:
        mapping = self.gaze_mapping
        dimensions = "2d" if "2d" in mapping else "3d"
        eyes = (number % 2,) if mapping.startswith("mono") else (0, 1)
        return f"gaze.{dimensions}.{''.join(map(str, eyes))}.", eyes

    def pupil_2d(self, eye: int, stamp_s: float) -> dict[str, Any]:
        x, y = self._swing(stamp_s, 3 + eye, 0.5, 0.2), self._swing(stamp_s, 5 + eye, 0.5, 0.2)
        diameter_px = self._swing(stamp_s, 2, 40.0, 6.0)
        return {
            "id": eye,
            "topic": f"pupil.{eye}.2d",
            "method": "2d c++",
            "norm_pos": [x, y],
            "diameter": diameter_px,
            "confidence": self.confidence(stamp_s),
            "timestamp": stamp_s,
            "ellipse": {"axes": [diameter_px * 0.9, diameter_px], "angle": 67.5, "center": [x * 192, (1 - y) * 192]},
        }

    def pupil_3d(self, eye: int, stamp_s: float) -> dict[str, Any]:
        flat = self.pupil_2d(eye, stamp_s)
        diameter_mm = self._swing(stamp_s, 2, 4.0, 0.6)
        theta, phi = self._swing(stamp_s, 5 + eye, 1.6, 0.3), self._swing(stamp_s, 3 + eye, -1.6, 0.3)
        normal = [math.sin(theta) * math.cos(phi), math.cos(theta), math.sin(theta) * math.sin(phi)]
        sphere = [0.0802, -0.0041, 47.0235]
        return {
            "id": eye,
            "topic": f"pupil.{eye}.3d",
            "method": "pye3d 0.3.2 real-time",
            "norm_pos": flat["norm_pos"],
            "diameter": flat["diameter"],
            "confidence": flat["confidence"],
            "timestamp": stamp_s,
            "sphere": {"center": sphere, "radius": 10.392304845413264},
            "projected_sphere": {"center": [96.3543, 95.9045], "axes": [149.3025, 149.3025], "angle": 0.0},
            "circle_3d": {
                "center": [a + 10.392304845413264 * b for a, b in zip(sphere, normal, strict=True)],
                "normal": normal,
                "radius": diameter_mm / 2,
            },
            "diameter_3d": diameter_mm,
            "ellipse": {
                "center": flat["ellipse"]["center"],
                "axes": flat["ellipse"]["axes"],
                "angle": flat["ellipse"]["angle"],
            },
            "location": flat["ellipse"]["center"],
            "model_confidence": 1.0,
            "theta": theta,
            "phi": phi,
        }

    def gaze(self, number: int) -> dict[str, Any]:
        stamp_s = self.gaze_stamp_s(number)
        x, y = self.gaze_position(stamp_s)
        topic, eyes = self.gaze_topic(number)
        flat = self.flat
        make: Callable[[int, float], dict[str, Any]] = self.pupil_2d if flat else self.pupil_3d
        bases = [make(eye, self.last_pupil_s(eye, stamp_s)) for eye in eyes]
        confidence = sum(base["confidence"] for base in bases) / len(bases)
        if flat:
            # The 2d gazer begins with the topic, the 3d one with what it has found.
            datum: dict[str, Any] = {"topic": topic, "norm_pos": [x, y]}
        else:
            datum = self._in_depth(eyes, _direction(x, y)) | {"norm_pos": [x, y], "topic": topic}
        return datum | {"confidence": confidence, "timestamp": stamp_s, "base_data": bases}

    def _in_depth(self, eyes: tuple[int, ...], normal: tuple[float, float, float]) -> dict[str, Any]:
        point = [component * _DEPTH_MM for component in normal]
        if len(eyes) == 1:
            return {"eye_center_3d": _EYE_CENTRES[eyes[0]], "gaze_normal_3d": normal, "gaze_point_3d": point}
        keys: list[Any] = [eye if self.integer_keys else str(eye) for eye in eyes]
        centres = {key: _EYE_CENTRES[eye] for key, eye in zip(keys, eyes, strict=True)}
        return {
            "eye_centers_3d": centres,
            "gaze_normals_3d": dict.fromkeys(keys, normal),
            "gaze_point_3d": point,
        }


def _direction(x: float, y: float) -> tuple[float, float, float]:
    """Where the person looks, as a unit vector of the scene camera: x right, y down, z forward."""
    right, down = (x - 0.5) * 0.9, (0.5 - y) * 0.7
    return right, down, math.sqrt(1 - right**2 - down**2)


def point_3d(x: float, y: float) -> tuple[float, float, float]:
    right, down, forward = _direction(x, y)
    return right * _DEPTH_MM, down * _DEPTH_MM, forward * _DEPTH_MM
