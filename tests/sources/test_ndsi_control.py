"""Recording and events on a Companion device, asked for through the control surface, against a phone of raw sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.clock.host import monotonic_ns
from bridge.control import Calibrate, Event, Record
from bridge.errors import Refused
from bridge.pipeline import Device
from bridge.sources import ndsi_control
from tests.sources.lab import DEVICE_OFFSET_NS, RawPhone, device_time
from tests.sources.test_ndsi_source import Lab
from tests.sources.zre_peer import until


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(tmp_path)
    yield made
    await made.end()


@pytest.fixture
async def phone(lab: Lab) -> RawPhone:
    """Its clock is known and it does not record."""
    made = lab.phone()
    made.hardware.controls = {"local_capture": False, "capture_session_name": ""}
    await made.attached()
    await lab.locked()
    await until(lambda: lab.device().recording is False, "its controls are known")
    return made


async def do(device: Device, given: Record | Event, command: str | None = None) -> str:
    return await device.actions[command or type(given).__name__.lower()](given)


def told(phone: RawPhone) -> list[tuple[str, object]]:
    """What the hardware was told to be."""
    commands = [each for each in phone.hardware.commands if each["action"] == "set_control_value"]
    return [(each["control_id"], each["value"]) for each in commands]


# --- recording --------------------------------------------------------------------------------------------------------


async def test_a_recording_is_started_and_stopped_and_its_state_is_known(lab: Lab, phone: RawPhone) -> None:
    assert await do(lab.device(), Record("start")) == "recording"
    assert lab.device().recording is True
    assert await do(lab.device(), Record("start")) == "is recording already"
    assert await do(lab.device(), Record("stop")) == "recording stopped"
    assert lab.device().recording is False
    assert await do(lab.device(), Record("stop")) == "is not recording"
    assert told(phone) == [("local_capture", True), ("local_capture", False)]


async def test_the_name_of_the_session_is_set_before_the_recording_begins(lab: Lab, phone: RawPhone) -> None:
    assert await do(lab.device(), Record("start", session="Versuch 3 é")) == "recording, session 'Versuch 3 é'"
    assert told(phone) == [("capture_session_name", "Versuch 3 é"), ("local_capture", True)]
    assert phone.hardware.controls == {"local_capture": True, "capture_session_name": "Versuch 3 é"}


@pytest.mark.parametrize("refused", ["local_capture", "capture_session_name"])
async def test_a_refusal_is_told_in_the_phones_own_words(lab: Lab, phone: RawPhone, refused: str) -> None:
    phone.hardware.refusals[refused] = "Template has required fields: age"
    with pytest.raises(Refused, match=r"^companion: the device refuses: Template has required fields: age$"):
        await do(lab.device(), Record("start", session="s"))
    assert lab.device().recording is False
    assert (("local_capture", True) in told(phone)) == (refused == "local_capture")


async def test_an_error_of_no_control_in_particular_is_a_refusal_too(lab: Lab, phone: RawPhone) -> None:
    phone.hardware.unanswered.add("local_capture")
    asked = asyncio.create_task(do(lab.device(), Record("start")))
    await until(lambda: told(phone), "it was told")
    phone.hardware.error(None, "x" * 10_000)
    with pytest.raises(Refused, match=r"refuses: x+$") as refused:
        await asked
    assert len(str(refused.value)) < 400


async def test_an_answer_that_was_lost_is_asked_for_again(lab: Lab, phone: RawPhone) -> None:
    phone.hardware.unanswered.add("local_capture")
    assert await do(lab.device(), Record("start")) == "recording"
    assert told(phone) == [("local_capture", True)], "it was told once"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Record("start"), "companion: does not say that it records"),
        (Record("start", session="s"), "companion: does not say that it has the session's name"),
    ],
)
async def test_a_phone_that_says_nothing_is_not_said_to_record(
    lab: Lab, phone: RawPhone, monkeypatch: pytest.MonkeyPatch, given: Record, says: str
) -> None:
    monkeypatch.setattr(ndsi_control, "ANSWER_S", 0.3)
    phone.hardware.ignore_commands = 10**6
    with pytest.raises(Refused) as refused:
        await do(lab.device(), given)
    assert str(refused.value) == says
    assert lab.device().recording is False


async def test_a_phone_that_does_not_stop_is_not_said_to_have_stopped(
    lab: Lab, phone: RawPhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    await do(lab.device(), Record("start"))
    monkeypatch.setattr(ndsi_control, "ANSWER_S", 0.3)
    phone.hardware.ignore_commands = 10**6
    with pytest.raises(Refused, match="does not say that it has stopped recording"):
        await do(lab.device(), Record("stop"))
    assert lab.device().recording is True


async def test_two_who_start_at_once_start_it_once(lab: Lab, phone: RawPhone) -> None:
    answers = await asyncio.gather(*(do(lab.device(), Record("start", session=each)) for each in "ab"))
    assert answers == ["recording, session 'a'", "is recording already"]
    assert phone.hardware.controls["capture_session_name"] == "a"


async def test_a_phone_that_goes_while_it_is_asked_has_gone(lab: Lab, phone: RawPhone) -> None:
    phone.hardware.unanswered.add("local_capture")
    asked = asyncio.create_task(do(lab.device(), Record("start")))
    await until(lambda: told(phone), "it was told")
    phone.beacon(port=0)
    with pytest.raises(Refused, match="companion: the device has gone"):
        await asked
    with pytest.raises(Refused, match="companion: the device is not there"):
        await do(lab.device(), Record("start"))


async def test_a_phone_without_hardware_says_so_and_its_recording_is_not_known(lab: Lab, phone: RawPhone) -> None:
    phone.whisper(phone.hardware.detach())
    await until(lambda: phone.hardware.subscribed["notify"] == 0, "it has gone")
    assert lab.device().recording is None
    with pytest.raises(Refused, match="shows no hardware sensor"):
        await do(lab.device(), Record("start"))


async def test_a_name_of_a_session_that_is_too_long_is_refused(lab: Lab, phone: RawPhone) -> None:
    with pytest.raises(Refused, match="at most 256 characters"):
        await do(lab.device(), Record("start", session="x" * 257))
    assert told(phone) == []


async def test_what_a_phone_cannot_do_is_not_offered(lab: Lab) -> None:
    assert set(lab.device().actions) == {"record", "event", "annotate"}
    assert Calibrate.__name__.lower() not in lab.device().actions


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["event", "annotate"])
async def test_an_event_has_the_senders_time_on_the_phones_clock_and_comes_back(
    lab: Lab, phone: RawPhone, command: str
) -> None:
    before_ns = device_time()
    assert await do(lab.device(), Event("now é"), command) == "sent"
    after_ns = device_time()
    host_ns = monotonic_ns() - 2_000_000_000
    assert await do(lab.device(), Event("then", host_s=host_ns / 1e9), command) == "sent"
    await until(lambda: len(lab.out("event").samples) == 2, "both come back")
    now, then = phone.told
    assert now["name"] == "now é"
    assert before_ns - 5_000_000 < now["timestamp"] < after_ns + 5_000_000
    assert then["name"] == "then"
    assert abs(then["timestamp"] - (host_ns + DEVICE_OFFSET_NS)) < 5_000_000
    assert lab.out("event").payloads == ["now é", "then"]
    assert abs(lab.out("event").host_ns[1] - host_ns) < 5_000_000


async def test_while_the_clock_is_unknown_events_go_without_a_time_and_those_with_one_are_refused(
    lab: Lab, phone: RawPhone
) -> None:
    phone.echoes = 0
    lab.device().attached()  # as a phone that has just come
    answer = await do(lab.device(), Event("early"))
    assert answer == "sent, to be stamped when it arrives: the device's clock is not known yet"
    with pytest.raises(Refused, match="companion: the device's clock is not known yet"):
        await do(lab.device(), Event("early too", host_s=monotonic_ns() / 1e9))
    await until(lambda: phone.told, "it has come")
    assert phone.told == [{"name": "early", "timestamp": None}]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Event(""), "an event needs a text"),
        (Event("<<time>>"), "<<time>> is how clocks are compared"),
        (Event("x" * 1025), "at most 1024 characters"),
        (Event("\ud800"), "cannot be written as UTF-8"),
        (Event("a", host_s=float("inf")), "inf is no time"),
        (Event("a", host_s=float("nan")), "nan is no time"),
        (Event("a", host_s=1e300), "is no time"),
        (Event("a", host_s=-1.1e9), "is no time"),
    ],
)
async def test_an_event_that_cannot_be_is_refused_and_not_sent(
    lab: Lab, phone: RawPhone, given: Event, says: str
) -> None:
    with pytest.raises(Refused, match=f"^companion: .*{says}"):
        await do(lab.device(), given)
    await do(lab.device(), Event("x" * 1024))
    await until(lambda: phone.told, "the good one has come")
    assert [each["name"] for each in phone.told] == ["x" * 1024]


async def test_an_event_that_does_not_leave_is_not_said_to_be_sent(
    lab: Lab, phone: RawPhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndsi_control, "SENT_S", 0.2)
    monkeypatch.setattr(lab.source.node, "whisper_stamped", lambda *_: None)
    with pytest.raises(Refused, match="the event could not be sent"):
        await do(lab.device(), Event("a"))


async def test_pings_and_events_at_once_do_not_disturb_each_other(lab: Lab, phone: RawPhone) -> None:
    accepted = lab.device().clock.pings_accepted
    answers = await asyncio.gather(*(do(lab.device(), Event(f"event {number}")) for number in range(100)))
    assert answers == ["sent"] * 100
    await until(lambda: len(lab.out("event").samples) == 100, "all come back")
    assert sorted(lab.out("event").payloads) == sorted(f"event {number}" for number in range(100))
    await until(lambda: lab.device().clock.pings_accepted > accepted + 3, "pings go on")
