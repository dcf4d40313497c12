"""The one loop of the simulated Pupil Capture.

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
from contextlib import ExitStack
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bridge.simulators.core_aftermath import Aftermath
from bridge.simulators.core_calibration import calibration_data
from bridge.simulators.core_cameras import EYE_PX, SCENE_PX, Exposure, cameras, exposures
from bridge.simulators.core_clock import PupilClock
from bridge.simulators.core_facts import Facts
from bridge.simulators.core_follower import Follower
from bridge.simulators.core_log import chatter
from bridge.simulators.core_options import CoreOptions
from bridge.simulators.core_remote import PupilRemote
from bridge.simulators.core_replay import Due, replay
from bridge.simulators.core_sockets import Sockets, readable
from bridge.simulators.core_world import Message, World
from bridge.simulators.network import DelayLine, Loss
from bridge.simulators.tape import Tape
from bridge.simulators.truth import TruthWriter

if TYPE_CHECKING:
    from bridge.simulators.core_time_sync import TimeSync

# Pupil Service has no scene camera, and none of its plugins' findings leave it.
_SERVICE_TOPICS = ("gaze.", "pupil.", "logging.", "notify.")

OLD_VERSION = "2.0.182"  # before 2.1 frames came by a plugin

log = logging.getLogger(__name__)


class CaptureCrashed(Exception):
    """Pupil Capture has ended with a traceback, of which this is the last line."""


class Capture:
    """The clock, the data and the loop. A context manager: leaving it closes the sockets."""

    def __init__(self, options: CoreOptions, tape: Tape, truth: TruthWriter) -> None:
        """Raises zmq.ZMQError, OSError or ValueError when an address cannot be used."""
        self._options = options
        service = options.app == "service"
        self._tape = (tape.filtered(_SERVICE_TOPICS) if service else tape).filtered(options.topics)
        self._cameras = [each for each in cameras(tape, options.topics) if not service or each.topic != "frame.world"]
        self._base_ns = 0
        self._origin_ns = time.monotonic_ns()
        self._clock = PupilClock(self._origin_ns, round(options.offset_s * 1e9), options.drift_ppm)
        self._facts = Facts(self._clock, truth)
        self._loss = Loss(options.loss, Random(f"{options.seed}/loss"))
        # Every direction of every connection delays for itself; the asymmetry makes the way to the host the longer one.
        out_ms = options.delay_ms + options.asymmetry_ms
        self._requests = self._line(options.delay_ms, "requests")
        self._replies = self._line(out_ms, "replies")
        self._data: DelayLine[Due | Exposure] = DelayLine(*self._path(out_ms, "data"))
        with ExitStack() as stack:
            self._sockets = Sockets(options.host, options.port, may_move=not service)
            stack.callback(self._sockets.close)
            self._world = World(
                self._clock,
                truth,
                self._sockets.xpub.send_multipart,
                service=service,
                frames_by_plugin=options.frames_by_plugin,
                missing_plugins=options.missing_plugins,
                calibration_error=options.calibration_error,
                calibration_data=lambda: calibration_data(tape, self._clock, time.monotonic_ns()),
            )
            version = OLD_VERSION if options.frames_by_plugin else tape.version
            self._remote = PupilRemote(
                self._clock, version, self._sockets.sub_port, self._sockets.pub_port, self._world
            )
            self._time_sync: TimeSync | None = None
            if options.time_sync:
                from bridge.simulators.core_time_sync import TimeSync  # pyre, which few need

                random = Random(f"{options.seed}/time_sync/{self._sockets.remote_port}")
                self._time_sync = TimeSync(self._clock, _reachable(options.host), options.beacon_port, random)
                stack.push(self._time_sync)
            self._closing = stack.pop_all()
        pause_ns = round(options.binocular_pause_s * 1e9)
        self._aftermath = Aftermath(self._clock, pause_ns, self._facts.end_fixations)

    def _path(self, delay_ms: float, name: str) -> tuple[int, int, Random]:
        return round(delay_ms * 1e6), round(self._options.jitter_ms * 1e6), Random(f"{self._options.seed}/{name}")

    def _line(self, delay_ms: float, name: str) -> DelayLine[Message]:
        return DelayLine(*self._path(delay_ms, name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()
        log.debug("published %s, lost %d on purpose", self._facts.counts, self._loss.lost)

    def description(self) -> Mapping[str, Any]:
        """The line that tells a parent process where everything is."""
        sync = self._time_sync
        return {
            "ready": True,
            "kind": "core",
            "name": f"Pupil {self._options.app.title()}",
            "address": f"{_reachable(self._options.host)}:{self._sockets.remote_port}",
            "sub_port": self._sockets.sub_port,
            "pub_port": self._sockets.pub_port,
            "streams": self._tape.rates_hz(),
            "topics": self._tape.topics_hz(),
            "loop_s": self._tape.loop_ns / 1e9,
            "frames": {"rate_hz": self._options.frame_rate, "world": SCENE_PX, "eye": EYE_PX},
            "clock": {
                "origin_ns": self._origin_ns,
                "offset_ns": round(self._options.offset_s * 1e9),
                "drift_ppm": self._options.drift_ppm,
            },
            "time_sync": None if sync is None else {"port": sync.port, "rank": sync.rank},
        }

    def serve(self, wakeup_fd: int, stopped: Callable[[], bool]) -> None:
        """Run until ``stopped``, or until the duration, which begins here, is over. ``wakeup_fd`` ends a wait.

        Raises CaptureCrashed where the real one does.
        """
        options, sync, base_ns = self._options, self._time_sync, time.monotonic_ns()
        self._base_ns = base_ns
        end_ns = base_ns + round(options.duration_s * 1e9) if options.duration_s > 0 else None
        records: Iterator[Due | Exposure] = replay(self._tape, base_ns)
        images: Iterator[Due | Exposure] = exposures(self._cameras, options.frame_rate, base_ns)
        coming = heapq.merge(records, images, key=lambda due: due.at_ns)
        following = next(coming, None)
        every_ns = round(options.sync_every_s * 1e9)
        follower = Follower(self._clock, self._world, round(options.sync_step_ms * 1e6), every_ns, base_ns)
        lines = chatter(base_ns, options.log_every_s)
        said = next(lines, None)
        files = [wakeup_fd, *self._sockets.descriptors, *([] if sync is None else [sync.descriptor])]
        while not stopped():
            busy = self._serve_remote() | self._serve_backbone()
            if self._world.crashed is not None:
                self._world.end()
                raise CaptureCrashed(self._world.crashed)
            if sync is not None:
                busy |= sync.turn()
            now_ns = time.monotonic_ns()
            if end_ns is not None and now_ns >= end_ns:
                break
            if following is not None and following.at_ns <= now_ns:
                self._data.put(following, following.at_ns)
                following = next(coming, None)
                busy = True
            if (due := self._data.take_due(now_ns)) is not None:
                self._send(due[1])
                busy = True
            if follower.next_due_ns is not None and follower.next_due_ns <= now_ns:
                follower.turn(now_ns)
                busy = True
            if said is not None and said[0] <= now_ns:
                self._world.log(*said[1])
                said = next(lines)
                busy = True
            if busy:
                continue
            # Nothing came and nothing went out in this whole turn, so no socket holds an event that its edge-triggered
            # descriptor no longer shows, and it is safe to sleep on the descriptors.
            times = [self._data.next_due_ns, self._requests.next_due_ns, self._replies.next_due_ns, end_ns]
            times += [follower.next_due_ns, said[0] if said else None, following.at_ns if following else None]
            wake_ns = min((at_ns for at_ns in times if at_ns is not None), default=None)
            wait_s = None if wake_ns is None else max(0, wake_ns - time.monotonic_ns()) / 1e9
            select.select(files, [], [], wait_s)
        self._world.end()

    def _serve_remote(self) -> bool:
        """Take in, answer and send out one request each; whether anything was done."""
        busy = False
        if self._remote.alive and readable(self._sockets.router):
            self._requests.put(self._sockets.router.recv_multipart(), time.monotonic_ns())
            busy = True
        if (due := self._requests.take_due(time.monotonic_ns())) is not None:
            self._answer(due[1])
            busy = True
        if (due := self._replies.take_due(time.monotonic_ns())) is not None:
            self._sockets.router.send_multipart(due[1])
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
        if readable(self._sockets.xsub):
            self._world.forward(self._sockets.xsub.recv_multipart())
            busy = True
        return busy | self._sockets.take_subscription()

    def _send(self, due: Due | Exposure) -> None:
        if isinstance(due, Exposure):
            self._send_image(due)
        else:
            for each in self._aftermath.outgoing(due):
                self._publish(each)

    def _send_image(self, due: Exposure) -> None:
        """Images that nobody has subscribed to are not made; in the truth they are not."""
        topic, image_format = due.camera.topic.encode(), self._world.frame_format
        if image_format is None or not self._sockets.wanted(topic):
            return
        tape_ns = due.host_ns - self._base_ns + self._tape.start_ns
        message, payload = due.camera.image(due, tape_ns, self._clock.seconds(due.host_ns), image_format)
        lost = self._loss.strikes()
        if not lost:
            self._sockets.xpub.send_multipart(message)
        self._facts.write(due.camera.topic, due.host_ns, not lost, payload)

    def _publish(self, due: Due) -> None:
        record = due.record
        lost, wanted = record.stream is not None and self._loss.strikes(), self._sockets.wanted(record.topic)
        if wanted and not lost and record.topic:
            payload = record.restamped(self._clock.seconds, due.shift_ns, due.serial_shift)
            self._sockets.xpub.send_multipart([record.topic, payload, *record.raw])
        if record.stream is not None and record.instant_ns is not None:
            self._facts.write(record.stream, record.instant_ns + due.shift_ns, not lost, record.position)
        elif wanted or not record.topic.startswith(b"surfaces."):
            for fact in record.facts:
                self._facts.tell(fact, due.shift_ns, due.serial_shift)


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("*", "0.0.0.0") else host  # noqa: S104 - compared
