"""lsl-relay's method, carried out on a phone that speaks NDSI: the mean of 100 time echoes, measured once.

By raw sockets, without a thread in between, so that its stamps are as good as they can be. Sources: NDSI v4 and ZRE 2;
the method is that of lsl-relay's `estimate_clock_offset` (pupil-labs-realtime-api, `TimeOffsetEstimator.estimate`).
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq

from tests.sources.zre_peer import WHISPER, RawPeer
from tests.system.harness import wait_until

ECHOES = 100
TIME_ECHO = b"<<time>>"
PING = json.dumps({"name": TIME_ECHO.decode(), "timestamp": None}).encode()


@dataclass(frozen=True)
class Relay:
    """What lsl-relay would know: ``mean_ns``, to be added to device times. ``off_ns``: how wrong it was when taken."""

    mean_ns: int
    taken_ns: int
    off_ns: float
    rtt_min_ns: int
    rtt_median_ns: float


class EventSensor:
    """The event sensor of a phone on loopback, found by ZRE and streaming: it answers one echo at a time."""

    def __init__(self, context: zmq.Context[Any], peer: RawPeer) -> None:
        self._peer = peer
        asyncio.run(peer.meet())
        attach: dict[str, Any] = wait_until(self._attached, "the event sensor's attach")
        self._key = attach["sensor_uuid"].encode()
        self._data: zmq.Socket[bytes] = context.socket(zmq.SUB)
        self._data.connect(attach["data_endpoint"])
        self._data.subscribe(self._key)
        self._command: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        self._command.connect(attach["command_endpoint"])
        stream = {"action": "set_control_value", "control_id": "streaming", "value": True}
        self._command.send_multipart([self._key, json.dumps(stream).encode()])
        # The first ones go by, before the subscription is there.
        wait_until(lambda: self.echo(0.2), "an echo of the phone")

    def _attached(self) -> dict[str, Any] | None:
        messages = [json.loads(each.content[0]) for each in self._peer.got(WHISPER)]
        return next((m for m in messages if m["subject"] == "attach" and m["sensor_type"] == "event"), None)

    def echo(self, timeout_s: float = 1.0) -> tuple[int, int, int] | None:
        """(sent_ns, device_ns, received_ns), or None when none came."""
        while self._data.poll(0):  # of an echo that was given up
            self._data.recv_multipart()
        sent_ns = time.monotonic_ns()
        self._peer.whisper(PING)
        deadline_ns = sent_ns + round(timeout_s * 1e9)
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0 and self._data.poll(left_ns // 1_000_000):
            received_ns = time.monotonic_ns()
            _, header, body = self._data.recv_multipart()
            if body == TIME_ECHO:
                return sent_ns, struct.unpack("<qii", header)[0], received_ns
        return None


@contextmanager
def event_sensor(beacon_port: int) -> Iterator[EventSensor]:
    context: zmq.Context[Any] = zmq.Context()
    peer = RawPeer(beacon_port, "relay", uuid.uuid4())
    try:
        yield EventSensor(context, peer)
        peer.beacon(0)  # it leaves
    finally:
        peer.close()
        context.destroy(0)


def measure_relay(beacon_port: int, clock: dict[str, Any]) -> Relay:
    """The mean of 100 echoes of the phone of this ``clock`` (of its ready line), and how wrong it is."""
    with event_sensor(beacon_port) as sensor:
        trips: list[tuple[int, int, int]] = []
        while len(trips) < 1 + ECHOES:  # as lsl-relay, which drops the first
            trip = sensor.echo()
            if trip is not None:
                trips.append(trip)
    rate = clock["drift_ppm"] * 1e-6
    origin_ns, device_origin_ns = clock["origin_ns"], clock["utc_at_origin_ns"] + clock["offset_ns"]
    offsets_ns, errors_ns, rtts_ns = [], [], []
    for sent_ns, device_ns, received_ns in trips[1:]:
        # Whole numbers: the times of the phone are too long for a float.
        offsets_ns.append((sent_ns + received_ns) // 2 - device_ns)
        true_ns = origin_ns - device_origin_ns - round((device_ns - device_origin_ns) * rate / (1 + rate))
        errors_ns.append(offsets_ns[-1] - true_ns)
        rtts_ns.append(received_ns - sent_ns)
    return Relay(
        mean_ns=sum(offsets_ns) // ECHOES,
        taken_ns=trips[-1][2],
        off_ns=float(np.mean(errors_ns)),
        rtt_min_ns=min(rtts_ns),
        rtt_median_ns=float(np.median(rtts_ns)),
    )
