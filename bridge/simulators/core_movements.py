"""Where the simulated person looks and when the eyes are shut, in a loop without a seam. No I/O."""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass
from random import Random
from typing import Final

_SEED: Final = 1
_SACCADE_S: Final = 0.05
# Of every four fixations one is too short for Capture's detector, which asks for 300 ms.
_SHORT_S: Final = 0.22
_LONG_S: Final = (0.5, 1.3)
_APART: Final = 0.25  # norm_pos, far more than the 3 degrees that the detector takes for one place
_TREMOR: Final = 0.003
_BLINK_EVERY_S: Final = 3.0
_BLINK_S: Final = (0.12, 0.16, 0.22)


@dataclass(frozen=True, slots=True)
class Stay:
    """The eyes rest here, from one instant of the loop to another."""

    start_s: float
    end_s: float
    x: float
    y: float


class Movements:
    """A loop of stays and blinks, the same for the same length. All instants may lie in any turn of the loop."""

    def __init__(self, loop_s: float) -> None:
        self._loop_s = loop_s
        self.stays = _stays(loop_s)
        self._starts_s = [stay.start_s for stay in self.stays]
        count = int(loop_s / _BLINK_EVERY_S)
        starts_s = [(number + 0.7) * _BLINK_EVERY_S for number in range(count)]
        # (start, end) of each time that the eyes are shut.
        self.blinks = [(at_s, at_s + _BLINK_S[number % 3]) for number, at_s in enumerate(starts_s)]

    def gaze_at(self, at_s: float) -> tuple[float, float]:
        """norm_pos in the scene image."""
        at_s %= self._loop_s
        number = bisect(self._starts_s, at_s) - 1
        stay = self.stays[number]  # -1 before the first start: the way there from the last stay
        following = self.stays[(number + 1) % len(self.stays)]
        left_s = (following.start_s - at_s) % self._loop_s
        share = 1 - left_s / _SACCADE_S if left_s < _SACCADE_S and not stay.start_s <= at_s < stay.end_s else 0.0
        phase = 2 * math.pi * at_s / self._loop_s
        x = stay.x + share * (following.x - stay.x) + _TREMOR * math.sin(31 * phase + 1)
        y = stay.y + share * (following.y - stay.y) + _TREMOR * math.sin(43 * phase + 2)
        return x, y

    def shut_at(self, at_s: float) -> bool:
        at_s %= self._loop_s
        return any(start_s <= at_s < end_s for start_s, end_s in self.blinks)


def _stays(loop_s: float) -> list[Stay]:
    random, stays, start_s = Random(_SEED), list[Stay](), 0.0
    while start_s < loop_s:
        duration_s = _SHORT_S if len(stays) % 4 == 3 else random.uniform(*_LONG_S)
        end_s = start_s + duration_s
        if end_s + _SACCADE_S + _LONG_S[0] > loop_s:
            end_s = loop_s - _SACCADE_S
        neighbours = stays[-1:] + (stays[:1] if end_s + 2 * _SACCADE_S > loop_s else [])
        x, y = _place(random, neighbours)
        stays.append(Stay(start_s, end_s, x, y))
        start_s = end_s + _SACCADE_S if end_s + 2 * _SACCADE_S < loop_s else loop_s
    return stays


def _place(random: Random, neighbours: list[Stay]) -> tuple[float, float]:
    while True:
        x, y = random.uniform(0.1, 0.9), random.uniform(0.15, 0.85)
        if all(math.hypot(x - stay.x, y - stay.y) >= _APART for stay in neighbours):
            return x, y
