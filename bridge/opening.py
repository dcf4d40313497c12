"""Makes sinks and sources of what is configured. Their modules are imported here, when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from bridge.config import ClockConfig, LslSink, NdsiSource, Ros2Sink
from bridge.config import Sink as SinkConfig
from bridge.config import Source as SourceConfig
from bridge.errors import BridgeError, ConfigError
from bridge.names import DeviceNames
from bridge.pipeline import Sink
from bridge.sources import Source

log = logging.getLogger(__name__)

NO_RCLPY = (
    "ROS 2: rclpy is not installed, nothing is published there (pip install 'pupil-bridge[ros]', or source a ROS)"
)
NO_ROS = "ROS 2: cannot be started, nothing is published there: %s"


class Opened(NamedTuple):
    """The sinks that are open, the configuration of each by type, and why others are not."""

    sinks: list[Sink]
    configs: dict[str, SinkConfig]
    missing: list[str]


def open_sinks(configs: Iterable[SinkConfig], *, required: bool = True) -> Opened:
    """Opens sinks. One that this computer cannot run is said in one line and left out.

    Raises ConfigError when none is left and one is required.
    """
    opened = Opened([], {}, [])
    for config in configs:
        try:
            sink = _open_lsl(config) if isinstance(config, LslSink) else _open_ros2(config)
        except BridgeError as error:
            opened.missing.append(str(error))
            continue
        opened.sinks.append(sink)
        opened.configs[config.type] = config
    if required and not opened.sinks:
        raise ConfigError("no sink can be opened: install what it needs, or configure another one")
    return opened


def _open_lsl(config: LslSink) -> Sink:
    from bridge.sinks import lsl

    return lsl.LslSink(config.max_buffered_s)


def _open_ros2(config: Ros2Sink) -> Sink:
    """Raises BridgeError, after it has been logged, where there is no ROS that works."""
    try:
        from bridge.sinks import ros2
    except ImportError as error:
        if error.name == "rclpy":
            log.warning(NO_RCLPY)
            raise BridgeError(NO_RCLPY) from error
        if error.name is not None and error.name.startswith("bridge"):
            raise
        # A ROS for another Python, or without the messages that are needed.
        words = " ".join(str(error).split())
        log.error(NO_ROS, words)
        raise BridgeError(NO_ROS % words) from error
    try:
        return ros2.Ros2Sink(config)
    except BridgeError as error:  # a wrong environment; the traceback would say no more
        log.error(NO_ROS, error)
        raise BridgeError(NO_ROS % error) from error


def make_source(config: SourceConfig, clock: ClockConfig, names: DeviceNames) -> Source:
    """The source of this configuration, not yet running."""
    if isinstance(config, NdsiSource):
        from bridge.sources import ndsi

        return ndsi.NdsiDeviceSource(config, clock, names)
    from bridge.sources import pupil_core

    return pupil_core.PupilCoreDeviceSource(config, clock)
