"""H.264 of a Companion device: passed through, and decoded into raw images while somebody subscribes to them."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="needs av: pip install 'pupil-bridge[ros]'")
pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]' (wheels for Linux x86_64)")

from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image

from tests.sinks.ros2.lab import Peer, quiet_lark
from tests.system.harness import bridge, free_port, simulator, truth, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), quiet_lark]

IMAGES = 6  # of 3.5 MB, of which Fast DDS loses many without its profile


class Viewer:
    """Best effort, as viewers are. Keeps (stamp in ns, pixels)."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._lock = threading.Lock()
        self.images: list[tuple[int, Any]] = []
        qos = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        topic = "/pupil_bridge/companion/scene/image_raw"
        self._subscription = peer.node.create_subscription(Image, topic, self._take, qos)

    def _take(self, image: Image) -> None:
        pixels = np.frombuffer(bytes(image.data), np.uint8).reshape(image.height, image.width, 3)
        assert image.encoding == "rgb8"
        assert image.header.frame_id == "companion_scene_camera_optical_frame"
        with self._lock:
            self.images.append((image.header.stamp.sec * 10**9 + image.header.stamp.nanosec, pixels))

    def close(self) -> None:
        self._peer.node.destroy_subscription(self._subscription)


def test_the_target_is_where_the_truth_says_while_somebody_looks(tmp_path: Path) -> None:
    beacon_port, path = str(free_port(socket.SOCK_DGRAM)), tmp_path / "truth.jsonl"
    config = (
        f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {beacon_port}\n'
        '[[source.device]]\nname = "companion"\nsensors = ["gaze", "event", "scene"]\n[[sink]]\ntype = "ros2"\n'
    )
    simulated = ("--beacon-port", beacon_port, "--scene-format", "h264", "--h264-start", "middle", "--truth", str(path))
    peer = Peer()
    try:
        with simulator("companion", tmp_path, *simulated), bridge(tmp_path, config) as daemon:
            daemon.wait_locked("companion")
            wait_until(lambda: daemon.stream("companion", "scene").get("samples_in", 0) > 30, "frames come")
            assert daemon.stream("companion", "scene")["dropped"] == {}, "nobody looks: nothing is decoded"
            for _ in range(2):  # and once more, in the middle of the stream
                viewer = Viewer(peer)
                wait_until(
                    lambda viewer=viewer: len(viewer.images) >= IMAGES,
                    f"{IMAGES} images; {daemon.stream('companion', 'scene')}; {daemon.process.errors()}",
                )
                viewer.close()
            status = daemon.device("companion")
            assert "Traceback" not in daemon.process.errors()
    finally:
        peer.close()
    assert status["malformed"] == {}
    to_realtime_ns = time.time_ns() - time.monotonic_ns()
    frames = truth(path, "scene")
    gaze = sorted(truth(path, "gaze"), key=lambda row: row["host_ns"])
    moments = np.array([row["host_ns"] for row in frames])
    for stamp_ns, pixels in viewer.images[:IMAGES]:
        frame = frames[int(np.abs(moments + to_realtime_ns - stamp_ns).argmin())]
        assert abs(frame["host_ns"] + to_realtime_ns - stamp_ns) < 5_000_000
        near = min(gaze, key=lambda row: abs(row["host_ns"] - frame["host_ns"]))
        x, y = (int(value) for value in near["payload"][:2])
        # The four squares around the centre, some pixels off for what the gaze moves between two samples.
        for dx, dy, white in ((-10, -10, True), (10, 10, True), (10, -10, False), (-10, 10, False)):
            square = pixels[y + dy - 2 : y + dy + 3, x + dx - 2 : x + dx + 3, 0]
            assert (square.mean() > 150) == white, (x, y, dx, dy, square.mean())
