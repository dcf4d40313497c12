"""Camera images of a Pupil Core, against a Pupil Capture that is made of raw sockets."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec
import pytest

from bridge.config import PupilCoreSource
from bridge.sources import pupil_core, pupil_core_video
from bridge.streams import FRAME_CHANNELS, Frame, StreamKind, VideoLayout
from tests.sources.core_lab import PUPIL_TIME_OFFSET_S, Lab, encode, gaze, impatient, pupil_time
from tests.sources.zre_peer import until

decode = msgspec.msgpack.decode
SET_FORMAT, START_PLUGIN = b"notify.frame_publishing.set_format", b"notify.start_plugin"
ALL = ("gaze", "pupil", "frame.world", "frame.eye.0", "frame.eye.1")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)


def picture(index: int, topic: str = "frame.world", **changes: Any) -> list[bytes]:
    """Gray, 8 by 4."""
    head = {"topic": topic, "width": 8, "height": 4, "index": index, "timestamp": pupil_time(), "format": "gray"}
    data = changes.pop("data", bytes([index % 256]) * 32)
    return [topic.encode(), encode(head | changes), data]


async def ready(lab: Lab) -> None:
    await lab.subscribed()
    await until(lambda: lab.device.clock.locked, "the clock is locked")


def small(**config: Any) -> Lab:
    """A lab that expects the pictures of `picture`."""
    lab = Lab(scene_size=[8, 4], frame_format="gray", **config)
    lab.commands |= {SET_FORMAT, START_PLUGIN}
    return lab


def asked(lab: Lab, topic: bytes) -> list[dict[str, Any]]:
    return [decode(frames[1]) for frames in lab.capture.requests if frames[0] == topic]


async def test_what_is_not_chosen_is_not_subscribed_to_and_has_no_stream() -> None:
    lab = small(topics=["gaze", "frame.eye.1"])
    try:
        await ready(lab)
        assert set(lab.device.streams) == {"gaze", "eye1"}
        for topic in ("frame.world", "frame.eye.0", "frame.eye.1"):
            lab.capture.publish(picture(5, topic))
        await until(lambda: lab.out("eye1").samples, "the picture of the eye")
        assert lab.device.malformed == {}
    finally:
        await lab.end()


async def test_nothing_is_asked_of_capture_when_no_pictures_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pupil_core_video, "PLUGIN_PATIENCE_S", 0.0)
    lab = Lab()
    try:
        await lab.serves()
        assert {b"t"} <= {frames[0] for frames in lab.capture.requests} <= {b"t", b"v", b"SUB_PORT", b"PUB_PORT"}
    finally:
        await lab.end()


async def test_the_streams_say_what_they_are() -> None:
    lab = small(topics=list(ALL), scene={"latency_ms": 5.0, "expected_rate_hz": 30.0}, eyes={"expected_rate_hz": 120.0})
    try:
        streams = {name: stream.descriptor for name, stream in lab.device.streams.items()}
        assert [streams[name].lsl_suffix for name in ("scene", "eye0", "eye1")] == [
            "SceneFrames",
            "Eye0Frames",
            "Eye1Frames",
        ]
        for camera in ("scene", "eye0", "eye1"):
            stream = streams[camera]
            assert (stream.kind, stream.lsl_type, stream.channels) == (StreamKind.VIDEO, "VideoFrames", FRAME_CHANNELS)
            assert stream.layout == VideoLayout(camera)
        assert (streams["scene"].latency_ns, streams["scene"].expected_rate_hz) == (5_000_000, 30.0)
        assert (streams["eye0"].latency_ns, streams["eye0"].expected_rate_hz) == (0, 120.0)
    finally:
        await lab.end()


async def test_every_picture_arrives_untouched_at_the_right_time() -> None:
    lab = small(topics=list(ALL))
    try:
        await ready(lab)
        cameras = {"frame.world": "scene", "frame.eye.0": "eye0", "frame.eye.1": "eye1"}
        for index in range(100):
            for topic, camera in cameras.items():
                lab.capture.publish(picture(index, topic))
                await until(lambda c=camera, n=index: len(lab.out(c).samples) > n, f"picture {index} of {camera}")
        for camera in cameras.values():
            out = lab.out(camera)
            assert out.payloads == [Frame("gray", 8, 4, index, bytes([index]) * 32) for index in range(100)]
            for sample, host_ns in zip(out.samples, out.host_ns, strict=True):
                assert abs(host_ns - (sample.device_ns - PUPIL_TIME_OFFSET_S * 1e9)) < 5_000_000
        assert lab.device.malformed == {}
        assert lab.counts == {}
        assert asked(lab, SET_FORMAT) == asked(lab, START_PLUGIN) == [], "they come, as they are wanted"
    finally:
        await lab.end()


async def test_pictures_that_lie_are_counted_and_all_good_ones_arrive() -> None:
    lab = small(topics=["frame.world"])
    try:
        await ready(lab)
        bad = [
            picture(1, data=b""),
            picture(1, data=bytes(31)),
            picture(1, data=bytes(33)),
            picture(1, data=bytes(3_000_000)),
            picture(1, width=0),
            picture(1, width=2**31, height=2**31),
            picture(1, format="png"),
            picture(1, format="jpeg"),
            picture(-1, data=bytes(32)),
            picture(1, timestamp=float("nan")),
            picture(1)[:2],
            picture(1)[:1],
            [*picture(1), b"more"],
            [b"frame.world", b"\xc1", bytes(32)],
            [b"frame.world", b"\x81" * 100_000, bytes(32)],
        ]
        for number, frames in enumerate(bad):
            lab.capture.publish(frames)
            lab.capture.publish([b"frame.world.x", *frames[1:]])
            lab.capture.publish(picture(number))
            await until(lambda n=number: len(lab.out("scene").samples) == n + 1, f"picture {number}")
        assert lab.device.malformed == {"frames_malformed": len(bad), "topics_unknown": len(bad)}
    finally:
        await lab.end()


async def test_old_pictures_give_way_to_new_ones_and_gaze_is_complete() -> None:
    """The loop was busy while hundreds of pictures came."""
    lab = small(topics=["gaze", "frame.world", "frame.eye.0"])
    try:
        await ready(lab)
        for index in range(400):
            lab.capture.publish(picture(index))
            lab.capture.publish(picture(index, "frame.eye.0"))
            lab.capture.publish(gaze(index))
        time.sleep(0.3)  # the loop is busy, and all of it waits in libzmq
        await until(lambda: len(lab.out("gaze").samples) == 400, "all gaze")
        for camera in ("scene", "eye0"):
            out, stream = lab.out(camera), lab.device.streams[camera]
            await until(lambda o=out: o.payloads and o.payloads[-1].index == 399, f"the latest of {camera}")
            dropped = stream.dropped["superseded"]
            assert dropped > 200
            assert dropped + stream.samples_in == 400
            indexes = [frame.index for frame in out.payloads]
            assert indexes == sorted(indexes)
        assert lab.device.streams["gaze"].all_drops() == {}
    finally:
        await lab.end()


async def test_a_capture_that_sends_another_format_is_asked_once_for_the_wanted_one() -> None:
    lab = small(topics=["frame.world"])
    try:
        await ready(lab)
        for index in range(20):
            lab.capture.publish(picture(index, format="bgr", data=bytes(96)))
            await until(lambda n=index: len(lab.out("scene").samples) == n + 1, "it is read all the same")
        await until(lambda: asked(lab, SET_FORMAT), "the format was asked for")
        requests = len(lab.capture.requests)
        await until(lambda: len(lab.capture.requests) > requests + 20, "more requests")
        assert [fields["format"] for fields in asked(lab, SET_FORMAT)] == ["gray"]
        assert asked(lab, START_PLUGIN) == []
    finally:
        await lab.end()


async def test_a_capture_without_that_plugin_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write an error into its log."""
    monkeypatch.setattr(pupil_core_video, "PLUGIN_PATIENCE_S", 0.05)
    lab = small(topics=["frame.world"])
    try:
        await until(lambda: lab.device.clock.locked, "the clock is locked")
        requests = len(lab.capture.requests)
        await until(lambda: len(lab.capture.requests) > requests + 40, "more requests")
        assert asked(lab, START_PLUGIN) == []
    finally:
        await lab.end()


async def test_an_old_capture_that_sends_nothing_has_its_plugin_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pupil_core_video, "PLUGIN_PATIENCE_S", 0.1)
    lab = small(topics=["frame.world"])
    lab.capture.says = lambda request: [picture(0)] if request[0] == START_PLUGIN else []
    properly = lab.capture.answer
    lab.capture.answer = lambda request: [[b"2.0.182"]] if request == b"v" else properly(request)
    try:
        await until(lambda: lab.device.streams["scene"].samples_in, "a picture")
        assert [fields["name"] for fields in asked(lab, START_PLUGIN)] == ["Frame_Publisher"]
        requests = len(lab.capture.requests)
        await until(lambda: len(lab.capture.requests) > requests + 20, "more requests")
        assert len(asked(lab, START_PLUGIN)) == 1
        assert asked(lab, SET_FORMAT) == [], "they come as they are wanted"
    finally:
        await lab.end()


async def test_cameras_that_stay_dark_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pupil_core_video, "PLUGIN_PATIENCE_S", 0.0)
    lab = small(topics=list(ALL))
    try:
        await ready(lab)
        lab.capture.publish(picture(0))
        await until(lambda: len(lab.out("scene").samples) == 1, "the scene is not dark")
        monkeypatch.setattr(pupil_core_video, "PATIENCE_S", 0.3)
        await until(lambda: "no pictures come" in caplog.text, "it was said")
        requests = len(lab.capture.requests)
        await until(lambda: len(lab.capture.requests) > requests + 20, "more requests")
        said = [record.getMessage() for record in caplog.records if "no pictures come" in record.getMessage()]
        assert said == ["core: no pictures come of eye0, eye1: are these cameras on, and can they be sent as gray?"]
        await lab.serves()
    finally:
        await lab.end()


async def test_a_scene_of_another_size_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    lab = small(topics=["frame.world", "frame.eye.0"])
    try:
        await ready(lab)
        for index in range(5):
            lab.capture.publish(picture(index, width=4, height=8) if index else picture(index, width=2, height=16))
            lab.capture.publish(picture(index, "frame.eye.0", width=4, height=8))
            await until(lambda n=index: len(lab.out("scene").samples) == n + 1, "it is read all the same")
        assert lab.counts == {"scene_size_differs": 5}
        said = [record.getMessage() for record in caplog.records if "scene_size" in record.getMessage()]
        assert said == [
            "core: the scene camera's pictures are 2 x 16, but scene_size is 8 x 4: gaze in pixels is wrong"
        ]
    finally:
        await lab.end()


async def test_pictures_alone_keep_a_source_alive_when_pupil_remote_has_died() -> None:
    lab = small(topics=["frame.world"])
    try:
        await ready(lab)
        lab.capture.answer = lambda _: []
        asked_before, index = len(lab.capture.requests), 0
        while len(lab.capture.requests) < asked_before + 8:
            lab.capture.publish(picture(index))
            index += 1
            await asyncio.sleep(0.01)
        assert lab.device.connected
    finally:
        await lab.end()


async def test_one_picture_that_is_too_large_does_not_end_the_subscription() -> None:
    lab = small(topics=["frame.world"])
    try:
        await ready(lab)
        left = lab.capture.unsubscribed
        lab.capture.publish([b"frame.world", b"", bytes(pupil_core_video.MAX_MESSAGE_BYTES + 1)])
        await until(lambda: lab.capture.unsubscribed > left, "the connection is given up")
        await lab.subscribed()
        lab.capture.publish(picture(7))
        await until(lambda: lab.out("scene").samples, "a picture")
    finally:
        await lab.end()


@pytest.mark.parametrize("name", ["png", "", "JPEG"])
def test_a_format_that_is_not_asked_for_cannot_be_configured(name: str) -> None:
    with pytest.raises(ValueError, match="frame_format"):
        PupilCoreSource.model_validate({"type": "pupil_core", "frame_format": name})


def test_the_source_is_found_where_others_look_for_it() -> None:
    assert pupil_core.PupilRemote.__module__ == "bridge.sources.pupil_remote"
