"""ZeroMQ sockets on the event loop, without a thread and without polling."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from typing import Any

import zmq

BATCH = 256  # messages in a row before other work of the loop has its turn
PIPE_HIGH_WATER_MARK = 1000
RECONNECT_S = 0.1


def pipe(context: zmq.Context[Any]) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """The two ends of a bounded way between two threads.

    The context knows them, other than those that pyre makes: its `destroy` closes what a thread that died left open,
    and does not wait for it for ever.
    """
    ends = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    for end in ends:
        end.setsockopt(zmq.LINGER, 0)
        end.set_hwm(PIPE_HIGH_WATER_MARK)
    endpoint = f"inproc://{uuid.uuid4()}"
    ends[0].bind(endpoint)
    ends[1].connect(endpoint)
    return ends


def subscriber(
    context: zmq.Context[Any], endpoint: str, topics: list[bytes], high_water_mark: int, max_bytes: int
) -> zmq.Socket[bytes]:
    """A SUB socket with bounds: messages that wait, and bytes of one. Raises zmq.ZMQError without a descriptor."""
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, high_water_mark)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    for topic in topics:
        socket.setsockopt(zmq.SUBSCRIBE, topic)
    socket.connect(endpoint)
    return socket


class ZmqReader:
    """Hands every message of a socket to a callback, and closes the socket in the end.

    The socket's descriptor is edge-triggered: it is drained until nothing is left, and looked at again after each send
    (``poke``), since sending can swallow the edge of an arrival.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, socket: zmq.Socket[bytes], on_frames: Callable[[list[bytes]], None]
    ) -> None:
        self.socket = socket
        self._loop = loop
        self._on_frames = on_frames
        self._fd = int(socket.getsockopt(zmq.FD))
        self._again: asyncio.Handle | None = None
        loop.add_reader(self._fd, self._drain)
        self.poke()

    def poke(self) -> None:
        """Looks at the socket soon, whatever its descriptor says."""
        if self._again is None and not self.socket.closed:
            self._again = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        socket, on_frames = self.socket, self._on_frames
        for _ in range(BATCH):
            try:
                frame = socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            # recv_multipart asks the socket after each part whether there are more; the part itself knows.
            frames = [frame.bytes]
            while frame.more:
                frame = socket.recv(zmq.NOBLOCK, copy=False)
                frames.append(frame.bytes)
            on_frames(frames)
            # Asking costs half of what a receive in vain does, and looks after the edge as well.
            if socket.closed or not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
        self.poke()

    def close(self) -> None:
        if self.socket.closed:
            return
        self._loop.remove_reader(self._fd)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self.socket.close(0)


class Lifeline:
    """Connects a socket again when libzmq has given its connection up.

    It does so without a word and for ever after one message that is larger than MAXMSGSIZE (libzmq 4.3.5).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: zmq.Socket[bytes], endpoint: str) -> None:
        """``socket`` is connected to ``endpoint``. Raises zmq.ZMQError."""
        self._loop = loop
        self._socket = socket
        self._endpoint = endpoint
        self._timer: asyncio.TimerHandle | None = None
        self._monitor = ZmqReader(loop, socket.get_monitor_socket(zmq.EVENT_DISCONNECTED), self._lost)

    def _lost(self, frames: list[bytes]) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(RECONNECT_S, self._again)

    def _again(self) -> None:
        self._timer = None
        with contextlib.suppress(zmq.ZMQError):  # libzmq no longer knows of it
            self._socket.disconnect(self._endpoint)
        self._socket.connect(self._endpoint)

    def close(self) -> None:
        """To be called before the socket is closed."""
        if self._timer is not None:
            self._timer.cancel()
        self._socket.disable_monitor()
        self._monitor.close()
