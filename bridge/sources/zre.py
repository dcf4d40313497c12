"""A ZRE node that nothing on the network can end, fill up or deafen.

Of zeromq-pyre 0.3.4 it uses the mailboxes and the writing of messages. What it does itself, each for a defect seen in
pyre: a malformed message ended the node's thread; a status or sequence number beyond its wrap ended the node or the
peer; a step of the wall clock silenced peers; a peer whose mailbox was full was never connected again; a peer that
restarted with its old UUID was noticed late; a message that pretended to be our own, or to live where a peer does,
threw peers out; peers, sockets and memory were unbounded; the mailbox was bound on all interfaces. A whisper can be
stamped where the socket sends.

Protocol: ZRE 2 (rfc.zeromq.org/spec/36): UDP beacons, HELLO, WHISPER, SHOUT, JOIN, LEAVE, PING over TCP. It has no
authentication: whoever knows a peer's UUID can speak in its name.
"""

from __future__ import annotations

import asyncio
import logging
import re
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import msgspec
import zmq
from pyre.pyre_peer import PyrePeer
from pyre.zre_msg import ZreMsg

from bridge.clock.host import monotonic_ns
from bridge.errors import DeviceUnavailable, MalformedMessage
from bridge.sources import zre_beacon
from bridge.sources.interfaces import Interface
from bridge.sources.zmqio import ZmqReader, pipe
from bridge.sources.zre_beacon import Beacon
from bridge.sources.zre_message import Kind, Message, parse

log = logging.getLogger(__name__)

REAP_INTERVAL_S = 1.0
MAX_MESSAGE_BYTES = 64 << 10  # announcements have 500 bytes, a HELLO has few more
MAILBOX_HIGH_WATER_MARK = 200  # messages of one peer that wait to be read; it feels the rest itself
PEER_HIGH_WATER_MARK = 1000  # messages that wait to be read by a peer, until it is given up
HANDSHAKE_MS = 5_000  # a connection that says nothing in this time does not keep its file descriptor
MAX_PEERS = 64  # each costs two file descriptors or three
MAX_STRANGERS = 16  # peers that sent a beacon but no HELLO yet
STRANGER_PATIENCE_S = 10.0
STRANGER_CHANCE_S = 1.0  # so long no other beacon takes a stranger's place
MAX_GROUPS_TOLD = 8
RENEW_AFTER_MESSAGES = 60_000  # before the 16-bit sequence number wraps, which implementations do differently
STOP_PATIENCE_S = 2.0
ENDPOINT = re.compile(r"tcp://([0-9.]{7,15}):([0-9]{1,5})")
COUNTS = (
    *zre_beacon.COUNTS,
    "messages_malformed",
    "messages_from_strangers",
    "sequence_gaps",
    "endpoints_claimed",
    "peers_turned_away",
    "peers_unreachable",
    "whispers_to_nobody",
    "whispers_refused",
)


class ZreEvent(msgspec.Struct, frozen=True):
    """``type`` is ENTER, EXIT, JOIN, LEAVE (of the node's own group), WHISPER, SHOUT or SENT.

    ENTER: ``content`` is where the peer lives, as tcp://address:port, and up to eight of its groups. SENT: a stamped
    whisper has left at ``sent_ns``.
    """

    type: str
    peer: uuid.UUID
    name: str
    content: tuple[bytes, ...] = ()
    sent_ns: int = 0


class _Peer(PyrePeer):  # type: ignore[misc]
    met_at = 0.0  # time.monotonic()
    entered = False  # the application knows of it
    kept = False  # the application wants it
    heard_sequence = 0

    def connect(self, reply_to: uuid.UUID, endpoint: str) -> None:
        """Raises zmq.ZMQError. pyre's makes a mailbox that the context does not know and would wait for at its end."""
        self.mailbox = self._ctx.socket(zmq.DEALER)
        self.mailbox.setsockopt(zmq.LINGER, 0)
        self.mailbox.setsockopt(zmq.IDENTITY, b"\x01" + reply_to.bytes)
        self.mailbox.setsockopt(zmq.SNDHWM, PEER_HIGH_WATER_MARK)
        self.mailbox.setsockopt(zmq.SNDTIMEO, 0)
        self.mailbox.connect(endpoint)
        self.endpoint = endpoint
        self.connected = True

    def refresh(self) -> None:
        self.evasive_at = time.monotonic() + self.PEER_EVASIVE
        self.expired_at = time.monotonic() + self.PEER_EXPIRED

    @property
    def heard_lately(self) -> bool:
        return bool(self.ready) and time.monotonic() < self.evasive_at

    def next_in_sequence(self, sequence: int) -> bool:
        """Whether no message was lost. They count in 16 bits, but pyre's wrap one early: both ways are right."""
        after = self.heard_sequence + 1
        self.heard_sequence = sequence
        return sequence in (after % 65536, after % 65535)


class _Node:
    """The peers and their mailboxes, served by a thread that `run` is."""

    def __init__(
        self, ctx: zmq.Context[Any], name: str, group: str, interface: Interface, udp_port: int, counts: Counter[str]
    ) -> None:
        """Binds, so that what cannot be had is known at once. Raises zmq.ZMQError or OSError."""
        self.identity = uuid.uuid4()
        self._ctx = ctx
        self._name = name.encode("ascii", "replace").decode()[:255]  # pyre writes no other letters rightly
        self._group = group
        self._counts = counts
        self._peers: dict[uuid.UUID, _Peer] = {}
        self._inbox: zmq.Socket[bytes] = ctx.socket(zmq.ROUTER)
        self._inbox.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._inbox.setsockopt(zmq.RCVHWM, MAILBOX_HIGH_WATER_MARK)
        self._inbox.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._inbox.setsockopt(zmq.LINGER, 0)
        port = self._inbox.bind_to_random_port(f"tcp://{interface.address}")
        self._endpoint = f"tcp://{interface.address}:{port}"
        self._beacon = Beacon(ctx, interface, udp_port, self.identity, port, counts)
        self.commands, self._commands = pipe(ctx)
        self.events, self._events = pipe(ctx)

    def run(self) -> None:
        """Returns at STOP, or when the beacon has died."""
        try:
            self._beacon.start()
            self._serve()
        finally:
            self._beacon.stop()
            for peer in self._peers.values():
                peer.disconnect()
            for socket in (self._inbox, self._commands, self._events):
                socket.close(0)

    def _serve(self) -> None:
        poller = zmq.Poller()
        for socket in (self._commands, self._inbox, self._beacon.inbox):
            poller.register(socket, zmq.POLLIN)
        next_reap = time.monotonic() + REAP_INTERVAL_S
        while True:
            ready = dict(poller.poll(int(max(0.0, next_reap - time.monotonic()) * 1000) + 1))
            if self._commands in ready:
                command, *arguments = self._commands.recv_multipart()
                if command == b"STOP":
                    return
                identity = uuid.UUID(bytes=arguments[0])
                if command == b"WHISPER":
                    self._whisper(identity, *arguments[1:])
                elif identity in self._peers:
                    self._peers[identity].kept = True
            if self._inbox in ready:
                self._receive()
            if self._beacon.inbox in ready:
                self._hear()
            if time.monotonic() >= next_reap:
                next_reap = time.monotonic() + REAP_INTERVAL_S
                for peer in list(self._peers.values()):
                    self._look_after(peer)
                if not self._beacon.alive:
                    log.error("the thread of the ZRE beacon has ended")
                    return

    def _whisper(self, identity: uuid.UUID, content: bytes, token: bytes | None = None) -> None:
        peer = self._peers.get(identity)
        if peer is None or not peer.connected:
            self._counts["whispers_to_nobody"] += 1
            return
        if peer.sent_sequence >= RENEW_AFTER_MESSAGES:
            self._renew(peer)
        message = ZreMsg(ZreMsg.WHISPER)
        message.content = [content]
        sent_ns = monotonic_ns()
        peer.send(message)
        if token is not None:
            self._tell("SENT", peer, (token, struct.pack("<q", sent_ns)))

    def _tell(self, kind: str, peer: _Peer, content: tuple[bytes, ...] = ()) -> None:
        # Waits when the application is busy; then so do the peers' mailboxes, and in the end the peers.
        self._events.send_multipart([kind.encode(), peer.get_identity().bytes, peer.get_name().encode(), *content])

    # --- the life of a peer --------------------------------------------------------------------------------------

    def _meet(self, identity: uuid.UUID, endpoint: str, *, by_beacon: bool) -> _Peer | None:
        """Connects to a peer and greets it. None for lack of room, or when its endpoint is none, or is another's."""
        if identity == self.identity or endpoint == self._endpoint or not _is_endpoint(endpoint):
            # To greet ourselves would never end: each HELLO is answered by a HELLO.
            self._counts["messages_malformed"] += 1
            return None
        for known in list(self._peers.values()):
            if known.get_endpoint() == endpoint:
                if known.heard_lately:
                    # Two conversations with one mailbox would disturb each other. If this peer is what lives there
                    # now, the other one falls silent and this one's next beacon finds the place free.
                    self._counts["endpoints_claimed"] += 1
                    return None
                self._forget(known)
        if not self._make_room(by_beacon):
            self._counts["peers_turned_away"] += 1
            return None
        peer = _Peer(self._ctx, identity)
        try:
            peer.connect(self.identity, endpoint)
        except zmq.ZMQError as error:
            # There are no file descriptors left.
            self._counts["peers_unreachable"] += 1
            log.debug("no mailbox for %s: %s", endpoint, error)
            if peer.mailbox is not None:
                peer.mailbox.close(0)
            return None
        peer.met_at = time.monotonic()
        self._peers[identity] = peer
        self._greet(peer)
        return peer

    def _make_room(self, by_beacon: bool) -> bool:
        """Whether one more peer may come, if need be in the place of one that nobody wants.

        Beacons cost their sender nothing, so they do not drive out others that are as new as they. A peer that is
        there answers our own beacon with a HELLO, which always finds a place.
        """
        strangers = [peer for peer in self._peers.values() if not peer.ready and not peer.entered]
        if len(strangers) < MAX_STRANGERS and len(self._peers) < MAX_PEERS:
            return True
        candidates = strangers or [peer for peer in self._peers.values() if not peer.kept]
        if not candidates:
            return False
        oldest = min(candidates, key=lambda peer: peer.met_at)
        if by_beacon and time.monotonic() < oldest.met_at + STRANGER_CHANCE_S:
            return False
        self._forget(oldest)
        return True

    def _greet(self, peer: _Peer) -> None:
        """HELLO begins a conversation, which counts its messages from one."""
        peer.sent_sequence = 0
        hello = ZreMsg(ZreMsg.HELLO)
        hello.set_endpoint(self._endpoint)
        hello.set_groups([self._group])
        hello.set_status(1)
        hello.set_name(self._name)
        peer.evasive_at = peer.expired_at = time.monotonic() + STRANGER_PATIENCE_S
        peer.send(hello)

    def _renew(self, peer: _Peer) -> None:
        """Begins the conversation anew, through the same mailbox, so that nothing that was sent is lost.

        The peer then announces itself again; the application hears of it only if it does not.
        """
        peer.set_ready(False)
        self._greet(peer)

    def _forget(self, peer: _Peer) -> None:
        if peer.entered:
            self._tell("EXIT", peer)
        self._peers.pop(peer.get_identity(), None)
        peer.disconnect()

    def _look_after(self, peer: _Peer) -> None:
        if time.monotonic() > peer.expired_at:
            self._forget(peer)
        elif peer.ready and time.monotonic() > peer.evasive_at:
            peer.send(ZreMsg(ZreMsg.PING))

    # --- what peers say ------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        heard = self._beacon.receive()
        peer = self._peers.get(heard.identity)
        if heard.port == 0:
            if peer is not None:
                self._forget(peer)
            return
        if peer is not None and (not peer.connected or _port(peer.get_endpoint()) != heard.port):
            # Restarted with its old identity, or its mailbox was full: this conversation is over.
            self._forget(peer)
            peer = None
        if peer is None:
            self._meet(heard.identity, f"tcp://{heard.address}:{heard.port}", by_beacon=True)
        elif peer.ready:
            peer.refresh()

    def _receive(self) -> None:
        try:
            message = parse(self._inbox.recv_multipart())
        except MalformedMessage as error:
            self._counts["messages_malformed"] += 1
            log.debug("from a peer: %s", error)
            return
        peer = self._peers.get(message.sender)
        if message.kind == Kind.HELLO:
            self._greeted(peer, message)
        elif peer is None or not peer.ready:
            self._counts["messages_from_strangers"] += 1
        elif not peer.next_in_sequence(message.sequence):
            # What was lost cannot be known; greeting anew makes the peer announce its sensors again.
            self._counts["sequence_gaps"] += 1
            self._renew(peer)
        else:
            peer.refresh()
            self._said(peer, message)

    def _greeted(self, peer: _Peer | None, message: Message) -> None:
        if not _is_endpoint(message.endpoint):
            self._counts["messages_malformed"] += 1
            return
        if peer is not None and (not peer.connected or _port(peer.get_endpoint()) != _port(message.endpoint)):
            self._forget(peer)
            peer = None
        if peer is None:
            peer = self._meet(message.sender, message.endpoint, by_beacon=False)
            if peer is None:
                return
        elif peer.ready:
            # It begins a new conversation, because it missed something, and waits to be greeted.
            self._greet(peer)
        peer.heard_sequence = message.sequence
        peer.set_ready(True)
        peer.set_name(message.name)
        peer.refresh()
        if not peer.entered:
            peer.entered = True
            groups = [group.encode() for group in message.groups[:MAX_GROUPS_TOLD]]
            self._tell("ENTER", peer, (peer.get_endpoint().encode(), *groups))
            if self._group in message.groups:
                self._tell("JOIN", peer, (self._group.encode(),))

    def _said(self, peer: _Peer, message: Message) -> None:
        match message.kind:
            case Kind.WHISPER | Kind.SHOUT:
                self._tell(message.kind.name, peer, message.content)
            case Kind.JOIN | Kind.LEAVE if message.group == self._group:
                self._tell(message.kind.name, peer, (message.group.encode(),))
            case Kind.PING:
                peer.send(ZreMsg(ZreMsg.PING_OK))


def _is_endpoint(endpoint: str) -> bool:
    """Whether it has an IPv4 address and a port. libzmq would ask DNS for anything else, 999.1.1.1 too, and wait."""
    match = ENDPOINT.fullmatch(endpoint)
    return match is not None and _is_address(match[1]) and 0 < int(match[2]) <= 65535


def _is_address(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _port(endpoint: str) -> int:
    """The port of an endpoint that has the form of one; 0 for "", which a peer without a connection has."""
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
        """Starts the node's two threads and the beacon, within some milliseconds.

        Raises DeviceUnavailable when the interface or the UDP port cannot be had now.
        """
        # All keys from the start: the node's threads count while others read.
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self.interface = interface
        self._on_event = on_event
        self._ctx: zmq.Context[Any] = zmq.Context()
        try:
            node = _Node(self._ctx, name, group, interface, port, self.counts)
        except (zmq.ZMQError, OSError) as error:
            self._ctx.destroy(0)
            raise DeviceUnavailable(f"no discovery on {interface.address}, UDP port {port}: {error}") from error
        self._commands = node.commands
        self._reader = ZmqReader(loop, node.events, self._take)
        self._thread = threading.Thread(target=node.run, name="zre node", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def whisper(self, peer: uuid.UUID, content: bytes) -> None:
        self._send([b"WHISPER", peer.bytes, content])

    def whisper_stamped(self, peer: uuid.UUID, content: bytes, token: bytes) -> None:
        """A SENT event with the token as content and ``sent_ns`` follows."""
        self._send([b"WHISPER", peer.bytes, content, token])

    def keep(self, peer: uuid.UUID) -> None:
        """This peer is of use: for as long as it is there, no newcomer takes its place."""
        self._send([b"KEEP", peer.bytes])

    def _send(self, frames: list[bytes]) -> None:
        try:
            self._commands.send_multipart(frames, zmq.NOBLOCK)
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
        """Leaves politely when the node lives; never hangs when it does not. What it still has to tell is lost."""
        asked, deadline = False, time.monotonic() + STOP_PATIENCE_S
        while self.alive and time.monotonic() < deadline:
            try:
                if not asked:
                    self._commands.send_multipart([b"STOP"], zmq.NOBLOCK)
                    asked = True
                # It may be waiting for room for an event.
                while True:
                    self._reader.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._thread.join(0.001)
        self._reader.close()
        self._commands.close(0)
        if self.alive:
            # Closing its sockets under it would abort the process; a thread that hangs is the smaller harm.
            log.error("the ZRE node's thread did not end")
        else:
            self._ctx.destroy(0)
