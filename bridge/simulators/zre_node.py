"""zeromq-pyre 0.3.4's node on a chosen address, with a chosen identity, for `zre_peer`; its beacons are `zre_beacon`'s.

pyre picks its interface by itself, binds to every address, and dies of one foreign datagram. Here the caller says
where to be, so that a simulator can live on loopback alone, and what breaks the protocol is counted and dropped:
the simulator must outlive the same abuse as the bridge that is tested with it. ZRE itself is pyre's, untouched.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import zmq
from pyre import Pyre, zhelper
from pyre.pyre_node import PyreNode
from pyre.zactor import ZActor
from pyre.zre_msg import ZreMsg

from bridge.simulators.zre_beacon import BEACON, Beacon

_log = logging.getLogger(__name__)

REPLY_TIMEOUT_MS = 10_000
RECEIVED_STAMP = struct.Struct("<q")  # the frame after a WHISPER's or SHOUT's content: CLOCK_MONOTONIC of its reception

_FLUSH_TIMEOUT_S = 0.25
# More peers than any lab has hosts: forged beacons must not use up the file descriptors.
_MAX_PEERS = 64
# What pyre raises while it reads bytes that are not what it expects.
_MALFORMED = (AssertionError, IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error, zmq.ZMQError)


@dataclass(slots=True)
class NodeSettings:
    """What the node's threads need to know, and the one number that they count.

    While ``awake`` is not set the node does nothing at all, as an app in the background. ``goodbye`` says whether it
    tells its peers when it stops.
    """

    name: str
    identity: uuid.UUID
    headers: dict[str, str]
    beacon: Beacon
    malformed: int = 0
    goodbye: bool = True
    awake: threading.Event = field(default_factory=threading.Event)


class _Actor(ZActor):  # type: ignore[misc]
    """pyre's actor on a daemon thread with a time limit on its pipe: a stuck node must not keep the process alive."""

    def __init__(self, context: zmq.Context[Any], actor: Any, *args: Any) -> None:
        self.tag = self.ZACTOR_TAG
        self.ctx = context
        self.pipe, self.shim_pipe = zhelper.zcreate_pipe(context)
        self.pipe.setsockopt(zmq.RCVTIMEO, REPLY_TIMEOUT_MS)
        self.pipe.setsockopt(zmq.SNDTIMEO, REPLY_TIMEOUT_MS)
        self.shim_handler = actor
        self.shim_args = (context, self.shim_pipe, *args)
        self.shim_kwargs: dict[str, Any] = {}
        self.is_running = False
        self.thread = threading.Thread(target=self.run, name=f"zre-{actor.__name__.strip('_').lower()}", daemon=True)
        self.thread.start()
        self.pipe.wait()


class _StampedOutbox:
    """The pipe to the application; it adds the instant of reception to the messages of other peers."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.received_ns = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def send_multipart(self, content: list[bytes] | bytes) -> None:
        frames = content if isinstance(content, list) else [content]
        self._pipe.send_multipart([*frames, RECEIVED_STAMP.pack(self.received_ns)])


class _Name(str):
    """A name with the length of its UTF-8: pyre counts characters where ZRE counts bytes, and cuts off what is over."""

    def __len__(self) -> int:
        return len(self.encode())


class _Node(PyreNode):  # type: ignore[misc]
    """pyre's node with the given identity, bound to one address."""

    def __init__(self, context: zmq.Context[Any], pipe: Any, outbox: Any, settings: NodeSettings) -> None:
        self._settings = settings
        self._heard: socket.socket | None = None
        super().__init__(context, pipe, _StampedOutbox(outbox))  # runs until terminated

    def run(self) -> None:
        self.identity = self._settings.identity
        self.name = _Name(self._settings.name)
        self.headers = self._settings.headers
        try:
            super().run()
        finally:
            for peer in self.peers.values():
                peer.disconnect()
            self._leave_beacon(goodbye=False)  # after a crash; otherwise `stop` has done so
            self.inbox.close(linger=0)
            self.outbox.close(linger=0)

    def start(self) -> None:
        address = self._settings.beacon.where.address
        self.port = self.inbox.bind_to_random_port(f"tcp://{address}")
        self.bound = True
        self.endpoint = f"tcp://{address}:{self.port}"
        self._heard = self._settings.beacon.publish(self.identity, self.port)
        self.beacon_socket = self._heard.fileno()  # what pyre looks for among the readable
        self.poller.register(self.beacon_socket, zmq.POLLIN)
        self.poller.register(self.inbox, zmq.POLLIN)

    def stop(self) -> None:
        if self._settings.goodbye:
            self._flush()
        self._leave_beacon(goodbye=self._settings.goodbye)
        super().stop()

    def _leave_beacon(self, *, goodbye: bool) -> None:
        if self._heard is None:
            return
        self._settings.beacon.withdraw(self.identity, goodbye=goodbye)
        self.poller.unregister(self.beacon_socket)
        self.beacon_socket = None  # type: ignore[assignment]
        self._heard.close()
        self._heard = None

    def recv_peer(self) -> None:
        self._settings.awake.wait()
        self.outbox.received_ns = time.monotonic_ns()
        try:
            super().recv_peer()
        except _MALFORMED as error:
            self._settings.malformed += 1
            _log.debug("dropped a malformed ZRE message: %r", error)

    def ping_peer(self, peer_id: uuid.UUID) -> None:
        self._settings.awake.wait()
        super().ping_peer(peer_id)

    def recv_beacon(self) -> None:
        self._settings.awake.wait()
        assert self._heard is not None
        heard = self._heard.recv(1024)
        frame, sender = heard[: BEACON.size], heard[BEACON.size :]
        _magic, _version, raw_identity, port = BEACON.unpack(frame)
        identity = uuid.UUID(bytes=raw_identity)
        known = self.peers.get(identity)
        if port == 0:
            if known is not None:
                self.remove_peer(known)
        elif known is None and len(self.peers) >= _MAX_PEERS:
            self._settings.malformed += 1
        else:
            try:
                self.require_peer(identity, f"tcp://{sender.decode()}:{port}").refresh()
            except zmq.ZMQError as error:  # no descriptor left; the next beacon tries again
                self.peers.pop(identity, None)
                _log.warning("cannot connect to a peer: %s", error)

    def _flush(self) -> None:
        """Wait until the peers have what was sent: pyre closes their sockets without lingering.

        ZRE is in order, so a peer that answers a ping has all that went before it.
        """
        silent = set()
        for peer in self.peers.values():
            if peer.get_ready():
                peer.send(ZreMsg(ZreMsg.PING))
                silent.add(peer.get_identity())
        deadline = time.monotonic() + _FLUSH_TIMEOUT_S
        while silent and (left_s := deadline - time.monotonic()) > 0:
            if self.inbox.poll(left_s * 1000):
                message = ZreMsg()
                try:
                    message.recv(self.inbox)
                except _MALFORMED:
                    continue
                if message.id == ZreMsg.PING_OK:
                    silent.discard(message.get_address())


class StampingPyre(Pyre):  # type: ignore[misc]
    """pyre's front end over `_Node`; its own constructor knows no other node."""

    def __init__(self, context: zmq.Context[Any], settings: NodeSettings) -> None:
        self._ctx = context
        self._uuid = settings.identity
        self._name = settings.name
        self.verbose = False
        self.inbox, self._outbox = zhelper.zcreate_pipe(context)
        self.actor = _Actor(context, _Node, self._outbox, settings)
