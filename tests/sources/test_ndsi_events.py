"""Events on their way through: each minute's time-sync events out to the phone, and echoes of the time never out."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.sources import ndsi_phone, ndsi_session
from bridge.sources.ndsi_session import TimeSyncSession
from tests.sources.lab import TIME_ECHO, RawPhone, device_time, event_frames, gaze_frames
from tests.sources.test_ndsi_source import Lab
from tests.sources.zre_peer import until

TEXT = re.compile(r"lsl\.time_sync\.([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([0-9]+)")


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    monkeypatch.setattr(ndsi_phone, "SESSION_POLL_S", 0.01)
    made = Lab(tmp_path)
    yield made
    await made.end()


def sent(phone: RawPhone) -> list[tuple[str, int]]:
    """Session and number of each time-sync event that came to the phone."""
    found = []
    for _, event in phone.time_syncs:
        assert event["timestamp"] is None, "the app stamps it"
        match = TEXT.fullmatch(event["name"])
        assert match is not None
        found.append((match[1], int(match[2])))
    return found


# --- time sync --------------------------------------------------------------------------------------------------------


async def test_the_first_comes_when_the_clock_is_known_and_the_next_after_a_minute(lab: Lab) -> None:
    phone = lab.phone()
    phone.echoes = 0
    await phone.attached()
    await until(lambda: phone.pings >= 3, "it is asked for its time")
    assert phone.time_syncs == []
    phone.echoes = 1
    await lab.locked()
    await until(lambda: phone.time_syncs, "the first one")
    ((session, number),) = sent(phone)
    assert uuid.UUID(session).version == 4
    assert number == 0
    await lab.serves(phone)
    assert len(phone.time_syncs) == 1


def test_there_is_a_minute_between_two_and_each_has_a_number_of_its_own() -> None:
    session, other, now_ns = TimeSyncSession(), TimeSyncSession(), 5 * 10**9
    assert session.next_ns <= now_ns
    texts = []
    for number in range(3):
        texts.append(session.text(now_ns))
        assert session.next_ns - now_ns == 60 * 10**9
        now_ns = session.next_ns + number
    assert texts == [f"lsl.time_sync.{session.id}.{number}" for number in range(3)]
    assert other.id != session.id


async def test_they_come_back_as_every_event_and_are_stamped_on_arrival_at_the_phone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndsi_session, "INTERVAL_S", 0.1)
    phone = lab.phone()
    phone.publishes_time_syncs = True
    await phone.attached()
    out = lab.out("event")
    await until(lambda: len(out.samples) >= 5, "five come back")
    assert [TEXT.fullmatch(text)[2] for text in out.payloads[:5]] == list("01234")  # type: ignore[index]
    for (came_s, event), text, host_ns in zip(phone.time_syncs, out.payloads, out.host_ns, strict=False):
        assert event["name"] == text
        assert abs(host_ns / 1e9 - came_s) < 0.01


async def test_a_phone_that_comes_back_goes_on_with_its_session_and_nobody_else_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndsi_phone, "SESSION_POLL_S", 0.01)
    monkeypatch.setattr(ndsi_session, "INTERVAL_S", 0.2)
    lab = Lab(tmp_path, {"name": "one", "match": "One"}, {"name": "two", "match": "Two"})
    try:
        one, two = lab.phone("One"), lab.phone("Two")
        for phone in (one, two):
            await phone.attached()
        await until(lambda: len(one.time_syncs) >= 2 and len(two.time_syncs) >= 2, "two each")
        one.beacon(port=0)
        await until(lambda: not lab.device("one").connected, "it has gone")
        count = len(one.time_syncs)
        again = lab.phone("One")
        await again.attached()
        await until(lambda: again.time_syncs, "it goes on")
        first, second = sent(one) + sent(again), sent(two)
        assert {session for session, _ in first} != {session for session, _ in second}
        for found in (first, second):
            assert len({session for session, _ in found}) == 1
            assert [number for _, number in found] == sorted({number for _, number in found})
        assert sent(again)[0][1] >= count
    finally:
        await lab.end()


async def test_who_does_not_want_them_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndsi_phone, "SESSION_POLL_S", 0.01)
    monkeypatch.setattr(ndsi_session, "INTERVAL_S", 0.01)
    lab = Lab(tmp_path, {"name": "companion", "match": "Raw", "time_sync_events": False})
    try:
        phone, other = lab.phone(), lab.phone("Other")
        await phone.attached()
        await other.attached()
        await lab.serves(phone)
        await until(lambda: len(other.time_syncs) > 20, "another one gets many")
        assert phone.time_syncs == []
    finally:
        await lab.end()


async def test_pings_and_time_sync_events_do_not_wait_for_each_other(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndsi_session, "INTERVAL_S", 0.003)
    phone = lab.phone()
    phone.publishes_time_syncs = True
    await phone.attached()
    await lab.locked()
    clock, lost = lab.device().clock, lab.device().malformed
    doubtful, count = lost["echo_lost_or_doubtful"], len(phone.time_syncs)
    accepted = clock.pings_accepted
    await until(lambda: clock.pings_accepted >= accepted + 10, "ten round trips in a flood of events")
    assert len(phone.time_syncs) > count + 10
    assert (lost["echo_lost_or_doubtful"], clock.epoch) == (doubtful, 0)
    phone.echoes, count = 0, len(phone.time_syncs)  # a ping waits a second for its echo
    await until(lambda: lost["echo_lost_or_doubtful"] > doubtful, "a ping without an echo")
    assert len(phone.time_syncs) > count + 20


async def test_one_that_does_not_leave_is_not_sent_twice(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndsi_session, "INTERVAL_S", 0.02)
    phone = lab.phone()
    await phone.attached()
    await until(lambda: phone.time_syncs, "the first one")
    live = next(iter(lab.source._phones.values()))
    tried: list[bytes] = []

    async def lost(payload: bytes) -> bool:
        tried.append(payload)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(live, "_whisper", lost)
        await until(lambda: len(tried) == 3, "three are lost")
    await until(lambda: len(phone.time_syncs) > 3, "it goes on")
    numbers = [number for _, number in sent(phone)]
    assert len(set(numbers)) == len(numbers)
    assert len(set(range(numbers[-1])) - set(numbers)) == 3


async def test_a_phone_that_goes_while_one_is_on_its_way_leaves_nothing_behind(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndsi_session, "INTERVAL_S", 0.02)
    phone = lab.phone()
    await phone.attached()
    await until(lambda: phone.time_syncs, "the first one")
    live = next(iter(lab.source._phones.values()))
    with monkeypatch.context() as patch:
        patch.setattr(lab.source.node, "whisper_stamped", lambda *_: None)
        await until(lambda: live._events, "one is on its way")
        phone.beacon(port=0)
        await until(lambda: not lab.device().connected, "it has gone")
        await until(lambda: all(task.done() for task in live.tasks), "so have its tasks")


async def test_an_event_sensor_that_is_gone_is_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndsi_session, "INTERVAL_S", 0.02)
    phone = lab.phone()
    await phone.attached()
    await until(lambda: phone.time_syncs, "the first one")
    phone.whisper(phone.event.detach())
    await until(lambda: phone.event.subscribed["data"] == 0, "it has gone")
    count = len(phone.time_syncs)
    phone.gaze.send(gaze_frames(device_time(), 1.0, 2.0))
    gaze = lab.out("gaze")
    await until(lambda: gaze.samples, "gaze goes on")
    assert len(phone.time_syncs) <= count + 1
    phone.whisper(phone.event.attach())
    await until(lambda: len(phone.time_syncs) > count + 2, "it goes on")


# --- lsl-relay's streams ----------------------------------------------------------------------------------------------


async def test_streams_can_be_those_of_lsl_relay(tmp_path: Path) -> None:
    lab = Lab(
        tmp_path,
        {"name": "companion", "match": "Raw", "compat": "lsl-relay", "sensors": ["gaze", "event", "imu", "scene"]},
    )
    try:
        phone = lab.phone()
        await phone.attached()
        await lab.locked()
        described = {name: stream.descriptor for name, stream in lab.device().streams.items()}
        assert {name for name, stream in described.items() if stream.lsl} == {"gaze", "event"}
        gaze, event = described["gaze"], described["event"]
        assert [(c.label, c.type, c.unit, c.eye, c.coordinate_system) for c in gaze.channels] == [
            ("x", "ScreenX", "pixels", "both", "world"),
            ("y", "ScreenY", "pixels", "both", "world"),
        ]
        assert (gaze.lsl_type, gaze.lsl_suffix, gaze.device_time) == ("Gaze", "Gaze", False)
        assert (event.lsl_type, event.lsl_suffix, event.channels) == ("Event", "Event", ())
        await lab.serves(phone)
        assert {len(payload) for payload in lab.out("gaze").payloads} == {2}
    finally:
        await lab.end()


# --- echoes -----------------------------------------------------------------------------------------------------------

# What may come on the event sensor: our echoes, those of other bridges' pings, and events that look much like them.
OTHERS = st.lists(
    st.one_of(
        st.tuples(st.just(TIME_ECHO), st.integers(-(10**9), 10**9)),
        st.tuples(
            st.sampled_from(["<<time>> ", " <<time>>", "<<TIME>>", "<<time>", "a <<time>> b", "<<time>>\0", "é"]),
            st.integers(-(10**7), 10**7),
        ),
    ),
    max_size=40,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OTHERS, st.integers(0, 3))
def test_echoes_of_the_time_never_leak_out_and_everything_else_does(
    tmp_path: Path, others: list[tuple[str, int]], foreign: int
) -> None:
    """``foreign``: as many bridges more ping the phone, and their echoes come to all."""

    async def scenario() -> None:
        lab = Lab(tmp_path, {"name": "companion", "match": "Raw", "time_sync_events": False})
        try:
            phone = lab.phone()
            await phone.attached()
            await lab.locked()
            phone.echoes = 1 + foreign
            phone.echo_offsets_ns = [0, -40_000_000, 3_000_000, 10**8]
            out, pings = lab.out("event"), phone.pings
            for text, offset_ns in others:
                phone.event.send(event_frames(device_time() + offset_ns, text))
                await asyncio.sleep(0.001)
            lab.device().clock.request_burst()
            await until(lambda: phone.pings > pings, "it is pinged meanwhile")
            phone.event.send(event_frames(device_time(), "last"))
            wanted = [text for text, _ in others if text != TIME_ECHO] + ["last"]
            await until(lambda: len(out.samples) >= len(wanted), "all that are none")
            assert out.payloads == wanted
        finally:
            await lab.end()

    asyncio.run(scenario())
