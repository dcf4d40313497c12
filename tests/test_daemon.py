"""What the daemon itself promises: one bug ends it loudly, and it may open as many files as the system lets it."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bridge import config, daemon
from bridge.pipeline import Pipeline, Sink
from bridge.sources import Source


class BuggySource:
    """A reader whose callback, which no task awaits, has a bug."""

    name = "buggy"

    def open(self, pipeline: Pipeline) -> None:
        pass

    async def run(self) -> None:
        asyncio.get_running_loop().call_soon(lambda: [][0])
        await asyncio.Event().wait()

    def status(self) -> dict[str, object]:
        return {}


async def test_a_bug_in_a_callback_of_the_loop_ends_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sinks(tree: config.Config) -> list[Sink]:
        return []

    def one_source(tree: config.Config) -> list[Source]:
        return [BuggySource()]

    monkeypatch.setattr(daemon, "open_sinks", no_sinks)
    monkeypatch.setattr(daemon, "make_sources", one_source)
    text = f'[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "lsl"\n[service]\nsocket = "{tmp_path}/control.sock"\n'
    bridge = daemon.Daemon(config.parse(text, "test"))
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(10):
            await bridge.run(asyncio.Event().wait)
    assert [type(error) for error in raised.value.exceptions] == [IndexError]
    assert not (tmp_path / "control.sock").exists()


def test_the_limit_of_open_files_is_raised_to_what_the_system_allows() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = (
        "import resource; from bridge import daemon\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
        "daemon.raise_file_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(hard), str(hard)]
