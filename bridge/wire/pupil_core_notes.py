"""Notifications, annotations and log lines on Pupil Core's IPC backbone. No I/O.

Source: of Pupil Capture 3.6 recorder.py, gazer_base.py, base_plugin.py, annotations.py, pupil_groups.py, zmq_tools.py,
and, for what sets its clock, pupil_remote_controller.py, time_sync.py and network_time_sync.py, and plugin.py of the
LSL plugin. ``decode_note`` reads the few that say what the bridge's own commands have come to, the others any of
theirs. They are whatever somebody put on the backbone, and one of Capture's own, ``calibration.setup.v2``, has 1.7 MB:
what is larger than 64 kB is not decoded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from math import isfinite
from typing import Any

import msgspec

from bridge.errors import MalformedMessage
from bridge.wire.pupil_core import UnknownTopic, read_payload, seconds_to_ns

NOTE_MAX_BYTES = 64 * 1024
LABEL_MAX_LETTERS = 1000
SUBJECT_MAX_LETTERS = 200
LOG_MAX_LETTERS = 1000
# Of a field as JSON: what is beyond is left out, and said to be.
FIELD_MAX_LETTERS = 1000
FIELD_MAX_ITEMS = 100
FIELD_MAX_DEPTH = 6
JSON_MAX_BYTES = 32 * 1024
TEXT_MAX_LETTERS = 300  # of what others say, in a sentence for a person

RECORDING_STARTED = "recording.started"
RECORDING_STOPPED = "recording.stopped"
CALIBRATION_STARTED = "calibration.started"
CALIBRATION_STOPPED = "calibration.stopped"
CALIBRATION_SUCCESSFUL = "calibration.successful"
CALIBRATION_FAILED = "calibration.failed"
LOGGED = "logging.info"

ANNOTATION = "annotation"  # Capture takes every topic that begins with it
NOTIFY_START = b"notify."
LOG_START = b"logging."

# Capture or Service is about to end, or has crashed.
ENDED = (b"notify.world_process.stopped", b"notify.service_process.stopped")

# How the lines of Capture's log begin that say that Pupil time is another one now.
CLOCK_SET = (
    "Request: 'T",  # Pupil Remote, debug
    "Pupil Sync has adjusted the clock by",  # Pupil Time Sync: a jump, info
    "Time adjusted by",  # the same, debug
    "Time slewed by",  # Pupil Time Sync: up to 0.5 ms ten times a second, debug
    "Synchronized time epoch to LSL clock",  # Pupil Labs' LSL plugin as it starts, info
)
CLOCK_NOT_SET = "cannot be converted to float"  # Pupil Remote's answer to a time that is none

_PLACEHOLDER = re.compile(r"%(?:\((\w{1,50})\))?[-+ #0]{0,5}(?:\d{0,4}|\*)(?:\.\d{0,4})?([sdiufFeEgGrxXoc%])")

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


class Annotation(msgspec.Struct, frozen=True, gc=False):
    """``label`` is printable, of up to 1000 letters. ``json``: all fields as sent, one line."""

    label: str
    timestamp_ns: int
    duration_s: float
    json: str


class Notification(msgspec.Struct, frozen=True, gc=False):
    """``timestamp_ns``: when it happened as Capture says, None where it does not.

    ``json``: all fields as sent, one line, and "stamped": "capture", or "arrival" where there is no timestamp; of what
    is larger than 64 kB the subject and its "bytes".
    """

    subject: str
    timestamp_ns: int | None
    json: str


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """``level``: "debug", "info", "warning", "error" or "critical", or what else it is; ``name``: of the logger."""

    level: str
    name: str
    text: str


class _Fields(msgspec.Struct, gc=False):
    rec_path: object = ""
    reason: object = ""  # the first argument of whatever exception it was
    msg: object = ""


class _Record(msgspec.Struct, gc=False):
    name: object = ""
    msg: object = ""
    args: object = None


_decode_fields = msgspec.msgpack.Decoder(_Fields).decode
_decode_record = msgspec.msgpack.Decoder(_Record).decode
_decode_map = msgspec.msgpack.Decoder(dict[Any, Any]).decode


def decode_note(frames: Sequence[bytes]) -> Note:
    """Reads a message of one of `TOPICS`. Raises `UnknownTopic` for any other one."""
    if not frames or (subject := _SUBJECTS.get(frames[0])) is None:
        raise UnknownTopic(f"Pupil Core topic is none of those: {frames[0][:64] if frames else b''!r}")
    fields: _Fields = read_payload(frames, f"message {subject}", _decode_fields, NOTE_MAX_BYTES)
    if subject == LOGGED:
        return Note(subject, fields.msg if isinstance(fields.msg, str) else "")
    return Note(subject, printable(str(fields.rec_path or fields.reason)))


def is_taken(note: Note, label: str) -> bool:
    """Whether this is what Annotation_Capture logs when it takes an annotation of that label."""
    return note.subject == LOGGED and note.text.startswith(f"{label} annotation")


def printable(text: str, most: int = TEXT_MAX_LETTERS) -> str:
    """What fits into a line for a person, of a text that may be anything."""
    return "".join(letter for letter in text[:most] if letter.isprintable())


def decode_annotation(frames: Sequence[bytes]) -> Annotation:
    """Reads a message of a topic that begins with `ANNOTATION`. Raises `UnknownTopic` for any other one.

    Like Capture it needs a label and a timestamp; a duration that is no finite number is 0.
    """
    if not frames or not frames[0].startswith(ANNOTATION.encode()):
        raise UnknownTopic(f"Pupil Core topic is no annotation's: {frames[0][:64] if frames else b''!r}")
    fields = read_payload(frames, "annotation", _decode_map, NOTE_MAX_BYTES)
    label, at_s = fields.get("label"), _number(fields.get("timestamp"))
    if not isinstance(label, str | int | float) or at_s is None:
        raise MalformedMessage("Pupil Core annotation has no label, or no timestamp")
    at_ns = seconds_to_ns(at_s)
    duration_s = _number(fields.get("duration")) or 0.0
    text = printable(str(label), LABEL_MAX_LETTERS)
    return Annotation(text, at_ns, duration_s, _json(fields, {"label": text, "bytes": len(frames[1])}))


def decode_notification(frames: Sequence[bytes]) -> Notification:
    """Reads a message of a topic that begins with `NOTIFY_START`. Raises `UnknownTopic` for any other one."""
    if not frames or not frames[0].startswith(NOTIFY_START):
        raise UnknownTopic(f"Pupil Core topic is no notification's: {frames[0][:64] if frames else b''!r}")
    start = frames[0][len(NOTIFY_START) :][: 4 * SUBJECT_MAX_LETTERS]
    subject = printable(start.decode(errors="replace"), SUBJECT_MAX_LETTERS)
    if not subject or len(frames) < 2:
        raise MalformedMessage("Pupil Core notification has no subject, or no payload")
    size = {"subject": subject, "bytes": len(frames[1])}
    if len(frames[1]) > NOTE_MAX_BYTES:
        return Notification(subject, None, _json(size | {"stamped": "arrival"}, {}))
    fields = read_payload(frames, "notification", _decode_map, NOTE_MAX_BYTES)
    at_ns = _stamp(fields)
    stamped = {"stamped": "arrival" if at_ns is None else "capture"}
    return Notification(subject, at_ns, _json(fields | stamped, size | stamped))


def decode_log(frames: Sequence[bytes]) -> LogLine:
    """Reads a message of a topic that begins with `LOG_START`. Raises `UnknownTopic` for any other one."""
    if not frames or not frames[0].startswith(LOG_START):
        raise UnknownTopic(f"Pupil Core topic is not the log's: {frames[0][:64] if frames else b''!r}")
    record, text = read_payload(frames, "log record", _record_and_text, NOTE_MAX_BYTES)
    level = printable(frames[0][len(LOG_START) :][:40].decode(errors="replace"))
    name = printable(_text(record.name, TEXT_MAX_LETTERS))
    return LogLine(level, name, printable(" ".join(text.split()), LOG_MAX_LETTERS))


def _record_and_text(payload: bytes) -> tuple[_Record, str]:
    record: _Record = _decode_record(payload)
    return record, _filled(_text(record.msg, 4 * LOG_MAX_LETTERS), record.args)


def sets_clock(line: LogLine) -> bool:
    """Whether this says that Pupil time was set or slewed just now.

    What sets it without a word: HoloLens Relay, and a Capture that is started again.
    """
    return line.text.startswith(CLOCK_SET) and CLOCK_NOT_SET not in line.text


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def _stamp(fields: dict[Any, Any]) -> int | None:
    """What Capture puts there in Pupil time: ``timestamp``, and ``start_time_synced`` as a recording starts.

    What comes from another Capture by Pupil Groups has the time of that, and when it arrived in that of this.
    """
    peer = fields.get("groups.peer")
    where = [(fields, "timestamp"), (fields, "start_time_synced")]
    for found, key in where if not isinstance(peer, dict) else [(peer, "arrival_timestamp")]:
        if (at_s := _number(found.get(key))) is not None:
            try:
                return seconds_to_ns(at_s)
            except MalformedMessage:
                continue
    return None


def _json(fields: dict[Any, Any], otherwise: dict[str, Any]) -> str:
    """One line; ``otherwise``, which is small, where ``fields`` are too much for one."""
    line = msgspec.json.encode(_plain({key: fields[key] for key in fields if key != "base_data"}, 0))
    return (line if len(line) <= JSON_MAX_BYTES else msgspec.json.encode(otherwise)).decode()


def _plain(value: object, depth: int) -> Any:
    """What JSON has a word for, and not much of it. A number that is not finite becomes null."""
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return _text(value, FIELD_MAX_LETTERS)
        case bytes():
            return f"<{len(value)} bytes>"
        case datetime():
            return value.isoformat()
        case list() | tuple() | dict() if depth >= FIELD_MAX_DEPTH:
            return f"<{len(value)} items>"
        case dict():
            items = list(value.items())[:FIELD_MAX_ITEMS]
            kept = {_text(_plain(key, FIELD_MAX_DEPTH), 200): _plain(inner, depth + 1) for key, inner in items}
            return kept if len(value) <= FIELD_MAX_ITEMS else kept | {"...": len(value) - FIELD_MAX_ITEMS}
        case list() | tuple():
            more = [f"<{len(value) - FIELD_MAX_ITEMS} more>"] if len(value) > FIELD_MAX_ITEMS else []
            return [*(_plain(inner, depth + 1) for inner in value[:FIELD_MAX_ITEMS]), *more]
    return f"<{type(value).__name__}>"


def _text(value: object, most: int) -> str:
    text = value if isinstance(value, str) else str(_plain(value, FIELD_MAX_DEPTH - 1))
    return text if len(text) <= most else f"{text[:most]}..."


def _filled(text: str, given: object) -> str:
    """A log record's text with its arguments, as ``%`` would have it but for widths, which could be of gigabytes."""
    if not given or not isinstance(given, list | dict):
        return text
    by_name = given if isinstance(given, dict) else {}
    in_order = iter(given if isinstance(given, list) else ())

    def fill(place: re.Match[str]) -> str:
        name, kind = place.groups()
        if kind == "%":
            return "%"
        return _text(by_name.get(name, "?") if name is not None else next(in_order, "?"), TEXT_MAX_LETTERS)

    return _PLACEHOLDER.sub(fill, text)
