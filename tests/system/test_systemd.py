"""The service as an administrator has it: a real systemd runs the unit that `pupil-bridge install-service` wrote.

One machine is booted for all of them (tests/system/systemd_machine.py). What is simulated runs in it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.service.loopback import write_lsl_api_cfg
from tests.system import systemd_machine
from tests.system.harness import Process, wait_until
from tests.system.systemd_machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAM = Path(sysconfig.get_path("scripts")) / "pupil-bridge"
UNIT = Path("/etc/systemd/system/pupil-bridge.service")
DROP_IN = Path("/etc/systemd/system/pupil-bridge.service.d/test.conf")
CONFIG = Path("/etc/pupil-bridge/bridge.toml")
SINKS = '[[sink]]\ntype = "lsl"\n[[sink]]\ntype = "ros2"\n'
PHONES, CORES = ("phone_a", "phone_b"), {"core_a": 50020, "core_b": 50030}
DEVICES = f"""
[[source]]
type = "ndsi"
interface = "127.0.0.1"
{"".join(f'[[source.device]]{chr(10)}match = "{name}"{chr(10)}name = "{name}"{chr(10)}' for name in PHONES)}
{
    "".join(
        f'[[source]]{chr(10)}type = "pupil_core"{chr(10)}name = "{name}"{chr(10)}address = "127.0.0.1:{port}"{chr(10)}'
        for name, port in CORES.items()
    )
}
"""
STOP_S = 5.0
# What another user, with programs of its own, gets of what the bridge sends.
LSL_READER = """
import pylsl
(info,) = pylsl.resolve_byprop("name", "pupil_labs_phone_a_Gaze", timeout=20)
inlet = pylsl.StreamInlet(info)
print([inlet.pull_sample(timeout=20)[1] is not None for _ in range(50)].count(True), flush=True)
"""
ROS_READER = """
import time, rclpy
from geometry_msgs.msg import PointStamped
rclpy.init()
node, got = rclpy.create_node("reader"), []
node.create_subscription(PointStamped, "/pupil_bridge/core_a/gaze/normalized", got.append, 10)
deadline = time.monotonic() + 30
while len(got) < 50 and time.monotonic() < deadline:
    rclpy.spin_once(node, timeout_sec=0.5)
print(len(got), flush=True)
node.destroy_node()
rclpy.shutdown()
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with four simulated devices, and a user "lab"."""
    if (reason := systemd_machine.why_not()) is not None:
        pytest.skip(reason)
    logs = tmp_path_factory.mktemp("simulators")
    with systemd_machine.booted() as booted, ExitStack() as stack:
        booted.run("useradd", "--create-home", "lab")
        if not os.stat(Path.home()).st_mode & 0o001:
            booted.path(Path.home()).chmod(0o711)  # this Python may live there; for the users of the tests
        booted.path("/etc/lsl_api").mkdir()
        write_lsl_api_cfg(booted.path("/etc/lsl_api/lsl_api.cfg"), "systemd-test")
        simulators = [("companion", "--name", name, "--sensor-uuid-seed", name) for name in PHONES]
        simulators += [("core", "--port", str(port)) for port in CORES.values()]
        for number, arguments in enumerate(simulators):
            command = booted.command(PROGRAM, "simulate", *arguments)
            process = Process(command, logs / f"{number}.log")
            stack.callback(process.stop)
            process.json_line()
        yield booted


def configure(machine: Machine, text: str, discovery_range: str = "LOCALHOST") -> None:
    machine.path(CONFIG.parent).mkdir(exist_ok=True)
    machine.path(CONFIG).write_text(text, encoding="utf-8")
    machine.path(CONFIG.parent / "environment").write_text(f"ROS_AUTOMATIC_DISCOVERY_RANGE={discovery_range}\n")


@contextmanager
def installed(machine: Machine, drop_in: str = "", discovery_range: str = "LOCALHOST") -> Iterator[None]:
    """The service, installed and started, for the four devices. All is gone at the end."""
    configure(machine, DEVICES + SINKS, discovery_range)
    if drop_in:
        machine.path(DROP_IN.parent).mkdir()
        machine.path(DROP_IN).write_text(drop_in, encoding="utf-8")
    try:
        machine.run(PROGRAM, "install-service", "--now")
        yield
        machine.run("systemctl", "stop", "pupil-bridge")
        assert machine.show("pupil-bridge", "Result") == "success", messages(machine)  # and not "timeout"
    finally:
        machine.run(PROGRAM, "uninstall-service", check=False)
        machine.run("rm", "-rf", CONFIG.parent, DROP_IN.parent)


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    with installed(machine):
        yield machine


def status(machine: Machine) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(machine.run(PROGRAM, "status", "--json").stdout)
    return tree


def locked(machine: Machine) -> set[str]:
    return {device["name"] for device in status(machine)["devices"] if device["clock"]["state"] == "locked"}


def wait_locked(machine: Machine) -> None:
    wait_until(lambda: locked(machine) == {*PHONES, *CORES}, "all four clocks locked", 60.0, 0.2)


def main_pid(machine: Machine) -> int:
    """As the machine counts."""
    return int(machine.show("pupil-bridge", "MainPID"))


def wait_active(machine: Machine, after_pid: int) -> int:
    """The process id of the service that systemd has started anew, once it is ready."""

    def new_pid() -> int:
        state, pid = machine.show("pupil-bridge", "ActiveState"), main_pid(machine)
        return pid if state == "active" and pid not in (0, after_pid) else 0

    found: int = wait_until(new_pid, "systemd has started the service again", 60.0, 0.2)
    return found


def messages(machine: Machine, *matches: str) -> list[str]:
    return [str(entry["MESSAGE"]) for entry in machine.journal("--unit=pupil-bridge", *matches)]


def test_the_command_installs_starts_and_says_what_it_did_line_by_line(machine: Machine) -> None:
    machine.run("rm", "-rf", CONFIG.parent)
    said = machine.run(PROGRAM, "install-service").stdout
    assert f"wrote a first configuration: {CONFIG}\n" in said
    assert f"wrote {UNIT}: it runs {PROGRAM}\n" in said
    assert "enabled it: it starts at boot\n" in said
    assert "systemctl start pupil-bridge\n" in said
    shipped = Path(__file__).parents[2] / "config" / "bridge.toml"
    assert machine.path(CONFIG).read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")
    assert machine.path(CONFIG).stat().st_mode & 0o777 == 0o644
    assert machine.path(CONFIG.parent / "config.d").is_dir()
    assert machine.run("systemctl", "is-enabled", "pupil-bridge").stdout == "enabled\n"
    assert machine.run("systemctl", "is-active", "pupil-bridge", check=False).stdout == "inactive\n"
    configure(machine, DEVICES + SINKS)
    again = machine.run(PROGRAM, "install-service", "--now").stdout
    assert f"kept the configuration {CONFIG}\n" in again
    assert "started it: it runs\n" in again
    assert machine.run("systemctl", "is-active", "pupil-bridge").stdout == "active\n"

    machine.path("/var/lib/pupil-bridge/names.json").write_text("{}")
    gone = machine.run(PROGRAM, "uninstall-service").stdout
    assert f"removed {UNIT}\n" in gone
    assert f"kept the configuration: {CONFIG}\n" in gone
    assert machine.path(CONFIG).read_text(encoding="utf-8") == DEVICES + SINKS
    left = machine.run("find", "/etc", "/var/lib", "/var/log", "/run", "/dev/shm", "-iname", "*pupil*bridge*").stdout
    assert left.split() == [str(CONFIG.parent)]
    assert machine.run("systemctl", "status", "pupil-bridge", check=False).returncode == 4  # no such unit
    assert machine.run("find", "/etc/systemd", "-xtype", "l").stdout == ""
    machine.run("rm", "-rf", CONFIG.parent)


def test_nothing_that_is_not_its_own_is_overwritten_or_removed(machine: Machine) -> None:
    theirs = "[Service]\nExecStart=/bin/true\n"
    machine.path(UNIT).write_text(theirs)
    try:
        for command in ("install-service", "uninstall-service"):
            done = machine.run(PROGRAM, command, check=False)
            assert done.returncode == 1
            assert done.stderr == (
                f"pupil-bridge: {UNIT} is there, but not from this command: it is left alone. Move it away to go on\n"
            )
            assert machine.path(UNIT).read_text() == theirs
        assert not machine.path(CONFIG).exists()
    finally:
        machine.path(UNIT).unlink()


def test_verify_is_silent_and_the_security_score_is_two_at_most(service: Machine) -> None:
    verified = service.run("systemd-analyze", "verify", UNIT)
    assert (verified.stdout, verified.stderr) == ("", "")
    said = service.run("systemd-analyze", "security", "--no-pager", "pupil-bridge").stdout
    score = re.search(r"Overall exposure level for pupil-bridge.service: ([0-9.]+)", said)
    assert score is not None
    assert float(score[1]) <= 2.0


def test_it_is_ready_when_its_sinks_are_open_and_says_how_it_is(service: Machine) -> None:
    # `install-service --now` came back when systemd had heard READY, so everything is there at once.
    assert status(service)["sinks"] == ["lsl", "ros2"]
    assert service.show("pupil-bridge", "ActiveState") == "active"
    wait_locked(service)
    text = wait_until(
        lambda: "4 clocks locked" in (said := service.show("pupil-bridge", "StatusText")) and said,
        "the line of status",
    )
    assert text.startswith("4 of 4 devices")
    assert f'Status: "{text}"' in service.run("systemctl", "status", "--no-pager", "pupil-bridge").stdout


def test_the_daemon_runs_without_privileges_as_a_user_of_its_own(service: Machine) -> None:
    proc = service.path(f"/proc/{main_pid(service)}/status").read_text()
    fields = dict(line.split(":", 1) for line in proc.splitlines())
    assert all(61184 <= int(uid) <= 65519 for uid in fields["Uid"].split())  # systemd's range of dynamic users
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"


@pytest.mark.parametrize("discovery_range", ["LOCALHOST", "SUBNET"])  # rmw_fastrtps chooses its transports by it
def test_inside_the_sandbox_lsl_ros_ndsi_and_core_work_and_other_users_get_the_data(
    machine: Machine, discovery_range: str
) -> None:
    with installed(machine, discovery_range=discovery_range):
        wait_locked(machine)  # two NDSI devices found by pyre, and two Cores
        before = {d["name"]: d for d in status(machine)["devices"]}
        for user in ("lab", "root"):
            python = ["env", f"ROS_AUTOMATIC_DISCOVERY_RANGE={discovery_range}", sys.executable, "-c"]
            assert machine.run("runuser", "-u", user, "--", *python, LSL_READER).stdout == "50\n"
            assert machine.run("runuser", "-u", user, "--", *python, ROS_READER).stdout == "50\n"
        for name, device in {d["name"]: d for d in status(machine)["devices"]}.items():
            for stream, earlier in zip(device["streams"], before[name]["streams"], strict=True):
                assert stream["samples_out"]["lsl"] > earlier["samples_out"]["lsl"], (name, stream["name"])
        assert messages(machine, "--priority=warning", f"_PID={main_pid(machine)}") == []


def test_the_journal_can_be_asked_for_one_device(service: Machine) -> None:
    wait_locked(service)
    entries = wait_until(
        lambda: service.journal("DEVICE=core_a", f"_PID={main_pid(service)}"), "entries with the field DEVICE"
    )
    assert {entry["DEVICE"] for entry in entries} == {"core_a"}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"pupil-bridge"}
    assert {entry["_SYSTEMD_UNIT"] for entry in entries} == {"pupil-bridge.service"}
    assert all(entry["LOGGER"].startswith("bridge") and entry["PRIORITY"] in "34567" for entry in entries)
    (lock,) = [entry for entry in entries if "clock locked" in entry["MESSAGE"]]
    assert "EPOCH" in lock
    assert service.journal("DEVICE=nobody") == []


def test_a_good_reload_is_taken_and_a_bad_one_is_said_while_the_old_one_goes_on(service: Machine) -> None:
    wait_locked(service)
    pid = main_pid(service)
    service.path(CONFIG).write_text(DEVICES.replace('"core_b"', '"core_c"') + SINKS, encoding="utf-8")
    service.run("systemctl", "reload", "pupil-bridge")
    wait_until(lambda: locked(service) == {*PHONES, "core_a", "core_c"}, "the new name of a device", 30.0, 0.2)
    service.path(CONFIG).write_text(DEVICES.replace('"ndsi"', '"nsdi"'), encoding="utf-8")
    service.run("systemctl", "reload", "pupil-bridge")
    wait_until(lambda: status(service)["config"]["refused"], "the refusal is in the status")
    assert "nsdi" in status(service)["config"]["refused"]
    wait_until(lambda: service.show("pupil-bridge", "ActiveState") == "active", "systemd knows that it is over")
    text = wait_until(
        lambda: "refused" in (said := service.show("pupil-bridge", "StatusText")) and said, "the refusal in the line"
    )
    assert text in service.run("systemctl", "status", "--no-pager", "pupil-bridge").stdout
    assert locked(service) == {*PHONES, "core_a", "core_c"}
    assert any("nsdi" in message for message in messages(service, "--priority=err", f"_PID={pid}"))
    service.path(CONFIG).write_text(DEVICES + SINKS, encoding="utf-8")
    service.run("systemctl", "reload", "pupil-bridge")
    wait_until(lambda: locked(service) == {*PHONES, *CORES}, "the mended configuration", 30.0, 0.2)
    wait_until(lambda: "refused" not in service.show("pupil-bridge", "StatusText"), "a line without the refusal")
    assert main_pid(service) == pid


def test_after_sigkill_it_is_back_with_all_devices(service: Machine) -> None:
    pid = main_pid(service)
    service.run("kill", "-KILL", str(pid))
    wait_active(service, after_pid=pid)
    wait_locked(service)
    assert int(service.show("pupil-bridge", "NRestarts")) == 1


def test_a_loop_that_hangs_is_caught_by_the_watchdog(machine: Machine) -> None:
    with installed(machine, drop_in="[Service]\nWatchdogSec=2\nTimeoutStopSec=3\n"):
        pid = main_pid(machine)
        # For longer than the watchdog's patience it is left alone, as its loop pings.
        since = time.monotonic()
        wait_until(lambda: time.monotonic() - since > 5.0, "five seconds")
        assert main_pid(machine) == pid
        machine.run("kill", "-STOP", str(pid))  # as a debugger stops it: no thread of it runs
        wait_active(machine, after_pid=pid)
        assert any("Watchdog timeout" in message for message in messages(machine))
        wait_locked(machine)


def test_a_wrong_configuration_is_said_and_not_restarted(machine: Machine) -> None:
    configure(machine, DEVICES.replace('"ndsi"', '"nsdi"') + SINKS)
    said = machine.run(PROGRAM, "install-service", "--now").stdout
    try:
        assert "the configuration has faults, and the service does not start before they are mended:\n" in said
        assert "nsdi" in said
        assert "started it" not in said
        assert machine.run("systemctl", "start", "pupil-bridge", check=False).returncode == 1
        assert machine.show("pupil-bridge", "ActiveState") == "failed"  # neither "activating" nor "auto-restart"
        assert machine.show("pupil-bridge", "ExecMainStatus") == "78"
        assert machine.show("pupil-bridge", "NRestarts") == "0"
        assert any("nsdi" in message for message in messages(machine))
        configure(machine, DEVICES + SINKS)
        machine.run("systemctl", "start", "pupil-bridge")
    finally:
        machine.run(PROGRAM, "uninstall-service")
        machine.run("rm", "-rf", CONFIG.parent)


def test_it_stops_within_five_seconds_with_four_devices_and_leaves_no_process(service: Machine) -> None:
    wait_locked(service)
    pid = main_pid(service)
    began = time.monotonic()
    service.run("systemctl", "stop", "pupil-bridge")
    took_s = time.monotonic() - began
    assert took_s < STOP_S
    assert service.show("pupil-bridge", "Result") == "success"
    assert service.show("pupil-bridge", "ExecMainStatus") == "0"
    assert not service.path(f"/proc/{pid}").exists()
    assert messages(service, f"_PID={pid}")[-1] == "stopped"


def test_all_of_it_works_without_systemd_python(machine: Machine) -> None:
    machine.path("/opt/hidden/systemd").mkdir(parents=True)
    machine.path("/opt/hidden/systemd/__init__.py").write_text("raise ImportError('hidden for a test')\n")
    hidden = machine.run(sys.executable, "-c", "import systemd.journal", env={"PYTHONPATH": "/opt/hidden"}, check=False)
    assert "hidden for a test" in hidden.stderr
    with installed(machine, drop_in="[Service]\nEnvironment=PYTHONPATH=/opt/hidden\n"):
        wait_locked(machine)
        pid = main_pid(machine)
        entries = machine.journal("DEVICE=phone_a", f"_PID={pid}")
        assert any("clock locked" in entry["MESSAGE"] for entry in entries)
        machine.run("systemctl", "reload", "pupil-bridge")
        wait_until(lambda: status(machine)["config"]["reloads"] == 1, "a reload")
        wait_until(lambda: machine.show("pupil-bridge", "ActiveState") == "active", "systemd knows that it is over")
        assert main_pid(machine) == pid


def test_the_fence_lets_this_computer_in_and_a_secret_is_the_services_alone(machine: Machine) -> None:
    examples = Path(__file__).parents[2] / "systemd"
    drop_in = (examples / "fence-network.conf").read_text() + (examples / "secret.conf").read_text()
    machine.path(CONFIG.parent).mkdir(exist_ok=True)
    machine.path(CONFIG.parent / "http-token").write_text("a secret of the lab")
    machine.path(CONFIG.parent / "http-token").chmod(0o600)
    with installed(machine, drop_in=drop_in):
        wait_locked(machine)
        assert set(machine.show("pupil-bridge", "IPAddressDeny").split()) == {"::/0", "0.0.0.0/0"}
        seen = Path(f"/proc/{main_pid(machine)}/root/run/credentials/pupil-bridge.service/http-token")
        assert machine.run("cat", seen).stdout == "a secret of the lab"
        assert machine.run("runuser", "-u", "lab", "cat", CONFIG.parent / "http-token", check=False).returncode != 0
        python = ["runuser", "-u", "lab", "--", sys.executable, "-c"]
        assert machine.run(*python, LSL_READER).stdout == "50\n"


def test_a_users_own_service_works_the_same_way(machine: Machine) -> None:
    uid = machine.run("id", "-u", "lab").stdout.strip()
    machine.run("loginctl", "enable-linger", "lab")
    wait_until(lambda: machine.path(f"/run/user/{uid}/systemd/private").exists(), "the user's systemd")
    as_lab = ["runuser", "-u", "lab", "--", "env", "HOME=/home/lab", f"XDG_RUNTIME_DIR=/run/user/{uid}"]
    home = machine.path("/home/lab/.config")
    said = machine.run(*as_lab, PROGRAM, "install-service", "--user").stdout
    assert "wrote a first configuration: /home/lab/.config/pupil-bridge/bridge.toml\n" in said
    assert "loginctl enable-linger" in said
    unit = Path("/home/lab/.config/systemd/user/pupil-bridge.service")
    verified = machine.run(*as_lab, "systemd-analyze", "--user", "verify", unit)
    assert (verified.stdout, verified.stderr) == ("", "")
    (home / "pupil-bridge/bridge.toml").write_text(DEVICES + SINKS, encoding="utf-8")
    (home / "pupil-bridge/environment").write_text("ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST\n")
    machine.run(*as_lab, PROGRAM, "install-service", "--user", "--now")
    try:

        def all_locked() -> bool:
            tree = json.loads(machine.run(*as_lab, PROGRAM, "status", "--json").stdout)
            return all(d["clock"]["state"] == "locked" for d in tree["devices"]) and len(tree["devices"]) == 4

        wait_until(all_locked, "all four clocks locked", 60.0, 0.2)
        show = [*as_lab, "systemctl", "--user", "show", "--value", "pupil-bridge", "--property"]
        wait_until(lambda: "4 of 4 devices" in machine.run(*show, "StatusText").stdout, "the line of status")
        ros = ["env", "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST", sys.executable, "-c", ROS_READER]
        assert machine.run(*as_lab, *ros).stdout == "50\n"
        assert machine.run(*as_lab, "journalctl", "--user", "DEVICE=core_a", "--quiet").stdout != ""
    finally:
        gone = machine.run(*as_lab, PROGRAM, "uninstall-service", "--user").stdout
    assert f"removed {unit}\n" in gone
    assert (home / "pupil-bridge/bridge.toml").exists()
    assert not machine.path(unit).exists()
    machine.run("loginctl", "disable-linger", "lab")


def test_the_command_says_what_to_do_where_it_cannot(machine: Machine) -> None:
    as_lab = ["runuser", "-u", "lab", "--", "env", "HOME=/home/lab"]
    for command in ("install-service", "uninstall-service"):
        without_root = machine.run(*as_lab, PROGRAM, command, check=False)
        assert without_root.returncode == 1
        assert f"the system's service needs root: sudo {PROGRAM} {command}" in without_root.stderr
        without_session = machine.run(*as_lab, PROGRAM, command, "--user", check=False)
        assert without_session.returncode == 1
        assert "log in as this user" in without_session.stderr
