"""/diagnostics: levels that mean something."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from diagnostic_msgs.msg import DiagnosticStatus

from bridge.sinks.ros2.diagnostics import Diagnostics
from tests.service import statuses
from tests.sinks.ros2.lab import Notes, now_ns, quiet_lark, realtime_ns, stamp_ns

pytestmark = quiet_lark

OK, WARN, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.STALE


def stream(**changes: Any) -> dict[str, Any]:
    return {
        "name": "gaze",
        "expected_rate_hz": 200.0,
        "recent_rate_in_hz": 199.94,
        "age_s": 0.01,
        "dropped": {},
        "flooding": False,
        **changes,
    }


def clock(**changes: Any) -> dict[str, Any]:
    return {
        "state": "locked",
        "offset_s": -777.25,
        "bound_s": 0.002,
        "precision_s": 0.0005,
        "slew_s": -0.0001,
        "rtt_min_s": 0.001,
        "drift_ppm": -12.5,
        "age_s": 0.5,
        "epoch": 3,
        **changes,
    }


def device(name: str = "tracker", *streams: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "connected": True,
        "recording": None,
        "clock": clock(),
        "streams": list(streams) or [stream()],
        "malformed": {},
        **changes,
    }


def whole(*devices: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "version": "1.2.3",
        "duration_s": 61.4,
        "problems": [],
        "devices": list(devices),
        "loop": {"lag_s": 0.0, "worst_lag_s": 0.25},
        "sink_status": [{"name": "lsl", "outlets": 3}, {"name": "ros2", "queued": 7}],
        **changes,
    }


def told(desk: Notes, status: dict[str, Any]) -> list[Any]:
    """The statuses, the bridge's first."""
    Diagnostics(desk).publish(status, now_ns())
    (array,) = desk["/diagnostics"]
    return list(array.status)


def of(desk: Notes, one: dict[str, Any]) -> tuple[bytes, str]:
    _, found = told(desk, whole(one))
    return found.level, found.message


def values(status: Any) -> dict[str, str]:
    return {each.key: each.value for each in status.values}


def test_a_device_that_streams_on_a_locked_clock_is_ok_with_its_figures(desk: Notes) -> None:
    noisy = stream(name="event", expected_rate_hz=None, age_s=None, dropped={"queue_full": 2, "late": 1})
    _, found = told(desk, whole(device("tracker", stream(), noisy, malformed={"json": 3}, recording=True)))
    assert (found.level, found.message) == (OK, "clock locked")
    assert (found.name, found.hardware_id) == ("alone: tracker", "tracker")
    assert values(found) == {
        "offset_s": "-777.250000000",
        "bound_s": "0.002000000",
        "precision_s": "0.000500000",
        "slew_s": "-0.000100000",
        "rtt_min_s": "0.001000000",
        "drift_ppm": "-12.500",
        "state": "locked",
        "epoch": "3",
        "recording": "yes",
        "gaze_hz": "199.9",
        "event_hz": "199.9",
        "samples_dropped": "3",
        "dropped_by": "late, queue_full",
        "malformed": "3",
    }


def test_the_array_is_of_now(desk: Notes) -> None:
    host_ns = now_ns()
    Diagnostics(desk).publish(whole(), host_ns)
    assert stamp_ns(desk["/diagnostics"][0]) == pytest.approx(realtime_ns(host_ns), abs=10**6)


def test_a_device_that_is_not_there_is_stale(desk: Notes) -> None:
    assert of(desk, device(connected=False)) == (STALE, "not there")


@pytest.mark.parametrize("age_s", [None, 3.5])
def test_a_device_that_is_there_and_says_nothing_is_stale(desk: Notes, age_s: float | None) -> None:
    assert of(desk, device("tracker", stream(age_s=age_s))) == (STALE, "silent")


def test_a_device_that_does_not_answer_is_stale_though_it_may_still_stream(desk: Notes) -> None:
    level, text = of(desk, device(clock=clock(state="holdover")))
    assert level == STALE
    assert "does not answer" in text


def test_a_device_with_one_silent_stream_of_two_is_a_warning_that_names_it(desk: Notes) -> None:
    level, text = of(desk, device("tracker", stream(), stream(name="imu", age_s=9.0)))
    assert level == WARN
    assert "imu is silent for 9 s" in text


def test_a_device_whose_streams_come_when_they_like_is_not_silent(desk: Notes) -> None:
    assert of(desk, device("tracker", stream(expected_rate_hz=None, age_s=None)))[0] == OK


@pytest.mark.parametrize("state", ["unlocked", "bridging"])
def test_a_clock_that_is_not_locked_is_a_warning(desk: Notes, state: str) -> None:
    assert of(desk, device(clock=clock(state=state))) == (WARN, f"clock {state}")


@pytest.mark.parametrize(("bound_s", "level"), [(0.0101, WARN), (0.0099, OK), (None, OK)])
def test_a_bound_beyond_the_limit_is_a_warning_with_both_figures(
    desk: Notes, bound_s: float | None, level: bytes
) -> None:
    found, text = of(desk, device(clock=clock(bound_s=bound_s)))
    assert found == level
    assert (text == "stamps are uncertain by 10.1 ms, more than 10 ms") == (level == WARN)


def test_the_limit_is_what_the_settings_say_now(desk: Notes) -> None:
    diagnostics, status = Diagnostics(desk), whole(device(clock=clock(bound_s=0.0015)))
    diagnostics.publish(status, now_ns())
    desk.settings = desk.settings.model_copy(update={"bound_warn_ms": 1.25})
    diagnostics.publish(status, now_ns())
    before, after = [array.status[1] for array in desk["/diagnostics"]]
    assert (before.level, after.level) == (OK, WARN)
    assert after.message == "stamps are uncertain by 1.5 ms, more than 1.25 ms"


def test_a_flood_is_a_warning(desk: Notes) -> None:
    level, text = of(desk, device("tracker", stream(flooding=True)))
    assert level == WARN
    assert "sends too much" in text


def test_what_was_never_measured_is_unknown_and_not_zero(desk: Notes) -> None:
    nothing = dict.fromkeys(("offset_s", "bound_s", "precision_s", "rtt_min_s"))
    _, found = told(desk, whole(device(clock=clock(state="unlocked", **nothing))))
    assert {values(found)[key] for key in nothing} == {"unknown"}


def test_what_a_device_reports_of_itself_is_told_where_it_is_listened_to(desk: Notes) -> None:
    one = device(log={"errors": 2, "warnings": 31, "last": "ERROR: the camera is gone"})
    _, found, silent = told(desk, whole(one, device("other")))
    assert found.level == OK
    assert {key: value for key, value in values(found).items() if "log" in key} == {
        "log errors": "2",
        "log warnings": "31",
        "last log line": "ERROR: the camera is gone",
    }
    assert not [key for key in values(silent) if "log" in key]


def test_the_bridge_itself_has_a_status_with_its_own_problems_and_not_the_devices(desk: Notes) -> None:
    gone = device("gone", connected=False)
    first, second, third = told(desk, whole(device(), gone, problems=["gone: not there"]))
    assert (first.level, first.name, first.message) == (OK, "alone: bridge", "running")
    assert values(first) == {
        "devices": "1 of 2",
        "version": "1.2.3",
        "duration_s": "61",
        "worst_lag_s": "0.250",
        "queued": "ros2 7",
    }
    assert (second.level, third.level) == (OK, STALE)


def test_a_problem_of_the_bridge_is_a_warning_that_says_it(desk: Notes) -> None:
    (found,) = told(desk, whole(problems=["no file can be opened", "this computer is too busy"]))
    assert (found.level, found.message) == (WARN, "no file can be opened; this computer is too busy")


def test_the_status_that_other_readers_are_tested_with_can_be_told(desk: Notes) -> None:
    first, *devices = told(desk, statuses.status(statuses.device("a"), statuses.device("b", connected=False)))
    assert first.hardware_id == "pupil-bridge"
    assert [(each.hardware_id, each.level) for each in devices] == [("a", OK), ("b", STALE)]
