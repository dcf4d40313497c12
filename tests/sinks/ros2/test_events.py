"""An event stream's topics."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from bridge.sinks.ros2 import Ros2Sink
from bridge.sinks.ros2.events import EventTopics
from bridge.streams import StreamDescriptor, StreamKind
from tests.sinks.ros2.lab import (
    DEVICE,
    EVENTS,
    MAPPED,
    Hearer,
    Notes,
    discovered,
    drained,
    event,
    is_there,
    message,
    now_ns,
    quiet_lark,
    realtime_ns,
    stamp_ns,
)

pytestmark = quiet_lark

ANNOTATIONS = StreamDescriptor(DEVICE, "annotations", StreamKind.EVENT, "Annotations", "Markers")
NOTIFICATIONS = StreamDescriptor(DEVICE, "notifications", StreamKind.EVENT, "Notifications", "Markers")
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


@pytest.mark.parametrize("wanted", [(), ("events",), ("events_detail",)])
def test_only_what_somebody_subscribes_to_is_published(desk: Notes, wanted: tuple[str, ...]) -> None:
    message("pupil_msgs/Event")
    made = EventTopics(desk, EVENTS)
    desk.nobody_but(*wanted)
    made.publish(event("x"), MAPPED, now_ns())
    assert [name for name in ("events", "events_detail") if desk[name]] == list(wanted)


def test_notifications_are_apart_from_annotations(desk: Notes) -> None:
    host_ns = now_ns()
    for stream, text in ((ANNOTATIONS, "a label"), (NOTIFICATIONS, '{"subject":"recording.started"}')):
        EventTopics(desk, stream).publish(event(text, 1_500_000_001, stream), MAPPED, host_ns)
    assert [found.source for found in desk["events"]] == ["a label"]
    (found,) = desk["notifications"]
    assert found.source == '{"subject":"recording.started"}'
    assert (found.time_ref.sec, found.time_ref.nanosec) == (1, 500_000_001)
    assert stamp_ns(found) == pytest.approx(realtime_ns(host_ns), abs=10**6)
    detailed = {"events_detail"} if is_there("pupil_msgs/Event") else set()
    assert set(desk.papers) == {"events", "notifications"} | detailed


def test_no_topic_of_a_device_has_two_publishers(sink: Ros2Sink) -> None:
    for stream in (ANNOTATIONS, NOTIFICATIONS):
        assert sink.open_stream(stream) is not None
    drained(sink)
    names = [publisher.topic_name for publisher in sink._node.publishers]
    assert len(names) == len(set(names))
    assert "/sink_test/tracker/notifications" in names


def test_a_reader_hears_notifications(sink: Ros2Sink) -> None:
    hearer = Hearer("notifications")
    try:
        output = discovered(sink, hearer, NOTIFICATIONS)
        output.push(event("{}", 7, NOTIFICATIONS), MAPPED, now_ns())
        (found,) = hearer.hear(1)
        assert (found.source, found.time_ref.nanosec) == ("{}", 7)
    finally:
        hearer.close()
