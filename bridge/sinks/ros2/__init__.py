"""ROS 2 topics, services and parameters. Importing this needs rclpy: from PyPI's wheels, or of a sourced ROS."""

import rclpy  # noqa: F401 - first of all, so that its absence is said by its name

from bridge.sinks.ros2.sink import Ros2Sink

__all__ = ["Ros2Sink"]
