"""The simulated Companion's video beyond the scene's JPEG: H.264, the eyes, a size in bytes; decoded independently."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bridge.simulators.companion_cameras import H264Camera, JpegCamera
from bridge.simulators.companion_scene import TARGET_RADIUS_PX
from bridge.simulators.companion_sensor import EYE_PX, SCENE_PX
from tests.simulators.ndsi_host import Datum, Host, free_beacon_port, host, read_truth, simulator

SPS, PPS, KEY_SLICE, SLICE = 0x67, 0x68, 0x65, 0x61


@pytest.fixture
def beacon_port() -> int:
    return free_beacon_port()


@pytest.fixture
def lab(beacon_port: int) -> Iterator[Host]:
    with host(beacon_port) as opened:
        yield opened


def units(picture: bytes) -> list[int]:
    """The first bytes of the units of a byte stream, which begins with one."""
    assert picture.startswith(b"\0\0\0\1")
    return [unit[0] for unit in picture.split(b"\0\0\0\1")[1:]]


def decoded(pictures: Sequence[bytes]) -> list[tuple[int, Any]]:
    """What FFmpeg makes of them: the picture's number and its frame. A frame must come out at once."""
    av = pytest.importorskip("av")
    decoder = av.CodecContext.create("h264", "r")
    found = []
    for number, picture in enumerate(pictures):
        try:
            frames = decoder.decode(av.Packet(picture))
        except av.error.InvalidDataError:
            continue
        found += [(number, frame) for frame in frames]
    return found


def planes(frame: Any) -> Any:
    """Y, Cb and Cr of each pixel."""
    assert frame.format.name == "yuv420p"
    flat, width, height = frame.to_ndarray(), frame.width, frame.height
    luma, chroma = flat[:height], flat[height:].reshape(2, height // 2, width // 2)
    return np.dstack([luma, *chroma.repeat(2, axis=1).repeat(2, axis=2)]).astype(np.int16)


def target_at(picture: Any) -> tuple[int, int]:
    """Where the four squares meet: x, y of the pixel below and to the right of their corner."""
    ys, xs = np.nonzero((picture[..., 1] < 90) & (picture[..., 2] > 160))
    top, left = int(ys.min()), int(xs.min())
    card = picture[top : ys.max() + 1, left : xs.max() + 1, 0] - 128.0
    signs = np.sign(np.where(np.abs(card) > 50, card, 0))
    x = 1 + int(np.argmax(np.abs(np.diff(signs, axis=1)).sum(axis=0)))
    y = 1 + int(np.argmax(np.abs(np.diff(signs, axis=0)).sum(axis=1)))
    return left + x, top + y


def walk(random: Random, size_px: tuple[int, int], count: int) -> list[tuple[float, float]]:
    """Places that are now near, now far from each other, also beyond the edges."""
    width, height = size_px
    far = [(random.uniform(-50, width + 50), random.uniform(-50, height + 50)) for _ in range(count)]
    return [place for x, y in far for place in ((x, y), (x + 3.7, y - 2.2), (x + 3.7, y - 2.2))]


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_px", [SCENE_PX, EYE_PX])
def test_every_pixel_of_h264_is_room_or_target(size_px: tuple[int, int]) -> None:
    camera, places = H264Camera(size_px, "a", 7, False), walk(Random(4), size_px, 6)
    pictures = [camera.picture(100 + number, x, y) for number, (x, y) in enumerate(places)]
    found = decoded(pictures)
    assert [number for number, _ in found] == list(range(len(places)))
    room = planes(found[0][1])[-1, :, 0]  # its stripes, which no card covers in the last row
    for number, frame in found:
        picture = planes(frame)
        assert picture.shape == (size_px[1], size_px[0], 3)
        x, y = target_at(picture)
        asked = [
            min(max(int(at), TARGET_RADIUS_PX), size - TARGET_RADIUS_PX - 16)
            for at, size in zip(places[number], size_px, strict=True)
        ]
        assert [x, y] == asked
        card = (picture[..., 1] < 90) & (picture[..., 2] > 160)
        assert card.sum() == 64 * 64, "what the card has left is not room again"
        assert (np.where(card, room, picture[..., 0]) == room).all()
        inside = picture[y - TARGET_RADIUS_PX : y + TARGET_RADIUS_PX, x - TARGET_RADIUS_PX : x + TARGET_RADIUS_PX, 0]
        squares = np.kron([[1, -1], [-1, 1]], np.ones((TARGET_RADIUS_PX, TARGET_RADIUS_PX)))
        assert (inside == 128 + 100 * squares).all()


def test_key_pictures_come_with_their_parameters_and_as_often_as_asked_for() -> None:
    camera = H264Camera(SCENE_PX, "a", 10, False)
    kinds = [units(camera.picture(number, 500, 500)) for number in range(3, 33)]
    assert [len(each) for each in kinds] == [3 if number % 10 == 0 else 1 for number in range(30)]
    assert {tuple(each) for each in kinds} == {(SPS, PPS, KEY_SLICE), (SLICE,)}


def test_h264_that_begins_midway_can_be_decoded_from_its_first_key_picture_on() -> None:
    camera, places = H264Camera(SCENE_PX, "a", 10, True), [(100.0 + 20 * n, 300.0 + 9 * n) for n in range(25)]
    pictures = [camera.picture(number, x, y) for number, (x, y) in enumerate(places)]
    assert [len(units(picture)) for picture in pictures[:7]] == [1, 1, 1, 1, 1, 3, 1]
    found = decoded(pictures)
    assert [number for number, _ in found] == list(range(5, 25))
    assert all(target_at(planes(frame)) == tuple(map(int, places[number])) for number, frame in found[::3])


def test_after_a_pause_h264_begins_again_with_a_key_picture() -> None:
    camera = H264Camera(EYE_PX, "a", 30, False)
    first = [camera.picture(number, 90, 90) for number in range(3)]
    camera.pause()
    second = [camera.picture(number, 120, 60) for number in range(50, 53)]
    found = decoded(first + second)
    assert [target_at(planes(frame)) for _, frame in found] == [(90, 90)] * 3 + [(120, 60)] * 3
    assert [len(units(picture)) for picture in second] == [3, 1, 1]


def test_h264_has_about_the_size_of_a_cameras() -> None:
    camera, random = H264Camera(SCENE_PX, "a", 30, False), Random(3)
    sizes = [len(camera.picture(n, random.uniform(0, 1088), random.uniform(0, 1080))) for n in range(30)]
    assert 30_000 < sizes[0] < 50_000
    assert all(5_000 < size < 15_000 for size in sizes[1:])


@pytest.mark.parametrize("size_bytes", [50_000, 80_000, 300_000])
def test_a_jpeg_has_exactly_the_size_that_was_asked_for(size_bytes: int) -> None:
    camera, random = JpegCamera(SCENE_PX, "a", size_bytes), Random(6)
    for number in range(60):
        x, y = random.uniform(40, 1048), random.uniform(40, 1040)
        picture = camera.picture(number, x, y)
        assert len(picture) == size_bytes
        if number % 6 == 0:
            assert target_at(_jpeg_pixels(picture)) == (int(x), int(y))


def _jpeg_pixels(jpeg: bytes) -> Any:
    image = Image.open(io.BytesIO(jpeg))
    image.draft("YCbCr", image.size)
    image.load()
    return np.asarray(image).astype(np.int16)


# --- on the wire ------------------------------------------------------------------------------------------------------


def header(datum: Datum, code: int, size_px: tuple[int, int]) -> tuple[int, int]:
    """Device stamp and sequence of a frame, after checking the rest of its header."""
    found = struct.unpack("<LLLLQLL", datum.header)
    assert (*found[:3], *found[5:]) == (code, *size_px, len(datum.body), 0)
    return found[4], found[3]


def test_h264_on_the_wire_is_the_truth_and_shows_the_gaze(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    arguments = ("--truth", path, "--scene-format", "h264", "--key-interval", 12, "--offset-s", 30, "--drift-ppm", 70)
    with simulator("--beacon-port", beacon_port, *arguments) as device:
        scene = lab.open(lab.attached(device.ready)["scene"])
        for _ in range(2):
            before = len(scene.received)
            lab.stream(scene)
            lab.until(lambda before=before: len(scene.received) >= before + 30, "a second of frames")
            lab.stream(scene, on=False)
            lab.until(lambda: len(scene.received) == len(read_truth(path, "scene")), "the last frame")
    truth = read_truth(path, "scene")
    assert [header(datum, 0x12, SCENE_PX) for datum in scene.received] == [
        (row["device_ns"], row["sequence"]) for row in truth
    ]
    found = decoded([datum.body for datum in scene.received])
    assert [number for number, _ in found] == list(range(len(truth)))
    for number, frame in found[::7]:
        assert target_at(planes(frame)) == tuple(int(at) for at in truth[number]["payload"])


@pytest.mark.parametrize("form", ["jpeg", "h264"])
def test_the_eyes_are_two_cameras_of_their_own(lab: Host, beacon_port: int, tmp_path: Path, form: str) -> None:
    path = tmp_path / "truth.jsonl"
    arguments = ("--truth", path, "--scene-rate", 0, "--eyes-rate", 60, "--eyes-format", form)
    with simulator("--beacon-port", beacon_port, *arguments) as device:
        attaches = lab.attached(device.ready)
        assert attaches["eye0"]["sensor_name"] == "PI right v1"
        assert attaches["eye1"]["sensor_name"] == "PI left v1"
        assert attaches["eye0"]["data_endpoint"] != attaches["eye1"]["data_endpoint"]
        assert device.ready["streams"]["eye0"] == 60
        eyes = {stream: lab.open(attaches[stream]) for stream in ("eye0", "eye1")}
        for sensor in eyes.values():
            lab.stream(sensor)
        lab.until(lambda: all(len(sensor.received) >= 40 for sensor in eyes.values()), "frames")
        for sensor in eyes.values():
            lab.stream(sensor, on=False)
        lab.until(
            lambda: all(len(sensor.received) == len(read_truth(path, stream)) for stream, sensor in eyes.items()),
            "the last frames",
        )
    for stream, sensor in eyes.items():
        truth = read_truth(path, stream)
        code = 0x10 if form == "jpeg" else 0x12
        assert [header(datum, code, EYE_PX) for datum in sensor.received] == [
            (row["device_ns"], row["sequence"]) for row in truth
        ]
        bodies = [datum.body for datum in sensor.received]
        frames = [*enumerate(bodies)] if form == "jpeg" else decoded(bodies)
        assert len(frames) == len(truth)
        for number, frame in frames[::9]:
            assert target_at(_jpeg_pixels(frame) if form == "jpeg" else planes(frame)) == tuple(
                min(max(int(at), TARGET_RADIUS_PX), 192 - TARGET_RADIUS_PX - 16) for at in truth[number]["payload"]
            )
