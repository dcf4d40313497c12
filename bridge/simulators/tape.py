"""Tapes of Pupil Capture's IPC backbone: reading one from disk and turning it into an endless, restampable loop.

File format: an xz-compressed stream of msgpack values. The first is a map with ``version``, ``pupil_time`` and
``monotonic`` (both clocks at one instant, seconds) and, on a tape that was cut to be looped, ``loop_s`` (its period).
Every further value is ``[received_monotonic_s, [frame, ...]]`` with the frames of one ZeroMQ message: topic, one
msgpack map, then raw frames.

All times in a `Tape` are integer nanoseconds after the instant in the header, on the clock of the machine that made
the tape. Payloads are never decoded again after loading: every Pupil time in them is a float64 at a known offset and
is overwritten in place, so what goes out is Capture's own encoding byte for byte but for its stamps.
"""

from __future__ import annotations

import lzma
import math
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from bridge.errors import ConfigError

SHORT_TAPE = Path(__file__).parent / "data" / "core_short.msgpack.xz"

_FLOAT64 = struct.Struct(">d")
_UINT32 = struct.Struct(">I")
_LENGTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4}

# A Pupil time is the value of a key "timestamp" or the second half of a base_data pair such as ["gaze.3d.01.", time].
_STAMP = re.compile(
    rb"(?:\xa9timestamp|\x92[\xa0-\xbf](?:gaze\.|pupil\.|fixations)[0-9a-z.]{0,20})\xcb(?=(.{8}))", re.DOTALL
)
_FIXATION_ID = re.compile(rb"\xa2id(?:\xce(.{4})|\xcd(.{2})|\xcc(.)|([\x00-\x7f]))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the backbone. ``stamps``: (offset of the float64 in ``payload``, instant in ns).

    ``stream`` names the stream that gaze and pupil datums belong to, None for everything else; ``instant_ns`` and
    ``position`` (norm_x, norm_y, confidence) are the datum's own. ``serial`` is the offset and value of an id that
    counts on over the loops (fixations).
    """

    arrival_ns: int
    topic: bytes
    payload: bytes
    raw: tuple[bytes, ...] = ()
    stamps: tuple[tuple[int, int], ...] = ()
    stream: str | None = None
    instant_ns: int | None = None
    position: tuple[float, ...] = ()
    serial: tuple[int, int] | None = None

    def restamped(self, seconds: Callable[[int], float], shift_ns: int, serial_shift: int = 0) -> bytes:
        """The payload with every instant moved by ``shift_ns`` and written as what ``seconds`` makes of it."""
        payload = bytearray(self.payload)
        for offset, instant_ns in self.stamps:
            _FLOAT64.pack_into(payload, offset, seconds(instant_ns + shift_ns))
        if self.serial is not None:
            offset, value = self.serial
            _UINT32.pack_into(payload, offset, (value + serial_shift) & 0xFFFFFFFF)
        return bytes(payload)


@dataclass(frozen=True, slots=True)
class Tape:
    """A loop: records in order of arrival, all arrivals within ``start_ns`` and ``start_ns + loop_ns``."""

    version: str
    start_ns: int
    loop_ns: int
    serial_span: int
    records: tuple[Record, ...]

    def rates_hz(self) -> dict[str, float]:
        """Mean rate of every gaze and pupil stream over a loop."""
        counts = Counter(record.stream for record in self.records if record.stream is not None)
        return {stream: count * 1e9 / self.loop_ns for stream, count in sorted(counts.items())}

    def filtered(self, prefixes: Sequence[str]) -> Tape:
        """The same loop with the topics that begin with one of ``prefixes``; all of them if there are none."""
        wanted = tuple(prefix.encode() for prefix in prefixes)
        records = tuple(r for r in self.records if r.topic.startswith(wanted)) if wanted else self.records
        return Tape(self.version, self.start_ns, self.loop_ns, self.serial_span, records)


class _Datum(msgspec.Struct):
    timestamp: float
    norm_pos: tuple[float, float]
    confidence: float


_decode_datum = msgspec.msgpack.Decoder(_Datum).decode


def read_values(data: bytes) -> list[Any]:
    """The values of a tape, decompressed: maps, arrays, strings, bytes and float64, which is all that a tape holds.

    msgspec reads one value that ends with its input, not a stream of them. Raises `ValueError` on anything else.
    """
    values, position = [], 0
    try:
        while position < len(data):
            value, position = _read(data, position)
            values.append(value)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"damaged at byte {position}: {error}") from error
    return values


def load(path: Path) -> Tape:
    """Read and prepare a tape. Raises `ConfigError` when the file is not there or is no tape."""
    try:
        header, *entries = read_values(lzma.decompress(path.read_bytes()))
        return from_messages(header, entries)
    except (OSError, EOFError, lzma.LZMAError, ValueError, TypeError, KeyError, msgspec.MsgspecError) as error:
        raise ConfigError(f"cannot use the tape {path}: {error}") from error


def from_messages(header: Mapping[str, Any], entries: Iterable[tuple[float, Sequence[bytes]]]) -> Tape:
    """Prepare a tape from its header and its ``(received_monotonic_s, frames)``; raises as `load` lists."""
    monotonic_s, pupil_s = header["monotonic"], header["pupil_time"]
    records = [_record(round((at_s - monotonic_s) * 1e9), frames, pupil_s) for at_s, frames in entries]
    if not records:
        raise ValueError("it holds no message")
    records.sort(key=lambda record: record.arrival_ns)
    start_ns = records[0].arrival_ns
    if "loop_s" in header:
        start_ns, loop_ns = 0, round(header["loop_s"] * 1e9)
        records = sorted((_wrapped(record, loop_ns) for record in records), key=lambda record: record.arrival_ns)
    else:
        loop_ns = _loop_ns(records)
    serials = [record.serial[1] for record in records if record.serial is not None]
    serial_span = max(serials) - min(serials) + 1 if serials else 0
    return Tape(str(header["version"]), start_ns, loop_ns, serial_span, tuple(records))


def _record(arrival_ns: int, frames: Sequence[bytes], pupil_s: float) -> Record:
    topic, payload, *raw = frames
    serial = None
    if topic == b"fixations" and (match := _FIXATION_ID.search(payload)):
        # Widened to 32 bits, which every reader accepts, so that it can be overwritten in place loop after loop.
        value = int.from_bytes(next(group for group in match.groups() if group is not None))
        payload = payload[: match.start()] + b"\xa2id\xce" + _UINT32.pack(value) + payload[match.end() :]
        serial = (match.start() + 4, value)
    stamps = tuple(
        (match.start(1), round((_FLOAT64.unpack(match[1])[0] - pupil_s) * 1e9)) for match in _STAMP.finditer(payload)
    )
    if not topic.startswith((b"gaze.", b"pupil.")):
        return Record(arrival_ns, topic, payload, tuple(raw), stamps, serial=serial)
    datum = _decode_datum(payload)
    position = (*datum.norm_pos, datum.confidence)
    return Record(
        arrival_ns,
        topic,
        payload,
        tuple(raw),
        stamps,
        stream="gaze" if topic.startswith(b"gaze.") else topic.decode(),
        instant_ns=round((datum.timestamp - pupil_s) * 1e9),
        position=position if all(map(math.isfinite, position)) else (),
    )


def _wrapped(record: Record, loop_ns: int) -> Record:
    """What arrived after the end of the loop arrives early in the next one: a cut tape is a ring, not a strip."""
    shift_ns = -(record.arrival_ns // loop_ns) * loop_ns
    if shift_ns == 0:
        return record
    return Record(
        record.arrival_ns + shift_ns,
        record.topic,
        record.payload,
        record.raw,
        tuple((offset, instant_ns + shift_ns) for offset, instant_ns in record.stamps),
        record.stream,
        None if record.instant_ns is None else record.instant_ns + shift_ns,
        record.position,
        record.serial,
    )


def _loop_ns(records: Sequence[Record]) -> int:
    """The shortest period with which no stream of a tape overlaps itself, neither in stamps nor in arrival."""
    instants = defaultdict(list)
    for record in records:
        if record.stream is not None and record.instant_ns is not None:
            instants[record.stream].append(record.instant_ns)
    periods = [records[-1].arrival_ns - records[0].arrival_ns + 1_000_000]
    for stamps in instants.values():
        stamps.sort()
        steps = [after - before for before, after in pairwise(stamps)]
        periods.append(stamps[-1] - stamps[0] + round(median(steps)) if steps else 0)
    return max(periods)


def _read(data: bytes, at: int) -> tuple[Any, int]:
    """One value at ``at`` and where the next one begins."""
    kind = data[at]
    at += 1
    if kind == 0xCB:
        return _FLOAT64.unpack_from(data, at)[0], at + 8
    if kind <= 0x7F:
        return kind, at
    if kind in _LENGTH:
        size, at = int.from_bytes(data[at : at + _LENGTH[kind]]), at + _LENGTH[kind]
    elif kind <= 0xBF:
        size = kind & (0x1F if kind >= 0xA0 else 0x0F)
    else:
        raise ValueError(f"unexpected msgpack type 0x{kind:02x} at byte {at - 1}")
    is_bytes, is_map = 0xC4 <= kind <= 0xC6, kind <= 0x8F
    if is_bytes or 0xA0 <= kind <= 0xBF or 0xD9 <= kind <= 0xDB:
        if at + size > len(data):
            raise IndexError("it ends in the middle of a value")
        chunk = data[at : at + size]
        return (chunk if is_bytes else chunk.decode()), at + size
    items = []
    for _ in range(2 * size if is_map else size):
        item, at = _read(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if is_map else items), at
