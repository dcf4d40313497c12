"""Lives of a Pupil Core: several Captures, one on another port, Pupil Service, Time Sync, large notifications."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

import pytest

from tests.system.harness import Bridge, bridge, free_port, lab_recorder, simulator, wait_for_streams, wait_until
from tests.system.recording import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

NUMBER = random.randrange(10**9)  # see test_restart.py
LSL = '[[sink]]\ntype = "lsl"\n'


def core(name: str, address: str, settings: str = "") -> str:
    return f'[[source]]\ntype = "pupil_core"\nname = "{name}"\naddress = "{address}"\n{settings}\n'


def came(daemon: Bridge, device: str, stream: str) -> int:
    return int(daemon.stream(device, stream).get("samples_in", 0))


def streams_on(daemon: Bridge, device: str, *streams: str) -> None:
    for stream in streams:
        wanted = came(daemon, device, stream) + 50
        wait_until(
            lambda stream=stream, wanted=wanted: came(daemon, device, stream) >= wanted,
            f"50 of {stream}; {daemon.process.errors()}",
        )


def test_of_two_captures_one_took_another_port_and_a_reload_finds_it(tmp_path: Path) -> None:
    port, nobody = str(free_port(socket.SOCK_STREAM)), free_port(socket.SOCK_STREAM)
    with (
        simulator("core", tmp_path, "--port", port, name="a") as (_, a),
        simulator("core", tmp_path, "--port", port, "--offset-s", "77", name="b") as (_, b),
    ):
        assert a["address"] == f"127.0.0.1:{port}" != b["address"]
        config = core("a", a["address"]) + core("b", f"127.0.0.1:{nobody}") + LSL
        with bridge(tmp_path, config) as daemon:
            daemon.wait_locked("a")
            streams_on(daemon, "a", "gaze", "pupil_0_3d")
            assert any("b: not there" in problem for problem in daemon.status()["problems"])
            path = tmp_path / "bridge.toml"
            path.write_text(path.read_text().replace(f"127.0.0.1:{nobody}", b["address"]))
            assert daemon.ask("reload")["changes"] == "changed b"
            daemon.wait_locked("a", "b")
            streams_on(daemon, "a", "gaze")
            streams_on(daemon, "b", "gaze", "pupil_1_2d")
            offsets = [daemon.device(name)["clock"]["offset_s"] for name in "ab"]
            assert offsets == pytest.approx([-1000, -77], abs=0.01)
            assert daemon.device("a")["clock"]["epoch"] == 0


def test_pupil_service_streams_and_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    topics = 'topics = ["gaze", "pupil", "fixations", "blinks", "surfaces", "annotation", "notify", "logging"]'
    with (
        simulator("core", tmp_path, "--port", "0", "--synthesise", "--app", "service") as (_, ready),
        bridge(tmp_path, core("service", ready["address"], topics) + LSL) as daemon,
    ):
        daemon.wait_locked("service")
        streams_on(daemon, "service", "gaze", "pupil_0_2d", "pupil_1_3d")
        for command, given in (("record", {"action": "start"}), ("annotate", {"text": "go"})):
            with pytest.raises(Exception, match="Capture has not"):
                daemon.ask(command, device="service", **given)
        assert daemon.device("service")["malformed"] == {}
        streams_on(daemon, "service", "gaze")


def test_time_sync_is_asked_and_the_clock_stays_right(tmp_path: Path) -> None:
    beacon_port = str(free_port(socket.SOCK_DGRAM))
    settings = f'time_sync = true\ninterface = "127.0.0.1"\nbeacon_port = {beacon_port}'
    simulated = ("--port", "0", "--time-sync", "--beacon-port", beacon_port, "--drift-ppm", "20")
    with (
        simulator("core", tmp_path, *simulated) as (_, ready),
        bridge(tmp_path, core("core", ready["address"], settings) + LSL) as daemon,
    ):
        daemon.wait_locked("core")
        port = ready["time_sync"]["port"]
        wait_until(
            lambda: daemon.status()["sources"][0]["time_sync"] == ["127.0.0.1", port],
            f"its echo; {daemon.process.errors()}",
        )
        streams_on(daemon, "core", "gaze")
        clock, origin = daemon.device("core")["clock"], ready["clock"]
        assert clock["state"] == "locked"
        assert abs(clock["offset_s"] + origin["offset_ns"] * 1e-9) < 0.01
        assert clock["epoch"] == 0
        assert daemon.process.complaints() == []


def test_notifications_of_a_calibration_reach_a_recording_however_large(tmp_path: Path) -> None:
    name = f"core_{NUMBER}"
    xdf, stream = tmp_path / "notes.xdf", f"pupil_labs_{name}_Notifications"
    with (
        simulator("core", tmp_path, "--port", "0") as (_, ready),
        bridge(tmp_path, core(name, ready["address"], 'topics = ["gaze", "notify"]') + LSL) as daemon,
    ):
        daemon.wait_locked(name)
        wait_for_streams(stream)
        with lab_recorder(tmp_path, xdf, f"name='{stream}'"):
            for action in ("start", "stop"):
                daemon.ask("calibrate", device=name, action=action)
            # LabRecorder takes a chunk every half second, and none when it ends.
            wait_until(lambda: daemon.stream(name, "notifications")["age_s"] > 1.5, "the recorder has them")
            streams_on(daemon, name, "gaze")
        assert daemon.device(name)["malformed"] == {}
        assert daemon.process.complaints() == []
        assert daemon.process.stop() == 0
    told = [json.loads(text) for (text,) in load(xdf, synchronize_clocks=False)[stream].values]
    subjects = [each["subject"] for each in told]
    for subject in ("calibration.started", "calibration.stopped", "calibration.setup.v2", "calibration.successful"):
        assert subject in subjects
    (setup,) = (each for each in told if each["subject"] == "calibration.setup.v2")
    assert setup["bytes"] > 1_500_000
    stamped = {each["subject"]: each["stamped"] for each in told}
    assert stamped["calibration.successful"] == "capture"
    assert stamped["calibration.started"] == "arrival"
