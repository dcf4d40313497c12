"""What can be heard on the network now, without using it, and why the bridge does not use some of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import psutil
import zmq

from bridge.config import Config, NdsiSource
from bridge.config_checks import DEFAULT_BEACON_PORT, DEFAULT_CORE_ADDRESS
from bridge.errors import DeviceUnavailable
from bridge.names import DeviceNames, default_state_dir
from bridge.sources.interfaces import Interface, find_interface
from bridge.sources.ndsi_beacons import beacons, unreachable
from bridge.sources.ndsi_heard import Heard
from bridge.sources.pupil_remote import PupilRemote, numeric
from bridge.sources.zre import ZreNode
from bridge.wire import ndsi

NOT_HEARD = (
    "no Companion device is heard. They are found by UDP broadcasts on port {port}, which guest, campus and company "
    "Wi-Fi, client isolation and firewalls block; NDSI has no way around that, not by a device's address either. What "
    "helps: a network of your own (a router, this computer's hotspot); or the Real-Time API of newer apps, which does "
    "without broadcasts."
)


async def discover(
    interface: str | None,
    core_address: str | None,
    seconds: float,
    config: Config | None = None,
    port: int | None = None,
) -> dict[str, Any]:
    """Listens for Companion devices for ``seconds`` and asks Pupil Remote for its version.

    What is None is as ``config`` has it, or the default. Raises DeviceUnavailable when this host has no such interface.
    """
    loop = asyncio.get_running_loop()
    source, whys = _source(config, interface)
    if interface is None and source is not None and source.interface is not None:
        interface = str(source.interface)
    chosen = find_interface(interface)
    port = port or (source.beacon_port if source is not None else DEFAULT_BEACON_PORT)
    cores = [core_address] if core_address else [each.address for each in _of_type(config, "pupil_core")]
    heard = Heard(chosen.address)
    node = ZreNode(
        loop,
        heard.event,
        name=f"pupil-bridge-discover@{socket.gethostname()}:{os.getpid()}",
        group=ndsi.GROUP,
        interface=chosen,
        port=port,
    )
    try:
        with beacons(loop, chosen, port, heard):
            answers = [_core(loop, address) for address in cores or [DEFAULT_CORE_ADDRESS]]
            *found, _ = await asyncio.gather(*answers, asyncio.sleep(seconds))
        silent = await unreachable(heard, chosen)
    finally:
        node.stop()
    names = None if config is None else DeviceNames(config.service.state_dir or default_state_dir())
    companions = heard.companions(source, names, [each.name for each in _of_type(config, "pupil_core")])
    others = heard.others()
    return {
        "interface": chosen.address,
        "broadcast": chosen.broadcast,
        "port": port,
        "interfaces": list(_interfaces(chosen)),
        "companions": companions,
        "other_peers": [peer["name"] for peer in others],
        "others": others,
        "unreachable": silent,
        "core": found[0],
        "cores": found,
        "counts": {what: count for what, count in node.counts.items() if count},
        "why": [*whys, *_why_nothing(heard, companions, chosen, port)],
    }


def _of_type(config: Config | None, kind: str) -> list[Any]:
    return [] if config is None else [source for source in config.sources if source.type == kind]


def _source(config: Config | None, interface: str | None) -> tuple[NdsiSource | None, list[str]]:
    """The [[source]] that listens on this interface, by which what is heard is judged, and what is to be said to it."""
    if config is None:
        return None, []
    sources: list[NdsiSource] = _of_type(config, "ndsi")
    if not sources:
        return None, [
            'the configuration has no [[source]] of type "ndsi": the bridge does not listen for these devices'
        ]
    if interface is None:
        return sources[0], []
    for source in sources:
        with contextlib.suppress(DeviceUnavailable):
            if find_interface(str(source.interface) if source.interface else None) == find_interface(interface):
                return source, []
    text = f'no [[source]] of type "ndsi" listens on {interface}: the bridge does not hear what is heard here'
    return None, [text]


def _why_nothing(heard: Heard, companions: list[Any], interface: Interface, port: int) -> Iterator[str]:
    if companions:
        return
    yield NOT_HEARD.format(port=port)
    if not heard.beacons:
        yield (
            f"not even this computer's own broadcasts are heard on {interface.address}: a firewall on it may block UDP "
            f"port {port}"
        )


def _interfaces(chosen: Interface) -> Iterator[dict[str, Any]]:
    """This computer's IPv4 addresses; which of them it was."""
    states = psutil.net_if_stats()
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == socket.AF_INET:
                up = name in states and states[name].isup
                yield {"name": name, "address": entry.address, "up": up, "used": entry.address == chosen.address}


async def _core(loop: asyncio.AbstractEventLoop, address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    context: zmq.Context[Any] = zmq.Context()
    remote: PupilRemote | None = None
    try:
        remote = PupilRemote(loop, context, f"{await numeric(loop, host)}:{port}")
        version = (await remote.ask(b"v"))[0].decode("utf-8", "replace")
    except DeviceUnavailable as error:
        return {"address": address, "version": None, "why": str(error)}
    else:
        return {"address": address, "version": version}
    finally:
        if remote is not None:
            remote.close()
        context.destroy(0)


def as_text(found: dict[str, Any]) -> str:
    """For a terminal, which what strangers call themselves must not steer."""
    where = f"{found['interface']}, broadcast {found['broadcast']}, UDP port {found['port']}"
    lines = [f"Companion devices (NDSI v4) on {where}:"]
    for peer in found["companions"]:
        lines.append(f"  {_shown(peer['name'])}")
        device = f", the device {peer['device']!r}" if peer["device"] else ""
        lines.append(
            f"    at {_shown(peer['address'] or '?')}{device}{'' if peer['in_group'] else ', not in the group'}"
        )
        lines += [f"    {_shown(peer['why'], 400)}"] if peer["why"] else []
        for sensor in peer["sensors"]:
            unused = "" if sensor["used"] else f"   (not used: {_shown(sensor['why'], 200)})"
            lines.append(f"    {_shown(sensor['type']):<9} {_shown(sensor['name'])}{unused}")
        lines += [f"    not used: {_shown(peer['malformed'], 300)}"] if "malformed" in peer else []
    if not found["companions"]:
        lines.append("  none")
    if found["others"] or found["unreachable"]:
        lines.append("Not used:")
    lines += [
        f"  {_shown(peer['name'])} at {_shown(peer['address'])}: {_shown(peer['why'], 300)}" for peer in found["others"]
    ]
    lines += [f"  {_shown(one['address'])}: {_shown(one['why'], 300)}" for one in found["unreachable"]]
    lines += [f"{why[:1].upper()}{why[1:]}." for why in map(_sentence, found["why"])]
    others = [each for each in found["interfaces"] if not each["used"] and not each["address"].startswith("127.")]
    for each in others:
        state = "" if each["up"] else ", which is down"
        lines.append(f"Not listened on: {each['name']}{state} (--interface {each['address']})")
    for core in found["cores"]:
        answer = core["version"] or f"no answer ({core['why']})"
        lines.append(f"Pupil Capture at {_shown(core['address'])}: {_shown(answer, 300)}")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return _shown(text, 600).rstrip(".")


def _shown(text: str, length: int = 100) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:length])
