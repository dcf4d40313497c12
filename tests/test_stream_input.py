"""One stream from a scripted device to a notebook: held, mapped, put in order, and right over steps of its clock."""

from __future__ import annotations

import heapq
import logging
from random import Random

import pytest

from bridge import stream_input as stream_module
from bridge.pipeline import PipelineSettings
from bridge.stream_input import StreamInput
from bridge.streams import StreamKind
from tests.scripted import HOLD_NS, LATE, MS, US, Bench, Notebook, S, payloads, ready

# --- before the lock -------------------------------------------------------------------------------------------------


def test_samples_are_held_until_the_clock_is_locked_and_then_leave_in_order_with_true_stamps() -> None:
    bench = Bench()
    stream, out = bench.stream()
    true_ns = []
    for number in range(40):
        bench.now_ns += 10 * MS
        true_ns.append(bench.now_ns - 2 * MS)
        bench.sample(stream, number)
        assert out.pushed == []
    bench.lock()
    assert out.payloads == payloads(range(40))
    assert all(abs(host_ns - true) <= 5 for host_ns, true in zip(out.hosts_ns, true_ns, strict=True))
    bench.now_ns += 10 * MS
    bench.sample(stream, 40)
    assert out.payloads == payloads(range(41))
    assert not stream.dropped


def test_a_batch_is_taken_whole_and_its_end_is_told_whatever_becomes_of_its_samples() -> None:
    bench = Bench()
    stream, out = bench.stream()
    told: list[tuple[str, int]] = []
    # A sink of another kind: with these an output is one that takes batches.
    vars(out).update(
        begin_batch=lambda: told.append(("begin", len(out.pushed))),
        end_batch=lambda: told.append(("end", len(out.pushed))),
    )
    bench.lock()
    device_ns = bench.now_ns + bench.offset_ns
    rows = [(device_ns - number * MS, (float(number),)) for number in (3, 2, 1)]
    stream.batch(rows, bench.now_ns)
    assert told == [("begin", 0), ("end", 3)]
    stream.batch([], bench.now_ns)
    stream.batch([(device_ns + 3600 * S, (0.0,))], bench.now_ns)  # of another clock: it is not passed on
    assert told[2:] == [("begin", 3), ("end", 3)] * 2


def test_what_waits_for_longer_than_the_hold_is_dropped_and_counted() -> None:
    bench = Bench(hold_ns=S)
    stream, out = bench.stream()
    for number in range(30):
        bench.sample(stream, number)
        bench.now_ns += 100 * MS
    assert stream.dropped == {"clock_unlocked": 19}
    bench.lock()
    assert out.payloads == payloads(range(19, 30))


def test_a_tick_expires_what_waits_when_no_sample_comes_any_more() -> None:
    bench = Bench(hold_ns=S)
    stream, out = bench.stream()
    bench.sample(stream, 0)
    bench.now_ns += S
    bench.pipeline.tick()
    assert not stream.dropped
    bench.now_ns += 1
    bench.pipeline.tick()
    assert stream.dropped == {"clock_unlocked": 1}
    bench.lock()
    assert out.pushed == []


def test_without_a_hold_samples_before_the_lock_are_dropped_and_counted() -> None:
    bench = Bench(hold_ns=0)
    stream, out = bench.stream()
    for number in range(7):
        bench.sample(stream, number)
    assert stream.dropped == {"clock_unlocked": 7}
    bench.lock()
    bench.sample(stream, 7)
    assert out.payloads == payloads([7])


def test_what_does_not_fit_into_the_held_samples_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "HOLD_MAX_SAMPLES", 10)
    bench = Bench()
    stream, out = bench.stream()
    for number in range(25):
        bench.now_ns += MS
        bench.sample(stream, number)
    assert stream.dropped == {"clock_unlocked": 15}
    bench.lock()
    assert out.payloads == payloads(range(10))


def test_what_still_waits_for_a_clock_at_the_end_is_counted_as_dropped() -> None:
    bench = Bench()
    stream, out = bench.stream(reorder_window_ns=S)
    for number in range(3):
        bench.sample(stream, number)
    bench.pipeline.close()
    assert out.pushed == []
    assert stream.dropped == {"clock_unlocked": 3}


# --- order -----------------------------------------------------------------------------------------------------------


def test_the_reorder_window_puts_stamps_in_order() -> None:
    bench, stream, out = ready(reorder_window_ns=100 * MS, **LATE)
    ages_ms = [50, 70, 40, 60, 50, 90, 50, 50, 120, 50]
    for number, age_ms in enumerate(ages_ms):
        bench.now_ns += 10 * MS
        bench.sample(stream, number, age_ns=age_ms * MS)
    stamps = {number: number * 10 - age for number, age in enumerate(ages_ms)}
    assert len(out.pushed) < 10, "the newest wait for what may come before them"
    bench.pipeline.close()
    assert out.payloads == payloads(sorted(stamps, key=stamps.__getitem__))
    assert out.hosts_ns == sorted(out.hosts_ns)
    assert not stream.dropped


def test_what_comes_after_its_window_is_late_and_counted() -> None:
    bench, stream, out = ready(reorder_window_ns=20 * MS, **LATE)
    for number in range(10):
        bench.now_ns += 10 * MS
        bench.sample(stream, number, age_ns=0)
    bench.sample(stream, 99, age_ns=60 * MS)
    assert stream.dropped == {"late": 1}
    bench.pipeline.close()
    assert out.payloads == payloads(range(10))


def test_held_samples_with_the_same_stamp_are_put_in_order_as_they_came() -> None:
    # Pupil Core's two eyes can share a stamp; they are taken from the held ones in one go.
    bench = Bench()
    stream, out = bench.stream(reorder_window_ns=100 * MS)
    for number in range(6):
        stream.sample(bench.now_ns + bench.offset_ns, bench.now_ns, (float(number),))
    bench.lock()
    bench.pipeline.close()
    assert out.payloads == payloads(range(6))


def test_a_tick_releases_the_last_samples_of_a_paused_stream() -> None:
    bench, stream, out = ready(reorder_window_ns=100 * MS)
    for number in range(3):
        bench.now_ns += MS
        bench.sample(stream, number)
    bench.pipeline.tick()
    assert out.pushed == []
    bench.now_ns += 100 * MS + stream_module.REORDER_PATIENCE_NS + 1
    bench.pipeline.tick()
    assert out.payloads == payloads(range(3))


def test_the_reorder_buffer_is_bounded_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "REORDER_MAX_SAMPLES", 20)
    bench, stream, out = ready(reorder_window_ns=3600 * S)
    for number in range(50):
        bench.now_ns += MS
        bench.sample(stream, number)
    assert out.payloads == payloads(range(30))
    bench.pipeline.close()
    assert out.payloads == payloads(range(50))


def test_a_stream_that_need_not_be_in_order_leaves_as_it_comes_with_its_own_stamps() -> None:
    bench, stream, out = ready(**LATE)
    ages_ms = [5, 50, 4, 500, 3]
    for number, age_ms in enumerate(ages_ms):
        bench.sample(stream, number, age_ns=age_ms * MS)
    assert out.payloads == payloads(range(5))
    expected = [bench.now_ns - age_ms * MS for age_ms in ages_ms]
    assert all(abs(host_ns - true) <= 5 for host_ns, true in zip(out.hosts_ns, expected, strict=True))


def test_a_stamp_that_goes_back_within_the_bounds_is_lifted_and_one_that_goes_further_is_dropped() -> None:
    bench, stream, out = ready(arrivals_bound_clock=False)
    bench.sample(stream, 0, age_ns=10 * MS)
    bench.sample(stream, 1, age_ns=11 * MS)  # bounds of 1 ms each
    bench.sample(stream, 2, age_ns=200 * MS)
    bench.sample(stream, 3, age_ns=9 * MS)
    assert out.payloads == payloads([0, 1, 3])
    assert out.hosts_ns[0] == out.hosts_ns[1] < out.hosts_ns[2]
    assert stream.dropped == {"backwards": 1}


# --- stamps ----------------------------------------------------------------------------------------------------------


def test_no_stamp_is_later_than_its_sample_was_received() -> None:
    bench, stream, out = ready()
    bench.sample(stream, 0, age_ns=-500 * US)  # an asymmetric path may make the clock this wrong
    assert out.hosts_ns == [bench.now_ns]


@pytest.mark.parametrize("age_ns", [-10 * S, -(10**9) * S, 5 * S, 10**9 * S])
def test_an_impossible_stamp_waits_asks_for_round_trips_and_is_dropped_once_the_next_ones_fit(age_ns: int) -> None:
    bench, stream, out = ready()
    bench.run(stream, range(300))
    assert bench.device.clock.plan.next_ns() > bench.now_ns
    bench.sample(stream, -1, age_ns=age_ns)
    assert bench.device.clock.plan.next_ns() == 0
    assert not stream.dropped
    bench.run(stream, range(300, 304))
    assert stream.dropped == {"impossible_stamp": 1}
    assert out.payloads == payloads(range(304))
    assert bench.sink.events == []


@pytest.mark.parametrize("arrivals_bound_clock", [True, False])
def test_an_impossible_stamp_waits_no_longer_than_the_hold(arrivals_bound_clock: bool) -> None:
    bench, stream, out = ready(arrivals_bound_clock=arrivals_bound_clock)
    bench.sample(stream, 0, age_ns=-10 * S)
    bench.now_ns += HOLD_NS
    bench.pipeline.tick()
    assert not stream.dropped
    bench.now_ns += 1
    bench.pipeline.tick()
    assert stream.dropped == {"impossible_stamp": 1}
    assert out.pushed == []


def test_impossible_stamps_that_wait_are_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "HOLD_MAX_SAMPLES", 10)
    bench, stream, out = ready(arrivals_bound_clock=False)
    for number in range(25):
        bench.sample(stream, number, age_ns=-10 * S)
    assert stream.dropped == {"impossible_stamp": 15}
    bench.pipeline.close()
    assert stream.dropped == {"impossible_stamp": 25}
    assert out.pushed == []


def test_one_stamp_from_the_future_does_not_keep_the_next_ones_from_leaving() -> None:
    bench = Bench()
    stream, out = bench.stream(reorder_window_ns=100 * MS)
    bench.sample(stream, 0, age_ns=-(10**9) * S)  # held: nobody can know yet
    bench.lock()
    for number in range(1, 50):
        bench.now_ns += 10 * MS
        bench.sample(stream, number)
    bench.now_ns += 10 * S
    bench.pipeline.tick()
    assert out.payloads == payloads(range(1, 50))
    assert stream.dropped == {"impossible_stamp": 1}
    assert stream.rate_in_hz == pytest.approx(100)


def test_a_known_latency_is_subtracted() -> None:
    bench, stream, out = ready(latency_ns=25 * MS)
    bench.sample(stream, 0, age_ns=3 * MS)
    assert out.hosts_ns[0] == pytest.approx(bench.now_ns - 28 * MS, abs=5)


def test_samples_whose_arrival_says_nothing_do_not_ask_for_round_trips() -> None:
    for arrivals_bound_clock, asked in ((True, True), (False, False)):
        bench, stream, out = ready(arrivals_bound_clock=arrivals_bound_clock)
        for _ in range(20):
            bench.device.clock.plan.sent(bench.now_ns)
        bench.sample(stream, 0, age_ns=-6 * MS)  # impossible, but by less than the limit
        assert (bench.device.clock.plan.next_ns() == 0) is asked
        assert out.hosts_ns == ([] if asked else [bench.now_ns])


# --- epochs ----------------------------------------------------------------------------------------------------------


STEPS_NS = [50 * MS, -200 * MS, 3600 * S, -3600 * S]


def assert_within_bounds(out: Notebook) -> None:
    """For streams of which every sample is 2 ms old on arrival."""
    assert [
        (sample.payload, host_ns - sample.received_ns + 2 * MS, mapped.bound_ns)
        for sample, mapped, host_ns in out.pushed
        if abs(host_ns - sample.received_ns + 2 * MS) > mapped.bound_ns
    ] == []


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_samples_between_a_step_and_its_detection_are_held_and_then_mapped_with_the_new_clock(step_ns: int) -> None:
    bench, stream, out = ready()
    bench.run(stream, range(500))
    bench.step(step_ns)
    before = len(out.pushed)
    for number in range(500, 502):
        bench.now_ns += 10 * MS
        bench.sample(stream, number)
    assert len(out.pushed) == before, "they wait"
    assert bench.device.clock.epoch == 0
    bench.run(stream, range(502, 800))
    assert out.payloads == payloads(range(800))
    assert not stream.dropped
    assert out.hosts_ns == sorted(out.hosts_ns)
    assert [mapped.epoch for _, mapped, _ in out.pushed] == [0] * 500 + [1] * 300
    assert_within_bounds(out)


def test_a_step_that_one_sample_showed_is_detected_by_the_next_round_trip() -> None:
    bench, stream, out = ready()
    bench.run(stream, range(500))
    bench.step(-200 * MS)
    bench.now_ns += 10 * MS
    bench.sample(stream, 500)
    assert len(out.pushed) == 500
    bench.now_ns += 10 * MS
    bench.ping()
    assert bench.device.clock.epoch == 1
    assert out.payloads == payloads(range(501)), "it leaves with the detection"
    assert_within_bounds(out)


def test_what_waits_to_be_put_in_order_at_a_step_leaves_with_the_clock_of_before() -> None:
    bench, stream, out = ready(reorder_window_ns=100 * MS, **LATE)
    for number in range(4):
        bench.now_ns += 10 * MS
        bench.sample(stream, number)
    assert out.pushed == []
    bench.step(-3600 * S)
    for _ in range(2):
        bench.now_ns += 100 * MS
        bench.ping()
    assert bench.device.clock.epoch == 1
    bench.run(stream, range(4, 8))
    bench.pipeline.close()
    assert out.payloads == payloads(range(8))
    assert [mapped.epoch for _, mapped, _ in out.pushed] == [0] * 4 + [1] * 4
    assert not stream.dropped
    assert_within_bounds(out)


@pytest.mark.parametrize("step_ns", STEPS_NS)
@pytest.mark.parametrize("ages_ms", [(110, 110), (12, 120)], ids=["even", "uneven"])
def test_after_a_step_stale_samples_of_a_late_stream_are_mapped_with_the_clock_of_before(
    step_ns: int, ages_ms: tuple[int, int]
) -> None:
    bench = Bench()
    pupil, _ = bench.stream(name="pupil", kind=StreamKind.PUPIL)
    gaze, out = bench.stream(reorder_window_ns=300 * MS, **LATE)
    bench.lock()
    stepped_ns = bench.now_ns + 5 * S
    random = Random(1)
    due: list[tuple[int, int, int]] = []  # arrival, stamp, number
    true_ns: dict[float, int] = {}
    for number in range(1000):
        bench.now_ns += 8 * MS
        if bench.now_ns >= stepped_ns > bench.now_ns - 8 * MS:
            bench.step(step_ns)
        bench.run(pupil, range(number, number + 1), every_ns=0)
        captured_ns = bench.now_ns
        heapq.heappush(due, (captured_ns + random.randint(*ages_ms) * MS, captured_ns + bench.offset_ns, number))
        true_ns[number] = captured_ns
        while due and due[0][0] <= bench.now_ns:
            _, stamp_ns, which = heapq.heappop(due)
            gaze.sample(stamp_ns, bench.now_ns, (float(which),))
    bench.pipeline.close()
    assert len(out.pushed) == 1000 - len(due)
    assert not gaze.dropped
    assert out.hosts_ns == sorted(out.hosts_ns)
    errors = [
        (number, (host_ns - true_ns[number]) / MS, mapped.epoch)
        for ((number,), mapped, host_ns) in ((sample.payload, mapped, host) for sample, mapped, host in out.pushed)
        if abs(host_ns - true_ns[number]) > mapped.bound_ns
    ]
    # What was captured after the step and had come before the step was noticed, of a stream that cannot show it.
    noticed_ns = bench.sink.events[0].host_ns
    assert [e for e in errors if not stepped_ns <= true_ns[e[0]] <= noticed_ns] == []
    assert len(errors) <= 8
    assert {mapped.epoch for sample, mapped, _ in out.pushed if true_ns[sample.payload[0]] < stepped_ns} == {0}


def test_a_stale_stream_that_bounds_the_clock_is_mapped_with_the_clock_of_before_until_its_stamps_jump() -> None:
    bench, one, out_one = ready()
    other, out_other = bench.stream(name="pupil", kind=StreamKind.PUPIL)
    for number in range(500):
        bench.run(one, range(number, number + 1))
        bench.sample(other, number)
    before_ns = bench.offset_ns
    bench.step(-200 * MS)
    after_ns = bench.offset_ns
    for number in range(500, 600):
        bench.now_ns += 5 * MS
        bench.offset_ns = after_ns
        bench.run(one, range(number, number + 1), every_ns=5 * MS)
        bench.offset_ns = before_ns if number < 530 else after_ns
        bench.sample(other, number)
    assert out_one.payloads == out_other.payloads == payloads(range(600))
    assert [mapped.epoch for _, mapped, _ in out_other.pushed][500:] == [0] * 30 + [1] * 70
    for out in (out_one, out_other):
        assert_within_bounds(out)
        assert out.hosts_ns == sorted(out.hosts_ns)


@pytest.mark.parametrize("step_ns", [100 * MS, -200 * MS, 3600 * S, -3600 * S])
@pytest.mark.parametrize("late_ms", [20, 90, 190, 400])
@pytest.mark.parametrize("kind", ["gaze", "pupil"])
def test_what_is_all_late_when_the_clock_is_set_is_mapped_with_the_clock_that_stamped_it(
    kind: str, late_ms: int, step_ns: int
) -> None:
    """A device that has no time for a moment: what it stamped before and after comes in one go, after it has told that
    its clock was set and round trips have shown by how much."""
    bench = Bench()
    late = {"reorder_window_ns": 300 * MS, **LATE} if kind == "gaze" else {}
    stream, out = bench.stream(**late)
    bench.lock()
    bench.run(stream, range(500))
    stamps_ns = []
    for number in range(500, 500 + (late_ms + 30) // 10):
        bench.now_ns += 10 * MS
        stamps_ns.append((bench.now_ns - 2 * MS, bench.now_ns - 2 * MS + bench.offset_ns, float(number)))
        if number == 500 + late_ms // 10:
            bench.step(step_ns)
            bench.device.clock_was_set(bench.now_ns)
            for _ in range(2):
                bench.ping(100 * US)
    assert bench.device.clock.epoch == 1
    for _, device_ns, value in stamps_ns:
        bench.now_ns += 100 * US
        stream.sample(device_ns, bench.now_ns, (value,))
    bench.run(stream, range(500 + len(stamps_ns), 800))
    bench.pipeline.close()
    true_ns = {value: host_ns for host_ns, _, value in stamps_ns}
    assert [
        (sample.payload, (host_ns - true_ns[sample.payload[0]]) / MS)
        for sample, mapped, host_ns in out.pushed
        if sample.payload[0] in true_ns and abs(host_ns - true_ns[sample.payload[0]]) > mapped.bound_ns
    ] == []
    assert not stream.dropped
    assert out.payloads == payloads(range(800))


@pytest.mark.parametrize("step_ms", [50, -60])
def test_of_a_device_whose_streams_step_at_once_none_has_stamps_of_the_clock_of_before_after_it(step_ms: int) -> None:
    """Samples that lie too far apart to tell, all late by as much as the clock was set."""
    for at_once in (True, False):
        bench = Bench(steps_at_once=at_once)
        stream, out = bench.stream()
        bench.lock()
        bench.run(stream, range(300), every_ns=20 * MS)
        bench.step(step_ms * MS)
        bench.device.clock_was_set(bench.now_ns)
        for _ in range(2):
            bench.now_ns += MS
            bench.ping(100 * US)
        assert bench.device.clock.epoch == 1
        bench.now_ns += 20 * MS + max(step_ms, 0) * MS
        first_true_ns = bench.now_ns - max(step_ms, 0) * MS
        stream.sample(first_true_ns + bench.offset_ns, bench.now_ns, (0.0,))
        assert (abs(out.hosts_ns[-1] - first_true_ns) < MS) is (at_once or step_ms < 0)


def test_stamps_of_two_clocks_do_not_spoil_the_rate() -> None:
    for step_ns in STEPS_NS:
        bench, stream, _ = ready(arrivals_bound_clock=False)
        bench.run(stream, range(500))
        before_ns = bench.offset_ns
        bench.step(step_ns)
        for _ in range(2):
            bench.now_ns += 5 * MS
            bench.ping()
        assert bench.device.clock.epoch == 1
        bench.offset_ns = before_ns
        bench.sample(stream, 500)  # stale
        bench.offset_ns += step_ns
        bench.run(stream, range(501, 1000))
        assert stream.rate_in_hz == pytest.approx(100, rel=0.01), step_ns


def test_a_stream_in_order_whose_stamps_run_backwards_asks_for_round_trips() -> None:
    # Arrivals that scatter widely hide a step back from the clock; the stream's own order does not.
    bench, stream, out = ready()
    random = Random(1)
    for number in range(600):
        bench.now_ns += 8 * MS
        due = bench.device.clock.plan.next_ns() <= bench.now_ns
        if due:
            bench.device.clock.plan.sent(bench.now_ns)
            bench.ping()
        bench.sample(stream, number, age_ns=random.randrange(2, 9) * MS)
    assert bench.device.clock.plan.next_ns() > bench.now_ns
    bench.sample(stream, 600, age_ns=15 * MS)
    assert bench.device.clock.plan.next_ns() == 0
    assert stream.dropped.total() <= 1
    assert len(out.pushed) >= 600


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_a_step_before_the_lock_drops_what_was_stamped_by_the_old_clock(step_ns: int) -> None:
    bench = Bench()
    stream, out = bench.stream(arrivals_bound_clock=False)
    bench.ping()
    bench.sample(stream, 0)
    bench.step(step_ns)
    bench.now_ns += 100 * MS
    bench.ping()
    bench.lock()
    bench.sample(stream, 1)
    assert bench.device.clock.epoch == 1
    assert out.payloads == payloads([1])
    assert stream.dropped == {"clock_epoch": 1}
    assert out.hosts_ns == [pytest.approx(bench.now_ns - 2 * MS, abs=5)]


def test_a_device_that_comes_back_with_another_clock_goes_on_in_order_after_its_new_lock() -> None:
    bench, stream, out = ready(reorder_window_ns=50 * MS)
    bench.device.attached()
    assert bench.device.connected
    bench.lock()
    for number in range(20):
        bench.now_ns += 10 * MS
        bench.sample(stream, number)
    bench.device.detached()
    assert not bench.device.connected
    bench.offset_ns, bench.now_ns = -5 * S, bench.now_ns + 30 * S
    bench.device.attached()
    assert out.payloads == payloads(range(20)), "what waited for its order still had its clock"
    for number in range(20, 40):
        bench.now_ns += 10 * MS
        bench.sample(stream, number)
    bench.lock()
    bench.pipeline.close()
    assert out.payloads == payloads(range(40))
    assert out.hosts_ns == sorted(out.hosts_ns)
    assert not stream.dropped


def test_what_is_held_when_a_device_comes_back_is_dropped_and_counted() -> None:
    bench = Bench()
    stream, out = bench.stream()
    for number in range(3):
        bench.sample(stream, number)
    bench.device.attached()
    bench.lock()
    assert out.pushed == []
    assert stream.dropped == {"clock_epoch": 3}


# --- floods ----------------------------------------------------------------------------------------------------------

FLOOD_HZ = 100.0
BURST = round(stream_module.FLOOD_S * FLOOD_HZ)


def limited(**changes: object) -> tuple[Bench, StreamInput, Notebook]:
    bench = Bench()
    bench.pipeline.set_up(PipelineSettings(hold_ns=HOLD_NS, flood_hz=FLOOD_HZ))
    stream, out = bench.stream(**changes)
    bench.lock()
    bench.pipeline.tick()
    return bench, stream, out


def second(bench: Bench, stream: StreamInput, count: int) -> None:
    """So many samples in one second, and the tick at its end."""
    for number in range(count):
        bench.now_ns += S // count
        bench.sample(stream, number)
    bench.now_ns += S - (S // count * count if count else 0)
    bench.ping()
    bench.pipeline.tick()


def test_a_burst_up_to_fifteen_seconds_of_the_limit_passes_and_the_next_sample_is_dropped() -> None:
    bench, stream, out = limited()
    for number in range(BURST):
        bench.now_ns += US
        bench.sample(stream, number)
    assert not stream.dropped
    bench.sample(stream, BURST)
    assert stream.dropped == {"flood": 1}
    assert out.payloads == payloads(range(BURST))
    assert stream.samples_in == BURST + 1


def test_a_steady_flood_is_cut_to_the_limit_counted_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    bench, stream, out = limited()
    for _ in range(40):
        second(bench, stream, 3 * round(FLOOD_HZ))
    # The burst of the beginning lasts for 7.5 s; then 100 of 300 samples pass.
    assert out.samples_out == pytest.approx(BURST + 40 * FLOOD_HZ, abs=2 * FLOOD_HZ)
    assert out.samples_out + stream.dropped["flood"] == stream.samples_in == 40 * 300
    assert set(stream.dropped) == {"flood"}
    before = out.samples_out
    for _ in range(10):
        second(bench, stream, 3 * round(FLOOD_HZ))
    assert out.samples_out - before == pytest.approx(10 * FLOOD_HZ, abs=1)
    assert stream.flooding
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "phone: gaze: more than 100 samples a second; the others are dropped"
    ]
    assert (warnings[0].DEVICE, warnings[0].STREAM) == ("phone", "gaze")


def test_after_a_flood_all_samples_pass_again_and_the_next_one_is_warned_of_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench, stream, _ = limited()
    for _ in range(10):
        second(bench, stream, 500)
    assert stream.flooding
    second(bench, stream, 50)
    assert not stream.flooding
    flooded = stream.dropped["flood"]
    for _ in range(20):
        second(bench, stream, 90)
    assert stream.dropped["flood"] == flooded
    for _ in range(20):
        second(bench, stream, 500)
    assert stream.flooding
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2


def test_a_stream_at_its_limit_is_never_a_flood_whatever_the_ticks_do() -> None:
    bench, stream, _ = limited()
    random = Random(5)
    due = 0.0
    for _ in range(60):
        late_s = random.choice([1.0, 1.0, 1.01, 3.0])  # of a computer that is busy
        due += late_s * FLOOD_HZ
        for number in range(int(due)):
            bench.now_ns += round(late_s * S / due)
            bench.sample(stream, number)
        due -= int(due)
        bench.ping()
        bench.pipeline.tick()
    assert stream.dropped["flood"] == 0


def test_a_flood_of_one_stream_leaves_the_others_alone() -> None:
    bench, stream, _ = limited()
    other, out = bench.stream(name="other", arrivals_bound_clock=False)
    for _ in range(30):
        for number in range(90):
            bench.now_ns += S // 100
            bench.sample(other, number)
            for _ in range(10):
                bench.sample(stream, number)
        bench.now_ns += S // 10
        bench.ping()
        bench.pipeline.tick()
    assert stream.flooding
    assert not other.flooding
    assert not other.dropped
    assert out.samples_out == 30 * 90


def test_what_is_flooded_does_not_reach_the_clock() -> None:
    bench, stream, _ = limited()
    for number in range(BURST):
        bench.sample(stream, number)
    for _ in range(200):
        bench.now_ns += MS
        bench.sample(stream, 0, age_ns=-3600 * S)  # would be a step, were it heard
    assert stream.dropped == {"flood": 200}
    assert bench.device.clock.epoch == 0


def test_a_limit_that_is_changed_holds_from_the_next_second_on() -> None:
    bench, stream, _ = limited()
    bench.pipeline.set_up(PipelineSettings(hold_ns=HOLD_NS, flood_hz=1000.0))
    for _ in range(30):
        second(bench, stream, 900)
    assert stream.dropped["flood"] == 0
    bench.pipeline.set_up(PipelineSettings(hold_ns=HOLD_NS, flood_hz=FLOOD_HZ))
    bench.pipeline.tick()
    for number in range(BURST + 5):
        bench.sample(stream, number)
    assert stream.dropped["flood"] == 5


def test_a_flood_before_the_lock_is_bounded_by_both_limits() -> None:
    bench = Bench()
    bench.pipeline.set_up(PipelineSettings(hold_ns=HOLD_NS, flood_hz=FLOOD_HZ))
    stream, out = bench.stream()
    for number in range(2 * BURST):
        bench.sample(stream, number)
    assert stream.dropped == {"flood": BURST}
    bench.lock()
    assert out.samples_out == BURST
