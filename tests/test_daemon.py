"""What the daemon itself promises: one bug ends it loudly, and it may open as many files as the system lets it."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge import config, daemon
from bridge.clock.host import SuspendWatch
from bridge.opening import Opened
from bridge.pipeline import Pipeline


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
        async with asyncio.timeout(10):
            await bridge.run(asyncio.Event().wait)
    assert [type(error) for error in raised.value.exceptions] == [IndexError]
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
            async with asyncio.timeout(10):
                while len(told) == count:
                    await asyncio.sleep(0.01)

    await bridge.run(sleeps_and_wakes)
    assert told == [pytest.approx(30 * 10**9, abs=10**6)] * 2


def test_the_limit_of_open_files_is_raised_to_what_the_system_allows() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = (
        "import resource; from bridge import daemon\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
        "daemon.raise_file_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(hard), str(hard)]
