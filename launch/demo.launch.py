"""ros2 launch pupil_bridge demo.launch.py

A simulated Companion phone, a simulated Pupil Capture and the bridge, on this machine alone and for ROS alone.
It takes bridge.launch.py's arguments but `config`.
"""

import atexit
import json
import socket
import sys
import tempfile
from pathlib import Path

from launch import LaunchDescription
from launch.actions import ExecuteProcess, GroupAction, IncludeLaunchDescription, SetEnvironmentVariable
from launch.launch_description_sources import PythonLaunchDescriptionSource

HERE = Path(__file__).parent
CONFIG = """\
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
name = "companion"
sensors = ["gaze", "event", "imu", "scene"]

[[source]]
type = "pupil_core"
address = "127.0.0.1:{core_port}"
name = "core"
topics = ["gaze", "pupil", "frame.world"]

[[sink]]
type = "ros2"

[service]
socket = {socket}
state_dir = {state_dir}
"""


def free_port(kind: socket.SocketKind) -> int:
    """A port of its own: other simulated devices and bridges on this machine are not in the demo."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def simulator(kind: str, *options: str) -> ExecuteProcess:
    return ExecuteProcess(cmd=[sys.executable, "-m", "bridge", "simulate", kind, *options], name=kind, output="log")


def generate_launch_description() -> LaunchDescription:
    """Three processes; ROS' discovery stays on this machine for theirs alone."""
    directory = tempfile.TemporaryDirectory(prefix="pupil-bridge-launch-")
    atexit.register(directory.cleanup)
    beacon_port, core_port = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    config = Path(directory.name) / "bridge.toml"
    config.write_text(
        CONFIG.format(
            beacon_port=beacon_port,
            core_port=core_port,
            socket=json.dumps(f"{directory.name}/control.sock"),
            state_dir=json.dumps(directory.name),
        ),
        encoding="utf-8",
    )
    return LaunchDescription(
        [
            GroupAction(
                [
                    SetEnvironmentVariable("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST"),
                    simulator(
                        "companion", "--beacon-port", str(beacon_port), "--offset-s", "1000", "--drift-ppm", "50"
                    ),
                    simulator("core", "--port", str(core_port), "--drift-ppm", "-20"),
                    IncludeLaunchDescription(
                        PythonLaunchDescriptionSource(str(HERE / "bridge.launch.py")),
                        launch_arguments={"config": str(config)}.items(),
                    ),
                ]
            )
        ]
    )
