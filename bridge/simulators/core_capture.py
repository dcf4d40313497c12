"""The sockets and the one loop of the simulated Pupil Capture.

Everything runs in one loop over non-blocking sockets, one message at a time, so that a request for the time waits for
the publishing of one datum (about 30 us) at most, or of one image (0.3 ms, 10 ms where it is no JPEG). Network options
delay what goes to and from Pupil Remote and what is published, each direction in order; messages of other programs pass
the backbone at once.
"""

from __future__ import annotations

import heapq
import logging
import select
import time
from collections.abc import Callable, Iterator, Mapping
from random import Random
from types import TracebackType
from typing import Any, Self

import zmq

from bridge.simulators.core_cameras import EYE_PX, SCENE_PX, Exposure, cameras, exposures
from bridge.simulators.core_clock import PupilClock
from bridge.simulators.core_options import CoreOptions
from bridge.simulators.core_remote import PupilRemote
from bridge.simulators.core_replay import Due, replay
from bridge.simulators.core_world import Message, World
from bridge.simulators.network import DelayLine, Loss
from bridge.simulators.tape import Tape
from bridge.simulators.truth import TruthWriter

# Enough for a subscriber that is not read for half a minute; beyond that its messages are dropped, as Capture's are.
_HIGH_WATER_MARK = 20_000

log = logging.getLogger(__name__)


class CaptureCrashed(Exception):
    """Pupil Capture has ended with a traceback, of which this is the last line."""


class Capture:
    """The sockets, the clock and the loop. A context manager: leaving it closes the sockets."""

    def __init__(self, options: CoreOptions, tape: Tape, truth: TruthWriter) -> None:
        self._options = options
        self._tape = tape.filtered(options.topics)
        self._cameras = cameras(tape, options.topics)
        self._wanted: set[bytes] = set()  # what is subscribed to
        self._base_ns = 0
        self._truth = truth
        self._origin_ns = time.monotonic_ns()
        self._clock = PupilClock(self._origin_ns, round(options.offset_s * 1e9), options.drift_ppm)
        self._sequences: dict[str, int] = {}
        self._loss = Loss(options.loss, Random(f"{options.seed}/loss"))
        # Every direction of every connection delays for itself; the asymmetry makes the way to the host the longer one.
        out_ms = options.delay_ms + options.asymmetry_ms
        self._requests = self._line(options.delay_ms, "requests")
        self._replies = self._line(out_ms, "replies")
        self._data: DelayLine[Due | Exposure] = DelayLine(*self._path(out_ms, "data"))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._bind()
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise

    def _path(self, delay_ms: float, name: str) -> tuple[int, int, Random]:
        options = self._options
        return round(delay_ms * 1e6), round(options.jitter_ms * 1e6), Random(f"{options.seed}/{name}")

    def _line(self, delay_ms: float, name: str) -> DelayLine[Message]:
        return DelayLine(*self._path(delay_ms, name))

    def _bind(self) -> None:
        host = self._options.host
        # A ROUTER speaks to REQ clients as Capture's REP does, and can hold the requests of many on a slow path.
        self._router = self._context.socket(zmq.ROUTER)
        self._xpub = self._context.socket(zmq.XPUB)
        self._xsub = self._context.socket(zmq.XSUB)
        self._xpub.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
        self._xsub.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
        wanted = self._options.port or "*"
        try:
            self._router.bind(f"tcp://{host}:{wanted}")
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or wanted == "*":
                raise
            log.warning("port %s is taken, Pupil Remote takes another one", wanted)
            self._router.bind(f"tcp://{host}:*")
        self._xpub.bind(f"tcp://{host}:*")
        self._xsub.bind(f"tcp://{host}:*")
        self._port, self._sub_port, self._pub_port = map(_port, (self._router, self._xpub, self._xsub))
        self._world = World(
            self._clock,
            self._truth,
            self._xpub.send_multipart,
            frames_by_plugin=self._options.frames_by_plugin,
            missing_plugins=self._options.missing_plugins,
            calibration_error=self._options.calibration_error,
        )
        self._remote = PupilRemote(self._clock, self._tape.version, self._sub_port, self._pub_port, self._world)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy(linger=200)
        log.debug("published %s, lost %d on purpose", self._sequences, self._loss.lost)

    def description(self) -> Mapping[str, Any]:
        """The line that tells a parent process where everything is."""
        host = "127.0.0.1" if self._options.host in ("*", "0.0.0.0") else self._options.host  # noqa: S104 - compared
        return {
            "ready": True,
            "kind": "core",
            "name": "Pupil Capture",
            "address": f"{host}:{self._port}",
            "sub_port": self._sub_port,
            "pub_port": self._pub_port,
            "streams": self._tape.rates_hz(),
            "loop_s": self._tape.loop_ns / 1e9,
            "frames": {"rate_hz": self._options.frame_rate, "world": SCENE_PX, "eye": EYE_PX},
            "clock": {
                "origin_ns": self._origin_ns,
                "offset_ns": round(self._options.offset_s * 1e9),
                "drift_ppm": self._options.drift_ppm,
            },
        }

    def serve(self, wakeup_fd: int, stopped: Callable[[], bool]) -> None:
        """Run until ``stopped``, or until the duration, which begins here, is over. ``wakeup_fd`` ends a wait.

        Raises CaptureCrashed where the real one does.
        """
        base_ns = self._base_ns = time.monotonic_ns()
        end_ns = base_ns + round(self._options.duration_s * 1e9) if self._options.duration_s > 0 else None
        records: Iterator[Due | Exposure] = replay(self._tape, base_ns)
        images: Iterator[Due | Exposure] = exposures(self._cameras, self._options.frame_rate, base_ns)
        coming = heapq.merge(records, images, key=lambda due: due.at_ns)
        following = next(coming, None)
        files = [wakeup_fd, *(int(each.getsockopt(zmq.FD)) for each in (self._router, self._xpub, self._xsub))]
        while not stopped():
            busy = self._serve_remote() | self._serve_backbone()
            if self._world.crashed is not None:
                raise CaptureCrashed(self._world.crashed)
            now_ns = time.monotonic_ns()
            if end_ns is not None and now_ns >= end_ns:
                return
            if following is not None and following.at_ns <= now_ns:
                self._data.put(following, following.at_ns)
                following = next(coming, None)
                busy = True
            if (due := self._data.take_due(now_ns)) is not None:
                self._send(due[1])
                busy = True
            if busy:
                continue
            # Nothing came and nothing went out in this whole turn, so no socket holds an event that its edge-triggered
            # descriptor no longer shows, and it is safe to sleep on the descriptors.
            times = [self._data.next_due_ns, self._requests.next_due_ns, self._replies.next_due_ns, end_ns]
            times.append(None if following is None else following.at_ns)
            wake_ns = min((at_ns for at_ns in times if at_ns is not None), default=None)
            wait_s = None if wake_ns is None else max(0, wake_ns - time.monotonic_ns()) / 1e9
            select.select(files, [], [], wait_s)

    def _serve_remote(self) -> bool:
        """Take in, answer and send out one request each; whether anything was done."""
        busy = False
        if self._remote.alive and _readable(self._router):
            self._requests.put(self._router.recv_multipart(), time.monotonic_ns())
            busy = True
        if (due := self._requests.take_due(time.monotonic_ns())) is not None:
            self._answer(due[1])
            busy = True
        if (due := self._replies.take_due(time.monotonic_ns())) is not None:
            self._router.send_multipart(due[1])
            busy = True
        return busy

    def _answer(self, message: Message) -> None:
        # [identity, empty delimiter, request...]; REP drops what has no delimiter or nothing behind it.
        if b"" not in message[1:-1] or not self._remote.alive:
            return
        split = message.index(b"", 1) + 1
        envelope = message[:split]
        self._remote.answer(message[split:], lambda reply: self._replies.put([*envelope, reply], time.monotonic_ns()))
        if not self._remote.alive:
            log.warning("an empty request ended Pupil Remote; the backbone goes on")

    def _serve_backbone(self) -> bool:
        """Pass on one message of another program and one subscription; whether there was any."""
        busy = False
        if _readable(self._xsub):
            self._world.forward(self._xsub.recv_multipart())
            busy = True
        if _readable(self._xpub):
            message = self._xpub.recv_multipart()
            (self._wanted.add if message[0][:1] == b"\1" else self._wanted.discard)(message[0][1:])
            self._xsub.send_multipart(message)
            busy = True
        return busy

    def _send(self, due: Due | Exposure) -> None:
        if isinstance(due, Exposure):
            self._send_image(due)
        else:
            self._publish(due)

    def _send_image(self, due: Exposure) -> None:
        """Images that nobody has subscribed to are not made; in the truth they are not."""
        topic, image_format = due.camera.topic.encode(), self._world.frame_format
        if image_format is None or not any(topic.startswith(prefix) for prefix in self._wanted):
            return
        tape_ns = due.host_ns - self._base_ns + self._tape.start_ns
        device_s = self._clock.seconds(due.host_ns)
        message, payload = due.camera.image(due, tape_ns, device_s, image_format)
        lost = self._loss.strikes()
        if not lost:
            self._xpub.send_multipart(message)
        self._record(due.camera.topic, due.host_ns, not lost, payload)

    def _publish(self, due: Due) -> None:
        record = due.record
        lost = record.stream is not None and self._loss.strikes()
        if not lost:
            payload = record.restamped(self._clock.seconds, due.shift_ns, due.serial_shift)
            self._xpub.send_multipart([record.topic, payload, *record.raw])
        if record.stream is None or record.instant_ns is None:
            return
        self._record(record.stream, record.instant_ns + due.shift_ns, not lost, record.position)

    def _record(self, stream: str, host_ns: int, sent: bool, payload: tuple[float, ...]) -> None:
        sequence = self._sequences.get(stream, 0)
        self._sequences[stream] = sequence + 1
        device_ns = round(self._clock.seconds(host_ns) * 1e9)
        self._truth.record(stream, sequence, device_ns=device_ns, host_ns=host_ns, sent=sent, payload=payload)


def _readable(each: zmq.Socket[bytes]) -> bool:
    return bool(int(each.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _port(bound: zmq.Socket[bytes]) -> int:
    endpoint = bound.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rpartition(b":")[2])
