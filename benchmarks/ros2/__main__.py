"""CPU for each published message, and latency from process to process: the bridge's ROS sink beside minimal rclpy.

    .venv/bin/python -m benchmarks.ros2 [--contents point,gaze,imu,jpeg] [--seconds 3] [--rounds 5] [--steps]

Three publishers with one reader process each publish the same in turn: the bridge; `timer`, the minimal publisher of
ROS' own tutorial, a node with a timer and `rclpy.spin`; and `minimal`, a bare loop that sleeps and publishes and,
unlike a node, hears nothing. Each has two turns a round, the second in reverse order, and new processes in each round.
Figures are medians of rounds, ratios medians of the ratios within a round. CPU is that of the whole publishing process,
its library threads included, less (net) or with (raw) what it spends while nothing is published. Latency is from the
sample's arrival in the publishing process to the reader's callback.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.local import stay_local
from benchmarks.ros2.contents import CONTENTS, Content
from benchmarks.ros2.figures import Round, Slice, summary

GOAL = 1.3
PUBLISHERS = ("bridge", "minimal", "timer")
STEPS = ("loop", "thread", "loop-thread")
WARM_UP = 10  # messages; until they arrive, the two ends have not found each other
WARM_UP_S = 30.0


class Child:
    """A process that answers one line with one line. It ends when its input does."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"benchmarks.ros2.{module}", *arguments]
        self._process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, *command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} has ended with status {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Pair:
    """A publisher and its reader."""

    def __init__(self, stack: ExitStack, content: Content, publisher: str) -> None:
        self.topic = content.topic(publisher.replace("-", "_"))
        if publisher == "bridge":
            self._publisher = stack.enter_context(Child("publisher_bridge", content.name))
        else:
            self._publisher = stack.enter_context(Child("publisher_minimal", content.name, publisher))
        self._reader = stack.enter_context(Child("subscriber", content.name, publisher.replace("-", "_")))
        self._next = 1
        self.slices: list[Slice] = []
        self.idle: dict[str, Any] = {}

    def publish(self, count: int) -> Slice:
        first, self._next = self._next, self._next + count
        self._publisher.tell("publish", first, count)
        noted = self._publisher.answer()
        self._reader.tell("report", count)
        received = [(index, ns) for index, ns in self._reader.answer() if index >= first]
        return Slice(first, noted["sent_ns"], received, noted["cpu_ns"], noted["elapsed_ns"])

    def warm_up(self) -> None:
        deadline_s = time.monotonic() + WARM_UP_S
        while self.publish(WARM_UP).lost:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the reader of {self.topic} gets too little")

    def be_idle(self, seconds: float) -> None:
        self._publisher.tell("idle", seconds)

    def has_been_idle(self) -> None:
        self.idle = self._publisher.answer()

    def round(self) -> Round:
        return Round(self.slices, self.idle["cpu_ns"], self.idle["elapsed_ns"])


def one_round(content: Content, publishers: list[str], seconds: float) -> dict[str, Round]:
    """Each of them twice, the second time in reverse order."""
    with ExitStack() as stack:
        pairs = {name: Pair(stack, content, name) for name in publishers}
        for pair in pairs.values():
            pair.warm_up()
        for pair in pairs.values():
            pair.be_idle(seconds)
        for pair in pairs.values():
            pair.has_been_idle()
        for name in (*publishers, *reversed(publishers)):
            pairs[name].slices.append(pairs[name].publish(max(2, round(seconds * content.rate_hz))))
        return {name: pair.round() for name, pair in pairs.items()}


def measure(content: Content, publishers: list[str], seconds: float, rounds: int) -> dict[str, dict[str, Any]]:
    """The figures of each, with ratios to those of "minimal", and the bridge's to those of "timer"."""
    found: dict[str, list[Round]] = {name: [] for name in publishers}
    for number in range(rounds):
        order = publishers if number % 2 == 0 else publishers[::-1]
        for name, one in one_round(content, order, seconds).items():
            found[name].append(one)
    figures = {name: summary(found[name], found["minimal"]) for name in publishers}
    figures["bridge"]["ratios_to_timer"] = summary(found["bridge"], found["timer"])["ratios"]
    return figures


def show(content: Content, figures: dict[str, dict[str, Any]]) -> None:
    for name, one in figures.items():
        ratios = one["ratios"]
        parts = ", ".join(f"{part} {us:.0f}" for part, us in one["parts_us"].items())
        print(
            f"{content.name:<6} {content.rate_hz:4.0f} {name:<12} {one['sent']:6d} {one['lost']:4d}"
            f" {one['net_us']:8.1f} {ratios['net_us']:5.2f} {one['ros_us']:8.1f} {ratios['ros_us']:5.2f}"
            f" {one['raw_us']:8.1f} {ratios['raw_us']:5.2f}"
            f" {one['idle_us_per_s']:7.0f} {one['p50_us']:8.0f} {ratios['p50_us']:5.2f}"
            f" {one['p99_us']:8.0f} {ratios['p99_us']:5.2f}   {parts}",
            flush=True,
        )
    ratios = figures["bridge"]["ratios_to_timer"]
    print(
        f"{content.name:<6} bridge / timer: CPU net {ratios['net_us']:.2f}, raw {ratios['raw_us']:.2f},"
        f" p50 {ratios['p50_us']:.2f}, p99 {ratios['p99_us']:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contents", default=",".join(CONTENTS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", action="store_true", help="also what lies between the bare loop and the bridge")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    publishers = [*PUBLISHERS, *(STEPS if options.steps else ())]
    with tempfile.TemporaryDirectory(prefix="pupil-bridge-benchmark-") as directory:
        stay_local(Path(directory))
        os.environ["ROS_LOG_DIR"] = directory
        os.environ.pop("ROS_PYTHON_CHECK_FIELDS", None)  # they cost more than publishing
        load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        print(f"{os.cpu_count()} cores, load average {load}; {options.rounds} rounds of 2 x {options.seconds:g} s")
        print(f"CPU in us a message, x: its ratio to minimal's (goal, beside a minimal publisher: at most {GOAL});")
        print("raw: with what an idle process")
        print("spends, idle/s: that in us a second; of ROS: net without the bridge's loop, which receives and maps;")
        print("latency in us; last, the net CPU by thread\n")
        print(
            f"{'what':<6} {'Hz':>4} {'publisher':<12} {'n':>6} {'lost':>4}"
            f" {'CPU net':>8} {'x':>5} {'of ROS':>8} {'x':>5}"
            f" {'CPU raw':>8} {'x':>5} {'idle/s':>7} {'p50':>8} {'x':>5} {'p99':>8} {'x':>5}   by thread"
        )
        found: dict[str, Any] = {}
        for name in options.contents.split(","):
            content = CONTENTS[name]
            try:
                _ = content.type
            except (ImportError, AttributeError):
                print(f"{name:<6} left out: its message's package is not installed", flush=True)
                continue
            found[name] = measure(content, publishers, options.seconds, options.rounds)
            show(content, found[name])
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
