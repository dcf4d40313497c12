"""The devices and streams that there are, and their topics while the node is configured. On the publishing thread."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final

from bridge.clock import Mapped
from bridge.pipeline import ClockEvent, ClockStatus
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.device import DeviceTopics, StaticTransforms
from bridge.sinks.ros2.diagnostics import Diagnostics
from bridge.sinks.ros2.events import EventTopics
from bridge.sinks.ros2.gaze import GazeTopics
from bridge.sinks.ros2.imu import ImuTopic
from bridge.sinks.ros2.movements import BlinkTopic, FixationTopic
from bridge.sinks.ros2.pupil import PupilTopic
from bridge.sinks.ros2.services import Services
from bridge.sinks.ros2.surfaces import SurfaceNames, SurfaceTopics
from bridge.sinks.ros2.video import ImageThread, VideoTopics
from bridge.streams import (
    BlinkLayout,
    DeviceDescriptor,
    FixationLayout,
    Frame,
    GazeLayout,
    ImuLayout,
    PupilLayout,
    Sample,
    StreamDescriptor,
    StreamKind,
    SurfaceLayout,
    VideoLayout,
)

if TYPE_CHECKING:
    from bridge.sinks.ros2.sink import Ros2Sink

FRAMES_WAITING: Final = 2  # of one camera
CODED_WAITING: Final = 30  # of H.264, of which a gap spoils all up to the next key frame


class Ros2Output:
    """One stream's way to its topics. ``push`` is called on the loop, ``publish`` on the publishing thread."""

    def __init__(self, sink: Ros2Sink, stream: StreamDescriptor) -> None:
        self.stream = stream
        self.samples_out = 0
        self.dropped: Counter[str] = Counter()
        self.topics: Any = None
        self._sink = sink
        self._put = sink.worker.put

    def push(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        if self._sink.active:
            self._put(self, sample, mapped, host_ns)
        else:
            self.dropped["inactive"] += 1

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        if self.topics is None:
            self.dropped["inactive"] += 1
            return
        self.topics.publish(sample, mapped, host_ns)
        self.samples_out += 1

    def drop(self, reason: str) -> None:
        self.dropped[reason] += 1

    def next(self) -> tuple[Sample, Mapped, int] | None:
        return None


class VideoOutput(Ros2Output):
    """Frames: the latest are wanted, and each is large. At most two wait, or thirty of H.264."""

    def __init__(self, sink: Ros2Sink, stream: StreamDescriptor) -> None:
        super().__init__(sink, stream)
        self._frames: deque[tuple[Sample, Mapped, int]] = deque()
        self._taking = threading.Lock()  # as many frames as tokens, or one of them waits for ever

    def push(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        if not self._sink.active:
            self.dropped["inactive"] += 1
            return
        assert isinstance(sample.payload, Frame)
        with self._taking:
            full = len(self._frames) >= (CODED_WAITING if sample.payload.format == "h264" else FRAMES_WAITING)
            self._frames.append((sample, mapped, host_ns))
            if full:
                self._frames.popleft()
                self.dropped["superseded"] += 1
            elif not self._sink.worker.put_token(self):
                self._frames.pop()
                self.dropped["queue_full"] += 1

    def next(self) -> tuple[Sample, Mapped, int] | None:
        with self._taking:
            return self._frames.popleft() if self._frames else None


def has_form(stream: StreamDescriptor, desk: Desk) -> bool:
    """Whether there is a topic for such a stream here."""
    layout = stream.layout
    return (
        stream.kind is StreamKind.EVENT
        or isinstance(layout, GazeLayout | ImuLayout | VideoLayout | SurfaceLayout)
        or (isinstance(layout, PupilLayout) and desk.has("pupil"))
        or (isinstance(layout, FixationLayout) and desk.has("fixations") and not (layout.live and layout.surface))
        or (isinstance(layout, BlinkLayout) and desk.has("blinks"))
    )


class Stage:
    """Everything that publishes."""

    def __init__(self, desk: Desk) -> None:
        self.services: Services | None = None
        self._desk = desk
        self._devices: dict[str, DeviceDescriptor] = {}
        self._outputs: dict[str, list[Ros2Output]] = {}
        self._surfaces: dict[str, SurfaceNames] = {}  # which stay the same when topics are made anew
        self._topics: dict[str, DeviceTopics] = {}  # while configured
        self._common: tuple[Diagnostics, StaticTransforms] | None = None  # while configured
        self._images = ImageThread()

    @property
    def configured(self) -> bool:
        return self._common is not None

    # --- what there is ---------------------------------------------------------------------------------------------

    def add_device(self, device: DeviceDescriptor) -> None:
        self._devices[device.name] = device
        self._outputs[device.name] = []
        self._surfaces[device.name] = SurfaceNames()
        if self.configured:
            self._open_device(device)
            self._tell_transforms()

    def add_output(self, output: Ros2Output) -> None:
        self._outputs[output.stream.device.name].append(output)
        if self.configured:
            self._open_output(output)

    def remove_device(self, name: str) -> None:
        self._close_device(name)
        del self._devices[name], self._outputs[name], self._surfaces[name]
        if self.configured:
            self._tell_transforms()

    # --- the node's transitions ---------------------------------------------------------------------------------------

    def configure(self) -> None:
        self._common = Diagnostics(self._desk), StaticTransforms(self._desk)
        for device in self._devices.values():
            self._open_device(device)
            for output in self._outputs[device.name]:
                self._open_output(output)
        self._tell_transforms()

    def cleanup(self) -> None:
        if self._common is None:
            return
        if self.services is not None:
            self.services.close()
        for name in self._devices:
            self._close_device(name)
        for common in self._common:
            self._destroy(common.publishers)
        self._common = None

    def rebuild(self) -> None:
        """After a change of settings that topics are made with."""
        if self.configured:
            self.cleanup()
            self.configure()

    def close(self) -> None:
        self._images.close()

    # --- what is published besides samples ----------------------------------------------------------------------------

    def clock_status(self, device: DeviceDescriptor, status: ClockStatus) -> None:
        if (topics := self._topics.get(device.name)) is not None:
            topics.clock_status(status)

    def clock_event(self, device: DeviceDescriptor, event: ClockEvent) -> None:
        if (topics := self._topics.get(device.name)) is not None:
            topics.clock_event(event)

    def status(self, status: dict[str, Any], host_ns: int) -> None:
        if self._common is None:
            return
        for device in status["devices"]:
            if (topics := self._topics.get(device["name"])) is not None:
                topics.status(device, host_ns)
        if self.services is not None:
            self.services.offer({d["name"]: d["functions"] for d in status["devices"] if d["name"] in self._devices})
        self._common[0].publish(status, host_ns)

    # --- topics ------------------------------------------------------------------------------------------------------

    def _tell_transforms(self) -> None:
        assert self._common is not None
        self._common[1].tell(list(self._devices))

    def _open_device(self, device: DeviceDescriptor) -> None:
        self._topics[device.name] = DeviceTopics(self._desk, device)

    def _open_output(self, output: Ros2Output) -> None:
        stream, desk, surfaces = output.stream, self._desk, self._surfaces[output.stream.device.name]
        match stream.layout:
            case GazeLayout() as gaze:
                output.topics = GazeTopics(desk, stream, gaze)
            case PupilLayout() as pupil:
                output.topics = PupilTopic(desk, stream, pupil)
            case FixationLayout(surface="") as fixation:
                output.topics = FixationTopic(desk, stream, fixation)
            case FixationLayout() as fixation:
                output.topics = FixationTopic(desk, stream, fixation, surfaces.of(fixation.surface))
            case BlinkLayout() as blink:
                output.topics = BlinkTopic(desk, stream, blink)
            case SurfaceLayout() as surface:
                output.topics = SurfaceTopics(desk, stream, surface, surfaces.of(surface.surface))
            case ImuLayout() as imu:
                output.topics = ImuTopic(desk, stream, imu)
            case VideoLayout() as video:
                output.topics = VideoTopics(desk, stream, video, self._images, output.dropped)
            case None:
                output.topics = EventTopics(desk, stream)

    def _close_device(self, name: str) -> None:
        for output in self._outputs[name]:
            topics, output.topics = output.topics, None
            if isinstance(topics, VideoTopics):
                topics.close()
            if topics is not None:
                self._destroy(topics.publishers)
        if (device := self._topics.pop(name, None)) is not None:
            self._destroy(device.publishers)

    def _destroy(self, publishers: list[Any]) -> None:
        for publisher in publishers:
            self._desk.node.destroy_publisher(publisher)
