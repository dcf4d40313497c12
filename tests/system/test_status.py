"""A running daemon as a person and a monitoring system see it: over HTTP, and by `status --watch` on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.harness import Bridge, Process, bridge, free_port, simulator, wait_until

TOKEN = "sixteen letters and more"
JSON = {"Content-Type": "application/json"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
TIMEOUT_S = 40.0
CONFIG = """\
[[source]]
type = "pupil_core"
name = "core"
address = "{address}"
gaze.expected_rate_hz = 200
[[sink]]
type = "lsl"
"""
HTTP = """\
[http]
listen = "127.0.0.1:{port}"
token = "{token}"
"""


class Http:
    """A client with a connection a request."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def command(self, name: str, arguments: dict[str, Any], **headers: str) -> tuple[int, Any]:
        status, body = self.ask("POST", f"/control/{name}", json.dumps(arguments), **JSON, **headers)
        return status, json.loads(body)

    def metrics(self) -> dict[str, float]:
        """The samples of one scrape, by what stands before the value."""
        status, body = self.ask("GET", "/metrics")
        assert status == 200
        found = {}
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found


@contextlib.contextmanager
def served(tmp_path: Path) -> Iterator[tuple[Process, Bridge, Http]]:
    """A simulated Capture, and a daemon that is locked on it, with HTTP."""
    port = free_port(socket.SOCK_STREAM)
    with simulator("core", tmp_path, "--port", "0") as (capture, ready):
        config = CONFIG.format(address=ready["address"]) + HTTP.format(port=port, token=TOKEN)
        with bridge(tmp_path, config) as daemon:
            daemon.wait_locked("core")
            yield capture, daemon, Http(port)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bridge, Http]]:
    with served(tmp_path_factory.mktemp("status")) as (_, daemon, client):
        yield daemon, client


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_status_over_http_is_that_of_the_socket(running: tuple[Bridge, Http]) -> None:
    daemon, client = running
    by_socket, by_http = daemon.status(), client.get("/status")
    assert by_http.keys() == by_socket.keys()
    assert [device["name"] for device in by_http["devices"]] == ["core"]
    assert by_http["devices"][0]["clock"]["state"] == "locked"


def test_metrics_count_what_the_status_counts(running: tuple[Bridge, Http]) -> None:
    daemon, client = running
    received = 'pupil_bridge_stream_samples_received_total{device="core",stream="gaze"}'
    first = client.metrics()
    wait_until(lambda: client.metrics()[received] > first[received], "the count grows")
    after = client.metrics()
    now = daemon.stream("core", "gaze")["samples_in"]
    assert first[received] < after[received] <= now
    assert after['pupil_bridge_stream_samples_sent_total{device="core",sink="lsl",stream="gaze"}'] > 0
    assert after['pupil_bridge_device_connected{device="core",kind="pupil_core"}'] == 1
    assert after['pupil_bridge_clock_state{device="core",state="locked"}'] == 1
    assert after['pupil_bridge_clock_offset_seconds{device="core"}'] == pytest.approx(-1000, abs=0.01)
    assert 0 < after['pupil_bridge_clock_bound_seconds{device="core"}'] < 0.1
    assert after['pupil_bridge_stream_expected_rate_hertz{device="core",stream="gaze"}'] == 200


def test_metrics_know_the_process(running: tuple[Bridge, Http]) -> None:
    daemon, client = running
    found, pid = client.metrics(), daemon.process.popen.pid
    assert found["process_threads"] == pytest.approx(len(os.listdir(f"/proc/{pid}/task")), abs=3)
    assert found["process_open_fds"] == pytest.approx(len(os.listdir(f"/proc/{pid}/fd")), abs=5)
    rss_bytes = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert found["process_resident_memory_bytes"] == pytest.approx(rss_bytes, rel=0.1)
    assert found["process_cpu_seconds_total"] > 0


def test_commands_need_the_token_and_are_carried_out_with_it(running: tuple[Bridge, Http]) -> None:
    daemon, client = running
    reloads = daemon.status()["config"]["reloads"]
    assert client.command("reload", {})[0] == 401
    assert client.command("reload", {}, Authorization="Bearer guess")[0] == 401
    assert daemon.status()["config"]["reloads"] == reloads
    status, answer = client.command("reload", {}, **BEARER)
    assert status == 200, answer
    assert daemon.status()["config"]["reloads"] == reloads + 1
    assert client.metrics()["pupil_bridge_config_reloads_total"] == reloads + 1


def test_what_cannot_be_done_is_refused_in_a_sentence(running: tuple[Bridge, Http]) -> None:
    _, client = running
    status, answer = client.command("fly", {}, **BEARER)
    assert status == 404
    assert "fly" in answer["error"]
    status, answer = client.command("record", {"action": "dance"}, **BEARER)
    assert status == 400
    assert "dance" in answer["error"]
    status, answer = client.command("record", {"action": "start", "device": "nobody"}, **BEARER)
    assert status == 409
    assert "nobody" in answer["error"]


def test_the_log_has_no_token(running: tuple[Bridge, Http]) -> None:
    daemon, client = running
    client.command("fly", {}, **BEARER)
    client.command("fly", {}, Authorization="Bearer my guess")
    log = daemon.process.errors()
    assert TOKEN not in log
    assert "my guess" not in log


def test_a_device_that_goes_is_a_problem_of_a_healthy_daemon(tmp_path: Path) -> None:
    with served(tmp_path) as (capture, daemon, client):
        wait_until(lambda: client.get("/healthz") == {"state": "ok", "problems": []}, "all is well")
        capture.kill()
        health = wait_until(lambda: (h := client.get("/healthz"))["state"] == "degraded" and h, "that is a problem")
        assert any("core" in problem for problem in health["problems"])
        wait_until(
            lambda: client.metrics()['pupil_bridge_device_connected{device="core",kind="pupil_core"}'] == 0,
            "the metrics say that it is away",
        )
        assert client.metrics()["pupil_bridge_problems"] > 0
        assert daemon.process.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            client.get("/healthz")


def test_a_slow_loris_keeps_neither_other_clients_nor_the_streams(running: tuple[Bridge, Http]) -> None:
    daemon, client = running
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            loris = stack.enter_context(socket.create_connection(("127.0.0.1", client.port), TIMEOUT_S))
            loris.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\nX-")
        before = client.get("/status")["devices"][0]["streams"][0]["samples_in"]
        wait_until(lambda: client.get("/status")["devices"][0]["streams"][0]["samples_in"] > before, "samples go on")
        assert client.metrics()["process_open_fds"] < 200
        assert daemon.status()["devices"][0]["connected"]


def test_a_port_that_somebody_has_ends_the_daemon_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = tmp_path / "bridge.toml"
        service = f'[service]\nsocket = "{tmp_path / "control.sock"}"\nstate_dir = "{tmp_path}"\n'
        path.write_text(CONFIG.format(address="127.0.0.1:1") + HTTP.format(port=port, token=TOKEN) + service)
        ended = subprocess.run(
            [sys.executable, "-m", "bridge", "run", "--config", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"pupil-bridge: HTTP cannot listen on 127.0.0.1:{port}: another program has that port"
    )
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_without_http_nothing_of_it_is_loaded(tmp_path: Path, running: tuple[Bridge, Http]) -> None:
    def libraries(daemon: Bridge) -> str:
        return Path(f"/proc/{daemon.process.popen.pid}/maps").read_text()

    assert "aiohttp" in libraries(running[0])
    with bridge(tmp_path, CONFIG.format(address="127.0.0.1:1")) as daemon:
        assert "aiohttp" not in libraries(daemon)


# --- a terminal ------------------------------------------------------------------------------------------------------


class Terminal:
    """A program on a terminal of 80 columns and 24 lines, and all that it wrote there."""

    def __init__(self, arguments: list[str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.popen = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "xterm-256color"},
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        )
        os.close(slave)
        self.said = ""

    def read(self) -> None:
        """Takes what is there within a tenth of a second."""
        if select.select([self._master], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # Linux's way to say that the other side has ended
                self.said += os.read(self._master, 65536).decode(errors="replace")

    def wait_for(self, condition: Callable[[str], Any], what: str) -> str:
        """What it has written since the last call, up to where the condition holds for that."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition(plain(self.said)):
            assert time.monotonic() < deadline, f"not within {TIMEOUT_S} s: {what}; it said {plain(self.said)[-3000:]}"
            self.read()
        said, self.said = self.said, ""
        return said

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait(self) -> int:
        deadline = time.monotonic() + TIMEOUT_S
        while self.popen.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self.read()
        self.read()
        return self.popen.returncode

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        os.close(self._master)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@contextlib.contextmanager
def watching(socket_path: Path) -> Iterator[Terminal]:
    terminal = Terminal([sys.executable, "-m", "bridge", "status", "--watch", "--socket", str(socket_path)])
    try:
        yield terminal
    finally:
        terminal.close()


def test_watching_draws_again_and_again_over_a_restart_until_ctrl_c(tmp_path: Path) -> None:
    with (
        simulator("core", tmp_path, "--port", "0") as (_, ready),
        watching(tmp_path / "control.sock") as terminal,
    ):
        terminal.wait_for(lambda said: "Waiting for it." in said, "there is no daemon yet")
        for _ in range(2):
            with bridge(tmp_path, CONFIG.format(address=ready["address"])) as daemon:
                said = terminal.wait_for(lambda said: said.count("pupil_0_3d") >= 3, "the table, three times")
                assert all(len(line) <= 80 for line in plain(said).replace("\r", "\n").split("\n"))
                daemon.wait_locked("core")
                terminal.wait_for(lambda said: re.search(r"core .*locked", said), "the clock is locked")
                daemon.process.kill()
                terminal.wait_for(lambda said: "Waiting for it. It answered" in " ".join(said.split()), "it is gone")
        terminal.type(b"\x03")
        assert terminal.wait() == 0
    assert "Traceback" not in terminal.said
    assert "\x1b[?25h" in terminal.said, "the cursor is there again"


@pytest.mark.slow
def test_watching_outlives_a_daemon_that_hangs(tmp_path: Path) -> None:
    with bridge(tmp_path, CONFIG.format(address="127.0.0.1:1")) as daemon, watching(tmp_path / "control.sock") as seen:
        seen.wait_for(lambda said: "core" in said, "the table")
        os.kill(daemon.process.popen.pid, signal.SIGSTOP)
        try:
            seen.wait_for(lambda said: "timed out. Waiting for it." in " ".join(said.split()), "it hangs")
        finally:
            os.kill(daemon.process.popen.pid, signal.SIGCONT)
        seen.wait_for(lambda said: "device, stream" in said, "the table again")
        seen.type(b"\x03")
        assert seen.wait() == 0


def test_watch_and_json_exclude_each_other(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bridge", "status", "--watch", "--json"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "--json and --watch exclude each other" in ended.stderr
