"""Pupil Time Sync v1, as one who only listens: another way to ask Capture what time it is, and a faster one.

Source: Pupil Labs' time_sync_spec.md, and network_time_sync.py of Pupil Capture 3.6. Each Capture in the ZRE group
``default-time_sync-v1`` shouts its rank and a TCP port to whoever joins; there ``sync`` is answered with its own Pupil
time, a float64 in little endian. No rank is ever shouted here: nobody follows this clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import uuid

from bridge.clock import RoundTrip
from bridge.clock.host import monotonic_ns
from bridge.errors import DeviceUnavailable, MalformedMessage
from bridge.sources.interfaces import find_interface
from bridge.sources.zre import ZreEvent, ZreNode
from bridge.wire.pupil_core import seconds_to_ns

log = logging.getLogger(__name__)

GROUP = "default-time_sync-v1"
REPLY_TIMEOUT_S = 0.5
MAX_CLOCKS = 32
AGREES_NS = 200_000  # beyond both bounds: with what Pupil Remote says, or it is another Capture's


class NoEcho(Exception):
    """There is no clock of the group, or not one alone, that answers as this Capture does."""


class TimeSync:
    """The clocks of one group on one network, and a connection to the one that is asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str | None, beacon_port: int) -> None:
        """Raises DeviceUnavailable when the interface with that address, or the port, cannot be had now."""
        self._loop = loop
        self._hosts: dict[uuid.UUID, str] = {}
        self._clocks: dict[uuid.UUID, tuple[str, int]] = {}
        self._socket: socket.socket | None = None
        self.asked: tuple[str, int] | None = None  # whose echo is in use
        name = f"pupil-bridge-time@{socket.gethostname()}:{os.getpid()}"
        try:
            found = find_interface(address)
        except OSError as error:
            raise DeviceUnavailable(f"the interfaces of this host cannot be listed: {error}") from error
        self._node = ZreNode(loop, self._on_zre, name=name, group=GROUP, interface=found, port=beacon_port)

    def close(self) -> None:
        self._disconnect()
        self._node.stop()

    def _on_zre(self, event: ZreEvent) -> None:
        if event.type == "ENTER" and event.content:
            if len(self._hosts) < MAX_CLOCKS:
                self._hosts[event.peer] = event.content[0].decode(errors="replace")[6:].rpartition(":")[0]
        elif event.type in ("LEAVE", "EXIT"):
            self._clocks.pop(event.peer, None)
            if event.type == "EXIT":
                self._hosts.pop(event.peer, None)
        elif event.type == "SHOUT" and len(event.content) == 2 and event.peer in self._hosts:
            # Not from strangers that have just the group's name: what is no port is nobody's clock.
            with contextlib.suppress(ValueError):
                port = int(event.content[1])
                if 0 < port < 65536:
                    self._clocks[event.peer] = self._hosts[event.peer], port

    def clocks(self, host: str) -> list[tuple[str, int]]:
        """Those that are announced from the address ``host``; one on this computer may announce any of its own."""
        known = list(dict.fromkeys(self._clocks.values()))
        own = host.startswith("127.")
        return [clock for clock in known if clock[0] == host or (own and clock[0] == self._node.interface.address)]

    async def burst(self, host: str, offset_ns: int, bound_ns: int, number: int) -> list[RoundTrip]:
        """So many round trips in a row to the clock at ``host``, if it agrees with ``offset_ns`` (device time to host
        time), as it is known otherwise within ``bound_ns``.

        Raises NoEcho, also where there are several: Captures that follow each other are milliseconds apart at times,
        and nothing in what they announce tells which is which.
        """
        known = self.clocks(host)
        if self.asked is not None and known != [self.asked]:
            self._disconnect()
        if len(known) != 1:
            raise NoEcho
        (clock,) = known
        try:
            trips = await self._ask(clock, number)
        except (OSError, TimeoutError, MalformedMessage) as error:
            log.debug("the clock at %s:%d does not answer: %s", *clock, error)
            self._disconnect()
            raise NoEcho from error
        fastest = min(trips, key=lambda trip: trip.rtt_ns)
        apart_ns = (fastest.lowest_offset_ns + fastest.highest_offset_ns) // 2 - offset_ns
        if abs(apart_ns) > bound_ns + fastest.rtt_ns + AGREES_NS:
            raise NoEcho
        return trips

    async def _ask(self, clock: tuple[str, int], number: int) -> list[RoundTrip]:
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            if self._socket is None:
                made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                self._socket, self.asked = made, clock
                made.setblocking(False)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(made, clock)
            return [await self._round_trip(self._socket) for _ in range(number)]

    async def _round_trip(self, connected: socket.socket) -> RoundTrip:
        sent_ns = monotonic_ns()
        await self._loop.sock_sendall(connected, b"sync")
        reply = b""
        while len(reply) < 8:
            part = await self._loop.sock_recv(connected, 8 - len(reply))
            if not part:
                raise ConnectionResetError("the connection was closed")
            reply += part
        received_ns = monotonic_ns()
        (seconds,) = struct.unpack("<d", reply)
        return RoundTrip(sent_ns, seconds_to_ns(seconds), received_ns)

    def _disconnect(self) -> None:
        connected, self._socket, self.asked = self._socket, None, None
        if connected is not None:
            connected.close()
