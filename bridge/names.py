"""The names of discovered devices, kept over restarts: an LSL stream or a ROS topic is always the same device's.

A name is taken from what the device calls itself, at first sight. It never depends on how many devices are there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z][a-z0-9_]*")
SAVES = 20.0  # in a row
SAVE_AGAIN_S = 60.0
KEPT_IDS = 64  # sensor ids remembered for each name: apps that make new ones at each start must not fill the disk


def default_state_dir() -> Path:
    """Where state lives: systemd's choice, /var/lib for root, else the user's state directory."""
    if directory := os.environ.get("STATE_DIRECTORY"):
        return Path(directory.split(":")[0])
    if sys.platform.startswith("linux") and os.geteuid() == 0:
        return Path("/var/lib/pupil-bridge")
    if directory := os.environ.get("XDG_STATE_HOME"):
        return Path(directory) / "pupil-bridge"
    return Path.home() / ".local" / "state" / "pupil-bridge"


def slug(own_name: str) -> str:
    """A name fit for ROS topics, LSL and files: ``[a-z][a-z0-9_]*``, at most 32 characters."""
    ascii_name = unicodedata.normalize("NFKD", own_name).encode("ascii", "ignore").decode().lower()
    cleaned = re.sub(r"[^a-z0-9]+", "_", ascii_name).strip("_")[:32].rstrip("_")
    if not cleaned:
        return "device"
    return cleaned if cleaned[0].isalpha() else f"device_{cleaned}"[:32].rstrip("_")


class DeviceNames:
    """Remembers which ids (sensor UUIDs) and which own names belong to which bridge name."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "names.json"
        self._ids: dict[str, list[str]] = {}  # bridge name -> ids, newest last
        self._own_names: dict[str, str] = {}  # bridge name -> what the device calls itself
        self.problem: str | None = None  # why they are not kept, for the status
        self._saves_left = SAVES
        self._counted_s = self._failed_s = time.monotonic()
        self._changed = False
        try:
            tree = json.loads(self._path.read_text(encoding="utf-8"))
            own_names = {str(k): str(v) for k, v in tree["own_names"].items()}
            ids = {str(k): [str(i) for i in v] for k, v in tree["ids"].items()}
            if wrong := [name for name in (*own_names, *ids) if not NAME.fullmatch(name)]:
                raise ValueError(f"{wrong[0]!r} cannot be a name")
            self._ids = ids
            self._own_names = own_names
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            log.warning("the names of devices in %s cannot be read and begin anew: %s", self._path, reason)

    def known(self, device_id: str) -> str | None:
        """The name that a device with this id was given."""
        return next((name for name, ids in self._ids.items() if device_id in ids), None)

    def choose(self, own_name: str, in_use: Callable[[str], bool]) -> str:
        """The name for a device that calls itself ``own_name`` and whose id is not known.

        The one that a device of that own name had, unless that one is there now; else a new one.
        """
        for name, known_own_name in self._own_names.items():
            if known_own_name == own_name and not in_use(name):
                return name
        base = slug(own_name)
        name, count = base, 1
        while name in self._own_names or in_use(name):
            count += 1
            name = f"{base}_{count}"
        return name

    def remember(self, name: str, own_name: str, device_id: str) -> None:
        """Keeps the choice. A disk that cannot be written is a warning: this run knows the name all the same."""
        ids = self._ids.setdefault(name, [])
        if device_id in ids and self._own_names.get(name) == own_name:
            return
        self._own_names[name] = own_name
        if device_id not in ids:
            ids.append(device_id)
            del ids[:-KEPT_IDS]
        self._changed = True
        self.save()

    def save(self, *, at_once: bool = False) -> None:
        """Writes what has changed to the disk. After some times in a row (an app can call itself a new name at every
        moment) once a second, and where it has failed once a minute; says once when it fails, and once when it works
        again."""
        now_s = time.monotonic()
        self._saves_left = min(SAVES, self._saves_left + (now_s - self._counted_s))
        self._counted_s = now_s
        waits = self._saves_left < 1 or (self.problem is not None and now_s - self._failed_s < SAVE_AGAIN_S)
        if not self._changed or (waits and not at_once):
            return
        self._saves_left -= 1
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            text = json.dumps({"own_names": self._own_names, "ids": self._ids}, indent=1)
            # "x": never through a link that somebody has put there.
            with open(partial, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(text)
            partial.replace(self._path)
        except OSError as error:
            if self.problem is None:
                log.warning("the names of devices cannot be kept in %s: %s", self._path, error.strerror or error)
            self._failed_s = now_s
            self.problem = f"the names of devices cannot be kept in {self._path}: {error.strerror or error}"
        else:
            if self.problem is not None:
                log.info("the names of devices are kept in %s again", self._path)
            self.problem = None
            self._changed = False
