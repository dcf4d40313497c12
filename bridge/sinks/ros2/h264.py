"""H.264 of one camera, decoded frame by frame with PyAV (FFmpeg). On the image thread: a frame takes milliseconds.

A frame needs the one before it. Where one is missing, by its index, or cannot be read, nothing is shown up to the next
key frame: FFmpeg would make up what it does not know.
"""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple

from bridge.streams import Frame

log = logging.getLogger(__name__)

MAX_PIXELS: Final = 16_000_000  # what a stream says of its size, FFmpeg makes room for
SLICE, KEY_SLICE = 1, 5  # types of NAL units
MAX_STAMPS: Final = 64  # of frames that have gone in and not come out


class Picture(NamedTuple):
    """``rgb``: height x width x 3 bytes. ``stamp_ns`` is that of the frame that it was made from."""

    width_px: int
    height_px: int
    rgb: bytes
    stamp_ns: int


class Undecodable(Exception):
    """The bytes are none of a video, or of another size than was said."""


class H264Decoder:
    """The decoder of one camera, made at the first key frame."""

    def __init__(self) -> None:
        self._context: Any = None
        self._newest: Any = None  # of what was decoded and not taken
        self._next_index: int | None = None
        self._frames = 0
        self._stamps: dict[int, int] = {}

    def take(self, frame: Frame, stamp_ns: int) -> bool:
        """Decodes one frame. Whether it is one that can be shown. Raises Undecodable."""
        import av

        if frame.index != self._next_index:
            self._context = None
        self._next_index = frame.index + 1
        if self._context is None:
            if not is_key(frame.data):
                return False
            self._context = _context()
            self._stamps.clear()
        self._frames += 1
        packet = av.Packet(frame.data)
        packet.pts = self._frames
        self._stamps[self._frames] = stamp_ns
        if len(self._stamps) > MAX_STAMPS:
            del self._stamps[next(iter(self._stamps))]
        try:
            decoded = self._context.decode(packet)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            self._forget()
            raise Undecodable(str(error)) from error
        for picture in decoded:
            if (picture.width, picture.height) != (frame.width_px, frame.height_px):
                self._forget()
                raise Undecodable(f"it is {picture.width} x {picture.height}")
            if picture.is_corrupt:
                self._forget()
                raise Undecodable("a part of it is missing")
            self._newest = picture
        return bool(decoded)

    def picture(self) -> Picture | None:
        """The newest that was decoded; None when it was taken already."""
        newest, self._newest = self._newest, None
        if newest is None or (stamp_ns := self._stamps.pop(newest.pts, None)) is None:
            return None
        return Picture(newest.width, newest.height, newest.to_ndarray(format="rgb24").tobytes(), stamp_ns)

    def _forget(self) -> None:
        self._context = self._newest = None


def _context() -> Any:
    import av
    import av.logging

    av.logging.set_level(None)  # what strangers send is not written to the terminal
    context = av.CodecContext.create("h264", "r")
    context.thread_count = 1
    context.flags |= av.codec.context.Flags.low_delay
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return context


def is_key(data: bytes) -> bool:
    """Whether the first slice of an access unit in Annex B is that of a key frame."""
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        kind = data[at + 3] & 0x1F
        if kind in (SLICE, KEY_SLICE):
            return kind == KEY_SLICE
        at = data.find(b"\0\0\1", at + 3)
    return False
