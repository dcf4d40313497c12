"""Recordings, calibrations and annotations of a Pupil Core, against a Pupil Capture that is made of raw sockets."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from bridge.clock.host import monotonic_ns
from bridge.control import Calibrate, Event, Record
from bridge.errors import Refused
from bridge.sources import pupil_core_control
from tests.sources.core_lab import PUPIL_TIME_OFFSET_S, Lab, encode, impatient
from tests.sources.zre_peer import until

decode = msgspec.msgpack.decode


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    for name in ("RECORDING_S", "CALIBRATION_S", "RESULT_S", "TAKEN_S"):
        monkeypatch.setattr(pupil_core_control, name, 0.3)
    monkeypatch.setattr(pupil_core_control, "STARTED_S", (0.2, 0.2))


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    made = Lab()
    made.commands |= {b"R", b"R trial", b"r", b"C", b"c", b"annotation", b"notify.start_plugin"}
    await made.subscribed()
    await until(lambda: made.device.clock.locked, "the clock is locked")
    yield made
    await made.end()


def note(subject: str, **fields: Any) -> list[bytes]:
    return [f"notify.{subject}".encode(), encode({"subject": subject, **fields})]


def taken(label: str) -> list[bytes]:
    return [b"logging.info", encode({"name": "annotations", "msg": f"{label} annotation (0.003 seconds ago)"})]


def asked(lab: Lab, request: bytes) -> list[list[bytes]]:
    return [frames for frames in lab.capture.requests if frames[0] == request]


# --- recording -------------------------------------------------------------------------------------------------------


async def test_a_recording_is_started_and_stopped_when_capture_says_so(lab: Lab) -> None:
    said = {
        b"R trial": [note("recording.should_start"), note("recording.started", rec_path="/rec/trial/000")],
        b"r": [note("recording.should_stop"), note("recording.stopped", rec_path="/rec/trial/000")],
    }
    lab.capture.says = lambda request: said.get(request[0], [])
    assert lab.device.recording is None
    record = lab.device.actions["record"]
    assert await record(Record("start", session="trial")) == "records to /rec/trial/000"
    assert lab.device.recording is True
    assert await record(Record("stop")) == "has recorded to /rec/trial/000"
    assert lab.device.recording is False
    assert asked(lab, b"R trial") == [[b"R trial"]]


async def test_an_ok_of_pupil_remote_is_no_recording(lab: Lab) -> None:
    record = lab.device.actions["record"]
    with pytest.raises(Refused, match=r"has not begun to record within 0.3 s: it may be recording already"):
        await record(Record("start"))
    with pytest.raises(Refused, match=r"has not ended a recording within 0.3 s: it may not have been recording"):
        await record(Record("stop"))
    assert lab.device.recording is None
    lab.capture.publish(note("recording.started"))
    await until(lambda: lab.device.recording, "somebody else records")
    with pytest.raises(Refused, match="it records already"):
        await record(Record("start"))
    with pytest.raises(Refused, match="it says that it still records"):
        await record(Record("stop"))


async def test_what_somebody_else_records_is_known_until_capture_is_gone(lab: Lab) -> None:
    lab.capture.publish(note("recording.started", rec_path="/rec/1"))
    await until(lambda: lab.device.recording is True, "it records")
    lab.capture.publish(note("recording.stopped", rec_path="/rec/1"))
    await until(lambda: lab.device.recording is False, "it does not record")
    lab.capture.publish(note("recording.started", rec_path="/rec/2"))
    await until(lambda: lab.device.recording is True, "it records again")
    lab.capture.restart()
    await until(lambda: lab.device.recording is None, "nothing is known of the new one")
    await lab.serves()


async def test_garbage_in_place_of_a_notification_is_counted(lab: Lab) -> None:
    for payload in (b"", b"\xc1", b"\x90", b"\x81\xa8rec_path", b"x" * 100_000):
        lab.capture.publish([b"notify.recording.started", payload])
    lab.capture.publish([b"notify.recording.started.x", b"\x80"])
    lab.capture.publish(note("recording.stopped"))
    await until(lambda: lab.device.recording is False, "the good one has come")
    assert lab.device.malformed == {"notifications_malformed": 5, "topics_unknown": 1}
    await lab.serves()


@pytest.mark.parametrize("session", ["/etc/passwd", "../x", "", "a\nr", "x" * 200])
async def test_a_session_name_that_is_none_is_never_sent(lab: Lab, session: str) -> None:
    with pytest.raises(Refused, match="session name"):
        await lab.device.actions["record"](Record("start", session=session))
    assert not any(frames[0].startswith(b"R") for frames in lab.capture.requests)


async def test_what_capture_s_log_says_is_the_reason_of_a_refusal(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pupil_core_control, "CALIBRATION_S", 0.3)
    line = {"name": "world", "msg": "Calibration already running.", "levelname": "WARNING", "args": []}
    lab.capture.says = lambda request: [[b"logging.warning", encode(line)]] if request == [b"C"] else []
    with pytest.raises(Refused, match=r"within 0.3 s: its log says 'Calibration already running\.'"):
        await lab.device.actions["calibrate"](Calibrate("start"))


# --- calibration -----------------------------------------------------------------------------------------------------


async def test_a_calibration_is_answered_by_its_result(lab: Lab) -> None:
    stopped = [note("calibration.stopped"), note("calibration.successful", gazer_class_name="Gazer3D")]
    said = {b"C": [note("calibration.started")], b"c": stopped}
    lab.capture.says = lambda request: said.get(request[0], [])
    calibrate = lab.device.actions["calibrate"]
    assert await calibrate(Calibrate("start")) == "calibrates"
    assert await calibrate(Calibrate("stop")) == "is calibrated"


async def test_a_calibration_that_fails_is_refused_with_its_reason(lab: Lab) -> None:
    reason = "Not sufficient pupil data available."
    said = {b"c": [note("calibration.stopped"), note("calibration.failed", reason=reason)]}
    lab.capture.says = lambda request: said.get(request[0], [])
    with pytest.raises(Refused, match=f"the calibration has failed: {reason}"):
        await lab.device.actions["calibrate"](Calibrate("stop"))


async def test_a_calibration_of_which_nothing_is_heard_is_no_calibration(lab: Lab) -> None:
    calibrate = lab.device.actions["calibrate"]
    with pytest.raises(Refused, match="has not begun to calibrate"):
        await calibrate(Calibrate("start"))
    with pytest.raises(Refused, match="may not have been calibrating"):
        await calibrate(Calibrate("stop"))
    lab.capture.says = lambda request: [note("calibration.stopped")] if request == [b"c"] else []
    assert "not said within 0.3 s what has come of it" in await calibrate(Calibrate("stop"))


# --- annotations -----------------------------------------------------------------------------------------------------


def annotations(lab: Lab) -> list[dict[str, Any]]:
    return [decode(frames[1]) for frames in asked(lab, b"annotation")]


async def test_an_annotation_has_the_pupil_time_of_the_senders_moment(lab: Lab) -> None:
    lab.capture.says = lambda request: [taken(decode(request[1])["label"])] if request[0] == b"annotation" else []
    host_s = time.monotonic() - 1.5
    for host_time in (None, host_s):
        answer = await lab.device.actions["annotate"](Event("go", host_s=host_time))
        datum = annotations(lab)[-1]
        assert datum["topic"] == "annotation"
        assert (datum["label"], datum["duration"]) == ("go", 0.0)
        meant_s = (time.monotonic() if host_time is None else host_s) + PUPIL_TIME_OFFSET_S
        assert datum["timestamp"] == pytest.approx(meant_s, abs=0.2 if host_time is None else 0.001)
        assert f"annotated at {datum['timestamp']:.6f} s of Pupil time" in answer
    assert asked(lab, b"notify.start_plugin") == [], "it runs: its user's annotations are not to be forgotten"


async def test_an_annotation_of_now_is_stamped_before_it_waits_for_anything(lab: Lab) -> None:
    lab.capture.says = lambda request: [taken("go")] if request[0] == b"annotation" else []
    before_ns = monotonic_ns()
    sent = asyncio.create_task(lab.device.actions["event"](Event("go")))
    await asyncio.sleep(0)
    after_ns = monotonic_ns()
    await sent
    at_ns = (annotations(lab)[0]["timestamp"] - PUPIL_TIME_OFFSET_S) * 1e9
    bound_ns = lab.device.clock.bound_ns
    assert bound_ns is not None
    assert before_ns - bound_ns - 1000 <= at_ns <= after_ns + bound_ns + 1000


async def test_the_plugin_is_started_when_nobody_takes_the_annotation(lab: Lab) -> None:
    running = False

    def says(request: list[bytes]) -> list[list[bytes]]:
        nonlocal running
        if request[0] == b"notify.start_plugin":
            running = True
            assert decode(request[1])["name"] == "Annotation_Capture"
        return [taken("go")] if running and request[0] == b"annotation" else []

    lab.capture.says = says
    assert "annotated at" in await lab.device.actions["annotate"](Event("go"))
    assert len(asked(lab, b"notify.start_plugin")) == 1
    times = {datum["timestamp"] for datum in annotations(lab)}
    assert len(times) == 1, "sent again, it is of the same moment"


async def test_an_annotation_that_nobody_takes_is_refused(lab: Lab) -> None:
    with pytest.raises(Refused, match="its plugin Annotation_Capture does not run"):
        await lab.device.actions["annotate"](Event("go"))


async def test_it_is_said_when_no_recording_keeps_an_annotation(lab: Lab) -> None:
    lab.capture.says = lambda request: [taken("go")] if request[0] == b"annotation" else []
    lab.capture.publish(note("recording.stopped"))
    await until(lambda: lab.device.recording is False, "it does not record")
    assert "nothing keeps it" in await lab.device.actions["annotate"](Event("go"))


@pytest.mark.parametrize("host_s", [math.nan, math.inf, -math.inf, 1e300, 1.8e9, -1e6])
async def test_a_moment_of_another_clock_is_refused(lab: Lab, host_s: float) -> None:
    with pytest.raises(Refused, match="not of the last day"):
        await lab.device.actions["annotate"](Event("go", host_s=host_s))
    assert annotations(lab) == []


@pytest.mark.parametrize("text", ["", "x" * 1001, "\ud800"])
async def test_a_text_that_is_none_is_refused(lab: Lab, text: str) -> None:
    with pytest.raises(Refused):
        await lab.device.actions["event"](Event(text))


async def test_many_at_once_each_get_their_own_answer(lab: Lab) -> None:
    lab.capture.says = lambda request: [taken(decode(request[1])["label"])] if request[0] == b"annotation" else []
    annotate = lab.device.actions["annotate"]
    answers = await asyncio.gather(*(annotate(Event("same")) for _ in range(20)), annotate(Event("other")))
    assert len(answers) == 21
    assert len(annotations(lab)) == 21
    assert asked(lab, b"notify.start_plugin") == []


async def test_the_clock_must_be_known() -> None:
    lab = Lab()
    try:
        lab.capture.answer = lambda request: [[b"no time"]] if request == b"t" else lab.capture.properly(request)
        await lab.subscribed()
        await until(lambda: lab.counts.get("replies_malformed", 0) > 8, "no round trip was good")
        with pytest.raises(Refused, match="its clock is not known yet"):
            await lab.device.actions["annotate"](Event("go"))
    finally:
        await lab.end()


# --- Pupil Remote ----------------------------------------------------------------------------------------------------


async def test_a_pupil_remote_that_does_not_answer_refuses_everything_and_the_data_go_on(lab: Lab) -> None:
    await lab.serves()
    lab.capture.answer = lambda _: []
    for command, given in (("record", Record("start")), ("record", Record("stop")), ("calibrate", Calibrate("start"))):
        with pytest.raises(Refused, match="does not answer"):
            await lab.device.actions[command](given)
    lab.capture.answer = lab.capture.properly
    await lab.serves()


async def test_a_pupil_remote_that_knows_no_commands_refuses_them(lab: Lab) -> None:
    def answer(request: bytes) -> list[list[bytes]]:
        return [[b"Unknown command."]] if request[:1] in b"RrCc" else lab.capture.properly(request)

    lab.capture.answer = answer
    with pytest.raises(Refused, match="refuses it: Unknown command"):
        await lab.device.actions["record"](Record("start"))


async def test_nothing_is_possible_before_capture_is_there() -> None:
    lab = Lab("127.0.0.1:1")
    try:
        with pytest.raises(Refused, match="Capture is not there"):
            await lab.device.actions["record"](Record("start"))
    finally:
        await lab.end()


async def test_round_trips_are_stamped_when_they_are_sent_however_many_requests_wait(lab: Lab) -> None:
    """A round trip that waits for its turn is not a slow one."""
    await lab.serves()
    lab.capture.says = lambda request: [taken("go")] if request[0] == b"annotation" else []
    clock = lab.device.clock
    accepted, rejected = clock.pings_accepted, clock.pings_rejected
    stop = asyncio.Event()

    async def keep_asking() -> None:
        while not stop.is_set():
            await lab.device.actions["annotate"](Event("go"))

    tasks = [asyncio.create_task(keep_asking()) for _ in range(10)]
    try:
        for _ in range(5):
            before = clock.pings_accepted
            clock.request_burst()
            await until(lambda before=before: clock.pings_accepted >= before + 8, "a burst")
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    assert clock.pings_accepted - accepted >= 40
    assert clock.pings_rejected == rejected
    offset_ns, bound_ns = clock.offset_ns, clock.bound_ns
    assert offset_ns is not None
    assert bound_ns is not None
    assert abs(offset_ns + PUPIL_TIME_OFFSET_S * 1e9) <= bound_ns
