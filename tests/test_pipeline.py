"""Devices and sinks of the pipeline: who gets what, and that nothing is lost uncounted. Time is the test's."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.clock import ClockState, RoundTrip
from bridge.pipeline import Pipeline, PipelineSettings
from bridge.streams import DeviceDescriptor, StreamKind
from tests.scripted import HOLD_NS, MS, PHONE, US, Bench, S, Shelf, descriptor, payloads, ready

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
    bench.run(stream, range(1, 5))
    assert stream.all_drops() == {"impossible_stamp": 1, "lsl_queue_full": 3}
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
    assert locked.bound_ns == bench.device.clock.map(locked.device_ns).bound_ns  # which grows from the last ping on
    assert MS < locked.bound_ns < MS + 200 * US
    assert (locked.rtt_min_ns, locked.rtt_median_ns) == (2 * MS, 2 * MS)
    assert locked.age_ns == 300 * MS
    assert (locked.epoch, locked.pings_accepted, locked.samples_dropped) == (0, 5, 0)


def test_close_closes_every_sink_once() -> None:
    sinks = [Shelf("lsl"), Shelf("ros2")]
    Pipeline(sinks).close()
    assert [sink.closed for sink in sinks] == [1, 1]


# --- epochs ----------------------------------------------------------------------------------------------------------


def two_sinks() -> tuple[Bench, Shelf]:
    bench, other = Bench(), Shelf("ros2", without=StreamKind.GAZE)
    bench.pipeline = Pipeline(
        [bench.sink, other], settings=PipelineSettings(hold_ns=HOLD_NS), now_ns=lambda: bench.now_ns
    )
    bench.device = bench.pipeline.device(PHONE)
    return bench, other


@pytest.mark.parametrize(
    ("step_ns", "text"),
    [
        (-200 * MS, "epoch 1 step -0.200000 s"),
        (50 * MS, "epoch 1 step +0.050000 s"),
        (3600 * S, "epoch 1 step +3600.000000 s"),
    ],
)
def test_every_sink_hears_of_a_step_once_however_many_streams_show_it(
    step_ns: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench, other = two_sinks()
    streams = [bench.stream(name=name)[0] for name in ("one", "two", "three")]
    bench.lock()
    for number in range(1000):
        if number == 500:
            bench.step(step_ns)
        bench.run(streams[0], range(1))
        for stream in streams[1:]:
            bench.sample(stream, number)
    bench.pipeline.tick()
    assert [event.text for event in bench.sink.events] == [text]
    assert other.events == bench.sink.events
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"phone: the device's clock was set by {text.removeprefix('epoch 1 step ')}; epoch 1 begins" in caplog.text


def test_an_epoch_event_tells_when_and_at_what_time_of_the_device() -> None:
    bench, stream, out = ready()
    bench.run(stream, range(500))
    bench.step(-3600 * S)
    bench.now_ns += 10 * MS
    for _ in range(2):
        assert bench.sink.events == []
        bench.now_ns += 100 * MS
        bench.ping()
    (event,) = bench.sink.events
    assert (event.host_ns, event.epoch, event.reason) == (bench.now_ns, 1, "step -3600.000000 s")
    assert event.device_ns == pytest.approx(bench.now_ns + bench.offset_ns, abs=2 * MS)
    (status,) = bench.sink.statuses
    assert (status.host_ns, status.epoch) == (bench.now_ns, 1), "how well the new clock is known is told at once"
    assert len(out.pushed) == 500


def test_every_sink_hears_of_a_device_that_is_there_again_but_not_of_its_first_time() -> None:
    bench, other = two_sinks()
    bench.stream()
    bench.device.attached()
    bench.lock()
    assert bench.sink.events == []
    bench.device.detached()
    bench.now_ns += S
    bench.device.attached()
    bench.lock()
    assert [(event.text, event.device_ns) for event in bench.sink.events] == [("epoch 1 restart", None)]
    bench.device.attached()
    assert [event.text for event in bench.sink.events] == ["epoch 1 restart", "epoch 2 restart"]
    assert other.events == bench.sink.events


def test_late_samples_of_a_device_that_is_there_again_with_the_clock_of_before_are_its_own() -> None:
    bench, stream, out = ready()
    bench.run(stream, range(99))
    bench.now_ns += 70 * MS
    bench.sample(stream, 99, age_ns=60 * MS)  # as late as those that come
    bench.device.detached()
    bench.now_ns += S
    bench.device.attached()
    bench.lock()
    for number in range(100, 150):
        bench.now_ns += 10 * MS
        bench.sample(stream, number, age_ns=60 * MS)
    assert out.payloads == payloads(range(150))
    assert stream.all_drops() == {}


@pytest.mark.parametrize("suspended_ns", [30 * S, 2 * MS, 36_000 * S])
def test_a_sleep_of_the_host_begins_an_epoch_in_which_all_is_mapped_at_once(suspended_ns: int) -> None:
    bench, other = two_sinks()
    stream, out = bench.stream()
    bench.lock()
    bench.run(stream, range(500))
    bench.offset_ns += suspended_ns  # the device's clock ran on
    bench.pipeline.host_suspended(suspended_ns)
    assert [event.text for event in bench.sink.events] == [f"epoch 1 suspend {suspended_ns / S:.6f} s"]
    assert other.events == bench.sink.events
    for number in range(500, 510):
        bench.now_ns += 10 * MS
        bench.sample(stream, number)
    assert len(out.pushed) == 510
    assert {mapped.state for _, mapped, _ in out.pushed[500:]} == {ClockState.BRIDGING}
    assert bench.device.clock_status(bench.now_ns).state is ClockState.BRIDGING
    bench.run(stream, range(510, 1000))
    assert len(out.pushed) == 1000
    assert not stream.dropped
    assert len(bench.sink.events) == 1
    assert all(abs(host_ns - sample.received_ns + 2 * MS) <= mapped.bound_ns for sample, mapped, host_ns in out.pushed)
    assert out.hosts_ns == sorted(out.hosts_ns)


def test_what_waits_for_a_lock_when_the_host_sleeps_is_dropped_and_counted() -> None:
    for pings in (0, 2):
        bench = Bench()
        stream, out = bench.stream()
        for _ in range(pings):
            bench.now_ns += 100 * MS
            bench.ping()
        bench.sample(stream, 0)
        bench.step(30 * S)
        bench.pipeline.host_suspended(30 * S)
        assert stream.dropped == {"clock_epoch": 1}
        bench.lock()
        bench.sample(stream, 1)
        assert out.hosts_ns == [pytest.approx(bench.now_ns - 2 * MS, abs=MS)]


def test_a_measured_asymmetry_of_the_path_moves_the_stamps_by_half_of_it() -> None:
    for asymmetry_ns in (0, 600 * US, -600 * US):
        sink = Shelf("lsl")
        pipeline = Pipeline([sink], now_ns=lambda: 1000 * S)
        device = pipeline.device(PHONE, asymmetry_ns)
        assert device.clock.estimator.settings.asymmetry_ns == asymmetry_ns
        stream = device.stream(descriptor(arrivals_bound_clock=False))
        for number in range(5):
            sent_ns = 1000 * S + number * 100 * MS
            device.ping(RoundTrip(sent_ns, sent_ns + MS, sent_ns + 2 * MS))
        stream.sample(1000 * S, 1001 * S, (1.0,))
        # Longer on the way to the device than back: what it stamped was later than the middle.
        assert sink.notebooks["gaze"].hosts_ns == [pytest.approx(1000 * S + asymmetry_ns // 2, abs=10 * US)]


# --- devices and sinks that come and go ------------------------------------------------------------------------------

OTHER = DeviceDescriptor("other", "companion", "pupil_labs_other")


async def test_what_waits_for_its_order_leaves_before_its_device_goes() -> None:
    bench, stream, out = ready(reorder_window_ns=100 * MS)
    for number in range(5):
        bench.now_ns += MS
        bench.sample(stream, number)
    assert out.pushed == []
    await bench.pipeline.remove_device("phone")
    assert out.payloads == [(float(number),) for number in range(5)]
    assert bench.sink.devices == []
    assert bench.pipeline.devices == {}
    assert not stream.dropped


async def test_what_waits_for_a_clock_when_its_device_goes_is_counted() -> None:
    bench = Bench()
    stream, out = bench.stream()
    for number in range(5):
        bench.sample(stream, number)
    await bench.pipeline.remove_device("phone")
    assert out.pushed == []
    assert stream.dropped == {"clock_unlocked": 5}


async def test_a_device_that_is_gone_hears_of_no_tick_and_no_sleep_and_can_come_again() -> None:
    bench, stream, _ = ready()
    bench.run(stream, range(20))
    await bench.pipeline.remove_device("phone")
    told = len(bench.sink.statuses), len(bench.sink.events)
    bench.pipeline.tick()
    bench.pipeline.host_suspended(S)
    assert (len(bench.sink.statuses), len(bench.sink.events)) == told
    bench.sink.notebooks.clear()
    bench.device = bench.pipeline.device(PHONE)
    again, out = bench.stream()
    assert again is not stream
    assert not bench.device.clock.locked
    bench.lock()
    bench.run(again, range(3))
    assert out.payloads == [(0.0,), (1.0,), (2.0,)]


async def test_a_device_that_goes_leaves_the_others_as_they_are() -> None:
    bench, stream, out = ready()
    other = bench.pipeline.device(OTHER)
    gate, closing = asyncio.Event(), list[str]()

    async def close_device(device: DeviceDescriptor) -> None:
        closing.append(device.name)
        await gate.wait()

    bench.sink.close_device = close_device  # type: ignore[method-assign]
    task = asyncio.create_task(bench.pipeline.remove_device("other"))
    await asyncio.sleep(0)
    assert closing == ["other"]
    bench.run(stream, range(10))
    bench.pipeline.tick()
    assert len(out.pushed) == 10, "while the other one is being closed"
    assert other.descriptor.name not in bench.pipeline.devices
    gate.set()
    await task
    assert list(bench.pipeline.devices) == ["phone"]


def test_a_sink_that_comes_while_a_device_streams_gets_all_from_then_on_and_the_others_miss_nothing() -> None:
    bench, stream, out = ready()
    event, _ = bench.stream(name="event", kind=StreamKind.EVENT)
    bench.run(stream, range(10))
    late = Shelf("ros2", without=StreamKind.EVENT)
    bench.pipeline.add_sink(late)
    assert late.devices == ["phone"]
    assert list(late.notebooks) == ["gaze"]
    assert list(event.outputs) == ["lsl"]
    bench.run(stream, range(10, 20))
    assert out.payloads == [(float(number),) for number in range(20)]
    assert late.notebooks["gaze"].pushed == out.pushed[10:]
    bench.pipeline.tick()
    assert late.statuses == bench.sink.statuses[-1:]
    bench.pipeline.device(OTHER)
    assert late.devices == ["phone", "other"]
    bench.step(3600 * S)
    bench.run(stream, range(20, 60))
    assert [found.text for found in late.events] == [found.text for found in bench.sink.events]
    assert late.events


def test_what_waits_when_a_sink_comes_is_for_that_sink_too() -> None:
    bench = Bench()
    stream, out = bench.stream(reorder_window_ns=20 * MS)
    for number in range(5):
        bench.now_ns += MS
        bench.sample(stream, number)
    late = Shelf("ros2")
    bench.pipeline.add_sink(late)
    bench.lock()
    bench.pipeline.close()
    assert late.notebooks["gaze"].pushed == out.pushed
    assert len(out.pushed) == 5


def test_a_sink_that_goes_gets_nothing_more_and_is_the_callers_to_close() -> None:
    bench, stream, out = ready()
    second = Shelf("ros2")
    bench.pipeline.add_sink(second)
    bench.run(stream, range(10))
    out.dropped["queue_full"] += 1
    assert bench.pipeline.remove_sink("lsl") is bench.sink
    statuses = len(bench.sink.statuses)
    bench.run(stream, range(10, 20))
    bench.pipeline.tick()
    bench.device.attached()
    assert len(out.pushed) == 10
    assert len(bench.sink.statuses) == statuses
    assert bench.sink.events == []
    assert second.notebooks["gaze"].payloads == [(float(number),) for number in range(20)]
    assert second.events
    assert stream.all_drops() == {}
    bench.pipeline.close()
    assert (bench.sink.closed, second.closed) == (0, 1)


def test_a_sink_is_replaced_between_two_samples() -> None:
    bench, stream, out = ready(reorder_window_ns=20 * MS)
    bench.run(stream, range(10))
    new = Shelf("lsl")
    bench.pipeline.remove_sink("lsl")
    bench.pipeline.add_sink(new)
    bench.run(stream, range(10, 20))
    bench.pipeline.close()
    both = out.payloads + new.notebooks["gaze"].payloads
    assert both == [(float(number),) for number in range(20)]
    assert stream.samples_in == 20


def test_samples_flow_on_while_there_is_no_sink() -> None:
    bench, stream, out = ready()
    bench.pipeline.remove_sink("lsl")
    bench.run(stream, range(10))
    bench.pipeline.tick()
    assert out.pushed == []
    assert stream.samples_in == 10
    assert stream.all_drops() == {}


@pytest.mark.parametrize("change", ["one more", "one less"])
def test_the_rate_out_is_that_of_one_sink_also_after_a_sink_has_come_or_gone(change: str) -> None:
    bench, stream, _ = ready()
    if change == "one less":
        bench.pipeline.add_sink(Shelf("ros2"))

    def second() -> None:
        bench.run(stream, range(100))
        bench.pipeline.tick()

    for _ in range(8):
        second()
    assert stream.recent_rates_hz()[1] == pytest.approx(100)
    bench.pipeline.add_sink(Shelf("ros2")) if change == "one more" else bench.pipeline.remove_sink("ros2")
    for _ in range(3):
        second()
        # What a person reads as loss, or as samples that leave twice, is neither.
        assert stream.recent_rates_hz()[1] == pytest.approx(100, rel=0.05)


def test_other_settings_hold_for_devices_that_are_there_and_for_those_that_come() -> None:
    bench = Bench(hold_ns=0)
    stream, out = bench.stream()
    bench.sample(stream, 0)
    bench.pipeline.set_up(PipelineSettings(hold_ns=S, flood_hz=100.0))
    bench.sample(stream, 1)
    other = bench.pipeline.device(OTHER)
    assert (other.hold_ns, other.flood_hz) == (S, 100.0)
    bench.lock()
    assert out.payloads == [(1.0,)]
    assert stream.dropped == {"clock_unlocked": 1}


# --- conservation ----------------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("sample"), st.sampled_from(["gaze", "pupil", "event", "late"]), st.integers(-3, 40)),
        st.tuples(st.just("sample"), st.sampled_from(["gaze", "pupil", "event", "late"]), st.integers(-(10**9), 10**9)),
        st.tuples(st.just("burst"), st.just(""), st.integers(1, 8)),
        st.tuples(st.just("ping"), st.just(""), st.integers(0, 1000)),
        st.tuples(st.just("wait"), st.just(""), st.one_of(st.integers(0, 50), st.integers(0, 8000))),
        st.tuples(st.just("step"), st.just(""), st.one_of(st.integers(-300, 300), st.integers(-(10**9), 10**9))),
        st.tuples(st.just("suspend"), st.just(""), st.integers(1, 10**6)),
        st.tuples(st.just("run"), st.sampled_from(["gaze", "pupil", "event", "late"]), st.integers(1, 20)),
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
        "late": bench.stream(name="late", reorder_window_ns=100 * MS, arrivals_bound_clock=False),
    }
    for number, (what, where, amount) in enumerate(script):
        if what == "sample":
            bench.sample(streams[where][0], 1000 * number, age_ns=amount * MS)
        elif what == "burst":
            for _ in range(amount):
                bench.now_ns += 100 * MS
                bench.ping()
        elif what == "ping":
            bench.ping(amount * MS)
        elif what == "wait":
            bench.now_ns += amount * MS
        elif what == "step":
            bench.step(amount * MS)
        elif what == "suspend":
            bench.step(amount * MS)
            bench.pipeline.host_suspended(amount * MS)
        elif what == "run":
            bench.run(streams[where][0], range(1000 * number, 1000 * number + amount))
        elif what == "tick":
            bench.pipeline.tick()
        else:
            getattr(bench.device, what)()
        for stream, out in streams.values():
            waiting = len(stream._held) + len(stream._suspects) + len(stream._reorder)
            assert stream.samples_in == out.samples_out + stream.dropped.total() + waiting
    bench.pipeline.close()
    for name, (stream, out) in streams.items():
        assert stream.samples_in == out.samples_out + stream.dropped.total(), "at the end nothing waits"
        assert all(host_ns <= sample.received_ns for sample, _, host_ns in out.pushed)
        if name != "event":
            assert all(before <= after for before, after in pairwise(out.hosts_ns))
        numbers = [number for (number,) in out.payloads]
        assert len(set(numbers)) == len(numbers), "nothing leaves twice"


def test_the_bound_that_is_told_is_the_widest_since_the_last_one_that_was() -> None:
    bench = Bench()
    bench.lock()
    bench.pipeline.tick()
    bench.now_ns += 60 * S
    grown_ns = bench.device.clock.map(bench.now_ns + bench.offset_ns).bound_ns
    bench.ping()
    narrowed_ns = bench.device.clock.map(bench.now_ns + bench.offset_ns).bound_ns
    assert narrowed_ns < grown_ns / 2
    assert bench.device.clock_status(bench.now_ns).bound_ns == pytest.approx(grown_ns, abs=10)
    for _ in range(2):
        bench.pipeline.tick()
    assert [status.bound_ns for status in bench.sink.statuses[-2:]] == pytest.approx([grown_ns, narrowed_ns], abs=10)
