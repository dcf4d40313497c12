"""A ROS 2 subscriber in a process of its own: everything that arrives goes into a bag and into a file of JSON lines.

    python ros2_listener.py --out FILE [--bag DIRECTORY] TOPIC=TYPE ...     (TYPE such as geometry_msgs/PointStamped)

Messages are taken as the bytes that came over the wire. The bag gets these bytes, the JSON lines get what rclpy reads
in them, so that a reader which shares no code with rclpy can compare the two. JSON lines on standard output:
``{"ready": true}`` when everything is subscribed to, ``{"matched": monotonic_ns}`` when every topic has a publisher,
and the answers to the lines on standard input: ``graph`` (what the network says of topics and nodes) and ``counts``.
The end of standard input is the end: both files are written and ``{"written": messages}`` is printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

SPIN_S = 0.02
QOS = QoSProfile(depth=10_000, history=QoSHistoryPolicy.KEEP_LAST, reliability=QoSReliabilityPolicy.RELIABLE)


class Arrival(NamedTuple):
    """One message: when the callback ran (CLOCK_REALTIME), and its bytes."""

    topic: str
    received_ns: int
    cdr: bytes


def _type(name: str) -> Any:
    package, _, kind = name.partition("/")
    return getattr(importlib.import_module(f"{package}.msg"), kind)


def _ns(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def fields(message: Any) -> dict[str, Any]:
    """A message of the types that the bridge uses as JSON types, whatever library's class it is. Times in ns."""
    row = {"stamp_ns": _ns(message.header.stamp), "frame_id": message.header.frame_id}
    if hasattr(message, "point"):
        row |= {axis: getattr(message.point, axis) for axis in "xyz"}
    elif hasattr(message, "time_ref"):
        row |= {"time_ref_ns": _ns(message.time_ref), "source": message.source}
    else:
        row["status"] = [
            {
                "level": each.level[0] if isinstance(each.level, bytes) else int(each.level),
                "name": each.name,
                "message": each.message,
                "hardware_id": each.hardware_id,
                "values": {value.key: value.value for value in each.values},
            }
            for each in message.status
        ]
    return row


class Listener:
    """Subscribed to its topics until it is closed."""

    def __init__(self, types: dict[str, str]) -> None:
        self.arrivals: list[Arrival] = []
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("listener", context=self._context, start_parameter_services=False, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._subscriptions = [
            self._node.create_subscription(_type(kind), topic, self._take(topic), QOS, raw=True)
            for topic, kind in types.items()
        ]

    def _take(self, topic: str) -> Callable[[bytes], None]:
        return lambda cdr: self.arrivals.append(Arrival(topic, time.time_ns(), cdr))

    @property
    def matched(self) -> bool:
        return all(subscription.get_publisher_count() for subscription in self._subscriptions)

    def spin(self) -> None:
        self._executor.spin_once(timeout_sec=SPIN_S)

    def counts(self) -> dict[str, int]:
        counts = {subscription.topic_name: 0 for subscription in self._subscriptions}
        for arrival in self.arrivals:
            counts[arrival.topic] += 1
        return counts

    def graph(self) -> dict[str, Any]:
        """Every other node, with what it publishes and with which quality of service."""
        node = self._node
        nodes = {}
        for name, namespace in node.get_node_names_and_namespaces():
            if name == node.get_name():
                continue
            published = node.get_publisher_names_and_types_by_node(name, namespace)
            services = node.get_service_names_and_types_by_node(name, namespace)
            nodes[f"{namespace.rstrip('/')}/{name}"] = {
                "topics": dict(published),
                "services": [service for service, _ in services],
            }
        offered = {
            subscription.topic_name: [
                {
                    "node": f"{info.node_namespace.rstrip('/')}/{info.node_name}",
                    "reliability": info.qos_profile.reliability.name,
                    "durability": info.qos_profile.durability.name,
                    "history": info.qos_profile.history.name,
                }
                for info in node.get_publishers_info_by_topic(subscription.topic_name)
            ]
            for subscription in self._subscriptions
        }
        return {"nodes": nodes, "offered": offered}

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()


def _write(arrivals: list[Arrival], types: dict[str, str], out: Path, bag: Path | None) -> None:
    with out.open("w", encoding="utf-8") as file:
        for topic, received_ns, cdr in arrivals:
            message = deserialize_message(cdr, _type(types[topic]))
            file.write(json.dumps({"topic": topic, "received_ns": received_ns, **fields(message)}) + "\n")
    if bag is None:
        return
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            topic: writer.add_connection(topic, kind.replace("/", "/msg/"), typestore=store)
            for topic, kind in types.items()
        }
        for topic, received_ns, cdr in arrivals:
            writer.write(connections[topic], received_ns, cdr)


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bag", type=Path)
    parser.add_argument("topics", nargs="+", metavar="TOPIC=TYPE")
    arguments = parser.parse_args()
    types = dict(topic.split("=", 1) for topic in arguments.topics)
    listener = Listener(types)
    _say(ready=True)
    matched = False
    while True:
        listener.spin()
        if not matched and listener.matched:
            matched = True
            _say(matched=time.monotonic_ns())
        if select.select([sys.stdin], [], [], 0)[0]:
            # One line a turn; the test asks one question at a time, so nothing waits in Python's own buffer.
            line = sys.stdin.readline()
            if not line:
                break
            _say(**(listener.graph() if line == "graph\n" else {"counts": listener.counts()}))
    listener.close()
    _write(listener.arrivals, types, arguments.out, arguments.bag)
    _say(written=len(listener.arrivals))


if __name__ == "__main__":
    main()
