"""An hour of drift with a phone restart in it, through the whole daemon into LSL, beside lsl-relay's method.

    .venv/bin/python -m benchmarks.clock.hour [--seconds 3600] [--restart-at 0.5] [--directory DIR]

A simulated Companion whose clock runs 20 ppm fast; `pupil-bridge run`; LabRecorderCLI. After a part of the time the
simulator is killed and comes back with its clock a second later, as a phone whose app starts again on another UTC.

lsl-relay measures 100 time echoes when it starts, drops the first before them, and adds their mean ever after. Here a
host of the benchmark's own does that on the same simulator, by raw sockets, just before the daemon starts: its mean is
measured, and its stamps are the device times of the recorded samples plus that mean. They are what it would record if
it lost nothing; nanosecond stamps of NDSI are kinder to it than the real one's milliseconds.

With --directory everything stays there, and --again judges it once more without measuring.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.clock.hour.judgement import LIVES, RUN, XDF, Run, judge, minutes
from benchmarks.clock.hour.relay import measure_relay
from benchmarks.local import stay_local
from tests.system.harness import Bridge, Process, bridge, free_port, lab_recorder, simulator, wait_for_streams

OFFSET_S, LATER_S = 1000.0, 1.0
AWAY_S = 3.0
AFTER_S = 10.0
PROGRESS_S = 30.0
NAME = f"hour_{random.randrange(10**9)}"  # a recorder recovers a stream by its name, wherever it is on this machine
PREFIX = f"pupil_labs_{NAME}"
CONFIG = """\
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
name = "{name}"
[[sink]]
type = "lsl"
"""


def measure(directory: Path, seconds: float, restart_at: float, drift_ppm: float) -> None:
    """Leaves the recording, the truth of both lives of the phone and the rest of the figures in the directory."""
    beacon_port = free_port(socket.SOCK_DGRAM)

    def phone(life: str, offset_s: float) -> AbstractContextManager[tuple[Process, dict[str, Any]]]:
        options = ["--beacon-port", str(beacon_port), "--truth", str(directory / f"{life}.jsonl")]
        options += ["--offset-s", str(offset_s), "--drift-ppm", str(drift_ppm)]
        return simulator("companion", directory, *options, name=life)

    first_life, second_life = LIVES
    names = f"{PREFIX}_Gaze", f"{PREFIX}_Sync"
    with ExitStack() as stack:
        first, ready = stack.enter_context(phone(first_life, OFFSET_S))
        relay = measure_relay(beacon_port, ready["clock"])
        config = CONFIG.format(beacon_port=beacon_port, name=NAME)
        daemon = stack.enter_context(bridge(directory, config))
        daemon.wait_locked(NAME)
        wait_for_streams(*names)
        queries = [f"name='{name}'" for name in names]
        recorder = stack.enter_context(lab_recorder(directory, directory / XDF, *queries))
        recording_ns = time.monotonic_ns()
        progress = Progress(recording_ns, seconds, daemon, recorder)
        progress.until(recording_ns + round(restart_at * seconds * 1e9), first)
        first.kill()
        killed_ns = time.monotonic_ns()
        progress.until(killed_ns + round(AWAY_S * 1e9))
        second, _ = stack.enter_context(phone(second_life, OFFSET_S + LATER_S))
        back_ns = time.monotonic_ns()
        progress.until(recording_ns + round(seconds * 1e9), second)
        dropped = daemon.stream(NAME, "gaze")["dropped"]
    run = Run(PREFIX, drift_ppm, relay, recording_ns, killed_ns, back_ns, dropped)
    (directory / RUN).write_text(json.dumps(asdict(run), indent=2) + "\n", encoding="utf-8")


class Progress:
    """Waits while the processes live, and says on standard error how far it is."""

    def __init__(self, begin_ns: int, seconds: float, daemon: Bridge, recorder: Process) -> None:
        self._begin_ns = begin_ns
        self._seconds = seconds
        self._daemon = daemon
        self._recorder = recorder
        self._next_ns = begin_ns

    def until(self, end_ns: int, *phones: Process) -> None:
        """Returns at this host time. Fails when a process has ended."""
        while (now_ns := time.monotonic_ns()) < end_ns:
            for process in (self._daemon.process, self._recorder, *phones):
                status = process.popen.poll()
                assert status is None, f"{process.log.stem} has ended, status {status}: {process.errors()}"
            if now_ns >= self._next_ns:
                self._next_ns += round(PROGRESS_S * 1e9)
                self._say(now_ns)
            time.sleep(min(0.5, max(0.0, (end_ns - time.monotonic_ns()) * 1e-9)))

    def _say(self, now_ns: int) -> None:
        device = self._daemon.device(NAME)
        sent = next((s["samples_out"]["lsl"] for s in device["streams"] if s["name"] == "gaze"), 0)
        clock = device["clock"]
        print(
            f"{minutes((now_ns - self._begin_ns) * 1e-9)} of {minutes(self._seconds)}: {sent} samples, clock "
            f"{clock['state']}, offset {clock['offset_s']} s",
            file=sys.stderr,
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument(
        "--restart-at", type=float, default=0.5, help="part of the time after which the phone is killed"
    )
    parser.add_argument("--drift-ppm", type=float, default=20.0)
    parser.add_argument("--directory", type=Path, help="where recording, truth and logs stay; otherwise nothing does")
    parser.add_argument("--again", action="store_true", help="only judge what is in the directory")
    options = parser.parse_args()
    if options.again and options.directory is None:
        parser.error("--again needs --directory")
    if not 0 < options.restart_at < 1 or (1 - options.restart_at) * options.seconds < AWAY_S + AFTER_S:
        parser.error(f"after the restart there must be {AWAY_S + AFTER_S:g} s or more")
    with tempfile.TemporaryDirectory(prefix="pupil-bridge-benchmark-") as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        stay_local(Path(temporary))
        if not options.again:
            if list(directory.glob("*.jsonl")):
                parser.error(f"{directory} has a measurement already")
            measure(directory, options.seconds, options.restart_at, options.drift_ppm)
        print(judge(directory))


if __name__ == "__main__":
    main()
