"""Images of the simulated Pupil Capture's cameras: a bright disc on a plain ground, whose centre is known to a pixel.

Source: ITU-T T.81 (JPEG). An image is made of flat squares of 8 by 8 pixels: a JPEG of such squares needs no cosine
transform, and with a restart after every row of squares the rows that the disc does not touch are always the same
bytes. So an image of 1280 by 720 pixels takes well under a millisecond, without numpy. The edge of the disc fades over
one square, which keeps its centre of gravity where it belongs.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Final

SIDE: Final = 8
Colour = tuple[int, int, int]  # Y, Cb, Cr, 0 to 255 each, as JPEG has them
_Spread = Callable[[Colour], tuple[int, ...]]

_MAGNITUDES: Final = 9  # of differences from -255 to 255
# Code words for the magnitude of a difference: "0" for none, 4 bits for 1 to 7, 5 bits for 8. No word is all ones.
_MAGNITUDE_CODES: Final = ("0", *(f"{8 + n:04b}" for n in range(7)), "11110")
_DC_TABLE: Final = bytes((1, 0, 0, 7, 1, *[0] * 11)) + bytes(range(_MAGNITUDES))
_AC_TABLE: Final = bytes((1, *[0] * 15)) + b"\x00"  # nothing but "the rest of the square is flat"
_END_OF_SQUARE: Final = "0"


class Picture:
    """Images of one size: the ground, the disc and its radius are fixed, the disc's place is not."""

    def __init__(
        self, width_px: int, height_px: int, ground: Colour, disc: Colour, radius_px: float, padding_bytes: int = 0
    ) -> None:
        """``padding_bytes`` make a JPEG as large as those of a real camera are."""
        self.width_px, self.height_px = width_px, height_px
        self._ground, self._disc, self._radius_px = ground, disc, radius_px
        self._columns, self._rows = math.ceil(width_px / SIDE), math.ceil(height_px / SIDE)
        self._head = self._jpeg_head(padding_bytes)
        self._plain = [self._ground] * self._columns
        self._plain_row = self._jpeg_row(self._plain)
        self._plain_lines: dict[str, bytes] = {}

    def draw(self, x_px: float, y_px: float, image_format: str) -> bytes:
        """The image with the disc's centre at that place, which may lie outside, in "jpeg", "gray", "bgr" or "yuv"
        (planar 4:2:2)."""
        rows = [self._row(row, x_px, y_px) for row in range(self._rows)]
        if image_format == "jpeg":
            return self._jpeg(rows)
        if image_format == "gray":
            return self._raw(rows, lambda colour: colour[:1] * SIDE, "gray", self.width_px)
        if image_format == "bgr":
            return self._raw(rows, lambda colour: _bgr(colour) * SIDE, "bgr", 3 * self.width_px)
        half = (self.width_px + 1) // 2
        luma = self._raw(rows, lambda colour: colour[:1] * SIDE, "gray", self.width_px)
        blue = self._raw(rows, lambda colour: colour[1:2] * (SIDE // 2), "blue", half)
        red = self._raw(rows, lambda colour: colour[2:] * (SIDE // 2), "red", half)
        return luma + blue + red

    def _row(self, row: int, x_px: float, y_px: float) -> list[Colour] | None:
        """The squares of a row; None when the disc does not touch it."""
        # Pixel n reaches from n to n + 1.
        middle_y = (row + 0.5) * SIDE - y_px
        reach_px = self._radius_px + SIDE
        if abs(middle_y) >= reach_px:
            return None
        first = max(0, math.floor((x_px - reach_px) / SIDE))
        last = min(self._columns - 1, math.floor((x_px + reach_px) / SIDE))
        if first > last:
            return None
        squares = list(self._plain)
        for column in range(first, last + 1):
            distance_px = math.hypot((column + 0.5) * SIDE - x_px, middle_y)
            cover = min(1.0, max(0.0, (self._radius_px - distance_px) / SIDE + 0.5))
            squares[column] = _mix(self._ground, self._disc, cover)
        return squares

    # --- raw ---------------------------------------------------------------------------------------------------------

    def _raw(self, rows: list[list[Colour] | None], spread: _Spread, name: str, line_bytes: int) -> bytes:
        """Every square as ``spread`` makes a line of it, in lines of so many bytes."""

        def line(squares: list[Colour]) -> bytes:
            return b"".join(bytes(spread(square)) for square in squares)[:line_bytes]

        plain = self._plain_lines.get(name)
        if plain is None:
            plain = self._plain_lines[name] = line(self._plain) * SIDE
        strips = [plain if squares is None else line(squares) * SIDE for squares in rows]
        return b"".join(strips)[: line_bytes * self.height_px]

    # --- JPEG --------------------------------------------------------------------------------------------------------

    def _jpeg_head(self, padding_bytes: int) -> bytes:
        segments = [b"\xff\xd8", _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")]
        while padding_bytes > 0:
            size = min(padding_bytes, 65_000)
            segments.append(_segment(0xFE, b"." * size))
            padding_bytes -= size
        # A difference of 1 in a flat square is one of 8 in its first coefficient: 8 is the step.
        segments.append(_segment(0xDB, b"\0" + bytes([SIDE]) * 64))
        components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
        segments.append(_segment(0xC0, struct.pack(">BHHB", 8, self.height_px, self.width_px, 3) + components))
        segments.append(_segment(0xC4, b"\x00" + _DC_TABLE + b"\x10" + _AC_TABLE))
        segments.append(_segment(0xDD, struct.pack(">H", self._columns)))
        segments.append(_segment(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0"))
        return b"".join(segments)

    def _jpeg(self, rows: list[list[Colour] | None]) -> bytes:
        parts = [self._head]
        for number, squares in enumerate(rows):
            if number:
                parts.append(bytes((0xFF, 0xD0 + (number - 1) % 8)))
            parts.append(self._plain_row if squares is None else self._jpeg_row(squares))
        parts.append(b"\xff\xd9")
        return b"".join(parts)

    def _jpeg_row(self, squares: list[Colour]) -> bytes:
        """One row of squares between two restarts."""
        before = (128, 128, 128)
        bits = []
        for square in squares:
            if square == before:
                bits.append("000000")
                continue
            for now, then in zip(square, before, strict=True):
                bits.append(_difference(now - then) + _END_OF_SQUARE)
            before = square
        text = "".join(bits)
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\0")


def _difference(value: int) -> str:
    magnitude = abs(value).bit_length()
    if not magnitude:
        return _MAGNITUDE_CODES[0]
    low = value if value > 0 else value + (1 << magnitude) - 1
    return f"{_MAGNITUDE_CODES[magnitude]}{low:0{magnitude}b}"


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _mix(ground: Colour, disc: Colour, cover: float) -> Colour:
    y, blue, red = (round(a + (b - a) * cover) for a, b in zip(ground, disc, strict=True))
    return y, blue, red


def _bgr(colour: Colour) -> Colour:
    y, blue, red = colour[0], colour[1] - 128, colour[2] - 128
    exact = (y + 1.772 * blue, y - 0.344136 * blue - 0.714136 * red, y + 1.402 * red)
    b, g, r = (min(255, max(0, round(value))) for value in exact)
    return b, g, r
