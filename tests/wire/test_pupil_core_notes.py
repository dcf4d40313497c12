"""Annotations, notifications and the log of Pupil Capture, whatever somebody has put into them.

What `decode_note` reads is tested in test_pupil_remote.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import MalformedMessage
from bridge.wire.pupil_core import UnknownTopic
from bridge.wire.pupil_core_notes import (
    JSON_MAX_BYTES,
    NOTE_MAX_BYTES,
    Annotation,
    LogLine,
    Notification,
    decode_annotation,
    decode_log,
    decode_notification,
    sets_clock,
)
from bridge.wire.pupil_remote import annotation as annotation_request
from tests.wire.test_hostile_input import QUIET, damaged

encode = msgspec.msgpack.encode

# From the tape of 30 s, but for the path and the numbers of process and thread.
LOG = [
    b"logging.debug",
    bytes.fromhex(
        "de0011a46e616d65d92e6e6574776f726b5f6170692e636f6e74726f6c6c65722e707570696c5f72656d6f74655f636f6e74726f6c6c"
        "6572a36d7367d920526571756573743a202776272c20526573706f6e73653a2027332e362e313427a46172677390a96c6576656c6e61"
        "6d65a54445425547a76c6576656c6e6f0aa866696c656e616d65ba707570696c5f72656d6f74655f636f6e74726f6c6c65722e7079a6"
        "6d6f64756c65b7707570696c5f72656d6f74655f636f6e74726f6c6c6572a86578635f696e666fc0a86578635f74657874c0aa737461"
        "636b5f696e666fc0a66c696e656e6fcd0131a866756e634e616d65a95f5f6f6e5f72656376a763726561746564cb41dac0591f17fd2a"
        "a56d73656373cb4077600000000000af72656c617469766543726561746564cb41145c97b7ec8000aa7468726561644e616d65b85468"
        "726561642d3120285f5f7468726561645f6c6f6f7029a5746f706963ad6c6f6767696e672e6465627567"
    ),
]


def annotation(**fields: Any) -> Annotation:
    return decode_annotation([b"annotation", encode({"label": "go", "timestamp": 5156.25} | fields)])


def notification(**fields: Any) -> Notification:
    return decode_notification([b"notify.a.b", encode({"subject": "a.b"} | fields)])


class TestAnnotation:
    def test_what_the_bridge_itself_sends_comes_back(self) -> None:
        assert decode_annotation(annotation_request("go", 5_156_250_000_000)) == Annotation(
            "go",
            5_156_250_000_000,
            0.0,
            '{"topic":"annotation","label":"go","timestamp":5156.25,"duration":0.0}',
        )

    @pytest.mark.parametrize("topic", [b"annotation", b"annotation.trial", b"annotations"])
    def test_every_topic_that_capture_takes_is_one(self, topic: bytes) -> None:
        assert decode_annotation([topic, encode({"label": "go", "timestamp": 1})]).timestamp_ns == 1_000_000_000

    def test_fields_of_the_sender_are_in_the_json_and_what_it_was_made_from_is_not(self) -> None:
        found = annotation(duration=1.5, trial=7, right=True, words=["ä", None], base_data=[1] * 999)
        assert found.duration_s == 1.5
        assert json.loads(found.json) == {
            "label": "go",
            "timestamp": 5156.25,
            "duration": 1.5,
            "trial": 7,
            "right": True,
            "words": ["ä", None],
        }

    @pytest.mark.parametrize("duration", [None, "long", math.nan, math.inf, [], True])
    def test_a_duration_that_is_no_number_is_none(self, duration: Any) -> None:
        assert annotation(duration=duration).duration_s == 0.0

    def test_a_label_may_be_a_number_and_fits_into_a_line(self) -> None:
        assert annotation(label=7).label == "7"
        assert annotation(label="a\nb\0c").label == "abc"
        assert annotation(label="x" * 5000).label == "x" * 1000

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"label": "go"},
            {"timestamp": 1.0},
            *({"label": bad, "timestamp": 1.0} for bad in (None, ["go"], b"go")),
            *({"label": "go", "timestamp": bad} for bad in (None, "1", True, math.nan, math.inf, 1e300)),
        ],
        ids=str,
    )
    def test_without_what_capture_needs_it_is_malformed(self, fields: dict[str, Any]) -> None:
        with pytest.raises(MalformedMessage):
            decode_annotation([b"annotation", encode(fields)])

    def test_what_json_has_no_word_for_is_told_in_one_line(self) -> None:
        found = annotation(
            a=b"\xff\n",
            b=math.nan,
            c=msgspec.msgpack.Ext(7, b"x"),
            d="line\nline\0",
            e={1: 2, b"k": 3},
            f=[[[[[[[1]]]]]]],
        )
        assert "\n" not in found.json
        assert "\0" not in found.json
        fields = json.loads(found.json)
        assert (fields["a"], fields["b"], fields["c"]) == ("<2 bytes>", None, "<Ext>")
        assert fields["d"] == "line\nline\0"
        assert fields["e"] == {"1": 2, "<1 bytes>": 3}
        assert fields["f"] == [[[[["<1 items>"]]]]]

    def test_long_fields_are_cut_and_say_so(self) -> None:
        fields = json.loads(annotation(a="x" * 2000, b=list(range(150)), c={str(n): n for n in range(150)}).json)
        assert fields["a"] == "x" * 1000 + "..."
        assert fields["b"] == [*range(100), "<50 more>"]
        assert fields["c"] == {str(n): n for n in range(100)} | {"...": 50}

    def test_what_is_too_much_for_a_line_is_its_label_and_size(self) -> None:
        found = annotation(**{f"f{n}": "ä" * 990 for n in range(30)})
        assert json.loads(found.json).keys() == {"label", "bytes"}
        with pytest.raises(MalformedMessage, match="too much"):
            annotation(a=bytes(NOTE_MAX_BYTES))


class TestNotification:
    @pytest.mark.parametrize(
        ("topic", "fields", "timestamp_ns"),
        [
            (b"notify.calibration.failed", {"reason": "no", "timestamp": 5156.25, "record": True}, 5_156_250_000_000),
            (b"notify.recording.started", {"rec_path": "/a", "start_time_synced": 2.5}, 2_500_000_000),
            (b"notify.recording.stopped", {"rec_path": "/a"}, None),
            (b"notify.x", {"timestamp": 7}, 7_000_000_000),
            # Two stamps: what it calls the timestamp is when it happened.
            (b"notify.x", {"timestamp": 7, "start_time_synced": 2.5}, 7_000_000_000),
            # By Pupil Groups, with the time of another Capture's clock.
            (b"notify.x", {"timestamp": 7, "groups.peer": {"arrival_timestamp": 9.5}}, 9_500_000_000),
            (b"notify.x", {"timestamp": 7, "groups.peer": {}}, None),
            *((b"notify.x", {"timestamp": bad}, None) for bad in (None, "1", True, math.nan, math.inf, 1e300, [1.0])),
        ],
        ids=str,
    )
    def test_its_time_is_what_capture_says_or_none(
        self, topic: bytes, fields: dict[str, Any], timestamp_ns: int | None
    ) -> None:
        found = decode_notification([topic, encode(fields)])
        assert (found.subject, found.timestamp_ns) == (topic[7:].decode(), timestamp_ns)
        told = json.loads(found.json)
        assert told.pop("stamped") == ("arrival" if timestamp_ns is None else "capture")
        assert told.keys() == fields.keys()

    def test_how_it_is_stamped_cannot_be_feigned(self) -> None:
        assert json.loads(notification(stamped="capture").json)["stamped"] == "arrival"

    def test_what_is_larger_than_64_kib_is_not_decoded(self) -> None:
        # The first is no msgpack, the second what Capture sends after a calibration.
        for payload in (b"\xc1" * (NOTE_MAX_BYTES + 1), encode({"timestamp": 1.0, "calib_data": [0.5] * 190_000})):
            found = decode_notification([b"notify.calibration.setup.v2", payload])
            assert (found.subject, found.timestamp_ns) == ("calibration.setup.v2", None)
            assert json.loads(found.json) == {
                "subject": "calibration.setup.v2",
                "bytes": len(payload),
                "stamped": "arrival",
            }
        fits = encode({"a": bytes(NOTE_MAX_BYTES - 6)})
        assert len(fits) == NOTE_MAX_BYTES
        assert json.loads(decode_notification([b"notify.a", fits]).json)["a"] == f"<{NOTE_MAX_BYTES - 6} bytes>"

    @pytest.mark.parametrize(
        "payload", [b"", b"\x90", b"\xc0", b"\x01", b"\xa1a", b"\xc1", b"\x81\xa1a", b"\x81\x80\x01"]
    )
    def test_a_payload_that_is_no_map_is_malformed(self, payload: bytes) -> None:
        with pytest.raises(MalformedMessage):
            decode_notification([b"notify.a", payload])

    @pytest.mark.parametrize("frames", [[b"notify.", b"\x80"], [b"notify.\0\n", b"\x80"], [b"notify.a"]])
    def test_it_has_a_subject_and_a_payload(self, frames: list[bytes]) -> None:
        with pytest.raises(MalformedMessage) as caught:
            decode_notification(frames)
        assert not isinstance(caught.value, UnknownTopic)

    def test_a_subject_is_printable_and_bounded(self) -> None:
        assert decode_notification([b"notify.a\nb\xff", b"\x80"]).subject == "ab\N{REPLACEMENT CHARACTER}"
        assert decode_notification([b"notify." + b"x" * 9999, b"\x80"]).subject == "x" * 200


class TestLog:
    def test_captures_bytes_are_a_line_of_its_log(self) -> None:
        assert decode_log(LOG) == LogLine(
            "debug", "network_api.controller.pupil_remote_controller", "Request: 'v', Response: '3.6.14'"
        )

    @pytest.mark.parametrize(
        ("msg", "args", "text"),
        [
            ("plain 5 %", None, "plain 5 %"),
            ("plain %s", [], "plain %s"),
            ("%s and %d, %5.2f %%", ["a", 7, 1.5], "a and 7, 1.5 %"),
            ("%(a)s %(b)s", {"a": 1}, "1 ?"),
            ("%s %s", ["a"], "a ?"),
            ("%s", [["x", b"y"]], "['x', '<1 bytes>']"),
            # As Python formats it this is 1 GB.
            ("%999999999d", [1], "%999999999d"),
            ("%*d", [1], "1"),
            (["no", "text"], None, "['no', 'text']"),
            (7, None, "7"),
            (None, None, "None"),
            ("Traceback\n  File\tx\0", None, "Traceback File x"),
            ("x" * 5000, None, "x" * 1000),
            ("%s" * 99, ["y" * 500] * 99, ("y" * 300 + "...") * 3 + "y" * 91),
        ],
    )
    def test_arguments_are_filled_in_and_the_text_is_one_line(self, msg: Any, args: Any, text: str) -> None:
        assert decode_log([b"logging.info", encode({"name": "n", "msg": msg, "args": args})]).text == text

    def test_a_level_may_be_any_and_a_field_be_absent(self) -> None:
        assert decode_log([b"logging.level 5\n", b"\x80"]) == LogLine("level 5", "", "")

    @pytest.mark.parametrize("frames", [[b"logging.info"], [b"logging.info", b"\x90"], [b"logging.info", bytes(65537)]])
    def test_what_is_no_record_is_malformed(self, frames: list[bytes]) -> None:
        with pytest.raises(MalformedMessage):
            decode_log(frames)


class TestSetsClock:
    # As Capture's source and that of its LSL plugin write them.
    @pytest.mark.parametrize(
        "text",
        [
            "Request: 'T 12.3', Response: 'Timesync successful.'",
            "Request: 'T -4900', Response: 'Timesync successful.'",
            "Pupil Sync has adjusted the clock by -12.5s",
            "Time adjusted by -12500.0ms.",
            "Time slewed by: 0.5ms",
            "Synchronized time epoch to LSL clock",
        ],
    )
    def test_every_line_that_says_so_does(self, text: str) -> None:
        assert sets_clock(decode_log([b"logging.debug", encode({"name": "x", "msg": text})]))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "Request: 't', Response: '5142.832144299'",
            "Request: 'v', Response: '3.6.14'",
            "Request: 'R T', Response: 'OK'",
            "Request: 'Tx', Response: ''' cannot be converted to float.'",
            "Request to change timebase during recording ignored. Turn off recording first.",
            "No clock adjustent.",
            "Time before synchronization: 5.0",
            "Time after synchronization: 5.0",
            "T 5 annotation (0.003 seconds ago)",
            "a: Request: 'T 1', Response: 'Timesync successful.'",
        ],
    )
    def test_lines_that_are_like_it_do_not(self, text: str) -> None:
        assert not sets_clock(LogLine("info", "x", text))


VALID: dict[Callable[[Any], Any], list[bytes]] = {
    decode_annotation: [b"annotation", encode({"label": "go", "timestamp": 1.5, "d": {"a": [1, b"x", None, 1.5]}})],
    decode_notification: [b"notify.a", encode({"subject": "a", "timestamp": 1.5, "groups.peer": {"x": [1]}})],
    decode_log: [b"logging.info", encode({"name": "a", "msg": "a %s %5d", "args": ["x", 7]})],
}


def is_sound(value: Any) -> bool:
    """What the decoders promise of what they give."""
    if isinstance(value, LogLine):
        return all(text.isprintable() and len(text) <= 1000 for text in (value.level, value.name, value.text))
    text = value.label if isinstance(value, Annotation) else value.subject
    told = json.loads(value.json)
    line = value.json.isprintable() or all(not 0 <= ord(letter) < 32 for letter in value.json)
    bounded = len(value.json.encode()) <= JSON_MAX_BYTES
    return text.isprintable() and len(text) <= 1000 and isinstance(told, dict) and line and bounded


@pytest.mark.parametrize("decode", list(VALID))
@pytest.mark.parametrize(
    "frames", [[], [b""], [b"gaze.3d.01.", b"\x80"], [b"notification.a", b"\x80"], [b"log", b"\x80"]]
)
def test_other_topics_are_unknown(decode: Callable[[Any], Any], frames: list[bytes]) -> None:
    with pytest.raises(UnknownTopic):
        decode(frames)


@pytest.mark.parametrize("decode", list(VALID))
@given(data=st.data())
@settings(QUIET, max_examples=600)
def test_damaged_they_are_sound_or_malformed(decode: Callable[[Any], Any], data: Any) -> None:
    topic, payload = VALID[decode]
    frames = [topic + data.draw(st.binary(max_size=9)), data.draw(damaged(payload) | st.binary(max_size=80))]
    value, complaint = None, ""
    try:
        value = decode(frames)
    except MalformedMessage as error:
        complaint = str(error)
    assert len(complaint) < 1000
    assert complaint or is_sound(value)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(-9, 9) | st.binary(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(fields=st.dictionaries(st.text(max_size=9), _VALUES, max_size=5))
@settings(QUIET, max_examples=300)
def test_whatever_fields_they_have_they_are_sound(fields: dict[str, Any]) -> None:
    needed = {"label": "go", "timestamp": 1.5}
    assert is_sound(decode_annotation([b"annotation", encode(fields | needed)]))
    assert is_sound(decode_notification([b"notify.a", encode(fields)]))
    assert is_sound(decode_log([b"logging.info", encode(fields)]))


@pytest.mark.parametrize("decode", list(VALID))
@pytest.mark.parametrize("depth", [100, 1_000, 30_000])
def test_deep_nesting_is_sound_or_malformed(decode: Callable[[Any], Any], depth: int) -> None:
    for nested in (b"\x91" * depth + b"\xc0", b"\x81\xa1a" * depth + b"\xc0", b"\x81" + b"\x91" * depth + b"\x01\x02"):
        for key in (b"\xa5label", b"\xa3msg", b"\xa4args", b"\xa9timestamp"):
            value, complaint = None, ""
            try:
                value = decode([VALID[decode][0], b"\x81" + key + nested])
            except MalformedMessage as error:
                complaint = str(error)
            assert len(complaint) < 1000
            assert complaint or is_sound(value)
