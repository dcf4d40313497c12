"""Fixtures of the ROS 2 sink's tests. Without rclpy the tests skip themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bridge.sinks.ros2 import Ros2Sink
    from tests.sinks.ros2.lab import Hearer, Notes, Peer


@pytest.fixture(scope="module")
def plain_node() -> Iterator[Any]:
    """A node for the module, which lives in the module's ROS domain and ends with it."""
    from tests.sinks.ros2 import lab

    with lab.node_alone() as node:
        yield node


@pytest.fixture
def desk(plain_node: Any) -> Notes:
    from tests.sinks.ros2 import lab

    return lab.Notes(plain_node)


@pytest.fixture
def sink() -> Iterator[Ros2Sink]:
    """A sink that is active and has one device."""
    from tests.sinks.ros2 import lab

    with lab.open_sink() as made:
        made.open_device(lab.DEVICE)
        yield made


@pytest.fixture
def hearer() -> Iterator[Hearer]:
    from tests.sinks.ros2 import lab

    made = lab.Hearer()
    yield made
    made.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    from tests.sinks.ros2 import lab

    made = lab.Peer()
    yield made
    made.close()
