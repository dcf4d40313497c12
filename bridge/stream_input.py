"""One stream on its way from a source to the sinks: hold until the clock is locked, map, put in order, emit."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from bridge.clock import Arrival, Mapped, Track
from bridge.clock.device_clock import DeviceClock
from bridge.clock.watch import OTHER_EPOCH_NS
from bridge.streams import Payload, Sample, StreamDescriptor, StreamKind
from bridge.two_clocks import TwoClocks

HOLD_MAX_SAMPLES = 20_000  # a stream's share of memory while its clock is not locked, whatever its rate
HOLD_MAX_FRAMES = 30  # the same for images, of which each can have megabytes: the latest are kept
REORDER_MAX_SAMPLES = 5_000
REORDER_PATIENCE_NS = 500_000_000  # a paused stream's last samples leave this long after their window
RATE_WINDOW_TICKS = 5
FUTURE_LIMIT_NS = 10_000_000  # beyond the bound; less is clamped to the arrival
LATEST_NS = 1_000_000_000  # a suspect that is later than that says nothing about when the step was
USUAL_DELAY_SHARE, LEAST_DELAY_SHARE = 0.05, 0.0001
OUT_OF_ORDER = 0.2  # of the samples, from which on one's place after another says nothing
FLOOD_S = 15.0  # a network's outage, too, ends with many samples at once


class Output(Protocol):
    """One stream in one sink. ``dropped`` counts by reason what the sink could not pass on."""

    samples_out: int
    dropped: Counter[str]

    def push(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        """Takes a sample that means host time ``host_ns``. Must not block and must not raise on a slow reader."""


@runtime_checkable
class Batching(Protocol):
    """An output whose samples may leave together where they have come together."""

    def begin_batch(self) -> None: ...

    def end_batch(self) -> None:
        """Everything that was pushed since `begin_batch` leaves."""


class Owner(Protocol):
    """What a stream needs of its device."""

    clock: DeviceClock

    @property
    def hold_ns(self) -> int:
        """For how long samples wait for a clock."""

    @property
    def flood_hz(self) -> float:
        """How many samples a second are taken of one stream."""

    def epoch_changed(self, now_ns: int) -> None:
        """The clock's epoch is another one than before; called before the sample that showed it is dealt with."""


class StreamInput:
    """One stream of a device. Everything in it is bounded, and what is dropped is counted by its reason."""

    def __init__(self, device: Owner, descriptor: StreamDescriptor, outputs: dict[str, Output]) -> None:
        self.descriptor = descriptor
        self.outputs = dict(outputs)
        self.samples_in = 0
        self.last_received_ns: int | None = None
        self.dropped: Counter[str] = Counter()
        self.late = 0  # left after others that are newer, with the stamp of these
        self._device = device
        self._clock = device.clock
        self._track = Track() if descriptor.arrivals_bound_clock else None
        self._pushes: list[Callable[[Sample, Mapped, int], None]] = [output.push for output in outputs.values()]
        self._removed_out = 0  # samples that sinks took that are gone
        self._room = FLOOD_S * device.flood_hz
        self._flooded = 0
        self.flooding = False  # more came in the last second than is taken
        self._hold_max = HOLD_MAX_FRAMES if descriptor.kind is StreamKind.VIDEO else HOLD_MAX_SAMPLES
        self._held: deque[Sample] = deque()  # wait for the clock's lock
        self._suspects: deque[Sample] = deque()  # wait to be right or wrong
        self._suspects_epoch = 0
        self._reorder: list[tuple[int, int, Sample, Mapped]] = []
        self._reordered = 0
        self._newest_host_ns = 0
        self._released_host_ns = 0
        self._epoch = device.clock.epoch
        self._two_clocks: TwoClocks | None = None  # soon after that has changed
        self._usual_delay_ns: float | None = None
        self._least_delay_ns = 0.0
        self._newest_device_ns: int | None = None
        self._newest_epoch = self._epoch
        self._last_host_ns = 0
        self._span_ns = 0
        self._intervals = 0
        self._backwards = 0  # of them
        self._counted_out = 0
        self._out = 0.0  # samples out of one sink, on average
        self._ticks: deque[tuple[int, int, float]] = deque(maxlen=RATE_WINDOW_TICKS + 1)

    def sample(self, device_ns: int, received_ns: int, payload: Payload) -> None:
        """Takes one datum as it was received; ``payload`` fits the descriptor's channels."""
        self.samples_in += 1
        self.last_received_ns = received_ns
        self._room -= 1.0
        if self._room < 0.0:
            self.dropped["flood"] += 1
            return
        sample = Sample(self.descriptor, device_ns, received_ns, payload)
        answer = Arrival.FITS
        if self._track is not None:
            answer = self._clock.arrival(device_ns, received_ns, self._track)
            if self._clock.epoch != self._epoch:
                self._device.epoch_changed(received_ns)
        if not self._clock.locked:
            self._hold(sample)
        elif answer is Arrival.SUSPECT:
            self._suspect(sample)
        elif answer is Arrival.STALE:
            self._map(sample, self._clock.map_previous(device_ns))
        else:
            if self._suspects:
                self._resolve()
            self._take(sample)

    def batch(self, samples: Sequence[tuple[int, Payload]], received_ns: int) -> None:
        """Takes what has come in one message: pairs of device time and payload."""
        outputs = [output for output in self.outputs.values() if isinstance(output, Batching)]
        for output in outputs:
            output.begin_batch()
        try:
            for device_ns, payload in samples:
                self.sample(device_ns, received_ns, payload)
        finally:
            for output in outputs:
                output.end_batch()

    # --- before it is mapped --------------------------------------------------------------------------------------

    def _hold(self, sample: Sample) -> None:
        if not self._device.hold_ns or len(self._held) >= self._hold_max:
            self.dropped["clock_unlocked"] += 1
            if not self._held or self.descriptor.kind is not StreamKind.VIDEO:
                return
            self._held.popleft()
        self._held.append(sample)
        self._expire(sample.received_ns)

    def _suspect(self, sample: Sample) -> None:
        """A corrupt stamp, or a clock that was set: what comes next tells which, and nothing is mapped wrongly."""
        if not self._suspects:
            self._suspects_epoch = self._clock.epoch
        if len(self._suspects) >= self._hold_max:
            self._suspects.popleft()
            self.dropped["impossible_stamp"] += 1
        self._suspects.append(sample)

    def _resolve(self) -> None:
        """Maps suspects once an epoch has begun in which they are right; drops them once they were wrong."""
        if self._clock.epoch != self._suspects_epoch:
            suspects, self._suspects = self._suspects, deque()
            for sample in suspects:
                self._take(sample)
        elif not self._clock.doubting and self._track is not None:
            self.dropped["impossible_stamp"] += len(self._suspects)
            self._suspects.clear()

    def _expire(self, now_ns: int) -> None:
        """Drops what has waited for too long."""
        oldest_ns = now_ns - self._device.hold_ns
        for waiting, reason in ((self._held, "clock_unlocked"), (self._suspects, "impossible_stamp")):
            while waiting and waiting[0].received_ns < oldest_ns:
                waiting.popleft()
                self.dropped[reason] += 1

    # --- mapped -----------------------------------------------------------------------------------------------------

    def _take(self, sample: Sample) -> None:
        """A sample whose clock is locked and whose stamp no arrival speaks against."""
        mapped = self._clock.map(sample.device_ns)
        if mapped is not None and self._two_clocks is not None:
            mapped = self._of_its_epoch(sample, mapped, self._two_clocks)
        if mapped is not None and mapped.host_ns - sample.received_ns > mapped.bound_ns + FUTURE_LIMIT_NS:
            self._clock.request_burst()
            self._suspect(sample)
            return
        self._map(sample, mapped)

    def _of_its_epoch(self, sample: Sample, mapped: Mapped, two_clocks: TwoClocks) -> Mapped:
        """Soon after a step a stream that is late still has stamps from before."""
        if sample.received_ns - two_clocks.began_ns > OTHER_EPOCH_NS:
            self._two_clocks = None
            return mapped
        before = self._clock.map_previous(sample.device_ns)
        if before is None or self._usual_delay_ns is None:
            return mapped
        is_of_now = two_clocks.is_of_now(sample.device_ns, sample.received_ns, mapped, before, self._usual_delay_ns)
        return mapped if is_of_now else before

    def _map(self, sample: Sample, mapped: Mapped | None) -> None:
        if mapped is None:
            self.dropped["clock_epoch"] += 1
            return
        # Nothing that was received can have happened later than that.
        host_ns = min(mapped.host_ns, sample.received_ns)
        self._count(sample.device_ns, mapped.epoch)
        if self.descriptor.reorder_window_ns:
            self._put_in_order(host_ns, sample, mapped)
        elif self._emit(host_ns, sample, mapped):
            self._note_delay(sample.received_ns - host_ns)

    def _note_delay(self, delay_ns: int) -> None:
        """Of samples that leave: what a clock that was set makes of others is no delay."""
        if self._track is not None:  # `TwoClocks` asks for it, and is not for these
            return
        usual_ns = self._usual_delay_ns
        if usual_ns is None:
            self._usual_delay_ns = self._least_delay_ns = delay_ns
            return
        self._usual_delay_ns = usual_ns + USUAL_DELAY_SHARE * (delay_ns - usual_ns)
        more_ns = delay_ns - self._least_delay_ns
        self._least_delay_ns += more_ns if more_ns < 0 else LEAST_DELAY_SHARE * more_ns

    def _count(self, device_ns: int, epoch: int) -> None:
        newest = self._newest_device_ns
        if epoch != self._newest_epoch:  # stamps of two clocks have no distance
            self._newest_epoch, newest = epoch, None
        if newest is not None:
            self._intervals += 1
            if device_ns > newest:
                self._span_ns += device_ns - newest
            else:
                self._backwards += 1
        if newest is None or device_ns > newest:
            self._newest_device_ns = device_ns

    def _put_in_order(self, host_ns: int, sample: Sample, mapped: Mapped) -> None:
        if host_ns < self._released_host_ns:
            if self.descriptor.keep_late:
                self.late += 1
                self._emit(self._released_host_ns, sample, mapped)
            else:
                self.dropped["late"] += 1
            return
        self._note_delay(sample.received_ns - host_ns)
        self._reordered += 1  # keeps equal stamps as they came
        heapq.heappush(self._reorder, (host_ns, self._reordered, sample, mapped))
        self._newest_host_ns = max(self._newest_host_ns, host_ns)
        until = self._newest_host_ns - self.descriptor.reorder_window_ns
        while self._reorder and (self._reorder[0][0] <= until or len(self._reorder) > REORDER_MAX_SAMPLES):
            self._release()

    def _release(self) -> None:
        host_ns, _, sample, mapped = heapq.heappop(self._reorder)
        self._released_host_ns = host_ns
        self._emit(host_ns, sample, mapped)

    def _emit(self, host_ns: int, sample: Sample, mapped: Mapped) -> bool:
        """Whether it has left."""
        host_ns -= self.descriptor.latency_ns
        if host_ns < self._last_host_ns and self.descriptor.in_order:
            # A new epoch's mapping may overlap the old one's by their bounds; more is a device that went backwards.
            if self._last_host_ns - host_ns > 2 * mapped.bound_ns:
                self.dropped["backwards"] += 1
                if self._track is not None:
                    self._clock.request_burst()
                return False
            host_ns = self._last_host_ns
        self._last_host_ns = host_ns
        for push in self._pushes:
            push(sample, mapped, host_ns)
        return True

    # --- called by the device ------------------------------------------------------------------------------------

    def add_output(self, sink: str, output: Output) -> None:
        """From the next sample on this output gets all of them, too."""
        self.outputs[sink] = output
        self._pushes = [output.push for output in self.outputs.values()]

    def remove_output(self, sink: str) -> None:
        """The sink of that name gets nothing more; what it counted goes with it."""
        if (output := self.outputs.pop(sink, None)) is not None:
            self._removed_out += output.samples_out
            self._pushes = [output.push for output in self.outputs.values()]

    def clock_locked(self) -> None:
        held, self._held = self._held, deque()
        for sample in held:
            self._take(sample)

    def first_of_epoch(self) -> tuple[int, int] | None:
        """Host and device time of the earliest suspect that the new clock explains."""
        mapped = ((sample, self._clock.map(sample.device_ns)) for sample in self._suspects)
        possible = [
            (m.host_ns, s.device_ns) for s, m in mapped if m and -m.bound_ns <= s.received_ns - m.host_ns < LATEST_NS
        ]
        return min(possible, default=None)

    def begin_epoch(self, now_ns: int, first: tuple[int, int] | None) -> None:
        """The device's clock is another one now; ``first``: host and device time of its first stamp, if one is known.

        What waits to be put in order is mapped already.
        """
        self._epoch = self._clock.epoch
        in_order = self._intervals and self._backwards < self._intervals * OUT_OF_ORDER
        usual_ns = self._span_ns // self._intervals if in_order else 0
        if self._track is not None:
            self._track.usual_ns = usual_ns
        else:
            self._two_clocks = TwoClocks(
                now_ns, self._clock.step_ns, first, usual_ns, self._least_delay_ns, self._newest_device_ns
            )
        if self._held:  # of which clock each of them is, nobody knows: there was no lock yet to judge by
            self.dropped["clock_epoch"] += len(self._held)
            self._held.clear()
        if self._suspects and self._clock.locked:
            self._resolve()

    def forget_clock(self) -> None:
        """The device is another one now, or begins anew: nothing that waits for its old clock can be mapped."""
        self.drain()
        dropped = len(self._held) + len(self._suspects)
        if dropped:
            self.dropped["clock_epoch"] += dropped
        self._held.clear()
        self._suspects.clear()
        if self._track is not None:  # its clock may go on as it was, and nothing of before is on its way
            self._track = Track()

    def drain(self) -> None:
        """Releases everything that waits to be put in order."""
        while self._reorder:
            self._release()

    def close(self) -> None:
        """Lets everything that can leave do so; what still waits for a clock has waited in vain."""
        self.drain()
        for waiting, reason in ((self._held, "clock_unlocked"), (self._suspects, "impossible_stamp")):
            if waiting:
                self.dropped[reason] += len(waiting)
                waiting.clear()

    def tick(self, now_ns: int) -> bool:
        """Once a second. Whether a flood has begun since the last time."""
        if self._suspects and self._clock.locked:
            self._resolve()
        self._expire(now_ns)
        patience_ns = self.descriptor.reorder_window_ns + REORDER_PATIENCE_NS
        while self._reorder and self._reorder[0][2].received_ns < now_ns - patience_ns:
            self._release()
        seconds = (now_ns - self._ticks[-1][0]) / 1e9 if self._ticks else 0.0
        samples_out = self._removed_out + sum(o.samples_out for o in self.outputs.values())
        self._out += (samples_out - self._counted_out) / max(1, len(self.outputs))
        self._counted_out = samples_out
        self._ticks.append((now_ns, self.samples_in, self._out))
        return self._watch_flood(seconds)

    def _watch_flood(self, seconds: float) -> bool:
        limit_hz, flooded = self._device.flood_hz, self.dropped["flood"]
        self._room = min(FLOOD_S * limit_hz, max(0.0, self._room) + limit_hz * seconds)
        before, self.flooding = self.flooding, flooded > self._flooded
        self._flooded = flooded
        return self.flooding and not before

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
        return (in1 - in0) / seconds, (out1 - out0) / seconds

    def all_drops(self) -> dict[str, int]:
        drops = {reason: count for reason, count in self.dropped.items() if count}
        for sink, output in self.outputs.items():
            for reason, count in output.dropped.items():
                drops[f"{sink}_{reason}"] = count
        return drops
