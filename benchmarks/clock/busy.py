"""A computer that has no time: what waited for it comes in one go, and little of what comes shows the floor.

    .venv/bin/python -m benchmarks.clock.busy

A device with 30 ppm, samples at 120 Hz that arrive in order, each way 0.15 ms and an exponential jitter. Between some
quiet seconds and at least eight more the computer runs only a small part of the time, and takes what has waited when it
does. How large the errors are, from when it begins, and how often they are within the bound; beside a quiet computer.

Then a computer that always runs but is slow now and then: ways of 10 to 40 us that from second to second become longer
by up to 40 us and shorter again, from the start on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from random import Random

import numpy as np

from bridge.clock import Clock, RoundTrip, Track

US, MS, S = 1_000, 1_000_000, 1_000_000_000
SAMPLE_HZ = 120
DRIFT = 30e-6
AHEAD_NS = 777 * S
QUIET_S = (4.0, 8.0)  # before it, and the longer after it
EACH_NS = 2 * US  # what a message costs the computer
JITTERS_US = (50, 300, 1500)
SEEDS = 20
REQUEST, REPLY, SAMPLE = range(3)
LEAST_US = (10, 14, 40)  # ways of a computer that is slow now and then
LONGER_US = (0, 0, 10, 40)  # they are by one of these, and on the way from one to the next
SLOW_JITTERS_US = (5, 20, 50)
SLOW_FOR_S = (10, 60)
SETTLE_S = 5.0


@dataclass(frozen=True)
class Busy:
    """For ``busy_s`` the computer runs the last ``on_ms`` of every ``period_ms`` alone."""

    period_ms: int
    on_ms: int
    busy_s: int


BUSY = {
    "quiet": Busy(1000, 1000, 8),
    "stopped": Busy(1000, 50, 8),
    "throttled": Busy(100, 1, 8),
    "short": Busy(300, 20, 30),
    "minutes": Busy(1000, 50, 200),
}


class Scene:
    """One device and one computer, in host time from 0 on. After ``play``, ``errors`` has (s, ms, bound in ms) of each
    sample."""

    def __init__(self, seed: int, busy: Busy, jitter_us: int) -> None:
        self._random = Random(seed)
        self._period_ns, self._on_ns, self._jitter_ns = busy.period_ms * MS, busy.on_ms * MS, jitter_us * US
        self.begins_ns = round(self._random.uniform(*QUIET_S) * S)
        self._ends_ns = self.begins_ns + busy.busy_s * S
        self.judged_from_s = self.begins_ns / S
        self.clock = Clock()
        self.errors: list[tuple[float, float, float]] = []
        self.track = Track()
        self.now_ns = 0
        self._waiting: list[tuple[int, int, RoundTrip | None]] = []  # arrival, true time, round trip but for its end

    def device_ns(self, true_ns: int) -> int:
        return AHEAD_NS + true_ns + round(true_ns * DRIFT)

    def _way_ns(self, at_ns: int, way: int) -> int:
        return 150 * US + round(self._random.expovariate(1 / self._jitter_ns))

    def _runs_at(self, from_ns: int) -> int:
        """When the computer runs next."""
        if not self.begins_ns <= from_ns < self._ends_ns:
            return from_ns
        return from_ns + max(0, self._period_ns - self._on_ns - (from_ns - self.begins_ns) % self._period_ns)

    def _ask(self) -> None:
        stamped_ns = self.now_ns + self._way_ns(self.now_ns, REQUEST)
        trip = RoundTrip(self.now_ns, self.device_ns(stamped_ns), 0)
        heapq.heappush(self._waiting, (stamped_ns + self._way_ns(stamped_ns, REPLY), stamped_ns, trip))

    def play(self) -> None:
        plan = self.clock.plan
        arrives_ns, true_ns = 0, 0
        while true_ns < self._ends_ns + QUIET_S[1] * S:
            arrives_ns = max(arrives_ns, true_ns + self._way_ns(true_ns, SAMPLE))  # in order
            heapq.heappush(self._waiting, (arrives_ns, true_ns, None))
            true_ns += S // SAMPLE_HZ
        answered = True
        while self._waiting:
            first_ns = self._waiting[0][0]
            wanted_ns = min(first_ns, plan.next_ns()) if answered else first_ns
            self.now_ns = self._runs_at(max(self.now_ns, wanted_ns)) + EACH_NS
            if answered and plan.next_ns() <= self.now_ns:
                plan.sent(self.now_ns)
                self._ask()
                answered = False
            elif first_ns <= self.now_ns:
                _, true_ns, trip = heapq.heappop(self._waiting)
                if trip is None:
                    self._sample(true_ns)
                else:
                    answered = True
                    self.clock.ping(RoundTrip(trip.sent_ns, trip.device_ns, self.now_ns))

    def _sample(self, true_ns: int) -> None:
        stamp_ns = self.device_ns(true_ns)
        self.clock.arrival(stamp_ns, self.now_ns, self.track)
        mapped = self.clock.map(stamp_ns)
        if mapped is not None:
            self.errors.append((true_ns / S, (mapped.host_ns - true_ns) / MS, mapped.bound_ns / MS))


class SlowScene(Scene):
    """A computer that always runs, ``for_s`` long, whose ways become longer and shorter."""

    def __init__(self, seed: int, for_s: int, jitter_us: int) -> None:
        super().__init__(seed, Busy(1000, 1000, 0), jitter_us)
        self._ends_ns = self.begins_ns = round((for_s - QUIET_S[1]) * S)
        self.judged_from_s = SETTLE_S
        self._shares = (self._random.random(), self._random.random(), 1.0)
        self._at_s, self._longer_us = [0.0], [float(self._random.choice(LONGER_US))]
        while self._at_s[-1] < for_s:
            self._at_s.append(self._at_s[-1] + self._random.uniform(1, 6) * max(1, for_s / 20))
            self._longer_us.append(float(self._random.choice(LONGER_US)))

    def _way_ns(self, at_ns: int, way: int) -> int:
        longer_us = self._shares[way] * float(np.interp(at_ns / S, self._at_s, self._longer_us))
        return round((LEAST_US[way] + longer_us) * US + self._random.expovariate(1 / self._jitter_ns))


def _row(name: str, jitter_us: int, make: Callable[[int], Scene]) -> None:
    """Plays the scene of each seed and prints what came out."""
    errors, epochs = [], 0
    for seed in range(SEEDS):
        scene = make(seed)
        scene.play()
        errors += [each for each in scene.errors if each[0] >= scene.judged_from_s]
        epochs += scene.clock.epoch
    _, off, bound = np.abs(np.array(errors)).T
    figures = [*np.percentile(off, [50, 95, 100]), np.median(bound)]
    columns = " ".join(f"{each:7.3f}" for each in figures)
    print(f"{name:<10} {jitter_us:>9} {columns} {100 * np.mean(off <= bound):8.3f} {epochs:>6}", flush=True)


def main() -> None:
    print(f"{SEEDS} seeds each; errors and bounds in ms\n")
    print(
        f"{'computer':<10} {'jitter us':>9} {'p50':>7} {'p95':>7} {'max':>7} {'bound':>7} {'held %':>8} {'epochs':>6}"
    )
    for (name, busy), jitter_us in product(BUSY.items(), JITTERS_US):
        _row(name, jitter_us, lambda seed, busy=busy, jitter_us=jitter_us: Scene(seed, busy, jitter_us))
    for for_s, jitter_us in product(SLOW_FOR_S, SLOW_JITTERS_US):
        _row(f"slow {for_s} s", jitter_us, lambda seed, for_s=for_s, us=jitter_us: SlowScene(seed, for_s, us))


if __name__ == "__main__":
    main()
