"""ZRE's beacons for every node of this process: one UDP socket and one thread, however many devices are simulated.

Source: ZRE (rfc.zeromq.org/spec/36), 22 bytes: ``ZRE``, 1, the UUID, a u16 port in network order; 0 says goodbye.
Nodes of one process do not hear each other: thirty devices would connect 870 times and tell no host anything by it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import selectors
import socket
import struct
import threading
import time
import uuid
from dataclasses import dataclass

_log = logging.getLogger(__name__)

INTERVAL_S = 1.0
BEACON = struct.Struct(">3sB16sH")
_JOIN_S = 2.0


@dataclass(frozen=True, slots=True)
class ZreAddress:
    """Where a node lives: its own address, the broadcast address of its beacons, and their UDP port."""

    address: ipaddress.IPv4Address
    broadcast: ipaddress.IPv4Address
    beacon_port: int


@dataclass(slots=True)
class _Published:
    """A node's beacon: its own datagram, where it gets those of others, and when it is sent next (None: silent)."""

    frame: bytes
    inbox: socket.socket
    due_s: float | None


class Beacon:
    """Sends the beacons of nodes once a second and hands them those of others; safe to call from every thread.

    Deaf to foreign datagrams, which are counted in ``malformed``, and not ended by a network error.
    Raises `OSError` when the port or the address cannot be bound.
    """

    def __init__(self, where: ZreAddress) -> None:
        self.where = where
        self.malformed = 0
        self._nodes: dict[bytes, _Published] = {}
        self._lock = threading.Lock()
        self._closing = False
        # pyre would only log an address that cannot be bound, so find out before.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((str(where.address), 0))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            for option in (socket.SO_BROADCAST, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                self._udp.setsockopt(socket.SOL_SOCKET, option, 1)
            self._udp.setblocking(False)
            self._udp.bind((str(where.broadcast), where.beacon_port))
        except OSError:
            self._udp.close()
            raise
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="zre-beacon", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def publish(self, identity: uuid.UUID, port: int) -> socket.socket:
        """Begin a node's beacons, the first one now. Each datagram from the result is a beacon of somebody else with
        the sender's address after it; the caller closes it."""
        inbox, outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        inbox.setblocking(False)
        outbox.setblocking(False)
        with self._lock:
            self._nodes[identity.bytes] = _Published(BEACON.pack(b"ZRE", 1, identity.bytes, port), outbox, 0.0)
        self._poke()
        return inbox

    def silence(self, identity: uuid.UUID, silent: bool) -> None:
        """Neither send nor hear beacons for this node, or do so again from now on."""
        with self._lock:
            node = self._nodes.get(identity.bytes)
            if node is not None:
                node.due_s = None if silent else 0.0
        self._poke()

    def withdraw(self, identity: uuid.UUID, *, goodbye: bool) -> None:
        """End a node's beacons; ``goodbye`` tells everybody with a last one."""
        with self._lock:
            node = self._nodes.pop(identity.bytes, None)
            if node is None:
                return
            node.inbox.close()
            if goodbye:
                self._send(BEACON.pack(b"ZRE", 1, identity.bytes, 0))

    def close(self) -> None:
        """End the thread; nodes that are still published go without a word."""
        self._closing = True
        self._poke()
        self._thread.join(_JOIN_S)
        for node in self._nodes.values():
            node.inbox.close()
        for each in (self._udp, self._woken, self._wake):
            each.close()

    def _poke(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has been woken already
            self._wake.send(b"\0")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._udp, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing:
                for key, _ in selector.select(self._send_due()):
                    if key.fileobj is self._udp:
                        self._hear()
                    else:
                        self._woken.recv(4096)

    def _send_due(self) -> float:
        """Send what is due; seconds until the next beacon."""
        now_s = time.monotonic()
        with self._lock:
            for node in self._nodes.values():
                if node.due_s is not None and node.due_s <= now_s:
                    self._send(node.frame)
                    node.due_s = now_s + INTERVAL_S
            due_s = min((node.due_s for node in self._nodes.values() if node.due_s is not None), default=now_s + 1)
        return max(0.0, due_s - now_s)

    def _send(self, frame: bytes) -> None:
        try:
            self._udp.sendto(frame, (str(self.where.broadcast), self.where.beacon_port))
        except OSError as error:  # the interface may be down for a while
            _log.debug("a beacon was not sent: %s", error)

    def _hear(self) -> None:
        try:
            frame, (sender, _port) = self._udp.recvfrom(65535)
        except OSError as error:
            _log.debug("a beacon was not received: %s", error)
            return
        if len(frame) != BEACON.size or not frame.startswith(b"ZRE\x01"):
            self.malformed += 1
            return
        with self._lock:
            if frame[4:20] in self._nodes:
                return
            for node in self._nodes.values():
                if node.due_s is not None:
                    with contextlib.suppress(BlockingIOError):  # a node that does not read; there is another in 1 s
                        node.inbox.send(frame + sender.encode())
