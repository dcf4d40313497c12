"""From sources to sinks: hold until the clock is locked, put in order, map, fan out. Everything is bounded and counted.

One pipeline a daemon, owned by its event loop; nothing here blocks, and nothing here knows a protocol. Devices and
sinks come and go while the others stream.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import msgspec

from bridge.clock import Clock, ClockSettings, ClockState, RoundTrip
from bridge.clock.device_clock import DeviceClock, Scale
from bridge.clock.host import monotonic_ns
from bridge.config import Config
from bridge.service.quiet import LineBudget
from bridge.stream_input import Output, StreamInput
from bridge.streams import DeviceDescriptor, StreamDescriptor

log = logging.getLogger(__name__)

CLOCK_SET_NS = 2_000_000_000  # so long after it is told, an epoch that begins is that of a clock that was set
Action = Callable[[Any], Awaitable[str]]  # arguments of the command -> what was done, for a person; raises Refused


class ClockStatus(msgspec.Struct, frozen=True):
    """One device clock at one moment, as the Sync stream, ROS diagnostics and the status show it. Times in ns.

    ``bound_ns`` is the widest since the last one that sinks were told: it has grown until a round trip came.
    """

    host_ns: int
    device_ns: int | None
    offset_ns: int | None
    bound_ns: int | None
    precision_ns: int | None
    rtt_min_ns: int | None
    rtt_median_ns: int | None
    drift_ppm: float
    age_ns: int | None
    slew_ns: int
    state: ClockState
    epoch: int
    pings_accepted: int
    samples_dropped: int


class ClockEvent(msgspec.Struct, frozen=True):
    """The beginning of an epoch of a device's clock, as marker streams tell it.

    ``host_ns``: when it was noticed. ``device_ns``: the device's time then, as it is now known; None while it is not.
    """

    host_ns: int
    device_ns: int | None
    epoch: int
    reason: str

    @property
    def text(self) -> str:
        return f"epoch {self.epoch} {self.reason}"


Request = Callable[[str, dict[str, Any]], Awaitable[Any]]  # of the control surface; raises BridgeError


class Sink(Protocol):
    """Where samples go. Opened before its devices' sources start, closed after they have stopped."""

    name: str

    def serve(self, request: Request, config: Config) -> None:
        """Once, on the loop: from now on who is at this sink can ask for things."""

    def configured(self, config: Config) -> None:
        """The configuration is another one; called for sinks that stay open."""

    def told(self, status: dict[str, Any]) -> None:
        """Everything that is known, once a second, as the control surface's status."""

    def open_device(self, device: DeviceDescriptor) -> None: ...

    def open_stream(self, stream: StreamDescriptor) -> Output | None:
        """The stream's output, or None when this sink has no form for it."""

    def clock_status(self, device: DeviceDescriptor, status: ClockStatus) -> None: ...

    def clock_event(self, device: DeviceDescriptor, event: ClockEvent) -> None: ...

    async def close_device(self, device: DeviceDescriptor) -> None:
        """Takes the device and its streams out of this sink; after it they can be opened anew. Keeps the loop free."""

    def status(self) -> dict[str, object]:
        """Facts for the status, JSON types only."""

    def close(self) -> bool:
        """Whether all of it has ended; what has not ends with the process."""


class PipelineSettings(msgspec.Struct, frozen=True):
    """What applies to every device and can be changed while they stream.

    ``hold_ns``: for how long samples wait for a clock. ``flood_hz``: samples a second that are taken of one stream.
    """

    hold_ns: int = 5_000_000_000
    flood_hz: float = 2000.0


class Device:
    """One eye tracker: its clock and its streams. It stays when the hardware goes."""

    def __init__(
        self,
        descriptor: DeviceDescriptor,
        clock: DeviceClock,
        settings: PipelineSettings,
        sinks: Iterable[Sink],
        now_ns: Callable[[], int],
    ) -> None:
        self.descriptor = descriptor
        self.clock = clock
        self.settings = settings
        self.streams: dict[str, StreamInput] = {}
        self.malformed: Counter[str] = Counter()
        self.connected = False
        self.recording: bool | None = None  # whether the device itself records; None: not known
        self.log: dict[str, Any] | None = None  # what the device itself reports, for the status; None: it does not
        self.actions: dict[str, Action] = {}  # by command of the control surface, what its source can do
        self._now_ns = now_ns
        self._epoch = clock.epoch
        self._clock_set_ns: int | None = None
        self._lines = LineBudget()
        self._sinks: list[Sink] = []
        for sink in sinks:
            self.add_sink(sink)

    @property
    def hold_ns(self) -> int:
        return self.settings.hold_ns

    @property
    def flood_hz(self) -> float:
        return self.settings.flood_hz

    def add_sink(self, sink: Sink) -> None:
        """From now on this sink gets everything, too."""
        sink.open_device(self.descriptor)
        self._sinks.append(sink)
        for stream in self.streams.values():
            if (output := sink.open_stream(stream.descriptor)) is not None:
                stream.add_output(sink.name, output)

    def remove_sink(self, name: str) -> None:
        """From now on the sink of that name gets nothing; closing it is its owner's business."""
        self._sinks = [sink for sink in self._sinks if sink.name != name]
        for stream in self.streams.values():
            stream.remove_output(name)

    def stream(self, descriptor: StreamDescriptor) -> StreamInput:
        """The input of a stream; made, and opened in all sinks, at the first call."""
        known = self.streams.get(descriptor.name)
        if known is not None:
            return known
        opened = {sink.name: sink.open_stream(descriptor) for sink in self._sinks}
        outputs = {name: output for name, output in opened.items() if output is not None}
        made = self.streams[descriptor.name] = StreamInput(self, descriptor, outputs)
        return made

    def ping(self, trip: RoundTrip) -> None:
        """Feeds a round trip to the clock, and what waits for the clock to the sinks."""
        before = self.clock.locked
        accepted = self.clock.ping(trip)
        if not accepted:
            log.debug(
                "%s: round trip of %.3f ms set aside",
                self.descriptor.name,
                trip.rtt_ns / 1e6,
                extra={"DEVICE": self.descriptor.name},
            )
        self.epoch_changed(trip.received_ns)
        if not before and self.clock.locked:
            log.log(
                self._lines.level(logging.INFO),
                "%s: clock locked, offset %+.6f s, bound %.3f ms",
                self.descriptor.name,
                (self.clock.offset_ns or 0) / 1e9,
                (self.clock.bound_ns or 0) / 1e6,
                extra={"DEVICE": self.descriptor.name, "EPOCH": self._epoch},
            )
            for stream in self.streams.values():
                stream.clock_locked()

    def clock_was_set(self, now_ns: int) -> None:
        """The device says that its clock has just been set: the epoch that begins with that begins here. Asks for round
        trips."""
        self._clock_set_ns = now_ns
        self.clock.request_burst()

    def epoch_changed(self, now_ns: int) -> None:
        """Tells the streams and the sinks if the clock's epoch is another one than before."""
        step_ns = self.clock.step_ns
        if self.clock.epoch != self._epoch and step_ns is not None:
            self._begin_epoch(
                now_ns, f"step {step_ns / 1e9:+.6f} s", f"the device's clock was set by {step_ns / 1e9:+.6f} s"
            )

    def host_suspended(self, suspended_ns: int, now_ns: int) -> None:
        """The host slept for so long; the device did not."""
        if not self.clock.locked:  # what is held was sent before
            for stream in self.streams.values():
                stream.forget_clock()
        self.clock.host_suspended(suspended_ns, now_ns)
        if self.clock.epoch != self._epoch:
            text = f"suspend {suspended_ns / 1e9:.6f} s"
            self._begin_epoch(now_ns, text, f"this computer slept for {suspended_ns / 1e9:.3f} s")

    def _begin_epoch(self, now_ns: int, reason: str, sentence: str) -> None:
        self._epoch = self.clock.epoch
        level = self._lines.level(logging.WARNING)
        name = self.descriptor.name
        fields = {"DEVICE": name, "EPOCH": self._epoch}
        log.log(level, "%s: %s; epoch %d begins", name, sentence, self._epoch, extra=fields)
        firsts = [first for stream in self.streams.values() if (first := stream.first_of_epoch()) is not None]
        first = self._told_first(now_ns) or min(firsts, default=None)
        for stream in self.streams.values():
            stream.begin_epoch(now_ns, first)
        event = ClockEvent(now_ns, self.clock.to_device(now_ns), self._epoch, reason)
        for sink in self._sinks:
            sink.clock_event(self.descriptor, event)
        self._tell_status(self._now_ns())  # how much less is known now than at the last tick

    def _told_first(self, now_ns: int) -> tuple[int, int] | None:
        """Host and device time of the beginning of the epoch, where the device has told it."""
        if self._clock_set_ns is None or now_ns - self._clock_set_ns > CLOCK_SET_NS:
            return None
        device_ns = self.clock.to_device(self._clock_set_ns)
        return None if device_ns is None else (self._clock_set_ns, device_ns)

    def attached(self) -> None:
        """The device is there (again), with a clock that need not be the one it had."""
        for stream in self.streams.values():
            stream.forget_clock()
        self.clock.reset()
        self.connected = True
        if self.clock.epoch != self._epoch:
            self._begin_epoch(self._now_ns(), "restart", "the device is there again")

    def detached(self) -> None:
        self.connected = False

    def tick(self, now_ns: int) -> None:
        for stream in self.streams.values():
            if stream.tick(now_ns):
                log.log(
                    self._lines.level(logging.WARNING),
                    "%s: %s: more than %.0f samples a second; the others are dropped",
                    self.descriptor.name,
                    stream.descriptor.name,
                    self.flood_hz,
                    extra={"DEVICE": self.descriptor.name, "STREAM": stream.descriptor.name},
                )
        self._tell_status(now_ns)

    def _tell_status(self, now_ns: int) -> None:
        status = self.clock_status(now_ns)
        self.clock.told()
        for sink in self._sinks:
            sink.clock_status(self.descriptor, status)

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()

    def clock_status(self, now_ns: int) -> ClockStatus:
        clock = self.clock
        rtts = clock.rtts_ns
        last = clock.last_ping_received_ns
        return ClockStatus(
            host_ns=now_ns,
            device_ns=clock.to_device(now_ns),
            offset_ns=clock.offset_ns,
            bound_ns=clock.widest_bound_ns(now_ns),
            precision_ns=round(clock.precision_ns) if clock.offset_ns is not None else None,
            rtt_min_ns=rtts[0] if rtts else None,
            rtt_median_ns=rtts[1] if rtts else None,
            drift_ppm=clock.drift_ppm,
            age_ns=None if last is None else now_ns - last,
            slew_ns=clock.slew_ns,
            state=clock.state(now_ns),
            epoch=clock.epoch,
            pings_accepted=clock.pings_accepted,
            samples_dropped=sum(sum(s.all_drops().values()) for s in self.streams.values()),
        )


class Pipeline:
    """All devices and all sinks."""

    def __init__(
        self,
        sinks: Iterable[Sink],
        *,
        settings: PipelineSettings | None = None,
        clock_settings: ClockSettings | None = None,
        now_ns: Callable[[], int] = monotonic_ns,
        scale: Scale | None = None,
    ) -> None:
        """``scale`` relates host time to a steadier clock of the host; without it host time is steady itself."""
        self.sinks = tuple(sinks)
        self.devices: dict[str, Device] = {}
        self.now_ns = now_ns
        self.clock_settings = clock_settings or ClockSettings()  # of devices that come
        self._settings = settings or PipelineSettings()
        self._scale = scale

    def set_up(self, settings: PipelineSettings) -> None:
        """Changes what applies to every device."""
        self._settings = settings
        for device in self.devices.values():
            device.settings = settings

    def device(
        self,
        descriptor: DeviceDescriptor,
        asymmetry_ns: int = 0,
        step_patience_ns: int = 0,
        *,
        steps_at_once: bool = False,
    ) -> Device:
        """The device of that name; made, and opened in all sinks, at the first call. The others: `ClockSettings`."""
        known = self.devices.get(descriptor.name)
        if known is None:
            settings = msgspec.structs.replace(
                self.clock_settings,
                asymmetry_ns=asymmetry_ns,
                step_patience_ns=step_patience_ns,
                steps_at_once=steps_at_once,
            )
            clock = DeviceClock(Clock(settings), self._scale)
            known = Device(descriptor, clock, self._settings, self.sinks, self.now_ns)
            self.devices[descriptor.name] = known
        return known

    async def remove_device(self, name: str) -> None:
        """Lets what waits leave, and closes the device in all sinks. Its source has let go of it before."""
        device = self.devices.pop(name)
        device.close()
        for sink in self.sinks:
            await sink.close_device(device.descriptor)

    def add_sink(self, sink: Sink) -> None:
        """Opens all devices in one more sink."""
        self.sinks = (*self.sinks, sink)
        for device in self.devices.values():
            device.add_sink(sink)

    def remove_sink(self, name: str) -> Sink:
        """The sink of that name, which gets nothing more; to be closed by the caller."""
        (sink,) = (sink for sink in self.sinks if sink.name == name)
        self.sinks = tuple(kept for kept in self.sinks if kept is not sink)
        for device in self.devices.values():
            device.remove_sink(name)
        return sink

    def tick(self) -> None:
        """Once a second: what waits too long goes, and every sink gets every clock's status."""
        now_ns = self.now_ns()
        for device in self.devices.values():
            device.tick(now_ns)

    def host_suspended(self, suspended_ns: int) -> None:
        """The host slept for so long: every device's clock has run on against its own."""
        now_ns = self.now_ns()
        for device in self.devices.values():
            device.host_suspended(suspended_ns, now_ns)

    def close(self) -> bool:
        """Lets everything that waits leave, then closes the sinks. Whether all of them have ended."""
        for device in self.devices.values():
            device.close()
        ended = [sink.close() for sink in self.sinks]
        return all(ended)
