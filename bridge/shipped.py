"""Files that come with the package, wherever it is installed."""

from __future__ import annotations

from pathlib import Path

import bridge
from bridge import cameras
from bridge.errors import BridgeError
from bridge.streams import Camera


def shipped(name: str) -> Path:
    """A file that comes with the package, such as "systemd/pupil-bridge.service". Raises BridgeError.

    In a source tree, and in what an editable installation points to, it is beside the package. An installation has it
    in share/ of its prefix (a virtual environment, /usr/local, ~/.local, a colcon workspace), above the package.
    """
    package = Path(bridge.__file__).parent
    for path in (package.parent / name, *(above / "share/pupil_bridge" / name for above in package.parents)):
        if path.is_file():
            return path
    raise BridgeError(f"this installation is not complete: share/pupil_bridge/{name} is missing")


def scene_camera(setting: str, model: str, width_px: int, height_px: int) -> Camera | None:
    """A scene camera's intrinsics by ``intrinsics`` of the configuration; None where they are not known.

    "auto" is what is shipped for this model ("pupil_invisible", "pupil_core") and size, "none" nothing, else a file.
    Raises ConfigError for a file that is not good.
    """
    if setting == "none":
        return None
    if setting != "auto":
        return cameras.load(Path(setting))
    try:
        path = shipped(f"config/intrinsics/{model}_{width_px}x{height_px}.yaml")
    except BridgeError:
        return None
    return cameras.load(path)
