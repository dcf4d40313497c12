"""What knowing the future is worth: an oracle that has seen only the round trips so far.

    .venv/bin/python -m benchmarks.clock.causal [--seeds 3] [--first-seed 10]

It knows the shapes of both clocks exactly, as the oracle does, and takes the middle of the smallest delays, of those
that have come. No causal method that works on smallest delays can be expected to have a smaller avoidable error.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.clock.links import LINKS, PING, Link, simulate
from benchmarks.clock.score import WARM_UP_S


def avoidable_us(link: Link, seeds: range) -> list[float]:
    """Avoidable errors of the causal oracle at every round trip after the warm-up."""
    found: list[float] = []
    for seed in seeds:
        run = simulate(link, seed)
        good = (run.kind == PING) & ~run.corrupt
        up = np.minimum.accumulate(run.excess_up[good])
        down = np.minimum.accumulate(run.excess_down[good])
        judged = run.known_at[good] > WARM_UP_S
        found += (np.abs((up - down) / 2 - run.oracle_error_s)[judged] * 1e6).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=10)
    options = parser.parse_args()
    print(f"{'link':<14} {'p50':>7} {'p95':>7} {'max':>7}   avoidable error of a causal oracle, us")
    for name, link in LINKS.items():
        p50, p95, most = np.percentile(
            avoidable_us(link, range(options.first_seed, options.first_seed + options.seeds)), (50, 95, 100)
        )
        print(f"{name:<14} {p50:7.1f} {p95:7.1f} {most:7.1f}")


if __name__ == "__main__":
    main()
