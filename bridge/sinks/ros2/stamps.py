"""Which time a message has in its header, and what is known of it. For the publishing thread alone."""

from __future__ import annotations

from math import nan
from typing import Any, Final

from builtin_interfaces.msg import Time

from bridge.clock import Mapped
from bridge.clock.host import RealtimeOffset
from bridge.streams import Sample

SECONDS_RANGE: Final = range(-(2**31), 2**31)  # builtin_interfaces/Time counts seconds in 32 bits
INT64_RANGE: Final = range(-(2**63), 2**63)
RAW: Final = 4  # pupil_msgs/StampQuality.RAW


class Stamps:
    """Stamps by ``mode``: device-corrected (CLOCK_REALTIME of the mapped time), device-raw, or arrival."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.realtime = RealtimeOffset()

    def of(self, sample: Sample, host_ns: int) -> int:
        """The stamp of a sample that means ``host_ns``, in ns."""
        if self.mode == "device-corrected":
            return self.realtime.to_realtime(host_ns)
        return sample.device_ns if self.mode == "device-raw" else self.realtime.to_realtime(sample.received_ns)

    def at(self, host_ns: int) -> Time:
        """CLOCK_REALTIME at a host time."""
        return ros_time(self.realtime.to_realtime(host_ns))

    def quality(self, quality: Any, sample: Sample, mapped: Mapped) -> None:
        """Fills a pupil_msgs/StampQuality."""
        quality.device_time = int64(sample.device_ns)
        quality.epoch = mapped.epoch
        if self.mode == "device-corrected":
            quality.state = int(mapped.state)
            quality.bound = mapped.bound_ns * 1e-9
            quality.precision = mapped.precision_ns * 1e-9
        else:
            quality.state = RAW
            quality.bound = quality.precision = nan


def write(stamp: Time, ns: int) -> None:
    """Sets a message's time. One that does not fit (a device can have any time) is zero, which ROS reads as unknown."""
    sec, nanosec = divmod(ns, 1_000_000_000)
    stamp.sec, stamp.nanosec = (sec, nanosec) if sec in SECONDS_RANGE else (0, 0)


def int64(ns: int | None) -> int:
    """What fits into a message's 64 bits; zero for what does not, or is not known."""
    return ns if ns is not None and ns in INT64_RANGE else 0


def ros_time(ns: int) -> Time:
    """A new message of that time."""
    made = Time()
    write(made, ns)
    return made
