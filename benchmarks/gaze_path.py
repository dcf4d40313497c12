"""CPU per gaze sample, device socket to LSL push and ROS publish: the bridge beside the bare libraries.

    .venv/bin/python -m benchmarks.gaze_path [--rate 200] [--seconds 10] [--repeats 3]

One simulated Companion device sends to one process under test at a time; a reader process takes what comes out. The
floor is a single-threaded loop of pyzmq, struct, pylsl and rclpy that republishes the same samples: no discovery, no
clock, no error handling, no order. What is compared is the CPU time of the whole process, its library threads included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.local import stay_local

WARM_UP_S = 4.0


@contextmanager
def child(*arguments: str, **kwargs: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, *arguments], text=True, **kwargs)
    try:
        yield process
    finally:
        process.kill()  # a polite end prints tracebacks of rclpy's own
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# --- processes under test ----------------------------------------------------------------------------------------


def floor(endpoint: str, uuid: str, ros: bool) -> None:
    """The least that republishes: receive, unpack, push, publish."""
    import pylsl
    import zmq

    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, uuid.encode())
    socket.connect(endpoint)
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo("pupil_labs_Gaze", "Gaze", 4, 0.0, "double64", "floor"))
    stamp_of, xy_of = struct.Struct("<Q").unpack, struct.Struct("<ff").unpack
    if ros:
        import rclpy
        from geometry_msgs.msg import PointStamped
        from rclpy.qos import QoSProfile

        rclpy.init()
        node = rclpy.create_node("floor", namespace="pupil_bridge", start_parameter_services=False, enable_rosout=False)
        pixel = node.create_publisher(PointStamped, "companion/gaze/pixel", QoSProfile(depth=50))
        normalized = node.create_publisher(PointStamped, "companion/gaze/normalized", QoSProfile(depth=50))
        message = PointStamped()
    while True:
        _, header, body = socket.recv_multipart()
        (device_ns,), (x, y) = stamp_of(header), xy_of(body)
        now_ns = time.time_ns()
        outlet.push_sample([x, y, float("nan"), device_ns * 1e-9], time.monotonic())
        if ros:
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(now_ns, 1_000_000_000)
            message.point.x, message.point.y = x, y
            pixel.publish(message)
            message.point.x, message.point.y = x / 1088, y / 1080
            normalized.publish(message)


def lsl_reader() -> None:
    import pylsl

    inlet = pylsl.StreamInlet(pylsl.resolve_byprop("name", "pupil_labs_Gaze", timeout=20)[0])
    while True:
        inlet.pull_sample(timeout=1.0)


def ros_reader() -> None:
    import rclpy
    from geometry_msgs.msg import PointStamped
    from rclpy.qos import QoSProfile

    rclpy.init()
    node = rclpy.create_node("reader", start_parameter_services=False, enable_rosout=False)
    for topic in ("pixel", "normalized"):
        node.create_subscription(
            PointStamped, f"/pupil_bridge/companion/gaze/{topic}", lambda _: None, QoSProfile(depth=50)
        )
    rclpy.spin(node)


async def endpoint_of_gaze(name: str) -> tuple[str, str]:
    """(data endpoint, sensor uuid) of the simulated device, with streaming switched on."""
    import zmq

    from bridge.sources.interfaces import find_interface
    from bridge.sources.zre import ZreEvent, ZreNode
    from bridge.wire import ndsi

    found: asyncio.Future[ndsi.Attach] = asyncio.get_running_loop().create_future()

    def on_event(event: ZreEvent) -> None:
        if event.type == "WHISPER" and event.name == name:
            attach = ndsi.parse_announcement(event.content[0])
            if isinstance(attach, ndsi.Attach) and attach.sensor_type == "gaze" and not found.done():
                found.set_result(attach)

    interface = find_interface("127.0.0.1")
    node = ZreNode(
        asyncio.get_running_loop(), on_event, name="benchmark", group=ndsi.GROUP, interface=interface, port=5670
    )
    try:
        attach = await asyncio.wait_for(found, 10)
    finally:
        node.stop()
    command = zmq.Context.instance().socket(zmq.PUSH)
    command.connect(attach.command_endpoint)
    command.send_multipart(ndsi.encode_set_control(attach.sensor_uuid, "streaming", True))
    assert attach.data_endpoint is not None
    return attach.data_endpoint, attach.sensor_uuid


# --- measurement -------------------------------------------------------------------------------------------------


def cpu_s(process: subprocess.Popen[str]) -> float:
    """CPU time of all its threads, by the scheduler's own nanosecond account (the usual one counts ticks of 10 ms)."""
    total_ns = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def measure(process: subprocess.Popen[str], rate_hz: float, seconds: float) -> float:
    """CPU microseconds a sample, after a warm-up."""
    time.sleep(WARM_UP_S)
    before, started = cpu_s(process), time.monotonic()
    time.sleep(seconds)
    assert process.poll() is None, "the process under test has ended"
    return (cpu_s(process) - before) / ((time.monotonic() - started) * rate_hz) * 1e6


def bridge_config(directory: Path, ros: bool) -> Path:
    path = directory / "bridge.toml"
    path.write_text(
        '[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\n'
        '[[source.device]]\nname = "companion"\nlsl_prefix = "pupil_labs"\n'
        '[[sink]]\ntype = "lsl"\n'
        + ('[[sink]]\ntype = "ros2"\n' if ros else "")
        + f'[service]\nsocket = "{directory}/control.sock"\nstate_dir = "{directory}"\n[logging]\nlevel = "warning"\n',
        encoding="utf-8",
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3, help="floor and bridge in turn, this many times")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pupil-bridge-benchmark-")))
        stay_local(directory)
        simulate = ["-m", "bridge", "simulate", "companion", "--gaze-rate", str(options.rate), "--event-rate", "0"]
        device = stack.enter_context(child(*simulate, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        assert device.stdout is not None
        name = json.loads(device.stdout.readline())["name"]
        endpoint, uuid = asyncio.run(endpoint_of_gaze(name))
        print(
            f"CPU per gaze sample at {options.rate:.0f} Hz, whole process; floor and bridge in turn, "
            f"{options.repeats} x {options.seconds:.0f} s each, medians\n"
        )
        print(f"{'outputs':<12} {'readers':<8} {'floor us':>9} {'bridge us':>10} {'ratio':>6}")
        for ros in (False, True):
            for readers in (False, True):
                costs: tuple[list[float], list[float]] = ([], [])
                for _ in range(options.repeats):
                    for bridged in (False, True):
                        if bridged:
                            arguments = ["-m", "bridge", "run", "--config", str(bridge_config(directory, ros))]
                        else:
                            arguments = ["-m", "benchmarks.gaze_path", "floor", endpoint, uuid, str(int(ros))]
                        with ExitStack() as run:
                            process = run.enter_context(child(*arguments))
                            if readers:
                                run.enter_context(child("-m", "benchmarks.gaze_path", "lsl-reader"))
                                if ros:
                                    run.enter_context(child("-m", "benchmarks.gaze_path", "ros-reader"))
                            costs[bridged].append(measure(process, options.rate, options.seconds))
                outputs = "LSL + ROS 2" if ros else "LSL"
                least, ours = statistics.median(costs[0]), statistics.median(costs[1])
                ratio = statistics.median(b / a for a, b in zip(*costs, strict=True))
                print(
                    f"{outputs:<12} {'yes' if readers else 'no':<8} {least:9.1f} {ours:10.1f} {ratio:6.2f}", flush=True
                )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["floor", endpoint, uuid, ros]:
            floor(endpoint, uuid, ros == "1")
        case ["lsl-reader"]:
            lsl_reader()
        case ["ros-reader"]:
            ros_reader()
        case _:
            main()
