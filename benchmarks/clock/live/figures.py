"""How wrong the estimator was, and what simpler methods would have made of the same messages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.clock.live.host import Log

SETTLE_S = 5.0  # not judged
LSL_WINDOW_S = 5.0
SAME_S = 1e-9  # two samples may arrive at once, and then differ by what a float rounds

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """Sizes in us of one method's errors, the largest change from a sample to the next, and times it went back."""

    p50: float
    p95: float
    p99: float
    largest: float
    jump: float
    order_violations: int


@dataclass(frozen=True)
class Figures:
    """``methods`` by name, ours first. Times in us. ``out`` and ``back`` are the smallest true ways of the pings."""

    methods: dict[str, Errors]
    judged: int
    unanswered: int
    coverage: float
    median_bound: float
    pings: int
    pings_lost: int
    rtt_min: float
    rtt_median: float
    out: float
    back: float

    @property
    def untold(self) -> float:
        """What the middle of the smallest ways is off by, which no round trip can tell, us."""
        return (self.back - self.out) / 2


def figures(log: Log) -> Figures:
    """All of a log. Raises ValueError when there is nothing to judge in it."""
    if not log.samples or not log.pings:
        raise ValueError("no samples or no replies")
    device_ns, truth_ns, received_ns = np.array(log.samples, dtype=np.int64).T
    ping_device_ns, ping_truth_ns, ping_received_ns, ping_sent_ns = np.array(log.pings, dtype=np.int64).T
    answers_s = np.array(log.answers)
    judged = received_ns >= log.began_ns + round(SETTLE_S * 1e9)
    answered = judged & np.isfinite(answers_s[:, 0])
    if not answered.any():
        raise ValueError("the estimator gave no answer in the time that is judged")
    # Differences are taken of integers, so that only the estimator's own answers are rounded by a float.
    truth_s = (truth_ns - log.began_ns) * 1e-9
    ours_s = (answers_s[:, 0] - log.began_ns * 1e-9) - truth_s
    bound_s = answers_s[:, 1]
    out_us, back_us = (ping_truth_ns - ping_sent_ns) * 1e-3, (ping_received_ns - ping_truth_ns) * 1e-3
    add_ns = ping_sent_ns + (ping_received_ns - ping_sent_ns) // 2 - ping_device_ns

    def held(chosen: NDArray[np.intp]) -> Errors:
        """Of a method that adds to each judged sample the middle of one ping, whose index is given."""
        return _errors(truth_s[judged], (device_ns[judged] + add_ns[chosen] - truth_ns[judged]) * 1e-9)

    return Figures(
        methods={
            "the bridge": _errors(truth_s[answered], ours_s[answered]),
            "one midpoint": held(np.zeros(judged.sum(), dtype=np.intp)),
            "LSL burst": held(_lsl_pings(ping_received_ns, out_us + back_us, received_ns[judged])),
            "arrival": _errors(truth_s[judged], (received_ns - truth_ns)[judged] * 1e-9),
        },
        judged=int(judged.sum()),
        unanswered=int(judged.sum() - answered.sum()),
        coverage=float(np.mean(np.abs(ours_s[answered]) <= bound_s[answered])),
        median_bound=float(np.median(bound_s[answered])) * 1e6,
        pings=len(log.pings),
        pings_lost=log.pings_sent - len(log.pings),
        rtt_min=float((out_us + back_us).min()),
        rtt_median=float(np.median(out_us + back_us)),
        out=float(out_us.min()),
        back=float(back_us.min()),
    )


def _lsl_pings(ping_received_ns: NDArray[np.int64], rtt_us: Floats, received_ns: NDArray[np.int64]) -> NDArray[np.intp]:
    """The ping that LSL's method uses for each sample: the fastest of the last 5 s, chosen anew at each ping.

    Kinder than liblsl, which chooses every 5 s: its choice gets older.
    """
    window_ns = round(LSL_WINDOW_S * 1e9)
    begins = np.searchsorted(ping_received_ns, ping_received_ns - window_ns)
    fastest = np.array([begin + np.argmin(rtt_us[begin : i + 1]) for i, begin in enumerate(begins)], dtype=np.intp)
    return fastest[np.maximum(0, np.searchsorted(ping_received_ns, received_ns, side="right") - 1)]


def _errors(truth_s: Floats, errors_s: Floats) -> Errors:
    size_us = np.abs(errors_s) * 1e6
    p50, p95, p99 = np.percentile(size_us, (50, 95, 99)).tolist()
    mapped_s = truth_s + errors_s
    return Errors(
        p50=p50,
        p95=p95,
        p99=p99,
        largest=float(size_us.max()),
        jump=float(np.abs(np.diff(errors_s)).max(initial=0.0)) * 1e6,
        order_violations=int(np.sum((np.diff(truth_s) > 0) & (np.diff(mapped_s) < -SAME_S))),
    )
