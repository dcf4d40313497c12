"""The simulated Companion app: sensors, controls, events and the loop that keeps its time.

One thread serves everything from one `select`, whose timeout has microseconds where ZeroMQ's poll has milliseconds.
Both directions of the path to the host can be delayed; discovery (ZRE) is not.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import zmq

from bridge.simulators import companion_wire as wire
from bridge.simulators.companion_clock import DeviceClock, Grid
from bridge.simulators.companion_samples import Samples, World
from bridge.simulators.companion_sensor import Producer, SimulatedSensor
from bridge.simulators.network import DelayLine, Loss
from bridge.simulators.truth import TruthWriter
from bridge.simulators.zre_peer import ZreEvent, ZrePeer

_log = logging.getLogger(__name__)

TIME_ECHO = "<<time>>"
OFF_GRID = -1  # the truth's sequence of an event that came from the host

_UNKNOWN_CONTROL, _WRONG_VALUE, _REFUSED = 1, 2, 3
_MAX_BATCH = 200  # messages taken from a socket before samples get their turn: a flood must not stop them
_IDLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Path:
    """The simulated network between host and device. Up is host to device."""

    whispers_up: DelayLine[bytes]
    commands_up: DelayLine[list[bytes]]
    notifications_down: DelayLine[list[bytes]]
    data_down: DelayLine[tuple[zmq.Socket[bytes], list[bytes]]]
    loss: Loss

    @property
    def next_due_ns(self) -> int | None:
        """When the next message arrives anywhere."""
        lines = (self.whispers_up, self.commands_up, self.notifications_down, self.data_down)
        return min((line.next_due_ns for line in lines if line.next_due_ns is not None), default=None)


class CompanionApp:
    """Serves hosts until it is told to stop. Everything that it is given stays the caller's to close.

    ``sensors`` are those that send data, each with the grid of its samples; None: it makes none of its own. One is the
    event sensor. ``restart_step_ns`` is added to the clock whenever the last streaming sensor stops. ``refusal`` is
    what it says to those who start a recording; None: it records.
    """

    def __init__(
        self,
        *,
        peer: ZrePeer,
        commands: zmq.Socket[bytes],
        notifications: zmq.Socket[bytes],
        sensors: list[tuple[SimulatedSensor, Grid | None]],
        hardware: SimulatedSensor,
        refusal: str | None,
        clock: DeviceClock,
        restart_step_ns: int,
        world: World,
        path: Path,
        truth: TruthWriter,
    ) -> None:
        self._peer = peer
        self._commands = commands
        self._notifications = notifications
        (self._event,) = (sensor for sensor, _ in sensors if sensor.attach.sensor_type == "event")
        self._hardware = hardware
        self.sensors = (*(sensor for sensor, _ in sensors), hardware)
        self._by_key = {sensor.key: sensor for sensor in self.sensors}
        self._refusal = refusal
        self._clock = clock
        self._restart_step_ns = restart_step_ns
        self._path = path
        self._truth = truth
        self._samples = Samples(world, lambda: self._clock, self._send, truth)
        self._producers = [
            Producer(sensor, grid, partial(self._samples.of_kind(sensor.attach.sensor_type), sensor))
            for sensor, grid in sensors
            if grid is not None
        ]
        self.malformed = 0

    def announce(self) -> None:
        """SHOUT every attach to the group."""
        for sensor in self.sensors:
            self._peer.shout(wire.GROUP, sensor.attach.encode())

    def retire(self) -> None:
        """SHOUT every detach to the group."""
        for sensor in self.sensors:
            self._peer.shout(wire.GROUP, wire.encode_detach(sensor.uuid))

    def serve(self, wakeup: socket.socket, stopped: Callable[[], bool]) -> bool:
        """Run until ``stopped()``, which is asked at least twice a second and whenever ``wakeup`` has a byte.

        False: the ZRE node died, and with it the device.
        """
        readers: list[Any] = [self._peer.events.getsockopt(zmq.FD), self._commands.getsockopt(zmq.FD), wakeup]
        while not stopped():
            if not self._peer.alive:
                return False
            more = self._receive()
            self._arrive()
            self._sample()
            self._depart()
            # Both ZeroMQ sockets were read until empty or are read again at once: their descriptors are edge-triggered.
            ready, _, _ = select.select(readers, [], [], 0 if more else self._rest_s())
            if wakeup in ready:
                wakeup.recv(4096)
        return True

    def _rest_s(self) -> float:
        due = [producer.next_ns for producer in self._producers if producer.next_ns is not None]
        path_due_ns = self._path.next_due_ns
        if path_due_ns is not None:
            due.append(path_due_ns)
        if not due:
            return _IDLE_S
        return min(_IDLE_S, max(0.0, (min(due) - time.monotonic_ns()) / 1e9))

    def _receive(self) -> bool:
        """Take what is there; True when there may be more."""
        for _ in range(_MAX_BATCH):
            event = self._peer.receive()
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

    def _on_zre(self, event: ZreEvent) -> None:
        if event.kind == "JOIN" and event.group == wire.GROUP:
            for sensor in self.sensors:
                self._peer.whisper(event.peer, sensor.attach.encode())
        elif event.kind == "WHISPER":
            self._path.whispers_up.put(event.content, event.received_ns)

    def _arrive(self) -> None:
        now_ns = time.monotonic_ns()
        while (whisper := self._path.whispers_up.take_due(now_ns)) is not None:
            self._on_whisper(whisper[1], whisper[0])
        while (command := self._path.commands_up.take_due(now_ns)) is not None:
            self._on_command(command[1], command[0])

    def _on_whisper(self, payload: bytes, arrived_ns: int) -> None:
        try:
            text, stamp_ns = wire.decode_event(payload)
        except ValueError as error:
            self._count_malformed(error)
            return
        if not self._event.streaming:
            return
        device_ns = self._clock.device_ns(arrived_ns) if stamp_ns is None else stamp_ns
        instant_ns = arrived_ns if stamp_ns is None else self._clock.host_ns(stamp_ns)
        sent = self._send(self._event, wire.encode_event(device_ns, text), arrived_ns)
        if text != TIME_ECHO:
            self._truth.record("event", OFF_GRID, device_ns=device_ns, host_ns=instant_ns, sent=sent, payload=text)

    def _on_command(self, frames: list[bytes], arrived_ns: int) -> None:
        sensor = self._by_key.get(frames[0]) if len(frames) == 2 else None
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
        known = sensor.controls.get(control_id)
        if known is None:
            self._notify_error(sensor, control_id, _UNKNOWN_CONTROL, "unknown control", arrived_ns)
        elif type(command.value) is not type(known.default):
            self._notify_error(sensor, control_id, _WRONG_VALUE, "value of the wrong type", arrived_ns)
        elif control_id == "local_capture" and command.value is True and self._refusal is not None:
            self._notify_error(sensor, control_id, _REFUSED, self._refusal, arrived_ns)
        else:
            streamed = self._streams
            known.value = command.value
            if streamed and not self._streams:
                self._clock = replace(self._clock, offset_ns=self._clock.offset_ns + self._restart_step_ns)
            self._notify_update(sensor, control_id, {"value": known.value}, arrived_ns)
            for producer in self._producers:
                producer.follow(arrived_ns)
            if not sensor.streaming:
                self._samples.paused(sensor.attach.sensor_type)
            if sensor is self._hardware:
                self._record_control(control_id, command.value, arrived_ns)

    def _record_control(self, control_id: str, value: object, arrived_ns: int) -> None:
        device_ns, text = self._clock.device_ns(arrived_ns), json.dumps({control_id: value})
        self._truth.record("control", OFF_GRID, device_ns=device_ns, host_ns=arrived_ns, sent=True, payload=text)

    @property
    def _streams(self) -> bool:
        return any(sensor.streaming for sensor in self.sensors)

    def _notify_update(self, sensor: SimulatedSensor, control_id: str, changes: dict[str, Any], now_ns: int) -> None:
        update = wire.encode_update(control_id, sensor.next_notification(), changes)
        self._path.notifications_down.put([sensor.key, update], now_ns)

    def _notify_error(self, sensor: SimulatedSensor, control_id: str, number: int, text: str, now_ns: int) -> None:
        error = wire.encode_error(control_id, sensor.next_notification(), number, text)
        self._path.notifications_down.put([sensor.key, error], now_ns)

    def _sample(self) -> None:
        """Publish every sample whose instant has come, oldest first, late or not."""
        now_ns = time.monotonic_ns()
        while True:
            due = [p for p in self._producers if p.next_ns is not None and p.next_ns <= now_ns]
            if not due:
                return
            min(due, key=lambda producer: producer.next_ns or 0).publish_next()

    def _send(self, sensor: SimulatedSensor, message: tuple[bytes, bytes], now_ns: int) -> bool:
        """Hand a data message to the network; without a delay it leaves at once. False: it is lost."""
        assert sensor.data is not None
        if self._path.loss.strikes():
            return False
        accepted = self._path.data_down.put((sensor.data, [sensor.key, *message]), now_ns)
        self._depart()
        return accepted

    def _depart(self) -> None:
        now_ns = time.monotonic_ns()
        while (notification := self._path.notifications_down.take_due(now_ns)) is not None:
            self._notifications.send_multipart(notification[1])
        while (data := self._path.data_down.take_due(now_ns)) is not None:
            data[1][0].send_multipart(data[1][1])

    def _count_malformed(self, reason: object) -> None:
        self.malformed += 1
        _log.debug("ignored: %s", reason)
