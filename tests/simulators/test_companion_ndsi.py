"""The unmodified `ndsi` 1.4.5 client with the simulated Companion's H.264, in one fresh network namespace.

What it sees of JPEG, gaze, the IMU, events and controls is in `tests/system/test_ndsi_conformance.py`.
"""

from __future__ import annotations

import hashlib
import json
import select
import sys
import time
from pathlib import Path

import pytest

from bridge.simulators.companion_cameras import H264Camera
from bridge.simulators.companion_sensor import SCENE_PX
from tests import networks
from tests.simulators.ndsi_host import read_truth
from tests.system import test_ndsi_conformance as conformance

CLIENT = Path(__file__).parent / "ndsi_video_client.py"
KEY_INTERVAL = 20


@pytest.mark.root
@pytest.mark.skipif(bool(conformance.MISSING), reason=conformance.MISSING)
@pytest.mark.parametrize("start", ["key", "middle"])
def test_the_unmodified_ndsi_client_decodes_the_scenes_h264(tmp_path: Path, start: str) -> None:
    path = tmp_path / "truth.jsonl"
    deadline = time.monotonic() + conformance.DEADLINE_S
    device_command = [sys.executable, "-m", "bridge.simulators.companion", "--interface", conformance.ADDRESS]
    device_command += ["--truth", path, "--scene-format", "h264", "--key-interval", KEY_INTERVAL]
    device_command += ["--h264-start", start, "--scene-rate", 15]
    client_command = [conformance.PYTHON, CLIENT, "--gaze-samples", 100, "--events", 1, "--done-event", "done"]
    client_command += ["--sensors", 5, "--imu-samples", 100, "--frames", 50, "--timeout", 40]
    with (
        networks.addressed(conformance.ADDRESS),
        conformance._process(device_command) as device,
        conformance._process(client_command) as client,
    ):
        json.loads(conformance._line(device, deadline))
        while not any(row["payload"] == "done" for row in read_truth(path, "event")):
            assert client.poll() is None, "the client ended early"
            assert time.monotonic() < deadline, "the client did not get everything"
            assert device.stdout is not None
            select.select([device.stdout], [], [], 0.1)
        device.terminate()
        report = json.loads(conformance._line(client, deadline))
        assert client.wait(conformance.DEADLINE_S) == 0
    rows = read_truth(path, "scene")
    camera, sent = H264Camera(SCENE_PX, "0/room", KEY_INTERVAL, start == "middle"), {}
    for row in rows:
        picture = camera.picture(row["sequence"], *row["payload"])
        sent[hashlib.sha256(picture).hexdigest()] = row
    first = rows[0]["sequence"] + (KEY_INTERVAL // 2 if start == "middle" else 0)

    seen = [frame for frame in report["frames"] if frame]
    assert len(seen) >= 50 - KEY_INTERVAL
    for frame in seen:
        row = sent[frame["sha256"]]
        assert frame["index"] == row["sequence"]
        assert frame["shape"] == [1080, 1088, 3]
        assert frame["key"] is ((row["sequence"] - first) % KEY_INTERVAL == 0)
        assert frame["target"] == [int(at) for at in row["payload"]]
    indexes = [frame["index"] for frame in seen]
    assert indexes == list(range(indexes[0], indexes[0] + len(indexes)))
    assert indexes[0] == first
    # Until it can decode one, it hands out nothing for each frame.
    assert len(report["frames"]) - len(seen) == first - rows[0]["sequence"]
