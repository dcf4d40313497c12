"""The simulated Companion's IMU, scene camera and recording, seen by a minimal host and by an independent decoder."""

from __future__ import annotations

import io
import itertools
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bridge.simulators.companion_scene import TARGET_RADIUS_PX, Scene
from bridge.simulators.companion_sensor import SCENE_PX
from tests.simulators.ndsi_host import Datum, Host, free_beacon_port, host, read_truth, simulator


@pytest.fixture
def beacon_port() -> int:
    return free_beacon_port()


@pytest.fixture
def lab(beacon_port: int) -> Iterator[Host]:
    with host(beacon_port) as opened:
        yield opened


# --- pictures ---------------------------------------------------------------------------------------------------------


def pixels(jpeg: bytes) -> Any:
    """The picture's Y, Cb and Cr, after checking that a strict decoder finds nothing wrong with it."""
    image = Image.open(io.BytesIO(jpeg))
    image.draft("YCbCr", image.size)
    image.load()
    assert image.format == "JPEG"
    return np.asarray(image).astype(int)


def target_at(picture: Any) -> tuple[int, int]:
    """Where the four squares of the target meet: x, y of the pixel below and to the right of their corner."""
    ys, xs = np.nonzero((picture[..., 1] < 90) & (picture[..., 2] > 160))  # the card's yellow
    top, left = int(ys.min()), int(xs.min())
    card = picture[top : ys.max() + 1, left : xs.max() + 1, 0] - 128.0
    assert np.abs(card).max() > 70
    # The squares' sign changes at the centre, in each row and in each column.
    signs = np.sign(np.where(np.abs(card) > 50, card, 0))
    x = 1 + int(np.argmax(np.abs(np.diff(signs, axis=1)).sum(axis=0)))
    y = 1 + int(np.argmax(np.abs(np.diff(signs, axis=0)).sum(axis=1)))
    return left + x, top + y


def test_the_target_of_a_picture_is_exactly_where_it_was_asked_for() -> None:
    scene, random = Scene(*SCENE_PX, "a"), Random(5)
    places = [(544.0, 540.0), (40.0, 40.0), (1047.9, 1039.9)]
    places += [(random.uniform(40, 1048), random.uniform(40, 1040)) for _ in range(40)]
    for x, y in places:
        picture = pixels(scene.frame(x, y))
        assert picture.shape == (SCENE_PX[1], SCENE_PX[0], 3)
        assert target_at(picture) == (int(x), int(y))


def test_the_target_has_black_and_white_squares_around_its_centre() -> None:
    picture = pixels(Scene(*SCENE_PX, "a").frame(333.3, 701.0))[..., 0]
    x, y, inside = 333, 701, TARGET_RADIUS_PX - 4
    for dx, dy, white in ((-inside, -inside, True), (3, 3, True), (3, -inside, False), (-inside, 3, False)):
        square = picture[y + dy : y + dy + 10, x + dx : x + dx + 10]
        assert (square.min() > 200) if white else (square.max() < 60)


def test_a_picture_at_the_edge_keeps_its_target_inside() -> None:
    scene = Scene(*SCENE_PX, "a")
    for x, y in ((-500.0, 0.0), (0.0, 5000.0), (1e9, 0.0)):
        target_x, target_y = target_at(pixels(scene.frame(x, y)))
        assert TARGET_RADIUS_PX <= target_x <= SCENE_PX[0] - TARGET_RADIUS_PX
        assert TARGET_RADIUS_PX <= target_y <= SCENE_PX[1] - TARGET_RADIUS_PX


def test_pictures_have_the_size_of_a_cameras_and_another_room_for_each_seed() -> None:
    rooms = [Scene(*SCENE_PX, seed) for seed in "aab"]
    frames = [room.frame(500, 500) for room in rooms]
    assert all(50_000 < len(frame) < 100_000 for frame in frames)
    assert frames[0] == frames[1] != frames[2]


# --- on the wire ------------------------------------------------------------------------------------------------------


def video(datum: Datum) -> tuple[int, int, int]:
    """Device stamp, sequence and arrival of a frame, after checking the rest of its header."""
    code, width, height, sequence, device_ns, length, reserved = struct.unpack("<LLLLQLL", datum.header)
    assert (code, width, height, length, reserved) == (0x10, 1088, 1080, len(datum.body), 0)
    return device_ns, sequence, datum.received_ns


def test_the_scene_cameras_frames_are_the_truth_and_show_the_gaze(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    arguments = ("--offset-s", -7, "--drift-ppm", 40, "--truth", path, "--scene-rate", 30, "--gaze-rate", 120)
    with simulator("--beacon-port", beacon_port, *arguments) as device:
        attaches = lab.wait_attached(device.ready)
        scene, gaze = lab.open(attaches["video"]), lab.open(attaches["gaze"])
        assert not scene.received, "it streams before it is told to"
        lab.stream(gaze)
        lab.stream(scene)
        lab.until(lambda: len(scene.received) >= 30, "a second of frames")
        lab.stream(scene, on=False)
        lab.stream(gaze, on=False)
        lab.until(lambda: len(scene.received) == len(read_truth(path, "scene")), "the last frame")
    truth = read_truth(path, "scene")
    found = [video(datum) for datum in scene.received]
    assert [each[:2] for each in found] == [(row["device_ns"], row["sequence"]) for row in truth]
    assert all(received_ns >= row["host_ns"] for (_, _, received_ns), row in zip(found, truth, strict=True))
    sequences = [row["sequence"] for row in truth]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    for datum, row in list(zip(scene.received, truth, strict=True))[::10]:
        assert target_at(pixels(datum.body)) == tuple(int(at) for at in row["payload"])
    # Every fourth gaze sample has a frame's instant, and its place.
    frames = {row["host_ns"]: row["payload"] for row in truth}
    shared = [row for row in read_truth(path, "gaze") if row["host_ns"] in frames]
    assert len(shared) >= len(truth) - 2
    assert all(row["payload"] == frames[row["host_ns"]] for row in shared)


@pytest.mark.parametrize("batch", [1, 10, 80])
def test_imu_batches_are_the_truth_sample_by_sample(lab: Host, beacon_port: int, tmp_path: Path, batch: int) -> None:
    path = tmp_path / "truth.jsonl"
    arguments = ("--imu-rate", 200, "--imu-batch", batch, "--truth", path, "--drift-ppm", -25)
    with simulator("--beacon-port", beacon_port, *arguments) as device:
        imu = lab.open(lab.wait_attached(device.ready)["imu"])
        lab.stream(imu)
        lab.until(lambda: len(imu.received) * batch >= 160, "160 samples")
        lab.stream(imu, on=False)
        lab.until(lambda: len(imu.received) * batch == len(read_truth(path, "imu")), "the last batch")
    truth = read_truth(path, "imu")
    samples: list[tuple[int, list[float]]] = []
    for number, datum in enumerate(imu.received):
        _, channels, sequence, length, reserved = struct.unpack("<LLLLL", datum.header)
        assert (channels, sequence, length, reserved) == (6, number, len(datum.body), 0)
        assert length == 32 * batch
        samples += [(device_ns, values) for device_ns, *values in struct.iter_unpack("<Qffffff", datum.body)]
    assert samples == [(row["device_ns"], row["payload"]) for row in truth]
    steps_ns = {later["host_ns"] - row["host_ns"] for row, later in itertools.pairwise(truth)}
    assert steps_ns == {5_000_000}
    gravity_g = np.linalg.norm(np.array([values[:3] for _, values in samples]), axis=1)
    assert np.abs(gravity_g - 1).max() < 0.06
    rates = np.array([values[3:] for _, values in samples])
    assert 5 < np.abs(rates).max() < 40


def test_a_batch_that_was_begun_before_a_pause_is_not_sent_after_it(
    lab: Host, beacon_port: int, tmp_path: Path
) -> None:
    path = tmp_path / "truth.jsonl"
    arguments = ("--imu-rate", 100, "--imu-batch", 80, "--truth", path, "--restart-step-s", 100)
    with simulator("--beacon-port", beacon_port, *arguments) as device:
        imu = lab.open(lab.wait_attached(device.ready)["imu"])
        lab.stream(imu)
        begun_ns = time.monotonic_ns()
        lab.until(lambda: time.monotonic_ns() - begun_ns > 100_000_000, "some samples are made")
        assert not imu.received
        lab.stream(imu, on=False)
        lab.stream(imu)
        lab.until(lambda: imu.received, "a batch")
    stamps_ns = [device_ns for device_ns, *_ in struct.iter_unpack("<Qffffff", imu.received[0].body)]
    assert {later - stamp for stamp, later in itertools.pairwise(stamps_ns)} == {10_000_000}


def test_sensors_with_a_rate_of_0_are_not_there(lab: Host, beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port, "--imu-rate", 0, "--scene-rate", 0) as device:
        assert set(lab.wait_attached(device.ready)) == {"gaze", "event", "hardware"}


# --- recording --------------------------------------------------------------------------------------------------------


def test_what_the_hardware_is_told_is_in_the_truth(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--truth", path) as device:
        hardware = lab.open(lab.wait_attached(device.ready)["hardware"])
        hardware.send(action="set_control_value", control_id="capture_session_name", value="Versuch 3 é")
        hardware.send(action="set_control_value", control_id="local_capture", value=True)
        lab.until(lambda: hardware.controls["local_capture"]["value"] is True, "it records")
    told = [json.loads(row["payload"]) for row in read_truth(path, "control")]
    assert told == [{"capture_session_name": "Versuch 3 é"}, {"local_capture": True}]


def test_a_recording_that_is_refused_is_an_error_with_its_text(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    path, text = tmp_path / "truth.jsonl", "Template has required fields: Initialen"
    with simulator("--beacon-port", beacon_port, "--truth", path, "--refuse-recording", text) as device:
        hardware = lab.open(lab.wait_attached(device.ready)["hardware"])
        hardware.send(action="set_control_value", control_id="local_capture", value=True)
        lab.until(lambda: hardware.said("error", "local_capture"), "the refusal")
        hardware.send(action="set_control_value", control_id="local_capture", value=False)
        lab.until(lambda: read_truth(path, "control"), "stopping is not refused")
    (refusal,) = hardware.said("error", "local_capture")
    assert refusal["error_str"] == text
    assert hardware.controls["local_capture"]["value"] is False
