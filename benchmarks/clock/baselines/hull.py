"""Two convex hulls and the widest gap between them."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MEMORY_S = 300.0
MAX_RATE = 1000e-6  # no crystal is off by more; without it two pings across a step allow a line
REBUILD_S = 10.0  # the oldest are dropped that often: dropping costs a new hull, adding does not


class HalfHull:
    """The lower hull of points that come in the order of ``x``."""

    def __init__(self) -> None:
        self.x: list[float] = []
        self.y: list[float] = []

    def add(self, x: float, y: float) -> None:
        xs, ys = self.x, self.y
        if xs and x <= xs[-1]:
            if y >= ys[-1]:
                return
            xs.pop()
            ys.pop()
        while len(xs) >= 2 and (y - ys[-2]) * (xs[-1] - xs[-2]) <= (ys[-1] - ys[-2]) * (x - xs[-2]):
            xs.pop()
            ys.pop()
        xs.append(x)
        ys.append(y)


class Gap:
    """Host time against what each direction allows for the offset, and the widest strip of one rate between them."""

    def __init__(self) -> None:
        self._at_most = HalfHull()
        self._at_least = HalfHull()  # negated

    def add(self, x: float, at_least: float, at_most: float) -> None:
        self._at_most.add(x, at_most)
        self._at_least.add(x, -at_least)

    def strip(self) -> tuple[float, float, float]:
        """(rate, lower, upper): from ``lower + rate * x`` to ``upper + rate * x``; there is none if lower > upper."""
        ux, uy = np.array(self._at_most.x), np.array(self._at_most.y)
        lx, ly = np.array(self._at_least.x), -np.array(self._at_least.y)
        edges = np.concatenate(([0.0], np.diff(uy) / np.diff(ux), np.diff(ly) / np.diff(lx)))
        rates = np.clip(edges, -MAX_RATE, MAX_RATE)
        upper = (uy - rates[:, None] * ux).min(axis=1)
        lower = (ly - rates[:, None] * lx).max(axis=1)
        best = int((upper - lower).argmax())
        return float(rates[best]), float(lower[best]), float(upper[best])


class Hull:
    """The middle of the widest strip between the hulls of both directions of the pings of the last 300 s.

    Source: L. Zhang, Z. Liu, C. H. Xia, "Clock synchronization algorithms for network measurements" (INFOCOM 2002),
    which finds the line below the delays by their convex hull; and S. B. Moon, P. Skelly, D. Towsley, "Estimation and
    removal of clock skew from network delay measurements" (INFOCOM 1999), whose criterion, the smallest sum of
    distances, is for both directions at once the widest strip between the hulls. The bound is half of its width, and
    does not grow with age. Where no line fits between the hulls the clock was reset (for which Zhang et al. divide the
    trace): the longest stretch up to now that allows a line is kept. A corrupt ping counts as a reset.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        self._quantum_s = meta["quantum"]
        self._points: deque[tuple[float, float, float]] = deque()
        self._origin: tuple[float, float] = (0.0, 0.0)
        self._gap = Gap()
        self._strip: tuple[float, float, float] | None = None
        self._rebuilt_s = 0.0

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None:
        at_s = (t_send_local + t_recv_local) / 2
        if self._strip is None:
            self._origin = (at_s, at_s - t_device)
        x, base_s = at_s - self._origin[0], t_device + self._origin[1]
        if self._points and x <= self._points[-1][0]:  # overtaken by a later one
            return
        self._points.append((x, t_send_local - base_s - self._quantum_s, t_recv_local - base_s))
        if x >= self._rebuilt_s + REBUILD_S:
            self._rebuilt_s = x
            while self._points[0][0] < x - MEMORY_S:
                self._points.popleft()
            self._gap = _gap(list(self._points))
        else:
            self._gap.add(*self._points[-1])
        self._strip = self._gap.strip()
        if self._strip[1] > self._strip[2]:
            self._divide()

    def _divide(self) -> None:
        points = list(self._points)
        impossible, possible = 0, len(points) - 1  # starts; that of the newest alone always allows a line
        while possible - impossible > 1:
            start = (impossible + possible) // 2
            _, lower, upper = _gap(points[start:]).strip()
            if lower > upper:
                impossible = start
            else:
                possible = start
        self._points = deque(points[possible:])
        self._gap = _gap(points[possible:])
        self._strip = self._gap.strip()

    def add_arrival(self, t_device: float, t_local: float) -> None:
        pass

    def to_local(self, t_device: float) -> tuple[float, float] | None:
        if self._strip is None:
            return None
        rate, lower, upper = self._strip
        near_s = t_device + self._origin[1] + (lower + upper) / 2
        near_s += rate * (near_s - self._origin[0])
        offset_s = (lower + upper) / 2 + rate * (near_s - self._origin[0])
        return t_device + self._origin[1] + offset_s, (upper - lower) / 2


def _gap(points: list[tuple[float, float, float]]) -> Gap:
    gap = Gap()
    for point in points:
        gap.add(*point)
    return gap
