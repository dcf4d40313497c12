"""Links with slots (Bluetooth): does it help to ping back to back?

    .venv/bin/python -m benchmarks.clock.slots

A message waits for the next connection event, every ``interval``. A ping sent at any time waits half an interval on
average and now and then not at all; its reply is ready just after an event and always waits nearly a whole one. So the
smallest delays of single pings are half an interval off balance. A second ping that is sent when the first is answered
waits as long as its own reply. Total error of the estimator, with single pings and with pairs by the bridge's plan, and
of Pupil Time Sync's rounds of 60 pings back to back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridge.clock import Clock, ClockSettings, RoundTrip

DURATION_S = 300.0
WARM_UP_S = 30.0
STACK_S = 0.6e-3  # from a program to the radio and back, at least
STACK_SCALE_S = 0.2e-3
DRIFT = 20e-6
SAMPLE_S = 0.1  # between the times that are judged
ROUND_PINGS, ROUND_EVERY_S, KEPT_SHARE = 60, 10.0, 0.69


@dataclass
class Slots:
    """A link whose messages leave at connection events. Times in true seconds, which are the host's."""

    interval_s: float
    rng: np.random.Generator

    def arrives(self, ready_s: float) -> float:
        radio_s = ready_s + STACK_S + self.rng.exponential(STACK_SCALE_S)
        event_s = np.ceil(radio_s / self.interval_s) * self.interval_s
        return float(event_s + STACK_S + self.rng.exponential(STACK_SCALE_S))

    def ping(self, sent_s: float) -> tuple[RoundTrip, float]:
        stamped_s = self.arrives(sent_s)
        received_s = self.arrives(stamped_s)
        return RoundTrip(_ns(sent_s), device_ns(stamped_s), _ns(received_s)), received_s


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def device_ns(true_s: float) -> int:
    return _ns(5000.0 + true_s * (1 + DRIFT))


def with_bridge(slots: Slots, *, pairs: bool) -> NDArray[np.float64]:
    """Errors, s, of the estimator under the bridge's own plan, without samples that arrive."""
    clock, now_s, judged_s, errors = Clock(ClockSettings()), 0.0, WARM_UP_S, []
    while now_s < DURATION_S:
        clock.plan.sent(_ns(now_s))
        trip, back_s = slots.ping(now_s)
        clock.ping(trip)
        if pairs:
            trip, back_s = slots.ping(back_s)
            clock.ping(trip)
        now_s = max(clock.plan.next_ns() / 1e9, back_s)
        while judged_s < now_s:
            mapped = clock.map(device_ns(judged_s))
            assert mapped is not None
            assert abs(mapped.host_ns - _ns(judged_s)) <= mapped.bound_ns, "the bound holds all the same"
            errors.append(mapped.host_ns / 1e9 - judged_s)
            judged_s += SAMPLE_S
    return np.array(errors)


def with_pupil_sync(slots: Slots) -> NDArray[np.float64]:
    """Errors, s, of a mean of round trips back to back, made anew every ten seconds (network_time_sync.py of Pupil)."""
    errors, now_s = [], 0.0
    while now_s < DURATION_S:
        trips, sent_s = [], now_s
        for _ in range(ROUND_PINGS):
            trip, sent_s = slots.ping(sent_s)
            trips.append(trip)
        trips.sort(key=lambda trip: trip.rtt_ns)
        kept = trips[: round(KEPT_SHARE * ROUND_PINGS)]
        offset_s = np.mean([(trip.lowest_offset_ns + trip.highest_offset_ns) / 2e9 for trip in kept])
        now_s += ROUND_EVERY_S
        if now_s > WARM_UP_S:
            at_s = np.arange(now_s, now_s + ROUND_EVERY_S, SAMPLE_S)
            errors += [device_ns(t) / 1e9 + offset_s - t for t in at_s]
    return np.array(errors)


def main() -> None:
    print("Total error on links with slots, ms: p50 and p95 of its size\n")
    print(f"{'interval':>8} {'single pings':>16} {'pairs':>16} {'Pupil sync':>16}")
    for interval_ms in (7.5, 15.0, 30.0, 50.0):
        found = []
        for seed, method in enumerate((False, True, None)):
            slots = Slots(interval_ms / 1e3, np.random.default_rng(seed))
            errors = with_pupil_sync(slots) if method is None else with_bridge(slots, pairs=method)
            p50, p95 = np.percentile(np.abs(errors) * 1e3, (50, 95))
            found.append(f"{p50:7.2f} {p95:7.2f}")
        print(f"{interval_ms:>8} {found[0]:>16} {found[1]:>16} {found[2]:>16}")


if __name__ == "__main__":
    main()
