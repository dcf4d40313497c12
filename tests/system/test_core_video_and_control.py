"""Images and control of a Pupil Core: the daemon beside a simulated Pupil Capture, and what that knows to be true."""

from __future__ import annotations

import asyncio
import random
import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from bridge.config import ClockConfig, PupilCoreSource
from bridge.errors import BridgeError
from bridge.pipeline import Pipeline
from bridge.sources.pupil_core import PupilCoreDeviceSource
from tests.sources.lab import RecordingSink
from tests.sources.zre_peer import until
from tests.system.harness import Bridge, bridge, free_port, lab_recorder, simulator, truth, wait_for_streams, wait_until
from tests.system.recording import goes_backwards, load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

NAME = f"core_{random.randrange(10**9)}"  # see test_restart.py
PREFIX = f"pupil_labs_{NAME}"
CAMERAS = {"SceneFrames": "frame.world", "Eye0Frames": "frame.eye.0", "Eye1Frames": "frame.eye.1"}
TOPICS = ["gaze", "pupil", *CAMERAS.values()]
FRAMES = 150
ANNOTATION_NS = 1_000_000


def config(port: str, *topics: str, extra: str = "") -> str:
    return (
        f'[[source]]\ntype = "pupil_core"\naddress = "127.0.0.1:{port}"\nname = "{NAME}"\n'
        f'topics = {list(topics or TOPICS)}\n{extra}\n[[sink]]\ntype = "lsl"\n'
    )


def any_port() -> str:
    return str(free_port(socket.SOCK_STREAM))


def remote(port: str, *frames: bytes, patience_ms: int = 5000) -> bytes | None:
    """What another program asks of Pupil Remote; None when it does not answer."""
    with zmq.Context() as context, context.socket(zmq.REQ) as requester:
        requester.setsockopt(zmq.LINGER, 0)
        requester.connect(f"tcp://127.0.0.1:{port}")
        requester.send_multipart(frames)
        return requester.recv() if requester.poll(patience_ms) else None


def samples(daemon: Bridge, stream: str) -> int:
    return int(daemon.stream(NAME, stream).get("samples_in", 0))


def wait_samples(daemon: Bridge, count: int, *streams: str) -> None:
    """Until so many more have come of each stream."""
    for stream, wanted in [(stream, samples(daemon, stream) + count) for stream in streams]:
        wait_until(
            lambda s=stream, w=wanted: samples(daemon, s) >= w, f"{count} of {stream}; {daemon.process.errors()}"
        )


# --- images ----------------------------------------------------------------------------------------------------------


def test_every_frame_in_a_recording_is_one_of_the_simulators_and_within_its_bound(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    port, path, xdf = any_port(), tmp_path / "truth.jsonl", tmp_path / "video.xdf"
    names = [*(f"{PREFIX}_{suffix}" for suffix in CAMERAS), f"{PREFIX}_Sync"]
    with (
        simulator("core", tmp_path, "--port", port, "--truth", str(path), "--drift-ppm", "30", "--jitter-ms", "0.1"),
        bridge(tmp_path, config(port)) as daemon,
    ):
        daemon.wait_locked(NAME)
        wait_for_streams(*names)
        with lab_recorder(tmp_path, xdf, *(f"name='{name}'" for name in names)):
            wait_samples(daemon, FRAMES, "scene", "eye0", "eye1")
            device = daemon.device(NAME)
        assert daemon.process.complaints() == []
        assert daemon.process.stop() == 0
    assert device["malformed"] == {}
    recording = load(xdf, synchronize_clocks=False)
    sync = recording[names[-1]]
    for suffix, topic in CAMERAS.items():
        recorded = recording[f"{PREFIX}_{suffix}"]
        rows = {row["payload"][0]: row for row in truth(path, topic)}
        indexes = recorded.column("frame_index").tolist()
        assert len(indexes) >= FRAMES - 30
        assert indexes == sorted(set(indexes)), "none is there twice, and all are in order"
        true = [rows[index] for index in indexes]
        device_ns = np.array([row["device_ns"] for row in true])
        assert np.abs(recorded.column("device_time") * 1e9 - device_ns).max() < 2000
        errors_s = np.abs(recorded.stamps_s - np.array([row["host_ns"] for row in true]) * 1e-9)
        after = np.clip(np.searchsorted(sync.stamps_s, recorded.stamps_s), 1, len(sync.stamps_s) - 1)
        bounds = sync.column("bound")
        bounds_s = np.maximum(bounds[after - 1], bounds[after])
        figures = f"{len(true)} frames, worst {errors_s.max() * 1e3:.3f} ms, bound {np.median(bounds_s) * 1e3:.3f} ms"
        print(f"\n{topic}: {figures}")
        record_property(topic, figures)
        assert (errors_s <= bounds_s).all()
        assert goes_backwards(recorded) == []
        (stream,) = (each for each in device["streams"] if each["lsl_name"] == f"{PREFIX}_{suffix}")
        lost = indexes[-1] - indexes[0] + 1 - len(indexes)
        assert lost <= sum(stream["dropped"].values()), "what is missing was counted"


async def test_no_byte_of_an_image_is_touched(tmp_path: Path) -> None:
    port, path, sink = any_port(), tmp_path / "truth.jsonl", RecordingSink()
    cameras = {"scene": "frame.world", "eye0": "frame.eye.0", "eye1": "frame.eye.1"}
    with simulator("core", tmp_path, "--port", port, "--truth", str(path), "--frame-rate", "60"):
        pipeline = Pipeline([sink])  # type: ignore[list-item]
        given = {"type": "pupil_core", "name": NAME, "address": f"127.0.0.1:{port}", "topics": TOPICS}
        source = PupilCoreDeviceSource(PupilCoreSource.model_validate(given), ClockConfig())
        source.open(pipeline)
        running = asyncio.create_task(source.run())
        try:
            outs = {camera: sink.streams[NAME, camera] for camera in cameras}
            await until(lambda: all(len(out.samples) >= 120 for out in outs.values()), "120 images of each camera")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            pipeline.close()
    for camera, topic in cameras.items():
        rows = {row["payload"][0]: row for row in truth(path, topic)}
        for sample in outs[camera].samples:
            row, frame = rows[sample.payload.index], sample.payload
            assert (frame.format, zlib.crc32(frame.data)) == ("jpeg", row["payload"][1])
            assert sample.device_ns == row["device_ns"]
    assert pipeline.devices[NAME].malformed == {}


def test_images_come_in_the_configured_format_and_another_scene_size_is_said(tmp_path: Path) -> None:
    port = any_port()
    extra = 'frame_format = "gray"\nscene_size = [1920, 1080]'
    with (
        simulator("core", tmp_path, "--port", port),
        bridge(tmp_path, config(port, "frame.world", extra=extra)) as daemon,
    ):
        wait_samples(daemon, 30, "scene")
        (source,) = daemon.status()["sources"]
        assert source["counts"]["scene_size_differs"] >= 30
        told = [line for line in daemon.process.complaints() if "scene_size" in line]
        assert len(told) == 1
        assert "1280 x 720, but scene_size is 1920 x 1080" in told[0]
        # The simulator says on its backbone what it has set.
        with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.setsockopt(zmq.RCVTIMEO, 10_000)
            subscriber.subscribe(b"frame.world")
            sub_port = remote(port, b"SUB_PORT")
            assert sub_port is not None
            subscriber.connect(f"tcp://127.0.0.1:{sub_port.decode()}")
            assert msgspec.msgpack.decode(subscriber.recv_multipart()[1])["format"] == "gray"


def test_a_capture_that_somebodys_unknown_format_has_ended_is_found_again(tmp_path: Path) -> None:
    port = any_port()
    with bridge(tmp_path, config(port)) as daemon:
        with simulator("core", tmp_path, "--port", port, name="first") as (first, _):
            wait_samples(daemon, 10, "scene", "gaze")
            payload = msgspec.msgpack.encode({"subject": "frame_publishing.set_format", "format": "png"})
            assert remote(port, b"notify.frame_publishing.set_format", payload) is not None
            assert first.popen.wait(10) == 1
            assert "'png' is not a valid FrameFormat" in first.errors()
            wait_until(lambda: not daemon.device(NAME)["connected"], "it is gone")
        with simulator("core", tmp_path, "--port", port, name="second"):
            wait_samples(daemon, 10, "scene", "eye1", "gaze")
            assert daemon.device(NAME)["connected"]


def test_an_old_capture_is_asked_for_its_images(tmp_path: Path) -> None:
    port = any_port()
    with (
        simulator("core", tmp_path, "--port", port, "--frames-by-plugin"),
        bridge(tmp_path, config(port, "frame.eye.0")) as daemon,
    ):
        wait_samples(daemon, 10, "eye0")


def test_a_capture_without_images_is_said_and_gaze_goes_on(tmp_path: Path) -> None:
    port = any_port()
    with (
        simulator("core", tmp_path, "--port", port, "--frame-rate", "0") as (capture, _),
        bridge(tmp_path, config(port)) as daemon,
    ):
        wait_until(lambda: "no pictures come of eye0, eye1, scene" in daemon.process.errors(), "it was said")
        wait_samples(daemon, 100, "gaze")
        assert capture.popen.poll() is None


# --- control ---------------------------------------------------------------------------------------------------------


def test_a_recording_with_annotations_and_a_calibration_by_the_control_socket(tmp_path: Path) -> None:
    port, path = any_port(), tmp_path / "truth.jsonl"
    options = ("--port", port, "--truth", str(path), "--drift-ppm", "50", "--delay-ms", "0.2")
    with simulator("core", tmp_path, *options), bridge(tmp_path, config(port, "gaze")) as daemon:
        daemon.wait_locked(NAME)

        def answer(command: str, **arguments: Any) -> str:
            return str(daemon.ask(command, device=NAME, **arguments)["done"][NAME])

        assert daemon.device(NAME)["recording"] is None
        assert answer("record", action="start", session="trial 7") == "records to /recordings/trial 7/000/"
        assert daemon.device(NAME)["recording"] is True
        moments: dict[str, tuple[int, int]] = {}
        for number in range(5):
            given_s = time.monotonic() - 0.5 * number
            assert "Pupil time" in answer("annotate", text=f"given {number}", host_s=given_s)
            moments[f"given {number}"] = (round(given_s * 1e9), round(given_s * 1e9))
            before_ns = time.monotonic_ns()
            assert "Pupil time" in answer("event", text=f"now {number}")
            moments[f"now {number}"] = (before_ns, time.monotonic_ns())
        assert answer("record", action="stop") == "has recorded to /recordings/trial 7/000/"
        assert daemon.device(NAME)["recording"] is False
        assert answer("calibrate", action="start") == "calibrates"
        assert answer("calibrate", action="stop") == "is calibrated"
        assert daemon.process.complaints() == []

    assert [row["payload"] for row in truth(path, "recording")] == [
        "started /recordings/trial 7/000/",
        "stopped /recordings/trial 7/000/",
    ]
    assert [row["payload"] for row in truth(path, "calibration")] == ["started", "successful"]
    rows = {row["payload"]: row for row in truth(path, "annotation")}
    assert rows.keys() == moments.keys()
    assert len(truth(path, "annotation")) == len(moments), "each is there once"
    errors_ms = []
    for text, (earliest_ns, latest_ns) in moments.items():
        assert rows[text]["sent"], "the recording has it"
        host_ns = rows[text]["host_ns"]
        assert earliest_ns - ANNOTATION_NS <= host_ns <= latest_ns + ANNOTATION_NS
        if earliest_ns == latest_ns:
            errors_ms.append(round((host_ns - earliest_ns) / 1e6, 4))
    print(f"\nannotations at a given time are wrong by {errors_ms} ms")


def test_what_somebody_else_records_is_in_the_status(tmp_path: Path) -> None:
    port = any_port()
    with simulator("core", tmp_path, "--port", port), bridge(tmp_path, config(port, "pupil")) as daemon:
        wait_samples(daemon, 10, "pupil_0_3d")
        for command, recording in ((b"R", True), (b"r", False)):
            assert remote(port, command) == b"OK"
            wait_until(lambda r=recording: daemon.device(NAME)["recording"] is r, f"recording is {recording}")


def test_a_calibration_that_fails_and_a_plugin_that_is_missing_are_refused_with_the_reason(tmp_path: Path) -> None:
    port = any_port()
    options = ("--calibration-error", "Not sufficient pupil data available.", "--missing-plugins", "Annotation_Capture")
    with simulator("core", tmp_path, "--port", port, *options), bridge(tmp_path, config(port, "gaze")) as daemon:
        daemon.wait_locked(NAME)
        daemon.ask("calibrate", action="start", device=NAME)
        with pytest.raises(BridgeError, match=r"has failed: Not sufficient pupil data available\."):
            daemon.ask("calibrate", action="stop", device=NAME)
        with pytest.raises(BridgeError, match="plugin Annotation_Capture does not run"):
            daemon.ask("annotate", text="go", device=NAME)
        with pytest.raises(BridgeError, match="session name"):
            daemon.ask("record", action="start", session="../../etc", device=NAME)
        with pytest.raises(BridgeError, match="may not have been recording"):
            daemon.ask("record", action="stop", device=NAME)


def test_when_pupil_remote_has_died_control_is_refused_and_all_data_go_on(tmp_path: Path) -> None:
    port = any_port()
    with simulator("core", tmp_path, "--port", port), bridge(tmp_path, config(port)) as daemon:
        daemon.wait_locked(NAME)
        wait_samples(daemon, 10, "scene", "gaze")
        assert remote(port, b"", patience_ms=300) is None, "somebody's empty request has killed it"
        for command, arguments in (
            ("record", {"action": "start"}),
            ("calibrate", {"action": "start"}),
            ("annotate", {"text": "go"}),
        ):
            with pytest.raises(BridgeError, match="does not answer"):
                daemon.ask(command, device=NAME, **arguments)
        wait_samples(daemon, 60, "scene", "gaze", "pupil_1_2d")
        assert daemon.device(NAME)["connected"]
