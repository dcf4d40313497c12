"""Many Companion devices at once: CPU of the bridge, and where it goes, with readers of LSL and ROS 2 attached.

    .venv/bin/python -m benchmarks.fleet [--seconds 30] [--only full|gaze]

Two fleets, each simulated by one process of its own: four devices with gaze at 200 Hz, IMU at 200 Hz, JPEGs of 80 kB at
30 Hz and events; and thirty with gaze at 120 Hz. CPU is that of the whole process of the bridge, its library threads
included. By thread, as the system counts it; within the event loop by samples of what it is at, every 2 ms for five
seconds more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gaze_path import child
from benchmarks.local import stay_local
from benchmarks.ros2.cpu import THREADS

WARM_UP_S = 12.0
PROFILE_S = 5.0
FLEETS: dict[str, dict[str, Any]] = {
    "full": {
        "devices": 4,
        "goal": 0.40,
        "sensors": ["gaze", "event", "imu", "scene"],
        "simulate": ["--gaze-rate", "200", "--imu-rate", "200", "--scene-rate", "30", "--scene-bytes", "80000"],
        "streams": ["Gaze", "IMU", "SceneFrames", "Event"],
        "topics": ["gaze/pixel", "imu/data_raw", "scene/image_raw/compressed"],
    },
    "gaze": {
        "devices": 30,
        "goal": 1.0,
        "sensors": ["gaze", "event"],
        "simulate": ["--gaze-rate", "120", "--imu-rate", "0", "--scene-rate", "0", "--event-rate", "0.1"],
        "streams": ["Gaze"],
        "topics": ["gaze/pixel"],
    },
}
STAGES = (  # the innermost module of the bridge that the loop is in
    ("bridge.wire", "decode"),
    ("bridge.clock", "clock"),
    ("bridge.sinks.lsl", "LSL push"),
    ("bridge.sinks.ros2", "ROS queue"),
    ("bridge.stream_input", "map, order"),
    ("bridge.pipeline", "map, order"),
    ("bridge.sources", "receive"),
    ("bridge.", "status, rest"),
)


# --- the daemon, watched from a thread of its own ------------------------------------------------------------------


def daemon(config: str) -> None:
    threading.Thread(target=_answer, name="benchmark", daemon=True).start()
    sys.argv = ["pupil-bridge", "run", "--config", config]
    from bridge.cli import main as run

    run()


def _answer() -> None:
    for line in sys.stdin:
        print(json.dumps(_cpu() if line.strip() == "cpu" else _profile()), file=sys.__stdout__, flush=True)


def _cpu() -> dict[str, float]:
    """CPU seconds so far, by thread."""
    names = {thread.native_id: THREADS.get(thread.name, thread.name) for thread in threading.enumerate()}
    spent: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        comm, ns = (task / "comm").read_text().strip(), int((task / "schedstat").read_text().split()[0])
        name = names.get(int(task.name)) or ("ZeroMQ" if comm.startswith("ZMQ") else "DDS and liblsl")
        spent["discovery (ZRE)" if name.startswith("zre") else name] += ns / 1e9
    spent.pop("benchmark", None)
    return dict(spent)


def _profile() -> dict[str, int]:
    """How often the loop was found at what."""
    (main,) = (thread for thread in threading.enumerate() if thread is threading.main_thread())
    found: Counter[str] = Counter()
    end_s = time.monotonic() + PROFILE_S
    while time.monotonic() < end_s:
        time.sleep(0.002)
        found[_stage(sys._current_frames()[main.ident or 0])] += 1
    return dict(found)


def _stage(frame: FrameType | None) -> str:
    if frame is not None and frame.f_globals.get("__name__") == "selectors":
        return "idle"
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        for prefix, stage in STAGES:
            if name.startswith(prefix):
                return stage
        frame = frame.f_back
    return "event loop"


# --- readers -----------------------------------------------------------------------------------------------------


def lsl_reader(*names: str) -> None:
    """Prints how many samples it has, when its input ends."""
    import pylsl

    inlets = []
    for name in names:
        inlets.append(pylsl.StreamInlet(pylsl.resolve_byprop("name", name, timeout=60)[0], max_buflen=30))
        inlets[-1].open_stream(timeout=10)
    print("reads", flush=True)
    os.set_blocking(0, False)
    count = 0
    while sys.stdin.buffer.read(1) is None:
        time.sleep(0.05)
        count += sum(len(inlet.pull_chunk(timeout=0.0, max_samples=4096)[1]) for inlet in inlets)
    print(count, flush=True)


def ros_reader(*topics: str) -> None:
    import rclpy
    from geometry_msgs.msg import PointStamped
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import CompressedImage, Imu

    rclpy.init()
    node = rclpy.create_node("reader", start_parameter_services=False, enable_rosout=False)
    for topic in topics:
        kind = Imu if "imu" in topic else CompressedImage if "image" in topic else PointStamped
        node.create_subscription(kind, f"/pupil_bridge/{topic}", lambda _: None, QoSProfile(depth=50))
    rclpy.spin(node)


# --- measurement -------------------------------------------------------------------------------------------------


def config(directory: Path, fleet: dict[str, Any], port: int) -> Path:
    devices = "".join(
        f'[[source.device]]\nname = "d{n}"\nmatch = "Fleet {n}"\nsensors = {json.dumps(fleet["sensors"])}\n'
        for n in range(1, fleet["devices"] + 1)
    )
    path = directory / "bridge.toml"
    path.write_text(
        f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {port}\n{devices}'
        '[[sink]]\ntype = "lsl"\n[[sink]]\ntype = "ros2"\n'
        f'[service]\nsocket = "{directory}/control.sock"\nstate_dir = "{directory}"\n[logging]\nlevel = "warning"\n',
        encoding="utf-8",
    )
    return path


def measure(name: str, fleet: dict[str, Any], seconds: float) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pupil-bridge-benchmark-")))
        stay_local(directory)
        port, numbers = 25_671, range(1, fleet["devices"] + 1)
        simulate = ["-m", "bridge", "simulate", "companion", "--devices", str(fleet["devices"]), "--name", "Fleet {n}"]
        simulate += ["--beacon-port", str(port), *fleet["simulate"]]
        device = stack.enter_context(child(*simulate, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        assert device.stdout is not None
        device.stdout.readline()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        path = str(config(directory, fleet, port))
        watched = stack.enter_context(child("-m", "benchmarks.fleet", "daemon", path, **pipes))
        topics = [f"d{n}/{topic}" for n in numbers for topic in fleet["topics"]]
        stack.enter_context(child("-m", "benchmarks.fleet", "ros-reader", *topics))
        names = [f"pupil_labs_d{n}_{suffix}" for n in numbers for suffix in fleet["streams"]]
        reader = stack.enter_context(child("-m", "benchmarks.fleet", "lsl-reader", *names, **pipes))
        assert reader.stdout is not None
        assert reader.stdin is not None
        reader.stdout.readline()
        time.sleep(WARM_UP_S)

        def ask(what: str) -> dict[str, Any]:
            assert watched.stdin is not None
            assert watched.stdout is not None
            watched.stdin.write(f"{what}\n")
            watched.stdin.flush()
            return dict(json.loads(watched.stdout.readline()))

        before, started, first = ask("cpu"), time.monotonic(), status(directory)
        time.sleep(seconds)
        after, elapsed_s, last = ask("cpu"), time.monotonic() - started, status(directory)
        stages = ask("profile")
        reader.stdin.close()
        words = " ".join(fleet["simulate"])
        print(f"{name}: {fleet['devices']} devices, {words}; LSL reader has {reader.stdout.readline().strip()}")
    spent = {part: (after[part] - before.get(part, 0.0)) / elapsed_s for part in after}
    total = sum(spent.values())
    came, dropped = last["came"] - first["came"], last["dropped"] - first["dropped"]
    print(f"  {100 * total:.1f} % of a core (goal: under {100 * fleet['goal']:.0f} %)")
    print(f"  {came / elapsed_s:.0f} samples and frames a second, {1e6 * total * elapsed_s / came:.0f} us each")
    print(f"  dropped in {elapsed_s:.0f} s: {dropped}")
    for part, share in sorted(spent.items(), key=lambda each: -each[1]):
        print(f"    {100 * share:5.1f} %  {part}")
    busy = {stage: count for stage, count in stages.items() if stage != "idle"}
    for stage, count in sorted(busy.items(), key=lambda each: -each[1]):
        print(f"      of the loop {100 * count / sum(busy.values()):5.1f} %  {stage}")


def status(directory: Path) -> dict[str, int]:
    """Samples that have come and such as were dropped, of all streams."""
    command = [sys.executable, "-m", "bridge", "status", "--json", "--socket", str(directory / "control.sock")]
    streams = [s for d in json.loads(subprocess.check_output(command))["devices"] for s in d["streams"]]
    came = sum(stream["samples_in"] for stream in streams)
    return {"came": came, "dropped": sum(sum(stream["dropped"].values()) for stream in streams)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--only", choices=list(FLEETS))
    options = parser.parse_args()
    os.environ.pop("ROS_PYTHON_CHECK_FIELDS", None)
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    for name, fleet in FLEETS.items():
        if options.only in (None, name):
            measure(name, fleet, options.seconds)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["daemon", path]:
            daemon(path)
        case ["lsl-reader", *names]:
            lsl_reader(*names)
        case ["ros-reader", *topics]:
            ros_reader(*topics)
        case _:
            main()
