"""Every topic of the table, recorded by another process into one bag, read back, and compared with the truth.

The recorder takes the bytes that come over the wire; two readers that share no code with rclpy read them: rosbags, and
mcap-ros2-support, which knows nothing but the definitions in the bag.
"""

from __future__ import annotations

import io
import math
import signal
import socket
import sys
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")
pytest.importorskip("mcap_ros2", reason="needs mcap-ros2-support")

from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from PIL import Image
from rosbags.rosbag2 import Reader

from bridge.clock import ClockState
from bridge.sinks.ros2.topics import TOPICS
from tests.system.harness import Process, bridge, free_port, running, simulator, truth, wait_until
from tests.system.ros2_recorder import typestore
from tests.system.test_ros2 import realtime_minus_monotonic_ns

pytestmark = pytest.mark.slow

RECORDER = Path(__file__).with_name("ros2_recorder.py")
RUN_S = 15
ACCURACY_NS = 500_000
GRAVITY = 9.80665
IMU_INTERVAL_NS = 5_000_000
NOT_HERE = {"{camera}/video"}  # the simulated cameras send JPEG; tests/sinks has H.264
CORE_PX = (1280, 720)
SURFACE = "surface_1"  # on the tape it is Surface 1
CONFIG = """
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
name = "companion"
sensors = ["gaze", "event", "imu", "scene"]
gaze.expected_rate_hz = 120
[[source]]
type = "pupil_core"
address = "{core_address}"
name = "core"
topics = ["gaze", "pupil", "fixations", "blinks", "surfaces", "annotation", "notify", "frame.world", "frame.eye.0"]
live = true
[[sink]]
type = "lsl"
[[sink]]
type = "ros2"
tf_gaze = true
"""


@dataclass(frozen=True)
class Heard:
    """One message: its topic under the namespace, when it came, what was read in it, the bytes of it."""

    received_ns: int
    message: Any

    @property
    def stamp_ns(self) -> int:
        return ns(self.message.header.stamp)


@dataclass(frozen=True)
class Run:
    bag: Path
    heard: dict[str, list[Heard]]
    types: dict[str, str]
    truths: dict[str, Path]
    to_realtime_ns: int
    status: dict[str, Any]

    def of(self, topic: str) -> list[Any]:
        return [each.message for each in self.heard[topic]]

    def true(self, device: str, stream: str) -> dict[int, dict[str, Any]]:
        """The simulator's samples by their time on the device's clock, as integers of the wire."""
        return {row["device_ns"]: row for row in truth(self.truths[device], stream)}


def ns(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def ask(process: Process, line: str) -> dict[str, Any]:
    assert process.popen.stdin is not None
    process.popen.stdin.write(f"{line}\n".encode())
    process.popen.stdin.flush()
    return process.json_line()


def need(package: str, kind: str) -> None:
    """Skips without the package. The folder pupil_msgs of this repository can be imported, too, as an empty one."""
    module = pytest.importorskip(f"{package}.msg", reason=f"needs {package}: make test builds it")
    if not hasattr(module, kind):
        pytest.skip(f"needs {package}: make test builds it")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    for package, kind in (("pupil_msgs", "Gaze"), ("tf2_msgs", "TFMessage"), ("foxglove_msgs", "ImageAnnotations")):
        need(package, kind)
    tmp_path = tmp_path_factory.mktemp("everything")
    beacon_port = free_port(socket.SOCK_DGRAM)
    truths = {"companion": tmp_path / "companion.jsonl", "core": tmp_path / "core.jsonl"}
    companion_options = ("--offset-s", "1000", "--drift-ppm", "50", "--event-rate", "10")
    bag = tmp_path / "bag"
    command = [sys.executable, str(RECORDER), "--bag", str(bag), "--under", "/pupil_bridge"]
    command += ["--also", "/tf", "/tf_static", "/diagnostics"]
    with (
        simulator(
            "companion",
            tmp_path,
            *("--beacon-port", str(beacon_port), *companion_options, "--truth", str(truths["companion"])),
        ) as (companion, _),
        simulator("core", tmp_path, "--port", "0", "--drift-ppm", "-20", "--truth", str(truths["core"])) as (core, at),
        running(command, tmp_path / "recorder.log") as recorder,
    ):
        assert recorder.json_line() == {"ready": True}
        before_ns = realtime_minus_monotonic_ns()
        config = CONFIG.format(beacon_port=beacon_port, core_address=at["address"])
        with bridge(tmp_path, config, {"ROS_PYTHON_CHECK_FIELDS": "1"}) as daemon:
            daemon.wait_locked("companion", "core")

            def notified_and_annotated() -> bool:  # which the recorder hears once it is matched with the publishers
                for action in ("start", "stop"):  # which Core notifies
                    daemon.ask("record", device="core", action=action)
                daemon.ask("annotate", device="core", text="by hand")
                counts = ask(recorder, "counts")["counts"]
                return all(counts.get(f"/pupil_bridge/core/{topic}") for topic in ("notifications", "events"))

            wait_until(notified_and_annotated, "notifications and annotations are heard", 30, interval_s=0.5)
            for topic, count in (("companion/gaze", 120), ("core/gaze", 100), ("companion/imu/data_raw", 200)):
                wait_until(
                    lambda topic=topic, count=count: (
                        ask(recorder, "counts")["counts"].get(f"/pupil_bridge/{topic}", 0) >= RUN_S * count
                    ),
                    f"{RUN_S} s of {topic}; log: {daemon.process.errors()}",
                    timeout_s=4 * RUN_S,
                    interval_s=0.25,
                )
            for process in (companion, core):
                process.popen.send_signal(signal.SIGTERM)
                process.popen.wait(10)
            wait_until(
                lambda: all(s["age_s"] > 1 for d in daemon.status()["devices"] for s in d["streams"] if s["age_s"]),
                "nothing comes any more",
                interval_s=0.1,
            )
            status = daemon.status()
            after_ns = realtime_minus_monotonic_ns()
        assert daemon.process.popen.returncode == 0, daemon.process.errors()
        assert "Traceback" not in daemon.process.errors()
        assert abs(after_ns - before_ns) < 20_000, "CLOCK_REALTIME has moved during the test"
        assert recorder.popen.stdin is not None
        recorder.popen.stdin.close()
        written = recorder.json_line(60)["written"]
    heard: dict[str, list[Heard]] = defaultdict(list)
    types = {}
    store = typestore()
    with Reader(bag) as reader:
        for connection, received_ns, cdr in reader.messages():
            topic = connection.topic.removeprefix("/pupil_bridge/")
            types[topic] = connection.msgtype
            heard[topic].append(Heard(received_ns, store.deserialize_cdr(cdr, connection.msgtype)))
    assert sum(len(each) for each in heard.values()) == written
    return Run(bag, heard, types, truths, (before_ns + after_ns) // 2, status)


def names(device: str) -> dict[str, str]:
    """The topics of the table that this device has, with their types."""
    found = {}
    for topic in TOPICS:
        cameras = {"companion": ("scene",), "core": ("scene", "eye0")}[device]
        for camera in cameras if "{camera}" in topic.name else ("",):
            found[f"{device}/{topic.name.format(camera=camera, surface=SURFACE)}"] = topic.type
    return found


def test_every_topic_of_the_table_is_heard_with_its_type(run: Run) -> None:
    heard = set(run.heard)
    for topic in TOPICS:
        if topic.name in NOT_HERE:
            continue
        found = {
            name
            for name in heard
            for device in ("companion", "core")
            for camera in ("scene", "eye0", "eye1")
            if name in (topic.name, f"{device}/{topic.name.format(camera=camera, surface=SURFACE)}")
        }
        if topic.name == "clock_events":  # no clock is set here
            continue
        assert found, f"{topic.name} was never heard"
        assert {run.types[name] for name in found} == {topic.type}
    known = {*names("companion"), *names("core"), "/diagnostics", "/tf", "/tf_static"}
    assert heard - known == set(), "what is not in the table"


@pytest.mark.parametrize("device", ["companion", "core"])
def test_frames_are_those_of_the_device(run: Run, device: str) -> None:
    frames: dict[str, set[str]] = defaultdict(set)
    for topic in TOPICS:
        for camera in ("scene", "eye0"):
            name = f"{device}/{topic.name.format(camera=camera, surface=SURFACE)}"
            if topic.frame and name in run.heard and hasattr(run.of(name)[0], "header"):
                frames[name] |= {message.header.frame_id for message in run.of(name)}
                if topic.name != "pupil":
                    assert frames[name] == {topic.frame.format(device=device, camera=camera, surface=SURFACE)}, name
    assert len(frames) >= 6
    if device == "core":
        eyes = {f"core_eye{eye}_camera_optical_frame" for eye in (0, 1)}
        assert frames["core/pupil"] == eyes
        for message in run.of("core/pupil"):
            assert message.header.frame_id == f"core_eye{message.eye}_camera_optical_frame"


def test_stamps_are_in_order_and_never_later_than_the_message(run: Run) -> None:
    for topic, rows in run.heard.items():
        # Four streams, each in order; and what leaves as it comes.
        if not hasattr(rows[0].message, "header") or topic in ("core/pupil", "core/notifications"):
            continue
        stamps = [row.stamp_ns for row in rows]
        assert all(one <= two for one, two in pairwise(stamps)), topic
        assert all(row.stamp_ns <= row.received_ns for row in rows), topic


@pytest.mark.parametrize(
    ("device", "topic", "stream"),
    [("companion", "gaze", "gaze"), ("companion", "events_detail", "event"), ("core", "pupil", "pupil.0.3d")],
)
def test_every_stamp_is_within_its_own_bound_of_the_truth_and_99_of_100_within_half_a_millisecond(
    run: Run, device: str, topic: str, stream: str
) -> None:
    true = run.true(device, stream)
    errors, excesses = [], []
    for row in run.heard[f"{device}/{topic}"]:
        quality = row.message.quality
        if topic == "pupil" and (row.message.eye, row.message.method) != (0, "3d"):
            continue
        sample = true[quality.device_time]
        error_ns = abs(row.stamp_ns - (sample["host_ns"] + run.to_realtime_ns))
        errors.append(error_ns)
        excesses.append(error_ns - quality.bound * 1e9)
        assert quality.state == ClockState.LOCKED
        assert 0 < quality.bound < 0.01
    assert len(errors) >= 0.95 * RUN_S * (10 if stream == "event" else 55)
    # What is read of CLOCK_REALTIME, and a slew towards the estimate, come on top of the bound.
    assert max(excesses) < 50_000
    limit_ns = max(ACCURACY_NS, 1e9 * max(row.message.quality.bound for row in run.heard[f"{device}/{topic}"]))
    assert sorted(errors)[int(0.99 * len(errors))] < limit_ns


def test_the_gaze_of_the_companion_is_the_same_in_all_its_forms(run: Run) -> None:
    true = run.true("companion", "gaze")
    pixels = {each.stamp_ns: each.message for each in run.heard["companion/gaze/pixel"]}
    rays = {each.stamp_ns: each.message for each in run.heard["companion/gaze/ray"]}
    compared = 0
    for each in run.heard["companion/gaze"]:
        gaze = each.message
        x, y = true[gaze.quality.device_time]["payload"]
        assert (gaze.pixel_x, gaze.pixel_y) == (x, y)
        assert (gaze.image_width, gaze.image_height) == (1088, 1080)
        assert gaze.normalized_x == pytest.approx(x / 1088)
        assert gaze.normalized_y == pytest.approx(y / 1080)
        assert gaze.worn == 0  # NDSI does not say
        assert all(math.isnan(value) for value in (gaze.confidence, gaze.point.x, gaze.right.pupil_diameter))
        if each.stamp_ns not in pixels or each.stamp_ns not in rays:
            continue  # the topics were not discovered in the same moment
        compared += 1
        pixel = pixels[each.stamp_ns].point
        assert (pixel.x, pixel.y, pixel.z) == (x, y, 0.0)
        direction = gaze.ray_direction
        assert math.hypot(direction.x, direction.y, direction.z) == pytest.approx(1.0)
        assert direction.z > 0.2  # in front of the camera
        assert math.copysign(1, direction.x) == math.copysign(1, x - _centre(run)[0]) or abs(direction.x) < 0.02
        pose = rays[each.stamp_ns].pose
        assert (pose.position.x, pose.position.y, pose.position.z) == (0.0, 0.0, 0.0)
        assert _turned_z(pose.orientation) == pytest.approx((direction.x, direction.y, direction.z), abs=1e-9)
    assert compared > 0.9 * RUN_S * 120


def _centre(run: Run) -> tuple[float, float]:
    info = run.of("companion/scene/camera_info")[0]
    return info.k[2], info.k[5]


def _turned_z(q: Any) -> tuple[float, float, float]:
    """+z turned by a quaternion."""
    return 2 * (q.x * q.z + q.w * q.y), 2 * (q.y * q.z - q.w * q.x), 1 - 2 * (q.x * q.x + q.y * q.y)


def test_the_gaze_of_core_is_in_metres_and_from_the_top_left(run: Run) -> None:
    true = run.true("core", "gaze")
    points = {each.stamp_ns: each.message.point for each in run.heard["core/gaze/point_3d"]}
    rays = {each.stamp_ns: each.message.pose for each in run.heard["core/gaze/ray"]}
    with_point = 0
    diameters, distances = [], []
    for each in run.heard["core/gaze"]:
        gaze = each.message
        x, y = true[gaze.quality.device_time]["payload"][:2]  # norm_pos: y up
        assert (gaze.normalized_x, gaze.normalized_y) == pytest.approx((x, 1 - y))
        assert (gaze.pixel_x, gaze.pixel_y) == pytest.approx((x * CORE_PX[0], (1 - y) * CORE_PX[1]))
        assert 0 <= gaze.confidence <= 1
        for eye in (gaze.right, gaze.left):
            if not math.isnan(eye.pupil_diameter):
                diameters.append(eye.pupil_diameter)
            if not math.isnan(eye.center.x):
                assert math.hypot(eye.center.x, eye.center.y, eye.center.z) < 1.0  # metres from the scene camera
        if math.isnan(gaze.point.x) or each.stamp_ns not in points or each.stamp_ns not in rays:
            continue
        with_point += 1
        point, pose = points[each.stamp_ns], rays[each.stamp_ns]
        assert (point.x, point.y, point.z) == (gaze.point.x, gaze.point.y, gaze.point.z)
        distances.append(math.hypot(point.x, point.y, point.z))
        start = (pose.position.x, pose.position.y, pose.position.z)
        along = [end - begin for end, begin in zip((point.x, point.y, point.z), start, strict=True)]
        length = math.hypot(*along)
        assert _turned_z(pose.orientation) == pytest.approx([axis / length for axis in along], abs=1e-6)
    assert with_point > 100
    assert 0.05 < median(distances) < 10  # metres
    assert 0.001 < median(diameters) < 0.01  # metres; Capture's model is wrong for some


def test_the_pupils_of_core_are_in_metres_and_name_their_eye(run: Run) -> None:
    pupils = run.of("core/pupil")
    assert {(each.eye, each.method) for each in pupils} == {(0, "2d"), (0, "3d"), (1, "2d"), (1, "3d")}
    for pupil in pupils:
        assert pupil.diameter_px >= 0
        if pupil.method == "3d" and pupil.confidence > 0.8:
            assert 0.0005 < pupil.diameter < 0.02
        if pupil.method == "2d":
            assert math.isnan(pupil.diameter)
    true = run.true("core", "pupil.0.3d")
    for pupil in pupils:
        if (pupil.eye, pupil.method) == (0, "3d"):
            x, y = true[pupil.quality.device_time]["payload"][:2]
            assert (pupil.normalized_x, pupil.normalized_y) == pytest.approx((x, 1 - y))


def test_the_imu_is_in_si_units_with_every_samples_own_stamp(run: Run) -> None:
    rows = truth(run.truths["companion"], "imu")
    heard = run.heard["companion/imu/data_raw"]
    assert len(heard) >= RUN_S * 190
    true_ns = [row["host_ns"] for row in rows]
    for each in heard:
        stamp_ns = each.stamp_ns - run.to_realtime_ns
        at = bisect_left(true_ns, stamp_ns - IMU_INTERVAL_NS // 2)
        row = rows[min(at, len(rows) - 1)]
        assert abs(stamp_ns - row["host_ns"]) <= IMU_INTERVAL_NS // 2
        accel, gyro = each.message.linear_acceleration, each.message.angular_velocity
        expected = [value * GRAVITY for value in row["payload"][:3]]
        assert (accel.x, accel.y, accel.z) == pytest.approx(expected, rel=1e-6)
        expected = [math.radians(value) for value in row["payload"][3:]]
        assert (gyro.x, gyro.y, gyro.z) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert each.message.orientation_covariance[0] == -1


@pytest.mark.parametrize(("device", "size"), [("companion", (1088, 1080)), ("core", CORE_PX)])
def test_images_are_the_cameras_own_with_their_camera_info_and_the_gaze_on_the_target(
    run: Run, device: str, size: tuple[int, int]
) -> None:
    frames = run.heard[f"{device}/scene/image_raw/compressed"]
    assert len(frames) >= RUN_S * 25
    for each in frames[:: len(frames) // 10]:
        assert each.message.format == "jpeg"
        with Image.open(io.BytesIO(bytes(each.message.data))) as picture:
            picture.load()
            assert picture.size == size
    infos = {each.stamp_ns: each.message for each in run.heard[f"{device}/scene/camera_info"]}
    shared = [each for each in frames if each.stamp_ns in infos]
    assert len(shared) > 0.9 * len(frames)
    info = infos[shared[0].stamp_ns]
    assert (info.width, info.height) == size
    assert info.k[0] > 100  # a focal length in pixels
    raw = run.of(f"{device}/scene/image_raw")[0]
    assert (raw.width, raw.height, raw.encoding, raw.step) == (*size, "rgb8", 3 * size[0])
    assert len(raw.data) == 3 * size[0] * size[1]


def test_devices_their_clocks_and_diagnostics_are_told(run: Run) -> None:
    infos = {device: run.of(f"{device}/device_info")[-1] for device in ("companion", "core")}
    assert infos["companion"].kind == "ndsi"
    assert set(infos["companion"].streams) == {"gaze", "event", "imu", "scene"}
    assert {"record", "event"} <= set(infos["companion"].functions)
    assert {"record", "calibrate", "annotate"} <= set(infos["core"].functions)
    for device in ("companion", "core"):
        assert any(each.connected for each in run.of(f"{device}/device_info"))
        clocks = [each for each in run.heard[f"{device}/clock_status"] if each.message.quality.state == 1]
        assert len(clocks) >= RUN_S - 2
        for each in clocks:
            clock = each.message
            host_ns = each.stamp_ns - run.to_realtime_ns
            assert abs(clock.quality.device_time + clock.offset - host_ns) < 1e9 * (clock.quality.bound + 1e-3)
            assert 0 < clock.rtt_min <= clock.rtt_median < 0.1
    arrays = run.of("/diagnostics")
    assert len(arrays) >= RUN_S - 2
    assert {status.name for status in arrays[-1].status} == {
        "pupil_bridge: bridge",
        "pupil_bridge: companion",
        "pupil_bridge: core",
    }
    assert all(0.5e9 < ns(b.header.stamp) - ns(a.header.stamp) < 2e9 for a, b in pairwise(arrays))


def test_transforms_lead_from_the_device_to_its_camera_and_along_the_gaze(run: Run) -> None:
    static = run.of("/tf_static")[-1].transforms
    assert {(each.header.frame_id, each.child_frame_id) for each in static} == {
        (f"{device}_link", f"{device}_scene_camera_optical_frame") for device in ("companion", "core")
    }
    for each in static:  # the camera looks along the device's x
        assert _turned_z(each.transform.rotation) == pytest.approx((1.0, 0.0, 0.0))
    moving = {transform.child_frame_id for message in run.of("/tf") for transform in message.transforms}
    assert moving == {"companion_gaze", "core_gaze"}


def test_markers_and_annotations_are_where_the_gaze_is(run: Run) -> None:
    gazes = {each.stamp_ns: each.message for each in run.heard["core/gaze"]}
    drawn = [each for each in run.heard["core/gaze/marker"] if each.stamp_ns in gazes]
    assert len(drawn) > 100
    for each in drawn:
        end = each.message.points[1]
        gaze = gazes[each.stamp_ns]
        if not math.isnan(gaze.point.x):
            assert (end.x, end.y, end.z) == (gaze.point.x, gaze.point.y, gaze.point.z)
        assert each.message.lifetime.sec + each.message.lifetime.nanosec > 0
    circles = {ns(message.circles[0].timestamp): message.circles[0] for message in run.of("core/scene/annotations")}
    shared = gazes.keys() & circles.keys()
    assert len(shared) > 100
    for stamp_ns in shared:
        place = circles[stamp_ns].position
        assert (place.x, place.y) == (gazes[stamp_ns].pixel_x, gazes[stamp_ns].pixel_y)


def test_a_reader_that_knows_only_the_bag_reads_the_same_in_it(run: Run) -> None:
    (mcap,) = run.bag.glob("*.mcap")
    read: dict[str, list[Any]] = defaultdict(list)
    with mcap.open("rb") as file:
        for _, channel, _, message in make_reader(file, decoder_factories=[DecoderFactory()]).iter_decoded_messages():
            read[channel.topic.removeprefix("/pupil_bridge/")].append(message)
    assert read.keys() == run.heard.keys()
    for topic, messages in read.items():
        ours = run.of(topic)
        assert len(messages) == len(ours), topic
        for one, other in zip(messages[:20], ours[:20], strict=True):
            assert plain(one) == plain(other), topic


def plain(value: Any) -> Any:
    """A message of either reader as tuples and numbers; NaN as a word."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    slots = getattr(value, "__slots__", None) or [
        key for key in getattr(value, "__dataclass_fields__", {}) if not key.startswith("__")
    ]
    if slots:
        # One of the readers has a message's constants among its fields.
        return {key: plain(getattr(value, key)) for key in slots if not key.startswith("_") and not key.isupper()}
    return value


def test_nothing_was_dropped_on_the_way_but_images_for_later_ones(run: Run) -> None:
    for device in run.status["devices"]:
        for stream in device["streams"]:
            video = stream["name"] in ("scene", "eye0")
            allowed = {"latest_wins", "ros2_superseded", "ros2_image_superseded"} if video else set()
            assert stream["dropped"].keys() <= allowed, f"{device['name']} {stream['name']}: {stream['dropped']}"
