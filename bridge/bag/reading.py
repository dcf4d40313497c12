"""What ``bag-preview`` takes from a recorded bag: each device's gaze, and its scene frames. rosbags reads it, not ROS.

Topics are known by how they end, so the node's namespace can be any. Times are header stamps in ns, integers.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from bridge.errors import BridgeError

FRAMES = ("/scene/image_raw/compressed", "sensor_msgs/msg/CompressedImage")
GAZE = ("/gaze", "pupil_msgs/msg/Gaze")
PIXEL = ("/gaze/pixel", "geometry_msgs/msg/PointStamped")

FARTHEST_PX = 1e5  # beyond this a gaze is no place in or near an image
MOST_PIXELS = 50_000_000
Times = np.ndarray[tuple[int], np.dtype[np.int64]]
Values = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass
class Gaze:
    """In the order of ``stamps_ns``; ``x_px``, ``y_px`` and ``bound_s`` are NaN where not known."""

    topic: str
    stamps_ns: Times
    x_px: Values
    y_px: Values
    bound_s: Values
    unstamped: int  # messages with a stamp of zero: the device's clock was not known


@dataclass
class Device:
    """``name`` is the last part of ``prefix``, which all its topics begin with. ``frames_ns`` is in order."""

    name: str
    prefix: str
    gaze: Gaze | None = None
    frames_topic: str = ""
    frames_ns: Times = field(default_factory=lambda: np.empty(0, np.int64))
    unstamped_frames: int = 0
    logged_ns: Times = field(default_factory=lambda: np.empty(0, np.int64))  # of each frame: where in the bag it is


class Bag:
    """An open bag. ``devices`` has all that have gaze or scene frames, by prefix."""

    def __init__(self, path: Path, reader: AnyReader) -> None:
        self._path = path
        self._reader = reader
        self.devices = [self._device(prefix) for prefix in self._prefixes()]

    @property
    def topics(self) -> list[str]:
        return sorted({connection.topic for connection in self._reader.connections})

    def image(self, device: Device, index: int) -> Image.Image | None:
        """The device's frame of this index in RGB; None when its bytes are no image."""
        logged_ns = int(device.logged_ns[index])
        connections = self._find(device.prefix, FRAMES)
        with _readable(self._path):
            for connection, _, raw in self._reader.messages(connections, logged_ns, logged_ns + 1):
                if _stamp_ns(raw) == device.frames_ns[index]:
                    message: Any = self._reader.deserialize(raw, connection.msgtype)
                    return _decoded(message.data.tobytes())
        return None

    def _prefixes(self) -> list[str]:
        return sorted(
            {
                connection.topic.removesuffix(end)
                for connection in self._reader.connections
                for end, kind in (FRAMES, GAZE, PIXEL)
                if connection.topic.endswith(end) and connection.msgtype == kind
            }
        )

    def _find(self, prefix: str, what: tuple[str, str]) -> list[Connection]:
        return [c for c in self._reader.connections if (c.topic, c.msgtype) == (prefix + what[0], what[1])]

    def _device(self, prefix: str) -> Device:
        device = Device(prefix.rpartition("/")[2] or prefix, prefix)
        with _readable(self._path):
            device.gaze = self._gaze(prefix, GAZE) or self._gaze(prefix, PIXEL)
            if connections := self._find(prefix, FRAMES):
                device.frames_topic = prefix + FRAMES[0]
                times = [(_stamp_ns(raw), logged_ns) for _, logged_ns, raw in self._reader.messages(connections)]
                stamped = np.array(sorted(pair for pair in times if pair[0] > 0), np.int64).reshape(-1, 2)
                device.frames_ns, device.logged_ns = stamped[:, 0], stamped[:, 1]
                device.unstamped_frames = len(times) - len(stamped)
        return device

    def _gaze(self, prefix: str, what: tuple[str, str]) -> Gaze | None:
        """None without one message, or when the bag does not say what such a message is."""
        connections = self._find(prefix, what)
        if not connections or what[1] not in self._reader.typestore.fielddefs:
            return None
        rows = []
        for connection, _, raw in self._reader.messages(connections):
            message: Any = self._reader.deserialize(raw, connection.msgtype)
            if what is GAZE:
                row = (message.pixel_x, message.pixel_y, message.quality.bound)
            else:
                row = (message.point.x, message.point.y, math.nan)
            rows.append((_stamp_ns(raw), *row))
        if not rows:
            return None
        rows = sorted(row for row in rows if row[0] > 0) + [row for row in rows if row[0] <= 0]
        unstamped = sum(row[0] <= 0 for row in rows)
        rows = rows[: len(rows) - unstamped]
        x, y, bound = (np.array([row[i] for row in rows], np.float64) for i in (1, 2, 3))
        nowhere = ~((np.abs(x) <= FARTHEST_PX) & (np.abs(y) <= FARTHEST_PX))
        x[nowhere] = y[nowhere] = math.nan
        bound[~((bound >= 0) & (bound < math.inf))] = math.nan
        return Gaze(prefix + what[0], np.array([row[0] for row in rows], np.int64), x, y, bound, unstamped)


@contextmanager
def opened(path: Path) -> Iterator[Bag]:
    """The bag at ``path``: a file (MCAP, SQLite) or rosbag2's folder. Raises BridgeError when it is none."""
    if not path.exists():
        raise BridgeError(f"{path}: there is no such file or folder")
    if path.is_dir() and not (path / "metadata.yaml").exists():
        raise BridgeError(f"{path}: is a folder without metadata.yaml, so no bag")
    with _readable(path):
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
        reader.open()
    try:
        yield Bag(path, reader)
    finally:
        reader.close()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except BridgeError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise BridgeError(f"{path}: cannot be read as a bag: {said}") from error


def _stamp_ns(raw: bytes) -> int:
    """The stamp of a serialised message that begins with a header: CDR, four bytes before it say which end is first."""
    seconds, nanoseconds = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _decoded(data: bytes) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
            # Before it is unpacked: a few bytes can say that they are a huge image.
            return image.convert("RGB") if image.width * image.height <= MOST_PIXELS else None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
