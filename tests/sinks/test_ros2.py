"""The ROS 2 sink by itself: its queue, its thread, its publishers. What comes out is in tests/system/test_ros2.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSReliabilityPolicy
from sensor_msgs.msg import TimeReference

from bridge.clock import ClockState, Mapped
from bridge.errors import BridgeError
from bridge.pipeline import ClockStatus
from bridge.sinks.ros2 import Ros2Output, Ros2Sink
from bridge.streams import DeviceDescriptor, GazePosition, Sample, StreamDescriptor, StreamKind

# Lark, which rclpy imports when the first publisher is made, imports a module of Python's that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")

QUEUE_SIZE = 10
DEADLINE_S = 20.0
DEVICE = DeviceDescriptor(name="tracker", kind="test", lsl_prefix="test")
EVENTS = StreamDescriptor(DEVICE, "event", StreamKind.EVENT, "Event", "Markers")
GAZE = StreamDescriptor(DEVICE, "gaze", StreamKind.GAZE, "Gaze", "Gaze", position=GazePosition(0, 1, False, 100, 50))
PUPIL = StreamDescriptor(DEVICE, "pupil", StreamKind.PUPIL, "Pupil", "Pupillometry")
MAPPED = Mapped(0, 0, 0, ClockState.LOCKED, 0)
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
    """Subscribed to the events of the device, in a context of its own."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self._context = Context()
        rclpy.init(context=self._context, args=["--ros-args", "--disable-external-lib-logs"])
        self._node = Node("hearer", context=self._context)
        topic = f"/sink_test/{DEVICE.name}/events"
        self._subscription = self._node.create_subscription(TimeReference, topic, self.messages.append, 100)
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
    (publisher,) = (p for p in sink._node.publishers if p.topic_name.endswith("/events"))
    deadline_s = time.monotonic() + DEADLINE_S
    while not (publisher.get_subscription_count() and hearer.matched()):
        assert time.monotonic() < deadline_s, "the subscriber is not seen"
        time.sleep(0.01)
    return output


def test_every_topic_is_offered_reliable_and_keeps_the_last_samples_for_slow_readers(sink: Ros2Sink) -> None:
    sink.open_stream(GAZE)
    sink.open_stream(EVENTS)
    qos = {publisher.topic_name: publisher.qos_profile for publisher in sink._node.publishers}
    del qos["/parameter_events"]
    prefix = "/sink_test/tracker"
    topics = {f"{prefix}/{name}" for name in ("gaze/pixel", "gaze/normalized", "events", "time_reference")}
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
