"""The daemon on simulated eye trackers, heard by a ROS 2 subscriber in another process, compared with the truth."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pylsl
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from bridge.sinks.ros2.topics import TOPICS
from tests.system.harness import Bridge, Process, bridge, running, simulator, truth, wait_until

pytestmark = pytest.mark.slow

LISTENER = Path(__file__).with_name("ros2_listener.py")
RUN_S = 20
GAZE_HZ = 120
COMPANION_PX = (1088, 1080)
CORE_PX = (1280, 720)
POINT, REFERENCE = "geometry_msgs/PointStamped", "sensor_msgs/TimeReference"
ACCURACY_NS = 500_000
OUTLETS = 11  # companion: gaze, events, sync, markers; core: gaze, four pupil streams, sync, markers
SHUTDOWN_S = 2.0 + 0.03 * OUTLETS
ALL_TOPICS = {
    "companion/gaze/pixel": POINT,
    "companion/gaze/normalized": POINT,
    "companion/events": REFERENCE,
    "companion/time_reference": REFERENCE,
    "core/gaze/pixel": POINT,
    "core/gaze/normalized": POINT,
    "core/time_reference": REFERENCE,
}
CONFIG = """
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
name = "companion"
lsl_prefix = "pupil_labs"
[[source]]
type = "pupil_core"
address = "{core_address}"
name = "core"
lsl_prefix = "pupil_capture"
[[sink]]
type = "lsl"
[[sink]]
type = "ros2"
"""


# --- parts of a run --------------------------------------------------------------------------------------------------


def realtime_minus_monotonic_ns() -> int:
    """The narrowest of some readings of one clock between two of the other."""
    readings = []
    for _ in range(21):
        before_ns, realtime_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after_ns - before_ns, realtime_ns - (before_ns + after_ns) // 2))
    return min(readings)[1]


def free_udp_port() -> int:
    """For beacons that no other test hears."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Listener:
    """The subscriber's process."""

    def __init__(self, process: Process, out: Path, bag: Path) -> None:
        self.process = process
        self.out = out
        self.bag = bag

    def ask(self, question: str) -> dict[str, Any]:
        assert self.process.popen.stdin is not None
        self.process.popen.stdin.write(f"{question}\n".encode())
        self.process.popen.stdin.flush()
        return self.process.json_line()

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = self.ask("counts")["counts"]
        return counts

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Ends the subscriber; what it has received, by topic."""
        assert self.process.popen.stdin is not None
        self.process.popen.stdin.close()
        written = self.process.json_line()["written"]
        by_topic = defaultdict(list)
        lines = self.out.read_text(encoding="utf-8").splitlines()
        assert len(lines) == written
        for line in lines:
            row = json.loads(line)
            by_topic[row["topic"]].append(row)
        return by_topic


@contextmanager
def listening(tmp_path: Path, namespace: str) -> Iterator[Listener]:
    """A subscriber to every topic that the daemon should have; yields when it has subscribed."""
    topics = [f"/{namespace}/{name}={kind}" for name, kind in ALL_TOPICS.items()]
    topics.append("/diagnostics=diagnostic_msgs/DiagnosticArray")
    out, bag = tmp_path / "heard.jsonl", tmp_path / "bag"
    command = [sys.executable, str(LISTENER), "--out", str(out), "--bag", str(bag), *topics]
    with running(command, tmp_path / "listener.log") as process:
        assert process.json_line() == {"ready": True}
        yield Listener(process, out, bag)


@dataclass(frozen=True)
class Trackers:
    """Both simulators: their processes, ready lines, truth files, and the daemon's configuration for them."""

    companion: Process
    core: Process
    companion_ready: dict[str, Any]
    core_ready: dict[str, Any]
    companion_truth: Path
    core_truth: Path
    config: str

    def device_ns(self, name: str, host_ns: int) -> int:
        """What the simulated device's clock shows at a host time."""
        clock = {"companion": self.companion_ready, "core": self.core_ready}[name]["clock"]
        elapsed_ns = host_ns - clock["origin_ns"]
        start_ns = clock.get("utc_at_origin_ns", clock["origin_ns"]) + clock["offset_ns"]
        return int(start_ns + elapsed_ns + round(elapsed_ns * clock["drift_ppm"] * 1e-6))

    def stop(self) -> None:
        for process in (self.companion, self.core):
            process.popen.send_signal(signal.SIGTERM)
        for process in (self.companion, self.core):
            process.popen.wait(10)


@contextmanager
def trackers(tmp_path: Path) -> Iterator[Trackers]:
    beacon_port = free_udp_port()
    companion_truth, core_truth = tmp_path / "companion.jsonl", tmp_path / "core.jsonl"
    companion_options = ["--beacon-port", str(beacon_port), "--event-rate", "10", "--truth", str(companion_truth)]
    companion_options += ["--offset-s", "1000", "--drift-ppm", "50"]
    core_options = ["--port", "0", "--drift-ppm", "-20", "--truth", str(core_truth)]
    with (
        simulator("companion", tmp_path, *companion_options) as (companion, companion_ready),
        simulator("core", tmp_path, *core_options) as (core, core_ready),
    ):
        config = CONFIG.format(beacon_port=beacon_port, core_address=core_ready["address"])
        yield Trackers(companion, core, companion_ready, core_ready, companion_truth, core_truth, config)


def end(process: Process) -> tuple[int, float]:
    """SIGTERM: the exit status, and how long it took in seconds."""
    started_s = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    status = process.popen.wait(30)
    return status, time.monotonic() - started_s


def sent_to_ros(daemon: Bridge, device: str, stream: str) -> int:
    found: int = daemon.stream(device, stream).get("samples_out", {}).get("ros2", 0)
    return found


def is_quiet(daemon: Bridge) -> bool:
    """Nothing has come for a second, and nothing waits in the bridge."""
    return all(
        stream["age_s"] > 1.0
        and stream["samples_in"] == stream["samples_out"]["ros2"] + sum(stream["dropped"].values())
        for device in daemon.status()["devices"]
        for stream in device["streams"]
        if stream["name"] in ("gaze", "event")
    )


# --- one run of 20 s, looked at from many sides ----------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What happened: everything that was heard by topic (without namespace), and what was to be heard."""

    trackers: Trackers
    heard: dict[str, list[dict[str, Any]]]
    bag: Path
    graph: dict[str, Any]
    devices: dict[str, dict[str, Any]]
    matched_ns: int
    published_before: dict[str, int]
    to_realtime_ns: Callable[[int], int]
    exit_status: int
    shutdown_s: float
    log: str

    def host_ns(self, realtime_ns: int) -> int:
        return realtime_ns - self.to_realtime_ns(0)

    def expected(self, device: str) -> list[dict[str, Any]]:
        """The device's true gaze samples from the first that was heard to the last that was sent, in their order."""
        path = self.trackers.companion_truth if device == "companion" else self.trackers.core_truth
        rows = sorted(truth(path, "gaze"), key=lambda row: row["host_ns"])
        assert all(row["sent"] for row in rows)
        stamps_ns = [row["host_ns"] for row in rows]
        first_ns = self.host_ns(self.heard[f"{device}/gaze/pixel"][0]["stamp_ns"])
        begin = bisect_left(stamps_ns, first_ns - ACCURACY_NS)
        # Subscriber and publisher need not see each other at the same moment.
        assert stamps_ns[begin] < self.matched_ns + 1_000_000_000
        return rows[begin:]

    def limits_ns(self, device: str, stamps_ns: list[int]) -> list[int]:
        """How far off each of these stamps may be: half a millisecond, or what the diagnostics admit around it.

        On a busy computer round trips take longer, and the bound with them.
        """
        told = reported(self.heard["/diagnostics"], device)
        times_ns = [stamp_ns for stamp_ns, _ in told]
        values = [status["values"] for _, status in told]
        admitted_ns = [
            ACCURACY_NS if each["bound_s"] == "unknown" else max(ACCURACY_NS, round(float(each["bound_s"]) * 1e9))
            for each in values
        ]
        limits_ns = []
        for stamp_ns in stamps_ns:
            index = bisect_left(times_ns, stamp_ns)
            limits_ns.append(max(admitted_ns[max(0, index - 1) : index + 1]))
        return limits_ns


def reported(rows: list[dict[str, Any]], device: str) -> list[tuple[int, dict[str, Any]]]:
    """What /diagnostics said of a device (or of "pupil-bridge"), with the stamps. Once in each array."""
    found = []
    for row in rows:
        (status,) = [status for status in row["status"] if status["hardware_id"] == device]
        found.append((row["stamp_ns"], status))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    tmp_path = tmp_path_factory.mktemp("ros2")
    with trackers(tmp_path) as sources, listening(tmp_path, "pupil_bridge") as listener:
        offset_before_ns = realtime_minus_monotonic_ns()
        with bridge(tmp_path, sources.config) as daemon:
            matched_ns = listener.process.json_line()["matched"]
            daemon.wait_locked("companion", "core")
            published_before = {device: sent_to_ros(daemon, device, "gaze") for device in ("companion", "core")}
            for device, before in published_before.items():
                wait_until(
                    lambda device=device, before=before: (
                        sent_to_ros(daemon, device, "gaze") >= before + (RUN_S + 1) * GAZE_HZ
                    ),
                    f"{RUN_S} s of gaze of {device} after discovery",
                    timeout_s=2 * RUN_S,
                    interval_s=0.25,
                )
            graph = listener.ask("graph")
            offset_after_ns = realtime_minus_monotonic_ns()
            sources.stop()
            wait_until(lambda: is_quiet(daemon), "everything that was sent has left the bridge", interval_s=0.1)
            devices = {device["name"]: device for device in daemon.status()["devices"]}
            exit_status, shutdown_s = end(daemon.process)
        # Were CLOCK_REALTIME set or slewed meanwhile, no single offset would be the truth for all of the run.
        assert abs(offset_after_ns - offset_before_ns) < 20_000, "CLOCK_REALTIME has moved during the test"
        offset_ns = (offset_before_ns + offset_after_ns) // 2
        heard = {topic.removeprefix("/pupil_bridge/"): rows for topic, rows in listener.rows().items()}
        return Run(
            trackers=sources,
            heard=heard,
            bag=listener.bag,
            graph=graph,
            devices=devices,
            matched_ns=matched_ns,
            published_before=published_before,
            to_realtime_ns=lambda host_ns: host_ns + offset_ns,
            exit_status=exit_status,
            shutdown_s=shutdown_s,
            log=daemon.process.errors(),
        )


def test_every_gaze_sample_of_the_companion_is_heard_once_and_in_order(run: Run) -> None:
    expected = [tuple(row["payload"]) for row in run.expected("companion")]
    heard = [(row["x"], row["y"]) for row in run.heard["companion/gaze/pixel"]]
    assert heard == expected
    assert len(heard) >= RUN_S * GAZE_HZ


def test_every_gaze_sample_of_core_is_heard_once_in_order_of_time_and_with_y_down(run: Run) -> None:
    width, height = CORE_PX
    expected = [(row["payload"][0] * width, (1 - row["payload"][1]) * height) for row in run.expected("core")]
    heard = [(row["x"], row["y"]) for row in run.heard["core/gaze/pixel"]]
    assert len(heard) == len(expected) >= RUN_S * GAZE_HZ
    for ours, true in zip(heard, expected, strict=True):
        assert ours == pytest.approx(true, abs=1e-6)


@pytest.mark.parametrize("device", ["companion", "core"])
def test_as_many_samples_are_heard_as_the_bridge_says_it_published(run: Run, device: str) -> None:
    streams = {stream["name"]: stream for stream in run.devices[device]["streams"]}
    assert streams["gaze"]["dropped"] == {}
    published = streams["gaze"]["samples_out"]["ros2"]
    after_discovery = published - run.published_before[device] - GAZE_HZ  # it takes up to a second on the other side
    assert published >= len(run.expected(device)) >= after_discovery
    for topic in ("pixel", "normalized"):
        assert len(run.heard[f"{device}/gaze/{topic}"]) == len(run.expected(device))


@pytest.mark.parametrize("device", ["companion", "core"])
def test_gaze_stamps_are_the_true_instants_in_realtime(run: Run, device: str) -> None:
    rows = run.heard[f"{device}/gaze/pixel"]
    errors_ns = [
        abs(row["stamp_ns"] - run.to_realtime_ns(true["host_ns"]))
        for row, true in zip(rows, run.expected(device), strict=True)
    ]
    limits_ns = run.limits_ns(device, [row["stamp_ns"] for row in rows])
    excesses_ns = sorted(error - limit for error, limit in zip(errors_ns, limits_ns, strict=True))
    assert excesses_ns[int(0.99 * len(excesses_ns))] < 0
    assert median(errors_ns) < ACCURACY_NS


@pytest.mark.parametrize("topic", list(ALL_TOPICS))
def test_stamps_are_in_order_and_never_later_than_the_message(run: Run, topic: str) -> None:
    rows = run.heard[topic]
    assert all(one["stamp_ns"] <= two["stamp_ns"] for one, two in pairwise(rows))
    assert all(row["stamp_ns"] <= row["received_ns"] for row in rows)


@pytest.mark.parametrize(("device", "size_px"), [("companion", COMPANION_PX), ("core", CORE_PX)])
def test_normalized_gaze_is_gaze_in_pixels_divided_by_the_size_of_the_scene(
    run: Run, device: str, size_px: tuple[int, int]
) -> None:
    pixels, normalized = run.heard[f"{device}/gaze/pixel"], run.heard[f"{device}/gaze/normalized"]
    for pixel, norm in zip(pixels, normalized, strict=True):
        assert norm["stamp_ns"] == pixel["stamp_ns"]
        assert norm["x"] == pytest.approx(pixel["x"] / size_px[0], abs=1e-12)
        assert norm["y"] == pytest.approx(pixel["y"] / size_px[1], abs=1e-12)


@pytest.mark.parametrize("device", ["companion", "core"])
def test_gaze_lies_in_the_image_plane_of_the_devices_own_scene_camera(run: Run, device: str) -> None:
    for topic in ("pixel", "normalized"):
        for row in run.heard[f"{device}/gaze/{topic}"]:
            assert row["frame_id"] == f"{device}_scene_camera_optical_frame"
            assert row["z"] == 0.0


def test_every_event_is_heard_with_its_text_its_device_time_and_its_true_stamp(run: Run) -> None:
    rows = truth(run.trackers.companion_truth, "event")
    heard = run.heard["companion/events"]
    begin = [row["payload"] for row in rows].index(heard[0]["source"])
    assert rows[begin]["host_ns"] < run.matched_ns + 1_000_000_000
    expected = rows[begin:]
    assert [row["source"] for row in heard] == [row["payload"] for row in expected]
    assert [row["time_ref_ns"] for row in heard] == [row["device_ns"] for row in expected]
    assert len(heard) >= RUN_S * 9
    limits_ns = run.limits_ns("companion", [row["stamp_ns"] for row in heard])
    for ours, true, limit_ns in zip(heard, expected, limits_ns, strict=True):
        assert abs(ours["stamp_ns"] - run.to_realtime_ns(true["host_ns"])) < limit_ns


@pytest.mark.parametrize("device", ["companion", "core"])
def test_a_time_reference_pairs_a_host_time_with_what_the_devices_clock_shows_then(run: Run, device: str) -> None:
    rows = run.heard[f"{device}/time_reference"]
    assert len(rows) >= RUN_S - 2
    limits_ns = run.limits_ns(device, [row["stamp_ns"] for row in rows])
    for row, limit_ns in zip(rows, limits_ns, strict=True):
        assert row["source"] == device
        true_ns = run.trackers.device_ns(device, run.host_ns(row["stamp_ns"]))
        assert abs(row["time_ref_ns"] - true_ns) < limit_ns


@pytest.mark.parametrize("device", ["companion", "core"])
def test_diagnostics_say_once_a_second_that_the_clock_is_locked_and_how_well(run: Run, device: str) -> None:
    rows = reported(run.heard["/diagnostics"], device)
    assert all(0.5e9 < two - one < 1.5e9 for (one, _), (two, _) in pairwise(rows))
    locked = [(stamp_ns, status) for stamp_ns, status in rows if status["values"]["state"] == "locked"]
    assert len(locked) >= RUN_S - 2
    # The simulator's streams end while the run does.
    streaming = [(stamp_ns, status) for stamp_ns, status in locked if status["level"] == 0]
    assert len(streaming) >= RUN_S - 2
    for stamp_ns, status in streaming:
        assert status["message"] == "clock locked"
        assert status["name"] == f"pupil_bridge: {device}"
        values = status["values"]
        host_ns = run.host_ns(stamp_ns)
        true_offset_s = (host_ns - run.trackers.device_ns(device, host_ns)) / 1e9
        bound_s = float(values["bound_s"])
        assert 0 < bound_s < 0.005
        # The offset is that of the last round trip, up to a second ago, and drifts by 50 ppm.
        assert float(values["offset_s"]) == pytest.approx(true_offset_s, abs=bound_s + 100e-6)
        assert abs(float(values["slew_s"])) < 0.005
        assert 0 <= float(values["precision_s"]) < 0.005
        assert 0 < float(values["rtt_min_s"]) < 0.01
        assert abs(float(values["drift_ppm"])) < 200
        assert (values["epoch"], values["samples_dropped"], values["malformed"]) == ("0", "0", "0")
    rates_hz = [float(status["values"]["gaze_hz"]) for _, status in streaming[5:-2]]
    assert median(rates_hz) == pytest.approx(GAZE_HZ, rel=0.1)


def test_diagnostics_tell_of_the_bridge_itself(run: Run) -> None:
    rows = reported(run.heard["/diagnostics"], "pupil-bridge")
    last = next(status for stamp_ns, status in rows if run.host_ns(stamp_ns) > run.matched_ns + 10**10)
    assert (last["name"], last["level"], last["message"]) == ("pupil_bridge: bridge", 0, "running")
    assert last["values"]["devices"] == "2 of 2"


def test_topics_are_reliable_and_the_node_offers_nothing_that_it_does_not_serve(run: Run) -> None:
    topics = {f"/pupil_bridge/{name}": [kind.replace("/", "/msg/")] for name, kind in ALL_TOPICS.items()}
    topics["/diagnostics"] = ["diagnostic_msgs/msg/DiagnosticArray"]
    assert run.graph["offered"].keys() == topics.keys()
    for device in ("companion", "core"):  # silent while no clock is set, and not listened to here
        topics[f"/pupil_bridge/{device}/clock_events"] = ["sensor_msgs/msg/TimeReference"]
    # Names that begin so are hidden: `ros2` has a daemon of its own that may be in this domain.
    node = run.graph["nodes"]["/pupil_bridge/pupil_bridge"]
    assert topics.items() <= node["topics"].items()
    known = {entry.name: entry.type for entry in TOPICS}
    of_ros_itself = {"/parameter_events", "/rosout", "/pupil_bridge/pupil_bridge/transition_event"}
    for name, kinds in node["topics"].items():
        if name in topics or name in of_ros_itself:
            continue
        entry = name if name in known else name.removeprefix("/pupil_bridge/").partition("/")[2]
        entry = re.sub(r"^(scene|eye0|eye1)/(?!annotations)", "{camera}/", entry)
        assert kinds == [known[entry]], name
    # Those of every managed node; without `control` no device can be asked for anything.
    assert all(name.startswith("/pupil_bridge/pupil_bridge/") for name in node["services"])
    for (offer,) in run.graph["offered"].values():
        assert (offer["reliability"], offer["durability"]) == ("RELIABLE", "VOLATILE")


def test_a_bag_of_the_messages_reads_back_equal_with_a_reader_that_knows_no_ros(run: Run) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    read = defaultdict(list)
    with Reader(run.bag) as reader:
        for connection, received_ns, cdr in reader.messages():
            message: Any = store.deserialize_cdr(cdr, connection.msgtype)
            read[connection.topic.removeprefix("/pupil_bridge/")].append((received_ns, *_as_tuple(message)))
    heard = {
        topic: [(row["received_ns"], *_values(row)) for row in sorted(rows, key=lambda row: row["received_ns"])]
        for topic, rows in run.heard.items()
    }
    assert read.keys() == heard.keys()
    for topic, messages in read.items():
        assert messages == heard[topic], topic


def _as_tuple(message: Any) -> tuple[Any, ...]:
    """A message as rosbags reads it, in the form of `_values`."""
    header = message.header
    begin = (header.stamp.sec * 1_000_000_000 + header.stamp.nanosec, header.frame_id)
    if hasattr(message, "point"):
        return (*begin, message.point.x, message.point.y, message.point.z)
    if hasattr(message, "time_ref"):
        return (*begin, message.time_ref.sec * 1_000_000_000 + message.time_ref.nanosec, message.source)
    statuses = [(s.level, s.name, s.message, s.hardware_id, {v.key: v.value for v in s.values}) for s in message.status]
    return (*begin, statuses)


def _values(row: dict[str, Any]) -> tuple[Any, ...]:
    begin = (row["stamp_ns"], row["frame_id"])
    if "x" in row:
        return (*begin, row["x"], row["y"], row["z"])
    if "source" in row:
        return (*begin, row["time_ref_ns"], row["source"])
    return (*begin, [tuple(status.values()) for status in row["status"]])


def test_sigterm_ends_the_daemon_in_time_with_status_0_and_without_a_traceback(run: Run) -> None:
    assert run.exit_status == 0
    assert run.shutdown_s < SHUTDOWN_S
    assert "Traceback" not in run.log
    assert run.log.rstrip().endswith("stopped")


# --- other runs ------------------------------------------------------------------------------------------------------


def test_topics_are_under_the_configured_namespace_and_diagnostics_tell_a_silent_device(tmp_path: Path) -> None:
    with trackers(tmp_path) as sources, listening(tmp_path, "lab/left_rig") as listener:
        config = sources.config.replace(
            'type = "ros2"',
            'type = "ros2"\nnamespace = "lab/left_rig"\nnode_name = "eyes"\n[clock]\nping_interval_s = 0.5',
        )
        with bridge(tmp_path, config) as daemon:
            assert "matched" in listener.process.json_line()
            daemon.wait_locked("companion", "core")
            wait_until(lambda: all(listener.counts().values()), "every topic is heard", interval_s=0.2)
            assert list(listener.ask("graph")["nodes"]) == ["/lab/left_rig/eyes"]
            sources.companion.popen.send_signal(signal.SIGSTOP)
            try:
                wait_until(
                    lambda: daemon.device("companion")["clock"]["state"] == "holdover",
                    "the silent companion's clock is extrapolated",
                    interval_s=0.1,
                )
                heard = listener.counts()["/diagnostics"]
                wait_until(lambda: listener.counts()["/diagnostics"] >= heard + 4, "diagnostics of two more seconds")
            finally:
                sources.companion.popen.send_signal(signal.SIGCONT)
            exit_status, _ = end(daemon.process)
        assert exit_status == 0
        rows = listener.rows()
    stale = [status for _, status in reported(rows["/diagnostics"], "companion") if status["level"] == 3]
    answers_not = [status for status in stale if "does not answer" in status["message"]]
    assert answers_not
    assert float(answers_not[-1]["values"]["bound_s"]) > 0
    assert any(status["level"] == 0 for _, status in reported(rows["/diagnostics"], "core")[-3:])
    for device in ("companion", "core"):
        frames = {row["frame_id"] for row in rows[f"/lab/left_rig/{device}/gaze/pixel"]}
        assert frames == {f"{device}_scene_camera_optical_frame"}  # named after the device, whatever the namespace


def test_a_device_that_never_came_is_stale_with_unknown_values_and_no_time_reference(tmp_path: Path) -> None:
    with socket.socket() as silent, listening(tmp_path, "pupil_bridge") as listener:
        silent.bind(("127.0.0.1", 0))  # takes no connection, so it never answers
        config = CONFIG.format(beacon_port=free_udp_port(), core_address=f"127.0.0.1:{silent.getsockname()[1]}")
        with bridge(tmp_path, config):
            assert "matched" in listener.process.json_line()
            wait_until(lambda: listener.counts()["/diagnostics"] >= 4, "two diagnostics of each device", interval_s=0.1)
            counts = listener.counts()
        rows = listener.rows()
    assert counts["/pupil_bridge/companion/time_reference"] == counts["/pupil_bridge/core/time_reference"] == 0
    for device in ("companion", "core"):
        for _, status in reported(rows["/diagnostics"], device):
            assert (status["level"], status["message"]) == (3, "not there")
            assert {status["values"][key] for key in ("offset_s", "bound_s", "precision_s", "rtt_min_s")} == {"unknown"}


def test_a_stopped_subscriber_holds_up_neither_lsl_nor_the_end_of_the_daemon(tmp_path: Path) -> None:
    stopped_for = 6 * GAZE_HZ  # samples; many times what the queues of a stopped reader take
    deadline_s = 30.0
    pulled: list[tuple[float, float]] = []
    with trackers(tmp_path) as sources, listening(tmp_path, "pupil_bridge") as listener:
        with bridge(tmp_path, sources.config) as daemon:
            assert "matched" in listener.process.json_line()
            daemon.wait_locked("companion", "core")
            (info,) = pylsl.resolve_byprop("source_id", "companion_Gaze", timeout=10)
            inlet = pylsl.StreamInlet(info, max_buflen=60, recover=False)
            try:
                assert inlet.pull_sample(timeout=10)[0] is not None
                listener.process.popen.send_signal(signal.SIGSTOP)
                until_s = pylsl.local_clock() + deadline_s
                while len(pulled) < stopped_for:
                    sample, _ = inlet.pull_sample(timeout=max(0.0, until_s - pylsl.local_clock()))
                    assert sample is not None, f"LSL has stopped after {len(pulled)} samples"
                    pulled.append((sample[0], sample[1]))
            finally:
                inlet.close_stream()
                del inlet
            # Every sample is published or counted as dropped, but for those on their way.
            for device in ("companion", "core"):
                wait_until(
                    lambda device=device: _accounted_for(daemon, device),
                    f"the samples of {device} are accounted for",
                )
            exit_status, shutdown_s = end(daemon.process)
            log = daemon.process.errors()
        listener.process.kill()
    assert exit_status == 0
    assert shutdown_s < SHUTDOWN_S
    assert "Traceback" not in log
    true = [tuple(row["payload"]) for row in truth(sources.companion_truth, "gaze")]
    begin = true.index(pulled[0])
    assert pulled == true[begin : begin + len(pulled)]


def _accounted_for(daemon: Bridge, device: str) -> bool:
    stream = daemon.stream(device, "gaze")
    gone = stream["samples_out"]["ros2"] + stream["dropped"].get("ros2_queue_full", 0)
    return bool(abs(stream["samples_out"]["lsl"] - gone) <= 2)


# --- an environment that ROS does not like ---------------------------------------------------------------------------


def test_ros_needs_no_home_and_no_directory_for_logs(tmp_path: Path) -> None:
    environment = {"HOME": "/proc/nowhere", "ROS_LOG_DIR": "/proc/nowhere"}
    config = CONFIG.format(beacon_port=free_udp_port(), core_address="127.0.0.1:1")
    with bridge(tmp_path, config, environment) as daemon:
        assert daemon.status()["sinks"] == ["lsl", "ros2"]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"ROS_DOMAIN_ID": "lab"}, "ROS_DOMAIN_ID is not an integral number"),
        ({"ROS_DOMAIN_ID": "233"}, "ROS_DOMAIN_ID is 233: it must be from 0 to 232"),
        (
            {
                "ROS_SECURITY_ENABLE": "true",
                "ROS_SECURITY_STRATEGY": "Enforce",
                "ROS_SECURITY_KEYSTORE": "/proc/nowhere",
            },
            "SECURITY ERROR",
        ),
    ],
)
def test_a_ros_that_cannot_start_is_said_in_one_line_and_lsl_goes_on(
    tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    config = CONFIG.format(beacon_port=free_udp_port(), core_address="127.0.0.1:1")
    with bridge(tmp_path, config, environment) as daemon:
        assert daemon.status()["sinks"] == ["lsl"]
        exit_status, _ = end(daemon.process)
        log = daemon.process.errors()
    assert exit_status == 0
    (line,) = [line for line in log.splitlines() if "ROS" in line]
    assert "ERROR" in line
    assert "ROS 2: cannot be started, nothing is published there: " in line
    assert reason in line
    assert "Traceback" not in log


def test_with_no_other_sink_a_ros_that_cannot_start_ends_the_daemon_with_status_78(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    config = CONFIG.format(beacon_port=free_udp_port(), core_address="127.0.0.1:1")
    path.write_text(config.replace('[[sink]]\ntype = "lsl"\n', ""), encoding="utf-8")
    command = ["env", "ROS_DOMAIN_ID=lab", sys.executable, "-m", "bridge", "run", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 2
    assert "ROS_DOMAIN_ID is not an integral number" in done.stderr
    assert "pupil-bridge: no sink can be opened" in done.stderr
