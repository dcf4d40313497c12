"""``pupil-bridge bag-preview`` on bags that rosbags writes: what it says, and what is where in the picture."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from bridge.cli import main

MESSAGES = Path(__file__).parents[1] / "pupil_msgs" / "msg"
START_NS = 1_790_000_000_000_000_000
SIZE = (1088, 1080)
MARK = (255, 0, 204)
X_COLOUR = (0, 114, 178)
BAND_COLOUR = (166, 221, 206)
GAP_COLOUR = (217, 217, 217)
WIDTH_PX = 1600


def _store(with_pupil_msgs: bool = True) -> Typestore:
    store = get_typestore(Stores.ROS2_JAZZY)
    if with_pupil_msgs:
        types: dict[str, Any] = {}
        for path in MESSAGES.glob("*.msg"):
            types |= get_types_from_msg(path.read_text(), f"pupil_msgs/msg/{path.stem}")
        store.register(types)
    return store


def _place(t_s: float) -> tuple[float, float]:
    """Where the gaze is: a slow curve within the image."""
    return 544 + 350 * math.sin(0.9 * t_s), 540 + 300 * math.sin(1.7 * t_s + 1)


def _scene(t_s: float, size: tuple[int, int] = SIZE) -> bytes:
    """A grey room with a disc where the gaze is at this time."""
    image = Image.new("RGB", size, (88, 96, 104))
    draw = ImageDraw.Draw(image)
    for at in range(0, max(size), 120):
        draw.line([(at, 0), (at, size[1])], fill=(112, 120, 128), width=3)
        draw.line([(0, at), (size[0], at)], fill=(112, 120, 128), width=3)
    x, y = _place(t_s)
    draw.ellipse([x - 45, y - 45, x + 45, y + 45], fill=(225, 214, 160))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


@dataclass
class Made:
    """A device of a bag that is made. ``gaze_type`` "Gaze" or "PointStamped" or "" (none)."""

    name: str = "glasses"
    gaze_type: str = "Gaze"
    seconds: float = 4.0
    gaze_hz: float = 100.0
    frame_hz: float = 10.0
    bound_s: float = 0.00012
    size: tuple[int, int] = SIZE
    without_gaze: tuple[float, float] = (0.0, 0.0)
    frames: dict[int, bytes] = field(default_factory=dict)  # by index: other bytes than an image
    no_frames: bool = False
    stamps: bool = True


def _messages(device: Made, store: Typestore) -> list[tuple[int, str, str, Any]]:
    kinds = store.types
    found = []

    def header(t_ns: int) -> Any:
        stamp_ns = t_ns if device.stamps else 0
        time = kinds["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        return kinds["std_msgs/msg/Header"](stamp=time, frame_id=f"{device.name}_scene_camera_optical_frame")

    point, vector = kinds["geometry_msgs/msg/Point"], kinds["geometry_msgs/msg/Vector3"]
    nan = math.nan
    for i in range(int(device.seconds * device.gaze_hz) if device.gaze_type else 0):
        t_s = i / device.gaze_hz
        if device.without_gaze[0] <= t_s < device.without_gaze[1]:
            continue
        t_ns = START_NS + round(t_s * 1e9)
        x, y = _place(t_s)
        if device.gaze_type == "PointStamped":
            message = kinds["geometry_msgs/msg/PointStamped"](header=header(t_ns), point=point(x=x, y=y, z=0.0))
            found.append((t_ns, f"/bridge/{device.name}/gaze/pixel", "geometry_msgs/msg/PointStamped", message))
            continue
        nowhere = point(x=nan, y=nan, z=nan)
        eye = kinds["pupil_msgs/msg/Eye"](nowhere, vector(x=nan, y=nan, z=nan), *[nan] * 5)
        quality = kinds["pupil_msgs/msg/StampQuality"](
            state=1, epoch=0, bound=device.bound_s, precision=nan, device_time=t_ns
        )
        message = kinds["pupil_msgs/msg/Gaze"](
            header=header(t_ns),
            quality=quality,
            pixel_x=x,
            pixel_y=y,
            normalized_x=x / device.size[0],
            normalized_y=y / device.size[1],
            image_width=device.size[0],
            image_height=device.size[1],
            ray_origin=nowhere,
            ray_direction=vector(x=nan, y=nan, z=nan),
            point=nowhere,
            right=eye,
            left=eye,
            confidence=nan,
            worn=0,
        )
        found.append((t_ns, f"/bridge/{device.name}/gaze", "pupil_msgs/msg/Gaze", message))
    for i in range(0 if device.no_frames else int(device.seconds * device.frame_hz)):
        t_s = i / device.frame_hz + 0.003
        t_ns = START_NS + round(t_s * 1e9)
        data = device.frames.get(i, device.frames.get(-1)) or _scene(t_s, device.size)
        message = kinds["sensor_msgs/msg/CompressedImage"](header(t_ns), "jpeg", np.frombuffer(data, np.uint8))
        topic = f"/bridge/{device.name}/scene/image_raw/compressed"
        found.append((t_ns, topic, "sensor_msgs/msg/CompressedImage", message))
    return found


def _bag(path: Path, *devices: Made, plugin: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """A bag of these devices in the folder ``path``. Messages are logged 2 ms after their stamp."""
    store = _store(any(device.gaze_type == "Gaze" for device in devices))
    messages = sorted(
        (message for device in devices for message in _messages(device, store)), key=lambda message: message[0]
    )
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}
        for t_ns, topic, kind, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], t_ns + 2_000_000, store.serialize_cdr(message, kind))
        if not messages:
            writer.add_connection("/chatter", "std_msgs/msg/String", typestore=store)
    return path


def _file(folder: Path) -> Path:
    """The one file of messages in a bag's folder."""
    return next(path for path in folder.iterdir() if path.suffix in (".mcap", ".db3"))


def _preview(bag: Path, *options: str) -> tuple[Result, Path]:
    picture = bag.parent / "preview.png"
    return CliRunner().invoke(main, ["bag-preview", str(bag), "-o", str(picture), *options]), picture


def _drawn(bag: Path, *options: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    ended, picture = _preview(bag, *options)
    assert ended.exit_code == 0, ended.output
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == WIDTH_PX
    return pixels


def _is(pixels: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    return (np.abs(pixels.astype(int) - colour) <= 2).all(axis=-1)


def _refusal(bag: Path, *options: str) -> str:
    ended, picture = _preview(bag, *options)
    assert ended.exit_code == 1
    assert not picture.exists()
    assert ended.stderr.startswith("pupil-bridge: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def _frame_boxes(pixels: np.ndarray[Any, Any]) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the frames: runs of columns of the scene's grey, in the upper half."""
    scene = (np.abs(pixels.astype(int) - (88, 96, 104)) <= 6).all(axis=-1)
    rows = np.flatnonzero(scene.sum(axis=1) > 100)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(scene[top:bottom].sum(axis=0) > 50)
    # Lines of the grid are a few columns wide, what is between two frames 20.
    splits = np.split(columns, np.flatnonzero(np.diff(columns) > 12) + 1)
    return [(int(run[0]), top, int(run[-1]) + 1, bottom) for run in splits if len(run) > 50]


def _centre(mask: np.ndarray[Any, Any]) -> tuple[float, float]:
    ys, xs = np.nonzero(mask)
    return float(xs.mean()), float(ys.mean())


@pytest.mark.parametrize("gaze_type", ["Gaze", "PointStamped"])
@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "file"])
def test_the_nearest_gaze_is_marked_where_it_was_in_each_frame(
    tmp_path: Path, gaze_type: str, plugin: StoragePlugin, as_folder: bool
) -> None:
    folder = _bag(tmp_path / "bag", Made(gaze_type=gaze_type), plugin=plugin)
    pixels = _drawn(folder if as_folder else _file(folder))
    boxes = _frame_boxes(pixels)
    assert len(boxes) == 4
    for number, (left, top, right, bottom) in enumerate(boxes):
        # Frame i is at i/10 s + 3 ms; the four that are shown lie around 1/8, 3/8, 5/8, 7/8 of the time of all.
        index = round((2 * number + 1) / 8 * 39)
        marked = _is(pixels[top:bottom, left:right], MARK)
        assert marked.sum() > 60
        x, y = _centre(marked)
        scale = SIZE[0] / (right - left)
        candidates = [_place(i / 10) for i in (index - 1, index, index + 1)]
        away_px = min(math.hypot(x * scale - cx, y * scale - cy) for cx, cy in candidates)
        assert away_px < 8


def test_the_mark_is_of_the_gaze_nearest_in_time_not_of_the_newest(tmp_path: Path) -> None:
    # Gaze 40 ms apart around one frame at 3 ms: the nearest is the first, far from the others on the picture.
    pixels = _drawn(_bag(tmp_path / "bag", Made(seconds=0.13, gaze_hz=25, frame_hz=8)), "--frames", "1")
    (left, top, right, bottom) = _frame_boxes(pixels)[0]
    x, y = _centre(_is(pixels[top:bottom, left:right], MARK))
    scale = SIZE[0] / (right - left)
    distances = [math.hypot(x * scale - _place(i / 25)[0], y * scale - _place(i / 25)[1]) for i in range(3)]
    assert distances[0] < 4
    assert min(distances[1:]) > 10


def test_a_large_bound_reaches_along_the_trail(tmp_path: Path) -> None:
    def marked(bound_s: float) -> int:
        pixels = _drawn(_bag(tmp_path / f"{bound_s}", Made(bound_s=bound_s)), "--frames", "1")
        (left, top, right, bottom) = _frame_boxes(pixels)[0]
        return int(_is(pixels[top:bottom, left:right], MARK).sum())

    assert marked(0.06) > marked(0.00012) + 25


def test_the_time_line_shows_the_gap_and_nothing_in_it(tmp_path: Path) -> None:
    pixels = _drawn(_bag(tmp_path / "bag", Made(without_gaze=(1.0, 2.0))))
    lower = pixels[-400:]
    gap = _is(lower, GAP_COLOUR).sum(axis=0) > 100
    columns = np.flatnonzero(gap)
    plot_px = WIDTH_PX - 120  # from 0.9 inches to 0.3 before the right edge
    assert (columns[0] - 90) / plot_px * 3.99 == pytest.approx(0.99, abs=0.02)
    assert (columns[-1] - 90) / plot_px * 3.99 == pytest.approx(2.0, abs=0.02)
    inside = slice(int(columns[0]) + 8, int(columns[-1]) - 8)
    assert not _is(lower[:, inside], X_COLOUR).any()
    assert _is(lower, X_COLOUR).sum() > 500
    assert _is(lower, BAND_COLOUR).sum() > 500


def test_a_bag_without_pupil_msgs_has_no_bounds_and_is_drawn(tmp_path: Path) -> None:
    pixels = _drawn(_bag(tmp_path / "bag", Made(gaze_type="PointStamped")))
    assert _is(pixels, BAND_COLOUR).sum() < 300  # in the legend alone


def test_every_device_has_a_row_and_one_can_be_chosen(tmp_path: Path) -> None:
    bag = _bag(tmp_path / "bag", Made("left_person"), Made("right_person", size=(1280, 720)))
    both, one = _drawn(bag), _drawn(bag, "--device", "right_person")
    assert both.shape[0] > 1.7 * one.shape[0]
    ended, _ = _preview(bag, "--device", "right_person")
    assert "right_person: 400 gaze, 40 frames, of which 4 are shown" in ended.output
    assert "left_person" not in ended.output
    assert "has no device nobody, but left_person, right_person" in _refusal_of(bag, "nobody")


def _refusal_of(bag: Path, device: str) -> str:
    (bag.parent / "preview.png").unlink()
    return _refusal(bag, "--device", device)


def test_without_frames_there_is_the_time_line(tmp_path: Path) -> None:
    ended, _ = _preview(_bag(tmp_path / "with", Made()))
    assert ended.exit_code == 0
    tall = _drawn(_bag(tmp_path / "with2", Made())).shape[0]
    pixels = _drawn(_bag(tmp_path / "bag", Made(no_frames=True)))
    assert pixels.shape[0] < tall - 200
    assert _is(pixels, X_COLOUR).sum() > 500


def test_broken_jpegs_are_passed_over_for_their_neighbours(tmp_path: Path) -> None:
    whole = _scene(0)
    broken = {i: [b"", b"no image", whole[: len(whole) // 2], whole[:20]][i % 4] for i in range(0, 40, 2)}
    pixels = _drawn(_bag(tmp_path / "bag", Made(frames=broken)))
    assert len(_frame_boxes(pixels)) == 4


def test_a_bag_whose_jpegs_are_all_broken_has_its_time_line(tmp_path: Path) -> None:
    ended, picture = _preview(_bag(tmp_path / "bag", Made(frames={-1: b"no image"})))
    assert ended.exit_code == 0
    assert "40 frames, of which 0 are shown" in ended.output
    assert picture.exists()


def test_a_jpeg_that_claims_to_be_huge_is_not_unpacked(tmp_path: Path) -> None:
    whole = bytearray(_scene(0, (64, 64)))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = b"\xff\xff\xff\xff"
    ended, _ = _preview(_bag(tmp_path / "bag", Made(frames={-1: bytes(whole)})))
    assert ended.exit_code == 0
    assert "of which 0 are shown" in ended.output


def test_zero_stamps_of_one_device_do_not_spoil_the_other(tmp_path: Path) -> None:
    bag = _bag(tmp_path / "bag", Made("known"), Made("unknown", stamps=False))
    ended, _ = _preview(bag)
    assert ended.exit_code == 0
    assert "known: 400 gaze" in ended.output
    assert "unknown" not in ended.output


def test_a_bag_of_zero_stamps_alone_is_refused(tmp_path: Path) -> None:
    assert "has a stamp of zero" in _refusal(_bag(tmp_path / "bag", Made(stamps=False)))


def test_a_bag_without_gaze_is_refused_with_what_it_has(tmp_path: Path) -> None:
    said = _refusal(_bag(tmp_path / "bag", Made(gaze_type="")))
    assert "has no gaze" in said
    assert "/bridge/glasses/scene/image_raw/compressed" in said


def test_an_empty_bag_is_refused(tmp_path: Path) -> None:
    assert "has no gaze" in _refusal(_bag(tmp_path / "bag"))


def test_what_is_no_bag_is_refused(tmp_path: Path) -> None:
    text, folder = tmp_path / "text.mcap", tmp_path / "folder"
    text.write_text("no bag\n" * 100)
    (tmp_path / "empty.mcap").touch()
    folder.mkdir()
    assert "there is no such file" in _refusal(tmp_path / "none.mcap")
    assert "cannot be read as a bag" in _refusal(text)
    assert "cannot be read as a bag" in _refusal(tmp_path / "empty.mcap")
    assert "without metadata.yaml" in _refusal(folder)


def test_a_bag_that_is_cut_off_anywhere_is_refused_or_drawn_but_never_a_traceback(tmp_path: Path) -> None:
    whole = _file(_bag(tmp_path / "bag", Made(seconds=0.5))).read_bytes()
    cut = tmp_path / "cut.mcap"
    for parts in range(1, 8):
        cut.write_bytes(whole[: len(whole) * parts // 8])
        ended, _ = _preview(cut)
        assert ended.exception is None or isinstance(ended.exception, SystemExit)
        assert ended.exit_code in (0, 1)


def test_a_bag_with_bytes_turned_is_refused_or_drawn_but_never_a_traceback(tmp_path: Path) -> None:
    whole = _file(_bag(tmp_path / "bag", Made(seconds=0.3, frame_hz=5))).read_bytes()
    turned = tmp_path / "turned.mcap"
    random = np.random.default_rng(5)
    for _ in range(15):
        bytes_now = bytearray(whole)
        for at in random.integers(0, len(whole), 20):
            bytes_now[at] ^= 1 << int(random.integers(8))
        turned.write_bytes(bytes_now)
        ended, _ = _preview(turned, "--frames", "1")
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
        assert ended.exit_code in (0, 1)


@pytest.mark.parametrize("name", ["preview.txt", "preview", "none/preview.png"])
def test_a_picture_that_cannot_be_is_refused_before_the_bag_is_read(tmp_path: Path, name: str) -> None:
    bag = _bag(tmp_path / "bag", Made(seconds=0.2))
    ended = CliRunner().invoke(main, ["bag-preview", str(bag), "-o", str(tmp_path / name)])
    assert ended.exit_code == 1
    assert ended.stderr.count("\n") == 1


def test_names_with_signs_of_formulas_are_drawn_as_they_are(tmp_path: Path) -> None:
    folder = _bag(tmp_path / "$x^{_\u00e9", Made(name="a$b_{", seconds=0.3))
    _drawn(folder)
