"""What can be heard on the network now, without using it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import zmq

from bridge.errors import DeviceUnavailable, MalformedMessage
from bridge.sources.interfaces import find_interface
from bridge.sources.pupil_remote import PupilRemote
from bridge.sources.zre import ZreEvent, ZreNode
from bridge.wire import ndsi

USED_SENSORS = ("gaze", "event", "imu", "video", "hardware")
BEACON_PORT = 5670
MAX_PEERS = 200  # that are listed
MAX_SENSORS = 100  # that are listed of each


async def discover(interface: str | None, core_address: str, seconds: float) -> dict[str, Any]:
    """Listens for Companion devices for ``seconds`` and asks one Pupil Remote for its version.

    Raises DeviceUnavailable when this host has no such interface.
    """
    loop = asyncio.get_running_loop()
    peers: dict[str, dict[str, Any]] = {}

    def on_event(event: ZreEvent) -> None:
        if str(event.peer) not in peers and len(peers) >= MAX_PEERS:
            return
        peer = peers.setdefault(str(event.peer), {"name": event.name, "in_group": False, "sensors": []})
        if event.type == "JOIN" and event.content == (ndsi.GROUP.encode(),):
            peer["in_group"] = True
        elif event.type in ("WHISPER", "SHOUT") and event.content:
            try:
                announcement = ndsi.parse_announcement(event.content[0])
            except MalformedMessage as error:
                peer["malformed"] = str(error)
                return
            if isinstance(announcement, ndsi.Attach):
                sensor = {
                    "name": announcement.sensor_name,
                    "type": announcement.sensor_type,
                    "uuid": announcement.sensor_uuid,
                    "used": announcement.sensor_type in USED_SENSORS,
                }
                if sensor not in peer["sensors"] and len(peer["sensors"]) < MAX_SENSORS:
                    peer["sensors"].append(sensor)

    chosen = find_interface(interface)
    node = ZreNode(
        loop,
        on_event,
        name=f"pupil-bridge-discover@{socket.gethostname()}:{os.getpid()}",
        group=ndsi.GROUP,
        interface=chosen,
        port=BEACON_PORT,
    )
    try:
        core, _ = await asyncio.gather(_core(loop, core_address), asyncio.sleep(seconds))
    finally:
        node.stop()
    return {
        "interface": chosen.address,
        "broadcast": chosen.broadcast,
        "companions": [
            {"zre_uuid": peer_uuid, **peer}
            for peer_uuid, peer in peers.items()
            if peer["sensors"] or "malformed" in peer
        ],
        "other_peers": [peer["name"] for peer in peers.values() if not peer["sensors"]],
        "core": core,
        "counts": {what: count for what, count in node.counts.items() if count},
    }


async def _core(loop: asyncio.AbstractEventLoop, address: str) -> dict[str, Any]:
    context: zmq.Context[Any] = zmq.Context()
    remote = PupilRemote(loop, context, address)
    try:
        version = (await remote.ask(b"v"))[0].decode("utf-8", "replace")
    except DeviceUnavailable as error:
        return {"address": address, "version": None, "why": str(error)}
    else:
        return {"address": address, "version": version}
    finally:
        remote.close()
        context.destroy(0)


def as_text(found: dict[str, Any]) -> str:
    """For a terminal, which what strangers call themselves must not steer."""
    lines = [f"Companion devices (NDSI v4) on {found['interface']}, broadcast {found['broadcast']}:"]
    for peer in found["companions"]:
        lines.append(f"  {_shown(peer['name'])}")
        lines += [
            f"    {_shown(sensor['type']):<9} {_shown(sensor['name'])}{'' if sensor['used'] else '   (not used)'}"
            for sensor in peer["sensors"]
        ]
    if not found["companions"]:
        lines.append("  none heard. NDSI needs UDP broadcasts on port 5670, which many Wi-Fi networks block.")
    core = found["core"]
    lines.append(f"Pupil Capture at {core['address']}: {_shown(core['version'] or 'no answer')}")
    return "\n".join(lines)


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:100])
