"""Beacons that are heard without a conversation, and what keeps their senders from one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil

from bridge.sources.interfaces import Interface
from bridge.sources.ndsi_heard import Beacons, Heard

MAX_PROBED = 16
PROBE_S = 1.0
JUST_NOW_S = 1.5  # a conversation begins within some milliseconds, or one more beacon


@contextlib.contextmanager
def beacons(loop: asyncio.AbstractEventLoop, interface: Interface, port: int, heard: Heard) -> Iterator[None]:
    """Tells ``heard`` of all beacons, also of those that the node can do nothing with."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        udp.bind((interface.broadcast if sys.platform.startswith("linux") else "", port))
        udp.setblocking(False)

        def readable() -> None:
            with contextlib.suppress(OSError):
                datagram, (address, _) = udp.recvfrom(255)
                heard.beacon(address, datagram)

        loop.add_reader(udp, readable)
        yield
    finally:
        if udp.fileno() >= 0:
            loop.remove_reader(udp)
        udp.close()


async def unreachable(heard: Heard, interface: Interface) -> list[dict[str, Any]]:
    """Those whose beacons are heard and that do not speak, and what keeps them from it."""
    own = _own_ports() if heard.silent() else set()
    silent = {
        identity: found
        for identity, found in heard.silent().items()
        if not (found.address == interface.address and found.port in own)
    }
    probed = dict(list(silent.items())[:MAX_PROBED])
    whys = await asyncio.gather(*(_why_silent(found) for found in probed.values()))
    listed = [
        {"zre_uuid": str(identity), "address": found.address, "port": found.port, "why": why}
        for (identity, found), why in zip(probed.items(), whys, strict=True)
    ]
    for address, version in heard.versions.items():
        why = f"its beacons are of version {version} of ZRE, NDSI's are of version 1"
        listed.append({"zre_uuid": None, "address": address, "port": None, "why": why})
    return listed


def _own_ports() -> set[int]:
    """The TCP ports at which this process listens: the node's own beacons tell one of them."""
    return {each.laddr.port for each in psutil.Process().net_connections("tcp4") if each.status == psutil.CONN_LISTEN}


async def _why_silent(found: Beacons) -> str:
    where = f"TCP port {found.port} of {found.address}"
    if time.monotonic() - found.first_s < JUST_NOW_S:
        return "its first beacon came only now: listen for longer (--seconds)"
    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(found.address, found.port)
    except TimeoutError:
        return f"its beacons come, but {where} does not answer: a firewall there, or client isolation of the Wi-Fi"
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return f"its beacons come, but {where} refuses: {reason}. A firewall there, or its app has ended"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return (
        f"its beacons come and {where} answers, but it does not speak to this computer: a firewall here may block TCP "
        "connections from it, as each side connects to the other"
    )
