"""ros2 launch pupil_bridge bridge.launch.py config:=/path/to/bridge.toml"""

import sys

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration


def generate_launch_description() -> LaunchDescription:
    """The daemon as one process, run by the Python that runs this launch."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("config", description="the TOML file that pupil-bridge runs"),
            ExecuteProcess(
                cmd=[sys.executable, "-m", "bridge", "run", "--config", LaunchConfiguration("config")],
                output="screen",
            ),
        ]
    )
