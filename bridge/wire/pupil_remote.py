"""Pupil Remote, Pupil Core's REP socket: what is asked of it, answered by it and forwarded through it. No I/O.

Source: Pupil Labs' documentation of the Network API, and Pupil Capture 3.6's pupil_remote_controller.py. A request of
several frames is put on the backbone as it is; so are notifications and annotations sent.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Final

import msgspec

from bridge.errors import MalformedMessage, Refused
from bridge.wire.pupil_core import TIME_LIMIT_NS

REPLY_MAX_BYTES = 64
SESSION_MAX_LETTERS = 100
LABEL_MAX_LETTERS = 1000
FORWARDED: Final = b"Message forwarded."
DONE: Final = b"OK"
ANNOTATION_PLUGIN: Final = "Annotation_Capture"
FRAME_PLUGIN: Final = "Frame_Publisher"  # of Pupil before 2.1; after that frames need nothing
# Those that Pupil Capture 3.6 knows. Any other one ends it.
FRAME_FORMATS: Final = frozenset({"jpeg", "yuv", "bgr", "gray"})

Request = tuple[bytes, ...]

_TIME = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3})?")
_PORT = re.compile(rb"[0-9]{1,5}")


def parse_time(reply: bytes) -> int:
    """Pupil time in ns from the reply to ``t``: the decimal number in it, rounded to even. Below 2**62 ns."""
    if len(reply) > REPLY_MAX_BYTES or _TIME.fullmatch(reply) is None:
        raise MalformedMessage(f"Pupil Remote's time is not a number: {reply[:REPLY_MAX_BYTES]!r}")
    time_ns = round(Fraction(reply.decode()) * 1_000_000_000)
    if abs(time_ns) >= TIME_LIMIT_NS:
        raise MalformedMessage(f"Pupil Remote's time is out of range: {reply!r}")
    return time_ns


def parse_port(reply: bytes) -> int:
    """A TCP port from the reply to ``SUB_PORT`` or ``PUB_PORT``."""
    if _PORT.fullmatch(reply) is None or not 0 < int(reply) <= 65535:
        raise MalformedMessage(f"Pupil Remote's port is not a port: {reply[:REPLY_MAX_BYTES]!r}")
    return int(reply)


def has_frame_plugin(version: str) -> bool:
    """Whether frames need a plugin, by the reply to ``v``. Where there is none, asking for it is an error there."""
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", version)
    return match is not None and (int(match[1]), int(match[2])) < (2, 1)


def start_recording(session: str | None) -> Request:
    """Raises Refused for a session name that Capture would make folders of elsewhere, or none at all."""
    if session is None:
        return (b"R",)
    if (
        not 0 < len(session) <= SESSION_MAX_LETTERS
        or not session.isprintable()
        or session.strip(" .") != session
        or any(letter in session for letter in '/\\:*?"<>|')
    ):
        raise Refused(
            f"{session[:SESSION_MAX_LETTERS]!r} is no session name: Capture names a folder after it. It has 1 to "
            f'{SESSION_MAX_LETTERS} letters, without / \\ : * ? " < > |, and no space or full stop at either end'
        )
    try:
        return (f"R {session}".encode(),)
    except UnicodeEncodeError as error:
        raise Refused("the session name is no text") from error


def notification(subject: str, **fields: Any) -> Request:
    """What Capture takes as a notification when it is forwarded."""
    topic = f"notify.{subject}"
    return topic.encode(), msgspec.msgpack.encode({"topic": topic, "subject": subject, **fields})


def start_plugin(name: str) -> Request:
    """Capture loads a plugin, and puts one of that name that runs already in place of itself. Where there is none, it
    writes an error into its log and goes on."""
    return notification("start_plugin", name=name, args={})


def set_frame_format(name: str) -> Request:
    """The format of all frames from now on."""
    assert name in FRAME_FORMATS, "any other format ends Pupil Capture"
    return notification("frame_publishing.set_format", format=name)


def annotation(label: str, device_ns: int) -> Request:
    """An annotation at a Pupil time, as Capture's own create_annotation makes it. Raises Refused for a label that is
    empty or too long."""
    if not 0 < len(label) <= LABEL_MAX_LETTERS:
        raise Refused(f"a text for an annotation has 1 to {LABEL_MAX_LETTERS} letters, not {len(label)}")
    datum = {"topic": "annotation", "label": label, "timestamp": device_ns / 1e9, "duration": 0.0}
    try:
        return b"annotation", msgspec.msgpack.encode(datum)
    except UnicodeEncodeError as error:
        raise Refused("the annotation is no text") from error
