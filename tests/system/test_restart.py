"""Devices and the daemon itself are killed and come back, as phones and PCs do, while a recording runs."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import (
    Bridge,
    Process,
    bridge,
    free_port,
    lab_recorder,
    simulator,
    truth,
    wait_for_streams,
    wait_until,
)
from tests.system.recording import (
    Comparison,
    compare_numbers,
    compare_texts,
    goes_backwards,
    load,
    missing,
)

DOWN_S = 3.0  # how long the device is away: part of the scenario
COMPANION_BACK_S = 3.0
CORE_BACK_S = 10.0
DAEMON_BACK_S = 10.0
P99_MS = 0.5
GAZE_HZ = 120
SOME_SECONDS = 5 * GAZE_HZ
LSL = '[[sink]]\ntype = "lsl"\n'
# A recorder looks for a lost stream by name and source_id, whatever its SessionID (liblsl leaves that out when it
# recovers), so that two streams of these anywhere on the machine would keep it from recovering.
NAME = f"companion_{random.randrange(10**9)}"
PREFIX = f"pupil_labs_{NAME}"
CAPTURE = f"core_{random.randrange(10**9)}"
STREAM = f"pupil_labs_{CAPTURE}"
COMPANION = f'[[source.device]]\nname = "{NAME}"\n'
OFFSET = ("--offset-s", "1000", "--drift-ppm", "50", "--event-rate", "5")
LATER = ("--offset-s", "1007", "--drift-ppm", "-30", "--event-rate", "5")
EARLIER = ("--offset-s", "995", "--drift-ppm", "50", "--event-rate", "5")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def _ndsi(beacon_port: int, devices: str = "") -> str:
    return f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {beacon_port}\n{devices}{LSL}'


def _samples(daemon: Bridge, device: str, stream: str = "gaze") -> int:
    """How many samples of a stream have left for LSL."""
    return int(daemon.stream(device, stream).get("samples_out", {}).get("lsl", 0))


def _wait_samples(daemon: Bridge, device: str, count: int, timeout_s: float = 20.0, stream: str = "gaze") -> None:
    wait_until(
        lambda: _samples(daemon, device, stream) >= count,
        f"{count} samples of {device}/{stream}; log: {daemon.process.errors()}",
        timeout_s,
    )


def _stay_away() -> None:
    ends = time.monotonic() + DOWN_S
    wait_until(lambda: time.monotonic() >= ends, "the end of the absence")


def _bugs(log: str) -> list[str]:
    return re.findall(r".*(?:Traceback|Exception|Error|ERROR|CRITICAL).*", log)


def _lives(*paths: Path, stream: str = "gaze") -> list[list[dict[str, Any]]]:
    return [[{**row, "life": life} for row in truth(path, stream)] for life, path in enumerate(paths)]


def _all(lives: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [row for life in lives for row in life]


def _check_lives(
    compared: Comparison, lives: list[list[dict[str, Any]]], record_property: Callable[[str, object], None], name: str
) -> None:
    """Every life of a device has samples, none is missing between its first and its last, and all are right."""
    order = [row["life"] for row in compared.rows]
    assert order == sorted(order)
    for life, true_rows in enumerate(lives):
        chosen = [index for index, row in enumerate(compared.rows) if row["life"] == life]
        part = Comparison([compared.rows[index] for index in chosen], compared.errors_s[chosen])
        figures = part.figures()
        record_property(f"{name}, life {life}", json.dumps(figures))
        print(f"\n{name}, life {life}: {figures}")
        assert figures["p99_ms"] < P99_MS
        assert missing(part.rows, true_rows) == []


# --- the Companion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("same_zre_uuid", "second_life"),
    [
        pytest.param(False, OFFSET, id="new_zre_uuid"),
        pytest.param(True, OFFSET, id="same_zre_uuid"),
        pytest.param(False, LATER, id="new_zre_uuid_clock_later"),
        pytest.param(True, EARLIER, id="same_zre_uuid_clock_earlier"),
    ],
)
def test_a_companion_that_is_killed_and_comes_back_goes_on_in_the_same_recording(
    same_zre_uuid: bool,
    second_life: tuple[str, ...],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    beacon_port, xdf = free_port(socket.SOCK_DGRAM), tmp_path / "restart.xdf"
    truths = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first_uuid = uuid.uuid4()
    second_uuid = first_uuid if same_zre_uuid else uuid.uuid4()

    def companion(
        zre_uuid: uuid.UUID, path: Path, clock: tuple[str, ...]
    ) -> AbstractContextManager[tuple[Process, dict[str, Any]]]:
        options = ("--beacon-port", str(beacon_port), "--zre-uuid", str(zre_uuid), "--truth", str(path), *clock)
        return simulator("companion", tmp_path, *options)

    with bridge(tmp_path, _ndsi(beacon_port, COMPANION)) as daemon:
        with companion(first_uuid, truths[0], OFFSET) as (phone, before):
            _wait_samples(daemon, NAME, 1)
            wait_for_streams(f"{PREFIX}_Gaze", f"{PREFIX}_Event")
            queries = (f"name='{PREFIX}_Gaze'", f"name='{PREFIX}_Event'")
            with lab_recorder(tmp_path, xdf, *queries):
                _wait_samples(daemon, NAME, _samples(daemon, NAME) + SOME_SECONDS)
                phone.kill()
                sent_before = _samples(daemon, NAME)
                _stay_away()
                sent_before = max(sent_before, _samples(daemon, NAME))
                with companion(second_uuid, truths[1], second_life) as (_, after):
                    ready_s = time.monotonic()
                    _wait_samples(daemon, NAME, sent_before + 1, COMPANION_BACK_S)
                    back_s = time.monotonic() - ready_s
                    _wait_samples(daemon, NAME, sent_before + SOME_SECONDS)
                    status = daemon.status()
        assert daemon.process.stop() == 0

    record_property("seconds until samples flow again", round(back_s, 3))
    print(f"\nflows again {back_s:.3f} s after its ready line")
    assert after["sensors"] == before["sensors"]
    assert (after["zre_uuid"] == before["zre_uuid"]) is same_zre_uuid
    assert _bugs(daemon.process.errors()) == []
    assert [device["name"] for device in status["devices"]] == [NAME]
    assert len(status["sources"][0]["peers"]) == 1
    assert all(stream["dropped"] == {} for stream in status["devices"][0]["streams"])

    recording = load(xdf)
    assert set(recording) == {f"{PREFIX}_Gaze", f"{PREFIX}_Event"}
    gaze, event = recording[f"{PREFIX}_Gaze"], recording[f"{PREFIX}_Event"]
    lives, event_lives = _lives(*truths), _lives(*truths, stream="event")
    _check_lives(compare_numbers(gaze, _all(lives), ("x", "y")), lives, record_property, "gaze")
    _check_lives(compare_texts(event, _all(event_lives)), event_lives, record_property, "event")
    assert goes_backwards(gaze) == []
    assert goes_backwards(event) == []


def test_a_companion_is_found_whether_it_was_there_before_the_daemon_or_comes_after(tmp_path: Path) -> None:
    beacon_port = free_port(socket.SOCK_DGRAM)
    options = ("--beacon-port", str(beacon_port))
    with (
        simulator("companion", tmp_path, *options, "--name", "Early Bird", name="early"),
        bridge(tmp_path, _ndsi(beacon_port)) as daemon,
    ):
        _wait_samples(daemon, "early_bird", GAZE_HZ)
        with simulator("companion", tmp_path, *options, "--name", "Night Owl", "--offset-s", "77", name="late"):
            _wait_samples(daemon, "night_owl", GAZE_HZ)
            _wait_samples(daemon, "early_bird", _samples(daemon, "early_bird") + GAZE_HZ)
            wait_for_streams(
                *(f"pupil_labs_{n}_{s}" for n in ("early_bird", "night_owl") for s in ("Gaze", "Event", "Sync"))
            )
            status = daemon.status()
        assert daemon.process.stop() == 0
    assert _bugs(daemon.process.errors()) == []
    assert [device["name"] for device in status["devices"]] == ["early_bird", "night_owl"]
    offsets_s = [device["clock"]["offset_s"] for device in status["devices"]]
    assert offsets_s[0] - offsets_s[1] == pytest.approx(77, abs=0.1)
    assert all(stream["dropped"] == {} for device in status["devices"] for stream in device["streams"])


def test_a_companion_beside_the_configured_one_gets_its_own_name_and_streams(tmp_path: Path) -> None:
    beacon_port = free_port(socket.SOCK_DGRAM)
    options = ("--beacon-port", str(beacon_port))
    devices = COMPANION.replace("name =", 'match = "Lab *"\nname =', 1)
    with bridge(tmp_path, _ndsi(beacon_port, devices)) as daemon:
        with simulator("companion", tmp_path, *options, "--name", "A Visitor", name="visitor"):
            _wait_samples(daemon, "a_visitor", GAZE_HZ)
            with simulator("companion", tmp_path, *options, "--name", "Lab 2", name="lab"):
                _wait_samples(daemon, NAME, GAZE_HZ)
                wait_for_streams(f"{PREFIX}_Gaze", "pupil_labs_a_visitor_Gaze")
        assert daemon.process.stop() == 0
    assert _bugs(daemon.process.errors()) == []


def test_of_two_companions_of_one_name_each_keeps_its_own_over_a_restart_of_the_daemon(tmp_path: Path) -> None:
    beacon_port = free_port(socket.SOCK_DGRAM)
    options = ("--beacon-port", str(beacon_port), "--name", "Twin")

    # Which is which is seen by the offsets of their clocks, 77 s apart.
    def first() -> AbstractContextManager[tuple[Process, dict[str, Any]]]:
        return simulator("companion", tmp_path, *options, "--sensor-uuid-seed", "a", name="first")

    def second() -> AbstractContextManager[tuple[Process, dict[str, Any]]]:
        return simulator("companion", tmp_path, *options, "--sensor-uuid-seed", "b", "--offset-s", "77", name="second")

    def check_offsets(daemon: Bridge) -> None:
        offsets_s = [float(daemon.device(name)["clock"]["offset_s"]) for name in ("twin", "twin_2")]
        assert offsets_s[0] - offsets_s[1] == pytest.approx(77, abs=0.1)

    config = _ndsi(beacon_port)
    with bridge(tmp_path, config) as daemon, first():
        _wait_samples(daemon, "twin", GAZE_HZ)
        with second():
            _wait_samples(daemon, "twin_2", GAZE_HZ)
            check_offsets(daemon)
        assert daemon.process.stop() == 0
    with second(), bridge(tmp_path, config) as daemon:
        _wait_samples(daemon, "twin_2", GAZE_HZ)
        assert [device["name"] for device in daemon.status()["devices"]] == ["twin_2"]
        with first():
            _wait_samples(daemon, "twin", GAZE_HZ)
            _wait_samples(daemon, "twin_2", _samples(daemon, "twin_2") + GAZE_HZ)
            check_offsets(daemon)
            wait_for_streams("pupil_labs_twin_Gaze", "pupil_labs_twin_2_Gaze")
        assert daemon.process.stop() == 0
    assert _bugs(daemon.process.errors()) == []
    names = json.loads((tmp_path / "state" / "names.json").read_text(encoding="utf-8"))
    assert names["own_names"] == {"twin": "Twin", "twin_2": "Twin"}


# --- the daemon ------------------------------------------------------------------------------------------------------


def test_a_daemon_that_is_killed_and_started_again_goes_on_in_the_same_recording(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    beacon_port, path, xdf = free_port(socket.SOCK_DGRAM), tmp_path / "truth.jsonl", tmp_path / "restart.xdf"
    config = _ndsi(beacon_port, COMPANION)
    options = ("--beacon-port", str(beacon_port), "--truth", str(path), *OFFSET)
    with simulator("companion", tmp_path, *options), bridge(tmp_path, config) as daemon:
        _wait_samples(daemon, NAME, 1)
        wait_for_streams(f"{PREFIX}_Gaze", f"{PREFIX}_Sync")
        with lab_recorder(tmp_path, xdf, f"name='{PREFIX}_Gaze'", f"name='{PREFIX}_Sync'"):
            _wait_samples(daemon, NAME, _samples(daemon, NAME) + SOME_SECONDS)
            daemon.process.kill()
            killed_ns = time.monotonic_ns()
            assert daemon.process.popen.returncode == -signal.SIGKILL
            size = xdf.stat().st_size
            with bridge(tmp_path, config) as again:
                started_s = time.monotonic()
                _wait_samples(again, NAME, 1, DAEMON_BACK_S)
                # LabRecorder writes as it receives: five channels of eight bytes a sample.
                wait_until(lambda: xdf.stat().st_size > size + 40 * GAZE_HZ, "LabRecorder goes on", DAEMON_BACK_S)
                print(f"\nrecorded again {time.monotonic() - started_s:.1f} s after the daemon's return")
                _wait_samples(again, NAME, _samples(again, NAME) + SOME_SECONDS)
                assert again.device(NAME)["clock"]["state"] == "locked"
    assert _bugs(again.process.errors()) == []
    recording = load(xdf)
    assert set(recording) == {f"{PREFIX}_Gaze", f"{PREFIX}_Sync"}
    gaze = recording[f"{PREFIX}_Gaze"]
    true_rows = truth(path, "gaze")
    rows = [{**row, "life": int(row["host_ns"] > killed_ns)} for row in true_rows]
    lives = [[row for row in rows if row["life"] == life] for life in (0, 1)]
    _check_lives(compare_numbers(gaze, rows, ("x", "y")), lives, record_property, "gaze")
    assert goes_backwards(gaze) == []
    assert goes_backwards(recording[f"{PREFIX}_Sync"]) == []


# --- Pupil Core ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away_s", [0.0, DOWN_S], ids=["at_once", "after_three_seconds"])
def test_a_capture_that_is_killed_and_started_again_flows_again_on_its_new_ports(
    away_s: float, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    port, xdf = str(free_port(socket.SOCK_STREAM)), tmp_path / "restart.xdf"
    truths = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    config = f'[[source]]\ntype = "pupil_core"\naddress = "127.0.0.1:{port}"\nname = "{CAPTURE}"\n{LSL}'
    with bridge(tmp_path, config) as daemon:
        with simulator("core", tmp_path, "--port", port, "--truth", str(truths[0])) as (capture, before):
            _wait_samples(daemon, CAPTURE, 1)
            wait_for_streams(STREAM)
            with lab_recorder(tmp_path, xdf, f"name='{STREAM}'"):
                _wait_samples(daemon, CAPTURE, _samples(daemon, CAPTURE) + SOME_SECONDS)
                capture.kill()
                if away_s:
                    _stay_away()
                count = _samples(daemon, CAPTURE)
                options = ("--port", port, "--offset-s", "-500", "--truth", str(truths[1]))
                with simulator("core", tmp_path, *options) as (_, after):
                    ready_s = time.monotonic()
                    # More than could still have been on its way.
                    _wait_samples(daemon, CAPTURE, count + GAZE_HZ, CORE_BACK_S)
                    back_s = time.monotonic() - ready_s
                    _wait_samples(daemon, CAPTURE, count + SOME_SECONDS)
                    clock = daemon.device(CAPTURE)["clock"]
        assert daemon.process.stop() == 0
    record_property("seconds until a second of gaze has come", round(back_s, 3))
    print(f"\na second of gaze {back_s:.3f} s after its ready line; log:\n{daemon.process.errors()}")
    assert after["address"] == before["address"]
    assert after["sub_port"] != before["sub_port"]
    assert _bugs(daemon.process.errors()) == []
    assert clock["state"] == "locked"
    assert clock["offset_s"] == pytest.approx(500, abs=0.1)
    recording = load(xdf)
    lives = _lives(*truths)
    labels = ("norm_pos_x", "norm_pos_y", "confidence")
    _check_lives(compare_numbers(recording[STREAM], _all(lives), labels), lives, record_property, "gaze")
    assert goes_backwards(recording[STREAM]) == []
