"""A publisher or a subscriber of raw scene images (1088 x 1080 x 3 bytes) over real DDS, in a process of its own.

    python image_flow.py publish COUNT | subscribe

Both end with their standard input. ``publish`` waits for a subscriber, sends COUNT images at 30 Hz, and says
``{"sent": COUNT, "worst_ms": ...}``; ``subscribe`` is best-effort, as image viewers are, and answers each line with
``{"received": how many so far, "median_ms": from stamp to callback}``.
"""

from __future__ import annotations

import array
import json
import select
import statistics
import sys
import time

from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image

WIDTH_PX, HEIGHT_PX, RATE_HZ = 1088, 1080, 30.0
TOPIC = "scene/image_raw"


def _qos(reliability: QoSReliabilityPolicy) -> QoSProfile:
    return QoSProfile(depth=5, history=QoSHistoryPolicy.KEEP_LAST, reliability=reliability)


def _publish(node: Node, count: int) -> None:
    publisher = node.create_publisher(Image, TOPIC, _qos(QoSReliabilityPolicy.RELIABLE))
    image = Image(height=HEIGHT_PX, width=WIDTH_PX, encoding="bgr8", step=WIDTH_PX * 3)
    image.data = array.array("B", bytes(WIDTH_PX * HEIGHT_PX * 3))
    while not publisher.get_subscription_count():
        time.sleep(0.02)
    sent, worst_s, due_s = 0, 0.0, time.monotonic()
    while sent < count:
        now_ns = time.time_ns()
        image.header.stamp.sec, image.header.stamp.nanosec = divmod(now_ns, 1_000_000_000)
        before_s = time.monotonic()
        publisher.publish(image)
        worst_s = max(worst_s, time.monotonic() - before_s)
        sent += 1
        due_s += 1 / RATE_HZ
        time.sleep(max(0.0, due_s - time.monotonic()))
    print(json.dumps({"sent": sent, "worst_ms": round(worst_s * 1e3, 1)}), flush=True)
    sys.stdin.read()  # the node stays until it is told to end: what it holds for readers ends with it


def _subscribe(node: Node, executor: SingleThreadedExecutor) -> None:
    latencies_ms: list[float] = []

    def take(image: Image) -> None:
        stamp = image.header.stamp
        assert len(image.data) == WIDTH_PX * HEIGHT_PX * 3
        latencies_ms.append((time.time_ns() - stamp.sec * 1_000_000_000 - stamp.nanosec) / 1e6)

    node.create_subscription(Image, TOPIC, take, _qos(QoSReliabilityPolicy.BEST_EFFORT))
    print(json.dumps({"ready": True}), flush=True)
    while True:
        executor.spin_once(timeout_sec=0.02)
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                return
            median_ms = round(statistics.median(latencies_ms), 2) if latencies_ms else None
            print(json.dumps({"received": len(latencies_ms), "median_ms": median_ms}), flush=True)


def main() -> None:
    context = Context()
    context.init()
    node = Node(f"image_{sys.argv[1]}", context=context, start_parameter_services=False, enable_rosout=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        if sys.argv[1] == "publish":
            _publish(node, int(sys.argv[2]))
        else:
            _subscribe(node, executor)
    finally:
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


if __name__ == "__main__":
    main()
