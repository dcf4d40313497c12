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

from bridge.simulators.zre_beacon import Beacon, ZreAddress
from bridge.simulators.zre_node import RECEIVED_STAMP, REPLY_TIMEOUT_MS, NodeSettings, StampingPyre

_log = logging.getLogger(__name__)

NAME_MAX_BYTES = 255

_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")


@dataclass(frozen=True, slots=True)
class ZreEvent:
    """What the node reports: ENTER, JOIN, LEAVE, EXIT, WHISPER, SHOUT or STOP.

    ``name`` is what the peer calls itself. ``content`` is the message of a WHISPER or SHOUT, ``group`` is set for JOIN,
    LEAVE and SHOUT. ``received_ns`` is CLOCK_MONOTONIC when the node took a WHISPER or SHOUT from its socket, which is
    before it crossed pyre's pipe.
    """

    kind: str
    peer: uuid.UUID
    group: str = ""
    content: bytes = b""
    received_ns: int = 0
    name: str = ""


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
        beacon: Beacon | None = None,
    ) -> None:
        """``beacon``: one that is shared, for the same address; its owner closes it. Raises `ValueError` for a name of
        more than 255 bytes."""
        if len(name.encode()) > NAME_MAX_BYTES:
            raise ValueError(f"a name has at most {NAME_MAX_BYTES} bytes: {name!r}")
        self.identity = identity
        self._shares_beacon = beacon is not None
        self._beacon = Beacon(address) if beacon is None else beacon
        self._settings = NodeSettings(name, identity, dict(headers or {}), self._beacon)
        self._settings.awake.set()
        self._node = StampingPyre(context, self._settings)

    @property
    def events(self) -> zmq.Socket[bytes]:
        """The socket that becomes readable when `receive` has something."""
        return self._node.inbox  # type: ignore[no-any-return]

    @property
    def malformed(self) -> int:
        """Datagrams and messages dropped so far because they break ZRE."""
        return self._settings.malformed + self._beacon.malformed

    @property
    def alive(self) -> bool:
        """Whether the node's threads run; when they do not, nothing else here works."""
        return bool(self._node.actor.thread.is_alive()) and self._beacon.alive

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
            kind, peer, raw_name, *rest = self._node.inbox.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        event_kind, event_peer, name = kind.decode(), uuid.UUID(bytes=peer), raw_name.decode()
        if event_kind in ("JOIN", "LEAVE"):
            return ZreEvent(event_kind, event_peer, group=rest[0].decode(), name=name)
        if event_kind in ("WHISPER", "SHOUT"):
            group = rest.pop(0).decode() if event_kind == "SHOUT" else ""
            return ZreEvent(event_kind, event_peer, group, rest[0], RECEIVED_STAMP.unpack(rest[-1])[0], name)
        return ZreEvent(event_kind, event_peer, name=name)

    def sleep(self) -> None:
        """Send no beacon, read nothing and answer nothing until `wake`, as a process that is not run any more."""
        self._beacon.silence(self.identity, True)
        self._settings.awake.clear()

    def wake(self) -> None:
        """Go on with what has come meanwhile."""
        self._settings.awake.set()
        self._beacon.silence(self.identity, False)

    def stop(self, *, goodbye: bool = True) -> bool:
        """Say goodbye, or vanish, and end the node within some seconds. False: its thread did not end and is left."""
        self._settings.goodbye = goodbye
        self._settings.awake.set()
        try:
            self._node.stop()
        except zmq.ZMQError as error:
            _log.error("the ZRE node does not answer and is abandoned: %s", error)
        self._node.actor.thread.join(REPLY_TIMEOUT_MS / 1000)
        self._node.inbox.close(linger=0)
        ended = not self._node.actor.thread.is_alive()
        if not self._shares_beacon:
            self._beacon.close()
        return ended
