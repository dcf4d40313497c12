"""What ROS can have devices do: the control surface's own answers, whatever they are."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from std_srvs.srv import Trigger

from bridge.control import Calibrate, Control, Event, Record
from bridge.errors import Refused
from bridge.pipeline import Device, Pipeline
from bridge.sinks.ros2 import sink as sink_module
from bridge.sinks.ros2.sink import Ros2Sink
from tests.sinks.ros2.lab import (
    DEADLINE_S,
    DEVICE,
    OTHER,
    Peer,
    configuration,
    drained,
    elsewhere,
    is_there,
    message,
    open_sink,
    quiet_lark,
    settings,
    soon,
)

pytestmark = quiet_lark

BOTH = ("record", "calibrate")


class Owner:
    """What the control surface needs of a daemon."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline


class Rig:
    """A sink under a real control surface, with devices that do what the test says."""

    def __init__(self, sink: Ros2Sink) -> None:
        self.sink = sink
        self.pipeline = Pipeline([sink])
        self.control = Control(Owner(self.pipeline))  # type: ignore[arg-type]
        self.asked: list[tuple[str, Any]] = []
        self.tracker = self.add(DEVICE)
        sink.serve(self.control.request, configuration())

    def add(self, descriptor: Any) -> Device:
        device = self.pipeline.device(descriptor)
        device.connected = True
        return device

    def can(self, device: Device, *functions: str) -> None:
        for function in functions:
            device.actions[function] = self._action(device, function)

    def _action(self, device: Device, function: str) -> Any:
        async def act(given: Any) -> str:
            self.asked.append((device.descriptor.name, given))
            return f"{function} done"

        return act

    async def told(self) -> None:
        """As the daemon's tick."""
        devices = [
            {
                "name": name,
                "connected": device.connected,
                "recording": None,
                "clock": {"state": "unlocked", "drift_ppm": 0.0, "epoch": 0, "age_s": None}
                | dict.fromkeys(("offset_s", "bound_s", "precision_s", "slew_s", "rtt_min_s")),
                "streams": [],
                "malformed": {},
                "functions": sorted(device.actions),
            }
            for name, device in self.pipeline.devices.items()
        ]
        loop = {"lag_s": 0.0, "worst_lag_s": 0.0}
        status = {
            "version": "x",
            "duration_s": 1.0,
            "problems": [],
            "loop": loop,
            "sink_status": [],
            "devices": devices,
        }
        self.sink.told(status)
        await elsewhere(lambda: drained(self.sink) or True)

    def services(self) -> set[str]:
        """What the node offers, without what every node has."""
        names = {each.srv_name.removeprefix("/sink_test/") for each in self.sink._node.services}
        return {name for name in names if not name.startswith("sink_test/")}


@asynccontextmanager
async def rig(control: bool = True) -> AsyncIterator[Rig]:
    with open_sink(control=control) as sink:
        yield Rig(sink)


def expected(device: str, *functions: str) -> set[str]:
    """The services of a device by its functions."""
    names = {"record": ["start_recording", "stop_recording"], "calibrate": ["start_calibration", "stop_calibration"]}
    found = {f"{device}/{name}" for function in functions for name in names.get(function, [])}
    if is_there("pupil_msgs/Gaze"):
        found |= {
            f"{device}/{name}" for key, name in (("record", "record"), ("event", "send_event")) if key in functions
        }
    return found


ALL = {"start_recording", "stop_recording"}


# --- which there are -------------------------------------------------------------------------------------------------


async def test_services_come_and_go_with_what_the_devices_can_do() -> None:
    async with rig() as lab:
        await lab.told()
        assert lab.services() == set()
        lab.can(lab.tracker, "record", "event")
        await lab.told()
        assert lab.services() == ALL | expected("tracker", "record", "event")
        other = lab.add(OTHER)
        lab.can(other, "calibrate")
        await lab.told()
        assert lab.services() == ALL | expected("tracker", "record", "event") | expected("other", "calibrate")
        del lab.tracker.actions["record"]
        await lab.told()
        assert lab.services() == expected("tracker", "event") | expected("other", "calibrate")
        await lab.pipeline.remove_device("other")
        await lab.told()
        assert lab.services() == expected("tracker", "event")


async def test_without_leave_there_are_none() -> None:
    async with rig(control=False) as lab:
        lab.can(lab.tracker, *BOTH)
        await lab.told()
        assert lab.services() == set()


async def test_they_go_with_a_node_that_is_cleaned_up_and_come_back() -> None:
    async with rig() as lab:
        lab.can(lab.tracker, "record")
        await lab.told()
        before = lab.services()
        assert before
        assert await elsewhere(lambda: lab.sink.deactivate() and lab.sink.cleanup())
        assert lab.services() == set()
        assert await elsewhere(lambda: lab.sink.configure() and lab.sink.activate())
        await lab.told()
        assert lab.services() == before


# --- what they do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("action", ["start", "stop"])
async def test_a_service_has_the_device_do_it_and_says_what_it_said(peer: Peer, function: str, action: str) -> None:
    async with rig() as lab:
        lab.can(lab.tracker, *BOTH)
        await lab.told()
        noun = {"record": "recording", "calibrate": "calibration"}[function]
        answer = await peer.ask(Trigger, f"/sink_test/tracker/{action}_{noun}")
        assert (answer.success, answer.message) == (True, f"tracker: {function} done")
        kind = {"record": Record, "calibrate": Calibrate}[function]
        assert lab.asked == [("tracker", kind(action=action, device="tracker"))]


async def test_all_devices_at_once_answer_together(peer: Peer) -> None:
    async with rig() as lab:
        other = lab.add(OTHER)
        lab.can(lab.tracker, "record")
        lab.can(other, "record")
        await lab.told()
        answer = await peer.ask(Trigger, "/sink_test/start_recording")
        assert (answer.success, answer.message) == (True, "tracker: record done; other: record done")
        assert [name for name, _ in lab.asked] == ["tracker", "other"]


async def test_what_only_some_devices_do_is_no_success_and_says_who_did_it_and_who_did_not(peer: Peer) -> None:
    async with rig() as lab:
        other = lab.add(OTHER)
        lab.can(lab.tracker, "record")
        lab.can(other, "record")
        other.connected = False
        await lab.told()
        answer = await peer.ask(Trigger, "/sink_test/start_recording")
        assert (answer.success, answer.message) == (False, "tracker: record done; other: the device is not there")


@pytest.mark.parametrize("why", ["refused", "not there", "cannot", "gone"])
async def test_what_is_not_done_is_said_with_the_sentence_of_who_refuses(peer: Peer, why: str) -> None:
    async with rig() as lab:
        lab.can(lab.tracker, "record")
        await lab.told()
        if why == "refused":

            async def refuse(given: Any) -> str:
                raise Refused("tracker: its memory is full")

            lab.tracker.actions["record"] = refuse
        elif why == "not there":
            lab.tracker.connected = False
        elif why == "cannot":
            lab.tracker.actions.clear()
        else:
            del lab.pipeline.devices["tracker"]
        words = {
            "refused": "tracker: its memory is full",
            "not there": "tracker: the device is not there",
            "cannot": "record is not possible with this device (T1)",
            "gone": "there is no device 'tracker'",
        }
        answer = await peer.ask(Trigger, "/sink_test/tracker/start_recording")
        assert not answer.success
        assert words[why] in answer.message
        assert lab.asked == []


class Hanging:
    """A device that takes long."""

    def __init__(self, lab: Rig) -> None:
        self.begun, self.cancelled = asyncio.Event(), asyncio.Event()
        lab.tracker.actions["record"] = self.act

    async def act(self, given: Any) -> str:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "never"


async def test_a_device_that_does_not_answer_is_given_up_and_said(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "ASK_TIMEOUT_S", 0.2)
    async with rig() as lab:
        hanging = Hanging(lab)
        await lab.told()
        answer = await peer.ask(Trigger, "/sink_test/tracker/start_recording")
        assert (answer.success, answer.message) == (False, "no answer within 0.2 s")
        async with asyncio.timeout(DEADLINE_S):
            await hanging.cancelled.wait()
        assert not lab.sink._asked
        lab.can(lab.tracker, "record")  # and the node goes on
        assert (await peer.ask(Trigger, "/sink_test/tracker/start_recording")).success


async def test_a_bridge_that_ends_meanwhile_does_not_wait_for_the_device(peer: Peer) -> None:
    sink = Ros2Sink(settings(control=True))
    try:
        lab = Rig(sink)
        hanging = Hanging(lab)
        await lab.told()
        async with asyncio.timeout(DEADLINE_S):
            while not hanging.begun.is_set():  # a first request can be lost
                await elsewhere(lambda: peer.start(Trigger, "/sink_test/tracker/start_recording"))
                await asyncio.sleep(0.5)
        started_s = time.monotonic()
    finally:
        sink.close()  # on the loop, as the daemon
    assert time.monotonic() - started_s < sink_module.ASK_TIMEOUT_S / 2
    assert not sink._spinner.alive
    async with asyncio.timeout(DEADLINE_S):
        await hanging.cancelled.wait()


# --- services of pupil_msgs ------------------------------------------------------------------------------------------


@pytest.fixture
def kinds() -> Any:
    message("pupil_msgs/Gaze")
    import pupil_msgs.srv

    return pupil_msgs.srv


@pytest.mark.parametrize(("session", "given"), [("", None), ("run 7", "run 7")])
async def test_a_recording_can_have_a_name(peer: Peer, kinds: Any, session: str, given: str | None) -> None:
    async with rig() as lab:
        lab.can(lab.tracker, "record")
        await lab.told()
        for start, action in ((True, "start"), (False, "stop")):
            answer = await peer.ask(kinds.Record, "/sink_test/tracker/record", start=start, session=session)
            assert (answer.success, answer.message) == (True, "tracker: record done")
            assert lab.asked[-1] == ("tracker", Record(action, "tracker", given))


async def test_an_event_of_now_has_no_time_and_one_with_a_stamp_the_right_host_time(peer: Peer, kinds: Any) -> None:
    from builtin_interfaces.msg import Time

    async with rig() as lab:
        lab.can(lab.tracker, "event")
        await lab.told()
        answer = await peer.ask(kinds.SendEvent, "/sink_test/tracker/send_event", text="go")
        assert (answer.success, answer.message) == (True, "tracker: event done")
        assert lab.asked[-1] == ("tracker", Event("go", "tracker", None))
        then_ns = time.time_ns() - 3_000_000_000
        expected_s = (then_ns + time.monotonic_ns() - time.time_ns()) / 1e9
        stamp = Time(sec=then_ns // 10**9, nanosec=then_ns % 10**9)
        await peer.ask(kinds.SendEvent, "/sink_test/tracker/send_event", text="went", stamp=stamp)
        _, event = lab.asked[-1]
        assert event.text == "went"
        assert event.host_s == pytest.approx(expected_s, abs=0.001)


async def test_services_are_asked_while_others_come_and_go_and_every_answer_is_one(peer: Peer) -> None:
    """Ten times in a row, one after the other: Fast DDS takes its time to tell the others of services that come and go,
    and of what has come and gone in the meantime it may never tell."""
    async with rig() as lab:
        lab.can(lab.tracker, *BOTH)
        await lab.told()
        ended, answers = threading.Event(), list[bool]()

        def ask() -> bool:
            while not ended.is_set():
                answers.append(peer.call(Trigger, "/sink_test/tracker/start_calibration").success)
            return True

        asking = asyncio.create_task(elsewhere(ask))
        try:
            for turn in range(10):
                wanted = len(answers) + 3
                await soon(lambda wanted=wanted: len(answers) >= wanted, f"three more answers, turn {turn}")
                lab.tracker.actions.pop("record", None)
                await lab.told()  # those of recordings go
                lab.can(lab.tracker, "record")
                await lab.told()  # and are made anew
        finally:
            ended.set()
        await asking
        assert all(answers)
        assert lab.sink.status()["state"] == "active"
