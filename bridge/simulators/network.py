"""A simulated network path: constant delay, random jitter, in order; and random loss.

Integer nanoseconds on the host's CLOCK_MONOTONIC. No I/O and no clock of its own, so tests can step it.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Generic, TypeVar

Message = TypeVar("Message")


class DelayLine(Generic[Message]):
    """Messages on their way: each is due ``delay_ns`` plus an exponential of mean ``jitter_ns`` after it was put.

    Order is kept as TCP keeps it: what would overtake waits for the message before it. Holds at most ``capacity``
    messages, because a flood into a slow path must not eat the memory.
    """

    def __init__(self, delay_ns: int, jitter_ns: int, random: Random, capacity: int = 100_000) -> None:
        self._delay_ns = delay_ns
        self._jitter_ns = jitter_ns
        self._random = random
        self._capacity = capacity
        self._line: deque[tuple[int, Message]] = deque()
        self._last_due_ns = 0

    def put(self, message: Message, now_ns: int) -> bool:
        """Send ``message`` at ``now_ns``. False: the path is full and the message is lost."""
        if len(self._line) >= self._capacity:
            return False
        due_ns = now_ns + self._delay_ns
        if self._jitter_ns > 0:
            due_ns += round(self._random.expovariate(1 / self._jitter_ns))
        self._last_due_ns = max(self._last_due_ns, due_ns)
        self._line.append((self._last_due_ns, message))
        return True

    def take_due(self, now_ns: int) -> tuple[int, Message] | None:
        """The oldest message and the instant at which it arrives, when that is not after ``now_ns``."""
        if not self._line or self._line[0][0] > now_ns:
            return None
        return self._line.popleft()

    @property
    def next_due_ns(self) -> int | None:
        """When the oldest message arrives; None when nothing is on its way."""
        return self._line[0][0] if self._line else None


class Loss:
    """Loses the given fraction of messages, each independently of the others."""

    def __init__(self, fraction: float, random: Random) -> None:
        self._fraction = fraction
        self._random = random
        self.lost = 0

    def strikes(self) -> bool:
        """Whether the message at hand is lost; counted in ``lost``."""
        if self._fraction <= 0 or self._random.random() >= self._fraction:
            return False
        self.lost += 1
        return True
