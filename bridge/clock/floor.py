"""The memory of a delay floor: how early things can arrive, from a second ago to a quarter of an hour ago.

A point is the earliest of what arrived within a block of time. New points stay as they are; older ones are averaged in
pairs, up to four times, so that some 70 points cover 12 minutes: no longer than a crystal can be told to have drifted
in a line from one point to the next. Averages, not minima: the expected excess of a point over the true floor must not
depend on its age, or the clock would seem to drift.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

LEVELS = 4  # sizes of averages
WHOLE = 0.5  # of a block, from which on a point counts as one of a whole block
NOTHING = 1e-9  # two points that are believed less than this tell nothing


class FloorPoint(NamedTuple):
    """At ``x_s`` the floor is ``y_ns``.

    ``blocks``: how many have gone into it. ``weight``, 0 to 1: how far it was believed. ``era`` counts the shifts and
    breaks before it: points of two eras are never averaged.
    """

    x_s: float
    y_ns: float
    blocks: float
    weight: float
    era: int


class FloorMemory:
    """Points in the order of time, thinned with age: ``fine`` of one block each, ``coarse`` of each larger size, and
    ``old`` of the largest."""

    def __init__(self, fine: int, coarse: int, old: int) -> None:
        self._limits = [fine] + [coarse] * (LEVELS - 1) + [old]
        self._levels: list[deque[FloorPoint]] = [deque() for _ in self._limits]

    def __len__(self) -> int:
        return sum(map(len, self._levels))

    def add(self, point: FloorPoint) -> None:
        """A point newer than all others. Where a level overflows, its two oldest become one of the next."""
        for level, limit in zip(self._levels, self._limits, strict=True):
            level.append(point)
            if len(level) <= limit + 1:
                return
            point = level.popleft()
            if level[0].era == point.era:
                point = _average(point, level.popleft())

    def points(self) -> list[FloorPoint]:
        """All points, oldest first."""
        return [point for level in reversed(self._levels) for point in level]

    def newest(self) -> list[FloorPoint]:
        """Those that are not averaged yet."""
        return list(self._levels[0])

    def believe(self, given: Iterator[float]) -> None:
        """Takes the weight of each point, oldest first."""
        for level in reversed(self._levels):
            for i, point in enumerate(level):
                level[i] = FloorPoint(point.x_s, point.y_ns, point.blocks, next(given), point.era)

    def renew(self, last: int) -> None:
        """The newest ``last`` points are believed again."""
        level = self._levels[0]
        for i in range(max(0, len(level) - last), len(level)):
            level[i] = level[i]._replace(weight=1.0)

    def begin_era(self, x_s: float, era: int) -> None:
        """Points from ``x_s`` on belong to ``era``."""
        level = self._levels[0]
        for i, point in enumerate(level):
            if point.x_s >= x_s:
                level[i] = point._replace(era=era)

    def forget_before(self, era: int) -> None:
        """Points of earlier eras go."""
        for i, level in enumerate(self._levels):
            self._levels[i] = deque(point for point in level if point.era >= era)


def _average(a: FloorPoint, b: FloorPoint) -> FloorPoint:
    """The mean of two points, which lies on the line through both, whatever the clock's rate."""
    mass_a, mass_b = a.blocks * a.weight, b.blocks * b.weight
    mass = mass_a + mass_b
    if mass < NOTHING:
        return a
    x_s = (a.x_s * mass_a + b.x_s * mass_b) / mass
    return FloorPoint(x_s, (a.y_ns * mass_a + b.y_ns * mass_b) / mass, mass, 1.0, a.era)
