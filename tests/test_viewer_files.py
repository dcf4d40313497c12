"""The files for RViz, Foxglove and Fast DDS can be read, and name what the bridge offers. No viewer is at hand."""

from __future__ import annotations

import json
import re
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from bridge.sinks.ros2.topics import TOPICS

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"
RVIZ, FOXGLOVE, FASTDDS = "pupil_bridge.rviz", "foxglove-layout.json", "fastdds-large-images.xml"
DEVICE, CAMERA = "companion", "scene"
DDS = "{http://www.eprosima.com}"

# What the displays of RViz take (rviz_default_plugins' plugins_description.xml).
DISPLAYED = {
    "rviz_default_plugins/Image": {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"},
    "rviz_default_plugins/Camera": {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"},
    "rviz_default_plugins/Marker": {"visualization_msgs/msg/Marker"},
}
# What a viewer works out from frames, needs no topic of ours for, or finds beside another.
WITHOUT_TOPIC = {"rviz_default_plugins/Grid", "rviz_default_plugins/TF"}


def _offered() -> dict[str, str]:
    """Absolute name -> type of what the shipped configuration's device offers."""
    offered = {}
    for topic in TOPICS:
        name = topic.name.format(device=DEVICE, camera=CAMERA, surface="table")
        offered[name if name.startswith("/") else f"/pupil_bridge/{DEVICE}/{name}"] = topic.type
    return offered


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _strings(key)
            yield from _strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _strings(value)
    elif isinstance(tree, str):
        yield tree


def _rviz() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIG / RVIZ).read_text())
    return found


def _foxglove() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIG / FOXGLOVE).read_text())
    return found


def test_the_device_is_that_of_the_shipped_configuration() -> None:
    tree = tomllib.loads((CONFIG / "bridge.toml").read_text())
    assert DEVICE in [device["name"] for source in tree["source"] for device in source.get("device", [])]


@pytest.mark.parametrize("name", [RVIZ, FOXGLOVE])
def test_every_topic_in_the_file_is_offered(name: str) -> None:
    tree = _rviz() if name == RVIZ else _foxglove()
    named = {re.split(r"[.{]", text)[0] for text in _strings(tree) if text.startswith("/")}
    assert len(named) >= 2
    assert named - set(_offered()) == set()


def test_every_display_of_rviz_gets_a_type_that_it_shows() -> None:
    offered = _offered()
    shown = set()
    for display in _rviz()["Visualization Manager"]["Displays"]:
        if display["Class"] not in WITHOUT_TOPIC:
            assert offered[display["Topic"]["Value"]] in DISPLAYED[display["Class"]]
            shown.add(display["Class"])
    assert shown == set(DISPLAYED)


def test_the_fixed_frame_is_one_that_the_bridge_tells_of() -> None:
    frame = _rviz()["Visualization Manager"]["Global Options"]["Fixed Frame"]
    assert frame in {topic.frame.format(device=DEVICE, camera=CAMERA, surface="") for topic in TOPICS}


def test_every_path_that_foxglove_plots_is_a_number_of_its_message() -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    for path in (ROOT / "pupil_msgs" / "msg").glob("*.msg"):
        store.register(get_types_from_msg(path.read_text(), f"pupil_msgs/msg/{path.stem}"))
    offered, plotted = _offered(), 0
    for panel, settings in _foxglove()["configById"].items():
        for path in settings.get("paths", []) if panel.startswith("Plot!") else []:
            topic, *fields = path["value"].split(".")
            kind = offered[topic]
            for field in fields:
                definition = dict(store.fielddefs[kind][1])[field]
                kind = definition[1] if isinstance(definition[1], str) else definition[1][0]
            assert kind in ("float64", "float32")
            assert next(iter(store.fielddefs[offered[topic]][1]))[0] == "header"  # timestampMethod headerStamp
            plotted += 1
    assert plotted == 4


def test_foxglove_lays_out_every_panel_once() -> None:
    tree = _foxglove()

    def leaves(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            assert node["direction"] in ("row", "column")
            yield from leaves(node["first"])
            yield from leaves(node["second"])

    assert sorted(leaves(tree["layout"])) == sorted(tree["configById"])


def test_foxgloves_image_has_the_annotations_and_the_cameras_intrinsics() -> None:
    image = _foxglove()["configById"]["Image!scene"]["imageMode"]
    offered = _offered()
    assert offered[image["imageTopic"]] == "sensor_msgs/msg/CompressedImage"
    assert offered[image["calibrationTopic"]] == "sensor_msgs/msg/CameraInfo"
    assert [offered[topic] for topic in image["annotations"]] == ["foxglove_msgs/msg/ImageAnnotations"]


def test_fast_dds_profile_has_room_for_images_and_uses_all_of_its_transports() -> None:
    root = ET.parse(CONFIG / FASTDDS).getroot()
    described = {each.findtext(f"{DDS}transport_id"): each for each in root.iter(f"{DDS}transport_descriptor")}
    used = [each.text for each in root.iter(f"{DDS}userTransports") for each in each]
    assert sorted(used) == sorted(described)
    kinds = {each.findtext(f"{DDS}type"): each for each in described.values()}
    assert set(kinds) == {"SHM", "UDPv4"}
    segment = int(kinds["SHM"].findtext(f"{DDS}segment_size") or 0)
    assert 3 * 1920 * 1080 * 3 <= segment <= 30 * 2**20  # three of the largest images; two fit into a container's 64 MB
    assert root.find(f".//{DDS}participant").get("is_default_profile") == "true"
