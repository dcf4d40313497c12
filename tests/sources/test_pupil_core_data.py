"""What else Capture publishes, through the source: fixations, blinks, surfaces, annotations, notifications, its log."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.sources import core_lab
from tests.sources.core_lab import Lab, encode, gaze, impatient, pupil, pupil_time
from tests.sources.zre_peer import until

HEAD = {"confidence": 0.9, "norm_pos": [0.25, 0.75]}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)


@asynccontextmanager
async def capture(*topics: str, **config: Any) -> AsyncIterator[Lab]:
    lab = Lab(topics=topics, **config)
    try:
        await until(lambda: lab.device.clock.locked, "the clock is locked")
        yield lab
    finally:
        await lab.end()


def window(number: int, at_s: float, duration_ms: float = 300.0, **more: Any) -> list[bytes]:
    more = {"dispersion": 1.5, "method": "3d gaze", "gaze_point_3d": [1.0, 2.0, 500.0], **more}
    fixation = {**HEAD, "topic": "fixations", "id": number, "timestamp": at_s, "duration": duration_ms, **more}
    return [b"fixations", encode(fixation)]


def edge(kind: str, at_s: float, confidence: float = 0.8) -> list[bytes]:
    return [b"blinks", encode({"type": kind, "confidence": confidence, "timestamp": at_s, "base_data": []})]


def surface(name: str, *gazes: float, fixations: tuple[dict[str, Any], ...] = ()) -> list[bytes]:
    on = [
        {
            "topic": "gaze.3d.01._on_surface",
            "on_surf": True,
            "timestamp": at_s,
            "base_data": ["gaze.3d.01.", at_s],
            **HEAD,
        }
        for at_s in gazes
    ]
    seen = {"name": name, "timestamp": pupil_time(), "gaze_on_surfaces": on, "fixations_on_surfaces": list(fixations)}
    return [f"surfaces.{name}".encode(), encode(seen)]


def logged(text: str, level: str = "debug") -> list[bytes]:
    return [f"logging.{level}".encode(), encode({"name": "world", "msg": text, "levelname": level.upper(), "args": []})]


async def soon(lab: Lab, stream: str, count: int) -> list[Any]:
    """The payloads of a stream, once there are so many."""
    out = lab.out(stream)
    await until(lambda: len(out.payloads) >= count, f"{count} of {stream}; {lab.device.malformed}")
    assert len(out.payloads) == count
    return out.payloads


# --- fixations, blinks, surfaces -------------------------------------------------------------------------------------


async def test_windows_of_one_id_are_one_fixation_and_live_ones_besides() -> None:
    async with capture("fixations", live=True) as lab:
        start_s = pupil_time() - 1.0
        for step in range(4):
            lab.capture.publish(window(7, start_s + step / 30))
        lab.capture.publish(window(8, start_s + 0.6))
        (whole,) = await soon(lab, "fixations", 1)
        live = await soon(lab, "fixations_live", 5)
        assert whole[0] == 7
        assert whole[5] == pytest.approx(400.0, abs=1e-3), "from the first start to the last end, in ms"
        assert whole[10] == pytest.approx(0.4, abs=1e-6), "the same in s"
        assert whole[6] == 3.0
        assert [each[0] for each in live] == [7, 7, 7, 7, 8]
        assert {each[5] for each in live} == {300.0}
        sample = lab.out("fixations").samples[0]
        assert abs(sample.device_ns - start_s * 1e9) < 1000, "its stamp is its start"
        second = (await soon(lab, "fixations", 2))[1]  # nothing comes any more
        assert second[0] == 8


async def test_a_blink_is_from_its_surest_onset_to_its_surest_offset() -> None:
    async with capture("blinks", live=True) as lab:
        at_s = pupil_time() - 0.5
        for kind, after_s, confidence in (
            ("onset", 0.0, 0.6),
            ("onset", 0.03, 1.0),
            ("onset", 0.06, 0.7),
            ("offset", 0.2, 0.7),
            ("offset", 0.23, 0.9),
            ("offset", 0.26, 0.6),
        ):
            lab.capture.publish(edge(kind, at_s + after_s, confidence))
        (blink,) = await soon(lab, "blinks", 1)
        assert blink == pytest.approx((0.2, 0.9, 1.0, 0.9), abs=1e-6)
        assert [each[0] for each in await soon(lab, "blinks_live", 6)] == [1.0] * 3 + [0.0] * 3


async def test_a_surface_has_its_streams_at_the_start_or_when_it_is_first_seen() -> None:
    async with capture("surfaces", surfaces=["Screen 1"]) as lab:
        assert set(lab.device.streams) == {"surface_Screen_1", "surface_Screen_1_fixations"}
        now_s = pupil_time()
        fixation = {**HEAD, "id": 3, "timestamp": now_s - 0.4, "duration": 300.0, "dispersion": 1.0, "on_surf": True}
        lab.capture.publish(surface("Screen 1", now_s - 0.02, now_s - 0.01, fixations=(fixation,)))
        lab.capture.publish(surface("Screen/1", now_s))
        assert await soon(lab, "surface_Screen_1", 2) == [(0.25, 0.75, 1.0, 0.9)] * 2
        await until(lambda: "surface_Screen_1_2" in lab.device.streams, "another one of that name")
        await soon(lab, "surface_Screen_1_2", 1)
        assert (await soon(lab, "surface_Screen_1_fixations", 1))[0][0] == 3


async def test_surfaces_without_end_are_counted() -> None:
    async with capture("surfaces") as lab:
        for number in range(40):
            lab.capture.publish(surface(f"S{number}", pupil_time()))
        await until(lambda: lab.counts.get("surfaces_too_many") == 8, lambda: lab.counts)
        assert len(lab.device.streams) == 64


@pytest.mark.parametrize(
    "topic", [b"fixations", b"blinks", b"surfaces.x", b"gaze.2d.0.", b"annotation", b"notify.recording.x"]
)
async def test_what_is_no_map_is_counted_and_nothing_else_is_lost(topic: bytes) -> None:
    async with capture("gaze", "fixations", "blinks", "surfaces", "annotation", "notify") as lab:
        payloads = (b"", b"\xc1", b"\x90", encode("text"), encode(7), encode(None), encode([1, 2]), b"\x81\xa2id")
        for payload in payloads:
            lab.capture.publish([topic, payload])
        lab.capture.publish([topic])
        await until(lambda: sum(lab.device.malformed.values()) == len(payloads) + 1, lambda: lab.device.malformed)
        lab.capture.publish(gaze(1.0))
        await soon(lab, "gaze", 1)


# --- what is chosen --------------------------------------------------------------------------------------------------


async def test_nothing_but_what_is_chosen_is_subscribed_to() -> None:
    async with capture("blinks", "annotation", "notify", notifications=["recording.", "eye_process"]) as lab:
        chosen = {b"blinks", b"annotation", b"notify.recording.", b"notify.eye_process"}
        await until(lambda: lab.capture.subscriptions == core_lab.SAID | chosen, lambda: lab.capture.subscriptions)
        assert set(lab.device.streams) == {"blinks", "annotations", "notifications"}


async def test_compat_with_the_capture_plugin_has_its_three_streams_in_lsl() -> None:
    async with capture("gaze", "pupil", "fixations", compat="capture", lsl_prefix="pupil_capture") as lab:
        of_lsl = {s.descriptor.lsl_name: s.descriptor for s in lab.device.streams.values() if s.descriptor.lsl}
        assert {name: len(each.channels) for name, each in of_lsl.items()} == {
            "pupil_capture": 22,
            "pupil_capture_fixations": 7,
            "pupil_capture_pupillometry_only": 7,
        }
        assert not any(each.device_time for each in of_lsl.values())
        assert [channel.label for channel in of_lsl["pupil_capture_fixations"].channels] == [
            *("fixation id", "confidence", "norm_pos_x", "norm_pos_y", "dispersion", "duration", "method")
        ]
        for step in range(3):
            lab.capture.publish(window(1, pupil_time() - 1 + step / 30))
        assert [len(each) for each in await soon(lab, "fixations_live", 3)] == [7] * 3, "as it sends them, each window"
        lab.capture.publish(pupil(5.0, eye=1))
        (values,) = await soon(lab, "pupillometry", 1)
        assert values[:3] == (0.5, 5.0, 0.25)
        assert math.isnan(values[3]), "the right eye's diameter"
        assert values[4] == 20.0


async def test_late_gaze_is_kept_with_the_stamp_of_the_one_before_where_that_is_wanted() -> None:
    async with capture("gaze", reorder_window_ms=50, late="keep") as lab:
        now_s = pupil_time()
        for number, before_s in enumerate((0.5, 0.4, 0.3, 0.2, 0.45)):
            lab.capture.publish(gaze(float(number), now_s - before_s))
        out, stream = lab.out("gaze"), lab.device.streams["gaze"]
        await until(lambda: stream.samples_in == 5, "all have come")
        stream.drain()
        payloads = await soon(lab, "gaze", 5)
        assert sorted(out.host_ns) == out.host_ns
        late = next(n for n, payload in enumerate(payloads) if payload[1] == 4.0)
        assert out.host_ns[late] == out.host_ns[late - 1]
        assert out.samples[late].device_ns == pytest.approx((now_s - 0.45) * 1e9, abs=1000), "its own stamp stays"
        assert stream.late == 1
        assert not stream.dropped["late"]


# --- annotations, notifications, the log -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "read"), [("label", str), ("json", lambda text: json.loads(text)["label"])])
async def test_annotations_are_events_at_their_own_time(kind: str, read: Callable[[str], str]) -> None:
    async with capture("annotation", annotations=kind) as lab:
        at_s = pupil_time() - 3.0
        fields = {"topic": "annotation", "label": "go", "timestamp": at_s, "duration": 0.5, "trial": 7}
        lab.capture.publish([b"annotation", encode(fields)])
        (text,) = await soon(lab, "annotations", 1)
        assert read(text) == "go"
        assert abs(lab.out("annotations").samples[0].device_ns - at_s * 1e9) < 1000


async def test_an_annotation_that_is_sent_again_is_one() -> None:
    async with capture("annotation") as lab:
        at_s = pupil_time()
        for _ in range(3):
            lab.capture.publish([b"annotation", encode({"label": "go", "timestamp": at_s, "duration": 0.0})])
        lab.capture.publish([b"annotation", encode({"label": "go", "timestamp": at_s + 0.001, "duration": 0.0})])
        assert await soon(lab, "annotations", 2) == ["go", "go"]
        assert lab.counts["annotations_repeated"] == 2


async def test_notifications_have_capture_s_time_or_say_that_they_have_not() -> None:
    async with capture("notify", notifications=["calibration"]) as lab:
        at_s = pupil_time() - 1.0
        stamped = {"subject": "calibration.successful", "timestamp": at_s}
        lab.capture.publish([b"notify.calibration.successful", encode(stamped)])
        lab.capture.publish([b"notify.calibration.started", encode({"subject": "calibration.started"})])
        huge = {"subject": "calibration.setup.v2", "ref_list": ["x" * 1000] * 1700}
        lab.capture.publish([b"notify.calibration.setup.v2", encode(huge)])
        texts = [json.loads(text) for text in await soon(lab, "notifications", 3)]
        assert [each["stamped"] for each in texts] == ["capture", "arrival", "arrival"]
        assert texts[2]["bytes"] > 1_700_000
        assert abs(lab.out("notifications").samples[0].device_ns - at_s * 1e9) < 1000
        assert lab.device.malformed == {}


async def test_recordings_are_not_told_where_other_notifications_are_chosen() -> None:
    async with capture("notify", notifications=["calibration."]) as lab:
        lab.capture.publish([b"notify.recording.started", encode({"subject": "recording.started", "rec_path": "/r"})])
        lab.capture.publish([b"notify.calibration.started", encode({"subject": "calibration.started"})])
        (text,) = await soon(lab, "notifications", 1)
        assert json.loads(text)["subject"] == "calibration.started"
        assert lab.device.recording is True, "the bridge itself listens to that"


async def test_what_capture_complains_of_is_in_the_status_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with capture("logging") as lab:
        with caplog.at_level(logging.WARNING):
            for level, text in (("info", "fine"), ("warning", "slow"), ("error", "camera gone\x1b[2J")):
                lab.capture.publish(logged(text, level))
            await until(lambda: (lab.device.log or {}).get("errors") == 1, lambda: lab.device.log)
        assert lab.device.log == {"errors": 1, "warnings": 1, "last": "error: camera gone[2J"}
        assert "core: Capture reports warning: slow" in caplog.text
        assert "fine" not in caplog.text


# --- a clock that is set ---------------------------------------------------------------------------------------------


async def twenty_of_each(lab: Lab) -> None:
    """Gaze and pupils 0 to 19 have come, by the clock as it is."""
    for number in range(20):
        lab.capture.publish(gaze(float(number), pupil_time() - 0.03))
        lab.capture.publish(pupil(float(number)))
    await soon(lab, "pupil_0_2d", 20)
    await soon(lab, "gaze", 20)


def assert_mapped(lab: Lab, stream: str, offset_s: Callable[[float], float]) -> None:
    """Every sample is where the clock that stamped it says: ``offset_s`` of its number, to be taken from Pupil time."""
    out = lab.out(stream)
    for payload, sample, host_ns in zip(out.payloads, out.samples, out.host_ns, strict=True):
        number = payload[1]
        assert abs(host_ns - (sample.device_ns - offset_s(number) * 1e9)) < 5_000_000, (stream, number)


async def test_a_window_that_reaches_from_one_clock_into_the_other_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture keeps one datum from before the step for 0.3 s."""
    async with capture("pupil", "fixations", live=True) as lab:
        lab.capture.publish(window(1, pupil_time() - 0.4))
        await soon(lab, "fixations_live", 1)
        monkeypatch.setattr(core_lab, "PUPIL_TIME_OFFSET_S", core_lab.PUPIL_TIME_OFFSET_S + 10.0)
        epoch = lab.device.clock.epoch
        lab.capture.publish(logged("Request: 'T 12.3', Response: 'Timesync successful.'"))
        await until(lambda: lab.device.clock.epoch > epoch, "the clock is another one")
        lab.capture.publish(window(2, pupil_time() - 10.2, 10_200.0))
        lab.capture.publish(window(3, pupil_time() - 0.3))
        assert [each[0] for each in await soon(lab, "fixations_live", 2)] == [1, 3]
        assert [each[0] for each in await soon(lab, "fixations", 1)] == [3], "of the first nobody knows the end"


async def test_what_arrives_while_the_clock_is_set_is_mapped_by_the_clock_that_stamped_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a small step nothing tells but the log: no stamp is in the future, none goes backwards by much."""
    async with capture("gaze", "pupil") as lab:
        await twenty_of_each(lab)
        offset_ns, epoch = lab.device.clock.offset_ns, lab.device.clock.epoch
        assert offset_ns is not None
        monkeypatch.setattr(core_lab, "PUPIL_TIME_OFFSET_S", core_lab.PUPIL_TIME_OFFSET_S + 0.1)
        lab.capture.publish(logged("Request: 'T 12.3', Response: 'Timesync successful.'"))
        old_s = pupil_time() - 0.1
        lab.capture.publish(gaze(100.0, old_s - 0.03))  # from before the step
        lab.capture.publish(gaze(101.0, pupil_time()))
        await soon(lab, "gaze", 22)
        assert lab.device.clock.epoch == epoch + 1
        offset_s = core_lab.PUPIL_TIME_OFFSET_S
        assert_mapped(lab, "gaze", lambda number: offset_s if number == 101.0 else offset_s - 0.1)
        assert lab.counts["clock_set_by_log"] == 1


async def test_late_datums_of_a_clock_that_was_set_without_a_word_do_not_tell_by_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a computer that has too much to do all of them are late, and not every program that sets the clock logs it."""
    async with capture("gaze", "pupil") as lab:
        await twenty_of_each(lab)
        epoch = lab.device.clock.epoch
        await asyncio.sleep(0.25)  # so long they are on their way now
        monkeypatch.setattr(core_lab, "PUPIL_TIME_OFFSET_S", core_lab.PUPIL_TIME_OFFSET_S - 10.0)
        for number in range(100, 110):
            late_s = pupil_time() - 0.2
            lab.capture.publish(pupil(float(number), at_s=late_s))
            lab.capture.publish(gaze(float(number), late_s))
        offset_s = core_lab.PUPIL_TIME_OFFSET_S
        for stream in ("pupil_0_2d", "gaze"):
            await soon(lab, stream, 30)
            assert_mapped(lab, stream, lambda number: offset_s if number >= 100.0 else offset_s + 10.0)
        assert lab.device.clock.epoch == epoch + 1
        assert "clock_set_by_log" not in lab.counts


async def test_a_stranger_who_writes_the_log_for_ever_holds_nothing_up() -> None:
    async with capture("pupil") as lab:
        out = lab.out("pupil_0_2d")
        for number in range(400):
            lab.capture.publish(logged("Time slewed by: 0.1ms"))
            lab.capture.publish(pupil(float(number)))
            if number % 20 == 0:
                await until(lambda n=number: len(lab.capture.requests) >= n // 20, "it goes on asking")
        await until(lambda: len(out.payloads) == 400, lambda: len(out.payloads))
        assert [payload[1] for payload in out.payloads] == [float(number) for number in range(400)]
