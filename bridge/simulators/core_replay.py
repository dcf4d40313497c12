"""A tape again and again: when each of its records leaves the simulated Pupil Capture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from bridge.simulators.core_record import Record
from bridge.simulators.tape import Tape


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
        # One turn ahead, because what wraps around belongs to the turn before: ids are not negative.
        serial_shift = (turn + 1) * tape.serial_span
        for record in tape.records:
            yield Due(record.arrival_ns + shift_ns, record, shift_ns, serial_shift)
