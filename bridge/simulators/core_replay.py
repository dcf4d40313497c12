"""A tape again and again: when each of its records leaves the simulated Pupil Capture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from bridge.simulators.tape import Record, Tape


@dataclass(frozen=True, slots=True)
class Due:
    """A record of the tape in one turn of the loop: when it leaves Capture and how its instants are shifted."""

    at_ns: int
    record: Record
    shift_ns: int
    serial_shift: int


def replay(tape: Tape, base_ns: int) -> Iterator[Due]:
    """The tape again and again, turn by turn without a pause; nothing when it is empty."""
    for turn in itertools.count() if tape.records else ():
        shift_ns = base_ns - tape.start_ns + turn * tape.loop_ns
        for record in tape.records:
            yield Due(record.arrival_ns + shift_ns, record, shift_ns, turn * tape.serial_span)
