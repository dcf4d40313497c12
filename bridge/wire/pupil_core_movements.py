"""Fixations and blinks on Pupil Core's IPC backbone, as Capture's plugins find them while they last. No I/O.

Source: fixation_detector.py and blink_detection.py of Pupil Capture 3.6, and its traffic. Once a frame of the scene
camera Capture sends the window of gaze that is a fixation, and the edge that its filter over the pupils' confidence
finds: many windows make one fixation, several edges one blink (`bridge.sources.pupil_core_movements`).

Every number that leaves is finite. Whatever breaks the protocol raises `MalformedMessage` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Any, Literal

import msgspec

from bridge.errors import MalformedMessage
from bridge.wire.pupil_core import UNREADABLE, UnknownTopic, Vector, seconds_to_ns

FIXATIONS = b"fixations"
BLINKS = b"blinks"

# What they were made from makes them large: a blink over 0.5 s of two eyes at 200 Hz has 40 kB, a window of 4 s 30 kB.
MOVEMENT_MAX_BYTES = 128 * 1024
DURATION_MAX_MS = 86_400_000.0

FixationId = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]  # LSL has it as a float64


class Fixation(msgspec.Struct, frozen=True, gc=False):
    """One window of a fixation: ``timestamp_ns`` is its start, ``norm_pos`` (origin at the bottom left) its mean.

    ``dispersion_deg`` is the largest angle between any two directions of gaze in it, seen from the scene camera.
    ``gaze_point_3d`` is in mm of the scene camera, None in 2d.
    """

    id: int
    timestamp_ns: int
    duration_ms: float
    confidence: float
    norm_pos: tuple[float, float]
    dispersion_deg: float
    method: Literal["2d gaze", "3d gaze"]
    gaze_point_3d: Vector | None


class BlinkEdge(msgspec.Struct, frozen=True, gc=False):
    """The eyes' pupils vanish (``onset``) or come back; ``timestamp_ns`` is the middle of the filter's window."""

    onset: bool
    timestamp_ns: int
    confidence: float


class WholeFixation(msgspec.Struct, frozen=True, gc=False):
    """A fixation that has ended, in the terms of `Fixation`; ``received_ns`` is when its last window came.

    On a surface ``norm_pos`` is of that and ``on_surface`` says whether it is on it; it has no method and no point.
    """

    id: int
    timestamp_ns: int
    received_ns: int
    duration_ms: float
    confidence: float
    norm_pos: tuple[float, float]
    dispersion_deg: float
    method: Literal["2d gaze", "3d gaze"] | None = None
    gaze_point_3d: Vector | None = None
    on_surface: bool | None = None


class WholeBlink(msgspec.Struct, frozen=True, gc=False):
    """A blink that has ended. NaN where its end was not seen: ``duration_s`` and ``offset_confidence``.

    ``confidence`` is that of the less certain of its two edges. ``received_ns`` is when the last edge came.
    """

    timestamp_ns: int
    received_ns: int
    duration_s: float
    confidence: float
    onset_confidence: float
    offset_confidence: float


class _Fixation(msgspec.Struct, gc=False):
    id: FixationId
    timestamp: float
    duration: float
    confidence: float
    norm_pos: tuple[float, float]
    dispersion: float
    method: Literal["2d gaze", "3d gaze"]
    gaze_point_3d: Vector | None = None


class _Blink(msgspec.Struct, gc=False):
    type: Literal["onset", "offset"]
    timestamp: float
    confidence: float


_decode_fixation = msgspec.msgpack.Decoder(_Fixation).decode
_decode_blink = msgspec.msgpack.Decoder(_Blink).decode


def decode_fixation(frames: Sequence[bytes]) -> Fixation:
    """Reads a message of the topic `FIXATIONS`. Raises `UnknownTopic` for any other one."""
    d: _Fixation = _read(frames, FIXATIONS, _decode_fixation)
    point = d.gaze_point_3d
    if not all(map(isfinite, (d.confidence, d.dispersion, *d.norm_pos, *(point or ())))):
        raise MalformedMessage("Pupil Core fixation has a number that is not finite")
    # NaN fails this comparison too.
    if not 0.0 <= d.duration <= DURATION_MAX_MS:
        raise MalformedMessage(f"Pupil Core fixation lasts {d.duration} ms")
    at_ns = seconds_to_ns(d.timestamp)
    return Fixation(d.id, at_ns, d.duration, d.confidence, d.norm_pos, d.dispersion, d.method, point)


def decode_blink(frames: Sequence[bytes]) -> BlinkEdge:
    """Reads a message of the topic `BLINKS`. Raises `UnknownTopic` for any other one."""
    d: _Blink = _read(frames, BLINKS, _decode_blink)
    if not isfinite(d.confidence):
        raise MalformedMessage("Pupil Core blink has a confidence that is not finite")
    return BlinkEdge(d.type == "onset", seconds_to_ns(d.timestamp), d.confidence)


def _read(frames: Sequence[bytes], topic: bytes, decode: Any) -> Any:
    if not frames or frames[0] != topic:
        raise UnknownTopic(f"Pupil Core topic is not {topic.decode()}: {frames[0][:64] if frames else b''!r}")
    if len(frames) < 2:
        raise MalformedMessage(f"Pupil Core message {topic.decode()} has no payload")
    if len(frames[1]) > MOVEMENT_MAX_BYTES:
        size = len(frames[1])
        raise MalformedMessage(f"Pupil Core message {topic.decode()} has {size} bytes, more than {MOVEMENT_MAX_BYTES}")
    try:
        return decode(frames[1])
    except UNREADABLE as error:
        raise MalformedMessage(f"Pupil Core message {topic.decode()} cannot be read: {error}") from error
