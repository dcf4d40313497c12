"""Cuts the short tape that the tests, the demo and `pupil-bridge simulate core` loop over. Run once, by hand:

    python tests/data/cut_tape.py LONG.msgpack.xz bridge/simulators/data/core_short.msgpack.xz

The long tape is 30 s of a real Pupil Capture's backbone (the format is in bridge/simulators/tape.py). The cut is a
ring and not a strip: a message belongs to it by its own timestamp, not by its arrival, so that its end continues in
its beginning for pupil (10 ms old when it arrives), gaze (110 ms) and fixations (400 ms) alike, without a pause and
without an overlap. The period, `loop_s` in the header, is a whole number of eye frames. Of all places on the long tape
the one is taken where the joint is smoothest, among those that hold at least one of everything that must be in it.
Messages without a timestamp (the log, at the very start of the long tape) are kept and moved to the start of the cut.
"""

from __future__ import annotations

import argparse
import lzma
import struct
from pathlib import Path
from typing import Any

import msgspec

from bridge.simulators.tape import read_values

FRAMES = 600  # eye frames in the cut: 10 s at 60 Hz
NEEDED = ("blinks", "fixations", "gaze.3d.0.", "gaze.3d.1.", "gaze.3d.01.", "surfaces.")


def packed_float(value: float) -> bytes:
    return b"\xcb" + struct.pack(">d", value)


def packed_bytes(value: bytes) -> bytes:
    return b"\xc6" + struct.pack(">I", len(value)) + value


def ring(stamps: list[float], start_s: float, loop_s: float) -> list[float]:
    """The steps between neighbours among the stamps within the cut, the one over its joint last."""
    within = sorted(stamp for stamp in stamps if start_s <= stamp < start_s + loop_s)
    return [after - before for before, after in zip(within, [*within[1:], within[0] + loop_s], strict=True)]


def cut(header: dict[str, Any], entries: list[tuple[float, list[bytes]]]) -> tuple[dict[str, Any], list[Any]]:
    """The header and the entries of the smoothest ring of `FRAMES` eye frames."""
    stamped = [(at, frames, msgspec.msgpack.decode(frames[1]).get("timestamp")) for at, frames in entries]
    of_topic: dict[str, list[float]] = {}
    for _, frames, stamp in stamped:
        if stamp is not None:
            of_topic.setdefault(frames[0].decode(), []).append(stamp)
    gaze = sorted(stamp for topic, stamps in of_topic.items() if topic.startswith("gaze.") for stamp in stamps)
    eyes = of_topic["pupil.0.2d"], of_topic["pupil.1.2d"]
    # Whatever was stamped before the last message less the greatest age has arrived: the cut must end before that.
    pupil_minus_host_s = header["pupil_time"] - header["monotonic"]
    oldest_s = max(at + pupil_minus_host_s - stamp for at, _, stamp in stamped if stamp is not None)
    earliest_s = entries[0][0] + pupil_minus_host_s
    latest_s = entries[-1][0] + pupil_minus_host_s - oldest_s

    best: tuple[float, float, float] | None = None
    for first, last in zip(eyes[0], eyes[0][FRAMES:], strict=False):
        start_s, loop_s = first - 1e-6, last - first
        if start_s < earliest_s or start_s + loop_s > latest_s:
            continue
        topics = [topic for topic, stamps in of_topic.items() if any(start_s <= s < start_s + loop_s for s in stamps)]
        if not all(any(topic.startswith(needed) for topic in topics) for needed in NEEDED):
            continue
        frame_s = loop_s / FRAMES
        roughness = abs(ring(eyes[1], start_s, loop_s)[-1] - frame_s) + abs(
            ring(gaze, start_s, loop_s)[-1] - frame_s / 2
        )
        # The gaze rate is even: no second of the cut has more or fewer datums than two per frame, but for a handful.
        counts = [0] * int(loop_s)
        for stamp in gaze:
            if 0 <= (second := int((stamp - start_s) // 1)) < len(counts):
                counts[second] += 1
        unevenness = max(abs(count - 2 / frame_s) for count in counts)
        if best is None or roughness + unevenness * 1e-3 < best[0]:
            best = (roughness + unevenness * 1e-3, start_s, loop_s)
    if best is None:
        raise SystemExit("no place on this tape holds everything that the cut needs")
    roughness, start_s, loop_s = best
    start_at = start_s - pupil_minus_host_s
    print(f"cut at {start_s:.6f} s of Pupil time, {loop_s:.6f} s long, badness of the joint {roughness * 1e3:.2f} ms")

    kept = [(at, frames) for at, frames, stamp in stamped if stamp is not None and start_s <= stamp < start_s + loop_s]
    first_log = next(at for at, _, stamp in stamped if stamp is None)
    kept += [(start_at + 1e-3 + at - first_log, frames) for at, frames, stamp in stamped if stamp is None]
    kept.sort(key=lambda entry: entry[0])
    return {"version": header["version"], "pupil_time": start_s, "monotonic": start_at, "loop_s": loop_s}, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("long", type=Path)
    parser.add_argument("short", type=Path)
    arguments = parser.parse_args()
    header, *entries = read_values(lzma.decompress(arguments.long.read_bytes()))
    header, kept = cut(header, entries)
    out = [msgspec.msgpack.encode(header)]
    for at, frames in kept:
        out.append(b"\x92" + packed_float(at) + bytes([0x90 | len(frames)]) + b"".join(map(packed_bytes, frames)))
    arguments.short.write_bytes(lzma.compress(b"".join(out), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(kept)} messages, {arguments.short.stat().st_size} bytes")


if __name__ == "__main__":
    main()
