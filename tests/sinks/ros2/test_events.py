"""An event stream's topics."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from bridge.sinks.ros2.events import EventTopics
from tests.sinks.ros2.lab import EVENTS, MAPPED, Notes, event, message, now_ns, quiet_lark, realtime_ns, stamp_ns

pytestmark = quiet_lark

CASES = [
    ("", 0, (0, 0)),
    ("Blick 👁 nach links", 1_500_000_001, (1, 500_000_001)),
    ("x" * 10_000, -1, (-1, 999_999_999)),
    ("no time of ROS is that late", 2**63 - 1, (0, 0)),
    ("nor that early", -(2**63), (0, 0)),
]


@pytest.mark.parametrize(("text", "device_ns", "expected"), CASES)
def test_any_text_and_any_device_time_can_be_published(
    desk: Notes, text: str, device_ns: int, expected: tuple[int, int]
) -> None:
    host_ns = now_ns()
    EventTopics(desk, EVENTS).publish(event(text, device_ns), MAPPED, host_ns)
    (found,) = desk["events"]
    assert found.source == text
    assert (found.time_ref.sec, found.time_ref.nanosec) == expected
    assert stamp_ns(found) == pytest.approx(realtime_ns(host_ns), abs=10**6)


@pytest.mark.parametrize(("text", "device_ns"), [case[:2] for case in CASES])
def test_the_details_have_the_same_time_and_text_and_how_well_it_is_known(
    desk: Notes, text: str, device_ns: int
) -> None:
    message("pupil_msgs/Event")
    EventTopics(desk, EVENTS).publish(event(text, device_ns), MAPPED, now_ns())
    (plain,), (detail,) = desk["events"], desk["events_detail"]
    assert (detail.header, detail.text) == (plain.header, text)
    assert (detail.quality.device_time, detail.quality.epoch) == (device_ns, 3)
    assert detail.quality.bound == pytest.approx(0.002)


def test_without_the_message_the_standard_topic_is_there(plain_node: Any) -> None:
    desk = Notes(plain_node)
    desk.packages = frozenset()
    EventTopics(desk, EVENTS).publish(event("x"), MAPPED, now_ns())
    assert list(desk.papers) == ["events"]
    assert len(desk["events"]) == 1
