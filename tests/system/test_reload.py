"""A configuration that is loaded anew while four devices stream: what it does not touch loses no sample."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridge.errors import ConfigError
from tests.system.harness import Bridge, bridge, free_port, simulator, truth, wait_for_streams, wait_until

GAZE_HZ = 120
STEP_SAMPLES = 150  # that every device sends between two changes: more than a second
OTHERS = ("phone_b", "core_a", "core_b")


class Lab(NamedTuple):
    daemon: Bridge
    directory: Path
    port: int
    cores: dict[str, str]  # name -> address

    def config(self, *, left: str = "phone_a", phone_b: bool = True, core_b: bool = True, more: str = "") -> str:
        """The whole file; ``left`` is what the first phone is called."""
        text = f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {self.port}\n'
        text += f'[[source.device]]\nmatch = "Phone A"\nname = "{left}"\n'
        if phone_b:
            text += '[[source.device]]\nmatch = "Phone B"\nname = "phone_b"\n'
        for name, address in self.cores.items():
            if core_b or name != "core_b":
                text += f'[[source]]\ntype = "pupil_core"\nname = "{name}"\naddress = "{address}"\n'
        return text + '[[sink]]\ntype = "lsl"\n' + more

    def write(self, **changes: Any) -> None:
        service = f'[service]\nsocket = "{self.daemon.control}"\nstate_dir = "{self.directory / "state"}"\n'
        (self.directory / "bridge.toml").write_text(self.config(**changes) + service, encoding="utf-8")

    def reload(self, **changes: Any) -> str:
        self.write(**changes)
        return str(self.daemon.ask("reload")["changes"])

    def samples_in(self, name: str) -> int:
        return int(self.daemon.stream(name, "gaze").get("samples_in", 0))

    def stream_on(self, *names: str) -> None:
        before = {name: self.samples_in(name) for name in names}
        wait_until(
            lambda: all(self.samples_in(name) >= before[name] + STEP_SAMPLES for name in names),
            f"samples of {names}; log: {self.daemon.process.errors()}",
        )


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    port = free_port(socket.SOCK_DGRAM)
    with ExitStack() as stack:
        for name in ("Phone A", "Phone B"):
            path = tmp_path / f"{name}.jsonl"
            options = ("--beacon-port", str(port), "--name", name, "--truth", str(path))
            stack.enter_context(simulator("companion", tmp_path, *options))
        cores = {}
        for name in ("core_a", "core_b"):
            path = tmp_path / f"{name}.jsonl"
            _, ready = stack.enter_context(simulator("core", tmp_path, "--port", "0", "--truth", str(path)))
            cores[name] = ready["address"]
        plan = Lab(None, tmp_path, port, cores)  # type: ignore[arg-type]
        daemon = stack.enter_context(bridge(tmp_path, plan.config()))
        lab = plan._replace(daemon=daemon)
        daemon.wait_locked("phone_a", *OTHERS)
        yield lab


class Reading:
    """All gaze samples of some LSL streams: device times in s, by name."""

    def __init__(self, names: dict[str, str]) -> None:
        import pylsl

        wait_for_streams(*names.values())
        self.device_s: dict[str, list[float]] = {name: [] for name in names}
        self.stamps_s: dict[str, list[float]] = {name: [] for name in names}
        self._inlets = {}
        for name, lsl_name in names.items():
            (info,) = pylsl.resolve_byprop("name", lsl_name, 1, 20)
            inlet = self._inlets[name] = pylsl.StreamInlet(info, recover=False)
            inlet.open_stream(20)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reader")
        self._thread.start()
        wait_until(lambda: all(self.device_s.values()), "a first sample of every stream")

    def _read(self) -> None:
        while not self._ended.is_set():
            self._pull()
            time.sleep(0.01)
        self._pull()

    def _pull(self) -> None:
        for name, inlet in self._inlets.items():
            rows, stamps_s = inlet.pull_chunk(max_samples=10_000)
            self.device_s[name] += [row[-1] for row in rows]
            self.stamps_s[name] += stamps_s

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        for inlet in self._inlets.values():
            inlet.close_stream()


@contextmanager
def reading(names: dict[str, str]) -> Iterator[Reading]:
    reader = Reading(names)
    try:
        yield reader
    finally:
        reader.end()


def missing(reader: Reading, name: str, rows: list[dict[str, Any]]) -> int:
    """How many of the true samples between the first and the last that were read have not been read."""
    got = {round(device_s * 1e6) for device_s in reader.device_s[name]}
    first, last = min(got), max(got)
    true = {round(row["device_ns"] / 1e3) for row in rows}
    return sum(first <= each <= last and not got & {each - 1, each, each + 1} for each in true)


def test_no_sample_of_an_untouched_device_is_lost(lab: Lab) -> None:
    prefixes = {"phone_b": "pupil_labs_phone_b_Gaze", "core_a": "pupil_labs_core_a"}
    with reading(prefixes) as reader:
        assert lab.reload() == "nothing has changed"
        lab.stream_on("phone_a", *OTHERS)
        assert lab.reload(left="left") == "changed ndsi on 127.0.0.1"
        lab.daemon.wait_locked("left")
        assert "phone_a" not in {device["name"] for device in lab.daemon.status()["devices"]}
        lab.stream_on("left", *OTHERS)
        assert lab.reload(left="left", core_b=False) == "removed core_b"
        assert "core_b" not in {device["name"] for device in lab.daemon.status()["devices"]}
        lab.stream_on("left", "phone_b", "core_a")
        more = '[clock]\nhold_s = 2\n[overload]\nflood_hz = 1000\n[logging]\nlevel = "debug"\n'
        assert (
            lab.reload(left="left", more=more) == "added core_b, changed [clock], changed [logging], changed [overload]"
        )
        lab.daemon.wait_locked("core_b")
        lab.stream_on("left", *OTHERS)
        # A sink that comes and goes touches no other: ROS 2 takes a second to load.
        assert lab.reload(left="left", more='[[sink]]\ntype = "ros2"\n').endswith(
            "opened sink ros2, changed [clock], changed [logging], changed [overload]"
        )
        wait_until(lambda: lab.daemon.stream("phone_b", "gaze")["samples_out"]["ros2"] > STEP_SAMPLES, "gaze in ROS 2")
        assert lab.reload(left="left") == "closed sink ros2"
        lab.stream_on("left", *OTHERS)
        status = lab.daemon.status()
    assert lab.daemon.process.stop() == 0
    assert status["config"]["reloads"] == 6
    for name, file in (("phone_b", "Phone B"), ("core_a", "core_a")):
        rows = truth(lab.directory / f"{file}.jsonl", "gaze")
        assert len(reader.device_s[name]) > 6 * STEP_SAMPLES
        assert missing(reader, name, rows) == 0, name
        assert reader.stamps_s[name] == sorted(reader.stamps_s[name])
        (device,) = (each for each in status["devices"] if each["name"] == name)
        assert [stream["dropped"] for stream in device["streams"]] == [{}] * len(device["streams"])
    assert not lab.daemon.process.complaints()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[", "is not valid TOML"),
        ("[clok]\n", "unknown key; did you mean 'clock'?"),
        ('[[source]]\ntype = "pupil_core"\nname = "phone_b"\n', "'phone_b' is the name of"),
        ('[http]\nlisten = "0.0.0.0:8420"\n', "can be reached by other computers"),
        ('[http]\nlisten = "127.0.0.1:8420"\ntoken_file = "/nowhere"\n', "cannot be read"),
    ],
)
def test_a_bad_configuration_is_refused_whole_and_the_old_one_goes_on(lab: Lab, text: str, words: str) -> None:
    before = lab.daemon.status()
    lab.write(left="left", more=text)
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        lab.daemon.ask("reload")
    refused = lab.daemon.status()
    assert words in refused["config"]["refused"]
    assert any("the configuration was refused" in problem for problem in refused["problems"])
    assert [device["name"] for device in refused["devices"]] == [device["name"] for device in before["devices"]]
    lab.stream_on("phone_a", *OTHERS)
    lab.write()
    lab.daemon.process.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: lab.daemon.status()["config"]["refused"] is None, "a reload by SIGHUP")
    assert lab.daemon.status()["config"]["reloads"] == 1
    assert ["the configuration is refused" in line for line in lab.daemon.process.complaints()] == [True]
    assert lab.daemon.process.stop() == 0


def test_drop_ins_and_the_environment_count(lab: Lab) -> None:
    (lab.directory / "config.d").mkdir()
    (lab.directory / "config.d" / "50-rename.toml").write_text(
        f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {lab.port}\n'
        '[[source.device]]\nname = "third"\nmatch = "Phone C"\n',
        encoding="utf-8",
    )
    assert lab.reload() == "changed ndsi on 127.0.0.1"
    names = {device["name"]: device["connected"] for device in lab.daemon.status()["devices"]}
    assert names == {"phone_a": True, "phone_b": True, "core_a": True, "core_b": True, "third": False}
    assert "third: not there" in lab.daemon.status()["problems"]
    lab.stream_on("phone_a", *OTHERS)
    assert lab.daemon.process.stop() == 0


def test_a_daemon_that_has_lost_its_file_says_so_and_goes_on(lab: Lab) -> None:
    (lab.directory / "bridge.toml").unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        lab.daemon.ask("reload")
    lab.stream_on("phone_a", *OTHERS)
    assert lab.daemon.process.stop() == 0
