"""A ZRE peer of raw sockets for tests: one UDP socket, one ROUTER, one DEALER, struct. It does nothing by itself.

Source: ZRE 2 (rfc.zeromq.org/spec/36). Shares no code with the bridge or pyre.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import zmq

HELLO, WHISPER, SHOUT, JOIN, LEAVE, PING, PING_OK = range(1, 8)
BROADCAST = "127.255.255.255"
GROUP = "pupil-mobile-v4"
DEADLINE_S = 10.0


async def until(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """The first true value of ``condition()``, which is asked again and again while the loop runs."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.002)
    return value


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((BROADCAST, 0))
        return int(probe.getsockname()[1])


def free_tcp_port() -> int:
    """A port of 127.0.0.1 at which nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def beacon(identity: uuid.UUID, port: int) -> bytes:
    return struct.pack(">3sB16sH", b"ZRE", 1, identity.bytes, port)


def text(value: str | bytes, size: int = 1) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(size) + raw


def header(kind: int, sequence: int, body: bytes = b"") -> bytes:
    return struct.pack(">HBBH", 0xAAA1, kind, 2, sequence % 65536) + body


def hello(sequence: int, endpoint: str, groups: Iterable[str] = (GROUP,), name: str = "Raw") -> bytes:
    listed = list(groups)
    body = text(endpoint) + struct.pack(">I", len(listed)) + b"".join(text(group, 4) for group in listed)
    return header(HELLO, sequence, body + b"\x01" + text(name) + struct.pack(">I", 1) + text("k") + text("v", 4))


@dataclass(frozen=True)
class Received:
    """What the node sent: by which DEALER identity, which kind, and the frames behind the header."""

    identity: bytes
    kind: int
    sequence: int
    body: bytes
    content: list[bytes]

    @property
    def endpoint(self) -> str:
        return self.body[1 : 1 + self.body[0]].decode()


class RawPeer:
    """Speaks as ``identity``. ``received`` grows with each `pump`."""

    def __init__(self, beacon_port: int, name: str = "Raw", identity: uuid.UUID | None = None) -> None:
        self.identity = identity or uuid.uuid4()
        self.name = name
        self.received: list[Received] = []
        self.sequence = 0
        self._answered = 0
        self._beacon_port = beacon_port
        self._context: zmq.Context[Any] = zmq.Context()
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._mailbox = self._context.socket(zmq.ROUTER)
        self._mailbox.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.port = self._mailbox.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self._out: zmq.Socket[bytes] | None = None

    def close(self) -> None:
        self.udp.close()
        self._context.destroy(0)

    def datagram(self, data: bytes, address: str = BROADCAST) -> None:
        self.udp.sendto(data, (address, self._beacon_port))

    def beacon(self, port: int | None = None) -> None:
        self.datagram(beacon(self.identity, self.port if port is None else port))

    def pump(self) -> list[Received]:
        """Takes in what has arrived; all that ever did."""
        while True:
            try:
                identity, head, *content = self._mailbox.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return self.received
            _, kind, version, sequence = struct.unpack(">HBBH", head[:6])
            assert version == 2
            self.received.append(Received(identity, kind, sequence, head[6:], content))

    def got(self, kind: int) -> list[Received]:
        return [message for message in self.pump() if message.kind == kind]

    def connect(self, endpoint: str, identity: bytes | None = None) -> None:
        """Opens the way to the node's mailbox, as another identity if one is given."""
        if self._out is not None:
            self._out.close(1000)
        self._out = self._context.socket(zmq.DEALER)
        self._out.setsockopt(zmq.IDENTITY, b"\x01" + self.identity.bytes if identity is None else identity)
        self._out.setsockopt(zmq.SNDHWM, 100_000)
        self._out.setsockopt(zmq.SNDTIMEO, 5000)
        self._out.connect(endpoint)

    def raw(self, *frames: bytes) -> None:
        assert self._out is not None
        self._out.send_multipart(frames)

    def say(self, kind: int, body: bytes = b"", *content: bytes) -> None:
        self.sequence += 1
        self.raw(header(kind, self.sequence, body), *content)

    def greet(self, sequence: int = 1, groups: Iterable[str] = (GROUP,)) -> None:
        self.sequence = sequence
        self.raw(hello(sequence, self.endpoint, groups, self.name))

    def whisper(self, content: bytes) -> None:
        self.say(WHISPER, b"", content)

    def shout(self, content: bytes) -> None:
        self.say(SHOUT, text(GROUP), content)

    async def meet(self) -> str:
        """Is found by its beacon and answers the HELLO; the node's endpoint."""
        next_s = 0.0

        def greeted() -> bool:
            nonlocal next_s
            if time.monotonic() >= next_s:
                self.beacon()
                next_s = time.monotonic() + 0.25
            return len(self.got(HELLO)) > self._answered

        await until(greeted, "the node's HELLO")
        greeting = self.got(HELLO)[-1]
        self._answered = len(self.got(HELLO))
        self.connect(greeting.endpoint)
        self.greet()
        return str(greeting.endpoint)
