"""The unmodified `ndsi` client with H.264: `tests/system/ndsi_peer/client.py`, which tells of frames what can be told.

Runs where that one runs: in ndsi's own environment and only inside a network namespace.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "system" / "ndsi_peer"))

import client
import numpy


def look(frame: object | None) -> dict[str, object]:
    """A frame's numbers, where its picture has the target, and its bytes; ndsi has none before it can decode one."""
    if frame is None:
        return {}
    bgr = frame.bgr.astype(int)
    ys, xs = numpy.nonzero(bgr[..., 2] - bgr[..., 0] > 90)  # the card is orange, the room grey
    grey = numpy.asarray(frame.gray).astype(int) - 128
    card = grey[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    signs = numpy.sign(numpy.where(abs(card) > 50, card, 0))
    x = 1 + int(numpy.argmax(abs(numpy.diff(signs, axis=1)).sum(axis=0)))
    y = 1 + int(numpy.argmax(abs(numpy.diff(signs, axis=0)).sum(axis=1)))
    return {
        "index": frame.index,
        "shape": list(bgr.shape),
        "key": frame.is_iframe,
        "target": [int(xs.min()) + x, int(ys.min()) + y],
        "sha256": hashlib.sha256(bytes(frame.h264_buffer)).hexdigest(),
    }


client.look = look

if __name__ == "__main__":
    sys.exit(client.main())
