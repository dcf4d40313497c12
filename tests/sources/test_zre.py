"""The ZRE node against raw sockets and pyre itself, on loopback. Nothing that they send may end or deafen it."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import random
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest
import zmq
from pyre import Pyre, zhelper
from pyre.pyre_node import PyreNode
from pyre.zactor import ZActor
from pyre.zbeacon import ZBeacon

from bridge.errors import DeviceUnavailable, MalformedMessage
from bridge.sources import zre, zre_beacon, zre_message
from bridge.sources.interfaces import Interface
from bridge.sources.zre import ZreEvent, ZreNode
from tests.sources.zre_peer import (
    BROADCAST,
    GROUP,
    HELLO,
    JOIN,
    LEAVE,
    PING,
    PING_OK,
    SHOUT,
    WHISPER,
    RawPeer,
    beacon,
    free_udp_port,
    header,
    hello,
    text,
    until,
)

LOOPBACK = Interface("127.0.0.1", BROADCAST)


class Node:
    """The node of the bridge with everything that it told."""

    def __init__(self, beacon_port: int, on_event: Any = None) -> None:
        self.beacon_port = beacon_port
        self.events: list[ZreEvent] = []
        self.node = ZreNode(
            asyncio.get_running_loop(),
            on_event or self.events.append,
            name="bridge",
            group=GROUP,
            interface=LOOPBACK,
            port=beacon_port,
        )

    @property
    def counts(self) -> Counter[str]:
        return self.node.counts

    def of(self, peer: RawPeer | uuid.UUID) -> list[str]:
        identity = peer if isinstance(peer, uuid.UUID) else peer.identity
        return [event.type for event in self.events if event.peer == identity]

    def said(self, peer: RawPeer) -> list[bytes]:
        return [e.content[0] for e in self.events if e.peer == peer.identity and e.type in ("WHISPER", "SHOUT")]

    async def meets(self, peer: RawPeer) -> str:
        endpoint = await peer.meet()
        await until(lambda: "ENTER" in self.of(peer), "the peer has entered")
        return endpoint

    async def serves(self, peer: RawPeer) -> None:
        """Fails unless a whisper gets through in each direction."""
        mark = uuid.uuid4().bytes
        peer.whisper(mark)
        await until(lambda: mark in self.said(peer), f"the peer is heard; {self.counts}")
        self.node.whisper(peer.identity, mark)
        await until(lambda: any(m.content == [mark] for m in peer.got(WHISPER)), "the peer is spoken to")

    async def counted(self, what: str, count: int) -> None:
        await until(lambda: self.counts[what] >= count, f"{count} {what}, not {self.counts[what]}")


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node(free_udp_port())
    yield made
    made.node.stop()
    assert not made.node.alive


@pytest.fixture
def peer(node: Node) -> Iterator[RawPeer]:
    made = RawPeer(node.beacon_port)
    yield made
    made.close()


@pytest.fixture
def other(node: Node) -> Iterator[RawPeer]:
    made = RawPeer(node.beacon_port, "Other")
    yield made
    made.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- what a node is for --------------------------------------------------------------------------------------------


async def test_what_a_peer_does_becomes_events(node: Node, peer: RawPeer) -> None:
    await node.meets(peer)
    peer.whisper(b"to you")
    peer.shout(b"to all")
    peer.say(LEAVE, text(GROUP) + b"\x02")
    peer.say(JOIN, text(GROUP) + b"\x03")
    peer.say(JOIN, text("a group that the node is not in") + b"\x04")
    peer.say(WHISPER, b"", b"two", b"frames")
    peer.say(WHISPER)
    await until(lambda: len(node.events) >= 8, "all events")
    peer.beacon(port=0)
    await until(lambda: "EXIT" in node.of(peer), "the goodbye")

    assert {event.peer for event in node.events} == {peer.identity}
    assert {event.name for event in node.events} == {"Raw"}
    assert [(event.type, event.content) for event in node.events] == [
        ("ENTER", (peer.endpoint.encode(), GROUP.encode())),
        ("JOIN", (GROUP.encode(),)),
        ("WHISPER", (b"to you",)),
        ("SHOUT", (b"to all",)),
        ("LEAVE", (GROUP.encode(),)),
        ("JOIN", (GROUP.encode(),)),
        ("WHISPER", (b"two", b"frames")),
        ("WHISPER", ()),
        ("EXIT", ()),
    ]


async def test_the_nodes_greeting_tells_its_endpoint_group_and_name(node: Node, peer: RawPeer) -> None:
    peer.beacon()
    (greeting,) = await until(lambda: peer.got(HELLO), "the greeting")
    assert greeting.sequence == 1
    endpoint = greeting.endpoint
    assert endpoint.startswith("tcp://127.0.0.1:")
    rest = text(endpoint) + struct.pack(">I", 1) + text(GROUP, 4) + b"\x01" + text("bridge") + struct.pack(">I", 0)
    assert greeting.body == rest
    assert len(greeting.identity) == 17
    assert greeting.identity[0] == 1


async def test_a_stamped_whisper_tells_when_it_was_sent(node: Node, peer: RawPeer) -> None:
    await node.meets(peer)
    before_ns = time.monotonic_ns()
    node.node.whisper_stamped(peer.identity, b"ping", b"token 7")
    await until(lambda: peer.got(WHISPER), "the whisper")
    received_ns = time.monotonic_ns()
    await until(lambda: "SENT" in node.of(peer), "the stamp")
    sent = node.events[-1]
    assert sent.content == (b"token 7",)
    assert before_ns <= sent.sent_ns <= received_ns
    assert [m.content for m in peer.got(WHISPER)] == [[b"ping"]]


async def test_a_whisper_to_nobody_is_counted(node: Node) -> None:
    node.node.whisper_stamped(uuid.uuid4(), b"hello?", b"1")
    await node.counted("whispers_to_nobody", 1)
    assert node.events == []


async def test_a_ping_is_answered(node: Node, peer: RawPeer) -> None:
    await node.meets(peer)
    peer.say(PING)
    await until(lambda: peer.got(PING_OK), "the answer")


class LoopbackBeacon(ZBeacon):  # type: ignore[misc]
    def _prepare_socket(self) -> None:
        self.address, self.broadcast_address = map(ipaddress.IPv4Address, LOOPBACK)


class LoopbackNode(PyreNode):  # type: ignore[misc]
    """pyre's node as it is, but for where it lives."""

    def __init__(self, ctx: Any, pipe: Any, outbox: Any, beacon_port: int) -> None:
        self._given_port = beacon_port
        super().__init__(ctx, pipe, outbox)
        for mailbox in self.peers.values():
            mailbox.disconnect()
        self.inbox.close(0)
        outbox.close(0)

    def start(self) -> None:
        self.beacon_port = self._given_port
        self.beacon = ZActor(self._ctx, LoopbackBeacon)
        self.beacon.send_multipart([b"CONFIGURE", struct.pack("I", self.beacon_port)])
        self.beacon.recv_unicode()
        self.port = self.inbox.bind_to_random_port("tcp://127.0.0.1")
        self.bound = True
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.beacon.send_multipart([b"PUBLISH", beacon(self.identity, self.port)])
        self.beacon.send_multipart([b"SUBSCRIBE", b"ZRE"])
        self.beacon_socket = self.beacon.resolve()
        self.poller.register(self.beacon_socket, zmq.POLLIN)
        self.poller.register(self.inbox, zmq.POLLIN)


class LoopbackPyre(Pyre):  # type: ignore[misc]
    def __init__(self, beacon_port: int) -> None:
        self._ctx = zmq.Context()
        self._uuid = None
        self._name = "plain pyre"
        self.verbose = False
        self.inbox, self._outbox = zhelper.zcreate_pipe(self._ctx)
        self.actor = ZActor(self._ctx, LoopbackNode, self._outbox, beacon_port)
        self.actor.send_multipart([b"SET NAME", b"plain pyre"])
        self.heard: list[list[bytes]] = []

    def pump(self) -> list[list[bytes]]:
        while True:
            try:
                self.heard.append(self.inbox.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return self.heard

    def contents(self) -> list[bytes]:
        return [event[3] for event in self.pump() if event[0] == b"WHISPER"]

    def kinds(self) -> list[bytes]:
        return [event[0] for event in self.pump()]


@pytest.fixture
def plain(node: Node) -> Iterator[LoopbackPyre]:
    made = LoopbackPyre(node.beacon_port)
    made.join(GROUP)
    made.start()
    yield made
    made.stop()
    made.actor.thread.join(20)
    made.inbox.close(0)
    made._ctx.destroy(0)


async def test_pyre_itself_enters_joins_whispers_shouts_and_leaves(node: Node, plain: LoopbackPyre) -> None:
    identity = plain.uuid()
    await until(lambda: node.of(identity) == ["ENTER", "JOIN"], "pyre has come")
    await until(lambda: b"JOIN" in plain.kinds(), "pyre sees the node in the group")
    me = uuid.UUID(bytes=plain.heard[0][1])
    plain.whisper(me, b"psst")
    plain.shout(GROUP, b"hey")
    await until(lambda: len(node.of(identity)) == 4, "both messages")
    node.node.whisper(identity, b"answer")
    await until(plain.contents, "the answer")
    plain.leave(GROUP)
    await until(lambda: len(node.of(identity)) == 5, "pyre has left the group")
    assert [(e.type, e.name, e.content) for e in node.events[2:]] == [
        ("WHISPER", "plain pyre", (b"psst",)),
        ("SHOUT", "plain pyre", (b"hey",)),
        ("LEAVE", "plain pyre", (GROUP.encode(),)),
    ]
    assert plain.contents() == [b"answer"]


async def test_a_conversation_with_pyre_is_renewed_before_its_numbers_wrap_and_nothing_is_lost_or_told(
    node: Node, plain: LoopbackPyre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zre, "RENEW_AFTER_MESSAGES", 50)
    identity = plain.uuid()
    await until(lambda: node.of(identity) == ["ENTER", "JOIN"], "pyre has come")
    await until(lambda: b"JOIN" in plain.kinds(), "pyre sees the node in the group")
    sent = [b"%d" % number for number in range(500)]
    for content in sent:
        node.node.whisper(identity, content)
    await until(lambda: len(plain.contents()) >= len(sent), f"all whispers, not {len(plain.contents())}")
    assert plain.contents() == sent
    assert plain.kinds().count(b"ENTER") >= 10, "it was renewed"
    me = uuid.UUID(bytes=plain.heard[0][1])

    def heard() -> bool:
        plain.whisper(me, b"still here")  # pyre drops it while it greets
        return "WHISPER" in node.of(identity)

    await until(heard, "pyre is heard after all that")
    assert set(node.of(identity)[2:]) == {"WHISPER"}


# --- sequence numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "numbers"), [(65536, [65533, 65534, 65535, 0, 1]), (65535, [65533, 65534, 0, 1])], ids=["RFC", "pyre"]
)
async def test_both_ways_to_wrap_sequence_numbers_lose_nothing(
    node: Node, peer: RawPeer, wrap: int, numbers: list[int]
) -> None:
    await node.meets(peer)
    peer.greet(sequence=65532)
    for number in numbers:
        peer.raw(header(WHISPER, number), b"%d" % number)
    await until(lambda: len(node.said(peer)) == len(numbers), f"all whispers; {node.counts}")
    assert node.counts["sequence_gaps"] == 0
    assert node.of(peer) == ["ENTER", "JOIN"] + ["WHISPER"] * len(numbers)


async def test_a_conversation_is_renewed_through_the_same_mailbox_and_counts_from_one(
    node: Node, peer: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zre, "RENEW_AFTER_MESSAGES", 5)
    await node.meets(peer)
    for number in range(12):
        node.node.whisper(peer.identity, b"%d" % number)
    await until(lambda: len(peer.got(WHISPER)) == 12, "all whispers")
    assert [(m.kind, m.sequence) for m in peer.received] == [
        *[(HELLO, 1), *[(WHISPER, n) for n in (2, 3, 4, 5)]],
        *[(HELLO, 1), *[(WHISPER, n) for n in (2, 3, 4, 5)]],
        *[(HELLO, 1), *[(WHISPER, n) for n in (2, 3, 4, 5)]],
    ]
    peer.greet()
    await node.serves(peer)
    assert node.of(peer) == ["ENTER", "JOIN", "WHISPER"]


async def test_a_lost_message_renews_the_conversation_and_tells_nothing(node: Node, peer: RawPeer) -> None:
    await node.meets(peer)
    peer.whisper(b"one")
    peer.sequence += 1
    peer.whisper(b"three")
    await until(lambda: len(peer.got(HELLO)) == 2, "the second greeting")
    peer.whisper(b"before it knows")
    peer.greet()
    await node.serves(peer)
    assert node.said(peer)[0] == b"one"
    assert node.of(peer) == ["ENTER", "JOIN", "WHISPER", "WHISPER"]
    assert node.counts["sequence_gaps"] == 1
    assert node.counts["messages_from_strangers"] == 1


async def test_a_peer_that_begins_anew_is_greeted_anew_and_the_application_hears_nothing(
    node: Node, peer: RawPeer
) -> None:
    await node.meets(peer)
    peer.greet()
    await until(lambda: len(peer.got(HELLO)) == 2, "the second greeting")
    await node.serves(peer)
    assert node.of(peer) == ["ENTER", "JOIN", "WHISPER"]


# --- peers that come back, lie, or fall silent -----------------------------------------------------------------------


@pytest.mark.parametrize("by", ["beacon", "hello"])
async def test_a_peer_that_restarts_with_its_uuid_on_another_port_is_met_anew(
    node: Node, peer: RawPeer, by: str
) -> None:
    endpoint = await node.meets(peer)
    again = RawPeer(node.beacon_port, "Again", peer.identity)
    try:
        if by == "beacon":
            await again.meet()
        else:
            again.connect(endpoint)
            again.greet()
        await until(lambda: node.of(peer)[2:] == ["EXIT", "ENTER", "JOIN"], "it has come back")
        assert [event.name for event in node.events] == ["Raw", "Raw", "Raw", "Again", "Again"]
        await until(lambda: again.got(HELLO), "the greeting")
        await node.serves(again)
    finally:
        again.close()


async def test_a_peer_that_stops_answering_expires_and_one_that_answers_stays(
    node: Node, peer: RawPeer, other: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zre._Peer, "PEER_EVASIVE", 0.05)
    monkeypatch.setattr(zre._Peer, "PEER_EXPIRED", 1.5)
    monkeypatch.setattr(zre, "REAP_INTERVAL_S", 0.02)
    await node.meets(peer)
    await node.meets(other)
    answered = 0

    def silent_one_gone() -> bool:
        nonlocal answered
        for _ in other.got(PING)[answered:]:
            other.say(PING_OK)
            answered += 1
        return "EXIT" in node.of(peer)

    await until(silent_one_gone, "the silent peer has expired")
    assert peer.got(PING), "it was asked before"
    assert "EXIT" not in node.of(other)
    await node.serves(other)


async def test_a_peer_that_never_greets_is_given_up(node: Node, peer: RawPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zre, "STRANGER_PATIENCE_S", 0.1)
    monkeypatch.setattr(zre, "REAP_INTERVAL_S", 0.02)
    peer.beacon()
    await until(lambda: peer.got(HELLO), "the greeting")
    await until(lambda: not node.node._thread.is_alive() or _gone(node, peer), "it was given up")
    assert node.node.alive
    assert node.events == []
    peer.beacon()
    await until(lambda: len(peer.got(HELLO)) >= 2, "it is greeted again")


def _gone(node: Node, peer: RawPeer) -> bool:
    node.node.whisper(peer.identity, b"there?")
    return node.counts["whispers_to_nobody"] > 0


async def test_messages_of_one_who_has_not_greeted_are_counted_and_not_believed(node: Node, peer: RawPeer) -> None:
    peer.beacon()
    greeting = (await until(lambda: peer.got(HELLO), "the greeting"))[0]
    peer.connect(greeting.endpoint)
    for _ in range(20):
        peer.whisper(b"I am a device")
    await node.counted("messages_from_strangers", 20)
    assert node.events == []


async def test_a_message_that_pretends_to_be_the_node_itself_starts_no_talk_with_itself(
    node: Node, peer: RawPeer, other: RawPeer
) -> None:
    endpoint = await node.meets(peer)
    own = next(iter(peer.received)).identity
    other.connect(endpoint, own)
    other.raw(hello(1, other.endpoint))  # the node's own identity
    await node.counted("messages_malformed", 1)
    other.connect(endpoint)
    other.raw(hello(1, endpoint))  # the node's own endpoint
    await node.counted("messages_malformed", 2)
    other.beacon(port=int(endpoint.rpartition(":")[2]))
    await node.counted("messages_malformed", 3)
    other.datagram(beacon(uuid.UUID(bytes=own[1:]), other.port))
    await node.serves(peer)
    assert node.counts["messages_malformed"] == 3
    assert {event.peer for event in node.events} == {peer.identity}
    assert other.got(HELLO) == []


async def test_one_who_claims_a_peers_endpoint_does_not_drive_it_out(node: Node, peer: RawPeer, other: RawPeer) -> None:
    endpoint = await node.meets(peer)
    other.beacon(port=peer.port)
    await node.counted("endpoints_claimed", 1)
    other.connect(endpoint)
    other.raw(hello(1, peer.endpoint))
    await node.counted("endpoints_claimed", 2)
    await node.serves(peer)
    assert "EXIT" not in node.of(peer)
    assert len(peer.got(HELLO)) == 1


async def test_a_false_goodbye_is_healed_by_the_next_beacon(node: Node, peer: RawPeer) -> None:
    await node.meets(peer)
    peer.beacon(port=0)
    await until(lambda: "EXIT" in node.of(peer), "the goodbye")
    await node.meets(peer)
    await until(lambda: node.of(peer) == ["ENTER", "JOIN", "EXIT", "ENTER", "JOIN"], "it is back")
    await node.serves(peer)


# --- the beacon ----------------------------------------------------------------------------------------------------


async def test_errors_of_the_network_do_not_end_the_beacon(
    node: Node, peer: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zre_beacon, "BEACON_INTERVAL_S", 0.01)
    broken = [errno.ENETUNREACH, errno.ENETDOWN, errno.EPERM, errno.ENOBUFS, errno.EINVAL, errno.EADDRNOTAVAIL]
    real_sendto = socket.socket.sendto

    def sendto(self: socket.socket, data: bytes, *rest: Any) -> int:
        if threading.current_thread().name == "zre beacon" and broken:
            raise OSError(broken.pop(), "made up")
        return real_sendto(self, data, *rest)

    monkeypatch.setattr(socket.socket, "sendto", sendto)
    await node.counted("beacon_send_errors", 6)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((BROADCAST, node.beacon_port))
        listener.settimeout(20)
        frame = listener.recv(100)
    assert len(frame) == 22
    assert frame.startswith(b"ZRE\x01")
    await node.meets(peer)


async def test_errors_of_receiving_do_not_end_the_beacon(
    node: Node, peer: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 5
    real_recvfrom = socket.socket.recvfrom

    def recvfrom(self: socket.socket, *rest: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            real_recvfrom(self, *rest)
            raise OSError(errno.ECONNREFUSED, "made up")
        return real_recvfrom(self, *rest)

    monkeypatch.setattr(socket.socket, "recvfrom", recvfrom)
    for _ in range(5):
        peer.beacon()
    await node.counted("beacon_receive_errors", 5)
    await node.meets(peer)


async def test_a_beacon_port_that_another_program_keeps_to_itself_is_said() -> None:
    port = free_udp_port()
    files = open_files()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as greedy:
        greedy.bind((BROADCAST, port))
        with pytest.raises(DeviceUnavailable, match=rf"no discovery on 127.0.0.1, UDP port {port}: .*in use"):
            Node(port)
    await until(lambda: open_files() <= files, "no file is left open")


async def test_an_address_that_this_host_does_not_have_is_said() -> None:
    with pytest.raises(DeviceUnavailable, match=r"no discovery on 203\.0\.113\.1"):
        ZreNode(
            asyncio.get_running_loop(),
            lambda event: None,
            name="bridge",
            group=GROUP,
            interface=Interface("203.0.113.1", BROADCAST),
            port=free_udp_port(),
        )


# --- floods of nonsense ----------------------------------------------------------------------------------------------


async def test_one_zre_datagram_of_a_wrong_length_is_counted(node: Node, peer: RawPeer) -> None:
    await node.meets(peer)
    wrong = [b"ZRE", b"ZRE\x01", beacon(peer.identity, 1)[:-1], beacon(peer.identity, 1) + b"\0", b"ZRE" + bytes(1000)]
    wrong += [b"", b"ZRE\x02" + bytes(18), b"ZYX\x01" + bytes(18), bytes(22)]
    for datagram in wrong:
        peer.datagram(datagram)
    await node.counted("beacons_malformed", len(wrong))
    await node.serves(peer)
    assert node.counts["beacons_malformed"] == len(wrong)
    assert "EXIT" not in node.of(peer)


async def test_ten_thousand_random_datagrams_are_counted_and_a_good_peer_is_served(node: Node, peer: RawPeer) -> None:
    await node.meets(peer)
    dice = random.Random(1)
    sent = 0
    for _ in range(100):
        for _ in range(100):
            size = dice.choice([0, 1, 3, 4, 20, 21, 22, 22, 22, 23, 100, 255, 256, 1400])
            peer.datagram(dice.randbytes(size))
            sent += 1
        # The kernel keeps some hundred datagrams; what it drops cannot be counted.
        await node.counted("beacons_malformed", sent)
    await node.serves(peer)
    assert node.counts["beacons_malformed"] == sent == 10_000
    assert node.of(peer) == ["ENTER", "JOIN", "WHISPER"]


async def test_beacons_of_thousands_of_made_up_peers_leave_room_for_good_ones(
    node: Node, peer: RawPeer, other: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zre, "STRANGER_CHANCE_S", 0.05)
    await node.meets(peer)
    dice = random.Random(2)
    before = most = open_files()
    for batch in range(100):
        for _ in range(50):
            peer.datagram(beacon(uuid.UUID(bytes=dice.randbytes(16)), dice.randrange(1, 65536)))
        if batch % 20 == 10:
            await node.serves(peer)
        elif batch == 55:  # a good one comes in the middle of it: its own HELLO always finds a place
            other.connect(peer.received[0].endpoint)
            other.greet()
            await until(lambda: "ENTER" in node.of(other), "the newcomer is let in")
        await asyncio.sleep(0)
        most = max(most, open_files())
    await node.counted("peers_turned_away", 100)
    assert node.node.alive
    await until(lambda: other.got(HELLO), "the newcomer was greeted")
    await node.serves(peer)
    await node.serves(other)
    # Each mailbox has an eventfd and a connection; closed ones take a moment.
    assert most - before < 4 * zre.MAX_STRANGERS
    assert node.of(peer).count("EXIT") == 0
    assert {event.peer for event in node.events} == {peer.identity, other.identity}


async def test_hundreds_of_peers_that_greet_and_say_nothing_are_bounded_and_a_good_one_still_gets_in(
    node: Node, peer: RawPeer, other: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zre, "MAX_PEERS", 40)
    endpoint = await node.meets(peer)
    node.node.keep(peer.identity)
    node.node.keep(uuid.uuid4())
    await node.serves(peer)
    files = open_files()
    context: zmq.Context[Any] = zmq.Context()
    try:
        for number in range(200):
            liar = context.socket(zmq.DEALER)
            liar.setsockopt(zmq.IDENTITY, b"\x01" + uuid.uuid4().bytes)
            liar.connect(endpoint)
            liar.send(hello(1, f"tcp://127.0.0.1:{1000 + number}", name=f"liar {number}"))
            liar.send_multipart([header(WHISPER, 2), b"I am a device"])
            await until(lambda n=number: any(e.name == f"liar {n}" for e in node.events), "the liar was let in")
            liar.close(0)
        await until(lambda: open_files() - files < 4 * 40, "no more files than peers that are allowed")
        told = Counter(event.type for event in node.events)
        assert told["ENTER"] - told["EXIT"] <= 40
        other.connect(endpoint)
        other.greet()
        await until(lambda: "ENTER" in node.of(other), "the good one is let in")
        await node.serves(other)
        await node.serves(peer)
        assert "EXIT" not in node.of(peer)
    finally:
        context.destroy(0)


GOOD_ENDPOINT = "tcp://127.0.0.1:9"


def malformed_messages() -> list[tuple[bytes, ...]]:
    """Messages that no peer may send; each is counted as one that is malformed, whoever sends it."""
    good = hello(1, GOOD_ENDPOINT)
    truncated = [(good[:length],) for length in range(len(good))]
    bad_lengths = [
        (header(HELLO, 1, text(GOOD_ENDPOINT) + struct.pack(">I", 0xFFFFFFFF)),),
        (header(HELLO, 1, text(GOOD_ENDPOINT) + struct.pack(">II", 1, 0xFFFFFFFF) + b"x"),),
        (header(HELLO, 1, text(GOOD_ENDPOINT) + struct.pack(">IB", 0, 1) + text("n") + struct.pack(">I", 0xFFFFFFF)),),
        (header(HELLO, 1, b"\xff" + b"tcp://"),),
        (header(SHOUT, 2, b"\xffgroup"), b"content"),
        (header(JOIN, 2, text("g")),),
        (header(LEAVE, 2, b"\x05abc"),),
    ]
    bad_text = [
        (header(HELLO, 1, text(b"\xff\xfe") + struct.pack(">I", 0) + b"\x01" + text("n") + bytes(4)),),
        (header(HELLO, 1, text(GOOD_ENDPOINT) + struct.pack(">I", 1) + text(b"\xc3", 4) + b"\x01\x00" + bytes(4)),),
        (header(HELLO, 1, text(GOOD_ENDPOINT) + struct.pack(">I", 0) + b"\x01" + text(b"\x80") + bytes(4)),),
        (header(SHOUT, 2, text(b"\xf0\x9f")), b"content"),
    ]
    bad_endpoints = [
        (hello(1, endpoint),)
        for endpoint in (
            "",
            "garbage",
            "tcp://",
            "tcp://*:5000",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:",
            "tcp://127.0.0.1:x",
            "tcp://127.0.0.1:5000;127.0.0.1:6000",
            "tcp://host.invalid:5000",
            "tcp://[::1]:5000",
            "tcp://999.1.1.1:5000",
            "tcp://1.2.3.400:5000",
            "tcp://1.2.3:5000",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:65536",
            "tcp://١٢٧.0.0.1:5000",
            "ipc:///tmp/x",
            "inproc://zactor-0000-0000",
            "udp://127.0.0.1:5000",
            "pgm://127.0.0.1:5000",
            "ws://127.0.0.1:5000",
            "tcp://127.0.0.1:5000\n",
            "\0",
        )
    ]
    others = [
        (b"",),
        (b"", b""),
        (b"\xaa\xa0" + good[2:],),
        (good[:2] + b"\x00" + good[3:],),
        (good[:2] + b"\x08" + good[3:],),
        (good[:2] + b"\xff" + good[3:],),
        (good[:3] + b"\x01" + good[4:],),
        (good[:3] + b"\x03" + good[4:],),
        (header(WHISPER, 2)[:3] + b"\x01\x00\x02", b"a whisper of another version"),
        (b"GET / HTTP/1.1\r\n",),
        (b'{"subject":"attach"}',),
    ]
    return [*truncated, *bad_lengths, *bad_text, *bad_endpoints, *others]


async def test_malformed_messages_are_each_counted_and_a_good_peer_is_served(
    node: Node, peer: RawPeer, other: RawPeer
) -> None:
    endpoint = await node.meets(peer)
    other.connect(endpoint)
    messages = malformed_messages()
    for frames in messages:
        other.raw(*frames)
    await node.counted("messages_malformed", len(messages))
    await node.serves(peer)
    assert node.counts["messages_malformed"] == len(messages)
    assert {event.peer for event in node.events} == {peer.identity}


async def test_malformed_messages_from_the_identity_of_a_peer_do_not_end_its_conversation(
    node: Node, peer: RawPeer
) -> None:
    await node.meets(peer)
    messages = malformed_messages()
    for frames in messages:
        peer.raw(*frames)
    await node.counted("messages_malformed", len(messages))
    await node.serves(peer)
    assert node.of(peer) == ["ENTER", "JOIN", "WHISPER"]


@pytest.mark.parametrize("identity", [b"x", b"\x01", b"\x01" + bytes(15), b"\x02" + bytes(16), bytes(17)[1:] + b"\x01"])
async def test_senders_that_are_no_uuid_are_counted(node: Node, peer: RawPeer, other: RawPeer, identity: bytes) -> None:
    endpoint = await node.meets(peer)
    if identity[0] == 0:  # libzmq itself refuses to have such an identity, and gives another
        identity = b"\xff" * 255
    other.connect(endpoint, identity)
    other.raw(hello(1, other.endpoint))
    other.raw(header(WHISPER, 2), b"content")
    await node.counted("messages_malformed", 2)
    await node.serves(peer)
    assert {event.peer for event in node.events} == {peer.identity}


async def test_having_no_file_descriptors_left_is_survived(
    node: Node, peer: RawPeer, other: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.meets(peer)
    real_connect = zre._Peer.connect

    def connect(self: Any, *_: Any) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(zre._Peer, "connect", connect)
    other.beacon()
    await node.counted("peers_unreachable", 1)
    await node.serves(peer)
    monkeypatch.setattr(zre._Peer, "connect", real_connect)
    await node.meets(other)
    await node.serves(other)


async def test_ten_thousand_random_messages_are_counted_and_a_good_peer_is_served(
    node: Node, peer: RawPeer, other: RawPeer
) -> None:
    endpoint = await node.meets(peer)
    other.connect(endpoint)
    dice = random.Random(3)
    for _ in range(10_000):
        head = header(dice.randrange(256), dice.randrange(65536)) if dice.random() < 0.5 else b""
        frames = [head + dice.randbytes(dice.randrange(40)), *[dice.randbytes(3) for _ in range(dice.randrange(3))]]
        other.raw(*frames)
    await until(
        lambda: node.counts["messages_malformed"] + node.counts["messages_from_strangers"] >= 10_000,
        f"all counted, not only {node.counts}",
    )
    await node.serves(peer)
    assert {event.peer for event in node.events} == {peer.identity}


async def test_a_greeting_with_thousands_of_groups_floods_nobody(node: Node, peer: RawPeer, other: RawPeer) -> None:
    endpoint = await node.meets(peer)
    other.connect(endpoint)
    other.raw(hello(1, other.endpoint, [*[f"g{n}" for n in range(5000)], GROUP, GROUP]))
    await until(lambda: "ENTER" in node.of(other), "the peer has entered")
    other.sequence = 1
    await node.serves(other)
    assert node.of(other) == ["ENTER", "JOIN", "WHISPER"]


async def test_long_texts_do_not_fill_the_memory(node: Node, peer: RawPeer, other: RawPeer) -> None:
    endpoint = await node.meets(peer)
    other.connect(endpoint)
    process = psutil.Process()
    before = process.memory_info().rss
    for number in range(300):
        group = "x" * (60_000 + number)  # pyre's reader keeps 2 MB for each length
        other.raw(hello(1, other.endpoint, [group]))
    other.sequence = 1
    await node.serves(other)
    assert process.memory_info().rss - before < 30_000_000
    # More than a message may have: libzmq ends the connection, and it opens a new one by itself.
    other.raw(hello(1, other.endpoint, ["y" * zre.MAX_MESSAGE_BYTES]))
    await node.serves(peer)


async def test_a_peer_that_says_much_and_reads_nothing_ends_nothing(node: Node, peer: RawPeer, other: RawPeer) -> None:
    endpoint = await node.meets(peer)
    with socket.socket() as deaf:  # takes connections and never reads
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        other.connect(endpoint)
        other.raw(hello(1, f"tcp://127.0.0.1:{deaf.getsockname()[1]}"))
        other.sequence = 1
        for _ in range(10_000):
            other.say(PING)
        await until(lambda: "ENTER" in node.of(other), "it has entered")
        await node.serves(peer)
        # Its mailbox is full: it is no peer any more, until its next beacon.
        await node.counted("messages_from_strangers", 1)
    await node.serves(peer)


# --- the end -------------------------------------------------------------------------------------------------------


def _quick_stop(node: Node, limit_s: float = 1.0) -> None:
    started = time.monotonic()
    node.node.stop()
    assert time.monotonic() - started < limit_s
    assert not node.node.alive
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("zre")]


async def test_stopping_is_quick_at_once_after_the_start_and_can_be_done_twice() -> None:
    node = Node(free_udp_port())
    _quick_stop(node)
    node.node.stop()


async def test_stopping_says_goodbye() -> None:
    port = free_udp_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((BROADCAST, port))
        listener.settimeout(20)
        node = Node(port)
        first = listener.recv(100)
        _quick_stop(node)
        last = listener.recv(100)
    assert first[:20] == last[:20]
    assert first[20:] != bytes(2)
    assert last[20:] == bytes(2)


async def test_stopping_is_quick_with_peers_and_with_strangers(node: Node, peer: RawPeer, other: RawPeer) -> None:
    await node.meets(peer)
    other.beacon()
    await until(lambda: other.got(HELLO), "the stranger was greeted")
    _quick_stop(node)


async def test_stopping_is_quick_when_the_node_has_more_to_tell_than_the_application_took(
    node: Node, peer: RawPeer
) -> None:
    await node.meets(peer)
    for _ in range(20_000):
        peer.whisper(b"attach")
    # The loop does not run from here on: the node's way to the application is full, and it waits.
    deadline = time.monotonic() + 5
    while node.node._reader.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN == 0:
        assert time.monotonic() < deadline
    _quick_stop(node)


async def test_stopping_is_quick_in_a_flood_of_beacons(node: Node, peer: RawPeer) -> None:
    await node.meets(peer)
    stop = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            while not stop.is_set():
                udp.sendto(beacon(uuid.uuid4(), random.randrange(1, 65536)), (BROADCAST, node.beacon_port))

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        await node.counted("peers_turned_away", 200)
        _quick_stop(node)
    finally:
        stop.set()
        flooder.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["_serve", "_receive", "_hear", "_look_after", "_whisper"])
async def test_stopping_is_quick_when_the_nodes_thread_has_died_of_a_bug(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("made up")

    monkeypatch.setattr(zre._Node, where, bug)
    monkeypatch.setattr(zre, "REAP_INTERVAL_S", 0.02)
    node = Node(free_udp_port())
    peer = RawPeer(node.beacon_port)
    try:
        if where == "_whisper":
            node.node.whisper(peer.identity, b"")
        elif where != "_serve":
            peer.beacon()
            if where != "_hear":
                peer.connect((await until(lambda: peer.got(HELLO), "the greeting"))[0].endpoint)
                peer.greet()
        await until(lambda: not node.node.alive, "the node has died")
        node.node.whisper(peer.identity, b"nobody takes this")
        _quick_stop(node)
    finally:
        peer.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_node_whose_beacon_has_died_of_a_bug_ends_so_that_it_is_started_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("made up")

    monkeypatch.setattr(zre_beacon.Beacon, "_hear", bug)
    monkeypatch.setattr(zre, "REAP_INTERVAL_S", 0.02)
    node = Node(free_udp_port())
    peer = RawPeer(node.beacon_port)
    try:
        peer.beacon()
        await until(lambda: not node.node.alive, "the node has ended")
        _quick_stop(node)
    finally:
        peer.close()
    assert "the thread of the ZRE beacon has ended" in caplog.text


async def test_twenty_lives_leave_no_file_and_no_thread() -> None:
    port = free_udp_port()
    peer = RawPeer(port)
    try:
        first = Node(port)
        await first.meets(peer)
        first.node.stop()
        threads, files = threading.active_count(), open_files()
        for _ in range(20):
            node = Node(port)
            await node.meets(peer)
            await node.serves(peer)
            _quick_stop(node)
        assert threading.active_count() == threads
        await until(lambda: open_files() <= files, f"{open_files()} files are open, {files} were")
    finally:
        peer.close()


# --- the reader of messages, without sockets -------------------------------------------------------------------------


def test_every_message_is_read_or_refused_and_nothing_else() -> None:
    dice = random.Random(4)
    sender = b"\x01" + uuid.uuid4().bytes
    good = [hello(1, GOOD_ENDPOINT, ["a", "ü"]), header(SHOUT, 2, text("g")), header(JOIN, 3, text("g") + b"\x01")]
    refused = 0
    for _ in range(20_000):
        raw = bytearray(dice.choice(good))
        for _ in range(dice.randrange(4)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        del raw[dice.randrange(len(raw) + 1) if dice.random() < 0.2 else len(raw) :]
        try:
            message = zre_message.parse([sender, bytes(raw)])
        except MalformedMessage:
            refused += 1
        else:
            assert message.sender.bytes == sender[1:]
    assert 1000 < refused < 19_000


def test_a_greeting_is_read_whole() -> None:
    sender = uuid.uuid4()
    message = zre_message.parse([b"\x01" + sender.bytes, hello(7, GOOD_ENDPOINT, ["a", "ü"], "Näme")])
    assert message == zre_message.Message(
        sender, zre_message.Kind.HELLO, 7, endpoint=GOOD_ENDPOINT, groups=("a", "ü"), name="Näme"
    )
