"""The simulated Companion, tested on the wire with raw sockets against its process."""

from __future__ import annotations

import itertools
import random
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from tests.simulators.ndsi_host import DEADLINE_S, Host, free_beacon_port, host, read_truth, simulator

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def beacon_port() -> int:
    return free_beacon_port()


@pytest.fixture
def lab(beacon_port: int) -> Iterator[Host]:
    with host(beacon_port) as opened:
        yield opened


def device_ns(clock: dict[str, Any], host_ns: int) -> int:
    """The clock function of the specification, in exact arithmetic of its own."""
    elapsed = host_ns - clock["origin_ns"]
    drift = Fraction(str(clock["drift_ppm"])) / 10**6
    return clock["utc_at_origin_ns"] + clock["offset_ns"] + int((1 + drift) * elapsed)


def test_attaches_tell_names_types_and_endpoints_and_match_the_ready_line(lab: Host, beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port, "--name", "Phone 7") as device:
        attaches = lab.wait_attached(device.ready)
    assert device.ready["ready"] is True
    assert device.ready["kind"] == "companion"
    assert device.ready["name"] == "Phone 7"
    assert device.ready["streams"] == {"gaze": 120.0, "event": 1.0, "imu": 200.0, "scene": 30.0}
    assert {kind: a["sensor_uuid"] for kind, a in attaches.items()} == device.ready["sensors"]
    assert {kind: a["sensor_name"] for kind, a in attaches.items()} == {
        "gaze": "Gaze",
        "event": "Event",
        "imu": "IMU",
        "video": "PI world v1",
        "hardware": "Hardware",
    }
    for kind, attach in attaches.items():
        assert ("data_endpoint" in attach) == (kind != "hardware")
        for key in ("notify_endpoint", "command_endpoint", "data_endpoint"):
            assert attach.get(key, "tcp://127.0.0.1:1").startswith("tcp://127.0.0.1:")


def test_a_host_that_joins_later_gets_the_attaches_too(lab: Host, beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port) as device:
        lab.wait_attached(device.ready)
        with host(beacon_port) as late:
            assert late.wait_attached(device.ready) == lab.attaches(uuid.UUID(device.ready["zre_uuid"]))


def test_controls_are_described_set_counted_and_unknown_ones_refused(lab: Host, beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port) as device:
        attaches = lab.wait_attached(device.ready)
        gaze, hardware = lab.open(attaches["gaze"]), lab.open(attaches["hardware"])
        assert gaze.controls["streaming"]["value"] is False
        assert gaze.controls["streaming"]["dtype"] == "bool"
        assert gaze.controls["streaming"]["readonly"] is False
        lab.until(lambda: len(hardware.controls) == 2, "both hardware controls")
        assert hardware.controls["local_capture"]["value"] is False
        assert hardware.controls["capture_session_name"]["dtype"] == "string"

        lab.stream(gaze)
        hardware.send(action="set_control_value", control_id="capture_session_name", value="Versuch 3 é")
        hardware.send(action="set_control_value", control_id="local_capture", value=True)
        hardware.send(action="set_control_value", control_id="no such thing", value=1)
        hardware.send(action="set_control_value", control_id="local_capture", value="yes")
        lab.until(lambda: hardware.said("error", "local_capture"), "the error for a wrong value")

    assert hardware.controls["capture_session_name"]["value"] == "Versuch 3 é"
    assert hardware.controls["local_capture"]["value"] is True
    (refusal,) = hardware.said("error", "no such thing")
    assert isinstance(refusal["error_no"], int)
    assert refusal["error_str"]
    for sensor in (gaze, hardware):
        counted = [n["seq"] for n in sensor.notifications]
        assert counted == list(range(counted[0], counted[0] + len(counted)))


def test_gaze_on_the_wire_is_the_truth_on_an_exact_grid_and_clock(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    arguments = ("--offset-s", 1000, "--drift-ppm", 50, "--truth", truth, "--gaze-rate", 120, "--seed", 4)
    with simulator("--beacon-port", beacon_port, *arguments) as device:
        gaze = lab.open(lab.wait_attached(device.ready)["gaze"])
        asked_ns = time.monotonic_ns()
        lab.stream(gaze)
        lab.until(lambda: len(gaze.received) >= 240, "two seconds of gaze")
        lab.stream(gaze, on=False)
        lab.until(lambda: len(gaze.received) == len(read_truth(truth, "gaze")), "the last sample")
    clock, lines = device.ready["clock"], read_truth(truth, "gaze")
    assert clock["offset_ns"] == 1000 * 10**9

    assert [d.gaze for d in gaze.received] == [(line["device_ns"], line["payload"]) for line in lines]
    first = lines[0]["sequence"]
    assert [line["sequence"] for line in lines] == list(range(first, first + len(lines)))
    assert all(line["host_ns"] == clock["origin_ns"] + line["sequence"] * 10**9 // 120 for line in lines)
    assert all(line["device_ns"] == device_ns(clock, line["host_ns"]) for line in lines)
    assert asked_ns <= lines[0]["host_ns"], "data flowed before streaming was set"
    assert all(d.received_ns >= line["host_ns"] for d, line in zip(gaze.received, lines, strict=True))
    lags_ms = sorted((d.received_ns - line["host_ns"]) / 1e6 for d, line in zip(gaze.received, lines, strict=True))
    assert lags_ms[len(lags_ms) // 2] < 5

    xs, ys = zip(*(line["payload"] for line in lines), strict=True)
    assert min(xs) > 0
    assert max(xs) < 1088
    assert min(ys) > 0
    assert max(ys) < 1080
    assert all(abs(a - b) < 25 for axis in (xs, ys) for a, b in itertools.pairwise(axis)), "the path is not smooth"


def test_events_come_evenly_and_carry_their_number(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--event-rate", 20, "--truth", truth) as device:
        event = lab.open(lab.wait_attached(device.ready)["event"])
        lab.stream(event)
        lab.until(lambda: 20 <= len(event.received) <= len(read_truth(truth, "event")), "twenty events and their truth")
    lines = read_truth(truth, "event")[: len(event.received)]
    assert [d.event for d in event.received] == [(line["device_ns"], line["payload"]) for line in lines]
    assert [line["payload"] for line in lines] == [f"sim.{line['sequence']}" for line in lines]
    assert {b["host_ns"] - a["host_ns"] for a, b in itertools.pairwise(lines)} == {50_000_000}


def test_a_whispered_event_is_stamped_at_reception_and_a_given_stamp_is_kept(
    lab: Host, beacon_port: int, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--event-rate", 0, "--truth", truth, "--drift-ppm", -30) as device:
        event = lab.open(lab.wait_attached(device.ready)["event"])
        lab.stream(event)
        sent_ns = time.monotonic_ns()
        lab.whisper(device.ready, {"name": "<<time>>", "timestamp": None})
        lab.until(lambda: len(event.received) == 1, "the echo")
        received_ns = event.received[0].received_ns
        lab.whisper(device.ready, {"name": "Stein ✂", "timestamp": 123_456_789})
        lab.whisper(device.ready, {"name": "now", "timestamp": None})
        lab.until(lambda: len(event.received) == 3, "the events")
        lab.until(lambda: len(read_truth(truth, "event")) == 2, "the truth of both events")
    clock = device.ready["clock"]
    stamp_ns, text = event.received[0].event
    assert text == "<<time>>"
    assert device_ns(clock, sent_ns) <= stamp_ns <= device_ns(clock, received_ns)
    assert event.received[1].event == (123_456_789, "Stein ✂")
    given, stamped = read_truth(truth, "event")
    assert (given["payload"], given["device_ns"]) == ("Stein ✂", 123_456_789)
    assert (stamped["device_ns"], stamped["payload"]) == event.received[2].event
    assert stamped["device_ns"] == device_ns(clock, stamped["host_ns"])


def test_loss_hits_about_the_asked_fraction_and_the_truth_tells_which(
    lab: Host, beacon_port: int, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--gaze-rate", 500, "--loss", 0.2, "--truth", truth) as device:
        gaze = lab.open(lab.wait_attached(device.ready)["gaze"])
        lab.stream(gaze)
        lab.until(lambda: len(gaze.received) >= 800, "800 samples")
        last_ns = gaze.received[-1].gaze[0]
        lab.until(lambda: read_truth(truth, "gaze")[-1]["device_ns"] >= last_ns, "the truth of the last one")
    lines = [line for line in read_truth(truth, "gaze") if line["device_ns"] <= gaze.received[-1].gaze[0]]
    assert [d.gaze[0] for d in gaze.received] == [line["device_ns"] for line in lines if line["sent"]]
    assert 0.12 < sum(not line["sent"] for line in lines) / len(lines) < 0.28  # 5 sigma of 1000 dice


def test_delay_and_asymmetry_show_in_arrivals_and_echoes(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    arguments = ("--delay-ms", 40, "--asymmetry-ms", 30, "--truth", truth, "--event-rate", 0)
    with simulator("--beacon-port", beacon_port, *arguments) as device:
        attaches = lab.wait_attached(device.ready)
        gaze, event = lab.open(attaches["gaze"]), lab.open(attaches["event"])
        lab.stream(gaze)
        lab.stream(event)
        sent_ns = time.monotonic_ns()
        lab.whisper(device.ready, {"name": "<<time>>", "timestamp": None})
        lab.until(lambda: event.received and len(gaze.received) >= 60, "the echo and gaze")
    instants = {line["device_ns"]: line["host_ns"] for line in read_truth(truth, "gaze")}
    lags_ms = [(d.received_ns - instants[d.gaze[0]]) / 1e6 for d in gaze.received]
    assert min(lags_ms) >= 70
    assert sorted(lags_ms)[len(lags_ms) // 2] < 80
    clock, echo = device.ready["clock"], event.received[0]
    assert echo.event[0] - device_ns(clock, sent_ns) >= 40_000_000
    assert echo.received_ns - sent_ns >= 110_000_000


def test_jitter_delays_but_never_reorders(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    with simulator("--beacon-port", beacon_port, "--jitter-ms", 15, "--truth", truth, "--gaze-rate", 200) as device:
        gaze = lab.open(lab.wait_attached(device.ready)["gaze"])
        lab.stream(gaze)
        lab.until(lambda: len(gaze.received) >= 200, "200 samples")
    stamps = [d.gaze[0] for d in gaze.received]
    instants = {line["device_ns"]: line["host_ns"] for line in read_truth(truth, "gaze")}
    lags_ms = [(d.received_ns - instants[d.gaze[0]]) / 1e6 for d in gaze.received]
    assert all(a < b for a, b in itertools.pairwise(stamps))
    assert max(lags_ms) > 15
    assert max(lags_ms) - min(lags_ms) > 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_detaches_every_sensor_and_ends_in_time(lab: Host, beacon_port: int, number: signal.Signals) -> None:
    with simulator("--beacon-port", beacon_port) as device:
        lab.wait_attached(device.ready)
        device.process.send_signal(number)
        left = uuid.UUID(device.ready["zre_uuid"])
        lab.until(lambda: ("EXIT", left) in lab.kinds, "the device to leave")
        assert device.process.wait(DEADLINE_S) == 0
    detached = {m["sensor_uuid"] for peer, m in lab.messages if peer == left and m["subject"] == "detach"}
    assert detached == set(device.ready["sensors"].values())


def test_a_host_that_died_without_goodbye_does_not_hold_the_end_up(beacon_port: int) -> None:
    script = (
        "from tests.simulators.ndsi_host import Host\n"
        f"host = Host({beacon_port}); print(flush=True)\n"
        "while True: host.pump(1)"
    )
    with simulator("--beacon-port", beacon_port) as device, host(beacon_port) as lab:
        dying = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert dying.stdout is not None
        dying.stdout.readline()
        lab.until(lambda: len([k for k, _ in lab.kinds if k == "JOIN"]) >= 2, "the other host")
        dying.kill()
        dying.wait()
        dying.stdout.close()
        device.process.terminate()
        began = time.monotonic()
        assert device.process.wait(DEADLINE_S) == 0
        assert time.monotonic() - began < 5


def test_a_restart_keeps_sensor_uuids_and_can_continue_the_clock(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    arguments = ["--beacon-port", beacon_port, "--truth", truth, "--offset-s", -7, "--drift-ppm", 120]
    readies = []
    for _ in range(2):
        with simulator(*arguments) as device:
            gaze = lab.open(lab.wait_attached(device.ready)["gaze"])
            lab.stream(gaze)
            lab.until(lambda gaze=gaze: len(gaze.received) >= 30, "gaze")
            device.process.kill()  # no goodbye
            device.process.wait()
        readies.append(device.ready)
        clock = device.ready["clock"]
        arguments += ["--clock-origin-ns", clock["origin_ns"], "--utc-at-origin-ns", clock["utc_at_origin_ns"]]
    assert readies[0]["sensors"] == readies[1]["sensors"]
    assert readies[0]["zre_uuid"] != readies[1]["zre_uuid"]
    assert readies[0]["clock"] == readies[1]["clock"]
    lines = read_truth(truth, "gaze")
    assert len(lines) >= 30  # two times 30 arrived; a kill loses what was not written yet, a tenth of a second
    assert all(line["device_ns"] == device_ns(readies[0]["clock"], line["host_ns"]) for line in lines)
    assert all(a["sequence"] < b["sequence"] for a, b in itertools.pairwise(lines))


def test_the_clock_restarts_at_another_offset_when_the_last_sensor_stops(
    lab: Host, beacon_port: int, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.jsonl"
    options = ("--restart-step-s", -3.5, "--drift-ppm", 40, "--event-rate", 50)
    with simulator("--beacon-port", beacon_port, "--truth", truth, *options) as device:
        attaches = lab.wait_attached(device.ready)
        gaze, event = lab.open(attaches["gaze"]), lab.open(attaches["event"])
        for sensor in (gaze, event):
            lab.stream(sensor)
            lab.until(lambda sensor=sensor: len(sensor.received) >= 20, "data")
        lab.stream(gaze, on=False)  # the other one still streams, and the clock runs on
        lab.stream(gaze)
        lab.until(lambda: len(gaze.received) >= 40, "gaze")
        lab.stream(event, on=False)
        lab.stream(gaze, on=False)
        stopped_ns = time.monotonic_ns()
        for sensor in (gaze, event):
            count = len(sensor.received)
            lab.stream(sensor)
            lab.until(lambda sensor=sensor, count=count: len(sensor.received) >= count + 20, "data")
    lines = [line for stream in ("gaze", "event") for line in read_truth(truth, stream)]
    steps = {
        (line["host_ns"] > stopped_ns, line["device_ns"] - device_ns(device.ready["clock"], line["host_ns"]))
        for line in lines
    }
    assert steps == {(False, 0), (True, -3_500_000_000)}


def test_the_same_zre_uuid_can_come_back_at_once(lab: Host, beacon_port: int) -> None:
    identity = uuid.uuid4()
    for attached in (3, 6):
        with simulator("--beacon-port", beacon_port, "--zre-uuid", identity) as device:
            assert device.ready["zre_uuid"] == str(identity)
            lab.until(lambda attached=attached: len(lab.messages) >= attached, "attaches")
            device.process.kill()


def test_hostile_datagrams_frames_commands_and_whispers_end_nothing(lab: Host, beacon_port: int) -> None:
    dice = random.Random(11)
    with simulator("--beacon-port", beacon_port) as device:
        attaches = lab.wait_attached(device.ready)
        gaze, event = lab.open(attaches["gaze"]), lab.open(attaches["event"])
        lab.stream(gaze)
        lab.stream(event)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as foreign:
            foreign.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for n in range(2000):
                prefix = (b"", b"ZRE", b"ZRE\x01", b"ZRE\x02")[n % 4]
                length = dice.choice((22, dice.randrange(0, 64)))
                foreign.sendto((prefix + dice.randbytes(length))[:length], ("127.255.255.255", beacon_port))
        for message in (b"", b"\xff\xfe", b"[]", b"{", b"[" * 100_000, {"name": 1, "timestamp": None}, {"name": "x"}):
            lab.whisper(device.ready, message)
        lab.whisper(device.ready, {"name": "x" * 1025, "timestamp": None})
        lab.whisper(device.ready, {"name": "\ud800", "timestamp": None})
        lab.whisper(device.ready, {"name": "x", "timestamp": 2**63})
        for frames in ([b""], [b"?", b"{}"], [gaze.key], [gaze.key, b"\xff"], [gaze.key, b"{}"], [gaze.key, b"7", b""]):
            gaze.command.send_multipart(frames)
        for value in (None, 3, "", []):
            gaze.send(action="set_control_value", control_id="streaming", value=value)
            gaze.send(action="set_control_value", control_id=value, value=True)
        endpoint = lab.peer.endpoint_of(uuid.UUID(device.ready["zre_uuid"]))
        with lab.context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.identity = b"\x01" + uuid.uuid4().bytes  # else the node's ROUTER drops it before it is read
            dealer.connect(endpoint)
            for n in range(500):
                signature = (b"", b"\xaa\xa1", b"\xaa\xa1\x01\x02", b"\xaa\xa1\x02\x02")[n % 4]
                dealer.send_multipart([signature + dice.randbytes(dice.randrange(0, 40))])

            before = len(gaze.received)
            lab.whisper(device.ready, {"name": "still here", "timestamp": None})
            lab.until(lambda: any(d.event[1] == "still here" for d in event.received), "the good event")
            lab.until(lambda: len(gaze.received) >= before + 120, "a second of gaze")
        stamps = [d.gaze[0] for d in gaze.received]
        assert {round((b - a) / 1e9 * 120) for a, b in itertools.pairwise(stamps)} == {1}, "a sample is missing"
        assert {d.event[1] for d in event.received if not d.event[1].startswith("sim.")} == {"still here"}
        device.process.terminate()
        assert device.process.wait(DEADLINE_S) == 0


def test_streaming_gaze_takes_less_than_a_tenth_of_a_core(lab: Host, beacon_port: int, tmp_path: Path) -> None:
    with simulator("--beacon-port", beacon_port, "--truth", tmp_path / "truth.jsonl") as device:
        gaze = lab.open(lab.wait_attached(device.ready)["gaze"])
        lab.stream(gaze)
        lab.until(lambda: gaze.received, "gaze")
        process = psutil.Process(device.process.pid)
        before, began = process.cpu_times(), time.monotonic()
        lab.until(lambda: len(gaze.received) >= 300, "gaze")
        after, took_s = process.cpu_times(), time.monotonic() - began
    assert (after.user - before.user + after.system - before.system) / took_s < 0.10


def test_a_duration_ends_it_and_a_foreign_address_is_one_clear_line(beacon_port: int) -> None:
    with simulator("--beacon-port", beacon_port, "--duration", 0.5) as device:
        assert device.process.wait(DEADLINE_S) == 0
    command = [sys.executable, "-m", "bridge.simulators.companion", "--interface", "192.0.2.1"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert refused.returncode == 1
    assert refused.stderr == "Error: 192.0.2.1 is no address of this machine\n"


def test_the_beacon_is_22_bytes_with_the_ready_lines_uuid_and_port_0_is_the_goodbye(beacon_port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.255.255.255", beacon_port))
        listener.settimeout(DEADLINE_S)
        with simulator("--beacon-port", beacon_port) as device:
            assert device.process.poll() is None
            beacons = [listener.recv(2048)]
            device.process.terminate()
            while struct.unpack(">3sB16sH", beacons[-1])[3] != 0:
                beacons.append(listener.recv(2048))
            assert device.process.wait(DEADLINE_S) == 0
    assert {struct.unpack(">3sB16sH", b)[:3] for b in beacons} == {
        (b"ZRE", 1, uuid.UUID(device.ready["zre_uuid"]).bytes)
    }
    assert len(beacons) >= 2
