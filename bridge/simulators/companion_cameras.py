"""The simulated Companion's cameras: pictures of `companion_scene`'s target as JPEG or as H.264.

A target is in both the same card at the same place. H.264's room has stripes where JPEG's has tiles.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Protocol

from bridge.simulators import companion_h264 as h264
from bridge.simulators.companion_scene import (
    CARD_BLUE,
    CARD_RED,
    CARD_UNITS,
    CONTRAST,
    TARGET_RADIUS_PX,
    Scene,
    card_place,
)

JPEG, H264 = 0x10, 0x12  # NDSI's format codes

_COMMENT = b"\xff\xfe"
_COMMENT_MAX = 65533
_AFTER_JFIF = 20  # a JPEG's first two markers, which comments are not to precede
_CARDS_DIFFER_BYTES = 2000  # by half of that


class Camera(Protocol):
    """Takes pictures of one size with a target at the position in it."""

    format_code: int
    size_px: tuple[int, int]

    def picture(self, sequence: int, x_px: float, y_px: float) -> bytes:
        """The next picture; the sequence goes up by 1."""
        ...

    def pause(self) -> None:
        """What follows is not connected with what was before."""
        ...


class JpegCamera:
    """``size_bytes``: every picture is filled up with comments to have exactly that many; None: as it comes.

    Raises `ValueError` when pictures are larger than that.
    """

    format_code = JPEG

    def __init__(self, size_px: tuple[int, int], seed: str, size_bytes: int | None = None) -> None:
        self.size_px = size_px
        self._size_bytes = size_bytes
        for grain in (2, 1, 0):
            self._scene = Scene(*size_px, seed, grain)
            needed_bytes = len(self._scene.frame(0, 0)) + _CARDS_DIFFER_BYTES
            if size_bytes is None or needed_bytes <= size_bytes:
                return
        raise ValueError(f"a picture of {size_px[0]} x {size_px[1]} pixels needs up to {needed_bytes} bytes")

    def picture(self, sequence: int, x_px: float, y_px: float) -> bytes:
        picture = self._scene.frame(x_px, y_px)
        if self._size_bytes is None:
            return picture
        return picture[:_AFTER_JFIF] + _filling(self._size_bytes - len(picture)) + picture[_AFTER_JFIF:]

    def pause(self) -> None:
        """Every JPEG stands for itself."""


class H264Camera:
    """``key_interval`` pictures from key picture to key picture.

    ``begins_midway``: the first key picture of a stream comes half an interval late; nobody can decode what is before
    it. So it is with an encoder that runs already when somebody begins to listen.
    """

    format_code = H264

    def __init__(self, size_px: tuple[int, int], seed: str, key_interval: int, begins_midway: bool) -> None:
        self.size_px = size_px
        self._columns, self._rows = (-(-size // h264.BLOCK_PX) for size in size_px)
        self._parameters = h264.parameters(*size_px)
        self._key_interval = key_interval
        self._begins_midway = begins_midway
        random = Random(seed)
        self._room = [_flat_block(random.randint(60, 200), 128, 128) for _ in range(self._columns)]
        self._first: int | None = None  # the sequence of a key picture; None: nothing was sent
        self._card_at: dict[h264.At, bytes] = {}  # the card in the picture before

    def picture(self, sequence: int, x_px: float, y_px: float) -> bytes:
        if self._first is None:
            self._first = sequence - (self._key_interval // 2 if self._begins_midway else 0)
        count, number = divmod(sequence - self._first, self._key_interval)
        (left, phase_x), (top, phase_y) = card_place(x_px, y_px, self.size_px)
        card = _card(phase_x, phase_y)
        card_at = {(top + place // CARD_UNITS, left + place % CARD_UNITS): block for place, block in enumerate(card)}
        before, self._card_at = self._card_at, card_at
        if number == 0:
            # The rows below repeat what is above them: below the card, the room is to begin again.
            below = top + CARD_UNITS
            under = {(below, left + i): self._room[left + i] for i in range(CARD_UNITS) if below < self._rows}
            return self._parameters + h264.key_picture(self._room, self._rows, card_at | under, count % 2)
        uncovered = {(row, column): self._room[column] for row, column in before}
        return h264.changed_picture(self._columns, self._rows, uncovered | card_at, number)

    def pause(self) -> None:
        self._first = None
        self._card_at = {}


def _filling(count: int) -> bytes:
    """So many bytes that mean nothing, where a JPEG may have a marker."""
    pieces = []
    while count >= 4:
        length = min(count - 2, _COMMENT_MAX)
        pieces.append(_COMMENT + length.to_bytes(2, "big") + bytes(length - 2))
        count -= length + 2
    return b"".join(pieces) + b"\xff" * count  # before a marker, this byte may be repeated


def _flat_block(luma: int, blue: int, red: int) -> bytes:
    return bytes([luma]) * 256 + bytes([blue]) * 64 + bytes([red]) * 64


@cache
def _card(phase_x: int, phase_y: int) -> list[bytes]:
    """The card's macroblocks in reading order: two black and two white squares on grey, all of it yellow."""

    def profile(phase: int) -> list[int]:
        places = (place + 0.5 - phase - TARGET_RADIUS_PX for place in range(CARD_UNITS * h264.BLOCK_PX))
        return [0 if abs(place) > TARGET_RADIUS_PX else 1 if place < 0 else -1 for place in places]

    across, down = profile(phase_x), profile(phase_y)
    chroma = bytes([128 + CARD_BLUE]) * 64 + bytes([128 + CARD_RED]) * 64
    blocks = []
    for row in range(0, len(down), h264.BLOCK_PX):
        for column in range(0, len(across), h264.BLOCK_PX):
            luma = bytes(
                128 + CONTRAST * y * x
                for y in down[row : row + h264.BLOCK_PX]
                for x in across[column : column + h264.BLOCK_PX]
            )
            blocks.append(luma + chroma)
    return blocks
