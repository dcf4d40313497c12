"""One Companion device while it is there: its sensors, its data on their way to the streams, its clock's pings."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import zmq

from bridge.clock.host import monotonic_ns
from bridge.config import ClockConfig, NdsiDevice
from bridge.control import Event, Record
from bridge.errors import MalformedMessage, Refused
from bridge.pipeline import Device
from bridge.service.quiet import LineBudget
from bridge.sources import ndsi_control
from bridge.sources.ndsi_camera import Camera
from bridge.sources.ndsi_choice import why_unused
from bridge.sources.ndsi_echo import EchoExchange, Owed
from bridge.sources.ndsi_sensor import Sensor
from bridge.sources.ndsi_session import TimeSyncSession
from bridge.sources.ndsi_streams import camera_of, cameras
from bridge.sources.zre import ZreNode
from bridge.stream_input import StreamInput
from bridge.wire import ndsi, ndsi_media

log = logging.getLogger(__name__)

UNKNOWN_WORN = (math.nan,)
PING_POLL_S = 0.05
# Hosts that ping one phone in step would do so for ever: each finds the other's echoes among its own.
OUT_OF_STEP_S = 0.5
SESSION_POLL_S = 0.25
# Of the types that are used, of which a phone has four; cameras that are used come on top.
MAX_SENSORS_PER_PEER = 6
EVENT = b"event"  # begins the tokens of events, those of pings begin with a number


class Owner(Protocol):
    """What a phone needs of its source."""

    name: str
    node: ZreNode
    clock_config: ClockConfig
    loop: asyncio.AbstractEventLoop
    context: zmq.Context[Any]
    lines: LineBudget


class Phone:
    """One ZRE peer that announces sensors: the life of an app on the network."""

    def __init__(self, source: Owner, peer: uuid.UUID, own_name: str, config: NdsiDevice, device: Device) -> None:
        self.peer = peer
        self.own_name = own_name
        self.device = device
        self.sensors: dict[str, Sensor] = {}
        self.ids: set[str] = set()  # of its sensors, the unused ones too
        self.announced: dict[str, ndsi.Attach] = {}
        self.last_data_ns = self._met_ns = monotonic_ns()
        self._source = source
        self._chosen = config.sensors
        self._cameras: dict[str, Camera] = {}  # by the sensor's UUID
        self._exchange: EchoExchange | None = None
        self._owed = Owed()
        self._exchanges = 0
        self._was_without_echo = False
        self._recording = asyncio.Lock()
        self._events: dict[bytes, asyncio.Future[bool]] = {}  # that are to leave, by their token
        self._events_sent = 0
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        return self.device.descriptor.name

    @property
    def has_sent(self) -> bool:
        return self.last_data_ns > self._met_ns

    def attach(self, attach: ndsi.Attach) -> None:
        """Opens the sensor, if it is of a type that is used."""
        known = self.sensors.get(attach.sensor_uuid)
        if known is not None:
            if known.attach == attach:
                return  # whispered and shouted
            self.detach(attach.sensor_uuid)
        if (why := why_unused(attach, self._chosen)) is not None:
            log.debug("%s: sensor %r (%s) is not used: %s", self.name, attach.sensor_name, attach.sensor_type, why)
            return
        if len(self.sensors) >= MAX_SENSORS_PER_PEER + len(cameras(self._chosen)):
            self.device.malformed["too_many_sensors"] += 1
            return
        if attach.sensor_type == "video" and self._camera_is_there(attach):
            self.device.malformed["camera_twice"] += 1
            return
        if attach.sensor_type == "event" and self._was_without_echo:
            # Whether the app's clock went on meanwhile is not known.
            self._was_without_echo = False
            self.device.attached()
        try:
            self.sensors[attach.sensor_uuid] = Sensor(
                self._source.loop,
                self._source.context,
                attach,
                device=self.name,
                malformed=self.device.malformed,
                lines=self._source.lines,
                on_data=self._on_data(attach),
                on_control=self._on_control,
            )
        except zmq.ZMQError as error:
            self.device.malformed["no_connection"] += 1
            self._cameras.pop(attach.sensor_uuid, None)
            text = "%s: sensor %r cannot be connected to: %s"
            self._say(text, attach.sensor_name, error, stream=attach.sensor_type)
            return
        self._say("%s: sensor %r (%s) attached", attach.sensor_name, attach.sensor_type, stream=attach.sensor_type)

    def detach(self, sensor_uuid: str) -> None:
        sensor = self.sensors.pop(sensor_uuid, None)
        if sensor is not None:
            self._let_go(sensor)
            if sensor.attach.sensor_type == "hardware":
                self.device.recording = None
            self._was_without_echo |= sensor.attach.sensor_type == "event"
            self._say("%s: sensor %r detached", sensor.attach.sensor_name, stream=sensor.attach.sensor_type)

    def _say(self, text: str, *arguments: object, stream: str | None = None) -> None:
        fields = {"DEVICE": self.name, "SOURCE": self._source.name}
        if stream is not None:
            fields["STREAM"] = stream
        log.log(self._source.lines.level(logging.INFO), text, self.name, *arguments, extra=fields)

    def close(self) -> None:
        self.device.recording = None
        for sensor_uuid in list(self.sensors):
            self._let_go(self.sensors.pop(sensor_uuid))
        for left in self._events.values():
            if not left.done():
                left.set_result(False)
        for task in self.tasks:
            task.cancel()

    def _let_go(self, sensor: Sensor) -> None:
        sensor.close()
        if (camera := self._cameras.pop(sensor.attach.sensor_uuid, None)) is not None:
            camera.close()

    def _camera_is_there(self, attach: ndsi.Attach) -> bool:
        """Two cameras' frames in one stream would be neither's."""
        others = (sensor.attach.sensor_name for sensor in self._of_type("video"))
        return camera_of(attach.sensor_name) in {camera_of(name) for name in others}

    def _on_data(self, attach: ndsi.Attach) -> Callable[[list[bytes]], None] | None:
        """What takes the sensor's data; None for the hardware, which has none."""
        match attach.sensor_type:
            case "gaze":
                gaze = self.device.streams["gaze"]
                return partial(self._on_gaze, gaze, UNKNOWN_WORN if len(gaze.descriptor.channels) > 2 else ())
            case "event":
                return partial(self._on_event, self.device.streams["event"])
            case "imu":
                return partial(self._on_imu, self.device.streams["imu"])
            case "video":
                stream = self.device.streams[camera_of(attach.sensor_name) or ""]
                camera = self._cameras[attach.sensor_uuid] = Camera(self._source.loop, stream, self.device.malformed)
                return partial(self._on_video, camera)
        return None

    def _of_type(self, sensor_type: str) -> list[Sensor]:
        return [sensor for sensor in self.sensors.values() if sensor.attach.sensor_type == sensor_type]

    def _on_gaze(self, stream: StreamInput, rest: tuple[float, ...], frames: list[bytes]) -> None:
        received_ns = monotonic_ns()
        try:
            device_ns, x, y = ndsi.decode_gaze(frames)
        except MalformedMessage:
            self.device.malformed["gaze"] += 1
            return
        self.last_data_ns = received_ns
        stream.sample(device_ns, received_ns, (x, y, *rest))

    def _on_event(self, stream: StreamInput, frames: list[bytes]) -> None:
        received_ns = monotonic_ns()
        try:
            device_ns, text = ndsi.decode_event(frames)
        except MalformedMessage:
            self.device.malformed["event"] += 1
            return
        self.last_data_ns = received_ns
        if text == ndsi.TIME_ECHO:
            if self._exchange is not None:
                self._exchange.echo(device_ns, received_ns)
            else:
                self._owed.echo()
            return
        stream.sample(device_ns, received_ns, text)

    def _on_imu(self, stream: StreamInput, frames: list[bytes]) -> None:
        received_ns = monotonic_ns()
        try:
            samples = ndsi_media.decode_imu(frames)
        except MalformedMessage:
            self.device.malformed["imu"] += 1
            return
        self.last_data_ns = received_ns
        stream.batch(samples, received_ns)

    def _on_video(self, camera: Camera, frames: list[bytes]) -> None:
        if camera.on_data(frames):
            self.last_data_ns = monotonic_ns()

    def _on_control(self, update: ndsi.ControlUpdate) -> None:
        if update.control_id == "local_capture":
            self.device.recording = update.value is True
            self.plan_pings()

    def plan_pings(self) -> None:
        """Rarely while the device records: each ping lands in the participant's recording."""
        plan, intervals = self.device.clock.plan, self._source.clock_config
        recording = self.device.recording is True
        plan.interval_ns = intervals.recording_ping_interval_ns if recording else intervals.ping_interval_ns
        plan.pairs = not recording

    def sent(self, token: bytes, sent_ns: int) -> None:
        """What was whispered with this token has left."""
        if (left := self._events.get(token)) is not None:
            if not left.done():
                left.set_result(True)
            return
        exchange, number = token.split(b".")
        if exchange == EVENT:
            return  # nobody waits for it any more
        if self._exchange is not None and int(exchange) == self._exchanges:
            self._exchange.sent(int(number), sent_ns)

    async def keep_time(self) -> None:
        """Asks the device for its time whenever its clock wants to know."""
        clock = self.device.clock
        payload = ndsi.encode_event(ndsi.TIME_ECHO, None)

        def send(number: int) -> None:
            self._source.node.whisper_stamped(self.peer, payload, b"%d.%d" % (self._exchanges, number))

        while True:
            wait_s = (clock.plan.next_ns() - monotonic_ns()) / 1e9
            may_echo = any(sensor.may_echo for sensor in self._of_type("event"))
            if wait_s > 0 or not may_echo or self._owed.waits(monotonic_ns()):
                await asyncio.sleep(min(max(wait_s, PING_POLL_S), 4 * PING_POLL_S))
                continue
            self._exchange = exchange = EchoExchange(send, 2 if clock.plan.pairs else 1)
            self._exchanges += 1
            exchange.begin()
            clock.plan.sent(monotonic_ns())
            trips = await exchange.result()
            self._exchange = None
            self._owed.after(exchange, clock.locked, monotonic_ns())
            if not trips:
                self.device.malformed["echo_lost_or_doubtful"] += 1
            if exchange.unanswered < 0:
                await asyncio.sleep(random.uniform(0, OUT_OF_STEP_S))
            for trip in trips:
                self.device.ping(trip)

    async def keep_session(self, session: TimeSyncSession) -> None:
        """Sends the session's events, once the device's clock is known and each minute from then on. They go beside
        pings, which neither wait for them nor keep them waiting."""
        while True:
            wait_s = (session.next_ns - monotonic_ns()) / 1e9
            may_come_back = any(sensor.may_echo for sensor in self._of_type("event"))
            if wait_s > 0 or not self.device.clock.locked or not may_come_back:
                await asyncio.sleep(max(wait_s, SESSION_POLL_S))
                continue
            text = session.text(monotonic_ns())
            if not await self._whisper(ndsi.encode_event(text, None)):
                log.debug("%s: %s could not be sent", self.name, text)

    async def record(self, given: Record) -> str:
        """Starts or stops the recording on the phone. Raises Refused with what it says."""
        async with self._recording:
            try:
                return await ndsi_control.record(next(iter(self._of_type("hardware")), None), given)
            except Refused as error:
                raise Refused(f"{self.name}: {error}") from error

    async def send_event(self, given: Event) -> str:
        """Makes an event on the phone. Raises Refused when it cannot be sent."""
        try:
            return await ndsi_control.send_event(self._whisper, self.device.clock.to_device, given, monotonic_ns())
        except Refused as error:
            raise Refused(f"{self.name}: {error}") from error

    async def _whisper(self, payload: bytes) -> bool:
        """Whether it has left in time."""
        self._events_sent += 1
        token = b"%s.%d" % (EVENT, self._events_sent)
        left: asyncio.Future[bool] = self._source.loop.create_future()
        self._events[token] = left
        try:
            self._source.node.whisper_stamped(self.peer, payload, token)
            # Until Python 3.12 wait_for() swallows a cancellation that comes with the result, as `close` makes them.
            async with asyncio.timeout(ndsi_control.SENT_S):
                return await left
        except TimeoutError:
            return False
        finally:
            del self._events[token]
