"""The pipeline between a scripted device and sinks that write down what they get. Time is the test's."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import pipeline as pipeline_module
from bridge.clock import ClockSettings, ClockState, Mapped, RoundTrip
from bridge.pipeline import ClockStatus, Device, Output, Pipeline, StreamInput
from bridge.streams import DeviceDescriptor, Sample, StreamDescriptor, StreamKind

US, MS, S = 1_000, 1_000_000, 1_000_000_000
HOLD_NS = 5 * S
PHONE = DeviceDescriptor("phone", "companion", "pupil_labs")
Pushed = tuple[Sample, Mapped, int]


class Notebook:
    """An output that keeps everything."""

    def __init__(self) -> None:
        self.pushed: list[Pushed] = []
        self.samples_out = 0
        self.dropped: Counter[str] = Counter()

    def push(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        self.pushed.append((sample, mapped, host_ns))
        self.samples_out += 1

    @property
    def payloads(self) -> list[Any]:
        return [sample.payload for sample, _, _ in self.pushed]

    @property
    def hosts_ns(self) -> list[int]:
        return [host_ns for _, _, host_ns in self.pushed]


class Shelf:
    """A sink with a notebook for each stream, but none for the kinds that it has no form for."""

    def __init__(self, name: str, without: StreamKind | None = None) -> None:
        self.name = name
        self.without = without
        self.devices: list[str] = []
        self.notebooks: dict[str, Notebook] = {}
        self.statuses: list[ClockStatus] = []
        self.closed = 0

    def open_device(self, device: DeviceDescriptor) -> None:
        self.devices.append(device.name)

    def open_stream(self, stream: StreamDescriptor) -> Output | None:
        if stream.kind is self.without:
            return None
        assert stream.name not in self.notebooks, "a stream is opened once"
        notebook = self.notebooks[stream.name] = Notebook()
        return notebook

    def clock_status(self, device: DeviceDescriptor, status: ClockStatus) -> None:
        self.statuses.append(status)

    def close(self) -> None:
        self.closed += 1


def descriptor(name: str = "gaze", kind: StreamKind = StreamKind.GAZE, **changes: Any) -> StreamDescriptor:
    return StreamDescriptor(PHONE, name, kind, name.title(), "Gaze", **changes)


class Bench:
    """A pipeline with one device, whose clock is ``offset_ns`` ahead of the host's, and one sink."""

    def __init__(self, hold_ns: int = HOLD_NS, offset_ns: int = 777 * S) -> None:
        self.now_ns = 1000 * S
        self.offset_ns = offset_ns
        self.sink = Shelf("lsl")
        self.pipeline = Pipeline(
            [self.sink], hold_ns=hold_ns, clock_settings=ClockSettings(), now_ns=lambda: self.now_ns
        )
        self.device: Device = self.pipeline.device(PHONE)

    def stream(self, **changes: Any) -> tuple[StreamInput, Notebook]:
        stream = self.device.stream(descriptor(**changes))
        return stream, self.sink.notebooks[stream.descriptor.name]

    def ping(self, delay_ns: int = MS) -> None:
        """A symmetric round trip that has just ended."""
        self.device.ping(RoundTrip(self.now_ns - 2 * delay_ns, self.now_ns - delay_ns + self.offset_ns, self.now_ns))

    def lock(self) -> None:
        for _ in range(5):
            self.now_ns += 100 * MS
            self.ping()

    def sample(self, stream: StreamInput, number: float, *, age_ns: int = 2 * MS) -> None:
        """A sample that the device stamped ``age_ns`` ago and that arrives now."""
        stream.sample(self.now_ns - age_ns + self.offset_ns, self.now_ns, (number,))


def payloads(numbers: range | list[int]) -> list[tuple[float]]:
    return [(float(number),) for number in numbers]


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
    monkeypatch.setattr(pipeline_module, "HOLD_MAX_SAMPLES", 10)
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


def ready(**changes: Any) -> tuple[Bench, StreamInput, Notebook]:
    """A bench whose clock is locked and whose every sample arrives 50 ms after its stamp, unless it says otherwise."""
    bench = Bench()
    stream, out = bench.stream(**changes)
    bench.lock()
    return bench, stream, out


def test_the_reorder_window_puts_stamps_in_order() -> None:
    bench, stream, out = ready(reorder_window_ns=100 * MS)
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
    bench, stream, out = ready(reorder_window_ns=20 * MS)
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
    bench.now_ns += 100 * MS + pipeline_module.REORDER_PATIENCE_NS + 1
    bench.pipeline.tick()
    assert out.payloads == payloads(range(3))


def test_the_reorder_buffer_is_bounded_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "REORDER_MAX_SAMPLES", 20)
    bench, stream, out = ready(reorder_window_ns=3600 * S)
    for number in range(50):
        bench.now_ns += MS
        bench.sample(stream, number)
    assert out.payloads == payloads(range(30))
    bench.pipeline.close()
    assert out.payloads == payloads(range(50))


def test_a_stream_that_need_not_be_in_order_leaves_as_it_comes_with_its_own_stamps() -> None:
    bench, stream, out = ready(in_order=False)
    ages_ms = [5, 50, 4, 500, 3]
    for number, age_ms in enumerate(ages_ms):
        bench.sample(stream, number, age_ns=age_ms * MS)
    assert out.payloads == payloads(range(5))
    expected = [bench.now_ns - age_ms * MS for age_ms in ages_ms]
    assert all(abs(host_ns - true) <= 5 for host_ns, true in zip(out.hosts_ns, expected, strict=True))


def test_a_stamp_that_goes_back_within_the_bounds_is_lifted_and_one_that_goes_further_is_dropped() -> None:
    bench, stream, out = ready()
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


def test_a_stamp_from_the_future_is_dropped_and_asks_for_round_trips() -> None:
    bench, stream, out = ready()
    for _ in range(20):
        bench.device.clock.ping_sent(bench.now_ns)
    assert bench.device.clock.next_ping_ns() > bench.now_ns
    bench.sample(stream, 0, age_ns=-10 * S)
    assert stream.dropped == {"from_the_future": 1}
    assert bench.device.clock.next_ping_ns() == 0
    bench.sample(stream, 1)
    assert out.payloads == payloads([1])


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
    assert stream.dropped == {"from_the_future": 1}
    assert stream.rate_in_hz == pytest.approx(100)


def test_a_known_latency_is_subtracted() -> None:
    bench, stream, out = ready(latency_ns=25 * MS)
    bench.sample(stream, 0, age_ns=3 * MS)
    assert out.hosts_ns[0] == pytest.approx(bench.now_ns - 28 * MS, abs=5)


def test_samples_whose_arrival_says_nothing_do_not_ask_for_round_trips() -> None:
    for arrivals_bound_clock, asked in ((True, True), (False, False)):
        bench, stream, out = ready(arrivals_bound_clock=arrivals_bound_clock)
        for _ in range(20):
            bench.device.clock.ping_sent(bench.now_ns)
        bench.sample(stream, 0, age_ns=-3 * MS)  # more than the bound, less than the limit
        assert (bench.device.clock.next_ping_ns() == 0) is asked
        assert out.hosts_ns == [bench.now_ns]


# --- epochs ----------------------------------------------------------------------------------------------------------


def test_a_step_of_the_device_clock_drops_and_counts_what_waits(caplog: pytest.LogCaptureFixture) -> None:
    bench, stream, out = ready(reorder_window_ns=S)
    for number in range(4):
        bench.now_ns += 10 * MS
        bench.sample(stream, number)
    assert out.pushed == []
    bench.offset_ns -= 3600 * S
    with caplog.at_level(logging.WARNING):
        bench.now_ns += 100 * MS
        bench.ping()
        bench.now_ns += 100 * MS
        bench.ping()
    assert "clock has stepped; epoch 1" in caplog.text
    assert stream.dropped == {"clock_epoch": 4}
    for number in range(4, 8):
        bench.now_ns += 10 * MS
        bench.sample(stream, number)
    bench.pipeline.close()
    assert out.payloads == payloads(range(4, 8))
    assert {mapped.epoch for _, mapped, _ in out.pushed} == {1}
    assert out.hosts_ns[-1] == pytest.approx(bench.now_ns - 2 * MS, abs=MS)


def test_a_step_before_the_lock_drops_what_was_stamped_by_the_old_clock() -> None:
    bench = Bench()
    stream, out = bench.stream()
    bench.ping()
    bench.sample(stream, 0)
    bench.offset_ns -= 3600 * S
    bench.now_ns += 100 * MS
    bench.ping()
    bench.lock()
    bench.sample(stream, 1)
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


# --- rates -----------------------------------------------------------------------------------------------------------


def test_the_rate_in_is_by_the_devices_stamps_and_ignores_its_gaps() -> None:
    bench, stream, _ = ready()
    assert stream.rate_in_hz is None
    for _ in range(3):
        for number in range(101):
            bench.now_ns += 5 * MS
            bench.sample(stream, number)
        bench.device.detached()
        bench.now_ns += 600 * S
        bench.device.attached()
        bench.lock()
    assert stream.rate_in_hz == pytest.approx(200)


def test_recent_rates_are_by_the_ticks_of_the_last_five_seconds() -> None:
    bench, stream, _ = ready()
    assert stream.recent_rates_hz() == (0.0, 0.0)
    for second in range(12):
        for number in range(second):
            bench.sample(stream, number)
        bench.now_ns += S
        bench.pipeline.tick()
    assert stream.recent_rates_hz() == pytest.approx([(7 + 8 + 9 + 10 + 11) / 5] * 2)


# --- sinks -----------------------------------------------------------------------------------------------------------


def test_every_sink_gets_every_sample_and_one_without_a_form_for_a_stream_gets_nothing() -> None:
    lsl, ros2 = Shelf("lsl"), Shelf("ros2", without=StreamKind.EVENT)
    pipeline = Pipeline([lsl, ros2], now_ns=lambda: 50 * S)
    device = pipeline.device(PHONE)
    assert pipeline.device(PHONE) is device
    assert lsl.devices == ros2.devices == ["phone"]
    gaze, event = device.stream(descriptor()), device.stream(descriptor("event", StreamKind.EVENT))
    assert device.stream(descriptor()) is gaze
    assert list(event.outputs) == ["lsl"]
    for number in range(5):
        device.ping(RoundTrip(number * S, number * S, number * S))
    gaze.sample(4 * S, 5 * S, (1.0,))
    event.sample(4 * S, 5 * S, "blink")
    assert lsl.notebooks["gaze"].pushed == ros2.notebooks["gaze"].pushed
    assert lsl.notebooks["gaze"].payloads == [(1.0,)]
    assert lsl.notebooks["event"].payloads == ["blink"]
    assert list(ros2.notebooks) == ["gaze"]


def test_a_stream_that_no_sink_has_a_form_for_is_taken_and_counted_all_the_same() -> None:
    pipeline = Pipeline([Shelf("lsl", without=StreamKind.GAZE)], now_ns=lambda: 50 * S)
    device = pipeline.device(PHONE)
    stream = device.stream(descriptor())
    for number in range(5):
        device.ping(RoundTrip(number * S, number * S, number * S))
    stream.sample(4 * S, 5 * S, (1.0,))
    pipeline.tick()
    assert stream.samples_in == 1
    assert stream.all_drops() == {}
    assert stream.recent_rates_hz() == (0.0, 0.0)


def test_what_a_sink_drops_is_named_after_the_sink() -> None:
    bench, stream, out = ready()
    out.dropped["queue_full"] += 3
    bench.sample(stream, 0, age_ns=-10 * S)
    assert stream.all_drops() == {"from_the_future": 1, "lsl_queue_full": 3}
    assert bench.device.clock_status(bench.now_ns).samples_dropped == 4


def test_every_sink_gets_every_clock_status_at_every_tick() -> None:
    bench = Bench()
    bench.pipeline.tick()
    unlocked = bench.sink.statuses[-1]
    assert unlocked.state is ClockState.UNLOCKED
    assert (unlocked.device_ns, unlocked.offset_ns, unlocked.bound_ns, unlocked.precision_ns) == (None,) * 4
    assert (unlocked.rtt_min_ns, unlocked.rtt_median_ns, unlocked.age_ns) == (None,) * 3
    bench.lock()
    bench.now_ns += 300 * MS
    bench.pipeline.tick()
    locked = bench.sink.statuses[-1]
    assert len(bench.sink.statuses) == 2
    assert locked.state is ClockState.LOCKED
    assert locked.host_ns == bench.now_ns
    assert locked.device_ns == pytest.approx(bench.now_ns + bench.offset_ns, abs=5)
    assert locked.offset_ns == pytest.approx(-bench.offset_ns, abs=5)
    assert locked.bound_ns == pytest.approx(MS, abs=100 * US)
    assert (locked.rtt_min_ns, locked.rtt_median_ns) == (2 * MS, 2 * MS)
    assert locked.age_ns == 300 * MS
    assert (locked.epoch, locked.pings_accepted, locked.samples_dropped) == (0, 5, 0)


def test_close_closes_every_sink_once() -> None:
    sinks = [Shelf("lsl"), Shelf("ros2")]
    Pipeline(sinks).close()
    assert [sink.closed for sink in sinks] == [1, 1]


# --- conservation ----------------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("sample"), st.sampled_from(["gaze", "pupil", "event"]), st.integers(-3, 40)),
        st.tuples(st.just("sample"), st.sampled_from(["gaze", "pupil", "event"]), st.integers(-(10**9), 10**9)),
        st.tuples(st.just("burst"), st.just(""), st.integers(1, 8)),
        st.tuples(st.just("ping"), st.just(""), st.integers(0, 1000)),
        st.tuples(st.just("wait"), st.just(""), st.one_of(st.integers(0, 50), st.integers(0, 8000))),
        st.tuples(st.just("step"), st.just(""), st.integers(-(10**9), 10**9)),
        st.tuples(st.sampled_from(["attached", "detached", "tick"]), st.just(""), st.just(0)),
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=300)
@given(steps, st.sampled_from([0, 100 * MS, HOLD_NS]))
def test_every_sample_leaves_or_is_dropped_and_counted_or_still_waits(
    script: list[tuple[str, str, int]], hold_ns: int
) -> None:
    bench = Bench(hold_ns=hold_ns)
    streams = {
        "gaze": bench.stream(),
        "pupil": bench.stream(name="pupil", kind=StreamKind.PUPIL, reorder_window_ns=20 * MS),
        "event": bench.stream(name="event", kind=StreamKind.EVENT, in_order=False, latency_ns=MS),
    }
    for number, (what, where, amount) in enumerate(script):
        if what == "sample":
            bench.sample(streams[where][0], number, age_ns=amount * MS)
        elif what == "burst":
            for _ in range(amount):
                bench.now_ns += 100 * MS
                bench.ping()
        elif what == "ping":
            bench.ping(amount * MS)
        elif what == "wait":
            bench.now_ns += amount * MS
        elif what == "step":
            bench.offset_ns += amount * MS
        elif what == "tick":
            bench.pipeline.tick()
        else:
            getattr(bench.device, what)()
        for stream, out in streams.values():
            waiting = len(stream._held) + len(stream._reorder)
            assert stream.samples_in == out.samples_out + stream.dropped.total() + waiting
    bench.pipeline.close()
    for name, (stream, out) in streams.items():
        assert stream.samples_in == out.samples_out + stream.dropped.total(), "at the end nothing waits"
        assert all(host_ns <= sample.received_ns for sample, _, host_ns in out.pushed)
        if name != "event":
            assert all(before <= after for before, after in pairwise(out.hosts_ns))
        numbers = [number for (number,) in out.payloads]
        assert len(set(numbers)) == len(numbers), "nothing leaves twice"
