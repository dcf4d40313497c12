"""Intrinsics of cameras, read from files: what a CameraInfo is made of.

Two formats: the YAML of ROS' camera_calibration (docs.ros.org, camera_calibration_parsers), as config/intrinsics has
it, and the ``*.intrinsics`` files of Pupil Capture (github.com/pupil-labs/pupil, shared_modules/camera_models.py).
A file that a person wrote can hold anything: only plain text, lists and tables are taken from it, within limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bridge import plain_yaml
from bridge.errors import ConfigError
from bridge.plain_yaml import List, Table, Text, Value, short
from bridge.streams import Camera

# Numbers of distortion coefficients that each model may have in a file, and those it has in a Camera (in OpenCV's
# order): plumb_bob's fifth is k3.
MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}
COEFFICIENTS = {"plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4}
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

LARGEST_FILE = 64 * 1024  # bytes; camera_calibration writes 800
LARGEST_SIDE_PX = 16384
DEEPEST = 4  # the format has lists in tables in a table
ORTHOGONAL = 1e-3  # how far R's rows may be from unit vectors at right angles: camera_calibration writes five decimals

# YAML 1.2's numbers. YAML 1.1's would take 1:30 for 90, and 1e-05 for a text.
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SIZE = re.compile(r"\(([0-9]{1,5}), ?([0-9]{1,5})\)")


def load(path: Path) -> Camera:
    """The camera of a YAML file of camera_calibration. Raises ConfigError that names every fault at its line."""
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    return _Reader(path, plain_yaml.parse(path, text, DEEPEST)).camera()


def load_capture(path: Path, width_px: int, height_px: int) -> Camera:
    """The camera of Pupil Capture's ``*.intrinsics`` file at this size of image, named after the file.

    Raises ConfigError, also when the file has nothing for this size; it says which sizes there are.
    """
    try:
        found = msgspec.msgpack.decode(_read(path), type=dict[str | int, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no file of intrinsics as Pupil Capture writes it") from error
    sizes = {
        (int(match[1]), int(match[2])): value
        for key, value in found.items()
        if isinstance(key, str) and (match := _SIZE.fullmatch(key))
    }
    if (width_px, height_px) not in sizes:
        known = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)) or "no size"
        raise ConfigError(f"{path}: has no intrinsics for {width_px} x {height_px} pixels, but for {known}")
    entry = sizes[width_px, height_px]
    try:
        one = msgspec.convert(entry, _CaptureEntry)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ConfigError(f"{path}: ({width_px}, {height_px}): {error}") from error
    d = _flat(one.dist_coefs)
    if one.cam_type == "fisheye":
        model = "equidistant"
    elif one.cam_type == "radial":
        model = "rational_polynomial" if len(d) > 5 else "plumb_bob"
    else:
        # "dummy" is what Capture writes where it knows nothing.
        raise ConfigError(f'{path}: ({width_px}, {height_px}): cam_type is {one.cam_type!r}, not "radial" or "fisheye"')
    k = _flat(one.camera_matrix)
    p = (*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0) if len(k) == 9 else ()
    camera = Camera(path.stem, width_px, height_px, model, _padded(model, d), k, IDENTITY, p)
    if faults := list(_faults(camera)):
        raise ConfigError("\n".join(f"{path}: ({width_px}, {height_px}): {name}: {fault}" for name, fault in faults))
    return camera


class _CaptureEntry(msgspec.Struct):
    camera_matrix: list[list[float]]
    dist_coefs: list[list[float]]
    cam_type: str


def _flat(rows: list[list[float]]) -> tuple[float, ...]:
    return tuple(value for row in rows for value in row)


def _padded(model: str, d: tuple[float, ...]) -> tuple[float, ...]:
    """OpenCV's plumb_bob has four coefficients where k3 is zero."""
    return (*d, 0.0) if model == "plumb_bob" and len(d) == 4 else d


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            found = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a zero byte
        raise ConfigError(f"{str(path)!r}: cannot be read: {error}") from error
    if len(found) > LARGEST_FILE:
        raise ConfigError(f"{path}: is larger than {LARGEST_FILE // 1024} KiB: that is no file of intrinsics")
    return found


class _Reader:
    """Takes a camera out of a table, and collects what is wrong with it."""

    def __init__(self, path: Path, table: Table) -> None:
        self._path = path
        self._table = table
        self._faults: list[tuple[int, str]] = []

    def camera(self) -> Camera:
        model = self._text("distortion_model")
        counts = MODELS.get(model)
        if model and counts is None:
            self._fault("distortion_model", f"{short(model)} is none of {', '.join(MODELS)}")
        camera = Camera(
            name=self._text("camera_name"),
            width_px=self._side("image_width"),
            height_px=self._side("image_height"),
            model=model,
            d=_padded(model, self._matrix("distortion_coefficients", lambda r, c: 1 in (r, c))),
            k=self._matrix("camera_matrix", lambda r, c: (r, c) == (3, 3)),
            r=self._matrix("rectification_matrix", lambda r, c: (r, c) == (3, 3)),
            p=self._matrix("projection_matrix", lambda r, c: (r, c) == (3, 4)),
        )
        if not self._faults:  # what a value means is looked at when all are there
            for name, fault in _faults(camera):
                self._fault(name, fault)
        if self._faults:
            raise ConfigError("\n".join(f"{self._path}: line {line}: {fault}" for line, fault in self._faults))
        return camera

    def _fault(self, name: str, fault: str, within: Value | None = None) -> None:
        at = within or self._table.items.get(name) or self._table
        self._faults.append((at.line, f"{name}: {fault}"))

    def _find(self, name: str) -> Value | None:
        found = self._table.items.get(name)
        if found is None:
            self._fault(name, "is missing")
        return found

    def _text(self, name: str) -> str:
        found = self._find(name)
        if found is None:
            return ""
        if isinstance(found, Text) and found.text:
            return found.text
        self._fault(name, "has to be a text")
        return ""

    def _side(self, name: str) -> int:
        found = self._find(name)
        if found is None:
            return 0
        if isinstance(found, Text) and re.fullmatch(r"[0-9]{1,5}", found.text):
            return int(found.text)
        self._fault(name, f"has to be a whole number from 1 to {LARGEST_SIDE_PX}")
        return 0

    def _matrix(self, name: str, shape: Callable[[int, int], bool]) -> tuple[float, ...]:
        """The numbers of {rows, cols, data}; () when it has faults."""
        found = self._find(name)
        if found is None:
            return ()
        if not isinstance(found, Table):
            self._fault(name, "has to be a table of rows, cols and data")
            return ()
        rows, cols = (self._count(name, found, key) for key in ("rows", "cols"))
        data = found.items.get("data")
        if not isinstance(data, List):
            self._fault(name, "data has to be a list of numbers", found)
        elif rows and cols and not shape(rows, cols):
            self._fault(name, f"cannot have {rows} rows and {cols} columns", found)
        elif rows and cols and len(data.items) != rows * cols:
            self._fault(name, f"has {len(data.items)} numbers for {rows} x {cols}", data)
        else:
            return tuple(self._number(name, item) for item in data.items)
        return ()

    def _count(self, name: str, table: Table, key: str) -> int:
        found = table.items.get(key)
        if isinstance(found, Text) and re.fullmatch(r"[1-9][0-9]?", found.text):
            return int(found.text)
        self._fault(name, f"{key} has to be a small whole number", table)
        return 0

    def _number(self, name: str, item: Value) -> float:
        if isinstance(item, Text) and _NUMBER.fullmatch(item.text) and math.isfinite(number := float(item.text)):
            return number
        shown = short(item.text) if isinstance(item, Text) else "a list or table"
        self._fault(name, f"{shown} is no finite number", item)
        return 0.0


def _faults(camera: Camera) -> Iterator[tuple[str, str]]:
    """(key of the format, what is wrong with its meaning)."""
    for name, side in (("image_width", camera.width_px), ("image_height", camera.height_px)):
        if not 1 <= side <= LARGEST_SIDE_PX:
            yield name, f"has to be a whole number from 1 to {LARGEST_SIDE_PX}"
    if len(camera.d) != COEFFICIENTS[camera.model]:
        wanted = " or ".join(map(str, MODELS[camera.model]))
        yield "distortion_coefficients", f"{camera.model} has {wanted} coefficients, not {len(camera.d)}"
    for name, matrix, columns in (("camera_matrix", camera.k, 3), ("projection_matrix", camera.p, 4)):
        if not all(map(math.isfinite, (*matrix, *camera.d))) or len(matrix) != 3 * columns:
            yield name, f"has to be 3 x {columns} finite numbers"
        elif matrix[0] <= 0 or matrix[columns + 1] <= 0:
            yield name, "has a focal length that is not above zero"
        elif matrix[columns] != 0 or matrix[2 * columns : 2 * columns + 3] != (0, 0, 1):
            yield name, "has to have the form fx 0 cx / 0 fy cy / 0 0 1"
    rows = (camera.r[0:3], camera.r[3:6], camera.r[6:9])
    products = [(sum(a * b for a, b in zip(rows[i], rows[j], strict=True)), i == j) for i in range(3) for j in range(3)]
    if any(abs(product - same) > ORTHOGONAL for product, same in products):
        yield "rectification_matrix", "is no rotation; for a single camera it is 1 0 0 / 0 1 0 / 0 0 1"
