"""What comes out of the simulated Pupil Capture when its clock is set, jumps or is slewed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tests.simulators.test_core import (
    DEADLINE_S,
    Core,
    Received,
    collect,
    datums,
    receive,
    receive_until,
    start,
    times_in,
)

__all__ = ["start"]  # the fixture

OFFSET_NS = 1000 * 10**9


def ns(time_s: float) -> int:
    return round(time_s * 1e9)


def rows_of(core: Core) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for row in core.truth():
        found[row["stream"]].append(row)
    return found


def set_forward(core: Core, change_s: float) -> None:
    now_s = float(core.ask(b"t"))
    assert core.ask(f"T {now_s + change_s!r}".encode()) == "Timesync successful."


def stepped(
    core: Core, change_s: float, seconds: float, *prefixes: bytes
) -> tuple[list[Received], dict[str, Any], int]:
    """What comes before and after a step, the row of the step, and the Pupil time that lies between the timebases."""
    backbone = core.subscriber(*prefixes)
    before = collect(backbone, 1.0)
    set_forward(core, change_s)
    messages = before + collect(backbone, seconds)
    (row,) = rows_of(core)["clock"]
    assert row["payload"][0] == pytest.approx(change_s * 1e9, abs=1e9)  # the time between the two requests
    return messages, row, row["device_ns"] - row["payload"][0] // 2


def is_new(message: Received, row: dict[str, Any]) -> bool:
    """Whether it is stamped in the new timebase."""
    stamp_ns = ns(message.payload["timestamp"])
    return abs(stamp_ns - message.at_ns - (row["device_ns"] - row["host_ns"])) < 0.45 * abs(row["payload"][0])


def test_gaze_in_the_old_timebase_still_comes_when_it_is_old(start: Callable[..., Core]) -> None:
    core = start("--synthesise", "--gaze-age-ms", "80")
    messages, row, _ = stepped(core, 10.0, 1.5, b"gaze.", b"pupil.")
    after = [message for message in messages if message.at_ns > row["host_ns"]]
    old = [message for message in after if not is_new(message, row)]
    gaze = [message for message in old if message.topic.startswith("gaze.")]
    assert len(gaze) >= 5
    assert max(message.at_ns for message in gaze) - row["host_ns"] >= 40e6
    # No two eyes are paired over the step, and nothing is missing on either side of it.
    for message in messages:
        stamps = times_in(message.payload)
        assert max(stamps) - min(stamps) < 0.1, message.topic
    hosts = {stream: [each["host_ns"] for each in rows] for stream, rows in rows_of(core).items()}
    for stream in core.ready["streams"]:
        assert all(later - earlier < 20e6 for earlier, later in pairwise(sorted(hosts[stream])))
    step_ns = row["payload"][0]
    for each in rows_of(core)["gaze"]:
        assert each["device_ns"] == each["host_ns"] + OFFSET_NS + (step_ns if each["host_ns"] >= row["host_ns"] else 0)


@pytest.mark.parametrize("mapping", ["3d", "2d"])
def test_after_a_step_back_the_eyes_are_not_paired_for_a_while(start: Callable[..., Core], mapping: str) -> None:
    core = start("--synthesise", "--binocular-pause-s", "1", "--gaze-mapping", mapping)
    messages, row, _ = stepped(core, -500.0, 2.5, b"gaze.", b"pupil.")
    gaze = [message for message in datums(messages, "gaze") if is_new(message, row)]
    kinds = [message.topic for message in gaze]
    pair, right, left = (f"gaze.{mapping}.{eyes}." for eyes in ("01", "0", "1"))
    first = kinds.index(pair)
    assert set(kinds[:first]) == {right, left}
    assert set(kinds[first:]) == {pair}
    assert 0.8e9 < gaze[first].at_ns - row["host_ns"] < 2e9  # on a busy machine all is late
    pupils = {(each.topic, each.payload["timestamp"]) for each in messages if each.topic.startswith("pupil.")}
    rows = {each["device_ns"]: each for each in rows_of(core)["gaze"]}
    for message in gaze[:first]:
        payload = message.payload
        (base,) = payload["base_data"]
        assert payload["timestamp"] == base["timestamp"]
        assert payload["topic"] == message.topic == f"gaze.{mapping}.{base['id']}."
        assert (base["topic"], base["timestamp"]) in pupils
        assert rows[ns(payload["timestamp"])]["payload"] == [*payload["norm_pos"], payload["confidence"]]
        assert ("gaze_normal_3d" in payload) == (mapping == "3d")
    for eye in (right, left):
        stamps = [message.payload["timestamp"] for message in gaze[:first] if message.topic == eye]
        assert all(0 < after - before < 0.02 for before, after in pairwise(stamps))


def test_after_a_step_back_there_are_no_fixations_and_blinks_begin_anew(start: Callable[..., Core]) -> None:
    core = start("--synthesise", "--binocular-pause-s", "0.2")
    messages, row, middle_ns = stepped(core, -500.0, 6.0, b"fixations", b"blinks", b"surfaces.")
    new = [message for message in messages if is_new(message, row)]
    assert any(message.topic == "fixations" for message in messages)
    assert not any(message.topic == "fixations" for message in new)
    surfaces = [message.payload for message in new if message.topic.startswith("surfaces.")]
    assert len(surfaces) > 200
    for payload in surfaces:
        on_it = payload["fixations_on_surfaces"]
        assert all(ns(each["timestamp"]) > middle_ns for each in on_it)
        # The gaze of the last moment before the step is still in the old timebase.
        new_gaze = [each for each in payload["gaze_on_surfaces"] if ns(each["timestamp"]) < middle_ns]
        assert all(each["base_data"][1] == each["timestamp"] for each in new_gaze)
    assert not surfaces[-1]["fixations_on_surfaces"]
    blinks = [message.payload for message in new if message.topic == "blinks"]
    assert blinks
    assert all(max(times_in(payload)) - min(times_in(payload)) < 0.3 for payload in blinks)
    # What was begun before the step ends with it.
    rows = rows_of(core)
    last = rows["fixation"][-1]
    assert last["payload"][2] < row["host_ns"]
    assert last["payload"][0] == rows["fixations"][-1]["payload"][0]


def test_fixations_are_back_when_pupil_time_is_where_it_was(start: Callable[..., Core]) -> None:
    core = start("--synthesise")
    backbone = core.subscriber(b"fixations")
    receive(backbone)
    before_s = float(core.ask(b"t"))
    set_forward(core, -1.5)
    (row,) = rows_of(core)["clock"]
    message = receive_until(backbone, lambda each: each.at_ns > row["host_ns"] + 0.5e9)
    assert max(times_in(message.payload)) >= before_s - 0.001


def test_a_fixation_over_a_step_forward_has_a_duration_that_cannot_be(start: Callable[..., Core]) -> None:
    core = start("--synthesise")
    backbone = core.subscriber(b"fixations")
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        # It may come just between two fixations.
        receive(backbone)
        set_forward(core, 10.0)
        odd = [each.payload for each in collect(backbone, 0.5) if each.payload["duration"] > 5000]
        if odd:
            break
    for payload in odd:
        stamps = [stamp_s for _, stamp_s in payload["base_data"]]
        assert payload["duration"] == pytest.approx((stamps[-1] - stamps[0]) * 1000)
        assert payload["duration"] == pytest.approx(10_300, abs=500)
    assert odd


def test_pupil_time_sync_slews_half_a_millisecond_at_a_time(start: Callable[..., Core]) -> None:
    core = start("--synthesise", "--sync-step-ms", "-1.2", "--sync-every-s", "1")
    backbone = core.subscriber(b"logging.debug")
    said = []
    while len(said) < 3:
        text = receive(backbone).payload["msg"]
        if "slewed" in text:
            said.append(text)
    assert said == ["Time slewed by: 0.5ms", "Time slewed by: 0.5ms", "Time slewed by: 0.2ms"]
    rows = rows_of(core)
    changes = [row["payload"][0] for row in rows["clock"][:3]]
    assert changes == [-500_000, -500_000, -200_000]
    assert 0.05e9 < rows["clock"][1]["host_ns"] - rows["clock"][0]["host_ns"] < 0.4e9
    slewed_ns = 0
    steps = iter([*rows["clock"], {"host_ns": 1 << 62, "payload": [0]}])
    following = next(steps)
    for row in sorted(rows["pupil.0.2d"], key=lambda row: int(row["host_ns"])):
        while row["host_ns"] >= following["host_ns"]:
            slewed_ns += following["payload"][0]
            following = next(steps)
        assert row["device_ns"] == row["host_ns"] + OFFSET_NS + slewed_ns


def test_pupil_time_sync_jumps_but_not_while_it_records(start: Callable[..., Core]) -> None:
    core = start("--topics", "none", "--sync-step-ms", "20", "--sync-every-s", "0.3")
    backbone = core.subscriber(b"logging.info", b"logging.error", b"logging.debug")
    receive_until(backbone, lambda each: each.payload["msg"] == "Pupil Sync has adjusted the clock by -0.02s")
    assert receive(backbone).payload["msg"] == "Time adjusted by -20.0ms."
    core.ask(b"R")
    refused = receive_until(backbone, lambda each: each.payload["levelname"] == "ERROR")
    assert refused.payload["msg"].startswith("Request to change timebase during recording ignored.")
    jumps = len(rows_of(core)["clock"])
    receive_until(backbone, lambda each: each.payload["levelname"] == "ERROR")
    rows = rows_of(core)["clock"]
    assert len(rows) == jumps
    assert {row["payload"][0] for row in rows} == {20_000_000}
    core.ask(b"r")
    receive_until(backbone, lambda each: "has adjusted" in each.payload["msg"])
