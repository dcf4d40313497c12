"""A supervised Pupil Core source in a pipeline, and a Pupil Capture that is made of raw sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import zmq

from bridge import supervisor
from bridge.clock import ClockSettings
from bridge.config import ClockConfig, PupilCoreSource
from bridge.pipeline import Device, Pipeline
from bridge.sources import pupil_core, pupil_remote
from bridge.sources.pupil_core import PupilCoreDeviceSource
from tests.sources.lab import RecordingOutput, RecordingSink
from tests.sources.zre_peer import until

PUPIL_TIME_OFFSET_S = -1000.0
ALLOWED_REQUESTS = {b"SUB_PORT", b"PUB_PORT", b"v", b"t"}
SAID = {b"logging.", *(b"notify.recording." + event for event in (b"started", b"stopped"))}
SAID |= {b"notify.calibration." + event for event in (b"started", b"stopped", b"successful", b"failed")}
SAID |= {b"notify.world_process.stopped", b"notify.service_process.stopped"}
encode = msgspec.msgpack.encode


def pupil_time() -> float:
    return time.monotonic() + PUPIL_TIME_OFFSET_S


def gaze(number: float, at_s: float | None = None, **more: Any) -> list[bytes]:
    timestamp = pupil_time() if at_s is None else at_s
    datum = {"timestamp": timestamp, "confidence": 0.5, "norm_pos": [number, 0.25], "topic": "gaze.2d.0.", **more}
    return [b"gaze.2d.0.", encode(datum)]


def pupil(number: float, eye: int = 0, at_s: float | None = None) -> list[bytes]:
    timestamp = pupil_time() if at_s is None else at_s
    datum = {"timestamp": timestamp, "confidence": 0.5, "norm_pos": [number, 0.25], "diameter": 20.0, "id": eye}
    return [b"pupil.%d.2d" % eye, encode(datum)]


class Capture:
    """A Pupil Remote and a backbone. ``answer`` makes the replies to a request; None in place of them is silence."""

    def __init__(self, port: int = 0) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self.remote = self._context.socket(zmq.ROUTER)
        self.remote.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.port = _port(self.remote)
        self.requests: list[list[bytes]] = []
        self.answer: Callable[[bytes], list[list[bytes]]] = self.properly
        self.says: Callable[[list[bytes]], list[list[bytes]]] = lambda request: []  # on the backbone, to a request
        self.subscriptions: set[bytes] = set()
        self.unsubscribed = 0
        self.backbone = self._backbone()
        self._task = asyncio.create_task(self._live())

    def _backbone(self) -> zmq.Socket[bytes]:
        made = self._context.socket(zmq.XPUB)
        made.set_hwm(100_000)
        made.bind("tcp://127.0.0.1:*")
        return made

    def restart(self) -> None:
        """Another backbone at other ports, and a Pupil Remote that never was away."""
        self.subscriptions.clear()
        old, self.backbone = self.backbone, self._backbone()
        old.close(0)

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(0)

    async def _live(self) -> None:
        while True:
            while self.remote.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                identity, *frames = self.remote.recv_multipart()
                split = frames.index(b"") + 1
                self.requests.append(frames[split:])
                forwarded = len(frames) > split + 1
                for reply in [[b"Message forwarded."]] if forwarded else self.answer(frames[split]):
                    self.remote.send_multipart([identity, *frames[:split], *reply])
                for message in self.says(frames[split:]):
                    self.publish(message)
            while self.backbone.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                message = self.backbone.recv()
                (self.subscriptions.add if message[:1] == b"\x01" else self.subscriptions.discard)(message[1:])
                self.unsubscribed += message[:1] == b"\x00"
            await asyncio.sleep(0.0005)

    def properly(self, request: bytes) -> list[list[bytes]]:
        """What Pupil Capture answers."""
        if request == b"t":
            return [[repr(pupil_time()).encode()]]
        if request == b"v":
            return [[b"3.6.14"]]
        if request == b"SUB_PORT":
            return [[b"%d" % _port(self.backbone)]]
        return [[b"50021" if request == b"PUB_PORT" else b"OK"]]

    def publish(self, frames: list[bytes]) -> None:
        self.backbone.send_multipart(frames)


def _port(bound: zmq.Socket[bytes]) -> int:
    return int(bound.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


class Lab:
    """A supervised source in a pipeline, and a Capture."""

    def __init__(self, address: str | None = None, **config: Any) -> None:
        self.captures = [] if address else [Capture()]
        self.commands: set[bytes] = set()  # that may be sent beside the usual requests
        self.sink = RecordingSink()
        clock = ClockConfig(ping_interval_s=0.1)
        self.pipeline = Pipeline([self.sink], clock_settings=ClockSettings(ping_interval_ns=clock.ping_interval_ns))
        tree = {"type": "pupil_core", "name": "core", "reorder_window_ms": 0, **config}
        tree["address"] = address or f"127.0.0.1:{self.capture.port}"
        self.topics = config.get("topics", ("gaze", "pupil"))
        self.source = PupilCoreDeviceSource(PupilCoreSource.model_validate(tree), clock)
        self.source.open(self.pipeline)
        self.task = asyncio.create_task(supervisor.supervise(self.source))

    @property
    def capture(self) -> Capture:
        return self.captures[-1]

    @property
    def device(self) -> Device:
        return self.pipeline.devices["core"]

    @property
    def counts(self) -> dict[str, int]:
        counts = self.source.status()["counts"]
        assert isinstance(counts, dict)
        return counts

    def out(self, stream: str) -> RecordingOutput:
        return self.sink.streams["core", stream]

    async def end(self) -> None:
        assert not self.task.done(), f"the source has ended: {self.task}"
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        requests = [request for capture in self.captures for request in capture.requests]
        for capture in self.captures:
            await capture.end()
        self.pipeline.close()
        for request in requests:
            usual = len(request) == 1 and request[0] in ALLOWED_REQUESTS
            assert usual or request[0] in self.commands, f"it asks and no more: {request}"

    async def subscribed(self) -> None:
        wanted = SAID | {(topic if "." in topic else f"{topic}.").encode() for topic in self.topics}
        await until(lambda: self.capture.subscriptions == wanted, f"{wanted}, not {self.capture.subscriptions}")

    async def serves(self, count: int = 50) -> None:
        """Fails unless every datum gets through, at the right time."""
        await self.subscribed()
        await until(lambda: self.device.clock.locked, "the clock is locked")
        out, pupils = self.out("gaze"), self.out("pupil_1_2d")
        before, pupils_before = len(out.samples), len(pupils.samples)
        for number in range(count):
            self.capture.publish(gaze(number))
            self.capture.publish(pupil(number, eye=1))
        await until(
            lambda: len(out.samples) == before + count and len(pupils.samples) == pupils_before + count,
            f"all datums; {[stream.all_drops() for stream in self.device.streams.values()]}",
        )
        for fresh in (out.payloads[before:], pupils.payloads[pupils_before:]):
            assert [payload[1] for payload in fresh] == [float(number) for number in range(count)]
        for sample, host_ns in zip(out.samples[before:], out.host_ns[before:], strict=True):
            true_ns = sample.device_ns - round(PUPIL_TIME_OFFSET_S * 1e9)
            assert abs(host_ns - true_ns) < 5_000_000


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short for the rest of the test."""
    monkeypatch.setattr(pupil_remote, "REPLY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(pupil_core, "PORTS_CHECK_S", 0.2)
    monkeypatch.setattr(pupil_core, "DATA_PATIENCE_NS", 300_000_000)
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 0.01)
    monkeypatch.setattr(supervisor, "BACK_OFF_MAX_S", 0.05)
