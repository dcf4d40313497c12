"""The process at the other end: notes when which message is in its callback.

python -m benchmarks.ros2.subscriber CONTENT NAMESPACE
"""

from __future__ import annotations

import json
import sys
import threading
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile

from benchmarks.ros2.contents import CONTENTS, Content

PATIENCE_S = 2.0


def serve(content: Content, namespace: str) -> None:
    """Answers ``["report", COUNT]`` on stdin, once it has so many or after two seconds, with [index, ns] of each."""
    rclpy.init()
    node = rclpy.create_node("subscriber", namespace=namespace, start_parameter_services=False)
    received: list[tuple[int, int]] = []
    index_of = content.index_of

    def note(message: object) -> None:
        now_ns = time.monotonic_ns()
        received.append((index_of(message), now_ns))

    node.create_subscription(content.type, content.topic(namespace), note, QoSProfile(depth=content.depth))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    ended = False

    def answer() -> None:
        nonlocal ended
        while line := sys.stdin.readline():
            _, count = json.loads(line)
            deadline_s = time.monotonic() + PATIENCE_S
            while len(received) < count and time.monotonic() < deadline_s:
                time.sleep(0.02)
            answered = received[:]
            del received[: len(answered)]
            print(json.dumps(answered), flush=True)
        ended = True

    asker = threading.Thread(target=answer, name="answers")
    asker.start()
    while not ended:
        executor.spin_once(timeout_sec=0.5)
    asker.join()
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    serve(CONTENTS[sys.argv[1]], sys.argv[2])
