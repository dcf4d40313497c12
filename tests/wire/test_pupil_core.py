"""Pupil Core's Network API against bytes written by hand and against a tape of the real Pupil Capture."""

from __future__ import annotations

import lzma
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bridge
from bridge.errors import MalformedMessage
from bridge.wire import pupil_core, pupil_core_channels, pupil_remote
from bridge.wire.pupil_core import Gaze, Pupil, PupilRef

TAPE = Path(bridge.__file__).parent / "simulators" / "data" / "core_short.msgpack.xz"

# msgpack by hand: 0xcb is a float64, most significant byte first.
QUARTER = b"\xcb\x3f\xd0\x00\x00\x00\x00\x00\x00"
HALF = b"\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00"
ONE = b"\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"
TWO = b"\xcb\x40\x00\x00\x00\x00\x00\x00\x00"
MINUS_TWO = b"\xcb\xc0\x00\x00\x00\x00\x00\x00\x00"
THREE = b"\xcb\x40\x08\x00\x00\x00\x00\x00\x00"
FOUR = b"\xcb\x40\x10\x00\x00\x00\x00\x00\x00"
FORTY = b"\xcb\x40\x44\x00\x00\x00\x00\x00\x00"
NAN = b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"
INFINITY = b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00"

TIMESTAMP = b"\xa9timestamp\xcb\x40\xb4\x24\x40\x00\x00\x00\x00"  # 5156.25
TIMESTAMP_NS = 5_156_250_000_000
CONFIDENCE = b"\xaaconfidence" + HALF
NORM_POS = b"\xa8norm_pos\x92" + QUARTER + ONE
BASIS = TIMESTAMP + CONFIDENCE + NORM_POS
GAZE_POINT = b"\xadgaze_point_3d\x93" + ONE + MINUS_TWO + FORTY
EYE_0 = b"\x86\xa2id\x00\xa5topic\xaapupil.0.3d\xa8diameter" + FORTY + b"\xabdiameter_3d" + THREE
EYE_0 += b"\xa6sphere\x81\xa6center\x93" + ONE + ONE + ONE + b"\xa8location\xc0"
EYE_1 = b"\x83\xa2id\x01\xa8diameter" + TWO + b"\xabdiameter_3d" + FOUR

BINOCULAR = (
    b"\x88\xaeeye_centers_3d\x82\xa10\x93" + (ONE + TWO + THREE) + b"\xa11\x93" + (MINUS_TWO + TWO + THREE)
    + b"\xafgaze_normals_3d\x82\xa10\x93" + (QUARTER + HALF + ONE) + b"\xa11\x93" + (HALF + QUARTER + ONE)
    + GAZE_POINT + BASIS + b"\xa5topic\xabgaze.3d.01." + b"\xa9base_data\x92" + EYE_0 + EYE_1
)  # fmt: skip
BINOCULAR_GAZE = Gaze(
    topic="gaze.3d.01.",
    timestamp_ns=TIMESTAMP_NS,
    confidence=0.5,
    norm_pos=(0.25, 1.0),
    gaze_point_3d=(1.0, -2.0, 40.0),
    eye_centers=((1.0, 2.0, 3.0), (-2.0, 2.0, 3.0)),
    gaze_normals=((0.25, 0.5, 1.0), (0.5, 0.25, 1.0)),
    base=(PupilRef(0, 40.0, 3.0), PupilRef(1, 2.0, 4.0)),
)
MONOCULAR = (
    b"\x87\xadeye_center_3d\x93" + (ONE + TWO + THREE) + b"\xaegaze_normal_3d\x93" + (QUARTER + HALF + ONE)
    + GAZE_POINT + BASIS + b"\xa9base_data\x91"
)  # fmt: skip
GAZE_2D = b"\x84" + BASIS + b"\xa9base_data\x91\x82\xa2id\x01\xa8diameter" + FORTY
PUPIL_2D = b"\x86\xa2id\x01" + BASIS + b"\xa8diameter" + FORTY + b"\xa6method\xa62d c++"
PUPIL_3D = (
    b"\x87" + BASIS + b"\xa8diameter" + FORTY + b"\xabdiameter_3d" + THREE + b"\xb0model_confidence" + QUARTER
    + b"\xa9circle_3d\x83\xa6center\x93" + (ONE + TWO + THREE) + b"\xa6normal\x93" + (HALF + MINUS_TWO + ONE)
    + b"\xa6radius" + FOUR
)  # fmt: skip


def the_same(values: Sequence[float], expected: Sequence[float]) -> bool:
    """Equal numbers, and NaN in the same places."""
    return len(values) == len(expected) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(values, expected, strict=True)
    )


class TestGaze:
    def test_gaze_of_both_eyes_has_centers_and_normals_of_both(self) -> None:
        assert pupil_core.decode_datum([b"gaze.3d.01.", BINOCULAR]) == BINOCULAR_GAZE

    def test_eyes_may_be_keyed_by_integers(self) -> None:
        by_integers = BINOCULAR.replace(b"\xa10\x93", b"\x00\x93").replace(b"\xa11\x93", b"\x01\x93")
        assert by_integers != BINOCULAR
        assert pupil_core.decode_datum([b"gaze.3d.01.", by_integers]) == BINOCULAR_GAZE

    def test_an_eye_may_be_absent_from_gaze_of_both_eyes(self) -> None:
        for key in (b"\xa11", b"\x01"):
            payload = b"\x84" + BASIS + b"\xaeeye_centers_3d\x81" + key + b"\x93" + ONE + TWO + THREE
            gaze = pupil_core.decode_datum([b"gaze.3d.01.", payload])
            assert isinstance(gaze, Gaze)
            assert gaze.eye_centers == (None, (1.0, 2.0, 3.0))
            assert gaze.gaze_normals == (None, None)
            assert gaze.gaze_point_3d is None
            assert gaze.base == ()

    def test_gaze_of_one_eye_belongs_to_the_eye_that_the_topic_names(self) -> None:
        right = pupil_core.decode_datum([b"gaze.3d.0.", MONOCULAR + EYE_0])
        left = pupil_core.decode_datum([b"gaze.3d.1.", MONOCULAR + EYE_1])
        common = (TIMESTAMP_NS, 0.5, (0.25, 1.0), (1.0, -2.0, 40.0))
        center, normal = (1.0, 2.0, 3.0), (0.25, 0.5, 1.0)
        assert right == Gaze("gaze.3d.0.", *common, (center, None), (normal, None), (PupilRef(0, 40.0, 3.0),))
        assert left == Gaze("gaze.3d.1.", *common, (None, center), (None, normal), (PupilRef(1, 2.0, 4.0),))

    @pytest.mark.parametrize("topic", ["gaze.2d.0.", "gaze.2d.1.", "gaze.2d.01."])
    def test_gaze_in_2d_has_nothing_in_3d(self, topic: str) -> None:
        gaze = pupil_core.decode_datum([topic.encode(), GAZE_2D])
        none = (None, None)
        base = (PupilRef(1, 40.0, None),)
        assert gaze == Gaze(topic, TIMESTAMP_NS, 0.5, (0.25, 1.0), None, none, none, base)

    def test_the_topic_of_the_message_wins_over_that_of_the_payload(self) -> None:
        payload = b"\x84" + BASIS + b"\xa5topic\xaapupil.0.3d"
        assert pupil_core.decode_datum([b"gaze.2d.0.", payload]).topic == "gaze.2d.0."

    def test_raw_frames_after_the_payload_are_allowed(self) -> None:
        assert pupil_core.decode_datum([b"gaze.3d.01.", BINOCULAR, b"raw", b""]) == BINOCULAR_GAZE

    def test_integers_and_float32_are_numbers_too(self) -> None:
        # 5156 is 0x1424, 0.5 is 0x3f000000 as float32.
        payload = b"\x83\xa9timestamp\xcd\x14\x24\xaaconfidence\x01\xa8norm_pos\x92\x00\xca\x3f\x00\x00\x00"
        gaze = pupil_core.decode_datum([b"gaze.2d.0.", payload])
        assert (gaze.timestamp_ns, gaze.confidence, gaze.norm_pos) == (5_156_000_000_000, 1.0, (0.0, 0.5))


class TestPupil:
    def test_a_2d_pupil_has_its_eye_from_the_topic_and_nothing_in_3d(self) -> None:
        assert pupil_core.decode_datum([b"pupil.0.2d", PUPIL_2D]) == Pupil(
            "pupil.0.2d", TIMESTAMP_NS, 0, "2d", 0.5, (0.25, 1.0), 40.0, None, None, None, None
        )

    @pytest.mark.parametrize("eye_id", [0, 1])
    def test_a_3d_pupil_adds_diameter_circle_and_confidence_of_the_model(self, eye_id: int) -> None:
        pupil = pupil_core.decode_datum([b"pupil.%d.3d" % eye_id, PUPIL_3D])
        assert isinstance(pupil, Pupil)
        assert pupil == Pupil(
            topic=f"pupil.{eye_id}.3d",
            timestamp_ns=TIMESTAMP_NS,
            eye_id=pupil.eye_id,
            method="3d",
            confidence=0.5,
            norm_pos=(0.25, 1.0),
            diameter_px=40.0,
            diameter_mm=3.0,
            model_confidence=0.25,
            circle_center=(1.0, 2.0, 3.0),
            circle_normal=(0.5, -2.0, 1.0),
        )
        assert pupil.eye_id == eye_id

    def test_a_3d_pupil_may_lack_what_the_model_has_not_found(self) -> None:
        pupil = pupil_core.decode_datum([b"pupil.1.3d", b"\x84" + BASIS + b"\xa8diameter" + FORTY])
        assert pupil == Pupil("pupil.1.3d", TIMESTAMP_NS, 1, "3d", 0.5, (0.25, 1.0), 40.0, None, None, None, None)


class TestMalformed:
    @pytest.mark.parametrize(
        "topic",
        [b"", b"gaze", b"gaze.3d.0", b"gaze.3d.2.", b"pupil.2.3d", b"pupil.0", b"fixations", b"\xff", b"a" * 9999],
    )
    def test_a_topic_that_is_neither_gaze_nor_pupil_is_unknown(self, topic: bytes) -> None:
        with pytest.raises(pupil_core.UnknownTopic, match="neither gaze nor pupil"):
            pupil_core.decode_datum([topic, BINOCULAR])

    def test_an_unknown_topic_counts_as_malformed(self) -> None:
        assert issubclass(pupil_core.UnknownTopic, MalformedMessage)

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\xc0",
            b"\x80",
            b"\x90",
            GAZE_2D[:-1],
            GAZE_2D + b"\xc0",
            b"\x82" + CONFIDENCE + NORM_POS,
            b"\x82" + TIMESTAMP + NORM_POS,
            b"\x82" + TIMESTAMP + CONFIDENCE,
            b"\x83" + TIMESTAMP + CONFIDENCE + b"\xa8norm_pos\x91" + ONE,
            b"\x83" + TIMESTAMP + CONFIDENCE + b"\xa8norm_pos\x93" + ONE + ONE + ONE,
            b"\x83" + TIMESTAMP + CONFIDENCE + b"\xa8norm_pos\xc0",
            b"\x83" + TIMESTAMP + NORM_POS + b"\xaaconfidence\xa31.0",
            b"\x83" + CONFIDENCE + NORM_POS + b"\xa9timestamp\xc3",
            b"\x84" + BASIS + b"\xa9base_data\x91\x81\xa8diameter" + ONE,
            b"\x84" + BASIS + b"\xa9base_data\x91\x00",
            b"\x84" + BASIS + b"\xa9base_data\xdd\xff\xff\xff\xff",
            b"\x84" + BASIS + b"\x00\x00",
            b"\x84" + BASIS + b"\xa1x\xc5\xff\xff" + b"\x00" * 65535,
        ],
    )
    def test_gaze_without_what_it_needs_is_malformed(self, payload: bytes) -> None:
        with pytest.raises(MalformedMessage):
            pupil_core.decode_datum([b"gaze.2d.0.", payload])

    @pytest.mark.parametrize(
        "vector", [b"\x92" + ONE + ONE, b"\x94" + ONE * 4, b"\xa1a", b"\x93" + ONE + ONE + b"\xc0"]
    )
    def test_a_vector_that_is_not_three_numbers_is_malformed(self, vector: bytes) -> None:
        for topic, key in (
            (b"gaze.3d.01.", b"\xadgaze_point_3d"),
            (b"gaze.3d.0.", b"\xadeye_center_3d"),
            (b"gaze.3d.01.", b"\xaeeye_centers_3d\x81\xa10"),
            (b"gaze.3d.01.", b"\xaeeye_centers_3d\x81\x01"),
            (b"gaze.3d.01.", b"\xafgaze_normals_3d\x81\xa11"),
        ):
            with pytest.raises(MalformedMessage):
                pupil_core.decode_datum([topic, b"\x84" + BASIS + key + vector])
        circle = b"\xa9circle_3d\x82\xa6center" + vector + b"\xa6normal\x93" + ONE + ONE + ONE
        with pytest.raises(MalformedMessage):
            pupil_core.decode_datum([b"pupil.0.3d", b"\x85" + BASIS + b"\xa8diameter" + ONE + circle])

    @pytest.mark.parametrize("bad", [NAN, INFINITY, b"\xcb\xff\xf0\x00\x00\x00\x00\x00\x00"])
    def test_time_confidence_and_position_must_be_finite(self, bad: bytes) -> None:
        for payload in (
            b"\x83" + CONFIDENCE + NORM_POS + b"\xa9timestamp" + bad,
            b"\x83" + TIMESTAMP + NORM_POS + b"\xaaconfidence" + bad,
            b"\x83" + TIMESTAMP + CONFIDENCE + b"\xa8norm_pos\x92" + bad + ONE,
            b"\x83" + TIMESTAMP + CONFIDENCE + b"\xa8norm_pos\x92" + ONE + bad,
            b"\x83" + TIMESTAMP + CONFIDENCE + b"\xa8norm_pos\x92" + INFINITY + bad,
        ):
            with pytest.raises(MalformedMessage):
                pupil_core.decode_datum([b"gaze.2d.0.", payload])

    @pytest.mark.parametrize("frames", [[], [b"gaze.2d.0."], [b"pupil.0.2d"]])
    def test_a_message_without_a_payload_is_malformed(self, frames: list[bytes]) -> None:
        with pytest.raises(MalformedMessage, match="at least 2"):
            pupil_core.decode_datum(frames)

    def test_a_payload_of_64_kib_is_read_and_a_larger_one_is_not(self) -> None:
        padding = 64 * 1024 - len(b"\x84" + BASIS + b"\xa1x\xc5\xff\xff")
        payload = b"\x84" + BASIS + b"\xa1x\xc5" + padding.to_bytes(2, "big") + b"\x00" * padding
        assert pupil_core.decode_datum([b"gaze.2d.0.", payload]).timestamp_ns == TIMESTAMP_NS
        with pytest.raises(MalformedMessage, match="more than 65536"):
            pupil_core.decode_datum([b"gaze.2d.0.", payload + b"\x00"])


class TestReplies:
    @pytest.mark.parametrize(
        ("reply", "time_ns"),
        [
            (b"5156.28303242513", 5_156_283_032_425),
            (b"0.0", 0),
            (b"-0.0", 0),
            (b"-12.5", -12_500_000_000),
            (b"12", 12_000_000_000),
            (b"1e-09", 1),
            (b"2.5e-09", 2),
            (b"3.5e-09", 4),
            (b"1.5e+09", 1_500_000_000_000_000_000),
            (b"1234567890.123456789", 1_234_567_890_123_456_789),
            (b"4611686018.427387903", 2**62 - 1),
            (b"5e-324", 0),
        ],
    )
    def test_a_time_is_rounded_from_its_decimal_digits(self, reply: bytes, time_ns: int) -> None:
        assert pupil_remote.parse_time(reply) == time_ns

    @given(st.floats(-4.6e9, 4.6e9))
    @settings(database=None, deadline=None)
    def test_every_float_that_python_prints_is_read_to_the_nanosecond(self, seconds: float) -> None:
        assert pupil_remote.parse_time(repr(seconds).encode()) == round(Fraction(repr(seconds)) * 10**9)

    @pytest.mark.parametrize(
        "reply",
        [
            *(b"", b" ", b"nan", b"inf", b"-inf", b"1_0", b"1.", b".5", b"+1.0", b"1/2", b"0x1p3", b"1.0\n", b" 1.0"),
            *(b"\xff", b"\xd9\xa1", b"1.0 2.0", b"--1", b"1e5000", b"1e999", b"4611686018.427387904", b"-1e10"),
            *(b"Unknown command.", b"OK", b"1.0\x00", b"0." + b"1" * 63),
        ],
    )
    def test_a_time_that_is_no_finite_number_in_range_is_malformed(self, reply: bytes) -> None:
        with pytest.raises(MalformedMessage):
            pupil_remote.parse_time(reply)

    @pytest.mark.parametrize(("reply", "port"), [(b"1", 1), (b"50020", 50020), (b"65535", 65535), (b"00080", 80)])
    def test_a_port_is_a_port(self, reply: bytes, port: int) -> None:
        assert pupil_remote.parse_port(reply) == port

    @pytest.mark.parametrize(
        "reply", [b"", b"0", b"65536", b"-1", b"+1", b"1.0", b"5 0", b"50020\n", b"\xd9\xa1", b"000080", b"9" * 9999]
    )
    def test_a_port_that_is_none_is_malformed(self, reply: bytes) -> None:
        with pytest.raises(MalformedMessage):
            pupil_remote.parse_port(reply)


class TestSecondsToNs:
    @given(st.floats(-4.6e9, 4.6e9) | st.floats(-1e6, 1e6) | st.floats(-1, 1))
    @example(512_345.123456789)
    @example(2.0**-1074)
    @settings(database=None, deadline=None, max_examples=1000)
    def test_it_is_the_exact_value_of_the_float_rounded_to_even(self, seconds: float) -> None:
        assert pupil_core.seconds_to_ns(seconds) == round(Fraction(seconds) * 10**9)

    @given(st.integers(-(10**9), 10**9), st.sampled_from([1e9, 512.0]), st.integers(-2, 2))
    @settings(database=None, deadline=None, max_examples=1000)
    def test_it_is_exact_at_and_beside_half_nanoseconds(self, n: int, steps_in_a_second: float, ulps: int) -> None:
        # Odd multiples of 1/1024 s lie exactly between two nanoseconds, floats near n + 0.5 ns only almost.
        seconds = (n + 0.5) / steps_in_a_second
        for _ in range(abs(ulps)):
            seconds = math.nextafter(seconds, math.copysign(math.inf, ulps))
        assert pupil_core.seconds_to_ns(seconds) == round(Fraction(seconds) * 10**9)

    def test_a_pupil_time_set_to_unix_time_is_exact_where_multiplying_floats_is_not(self) -> None:
        seconds = 1_700_000_000 + 3 / 2**22  # three steps of a float64 of this size, 715.26 ns
        assert pupil_core.seconds_to_ns(seconds) == 1_700_000_000_000_000_715
        assert round(seconds * 1e9) != 1_700_000_000_000_000_715

    def test_it_ends_below_2_to_the_62(self) -> None:
        largest = math.nextafter(2**62 / 1e9, 0)
        assert pupil_core.seconds_to_ns(largest) == round(Fraction(largest) * 10**9) < 2**62
        assert pupil_core.seconds_to_ns(-largest) > -(2**62)

    @pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, 1e300, 2**62 / 1e9, -(2**62) / 1e9])
    def test_what_is_not_finite_or_too_far_is_malformed(self, seconds: float) -> None:
        with pytest.raises(MalformedMessage, match="out of range"):
            pupil_core.seconds_to_ns(seconds)


class TestChannels:
    def test_the_gaze_channels_are_those_of_captures_lsl_plugin(self) -> None:
        assert " ".join(channel.label for channel in pupil_core_channels.GAZE_CHANNELS) == (
            "confidence norm_pos_x norm_pos_y gaze_point_3d_x gaze_point_3d_y gaze_point_3d_z "
            "eye_center0_3d_x eye_center0_3d_y eye_center0_3d_z eye_center1_3d_x eye_center1_3d_y eye_center1_3d_z "
            "gaze_normal0_x gaze_normal0_y gaze_normal0_z gaze_normal1_x gaze_normal1_y gaze_normal1_z "
            "diameter0_2d diameter1_2d diameter0_3d diameter1_3d"
        )

    def test_eye_0_is_the_right_eye(self) -> None:
        eyes = {channel.label: channel.eye for channel in pupil_core_channels.GAZE_CHANNELS}
        assert {eye for label, eye in eyes.items() if "0" in label} == {"right"}
        assert {eye for label, eye in eyes.items() if "1" in label} == {"left"}
        assert {eye for label, eye in eyes.items() if "0" not in label and "1" not in label} == {"both"}

    def test_every_channel_has_a_type_of_the_xdf_specification_and_a_unit(self) -> None:
        kinds = {"ScreenX", "ScreenY", "Diameter", "Confidence"}
        kinds |= {kind + axis for kind in ("Direction", "Position", "Intersection", "Pupil") for axis in "XYZ"}
        channels = pupil_core_channels.GAZE_CHANNELS + pupil_core_channels.PUPIL_CHANNELS
        assert {channel.type for channel in channels} <= kinds
        assert {channel.unit for channel in channels} == {"normalized", "mm", "pixels"}

    def test_gaze_of_both_eyes_fills_every_channel(self) -> None:
        assert pupil_core_channels.gaze_channels(BINOCULAR_GAZE) == (
            *(0.5, 0.25, 1.0, 1.0, -2.0, 40.0),
            *(1.0, 2.0, 3.0, -2.0, 2.0, 3.0),
            *(0.25, 0.5, 1.0, 0.5, 0.25, 1.0),
            *(40.0, 2.0, 3.0, 4.0),
        )

    def test_what_a_gaze_datum_lacks_is_nan(self) -> None:
        nan = math.nan
        gaze = pupil_core.decode_datum([b"gaze.2d.1.", GAZE_2D])
        assert isinstance(gaze, Gaze)
        assert the_same(pupil_core_channels.gaze_channels(gaze), (0.5, 0.25, 1.0, *[nan] * 15, nan, 40.0, nan, nan))

    def test_the_first_pupil_of_an_eye_counts_and_other_ids_do_not(self) -> None:
        base = (PupilRef(7, 1.0, 1.0), PupilRef(1, 2.0, None), PupilRef(1, 3.0, 4.0), PupilRef(-1, 5.0, 5.0))
        gaze = msgspec.structs.replace(BINOCULAR_GAZE, base=base)
        assert the_same(pupil_core_channels.gaze_channels(gaze)[-4:], (math.nan, 2.0, math.nan, 4.0))

    def test_a_3d_pupil_fills_every_channel(self) -> None:
        pupil = pupil_core.decode_datum([b"pupil.0.3d", PUPIL_3D])
        assert isinstance(pupil, Pupil)
        expected = (0.5, 0.25, 1.0, 40.0, 3.0, 0.25, 1.0, 2.0, 3.0, 0.5, -2.0, 1.0)
        assert pupil_core_channels.pupil_channels(pupil) == expected
        assert len(pupil_core_channels.PUPIL_CHANNELS) == len(expected)

    def test_what_a_2d_pupil_lacks_is_nan(self) -> None:
        pupil = pupil_core.decode_datum([b"pupil.0.2d", PUPIL_2D])
        assert isinstance(pupil, Pupil)
        assert the_same(pupil_core_channels.pupil_channels(pupil), (0.5, 0.25, 1.0, 40.0, *[math.nan] * 8))


@pytest.fixture(scope="module")
def tape() -> list[list[bytes]]:
    """The frames of every message on the tape of the real Capture."""
    data = lzma.decompress(TAPE.read_bytes())
    end = end_of_value(data, 0)
    messages = []
    while end < len(data):
        start, end = end, end_of_value(data, end)
        messages.append(msgspec.msgpack.decode(data[start:end])[1])
    return messages


def end_of_value(data: bytes, at: int) -> int:
    """Where the msgpack value at ``at`` ends; of the kinds that a tape's envelope has."""
    kind = data[at]
    if kind <= 0x7F:
        return at + 1
    if kind == 0xCB:
        return at + 9
    if 0xA0 <= kind <= 0xBF:
        return at + 1 + (kind & 0x1F)
    if 0xC4 <= kind <= 0xC6:
        width = 1 << (kind - 0xC4)
        return at + 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")
    assert 0x80 <= kind <= 0x9F, f"0x{kind:02x} is not known to this test"
    end = at + 1
    for _ in range((kind & 0x0F) * (2 if kind < 0x90 else 1)):
        end = end_of_value(data, end)
    return end


def gaze_values(topic: str, datum: dict[str, Any]) -> list[float]:
    """The 22 values from a plain dict."""
    nothing = [math.nan] * 3
    if topic == "gaze.3d.01.":
        centers, normals = datum["eye_centers_3d"], datum["gaze_normals_3d"]
    else:
        eye = topic[len("gaze.3d.")]
        centers, normals = {eye: datum["eye_center_3d"]}, {eye: datum["gaze_normal_3d"]}
    pupils = {pupil["id"]: pupil for pupil in datum["base_data"]}
    values = [datum["confidence"], *datum["norm_pos"], *datum["gaze_point_3d"]]
    for vectors in (centers, normals):
        for eye in ("0", "1"):
            values += vectors.get(eye, nothing)
    for key in ("diameter", "diameter_3d"):
        values += [pupils[eye][key] if eye in pupils else math.nan for eye in (0, 1)]
    return values


def pupil_values(topic: str, datum: dict[str, Any]) -> list[float]:
    values = [datum["confidence"], *datum["norm_pos"], datum["diameter"]]
    if topic.endswith("2d"):
        return [*values, *[math.nan] * 8]
    circle = datum["circle_3d"]
    return [*values, datum["diameter_3d"], datum["model_confidence"], *circle["center"], *circle["normal"]]


class TestTapeOfCapture:
    def test_every_gaze_and_pupil_message_decodes_and_nothing_else_does(self, tape: list[list[bytes]]) -> None:
        decoded: Counter[str] = Counter()
        unknown: Counter[str] = Counter()
        for frames in tape:
            try:
                decoded[pupil_core.decode_datum(frames).topic] += 1
            except pupil_core.UnknownTopic:
                unknown[frames[0].decode()] += 1
        by_payload = Counter(msgspec.msgpack.decode(payload)["topic"] for _, payload, *_ in tape)
        expected = {topic: n for topic, n in by_payload.items() if topic.startswith(("gaze.", "pupil."))}
        assert decoded == expected
        assert decoded.total() + unknown.total() == len(tape)
        assert min(decoded[topic] for topic in ("gaze.3d.01.", "pupil.0.2d", "pupil.1.3d")) > 100
        assert min(decoded[topic] for topic in ("gaze.3d.0.", "gaze.3d.1.")) > 0
        assert not any(topic.startswith(("gaze", "pupil")) for topic in unknown)

    def test_every_value_of_gaze_equals_that_of_the_plain_dict(self, tape: list[list[bytes]]) -> None:
        for frames in tape:
            topic = frames[0].decode()
            if topic.startswith("gaze."):
                plain = msgspec.msgpack.decode(frames[1])
                gaze = pupil_core.decode_datum(frames)
                assert isinstance(gaze, Gaze)
                assert the_same(pupil_core_channels.gaze_channels(gaze), gaze_values(topic, plain))
                assert gaze.timestamp_ns == round(Fraction(plain["timestamp"]) * 10**9)

    def test_every_value_of_pupils_equals_that_of_the_plain_dict(self, tape: list[list[bytes]]) -> None:
        for frames in tape:
            topic = frames[0].decode()
            if topic.startswith("pupil."):
                plain = msgspec.msgpack.decode(frames[1])
                pupil = pupil_core.decode_datum(frames)
                assert isinstance(pupil, Pupil)
                assert the_same(pupil_core_channels.pupil_channels(pupil), pupil_values(topic, plain))
                assert (pupil.eye_id, pupil.method) == (plain["id"], plain["method"][:2].replace("py", "3d"))
                assert pupil.timestamp_ns == round(Fraction(plain["timestamp"]) * 10**9)
