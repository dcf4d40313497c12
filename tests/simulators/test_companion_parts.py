"""The pure parts of the simulated Companion: network path, clock, grid, truth file."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.simulators.companion_clock import DeviceClock, Grid, utc_at
from bridge.simulators.companion_wire import decode_event
from bridge.simulators.network import DelayLine, Loss
from bridge.simulators.truth import TruthWriter

host_times = st.integers(0, 10**17)  # three years of uptime
rates = st.fractions(Fraction(1, 1000), 1000, max_denominator=1000)


def test_a_line_without_delay_delivers_at_the_instant_of_sending() -> None:
    line: DelayLine[str] = DelayLine(0, 0, Random(1))
    assert line.put("a", 100)
    assert line.next_due_ns == 100
    assert line.take_due(99) is None
    assert line.take_due(100) == (100, "a")
    assert line.next_due_ns is None


def test_jitter_has_the_asked_mean_and_keeps_the_order() -> None:
    line: DelayLine[int] = DelayLine(5_000, 1_000, Random(2))
    gap_ns = 100_000  # far enough apart that nobody waits for the one before
    for n in range(20_000):
        assert line.put(n, n * gap_ns)
    arrived = []
    while (message := line.take_due(10**18)) is not None:
        arrived.append(message)
    assert [n for _, n in arrived] == list(range(20_000))
    mean_ns = sum(due_ns - n * gap_ns for due_ns, n in arrived) / len(arrived)
    assert mean_ns == pytest.approx(6_000, abs=50)


@given(st.lists(st.integers(0, 10_000), max_size=50).map(sorted), st.integers(0, 2**32))
def test_nothing_overtakes_and_nothing_arrives_early(sent_ns: list[int], seed: int) -> None:
    line: DelayLine[int] = DelayLine(700, 3_000, Random(seed))
    for instant_ns in sent_ns:
        line.put(instant_ns, instant_ns)
    previous_ns = 0
    for instant_ns in sent_ns:
        message = line.take_due(10**9)
        assert message is not None
        due_ns, sent = message
        assert sent == instant_ns
        assert due_ns >= instant_ns + 700
        assert due_ns >= previous_ns
        previous_ns = due_ns


def test_a_full_line_loses_what_does_not_fit() -> None:
    line: DelayLine[int] = DelayLine(10, 0, Random(1), capacity=2)
    assert [line.put(n, 0) for n in range(3)] == [True, True, False]


def test_loss_is_counted_and_repeats_with_its_seed() -> None:
    strikes = [[loss.strikes() for _ in range(10_000)] for loss in (Loss(0.3, Random(5)), Loss(0.3, Random(5)))]
    assert strikes[0] == strikes[1]
    assert sum(strikes[0]) == pytest.approx(3_000, abs=230)  # 5 sigma
    never = Loss(0.0, Random(5))
    assert not any(never.strikes() for _ in range(1_000))
    assert never.lost == 0


@given(host_times, st.integers(0, 10**16), st.floats(-500, 500))
def test_the_clock_follows_its_formula_and_its_inverse_comes_back(
    origin_ns: int, age_ns: int, drift_ppm: float
) -> None:
    clock = DeviceClock(origin_ns, 1_700_000_000 * 10**9, -3 * 10**9, drift_ppm)
    device_ns = clock.device_ns(origin_ns + age_ns)
    exact = 1_699_999_997 * 10**9 + age_ns * (1 + Fraction(drift_ppm) / 10**6)
    assert abs(device_ns - exact) <= 1 + age_ns * 10**-12  # a drift is kept to a millionth of a ppm
    assert abs(clock.host_ns(device_ns) - (origin_ns + age_ns)) <= 2


@given(host_times, rates, host_times)
def test_the_grid_finds_the_first_instant_that_is_not_before(origin_ns: int, rate_hz: Fraction, host_ns: int) -> None:
    grid = Grid(origin_ns, rate_hz)
    sequence = grid.first_from(host_ns)
    assert grid.instant_ns(sequence) >= host_ns
    assert sequence == 0 or grid.instant_ns(sequence - 1) < host_ns
    assert 0 <= sequence / rate_hz * 10**9 + origin_ns - grid.instant_ns(sequence) < 1


def test_utc_at_an_instant_agrees_with_the_system_clock() -> None:
    instant_ns, utc_ns = time.monotonic_ns(), time.time_ns()
    assert utc_at(instant_ns) == pytest.approx(utc_ns, abs=5_000_000)


def test_the_truth_file_is_appended_to_and_each_line_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    for n in range(2):
        with TruthWriter(path) as truth:
            truth.record("gaze", n, device_ns=5, host_ns=7, sent=True, payload=(1.5, 2.0))
            truth.record("event", n, device_ns=6, host_ns=8, sent=False, payload="Ä")
            assert len(path.read_bytes().splitlines()) == 2 * n + 2
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[2] == {
        "stream": "gaze",
        "sequence": 1,
        "device_ns": 5,
        "host_ns": 7,
        "sent": True,
        "payload": [1.5, 2.0],
    }
    assert lines[1]["payload"] == "Ä"


def test_a_truth_writer_without_a_path_writes_nothing_and_a_closed_one_neither(tmp_path: Path) -> None:
    nowhere = TruthWriter(None)
    nowhere.record("gaze", 0, device_ns=0, host_ns=0, sent=True, payload=(0.0,))
    nowhere.close()
    closed = TruthWriter(tmp_path / "truth")
    closed.close()
    closed.record("gaze", 0, device_ns=0, host_ns=0, sent=True, payload=(0.0,))
    assert (tmp_path / "truth").read_bytes() == b""


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"null",
        b'{"name": "x"}',
        b'{"name": "", "timestamp": null}',
        b'{"name": "x", "timestamp": true}',
        b'{"name": "x", "timestamp": 1.5}',
        b'{"name": "x", "timestamp": 9223372036854775808}',
        b'{"name": "\\ud800", "timestamp": null}',
        b'{"name": "' + b"x" * 1025 + b'", "timestamp": null}',
    ],
)
def test_an_event_that_breaks_the_protocol_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        decode_event(payload)
