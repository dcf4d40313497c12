"""One source under its supervisor, with a script of what happens to it and back-offs of milliseconds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from bridge import supervisor
from bridge.errors import DeviceUnavailable, MalformedMessage
from bridge.pipeline import Pipeline
from bridge.supervisor import supervise

DEADLINE_S = 20.0


class ScriptedSource:
    """Each run does what the next step says; after the last it is healthy until it is cancelled."""

    name = "eyes"

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)
        self.runs = 0
        self.healthy = asyncio.Event()
        self.cancelled = False

    def open(self, pipeline: Pipeline) -> None:
        """There is nothing to declare."""

    def status(self) -> dict[str, object]:
        return {}

    async def run(self) -> None:
        self.runs += 1
        await asyncio.sleep(0)
        if self.steps:
            self.steps.pop(0)()
            return
        self.healthy.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


def unplugged(number: int = 0) -> Callable[[], object]:
    def fail() -> None:
        raise DeviceUnavailable(f"no device answers ({number})")

    return fail


async def until_healthy(source: ScriptedSource) -> None:
    """Supervises the source until it is healthy, then stops it."""
    task = asyncio.create_task(supervise(source))
    async with asyncio.timeout(DEADLINE_S):
        await source.healthy.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture(autouse=True)
def _short_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 0.0005)
    monkeypatch.setattr(supervisor, "BACK_OFF_MAX_S", 0.001)


async def test_trouble_is_warned_of_once_and_then_said_to_who_debugs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "bridge")
    source = ScriptedSource(*map(unplugged, range(20)))
    await until_healthy(source)
    assert source.runs == 21
    levels = [record.levelno for record in caplog.records if record.name == "bridge.supervisor"]
    assert levels == [logging.WARNING] + [logging.DEBUG] * 19
    assert caplog.records[0].getMessage() == "eyes: no device answers (0); trying again"


async def test_nothing_else_is_logged_about_a_retry(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await until_healthy(ScriptedSource(unplugged(), unplugged()))
    assert {record.name for record in caplog.records} <= {"bridge.supervisor", "asyncio"}


async def test_a_source_is_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    # More attempts than the exponent of a float has room for: the back-off must not overflow after some hours.
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 1e-9)
    monkeypatch.setattr(supervisor, "BACK_OFF_MAX_S", 1e-9)
    source = ScriptedSource(*[unplugged()] * 1100)
    await until_healthy(source)
    assert source.runs == 1101


async def test_the_back_off_grows_up_to_its_limit_and_has_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    waits: list[float] = []
    real_sleep = asyncio.sleep

    async def note(seconds: float, result: object = None) -> None:
        if seconds:
            waits.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    await until_healthy(ScriptedSource(*[unplugged()] * 40))
    assert len(waits) == 40
    assert supervisor.BACK_OFF_S <= waits[0] <= 2 * supervisor.BACK_OFF_S
    assert max(waits) == waits[-1] == supervisor.BACK_OFF_MAX_S
    assert len({round(wait, 6) for wait in waits[:4]}) == 4


async def test_trouble_after_a_steady_run_is_warned_of_again_and_tried_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STEADY_AFTER_S", -1.0)  # every run counts as a long one
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 3600.0)
    monkeypatch.setattr(supervisor, "BACK_OFF_MAX_S", 3600.0)
    source = ScriptedSource(*map(unplugged, range(3)))
    await until_healthy(source)
    assert source.runs == 4
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3


@pytest.mark.parametrize("error", [RuntimeError("a bug"), MalformedMessage("not counted"), OSError(5, "i/o")])
async def test_any_other_error_is_a_bug_and_passes_through_at_once(error: Exception) -> None:
    def fail() -> None:
        raise error

    source = ScriptedSource(unplugged(), fail)
    with pytest.raises(type(error)) as caught:
        async with asyncio.timeout(DEADLINE_S):
            await supervise(source)
    assert caught.value is error
    assert source.runs == 2


async def test_a_bug_ends_the_other_sources_of_its_group_too() -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    broken, healthy = ScriptedSource(unplugged(), fail), ScriptedSource()

    async def both() -> None:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            group.create_task(supervise(healthy))
            await healthy.healthy.wait()
            group.create_task(supervise(broken))

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert caught.group_contains(RuntimeError, match="a bug")
    assert healthy.cancelled


async def test_cancelling_ends_a_run_and_a_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    running = ScriptedSource()
    await until_healthy(running)
    assert running.cancelled
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 3600.0)
    monkeypatch.setattr(supervisor, "BACK_OFF_MAX_S", 3600.0)
    failed = asyncio.Event()

    def fail() -> None:
        failed.set()
        raise DeviceUnavailable("no device answers")

    waiting = ScriptedSource(fail)
    task = asyncio.create_task(supervise(waiting))
    async with asyncio.timeout(DEADLINE_S):
        await failed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiting.runs == 1


async def test_what_is_said_of_a_source_can_be_found_by_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "bridge")
    await until_healthy(ScriptedSource(*map(unplugged, range(3))))
    said = [record for record in caplog.records if record.name == "bridge.supervisor"]
    assert len(said) >= 3
    assert {record.SOURCE for record in said} == {"eyes"}  # type: ignore[attr-defined]
