"""A process under test: the bridge's ROS sink, fed on an event loop as a source feeds it.

    python -m benchmarks.ros2.publisher_bridge CONTENT

Round trips, ticks and readings of the host's clocks come as often as in the daemon, whether something is sent or not.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from benchmarks.ros2 import beat, cpu
from benchmarks.ros2.contents import CONTENTS, DEVICE, Content
from bridge import heap
from bridge.clock import RoundTrip
from bridge.clock.host import monotonic_ns, steady_scale
from bridge.config import NdsiDevice, Ros2Sink
from bridge.pipeline import Device, Pipeline
from bridge.sources.ndsi_streams import streams
from bridge.streams import DeviceDescriptor

NAMESPACE = "bridge"
DEVICE_OFFSET_NS = 5_000_000_000  # add it to host time to get the device's
AGE_NS = 3_000_000  # of a sample when it is received
RTT_NS = 200_000
LEAD_S = 0.02
DRAIN_S = 0.05
DEADLINE_S = 10.0


def ping(device: Device) -> None:
    now_ns = monotonic_ns()
    device.ping(RoundTrip(now_ns - RTT_NS, now_ns - RTT_NS // 2 + DEVICE_OFFSET_NS, now_ns))


async def tick(pipeline: Pipeline, device: Device) -> None:
    while True:
        await asyncio.sleep(1.0)
        ping(device)
        pipeline.tick()


async def watch_host(scale: Any) -> None:
    while True:
        scale.read()
        await asyncio.sleep(0.1)


async def publish(device: Device, content: Content, first: int, count: int) -> dict[str, Any]:
    """Sends ``count`` samples in real time. When each was received, and what all of them cost."""
    stream = device.streams[content.stream]
    output = stream.outputs["ros2"]

    def dealt_with() -> int:
        return output.samples_out + sum(output.dropped.values())

    wanted = dealt_with() + count
    sent_ns: list[int] = []
    began_ns, before = monotonic_ns(), cpu.by_part()

    def receive() -> None:
        payload = content.payload(first + len(sent_ns))
        now_ns = monotonic_ns()
        sent_ns.append(now_ns)
        stream.sample(now_ns - AGE_NS + DEVICE_OFFSET_NS, now_ns, payload)

    await beat.on_loop(receive, count, content.rate_hz, LEAD_S)
    await asyncio.sleep(DRAIN_S)
    spent, elapsed_ns = cpu.since(before), monotonic_ns() - began_ns
    async with asyncio.timeout(DEADLINE_S):
        while dealt_with() < wanted:
            await asyncio.sleep(DRAIN_S)
    return {"sent_ns": sent_ns, "cpu_ns": spent, "elapsed_ns": elapsed_ns}


async def idle(seconds: float) -> dict[str, Any]:
    began_ns, before = monotonic_ns(), cpu.by_part()
    await asyncio.sleep(seconds)
    return {"cpu_ns": cpu.since(before), "elapsed_ns": monotonic_ns() - began_ns}


async def serve(content: Content) -> None:
    """Carries out what comes on stdin, one answer a line."""
    from bridge.sinks import ros2

    scale = steady_scale()
    pipeline = Pipeline([ros2.Ros2Sink(Ros2Sink(type="ros2", namespace=NAMESPACE))], scale=scale)
    device = pipeline.device(DeviceDescriptor(name=DEVICE, kind="companion", lsl_prefix="pupil_labs"))
    device.attached()
    known = NdsiDevice(name=DEVICE, sensors=("gaze", "event", "imu", "scene"))
    for descriptor in streams(device.descriptor, known):
        device.stream(descriptor)
    async with asyncio.timeout(DEADLINE_S):
        while not device.clock.locked:
            ping(device)
            await asyncio.sleep(DRAIN_S)
    tasks = [asyncio.create_task(tick(pipeline, device)), asyncio.create_task(watch_host(scale))]
    while line := await asyncio.to_thread(sys.stdin.readline):
        match json.loads(line):
            case ["publish", first, count]:
                print(json.dumps(await publish(device, content, first, count)), flush=True)
            case ["idle", seconds]:
                print(json.dumps(await idle(seconds)), flush=True)
    for task in tasks:
        task.cancel()
    pipeline.close()


if __name__ == "__main__":
    heap.bound()
    asyncio.run(serve(CONTENTS[sys.argv[1]]))
