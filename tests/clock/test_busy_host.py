"""A computer that has no time: what waited for it comes in one go, and little of what comes shows the floor."""

from __future__ import annotations

import heapq
from random import Random
from statistics import median

import pytest

from bridge.clock import Clock, RoundTrip, Track

US, MS, S = 1_000, 1_000_000, 1_000_000_000
GAZE_HZ = 120
DRIFT = 30e-6
AHEAD_NS = 777 * S
QUIET_S = (4.0, 8.0)  # before it, and the longer after it
EACH_NS = 2 * US  # what a message costs the computer


class Scene:
    """A device, and a computer that for ``busy_ns`` runs the last ``on_ns`` of every ``period_ns`` alone. Everything in
    host time from 0 on."""

    def __init__(self, seed: int, period_ns: int, on_ns: int, busy_ns: int, jitter_ns: int) -> None:
        self.random = Random(seed)
        self.begins_ns = round(self.random.uniform(*QUIET_S) * S)
        self.ends_ns = self.begins_ns + busy_ns
        self.period_ns, self.on_ns, self.jitter_ns = period_ns, on_ns, jitter_ns
        self.clock, self.track = Clock(), Track()
        self.now_ns = 0
        self.waiting: list[tuple[int, int, RoundTrip | None]] = []  # arrival, true time, round trip but for its end
        self.errors: list[tuple[float, float, float]] = []  # (s, error in ms, bound in ms) of each sample

    def device_ns(self, true_ns: int) -> int:
        return AHEAD_NS + true_ns + round(true_ns * DRIFT)

    def way_ns(self) -> int:
        return 150 * US + round(self.random.expovariate(1 / self.jitter_ns))

    def runs_at(self, from_ns: int) -> int:
        """When the computer runs next."""
        if not self.begins_ns <= from_ns < self.ends_ns:
            return from_ns
        off_ns = self.period_ns - self.on_ns - (from_ns - self.begins_ns) % self.period_ns
        return from_ns + max(0, off_ns)

    def ask(self) -> None:
        stamped_ns = self.now_ns + self.way_ns()
        trip = RoundTrip(self.now_ns, self.device_ns(stamped_ns), 0)
        heapq.heappush(self.waiting, (stamped_ns + self.way_ns(), stamped_ns, trip))

    def play(self) -> None:
        arrives_ns, true_ns = 0, 0
        while true_ns < self.ends_ns + QUIET_S[1] * S:
            arrives_ns = max(arrives_ns, true_ns + self.way_ns())  # in order
            heapq.heappush(self.waiting, (arrives_ns, true_ns, None))
            true_ns += S // GAZE_HZ
        answered = True
        while self.waiting:
            first_ns = self.waiting[0][0]
            wanted_ns = min(first_ns, self.clock.plan.next_ns()) if answered else first_ns
            self.now_ns = self.runs_at(max(self.now_ns, wanted_ns)) + EACH_NS
            if answered and self.clock.plan.next_ns() <= self.now_ns:
                self.clock.plan.sent(self.now_ns)
                self.ask()
                answered = False
            elif first_ns <= self.now_ns:
                _, true_ns, trip = heapq.heappop(self.waiting)
                if trip is None:
                    self.sample(true_ns)
                else:
                    answered = True
                    self.clock.ping(RoundTrip(trip.sent_ns, trip.device_ns, self.now_ns))

    def sample(self, true_ns: int) -> None:
        stamp_ns = self.device_ns(true_ns)
        self.clock.arrival(stamp_ns, self.now_ns, self.track)
        mapped = self.clock.map(stamp_ns)
        if mapped is not None:
            self.errors.append((true_ns / S, (mapped.host_ns - true_ns) / MS, mapped.bound_ns / MS))


@pytest.mark.parametrize("jitter_us", [50, 300, 1500])
@pytest.mark.parametrize(
    ("period_ms", "on_ms", "busy_s"), [(1000, 50, 8), (100, 1, 8), (300, 20, 30)], ids=["stopped", "throttled", "short"]
)
def test_samples_that_waited_for_a_busy_host_do_not_bend_its_clocks(
    period_ms: int, on_ms: int, busy_s: int, jitter_us: int
) -> None:
    for seed in range(8):
        scene = Scene(seed, period_ms * MS, on_ms * MS, busy_s * S, jitter_us * US)
        scene.play()
        assert scene.clock.epoch == 0
        assert len(scene.errors) > (busy_s + 8) * GAZE_HZ
        assert [each for each in scene.errors if abs(each[1]) > each[2]] == []
        assert median(bound for _, _, bound in scene.errors) < 2.0, "and it is worth something"
