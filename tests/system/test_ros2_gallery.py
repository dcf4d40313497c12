# ruff: noqa: E501 - Markdown
"""docs/ros2-topics.md is what the code says: topics by their table, parameters by the configuration's models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from bridge.config import Ros2Sink
from bridge.sinks.ros2 import parameters, topics

PAGE = Path(__file__).parents[2] / "docs/ros2-topics.md"
ANEW = "WRITE_DOCS=1 .venv/bin/python -m pytest tests/system/test_ros2_gallery.py"
INTRODUCTION = f"""# ROS 2: every topic, service and parameter

Made from the code by `{ANEW}`. Names are relative to `/<namespace>/<device name>/`, by default `/pupil_bridge/...`; `{{device}}` and
`{{camera}}` (`scene`, `eye0`, `eye1`) stand for what there is, `{{surface}}` for the name of a surface in a-z, 0-9 and _ (`Screen 1` is
`screen_1`). Units are REP-103's, the optical frames have x right, y down, z forward. Before
every frame stands `frame_prefix`. What each of them means in use: [ros2.md](ros2.md).

## Topics

"""
SERVICES = """
## Services

With `control = true` in the `[[sink]]`, and for devices that can do it. Each says honestly what was done, or why not.

| service | type | does |
|---|---|---|
| `start_recording`, `stop_recording` (without a device's name) | std_srvs/srv/Trigger | the recording on all devices that record |
| `{device}/start_recording`, `{device}/stop_recording` | std_srvs/srv/Trigger | the device's own recording |
| `{device}/record` | pupil_msgs/srv/Record (if importable) | the same, with a name for the session |
| `{device}/send_event` | pupil_msgs/srv/SendEvent (if importable) | an event or annotation on the device, at a time of ROS or now |
| `{device}/start_calibration`, `{device}/stop_calibration` | std_srvs/srv/Trigger | Core's calibration |
| `{node}/change_state` and the others of a managed node | lifecycle_msgs | configure, activate, deactivate, cleanup, shutdown |
| `{node}/set_parameters` and the others of a node | rcl_interfaces | the parameters below |

## Parameters

They count above the configuration file, from `--ros-args -p`, a launch file or `ros2 param set`, until the bridge ends.
`qos_overrides.<topic>.publisher.{depth,history,reliability,durability}` are there for every topic, at the start.

"""


def _parameters() -> str:
    rows = ["| parameter | type | default | can be | when | meaning |", "|---|---|---|---|---|---|"]
    listed = [(name, Ros2Sink, name, words) for name, words in parameters.OWN.items()]
    listed += [(name, model, name.split(".")[1], words) for name, (model, words) in parameters.OTHERS.items()]
    for name, model, key, words in listed:
        default = model.model_fields[key].default
        allowed = parameters.allowed(model, key)
        can_be = ", ".join(allowed.words)
        if allowed.least is not None:
            can_be = f"{allowed.least:g} to {allowed.most:g}"
        when = "at the start" if name in parameters.AT_START_ONLY else "always"
        kind = type(default).__name__
        rows.append(f"| `{name}` | {kind} | {default!r} | {can_be} | {when} | {words} |")
    return "\n".join(rows) + "\n"


def test_the_page_says_what_the_code_does() -> None:
    page = INTRODUCTION + topics.table() + SERVICES + _parameters()
    if os.environ.get("WRITE_DOCS") == "1":
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, f"to write it anew: {ANEW}"


def test_every_setting_of_the_ros_sink_is_a_parameter_but_those_that_name_the_node() -> None:
    assert parameters.OWN.keys() == Ros2Sink.model_fields.keys() - {"type", "namespace", "node_name"}
    assert set(parameters.AT_START_ONLY) == set(Ros2Sink.AT_OPENING) - {"type", "namespace", "node_name"}
    assert get_args(Ros2Sink.model_fields["timestamp_mode"].annotation)


def test_topics_have_names_of_their_own() -> None:
    assert len(topics.BY_NAME) == len(topics.TOPICS)
