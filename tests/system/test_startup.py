"""What the start costs: nothing heavy for `--help`, and a bounded memory of the daemon.

Times are printed by benchmarks/startup.py; they depend on the computer and are not asserted.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.system.harness import bridge, free_port, simulator, wait_until

HEAVY = {"numpy", "pydantic", "zmq", "rclpy", "pylsl", "aiohttp", "prometheus_client", "rich", "asyncio", "stamina"}
SAMPLES = 1200  # ten seconds of gaze: everything that is imported or made late is there
ROS = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="needs rclpy")
CONFIG = """
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
name = "companion"
[[source]]
type = "pupil_core"
address = "{core}"
name = "core"
"""
RUN = """
import json, runpy, sys
sys.argv = ["pupil-bridge", *{arguments!r}]
try:
    runpy.run_module("bridge", run_name="__main__")
finally:
    print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})), file=sys.stderr)
"""


def imported(*arguments: str) -> set[str]:
    """The top-level packages that the command has imported when it ends."""
    command = [sys.executable, "-c", RUN.format(arguments=arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    found: set[str] = set(json.loads(done.stderr.splitlines()[-1]))
    assert "click" in found
    return found


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("status", "--help"), ("--version",)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not imported(*arguments) & HEAVY


def test_a_command_that_works_is_seen_to_import_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text('[[source]]\ntype = "pupil_core"\n[[sink]]\ntype = "lsl"\n', encoding="utf-8")
    found = imported("check-config", str(path))
    assert "pydantic" in found
    assert not found & {"zmq", "rclpy", "pylsl", "aiohttp"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sinks", "limit_mb"),
    [pytest.param(("lsl",), 100, id="lsl"), pytest.param(("lsl", "ros2"), 140, id="lsl_and_ros2", marks=ROS)],
)
def test_memory_of_a_daemon_that_streams(sinks: tuple[str, ...], limit_mb: int, tmp_path: Path) -> None:
    beacon_port = free_port(socket.SOCK_DGRAM)
    with (
        simulator("companion", tmp_path, "--beacon-port", str(beacon_port)),
        simulator("core", tmp_path, "--port", "0") as (_, core),
    ):
        config = CONFIG.format(beacon_port=beacon_port, core=core["address"])
        config += "".join(f'[[sink]]\ntype = "{sink}"\n' for sink in sinks)
        with bridge(tmp_path, config) as daemon:
            for device in ("companion", "core"):
                wait_until(
                    lambda d=device: min(daemon.stream(d, "gaze").get("samples_out", {"": 0}).values()) >= SAMPLES,
                    f"{SAMPLES} samples of {device}; log: {daemon.process.errors()}",
                    timeout_s=40.0,
                    interval_s=0.25,
                )
            assert daemon.status()["sinks"] == list(sinks)
            rss_mb = psutil.Process(daemon.process.popen.pid).memory_info().rss / 1e6
            print(f"\n{' + '.join(sinks)}: {rss_mb:.1f} MB")
            assert rss_mb < limit_mb
