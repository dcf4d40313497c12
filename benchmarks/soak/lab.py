"""Everything that runs in a soak: four simulated eye trackers, the daemon, readers of LSL and ROS 2."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError
from bridge.service import control_socket

STOP_S = 10.0
GAZE_HZ, PUPIL_HZ = 120, 60
# Below the range of ports that the kernel gives to connections: a Capture has to get its own back.
CAPTURE_PORTS = range(20_000, 32_000)
NDSI = """\
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {port}
"""
PHONE = """\
[[source.device]]
name = "{name}"
match = "{own_name}"
"""
CAPTURE = """\
[[source]]
type = "pupil_core"
name = "{name}"
address = "127.0.0.1:{port}"
"""
SINK = '[[sink]]\ntype = "{kind}"\n'


def has_ros() -> bool:
    return importlib.util.find_spec("rclpy") is not None


def free_port(kind: socket.SocketKind, ports: range) -> int:
    """A port of 127.0.0.1 in this range that nobody has."""
    while True:
        port = random.choice(ports)
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Child:
    """A process; what it says goes to files of its name."""

    def __init__(self, name: str, arguments: list[str], directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.out, self.log = directory / f"{name}.out", directory / f"{name}.log"
        with self.out.open("wb") as out, self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env={**os.environ, **(env or {})}
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines that it has said so far, whole ones only; DDS says things of its own."""
        whole, _, _ = self.out.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]

    def first_line(self, timeout_s: float = 30.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while not (lines := self.lines()):
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} says nothing: {self.errors()}")
            time.sleep(0.02)
        return lines[0]

    def check(self) -> None:
        """Raises RuntimeError when it has ended."""
        status = self.popen.poll()
        if status is not None:
            raise RuntimeError(f"{self.name} has ended with status {status}: {self.errors()[-3000:]}")

    def errors(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def stop(self) -> int:
        """Ends it politely, and by force when that takes too long; the exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        return self.popen.wait()


class Tracker:
    """A simulated eye tracker: one name in the bridge, as many lives as it is given."""

    def __init__(self, kind: str, name: str, directory: Path, own_name: str, port: int, seed: int) -> None:
        """``port`` is that of ZRE's beacons for a phone, and of Pupil Remote for a Capture."""
        self.kind = kind
        self.name = name
        self.own_name = own_name
        self.port = port
        self.lives = 0
        self.process: Child
        self._directory = directory
        self._dice = random.Random(f"{seed}/{name}")

    def start(self) -> None:
        """Begins a life, on a clock that has nothing to do with the one before."""
        self.lives += 1
        options = ["--offset-s", f"{self._dice.uniform(-5000, 5000):.3f}"]
        options += ["--drift-ppm", f"{self._dice.uniform(-50, 50):.1f}"]
        if self.kind == "companion":
            options += ["--name", self.own_name, "--beacon-port", str(self.port), "--gaze-rate", str(GAZE_HZ)]
            options += ["--restart-step-s", f"{self._dice.uniform(-50, 50):.3f}"]
        else:
            options += ["--port", str(self.port), "--synthesise", "--gaze-rate", str(GAZE_HZ)]
            options += ["--pupil-rate", str(PUPIL_HZ)]
        command = [sys.executable, "-m", "bridge", "simulate", self.kind, *options]
        self.process = Child(self.name, command, self._directory)

    @property
    def ready(self) -> dict[str, Any] | None:
        """Its ready line, once it is there."""
        lines = self.process.lines()
        if not lines:
            self.process.check()
            return None
        if self.kind == "core" and not lines[0]["address"].endswith(f":{self.port}"):
            raise RuntimeError(f"{self.name} did not get its port {self.port}: {lines[0]['address']}")
        return lines[0]


class Lab:
    """A context that starts everything, and ends it all."""

    def __init__(self, directory: Path, seed: int, *, ros: bool | None = None) -> None:
        self.directory = directory
        self.ros = has_ros() if ros is None else ros
        self.beacon_port = free_port(socket.SOCK_DGRAM, CAPTURE_PORTS)
        # A recorder recovers a stream by its name, wherever it is on this machine: the names are this run's own.
        run = random.randrange(10**6)
        self.trackers = [
            Tracker("companion", f"phone_{n}_{run}", directory, f"Soak Phone {n}", self.beacon_port, seed)
            for n in (1, 2)
        ]
        for n in (1, 2):
            port = free_port(socket.SOCK_STREAM, CAPTURE_PORTS)
            self.trackers.append(Tracker("core", f"capture_{n}_{run}", directory, "Pupil Capture", port, seed))
        self.socket = directory / "control.sock"
        self.config = directory / "bridge.toml"
        self.daemon: Child
        self.readers: dict[str, Child] = {}

    def __enter__(self) -> Lab:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        self.write_config()
        command = [sys.executable, "-m", "bridge", "run", "--config", str(self.config)]
        self.daemon = Child("daemon", command, self.directory)
        deadline = time.monotonic() + 30
        while True:
            self.daemon.check()
            try:
                self.status()
                break
            except BridgeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        # Before there is a sample: a reader's count has to be the daemon's, to the last one.
        for kind in ("lsl", "ros2") if self.ros else ("lsl",):
            names = [tracker.name for tracker in self.trackers]
            command = [sys.executable, "-m", "benchmarks.soak.reader", kind, *names]
            self.readers[kind] = Child(f"reader_{kind}", command, self.directory)
        for reader in self.readers.values():
            reader.first_line()
        for tracker in self.trackers:
            tracker.start()
        for tracker in self.trackers:
            tracker.process.first_line()

    def _stop(self) -> None:
        trackers = [tracker.process for tracker in self.trackers if hasattr(tracker, "process")]
        daemon = [self.daemon] if hasattr(self, "daemon") else []
        for child in (*trackers, *self.readers.values(), *daemon):
            child.stop()

    def write_config(self, extra: str = "") -> None:
        """The configuration, with more tables at its end."""
        phones = [tracker for tracker in self.trackers if tracker.kind == "companion"]
        captures = [tracker for tracker in self.trackers if tracker.kind == "core"]
        text = NDSI.format(port=self.beacon_port)
        text += "".join(PHONE.format(name=each.name, own_name=each.own_name) for each in phones)
        # The one that sends what is malformed has its outlets from the beginning: files and threads are compared.
        text += PHONE.format(name="bad_phone", own_name="Bad Phone")
        text += "".join(CAPTURE.format(name=each.name, port=each.port) for each in captures)
        text += "".join(SINK.format(kind=kind) for kind in (("lsl", "ros2") if self.ros else ("lsl",)))
        text += f'[service]\nsocket = "{self.socket}"\nstate_dir = "{self.directory / "state"}"\n'
        partial = self.config.with_suffix(".partial")
        partial.write_text(text + extra, encoding="utf-8")
        partial.replace(self.config)

    def status(self) -> dict[str, Any]:
        """What the daemon says. Raises BridgeError when it says nothing within five seconds."""
        return control_socket.ask(self.socket, "status")

    @property
    def catches_hangup(self) -> bool:
        """Whether SIGHUP would reload the daemon; one that knows nothing of it would end."""
        text = Path(f"/proc/{self.daemon.pid}/status").read_text()
        caught = next(line for line in text.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGHUP - 1) & 1)
