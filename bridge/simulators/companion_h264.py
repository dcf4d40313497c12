"""H.264 that is put together from ready pieces: pictures whose macroblocks are copied, predicted or raw, and no others.

Source: ITU-T H.264, baseline profile, CAVLC, byte stream of Annex B. A key picture is a row of raw macroblocks (I_PCM)
that all rows below repeat (Intra_16x16, vertical, nothing left over); between key pictures what has changed is raw and
the rest is skipped. So nothing is transformed, a picture costs some ten microseconds, and every decoder gets exactly
the pixels that were put in. Whoever makes phones' encoders heads each key picture with its parameter sets, as here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

BLOCK_PX = 16
MAX_INTERVAL = 1 << 16  # of key pictures: the pictures between them are counted with so many bits
RAW_BYTES = 384  # of a macroblock: 256 luma, 64 of each chroma

_FRAME_NUMBER_BITS = 16
_SPS, _PPS, _KEY_SLICE, _SLICE = 0x67, 0x68, 0x65, 0x61
_BASELINE, _CONSTRAINED, _LEVEL = 66, 0xC0, 40
_START = b"\0\0\0\1"
_ALL_INTRA, _ALL_PREDICTED = 7, 5  # slice types
_RAW_OF_INTRA, _RAW_OF_PREDICTED = 25, 30  # macroblock types
# Intra_16x16 with vertical prediction of luma and chroma, the same quantiser, and no coefficient of its mean. How
# that last one is coded depends on how many its neighbours have, and a raw macroblock counts as having all.
_REPEATED, _REPEATED_BESIDE_RAW = "010" + "011" + "1" + "1", "010" + "011" + "1" + "000011"
_LOOKS_LIKE_START = re.compile(b"\0\0(?=[\0-\3])")

At = tuple[int, int]  # row, column of a macroblock


def parameters(width_px: int, height_px: int) -> bytes:
    """The two parameter sets; sizes are even."""
    columns, rows = -(-width_px // BLOCK_PX), -(-height_px // BLOCK_PX)
    crop = [(columns * BLOCK_PX - width_px) // 2, (rows * BLOCK_PX - height_px) // 2]
    sequence = f"{_BASELINE:08b}{_CONSTRAINED:08b}{_LEVEL:08b}"
    # Number 0; frames are counted with 16 bits; shown in the order of decoding; one reference; no gaps.
    sequence += _ue(0) + _ue(_FRAME_NUMBER_BITS - 4) + _ue(2) + _ue(1) + "0"
    sequence += _ue(columns - 1) + _ue(rows - 1) + "1" + "1"  # frames, not fields
    sequence += "1" + _ue(0) + _ue(crop[0]) + _ue(0) + _ue(crop[1]) if any(crop) else "0"
    sequence += "0"  # no usability information
    # Number 0 of sequence 0; CAVLC; one slice group; one reference; no weights; quantisers as they are; slices say
    # whether they are smoothed at their blocks' edges.
    picture = _ue(0) + _ue(0) + "00" + _ue(0) + _ue(0) + _ue(0) + "000" + "111" + "100"
    return _unit(_SPS, _ended(sequence)) + _unit(_PPS, _ended(picture))


def key_picture(first_row: Sequence[bytes], rows: int, raw: Mapping[At, bytes], number: int) -> bytes:
    """The first row, repeated down to the last but for the macroblocks in ``raw``, below which those are repeated.

    ``number`` is another one (0 or 1) for each of two successive key pictures.
    """
    columns = len(first_row)
    bits = _ue(0) + _ue(_ALL_INTRA) + _ue(0) + f"{0:0{_FRAME_NUMBER_BITS}b}" + _ue(number) + "00" + "1" + _ue(1)
    pieces: list[bytes] = []
    for row in range(rows):
        for column in range(columns):
            block = raw.get((row, column), first_row[column] if row == 0 else None)
            if block is not None:
                pieces += (_aligned(bits + _ue(_RAW_OF_INTRA)), block)
                bits = ""
            else:
                # In the first row all are raw.
                beside_raw = row == 1 or (row - 1, column) in raw or (row, column - 1) in raw
                bits += _REPEATED_BESIDE_RAW if beside_raw else _REPEATED
    pieces.append(_ended(bits))
    return _unit(_KEY_SLICE, b"".join(pieces))


def changed_picture(columns: int, rows: int, raw: Mapping[At, bytes], number: int) -> bytes:
    """The picture before with these macroblocks instead; ``number`` counts from the key picture, which is 0."""
    bits = _ue(0) + _ue(_ALL_PREDICTED) + _ue(0) + f"{number:0{_FRAME_NUMBER_BITS}b}" + "0" + "0" + "0" + "1" + _ue(1)
    pieces: list[bytes] = []
    after = 0
    for row, column in sorted(raw):
        place = row * columns + column
        pieces += (_skip_to_raw(bits, place - after), raw[row, column])
        after, bits = place + 1, ""
    left = columns * rows - after
    pieces.append(_ended(bits + _ue(left)) if left else _ended(bits))
    return _unit(_SLICE, b"".join(pieces))


@cache
def _skip_to_raw(bits: str, count: int) -> bytes:
    return _aligned(bits + _ue(count) + _ue(_RAW_OF_PREDICTED))


@cache
def _ue(value: int) -> str:
    """An unsigned number in Exp-Golomb code."""
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def _ended(bits: str) -> bytes:
    """With the stop bit that ends what is in a unit."""
    return _aligned(bits + "1")


def _aligned(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _unit(kind: int, content: bytes) -> bytes:
    """A unit of the byte stream; what in it would look like the start of one is taken apart."""
    return _START + bytes([kind]) + _LOOKS_LIKE_START.sub(b"\0\0\3", content)
