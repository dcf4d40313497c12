"""What is asked of Pupil Remote and forwarded through it, and what Capture says of it, byte for byte."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bridge.errors import MalformedMessage, Refused
from bridge.wire import pupil_core_notes as notes
from bridge.wire import pupil_remote
from bridge.wire.pupil_core import UnknownTopic
from bridge.wire.pupil_core_notes import Note, decode_note

encode = msgspec.msgpack.encode


class TestRequests:
    def test_a_recording_begins_with_or_without_a_name(self) -> None:
        assert pupil_remote.start_recording(None) == (b"R",)
        assert pupil_remote.start_recording("trial 7 ä") == ("R trial 7 ä".encode(),)

    @pytest.mark.parametrize(
        "session",
        ["", "/etc", "a/b", "..", ".", ".hidden", "a\\b", "a\nb", "a\0b", " a", "a ", "x" * 101, "a:b", "*", "\ud800"],
    )
    def test_a_name_that_is_no_folder_of_its_own_is_refused(self, session: str) -> None:
        with pytest.raises(Refused, match="session name") as caught:
            pupil_remote.start_recording(session)
        assert len(str(caught.value)) < 500

    def test_an_annotation_is_what_capture_itself_makes(self) -> None:
        topic, payload = pupil_remote.annotation("go", 5_156_250_000_000)
        assert topic == b"annotation"
        # 0x84: a map of four; 0xcb: a float64.
        assert payload == (
            b"\x84\xa5topic\xaaannotation\xa5label\xa2go\xa9timestamp\xcb\x40\xb4\x24\x40\x00\x00\x00\x00"
            b"\xa8duration\xcb\x00\x00\x00\x00\x00\x00\x00\x00"
        )

    @pytest.mark.parametrize("label", ["", "x" * 1001, "\ud800"])
    def test_a_label_that_is_empty_too_long_or_no_text_is_refused(self, label: str) -> None:
        with pytest.raises(Refused):
            pupil_remote.annotation(label, 0)

    def test_a_notification_names_its_subject_in_topic_and_payload(self) -> None:
        topic, payload = pupil_remote.set_frame_format("jpeg")
        assert topic == b"notify.frame_publishing.set_format"
        assert msgspec.msgpack.decode(payload) == {
            "topic": "notify.frame_publishing.set_format",
            "subject": "frame_publishing.set_format",
            "format": "jpeg",
        }
        topic, payload = pupil_remote.start_plugin("Annotation_Capture")
        assert topic == b"notify.start_plugin"
        assert msgspec.msgpack.decode(payload)["name"] == "Annotation_Capture"
        assert msgspec.msgpack.decode(payload)["args"] == {}

    @pytest.mark.parametrize("name", ["png", "", "JPEG", "h264", "jpeg "])
    def test_a_format_that_would_end_capture_cannot_be_asked_for(self, name: str) -> None:
        with pytest.raises(AssertionError, match="ends Pupil Capture"):
            pupil_remote.set_frame_format(name)


class TestNotes:
    def test_what_capture_says_is_read(self) -> None:
        started = {"subject": "recording.started", "rec_path": "/recordings/a/000/", "session_name": "a", "topic": "x"}
        failed = {"subject": "calibration.failed", "reason": "Not sufficient pupil data available.", "timestamp": 1.0}
        logged = {"name": "annotations", "msg": "go annotation (0.003 seconds ago)", "args": [], "levelno": 20}
        assert decode_note([b"notify.recording.started", encode(started)]) == Note(
            notes.RECORDING_STARTED, "/recordings/a/000/"
        )
        assert decode_note([b"notify.calibration.failed", encode(failed)]) == Note(
            notes.CALIBRATION_FAILED, "Not sufficient pupil data available."
        )
        assert decode_note([b"notify.calibration.stopped", b"\x80"]) == Note(notes.CALIBRATION_STOPPED, "")
        line = decode_note([b"logging.info", encode(logged)])
        assert notes.is_taken(line, "go")
        assert not notes.is_taken(line, "g")
        assert not notes.is_taken(Note(notes.RECORDING_STARTED, "go annotation"), "go")

    @pytest.mark.parametrize("reason", [7, None, ["a", {"b": 1}], 1.5, {"x": "y"}])
    def test_a_reason_may_be_whatever_an_exception_had_as_its_argument(self, reason: Any) -> None:
        assert isinstance(decode_note([b"notify.calibration.failed", encode({"reason": reason})]).text, str)

    def test_a_log_line_need_not_be_a_text(self) -> None:
        assert decode_note([b"logging.info", encode({"msg": {"a": 1}})]).text == ""

    def test_what_others_say_is_harmless_in_a_sentence(self) -> None:
        text = decode_note([b"notify.recording.started", encode({"rec_path": "/a\n\x1b[2J" + "x" * 9000})]).text
        assert text.startswith("/a[2Jxxx")
        assert text.isprintable()
        assert len(text) <= 300

    @pytest.mark.parametrize(
        "frames",
        [
            [b"notify.recording.started"],
            [b"notify.recording.started", b""],
            [b"notify.recording.started", b"\xc1"],
            [b"notify.recording.started", b"\x93\x01\x02\x03"],
            [b"notify.recording.started", b"\x81\xa1x" + b"\x91" * 60_000],
            [b"logging.info", encode({"msg": "x" * 70_000})],
        ],
    )
    def test_what_cannot_be_read_is_malformed(self, frames: list[bytes]) -> None:
        with pytest.raises(MalformedMessage):
            decode_note(frames)

    @pytest.mark.parametrize("topic", [b"", b"notify.recording", b"notify.calibration.setup.v2", b"logging.info.x"])
    def test_another_topic_is_unknown(self, topic: bytes) -> None:
        with pytest.raises(UnknownTopic):
            decode_note([topic, b"\x80"])
