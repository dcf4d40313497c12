"""What the simulated scene camera sees: a room, and in it a target with its centre exactly where the wearer looks.

The target is a card with two black and two white squares that meet in its centre. A frame costs some ten
microseconds, since only the card's rows are put together anew.
"""

from __future__ import annotations

import math
from functools import cache
from random import Random

from bridge.simulators.companion_jpeg import END, QUANTUM, UNIT_PX, ZIGZAG, Block, header, marker_after, unit

TARGET_RADIUS_PX = 24
CONTRAST = 100  # of the squares to the grey of the card
CARD_UNITS = (2 * TARGET_RADIUS_PX + UNIT_PX - 1 + UNIT_PX - 1) // UNIT_PX  # in each direction
CARD_BLUE, CARD_RED = -60, 50  # a yellow that occurs nowhere else
_TILES = 32
_BLOCK_PX = 8

Place = tuple[int, int]  # along one axis: the first unit with a part of the card, and the card's offset in it
Profile = list[list[float]]  # along one axis of the card, by block: its cosine transform


def card_place(x_px: float, y_px: float, size_px: tuple[int, int]) -> tuple[Place, Place]:
    """Where the card lies with its centre at the top left corner of this pixel, or as near as the edges allow."""
    x, y = (
        min(max(int(at), TARGET_RADIUS_PX), size - TARGET_RADIUS_PX - UNIT_PX)
        for at, size in zip((x_px, y_px), size_px, strict=True)
    )
    return divmod(x - TARGET_RADIUS_PX, UNIT_PX), divmod(y - TARGET_RADIUS_PX, UNIT_PX)


class Scene:
    """Frames of one size; the room is another one for each seed.

    ``grain``: coefficients that make a block rough, 0 to 2. Each makes frames of the scene camera some 20 kB larger.
    """

    def __init__(self, width_px: int, height_px: int, seed: str, grain: int = 2) -> None:
        """Takes some 20 ms."""
        self._header = header(width_px, height_px)
        self._columns = -(-width_px // UNIT_PX)
        self._rows = -(-height_px // UNIT_PX)
        self._size_px = (width_px, height_px)
        random = Random(seed)
        wall, floor = ([_tile(random, mean, grain) for _ in range(_TILES)] for mean in (40, -30))
        self._room: list[bytes] = []
        self._offsets: list[list[int]] = []  # of each row, where its units begin
        for row in range(self._rows):
            tiles = wall if row < 0.6 * self._rows else floor
            units = [random.choice(tiles) + self._marker(row, column) for column in range(self._columns)]
            offsets = [0]
            for each in units:
                offsets.append(offsets[-1] + len(each))
            self._room.append(b"".join(units))
            self._offsets.append(offsets)

    def frame(self, x_px: float, y_px: float) -> bytes:
        """The JPEG with the target's centre at the top left corner of this pixel, or as near as its edges allow."""
        (left, phase_x), (top, phase_y) = card_place(x_px, y_px, self._size_px)
        card = _card(phase_x, phase_y)
        rows = self._room.copy()
        for down in range(CARD_UNITS):
            row = top + down
            room, offsets = self._room[row], self._offsets[row]
            pieces = [room[: offsets[left]]]
            for right in range(CARD_UNITS):
                pieces += (card[down * CARD_UNITS + right], self._marker(row, left + right))
            pieces.append(room[offsets[left + CARD_UNITS] :])
            rows[row] = b"".join(pieces)
        return b"".join((self._header, *rows, END))

    def _marker(self, row: int, column: int) -> bytes:
        index = row * self._columns + column
        return b"" if index == self._rows * self._columns - 1 else marker_after(index)


@cache
def _card(phase_x: int, phase_y: int) -> list[bytes]:
    """The card's units in reading order; made when they are first needed, which takes some milliseconds."""
    across, down = _profile(phase_x), _profile(phase_y)
    corners = [(2 * row, 2 * column) for row in range(CARD_UNITS) for column in range(CARD_UNITS)]
    return [
        unit(
            [_product(down[row + i], across[column + j]) for i in (0, 1) for j in (0, 1)], {0: CARD_BLUE}, {0: CARD_RED}
        )
        for row, column in corners
    ]


def _tile(random: Random, mean: int, roughness: int) -> bytes:
    """A unit of the room's wall or floor: a mean grey with some grain."""

    def grain() -> Block:
        return {
            0: mean + random.randint(-6, 6),
            **{random.randint(1, 20): random.choice((-2, -1, 1, 2)) for _ in range(roughness)},
        }

    return unit([grain() for _ in range(4)], {0: random.randint(-3, 3)}, {0: random.randint(-3, 3)})


@cache
def _profile(phase: int) -> Profile:
    """1 before the centre and -1 after it, within the radius; 0 beyond."""
    centre = phase + TARGET_RADIUS_PX

    def at(place: int) -> float:
        return 0.0 if abs(place + 0.5 - centre) > TARGET_RADIUS_PX else math.copysign(1.0, centre - place - 0.5)

    starts = range(0, CARD_UNITS * UNIT_PX, _BLOCK_PX)
    return [_cosines([at(place) for place in range(start, start + _BLOCK_PX)]) for start in starts]


def _cosines(values: list[float]) -> list[float]:
    """The orthonormal transform of eight values that JPEG uses; noise of the arithmetic is 0."""
    found = []
    for frequency in range(_BLOCK_PX):
        scale = math.sqrt((1 if frequency == 0 else 2) / _BLOCK_PX)
        terms = (
            value * math.cos((2 * place + 1) * frequency * math.pi / (2 * _BLOCK_PX))
            for place, value in enumerate(values)
        )
        found.append(round(scale * sum(terms), 12))
    return found


def _product(down: list[float], across: list[float]) -> Block:
    """The block whose pixels are the products of two profiles."""
    if not any(down) or not any(across):
        return {}
    scale = CONTRAST / QUANTUM
    found = {place: round(scale * down[row] * across[column]) for place, (row, column) in enumerate(ZIGZAG)}
    return {place: value for place, value in found.items() if value}
