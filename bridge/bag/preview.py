"""The command ``bag-preview``: a picture of a recorded bag, to see at a glance whether gaze, frames and stamps fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bridge.bag import drawing, reading
from bridge.bag.reading import Bag, Device
from bridge.errors import BridgeError

FORMATS = (".png", ".jpg", ".pdf", ".svg")
TRAIL_NS = 100_000_000  # of gaze around a frame, each way
ATTEMPTS = 5  # frames tried around a place in the bag, where their bytes are no image


@dataclass
class Picked:
    """A frame that is shown."""

    stamp_ns: int
    image: Image.Image


@dataclass
class Row:
    """A device as it is drawn. ``broken`` counts the frames that were tried and are no images."""

    device: Device
    frames: list[Picked]
    broken: int


def run(bag_path: Path, output: Path, device: str | None, frames: int) -> str:
    """Writes the picture and returns what it shows, in a sentence. Raises BridgeError."""
    if output.suffix.lower() not in FORMATS:
        raise BridgeError(f"{output}: has to end in {', '.join(FORMATS)}")
    if not output.absolute().parent.is_dir():
        raise BridgeError(f"{output.parent}: there is no such folder")
    with reading.opened(bag_path) as bag:
        rows = [_row(bag, each, frames) for each in _chosen(bag_path, bag, device)]
    figure = drawing.figure(bag_path.name, rows, TRAIL_NS)
    try:
        figure.savefig(output)
    except OSError as error:
        raise BridgeError(f"{output}: cannot be written: {error.strerror or error}") from error
    shown = "; ".join(f"{row.device.name}: {_counts(row)}" for row in rows)
    return f"{output}: {shown}"


def _counts(row: Row) -> str:
    gaze = row.device.gaze
    assert gaze is not None
    return f"{len(gaze.stamps_ns)} gaze, {len(row.device.frames_ns)} frames, of which {len(row.frames)} are shown"


def _chosen(path: Path, bag: Bag, wanted: str | None) -> list[Device]:
    """The devices to draw, each with gaze."""
    devices = bag.devices
    if wanted is not None:
        devices = [device for device in devices if wanted in (device.name, device.prefix)]
        if bag.devices and not devices:
            known = ", ".join(sorted({device.name for device in bag.devices}))
            raise BridgeError(f"{path}: has no device {wanted}, but {known}")
    found = [device for device in devices if device.gaze is not None]
    if not found:
        topics = bag.topics
        shown = ", ".join(topics[:8]) + (f" and {len(topics) - 8} more" if len(topics) > 8 else "")
        raise BridgeError(
            f"{path}: has no gaze, which is on <device>/gaze or <device>/gaze/pixel; it has {shown or 'nothing'}"
        )
    if not any(device.gaze is not None and len(device.gaze.stamps_ns) for device in found):
        raise BridgeError(f"{path}: all gaze in it has a stamp of zero: no device's clock was known")
    return [device for device in found if device.gaze is not None and len(device.gaze.stamps_ns)]


def _row(bag: Bag, device: Device, count: int) -> Row:
    row = Row(device, [], 0)
    tried: set[int] = set()
    for place in _places(device, count):
        # Outwards from the place until one is an image.
        near = sorted(range(len(device.frames_ns)), key=lambda i, place=place: abs(i - place))  # type: ignore[misc]
        for index in [i for i in near if i not in tried][:ATTEMPTS]:
            tried.add(index)
            if (image := bag.image(device, index)) is not None:
                row.frames.append(Picked(int(device.frames_ns[index]), image))
                break
            row.broken += 1
    row.frames.sort(key=lambda picked: picked.stamp_ns)
    return row


def _places(device: Device, count: int) -> list[int]:
    """Indexes of frames spread over the time of the bag, of those with gaze around them where there are any."""
    assert device.gaze is not None
    frames_ns, gaze_ns = device.frames_ns, device.gaze.stamps_ns[~np.isnan(device.gaze.x_px)]
    first = np.searchsorted(gaze_ns, frames_ns - TRAIL_NS)
    with_gaze = np.flatnonzero(first < np.searchsorted(gaze_ns, frames_ns + TRAIL_NS, side="right"))
    usable = with_gaze if len(with_gaze) else np.arange(len(frames_ns))
    if not len(usable):
        return []
    begin_ns, end_ns = int(frames_ns[usable[0]]), int(frames_ns[usable[-1]])
    targets_ns = [begin_ns + (end_ns - begin_ns) * (2 * i + 1) // (2 * count) for i in range(count)]
    return sorted({int(usable[np.argmin(np.abs(frames_ns[usable] - target))]) for target in targets_ns})
