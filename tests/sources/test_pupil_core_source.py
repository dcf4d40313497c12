"""The Pupil Core source in a pipeline, against a Pupil Capture that is made of raw sockets here."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import zmq

from bridge.sources import pupil_core, pupil_remote
from tests.sources.core_lab import Capture, Lab, encode, gaze, impatient, pupil_time
from tests.sources.zre_peer import free_tcp_port, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    made = Lab()
    yield made
    await made.end()


async def test_every_datum_arrives_at_the_right_time(lab: Lab) -> None:
    await lab.serves(500)
    assert lab.source.status()["version"] == "3.6.14"
    assert lab.device.connected
    assert lab.device.malformed == {}
    assert lab.counts == {}


# --- Pupil Remote ----------------------------------------------------------------------------------------


async def test_a_pupil_remote_that_is_silent_is_asked_until_it_answers(lab: Lab) -> None:
    lab.capture.answer = lambda _: []
    await until(lambda: len(lab.capture.requests) >= 4, "four requests that nobody answered")
    assert not lab.device.connected
    lab.capture.answer = lab.capture.properly
    await lab.serves()


GARBAGE = [
    [b""],
    [b"\0"],
    [b"\xff\xfe"],
    [b"abc"],
    [b"-1"],
    [b"0"],
    [b"99999"],
    [b"1e3"],
    [b" 50020"],
    [b"nan"],
    [b"inf"],
    [b"1" * 65_000],
    [b"x" * 200_000],
    [b"Unknown command."],
    [b"1", b"2"],
    [b"", b"", b"", b""],
]


@pytest.mark.parametrize("request_", [b"SUB_PORT", b"PUB_PORT"])
async def test_garbage_in_place_of_a_port_is_survived(lab: Lab, request_: bytes) -> None:
    for garbage in GARBAGE:
        given: list[bytes] = []

        def answer(request: bytes, garbage: list[bytes] = garbage, given: list[bytes] = given) -> list[list[bytes]]:
            if request != request_:
                return lab.capture.properly(request)
            given.append(request)
            return [garbage]

        lab.capture.answer = answer
        await until(lambda given=given: len(given) >= 2, f"{garbage[0][:10]!r} was given twice")
    lab.capture.answer = lab.capture.properly
    await lab.serves()
    assert lab.counts["replies_malformed"] >= 10


async def test_garbage_in_place_of_a_time_is_counted_and_data_go_on(lab: Lab) -> None:
    await lab.serves()
    epoch = lab.device.clock.epoch
    left = [[b""], [b"\0"], [b"\xff\xfe"], [b"abc"], [b" 1.0"], [b"nan"], [b"inf"], [b"Unknown command."]] * 3
    asked = len(left)

    def answer(request: bytes) -> list[list[bytes]]:
        return [left.pop()] if request == b"t" and left else lab.capture.properly(request)

    lab.capture.answer = answer
    lab.device.clock.request_burst()
    await until(lambda: lab.counts.get("replies_malformed") == asked, "all of it was counted")
    await lab.serves()
    assert lab.device.clock.epoch == epoch


async def test_a_version_that_is_no_text_is_shown_harmlessly(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lab = Lab()
    try:
        lab.capture.answer = lambda request: (
            [[b"3.6\nforged line\x1b[2J\xff" + b"x" * 60_000]] if request == b"v" else lab.capture.properly(request)
        )
        await lab.serves()
        version = lab.source.status()["version"]
        assert isinstance(version, str)
        assert version.startswith("3.6forged line[2J")
        assert version.isprintable()
        assert len(version) <= 40
        assert all(record.getMessage().isprintable() for record in caplog.records)
    finally:
        await lab.end()


async def test_a_late_reply_is_nobodys_time(lab: Lab) -> None:
    await lab.serves()
    clock = lab.device.clock
    late: list[list[bytes]] = []

    def answer(request: bytes) -> list[list[bytes]]:
        if request != b"t":
            return lab.capture.properly(request)
        # The answer to the one before, and ours when it is too late.
        waiting, late[:] = list(late), lab.capture.properly(request)
        return waiting

    before = clock.pings_accepted
    lab.capture.answer = answer
    asked = len(lab.capture.requests)
    await until(lambda: len(lab.capture.requests) >= asked + 4, "some late replies")
    assert clock.pings_accepted == before
    lab.capture.answer = lab.capture.properly
    await lab.serves()


async def test_a_reply_that_comes_twice_is_used_once(lab: Lab) -> None:
    def answer(request: bytes) -> list[list[bytes]]:
        return lab.capture.properly(request) * 3

    lab.capture.answer = answer
    await lab.serves()
    for _ in range(5):
        accepted = lab.device.clock.pings_accepted
        lab.device.clock.request_burst()
        await until(lambda a=accepted: lab.device.clock.pings_accepted > a, "another round trip")
    assert lab.device.clock.pings_rejected == 0
    assert lab.counts == {}
    await lab.serves()


async def test_replies_that_nobody_asked_for_are_ignored(lab: Lab) -> None:
    await lab.serves()
    flood = [[b"0.0"]] * 1000
    lab.capture.answer = lambda request: [*lab.capture.properly(request), *flood]
    await lab.serves()
    assert lab.device.clock.pings_rejected == 0


async def test_data_go_on_when_somebodys_empty_request_has_ended_pupil_remote(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    await lab.serves()
    lab.capture.answer = lambda _: []
    out = lab.out("gaze")
    before, asked, sent = len(out.samples), len(lab.capture.requests), 0

    def published() -> bool:
        nonlocal sent
        lab.capture.publish(gaze(sent))
        sent += 1
        return len(lab.capture.requests) >= asked + 8

    await until(published, "eight requests that nobody answered")
    await until(lambda: len(out.samples) == before + sent, f"all {sent} datums, not {len(out.samples) - before}")
    assert lab.device.connected
    assert caplog.text.count("does not answer any more") == 1
    lab.capture.answer = lab.capture.properly
    await lab.serves()


async def test_a_capture_that_is_gone_is_said_and_served_again_when_it_comes_back(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    await lab.serves()
    port = lab.capture.port
    await lab.capture.end()
    await until(lambda: not lab.device.connected, "it is gone")
    lab.captures.append(Capture(port))
    await lab.serves()
    assert sum("does not answer" in record.getMessage() for record in caplog.records if record.levelno >= 30) == 1


async def test_a_capture_that_was_restarted_on_other_ports_is_found_again(lab: Lab) -> None:
    await lab.serves()
    for _ in range(3):
        lab.capture.restart()
        await lab.serves()


async def test_something_else_at_the_port_is_survived() -> None:
    """A server that is no ZeroMQ, one that closes at once, and then Capture."""
    port = free_tcp_port()
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(random.randbytes(10_000) if connections % 2 else b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    lab = Lab(f"127.0.0.1:{port}")
    try:
        await until(lambda: connections >= 5, "it was tried five times")
        server.close()
        await server.wait_closed()
        lab.captures.append(Capture(port))
        await lab.serves()
    finally:
        await lab.end()


async def test_a_host_name_is_looked_up_without_libzmq(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq does it in its one thread, and the end of its context waits for that."""
    known = False
    asked: list[str] = []
    loop = asyncio.get_running_loop()

    async def getaddrinfo(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        if not known:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    capture = Capture()
    lab = Lab(f"capture.invalid:{capture.port}")
    lab.captures.append(capture)
    try:
        await until(lambda: len(asked) >= 3, "it was looked up three times")
        assert capture.requests == []
        known = True
        await lab.serves()
        assert set(asked) == {"capture.invalid"}
    finally:
        await lab.end()


async def test_an_empty_request_and_one_that_sets_the_time_are_never_sent() -> None:
    context: zmq.Context[Any] = zmq.Context()
    remote = pupil_remote.PupilRemote(asyncio.get_running_loop(), context, f"127.0.0.1:{free_tcp_port()}")
    try:
        for request in ([b""], [b"", b"x"]):
            with pytest.raises(AssertionError, match="an empty request kills Pupil Remote"):
                await remote.ask(*request)
        with pytest.raises(AssertionError, match="nothing to ask"):
            await remote.ask()
        with pytest.raises(AssertionError, match="nobody's clock is set"):
            await remote.ask(b"T 1.0")
    finally:
        remote.close()
        context.destroy(0)


# --- the backbone ----------------------------------------------------------------------------------------


def garbage_datums() -> list[list[bytes]]:
    topic, payload = gaze(1.0)
    truncated = [[topic, payload[:length]] for length in range(0, len(payload), 7)]
    others: list[Any] = [None, 1, "text", [], [1, 2], {}, {1: 2}, {"timestamp": 1.0}, b"\0" * 10]
    values: list[dict[str, Any]] = [
        {"timestamp": "now"},
        {"timestamp": math.nan},
        {"timestamp": math.inf},
        {"timestamp": 1e300},
        {"confidence": None},
        {"confidence": math.nan},
        {"norm_pos": [1.0]},
        {"norm_pos": [1.0, 2.0, 3.0]},
        {"norm_pos": [math.inf, 0.0]},
        {"norm_pos": "xy"},
        {"base_data": 7},
        {"base_data": [{"id": 0, "diameter": "wide"}]},
    ]
    deep = b"\x81\xa1x" + b"\x91" * 60_000
    return [
        [topic],
        *truncated,
        *[[topic, encode(other)] for other in others],
        *[gaze(1.0, **value) if "timestamp" not in value else _with(value) for value in values],
        [topic, deep],
        [topic, b"\xc1" * 100],
        [topic, b"\xdf\xff\xff\xff\xff"],
        [topic, b"\xdd\xff\xff\xff\xff"],
        [topic, payload[:1] + b"\xd9\xff" + payload[1:]],
        [topic, random.Random(5).randbytes(1000)],
        [topic, b"\0" * 3_000_000],
        [b"pupil.0.2d", payload],
        [b"pupil.0.3d", payload],
        [b"pupil.1.2d"],
        [b"gaze.3d.01.", encode({**msgspec.msgpack.decode(payload), "eye_centers_3d": {"0": [1, 2]}})],
    ]


def _with(changes: dict[str, Any]) -> list[bytes]:
    topic, payload = gaze(1.0)
    return [topic, encode({**msgspec.msgpack.decode(payload), **changes})]


def unknown_topics() -> list[list[bytes]]:
    payload = gaze(1.0)[1]
    names = [
        b"gaze.",
        b"gaze.4d.",
        b"gaze.2d.0",
        b"gaze.2d.0.x",
        b"gaze.\xff\xfe",
        b"pupil.2.2d",
        b"pupil.0",
        b"pupil.",
    ]
    return [[name, payload] for name in [*names, b"gaze." + b"x" * 3_000_000]]


async def test_garbage_on_the_backbone_is_counted_and_all_good_datums_arrive(lab: Lab) -> None:
    await lab.serves()
    out = lab.out("gaze")
    before, number = len(out.samples), 0
    for _ in range(3):
        for frames in [*garbage_datums(), *unknown_topics()]:
            lab.capture.publish(frames)
            lab.capture.publish(gaze(number))
            number += 1
    await until(lambda: len(out.samples) >= before + number, f"all {number} good ones, not {len(out.samples) - before}")
    assert [payload[1] for payload in out.payloads[before:]] == [float(n) for n in range(number)]
    malformed, unknown = 3 * len(garbage_datums()), 3 * len(unknown_topics())
    assert lab.device.malformed == {"datums_malformed": malformed, "topics_unknown": unknown}
    assert all(stream.all_drops() == {} for stream in lab.device.streams.values())


async def test_a_capture_that_says_that_it_ends_is_asked_at_once_and_believed_if_it_is_silent(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pupil_remote, "REPLY_TIMEOUT_S", 1.0)  # a test's answers may be late on a busy computer
    await lab.serves()
    lab.capture.publish([b"notify.world_process.stopped", encode({"subject": "world_process.stopped"})])
    await lab.serves()
    assert lab.device.connected, "anybody can say so"
    lab.capture.answer = lambda _: []
    began_s = time.monotonic()
    lab.capture.publish([b"notify.world_process.stopped", encode({"subject": "world_process.stopped"})])
    await until(lambda: not lab.device.connected, "it is gone")
    assert time.monotonic() - began_s < 5.0
    await until(lambda: not lab.capture.subscriptions, "its connections are closed")
    lab.capture.answer = lab.capture.properly
    await lab.serves()


async def test_topics_that_only_begin_alike_are_not_received(lab: Lab) -> None:
    await lab.serves()
    alike = b"gaze", b"gazette", b"pupils", b"frame.world", b"notify.calibration.setup.v2", b"loggings", b""
    for topic in alike:
        lab.capture.publish([topic, b"garbage"])
    await lab.serves()
    assert lab.device.malformed == {}


async def test_one_message_that_is_too_large_does_not_end_the_subscription(lab: Lab) -> None:
    """libzmq then gives the connection up for ever."""
    await lab.serves()
    for _ in range(3):
        left = lab.capture.unsubscribed
        lab.capture.publish([b"gaze.2d.0.", bytes(pupil_core.MAX_MESSAGE_BYTES + 1)])
        await until(lambda left=left: lab.capture.unsubscribed > left, "the connection is given up")
        await lab.serves()


@pytest.mark.parametrize("window_ms", [0, 300])
async def test_a_datum_from_the_far_future_or_past_hides_no_other_one(window_ms: int) -> None:
    lab = Lab(reorder_window_ms=window_ms)
    try:
        await lab.subscribed()
        await until(lambda: lab.device.clock.locked, "the clock is locked")
        stream, out = lab.device.streams["gaze"], lab.out("gaze")
        epoch, wild = lab.device.clock.epoch, [1e9, 4e9, -4e9, -1e9, pupil_time() + 3600.0, 0.0, -0.0, 5e-324]
        for number in range(80):
            lab.capture.publish(gaze(-1.0, wild[number % len(wild)]))
            lab.capture.publish(gaze(number))
        await until(lambda: stream.samples_in == 160, "all datums were read")
        stream.drain()
        good = [payload[1] for payload in out.payloads if payload[1] >= 0]
        assert good == [float(number) for number in range(80)]
        stream.tick(time.monotonic_ns() + lab.device.hold_ns)  # gaze cannot tell a corrupt stamp from a set clock
        assert stream.all_drops()["impossible_stamp"] == 30
        assert lab.device.clock.epoch == epoch
    finally:
        await lab.end()


async def test_a_burst_of_twenty_thousand_datums_loses_none_below_the_high_water_mark(lab: Lab) -> None:
    await lab.serves()
    out = lab.out("gaze")
    before = len(out.samples)
    for number in range(20_000):
        lab.capture.publish(gaze(number % 100))
        if number % 1000 == 999:
            await asyncio.sleep(0)
    await until(lambda: len(out.samples) == before + 20_000, f"all of them, not {len(out.samples) - before}")


async def test_a_source_that_ends_leaves_no_file_open() -> None:
    async def life() -> None:
        lab = Lab()
        await lab.serves()
        await lab.end()

    await life()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await life()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= files, "all files are closed")
