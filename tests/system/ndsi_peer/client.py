"""The unmodified `ndsi` client as a conformance peer: attaches, streams, receives, gets an echo, sees the detach.

Runs in an environment of its own (requirements.lock: Python 3.11, numpy < 2) and only inside a network namespace,
because ndsi's node takes the first interface that it finds. Prints one JSON line and ends with status 0, or 1 with a
sentence on stderr when something did not come in time. The event named by --done-event is whispered when all is
received; then the device is expected to detach.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import uuid
from collections.abc import Callable

import ndsi
import numpy
import zmq

ECHO = "<<time>>"


class Peer:
    """ndsi's network and the sensors that it attached; `pump` serves them all."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.attached: dict[str, dict[str, object]] = {}
        self.detached: list[str] = []
        self.sensors: dict[str, ndsi.Sensor] = {}
        self.notifications = 0
        self.gaze: list[tuple[float, float, float]] = []
        self.events: list[tuple[float, str]] = []
        self.imu: list[tuple[float, ...]] = []
        self.frames: list[dict[str, object]] = []
        self.network = ndsi.Network(callbacks=(self._on_network,))
        self.network.start()

    def stop(self) -> None:
        """Without this the process would never end: pyre's threads are not daemons."""
        for sensor in self.sensors.values():
            sensor.unlink()
        self.network.stop()

    def _on_network(self, _caller: object, event: dict[str, object]) -> None:
        if event["subject"] == "attach":
            self.attached[str(event["sensor_type"])] = dict(event)
        elif event["subject"] == "detach":
            self.detached.append(str(event["sensor_uuid"]))

    def _on_notification(self, _caller: object, _notification: object) -> None:
        self.notifications += 1

    def open(self, kind: str) -> None:
        sensor = self.network.sensor(str(self.attached[kind]["sensor_uuid"]), callbacks=(self._on_notification,))
        self.sensors[kind] = sensor

    def pump(self) -> None:
        poller = zmq.Poller()
        for sensor in self.sensors.values():
            poller.register(sensor.notify_sub, zmq.POLLIN)
            if sensor.supports_data_subscription:
                poller.register(sensor.data_sub, zmq.POLLIN)
        poller.poll(10)  # ndsi gives no socket to wait for its discovery, so look at it every 10 ms
        while self.network.has_events:
            self.network.handle_event()
        for kind, sensor in self.sensors.items():
            while sensor.has_notifications:
                sensor.handle_notification()
            if kind == "gaze":
                self.gaze.extend((value.timestamp, value.x, value.y) for value in sensor.fetch_data())
            elif kind == "event":
                self.events.extend((value.timestamp, value.label) for value in sensor.fetch_data())
            elif kind == "imu":
                self.imu.extend(tuple(float(number) for number in value) for value in sensor.fetch_data())
            elif kind == "video":
                self.frames.extend(look(frame) for frame in sensor.fetch_data())

    def until(self, condition: Callable[[], object], what: str, ask: Callable[[], object] | None = None) -> None:
        """Pump until the condition holds; ``ask`` is called four times a second meanwhile."""
        ask_at = 0.0
        while not condition():
            now = time.monotonic()
            if now > self.deadline:
                raise TimeoutError(f"no {what} in time")
            if ask is not None and now >= ask_at:
                ask()
                ask_at = now + 0.25
            self.pump()

    def value(self, kind: str, control_id: str) -> object:
        return self.sensors[kind].controls.get(control_id, {}).get("value")


def look(frame: ndsi.frame.JPEGFrame) -> dict[str, object]:
    """What is to be told of a frame: its numbers, and where its picture has the target."""
    bgr = frame.bgr.astype(int)
    ys, xs = numpy.nonzero(bgr[..., 2] - bgr[..., 0] > 90)  # the card is orange, the room grey
    grey = numpy.asarray(frame.gray).astype(int) - 128
    card = grey[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    signs = numpy.sign(numpy.where(abs(card) > 50, card, 0))
    # Where the four squares meet, all rows and all columns change their sign.
    x = 1 + int(numpy.argmax(abs(numpy.diff(signs, axis=1)).sum(axis=0)))
    y = 1 + int(numpy.argmax(abs(numpy.diff(signs, axis=0)).sum(axis=1)))
    return {
        "stamp_s": frame.timestamp,
        "index": frame.index,
        "shape": list(bgr.shape),
        "target": [int(xs.min()) + x, int(ys.min()) + y],
        "sha256": hashlib.sha256(bytes(frame.jpeg_buffer)).hexdigest(),
    }


def converse(peer: Peer, options: argparse.Namespace) -> dict[str, object]:
    """The whole conversation; returns the report."""
    peer.until(lambda: len(peer.attached) >= options.sensors, f"{options.sensors} attaches")
    data = [kind for kind in peer.attached if kind != "hardware"]
    for kind in (*data, "hardware"):
        peer.open(kind)
        # The first reply can be lost: a PUB socket drops what comes before the subscription.
        peer.until(
            lambda kind=kind: peer.sensors[kind].controls, f"{kind} controls", peer.sensors[kind].refresh_controls
        )
    for kind in data:
        peer.sensors[kind].set_control_value("streaming", True)
        peer.until(lambda kind=kind: peer.value(kind, "streaming") is True, f"streaming {kind}")
    peer.sensors["hardware"].set_control_value("local_capture", True)
    peer.until(lambda: peer.value("hardware", "local_capture") is True, "recording")
    peer.until(
        lambda: (
            len(peer.gaze) >= options.gaze_samples
            and len(peer.events) >= options.events
            and len(peer.imu) >= options.imu_samples
            and len(peer.frames) >= options.frames
        ),
        "data",
    )

    device = uuid.UUID(str(peer.attached["event"]["host_uuid"]))
    sent_ns = time.monotonic_ns()
    peer.network.whisper(device, json.dumps({"name": ECHO, "timestamp": None}).encode())
    peer.until(lambda: any(label == ECHO for _, label in peer.events), "echo")
    received_ns = time.monotonic_ns()
    echo_s = next(stamp for stamp, label in peer.events if label == ECHO)

    peer.network.whisper(device, json.dumps({"name": options.done_event, "timestamp": None}).encode())
    peer.until(lambda: any(label == options.done_event for _, label in peer.events), "its own event")
    peer.until(lambda: len(set(peer.detached)) >= options.sensors, f"{options.sensors} detaches")
    return {
        "ndsi": ndsi.__version__,
        "numpy": numpy.__version__,
        "attached": peer.attached,
        "controls": {kind: sorted(sensor.controls) for kind, sensor in peer.sensors.items()},
        "notifications": peer.notifications,
        "gaze": peer.gaze,
        "events": peer.events,
        "imu": peer.imu,
        "frames": peer.frames,
        "echo": {"sent_ns": sent_ns, "stamp_s": echo_s, "received_ns": received_ns},
        "detached": peer.detached,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gaze-samples", type=int, default=240)
    parser.add_argument("--events", type=int, default=5)
    parser.add_argument("--imu-samples", type=int, default=0)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--sensors", type=int, default=3, help="how many the device has")
    parser.add_argument("--done-event", default="client is done")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for everything")
    options = parser.parse_args()
    peer = Peer(time.monotonic() + options.timeout)
    try:
        report = converse(peer, options)
    except TimeoutError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        peer.stop()
    print(json.dumps(report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
