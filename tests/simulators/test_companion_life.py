"""What happens to a simulated phone while it is used, by command: seen by a minimal host and in the truth."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.ndsi_host import DEADLINE_S, Host, Sensor, free_beacon_port, host, read_truth, simulator

COMMANDED = ("--control", "-", "--scene-rate", 0, "--event-rate", 0)


@pytest.fixture
def beacon_port() -> int:
    return free_beacon_port()


@pytest.fixture
def lab(beacon_port: int) -> Iterator[Host]:
    with host(beacon_port) as opened:
        yield opened


def streaming(lab: Host, attach: dict[str, Any]) -> Sensor:
    sensor = lab.open(attach)
    lab.stream(sensor)
    more(lab, sensor)
    return sensor


def more(lab: Host, sensor: Sensor, count: int = 20) -> None:
    """Data come."""
    before = len(sensor.received)
    lab.until(lambda: len(sensor.received) >= before + count, "data")


def clock_ns(clock: dict[str, Any], host_ns: int) -> int:
    """Where there is no drift."""
    return clock["utc_at_origin_ns"] + clock["offset_ns"] + host_ns - clock["origin_ns"]


def clocks(path: Path) -> list[dict[str, Any]]:
    """The clocks that the app has taken, each with the row's times."""
    return [{**row, **json.loads(row["payload"])} for row in read_truth(path, "clock")]


# --- asleep -----------------------------------------------------------------------------------------------------------


def test_an_asleep_phone_sends_nothing_answers_nothing_and_goes_on_when_it_wakes(
    lab: Host, beacon_port: int, tmp_path: Path
) -> None:
    path = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--truth", path, *COMMANDED) as device:
        attaches = lab.attached(device.ready)
        event, gaze = lab.open(attaches["event"]), streaming(lab, attaches["gaze"])
        lab.stream(event)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as beacons:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                beacons.setsockopt(socket.SOL_SOCKET, option, 1)
            assert device.done("sleep")["asleep"]
            fell_ns = time.monotonic_ns()
            for line in (
                "sleep",
                "rename Night",
                "leave",
                "join",
                "detach gaze",
                "attach gaze",
                "event x",
                "record on",
            ):
                assert device.command(line)["error"] == "it sleeps"
            beacons.bind(("127.255.255.255", beacon_port))
            lab.whisper(device.ready, {"name": "in the night", "timestamp": None})
            gaze.send(action="refresh_controls")
            told = len(gaze.notifications)
            lab.until(lambda: time.monotonic_ns() - fell_ns > 2_200_000_000, "two beacons' time")
            assert not event.received
            assert len(gaze.notifications) == told
            woke_ns = time.monotonic_ns()
            assert not device.done("wake")["asleep"]
            beacons.setblocking(False)
            heard = set()
            while len(datagram := _receive(beacons)) > 0:
                heard.add(uuid.UUID(bytes=datagram[4:20]))
        # One more may have come while it woke up; the host's own were there all the time.
        assert lab.peer.identity in heard
        more(lab, gaze)
        lab.until(lambda: event.received, "the event of the night")
        lab.until(lambda: len(gaze.notifications) > told, "the answer")
    instants = [row["host_ns"] for row in read_truth(path, "gaze")]
    assert not [each for each in instants if fell_ns < each < woke_ns]
    assert max(later - each for each, later in itertools.pairwise(instants)) >= woke_ns - fell_ns
    (night,) = [row for row in read_truth(path, "event") if row["payload"] == "in the night"]
    assert night["host_ns"] >= woke_ns
    assert lab.kinds.count(("EXIT", uuid.UUID(device.ready["zre_uuid"]))) == 0


def _receive(beacons: socket.socket) -> bytes:
    try:
        return beacons.recv(100)
    except BlockingIOError:
        return b""


def test_no_beacon_leaves_an_asleep_phone(beacon_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as beacons:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            beacons.setsockopt(socket.SOL_SOCKET, option, 1)
        beacons.bind(("127.255.255.255", beacon_port))
        beacons.settimeout(DEADLINE_S)
        with simulator("--beacon-port", beacon_port, "--devices", 2, *COMMANDED) as device:
            first, second = (uuid.UUID(each["zre_uuid"]).bytes for each in device.ready["devices"])
            heard = [beacons.recv(100)[4:20] for _ in range(2)]
            assert device.command("@1 sleep")["ok"]
            while heard.count(second) < 4:
                heard.append(beacons.recv(100)[4:20])
            assert heard.count(first) <= 2  # of which one may have been under way
            assert device.command("@1 wake")["ok"]
            while heard[-1] != first:
                heard.append(beacons.recv(100)[4:20])


def test_a_nap_ends_by_itself(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--truth", path, *COMMANDED) as device:
        gaze = streaming(lab, lab.attached(device.ready)["gaze"])
        device.done("sleep 0.5")
        more(lab, gaze, 60)
        assert not device.done("state")["asleep"]
    instants = [row["host_ns"] for row in read_truth(path, "gaze")]
    assert 0.45e9 < max(later - each for each, later in itertools.pairwise(instants)) < 5e9


def test_an_asleep_phone_ends_at_once_when_it_is_told_to(lab: Host, beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port, *COMMANDED) as device:
        lab.attached(device.ready)
        device.done("sleep")
        device.process.send_signal(signal.SIGTERM)
        assert device.process.wait(DEADLINE_S) == 0


# --- restarts and goodbyes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "same_node", "same_sensors"),
    [("", False, False), ("same-sensors", False, True), ("same-uuid", True, True), ("goodbye", False, False)],
)
def test_a_restarted_app_has_other_ports_and_another_clock_and_streams_nothing(
    lab: Host, beacon_port: int, tmp_path: Path, flags: str, same_node: bool, same_sensors: bool
) -> None:
    path = tmp_path / "truth.jsonl"
    options = ("--restart-step-s", 5, "--offset-s", 1000)
    with simulator("--beacon-port", beacon_port, "--truth", path, *options, *COMMANDED) as device:
        before = lab.attached(device.ready)
        gaze = streaming(lab, before["gaze"])
        device.done("record on")
        restarted_ns = time.monotonic_ns()
        messages = len(lab.messages)
        state = device.done(f"restart {flags}")
        assert (state["zre_uuid"] == device.ready["zre_uuid"]) is same_node
        assert (state["sensor_uuids"] == device.ready["sensor_uuids"]) is same_sensors
        assert (state["streaming"], state["recording"]) == ([], False)
        lab.until(lambda: len(lab.messages) >= messages + 4, "new attaches")
        if flags == "goodbye":
            lab.until(lambda: ("EXIT", uuid.UUID(device.ready["zre_uuid"])) in lab.kinds, "the goodbye")
            assert lab.detached(device.ready) == set(device.ready["sensor_uuids"].values())
        else:
            assert not lab.detached(device.ready)
        after = lab.attached(state)
        assert after["gaze"]["data_endpoint"] != before["gaze"]["data_endpoint"]
        assert lab.names[uuid.UUID(state["zre_uuid"])] == device.ready["name"]
        count = len(gaze.received)
        again = streaming(lab, after["gaze"])
        assert len(gaze.received) == count
        lab.stream(again, on=False)  # so that the truth of all that came is written; the clock steps once more
    clock = clocks(path)[0]
    assert {key: clock[key] for key in state["clock"]} == state["clock"]
    rows = {row["device_ns"]: row for row in read_truth(path, "gaze")}
    for datum in again.received:
        instant_ns = rows[datum.gaze[0]]["host_ns"]
        assert instant_ns > restarted_ns
        assert datum.gaze[0] == clock_ns(clock, instant_ns) == clock_ns(device.ready["clock"], instant_ns) + 5 * 10**9


def test_a_renamed_phone_is_another_node_with_the_same_sensors_and_streams_on(lab: Host, beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port, "--name", "Phone 7", *COMMANDED) as device:
        gaze = streaming(lab, lab.attached(device.ready)["gaze"])
        state = device.done("rename Versuch 3 é")
        assert state["name"] == "Versuch 3 é"
        assert state["zre_uuid"] != device.ready["zre_uuid"]
        lab.until(lambda: ("EXIT", uuid.UUID(device.ready["zre_uuid"])) in lab.kinds, "the old one's goodbye")
        assert state["sensor_uuids"] == device.ready["sensor_uuids"]
        assert lab.attached(state)["gaze"]["data_endpoint"] == gaze.attach["data_endpoint"]
        assert lab.names[uuid.UUID(state["zre_uuid"])] == "Versuch 3 é"
        more(lab, gaze)


@pytest.mark.parametrize("flag", ["", "new-uuid"])
def test_a_phone_that_leaves_says_goodbye_and_comes_back_when_it_joins(lab: Host, beacon_port: int, flag: str) -> None:
    with simulator("--beacon-port", beacon_port, *COMMANDED) as device:
        gaze = streaming(lab, lab.attached(device.ready)["gaze"])
        state = device.done("leave")
        assert (state["in_network"], state["streaming"]) == (False, [])
        lab.until(lambda: ("EXIT", uuid.UUID(device.ready["zre_uuid"])) in lab.kinds, "the goodbye")
        assert lab.detached(device.ready) == set(device.ready["sensor_uuids"].values())
        assert device.command("leave") == {"ok": False, "command": "leave", "error": "it has left already"}
        messages = len(lab.messages)
        state = device.done(f"join {flag}")
        assert (state["zre_uuid"] == device.ready["zre_uuid"]) is (flag == "")
        lab.until(lambda: len(lab.messages) >= messages + 4, "the attaches")
        lab.attached(state)
        lab.stream(gaze)
        more(lab, gaze)


# --- sensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["", "new-uuid"])
def test_a_sensor_that_is_unplugged_detaches_and_attaches_when_it_is_plugged_in(
    lab: Host, beacon_port: int, flag: str
) -> None:
    with simulator("--beacon-port", beacon_port, *COMMANDED) as device:
        attaches = lab.attached(device.ready)
        gaze, imu = streaming(lab, attaches["gaze"]), streaming(lab, attaches["imu"])
        state = device.done("detach gaze")
        assert "gaze" not in state["sensor_uuids"]
        assert state["streaming"] == ["imu"]
        lab.until(lambda: lab.detached(device.ready) == {device.ready["sensor_uuids"]["gaze"]}, "the detach")
        lab.until(lambda: gaze.controls["streaming"]["value"] is False, "it says that it does not stream")
        told, messages = len(gaze.notifications), len(lab.messages)
        gaze.send(action="set_control_value", control_id="streaming", value=True)
        more(lab, imu)
        assert len(gaze.notifications) == told, "who is not there does not answer"
        state = device.done(f"attach gaze {flag}")
        assert (state["sensor_uuids"] == device.ready["sensor_uuids"]) is (flag == "")
        lab.until(lambda: len(lab.messages) == messages + 1, "the attach")
        streaming(lab, lab.attached(state)["gaze"])


def test_unplugged_glasses_take_all_their_sensors_along_and_who_joins_meanwhile_sees_the_others(
    lab: Host, beacon_port: int
) -> None:
    arguments = ("--control", "-", "--eyes-rate", 30)
    with simulator("--beacon-port", beacon_port, *arguments) as device:
        assert set(lab.attached(device.ready)) == {"gaze", "event", "imu", "scene", "eye0", "eye1", "hardware"}
        left = device.done("detach glasses")
        assert set(left["sensor_uuids"]) == {"event", "hardware"}
        with host(beacon_port) as late:
            assert set(late.attached(left)) == {"event", "hardware"}
            assert device.done("attach glasses")["sensor_uuids"] == device.ready["sensor_uuids"]
            assert len(late.attached(device.ready)) == 7


def test_other_sensors_attach_and_have_no_data(lab: Host, beacon_port: int) -> None:
    options = ("--other-sensor", "led", "--other-sensor", "location")
    with simulator("--beacon-port", beacon_port, *options) as device:
        attaches = lab.attached(device.ready)
        assert {"led", "location"} <= {attach["sensor_type"] for attach in attaches.values()}
        assert "data_endpoint" not in attaches["led"]


# --- recording and events ---------------------------------------------------------------------------------------------


def test_a_recording_is_refused_while_that_is_asked_for(lab: Host, beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port, *COMMANDED) as device:
        hardware = lab.open(lab.attached(device.ready)["hardware"])
        assert device.done("refuse-recording Not ready: no storage left")["refuses_recording"]
        hardware.send(action="set_control_value", control_id="local_capture", value=True)
        lab.until(lambda: hardware.said("error", "local_capture"), "the refusal")
        assert hardware.said("error", "local_capture")[0]["error_str"] == "Not ready: no storage left"
        assert not device.done("state")["recording"]
        device.done("refuse-recording off")
        hardware.send(action="set_control_value", control_id="local_capture", value=True)
        lab.until(lambda: hardware.controls["local_capture"]["value"] is True, "it records")
        assert device.done("state")["recording"]


def test_a_recording_that_is_started_on_the_phone_is_told_to_hosts(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--truth", path, *COMMANDED) as device:
        hardware = lab.open(lab.attached(device.ready)["hardware"])
        for value, word in ((True, "on"), (False, "off")):
            assert device.done(f"record {word}")["recording"] is value
            lab.until(lambda value=value: hardware.controls["local_capture"]["value"] is value, "the update")
    assert [json.loads(row["payload"]) for row in read_truth(path, "control")] == [
        {"local_capture": True},
        {"local_capture": False},
    ]


def test_an_event_that_is_made_on_the_phone_has_its_instant(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--truth", path, "--offset-s", -9, *COMMANDED) as device:
        event = lab.open(lab.attached(device.ready)["event"])
        assert device.command("event too early")["error"] == "its event sensor does not stream"
        lab.stream(event)
        began_ns = time.monotonic_ns()
        device.done("event Stein ✂  zwei")
        ended_ns = time.monotonic_ns()
        lab.until(lambda: event.received, "the event")
    stamp_ns, text = event.received[0].event
    assert text == "Stein ✂  zwei"
    clock = device.ready["clock"]
    assert clock_ns(clock, began_ns) <= stamp_ns <= clock_ns(clock, ended_ns)
    assert [(row["device_ns"], row["payload"]) for row in read_truth(path, "event")] == [(stamp_ns, text)]


# --- the clock --------------------------------------------------------------------------------------------------------


def test_a_step_of_the_clock_is_in_the_next_samples_and_in_the_truth(
    lab: Host, beacon_port: int, tmp_path: Path
) -> None:
    path = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--truth", path, *COMMANDED) as device:
        gaze = streaming(lab, lab.attached(device.ready)["gaze"])
        state = device.done("clock-step -2.5")
        more(lab, gaze)
        assert state["clock"]["offset_ns"] == -2_500_000_000
    (step,) = clocks(path)
    assert step["offset_ns"] == -2_500_000_000
    steps = {
        (row["host_ns"] > step["host_ns"], row["device_ns"] - clock_ns(device.ready["clock"], row["host_ns"]))
        for row in read_truth(path, "gaze")
        if abs(row["host_ns"] - step["host_ns"]) > 10_000_000  # a sample of before may have been due
    }
    assert steps == {(False, 0), (True, -2_500_000_000)}


def test_a_clock_that_follows_streaming_is_taken_from_utc_when_the_first_sensor_begins(
    lab: Host, beacon_port: int, tmp_path: Path
) -> None:
    path = tmp_path / "truth.jsonl"
    options = ("--clock-follows-streaming", "--drift-ppm", 400, "--offset-s", 50, "--restart-step-s", 2)
    with simulator("--beacon-port", beacon_port, "--truth", path, *options, *COMMANDED) as device:
        attaches = lab.attached(device.ready)
        gaze, imu = streaming(lab, attaches["gaze"]), streaming(lab, attaches["imu"])
        lab.stream(gaze, on=False)
        lab.stream(gaze)  # imu has streamed on: the same clock
        more(lab, gaze)
        assert len(clocks(path)) == 1
        lab.stream(gaze, on=False)
        lab.stream(imu, on=False)
        lab.stream(gaze)
        more(lab, gaze)
    first, second = clocks(path)
    phone = {**device.ready["clock"], "drift_ppm": 0}
    for number, clock in enumerate((first, second)):
        assert clock["origin_ns"] == clock["host_ns"]
        assert clock["device_ns"] == clock_ns(phone, clock["host_ns"]) + 2_000_000_000 * number
    # Until then it has gained on UTC, and the new one begins without that.
    last = max((row for row in read_truth(path, "imu")), key=lambda row: row["host_ns"])
    assert last["device_ns"] > clock_ns(phone, last["host_ns"])
    for row in read_truth(path, "gaze"):
        clock = first if row["host_ns"] < second["host_ns"] else second
        elapsed_ns = row["host_ns"] - clock["origin_ns"]
        assert row["device_ns"] == clock["device_ns"] + elapsed_ns + elapsed_ns * 400 // 10**6


# --- the channel ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_answered_with_a_sentence(beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port, *COMMANDED) as device:
        for line, part in (
            ("fly", "'fly' is not one of: state, sleep"),
            ("@2 state", "@2 is no device: 1 to 1"),
            ("@ state", "is no device"),
            ("wake", "does not sleep"),
            ("join", "has not left"),
            ("sleep soon", "no number of seconds"),
            ("sleep -1", "less than nothing"),
            ("clock-step nan", "no number of seconds"),
            ("clock-step", "no number of seconds"),
            ("restart again", "again is not one of: same-uuid"),
            ("rename", "a text is missing"),
            ("rename " + "é" * 128, "at most 255 bytes"),
            ("record perhaps", "record on, or record off"),
            ("detach nose", "it has no sensor nose"),
            ("detach scene", "no such sensor now"),
            ("attach gaze", "they are there"),
            ("event", "a text is missing"),
            ("\x00\xff", "is not one of"),
        ):
            answer = device.command(line)
            assert answer["ok"] is False
            assert part in answer["error"], line
        assert device.done("state")["in_network"]


def test_a_unix_socket_takes_commands_of_several_in_pieces(beacon_port: int, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with simulator("--beacon-port", beacon_port, "--control", path, "--devices", 3, "--scene-rate", 0) as device:
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
            for each in (one, other):
                each.settimeout(DEADLINE_S)
                each.connect(str(path))
            one.sendall(b"@2 rename Ann")
            other.sendall(b"@3,1 state\n")
            assert [d["number"] for d in json.loads(_answer(other))["devices"]] == [1, 3]
            one.sendall(b" Two\n\nstate\n")
            assert json.loads(_answer(one))["devices"][0]["name"] == "Ann Two"
            names = [d["name"] for d in json.loads(_answer(one))["devices"]]
            assert names == ["Simulated Companion 1", "Ann Two", "Simulated Companion 3"]
            other.sendall(b"x" * 70_000)
            assert other.recv(100) == b"", "who sends no lines is let go"
            one.sendall(struct.pack("B", 255) + b"\nstate\n")
            assert not json.loads(_answer(one))["ok"]
            assert json.loads(_answer(one))["ok"]
        device.process.terminate()
        assert device.process.wait(DEADLINE_S) == 0
    assert not path.exists()


def _answer(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(1)
        assert piece
        line += piece
    return line
