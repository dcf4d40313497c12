"""NDSI v4 against bytes written by hand from its specification."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from bridge.errors import MalformedMessage
from bridge.wire import ndsi

UUID = b"b11f0bbe-a5d0-4c3c-b8a1-0d4f1e2a3b4c"

# 0x0102030405060708 ns; 544.0 is 0x44080000 and 540.5 is 0x44072000 as float32; all least significant byte first.
TIME = b"\x08\x07\x06\x05\x04\x03\x02\x01"
TIME_NS = 72_623_859_790_382_856
GAZE = [UUID, TIME, b"\x00\x00\x08\x44\x00\x20\x07\x44"]
ECHO = [UUID, TIME + b"\x08\x00\x00\x00\x00\x00\x00\x00", b"<<time>>"]

ATTACH = (
    b'{"subject":"attach","sensor_name":"Gaze","sensor_uuid":"b11f0bbe-a5d0-4c3c-b8a1-0d4f1e2a3b4c","sensor_type":"gaze",'
    b'"notify_endpoint":"tcp://192.168.1.7:41001","command_endpoint":"tcp://192.168.1.7:41002",'
    b'"data_endpoint":"tcp://192.168.1.7:41003"}'
)
UPDATE = (
    b'{"subject": "update", "control_id": "streaming", "seq": 4294967295, "changes": {"value": false, "dtype": "bool", '
    b'"min": null, "max": null, "res": null, "def": false, "caption": "Streaming", "readonly": false, "map": null}}'
)


def attach(**changes: Any) -> bytes:
    """The announcement above with some keys changed; ``...`` leaves a key out."""
    message = {**json.loads(ATTACH), **changes}
    return json.dumps({key: value for key, value in message.items() if value is not ...}).encode()


def update(**changes: Any) -> list[bytes]:
    message = {**json.loads(UPDATE), **changes}
    return [UUID, json.dumps({key: value for key, value in message.items() if value is not ...}).encode()]


class TestAnnouncements:
    def test_an_attach_gives_the_sensor_and_its_endpoints(self) -> None:
        assert ndsi.parse_announcement(ATTACH) == ndsi.Attach(
            sensor_name="Gaze",
            sensor_uuid=UUID.decode(),
            sensor_type="gaze",
            notify_endpoint="tcp://192.168.1.7:41001",
            command_endpoint="tcp://192.168.1.7:41002",
            data_endpoint="tcp://192.168.1.7:41003",
        )

    def test_a_detach_gives_the_uuid(self) -> None:
        assert ndsi.parse_announcement(b'{"subject":"detach","sensor_uuid":"a"}') == ndsi.Detach("a")

    def test_the_subject_may_come_last(self) -> None:
        assert ndsi.parse_announcement(b'{"sensor_uuid":"a","subject":"detach"}') == ndsi.Detach("a")

    @pytest.mark.parametrize("absent", [..., None, ""])
    def test_a_hardware_sensor_needs_no_data_endpoint(self, absent: object) -> None:
        message = ndsi.parse_announcement(attach(sensor_type="hardware", data_endpoint=absent))
        assert isinstance(message, ndsi.Attach)
        assert message.data_endpoint is None

    @pytest.mark.parametrize("absent", [..., None, ""])
    @pytest.mark.parametrize("sensor_type", ["gaze", "event", "video", "imu"])
    def test_a_data_sensor_needs_a_data_endpoint(self, sensor_type: str, absent: object) -> None:
        with pytest.raises(MalformedMessage, match="no data_endpoint"):
            ndsi.parse_announcement(attach(sensor_type=sensor_type, data_endpoint=absent))

    def test_unknown_keys_and_sensor_types_are_fine(self) -> None:
        message = ndsi.parse_announcement(attach(sensor_type="thermometer", firmware={"major": 3}))
        assert isinstance(message, ndsi.Attach)
        assert message.sensor_type == "thermometer"

    @pytest.mark.parametrize(
        "key", ["subject", "sensor_name", "sensor_uuid", "sensor_type", "notify_endpoint", "command_endpoint"]
    )
    @pytest.mark.parametrize("value", [..., None, 7, ["Gaze"]])
    def test_a_required_key_that_is_missing_or_no_string_is_malformed(self, key: str, value: object) -> None:
        with pytest.raises(MalformedMessage):
            ndsi.parse_announcement(attach(**{key: value}))

    @pytest.mark.parametrize("key", ["notify_endpoint", "command_endpoint", "data_endpoint"])
    @pytest.mark.parametrize(
        "endpoint",
        [
            "ipc:///tmp/socket",
            "inproc://x",
            "tcp://192.168.1.7",
            "tcp://192.168.1.7:",
            "tcp://:41001",
            "tcp://*:41001",
            "tcp://192.168.1.7:*",
            "tcp://192.168.1.7:0",
            "tcp://192.168.1.7:65536",
            "tcp://192.168.1.7:-1",
            "tcp://192.168.1.7:41001\n",
            "tcp://192.168.1.7:\u0664\u0661",
            "tcp://eth0;192.168.1.7:41001",
            "tcp://a b:41001",
            "tcp://[fe80::1]41001",
            "TCP://192.168.1.7:41001",
            " tcp://192.168.1.7:41001",
            "tcp://" + "a" * 300 + ":1",
        ],
    )
    def test_an_endpoint_that_is_not_tcp_host_port_is_malformed(self, key: str, endpoint: str) -> None:
        with pytest.raises(MalformedMessage):
            ndsi.parse_announcement(attach(**{key: endpoint}))

    @pytest.mark.parametrize(
        "endpoint",
        ["tcp://127.0.0.1:1", "tcp://pixel-6.lab.example:65535", "tcp://[::1]:5000", "tcp://[fe80::1%eth0]:5"],
    )
    def test_names_and_ip_addresses_are_endpoints(self, endpoint: str) -> None:
        message = ndsi.parse_announcement(attach(data_endpoint=endpoint))
        assert isinstance(message, ndsi.Attach)
        assert message.data_endpoint == endpoint

    @pytest.mark.parametrize(
        "frame",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            ATTACH[:-1],
            ATTACH + b"}",
            b"\xff" + ATTACH,
            b'{"subject":"update"}',
            b'{"subject":"detach"}',
            b'{"subject":"detach","sensor_uuid":""}',
            b'{"subject":"detach","sensor_uuid":"' + b"a" * 129 + b'"}',
            b'{"subject":"detach","sensor_uuid":"\xff"}',
            b'{"subject":"detach","sensor_uuid":"\\ud800a"}',
            b'{"subject":"detach","sensor_uuid":"a","x":"' + b"a" * 8192 + b'"}',
        ],
    )
    def test_what_is_no_announcement_is_malformed(self, frame: bytes) -> None:
        with pytest.raises(MalformedMessage):
            ndsi.parse_announcement(frame)


class TestNotifications:
    def test_an_update_gives_the_value_its_type_and_all_else_as_sent(self) -> None:
        assert ndsi.parse_notification([UUID, UPDATE]) == ndsi.ControlUpdate(
            sensor_uuid=UUID.decode(),
            control_id="streaming",
            seq=2**32 - 1,
            value=False,
            dtype="bool",
            changes={"min": None, "max": None, "res": None, "def": False, "caption": "Streaming", "readonly": False}
            | {"map": None},
        )

    def test_an_update_may_name_only_what_changed(self) -> None:
        message = ndsi.parse_notification(
            [b"a", b'{"subject":"update","control_id":"streaming","seq":0,"changes":{"value":true}}']
        )
        assert message == ndsi.ControlUpdate("a", "streaming", 0, True, None, {})

    @pytest.mark.parametrize("value", [True, 0, -3, 2.5, "", "Erhebung ä", None])
    def test_a_control_keeps_the_type_of_its_value(self, value: object) -> None:
        message = ndsi.parse_notification(update(changes={"value": value}))
        assert isinstance(message, ndsi.ControlUpdate)
        assert message.value == value
        assert type(message.value) is type(value)

    def test_a_remove_gives_the_control(self) -> None:
        message = ndsi.parse_notification([b"a", b'{"subject":"remove","control_id":"streaming","seq":7}'])
        assert message == ndsi.ControlRemove("a", "streaming", 7)

    @pytest.mark.parametrize(("control", "expected"), [(b'"streaming"', "streaming"), (b"null", None)])
    def test_an_error_gives_its_number_and_text(self, control: bytes, expected: str | None) -> None:
        payload = b'{"subject":"error","control_id":' + control + b',"seq":7,"error_no":-2,"error_str":"no space"}'
        assert ndsi.parse_notification([b"a", payload]) == ndsi.ControlError("a", expected, 7, -2, "no space")

    def test_further_frames_are_allowed_by_the_specification(self) -> None:
        assert isinstance(ndsi.parse_notification([UUID, UPDATE, b"more"]), ndsi.ControlUpdate)

    @pytest.mark.parametrize(
        "frames",
        [
            [],
            [UUID],
            [b"", UPDATE],
            [b"\xff", UPDATE],
            [b"a" * 129, UPDATE],
            [UUID, b""],
            [UUID, ATTACH],
            [UUID, UPDATE[:-1]],
            [UUID, UPDATE + b" 0"],
            update(seq=...),
            update(seq=-1),
            update(seq=2**32),
            update(seq="1"),
            update(seq=1.5),
            update(seq=True),
            update(control_id=...),
            update(control_id=""),
            update(control_id=None),
            update(changes=...),
            update(changes=None),
            update(changes=[]),
            update(changes={"value": [1]}),
            update(changes={"value": {"a": 1}}),
            update(changes={"dtype": 3}),
            update(subject="attach"),
            [UUID, b'{"subject":"update","control_id":"a","seq":1,"changes":{"value":NaN}}'],
            [UUID, b'{"subject":"update","control_id":"a","seq":1,"changes":{"value":1e999}}'],
            [UUID, b'{"subject":"error","control_id":null,"seq":7,"error_no":"2","error_str":"no space"}'],
            update(changes={"caption": "a" * 65536}),
        ],
    )
    def test_what_is_no_notification_is_malformed(self, frames: list[bytes]) -> None:
        with pytest.raises(MalformedMessage):
            ndsi.parse_notification(frames)


class TestGaze:
    def test_gaze_is_time_and_position(self) -> None:
        assert ndsi.decode_gaze(GAZE) == (TIME_NS, 544.0, 540.5)

    def test_further_frames_are_allowed_by_the_specification(self) -> None:
        assert ndsi.decode_gaze([*GAZE, b"more"]) == (TIME_NS, 544.0, 540.5)

    def test_a_position_outside_the_scene_is_a_position(self) -> None:
        # -0.5 is 0xbf000000, the largest float32 is 0x7f7fffff.
        _, x_px, y_px = ndsi.decode_gaze([UUID, TIME, b"\x00\x00\x00\xbf\xff\xff\x7f\x7f"])
        assert (x_px, y_px) == (-0.5, 3.4028234663852886e38)

    @pytest.mark.parametrize(
        "bad", [b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\x00\x00\xc0\x7f", b"\x01\x00\x80\x7f"]
    )
    def test_a_position_that_is_not_finite_is_malformed(self, bad: bytes) -> None:
        for body in (bad + GAZE[2][4:], GAZE[2][:4] + bad, bad + bad, bad + b"\x00\x00\x80\xff"):
            with pytest.raises(MalformedMessage, match="not finite"):
                ndsi.decode_gaze([UUID, TIME, body])

    def test_a_time_that_does_not_fit_into_int64_is_malformed(self) -> None:
        assert ndsi.decode_gaze([UUID, b"\xff" * 7 + b"\x7f", GAZE[2]])[0] == 2**63 - 1
        with pytest.raises(MalformedMessage, match="out of range"):
            ndsi.decode_gaze([UUID, b"\x00" * 7 + b"\x80", GAZE[2]])

    @pytest.mark.parametrize(
        "frames",
        [
            [],
            [UUID],
            GAZE[:2],
            [UUID, TIME[:-1], GAZE[2]],
            [UUID, TIME + b"\x00", GAZE[2]],
            [UUID, b"", GAZE[2]],
            [UUID, TIME, GAZE[2][:-1]],
            [UUID, TIME, GAZE[2] + b"\x00"],
            [UUID, TIME, GAZE[2] * 2],
            [UUID, TIME, b""],
        ],
    )
    def test_any_wrong_length_is_malformed(self, frames: list[bytes]) -> None:
        with pytest.raises(MalformedMessage, match="wrong lengths"):
            ndsi.decode_gaze(frames)


class TestEvents:
    def test_the_time_echo_is_read(self) -> None:
        assert ndsi.decode_event(ECHO) == (TIME_NS, ndsi.TIME_ECHO)

    def test_the_length_counts_bytes_and_not_characters(self) -> None:
        frames = [UUID, TIME + b"\x05\x00\x00\x00\x00\x00\x00\x00", b"\xc3\xa4\xe2\x82\xac"]
        assert ndsi.decode_event(frames) == (TIME_NS, "ä€")

    def test_an_event_without_a_name_is_read(self) -> None:
        assert ndsi.decode_event([UUID, TIME + b"\x00" * 8, b""]) == (TIME_NS, "")

    def test_a_time_before_the_epoch_is_read(self) -> None:
        assert ndsi.decode_event([UUID, b"\xfe" + b"\xff" * 7 + b"\x01" + b"\x00" * 7, b"a"]) == (-2, "a")

    def test_the_longest_event_is_read(self) -> None:
        # 1024 characters of 4 bytes each: 4096 = 0x1000.
        frames = [UUID, TIME + b"\x00\x10\x00\x00\x00\x00\x00\x00", b"\xf0\x9f\x91\x81" * 1024]
        assert ndsi.decode_event(frames) == (TIME_NS, "\N{EYE}" * 1024)

    @pytest.mark.parametrize(
        ("header_end", "body"),
        [
            (b"\x07\x00\x00\x00\x00\x00\x00\x00", b"<<time>>"),
            (b"\x09\x00\x00\x00\x00\x00\x00\x00", b"<<time>>"),
            (b"\xff\xff\xff\xff\x00\x00\x00\x00", b"<<time>>"),
            (b"\x00\x00\x00\x80\x00\x00\x00\x00", b""),
            (b"\x08\x00\x00\x00\x01\x00\x00\x00", b"<<time>>"),
            (b"\x08\x00\x00\x00\xff\xff\xff\xff", b"<<time>>"),
            (b"\x08\x00\x00\x00\x00\x00\x00", b"<<time>>"),
            (b"\x08\x00\x00\x00\x00\x00\x00\x00\x00", b"<<time>>"),
            (b"\x01\x00\x00\x00\x00\x00\x00\x00", b"\xff"),
            (b"\x02\x00\x00\x00\x00\x00\x00\x00", b"\xc0\x80"),
            (b"\x03\x00\x00\x00\x00\x00\x00\x00", b"\xed\xa0\x80"),
            (b"\x02\x00\x00\x00\x00\x00\x00\x00", b"\xe2\x82"),
            (b"\x01\x04\x00\x00\x00\x00\x00\x00", b"a" * 1025),
            (b"\x01\x10\x00\x00\x00\x00\x00\x00", b"a" * 4097),
        ],
    )
    def test_a_wrong_length_encoding_or_text_is_malformed(self, header_end: bytes, body: bytes) -> None:
        with pytest.raises(MalformedMessage):
            ndsi.decode_event([UUID, TIME + header_end, body])

    def test_a_body_that_is_too_large_is_not_even_decoded(self) -> None:
        with pytest.raises(MalformedMessage, match="4097 bytes, more than 4096"):
            ndsi.decode_event([UUID, TIME + b"\x01\x10\x00\x00\x00\x00\x00\x00", b"\xff" * 4097])

    @pytest.mark.parametrize("frames", [[], [UUID], ECHO[:2], [UUID, b"", b""], [UUID, TIME, b"<<time>>"]])
    def test_missing_frames_are_malformed(self, frames: list[bytes]) -> None:
        with pytest.raises(MalformedMessage, match="wrong lengths"):
            ndsi.decode_event(frames)


class TestCommands:
    def test_refresh_controls_is_written_as_specified(self) -> None:
        assert ndsi.encode_refresh_controls(UUID.decode()) == [UUID, b'{"action":"refresh_controls"}']

    @pytest.mark.parametrize(
        ("value", "written"),
        [(True, b"true"), (3, b"3"), (0.5, b"0.5"), ("Lauf \u00e4", b'"Lauf \xc3\xa4"'), (None, b"null")],
    )
    def test_set_control_is_written_as_specified(self, value: ndsi.ControlValue, written: bytes) -> None:
        assert ndsi.encode_set_control(UUID.decode(), "streaming", value) == [
            UUID,
            b'{"action":"set_control_value","control_id":"streaming","value":' + written + b"}",
        ]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_control_is_not_set_to_what_json_cannot_say(self, value: float) -> None:
        with pytest.raises(ValueError, match="gain cannot be set"):
            ndsi.encode_set_control("a", "gain", value)


class TestSentEvents:
    def test_an_event_for_the_app_to_stamp_has_a_null_timestamp(self) -> None:
        assert ndsi.encode_event("<<time>>", None) == b'{"name":"<<time>>","timestamp":null}'

    def test_an_event_with_a_time_carries_all_of_its_digits(self) -> None:
        written = ndsi.encode_event('say "ä"', 1_700_000_000_123_456_789)
        assert written == b'{"name":"say \\"\xc3\xa4\\"","timestamp":1700000000123456789}'
        assert json.loads(written) == {"name": 'say "ä"', "timestamp": 1_700_000_000_123_456_789}

    def test_1024_characters_are_allowed_and_not_one_more(self) -> None:
        assert len(ndsi.encode_event("a" * 1024, None)) == 1024 + len('{"name":"","timestamp":null}')
        with pytest.raises(ValueError, match="at most 1024 characters, this one has 1025"):
            ndsi.encode_event("a" * 1025, None)

    def test_a_lone_surrogate_is_refused_with_a_clear_sentence(self) -> None:
        with pytest.raises(ValueError, match="cannot be written as UTF-8"):
            ndsi.encode_event("\ud800", None)

    @pytest.mark.parametrize("timestamp_ns", [2**63, -(2**63) - 1])
    def test_a_time_beyond_64_bits_is_refused(self, timestamp_ns: int) -> None:
        with pytest.raises(ValueError, match="does not fit"):
            ndsi.encode_event("a", timestamp_ns)


@pytest.mark.parametrize("value", [ndsi.Detach("a"), ndsi.ControlRemove("a", "b", 1)])
def test_values_are_frozen(value: msgspec.Struct) -> None:
    with pytest.raises(AttributeError):
        value.sensor_uuid = "b"  # type: ignore[attr-defined]
