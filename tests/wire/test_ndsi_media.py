"""NDSI v4's video and IMU against bytes written by hand from its specification, and against everything else."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import MalformedMessage
from bridge.wire import ndsi_media
from tests.wire.test_hostile_input import QUIET, damaged_messages

UUID = b"b11f0bbe-a5d0-4c3c-b8a1-0d4f1e2a3b4c"
# 0x0102030405060708 ns, least significant byte first.
TIME = b"\x08\x07\x06\x05\x04\x03\x02\x01"
TIME_NS = 72_623_859_790_382_856

# T.81: begin; an APP0 segment of 4 bytes; a DQT that is no size; SOF0 of 4 x 3 pixels with one component; end.
JPEG = (
    b"\xff\xd8"
    b"\xff\xe0\x00\x04ab"
    b"\xff\xdb\x00\x03\x00"
    b"\xff\xc0\x00\x0b\x08\x00\x03\x00\x04\x01\x01\x11\x00"
    b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x12\xff\x00\x34"
    b"\xff\xd9"
)
H264 = b"\x00\x00\x00\x01\x67\x42\x00\x0a"
# Format, 1088 x 1080, sequence 7, time, bytes, reserved.
SIZE = b"\x40\x04\x00\x00\x38\x04\x00\x00"
JPEG_HEADER = b"\x10\0\0\0" + SIZE + b"\x07\0\0\0" + TIME + b"\x2a\0\0\0" + b"\0\0\0\0"
H264_HEADER = b"\x12\0\0\0" + SIZE + b"\xff\xff\xff\xff" + TIME + b"\x08\0\0\0" + b"\0\0\0\0"
# 1.0 is 0x3f800000, -0.5 is 0xbf000000, 90.0 is 0x42b40000.
IMU_SAMPLE = TIME + b"\0\0\x80\x3f" + b"\0\0\0\xbf" + b"\0\0\0\0" + b"\0\0\xb4\x42" + b"\0\0\0\0" + b"\0\0\xb4\xc2"
IMU_VALUES = (1.0, -0.5, 0.0, 90.0, 0.0, -90.0)
IMU_HEADER = b"\0\0\0\0" + b"\x06\0\0\0" + b"\x09\0\0\0" + b"\x20\0\0\0" + b"\0\0\0\0"


def video(data: bytes, code: int = 0x10, **changes: int) -> list[bytes]:
    """A message with this image; ``changes`` of the header by name."""
    fields = {"width": 1088, "height": 1080, "sequence": 7, "time": TIME_NS, "bytes": len(data), **changes}
    return [UUID, struct.pack("<LLLLQLL", code, *fields.values(), 0), data]


def imu(body: bytes, data_bytes: int | None = None) -> list[bytes]:
    length = len(body) if data_bytes is None else data_bytes
    return [UUID, struct.pack("<LLLLL", 0, 6, 9, length, 0), body]


class TestVideo:
    def test_a_jpeg_passes_untouched_with_its_own_size(self) -> None:
        assert len(JPEG) == 0x2A
        assert ndsi_media.decode_video([UUID, JPEG_HEADER, JPEG]) == ndsi_media.VideoFrame(
            "jpeg", TIME_NS, width_px=4, height_px=3, index=7, data=JPEG
        )

    def test_h264_passes_untouched_with_the_size_of_the_header(self) -> None:
        assert ndsi_media.decode_video([UUID, H264_HEADER, H264]) == ndsi_media.VideoFrame(
            "h264", TIME_NS, width_px=1088, height_px=1080, index=2**32 - 1, data=H264
        )

    def test_h264_may_begin_with_the_short_start_code(self) -> None:
        assert ndsi_media.decode_video(video(H264[1:], 0x12)).data == H264[1:]

    def test_further_frames_are_ignored(self) -> None:
        assert ndsi_media.decode_video([UUID, JPEG_HEADER, JPEG, b"more"]).data == JPEG

    def test_fill_bytes_before_a_marker_and_padding_after_the_end_are_allowed(self) -> None:
        filled = JPEG.replace(b"\xff\xc0", b"\xff\xff\xff\xc0") + b"\0" * 4000
        assert ndsi_media.jpeg_size(filled) == (4, 3)

    @pytest.mark.parametrize("code", [0x00, 0x01, 0x11, 0x13, 2**32 - 1])
    def test_other_formats_are_told_apart_from_what_is_malformed(self, code: int) -> None:
        with pytest.raises(ndsi_media.UnknownFormat, match=f"{code:#x}"):
            ndsi_media.decode_video(video(JPEG, code))

    @pytest.mark.parametrize("said", [0, len(JPEG) - 1, len(JPEG) + 1, 2**32 - 1])
    @pytest.mark.parametrize("code", [0x10, 0x12, 0x01])
    def test_a_length_that_lies_is_malformed(self, said: int, code: int) -> None:
        with pytest.raises(MalformedMessage, match="header says"):
            ndsi_media.decode_video(video(JPEG, code, bytes=said))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            JPEG[1:],
            JPEG[:-1],
            JPEG[:-2],
            JPEG[:-2] + b"\0" * 5000,
            JPEG + b"\0" * 5000,
            JPEG.replace(b"\xff\xc0", b"\xff\xc4"),  # no size
            JPEG[:2] + JPEG[-2:],
            b"\xff\xd8" + b"\xff" * 10_000 + b"\xff\xd9",
            b"\xff\xd8" + b"\xff\xe0\x00\x00" * 200 + JPEG[2:],  # segments of no length
            b"\xff\xd8" + b"\xff\xe0\x00\x02" * 200 + JPEG[2:],
            b"\xff\xd8\xff\xe0\xff\xff\xff\xd9",  # a segment beyond the end
            H264,
        ],
    )
    def test_a_jpeg_without_begin_size_or_end_is_malformed(self, data: bytes) -> None:
        with pytest.raises(MalformedMessage, match="JPEG"):
            ndsi_media.decode_video(video(data))

    @pytest.mark.parametrize("data", [b"", b"\0\0\1"[:2], b"\x67\x42", JPEG, b"\0\0\2\1"])
    def test_h264_without_a_start_code_is_malformed(self, data: bytes) -> None:
        with pytest.raises(MalformedMessage, match="start code"):
            ndsi_media.decode_video(video(data, 0x12))

    @pytest.mark.parametrize("size", [(0, 1080), (1088, 0), (4097, 1080), (1088, 2**32 - 1)])
    def test_an_image_of_impossible_size_is_malformed_in_the_header(self, size: tuple[int, int]) -> None:
        with pytest.raises(MalformedMessage, match="pixels"):
            ndsi_media.decode_video(video(JPEG, width=size[0], height=size[1]))

    @pytest.mark.parametrize("size", [(0, 3), (4, 0), (65535, 65535)])
    def test_an_image_of_impossible_size_is_malformed_in_the_jpeg(self, size: tuple[int, int]) -> None:
        data = JPEG.replace(b"\x08\x00\x03\x00\x04\x01", struct.pack(">BHHB", 8, size[1], size[0], 1))
        with pytest.raises(MalformedMessage, match="pixels"):
            ndsi_media.decode_video(video(data))

    def test_a_frame_that_is_too_large_is_malformed(self) -> None:
        largest = ndsi_media.FRAME_MAX_BYTES
        whole = JPEG[:-2] + b"\0" * (largest - len(JPEG)) + JPEG[-2:]
        assert ndsi_media.decode_video(video(whole)).data is whole
        with pytest.raises(MalformedMessage, match="more than"):
            ndsi_media.decode_video(video(JPEG[:-2] + b"\0" * (largest - len(JPEG) + 1) + JPEG[-2:]))

    def test_a_time_beyond_an_int64_is_malformed(self) -> None:
        with pytest.raises(MalformedMessage, match="time"):
            ndsi_media.decode_video(video(JPEG, time=2**63))

    @pytest.mark.parametrize(
        "frames", [[], [UUID], [UUID, JPEG_HEADER], [UUID, JPEG_HEADER[:-1], JPEG], [UUID, JPEG_HEADER + b"\0", JPEG]]
    )
    def test_missing_frames_and_bytes_are_malformed(self, frames: list[bytes]) -> None:
        with pytest.raises(MalformedMessage, match="wrong lengths"):
            ndsi_media.decode_video(frames)


class TestImu:
    def test_a_batch_gives_each_sample_with_its_own_time_in_g_and_degrees_a_second(self) -> None:
        assert ndsi_media.decode_imu([UUID, IMU_HEADER, IMU_SAMPLE]) == [(TIME_NS, IMU_VALUES)]
        later = b"\x09" + IMU_SAMPLE[1:]
        assert ndsi_media.decode_imu(imu(IMU_SAMPLE + later)) == [(TIME_NS, IMU_VALUES), (TIME_NS + 1, IMU_VALUES)]

    @pytest.mark.parametrize("count", [1, 2, 79, 80])
    def test_a_batch_has_1_to_80_samples(self, count: int) -> None:
        assert len(ndsi_media.decode_imu(imu(IMU_SAMPLE * count))) == count

    @pytest.mark.parametrize(
        "body", [b"", IMU_SAMPLE * 81, IMU_SAMPLE[:-1], IMU_SAMPLE + b"\0", IMU_SAMPLE * 3 + IMU_SAMPLE[:31]]
    )
    def test_another_number_of_samples_or_part_of_one_is_malformed(self, body: bytes) -> None:
        with pytest.raises(MalformedMessage, match="samples"):
            ndsi_media.decode_imu(imu(body))

    @pytest.mark.parametrize("said", [0, 31, 33, 64, 2**32 - 1])
    def test_a_length_that_lies_is_malformed(self, said: int) -> None:
        with pytest.raises(MalformedMessage, match="header says"):
            ndsi_media.decode_imu(imu(IMU_SAMPLE, said))

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", range(6))
    def test_a_number_that_is_none_is_malformed(self, number: float, place: int) -> None:
        values = [0.0] * 6
        values[place] = number
        bad = struct.pack("<Qffffff", TIME_NS, *values)
        with pytest.raises(MalformedMessage, match="cannot be"):
            ndsi_media.decode_imu(imu(IMU_SAMPLE + bad))

    def test_the_largest_numbers_are_numbers(self) -> None:
        largest = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
        sample = struct.pack("<Qffffff", 2**63 - 1, *[largest] * 6)
        assert ndsi_media.decode_imu(imu(sample)) == [(2**63 - 1, (largest,) * 6)]

    def test_a_time_beyond_an_int64_is_malformed(self) -> None:
        with pytest.raises(MalformedMessage, match="cannot be"):
            ndsi_media.decode_imu(imu(struct.pack("<Qffffff", 2**63, *[0.0] * 6)))

    @pytest.mark.parametrize("frames", [[], [UUID], [UUID, IMU_HEADER], [UUID, IMU_HEADER + b"\0", IMU_SAMPLE]])
    def test_missing_frames_and_bytes_are_malformed(self, frames: list[bytes]) -> None:
        with pytest.raises(MalformedMessage, match="wrong lengths"):
            ndsi_media.decode_imu(frames)


# --- whatever comes ---------------------------------------------------------------------------------------------------

VALID: dict[Callable[[Sequence[bytes]], Any], list[list[bytes]]] = {
    ndsi_media.decode_video: [[UUID, JPEG_HEADER, JPEG], [UUID, H264_HEADER, H264]],
    ndsi_media.decode_imu: [[UUID, IMU_HEADER, IMU_SAMPLE], imu(IMU_SAMPLE * 3)],
}


def assert_sound_or_malformed(decode: Callable[[Any], Any], frames: list[bytes]) -> None:
    """Fails by any other exception, which passes through."""
    found, complaint = None, ""
    try:
        found = decode(frames)
    except MalformedMessage as error:
        complaint = str(error)
    assert len(complaint) < 1000, "an error's text must not carry the whole message into the log"
    if complaint:
        return
    if isinstance(found, ndsi_media.VideoFrame):
        assert found.format in ("jpeg", "h264")
        assert found.data is frames[2]
        assert 0 < found.width_px <= 4096
        assert 0 < found.height_px <= 4096
        assert 0 <= found.device_ns < 2**63
        return
    assert found is not None
    assert 1 <= len(found) <= 80
    for device_ns, values in found:
        assert 0 <= device_ns < 2**63
        assert len(values) == 6
        assert all(math.isfinite(value) for value in values)


@pytest.mark.parametrize("decode", list(VALID))
@given(data=st.data())
@settings(QUIET, max_examples=800)
def test_damaged_messages_are_sound_or_malformed(decode: Callable[[Any], Any], data: Any) -> None:
    assert_sound_or_malformed(decode, data.draw(damaged_messages(VALID[decode])))


@given(body=st.binary(max_size=400), header=st.binary(min_size=4, max_size=4), code=st.sampled_from([0x10, 0x12, 1]))
@settings(QUIET, max_examples=800)
def test_any_body_with_a_fitting_header_is_sound_or_malformed(body: bytes, header: bytes, code: int) -> None:
    assert_sound_or_malformed(ndsi_media.decode_video, video(body, code))
    assert_sound_or_malformed(ndsi_media.decode_video, video(b"\xff\xd8" + body + b"\xff\xd9"))
    assert_sound_or_malformed(ndsi_media.decode_video, video(b"\xff\xd8\xff\xc0" + header + body + b"\xff\xd9"))
    assert_sound_or_malformed(ndsi_media.decode_imu, imu(body))
    assert_sound_or_malformed(ndsi_media.decode_imu, imu(body[: len(body) // 32 * 32]))


@pytest.mark.parametrize("decode", list(VALID))
def test_every_truncation_and_every_flipped_bit_is_sound_or_malformed(decode: Callable[[Any], Any]) -> None:
    for frames in VALID[decode]:
        for end in range(len(frames[-1])):
            with pytest.raises(MalformedMessage):
                decode([*frames[:-1], frames[-1][:end]])
        for index, frame in enumerate(frames):
            for bit in range(8 * len(frame)):
                flipped = bytearray(frame)
                flipped[bit // 8] ^= 1 << (bit % 8)
                assert_sound_or_malformed(decode, [*frames[:index], bytes(flipped), *frames[index + 1 :]])
