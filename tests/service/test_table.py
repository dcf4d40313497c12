"""The table: what a person must find in it, what strangers cannot do to it, and that it fits."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from bridge.errors import BridgeError
from bridge.service import table
from bridge.service.table import MAX_NOTES, printable, status_table, watch
from tests.service.statuses import clock, device, marker, status, stream

HOSTILE = "[red]a[/]\x1b[2J\x07\r\n\u202eb\u200b"


def drawn(tree: dict[str, Any], *, width: int = 80, height: int = 24, fit: bool = False, colour: bool = False) -> str:
    output = io.StringIO()
    Console(file=output, width=width, height=height, force_terminal=colour).print(status_table(tree, fit=fit))
    return output.getvalue()


def lines(tree: dict[str, Any], **options: Any) -> list[str]:
    return [line.rstrip() for line in drawn(tree, **options).splitlines()]


def words(text: str) -> str:
    """In one line and without colours, however it was broken into lines."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).split())


def row(tree: dict[str, Any], name: str, **options: Any) -> list[str]:
    (found,) = [line.split() for line in lines(tree, **options) if line.split()[:1] == [name]]
    return found


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_a_device_has_its_clock_and_a_stream_its_rates() -> None:
    tree = status(device("phone", streams=[stream("gaze")]))
    assert row(tree, "device,") == [
        *("device,", "stream", "in", "Hz", "out", "Hz", "age", "ms", "drops", "clock", "offset", "s", "±", "ms", "ppm")
    ]
    assert row(tree, "phone") == ["phone", "locked", "-1763741234", "0.321", "+50.1"]
    assert row(tree, "gaze") == ["gaze", "199.6", "199.4", "4", "0"]


def test_what_is_not_known_is_a_dash() -> None:
    unknown = clock(state="unlocked", offset_s=None, bound_s=None, drift_ppm=0.0)
    tree = status(device("phone", clock=unknown, streams=[stream("gaze", age_s=None)]))
    assert row(tree, "phone") == ["phone", "unlocked", "-", "-", "+0.0"]
    assert row(tree, "gaze")[3] == "-"


def test_a_device_that_is_not_there_and_one_that_records_say_so() -> None:
    tree = status(device("phone", connected=False), device("neon", recording=True), device("core", recording=None))
    assert row(tree, "phone")[:2] == ["phone", "away"]
    assert row(tree, "REC")[:3] == ["REC", "neon", "locked"]
    assert row(tree, "core")[:2] == ["core", "locked"]


def test_the_mark_of_a_recording_stays_where_a_name_is_cut() -> None:
    assert "REC aaaaa" in drawn(status(device("a" * 100, recording=True)))


@pytest.mark.parametrize(
    ("age_s", "shown"),
    [(0.0, "0"), (0.0044, "4"), (99.9, "99900"), (100, "100 s"), (600, "10 min"), (8000, "2 h"), (900_000, "10 d")],
)
def test_an_age_is_in_ms_until_nobody_would_want_that(age_s: float, shown: str) -> None:
    assert f" {shown} " in drawn(status(device("phone", streams=[stream("gaze", age_s=age_s)])))


def test_drops_are_counted_in_the_row_and_named_below_the_table() -> None:
    drops = {"clock_unlocked": 12, "ros2_queue_full": 3, "late": 0}
    tree = status(device("phone", streams=[stream("gaze", dropped=drops)], malformed={"event": 2}))
    assert row(tree, "gaze")[-1] == "15"
    assert lines(tree)[-2:] == [
        "phone gaze dropped: clock_unlocked 12, ros2_queue_full 3",
        "phone malformed: event 2",
    ]
    assert "dropped" not in drawn(status(device("phone")))


@pytest.mark.parametrize(("count", "shown"), [(99_999, "99999"), (123_456, "123k"), (45_600_000, "46M")])
def test_large_counts_of_drops_are_shortened(count: int, shown: str) -> None:
    assert row(status(device("phone", streams=[stream("gaze", dropped={"late": count})])), "gaze")[-1] == shown


def test_the_head_says_version_duration_and_sinks_with_their_queues() -> None:
    head = "pupil-bridge 1.2.3, running for 83 s, out: lsl, ros2 (3/1000 queued)"
    assert lines(status())[0] == head
    assert lines(status(duration_s=7300))[0] == head.replace("83 s", "2 h")
    backlog = [{"name": "lsl", "queued": 7, "queue_size": None}]
    assert lines(status(sink_status=backlog))[0].endswith("out: lsl (7 queued)")


def test_a_late_loop_is_said_and_one_in_time_is_not() -> None:
    assert "late" not in drawn(status())
    assert "loop 0.40 s late (1.20 s at worst)" in words(drawn(status(loop={"lag_s": 0.4, "worst_lag_s": 1.2})))


def test_problems_come_before_the_table_whole_and_with_a_limit() -> None:
    long = "core: " + "is anything there, " * 12
    shown = lines(status(device("core"), problems=[long, *(f"problem {i}" for i in range(20))]))
    head = next(i for i, line in enumerate(shown) if line.startswith("device, stream"))
    assert f"! {long.strip()}" in words(" ".join(shown[:head]))
    assert shown[head - 1] == f"  and {21 - MAX_NOTES} more"
    assert shown[head - 2] == f"! problem {MAX_NOTES - 2}"


def test_marker_streams_have_a_line_each_before_the_table() -> None:
    lost = marker("triggers", does="commands", connected=False, refused={"time": 2, "core": 1}, dropped=5)
    shown = lines(status(device("core"), markers=[marker("PsychoPy"), lost]), width=100)
    assert shown[1:3] == [
        "LSL markers PsychoPy (events): 12 taken, 24 done",
        "LSL markers triggers (commands): not there, 12 taken, 24 done, 3 refused, 5 dropped",
    ]
    assert shown[3].startswith("device, stream")


def test_a_status_of_an_older_daemon_can_be_shown() -> None:
    tree = status(device("phone"))
    for new in ("problems", "markers", "loop", "process", "config", "sink_status"):
        del tree[new]
    del tree["devices"][0]["recording"]
    assert row(tree, "phone")[1] == "locked"
    assert lines(tree)[0].endswith("out: lsl, ros2")


def test_a_state_and_a_rate_that_are_not_good_have_a_colour() -> None:
    tree = status(device("phone", clock=clock(state="holdover"), streams=[stream("gaze", recent_rate_in_hz=100.0)]))
    text = drawn(tree, colour=True)
    assert re.search("\x1b\\[33m *holdover", text)
    assert re.search("\x1b\\[33m *100.0", text)


# --- strangers -------------------------------------------------------------------------------------------------------


def test_names_are_text_and_nothing_else() -> None:
    tree = status(
        device(HOSTILE, streams=[stream(HOSTILE, dropped={HOSTILE: 1})], malformed={HOSTILE: 2}, recording=True),
        problems=[HOSTILE],
        markers=[marker(HOSTILE)],
        version=HOSTILE,
        sink_status=[{"name": HOSTILE}],
    )
    text = drawn(tree, width=200)
    assert set(re.sub(r"[^\x00-\x1f\x7f-\x9f\u200b-\u202e]", "", text)) == {"\n"}
    assert text.count("[red]a[/]\ufffd[2J\ufffd\ufffd\ufffd\ufffdb\ufffd") == 11
    assert "\x1b[2J" not in drawn(tree, colour=True)


def test_what_is_not_printable_is_replaced_and_endless_text_cut() -> None:
    assert printable("Größe 眼 é ok") == "Größe 眼 é ok"
    assert printable("\ud800\x00\x9b1m\u2066\u2028\ue000") == "\ufffd\ufffd\ufffd1m\ufffd\ufffd\ufffd"
    assert len(printable("x" * 10_000)) == table.MAX_NOTE_CHARACTERS


names = st.text(max_size=60)
numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
counts = st.dictionaries(names, st.integers(0, 10**12), max_size=3)
devices = st.builds(
    lambda name, state, numbers, counts, connected, recording: device(
        name,
        connected=connected,
        recording=recording,
        clock=clock(state=state, offset_s=numbers[0], bound_s=numbers[1], drift_ppm=numbers[2]),
        streams=[stream(name, recent_rate_in_hz=abs(numbers[0] or 0), age_s=numbers[3], dropped=counts)] * 3,
        malformed=counts,
    ),
    names,
    st.sampled_from(["locked", "unlocked", "bridging", "holdover"]),
    st.tuples(numbers, numbers, numbers, st.one_of(st.none(), st.floats(0, 1e9))),
    counts,
    st.booleans(),
    st.sampled_from([True, False, None]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(devices, max_size=12), st.lists(names, max_size=12), st.integers(60, 200), st.integers(10, 60))
def test_whatever_the_status_says_it_fits(found: list[Any], problems: list[str], width: int, height: int) -> None:
    shown = drawn(status(*found, problems=problems), width=width, height=height, fit=True).splitlines()
    assert max(map(cell_len, shown)) <= width
    assert all(line.isprintable() for line in shown)


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_long_names_are_cut_and_every_number_stays(width: int) -> None:
    tree = status(*(device(f"{letter * 90}眼", recording=True) for letter in "abc"))
    shown = lines(tree, width=width)
    assert max(map(cell_len, shown)) <= width
    rows = [line for line in shown if "REC" in line]
    assert len(rows) == 3
    assert all("…" in line and "locked" in line and "0.321" in line for line in rows)
    assert [line.count("…") for line in rows] == [1, 1, 1], "only the name is cut"


def test_80_columns_hold_every_number_at_its_widest() -> None:
    widest = clock(state="unlocked", offset_s=-1763741234.123, bound_s=0.9999994, drift_ppm=-499.9)
    busy = stream(
        "pupil_0_3d", recent_rate_in_hz=9999.9, recent_rate_out_hz=9999.9, age_s=99.999, dropped={"a": 99_999}
    )
    shown = lines(status(device("companion_left", clock=widest, streams=[busy])))[1:]
    assert max(map(len, shown)) <= 80
    assert shown[2].split() == ["companion_left", "unlocked", "-1763741234", "999.999", "-499.9"]
    assert shown[3].split() == ["pupil_0_3d", "9999.9", "9999.9", "99999", "99999"]


def test_thirty_devices_in_24_lines_are_a_row_each_those_in_trouble_first_and_the_rest_counted() -> None:
    tree = status(*(device(f"phone_{i}", connected=i != 17) for i in range(30)), problems=["phone_17: silent"])
    shown = lines(tree, fit=True)
    assert len(shown) < 24
    assert shown[1] == "! phone_17: silent"
    assert shown[4].split()[:3] == ["phone_17", "away", "398.8"]
    assert shown[5].split() == ["phone_0", "399.2", "398.8", "4", "0", "locked", "-1763741234", "0.321", "+50.1"]
    left = 30 - (len(shown) - 5)
    assert shown[-1] == f"and {left} more, {left} well"


def test_where_not_all_streams_fit_those_of_a_device_in_trouble_do() -> None:
    tree = status(*(device(f"phone_{i}", connected=i != 9) for i in range(10)))
    shown = lines(tree, fit=True)
    assert len(shown) < 24
    devices = [line.split()[0] for line in shown if line.startswith("phone")]
    assert devices == [f"phone_{i}" for i in range(10)], "in their order, while all of them fit"
    assert shown[-2].split()[:2] == ["gaze", "199.6"]
    assert shown[-3].split()[:2] == ["phone_9", "away"]
    assert shown[-4].split()[:2] == ["phone_8", "399.2"], "one row for both of its streams"


def test_what_fits_is_not_shortened() -> None:
    tree = status(device("phone"), device("core"))
    assert drawn(tree, fit=True) == drawn(tree)


def test_without_fit_thirty_devices_are_all_there() -> None:
    shown = lines(status(*(device(f"phone_{i}") for i in range(30))))
    assert len([line for line in shown if line.startswith("phone")]) == 30
    assert len([line for line in shown if line.startswith("  gaze")]) == 30


# --- watching --------------------------------------------------------------------------------------------------------


class Enough(Exception):
    pass


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_goes_on_over_a_restart(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = BridgeError("no pupil-bridge answers at /run/x.sock: Connection refused")
    answers = [gone, status(device("phone")), gone, status(device("neon"), duration_s=1.0)]
    output, drawings = io.StringIO(), []

    def ask() -> dict[str, Any]:
        drawings.append(output.getvalue())
        if not answers:
            raise Enough
        answer = answers.pop(0)
        if isinstance(answer, BridgeError):
            raise answer
        return answer

    monkeypatch.setattr(table, "WATCH_INTERVAL_S", 0)
    monkeypatch.setattr(table, "PLAIN_WATCH_INTERVAL_S", 0)
    console = Console(file=output, width=80, height=24, force_terminal=terminal)
    with pytest.raises(Enough):
        watch(ask, console)
    _, first, second, third, fourth = drawings
    assert "no pupil-bridge answers at /run/x.sock: Connection refused. Waiting for it." in first
    assert "answered" not in first
    assert "phone" in second
    assert "Waiting for it. It answered 0 s ago" in words(third)
    assert "running for 1 s" in fourth
    assert "neon" in fourth
    assert "\x1b[?1049h" not in fourth, "no other screen: what was seen last stays"
