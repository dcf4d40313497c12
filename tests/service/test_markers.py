"""Markers of real LSL outlets: heard, mapped, sorted to devices, carried out; and what hostile ones cannot do."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import pylsl
import pytest

from bridge.config import MarkerConfig
from bridge.errors import Refused
from bridge.service import marker_inlet
from bridge.service.marker_words import MAX_LETTERS, Asked, command, moment_fault, text_of
from bridge.service.markers import QUEUE, MarkerInputs
from tests.service.statuses import marker

DEADLINE_S = 20.0
STREAM = "PsychoPy"
OTHER_CLOCKS = (
    shutil.which("unshare") is not None
    and subprocess.run(
        ["unshare", "--time", "--monotonic", "5", "true"], capture_output=True, timeout=10, check=False
    ).returncode
    == 0
)


def outlet(
    name: str = STREAM, source_id: str = "stimuli", kind: str = "string", channels: int = 1, **more: Any
) -> pylsl.StreamOutlet:
    info = pylsl.StreamInfo(name, "Markers", channels, more.pop("rate_hz", 0.0), kind, source_id)
    if more.pop("bridge", False):
        info.desc().append_child("acquisition").append_child_value("bridge", "pupil-bridge 1.2.3")
    assert not more
    return pylsl.StreamOutlet(info)


class FakeDevice:
    def __init__(self, *actions: str) -> None:
        self.actions = dict.fromkeys(actions)


class Lab:
    """What Control and the devices are in the bridge. A device in ``held`` answers when it is let go of."""

    def __init__(self) -> None:
        self.devices = {
            "phone": FakeDevice("record", "event", "annotate"),
            "core": FakeDevice("record", "event", "annotate", "calibrate"),
        }
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.held: dict[str, asyncio.Event] = {}
        self.refusing: dict[str, str] = {}
        self.inputs = MarkerInputs(self.request, lambda: self.devices)  # type: ignore[arg-type,return-value]  # fakes

    async def request(self, command: str, arguments: dict[str, Any]) -> Any:
        name = arguments["device"]
        if name in self.held:
            await self.held[name].wait()
        self.asked.append((command, arguments))
        if name not in self.devices:
            raise Refused(f"there is no device {name!r}; known are: phone, core")
        if name in self.refusing:
            raise Refused(f"{name}: {self.refusing[name]}")
        return {"done": {name: "sent"}, "refused": {}}

    def status(self, index: int = 0) -> dict[str, Any]:
        return self.inputs.status()[index]

    def texts(self, device: str) -> list[str]:
        return [given["text"] for _, given in self.asked if given["device"] == device]


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lsl markers")]


@asynccontextmanager
async def listening(*configs: MarkerConfig, lab: Lab | None = None) -> AsyncIterator[Lab]:
    lab = lab or Lab()
    running = asyncio.create_task(lab.inputs.run(configs))
    await until(lambda: len(lab.inputs.status()) == len(configs), "the streams are there")
    try:
        yield lab
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert lab.inputs.ended
    assert threads() == []


@asynccontextmanager
async def hearing(
    source: pylsl.StreamOutlet | None = None, lab: Lab | None = None, **keys: Any
) -> AsyncIterator[tuple[Lab, pylsl.StreamOutlet]]:
    """A stream whose clock is known."""
    source = source or outlet()
    async with listening(MarkerConfig(stream=STREAM, **keys), lab=lab) as lab:
        await until(lambda: lab.status()["correction_s"] is not None, "its clock is known")
        yield lab, source


# --- what a marker is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"go", "go"),
        ("Größe 眼".encode(), "Größe 眼"),
        (b"  go\r\n", "go"),
        (b"a\tb\nc", "a b c"),
        (b"a\x00b\x1b[2J", "a\ufffdb\ufffd[2J"),
        ("a\u202eb".encode(), "a\ufffdb"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", ""),
        (b" \n ", ""),
        (7, "7"),
        (-3, "-3"),
        (2**63 - 1, "9223372036854775807"),
        (np.float64(5.0), "5"),
        (np.float32(0.1), "0.1"),
        (np.float64(0.25), "0.25"),
        (np.float32("nan"), ""),
        (np.float64("inf"), ""),
    ],
)
def test_a_marker_is_text_that_can_be_shown_or_a_number(value: object, text: str) -> None:
    assert text_of(value) == (text, False)


@pytest.mark.parametrize("letter", ["x", "é", "眼", "😀"])
def test_a_long_marker_is_cut_to_what_every_device_takes(letter: str) -> None:
    assert text_of((letter * MAX_LETTERS).encode()) == (letter * MAX_LETTERS, False)
    assert text_of((letter * (MAX_LETTERS + 1)).encode()) == (letter * MAX_LETTERS, True)
    assert text_of((letter * 1_000_000).encode()) == (letter * MAX_LETTERS, True)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("record start", Asked("record", {"action": "start", "session": None})),
        ("record start  Versuch 3 é", Asked("record", {"action": "start", "session": "Versuch 3 é"})),
        ("record stop", Asked("record", {"action": "stop"})),
        ("calibrate start", Asked("calibrate", {"action": "start"})),
        ("calibrate stop", Asked("calibrate", {"action": "stop"})),
        ("event record stop", Asked("event", {"text": "record stop", "host_s": 5.0})),
        ("annotate a  b", Asked("annotate", {"text": "a  b", "host_s": 5.0})),
        *((text, None) for text in ("event", "event ", "record", "record stop now", "recordstart", "calibrate", "set")),
        *((text, None) for text in ("calibrate start x", "status", "reload", "RECORD START", "event\tx", "", "1")),
    ],
)
def test_commands_are_those_that_are_named_and_nothing_else(text: str, asked: Asked | None) -> None:
    assert command(text, 5.0) == asked


@pytest.mark.parametrize(
    ("stamp_s", "words"),
    [
        (5000.0, None),
        (5009.0, None),
        (1500.0, None),
        (float("nan"), "its time is not known"),
        (float("inf"), "its time is not known"),
        (0.0, "its time is 5000 s before now: is it of LSL's clock?"),
        (1.7e9, "its time is 1699995000 s after now: is it of LSL's clock?"),
        (-1e300, "before now"),
    ],
)
def test_a_moment_is_of_the_last_hour_or_the_next_seconds(stamp_s: float, words: str | None) -> None:
    fault = moment_fault(stamp_s, 5000.0)
    assert fault is None if words is None else words in (fault or "")


# --- heard -----------------------------------------------------------------------------------------------------------


async def test_a_marker_becomes_an_event_of_its_own_moment_on_every_device_that_can() -> None:
    async with hearing() as (lab, source):
        lab.devices["deaf"] = FakeDevice("record")
        stamp_s = time.monotonic() - 2.5
        source.push_sample(["stimulus é"], stamp_s)
        await until(lambda: lab.status()["done"] == 2, "both have it")
        assert {given["device"] for _, given in lab.asked} == {"phone", "core"}
        for name, given in lab.asked:
            assert (name, given["text"]) == ("event", "stimulus é")
            assert abs(given["host_s"] - stamp_s) < 0.001
        status = lab.status()
    assert status["connected"]
    assert marker(STREAM).keys() <= status.keys(), "what the metrics and the table read"
    assert (status["stream"], status["does"]) == (STREAM, "events")
    assert (status["source_id"], status["channels"]) == ("stimuli", 1)
    assert (status["taken"], status["refused"], status["dropped"], status["last_error"]) == (1, {}, 0, None)
    assert abs(status["correction_s"]) <= status["uncertainty_s"]


@pytest.mark.parametrize(
    ("kind", "values", "texts"),
    [
        ("int8", [-1, 127], ["-1", "127"]),
        ("int32", [42, 0], ["42", "0"]),
        ("int64", [2**62, 1], [str(2**62), "1"]),
        ("float32", [0.1, 5.0], ["0.1", "5"]),
        ("double64", [0.1, 3.0], ["0.1", "3"]),
    ],
)
async def test_numbers_are_taken_as_text(kind: str, values: list[float], texts: list[str]) -> None:
    async with hearing(outlet(kind=kind), devices=("core",)) as (lab, source):
        for value in values:
            source.push_sample([value])
        await until(lambda: lab.texts("core") == texts, "the numbers")


@pytest.mark.parametrize(("kind", "row"), [("int32", [7, 8, 9]), ("string", ["7", "8", "9"])])
async def test_of_several_channels_the_first_counts(
    kind: str, row: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with hearing(outlet(kind=kind, channels=3), devices=("core",)) as (lab, source):
        source.push_sample(row)
        await until(lambda: lab.texts("core") == ["7"], "the first")
    assert "is listened to, the first of its 3 channels" in caplog.text


async def test_markers_stay_in_order_and_none_is_lost() -> None:
    async with hearing(devices=("phone", "core")) as (lab, source):
        for number in range(800):
            source.push_sample([str(number)])
        await until(lambda: lab.status()["done"] == 1600, "all of them")
        assert lab.texts("phone") == lab.texts("core") == [str(number) for number in range(800)]


async def test_a_device_that_is_slow_delays_no_other() -> None:
    lab = Lab()
    lab.held["phone"] = asyncio.Event()
    async with hearing(lab=lab) as (_, source):
        for number in range(20):
            source.push_sample([str(number)])
        await until(lambda: len(lab.texts("core")) == 20, "the other one has them all")
        assert lab.texts("phone") == []
        assert lab.status()["waiting"] == 19
        lab.held["phone"].set()
        await until(lambda: lab.texts("phone") == [str(number) for number in range(20)], "they were kept")


async def test_more_than_a_device_can_take_drops_the_oldest_and_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    lab = Lab()
    lab.held["phone"] = asyncio.Event()
    async with hearing(lab=lab, devices=("phone",)) as (_, source):
        for begin in range(0, 3000, 250):
            for number in range(begin, begin + 250):
                source.push_sample([str(number)])
            await until(lambda begin=begin: lab.status()["taken"] == begin + 250, "taken")
        status = lab.status()
        assert (status["waiting"], status["dropped"]) == (QUEUE, 3000 - QUEUE - 1)
        lab.held["phone"].set()
        await until(lambda: lab.status()["done"] == QUEUE + 1, "those that were kept")
        assert lab.texts("phone") == ["0", *(str(number) for number in range(3000 - QUEUE, 3000))]
    warnings = [record for record in caplog.records if "dropped" in record.message and record.levelname == "WARNING"]
    assert len(warnings) == 1


async def test_a_loop_that_hangs_gets_the_newest_markers_and_the_count_of_the_others() -> None:
    async with hearing(devices=("core",)) as (lab, source):
        stream = next(iter(lab.inputs._streams.values()))
        for begin in range(0, 3000, 250):
            for number in range(begin, begin + 250):
                source.push_sample([str(number)])
            deadline_s = time.monotonic() + DEADLINE_S
            while stream._overrun + len(stream._arrived) < begin + 250:  # without giving the loop a turn
                assert time.monotonic() < deadline_s
                time.sleep(0.001)
        await until(lambda: lab.status()["done"] == QUEUE, "those that were kept")
        assert lab.texts("core") == [str(number) for number in range(3000 - QUEUE, 3000)]
        assert (lab.status()["taken"], lab.status()["dropped"]) == (3000, 3000 - QUEUE)


# --- hostile ---------------------------------------------------------------------------------------------------------


async def test_hostile_texts_are_cut_cleaned_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with hearing(devices=("core",)) as (lab, source):
        for value in (b"", b"\n", b"x" * 1_000_000, b"\xff" * 3, b"a\x00b", b"\x1b[2J", "é" * 2000, b"last"):
            source.push_sample([value])
        await until(lambda: lab.texts("core")[-1:] == ["last"], "all of them")
        assert lab.texts("core") == [
            *("x" * MAX_LETTERS, "\ufffd" * 3, "a\ufffdb", "\ufffd[2J", "é" * MAX_LETTERS, "last")
        ]
        status = lab.status()
    assert (status["taken"], status["done"], status["cut"], status["refused"]) == (8, 6, 2, {"empty": 2})
    assert "\x1b" not in caplog.text
    assert caplog.text.count("a marker has no text") == 1, "warned once"


async def test_moments_that_cannot_be_are_refused_and_counted() -> None:
    async with hearing(devices=("core",)) as (lab, source):
        now_s = time.monotonic()
        for stamp_s in (float("nan"), float("inf"), 1e-9, now_s - 4000, now_s + 60, time.time(), -5.0, now_s):
            source.push_sample([f"{stamp_s}"], stamp_s)
        await until(lambda: lab.texts("core") == [f"{now_s}"], "the one that can be")
        assert lab.status()["refused"] == {"time": 7}
        assert "is it of LSL's clock?" in lab.status()["last_error"]


async def test_a_stream_of_a_bridge_is_refused_and_another_one_of_the_name_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = outlet(source_id="a", bridge=True)
    async with listening(MarkerConfig(stream=STREAM)) as lab:
        await until(lambda: lab.status()["problem"] is not None, "it is refused")
        own.push_sample(["echo"])
        (problem,) = lab.inputs.problems()
        assert problem.startswith(f"marker stream {STREAM}: is not listened to: it comes from a pupil-bridge")
        other = outlet(source_id="b")
        await until(lambda: lab.status()["connected"], "the other one")
        assert lab.inputs.problems() == []
        other.push_sample(["go"])
        await until(lambda: lab.status()["taken"] == 1, "its marker")
        assert (lab.texts("core"), lab.status()["source_id"]) == (["go"], "b")
    assert caplog.text.count("it comes from a pupil-bridge") == 1, "warned once"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"kind": "float32", "rate_hz": 250.0}, "it has numbers at 250 Hz"),
        ({"channels": 65}, "it has 65 channels"),
    ],
)
async def test_what_is_no_stream_of_markers_is_refused(keys: dict[str, Any], words: str) -> None:
    source = outlet(**keys)
    async with listening(MarkerConfig(stream=STREAM)) as lab:
        await until(lambda: words in (lab.status()["problem"] or ""), "it is refused")
        assert not lab.status()["connected"]
    assert not source.have_consumers()


async def test_names_with_quotes_are_looked_for_as_they_are() -> None:
    source = outlet(name="Lab's \u00fc] or true() [", source_id='"')
    async with listening(MarkerConfig(stream="Lab's \u00fc] or true() [", source_id='"')) as lab:
        await until(lambda: lab.status()["correction_s"] is not None, "it is found")
        source.push_sample(["go"])
        await until(lambda: lab.texts("core") == ["go"], "its marker")


# --- there and not there ---------------------------------------------------------------------------------------------


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_stream_that_is_not_there_is_waited_for_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(MarkerConfig(stream=STREAM)) as lab:
        await until(lambda: len(_warnings(caplog)) == 1, "a warning")
        assert not lab.status()["connected"]
        assert lab.inputs.problems() == [], "programs come and go"
        source = outlet()
        await until(lambda: lab.status()["correction_s"] is not None, "it has come")
        source.push_sample(["go"])
        await until(lambda: lab.texts("core") == ["go"], "its marker")
    assert _warnings(caplog) == [f"marker stream {STREAM}: is not there; waiting for it"]


@pytest.mark.parametrize("source_id", ["stimuli", "another", ""])
async def test_a_stream_that_has_gone_and_comes_again_is_heard_again(source_id: str) -> None:
    source = outlet(source_id="")
    async with listening(MarkerConfig(stream=STREAM, devices=("core",))) as lab:
        await until(lambda: lab.status()["correction_s"] is not None, "its clock is known")
        source.push_sample(["one"])
        await until(lambda: lab.texts("core") == ["one"], "its marker")
        del source
        await until(lambda: not lab.status()["connected"], "it has gone")
        again = outlet(source_id=source_id)
        await until(lambda: lab.status()["correction_s"] is not None, "it has come again")
        again.push_sample(["two"])
        await until(lambda: lab.texts("core") == ["one", "two"], "its marker")


async def test_a_stream_with_a_source_id_that_has_gone_is_noticed() -> None:
    source = outlet()
    async with listening(MarkerConfig(stream=STREAM)) as lab:
        await until(lambda: lab.status()["correction_s"] is not None, "its clock is known")
        del source
        await until(lambda: not lab.status()["connected"], "it has gone")


async def test_a_program_that_is_started_again_at_once_is_heard_again() -> None:
    source = outlet()
    async with listening(MarkerConfig(stream=STREAM)) as lab:
        await until(lambda: lab.status()["correction_s"] is not None, "its clock is known")
        del source
        again = outlet()
        await until(again.have_consumers, "it is found again")
        stamp_s = time.monotonic()
        again.push_sample(["two"], stamp_s)
        await until(lambda: lab.texts("core") == ["two"], "its marker")
        assert abs(lab.asked[0][1]["host_s"] - stamp_s) < 0.001


# A program on a computer whose clock shows something else: pushes each line that it gets, and says its stamp.
ELSEWHERE = f"""
import sys, pylsl
outlet = pylsl.StreamOutlet(pylsl.StreamInfo({STREAM!r}, "Markers", 1, 0.0, "string", "stimuli"))
for line in sys.stdin:
    outlet.wait_for_consumers(20)
    stamp_s = pylsl.local_clock()
    outlet.push_sample([line.strip()], stamp_s)
    print(repr(stamp_s), flush=True)
"""


@contextmanager
def elsewhere(ahead_s: int) -> Iterator[Callable[[str], float]]:
    """Its clock is ahead of ours by so much; what is called pushes a marker, and returns its stamp."""
    command = ["unshare", "--time", "--monotonic", str(ahead_s), sys.executable, "-c", ELSEWHERE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = process.stdout

        def push(text: str) -> float:
            print(text, file=process.stdin, flush=True)
            return float(answers.readline())

        try:
            yield push
        finally:
            process.kill()


@pytest.mark.root
@pytest.mark.skipif(not OTHER_CLOCKS, reason="needs root and time namespaces")
async def test_the_clock_of_another_computer_is_compared_also_after_it_was_started_anew(
    record_property: Callable[[str, object], None],
) -> None:
    async with listening(MarkerConfig(stream=STREAM, devices=("core",))) as lab:
        errors_s = []
        for number, ahead_s in enumerate((5000, 90_000)):  # the second one is the same computer to LSL
            with elsewhere(ahead_s) as push:
                stamp_s = await asyncio.to_thread(push, str(number))
                assert abs(stamp_s - ahead_s - time.monotonic()) < DEADLINE_S, "its clock is another one"
                await until(lambda: len(lab.asked) > len(errors_s), "its marker")
            errors_s.append(abs(lab.asked[-1][1]["host_s"] - (stamp_s - ahead_s)))
            assert abs(lab.status()["correction_s"] + ahead_s) < 0.001
        await asyncio.get_running_loop().shutdown_default_executor()
    record_property("worst error of another computer's marker in s", max(errors_s))
    assert max(errors_s) < 0.001
    assert lab.texts("core") == ["0", "1"]


async def test_of_two_streams_of_one_name_the_first_is_taken_and_both_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sources = [outlet(source_id=source_id) for source_id in ("b", "a")]
    async with listening(MarkerConfig(stream=STREAM)) as lab:
        await until(lambda: lab.status()["connected"], "one of them")
        assert lab.status()["source_id"] == "a"
    (warning,) = _warnings(caplog)
    assert "is there 2 times: source_id 'a' on " in warning
    assert ", not source_id 'b' on " in warning
    assert len(sources) == 2


async def test_a_source_id_and_a_computer_choose_among_streams_of_one_name(caplog: pytest.LogCaptureFixture) -> None:
    sources = {source_id: outlet(source_id=source_id) for source_id in ("b", "a")}
    hostname = sources["a"].get_info().hostname()
    wanted = MarkerConfig(stream=STREAM, source_id="b", hostname=hostname)
    nobodys = MarkerConfig(stream=STREAM, hostname="nobody's")
    async with listening(wanted, nobodys) as lab:
        await until(lambda: lab.status()["correction_s"] is not None, "its clock is known")
        for source_id, source in sources.items():
            source.push_sample([source_id])
        await until(lambda: lab.texts("core") == ["b"], "the right one")
        assert (lab.status(0)["hostname"], lab.status(1)["connected"]) == (hostname, False)
    assert [warning for warning in _warnings(caplog) if "times" in warning] == []


async def test_it_ends_in_time_while_it_looks_for_a_stream() -> None:
    async with listening(MarkerConfig(stream=STREAM), MarkerConfig(stream="other")):
        assert len(threads()) == 2
    # `listening` has seen both end.


async def test_it_ends_in_time_while_a_device_does_not_answer() -> None:
    lab = Lab()
    lab.held["phone"] = asyncio.Event()
    async with hearing(lab=lab) as (_, source):
        source.push_sample(["go"])
        await until(lambda: lab.texts("core") == ["go"], "the other one has it")


async def test_an_error_of_the_thread_is_one_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    source, errors = outlet(), list[Exception | None]()
    monkeypatch.setattr(marker_inlet, "_fault", lambda _: [][0])
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    async with listening(MarkerConfig(stream=STREAM)):
        await until(lambda: errors, "the daemon would end")
    assert [type(error) for error in errors] == [IndexError]
    assert not source.have_consumers()


# --- commands and devices --------------------------------------------------------------------------------------------


async def test_commands_are_carried_out_and_anything_else_is_refused() -> None:
    async with hearing(does="commands") as (lab, source):
        stamp_s = time.monotonic()
        for text in ("record start s 1", "reload", "calibrate start", "annotate x", "record stop"):
            source.push_sample([text], stamp_s)
        await until(lambda: lab.status()["done"] == 7, "all that can be")
        for name in ("phone", "core"):
            given = [(asked, rest) for asked, rest in lab.asked if rest["device"] == name]
            done = ["record", "calibrate", "annotate", "record"]
            assert [asked for asked, _ in given] == [asked for asked in done if asked in lab.devices[name].actions]
            assert given[0][1] == {"action": "start", "session": "s 1", "device": name}
            assert given[-1][1] == {"action": "stop", "device": name}
            assert abs(given[-2][1]["host_s"] - stamp_s) < 0.001
        assert lab.status()["refused"] == {"unknown": 1}
        assert lab.status()["last_error"].startswith("'reload' is no command; there are record start [SESSION], ")


async def test_what_a_device_refuses_is_counted_and_warned_of_once_until_it_does_something(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hearing() as (lab, source):
        lab.refusing["core"] = "its clock is not known yet"
        for _ in range(3):
            source.push_sample(["go"])
        await until(lambda: lab.status()["refused"] == {"core": 3}, "refused")
        assert lab.status()["done"] == 3, "the other one's are not touched by it"
        assert lab.status()["last_error"] == "core: its clock is not known yet"
        del lab.refusing["core"]
        source.push_sample(["go"])
        await until(lambda: lab.status()["done"] == 5, "done")
        lab.refusing["core"] = "the device is not there"
        source.push_sample(["go"])
        await until(lambda: lab.status()["refused"] == {"core": 4}, "refused again")
    assert _warnings(caplog) == [
        f"marker stream {STREAM}: core: its clock is not known yet",
        f"marker stream {STREAM}: core: the device is not there",
    ]


async def test_a_device_that_is_not_known_and_none_at_all_are_refused() -> None:
    async with hearing(devices=("nobody",)) as (lab, source):
        source.push_sample(["go"])
        await until(lambda: lab.status()["refused"] == {"nobody": 1}, "refused")
        assert lab.status()["last_error"].startswith("nobody: there is no device 'nobody'")
        await lab.inputs.configure([MarkerConfig(stream=STREAM)])
        lab.devices.clear()
        source.push_sample(["go"])
        await until(lambda: lab.status()["refused"] == {"nobody": 1, "no_device": 1}, "refused")
        assert lab.status()["last_error"] == "event: no device that is known can do that"


# --- reload ----------------------------------------------------------------------------------------------------------


async def test_another_purpose_and_other_devices_change_while_the_stream_is_heard() -> None:
    async with hearing() as (lab, source):
        (thread,) = threads()
        await lab.inputs.configure([MarkerConfig(stream=STREAM, does="commands", devices=("core",))])
        assert threads() == [thread]
        assert lab.status()["connected"]
        source.push_sample(["event go"])
        await until(lambda: lab.texts("core") == ["go"], "its marker")
        assert lab.texts("phone") == []


async def test_streams_come_and_go_and_the_others_stay() -> None:
    async with hearing() as (lab, source):
        (thread,) = threads()
        other = outlet(name="other", kind="int32")
        stays = MarkerConfig(stream=STREAM)
        await lab.inputs.configure([stays, MarkerConfig(stream="other")])
        await until(lambda: lab.status(1)["correction_s"] is not None, "the new one")
        other.push_sample([5])
        source.push_sample(["a"])
        await until(lambda: sorted(lab.texts("core")) == ["5", "a"], "both")
        await lab.inputs.configure([stays])
        assert threads() == [thread]
        other.push_sample([6])
        source.push_sample(["b"])
        await until(lambda: lab.texts("core")[-1] == "b", "the one that stays")
        assert [status["stream"] for status in lab.inputs.status()] == [STREAM]
        assert "6" not in lab.texts("core")
