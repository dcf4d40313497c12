"""A JPEG that is put together from ready pieces: every 16 x 16 pixels can be exchanged without coding the rest.

Source: ITU-T T.81, baseline. Each minimum coded unit (four luma blocks, one of each chroma) is a restart interval, so
it depends on no other one and begins at a byte. The Huffman tables are made up: they are easy to compute with, and
files have the size that a camera's have. Blocks are given as quantised coefficients, so that nothing is transformed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

UNIT_PX = 16
QUANTUM = 8  # of every coefficient: the first one of a block is its mean less 128

Block = Mapping[int, int]  # quantised coefficients that are not 0, by their place in zigzag order

_END_OF_BLOCK, _SIXTEEN_ZEROS = 0x00, 0xF0
# (run of zeros, size) of what follows; the end of a block has the code 00, the others 8 bits from 0x40 on.
_SYMBOLS = [_SIXTEEN_ZEROS, *(run << 4 | size for run in range(16) for size in range(1, 11))]
_CODES = {symbol: 0x40 + place for place, symbol in enumerate(_SYMBOLS)}
_SIZES = range(12)  # of the first coefficient: each is its own code, 4 bits
_STUFFED = b"\xff\x00"


def _zigzag() -> list[tuple[int, int]]:
    """(row, column) of the coefficients in the order in which they are coded."""
    return sorted(
        ((row, column) for row in range(8) for column in range(8)),
        key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]),
    )


ZIGZAG = _zigzag()


def unit(luma: Sequence[Block], blue: Block, red: Block) -> bytes:
    """One coded unit without the marker after it. ``luma``: the four blocks in reading order."""
    bits, count, before = 0, 0, 0

    def put(value: int, size: int) -> None:
        nonlocal bits, count
        bits, count = bits << size | value, count + size

    def put_number(number: int, size: int) -> None:
        put(number if number > 0 else number + (1 << size) - 1, size)

    for index, block in enumerate((*luma, blue, red)):
        mean = block.get(0, 0)
        difference = mean - before if 0 < index < 4 else mean
        before = mean
        size = abs(difference).bit_length()
        put(size, 4)
        put_number(difference, size)
        last = 0
        for place in sorted(block):
            value = block[place]
            if place == 0 or value == 0:
                continue
            zeros = place - last - 1
            for _ in range(zeros // 16):
                put(_CODES[_SIXTEEN_ZEROS], 8)
            size = abs(value).bit_length()
            put(_CODES[zeros % 16 << 4 | size], 8)
            put_number(value, size)
            last = place
        if last < 63:
            put(0, 2)
    padding = -count % 8
    put((1 << padding) - 1, padding)
    return bits.to_bytes(count // 8, "big").replace(b"\xff", _STUFFED)


def marker_after(index: int) -> bytes:
    """What stands after the unit of this number, from 0, unless it is the last."""
    return bytes((0xFF, 0xD0 + index % 8))


def header(width_px: int, height_px: int) -> bytes:
    """Everything before the first unit."""
    quanta = bytes([0]) + bytes([QUANTUM] * 64)
    frame = bytes([8]) + height_px.to_bytes(2, "big") + width_px.to_bytes(2, "big") + bytes([3])
    frame += bytes([1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0])
    sizes = bytes([0x00]) + bytes(len(_SIZES) if length == 4 else 0 for length in range(1, 17)) + bytes(_SIZES)
    counts = {2: 1, 8: len(_SYMBOLS)}
    symbols = bytes([0x10]) + bytes(counts.get(length, 0) for length in range(1, 17))
    symbols += bytes([_END_OF_BLOCK, *_SYMBOLS])
    scan = bytes([3, 1, 0, 2, 0, 3, 0, 0, 63, 0])
    return b"\xff\xd8" + b"".join(
        (
            _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            _segment(0xDB, quanta),
            _segment(0xC0, frame),
            _segment(0xC4, sizes),
            _segment(0xC4, symbols),
            _segment(0xDD, (1).to_bytes(2, "big")),
            _segment(0xDA, scan),
        )
    )


END = b"\xff\xd9"


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content
