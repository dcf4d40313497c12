"""The ROS 2 sink by itself: its queue, its thread, its publishers. What comes out is in tests/system/test_ros2.py."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

import rclpy
from geometry_msgs.msg import PointStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSReliabilityPolicy
from sensor_msgs.msg import TimeReference

from bridge.clock import ClockState, Mapped
from bridge.clock.host import RealtimeOffset
from bridge.errors import BridgeError
from bridge.pipeline import ClockEvent, ClockStatus
from bridge.sinks import ros2
from bridge.sinks.ros2 import Ros2Output, Ros2Sink
from bridge.streams import DeviceDescriptor, GazeLayout, Sample, StreamDescriptor, StreamKind

# Lark, which rclpy imports when the first publisher is made, imports a module of Python's that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")

QUEUE_SIZE = 10
DEADLINE_S = 20.0
DEVICE = DeviceDescriptor(name="tracker", kind="test", lsl_prefix="test")
EVENTS = StreamDescriptor(DEVICE, "event", StreamKind.EVENT, "Event", "Markers")
GAZE = StreamDescriptor(DEVICE, "gaze", StreamKind.GAZE, "Gaze", "Gaze", layout=GazeLayout(0, 1, False, 100, 50))
PUPIL = StreamDescriptor(DEVICE, "pupil", StreamKind.PUPIL, "Pupil", "Pupillometry")
MAPPED = Mapped(0, 0, 0, ClockState.LOCKED, 0)
NAMES = ("gaze/pixel", "gaze/normalized", "events", "time_reference", "clock_events")
STATUS = ClockStatus(
    host_ns=0,
    device_ns=None,
    offset_ns=None,
    bound_ns=None,
    precision_ns=None,
    rtt_min_ns=None,
    rtt_median_ns=None,
    drift_ppm=0.0,
    age_ns=None,
    slew_ns=0,
    state=ClockState.UNLOCKED,
    epoch=0,
    pings_accepted=0,
    samples_dropped=0,
)


def event(text: str, device_ns: int = 0) -> Sample:
    return Sample(EVENTS, device_ns, time.monotonic_ns(), text)


@pytest.fixture
def sink() -> Iterator[Ros2Sink]:
    made = Ros2Sink("sink_test", "sink_test", QUEUE_SIZE)
    made.open_device(DEVICE)
    yield made
    made.close()


class Hearer:
    """Subscribed to a topic of the device, its events as a rule, in a context of its own."""

    def __init__(self, name: str = "events", kind: Any = TimeReference) -> None:
        self.messages: list[Any] = []
        self._context = Context()
        rclpy.init(context=self._context, args=["--ros-args", "--disable-external-lib-logs"])
        self._node = Node("hearer", context=self._context)
        self.topic = f"/sink_test/{DEVICE.name}/{name}"
        self._subscription = self._node.create_subscription(kind, self.topic, self.messages.append, 100)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    def matched(self) -> bool:
        return bool(self._subscription.get_publisher_count())

    def hear(self, count: int) -> list[Any]:
        """The first ``count`` messages."""
        deadline_s = time.monotonic() + DEADLINE_S
        while len(self.messages) < count:
            assert time.monotonic() < deadline_s, f"heard only {len(self.messages)} of {count}"
            self._executor.spin_once(timeout_sec=0.1)
        return self.messages

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()


@pytest.fixture
def hearer() -> Iterator[Hearer]:
    made = Hearer()
    yield made
    made.close()


def discovered(sink: Ros2Sink, hearer: Hearer) -> Ros2Output:
    """The output for events, once both sides know each other."""
    output = sink.open_stream(EVENTS)
    assert output is not None
    meet(sink, hearer)
    return output


def meet(sink: Ros2Sink, hearer: Hearer) -> None:
    (publisher,) = (p for p in sink._node.publishers if p.topic_name == hearer.topic)
    deadline_s = time.monotonic() + DEADLINE_S
    while not (publisher.get_subscription_count() and hearer.matched()):
        assert time.monotonic() < deadline_s, "the subscriber is not seen"
        time.sleep(0.01)


def test_every_topic_is_offered_reliable_and_keeps_the_last_samples_for_slow_readers(sink: Ros2Sink) -> None:
    sink.open_stream(GAZE)
    sink.open_stream(EVENTS)
    qos = {publisher.topic_name: publisher.qos_profile for publisher in sink._node.publishers}
    del qos["/parameter_events"]
    prefix = "/sink_test/tracker"
    topics = {f"{prefix}/{name}" for name in NAMES}
    assert qos.keys() == topics | {"/diagnostics"}
    for topic, offered in qos.items():
        assert offered.reliability is QoSReliabilityPolicy.RELIABLE
        assert offered.durability is QoSDurabilityPolicy.VOLATILE
        assert offered.history is QoSHistoryPolicy.KEEP_LAST
        assert offered.depth == (10 if topic == "/diagnostics" else 50)


def test_a_stream_that_ros_has_no_topic_for_has_no_output(sink: Ros2Sink) -> None:
    assert sink.open_stream(PUPIL) is None


def test_when_ros_blocks_the_oldest_samples_are_dropped_and_counted(sink: Ros2Sink) -> None:
    released, entered = threading.Event(), threading.Event()
    published: list[str] = []

    def publish(sample: Sample, host_ns: int) -> None:
        entered.set()
        assert released.wait(DEADLINE_S)
        published.append(str(sample.payload))

    output = Ros2Output(sink, publish)
    output.push(event("first"), MAPPED, 0)
    assert entered.wait(DEADLINE_S)  # that one has left the queue
    started_s = time.monotonic()
    for number in range(25):
        output.push(event(str(number)), MAPPED, 0)
    assert time.monotonic() - started_s < 0.5  # the loop does not wait
    sink.clock_status(DEVICE, STATUS)  # must not push a sample out
    assert output.dropped == {"queue_full": 25 - QUEUE_SIZE}
    released.set()
    sink.close()
    assert published == ["first", *(str(number) for number in range(25 - QUEUE_SIZE, 25))]
    assert output.samples_out == len(published)


def test_closing_publishes_what_still_waits(sink: Ros2Sink, hearer: Hearer) -> None:
    output = discovered(sink, hearer)
    for number in range(QUEUE_SIZE):
        output.push(event(str(number)), MAPPED, time.monotonic_ns())
    sink.close()
    assert output.samples_out == QUEUE_SIZE
    assert [message.source for message in hearer.hear(QUEUE_SIZE)] == [str(number) for number in range(QUEUE_SIZE)]


def test_any_text_and_any_device_time_of_an_event_can_be_published(sink: Ros2Sink, hearer: Hearer) -> None:
    output = discovered(sink, hearer)
    cases = [
        ("", 0, (0, 0)),
        ("Blick 👁 nach links", 1_500_000_001, (1, 500_000_001)),
        ("x" * 10_000, -1, (-1, 999_999_999)),
        ("no time of ROS is that late", 2**63 - 1, (0, 0)),
        ("nor that early", -(2**63), (0, 0)),
    ]
    for text, device_ns, _ in cases:
        output.push(event(text, device_ns), MAPPED, time.monotonic_ns())
    heard = [(m.source, (m.time_ref.sec, m.time_ref.nanosec)) for m in hearer.hear(len(cases))]
    assert heard == [(text, time_ref) for text, _, time_ref in cases]


def test_a_text_ends_for_ros_at_a_zero_character(sink: Ros2Sink, hearer: Hearer) -> None:
    output = discovered(sink, hearer)
    output.push(event("before\0after"), MAPPED, time.monotonic_ns())
    assert hearer.hear(1)[0].source == "before"


def test_a_publishing_thread_that_has_died_is_no_silent_loss(sink: Ros2Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: died.set())

    def publish(sample: Sample, host_ns: int) -> None:
        raise ValueError("a bug")

    sink.clock_status(DEVICE, STATUS)
    Ros2Output(sink, publish).push(event("x"), MAPPED, 0)
    assert died.wait(DEADLINE_S)
    sink._thread.join(DEADLINE_S)
    with pytest.raises(RuntimeError, match="has died"):
        sink.clock_status(DEVICE, STATUS)


@pytest.mark.parametrize("domain_id", ["lab", "-1", "233", "99999999999999999999"])
def test_a_domain_that_cannot_be_is_an_error_that_names_it(domain_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", domain_id)
    with pytest.raises(BridgeError, match="ROS_DOMAIN_ID") as raised:
        Ros2Sink("sink_test", "sink_test", QUEUE_SIZE)
    assert "\n" not in str(raised.value)


# --- epochs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock_hearer() -> Iterator[Hearer]:
    made = Hearer("clock_events")
    yield made
    made.close()


def test_the_beginning_of_an_epoch_is_a_time_reference_that_says_why(sink: Ros2Sink, clock_hearer: Hearer) -> None:
    meet(sink, clock_hearer)
    host_ns = time.monotonic_ns() - 2 * 10**9
    sink.clock_event(DEVICE, ClockEvent(host_ns, 1_500_000_001, 3, "step -0.200000 s"))
    sink.clock_event(DEVICE, ClockEvent(host_ns, None, 4, "restart"))
    step, restart = clock_hearer.hear(2)
    assert (step.source, restart.source) == ("epoch 3 step -0.200000 s", "epoch 4 restart")
    assert (step.time_ref.sec, step.time_ref.nanosec) == (1, 500_000_001)
    assert (restart.time_ref.sec, restart.time_ref.nanosec) == (0, 0)
    realtime_ns = host_ns + time.time_ns() - time.monotonic_ns()
    assert stamp_ns(step) == pytest.approx(realtime_ns, abs=10**6)


def test_the_beginning_of_an_epoch_is_not_lost_when_ros_blocks(sink: Ros2Sink, clock_hearer: Hearer) -> None:
    meet(sink, clock_hearer)
    released, entered = threading.Event(), threading.Event()

    def publish(sample: Sample, host_ns: int) -> None:
        entered.set()
        assert released.wait(DEADLINE_S)

    output = Ros2Output(sink, publish)
    output.push(event("first"), MAPPED, 0)
    assert entered.wait(DEADLINE_S)
    for number in range(QUEUE_SIZE):
        output.push(event(str(number)), MAPPED, 0)
    sink.clock_event(DEVICE, ClockEvent(0, None, 1, "restart"))
    released.set()
    assert clock_hearer.hear(1)[0].source == "epoch 1 restart"
    assert output.dropped == {}, "there is room for what is rare"


# --- devices that come and go ----------------------------------------------------------------------------------------

OTHER = DeviceDescriptor(name="other", kind="test", lsl_prefix="other")
OTHER_EVENTS = StreamDescriptor(OTHER, "event", StreamKind.EVENT, "Event", "Markers")


def topics(sink: Ros2Sink, device: DeviceDescriptor) -> set[str]:
    prefix = f"/sink_test/{device.name}/"
    return {p.topic_name.removeprefix(prefix) for p in sink._node.publishers if p.topic_name.startswith(prefix)}


class Blocked:
    """The publishing thread, held until it is released."""

    def __init__(self, sink: Ros2Sink) -> None:
        self._entered, self._released = threading.Event(), threading.Event()
        Ros2Output(sink, self._hold).push(event("held"), MAPPED, 0)
        assert self._entered.wait(DEADLINE_S)

    def _hold(self, sample: Sample, host_ns: int) -> None:
        self._entered.set()
        assert self._released.wait(DEADLINE_S)

    def release(self) -> None:
        self._released.set()


async def drained(sink: Ros2Sink) -> None:
    """Waits until the thread has done all that was queued before."""
    done = threading.Event()
    sink._queue.put(done.set)
    deadline_s = time.monotonic() + DEADLINE_S
    while not done.is_set():
        assert sink._thread.is_alive(), "the thread that publishes has died"
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.002)


async def test_a_device_that_is_closed_takes_its_topics_with_it_and_leaves_the_others(sink: Ros2Sink) -> None:
    sink.open_device(OTHER)
    for stream in (GAZE, EVENTS, OTHER_EVENTS):
        sink.open_stream(stream)
    assert topics(sink, DEVICE) == set(NAMES)
    await sink.close_device(DEVICE)
    assert topics(sink, DEVICE) == set()
    assert topics(sink, OTHER) == {"events", "time_reference", "clock_events"}


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
    assert topics(sink, DEVICE) == {"time_reference", "clock_events"}


@pytest.mark.parametrize("told", ["status", "event"])
async def test_what_is_said_of_a_device_and_was_put_off_until_it_is_closed_hurts_nobody(
    sink: Ros2Sink, told: str
) -> None:
    sink.open_device(OTHER)
    other = sink.open_stream(OTHER_EVENTS)
    assert other is not None
    blocked = Blocked(sink)
    if told == "status":
        sink.clock_status(DEVICE, msgspec.structs.replace(STATUS, device_ns=1))
    else:
        sink.clock_event(DEVICE, ClockEvent(0, None, 1, "restart"))
    closing = asyncio.create_task(sink.close_device(DEVICE))
    await asyncio.sleep(0)
    for number in range(QUEUE_SIZE - 1):  # the last of them moves what is oldest behind all, the closing too
        other.push(Sample(OTHER_EVENTS, 0, 0, str(number)), MAPPED, 0)
    blocked.release()
    await closing
    await drained(sink)
    sink.clock_status(OTHER, STATUS)  # raises if the thread has died
    assert other.samples_out + other.dropped["queue_full"] == QUEUE_SIZE - 1


async def test_a_device_that_is_opened_anew_before_its_old_topics_could_be_closed_keeps_its_new_ones(
    sink: Ros2Sink, hearer: Hearer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ros2, "JOIN_TIMEOUT_S", 0.05)
    sink.open_stream(EVENTS)
    blocked = Blocked(sink)
    await sink.close_device(DEVICE)
    assert "closed later" in caplog.text
    monkeypatch.undo()
    sink.open_device(DEVICE)
    output = sink.open_stream(EVENTS)
    assert output is not None
    blocked.release()
    await drained(sink)
    assert topics(sink, DEVICE) == {"events", "time_reference", "clock_events"}
    meet(sink, hearer)
    output.push(event("still there"), MAPPED, time.monotonic_ns())
    assert hearer.hear(1)[0].source == "still there"
    sink.clock_event(DEVICE, ClockEvent(0, None, 1, "restart"))
    sink.clock_status(DEVICE, STATUS)
    await drained(sink)
    sink.clock_status(DEVICE, STATUS)


# --- a full queue ----------------------------------------------------------------------------------------------------


def test_the_newest_samples_are_dropped_where_that_is_the_policy() -> None:
    sink = Ros2Sink("sink_test", "sink_test", QUEUE_SIZE, "drop_newest")
    try:
        sink.open_device(DEVICE)
        blocked, published = Blocked(sink), list[str]()
        output = Ros2Output(sink, lambda sample, host_ns: published.append(str(sample.payload)))
        for number in range(25):
            output.push(event(str(number)), MAPPED, 0)
        assert output.dropped == {"queue_full": 25 - QUEUE_SIZE}
        blocked.release()
    finally:
        sink.close()
    assert published == [str(number) for number in range(QUEUE_SIZE)]


@pytest.mark.parametrize("when_full", ["drop_oldest", "drop_newest"])
def test_what_is_no_sample_is_never_dropped_for_one(when_full: str) -> None:
    sink = Ros2Sink("sink_test", "sink_test", QUEUE_SIZE, when_full)
    try:
        blocked, done = Blocked(sink), list[int]()
        output = Ros2Output(sink, lambda sample, host_ns: None)
        for number in range(3):
            sink._queue.put(lambda number=number: done.append(number))
        for number in range(100):
            output.push(event(str(number)), MAPPED, 0)
            assert sink.status()["queued"] <= QUEUE_SIZE
        blocked.release()
    finally:
        sink.close()
    assert sorted(done) == [0, 1, 2]
    assert output.samples_out + output.dropped["queue_full"] == 100


def test_the_status_says_how_full_the_queue_is(sink: Ros2Sink) -> None:
    blocked = Blocked(sink)
    assert sink.status() == {"queued": 0, "queue_size": QUEUE_SIZE}
    output = Ros2Output(sink, lambda sample, host_ns: None)
    for number in range(3):
        output.push(event(str(number)), MAPPED, 0)
    assert sink.status() == {"queued": 3, "queue_size": QUEUE_SIZE}
    blocked.release()


# --- CLOCK_REALTIME --------------------------------------------------------------------------------------------------


class Wall:
    """The host's clocks as the test sets them: CLOCK_REALTIME is host time and ``offset_ns``."""

    def __init__(self) -> None:
        self.offset_ns = 1_700_000_000 * 10**9

    def realtime_ns(self) -> int:
        return time.monotonic_ns() + self.offset_ns

    def follow(self) -> RealtimeOffset:
        return RealtimeOffset(self.realtime_ns, boottime_ns=None)


def stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


def test_a_step_of_realtime_reaches_ros_stamps_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wall = Wall()
    monkeypatch.setattr(ros2, "RealtimeOffset", wall.follow)
    sink, gaze_hearer = Ros2Sink("sink_test", "sink_test", QUEUE_SIZE), Hearer("gaze/pixel", PointStamped)
    try:
        sink.open_device(DEVICE)
        output = sink.open_stream(GAZE)
        assert output is not None
        meet(sink, gaze_hearer)
        hosts_ns: list[int] = []

        def push() -> None:
            hosts_ns.append(time.monotonic_ns())
            output.push(Sample(GAZE, 0, hosts_ns[-1], (1.0, 2.0)), MAPPED, hosts_ns[-1])
            gaze_hearer.hear(len(hosts_ns))

        first_ns = wall.offset_ns
        push()
        sink.clock_status(DEVICE, STATUS)
        wall.offset_ns += 7 * 10**9
        for _ in range(3):
            push()
            sink.clock_status(DEVICE, STATUS)
        # What was captured before the step keeps the time of then.
        output.push(Sample(GAZE, 0, hosts_ns[0], (1.0, 2.0)), MAPPED, hosts_ns[0])
        hosts_ns.append(hosts_ns[0])
        heard = gaze_hearer.hear(5)
        offsets_ns = [stamp_ns(message) - host_ns for message, host_ns in zip(heard, hosts_ns, strict=True)]
        expected_ns = [first_ns, *[wall.offset_ns] * 3, first_ns]
        assert offsets_ns == [pytest.approx(each, abs=10**6) for each in expected_ns]
        sink.close()  # with all that waits published
        said = re.findall(r"CLOCK_REALTIME was set by \+(\S+) s: ROS stamps follow it", caplog.text)
        assert [float(each) for each in said] == [pytest.approx(7, abs=1e-3)]
    finally:
        gaze_hearer.close()
        sink.close()
