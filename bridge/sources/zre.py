"""A ZRE node (zeromq-pyre 0.3.4) that nothing on the network can end.

What it replaces in pyre, each a defect seen there: a datagram of a wrong length or a malformed message ended the node's
thread; any send error but macOS' numbers for "network down" ended the beacon; a status or sequence number beyond its
wrap ended the node or the peer; a step of the wall clock silenced the beacon; a peer whose mailbox was full was never
connected again; a peer that restarted with its old UUID was noticed late; peers and sockets were unbounded; the mailbox
was bound on all interfaces. A whisper can be stamped where the socket sends.

Protocol: ZRE 2 (rfc.zeromq.org/spec/36): UDP beacons, HELLO, WHISPER, SHOUT, JOIN, LEAVE, PING over TCP.
"""

from __future__ import annotations

import asyncio
import logging
import re
import struct
import time
import uuid
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import msgspec
import zmq
from pyre import zhelper
from pyre.pyre_node import PyreNode
from pyre.pyre_peer import PyrePeer
from pyre.zactor import ZActor
from pyre.zbeacon import ZBeacon
from pyre.zre_msg import ZreMsg

from bridge.clock.host import monotonic_ns
from bridge.sources.interfaces import Interface
from bridge.sources.zmqio import ZmqReader

log = logging.getLogger(__name__)

BEACON = struct.Struct(">3sB16sH")
BEACON_INTERVAL_S = 1.0
REAP_INTERVAL_S = 1.0
MAX_MESSAGE_BYTES = 1 << 20
MAX_PEERS = 256
MAX_STRANGERS = 32  # peers that sent a beacon but no HELLO yet
STRANGER_PATIENCE_S = 10.0
RENEW_AFTER_MESSAGES = 60_000  # before the 16-bit sequence number wraps, which implementations do differently
STOP_PATIENCE_MS = 1_000
ENDPOINT = re.compile(r"tcp://\d{1,3}(\.\d{1,3}){3}:\d{1,5}")
MALFORMED = (struct.error, UnicodeDecodeError, ValueError, IndexError, TypeError, AttributeError)


class ZreEvent(msgspec.Struct, frozen=True):
    """``type`` is ENTER, EXIT, JOIN, LEAVE, WHISPER, SHOUT or SENT (a stamped whisper has left at ``sent_ns``)."""

    type: str
    peer: uuid.UUID
    name: str
    content: tuple[bytes, ...] = ()
    sent_ns: int = 0


class _Beacon(ZBeacon):  # type: ignore[misc]
    def __init__(self, ctx: zmq.Context[Any], pipe: Any, interface: Interface, counts: Counter[str]) -> None:
        self._interface = interface
        self._counts = counts
        super().__init__(ctx, pipe)

    def _prepare_socket(self) -> None:
        self.address = IPv4Address(self._interface.address)
        self.broadcast_address = IPv4Address(self._interface.broadcast)

    def handle_udp(self) -> None:
        try:
            frame, (address, _) = self.udpsock.recvfrom(255)
        except OSError:
            self._counts["beacon_receive_errors"] += 1
            return
        if len(frame) != BEACON.size or not frame.startswith(b"ZRE\x01"):
            self._counts["beacons_malformed"] += 1
        elif frame != self.transmit:
            self.pipe.send_multipart([address.encode(), frame])

    def send_beacon(self) -> None:
        try:
            self.udpsock.sendto(self.transmit, (str(self.broadcast_address), self.port_nbr))
        except OSError as error:
            # The network may be down for hours: discovery goes on when it is back.
            self._counts["beacon_send_errors"] += 1
            log.debug("beacon not sent: %s", error)

    def run(self) -> None:
        self.pipe.signal()
        poller = zmq.Poller()
        poller.register(self.pipe, zmq.POLLIN)
        poller.register(self.udpsock, zmq.POLLIN)
        next_beacon = 0.0
        try:
            while not self.terminated:
                wait_s = max(0.0, next_beacon - time.monotonic()) if self.transmit else BEACON_INTERVAL_S
                ready = dict(poller.poll(int(wait_s * 1000) + 1))
                if self.pipe in ready:
                    before = self.transmit
                    self.handle_pipe()
                    if self.transmit is not before:
                        next_beacon = 0.0
                if self.udpsock.fileno() in ready:
                    self.handle_udp()
                if self.transmit and time.monotonic() >= next_beacon:
                    self.send_beacon()
                    next_beacon = time.monotonic() + BEACON_INTERVAL_S
        finally:
            self.udpsock.close()


class _Peer(PyrePeer):  # type: ignore[misc]
    entered = False  # the application knows of it

    def refresh(self) -> None:
        self.evasive_at = time.monotonic() + self.PEER_EVASIVE
        self.expired_at = time.monotonic() + self.PEER_EXPIRED

    def messages_lost(self, message: ZreMsg) -> bool:
        """Sequence numbers count in 16 bits; pyre's own wrap one early, so that both ways are right."""
        got = message.get_sequence()
        if message.id == ZreMsg.HELLO:
            # HELLO begins a conversation, whatever was counted before.
            self.want_sequence = got
            return False
        wanted = {(self.want_sequence + 1) % 65536, (self.want_sequence + 1) % 65535}
        self.want_sequence = got
        return got not in wanted


class _Node(PyreNode):  # type: ignore[misc]
    """Runs in its own thread from construction to ``$TERM``."""

    _terminated: bool
    status: int

    def __init__(
        self, ctx: Any, pipe: Any, outbox: Any, name: str, interface: Interface, port: int, counts: Counter[str]
    ) -> None:
        self._interface = interface
        self._given_name = name
        self._given_port = port
        self._counts = counts
        try:
            super().__init__(ctx, pipe, outbox)  # returns when the node ends
        finally:
            self.stop()
            for peer in self.peers.values():
                peer.disconnect()
            self.inbox.close(0)
            outbox.close(0)

    def start(self) -> None:
        self.inbox.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self.inbox.setsockopt(zmq.LINGER, 0)
        self.port = self.inbox.bind_to_random_port(f"tcp://{self._interface.address}")
        self.bound = True
        self.endpoint = f"tcp://{self._interface.address}:{self.port}"
        self.beacon = ZActor(self._ctx, _Beacon, self._interface, self._counts)
        self.beacon_socket = self.beacon.resolve()
        self.beacon.send_multipart([b"CONFIGURE", struct.pack("I", self._given_port)])
        self.beacon.recv_unicode()
        self.beacon.send_multipart([b"PUBLISH", BEACON.pack(b"ZRE", 1, self.identity.bytes, self.port)])
        self.poller.register(self.beacon_socket, zmq.POLLIN)
        self.poller.register(self.inbox, zmq.POLLIN)

    def stop(self) -> None:
        if self.beacon and self.beacon.is_running:
            self.beacon.send_multipart([b"PUBLISH", BEACON.pack(b"ZRE", 1, self.identity.bytes, 0)])
            self.beacon.destroy()
        self.beacon = None

    def run(self) -> None:
        self.name = self._given_name
        self._pipe.signal()
        next_reap = time.monotonic() + REAP_INTERVAL_S
        while not self._terminated:
            ready = dict(self.poller.poll(int(max(0.0, next_reap - time.monotonic()) * 1000) + 1))
            if self._pipe in ready:
                self.recv_api()
            if self.inbox in ready:
                self.recv_peer()
            if self.beacon_socket in ready:
                self.recv_beacon()
            if time.monotonic() >= next_reap:
                next_reap = time.monotonic() + REAP_INTERVAL_S
                for peer_id in list(self.peers):
                    self.ping_peer(peer_id)

    def recv_api(self) -> None:
        command, *arguments = self._pipe.recv_multipart()
        if command in (b"WHISPER", b"WHISPER STAMPED"):
            self._whisper(uuid.UUID(bytes=arguments[0]), arguments[1], token=arguments[2] if arguments[2:] else None)
        elif command == b"JOIN":
            group = arguments[0].decode()
            self.own_groups[group] = group
            self.status = (self.status + 1) & 0xFF
        elif command == b"START":
            self.start()
            self._pipe.signal()
        elif command == b"STOP":
            self.stop()
            self._pipe.signal()
        elif command == b"$TERM":
            self._terminated = True

    def _whisper(self, identity: uuid.UUID, content: bytes, token: bytes | None) -> None:
        peer = self.peers.get(identity)
        if peer is None or not peer.connected:
            self._counts["whispers_to_nobody"] += 1
            return
        message = ZreMsg(ZreMsg.WHISPER)
        message.content = [content]
        sent_ns = monotonic_ns()
        peer.send(message)
        if token is not None:
            self._tell("SENT", peer, (token, struct.pack("<q", sent_ns)))
        if peer.sent_sequence >= RENEW_AFTER_MESSAGES:
            self._renew(peer)

    def _tell(self, kind: str, peer: _Peer, content: tuple[bytes, ...] = ()) -> None:
        self.outbox.send_multipart([kind.encode(), peer.get_identity().bytes, peer.get_name().encode(), *content])

    def _forget(self, peer: _Peer) -> None:
        if peer.entered:
            self._tell("EXIT", peer)
        self.peers.pop(peer.get_identity(), None)
        peer.disconnect()

    def _meet(self, identity: uuid.UUID, endpoint: str) -> _Peer | None:
        """Connects to a peer and greets it. None when its endpoint cannot be one, or there are too many."""
        if not ENDPOINT.fullmatch(endpoint):
            self._counts["messages_malformed"] += 1
            return None
        for known in list(self.peers.values()):
            if known.get_endpoint() == endpoint:
                self._forget(known)
        strangers = [p for p in self.peers.values() if not p.get_ready()]
        if len(strangers) >= MAX_STRANGERS or len(self.peers) >= MAX_PEERS:
            self._counts["peers_turned_away"] += 1
            if not strangers:
                return None
            self._forget(min(strangers, key=lambda p: p.expired_at))
        peer = _Peer(self._ctx, identity)
        try:
            peer.connect(self.identity, endpoint)
        except zmq.ZMQError:
            # Looks like an endpoint, but libzmq knows better (999.1.1.1).
            self._counts["messages_malformed"] += 1
            peer.mailbox.close(0)
            return None
        self.peers[identity] = peer
        peer.refresh()
        peer.expired_at = time.monotonic() + STRANGER_PATIENCE_S
        hello = ZreMsg(ZreMsg.HELLO)
        hello.set_endpoint(self.endpoint)
        hello.set_groups(list(self.own_groups))
        hello.set_status(self.status)
        hello.set_name(self.name)
        hello.set_headers({})
        peer.send(hello)
        return peer

    def _renew(self, peer: _Peer) -> None:
        """Greets a peer anew, so that the conversation counts from one again. The application hears nothing of it."""
        endpoint, entered = peer.get_endpoint(), peer.entered
        peer.entered = False
        self._forget(peer)
        again = self._meet(peer.get_identity(), endpoint)
        if again is not None:
            again.entered = entered
            again.set_name(peer.get_name())

    def recv_beacon(self) -> None:
        address, frame = self.beacon_socket.recv_multipart()
        _, _, identity_bytes, port = BEACON.unpack(frame)
        identity = uuid.UUID(bytes=identity_bytes)
        if identity == self.identity:
            return
        peer = self.peers.get(identity)
        if port == 0:
            if peer is not None:
                self._forget(peer)
            return
        endpoint = f"tcp://{address.decode()}:{port}"
        if peer is not None and (not peer.connected or _port(peer.get_endpoint()) != port):
            # Restarted with its old identity, or its mailbox was full: this conversation is over.
            self._forget(peer)
            peer = None
        if peer is None:
            self._meet(identity, endpoint)
        elif peer.get_ready():
            peer.refresh()

    def recv_peer(self) -> None:
        message = ZreMsg()
        try:
            message.recv(self.inbox)
            identity = message.get_address()
            if not isinstance(identity, uuid.UUID) or message.get_command() is None:
                raise ValueError("no identity or no command")
            self._take(identity, message)
        except MALFORMED as error:
            self._counts["messages_malformed"] += 1
            log.debug("malformed ZRE message: %s", error)

    def _take(self, identity: uuid.UUID, message: ZreMsg) -> None:
        peer = self.peers.get(identity)
        if message.id == ZreMsg.HELLO:
            endpoint = message.get_endpoint()
            if peer is not None and peer.get_ready():
                self._forget(peer)
                peer = None
            elif peer is not None and peer.get_endpoint() != endpoint and _port(endpoint) != _port(peer.get_endpoint()):
                self._forget(peer)
                peer = None
            if peer is None:
                peer = self._meet(identity, endpoint)
            if peer is None:
                return
            peer.messages_lost(message)
            peer.set_ready(True)
            peer.set_name(message.get_name())
            peer.refresh()
            peer.entered = True
            self._tell("ENTER", peer)
            for group in message.get_groups():
                self._tell("JOIN", peer, (group.encode(),))
            return
        if peer is None or not peer.get_ready():
            self._counts["messages_from_strangers"] += 1
            return
        if peer.messages_lost(message):
            # What was lost cannot be known; greeting anew makes the peer announce its sensors again.
            self._counts["sequence_gaps"] += 1
            self._renew(peer)
            return
        peer.refresh()
        content = tuple(message.content) if isinstance(message.content, list) else ()
        if message.id == ZreMsg.WHISPER:
            self._tell("WHISPER", peer, content)
        elif message.id == ZreMsg.SHOUT:
            self._tell("SHOUT", peer, content)
        elif message.id == ZreMsg.PING:
            peer.send(ZreMsg(ZreMsg.PING_OK))
        elif message.id == ZreMsg.JOIN:
            self._tell("JOIN", peer, (message.get_group().encode(),))
        elif message.id == ZreMsg.LEAVE:
            self._tell("LEAVE", peer, (message.get_group().encode(),))

    def ping_peer(self, peer_id: uuid.UUID) -> None:
        peer = self.peers[peer_id]
        if time.monotonic() > peer.expired_at:
            self._forget(peer)
        elif peer.get_ready() and time.monotonic() > peer.evasive_at:
            peer.send(ZreMsg(ZreMsg.PING))


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2] or 0)


class ZreNode:
    """The node as the event loop sees it: calls in, events out, and whether it lives."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_event: Callable[[ZreEvent], None],
        *,
        name: str,
        group: str,
        interface: Interface,
        port: int,
    ) -> None:
        """Starts the node's two threads and the beacon, within some milliseconds."""
        self.counts: Counter[str] = Counter()
        self.interface = interface
        self._on_event = on_event
        self._ctx: zmq.Context[Any] = zmq.Context()
        inbox, outbox = zhelper.zcreate_pipe(self._ctx)
        self._actor = ZActor(self._ctx, _Node, outbox, name, interface, port, self.counts)
        self._reader = ZmqReader(loop, inbox, self._take)
        self._actor.send_multipart([b"JOIN", group.encode()])
        self._actor.send_multipart([b"START"])
        if self._actor.pipe.poll(STOP_PATIENCE_MS):
            self._actor.pipe.recv()

    @property
    def alive(self) -> bool:
        return bool(self._actor.thread.is_alive())

    def whisper(self, peer: uuid.UUID, content: bytes) -> None:
        self._send([b"WHISPER", peer.bytes, content])

    def whisper_stamped(self, peer: uuid.UUID, content: bytes, token: bytes) -> None:
        """A SENT event with the token as content and ``sent_ns`` follows."""
        self._send([b"WHISPER STAMPED", peer.bytes, content, token])

    def _send(self, frames: list[bytes]) -> None:
        try:
            self._actor.pipe.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            self.counts["whispers_refused"] += 1

    def _take(self, frames: list[bytes]) -> None:
        kind, peer, name, *content = frames
        sent_ns = 0
        if kind == b"SENT":
            token, stamp = content
            content, (sent_ns,) = [token], struct.unpack("<q", stamp)
        self._on_event(ZreEvent(kind.decode(), uuid.UUID(bytes=peer), name.decode(), tuple(content), sent_ns))

    def stop(self) -> None:
        """Leaves politely when the node lives; never hangs when it does not."""
        pipe = self._actor.pipe
        for command in (b"STOP", b"$TERM"):
            if self.alive:
                pipe.send_multipart([command], zmq.NOBLOCK)
                if pipe.poll(STOP_PATIENCE_MS):
                    pipe.recv()
        self._actor.thread.join(STOP_PATIENCE_MS / 1000)
        self._reader.close()
        pipe.close(0)
        if self.alive:
            # Closing its sockets under it would abort the process; a thread that hangs is the smaller harm.
            log.error("the ZRE node's thread did not end")
        else:
            self._ctx.destroy(0)
