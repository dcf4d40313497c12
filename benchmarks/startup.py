"""How long `--help` and the start of the daemon take, how much memory it has then, and what its imports cost.

    .venv/bin/python -m benchmarks.startup [--repeats 11] [--settle 10]

Ready is the datagram READY=1 that systemd would get, or the log's line "running" of a daemon that sends none. Memory is
the resident set of the daemon ten seconds after that. Limits: `--help` 0.3 s, ready 1.5 s, 140 MB with LSL and ROS 2,
100 MB with LSL alone. Exit status 1 when a limit of memory is passed; times are the computer's and are only printed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from benchmarks.local import stay_local
from benchmarks.soak.lab import CAPTURE, CAPTURE_PORTS, NDSI, PHONE, SINK, Child, Tracker, free_port, has_ros

READY_S = 30.0
NOTIFIES_S = 0.5
HELP_S, START_S = 0.3, 1.5
LIMIT_MB = {("lsl", "ros2"): 140.0, ("lsl",): 100.0}
DEVICES = (0, 1, 4)
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)")


def help_times(repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds of `pupil-bridge --help`, medians."""
    command = [str(Path(sys.executable).with_name("pupil-bridge")), "--help"]
    walls, cpus = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        walls.append(time.perf_counter() - started)
        cpus.append(usage.ru_utime + usage.ru_stime)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command} has ended with status {process.returncode}")
    return statistics.median(walls), statistics.median(cpus)


class Start:
    """One daemon with simulated eye trackers, phones and Captures in turn."""

    def __init__(self, directory: Path, sinks: tuple[str, ...], devices: int) -> None:
        directory.mkdir()
        run = random.randrange(10**6)
        beacon_port = free_port(socket.SOCK_DGRAM, CAPTURE_PORTS)
        self.trackers = []
        for number in range(devices):
            kind = ("companion", "core")[number % 2]
            port = beacon_port if kind == "companion" else free_port(socket.SOCK_STREAM, CAPTURE_PORTS)
            self.trackers.append(Tracker(kind, f"{kind}_{number}_{run}", directory, f"Phone {number}", port, number))
        text = NDSI.format(port=beacon_port)
        phones = [tracker for tracker in self.trackers if tracker.kind == "companion"]
        captures = [tracker for tracker in self.trackers if tracker.kind == "core"]
        text += "".join(PHONE.format(name=each.name, own_name=each.own_name) for each in phones)
        text += "".join(CAPTURE.format(name=each.name, port=each.port) for each in captures)
        text += "".join(SINK.format(kind=kind) for kind in sinks)
        text += f'[service]\nsocket = "{directory}/control.sock"\nstate_dir = "{directory}/state"\n'
        self._config = directory / "bridge.toml"
        self._config.write_text(text, encoding="utf-8")
        self._directory = directory
        self.by = ""

    def __enter__(self) -> Start:
        with ExitStack() as stack:
            for tracker in self.trackers:
                tracker.start()
                stack.callback(tracker.process.stop)
            for tracker in self.trackers:
                tracker.process.first_line()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, *python_options: str) -> float:
        """Starts the daemon; seconds until it is ready."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            path = self._directory / "notify.sock"
            path.unlink(missing_ok=True)
            notify.bind(str(path))
            notify.settimeout(0.002)
            command = [sys.executable, *python_options, "-m", "bridge", "run", "--config", str(self._config)]
            started = time.perf_counter()
            self.daemon = Child("daemon", command, self._directory, {"NOTIFY_SOCKET": str(path)})
            self._stack.callback(self.daemon.stop)
            line_s = None
            while (elapsed_s := time.perf_counter() - started) < READY_S:
                try:
                    if b"READY=1" in notify.recv(4096):
                        self.by = "READY=1"
                        return time.perf_counter() - started
                except TimeoutError:
                    self.daemon.check()
                if line_s is None and " running: " in self.daemon.errors():
                    line_s = elapsed_s
                # A daemon that notifies does so just before or after this line.
                if line_s is not None and elapsed_s > line_s + NOTIFIES_S:
                    self.by = "the log"
                    return line_s
            raise RuntimeError(f"not ready in {READY_S:g} s: {self.daemon.errors()}")

    def rss_mb(self, settle_s: float) -> float:
        time.sleep(settle_s)  # the measurement's own definition
        self.daemon.check()
        text = Path(f"/proc/{self.daemon.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6


def import_costs(log: str) -> tuple[Counter[str], Counter[str]]:
    """Microseconds and modules by package, of what -X importtime has written. The bridge's own are told by module."""
    costs: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for match in IMPORT.finditer(log):
        name = match[2]
        package = name.split(".")[0]
        if package in sys.stdlib_module_names:
            package = "(standard library)"
        costs[package] += int(match[1])
        modules[package] += 1
    return costs, modules


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--settle", type=float, default=10.0, help="seconds after which memory is read")
    options = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory(prefix="pupil-bridge-startup-") as temporary:
        directory = Path(temporary)
        stay_local(directory)
        os.environ["ROS_LOG_DIR"] = temporary
        wall_s, cpu_s = help_times(options.repeats)
        print(f"--help: {wall_s:.3f} s wall, {cpu_s:.3f} s CPU (median of {options.repeats}; limit {HELP_S} s)\n")
        print(f"{'sinks':<12}{'devices':>8}{'ready s':>9}{'RSS MB':>8}{'limit':>7}   ready by")
        for sinks, limit_mb in LIMIT_MB.items():
            if "ros2" in sinks and not has_ros():
                print("ROS 2: rclpy is not installed, left out")
                continue
            for devices in DEVICES:
                with Start(directory / f"{'_'.join(sinks)}_{devices}", sinks, devices) as start:
                    ready_s, rss_mb = start.run(), start.rss_mb(options.settle)
                passed = passed and rss_mb < limit_mb
                print(
                    f"{' + '.join(sinks):<12}{devices:>8}{ready_s:>9.2f}{rss_mb:>8.1f}{limit_mb:>7.0f}   {start.by}",
                    flush=True,
                )
        for sinks in LIMIT_MB:
            if "ros2" in sinks and not has_ros():
                continue
            times = []
            for number in range(options.repeats):
                with Start(directory / f"{'_'.join(sinks)}_again_{number}", sinks, 0) as start:
                    times.append(start.run())
            print(
                f"\nready with {' + '.join(sinks)}: {statistics.median(times):.2f} s, {min(times):.2f} to "
                f"{max(times):.2f} s (median of {options.repeats}; limit {START_S} s)"
            )
            with Start(directory / f"{'_'.join(sinks)}_imports", sinks, 0) as start:
                start.run("-X", "importtime")
                costs, modules = import_costs(start.daemon.errors())
            print(f"imports: {sum(costs.values()) / 1e3:.0f} ms, {sum(modules.values())} modules; the dearest:")
            for package, cost_us in costs.most_common(14):
                print(f"  {package:<24}{cost_us / 1e3:>8.1f} ms{modules[package]:>6} modules")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
