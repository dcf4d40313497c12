"""Pupil Time Sync: the echo of one Capture, and what is made of those of others."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from bridge.sources import pupil_time_sync
from bridge.sources.pupil_time_sync import GROUP, NoEcho, TimeSync
from tests.sources import core_lab
from tests.sources.core_lab import Lab, impatient, pupil_time
from tests.sources.zre_peer import SHOUT, RawPeer, text, until

HOST = "127.0.0.1"


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


class Echo:
    """A clock that answers, and how often it was asked."""

    def __init__(self, reply: Callable[[], bytes]) -> None:
        self.reply = reply
        self.asked = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await reader.readexactly(4) == b"sync":
                    self.asked += 1
                    writer.write(self.reply())
                    await writer.drain()
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in a turn of their own


def now() -> bytes:
    return struct.pack("<d", pupil_time())


@asynccontextmanager
async def clock(reply: Callable[[], bytes] = now) -> AsyncIterator[Echo]:
    made = Echo(reply)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@asynccontextmanager
async def group(*ports: int, beacon_port: int | None = None) -> AsyncIterator[TimeSync]:
    """A listener in a group where clocks with these ports have been announced."""
    beacon_port = beacon_port or free_udp_port()
    heard = TimeSync(asyncio.get_running_loop(), HOST, beacon_port)
    peers = []
    try:
        for port in ports:
            peer = RawPeer(beacon_port)
            peers.append(peer)
            await announce(peer, port)
        await until(lambda: len(heard.clocks(HOST)) == len(set(ports)), "they are known")
        yield heard
    finally:
        heard.close()
        for peer in peers:
            peer.close()


async def announce(peer: RawPeer, port: int | bytes) -> None:
    await peer.meet()
    peer.say(SHOUT, text(GROUP), b"6.8444218", port if isinstance(port, bytes) else repr(port).encode())


OFFSET_NS = round(-core_lab.PUPIL_TIME_OFFSET_S * 1e9)


async def test_round_trips_contain_the_true_offset() -> None:
    async with clock() as echo, group(echo.port) as heard:
        trips = await heard.burst(HOST, OFFSET_NS, 100_000, 8)
        assert len(trips) == echo.asked == 8
        for trip in trips:
            assert trip.lowest_offset_ns <= OFFSET_NS <= trip.highest_offset_ns
            assert trip.sent_ns < trip.received_ns <= time.monotonic_ns()
        assert heard.asked == (HOST, echo.port)
        await heard.burst(HOST, OFFSET_NS, 100_000, 8)
        assert echo.asked == 16


async def test_a_clock_that_does_not_agree_is_another_one_s() -> None:
    async with clock(lambda: struct.pack("<d", pupil_time() + 0.02)) as echo, group(echo.port) as heard:
        with pytest.raises(NoEcho):
            await heard.burst(HOST, OFFSET_NS, 100_000, 8)


async def test_of_two_clocks_at_one_address_none_is_asked() -> None:
    async with clock() as one, clock() as other, group(one.port, other.port) as heard:
        with pytest.raises(NoEcho):
            await heard.burst(HOST, OFFSET_NS, 100_000, 8)
        assert one.asked == other.asked == 0


async def test_a_clock_that_was_asked_is_not_once_there_is_another() -> None:
    beacon_port = free_udp_port()
    async with clock() as one, clock() as other, group(one.port, beacon_port=beacon_port) as heard:
        await heard.burst(HOST, OFFSET_NS, 100_000, 8)
        assert heard.asked == (HOST, one.port)
        peer = RawPeer(beacon_port)
        try:
            await announce(peer, other.port)
            await until(lambda: len(heard.clocks(HOST)) == 2, "it is known")
            with pytest.raises(NoEcho):
                await heard.burst(HOST, OFFSET_NS, 100_000, 8)
            assert heard.asked is None
        finally:
            peer.close()


async def test_clocks_elsewhere_are_not_asked() -> None:
    async with clock() as echo, group(echo.port) as heard:
        with pytest.raises(NoEcho):
            await heard.burst("10.1.2.3", OFFSET_NS, 100_000, 8)


@pytest.mark.parametrize("reply", [b"", b"abc", struct.pack("<d", float("nan")), struct.pack("<d", 1e300)])
async def test_what_is_no_time_is_no_echo(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pupil_time_sync, "REPLY_TIMEOUT_S", 0.1)
    async with clock(lambda: reply) as echo, group(echo.port) as heard:
        for _ in range(3):
            with pytest.raises(NoEcho):
                await heard.burst(HOST, OFFSET_NS, 100_000, 8)


@pytest.mark.parametrize("port", [b"", b"x", b"0", b"70000", b"-1", b"\xff", b"1" * 5000])
async def test_an_announcement_that_is_none_is_passed_over(port: bytes) -> None:
    async with clock() as echo:
        beacon_port = free_udp_port()
        heard = TimeSync(asyncio.get_running_loop(), HOST, beacon_port)
        peers = [RawPeer(beacon_port), RawPeer(beacon_port)]
        try:
            await announce(peers[0], port)
            await announce(peers[1], echo.port)
            await until(lambda: heard.clocks(HOST), "the other one")
            assert heard.clocks(HOST) == [(HOST, echo.port)]
            assert len(await heard.burst(HOST, OFFSET_NS, 100_000, 8)) == 8
        finally:
            heard.close()
            for peer in peers:
                peer.close()


# --- in the source ---------------------------------------------------------------------------------------------------


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)


@pytest.mark.usefixtures("_impatient")
async def test_capture_s_log_gets_a_tenth_of_the_requests_where_time_sync_answers() -> None:
    beacon_port = free_udp_port()
    lab = Lab(time_sync=True, interface=HOST, beacon_port=beacon_port)
    peer = RawPeer(beacon_port)
    try:
        async with clock() as echo:
            await announce(peer, echo.port)
            await until(lambda: echo.asked >= 8 * 20, "bursts by Time Sync")
            before = sum(request == [b"t"] for request in lab.capture.requests)
            asked = echo.asked
            await until(lambda: echo.asked >= asked + 8 * 20, "twenty more")
            assert sum(request == [b"t"] for request in lab.capture.requests) - before <= 3 * 8
            assert lab.source.status()["time_sync"] == (HOST, echo.port)
            await lab.serves()
        await lab.serves()  # that clock is gone
    finally:
        peer.close()
        await lab.end()


@pytest.mark.usefixtures("_impatient")
async def test_without_an_interface_there_is_no_time_sync_and_the_device_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = Lab(time_sync=True, interface="198.51.100.7")
    try:
        await lab.serves()
        assert caplog.text.count("no Pupil Time Sync") == 1
    finally:
        await lab.end()
