"""The host slew again, as the daemon sees it: the estimator on the host's steady clock.

    .venv/bin/python -m benchmarks.clock.slewed

The adapter for judges gets host times alone and takes a slew of the host for drift of the device. The daemon reads
CLOCK_MONOTONIC_RAW beside CLOCK_MONOTONIC ten times a second and estimates on RAW, which here is true time.
"""

from __future__ import annotations

import numpy as np

from benchmarks.clock.links import LINKS, PING, simulate
from benchmarks.clock.score import WARM_UP_S
from bridge.clock import Clock, ClockSettings, RoundTrip, Track
from bridge.clock.device_clock import DeviceClock
from bridge.clock.host_scale import Reading, SteadyScale

READ_EVERY_NS = 100_000_000
READING_BOUND_NS = 100


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def play(seed: int, *, steady: bool) -> tuple[float, float, float]:
    """(avoidable p95 us, share of samples within their bound, largest avoidable us)."""
    run = simulate(LINKS["host slew"], seed)
    now = [_ns(run.received[0]), _ns(run.known_at[0])]
    scale = SteadyScale(lambda: Reading(now[0], now[1], READING_BOUND_NS), lambda: now[0]) if steady else None
    clock = DeviceClock(Clock(ClockSettings(pings_to_lock=1)), scale)
    track, read_ns, off, held = Track(), 0, [], []
    for i in range(len(run.kind)):
        now[:] = _ns(run.received[i]), _ns(run.known_at[i])
        if scale is not None and now[0] - read_ns >= READ_EVERY_NS:
            read_ns = now[0]
            scale.read()
        device_ns = _ns(run.device[i])
        if run.kind[i] == PING:
            clock.ping(RoundTrip(_ns(run.sent[i]), device_ns, now[0]))
            continue
        clock.arrival(device_ns, now[0], track)
        mapped = clock.map(device_ns)
        if mapped is not None and run.true_time[i] > WARM_UP_S:
            error_s = mapped.host_ns / 1e9 - run.truth[i]
            off.append(abs(error_s - run.oracle_error_s) * 1e6)
            held.append(abs(error_s) * 1e9 <= mapped.bound_ns)
    return float(np.percentile(off, 95)), float(np.mean(held)), float(np.max(off))


def main() -> None:
    print("500 ppm slew of the host for a minute: avoidable error, us, and how often the bound holds\n")
    print(f"{'seed':>4} {'estimated on':<14} {'p95':>8} {'max':>8} {'held %':>8}")
    for seed in range(3):
        for steady, name in ((False, "MONOTONIC"), (True, "MONOTONIC_RAW")):
            p95, held, largest = play(seed, steady=steady)
            print(f"{seed:>4} {name:<14} {p95:8.1f} {largest:8.1f} {held * 100:8.3f}")


if __name__ == "__main__":
    main()
