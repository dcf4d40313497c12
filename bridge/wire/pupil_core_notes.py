"""Notifications and log lines on Pupil Core's IPC backbone: of those that say what recordings, calibrations and
annotations have come to, what the bridge reads. No I/O.

Source: recorder.py, gazer_base.py, base_plugin.py and annotations.py of Pupil Capture 3.6. Only exact topics are
subscribed to: ``notify.calibration.setup.v2`` has 1.7 MB.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bridge.errors import MalformedMessage
from bridge.wire.pupil_core import UNREADABLE, UnknownTopic

NOTE_MAX_BYTES = 64 * 1024
TEXT_MAX_LETTERS = 300  # of what others say, in a sentence for a person

RECORDING_STARTED = "recording.started"
RECORDING_STOPPED = "recording.stopped"
CALIBRATION_STARTED = "calibration.started"
CALIBRATION_STOPPED = "calibration.stopped"
CALIBRATION_SUCCESSFUL = "calibration.successful"
CALIBRATION_FAILED = "calibration.failed"
LOGGED = "logging.info"

_SUBJECTS = {
    f"notify.{subject}".encode(): subject
    for subject in (
        RECORDING_STARTED,
        RECORDING_STOPPED,
        CALIBRATION_STARTED,
        CALIBRATION_STOPPED,
        CALIBRATION_SUCCESSFUL,
        CALIBRATION_FAILED,
    )
} | {LOGGED.encode(): LOGGED}
TOPICS = tuple(_SUBJECTS)


class Note(msgspec.Struct, frozen=True, gc=False):
    """``text``: the folder of a recording, the reason of a failure, the line of a log; "" where there is none."""

    subject: str
    text: str


class _Fields(msgspec.Struct, gc=False):
    rec_path: object = ""
    reason: object = ""  # the first argument of whatever exception it was
    msg: object = ""


_decode_fields = msgspec.msgpack.Decoder(_Fields).decode


def decode_note(frames: Sequence[bytes]) -> Note:
    """Reads a message of one of `TOPICS`. Raises `UnknownTopic` for any other one."""
    if not frames or (subject := _SUBJECTS.get(frames[0])) is None:
        raise UnknownTopic(f"Pupil Core topic is none of those: {frames[0][:64] if frames else b''!r}")
    if len(frames) < 2 or len(frames[1]) > NOTE_MAX_BYTES:
        raise MalformedMessage(f"Pupil Core message {subject} has no payload, or too much of it")
    try:
        fields: _Fields = _decode_fields(frames[1])
    except UNREADABLE as error:
        raise MalformedMessage(f"Pupil Core message {subject} cannot be read: {error}") from error
    if subject == LOGGED:
        return Note(subject, fields.msg if isinstance(fields.msg, str) else "")
    return Note(subject, printable(str(fields.rec_path or fields.reason)))


def is_taken(note: Note, label: str) -> bool:
    """Whether this is what Annotation_Capture logs when it takes an annotation of that label."""
    return note.subject == LOGGED and note.text.startswith(f"{label} annotation")


def printable(text: str) -> str:
    """What fits into a line for a person, of a text that may be anything."""
    return "".join(letter for letter in text[:TEXT_MAX_LETTERS] if letter.isprintable())
