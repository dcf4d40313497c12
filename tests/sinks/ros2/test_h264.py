"""H.264 as raw images: what an encoder made is shown, what has a gap or is broken is not, and nothing ends."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("av", reason="needs av: pip install 'pupil-bridge[ros]'")
pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]' (wheels for Linux x86_64)")
import av

from bridge.sinks.ros2.h264 import H264Decoder, Picture, Undecodable, is_key
from bridge.sinks.ros2.video import CODED_WAITING, ImageThread
from bridge.streams import Frame
from tests.sinks.ros2.lab import Notes, quiet_lark, realtime_ns, stamp_ns, until
from tests.sinks.ros2.test_video import Case, Slow

pytestmark = quiet_lark

WIDTH_PX, HEIGHT_PX = 192, 128
KEY_EVERY = 10


@pytest.fixture
def images() -> Iterator[ImageThread]:
    made = ImageThread()
    yield made
    made.close()


def shade(number: int) -> int:
    return 40 + 5 * (number % 30)


@pytest.fixture(scope="module")
def coded() -> list[bytes]:
    """Thirty grey pictures, each a little lighter; every tenth is a key frame."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 30), Fraction(30)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": f"keyint={KEY_EVERY}:scenecut=0"}
    packets: list[bytes] = []
    for number in range(30):
        pixels = np.full((HEIGHT_PX, WIDTH_PX, 3), shade(number), np.uint8)
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        picture.pts = number
        packets += [bytes(packet) for packet in encoder.encode(picture)]
    packets += [bytes(packet) for packet in encoder.encode(None)]
    assert len(packets) == 30
    return packets


def frame(data: bytes, index: int, width_px: int = WIDTH_PX) -> Frame:
    return Frame("h264", width_px, HEIGHT_PX, index, data)


def grey(picture: Picture | None) -> int:
    assert picture is not None
    pixels = np.frombuffer(picture.rgb, np.uint8).reshape(picture.height_px, picture.width_px, 3)
    return round(float(pixels.mean()))


def test_every_frame_is_shown_with_its_own_stamp(coded: list[bytes]) -> None:
    decoder = H264Decoder()
    assert [number for number, data in enumerate(coded) if is_key(data)] == [0, 10, 20]
    for number, data in enumerate(coded):
        assert decoder.take(frame(data, number), 1000 + number)
        picture = decoder.picture()
        assert abs(grey(picture) - shade(number)) <= 3
        assert picture is not None
        assert picture.stamp_ns == 1000 + number
        assert decoder.picture() is None, "it is taken once"


def test_it_begins_at_a_key_frame_and_a_gap_hides_what_follows_up_to_the_next(coded: list[bytes]) -> None:
    decoder = H264Decoder()
    shown = [n for n, data in enumerate(coded) if n >= 3 and n != 13 and decoder.take(frame(data, n), n)]
    assert shown == [10, 11, 12, *range(20, 30)]


@pytest.mark.parametrize("data", [b"", b"\0\0\1", b"\0\0\0\1\x65", b"\0\0\1\x65" + b"\xff" * 100, b"\0\0\1\x67\x42"])
def test_what_is_no_video_is_said_to_be_none_or_shows_nothing(coded: list[bytes], data: bytes) -> None:
    decoder = H264Decoder()
    with suppress(Undecodable):
        assert not decoder.take(frame(data, 0), 0)
    assert decoder.take(frame(coded[0], 1), 1)


def test_a_size_that_was_not_said_is_refused(coded: list[bytes]) -> None:
    decoder = H264Decoder()
    with pytest.raises(Undecodable, match="192 x 128"):
        decoder.take(frame(coded[0], 0, width_px=64), 0)
    assert not decoder.take(frame(coded[1], 1), 1), "up to the next key frame"


def test_frames_that_are_changed_at_random_raise_nothing_else(coded: list[bytes]) -> None:
    dice = random.Random(5)
    decoder = H264Decoder()
    undecodable = shown = 0
    for index in range(400):
        data = bytearray(coded[index % 30])
        for _ in range(dice.choice((0, 0, 1, 20))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            shown += decoder.take(frame(bytes(data[: dice.choice((len(data), len(data) // 2))]), index), index)
        except Undecodable:
            undecodable += 1
    assert undecodable
    assert shown


def test_raw_images_come_while_somebody_subscribes_and_the_decoder_goes_with_them(
    coded: list[bytes], desk: Notes, images: ImageThread
) -> None:
    case = Case(desk, images, None)
    for index, data in enumerate(coded[:10]):
        case.publish(frame(data, index))
        case.raw(index + 1)
    found = case.raw(10)
    assert {(image.encoding, image.width, image.height) for image in found} == {("rgb8", WIDTH_PX, HEIGHT_PX)}
    assert [abs(round(float(np.mean(image.data))) - shade(n)) <= 3 for n, image in enumerate(found)] == [True] * 10
    assert stamp_ns(found[-1]) == pytest.approx(realtime_ns(case.host_ns), abs=10**6)
    desk.nobody_but("scene/image_raw/compressed")
    case.publish(frame(coded[10], 10))
    assert len(found) == 10
    desk.nobody_but("scene/image_raw")
    for index, data in enumerate(coded[11:21], 11):  # in the middle of a group
        case.publish(frame(data, index))
    case.raw(11)
    assert abs(round(float(np.mean(found[-1].data))) - shade(20)) <= 3


def test_of_h264_all_are_decoded_and_the_newest_is_shown_and_what_waits_is_bounded(
    coded: list[bytes], desk: Notes, images: ImageThread
) -> None:
    case = Case(desk, images, None)
    slow = Slow(case)
    case.publish(frame(coded[0], 0))
    assert slow.entered.wait(20)
    for index, data in enumerate(coded[1:], 1):
        case.publish(frame(data, index))
    slow.go.release(2)
    found = case.raw(2)
    assert abs(round(float(np.mean(found[-1].data))) - shade(29)) <= 3
    until(lambda: case.dropped["image_superseded"] == 28, "the others have been decoded as well")
    slow.entered.clear()
    case.publish(frame(coded[0], 30))
    assert slow.entered.wait(20)
    for index in range(31, 32 + CODED_WAITING):
        case.publish(frame(coded[index % 30], index))
    assert case.dropped["image_superseded"] == 28 + CODED_WAITING
    slow.go.release(100)


def test_without_av_it_is_said_once(
    coded: list[bytes],
    desk: Notes,
    images: ImageThread,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    case = Case(desk, images, None)
    with caplog.at_level(logging.WARNING):
        for index, data in enumerate(coded[:3]):
            case.publish(frame(data, index))
            until(lambda n=index: case.dropped["image_undecodable"] == n + 1, "it is counted")
    assert caplog.text.count("need the Python package av") == 1
