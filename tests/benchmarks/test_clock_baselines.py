"""The methods that the bridge is compared with do what their sources do, on links made by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.clock import __main__ as table
from benchmarks.clock.baselines import BASELINES
from benchmarks.clock.baselines.chrony import critical_runs, t_coefficient
from benchmarks.clock.baselines.hull import Gap
from benchmarks.clock.links import LINKS
from benchmarks.clock.score import Estimator

META = {"quantum": 0.0, "ping_hz": 1.0, "sample_hz": 10.0}
OFFSET_S = 1234.5
US, MS = 1e-6, 1e-3

MEASURING = [name for name in BASELINES if name != "arrival"]
ONCE = ["one-midpoint", "mean-of-echoes"]
FOLLOWING = [name for name in MEASURING if name not in ONCE]


def play(
    method: str,
    until_s: int,
    *,
    drift: float = 0.0,
    step_at_s: float = float("inf"),
    step_s: float = 0.0,
    waits: Iterator[tuple[float, float]] | None = None,
) -> tuple[Estimator, float]:
    """(the method after so many pings at 1 Hz and samples at 10 Hz; the true offset at the end).

    Pings take 1 ms there and 1 ms back and ``waits`` besides. The device is slow by ``drift``, so the offset grows.
    """
    estimator = BASELINES[method](META)

    def offset_s(at_s: float) -> float:
        return OFFSET_S + drift * at_s + (step_s if at_s >= step_at_s else 0.0)

    for i in range(until_s):
        there_s, back_s = next(waits) if waits else (0.0, 0.0)
        at_s = i + 1 * MS + there_s
        estimator.add_ping(float(i), at_s - offset_s(at_s), at_s + 1 * MS + back_s)
        for k in range(1, 10):
            made_s = i + k / 10
            estimator.add_arrival(made_s - offset_s(made_s), made_s + 2 * MS)
    return estimator, offset_s(until_s - 0.1)


def off_by_s(played: tuple[Estimator, float], until_s: int) -> float:
    estimator, offset_s = played
    at_s = until_s - 0.1
    answer = estimator.to_local(at_s - offset_s)
    assert answer is not None
    return answer[0] - at_s


def noise(seed: int) -> Iterator[tuple[float, float]]:
    rng = random.Random(seed)
    while True:
        yield rng.expovariate(1 / MS), rng.expovariate(1 / MS)


@pytest.mark.parametrize("method", MEASURING)
def test_a_constant_offset_without_waiting_is_found_exactly_and_within_the_bound(method: str) -> None:
    played = play(method, 60)
    assert off_by_s(played, 60) == pytest.approx(0, abs=1e-9)
    _, bound_s = played[0].to_local(0.0) or (0.0, 0.0)
    assert bound_s >= 1 * MS - 1e-9


@pytest.mark.parametrize("method", BASELINES)
def test_there_is_no_answer_before_anything_came(method: str) -> None:
    assert BASELINES[method](META).to_local(0.0) is None


def test_arrival_is_late_by_the_whole_latency() -> None:
    estimator = BASELINES["arrival"](META)
    estimator.add_arrival(5.0, 105.25)
    assert estimator.to_local(5.0) == (105.25, 0.0)


@pytest.mark.parametrize("method", ONCE)
def test_what_measures_once_drifts_away_and_never_sees_a_step(method: str) -> None:
    assert abs(off_by_s(play(method, 400, drift=20e-6), 400)) > 6 * MS
    assert off_by_s(play(method, 200, step_at_s=150, step_s=0.05), 200) == pytest.approx(-0.05, abs=1e-9)


def test_the_mean_of_echoes_drops_the_first_and_stops_at_100() -> None:
    first_slow = iter([(0.5, 0.0)] + [(0.0, 0.0)] * 100 + [(0.5, 0.0)] * 10)
    assert off_by_s(play("mean-of-echoes", 111, waits=first_slow), 111) == pytest.approx(0, abs=1e-9)
    second_slow = iter([(0.0, 0.0)] + [(0.5, 0.0)] + [(0.0, 0.0)] * 99)
    assert off_by_s(play("mean-of-echoes", 101, waits=second_slow), 101) == pytest.approx(-0.25 / 100, abs=1e-9)


@pytest.mark.parametrize("method", FOLLOWING)
def test_what_goes_on_measuring_follows_a_drift_and_a_step(method: str) -> None:
    assert abs(off_by_s(play(method, 400, drift=20e-6), 400)) < 1.5 * MS
    assert abs(off_by_s(play(method, 300, step_at_s=150, step_s=0.05), 300)) < 0.2 * MS


@pytest.mark.parametrize("method", ["chrony", "kalman", "hull"])
def test_what_knows_the_rate_keeps_it_while_no_ping_comes(method: str) -> None:
    estimator, _ = play(method, 200, drift=100e-6)
    at_s = 230.0
    answer = estimator.to_local(at_s - OFFSET_S - 100e-6 * at_s)
    assert answer is not None
    assert answer[0] == pytest.approx(at_s, abs=20 * US)


@pytest.mark.parametrize("method", ["lsl-burst", "ntp-filter"])
def test_what_knows_no_rate_drifts_while_no_ping_comes(method: str) -> None:
    estimator, _ = play(method, 200, drift=100e-6)
    at_s = 230.0
    answer = estimator.to_local(at_s - OFFSET_S - 100e-6 * at_s)
    assert answer is not None
    assert answer[0] - at_s < -2.9 * MS


def test_lsl_takes_the_fastest_ping_of_its_last_five_seconds_alone() -> None:
    estimator = BASELINES["lsl-burst"](META)
    # Evaluated 0.64 s after the first ping, and every 5 s.
    for sent_s, rtt_s, offset_s in ((0.0, 2e-3, 0.0), (1.0, 8e-3, 1.0), (2.0, 4e-3, 2.0), (3.0, 6e-3, 3.0)):
        estimator.add_ping(sent_s, sent_s + rtt_s / 2 - offset_s, sent_s + rtt_s)
        estimator.add_arrival(0.0, sent_s + 0.9)
    assert estimator.to_local(10.0) == pytest.approx((10.0, 1e-3))
    estimator.add_arrival(0.0, 5.95)
    assert estimator.to_local(10.0) == pytest.approx((12.0, 2e-3))


def test_pupil_sync_leaves_out_slow_pings_slews_small_corrections_and_jumps_large_ones() -> None:
    slow = iter([(0.2, 0.0) if i % 4 == 0 else (0.0, 0.0) for i in range(60)])
    assert off_by_s(play("pupil-sync", 60, waits=slow), 60) == pytest.approx(0, abs=0.2 * MS)

    for step_s, largest_s in ((5 * MS, 0.5 * MS), (50 * MS, 50 * MS)):
        estimator = BASELINES["pupil-sync-fresh"](META)
        answers_s = []
        for i in range(500):
            at_s, offset_s = i / 10, step_s if i >= 205 else 0.0
            estimator.add_arrival(at_s, at_s)
            estimator.add_ping(at_s, at_s + 1 * MS - offset_s, at_s + 2 * MS)
            answers_s.append((estimator.to_local(0.0) or (0.0, 0.0))[0])
        assert answers_s[-1] == pytest.approx(step_s, abs=0.2 * MS)
        assert max(b - a for a, b in pairwise(answers_s)) == pytest.approx(largest_s, rel=0.01)


def test_the_ntp_filter_uses_the_smallest_delay_of_eight_and_its_distance_grows_with_age() -> None:
    waits = iter([(0.0, 0.0)] * 20 + [(0.0, 20 * MS)] * 5)
    estimator, _ = play("ntp-filter", 25, waits=waits)
    assert off_by_s((estimator, OFFSET_S), 25) == pytest.approx(0, abs=1e-9)
    _, young_s = estimator.to_local(0.0) or (0.0, 0.0)
    estimator.add_arrival(0.0, 24.9 + 100)
    _, old_s = estimator.to_local(0.0) or (0.0, 0.0)
    assert old_s - young_s == pytest.approx(100 * 15e-6, abs=1e-6)
    assert young_s >= 2.5 * MS  # half of MINDISP


@pytest.mark.parametrize(("rtt_s", "is_used"), [(30 * MS, False), (1 * MS, True)])
def test_the_ntp_filter_falls_for_an_outlier_only_if_it_is_fast(rtt_s: float, is_used: bool) -> None:
    estimator, _ = play("ntp-filter", 20, waits=noise(1))
    before = estimator.to_local(0.0)
    assert before is not None
    estimator.add_ping(20.0, 20.0 + rtt_s / 2 - OFFSET_S - 0.5, 20.0 + rtt_s)
    after = estimator.to_local(0.0)
    assert after is not None
    assert after[0] - before[0] == pytest.approx(0.5 if is_used else 0.0, abs=2 * MS)


def test_chrony_corrects_for_waiting_that_is_always_on_one_way() -> None:
    rng = random.Random(2)
    waits = iter([(rng.expovariate(1 / MS), 0.0) for _ in range(100)])
    assert abs(off_by_s(play("chrony", 100, waits=waits), 100)) < 50 * US


def test_chrony_has_the_critical_values_of_its_tables() -> None:
    assert [critical_runs(n) for n in (7, 8, 12, 16, 20, 40, 64, 128)] == [0, 2, 4, 5, 7, 15, 26, 55]
    for degrees, value in ((1, 636.6), (4, 8.61), (6, 5.959), (10, 4.587), (20, 3.850), (40, 3.551)):
        assert t_coefficient(degrees) == pytest.approx(value, rel=0.03)


def test_the_kalman_filter_lets_an_outlier_pass_and_restarts_after_five() -> None:
    estimator, _ = play("kalman", 50, waits=noise(3))
    before = estimator.to_local(50 - OFFSET_S)
    assert before is not None
    for i in range(5):
        at_s = 50.0 + i
        estimator.add_ping(at_s, at_s + 1 * MS - OFFSET_S - 0.3, at_s + 2 * MS)
        answer = estimator.to_local(50 - OFFSET_S)
        assert answer is not None
        assert answer[0] - before[0] == pytest.approx(0.3 if i == 4 else 0.0, abs=1 * MS)


def test_the_hull_lies_within_every_constraint_and_its_bound_holds() -> None:
    played = play("hull", 290, drift=50e-6, waits=noise(4))
    answer = played[0].to_local(0.0)
    assert answer is not None
    assert abs(off_by_s(played, 290)) <= answer[1]
    assert abs(off_by_s(played, 290)) < 0.1 * MS

    rng, gap, points = random.Random(5), Gap(), []
    for x in range(200):
        truth = 3e-5 * x
        points.append((float(x), truth - rng.expovariate(1 / MS), truth + rng.expovariate(1 / MS)))
        gap.add(*points[-1])
    rate, lower, upper = gap.strip()
    assert all(at_least <= lower + rate * x + 1e-12 for x, at_least, _ in points)
    assert all(at_most >= upper + rate * x - 1e-12 for x, _, at_most in points)
    for other in (rate - 1e-6, rate + 1e-6):  # no other rate has a wider strip
        width = min(u - other * x for x, _, u in points) - max(low - other * x for x, low, _ in points)
        assert width <= upper - lower


def test_the_hull_begins_anew_when_no_line_fits() -> None:
    played = play("hull", 155, step_at_s=150, step_s=-0.05)
    assert off_by_s(played, 155) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("method", FOLLOWING)
def test_with_noise_the_error_is_below_the_waiting(method: str) -> None:
    assert abs(off_by_s(play(method, 200, waits=noise(6)), 200)) < 1.5 * MS


# --- the table -----------------------------------------------------------------------------------------------------


def test_the_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    table.main(
        ["--seeds", "1", "--links", "wifi 0.2 Hz", "--methods", "arrival,hull", "--jobs", "1", "--json", str(path)]
    )
    printed = capsys.readouterr().out
    assert "wifi 0.2 Hz (goal 115 us)" in printed
    found = json.loads(path.read_text())
    by_method = found["links"]["wifi 0.2 Hz"]
    assert by_method["arrival"]["avoidable_us"][1] > by_method["hull"]["avoidable_us"][1] > 0
    assert found["summary"]["hull"]["worst_link"] == "wifi 0.2 Hz"
    assert "goals" not in found


def test_a_link_has_eight_goals_and_each_can_be_missed() -> None:
    met = table.Figures([1, 1, 1, 1], [1, 1, 1, 1], 1.0, 1.0, 0, 0.0, 0.0, 1.0, 1.0, 1.0, [1.0])
    link = LINKS["lan"]
    assert [is_met for _, is_met in table.goals(link, met)] == [True] * 8
    worse = (
        {"avoidable_us": [1, 10.1, 20, 20]}, {"coverage": 0.9989}, {"width_ratio": 1.51}, {"order_violations": 1},
        {"largest_jump_us": 25.1}, {"recovery_s": 1.51}, {"available": 0.9989}, {"us_per_ping": 1001.0},
    )  # fmt: skip
    for i, change in enumerate(worse):
        missed = [not is_met for _, is_met in table.goals(link, replace(met, **change))]
        assert missed == [k == i for k in range(8)]
    slewed = replace(met, coverage=0.975, recovery_s=45.0)
    assert all(is_met for _, is_met in table.goals(LINKS["host slew"], slewed))


def test_a_picture_is_small_and_shows_in_red_where_the_bound_broke(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from benchmarks.clock import pictures

    def red_pixels(method: str) -> int:
        pictures.main(["--out", str(tmp_path), "--links", "step -200 ms", "--method", method])
        path = tmp_path / "step-minus-200-ms.png"
        assert path.stat().st_size < 80_000
        image = imread(path)
        assert image.shape[:2] == (420, 900)
        return int(((image[:, :, 0] > 0.8) & (image[:, :, 1:3].max(axis=2) < 0.2)).sum())

    assert red_pixels("ntp-filter") > 10
    assert red_pixels("arrival") > 1000  # it promises no error at all
