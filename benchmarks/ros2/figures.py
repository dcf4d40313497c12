"""From what the processes have noted to the figures of the table. Sums alone: no processes, no clocks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Slice(NamedTuple):
    """Some seconds of one publisher: ``sent_ns`` by index from ``first`` on, ``received`` as (index, ns).

    ``cpu_ns`` is by part, "total" among them.
    """

    first: int
    sent_ns: list[int]
    received: list[tuple[int, int]]
    cpu_ns: dict[str, int]
    elapsed_ns: int

    def latencies_us(self) -> list[float]:
        """Of what has arrived, in the order of arrival."""
        return [(ns - self.sent_ns[index - self.first]) / 1e3 for index, ns in self.received]

    @property
    def lost(self) -> int:
        return len(self.sent_ns) - len({index for index, _ in self.received})


class Round(NamedTuple):
    """What one publisher did in one round; ``idle_cpu_ns`` by part, in ``idle_elapsed_ns`` without a message."""

    slices: list[Slice]
    idle_cpu_ns: dict[str, int]
    idle_elapsed_ns: int

    @property
    def sent(self) -> int:
        return sum(len(each.sent_ns) for each in self.slices)

    def raw_us(self, part: str = "total") -> float:
        """CPU for each message, with all that the process does besides."""
        return sum(each.cpu_ns.get(part, 0) for each in self.slices) / self.sent / 1e3

    def idle_us_per_s(self, part: str = "total") -> float:
        return self.idle_cpu_ns.get(part, 0) / self.idle_elapsed_ns * 1e6

    def net_us(self, part: str = "total") -> float:
        """CPU for each message, less what the process spends in the same time when it is idle."""
        elapsed_s = sum(each.elapsed_ns for each in self.slices) / 1e9
        return self.raw_us(part) - self.idle_us_per_s(part) * elapsed_s / self.sent

    def ros_us(self) -> float:
        """The same without the loop, where another thread publishes: the loop receives and maps, which is not ROS."""
        publishes = any("publisher" in each.cpu_ns for each in self.slices)
        return self.net_us() - (self.net_us("loop") if publishes else 0.0)

    def latency_us(self, percent: float) -> float:
        return percentile([us for each in self.slices for us in each.latencies_us()], percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent are not above. NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def median(rounds: Iterable[Round], figure: Callable[[Round], float]) -> float:
    return statistics.median(figure(each) for each in rounds)


def ratio(ours: Sequence[Round], theirs: Sequence[Round], figure: Callable[[Round], float]) -> float:
    """Median of the ratios within a round: what the machine does besides falls on both."""
    return statistics.median(figure(a) / figure(b) for a, b in zip(ours, theirs, strict=True))


def summary(rounds: Sequence[Round], beside: Sequence[Round]) -> dict[str, Any]:
    """All figures of one publisher, with ratios to those of another in the same rounds."""
    parts = sorted({part for each in rounds for one in each.slices for part in one.cpu_ns} - {"total"})
    figures: dict[str, Callable[[Round], float]] = {
        "net_us": Round.net_us,
        "ros_us": Round.ros_us,
        "raw_us": Round.raw_us,
        "p50_us": lambda each: each.latency_us(50),
        "p99_us": lambda each: each.latency_us(99),
    }
    return {
        "sent": sum(each.sent for each in rounds),
        "lost": sum(one.lost for each in rounds for one in each.slices),
        "idle_us_per_s": median(rounds, Round.idle_us_per_s),
        **{name: median(rounds, figure) for name, figure in figures.items()},
        "parts_us": {part: median(rounds, lambda each, part=part: each.net_us(part)) for part in parts},  # type: ignore[misc]
        "ratios": {name: ratio(rounds, beside, figure) for name, figure in figures.items()},
    }
