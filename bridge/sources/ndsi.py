"""Companion devices over NDSI v4: discovered by ZRE, read by ZeroMQ, their clocks measured by ``<<time>>`` echoes.

Protocol: pupil-labs.com's NDSI v4 specification. Sensors used: gaze, event, hardware; other types are listed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import uuid
from collections import Counter
from typing import Any

import zmq

from bridge.clock.host import monotonic_ns
from bridge.config import ClockConfig, NdsiDevice, NdsiSource
from bridge.errors import DeviceUnavailable, MalformedMessage
from bridge.names import KEPT_IDS, DeviceNames
from bridge.pipeline import Device, Pipeline
from bridge.service.quiet import LineBudget
from bridge.sources.interfaces import Interface, find_interface
from bridge.sources.ndsi_echo import EchoExchange, Owed
from bridge.sources.ndsi_sensor import Sensor, check_endpoints
from bridge.sources.zre import ZreEvent, ZreNode
from bridge.streams import Channel, DeviceDescriptor, GazeLayout, StreamDescriptor, StreamKind
from bridge.wire import ndsi

log = logging.getLogger(__name__)

NAN = math.nan
WATCH_INTERVAL_S = 1.0
PING_POLL_S = 0.05
SILENT_AFTER_NS = 1_500_000_000  # a device that streams and is silent for this long is not in the way of another
MAX_SENSORS_PER_PEER = 6  # of the types that are used, of which a phone has three
# The usual limit of 1024 file descriptors has to do, also for phones that only pretend to be some. What is configured
# comes on top.
MAX_PHONES = 12  # up to 36 file descriptors each
MAX_POSTPONED = 1000  # announcements while the devices are changed, half a second
MAX_DISCOVERED = 12  # devices besides those that are configured: each has outlets for as long as the daemon runs

GAZE_CHANNELS = (
    Channel("x", "pixels", "ScreenX", coordinate_system="world"),
    Channel("y", "pixels", "ScreenY", coordinate_system="world"),
    Channel("worn", "boolean", "Worn"),
)
GAZE_LAYOUT = GazeLayout(0, 1, False, ndsi.SCENE_WIDTH_PX, ndsi.SCENE_HEIGHT_PX, worn_index=2)


class Phone:
    """One ZRE peer that announces sensors: the life of an app on the network."""

    def __init__(
        self, source: NdsiDeviceSource, peer: uuid.UUID, own_name: str, config: NdsiDevice, device: Device
    ) -> None:
        self.peer = peer
        self.own_name = own_name
        self.device = device
        self.sensors: dict[str, Sensor] = {}
        self.ids: set[str] = set()  # of its sensors, the unused ones too
        self.announced: dict[str, ndsi.Attach] = {}
        self.last_data_ns = monotonic_ns()
        self._source = source
        self._gaze = device.stream(gaze_stream(device.descriptor, config))
        self._event = device.stream(event_stream(device.descriptor, config))
        self._exchange: EchoExchange | None = None
        self._owed = Owed()
        self._exchanges = 0
        self._was_without_echo = False
        self.task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.device.descriptor.name

    def attach(self, attach: ndsi.Attach) -> None:
        """Opens the sensor, if it is of a type that is used."""
        known = self.sensors.get(attach.sensor_uuid)
        if known is not None:
            if known.attach == attach:
                return  # whispered and shouted
            self.detach(attach.sensor_uuid)
        on_data = {"gaze": self._on_gaze, "event": self._on_event}.get(attach.sensor_type)
        if on_data is None and attach.sensor_type != "hardware":
            log.debug("%s: sensor %r of type %r is not used", self.name, attach.sensor_name, attach.sensor_type)
            return
        if len(self.sensors) >= MAX_SENSORS_PER_PEER:
            self.device.malformed["too_many_sensors"] += 1
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
                on_data=on_data,
                on_control=self._on_control,
            )
        except zmq.ZMQError as error:
            self.device.malformed["no_connection"] += 1
            text = "%s: sensor %r cannot be connected to: %s"
            self._say(text, attach.sensor_name, error, stream=attach.sensor_type)
            return
        self._say("%s: sensor %r (%s) attached", attach.sensor_name, attach.sensor_type, stream=attach.sensor_type)

    def detach(self, sensor_uuid: str) -> None:
        sensor = self.sensors.pop(sensor_uuid, None)
        if sensor is not None:
            sensor.close()
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
            self.sensors.pop(sensor_uuid).close()
        if self.task is not None:
            self.task.cancel()

    def _event_sensors(self) -> list[Sensor]:
        return [sensor for sensor in self.sensors.values() if sensor.attach.sensor_type == "event"]

    def _on_gaze(self, frames: list[bytes]) -> None:
        received_ns = monotonic_ns()
        try:
            device_ns, x, y = ndsi.decode_gaze(frames)
        except MalformedMessage:
            self.device.malformed["gaze"] += 1
            return
        self.last_data_ns = received_ns
        self._gaze.sample(device_ns, received_ns, (x, y, NAN))

    def _on_event(self, frames: list[bytes]) -> None:
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
        self._event.sample(device_ns, received_ns, text)

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

    def ping_sent(self, token: bytes, sent_ns: int) -> None:
        exchange, number = token.split(b".")
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
            may_echo = any(sensor.may_echo for sensor in self._event_sensors())
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
            for trip in trips:
                self.device.ping(trip)


class NdsiDeviceSource:
    """All Companion devices on one interface."""

    node: ZreNode

    def __init__(self, config: NdsiSource, clock_config: ClockConfig, names: DeviceNames) -> None:
        self.name = f"ndsi {config.interface or 'auto'}"
        self.clock_config = clock_config
        self.loop: asyncio.AbstractEventLoop
        self.context: zmq.Context[Any]
        self._config = config
        self._names = names
        self._pipeline: Pipeline
        self._phones: dict[uuid.UUID, Phone] = {}
        self._tasks: asyncio.TaskGroup
        self._counts: Counter[str] = Counter()
        self._node_counts: Counter[str] = Counter()
        self._own_names: set[str] = set()
        self._life: object = None  # of the discovery node, another one at each run
        self._postponed: list[ZreEvent] | None = None  # what comes while the devices are changed
        self.lines = LineBudget()

    def open(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        for device in self._config.devices:
            self._declare(device)

    @property
    def device_names(self) -> tuple[str, ...]:
        return tuple(self._own_names)

    def set_clock(self, clock: ClockConfig) -> None:
        self.clock_config = clock
        for phone in self._phones.values():
            phone.plan_pings()

    async def reconfigure(self, config: NdsiSource) -> None:
        """Changes what is expected on the same network; devices whose configuration stays are not touched.

        Phones that are another device now, or one that has changed, are met anew.
        """
        before = {device.name: device for device in self._config.devices}
        after = {device.name: device for device in config.devices}
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        expected = [after[name] for name in changed & after.keys()]
        anew = [
            phone
            for phone in self._phones.values()
            if phone.name in changed
            or (phone.name not in after and any(device.matches(phone.own_name) for device in expected))
        ]
        self._config = config
        self._postponed = []
        life = self._life
        try:
            for phone in anew:
                self._peer_gone(phone.peer)
            for name in ({phone.name for phone in anew} | changed) & self._own_names:
                self._own_names.discard(name)
                await self._pipeline.remove_device(name)
            for device in config.devices:
                self._declare(device)
            for phone in anew if life is not None and life is self._life else ():
                for sensor in phone.announced.values():
                    self._attach(phone.peer, phone.own_name, sensor)
        finally:
            postponed, self._postponed = self._postponed, None
            for event in postponed:
                self._on_zre(event)

    def status(self) -> dict[str, object]:
        return {
            "type": "ndsi",
            "interface": str(self._config.interface) if self._config.interface else None,
            "peers": [phone.own_name for phone in self._phones.values()],
            "counts": dict(self._counts + self._node_counts),
        }

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        try:
            interface = self._find_interface()
        except OSError as error:
            raise DeviceUnavailable(f"the interfaces of this host cannot be listed: {error}") from error
        node = self.node = ZreNode(
            self.loop,
            self._on_zre,
            name=f"pupil-bridge@{socket.gethostname()}:{os.getpid()}",
            group=ndsi.GROUP,
            interface=interface,
            port=self._config.beacon_port,
        )
        self.context = zmq.Context()
        self._node_counts = node.counts
        text = "looking for Companion devices on %s (broadcast %s)"
        log.info(text, interface.address, interface.broadcast, extra={"SOURCE": self.name})
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._life = object()
                reason = await self._watch(node)
                for peer in list(self._phones):
                    self._peer_gone(peer)
            raise DeviceUnavailable(reason)
        finally:
            self._life = None
            if self._postponed:
                self._postponed.clear()
            for peer in list(self._phones):
                self._peer_gone(peer)
            node.stop()
            self._counts += node.counts
            self._node_counts = Counter()
            self.context.destroy(0)

    async def _watch(self, node: ZreNode) -> str:
        """Returns why discovery has to begin anew."""
        while node.alive:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                interface = self._find_interface()
            except DeviceUnavailable as error:
                return str(error)
            except OSError:
                continue  # nothing is known of a change
            if interface != node.interface:
                return f"the network has changed from {node.interface.address} to {interface.address}"
        return "the discovery node has ended"

    def _find_interface(self) -> Interface:
        return find_interface(str(self._config.interface) if self._config.interface else None)

    # --- discovery -----------------------------------------------------------------------------------------------

    def _on_zre(self, event: ZreEvent) -> None:
        if self._postponed is not None and event.type != "SENT":
            if len(self._postponed) < MAX_POSTPONED:
                self._postponed.append(event)
            return
        match event.type:
            case "WHISPER" | "SHOUT":
                self._announced(event)
            case "SENT":
                if (phone := self._phones.get(event.peer)) is not None:
                    phone.ping_sent(event.content[0], event.sent_ns)
            case "EXIT":
                self._peer_gone(event.peer)

    def _announced(self, event: ZreEvent) -> None:
        try:
            announcement = ndsi.parse_announcement(event.content[0] if event.content else b"")
            if isinstance(announcement, ndsi.Attach):
                check_endpoints(announcement, self.node.interface.address)
        except MalformedMessage as error:
            self._counts["announcements_malformed"] += 1
            log.debug("from %r: %s", event.name, error)
            return
        if isinstance(announcement, ndsi.Attach):
            self._attach(event.peer, event.name, announcement)
        elif (phone := self._phones.get(event.peer)) is not None:
            phone.announced.pop(announcement.sensor_uuid, None)
            phone.detach(announcement.sensor_uuid)

    def _attach(self, peer: uuid.UUID, own_name: str, attach: ndsi.Attach) -> None:
        phone = self._phones.get(peer) or self._meet(peer, own_name, attach.sensor_uuid)
        if phone is None:
            return
        if len(phone.ids) < KEPT_IDS:  # each new one is written to the disk
            phone.ids.add(attach.sensor_uuid)
            self._names.remember(phone.name, phone.own_name, attach.sensor_uuid)
        if attach.sensor_uuid in phone.announced or len(phone.announced) < KEPT_IDS:
            phone.announced[attach.sensor_uuid] = attach
        phone.attach(attach)

    def _meet(self, peer: uuid.UUID, own_name: str, sensor_uuid: str) -> Phone | None:
        """The phone that this peer is from now on. None when there are too many."""
        config = self._recognise(own_name, sensor_uuid)
        if config not in self._config.devices and not self._has_room(config.name):
            self._counts["devices_turned_away"] += 1
            return None
        for other in list(self._phones.values()):
            if other.name == config.name:
                # The app was killed and is back under a new identity; ZRE will notice the old one's end only later.
                self._peer_gone(other.peer)
        device = self._declare(config)
        phone = Phone(self, peer, own_name, config, device)
        phone.plan_pings()  # as the intervals are now; whether it records is not known yet
        self._phones[peer] = phone
        self.node.keep(peer)
        device.attached()
        self._say("%s: device %r is there", config.name, own_name)
        phone.task = self._tasks.create_task(phone.keep_time(), name=f"clock of {config.name}")
        return phone

    def _peer_gone(self, peer: uuid.UUID) -> None:
        phone = self._phones.pop(peer, None)
        if phone is not None:
            phone.close()
            phone.device.detached()
            self._say("%s: device %r has gone", phone.name, phone.own_name)

    def _say(self, text: str, name: str, own_name: str) -> None:
        log.log(self.lines.level(logging.INFO), text, name, own_name, extra={"DEVICE": name, "SOURCE": self.name})

    # --- identity ------------------------------------------------------------------------------------------------

    def _recognise(self, own_name: str, sensor_uuid: str) -> NdsiDevice:
        """Which device this is: a configured one that matches, or one that was seen before, or a new one."""
        known = self._names.known(sensor_uuid)
        configured = [device for device in self._config.devices if device.matches(own_name)]
        for device in configured:
            if device.name == known:
                return device
        for device in configured:
            if not self._in_use(device.name, own_name):
                return device
        taken = {device.name for device in self._config.devices}
        name = known if known is not None and known not in taken else None
        if name is None:
            name = self._names.choose(own_name, lambda name: name in taken or self._in_use(name, own_name))
        return NdsiDevice(name=name)

    def _in_use(self, name: str, own_name: str) -> bool:
        """Whether a device of that name is there, so that one that calls itself ``own_name`` cannot be it.

        One of the same own name that is silent may be its app of before, which was killed.
        """
        if name in self._pipeline.devices and name not in self._own_names:
            return True  # another source's
        now_ns = monotonic_ns()
        return any(
            p.name == name and (p.own_name != own_name or now_ns - p.last_data_ns < SILENT_AFTER_NS)
            for p in self._phones.values()
        )

    def _has_room(self, name: str) -> bool:
        """For a device that is not configured."""
        configured = {device.name for device in self._config.devices}
        there = sum(phone.name not in configured for phone in self._phones.values())
        return there < MAX_PHONES and (name in self._own_names or len(self._own_names - configured) < MAX_DISCOVERED)

    def _declare(self, config: NdsiDevice) -> Device:
        self._own_names.add(config.name)
        device = self._pipeline.device(
            DeviceDescriptor(
                name=config.name,
                kind="ndsi",
                lsl_prefix=config.lsl_prefix,
                model="Companion device (NDSI v4)",
                transport="NDSI v4",
            ),
            config.path_asymmetry_ns,
        )
        device.stream(gaze_stream(device.descriptor, config))
        device.stream(event_stream(device.descriptor, config))
        return device


def gaze_stream(device: DeviceDescriptor, config: NdsiDevice) -> StreamDescriptor:
    return StreamDescriptor(
        device=device,
        name="gaze",
        kind=StreamKind.GAZE,
        lsl_suffix="Gaze",
        lsl_type="Gaze",
        channels=GAZE_CHANNELS,
        expected_rate_hz=config.gaze.expected_rate_hz,
        instant="stamped by the Companion app; the cameras' latency before that is not known",
        latency_ns=config.gaze.latency_ns,
        layout=GAZE_LAYOUT,
    )


def event_stream(device: DeviceDescriptor, config: NdsiDevice) -> StreamDescriptor:
    return StreamDescriptor(
        device=device,
        name="event",
        kind=StreamKind.EVENT,
        lsl_suffix="Event",
        lsl_type="Markers",
        expected_rate_hz=config.event.expected_rate_hz,
        instant="the sender's time where it gave one, else arrival at the app",
        latency_ns=config.event.latency_ns,
        # A sender may give any time, also one before the last event's: that is what happened then.
        in_order=False,
        arrivals_bound_clock=False,
    )
