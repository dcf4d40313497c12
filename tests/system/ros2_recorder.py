"""As `ros2 bag record`, in a process of its own: everything under a namespace, found by itself, into an MCAP bag.

    python ros2_recorder.py --bag DIRECTORY --under /pupil_bridge [--also /tf ...] [--few SUFFIX ...]

Topics are found on the network with their types; messages are taken as the bytes that came. Of topics that end in one
of ``--few`` only some messages are taken, and the subscription ends then (raw images). JSON lines on standard output:
``{"ready": true}``, and an answer to each line on standard input: ``counts``. Its end is the end: the bag is written
and ``{"written": messages}`` printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import select
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

SPIN_S = 0.05
LOOK_S = 0.1
FEW = 5
DEPTH = 5000


def typestore() -> Any:
    """ROS' own types, and those of every package beside whose Python module there are definitions."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for package in ("pupil_msgs", "tf2_msgs", "foxglove_msgs"):
        for definition in sorted(Path(sys.prefix, "share", package, "msg").glob("*.msg")):
            store.register(
                {
                    name: fields
                    for name, fields in get_types_from_msg(
                        definition.read_text(encoding="utf-8"), f"{package}/msg/{definition.stem}"
                    ).items()
                    if name not in store.types
                }
            )
    return store


class Recorder:
    """Subscribes to what appears."""

    def __init__(self, under: str, also: list[str], few: list[str]) -> None:
        self.types: dict[str, str] = {}
        self.arrivals: list[tuple[str, int, bytes]] = []
        self.counts: Counter[str] = Counter()
        self._under, self._also, self._few = f"{under}/", also, tuple(few)
        self._subscriptions: dict[str, Any] = {}
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("recorder", context=self._context, start_parameter_services=False, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    def look(self) -> None:
        for topic, (kind, *_) in self._node.get_topic_names_and_types():
            if topic in self.types or not (topic.startswith(self._under) or topic in self._also):
                continue
            offers = self._node.get_publishers_info_by_topic(topic)
            if not offers or "lifecycle_msgs" in kind:
                continue
            latched = offers[0].qos_profile.durability is QoSDurabilityPolicy.TRANSIENT_LOCAL
            qos = QoSProfile(depth=DEPTH, reliability=QoSReliabilityPolicy.RELIABLE)
            qos.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL if latched else QoSDurabilityPolicy.VOLATILE
            package, _, name = kind.split("/")
            message = getattr(importlib.import_module(f"{package}.msg"), name)
            self.types[topic] = kind
            self._subscriptions[topic] = self._node.create_subscription(
                message, topic, self._take(topic), qos, raw=True
            )

    def _take(self, topic: str) -> Callable[[bytes], None]:
        def take(cdr: bytes) -> None:
            self.arrivals.append((topic, time.time_ns(), cdr))
            self.counts[topic] += 1

        return take

    def spin(self) -> None:
        self._executor.spin_once(timeout_sec=SPIN_S)
        for topic in [t for t in self._subscriptions if t.endswith(self._few) and self.counts[t] >= FEW]:
            self._node.destroy_subscription(self._subscriptions.pop(topic))

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def write(self, bag: Path) -> None:
        store = typestore()
        with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = {
                topic: writer.add_connection(topic, kind, typestore=store) for topic, kind in self.types.items()
            }
            for topic, received_ns, cdr in self.arrivals:
                writer.write(connections[topic], received_ns, cdr)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bag", type=Path, required=True)
    parser.add_argument("--under", required=True)
    parser.add_argument("--also", nargs="*", default=[])
    parser.add_argument("--few", nargs="*", default=["/image_raw"])
    arguments = parser.parse_args()
    recorder = Recorder(arguments.under, arguments.also, arguments.few)
    print(json.dumps({"ready": True}), flush=True)
    look_at_s = 0.0
    while True:
        if time.monotonic() >= look_at_s:
            recorder.look()
            look_at_s = time.monotonic() + LOOK_S
        recorder.spin()
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                break
            print(json.dumps({"counts": recorder.counts}), flush=True)
    recorder.close()
    recorder.write(arguments.bag)
    print(json.dumps({"written": len(recorder.arrivals)}), flush=True)


if __name__ == "__main__":
    main()
