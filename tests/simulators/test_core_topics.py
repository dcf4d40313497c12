"""Everything that the simulated Pupil Capture sends besides gaze and pupils, and the other ways to map gaze."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from bridge.simulators.core_replay import replay
from bridge.simulators.tape import load
from tests.simulators.test_core import (
    SHORT_TAPE,
    Core,
    Received,
    collect,
    decode,
    launch,
    read_tape,
    receive,
    receive_until,
    shape_of,
    start,
    times_in,
)

__all__ = ["start"]  # the fixture

LONG_TAPE = Path(__file__).parents[1] / "data/pupil_core_tape_30s.msgpack.xz"
OFFSET_NS = 1000 * 10**9
SURFACES = ("surfaces.Screen left", "surfaces.Surface 1")
# Longer than the loop, so that its joint is seen.
WATCHED_S = 13.0


class Watched:
    """What a synthesised run sent, and the truth about it."""

    def __init__(self, core: Core, messages: list[Received]) -> None:
        self.ready = core.ready
        self.topics: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for message in messages:
            self.topics[message.topic].append(message.payload)
        self.messages = messages
        self.truth: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in core.truth():
            self.truth[row["stream"]].append(row)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with ExitStack() as stack:
        core = launch(stack, tmp_path_factory.mktemp("core"), "--synthesise")
        yield Watched(core, collect(core.subscriber(b""), WATCHED_S))


def ns(time_s: float) -> int:
    return round(time_s * 1e9)


def windows_by_id(fixations: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found = defaultdict(list)
    for window in fixations:
        found[window["id"]].append(window)
    return found


# ------------------------------------------------------------------------------------------------------- the real tapes


@pytest.mark.parametrize("path", [SHORT_TAPE, LONG_TAPE], ids=["short", "long"])
def test_every_topic_of_a_tape_is_replayed_with_all_its_instants_shifted_and_its_ids_counted_on(path: Path) -> None:
    header, entries = read_tape(path)
    on_tape: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _, frames in entries:
        on_tape[frames[0].decode()].append(decode(frames[1]))
    tape = load(path)
    # Two turns on a clock that reads the same as CLOCK_MONOTONIC, which began when the tape did.
    turns: list[dict[str, list[dict[str, Any]]]] = [defaultdict(list), defaultdict(list)]
    for number, due in enumerate(islice(replay(tape, tape.start_ns), 2 * len(tape.records))):
        payload = decode(due.record.restamped(lambda at_ns: at_ns / 1e9, due.shift_ns, due.serial_shift))
        turns[number // len(tape.records)][due.record.topic.decode()].append(payload)
    for turn, sent in enumerate(turns):
        assert {topic: len(payloads) for topic, payloads in sent.items()} == {
            topic: len(payloads) for topic, payloads in on_tape.items()
        }
        # In a ring what arrived after its end arrives early in the next turn: the same but for a whole loop.
        moved_s = turn * tape.loop_ns / 1e9 - header["pupil_time"]
        loop_s = tape.loop_ns / 1e9 if "loop_s" in header else None
        for topic, payloads in sent.items():
            expected = sorted(
                (time_s + moved_s) % loop_s if loop_s else time_s + moved_s
                for payload in on_tape[topic]
                for time_s in times_in(payload)
            )
            got = sorted(time_s % loop_s if loop_s else time_s for payload in payloads for time_s in times_in(payload))
            assert len(got) == len(expected)
            assert all(min(abs(a - b), (loop_s or 1e9) - abs(a - b)) < 1e-6 for a, b in zip(got, expected, strict=True))
    first, second = (windows_by_id(sent["fixations"]) for sent in turns)
    span = tape.serial_span
    assert span == len(windows_by_id(on_tape["fixations"]))
    assert {identity + span for identity in first} == set(second)
    referred = [
        (each["id"], each["timestamp"])
        for sent in turns
        for topic, payloads in sent.items()
        if topic.startswith("surfaces.")
        for payload in payloads
        for each in payload["fixations_on_surfaces"]
    ]
    known = {(each["id"], each["timestamp"]) for sent in turns for each in sent["fixations"]}
    # A surface tells of the very window that was sent, but at the ends of a tape that was cut.
    assert len(known & set(referred)) > 0.95 * len(set(referred)) > 100


def test_the_truth_of_a_tape_has_windows_edges_and_gaze_on_surfaces(start: Callable[..., Core]) -> None:
    core = start()
    messages = collect(core.subscriber(b"fixations", b"blinks", b"surfaces."), 4.0)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in core.truth():
        rows[row["stream"]].append(row)
    for message in messages:
        payload = message.payload
        if message.topic == "fixations":
            row = next(row for row in rows["fixations"] if row["device_ns"] == ns(payload["timestamp"]))
            assert row["payload"][0] == payload["id"]
            assert row["payload"][1] == ns(payload["base_data"][-1][1])
            assert row["payload"][3:] == [*payload["norm_pos"], payload["dispersion"], payload["confidence"]]
        elif message.topic == "blinks":
            about = [float(payload["type"] == "onset"), payload["confidence"]]
            assert [ns(payload["timestamp"]), about] in [[row["device_ns"], row["payload"]] for row in rows["blinks"]]
        else:
            there = [[row["device_ns"], row["payload"]] for row in rows[message.topic]]
            for each in payload["gaze_on_surfaces"]:
                about = [*each["norm_pos"], each["confidence"], float(each["on_surf"])]
                assert [ns(each["timestamp"]), about] in there
    assert {message.topic for message in messages} == {"fixations", "blinks", "surfaces.Surface 1"}
    assert all(row["device_ns"] == row["host_ns"] + OFFSET_NS for each in rows.values() for row in each)


# ------------------------------------------------------------------------------------------------------------ made up


def test_synthesised_plugins_say_what_recorded_ones_say(watched: Watched) -> None:
    recorded = {frames[0].decode(): decode(frames[1]) for _, frames in read_tape()[1]}
    recorded["surfaces.Screen left"] = recorded["surfaces.Surface 1"]
    assert {"fixations", "blinks", *SURFACES} <= set(watched.ready["topics"])
    assert watched.ready["topics"]["surfaces.Screen left"] == pytest.approx(30)
    for topic in ("fixations", "blinks", *SURFACES):
        assert watched.topics[topic]
        for payload in watched.topics[topic]:
            for key, pattern in recorded[topic].items():
                got, wanted = shape_of(payload[key]), shape_of(pattern)
                if isinstance(wanted, list) and isinstance(pattern[0], list | dict) and "trans" not in key:
                    # As many entries as there are, each as on the tape.
                    assert all(each in wanted for each in got), key
                else:
                    assert got == wanted, key
            assert list(payload) == list(recorded[topic])


def test_a_fixation_is_overlapping_windows_of_300_ms_with_one_id(watched: Watched) -> None:
    gaze = {row["device_ns"] for row in watched.truth["gaze"]}
    fixations = windows_by_id(watched.topics["fixations"])
    identities = list(fixations)
    assert identities == list(range(identities[0], identities[-1] + 1))
    assert len(identities) > 8
    for windows in fixations.values():
        for before, after in pairwise(windows):
            assert before["timestamp"] <= after["timestamp"] < before["timestamp"] + 0.3
            assert before["base_data"][-1][1] <= after["base_data"][-1][1]
    begun_s = watched.topics["gaze.3d.01."][50]["timestamp"]
    for window in watched.topics["fixations"]:
        stamps = [stamp_s for _, stamp_s in window["base_data"]]
        assert stamps == sorted(stamps)
        assert window["timestamp"] == stamps[0]
        assert window["duration"] == pytest.approx((stamps[-1] - stamps[0]) * 1000, abs=1e-6)
        assert 299.99 < window["duration"] < 700  # longer where a blink is in it
        assert window["dispersion"] < 3.0
        assert stamps[0] < begun_s or {ns(stamp_s) for stamp_s in stamps} <= gaze


def test_the_truth_has_every_whole_fixation(watched: Watched) -> None:
    fixations = windows_by_id(watched.topics["fixations"])
    whole = {row["payload"][0]: row for row in watched.truth["fixation"]}
    # Those whose begin and end were seen: the last one may go on.
    seen = sorted(fixations)[1:-1]
    assert set(seen) <= set(whole)
    for identity in seen:
        row, windows = whole[identity], fixations[identity]
        assert row["device_ns"] == min(ns(window["timestamp"]) for window in windows)
        end_ns = max(ns(window["base_data"][-1][1]) for window in windows)
        assert row["payload"][1:3] == [end_ns, end_ns - OFFSET_NS]
        last = windows[-1]
        assert row["payload"][3:] == [*last["norm_pos"], last["dispersion"], last["confidence"], len(windows)]


def test_a_blink_is_onsets_and_offsets_in_the_middle_of_their_windows_some_of_them_twice(watched: Watched) -> None:
    edges = watched.topics["blinks"]
    for edge in edges:
        base = edge["base_data"]
        assert edge["timestamp"] == base[len(base) // 2]["timestamp"]
        assert base[-1]["timestamp"] - base[0]["timestamp"] == pytest.approx(0.2, abs=0.02)
        assert 0.5 < edge["confidence"] <= 1
    assert any(before == after for before, after in pairwise(edges))
    last_ns = ns(watched.topics["pupil.0.2d"][-1]["timestamp"])
    blinks = [row for row in watched.truth["blink"] if ns(edges[0]["timestamp"]) < row["device_ns"] < last_ns - 10**9]
    assert len(blinks) >= 2
    for row in blinks:
        end_ns, end_host_ns = row["payload"]
        assert 0.1e9 < end_host_ns - row["host_ns"] < 0.3e9
        for kind, true_ns in (("onset", row["device_ns"]), ("offset", end_ns)):
            of_it = [edge for edge in edges if edge["type"] == kind and abs(ns(edge["timestamp"]) - true_ns) < 1e9]
            assert len(of_it) >= 2
            strongest = max(of_it, key=lambda edge: float(edge["confidence"]))
            assert ns(strongest["timestamp"]) == pytest.approx(true_ns, abs=40e6)


def test_surfaces_come_with_every_world_frame_and_have_all_gaze_once(watched: Watched) -> None:
    frames = {ns(payload["timestamp"]) for payload in watched.topics["frame.world"]}
    fixations = {(window["id"], window["timestamp"]) for window in watched.topics["fixations"]}
    gaze = {ns(payload["timestamp"]): payload for payload in watched.topics["gaze.3d.01."]}
    for topic in SURFACES:
        messages = watched.topics[topic]
        stamps = [ns(payload["timestamp"]) for payload in messages]
        assert all(after - before == pytest.approx(1e9 / 30, abs=2) for before, after in pairwise(stamps))
        assert sum(min(abs(stamp - frame) for frame in frames) < 10 for stamp in stamps) > 0.9 * len(stamps)
        on_it = [each for payload in messages for each in payload["gaze_on_surfaces"]]
        assert {each["on_surf"] for each in on_it} == {True, False}
        seen = [ns(each["timestamp"]) for each in on_it]
        assert seen == sorted(set(seen))
        assert len(set(seen) & set(gaze)) > 0.9 * len(gaze)
        assert {
            (each["id"], each["timestamp"]) for p in messages[20:] for each in p["fixations_on_surfaces"]
        } <= fixations
        rows = {row["device_ns"]: row for row in watched.truth[topic]}
        for each in on_it:
            assert each["base_data"] == ["gaze.3d.01.", each["timestamp"]]
            assert each["on_surf"] == all(0 <= value <= 1 for value in each["norm_pos"])
            about = [*each["norm_pos"], each["confidence"], float(each["on_surf"])]
            assert rows[ns(each["timestamp"])]["payload"] == about


@pytest.mark.parametrize(
    ("options", "topics"),
    [
        (("--gaze-mapping", "2d"), {"gaze.2d.01."}),
        (("--gaze-mapping", "mono"), {"gaze.3d.0.", "gaze.3d.1."}),
        (("--gaze-mapping", "mono-2d"), {"gaze.2d.0.", "gaze.2d.1."}),
        (("--integer-keys",), {"gaze.3d.01."}),
    ],
    ids=["2d", "mono", "mono-2d", "integer-keys"],
)
def test_gaze_is_mapped_as_asked(start: Callable[..., Core], options: tuple[str, ...], topics: set[str]) -> None:
    recorded = {frames[0].decode(): decode(frames[1]) for _, frames in read_tape()[1]}
    core = start("--synthesise", *options)
    assert {topic for topic in core.ready["topics"] if topic.startswith("gaze.")} == topics
    assert core.ready["streams"]["gaze"] == pytest.approx(120)
    messages = collect(core.subscriber(b"gaze.", b"surfaces.", b"fixations"), 2.0)
    gaze = [message for message in messages if message.topic in topics]
    assert {message.topic for message in gaze} == topics
    rows = {row["device_ns"]: row for row in core.truth() if row["stream"] == "gaze"}
    for message in gaze:
        payload = message.payload
        assert rows[ns(payload["timestamp"])]["payload"] == [*payload["norm_pos"], payload["confidence"]]
        assert [f"{base['id']}" for base in payload["base_data"]] == list(message.topic.split(".")[2])
        if ".2d." in message.topic:
            assert list(payload) == ["topic", "norm_pos", "confidence", "timestamp", "base_data"]
            assert {base["topic"][-2:] for base in payload["base_data"]} == {"2d"}
        elif "--integer-keys" in options:
            assert set(payload["gaze_normals_3d"]) == set(payload["eye_centers_3d"]) == {0, 1}
        else:
            assert shape_of(payload) == shape_of(recorded[message.topic])
    on_surface = {
        each["topic"]
        for message in messages
        if message.topic.startswith("surfaces.")
        for each in message.payload["gaze_on_surfaces"]
    }
    assert on_surface == {f"{topic}_on_surface" for topic in topics}
    methods = {message.payload["method"] for message in messages if message.topic == "fixations"}
    assert methods == {"2d gaze" if "2d" in "".join(options) else "3d gaze"}


def test_lines_of_the_log_come_now_and_then(start: Callable[..., Core]) -> None:
    core = start("--topics", "none", "--log-every-s", "0.1")
    backbone = core.subscriber(b"logging.info", b"logging.warning")
    levels = [receive(backbone).payload["levelname"] for _ in range(4)]
    assert levels[:2] in (["INFO", "WARNING"], ["WARNING", "INFO"])
    assert levels[:2] == levels[2:]


def test_a_calibration_sends_all_that_it_has_gathered(start: Callable[..., Core]) -> None:
    core = start("--topics", "none")
    backbone = core.subscriber(b"notify.")
    core.ask(b"C")
    core.ask(b"c")
    setup = receive_until(backbone, lambda message: message.topic == "notify.calibration.setup.v2")
    assert 1.7e6 < len(setup.frames[1]) < 1.8e6
    data = setup.payload["calib_data"]
    now_s = setup.payload["timestamp"]
    assert all(now_s - 30 < each["timestamp"] <= now_s for each in (*data["ref_list"], *data["pupil_list"]))
    assert {each["topic"] for each in data["pupil_list"]} == {
        f"pupil.{eye}.{kind}" for eye in (0, 1) for kind in ("2d", "3d")
    }
    assert receive(backbone).topic == "notify.calibration.successful"
