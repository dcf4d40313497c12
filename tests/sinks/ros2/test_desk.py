"""What all topics share: which packages are there, names, frames, quality of service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSReliabilityPolicy

from bridge.config import Ros2Sink
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.topics import BY_NAME, CUSTOM_PACKAGES, TOPICS, table
from tests.sinks.ros2.lab import is_there, quiet_lark

pytestmark = quiet_lark

NAMES = {"camera": "scene", "surface": "screen_1"}
ROOT = Path(__file__).parents[3]


@pytest.fixture
def real(plain_node: Any) -> Desk:
    """A desk whose publishers are real."""
    return Desk(plain_node, Ros2Sink(type="ros2"))


@pytest.mark.parametrize("topic", [topic.name for topic in TOPICS])
def test_a_topic_is_offered_as_the_table_says(real: Desk, topic: str) -> None:
    entry = BY_NAME[topic]
    if not real.has(topic):
        pytest.skip(f"{entry.type} is not installed")
    publisher = real.publisher("tracker", topic, **NAMES)
    try:
        name = entry.name.format(**NAMES)
        assert publisher.topic_name == (name if name.startswith("/") else f"/tracker/{name}")
        qos = publisher.qos_profile
        assert (qos.reliability, qos.history) == (QoSReliabilityPolicy.RELIABLE, QoSHistoryPolicy.KEEP_LAST)
        assert qos.depth == entry.depth
        latched = QoSDurabilityPolicy.TRANSIENT_LOCAL if entry.latched else QoSDurabilityPolicy.VOLATILE
        assert qos.durability is latched
        package, _, kind = entry.type.split("/")
        assert (publisher.msg_type.__module__.split(".")[0], publisher.msg_type.__name__) == (package, kind)
    finally:
        real.node.destroy_publisher(publisher)


def test_what_is_installed_is_known_and_said_in_one_line(real: Desk) -> None:
    there = {"pupil_msgs": "Gaze", "tf2_msgs": "TFMessage", "foxglove_msgs": "CompressedVideo"}
    expected = {package for package, kind in there.items() if is_there(f"{package}/{kind}")}
    assert real.packages == expected
    words = real.message_packages()
    assert "\n" not in words
    assert words.startswith("standard topics")
    assert all(package in words for package in CUSTOM_PACKAGES)
    for package in set(CUSTOM_PACKAGES) - expected:
        assert package in words.partition("without")[2]


@pytest.mark.parametrize("missing", CUSTOM_PACKAGES)
def test_without_a_package_its_topics_are_not_had_and_the_others_are(
    plain_node: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, f"{missing}.msg", None)  # importing it is an ImportError
    desk = Desk(plain_node, Ros2Sink(type="ros2"))
    assert missing not in desk.packages
    for topic in TOPICS:
        package = topic.type.split("/")[0]
        if package == missing:
            assert not desk.has(topic.name)
        elif package not in CUSTOM_PACKAGES:
            assert desk.has(topic.name)


def test_the_folder_of_the_messages_sources_is_not_taken_for_the_messages() -> None:
    """It can be imported where the current directory is the repository's, and has no classes."""
    script = (
        "import sys; import pupil_msgs.msg as found\n"
        "if getattr(found, '__file__', None): sys.exit(3)\n"
        "import rclpy; rclpy.init(); node = rclpy.create_node('x')\n"
        "from bridge.config import Ros2Sink; from bridge.sinks.ros2.desk import Desk\n"
        "print(sorted(Desk(node, Ros2Sink(type='ros2')).packages))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("pupil_msgs is installed, so that its sources cannot be met")
    assert done.returncode == 0, done.stderr
    assert "pupil_msgs" not in done.stdout


def test_settings_that_change_reach_stamps_and_frames(real: Desk) -> None:
    assert real.frame("gaze/pixel", "a") == "a_scene_camera_optical_frame"
    real.settings = Ros2Sink(type="ros2", frame_prefix="lab/", timestamp_mode="arrival")
    assert real.frame("gaze/pixel", "a") == "lab/a_scene_camera_optical_frame"
    assert real.frame("{camera}/image_raw", "a", camera="eye0") == "lab/a_eye0_camera_optical_frame"
    assert real.frame("events", "a") == ""
    assert real.stamps.mode == "arrival"


def test_the_table_for_the_documentation_has_every_topic_once() -> None:
    lines = table().splitlines()
    assert len(lines) == len(TOPICS) + 2
    assert len({line.split("|")[1] for line in lines[2:]}) == len(TOPICS)
    assert all(line.count("|") == 8 for line in lines)
    for topic in TOPICS:
        assert topic.optional == (topic.type.split("/")[0] in CUSTOM_PACKAGES) or topic.name == "{camera}/video"
