"""Camera frames of Pupil Core against bytes written by hand and against frames of the real Pupil Capture."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge.errors import MalformedMessage
from bridge.streams import Frame
from bridge.wire.pupil_core import UnknownTopic
from bridge.wire.pupil_core_frames import CAMERAS, CameraFrame, decode_frame

REAL = Path(__file__).parents[1] / "data" / "core_frames.msgpack"

# msgpack by hand, as Capture writes it: a map of six, 0xcc is a uint8, 0xcd a uint16, 0xcb a float64 (5156.25).
TOPIC = b"\xa5topic\xabframe.eye.0"
TIMESTAMP = b"\xa9timestamp\xcb\x40\xb4\x24\x40\x00\x00\x00\x00"
HEAD_5X3_GRAY = (
    b"\x86" + TOPIC + b"\xa5width\x05\xa6height\x03\xa5index\xcd\x54\x5d" + TIMESTAMP + b"\xa6format\xa4gray"
)
GRAY = [b"frame.eye.0", HEAD_5X3_GRAY, bytes(range(15))]
JPEG = b"\xff\xd8\xff\xe0" + b"\x00" * 100


def head(**changes: Any) -> bytes:
    fields = {"topic": "x", "width": 5, "height": 3, "index": 7, "timestamp": 1.5, "format": "gray"} | changes
    return msgspec.msgpack.encode({key: value for key, value in fields.items() if value is not None})


def of_format(name: str, data: bytes, width: int = 5, height: int = 3) -> list[bytes]:
    return [b"frame.world", head(format=name, width=width, height=height), data]


def test_a_frame_is_read_by_hand_written_bytes() -> None:
    expected = CameraFrame("eye0", 5_156_250_000_000, Frame("gray", 5, 3, 21597, bytes(range(15))))
    assert decode_frame(GRAY) == expected


def test_the_topic_of_the_message_tells_the_camera_and_not_the_payload() -> None:
    cameras = {topic: decode_frame([topic, *GRAY[1:]]).camera for topic in CAMERAS}
    assert cameras == {b"frame.world": "scene", b"frame.eye.0": "eye0", b"frame.eye.1": "eye1"}


def test_frames_of_the_real_capture_are_read_and_not_touched() -> None:
    images = pytest.importorskip("PIL.Image")
    messages = msgspec.msgpack.decode(REAL.read_bytes())
    assert [parts[0] for parts in messages] == [b"frame.eye.0", b"frame.eye.1", b"frame.world"]
    for parts in messages:
        plain = msgspec.msgpack.decode(parts[1])
        read = decode_frame(parts)
        assert read.frame.data == parts[2]
        assert (read.frame.format, read.frame.index) == (plain["format"], plain["index"]) == ("jpeg", plain["index"])
        assert read.timestamp_ns == pytest.approx(plain["timestamp"] * 1e9, abs=1000)
        with images.open(io.BytesIO(read.frame.data)) as image:
            assert image.size == (read.frame.width_px, read.frame.height_px) == (plain["width"], plain["height"])


@pytest.mark.parametrize(
    ("name", "size"),
    [("gray", 15), ("bgr", 45), ("yuv", 15 + 2 * 3 * 2), ("yuv", 15 + 2 * 3 * 3), ("yuv", 45)],
)
def test_a_raw_image_has_the_length_of_its_size_and_format_and_no_other(name: str, size: int) -> None:
    read = decode_frame(of_format(name, bytes(size)))
    assert (read.frame.format, len(read.frame.data)) == (name, size)
    for wrong in (0, size - 1, size + 1):
        with pytest.raises(MalformedMessage, match=f"is no {name} of 5x3"):
            decode_frame(of_format(name, bytes(wrong)))


def test_a_raw_image_of_the_other_side_ratio_has_the_same_length_and_passes() -> None:
    assert decode_frame(of_format("gray", bytes(15), 3, 5)).frame.width_px == 3


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\x89PNG" + bytes(100), JPEG[1:], bytes(100), JPEG[:63]])
def test_a_jpeg_that_does_not_begin_like_one_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="is no jpeg"):
        decode_frame(of_format("jpeg", data))


def test_a_jpeg_may_be_filled_up_behind_its_end_but_not_without_bound() -> None:
    assert decode_frame(of_format("jpeg", JPEG + bytes(2000))).frame.data == JPEG + bytes(2000)
    with pytest.raises(MalformedMessage, match="is no jpeg"):
        decode_frame(of_format("jpeg", JPEG + bytes(64 * 1024)))


@pytest.mark.parametrize(
    "changes",
    [
        *({key: None} for key in ("width", "height", "index", "timestamp", "format")),
        *({"width": value} for value in (0, -5, 16385, 2**40, 5.5, "5", True, [5])),
        *({"height": value} for value in (0, -3, 16385, "3")),
        *({"index": value} for value in (-1, 2**53, "7", 7.5)),
        *({"timestamp": value} for value in (float("nan"), float("inf"), 1e300, "now")),
        *({"format": value} for value in ("png", "JPEG", "", "rgb", "h264", 1)),
        {"padding": "x" * 5000},
    ],
)
def test_a_head_that_lacks_or_lies_is_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        decode_frame([b"frame.world", head(**changes), bytes(15)])


@pytest.mark.parametrize("parts", [[], [b"frame.world"], GRAY[:2], [*GRAY, b""], [*GRAY, GRAY[2]]])
def test_a_frame_without_its_image_or_with_two_is_malformed(parts: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        decode_frame(parts)


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x90", HEAD_5X3_GRAY[:-1], HEAD_5X3_GRAY + b"\xc0", b"\x91" * 4000]
)
def test_a_head_that_is_no_map_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_frame([b"frame.world", payload, bytes(15)])


@pytest.mark.parametrize(
    "topic", [b"", b"frame", b"frame.eye", b"frame.eye.2", b"frame.eye.01", b"frame.world.x", b"\xff"]
)
def test_a_topic_that_only_begins_alike_is_unknown(topic: bytes) -> None:
    with pytest.raises(UnknownTopic):
        decode_frame([topic, *GRAY[1:]])


def test_the_timestamp_is_the_float_to_the_nanosecond() -> None:
    exact = struct.unpack(">d", b"\x40\xb4\x35\x50\xe4\x86\x60\x3d")[0]  # of a real frame
    assert decode_frame([b"frame.world", head(timestamp=exact), bytes(15)]).timestamp_ns == 5_173_315_987_013
