"""The managed node: its transitions by real services, what it does not start with, and that it cannot be stopped by
what is destroyed under it."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetAvailableTransitions, GetState
from rclpy._rclpy_pybind11 import InvalidHandle, RCLError
from rclpy.publisher import Publisher

from bridge.errors import BridgeError
from bridge.pipeline import ClockEvent
from bridge.sinks.ros2 import worker as worker_module
from bridge.sinks.ros2.sink import Ros2Sink
from tests.service import statuses
from tests.sinks.ros2.lab import (
    DEADLINE_S,
    DEVICE,
    EVENTS,
    GAZE,
    MAPPED,
    OTHER,
    STATUS,
    Blocked,
    Hearer,
    Peer,
    discovered,
    drained,
    event,
    open_sink,
    quiet_lark,
    ros_arguments,
    settings,
    topics,
    until,
)

pytestmark = quiet_lark

NODE = "/sink_test/sink_test"
CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


def change(peer: Peer, transition: int) -> bool:
    done: bool = peer.call(ChangeState, f"{NODE}/change_state", transition=Transition(id=transition)).success
    return done


def state(peer: Peer) -> str:
    label: str = peer.call(GetState, f"{NODE}/get_state").current_state.label
    return label


# --- transitions -----------------------------------------------------------------------------------------------------


def test_the_node_is_active_from_the_start_and_can_be_asked(sink: Ros2Sink, peer: Peer) -> None:
    assert state(peer) == "active" == sink.status()["state"]
    assert sink.active
    found = peer.call(GetAvailableTransitions, f"{NODE}/get_available_transitions").available_transitions
    assert {each.transition.label for each in found} == {"deactivate", "shutdown"}


def test_a_node_that_is_to_wait_waits_until_it_is_told(peer: Peer) -> None:
    with open_sink(lifecycle="manual") as sink:
        sink.open_device(DEVICE)
        output = sink.open_stream(EVENTS)
        assert output is not None
        output.push(event("lost"), MAPPED, 0)
        drained(sink)
        assert (state(peer), topics(sink), output.dropped) == ("unconfigured", set(), {"inactive": 1})
        assert change(peer, CONFIGURE)
        assert topics(sink)
        output.push(event("lost"), MAPPED, 0)
        assert change(peer, ACTIVATE)
        output.push(event("there"), MAPPED, 0)
        drained(sink)
        assert (output.samples_out, output.dropped) == (1, {"inactive": 2})


def test_nothing_at_all_is_published_while_it_is_inactive(sink: Ros2Sink, peer: Peer, hearer: Hearer) -> None:
    output = discovered(sink, hearer)
    gaze = sink.open_stream(GAZE)
    assert gaze is not None
    output.push(event("before"), MAPPED, 0)
    assert change(peer, DEACTIVATE)
    assert [each.source for each in hearer.hear(1)] == ["before"]
    published: list[str] = []
    for publisher in sink._node.publishers:  # those of ROS itself are not the bridge's
        if "event" not in publisher.topic_name.rpartition("/")[2] or "tracker" in publisher.topic_name:
            publisher.publish = lambda _, name=publisher.topic_name: published.append(name)
    for number in range(5):
        output.push(event(str(number)), MAPPED, 0)
        gaze.push(event(str(number)), MAPPED, 0)
    sink.clock_status(DEVICE, STATUS)
    sink.clock_event(DEVICE, ClockEvent(0, None, 1, "restart"))
    sink.told(statuses.status(statuses.device(DEVICE.name)))
    drained(sink)
    assert published == []
    assert (output.dropped, gaze.dropped) == ({"inactive": 5}, {"inactive": 5})
    assert (output.samples_out, state(peer)) == (1, "inactive")


def test_cleaning_up_takes_the_topics_off_the_network_and_configuring_brings_them_back(
    sink: Ros2Sink, peer: Peer, hearer: Hearer
) -> None:
    output = discovered(sink, hearer)
    before = topics(sink)
    assert change(peer, DEACTIVATE)
    assert change(peer, CLEANUP)
    assert topics(sink) == set()
    until(lambda: not peer.node.count_publishers(hearer.topic), "the topic has gone")
    until(lambda: not peer.node.count_publishers("/diagnostics"), "diagnostics have gone")
    sink.open_device(OTHER)  # while there are no topics
    assert change(peer, CONFIGURE)
    assert change(peer, ACTIVATE)
    assert topics(sink) == before
    assert topics(sink, OTHER)
    until(lambda: peer.node.count_publishers(hearer.topic), "the topic is back")
    count = len(hearer.messages)

    def heard() -> bool:  # discovery takes its time
        output.push(event("again"), MAPPED, 0)
        drained(sink)
        return len(hearer.messages) > count

    until(heard, "it is published to")


def test_shutting_down_ends_the_topics_for_good(sink: Ros2Sink, peer: Peer) -> None:
    assert change(peer, Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert state(peer) == "finalized" == sink.status()["state"]
    assert (topics(sink), sink.active) == (set(), False)
    assert not change(peer, CONFIGURE)
    sink.clock_status(DEVICE, STATUS)


@pytest.mark.parametrize("transition", [CONFIGURE, CLEANUP, ACTIVATE, 0, 10, 99, 255])
def test_a_transition_that_is_not_possible_is_refused_and_answered(sink: Ros2Sink, peer: Peer, transition: int) -> None:
    assert not change(peer, transition)
    assert state(peer) == "active"
    assert sink.active


@pytest.mark.parametrize(("label", "done"), [("deactivate", True), ("configure", False), ("nonsense", False)])
def test_transitions_can_be_asked_for_by_name(sink: Ros2Sink, peer: Peer, label: str, done: bool) -> None:
    answer = peer.call(ChangeState, f"{NODE}/change_state", transition=Transition(label=label))
    assert answer.success is done
    assert state(peer) == ("inactive" if done else "active")


def test_a_node_that_cannot_deactivate_stays_active_and_publishes(
    sink: Ros2Sink, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = sink.open_stream(EVENTS)
    assert output is not None
    drained(sink)
    monkeypatch.setattr(worker_module, "CALL_TIMEOUT_S", 0.05)
    blocked = Blocked(sink)
    assert not change(peer, DEACTIVATE)
    blocked.release()
    assert (state(peer), sink.active) == ("active", True)
    output.push(event("x"), MAPPED, 0)
    drained(sink)
    assert (output.samples_out, output.dropped) == (1, {})


@pytest.mark.parametrize("why", ["blocked", "failing"])
def test_a_configuration_that_fails_leaves_nothing_behind_and_can_be_tried_again(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    with open_sink(lifecycle="manual") as sink:
        sink.open_device(DEVICE)
        sink.open_stream(EVENTS)
        drained(sink)
        before = [publisher.topic_name for publisher in sink._node.publishers]
        with monkeypatch.context() as patch:
            if why == "blocked":
                patch.setattr(worker_module, "CALL_TIMEOUT_S", 0.05)
                blocked = Blocked(sink)
                assert not change(peer, CONFIGURE)
                blocked.release()
            else:
                patch.setattr("bridge.sinks.ros2.stage.EventTopics", lambda *_: [][0])
                assert not change(peer, CONFIGURE)
        drained(sink)
        assert state(peer) == "unconfigured"
        assert [publisher.topic_name for publisher in sink._node.publishers] == before
        assert change(peer, CONFIGURE)
        assert change(peer, ACTIVATE)
        assert topics(sink)


def leaks() -> dict[str, int]:
    gc.collect()
    return {
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "publishers": sum(isinstance(each, Publisher) for each in gc.get_objects()),
    }


def test_ten_rounds_of_all_transitions_leak_nothing(sink: Ros2Sink, peer: Peer) -> None:
    gaze, output = sink.open_stream(GAZE), sink.open_stream(EVENTS)
    assert output is not None
    assert gaze is not None
    before = dict[str, int]()
    for number in range(12):
        for transition, expected in (
            (DEACTIVATE, "inactive"),
            (CLEANUP, "unconfigured"),
            (CONFIGURE, "inactive"),
            (ACTIVATE, "active"),
        ):
            assert change(peer, transition)
            assert sink.status()["state"] == expected
        output.push(event(str(number)), MAPPED, 0)
        sink.told(statuses.status(statuses.device(DEVICE.name)))
        drained(sink)
        if number == 1:  # what is made once has been made
            before = leaks()
    assert leaks() == before
    assert output.samples_out == 12


def test_ten_sinks_one_after_the_other_leak_nothing(peer: Peer) -> None:
    before = dict[str, int]()
    for number in range(12):
        with open_sink() as sink:
            sink.open_device(DEVICE)
            sink.open_stream(GAZE)
            drained(sink)
        del sink
        if number == 1:
            until(lambda: threading.active_count() <= 3, "threads have ended")
            before = leaks()
    after = leaks()
    assert after["threads"] == before["threads"]
    assert after["files"] <= before["files"]
    assert after["publishers"] <= before["publishers"]


# --- the executor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RCLError, InvalidHandle])
def test_an_executor_that_meets_something_destroyed_goes_on(
    sink: Ros2Sink, peer: Peer, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = threading.Event()
    spin_once = sink._spinner._executor.spin_once

    def fail_once(**timeout: Any) -> None:
        if not raised.is_set():
            raised.set()
            raise error("it was destroyed meanwhile")
        spin_once(**timeout)

    monkeypatch.setattr(sink._spinner._executor, "spin_once", fail_once)
    sink._spinner._executor.wake()
    assert raised.wait(DEADLINE_S)
    assert state(peer) == "active"


# --- what it does not start with -------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain_id", ["lab", "-1", "233", "99999999999999999999"])
def test_a_domain_that_cannot_be_is_an_error_that_names_it(domain_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", domain_id)
    with pytest.raises(BridgeError, match="ROS_DOMAIN_ID") as raised:
        Ros2Sink(settings())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "use_sim_time:=true"], "use_sim_time is not possible: stamps come from this computer's clocks"),
        (["-p", "use_sim_time:=5"], "use_sim_time"),
        (["-p", "bad"], "parse"),
        (["--foo"], "--foo"),
        (["-r", "__ns:=bad?ns"], "bad"),
        (["-r", "__node:=bad-name"], "bad-name"),
        (["--params-file", "/nonexistent"], "/nonexistent"),
        (["--log-level", "loud"], "loud"),
        (["-p", "queue_size:=many"], "queue_size"),
        (["-p", "queue_size:=5"], "queue_size"),
        (["-p", "timestamp_mode:=wrong"], "timestamp_mode"),
        (["-p", "frame_prefix:=a b"], "frame_prefix"),
        (["-p", "bound_warn_ms:=0.0"], "bound_warn_ms"),
    ],
)
def test_arguments_of_ros_that_are_wrong_are_an_error_that_names_them(arguments: list[str], words: str) -> None:
    with ros_arguments(*arguments), pytest.raises(BridgeError) as raised:
        Ros2Sink(settings())
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_namespace_can_be_remapped_and_frames_stay(sink: Ros2Sink) -> None:
    with ros_arguments("-r", "__ns:=/robot", "-r", "__node:=eyes"), open_sink() as moved:
        moved.open_device(DEVICE)
        moved.open_stream(EVENTS)
        drained(moved)
        names = {publisher.topic_name for publisher in moved._node.publishers}
        assert {"/robot/tracker/events", "/robot/tracker/time_reference", "/diagnostics"} <= names
        assert (moved._node.get_namespace(), moved._node.get_name()) == ("/robot", "eyes")
        assert moved._desk.frame("gaze/pixel", "tracker") == "tracker_scene_camera_optical_frame"


def test_the_quality_of_a_topics_service_can_be_overridden() -> None:
    name = "qos_overrides./sink_test/tracker/gaze/pixel.publisher.depth"
    with ros_arguments("-p", f"{name}:=7"), open_sink() as sink:
        for _ in range(2):  # a device that comes back has the same
            sink.open_device(DEVICE)
            sink.open_stream(GAZE)
            drained(sink)
            depths = {
                p.topic_name.removeprefix("/sink_test/tracker/"): p.qos_profile.depth for p in sink._node.publishers
            }
            assert (depths["gaze/pixel"], depths["gaze/normalized"]) == (7, 50)
            assert sink._node.get_parameter(name).value == 7
            sink.worker.put_always(lambda: sink._stage.remove_device(DEVICE.name))


@pytest.mark.parametrize("value", ["-1", "abc"])
@pytest.mark.parametrize("topic", ["/diagnostics", "/sink_test/tracker/events"])
def test_an_override_that_is_not_possible_is_said_and_left_out(
    topic: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ros_arguments("-p", f"qos_overrides.{topic}.publisher.depth:={value}"), open_sink() as sink:
        sink.open_device(DEVICE)
        sink.open_stream(EVENTS)
        drained(sink)
        assert sink.status()["state"] == "active"
        depths = {publisher.topic_name: publisher.qos_profile.depth for publisher in sink._node.publishers}
        assert depths[topic] == (10 if topic == "/diagnostics" else 50)
    (line,) = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert "qos_overrides are not possible, and left out" in line
    assert "\n" not in line


# --- many at once ----------------------------------------------------------------------------------------------------


def met(name: str) -> Peer:
    """A peer that has found the node. Once in hundreds of tries Fast DDS never tells one of the other's services."""
    for _ in range(4):
        peer = Peer(name)
        try:
            assert state(peer) == "active"
        except AssertionError:
            peer.close()
        else:
            return peer
    raise AssertionError("the node is not found")


def test_transitions_of_several_clients_at_once_while_devices_come_and_go_end_in_order(sink: Ros2Sink) -> None:
    output = sink.open_stream(EVENTS)
    assert output is not None
    peers, ended, answers = [met(f"peer{number}") for number in range(3)], threading.Event(), list[bool]()

    def trouble(peer: Peer, number: int) -> None:
        orders = [DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE]
        while not ended.is_set():
            for order in orders[number:] + orders[:number]:
                answers.append(change(peer, order))

    threads = [threading.Thread(target=trouble, args=(peer, number)) for number, peer in enumerate(peers)]
    for thread in threads:
        thread.start()
    until_s, pushed, number = time.monotonic() + 5.0, 0, 0
    try:
        while time.monotonic() < until_s or len(answers) < 50:
            assert time.monotonic() < until_s + DEADLINE_S
            number += 1
            sink.open_device(OTHER)
            sink.told(statuses.status(statuses.device(DEVICE.name), statuses.device(OTHER.name)))
            for _ in range(20):
                output.push(event("x"), MAPPED, 0)
                pushed += 1
            sink.clock_status(DEVICE, STATUS)
            drained(sink)
            sink.worker.put_always(lambda: sink._stage.remove_device(OTHER.name))
    finally:
        ended.set()
        for thread in threads:
            thread.join(DEADLINE_S)
        for peer in peers:
            peer.close()
    assert not any(thread.is_alive() for thread in threads)
    assert any(answers)
    assert not all(answers)
    drained(sink)
    assert output.samples_out + sum(output.dropped.values()) == pushed
    peer = Peer()
    try:
        for order in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE):
            change(peer, order)  # from wherever it is
        assert state(peer) == "active"
    finally:
        peer.close()
    assert sink.active
    assert topics(sink)
    assert topics(sink, OTHER) == set()
