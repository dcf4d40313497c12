"""``python -m benchmarks.clock``: plays every link to every method and prints what came out.

Percentiles are over all samples of all seeds. Of the other figures the worst seed counts, but for coverage and
availability (all samples) and CPU (the median seed: the machine does other things as well).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clock.baselines import BASELINES
from benchmarks.clock.links import LINKS, Link, simulate
from benchmarks.clock.score import Estimator, score

BRIDGE = "bridge"
METHODS = (*BASELINES, BRIDGE)


@dataclass(frozen=True)
class Figures:
    """Of one method on one link, over all seeds. ``seed_p95_us`` is the avoidable p95 of each seed."""

    total_us: list[float]  # p50, p95, p99, max
    avoidable_us: list[float]
    coverage: float
    width_ratio: float
    order_violations: int
    largest_jump_us: float
    recovery_s: float
    available: float
    us_per_ping: float
    us_per_sample: float
    seed_p95_us: list[float]


def maker(method: str) -> Callable[[dict[str, Any]], Estimator]:
    if method == BRIDGE:
        from bridge.clock.judge import Estimator as Bridge

        return Bridge
    return BASELINES[method]


def measure(link_name: str, method: str, seeds: Sequence[int]) -> Figures:
    make = maker(method)
    scores = [score(simulate(LINKS[link_name], seed), make) for seed in seeds]

    def percentiles(errors_us: Sequence[Any]) -> list[float]:
        return [float(x) for x in np.percentile(np.concatenate(errors_us), (50, 95, 99, 100))]

    answers = np.array([len(s.total_us) for s in scores])
    return Figures(
        total_us=percentiles([s.total_us for s in scores]),
        avoidable_us=percentiles([s.avoidable_us for s in scores]),
        coverage=float(np.average([s.coverage for s in scores], weights=answers)),
        width_ratio=max(s.width_ratio for s in scores),
        order_violations=sum(s.order_violations for s in scores),
        largest_jump_us=max(s.largest_jump_us for s in scores),
        recovery_s=max(s.recovery_s for s in scores),
        available=float(answers.sum() / sum(n / s.available for n, s in zip(answers, scores, strict=True))),
        us_per_ping=float(np.median([s.us_per_ping for s in scores])),
        us_per_sample=float(np.median([s.us_per_sample for s in scores])),
        seed_p95_us=[s.avoidable(95) for s in scores],
    )


# --- goals ---------------------------------------------------------------------------------------------------------


def goals(link: Link, f: Figures) -> list[tuple[str, bool]]:
    """The eight goals of a link, and whether each is met."""
    slewed = bool(link.host_slew_ppm)
    coverage, recovery_s = (0.97, 46.0) if slewed else (0.999, 1.5)
    return [
        (f"avoidable p95 {f.avoidable_us[1]:.1f} <= {link.goal_us:g} us", f.avoidable_us[1] <= link.goal_us),
        (f"coverage {100 * f.coverage:.3f} >= {100 * coverage:g} %", f.coverage >= coverage),
        (f"width ratio {f.width_ratio:.2f} <= 1.5", f.width_ratio <= 1.5),
        (f"order violations {f.order_violations} = 0", f.order_violations == 0),
        (f"largest jump {f.largest_jump_us:.1f} <= 25 us", f.largest_jump_us <= 25),
        (f"recovery {f.recovery_s:.2f} <= {recovery_s:g} s", f.recovery_s <= recovery_s),
        (f"available {100 * f.available:.3f} >= 99.9 %", f.available >= 0.999),
        (
            f"CPU {f.us_per_sample:.2f} <= 3 us a sample, {f.us_per_ping:.0f} <= 1000 us a ping",
            f.us_per_sample <= 3 and f.us_per_ping <= 1000,
        ),
    ]


# --- print ---------------------------------------------------------------------------------------------------------

GROUPS = (("", 17), ("total error, us", 36), ("avoidable error, us", 36), ("bound", 16), ("", 47))
ERRORS = (("p50", 9), ("p95", 9), ("p99", 9), ("max", 9))
COLUMNS = (
    ("", 17), *ERRORS, *ERRORS, ("held %", 8), ("width", 8),
    ("order", 6), ("jump", 8), ("recov.s", 8), ("avail.%", 8), ("us/ping", 8), ("us/sample", 10),
)  # fmt: skip
HEAD = "\n".join(
    ("|".join(f"{text:^{width - 1}}" for text, width in GROUPS), "".join(f"{text:>{width}}" for text, width in COLUMNS))
)


def number(x: float) -> str:
    """Three digits or more, of seven characters at most."""
    if abs(x) < 100:
        return f"{x:.1f}"
    return f"{x:.0f}" if abs(x) < 1e7 else f"{x:.0e}"


def row(method: str, f: Figures) -> str:
    cells = (
        *(number(x) for x in (*f.total_us, *f.avoidable_us)),
        f"{100 * f.coverage:.2f}", f"{f.width_ratio:.2f}", f.order_violations, number(f.largest_jump_us),
        f"{f.recovery_s:.2f}", f"{100 * f.available:.2f}", f"{f.us_per_ping:.0f}", f"{f.us_per_sample:.2f}",
    )  # fmt: skip
    return f"{method:17}" + "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS[1:], strict=True))


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(x, 1e-3)) for x in values) / len(values))


Results = dict[str, dict[str, Figures]]
"""By link, by method."""


def print_links(results: Results) -> None:
    for link_name, by_method in results.items():
        print(f"\n{link_name} (goal {LINKS[link_name].goal_us:g} us)\n{HEAD}")
        for method, figures in by_method.items():
            print(row(method, figures))


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """By method: the geometric mean of the avoidable p95 over the links, and the worst of them."""
    found: dict[str, dict[str, Any]] = {}
    for method in next(iter(results.values())):
        p95_us = {name: by_method[method].avoidable_us[1] for name, by_method in results.items()}
        worst = max(p95_us, key=lambda name: p95_us[name])
        found[method] = {"geometric_mean_us": geometric_mean(list(p95_us.values())), "worst_us": p95_us[worst]}
        found[method]["worst_link"] = worst
    return found


def print_summary(results: Results) -> None:
    print(f"\nAvoidable error, p95, over {len(results)} links\n{'':17}{'geometric mean, us':>20}{'worst, us':>12}")
    for method, s in summary(results).items():
        print(f"{method:17}{number(s['geometric_mean_us']):>20}{number(s['worst_us']):>12}  on {s['worst_link']}")


def print_goals(results: Results) -> None:
    met = total = 0
    print(f"\nGoals of {BRIDGE}")
    for link_name, by_method in results.items():
        judged = goals(LINKS[link_name], by_method[BRIDGE])
        missed = [text for text, is_met in judged if not is_met]
        met, total = met + len(judged) - len(missed), total + len(judged)
        print(
            f"{link_name:14} {len(judged) - len(missed)} of {len(judged)}"
            + "".join(f"\n    missed: {m}" for m in missed)
        )
    print(f"{met} of {total} goals")


# --- run -----------------------------------------------------------------------------------------------------------


def show(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
    elif progress:
        print(progress, file=sys.stderr)


def measure_all(links: Sequence[str], methods: Sequence[str], seeds: Sequence[int], jobs: int) -> Results:
    found: dict[tuple[str, str], Figures] = {}
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        running = {pool.submit(measure, link, method, seeds): (link, method) for link in links for method in methods}
        try:
            for future in as_completed(running):
                found[running[future]] = future.result()
                link, method = running[future]
                show(f"{len(found)} of {len(running)}: {link}, {method}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    show("")
    return {link: {method: found[link, method] for method in methods} for link in links}


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(",")]
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return chosen

    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clock", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--links", type=names(list(LINKS)), default=list(LINKS), metavar="NAME,...")
    parser.add_argument("--methods", type=names(METHODS), default=list(METHODS), metavar="NAME,...")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results = measure_all(options.links, options.methods, seeds, options.jobs)
    print_links(results)
    print_summary(results)
    if BRIDGE in options.methods:
        print_goals(results)
    if options.json:
        options.json.write_text(json.dumps(as_json(results, seeds), indent=1) + "\n")


def as_json(results: Results, seeds: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "seeds": list(seeds),
        "links": {link: {m: asdict(f) for m, f in by_method.items()} for link, by_method in results.items()},
        "summary": summary(results),
    }
    if all(BRIDGE in by_method for by_method in results.values()):
        found["goals"] = {
            link: [{"goal": text, "met": is_met} for text, is_met in goals(LINKS[link], by_method[BRIDGE])]
            for link, by_method in results.items()
        }
    return found


if __name__ == "__main__":
    main()
