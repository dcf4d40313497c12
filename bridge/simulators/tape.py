"""Tapes of Pupil Capture's IPC backbone: reading one from disk and turning it into an endless, restampable loop.

File format: an xz-compressed stream of msgpack values. The first is a map with ``version``, ``pupil_time`` and
``monotonic`` (both clocks at one instant, seconds) and, on a tape that was cut to be looped, ``loop_s`` (its period).
Every further value is ``[received_monotonic_s, [frame, ...]]`` with the frames of one ZeroMQ message: topic, one
msgpack map, then raw frames.

All times in a `Tape` are integer nanoseconds after the instant in the header, on the clock of the machine that made
the tape. What goes out is Capture's own encoding byte for byte but for its stamps, as `core_record` prepares it.
"""

from __future__ import annotations

import lzma
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from bridge.errors import ConfigError
from bridge.simulators.core_record import Fact, Record, record

SHORT_TAPE = Path(__file__).parent / "data" / "core_short.msgpack.xz"

_FLOAT64 = struct.Struct(">d")
_LENGTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4}


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
        counts = Counter(each.stream for each in self.records if each.stream is not None)
        return {stream: count * 1e9 / self.loop_ns for stream, count in sorted(counts.items())}

    def topics_hz(self) -> dict[str, float]:
        """Mean rate of every topic over a loop."""
        counts = Counter(each.topic.decode() for each in self.records if each.topic)
        return {topic: count * 1e9 / self.loop_ns for topic, count in sorted(counts.items())}

    def filtered(self, prefixes: Sequence[str]) -> Tape:
        """The same loop with the topics that begin with one of ``prefixes``; all of them if there are none."""
        wanted = tuple(prefix.encode() for prefix in prefixes)
        records = tuple(each for each in self.records if _matches(each, wanted)) if wanted else self.records
        return Tape(self.version, self.start_ns, self.loop_ns, self.serial_span, records)


def _matches(each: Record, prefixes: tuple[bytes, ...]) -> bool:
    """A fact that is about no message goes with the messages of which its stream tells: "blink" with "blinks"."""
    return (each.topic or f"{each.facts[0].stream}s".encode()).startswith(prefixes)


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


def from_messages(
    header: Mapping[str, Any], entries: Iterable[tuple[float, Sequence[bytes]]], facts: Iterable[Fact] = ()
) -> Tape:
    """Prepare a tape from its header and its ``(received_monotonic_s, frames)``; raises as `load` lists.

    ``facts`` are about no message; each is true when it has ended. ``serial_span`` in the header is by how much the
    ids of fixations grow in a turn; by default from the first to the last of them.
    """
    monotonic_s, pupil_s = header["monotonic"], header["pupil_time"]
    records = [record(round((at_s - monotonic_s) * 1e9), frames, pupil_s) for at_s, frames in entries]
    if not records:
        raise ValueError("it holds no message")
    records += [Record(fact.end_ns or fact.instant_ns, b"", b"", facts=(fact,)) for fact in facts]
    records.sort(key=lambda each: each.arrival_ns)
    _whole_fixations(records)
    serials = [
        fact.serial for each in records for fact in each.facts if fact.stream == "fixations" and fact.serial is not None
    ]
    serial_span = header.get("serial_span", max(serials) - min(serials) + 1 if serials else 0)
    start_ns = records[0].arrival_ns
    if "loop_s" in header:
        start_ns, loop_ns = 0, round(header["loop_s"] * 1e9)
        records = [_wrapped(each, loop_ns, serial_span) for each in records]
        records.sort(key=lambda each: each.arrival_ns)
    else:
        loop_ns = _loop_ns(records)
    return Tape(str(header["version"]), start_ns, loop_ns, serial_span, tuple(records))


def _wrapped(each: Record, loop_ns: int, serial_span: int) -> Record:
    """What arrived after the end of the loop arrives early in the next one: a cut tape is a ring, not a strip."""
    turns = each.arrival_ns // loop_ns
    return each.moved(-turns * loop_ns, -turns * serial_span) if turns else each


def _whole_fixations(records: list[Record]) -> None:
    """Mark the last window of every fixation, by which its end is known."""
    last: dict[int | None, int] = {}
    for index, each in enumerate(records):
        if each.topic == b"fixations":
            last[each.facts[0].serial] = index
    for index in last.values():
        (fact,) = records[index].facts
        records[index] = replace(records[index], facts=(replace(fact, last=True),))


def _loop_ns(records: Sequence[Record]) -> int:
    """The shortest period with which no stream of a tape overlaps itself, neither in stamps nor in arrival."""
    instants = defaultdict(list)
    for each in records:
        if each.stream is not None and each.instant_ns is not None:
            instants[each.stream].append(each.instant_ns)
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
