"""Whatever bytes arrive, the wire formats give a sound value or raise `MalformedMessage`, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.errors import MalformedMessage
from bridge.wire import ndsi, pupil_core, pupil_core_channels, pupil_core_frames, pupil_core_notes, pupil_remote
from tests.wire import test_ndsi, test_pupil_core, test_pupil_core_frames

# No file left behind, and a loaded machine is no failure.
QUIET = settings(database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])

VALID_TEXT = {
    ndsi.parse_announcement: [test_ndsi.ATTACH, b'{"subject":"detach","sensor_uuid":"a"}'],
    pupil_remote.parse_time: [b"5156.28303242513", b"-1.5e-05"],
    pupil_remote.parse_port: [b"50020"],
}
VALID_FRAMES: dict[Callable[[Sequence[bytes]], Any], list[list[bytes]]] = {
    ndsi.parse_notification: [
        [test_ndsi.UUID, test_ndsi.UPDATE],
        [b"a", b'{"subject":"remove","control_id":"streaming","seq":7}'],
        [b"a", b'{"subject":"error","control_id":null,"seq":7,"error_no":-2,"error_str":"no space"}'],
    ],
    ndsi.decode_gaze: [test_ndsi.GAZE],
    ndsi.decode_event: [test_ndsi.ECHO],
    pupil_core.decode_datum: [
        [b"gaze.3d.01.", test_pupil_core.BINOCULAR],
        [b"gaze.3d.0.", test_pupil_core.MONOCULAR + test_pupil_core.EYE_0],
        [b"gaze.3d.1.", test_pupil_core.MONOCULAR + test_pupil_core.EYE_1],
        [b"gaze.2d.01.", test_pupil_core.GAZE_2D],
        [b"pupil.0.2d", test_pupil_core.PUPIL_2D],
        [b"pupil.1.3d", test_pupil_core.PUPIL_3D],
    ],
    pupil_core_frames.decode_frame: [test_pupil_core_frames.GRAY],
    pupil_core_notes.decode_note: [
        [b"notify.recording.started", b"\x81\xa8rec_path\xa2/a"],
        [b"notify.calibration.failed", b"\x81\xa6reason\xa3why"],
        [b"logging.info", b"\x81\xa3msg\xa2go"],
    ],
}

# Bytes that mean something to msgpack or JSON, beside all others.
_SPICE = st.sampled_from(
    [
        bytes([byte])
        for byte in (0x00, 0x7F, 0x80, 0x81, 0x90, 0x91, 0xC0, 0xC1, 0xC3, 0xC4, 0xC9, 0xCB, 0xCF, 0xD3, 0xD6)
    ]
    + [
        b"\xdb\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xff",
        b"\xcb\x7f\xf8" + b"\x00" * 6,
    ]
    + [b"[", b"{", b"}", b'"', b"\\ud800", b"null", b"1e999", b"-", b"NaN", b"9" * 400]
)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """``valid`` after one to four truncations, flipped bits, insertions, deletions or repetitions."""
    data = valid
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "flip", "insert", "replace", "delete", "repeat"])):
            case "cut":
                data = data[:at]
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
            case "insert":
                data = data[:at] + draw(_SPICE | st.binary(max_size=9)) + data[at:]
            case "replace":
                spice = draw(_SPICE | st.binary(max_size=9))
                data = data[:at] + spice + data[at + len(spice) :]
            case "delete":
                data = data[:at] + data[at + draw(st.integers(1, 9)) :]
            case "repeat":
                data = data[:at] + data[max(0, at - 40) :]
    return data


@st.composite
def damaged_messages(draw: st.DrawFn, valid: list[list[bytes]]) -> list[bytes]:
    """One of ``valid`` with a damaged frame, and at times with a frame too many or too few, or two exchanged."""
    frames = list(draw(st.sampled_from(valid)))
    at = draw(st.integers(0, len(frames) - 1))
    # Most of the damage goes where it is not caught at once.
    if at > 0 or draw(st.booleans()):
        frames[at] = draw(damaged(frames[at]))
    match draw(st.sampled_from(["keep", "keep", "keep", "drop", "add", "exchange"])):
        case "drop":
            del frames[at]
        case "add":
            frames.insert(at, draw(st.binary(max_size=20)))
        case "exchange":
            frames[at], frames[-1] = frames[-1], frames[at]
    return frames


def is_sound(value: Any) -> bool:
    """What the decoders promise of a value that they do give."""
    match value:
        case ndsi.Attach():
            endpoints = [value.notify_endpoint, value.command_endpoint]
            endpoints += [] if value.data_endpoint is None else [value.data_endpoint]
            return 0 < len(value.sensor_uuid) <= 128 and all(e.startswith("tcp://") for e in endpoints)
        case ndsi.Detach():
            return 0 < len(value.sensor_uuid) <= 128
        case ndsi.ControlUpdate():
            return isinstance(value.value, str | int | float | None) and 0 <= value.seq < 2**32
        case ndsi.ControlRemove() | ndsi.ControlError():
            return 0 <= value.seq < 2**32
        case pupil_core.Gaze() | pupil_core.Pupil():
            gaze = isinstance(value, pupil_core.Gaze)
            channels = pupil_core_channels.gaze_channels(value) if gaze else pupil_core_channels.pupil_channels(value)
            named = pupil_core_channels.GAZE_CHANNELS if gaze else pupil_core_channels.PUPIL_CHANNELS
            return (
                type(value.timestamp_ns) is int
                and abs(value.timestamp_ns) < 2**62
                and len(channels) == len(named)
                and all(type(number) is float for number in channels)
                and all(math.isfinite(number) for number in channels[:3])
            )
        case pupil_core_frames.CameraFrame():
            frame = value.frame
            fits = frame.format != "gray" or len(frame.data) == frame.width_px * frame.height_px
            return abs(value.timestamp_ns) < 2**62 and fits and 0 <= frame.index < 2**53
        case pupil_core_notes.Note():
            return value.subject == pupil_core_notes.LOGGED or (value.text.isprintable() and len(value.text) <= 300)
        case (int(device_ns), float(x), float(y)):
            return 0 <= device_ns < 2**63 and math.isfinite(x) and math.isfinite(y)
        case (int(device_ns), str(name)):
            return -(2**63) <= device_ns < 2**63 and len(name) <= 1024 and name.encode() is not None
        case int():
            return abs(value) < 2**62
    return False


def assert_sound_or_malformed(decode: Callable[[Any], Any], given: Any) -> None:
    """Fails by any other exception, which passes through."""
    value, complaint = None, ""
    try:
        value = decode(given)
    except MalformedMessage as error:
        complaint = str(error)
    assert len(complaint) < 1000, "an error's text must not carry the whole message into the log"
    assert complaint or is_sound(value), value


@pytest.mark.parametrize("decode", [*VALID_TEXT, *VALID_FRAMES])
def test_the_valid_messages_that_are_damaged_below_are_sound(decode: Callable[[Any], Any]) -> None:
    valid: dict[Any, Any] = {**VALID_TEXT, **VALID_FRAMES}
    assert all(is_sound(decode(message)) for message in valid[decode])


@pytest.mark.parametrize("decode", list(VALID_TEXT))
@given(data=st.data())
@settings(QUIET, max_examples=400)
def test_arbitrary_bytes_and_damaged_texts_are_sound_or_malformed(decode: Callable[[Any], Any], data: Any) -> None:
    valid = data.draw(st.sampled_from(VALID_TEXT[decode]))
    assert_sound_or_malformed(decode, data.draw(damaged(valid) | st.binary(max_size=200) | _SPICE))


@pytest.mark.parametrize("decode", list(VALID_FRAMES))
@given(data=st.data())
@settings(QUIET, max_examples=800)
def test_damaged_messages_are_sound_or_malformed(decode: Callable[[Any], Any], data: Any) -> None:
    assert_sound_or_malformed(decode, data.draw(damaged_messages(VALID_FRAMES[decode])))


@pytest.mark.parametrize("decode", list(VALID_FRAMES))
@given(frames=st.lists(st.binary(max_size=64), max_size=5))
@settings(QUIET, max_examples=200)
def test_arbitrary_frames_are_sound_or_malformed(decode: Callable[[Any], Any], frames: list[bytes]) -> None:
    assert_sound_or_malformed(decode, frames)


@given(topic=st.sampled_from([frames[0] for frames in VALID_FRAMES[pupil_core.decode_datum]]), payload=st.binary())
@settings(QUIET, max_examples=400)
def test_arbitrary_payloads_of_known_topics_are_sound_or_malformed(topic: bytes, payload: bytes) -> None:
    assert_sound_or_malformed(pupil_core.decode_datum, [topic, payload])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    [*json.loads(test_ndsi.ATTACH), "control_id", "seq", "changes", "error_no", "error_str", "other"]
)


@given(subject=st.sampled_from(["attach", "detach", "update", "remove", "error"]), keys=st.dictionaries(_KEYS, _JSON))
@settings(QUIET, max_examples=500)
def test_json_with_the_right_keys_and_any_values_is_sound_or_malformed(subject: str, keys: dict[str, Any]) -> None:
    valid = json.loads(test_ndsi.ATTACH) | {"control_id": "a", "seq": 1, "changes": {}, "error_no": 1, "error_str": ""}
    message = json.dumps(valid | {"subject": subject} | keys).encode()
    assert_sound_or_malformed(ndsi.parse_announcement, message)
    assert_sound_or_malformed(ndsi.parse_notification, [b"a", message])


@pytest.mark.parametrize("decode", [*VALID_TEXT, *VALID_FRAMES])
def test_every_truncation_of_a_valid_message_is_sound_or_malformed(decode: Callable[[Any], Any]) -> None:
    for text in VALID_TEXT.get(decode, []):
        for end in range(len(text)):
            assert_sound_or_malformed(decode, text[:end])
    for frames in VALID_FRAMES.get(decode, []):
        for end in range(len(frames[-1])):
            with pytest.raises(MalformedMessage):
                decode([*frames[:-1], frames[-1][:end]])


@pytest.mark.parametrize("decode", list(VALID_FRAMES))
def test_every_flipped_bit_of_a_valid_message_is_sound_or_malformed(decode: Callable[[Any], Any]) -> None:
    for frames in VALID_FRAMES[decode]:
        for index, frame in enumerate(frames):
            for bit in range(8 * len(frame)):
                flipped = bytearray(frame)
                flipped[bit // 8] ^= 1 << (bit % 8)
                assert_sound_or_malformed(decode, [*frames[:index], bytes(flipped), *frames[index + 1 :]])


@pytest.mark.parametrize("depth", [100, 2_000, 30_000])
def test_deep_nesting_is_sound_or_malformed(depth: int) -> None:
    basis = b"\x84" + test_pupil_core.BASIS
    for key in (b"\xa1x", b"\xa9base_data", b"\xaeeye_centers_3d", b"\xa9circle_3d", b"\xa8diameter", b""):
        for nested in (b"\x91" * depth + b"\xc0", b"\x81\xa1a" * (depth // 2) + b"\xc0", b"\x91" * depth):
            for topic in (b"gaze.3d.01.", b"gaze.3d.0.", b"gaze.2d.0.", b"pupil.0.3d"):
                assert_sound_or_malformed(pupil_core.decode_datum, [topic, basis + key + nested])
    for nested in (b"[" * depth + b"]" * depth, b'{"a":' * (depth // 4) + b"0" + b"}" * (depth // 4), b"[" * depth):
        for text in (nested, b'{"subject":"update","control_id":"a","seq":1,"changes":{"a":' + nested + b"}}"):
            assert_sound_or_malformed(ndsi.parse_notification, [b"a", text])
        assert_sound_or_malformed(
            ndsi.parse_announcement, b'{"subject":"detach","sensor_uuid":"a","x":' + nested + b"}"
        )


def test_deep_nesting_in_what_is_read_is_malformed() -> None:
    text = b'{"subject":"update","control_id":"a","seq":1,"changes":{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}}"
    with pytest.raises(MalformedMessage):
        ndsi.parse_notification([b"a", text])
