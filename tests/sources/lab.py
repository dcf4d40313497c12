"""A pipeline whose one sink remembers everything, and a hand-made NDSI phone, for tests of sources."""

from __future__ import annotations

import asyncio
import json
import struct
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import zmq

from bridge.clock import Mapped
from bridge.pipeline import ClockEvent, ClockStatus
from bridge.streams import DeviceDescriptor, Sample, StreamDescriptor
from tests.sources.zre_peer import HELLO, PING, PING_OK, WHISPER, RawPeer, until

DEVICE_OFFSET_NS = 1_700_000_000_000_000_000
TIME_ECHO = "<<time>>"
TIME_SYNC = "lsl.time_sync."


class RecordingOutput:
    """One stream of the `RecordingSink`."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.host_ns: list[int] = []
        self.samples_out = 0
        self.dropped: Counter[str] = Counter()

    def push(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        self.samples.append(sample)
        self.host_ns.append(host_ns)
        self.samples_out += 1

    @property
    def payloads(self) -> list[Any]:
        return [sample.payload for sample in self.samples]


class RecordingSink:
    """Keeps what it is given, by device and stream."""

    name = "recording"

    def __init__(self) -> None:
        self.streams: dict[tuple[str, str], RecordingOutput] = {}
        self.devices: list[str] = []
        self.events: list[tuple[str, str]] = []

    def open_device(self, device: DeviceDescriptor) -> None:
        self.devices.append(device.name)

    def open_stream(self, stream: StreamDescriptor) -> RecordingOutput:
        made = self.streams[stream.device.name, stream.name] = RecordingOutput()
        return made

    def clock_status(self, device: DeviceDescriptor, status: ClockStatus) -> None:
        pass

    def clock_event(self, device: DeviceDescriptor, event: ClockEvent) -> None:
        self.events.append((device.name, event.text))

    def close(self) -> None:
        pass


def device_time(host_ns: int | None = None) -> int:
    """The clock of every phone here: the host's, far away."""
    return (time.monotonic_ns() if host_ns is None else host_ns) + DEVICE_OFFSET_NS


def gaze_frames(device_ns: int, x: float, y: float) -> list[bytes]:
    return [struct.pack("<Q", device_ns), struct.pack("<ff", x, y)]


def event_frames(device_ns: int, text: str) -> list[bytes]:
    body = text.encode()
    return [struct.pack("<qii", device_ns, len(body), 0), body]


@dataclass
class RawSensor:
    """The sockets of one sensor. XPUB sockets tell who subscribes: ``subscribed`` counts, minus those that left."""

    uuid: str
    kind: str
    name: str
    notify: zmq.Socket[bytes]
    command: zmq.Socket[bytes]
    data: zmq.Socket[bytes]
    commands: list[dict[str, Any]] = field(default_factory=list)
    subscribed: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    streaming: bool = False
    controls: dict[str, Any] = field(default_factory=dict)  # those besides streaming
    refusals: dict[str, str] = field(default_factory=dict)  # by control, what it says to those who set it
    unanswered: set[str] = field(default_factory=set)  # controls whose setting it does not answer
    sequence: int = 0
    ignore_commands: int = 0

    def attach(self, **changes: Any) -> bytes:
        fields = {
            "subject": "attach",
            "sensor_name": self.name,
            "sensor_uuid": self.uuid,
            "sensor_type": self.kind,
            "notify_endpoint": _endpoint(self.notify),
            "command_endpoint": _endpoint(self.command),
            "data_endpoint": _endpoint(self.data),
            **changes,
        }
        return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()

    def detach(self) -> bytes:
        return json.dumps({"subject": "detach", "sensor_uuid": self.uuid}).encode()

    def send(self, frames: Iterable[bytes]) -> None:
        self.data.send_multipart([self.uuid.encode(), *frames])

    def say(self, *frames: bytes) -> None:
        self.notify.send_multipart([self.uuid.encode(), *frames])

    def update(self, control_id: str, value: Any) -> None:
        self.sequence += 1
        changes = {"value": value, "dtype": "bool"}
        message = {"subject": "update", "control_id": control_id, "seq": self.sequence, "changes": changes}
        self.say(json.dumps(message).encode())

    def error(self, control_id: str | None, text: str) -> None:
        self.sequence += 1
        message = {"subject": "error", "control_id": control_id, "seq": self.sequence, "error_no": 1, "error_str": text}
        self.say(json.dumps(message).encode())

    def asked(self, action: str) -> int:
        return sum(command["action"] == action for command in self.commands)

    def serve(self) -> None:
        """Takes in subscriptions and commands, and answers as an app does."""
        for name, socket in (("notify", self.notify), ("data", self.data)):
            while socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                message = socket.recv()
                if message[1:] == self.uuid.encode():
                    self.subscribed[name] += 1 if message[:1] == b"\x01" else -1
                    self.seen[name] += message[:1] == b"\x01"
        while self.command.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            sensor_uuid, payload = self.command.recv_multipart()
            if sensor_uuid != self.uuid.encode():
                continue  # a made-up sensor at the same endpoint
            command = json.loads(payload)
            self.commands.append(command)
            if self.ignore_commands:
                self.ignore_commands -= 1
            elif command["action"] == "refresh_controls":
                if self.kind != "hardware":
                    self.update("streaming", self.streaming)
                for control_id, value in self.controls.items():
                    self.update(control_id, value)
            elif command["control_id"] == "streaming":
                self.streaming = command["value"]
                self.update("streaming", self.streaming)
            elif command["control_id"] in self.refusals:
                self.error(command["control_id"], self.refusals[command["control_id"]])
            elif command["control_id"] in self.controls:
                self.controls[command["control_id"]] = command["value"]
                if command["control_id"] not in self.unanswered:
                    self.update(command["control_id"], command["value"])


def _endpoint(socket: zmq.Socket[bytes]) -> str:
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


class RawPhone(RawPeer):
    """A phone of raw sockets. `live` makes it serve; ``echoes`` is how often it answers a ping."""

    def __init__(self, beacon_port: int, name: str = "Raw", identity: uuid.UUID | None = None) -> None:
        super().__init__(beacon_port, name, identity)
        self.sensors: list[RawSensor] = []
        self.echoes = 1
        self.echo_offsets_ns = [0, 0, 0]
        self.pings = 0
        self.told: list[dict[str, Any]] = []  # events that are no pings, and none of time sync
        self.time_syncs: list[tuple[float, dict[str, Any]]] = []  # those, and when they came by time.monotonic()
        self.publishes_time_syncs = False  # as an app does; most tests count the events that they make
        self._handled = 0
        self._task: asyncio.Task[None] | None = None
        self.gaze = self.sensor("gaze", "Gaze")
        self.event = self.sensor("event", "Event")
        self.hardware = self.sensor("hardware", "Hardware")

    def sensor(self, kind: str, name: str) -> RawSensor:
        sockets = [self._context.socket(each) for each in (zmq.XPUB, zmq.PULL, zmq.XPUB)]
        for each in sockets:
            if each.type == zmq.XPUB:
                each.setsockopt(zmq.XPUB_VERBOSER, 1)
                each.set_hwm(100_000)
            each.bind("tcp://127.0.0.1:*")
        made = RawSensor(str(uuid.uuid4()), kind, name, *sockets)
        self.sensors.append(made)
        return made

    def live(self) -> None:
        """From now on it serves whoever asks, until `end`."""
        self._task = asyncio.create_task(self._live())

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self.close()

    async def _live(self) -> None:
        while True:
            self.serve()
            await asyncio.sleep(0.001)

    def serve(self) -> None:
        for sensor in self.sensors:
            sensor.serve()
        messages = self.pump()
        fresh, self._handled = messages[self._handled :], len(messages)
        for message in fresh:
            if message.kind == PING:
                self.say(PING_OK)
            elif message.kind == WHISPER:
                event = json.loads(message.content[0])
                if event["name"].startswith(TIME_SYNC):
                    self.time_syncs.append((time.monotonic(), event))
                    if self.publishes_time_syncs:
                        self.event.send(event_frames(device_time(), event["name"]))
                    continue
                if event["name"] != TIME_ECHO:
                    self.told.append(event)
                    stamp_ns = event["timestamp"]
                    self.event.send(event_frames(device_time() if stamp_ns is None else stamp_ns, event["name"]))
                    continue
                assert event == {"name": TIME_ECHO, "timestamp": None}
                self.pings += 1
                for offset_ns in self.echo_offsets_ns[: self.echoes]:
                    self.event.send(event_frames(device_time() + offset_ns, TIME_ECHO))

    async def attached(self) -> None:
        """Is found, announces its three sensors, and waits until they are subscribed to and stream."""
        await self.meet()
        for sensor in (self.gaze, self.event, self.hardware):
            self.whisper(sensor.attach(data_endpoint=None) if sensor.kind == "hardware" else sensor.attach())
        await self.streams()

    async def leaves(self) -> None:
        """Says goodbye, and waits until nobody listens to it any more."""
        self.beacon(port=0)
        await self.unheard()

    async def unheard(self) -> None:
        """Waits until nobody listens to it any more."""
        for sensor in self.sensors:
            await until(lambda s=sensor: not any(s.subscribed.values()), f"nobody listens to {sensor.kind}")

    async def streams(self) -> None:
        for sensor in (self.gaze, self.event):
            await until(
                lambda s=sensor: s.streaming and s.subscribed["data"] == 1 and s.subscribed["notify"] == 1,
                f"{sensor.kind} streams",
            )

    def greetings(self) -> int:
        return len(self.got(HELLO))
