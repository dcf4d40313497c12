"""Pupil Time Sync v1 of the simulated Pupil Capture: what it shouts in the ZRE group, and the clock service itself.

Source: time_sync_spec.md, time_sync.py and network_time_sync.py of Pupil Capture 3.6.14. A SHOUT of two frames,
``repr(rank)`` and ``repr(port)``, goes to the group when somebody joins it. On that TCP port every four bytes
``sync`` are answered with Pupil time, a float64 in little endian; other bytes are not answered, and what is no UTF-8
ends the connection.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import time
import uuid
from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import Any, Final, Self

import zmq

from bridge.simulators.core_clock import PupilClock
from bridge.simulators.zre_peer import ZrePeer, zre_address

GROUP: Final = "default-time_sync-v1"
_BASE_BIAS: Final = 1.0
_REQUEST: Final = b"sync"
_TIME: Final = struct.Struct("<d")
_BACKLOG: Final = 16
_MAX_CONNECTIONS: Final = 64

log = logging.getLogger(__name__)


class _Node(ZrePeer):
    """A peer that shouts messages of several frames."""

    def shout_frames(self, group: str, frames: list[bytes]) -> None:
        self._node.shout(group, frames)


class TimeSync:
    """The node and the clock service. ``descriptor`` is readable when `turn` has something to do.

    Raises `OSError` or `ValueError` when the addresses cannot be had. Leaving it as a context ends both.
    """

    def __init__(
        self,
        clock: PupilClock,
        host: str,
        beacon_port: int,
        random: Random,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._clock = clock
        self._now_ns = now_ns
        # Nobody outranks a master; this Capture follows nobody.
        self.rank = 4 * _BASE_BIAS + 2 + random.random()
        self._connections: dict[int, socket.socket] = {}
        self._context: zmq.Context[Any] = zmq.Context()
        self._epoll = select.epoll()
        self._server = socket.create_server((host, 0), backlog=_BACKLOG)
        try:
            address = zre_address(host, beacon_port)
            # As every node of pyre it has another identity in each life.
            self._node = _Node(self._context, address, name="simulated-capture", identity=uuid.uuid4())
        except (OSError, ValueError):
            self._server.close()
            self._epoll.close()
            self._context.term()
            raise
        self._server.setblocking(False)
        self._events_fd = int(self._node.events.getsockopt(zmq.FD))
        self._epoll.register(self._server.fileno(), select.EPOLLIN)
        self._epoll.register(self._events_fd, select.EPOLLIN)
        self._node.start(GROUP)

    @property
    def port(self) -> int:
        """Where the clock service listens."""
        return int(self._server.getsockname()[1])

    @property
    def descriptor(self) -> int:
        return self._epoll.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (*self._connections.values(), self._server):
            each.close()
        self._epoll.close()
        if self._node.stop():  # an abandoned node still has sockets, and term() would wait for them
            self._context.term()

    def turn(self) -> bool:
        """Answer who asks for the time, and announce the service to who has joined; whether there was anything."""
        busy = self._hear()
        for fd, _ in self._epoll.poll(0):
            if fd == self._server.fileno():
                self._accept()
                busy = True
            elif fd in self._connections:
                self._serve(fd)
                busy = True
        return busy

    def _hear(self) -> bool:
        busy = False
        while (event := self._node.receive()) is not None:
            busy = True
            if event.kind == "JOIN" and event.group == GROUP:
                self.announce()
        return busy

    def announce(self) -> None:
        """Tell the group where the clock service is."""
        self._node.shout_frames(GROUP, [repr(self.rank).encode(), repr(self.port).encode()])

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _ = self._server.accept()
            if len(self._connections) >= _MAX_CONNECTIONS:
                connection.close()
                return
            connection.setblocking(False)
            self._connections[connection.fileno()] = connection
            self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _serve(self, fd: int) -> None:
        connection = self._connections[fd]
        try:
            request = connection.recv(len(_REQUEST))
            if not request:
                raise ConnectionError
            request.decode()
            if request == _REQUEST:
                connection.send(_TIME.pack(self._clock.seconds(self._now_ns())))
        except BlockingIOError:
            return
        except (OSError, UnicodeDecodeError):
            self._epoll.unregister(fd)
            self._connections.pop(fd).close()
