"""The simulated Companion app: its sensors, controls, recording and events, and whatever hosts ask of them.

One thread serves it: `receive` takes what has come, `turn` does what is due, and `next_due_ns` says when the next thing
is. Both directions of the path to the host can be delayed; discovery (ZRE) is not.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from typing import Any

import zmq

from bridge.simulators import companion_wire as wire
from bridge.simulators.companion_clock import AppClock, Grid
from bridge.simulators.companion_path import Path
from bridge.simulators.companion_samples import Samples, World
from bridge.simulators.companion_sensor import Producer, SimulatedSensor
from bridge.simulators.truth import TruthWriter
from bridge.simulators.zre_peer import ZreEvent, ZrePeer

_log = logging.getLogger(__name__)

TIME_ECHO = "<<time>>"
OFF_GRID = -1  # the truth's sequence of what is not on a grid

_UNKNOWN_CONTROL, _WRONG_VALUE, _REFUSED = 1, 2, 3
_MAX_BATCH = 200  # messages taken from a socket before samples get their turn: a flood must not stop them


class CompanionApp:
    """Everything that it is given stays the caller's to close. ``peer`` is its node in ZRE; None: it is in none.

    ``sensors`` have each the grid of its samples; None: it makes none of its own. One is the event sensor, one the
    hardware. ``refusal`` is what it says to those who start a recording; None: it records.
    """

    def __init__(
        self,
        *,
        commands: zmq.Socket[bytes],
        notifications: zmq.Socket[bytes],
        sensors: list[tuple[SimulatedSensor, Grid | None]],
        refusal: str | None,
        clock: AppClock,
        world: World,
        path: Path,
        truth: TruthWriter,
    ) -> None:
        self.peer: ZrePeer | None = None
        self.refusal = refusal
        self.sensors = {sensor.stream: sensor for sensor, _ in sensors}
        self.malformed = 0
        self._commands = commands
        self._notifications = notifications
        self._event, self._hardware = self.sensors["event"], self.sensors["hardware"]
        self._clock = clock
        self._path = path
        self._truth = truth
        self._samples = Samples(world, lambda: self._clock.now, self._send, truth)
        self._producers = [Producer(sensor, grid, self._samples.of(sensor)) for sensor, grid in sensors if grid]
        self._since_ns = 0  # it has been awake: nothing reaches it earlier

    # --- its place among the hosts ---

    def announce(self, streams: Iterable[str] | None = None) -> None:
        """SHOUT the attaches of these sensors, or of all, to the group."""
        for sensor in self._attached(streams):
            if self.peer is not None:
                self.peer.shout(wire.GROUP, sensor.attach.encode())

    def retire(self, streams: Iterable[str] | None = None) -> None:
        """SHOUT the detaches of these sensors, or of all, to the group."""
        for sensor in self._attached(streams):
            if self.peer is not None:
                self.peer.shout(wire.GROUP, wire.encode_detach(sensor.uuid))

    def _attached(self, streams: Iterable[str] | None) -> list[SimulatedSensor]:
        return [self.sensors[s] for s in (self.sensors if streams is None else streams) if self.sensors[s].attached]

    # --- the loop ---

    @property
    def next_due_ns(self) -> int | None:
        due_ns = self._path.next_due_ns
        for producer in self._producers:
            if producer.next_ns is not None and (due_ns is None or producer.next_ns < due_ns):
                due_ns = producer.next_ns
        return due_ns

    def receive(self) -> bool:
        """Take what is there; True when there may be more. The sockets are edge-triggered: ask until this is False."""
        if self.peer is not None:
            for _ in range(_MAX_BATCH):
                event = self.peer.receive()
                if event is None:
                    break
                self._on_zre(event)
            else:
                return True
        for _ in range(_MAX_BATCH):
            try:
                frames = self._commands.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._path.commands_up.put(frames, time.monotonic_ns())
        return True

    def turn(self) -> None:
        """Do what is due: take what arrives from hosts, make samples, and let go what is on its way to hosts."""
        self._arrive()
        self._sample()
        self._path.deliver()

    def wake(self) -> None:
        """Go on after a time in which nothing was called: the samples of that time are not made."""
        self._since_ns = time.monotonic_ns()
        for producer in self._producers:
            self._samples.pause(producer.sensor.stream)
            producer.skip_to(self._since_ns)

    def _sample(self) -> None:
        """Publish every sample whose instant has come, oldest first, late or not."""
        now_ns = time.monotonic_ns()
        while True:
            oldest, oldest_ns = None, now_ns + 1
            for producer in self._producers:
                if producer.next_ns is not None and producer.next_ns < oldest_ns:
                    oldest, oldest_ns = producer, producer.next_ns
            if oldest is None:
                return
            oldest.publish_next()

    def _send(self, sensor: SimulatedSensor, message: tuple[bytes, bytes], now_ns: int) -> bool:
        assert sensor.data is not None
        return self._path.send_data(sensor.data, [sensor.key, *message], now_ns)

    # --- hosts ---

    def _on_zre(self, event: ZreEvent) -> None:
        if event.kind == "JOIN" and event.group == wire.GROUP:
            for sensor in self._attached(None):
                if self.peer is not None:
                    self.peer.whisper(event.peer, sensor.attach.encode())
        elif event.kind == "WHISPER":
            self._path.whispers_up.put(event.content, event.received_ns)

    def _arrive(self) -> None:
        now_ns = time.monotonic_ns()
        while (whisper := self._path.whispers_up.take_due(now_ns)) is not None:
            self._on_whisper(whisper[1], max(whisper[0], self._since_ns))
        while (command := self._path.commands_up.take_due(now_ns)) is not None:
            self._on_command(command[1], max(command[0], self._since_ns))

    def _on_whisper(self, payload: bytes, arrived_ns: int) -> None:
        try:
            text, stamp_ns = wire.decode_event(payload)
        except ValueError as error:
            self._count_malformed(error)
            return
        self._publish_event(text, stamp_ns, arrived_ns)

    def _publish_event(self, text: str, stamp_ns: int | None, arrived_ns: int) -> bool:
        if not self._event.streaming:
            return False
        clock = self._clock.now
        device_ns = clock.device_ns(arrived_ns) if stamp_ns is None else stamp_ns
        instant_ns = arrived_ns if stamp_ns is None else clock.host_ns(stamp_ns)
        sent = self._send(self._event, wire.encode_event(device_ns, text), arrived_ns)
        if text != TIME_ECHO:
            self._truth.record("event", OFF_GRID, device_ns=device_ns, host_ns=instant_ns, sent=sent, payload=text)
        return True

    def _on_command(self, frames: list[bytes], arrived_ns: int) -> None:
        known = (each for each in self.sensors.values() if len(frames) == 2 and each.attached and each.key == frames[0])
        sensor = next(known, None)
        if sensor is None:
            self._count_malformed("no command for a sensor of this device")
            return
        try:
            command = wire.decode_command(frames[1])
        except ValueError as error:
            self._count_malformed(error)
            return
        if command.action == "refresh_controls":
            for control_id, control in sensor.controls.items():
                self._notify_update(sensor, control_id, control.describe(), arrived_ns)
            return
        control_id = command.control_id or ""
        control_known = sensor.controls.get(control_id)
        if control_known is None:
            self._notify_error(sensor, control_id, _UNKNOWN_CONTROL, "unknown control", arrived_ns)
        elif type(command.value) is not type(control_known.default):
            self._notify_error(sensor, control_id, _WRONG_VALUE, "value of the wrong type", arrived_ns)
        elif control_id == "local_capture" and command.value is True and self.refusal is not None:
            self._notify_error(sensor, control_id, _REFUSED, self.refusal, arrived_ns)
        else:
            self._set(sensor, control_id, command.value, arrived_ns)

    def _set(self, sensor: SimulatedSensor, control_id: str, value: bool | str, now_ns: int) -> None:
        streamed = self._streams
        sensor.controls[control_id].value = value
        if streamed != self._streams:
            before = self._clock.now
            if streamed:
                self._clock.end()
            else:
                self._clock.begin(now_ns)
            if self._clock.now != before:
                self.record_clock(now_ns)
        self._notify_update(sensor, control_id, {"value": value}, now_ns)
        for producer in self._producers:
            producer.follow(now_ns)
        if not sensor.streaming:
            self._samples.pause(sensor.stream)
        if sensor is self._hardware:
            self._record("control", now_ns, {control_id: value})

    @property
    def _streams(self) -> bool:
        return any(sensor.streaming for sensor in self.sensors.values())

    def _notify_update(self, sensor: SimulatedSensor, control_id: str, changes: dict[str, Any], now_ns: int) -> None:
        self._notify(sensor, wire.encode_update(control_id, sensor.next_notification(), changes), now_ns)

    def _notify_error(self, sensor: SimulatedSensor, control_id: str, number: int, text: str, now_ns: int) -> None:
        self._notify(sensor, wire.encode_error(control_id, sensor.next_notification(), number, text), now_ns)

    def _notify(self, sensor: SimulatedSensor, notification: bytes, now_ns: int) -> None:
        self._path.notifications_down.put((self._notifications, [sensor.key, notification]), now_ns)

    def _count_malformed(self, reason: object) -> None:
        self.malformed += 1
        _log.debug("ignored: %s", reason)

    # --- whoever holds the phone ---

    def make_event(self, text: str) -> bool:
        """An event is made on the phone, now. False: the event sensor does not stream, and nobody hears of it."""
        return self._publish_event(text, None, time.monotonic_ns())

    def record(self, on: bool) -> None:
        """A recording is started or stopped on the phone; it asks nobody."""
        self._set(self._hardware, "local_capture", on, time.monotonic_ns())

    def stop_streaming(self, streams: Iterable[str] | None = None) -> None:
        """These sensors, or all, stop streaming, and hosts are told."""
        for sensor in self._attached(streams):
            if sensor.streaming:
                self._set(sensor, "streaming", False, time.monotonic_ns())
        self._path.deliver()

    def step_clock(self, by_ns: int) -> None:
        """The app's clock jumps, while everything goes on."""
        self._clock.step(by_ns)
        self.record_clock(time.monotonic_ns())

    def record_clock(self, now_ns: int) -> None:
        """Write the clock as it is from now on to the truth."""
        self._record("clock", now_ns, self._clock.now.describe())

    def _record(self, stream: str, now_ns: int, payload: dict[str, Any]) -> None:
        device_ns, text = self._clock.now.device_ns(now_ns), json.dumps(payload)
        self._truth.record(stream, OFF_GRID, device_ns=device_ns, host_ns=now_ns, sent=True, payload=text)
