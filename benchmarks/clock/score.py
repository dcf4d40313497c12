"""How wrong an estimator was on a run, and whether what it promised held."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.clock.links import PING, Run

WARM_UP_S = 30.0
RECOVERED_S = 1.5
JUMP_WINDOW_S = 3.0  # around a declared change


class Estimator(Protocol):
    """What every estimator of the benchmark is. Float seconds."""

    def add_ping(self, t_send_local: float, t_device: float, t_recv_local: float) -> None: ...

    def add_arrival(self, t_device: float, t_local: float) -> None: ...

    def to_local(self, t_device: float) -> tuple[float, float] | None: ...


@dataclass(frozen=True)
class Score:
    """Figures of one run. Errors in us. ``trace`` has (true time, error s, bound s) of every sample, for pictures."""

    total_us: NDArray[np.float64]
    avoidable_us: NDArray[np.float64]
    coverage: float
    width_ratio: float
    order_violations: int
    largest_jump_us: float
    recovery_s: float
    available: float
    us_per_ping: float
    us_per_sample: float
    trace: NDArray[np.float64]

    def avoidable(self, percent: float) -> float:
        return float(np.percentile(self.avoidable_us, percent))

    def total(self, percent: float) -> float:
        return float(np.percentile(self.total_us, percent))


def play(run: Run, make: Callable[[dict[str, Any]], Estimator]) -> tuple[NDArray[np.float64], float, float]:
    """((t_local, bound) of every event, NaN where there was none or for a ping; s per ping; s per sample)."""
    estimator = make(run.meta)
    out = np.full((len(run.kind), 2), np.nan)
    kinds, sent, device, received = (a.tolist() for a in (run.kind, run.sent, run.device, run.received))
    clock = time.perf_counter
    on_pings = on_samples = 0.0
    pings = samples = 0
    for i, kind in enumerate(kinds):
        if kind == PING:
            before = clock()
            estimator.add_ping(sent[i], device[i], received[i])
            on_pings += clock() - before
            pings += 1
        else:
            before = clock()
            estimator.add_arrival(device[i], received[i])
            answer = estimator.to_local(device[i])
            on_samples += clock() - before
            samples += 1
            if answer is not None:
                out[i] = answer
    return out, on_pings / max(1, pings), on_samples / max(1, samples)


def score(run: Run, make: Callable[[dict[str, Any]], Estimator]) -> Score:
    out, s_per_ping, s_per_sample = play(run, make)
    judged = (run.kind != PING) & ~run.corrupt & (run.true_time > WARM_UP_S)
    answered = judged & np.isfinite(out[:, 0])
    at, truth, known = run.true_time[answered], run.truth[answered], run.known_at[answered]
    error, bound = out[answered, 0] - truth, out[answered, 1]
    avoidable = np.abs(error - run.oracle_error_s)
    ordered_truth, ordered = np.diff(truth), np.diff(out[answered, 0])
    quiet = np.ones(len(at) - 1, dtype=bool)
    for change in run.changes:
        quiet &= (known[1:] < change) | (known[1:] > change + gap(run) + JUMP_WINDOW_S)
    jumps = np.abs(np.diff(error))[quiet & (ordered_truth >= 0)]
    return Score(
        total_us=np.abs(error) * 1e6,
        avoidable_us=avoidable * 1e6,
        coverage=float(np.mean(np.abs(error) <= bound)),
        width_ratio=float(np.median(bound) / run.oracle_bound_s),
        order_violations=int(np.sum((ordered_truth > 0) & (ordered < 0))),
        largest_jump_us=float(jumps.max(initial=0.0)) * 1e6,
        recovery_s=recovery_s(run, known, error - run.oracle_error_s),
        available=float(answered.sum() / judged.sum()),
        us_per_ping=s_per_ping * 1e6,
        us_per_sample=s_per_sample * 1e6,
        trace=np.column_stack((known, error, bound)),
    )


def gap(run: Run) -> float:
    return max(run.link.restart_gap_s, run.link.outage_s, run.link.suspend_s)


def recovery_s(run: Run, known: NDArray[np.float64], error: NDArray[np.float64]) -> float:
    """From the change, or the end of the silence after it, until the error stays below three times the goal (at
    least 0.5 ms) for the next ten seconds."""
    if not run.changes:
        return 0.0
    start = run.changes[0] + gap(run)
    limit = max(3e-6 * run.link.goal_us, 0.5e-3)
    window = (known >= start) & (known < start + 60.0)
    wrong = known[window][np.abs(error[window]) > limit]
    return float(wrong.max() - start) if len(wrong) else 0.0
