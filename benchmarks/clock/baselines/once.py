"""Methods that measure once, or not at all."""

from __future__ import annotations

from typing import Any

from benchmarks.clock.baselines.ping import Ping


class Arrival:
    """The time of arrival is the sample's time, as ROS camera drivers stamp (``msg.header.stamp = node.now()``).

    It claims no error and so has a bound of 0.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        self._arrived_s: float | None = None

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        pass

    def add_arrival(self, t_device: float, t_local: float) -> None:
        self._arrived_s = t_local

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        return None if self._arrived_s is None else (self._arrived_s, 0.0)


class OneMidpoint:
    """The middle of the first ping for ever: what scripts do that ask Pupil Remote once for its time (``t``).

    The bound is half of that ping's round trip. A step of the clock is never noticed.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        self._first: Ping | None = None

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        if self._first is None:
            self._first = Ping(t_send_local, t_device, t_recv_local)

    def add_arrival(self, t_device: float, t_local: float) -> None:
        pass

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        if self._first is None:
            return None
        return t_device + self._first.offset_s, self._first.rtt_s / 2


class MeanOfEchoes:
    """The mean of the middles of 100 pings at the start, for ever.

    Source: lsl-relay, ``DataReceiver.estimate_clock_offset``, which takes ``time_offset_ms.mean`` of
    ``TimeOffsetEstimator.estimate`` of pupil-labs-realtime-api: the first echo is dropped, 100 follow, none is weighed
    or rejected. There they take about a second; here they come at the rate of the pings, and until there are 100 the
    mean is that of those there are. The bound is half of the smallest round trip. A step is never noticed.
    """

    ECHOES = 100

    def __init__(self, meta: dict[str, Any]) -> None:
        self._first_dropped = False
        self._echoes = 0
        self._base_s = 0.0  # of the first echo, so that the sum keeps its digits
        self._sum_s = 0.0
        self._smallest_rtt_s = float("inf")

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        if not self._first_dropped:
            self._first_dropped = True
            return
        if self._echoes == self.ECHOES:
            return
        ping = Ping(t_send_local, t_device, t_recv_local)
        if not self._echoes:
            self._base_s = ping.offset_s
        self._echoes += 1
        self._sum_s += ping.offset_s - self._base_s
        self._smallest_rtt_s = min(self._smallest_rtt_s, ping.rtt_s)

    def add_arrival(self, t_device: float, t_local: float) -> None:
        pass

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        if not self._echoes:
            return None
        return t_device + self._base_s + self._sum_s / self._echoes, self._smallest_rtt_s / 2
