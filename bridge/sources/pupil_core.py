"""Pupil Capture and Pupil Service over their Network API: the connection, and the clock by ``t``.

Source: docs.pupil-labs.com "Network API", and the behaviour of Pupil Capture 3.6. What is not chosen is not subscribed
to: publishers filter. Nothing announces that Capture's clock is set but its log, which is on the backbone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import zmq

from bridge.clock import RoundTrip
from bridge.clock.host import monotonic_ns
from bridge.config import ClockConfig, NdsiSource, PupilCoreSource
from bridge.errors import DeviceUnavailable, MalformedMessage
from bridge.pipeline import Device, Pipeline
from bridge.sources.pupil_core_control import PupilCoreControl
from bridge.sources.pupil_core_data import PupilCoreData
from bridge.sources.pupil_core_streams import video_stream
from bridge.sources.pupil_core_video import PupilCoreVideo
from bridge.sources.pupil_remote import NoAnswer, PupilRemote, numeric
from bridge.sources.pupil_time_sync import NoEcho, TimeSync
from bridge.sources.zmqio import Lifeline, ZmqReader, subscriber
from bridge.stream_input import StreamInput
from bridge.streams import DeviceDescriptor
from bridge.wire import pupil_core_notes as notes
from bridge.wire import pupil_remote as remote_wire
from bridge.wire.pupil_core import UnknownTopic
from bridge.wire.pupil_core_frames import CAMERAS

__all__ = ["NoAnswer", "PupilCoreDeviceSource", "PupilRemote"]

log = logging.getLogger(__name__)
OnFrames = Callable[[list[bytes]], None]

REQUESTS_LOST_UNTIL_GONE = 3
HIGH_WATER_MARK = 10_000
MAX_MESSAGE_BYTES = 4 << 20  # anybody can publish on the backbone; a larger one costs the connection
NOTES_HIGH_WATER_MARK = 1000
NOTES_MAX_BYTES = 8 << 20  # notify.calibration.setup.v2 has 1.7 MB
BURST = 8  # round trips in a row: the fastest of them counts, each is written to Capture's log
DATA_PATIENCE_NS = 3_000_000_000  # without a datum, data and Pupil Remote are gone together
BURST_INTERVAL_S = 3.0  # after the first bursts
PORTS_CHECK_S = 5.0
PING_POLL_S = 0.05
# Capture answers at once, and its datums can be a second old: what it says of its clock is worth waiting for.
STEP_PATIENCE_NS = 2_000_000_000
ANNOTATION = notes.ANNOTATION.encode()
CONFIRM_BURSTS = 10  # so often at least the clock is asked through Pupil Remote, where Time Sync answers as well


class Subscription:
    """Topics of the backbone on a socket of their own, connected again for as long as it is open."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, data: zmq.Socket[bytes], backbone: str, on_frames: OnFrames
    ) -> None:
        """Owns the socket from now on. Raises zmq.ZMQError without a file descriptor."""
        self._reader = ZmqReader(loop, data, on_frames)
        try:
            self._lifeline = Lifeline(loop, data, backbone)
        except zmq.ZMQError:
            self._reader.close()
            raise

    def close(self) -> None:
        self._lifeline.close()
        self._reader.close()


class PupilCoreDeviceSource:
    """One Pupil Capture or Service."""

    def __init__(self, config: PupilCoreSource, clock_config: ClockConfig) -> None:
        self.name = f"pupil_core {config.address}"
        self._config = config
        self._clock_config = clock_config
        self._counts: Counter[str] = Counter()
        self._device: Device
        self._data: PupilCoreData
        self._cameras: dict[str, StreamInput] = {}
        self._video: PupilCoreVideo | None = None
        self._control: PupilCoreControl
        self._version: str | None = None
        self._time_sync: TimeSync | None = None
        self._told_time_sync = False
        self._echoed = 0  # bursts since Pupil Remote was asked
        self._ended = False  # so Capture says; anybody can
        self._clock_set = asyncio.Event()  # by what is said or seems, and no round trip has been made since

    def open(self, pipeline: Pipeline) -> None:
        config = self._config
        descriptor = DeviceDescriptor(
            name=config.name,
            kind="pupil_core",
            lsl_prefix=config.lsl_prefix,
            model="Pupil Core",
            transport="Pupil Core Network API",
        )
        self._device = pipeline.device(descriptor, config.path_asymmetry_ns, STEP_PATIENCE_NS, steps_at_once=True)
        self._data = PupilCoreData(self._device, config, self._counts, self._clock_set.set)
        for topic, camera in CAMERAS.items():
            if topic.decode() in config.topics:
                self._cameras[camera] = self._device.stream(video_stream(descriptor, config, camera))
        self._control = PupilCoreControl(self._device)

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
            "time_sync": None if self._time_sync is None else self._time_sync.asked,
            "counts": dict(self._counts),
        }

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        config = self._config
        host = await numeric(loop, config.host)
        context: zmq.Context[Any] = zmq.Context()
        try:
            with contextlib.ExitStack() as open_:
                remote = PupilRemote(loop, context, f"{host}:{config.port}")
                open_.callback(remote.close)
                ports = await self._ports(remote)
                self._version = notes.printable((await remote.ask(b"v"))[0][:40].decode("utf-8", "replace"))
                self._subscribe(open_, context, f"tcp://{host}:{ports[0]}")
                told = "%s: Pupil Capture or Service %s at %s"
                log.info(told, config.name, self._version, config.address, extra={"DEVICE": config.name})
                open_.callback(self._device.detached)
                self._device.attached()
                open_.callback(self._control.detach)
                self._control.attach(remote)
                open_.callback(self._data.release)
                self._clock_set.clear()
                self._ended = False
                if config.time_sync:
                    self._open_time_sync(open_)
                await self._keep_time(remote, ports, host)
        except zmq.ZMQError as error:  # no file descriptors left
            raise DeviceUnavailable(f"no connection to Pupil Capture at {config.address}: {error}") from error
        finally:
            self._video = self._time_sync = None
            context.destroy(0)

    def _subscribe(self, open_: contextlib.ExitStack, context: zmq.Context[Any], backbone: str) -> None:
        """Opens the sockets of the backbone, to be closed with ``open_``. Raises zmq.ZMQError."""
        loop = asyncio.get_running_loop()
        topics = [topic for topic in notes.TOPICS if topic != notes.LOGGED.encode()]
        topics = list(dict.fromkeys([*topics, *notes.ENDED, *self._data.note_topics]))
        said = subscriber(context, backbone, topics, NOTES_HIGH_WATER_MARK, NOTES_MAX_BYTES)
        open_.callback(Subscription(loop, said, backbone, self._on_note).close)
        if topics := self._data.datum_topics:
            data = subscriber(context, backbone, topics, HIGH_WATER_MARK, MAX_MESSAGE_BYTES)
            open_.callback(Subscription(loop, data, backbone, self._data.on_datum).close)
        if self._cameras:
            by_plugin = remote_wire.has_frame_plugin(self._version or "")
            self._video = PupilCoreVideo(
                context, backbone, self._config, self._device, self._cameras, self._counts, by_plugin=by_plugin
            )
            open_.callback(self._video.close)

    def _open_time_sync(self, open_: contextlib.ExitStack) -> None:
        """Pupil Remote does as well: without Time Sync the device is there."""
        config = self._config
        address = None if config.interface is None else str(config.interface)
        try:
            self._time_sync = TimeSync(asyncio.get_running_loop(), address, config.beacon_port)
        except DeviceUnavailable as error:
            if not self._told_time_sync:
                self._told_time_sync = True
                text = "%s: no Pupil Time Sync, the clock is asked through Pupil Remote alone: %s"
                log.warning(text, config.name, error, extra={"DEVICE": config.name})
        else:
            open_.callback(self._time_sync.close)

    async def _ports(self, remote: PupilRemote) -> tuple[int, int]:
        """Subscribe and publish port: new ones at each start of Capture."""
        try:
            return (
                remote_wire.parse_port((await remote.ask(b"SUB_PORT"))[0]),
                remote_wire.parse_port((await remote.ask(b"PUB_PORT"))[0]),
            )
        except MalformedMessage as error:
            self._counts["replies_malformed"] += 1
            raise DeviceUnavailable(f"what answers at {self._config.address} is no Pupil Remote: {error}") from error

    def _on_note(self, frames: list[bytes]) -> None:
        topic = frames[0]
        try:
            if topic.startswith(notes.LOG_START):
                self._on_log(frames)
            elif topic.startswith(ANNOTATION):
                self._data.on_annotation(frames)
            else:
                if topic in notes.ENDED:
                    self._ended = True
                    self._clock_set.set()
                elif topic in notes.TOPICS:
                    self._control.on_note(notes.decode_note(frames))
                elif not self._data.takes_notification(topic):
                    raise UnknownTopic(f"{topic[:64]!r} only begins like what was subscribed to")
                if self._data.takes_notification(topic):
                    self._data.on_notification(frames)
        except MalformedMessage as error:
            unknown = isinstance(error, UnknownTopic)
            self._device.malformed["topics_unknown" if unknown else "notifications_malformed"] += 1

    def _on_log(self, frames: list[bytes]) -> None:
        line = notes.decode_log(frames)
        if notes.sets_clock(line):
            # Capture says so a moment after it is done. What is stamped by the new clock comes after that as a rule:
            # pupils 10 ms, gaze tens of ms after.
            self._counts["clock_set_by_log"] += 1
            self._data.hold()
            self._device.clock_was_set(monotonic_ns())
            self._clock_set.set()
        if frames[0] in notes.TOPICS:
            self._control.on_note(notes.decode_note(frames))
        self._control.on_log(line)
        self._data.on_log(line)

    def _data_are_gone(self) -> bool:
        last_ns = max(self._data.last_datum_ns, self._video.last_frame_ns if self._video is not None else 0)
        return monotonic_ns() - last_ns > DATA_PATIENCE_NS

    async def _keep_time(self, remote: PupilRemote, ports: tuple[int, int], host: str) -> None:
        """Measures the clock for as long as Pupil Remote answers, and sees when Capture has been started again."""
        clock = self._device.clock
        self.set_clock(self._clock_config)
        check_ports_at_ns = monotonic_ns() + round(PORTS_CHECK_S * 1e9)
        lost, epoch = 0, clock.epoch
        while True:
            self._data.tick(monotonic_ns())
            wait_s = (clock.plan.next_ns() - monotonic_ns()) / 1e9
            if wait_s > 0 and not self._clock_set.is_set():
                if self._video is not None:
                    with contextlib.suppress(NoAnswer):  # round trips show that soon
                        await self._video.attend(remote)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(max(wait_s, PING_POLL_S), 4 * PING_POLL_S)):
                        await self._clock_set.wait()
                continue
            if self._clock_set.is_set():
                self._clock_set.clear()
            clock.plan.sent(monotonic_ns())
            try:
                for trip in await self._burst(remote, host):
                    self._device.ping(trip)
                if clock.epoch != epoch:
                    self._data.forget_clock()
                if not self._clock_set.is_set():
                    self._data.release()
                # A clock that has stepped is as a rule a Capture that has been started again.
                if clock.epoch != epoch or monotonic_ns() >= check_ports_at_ns:
                    epoch = clock.epoch
                    check_ports_at_ns = monotonic_ns() + round(PORTS_CHECK_S * 1e9)
                    if await self._ports(remote) != ports:
                        raise DeviceUnavailable(f"Pupil Capture at {self._config.address} has been started again")
                if lost >= REQUESTS_LOST_UNTIL_GONE:
                    log.info("%s: Pupil Remote answers again", self._config.name, extra={"DEVICE": self._config.name})
                lost = 0
                self._ended = False
            except NoAnswer:
                self._data.release()
                if self._ended:
                    raise
                lost += 1
                check_ports_at_ns = 0  # it may have been started again in between
                if lost < REQUESTS_LOST_UNTIL_GONE:
                    continue
                if self._data_are_gone():
                    raise
                if lost == REQUESTS_LOST_UNTIL_GONE:
                    # Anybody's empty request ends Pupil Remote, and only that, for good: the data are worth having.
                    text = "%s: Pupil Remote does not answer any more; data go on, the clock is not seen"
                    log.warning(text, self._config.name, extra={"DEVICE": self._config.name})

    async def _burst(self, remote: PupilRemote, host: str) -> list[RoundTrip]:
        """Some round trips in a row: after the first, nobody on the way has to wake up."""
        clock = self._device.clock
        offset_ns, bound_ns = clock.offset_ns, clock.bound_ns
        if (
            self._time_sync is not None
            and offset_ns is not None
            and bound_ns is not None
            and not clock.doubting
            and self._echoed < CONFIRM_BURSTS
        ):
            self._echoed += 1
            with contextlib.suppress(NoEcho):
                return await self._time_sync.burst(host, offset_ns, bound_ns, BURST)
        self._echoed = 0
        trips: list[RoundTrip] = []
        for _ in range(BURST):
            reply, sent_ns, received_ns = await remote.ask(b"t")
            try:
                trips.append(RoundTrip(sent_ns, remote_wire.parse_time(reply), received_ns))
            except MalformedMessage:
                self._counts["replies_malformed"] += 1
        return trips
