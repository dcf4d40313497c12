"""The daemon when the computer, the disk, a device or a reader is too much or too little for it.

It says so in its status, goes on, bounds its memory, and what it records is right. Elsewhere:

- more connections than it may have files, floods of what is malformed at every socket: test_hostile.py
- a stopped ROS 2 subscriber against LSL and against the end of the daemon: test_ros2.py
- a full queue to ROS 2, by drops of each reason: tests/sinks/test_ros2.py
- samples that wait for a clock, at most so many and so long: tests/test_stream_input.py
- clients of the control socket that say nothing, too much or do not read: tests/service/test_control_socket.py
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bridge.errors import BridgeError
from tests.system.harness import (
    Bridge,
    Process,
    bridge,
    free_port,
    lab_recorder,
    running,
    simulator,
    truth,
    wait_for_streams,
    wait_until,
)
from tests.system.recording import Recorded, compare_numbers, goes_backwards, load, missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GAZE_HZ = 120
MAX_GROWTH_BYTES = 30_000_000
LATE_S = 0.5  # beyond which the daemon says that the computer is too busy
NUMBER = random.randrange(10**9)  # see test_restart.py
PHONE, CAPTURE = f"phone_{NUMBER}", f"capture_{NUMBER}"
NDSI = """
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {port}
"""
DEVICE = """
[[source.device]]
name = "{name}"
match = "{own_name}"
gaze.expected_rate_hz = {rate_hz}
"""
CORE = """
[[source]]
type = "pupil_core"
name = "{name}"
address = "{address}"
"""
LSL = '[[sink]]\ntype = "lsl"\n'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_ros = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="needs rclpy")


def _phone(tmp_path: Path, port: int, own_name: str, rate_hz: float = GAZE_HZ, **options: object) -> Any:
    """A simulated phone; its truth is in ``<own_name>.jsonl``."""
    given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    path = tmp_path / f"{own_name}.jsonl"
    return simulator(
        "companion", tmp_path, "--name", own_name, "--beacon-port", str(port), "--gaze-rate", str(rate_hz),
        "--truth", str(path), *given, name=own_name,
    )  # fmt: skip


def _capture(tmp_path: Path, rate_hz: float = GAZE_HZ, name: str = "core") -> Any:
    options = ("--port", "0", "--synthesise", "--gaze-rate", str(rate_hz), "--pupil-rate", "20")
    return simulator("core", tmp_path, *options, "--truth", str(tmp_path / f"{name}.jsonl"), name=name)


def _samples_out(daemon: Bridge, device: str, sink: str = "lsl") -> int:
    return int(daemon.stream(device, "gaze").get("samples_out", {}).get(sink, 0))


def _wait_more(daemon: Bridge, device: str, count: int, timeout_s: float = 30.0) -> None:
    """Until so many more samples of gaze have left."""
    wanted = _samples_out(daemon, device) + count
    wait_until(
        lambda: _samples_out(daemon, device) >= wanted,
        f"{count} more samples of {device}; log: {daemon.process.errors()[-5000:]}",
        timeout_s,
    )


def _wait_problem(daemon: Bridge, *words: str, gone: bool = False, timeout_s: float = 30.0) -> None:
    """Until one sentence of the status has all these words, or none has."""

    def said() -> bool:
        return any(all(word in problem for word in words) for problem in daemon.status()["problems"])

    wait_until(
        lambda: said() is not gone,
        f"{words} {'no longer ' if gone else ''}among the problems {daemon.status()['problems']}",
        timeout_s,
    )


def _rss(daemon: Bridge) -> int:
    found: int = psutil.Process(daemon.process.popen.pid).memory_info().rss
    return found


def _check_log(daemon: Bridge) -> None:
    assert "Traceback" not in daemon.process.errors()


def _check_recorded(recording: dict[str, Recorded], prefix: str, labels: tuple[str, ...], path: Path) -> None:
    """Every sample is there, in order, and no stamp is more wrong than the bound that was published around it."""
    gaze, sync = recording[f"{prefix}_Gaze" if f"{prefix}_Gaze" in recording else prefix], recording[f"{prefix}_Sync"]
    true_rows = truth(path, "gaze")
    compared = compare_numbers(gaze, true_rows, labels)
    assert missing(compared.rows, true_rows) == []
    assert goes_backwards(gaze) == []
    bounds_s, slews_s = sync.column("bound"), np.abs(sync.column("slew"))
    after = np.clip(np.searchsorted(sync.stamps_s, gaze.stamps_s), 1, len(bounds_s) - 1)
    allowed_s = np.maximum((bounds_s + slews_s)[after - 1], (bounds_s + slews_s)[after])
    wrong = np.abs(compared.errors_s) > allowed_s
    print(f"\n{prefix}: {compared.figures()}, bound {1e3 * float(np.median(allowed_s)):.3f} ms (median)")
    table = np.column_stack([gaze.stamps_s - sync.stamps_s[0], 1e3 * compared.errors_s, 1e3 * allowed_s])[wrong]
    assert not wrong.any(), f"{len(table)} wrong stamps: (s, error ms, bound ms) {table[:: len(table) // 20 + 1]}"


# --- too little CPU ----------------------------------------------------------------------------------------------


CPU_CGROUP = Path("/sys/fs/cgroup/cpu")
STARVED_S = 8.0


@contextlib.contextmanager
def _a_hundredth_of_a_core(pid: int) -> Iterator[None]:
    """By a control group of its own; out of it again at the end."""
    group = CPU_CGROUP / f"pupil-bridge-test-{pid}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group for CPU can be made: {error}")
    try:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("1000")
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        (CPU_CGROUP / "cgroup.procs").write_text(str(pid))
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


def _throttled(pid: int) -> None:
    with _a_hundredth_of_a_core(pid):
        _wait_s(STARVED_S)


def _stopped_again_and_again(pid: int) -> None:
    """Runs a twentieth of the time, in slices of 50 ms."""
    ends = time.monotonic() + STARVED_S
    while time.monotonic() < ends:
        os.kill(pid, signal.SIGSTOP)
        _wait_s(0.95)
        os.kill(pid, signal.SIGCONT)
        _wait_s(0.05)


def _wait_s(seconds: float) -> None:
    """Part of the scenario: how long something lasts."""
    ends = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= ends, "the end of it", seconds + 10, interval_s=min(0.02, seconds / 4))


@pytest.mark.parametrize("starve", [_stopped_again_and_again, pytest.param(_throttled, marks=needs_root)])
def test_too_little_cpu_is_said_and_loses_no_sample_and_no_stamp_is_wrong(
    starve: Callable[[int], None], tmp_path: Path
) -> None:
    port, xdf = free_port(socket.SOCK_DGRAM), tmp_path / "starved.xdf"
    names = [f"{PHONE}_x_Gaze", f"{PHONE}_x_Sync", f"{CAPTURE}_x", f"{CAPTURE}_x_Sync"]
    with (
        _phone(tmp_path, port, "Phone", offset_s=1000, drift_ppm=30) as (phone, _),
        _capture(tmp_path) as (capture, core),
    ):
        config = NDSI.format(port=port) + f'[[source.device]]\nname = "{PHONE}"\nlsl_prefix = "{PHONE}_x"\n'
        config += CORE.format(name=CAPTURE, address=core["address"]) + f'lsl_prefix = "{CAPTURE}_x"\n' + LSL
        with bridge(tmp_path, config) as daemon:
            daemon.wait_locked(PHONE, CAPTURE)
            wait_for_streams(*names)
            with lab_recorder(tmp_path, xdf, *(f"name='{name}'" for name in names)):
                for device in (PHONE, CAPTURE):
                    _wait_more(daemon, device, 3 * GAZE_HZ)
                rss = _rss(daemon)
                starve(daemon.process.popen.pid)
                _wait_problem(daemon, "too busy")
                assert daemon.status()["loop"]["worst_lag_s"] > LATE_S
                for device in (PHONE, CAPTURE):
                    _wait_more(daemon, device, 4 * GAZE_HZ)
                    assert daemon.device(device)["clock"]["state"] == "locked"
                    assert daemon.device(device)["clock"]["epoch"] == 0
                    assert daemon.stream(device, "gaze")["dropped"] == {}
                assert _rss(daemon) - rss < MAX_GROWTH_BYTES
                for each in (phone, capture):
                    assert each.stop() == 0
                wait_until(
                    lambda: all(daemon.stream(d, "gaze")["age_s"] > 1.0 for d in (PHONE, CAPTURE)), "all has left"
                )
            _check_log(daemon)
    # As LSL has delivered it: a recorder asks the daemon for its clock through liblsl, and late answers make pyxdf
    # shift all stamps, by 17 ms in one run (the same computer, so the true shift is nothing).
    recording = load(xdf, dejitter_timestamps=False, synchronize_clocks=False)
    _check_recorded(recording, f"{PHONE}_x", ("x", "y"), tmp_path / "Phone.jsonl")
    _check_recorded(recording, f"{CAPTURE}_x", ("norm_pos_x", "norm_pos_y", "confidence"), tmp_path / "core.jsonl")


# --- a full disk -------------------------------------------------------------------------------------------------


AGAIN_S = 90.0  # it is tried once a minute


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[Callable[[], None]]:
    """A full disk at ``path``; what it yields makes room on it."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    filler = path / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield filler.unlink
    finally:
        subprocess.run(["umount", str(path)], check=True)


@needs_root
@pytest.mark.root
def test_a_full_disk_is_said_and_survived_and_what_could_not_be_kept_is_kept_later(tmp_path: Path) -> None:
    port, state = free_port(socket.SOCK_DGRAM), tmp_path / "state"  # where `bridge` has its state
    with _small_disk(state) as make_room, bridge(tmp_path, NDSI.format(port=port) + LSL) as daemon:
        assert daemon.status()["problems"] == []
        with _phone(tmp_path, port, "Lab Phone 7"):
            daemon.wait_locked("lab_phone_7")
            _wait_problem(daemon, "names of devices cannot be kept", "No space left")
            _wait_more(daemon, "lab_phone_7", GAZE_HZ)
            assert not (state / "names.json").exists()
            make_room()
            with _phone(tmp_path, port, "Lab Phone 8"):
                daemon.wait_locked("lab_phone_8")
                _wait_problem(daemon, "cannot be kept", gone=True, timeout_s=AGAIN_S)
                _wait_more(daemon, "lab_phone_7", GAZE_HZ)
        kept = json.loads((state / "names.json").read_text(encoding="utf-8"))
        assert set(kept["own_names"].values()) == {"Lab Phone 7", "Lab Phone 8"}
        _check_log(daemon)
        assert daemon.process.stop() == 0


def _daemon_in_bash(tmp_path: Path, config: str, redirection: str) -> AbstractContextManager[Process]:
    """The daemon with its standard error somewhere else, at the level at which it says most."""
    path = tmp_path / "bridge.toml"
    service = f'[logging]\nlevel = "debug"\n[service]\nsocket = "{tmp_path}/control.sock"\n'
    path.write_text(f'{config}{service}state_dir = "{tmp_path}/state"\n', encoding="utf-8")
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-m", "bridge", "run", "--config"]
    return running([*command, str(path)], tmp_path / "bridge.log")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2> >(exec 0<&-)", "2>&-"])
def test_a_log_that_cannot_be_written_stops_nothing(redirection: str, tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    with _daemon_in_bash(tmp_path, NDSI.format(port=port) + LSL, redirection) as process:
        daemon = Bridge(process, tmp_path / "control.sock")

        def answers() -> bool:
            assert process.popen.poll() is None, "the daemon has ended"
            try:
                return bool(daemon.status())
            except BridgeError:
                return False

        wait_until(answers, "the daemon answers")
        with _phone(tmp_path, port, "Phone") as (phone, _):
            daemon.wait_locked("phone")
            _wait_more(daemon, "phone", GAZE_HZ)
            phone.kill()
        with _phone(tmp_path, port, "Phone"):  # there is something to say of that
            wait_until(lambda: daemon.device("phone")["clock"]["epoch"] > 0, "the phone is there again")
            _wait_more(daemon, "phone", GAZE_HZ)
        assert process.popen.poll() is None
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(10) == 0
        assert process.errors() == ""


# --- a device that sends too much --------------------------------------------------------------------------------


FLOOD_HZ = 200


def test_a_phone_and_a_capture_that_send_twenty_times_their_rate_cost_no_other_device_a_sample(tmp_path: Path) -> None:
    port, xdf = free_port(socket.SOCK_DGRAM), tmp_path / "flood.xdf"
    prefix = f"pupil_labs_{PHONE}"
    names = [f"{prefix}_Gaze", f"{prefix}_Sync"]
    with ExitStack() as stack:
        good, _ = stack.enter_context(_phone(tmp_path, port, "Good Phone"))
        config = NDSI.format(port=port) + DEVICE.format(name=PHONE, own_name="Good Phone", rate_hz=GAZE_HZ)
        config += DEVICE.format(name="mad_phone", own_name="Mad Phone", rate_hz=50)
        _, core = stack.enter_context(_capture(tmp_path, 20 * GAZE_HZ, "mad"))
        config += CORE.format(name="mad_capture", address=core["address"])
        daemon = stack.enter_context(bridge(tmp_path, f"{config}{LSL}[overload]\nflood_hz = {FLOOD_HZ}\n"))
        daemon.wait_locked(PHONE, "mad_capture")
        wait_for_streams(*names)
        recorder = stack.enter_context(ExitStack())
        recorder.enter_context(lab_recorder(tmp_path, xdf, *(f"name='{name}'" for name in names)))
        _wait_more(daemon, PHONE, GAZE_HZ)
        rss = _rss(daemon)
        mad, _ = stack.enter_context(_phone(tmp_path, port, "Mad Phone", 20 * 50))
        flooding = ("mad_phone", "mad_capture")
        for device in flooding:
            _wait_problem(daemon, device, "sends too much")
        _wait_more(daemon, PHONE, 5 * GAZE_HZ)
        assert _rss(daemon) - rss < MAX_GROWTH_BYTES
        for device in flooding:
            stream = daemon.stream(device, "gaze")
            assert set(stream["dropped"]) == {"flood"}
            assert stream["flooding"]
            assert stream["dropped"]["flood"] > FLOOD_HZ
            before, started = _samples_out(daemon, device), time.monotonic()
            _wait_more(daemon, device, 3 * FLOOD_HZ)  # what is allowed goes on
            # In what the clock calls a second a little more may fit; twice as much may not.
            rate_hz = (_samples_out(daemon, device) - before) / (time.monotonic() - started)
            assert rate_hz < 2 * FLOOD_HZ
        assert daemon.stream(PHONE, "gaze")["dropped"] == {}
        mad.stop()
        _wait_problem(daemon, "mad_phone: gaze sends too much", gone=True)
        _wait_more(daemon, PHONE, GAZE_HZ)
        assert good.stop() == 0
        wait_until(lambda: daemon.stream(PHONE, "gaze")["age_s"] > 1.0, "all has left")
        recorder.close()
        stream = daemon.stream("mad_phone", "gaze")
        assert stream["samples_in"] == stream["samples_out"]["lsl"] + sum(stream["dropped"].values())
        _check_log(daemon)
    _check_recorded(load(xdf, dejitter_timestamps=False), prefix, ("x", "y"), tmp_path / "Good Phone.jsonl")


# --- readers that do not read ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A process that counts the gaze that it gets (benchmarks/soak/reader.py)."""

    process: Process
    lines: list[dict[str, Any]]

    def ready(self) -> None:
        while not self.lines:
            self._take(self.process.line())

    def _take(self, line: str) -> None:
        if line.startswith("{"):  # DDS has its own to say
            self.lines.append(json.loads(line))

    def pause(self) -> None:
        self.process.popen.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.popen.send_signal(signal.SIGCONT)

    def said(self, device: str) -> dict[str, int]:
        """How many samples, and how many of them with a stamp before their predecessor's, as of a second ago."""
        with contextlib.suppress(AssertionError):  # no more lines
            while True:
                self._take(self.process.line(0.001))
        last = self.lines[-1]
        return {"count": last["counts"][device], "backwards": last["backwards"].get(device, 0)}


@contextlib.contextmanager
def _reader(tmp_path: Path, kind: str, number: int, device: str) -> Iterator[Reader]:
    command = [sys.executable, "-m", "benchmarks.soak.reader", kind, device]
    with running(command, tmp_path / f"reader_{kind}_{number}.log") as process:
        made = Reader(process, [])
        made.ready()
        try:
            yield made
        finally:
            made.go_on()


@pytest.mark.parametrize("kinds", [pytest.param(("lsl",), id="lsl"), pytest.param(("lsl", "ros2"), marks=needs_ros)])
def test_readers_that_are_stopped_take_nothing_from_the_others(kinds: tuple[str, ...], tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    config = NDSI.format(port=port) + DEVICE.format(name=PHONE, own_name="Phone", rate_hz=GAZE_HZ)
    with ExitStack() as stack:
        daemon = stack.enter_context(bridge(tmp_path, config + "".join(f'[[sink]]\ntype = "{k}"\n' for k in kinds)))
        readers = {
            (kind, number): stack.enter_context(_reader(tmp_path, kind, number, PHONE))
            for kind in kinds
            for number in (0, 1)
        }
        phone, _ = stack.enter_context(_phone(tmp_path, port, "Phone"))
        daemon.wait_locked(PHONE)
        for (kind, number), reader in readers.items():
            wait_until(lambda r=reader: r.said(PHONE)["count"] > GAZE_HZ, f"reader {number} of {kind} hears")
        rss = _rss(daemon)
        for kind in kinds:
            readers[kind, 0].pause()
        _wait_more(daemon, PHONE, 8 * GAZE_HZ)
        for kind in kinds:
            readers[kind, 0].go_on()
        _wait_more(daemon, PHONE, 2 * GAZE_HZ)
        assert phone.stop() == 0
        wait_until(lambda: daemon.stream(PHONE, "gaze")["age_s"] > 1.0, "all has left")
        stream = daemon.stream(PHONE, "gaze")
        assert stream["dropped"] == {}
        assert set(stream["samples_out"].values()) == {stream["samples_in"]}
        assert _rss(daemon) - rss < MAX_GROWTH_BYTES
        everything = stream["samples_in"]
        for number in (0, 1):  # liblsl keeps it for a reader that is slow
            wait_until(
                lambda r=readers["lsl", number]: r.said(PHONE)["count"] == everything,
                f"LSL reader {number} has all {everything}, not {readers['lsl', number].said(PHONE)}",
            )
        if "ros2" in kinds:
            wait_until(
                lambda: readers["ros2", 1].said(PHONE)["count"] == everything,
                f"the ROS reader that ran has all {everything}, not {readers['ros2', 1].said(PHONE)}",
            )
        assert all(reader.said(PHONE)["backwards"] == 0 for reader in readers.values())
        _check_log(daemon)
