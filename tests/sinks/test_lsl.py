"""The LSL sink by itself, with real outlets and real inlets. What a recorder gets is in tests/system."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pylsl
import pytest

from bridge.clock import ClockState, Mapped
from bridge.pipeline import ClockEvent
from bridge.sinks.lsl import LslOutput, LslSink
from bridge.streams import Channel, DeviceDescriptor, Sample, StreamDescriptor, StreamKind

DEADLINE_S = 20.0
NAME = f"tracker_{random.randrange(10**9)}"
DEVICE = DeviceDescriptor(NAME, "test", f"pupil_labs_{NAME}")
GAZE = StreamDescriptor(DEVICE, "gaze", StreamKind.GAZE, "Gaze", "Gaze", channels=(Channel("x", "pixels", "ScreenX"),))
MAPPED = Mapped(0, 0, 0, ClockState.LOCKED, 0)


@pytest.fixture
def sink() -> Iterator[LslSink]:
    made = LslSink()
    made.open_device(DEVICE)
    yield made
    made.close()


@contextmanager
def reading(name: str) -> Iterator[pylsl.StreamInlet]:
    (info,) = pylsl.resolve_byprop("name", name, 1, DEADLINE_S)
    inlet = pylsl.StreamInlet(info, recover=False)
    inlet.open_stream(DEADLINE_S)
    try:
        yield inlet
    finally:
        inlet.close_stream()


def pull(inlet: pylsl.StreamInlet, count: int) -> list[tuple[list[Any], float]]:
    rows = [inlet.pull_sample(DEADLINE_S) for _ in range(count)]
    assert all(stamp_s is not None for _, stamp_s in rows), f"not {count} samples in time"
    return rows


def test_the_beginning_of_an_epoch_is_a_marker_stamped_when_it_was_noticed(sink: LslSink) -> None:
    with reading(f"{DEVICE.lsl_prefix}_Markers") as inlet:
        info = inlet.info(DEADLINE_S)
        assert (info.type(), info.channel_count(), info.channel_format()) == ("Markers", 1, pylsl.cf_string)
        assert (info.nominal_srate(), info.source_id()) == (0.0, f"{NAME}_Markers")
        assert info.desc().child("channels").child("channel").child_value("label") == "bridge_state"
        assert info.desc().child("acquisition").child_value("device_id") == NAME
        now_ns = time.monotonic_ns()
        sink.clock_event(DEVICE, ClockEvent(now_ns, 5, 1, "step -0.200000 s"))
        sink.clock_event(DEVICE, ClockEvent(now_ns + 1_000_000, None, 2, "restart"))
        rows = pull(inlet, 2)
        assert [text for (text,), _ in rows] == ["epoch 1 step -0.200000 s", "epoch 2 restart"]
        assert [stamp_s for _, stamp_s in rows] == pytest.approx([now_ns * 1e-9, now_ns * 1e-9 + 1e-3], abs=1e-7)


def test_a_step_of_realtime_does_not_reach_lsl_stamps(sink: LslSink, monkeypatch: pytest.MonkeyPatch) -> None:
    output = sink.open_stream(GAZE)
    with reading(GAZE.lsl_name) as inlet:
        hosts_ns: list[int] = []
        ahead_ns = 0
        real_time_ns = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real_time_ns() + ahead_ns)
        for number in range(6):
            ahead_ns = number // 3 * 7_000_000_000
            hosts_ns.append(time.monotonic_ns())
            output.push(Sample(GAZE, 1, hosts_ns[-1], (float(number),)), MAPPED, hosts_ns[-1])
        rows = pull(inlet, 6)
    assert [values[0] for values, _ in rows] == [float(number) for number in range(6)]
    assert [stamp_s for _, stamp_s in rows] == pytest.approx([ns * 1e-9 for ns in hosts_ns], abs=1e-7)
    # And they are of the clock that every LSL program reads.
    assert rows[-1][1] == pytest.approx(pylsl.local_clock(), abs=DEADLINE_S)


def test_samples_of_a_batch_arrive_each_with_its_stamp_and_the_last_one_at_once(sink: LslSink) -> None:
    output = sink.open_stream(GAZE)
    assert output is not None
    with reading(GAZE.lsl_name) as inlet:
        began_ns = time.monotonic_ns()
        stamps_ns = [began_ns + number * 5_000_000 for number in range(23)]
        for first in range(0, 23, 10):
            output.begin_batch()
            for number in range(first, min(first + 10, 23)):
                output.push(Sample(GAZE, 1, began_ns, (float(number),)), MAPPED, stamps_ns[number])
            output.end_batch()
            rows = pull(inlet, len(range(first, min(first + 10, 23))))
            assert [values[0] for values, _ in rows] == [float(n) for n in range(first, min(first + 10, 23))]
            assert [stamp_s for _, stamp_s in rows] == pytest.approx(
                [ns * 1e-9 for ns in stamps_ns[first : first + 10]], abs=1e-7
            )
        for empty in range(2):
            output.begin_batch()
            output.end_batch()
            output.push(Sample(GAZE, 1, began_ns, (float(100 + empty),)), MAPPED, stamps_ns[-1])
        assert [values[0] for values, _ in pull(inlet, 2)] == [100.0, 101.0]
    assert output.samples_out == 25


# --- devices that come and go ----------------------------------------------------------------------------------------

OTHER = DeviceDescriptor(f"{NAME}_other", "test", f"pupil_labs_{NAME}_other")
OTHER_GAZE = StreamDescriptor(OTHER, "gaze", StreamKind.GAZE, "Gaze", "Gaze", channels=GAZE.channels)


@pytest.fixture
async def _threads_of_the_loop() -> AsyncIterator[None]:
    """The loop's threads end with the test, as they do with the daemon."""
    yield
    await asyncio.get_running_loop().shutdown_default_executor()


def push(output: LslOutput, number: int) -> None:
    now_ns = time.monotonic_ns()
    output.push(Sample(GAZE, 1, now_ns, (float(number),)), MAPPED, now_ns)


@pytest.mark.usefixtures("_threads_of_the_loop")
async def test_a_device_that_is_closed_takes_its_outlets_with_it_and_the_loop_goes_on(sink: LslSink) -> None:
    sink.open_device(OTHER)
    sink.open_stream(GAZE)
    other = sink.open_stream(OTHER_GAZE)
    assert sink.status() == {"outlets": 6}
    with reading(OTHER_GAZE.lsl_name) as inlet, reading(GAZE.lsl_name) as closing:
        task = asyncio.create_task(sink.close_device(DEVICE))
        turns = 0
        while not task.done():
            push(other, turns)
            sink.status()
            turns += 1
            await asyncio.sleep(0)
        await task
        assert turns > 1, "the loop was not held up"
        assert sink.status() == {"outlets": 3}
        assert [values[0] for values, _ in pull(inlet, turns)] == [float(number) for number in range(turns)]
        with pytest.raises(pylsl.util.LostError):
            closing.pull_sample(DEADLINE_S)


@pytest.mark.usefixtures("_threads_of_the_loop")
async def test_a_device_that_is_opened_anew_is_found_by_its_name_again_once(sink: LslSink) -> None:
    for number in range(2):
        output = sink.open_stream(GAZE)
        with reading(GAZE.lsl_name) as inlet:  # which fails unless there is exactly one
            push(output, number)
            assert pull(inlet, 1)[0][0][0] == float(number)
        await sink.close_device(DEVICE)
        sink.open_device(DEVICE)
    assert sink.status() == {"outlets": 2}


@pytest.mark.usefixtures("_threads_of_the_loop")
async def test_closing_the_sink_after_a_device_closes_the_others(sink: LslSink) -> None:
    sink.open_device(OTHER)
    await sink.close_device(DEVICE)
    assert sink.close() is True
    assert sink.status() == {"outlets": 0}
