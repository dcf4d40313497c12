"""The NDSI source in a pipeline, against phones that are made of raw sockets here."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import struct
import uuid
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import zmq

from bridge.clock import ClockSettings, ClockState
from bridge.config import ClockConfig, NdsiSource
from bridge.errors import DeviceUnavailable
from bridge.names import DeviceNames
from bridge.pipeline import Device, Pipeline
from bridge.service import quiet
from bridge.sources import ndsi, ndsi_echo, ndsi_phone, ndsi_sensor
from bridge.sources.ndsi import NdsiDeviceSource
from bridge.streams import DeviceDescriptor
from tests.sources.lab import (
    TIME_ECHO,
    RawPhone,
    RecordingOutput,
    RecordingSink,
    device_time,
    event_frames,
    gaze_frames,
)
from tests.sources.zre_peer import free_tcp_port, free_udp_port, until


class ClosingSink(RecordingSink):
    """Devices can be closed in it; while ``gate`` is shut that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[str] = []
        self.closing = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def close_device(self, device: DeviceDescriptor) -> None:
        self.closing += 1
        await self.gate.wait()
        self.closed.append(device.name)
        for key in [key for key in self.streams if key[0] == device.name]:
            del self.streams[key]

    def status(self) -> dict[str, object]:
        return {}


class Lab:
    """A running source, its pipeline, and the phones that a test makes."""

    def __init__(
        self, tmp_path: Path, *devices: dict[str, Any], beacon_port: int | None = None, ping_s: float = 0.1
    ) -> None:
        self.beacon_port = beacon_port or free_udp_port()
        self.sink = ClosingSink()
        clock = ClockConfig(ping_interval_s=ping_s)
        self.pipeline = Pipeline([self.sink], clock_settings=ClockSettings(ping_interval_ns=clock.ping_interval_ns))
        config = NdsiSource.model_validate(
            {
                "type": "ndsi",
                "interface": "127.0.0.1",
                "beacon_port": self.beacon_port,
                "device": list(devices) or [{"name": "companion", "match": "Raw"}],
            }
        )
        assert config.interface == IPv4Address("127.0.0.1")
        self.source = NdsiDeviceSource(config, clock, DeviceNames(tmp_path))
        self.source.open(self.pipeline)
        self.task = asyncio.create_task(self.source.run())
        self.phones: list[RawPhone] = []

    def expect(self, *devices: dict[str, Any]) -> asyncio.Task[None]:
        """The source is told that these are its devices now."""
        tree = {"type": "ndsi", "interface": "127.0.0.1", "beacon_port": self.beacon_port, "device": list(devices)}
        return asyncio.create_task(self.source.reconfigure(NdsiSource.model_validate(tree)))

    def phone(self, name: str = "Raw", identity: uuid.UUID | None = None) -> RawPhone:
        made = RawPhone(self.beacon_port, name, identity)
        made.live()
        self.phones.append(made)
        return made

    async def end(self) -> None:
        for phone in self.phones:
            await phone.end()
        assert not self.task.done(), f"the source has ended: {self.task}"
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.pipeline.close()

    def device(self, name: str = "companion") -> Device:
        return self.pipeline.devices[name]

    def out(self, stream: str, device: str = "companion") -> RecordingOutput:
        return self.sink.streams[device, stream]

    @property
    def counts(self) -> dict[str, int]:
        counts = self.source.status()["counts"]
        assert isinstance(counts, dict)
        return counts

    async def locked(self, name: str = "companion") -> None:
        await until(lambda: self.device(name).clock.locked, f"the clock of {name} is locked")

    async def serves(self, phone: RawPhone, name: str = "companion", count: int = 50) -> None:
        """Fails unless every sample of the phone gets through."""
        await phone.streams()
        await self.locked(name)
        gaze, event = self.out("gaze", name), self.out("event", name)
        before, events_before = len(gaze.samples), len(event.samples)
        sent = []
        for number in range(count):
            sent.append((float(number), random.randrange(1000) / 4))
            phone.gaze.send(gaze_frames(device_time(), *sent[-1]))
            if number % 10 == 0:
                phone.event.send(event_frames(device_time(), f"event {number}"))
        await until(
            lambda: len(gaze.samples) == before + count and len(event.samples) == events_before + (count + 9) // 10,
            f"all samples of {name}; {self.device(name).streams['gaze'].all_drops()}",
        )
        assert [payload[:2] for payload in gaze.payloads[before:]] == sent
        assert event.payloads[events_before:] == [f"event {number}" for number in range(0, count, 10)]


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(tmp_path)
    yield made
    await made.end()


async def test_a_phone_is_found_streams_and_every_sample_arrives_at_the_right_time(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    gaze = lab.out("gaze")
    for sample, host_ns in zip(gaze.samples, gaze.host_ns, strict=True):
        true_ns = sample.device_ns - device_time(0)
        assert abs(host_ns - true_ns) < 5_000_000
        assert host_ns <= sample.received_ns
    assert lab.device().connected
    assert lab.source.status()["peers"] == ["Raw"]


# --- attach and detach -----------------------------------------------------------------------------------------------


async def test_an_attach_that_is_whispered_and_shouted_twice_gives_one_subscription(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    for _ in range(2):
        for sensor in (phone.gaze, phone.event):
            phone.whisper(sensor.attach())
            phone.shout(sensor.attach())
    await lab.serves(phone)
    for sensor in (phone.gaze, phone.event):
        assert sensor.seen == {"notify": 1, "data": 1}


async def test_an_attach_with_other_endpoints_moves_the_subscription(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    old, new = phone.gaze, phone.sensor("gaze", "Gaze")
    new.uuid = old.uuid
    phone.whisper(new.attach())
    await until(lambda: old.subscribed["data"] == 0 and new.subscribed["data"] == 1, "it has moved")
    phone.gaze = new
    await lab.serves(phone)


async def test_a_detached_sensor_is_not_listened_to(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    phone.whisper(phone.gaze.detach())
    phone.whisper(phone.gaze.detach())
    phone.whisper(json.dumps({"subject": "detach", "sensor_uuid": "never seen"}).encode())
    await until(lambda: phone.gaze.subscribed["data"] == phone.gaze.subscribed["notify"] == 0, "it has gone")
    phone.whisper(phone.gaze.attach())
    await lab.serves(phone)


@pytest.mark.parametrize("how", ["detached before", "other endpoints"])
async def test_an_event_sensor_that_is_attached_again_begins_a_new_clock(lab: Lab, how: str) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    epoch = lab.device().clock.epoch
    if how == "detached before":
        phone.whisper(phone.event.detach())
        await until(lambda: phone.event.subscribed["data"] == 0, "it has gone")
        assert lab.device().clock.epoch == epoch
    else:
        new = phone.sensor("event", "Event")
        new.uuid, phone.event = phone.event.uuid, new
    phone.whisper(phone.event.attach())
    await until(lambda: lab.device().clock.epoch == epoch + 1, "the clock is another one")
    await lab.serves(phone)
    assert lab.device().clock.epoch == epoch + 1


async def test_a_phone_that_leaves_is_gone_and_is_served_again_when_it_comes_back(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    await phone.leaves()
    assert not lab.device().connected
    await phone.attached()
    await lab.serves(phone)
    assert lab.sink.devices == ["companion"]


async def test_a_phone_that_comes_back_under_another_identity_is_the_same_device(lab: Lab) -> None:
    killed = lab.phone()
    await killed.attached()
    await lab.serves(killed)
    again = lab.phone()
    for old, new in zip(killed.sensors, again.sensors, strict=True):
        new.uuid = old.uuid
    await again.attached()
    await until(lambda: killed.gaze.subscribed["data"] == 0, "the killed one is not listened to")
    await lab.serves(again)
    assert lab.sink.devices == ["companion"]


async def test_a_phone_that_is_killed_and_back_at_once_with_nothing_of_before_but_its_name_is_the_same_device(
    lab: Lab,
) -> None:
    killed = lab.phone()
    await killed.attached()
    await lab.serves(killed)
    again = lab.phone()
    await killed.end()  # whoever listens is not told
    lab.phones.remove(killed)
    await again.attached()
    await lab.serves(again)
    assert lab.sink.devices == ["companion"]


async def test_a_second_phone_of_the_same_name_is_another_device_and_the_first_does_not_notice(lab: Lab) -> None:
    first, second = lab.phone(), lab.phone()
    await first.attached()
    await lab.serves(first)
    streaming = Streaming(lab, first, "companion")
    await second.attached()
    await streaming.all_arrive()
    await lab.serves(second, "raw")
    await lab.serves(first)
    assert lab.sink.devices == ["companion", "raw"]


async def test_a_doubtful_phone_that_leaves_is_no_device_and_its_sensors_can_go_before(lab: Lab) -> None:
    first, second, third = lab.phone(), lab.phone(), lab.phone()
    await first.attached()
    await lab.serves(first)
    streaming = Streaming(lab, first, "companion")
    for phone in (second, third):
        await phone.meet()
        for sensor in (phone.gaze, phone.event):
            phone.whisper(sensor.attach())
    second.beacon(port=0)
    third.whisper(third.gaze.detach())
    await until(lambda: third.event.subscribed["data"] == 1, "it is taken for another one")
    await streaming.all_arrive()
    assert lab.sink.devices == ["companion", "raw"]
    assert not third.gaze.seen
    assert not second.event.seen


async def test_a_silent_phone_keeps_its_name_when_another_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndsi, "SILENT_AFTER_NS", 0)
    lab = Lab(tmp_path, {"name": "companion", "match": "*"})
    try:
        first, second = lab.phone("One"), lab.phone("Two")
        await first.attached()
        await second.attached()
        await lab.serves(first, "companion")
        await lab.serves(second, "two")
        assert lab.sink.devices == ["companion", "two"]
    finally:
        await lab.end()


# --- other devices are expected now ----------------------------------------------------------------------------------

ONE, TWO, THREE = ({"name": name.lower(), "match": name} for name in ("One", "Two", "Three"))


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Lab]:
    """Phones One and Two are expected and there, and both are served."""
    made = Lab(tmp_path, ONE, TWO)
    try:
        for name in ("One", "Two"):
            phone = made.phone(name)
            await phone.attached()
            await made.serves(phone, name.lower(), count=10)
        yield made
    finally:
        made.sink.gate.set()
        await made.end()


class Streaming:
    """A phone that sends gaze every few milliseconds until it is stopped; then all of it has to be there."""

    def __init__(self, lab: Lab, phone: RawPhone, name: str) -> None:
        self._phone, self._out = phone, lab.out("gaze", name)
        self._before, self._sent = len(self._out.samples), list[tuple[float, float]]()
        self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while True:
            self._sent.append((float(len(self._sent)), 0.5))
            self._phone.gaze.send(gaze_frames(device_time(), *self._sent[-1]))
            await asyncio.sleep(0.003)

    async def all_arrive(self, at_least: int = 20) -> None:
        await until(lambda: len(self._sent) >= at_least, "it streams")
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await until(lambda: len(self._out.samples) >= self._before + len(self._sent), "all samples")
        assert [payload[:2] for payload in self._out.payloads[self._before :]] == self._sent


async def test_a_device_that_changes_comes_back_and_the_others_do_not_notice(two: Lab) -> None:
    first, second = two.phones
    streaming, device, clock = Streaming(two, first, "one"), two.device("one"), two.device("one").clock
    two.sink.gate.clear()
    change = two.expect(ONE, {"name": "left", "match": "Two"})
    await until(lambda: two.sink.closing, "the old one is being closed")
    await until(lambda: second.gaze.subscribed["data"] == 0, "nobody listens to it")
    two.sink.gate.set()
    await change
    await two.serves(second, "left")
    await streaming.all_arrive()
    assert two.sink.devices == ["one", "two", "left"]
    assert two.sink.closed == ["two"]
    assert list(two.pipeline.devices) == ["one", "left"]
    assert set(two.source.device_names) == {"one", "left"}
    assert (two.device("one"), two.device("one").clock) == (device, clock)
    assert clock.epoch == 0
    for sensor in (first.gaze, first.event):
        assert sensor.seen == {"notify": 1, "data": 1}
    assert first.greetings() == second.greetings() == 1


async def test_the_same_devices_again_touch_nothing(two: Lab) -> None:
    streams = [Streaming(two, phone, phone.name.lower()) for phone in two.phones]
    await two.expect(TWO, ONE)
    for streaming in streams:
        await streaming.all_arrive()
    assert two.sink.closed == []
    assert all(phone.gaze.seen == {"notify": 1, "data": 1} for phone in two.phones)


async def test_another_key_of_a_device_opens_its_streams_anew_under_the_same_name(two: Lab) -> None:
    await two.expect({**ONE, "lsl_prefix": "lab", "gaze": {"latency_ms": 5}}, TWO)
    assert two.device("one").descriptor.lsl_prefix == "lab"
    await two.serves(two.phones[0], "one")
    gaze = two.out("gaze", "one")
    assert {sample.stream.latency_ns for sample in gaze.samples} == {5_000_000}
    assert two.sink.closed == ["one"]


async def test_a_device_that_is_not_expected_any_more_is_a_discovered_one(two: Lab) -> None:
    await two.expect(ONE)
    await two.serves(two.phones[1], "two")
    await two.expect(ONE, TWO)
    await two.serves(two.phones[1], "two")
    assert two.sink.closed == ["two", "two"]
    assert set(two.source.device_names) == {"one", "two"}


async def test_a_discovered_device_gets_the_name_that_it_is_given_now(two: Lab) -> None:
    found, streaming = two.phone("Three"), Streaming(two, two.phones[0], "one")
    await found.attached()
    await two.serves(found, "three")
    await two.expect(ONE, TWO, {"name": "named", "match": "Thr*"})
    await two.serves(found, "named")
    assert two.sink.closed == ["three"]
    assert set(two.source.device_names) == {"one", "two", "named"}
    await streaming.all_arrive()


async def test_names_that_are_exchanged_are_exchanged(two: Lab) -> None:
    first, second = two.phones
    await two.expect({"name": "one", "match": "Two"}, {"name": "two", "match": "One"})
    await two.serves(first, "two")
    await two.serves(second, "one")
    assert sorted(two.sink.closed) == ["one", "two"]


async def test_what_waits_for_a_clock_when_its_device_is_changed_is_counted(two: Lab) -> None:
    device = two.device("two")
    device.attached()  # without its clock
    two.phones[1].echoes = 0
    gaze = device.streams["gaze"]
    before = gaze.samples_in
    for number in range(5):
        two.phones[1].gaze.send(gaze_frames(device_time(), float(number), 0.0))
    await until(lambda: gaze.samples_in == before + 5, "they have come")
    assert not device.clock.locked
    await two.expect(ONE, {"name": "left", "match": "Two"})
    assert gaze.dropped["clock_unlocked"] == 5


async def test_what_phones_say_while_devices_are_changed_is_heard_afterwards(two: Lab) -> None:
    first, second = two.phones
    third = two.phone("Three")
    two.sink.gate.clear()
    change = two.expect(ONE, {"name": "left", "match": "Two"}, THREE)
    await until(lambda: two.sink.closing, "it has begun")
    await third.meet()
    for sensor in (third.gaze, third.event):
        third.whisper(sensor.attach())
    first.whisper(first.gaze.detach())
    second.whisper(second.gaze.detach())
    await until(lambda: len(two.source._postponed or ()) >= 4, "all four wait")
    assert "Three" not in two.source.status()["peers"]
    two.sink.gate.set()
    await change
    await two.serves(third, "three")
    await until(lambda: first.gaze.subscribed["data"] == second.gaze.subscribed["data"] == 0, "both are detached")
    for phone, name in ((first, "one"), (second, "left")):
        phone.whisper(phone.gaze.attach())
        await two.serves(phone, name)


async def test_a_phone_that_leaves_while_it_is_changed_is_gone(two: Lab) -> None:
    second = two.phones[1]
    two.sink.gate.clear()
    change = two.expect(ONE, {"name": "left", "match": "Two"})
    await until(lambda: two.sink.closing, "it has begun")
    second.beacon(port=0)
    await until(lambda: two.source._postponed, "its leave waits")
    two.sink.gate.set()
    await change
    await until(lambda: not two.device("left").connected, "it has gone")
    await second.attached()
    await two.serves(second, "left")


@pytest.mark.parametrize("again", ["before", "after"])
async def test_a_source_that_ends_while_its_devices_are_changed_serves_them_when_it_runs_again(
    two: Lab, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    first, second = two.phones
    third = two.phone("Three")
    two.sink.gate.clear()
    change = two.expect(ONE, {"name": "left", "match": "Two"}, THREE)
    await until(lambda: two.sink.closing, "it has begun")
    await third.meet()
    third.whisper(third.gaze.attach())
    await until(lambda: two.source._postponed, "it waits")

    def unplugged() -> object:
        raise DeviceUnavailable("no network")

    with monkeypatch.context() as patch:
        patch.setattr(two.source, "_find_interface", unplugged)
        with pytest.raises(DeviceUnavailable):
            await two.task
    for phone in two.phones:
        await phone.unheard()
    if again == "before":
        two.task = asyncio.create_task(two.source.run())
        await until(lambda: two.source.node.alive, "it runs again")
    two.sink.gate.set()
    await change
    assert two.source.status()["peers"] == []
    assert list(two.pipeline.devices) == ["one", "left", "three"]
    if again == "after":
        two.task = asyncio.create_task(two.source.run())
    for phone, name in ((first, "one"), (second, "left"), (third, "three")):
        await phone.attached()
        await two.serves(phone, name)


async def test_devices_can_be_changed_while_the_source_does_not_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path, ONE)
    lab.task.cancel()
    await asyncio.gather(lab.task, return_exceptions=True)
    await lab.expect(TWO)
    assert list(lab.pipeline.devices) == ["two"]
    lab.task = asyncio.create_task(lab.source.run())
    try:
        phone = lab.phone("Two")
        await phone.attached()
        await lab.serves(phone, "two")
    finally:
        await lab.end()


async def test_other_intervals_of_pings_hold_also_for_a_phone_that_comes_later(lab: Lab) -> None:
    phone = lab.phone()
    phone.hardware.ignore_commands = 10**6  # it never says whether it records
    await phone.attached()
    await lab.serves(phone, count=5)
    plan = lab.device().clock.plan
    lab.source.set_clock(ClockConfig(ping_interval_s=0.2))
    assert plan.interval_ns == 200_000_000
    await phone.leaves()
    assert not lab.device().connected
    lab.source.set_clock(ClockConfig(ping_interval_s=0.3))
    await phone.attached()
    await until(lambda: lab.device().connected, "it is back")
    assert lab.device().clock.plan.interval_ns == 300_000_000


async def test_a_phone_that_left_while_it_recorded_is_pinged_as_usual_when_it_is_back(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    await until(lambda: phone.hardware.subscribed["notify"] == 1, "its hardware is listened to")
    phone.hardware.update("local_capture", True)
    await until(lambda: lab.device().recording, "it records")
    assert lab.device().clock.plan.interval_ns == 10 * 10**9
    await phone.leaves()
    assert not lab.device().connected
    assert lab.device().recording is None
    phone.hardware.ignore_commands = 10**6
    await phone.attached()
    await until(lambda: lab.device().connected, "it is back")
    assert lab.device().clock.plan.interval_ns == 100_000_000


# --- controls ----------------------------------------------------------------------------------------


async def test_controls_that_were_lost_are_asked_for_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndsi_sensor, "ASK_AGAIN_S", 0.01)
    phone = lab.phone()
    for sensor in (phone.gaze, phone.event):
        sensor.ignore_commands = 9
    await phone.attached()
    await lab.serves(phone)
    assert phone.gaze.asked("refresh_controls") >= 5
    assert phone.gaze.asked("set_control_value") >= 5
    assert all(c["value"] is True for c in phone.gaze.commands if c["action"] == "set_control_value")


async def test_asking_stops_when_streaming_is_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndsi_sensor, "ASK_AGAIN_S", 0.005)
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    asked = len(phone.gaze.commands)
    for _ in range(5):
        await lab.serves(phone)
    assert len(phone.gaze.commands) == asked


async def test_streaming_that_somebody_switches_off_is_switched_on_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndsi_sensor, "ASK_AGAIN_S", 0.01)
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    for _ in range(3):
        for sensor in (phone.gaze, phone.event):
            sensor.streaming = False
            sensor.update("streaming", False)
        await lab.serves(phone)


async def test_sensors_of_a_hardware_type_are_asked_but_never_told_to_stream(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    await until(lambda: phone.hardware.asked("refresh_controls"), "its controls were asked for")
    assert phone.hardware.asked("set_control_value") == 0
    assert phone.hardware.subscribed["data"] == 0


async def test_lost_controls_of_the_hardware_are_asked_for_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndsi_sensor, "ASK_AGAIN_S", 0.01)
    phone = lab.phone()
    phone.hardware.ignore_commands = 5
    await phone.attached()
    await until(lambda: phone.hardware.asked("refresh_controls") >= 5, "its controls were asked for again")
    assert phone.hardware.asked("set_control_value") == 0


async def test_thousands_of_controls_are_not_all_kept(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    for number in range(5000):
        phone.gaze.update(f"control {number}", "x" * 3000)
    phone.gaze.update("streaming", True)
    await lab.serves(phone)
    (there,) = lab.source._phones.values()
    controls = there.sensors[phone.gaze.uuid].controls
    assert controls["streaming"] is True
    assert len(controls) <= ndsi_sensor.MAX_CONTROLS + 1
    assert all(len(str(value)) <= ndsi_sensor.MAX_VALUE_CHARS for value in controls.values())


async def test_a_phone_that_refuses_is_said_in_a_few_lines(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    phone = lab.phone()
    await phone.attached()
    for number in range(1000):
        error = {
            "subject": "error",
            "seq": 1,
            "error_no": 1,
            "error_str": f"no {number}\nforged line\x1b[2J" + "!" * 9999,
        }
        phone.gaze.say(json.dumps(error).encode())
    await lab.serves(phone)
    refusals = [record.getMessage() for record in caplog.records if "refuses" in record.getMessage()]
    assert 1 <= len(refusals) <= 20
    assert all(len(line) < 300 and line.isprintable() for line in refusals)


# --- malformed messages ----------------------------------------------------------------------------------------


def malformed_gaze() -> list[list[bytes]]:
    good, body = gaze_frames(1, 2.0, 3.0)
    return [
        [],
        [b""],
        [good],
        [good, b""],
        [good, body[:-1]],
        [good, body + b"\0"],
        [good[:-1], body],
        [good + b"\0", body],
        [b"", b""],
        [good, struct.pack("<ff", float("nan"), 1.0)],
        [good, struct.pack("<ff", 1.0, float("-inf"))],
        [b"\xff" * 8, body],
        [b"x" * 15_000, b"y" * 15_000],
    ]


def malformed_events() -> list[list[bytes]]:
    return [
        [],
        [b""],
        [struct.pack("<qii", 1, 3, 0)],
        [struct.pack("<qii", 1, 4, 0), b"abc"],
        [struct.pack("<qii", 1, -1, 0), b""],
        [struct.pack("<qii", 1, 2**31 - 1, 0), b"abc"],
        [struct.pack("<qii", 1, 3, 7), b"abc"],
        [struct.pack("<qii", 1, 2, 0), b"\xff\xfe"],
        [struct.pack("<qii", 1, 3, 0)[:-1], b"abc"],
        [struct.pack("<qii", 1, 15_000, 0), b"a" * 15_000],
    ]


def malformed_notifications() -> list[list[bytes]]:
    texts = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xff",
        b"{}",
        b'{"subject":"update"}',
        b'{"subject":"update","control_id":"streaming","seq":-1,"changes":{}}',
        b'{"subject":"update","control_id":"streaming","seq":1,"changes":[]}',
        b'{"subject":"update","control_id":"streaming","seq":1,"changes":{"value":{"a":1}}}',
        b'{"subject":"remove","seq":1}',
        b'{"subject":"error","seq":1,"error_no":"x","error_str":1}',
        b'{"subject":"unheard of"}',
        b"[" * 50_000,
        b'{"subject":"update","control_id":"x","seq":1,"changes":{"value":' + b"[" * 20_000 + b"}",
        b"x" * 120_000,
    ]
    return [[], *[[text] for text in texts]]


async def test_malformed_data_and_notifications_are_counted_and_all_good_ones_arrive(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.locked()
    sent = []
    for number in range(20):
        for frames in malformed_gaze():
            phone.gaze.send(frames)
            sent.append((float(len(sent)), float(number)))
            phone.gaze.send(gaze_frames(device_time(), *sent[-1]))
        for frames in malformed_events():
            phone.event.send(frames)
        phone.event.send(event_frames(device_time(), f"good {number}"))
        for frames in malformed_notifications():
            phone.gaze.say(*frames)
    gaze, event, device = lab.out("gaze"), lab.out("event"), lab.device()
    await until(lambda: len(gaze.samples) >= len(sent) and len(event.samples) >= 20, "all good ones")
    expected = {
        "gaze": 20 * len(malformed_gaze()),
        "event": 20 * len(malformed_events()),
        "notification": 20 * len(malformed_notifications()),
    }
    await until(
        lambda: {key: device.malformed[key] for key in expected} == expected, f"{expected}, not {device.malformed}"
    )
    assert [payload[:2] for payload in gaze.payloads] == sent
    assert event.payloads == [f"good {number}" for number in range(20)]
    assert device.streams["gaze"].all_drops() == {}
    await lab.serves(phone)


async def test_malformed_announcements_are_counted_and_make_no_device(lab: Lab) -> None:
    phone, liar = lab.phone(), lab.phone("Liar")
    await phone.attached()
    await liar.meet()
    good = json.loads(liar.gaze.attach())
    bad: list[bytes] = [b"", b"{", b"null", b"\xff", b"[" * 8000, b"x" * 60_000, b'{"subject":"attack"}']
    bad += [json.dumps({k: v for k, v in good.items() if k != key}).encode() for key in good]
    for key in ("notify_endpoint", "command_endpoint", "data_endpoint"):
        for endpoint in (
            1,
            "",
            "garbage",
            "ipc:///tmp/x",
            "inproc://x",
            "tcp://*:5000",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:70000",
            "tcp://localhost:5000",
            "tcp://host.invalid:5000",
            "tcp://999.1.1.1:5000",
            "tcp://127.0.0.1:5000;127.0.0.1:5001",
            "tcp://[::1]:5000",
            "udp://127.0.0.1:5000",
        ):
            bad.append(json.dumps({**good, key: endpoint}).encode())
    for message in bad:
        liar.whisper(message)
        liar.shout(message)
    await until(lambda: lab.counts.get("announcements_malformed") == 2 * len(bad), f"{2 * len(bad)}, not {lab.counts}")
    assert lab.sink.devices == ["companion"]
    await lab.serves(phone)
    assert list(lab.device().malformed) == []


async def test_sensors_at_which_nobody_listens_disturb_nobody(lab: Lab) -> None:
    phone, other = lab.phone(), lab.phone("Other")
    await phone.attached()
    await other.meet()
    nowhere = {f"{which}_endpoint": f"tcp://127.0.0.1:{free_tcp_port()}" for which in ("notify", "command", "data")}
    other.whisper(other.gaze.attach(**nowhere))
    other.whisper(other.event.attach(**nowhere))
    await until(lambda: "other" in lab.pipeline.devices, "it is a device")
    await lab.serves(phone)
    for sensor in (other.gaze, other.event):
        other.whisper(sensor.attach())
    await lab.serves(other, "other")


async def test_data_under_a_longer_topic_is_anothers(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.locked()
    longer = phone.gaze.uuid.encode() + b"0"
    phone.gaze.data.send_multipart([longer, *gaze_frames(device_time(), 1, 1)])
    phone.gaze.notify.send_multipart([longer, b"{}"])
    await lab.serves(phone)
    assert len(lab.out("gaze").samples) == 50
    assert list(lab.device().malformed) == []


# --- the clock -----------------------------------------------------------------------------------------------------


async def test_an_echo_that_comes_twice_is_not_used(lab: Lab) -> None:
    phone = lab.phone()
    phone.echoes = 2
    await phone.attached()
    await until(lambda: lab.device().malformed["echo_lost_or_doubtful"] >= 5, "five pings with two echoes")
    assert lab.device().clock.pings_accepted == 0
    phone.echoes = 1
    await lab.serves(phone)


async def test_the_echo_of_another_hosts_ping_is_not_used(lab: Lab) -> None:
    phone = lab.phone()
    phone.echoes = 2
    phone.echo_offsets_ns = [-40_000_000, 0]  # another host's ping was stamped before ours was sent
    await phone.attached()
    await until(lambda: lab.device().malformed["echo_lost_or_doubtful"] >= 5, "five pings with a foreign echo")
    assert lab.device().clock.pings_accepted == 0


async def test_an_echo_that_nobody_here_asked_for_is_no_round_trip_and_no_event(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    clock = lab.device().clock
    monkeypatch.setattr(clock.plan, "next_ns", lambda: 2**62)
    await until(lambda: phone.pings == clock.pings_accepted + clock.pings_rejected, "the last round trip")
    pings, accepted = phone.pings, clock.pings_accepted
    for _ in range(1000):
        phone.event.send(event_frames(device_time() - 10**9, TIME_ECHO))
    await lab.serves(phone)
    assert (phone.pings, clock.pings_accepted, clock.pings_rejected) == (pings, accepted, 0)
    assert TIME_ECHO not in lab.out("event").payloads


async def test_lost_echoes_are_counted_and_pinged_for_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndsi_echo, "ECHO_TIMEOUT_S", 0.03)
    phone = lab.phone()
    phone.echoes = 0
    await phone.attached()
    await until(lambda: lab.device().malformed["echo_lost_or_doubtful"] >= 5, "five lost echoes")
    assert lab.device().clock.state(0) == ClockState.UNLOCKED
    phone.echoes = 1
    await lab.serves(phone)


async def test_an_echo_that_comes_too_late_is_not_taken_for_that_of_the_next_ping(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    clock, lost = lab.device().clock, lab.device().malformed
    monkeypatch.setattr(ndsi_echo, "ECHO_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ndsi_echo, "OWED_S", 30.0)
    before = lost["echo_lost_or_doubtful"]
    phone.echoes = 0
    await until(lambda: lost["echo_lost_or_doubtful"] > before, "a lost echo")
    late_ns, pings = device_time(), phone.pings
    clock.request_burst()
    await asyncio.sleep(0.5)  # what must not happen has time to
    assert phone.pings == pings
    accepted, phone.echoes = clock.pings_accepted, 1
    phone.event.send(event_frames(late_ns, TIME_ECHO))
    await until(lambda: clock.pings_accepted >= accepted + 4, "it goes on")
    assert (clock.epoch, clock.pings_rejected, lost["echo_lost_or_doubtful"]) == (0, 0, before + 1)


async def test_a_late_echo_that_never_comes_is_not_waited_for_for_ever(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = lab.phone()
    await phone.attached()
    await lab.serves(phone)
    clock, lost = lab.device().clock, lab.device().malformed
    monkeypatch.setattr(ndsi_echo, "ECHO_TIMEOUT_S", 0.05)
    monkeypatch.setattr(ndsi_echo, "OWED_S", 0.3)
    phone.echoes, before = 0, lost["echo_lost_or_doubtful"]
    await until(lambda: lost["echo_lost_or_doubtful"] >= before + 2, "two lost echoes")
    phone.echoes, accepted = 1, clock.pings_accepted
    await until(lambda: clock.pings_accepted >= accepted + 2, "it goes on")


async def test_a_flood_of_echoes_leaves_memory_and_other_phones_alone(lab: Lab) -> None:
    phone, flooder = lab.phone(), lab.phone("Flooder")
    await phone.attached()
    await flooder.attached()
    frames = event_frames(device_time(), TIME_ECHO)
    for _ in range(20_000):
        flooder.event.send(frames)
    await lab.serves(phone)
    assert lab.device().clock.pings_accepted > 0
    await until(lambda: all(len(p._exchange._echoes) <= 3 for p in _exchanging(lab)), "no more than three are kept")


def _exchanging(lab: Lab) -> list[Any]:
    return [phone for phone in lab.source._phones.values() if phone._exchange is not None]


# --- too much of everything ------------------------------------------------------------------------------------------


async def test_forty_sensors_of_one_peer_are_bounded_and_counted(lab: Lab) -> None:
    phone, many = lab.phone(), lab.phone("Many")
    await phone.attached()
    await many.meet()
    files = len(os.listdir("/proc/self/fd"))
    for number in range(40):
        many.whisper(many.gaze.attach(sensor_uuid=f"{number:032d}", sensor_name=f"gaze {number}"))
    await until(lambda: "many" in lab.pipeline.devices, "it is a device")
    counted = 40 - ndsi_phone.MAX_SENSORS_PER_PEER
    await until(lambda: lab.device("many").malformed["too_many_sensors"] == counted, "the others are counted")
    # Each socket has an eventfd and a connection, and this process has the connection's other end.
    assert len(os.listdir("/proc/self/fd")) - files <= ndsi_phone.MAX_SENSORS_PER_PEER * 3 * 3 + 10
    for number in range(ndsi_phone.MAX_SENSORS_PER_PEER):
        many.whisper(json.dumps({"subject": "detach", "sensor_uuid": f"{number:032d}"}).encode())
    await until(lambda: len(os.listdir("/proc/self/fd")) - files <= 10, "all sockets are closed")
    for sensor in (many.gaze, many.event):
        many.whisper(sensor.attach())
    await lab.serves(many, "many")
    await lab.serves(phone)


async def test_unused_sensors_are_listed_but_not_opened(lab: Lab) -> None:
    phone = lab.phone()
    await phone.attached()
    video = phone.sensor("video", "PI world v1")
    for number in range(100):
        phone.whisper(video.attach(sensor_uuid=f"video {number}"))
    phone.whisper(video.attach())
    await lab.serves(phone)
    assert video.seen == {}
    assert lab.device().malformed["too_many_sensors"] == 0


async def test_devices_are_bounded_and_the_known_ones_are_served(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ndsi, "MAX_DISCOVERED", 4)
    phone = lab.phone()
    await phone.attached()
    for number in range(20):
        liar = lab.phone(f"Liar {number}")
        await liar.meet()
        liar.whisper(liar.gaze.attach())
        await until(
            lambda n=number: len(lab.sink.devices) + lab.counts.get("devices_turned_away", 0) == n + 2,
            "it was let in or turned away",
        )
        liar.beacon(port=0)
    assert len(lab.sink.devices) == 5
    assert lab.counts["devices_turned_away"] == 16
    await lab.serves(phone)
    await phone.leaves()
    assert not lab.device().connected
    await phone.attached()
    await lab.serves(phone)
    names = json.loads((tmp_path / "names.json").read_text())
    assert len(names["own_names"]) <= 5


async def test_phones_are_bounded_but_for_the_configured_ones(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndsi, "MAX_PHONES", 1)
    second, third, phone = lab.phone("Second"), lab.phone("Third"), lab.phone()
    await second.attached()
    await third.meet()
    third.whisper(third.gaze.attach())
    await until(lambda: lab.counts.get("devices_turned_away") == 1, "the third is turned away")
    await phone.attached()
    await lab.serves(phone)
    await lab.serves(second, "second")
    second.beacon(port=0)
    await until(lambda: not lab.device("second").connected, "the second has gone")
    for sensor in (third.gaze, third.event):
        third.whisper(sensor.attach())
    await lab.serves(third, "third")


async def test_messages_that_are_too_large_hurt_only_their_sender(lab: Lab) -> None:
    phone, bad = lab.phone(), lab.phone("Bad")
    await phone.attached()
    await bad.attached()
    for sensor in (bad.gaze, bad.event):
        for _ in range(10):
            sensor.send([b"x" * 5_000_000, b"y"])
            sensor.say(b"z" * 5_000_000)
    await until(
        lambda: all(s.subscribed == {"data": 0, "notify": 0} for s in (bad.gaze, bad.event)), "the bad one is left"
    )
    await lab.serves(phone)
    for sensor in (bad.gaze, bad.event):
        bad.whisper(sensor.detach())
        bad.whisper(sensor.attach())
    await lab.serves(bad, "bad")


async def test_sensors_that_come_and_go_without_end_do_not_flood_the_log(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    phone, fickle = lab.phone(), lab.phone("Fickle\nforged line")
    await phone.attached()
    await fickle.meet()
    for _ in range(2000):
        fickle.whisper(fickle.gaze.attach())
        fickle.whisper(fickle.gaze.detach())
    fickle.whisper(b"that was all")
    await until(lambda: lab.counts.get("announcements_malformed") == 1, "all of it was read")
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert len(lines) <= quiet.BURST + 15
    assert all("\n" not in line for line in lines)
    await lab.serves(phone)


async def test_no_file_descriptors_left_is_survived(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    phone, late = lab.phone(), lab.phone("Late")
    await phone.attached()
    await late.meet()

    def refuse(*_: object) -> None:
        raise zmq.ZMQError(24)

    with monkeypatch.context() as patch:
        patch.setattr(ndsi_sensor, "subscriber", refuse)
        late.whisper(late.gaze.attach())
        await until(lambda: "late" in lab.pipeline.devices and lab.device("late").malformed["no_connection"], "counted")
    await lab.serves(phone)
    for sensor in (late.gaze, late.event):
        late.whisper(sensor.attach())
    await lab.serves(late, "late")


async def test_a_source_that_ends_leaves_no_file_open(tmp_path: Path) -> None:
    async def life() -> None:
        lab = Lab(tmp_path)
        phone = lab.phone()
        await phone.attached()
        await lab.serves(phone)
        await lab.end()

    await life()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await life()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= files, "all files are closed")


def test_the_lines_of_strangers_have_a_budget_that_comes_back() -> None:
    now_s = 0.0
    budget = quiet.LineBudget(lambda: now_s)
    levels = [budget.level(logging.INFO) for _ in range(1000)]
    assert levels == [logging.INFO] * quiet.BURST + [logging.DEBUG] * (1000 - quiet.BURST)
    now_s = quiet.REFILL_S * 2
    assert [budget.level(logging.WARNING) for _ in range(3)] == [logging.WARNING, logging.WARNING, logging.DEBUG]
    now_s = 1e9
    assert [budget.level(logging.INFO) for _ in range(1000)].count(logging.INFO) == quiet.BURST
