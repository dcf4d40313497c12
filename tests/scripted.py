"""A pipeline between a scripted device and sinks that write down what they get. Time is the test's."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bridge.clock import ClockSettings, Mapped, RoundTrip
from bridge.config import Config
from bridge.pipeline import ClockEvent, ClockStatus, Device, Pipeline, PipelineSettings, Request
from bridge.stream_input import Output, StreamInput
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
        self.events: list[ClockEvent] = []
        self.configs: list[Config] = []  # that of the start, and each one that came after it
        self.requests: list[Request] = []
        self.told_of: list[dict[str, Any]] = []
        self.closed = 0

    def serve(self, request: Request, config: Config) -> None:
        self.requests.append(request)
        self.configs.append(config)

    def configured(self, config: Config) -> None:
        assert self.requests, "what does not serve is not configured"
        self.configs.append(config)

    def told(self, status: dict[str, Any]) -> None:
        self.told_of.append(status)

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

    def clock_event(self, device: DeviceDescriptor, event: ClockEvent) -> None:
        self.events.append(event)

    async def close_device(self, device: DeviceDescriptor) -> None:
        self.devices.remove(device.name)

    def status(self) -> dict[str, object]:
        return {}

    def close(self) -> bool:
        self.closed += 1
        return True


def descriptor(name: str = "gaze", kind: StreamKind = StreamKind.GAZE, **changes: Any) -> StreamDescriptor:
    return StreamDescriptor(PHONE, name, kind, name.title(), "Gaze", **changes)


# What Pupil Core's gaze is: late, not in order, and put in order.
LATE = {"arrivals_bound_clock": False, "in_order": False}


class Bench:
    """A pipeline with one device, whose clock is ``offset_ns`` ahead of the host's, and one sink."""

    def __init__(self, hold_ns: int = HOLD_NS, offset_ns: int = 777 * S, *, steps_at_once: bool = False) -> None:
        self.now_ns = 1000 * S
        self.offset_ns = offset_ns
        self.sink = Shelf("lsl")
        self.pipeline = Pipeline(
            [self.sink],
            settings=PipelineSettings(hold_ns=hold_ns),
            clock_settings=ClockSettings(),
            now_ns=lambda: self.now_ns,
        )
        self.device: Device = self.pipeline.device(PHONE, steps_at_once=steps_at_once)

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

    def step(self, forward_ns: int) -> None:
        """Somebody sets the device's clock."""
        self.offset_ns += forward_ns

    def run(self, stream: StreamInput, numbers: range, *, every_ns: int = 10 * MS, age_ns: int = 2 * MS) -> None:
        """So many samples, evenly, and the round trips that the clock asks for."""
        for number in numbers:
            self.now_ns += every_ns
            plan = self.device.clock.plan
            if plan.next_ns() <= self.now_ns:
                plan.sent(self.now_ns)
                self.ping()
            self.sample(stream, number, age_ns=age_ns)

    def sample(self, stream: StreamInput, number: float, *, age_ns: int = 2 * MS) -> None:
        """A sample that the device stamped ``age_ns`` ago and that arrives now."""
        stream.sample(self.now_ns - age_ns + self.offset_ns, self.now_ns, (number,))


def payloads(numbers: range | list[int]) -> list[tuple[float]]:
    return [(float(number),) for number in numbers]


def ready(**changes: Any) -> tuple[Bench, StreamInput, Notebook]:
    """A bench whose clock is locked and whose every sample arrives 50 ms after its stamp, unless it says otherwise."""
    bench = Bench()
    stream, out = bench.stream(**changes)
    bench.lock()
    return bench, stream, out
