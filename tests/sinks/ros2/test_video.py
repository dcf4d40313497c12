"""A camera's topics: the device's own bytes, the intrinsics that belong to them, and raw images on demand."""

from __future__ import annotations

import io
import logging
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from PIL import Image as Pillow

from bridge.sinks.ros2 import video
from bridge.sinks.ros2.stage import FRAMES_WAITING, VideoOutput
from bridge.sinks.ros2.video import ImageThread, VideoTopics
from bridge.streams import Camera, Frame, Sample, StreamDescriptor, StreamKind, VideoLayout
from tests.sinks.ros2.lab import DEVICE, MAPPED, Notes, is_there, now_ns, quiet_lark, realtime_ns, stamp_ns, until

pytestmark = quiet_lark

SIZE = WIDTH, HEIGHT = 24, 16
FRAME_ID = "tracker_scene_camera_optical_frame"
K = (100.0, 0.0, 12.0, 0.0, 110.0, 8.0, 0.0, 0.0, 1.0)
R = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
P = (90.0, 0.0, 12.0, 0.0, 0.0, 95.0, 8.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CAMERA = Camera("test", WIDTH, HEIGHT, "equidistant", (0.1, 0.2, 0.3, 0.4), K, R, P)


def picture(size: tuple[int, int] = SIZE, seed: int = 0) -> Pillow.Image:
    width, height = size
    return Pillow.frombytes("RGB", size, random.Random(seed).randbytes(width * height * 3))


def jpeg(size: tuple[int, int] = SIZE, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    picture(size, seed).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def frame(data: bytes, kind: str = "jpeg", size: tuple[int, int] = SIZE) -> Frame:
    return Frame(kind, *size, 1, data)


def stream(camera: str = "scene") -> StreamDescriptor:
    return StreamDescriptor(DEVICE, camera, StreamKind.VIDEO, "Scene", "Video", layout=VideoLayout(camera))


class Case:
    """One camera on paper."""

    def __init__(self, desk: Notes, images: ImageThread, intrinsics: Camera | None = CAMERA) -> None:
        self.desk = desk
        self.dropped: Counter[str] = Counter()
        self.stream = stream()
        self.topics = VideoTopics(desk, self.stream, VideoLayout("scene", intrinsics), images, self.dropped)

    def publish(self, shown: Frame, host_ns: int | None = None) -> None:
        self.host_ns = now_ns() if host_ns is None else host_ns
        self.topics.publish(Sample(self.stream, 5, self.host_ns, shown), MAPPED, self.host_ns)

    def raw(self, count: int = 1) -> list[Any]:
        found = self.desk["scene/image_raw"]
        until(lambda: len(found) >= count, f"{count} raw images; dropped: {self.dropped}")
        return found


@pytest.fixture
def images() -> Iterator[ImageThread]:
    made = ImageThread()
    yield made
    made.close()


@pytest.fixture
def case(desk: Notes, images: ImageThread) -> Case:
    return Case(desk, images)


# --- the device's own bytes ------------------------------------------------------------------------------------------


def test_a_jpeg_goes_out_byte_for_byte(case: Case) -> None:
    data = jpeg()
    case.desk.nobody_but("scene/image_raw/compressed")
    case.publish(frame(data))
    (found,) = case.desk["scene/image_raw/compressed"]
    assert bytes(found.data) == data
    assert (found.format, found.header.frame_id) == ("jpeg", FRAME_ID)
    assert stamp_ns(found) == pytest.approx(realtime_ns(case.host_ns), abs=10**6)


@pytest.mark.parametrize("data", [b"", b"no JPEG at all", bytes(range(256)) * 100])
def test_bytes_that_are_no_jpeg_go_out_untouched_as_well(case: Case, data: bytes) -> None:
    case.desk.nobody_but("scene/image_raw/compressed")
    case.publish(frame(data))
    assert bytes(case.desk["scene/image_raw/compressed"][0].data) == data


def test_h264_goes_out_byte_for_byte_on_a_topic_of_its_own(case: Case) -> None:
    data = b"\0\0\0\1\x67" + bytes(range(256))
    case.publish(frame(data, "h264"))
    case.publish(frame(data[:20], "h264"))
    first, second = case.desk["scene/video"]
    assert (bytes(first.data), bytes(second.data), first.format) == (data, data[:20], "h264")
    if is_there("foxglove_msgs/CompressedVideo"):
        stamp, frame_id = second.timestamp, second.frame_id
    else:
        stamp, frame_id = second.header.stamp, second.header.frame_id
    assert frame_id == FRAME_ID
    assert stamp.sec * 10**9 + stamp.nanosec == pytest.approx(realtime_ns(case.host_ns), abs=10**6)
    assert case.desk["scene/image_raw/compressed"] == case.desk["scene/image_raw"] == []
    assert case.desk.papers["scene/video"] in case.topics.publishers


def test_without_foxgloves_messages_h264_is_a_compressed_image(desk: Notes, images: ImageThread) -> None:
    desk.packages = frozenset()
    case = Case(desk, images)
    case.publish(frame(b"\0\0\0\1\x67", "h264"))
    (found,) = desk["scene/video"]
    assert (type(found).__name__, found.format, found.header.frame_id) == ("CompressedImage", "h264", FRAME_ID)


def test_nothing_is_copied_without_a_subscriber(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.publish(frame(b"x", "h264"))  # with the first one its topic is made
    case.desk.nobody_but()
    before = sum(len(paper.messages) for paper in case.desk.papers.values())
    monkeypatch.setattr(video.array, "array", lambda *_: pytest.fail("bytes were copied for nobody"))
    for kind in ("jpeg", "h264", "gray", "bgr", "yuv"):
        case.publish(frame(b"x", kind))
    assert sum(len(paper.messages) for paper in case.desk.papers.values()) == before


# --- camera_info -----------------------------------------------------------------------------------------------------


def test_camera_info_goes_with_each_image_under_the_same_stamp(case: Case) -> None:
    case.publish(frame(jpeg()))
    case.publish(frame(jpeg()))
    infos, shown = case.desk["scene/camera_info"], case.desk["scene/image_raw/compressed"]
    assert [info.header for info in infos] == [each.header for each in shown]
    info = infos[0]
    assert (info.width, info.height, info.distortion_model) == (*SIZE, "equidistant")
    assert [list(x) for x in (info.d, info.k, info.r, info.p)] == [list(x) for x in (CAMERA.d, K, R, P)]


def test_of_another_size_no_camera_info_is_published_and_that_is_said_once(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        case.publish(frame(jpeg((32, 32)), size=(32, 32)))
    assert case.desk["scene/camera_info"] == []
    assert len(case.desk["scene/image_raw/compressed"]) == 3
    (line,) = [record.message for record in caplog.records if "intrinsics" in record.message]
    assert "tracker: the scene camera sends 32 x 32, but its intrinsics are for 24 x 16" in line
    case.publish(frame(jpeg()))
    assert len(case.desk["scene/camera_info"]) == 1


def test_without_intrinsics_there_is_no_topic_for_them(desk: Notes, images: ImageThread) -> None:
    Case(desk, images, intrinsics=None).publish(frame(jpeg()))
    assert "scene/camera_info" not in desk.papers


# --- raw images ------------------------------------------------------------------------------------------------------


def test_a_raw_image_is_the_decoded_jpeg(case: Case) -> None:
    data = jpeg()
    case.publish(frame(data))
    (found,) = case.raw()
    expected = Pillow.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert bytes(found.data) == expected
    assert (found.width, found.height, found.encoding, found.step) == (*SIZE, "rgb8", WIDTH * 3)
    assert (found.header.frame_id, found.is_bigendian) == (FRAME_ID, 0)
    assert found.header.stamp == case.desk["scene/image_raw/compressed"][0].header.stamp


def test_a_gray_jpeg_becomes_a_colour_image(case: Case) -> None:
    buffer = io.BytesIO()
    picture().convert("L").save(buffer, "JPEG")
    case.publish(frame(buffer.getvalue()))
    (found,) = case.raw()
    assert (found.encoding, len(found.data)) == ("rgb8", WIDTH * HEIGHT * 3)


@pytest.mark.parametrize(("kind", "encoding", "channels"), [("gray", "mono8", 1), ("bgr", "bgr8", 3)])
def test_raw_bytes_go_out_as_they_are(case: Case, kind: str, encoding: str, channels: int) -> None:
    data = random.Random(1).randbytes(WIDTH * HEIGHT * channels)
    case.publish(frame(data, kind))
    (found,) = case.raw()
    assert (bytes(found.data), found.encoding, found.step) == (data, encoding, WIDTH * channels)
    assert case.desk["scene/image_raw/compressed"] == []


# Y, U, V of JPEG's colours (JFIF: R = Y + 1.402 (V - 128), B = Y + 1.772 (U - 128), G from what is left of Y), by hand.
BLACK, WHITE, RED, GREEN, BLUE = (0, 128, 128), (255, 128, 128), (76, 85, 255), (150, 44, 21), (29, 255, 107)
COLOURS = {BLACK: (0, 0, 0), WHITE: (255, 255, 255), RED: (254, 0, 0), GREEN: (0, 255, 1), BLUE: (0, 0, 254)}
# Of each subsampling an image whose colours change where its chroma does: its size, its luma and chroma in rows of
# colours' values, its pixels.
YUV = {
    "4:2:2": ((4, 2), [[RED, RED, BLUE, BLUE], [GREEN, GREEN, WHITE, BLACK]], [[RED, BLUE], [GREEN, WHITE]]),
    "4:2:2, odd": ((3, 2), [[RED, RED, BLUE], [GREEN, GREEN, WHITE]], [[RED, BLUE], [GREEN, WHITE]]),
    "4:2:0": ((4, 4), [[RED, RED, BLUE, BLUE]] * 2 + [[GREEN, GREEN, WHITE, BLACK]] * 2, [[RED, BLUE], [GREEN, WHITE]]),
    "4:2:0, odd": ((3, 3), [[RED, RED, BLUE]] * 2 + [[GREEN, GREEN, BLACK]], [[RED, BLUE], [GREEN, WHITE]]),
    "4:4:4": ((3, 2), [[RED, BLUE, GREEN], [WHITE, BLACK, RED]], [[RED, BLUE, GREEN], [WHITE, BLACK, RED]]),
    "one pixel": ((1, 1), [[GREEN]], [[GREEN]]),
    "one column": ((1, 2), [[GREEN], [BLUE]], [[GREEN], [BLUE]]),
}


@pytest.mark.parametrize("kind", YUV)
def test_planes_of_yuv_become_a_colour_image(case: Case, kind: str) -> None:
    size, pixels, chroma = YUV[kind]
    planes = [[colour[0] for row in pixels for colour in row]]
    planes += [[colour[plane] for row in chroma for colour in row] for plane in (1, 2)]
    case.publish(frame(bytes(value for plane in planes for value in plane), "yuv", size))
    (found,) = case.raw()
    assert (found.width, found.height, found.encoding, found.step) == (*size, "rgb8", size[0] * 3)
    expected = [value for row in pixels for colour in row for value in COLOURS[colour]]
    assert list(found.data) == pytest.approx(expected, abs=1)
    assert stamp_ns(found) == pytest.approx(realtime_ns(case.host_ns), abs=10**6)
    assert case.desk["scene/image_raw/compressed"] == []


def test_planes_of_yuv_of_a_large_image_are_those_of_the_jpeg_that_they_are_made_of(case: Case) -> None:
    size = 640, 480
    image = Pillow.radial_gradient("L").resize(size)
    rgb = Pillow.merge("RGB", (image, image.transpose(Pillow.Transpose.ROTATE_180), image.point(lambda v: 255 - v)))
    y, u, v = rgb.convert("YCbCr").split()
    half = [plane.resize((320, 480), Pillow.Resampling.BOX).tobytes() for plane in (u, v)]
    case.publish(frame(y.tobytes() + half[0] + half[1], "yuv", size))
    (found,) = case.raw()
    assert list(found.data) == pytest.approx(list(rgb.tobytes()), abs=6)  # what half of the colours lose, and rounding


def bomb() -> bytes:
    """A small JPEG whose header says that it has 65500 x 65500 pixels."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (65500).to_bytes(2, "big") * 2
    return bytes(data)


BROKEN = {
    "empty": frame(b""),
    "no JPEG": frame(b"hello" * 50),
    "a PNG": frame(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "cut off": frame(jpeg()[:300]),
    "another size than was said": frame(jpeg((32, 32))),
    "a bomb": frame(bomb()),
    "a bomb that is announced": frame(bomb(), size=(65500, 65500)),
    "too few gray bytes": frame(b"x", "gray"),
    "too many gray bytes": frame(bytes(WIDTH * HEIGHT + 1), "gray"),
    "too few bytes of colours": frame(bytes(WIDTH * HEIGHT), "bgr"),
    "too few bytes of planes": frame(bytes(WIDTH * HEIGHT * 2 - 1), "yuv"),
    "too many bytes of planes": frame(bytes(WIDTH * HEIGHT * 3 + 1), "yuv"),
    "planes of nothing": frame(b"", "yuv", (0, 0)),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_image_is_counted_and_the_next_image_is_shown(case: Case, broken: str) -> None:
    case.publish(BROKEN[broken])
    until(lambda: case.dropped["image_undecodable"] == 1, "it is counted")
    case.publish(frame(jpeg()))
    assert len(case.raw()) == 1


def test_jpegs_that_are_changed_at_random_never_end_the_thread(case: Case) -> None:
    rng, data = random.Random(5), jpeg((64, 64))
    thread = None
    for number in range(300):
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 12)):
            broken[rng.randrange(2, 700)] = rng.randrange(256)
        case.topics._images.show(case.topics, frame(bytes(broken), size=(64, 64)), number)
        thread = thread or case.topics._images._thread
        until(lambda: not case.topics._images._latest, "it is taken")
    assert thread is not None
    assert thread.is_alive()
    shown = len(case.desk["scene/image_raw"])
    case.publish(frame(jpeg()))
    case.raw(shown + 1)


class Slow:
    """Lets raw images out when the test says so."""

    def __init__(self, case: Case) -> None:
        self.entered, self.go = threading.Event(), threading.Semaphore(0)
        self._publish = case.topics.raw.publish
        case.topics.raw.publish = self._wait

    def _wait(self, message: Any) -> None:
        self.entered.set()
        assert self.go.acquire(timeout=20)
        self._publish(message)


def test_the_latest_image_wins_and_those_that_it_overtakes_are_counted(case: Case) -> None:
    slow = Slow(case)
    case.publish(frame(jpeg(seed=0)), host_ns=now_ns())
    assert slow.entered.wait(20)
    for seed in range(1, 6):
        case.publish(frame(jpeg(seed=seed)))
    assert case.dropped == {"image_superseded": 4}
    slow.go.release(2)
    first, last = case.raw(2)
    expected = [Pillow.open(io.BytesIO(jpeg(seed=seed))).convert("RGB").tobytes() for seed in (0, 5)]
    assert [bytes(first.data), bytes(last.data)] == expected
    assert len(case.desk["scene/image_raw/compressed"]) == 6  # which did not wait


def test_a_camera_that_is_closed_shows_nothing_more_and_waits_for_what_is_being_shown(case: Case) -> None:
    slow = Slow(case)
    case.publish(frame(jpeg(seed=0)))
    assert slow.entered.wait(20)
    case.publish(frame(jpeg(seed=1)))
    closing = threading.Thread(target=case.topics.close)
    closing.start()
    until(lambda: not case.topics._images._latest, "what waits is forgotten")
    assert closing.is_alive()
    slow.go.release(2)
    closing.join(20)
    assert not closing.is_alive()
    assert len(case.desk["scene/image_raw"]) == 1


# --- the warning about Fast DDS --------------------------------------------------------------------------------------

LARGE = (640, 480)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "Fast DDS" in record.message]


@pytest.fixture
def _no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(video.PROFILE_VARIABLE, raising=False)
    monkeypatch.setattr(video.rclpy.utilities, "get_rmw_implementation_identifier", lambda: "rmw_fastrtps_cpp")


@pytest.mark.usefixtures("_no_profile")
def test_large_raw_images_are_warned_of_once_with_what_helps(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.publish(frame(jpeg()))
    case.raw(1)
    assert warnings(caplog) == []
    for _ in range(3):
        case.publish(frame(jpeg(LARGE), size=LARGE))
    (line,) = warnings(caplog)
    assert line.startswith("tracker: somebody subscribes to raw images")
    assert video.PROFILE_VARIABLE in line
    assert "fastdds-large-images.xml" in line


@pytest.mark.usefixtures("_no_profile")
@pytest.mark.parametrize("why", ["a profile", "another middleware", "no subscriber"])
def test_who_has_no_need_of_the_warning_is_not_warned(
    case: Case, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "a profile":
        monkeypatch.setenv(video.PROFILE_VARIABLE, "/some/profile.xml")
    elif why == "another middleware":
        monkeypatch.setattr(video.rclpy.utilities, "get_rmw_implementation_identifier", lambda: "rmw_zenoh_cpp")
    else:
        case.desk.nobody_but("scene/image_raw/compressed")
    with caplog.at_level(logging.WARNING):
        case.publish(frame(jpeg(LARGE), size=LARGE))
    assert warnings(caplog) == []


# --- before the publishing thread ------------------------------------------------------------------------------------


class Tokens:
    """A sink whose publishing thread is the test's: it takes tokens."""

    active = True

    def __init__(self, room: int = 1000) -> None:
        self.worker = self
        self.room = room
        self.tokens: list[VideoOutput] = []

    def put(self, *_: object) -> None:
        pytest.fail("frames are not put into the queue")

    def put_token(self, output: VideoOutput) -> bool:
        if len(self.tokens) >= self.room:
            return False
        self.tokens.append(output)
        return True


def sample(number: int) -> Sample:
    return Sample(stream(), number, 0, frame(b"x"))


def test_at_most_two_frames_of_a_camera_wait_and_older_ones_go_and_are_counted() -> None:
    sink = Tokens()
    output = VideoOutput(sink, stream())  # type: ignore[arg-type]
    for number in range(10):
        output.push(sample(number), MAPPED, 0)
    assert output.dropped == {"superseded": 10 - FRAMES_WAITING}
    waiting = [found[0].device_ns for _ in sink.tokens if (found := output.next()) is not None]
    assert waiting == [8, 9]
    assert output.next() is None


def test_a_frame_for_which_the_queue_has_no_room_is_dropped_and_counted() -> None:
    sink = Tokens(room=1)
    output = VideoOutput(sink, stream())  # type: ignore[arg-type]
    output.push(sample(0), MAPPED, 0)
    output.push(sample(1), MAPPED, 0)
    assert output.dropped == {"queue_full": 1}
    assert [output.next()[0].device_ns, output.next()] == [0, None]  # type: ignore[index]


class Interrupted(deque[Any]):
    """Frames of which the publishing thread takes one right after the loop has looked how many there are."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        super().__init__()
        self.interrupt = interrupt

    def __len__(self) -> int:
        count = super().__len__()
        self.interrupt()
        return count


def test_frames_and_their_turns_stay_as_many_though_one_is_taken_while_another_comes() -> None:
    """A frame without a turn would wait for ever, and with two of them the camera would be silent."""
    sink = Tokens()
    output = VideoOutput(sink, stream())  # type: ignore[arg-type]
    for number in range(FRAMES_WAITING):
        output.push(sample(number), MAPPED, 0)
    taking = threading.Thread(target=lambda: (sink.tokens.pop(), output.next()))

    def interrupt() -> None:
        frames.interrupt = lambda: None
        taking.start()
        taking.join(0.2)  # it may be made to wait

    frames = Interrupted(interrupt)
    frames.extend(output._frames)
    output._frames = frames
    output.push(sample(2), MAPPED, 0)
    taking.join()
    assert deque.__len__(frames) == len(sink.tokens)
