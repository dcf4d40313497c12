"""Fixations and blinks against bytes of the real Pupil Capture, byte for byte, and against damaged ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import MalformedMessage
from bridge.wire.pupil_core import UnknownTopic
from bridge.wire.pupil_core_movements import (
    MOVEMENT_MAX_BYTES,
    BlinkEdge,
    Fixation,
    decode_blink,
    decode_fixation,
)
from tests.wire.test_hostile_input import QUIET, damaged, damaged_messages

# From the tape of 30 s, but for base_data, of which the first item was kept.
FIXATION = [
    b"fixations",
    bytes.fromhex(
        "8aa5746f706963a96669786174696f6e73a86e6f726d5f706f7392cb3fca344f495e8e00cb3fe78339815a75eeaa6469737065727369"
        "6f6ecb3ff138ea4838c35ca66d6574686f64a733642067617a65a9626173655f646174619192ab67617a652e33642e30312ecb40b416"
        "6d0fea7563a974696d657374616d70cb40b4166d0fea7563a86475726174696f6ecb4072c3a0eb20a280aa636f6e666964656e6365cb"
        "3ff0000000000000ad67617a655f706f696e745f336493cbc0584c93cd0f660acbc04b11181d1a9332cb406644b6a356a842a26964cd"
        "0118"
    ),
]
BLINK = [
    b"blinks",
    bytes.fromhex(
        "86a5746f706963a6626c696e6b73a474797065a56f6e736574aa636f6e666964656e6365cb3fe6c16c16c16c17a9626173655f646174"
        "619188a2696401a5746f706963aa707570696c2e312e3264a66d6574686f64a6326420632b2ba86e6f726d5f706f7392cb3fcb58a9aa"
        "aaaaabcb3fe2ea3540000000a86469616d65746572cb404481d860000000aa636f6e666964656e6365cb3ff0000000000000a974696d"
        "657374616d70cb40b4183c5f9662baa7656c6c6970736583a46178657392cb403ade33e0000000cb404481d860000000a5616e676c65"
        "cb4031a5c3bffffffea663656e74657292cb4044827f40000000cb4053a0b020000000a974696d657374616d70cb40b41855e7342852"
        "a67265636f7264c3"
    ),
]
FIELDS: dict[str, Any] = msgspec.msgpack.decode(FIXATION[1])
EDGE_FIELDS: dict[str, Any] = msgspec.msgpack.decode(BLINK[1])
Decode = Callable[[list[bytes]], Any]


def fixation(**changes: Any) -> list[bytes]:
    return [b"fixations", msgspec.msgpack.encode(FIELDS | changes)]


def blink(**changes: Any) -> list[bytes]:
    return [b"blinks", msgspec.msgpack.encode(EDGE_FIELDS | changes)]


def is_sound(value: Fixation | BlinkEdge) -> bool:
    """What the decoders promise of what they give."""
    if isinstance(value, BlinkEdge):
        return type(value.onset) is bool and math.isfinite(value.confidence) and abs(value.timestamp_ns) < 2**62
    numbers = (value.confidence, *value.norm_pos, value.dispersion_deg, *(value.gaze_point_3d or ()))
    return (
        all(math.isfinite(number) for number in numbers)
        and 0 <= value.id < 2**53
        and 0 <= value.duration_ms <= 86_400_000
        and abs(value.timestamp_ns) < 2**62
        and value.method in ("2d gaze", "3d gaze")
    )


class TestFixation:
    def test_captures_bytes_are_a_window_of_a_fixation(self) -> None:
        assert decode_fixation(FIXATION) == Fixation(
            id=280,
            timestamp_ns=5_142_426_024_107,
            duration_ms=300.22678673503833,
            confidence=1.0,
            norm_pos=(0.20472136576164246, 0.7347686315949298),
            dispersion_deg=1.0763953038369527,
            method="3d gaze",
            gaze_point_3d=(-97.19652105811852, -54.13354839131934, 178.1472946827435),
        )

    def test_in_2d_it_has_no_point(self) -> None:
        fields = {key: value for key, value in FIELDS.items() if key != "gaze_point_3d"} | {"method": "2d gaze"}
        window = decode_fixation([b"fixations", msgspec.msgpack.encode(fields)])
        assert (window.method, window.gaze_point_3d) == ("2d gaze", None)

    @pytest.mark.parametrize("key", ["id", "timestamp", "duration", "confidence", "norm_pos", "dispersion", "method"])
    def test_what_capture_always_sends_must_be_there(self, key: str) -> None:
        fields = {name: value for name, value in FIELDS.items() if name != key}
        with pytest.raises(MalformedMessage, match=key):
            decode_fixation([b"fixations", msgspec.msgpack.encode(fields)])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("key", ["timestamp", "duration", "confidence", "dispersion"])
    def test_every_number_must_be_finite(self, key: str, bad: float) -> None:
        with pytest.raises(MalformedMessage):
            decode_fixation(fixation(**{key: bad}))
        with pytest.raises(MalformedMessage):
            decode_fixation(fixation(norm_pos=[0.5, bad]))
        with pytest.raises(MalformedMessage):
            decode_fixation(fixation(gaze_point_3d=[1.0, 2.0, bad]))

    @pytest.mark.parametrize(
        "change",
        [
            *({"id": bad} for bad in (-1, 2**53, 1.5, "1", None, True)),
            *({"duration": bad} for bad in (-1e-9, 86_400_000.1, "1", None)),
            *({"method": bad} for bad in ("pupil", "", 3, None)),
            *({"norm_pos": bad} for bad in ([0.5], [0.5] * 3, 0.5, None, ["a", "b"])),
            *({"gaze_point_3d": bad} for bad in ([0.5], [0.5] * 4, "abc")),
            {"timestamp": 1e300},
        ],
        ids=str,
    )
    def test_what_no_fixation_has_is_malformed(self, change: dict[str, Any]) -> None:
        with pytest.raises(MalformedMessage):
            decode_fixation(fixation(**change))

    def test_a_fixation_of_no_duration_and_the_largest_id_are_read(self) -> None:
        window = decode_fixation(fixation(duration=0, id=2**53 - 1))
        assert (window.duration_ms, window.id) == (0.0, 2**53 - 1)

    def test_what_it_was_made_from_is_not_looked_at(self) -> None:
        for base_data in ([], None, "x", {"a": math.nan}, [["gaze.3d.01.", math.nan]] * 1000):
            assert decode_fixation(fixation(base_data=base_data)) == decode_fixation(FIXATION)


class TestBlink:
    def test_captures_bytes_are_an_onset(self) -> None:
        assert decode_blink(BLINK) == BlinkEdge(True, 5_144_335_559_139, 0.7111111111111111)
        assert decode_blink(blink(type="offset")) == BlinkEdge(False, 5_144_335_559_139, 0.7111111111111111)

    @pytest.mark.parametrize(
        "change",
        [
            *({"type": bad} for bad in ("Onset", "", None, 1, "onset ")),
            *({"confidence": bad} for bad in (math.nan, math.inf, None, "1")),
            *({"timestamp": bad} for bad in (math.nan, -math.inf, None, "1", 1e300)),
        ],
        ids=str,
    )
    def test_what_no_blink_has_is_malformed(self, change: dict[str, Any]) -> None:
        with pytest.raises(MalformedMessage):
            decode_blink(blink(**change))


class TestMessages:
    @pytest.mark.parametrize("decode", [decode_fixation, decode_blink])
    @pytest.mark.parametrize(
        "frames", [[], [b""], [b"gaze.3d.01.", b"\x80"], [b"fixations.", b"\x80"], [b"blink", b"\x80"], [b"\xff"]]
    )
    def test_other_topics_are_unknown(self, decode: Decode, frames: list[bytes]) -> None:
        with pytest.raises(UnknownTopic):
            decode(frames)

    @pytest.mark.parametrize(("decode", "valid"), [(decode_fixation, FIXATION), (decode_blink, BLINK)])
    def test_a_payload_of_128_kib_is_read_and_a_larger_one_is_not(self, decode: Decode, valid: list[bytes]) -> None:
        topic, payload = valid
        # One field more, and 32 bits for the length of its bytes.
        more = bytes([payload[0] + 1]) + payload[1:] + b"\xa1x\xc6"
        padding = MOVEMENT_MAX_BYTES - len(more) - 4
        full = more + padding.to_bytes(4, "big") + bytes(padding)
        assert decode([topic, full]) == decode(valid)
        with pytest.raises(MalformedMessage, match="more than 131072"):
            decode([topic, full + b"\0"])

    @pytest.mark.parametrize(("decode", "valid"), [(decode_fixation, FIXATION), (decode_blink, BLINK)])
    def test_without_a_payload_or_all_of_it_they_are_malformed(self, decode: Decode, valid: list[bytes]) -> None:
        with pytest.raises(MalformedMessage, match="no payload"):
            decode(valid[:1])
        for end in range(len(valid[1])):
            with pytest.raises(MalformedMessage):
                decode([valid[0], valid[1][:end]])
        assert decode([*valid, b"raw"]) == decode(valid)

    @pytest.mark.parametrize(("decode", "valid"), [(decode_fixation, FIXATION), (decode_blink, BLINK)])
    @given(data=st.data())
    @settings(QUIET, max_examples=600)
    def test_damaged_they_are_sound_or_malformed(self, decode: Decode, valid: list[bytes], data: Any) -> None:
        frames = data.draw(damaged_messages([valid]) | damaged(valid[1]).map(lambda payload: [valid[0], payload]))
        value, complaint = None, ""
        try:
            value = decode(frames)
        except MalformedMessage as error:
            complaint = str(error)
        assert len(complaint) < 1000
        assert complaint or is_sound(value)

    @pytest.mark.parametrize("decode", [decode_fixation, decode_blink])
    @pytest.mark.parametrize("depth", [100, 2_000, 30_000])
    def test_deep_nesting_is_malformed(self, decode: Decode, depth: int) -> None:
        for nested in (b"\x91" * depth + b"\xc0", b"\x81\xa9base_data" * (depth // 11) + b"\xc0"):
            for topic in (b"fixations", b"blinks"):
                with pytest.raises(MalformedMessage):
                    decode([topic, b"\x81\xa9base_data" + nested])
