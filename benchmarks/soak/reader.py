"""A reader of the bridge's gaze in a process of its own: counts what comes, once a second as a JSON line.

    python -m benchmarks.soak.reader lsl|ros2 DEVICE ...

The first line comes when everything is subscribed to. ``backwards``: samples with a stamp before their predecessor's.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

SAY_S = 1.0


def _say(counts: Counter[str], backwards: Counter[str]) -> None:
    print(json.dumps({"counts": counts, "backwards": backwards}), flush=True)


def read_lsl(devices: list[str]) -> None:
    import pylsl

    inlets = {}
    for device in devices:
        (info,) = pylsl.resolve_byprop("source_id", f"{device}_Gaze", timeout=20)
        inlets[device] = inlet = pylsl.StreamInlet(info, recover=False)
        inlet.open_stream(timeout=20)
    counts, backwards = Counter(dict.fromkeys(devices, 0)), Counter()
    last_s = dict.fromkeys(devices, 0.0)
    say_at = 0.0
    while True:
        for device, inlet in inlets.items():
            _, stamps_s = inlet.pull_chunk(timeout=0.0, max_samples=4096)
            for stamp_s in stamps_s:
                backwards[device] += stamp_s < last_s[device]
                last_s[device] = stamp_s
            counts[device] += len(stamps_s)
        if time.monotonic() >= say_at:
            say_at = time.monotonic() + SAY_S
            _say(counts, +backwards)
        time.sleep(0.02)  # the inlets keep what comes


def read_ros2(devices: list[str]) -> None:
    import rclpy
    from geometry_msgs.msg import PointStamped
    from rclpy.qos import QoSProfile

    rclpy.init()
    node = rclpy.create_node("soak_reader", start_parameter_services=False, enable_rosout=False)
    counts, backwards = Counter(dict.fromkeys(devices, 0)), Counter()
    last = dict.fromkeys(devices, (0, 0))

    def on_gaze(device: str, message: PointStamped) -> None:
        stamp = (message.header.stamp.sec, message.header.stamp.nanosec)
        counts[device] += 1
        backwards[device] += stamp < last[device]
        last[device] = stamp

    subscriptions = []
    for device in devices:
        topic = f"/pupil_bridge/{device}/gaze/pixel"
        made = node.create_subscription(PointStamped, topic, lambda m, d=device: on_gaze(d, m), QoSProfile(depth=200))
        subscriptions.append(made)
    while not all(each.get_publisher_count() for each in subscriptions):
        rclpy.spin_once(node, timeout_sec=0.05)
    node.create_timer(SAY_S, lambda: _say(counts, +backwards))
    rclpy.spin(node)


if __name__ == "__main__":
    {"lsl": read_lsl, "ros2": read_ros2}[sys.argv[1]](sys.argv[2:])
