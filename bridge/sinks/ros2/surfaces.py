"""The topics of gaze on a surface that the device tracks, and what surfaces are called in ROS."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any, Final

from geometry_msgs.msg import PointStamped
from std_msgs.msg import Header

from bridge.clock import Mapped
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.stamps import write
from bridge.streams import Sample, StreamDescriptor, SurfaceLayout

SLUG_MAX: Final = 32


class SurfaceNames:
    """What one device's surfaces, whose names are any text, are called in topics and frames: ``[a-z][a-z0-9_]*``.

    Of two names that would be the same, the one that came later has a number. A name stays for as long as this does.
    """

    def __init__(self) -> None:
        self._slugs: dict[str, str] = {}

    def of(self, surface: str) -> str:
        known = self._slugs.get(surface)
        if known is not None:
            return known
        base = slug(surface)
        made, number = base, 1
        while made in self._slugs.values():
            number += 1
            made = f"{base}_{number}"
        self._slugs[surface] = made
        return made


def slug(surface: str) -> str:
    """The part of a topic's name that stands for a surface."""
    ascii_name = unicodedata.normalize("NFKD", surface).encode("ascii", "ignore").decode().lower()
    # A token of a name begins with a letter, and has no two underscores in a row.
    cleaned = re.sub(r"[^a-z0-9]+", "_", ascii_name).strip("_")[:SLUG_MAX].rstrip("_")
    if not cleaned:
        return "surface"
    return cleaned if cleaned[0].isalpha() else f"surface_{cleaned}"


class SurfaceTopics:
    """surfaces/<slug>/gaze, where pupil_msgs is there, and surfaces/<slug>/gaze/normalized."""

    def __init__(self, desk: Desk, stream: StreamDescriptor, layout: SurfaceLayout, slug: str) -> None:
        device, topic = stream.device.name, "surfaces/{surface}/gaze"
        self._layout = layout
        self._stamps = desk.stamps
        self._header = Header(frame_id=desk.frame(topic, device, surface=slug))
        self._plain = desk.publisher(device, f"{topic}/normalized", surface=slug)
        self.publishers: list[Any] = [self._plain]
        self._plain_message = PointStamped(header=self._header)
        self._whole: Any = None
        if desk.has(topic):
            self._whole = desk.publisher(device, topic, surface=slug)
            self.publishers.append(self._whole)
            # How large a surface is, the device does not say in metres.
            self._message = desk.type("pupil_msgs/msg/SurfaceGaze")(
                header=self._header, surface=layout.surface, x=math.nan, y=math.nan
            )

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        plain = self._plain.get_subscription_count()
        whole = self._whole is not None and self._whole.get_subscription_count()
        if not (plain or whole):
            return
        values, layout = sample.payload, self._layout
        assert isinstance(values, tuple)
        write(self._header.stamp, self._stamps.of(sample, host_ns))
        x, y = values[layout.x_index], 1.0 - values[layout.y_index]
        if plain:
            point = self._plain_message.point
            point.x, point.y = x, y
            self._plain.publish(self._plain_message)
        if whole:
            message = self._message
            self._stamps.quality(message.quality, sample, mapped)
            message.on_surface = values[layout.on_surface_index] > 0.5  # NaN: it is not
            message.normalized_x, message.normalized_y = x, y
            message.confidence = values[layout.confidence_index]
            self._whole.publish(message)
