"""Pupil Capture and Pupil Service over their Network API: gaze and pupil data, the clock by ``t`` on Pupil Remote.

Source: docs.pupil-labs.com "Network API", and the behaviour of Pupil Capture 3.6. An empty request kills Pupil Remote
for good, so none is ever sent; neither is ``T``, which sets the clock for everybody.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import Counter
from typing import Any

import msgspec
import zmq

from bridge.clock import RoundTrip
from bridge.clock.host import monotonic_ns
from bridge.config import ClockConfig, NdsiSource, PupilCoreSource
from bridge.errors import DeviceUnavailable, MalformedMessage
from bridge.pipeline import Device, Pipeline
from bridge.sources.zmqio import Lifeline, ZmqReader, subscriber
from bridge.stream_input import StreamInput
from bridge.streams import DeviceDescriptor, StreamDescriptor, StreamKind
from bridge.wire import pupil_core as wire

log = logging.getLogger(__name__)

REPLY_TIMEOUT_S = 1.0
REQUESTS_LOST_UNTIL_GONE = 3
HIGH_WATER_MARK = 10_000
MAX_MESSAGE_BYTES = 32 << 20  # anybody can publish on the backbone; a larger one costs the connection
BURST = 8  # round trips in a row: the fastest of them counts, each is written to Capture's log
DATA_PATIENCE_NS = 3_000_000_000  # without a datum, data and Pupil Remote are gone together
BURST_INTERVAL_S = 3.0  # after the first bursts
PORTS_CHECK_S = 5.0
PING_POLL_S = 0.05
INSTANT = "exposure of the eye image as Capture estimates it, a constant camera latency apart"


class NoAnswer(DeviceUnavailable):
    """Pupil Remote did not answer in time. It may answer the next request, on a new socket."""


class PupilRemote:
    """Requests to Pupil Remote, one at a time, on a new socket after each that was not answered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, context: zmq.Context[Any], address: str) -> None:
        self._loop = loop
        self._context = context
        self._address = address
        self._reader: ZmqReader | None = None
        self._reply: asyncio.Future[tuple[bytes, int]] | None = None
        self._requests = 0

    async def ask(self, request: bytes) -> tuple[bytes, int, int]:
        """(reply, sent_ns, received_ns). Raises NoAnswer when none came in a second."""
        assert request, "an empty request kills Pupil Remote"
        self._reply = self._loop.create_future()
        try:
            if self._reader is None:
                self._reader = self._open()
            # What stands before the delimiter comes back with the reply: it tells a late or doubled one.
            self._requests += 1
            sent_ns = monotonic_ns()
            self._reader.socket.send_multipart([b"%d" % self._requests, b"", request], zmq.NOBLOCK)
            self._reader.poke()
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                reply, received_ns = await self._reply
        except (TimeoutError, zmq.Again) as error:
            self.close()
            raise NoAnswer(f"Pupil Remote at {self._address} does not answer") from error
        except zmq.ZMQError as error:  # no file descriptors left
            self.close()
            raise NoAnswer(f"Pupil Remote at {self._address} cannot be asked: {error}") from error
        finally:
            self._reply = None
        return reply, sent_ns, received_ns

    def _open(self) -> ZmqReader:
        # A DEALER with REQ's empty delimiter: REQ itself would fault on a reply that nobody asked for.
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        dealer.connect(f"tcp://{self._address}")
        return ZmqReader(self._loop, dealer, self._replied)

    def _replied(self, frames: list[bytes]) -> None:
        received_ns = monotonic_ns()
        if self._reply is None or self._reply.done() or len(frames) != 3 or frames[0] != b"%d" % self._requests:
            return
        self._reply.set_result((frames[2], received_ns))

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class PupilCoreDeviceSource:
    """One Pupil Capture or Service."""

    def __init__(self, config: PupilCoreSource, clock_config: ClockConfig) -> None:
        self.name = f"pupil_core {config.address}"
        self._config = config
        self._clock_config = clock_config
        self._counts: Counter[str] = Counter()
        self._device: Device
        self._gaze: StreamInput | None = None
        self._pupil: dict[tuple[int, str], StreamInput] = {}
        self._version: str | None = None
        self._last_datum_ns = 0

    def open(self, pipeline: Pipeline) -> None:
        config = self._config
        descriptor = DeviceDescriptor(
            name=config.name,
            kind="pupil_core",
            lsl_prefix=config.lsl_prefix,
            model="Pupil Core",
            transport="Pupil Core Network API",
        )
        self._device = pipeline.device(descriptor, self._config.path_asymmetry_ns)
        if "gaze" in config.topics:
            self._gaze = self._device.stream(gaze_stream(descriptor, config))
        if "pupil" in config.topics:
            for eye in (0, 1):
                for method in ("2d", "3d"):
                    self._pupil[eye, method] = self._device.stream(pupil_stream(descriptor, config, eye, method))

    @property
    def device_names(self) -> tuple[str, ...]:
        return (self._config.name,)

    async def reconfigure(self, config: NdsiSource) -> None:
        raise TypeError("one Pupil Capture is one device: it is replaced")

    def set_clock(self, clock: ClockConfig) -> None:
        self._clock_config = clock
        self._device.clock.plan.interval_ns = round(BURST_INTERVAL_S * clock.ping_interval_s * 1e9)

    def status(self) -> dict[str, object]:
        return {
            "type": "pupil_core",
            "address": self._config.address,
            "version": self._version,
            "counts": dict(self._counts),
        }

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        host = await _numeric(loop, self._config.host)
        context: zmq.Context[Any] = zmq.Context()
        remote = PupilRemote(loop, context, f"{host}:{self._config.port}")
        reader: ZmqReader | None = None
        lifeline: Lifeline | None = None
        try:
            ports = await self._ports(remote)
            self._version = _printable((await remote.ask(b"v"))[0])
            backbone = f"tcp://{host}:{ports[0]}"
            topics = [f"{topic}.".encode() for topic in self._config.topics]
            data = subscriber(context, backbone, topics, HIGH_WATER_MARK, MAX_MESSAGE_BYTES)
            reader = ZmqReader(loop, data, self._on_datum)
            lifeline = Lifeline(loop, reader.socket, backbone)
            name = self._config.name
            log.info("%s: Pupil Capture %s at %s", name, self._version, self._config.address, extra={"DEVICE": name})
            self._device.attached()
            await self._keep_time(remote, ports)
        except zmq.ZMQError as error:  # no file descriptors left
            raise DeviceUnavailable(f"no connection to Pupil Capture at {self._config.address}: {error}") from error
        finally:
            self._device.detached()
            if lifeline is not None:
                lifeline.close()
            if reader is not None:
                reader.close()
            remote.close()
            context.destroy(0)

    async def _ports(self, remote: PupilRemote) -> tuple[int, int]:
        """Subscribe and publish port: new ones at each start of Capture."""
        try:
            return (
                wire.parse_port((await remote.ask(b"SUB_PORT"))[0]),
                wire.parse_port((await remote.ask(b"PUB_PORT"))[0]),
            )
        except MalformedMessage as error:
            self._counts["replies_malformed"] += 1
            raise DeviceUnavailable(f"what answers at {self._config.address} is no Pupil Remote: {error}") from error

    def _on_datum(self, frames: list[bytes]) -> None:
        received_ns = monotonic_ns()
        try:
            datum = wire.decode_datum(frames)
        except MalformedMessage as error:
            kind = "topics_unknown" if isinstance(error, wire.UnknownTopic) else "datums_malformed"
            self._device.malformed[kind] += 1
            return
        self._last_datum_ns = received_ns
        if isinstance(datum, wire.Gaze):
            if self._gaze is not None:
                self._gaze.sample(datum.timestamp_ns, received_ns, wire.gaze_channels(datum))
        else:
            stream = self._pupil.get((datum.eye_id, datum.method))
            if stream is not None:
                stream.sample(datum.timestamp_ns, received_ns, wire.pupil_channels(datum))

    async def _keep_time(self, remote: PupilRemote, ports: tuple[int, int]) -> None:
        """Measures the clock for as long as Pupil Remote answers, and sees when Capture has been started again."""
        clock = self._device.clock
        self.set_clock(self._clock_config)
        check_ports_at_ns = monotonic_ns() + round(PORTS_CHECK_S * 1e9)
        lost, epoch = 0, clock.epoch
        while True:
            wait_s = (clock.plan.next_ns() - monotonic_ns()) / 1e9
            if wait_s > 0:
                await asyncio.sleep(min(max(wait_s, PING_POLL_S), 4 * PING_POLL_S))
                continue
            clock.plan.sent(monotonic_ns())
            try:
                for trip in await self._burst(remote):
                    self._device.ping(trip)
                # A clock that has stepped is as a rule a Capture that has been started again.
                if clock.epoch != epoch or monotonic_ns() >= check_ports_at_ns:
                    epoch = clock.epoch
                    check_ports_at_ns = monotonic_ns() + round(PORTS_CHECK_S * 1e9)
                    if await self._ports(remote) != ports:
                        raise DeviceUnavailable(f"Pupil Capture at {self._config.address} has been started again")
                lost = 0
            except NoAnswer:
                lost += 1
                check_ports_at_ns = 0  # it may have been started again in between
                if lost < REQUESTS_LOST_UNTIL_GONE:
                    continue
                if monotonic_ns() - self._last_datum_ns > DATA_PATIENCE_NS:
                    raise
                if lost == REQUESTS_LOST_UNTIL_GONE:
                    # Anybody's empty request ends Pupil Remote, and only that, for good: the data are worth having.
                    name = self._config.name
                    text = "%s: Pupil Remote has ended; data go on, the clock is not seen"
                    log.warning(text, name, extra={"DEVICE": name})

    async def _burst(self, remote: PupilRemote) -> list[RoundTrip]:
        """Some round trips in a row: after the first, nobody on the way has to wake up."""
        trips: list[RoundTrip] = []
        for _ in range(BURST):
            reply, sent_ns, received_ns = await remote.ask(b"t")
            try:
                trips.append(RoundTrip(sent_ns, wire.parse_time(reply), received_ns))
            except MalformedMessage:
                self._counts["replies_malformed"] += 1
        return trips


async def _numeric(loop: asyncio.AbstractEventLoop, host: str) -> str:
    """The address of a host, looked up here: libzmq would do it in the thread that the end of its context waits for.

    Raises DeviceUnavailable when it is not known now.
    """
    if re.fullmatch(r"[0-9.]+", host) or ":" in host:
        return f"[{host}]" if ":" in host else host
    try:
        found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError as error:
        raise DeviceUnavailable(f"the address of {host} is not known: {error.strerror or error}") from error
    return str(found[0][4][0])


def _printable(reply: bytes) -> str:
    """What fits into a log line, of a text that may be anything."""
    return "".join(letter for letter in reply[:40].decode("utf-8", "replace") if letter.isprintable())


def gaze_stream(device: DeviceDescriptor, config: PupilCoreSource) -> StreamDescriptor:
    """Gaze datums of all mappings, in the channels of the Capture plugin's `pupil_capture` stream."""
    width_px, height_px = config.scene_size
    return StreamDescriptor(
        device=device,
        name="gaze",
        kind=StreamKind.GAZE,
        lsl_suffix="",
        lsl_type="Gaze",
        channels=wire.GAZE_CHANNELS,
        expected_rate_hz=config.gaze.expected_rate_hz,
        instant=INSTANT,
        latency_ns=config.gaze.latency_ns,
        reorder_window_ns=config.reorder_window_ns,
        in_order=config.reorder_window_ns > 0,
        # The matcher holds gaze back for 12 to 120 ms and more.
        arrivals_bound_clock=False,
        layout=wire.gaze_layout(width_px, height_px),
    )


def pupil_stream(device: DeviceDescriptor, config: PupilCoreSource, eye: int, method: str) -> StreamDescriptor:
    """Pupil datums of one eye (0 is the right one) and one method."""
    return StreamDescriptor(
        device=device,
        name=f"pupil_{eye}_{method}",
        kind=StreamKind.PUPIL,
        lsl_suffix=f"Pupil{eye}_{method}",
        lsl_type="Pupillometry",
        channels=tuple(msgspec.structs.replace(c, eye="left" if eye else "right") for c in wire.PUPIL_CHANNELS),
        expected_rate_hz=config.pupil.expected_rate_hz,
        instant=INSTANT,
        latency_ns=config.pupil.latency_ns,
        layout=wire.pupil_layout(eye, method),
    )
