"""What the topics of all devices share: the node, the stamps, the message packages that are there, publishers by name.

Publishers are made, used and destroyed on the publishing thread alone.
"""

from __future__ import annotations

import logging
from copy import copy
from importlib import import_module
from typing import Any, Final

from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions

from bridge.config import Ros2Sink
from bridge.sinks.ros2.stamps import Stamps
from bridge.sinks.ros2.topics import BY_NAME, CUSTOM_PACKAGES, TOPICS

log = logging.getLogger(__name__)

OVERRIDES: Final = QoSOverridingOptions.with_default_policies()  # parameters qos_overrides./topic.publisher.depth ...


class Desk:
    """One node's publishers. ``settings`` may change at any time between two messages."""

    def __init__(self, node: Node, settings: Ros2Sink) -> None:
        self.node = node
        self.stamps = Stamps(settings.timestamp_mode)
        self.packages = frozenset(name for name in CUSTOM_PACKAGES if self._is_there(name))
        self._settings = settings

    @property
    def settings(self) -> Ros2Sink:
        return self._settings

    @settings.setter
    def settings(self, settings: Ros2Sink) -> None:
        self._settings = settings
        self.stamps.mode = settings.timestamp_mode

    def _is_there(self, package: str) -> bool:
        """With all messages that are used: a source folder of that name, in the current directory, can be imported."""
        try:
            for topic in TOPICS:
                if topic.type.startswith(f"{package}/"):
                    self.type(topic.type)
        except (ImportError, AttributeError):
            return False
        return True

    def type(self, name: str) -> Any:
        """The class of a message such as "std_msgs/msg/Header". Raises ImportError where its package is not there."""
        package, _, kind = name.split("/")
        return getattr(import_module(f"{package}.msg"), kind)

    def has(self, topic: str) -> bool:
        """Whether the message of this topic of the table can be imported."""
        package = BY_NAME[topic].type.split("/")[0]
        return package not in CUSTOM_PACKAGES or package in self.packages

    def publisher(self, device: str, topic: str, *, kind: Any = None, **names: str) -> Any:
        """A publisher of a topic of the table; ``names`` are what stands in braces in its name."""
        entry = BY_NAME[topic]
        name = entry.name.format(**names)
        qos = QoSProfile(depth=entry.depth)
        if entry.latched:
            qos.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
        kind, name = kind or self.type(entry.type), name if name.startswith("/") else f"{device}/{name}"
        try:
            return self.node.create_publisher(kind, name, copy(qos), qos_overriding_options=OVERRIDES)
        except (RuntimeError, ParameterException) as error:  # RCLError is a RuntimeError
            made = self.node.create_publisher(kind, name, qos)
            log.error("ROS 2: %s: qos_overrides are not possible, and left out: %s", name, " ".join(str(error).split()))
            return made

    def frame(self, topic: str, device: str, **names: str) -> str:
        """The frame of a topic's messages."""
        frame = BY_NAME[topic].frame.format(device=device, **names)
        return f"{self._settings.frame_prefix}{frame}" if frame else ""

    def message_packages(self) -> str:
        """One line that says which messages are there."""
        there = ", ".join(sorted(self.packages))
        missing = ", ".join(sorted(set(CUSTOM_PACKAGES) - self.packages))
        return f"standard topics{f' and those of {there}' if there else ''}" + (f"; without {missing}" * bool(missing))
