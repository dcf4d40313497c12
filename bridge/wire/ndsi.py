"""NDSI v4, the protocol of Pupil Invisible Companion devices: bytes to typed values and back, no I/O.

Source: the public specification `ndsi-commspec.md` of pupil-labs/pyndsi (v4) and Pupil Labs' "Legacy API" page for
events. Announcements travel over ZRE, one JSON frame each; notifications and data over ZeroMQ PUB sockets, commands
over PUSH. Binary parts are little-endian, times integer nanoseconds of the app's clock.

``frames`` is what a multipart receive returns. Its first frame is the sensor's UUID; data decoders leave it to the
caller, who knows whom it listens to. The specification says *at least* two frames (notifications) and *at least*
three (data), so further frames are ignored; within a frame, no byte may be missing or left over.
Whatever breaks these rules raises `MalformedMessage` and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Any

import msgspec

from bridge.errors import MalformedMessage

GROUP = "pupil-mobile-v4"
TIME_ECHO = "<<time>>"
SCENE_WIDTH_PX, SCENE_HEIGHT_PX = 1088, 1080
EVENT_NAME_MAX_CHARS = 1024
EVENT_BODY_MAX_BYTES = 4 * EVENT_NAME_MAX_CHARS
UUID_MAX_CHARS = 128
NAME_MAX_CHARS = 256
ENDPOINT_MAX_CHARS = 300  # a DNS name has at most 253 characters
ANNOUNCEMENT_MAX_BYTES = 8 * 1024
NOTIFICATION_MAX_BYTES = 64 * 1024  # a control with a map of all video modes stays far below
DATA_SENSOR_TYPES = frozenset({"gaze", "event", "video", "imu"})

_TIME_MAX_NS = 2**63 - 1
_UTF8 = 0
# No wildcard and no ";source" part: those mean something to ZeroMQ, but no peer can be reached by them.
_ENDPOINT = re.compile(r"tcp://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]):([0-9]{1,5})")
_unpack_time = struct.Struct("<Q").unpack
_unpack_position = struct.Struct("<ff").unpack
_unpack_event_header = struct.Struct("<qii").unpack

_Uuid = Annotated[str, msgspec.Meta(min_length=1, max_length=UUID_MAX_CHARS)]
_Name = Annotated[str, msgspec.Meta(max_length=NAME_MAX_CHARS)]
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_MAX_CHARS)]
_Endpoint = Annotated[str, msgspec.Meta(max_length=ENDPOINT_MAX_CHARS)]
_Sequence = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
ControlValue = bool | int | float | str | None


class Attach(msgspec.Struct, frozen=True, gc=False, tag_field="subject", tag="attach"):
    """A sensor is there. Endpoints are ``tcp://host:port``; without ``data_endpoint`` it sends no data."""

    sensor_name: _Name
    sensor_uuid: _Uuid
    sensor_type: _Id
    notify_endpoint: _Endpoint
    command_endpoint: _Endpoint
    data_endpoint: _Endpoint | None = None


class Detach(msgspec.Struct, frozen=True, gc=False, tag_field="subject", tag="detach"):
    """A sensor is gone."""

    sensor_uuid: _Uuid


class ControlUpdate(msgspec.Struct, frozen=True):
    """A control was added or changed. ``value`` and ``dtype`` are None when the message does not name them.

    ``changes`` holds every other key as sent: min, max, res, def, caption, readonly, map, and whatever is unknown.
    """

    sensor_uuid: str
    control_id: str
    seq: int
    value: ControlValue
    dtype: str | None
    changes: dict[str, Any]


class ControlRemove(msgspec.Struct, frozen=True, gc=False):
    """A control is gone."""

    sensor_uuid: str
    control_id: str
    seq: int


class ControlError(msgspec.Struct, frozen=True, gc=False):
    """The device reports an error, of one control or (None) of none in particular."""

    sensor_uuid: str
    control_id: str | None
    seq: int
    error_no: int
    error_str: str


class _KnownChanges(msgspec.Struct):
    value: ControlValue = None
    dtype: str | None = None


class _Update(msgspec.Struct, tag_field="subject", tag="update"):
    control_id: _Id
    seq: _Sequence
    changes: dict[str, Any]


class _Remove(msgspec.Struct, tag_field="subject", tag="remove"):
    control_id: _Id
    seq: _Sequence


class _Error(msgspec.Struct, tag_field="subject", tag="error"):
    seq: _Sequence
    error_no: int
    error_str: str
    control_id: _Id | None = None


_decode_announcement = msgspec.json.Decoder(Attach | Detach).decode
_decode_notification = msgspec.json.Decoder(_Update | _Remove | _Error).decode
# msgspec's own error, its limit of nesting, and text that is no UTF-8.
_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeError)


def parse_announcement(frame: bytes) -> Attach | Detach:
    """Read what a host shouts or whispers. Unknown keys and sensor types are fine.

    An absent, null or empty ``data_endpoint`` is None; gaze, event, video and imu sensors must have one.
    """
    _check_size("announcement", frame, ANNOUNCEMENT_MAX_BYTES)
    try:
        message: Attach | Detach = _decode_announcement(frame)
    except _UNREADABLE as error:
        raise MalformedMessage(f"NDSI announcement cannot be read: {error}") from error
    if isinstance(message, Detach):
        return message
    if message.data_endpoint == "":
        # The `ndsi` client takes the empty string for "none" as well.
        message = msgspec.structs.replace(message, data_endpoint=None)
    if message.data_endpoint is None and message.sensor_type in DATA_SENSOR_TYPES:
        raise MalformedMessage(f"NDSI {message.sensor_type} sensor has no data_endpoint")
    for endpoint in (message.notify_endpoint, message.command_endpoint, message.data_endpoint):
        if endpoint is not None:
            _check_endpoint(endpoint)
    return message


def parse_notification(frames: Sequence[bytes]) -> ControlUpdate | ControlRemove | ControlError:
    """Read a message of a notify socket: ``[uuid, json]``."""
    if len(frames) < 2:
        raise MalformedMessage(f"NDSI notification has {len(frames)} frames instead of 2")
    _check_size("notification", frames[1], NOTIFICATION_MAX_BYTES)
    try:
        sensor_uuid = frames[0].decode()
        message = _decode_notification(frames[1])
        if isinstance(message, _Update):
            known = msgspec.convert(message.changes, _KnownChanges)
    except _UNREADABLE as error:
        raise MalformedMessage(f"NDSI notification cannot be read: {error}") from error
    if not 0 < len(sensor_uuid) <= UUID_MAX_CHARS:
        raise MalformedMessage(f"NDSI sensor UUID has {len(sensor_uuid)} characters")
    if isinstance(message, _Remove):
        return ControlRemove(sensor_uuid, message.control_id, message.seq)
    if isinstance(message, _Error):
        return ControlError(sensor_uuid, message.control_id, message.seq, message.error_no, message.error_str)
    others = {key: value for key, value in message.changes.items() if key not in ("value", "dtype")}
    return ControlUpdate(sensor_uuid, message.control_id, message.seq, known.value, known.dtype, others)


def decode_gaze(frames: Sequence[bytes]) -> tuple[int, float, float]:
    """Read ``[uuid, header, body]`` of a gaze sensor: device time in ns, x and y in scene pixels from the top left.

    The position may lie outside the scene image but is always finite.
    """
    try:
        (device_ns,) = _unpack_time(frames[1])
        x_px, y_px = _unpack_position(frames[2])
    except (struct.error, IndexError) as error:
        raise MalformedMessage(f"NDSI gaze has wrong lengths: {_lengths(frames)} instead of [uuid, 8, 8]") from error
    # The sum of two float32 overflows no float64: it is finite only if both are.
    if not isfinite(x_px + y_px):
        raise MalformedMessage(f"NDSI gaze position is not finite: {x_px}, {y_px}")
    # The specification says int64, the reference client reads u64: what they read differently is no time.
    if device_ns > _TIME_MAX_NS:
        raise MalformedMessage(f"NDSI gaze time is out of range: {device_ns} ns")
    return device_ns, x_px, y_px


def decode_event(frames: Sequence[bytes]) -> tuple[int, str]:
    """Read ``[uuid, header, body]`` of an event sensor: device time in ns (can be negative: senders choose), name."""
    try:
        device_ns, length, encoding = _unpack_event_header(frames[1])
        body = frames[2]
    except (struct.error, IndexError) as error:
        raise MalformedMessage(f"NDSI event has wrong lengths: {_lengths(frames)} instead of [uuid, 16, n]") from error
    if length != len(body):
        raise MalformedMessage(f"NDSI event has a body of {len(body)} bytes where its header says {length}")
    if length > EVENT_BODY_MAX_BYTES:
        raise MalformedMessage(f"NDSI event has {length} bytes, more than {EVENT_BODY_MAX_BYTES}")
    if encoding != _UTF8:
        raise MalformedMessage(f"NDSI event has the unknown encoding {encoding}")
    try:
        name = body.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"NDSI event is not UTF-8: {error}") from error
    if len(name) > EVENT_NAME_MAX_CHARS:
        raise MalformedMessage(f"NDSI event has {len(name)} characters, more than {EVENT_NAME_MAX_CHARS}")
    return device_ns, name


def encode_refresh_controls(sensor_uuid: str) -> list[bytes]:
    """Frames for the command socket that ask for an update of every control."""
    return [sensor_uuid.encode(), b'{"action":"refresh_controls"}']


def encode_set_control(sensor_uuid: str, control_id: str, value: ControlValue) -> list[bytes]:
    """Frames for the command socket that set a control. Raises `ValueError` when a float is not finite."""
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"The control {control_id} cannot be set to {value}: JSON has no such number.")
    command = {"action": "set_control_value", "control_id": control_id, "value": value}
    return [sensor_uuid.encode(), msgspec.json.encode(command)]


def encode_event(name: str, timestamp_ns: int | None) -> bytes:
    """The frame to whisper to a host; with None the app stamps the event when it arrives.

    Raises `ValueError` when the name is too long or no Unicode text, or when the time does not fit into an int64.
    """
    if len(name) > EVENT_NAME_MAX_CHARS:
        raise ValueError(f"An event's name has at most {EVENT_NAME_MAX_CHARS} characters, this one has {len(name)}.")
    if timestamp_ns is not None and not -_TIME_MAX_NS - 1 <= timestamp_ns <= _TIME_MAX_NS:
        raise ValueError(f"An event's time has 64 bits, {timestamp_ns} ns does not fit.")
    try:
        return msgspec.json.encode({"name": name, "timestamp": timestamp_ns})
    except UnicodeEncodeError as error:
        raise ValueError(f"An event's name is Unicode text, {name!r} cannot be written as UTF-8.") from error


def _check_size(what: str, frame: bytes, limit: int) -> None:
    if len(frame) > limit:
        raise MalformedMessage(f"NDSI {what} has {len(frame)} bytes, more than {limit}")


def _check_endpoint(endpoint: str) -> None:
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or not 0 < int(match[1]) <= 65535:
        raise MalformedMessage(f"NDSI endpoint is not tcp://host:port: {endpoint!r}")


def _lengths(frames: Sequence[bytes]) -> list[int]:
    return [len(frame) for frame in frames[:4]]
