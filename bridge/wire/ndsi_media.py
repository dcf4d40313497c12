"""The data of NDSI v4 that come in bulk: video frames and batches of the IMU. Bytes to typed values, no I/O.

Source: `ndsi-commspec.md` of pupil-labs/pyndsi (v4), and what its client reads; JPEG by ITU-T T.81, H.264's byte stream
by ITU-T H.264 Annex B. As in ``wire/ndsi.py``: little-endian, integer nanoseconds of the app's clock, ``frames`` is
``[uuid, header, body]`` and may have more; what breaks the rules raises `MalformedMessage`. An image is looked at as
far as its size and its ends; it is passed on as it came.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import isfinite

import msgspec

from bridge.errors import MalformedMessage

# More than a scene image of 1088 x 1080 pixels has uncompressed: whatever is larger is no JPEG or H.264 of it.
FRAME_MAX_BYTES = 4 << 20
PICTURE_MAX_PX = 4096  # a side; what decodes an image further on makes room for that many
IMU_BATCH_MAX_SAMPLES = 80
FORMATS = {0x10: "jpeg", 0x12: "h264"}

_TIME_MAX_NS = 2**63 - 1
_IMU_SAMPLE = struct.Struct("<Qffffff")
_unpack_video_header = struct.Struct("<LLLLQLL").unpack
_unpack_imu_header = struct.Struct("<LLLLL").unpack
_JPEG_BEGIN, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_PADDING_MAX_BYTES = 4096  # cameras fill their last USB packet
_JPEG_SEGMENTS_MAX = 100
# Start of frame, baseline to arithmetic; 0xC4, 0xC8 and 0xCC between them are tables and an extension.
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = 0xDA
_unpack_segment = struct.Struct(">BBH").unpack_from
_unpack_size = struct.Struct(">HH").unpack_from

ImuValues = tuple[float, float, float, float, float, float]


class UnknownFormat(MalformedMessage):
    """A video frame in a format that is not read here. It may be sound."""


class VideoFrame(msgspec.Struct, frozen=True, gc=False):
    """One image. ``format`` is "jpeg" or "h264" (Annex B); a JPEG's size is the one that is written in it.

    ``index`` is the header's sequence number, u32.
    """

    format: str
    device_ns: int
    width_px: int
    height_px: int
    index: int
    data: bytes


def decode_video(frames: Sequence[bytes]) -> VideoFrame:
    """Read ``[uuid, header, body]`` of a video sensor. Raises `UnknownFormat` for other formats than JPEG and H.264."""
    try:
        code, width_px, height_px, index, device_ns, data_bytes, _reserved = _unpack_video_header(frames[1])
        data = frames[2]
    except (struct.error, IndexError) as error:
        raise MalformedMessage(f"NDSI video has wrong lengths: {_lengths(frames)} instead of [uuid, 32, n]") from error
    if data_bytes != len(data):
        raise MalformedMessage(f"NDSI video has a body of {len(data)} bytes where its header says {data_bytes}")
    if data_bytes > FRAME_MAX_BYTES:
        raise MalformedMessage(f"NDSI video has a frame of {data_bytes} bytes, more than {FRAME_MAX_BYTES}")
    if device_ns > _TIME_MAX_NS:
        raise MalformedMessage(f"NDSI video time is out of range: {device_ns} ns")
    _check_picture(width_px, height_px)
    name = FORMATS.get(code)
    if name is None:
        raise UnknownFormat(f"NDSI video has the format {code:#x}, which is not read")
    if name == "jpeg":
        width_px, height_px = jpeg_size(data)
        _check_picture(width_px, height_px)
    elif not data.startswith((b"\0\0\1", b"\0\0\0\1")):
        raise MalformedMessage(f"NDSI video has no H.264 that begins with a start code: {data[:4].hex()}")
    return VideoFrame(name, device_ns, width_px, height_px, index, data)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG as written in it. Raises `MalformedMessage` when it has no begin, size or end."""
    if not data.startswith(_JPEG_BEGIN):
        raise MalformedMessage(f"JPEG does not begin as one: {data[:4].hex()}")
    # Within compressed data every 0xff is followed by 0x00 or a restart marker: where this stands is the end.
    if not data.endswith(_JPEG_END) and data.rfind(_JPEG_END, max(2, len(data) - _JPEG_PADDING_MAX_BYTES)) < 0:
        raise MalformedMessage(f"JPEG of {len(data)} bytes has no end")
    at = 2
    try:
        for _ in range(_JPEG_SEGMENTS_MAX):
            begin, marker, length = _unpack_segment(data, at)
            if begin == marker == 0xFF:  # a fill byte
                at += 1
                continue
            if begin != 0xFF or length < 2 or marker == _JPEG_SCAN:
                break
            if marker in _JPEG_SIZES:
                height_px, width_px = _unpack_size(data, at + 5)  # after the length and the bits of a sample
                return width_px, height_px
            at += 2 + length
    except (struct.error, IndexError) as error:
        raise MalformedMessage(f"JPEG of {len(data)} bytes ends within its headers") from error
    raise MalformedMessage(f"JPEG of {len(data)} bytes does not say its size")


def decode_imu(frames: Sequence[bytes]) -> list[tuple[int, ImuValues]]:
    """Read ``[uuid, header, body]`` of an IMU: 1 to 80 samples, in the order in which they were sent.

    Of each its own device time in ns, acceleration x, y, z in g and angular velocity x, y, z in degrees a second, all
    finite. The header's format, channels and sequence number mean nothing that is documented.
    """
    try:
        _format, _channels, _sequence, data_bytes, _reserved = _unpack_imu_header(frames[1])
        body = frames[2]
    except (struct.error, IndexError) as error:
        raise MalformedMessage(
            f"NDSI IMU has wrong lengths: {_lengths(frames)} instead of [uuid, 20, n x 32]"
        ) from error
    if data_bytes != len(body):
        raise MalformedMessage(f"NDSI IMU has a body of {len(body)} bytes where its header says {data_bytes}")
    count, rest = divmod(data_bytes, _IMU_SAMPLE.size)
    if rest or not 1 <= count <= IMU_BATCH_MAX_SAMPLES:
        raise MalformedMessage(f"NDSI IMU has {data_bytes} bytes, not 1 to {IMU_BATCH_MAX_SAMPLES} samples of 32")
    samples: list[tuple[int, ImuValues]] = []
    for device_ns, *values in _IMU_SAMPLE.iter_unpack(body):
        # The sum of six float32 overflows no float64: it is finite only if all are.
        if device_ns > _TIME_MAX_NS or not isfinite(sum(values)):
            raise MalformedMessage(f"NDSI IMU sample cannot be: {device_ns} ns, {values}")
        ax, ay, az, gx, gy, gz = values
        samples.append((device_ns, (ax, ay, az, gx, gy, gz)))
    return samples


def _check_picture(width_px: int, height_px: int) -> None:
    if not (0 < width_px <= PICTURE_MAX_PX and 0 < height_px <= PICTURE_MAX_PX):
        raise MalformedMessage(f"NDSI video has an image of {width_px} x {height_px} pixels")


def _lengths(frames: Sequence[bytes]) -> list[int]:
    return [len(frame) for frame in frames[:4]]
