"""LSL markers through the daemon to a simulated phone and a simulated Pupil Capture, and what these know to be true."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pylsl
import pytest

from tests.system.harness import Bridge, bridge, free_port, simulator, truth, wait_until

NUMBER = random.randrange(10**9)  # see test_restart.py
PHONE, CORE = f"phone_{NUMBER}", f"core_{NUMBER}"
OF_THE_BRIDGE = "lsl.time_sync."  # events that the bridge itself sends to phones
ANNOTATION_S = 0.001

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Lab(NamedTuple):
    daemon: Bridge
    phone: Path
    core: Path
    directory: Path
    devices: str  # their configuration

    def stream(self, index: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.daemon.status()["markers"][index]
        return found

    def heard(self, index: int = 0) -> None:
        wait_until(
            lambda: self.stream(index)["correction_s"] is not None,
            f"the stream's clock is known; log: {self.daemon.process.errors()}",
        )

    def reload(self, markers: str) -> str:
        service = f'[service]\nsocket = "{self.daemon.control}"\nstate_dir = "{self.directory / "state"}"\n'
        (self.directory / "bridge.toml").write_text(f"{self.devices}{markers}{service}", encoding="utf-8")
        return str(self.daemon.ask("reload")["changes"])


def listen(name: str, **keys: object) -> str:
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    return f"[[marker]]\nstream = {json.dumps(name)}\n{more}"


def outlet(name: str, kind: str = "string") -> pylsl.StreamOutlet:
    return pylsl.StreamOutlet(pylsl.StreamInfo(name, "Markers", 1, 0.0, kind, f"stimuli of {name}"))


@pytest.fixture
def stream() -> str:
    """A name of its own: an outlet of a test that has failed is still there."""
    return f"PsychoPy {random.randrange(10**9)}"


@contextmanager
def lab(tmp_path: Path, markers: str) -> Iterator[Lab]:
    """A phone and a Capture whose clocks are known."""
    beacon_port, port = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    phone, core = tmp_path / "phone.jsonl", tmp_path / "core.jsonl"
    devices = (
        f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {beacon_port}\n'
        f'[[source.device]]\nname = "{PHONE}"\n'
        f'[[source]]\ntype = "pupil_core"\naddress = "127.0.0.1:{port}"\nname = "{CORE}"\n[[sink]]\ntype = "lsl"\n'
    )
    with (
        simulator(
            *("companion", tmp_path, "--beacon-port", str(beacon_port), "--truth", str(phone)),
            *("--event-rate", "0", "--offset-s", "-100000", "--drift-ppm", "50"),
        ),
        simulator("core", tmp_path, "--port", str(port), "--truth", str(core), "--offset-s", "4000"),
        bridge(tmp_path, devices + markers) as daemon,
    ):
        daemon.wait_locked(PHONE, CORE)
        yield Lab(daemon, phone, core, tmp_path, devices)


def events(path: Path, stream: str) -> list[tuple[str, float]]:
    """What devices were sent, with the true host time of each in s."""
    rows = [(row["payload"], row["host_ns"] / 1e9) for row in truth(path, stream)]
    named = [(text if isinstance(text, str) else text["label"], host_s) for text, host_s in rows]
    return [(text, host_s) for text, host_s in named if not text.startswith(OF_THE_BRIDGE)]


def labels(path: Path, stream: str) -> list[str]:
    return [text for text, _ in events(path, stream)]


def test_a_marker_is_an_event_on_the_phone_and_an_annotation_in_capture_at_its_moment(
    tmp_path: Path, stream: str
) -> None:
    source = outlet(stream)
    with lab(tmp_path, listen(stream)) as found:
        found.heard()
        sent = {f"stimulus {number} é": pylsl.local_clock() - 0.3 * number for number in range(10)}
        for text, stamp_s in sent.items():
            source.push_sample([text], stamp_s)
        wait_until(lambda: found.stream()["done"] == 20, f"all of them; {found.daemon.process.errors()}")
        wait_until(lambda: len(events(found.phone, "event")) == 10, "all are on the phone")
        bound_s = found.daemon.device(PHONE)["clock"]["bound_s"]
        worst_s = {}
        for path, kind, within_s in (
            (found.phone, "event", bound_s + 0.0005),
            (found.core, "annotation", ANNOTATION_S),
        ):
            assert labels(path, kind) == list(sent), "each once, in their order"
            worst_s[kind] = max(abs(host_s - sent[label]) for label, host_s in events(path, kind))
            assert worst_s[kind] < within_s
        print(f"\nworst error of an event and an annotation: {json.dumps(worst_s)} s")
        status = found.stream()
        assert (status["taken"], status["refused"], status["dropped"]) == (10, {}, 0)
        assert f"LSL markers {stream} (events): 10 taken, 20 done" in _table(found.daemon)
        assert found.daemon.process.complaints() == []
        assert found.daemon.process.stop() == 0


def _table(daemon: Bridge) -> str:
    command = [sys.executable, "-m", "bridge", "status", "--socket", str(daemon.control)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def test_a_marker_starts_and_stops_the_recordings(tmp_path: Path, stream: str) -> None:
    source = outlet(stream)
    with lab(tmp_path, listen(stream, does="commands")) as found:
        found.heard()
        source.push_sample(["record start Versuch 3"])
        for name in (PHONE, CORE):
            wait_until(lambda name=name: found.daemon.device(name)["recording"] is True, f"{name} records")
        source.push_sample(["annotate in between"])
        source.push_sample(["record stop"])
        for name in (PHONE, CORE):
            wait_until(lambda name=name: found.daemon.device(name)["recording"] is False, f"{name} has stopped")
        assert [json.loads(row["payload"]) for row in truth(found.phone, "control")] == [
            {"capture_session_name": "Versuch 3"},
            {"local_capture": True},
            {"local_capture": False},
        ]
        assert labels(found.core, "annotation") == ["in between"]
        source.push_sample(["shutdown"])
        wait_until(lambda: found.stream()["refused"] == {"unknown": 1}, "what is no command is refused")
        assert found.stream()["done"] == 6


def test_events_of_the_phone_do_not_come_back_to_it(tmp_path: Path) -> None:
    own = f"pupil_labs_{PHONE}_Event"
    with lab(tmp_path, listen(own)) as found:
        wait_until(lambda: "comes from a pupil-bridge" in (found.stream()["problem"] or ""), "it is refused")
        assert found.daemon.ask("event", text="once", device=PHONE)["done"] == {PHONE: "sent"}
        wait_until(lambda: labels(found.phone, "event") == ["once"], "the event is on the phone")
        wait_until(lambda: found.daemon.stream(PHONE, "event")["samples_out"]["lsl"] >= 1, "and back in LSL")
        assert any("comes from a pupil-bridge" in problem for problem in found.daemon.status()["problems"])
        assert found.daemon.ask("event", text="last", device=PHONE)["done"] == {PHONE: "sent"}
        wait_until(lambda: "last" in labels(found.phone, "event"), "the last one is on the phone")
        assert labels(found.phone, "event") == ["once", "last"]
        assert found.stream()["taken"] == 0


def test_a_reload_changes_what_is_listened_to_and_nothing_else(tmp_path: Path, stream: str) -> None:
    source, triggers = outlet(stream), outlet(f"triggers {NUMBER}", "int32")
    with lab(tmp_path, "") as found:
        assert found.daemon.status()["markers"] == []
        assert found.reload(listen(stream)) == f"added marker stream {stream}"
        found.heard()
        source.push_sample(["one"])
        wait_until(lambda: labels(found.core, "annotation") == ["one"], "the first")
        both = listen(stream, devices=[PHONE]) + listen(f"triggers {NUMBER}", devices=[CORE])
        assert found.reload(both) == f"added marker stream triggers {NUMBER}, changed marker stream {stream}"
        found.heard(1)
        source.push_sample(["two"])
        triggers.push_sample([255])
        wait_until(lambda: labels(found.phone, "event") == ["one", "two"], "for the phone alone")
        wait_until(lambda: labels(found.core, "annotation") == ["one", "255"], "for Capture alone")
        assert found.reload("") == f"removed marker stream {stream}, removed marker stream triggers {NUMBER}"
        assert not source.have_consumers()


def test_the_daemon_ends_in_time_while_a_stream_is_looked_for(tmp_path: Path, stream: str) -> None:
    config = '[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\n[[sink]]\ntype = "lsl"\n'
    with bridge(tmp_path, config + listen(stream)) as daemon:
        wait_until(lambda: "is not there; waiting for it" in daemon.process.errors(), "it is looked for")
        begun_s = time.monotonic()
        assert daemon.process.stop() == 0
        assert time.monotonic() - begun_s < 8, "systemd's patience"
        assert "is still listened to" not in daemon.process.errors()
