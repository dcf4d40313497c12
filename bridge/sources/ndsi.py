"""Companion devices over NDSI v4: discovered by ZRE, read by ZeroMQ, their clocks measured by ``<<time>>`` echoes.

Protocol: pupil-labs.com's NDSI v4 specification. Sensors used: hardware, and those that the configuration chooses of
gaze, event, IMU and cameras; others are listed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections import Counter
from typing import Any

import zmq

from bridge.clock.host import monotonic_ns
from bridge.config import ClockConfig, NdsiDevice, NdsiSource
from bridge.errors import DeviceUnavailable, MalformedMessage, Refused
from bridge.names import KEPT_IDS, DeviceNames
from bridge.pipeline import Device, Pipeline
from bridge.service.quiet import LineBudget
from bridge.sources.interfaces import Interface, find_interface
from bridge.sources.ndsi_choice import recognise
from bridge.sources.ndsi_doubt import Doubts
from bridge.sources.ndsi_phone import Phone
from bridge.sources.ndsi_sensor import check_endpoints
from bridge.sources.ndsi_session import TimeSyncSession
from bridge.sources.ndsi_streams import streams
from bridge.sources.zre import ZreEvent, ZreNode
from bridge.streams import DeviceDescriptor
from bridge.wire import ndsi

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 1.0
SILENT_AFTER_NS = 1_500_000_000  # a device that streams and is silent for this long is not in the way of another
# The usual limit of 1024 file descriptors has to do, also for phones that only pretend to be some. What is configured
# comes on top.
MAX_PHONES = 12  # up to 36 file descriptors each
MAX_POSTPONED = 1000  # announcements while the devices are changed, half a second
MAX_DISCOVERED = 12  # devices besides those that are configured: each has outlets for as long as the daemon runs


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
        self._sessions: dict[str, TimeSyncSession] = {}  # by device, for as long as the daemon runs
        self._life: object = None  # of the discovery node, another one at each run
        self._doubts = Doubts(self._rivals, self._attach, SILENT_AFTER_NS, lambda: self._postponed is not None)
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
                self._doubts.clear()
                for peer in list(self._phones):
                    self._peer_gone(peer)
            raise DeviceUnavailable(reason)
        finally:
            self._life = None
            self._doubts.clear()
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
                    phone.sent(event.content[0], event.sent_ns)
            case "EXIT":
                self._doubts.forget(event.peer)
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
            known = event.peer in self._phones or self._names.known(announcement.sensor_uuid) is not None
            if known or not self._doubts.keeps(event.peer, event.name, announcement, self._tasks):
                self._attach(event.peer, event.name, announcement)
        elif (phone := self._phones.get(event.peer)) is not None:
            phone.announced.pop(announcement.sensor_uuid, None)
            phone.detach(announcement.sensor_uuid)
        else:
            self._doubts.detach(event.peer, announcement.sensor_uuid)

    def _rivals(self, own_name: str) -> list[Phone]:
        """The phones of this name of which something is known: one that has not sent yet is there."""
        return [phone for phone in self._phones.values() if phone.own_name == own_name and phone.has_sent]

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
        session = self._session(config)
        phone = Phone(self, peer, own_name, config, device)
        phone.plan_pings()  # as the intervals are now; whether it records is not known yet
        self._phones[peer] = phone
        self.node.keep(peer)
        device.attached()
        self._say("%s: device %r is there", config.name, own_name)
        phone.tasks.append(self._tasks.create_task(phone.keep_time(), name=f"clock of {config.name}"))
        if session is not None:
            task = self._tasks.create_task(phone.keep_session(session), name=f"time-sync events of {config.name}")
            phone.tasks.append(task)
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
        return recognise(
            self._config.devices, self._names, own_name, sensor_uuid, lambda name: self._in_use(name, own_name)
        )

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
        session = self._session(config)
        device = self._pipeline.device(
            DeviceDescriptor(
                name=config.name,
                kind="ndsi",
                lsl_prefix=config.lsl_prefix,
                model="Companion device (NDSI v4)",
                transport="NDSI v4",
                session_id="" if session is None else session.id,
            ),
            config.path_asymmetry_ns,
        )
        if not device.streams:  # a file of intrinsics that has changed since is a matter for the next reload
            for stream in streams(device.descriptor, config):
                device.stream(stream)
        device.actions = {
            "record": lambda given: self._named(config.name).record(given),
            "event": lambda given: self._named(config.name).send_event(given),
            "annotate": lambda given: self._named(config.name).send_event(given),
        }
        return device

    def _session(self, config: NdsiDevice) -> TimeSyncSession | None:
        return self._sessions.setdefault(config.name, TimeSyncSession()) if config.time_sync_events else None

    def _named(self, name: str) -> Phone:
        """The phone that is this device now. Raises Refused."""
        phone = next((phone for phone in self._phones.values() if phone.name == name), None)
        if phone is None:
            raise Refused(f"{name}: the device is not there")
        return phone
