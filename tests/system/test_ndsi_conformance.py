"""The unmodified `ndsi` 1.4.5 client against the simulated Companion, two processes in one fresh network namespace.

ndsi's pyre takes the first interface that is not loopback, so it must never run outside a namespace.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import networks

REPOSITORY = Path(__file__).parents[2]
CLIENT = Path(__file__).parent / "ndsi_peer" / "client.py"
PYTHON = Path(os.environ.get("NDSI_PYTHON", REPOSITORY / ".venv-ndsi" / "bin" / "python"))
ADDRESS = "10.213.7.1"
DEADLINE_S = 45.0


def _missing() -> str:
    """Why the test cannot run here; empty when it can."""
    if PYTHON.exists():
        return networks.why_not()
    return f"the ndsi environment is not there ({PYTHON}): run `make ndsi-env`"


MISSING = _missing()


@contextmanager
def _process(command: list[Any]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _line(process: subprocess.Popen[str], deadline: float) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
    assert readable, f"no line from {process.args} in time"
    return process.stdout.readline()


def _truth(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.root
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_the_unmodified_ndsi_client_attaches_streams_and_gets_its_echo(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    deadline = time.monotonic() + DEADLINE_S
    device_command = [sys.executable, "-m", "bridge.simulators.companion", "--interface", ADDRESS, "--truth", truth]
    device_command += ["--event-rate", 4, "--offset-s", 1000, "--drift-ppm", 50]
    client_command = [PYTHON, CLIENT, "--gaze-samples", 240, "--events", 8, "--done-event", "done", "--timeout", 30]
    client_command += ["--sensors", 5, "--imu-samples", 200, "--frames", 20]
    with (
        networks.addressed(ADDRESS),
        _process(device_command) as device,
        _process(client_command) as client,
    ):
        ready = json.loads(_line(device, deadline))
        while not any(sample["payload"] == "done" for sample in _truth(truth)):
            assert client.poll() is None, "the client ended early"
            assert time.monotonic() < deadline, "the client did not get everything"
            assert device.stdout is not None
            select.select([device.stdout], [], [], 0.1)  # end of file when the device dies
            assert device.poll() is None, "the device ended early"
        device.terminate()
        report = json.loads(_line(client, deadline))
        assert client.wait(DEADLINE_S) == 0
        assert device.wait(DEADLINE_S) == 0
    samples = _truth(truth)

    assert report["ndsi"] == "1.4.5"
    assert {kind: attach["sensor_uuid"] for kind, attach in report["attached"].items()} == ready["sensors"]
    assert {attach["host_name"] for attach in report["attached"].values()} == {ready["name"]}
    assert report["controls"] == {
        "gaze": ["streaming"],
        "event": ["streaming"],
        "imu": ["streaming"],
        "video": ["streaming"],
        "hardware": ["capture_session_name", "local_capture"],
    }
    assert set(report["detached"]) == set(ready["sensors"].values())

    # ndsi hands out stamps as float seconds; the same multiplication makes the comparison exact.
    true_gaze = {sample["device_ns"] * 1e-9: sample["payload"] for sample in samples if sample["stream"] == "gaze"}
    assert len(report["gaze"]) >= 240
    assert all(true_gaze[stamp_s] == [x, y] for stamp_s, x, y in report["gaze"])
    stamps_s = [stamp_s for stamp_s, _x, _y in report["gaze"]]
    assert stamps_s == sorted(set(stamps_s))

    true_events = {sample["device_ns"] * 1e-9: sample["payload"] for sample in samples if sample["stream"] == "event"}
    received = [(stamp_s, label) for stamp_s, label in report["events"] if label != "<<time>>"]
    assert all(true_events[stamp_s] == label for stamp_s, label in received)
    assert sum(label.startswith("sim.") for _, label in received) >= 7
    assert [label for _, label in received].count("done") == 1

    true_imu = {sample["device_ns"] * 1e-9: sample["payload"] for sample in samples if sample["stream"] == "imu"}
    assert len(report["imu"]) >= 200
    assert all(true_imu[stamp_s] == values for stamp_s, *values in report["imu"])

    true_frames = {sample["sequence"]: sample for sample in samples if sample["stream"] == "scene"}
    assert len(report["frames"]) >= 20
    for frame in report["frames"]:
        true_frame = true_frames[frame["index"]]
        assert abs(frame["stamp_s"] - true_frame["device_ns"] * 1e-9) < 1e-6  # it has divided and multiplied floats
        assert frame["shape"] == [1080, 1088, 3]
        assert frame["target"] == [int(at) for at in true_frame["payload"]]
    assert len({frame["sha256"] for frame in report["frames"]}) > 15

    clock, echo = ready["clock"], report["echo"]
    earliest_s, latest_s = (_device_s(clock, echo[key]) for key in ("sent_ns", "received_ns"))
    assert earliest_s - 1e-6 <= echo["stamp_s"] <= latest_s + 1e-6  # float seconds: half a microsecond
    assert latest_s - earliest_s < 1
    assert not any(sample["payload"] == "<<time>>" for sample in samples)


def _device_s(clock: dict[str, Any], host_ns: int) -> float:
    elapsed_ns = (host_ns - clock["origin_ns"]) * (1 + clock["drift_ppm"] * 1e-6)
    return (clock["utc_at_origin_ns"] + clock["offset_ns"] + elapsed_ns) * 1e-9
