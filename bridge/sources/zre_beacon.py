"""ZRE's UDP beacons: ours go out once a second, those of others come in. A thread of its own, which no datagram ends.

It replaces pyre's, which ended at any send error but macOS' numbers for "network down", handed on datagrams of any
length, went deaf without a word when its port was taken, and blocked for ever when nobody took what it heard.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import sys
import threading
import time
import uuid
from collections import Counter
from typing import Any, NamedTuple

import zmq

from bridge.sources.interfaces import Interface
from bridge.sources.zmqio import pipe

log = logging.getLogger(__name__)

BEACON = struct.Struct(">3sB16sH")
BEACON_INTERVAL_S = 1.0
COUNTS = ("beacons_malformed", "beacons_dropped", "beacon_send_errors", "beacon_receive_errors")


class Heard(NamedTuple):
    """A beacon of another node. Port 0 means that it leaves."""

    address: str
    identity: uuid.UUID
    port: int


class Beacon:
    """Calls out ``port`` for ``identity`` from `start` to `stop`. ``inbox`` becomes readable when others are heard."""

    def __init__(
        self,
        ctx: zmq.Context[Any],
        interface: Interface,
        udp_port: int,
        identity: uuid.UUID,
        port: int,
        counts: Counter[str],
    ) -> None:
        """Binds. Raises OSError when the UDP port cannot be had, for example because a program keeps it to itself."""
        self._identity = identity
        self._frame = BEACON.pack(b"ZRE", 1, identity.bytes, port)
        self._target = (interface.broadcast, udp_port)
        self._counts = counts
        self._udp = _bound(interface, udp_port)
        self.inbox, self._pipe = pipe(ctx)
        self._thread = threading.Thread(target=self._run, name="zre beacon", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def receive(self) -> Heard:
        """What made ``inbox`` readable."""
        address, frame = self.inbox.recv_multipart()
        _, _, identity, port = BEACON.unpack(frame)
        return Heard(address.decode(), uuid.UUID(bytes=identity), port)

    def stop(self) -> None:
        """Says goodbye to everybody and ends the thread. It never waits for anything, so neither does this for long."""
        if self._thread.ident is None:
            self._udp.close()
            self._pipe.close(0)
        else:
            with contextlib.suppress(zmq.Again):  # it has ended
                self.inbox.send(BEACON.pack(b"ZRE", 1, self._identity.bytes, 0), zmq.NOBLOCK)
            self._thread.join()
        self.inbox.close(0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._pipe, zmq.POLLIN)
        poller.register(self._udp, zmq.POLLIN)
        next_s = time.monotonic()
        try:
            while True:
                ready = dict(poller.poll(max(0, int((next_s - time.monotonic()) * 1000) + 1)))
                if self._pipe in ready:
                    self._send(self._pipe.recv())
                    return
                if self._udp.fileno() in ready:
                    self._hear()
                if time.monotonic() >= next_s:
                    self._send(self._frame)
                    next_s = time.monotonic() + BEACON_INTERVAL_S
        finally:
            self._udp.close()
            self._pipe.close(0)

    def _hear(self) -> None:
        try:
            frame, (address, _) = self._udp.recvfrom(255)
        except OSError:
            self._counts["beacon_receive_errors"] += 1
            return
        if len(frame) != BEACON.size or not frame.startswith(b"ZRE\x01"):
            self._counts["beacons_malformed"] += 1
        elif frame[4:20] != self._identity.bytes:
            try:
                self._pipe.send_multipart([address.encode(), frame], zmq.NOBLOCK)
            except zmq.Again:  # a flood: who is really there says so again in a second
                self._counts["beacons_dropped"] += 1

    def _send(self, frame: bytes) -> None:
        try:
            self._udp.sendto(frame, self._target)
        except OSError as error:
            # The network may be down for hours: discovery goes on when it is back.
            self._counts["beacon_send_errors"] += 1
            log.debug("beacon not sent: %s", error)


def _bound(interface: Interface, port: int) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Linux delivers broadcasts to a socket that is bound to their address, other systems only to one bound to all.
        udp.bind((interface.broadcast if sys.platform.startswith("linux") else "", port))
        udp.setblocking(False)  # a datagram with a bad checksum is announced and then is not there
    except OSError:
        udp.close()
        raise
    return udp
