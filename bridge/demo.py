"""The whole bridge on two simulated eye trackers, on this machine alone, with a live table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from bridge.errors import BridgeError
from bridge.service import logs, loopback, table

SIMULATOR_START_S = 20.0
SIMULATOR_STOP_S = 5.0
REFRESH_S = 0.5
PLAIN_REFRESH_S = 5.0

CONFIG = """\
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
match = {companion}
name = "companion"
lsl_prefix = "pupil_labs"
sensors = ["gaze", "event", "imu", "scene"]
gaze = {{ expected_rate_hz = {gaze_hz} }}
event = {{ expected_rate_hz = {event_hz} }}
imu = {{ expected_rate_hz = {imu_hz} }}
scene = {{ expected_rate_hz = {scene_hz} }}

[[source]]
type = "pupil_core"
address = "{core_address}"
name = "core"
lsl_prefix = "pupil_capture"
topics = ["gaze", "pupil", "frame.world"]
gaze = {{ expected_rate_hz = {core_gaze_hz} }}
pupil = {{ expected_rate_hz = {core_pupil_hz} }}
scene = {{ expected_rate_hz = {core_scene_hz} }}

[[sink]]
type = "lsl"
{ros_sink}
[service]
socket = {socket}
state_dir = {state_dir}
"""
ROS_SINK = """
[[sink]]
type = "ros2"
"""


def run(*, duration_s: float, report: Path | None, ros: bool, truth_dir: Path | None) -> None:
    """Runs until Ctrl-C or for ``duration_s``, writes ``report``. Raises BridgeError when something does not start."""
    console = Console()
    # Until the bridge's loop takes the signal over: whoever ends the demo while it starts ends its simulators too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pupil-bridge-demo-")))
        _stay_on_this_machine(directory, ros, console)
        if truth_dir is not None:
            truth_dir.mkdir(parents=True, exist_ok=True)
        # A beacon port of its own: other simulated devices and bridges on this machine are not in the demo.
        beacon_port = _free_udp_port()
        clock = ("--offset-s", "1000", "--drift-ppm", "50")
        companion = stack.enter_context(
            _simulator("companion", "--beacon-port", str(beacon_port), *clock, *_truth(truth_dir, "companion"))
        )
        core = stack.enter_context(_simulator("core", "--port", "0", "--drift-ppm", "-20", *_truth(truth_dir, "core")))
        text = CONFIG.format(
            beacon_port=beacon_port,
            companion=json.dumps(companion["name"]),
            gaze_hz=companion["streams"]["gaze"],
            event_hz=companion["streams"]["event"],
            imu_hz=companion["streams"]["imu"],
            scene_hz=companion["streams"]["scene"],
            core_address=core["address"],
            core_gaze_hz=core["streams"]["gaze"],
            core_pupil_hz=core["streams"]["pupil.0.3d"],
            core_scene_hz=core["frames"]["rate_hz"],
            ros_sink=ROS_SINK if ros else "",
            socket=json.dumps(str(directory / "control.sock")),
            state_dir=json.dumps(str(directory)),
        )
        final = _bridge(text, duration_s, console)
    console.print(table.status_table(final))
    if report is not None:
        report.write_text(json.dumps(final, indent=2) + "\n", encoding="utf-8")
        console.print(f"report: {report}")


def _stay_on_this_machine(directory: Path, ros: bool, console: Console) -> None:
    """Sets, before any library reads it, what keeps LSL and DDS on loopback. What the user has set stays."""
    if "LSLAPICFG" not in os.environ:
        path = directory / "lsl_api.cfg"
        loopback.write_lsl_api_cfg(path, f"pupil-bridge-demo-{random.randrange(10**6)}")
        os.environ["LSLAPICFG"] = str(path)
    console.print("LSL: start LabRecorder (or any LSL program) with this, to see the streams:")
    console.print(f"  LSLAPICFG={os.environ['LSLAPICFG']}", soft_wrap=True)
    if ros:
        os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        os.environ.setdefault("ROS_DOMAIN_ID", str(random.randrange(1, 100)))
        console.print("ROS 2: see the topics with this:")
        names = ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")
        console.print("  " + " ".join(f"{name}={os.environ[name]}" for name in names), soft_wrap=True)


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _truth(truth_dir: Path | None, name: str) -> list[str]:
    return [] if truth_dir is None else ["--truth", str(truth_dir / f"{name}.jsonl")]


@contextlib.contextmanager
def _simulator(kind: str, *options: str) -> Iterator[dict[str, Any]]:
    """A simulator in its own process; yields what it says of itself once it is ready."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "bridge", "simulate", kind, *options],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for the demo, which ends its simulators after the bridge
    )
    assert process.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(SIMULATOR_START_S) else ""
        if not line:
            process.kill()
            raise BridgeError(f"the simulated {kind} did not start (exit status {process.wait()})")
        yield json.loads(line)
    finally:
        process.terminate()
        try:
            process.wait(SIMULATOR_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _bridge(config_text: str, duration_s: float, console: Console) -> dict[str, Any]:
    """Runs the daemon in this process, shows its status, and returns the last one."""
    # Imported after the environment is set: pylsl reads LSLAPICFG when it is loaded.
    from bridge import config, daemon, process

    tree = config.parse(config_text, "the demo's configuration")
    logs.set_up("warning", "text")
    instance: daemon.Daemon | None = None

    last: dict[str, Any] = {}

    async def show(bridge: daemon.Daemon) -> None:
        nonlocal last
        last = bridge.control.status()
        loop = asyncio.get_running_loop()
        stopped = loop.create_task(process.stop_signal())
        end = loop.time() + duration_s if duration_s > 0 else None
        interval_s = REFRESH_S if console.is_terminal else PLAIN_REFRESH_S
        with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
            while not stopped.done() and (end is None or loop.time() < end):
                wait_s = interval_s if end is None else min(interval_s, max(0.0, end - loop.time()))
                await asyncio.wait([stopped], timeout=wait_s)
                last = bridge.control.status()
                shown = table.status_table(last, fit=live is not None)
                if live is not None:
                    live.update(shown, refresh=True)
                elif end is None or loop.time() < end:  # the final table follows
                    console.print(shown)
        stopped.cancel()

    async def main() -> None:
        nonlocal instance
        instance = daemon.Daemon(tree)
        bridge = instance
        await bridge.run(lambda: show(bridge))

    process.run_loop(main())
    assert instance is not None
    final = instance.control.status()
    # How the devices were before they were let go: by now none of them is there.
    connected = {device["name"]: device["connected"] for device in last["devices"]}
    for device in final["devices"]:
        device["connected"] = connected.get(device["name"], False)
    return {**final, "problems": last["problems"]}
