"""A minimal NDSI host for tests: raw pyzmq, struct and json, sharing no reader with the bridge or the simulator.

ZRE itself is pyre's, so the loopback node of `bridge.simulators.zre_peer` carries it here as well.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from bridge.simulators.zre_peer import ZrePeer, zre_address

GROUP = "pupil-mobile-v4"
DEADLINE_S = 15.0


def free_beacon_port() -> int:
    """A UDP port of loopback's broadcast address that nobody uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.255.255.255", 0))
        return int(probe.getsockname()[1])


@dataclass
class Simulator:
    """A running simulator: its process and what its ready line said."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]

    def command(self, line: str) -> dict[str, Any]:
        """Its answer to a command; it must have been started with ``--control -``."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(_line(self.process, f"no answer to {line!r}"))

    def done(self, line: str) -> dict[str, Any]:
        """What the only device is like after a command that must succeed."""
        answer = self.command(line)
        assert answer["ok"], answer
        (device,) = answer["devices"]
        return device


def _line(process: subprocess.Popen[bytes], otherwise: str) -> bytes:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
    assert readable, otherwise
    return process.stdout.readline()


@contextmanager
def simulator(*arguments: object) -> Iterator[Simulator]:
    """`python -m bridge.simulators.companion` with these arguments, killed at the end if it still runs."""
    command = [sys.executable, "-m", "bridge.simulators.companion", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Simulator(process, json.loads(_line(process, "the simulator did not become ready")))
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@dataclass
class Datum:
    """A data message as it came, and when (CLOCK_MONOTONIC)."""

    header: bytes
    body: bytes
    received_ns: int

    @property
    def gaze(self) -> tuple[int, list[float]]:
        """Device stamp and position."""
        return struct.unpack("<Q", self.header)[0], list(struct.unpack("<ff", self.body))

    @property
    def event(self) -> tuple[int, str]:
        """Device stamp and text."""
        stamp_ns, length, encoding = struct.unpack("<qii", self.header)
        assert encoding == 0
        assert length == len(self.body)
        return stamp_ns, self.body.decode("utf-8")


@dataclass
class Sensor:
    """An attached sensor: sockets to it and everything that it said."""

    attach: dict[str, Any]
    notify: zmq.Socket[bytes]
    command: zmq.Socket[bytes]
    data: zmq.Socket[bytes] | None
    notifications: list[dict[str, Any]] = field(default_factory=list)
    received: list[Datum] = field(default_factory=list)

    @property
    def key(self) -> bytes:
        return str(self.attach["sensor_uuid"]).encode()

    def send(self, **command: Any) -> None:
        self.command.send_multipart([self.key, json.dumps(command).encode()])

    def said(self, subject: str, control_id: str) -> list[dict[str, Any]]:
        return [n for n in self.notifications if (n["subject"], n["control_id"]) == (subject, control_id)]

    @property
    def controls(self) -> dict[str, dict[str, Any]]:
        merged: dict[str, dict[str, Any]] = {}
        for notification in self.notifications:
            if notification["subject"] == "update":
                merged.setdefault(notification["control_id"], {}).update(notification["changes"])
        return merged


class Host:
    """Joins the group on loopback, keeps every ZRE message, and opens sensors."""

    def __init__(self, beacon_port: int) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.peer = ZrePeer(
            self.context, zre_address("127.0.0.1", beacon_port), name="test host", identity=uuid.uuid4()
        )
        self.peer.start(GROUP)
        self.messages: list[tuple[uuid.UUID, dict[str, Any]]] = []
        self.kinds: list[tuple[str, uuid.UUID]] = []
        self.names: dict[uuid.UUID, str] = {}
        self.sensors: list[Sensor] = []

    def close(self) -> None:
        for sensor in self.sensors:
            for each in (sensor.notify, sensor.command, sensor.data):
                if each is not None:
                    each.close(linger=0)
        assert self.peer.stop()
        self.context.term()

    def pump(self, timeout_s: float) -> None:
        """Wait for something on any socket, then read all of them until empty."""
        poller = zmq.Poller()
        poller.register(self.peer.events, zmq.POLLIN)
        for sensor in self.sensors:
            poller.register(sensor.notify, zmq.POLLIN)
            if sensor.data is not None:
                poller.register(sensor.data, zmq.POLLIN)
        poller.poll(timeout_s * 1000)
        for sensor in self.sensors:
            if sensor.data is not None:
                for header, body in _drain(sensor.data, sensor.key):
                    sensor.received.append(Datum(header, body, time.monotonic_ns()))
            sensor.notifications.extend(json.loads(payload) for (payload,) in _drain(sensor.notify, sensor.key))
        while (event := self.peer.receive()) is not None:
            self.kinds.append((event.kind, event.peer))
            self.names[event.peer] = event.name
            if event.content:
                self.messages.append((event.peer, json.loads(event.content)))

    def until(self, condition: Callable[[], object], what: str, *, ask: Callable[[], object] | None = None) -> None:
        """Pump until the condition holds; ``ask`` is called four times a second meanwhile. Fails after a deadline."""
        deadline, ask_at = time.monotonic() + DEADLINE_S, 0.0
        while not condition():
            now = time.monotonic()
            assert now < deadline, f"waited {DEADLINE_S:g} s for {what}"
            if ask is not None and now >= ask_at:
                ask()
                ask_at = now + 0.25
            self.pump(0.05)

    def attaches(self, device: uuid.UUID) -> dict[str, dict[str, Any]]:
        """The attaches of a device so far, by sensor type."""
        return {m["sensor_type"]: m for peer, m in self.messages if peer == device and m["subject"] == "attach"}

    def attached(self, device: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Wait for the attaches of all sensors in ``device["sensor_uuids"]``; the newest ones, by stream."""
        peer = uuid.UUID(device["zre_uuid"])

        def found() -> dict[str, dict[str, Any]]:
            said = [m for sender, m in self.messages if sender == peer and m["subject"] == "attach"]
            newest = {m["sensor_uuid"]: m for m in said}
            return {stream: newest[key] for stream, key in device["sensor_uuids"].items() if key in newest}

        self.until(lambda: len(found()) == len(device["sensor_uuids"]), "all attaches")
        return found()

    def detached(self, device: dict[str, Any]) -> set[str]:
        """UUIDs of the sensors that a device has said to be gone."""
        peer = uuid.UUID(device["zre_uuid"])
        return {m["sensor_uuid"] for sender, m in self.messages if sender == peer and m["subject"] == "detach"}

    def wait_attached(self, ready: dict[str, Any]) -> dict[str, dict[str, Any]]:
        device = uuid.UUID(ready["zre_uuid"])
        self.until(lambda: len(self.attaches(device)) == len(ready["sensors"]), "all attaches")
        return self.attaches(device)

    def open(self, attach: dict[str, Any]) -> Sensor:
        """Connect to a sensor and ask for its controls until they are there."""
        notify, data = self.context.socket(zmq.SUB), None
        notify.connect(attach["notify_endpoint"])
        notify.subscribe(attach["sensor_uuid"])
        command = self.context.socket(zmq.PUSH)
        command.connect(attach["command_endpoint"])
        if "data_endpoint" in attach:
            data = self.context.socket(zmq.SUB)
            data.set_hwm(100_000)
            data.connect(attach["data_endpoint"])
            data.subscribe(attach["sensor_uuid"])
        sensor = Sensor(attach, notify, command, data)
        self.sensors.append(sensor)
        self.until(lambda: sensor.controls, "controls", ask=lambda: sensor.send(action="refresh_controls"))
        return sensor

    def stream(self, sensor: Sensor, on: bool = True) -> None:
        """Set ``streaming`` and wait until the device says so."""
        before = len(sensor.notifications)
        sensor.send(action="set_control_value", control_id="streaming", value=on)
        self.until(
            lambda: any(
                n["subject"] == "update" and n["changes"].get("value") is on for n in sensor.notifications[before:]
            ),
            f"streaming to be {on}",
        )

    def whisper(self, ready: dict[str, Any], message: object) -> None:
        """Whisper bytes as they are, anything else as JSON."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.peer.whisper(uuid.UUID(ready["zre_uuid"]), payload)


@contextmanager
def host(beacon_port: int) -> Iterator[Host]:
    """A `Host`, closed at the end."""
    opened = Host(beacon_port)
    try:
        yield opened
    finally:
        opened.close()


def _drain(subscriber: zmq.Socket[bytes], key: bytes) -> Iterator[list[bytes]]:
    while True:
        try:
            frames = subscriber.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        assert frames[0] == key
        yield frames[1:]


def read_truth(path: Path, stream: str) -> list[dict[str, Any]]:
    """The truth file's lines of one stream."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["stream"] == stream]
