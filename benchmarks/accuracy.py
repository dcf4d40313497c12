"""How wrong the stamps in a recording are: the demo, recorded by LabRecorder, beside the simulators' truth.

    .venv/bin/python -m benchmarks.accuracy [--seconds 60]

Beside ours: "one offset", what a relay would have recorded that measures the offset well, but once, at the start (the
first offset that the bridge published, added to every device time). The Companion's clock is 1000 s off and 50 ppm
fast, Core's runs 20 ppm slow; both are on loopback.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.local import stay_local
from tests.system.harness import lab_recorder, running, truth, wait_for_streams
from tests.system.recording import compare_numbers, compare_texts, load, missing

STREAMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pupil_labs_Gaze": ("companion", "gaze", ("x", "y")),
    "pupil_labs_Event": ("companion", "event", ()),
    "pupil_capture": ("core", "gaze", ("norm_pos_x", "norm_pos_y", "confidence")),
    "pupil_capture_Pupil0_3d": ("core", "pupil.0.3d", ("norm_pos_x", "norm_pos_y", "confidence")),
}


def record(directory: Path, seconds: float) -> Path:
    """An XDF file of the demo's streams; the truth is in ``directory``/truth."""
    xdf = directory / "demo.xdf"
    names = (*STREAMS, "pupil_labs_Sync", "pupil_capture_Sync")
    command = [sys.executable, "-m", "bridge", "demo", "--no-ros", "--truth", str(directory / "truth")]
    with running(command, directory / "demo.log") as demo:
        wait_for_streams(*names)
        queries = [f"name='{name}'" for name in names]
        with lab_recorder(directory, xdf, *queries) as recorder, suppress(subprocess.TimeoutExpired):
            recorder.popen.wait(seconds)
        demo.popen.send_signal(signal.SIGINT)
        demo.popen.wait()
    return xdf


def figures(errors_s: Any) -> str:
    size_us = np.abs(errors_s) * 1e6
    p50, p99 = np.percentile(size_us, (50, 99))
    return f"{p50:8.0f} {p99:8.0f} {size_us.max():8.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pupil-bridge-benchmark-") as name:
        directory = Path(name)
        stay_local(directory)
        recorded = load(record(directory, options.seconds))
        print(f"Error of the recorded stamps over {options.seconds:.0f} s, us (size, against the simulators' truth)\n")
        print(f"{'':<24} {'':>6} {'':>7} {'the bridge':>26}   {'one offset':>26}")
        columns = f"{'p50':>8} {'p99':>8} {'max':>8}"
        print(f"{'stream':<24} {'n':>6} {'missing':>7} {columns}   {columns}")
        for stream, (device, kind, labels) in STREAMS.items():
            rows = truth(directory / "truth" / f"{device}.jsonl", kind)
            found = recorded[stream]
            compared = compare_numbers(found, rows, labels) if labels else compare_texts(found, rows)
            sync = recorded["pupil_labs_Sync" if device == "companion" else "pupil_capture_Sync"].column("offset")
            first_s = sync[np.isfinite(sync)][0]
            device_ns = np.array([row["device_ns"] for row in compared.rows])
            host_ns = np.array([row["host_ns"] for row in compared.rows])
            once_s = (device_ns - host_ns) * 1e-9 + first_s
            lost = len(missing(compared.rows, rows))
            ours, once = figures(compared.errors_s), figures(once_s)
            print(f"{stream:<24} {len(compared.rows):>6} {lost:>7} {ours}   {once}")


if __name__ == "__main__":
    main()
