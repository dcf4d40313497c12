"""From sources to sinks: hold until the clock is locked, put in order, map, fan out. Everything is bounded and counted.

One pipeline a daemon, owned by its event loop; nothing here blocks, and nothing here knows a protocol.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from bridge.clock import Clock, ClockSettings, ClockState, Mapped, RoundTrip
from bridge.clock.host import monotonic_ns
from bridge.service.quiet import LineBudget
from bridge.streams import DeviceDescriptor, Sample, StreamDescriptor

log = logging.getLogger(__name__)

HOLD_MAX_SAMPLES = 20_000  # a stream's share of memory while its clock is not locked, whatever its rate
REORDER_MAX_SAMPLES = 5_000
REORDER_PATIENCE_NS = 500_000_000  # a paused stream's last samples leave this long after their window
RATE_WINDOW_TICKS = 5
FUTURE_LIMIT_NS = 10_000_000  # beyond the bound; less is clamped to the arrival


class ClockStatus(msgspec.Struct, frozen=True):
    """One device clock at one moment, as the Sync stream, ROS diagnostics and the status show it. Times in ns."""

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


class Output(Protocol):
    """One stream in one sink. ``dropped`` counts by reason what the sink could not pass on."""

    samples_out: int
    dropped: Counter[str]

    def push(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        """Takes a sample that means host time ``host_ns``. Must not block and must not raise on a slow reader."""


class Sink(Protocol):
    """Where samples go. Opened by the daemon before the sources start, closed after they have stopped."""

    name: str

    def open_device(self, device: DeviceDescriptor) -> None: ...

    def open_stream(self, stream: StreamDescriptor) -> Output | None:
        """The stream's output, or None when this sink has no form for it."""

    def clock_status(self, device: DeviceDescriptor, status: ClockStatus) -> None: ...

    def close(self) -> None: ...


class StreamInput:
    """One stream of a device, from the source's hands to the outputs."""

    def __init__(self, device: Device, descriptor: StreamDescriptor, outputs: dict[str, Output]) -> None:
        self.device = device
        self.descriptor = descriptor
        self.outputs = outputs
        self.samples_in = 0
        self.last_received_ns: int | None = None
        self.dropped: Counter[str] = Counter()
        self._pushes: list[Callable[[Sample, Mapped, int], None]] = [output.push for output in outputs.values()]
        self._held: deque[Sample] = deque()
        self._reorder: list[tuple[int, int, Sample]] = []
        self._reordered = 0
        self._newest_device_ns: int | None = None
        self._released_device_ns: int | None = None
        self._last_host_ns = 0
        self._span_ns = 0
        self._intervals = 0
        self._ticks: deque[tuple[int, int, int]] = deque(maxlen=RATE_WINDOW_TICKS + 1)

    def sample(self, device_ns: int, received_ns: int, payload: tuple[float, ...] | str) -> None:
        """Takes one datum as it was received; ``payload`` fits the descriptor's channels."""
        self.samples_in += 1
        self.last_received_ns = received_ns
        sample = Sample(self.descriptor, device_ns, received_ns, payload)
        if self.device.clock.locked:
            self._take(sample)
        else:
            self._hold(sample)

    def _take(self, sample: Sample) -> None:
        """A sample whose clock is locked."""
        device_ns, descriptor, clock = sample.device_ns, self.descriptor, self.device.clock
        looked_at = clock.arrival if descriptor.arrivals_bound_clock else clock.ahead_ns
        if looked_at(device_ns, sample.received_ns) > FUTURE_LIMIT_NS:
            # A corrupt stamp, or a clock that has stepped: round trips tell which, and nothing is mapped wrongly.
            self.dropped["from_the_future"] += 1
            clock.request_burst()
            return
        newest = self._newest_device_ns
        if newest is None:
            self._newest_device_ns = device_ns
        else:
            self._intervals += 1
            if device_ns > newest:
                self._span_ns += device_ns - newest
                self._newest_device_ns = device_ns
        if descriptor.reorder_window_ns:
            self._put_in_order(sample)
        else:
            self._map(sample)

    def _put_in_order(self, sample: Sample) -> None:
        if self._released_device_ns is not None and sample.device_ns < self._released_device_ns:
            self.dropped["late"] += 1
            return
        self._reordered += 1  # keeps equal stamps as they came
        heapq.heappush(self._reorder, (sample.device_ns, self._reordered, sample))
        assert self._newest_device_ns is not None
        until = self._newest_device_ns - self.descriptor.reorder_window_ns
        while self._reorder and (self._reorder[0][0] <= until or len(self._reorder) > REORDER_MAX_SAMPLES):
            self._release()

    def _release(self) -> None:
        device_ns, _, sample = heapq.heappop(self._reorder)
        self._released_device_ns = device_ns
        self._map(sample)

    def _map(self, sample: Sample) -> None:
        mapped = self.device.clock.map(sample.device_ns)
        assert mapped is not None, "the clock was locked when the sample was taken, and begin_epoch clears what waits"
        self._emit(sample, mapped)

    def _hold(self, sample: Sample) -> None:
        if not self.device.hold_ns or len(self._held) >= HOLD_MAX_SAMPLES:
            self.dropped["clock_unlocked"] += 1
            return
        self._held.append(sample)
        self.expire_held(sample.received_ns)

    def expire_held(self, now_ns: int) -> None:
        """Drops what has waited for a clock for too long."""
        held = self._held
        while held and held[0].received_ns < now_ns - self.device.hold_ns:
            held.popleft()
            self.dropped["clock_unlocked"] += 1

    def _emit(self, sample: Sample, mapped: Mapped) -> None:
        # Nothing that was received can have happened later than that.
        host_ns = min(mapped.host_ns - self.descriptor.latency_ns, sample.received_ns)
        if host_ns < self._last_host_ns and self.descriptor.in_order:
            # A new epoch's mapping may overlap the old one's by their bounds; more is a device that went backwards.
            if self._last_host_ns - host_ns > 2 * mapped.bound_ns:
                self.dropped["backwards"] += 1
                return
            host_ns = self._last_host_ns
        self._last_host_ns = host_ns
        for push in self._pushes:
            push(sample, mapped, host_ns)

    # --- called by the device ------------------------------------------------------------------------------------

    def clock_locked(self) -> None:
        held, self._held = self._held, deque()
        for sample in held:
            self._take(sample)

    def begin_epoch(self) -> None:
        """The device's clock is another one now: nothing that waits can be mapped with it."""
        dropped = len(self._held) + len(self._reorder)
        if dropped:
            self.dropped["clock_epoch"] += dropped
        self._held.clear()
        self._reorder.clear()
        self._released_device_ns = None
        self._newest_device_ns = None

    def drain(self) -> None:
        """Releases everything that waits to be put in order."""
        while self._reorder:
            self._release()

    def close(self) -> None:
        """Lets everything that can leave do so; what still waits for a clock has waited in vain."""
        self.drain()
        if self._held:
            self.dropped["clock_unlocked"] += len(self._held)
            self._held.clear()

    def tick(self, now_ns: int) -> None:
        self.expire_held(now_ns)
        patience_ns = self.descriptor.reorder_window_ns + REORDER_PATIENCE_NS
        while self._reorder and self._reorder[0][2].received_ns < now_ns - patience_ns:
            self._release()
        self._ticks.append((now_ns, self.samples_in, sum(o.samples_out for o in self.outputs.values())))

    # --- status --------------------------------------------------------------------------------------------------

    @property
    def rate_in_hz(self) -> float | None:
        """Mean rate by the device's own stamps over the whole run, gaps of the device apart."""
        return None if not self._span_ns else self._intervals * 1e9 / self._span_ns

    def recent_rates_hz(self) -> tuple[float, float]:
        """Arrivals, and samples out a sink, per second over the last five seconds."""
        if len(self._ticks) < 2:
            return 0.0, 0.0
        (t0, in0, out0), (t1, in1, out1) = self._ticks[0], self._ticks[-1]
        seconds = (t1 - t0) / 1e9
        return (in1 - in0) / seconds, (out1 - out0) / seconds / max(1, len(self.outputs))

    def all_drops(self) -> dict[str, int]:
        drops = dict(self.dropped)
        for sink, output in self.outputs.items():
            for reason, count in output.dropped.items():
                drops[f"{sink}_{reason}"] = count
        return drops


class Device:
    """One eye tracker: its clock and its streams. It stays when the hardware goes."""

    def __init__(self, descriptor: DeviceDescriptor, clock: Clock, hold_ns: int, sinks: Iterable[Sink]) -> None:
        self.descriptor = descriptor
        self.clock = clock
        self.hold_ns = hold_ns
        self.streams: dict[str, StreamInput] = {}
        self.malformed: Counter[str] = Counter()
        self.connected = False
        self._lines = LineBudget()
        self._sinks = tuple(sinks)
        for sink in self._sinks:
            sink.open_device(descriptor)

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
        epoch = self.clock.epoch
        accepted = self.clock.ping(trip)
        if not accepted:
            log.debug("%s: round trip of %.3f ms set aside", self.descriptor.name, trip.rtt_ns / 1e6)
        if self.clock.epoch != epoch:
            level = self._lines.level(logging.WARNING)
            log.log(
                level, "%s: the device's clock has stepped; epoch %d begins", self.descriptor.name, self.clock.epoch
            )
            for stream in self.streams.values():
                stream.begin_epoch()
        if not before and self.clock.locked:
            log.log(
                self._lines.level(logging.INFO),
                "%s: clock locked, offset %+.6f s, bound %.3f ms",
                self.descriptor.name,
                (self.clock.offset_ns or 0) / 1e9,
                (self.clock.bound_ns or 0) / 1e6,
            )
            for stream in self.streams.values():
                stream.clock_locked()

    def attached(self) -> None:
        """The device is there (again), with a clock that need not be the one it had."""
        for stream in self.streams.values():
            stream.drain()
            stream.begin_epoch()
        self.clock.reset()
        self.connected = True

    def detached(self) -> None:
        self.connected = False

    def tick(self, now_ns: int) -> None:
        for stream in self.streams.values():
            stream.tick(now_ns)
        status = self.clock_status(now_ns)
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
            # What leaves may still be on its way to the estimate.
            bound_ns=None if clock.bound_ns is None else clock.bound_ns + abs(clock.slew_ns),
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
        hold_ns: int = 5_000_000_000,
        clock_settings: ClockSettings | None = None,
        now_ns: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.sinks = tuple(sinks)
        self.devices: dict[str, Device] = {}
        self.now_ns = now_ns
        self._hold_ns = hold_ns
        self._clock_settings = clock_settings or ClockSettings()

    def device(self, descriptor: DeviceDescriptor) -> Device:
        """The device of that name; made, and opened in all sinks, at the first call."""
        known = self.devices.get(descriptor.name)
        if known is None:
            known = Device(descriptor, Clock(self._clock_settings), self._hold_ns, self.sinks)
            self.devices[descriptor.name] = known
        return known

    def tick(self) -> None:
        """Once a second: what waits too long goes, and every sink gets every clock's status."""
        now_ns = self.now_ns()
        for device in self.devices.values():
            device.tick(now_ns)

    def close(self) -> None:
        """Lets everything that waits leave, then closes the sinks."""
        for device in self.devices.values():
            device.close()
        for sink in self.sinks:
            sink.close()
