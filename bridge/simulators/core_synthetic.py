"""A loop of gaze and pupil datums made without a tape: any rate, stamps in order, Capture's own fields and sizes.

Layout and types are those of `core_short.msgpack.xz`, so a synthesised message has as many bytes as a recorded one.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from bridge.simulators.tape import Tape, from_messages

VERSION = "3.6.14"
LOOP_S = 10.0
PUPIL_AGE_S = 0.010
GAZE_AGE_S = 0.035
# Any Pupil time will do, it is replaced; far from zero, because the first datums are stamped before the loop begins.
_EPOCH_S = 1000.0


def synthesise(gaze_rate_hz: float, pupil_rate_hz: float) -> Tape:
    """Binocular gaze at one rate and 2d and 3d pupils of both eyes at another; 0 leaves a stream out.

    The loop lasts a whole number of gaze datums; the pupil rate is rounded to a whole number of datums in a loop
    (by 0.05 datums/s at most). Raises `ValueError` when both rates are zero.
    """
    lead_hz = gaze_rate_hz or pupil_rate_hz
    if lead_hz <= 0:
        raise ValueError("nothing to synthesise: both rates are zero")
    loop_s = max(1, round(LOOP_S * lead_hz)) / lead_hz
    gazes = round(loop_s * gaze_rate_hz)
    pupils = round(loop_s * pupil_rate_hz)
    messages: list[tuple[float, list[bytes]]] = []

    def put(stamp_s: float, age_s: float, datum: dict[str, Any]) -> None:
        messages.append((stamp_s + age_s, [datum["topic"].encode(), msgspec.msgpack.encode(datum)]))

    for number in range(pupils):
        for eye in (0, 1):
            stamp_s = _pupil_stamp_s(eye, number, loop_s / pupils)
            put(stamp_s, PUPIL_AGE_S, _pupil_2d(eye, stamp_s, loop_s))
            put(stamp_s, PUPIL_AGE_S + 20e-6, _pupil_3d(eye, stamp_s, loop_s))
    for number in range(gazes):
        stamp_s = _EPOCH_S + number * loop_s / gazes
        # The matcher pairs one datum of each eye: here the last ones that were stamped before the gaze.
        bases = [_pupil_3d(eye, _last_pupil_s(eye, stamp_s, pupils, loop_s), loop_s) for eye in (0, 1)]
        put(stamp_s, GAZE_AGE_S, _gaze(stamp_s, loop_s, bases))
    messages.sort(key=lambda message: message[0])
    header = {"version": VERSION, "pupil_time": _EPOCH_S, "monotonic": _EPOCH_S, "loop_s": loop_s}
    return from_messages(header, messages)


def _pupil_stamp_s(eye: int, number: int, step_s: float) -> float:
    """The two cameras run free: the second one a quarter of a frame after the first."""
    return _EPOCH_S + (number + eye / 4) * step_s


def _last_pupil_s(eye: int, stamp_s: float, pupils: int, loop_s: float) -> float:
    if pupils == 0:
        return stamp_s
    step_s = loop_s / pupils
    number = math.floor((stamp_s - _EPOCH_S) / step_s - eye / 4 + 1e-9)
    return _pupil_stamp_s(eye, number, step_s)


def _swing(stamp_s: float, loop_s: float, turns: int, centre: float, reach: float) -> float:
    """A value that swings ``turns`` times in a loop, so that the loop has no seam; never a whole number's encoding."""
    return centre + reach * math.sin(2 * math.pi * turns * (stamp_s - _EPOCH_S) / loop_s + turns)


def _pupil_2d(eye: int, stamp_s: float, loop_s: float) -> dict[str, Any]:
    x, y = _swing(stamp_s, loop_s, 3 + eye, 0.5, 0.2), _swing(stamp_s, loop_s, 5 + eye, 0.5, 0.2)
    diameter_px = _swing(stamp_s, loop_s, 2, 40.0, 6.0)
    return {
        "id": eye,
        "topic": f"pupil.{eye}.2d",
        "method": "2d c++",
        "norm_pos": [x, y],
        "diameter": diameter_px,
        "confidence": _swing(stamp_s, loop_s, 7, 0.9, 0.099),
        "timestamp": stamp_s,
        "ellipse": {"axes": [diameter_px * 0.9, diameter_px], "angle": 67.5, "center": [x * 192, (1 - y) * 192]},
    }


def _pupil_3d(eye: int, stamp_s: float, loop_s: float) -> dict[str, Any]:
    flat = _pupil_2d(eye, stamp_s, loop_s)
    diameter_mm = _swing(stamp_s, loop_s, 2, 4.0, 0.6)
    theta, phi = _swing(stamp_s, loop_s, 5 + eye, 1.6, 0.3), _swing(stamp_s, loop_s, 3 + eye, -1.6, 0.3)
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


def _gaze(stamp_s: float, loop_s: float, bases: list[dict[str, Any]]) -> dict[str, Any]:
    x, y = _swing(stamp_s, loop_s, 4, 0.5, 0.3), _swing(stamp_s, loop_s, 6, 0.5, 0.3)
    normal = [(x - 0.5) * 0.9, (0.5 - y) * 0.7]
    normal.append(math.sqrt(1 - normal[0] ** 2 - normal[1] ** 2))
    return {
        "eye_centers_3d": {"0": [19.93, 14.93, -20.06], "1": [-39.99, 15.02, -19.94]},
        "gaze_normals_3d": {"0": normal, "1": normal},
        "gaze_point_3d": [component * 500.0 for component in normal],
        "norm_pos": [x, y],
        "topic": "gaze.3d.01.",
        "confidence": (bases[0]["confidence"] + bases[1]["confidence"]) / 2,
        "timestamp": stamp_s,
        "base_data": bases,
    }
