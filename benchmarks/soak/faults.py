"""The faults of a soak. Each is a generator that yields how many seconds it wants to wait until it goes on.

So one loop can have several going while it samples. ``Stage`` is what a fault may touch; it says when a device is down
and up again, so that somebody else can judge how soon it streams.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM
from typing import Any, Protocol

import msgspec
import zmq

from benchmarks.soak.lab import CAPTURE, Child, Lab, Tracker
from tests.sources.lab import RawPhone
from tests.sources.zre_peer import HELLO, WHISPER, RawPeer, hello

Fault = Iterator[float]
BATCH, BATCHES, PAUSE_S = 200, 25, 0.1  # messages of a flood: 2000 a second for two and a half seconds
PATIENCE_S = 15.0
POLL_S = 0.05
FORGOTTEN_S = 4.0


USED = {"gaze", "event", "imu"}  # the sensors that the bridge has stream


class Stage(Protocol):
    """What faults need of the soak."""

    lab: Lab
    dice: random.Random
    last: dict[str, Any]  # the newest status

    def down(self, tracker: Tracker) -> None: ...

    def up(self, tracker: Tracker) -> None: ...

    def wrong(self, text: str) -> None: ...


def _waiting(stage: Stage, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> Fault:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            stage.wrong(f"not within {timeout_s:.0f} s: {what}")
            return
        yield POLL_S


# --- devices -----------------------------------------------------------------------------------------------------


def killed(stage: Stage, tracker: Tracker) -> Fault:
    """SIGKILL; soon it is back, with another clock and other identities."""
    stage.down(tracker)
    tracker.process.signal(SIGKILL)
    tracker.process.popen.wait()
    yield stage.dice.uniform(0.3, 3)
    yield from _begun_again(stage, tracker)


def departed(stage: Stage, tracker: Tracker) -> Fault:
    """Says goodbye, is silent for a while, and comes back."""
    stage.down(tracker)
    tracker.process.signal(SIGTERM)
    yield from _waiting(stage, lambda: tracker.process.popen.poll() is not None, f"{tracker.name} ends")
    yield stage.dice.uniform(3, 9)
    yield from _begun_again(stage, tracker)


def _begun_again(stage: Stage, tracker: Tracker) -> Fault:
    tracker.start()
    yield from _waiting(stage, lambda: tracker.ready, f"{tracker.name} is ready")
    stage.up(tracker)


def stopped(stage: Stage, tracker: Tracker) -> Fault:
    """A debugger, a phone that is busy: no answer and no data, then all at once."""
    stage.down(tracker)
    tracker.process.signal(SIGSTOP)
    yield stage.dice.uniform(2, 8)
    tracker.process.signal(SIGCONT)
    stage.up(tracker)


def clock_set(stage: Stage, tracker: Tracker) -> Fault:
    """Capture's clock is set with ``T``; a phone's app restarts its own, when somebody switches its sensors off."""
    if tracker.kind == "core":
        yield from _capture_set(stage, tracker)
    else:
        yield from _app_clock_restarted(stage, tracker)


def _capture_set(stage: Stage, tracker: Tracker) -> Fault:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        remote = context.socket(zmq.REQ)
        remote.connect(f"tcp://127.0.0.1:{tracker.port}")
        stage.down(tracker)
        remote.send(f"T {stage.dice.uniform(0, 1e5):.6f}".encode())
        yield from _waiting(stage, lambda: remote.poll(0), f"{tracker.name} takes its time")
        stage.up(tracker)
    finally:
        context.destroy(0)


def _app_clock_restarted(stage: Stage, tracker: Tracker) -> Fault:
    peer = RawPeer(stage.lab.beacon_port, "Soak Host")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sensors: dict[str, dict[str, str]] = {}

    def greeting() -> str | None:
        peer.beacon()
        return next((m.endpoint for m in peer.got(HELLO) if tracker.own_name.encode() in m.body), None)

    def attached() -> bool:
        for message in peer.got(WHISPER):
            fields = json.loads(message.content[0])
            if fields.get("subject") == "attach" and fields["sensor_type"] != "hardware":
                sensors[fields["sensor_type"]] = fields
        return sensors.keys() >= USED

    try:
        yield from _waiting(stage, greeting, f"{tracker.name} greets a second host")
        endpoint = greeting()
        if endpoint is None:
            return
        peer.connect(endpoint)
        peer.greet()
        yield from _waiting(stage, attached, f"{tracker.name} tells a second host of its sensors")
        stage.down(tracker)
        for fields in sensors.values():
            command = context.socket(zmq.PUSH)
            command.connect(fields["command_endpoint"])
            off = {"action": "set_control_value", "control_id": "streaming", "value": False}
            command.send_multipart([fields["sensor_uuid"].encode(), json.dumps(off).encode()])
            command.close(1000)  # it is sent all the same
        stage.up(tracker)  # the bridge switches them on again
    finally:
        peer.close()
        context.destroy(1000)


# --- readers and clients -----------------------------------------------------------------------------------------


def reader_stopped(stage: Stage, reader: Child) -> Fault:
    reader.signal(SIGSTOP)
    yield stage.dice.uniform(3, 15)
    reader.signal(SIGCONT)


def client_stopped(stage: Stage) -> Fault:
    """Somebody who asks for the status many times and reads no answer."""
    clients = []
    for _ in range(20):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        clients.append(client)
        try:
            client.connect(str(stage.lab.socket))
            client.send(b'{"command": "status"}\n')
        except BlockingIOError:
            pass  # as many as it listens for
    yield stage.dice.uniform(2, 8)
    for client in clients:
        client.close()


# --- floods ------------------------------------------------------------------------------------------------------


def beacon_flooded(stage: Stage) -> Fault:
    peer = RawPeer(stage.lab.beacon_port, "Flood")
    try:
        for _ in range(BATCHES):
            for _ in range(BATCH):
                data = stage.dice.randbytes(stage.dice.choice([0, 1, 21, 22, 23, 300, 1400]))
                peer.datagram(data if stage.dice.random() < 0.5 else b"ZRE\x01" + data)
            yield PAUSE_S
    finally:
        peer.close()


def mailbox_flooded(stage: Stage) -> Fault:
    """Malformed ZRE at the bridge's mailbox, and malformed data, notifications and announcements of a phone there."""
    phone = RawPhone(stage.lab.beacon_port, "Bad Phone")

    def greeting() -> str | None:
        phone.beacon()
        return next((m.endpoint for m in phone.got(HELLO) if b"pupil-bridge@" in m.body), None)

    def subscribed() -> bool:
        phone.serve()
        return all(sensor.subscribed["data"] for sensor in (phone.gaze, phone.event))

    try:
        yield from _waiting(stage, greeting, "the bridge greets a bad phone")
        endpoint = greeting()
        if endpoint is None:
            return
        phone.connect(endpoint)
        phone.greet()
        for sensor in phone.sensors:
            phone.whisper(sensor.attach())
        yield from _waiting(stage, subscribed, "the bridge listens to a bad phone")
        dice, good = stage.dice, hello(1, "tcp://127.0.0.1:9")
        for _ in range(BATCHES):
            for _ in range(BATCH // 4):
                phone.gaze.send([struct.pack("<Q", 1)[: dice.randrange(9)], dice.randbytes(dice.randrange(20))])
                phone.event.send([dice.randbytes(dice.randrange(40))])
                phone.gaze.say(dice.choice([b"", b"{", b"\xff\xfe", b"[" * 3000, b'{"subject":"unheard of"}']))
                phone.whisper(dice.choice([b"", b"{", b"null", b'{"subject":"attach"}', dice.randbytes(100)]))
                phone.raw(dice.choice([good[: dice.randrange(len(good))], dice.randbytes(30)]))
            phone.serve()
            yield PAUSE_S
    finally:
        phone.close()
    yield FORGOTTEN_S  # until then another one of its name is a second device


def backbone_flooded(stage: Stage, tracker: Tracker) -> Fault:
    """Malformed datums on a Capture's backbone, where anybody can publish."""
    ready = tracker.ready
    if ready is None:
        return
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        publisher = context.socket(zmq.PUB)
        publisher.set_hwm(100_000)
        publisher.connect(f"tcp://127.0.0.1:{ready['pub_port']}")
        dice = stage.dice
        datum = msgspec.msgpack.encode({"timestamp": 1.0, "confidence": 1.0, "norm_pos": [0.5, 0.5]})
        topics = [b"gaze.2d.0.", b"gaze.3d.01.", b"pupil.0.2d", b"pupil.1.3d"]
        for _ in range(BATCHES):
            for _ in range(BATCH):
                lie = dice.choice([b"", datum[: dice.randrange(len(datum))], b"\x91" * 2000, dice.randbytes(300)])
                publisher.send_multipart([dice.choice(topics), lie])
            yield PAUSE_S
    finally:
        context.destroy(0)


def control_flooded(stage: Stage) -> Fault:
    lies = [b"\n", b"null\n", b"\xff\xfe\n", b"[" * 4000 + b"\n", b'{"command": 1}\n', b"x" * 100_000]
    for _ in range(BATCHES):
        for _ in range(10):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.setblocking(False)
                try:
                    client.connect(str(stage.lab.socket))
                    client.send(stage.dice.choice(lies))
                except (BlockingIOError, ConnectionError):
                    pass  # as fast as it can take them
        yield PAUSE_S


# --- configuration -----------------------------------------------------------------------------------------------


def reloaded(stage: Stage, number: int) -> Fault:
    """In turn: a Capture more, a file with a fault (refused), the Capture gone again, nothing new."""
    lab = stage.lab
    before = stage.last["config"]
    extra = CAPTURE.format(name="one_more", port=9)
    lab.write_config(("\n" + extra, "\nfault = [", "", "")[number % 4])
    refused = number % 4 == 1
    lab.daemon.signal(SIGHUP)

    def answered() -> bool:
        now = stage.last["config"]
        return bool(now["refused"]) if refused else now["reloads"] > before["reloads"]

    yield from _waiting(stage, answered, f"reload {number} is {'refused' if refused else 'done'}")
