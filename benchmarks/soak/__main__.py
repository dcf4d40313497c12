"""The daemon for half an hour with four simulated eye trackers, readers of LSL and ROS 2, and faults from a seed.

    .venv/bin/python -m benchmarks.soak [--minutes 30] [--seed 1] [--every 8] [--directory DIR]

Devices are killed, stopped, sent away and have their clocks set; readers and clients are stopped; every socket gets
malformed floods; the configuration is loaded anew every minute. Once a second memory, files, threads and the status are
read. Exit status 1: a process died, a traceback, a device that was up and did not stream within five seconds, a sample
that the LSL reader has not, files or threads that grow, or (after 15 settled minutes) an RSS that grows by more than
1 MB an hour with 95 % confidence.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.local import stay_local
from benchmarks.soak.figures import warm_up_s
from benchmarks.soak.lab import Lab
from benchmarks.soak.run import Soak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--every", type=float, default=8.0, help="seconds between faults")
    parser.add_argument("--directory", type=Path, help="where logs and readings stay; otherwise nothing does")
    options = parser.parse_args()
    if options.minutes < 1:
        parser.error("a soak takes a minute or more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that its children end with it
    with tempfile.TemporaryDirectory(prefix="pupil-bridge-soak-") as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        stay_local(directory)
        return soak(directory, options.seed, 60 * options.minutes, options.every)


def soak(directory: Path, seed: int, duration_s: float, every_s: float) -> int:
    print(f"seed {seed}, {duration_s / 60:g} min, warm-up {warm_up_s(duration_s) / 60:.1f} min, logs in {directory}")
    with Lab(directory, seed) as lab:
        run = Soak(lab, seed, duration_s, every_s, lambda text: print(text, file=sys.stderr, flush=True))
        try:
            run.run()
        except RuntimeError as error:
            run.wrong(str(error))
        except KeyboardInterrupt:
            run.wrong("interrupted")
        finally:
            rows = [json.dumps(dataclasses.asdict(reading)) for reading in run.readings]
            (directory / "readings.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"\n{run.report()}\n")
        wrongs = run.judge()
    print("\n".join(f"WRONG {text}" for text in wrongs) or "nothing is wrong")
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
