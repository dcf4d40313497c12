"""The sockets and the one loop of the simulated Pupil Capture.

Everything runs in one loop over non-blocking sockets, one message at a time, so that a request for the time waits for
the publishing of one datum (about 30 us) at most. Network options delay what goes to and from Pupil Remote and what is
published, each direction in order; messages of other programs pass the backbone at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import select
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import zmq

from bridge.simulators.core_remote import Message, PupilClock, PupilRemote
from bridge.simulators.network import DelayLine, Loss
from bridge.simulators.tape import SHORT_TAPE, Record, Tape
from bridge.simulators.truth import TruthWriter

# Enough for a subscriber that is not read for half a minute; beyond that its messages are dropped, as Capture's are.
_HIGH_WATER_MARK = 20_000

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class CoreOptions:
    """What `pupil-bridge simulate core` can be told; each field is the command line option of the same name."""

    host: str = "127.0.0.1"
    port: int = 50020
    tape: Path = SHORT_TAPE
    synthesise: bool = False
    gaze_rate: float = 120.0
    pupil_rate: float = 120.0
    offset_s: float = 1000.0
    drift_ppm: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    asymmetry_ms: float = 0.0
    loss: float = 0.0
    truth: Path | None = None
    seed: int = 0
    duration_s: float = 0.0
    topics: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Due:
    """A record of the tape in one turn of the loop: when it leaves Capture and how its instants are shifted."""

    at_ns: int
    record: Record
    shift_ns: int
    serial_shift: int


class Capture:
    """The sockets, the clock and the loop. A context manager: leaving it closes the sockets."""

    def __init__(self, options: CoreOptions, tape: Tape, truth: TruthWriter) -> None:
        self._options = options
        self._tape = tape.filtered(options.topics)
        self._truth = truth
        self._origin_ns = time.monotonic_ns()
        self._clock = PupilClock(self._origin_ns, round(options.offset_s * 1e9), options.drift_ppm)
        self._sequences: dict[str, int] = {}
        self._loss = Loss(options.loss, Random(f"{options.seed}/loss"))
        # Every direction of every connection delays for itself; the asymmetry makes the way to the host the longer one.
        out_ms = options.delay_ms + options.asymmetry_ms
        self._requests = self._line(options.delay_ms, "requests")
        self._replies = self._line(out_ms, "replies")
        self._data: DelayLine[_Due] = DelayLine(*self._path(out_ms, "data"))
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
        self._remote = PupilRemote(
            self._clock, self._tape.version, self._sub_port, self._pub_port, self._xpub.send_multipart
        )

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
            "clock": {
                "origin_ns": self._origin_ns,
                "offset_ns": round(self._options.offset_s * 1e9),
                "drift_ppm": self._options.drift_ppm,
            },
        }

    def serve(self, wakeup_fd: int, stopped: Callable[[], bool]) -> None:
        """Run until ``stopped``, or until the duration, which begins here, is over. ``wakeup_fd`` ends a wait."""
        base_ns = time.monotonic_ns()
        end_ns = base_ns + round(self._options.duration_s * 1e9) if self._options.duration_s > 0 else None
        replay = _replay(self._tape, base_ns)
        following = next(replay, None)
        files = [wakeup_fd, *(int(each.getsockopt(zmq.FD)) for each in (self._router, self._xpub, self._xsub))]
        while not stopped():
            busy = self._serve_remote() | self._serve_backbone()
            now_ns = time.monotonic_ns()
            if end_ns is not None and now_ns >= end_ns:
                return
            if following is not None and following.at_ns <= now_ns:
                self._data.put(following, following.at_ns)
                following = next(replay, None)
                busy = True
            if (due := self._data.take_due(now_ns)) is not None:
                self._publish(due[1])
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
            self._remote.forward(self._xsub.recv_multipart())
            busy = True
        if _readable(self._xpub):
            self._xsub.send_multipart(self._xpub.recv_multipart())
            busy = True
        return busy

    def _publish(self, due: _Due) -> None:
        record = due.record
        lost = record.stream is not None and self._loss.strikes()
        if not lost:
            payload = record.restamped(self._clock.seconds, due.shift_ns, due.serial_shift)
            self._xpub.send_multipart([record.topic, payload, *record.raw])
        if record.stream is None or record.instant_ns is None:
            return
        sequence = self._sequences.get(record.stream, 0)
        self._sequences[record.stream] = sequence + 1
        host_ns = record.instant_ns + due.shift_ns
        self._truth.record(
            record.stream,
            sequence,
            device_ns=round(self._clock.seconds(host_ns) * 1e9),
            host_ns=host_ns,
            sent=not lost,
            payload=record.position,
        )


def _replay(tape: Tape, base_ns: int) -> Iterator[_Due]:
    """The tape again and again, turn by turn without a pause; nothing when it is empty."""
    for turn in itertools.count() if tape.records else ():
        shift_ns = base_ns - tape.start_ns + turn * tape.loop_ns
        for record in tape.records:
            yield _Due(record.arrival_ns + shift_ns, record, shift_ns, turn * tape.serial_span)


def _readable(each: zmq.Socket[bytes]) -> bool:
    return bool(int(each.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _port(bound: zmq.Socket[bytes]) -> int:
    endpoint = bound.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rpartition(b":")[2])
