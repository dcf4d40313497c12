"""What a calibration of the simulated Pupil Capture has gathered: its notifications carry all of it, 1.7 MB."""

from __future__ import annotations

import itertools
from typing import Any, Final

import msgspec

from bridge.simulators.core_clock import PupilClock
from bridge.simulators.tape import Tape

SIZE_BYTES: Final = 1_700_000
_REFERENCE_EVERY_NS: Final = 33_333_333
_REFERENCES: Final = 300


def calibration_data(tape: Tape, clock: PupilClock, now_ns: int) -> msgspec.Raw:
    """``calib_data`` as msgpack: reference positions and pupil datums of the tape, as if of the time until now."""
    references: list[dict[str, Any]] = [
        {
            "screen_pos": [640.0, 360.0],
            "norm_pos": [0.5, 0.5],
            "timestamp": clock.seconds(now_ns - number * _REFERENCE_EVERY_NS),
        }
        for number in range(_REFERENCES, 0, -1)
    ]
    pupils = [each for each in tape.records if each.topic.startswith(b"pupil.")]
    datums: list[msgspec.Raw] = []
    size_bytes = 0
    for turn in itertools.count(1) if pupils else ():
        shift_ns = now_ns - tape.start_ns - turn * tape.loop_ns
        for each in reversed(pupils):
            datums.append(msgspec.Raw(each.restamped(clock.seconds, shift_ns)))
            size_bytes += len(each.payload)
            if size_bytes >= SIZE_BYTES:
                break
        if size_bytes >= SIZE_BYTES:
            break
    gathered = {"ref_list": references, "pupil_list": datums[::-1]}
    return msgspec.Raw(msgspec.msgpack.encode(gathered))
