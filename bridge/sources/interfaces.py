"""Which of the host's IPv4 interfaces a discovery uses."""

from __future__ import annotations

import ipaddress
import socket
from typing import NamedTuple

import psutil

from bridge.errors import DeviceUnavailable


class Interface(NamedTuple):
    """An IPv4 address of this host and where a datagram for all of its network goes."""

    address: str
    broadcast: str


def find_interface(address: str | None) -> Interface:
    """The interface with that address, or the first that is neither loopback nor link-local.

    On loopback Linux delivers 127.255.255.255 to every socket that shares the port, so that nothing leaves the host.
    Raises DeviceUnavailable when there is none now: a cable or a Wi-Fi may come back. Raises OSError when that cannot
    be seen, as there are no file descriptors left.
    """
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family != socket.AF_INET or not entry.netmask:
                continue
            own = ipaddress.IPv4Interface(f"{entry.address}/{entry.netmask}")
            if address is None and (own.is_loopback or own.is_link_local):
                continue
            if address is not None and ipaddress.IPv4Address(address) != own.ip:
                if not (own.is_loopback and ipaddress.IPv4Address(address) in own.network):
                    continue
                own = ipaddress.IPv4Interface(f"{address}/{entry.netmask}")
            return Interface(str(own.ip), str(own.network.broadcast_address))
    if address is None:
        raise DeviceUnavailable("this host has no IPv4 interface besides loopback")
    raise DeviceUnavailable(f"no interface of this host has the address {address}")
