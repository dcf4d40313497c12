"""Several simulated phones in one process: each is one of its own, found by a minimal host."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.simulators.companion_options import CompanionOptions
from tests.simulators.ndsi_host import DEADLINE_S, Host, free_beacon_port, host, read_truth, simulator


@pytest.fixture
def beacon_port() -> int:
    return free_beacon_port()


@pytest.fixture
def lab(beacon_port: int) -> Iterator[Host]:
    with host(beacon_port) as opened:
        yield opened


def endpoints(attaches: dict[str, dict[str, Any]]) -> set[str]:
    return {attach[key] for attach in attaches.values() for key in attach if key.endswith("_endpoint")}


def test_devices_have_names_uuids_ports_clocks_paths_and_truths_of_their_own(
    lab: Host, beacon_port: int, tmp_path: Path
) -> None:
    path = tmp_path / "truth.jsonl"
    options = ("--devices", 3, "--name", "Phone", "--truth", path, "--scene-rate", 0, "--event-rate", 0)
    options += ("--offset-s", 5, "--offset-step-s", 100, "--drift-ppm", -10, "--drift-step-ppm", 25)
    with simulator("--beacon-port", beacon_port, *options) as device:
        ready = device.ready["devices"]
        assert device.ready["ready"]
        assert [each["name"] for each in ready] == ["Phone 1", "Phone 2", "Phone 3"]
        assert [each["number"] for each in ready] == [1, 2, 3]
        assert [each["clock"]["offset_ns"] for each in ready] == [5 * 10**9, 105 * 10**9, 205 * 10**9]
        assert [each["clock"]["drift_ppm"] for each in ready] == [-10, 15, 40]
        attaches = [lab.attached(each) for each in ready]
        assert [lab.names[uuid.UUID(each["zre_uuid"])] for each in ready] == ["Phone 1", "Phone 2", "Phone 3"]
        assert len({key for each in ready for key in each["sensor_uuids"].values()}) == 12
        # Each has one for the data of each of three sensors, one for notifications, one for commands.
        assert len(set().union(*map(endpoints, attaches))) == 15
        gazes = [lab.open(each["gaze"]) for each in attaches]
        lab.stream(gazes[1])
        lab.until(lambda: len(gazes[1].received) >= 20, "gaze of one")
        assert not gazes[0].received
        assert not gazes[2].received
        for gaze in (gazes[0], gazes[2]):
            lab.stream(gaze)
        lab.until(lambda: all(len(gaze.received) >= 50 for gaze in gazes), "gaze of all")
        for gaze in gazes:
            lab.stream(gaze, on=False)
        truths = [Path(each["truth"]) for each in ready]
        lab.until(
            lambda: all(
                len(gaze.received) == len(read_truth(truth, "gaze")) for gaze, truth in zip(gazes, truths, strict=True)
            ),
            "the last samples",
        )
    assert [truth.name for truth in truths] == ["truth-1.jsonl", "truth-2.jsonl", "truth-3.jsonl"]
    for gaze, truth in zip(gazes, truths, strict=True):
        assert [d.gaze for d in gaze.received] == [(r["device_ns"], r["payload"]) for r in read_truth(truth, "gaze")]
    phases_ns = {read_truth(truth, "gaze")[0]["host_ns"] % 8_333_333 for truth in truths}
    assert max(phases_ns) - min(phases_ns) > 500_000, "they sample in step"


def test_thirty_devices_all_stream_to_one_host(lab: Host, beacon_port: int) -> None:
    options = ("--devices", 30, "--scene-rate", 0, "--imu-rate", 0, "--gaze-rate", 50)
    with simulator("--beacon-port", beacon_port, *options) as device:
        gazes = [lab.open(lab.attached(each)["gaze"]) for each in device.ready["devices"]]
        for gaze in gazes:
            gaze.send(action="set_control_value", control_id="streaming", value=True)
        lab.until(lambda: all(len(gaze.received) >= 50 for gaze in gazes), "a second of gaze of each")
        device.process.terminate()
        lab.until(lambda: sum(kind == "EXIT" for kind, _ in lab.kinds) == 30, "thirty goodbyes")
        assert device.process.wait(DEADLINE_S) == 0
    for gaze in gazes:
        stamps = [d.gaze[0] for d in gaze.received]
        assert {round((later - each) / 20e6) for each, later in itertools.pairwise(stamps)} == {1}


def test_a_command_to_one_leaves_the_others_alone(lab: Host, beacon_port: int) -> None:
    options = ("--devices", 3, "--scene-rate", 0, "--control", "-")
    with simulator("--beacon-port", beacon_port, *options) as device:
        attaches = [lab.attached(each) for each in device.ready["devices"]]
        gazes = [lab.open(each["gaze"]) for each in attaches]
        for gaze in gazes:
            lab.stream(gaze)
        assert device.command("@2 sleep")["ok"]
        assert device.command("@3 restart")["ok"]
        lab.until(lambda: len(gazes[0].received) >= 60, "gaze")
        states = device.command("state")["devices"]
        assert [(state["asleep"], len(state["streaming"])) for state in states] == [(False, 1), (True, 1), (False, 0)]
        # All of them: the second cannot.
        refused = device.command("leave")
        assert (refused["ok"], refused["error"]) == (False, "it sleeps")
        assert [state["in_network"] for state in device.command("state")["devices"]] == [False, True, True]


def test_a_name_and_a_truth_may_say_where_the_number_goes(tmp_path: Path) -> None:
    options = CompanionOptions(name="Lab {n} left", devices=12, truth=tmp_path / "{n}.jsonl", sensor_uuid_seed="a")
    third = options.of_device(3)
    assert (third.name, third.truth, third.devices) == ("Lab 3 left", tmp_path / "3.jsonl", 1)
    assert third.sensor_uuid_seed == "a/3"
    alone = CompanionOptions(name="Lab", truth=tmp_path / "t.jsonl").of_device(1)
    assert (alone.name, alone.truth) == ("Lab", tmp_path / "t.jsonl")


def test_a_name_beyond_ascii_arrives_whole(lab: Host, beacon_port: int) -> None:
    name = "Brille Süd №3"
    with simulator("--beacon-port", beacon_port, "--name", name, "--scene-rate", 0) as device:
        lab.attached(device.ready)
        assert lab.names[uuid.UUID(device.ready["zre_uuid"])] == name


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--devices", "2", "--zre-uuid", str(uuid.UUID(int=1))), "--zre-uuid is for one device"),
        (("--name", "é" * 128), "a name has at most 255 bytes"),
        (("--scene-bytes", "20000"), "a picture of 1088 x 1080 pixels needs up to"),
        (("--scene-bytes", "90000", "--scene-format", "h264"), "only JPEGs can be given a size"),
        (("--control", "/nowhere/control.sock"), "No such file or directory"),
    ],
)
def test_options_that_cannot_be_are_one_clear_line(beacon_port: int, options: tuple[str, ...], sentence: str) -> None:
    command = [sys.executable, "-m", "bridge.simulators.companion", "--beacon-port", str(beacon_port), *options]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("Error: ")
    assert sentence in line


def test_foreign_datagrams_are_counted_once_for_all_and_reach_no_node(lab: Host, beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port, "--devices", 3, "--scene-rate", 0) as device:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as foreign:
            foreign.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for _ in range(5000):
                foreign.sendto(b"ZRE\x01nonsense", ("127.255.255.255", beacon_port))
        for each in device.ready["devices"]:
            lab.attached(each)
        device.process.terminate()
        assert device.process.wait(DEADLINE_S) == 0
