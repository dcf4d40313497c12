"""ZRE messages as strangers may send them: bytes to a typed value, no I/O.

Source: ZRE 2 (rfc.zeromq.org/spec/36). pyre's own reader makes a format string as long as each text and Python keeps a
hundred of them: fifty HELLOs of 1 MB cost 1.7 GB here. It also takes messages of other versions half read.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from enum import IntEnum

import msgspec

from bridge.errors import MalformedMessage

SIGNATURE = 0xAAA1
VERSION = 2


class Kind(IntEnum):
    """What a message is, as numbered on the wire."""

    HELLO = 1
    WHISPER = 2
    SHOUT = 3
    JOIN = 4
    LEAVE = 5
    PING = 6
    PING_OK = 7


class Message(msgspec.Struct, frozen=True):
    """One message of a peer. Fields that its kind does not have are empty."""

    sender: uuid.UUID
    kind: Kind
    sequence: int
    content: tuple[bytes, ...] = ()
    endpoint: str = ""
    groups: tuple[str, ...] = ()
    group: str = ""
    name: str = ""


def parse(frames: Sequence[bytes]) -> Message:
    """Read what a ROUTER received: identity, header, content. Bytes left over in the header are ignored.

    Raises MalformedMessage and nothing else.
    """
    if len(frames) < 2:
        raise MalformedMessage(f"ZRE message has {len(frames)} frames, at least 2 are needed")
    identity, header, *content = frames
    if len(identity) != 17 or identity[0] != 1:
        raise MalformedMessage(f"ZRE sender is not 0x01 and a UUID: {identity[:32]!r}")
    sender = uuid.UUID(bytes=identity[1:])
    reader = _Reader(header)
    if reader.number(2) != SIGNATURE:
        raise MalformedMessage("ZRE message without ZRE's signature")
    number, version = reader.number(1), reader.number(1)
    if version != VERSION or not Kind.HELLO <= number <= Kind.PING_OK:
        raise MalformedMessage(f"ZRE message of version {version} and kind {number}")
    kind, sequence = Kind(number), reader.number(2)
    match kind:
        case Kind.HELLO:
            endpoint = reader.text(1)
            groups = tuple([reader.text(4) for _ in range(reader.number(4))])
            reader.number(1)  # status: counts the peer's changes of groups, which are heard of anyway
            name = reader.text(1)
            for _ in range(reader.number(4)):
                reader.text(1)
                reader.text(4)
            return Message(sender, kind, sequence, endpoint=endpoint, groups=groups, name=name)
        case Kind.WHISPER:
            return Message(sender, kind, sequence, tuple(content))
        case Kind.SHOUT:
            return Message(sender, kind, sequence, tuple(content), group=reader.text(1))
        case Kind.JOIN | Kind.LEAVE:
            group = reader.text(1)
            reader.number(1)
            return Message(sender, kind, sequence, group=group)
        case Kind.PING | Kind.PING_OK:
            return Message(sender, kind, sequence)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise MalformedMessage(f"ZRE message ends after {len(self._data)} bytes, {end} are needed")
        start, self._at = self._at, end
        return self._data[start:end]

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size))

    def text(self, length_size: int) -> str:
        """A text behind its length, which has ``length_size`` bytes."""
        raw = self._take(self.number(length_size))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise MalformedMessage(f"ZRE text is not UTF-8: {error}") from error
