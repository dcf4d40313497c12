"""The table: the recorded stamps and lsl-relay's beside the truth of both lives of the phone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.clock.hour.relay import Relay
from tests.system.harness import truth
from tests.system.recording import Recorded, compare_numbers, goes_backwards, load, missing

PARTS = 6
XDF = "hour.xdf"
RUN = "run.json"
LIVES = ("first", "second")

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Run:
    """What the files do not say of a run."""

    prefix: str
    drift_ppm: float
    relay: Relay
    recording_ns: int
    killed_ns: int
    back_ns: int
    dropped: dict[str, int]


def judge(directory: Path) -> str:
    """The table of what a measurement has left there. Takes half a minute for an hour."""
    stored = json.loads((directory / RUN).read_text(encoding="utf-8"))
    run = Run(**{**stored, "relay": Relay(**stored["relay"])})
    gaze = f"{run.prefix}_Gaze"
    # Recorder and bridge read one clock, so the stamps are compared as the bridge sent them.
    recorded = load(directory / XDF, synchronize_clocks=False, dejitter_timestamps=False)
    lives = [
        [{**row, "life": life} for row in truth(directory / f"{name}.jsonl", "gaze")] for life, name in enumerate(LIVES)
    ]
    compared = compare_numbers(recorded[gaze], lives[0] + lives[1], ("x", "y"))
    host_ns, device_ns = (np.array([row[key] for row in compared.rows]) for key in ("host_ns", "device_ns"))
    ours_s = np.asarray(compared.errors_s)
    relay_s = (device_ns + run.relay.mean_ns - host_ns) * 1e-9
    by_default_s = load(directory / XDF)[gaze].stamps_s - host_ns * 1e-9

    found = [[row for row in compared.rows if row["life"] == life] for life in (0, 1)]
    assert all(found), "the recording lacks one of the phone's two lives"
    lost = sum(len(missing(rows, true_rows)) for rows, true_rows in zip(found, lives, strict=True))
    backwards = len(goes_backwards(recorded[gaze])), int(np.sum(np.diff(device_ns) < 0))
    columns = " ".join(f"{name:>9}" for name in ("p50", "p95", "p99", "max"))
    lines = [
        f"Size of the errors of the recorded gaze stamps, us. {minutes((host_ns[-1] - host_ns[0]) * 1e-9)} minutes, "
        f"phone's clock {run.drift_ppm:+g} ppm, restarted at {minutes((run.killed_ns - run.recording_ns) * 1e-9)}",
        "",
        f"{'':<15} {'':>7} {'the bridge':>39}   {'lsl-relay (mean of 100 echoes, once)':>39}",
        f"{'':<15} {'n':>7} {columns}   {columns}",
        f"{'all':<15} {len(host_ns):>7} {_sizes(ours_s)}   {_sizes(relay_s)}",
    ]
    for begin_ns, end_ns in pairwise(np.linspace(host_ns[0], host_ns[-1] + 1, PARTS + 1).tolist()):
        chosen = (host_ns >= begin_ns) & (host_ns < end_ns)
        label = " to ".join(minutes((at_ns - host_ns[0]) * 1e-9) for at_ns in (begin_ns, end_ns))
        lines.append(f"{label:<15} {chosen.sum():>7} {_sizes(ours_s[chosen])}   {_sizes(relay_s[chosen])}")
    lines += [
        f"{'out of order':<23} {backwards[0]:>39}   {backwards[1]:>39}",
        f"{'missing':<23} {lost:>39}   {'(the same samples)':>39}",
        "",
        f"The bridge, as pyxdf loads it by default: {_sizes(by_default_s)}",
        _bound(recorded[f"{run.prefix}_Sync"], host_ns * 1e-9, ours_s),
        _restart(run, lives, found),
        _relay(run),
    ]
    return "\n".join(lines)


def _sizes(errors_s: Floats) -> str:
    size_us = np.abs(errors_s) * 1e6
    if not len(size_us):
        return " ".join(f"{'-':>9}" for _ in range(4))
    return " ".join(f"{value:>9.0f}" for value in (*np.percentile(size_us, (50, 95, 99)), size_us.max()))


def _bound(sync: Recorded, host_s: Floats, errors_s: Floats) -> str:
    """How much of the samples is covered by the bound that was published around them: the wider of before and after."""
    known = np.isfinite(sync.column("bound"))
    at_s, bound_s = sync.stamps_s[known], sync.column("bound")[known]
    after = np.searchsorted(at_s, host_s)
    around_s = np.maximum(bound_s[np.maximum(after - 1, 0)], bound_s[np.minimum(after, len(at_s) - 1)])
    covered = float(np.mean(np.abs(errors_s) <= around_s))
    median_us = np.median(around_s) * 1e6
    return f"Bound of the Sync stream: covers {100 * covered:.3f} % of the samples, median {median_us:.0f} us"


def _restart(run: Run, lives: list[list[dict[str, Any]]], found: list[list[dict[str, Any]]]) -> str:
    ends, begins = found[0][-1], found[1][0]
    silence_s = (begins["host_ns"] - ends["host_ns"]) * 1e-9
    away_s = (run.back_ns - run.killed_ns) * 1e-9
    cut = sum(row["sent"] and row["sequence"] > ends["sequence"] for row in lives[0])
    early = sum(row["sent"] and row["sequence"] < begins["sequence"] for row in lives[1])
    return (
        f"Restart: no samples for {silence_s:.2f} s, in {away_s:.2f} s of which there was no phone.\n"
        f"  Not recorded: {cut} sent just before the kill, {early} before samples came again. "
        f"Dropped by the bridge: {run.dropped or 'none'}"
    )


def _relay(run: Run) -> str:
    relay = run.relay
    age_s = (run.recording_ns - relay.taken_ns) * 1e-9
    return (
        f"lsl-relay's mean: off by {relay.off_ns / 1e3:+.0f} us when taken, {age_s:.1f} s before the recording;\n"
        f"  round trips of {relay.rtt_min_ns / 1e3:.0f} us and more, median {relay.rtt_median_ns / 1e3:.0f} us"
    )


def minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02}"
