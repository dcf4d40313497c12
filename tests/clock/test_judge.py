"""The estimator for judges: float seconds in, float seconds out."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from bridge.clock.judge import Estimator

SHOWS_S = 1000.0  # by the device, more than by the host
MADE_S = 0.002  # before its arrival


def pinged(estimator: Estimator, host_s: float, step_s: float = 0.0) -> None:
    estimator.add_ping(host_s, host_s + 0.001 + SHOWS_S + step_s, host_s + 0.002)


def arrived(estimator: Estimator, host_s: float, off_s: float = 0.0) -> tuple[float, float] | None:
    """A sample that arrives at ``host_s``."""
    stamp_s = host_s - MADE_S + SHOWS_S + off_s
    estimator.add_arrival(stamp_s, host_s)
    return estimator.to_local(stamp_s)


def running(from_s: float = 50.0, seconds: int = 20, **meta: float) -> tuple[Estimator, float]:
    """An estimator that has seen a constant clock for a while, and the host time of that."""
    estimator = Estimator({"quantum": 0.0, "ping_hz": 1.0, "sample_hz": 100.0, **meta})
    for number in range(seconds * 100):
        host_s = from_s + number / 100
        if number % 100 == 0:
            pinged(estimator, host_s)
        arrived(estimator, host_s + 0.005)
    return estimator, from_s + seconds


def test_nothing_is_known_before_the_first_round_trip_and_something_right_after_it() -> None:
    estimator = Estimator({})
    assert estimator.to_local(1050.0) is None
    estimator.add_arrival(1049.9, 49.95)
    assert estimator.to_local(1049.9) is None
    pinged(estimator, 50.0)
    answer = estimator.to_local(1050.5)
    assert answer is not None
    assert abs(answer[0] - 50.5) <= answer[1] < 0.01


def test_it_answers_in_seconds() -> None:
    estimator, now_s = running()
    answer = estimator.to_local(now_s + SHOWS_S)
    assert answer is not None
    assert all(isinstance(part, float) for part in answer)
    assert answer[0] == pytest.approx(now_s, abs=1e-5)
    assert 0.0009 < answer[1] < 0.0012


@pytest.mark.parametrize("meta", [{}, {"quantum": None, "ping_hz": None, "sample_hz": None}, {"quantum": 1e-3}])
def test_what_is_not_told_is_assumed(meta: dict[str, float | None]) -> None:
    estimator = Estimator(meta)
    pinged(estimator, 50.0)
    answer = estimator.to_local(1050.0)
    assert answer is not None
    assert answer[1] >= 0.001 + (meta.get("quantum") or 0.0) / 2


def test_a_quantised_stamp_is_within_the_bound() -> None:
    noise, estimator = random.Random(1), Estimator({"quantum": 1e-3, "ping_hz": 1.0, "sample_hz": 50.0})
    judged = 0
    for number in range(40 * 50):
        host_s = 50 + number / 50
        if number % 50 == 0:
            out_s, back_s = 0.001 + noise.random() * 0.001, 0.001 + noise.random() * 0.001
            stamp_s = (host_s + out_s + SHOWS_S) // 1e-3 * 1e-3
            estimator.add_ping(host_s, stamp_s, host_s + out_s + back_s)
        exact_s = host_s + SHOWS_S + 0.00037
        stamp_s = exact_s // 1e-3 * 1e-3
        estimator.add_arrival(stamp_s, host_s + 0.00037 + 0.001 + noise.random() * 0.001)
        answer = estimator.to_local(stamp_s)
        if answer is not None:
            judged += 1
            assert abs(answer[0] - (stamp_s - SHOWS_S)) <= answer[1] + 1e-6
    assert judged > 1900


def test_a_fresh_suspect_is_not_answered_for() -> None:
    estimator, now_s = running()
    assert arrived(estimator, now_s) is not None
    assert arrived(estimator, now_s + 0.01, off_s=0.05) is None, "ahead of its own arrival"
    assert arrived(estimator, now_s + 0.02) is not None


def test_after_a_step_of_which_two_samples_are_held_all_are_mapped_anew() -> None:
    estimator, now_s = running()
    answers = [arrived(estimator, now_s + number / 100, off_s=0.05) for number in range(50)]
    assert answers[:2] == [None, None]
    for number, answer in enumerate(answers[2:], 2):
        assert answer is not None
        assert abs(answer[0] - (now_s + number / 100 - MADE_S)) <= answer[1] < 0.02


def test_where_stamps_are_corrupt_now_and_then_every_one_is_answered() -> None:
    estimator, now_s = running()
    answers = []
    for number in range(1000):
        off_s = 0.05 + number / 1000 if number % 100 == 50 else 0.0
        answer = arrived(estimator, now_s + number / 100, off_s=off_s)
        if off_s:
            answers.append(answer)
        else:
            assert answer is not None
            assert abs(answer[0] - (now_s + number / 100 - MADE_S)) <= answer[1]
    assert answers[0] is None
    assert answers[-1] is not None


def test_no_jump_between_two_samples_is_above_what_is_allowed() -> None:
    noise, estimator = random.Random(2), Estimator({"ping_hz": 1.0, "sample_hz": 200.0})
    errors_s = []
    for number in range(60 * 200):
        host_s = 50 + number / 200
        if number % 200 == 0:
            out_s, back_s = 0.0005 + noise.expovariate(500), 0.0005 + noise.expovariate(500)
            estimator.add_ping(host_s, host_s + out_s + SHOWS_S, host_s + out_s + back_s)
        estimator.add_arrival(host_s + SHOWS_S, host_s + 0.001 + noise.random() * 0.001)
        answer = estimator.to_local(host_s + SHOWS_S)
        assert answer is not None
        errors_s.append(answer[0] - host_s)
    settled = errors_s[10 * 200 :]
    assert max(abs(after - before) for before, after in pairwise(settled)) < 25e-6
