"""Some links of the benchmark, shortened: a guard against the worst, not the benchmark."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.clock.links import LINKS, Link, plus, simulate
from benchmarks.clock.score import score
from bridge.clock.judge import Estimator


def shortened(name: str) -> Link:
    link = LINKS[name]
    return replace(link, duration_s=180.0, change_s=100.0 if link.change_s else 0.0)


@pytest.mark.parametrize("name", ["lan", "wifi 20 ppm", "step -200 ms", "corrupt"])
def test_a_simulated_link_is_mapped_as_well_as_it_says(name: str) -> None:
    run = simulate(shortened(name), seed=11)
    result = score(run, Estimator)
    assert len(result.total_us) > 15_000
    assert result.coverage >= 0.999
    assert result.order_violations == 0
    assert result.available >= 0.999
    assert result.largest_jump_us <= 25
    assert result.avoidable(95) < 2 * run.link.goal_us
    assert result.recovery_s < 3


@pytest.mark.parametrize("name", ["lan", "corrupt"])
def test_a_link_and_a_seed_are_always_the_same_run_and_the_truth_is_within_every_honest_round_trip(name: str) -> None:
    run, again = (simulate(shortened(name), seed=3) for _ in range(2))
    for values in ("kind", "sent", "device", "received", "truth", "corrupt"):
        np.testing.assert_array_equal(getattr(run, values), getattr(again, values))
    assert bool(np.all(np.diff(run.known_at) >= 0)), "events are in the order in which they become known"
    trips = (run.kind == 0) & ~run.corrupt
    assert trips.sum() > 100
    assert bool(np.all(run.excess_up[trips] > 0))
    assert bool(np.all(run.excess_down[trips] > 0))
    assert run.oracle_bound_s > abs(run.oracle_error_s)


def test_a_floor_of_arrivals_that_wanders_is_distrusted_before_long() -> None:
    """As on a computer that is busy now and then: samples are 0 to 0.2 ms later, by turns, and round trips are not."""

    def wandering(rng: np.random.Generator, at: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(1e-4 * (1 + np.sin(2 * np.pi * at / 60)))

    path = replace(LINKS["lan"].path, sample=plus(LINKS["lan"].path.sample, wandering))
    found = score(simulate(replace(LINKS["lan"], path=path, duration_s=400.0), 1), Estimator)
    assert found.avoidable(50) < 20
    assert found.coverage > 0.9
    assert found.order_violations == 0
