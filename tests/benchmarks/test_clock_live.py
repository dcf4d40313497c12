"""The live benchmark runs, its bound holds, and its figures are those of what happened."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.clock.live.device import DeviceClock
from benchmarks.clock.live.figures import figures
from benchmarks.clock.live.host import Log

ROOT = Path(__file__).parents[2]
SECONDS = 10
S, US = 10**9, 10**3


def test_ten_seconds_on_real_sockets_are_within_the_bound_as_far_as_the_machine_is_quiet(tmp_path: Path) -> None:
    kept = tmp_path / "run.npz"
    command = [sys.executable, "-m", "benchmarks.clock.live", "--seconds", str(SECONDS), "--keep", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    rows = {line[:14].strip(): line[14:].split() for line in done.stdout.splitlines()}
    for name in ("the bridge", "one midpoint", "LSL burst", "arrival"):
        p50, p95, p99, largest, jump, backwards = (float(text) for text in rows[name])
        assert 0 <= p50 <= p95 <= p99 <= largest
        assert math.isfinite(jump)
        if name == "the bridge":
            assert backwards == 0
            largest_us = largest
    bound = re.search(r"covers ([\d.]+) % of (\d+) samples, median ([\d.]+) us; (\d+) samples without", done.stdout)
    assert bound is not None
    coverage, judged, median_us, unanswered = (float(text) for text in bound.groups())
    # What else runs here may change the ways by tens of us before they are known: test_busy_host has such runs.
    assert coverage > 50
    assert largest_us < 3 * median_us
    assert judged > 60 * (SECONDS - 5)
    assert unanswered == 0
    run = np.load(kept)
    assert len(run["samples"]) > 60 * SECONDS
    assert run["pings"].shape[1] == 4


def test_the_device_clock_is_exact_at_any_age() -> None:
    clock = DeviceClock(origin_ns=7, drift_ppb=50_000, offset_ns=3)
    assert clock.device_ns(7) == 3
    assert clock.device_ns(7 + S) == 3 + S + 50 * US
    year_ns = 365 * 86400 * S
    assert clock.device_ns(7 + year_ns) == 3 + year_ns + year_ns // 20_000


def _log() -> Log:
    """Host and device agree. A ping a second with ways of 10 and 30 us, ten samples a second that take 200 us.

    Every third ping has a way back that is longer by 100 us. The answers are 5 us late with a bound of 8 us.
    """
    log = Log(began_ns=100 * S)
    for i in range(12):
        at_ns = log.began_ns + i * S
        log.pings.append((at_ns, at_ns, at_ns + (130 if i % 3 == 0 else 30) * US, at_ns - 10 * US))
    log.pings_sent = 13
    for i in range(120):
        at_ns = log.began_ns + i * S // 10 + S // 20
        log.samples.append((at_ns, at_ns, at_ns + 200 * US))
        log.answers.append((at_ns * 1e-9 + 5e-6, 8e-6))
    return log


def test_figures_of_a_log_that_is_known() -> None:
    found = figures(_log())
    assert found.judged == 70
    assert (found.unanswered, found.coverage, found.pings, found.pings_lost) == (0, 1.0, 12, 1)
    assert found.median_bound == pytest.approx(8, abs=0.01)
    assert (found.rtt_min, found.out, found.back, found.untold) == (40, 10, 30, 10)
    largest = {name: of.largest for name, of in found.methods.items()}
    # The first ping is a slow one: (130 - 10) / 2. LSL's method finds a fast one: (30 - 10) / 2.
    assert largest == pytest.approx({"the bridge": 5, "one midpoint": 60, "LSL burst": 10, "arrival": 200}, abs=0.01)
    assert all(of.order_violations == 0 for of in found.methods.values())


def test_figures_count_what_is_outside_the_bound_unanswered_and_out_of_order() -> None:
    log = _log()
    log.answers[100] = (log.answers[100][0] - 0.15, 8e-6)
    log.answers[110] = (math.nan, math.nan)
    found = figures(log)
    assert found.unanswered == 1
    assert found.coverage == pytest.approx(68 / 69)
    assert found.methods["the bridge"].order_violations == 1
    assert found.methods["the bridge"].jump == pytest.approx(150_000, rel=1e-3)


def test_a_log_without_an_answer_is_refused() -> None:
    log = _log()
    log.answers = [(math.nan, math.nan)] * len(log.answers)
    with pytest.raises(ValueError, match="no answer"):
        figures(log)
