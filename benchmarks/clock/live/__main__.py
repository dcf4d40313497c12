"""The estimator live: two processes over real sockets of this machine, with an exactly known truth.

    .venv/bin/python -m benchmarks.clock.live [--seconds 60] [--drift-ppm 50] [--single] [--busy] [--keep FILE]
    .venv/bin/python -m benchmarks.clock.live --replay tests/data/busy_loopback_1.npz

The device's clock is an exact function of CLOCK_MONOTONIC, which both processes read, so every stamp's true host time
is known. Pings on UDP by the bridge's plan, samples on TCP at 120 Hz. Beside the bridge: "one midpoint",
the first ping's, for ever; "LSL burst", the fastest ping of the last 5 s; "arrival", when the sample was received.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.clock.live.figures import SETTLE_S, Figures, figures
from benchmarks.clock.live.host import PING_HZ, Log, run
from bridge.clock.judge import Estimator
from tests.system.harness import running

SAMPLE_HZ = 120.0
QUANTUM_S = 1e-9
# Ends by itself when this process is gone.
HOG = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile os.getppid() == int(sys.argv[2]): pass"


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that computes all the time on one of the cores that this one may use."""
    core = max(os.sched_getaffinity(0))
    hog = subprocess.Popen([sys.executable, "-c", HOG, str(core), str(os.getpid())])
    try:
        yield
    finally:
        hog.kill()
        hog.wait()


def bridge() -> Estimator:
    return Estimator({"quantum": QUANTUM_S, "ping_hz": PING_HZ, "sample_hz": SAMPLE_HZ})


def measure(seconds: float, drift_ppm: float, pairs: bool, busy: bool) -> Log:
    device = [sys.executable, "-m", "benchmarks.clock.live.device"]
    device += ["--drift-ppm", str(drift_ppm), "--sample-hz", str(SAMPLE_HZ)]
    with (
        tempfile.TemporaryDirectory(prefix="pupil-bridge-benchmark-") as directory,
        running(device, Path(directory) / "device.log") as process,
        busy_core() if busy else nullcontext(),
    ):
        ports = process.json_line()
        return run(bridge(), ports["pings"], ports["samples"], seconds, pairs)


def report(found: Figures) -> str:
    lines = [f"{'':<14} {'p50':>9} {'p95':>9} {'p99':>9} {'max':>9} {'jump':>9} {'backwards':>9}"]
    for name, of in found.methods.items():
        sizes = " ".join(f"{value:9.2f}" for value in (of.p50, of.p95, of.p99, of.largest, of.jump))
        lines.append(f"{name:<14} {sizes} {of.order_violations:>9}")
    lines += [
        "",
        f"bound: covers {100 * found.coverage:.3f} % of {found.judged - found.unanswered} samples, "
        f"median {found.median_bound:.2f} us; {found.unanswered} samples without an answer",
        f"pings: {found.pings} answered, {found.pings_lost} not; round trip at least {found.rtt_min:.2f} us, "
        f"median {found.rtt_median:.2f} us",
        f"ways: at least {found.out:.2f} us out, {found.back:.2f} us back; "
        f"their middle is off by {found.untold:+.2f} us, which no round trip can tell",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure")
    parser.add_argument("--drift-ppm", type=float, default=50.0, help="how much faster the device's clock runs")
    parser.add_argument("--single", action="store_true", help="one ping where the bridge sends a pair")
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write what happened to this .npz")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="ask the bridge again about what was kept there")
    options = parser.parse_args()
    if options.replay:
        print(f"{options.replay.name}. Size of the errors, us, from {SETTLE_S:g} s on\n")
        print(report(figures(Log.replayed(options.replay, bridge()))))
        return
    if options.seconds <= SETTLE_S + 1:
        parser.error(f"the first {SETTLE_S:g} s are not judged: --seconds must be more than {SETTLE_S + 1:g}")
    plan = (", single pings" if options.single else ", pings in pairs") + ", one core kept busy" * options.busy
    print(
        f"Live on 127.0.0.1, {options.seconds:g} s, device clock {options.drift_ppm:+g} ppm{plan}. Size of the errors, "
        f"us, from {SETTLE_S:g} s on\n",
        flush=True,
    )
    log = measure(options.seconds, options.drift_ppm, not options.single, options.busy)
    if options.keep:
        log.write(options.keep)
    print(report(figures(log)))


if __name__ == "__main__":
    main()
