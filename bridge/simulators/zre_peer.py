"""A simulated device's ZRE node: where it lives, what it hears and says, and its bounded end."""

from __future__ import annotations

import ipaddress
import logging
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import zmq

from bridge.simulators.zre_node import RECEIVED_STAMP, REPLY_TIMEOUT_MS, NodeSettings, StampingPyre, ZreAddress

_log = logging.getLogger(__name__)

_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")


@dataclass(frozen=True, slots=True)
class ZreEvent:
    """What the node reports: ENTER, JOIN, LEAVE, EXIT, WHISPER, SHOUT or STOP.

    ``content`` is the message of a WHISPER or SHOUT, ``group`` is set for JOIN, LEAVE and SHOUT. ``received_ns`` is
    CLOCK_MONOTONIC when the node took a WHISPER or SHOUT from its socket, which is before it crossed pyre's pipe.
    """

    kind: str
    peer: uuid.UUID
    group: str = ""
    content: bytes = b""
    received_ns: int = 0


def zre_address(interface: str, beacon_port: int) -> ZreAddress:
    """The beacon addresses for one of this machine's IPv4 addresses.

    Loopback uses 127.255.255.255, which Linux delivers on `lo`. Raises `ValueError` with a sentence for a person when
    the address is malformed or not this machine's.
    """
    try:
        address = ipaddress.IPv4Address(interface)
    except ipaddress.AddressValueError as error:
        raise ValueError(f"{interface!r} is not an IPv4 address") from error
    if address in _LOOPBACK:
        return ZreAddress(address, _LOOPBACK.broadcast_address, beacon_port)
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family == socket.AF_INET and entry.address == interface and entry.netmask:
                network = ipaddress.IPv4Interface(f"{interface}/{entry.netmask}").network
                return ZreAddress(address, network.broadcast_address, beacon_port)
    raise ValueError(f"{interface} is no address of this machine")


class ZrePeer:
    """A running ZRE node in the given groups.

    ``events`` is the socket to poll; `receive` empties it. Only the thread that made the node may call it.
    Raises `OSError` when the beacon port or the address cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        address: ZreAddress,
        *,
        name: str,
        identity: uuid.UUID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        _check_bindable(address)
        self.identity = identity
        self._settings = NodeSettings(address, name, identity, dict(headers or {}))
        self._node = StampingPyre(context, self._settings)

    @property
    def events(self) -> zmq.Socket[bytes]:
        """The socket that becomes readable when `receive` has something."""
        return self._node.inbox  # type: ignore[no-any-return]

    @property
    def malformed(self) -> int:
        """Datagrams and messages dropped so far because they break ZRE."""
        return self._settings.malformed

    @property
    def alive(self) -> bool:
        """Whether the node's thread runs; when it does not, nothing else here works."""
        return bool(self._node.actor.thread.is_alive())

    def start(self, group: str) -> None:
        """Join the group and begin to send and hear beacons."""
        self._node.join(group)
        self._node.start()

    def whisper(self, peer: uuid.UUID, message: bytes) -> None:
        """Send to one peer; without effect when it is gone."""
        self._node.whisper(peer, message)

    def shout(self, group: str, message: bytes) -> None:
        """Send to everybody in the group."""
        self._node.shout(group, message)

    def endpoint_of(self, peer: uuid.UUID) -> str:
        """The TCP endpoint of a peer's node; empty when it is unknown."""
        return str(self._node.peer_address(peer))

    def receive(self) -> ZreEvent | None:
        """The next event, or None when there is none. Never blocks."""
        try:
            kind, peer, _name, *rest = self._node.inbox.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        event_kind, event_peer = kind.decode(), uuid.UUID(bytes=peer)
        if event_kind in ("JOIN", "LEAVE"):
            return ZreEvent(event_kind, event_peer, group=rest[0].decode())
        if event_kind == "WHISPER":
            return ZreEvent(event_kind, event_peer, content=rest[0], received_ns=RECEIVED_STAMP.unpack(rest[-1])[0])
        if event_kind == "SHOUT":
            return ZreEvent(event_kind, event_peer, rest[0].decode(), rest[1], RECEIVED_STAMP.unpack(rest[-1])[0])
        return ZreEvent(event_kind, event_peer)

    def stop(self) -> bool:
        """Say goodbye and end the node within a few seconds. False: its thread did not end and is abandoned."""
        try:
            self._node.stop()
        except zmq.ZMQError as error:
            _log.error("the ZRE node does not answer and is abandoned: %s", error)
        self._node.actor.thread.join(REPLY_TIMEOUT_MS / 1000)
        self._node.inbox.close(linger=0)
        return not self.alive


def _check_bindable(address: ZreAddress) -> None:
    """pyre only logs a beacon that cannot be bound, so find out before."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind((str(address.broadcast), address.beacon_port))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((str(address.address), 0))
