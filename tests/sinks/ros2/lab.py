"""What the tests of the ROS 2 sink share: a desk whose publishers write down, a sink that is real, and who talks to it.

Import it after `pytest.importorskip("rclpy")`.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import TimeReference

from bridge.clock import ClockState, Mapped
from bridge.clock.host import monotonic_ns
from bridge.config import Config, Ros2Sink, parse
from bridge.pipeline import ClockStatus
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.sink import Ros2Sink as Sink
from bridge.sinks.ros2.stage import Ros2Output
from bridge.sinks.ros2.topics import BY_NAME
from bridge.streams import DeviceDescriptor, GazeLayout, Sample, StreamDescriptor, StreamKind

# Lark, which rclpy imports when the first publisher is made, imports a module of Python's that is deprecated.
quiet_lark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")

QUEUE_SIZE = 10
DEADLINE_S = 20.0
RESEND_S = 1.0
DEVICE = DeviceDescriptor("tracker", "test", "test", manufacturer="Somebody", model="T1", transport="test")
OTHER = DeviceDescriptor("other", "test", "other")
EVENTS = StreamDescriptor(DEVICE, "event", StreamKind.EVENT, "Event", "Markers")
OTHER_EVENTS = StreamDescriptor(OTHER, "event", StreamKind.EVENT, "Event", "Markers")
GAZE = StreamDescriptor(DEVICE, "gaze", StreamKind.GAZE, "Gaze", "Gaze", layout=GazeLayout(0, 1, False, 100, 50))
MAPPED = Mapped(0, 2_000_000, 1_000_000, ClockState.LOCKED, 3)
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


# --- messages that need not be there ---------------------------------------------------------------------------------


def message(name: str) -> Any:
    """The class of a message such as "pupil_msgs/Gaze"; the test is skipped where there is none.

    The folder of the messages' sources can be imported as well, but has no classes.
    """
    package, kind = name.split("/")
    found = getattr(pytest.importorskip(f"{package}.msg", reason=f"{package} is not installed"), kind, None)
    if found is None:
        pytest.skip(f"{package} is not installed")
    return found


def is_there(name: str) -> bool:
    package, kind = name.split("/")
    try:
        return hasattr(importlib.import_module(f"{package}.msg"), kind)
    except ImportError:
        return False


# --- a desk whose publishers write down ------------------------------------------------------------------------------


class Paper:
    """A publisher that keeps what a reader would get: what its message is once it has been over the wire."""

    def __init__(self, kind: Any, topic: str) -> None:
        self.kind, self.topic = kind, topic
        self.readers = 1
        self.messages: list[Any] = []

    def get_subscription_count(self) -> int:
        return self.readers

    def publish(self, message: Any) -> None:
        assert isinstance(message, self.kind)
        self.messages.append(deserialize_message(serialize_message(message), self.kind))


class Notes(Desk):
    """A desk of a real node, whose topics are on paper."""

    def __init__(self, node: Node, **settings: Any) -> None:
        super().__init__(node, Ros2Sink(type="ros2", **settings))
        self.papers: dict[str, Paper] = {}

    def publisher(self, device: str, topic: str, *, kind: Any = None, **names: str) -> Any:
        name = BY_NAME[topic].name.format(**names)
        assert name not in self.papers, "a topic is opened once"
        made = self.papers[name] = Paper(kind or self.type(BY_NAME[topic].type), name)
        return made

    def __getitem__(self, topic: str) -> list[Any]:
        return self.papers[topic].messages

    def nobody_but(self, *topics: str) -> None:
        """Only these have a subscriber."""
        for name, paper in self.papers.items():
            paper.readers = int(name in topics)


@contextmanager
def node_alone(name: str = "alone") -> Iterator[Node]:
    context = Context()
    rclpy.init(context=context, args=["--ros-args", "--disable-external-lib-logs"])
    node = Node(name, context=context, start_parameter_services=False, enable_rosout=False)
    try:
        yield node
    finally:
        node.destroy_node()
        context.try_shutdown()


def now_ns() -> int:
    return monotonic_ns()


def realtime_ns(host_ns: int) -> int:
    return host_ns + time.time_ns() - time.monotonic_ns()


def stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


# --- a sink that is real ---------------------------------------------------------------------------------------------


def settings(**changes: Any) -> Ros2Sink:
    return Ros2Sink(
        **{"type": "ros2", "namespace": "sink_test", "node_name": "sink_test", "queue_size": QUEUE_SIZE, **changes}
    )


def configuration(sink: str = "", tables: str = "") -> Config:
    """A whole configuration with this ROS sink."""
    text = '[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "ros2"\nnamespace = "sink_test"\nnode_name = "sink_test"\n'
    return parse(f"{text}{sink}\n{tables}", "test")


@contextmanager
def open_sink(**changes: Any) -> Iterator[Sink]:
    made = Sink(settings(**changes))
    try:
        yield made
    finally:
        made.close()


@contextmanager
def ros_arguments(*arguments: str) -> Iterator[None]:
    """As if this process had been started with ``--ros-args`` and these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pupil-bridge", "run", "--ros-args", *arguments])
        yield


def event(text: str, device_ns: int = 0, stream: StreamDescriptor = EVENTS) -> Sample:
    return Sample(stream, device_ns, time.monotonic_ns(), text)


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of ``condition()``."""
    end_s = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"not in time: {what}"
        time.sleep(0.005)
    return value


async def soon(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The same, while the loop runs."""
    end_s = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"not in time: {what}"
        await asyncio.sleep(0.005)
    return value


async def elsewhere(work: Callable[[], Any]) -> Any:
    """Done in a thread of its own, while the loop runs."""
    done = list[Any]()
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    await soon(lambda: not thread.is_alive(), "the other thread", 2 * DEADLINE_S)
    thread.join()
    return done[0]


class Blocked:
    """The publishing thread, held until it is released."""

    def __init__(self, sink: Sink) -> None:
        self._entered, self._released = threading.Event(), threading.Event()
        sink.worker.put_always(self._hold)
        assert self._entered.wait(DEADLINE_S)

    def _hold(self) -> None:
        self._entered.set()
        assert self._released.wait(DEADLINE_S)

    def release(self) -> None:
        self._released.set()


def drained(sink: Sink) -> None:
    """Waits until the publishing thread has done all that was queued before."""
    done = threading.Event()
    sink.worker.put_always(done.set)
    until(lambda: done.is_set() or not sink.worker.alive, "the queue is empty")
    assert sink.worker.alive, "the thread that publishes has died"


def topics(sink: Sink, device: DeviceDescriptor = DEVICE) -> set[str]:
    """The topics of a device, without its name."""
    prefix = f"/sink_test/{device.name}/"
    return {p.topic_name.removeprefix(prefix) for p in sink._node.publishers if p.topic_name.startswith(prefix)}


# --- who talks to it -------------------------------------------------------------------------------------------------


class Peer:
    """Another participant, in a context and with a thread of its own."""

    def __init__(self, name: str = "peer") -> None:
        self._context = Context()
        rclpy.init(context=self._context, args=["--ros-args", "--disable-external-lib-logs"])
        self.node = Node(name, context=self._context, start_parameter_services=False, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._clients: dict[tuple[Any, str], Any] = {}
        self._parameters: dict[str, AsyncParameterClient] = {}
        self._ended = False
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._ended:
            self._executor.spin_once(timeout_sec=0.05)

    def start(self, kind: Any, name: str, **fields: Any) -> Any:
        """Asks a service; the future of its answer."""
        client = self._clients.get((kind, name))
        if client is None:
            client = self._clients[kind, name] = self.node.create_client(kind, name)
        until(client.service_is_ready, f"the service {name}")
        return client.call_async(kind.Request(**fields))

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        """Its answer. A client's first request can be lost while both sides are getting to know each other: one that
        was not answered is sent again."""
        answers = list[Any]()
        end_s = time.monotonic() + DEADLINE_S
        while not (done := [answer for answer in answers if answer.done()]):
            assert time.monotonic() < end_s, f"no answer of {name}"
            if time.monotonic() > end_s - DEADLINE_S + RESEND_S * len(answers):
                answers.append(self.start(kind, name, **fields))
            time.sleep(0.002)
        return done[0].result()

    async def ask(self, kind: Any, name: str, **fields: Any) -> Any:
        """The same while the loop runs, which answers."""
        return await elsewhere(lambda: self.call(kind, name, **fields))

    def get(self, node: str, *names: str) -> list[Any]:
        """Parameters as rclpy has them."""
        found = self._of_parameters(node, lambda client: client.get_parameters(list(names)))
        return [parameter_value_to_python(value) for value in found.values]

    def set(self, node: str, atomically: bool = False, **values: Any) -> list[str]:
        """Why each was refused, "" where it was not; a "__" in a name stands for a dot."""
        wanted = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
        if atomically:
            found = self._of_parameters(node, lambda client: client.set_parameters_atomically(wanted))
            return ["" if found.result.successful else found.result.reason]
        found = self._of_parameters(node, lambda client: client.set_parameters(wanted))
        return ["" if result.successful else result.reason or "refused" for result in found.results]

    def describe(self, node: str, *names: str) -> list[Any]:
        return list(self._of_parameters(node, lambda client: client.describe_parameters(list(names))).descriptors)

    def _of_parameters(self, node: str, ask: Callable[[AsyncParameterClient], Any]) -> Any:
        """As `call`; asked twice they answer the same."""
        client, answers, end_s = self.parameters(node), list[Any](), time.monotonic() + DEADLINE_S
        while not (done := [answer for answer in answers if answer.done()]):
            assert time.monotonic() < end_s, f"no answer of the parameters of {node}"
            if time.monotonic() > end_s - DEADLINE_S + 3 * RESEND_S * len(answers):
                answers.append(ask(client))
            time.sleep(0.002)
        return done[0].result()

    def parameters(self, node: str) -> AsyncParameterClient:
        made = self._parameters.get(node)
        if made is None:
            made = self._parameters[node] = AsyncParameterClient(self.node, node)
        until(made.services_are_ready, f"the parameters of {node}")
        return made

    def listen(self, kind: Any, topic: str, latched: bool = False) -> list[Any]:
        """The list of what comes."""
        heard: list[Any] = []
        qos = QoSProfile(depth=1000)
        if latched:
            qos.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
        self.node.create_subscription(kind, topic, heard.append, qos)
        return heard

    def services(self, namespace: str = "/sink_test/") -> set[str]:
        """All services of that namespace, but for what every node has."""
        of_ros = ("parameter", "get_", "change_state", "describe_", "list_", "set_", "_type_description")
        found = [name for name, _ in self.node.get_service_names_and_types() if name.startswith(namespace)]
        return {name for name in found if not any(word in name.rpartition("/")[2] for word in of_ros)}

    def close(self) -> None:
        self._ended = True
        self._executor.wake()
        self._thread.join(DEADLINE_S)
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()


class Hearer:
    """Hears a topic of the device, its events as a rule."""

    def __init__(self, name: str = "events", kind: Any = TimeReference) -> None:
        self._peer = Peer("hearer")
        self.topic = f"/sink_test/{DEVICE.name}/{name}"
        self.messages = self._peer.listen(kind, self.topic)

    def matched(self) -> bool:
        return bool(self._peer.node.count_publishers(self.topic))

    def hear(self, count: int) -> list[Any]:
        """The first ``count`` messages."""
        until(lambda: len(self.messages) >= count, f"{count} messages; there are {len(self.messages)}")
        return self.messages

    def close(self) -> None:
        self._peer.close()


def meet(sink: Sink, hearer: Hearer) -> None:
    """Waits until both sides of a topic know each other."""

    def seen() -> bool:
        found = [p for p in list(sink._node.publishers) if p.topic_name == hearer.topic]
        return bool(found) and bool(found[0].get_subscription_count()) and hearer.matched()

    drained(sink)
    until(seen, f"{hearer.topic} has a subscriber")


def discovered(sink: Sink, hearer: Hearer, stream: StreamDescriptor = EVENTS) -> Ros2Output:
    """The output of a stream, once it is heard."""
    output = sink.open_stream(stream)
    assert output is not None
    meet(sink, hearer)
    return output
