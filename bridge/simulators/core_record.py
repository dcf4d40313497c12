"""One message of Pupil Capture's backbone, ready to be sent again at another time, and what is true about it.

Layouts: those of Pupil Capture 3.6.14 as recorded. A payload is decoded once, here; every Pupil time in it is a float64
at a known offset and every fixation's id a uint32, and both are overwritten in place when it is sent.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

_FLOAT64 = struct.Struct(">d")
_UINT32 = struct.Struct(">I")

# A Pupil time is the value of such a key or the second half of a base_data pair such as ["gaze.3d.01.", time].
_STAMP = re.compile(
    rb"(?:\xa9timestamp|\xb1start_time_synced|\x92[\xa0-\xbf](?:gaze\.|pupil\.|fixations)[0-9a-z.]{0,20})\xcb(?=(.{8}))",
    re.DOTALL,
)
_ID = re.compile(rb"\xa2id(?:\xce(.{4})|\xcd(.{2})|\xcc(.)|([\x00-\x7f]))", re.DOTALL)
_WIDE_ID = re.compile(rb"\xa2id\xce(.{4})", re.DOTALL)
_DURATION = re.compile(rb"\xa8duration\xcb", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fact:
    """A line for the truth: ``stream``, its instant, and the payload's numbers.

    ``serial``, which counts on over the loops, and the end are put before the payload where they are there.
    ``last``: the last window of a fixation.
    """

    stream: str
    instant_ns: int
    payload: tuple[float, ...]
    serial: int | None = None
    end_ns: int | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the backbone. ``stamps``: (offset of the float64 in ``payload``, instant in ns).

    ``stream`` names the stream that gaze and pupil datums belong to, None for everything else; ``instant_ns`` and
    ``position`` (norm_x, norm_y, confidence) are the datum's own. ``serials`` are offsets and values of ids that count
    on over the loops (fixations), ``duration`` the offset of the float64 that holds the ms from one instant to another.
    Without a topic nothing is sent: there are only ``facts``.
    """

    arrival_ns: int
    topic: bytes
    payload: bytes
    raw: tuple[bytes, ...] = ()
    stamps: tuple[tuple[int, int], ...] = ()
    stream: str | None = None
    instant_ns: int | None = None
    position: tuple[float, ...] = ()
    serials: tuple[tuple[int, int], ...] = ()
    duration: tuple[int, int, int] | None = None
    facts: tuple[Fact, ...] = ()

    def restamped(self, seconds: Callable[[int], float], shift_ns: int, serial_shift: int = 0) -> bytes:
        """The payload with every instant moved by ``shift_ns`` and written as what ``seconds`` makes of it."""
        payload = bytearray(self.payload)
        for offset, instant_ns in self.stamps:
            _FLOAT64.pack_into(payload, offset, seconds(instant_ns + shift_ns))
        for offset, value in self.serials:
            _UINT32.pack_into(payload, offset, (value + serial_shift) & 0xFFFFFFFF)
        if self.duration is not None:
            # Capture subtracts two stamps, whatever the clock did between them.
            offset, start_ns, end_ns = self.duration
            _FLOAT64.pack_into(payload, offset, (seconds(end_ns + shift_ns) - seconds(start_ns + shift_ns)) * 1000)
        return bytes(payload)

    def moved(self, shift_ns: int, serial_shift: int) -> Record:
        """The same in another turn of the loop."""
        return replace(
            self,
            arrival_ns=self.arrival_ns + shift_ns,
            stamps=tuple((offset, instant_ns + shift_ns) for offset, instant_ns in self.stamps),
            instant_ns=None if self.instant_ns is None else self.instant_ns + shift_ns,
            serials=tuple((offset, value + serial_shift) for offset, value in self.serials),
            duration=None
            if self.duration is None
            else (self.duration[0], self.duration[1] + shift_ns, self.duration[2] + shift_ns),
            facts=tuple(
                replace(
                    fact,
                    instant_ns=fact.instant_ns + shift_ns,
                    serial=None if fact.serial is None else fact.serial + serial_shift,
                    end_ns=None if fact.end_ns is None else fact.end_ns + shift_ns,
                )
                for fact in self.facts
            ),
        )


class _Datum(msgspec.Struct):
    timestamp: float
    norm_pos: tuple[float, float]
    confidence: float


class _Fixation(_Datum):
    id: int
    duration: float
    dispersion: float
    base_data: list[tuple[str, float]] = []


class _Blink(msgspec.Struct):
    timestamp: float
    type: str
    confidence: float


class _OnSurface(_Datum):
    on_surf: bool
    id: int | None = None
    duration: float = 0.0


class _Surface(msgspec.Struct):
    name: str
    gaze_on_surfaces: list[_OnSurface] = []
    fixations_on_surfaces: list[_OnSurface] = []


_decode_datum = msgspec.msgpack.Decoder(_Datum).decode
_decode_fixation = msgspec.msgpack.Decoder(_Fixation).decode
_decode_blink = msgspec.msgpack.Decoder(_Blink).decode
_decode_surface = msgspec.msgpack.Decoder(_Surface).decode


def record(arrival_ns: int, frames: Sequence[bytes], pupil_s: float) -> Record:
    """Prepare a message; ``pupil_s`` is the Pupil time at which instants are 0. Raises `msgspec.MsgspecError`."""
    topic, payload, *raw = frames
    made = Record(arrival_ns, topic, payload, tuple(raw))
    if topic.startswith((b"gaze.", b"pupil.")):
        made = _datum(made, pupil_s)
    elif topic == b"fixations":
        made = _fixation(_widened(made), pupil_s)
    elif topic == b"blinks":
        blink = _decode_blink(payload)
        about = (float(blink.type == "onset"), blink.confidence)
        made = replace(made, facts=(Fact("blinks", _instant_ns(blink.timestamp, pupil_s), about),))
    elif topic.startswith(b"surfaces."):
        made = _widened(made)
        made = replace(made, facts=tuple(_on_surface(_decode_surface(made.payload), topic.decode(), pupil_s)))
    return replace(made, stamps=tuple(_stamps(made.payload, pupil_s)))


def _instant_ns(time_s: float, pupil_s: float) -> int:
    return round((time_s - pupil_s) * 1e9)


def stamp_offsets(payload: bytes) -> list[int]:
    """Where the Pupil times of a payload are, as they follow each other."""
    return [match.start(1) for match in _STAMP.finditer(payload)]


def _stamps(payload: bytes, pupil_s: float) -> Iterator[tuple[int, int]]:
    for match in _STAMP.finditer(payload):
        time_s = _FLOAT64.unpack(match[1])[0]
        if math.isfinite(time_s):
            yield match.start(1), _instant_ns(time_s, pupil_s)


def _widened(made: Record) -> Record:
    """Ids widened to 32 bits, which every reader accepts, so that they can be overwritten in place loop after loop."""

    def wide(match: re.Match[bytes]) -> bytes:
        return b"\xa2id\xce" + _UINT32.pack(
            int.from_bytes(next(group for group in match.groups() if group is not None))
        )

    payload = _ID.sub(wide, made.payload)
    serials = tuple((match.start(1), int.from_bytes(match[1])) for match in _WIDE_ID.finditer(payload))
    return replace(made, payload=payload, serials=serials)


def _datum(made: Record, pupil_s: float) -> Record:
    datum = _decode_datum(made.payload)
    position = (*datum.norm_pos, datum.confidence)
    return replace(
        made,
        stream="gaze" if made.topic.startswith(b"gaze.") else made.topic.decode(),
        instant_ns=_instant_ns(datum.timestamp, pupil_s),
        position=position if all(map(math.isfinite, position)) else (),
    )


def _fixation(made: Record, pupil_s: float) -> Record:
    window = _decode_fixation(made.payload)
    start_ns = _instant_ns(window.timestamp, pupil_s)
    end_s = window.base_data[-1][1] if window.base_data else window.timestamp + window.duration / 1000
    end_ns = _instant_ns(end_s, pupil_s)
    about = (*window.norm_pos, window.dispersion, window.confidence)
    match = _DURATION.search(made.payload)
    return replace(
        made,
        duration=(match.end(), start_ns, end_ns) if match else None,
        facts=(Fact("fixations", start_ns, about, window.id, end_ns),),
    )


def _on_surface(surface: _Surface, topic: str, pupil_s: float) -> Iterator[Fact]:
    for each in surface.gaze_on_surfaces:
        about = (*each.norm_pos, each.confidence, float(each.on_surf))
        yield Fact(topic, _instant_ns(each.timestamp, pupil_s), about)
    for each in surface.fixations_on_surfaces:
        about = (*each.norm_pos, each.confidence, float(each.on_surf))
        start_ns = _instant_ns(each.timestamp, pupil_s)
        yield Fact(f"{topic}.fixations", start_ns, about, each.id, start_ns + round(each.duration * 1e6))
