"""Surfaces on Pupil Core's IPC backbone: where on them the person looks, once a frame of the scene camera. No I/O.

Source: surface.py and surface_tracker.py of Pupil Capture 3.6, and its traffic. A surface is sent while its markers are
seen. Gaze and fixations on it are those that Capture had for that frame, with the stamps and ids that these have
elsewhere; of fixations these are the windows (`bridge.wire.pupil_core_movements`), without method and gaze point.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from typing import Annotated

import msgspec

from bridge.errors import MalformedMessage
from bridge.wire.pupil_core import UnknownTopic, read_payload, seconds_to_ns
from bridge.wire.pupil_core_movements import DURATION_MAX_MS, FixationId

TOPIC_START = b"surfaces."
NAME_MAX_LETTERS = 100
# A gaze on a surface has 180 bytes: this is that of 5 s at 400 Hz, should Capture stand still for that long.
SURFACE_MAX_BYTES = 512 * 1024
GAZE_MAX = 2048
FIXATIONS_MAX = 64  # Capture sends none or one

NOWHERE = (nan, nan)


class SurfaceGaze(msgspec.Struct, frozen=True, gc=False):
    """``norm_pos`` is from the surface's bottom left corner; NaN where the camera's image has no such place."""

    timestamp_ns: int
    norm_pos: tuple[float, float]
    confidence: float
    on_surface: bool


class SurfaceFixation(msgspec.Struct, frozen=True, gc=False):
    """One window of a fixation, by the id that it has elsewhere; ``norm_pos`` as in `SurfaceGaze`."""

    id: int
    timestamp_ns: int
    duration_ms: float
    norm_pos: tuple[float, float]
    confidence: float
    dispersion_deg: float
    on_surface: bool


class Surface(msgspec.Struct, frozen=True, gc=False):
    """``name``: what the user calls it, any printable text of 1 to 100 letters; ``timestamp_ns``: of the frame."""

    name: str
    timestamp_ns: int
    gaze: tuple[SurfaceGaze, ...]
    fixations: tuple[SurfaceFixation, ...]


class _Gaze(msgspec.Struct, gc=False):
    timestamp: float
    norm_pos: tuple[float, float]
    confidence: float
    on_surf: bool


class _Fixation(_Gaze, gc=False):
    id: FixationId
    duration: float
    dispersion: float


class _Surface(msgspec.Struct, gc=False):
    timestamp: float
    gaze_on_surfaces: Annotated[list[_Gaze], msgspec.Meta(max_length=GAZE_MAX)]
    fixations_on_surfaces: Annotated[list[_Fixation], msgspec.Meta(max_length=FIXATIONS_MAX)]


_decode = msgspec.msgpack.Decoder(_Surface).decode


def decode_surface(frames: Sequence[bytes]) -> Surface:
    """Reads a message of a topic that begins with `TOPIC_START`. Raises `UnknownTopic` for any other one."""
    if not frames or not frames[0].startswith(TOPIC_START):
        raise UnknownTopic(f"Pupil Core topic is no surface's: {frames[0][:64] if frames else b''!r}")
    name = _name(frames[0][len(TOPIC_START) :])
    d: _Surface = read_payload(frames, "surface", _decode, SURFACE_MAX_BYTES)
    gaze = tuple(
        SurfaceGaze(seconds_to_ns(g.timestamp), _place(g), _finite(g.confidence), g.on_surf) for g in d.gaze_on_surfaces
    )
    return Surface(name, seconds_to_ns(d.timestamp), gaze, tuple(map(_fixation, d.fixations_on_surfaces)))


def _name(raw: bytes) -> str:
    if len(raw) > 4 * NAME_MAX_LETTERS:
        raise MalformedMessage(f"Pupil Core surface has a name of {len(raw)} bytes")
    try:
        text = raw.decode()
    except UnicodeError as error:
        raise MalformedMessage(f"Pupil Core surface has a name that is no text: {raw[:64]!r}") from error
    name = "".join(letter if letter.isprintable() else " " for letter in text)
    if not name.strip() or len(name) > NAME_MAX_LETTERS:
        raise MalformedMessage(f"Pupil Core surface has a name of {len(name)} letters, or of blanks alone")
    return name


def _fixation(f: _Fixation) -> SurfaceFixation:
    if not 0.0 <= f.duration <= DURATION_MAX_MS:
        raise MalformedMessage(f"Pupil Core fixation lasts {f.duration} ms")
    return SurfaceFixation(
        f.id,
        seconds_to_ns(f.timestamp),
        f.duration,
        _place(f),
        _finite(f.confidence),
        _finite(f.dispersion),
        f.on_surf,
    )


def _place(g: _Gaze) -> tuple[float, float]:
    # Seen from far aside a surface has a horizon, beyond which there is no place on it.
    x, y = g.norm_pos
    return g.norm_pos if isfinite(x) and isfinite(y) else NOWHERE


def _finite(number: float) -> float:
    if not isfinite(number):
        raise MalformedMessage("Pupil Core surface has a confidence or dispersion that is not finite")
    return number
