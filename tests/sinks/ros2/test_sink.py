"""The ROS 2 sink by itself: devices and streams that come and go, what waits, its end. Real topics, heard by another
participant. What comes out of a whole daemon is in tests/system/test_ros2.py."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from typing import Any

import msgspec
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from geometry_msgs.msg import PointStamped

from bridge.clock.host import RealtimeOffset
from bridge.errors import BridgeError
from bridge.pipeline import ClockEvent
from bridge.sinks.ros2 import desk, stamps
from bridge.sinks.ros2 import sink as sink_module
from bridge.sinks.ros2.sink import Ros2Sink
from bridge.streams import Frame, Sample, StreamDescriptor, StreamKind, VideoLayout
from tests.service import statuses
from tests.sinks.ros2.lab import (
    DEADLINE_S,
    DEVICE,
    EVENTS,
    GAZE,
    MAPPED,
    OTHER,
    OTHER_EVENTS,
    QUEUE_SIZE,
    STATUS,
    Blocked,
    Hearer,
    Peer,
    discovered,
    drained,
    elsewhere,
    event,
    is_there,
    meet,
    message,
    open_sink,
    quiet_lark,
    settings,
    soon,
    stamp_ns,
    topics,
    until,
)

pytestmark = quiet_lark

PUPIL = StreamDescriptor(DEVICE, "pupil", StreamKind.PUPIL, "Pupil", "Pupillometry")
SCENE = StreamDescriptor(DEVICE, "scene", StreamKind.VIDEO, "Scene", "Video", layout=VideoLayout("scene"))
OF_A_DEVICE = {"time_reference", "clock_events"} | (
    {"clock_status", "device_info"} if is_there("pupil_msgs/Gaze") else set()
)
OF_EVENTS = {"events"} | ({"events_detail"} if is_there("pupil_msgs/Gaze") else set())


# --- what there is ---------------------------------------------------------------------------------------------------


def test_a_device_has_the_topics_of_its_streams_and_of_its_clock(sink: Ros2Sink) -> None:
    for stream in (GAZE, EVENTS, SCENE):
        assert sink.open_stream(stream) is not None
    drained(sink)
    expected = {"gaze/pixel", "gaze/normalized", "scene/image_raw", "scene/image_raw/compressed"}
    if is_there("pupil_msgs/Gaze"):
        expected |= {"gaze"}
    if is_there("foxglove_msgs/ImageAnnotations"):
        expected |= {"scene/annotations"}
    assert topics(sink) == expected | OF_A_DEVICE | OF_EVENTS


def test_a_stream_whose_payload_is_not_described_has_no_output(sink: Ros2Sink) -> None:
    assert sink.open_stream(PUPIL) is None


def test_what_is_published_is_heard_by_another_participant(sink: Ros2Sink, hearer: Hearer) -> None:
    output = discovered(sink, hearer)
    for number in range(QUEUE_SIZE):
        output.push(event(str(number)), MAPPED, time.monotonic_ns())
    assert [message.source for message in hearer.hear(QUEUE_SIZE)] == [str(number) for number in range(QUEUE_SIZE)]
    assert output.samples_out == QUEUE_SIZE


def test_a_text_ends_for_ros_at_a_zero_character(sink: Ros2Sink, hearer: Hearer) -> None:
    discovered(sink, hearer).push(event("before\0after"), MAPPED, time.monotonic_ns())
    assert hearer.hear(1)[0].source == "before"


def test_device_info_is_kept_for_who_comes_late(sink: Ros2Sink) -> None:
    kind = message("pupil_msgs/DeviceInfo")
    sink.told(statuses.status(statuses.device(DEVICE.name)))
    drained(sink)
    peer = Peer()
    try:
        heard = peer.listen(kind, f"/sink_test/{DEVICE.name}/device_info", latched=True)
        until(lambda: heard, "what was published before there was a subscriber")
        assert (heard[0].name, heard[0].connected) == (DEVICE.name, True)
    finally:
        peer.close()


# --- a full queue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when_full", ["drop_oldest", "drop_newest"])
def test_when_ros_blocks_samples_are_dropped_and_counted_and_a_clocks_event_is_not(when_full: str) -> None:
    hearer = Hearer("clock_events")
    try:
        with open_sink(when_full=when_full) as sink:
            sink.open_device(DEVICE)
            output = sink.open_stream(EVENTS)
            assert output is not None
            meet(sink, hearer)
            blocked = Blocked(sink)
            for number in range(25):
                output.push(event(str(number)), MAPPED, 0)
            sink.clock_status(DEVICE, STATUS)  # must not push a sample out
            sink.told(statuses.status())
            assert output.dropped == {"queue_full": 25 - QUEUE_SIZE}
            sink.clock_event(DEVICE, ClockEvent(0, None, 1, "restart"))
            blocked.release()
            assert hearer.hear(1)[0].source == "epoch 1 restart"
        assert output.samples_out == QUEUE_SIZE
    finally:
        hearer.close()


def test_a_device_that_comes_while_the_queue_is_full_is_opened_before_its_streams(sink: Ros2Sink) -> None:
    output = sink.open_stream(EVENTS)
    assert output is not None
    drained(sink)
    blocked = Blocked(sink)
    for number in range(3):
        output.push(event(str(number)), MAPPED, 0)
    sink.open_device(OTHER)
    sink.open_stream(OTHER_EVENTS)
    for number in range(5 * QUEUE_SIZE):
        output.push(event(str(number)), MAPPED, 0)
    blocked.release()
    drained(sink)
    assert topics(sink, OTHER) == OF_A_DEVICE | OF_EVENTS


def test_frames_that_wait_go_in_favour_of_later_ones(sink: Ros2Sink) -> None:
    output = sink.open_stream(SCENE)
    assert output is not None
    drained(sink)
    blocked = Blocked(sink)
    for number in range(9):
        output.push(Sample(SCENE, number, 0, Frame("jpeg", 8, 8, number, b"x")), MAPPED, 0)
    assert output.dropped == {"superseded": 7}
    assert sink.status()["queued"] == 2
    blocked.release()
    drained(sink)
    assert output.samples_out == 2


def test_the_status_says_how_full_the_queue_is_and_what_the_node_is(sink: Ros2Sink) -> None:
    output = sink.open_stream(EVENTS)
    assert output is not None
    drained(sink)
    blocked = Blocked(sink)
    for number in range(3):
        output.push(event(str(number)), MAPPED, 0)
    found = sink.status()
    assert (found["queued"], found["queue_size"], found["state"]) == (3, QUEUE_SIZE, "active")
    assert found["messages"] == sorted(p for p in desk.CUSTOM_PACKAGES if p in sink._desk.packages)
    blocked.release()


# --- devices that come and go ----------------------------------------------------------------------------------------


async def test_a_device_that_is_closed_takes_its_topics_with_it_and_leaves_the_others(sink: Ros2Sink) -> None:
    sink.open_device(OTHER)
    for stream in (GAZE, EVENTS, SCENE, OTHER_EVENTS):
        sink.open_stream(stream)
    drained(sink)
    assert len(topics(sink)) >= 7
    await sink.close_device(DEVICE)
    assert topics(sink) == set()
    assert topics(sink, OTHER) == OF_A_DEVICE | OF_EVENTS


async def test_what_waits_is_published_before_its_device_is_closed(sink: Ros2Sink, hearer: Hearer) -> None:
    output, blocked = discovered(sink, hearer), Blocked(sink)
    for number in range(QUEUE_SIZE - 1):
        output.push(event(str(number)), MAPPED, time.monotonic_ns())
    closing = asyncio.create_task(sink.close_device(DEVICE))
    await asyncio.sleep(0)
    assert not closing.done()
    blocked.release()
    await closing
    assert output.samples_out == QUEUE_SIZE - 1
    assert [message.source for message in hearer.hear(QUEUE_SIZE - 1)] == [str(n) for n in range(QUEUE_SIZE - 1)]


async def test_a_device_can_be_opened_anew_after_it_was_closed(sink: Ros2Sink, hearer: Hearer) -> None:
    for number in range(3):
        output = discovered(sink, hearer)
        output.push(event(str(number)), MAPPED, time.monotonic_ns())
        assert hearer.hear(number + 1)[number].source == str(number)
        sink.clock_status(DEVICE, STATUS)
        await sink.close_device(DEVICE)
        sink.open_device(DEVICE)
    drained(sink)
    assert topics(sink) == OF_A_DEVICE


@pytest.mark.parametrize("told", ["status", "event", "everything"])
async def test_what_is_said_of_a_device_that_is_closed_before_it_is_its_turn_hurts_nobody(
    sink: Ros2Sink, told: str
) -> None:
    sink.open_device(OTHER)
    other = sink.open_stream(OTHER_EVENTS)
    assert other is not None
    blocked = Blocked(sink)
    closing = asyncio.create_task(sink.close_device(DEVICE))
    await asyncio.sleep(0)
    if told == "status":
        sink.clock_status(DEVICE, msgspec.structs.replace(STATUS, device_ns=1))
    elif told == "event":
        sink.clock_event(DEVICE, ClockEvent(0, None, 1, "restart"))
    else:
        sink.told(statuses.status(statuses.device(DEVICE.name)))
    for number in range(3 * QUEUE_SIZE):
        other.push(Sample(OTHER_EVENTS, 0, 0, str(number)), MAPPED, 0)
    blocked.release()
    await closing
    drained(sink)
    assert other.samples_out + other.dropped["queue_full"] == 3 * QUEUE_SIZE


async def test_a_device_that_is_opened_anew_before_its_old_topics_could_be_closed_keeps_its_new_ones(
    sink: Ros2Sink, hearer: Hearer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sink_module, "JOIN_TIMEOUT_S", 0.05)
    old = sink.open_stream(EVENTS)
    assert old is not None
    drained(sink)
    blocked = Blocked(sink)
    await sink.close_device(DEVICE)
    assert "closed later" in caplog.text
    monkeypatch.undo()
    sink.open_device(DEVICE)
    output = sink.open_stream(EVENTS)
    assert output is not None
    for number in range(3 * QUEUE_SIZE):
        output.push(event(str(number)), MAPPED, 0)
    blocked.release()
    drained(sink)
    assert topics(sink) == OF_A_DEVICE | OF_EVENTS
    meet(sink, hearer)
    output.push(event("still there"), MAPPED, time.monotonic_ns())
    until(lambda: "still there" in [each.source for each in hearer.messages], "it is heard")


# --- its end ---------------------------------------------------------------------------------------------------------


def test_closing_publishes_what_still_waits(sink: Ros2Sink, hearer: Hearer) -> None:
    output = discovered(sink, hearer)
    blocked = Blocked(sink)
    for number in range(QUEUE_SIZE):
        output.push(event(str(number)), MAPPED, time.monotonic_ns())
    blocked.release()
    sink.close()
    assert output.samples_out == QUEUE_SIZE
    assert [message.source for message in hearer.hear(QUEUE_SIZE)] == [str(number) for number in range(QUEUE_SIZE)]


def test_a_sink_that_is_closed_still_has_a_status(sink: Ros2Sink) -> None:
    sink.close()
    assert sink.status()["state"] == "finalized"


def test_a_sink_that_is_closed_is_off_the_network_at_once(sink: Ros2Sink, peer: Peer) -> None:
    """Not only when Python collects its garbage: another one of the same name may be opened next."""
    drained(sink)

    def there() -> bool:
        services = [name for name, _ in peer.node.get_service_names_and_types() if name.startswith("/sink_test")]
        return "sink_test" in peer.node.get_node_names() or bool(services)

    until(there, "the node is seen")
    sink.close()
    until(lambda: not there(), "the node has gone")


def test_a_publisher_that_blocks_for_ever_does_not_keep_the_bridge_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = Ros2Sink(settings())
    blocked = Blocked(sink)
    closing = threading.Thread(target=sink.close)
    closing.start()
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
    assert sink.worker.alive  # it was not waited for
    blocked.release()


@pytest.mark.parametrize("thread", ["publishing", "node"])
def test_a_thread_that_has_died_is_no_silent_loss(thread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: died.set())
    with open_sink() as sink:
        sink.open_device(DEVICE)
        sink.clock_status(DEVICE, STATUS)
        if thread == "publishing":
            sink.worker.put_always(lambda: [][0])
        else:
            sink._node.create_timer(0.001, lambda: [][0])
        assert died.wait(DEADLINE_S)
        until(lambda: not (sink.worker.alive and sink._spinner.alive), "the thread has ended")
        with pytest.raises(RuntimeError, match="has died"):
            sink.clock_status(DEVICE, STATUS)


# --- CLOCK_REALTIME --------------------------------------------------------------------------------------------------


class Wall:
    """The host's clocks as the test sets them: CLOCK_REALTIME is host time and ``offset_ns``."""

    def __init__(self) -> None:
        self.offset_ns = 1_700_000_000 * 10**9

    def realtime_ns(self) -> int:
        return time.monotonic_ns() + self.offset_ns

    def follow(self) -> RealtimeOffset:
        return RealtimeOffset(self.realtime_ns, boottime_ns=None)


def test_a_step_of_realtime_reaches_ros_stamps_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wall = Wall()
    monkeypatch.setattr(stamps, "RealtimeOffset", wall.follow)
    gaze_hearer = Hearer("gaze/pixel", PointStamped)
    try:
        with open_sink() as sink:
            sink.open_device(DEVICE)
            output = discovered(sink, gaze_hearer, GAZE)
            hosts_ns: list[int] = []

            def push() -> None:
                hosts_ns.append(time.monotonic_ns())
                output.push(Sample(GAZE, 0, hosts_ns[-1], (1.0, 2.0)), MAPPED, hosts_ns[-1])
                gaze_hearer.hear(len(hosts_ns))

            first_ns = wall.offset_ns
            push()
            sink.told(statuses.status())
            wall.offset_ns += 7 * 10**9
            for _ in range(3):
                push()
                sink.told(statuses.status())
            # What was captured before the step keeps the time of then.
            output.push(Sample(GAZE, 0, hosts_ns[0], (1.0, 2.0)), MAPPED, hosts_ns[0])
            hosts_ns.append(hosts_ns[0])
            heard = gaze_hearer.hear(5)
            offsets_ns = [stamp_ns(each) - host_ns for each, host_ns in zip(heard, hosts_ns, strict=True)]
            expected_ns = [first_ns, *[wall.offset_ns] * 3, first_ns]
            assert offsets_ns == [pytest.approx(each, abs=10**6) for each in expected_ns]
        said = re.findall(r"CLOCK_REALTIME was set by \+(\S+) s: ROS stamps follow it", caplog.text)
        assert [float(each) for each in said] == [pytest.approx(7, abs=1e-3)]
    finally:
        gaze_hearer.close()


# --- what can be asked -----------------------------------------------------------------------------------------------


async def test_what_is_asked_while_the_bridge_ends_is_refused_at_once(sink: Ros2Sink) -> None:
    """Both sides of the moment at which it ends, on the node's own thread."""
    ask: Any = None

    async def never(command: str, arguments: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    def catch(config: Any, set_others: Any, changed: Any) -> dict[str, Any]:
        nonlocal ask
        ask = set_others
        return {}

    sink._parameters.serve = catch  # type: ignore[method-assign]
    sink.serve(never, None)  # type: ignore[arg-type]
    answers: list[str] = []

    def asks() -> None:
        try:
            ask({})
        except BridgeError as error:
            answers.append(str(error))

    thread = threading.Thread(target=asks)
    thread.start()
    await soon(lambda: sink._asked, "it has been asked")
    await elsewhere(sink.close)
    await soon(lambda: not thread.is_alive(), "it is answered")
    assert answers == ["the bridge is ending"]
    asks()
    assert answers == ["the bridge is ending"] * 2
    await asyncio.sleep(0)
