"""Takes the smallest image of each camera from a tape of a real Pupil Capture, for the tests. Run once, by hand:

    python tests/data/cut_frames.py LONG.msgpack.xz tests/data/core_frames.msgpack

The result is one msgpack array of messages, each the array of its parts, byte for byte as Capture sent them.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import msgspec

from bridge.simulators.tape import read_values


def main() -> None:
    long, short = map(Path, sys.argv[1:])
    _, *entries = read_values(lzma.decompress(long.read_bytes()))
    smallest: dict[bytes, list[bytes]] = {}
    for _, parts in entries:
        topic = parts[0]
        if topic.startswith(b"frame.") and len(parts[2]) < len(smallest.get(topic, [b"", b"", bytes(1 << 24)])[2]):
            smallest[topic] = parts
    short.write_bytes(msgspec.msgpack.encode([smallest[topic] for topic in sorted(smallest)]))
    print({topic.decode(): len(parts[2]) for topic, parts in smallest.items()})


if __name__ == "__main__":
    main()
