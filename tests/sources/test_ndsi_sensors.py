"""The NDSI source's IMU and cameras, chosen by the configuration, against phones that are made of raw sockets."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bridge.config import parse
from bridge.errors import ConfigError
from bridge.sources import ndsi_camera, ndsi_phone
from bridge.streams import FRAME_CHANNELS, Frame, GazeLayout, ImuLayout, StreamKind, VideoLayout
from bridge.wire.ndsi_media import FRAME_MAX_BYTES
from tests.sources.lab import DEVICE_OFFSET_NS, RawPhone, RawSensor, device_time
from tests.sources.test_ndsi_source import Lab
from tests.sources.zre_peer import until
from tests.wire.test_ndsi_media import H264, JPEG

ALL = ["gaze", "event", "imu", "scene", "eyes"]


def device(*sensors: str, **tables: Any) -> dict[str, Any]:
    return {"name": "companion", "match": "Raw", "sensors": list(sensors), **tables}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(tmp_path, device(*ALL))
    yield made
    await made.end()


def video_frames(device_ns: int, index: int, data: bytes = JPEG, code: int = 0x10) -> list[bytes]:
    return [struct.pack("<LLLLQLL", code, 1088, 1080, index, device_ns, len(data), 0), data]


def imu_frames(samples: list[tuple[int, tuple[float, ...]]]) -> list[bytes]:
    body = b"".join(struct.pack("<Qffffff", stamp_ns, *values) for stamp_ns, values in samples)
    return [struct.pack("<LLLLL", 0, 6, 0, len(body), 0), body]


async def add(phone: RawPhone, kind: str, name: str) -> RawSensor:
    """One more sensor of the phone, which streams when this returns."""
    made = phone.sensor(kind, name)
    phone.whisper(made.attach())
    await until(lambda: made.streaming and made.subscribed["data"] == 1, f"{name} streams")
    return made


# --- what is chosen ---------------------------------------------------------------------------------------------------


def choose(text: str) -> Any:
    """The device of a configuration with this setting."""
    whole = f'[[source]]\ntype = "ndsi"\n[[source.device]]\nname = "a"\n{text}\n[[sink]]\ntype = "lsl"\n'
    return parse(whole, "x").sources[0].devices[0]  # type: ignore[union-attr]


def test_gaze_events_and_imu_are_chosen_where_nothing_is_said() -> None:
    assert choose("").sensors == ("gaze", "event", "imu")
    assert choose('sensors = ["scene", "event"]').sensors == ("scene", "event")


@pytest.mark.parametrize(
    ("sensors", "says"),
    [
        ('["gaze"]', 'needs "event" among them: through it the device answers what time it is'),
        ("[]", 'needs "event"'),
        ('["event", "gaze", "event"]', "twice"),
        ('["event", "world"]', "'world'"),
        ('"event"', "sensors"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_with_its_reason(sensors: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose(f"sensors = {sensors}")
    assert "source[0].device[0].sensors" in str(refused.value)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("sensors", "streams"),
    [
        (["gaze", "event", "imu"], ["gaze", "event", "imu"]),
        (["event"], ["event"]),
        (["imu", "event", "scene"], ["event", "imu", "scene"]),
        (["eyes", "gaze", "event"], ["gaze", "event", "eye0", "eye1"]),
        (ALL, ["gaze", "event", "imu", "scene", "eye0", "eye1"]),
    ],
)
async def test_streams_are_declared_for_what_is_chosen_and_for_nothing_else(
    tmp_path: Path, sensors: list[str], streams: list[str]
) -> None:
    lab = Lab(tmp_path, device(*sensors))
    try:
        assert list(lab.device().streams) == streams
    finally:
        await lab.end()


async def test_sensors_that_are_not_chosen_are_not_connected_to(tmp_path: Path) -> None:
    lab = Lab(tmp_path, device("event"))
    try:
        phone = lab.phone()
        others = [phone.gaze, phone.sensor("imu", "IMU"), phone.sensor("video", "PI world v1")]
        await phone.meet()
        for sensor in (*others, phone.event):
            phone.whisper(sensor.attach())
        phone.whisper(phone.hardware.attach(data_endpoint=None))
        await lab.locked()
        await until(lambda: phone.hardware.subscribed["notify"] == 1, "the hardware is listened to")
        assert [sensor.seen for sensor in others] == [{}, {}, {}]
        assert [sensor.commands for sensor in others] == [[], [], []]
    finally:
        await lab.end()


async def test_streams_say_what_they_carry_in_which_units(tmp_path: Path) -> None:
    tables = {"imu": {"expected_rate_hz": 200.0}, "scene": {"latency_ms": 20.0}, "eyes": {"expected_rate_hz": 120.0}}
    lab = Lab(tmp_path, device(*ALL, **tables))
    try:
        streams = {name: stream.descriptor for name, stream in lab.device().streams.items()}
    finally:
        await lab.end()
    imu = streams["imu"]
    assert (imu.kind, imu.lsl_suffix, imu.lsl_type, imu.layout) == (StreamKind.IMU, "IMU", "IMU", ImuLayout(0, 3))
    assert [(channel.label, channel.unit) for channel in imu.channels] == [
        ("accel_x", "g"),
        ("accel_y", "g"),
        ("accel_z", "g"),
        ("gyro_x", "deg/s"),
        ("gyro_y", "deg/s"),
        ("gyro_z", "deg/s"),
    ]
    assert imu.expected_rate_hz == 200
    for name, suffix in (("scene", "SceneFrames"), ("eye0", "Eye0Frames"), ("eye1", "Eye1Frames")):
        stream = streams[name]
        assert (stream.kind, stream.lsl_suffix, stream.lsl_type) == (StreamKind.VIDEO, suffix, "VideoFrames")
        assert stream.channels == FRAME_CHANNELS
        assert isinstance(stream.layout, VideoLayout)
        assert stream.layout.camera == name
        assert not stream.arrivals_bound_clock
    assert streams["scene"].latency_ns == 20_000_000
    assert streams["eye0"].expected_rate_hz == streams["eye1"].expected_rate_hz == 120
    assert not imu.arrivals_bound_clock


@pytest.mark.parametrize(("setting", "known"), [("auto", True), ("none", False)])
async def test_gaze_and_scene_know_the_scene_cameras_intrinsics(tmp_path: Path, setting: str, known: bool) -> None:
    lab = Lab(tmp_path, device(*ALL, intrinsics=setting))
    try:
        layouts = {name: stream.descriptor.layout for name, stream in lab.device().streams.items()}
    finally:
        await lab.end()
    for name in ("gaze", "scene", "eye0", "eye1"):
        layout = layouts[name]
        assert isinstance(layout, GazeLayout | VideoLayout)
        if not known or name.startswith("eye"):
            assert layout.intrinsics is None
        else:
            assert layout.intrinsics is not None
            assert (layout.intrinsics.width_px, layout.intrinsics.height_px) == (1088, 1080)


async def test_the_imu_bounds_the_clock_where_there_is_no_gaze(tmp_path: Path) -> None:
    lab = Lab(tmp_path, device("event", "imu"))
    try:
        assert lab.device().streams["imu"].descriptor.arrivals_bound_clock
    finally:
        await lab.end()


# --- the IMU ----------------------------------------------------------------------------------------------------------


async def test_each_sample_of_a_batch_leaves_with_its_own_stamp(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    imu = await add(phone, "imu", "IMU")
    await lab.locked()
    sent: list[tuple[int, tuple[float, ...]]] = []
    for number in range(10):
        begin_ns = device_time() - 50_000_000
        batch = [(begin_ns + 5_000_000 * n, (number / 4, n / 8, 0.5, -1.0, 90.0, -0.25)) for n in range(10)]
        imu.send(imu_frames(batch))
        sent += batch
        await asyncio.sleep(0.05)  # as a phone does: a batch begins after the one before
    out = lab.out("imu")
    await until(lambda: len(out.samples) == len(sent), "all samples")
    assert [(sample.device_ns, sample.payload) for sample in out.samples] == sent
    for sample, host_ns in zip(out.samples, out.host_ns, strict=True):
        assert abs(host_ns - (sample.device_ns - DEVICE_OFFSET_NS)) < 5_000_000
    assert lab.device().streams["imu"].all_drops() == {}
    await lab.serves(phone)


async def test_malformed_batches_and_frames_are_counted_and_all_good_ones_arrive(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    imu, scene = await add(phone, "imu", "IMU"), await add(phone, "video", "PI world v1")
    await lab.locked()
    good = video_frames(device_time(), 0)
    bad_video = [
        [],
        [good[0]],
        [good[0][:-1], good[1]],
        [good[0], good[1][:-1]],
        [good[0], good[1] + b"\0"],
        video_frames(device_time(), 0, JPEG[:-2]),
        video_frames(device_time(), 0, b"\0" + JPEG),
        video_frames(device_time(), 0, b""),
        video_frames(device_time(), 0, JPEG, 0x12),
        video_frames(device_time(), 0, JPEG[:-2] + bytes(FRAME_MAX_BYTES) + JPEG[-2:]),
    ]
    bad_imu = [[], [b"", b""], imu_frames([]), imu_frames([(device_time(), (float("nan"),) * 6)])]
    for number in range(5):
        for frames in bad_video:
            scene.send(frames)
        for code in (0x01, 0x13):
            scene.send(video_frames(device_time(), 0, JPEG, code))
        for frames in bad_imu:
            imu.send(frames)
        scene.send(video_frames(device_time(), number))
        imu.send(imu_frames([(device_time(), (float(number),) * 6)]))
        await until(lambda n=number: len(lab.out("scene").samples) == n + 1, "the good frame")
    await until(lambda: len(lab.out("imu").samples) == 5, "the good samples")
    counted = lab.device().malformed
    assert counted["video"] == 5 * len(bad_video)
    assert counted["video_format"] == 10
    assert counted["imu"] == 5 * len(bad_imu)
    assert [payload.index for payload in lab.out("scene").payloads] == list(range(5))
    await lab.serves(phone)


# --- cameras ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "camera"),
    [("PI world v1", "scene"), ("PI right v1", "eye0"), ("PI left v1", "eye1"), ("World H264", "scene")],
)
async def test_a_camera_is_known_by_its_name_and_its_frames_pass_untouched(lab: Lab, name: str, camera: str) -> None:
    phone = lab.phone()
    await phone.attached()
    sensor = await add(phone, "video", name)
    await lab.locked()
    stamps = []
    for index in range(5):
        stamps.append(device_time())
        sensor.send(video_frames(stamps[-1], index, *((JPEG, 0x10) if index % 2 else (H264, 0x12))))
        await until(lambda n=index: len(lab.out(camera).samples) == n + 1, "the frame")
    out = lab.out(camera)
    assert [sample.device_ns for sample in out.samples] == stamps
    assert out.payloads[1] == Frame("jpeg", 4, 3, 1, JPEG)
    assert out.payloads[2] == Frame("h264", 1088, 1080, 2, H264)
    for sample, host_ns in zip(out.samples, out.host_ns, strict=True):
        assert abs(host_ns - (sample.device_ns - DEVICE_OFFSET_NS)) < 5_000_000
        assert host_ns <= sample.received_ns


async def test_a_camera_of_another_name_is_not_used(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    strange = phone.sensor("video", "Selfie")
    phone.whisper(strange.attach())
    await lab.serves(phone)
    assert strange.seen == {}


async def test_a_second_camera_for_the_same_view_is_counted_and_not_mixed_in(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    first, second = await add(phone, "video", "PI world v1"), phone.sensor("video", "PI world v2")
    phone.whisper(second.attach())
    await until(lambda: lab.device().malformed["camera_twice"] == 1, "it is counted")
    assert second.seen == {}
    phone.whisper(first.detach())
    phone.whisper(second.attach())
    await until(lambda: second.streaming and second.subscribed["data"] == 1, "it has taken the first one's place")
    await lab.locked()
    second.send(video_frames(device_time(), 3))
    await until(lambda: [payload.index for payload in lab.out("scene").payloads] == [3], "its frame")


async def test_of_frames_that_waited_for_the_loop_the_latest_win_and_the_others_are_counted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndsi_camera, "MAX_WAITING", 3)
    phone = lab.phone()
    await phone.attached()
    scene = await add(phone, "video", "PI world v1")
    await lab.locked()
    stream, out = lab.device().streams["scene"], lab.out("scene")
    sent = 0
    while not stream.dropped["latest_wins"]:  # it depends on libzmq's thread how many are there at once
        assert sent < 10_000
        for _ in range(20):
            scene.send(video_frames(device_time(), sent))
            sent += 1
        await until(lambda n=sent: stream.samples_in == n, "all have come")
    assert out.payloads[-1].index == sent - 1
    assert len(out.samples) + stream.dropped["latest_wins"] == sent
    indexes = [payload.index for payload in out.payloads]
    assert indexes == sorted(set(indexes))
    # H.264 without a frame is of no use up to the next key frame.
    before, taken = stream.dropped["latest_wins"], len(out.samples)
    for number in range(6):
        scene.send(video_frames(device_time(), sent + number, H264, 0x12))
    await until(lambda: len(out.samples) == taken + 6, "all of H.264")
    assert stream.dropped["latest_wins"] == before


async def test_a_phone_with_every_sensor_and_too_many_more_is_bounded(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    for name in ("world", "left", "right"):
        await add(phone, "video", f"PI {name} v1")
    await add(phone, "imu", "IMU")
    files = len(os.listdir("/proc/self/fd"))
    for number in range(40):
        phone.whisper(phone.gaze.attach(sensor_uuid=f"{number:032d}", sensor_name=f"gaze {number}"))
    most = ndsi_phone.MAX_SENSORS_PER_PEER + 3
    await until(lambda: lab.device().malformed["too_many_sensors"] == 40 - (most - 7), "the others are counted")
    assert len(os.listdir("/proc/self/fd")) - files <= (most - 7) * 3 * 3 + 10
    for number in range(40):
        phone.whisper(phone.gaze.detach().replace(phone.gaze.uuid.encode(), b"%032d" % number))
    await lab.serves(phone)


async def test_a_frame_without_an_end_ends_the_cameras_connection_and_nothing_else(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    scene = await add(phone, "video", "PI world v1")
    scene.send(video_frames(device_time(), 0, random.randbytes(FRAME_MAX_BYTES + (2 << 20))))
    await until(lambda: scene.subscribed["data"] == 0, "it is given up")
    await lab.serves(phone)
    assert lab.out("scene").samples == []
