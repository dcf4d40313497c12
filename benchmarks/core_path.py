"""A busy Pupil Core for a minute: is anything lost, and what does a datum cost beside the bare libraries?

    .venv/bin/python -m benchmarks.core_path [--seconds 60] [--gaze-rate 400] [--pupil-rate 200] [--frame-rate 30]

One simulated Pupil Capture sends binocular 3d gaze, pupils of two eyes by two methods, and JPEGs of 1280 x 720. Floor
and bridge take turns; a reader of LSL and one of ROS 2 take what comes out of them, the same for both. The floor is a
single-threaded loop of pyzmq, msgspec, pylsl and rclpy: no clock, no order, no metadata, no error handling. CPU is that
of the whole process, its library threads included. Lost is what the simulator sent between the first and the last datum
that the LSL reader has, and that the reader has not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.gaze_path import child, cpu_s
from benchmarks.local import stay_local

GOAL = 2.0
WARM_UP_S = 6.0  # for the clock's lock and the readers
STREAMS = {
    "pupil_capture": "gaze",
    **{f"pupil_capture_Pupil{e}_{m}": f"pupil.{e}.{m}" for e in (0, 1) for m in ("2d", "3d")},
}
TOPICS = ("gaze/pixel", "pupil", "scene/image_raw/compressed")


# --- processes under test ----------------------------------------------------------------------------------------


def floor(backbone: str) -> None:
    """The least that republishes: receive, decode, push, publish."""
    import array

    import msgspec
    import pylsl
    import rclpy
    import zmq
    from geometry_msgs.msg import PointStamped
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import CompressedImage

    from pupil_msgs.msg import Pupil as PupilMessage

    class Eyes(msgspec.Struct):
        right: tuple[float, float, float] = msgspec.field(name="0")
        left: tuple[float, float, float] = msgspec.field(name="1")

    class Base(msgspec.Struct):
        diameter: float
        diameter_3d: float

    class Gaze(msgspec.Struct):
        timestamp: float
        confidence: float
        norm_pos: tuple[float, float]
        gaze_point_3d: tuple[float, float, float]
        eye_centers_3d: Eyes
        gaze_normals_3d: Eyes
        base_data: tuple[Base, Base]

    class Circle(msgspec.Struct, frozen=True):
        center: tuple[float, float, float] = (0.0, 0.0, 0.0)
        normal: tuple[float, float, float] = (0.0, 0.0, 0.0)

    class Pupil(msgspec.Struct):
        id: int
        timestamp: float
        confidence: float
        norm_pos: tuple[float, float]
        diameter: float
        diameter_3d: float = 0.0
        model_confidence: float = 0.0
        circle_3d: Circle = Circle()

    class Head(msgspec.Struct):
        timestamp: float
        index: int

    read_gaze, read_pupil = msgspec.msgpack.Decoder(Gaze).decode, msgspec.msgpack.Decoder(Pupil).decode
    read_head = msgspec.msgpack.Decoder(Head).decode
    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 10_000)
    for topic in (b"gaze.", b"pupil.", b"frame.world"):
        socket.setsockopt(zmq.SUBSCRIBE, topic)
    socket.connect(backbone)

    def outlet(name: str, channels: int) -> Any:
        return pylsl.StreamOutlet(pylsl.StreamInfo(name, "Gaze", channels, 0.0, "double64", f"floor {name}"))

    gazes, frames = outlet("pupil_capture", 23), outlet("pupil_capture_SceneFrames", 2)
    pupils = {
        f"pupil.{e}.{m}".encode(): outlet(f"pupil_capture_Pupil{e}_{m}", 13) for e in (0, 1) for m in ("2d", "3d")
    }
    rclpy.init()
    node = rclpy.create_node("floor", namespace="pupil_bridge", start_parameter_services=False, enable_rosout=False)
    pixel = node.create_publisher(PointStamped, f"core/{TOPICS[0]}", QoSProfile(depth=50))
    pupil = node.create_publisher(PupilMessage, f"core/{TOPICS[1]}", QoSProfile(depth=50))
    image = node.create_publisher(CompressedImage, f"core/{TOPICS[2]}", QoSProfile(depth=5))
    point, picture = PointStamped(), CompressedImage(format="jpeg")
    messages = {topic: PupilMessage() for topic in pupils}

    def stamp(header: Any) -> None:
        header.stamp.sec, header.stamp.nanosec = divmod(time.time_ns(), 1_000_000_000)

    while True:
        topic, payload, *rest = socket.recv_multipart()
        if topic in pupils:
            p = read_pupil(payload)
            circle = p.circle_3d
            pupils[topic].push_sample(
                [
                    *(p.confidence, *p.norm_pos, p.diameter, p.diameter_3d, p.model_confidence),
                    *(*circle.center, *circle.normal, p.timestamp),
                ],
                time.monotonic(),
            )
            said = messages[topic]
            stamp(said.header)
            said.confidence, said.normalized_x, said.normalized_y = p.confidence, p.norm_pos[0], 1.0 - p.norm_pos[1]
            said.diameter_px, said.diameter, said.model_confidence = p.diameter, p.diameter_3d / 1e3, p.model_confidence
            for vector, values in ((said.circle_center, circle.center), (said.circle_normal, circle.normal)):
                vector.x, vector.y, vector.z = values
            pupil.publish(said)
        elif topic == b"frame.world":
            head = read_head(payload)
            frames.push_sample([float(head.index), head.timestamp], time.monotonic())
            stamp(picture.header)
            picture.data = array.array("B", rest[0])
            image.publish(picture)
        else:
            g = read_gaze(payload)
            base, centers, normals = g.base_data, g.eye_centers_3d, g.gaze_normals_3d
            gazes.push_sample(
                [
                    *(g.confidence, *g.norm_pos, *g.gaze_point_3d, *centers.right, *centers.left),
                    *(*normals.right, *normals.left, base[0].diameter, base[1].diameter),
                    *(base[0].diameter_3d, base[1].diameter_3d, g.timestamp),
                ],
                time.monotonic(),
            )
            stamp(point.header)
            point.point.x, point.point.y = g.norm_pos[0] * 1280, (1.0 - g.norm_pos[1]) * 720
            pixel.publish(point)


def lsl_reader(path: str) -> None:
    """Writes the device times of what it has, stream by stream, when its input ends."""
    import pylsl

    inlets = {
        name: pylsl.StreamInlet(pylsl.resolve_byprop("name", name, timeout=30)[0], max_buflen=60) for name in STREAMS
    }
    for inlet in inlets.values():
        inlet.open_stream(timeout=10)
    found: dict[str, list[float]] = {name: [] for name in STREAMS}
    print("reads", flush=True)
    os.set_blocking(0, False)
    while sys.stdin.buffer.read(1) is None:
        time.sleep(0.02)
        for name, inlet in inlets.items():
            rows, _ = inlet.pull_chunk(timeout=0.0, max_samples=4096)
            found[name] += [row[-1] for row in rows]
    Path(path).write_text(json.dumps(found), encoding="utf-8")


def ros_reader() -> None:
    import rclpy
    from geometry_msgs.msg import PointStamped
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import CompressedImage

    from pupil_msgs.msg import Pupil

    rclpy.init()
    node = rclpy.create_node("reader", start_parameter_services=False, enable_rosout=False)
    for topic, kind in zip(TOPICS, (PointStamped, Pupil, CompressedImage), strict=True):
        node.create_subscription(kind, f"/pupil_bridge/core/{topic}", lambda _: None, QoSProfile(depth=50))
    rclpy.spin(node)


# --- measurement -------------------------------------------------------------------------------------------------


def config(directory: Path, port: int) -> Path:
    path = directory / "bridge.toml"
    path.write_text(
        f'[[source]]\ntype = "pupil_core"\naddress = "127.0.0.1:{port}"\nlsl_prefix = "pupil_capture"\n'
        'topics = ["gaze", "pupil", "frame.world"]\n[[sink]]\ntype = "lsl"\n[[sink]]\ntype = "ros2"\n'
        f'[service]\nsocket = "{directory}/control.sock"\nstate_dir = "{directory}"\n[logging]\nlevel = "warning"\n',
        encoding="utf-8",
    )
    return path


def sent(truth: Path) -> dict[str, list[int]]:
    """What the simulator has put on the backbone: device times in microseconds, by stream of LSL."""
    found: dict[str, list[int]] = {name: [] for name in STREAMS}
    names = {prefix: name for name, prefix in STREAMS.items()}
    with truth.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            stream = str(row.get("stream", ""))
            name = names.get("gaze" if stream.startswith("gaze") else stream)
            if name is not None and row["sent"]:
                found[name].append(round(row["device_ns"] / 1e3))
    return found


def lost(truth: Iterable[int], received: Iterable[float]) -> tuple[int, int]:
    """(lost, received) between the first and the last that was received."""
    have = sorted(round(second * 1e6) for second in received)
    if not have:
        return -1, 0
    should = [us for us in truth if have[0] <= us <= have[-1]]
    return len(should) - len(have), len(have)


def turn(options: argparse.Namespace, directory: Path, bridged: bool) -> tuple[float, dict[str, tuple[int, int]], Any]:
    """(CPU in us a datum, lost and received by stream, the bridge's status) of one process under test."""
    truth = directory / f"truth-{time.monotonic_ns()}.jsonl"
    simulate = ["-m", "bridge", "simulate", "core", "--port", "0", "--synthesise", "--truth", str(truth)]
    simulate += ["--gaze-rate", str(options.gaze_rate), "--pupil-rate", str(options.pupil_rate)]
    simulate += ["--frame-rate", str(options.frame_rate), "--topics", "gaze,pupil,frame.world"]
    rate_hz = options.gaze_rate + 4 * options.pupil_rate + options.frame_rate
    with ExitStack() as stack:
        device = stack.enter_context(child(*simulate, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        assert device.stdout is not None
        ports = json.loads(device.stdout.readline())
        if bridged:
            arguments = [
                "-m",
                "bridge",
                "run",
                "--config",
                str(config(directory, int(ports["address"].rpartition(":")[2]))),
            ]
        else:
            arguments = ["-m", "benchmarks.core_path", "floor", f"tcp://127.0.0.1:{ports['sub_port']}"]
        process = stack.enter_context(child(*arguments))
        stack.enter_context(child("-m", "benchmarks.core_path", "ros-reader"))
        times = directory / "times.json"
        reader = stack.enter_context(
            child("-m", "benchmarks.core_path", "lsl-reader", str(times), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        assert reader.stdout is not None
        assert reader.stdin is not None
        reader.stdout.readline()
        time.sleep(WARM_UP_S)
        before, started = cpu_s(process), time.monotonic()
        time.sleep(options.seconds)
        assert process.poll() is None, "the process under test has ended"
        cost_us = (cpu_s(process) - before) / ((time.monotonic() - started) * rate_hz) * 1e6
        status = None
        if bridged:
            command = [sys.executable, "-m", "bridge", "status", "--json", "--socket", str(directory / "control.sock")]
            status = json.loads(subprocess.check_output(command, text=True))
        reader.stdin.close()
        reader.wait(20)
        device.terminate()
        device.wait(10)
    received = json.loads(times.read_text(encoding="utf-8"))
    truths = sent(truth)
    return cost_us, {name: lost(truths[name], received[name]) for name in STREAMS}, status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--gaze-rate", type=float, default=400.0)
    parser.add_argument("--pupil-rate", type=float, default=200.0)
    parser.add_argument("--frame-rate", type=float, default=30.0)
    options = parser.parse_args()
    rate_hz = options.gaze_rate + 4 * options.pupil_rate + options.frame_rate
    with tempfile.TemporaryDirectory(prefix="pupil-bridge-benchmark-") as temporary:
        directory = Path(temporary)
        stay_local(directory)
        os.environ.pop("ROS_PYTHON_CHECK_FIELDS", None)
        costs = {}
        for name in ("floor", "bridge"):
            costs[name], losses, status = turn(options, directory, name == "bridge")
            words = ", ".join(f"{STREAMS[stream]} {few} of {few + many}" for stream, (few, many) in losses.items())
            print(
                f"{name}: {costs[name]:.1f} us of CPU a datum ({costs[name] * rate_hz / 1e4:.1f} % of a core); "
                f"lost: {words}"
            )
            if status is not None:
                drops = {stream["name"]: stream["dropped"] for stream in status["devices"][0]["streams"]}
                print(f"bridge's own drops: {drops}")
        print(f"ratio {costs['bridge'] / costs['floor']:.2f} (goal: at most {GOAL}), {rate_hz:.0f} datums a second")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["floor", backbone]:
            floor(backbone)
        case ["lsl-reader", path]:
            lsl_reader(path)
        case ["ros-reader"]:
            ros_reader()
        case _:
            main()
