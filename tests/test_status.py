"""The status, the sentences about what is wrong, systemd's line, and commands: of a pipeline that a test runs."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from bridge.control import COMMANDS, LATE_S, Control
from bridge.errors import BridgeError, Refused, UnknownCommand
from bridge.loop_lag import LoopLag
from bridge.pipeline import Pipeline
from bridge.sources import Source
from bridge.status import SILENT_S, device_problems, device_status, process_status
from bridge.streams import DeviceDescriptor, StreamKind
from tests.scripted import LATE, MS, Bench, S, Shelf, ready

OTHER = DeviceDescriptor("other", "companion", "pupil_labs_other", model="Model B")


class Owner:
    """What Control sees of a daemon."""

    def __init__(self, bench: Bench) -> None:
        self.pipeline: Pipeline = bench.pipeline
        self.lag = LoopLag()
        self.loaded_at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
        self.reloads = 0
        self.refused: str | None = None
        self.path: str | None = "/etc/pupil-bridge/bridge.toml"
        self.sources: list[Source] = []
        self.own: list[str] = []

    def problems(self) -> list[str]:
        return self.own

    async def reload(self) -> str:
        self.reloads += 1
        return "changed [clock]"


def controlled(bench: Bench) -> tuple[Owner, Control]:
    owner = Owner(bench)
    return owner, Control(owner)


def there(**changes: Any) -> Bench:
    """A phone that is there, with a locked clock and 200 samples of gaze a second."""
    bench, stream, _ = ready(expected_rate_hz=200.0, **changes)
    bench.device.connected = True
    bench.run(stream, range(400), every_ns=5 * MS)
    return bench


# --- the status ------------------------------------------------------------------------------------------------------


def test_everything_in_the_status_is_json_at_every_time() -> None:
    bench = Bench()
    owner, control = controlled(bench)
    stream, out = bench.stream(expected_rate_hz=200.0)
    for _ in range(2):
        for _ in range(2):
            tree = control.status()
            assert json.loads(json.dumps(tree, allow_nan=False)) == tree
            bench.lock()
            bench.device.connected = True
            bench.run(stream, range(5))
        out.dropped["queue_full"] += 1
        bench.device.malformed["gaze"] += 1
        bench.device.recording = True
        bench.pipeline.tick()
        owner.refused = "x.toml: 1 fault\n  clock.hold_s: must be a number"
    (device,) = tree["devices"]
    assert device["malformed"] == {"gaze": 1}
    assert device["recording"] is True
    assert tree["config"]["refused"] == owner.refused


def test_the_status_says_what_the_configuration_is_and_since_when() -> None:
    owner, control = controlled(Bench())
    owner.loaded_at = owner.loaded_at.astimezone(timezone(timedelta(hours=2)))
    owner.reloads = 3
    assert control.status()["config"] == {
        "path": "/etc/pupil-bridge/bridge.toml",
        "loaded_at": "2026-01-02T03:04:05+00:00",
        "reloads": 3,
        "refused": None,
    }


def test_a_stream_has_its_count_for_every_sink_also_for_one_that_has_no_form_for_it() -> None:
    bench = there()
    bench.pipeline.add_sink(Shelf("ros2", without=StreamKind.GAZE))
    (device,) = controlled(bench)[1].status()["devices"]
    (stream,) = device["streams"]
    assert stream["samples_out"] == {"lsl": 400, "ros2": 0}
    assert stream["samples_in"] == 400
    assert stream["age_s"] == 0
    assert (stream["rate_in_hz"], stream["flooding"], stream["dropped"]) == (pytest.approx(200), False, {})


def test_samples_that_were_kept_though_they_were_late_are_counted() -> None:
    bench, stream, _ = ready(reorder_window_ns=20 * MS, keep_late=True, **LATE)
    kept = []
    for age_ns in (2 * MS, 200 * MS):
        bench.run(stream, range(20))
        bench.sample(stream, 0, age_ns=age_ns)
        (found,) = device_status(bench.device, bench.now_ns, ["lsl"])["streams"]
        kept.append((found["late_kept"], found["dropped"]))
    assert kept == [(0, {}), (1, {})]


def test_what_a_device_reports_of_itself_is_in_its_status_where_it_is_listened_to() -> None:
    bench = Bench()
    assert "log" not in device_status(bench.device, bench.now_ns, ["lsl"])
    bench.device.log = {"errors": 1, "warnings": 2, "last": "ERROR: the camera is gone"}
    found = device_status(bench.device, bench.now_ns, ["lsl"])
    assert found["log"] == bench.device.log
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_status_of_every_sink_is_under_its_name() -> None:
    bench = Bench()
    bench.sink.status = lambda: {"queued": 3, "queue_size": 10}  # type: ignore[method-assign]
    bench.pipeline.add_sink(Shelf("ros2"))
    tree = controlled(bench)[1].status()
    assert tree["sinks"] == ["lsl", "ros2"]
    assert tree["sink_status"] == [{"name": "lsl", "queued": 3, "queue_size": 10}, {"name": "ros2"}]


def test_the_duration_is_since_the_start() -> None:
    bench = Bench()
    _, control = controlled(bench)
    bench.now_ns += 90 * S
    assert control.status()["duration_s"] == 90


def test_the_process_knows_its_memory_files_and_threads() -> None:
    before = process_status()
    assert before["pid"] == os.getpid()
    assert before["rss_bytes"] > 10_000_000
    assert before["threads"] >= 1
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    try:
        assert process_status()["open_files"] >= before["open_files"] + 20
    finally:
        for file in opened:
            os.close(file)
    assert process_status()["cpu_s"] >= before["cpu_s"] > 0


# --- what is wrong ---------------------------------------------------------------------------------------------------


def problems(bench: Bench) -> list[str]:
    return device_problems(device_status(bench.device, bench.now_ns, ["lsl"]))


def test_of_a_device_that_is_well_nothing_is_said() -> None:
    assert problems(there()) == []


def test_of_a_device_that_is_not_there_that_alone_is_said() -> None:
    bench = there()
    bench.device.detached()
    bench.now_ns += 3600 * S
    assert problems(bench) == ["phone: not there"]


def test_a_clock_that_is_not_locked_is_said() -> None:
    bench = Bench()
    bench.device.connected = True
    assert problems(bench) == ["phone: its clock is not locked; samples wait or are dropped"]


def test_a_stream_that_is_silent_is_said_after_three_seconds_and_no_more_once_it_is_back() -> None:
    bench = there()
    stream = bench.device.streams["gaze"]
    bench.now_ns += round(SILENT_S * S)
    bench.ping()
    assert problems(bench) == []
    bench.now_ns += MS
    assert problems(bench) == ["phone: gaze is silent for 3 s"]
    bench.sample(stream, 0)
    assert problems(bench) == []


def test_a_slow_stream_may_be_silent_for_ten_of_its_intervals() -> None:
    bench, stream, _ = ready(expected_rate_hz=0.5)
    bench.device.connected = True
    bench.sample(stream, 0)
    for _ in range(20):
        bench.now_ns += S
        bench.ping()
        assert problems(bench) == []
    bench.now_ns += S
    assert problems(bench) == ["phone: gaze is silent for 21 s"]


def test_a_stream_whose_rate_is_not_known_is_never_silent() -> None:
    bench, stream, _ = ready()
    bench.device.connected = True
    assert problems(bench) == []
    bench.sample(stream, 0)
    for _ in range(100):
        bench.now_ns += S
        bench.ping()
    assert problems(bench) == []


def test_a_stream_that_never_sent_anything_is_said() -> None:
    bench, _, _ = ready(expected_rate_hz=200.0)
    bench.device.connected = True
    assert problems(bench) == ["phone: gaze has sent nothing yet"]


def test_a_device_that_does_not_answer_is_said_with_the_time_since_then() -> None:
    bench = there()
    for _ in range(120):
        bench.now_ns += S
        bench.sample(bench.device.streams["gaze"], 0)
    last_ns = bench.device.clock.last_ping_received_ns
    assert last_ns is not None
    (said,) = problems(bench)
    assert said == (f"phone: does not answer; its clock is extrapolated since {(bench.now_ns - last_ns) / 1e9:.0f} s")


def test_a_flood_is_said_also_of_a_stream_whose_rate_is_not_known() -> None:
    bench = there()
    event, _ = bench.stream(name="event", kind=StreamKind.EVENT)
    event.flooding = True
    assert problems(bench) == ["phone: event sends too much; what is beyond the limit is dropped"]


def test_what_somebody_has_just_done_comes_first_and_what_is_wrong_with_the_daemon_last() -> None:
    bench = there()
    bench.pipeline.device(OTHER)
    owner, control = controlled(bench)
    owner.own = ["the disk is full"]
    owner.refused = "x.toml: 2 faults\n  clock.hold_s: a\n  clock.unlocked: b"
    owner.lag.note(bench.now_ns / 1e9, LATE_S + 0.11)
    assert control.status()["problems"] == [
        "the configuration was refused, the one of before goes on: x.toml: 2 faults clock.hold_s: a",
        "other: not there",
        "this computer is too busy: the bridge was 0.6 s late in the last minute",
        "the disk is full",
    ]
    assert control.summary().endswith(
        ". the configuration was refused, the one of before goes on: x.toml: 2 faults clock.hold_s: a, and 3 more"
    )
    bench.now_ns += 62 * S
    assert not [words for words in control.status()["problems"] if "busy" in words]


@pytest.mark.parametrize("lag_s", [0.0, 0.1, LATE_S])
def test_a_loop_that_is_a_little_late_is_no_problem(lag_s: float) -> None:
    bench = there()
    owner, control = controlled(bench)
    owner.lag.note(bench.now_ns / 1e9, lag_s)
    tree = control.status()
    assert tree["problems"] == []
    assert tree["loop"] == {"lag_s": lag_s, "worst_lag_s": lag_s}


# --- one line --------------------------------------------------------------------------------------------------------


def test_the_line_says_who_is_there_where_it_goes_and_what_is_wrong_first() -> None:
    bench = there()
    owner, control = controlled(bench)
    assert control.summary() == "1 of 1 devices there (phone), 1 clocks locked, to lsl"
    bench.pipeline.add_sink(Shelf("ros2"))
    bench.pipeline.device(OTHER)
    assert control.summary() == "1 of 2 devices there (phone), 1 clocks locked, to lsl and ros2. other: not there"
    owner.own = ["the disk is full"]
    assert control.summary().endswith(". other: not there, and 1 more")


def test_the_line_stays_a_line_whatever_is_refused_and_however_many_devices_there_are() -> None:
    bench = there()
    owner, control = controlled(bench)
    owner.refused = "x.toml: 20 faults\n" + "  clock.hold_s: no\n" * 20
    for number in range(30):
        bench.pipeline.device(DeviceDescriptor(f"d{number}", "companion", f"p{number}")).connected = True
    summary = control.summary()
    assert "\n" not in summary
    assert summary.startswith(
        "31 of 31 devices there (phone, d0, d1, d2, ...), 1 clocks locked, to lsl. the configuration was"
    )
    assert len(summary) < 300


def test_the_line_of_a_bridge_without_any_device_says_so() -> None:
    bench = Bench()
    bench.pipeline.devices.clear()
    assert controlled(bench)[1].summary() == "0 of 0 devices there, to lsl"


# --- commands --------------------------------------------------------------------------------------------------------


def can_record(bench: Bench, name: str, answer: str | Exception) -> list[Any]:
    """Lets a device answer to record so; what it is asked."""
    asked: list[Any] = []

    async def record(given: Any) -> str:
        asked.append(given)
        if isinstance(answer, Exception):
            raise answer
        return answer

    bench.pipeline.devices[name].actions["record"] = record
    return asked


async def test_status_and_reload_are_commands() -> None:
    owner, control = controlled(there())
    assert (await control.request("status", {}))["version"] == control.status()["version"]
    assert await control.request("reload", {}) == {"changes": "changed [clock]"}
    assert owner.reloads == 1


@pytest.mark.parametrize("command", ["", "Status", "status ", "x" * 10_000, "__init__", "\ud800"])
async def test_an_unknown_command_is_said_with_those_that_there_are(command: str) -> None:
    _, control = controlled(there())
    with pytest.raises(UnknownCommand, match="there are status, reload, record") as caught:
        await control.request(command, {})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("status", {"device": "phone"}),
        ("reload", {"path": "/etc/passwd"}),
        ("record", {}),
        ("record", {"action": 1}),
        ("record", {"action": "pause"}),
        ("record", {"action": "x" * 10_000}),
        ("record", {"action": "start", "device": 5}),
        ("event", {}),
        ("event", {"text": None}),
        ("event", {"text": "x", "host_s": "now"}),
        ("annotate", {"text": "x", "colour": "red"}),
        ("calibrate", {"action": "begin"}),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_in_one_sentence(command: str, arguments: dict[str, Any]) -> None:
    _, control = controlled(there())
    with pytest.raises(BridgeError) as caught:
        await control.request(command, arguments)
    assert str(caught.value).startswith(command)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


async def test_a_device_does_what_its_source_can_and_gets_the_arguments() -> None:
    bench = there()
    asked = can_record(bench, "phone", "recording has begun")
    _, control = controlled(bench)
    arguments = {"action": "start", "device": "phone", "session": "s1"}
    assert await control.request("record", arguments) == {
        "done": {"phone": "recording has begun"},
        "refused": {},
    }
    (given_,) = asked
    assert isinstance(given_, COMMANDS["record"])
    assert (given_.action, given_.session) == ("start", "s1")  # type: ignore[attr-defined]


async def test_what_no_device_can_and_who_is_not_known_is_refused() -> None:
    bench = there()
    bench.pipeline.device(OTHER)
    _, control = controlled(bench)
    with pytest.raises(Refused, match="record: no device that is known can do that"):
        await control.request("record", {"action": "start"})
    with pytest.raises(Refused, match=r"there is no device 'nobody'; known are: phone, other"):
        await control.request("record", {"action": "start", "device": "nobody"})
    with pytest.raises(Refused, match=r"other: record is not possible with this device \(Model B\)"):
        await control.request("record", {"action": "start", "device": "other"})


async def test_a_device_that_is_named_and_is_not_there_is_refused() -> None:
    bench = there()
    asked = can_record(bench, "phone", "recording has begun")
    bench.device.detached()
    _, control = controlled(bench)
    with pytest.raises(Refused, match="phone: the device is not there"):
        await control.request("record", {"action": "start", "device": "phone"})
    assert asked == []


@pytest.mark.parametrize("how", ["not there", "refuses"])
async def test_of_all_devices_those_that_can_do_it_and_their_answers_are_not_lost(how: str) -> None:
    bench = there()
    other = bench.pipeline.device(OTHER)
    other.connected = how == "refuses"
    phone = can_record(bench, "phone", "recording has begun")
    can_record(bench, "other", Refused("other: its memory is full"))
    _, control = controlled(bench)
    answers = await control.request("record", {"action": "start"})
    assert len(phone) == 1
    why = "the device is not there" if how == "not there" else "its memory is full"
    assert answers == {"done": {"phone": "recording has begun"}, "refused": {"other": f"other: {why}"}}


async def test_when_all_devices_refuse_that_is_a_refusal() -> None:
    bench = there()
    can_record(bench, "phone", Refused("phone: its memory is full"))
    _, control = controlled(bench)
    with pytest.raises(Refused, match="phone: its memory is full"):
        await control.request("record", {"action": "start"})
