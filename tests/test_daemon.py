"""What the daemon itself promises: one bug ends it loudly, and it may open as many files as the system lets it."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bridge import config, daemon, reloads
from bridge.clock.host import SuspendWatch
from bridge.config import ClockConfig, NdsiSource, Sink, Source
from bridge.config_changes import source_key
from bridge.control import Control
from bridge.errors import BridgeError, ConfigError, OutOfBounds, Refused
from bridge.opening import Opened
from bridge.pipeline import Pipeline
from bridge.service.http_settings import HttpSettings
from bridge.streams import DeviceDescriptor
from tests.scripted import Shelf


def no_sinks(*_: object) -> Opened:
    return Opened([], {}, [])


class QuietSource:
    """It has no device, and waits."""

    name = "quiet"
    device_names = ()

    def open(self, pipeline: Pipeline) -> None:
        pass

    async def run(self) -> None:
        await asyncio.Event().wait()

    def status(self) -> dict[str, object]:
        return {}


class BuggySource(QuietSource):
    """A reader whose callback, which no task awaits, has a bug."""

    async def run(self) -> None:
        asyncio.get_running_loop().call_soon(lambda: [][0])
        await asyncio.Event().wait()


async def test_a_bug_in_a_callback_of_the_loop_ends_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "open_sinks", no_sinks)
    monkeypatch.setattr(daemon, "make_source", lambda *_: BuggySource())
    text = f'[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "lsl"\n[service]\nsocket = "{tmp_path}/control.sock"\n'
    bridge = daemon.Daemon(config.parse(text, "test"))
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(20):
            await bridge.run(asyncio.Event().wait)
    assert [type(error) for error in raised.value.exceptions] == [IndexError]
    assert not (tmp_path / "control.sock").exists()


async def test_a_process_that_has_outgrown_its_limit_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "open_sinks", no_sinks)
    monkeypatch.setattr(daemon, "make_source", lambda *_: QuietSource())
    monkeypatch.setattr(daemon, "TICK_S", 0.01)
    monkeypatch.setattr(daemon, "rss_bytes", lambda: 300_000_001)
    text = f"""
        source = [{{type = "ndsi"}}]
        sink = [{{type = "lsl"}}]
        service = {{socket = "{tmp_path}/control.sock", state_dir = "{tmp_path}/state", memory_limit_mb = 300}}
    """
    with pytest.raises(OutOfBounds, match=r"300 MB of memory are in use, more than service\.memory_limit_mb"):
        async with asyncio.timeout(20):
            await daemon.Daemon(config.parse(text, "test")).run(asyncio.Event().wait)
    assert not (tmp_path / "control.sock").exists()


def test_the_configured_asymmetry_reaches_the_clock_of_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "open_sinks", no_sinks)
    text = f"""
        [[source]]
        type = "ndsi"
        [[source.device]]
        name = "phone"
        match = "Lab *"
        path_asymmetry_ms = 1.5
        [[source.device]]
        name = "other"
        [[source]]
        type = "pupil_core"
        name = "core"
        path_asymmetry_ms = -0.25
        [[sink]]
        type = "lsl"
        [service]
        socket = "{tmp_path}/control.sock"
        state_dir = "{tmp_path}/state"
    """
    devices = daemon.Daemon(config.parse(text, "test")).pipeline.devices
    found = {name: device.clock.estimator.settings.asymmetry_ns for name, device in devices.items()}
    assert found == {"phone": 1_500_000, "other": 0, "core": -250_000}


class SleepyComputer:
    """CLOCK_MONOTONIC, and a CLOCK_BOOTTIME that is ahead of it by what the computer slept."""

    def __init__(self) -> None:
        self.slept_ns = 0

    def watch(self) -> SuspendWatch:
        return SuspendWatch(lambda: time.monotonic_ns() + self.slept_ns)


async def test_a_sleep_of_the_computer_reaches_every_clock_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computer, told = SleepyComputer(), list[int]()
    monkeypatch.setattr(daemon, "open_sinks", no_sinks)
    monkeypatch.setattr(daemon, "SuspendWatch", computer.watch)
    monkeypatch.setattr(daemon, "make_source", lambda *_: QuietSource())
    text = f'[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "lsl"\n[service]\nsocket = "{tmp_path}/control.sock"\n'
    bridge = daemon.Daemon(config.parse(text, "test"))
    monkeypatch.setattr(bridge.pipeline, "host_suspended", told.append)

    async def sleeps_and_wakes() -> None:
        for _ in range(2):
            computer.slept_ns += 30 * 10**9
            count = len(told)
            async with asyncio.timeout(20):
                while len(told) == count:
                    await asyncio.sleep(0.01)

    await bridge.run(sleeps_and_wakes)
    assert told == [pytest.approx(30 * 10**9, abs=10**6)] * 2


def test_the_limit_of_open_files_is_raised_to_what_the_system_allows() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = (
        "import resource; from bridge import process\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
        "process.raise_file_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(hard), str(hard)]


# --- reload ----------------------------------------------------------------------------------------------------------


class HeldSource:
    """It declares its devices and waits; what is done to it is written down."""

    def __init__(self, tree: Source, told: list[str]) -> None:
        self.name = "/".join(source_key(tree))
        self.tree, self.told = tree, told
        self.pipeline: Pipeline

    @property
    def device_names(self) -> tuple[str, ...]:
        return (
            tuple(each.name for each in self.tree.devices) if isinstance(self.tree, NdsiSource) else (self.tree.name,)
        )

    def open(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        for name in self.device_names:
            pipeline.device(DeviceDescriptor(name, "held", f"pupil_labs_{name}"))

    async def run(self) -> None:
        self.told.append(f"run {self.name}")
        try:
            await asyncio.Event().wait()
        finally:
            self.told.append(f"end {self.name}")

    async def reconfigure(self, tree: NdsiSource) -> None:
        self.told.append(f"reconfigure {self.name}")
        before, self.tree = set(self.device_names), tree
        for name in before - set(self.device_names):
            await self.pipeline.remove_device(name)
        self.open(self.pipeline)

    def set_clock(self, clock: ClockConfig) -> None:
        self.told.append(f"pings of {self.name} every {clock.ping_interval_s:g} s")

    def status(self) -> dict[str, object]:
        return {}


class Web:
    """HTTP servers that listen on no network: one a port."""

    def __init__(self) -> None:
        self.listening: dict[int, HttpSettings] = {}
        self.starts = 0

    def server(self, control: Control, settings: HttpSettings) -> WebServer:
        return WebServer(self, settings)


class WebServer:
    def __init__(self, web: Web, settings: HttpSettings) -> None:
        self._web, self._settings = web, settings

    async def start(self) -> None:
        if self._settings.port in self._web.listening or self._settings.port == 666:
            raise BridgeError("HTTP cannot listen: the port is in use")
        self._web.listening[self._settings.port] = self._settings
        self._web.starts += 1

    async def stop(self) -> None:
        del self._web.listening[self._settings.port]


PHONES = '[[source]]\ntype = "ndsi"\n[[source.device]]\nname = "a"\nmatch = "a"\n'
CORE = '[[source]]\ntype = "pupil_core"\nname = "c"\n'
LSL = '[[sink]]\ntype = "lsl"\n'
ROS = '[[sink]]\ntype = "ros2"\n'
SECRET = "correct-horse-battery"


class Run:
    """A running daemon whose sources and sinks are the test's, and the file that it loads."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = tmp_path / "bridge.toml"
        self.told: list[str] = []
        self.sinks: list[Shelf] = []
        self.no_ros = False
        self.web = Web()
        self._service = f'[service]\nsocket = "{tmp_path}/control.sock"\nstate_dir = "{tmp_path}/state"\n'
        monkeypatch.setattr(daemon, "open_sinks", self._open_sinks)
        monkeypatch.setattr(daemon, "make_source", lambda tree, *_: HeldSource(tree, self.told))
        monkeypatch.setattr(daemon.logs, "set_up", lambda *_: None)
        monkeypatch.setattr("bridge.service.http.HttpServer", self.web.server)

    def _open_sinks(self, configs: Iterable[Sink], *, required: bool = True) -> Opened:
        opened = Opened([], {}, [])
        for each in configs:
            if each.type == "ros2" and self.no_ros:
                opened.missing.append("ROS 2: there is none")
                continue
            self.sinks.append(Shelf(each.type))
            opened.sinks.append(self.sinks[-1])
            opened.configs[each.type] = each
        return opened

    def write(self, text: str) -> None:
        self.file.write_text(text + self._service)

    async def __aenter__(self) -> Run:
        def load(settings: reloads.Settings | None = None) -> config.Config:
            return config.load(self.file, {}, settings)

        self.bridge = daemon.Daemon(load(), load=load, path=self.file)
        self._stop, started = asyncio.Event(), asyncio.Event()

        async def until() -> None:
            started.set()
            await self._stop.wait()

        self._task = asyncio.create_task(self.bridge.run(until))
        async with asyncio.timeout(20):
            await started.wait()
            await self.told_of("run", len(self.bridge.sources))
        return self

    async def told_of(self, what: str, count: int) -> None:
        while sum(line.startswith(what) for line in self.told) < count:
            await asyncio.sleep(0.002)

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        async with asyncio.timeout(20):
            await self._task
        await asyncio.get_running_loop().shutdown_default_executor()

    async def reload(self, text: str) -> str:
        self.write(text)
        self.told.clear()
        async with asyncio.timeout(20):
            return await self.bridge.reload()

    @property
    def changed(self) -> list[str]:
        """What was done to sources, but for the intervals of pings."""
        return [line for line in self.told if not line.startswith("pings")]

    @property
    def status(self) -> dict[str, Any]:
        return self.bridge.control.status()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run(tmp_path, monkeypatch)
    made.write(PHONES + CORE + LSL)
    return made


async def test_a_reload_of_the_same_file_touches_nothing(run: Run) -> None:
    async with run:
        assert await run.reload(PHONES + CORE + LSL) == "nothing has changed"
        assert run.changed == []
        assert len(run.sinks) == 1
        assert run.status["config"]["reloads"] == 1


async def test_a_reload_changes_what_has_changed_and_nothing_else(run: Run) -> None:
    other = '[[source]]\ntype = "pupil_core"\nname = "d"\naddress = "127.0.0.1:50021"\n'
    two = PHONES + '[[source.device]]\nname = "b"\nmatch = "b"\n'
    async with run:
        words = await run.reload(two + other + LSL + "[clock]\nping_interval_s = 3\n")
        await run.told_of("run", 1)
        assert words == "added d, removed c, changed ndsi on auto, changed [clock]"
        assert run.changed == ["end pupil_core/c", "reconfigure ndsi/None/5670", "run pupil_core/d"]
        assert "pings of ndsi/None/5670 every 3 s" in run.told
        assert list(run.bridge.pipeline.devices) == ["a", "b", "d"]
        assert sorted(run.sinks[0].devices) == ["a", "b", "d"]
        assert run.bridge.pipeline.clock_settings.ping_interval_ns == 3 * 10**9


async def test_a_file_with_a_fault_is_refused_whole_and_said_until_a_good_one_comes(run: Run) -> None:
    async with run:
        before = run.bridge.config
        with pytest.raises(ConfigError, match="hold_s"):
            await run.reload(CORE + ROS + "[clock]\nhold_s = -1\n")
        assert run.changed == []
        assert run.bridge.config is before
        assert list(run.bridge.pipeline.devices) == ["a", "c"]
        assert "hold_s" in run.status["config"]["refused"]
        assert any("was refused" in words for words in run.status["problems"])
        assert run.status["config"]["reloads"] == 0
        await run.reload(PHONES + CORE + LSL)
        assert run.status["config"]["refused"] is None
        assert not any("was refused" in words for words in run.status["problems"])


async def test_a_file_that_has_gone_is_refused(run: Run) -> None:
    async with run:
        run.file.unlink()
        with pytest.raises(ConfigError, match="cannot be read"):
            await run.bridge.reload()
        assert list(run.bridge.pipeline.devices) == ["a", "c"]


async def test_a_sink_that_has_changed_is_replaced_and_the_other_one_stays(run: Run) -> None:
    run.write(PHONES + LSL + ROS)
    async with run:
        lsl, ros = run.sinks
        assert await run.reload(PHONES + LSL + "max_buffered_s = 5\n" + ROS) == "changed sink lsl"
        assert (lsl.closed, ros.closed) == (1, 0)
        assert sorted(run.status["sinks"]) == ["lsl", "ros2"]
        assert run.sinks[2].devices == ["a"]
        assert await run.reload(PHONES + ROS) == "closed sink lsl"
        assert [sink.closed for sink in run.sinks] == [1, 0, 1]
        assert run.changed == []


async def test_a_sink_that_cannot_be_opened_is_a_problem_and_no_success_and_tried_again(run: Run) -> None:
    async with run:
        run.no_ros = True
        words = await run.reload(PHONES + CORE + LSL + ROS)
        assert "opened sink ros2" not in words
        assert "ROS 2: there is none" in run.status["problems"]
        assert run.status["sinks"] == ["lsl"]
        run.no_ros = False
        assert await run.reload(PHONES + CORE + LSL + ROS) == "opened sink ros2"
        assert run.status["sinks"] == ["lsl", "ros2"]
        assert "ROS 2: there is none" not in run.status["problems"]


async def test_reloads_that_are_asked_for_at_once_are_answered_all_and_the_last_file_is_in_effect(run: Run) -> None:
    async with run, asyncio.timeout(20):
        run.write(PHONES + LSL)
        first = asyncio.create_task(run.bridge.reload())
        await asyncio.sleep(0)  # it has been asked for
        run.write(PHONES + CORE + LSL + "[clock]\nhold_s = 1\n")
        others = [asyncio.create_task(run.bridge.reload()) for _ in range(3)]
        run.bridge.request_reload()
        await asyncio.gather(first, *others)
        while run.bridge.config.clock.hold_s != 1:
            await asyncio.sleep(0.002)
        assert list(run.bridge.pipeline.devices) == ["a", "c"]


async def test_who_asks_for_a_reload_and_goes_away_hurts_nobody(run: Run) -> None:
    async with run, asyncio.timeout(20):
        run.write(CORE + LSL)
        asked = asyncio.create_task(run.bridge.reload())
        await asyncio.sleep(0)
        asked.cancel()
        while list(run.bridge.pipeline.devices) != ["c"]:
            await asyncio.sleep(0.002)
        assert await run.reload(CORE + LSL) == "nothing has changed"


async def test_a_daemon_without_a_file_refuses_to_reload(run: Run) -> None:
    async with run:
        run.bridge._load = None
        with pytest.raises(Refused, match="no configuration file"):
            await run.bridge.reload()


# --- what sinks are told, and what is set at run time ---------------------------------------------------------------


async def test_a_sink_serves_once_and_is_told_every_configuration_and_every_second_everything(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "TICK_S", 0.01)
    run.write(PHONES + LSL + ROS)
    async with run, asyncio.timeout(20):
        lsl, ros = run.sinks
        assert lsl.configs == ros.configs == [run.bridge.config]
        assert await run.reload(PHONES + LSL + ROS + "queue_size = 50\n") == "changed sink ros2"
        assert len(run.sinks) == 2, "it changes in place"
        assert ros.closed == 0
        assert [each.sinks[1].queue_size for each in ros.configs] == [1000, 50]  # type: ignore[union-attr]
        assert await run.reload(PHONES + LSL + ROS + "queue_size = 50\ncontrol = true\n") == "changed sink ros2"
        assert (len(run.sinks), ros.closed) == (3, 1)
        assert len(run.sinks[2].requests) == len(lsl.requests) == 1
        assert run.sinks[2].configs == [run.bridge.config]
        while not (lsl.told_of and run.sinks[2].told_of):
            await asyncio.sleep(0.002)
        (phone,) = lsl.told_of[-1]["devices"]
        assert (phone["name"], phone["functions"], phone["clock"]["slew_s"]) == ("a", [], 0.0)
        run.bridge.pipeline.devices["a"].actions["record"] = lambda _: asyncio.sleep(0, "x")
        while lsl.told_of[-1]["devices"][0]["functions"] != ["record"]:
            await asyncio.sleep(0.002)


async def test_what_is_set_counts_above_the_file_until_the_end(run: Run) -> None:
    async with run, asyncio.timeout(20):
        answer = await run.bridge.control.request("set", {"settings": {"clock.hold_s": 1.5, "clock.unlocked": "drop"}})
        assert answer == {"changes": "changed [clock]"}
        assert run.bridge.config.clock.hold_s == 1.5
        assert run.bridge.pipeline.devices["a"].hold_ns == 0  # drop
        await run.bridge.control.request("set", {"settings": {"clock.unlocked": "hold"}})
        assert run.bridge.pipeline.devices["a"].hold_ns == 1_500_000_000
        await run.reload(PHONES + LSL + "[clock]\nhold_s = 3\nping_interval_s = 2\n")
        assert (run.bridge.config.clock.hold_s, run.bridge.config.clock.ping_interval_s) == (1.5, 2.0)
        assert run.sinks[0].configs[-1] is run.bridge.config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clock.hold_s": 61.0}, "hold_s"),
        ({"logging.level": "loud"}, "level"),
        ({"http.token": "x" * 30}, "cannot be set while the bridge runs"),
        ({"service.socket": "/tmp/x"}, "cannot be set while the bridge runs"),
        ({"nonsense": 1}, "cannot be set while the bridge runs"),
        ({"clock": {"hold_s": 1}}, "set: "),
        ({"clock.hold_s": float("nan")}, "hold_s"),
    ],
)
async def test_what_cannot_be_set_is_refused_and_nothing_changes(run: Run, settings: Any, words: str) -> None:
    async with run, asyncio.timeout(20):
        before = run.bridge.config
        with pytest.raises(BridgeError, match=words):
            await run.bridge.control.request("set", {"settings": settings})
        assert run.bridge.config is before
        assert await run.reload(PHONES + CORE + LSL) == "nothing has changed"


async def test_a_setting_that_was_refused_is_no_lasting_problem_of_the_configuration(run: Run) -> None:
    async with run, asyncio.timeout(20):
        with pytest.raises(BridgeError):
            await run.bridge.control.request("set", {"settings": {"logging.level": "loud"}})
        assert run.status["config"]["refused"] is None
        assert not any("was refused" in problem for problem in run.status["problems"])


async def test_of_two_settings_at_once_the_bad_one_is_refused_and_leaves_the_good_one_as_it_was_answered(
    run: Run,
) -> None:
    async with run, asyncio.timeout(20):
        settings: list[dict[str, Any]] = [{"clock.hold_s": 1.5}, {"logging.level": "loud"}]
        good, bad = await asyncio.gather(
            *(run.bridge.control.request("set", {"settings": each}) for each in settings), return_exceptions=True
        )
        assert isinstance(bad, BridgeError)
        await run.reload(PHONES + CORE + LSL)
        assert run.bridge.config.clock.hold_s == (5.0 if isinstance(good, BridgeError) else 1.5)


async def test_a_daemon_without_a_file_refuses_to_set_anything(run: Run) -> None:
    async with run:
        run.bridge._load = None
        with pytest.raises(Refused, match="no settings that could be changed"):
            await run.bridge.control.request("set", {"settings": {"clock.hold_s": 1.0}})


# --- HTTP over a reload ----------------------------------------------------------------------------------------------


def http(**keys: str) -> str:
    return PHONES + CORE + LSL + "[http]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())


async def test_http_begins_moves_and_ends_with_a_reload(run: Run) -> None:
    async with run:
        await run.reload(http(listen='"127.0.0.1:1001"'))
        assert list(run.web.listening) == [1001]
        await run.reload(http(listen='"127.0.0.1:1002"'))
        await asyncio.sleep(0)
        assert list(run.web.listening) == [1002]
        assert await run.reload(http(listen='"127.0.0.1:1002"')) == "nothing has changed"
        assert run.web.starts == 2, "its clients are left alone"
        await run.reload(PHONES + CORE + LSL)
        await asyncio.sleep(0)
        assert run.web.listening == {}


async def test_http_is_opened_to_other_computers_on_the_same_port(run: Run) -> None:
    run.write(http(listen='"127.0.0.1:1001"'))
    async with run:
        await run.reload(http(listen='"0.0.0.0:1001"', allow_remote="true", token=f'"{SECRET}"'))
        assert [settings.host for settings in run.web.listening.values()] == ["0.0.0.0"]
        await run.reload(http(listen='"127.0.0.1:1001"'))
        assert [settings.host for settings in run.web.listening.values()] == ["127.0.0.1"]


async def test_a_port_that_cannot_be_had_is_refused_and_the_old_one_goes_on(run: Run) -> None:
    run.write(http(listen='"127.0.0.1:1001"'))
    async with run:
        with pytest.raises(BridgeError, match="cannot listen"):
            await run.reload(http(listen='"127.0.0.1:666"').replace(CORE, "") + ROS)
        assert list(run.web.listening) == [1001]
        assert list(run.bridge.pipeline.devices) == ["a", "c"]
        assert [(sink.name, sink.closed) for sink in run.sinks] == [("lsl", 0), ("ros2", 1)]


async def test_a_token_that_is_changed_in_its_file_holds_from_the_reload_on(run: Run, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(SECRET)
    text = http(listen='"127.0.0.1:1001"', token_file=f'"{token_file}"')
    run.write(text)
    async with run:
        assert run.web.listening[1001].token == SECRET
        token_file.write_text(SECRET[::-1])
        await run.reload(text)
        assert run.web.listening[1001].token == SECRET[::-1]
        token_file.unlink()
        with pytest.raises(ConfigError, match="token_file"):
            await run.reload(text)
        assert run.web.listening[1001].token == SECRET[::-1]
