"""A process under test: the least that publishes the same with rclpy, and steps from there to what the bridge does.

    python -m benchmarks.ros2.publisher_minimal CONTENT STEP

Steps: "minimal" sleeps until the next instant and publishes. "loop" does it on asyncio's loop when a descriptor wakes
it. "thread" sleeps, and another thread publishes what comes through a queue. "loop-thread" is both. "timer" is a timer
of rclpy in `rclpy.spin`, as most nodes are written.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.qos import QoSProfile

from benchmarks.ros2 import beat, cpu
from benchmarks.ros2.contents import CONTENTS, DEVICE, Content

LEAD_S = 0.02
DRAIN_S = 0.05

Pace = Callable[[Callable[[], None], int, float], None]  # calls so many times, at a rate in Hz


def by_sleeping(send: Callable[[], None], count: int, rate_hz: float) -> None:
    began_s = time.monotonic() + LEAD_S
    for number in range(count):
        wait_s = began_s + number / rate_hz - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        send()


def by_loop(runner: asyncio.Runner) -> Pace:
    return lambda send, count, rate_hz: runner.run(beat.on_loop(send, count, rate_hz, LEAD_S))


def by_timer(node: Any) -> Pace:
    def run(send: Callable[[], None], count: int, rate_hz: float) -> None:
        sent, ended = 0, rclpy.task.Future()

        def call() -> None:
            nonlocal sent
            if sent < count:
                send()
                sent += 1
            if sent == count:
                ended.set_result(None)

        timer = node.create_timer(1.0 / rate_hz, call)
        rclpy.spin_until_future_complete(node, ended)
        node.destroy_timer(timer)

    return run


def publish(content: Content, first: int, count: int, pace: Pace, pass_on: Callable[[Any], None]) -> dict[str, Any]:
    sent_ns: list[int] = []

    def send() -> None:
        payload = content.payload(first + len(sent_ns))
        sent_ns.append(time.monotonic_ns())
        pass_on(payload)

    began_ns, before = time.monotonic_ns(), cpu.by_part()
    pace(send, count, content.rate_hz)
    time.sleep(DRAIN_S)
    return {"sent_ns": sent_ns, "cpu_ns": cpu.since(before), "elapsed_ns": time.monotonic_ns() - began_ns}


def idle(seconds: float) -> dict[str, Any]:
    began_ns, before = time.monotonic_ns(), cpu.by_part()
    time.sleep(seconds)
    return {"cpu_ns": cpu.since(before), "elapsed_ns": time.monotonic_ns() - began_ns}


def serve(content: Content, step: str) -> None:
    """Carries out what comes on stdin, one answer a line."""
    rclpy.init()
    node = rclpy.create_node("publisher", namespace=step.replace("-", "_"), start_parameter_services=False)
    message = content.type()
    message.header.frame_id = f"{DEVICE}_scene_camera_optical_frame"
    topic = content.topic(step.replace("-", "_"))
    publish_message, fill = (
        node.create_publisher(content.type, topic, QoSProfile(depth=content.depth)).publish,
        content.fill,
    )

    def fill_and_publish(payload: Any) -> None:
        fill(message, payload)
        publish_message(message)

    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def publish_waiting() -> None:
        while (payload := waiting.get()) is not None:
            fill_and_publish(payload)

    thread = threading.Thread(target=publish_waiting, name="ros2 publisher")
    if step.endswith("thread"):
        thread.start()
    pass_on = waiting.put if step.endswith("thread") else fill_and_publish
    with asyncio.Runner() as runner:
        pace = by_loop(runner) if step.startswith("loop") else by_timer(node) if step == "timer" else by_sleeping
        while line := sys.stdin.readline():
            match json.loads(line):
                case ["publish", first, count]:
                    print(json.dumps(publish(content, first, count, pace, pass_on)), flush=True)
                case ["idle", seconds]:
                    print(json.dumps(idle(seconds)), flush=True)
    waiting.put(None)
    if thread.ident is not None:
        thread.join()
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    serve(CONTENTS[sys.argv[1]], sys.argv[2])
