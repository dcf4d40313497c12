"""The sockets of the simulated Pupil Capture: Pupil Remote's and the two of the IPC backbone."""

from __future__ import annotations

import logging

import zmq

# Enough for a subscriber that is not read for half a minute; beyond that its messages are dropped, as Capture's are.
_HIGH_WATER_MARK = 20_000

log = logging.getLogger(__name__)


class Sockets:
    """All of them bound, each to a port of its own, and what the backbone's subscribers want.

    Raises zmq.ZMQError when something cannot be bound.
    """

    def __init__(self, host: str, remote_port: int, *, may_move: bool) -> None:
        """``remote_port`` 0: any. ``may_move``: Pupil Remote takes any other port when its own is taken."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        # A ROUTER speaks to REQ clients as Capture's REP does, and can hold the requests of many on a slow path.
        self.router = self._context.socket(zmq.ROUTER)
        self.xpub = self._context.socket(zmq.XPUB)
        self.xsub = self._context.socket(zmq.XSUB)
        self.xpub.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
        self.xsub.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
        self._prefixes: set[bytes] = set()
        self._wanted: dict[bytes, bool] = {}
        try:
            self._bind(host, remote_port, may_move)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self.remote_port, self.sub_port, self.pub_port = map(_port, (self.router, self.xpub, self.xsub))

    def _bind(self, host: str, remote_port: int, may_move: bool) -> None:
        try:
            self.router.bind(f"tcp://{host}:{remote_port or '*'}")
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or not remote_port or not may_move:
                raise
            log.warning("port %s is taken, Pupil Remote takes another one", remote_port)
            self.router.bind(f"tcp://{host}:*")
        self.xpub.bind(f"tcp://{host}:*")
        self.xsub.bind(f"tcp://{host}:*")

    @property
    def descriptors(self) -> list[int]:
        """Readable when something may have come; edge-triggered."""
        return [int(each.getsockopt(zmq.FD)) for each in (self.router, self.xpub, self.xsub)]

    def wanted(self, topic: bytes) -> bool:
        """Whether anybody has subscribed to it."""
        known = self._wanted.get(topic)
        if known is None:
            known = self._wanted[topic] = any(topic.startswith(prefix) for prefix in self._prefixes)
        return known

    def take_subscription(self) -> bool:
        """Take in one subscription and hand it on to the publishers; whether there was any."""
        if not readable(self.xpub):
            return False
        message = self.xpub.recv_multipart()
        (self._prefixes.add if message[0][:1] == b"\1" else self._prefixes.discard)(message[0][1:])
        self._wanted.clear()
        self.xsub.send_multipart(message)
        return True

    def close(self) -> None:
        self._context.destroy(linger=200)


def readable(each: zmq.Socket[bytes]) -> bool:
    return bool(int(each.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _port(bound: zmq.Socket[bytes]) -> int:
    endpoint = bound.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rpartition(b":")[2])
