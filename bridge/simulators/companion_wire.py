"""What the simulated Companion puts on the wire and takes from it: NDSI v4, after its public specification.

Pure functions from values to bytes and back; nothing is shared with the bridge's own reader. Little-endian, times in
nanoseconds of the app's clock. Readers raise `ValueError` for whatever the protocol does not allow.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

GROUP = "pupil-mobile-v4"
MAX_EVENT_NAME = 1024

_GAZE_HEADER = struct.Struct("<Q")
_GAZE_BODY = struct.Struct("<ff")
_EVENT_HEADER = struct.Struct("<qii")
_VIDEO_HEADER = struct.Struct("<LLLLQLL")
_IMU_HEADER = struct.Struct("<LLLLL")
_IMU_SAMPLE = struct.Struct("<Qffffff")
_UTF8 = 0
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Attach:
    """A sensor as it is announced; ``data_endpoint`` is None for one that sends no data."""

    sensor_name: str
    sensor_uuid: str
    sensor_type: str
    notify_endpoint: str
    command_endpoint: str
    data_endpoint: str | None

    def encode(self) -> bytes:
        message = {
            "subject": "attach",
            "sensor_name": self.sensor_name,
            "sensor_uuid": self.sensor_uuid,
            "sensor_type": self.sensor_type,
            "notify_endpoint": self.notify_endpoint,
            "command_endpoint": self.command_endpoint,
        }
        if self.data_endpoint is not None:
            message["data_endpoint"] = self.data_endpoint
        return json.dumps(message).encode()


def encode_detach(sensor_uuid: str) -> bytes:
    return json.dumps({"subject": "detach", "sensor_uuid": sensor_uuid}).encode()


def encode_update(control_id: str, sequence: int, changes: dict[str, Any]) -> bytes:
    """``changes`` may name only what changed."""
    return json.dumps(
        {"subject": "update", "control_id": control_id, "seq": sequence & 0xFFFFFFFF, "changes": changes}
    ).encode()


def encode_error(control_id: str | None, sequence: int, number: int, text: str) -> bytes:
    return json.dumps(
        {
            "subject": "error",
            "control_id": control_id,
            "seq": sequence & 0xFFFFFFFF,
            "error_no": number,
            "error_str": text,
        }
    ).encode()


def encode_gaze(device_ns: int, x_px: float, y_px: float) -> tuple[bytes, bytes]:
    """Header and body; the position is rounded to float32 by the format."""
    return _GAZE_HEADER.pack(device_ns), _GAZE_BODY.pack(x_px, y_px)


def as_float32(*values: float) -> tuple[float, ...]:
    """The numbers that a receiver will read."""
    return struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values))


def encode_event(device_ns: int, text: str) -> tuple[bytes, bytes]:
    """Header and body."""
    body = text.encode()
    return _EVENT_HEADER.pack(device_ns, len(body), _UTF8), body


def encode_video(
    format_code: int, device_ns: int, sequence: int, size_px: tuple[int, int], picture: bytes
) -> tuple[bytes, bytes]:
    """Header and body of a video frame; 0x10 is a JPEG, 0x12 H.264 as Annex B has it."""
    header = _VIDEO_HEADER.pack(format_code, *size_px, sequence & 0xFFFFFFFF, device_ns, len(picture), 0)
    return header, picture


def encode_imu(sequence: int, samples: list[tuple[int, tuple[float, ...]]]) -> tuple[bytes, bytes]:
    """Header and body of a batch; a sample is its device time, acceleration in g and angular velocity in deg/s."""
    body = b"".join(_IMU_SAMPLE.pack(device_ns, *values) for device_ns, values in samples)
    return _IMU_HEADER.pack(0, 6, sequence & 0xFFFFFFFF, len(body), 0), body


@dataclass(frozen=True, slots=True)
class Command:
    """``refresh_controls``, or ``set_control_value`` with a control and its new value."""

    action: str
    control_id: str | None = None
    value: Any = None


def decode_command(payload: bytes) -> Command:
    """Read the second frame of a command message."""
    message = _decode_object(payload)
    action = message.get("action")
    if action == "refresh_controls":
        return Command(action)
    if action == "set_control_value":
        control_id = message.get("control_id")
        if not isinstance(control_id, str) or "value" not in message:
            raise ValueError("set_control_value needs control_id and value")
        return Command(action, control_id, message["value"])
    raise ValueError("unknown action")


def decode_event(payload: bytes) -> tuple[str, int | None]:
    """Read a whispered event: its name and its device stamp, None when the app is to stamp it."""
    message = _decode_object(payload)
    name, stamp = message.get("name"), message.get("timestamp")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_EVENT_NAME:
        raise ValueError(f"an event's name is a string of 1 to {MAX_EVENT_NAME} characters")
    name.encode()  # a lone surrogate is valid JSON but no UTF-8: UnicodeEncodeError is a ValueError
    if "timestamp" not in message or isinstance(stamp, bool) or not (stamp is None or isinstance(stamp, int)):
        raise ValueError("an event's timestamp is an integer or null")
    if stamp is not None and stamp not in _INT64:
        raise ValueError("an event's timestamp has 64 bits")
    return name, stamp


def _decode_object(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message
