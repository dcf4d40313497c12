"""Which device of the configuration a Companion app is, which of its sensors are used, and why others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bridge.config import NdsiDevice
from bridge.names import DeviceNames
from bridge.sources.ndsi_streams import camera_of, cameras
from bridge.wire import ndsi


def recognise(
    devices: Sequence[NdsiDevice],
    names: DeviceNames,
    own_name: str,
    sensor_uuid: str,
    in_use: Callable[[str], bool],
) -> NdsiDevice:
    """Which device this is: a configured one that matches, or one that was seen before, or a new one.

    ``in_use``: whether another device has this name, so that one that calls itself ``own_name`` cannot be it.
    """
    known = names.known(sensor_uuid)
    configured = [device for device in devices if device.matches(own_name)]
    for device in configured:
        if device.name == known:
            return device
    for device in configured:
        if not in_use(device.name):
            return device
    taken = {device.name for device in devices}
    name = known if known is not None and known not in taken else None
    if name is None:
        name = names.choose(own_name, lambda name: name in taken or in_use(name))
    return NdsiDevice(name=name)


def why_unused(attach: ndsi.Attach, chosen: Sequence[str]) -> str | None:
    """Why a sensor is not used where these ``sensors`` are chosen; None when it is."""
    kind = attach.sensor_type
    if kind == "hardware":
        return None
    if kind == "video":
        camera = camera_of(attach.sensor_name)
        if camera is None:
            return 'a camera whose name says neither "world" nor "left" nor "right"'
        if camera in cameras(tuple(chosen)):
            return None
        kind = "scene" if camera == "scene" else "eyes"
    elif kind not in ndsi.DATA_SENSOR_TYPES:
        return f"the bridge does not know sensors of type {kind!r}"
    return None if kind in chosen else f'"{kind}" is not among `sensors` in the configuration'
