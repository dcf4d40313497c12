"""ros2 launch pupil_bridge bridge.launch.py namespace:=robot config:=/path/to/bridge.toml

One daemon for all devices of the configuration, run by the Python that runs this launch, so that both are of one
environment. A plain node: the daemon is a lifecycle node that configures and activates itself, and `ros2 lifecycle`
reaches it; launch_ros' LifecycleNode would fix its name and take part in its transitions, for nothing.
"""

import sys
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, SetEnvironmentVariable, UnsetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import Node, PushRosNamespace

# Beside this file in the share folder, and in the sources.
DEFAULT_CONFIG = str(Path(__file__).parent.parent / "config" / "bridge.toml")


def given(argument: str) -> IfCondition:
    return IfCondition(NotEqualsSubstitution(LaunchConfiguration(argument), ""))


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the daemon."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "namespace", default_value="", description="ROS namespace, in place of the configuration's"
            ),
            DeclareLaunchArgument(
                "config", default_value=DEFAULT_CONFIG, description="TOML file that pupil-bridge runs"
            ),
            DeclareLaunchArgument(
                "log_level",
                default_value="",
                choices=["", "debug", "info", "warning", "error"],
                description="how much it says, in place of the configuration's",
            ),
            DeclareLaunchArgument(
                "respawn",
                default_value="false",
                choices=["true", "false"],
                description="whether it is started again when it has ended",
            ),
            GroupAction(
                [
                    # Where ROS comes as wheels, Python finds its libraries by itself; this says that it has done so.
                    UnsetEnvironmentVariable("_ROS_WHEELS_BOOTSTRAP_COMPLETE"),
                    SetEnvironmentVariable(
                        "PUPIL_BRIDGE_LOGGING_LEVEL",
                        LaunchConfiguration("log_level"),
                        condition=given("log_level"),
                    ),
                    # Not the node's own: where this is empty, that would be "/", and not what is configured.
                    PushRosNamespace(LaunchConfiguration("namespace"), condition=given("namespace")),
                    Node(
                        executable=sys.executable,
                        exec_name="pupil_bridge",  # in what launch prints; `name` would rename the node
                        arguments=["-m", "bridge", "run", "--config", LaunchConfiguration("config")],
                        output="screen",
                        respawn=LaunchConfiguration("respawn"),
                        respawn_delay=2.0,
                    ),
                ]
            ),
        ]
    )
