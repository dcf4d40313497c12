"""The cameras of the simulated Pupil Capture: when each takes an image, and what is to be seen in it.

In the scene camera's image a disc is where the person looks; in an eye camera's image it is the pupil. Both are where
the datum says that was stamped nearest to the image.
"""

from __future__ import annotations

import heapq
import itertools
import zlib
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from bridge.simulators.core_images import Picture
from bridge.simulators.tape import Tape

SCENE_PX: Final = (1280, 720)
EYE_PX: Final = (192, 192)
# What the real ones of the tape have, about: 27 kB and 4 kB.
SCENE_PADDING_BYTES: Final = 15_000
EYE_PADDING_BYTES: Final = 3_000
SCENE_AGE_NS: Final = 25_000_000
EYE_AGE_NS: Final = 8_000_000


@dataclass(frozen=True, slots=True)
class Exposure:
    """An image: when it was taken, and when it leaves Capture."""

    at_ns: int
    camera: Camera
    index: int
    host_ns: int


class Positions:
    """Where the datums of some streams of a tape are, at every instant."""

    def __init__(self, tape: Tape, prefix: str) -> None:
        found = sorted(
            (record.instant_ns % tape.loop_ns, record.position[:2])
            for record in tape.records
            if record.stream is not None and record.stream.startswith(prefix) and record.position
            if record.instant_ns is not None
        )
        self._instants_ns = [instant_ns for instant_ns, _ in found]
        self._positions = [position for _, position in found]
        self._loop_ns = tape.loop_ns

    def at(self, tape_ns: int) -> tuple[float, float]:
        """norm_pos nearest to an instant of the tape, in whatever turn of its loop; the middle without a datum."""
        if not self._positions:
            return 0.5, 0.5
        instant_ns = tape_ns % self._loop_ns
        after = bisect(self._instants_ns, instant_ns) % len(self._instants_ns)
        x, y = min((self._distance_ns(index, instant_ns), self._positions[index]) for index in (after - 1, after))[1]
        return x, y

    def _distance_ns(self, index: int, instant_ns: int) -> int:
        apart_ns = abs(self._instants_ns[index] - instant_ns)
        return min(apart_ns, self._loop_ns - apart_ns)


class Camera:
    """One camera and what is in front of it."""

    def __init__(
        self, topic: str, size_px: tuple[int, int], age_ns: int, positions: Positions, picture: Picture
    ) -> None:
        self.topic = topic
        self.age_ns = age_ns
        self._width_px, self._height_px = size_px
        self._positions = positions
        self._picture = picture

    def image(
        self, exposure: Exposure, tape_ns: int, device_s: float, image_format: str
    ) -> tuple[list[bytes], tuple[float, ...]]:
        """The message, and (index, CRC-32 of the image, x, y of the disc in pixels from the top left)."""
        x, y = self._positions.at(tape_ns)
        x_px, y_px = x * self._width_px, (1 - y) * self._height_px
        data = self._picture.draw(x_px, y_px, image_format)
        head = {
            "topic": self.topic,
            "width": self._width_px,
            "height": self._height_px,
            "index": exposure.index,
            "timestamp": device_s,
            "format": image_format,
        }
        truth = (float(exposure.index), float(zlib.crc32(data)), x_px, y_px)
        return [self.topic.encode(), msgspec.msgpack.encode(head), data], truth


def cameras(tape: Tape, prefixes: Sequence[str]) -> list[Camera]:
    """Scene and eyes, those whose topic begins with one of ``prefixes``; all of them if there are none."""
    scene = Picture(*SCENE_PX, (70, 128, 128), (190, 100, 175), 30.0, SCENE_PADDING_BYTES)
    eye = Picture(*EYE_PX, (150, 128, 128), (20, 128, 128), 20.0, EYE_PADDING_BYTES)
    made = [
        Camera("frame.world", SCENE_PX, SCENE_AGE_NS, Positions(tape, "gaze"), scene),
        Camera("frame.eye.0", EYE_PX, EYE_AGE_NS, Positions(tape, "pupil.0."), eye),
        Camera("frame.eye.1", EYE_PX, EYE_AGE_NS, Positions(tape, "pupil.1."), eye),
    ]
    return [camera for camera in made if not prefixes or camera.topic.startswith(tuple(prefixes))]


def exposures(of: Sequence[Camera], rate_hz: float, base_ns: int) -> Iterator[Exposure]:
    """What the cameras take from ``base_ns`` on, for ever, in the order in which it leaves Capture. They run free."""
    return heapq.merge(
        *(_of_one(camera, number, rate_hz, base_ns) for number, camera in enumerate(of) if rate_hz > 0),
        key=lambda exposure: exposure.at_ns,
    )


def _of_one(camera: Camera, number: int, rate_hz: float, base_ns: int) -> Iterator[Exposure]:
    for index in itertools.count():
        host_ns = base_ns + round((index + number / 3) * 1e9 / rate_hz)
        yield Exposure(host_ns + camera.age_ns, camera, index, host_ns)
