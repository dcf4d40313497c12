"""What is read of the daemon once a second, and what that says: slopes with their uncertainty, a table."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from typing import Any

Z_95 = 1.96
WARM_UP_S = 600.0  # see `warm_up_s`
BLOCK_S = 30.0
MB = 1e6
HOUR_S = 3600.0


@dataclass(frozen=True)
class Reading:
    """The daemon at one moment. Memory in bytes; ``cpu_s`` since its start; ``lag_s`` None where it does not tell."""

    time_s: float
    rss: int
    anon: int
    file: int
    shmem: int
    files: int
    threads: int
    cpu_s: float
    answer_s: float
    lag_s: float | None


def read(pid: int, time_s: float, answer_s: float, status: dict[str, Any]) -> Reading:
    """Reads /proc; ``answer_s`` is how long the status took to come."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())

    def size(key: str) -> int:
        return int(fields[key].split()[0]) * 1024

    cpu = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Reading(
        time_s=time_s,
        rss=size("VmRSS"),
        anon=size("RssAnon"),
        file=size("RssFile"),
        shmem=size("RssShmem"),
        files=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(fields["Threads"]),
        cpu_s=(int(cpu[11]) + int(cpu[12])) / os.sysconf("SC_CLK_TCK"),
        answer_s=answer_s,
        lag_s=status.get("loop", {}).get("lag_s"),
    )


def warm_up_s(duration_s: float) -> float:
    """What is left out before a slope is taken: ten minutes, or a third of a run that is shorter than half an hour.

    Every device's clock remembers nine minutes of blocks, which fill once; every kind of fault comes once in the first
    minutes, with the outlets, log lines and code that it needs; the allocator's arenas reach the size that the largest
    burst takes, and have as many holes as faults make: those come fast at first and then hardly (a run of 100 minutes
    with a fault every 7 s: 2.7 MB from minute 10 to 45, 0.6 MB from there to the end, with as much in use throughout).
    So there are more faults meanwhile. What grows after that grows for ever.
    """
    return min(WARM_UP_S, duration_s / 3)


@dataclass(frozen=True)
class Slope:
    """Units an hour, with the limits between which it lies with 95 %. NaN where there is too little to tell."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+8.2f}  ({self.low:+.2f} to {self.high:+.2f})"


def slope(times_s: list[float], values: list[float]) -> Slope:
    """Theil and Sen's: the median of the slopes between all pairs of half-minute medians, and Kendall's limits.

    Medians of blocks, because one burst must not tilt the line. What is left of the correlation of neighbours makes the
    number of independent points smaller, and the limits wider.
    """
    blocks: dict[int, list[tuple[float, float]]] = {}
    for time_s, value in zip(times_s, values, strict=True):
        blocks.setdefault(int(time_s // BLOCK_S), []).append((time_s, value))
    points = [(median(t for t, _ in block), median(v for _, v in block)) for block in blocks.values()]
    count = len(points)
    if count < 6:
        return Slope(math.nan, math.nan, math.nan)
    slopes = sorted((v1 - v0) / (t1 - t0) for (t0, v0), (t1, v1) in combinations(points, 2))
    middle = median(slopes)
    residuals = [value - middle * time_s for time_s, value in points]
    spread = math.sqrt(count * (count - 1) * (2 * count + 5) / 18 * _inflation(residuals))
    reach = round(Z_95 * spread)
    low = slopes[max(0, (len(slopes) - reach) // 2)]
    high = slopes[min(len(slopes) - 1, (len(slopes) + reach) // 2)]
    return Slope(middle * HOUR_S, low * HOUR_S, high * HOUR_S)


def _inflation(residuals: list[float]) -> float:
    """By how much correlated neighbours widen a variance: (1 + r) / (1 - r) of a first-order process."""
    centre = sum(residuals) / len(residuals)
    rest = [value - centre for value in residuals]
    power = sum(value * value for value in rest)
    if power == 0:
        return 1.0
    correlation = sum(one * two for one, two in pairwise(rest)) / power
    correlation = min(0.9, max(0.0, correlation))
    return (1 + correlation) / (1 - correlation)


@dataclass(frozen=True)
class Figures:
    """A run's readings, judged after the warm-up."""

    readings: list[Reading]
    duration_s: float

    @property
    def settled(self) -> list[Reading]:
        return [reading for reading in self.readings if reading.time_s >= warm_up_s(self.duration_s)]

    def slope(self, name: str) -> Slope:
        settled = self.settled
        unit = MB if name in ("rss", "anon", "file", "shmem") else 1.0
        return slope([r.time_s for r in settled], [getattr(r, name) / unit for r in settled])

    def table(self) -> str:
        settled = self.settled
        if not settled:
            return "it ended before the warm-up was over"
        first, last = self.readings[0], self.readings[-1]
        rows = [f"{'':<14}{'start':>8}{'warm':>8}{'end':>8}{'min':>8}{'max':>8}   slope an hour after warm-up (95 %)"]
        for name, label in (
            ("rss", "RSS MB"),
            ("anon", "  anonymous"),
            ("file", "  files"),
            ("shmem", "  shared"),
            ("files", "open files"),
            ("threads", "threads"),
        ):
            unit, form = (MB, "8.1f") if name in ("rss", "anon", "file", "shmem") else (1, "8.0f")
            values = [getattr(reading, name) / unit for reading in settled]
            numbers = [getattr(first, name) / unit, values[0], getattr(last, name) / unit, min(values), max(values)]
            rows.append(f"{label:<14}" + "".join(format(each, form) for each in numbers) + f"   {self.slope(name)}")
        cpu = 100 * (last.cpu_s - settled[0].cpu_s) / max(1e-9, last.time_s - settled[0].time_s)
        answers = sorted(reading.answer_s for reading in settled)
        lags = [reading.lag_s for reading in settled if reading.lag_s is not None]
        rows.append(
            f"CPU {cpu:.1f} % of a core; status answered in {1e3 * median(answers):.1f} ms (median), "
            f"{1e3 * answers[-1]:.0f} ms at most; loop lag "
            + (f"{1e3 * median(lags):.1f} ms (median), {1e3 * max(lags):.0f} ms at most" if lags else "not told")
        )
        return "\n".join(rows)
