"""`pip install .` in fresh environments, without extras: no compiler, no ROS, and everything but ROS works.

Environments are made outside of the repository, from a copy of it, so that no build directory is left there.
"""

from __future__ import annotations

import functools
import json
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pylsl
import pytest

from tests.networks import outside
from tests.system.harness import answering, running, truth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).parents[2]
VERSIONS = ("3.11", "3.12", "3.13")
NOT_COPIED = (".*", "build", "dist", "__pycache__", "*.egg-info", "tests", "benchmarks")
# What the ROS wheels, a sourced ROS or an active environment would leak into another environment's Python.
LEAKING = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH", "PYTHONPATH", "AMENT_PREFIX_PATH", "VIRTUAL_ENV")
NO_COMPILER = ("CC=/bin/false", "CXX=/bin/false")
CONFIG = """
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
name = "companion"
lsl_prefix = "pupil_labs"
{sinks}
[service]
socket = "{directory}/control.sock"
state_dir = "{directory}/state"
"""
LSL_SINK, ROS_SINK = '[[sink]]\ntype = "lsl"\n', '[[sink]]\ntype = "ros2"\n'


class Environment:
    """A virtual environment with pupil-bridge installed in it. Commands run outside of the repository."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def command(self, program: str, *arguments: str) -> list[str]:
        unset = [option for name in LEAKING for option in ("-u", name)]
        binary = self._directory / "bin" / program
        # Elsewhere, as `python -m` looks for modules in the working directory first.
        return ["env", f"--chdir={self._directory}", *unset, *NO_COMPILER, str(binary), *arguments]

    def run(self, program: str, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        command = self.command(program, *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@functools.cache
def interpreter(version: str) -> str | None:
    """A Python of this version that works and can make environments; None when there is none."""
    candidates = [sys.executable, shutil.which(f"python{version}")]
    candidates += [str(path) for path in sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))]
    question = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        if candidate is not None:
            # pyenv's shims are there for versions that they then refuse to run.
            answer = subprocess.run([candidate, "-c", question], capture_output=True, text=True, check=False)
            if answer.returncode == 0 and answer.stdout.strip() == version:
                return candidate
    return None


@functools.cache
def package_index() -> bool:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*outside(), *command, "--retries", "0", "--timeout", "10", "click"], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources."""
    if not package_index():
        pytest.skip("no package index can be reached")
    copy = tmp_path_factory.mktemp("tree") / "pupil-bridge"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return copy


@pytest.fixture(scope="module")
def installed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """Makes the environment of a Python version, once."""

    @functools.cache
    def install(version: str) -> Environment:
        python = interpreter(version)
        if python is None:
            pytest.skip(f"there is no Python {version} here")
        directory = tmp_path_factory.mktemp(f"venv{version}")
        made = Environment(directory)
        subprocess.run([python, "-m", "venv", str(directory)], check=True)
        command = [*outside(), *made.command("pip", "install", "--disable-pip-version-check", str(tree))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return made

    return install


@pytest.fixture
def plain(installed: Callable[[str], Environment]) -> Environment:
    """An environment of the Python that runs the tests."""
    return installed(f"{sys.version_info.major}.{sys.version_info.minor}")


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_wheel_holds_every_module_and_every_file_that_is_installed(tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run([*outside(), *command], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("pupil_bridge-*-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(tree)) for path in (tree / "bridge").rglob("*.py")}
    assert len(modules) > 40
    tapes = {str(path.relative_to(tree)) for path in (tree / "bridge").rglob("*.xz")}
    assert "bridge/simulators/data/core_short.msgpack.xz" in tapes
    endings = (".toml", ".yaml", ".rviz", ".json", ".xml")
    files = [path for path in (tree / "config").rglob("*") if path.name.endswith(endings)]
    shared = {f"share/pupil_bridge/{path.relative_to(tree)}" for path in files} | {"lib/pupil_bridge/pupil_bridge"}
    shared |= {f"share/pupil_bridge/{path.relative_to(tree)}" for path in (tree / "launch").glob("*.launch.py")}
    shared |= {f"share/pupil_bridge/{path.relative_to(tree)}" for path in (tree / "systemd").glob("*.service")}
    shared |= {f"share/pupil_bridge/{path.relative_to(tree)}" for path in (tree / "systemd").glob("*.conf")}
    shared |= {"share/pupil_bridge/package.xml", "share/ament_index/resource_index/packages/pupil_bridge"}
    assert "share/pupil_bridge/config/bridge.toml" in shared
    in_share = {name.split(".data/data/")[1] for name in names if ".data/data/" in name}
    in_package = {name for name in names if not name.startswith("pupil_bridge-")}
    assert in_share == shared
    assert in_package == modules | tapes | {"bridge/py.typed"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plain_install_needs_no_compiler_and_its_commands_work(
    installed: Callable[[str], Environment], version: str, tmp_path: Path
) -> None:
    environment = installed(version)
    shown = environment.run("pupil-bridge", "--version")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("pupil-bridge, version ")
    checked = environment.run("pupil-bridge", "check-config", str(REPOSITORY / "config" / "bridge.toml"))
    assert (checked.returncode, checked.stderr) == (0, "")
    report = tmp_path / "report.json"
    options = ["--no-ros", "--duration", "5", "--report", str(report)]
    demo = environment.run("pupil-bridge", "demo", *options, timeout_s=60)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Traceback" not in demo.stderr
    status = json.loads(report.read_text(encoding="utf-8"))
    assert status["sinks"] == ["lsl"]
    for device in status["devices"]:
        gaze = next(stream for stream in device["streams"] if stream["name"] == "gaze")
        assert gaze["samples_out"]["lsl"] > 100


def test_without_rclpy_the_daemon_says_so_in_one_line_and_lsl_works(plain: Environment, tmp_path: Path) -> None:
    beacon_port = free_udp_port()
    truth_path, config_path = tmp_path / "truth.jsonl", tmp_path / "bridge.toml"
    config_path.write_text(CONFIG.format(beacon_port=beacon_port, sinks=LSL_SINK + ROS_SINK, directory=tmp_path))
    options = ["--beacon-port", str(beacon_port), "--truth", str(truth_path)]
    with (
        running(plain.command("pupil-bridge", "simulate", "companion", *options), tmp_path / "companion.log") as phone,
        running(plain.command("pupil-bridge", "run", "--config", str(config_path)), tmp_path / "bridge.log") as process,
    ):
        assert phone.json_line()["ready"] is True
        daemon = answering(process, tmp_path / "control.sock")
        assert daemon.status()["sinks"] == ["lsl"]
        daemon.wait_locked("companion")
        (info,) = pylsl.resolve_byprop("source_id", "companion_Gaze", timeout=10)
        inlet = pylsl.StreamInlet(info, recover=False)
        try:
            pulled = [inlet.pull_sample(timeout=10) for _ in range(100)]
        finally:
            inlet.close_stream()
            del inlet
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(10) == 0
        log = process.errors()
    host_ns = {tuple(row["payload"]): row["host_ns"] for row in truth(truth_path, "gaze")}
    for sample, stamp_s in pulled:
        assert sample is not None
        assert abs(stamp_s * 1e9 - host_ns[sample[0], sample[1]]) < 1_000_000
    (line,) = [line for line in log.splitlines() if "ROS" in line]
    assert "WARNING" in line
    assert "ROS 2: rclpy is not installed, nothing is published there (pip install 'pupil-bridge[ros]'" in line
    assert "Traceback" not in log


def test_without_rclpy_a_daemon_for_ros_alone_ends_with_status_78_and_says_why(
    plain: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(CONFIG.format(beacon_port=free_udp_port(), sinks=ROS_SINK, directory=tmp_path))
    done = plain.run("pupil-bridge", "run", "--config", str(path))
    assert done.returncode == 78
    said = done.stderr.splitlines()
    assert len(said) == 2
    assert "rclpy is not installed" in said[0]
    assert said[1] == "pupil-bridge: no sink can be opened: install what it needs, or configure another one"
