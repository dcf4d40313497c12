"""What the simulated Pupil Capture does with images, plugins, annotations and calibrations: as its peers see it."""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tests.simulators.test_core import DEADLINE_S, Core, Received, collect, notify, receive, receive_until, start

__all__ = ["start"]  # the fixture

encode = msgspec.msgpack.encode
SIZES = {"frame.world": (1280, 720), "frame.eye.0": (192, 192), "frame.eye.1": (192, 192)}


def disc(message: Received) -> tuple[float, float]:
    """The centre of gravity of what is not the ground, in pixels: by another program's JPEG decoder."""
    images, np = pytest.importorskip("PIL.Image"), pytest.importorskip("numpy")
    with images.open(io.BytesIO(message.frames[2])) as image:
        grey = np.asarray(image.convert("L")).astype(float)
    weight = np.abs(grey - grey[0, 0])
    weight[weight < 3] = 0
    x = (weight.sum(0) * (np.arange(weight.shape[1]) + 0.5)).sum() / weight.sum()
    y = (weight.sum(1) * (np.arange(weight.shape[0]) + 0.5)).sum() / weight.sum()
    return float(x), float(y)


def test_images_of_all_cameras_come_at_their_rate_and_are_in_the_truth(start: Callable[..., Core]) -> None:
    core = start("--frame-rate", "25")
    messages = collect(core.subscriber(b"frame."), 2.0)
    truth = core.truth()
    for topic, size in SIZES.items():
        received = [message for message in messages if message.topic == topic]
        assert 40 < len(received) < 60
        rows = {row["payload"][0]: row for row in truth if row["stream"] == topic}
        for message in received:
            row, fields = rows[message.payload["index"]], message.payload
            assert (fields["width"], fields["height"], fields["format"], fields["topic"]) == (*size, "jpeg", topic)
            assert round(fields["timestamp"] * 1e9) == row["device_ns"] == row["host_ns"] + 1000 * 10**9
            assert zlib.crc32(message.frames[2]) == row["payload"][1]
            assert message.at_ns > row["host_ns"]
        assert all(b.payload["index"] == a.payload["index"] + 1 for a, b in pairwise(received))
        assert received[-1].payload["timestamp"] - received[0].payload["timestamp"] == pytest.approx(
            (len(received) - 1) / 25, abs=1e-6
        )


def test_the_disc_is_where_the_datum_of_the_same_moment_says(start: Callable[..., Core]) -> None:
    core = start("--synthesise")
    messages = collect(core.subscriber(b"frame."), 1.0)
    truth = core.truth()
    for topic, stream in (("frame.world", "gaze"), ("frame.eye.1", "pupil.1.3d")):
        width, height = SIZES[topic]
        datums = [row for row in truth if row["stream"] == stream]
        frames = {row["payload"][0]: row for row in truth if row["stream"] == topic}
        for message in [message for message in messages if message.topic == topic][3:-6]:
            x, y = disc(message)
            row = frames[message.payload["index"]]
            assert (x, y) == pytest.approx(row["payload"][2:], abs=1.0)
            near = min(datums, key=lambda datum: abs(datum["host_ns"] - row["host_ns"]))
            assert (x / width, 1 - y / height) == pytest.approx(near["payload"][:2], abs=0.01)


@pytest.mark.parametrize(("name", "bytes_a_pixel"), [("gray", 1), ("bgr", 3), ("yuv", 2), ("jpeg", None)])
def test_the_format_is_set_by_a_notification(start: Callable[..., Core], name: str, bytes_a_pixel: int | None) -> None:
    core = start()
    backbone = core.subscriber(b"frame.world", b"notify.frame_publishing.started")
    notify(core, "frame_publishing.set_format", format=name)
    assert receive_until(backbone, lambda m: m.topic.startswith("notify.")).payload["format"] == name
    message = receive_until(backbone, lambda m: m.topic == "frame.world")
    assert message.payload["format"] == name
    if bytes_a_pixel is not None:
        assert len(message.frames[2]) == bytes_a_pixel * 1280 * 720


@pytest.mark.parametrize("fields", [{"format": "png"}, {"format": 7}, {}])
def test_an_unknown_format_ends_capture_with_a_traceback(start: Callable[..., Core], fields: dict[str, Any]) -> None:
    core = start(status=1)
    notify(core, "frame_publishing.set_format", **fields)
    assert core.process.wait(DEADLINE_S) == 1


def test_a_notification_without_a_subject_ends_capture_with_a_traceback(start: Callable[..., Core]) -> None:
    core = start(status=1)
    core.ask(b"notify.recording.should_start", encode({"session_name": "a"}))
    assert core.process.wait(DEADLINE_S) == 1


def test_images_that_nobody_subscribes_to_are_not_made(start: Callable[..., Core]) -> None:
    core = start()
    collect(core.subscriber(b"gaze."), 0.5)
    assert not any(row["stream"].startswith("frame.") for row in core.truth())
    collect(core.subscriber(b"frame.eye.1"), 0.5)
    assert {row["stream"] for row in core.truth() if row["stream"].startswith("frame.")} == {"frame.eye.1"}


def test_an_old_capture_sends_images_once_its_plugin_was_started(start: Callable[..., Core]) -> None:
    core = start("--frames-by-plugin")
    backbone = core.subscriber(b"frame.world")
    notify(core, "frame_publishing.set_format", format="png")  # nobody listens to that yet
    assert collect(backbone, 0.3) == []
    notify(core, "start_plugin", name="Frame_Publisher", args={})
    assert receive(backbone).topic == "frame.world"


def test_a_plugin_that_is_unknown_is_an_error_in_the_log_and_no_more(start: Callable[..., Core]) -> None:
    core = start("--topics", "none", "--missing-plugins", "Annotation_Capture")
    backbone = core.subscriber(b"logging.error")
    for name in ("Frame_Publisher", "Annotation_Capture"):
        notify(core, "start_plugin", name=name, args={})
        assert receive(backbone).payload["msg"] == f"Attempt to load unknown plugin: '{name}'"


def test_annotations_are_taken_by_their_plugin_logged_and_in_the_truth(start: Callable[..., Core]) -> None:
    core = start("--topics", "none", "--drift-ppm", "200")
    backbone = core.subscriber(b"logging.info")

    def annotate(label: str, at_s: float) -> None:
        datum = {"topic": "annotation", "label": label, "timestamp": at_s, "duration": 0.0}
        assert core.ask(b"annotation", encode(datum)) == "Message forwarded."

    annotate("nobody listens", float(core.ask(b"t")))
    notify(core, "start_plugin", name="Annotation_Capture", args={})
    host_ns = time.monotonic_ns()
    at_s = float(core.ask(b"t"))
    annotate("one", at_s)
    assert receive(backbone).payload["msg"].startswith("one annotation (0.0")
    core.ask(b"R")
    annotate("two", at_s + 1)
    assert receive(backbone).payload["msg"].startswith("two annotation (-")
    rows = [row for row in core.truth() if row["stream"] == "annotation"]
    assert [(row["payload"], row["sent"], row["sequence"]) for row in rows] == [("one", False, 0), ("two", True, 1)]
    assert rows[0]["device_ns"] == round(at_s * 1e9)
    assert 0 <= rows[0]["host_ns"] - host_ns < 1e9
    assert rows[1]["host_ns"] - rows[0]["host_ns"] == pytest.approx(1e9 / 1.0002, abs=1000)


def test_a_calibration_can_fail_with_its_reason(start: Callable[..., Core]) -> None:
    core = start("--topics", "none", "--calibration-error", "Not sufficient pupil data available.")
    backbone = core.subscriber(b"notify.calibration.")
    core.ask(b"C")
    core.ask(b"c")
    failed = receive_until(backbone, lambda message: message.topic == "notify.calibration.failed")
    assert failed.payload["reason"] == "Not sufficient pupil data available."
    assert [row["payload"] for row in core.truth() if row["stream"] == "calibration"] == ["started", "failed"]


def test_recordings_are_in_the_truth(start: Callable[..., Core]) -> None:
    core = start("--topics", "none")
    core.ask(b"R a")
    core.ask(b"R b")  # it runs already
    core.ask(b"r")
    core.ask(b"R")  # under the name of before
    rows = [row["payload"] for row in core.truth() if row["stream"] == "recording"]
    assert rows == ["started /recordings/a/000/", "stopped /recordings/a/000/", "started /recordings/a/001/"]
