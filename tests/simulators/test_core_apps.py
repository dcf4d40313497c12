"""Pupil Service instead of Capture, Pupil Time Sync's clock service, and how both apps end."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import zmq

from bridge.simulators.zre_peer import ZrePeer, zre_address
from tests.simulators.test_core import DEADLINE_S, Core, collect, notify, receive, receive_until, start
from tests.sources.zre_peer import free_udp_port

__all__ = ["start"]  # the fixture

GROUP = "default-time_sync-v1"
TIME = struct.Struct("<d")
encode = msgspec.msgpack.encode


# -------------------------------------------------------------------------------------------------------- Pupil Service


def test_service_sends_gaze_pupils_and_images_of_the_eyes(start: Callable[..., Core]) -> None:
    core = start("--synthesise", "--app", "service")
    assert core.ready["name"] == "Pupil Service"
    topics = {message.topic for message in collect(core.subscriber(b""), 2.0)}
    eyes = {f"frame.eye.{eye}" for eye in (0, 1)} | {f"pupil.{eye}.{kind}" for eye in (0, 1) for kind in ("2d", "3d")}
    assert {topic for topic in topics if not topic.startswith("logging.")} == eyes | {"gaze.3d.01."}


def test_service_records_nothing_and_knows_no_annotations(start: Callable[..., Core]) -> None:
    core = start("--topics", "none", "--app", "service")
    backbone = core.subscriber(b"notify.", b"logging.error")
    assert core.ask(b"R session") == "OK"
    assert receive(backbone).topic == "notify.recording.should_start"
    notify(core, "start_plugin", name="Annotation_Capture", args={})
    assert receive(backbone).topic == "notify.start_plugin"
    record = receive(backbone).payload
    assert record["msg"] == "Attempt to load unknown plugin: 'Annotation_Capture'"
    assert (record["name"], record["processName"]) == ("launchables.service", "service")
    assert not any(row["stream"] == "recording" for row in core.truth())


def test_service_calibrates_for_who_says_where_the_eyes_are(start: Callable[..., Core]) -> None:
    core = start("--topics", "none", "--app", "service")
    backbone = core.subscriber(b"notify.calibration.", b"logging.error")
    assert core.ask(b"C") == "OK"
    refused = receive_until(backbone, lambda message: message.topic == "logging.error")
    assert refused.payload["msg"] == "Calibration cannot be started without 'translation_eye0'"
    notify(core, "calibration.should_start", translation_eye0=[30, 0, 0], translation_eye1=[-30, 0, 0])
    receive_until(backbone, lambda message: message.topic == "notify.calibration.started")
    core.ask(b"c")
    done = receive_until(backbone, lambda message: message.topic == "notify.calibration.successful")
    assert done.payload["gazer_class_name"] == "GazerHMD3D"


def test_service_ends_when_its_port_is_taken(start: Callable[..., Core]) -> None:
    port = start().ready["address"].rpartition(":")[2]
    result = subprocess.run(
        [sys.executable, "-m", "bridge.simulators.core", "--port", port, "--app", "service"],
        capture_output=True,
        timeout=DEADLINE_S,
        text=True,
    )
    assert (result.returncode, result.stdout) == (78, "")
    assert "Address already in use" in result.stderr


@pytest.mark.parametrize(("app", "stopped"), [("capture", "world_process"), ("service", "service_process")])
def test_its_end_is_told_on_the_backbone(start: Callable[..., Core], app: str, stopped: str) -> None:
    core = start("--topics", "none", "--app", app)
    backbone = core.subscriber(b"notify.")
    core.process.send_signal(signal.SIGTERM)
    receive_until(backbone, lambda message: message.topic == f"notify.{stopped}.stopped")


def test_a_crash_is_in_the_log_with_its_trace(start: Callable[..., Core]) -> None:
    core = start("--topics", "none", status=1)
    backbone = core.subscriber(b"logging.error")
    notify(core, "frame_publishing.set_format", format="png")
    text = receive(backbone).payload["msg"]
    assert text.startswith("Process Capture crashed with trace:\nTraceback")
    assert "'png' is not a valid FrameFormat" in text
    assert core.process.wait(DEADLINE_S) == 1


@pytest.mark.parametrize("payload", [b"\x93\x01\x02\x03", b"\xa4text", b"", b"\xc1", b"\x00"])
def test_what_strangers_send_passes_whatever_it_is(start: Callable[..., Core], payload: bytes) -> None:
    core = start("--topics", "none")
    backbone = core.subscriber(b"gaze.", b"fixations", b"blinks", b"surfaces.", b"annotation", b"logging.info")
    for topic in (b"gaze.3d.01.", b"fixations", b"blinks", b"surfaces.x", b"annotation", b"logging.info"):
        assert core.ask(topic, payload) == "Message forwarded."
        assert backbone.recv_multipart() == [topic, payload]


# ------------------------------------------------------------------------------------------------------ Pupil Time Sync


class Listener:
    """A member of the group that only listens: another node of ZRE on loopback."""

    def __init__(self, beacon_port: int) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        address = zre_address("127.0.0.1", beacon_port)
        self._peer = ZrePeer(self._context, address, name="listener", identity=uuid.uuid4())
        self._peer.start(GROUP)

    def shout(self) -> list[bytes]:
        """Both frames of the next one: the peer itself hands on the first only."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            if self._peer.events.poll(100):
                kind, *frames = self._peer.events.recv_multipart()
                if kind == b"SHOUT":
                    _peer, _name, group, *content, _received = frames
                    assert group == GROUP.encode()
                    return content
        raise AssertionError("no SHOUT")

    def close(self) -> None:
        assert self._peer.stop()
        self._context.term()


@pytest.fixture
def synced(start: Callable[..., Core]) -> tuple[Core, int]:
    port = free_udp_port()
    return start("--topics", "none", "--time-sync", "--beacon-port", str(port), "--drift-ppm", "200"), port


def test_a_listener_is_told_the_rank_and_the_port_when_it_joins(synced: tuple[Core, int]) -> None:
    core, beacon_port = synced
    told = core.ready["time_sync"]
    assert 6 <= told["rank"] < 7
    for _ in range(2):  # each of them
        listener = Listener(beacon_port)
        try:
            assert listener.shout() == [repr(told["rank"]).encode(), repr(told["port"]).encode()]
        finally:
            listener.close()


def test_each_sync_is_answered_with_pupil_time(synced: tuple[Core, int]) -> None:
    core, _ = synced
    clock = core.ready["clock"]
    address = ("127.0.0.1", core.ready["time_sync"]["port"])

    def device_ns(host_ns: int) -> float:
        elapsed_ns = host_ns - clock["origin_ns"]
        return float(clock["origin_ns"] + clock["offset_ns"] + elapsed_ns * (1 + clock["drift_ppm"] * 1e-6))

    trips_ns = []
    with socket.create_connection(address, DEADLINE_S) as one, socket.create_connection(address, DEADLINE_S) as other:
        for number in range(60):
            connection = (one, other)[number % 2]
            before_ns = time.monotonic_ns()
            connection.sendall(b"sync")
            told_ns = TIME.unpack(connection.recv(8))[0] * 1e9
            after_ns = time.monotonic_ns()
            assert device_ns(before_ns) - 1000 <= told_ns <= device_ns(after_ns) + 1000
            trips_ns.append(after_ns - before_ns)
        core.ask(b"T 5.0")
        one.sendall(b"sync")
        assert 5.0 <= TIME.unpack(one.recv(8))[0] < 5.0 + DEADLINE_S
        # Four bytes that are something else are not answered; what is no text ends the connection, and no other.
        one.sendall(b"timesync")
        assert len(one.recv(8)) == 8
        one.sendall(b"\xff\xff\xff\xff")
        assert one.recv(8) == b""
        other.sendall(b"sync")
        assert len(other.recv(8)) == 8


def test_time_sync_goes_on_when_pupil_remote_is_dead(synced: tuple[Core, int]) -> None:
    core, beacon_port = synced
    with core.requester() as remote:
        remote.send(b"")
        assert remote.poll(200) == 0
    listener = Listener(beacon_port)
    try:
        port = int(listener.shout()[1])
    finally:
        listener.close()
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection:
        connection.sendall(b"sync")
        assert len(connection.recv(8)) == 8
