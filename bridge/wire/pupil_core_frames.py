"""Camera frames on Pupil Core's IPC backbone: ``[topic, msgpack map, image]``. No I/O.

Source: pupil_src of Pupil Capture 3.6 (frame_publisher_controller.py, eye.py) and its traffic. Images are not touched
and not decoded; their length is compared with what their size and format need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from bridge.errors import MalformedMessage
from bridge.streams import Frame
from bridge.wire.pupil_core import UNREADABLE, UnknownTopic, seconds_to_ns

HEAD_MAX_BYTES = 4096
JPEG_START: Final = b"\xff\xd8\xff"
JPEG_MIN_BYTES = 64
JPEG_SPARE_BYTES = 64 * 1024  # what a JPEG may have beyond three bytes a pixel: its tables and comments

# Camera by topic. Eye 0 is the right one.
CAMERAS: Final = {b"frame.world": "scene", b"frame.eye.0": "eye0", b"frame.eye.1": "eye1"}

Side = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]  # LSL has it as a float64


class CameraFrame(msgspec.Struct, frozen=True, gc=False):
    """One image of the camera "scene", "eye0" or "eye1". The format "yuv" is planar; 4:2:0, 4:2:2 or 4:4:4 follows
    from its length."""

    camera: str
    timestamp_ns: int
    frame: Frame


class _Head(msgspec.Struct, gc=False):
    width: Side
    height: Side
    index: Index
    timestamp: float
    format: Literal["jpeg", "gray", "bgr", "yuv"]


_decode_head = msgspec.msgpack.Decoder(_Head).decode


def decode_frame(frames: Sequence[bytes]) -> CameraFrame:
    """Reads a frame message by its topic. Raises `UnknownTopic` for one that is none."""
    if not frames or (camera := CAMERAS.get(frames[0])) is None:
        raise UnknownTopic(f"Pupil Core topic is no camera's: {frames[0][:64] if frames else b''!r}")
    if len(frames) != 3:
        raise MalformedMessage(f"Pupil Core frame of {camera} has {len(frames)} parts, not 3")
    _, payload, data = frames
    if len(payload) > HEAD_MAX_BYTES:
        raise MalformedMessage(f"Pupil Core frame of {camera} has a head of {len(payload)} bytes")
    try:
        head: _Head = _decode_head(payload)
    except UNREADABLE as error:
        raise MalformedMessage(f"Pupil Core frame of {camera} cannot be read: {error}") from error
    if not _fits(head, data):
        raise MalformedMessage(
            f"Pupil Core frame of {camera} is no {head.format} of {head.width}x{head.height}: {len(data)} bytes"
        )
    frame = Frame(head.format, head.width, head.height, head.index, data)
    return CameraFrame(camera, seconds_to_ns(head.timestamp), frame)


def _fits(head: _Head, data: bytes) -> bool:
    width, height = head.width, head.height
    pixels, size = width * height, len(data)
    match head.format:
        case "jpeg":
            # Cameras fill it up behind its end, so only its beginning is known.
            return JPEG_MIN_BYTES <= size <= 3 * pixels + JPEG_SPARE_BYTES and data.startswith(JPEG_START)
        case "gray":
            return size == pixels
        case "bgr":
            return size == 3 * pixels
        case "yuv":
            half = (width + 1) // 2
            return size in (pixels + 2 * half * ((height + 1) // 2), pixels + 2 * half * height, 3 * pixels)
