"""Who was heard on the network, and what the bridge makes of each: used as which device, or why not. No sockets here.

Beacons are heard before, and also without, a conversation; what a peer says in one is what an NDSI host announces.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bridge.config import NdsiDevice, NdsiSource
from bridge.errors import MalformedMessage
from bridge.names import DeviceNames
from bridge.sources.ndsi_choice import recognise, why_unused
from bridge.sources.ndsi_sensor import check_endpoints
from bridge.sources.ndsi_streams import camera_of
from bridge.sources.zre import ZreEvent
from bridge.sources.zre_beacon import BEACON
from bridge.wire import ndsi

MAX_PEERS = 200  # that are listed
MAX_SENSORS = 100  # that are listed of each
MAX_MALFORMED = 5  # that are told of each
ALL_SENSORS = ("gaze", "event", "imu", "scene", "eyes")
NDSI_GROUP = re.compile(r"pupil-mobile-v([0-9]+)")
GROUPS = (  # of other things of Pupil Labs; their users can name them anew
    (re.compile(r".*time_sync-v[0-9]+"), "Pupil Time Sync"),
    (re.compile(r"pupil-groups"), "Pupil Groups"),
)


@dataclass
class Peer:
    """One that there was a conversation with."""

    name: str
    address: str = ""
    groups: tuple[str, ...] = ()  # as its greeting told, where that is known
    in_group: bool = False
    sensors: dict[str, ndsi.Attach] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)
    left: bool = False

    @property
    def announces(self) -> bool:
        return bool(self.sensors or self.malformed)


@dataclass
class Beacons:
    """One whose beacons are heard. Times in s of time.monotonic()."""

    address: str
    port: int
    first_s: float


class Heard:
    """Everybody on one network. ``own_address`` is the bridge's there."""

    def __init__(self, own_address: str) -> None:
        self.peers: dict[uuid.UUID, Peer] = {}
        self.beacons: dict[uuid.UUID, Beacons] = {}
        self.versions: dict[str, int] = {}  # of beacons that are another ZRE's, by address
        self._own_address = own_address

    def beacon(self, address: str, datagram: bytes) -> None:
        """Any datagram that came to the port of beacons."""
        if len(datagram) != BEACON.size or datagram[:3] != b"ZRE":
            return
        _, version, identity, port = BEACON.unpack(datagram)
        if version != 1:
            if len(self.versions) < MAX_PEERS:
                self.versions[address] = version
        elif port == 0:
            self.beacons.pop(uuid.UUID(bytes=identity), None)
        elif len(self.beacons) < MAX_PEERS or uuid.UUID(bytes=identity) in self.beacons:
            known = self.beacons.get(uuid.UUID(bytes=identity))
            first_s = time.monotonic() if known is None or known.port != port else known.first_s
            self.beacons[uuid.UUID(bytes=identity)] = Beacons(address, port, first_s)

    def event(self, event: ZreEvent) -> None:
        """What the ZRE node tells."""
        if event.peer not in self.peers and len(self.peers) >= MAX_PEERS:
            return
        peer = self.peers.setdefault(event.peer, Peer(event.name))
        match event.type:
            case "ENTER":
                endpoint, *groups = [part.decode("utf-8", "replace") for part in event.content] or [""]
                address = endpoint.removeprefix("tcp://").rpartition(":")[0]
                self.peers[event.peer] = Peer(event.name, address, tuple(groups))
            case "JOIN" | "LEAVE":
                peer.in_group = event.type == "JOIN"
            case "EXIT":
                peer.left = True
            case "WHISPER" | "SHOUT" if event.content:
                self._announced(peer, event.content[0])

    def _announced(self, peer: Peer, frame: bytes) -> None:
        try:
            announcement = ndsi.parse_announcement(frame)
            if isinstance(announcement, ndsi.Attach):
                check_endpoints(announcement, self._own_address)
        except MalformedMessage as error:
            if len(peer.malformed) < MAX_MALFORMED and str(error) not in peer.malformed:
                peer.malformed.append(str(error))
            return
        if isinstance(announcement, ndsi.Detach):
            peer.sensors.pop(announcement.sensor_uuid, None)
        elif announcement.sensor_uuid in peer.sensors or len(peer.sensors) < MAX_SENSORS:
            peer.sensors[announcement.sensor_uuid] = announcement

    # --- what becomes of them ----------------------------------------------------------------------------------------

    def companions(
        self, source: NdsiSource | None, names: DeviceNames | None, elsewhere: Iterable[str] = ()
    ) -> list[dict[str, Any]]:
        """Those that announce sensors, as they would be used by ``source``; None is a bridge that uses all it can.

        ``elsewhere``: names that are those of other sources' devices.
        """
        there = [(identity, peer) for identity, peer in self.peers.items() if peer.announces]
        own_names = [peer.name for _, peer in there if peer.sensors and not peer.left]
        taken = dict.fromkeys(elsewhere, "")  # devices, and what they call themselves
        listed = []
        for identity, peer in there:
            device = None
            if source is not None and names is not None and peer.sensors and not peer.left:
                first = next(iter(peer.sensors))
                device = recognise(source.devices, names, peer.name, first, taken.__contains__)
            twins = own_names.count(peer.name)
            whys = list(_why_device(peer, source, device, taken, twins))
            if device is not None:
                taken[device.name] = peer.name
            listed.append(
                {
                    "zre_uuid": str(identity),
                    "name": peer.name,
                    "address": peer.address,
                    "in_group": peer.in_group,
                    "groups": list(peer.groups),
                    "device": None if device is None else device.name,
                    "why": "; ".join(whys) or None,
                    "sensors": list(_sensors(peer, ALL_SENSORS if device is None else device.sensors)),
                }
            )
            if peer.malformed:
                listed[-1]["malformed"] = peer.malformed[-1]
        return listed

    def others(self) -> list[dict[str, Any]]:
        """Those that announce nothing, and what they may be."""
        return [
            {
                "zre_uuid": str(identity),
                "name": peer.name,
                "address": peer.address,
                "in_group": peer.in_group,
                "groups": list(peer.groups),
                "why": _why_other(peer),
            }
            for identity, peer in self.peers.items()
            if not peer.announces
        ]

    def silent(self) -> dict[uuid.UUID, Beacons]:
        """Those whose beacons are heard and that there is no conversation with; the node's own are among them."""
        return {identity: found for identity, found in self.beacons.items() if identity not in self.peers}


def _why_device(
    peer: Peer, source: NdsiSource | None, device: NdsiDevice | None, taken: dict[str, str], twins: int
) -> Iterator[str]:
    if peer.left:
        yield "it has left while it was listened to"
    elif not peer.sensors:
        yield "nothing that it announces can be used"
    if twins > 1 and not peer.left:
        text = f"{twins} devices call themselves {peer.name!r}"
        yield text if device is None else f"{text}: this one is {device.name!r}"
    if source is None or device is None or device in source.devices:
        return
    matching = [each for each in source.devices if each.matches(peer.name)]
    if matching:
        names = ", ".join(f"{each.name!r} is {taken.get(each.name, '')!r}" for each in matching)
        yield f"every [[source.device]] that matches it is another one already ({names})"
    else:
        yield "no [[source.device]] matches its name"
    chosen = ", ".join(device.sensors)
    yield f"so it is {device.name!r}, after its own name, and has the default settings (it is read for {chosen})"


def _sensors(peer: Peer, chosen: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    cameras: dict[str, ndsi.Attach] = {}
    for attach in peer.sensors.values():
        why = "the device has left" if peer.left else why_unused(attach, chosen)
        if why is None and attach.sensor_type == "video":
            first = cameras.setdefault(camera_of(attach.sensor_name) or "", attach)
            if first is not attach:
                why = f"a second camera for what {first.sensor_name!r} shows already"
        yield {
            "name": attach.sensor_name,
            "type": attach.sensor_type,
            "uuid": attach.sensor_uuid,
            "used": why is None,
            "why": why,
        }


def _why_other(peer: Peer) -> str:
    if peer.left:
        return "it has left while it was listened to"
    if peer.name.startswith("pupil-bridge"):
        return "a pupil-bridge, which listens as this one does"
    if peer.in_group:
        return "it announces no sensors: another program that listens, or an app without glasses"
    for group in peer.groups:
        if match := NDSI_GROUP.fullmatch(group):
            return f"it speaks version {match[1]} of NDSI, the bridge speaks version 4: is its app an old one?"
    for group in peer.groups:
        for pattern, what in GROUPS:
            if pattern.fullmatch(group):
                return f"it is not in the group {ndsi.GROUP} but in {group}: {what}, of Pupil Capture, say"
    where = f"but in {', '.join(peer.groups[:5])}" if peer.groups else "(it may be Pupil Capture's Time Sync or Groups)"
    return f"it is in the ZRE network, not in the group {ndsi.GROUP} {where}"
