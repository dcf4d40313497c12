"""`pupil-bridge demo` as a user starts it: what it prints, what it reports, and that it leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.system.harness import Process, running, truth, wait_until

DURATION_S = 20
END_S = 60.0
INTERRUPTED_S = 8.0
TAIL_S = 3.0  # what the simulators may send before the bridge is there, and after it has gone
# Stream of the report: the simulator's truth file and its name for the stream, and whether ROS 2 has a form for it.
MESSAGES = importlib.util.find_spec("pupil_msgs.msg._gaze") is not None  # else pupils have no topic
STREAMS = {
    ("companion", "gaze"): ("companion", "gaze", True),
    ("companion", "event"): ("companion", "event", True),
    ("companion", "imu"): ("companion", "imu", True),
    ("companion", "scene"): ("companion", "scene", True),
    ("core", "gaze"): ("core", "gaze", True),
    ("core", "scene"): ("core", "frame.world", True),
    ("core", "pupil_0_2d"): ("core", "pupil.0.2d", MESSAGES),
    ("core", "pupil_0_3d"): ("core", "pupil.0.3d", MESSAGES),
    ("core", "pupil_1_2d"): ("core", "pupil.1.2d", MESSAGES),
    ("core", "pupil_1_3d"): ("core", "pupil.1.3d", MESSAGES),
}


def _demo(*options: object) -> list[str]:
    return [sys.executable, "-m", "bridge", "demo", *map(str, options)]


def _simulators(demo: Process) -> list[psutil.Process]:
    """The demo's children, when both are there."""
    children = psutil.Process(demo.popen.pid).children(recursive=True)
    commands = [" ".join(child.cmdline()) for child in children]
    return children if all(any(f"simulate {kind}" in c for c in commands) for kind in ("companion", "core")) else []


def _run_to_the_end(tmp_path: Path, *options: object) -> tuple[str, dict[str, Any]]:
    """What the demo says on standard output, and its report; checks all that is true of every good run."""
    report = tmp_path / "report.json"
    with running(_demo("--report", report, *options), tmp_path / "demo.log") as demo:
        children = wait_until(lambda: _simulators(demo), "the demo's two simulators")
        said = demo.rest(END_S)
        assert demo.popen.wait(INTERRUPTED_S) == 0, demo.errors()
        assert demo.complaints() == []
    assert [child for child in children if child.is_running()] == []
    return said, json.loads(report.read_text(encoding="utf-8"))


def _streams(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(d["name"], s["name"]): s for d in report["devices"] for s in d["streams"]}


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    directory = tmp_path_factory.mktemp("demo")
    said, report = _run_to_the_end(directory, "--duration", DURATION_S, "--truth", directory / "truth")
    return said, report, directory / "truth"


@pytest.fixture(scope="module")
def report(demo_run: tuple[str, dict[str, Any], Path]) -> dict[str, Any]:
    return demo_run[1]


pytestmark = pytest.mark.slow


def test_the_report_has_the_shape_that_was_promised(report: dict[str, Any]) -> None:
    assert report["duration_s"] == pytest.approx(DURATION_S, abs=TAIL_S)
    assert [(device["name"], device["kind"]) for device in report["devices"]] == [
        ("companion", "ndsi"),
        ("core", "pupil_core"),
    ]
    for device in report["devices"]:
        assert isinstance(device["clock"]["state"], str)
        assert type(device["clock"]["epoch"]) is int
        for key in ("offset_s", "bound_s", "drift_ppm"):
            assert type(device["clock"][key]) is float
        for stream in device["streams"]:
            assert isinstance(stream["name"], str)
            assert type(stream["expected_rate_hz"]) is float
            assert type(stream["rate_in_hz"]) is float
            assert type(stream["samples_in"]) is int
            assert {sink: type(count) for sink, count in stream["samples_out"].items()} == {"lsl": int, "ros2": int}
            assert isinstance(stream["dropped"], dict)
    assert set(_streams(report)) == set(STREAMS)


def test_both_clocks_are_locked_in_their_first_epoch(report: dict[str, Any]) -> None:
    clocks = {device["name"]: device["clock"] for device in report["devices"]}
    for clock in clocks.values():
        assert clock["state"] == "locked"
        assert clock["epoch"] == 0
        assert 0 < clock["bound_s"] < 0.005
    # The simulated phone's clock is UTC and 1000 s ahead of it, that of Capture is 1000 s ahead of this host's.
    utc_minus_host_s = time.time() - time.monotonic()
    assert clocks["companion"]["offset_s"] == pytest.approx(-1000 - utc_minus_host_s, abs=0.5)
    assert clocks["core"]["offset_s"] == pytest.approx(-1000, abs=0.01)


@pytest.mark.parametrize("stream", list(STREAMS), ids="/".join)
def test_rates_are_those_that_the_simulators_sent(
    stream: tuple[str, str], demo_run: tuple[str, dict[str, Any], Path]
) -> None:
    _, report, truths = demo_run
    device, name, _ = STREAMS[stream]
    rows = [row for row in truth(truths / f"{device}.jsonl", name) if row["sent"]]
    sent = [row["device_ns"] for row in rows]
    of_device = [row["device_ns"] for row in rows if not str(row["payload"]).startswith("lsl.time_sync.")]
    sent_hz = (len(sent) - 1) * 1e9 / (max(sent) - min(sent))
    found = _streams(report)[stream]
    assert found["rate_in_hz"] == pytest.approx(sent_hz, rel=0.02)
    own_hz = (len(of_device) - 1) * 1e9 / (max(of_device) - min(of_device))
    assert found["expected_rate_hz"] == pytest.approx(own_hz, rel=0.02)
    assert len(sent) - TAIL_S * sent_hz - 1 <= found["samples_in"] <= len(sent)


@pytest.mark.parametrize("stream", list(STREAMS), ids="/".join)
def test_every_sample_that_comes_in_goes_out(stream: tuple[str, str], report: dict[str, Any]) -> None:
    found = _streams(report)[stream]
    in_ros = STREAMS[stream][2]
    # Of images the latest are wanted; those that waited for the clock's lock come all at once.
    superseded = found["dropped"].pop("ros2_superseded", 0) if stream[1] == "scene" else 0
    assert found["samples_in"] > 0
    assert found["dropped"] == {}
    sent = found["samples_in"] - superseded if in_ros else 0
    assert found["samples_out"] == {"lsl": found["samples_in"], "ros2": sent}


def test_it_says_how_labrecorder_finds_the_streams(demo_run: tuple[str, dict[str, Any], Path]) -> None:
    said = demo_run[0]
    # The user's own configuration stays.
    assert f"LSLAPICFG={os.environ['LSLAPICFG']}\n" in said
    assert f"ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']}" in said
    for word in ("companion", "core", "gaze", "pupil_0_3d", "locked", "in Hz", "drops", "ppm"):
        assert word in said


def test_without_a_configuration_of_lsl_it_makes_one_that_stays_on_this_machine(tmp_path: Path) -> None:
    unset = {name: value for name, value in os.environ.items() if name != "LSLAPICFG"}
    with running(["env", "-i", *(f"{k}={v}" for k, v in unset.items()), *_demo("--no-ros")], tmp_path / "log") as demo:
        path = Path(_printed_configuration(demo))
        text = path.read_text(encoding="ascii")
        demo.popen.send_signal(signal.SIGINT)
        demo.rest(END_S)
    assert "KnownPeers = {127.0.0.1}" in text
    assert "TTLOverride = 0" in text
    assert not path.exists()


def _printed_configuration(demo: Process) -> str:
    """Reads on until the first table, when the bridge runs."""
    path = ""
    while "device, stream" not in (line := demo.line()):
        if found := re.search(r"LSLAPICFG=(.+)\n", line):
            path = found[1]
    assert path
    return path


def test_no_ros_is_lsl_alone(tmp_path: Path) -> None:
    said, report = _run_to_the_end(tmp_path, "--no-ros", "--duration", 5)
    assert "ROS" not in said
    for stream in _streams(report).values():
        assert stream["samples_in"] > 0
        assert stream["samples_out"] == {"lsl": stream["samples_in"]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_signal_ends_it_with_its_simulators_within_seconds(number: signal.Signals, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with running(_demo("--report", report), tmp_path / "demo.log") as demo:
        _printed_configuration(demo)
        children = _simulators(demo)
        assert children
        began_s = time.monotonic()
        demo.popen.send_signal(number)
        demo.rest(END_S)
        assert demo.popen.wait(INTERRUPTED_S) == 0, demo.errors()
        assert time.monotonic() - began_s < INTERRUPTED_S
        assert demo.complaints() == []
    assert [child for child in children if child.is_running()] == []
    assert set(_streams(json.loads(report.read_text(encoding="utf-8")))) == set(STREAMS)


def test_ctrl_c_while_it_starts_leaves_no_simulator_behind(tmp_path: Path) -> None:
    with running(_demo("--no-ros"), tmp_path / "demo.log") as demo:
        children = wait_until(lambda: psutil.Process(demo.popen.pid).children(recursive=True), "the first simulator")
        demo.popen.send_signal(signal.SIGINT)
        demo.rest(END_S)
        demo.popen.wait(INTERRUPTED_S)
        assert "Traceback" not in demo.errors()
    assert [child for child in children if child.is_running()] == []
