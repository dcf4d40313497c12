"""Pupil Core's Network API: gaze and pupil datums of the IPC backbone. No I/O.

Source: Pupil Labs' documentation of the Network API, and the traffic of Pupil Capture 3.6.14. Backbone messages are
``[topic, msgpack map, raw frames...]``. The ZeroMQ topic decides what a datum is: the payload's own ``topic`` can be
absent. Decoders are typed and skip everything that nobody reads, which makes them three times as fast as dicts.

Times leave as integer nanoseconds of Pupil time (float64 seconds on the wire); eye 0 is the right eye, 1 the left.
Timestamp, confidence and norm_pos are always finite; the other numbers are as sent, and Capture may send NaN there.
Whatever breaks the protocol raises `MalformedMessage` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import isfinite
from typing import Any, Literal

import msgspec

from bridge.errors import MalformedMessage

DATUM_MAX_BYTES = 64 * 1024  # the largest gaze datum of Capture has 1400 bytes
TIME_LIMIT_NS = 2**62

Vector = tuple[float, float, float]
Eyes = tuple[Vector | None, Vector | None]

_TIME_LIMIT_S = TIME_LIMIT_NS / 1e9


class UnknownTopic(MalformedMessage):
    """A backbone message that is not what it was subscribed to for."""


class PupilRef(msgspec.Struct, frozen=True, gc=False):
    """What a gaze datum says of one pupil that it was made from: eye (0 or 1) and diameters, None where not sent."""

    id: int
    diameter_px: float | None = msgspec.field(default=None, name="diameter")
    diameter_mm: float | None = msgspec.field(default=None, name="diameter_3d")


class Gaze(msgspec.Struct, frozen=True, gc=False):
    """A gaze datum. ``norm_pos`` has its origin at the bottom left; 3D values are in mm of the scene camera.

    ``eye_centers`` and ``gaze_normals`` are (eye 0, eye 1), None for an eye that is not in the datum.
    """

    topic: str
    timestamp_ns: int
    confidence: float
    norm_pos: tuple[float, float]
    gaze_point_3d: Vector | None
    eye_centers: Eyes
    gaze_normals: Eyes
    base: tuple[PupilRef, ...]


class Pupil(msgspec.Struct, frozen=True, gc=False):
    """A pupil datum of one eye and method. What only the 3d method knows is None in 2d; mm of the eye camera."""

    topic: str
    timestamp_ns: int
    eye_id: Literal[0, 1]
    method: Literal["2d", "3d"]
    confidence: float
    norm_pos: tuple[float, float]
    diameter_px: float
    diameter_mm: float | None
    model_confidence: float | None
    circle_center: Vector | None
    circle_normal: Vector | None


class _ByEye(msgspec.Struct, gc=False):
    eye0: Vector | None = msgspec.field(default=None, name="0")
    eye1: Vector | None = msgspec.field(default=None, name="1")


class _Datum(msgspec.Struct, gc=False):
    timestamp: float
    confidence: float
    norm_pos: tuple[float, float]


class _Gaze2d(_Datum, gc=False):
    base_data: tuple[PupilRef, ...] = ()


class _Monocular(_Gaze2d, gc=False):
    gaze_point_3d: Vector | None = None
    eye_center_3d: Vector | None = None
    gaze_normal_3d: Vector | None = None


class _Binocular(_Gaze2d, gc=False):
    gaze_point_3d: Vector | None = None
    eye_centers_3d: _ByEye | None = None
    gaze_normals_3d: _ByEye | None = None


class _BinocularAnyKey(_Gaze2d, gc=False):
    gaze_point_3d: Vector | None = None
    eye_centers_3d: dict[int | str, Vector | None] | None = None
    gaze_normals_3d: dict[int | str, Vector | None] | None = None


class _Circle(msgspec.Struct, gc=False):
    center: Vector
    normal: Vector


class _Pupil2d(_Datum, kw_only=True, gc=False):
    diameter: float


class _Pupil3d(_Pupil2d, kw_only=True, gc=False):
    diameter_3d: float | None = None
    model_confidence: float | None = None
    circle_3d: _Circle | None = None


_decode_gaze_2d = msgspec.msgpack.Decoder(_Gaze2d).decode
_decode_monocular = msgspec.msgpack.Decoder(_Monocular).decode
_decode_binocular = msgspec.msgpack.Decoder(_Binocular).decode
_decode_any_key = msgspec.msgpack.Decoder(_BinocularAnyKey).decode
_decode_pupil_2d = msgspec.msgpack.Decoder(_Pupil2d).decode
_decode_pupil_3d = msgspec.msgpack.Decoder(_Pupil3d).decode
# msgspec's own error, its limit of nesting, and text that is no UTF-8.
UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeError)


def seconds_to_ns(seconds: float) -> int:
    """The exact value of a float64, rounded to a nanosecond (ties to even). Finite and below 2**62 ns."""
    # NaN fails this comparison too.
    if not -_TIME_LIMIT_S < seconds < _TIME_LIMIT_S:
        raise MalformedMessage(f"Pupil time is out of range: {seconds} s")
    # round(seconds * 1e9) would be up to 128 ns wrong where Pupil time was set to Unix time. The fraction of a second
    # is exact, and its product with 1e9 is wrong by less than 1e-7 ns: only what is that close to a tie needs more.
    whole_s = int(seconds)
    fraction_ns = (seconds - whole_s) * 1e9
    rounded_ns = round(fraction_ns)
    if -0.499_999 < fraction_ns - rounded_ns < 0.499_999:
        return whole_s * 1_000_000_000 + rounded_ns
    return round(Fraction(seconds) * 1_000_000_000)


def read_payload(frames: Sequence[bytes], what: str, decode: Callable[[bytes], Any], most_bytes: int) -> Any:
    """What the second frame of a message says. Raises MalformedMessage about ``what`` where it is missing, larger than
    that, or cannot be read."""
    if len(frames) < 2 or len(frames[1]) > most_bytes:
        raise MalformedMessage(f"Pupil Core {what} has no payload, or too much of it")
    try:
        return decode(frames[1])
    except UNREADABLE as error:
        raise MalformedMessage(f"Pupil Core {what} cannot be read: {error}") from error


def decode_datum(frames: Sequence[bytes]) -> Gaze | Pupil:
    """Read a backbone message, by its topic. Raises `UnknownTopic` for one that is neither gaze nor pupil."""
    if len(frames) < 2:
        raise MalformedMessage(f"Pupil Core message has {len(frames)} frames, at least 2 are needed")
    topic, payload = frames[0], frames[1]
    read = _READERS.get(topic)
    if read is None:
        raise UnknownTopic(f"Pupil Core topic is neither gaze nor pupil: {topic[:64]!r}")
    if len(payload) > DATUM_MAX_BYTES:
        raise MalformedMessage(f"Pupil Core datum has {len(payload)} bytes, more than {DATUM_MAX_BYTES}")
    try:
        datum: Gaze | Pupil = read(payload)
    except UNREADABLE as error:
        raise MalformedMessage(f"Pupil Core datum {topic.decode()} cannot be read: {error}") from error
    x, y = datum.norm_pos
    if not (isfinite(x) and isfinite(y) and isfinite(datum.confidence)):
        raise MalformedMessage(f"Pupil Core datum {topic.decode()} has a position or confidence that is not finite")
    return datum


def _gaze_2d(topic: str) -> Callable[[bytes], Gaze]:
    def read(payload: bytes) -> Gaze:
        d: _Gaze2d = _decode_gaze_2d(payload)
        at_ns = seconds_to_ns(d.timestamp)
        return Gaze(topic, at_ns, d.confidence, d.norm_pos, None, (None, None), (None, None), d.base_data)

    return read


def _gaze_3d_of_one_eye(topic: str, eye_id: int) -> Callable[[bytes], Gaze]:
    def read(payload: bytes) -> Gaze:
        d: _Monocular = _decode_monocular(payload)
        center, normal = d.eye_center_3d, d.gaze_normal_3d
        centers, normals = ((center, None), (normal, None)) if eye_id == 0 else ((None, center), (None, normal))
        at_ns = seconds_to_ns(d.timestamp)
        return Gaze(topic, at_ns, d.confidence, d.norm_pos, d.gaze_point_3d, centers, normals, d.base_data)

    return read


def _gaze_3d_of_both_eyes(topic: str) -> Callable[[bytes], Gaze]:
    def read(payload: bytes) -> Gaze:
        d: _Binocular | _BinocularAnyKey
        centers: Eyes = (None, None)
        normals: Eyes = (None, None)
        try:
            d = _decode_binocular(payload)
        except msgspec.ValidationError:
            # Capture's keys are strings; some senders use integers, which a Struct cannot have.
            d = _decode_any_key(payload)
            centers, normals = _by_any_key(d.eye_centers_3d), _by_any_key(d.gaze_normals_3d)
        else:
            if d.eye_centers_3d is not None:
                centers = (d.eye_centers_3d.eye0, d.eye_centers_3d.eye1)
            if d.gaze_normals_3d is not None:
                normals = (d.gaze_normals_3d.eye0, d.gaze_normals_3d.eye1)
        at_ns = seconds_to_ns(d.timestamp)
        return Gaze(topic, at_ns, d.confidence, d.norm_pos, d.gaze_point_3d, centers, normals, d.base_data)

    return read


def _by_any_key(vectors: dict[int | str, Vector | None] | None) -> Eyes:
    if vectors is None:
        return None, None
    return vectors.get(0, vectors.get("0")), vectors.get(1, vectors.get("1"))


def _pupil_2d(topic: str, eye_id: Literal[0, 1]) -> Callable[[bytes], Pupil]:
    def read(payload: bytes) -> Pupil:
        d: _Pupil2d = _decode_pupil_2d(payload)
        at_ns = seconds_to_ns(d.timestamp)
        return Pupil(topic, at_ns, eye_id, "2d", d.confidence, d.norm_pos, d.diameter, None, None, None, None)

    return read


def _pupil_3d(topic: str, eye_id: Literal[0, 1]) -> Callable[[bytes], Pupil]:
    def read(payload: bytes) -> Pupil:
        d: _Pupil3d = _decode_pupil_3d(payload)
        center, normal = (None, None) if d.circle_3d is None else (d.circle_3d.center, d.circle_3d.normal)
        return Pupil(
            topic,
            seconds_to_ns(d.timestamp),
            eye_id,
            "3d",
            d.confidence,
            d.norm_pos,
            d.diameter,
            d.diameter_3d,
            d.model_confidence,
            center,
            normal,
        )

    return read


_READERS: dict[bytes, Callable[[bytes], Gaze | Pupil]] = {
    b"gaze.2d.0.": _gaze_2d("gaze.2d.0."),
    b"gaze.2d.1.": _gaze_2d("gaze.2d.1."),
    b"gaze.2d.01.": _gaze_2d("gaze.2d.01."),
    b"gaze.3d.0.": _gaze_3d_of_one_eye("gaze.3d.0.", 0),
    b"gaze.3d.1.": _gaze_3d_of_one_eye("gaze.3d.1.", 1),
    b"gaze.3d.01.": _gaze_3d_of_both_eyes("gaze.3d.01."),
    b"pupil.0.2d": _pupil_2d("pupil.0.2d", 0),
    b"pupil.1.2d": _pupil_2d("pupil.1.2d", 1),
    b"pupil.0.3d": _pupil_3d("pupil.0.3d", 0),
    b"pupil.1.3d": _pupil_3d("pupil.1.3d", 1),
}
