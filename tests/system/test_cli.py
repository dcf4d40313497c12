"""The command line as a person meets it: help, errors in one line, exit statuses, status and discovery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import bridge, simulator, wait_until

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 60.0
EX_CONFIG = 78
LSL_ONLY = '[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\n[[sink]]\ntype = "lsl"\n'
HEAVY = ("pydantic", "pylsl", "zmq", "pyre", "rclpy", "rich", "msgspec", "numpy", "asyncio")


def _run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """`pupil-bridge` with these arguments, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "bridge", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "COLUMNS": "100", **env},
        check=False,
    )


# What a person must find in the help of each command.
HELP = {
    "": ["LSL", "ROS 2", "pupil-bridge demo", "--version", "run", "status", "demo", "discover", "check-config"],
    "run": ["--config PATH", "TOML", "required", "SIGTERM"],
    "bag-preview": ["BAG", "--output", "--device NAME", "--frames", "needs no ROS"],
    "reload": ["--socket PATH", "without losing a sample", "refused whole"],
    "record": ["{start|stop}", "--session NAME", "--device NAME", "--socket PATH", "in its words"],
    "event": ["TEXT", "--at S", "LSL's clock", "--device NAME"],
    "calibrate": ["{start|stop}", "Pupil Capture"],
    "install-service": ["--user", "--config", "--now"],
    "uninstall-service": ["--user"],
    "status": ["--json", "--watch", "--socket PATH", "devices, streams and clocks"],
    "demo": ["--duration S", "Ctrl-C", "--report PATH", "JSON", "--no-ros", "LSL only", "--truth PATH"],
    "discover": ["--interface", "IPv4", "--seconds", "5.0", "--core", "127.0.0.1:50020", "--json"],
    "check-config": ["FILE", "--show", "name all its faults"],
    "simulate": ["companion", "core", "real protocol"],
    "simulate companion": [
        *("NDSI v4", "--interface", "--beacon-port", "--gaze-rate", "120.0", "--event-rate", "--offset-s"),
        *("--drift-ppm", "--delay-ms", "--jitter-ms", "--asymmetry-ms", "--loss", "--truth", "--zre-uuid"),
    ],
    "simulate core": [
        *("Pupil Remote", "--port", "50020", "--tape", "--synthesise", "--offset-s", "--drift-ppm"),
        *("--delay-ms", "--jitter-ms", "--asymmetry-ms", "--loss", "--truth", "--duration"),
    ],
}


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", list(HELP), ids=lambda command: command or "itself")
def test_help_tells_what_there_is(command: str, flag: str) -> None:
    ended = _run(*command.split(), flag)
    assert ended.returncode == 0
    assert ended.stderr == ""
    words = " ".join(ended.stdout.split())
    assert words.startswith("Usage: python -m bridge")
    assert [phrase for phrase in HELP[command] if phrase not in words] == []


def test_every_command_has_a_sentence_of_its_own_in_the_list() -> None:
    listed = _run("--help", COLUMNS="80").stdout.partition("Commands:\n")[2]
    described = dict(line.split(maxsplit=1) for line in listed.splitlines())
    assert set(described) == {name for name in HELP if name and " " not in name}
    assert [text for text in described.values() if not text.endswith(".") or text.endswith("...")] == []


@pytest.mark.parametrize("command", ["", "run", "status", "demo", "discover", "check-config", "simulate"])
def test_help_loads_nothing_heavy(command: str) -> None:
    program = (
        "import sys\nfrom bridge.cli import main\n"
        f"try:\n    main({[*command.split(), '--help']!r})\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"print('HEAVY', sorted(sys.modules.keys() & set({HEAVY!r})))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == "HEAVY []"


def test_the_version_is_that_of_the_package() -> None:
    from bridge import __version__

    assert _run("--version").stdout.split() == ["pupil-bridge,", "version", __version__]


def test_an_unknown_command_or_option_is_a_usage_error() -> None:
    for arguments in (["fly"], ["run"], ["run", "--confg", "x"], ["check-config"], ["simulate", "toaster"]):
        ended = _run(*arguments)
        assert ended.returncode == 2, arguments
        assert "Usage:" in ended.stderr
        assert "Traceback" not in ended.stderr


# --- configuration ---------------------------------------------------------------------------------------------------

BAD = """\
[[source]]
type = "ndsi"
interfce = "127.0.0.1"

[[source]]
type = "pupil_core"
address = "nowhere"
gaze.latency_ms = "5"

[[sink]]
type = "lls"

[clock]
hold_s = -1
"""
FAULTS = [  # place, line, and a word of what is wrong with it
    ("source[0].interfce", 3, "interface"),
    ("source[1].address", 7, "host:port"),
    ("source[1].gaze.latency_ms", 8, "number"),
    ("sink[0].type", 11, "lsl"),
    ("clock.hold_s", 14, "at least 0"),
]


@pytest.mark.parametrize("command", [("run", "--config"), ("check-config",)], ids=lambda command: command[0])
def test_a_bad_configuration_is_all_its_faults_at_once_and_status_78(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(BAD, encoding="utf-8")
    ended = _run(*command, path)
    assert ended.returncode == EX_CONFIG
    assert ended.stdout == ""
    first, *lines = ended.stderr.splitlines()
    assert first == f"pupil-bridge: {path}: {len(FAULTS)} faults"
    assert len(lines) == len(FAULTS)
    for line, (place, number, word) in zip(lines, FAULTS, strict=True):
        assert line.startswith(f"  {place} (line {number}): ")
        assert word in line


@pytest.mark.parametrize("command", [("run", "--config"), ("check-config",)], ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file or directory"),
        ("[[source]\n", "is not valid TOML"),
        ("", "there must be at least one [[source]]"),
    ],
    ids=["missing", "no_toml", "empty"],
)
def test_a_file_that_cannot_be_used_is_status_78_and_no_traceback(
    command: tuple[str, ...], text: str | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "bridge.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    ended = _run(*command, path)
    assert ended.returncode == EX_CONFIG
    assert ended.stderr.startswith(f"pupil-bridge: {path}: ")
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_shipped_configuration_is_good() -> None:
    ended = _run("check-config", REPOSITORY / "config" / "bridge.toml")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("good: 2 sources, 2 sinks\n")


def test_a_network_that_this_machine_does_not_have_is_no_end_but_a_warning_once(tmp_path: Path) -> None:
    with bridge(tmp_path, LSL_ONLY.replace("127.0.0.1", "198.51.100.7")) as daemon:
        wait_until(lambda: "198.51.100.7" in daemon.process.errors(), "a line about the missing network")
        assert daemon.status()["devices"] == []
        assert daemon.process.stop() == 0
    log = daemon.process.errors()
    assert log.count("trying again") == 1
    assert "Traceback" not in log


# --- status ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_status_without_a_daemon_is_one_line_and_status_1(flags: tuple[str, ...], tmp_path: Path) -> None:
    ended = _run("status", *flags, "--socket", tmp_path / "control.sock")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines() == [
        f"pupil-bridge: no pupil-bridge answers at {tmp_path / 'control.sock'}: No such file or directory"
    ]


def test_status_looks_for_the_daemon_where_systemd_puts_its_socket(tmp_path: Path) -> None:
    ended = _run("status", RUNTIME_DIRECTORY=str(tmp_path))
    assert ended.returncode == 1
    assert str(tmp_path / "control.sock") in ended.stderr


def test_status_shows_a_running_daemon_as_table_and_as_json(tmp_path: Path) -> None:
    config = LSL_ONLY + '[[source]]\ntype = "pupil_core"\nname = "core"\naddress = "{}"\n'
    with (
        simulator("core", tmp_path, "--port", "0") as (_, ready),
        bridge(tmp_path, config.format(ready["address"])) as daemon,
    ):
        daemon.wait_locked("core")
        table = _run("status", "--socket", tmp_path / "control.sock", COLUMNS="80")
        tree = _run("status", "--json", "--socket", tmp_path / "control.sock")
    assert (table.returncode, table.stderr) == (0, "")
    for word in ("device, stream", "in Hz", "age ms", "drops", "offset s", "core", "gaze", "pupil_1_2d", "locked"):
        assert word in table.stdout
    assert "…" not in table.stdout, "a column is cut off at 80 characters"
    assert (tree.returncode, tree.stderr) == (0, "")
    core = next(device for device in json.loads(tree.stdout)["devices"] if device["name"] == "core")
    assert core["kind"] == "pupil_core"
    assert core["connected"] is True
    assert core["clock"]["state"] == "locked"
    assert core["clock"]["offset_s"] == pytest.approx(-1000, abs=0.01)
    assert {stream["name"] for stream in core["streams"]} >= {"gaze", "pupil_0_3d"}


def test_a_second_daemon_on_the_same_socket_ends_with_one_clear_line(tmp_path: Path) -> None:
    with bridge(tmp_path, LSL_ONLY) as daemon:
        began_s = time.monotonic()
        ended = _run("run", "--config", tmp_path / "bridge.toml")
        assert time.monotonic() - began_s < PATIENCE_S / 2
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1] == (
            f"pupil-bridge: another pupil-bridge is running: it has the control socket {tmp_path / 'control.sock'}"
        )
        assert "Traceback" not in ended.stderr
        assert daemon.status()["sinks"] == ["lsl"], "the first one goes on"
        assert daemon.process.stop() == 0
    assert not (tmp_path / "control.sock").exists()


# --- discover --------------------------------------------------------------------------------------------------------


def test_discover_finds_a_companion_with_its_sensors_and_capture(tmp_path: Path) -> None:
    # Its beacons are on NDSI's own port, where others may be heard too; the name tells this one.
    name = f"Discovered {os.getpid()}"
    with (
        simulator("companion", tmp_path, "--name", name) as (_, companion),
        simulator("core", tmp_path, "--port", "0") as (_, core),
    ):
        listen = ("discover", "--interface", "127.0.0.1", "--core", core["address"], "--seconds", "4")
        as_json = _run(*listen, "--json")
        as_text = _run(*listen)
    assert (as_json.returncode, as_json.stderr) == (0, "")
    found: dict[str, Any] = json.loads(as_json.stdout)
    assert found["interface"] == "127.0.0.1"
    assert found["broadcast"] == "127.255.255.255"
    assert found["core"] == {"address": core["address"], "version": "3.6.14"}
    (mine,) = [peer for peer in found["companions"] if peer["name"] == name]
    assert mine["zre_uuid"] == companion["zre_uuid"]
    assert {sensor["type"]: sensor["uuid"] for sensor in mine["sensors"]} == companion["sensors"]
    assert all(sensor["used"] for sensor in mine["sensors"])
    assert (as_text.returncode, as_text.stderr) == (0, "")
    assert f"  {name}\n" in as_text.stdout
    for kind in ("gaze", "event", "hardware"):
        assert kind in as_text.stdout
    assert f"Pupil Capture at {core['address']}: 3.6.14" in as_text.stdout


def test_discover_says_what_it_did_not_find(tmp_path: Path) -> None:
    with simulator("companion", tmp_path, "--name", "one") as _:
        ended = _run("discover", "--interface", "127.0.0.1", "--core", "127.0.0.1:1", "--seconds", "1")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Pupil Capture at 127.0.0.1:1: no answer" in ended.stdout


def test_discover_on_a_network_that_is_not_there_is_one_line() -> None:
    ended = _run("discover", "--interface", "198.51.100.7")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert "198.51.100.7" in ended.stderr
