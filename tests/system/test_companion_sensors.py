"""Every sensor of a simulated Companion through the daemon against the truth; recordings and events the other way."""

from __future__ import annotations

import asyncio
import io
import json
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bridge.clock import ClockSettings
from bridge.config import ClockConfig, NdsiSource
from bridge.errors import BridgeError
from bridge.names import DeviceNames
from bridge.pipeline import Pipeline
from bridge.sources.ndsi import NdsiDeviceSource
from tests.sources.lab import RecordingSink
from tests.sources.zre_peer import until
from tests.system.harness import (
    Bridge,
    Process,
    bridge,
    free_port,
    lab_recorder,
    simulator,
    truth,
    wait_for_streams,
    wait_until,
)
from tests.system.recording import Recorded, compare_numbers, goes_backwards, load, missing

NUMBER = random.randrange(10**9)  # see test_restart.py
COMPANION = f"companion_{NUMBER}"
PREFIX = f"pupil_labs_{COMPANION}"
ALL = 'sensors = ["gaze", "event", "imu", "scene", "eyes"]\n'
IMU_LABELS = ("accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z")
RATES_HZ = {"Gaze": 120, "IMU": 200, "SceneFrames": 30}
RECORD_S = 12

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def lab(tmp_path: Path, settings: str, *options: str) -> Iterator[tuple[Bridge, Process, Path]]:
    """A simulator and a daemon that knows its clock; yields the truth's path, too."""
    port, path = free_port(socket.SOCK_DGRAM), tmp_path / "truth.jsonl"
    config = f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {port}\n'
    config += f'[[source.device]]\nname = "{COMPANION}"\ntime_sync_events = false\n{settings}[[sink]]\ntype = "lsl"\n'
    given = ("--beacon-port", str(port), "--truth", str(path), *options)
    with simulator("companion", tmp_path, *given) as (process, _), bridge(tmp_path, config) as daemon:
        daemon.wait_locked(COMPANION)
        yield daemon, process, path


def bounds_s(stamps_s: Any, sync: Recorded) -> Any:
    """The bound that was published around each stamp: the wider of the one before and the one after."""
    published_s = sync.column("bound")
    after = np.clip(np.searchsorted(sync.stamps_s, stamps_s), 1, len(published_s) - 1)
    return np.maximum(published_s[after - 1], published_s[after])


# --- out of the device ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Recorded], Path, dict[str, Any]]:
    """A recording of all streams, the truth, and the device's status at its end."""
    tmp_path = tmp_path_factory.mktemp("sensors")
    xdf, names = tmp_path / "sensors.xdf", [f"{PREFIX}_{suffix}" for suffix in (*RATES_HZ, "Sync")]
    with lab(tmp_path, ALL, "--offset-s", "3600", "--drift-ppm", "40") as (daemon, _, path):
        wait_for_streams(*names)
        with lab_recorder(tmp_path, xdf, *(f"name='{name}'" for name in names)):
            begun = len(truth(path, "scene"))
            wait_until(lambda: len(truth(path, "scene")) > begun + RECORD_S * 30, "the frames", 3.0 * RECORD_S)
        status = daemon.device(COMPANION)
    streams = {name.removeprefix(f"{PREFIX}_"): stream for name, stream in load(xdf).items()}
    return streams, path, status


def _rows(path: Path, stream: str) -> list[dict[str, Any]]:
    if stream != "SceneFrames":
        return truth(path, stream.lower())
    return [{**row, "payload": [row["sequence"]]} for row in truth(path, "scene")]


@pytest.mark.parametrize(
    ("stream", "labels"), [("Gaze", ("x", "y")), ("IMU", IMU_LABELS), ("SceneFrames", ("frame_index",))]
)
def test_every_sample_arrives_once_with_its_values_and_within_the_bound_of_its_stamp(
    recorded: tuple[dict[str, Recorded], Path, dict[str, Any]],
    stream: str,
    labels: tuple[str, ...],
    record_property: Callable[[str, object], None],
) -> None:
    streams, path, _ = recorded
    rows = _rows(path, stream)
    compared = compare_numbers(streams[stream], rows, labels)
    record_property(f"stamp error of {stream}", json.dumps(compared.figures()))
    print(f"\n{stream}: {compared.figures()}")
    assert len(compared.rows) > 0.9 * RECORD_S * RATES_HZ[stream]
    assert missing(compared.rows, rows) == []
    assert goes_backwards(streams[stream]) == []
    outside = np.abs(compared.errors_s) > bounds_s(streams[stream].stamps_s, streams["Sync"])
    assert int(outside.sum()) == 0


def test_samples_of_one_batch_have_stamps_of_their_own(
    recorded: tuple[dict[str, Recorded], Path, dict[str, Any]],
) -> None:
    steps_s = np.diff(recorded[0]["IMU"].stamps_s)
    assert np.abs(steps_s - 0.005).max() < 0.002


def test_streams_name_their_units(recorded: tuple[dict[str, Recorded], Path, dict[str, Any]]) -> None:
    streams = recorded[0]
    units = {channel["label"][0]: channel["unit"][0] for channel in streams["IMU"].channels()}
    assert units == {**dict.fromkeys(IMU_LABELS[:3], "g"), **dict.fromkeys(IMU_LABELS[3:], "deg/s")} | {
        "device_time": "seconds"
    }
    assert streams["IMU"].info["type"] == ["IMU"]
    assert streams["SceneFrames"].info["type"] == ["VideoFrames"]
    assert streams["SceneFrames"].labels == ["frame_index", "device_time"]
    # An upright head: gravity is there in g.
    gravity = np.linalg.norm(streams["IMU"].values[:, :3], axis=1)
    assert np.abs(gravity - 1).max() < 0.06


def test_nothing_is_dropped_and_cameras_that_are_not_there_are_silent(
    recorded: tuple[dict[str, Recorded], Path, dict[str, Any]],
) -> None:
    status = recorded[2]
    streams = {stream["name"]: stream for stream in status["streams"]}
    assert list(streams) == ["gaze", "event", "imu", "scene", "eye0", "eye1"]
    assert {name: stream["dropped"] for name, stream in streams.items()} == {name: {} for name in streams}
    assert streams["eye0"]["samples_in"] == streams["eye1"]["samples_in"] == 0
    assert set(status["malformed"]) <= {"echo_lost_or_doubtful"}


def test_by_default_the_camera_is_left_alone(tmp_path: Path) -> None:
    with lab(tmp_path, "") as (daemon, _, path):
        wait_until(lambda: daemon.stream(COMPANION, "imu").get("samples_in", 0) > 200, "the IMU")
        assert [stream["name"] for stream in daemon.device(COMPANION)["streams"]] == ["gaze", "event", "imu"]
        assert truth(path, "scene") == []


def test_the_pictures_that_come_out_show_the_gaze_at_their_instant(tmp_path: Path) -> None:
    """In this process: no sink that takes pixels is asked for."""
    port, path, sink = free_port(socket.SOCK_DGRAM), tmp_path / "truth.jsonl", RecordingSink()

    async def read() -> None:
        clock = ClockConfig()
        pipeline = Pipeline([sink], clock_settings=ClockSettings(ping_interval_ns=clock.ping_interval_ns))  # type: ignore[list-item]
        tree = {"name": "companion", "sensors": ["event", "gaze", "scene"]}
        source = NdsiDeviceSource(
            NdsiSource.model_validate(
                {"type": "ndsi", "interface": "127.0.0.1", "beacon_port": port, "device": [tree]}
            ),
            clock,
            DeviceNames(tmp_path),
        )
        source.open(pipeline)
        running = asyncio.create_task(source.run())
        try:
            await until(lambda: len(sink.streams["companion", "scene"].samples) >= 60, "two seconds of frames")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            pipeline.close()

    with simulator("companion", tmp_path, "--beacon-port", str(port), "--truth", str(path), "--drift-ppm", "-60"):
        asyncio.run(read())
    true = {row["device_ns"]: row for row in truth(path, "scene")}
    gazes = {sample.device_ns: sample.payload for sample in sink.streams["companion", "gaze"].samples}
    out = sink.streams["companion", "scene"]
    shown = 0
    for sample, host_ns in zip(out.samples, out.host_ns, strict=True):
        row, frame = true[sample.device_ns], sample.payload
        assert abs(host_ns - row["host_ns"]) < 1_000_000
        assert (frame.index, frame.format) == (row["sequence"], "jpeg")
        assert (frame.width_px, frame.height_px) == (1088, 1080)
        if (gaze := gazes.get(sample.device_ns)) is not None and frame.index % 6 == 0:
            assert _is_on_the_target(frame.data, gaze[0], gaze[1])
            assert not _is_on_the_target(frame.data, (gaze[0] + 544) % 1088, gaze[1])
            shown += 1
    assert shown >= 5


def _is_on_the_target(jpeg: bytes, x_px: float, y_px: float) -> bool:
    """Whether the squares around this pixel are white, black / black, white, as the target's are."""
    grey = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")).astype(int)
    x, y = int(x_px), int(y_px)
    squares = ((-9, -9, 1), (9, 9, 1), (9, -9, -1), (-9, 9, -1))
    return all(sign * (grey[(y + dy) % 1080, (x + dx) % 1088] - 128) > 50 for dx, dy, sign in squares)


# --- to the device ----------------------------------------------------------------------------------------------------


def _told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row["payload"]) for row in truth(path, "control")]


def test_a_recording_is_started_and_stopped_through_the_control_socket(tmp_path: Path) -> None:
    with lab(tmp_path, "") as (daemon, _, path):
        wait_until(lambda: daemon.device(COMPANION)["recording"] is False, "its state is known")
        answer = daemon.ask("record", action="start", device=COMPANION, session="Versuch 3 é")
        assert answer["done"] == {COMPANION: "recording, session 'Versuch 3 é'"}
        assert daemon.device(COMPANION)["recording"] is True
        assert daemon.ask("record", action="start")["done"] == {COMPANION: "is recording already"}
        assert daemon.ask("record", action="stop")["done"] == {COMPANION: "recording stopped"}
        assert daemon.device(COMPANION)["recording"] is False
        assert _told(path) == [
            {"capture_session_name": "Versuch 3 é"},
            {"local_capture": True},
            {"local_capture": False},
        ]


def test_a_recording_that_the_phone_refuses_is_refused_with_its_reason(tmp_path: Path) -> None:
    reason = "Template has required fields: Initialen"
    with lab(tmp_path, "", "--refuse-recording", reason) as (daemon, _, path):
        with pytest.raises(BridgeError) as refused:
            daemon.ask("record", action="start", device=COMPANION)
        assert str(refused.value) == f"{COMPANION}: the device refuses: {reason}"
        assert daemon.device(COMPANION)["recording"] is False
        assert _told(path) == []


def test_events_reach_the_phone_at_the_senders_time_and_come_back(tmp_path: Path) -> None:
    options = ("--event-rate", "0", "--offset-s", "-100000", "--drift-ppm", "50")
    with lab(tmp_path, "", *options) as (daemon, _, path):
        before = daemon.stream(COMPANION, "event")["samples_out"]["lsl"]
        begun = _host_s()
        assert daemon.ask("event", text="now é", device=COMPANION)["done"] == {COMPANION: "sent"}
        ended = _host_s()
        assert daemon.ask("annotate", text="then", device=COMPANION, host_s=begun - 3.5)["done"] == {COMPANION: "sent"}
        wait_until(lambda: len(truth(path, "event")) == 2, "both are on the phone")
        now, then = truth(path, "event")
        assert now["payload"] == "now é"
        assert begun - 0.005 < now["host_ns"] / 1e9 < ended + 0.005
        assert then["payload"] == "then"
        bound_s = daemon.device(COMPANION)["clock"]["bound_s"]
        assert abs(then["host_ns"] / 1e9 - (begun - 3.5)) < bound_s + 0.0005
        out = wait_until(
            lambda: daemon.stream(COMPANION, "event")["samples_out"]["lsl"] == before + 2, "both come back"
        )
        assert out


def test_the_commands_of_a_person_do_the_same_and_say_what_became_of_it(tmp_path: Path) -> None:
    def run(daemon: Bridge, *words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "bridge", *words, "--socket", str(daemon.control)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout + done.stderr

    with lab(tmp_path, "", "--event-rate", "0") as (daemon, _, path):
        assert run(daemon, "record", "start", "--session", "s1") == (0, f"{COMPANION}: recording, session 's1'\n")
        assert run(daemon, "event", "button", "--device", COMPANION) == (0, f"{COMPANION}: sent\n")
        assert run(daemon, "record", "stop") == (0, f"{COMPANION}: recording stopped\n")
        status, said = run(daemon, "calibrate", "start", "--device", COMPANION)
        assert (status, said.count("\n")) == (1, 1)
        assert "calibrate is not possible with this device" in said
        wait_until(lambda: [row["payload"] for row in truth(path, "event")] == ["button"], "it is on the phone")


def _host_s() -> float:
    from bridge.clock.host import monotonic_ns

    return monotonic_ns() / 1e9
